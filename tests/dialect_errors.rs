//! OP-069: every row of the documents' table of errors, in its order, in each dialect that has a call that can break
//! its rule: status, key, code and message; and that nothing has changed.
//!
//! Three rows have no call here. A malformed id is one that names nothing, as ids are opaque; volume types, and disks
//! that cannot have snapshots, are nothing that CBS or UCloud requests name.
#![cfg(all(feature = "dialect", feature = "sim"))]
#![allow(clippy::unwrap_used)]

mod clouds;

use std::ops::ControlFlow;
use std::sync::Arc;

use clouds::fault::assert_fault;
use clouds::{GIB, Store, many, options};
use http::Request;
use serde_json::{Value, json};
use snapvol::backup::{BackupSpec, LocalFolder};
use snapvol::device::sim::{CallKind, Fault, SimDevice};
use snapvol::dialect::Config;
use snapvol::{
    AttachOptions, Error, ImageContent, ImageSpec, Limits, OpenOptions, Pool, ServerState, Snapshot,
    SnapshotSpec, SnapshotStatus, Snapshots, Volume, VolumeSpec, VolumeStatus,
};

const NOBODY: &str = "00000000-0000-4000-8000-000000000001";

/// A store with a volume of 2 GiB and a snapshot of it, both of project `p`.
struct Table {
    store: Store,
    volume: Volume,
    snapshot: Snapshot,
}

impl Table {
    fn new() -> Self {
        Self::of(Store::new())
    }

    fn with(config: Config) -> Self {
        Self::of(Store { config, ..Store::new() })
    }

    fn of(store: Store) -> Self {
        let volume = store.pool.create_volume(VolumeSpec::blank(2 * GIB).project("p")).unwrap();
        let snapshot = store.pool.create_snapshot(volume.id, SnapshotSpec::new()).unwrap();
        Self { store, volume, snapshot }
    }

    fn pool(&self) -> &Pool {
        &self.store.pool
    }

    /// A request with a body that need not be JSON.
    #[track_caller]
    fn evs_raw(&self, line: &str, body: &str, status: u16, code: &str) {
        let before = self.store.face();
        let (found, answer) = self.store.evs_of_p(line, body);
        assert_fault((found, &answer), status, code);
        assert_eq!(before, self.store.face(), "{line} left a trace");
    }

    #[track_caller]
    fn evs(&self, line: &str, body: Value, status: u16, code: &str) {
        self.evs_raw(line, &body.to_string(), status, code);
    }

    #[track_caller]
    fn get(&self, path: &str, status: u16, code: &str) {
        self.evs_raw(&format!("GET {path}"), "", status, code);
    }

    /// A new volume with these keys, which is refused.
    #[track_caller]
    fn create(&self, keys: Value, code: &str) {
        self.evs("POST volumes", json!({ "volume": keys }), if code == "501" { 501 } else { 400 }, code);
    }

    #[track_caller]
    fn snap(&self, keys: Value, status: u16, code: &str) {
        let mut keys = keys;
        keys["volume_id"] = json!(self.volume.id.to_string());
        self.evs("POST snapshots", json!({ "snapshot": keys }), status, code);
    }

    #[track_caller]
    fn action(&self, body: Value, code: &str) {
        self.evs(&format!("POST volumes/{}/action", self.volume.id), body, 400, code);
    }

    #[track_caller]
    fn roll(&self, volume: &str, status: u16, code: &str) {
        let line = format!("POST os-vendor-snapshots/{}/rollback", self.snapshot.id);
        self.evs(&line, json!({ "rollback": { "volume_id": volume } }), status, code);
    }

    #[track_caller]
    fn cbs(&self, query: &str, code: i64) {
        let before = self.store.face();
        let answer = self.store.cbs(query);
        assert_eq!(answer["code"], code, "{query}: {answer}");
        assert_eq!(clouds::keys(&answer), ["code", "codeDesc", "message"]);
        assert!(!answer["message"].as_str().unwrap().is_empty() && answer["codeDesc"].is_string());
        assert_eq!(before, self.store.face(), "{query} left a trace");
    }

