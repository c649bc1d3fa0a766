//! Volumes: create, list, show, update, delete, and the actions on them.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use http::{Response, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::dialect::call::{Call, json};
use crate::error::Error;
use crate::pool::{AttachmentSpec, Snapshots, Volume, VolumeQuery, VolumeSource, VolumeSpec, VolumeUpdate};
use crate::units::{AttachmentId, BackupId, ImageId, SnapshotId, VolumeId};

use super::codes::{
    BACKUP_COUNT, BODY, COUNT, CREATE, EXTEND, NOT_FOUND, NOT_LARGER, NOTHING, NULL_VOLUME, Refusal,
    SHAREABLE, SIZE, SOURCES, UNSUPPORTED,
};
use super::input::{Flag, Metadata, Whole, metadata, object, typed, under};
use super::listing::{Asked, Parameters};
use super::scope::Scope;
use super::shapes::{BriefVolume, DetailedVolume, FullVolume, Link, bytes, gib};
use super::{Answer, empty};

const HINTS: &str = "OS-SCH-HNT:scheduler_hints";

/// `volume` of a request to create one.
#[derive(Deserialize)]
struct NewVolume {
    name: Option<String>,
    display_name: Option<String>,
    description: Option<String>,
    display_description: Option<String>,
    availability_zone: Option<String>,
    volume_type: Option<String>,
    size: Option<Whole>,
    count: Option<Whole>,
    metadata: Option<Metadata>,
    #[serde(rename = "imageRef")]
    image_ref: Option<String>,
    snapshot_id: Option<String>,
    source_volid: Option<String>,
    backup_id: Option<String>,
    multiattach: Option<Flag>,
    shareable: Option<Value>,
    consistencygroup_id: Option<Value>,
    source_replica: Option<Value>,
    #[serde(rename = "OS-SCH-HNT:scheduler_hints")]
    scheduler_hints: Option<Map<String, Value>>,
}

/// Says a text of a new volume.
type Setter = fn(VolumeSpec, String) -> VolumeSpec;

/// The source of data, before anything was looked up.
enum Named {
    Blank,
    Snapshot(String),
    Volume(String),
    Image(String),
    Backup(String),
}

#[derive(Serialize)]
struct OneVolume<T> {
    volume: T,
}

#[derive(Serialize)]
struct ManyVolumes<T> {
    volumes: Vec<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    volumes_links: Option<Option<Vec<Link>>>,
}

