//! The actions.

use http::{Response, StatusCode};
use serde::Serialize;

use crate::dialect::MAX_BODY_BYTES;
use crate::dialect::call::{Call, json};
use crate::dialect::config::Config;
use crate::dialect::lookup::{self, Seen, Sources};
use crate::dialect::params::{Params, missing};
use crate::error::{Error, Result, Violation};
use crate::pool::{self, Pool, RollbackOptions, SnapshotQuery, SnapshotSpec, SnapshotUpdate, Trigger};
use crate::units::{SnapshotId, VolumeId};

use super::code::Refusal;
use super::types::{Answer, CreateSnapshot, DescribeSnapshot, DiskType, Nothing, SnapshotInfo, SnapshotType};

/// Most bytes of an action that an answer repeats.
const MAX_ACTION_BYTES: usize = 64;

/// Most characters of a keyword: every record is searched for it.
const MAX_KEYWORD_CHARS: usize = 255;

#[derive(Serialize)]
#[serde(untagged)]
enum Body {
    Created(CreateSnapshot),
    Described(DescribeSnapshot),
    Done(Nothing),
}

/// What a body over the limit gets.
pub(in crate::dialect) fn body_too_large() -> Response<Vec<u8>> {
    let why = format!("at most {MAX_BODY_BYTES} bytes are read");
    let error = Error::invalid("body", Violation::Malformed, why);
    respond(StatusCode::PAYLOAD_TOO_LARGE, "", Err(error.into()))
}

/// Answers one request; `pool` has the limits that apply.
pub(in crate::dialect) fn answer(pool: &Pool, config: &Config, call: &Call<'_>) -> Response<Vec<u8>> {
    let params = match Params::of(call, true) {
        Ok(params) => params,
        Err(error) => return respond(StatusCode::OK, "", Err(error.into())),
    };
    let action = match params.filled("Action") {
        Ok(Some(action)) => action,
        Ok(None) => return respond(StatusCode::OK, "", Err(Refusal::no_action())),
        Err(error) => return respond(StatusCode::OK, "", Err(error.into())),
    };
    respond(StatusCode::OK, action, serve(pool, config, action, &params))
}

fn respond(status: StatusCode, action: &str, done: Result<Body, Refusal>) -> Response<Vec<u8>> {
    let action = if action.len() > MAX_ACTION_BYTES { "" } else { action };
    let action = format!("{action}Response");
    let (ret_code, message, body) = match done {
        Ok(body) => (0, String::new(), Some(body)),
        Err(refusal) => (refusal.code, refusal.message, None),
    };
    json(status, &Answer { ret_code, action, message, body })
}

fn serve(pool: &Pool, config: &Config, action: &str, params: &Params) -> Result<Body, Refusal> {
    let act = match action {
        "CreateSnapshot" => create,
        "DescribeSnapshot" => describe,
        "RollbackSnapshot" => roll_back,
        "DeleteSnapshot" => delete,
        "ModifyNameAndRemark" => modify,
        _ => return Err(Refusal::unknown_action()),
    };
    Ok(act(&Scope::of(pool, config, params)?, params)?)
}

/// What the caller can see: everything, unless it says less.
struct Scope<'a> {
    seen: Seen<'a>,
    company: i64,
    region: &'a str,
    /// It names a region or tenant that is not the store's, where there is nothing.
    elsewhere: bool,
}

impl<'a> Scope<'a> {
    fn of(pool: &'a Pool, config: &'a Config, params: &'a Params) -> Result<Self> {
        let asked = params.filled("Region")?;
        let ours = config.region.as_deref();
        let company = if config.admin { params.number("CompanyID")? } else { None };
        let project = match (params.filled("ProjectID")?, config.caller_project.as_deref()) {
            (Some(asked), Some(own)) if asked != own => return Err(lookup::not_the_callers("ProjectID")),
            (asked, own) => asked.or(own),
        };
        Ok(Self {
            seen: Seen { pool, project },
            company: config.company,
            region: ours.or(asked).unwrap_or(""),
            elsewhere: asked.is_some_and(|asked| ours.is_some_and(|ours| ours != asked))
                || company.is_some_and(|company| company != config.company),
        })
    }

    fn disk(&self, text: &str) -> Result<VolumeId> {
        if self.elsewhere {
            return Err(Error::not_found("volume", text));
        }
        self.seen.volume(text)
    }

    fn snapshot(&self, text: &str) -> Result<SnapshotId> {
        if self.elsewhere {
            return Err(Error::not_found("snapshot", text));
        }
        self.seen.snapshot(text)
    }
}

