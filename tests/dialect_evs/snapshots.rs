//! Snapshots: OP-001 to OP-034.

use http::Method;
use serde_json::{Value, json};
use snapvol::dialect::Config;
use snapvol::{Limits, SnapshotSpec, SnapshotStatus, VolumeStatus, Warning};

use super::*;

const NINE: [&str; 9] =
    ["status", "description", "created_at", "metadata", "volume_id", "size", "id", "name", "updated_at"];

fn new(volume: &str, mut more: Value) -> Value {
    more["volume_id"] = json!(volume);
    json!({ "snapshot": more })
}

#[test]
fn op_001_both_paths_create_snapshots_alike() {
    let cloud = Cloud::new();
    let volume = cloud.volume();
    let made: Vec<Reply> = ["snapshots", "cloudsnapshots"]
        .map(|path| cloud.post(path, new(&volume, json!({ "name": "s" }))).is(202))
        .into();
    assert_eq!(kinds(&made[0].body["snapshot"]), kinds(&made[1].body["snapshot"]));
    assert_eq!(cloud.get("snapshots").ids("snapshots"), cloud.get("cloudsnapshots").ids("snapshots"));
    assert_eq!(cloud.get("snapshots").ids("snapshots").len(), 2);
}

#[test]
fn op_002_the_volume_is_required_and_has_to_be_there() {
    let cloud = Cloud::new();
    cloud.refuses(400, "EVS.5400", |c| c.post("snapshots", json!({ "snapshot": { "name": "s" } })));
    cloud.refuses(400, "EVS.5400", |c| c.post("snapshots", new(NOBODY, json!({}))["snapshot"].clone()));
    cloud.refuses(404, "EVS.5404", |c| c.post("snapshots", new(NOBODY, json!({}))));
    cloud.refuses(404, "EVS.5404", |c| c.post("snapshots", new("no id at all", json!({}))));
    let v3 = Cloud::new().v3();
    let null = json!({ "snapshot": { "volume_id": null } });
    v3.refuses(404, "EVS.5404", |c| c.post("snapshots", null.clone()));
    cloud.refuses(400, "EVS.5400", |c| c.post("snapshots", null));
}

#[test]
fn op_003_an_attached_volume_needs_force() {
    let cloud = Cloud::new();
    let volume = cloud.volume();
    cloud.attach(&volume, "vm");
    for more in [json!({}), json!({ "force": false }), json!({ "force": null })] {
        cloud.refuses(400, "EVS.5400", |c| c.post("snapshots", new(&volume, more)));
    }
}

#[test]
fn op_004_force_takes_it_attached_or_not() {
    let cloud = Cloud::new();
    let volume = cloud.volume();
    cloud.post("snapshots", new(&volume, json!({ "force": true }))).is(202);
    cloud.attach(&volume, "vm");
    cloud.post("snapshots", new(&volume, json!({ "force": true }))).is(202);
    cloud.post("snapshots", new(&volume, json!({ "force": "True" }))).is(202);
}

#[test]
fn op_005_force_does_not_help_in_any_other_status() {
    let cloud = Cloud::new();
    let volume = cloud.volume();
    for status in VolumeStatus::ALL.iter().filter(|s| s.is_error()) {
        cloud.pool.reset_volume_status(volume_id(&volume), *status).unwrap();
        cloud.refuses(400, "EVS.5400", |c| c.post("snapshots", new(&volume, json!({ "force": true }))));
    }
    cloud.pool.reset_volume_status(volume_id(&volume), VolumeStatus::Available).unwrap();
    cloud.action(&volume, json!({ "os-reserve": {} })).is(202);
    cloud.refuses(400, "EVS.5400", |c| c.post("snapshots", new(&volume, json!({ "force": true }))));
}

