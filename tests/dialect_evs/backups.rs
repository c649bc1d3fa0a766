//! Backups, in a folder that lives as long as the test: OP-044, OP-066, OP-067.

use std::ops::ControlFlow;
use std::sync::Arc;

use serde_json::{Value, json};
use snapvol::backup::{BackupProgress, BackupSpec, LocalFolder};
use snapvol::{OpenOptions, VolumeSpec};
use tempfile::TempDir;

use super::*;

fn go_on(_: BackupProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn with_folder() -> (Cloud, TempDir) {
    let (cloud, folder) = (Cloud::new(), tempfile::tempdir().unwrap());
    let target = LocalFolder::open(folder.path().join("backups")).unwrap();
    cloud.pool.connect_backup_target("local", Arc::new(target)).unwrap();
    (cloud, folder)
}

fn back_up(cloud: &Cloud, volume: &str, spec: BackupSpec) -> String {
    cloud.pool.create_backup(volume_id(volume), spec, &mut go_on).unwrap().id.to_string()
}

fn local() -> BackupSpec {
    BackupSpec::new("local")
}

fn create(cloud: &Cloud, keys: Value) -> Reply {
    cloud.post("volumes", json!({ "volume": keys }))
}

#[test]
fn op_044_from_a_backup_with_its_size_or_a_larger_one() {
    let (cloud, _folder) = with_folder();
    let volume = cloud.make(json!({ "size": 2 }));
    cloud.write(&volume, 4096, 7);
    let id = back_up(&cloud, &volume, local());
    cloud.write(&volume, 4096, 8);
    cloud.delete(&format!("volumes/{volume}")).is(202);
    for (given, want) in [
        (json!({ "backup_id": id }), 2),
        (json!({ "backup_id": id, "size": 2 }), 2),
        (json!({ "backup_id": id, "size": 3.9, "count": 1, "availability_zone": "az1" }), 3),
    ] {
        let made = create(&cloud, given).is(202).body["volume"].clone();
        assert_eq!((&made["size"], &made["status"]), (&json!(want), &json!("creating")));
        assert_eq!(
            (keys(&made).len(), &made["snapshot_id"], &made["source_volid"]),
            (21, &json!(null), &json!(null))
        );
        let made = text(&made["id"]);
        assert_eq!((cloud.status(&made).as_str(), &cloud.show(&made)["size"]), ("available", &json!(want)));
        assert_eq!((cloud.read(&made, 4096), cloud.read(&made, want * GIB - 4096)), (7, 0));
    }
}

#[test]
fn op_044_what_a_backup_refuses() {
    let (cloud, folder) = with_folder();
    let volume = cloud.make(json!({ "size": 2 }));
    let id = back_up(&cloud, &volume, local());
    cloud.pool.set_zone("az2", true).unwrap();
    for (status, code, given) in [
        (404, "EVS.5404", json!({ "backup_id": NOBODY })),
        (404, "EVS.5404", json!({ "backup_id": NOBODY, "size": 1 })),
        (404, "EVS.5404", json!({ "backup_id": "x" })),
        (404, "EVS.5404", json!({ "backup_id": id.replace('-', "") })),
        (400, "EVS.1022", json!({ "backup_id": id, "size": 1 })),
        (400, "EVS.1010", json!({ "backup_id": id, "size": 0 })),
        (400, "EVS.1010", json!({ "backup_id": id, "size": 1u64 << 40 })),
        (400, "EVS.1051", json!({ "backup_id": id, "count": 2 })),
        (400, "EVS.1051", json!({ "backup_id": NOBODY, "size": 2, "count": 2 })),
        (400, "EVS.1021", json!({ "backup_id": id, "count": 0 })),
        (400, "EVS.1049", json!({ "backup_id": id, "availability_zone": "az2" })),
        (400, "EVS.1020", json!({ "backup_id": id, "volume_type": "none" })),
    ] {
        cloud.refuses(status, code, |c| create(c, given));
    }
    // That of another project is not there.
    cloud.refuses(404, "EVS.5404", |c| {
        let body = json!({ "volume": { "backup_id": id } }).to_string();
        c.raw(Method::POST, "/v2/another/volumes", body.as_bytes())
    });
    // One that is lost is the operator's business, and leaves no volume behind.
    let before = cloud.face();
    std::fs::remove_dir_all(folder.path().join("backups")).unwrap();
    std::fs::create_dir(folder.path().join("backups")).unwrap();
    let lost = create(&cloud, json!({ "backup_id": id })).is(500);
    assert_eq!(lost.body["computeFault"]["code"], "EVS.5500");
    assert_eq!(before, cloud.face());
}

#[test]
fn op_044_only_while_the_backup_is_available() {
    let (cloud, _folder) = with_folder();
    let volume = cloud.volume();
    cloud.write(&volume, 0, 1);
    let status = |id: &str| text(&cloud.get(&format!("backups/{id}")).is(200).body["backup"]["status"]);
    let mut asked = 0;
    let id = cloud.pool.create_backup(volume_id(&volume), local(), &mut |_| {
        let id = cloud.get("backups").is(200).ids("backups").remove(0);
        assert_eq!(status(&id), "creating");
        cloud.refuses(400, "EVS.1044", |c| create(c, json!({ "backup_id": id })));
        asked += 1;
        ControlFlow::Continue(())
    });
    let id = id.unwrap().id;
    let spec = VolumeSpec::from_backup(id, GIB);
    let restored = cloud.pool.create_volume_from_backup(spec, &mut |_| {
        assert_eq!(status(&id.to_string()), "restoring");
        cloud.refuses(400, "EVS.1044", |c| create(c, json!({ "backup_id": id.to_string() })));
        asked += 1;
        ControlFlow::Continue(())
    });
    restored.unwrap();
    assert!(asked >= 2, "nobody was asked meanwhile");
}

#[test]
fn op_044_without_its_target_a_backup_is_listed_and_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pool");
    let connect = |cloud: &Cloud| {
        let target = LocalFolder::open(folder.path().join("backups")).unwrap();
        cloud.pool.connect_backup_target("local", Arc::new(target)).unwrap();
    };
    let cloud = Cloud { pool: Pool::create(&path, CreateOptions::new()).unwrap(), ..Cloud::new() };
    connect(&cloud);
    let volume = cloud.volume();
    cloud.write(&volume, 0, 1);
    let id = back_up(&cloud, &volume, local());
    cloud.pool.close().unwrap();
    // Targets are connected for as long as a pool is open.
    let cloud = Cloud { pool: Pool::open(&path, OpenOptions::new()).unwrap(), ..Cloud::new() };
    assert_eq!(cloud.get("backups").ids("backups"), std::slice::from_ref(&id));
    cloud.refuses(404, "EVS.5404", |c| create(c, json!({ "backup_id": id })));
    connect(&cloud);
    let made = create(&cloud, json!({ "backup_id": id })).is(202);
    assert_eq!(cloud.read(made.body["volume"]["id"].as_str().unwrap(), 0), 1);
}

