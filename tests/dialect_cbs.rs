//! The CBS dialect, line by line of its documents: answers, filters, pages, codes, and refusals without a trace.
#![cfg(feature = "dialect")]
#![allow(clippy::unwrap_used)]

mod clouds;

use std::collections::BTreeMap;

use clouds::{GIB, Store, cbs, keys, many};
use http::Request;
use serde_json::Value;
use snapvol::dialect::cbs::{Answer, DescribeSnapshots};
use snapvol::dialect::{Config, MAX_BODY_BYTES};
use snapvol::{
    AttachmentSpec, Limits, SnapshotSpec, SnapshotStatus, Snapshots, VolumeId, VolumeSpec, VolumeStatus,
};

/// The sample of the documents, with the ids that a store gave in the place of its own.
fn sample() -> Value {
    serde_json::from_str(include_str!("golden/cbs/describe_snapshots.answer.json")).unwrap()
}

fn described(answer: &Value) -> Vec<String> {
    assert_eq!(answer["code"], 0, "{answer}");
    let all = answer["snapshotSet"].as_array().unwrap();
    all.iter().map(|s| s["snapshotId"].as_str().unwrap().to_owned()).collect()
}

fn snap(store: &Store, volume: VolumeId, name: &str) -> String {
    store.pool.create_snapshot(volume, SnapshotSpec::new().name(name).force(true)).unwrap().alias
}

#[test]
fn op_073_describe_snapshots_answers_its_envelope() {
    let store = Store::new();
    let empty = store.cbs("DescribeSnapshots");
    assert_eq!(keys(&empty), ["code", "message", "snapshotSet", "totalCount"]);
    assert_eq!((&empty["code"], &empty["message"], &empty["totalCount"]), (&0.into(), &"".into(), &0.into()));
    // Parameters that all calls have are not looked at; a form by POST says the same.
    let disk = store.disk(1);
    snap(&store, disk.id, "n");
    let common = "Region=gz&Timestamp=1&Nonce=2&SecretId=x&Signature=%2Bz%3D&SignatureMethod=HmacSHA1";
    let got = store.cbs(&format!("DescribeSnapshots&{common}"));
    let form = format!("Action=DescribeSnapshots&{common}");
    for (uri, body) in [("/v2/index.php", form.as_str()), ("/v2/index.php?Action=DescribeSnapshots", common)]
    {
        let request =
            Request::post(uri).header("content-type", "application/x-www-form-urlencoded; charset=UTF-8");
        assert_eq!(store.ask(request.body(body).unwrap()), (200, got.clone()));
    }
    assert_eq!(described(&got).len(), 1);
    let typed: Answer<DescribeSnapshots> = serde_json::from_value(got).unwrap();
    assert_eq!((typed.code, typed.body.unwrap().total_count), (0, 1));
}

#[test]
fn op_074_of_five_snapshots_a_page_of_one_says_five() {
    let store = Store::new();
    let disk = store.disk(10);
    for _ in 0..5 {
        snap(&store, disk.id, "ABCDEFGHHHH");
    }
    let answer = store.cbs("DescribeSnapshots&limit=1");
    let mut want = sample();
    want["snapshotSet"][0]["snapshotId"] = answer["snapshotSet"][0]["snapshotId"].clone();
    want["snapshotSet"][0]["storageId"] = disk.alias.clone().into();
    assert_eq!(answer, want);
}

#[test]
fn op_075_pages_have_20_items_unless_said_and_100_at_most() {
    let store = Store::new();
    let disk = store.disk(1);
    let mut all: Vec<String> = (0..105).map(|n| snap(&store, disk.id, &n.to_string())).collect();
    all.reverse();
    let page = |query: &str| {
        let answer = store.cbs(&format!("DescribeSnapshots{query}"));
        assert_eq!(answer["totalCount"], 105);
        described(&answer)
    };
    assert_eq!(page(""), all[..20]);
    assert_eq!(page("&limit=100"), all[..100]);
    assert_eq!(page("&limit=100&offset=100"), all[100..]);
    assert_eq!(page("&offset=7&limit=2"), all[7..9]);
    assert_eq!(page("&offset=105"), [""; 0]);
    assert_eq!(page("&offset=9223372036854775807"), [""; 0]);
    for bad in ["limit=101", "limit=0", "limit=-1", "limit=x", "limit=", "limit=1.5", "offset=-1", "offset=x"]
    {
        assert_eq!(store.refused_cbs(&format!("DescribeSnapshots&{bad}")), 9003, "{bad}");
    }
}