#[test]
fn op_006_metadata_is_kept_and_absent_is_empty() {
    let cloud = Cloud::new();
    let volume = cloud.volume();
    let made = cloud.post("snapshots", new(&volume, json!({ "metadata": { "k": "v" } }))).is(202);
    assert_eq!(made.body["snapshot"]["metadata"], json!({ "k": "v" }));
    for more in [json!({}), json!({ "metadata": null }), json!({ "metadata": {} })] {
        let made = cloud.post("snapshots", new(&volume, more)).is(202);
        assert_eq!(made.body["snapshot"]["metadata"], json!({}));
    }
    for (code, bad) in
        [("EVS.5400", json!({ "k": null })), ("EVS.1018", json!({ "k": 1 })), ("EVS.1018", json!("k"))]
    {
        cloud.refuses(400, code, |c| c.post("snapshots", new(&volume, json!({ "metadata": bad }))));
    }
}

#[test]
fn op_007_description_may_be_null_and_has_255_bytes() {
    let cloud = Cloud::new();
    let volume = cloud.volume();
    for more in [json!({}), json!({ "description": null })] {
        let made = cloud.post("snapshots", new(&volume, more)).is(202);
        assert_eq!(made.body["snapshot"]["description"], Value::Null);
    }
    cloud.post("snapshots", new(&volume, json!({ "description": "d".repeat(255) }))).is(202);
    cloud.refuses(400, "EVS.5400", |c| {
        c.post("snapshots", new(&volume, json!({ "description": "d".repeat(256) })))
    });
}

#[test]
fn op_008_name_has_255_bytes_not_characters() {
    let cloud = Cloud::new();
    let volume = cloud.volume();
    for good in ["n".repeat(255), "快".repeat(85), String::new()] {
        let made = cloud.post("snapshots", new(&volume, json!({ "name": good }))).is(202);
        assert_eq!(made.body["snapshot"]["name"], good);
    }
    for bad in ["n".repeat(256), "快".repeat(86)] {
        cloud.refuses(400, "EVS.5400", |c| c.post("snapshots", new(&volume, json!({ "name": bad }))));
        // What can be said without looking comes before what is not there.
        cloud.refuses(400, "EVS.5400", |c| c.post("snapshots", new(NOBODY, json!({ "name": bad }))));
    }
}

#[test]
fn op_009_the_prefix_of_backups_is_accepted_and_means_nothing() {
    let cloud = Cloud::new();
    let volume = cloud.volume();
    let made = cloud.post("snapshots", new(&volume, json!({ "name": "autobk_snapshot_x" }))).is(202);
    let id = text(&made.body["snapshot"]["id"]);
    let native = cloud.pool.snapshot(snapshot_id(&id)).unwrap();
    assert_eq!((native.warning(), native.backup_owned), (Some(Warning::BackupPrefix), false));
    cloud.make(json!({ "snapshot_id": id }));
    let strict = Cloud::with(Config::new().evs_limits(Limits::evs().refuse_backup_prefix(true)));
    let volume = strict.volume();
    strict.refuses(400, "EVS.5400", |c| {
        c.post("snapshots", new(&volume, json!({ "name": "autobk_snapshot_x" })))
    });
}

#[test]
fn op_010_to_015_the_sample_request_yields_the_sample_answer() {
    let cloud = Cloud::new();
    let mut request = sample(include_str!("../golden/evs/create_snapshot.request.json"));
    let want = sample(include_str!("../golden/evs/create_snapshot.answer.json"));
    let volume = cloud.volume();
    request["snapshot"]["volume_id"] = json!(volume);
    let reply = cloud.post("snapshots", request).is(202);
    let made = &reply.body["snapshot"];
    assert_eq!((keys(&reply.body), keys(made)), (set(&["snapshot"]), set(&NINE)));
    assert_eq!(kinds(made), kinds(&want["snapshot"]));
    let mut same = want["snapshot"].clone();
    for own in ["id", "volume_id", "created_at", "updated_at"] {
        same[own] = made[own].clone();
    }
    assert_eq!(*made, same);
    assert_eq!(
        (&made["volume_id"], &made["status"], &made["size"]),
        (&json!(volume), &json!("creating"), &json!(1))
    );
    assert_time(&made["created_at"]);
    assert_eq!(made["updated_at"], made["created_at"]);
    let id = text(&made["id"]);
    let later = cloud.get(&format!("snapshots/{id}")).is(200).body["snapshot"].clone();
    assert_eq!((&later["status"], &later["updated_at"]), (&json!("available"), &Value::Null));
    assert_eq!(later["created_at"], made["created_at"]);
}