#[test]
fn op_044_a_backup_of_a_native_volume_is_rounded_up_to_whole_gib() {
    let (cloud, _folder) = with_folder();
    let native = cloud.pool.create_volume(VolumeSpec::blank(GIB + 4096).project(P)).unwrap().id.to_string();
    let id = back_up(&cloud, &native, local());
    assert_eq!(cloud.get(&format!("backups/{id}")).body["backup"]["size"], 2);
    cloud.refuses(400, "EVS.1022", |c| create(c, json!({ "backup_id": id, "size": 1 })));
    let made = text(&create(&cloud, json!({ "backup_id": id })).is(202).body["volume"]["id"]);
    assert_eq!(cloud.pool.volume(volume_id(&made)).unwrap().size_bytes, 2 * GIB);
}

#[test]
fn op_044_the_type_is_that_of_the_backed_up_volume_unless_another_is_named() {
    let (cloud, _folder) = with_folder();
    let volume = cloud.make(json!({ "volume_type": "SSD" }));
    let id = back_up(&cloud, &volume, local());
    cloud.delete(&format!("volumes/{volume}")).is(202);
    for (given, want) in [(json!(null), "SSD"), (json!("SSD"), "SSD"), (json!("SAS"), "SAS")] {
        let made = create(&cloud, json!({ "backup_id": id, "volume_type": given })).is(202);
        assert_eq!(made.body["volume"]["volume_type"], want);
        assert_eq!(cloud.show(made.body["volume"]["id"].as_str().unwrap())["volume_type"], want);
    }
    // A type that the profile does not know is handed on as it is, as it is from a snapshot.
    let native = VolumeSpec::blank(GIB).project(P).volume_type("gold");
    let native = cloud.pool.create_volume(native).unwrap().id.to_string();
    let id = back_up(&cloud, &native, local());
    let made = create(&cloud, json!({ "backup_id": id })).is(202);
    assert_eq!(made.body["volume"]["volume_type"], "gold");
}