    #[track_caller]
    fn ucloud(&self, query: &str, code: i64) {
        let before = self.store.face();
        let answer = self.store.ucloud(query);
        assert_eq!(answer["RetCode"], code, "{query}: {answer}");
        assert_eq!(clouds::keys(&answer), ["Action", "Message", "RetCode"]);
        assert!(!answer["Message"].as_str().unwrap().is_empty());
        assert_eq!(before, self.store.face(), "{query} left a trace");
    }

    /// The same rule, broken by a snapshot of the volume in both dialects.
    #[track_caller]
    fn both_snap(&self, rest: [&str; 2], cbs: i64, ucloud: i64) {
        self.cbs(&format!("CreateSnapshot&storageId={}{}", self.volume.alias, rest[0]), cbs);
        self.ucloud(&format!("CreateSnapshot&DiskID={}{}", self.volume.id, rest[1]), ucloud);
    }

    /// The same rule, broken by a rollback to the volume in both dialects.
    #[track_caller]
    fn both_roll(&self, cbs: i64, ucloud: i64) {
        let (snapshot, volume) = (self.snapshot.id, self.volume.id);
        self.cbs(&format!("ApplySnapshot&snapshotId={snapshot}&storageId={volume}"), cbs);
        self.ucloud(&format!("RollbackSnapshot&SnapshotID={snapshot}&DiskID={volume}"), ucloud);
    }

    /// What becomes of the snapshot when it is deleted.
    #[track_caller]
    fn delete_snapshot(&self, evs: &str, cbs: i64, ucloud: i64) {
        let id = self.snapshot.id.to_string();
        self.evs_raw(&format!("DELETE snapshots/{id}"), "", 400, evs);
        let answer = self.store.cbs(&format!("DeleteSnapshot&snapshotIds.0={id}"));
        assert_eq!((&answer["code"], &answer["detail"][&id]["code"]), (&json!(0), &json!(cbs)), "{answer}");
        self.ucloud(&format!("DeleteSnapshot&SnapshotID={id}"), ucloud);
    }

    fn image(&self, spec: ImageSpec, active: bool) -> String {
        let image = self.pool().create_image(spec.public(true)).unwrap().id;
        if active {
            let content = self.pool().create_volume(VolumeSpec::blank(4096)).unwrap().id;
            self.pool().activate_image(image, content, ImageContent::new()).unwrap();
            drop(self.pool().delete_volume(content, Snapshots::Refuse).unwrap());
        }
        image.to_string()
    }
}

fn long(bytes: usize) -> String {
    "x".repeat(bytes)
}

#[test]
fn op_069_a_request_that_cannot_be_read() {
    let table = Table::new();
    // Not JSON, another envelope.
    for body in ["", "{", "[]", "{\"volume\": []}", "{\"volume\": {},}"] {
        table.evs_raw("POST volumes", body, 400, "EVS.5400");
    }
    table.evs("POST snapshots", json!({ "volume": {} }), 400, "EVS.5400");
    for (uri, key, code) in [("/v2/index.php", "code", 4000), ("/", "RetCode", 230)] {
        for (kind, body) in [("text/plain", "Action=x"), ("application/json", "{")] {
            let request = Request::post(uri).header("content-type", kind).body(body).unwrap();
            assert_eq!(table.store.ask(request).1[key], code);
        }
    }
    // Fields of another type.
    table.create(json!({ "size": "much" }), "EVS.1018");
    table.create(json!({ "size": 1, "name": 7 }), "EVS.1018");
    table.snap(json!({ "force": "perhaps" }), 400, "EVS.1018");
    table.cbs("DescribeSnapshots&projectId=x", 9003);
    table.ucloud("DescribeSnapshot&Limit=x", 230);
    // What is required is missing.
    table.evs("POST snapshots", json!({ "snapshot": {} }), 400, "EVS.5400");
    table.evs("POST volumes", json!({}), 400, "EVS.1009");
    table.action(json!({ "os-extend": {} }), "EVS.1011");
    let volume = format!("PUT volumes/{}", table.volume.id);
    table.evs(&volume, json!({}), 400, "EVS.1001");
    table.evs(&volume, json!({ "volume": {} }), 400, "EVS.1007");
    table.cbs("CreateSnapshot", 4000);
    table.cbs("ModifySnapshot&snapshotId=x", 4000);
    table.ucloud("CreateSnapshot", 220);
    // An operation that is not there.
    table.get("nothing", 404, "EVS.5404");
    table.get("/v9/p/volumes", 404, "EVS.5404");
    table.evs("PATCH volumes", json!({}), 405, "405");
    table.cbs("DescribeStorage", 6100);
    table.ucloud("", 160);
    table.ucloud("DescribeDisk", 161);
}

