//! The actions.

use std::collections::{BTreeMap, btree_map::Entry};

use http::{Response, StatusCode};
use serde::Serialize;

use crate::dialect::MAX_BODY_BYTES;
use crate::dialect::call::{Call, json};
use crate::dialect::config::Config;
use crate::dialect::lookup::{self, Seen, Sources, gib, known};
use crate::dialect::params::{Params, missing};
use crate::error::{Error, Result, Violation};
use crate::pool::{self, Pool, RollbackOptions, SnapshotQuery, SnapshotSpec, SnapshotUpdate};

use super::code;
use super::types::{
    Answer, CreateSnapshot, DeleteSnapshot, DescribeSnapshots, DiskType, Nothing, Snapshot, SnapshotStatus,
    printed,
};

/// What a snapshot is called that was given no name.
const UNNAMED: &str = "Unnamed";

#[derive(Serialize)]
#[serde(untagged)]
enum Body {
    Described(DescribeSnapshots),
    Created(CreateSnapshot),
    Deleted(DeleteSnapshot),
    Done(Nothing),
}

/// What a body over the limit gets.
pub(in crate::dialect) fn body_too_large() -> Response<Vec<u8>> {
    let why = format!("at most {MAX_BODY_BYTES} bytes are read");
    json(StatusCode::PAYLOAD_TOO_LARGE, &code::failure(&Error::invalid("body", Violation::Malformed, why)))
}

/// Answers one request; `pool` has the limits that apply.
pub(in crate::dialect) fn answer(pool: &Pool, config: &Config, call: &Call<'_>) -> Response<Vec<u8>> {
    let done = Params::of(call, false).and_then(|params| serve(pool, config, &params));
    match done {
        Ok(body) => json(StatusCode::OK, &Answer::success(body)),
        Err(error) => json(StatusCode::OK, &code::failure(&error)),
    }
}

fn serve(pool: &Pool, config: &Config, params: &Params) -> Result<Body> {
    let seen = Seen { pool, project: config.caller_project.as_deref() };
    match params.need("Action")? {
        "DescribeSnapshots" => describe(seen, config, params).map(Body::Described),
        "CreateSnapshot" => create(seen, params).map(Body::Created),
        "ModifySnapshot" => modify(seen, params).map(Body::Done),
        "ApplySnapshot" => apply(seen, params).map(Body::Done),
        "DeleteSnapshot" => delete(seen, params).map(Body::Deleted),
        _ => Err(Error::Unsupported("no such Action".into())),
    }
}

fn describe(seen: Seen<'_>, config: &Config, params: &Params) -> Result<DescribeSnapshots> {
    let pool = seen.pool;
    let (limit, offset) = params.page("limit", "offset")?;
    let mut query = SnapshotQuery::new().limit(limit).offset(offset).with_total(true);
    for status in SnapshotStatus::SHOWN {
        query = query.status(status);
    }
    match params.text("diskType")? {
        None => {}
        Some("root") => query = query.bootable(true),
        Some("data") => query = query.bootable(false),
        Some(other) => {
            let why = format!("it is root or data, {:?} given", other.chars().take(60).collect::<String>());
            return Err(Error::invalid("diskType", Violation::Filter, why));
        }
    }
    let project = params.number("projectId")?;
    let (storages, snapshots) = (params.list("storageIds")?, params.list("snapshotIds")?);
    if let Some(number) = project {
        let project = match u32::try_from(number) {
            Ok(number) => known(pool.project_by_number(number))?,
            Err(_) => None,
        };
        match (project, seen.project) {
            (Some(project), Some(own)) if project.id != own => {
                return Err(lookup::not_the_callers("projectId"));
            }
            (Some(project), _) => query = query.project(project.id),
            (None, _) => return Ok(DescribeSnapshots { total_count: 0, snapshot_set: Vec::new() }),
        }
    } else if let Some(own) = seen.project {
        query = query.project(own);
    }
    if let Some(texts) = storages {
        query = query.volumes(lookup::volumes(pool, &texts)?);
    }
    if let Some(texts) = snapshots {
        query = query.ids(lookup::snapshots(pool, &texts)?);
    }
    let page = pool.list_snapshots(&query)?;
    let sources = Sources::of(pool, &page.items)?;
    let shown = |snapshot: pool::Snapshot| {
        let status = SnapshotStatus::of(snapshot.status)?;
        let source = sources.get(snapshot.volume);
        Some(Snapshot {
            snapshot_id: snapshot.alias,
            storage_id: source.map_or_else(|| snapshot.volume.to_string(), |volume| volume.alias.clone()),
            snapshot_name: snapshot.name.unwrap_or_default(),
            snapshot_status: status,
            project_id: snapshot.project.number,
            percent: status.percent(),
            storage_size: gib(snapshot.size_bytes),
            create_time: printed(snapshot.created_at_micros, config.utc_offset_seconds),
            disk_type: if snapshot.bootable { DiskType::Root } else { DiskType::Data },
        })
    };
    let snapshot_set = page.items.into_iter().filter_map(shown).collect();
    Ok(DescribeSnapshots { total_count: page.total.unwrap_or(0), snapshot_set })
}

fn create(seen: Seen<'_>, params: &Params) -> Result<CreateSnapshot> {
    let pool = seen.pool;
    let name = params.text("snapshotName")?.unwrap_or(UNNAMED);
    let storage = params.need("storageId")?;
    // No attachment is asked about: it is as if force were said.
    let spec = SnapshotSpec::new().name(name).force(true);
    spec.check(pool.limits())?;
    let made = pool.create_snapshot(seen.volume(storage)?, spec)?;
    Ok(CreateSnapshot { snapshot_id: made.alias })
}

fn modify(seen: Seen<'_>, params: &Params) -> Result<Nothing> {
    let pool = seen.pool;
    let name = params.text("snapshotName")?;
    let snapshot = params.need("snapshotId")?;
    let name = name.ok_or_else(|| missing("snapshotName"))?;
    let update = SnapshotUpdate::new().name(Some(name.into()));
    update.check(pool.limits())?;
    pool.update_snapshot(seen.snapshot(snapshot)?, update)?;
    Ok(Nothing {})
}

fn apply(seen: Seen<'_>, params: &Params) -> Result<Nothing> {
    let [snapshot, storage] = params.need_all(["snapshotId", "storageId"])?;
    let snapshot = seen.snapshot(snapshot)?;
    let options = RollbackOptions::new().volume(seen.volume(storage)?);
    seen.pool.rollback_with(snapshot, options)?;
    Ok(Nothing {})
}

/// Each id is a delete of its own, and each is reported.
fn delete(seen: Seen<'_>, params: &Params) -> Result<DeleteSnapshot> {
    let ids = params.list("snapshotIds")?.ok_or_else(|| missing("snapshotIds"))?;
    let mut detail = BTreeMap::new();
    for text in ids {
        if let Entry::Vacant(entry) = detail.entry(text) {
            let done = seen.snapshot(entry.key()).and_then(|id| seen.pool.delete_snapshot(id));
            entry.insert(code::outcome(done));
        }
    }
    Ok(DeleteSnapshot { detail })
}
