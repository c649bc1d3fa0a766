//! Volumes: OP-035 to OP-063, but for OP-044.

use http::Method;
use serde_json::{Value, json};
use snapvol::dialect::Config;
use snapvol::{
    AttachOptions, ImageContent, ImageSpec, Limits, ServerState, Snapshots, VolumeSpec, VolumeStatus,
};

use super::*;

fn image(cloud: &Cloud, min_disk_bytes: u64, id: Option<&str>) -> String {
    let filled = cloud.pool.create_volume(VolumeSpec::blank(8192)).unwrap().id;
    cloud.pool.attach(filled, AttachOptions::new()).unwrap().write_fua_at(&[5; 4096], 0).unwrap();
    let mut spec = ImageSpec::new().name("cirros").public(true).min_disk_bytes(min_disk_bytes);
    if let Some(id) = id {
        spec = spec.id(id.parse().unwrap());
    }
    let image = cloud.pool.create_image(spec).unwrap().id;
    cloud.pool.activate_image(image, filled, ImageContent::new()).unwrap();
    drop(cloud.pool.delete_volume(filled, Snapshots::Refuse).unwrap());
    image.to_string()
}

fn create(cloud: &Cloud, keys: Value) -> Reply {
    cloud.post("volumes", json!({ "volume": keys }))
}

#[test]
fn op_035_to_040_the_sample_request_yields_the_sample_answer() {
    let cloud = Cloud::new();
    cloud.pool.rename_zone("az1", "xxx").unwrap();
    image(&cloud, 0, Some("027cf713-45a6-45f0-ac1b-0ccc57ac12e2"));
    let request = sample(include_str!("../golden/evs/create_volume.request.json"));
    let want = sample(include_str!("../golden/evs/create_volume.answer.json"));
    let reply = cloud.post("volumes", request.clone()).is(202);
    let made = &reply.body["volume"];
    assert_eq!((keys(made).len(), kinds(made)), (21, kinds(&want["volume"])));
    let mut same = want["volume"].clone();
    for own in ["id", "created_at", "links", "user_id"] {
        same[own] = made[own].clone();
    }
    assert_eq!(*made, same);
    assert_time(&made["created_at"]);
    assert!(
        made["user_id"].as_str().is_some_and(|u| u.len() == 32 && u.chars().all(|c| c.is_ascii_hexdigit()))
    );
    let id = text(&made["id"]);
    let (host, tail) = ("http://evs.example:8776", format!("{P}/volumes/{id}"));
    let links = json!([{ "href": format!("{host}/v2/{tail}"), "rel": "self" }, { "href": format!("{host}/{tail}"), "rel": "bookmark" }]);
    assert_eq!(made["links"], links);
    let hint = cloud.pool.volume(volume_id(&id)).unwrap().placement.unwrap();
    assert!(hint.contains("eddc1a3e-4145-45be-98d7-bf6f65af9767"), "{hint}");
    // The hint may stand beside the volume, too.
    let mut beside = request;
    let hints = beside["volume"].as_object_mut().unwrap().remove("OS-SCH-HNT:scheduler_hints").unwrap();
    beside["OS-SCH-HNT:scheduler_hints"] = hints;
    let made = cloud.post("volumes", beside).is(202).body["volume"].clone();
    assert_eq!(cloud.pool.volume(volume_id(&text(&made["id"]))).unwrap().placement.unwrap(), hint);
    // Under the other prefix there is no `shareable`, and links say so.
    let v3 = cloud.v3();
    let made = create(&v3, json!({ "size": 1 })).is(202).body["volume"].clone();
    assert!(made.get("shareable").is_none() && made["links"][0]["href"].as_str().unwrap().contains("/v3/"));
}