#[test]
fn op_016_the_eighth_snapshot_is_refused_until_one_goes() {
    let cloud = Cloud::new();
    let volume = cloud.volume();
    cloud.pool.begin_backup(volume_id(&volume), SnapshotSpec::new()).unwrap().finish().unwrap();
    let seven: Vec<String> = (0..7).map(|_| cloud.snapshot(&volume)).collect();
    cloud.refuses(413, "EVS.5413", |c| c.post("snapshots", new(&volume, json!({}))));
    cloud.delete(&format!("snapshots/{}", seven[0])).is(202);
    cloud.snapshot(&volume);
    let native = Cloud::with(Config::new().evs_limits(Limits::native()));
    let volume = native.volume();
    (0..9).for_each(|_| drop(native.snapshot(&volume)));
}

#[test]
fn op_017_and_018_the_list_has_the_nine_keys_and_no_link_while_it_is_not_full() {
    let cloud = Cloud::with(Config::new().null_links(true));
    let volume = cloud.volume();
    for n in 1..=4 {
        cloud.post("snapshots", new(&volume, json!({ "name": format!("test0{n}") }))).is(202);
    }
    let want = sample(include_str!("../golden/evs/snapshots.answer.json"));
    let mut got = cloud.get("snapshots").is(200).body;
    assert_eq!((keys(&got), &got["snapshots_links"]), (keys(&want), &Value::Null));
    // Newest first; the sample's order is no rule.
    got["snapshots"].as_array_mut().unwrap().reverse();
    for (got, want) in got["snapshots"].as_array().unwrap().iter().zip(want["snapshots"].as_array().unwrap())
    {
        assert_eq!((keys(got), kinds(got)), (set(&NINE), kinds(want)));
        assert_eq!(
            (&got["name"], &got["size"], &got["status"]),
            (&want["name"], &want["size"], &want["status"])
        );
        assert_eq!((&got["description"], &got["updated_at"]), (&Value::Null, &Value::Null));
    }
    let plain = Cloud { config: Config::new(), ..cloud };
    assert_eq!(keys(&plain.get("snapshots").body), set(&["snapshots"]));
}

#[test]
fn op_019_filters_combine() {
    let cloud = Cloud::new();
    cloud.pool.set_zone("az2", true).unwrap();
    let (a, b) = (cloud.volume(), cloud.make(json!({ "availability_zone": "az2" })));
    for (volume, name) in [(&a, "x"), (&a, "y"), (&b, "x")] {
        cloud.post("snapshots", new(volume, json!({ "name": name }))).is(202);
    }
    let count = |query: &str| cloud.get(query).is(200).ids("snapshots").len();
    assert_eq!(count("snapshots?name=x"), 2);
    assert_eq!(count(&format!("snapshots?name=x&volume_id={a}")), 1);
    assert_eq!(count("snapshots?status=available"), 3);
    assert_eq!(count("snapshots?status=error"), 0);
    assert_eq!(count(&format!("snapshots?volume_id={NOBODY}")), 0);
    assert_eq!(count("snapshots?volume_id=none"), 0);
    assert_eq!(count("snapshots/detail?availability_zone=az2"), 1);
    assert_eq!(count("snapshots?availability_zone=az2"), 3);
    cloud.refuses(400, "EVS.1031", |c| c.get("snapshots?status=nonsense"));
    cloud.refuses(400, "EVS.1041", |c| c.get("snapshots/detail?availability_zone="));
    assert_eq!(Cloud::new().v3().get("snapshots?status=nonsense").is(200).ids("snapshots").len(), 0);
}