#[test]
fn op_069_a_project_that_is_not_the_callers() {
    let table = Table::with(Config::new().caller_project("p"));
    table.get("/v2/another/volumes", 400, "EVS.0001");
    let foreign = table.store.disk_of("q");
    let theirs = table.pool().create_snapshot(foreign.id, SnapshotSpec::new()).unwrap();
    let number = foreign.project.number;
    table.cbs(&format!("DescribeSnapshots&projectId={number}"), 9003);
    table.ucloud("DescribeSnapshot&ProjectID=q", 292);
    table.ucloud(&format!("CreateSnapshot&ProjectID=q&DiskID={}", foreign.id), 292);
    // What belongs to another is not there, whatever the dialect.
    table.get(&format!("snapshots/{}", theirs.id), 404, "EVS.5404");
    table.cbs(&format!("CreateSnapshot&storageId={}", foreign.alias), 5000);
    table.cbs(&format!("ModifySnapshot&snapshotName=n&snapshotId={}", theirs.alias), 16003);
    table.cbs(&format!("ApplySnapshot&snapshotId={}&storageId={}", theirs.alias, foreign.alias), 16003);
    table.ucloud(&format!("CreateSnapshot&DiskID={}", foreign.id), 62101);
    table.ucloud(&format!("DeleteSnapshot&SnapshotID={}", theirs.id), 62102);
    let gone = table.store.cbs(&format!("DeleteSnapshot&snapshotIds.0={}", theirs.id));
    assert_eq!(gone["detail"][theirs.id.to_string()]["code"], 16003);
    for query in ["", "&projectId=0", "&projectId=1"] {
        let shown = table.store.cbs(&format!("DescribeSnapshots{query}"));
        let own = if query == "&projectId=0" { continue } else { &table.snapshot.alias };
        assert_eq!((&shown["totalCount"], &shown["snapshotSet"][0]["snapshotId"]), (&json!(1), &json!(own)));
    }
    for query in ["", "&ProjectID=p", "&ProjectIDs.0=p&ProjectIDs.1=q"] {
        let shown = table.store.ucloud(&format!("DescribeSnapshot{query}"));
        let own = json!(table.snapshot.id.to_string());
        assert_eq!((&shown["TotalCount"], &shown["Infos"][0]["SnapshotID"]), (&json!(1), &own));
    }
    assert_eq!(table.store.ucloud("DescribeSnapshot&ProjectIDs.0=q")["TotalCount"], 0);
}

#[test]
fn op_069_what_is_not_there() {
    let table = Table::new();
    // An id that cannot be one is not there either: to the callers, ids are opaque.
    for id in [NOBODY, "x", "snap-nowhere0", "é", "0000"] {
        for kind in ["volumes", "snapshots", "backups"] {
            table.get(&format!("{kind}/{}", many_bytes(id)), 404, "EVS.5404");
        }
        table.get(&format!("/v2/images/{}", many_bytes(id)), 404, "EVS.5404");
        table.evs("POST snapshots", json!({ "snapshot": { "volume_id": id } }), 404, "EVS.5404");
        for source in ["snapshot_id", "source_volid", "imageRef", "backup_id"] {
            table.evs("POST volumes", json!({ "volume": { source: id, "size": 2 } }), 404, "EVS.5404");
        }
        let id = many_bytes(id);
        table.cbs(&format!("CreateSnapshot&storageId={id}"), 5000);
        table.cbs(&format!("ModifySnapshot&snapshotName=n&snapshotId={id}"), 16003);
        table.ucloud(&format!("CreateSnapshot&DiskID={id}"), 62101);
        table.ucloud(&format!("DeleteSnapshot&SnapshotID={id}"), 62102);
    }
    table.get(&format!("volumes?marker={NOBODY}"), 404, "EVS.5404");
    table.get("volumes?marker=x", 404, "EVS.5404");
}

/// A text as it stands in a path or query.
fn many_bytes(text: &str) -> String {
    text.bytes().map(|b| format!("%{b:02X}")).collect()
}