#[test]
fn op_061_delete_leaves_the_backups() {
    let (cloud, _folder) = with_folder();
    let volume = cloud.volume();
    cloud.write(&volume, 8192, 4);
    let id = back_up(&cloud, &volume, local());
    cloud.delete(&format!("volumes/{volume}?cascade=true")).is(202);
    assert!(cloud.get("snapshots").ids("snapshots").is_empty());
    let shown = cloud.get(&format!("backups/{id}")).is(200).body["backup"].clone();
    assert_eq!((&shown["status"], &shown["volume_id"]), (&json!("available"), &json!(volume)));
    let made = text(&create(&cloud, json!({ "backup_id": id })).is(202).body["volume"]["id"]);
    assert_eq!((cloud.read(&made, 8192), cloud.read(&made, 0)), (4, 0));
}

#[test]
fn op_066_what_was_imported_is_seen_by_one_project() {
    let (cloud, folder) = with_folder();
    let volume = cloud.volume();
    let own = back_up(&cloud, &volume, local());
    let import = |cloud: &Cloud| {
        let found = cloud.pool.import_backups("local").unwrap();
        found.into_iter().map(|backup| backup.id.to_string()).collect::<Vec<_>>()
    };
    // Its own, forgotten and found again: that of its volume's project.
    cloud.pool.forget_backup(own.parse().unwrap()).unwrap();
    assert!(cloud.get("backups").is(200).ids("backups").is_empty());
    assert_eq!(import(&cloud), std::slice::from_ref(&own));
    assert_eq!(cloud.get("backups").is(200).ids("backups"), std::slice::from_ref(&own));
    // Those of another pool: of the default project, whatever that is called.
    let other = Cloud { pool: Pool::create_in_memory(CreateOptions::new()).unwrap(), ..Cloud::new() };
    let target = LocalFolder::open(folder.path().join("backups")).unwrap();
    other.pool.connect_backup_target("local", Arc::new(target)).unwrap();
    assert_eq!(import(&other), std::slice::from_ref(&own));
    let of =
        |project: &str| other.raw(Method::GET, &format!("/v2/{project}/backups"), b"").is(200).ids("backups");
    assert_eq!((of("default"), of(P)), (vec![own.clone()], Vec::new()));
    other.pool.set_default_project(P).unwrap();
    assert_eq!((of("default"), of(P)), (Vec::new(), vec![own.clone()]));
    let made = create(&other, json!({ "backup_id": own })).is(202);
    assert_eq!(other.read(made.body["volume"]["id"].as_str().unwrap(), 0), 0);
}

#[test]
fn op_066_backups_in_the_shape_of_the_sample() {
    let (cloud, _folder) = with_folder();
    assert_eq!(cloud.get("backups").is(200).body, json!({ "backups": [] }));
    let volume = cloud.volume();
    let mut made: Vec<String> = (0..3).map(|_| back_up(&cloud, &volume, local())).collect();
    made.reverse();
    let mut want = sample(include_str!("../golden/evs/backups.answer.json"));
    let host = "http://evs.example:8776";
    for (n, one) in want["backups"].as_array_mut().unwrap().iter_mut().enumerate() {
        one["id"] = json!(made[n]);
        one["links"][0]["href"] = json!(format!("{host}/v2/{P}/backups/{}", made[n]));
        one["links"][1]["href"] = json!(format!("{host}/{P}/backups/{}", made[n]));
    }
    want["backups_links"][0]["href"] = json!(format!("{host}/v2/{P}/backups?limit=2&marker={}", made[1]));
    assert_eq!(cloud.get("backups?limit=2").is(200).body, want);
    let rest = cloud.get(&format!("backups?limit=2&marker={}", made[1])).is(200);
    assert_eq!((rest.ids("backups"), keys(&rest.body)), (vec![made[2].clone()], set(&["backups"])));
    assert_eq!(cloud.get("backups?offset=1").ids("backups"), made[1..]);
    assert_eq!(cloud.get("backups?sort=created_at:desc").ids("backups"), made);
    assert!(cloud.get("backups?offset=9").ids("backups").is_empty());
    cloud.refuses(404, "EVS.5404", |c| c.get(&format!("backups?marker={NOBODY}")));
    cloud.refuses(400, "EVS.5400", |c| c.get("backups?limit=0"));
    cloud.refuses(400, "EVS.1039", |c| c.get("backups?sort_key=name"));
    cloud.refuses(400, "EVS.1040", |c| c.get("backups?sort_dir=asc"));
    cloud.refuses(400, "EVS.1031", |c| c.get("backups?status=nonsense"));
    cloud.refuses(404, "EVS.5404", |c| c.get(&format!("backups/{NOBODY}")));
    // No document has these requests.
    cloud.refuses(501, "501", |c| c.post("backups", json!({ "backup": { "volume_id": volume } })));
    cloud.refuses(405, "405", |c| c.put("backups", json!({})));
    cloud.refuses(405, "405", |c| c.delete(&format!("backups/{}", made[0])));
    // Another project has none of them.
    let other = |path: &str| cloud.raw(Method::GET, &format!("/v2/another/{path}"), b"");
    assert!(other("backups").is(200).ids("backups").is_empty());
    other(&format!("backups/{}", made[0])).refused(404, "EVS.5404");
    other(&format!("backups?marker={}", made[0])).refused(404, "EVS.5404");
    let absolute = |reply: Reply| reply.is(200).body["limits"]["absolute"].clone();
    let used = |all: Value| (all["totalBackupsUsed"].clone(), all["totalBackupGigabytesUsed"].clone());
    assert_eq!(used(absolute(cloud.get("limits"))), (json!(3), json!(3)));
    assert_eq!(used(absolute(other("limits"))), (json!(0), json!(0)));
}

