//! Snapshots: create, list, show, update, delete, roll back. `/snapshots` and `/cloudsnapshots` are one.

use http::StatusCode;
use serde::{Deserialize, Serialize};

use crate::dialect::call::{Call, json};
use crate::pool::{RollbackOptions, SnapshotQuery, SnapshotSpec, SnapshotUpdate};
use crate::units::VolumeId;

use super::codes::{BODY, NOT_FOUND, NOTHING, Refusal};
use super::input::{Flag, Metadata, envelope, metadata};
use super::listing::Asked;
use super::scope::Scope;
use super::shapes::{DetailedSnapshot, FullSnapshot, Link};
use super::volumes::{Changed, update_of};
use super::{Answer, empty};

/// `snapshot` of a request to create one.
#[derive(Deserialize)]
struct NewSnapshot {
    volume_id: Option<String>,
    force: Option<Flag>,
    metadata: Option<Metadata>,
    name: Option<String>,
    display_name: Option<String>,
    description: Option<String>,
    display_description: Option<String>,
}

#[derive(Serialize)]
struct OneSnapshot<T> {
    snapshot: T,
}

#[derive(Serialize)]
struct ManySnapshots<T> {
    snapshots: Vec<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshots_links: Option<Option<Vec<Link>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
}

pub(super) fn create(scope: &Scope<'_>, call: &Call<'_>) -> Answer {
    let given: NewSnapshot = envelope(call.body, "snapshot", BODY)?;
    let Some(volume) = given.volume_id else {
        // A null names no volume there.
        let code = if scope.version.is_v2() || !names_null(call) { BODY } else { NOT_FOUND };
        return Err(Refusal::new(code, "\"volume_id\" is needed"));
    };
    let mut spec = SnapshotSpec::new().force(given.force.is_some_and(|flag| flag.0));
    spec = spec.metadata_map(metadata(given.metadata)?.unwrap_or_default());
    if let Some(name) = given.name.or(given.display_name) {
        spec = spec.name(name);
    }
    if let Some(description) = given.description.or(given.display_description) {
        spec = spec.description(description);
    }
    let about = |error| Refusal::from(error).about_a_snapshot();
    spec.check(scope.pool.limits()).map_err(about)?;
    let made = scope.pool.create_snapshot(scope.volume_id(&volume)?, spec).map_err(about)?;
    Ok(json(StatusCode::ACCEPTED, &OneSnapshot { snapshot: FullSnapshot::just_made(made) }))
}

/// Whether the request holds a `volume_id` of null, and not none.
fn names_null(call: &Call<'_>) -> bool {
    let body: Result<serde_json::Value, _> = serde_json::from_slice(call.body);
    body.is_ok_and(|body| body["snapshot"].get("volume_id").is_some())
}

/// Which of the lists was asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    Brief,
    Detail,
    /// `/cloudsnapshots/detail`, the one with a count.
    Counted,
}

pub(super) fn list(scope: &Scope<'_>, call: &Call<'_>, of: Of) -> Answer {
    let mut asked = Asked::of(call, scope.version)?;
    let mut query = SnapshotQuery::new().project(scope.project.clone()).offset(asked.offset());
    for (key, direction) in asked.order()? {
        query = query.sort(key, direction);
    }
    if let Some(name) = asked.name() {
        query = query.name(name);
    }
    if let Some(status) = asked.status()? {
        query = query.status(status);
    }
    if let Some(volume) = asked.volume(scope)? {
        query = query.volume(volume);
    }
    if of != Of::Brief
        && let Some(zone) = asked.zone()?
    {
        query = query.zone(zone);
    }
    for (key, value) in asked.metadata()? {
        query = query.metadata(key, value);
    }
    if let Some(marker) = asked.get("marker") {
        query = query.marker(scope.snapshot_id(marker)?);
    }
    let counted = of == Of::Counted;
    let query = query.with_total(counted);
    let (snapshots, total) = asked.page(|items| scope.pool.list_snapshots(&query.limit(items)))?;
    let count = total.filter(|_| counted);
    let last = snapshots.last().map(|s| s.id.to_string());
    let snapshots_links = scope.next_links(asked.links(&scope.here(call), last, snapshots.len()));
    if of == Of::Brief {
        let snapshots = snapshots.into_iter().map(FullSnapshot::from).collect();
        return Ok(json(StatusCode::OK, &ManySnapshots { snapshots, snapshots_links, count }));
    }
    let snapshots = snapshots.into_iter().map(DetailedSnapshot::from).collect();
    Ok(json(StatusCode::OK, &ManySnapshots { snapshots, snapshots_links, count }))
}

pub(super) fn show(scope: &Scope<'_>, id: &str) -> Answer {
    let snapshot = DetailedSnapshot::from(scope.snapshot(id)?);
    Ok(json(StatusCode::OK, &OneSnapshot { snapshot }))
}

pub(super) fn update(scope: &Scope<'_>, call: &Call<'_>, id: &str) -> Answer {
    let given: Changed = envelope(call.body, "snapshot", BODY)?;
    let update = update_of!(SnapshotUpdate, given);
    let about = |error| Refusal::from(error).about_a_snapshot();
    update.check(scope.pool.limits()).map_err(about)?;
    let snapshot = scope.pool.update_snapshot(scope.snapshot_id(id)?, update).map_err(about)?;
    Ok(json(StatusCode::OK, &OneSnapshot { snapshot: FullSnapshot::from(snapshot) }))
}

pub(super) fn delete(scope: &Scope<'_>, id: &str) -> Answer {
    // Durable now; the space comes back in the background.
    let _ = scope.pool.delete_snapshot(scope.snapshot_id(id)?)?;
    Ok(empty(StatusCode::ACCEPTED))
}

/// `rollback` of a request: the name is that of the target volume, a label that nobody compares.
#[derive(Deserialize)]
struct Rollback {
    #[serde(rename = "name")]
    _name: Option<String>,
    volume_id: Option<String>,
}

#[derive(Serialize)]
struct Rolled {
    rollback: RolledVolume,
}

#[derive(Serialize)]
struct RolledVolume {
    volume_id: VolumeId,
}

pub(super) fn rollback(scope: &Scope<'_>, call: &Call<'_>, id: &str) -> Answer {
    let given: Rollback = envelope(call.body, "rollback", BODY)?;
    let Some(volume) = given.volume_id else {
        return Err(Refusal::new(BODY, "\"volume_id\" is needed"));
    };
    let snapshot = scope.snapshot_id(id)?;
    let volume_id = scope.volume_id(&volume)?;
    scope.pool.rollback_with(snapshot, RollbackOptions::new().volume(volume_id))?;
    Ok(json(StatusCode::ACCEPTED, &Rolled { rollback: RolledVolume { volume_id } }))
}
