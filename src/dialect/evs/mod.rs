//! EVS under `/v2` and `/v3`, with what OpenStack clients need beside the documents.
//!
//! | path behind the version | methods | what |
//! |---|---|---|
//! | `/` | GET | the version |
//! | `/images`, `/images/{id}` | GET | images |
//! | `/{project}/volumes`, `…/detail`, `…/summary` | GET; POST on the first | lists, create |
//! | `/{project}/volumes/{id}` | GET, PUT, DELETE | show, update, delete |
//! | `/{project}/volumes/{id}/action` | POST | extend, attach, detach, reserve, flags |
//! | `/{project}/volumes/{id}/metadata`, `…/{key}` | GET, POST, PUT; GET, PUT, DELETE | metadata; of snapshots too |
//! | `/{project}/snapshots`, `…/detail` | GET; POST on the first | lists, create; also as `cloudsnapshots` |
//! | `/{project}/snapshots/{id}` | GET, PUT, DELETE | show, update, delete; also as `cloudsnapshots` |
//! | `/{project}/os-vendor-snapshots/{id}/rollback` | POST | roll back; also under `cloudsnapshots` |
//! | `/{project}/backups`, `…/detail`, `…/{id}` | GET | lists, show |
//! | `/{project}/os-availability-zone`, `limits`, `types`, `extensions` | GET | lists |
//!
//! An order of looking holds for every request: the envelope, types, what is required, limits, existence, then what
//! the native call looks at. So a request that is wrong in several ways is refused for the same reason always.

mod around;
mod backups;
mod codes;
mod input;
mod listing;
mod metadata;
mod scope;
mod shapes;
mod snapshots;
mod volumes;

use http::{Method, Response, StatusCode};
use percent_encoding::percent_decode_str;

use crate::pool::Pool;

use super::MAX_BODY_BYTES;
use super::call::Call;
use super::config::Config;

use codes::Refusal;
use metadata::Owner;
use scope::{Scope, Version};
use shapes::Link;
use snapshots::Of;

type Answer = Result<Response<Vec<u8>>, Refusal>;

fn empty(status: StatusCode) -> Response<Vec<u8>> {
    let mut response = Response::new(Vec::new());
    *response.status_mut() = status;
    response
}

/// What a body over the limit gets.
pub(super) fn body_too_large() -> Response<Vec<u8>> {
    Refusal::new(codes::TOO_LARGE, format!("at most {MAX_BODY_BYTES} bytes are read")).answer()
}

/// Answers one request.
pub(super) fn answer(pool: &Pool, config: &Config, call: &Call<'_>) -> Response<Vec<u8>> {
    route(pool, config, call).unwrap_or_else(Refusal::answer)
}

