//! The UCloud dialect, line by line of its documents, and what it and the others see of each other.
#![cfg(feature = "dialect")]
#![allow(clippy::unwrap_used)]

mod clouds;

use std::collections::BTreeMap;

use clouds::{GIB, SAMPLE_MICROS, Store, keys, many, ucloud};
use http::Request;
use serde_json::{Value, json};
use snapvol::dialect::ucloud::{Answer, DescribeSnapshot, DiskType, SnapshotType};
use snapvol::dialect::{self, Config, MAX_BODY_BYTES};
use snapvol::{
    AttachmentSpec, Limits, Snapshot, SnapshotSpec, SnapshotStatus, Snapshots, Trigger, VolumeId, VolumeSpec,
    VolumeStatus,
};

const NOWHERE: &str = "00000000-0000-0000-0000-000000000000";
/// The keys of an item in the documents.
const ITEM: [&str; 14] = [
    "CompanyID",
    "CreateTime",
    "DiskAttachResourceID",
    "DiskAttachResourceType",
    "DiskID",
    "DiskType",
    "Name",
    "ProjectID",
    "ProjectName",
    "Region",
    "Remark",
    "SnapshotID",
    "SnapshotStatus",
    "Type",
];

fn snap(store: &Store, volume: VolumeId, name: &str) -> String {
    let spec = SnapshotSpec::new().name(name).force(true);
    store.pool.create_snapshot(volume, spec).unwrap().id.to_string()
}

fn found(answer: &Value) -> Vec<String> {
    assert_eq!(answer["RetCode"], 0, "{answer}");
    let all = answer["Infos"].as_array().unwrap();
    all.iter().map(|s| s["SnapshotID"].as_str().unwrap().to_owned()).collect()
}

fn native(store: &Store, id: &Value) -> Snapshot {
    store.pool.snapshot(store.pool.find_snapshot(id.as_str().unwrap()).unwrap()).unwrap()
}

/// The answer of an action that says no more than that it worked.
fn bare(action: &str) -> Value {
    json!({"RetCode": 0, "Action": format!("{action}Response"), "Message": ""})
}

#[test]
fn op_085_create_takes_what_the_documents_name_and_answers_the_id() {
    let store = Store::new();
    let disk = store.disk_of("p");
    let query = format!(
        "CreateSnapshot&DiskID={}&Name=n&Remark=r&Type=Automatic&ProjectID=p&Region=cn&CompanyID=7",
        disk.id
    );
    let made = store.ucloud(&query);
    assert_eq!(keys(&made), ["Action", "Message", "RetCode", "SnapshotID"]);
    let snapshot = native(&store, &made["SnapshotID"]);
    assert_eq!(made["SnapshotID"], snapshot.id.to_string());
    assert_eq!((snapshot.name.as_deref(), snapshot.description.as_deref()), (Some("n"), Some("r")));
    assert_eq!(
        (snapshot.volume, snapshot.trigger, snapshot.backup_owned),
        (disk.id, Trigger::Automatic, false)
    );
    // As a form and as JSON; the alias names the disk too; an attached disk is taken as well.
    store.pool.attach_server(disk.id, AttachmentSpec::new("vm")).unwrap();
    let form = format!("Action=CreateSnapshot&DiskID={}", disk.alias);
    let object = json!({"Action": "CreateSnapshot", "DiskID": disk.alias, "Name": "j", "CompanyID": 7});
    for (kind, body) in [
        ("application/x-www-form-urlencoded", form.clone()),
        ("application/json", object.to_string()),
        ("application/json; charset=utf-8", object.to_string()),
    ] {
        let (status, answer) = store.ask(Request::post("/").header("content-type", kind).body(body).unwrap());
        assert_eq!((status, &answer["RetCode"]), (200, &0.into()), "{answer}");
    }
    let (_, answer) = store.ask(Request::post("/").body(form).unwrap());
    let plain = native(&store, &answer["SnapshotID"]);
    assert_eq!((plain.name, plain.description, plain.trigger), (None, None, Trigger::Manual));
    assert_eq!(store.refused_ucloud(&format!("CreateSnapshot&DiskID={}&ProjectID=q", disk.id)), 62101);
    assert_eq!(store.refused_ucloud(&format!("CreateSnapshot&DiskID={NOWHERE}")), 62101);
}