pub(super) fn create(scope: &Scope<'_>, call: &Call<'_>) -> Answer {
    let mut body = object(call.body)?;
    let given: NewVolume = under(&mut body, "volume", CREATE)?;
    let beside = match body.remove(HINTS) {
        None | Some(Value::Null) => None,
        Some(hints) => Some(typed::<Map<String, Value>>(hints)?),
    };
    for (name, value) in
        [("consistencygroup_id", &given.consistencygroup_id), ("source_replica", &given.source_replica)]
    {
        if value.is_some() {
            return Err(Refusal::new(UNSUPPORTED, format!("{name} is null, or not given")));
        }
    }
    let shareable = match &given.shareable {
        None => None,
        Some(value) => match Flag::of(value) {
            Some(flag) => Some(flag),
            None => return Err(Refusal::new(SHAREABLE, "it is true or false")),
        },
    };
    let source = match (given.snapshot_id, given.source_volid, given.image_ref, given.backup_id) {
        (None, None, None, None) => Named::Blank,
        (Some(id), None, None, None) => Named::Snapshot(id),
        (None, Some(id), None, None) => Named::Volume(id),
        (None, None, Some(id), None) => Named::Image(id),
        (None, None, None, Some(id)) => Named::Backup(id),
        _ => return Err(Refusal::new(SOURCES, "source_volid counts, too")),
    };
    if given.size.is_none() && matches!(source, Named::Blank | Named::Image(_)) {
        return Err(Refusal::new(SIZE, "it is needed"));
    }
    let count = match given.count {
        None => 1,
        Some(Whole(n)) => match u32::try_from(n) {
            Ok(n @ 1..=100) => n,
            _ => return Err(Refusal::new(COUNT, format!("1 to 100 are created at once, {n} asked for"))),
        },
    };
    if count > 1 && matches!(source, Named::Backup(_)) {
        return Err(Refusal::new(BACKUP_COUNT, format!("{count} asked for")));
    }
    let metadata = metadata(given.metadata)?.unwrap_or_default();
    let (name, description) =
        (given.name.or(given.display_name), given.description.or(given.display_description));
    let hints = given.scheduler_hints.or(beside).map(|hints| Value::Object(hints).to_string());
    let multiattach = given.multiattach.or(shareable).is_some_and(|flag| flag.0);
    let size_bytes = given.size.map(|size| bytes(size.0));
    let dress = |source: VolumeSource, size_bytes: Option<u64>| {
        let mut spec = of_source(source, size_bytes);
        let texts: [(&Option<String>, Setter); 5] = [
            (&name, VolumeSpec::name),
            (&description, VolumeSpec::description),
            (&given.availability_zone, VolumeSpec::zone),
            (&given.volume_type, VolumeSpec::volume_type),
            (&hints, VolumeSpec::placement),
        ];
        for (text, set) in texts {
            if let Some(text) = text {
                spec = set(spec, text.clone());
            }
        }
        spec.metadata_map(metadata.clone()).multiattach(multiattach).project(scope.project.clone())
    };
    // What can be said without looking comes before what is not there: an id that names nothing stands in.
    let nobody = match source {
        Named::Blank => VolumeSource::Blank,
        Named::Snapshot(_) => VolumeSource::Snapshot(SnapshotId::new(Uuid::nil())),
        Named::Volume(_) => VolumeSource::Volume(VolumeId::new(Uuid::nil())),
        Named::Image(_) => VolumeSource::Image(ImageId::new(Uuid::nil())),
        Named::Backup(_) => VolumeSource::Backup(BackupId::new(Uuid::nil())),
    };
    let refused = |error: Error| -> Refusal {
        let unknown_type =
            matches!(&error, Error::InvalidArgument { rule: crate::Violation::VolumeType, .. });
        if unknown_type && !scope.version.is_v2() {
            return Refusal::new(NOT_FOUND, error.to_string());
        }
        error.into()
    };
    let reserve = if count > 1 { "-0001".len() } else { 0 };
    dress(nobody, size_bytes).check(scope.pool.limits(), reserve).map_err(refused)?;
    let found = match source {
        Named::Blank => VolumeSource::Blank,
        Named::Snapshot(id) => VolumeSource::Snapshot(scope.snapshot_id(&id)?),
        Named::Volume(id) => VolumeSource::Volume(scope.volume_id(&id)?),
        Named::Image(id) => VolumeSource::Image(scope.pool.find_image(&id)?),
        Named::Backup(id) => {
            let backup = scope.backup(&id)?;
            // Whole GiB, where a native volume had something between.
            let size_bytes = size_bytes.unwrap_or_else(|| gib(backup.size_bytes).saturating_mul(bytes(1)));
            let spec = dress(VolumeSource::Backup(backup.id), Some(size_bytes));
            let go_on = &mut |_| ControlFlow::Continue(());
            let made = scope.pool.create_volume_from_backup(spec, go_on).map_err(refused)?;
            return Ok(accepted(scope, made));
        }
    };
    let mut made = scope.pool.create_volumes(dress(found, size_bytes), count).map_err(refused)?;
    Ok(accepted(scope, made.swap_remove(0)))
}

fn accepted(scope: &Scope<'_>, made: Volume) -> Response<Vec<u8>> {
    let volume = FullVolume::just_made(scope, made);
    json(StatusCode::ACCEPTED, &OneVolume { volume })
}

fn of_source(source: VolumeSource, size_bytes: Option<u64>) -> VolumeSpec {
    let spec = match source {
        VolumeSource::Blank => return VolumeSpec::blank(size_bytes.unwrap_or(0)),
        VolumeSource::Snapshot(id) => VolumeSpec::from_snapshot(id),
        VolumeSource::Volume(id) => VolumeSpec::from_volume(id),
        VolumeSource::Image(id) => VolumeSpec::from_image(id),
        VolumeSource::Base(id) => VolumeSpec::from_base(id),
        // Until one is given: the smallest there is.
        VolumeSource::Backup(id) => VolumeSpec::from_backup(id, bytes(1)),
    };
    match size_bytes {
        Some(size_bytes) => spec.size(size_bytes),
        None => spec,
    }
}