#[test]
fn op_076_filters_combine_by_and_and_absent_ones_do_not_filter() {
    let store = Store::new();
    let (a, b, c) = (store.disk(1), store.disk_of("p"), store.disk_of("p"));
    store.pool.set_bootable(b.id, true).unwrap();
    let (sa, sb, sc) = (snap(&store, a.id, "a"), snap(&store, b.id, "b"), snap(&store, c.id, "c"));
    let find = |query: &str| {
        let answer = store.cbs(&format!("DescribeSnapshots&{query}"));
        let found = described(&answer);
        assert_eq!(answer["totalCount"], found.len());
        found
    };
    let uuid = store.pool.find_snapshot(&sa).unwrap();
    assert_eq!(find(""), [sc.as_str(), &sb, &sa]);
    assert_eq!(find("diskType=root"), [sb.as_str()]);
    assert_eq!(find("diskType=data"), [sc.as_str(), &sa]);
    assert_eq!(find("projectId=1"), [sc.as_str(), &sb]);
    assert_eq!(find("projectId=1&diskType=data"), [sc.as_str()]);
    assert_eq!(find(&format!("storageIds.0={}&storageIds.1={}", a.alias, b.id)), [sb.as_str(), &sa]);
    assert_eq!(find(&format!("storageIds.1={}&storageIds.7={}&diskType=root", a.alias, b.id)), [sb.as_str()]);
    assert_eq!(find(&format!("snapshotIds.0={uuid}&snapshotIds.1={sc}")), [sc.as_str(), &sa]);
    assert_eq!(find(&format!("snapshotIds={sa}&projectId=1")), [""; 0]);
    assert_eq!(find(&format!("snapshotIds={sb}&storageIds={}", a.alias)), [""; 0]);
    // What names nothing matches nothing.
    for nothing in
        ["projectId=9", "projectId=-1", "projectId=4294967296", "storageIds.0=disk-x", "snapshotIds.0="]
    {
        assert_eq!(find(nothing), [""; 0], "{nothing}");
    }
    assert_eq!(find(&format!("projectId=9&snapshotIds={sa}")), [""; 0]);
    // A snapshot that outlives its disk is found by the disk's id.
    drop(store.pool.delete_volume(a.id, Snapshots::Keep).unwrap());
    let kept = store.cbs(&format!("DescribeSnapshots&storageIds.0={}", a.id));
    assert_eq!(described(&kept), [sa.as_str()]);
    assert_eq!(kept["snapshotSet"][0]["storageId"], a.id.to_string());
}

#[test]
fn op_077_project_role_and_size_are_those_of_the_source_disk() {
    let store = Store::new();
    let plain = store.disk(10);
    let boot = store.pool.create_volume(VolumeSpec::blank(3 * GIB).project("p").bootable(true)).unwrap();
    snap(&store, plain.id, "");
    snap(&store, boot.id, "");
    // Later changes of size do not change the snapshot.
    store.pool.extend(plain.id, 11 * GIB).unwrap();
    let answer = store.cbs("DescribeSnapshots&projectId=0");
    let first = &answer["snapshotSet"][0];
    assert_eq!(
        (answer["totalCount"].as_u64(), first["storageId"].as_str()),
        (Some(1), Some(plain.alias.as_str()))
    );
    let shown = |s: &Value| {
        (s["projectId"].as_u64(), s["diskType"].as_str().map(str::to_owned), s["storageSize"].as_u64())
    };
    assert_eq!(shown(first), (Some(0), Some("data".into()), Some(10)));
    let answer = store.cbs("DescribeSnapshots&projectId=1");
    assert_eq!(shown(&answer["snapshotSet"][0]), (Some(1), Some("root".into()), Some(3)));
    // Native sizes that are no whole GB are rounded up.
    let small = store.pool.create_volume(VolumeSpec::blank(4096)).unwrap();
    snap(&store, small.id, "");
    assert_eq!(store.cbs("DescribeSnapshots&limit=1")["snapshotSet"][0]["storageSize"], 1);
}