#[test]
fn op_020_pages_visit_each_snapshot_once() {
    let cloud = Cloud::with(Config::new().evs_limits(Limits::evs().snapshots_per_volume(None)));
    let volume = cloud.volume();
    let mut want: Vec<String> = (0..10).map(|_| cloud.snapshot(&volume)).collect();
    want.reverse();
    for list in ["snapshots", "snapshots/detail", "cloudsnapshots/detail"] {
        let mut seen = Vec::new();
        let mut at = format!("/v2/{P}/{list}?limit=3&status=available");
        loop {
            let page = cloud.raw(Method::GET, &at, b"").is(200);
            seen.extend(page.ids("snapshots"));
            let Some(next) = page.body.get("snapshots_links") else { break };
            assert_eq!(next[0]["rel"], "next");
            let href = text(&next[0]["href"]);
            assert!(
                href.contains("limit=3") && href.contains(&format!("marker={}", seen.last().unwrap())),
                "{href}"
            );
            at = href.strip_prefix("http://evs.example:8776").unwrap().to_owned();
        }
        assert_eq!(seen, want);
    }
    assert_eq!(cloud.get("snapshots?offset=4&limit=2").ids("snapshots"), want[4..6]);
    assert_eq!(cloud.get(&format!("snapshots?marker={}&offset=1", want[2])).ids("snapshots"), want[4..]);
    assert_eq!(cloud.get("snapshots?limit=1000").is(200).ids("snapshots").len(), 10);
    assert_eq!(cloud.get("cloudsnapshots/detail?limit=2").body["count"], 10);
    assert!(cloud.get("snapshots/detail?limit=2").body.get("count").is_none());
    for (code, bad) in [
        ("EVS.2142", "limit=1001"),
        ("EVS.5400", "limit=0"),
        ("EVS.5400", "limit=-1"),
        ("EVS.5400", "limit=x"),
        ("EVS.5400", "offset=x"),
        ("EVS.5400", "offset=-1"),
        ("EVS.1039", "sort_key=color"),
        ("EVS.1040", "sort_dir=up"),
    ] {
        cloud.refuses(400, code, |c| c.get(&format!("snapshots?{bad}")));
    }
    cloud.refuses(404, "EVS.5404", |c| c.get(&format!("snapshots?marker={NOBODY}")));
    let v3 = cloud.v3();
    assert_eq!(v3.get("snapshots?limit=0").is(200).ids("snapshots").len(), 0);
    assert_eq!(v3.get("cloudsnapshots/detail?limit=0").is(200).body, json!({ "snapshots": [], "count": 10 }));
    assert_eq!(v3.get("snapshots?limit=1001").is(200).ids("snapshots").len(), 10);
    assert!(v3.get("snapshots?limit=10").body.get("snapshots_links").is_some());
}

#[test]
fn op_020_a_page_has_a_thousand_unless_said() {
    let cloud = Cloud::with(Config::new().evs_limits(Limits::native()));
    let volume = volume_id(&cloud.volume());
    let take = |b: &mut snapvol::Batch<'_>| {
        (0..500).try_for_each(|_| b.create_snapshot(volume, SnapshotSpec::new()).map(drop))
    };
    (0..2).for_each(|_| cloud.pool.batch(take).unwrap());
    cloud.pool.create_snapshot(volume, SnapshotSpec::new()).unwrap();
    let page = cloud.get("snapshots").is(200);
    let ids = page.ids("snapshots");
    assert_eq!(ids.len(), 1000);
    let href = text(&page.body["snapshots_links"][0]["href"]);
    assert!(href.ends_with(&format!("?limit=1000&marker={}", ids[999])), "{href}");
    let rest = cloud.get(&format!("snapshots?marker={}", ids[999])).is(200);
    assert_eq!((rest.ids("snapshots").len(), keys(&rest.body)), (1, set(&["snapshots"])));
    assert_eq!(cloud.get("cloudsnapshots/detail").is(200).body["count"], 1001);
}