pub(super) fn list(scope: &Scope<'_>, call: &Call<'_>, detail: bool) -> Answer {
    let mut asked = Asked::of(call, scope.version)?;
    let mut query = VolumeQuery::new().project(scope.project.clone()).offset(asked.offset());
    for (key, direction) in asked.order()? {
        query = query.sort(key, direction);
    }
    if let Some(name) = asked.name() {
        query = query.name(name);
    }
    if let Some(status) = asked.status()? {
        query = query.status(status);
    }
    if let Some(zone) = asked.zone()? {
        query = query.zone(zone);
    }
    if let Some(on) = asked.flag("bootable")? {
        query = query.bootable(on);
    }
    for (key, value) in asked.metadata()? {
        query = query.metadata(key, value);
    }
    if let Some(marker) = asked.get("marker") {
        query = query.marker(scope.volume_id(marker)?);
    }
    let (volumes, _) = asked.page(|items| scope.pool.list_volumes(&query.limit(items)))?;
    let last = volumes.last().map(|v| v.id.to_string());
    let volumes_links = scope.next_links(asked.links(&scope.here(call), last, volumes.len()));
    if detail {
        let volumes = volumes.into_iter().map(|v| DetailedVolume::new(scope, v)).collect();
        return Ok(json(StatusCode::OK, &ManyVolumes { volumes, volumes_links }));
    }
    let volumes = volumes.into_iter().map(|v| BriefVolume::new(scope, v)).collect();
    Ok(json(StatusCode::OK, &ManyVolumes { volumes, volumes_links }))
}

/// How much there is in all.
pub(super) fn summary(scope: &Scope<'_>) -> Answer {
    let usage = scope.pool.usage(&scope.project)?;
    let summary = BTreeMap::from([("total_count", usage.volumes), ("total_size", gib(usage.volume_bytes))]);
    Ok(json(StatusCode::OK, &BTreeMap::from([("volume-summary", summary)])))
}

pub(super) fn show(scope: &Scope<'_>, id: &str) -> Answer {
    let volume = DetailedVolume::new(scope, scope.volume(id)?);
    Ok(json(StatusCode::OK, &OneVolume { volume }))
}

/// `volume` or `snapshot` of a request to change one.
#[derive(Deserialize)]
pub(super) struct Changed {
    pub(super) name: Option<String>,
    pub(super) display_name: Option<String>,
    pub(super) description: Option<String>,
    pub(super) display_description: Option<String>,
    pub(super) metadata: Option<Metadata>,
}

/// The update that was given, as one of those types: they have the same calls.
macro_rules! update_of {
    ($update:ident, $given:expr) => {{
        let (given, mut update) = ($given, $update::new());
        if let Some(name) = given.name.or(given.display_name) {
            update = update.name(Some(name));
        }
        if let Some(description) = given.description.or(given.display_description) {
            update = update.description(Some(description));
        }
        if let Some(metadata) = metadata(given.metadata)? {
            update = update.metadata(metadata);
        }
        if update == $update::new() {
            return Err(Refusal::new(NOTHING, ""));
        }
        update
    }};
}
pub(super) use update_of;

pub(super) fn update(scope: &Scope<'_>, call: &Call<'_>, id: &str) -> Answer {
    let given: Changed = super::input::envelope(call.body, "volume", NULL_VOLUME)?;
    let update = update_of!(VolumeUpdate, given);
    update.check(scope.pool.limits())?;
    let volume = scope.pool.update_volume(scope.volume_id(id)?, update)?;
    Ok(json(StatusCode::OK, &OneVolume { volume: FullVolume::new(scope, volume) }))
}

pub(super) fn delete(scope: &Scope<'_>, call: &Call<'_>, id: &str) -> Answer {
    let cascade = Parameters(&call.query).get("cascade").and_then(Flag::of_text).is_some_and(|flag| flag.0);
    let snapshots =
        if scope.config.strict_cascade && !cascade { Snapshots::Refuse } else { Snapshots::Delete };
    // Durable now; the space comes back in the background.
    let _ = scope.pool.delete_volume(scope.volume_id(id)?, snapshots)?;
    Ok(empty(StatusCode::ACCEPTED))
}

#[derive(Deserialize)]
struct Extend {
    new_size: Option<Whole>,
}

#[derive(Deserialize)]
struct Attach {
    instance_uuid: Option<String>,
    mountpoint: Option<String>,
    host_name: Option<String>,
    mode: Option<String>,
}

#[derive(Deserialize)]
struct Detach {
    attachment_id: Option<String>,
}

#[derive(Deserialize)]
struct SetBootable {
    bootable: Option<Flag>,
}