#[test]
fn op_078_items_hold_the_nine_keys_and_the_documented_time() {
    let mut store = Store::new();
    let disk = store.disk(1);
    store.pool.create_snapshot(disk.id, SnapshotSpec::new()).unwrap();
    let item = store.cbs("DescribeSnapshots")["snapshotSet"][0].clone();
    assert_eq!(keys(&item), keys(&sample()["snapshotSet"][0]));
    for (key, value) in sample()["snapshotSet"][0].as_object().unwrap() {
        assert_eq!(std::mem::discriminant(value), std::mem::discriminant(&item[key]), "{key}");
    }
    // A snapshot without a name has an empty one here.
    assert_eq!((&item["createTime"], &item["snapshotName"]), (&"2016-05-17 19:58:48".into(), &"".into()));
    store.config = Config::new().utc_offset_seconds(8 * 3600);
    assert_eq!(store.cbs("DescribeSnapshots")["snapshotSet"][0]["createTime"], "2016-05-18 03:58:48");
}

/// Puts a snapshot in every status in turn, and looks at what is described.
fn in_every_status(mut look: impl FnMut(SnapshotStatus, &Value)) {
    let store = Store::new();
    let disk = store.disk(1);
    let id = store.pool.create_snapshot(disk.id, SnapshotSpec::new()).unwrap().id;
    for &status in SnapshotStatus::ALL {
        let shown = store.in_status(id, status);
        look(status, &store.cbs("DescribeSnapshots"));
        drop(shown);
        store.pool.reset_snapshot_status(id, SnapshotStatus::Available).unwrap();
    }
}

#[test]
fn op_079_percent_is_100_for_every_created_snapshot() {
    let mut seen = 0;
    in_every_status(|status, answer| {
        for item in answer["snapshotSet"].as_array().unwrap() {
            let made = !matches!(status, SnapshotStatus::Creating | SnapshotStatus::BackingUp);
            assert_eq!(item["percent"], if made { 100 } else { 0 }, "{status}");
            seen += 1;
        }
    });
    assert_eq!(seen, 4);
}

#[test]
fn op_080_the_status_is_one_of_three_or_the_snapshot_is_not_shown() {
    in_every_status(|status, answer| {
        let want = match status {
            SnapshotStatus::Available => Some("normal"),
            SnapshotStatus::Creating | SnapshotStatus::BackingUp => Some("creating"),
            SnapshotStatus::Rollbacking => Some("rollbacking"),
            _ => None,
        };
        let shown: Vec<_> =
            answer["snapshotSet"].as_array().unwrap().iter().map(|s| &s["snapshotStatus"]).collect();
        assert_eq!(shown, want.into_iter().collect::<Vec<_>>(), "{status}");
        assert_eq!(answer["totalCount"], shown.len());
    });
}

#[test]
fn op_081_only_normal_snapshots_are_rolled_back_or_used_for_disks() {
    let store = Store::new();
    let disk = store.disk(1);
    let snapshot = store.pool.create_snapshot(disk.id, SnapshotSpec::new()).unwrap();
    let apply = format!("ApplySnapshot&snapshotId={}&storageId={}", snapshot.alias, disk.alias);
    for (status, code) in [
        (SnapshotStatus::Creating, 16027),
        (SnapshotStatus::BackingUp, 16027),
        (SnapshotStatus::Rollbacking, 9003),
        (SnapshotStatus::Deleting, 9003),
    ] {
        let job = store.pool.begin_snapshot_job(snapshot.id, status).unwrap();
        assert_eq!(store.refused_cbs(&apply), code, "{status}");
        assert!(store.pool.create_volume(VolumeSpec::from_snapshot(snapshot.id)).is_err());
        drop(job);
    }
    store.pool.reset_snapshot_status(snapshot.id, SnapshotStatus::Error).unwrap();
    assert_eq!(store.refused_cbs(&apply), 9003);
    store.pool.reset_snapshot_status(snapshot.id, SnapshotStatus::Available).unwrap();
    assert_eq!(store.cbs(&apply)["code"], 0);
    store.pool.create_volume(VolumeSpec::from_snapshot(snapshot.id)).unwrap();
}