fn create(scope: &Scope<'_>, params: &Params) -> Result<Body> {
    let (name, remark, kind) = (params.text("Name")?, params.text("Remark")?, params.filled("Type")?);
    let disk = params.need("DiskID")?;
    let trigger = match kind {
        None | Some("Manual") => Trigger::Manual,
        Some("Automatic") => Trigger::Automatic,
        Some(other) => {
            let other: String = other.chars().take(60).collect();
            let why = format!("it is Manual or Automatic, {other:?} given");
            return Err(Error::invalid("Type", Violation::Filter, why));
        }
    };
    // Nothing is said about attachments: it is as if force were.
    let mut spec = SnapshotSpec::new().trigger(trigger).force(true);
    if let Some(name) = name {
        spec = spec.name(name);
    }
    if let Some(remark) = remark {
        spec = spec.description(remark);
    }
    spec.check(scope.seen.pool.limits())?;
    let made = scope.seen.pool.create_snapshot(scope.disk(disk)?, spec)?;
    Ok(Body::Created(CreateSnapshot { snapshot_id: made.id.to_string() }))
}

fn describe(scope: &Scope<'_>, params: &Params) -> Result<Body> {
    let (limit, offset) = params.page("Limit", "Offset")?;
    let mut query = SnapshotQuery::new().limit(limit).offset(offset).with_total(true);
    if let Some(keyword) = params.filled("Keyword")? {
        let given = keyword.chars().count();
        if given > MAX_KEYWORD_CHARS {
            let why = format!("at most {MAX_KEYWORD_CHARS} characters are allowed, {given} given");
            return Err(Error::invalid("Keyword", Violation::TooLong, why));
        }
        query = query.text(keyword);
    }
    let (projects, snapshots) = (params.list("ProjectIDs")?, params.list("SnapshotIDs")?);
    let disk = params.filled("DiskID")?;
    let projects = match (scope.seen.project, projects) {
        (None, projects) => projects,
        (Some(one), None) => Some(vec![one.to_owned()]),
        // Conditions combine by AND.
        (Some(one), Some(projects)) => Some(projects.into_iter().filter(|project| project == one).collect()),
    };
    if scope.elsewhere || projects.as_ref().is_some_and(Vec::is_empty) {
        return Ok(Body::Described(DescribeSnapshot { total_count: 0, infos: Vec::new() }));
    }
    for project in projects.into_iter().flatten() {
        query = query.project(project);
    }
    if let Some(texts) = snapshots {
        query = query.ids(lookup::snapshots(scope.seen.pool, &texts)?);
    }
    if let Some(disk) = disk {
        query = query.volumes(lookup::volumes(scope.seen.pool, &[disk.to_owned()])?);
    }
    let page = scope.seen.pool.list_snapshots(&query)?;
    let sources = Sources::of(scope.seen.pool, &page.items)?;
    let infos = page.items.into_iter().map(|snapshot| info(scope, &sources, snapshot)).collect();
    Ok(Body::Described(DescribeSnapshot { total_count: page.total.unwrap_or(0), infos }))
}

fn info(scope: &Scope<'_>, sources: &Sources, snapshot: pool::Snapshot) -> SnapshotInfo {
    let holder = sources.get(snapshot.volume).and_then(|disk| disk.attachments.first());
    let automatic = snapshot.backup_owned || snapshot.trigger == Trigger::Automatic;
    SnapshotInfo {
        region: scope.region.to_owned(),
        name: snapshot.name.unwrap_or_default(),
        remark: snapshot.description.unwrap_or_default(),
        company_id: scope.company,
        project_id: snapshot.project.id,
        project_name: snapshot.project.name.unwrap_or_default(),
        snapshot_id: snapshot.id.to_string(),
        snapshot_status: snapshot.status.into(),
        r#type: if automatic { SnapshotType::Automatic } else { SnapshotType::Manual },
        disk_id: snapshot.volume.to_string(),
        disk_type: if snapshot.bootable { DiskType::Boot } else { DiskType::Data },
        disk_attach_resource_id: holder.and_then(|h| h.server_id.clone()).unwrap_or_default(),
        disk_attach_resource_type: holder.and_then(|h| h.server_kind.clone()).unwrap_or_default(),
        create_time: snapshot.created_at_micros / 1_000_000,
    }
}

fn roll_back(scope: &Scope<'_>, params: &Params) -> Result<Body> {
    let [disk, snapshot] = params.need_all(["DiskID", "SnapshotID"])?;
    let snapshot = scope.snapshot(snapshot)?;
    let options = RollbackOptions::new().volume(scope.disk(disk)?);
    scope.seen.pool.rollback_with(snapshot, options)?;
    Ok(Body::Done(Nothing {}))
}

fn delete(scope: &Scope<'_>, params: &Params) -> Result<Body> {
    let snapshot = params.need("SnapshotID")?;
    // Durable now; nobody waits for the space.
    drop(scope.seen.pool.delete_snapshot(scope.snapshot(snapshot)?)?);
    Ok(Body::Done(Nothing {}))
}

fn modify(scope: &Scope<'_>, params: &Params) -> Result<Body> {
    let (name, remark) = (params.text("Name")?, params.text("Remark")?);
    let resource = params.need("ResourceID")?;
    let name = name.ok_or_else(|| missing("Name"))?;
    let mut update = SnapshotUpdate::new().name(Some(name.into()));
    if let Some(remark) = remark {
        update = update.description(Some(remark.into()));
    }
    update.check(scope.seen.pool.limits())?;
    scope.seen.pool.update_snapshot(scope.snapshot(resource)?, update)?;
    Ok(Body::Done(Nothing {}))
}