fn route(pool: &Pool, config: &Config, call: &Call<'_>) -> Answer {
    let nowhere = || Refusal::path(call.path);
    let decoded: Result<Vec<_>, _> =
        call.path.trim_start_matches('/').split('/').map(|s| percent_decode_str(s).decode_utf8()).collect();
    let decoded = decoded.map_err(|_| nowhere())?;
    let mut path: Vec<&str> = decoded.iter().map(AsRef::as_ref).collect();
    // A slash at the end says nothing.
    path.pop_if(|last| last.is_empty());
    let get = |answer: &dyn Fn() -> Answer| match *call.method {
        Method::GET => answer(),
        _ => Err(Refusal::method("GET")),
    };
    let Some((first, path)) = path.split_first() else {
        return get(&|| Ok(around::versions(call.host, None)));
    };
    let version = Version::of(first).ok_or_else(nowhere)?;
    let (project, path) = match path {
        [] => return get(&|| Ok(around::versions(call.host, Some(version)))),
        ["images"] => return get(&|| around::images(pool, config, version, call)),
        ["images", id] if !RESOURCES.contains(id) => {
            return get(&|| around::show_image(pool, config, version, id));
        }
        [project, path @ ..] => (project, path),
    };
    // Whose it is, is asked only where something is served.
    if !path.first().is_some_and(|name| RESOURCES.contains(name)) {
        return Err(nowhere());
    }
    let scope = &Scope::new(pool, config, version, call.host, project)?;
    match *path {
        ["volumes"] => match *call.method {
            Method::GET => volumes::list(scope, call, false),
            Method::POST => volumes::create(scope, call),
            _ => Err(Refusal::method("GET, POST")),
        },
        ["volumes", "detail"] => get(&|| volumes::list(scope, call, true)),
        ["volumes", "summary"] => get(&|| volumes::summary(scope)),
        ["volumes", id] => match *call.method {
            Method::GET => volumes::show(scope, id),
            Method::PUT => volumes::update(scope, call, id),
            Method::DELETE => volumes::delete(scope, call, id),
            _ => Err(Refusal::method("GET, PUT, DELETE")),
        },
        ["volumes", id, "action"] => match *call.method {
            Method::POST => volumes::action(scope, call, id),
            _ => Err(Refusal::method("POST")),
        },
        ["volumes", id, "metadata", ref key @ ..] => of_metadata(scope, call, Owner::Volume(id), key),
        ["snapshots" | "cloudsnapshots"] => match *call.method {
            Method::GET => snapshots::list(scope, call, Of::Brief),
            Method::POST => snapshots::create(scope, call),
            _ => Err(Refusal::method("GET, POST")),
        },
        ["snapshots", "detail"] => get(&|| snapshots::list(scope, call, Of::Detail)),
        ["cloudsnapshots", "detail"] => get(&|| snapshots::list(scope, call, Of::Counted)),
        ["snapshots" | "cloudsnapshots", id] => match *call.method {
            Method::GET => snapshots::show(scope, id),
            Method::PUT => snapshots::update(scope, call, id),
            Method::DELETE => snapshots::delete(scope, id),
            _ => Err(Refusal::method("GET, PUT, DELETE")),
        },
        ["snapshots" | "cloudsnapshots", id, "metadata", ref key @ ..] => {
            of_metadata(scope, call, Owner::Snapshot(id), key)
        }
        ["os-vendor-snapshots" | "cloudsnapshots", id, "rollback"] => match *call.method {
            Method::POST => snapshots::rollback(scope, call, id),
            _ => Err(Refusal::method("POST")),
        },
        ["os-availability-zone"] => get(&|| around::zones(scope)),
        ["backups"] => match *call.method {
            Method::GET => backups::list(scope, call, false),
            // Where a backup goes to is not in these documents.
            Method::POST => Err(Refusal::new(codes::UNSUPPORTED, "backups are made by the native call")),
            _ => Err(Refusal::method("GET")),
        },
        ["backups", "detail"] => get(&|| backups::list(scope, call, true)),
        ["backups", id] => get(&|| backups::show(scope, id)),
        ["limits"] => get(&|| around::limits(scope)),
        ["types"] => get(&|| around::types(scope)),
        ["types", name] => get(&|| around::show_type(scope, name)),
        ["extensions"] => get(&around::extensions),
        _ => Err(nowhere()),
    }
}

/// What stands behind a project.
const RESOURCES: [&str; 9] = [
    "volumes",
    "snapshots",
    "cloudsnapshots",
    "os-vendor-snapshots",
    "os-availability-zone",
    "backups",
    "limits",
    "types",
    "extensions",
];

fn of_metadata(scope: &Scope<'_>, call: &Call<'_>, owner: Owner<'_>, key: &[&str]) -> Answer {
    match (key, call.method) {
        ([], &Method::GET | &Method::POST | &Method::PUT) => metadata::all(scope, call, owner),
        ([], _) => Err(Refusal::method("GET, POST, PUT")),
        ([key], &Method::GET | &Method::PUT | &Method::DELETE) => metadata::one(scope, call, owner, key),
        ([_], _) => Err(Refusal::method("GET, PUT, DELETE")),
        _ => Err(Refusal::path(call.path)),
    }
}

impl Scope<'_> {
    /// The address of the request without its query.
    fn here(&self, call: &Call<'_>) -> String {
        format!("http://{}{}", self.host, call.path)
    }

    /// The links behind a list: where there are none the key is left out, or null if that was chosen.
    #[allow(clippy::option_option)]
    fn next_links(&self, links: Option<Vec<Link>>) -> Option<Option<Vec<Link>>> {
        (links.is_some() || self.config.null_links).then_some(links)
    }
}