#[test]
fn op_082_bad_parameters_get_their_codes() {
    let store = Store::new();
    let bad = store.cbs("DescribeSnapshots&diskType=floppy");
    assert_eq!(keys(&bad), ["code", "codeDesc", "message"]);
    assert_eq!((&bad["code"], &bad["codeDesc"]), (&9003.into(), &"InvalidParameter".into()));
    assert!(bad["message"].as_str().unwrap().contains("diskType"));
    for (query, code) in [
        ("DescribeSnapshots&projectId=x", 9003),
        ("DescribeSnapshots&projectId=", 9003),
        ("DescribeSnapshots&storageIds.x=a", 9003),
        ("DescribeSnapshots&diskType=root&diskType=data", 4000),
        ("DescribeSnapshots&diskType=%ff", 4000),
        ("", 4000),
        ("DescribeStorage", 6100),
        ("describesnapshots", 6100),
        ("CreateSnapshot", 4000),
        ("ModifySnapshot&snapshotName=n", 4000),
        ("ApplySnapshot&snapshotId=s", 4000),
        ("DeleteSnapshot", 4000),
        ("DeleteSnapshot&snapshotIds=[]", 4000),
    ] {
        assert_eq!(store.refused_cbs(query), code, "{query}");
    }
    // Other methods, other content, too much content.
    let put = store.ask(Request::put("/v2/index.php?Action=DescribeSnapshots").body("").unwrap());
    assert_eq!((put.0, &put.1["code"]), (200, &4000.into()));
    let json = Request::post("/v2/index.php").header("content-type", "application/json").body("{}").unwrap();
    assert_eq!(store.ask(json).1["code"], 4000);
    let large =
        Request::post("/v2/index.php?Action=DescribeSnapshots").body(vec![b'&'; MAX_BODY_BYTES + 1]).unwrap();
    let (status, answer) = store.ask(large);
    assert_eq!((status, &answer["code"]), (413, &4000.into()));
}

#[test]
fn op_083_modify_snapshot_changes_the_name_up_to_60_characters() {
    let store = Store::new();
    let disk = store.disk(1);
    let snapshot =
        store.pool.create_snapshot(disk.id, SnapshotSpec::new().name("old").description("d")).unwrap();
    let modify = |name: &str| format!("ModifySnapshot&snapshotId={}&snapshotName={name}", snapshot.alias);
    let sixty = many("%E7%A1%AC", 60);
    assert_eq!(store.cbs(&modify(&sixty)), serde_json::json!({"code": 0, "message": ""}));
    let now = store.pool.snapshot(snapshot.id).unwrap();
    assert_eq!((now.name, now.description), (Some("硬".repeat(60)), Some("d".into())));
    assert!(now.updated_at_micros.is_some());
    assert_eq!(store.refused_cbs(&modify(&many("%E7%A1%AC", 61))), 9003);
    let why = store.cbs(&modify(&many("x", 61)))["message"].as_str().unwrap().to_owned();
    assert!(why.contains("snapshotName") && why.contains("60") && why.contains("61"), "{why}");
    assert_eq!(store.refused_cbs("ModifySnapshot&snapshotId=snap-aaaaaaaa&snapshotName=n"), 16003);
    assert_eq!(store.refused_cbs(&format!("ModifySnapshot&snapshotId={}", snapshot.id)), 4000);
    // The whole of Unicode, signs of the query too.
    store.cbs(&modify("a+b%26c%3D%00%F0%9F%92%BE"));
    assert_eq!(store.pool.snapshot(snapshot.id).unwrap().name.unwrap(), "a b&c=\0💾");
}