#[test]
fn op_086_remark_has_100_characters_and_type_two_values() {
    let store = Store::new();
    let disk = store.disk(1);
    let create = |rest: &str| format!("CreateSnapshot&DiskID={}&{rest}", disk.id);
    let long = |count| format!("Remark={}", many("%E7%A1%AC", count));
    let made = store.ucloud(&create(&long(100)));
    assert_eq!(native(&store, &made["SnapshotID"]).description, Some("硬".repeat(100)));
    assert_eq!(store.refused_ucloud(&create(&long(101))), 230);
    let why = store.ucloud(&create(&long(101)))["Message"].as_str().unwrap().to_owned();
    assert!(why.contains("Remark") && why.contains("100") && why.contains("101"), "{why}");
    assert_eq!(store.ucloud(&create(&format!("Name={}", many("x", 30))))["RetCode"], 0);
    assert_eq!(store.refused_ucloud(&create(&format!("Name={}", many("x", 31)))), 230);
    for bad in ["Type=manual", "Type=Daily", "Type=%ff"] {
        assert_eq!(store.refused_ucloud(&create(bad)), 230, "{bad}");
    }
    // One that a schedule asked for can be all that others can.
    let automatic = store.ucloud(&create("Type=Automatic"))["SnapshotID"].as_str().unwrap().to_owned();
    let manual = store.ucloud(&create("Type=Manual"))["SnapshotID"].as_str().unwrap().to_owned();
    for (id, text) in [(automatic, "Automatic"), (manual, "Manual")] {
        let answer = store.ucloud(&format!("DescribeSnapshot&SnapshotIDs.0={id}"));
        assert_eq!(answer["Infos"][0]["Type"], text);
        let pair = format!("DiskID={}&SnapshotID={id}", disk.id);
        assert_eq!(store.ucloud(&format!("RollbackSnapshot&{pair}"))["RetCode"], 0);
        assert_eq!(store.ucloud(&format!("DeleteSnapshot&{pair}"))["RetCode"], 0);
    }
    // A snapshot of a backup was asked for by nobody either.
    store.pool.begin_backup(disk.id, SnapshotSpec::new()).unwrap().finish().unwrap();
    assert_eq!(store.ucloud("DescribeSnapshot&Limit=1")["Infos"][0]["Type"], "Automatic");
}

#[test]
fn op_087_pages_have_20_items_unless_said_and_100_at_most() {
    let store = Store::new();
    let disk = store.disk(1);
    let mut all: Vec<String> = (0..105).map(|n| snap(&store, disk.id, &n.to_string())).collect();
    all.reverse();
    let page = |query: &str| {
        let answer = store.ucloud(&format!("DescribeSnapshot{query}"));
        assert_eq!(answer["TotalCount"], 105);
        found(&answer)
    };
    assert_eq!(page(""), all[..20]);
    assert_eq!(page("&Limit=100&Offset=0"), all[..100]);
    assert_eq!(page("&Limit=100&Offset=100"), all[100..]);
    assert_eq!(page("&Offset=7&Limit=2"), all[7..9]);
    assert_eq!(page("&Offset=105"), [""; 0]);
    for bad in ["Limit=101", "Limit=0", "Limit=-1", "Limit=x", "Offset=-1", "Offset=", "Offset=1.5"] {
        assert_eq!(store.refused_ucloud(&format!("DescribeSnapshot&{bad}")), 230, "{bad}");
    }
    let object = json!({"Action": "DescribeSnapshot", "Limit": 2, "Offset": "103"}).to_string();
    let request = Request::post("/").header("content-type", "application/json").body(object).unwrap();
    assert_eq!(found(&store.ask(request).1), all[103..]);
}