#[test]
fn op_069_texts_and_metadata_out_of_their_limits() {
    let table = Table::new();
    table.create(json!({ "size": 1, "name": long(256) }), "EVS.1003");
    table.create(json!({ "size": 1, "description": long(256) }), "EVS.1004");
    table.snap(json!({ "name": long(256) }), 400, "EVS.5400");
    table.snap(json!({ "description": long(256) }), 400, "EVS.5400");
    table.both_snap([&format!("&snapshotName={}", long(61)), &format!("&Name={}", long(31))], 9003, 230);
    table
        .ucloud(&format!("CreateSnapshot&DiskID={}&Remark={}", table.volume.id, many("%E7%A1%AC", 101)), 230);
    let (name, snapshot) = (long(61), table.snapshot.id);
    table.cbs(&format!("ModifySnapshot&snapshotId={snapshot}&snapshotName={name}"), 9003);
    table.ucloud(&format!("ModifyNameAndRemark&ResourceID={snapshot}&Name={name}"), 230);
    // What can be said without looking comes before what is not there.
    table.cbs(&format!("CreateSnapshot&storageId=x&snapshotName={name}"), 9003);
    table.cbs(&format!("ModifySnapshot&snapshotId=x&snapshotName={name}"), 9003);
    table.ucloud(&format!("CreateSnapshot&DiskID=x&Name={name}"), 230);
    table.ucloud(&format!("ModifyNameAndRemark&ResourceID=x&Name={name}"), 230);
    table.evs(&format!("PUT volumes/{NOBODY}"), json!({ "volume": { "name": long(256) } }), 400, "EVS.1003");
    // And its type before whether something else is there.
    table.cbs("CreateSnapshot&snapshotName=%ff", 4000);
    table.cbs("ApplySnapshot&storageId=%ff", 4000);
    table.ucloud("RollbackSnapshot&SnapshotID=%ff", 230);
    for bad in [json!({ long(256): "v" }), json!({ "k": long(256) }), json!({ "k": null })] {
        table.create(json!({ "size": 1, "metadata": bad }), "EVS.5400");
        table.snap(json!({ "metadata": bad }), 400, "EVS.5400");
    }
    let large: serde_json::Map<String, Value> =
        (0..2200).map(|n| (format!("{n:0255}"), json!(long(250)))).collect();
    table.create(json!({ "size": 1, "metadata": large.clone() }), "EVS.1005");
    table.snap(json!({ "metadata": large }), 400, "EVS.1005");
}

