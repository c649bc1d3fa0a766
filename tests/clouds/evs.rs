//! EVS requests out of arbitrary bytes: none panics, none is answered by a 5xx but for what is not offered, what is
//! refused has changed nothing, and nothing of another project is seen.

use http::{Method, Request};
use serde_json::{Value, json};
use snapvol::dialect::{self, Config};
use snapvol::{Limits, Pool, SnapshotQuery, VolumeQuery};

use super::Store;

/// An id that names nothing.
const NOBODY: &str = "00000000-0000-4000-8000-000000000001";

/// A stream of choices, drawn from bytes; empty, it gives zeroes.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }
    fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[usize::from(self.byte()) % all.len()].clone()
    }
    fn one_in(&mut self, n: u8) -> bool {
        self.byte().is_multiple_of(n)
    }
}

/// The ids that a request may name: some that are there, some that are not.
struct Names {
    volumes: Vec<String>,
    snapshots: Vec<String>,
}

fn any_value(choices: &mut Choices<'_>, names: &Names) -> Value {
    let all: Vec<&String> = names.volumes.iter().chain(&names.snapshots).collect();
    match choices.byte() % 14 {
        0 => Value::Null,
        1 => json!(true),
        2 => json!("false"),
        3 => json!(choices.byte()),
        4 => json!(-i64::from(choices.byte()) * i64::from(i32::MAX)),
        5 => json!(1e300),
        6 => json!(2.5),
        7 => json!("x".repeat(usize::from(choices.byte()) * 2)),
        8 => json!([1, "two", null]),
        9 => json!({ "k": "v" }),
        10 => json!({ "k": null, "": "\u{0}" }),
        11 => json!("\u{1F4BE}".repeat(choices.byte().into())),
        12 => json!(1),
        _ => json!(choices.of(&all)),
    }
}

const KEYS: [&str; 28] = [
    "size",
    "name",
    "description",
    "metadata",
    "snapshot_id",
    "source_volid",
    "imageRef",
    "backup_id",
    "count",
    "multiattach",
    "shareable",
    "availability_zone",
    "volume_type",
    "volume_id",
    "force",
    "new_size",
    "instance_uuid",
    "mountpoint",
    "attachment_id",
    "bootable",
    "readonly",
    "display_name",
    "mode",
    "host_name",
    "consistencygroup_id",
    "OS-SCH-HNT:scheduler_hints",
    "k",
    "display_description",
];
const ENVELOPES: [&str; 12] = [
    "volume",
    "snapshot",
    "rollback",
    "metadata",
    "meta",
    "os-extend",
    "os-attach",
    "os-detach",
    "os-reserve",
    "os-unreserve",
    "os-set_bootable",
    "os-update_readonly_flag",
];

fn body(choices: &mut Choices<'_>, names: &Names, envelope: &'static str) -> Vec<u8> {
    let envelope = if choices.one_in(12) { choices.of(&ENVELOPES) } else { envelope };
    let mut inside = json!({});
    // Mostly something that can be served.
    match envelope {
        "volume" => inside["size"] = json!(1 + choices.byte() % 3),
        "snapshot" | "rollback" => inside["volume_id"] = json!(choices.of(&names.volumes)),
        "os-extend" => inside["new_size"] = json!(choices.byte() % 8),
        "metadata" | "meta" => inside["k"] = json!("v"),
        "os-set_bootable" => inside["bootable"] = json!(choices.one_in(2)),
        "os-attach" => inside = json!({ "instance_uuid": "vm", "mountpoint": "/dev/vdb" }),
        _ => {}
    }
    let more = if choices.one_in(3) { choices.byte() % 4 } else { 0 };
    for _ in 0..more {
        inside[choices.of(&KEYS)] = any_value(choices, names);
    }
    let mut bytes = json!({ envelope: inside }).to_string().into_bytes();
    if choices.one_in(8) {
        let at = usize::from(choices.byte()) % bytes.len();
        bytes[at] = choices.byte();
    }
    bytes
}