#[test]
fn op_088_filters_by_keyword_projects_ids_and_disk() {
    let store = Store::new();
    let (a, b) = (store.disk_of("one-id"), store.disk_of("two-id"));
    let sa = snap(&store, a.id, "Nightly Ärger");
    let remarked = SnapshotSpec::new().description("before the nightly build");
    let sb = store.pool.create_snapshot(b.id, remarked).unwrap().id.to_string();
    let sc = snap(&store, b.id, "other");
    let find = |query: &str| {
        let answer = store.ucloud(&format!("DescribeSnapshot&{query}"));
        let all = found(&answer);
        assert_eq!(answer["TotalCount"], all.len(), "{query}");
        all
    };
    assert_eq!(find("Keyword=NIGHTLY"), [sb.as_str(), &sa]);
    assert_eq!(find("Keyword=%C3%A4rger"), [sa.as_str()]);
    assert_eq!(find(&format!("Keyword={}", &sc[20..].to_uppercase())), [sc.as_str()]);
    assert_eq!(find("Keyword=nowhere"), [""; 0]);
    assert_eq!(find(&format!("Keyword={}", many("%F0%9F%92%BE", 255))), [""; 0]);
    assert_eq!(store.refused_ucloud(&format!("DescribeSnapshot&Keyword={}", many("x", 256))), 230);
    assert_eq!(find("Keyword="), [sc.as_str(), &sb, &sa]);
    assert_eq!(find("ProjectIDs.0=one-id"), [sa.as_str()]);
    assert_eq!(find("ProjectIDs.0=one-id&ProjectIDs.1=two-id"), [sc.as_str(), &sb, &sa]);
    assert_eq!(find("ProjectIDs.0=%E2%80%9Cone-id%E2%80%9D"), [sa.as_str()]);
    assert_eq!(
        find(&format!("SnapshotIDs.0={sa}&SnapshotIDs.1={sc}&SnapshotIDs.2={NOWHERE}")),
        [sc.as_str(), &sa]
    );
    assert_eq!(find(&format!("SnapshotIDs={sb}")), [sb.as_str()]);
    assert_eq!(find(&format!("DiskID={}", b.id)), [sc.as_str(), &sb]);
    assert_eq!(find(&format!("DiskID={}&Keyword=nightly&ProjectIDs.0=two-id", b.alias)), [sb.as_str()]);
    assert_eq!(find(&format!("DiskID={}&ProjectIDs.0=one-id", b.id)), [""; 0]);
    assert_eq!(find("ProjectID=one-id"), [sa.as_str()]);
    for nothing in [
        "ProjectIDs.0=three",
        "SnapshotIDs.0=x",
        "DiskID=x",
        "ProjectID=three",
        "ProjectID=one-id&ProjectIDs.0=two-id",
        "ProjectIDs.0=",
    ] {
        assert_eq!(find(nothing), [""; 0], "{nothing}");
    }
    for body in [json!({"SnapshotIDs": [sa, sc]}), json!({"SnapshotIDs.0": sa, "SnapshotIDs.1": sc})] {
        let request = Request::post("/?Action=DescribeSnapshot").header("content-type", "application/json");
        assert_eq!(found(&store.ask(request.body(body.to_string()).unwrap()).1), [sc.as_str(), &sa]);
    }
    drop(store.pool.delete_volume(a.id, Snapshots::Keep).unwrap());
    assert_eq!(find(&format!("DiskID={}", a.id)), [sa.as_str()]);
}