#[test]
fn op_069_sizes_sources_numbers_types_zones_and_flags() {
    let table = Table::new();
    let snapshot = table.snapshot.id.to_string();
    let image = table.image(ImageSpec::new().min_disk_bytes(2 * GIB), true);
    for size in [json!(null), json!(0), json!(-1), json!(32_769)] {
        table.create(json!({ "size": size }), "EVS.1010");
    }
    table.create(json!({ "size": 1, "snapshot_id": snapshot }), "EVS.1010");
    table.create(json!({ "size": 1, "source_volid": table.volume.id.to_string() }), "EVS.1010");
    table.create(json!({ "size": 1, "imageRef": image }), "EVS.1010");
    table.create(json!({ "size": 1025, "imageRef": image }), "EVS.1010");
    table.action(json!({ "os-extend": { "new_size": 32_769 } }), "EVS.1010");
    for (a, b) in [("snapshot_id", "imageRef"), ("backup_id", "source_volid"), ("imageRef", "backup_id")] {
        table.create(json!({ "size": 2, a: NOBODY, b: NOBODY }), "EVS.1016");
    }
    for count in [0, 101, -1] {
        table.create(json!({ "size": 1, "count": count }), "EVS.1021");
    }
    table.create(json!({ "backup_id": NOBODY, "count": 2 }), "EVS.1051");
    // Types: unknown, and another than the snapshot's. No request of the other dialects names one.
    table.create(json!({ "size": 1, "volume_type": "TAPE" }), "EVS.1020");
    let fast = table.pool().create_volume(VolumeSpec::blank(GIB).project("p").volume_type("SSD")).unwrap();
    let of_fast = table.pool().create_snapshot(fast.id, SnapshotSpec::new()).unwrap().id.to_string();
    table.create(json!({ "snapshot_id": of_fast, "volume_type": "SAS" }), "EVS.2096");
    // Zones: none is the default one; unknown, closed, another than the snapshot's.
    assert_eq!(table.store.evs_of_p("POST volumes", r#"{"volume": {"size": 1}}"#).0, 202);
    table.pool().set_zone("az2", true).unwrap();
    table.pool().set_zone("closed", false).unwrap();
    for zone in ["nowhere", "closed", ""] {
        table.create(json!({ "size": 1, "availability_zone": zone }), "EVS.1036");
    }
    table.create(json!({ "snapshot_id": snapshot, "availability_zone": "az2" }), "EVS.2054");
    table.create(json!({ "size": 1, "shareable": "perhaps" }), "EVS.1054");
    table.create(json!({ "size": 2, "imageRef": image, "multiattach": true }), "EVS.2094");
    for key in ["__system__encrypted", "__system__cmkid", "hw:passthrough"] {
        for (source, id) in [("snapshot_id", &snapshot), ("imageRef", &image)] {
            table.create(json!({ "size": 2, source: id, "metadata": { key: "0" } }), "EVS.1043");
        }
    }
    for size in [2, 1, 0, -1] {
        table.action(json!({ "os-extend": { "new_size": size } }), "EVS.1015");
    }
}

#[test]
fn op_069_what_a_backup_refuses() {
    let table = Table::new();
    let folder = tempfile::tempdir().unwrap();
    let target = LocalFolder::open(folder.path()).unwrap();
    table.pool().connect_backup_target("local", Arc::new(target)).unwrap();
    table.pool().set_zone("az2", true).unwrap();
    let made = table.pool().create_backup(table.volume.id, BackupSpec::new("local"), &mut |_| {
        // While it runs.
        let id = table.pool().list_backups(&snapvol::BackupQuery::new()).unwrap().items[0].id.to_string();
        table.create(json!({ "backup_id": id }), "EVS.1044");
        table.evs_raw(&format!("DELETE volumes/{}", table.volume.id), "", 400, "EVS.2130");
        table.action(json!({ "os-extend": { "new_size": 3 } }), "EVS.1064");
        table.snap(json!({ "force": true }), 400, "EVS.5400");
        table.both_snap(["", ""], 16027, 62103);
        table.both_roll(16005, 62103);
        ControlFlow::Continue(())
    });
    let id = made.unwrap().id.to_string();
    table.create(json!({ "backup_id": id, "size": 1 }), "EVS.1022");
    table.create(json!({ "backup_id": id, "availability_zone": "az2" }), "EVS.1049");
    table.create(json!({ "backup_id": id, "count": 2 }), "EVS.1051");
}

#[test]
fn op_069_pages_orders_and_filters() {
    let table = Table::new();
    for (query, code) in [
        ("limit=x", "EVS.5400"),
        ("limit=0", "EVS.5400"),
        ("limit=-1", "EVS.5400"),
        ("limit=1001", "EVS.2142"),
        ("offset=x", "EVS.5400"),
        ("offset=-1", "EVS.5400"),
        ("sort_key=color", "EVS.1039"),
        ("sort_dir=up", "EVS.1040"),
        ("sort=color:asc", "EVS.1039"),
        ("sort=size:up", "EVS.1040"),
        ("status=nonsense", "EVS.1031"),
        ("metadata=k", "EVS.1058"),
        ("availability_zone=", "EVS.1041"),
    ] {
        for list in ["volumes", "volumes/detail", "snapshots/detail", "cloudsnapshots/detail"] {
            table.get(&format!("{list}?{query}"), 400, code);
        }
    }
    for (limit, offset) in [("0", "0"), ("-1", "0"), ("101", "0"), ("x", "0"), ("1", "-1"), ("1", "x")] {
        table.cbs(&format!("DescribeSnapshots&limit={limit}&offset={offset}"), 9003);
        table.ucloud(&format!("DescribeSnapshot&Limit={limit}&Offset={offset}"), 230);
    }
    table.cbs("DescribeSnapshots&diskType=floppy", 9003);
    table.ucloud(&format!("CreateSnapshot&Type=Daily&DiskID={}", table.volume.id), 230);
    table.ucloud(&format!("DescribeSnapshot&Keyword={}", long(256)), 230);
}

#[test]
fn op_069_rollbacks_that_are_refused() {
    let table = Table::new();
    let (pool, own) = (table.pool(), table.volume.id.to_string());
    // Another volume than the source.
    let other = table.store.disk_of("p");
    table.roll(&other.id.to_string(), 400, "EVS.5400");
    let (snapshot, other_id) = (table.snapshot.id, other.id);
    table.cbs(&format!("ApplySnapshot&snapshotId={snapshot}&storageId={other_id}"), 9003);
    table.ucloud(&format!("RollbackSnapshot&SnapshotID={snapshot}&DiskID={other_id}"), 62105);
    // The status of the volume.
    pool.attach_server(table.volume.id, snapvol::AttachmentSpec::new("vm")).unwrap();
    table.roll(&own, 400, "EVS.5400");
    table.both_roll(16005, 62103);
    pool.detach_server(table.volume.id, None).unwrap();
    pool.reset_volume_status(table.volume.id, VolumeStatus::Error).unwrap();
    table.roll(&own, 400, "EVS.5400");
    table.both_roll(16005, 62103);
    pool.reset_volume_status(table.volume.id, VolumeStatus::Available).unwrap();
    // The status of the snapshot, for a rollback and for a clone.
    pool.reset_snapshot_status(snapshot, SnapshotStatus::Error).unwrap();
    table.roll(&own, 400, "EVS.5400");
    table.create(json!({ "snapshot_id": snapshot.to_string() }), "EVS.2043");
    table.both_roll(9003, 62104);
    pool.reset_snapshot_status(snapshot, SnapshotStatus::Available).unwrap();
    let job = pool.begin_snapshot_job(snapshot, SnapshotStatus::Creating).unwrap();
    table.roll(&own, 400, "EVS.5400");
    table.both_roll(16027, 62104);
    drop(job);
    let queued = table.image(ImageSpec::new(), false);
    table.create(json!({ "imageRef": queued, "size": 2 }), "EVS.5400");
    // A snapshot of a backup: not offered.
    let owned = pool.begin_backup(table.volume.id, SnapshotSpec::new()).unwrap().finish().unwrap();
    let owned = Table { snapshot: owned, store: table.store, volume: table.volume };
    owned.roll(&own, 501, "501");
    owned.both_roll(6100, 161);
}

#[test]
fn op_069_snapshots_that_are_refused() {
    let table = Table::new();
    table.pool().attach_server(table.volume.id, snapvol::AttachmentSpec::new("vm")).unwrap();
    table.snap(json!({}), 400, "EVS.5400");
    table.pool().detach_server(table.volume.id, None).unwrap();
    table.pool().reset_volume_status(table.volume.id, VolumeStatus::Error).unwrap();
    table.snap(json!({ "force": true }), 400, "EVS.5400");
    table.both_snap(["", ""], 16005, 62103);
    let one = || Some(1);
    let full = Table::with(
        Config::new()
            .evs_limits(Limits::evs().snapshots_per_volume(one()))
            .cbs_limits(Limits::cbs().snapshots_per_volume(one()))
            .ucloud_limits(Limits::ucloud().snapshots_per_volume(one())),
    );
    full.snap(json!({}), 413, "EVS.5413");
    full.both_snap(["", ""], 16006, 62106);
}

#[test]
fn op_069_deletions_and_extensions_that_are_refused() {
    let table = Table::with(Config::new().strict_cascade(true));
    let (pool, id) = (table.pool(), table.volume.id);
    let delete = format!("DELETE volumes/{id}");
    let extend = json!({ "os-extend": { "new_size": 3 } });
    // With snapshots, where that is strict.
    table.evs_raw(&delete, "", 400, "EVS.5400");
    table.evs_raw(&format!("{delete}?cascade=false"), "", 400, "EVS.5400");
    // Held: locked.
    pool.hold_snapshot(table.snapshot.id).unwrap();
    table.evs_raw(&format!("{delete}?cascade=true"), "", 400, "EVS.2068");
    table.delete_snapshot("EVS.2068", 16005, 62109);
    pool.release_snapshot(table.snapshot.id).unwrap();
    pool.reset_snapshot_status(table.snapshot.id, SnapshotStatus::ErrorDeleting).unwrap();
    table.delete_snapshot("EVS.1047", 5100, 62104);
    pool.reset_snapshot_status(table.snapshot.id, SnapshotStatus::Available).unwrap();
    // Statuses.
    let attachment = pool.attach_server(id, snapvol::AttachmentSpec::new("vm")).unwrap().id;
    table.evs_raw(&delete, "", 400, "EVS.1046");
    pool.set_server_state(id, attachment, ServerState::Other).unwrap();
    table.action(extend.clone(), "EVS.1066");
    pool.detach_server(id, None).unwrap();
    pool.reset_volume_status(id, VolumeStatus::ErrorDeleting).unwrap();
    table.evs_raw(&delete, "", 400, "EVS.1046");
    table.action(extend.clone(), "EVS.1064");
    let shared = pool.create_volume(VolumeSpec::blank(GIB).project("p").multiattach(true)).unwrap();
    pool.attach_server(shared.id, snapvol::AttachmentSpec::new("vm")).unwrap();
    let shared = Table { volume: shared, ..table };
    shared.action(extend, "EVS.1065");
    shared.evs_raw(&format!("DELETE volumes/{}", shared.volume.id), "", 400, "EVS.1046");
}

#[test]
fn op_069_quotas_and_space() {
    let table =
        Table::with(Config::new().evs_limits(Limits::evs().volumes(Some(2)).volume_bytes(Some(4 * GIB))));
    let create = |keys: Value| table.evs("POST volumes", json!({ "volume": keys }), 413, "EVS.5413");
    create(json!({ "size": 3 }));
    create(json!({ "size": 1, "count": 2 }));
    let extend = json!({ "os-extend": { "new_size": 5 } });
    table.evs(&format!("POST volumes/{}/action", table.volume.id), extend, 413, "EVS.5413");
    // The pool itself is full: of data, then of records.
    let small = options().limit_bytes(16 << 20);
    let table = Table::of(Store { pool: Pool::create_in_memory(small).unwrap(), config: Config::new() });
    let disk = table.pool().attach(table.volume.id, AttachOptions::new()).unwrap();
    let mut at = 0;
    while disk.write_at(&[7; 65_536], at).is_ok() {
        at += 65_536;
    }
    drop(disk);
    let name = long(255);
    let mut made = 0;
    while table.pool().create_volume(VolumeSpec::blank(GIB).project("p").description(&*name)).is_ok() {
        made += 1;
        assert!(made < 100_000, "the pool does not fill");
    }
    create_is_out_of_space(&table);
}

fn create_is_out_of_space(table: &Table) {
    let body = json!({ "volume": { "size": 1, "description": long(255) } });
    table.evs("POST volumes", body, 413, "EVS.5413");
    table.snap(json!({ "description": long(255) }), 413, "EVS.5413");
    table.both_snap([&format!("&snapshotName={}", long(60)), &format!("&Remark={}", long(100))], 5200, 62108);
}

#[test]
fn op_069_what_is_not_offered() {
    let table = Table::new();
    table.create(json!({ "size": 1, "consistencygroup_id": NOBODY }), "501");
    table.create(json!({ "size": 1, "source_replica": NOBODY }), "501");
    table.create(json!({ "size": 1, "metadata": { "__system__encrypted": "1" } }), "501");
    table.evs("POST backups", json!({ "backup": {} }), 501, "501");
}

#[test]
fn op_032_a_rollback_to_a_damaged_snapshot_says_so_and_leaves_a_way_on() {
    let device = SimDevice::new();
    let pool = Pool::create_on(device.clone(), options()).unwrap();
    let Table { store, volume, snapshot } = Table::of(Store { pool, config: Config::new() });
    store.write(volume.id, 2);
    // With many others, what the catalogue says of maps stands apart from what it says of names and statuses.
    for volume in store.pool.create_volumes(VolumeSpec::blank(GIB).project("q"), 100).unwrap() {
        store.write(volume.id, 3);
    }
    store.pool.close().unwrap();
    let image = device.view();
    // Metadata lie there twice: both copies are damaged, found by their content.
    let mut copies: std::collections::BTreeMap<&[u8], Vec<u64>> = Default::default();
    for (n, block) in
        image.chunks_exact(4096).enumerate().filter(|(_, block)| block.iter().any(|b| *b != block[0]))
    {
        copies.entry(block).or_default().push(n as u64);
    }
    let roll = format!("POST os-vendor-snapshots/{}/rollback", snapshot.id);
    let body = json!({ "rollback": { "volume_id": volume.id.to_string() } }).to_string();
    let shown = |store: &Store| {
        store.evs_of_p(&format!("GET volumes/{}", volume.id), "").1["volume"]["status"].clone()
    };
    let (mut done, mut failed) = (0, 0);
    for blocks in copies.values() {
        let turn = |device: &SimDevice| blocks.iter().for_each(|block| device.flip_bit(block * 4096 + 99, 3));
        let damaged = || {
            let device = SimDevice::from_image(image.clone());
            turn(&device);
            let pool = Pool::open_on(device.clone(), OpenOptions::new()).ok()?;
            Some((Store { pool, config: Config::new() }, device))
        };
        let Some((store, device)) = damaged() else { continue };
        let (status, answer) = store.evs_of_p(&roll, &body);
        if status == 202 {
            assert_eq!(shown(&store), "available");
            done += 1;
            continue;
        }
        assert_fault((status, &answer), 500, "EVS.5500");
        if shown(&store) != "error_rollbacking" {
            // Found before it began.
            continue;
        }
        failed += 1;
        let again = |query: &str| {
            let (store, _) = damaged().unwrap();
            let id = volume.id;
            (store.cbs(&format!("ApplySnapshot&storageId={id}&{query}")), shown(&store))
        };
        let cbs = again(&format!("snapshotId={}", snapshot.id));
        assert_eq!((&cbs.0["code"], &cbs.1), (&json!(6000), &json!("error_rollbacking")));
        // The status lasts, and the data are what they were. Nothing but a rollback or a delete is possible, and both
        // are once the device gives back what was written there.
        drop(store);
        let left = device.view();
        for way_on in [(&roll, &body, 202), (&format!("DELETE volumes/{}", volume.id), &String::new(), 202)] {
            let device = SimDevice::from_image(left.clone());
            turn(&device);
            let pool = Pool::open_on(device, OpenOptions::new()).unwrap();
            let store = Store { pool, config: Config::new() };
            assert_eq!(shown(&store), "error_rollbacking");
            let take =
                json!({ "snapshot": { "volume_id": volume.id.to_string(), "force": true } }).to_string();
            assert_eq!(store.evs_of_p("POST snapshots", &take).0, 400);
            let (line, body, status) = way_on;
            assert_eq!(store.evs_of_p(line, body).0, status, "{line}");
            if line == &roll {
                assert_eq!((shown(&store), store.read(volume.id)), (json!("available"), 0));
            }
        }
    }
    println!("{done} done, {failed} failed");
    assert!(done > 0 && failed > 0);
}

#[test]
fn op_069_a_store_that_has_failed_or_is_closed() {
    // A device that fails to sync: the first request is told so, and all that come after it.
    let device = SimDevice::new();
    let pool = Pool::create_on(device.clone(), options()).unwrap();
    let table = Table::of(Store { pool, config: Config::new() });
    device.fail_kind_at(CallKind::Sync, device.calls_of(CallKind::Sync), Fault::Eio, true);
    table.snap(json!({}), 500, "EVS.5500");
    table.both_snap(["", ""], 6000, 1000);
    assert!(matches!(table.pool().rename_volume(table.volume.id, "n"), Err(Error::Poisoned)));
    table.snap(json!({}), 500, "EVS.5500");
    // What is wrong inside is not told to callers.
    let (_, answer) = table.store.evs_of_p("POST volumes", r#"{"volume": {"size": 1}}"#);
    assert_eq!(answer["computeFault"]["message"], "Internal server error.");
    let told = table.store.cbs(&format!("CreateSnapshot&storageId={}", table.volume.alias));
    assert_eq!(told["message"], "the store has failed");

    let table = Table::new();
    table.pool().clone().close().unwrap();
    let (status, answer) = table.store.evs_of_p("GET volumes", "");
    assert_fault((status, &answer), 503, "EVS.5503");
    assert_eq!(table.store.cbs("DescribeSnapshots")["code"], 6000);
    assert_eq!(table.store.ucloud("DescribeSnapshot")["RetCode"], 1000);
}