/// An address, with the method and the envelope that belong there.
fn path(choices: &mut Choices<'_>, names: &Names) -> (Method, &'static str, String) {
    let volume = choices.of(&names.volumes);
    let snapshot = choices.of(&names.snapshots);
    let prefix = if choices.one_in(16) { choices.of(&["v4", "", "V2"]) } else { choices.of(&["v2", "v3"]) };
    let project = if choices.one_in(16) { choices.of(&["%2e", "%ff", ""]) } else { choices.of(&["a", "b"]) };
    let actions = ["os-extend", "os-attach", "os-detach", "os-reserve", "os-unreserve", "os-set_bootable"];
    let change = [Method::GET, Method::PUT, Method::DELETE];
    let (method, envelope, rest) = match choices.byte() % 24 {
        0..=4 => (Method::POST, "volume", "volumes".into()),
        5 => (Method::GET, "", choices.of(&["volumes", "volumes/detail"]).into()),
        6 => (choices.of(&change), "volume", format!("volumes/{volume}")),
        7..=10 => (Method::POST, choices.of(&actions), format!("volumes/{volume}/action")),
        11 => (choices.of(&[Method::POST, Method::PUT]), "metadata", format!("volumes/{volume}/metadata")),
        12 => (choices.of(&change), "meta", format!("volumes/{volume}/metadata/k")),
        13..=15 => (Method::POST, "snapshot", "snapshots".into()),
        16 => (Method::GET, "", choices.of(&["snapshots", "cloudsnapshots/detail"]).into()),
        17 => (choices.of(&change), "snapshot", format!("snapshots/{snapshot}")),
        18 => (Method::POST, "metadata", format!("cloudsnapshots/{snapshot}/metadata")),
        19 | 20 => (Method::POST, "rollback", format!("os-vendor-snapshots/{snapshot}/rollback")),
        21 => {
            let lists = [
                "limits",
                "types",
                "extensions",
                "backups",
                "backups/detail",
                "volumes/summary",
                "os-availability-zone",
            ];
            (Method::GET, "", choices.of(&lists).into())
        }
        22 => {
            let odd = ["", "%00", "volumes/", "x/y/z", "volumes//action", "images"];
            (Method::GET, "", choices.of(&odd).into())
        }
        _ => {
            let fixed = ["/", "/v2/images", "/v2/", "/v3", "//", "/v2//", "/v2/images/x"];
            return (Method::GET, "", choices.of(&fixed).into());
        }
    };
    let mut path = format!("/{prefix}/{project}/{rest}");
    let values = [
        "0",
        "1",
        "2",
        "1001",
        "-1",
        "x",
        "",
        "asc",
        "size",
        "available",
        "in-use",
        "true",
        "%7B'k':'v'%7D",
        "%00%ff",
        &volume,
        &snapshot,
    ];
    let parameters = [
        "limit",
        "offset",
        "marker",
        "sort",
        "sort_key",
        "sort_dir",
        "name",
        "status",
        "metadata",
        "bootable",
        "volume_id",
        "availability_zone",
        "cascade",
    ];
    let more = if method == Method::GET || choices.one_in(8) { choices.byte() % 4 } else { 0 };
    for n in 0..more {
        path.push(if n == 0 { '?' } else { '&' });
        path.push_str(&format!("{}={}", choices.of(&parameters), choices.of(&values)));
    }
    (method, envelope, path)
}

/// What one project owns, as the other must not see it.
fn owned(pool: &Pool, project: &str) -> Vec<String> {
    let volumes = pool.list_volumes(&VolumeQuery::new().project(project)).unwrap().items;
    let snapshots = pool.list_snapshots(&SnapshotQuery::new().project(project)).unwrap().items;
    let ids = volumes.iter().map(|v| v.id.to_string()).chain(snapshots.iter().map(|s| s.id.to_string()));
    ids.collect()
}

