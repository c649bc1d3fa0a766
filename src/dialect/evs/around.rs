//! What volumes are made from and placed by: zones, images, types, limits, versions.

use http::{Response, StatusCode};
use serde::Serialize;
use serde_json::{Value, json as value};

use crate::dialect::call::{Call, json};
use crate::dialect::config::Config;
use crate::pool::{Image, ImageQuery, ImageStatus, Pool};

use super::Answer;
use super::codes::{NOT_FOUND, Refusal};
use super::listing::Asked;
use super::scope::{Scope, Version};
use super::shapes::{ShownImage, gib};

#[derive(Serialize)]
struct ZoneState {
    available: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownZone {
    zone_state: ZoneState,
    zone_name: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Zones {
    availability_zone_info: Vec<ShownZone>,
}

pub(super) fn zones(scope: &Scope<'_>) -> Answer {
    let shown = scope
        .pool
        .zones()?
        .into_iter()
        .map(|zone| ShownZone { zone_state: ZoneState { available: zone.available }, zone_name: zone.name });
    Ok(json(StatusCode::OK, &Zones { availability_zone_info: shown.collect() }))
}

#[derive(Serialize)]
struct Images {
    images: Vec<ShownImage>,
    schema: String,
    first: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// Images have no project in their path: without a caller's project, all of them are listed.
pub(super) fn images(pool: &Pool, config: &Config, version: Version, call: &Call<'_>) -> Answer {
    let mut asked = Asked::of(call, version)?;
    let mut query = ImageQuery::new().offset(asked.offset());
    if let Some(project) = &config.caller_project {
        query = query.visible_to(project.clone());
    }
    if let Some(name) = asked.get("name") {
        query = query.name(name);
    }
    match asked.get("status") {
        None => {}
        Some("active") => query = query.status(ImageStatus::Active),
        Some("queued") => query = query.status(ImageStatus::Queued),
        Some(_) => asked.matches_nothing(),
    }
    match asked.get("visibility") {
        None | Some("all") => {}
        Some("public") => query = query.public(true),
        Some("private") => query = query.public(false),
        Some(_) => asked.matches_nothing(),
    }
    if let Some(tag) = asked.get("tag") {
        query = query.tag(tag);
    }
    if let Some(marker) = asked.get("marker") {
        query = query.marker(image(pool, config, marker)?.id);
    }
    let (found, _) = asked.page(|items| pool.list_images(&query.limit(items)))?;
    let prefix = version.prefix();
    let last = found.last().map(|i| i.id.to_string());
    let links = asked.links(&format!("/{prefix}/images"), last, found.len());
    let images = Images {
        images: found.into_iter().map(|image| ShownImage::new(prefix, image)).collect(),
        schema: format!("/{prefix}/schemas/images"),
        first: format!("/{prefix}/images"),
        next: links.and_then(|mut links| links.pop()).map(|link| link.href),
    };
    Ok(json(StatusCode::OK, &images))
}

fn image(pool: &Pool, config: &Config, text: &str) -> Result<Image, Refusal> {
    let missing = || Refusal::not_found("image", text);
    let image = pool.find_image(text).and_then(|id| pool.image(id)).map_err(|error| match error {
        crate::Error::NotFound { .. } => missing(),
        other => other.into(),
    })?;
    let own = config.caller_project.as_ref().is_none_or(|own| image.public || image.project.id == *own);
    if own { Ok(image) } else { Err(missing()) }
}

pub(super) fn show_image(pool: &Pool, config: &Config, version: Version, text: &str) -> Answer {
    let shown = ShownImage::new(version.prefix(), image(pool, config, text)?);
    Ok(json(StatusCode::OK, &shown))
}

pub(super) fn limits(scope: &Scope<'_>) -> Answer {
    let usage = scope.pool.usage(&scope.project)?;
    let limits = scope.pool.limits();
    let (backups, backup_gib) = super::backups::used(scope)?;
    // -1: no limit.
    let most = |limit: Option<u64>| limit.map_or(-1, |n| i64::try_from(n).unwrap_or(i64::MAX));
    let body = value!({ "limits": { "rate": [], "absolute": {
        "maxTotalVolumes": most(limits.most_volumes()),
        "maxTotalVolumeGigabytes": most(limits.most_volume_bytes().map(|bytes| bytes >> 30)),
        "maxTotalSnapshots": -1,
        "maxTotalBackups": -1,
        "maxTotalBackupGigabytes": -1,
        "totalVolumesUsed": usage.volumes,
        "totalGigabytesUsed": gib(usage.volume_bytes),
        "totalSnapshotsUsed": usage.snapshots,
        "totalBackupsUsed": backups,
        "totalBackupGigabytesUsed": backup_gib,
    }}});
    Ok(json(StatusCode::OK, &body))
}

fn volume_type(name: &str) -> Value {
    value!({ "id": name, "name": name, "description": null, "is_public": true, "extra_specs": {},
        "os-volume-type-access:is_public": true, "qos_specs_id": null })
}

/// The name of a type is its id. A profile without types of its own has none to show.
pub(super) fn types(scope: &Scope<'_>) -> Answer {
    let known = scope.pool.limits().known_volume_types().unwrap_or_default();
    let shown: Vec<Value> = known.iter().map(|name| volume_type(name)).collect();
    Ok(json(StatusCode::OK, &value!({ "volume_types": shown })))
}

pub(super) fn show_type(scope: &Scope<'_>, name: &str) -> Answer {
    let known = scope.pool.limits().known_volume_types().unwrap_or_default();
    if !known.iter().any(|k| k == name) {
        return Err(Refusal::new(NOT_FOUND, format!("no volume type {name}")));
    }
    Ok(json(StatusCode::OK, &value!({ "volume_type": volume_type(name) })))
}

pub(super) fn extensions() -> Answer {
    Ok(json(StatusCode::OK, &value!({ "extensions": [] })))
}

fn version(host: &str, version: Version) -> Value {
    let (id, status, number, kind) = match version {
        Version::V2 => ("v2.0", "SUPPORTED", "", 2),
        Version::V3 => ("v3.0", "CURRENT", "3.0", 3),
    };
    value!({
        "id": id,
        "status": status,
        "version": number,
        "min_version": number,
        "updated": "2018-10-30T00:00:00Z",
        "links": [{ "rel": "self", "href": format!("http://{host}/{}/", version.prefix()) }],
        "media-types": [{
            "base": "application/json",
            "type": format!("application/vnd.openstack.volume+json;version={kind}"),
        }],
    })
}

/// `GET /` offers a choice; a prefix says which one it is.
pub(super) fn versions(host: &str, of: Option<Version>) -> Response<Vec<u8>> {
    match of {
        None => {
            let all = [version(host, Version::V2), version(host, Version::V3)];
            json(StatusCode::MULTIPLE_CHOICES, &value!({ "versions": all }))
        }
        Some(one) => json(StatusCode::OK, &value!({ "versions": [version(host, one)] })),
    }
}