#[test]
fn op_037_shareable_and_multiattach_are_one_property() {
    let cloud = Cloud::new();
    for (keys, want) in [
        (json!({}), false),
        (json!({ "shareable": "true" }), true),
        (json!({ "shareable": true }), true),
        (json!({ "multiattach": true }), true),
        (json!({ "multiattach": "True" }), true),
        (json!({ "multiattach": false, "shareable": "true" }), false),
        (json!({ "multiattach": null, "shareable": "true" }), true),
    ] {
        let shown = cloud.show(&cloud.make(keys));
        assert_eq!((&shown["shareable"], &shown["multiattach"]), (&json!(want), &json!(want)));
    }
    cloud.refuses(400, "EVS.1054", |c| create(c, json!({ "size": 1, "shareable": "yes" })));
    cloud.refuses(400, "EVS.1018", |c| create(c, json!({ "size": 1, "multiattach": 1 })));
}

#[test]
fn op_038_and_039_reserved_keys_take_null_only() {
    let cloud = Cloud::new();
    create(
        &cloud,
        json!({ "size": 1, "consistencygroup_id": null, "source_replica": null, "source_volid": null,
        "snapshot_id": null, "imageRef": null, "backup_id": null, "unknown": [1, 2] }),
    )
    .is(202);
    for key in ["consistencygroup_id", "source_replica"] {
        cloud.refuses(501, "501", |c| create(c, json!({ "size": 1, key: NOBODY })));
    }
    cloud.refuses(400, "EVS.5400", |c| {
        create(c, json!({ "size": 1, "OS-SCH-HNT:scheduler_hints": { "k": "h".repeat(4096) } }))
    });
}

#[test]
fn op_041_a_blank_volume_needs_a_size_and_reads_zero() {
    let cloud = Cloud::new();
    for bad in [json!(0), json!(-1), json!(null), json!(32769), json!(1e30), json!(-1e30), json!(i64::MAX)] {
        cloud.refuses(400, "EVS.1010", |c| create(c, json!({ "size": bad })));
    }
    for bad in [json!("x"), json!([]), json!(true), json!({})] {
        cloud.refuses(400, "EVS.1018", |c| create(c, json!({ "size": bad })));
    }
    for (given, want) in [(json!(1), 1), (json!(2.9), 2), (json!("3"), 3), (json!(32768), 32768)] {
        assert_eq!(create(&cloud, json!({ "size": given })).is(202).body["volume"]["size"], want);
    }
    let id = cloud.volume();
    assert_eq!((cloud.read(&id, 0), cloud.read(&id, GIB - 4096)), (0, 0));
}

#[test]
fn op_042_from_a_snapshot_as_large_or_larger() {
    let cloud = Cloud::new();
    let volume = cloud.make(json!({ "size": 2, "volume_type": "SSD" }));
    cloud.write(&volume, 4096, 7);
    let id = cloud.snapshot(&volume);
    cloud.write(&volume, 4096, 8);
    cloud.refuses(400, "EVS.1010", |c| create(c, json!({ "snapshot_id": id, "size": 1 })));
    cloud.refuses(400, "EVS.2096", |c| create(c, json!({ "snapshot_id": id, "volume_type": "SAS" })));
    cloud.refuses(404, "EVS.5404", |c| create(c, json!({ "snapshot_id": NOBODY, "size": 2 })));
    for (size, want) in [(json!(2), 2), (json!(3), 3), (json!(null), 2)] {
        let made = create(&cloud, json!({ "snapshot_id": id, "size": size })).is(202).body["volume"].clone();
        assert_eq!((&made["snapshot_id"], &made["size"]), (&json!(id), &json!(want)));
        let made = text(&made["id"]);
        assert_eq!((cloud.read(&made, 4096), cloud.read(&made, want * GIB - 4096)), (7, 0));
    }
    for key in ["__system__encrypted", "__system__cmkid", "hw:passthrough"] {
        cloud.refuses(400, "EVS.1043", |c| create(c, json!({ "snapshot_id": id, "metadata": { key: "0" } })));
    }
    let owned =
        cloud.pool.begin_backup(volume_id(&volume), snapvol::SnapshotSpec::new()).unwrap().finish().unwrap();
    cloud.refuses(400, "EVS.2043", |c| create(c, json!({ "snapshot_id": owned.id.to_string(), "size": 2 })));
}