/// One request, made of these bytes: the status of its answer, or 0 when they make none that can be sent.
pub(crate) fn one_request(store: &Store, bytes: &[u8]) -> u16 {
    let names = {
        let volumes = store.pool.list_volumes(&VolumeQuery::new().limit(6)).unwrap().items;
        let snapshots = store.pool.list_snapshots(&SnapshotQuery::new().limit(6)).unwrap().items;
        let with_more = |mut ids: Vec<String>| {
            ids.extend([NOBODY.into(), "junk".into()]);
            ids
        };
        Names {
            volumes: with_more(volumes.iter().map(|v| v.id.to_string()).collect()),
            snapshots: with_more(snapshots.iter().map(|s| s.id.to_string()).collect()),
        }
    };
    let mut choices = Choices(bytes);
    let (natural, envelope, uri) = path(&mut choices, &names);
    let all = [Method::POST, Method::GET, Method::PUT, Method::DELETE, Method::PATCH];
    let method = if choices.one_in(12) { choices.of(&all) } else { natural };
    let body = body(&mut choices, &names, envelope);
    let mut request = Request::builder().method(method.clone()).uri(&uri);
    for _ in 0..choices.byte() % 3 {
        let name = choices.of(&["host", "content-type", "x-auth-token", "accept", "x-any"]);
        let value: Vec<u8> = (0..choices.byte() % 24).map(|_| choices.byte()).collect();
        request = request.header(name, &value[..]);
    }
    let Ok(request) = request.body(body) else { return 0 };
    let (before, foreign) = (store.face(), [owned(&store.pool, "a"), owned(&store.pool, "b")]);
    let answer = dialect::handle(&store.pool, &store.config, &request);
    let status = answer.status().as_u16();
    let told = || {
        format!(
            "{method} {uri} {}\n{status} {}",
            String::from_utf8_lossy(request.body()),
            String::from_utf8_lossy(answer.body())
        )
    };
    assert!(status < 500 || status == 501, "{}", told());
    if status >= 300 || method == Method::GET {
        assert_eq!(before, store.face(), "changed something: {}", told());
    }
    let text = String::from_utf8(answer.body().clone()).unwrap();
    for (own, others) in [("/a/", &foreign[1]), ("/b/", &foreign[0])] {
        // What the request itself names may come back in the words of a refusal.
        let asked = format!("{uri}{}", String::from_utf8_lossy(request.body()));
        let seen = others.iter().find(|id| text.contains(*id) && !asked.contains(*id));
        assert!(!uri.contains(own) || seen.is_none(), "saw {seen:?} of another project: {}", told());
        if status < 300 && uri.contains(own) {
            // A text that the caller chose may be any, an id of somebody else's included.
            let mut served = String::new();
            of_its_own(&serde_json::from_str(&text).unwrap_or_default(), &mut served);
            assert!(!others.iter().any(|id| served.contains(id)), "served another project's: {}", told());
        }
    }
    status
}

/// What an answer says of its own: all strings but names, descriptions, metadata, and links that repeat a query.
fn of_its_own(answer: &Value, all: &mut String) {
    const CHOSEN: [&str; 5] = ["name", "description", "display_name", "display_description", "metadata"];
    match answer {
        Value::String(text) => {
            all.push_str(text);
            all.push('\n');
        }
        Value::Array(list) => list.iter().for_each(|value| of_its_own(value, all)),
        Value::Object(map) => {
            let own =
                map.iter().filter(|(key, _)| !CHOSEN.contains(&key.as_str()) && !key.ends_with("_links"));
            own.for_each(|(_, value)| of_its_own(value, all));
        }
        _ => {}
    }
}

/// A store whose quotas keep it small.
pub(crate) fn store() -> Store {
    Store { config: Config::new().evs_limits(Limits::evs().volumes(Some(4))), ..Store::new() }
}