#[test]
fn op_021_detail_and_show_add_progress_and_project() {
    let cloud = Cloud::new();
    let id = cloud.snapshot(&cloud.volume());
    let more = ["os-extended-snapshot-attributes:progress", "os-extended-snapshot-attributes:project_id"];
    let show = cloud.get(&format!("snapshots/{id}")).is(200).body["snapshot"].clone();
    let detail = cloud.get("snapshots/detail").is(200).body["snapshots"][0].clone();
    assert_eq!(show, detail);
    assert_eq!(keys(&show), &set(&NINE) | &set(&more));
    assert_eq!((&show[more[0]], &show[more[1]]), (&json!("100%"), &json!(P)));
}

#[test]
fn op_022_update_changes_name_and_description() {
    let cloud = Cloud::new();
    let id = cloud.snapshot(&cloud.volume());
    for path in ["snapshots", "cloudsnapshots"] {
        let body = json!({ "snapshot": { "name": path, "description": "d" } });
        let changed = cloud.put(&format!("{path}/{id}"), body).is(200).body["snapshot"].clone();
        assert_eq!((&changed["name"], &changed["description"]), (&json!(path), &json!("d")));
        assert_time(&changed["updated_at"]);
        assert_eq!(keys(&changed), set(&NINE));
    }
    let at = format!("snapshots/{id}");
    // One of the two: the other stays, and lists show when that was.
    for (given, want) in [
        (json!({ "name": "n" }), ("n", "d")),
        (json!({ "description": "e" }), ("n", "e")),
        (json!({ "name": "", "description": null }), ("", "e")),
    ] {
        let changed = cloud.put(&at, json!({ "snapshot": given })).is(200).body["snapshot"].clone();
        assert_eq!((&changed["name"], &changed["description"]), (&json!(want.0), &json!(want.1)));
        assert!(changed["updated_at"].as_str() > changed["created_at"].as_str());
        assert_eq!(cloud.get("snapshots").body["snapshots"][0], changed);
    }
    cloud.refuses(400, "EVS.5400", |c| c.put(&at, json!({ "snapshot": { "name": "n".repeat(256) } })));
    cloud.refuses(400, "EVS.1007", |c| c.put(&at, json!({ "snapshot": {} })));
    cloud.refuses(400, "EVS.5400", |c| c.put(&at, json!({ "volume": { "name": "n" } })));
    cloud.refuses(404, "EVS.5404", |c| {
        c.put(&format!("snapshots/{NOBODY}"), json!({ "snapshot": { "name": "n" } }))
    });
}

#[test]
fn op_023_and_024_delete_in_available_or_error_and_nowhere_else() {
    let cloud = Cloud::new();
    let volume = cloud.volume();
    for status in [SnapshotStatus::Available, SnapshotStatus::Error] {
        let id = cloud.snapshot(&volume);
        cloud.pool.reset_snapshot_status(snapshot_id(&id), status).unwrap();
        let gone = cloud.delete(&format!("snapshots/{id}")).is(202);
        assert_eq!(gone.text, "");
        cloud.get(&format!("snapshots/{id}")).refused(404, "EVS.5404");
        cloud.refuses(404, "EVS.5404", |c| c.delete(&format!("cloudsnapshots/{id}")));
    }
    let id = cloud.snapshot(&volume);
    cloud.pool.reset_snapshot_status(snapshot_id(&id), SnapshotStatus::ErrorDeleting).unwrap();
    cloud.refuses(400, "EVS.1047", |c| c.delete(&format!("snapshots/{id}")));
}