#[test]
fn op_043_from_an_image_of_which_the_volume_is_bootable_afterwards() {
    let cloud = Cloud::new();
    let id = image(&cloud, 2 * GIB, None);
    cloud.refuses(400, "EVS.1010", |c| create(c, json!({ "imageRef": id, "size": 1 })));
    cloud.refuses(400, "EVS.1010", |c| create(c, json!({ "imageRef": id })));
    cloud.refuses(400, "EVS.2094", |c| create(c, json!({ "imageRef": id, "size": 2, "shareable": "true" })));
    cloud.refuses(404, "EVS.5404", |c| create(c, json!({ "imageRef": NOBODY, "size": 2 })));
    let made = create(&cloud, json!({ "imageRef": id, "size": 2 })).is(202).body["volume"].clone();
    assert_eq!(made["bootable"], "false");
    let shown = cloud.show(made["id"].as_str().unwrap());
    assert_eq!(
        (&shown["bootable"], &shown["volume_image_metadata"]["image_id"]),
        (&json!("true"), &json!(id))
    );
    assert_eq!(cloud.read(made["id"].as_str().unwrap(), 0), 5);
    let queued = cloud.pool.create_image(ImageSpec::new().public(true)).unwrap().id.to_string();
    cloud.refuses(400, "EVS.5400", |c| create(c, json!({ "imageRef": queued, "size": 2 })));
}

#[test]
fn op_045_from_a_volume_is_an_independent_clone() {
    let cloud = Cloud::new();
    let volume = cloud.volume();
    cloud.write(&volume, 0, 1);
    let made = create(&cloud, json!({ "source_volid": volume })).is(202).body["volume"].clone();
    assert_eq!((&made["source_volid"], &made["size"]), (&json!(volume), &json!(1)));
    let clone = text(&made["id"]);
    cloud.write(&volume, 0, 2);
    cloud.write(&clone, 4096, 3);
    assert_eq!((cloud.read(&clone, 0), cloud.read(&volume, 4096)), (1, 0));
    cloud.delete(&format!("volumes/{volume}")).is(202);
    assert_eq!(cloud.read(&clone, 0), 1);
}

#[test]
fn op_046_two_sources_are_refused() {
    let cloud = Cloud::new();
    let names = ["snapshot_id", "imageRef", "backup_id", "source_volid"];
    for (n, a) in names.iter().enumerate() {
        for b in &names[n + 1..] {
            cloud.refuses(400, "EVS.1016", |c| create(c, json!({ "size": 1, *a: NOBODY, *b: NOBODY })));
        }
    }
}