#[test]
fn op_084_create_apply_delete() {
    let store = Store::new();
    let (disk, other) = (store.disk(1), store.disk(1));
    store.write(disk.id, 1);
    // Created: attached or not.
    let made = store.cbs(&format!("CreateSnapshot&storageId={}&snapshotName=first", disk.alias));
    assert_eq!(keys(&made), ["code", "message", "snapshotId"]);
    let first = made["snapshotId"].as_str().unwrap().to_owned();
    let native = store.pool.snapshot(store.pool.find_snapshot(&first).unwrap()).unwrap();
    assert_eq!(
        (native.name.as_deref(), native.volume, native.alias.as_str()),
        (Some("first"), disk.id, first.as_str())
    );
    store.pool.attach_server(disk.id, AttachmentSpec::new("vm")).unwrap();
    let second = store.cbs(&format!("CreateSnapshot&storageId={}", disk.id))["snapshotId"]
        .as_str()
        .unwrap()
        .to_owned();
    let unnamed = store.pool.snapshot(store.pool.find_snapshot(&second).unwrap()).unwrap();
    assert_eq!(unnamed.name.as_deref(), Some("Unnamed"));
    // Rolled back: not while it is attached, and no other disk.
    let apply =
        |snapshot: &str, storage: &str| format!("ApplySnapshot&snapshotId={snapshot}&storageId={storage}");
    assert_eq!(store.refused_cbs(&apply(&first, &disk.alias)), 16005);
    store.pool.detach_server(disk.id, None).unwrap();
    store.write(disk.id, 2);
    assert_eq!(store.refused_cbs(&apply(&first, &other.alias)), 9003);
    assert_eq!(store.refused_cbs(&apply("snap-nowhere0", &disk.alias)), 16003);
    assert_eq!(store.refused_cbs(&apply(&first, "disk-nowhere0")), 5000);
    assert_eq!(store.read(disk.id), 2);
    assert_eq!(store.cbs(&apply(&first, &disk.alias)), serde_json::json!({"code": 0, "message": ""}));
    assert_eq!(store.read(disk.id), 1);
    // Statuses and limits.
    let create = format!("CreateSnapshot&storageId={}", disk.alias);
    for (status, code) in [(VolumeStatus::BackingUp, 16027), (VolumeStatus::Extending, 16005)] {
        let job = store.pool.begin_volume_job(disk.id, status).unwrap();
        assert_eq!(store.refused_cbs(&create), code, "{status}");
        drop(job);
    }
    assert_eq!(store.refused_cbs("CreateSnapshot&storageId=disk-nowhere0"), 5000);
    assert_eq!(store.refused_cbs(&format!("{create}&snapshotName={}", many("x", 61))), 9003);
    let two = Limits::cbs().snapshots_per_volume(Some(2));
    let limited = Store { pool: store.pool.clone(), config: Config::new().cbs_limits(two) };
    assert_eq!(limited.refused_cbs(&create), 16006);
    // Deleted: each id is reported, whatever became of the others.
    let held = store.pool.create_snapshot(disk.id, SnapshotSpec::new()).unwrap();
    store.pool.hold_snapshot(held.id).unwrap();
    let failed = store.pool.create_snapshot(disk.id, SnapshotSpec::new()).unwrap();
    store.pool.reset_snapshot_status(failed.id, SnapshotStatus::ErrorDeleting).unwrap();
    let ids = [first.as_str(), "aasd", &held.alias, &failed.alias, &second, &first];
    let ids: Vec<String> = ids.iter().enumerate().map(|(n, id)| format!("snapshotIds.{n}={id}")).collect();
    let answer = store.cbs(&format!("DeleteSnapshot&{}", ids.join("&")));
    assert_eq!((&answer["code"], &answer["message"]), (&0.into(), &"".into()));
    let detail = &answer["detail"];
    assert_eq!(keys(detail).len(), 5);
    assert_eq!(detail[&first], serde_json::json!({"code": 0, "message": "return successfully!"}));
    assert_eq!(detail["aasd"], serde_json::json!({"code": 16003, "message": "snap not exist"}));
    assert_eq!(detail[&held.alias]["code"], 16005);
    assert_eq!(detail[&failed.alias]["code"], 5100);
    assert_eq!(detail[&second]["code"], 0);
    assert_eq!(store.pool.volume(disk.id).unwrap().snapshot_count, 2);
    assert_eq!(store.refused_cbs(&apply(&first, &disk.alias)), 16003);
    // A snapshot of a backup is no target.
    let run = store.pool.begin_backup(other.id, SnapshotSpec::new()).unwrap();
    let owned = run.finish().unwrap().alias;
    assert_eq!(store.refused_cbs(&apply(&owned, &other.alias)), 6100);
}

#[test]
fn op_098_random_requests_are_answered_and_refused_ones_leave_no_trace() {
    let store = cbs::store();
    let mut random = fastrand::Rng::with_seed(6);
    let mut seen: BTreeMap<(String, i64), u32> = BTreeMap::new();
    let mut before = store.face();
    for _ in 0..10_000 {
        let bytes: Vec<u8> = (0..random.usize(0..120)).map(|_| random.u8(..)).collect();
        if let Some(kind) = cbs::one_request(&store, &bytes, &mut before) {
            *seen.entry(kind).or_default() += 1;
        }
        while store.pool.step(64).unwrap() {}
    }
    println!("{seen:?}");
    for (kind, code) in
        [("totalCount", 0), ("snapshotId", 0), ("detail", 0), ("", 0), ("", 16003), ("", 16006), ("", 5000)]
    {
        assert!(seen.contains_key(&(kind.to_owned(), code)), "the requests reach {kind} {code}: {seen:?}");
    }
    assert!(store.pool.check(snapvol::CheckOptions::new(), &mut |_| {}).unwrap().is_clean());
}