#[test]
fn op_025_deleting_the_snapshot_of_a_backup_makes_the_next_one_full() {
    let cloud = Cloud::new();
    let volume = volume_id(&cloud.volume());
    let owned = cloud.pool.begin_backup(volume, SnapshotSpec::new()).unwrap().finish().unwrap();
    assert!(owned.name.unwrap().starts_with("autobk_snapshot_"));
    assert!(cloud.pool.backup_base(volume).unwrap().is_some());
    cloud.delete(&format!("snapshots/{}", owned.id)).is(202);
    assert!(cloud.pool.backup_base(volume).unwrap().is_none());
    // The native call warns; one that is not of a backup it deletes without a word.
    let owned = cloud.pool.begin_backup(volume, SnapshotSpec::new()).unwrap().finish().unwrap();
    let deletion = cloud.pool.delete_snapshot(owned.id).unwrap();
    assert_eq!(deletion.warnings(), [Warning::NextBackupIsFull]);
    let plain = cloud.pool.create_snapshot(volume, SnapshotSpec::new()).unwrap();
    assert!(cloud.pool.delete_snapshot(plain.id).unwrap().warnings().is_empty());
}

#[test]
fn op_026_deleting_a_snapshot_leaves_everything_else_readable() {
    let cloud = Cloud::new();
    let volume = cloud.volume();
    cloud.write(&volume, 0, 1);
    let (first, second) = (cloud.snapshot(&volume), {
        cloud.write(&volume, 0, 2);
        cloud.snapshot(&volume)
    });
    let clone = cloud.make(json!({ "snapshot_id": first }));
    cloud.write(&volume, 0, 3);
    cloud.delete(&format!("snapshots/{first}")).is(202);
    let other = cloud.make(json!({ "snapshot_id": second }));
    assert_eq!((cloud.read(&volume, 0), cloud.read(&clone, 0), cloud.read(&other, 0)), (3, 1, 2));
}

fn roll(cloud: &Cloud, snapshot: &str, body: Value) -> Reply {
    cloud.post(&format!("os-vendor-snapshots/{snapshot}/rollback"), json!({ "rollback": body }))
}

#[test]
fn op_027_rollback_answers_with_the_volume() {
    let cloud = Cloud::new();
    let volume = cloud.volume();
    let id = cloud.snapshot(&volume);
    let mut request = sample(include_str!("../golden/evs/rollback.request.json"));
    let mut want = sample(include_str!("../golden/evs/rollback.answer.json"));
    request["rollback"]["volume_id"] = json!(volume);
    want["rollback"]["volume_id"] = json!(volume);
    for path in ["os-vendor-snapshots", "cloudsnapshots"] {
        let rolled = cloud.post(&format!("{path}/{id}/rollback"), request.clone()).is(202);
        assert_eq!(rolled.body, want);
    }
}

#[test]
fn op_028_rollback_to_another_volume_is_refused() {
    let cloud = Cloud::new();
    let (volume, other) = (cloud.volume(), cloud.volume());
    let id = cloud.snapshot(&volume);
    cloud.write(&volume, 0, 1);
    cloud.write(&other, 0, 2);
    cloud.refuses(400, "EVS.5400", |c| roll(c, &id, json!({ "volume_id": other })));
    cloud.refuses(404, "EVS.5404", |c| roll(c, &id, json!({ "volume_id": NOBODY })));
    cloud.refuses(404, "EVS.5404", |c| roll(c, NOBODY, json!({ "volume_id": volume })));
    assert_eq!((cloud.read(&volume, 0), cloud.read(&other, 0)), (1, 2));
}