#[test]
fn op_047_several_volumes_at_once_all_or_nothing() {
    let cloud = Cloud::with(Config::new().evs_limits(Limits::evs().volumes(Some(5))));
    for bad in [json!(0), json!(101), json!(-1)] {
        cloud.refuses(400, "EVS.1021", |c| create(c, json!({ "size": 1, "count": bad })));
    }
    cloud.refuses(413, "EVS.5413", |c| create(c, json!({ "size": 1, "count": 6 })));
    cloud.refuses(400, "EVS.1003", |c| create(c, json!({ "size": 1, "count": 2, "name": "n".repeat(251) })));
    let made = create(&cloud, json!({ "size": 1, "count": 3.7, "name": "v" })).is(202).body["volume"].clone();
    assert_eq!(made["name"], "v-0001");
    let list = cloud.get("volumes?sort_key=name&sort_dir=asc").body["volumes"].clone();
    let names: Vec<&str> = list.as_array().unwrap().iter().map(|v| v["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["v-0001", "v-0002", "v-0003"]);
    let many = Cloud::new();
    create(&many, json!({ "size": 1, "count": 100, "name": "n".repeat(250) })).is(202);
    assert_eq!(many.get("volumes").ids("volumes").len(), 100);
}

#[test]
fn op_048_an_unknown_zone_or_type_is_refused() {
    let cloud = Cloud::new();
    cloud.pool.set_zone("closed", false).unwrap();
    for zone in ["nowhere", "closed", ""] {
        cloud.refuses(400, "EVS.1036", |c| create(c, json!({ "size": 1, "availability_zone": zone })));
    }
    create(&cloud, json!({ "size": 1, "availability_zone": "az1" })).is(202);
    cloud.refuses(400, "EVS.1020", |c| create(c, json!({ "size": 1, "volume_type": "TAPE" })));
    for known in ["SATA", "SAS", "SSD", "GPSSD", "ESSD"] {
        create(&cloud, json!({ "size": 1, "volume_type": known })).is(202);
    }
    let id = cloud.snapshot(&cloud.volume());
    cloud.pool.set_zone("az2", true).unwrap();
    cloud.refuses(400, "EVS.2054", |c| create(c, json!({ "snapshot_id": id, "availability_zone": "az2" })));
    let v3 = cloud.v3();
    v3.refuses(404, "EVS.5404", |c| create(c, json!({ "size": 1, "volume_type": "TAPE" })));
}

#[test]
fn op_049_texts_and_metadata_have_255_bytes() {
    let cloud = Cloud::new();
    let long = |n: usize| "x".repeat(n);
    let meta = json!({ "size": 1, "name": long(255), "description": long(255), "metadata": { long(255): long(255) } });
    create(&cloud, meta).is(202);
    for (code, key, bad) in [
        ("EVS.1003", "name", json!(long(256))),
        ("EVS.1004", "description", json!(long(256))),
        ("EVS.5400", "metadata", json!({ long(256): "v" })),
        ("EVS.5400", "metadata", json!({ "k": long(256) })),
        ("EVS.5400", "metadata", json!({ "k": null })),
        ("EVS.1018", "metadata", json!({ "k": true })),
        ("EVS.1018", "name", json!(7)),
        ("EVS.2041", "metadata", json!({ "__system__encrypted": "2" })),
        ("EVS.2041", "metadata", json!({ "__system__cmkid": "short" })),
        ("EVS.1057", "metadata", json!({ "hw:passthrough": "maybe" })),
        ("EVS.1063", "metadata", json!({ "full_clone": "2" })),
    ] {
        cloud.refuses(400, code, |c| create(c, json!({ "size": 1, key: bad })));
    }
    cloud
        .refuses(501, "501", |c| create(c, json!({ "size": 1, "metadata": { "__system__encrypted": "1" } })));
    let pairs: serde_json::Map<String, Value> =
        (0..5000).map(|n| (format!("{n:0255}"), json!(long(250)))).collect();
    // More than a body may have comes before more than metadata may have.
    cloud.refuses(413, "413", |c| create(c, json!({ "size": 1, "metadata": pairs })));
    let pairs: serde_json::Map<String, Value> =
        (0..2200).map(|n| (format!("{n:0255}"), json!(long(250)))).collect();
    cloud.refuses(400, "EVS.1005", |c| create(c, json!({ "size": 1, "metadata": pairs })));
}

#[test]
fn op_053_extend_from_available_to_more() {
    let cloud = Cloud::new();
    let volume = cloud.volume();
    let request = sample(include_str!("../golden/evs/extend.request.json"));
    assert_eq!(cloud.action(&volume, request).is(202).text, "");
    let shown = cloud.show(&volume);
    assert_eq!((&shown["size"], &shown["status"]), (&json!(100), &json!("available")));
}

#[test]
fn op_054_and_055_extend_while_in_use_depends_on_sharing_and_the_server() {
    let cloud = Cloud::new();
    let shared = cloud.make(json!({ "multiattach": true }));
    cloud.attach(&shared, "vm");
    cloud.refuses(400, "EVS.1065", |c| c.action(&shared, json!({ "os-extend": { "new_size": 2 } })));
    let volume = cloud.volume();
    cloud.attach(&volume, "vm");
    let attachment = cloud.pool.volume(volume_id(&volume)).unwrap().attachments[0].id;
    let states = [ServerState::Active, ServerState::Paused, ServerState::Suspended, ServerState::Shutoff];
    for (n, state) in states.into_iter().enumerate() {
        cloud.pool.set_server_state(volume_id(&volume), attachment, state).unwrap();
        cloud.action(&volume, json!({ "os-extend": { "new_size": n + 2 } })).is(202);
    }
    cloud.pool.set_server_state(volume_id(&volume), attachment, ServerState::Other).unwrap();
    cloud.refuses(400, "EVS.1066", |c| c.action(&volume, json!({ "os-extend": { "new_size": 9 } })));
    cloud.pool.reset_volume_status(volume_id(&cloud.volume()), VolumeStatus::Error).unwrap();
}

#[test]
fn op_056_extend_to_no_more_or_too_much_is_refused() {
    let cloud = Cloud::new();
    let volume = cloud.make(json!({ "size": 5 }));
    for (code, bad) in [
        ("EVS.1015", json!(5)),
        ("EVS.1015", json!(4)),
        ("EVS.1015", json!(0)),
        ("EVS.1015", json!(-3)),
        ("EVS.1010", json!(32769)),
        ("EVS.1010", json!(1e18)),
        ("EVS.1011", json!(null)),
        ("EVS.1018", json!("much")),
    ] {
        cloud.refuses(400, code, |c| c.action(&volume, json!({ "os-extend": { "new_size": bad } })));
    }
    cloud.refuses(400, "EVS.1011", |c| c.action(&volume, json!({ "os-extend": null })));
    cloud.refuses(404, "EVS.5404", |c| c.action(NOBODY, json!({ "os-extend": { "new_size": 9 } })));
    assert_eq!(cloud.show(&volume)["size"], 5);
}

#[test]
fn op_057_extend_keeps_data_and_snapshots() {
    let cloud = Cloud::new();
    let volume = cloud.volume();
    cloud.write(&volume, GIB - 4096, 4);
    let id = cloud.snapshot(&volume);
    cloud.action(&volume, json!({ "os-extend": { "new_size": 2 } })).is(202);
    assert_eq!(
        (cloud.read(&volume, GIB - 4096), cloud.read(&volume, GIB), cloud.read(&volume, 2 * GIB - 4096)),
        (4, 0, 0)
    );
    assert_eq!(cloud.get(&format!("snapshots/{id}")).body["snapshot"]["size"], 1);
}

#[test]
fn op_058_delete_works_in_five_statuses() {
    for &status in VolumeStatus::ALL.iter().filter(|s| s.is_error()) {
        let cloud = Cloud::new();
        let volume = cloud.volume();
        cloud.pool.reset_volume_status(volume_id(&volume), status).unwrap();
        let at = format!("volumes/{volume}");
        if status == VolumeStatus::ErrorDeleting {
            cloud.refuses(400, "EVS.1046", |c| c.delete(&at));
        } else {
            cloud.delete(&at).is(202);
            cloud.get(&at).refused(404, "EVS.5404");
        }
    }
    let cloud = Cloud::new();
    let volume = cloud.volume();
    let run = cloud.pool.begin_backup(volume_id(&volume), snapvol::SnapshotSpec::new()).unwrap();
    cloud.refuses(400, "EVS.2130", |c| c.delete(&format!("volumes/{volume}")));
    run.finish().unwrap();
    cloud.delete(&format!("volumes/{volume}")).is(202);
}

#[test]
fn op_059_a_shared_volume_goes_after_the_last_detach() {
    let cloud = Cloud::new();
    let volume = cloud.make(json!({ "multiattach": true }));
    cloud.attach(&volume, "a");
    cloud.attach(&volume, "b");
    for left in [2, 1] {
        cloud.refuses(400, "EVS.1046", |c| c.delete(&format!("volumes/{volume}")));
        let attachments = cloud.show(&volume)["attachments"].clone();
        assert_eq!(attachments.as_array().unwrap().len(), left);
        let body = json!({ "os-detach": { "attachment_id": attachments[0]["attachment_id"] } });
        cloud.action(&volume, body).is(202);
    }
    cloud.delete(&format!("volumes/{volume}")).is(202);
}

#[test]
fn op_060_and_061_delete_takes_the_snapshots_and_leaves_the_clones() {
    for query in ["", "?cascade=true", "?cascade=True", "?cascade=false"] {
        let cloud = Cloud::new();
        let volume = cloud.volume();
        cloud.write(&volume, 0, 6);
        let id = cloud.snapshot(&volume);
        let clone = cloud.make(json!({ "snapshot_id": id }));
        assert_eq!(cloud.delete(&format!("volumes/{volume}{query}")).is(202).text, "");
        cloud.get(&format!("volumes/{volume}")).refused(404, "EVS.5404");
        cloud.get(&format!("snapshots/{id}")).refused(404, "EVS.5404");
        assert_eq!(cloud.read(&clone, 0), 6);
    }
    let strict = Cloud::with(Config::new().strict_cascade(true));
    let volume = strict.volume();
    let id = strict.snapshot(&volume);
    strict.refuses(400, "EVS.5400", |c| c.delete(&format!("volumes/{volume}")));
    strict.pool.hold_snapshot(snapshot_id(&id)).unwrap();
    strict.refuses(400, "EVS.2068", |c| c.delete(&format!("volumes/{volume}?cascade=true")));
    strict.pool.release_snapshot(snapshot_id(&id)).unwrap();
    strict.delete(&format!("volumes/{volume}?cascade=TRUE")).is(202);
}

#[test]
fn op_062_update_changes_name_description_metadata() {
    let cloud = Cloud::new();
    let volume = cloud.make(json!({ "metadata": { "old": "1" } }));
    let at = format!("volumes/{volume}");
    let body = json!({ "volume": { "name": "n", "display_name": "other", "display_description": "d", "metadata": { "new": "2" } } });
    let changed = cloud.put(&at, body).is(200).body["volume"].clone();
    assert_eq!((&changed["name"], &changed["description"]), (&json!("n"), &json!("d")));
    assert_eq!((&changed["metadata"], keys(&changed).len()), (&json!({ "new": "2" }), 21));
    assert_time(&changed["updated_at"]);
    cloud.refuses(400, "EVS.1007", |c| c.put(&at, json!({ "volume": {} })));
    cloud.refuses(400, "EVS.1007", |c| c.put(&at, json!({ "volume": { "name": null } })));
    cloud.refuses(400, "EVS.1001", |c| c.put(&at, json!({})));
    cloud.refuses(400, "EVS.1003", |c| c.put(&at, json!({ "volume": { "name": "n".repeat(256) } })));
    cloud.refuses(400, "EVS.1004", |c| c.put(&at, json!({ "volume": { "description": "n".repeat(256) } })));
}

#[test]
fn metadata_is_a_resource_of_its_own() {
    let cloud = Cloud::new();
    let volume = cloud.make(json!({ "metadata": { "a": "1" } }));
    let snapshot = cloud.snapshot(&volume);
    for owner in
        [format!("volumes/{volume}"), format!("snapshots/{snapshot}"), format!("cloudsnapshots/{snapshot}")]
    {
        let at = format!("{owner}/metadata");
        let all = |want: Value| assert_eq!(cloud.get(&at).is(200).body, json!({ "metadata": want }));
        cloud.put(&at, json!({ "metadata": { "a": "1" } })).is(200);
        let merged = cloud.post(&at, json!({ "metadata": { "b": "2" } })).is(200);
        assert_eq!(merged.body, json!({ "metadata": { "a": "1", "b": "2" } }));
        cloud.post(&at, json!({ "metadata": {} })).is(200);
        assert_eq!(cloud.get(&format!("{at}/b")).is(200).body, json!({ "meta": { "b": "2" } }));
        assert_eq!(
            cloud.put(&format!("{at}/b"), json!({ "meta": { "b": "3" } })).is(200).body,
            json!({ "meta": { "b": "3" } })
        );
        cloud.refuses(400, "EVS.5400", |c| c.put(&format!("{at}/b"), json!({ "meta": { "c": "3" } })));
        cloud.refuses(400, "EVS.5400", |c| {
            c.put(&format!("{at}/b"), json!({ "meta": { "b": "3", "c": "3" } }))
        });
        cloud.refuses(400, "EVS.5400", |c| c.put(&at, json!({ "metadata": { "k": "v".repeat(256) } })));
        cloud.refuses(404, "EVS.5404", |c| c.get(&format!("{at}/none")));
        cloud.refuses(404, "EVS.5404", |c| c.delete(&format!("{at}/none")));
        cloud.delete(&format!("{at}/a")).is(200);
        all(json!({ "b": "3" }));
        cloud.put(&at, json!({ "metadata": {} })).is(200);
        all(json!({}));
        cloud.refuses(405, "405", |c| c.delete(&at));
    }
}

#[test]
fn op_063_attach_and_detach() {
    let cloud = Cloud::new();
    let volume = cloud.volume();
    cloud.attach(&volume, "vm-1");
    let shown = cloud.show(&volume);
    let attachment = &shown["attachments"][0];
    let seven = ["id", "volume_id", "attachment_id", "server_id", "host_name", "device", "attached_at"];
    assert_eq!((keys(attachment), &shown["status"]), (set(&seven), &json!("in-use")));
    assert!(attachment.as_object().unwrap().values().all(Value::is_string));
    assert_eq!((&attachment["id"], &attachment["server_id"]), (&json!(volume), &json!("vm-1")));
    let again = json!({ "os-attach": { "instance_uuid": "vm-2", "mountpoint": "/dev/vdc" } });
    cloud.refuses(400, "EVS.5400", |c| c.action(&volume, again.clone()));
    cloud.action(&volume, json!({ "os-detach": null })).is(202);
    assert_eq!(
        (cloud.status(&volume).as_str(), &cloud.show(&volume)["attachments"]),
        ("available", &json!([]))
    );
    cloud.refuses(400, "EVS.5400", |c| c.action(&volume, json!({ "os-detach": {} })));
    let shared = cloud.make(json!({ "multiattach": true }));
    cloud.attach(&shared, "vm-1");
    cloud.action(&shared, again).is(202);
    cloud.refuses(400, "EVS.5400", |c| c.action(&shared, json!({ "os-detach": {} })));
    cloud
        .refuses(404, "EVS.5404", |c| c.action(&shared, json!({ "os-detach": { "attachment_id": NOBODY } })));
    // A disk in this process counts, too.
    let disk = cloud.disk(&volume);
    assert_eq!(cloud.status(&volume), "in-use");
    drop(disk);
    assert_eq!(cloud.status(&volume), "available");
}

#[test]
fn small_actions_do_what_they_say() {
    let cloud = Cloud::new();
    let volume = cloud.volume();
    cloud.action(&volume, json!({ "os-reserve": null })).is(202);
    assert_eq!(cloud.status(&volume), "attaching");
    cloud.action(&volume, json!({ "os-unreserve": {} })).is(202);
    assert_eq!(cloud.status(&volume), "available");
    cloud.action(&volume, json!({ "os-set_bootable": { "bootable": "true" } })).is(200);
    assert_eq!(cloud.show(&volume)["bootable"], "true");
    cloud.action(&volume, json!({ "os-update_readonly_flag": { "readonly": true } })).is(202);
    assert!(cloud.pool.volume(volume_id(&volume)).unwrap().read_only);
    cloud.attach(&volume, "vm");
    cloud.action(&volume, json!({ "os-begin_detaching": {} })).is(202);
    assert_eq!(cloud.status(&volume), "detaching");
    cloud.action(&volume, json!({ "os-roll_detaching": {} })).is(202);
    assert_eq!(cloud.status(&volume), "in-use");
    for bad in [
        json!({}),
        json!({ "os-magic": {} }),
        json!({ "os-reserve": {}, "os-unreserve": {} }),
        json!([]),
        json!({ "os-set_bootable": {} }),
    ] {
        cloud.refuses(400, "EVS.5400", |c| c.action(&volume, bad));
    }
    cloud.raw(Method::GET, &format!("/v2/{P}/volumes/{volume}/action"), b"").refused(405, "405");
}