#[test]
fn op_089_items_hold_the_fourteen_keys() {
    let mut store = Store::new();
    store.config = Config::new().company(200_000_123).region("cn");
    let disk = store.disk_of("p");
    store.pool.name_project("p", Some("Team P".into())).unwrap();
    store.pool.create_snapshot(disk.id, SnapshotSpec::new()).unwrap();
    let answer = store.ucloud("DescribeSnapshot");
    assert_eq!(keys(&answer), ["Action", "Infos", "Message", "RetCode", "TotalCount"]);
    let item = &answer["Infos"][0];
    assert_eq!(keys(item), ITEM);
    for key in ITEM {
        assert_eq!(item[key].is_u64(), ["CompanyID", "CreateTime"].contains(&key), "{key}");
        assert!(item[key].is_u64() || item[key].is_string(), "{key}");
    }
    assert_eq!(item["CreateTime"], SAMPLE_MICROS / 1_000_000);
    assert_eq!((&item["CompanyID"], &item["Region"]), (&200_000_123.into(), &"cn".into()));
    assert_eq!((&item["ProjectID"], &item["ProjectName"]), (&"p".into(), &"Team P".into()));
    assert_eq!((&item["Name"], &item["Remark"]), (&"".into(), &"".into()));
    // A region or tenant that is not the store's has nothing; without one in the store, any is its own.
    assert_eq!(found(&store.ucloud("DescribeSnapshot&Region=us")), [""; 0]);
    assert_eq!(store.refused_ucloud(&format!("CreateSnapshot&Region=us&DiskID={}", disk.id)), 62101);
    store.config = Config::new();
    assert_eq!(store.ucloud("DescribeSnapshot&Region=us")["Infos"][0]["Region"], "us");
    assert_eq!(store.ucloud("DescribeSnapshot")["Infos"][0]["Region"], "");
    let typed: Answer<DescribeSnapshot> = serde_json::from_value(answer).unwrap();
    let info = typed.body.unwrap().infos.remove(0);
    assert_eq!(
        (info.r#type, info.disk_type, info.create_time),
        (SnapshotType::Manual, DiskType::Data, 1_463_515_128)
    );
}

#[test]
fn op_090_statuses_and_roles_are_spelled_as_documented() {
    let store = Store::new();
    let disk = store.disk(1);
    let id = store.pool.create_snapshot(disk.id, SnapshotSpec::new()).unwrap().id;
    for (status, text) in [
        (SnapshotStatus::Creating, "Createing"),
        (SnapshotStatus::Available, "Normal"),
        (SnapshotStatus::Rollbacking, "RollBacking"),
        (SnapshotStatus::Error, "Failure"),
        (SnapshotStatus::ErrorDeleting, "Failure"),
        (SnapshotStatus::Deleting, "Released"),
        (SnapshotStatus::BackingUp, "Createing"),
    ] {
        let shown = store.in_status(id, status);
        assert_eq!(store.ucloud("DescribeSnapshot")["Infos"][0]["SnapshotStatus"], text);
        drop(shown);
        store.pool.reset_snapshot_status(id, SnapshotStatus::Available).unwrap();
    }
    assert_eq!(store.ucloud("DescribeSnapshot")["Infos"][0]["DiskType"], "Data");
    store.pool.set_bootable(disk.id, true).unwrap();
    assert_eq!(store.ucloud("DescribeSnapshot")["Infos"][0]["DiskType"], "Boot");
}

#[test]
fn op_091_the_attachment_is_that_of_the_source_disk() {
    let store = Store::new();
    let disk = store.disk(1);
    snap(&store, disk.id, "");
    let shown = || {
        let item = store.ucloud("DescribeSnapshot")["Infos"][0].clone();
        (
            item["DiskAttachResourceID"].as_str().unwrap().to_owned(),
            item["DiskAttachResourceType"].as_str().unwrap().to_owned(),
        )
    };
    let none = (String::new(), String::new());
    assert_eq!(shown(), none);
    store.pool.attach_server(disk.id, AttachmentSpec::new("vm-1").server_kind("VM")).unwrap();
    assert_eq!(shown(), ("vm-1".into(), "VM".into()));
    store.pool.detach_server(disk.id, None).unwrap();
    assert_eq!(shown(), none);
    // A handle in the server's process has no resource.
    let handle = store.pool.attach(disk.id, snapvol::AttachOptions::new()).unwrap();
    assert_eq!(shown(), none);
    drop(handle);
    drop(store.pool.delete_volume(disk.id, Snapshots::Keep).unwrap());
    assert_eq!(shown(), none);
}

#[test]
fn op_092_roll_back_takes_a_pair() {
    let store = Store::new();
    let (disk, other) = (store.disk(1), store.disk(1));
    store.write(disk.id, 1);
    let id = snap(&store, disk.id, "");
    store.write(disk.id, 2);
    let roll = |disk: &str, snapshot: &str| format!("RollbackSnapshot&DiskID={disk}&SnapshotID={snapshot}");
    let right = roll(&disk.id.to_string(), &id);
    assert_eq!(store.refused_ucloud(&roll(&other.alias, &id)), 62105);
    assert_eq!(store.refused_ucloud(&roll(NOWHERE, &id)), 62101);
    assert_eq!(store.refused_ucloud(&roll(&disk.alias, NOWHERE)), 62102);
    store.pool.attach_server(disk.id, AttachmentSpec::new("vm")).unwrap();
    assert_eq!(store.refused_ucloud(&right), 62103);
    store.pool.detach_server(disk.id, None).unwrap();
    let snapshot = store.pool.find_snapshot(&id).unwrap();
    let job = store.pool.begin_snapshot_job(snapshot, SnapshotStatus::Creating).unwrap();
    assert_eq!(store.refused_ucloud(&right), 62104);
    drop(job);
    assert_eq!(store.read(disk.id), 2);
    assert_eq!(store.ucloud(&right), bare("RollbackSnapshot"));
    assert_eq!(store.read(disk.id), 1);
    // From a rollback that failed, too.
    store.pool.reset_volume_status(disk.id, VolumeStatus::ErrorRollbacking).unwrap();
    assert_eq!(store.ucloud(&right), bare("RollbackSnapshot"));
    assert_eq!(store.pool.volume(disk.id).unwrap().status, VolumeStatus::Available);
}

#[test]
fn op_093_delete_takes_one_snapshot() {
    let store = Store::new();
    let disk = store.disk(1);
    let (first, failed, last) =
        (snap(&store, disk.id, ""), snap(&store, disk.id, ""), snap(&store, disk.id, ""));
    let delete = |id: &str| format!("DeleteSnapshot&SnapshotID={id}");
    let find = |id: &str| store.pool.find_snapshot(id).unwrap();
    store.pool.hold_snapshot(find(&first)).unwrap();
    assert_eq!(store.refused_ucloud(&delete(&first)), 62109);
    store.pool.release_snapshot(find(&first)).unwrap();
    store.pool.reset_snapshot_status(find(&first), SnapshotStatus::ErrorDeleting).unwrap();
    assert_eq!(store.refused_ucloud(&delete(&first)), 62104);
    store.pool.reset_snapshot_status(find(&first), SnapshotStatus::Available).unwrap();
    assert_eq!(store.ucloud(&delete(&first)), bare("DeleteSnapshot"));
    assert_eq!(store.refused_ucloud(&delete(&first)), 62102);
    store.pool.reset_snapshot_status(find(&failed), SnapshotStatus::Error).unwrap();
    assert_eq!(store.ucloud(&delete(&failed)), bare("DeleteSnapshot"));
    assert_eq!(found(&store.ucloud("DescribeSnapshot")), [last]);
}

#[test]
fn op_094_ret_code_message_and_action_of_the_answer() {
    let store = Store::new();
    let disk = store.disk(1);
    for (query, action) in [
        (format!("CreateSnapshot&DiskID={}", disk.id), "CreateSnapshotResponse"),
        ("DescribeSnapshot".into(), "DescribeSnapshotResponse"),
    ] {
        let answer = store.ucloud(&query);
        assert_eq!(
            (&answer["RetCode"], &answer["Message"], &answer["Action"]),
            (&0.into(), &"".into(), &action.into())
        );
    }
    let refused = store.ucloud(&format!("DeleteSnapshot&SnapshotID={NOWHERE}"));
    assert_eq!(keys(&refused), ["Action", "Message", "RetCode"]);
    assert_eq!((&refused["RetCode"], &refused["Action"]), (&62102.into(), &"DeleteSnapshotResponse".into()));
    assert!(refused["Message"].as_str().unwrap().contains(NOWHERE));
    // The seventh way to be refused: the limit of a profile.
    let one = Limits::ucloud().snapshots_per_volume(Some(1));
    let limited = Store { pool: store.pool.clone(), config: Config::new().ucloud_limits(one) };
    assert_eq!(limited.refused_ucloud(&format!("CreateSnapshot&DiskID={}", disk.id)), 62106);
    let job = store.pool.begin_volume_job(disk.id, VolumeStatus::Extending).unwrap();
    assert_eq!(store.refused_ucloud(&format!("CreateSnapshot&DiskID={}", disk.id)), 62103);
    drop(job);
}

#[test]
fn op_095_missing_ids_unknown_actions_and_what_is_ignored() {
    let mut store = Store::new();
    let disk = store.disk(1);
    let id = snap(&store, disk.id, "");
    for (query, code) in [
        ("CreateSnapshot", 220),
        ("CreateSnapshot&DiskID=", 220),
        ("RollbackSnapshot&DiskID=x", 220),
        ("RollbackSnapshot&SnapshotID=x", 220),
        ("DeleteSnapshot", 220),
        ("ModifyNameAndRemark&ResourceID=x", 220),
        ("", 160),
        ("DescribeDisk", 161),
        ("createsnapshot", 161),
        ("DescribeSnapshot&Region=a&Region=b", 230),
        ("DescribeSnapshot&SnapshotIDs.a=b", 230),
    ] {
        assert_eq!(store.refused_ucloud(query), code, "{query}");
    }
    let none = store.ask(Request::get("/?Region=cn").body("").unwrap());
    assert_eq!((none.0, &none.1["RetCode"]), (200, &160.into()));
    for (kind, body) in [
        ("application/json", "{\"Action\":\"DescribeSnapshot\",}"),
        ("application/json", "[]"),
        ("application/json", "{\"Action\":7}"),
        ("application/json", "{\"Action\":\"DescribeSnapshot\",\"Limit\":{}}"),
        ("text/plain", "Action=DescribeSnapshot"),
    ] {
        let (status, answer) = store.ask(Request::post("/").header("content-type", kind).body(body).unwrap());
        assert_eq!((status, &answer["RetCode"]), (200, &230.into()), "{body}");
    }
    let large = Request::post("/?Action=DescribeSnapshot").body(vec![b'&'; MAX_BODY_BYTES + 1]).unwrap();
    let (status, answer) = store.ask(large);
    assert_eq!((status, &answer["RetCode"]), (413, &230.into()));
    // What the tables of requests name by mistake, and a tenant that only an administrator may name.
    let ignored = "DescribeSnapshot&RetCode=7&Message=x&PublicKey=k&Signature=s&Zone=z&CompanyID=9";
    assert_eq!(found(&store.ucloud(ignored)), [id.as_str()]);
    assert_eq!(found(&store.ucloud("DescribeSnapshot&CompanyID=x")), [id.as_str()]);
    store.config = Config::new().company(5).admin(true);
    assert_eq!(found(&store.ucloud("DescribeSnapshot&CompanyID=5")), [id.as_str()]);
    assert_eq!(found(&store.ucloud("DescribeSnapshot&CompanyID=9")), [""; 0]);
    assert_eq!(store.refused_ucloud("DescribeSnapshot&CompanyID=x"), 230);
    assert_eq!(store.refused_ucloud(&format!("DeleteSnapshot&CompanyID=9&SnapshotID={id}")), 62102);
}

#[test]
fn a_snapshot_is_renamed_and_remarked() {
    let store = Store::new();
    let disk = store.disk(1);
    let id = snap(&store, disk.id, "old");
    let modify = |rest: &str| format!("ModifyNameAndRemark&ResourceID={id}&{rest}");
    assert_eq!(store.ucloud(&modify("Name=new&Remark=r")), bare("ModifyNameAndRemark"));
    assert_eq!(store.ucloud(&modify("Name=newer")), bare("ModifyNameAndRemark"));
    let now = native(&store, &id.clone().into());
    assert_eq!((now.name.as_deref(), now.description.as_deref()), (Some("newer"), Some("r")));
    assert_eq!(store.refused_ucloud(&modify(&format!("Name={}", many("x", 31)))), 230);
    assert_eq!(store.refused_ucloud(&format!("ModifyNameAndRemark&ResourceID={}&Name=n", disk.id)), 62102);
}

#[test]
fn op_096_one_snapshot_reads_the_same_in_every_dialect() {
    let store = Store::new();
    let disk = store.pool.create_volume(VolumeSpec::blank(3 * GIB).project("p").bootable(true)).unwrap();
    let made = store.pool.create_snapshot(disk.id, SnapshotSpec::new().name("one")).unwrap();
    let cbs = store.cbs("DescribeSnapshots")["snapshotSet"][0].clone();
    let ucloud = store.ucloud("DescribeSnapshot")["Infos"][0].clone();
    assert_eq!(
        (&cbs["snapshotId"], &ucloud["SnapshotID"]),
        (&made.alias.clone().into(), &made.id.to_string().into())
    );
    assert_eq!((&cbs["storageId"], &ucloud["DiskID"]), (&disk.alias.into(), &disk.id.to_string().into()));
    assert_eq!((&cbs["snapshotName"], &ucloud["Name"]), (&"one".into(), &"one".into()));
    assert_eq!((&cbs["snapshotStatus"], &ucloud["SnapshotStatus"]), (&"normal".into(), &"Normal".into()));
    assert_eq!((&cbs["diskType"], &ucloud["DiskType"]), (&"root".into(), &"Boot".into()));
    assert_eq!((&cbs["projectId"], &ucloud["ProjectID"]), (&1.into(), &"p".into()));
    assert_eq!(
        (&cbs["createTime"], &ucloud["CreateTime"]),
        (&"2016-05-17 19:58:48".into(), &1_463_515_128.into())
    );
    assert_eq!((&cbs["storageSize"], made.size_bytes), (&3.into(), 3 * GIB));
    let evs = store.evs(Request::get(format!("/v2/p/snapshots/{}", made.id)), "");
    let evs = &evs["snapshot"];
    assert_eq!((&evs["id"], &evs["volume_id"]), (&ucloud["SnapshotID"], &ucloud["DiskID"]));
    assert_eq!((&evs["name"], &evs["size"]), (&cbs["snapshotName"], &cbs["storageSize"]));
    assert_eq!(
        (&evs["status"], &evs["os-extended-snapshot-attributes:project_id"]),
        (&"available".into(), &"p".into())
    );
    assert!(evs["created_at"].as_str().unwrap().starts_with("2016-05-17T19:58:48."), "{evs}");
    // Every status is the same one, each dialect in its own spelling; what CBS has no word for it does not show.
    for (status, cbs, ucloud) in [
        (SnapshotStatus::Creating, Some("creating"), "Createing"),
        (SnapshotStatus::Available, Some("normal"), "Normal"),
        (SnapshotStatus::Rollbacking, Some("rollbacking"), "RollBacking"),
        (SnapshotStatus::Error, None, "Failure"),
        (SnapshotStatus::ErrorDeleting, None, "Failure"),
        (SnapshotStatus::Deleting, None, "Released"),
        (SnapshotStatus::BackingUp, Some("creating"), "Createing"),
    ] {
        let _shown = store.in_status(made.id, status);
        let set = store.cbs("DescribeSnapshots")["snapshotSet"].clone();
        assert_eq!(set[0]["snapshotStatus"].as_str(), cbs);
        assert_eq!(store.ucloud("DescribeSnapshot")["Infos"][0]["SnapshotStatus"], ucloud);
        let evs = store.evs(Request::get(format!("/v2/p/snapshots/{}", made.id)), "");
        assert_eq!(evs["snapshot"]["status"], status.as_str());
    }
    store.pool.reset_snapshot_status(made.id, SnapshotStatus::Available).unwrap();
    // Either id, in either dialect.
    for id in [made.alias, made.id.to_string()] {
        assert_eq!(store.cbs(&format!("DescribeSnapshots&snapshotIds.0={id}"))["totalCount"], 1);
        assert_eq!(store.ucloud(&format!("DescribeSnapshot&SnapshotIDs.0={id}"))["TotalCount"], 1);
    }
}

#[test]
fn op_097_what_one_dialect_does_the_other_sees_at_once() {
    let store = Store::new();
    let disk = store.disk(1);
    store.write(disk.id, 1);
    let made = store.cbs(&format!("CreateSnapshot&storageId={}&snapshotName=first", disk.alias));
    let id = made["snapshotId"].as_str().unwrap();
    let seen = store.ucloud("DescribeSnapshot")["Infos"][0].clone();
    assert_eq!(seen["Name"], "first");
    store.ucloud(&format!("ModifyNameAndRemark&ResourceID={id}&Name=second"));
    assert_eq!(store.cbs("DescribeSnapshots")["snapshotSet"][0]["snapshotName"], "second");
    store.cbs(&format!("ModifySnapshot&snapshotId={id}&snapshotName=third"));
    assert_eq!(store.ucloud("DescribeSnapshot")["Infos"][0]["Name"], "third");
    let renamed = r#"{"snapshot": {"name": "fourth", "description": "d"}}"#;
    store.evs(Request::put(format!("/v2/default/snapshots/{id}")), renamed);
    let seen = store.ucloud("DescribeSnapshot")["Infos"][0].clone();
    assert_eq!((&seen["Name"], &seen["Remark"]), (&"fourth".into(), &"d".into()));
    assert_eq!(store.cbs("DescribeSnapshots")["snapshotSet"][0]["snapshotName"], "fourth");
    store.write(disk.id, 2);
    let pair = format!("DiskID={}&SnapshotID={id}", disk.id);
    assert_eq!(store.ucloud(&format!("RollbackSnapshot&{pair}"))["RetCode"], 0);
    assert_eq!(store.read(disk.id), 1);
    store.write(disk.id, 2);
    let back = json!({"rollback": {"volume_id": disk.id.to_string()}}).to_string();
    store.evs(Request::post(format!("/v2/default/os-vendor-snapshots/{id}/rollback")), &back);
    assert_eq!(store.read(disk.id), 1);
    assert_eq!(store.ucloud(&format!("DeleteSnapshot&SnapshotID={id}"))["RetCode"], 0);
    assert_eq!(store.cbs("DescribeSnapshots")["totalCount"], 0);
    let made = store.ucloud(&format!("CreateSnapshot&DiskID={}", disk.id));
    let id = made["SnapshotID"].as_str().unwrap();
    let answer = store.cbs(&format!("DeleteSnapshot&snapshotIds.0={id}"));
    assert_eq!(answer["detail"][id]["code"], 0);
    assert_eq!(store.ucloud("DescribeSnapshot")["TotalCount"], 0);
    let create = json!({"snapshot": {"volume_id": disk.id.to_string(), "name": "evs"}}).to_string();
    let id = store.evs(Request::post("/v2/default/snapshots"), &create)["snapshot"]["id"].clone();
    assert_eq!(store.ucloud("DescribeSnapshot")["Infos"][0]["SnapshotID"], id);
    assert_eq!(store.cbs("DescribeSnapshots")["snapshotSet"][0]["snapshotName"], "evs");
    let gone = Request::delete(format!("/v2/default/snapshots/{}", id.as_str().unwrap())).body("").unwrap();
    assert_eq!(dialect::handle(&store.pool, &store.config, &gone).status(), 202);
    assert_eq!(store.cbs("DescribeSnapshots")["totalCount"], 0);
}

#[test]
fn op_098_random_requests_are_answered_and_refused_ones_leave_no_trace() {
    let store = ucloud::store();
    let mut random = fastrand::Rng::with_seed(6);
    let mut seen: BTreeMap<(String, i64), u32> = BTreeMap::new();
    let mut before = store.face();
    for _ in 0..10_000 {
        let bytes: Vec<u8> = (0..random.usize(0..120)).map(|_| random.u8(..)).collect();
        if let Some(kind) = ucloud::one_request(&store, &bytes, &mut before) {
            *seen.entry(kind).or_default() += 1;
        }
        while store.pool.step(64).unwrap() {}
    }
    println!("{seen:?}");
    for (action, code) in [
        ("CreateSnapshot", 0),
        ("CreateSnapshot", 62106),
        ("CreateSnapshot", 230),
        ("DescribeSnapshot", 0),
        ("DeleteSnapshot", 0),
        ("DeleteSnapshot", 62102),
        ("RollbackSnapshot", 220),
        ("ModifyNameAndRemark", 0),
        ("DescribeDisk", 161),
    ] {
        let kind = (format!("{action}Response"), code);
        assert!(seen.contains_key(&kind), "the requests reach {kind:?}: {seen:?}");
    }
}