#[test]
fn op_029_rollback_works_in_two_statuses_only() {
    let cloud = Cloud::new();
    let volume = cloud.volume();
    let id = cloud.snapshot(&volume);
    let body = json!({ "volume_id": volume });
    for status in VolumeStatus::ALL.iter().filter(|s| s.is_error()) {
        cloud.pool.reset_volume_status(volume_id(&volume), *status).unwrap();
        if *status == VolumeStatus::ErrorRollbacking {
            roll(&cloud, &id, body.clone()).is(202);
            assert_eq!(cloud.status(&volume), "available");
        } else {
            cloud.refuses(400, "EVS.5400", |c| roll(c, &id, body.clone()));
        }
    }
    cloud.pool.reset_volume_status(volume_id(&volume), VolumeStatus::Available).unwrap();
    cloud.attach(&volume, "vm");
    cloud.refuses(400, "EVS.5400", |c| roll(c, &id, body));
}

#[test]
fn op_030_the_name_renames_nothing_and_the_volume_is_needed() {
    let cloud = Cloud::new();
    let volume = cloud.make(json!({ "name": "mine" }));
    let id = cloud.snapshot(&volume);
    roll(&cloud, &id, json!({ "volume_id": volume, "name": "another" })).is(202);
    roll(&cloud, &id, json!({ "volume_id": volume })).is(202);
    assert_eq!(cloud.show(&volume)["name"], "mine");
    cloud.refuses(400, "EVS.5400", |c| roll(c, &id, json!({ "name": "mine" })));
    cloud.refuses(400, "EVS.1018", |c| roll(c, &id, json!({ "name": 5, "volume_id": volume })));
}

#[test]
fn op_031_and_032_after_rollback_the_data_is_the_snapshots() {
    let cloud = Cloud::new();
    let volume = cloud.volume();
    cloud.write(&volume, 0, 1);
    let first = cloud.snapshot(&volume);
    cloud.write(&volume, 0, 2);
    let second = cloud.snapshot(&volume);
    cloud.write(&volume, 8192, 3);
    for (id, want) in [(&first, 1), (&second, 2), (&first, 1)] {
        roll(&cloud, id, json!({ "volume_id": volume })).is(202);
        assert_eq!((cloud.read(&volume, 0), cloud.read(&volume, 8192)), (want, 0));
        assert_eq!(cloud.status(&volume), "available");
        let all = cloud.get("snapshots?status=available").ids("snapshots");
        assert_eq!(all, [second.clone(), first.clone()]);
    }
    // What a rollback that failed after it began leaves behind can be deleted, too.
    cloud.pool.reset_volume_status(volume_id(&volume), VolumeStatus::ErrorRollbacking).unwrap();
    cloud.delete(&format!("volumes/{volume}")).is(202);
}

#[test]
fn op_033_rollback_after_an_extend_keeps_the_size() {
    let cloud = Cloud::new();
    let volume = cloud.volume();
    cloud.write(&volume, 0, 1);
    let id = cloud.snapshot(&volume);
    cloud.action(&volume, json!({ "os-extend": { "new_size": 2 } })).is(202);
    cloud.write(&volume, GIB + 4096, 9);
    roll(&cloud, &id, json!({ "volume_id": volume })).is(202);
    assert_eq!(cloud.show(&volume)["size"], 2);
    assert_eq!((cloud.read(&volume, 0), cloud.read(&volume, GIB + 4096)), (1, 0));
}

#[test]
fn op_034_rollback_needs_an_available_snapshot_that_is_of_no_backup() {
    let cloud = Cloud::new();
    let volume = cloud.volume();
    let id = cloud.snapshot(&volume);
    let body = json!({ "volume_id": volume });
    cloud.pool.reset_snapshot_status(snapshot_id(&id), SnapshotStatus::Error).unwrap();
    cloud.refuses(400, "EVS.5400", |c| roll(c, &id, body.clone()));
    let owned = cloud.pool.begin_backup(volume_id(&volume), SnapshotSpec::new()).unwrap().finish().unwrap();
    cloud.refuses(501, "501", |c| roll(c, &owned.id.to_string(), body));
}