#[test]
fn op_066_filters_and_the_full_object() {
    let (cloud, _folder) = with_folder();
    let (a, b) = (cloud.make(json!({ "size": 2 })), cloud.volume());
    let first = back_up(&cloud, &a, local().name("n").description("d"));
    let second = back_up(&cloud, &a, local());
    let third = back_up(&cloud, &b, local().name("n"));
    cloud.delete(&format!("volumes/{b}")).is(202);
    let ids = |query: &str| cloud.get(&format!("backups?{query}")).is(200).ids("backups");
    assert_eq!(ids("name=n"), [third.clone(), first.clone()]);
    assert_eq!(ids(&format!("name=n&volume_id={a}")), std::slice::from_ref(&first));
    assert_eq!(ids(&format!("volume_id={b}")), std::slice::from_ref(&third));
    assert_eq!((ids("status=available").len(), ids("status=error").len()), (3, 0));
    assert_eq!(ids("volume_id=x"), [] as [String; 0]);
    let shown = |id: &str| cloud.get(&format!("backups/{id}")).is(200).body["backup"].clone();
    let detail = cloud.get("backups/detail").is(200).body["backups"].clone();
    assert_eq!(detail, json!([shown(&third), shown(&second), shown(&first)]));
    let (native, mut got) = (cloud.pool.backup(first.parse().unwrap()).unwrap(), shown(&first));
    for time in ["created_at", "data_timestamp"] {
        assert_time(&got[time]);
        got.as_object_mut().unwrap().remove(time);
    }
    assert!(native.object_count > 0 && native.snapshot.is_some());
    let host = "http://evs.example:8776";
    let want = json!({
        "id": first,
        "links": [
            { "href": format!("{host}/v2/{P}/backups/{first}"), "rel": "self" },
            { "href": format!("{host}/{P}/backups/{first}"), "rel": "bookmark" },
        ],
        "name": "n", "description": "d", "status": "available", "availability_zone": "az1", "volume_id": a,
        "snapshot_id": native.snapshot.map(|id| id.to_string()), "size": 2, "object_count": native.object_count,
        "container": "local", "fail_reason": null, "updated_at": null, "has_dependent_backups": true, "is_incremental": false,
        "os-backup-project-attr:project_id": P,
    });
    assert_eq!(got, want);
    assert_eq!(shown(&second)["is_incremental"], true);
}

#[test]
fn op_067_a_backup_has_its_snapshot_and_the_next_one_is_incremental_unless_that_is_deleted() {
    let (cloud, _folder) = with_folder();
    let volume = cloud.volume();
    let run = cloud.pool.create_backup(volume_id(&volume), local(), &mut |_| {
        assert_eq!(cloud.status(&volume), "backing-up");
        let shown = cloud.get("snapshots").body["snapshots"][0].clone();
        assert!(shown["name"].as_str().unwrap().starts_with("autobk_snapshot_"));
        assert_eq!(shown["status"], "backing-up");
        ControlFlow::Continue(())
    });
    let first = run.unwrap();
    assert_eq!(cloud.status(&volume), "available");
    let incremental = |id: &str| cloud.get(&format!("backups/{id}")).body["backup"]["is_incremental"].clone();
    let second = back_up(&cloud, &volume, local());
    let snapshots = cloud.get("snapshots").is(200);
    let [base] = &snapshots.ids("snapshots")[..] else { panic!("{}", snapshots.text) };
    assert_eq!(snapshots.body["snapshots"][0]["status"], "available");
    assert_eq!(cloud.get(&format!("backups/{second}")).body["backup"]["snapshot_id"], json!(base));
    cloud.delete(&format!("snapshots/{base}")).is(202);
    let third = back_up(&cloud, &volume, local());
    assert_eq!(incremental(&first.id.to_string()), false);
    assert_eq!((incremental(&second), incremental(&third)), (json!(true), json!(false)));
}
