//! Snapshots: create, list, show, update, delete, roll back. `/snapshots` and `/cloudsnapshots` are one.

use http::StatusCode;
use serde::{Deserialize, Serialize};

use crate::dialect::call::{Call, json};
use crate::pool::{RollbackOptions, SnapshotQuery, SnapshotSpec, SnapshotStatus, SnapshotUpdate};
use crate::units::VolumeId;

use super::codes::{BODY, NOT_FOUND, NOTHING, Refusal, STATUS_FILTER, ZONE_FILTER};
use super::input::{Flag, Metadata, envelope, metadata};
use super::listing::{Paging, Parameters, metadata_filter, order};
use super::scope::Scope;
use super::shapes::{DetailedSnapshot, FullSnapshot, Link};
use super::volumes::Changed;
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
    let parameters = Parameters(&call.query);
    let paging = Paging::of(&parameters, scope.version)?;
    let mut query = SnapshotQuery::new().project(scope.project.clone()).offset(paging.offset);
    for (key, direction) in order(&parameters)? {
        query = query.sort(key, direction);
    }
    if let Some(name) = parameters.get("name").or(parameters.get("display_name")) {
        query = query.name(name);
    }
    let mut nothing = false;
    if let Some(status) = parameters.get("status") {
        match status.parse::<SnapshotStatus>() {
            Ok(status) => query = query.status(status),
            Err(error) if scope.version.is_v2() => {
                return Err(Refusal::new(STATUS_FILTER, error.to_string()));
            }
            Err(_) => nothing = true,
        }
    }
    if let Some(volume) = parameters.get("volume_id") {
        match named_volume(scope, volume)? {
            Some(id) => query = query.volume(id),
            None => nothing = true,
        }
    }
    if let Some(zone) = parameters.get("availability_zone").filter(|_| of != Of::Brief) {
        if zone.is_empty() {
            return Err(Refusal::new(ZONE_FILTER, "it is empty"));
        }
        query = query.zone(zone);
    }
    if let Some(text) = parameters.get("metadata") {
        for (key, value) in metadata_filter(text)? {
            query = query.metadata(key, value);
        }
    }
    if let Some(marker) = parameters.get("marker") {
        query = query.marker(scope.snapshot_id(marker)?);
    }
    let counted = of == Of::Counted;
    let (mut snapshots, total) = if nothing {
        (Vec::new(), Some(0))
    } else {
        let page = scope.pool.list_snapshots(&query.limit(paging.limit.max(1)).with_total(counted))?;
        (page.items, page.total)
    };
    snapshots.truncate(paging.limit as usize);
    let count = total.filter(|_| counted);
    let last = snapshots.last().map(|s| s.id.to_string());
    let links = paging.links(&parameters, &scope.here(call), last, snapshots.len());
    let snapshots_links = scope.next_links(links);
    if of == Of::Brief {
        let snapshots = snapshots.into_iter().map(FullSnapshot::from).collect();
        return Ok(json(StatusCode::OK, &ManySnapshots { snapshots, snapshots_links, count }));
    }
    let snapshots = snapshots.into_iter().map(DetailedSnapshot::from).collect();
    Ok(json(StatusCode::OK, &ManySnapshots { snapshots, snapshots_links, count }))
}

/// The volume of a filter. One that is gone may have left snapshots and backups, so a UUID need not name one that is there;
/// the project is a condition of the query.
pub(super) fn named_volume(scope: &Scope<'_>, text: &str) -> Result<Option<VolumeId>, Refusal> {
    match scope.pool.find_volume(text) {
        Ok(id) => Ok(Some(id)),
        Err(crate::Error::NotFound { .. }) => Ok(text.parse().ok()),
        Err(other) => Err(other.into()),
    }
}

pub(super) fn show(scope: &Scope<'_>, id: &str) -> Answer {
    let snapshot = DetailedSnapshot::from(scope.snapshot(id)?);
    Ok(json(StatusCode::OK, &OneSnapshot { snapshot }))
}

pub(super) fn update(scope: &Scope<'_>, call: &Call<'_>, id: &str) -> Answer {
    let given: Changed = envelope(call.body, "snapshot", BODY)?;
    let mut update = SnapshotUpdate::new();
    if let Some(name) = given.name.or(given.display_name) {
        update = update.name(Some(name));
    }
    if let Some(description) = given.description.or(given.display_description) {
        update = update.description(Some(description));
    }
    if let Some(metadata) = metadata(given.metadata)? {
        update = update.metadata(metadata);
    }
    if update == SnapshotUpdate::new() {
        return Err(Refusal::new(NOTHING, ""));
    }
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