#[derive(Deserialize)]
struct SetReadOnly {
    readonly: Option<Flag>,
}

fn needed<T>(value: Option<T>, name: &str) -> Result<T, Refusal> {
    value.ok_or_else(|| Refusal::new(BODY, format!("{name:?} is needed")))
}

/// One action: the name of the only key says which.
pub(super) fn action(scope: &Scope<'_>, call: &Call<'_>, id: &str) -> Answer {
    let mut body = object(call.body)?;
    let mut names = body.keys();
    let (Some(name), None) = (names.next().cloned(), names.next()) else {
        return Err(Refusal::new(BODY, format!("one action is needed, {} given", body.len())));
    };
    // Many actions have nothing to say, and say it with a null.
    if !["os-extend", "os-attach"].contains(&name.as_str())
        && let Some(nothing @ Value::Null) = body.get_mut(&name)
    {
        *nothing = Value::Object(Map::new());
    }
    let pool = scope.pool;
    let done: Response<Vec<u8>> = match name.as_str() {
        "os-extend" => return extend(scope, &mut body, id),
        "os-attach" => return attach(scope, &mut body, id),
        "os-detach" => {
            let given: Detach = under(&mut body, &name, BODY)?;
            let volume = scope.volume_id(id)?;
            let which = match given.attachment_id {
                None => None,
                Some(text) => match text.parse::<AttachmentId>() {
                    Ok(id) => Some(id),
                    Err(_) => return Err(Refusal::not_found("attachment", &text)),
                },
            };
            pool.detach_server(volume, which)?;
            empty(StatusCode::ACCEPTED)
        }
        "os-reserve" | "os-unreserve" | "os-begin_detaching" | "os-roll_detaching" => {
            let _: Map<String, Value> = under(&mut body, &name, BODY)?;
            let volume = scope.volume_id(id)?;
            match name.as_str() {
                "os-reserve" => pool.reserve(volume)?,
                "os-unreserve" => pool.unreserve(volume)?,
                "os-begin_detaching" => pool.begin_detaching(volume)?,
                _ => pool.roll_detaching(volume)?,
            }
            empty(StatusCode::ACCEPTED)
        }
        "os-set_bootable" => {
            let given: SetBootable = under(&mut body, &name, BODY)?;
            let on = needed(given.bootable, "bootable")?.0;
            pool.set_bootable(scope.volume_id(id)?, on)?;
            empty(StatusCode::OK)
        }
        "os-update_readonly_flag" => {
            let given: SetReadOnly = under(&mut body, &name, BODY)?;
            let on = needed(given.readonly, "readonly")?.0;
            pool.set_read_only(scope.volume_id(id)?, on)?;
            empty(StatusCode::ACCEPTED)
        }
        other => return Err(Refusal::new(BODY, format!("there is no action {other:?}"))),
    };
    Ok(done)
}

fn extend(scope: &Scope<'_>, body: &mut Map<String, Value>, id: &str) -> Answer {
    let given: Extend = under(body, "os-extend", EXTEND)?;
    let Some(Whole(new_size)) = given.new_size else {
        return Err(Refusal::new(EXTEND, "\"new_size\" is needed"));
    };
    if new_size < 1 {
        let size = gib(scope.volume(id)?.size_bytes);
        return Err(Refusal::new(NOT_LARGER, format!("it has {size} GB, {new_size} given")));
    }
    scope.pool.limits().check_size(bytes(new_size), false)?;
    scope.pool.extend(scope.volume_id(id)?, bytes(new_size))?;
    Ok(empty(StatusCode::ACCEPTED))
}

fn attach(scope: &Scope<'_>, body: &mut Map<String, Value>, id: &str) -> Answer {
    let given: Attach = under(body, "os-attach", BODY)?;
    let server = needed(given.instance_uuid, "instance_uuid")?;
    let device = needed(given.mountpoint, "mountpoint")?;
    let read_only = match given.mode.as_deref() {
        None | Some("rw") => false,
        Some("ro") => true,
        Some(other) => return Err(Refusal::new(BODY, format!("mode is \"rw\" or \"ro\", {other:?} given"))),
    };
    let mut spec = AttachmentSpec::new(server).device(device).read_only(read_only);
    if let Some(host) = given.host_name {
        spec = spec.host_name(host);
    }
    scope.pool.attach_server(scope.volume_id(id)?, spec)?;
    Ok(empty(StatusCode::ACCEPTED))
}
