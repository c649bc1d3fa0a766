//! Lists around volumes, versions, projects, errors: OP-050 to OP-052, OP-064, OP-065, OP-068 to OP-071, OP-096 to OP-098.

use std::collections::BTreeSet;

use http::Method;
use serde_json::{Value, json};
use snapvol::dialect::{Config, MAX_BODY_BYTES};
use snapvol::{ImageContent, ImageSpec, SnapshotSpec, SnapshotStatus, VolumeSpec, VolumeStatus};

use super::*;

#[test]
fn op_050_and_051_the_brief_list_pages_by_marker() {
    let cloud = Cloud::new();
    let made: Vec<String> = (0..4).map(|_| cloud.make(json!({ "name": "zjb_u25_test" }))).collect();
    let mut want = sample(include_str!("../golden/evs/volumes.answer.json"));
    let got = cloud.get("volumes?limit=3").is(200).body;
    assert_eq!(keys(&got), keys(&want));
    for (got, want) in got["volumes"].as_array().unwrap().iter().zip(want["volumes"].as_array().unwrap()) {
        assert_eq!((kinds(got), &got["name"]), (kinds(want), &want["name"]));
    }
    let href = format!("http://evs.example:8776/v2/{P}/volumes?limit=3&marker={}", made[1]);
    want["volumes_links"][0]["href"] = json!(href);
    assert_eq!(got["volumes_links"], want["volumes_links"]);
    let rest = cloud.get(&format!("volumes?limit=3&marker={}", made[1])).is(200);
    assert_eq!((rest.ids("volumes"), keys(&rest.body)), (vec![made[0].clone()], set(&["volumes"])));
    // A page that is just full says that more may follow; what follows is empty.
    let full = cloud.get("volumes?limit=4").is(200);
    assert!(
        full.body["volumes_links"][0]["href"].as_str().unwrap().ends_with(&format!("marker={}", made[0]))
    );
    assert!(cloud.get(&format!("volumes?limit=4&marker={}", made[0])).is(200).ids("volumes").is_empty());
    assert!(cloud.get("volumes?offset=99").is(200).ids("volumes").is_empty());
}

#[test]
fn op_052_detail_and_show_are_the_full_object_and_lists_have_an_order() {
    let cloud = Cloud::new();
    let made: Vec<String> = [(3, "b"), (1, "c"), (2, "a")]
        .map(|(size, name)| cloud.make(json!({ "size": size, "name": name })))
        .into();
    let detail = cloud.get("volumes/detail").is(200).body["volumes"][0].clone();
    assert_eq!(detail, cloud.show(&made[2]));
    assert_eq!((keys(&detail).len(), &detail["os-vol-tenant-attr:tenant_id"]), (27, &json!(P)));
    for (query, want) in [
        ("", [2, 1, 0]),
        ("?sort_dir=asc", [0, 1, 2]),
        ("?sort_key=size", [0, 2, 1]),
        ("?sort_key=size&sort_dir=asc", [1, 2, 0]),
        ("?sort=name:asc", [2, 0, 1]),
        ("?sort=display_name", [1, 0, 2]),
        ("?sort=status:asc,size:desc", [0, 2, 1]),
    ] {
        let want = want.map(|n| made[n].clone());
        assert_eq!(cloud.get(&format!("volumes{query}")).ids("volumes"), want, "{query}");
        assert_eq!(cloud.get(&format!("volumes/detail{query}")).ids("volumes"), want, "{query}");
    }
    let by_id = cloud.get("volumes?sort_key=id&sort_dir=asc").ids("volumes");
    assert!(by_id.is_sorted());
    cloud.refuses(400, "EVS.1039", |c| c.get("volumes?sort_key=color"));
    cloud.refuses(400, "EVS.1040", |c| c.get("volumes?sort=size:up"));
    cloud.refuses(400, "EVS.1039", |c| c.get("volumes?sort=size&sort_key=size"));
    let v3 = cloud.v3();
    let detail = v3.get("volumes/detail").is(200).body["volumes"][0].clone();
    assert_eq!(keys(&detail).len(), 25);
}

#[test]
fn filters_of_volumes_combine() {
    let cloud = Cloud::new();
    let a = cloud.make(json!({ "name": "x", "metadata": { "k": "v" } }));
    let b = cloud.make(json!({ "name": "x" }));
    cloud.action(&b, json!({ "os-set_bootable": { "bootable": true } })).is(200);
    cloud.attach(&b, "vm");
    let ids = |query: &str| cloud.get(&format!("volumes?{query}")).is(200).ids("volumes");
    assert_eq!(ids("name=x").len(), 2);
    assert_eq!(ids("name=x&status=in-use"), std::slice::from_ref(&b));
    assert_eq!(ids("name=x&status=in-use&bootable=false"), [] as [String; 0]);
    assert_eq!(ids("bootable=True"), [b]);
    assert_eq!(ids("metadata=%7B%27k%27%3A+%27v%27%7D"), std::slice::from_ref(&a));
    assert_eq!(ids("metadata=%7B%22k%22%3A%22v%22%7D"), [a]);
    assert_eq!(ids("availability_zone=az1&all_tenants=1").len(), 2);
    assert_eq!(ids("availability_zone=az9").len(), 0);
    cloud.refuses(400, "EVS.1058", |c| c.get("volumes?metadata=k"));
    cloud.refuses(400, "EVS.1031", |c| c.get("volumes?status=nonsense"));
    cloud.refuses(400, "EVS.5400", |c| c.get("volumes?bootable=perhaps"));
}

#[test]
fn op_064_zones() {
    let cloud = Cloud::new();
    cloud.pool.rename_zone("az1", "az1.dc1").unwrap();
    cloud.pool.set_zone("vmware.az1", true).unwrap();
    let want = sample(include_str!("../golden/evs/zones.answer.json"));
    assert_eq!(cloud.get("os-availability-zone").is(200).body, want);
}

#[test]
fn op_065_images() {
    let cloud = Cloud::new();
    let mut want = sample(include_str!("../golden/evs/images.answer.json"));
    let filled = cloud.pool.create_volume(VolumeSpec::blank(8192)).unwrap().id;
    for image in want["images"].as_array().unwrap().iter().rev() {
        let mut spec = ImageSpec::new()
            .id(image["id"].as_str().unwrap().parse().unwrap())
            .name(text(&image["name"]))
            .container_format(text(&image["container_format"]))
            .disk_format(text(&image["disk_format"]))
            .project(text(&image["owner"]))
            .min_disk_bytes(image["min_disk"].as_u64().unwrap() << 30)
            .min_ram_bytes(image["min_ram"].as_u64().unwrap() << 20);
        for tag in image["tags"].as_array().unwrap() {
            spec = spec.tag(text(tag));
        }
        let made = cloud.pool.create_image(spec).unwrap().id;
        if image["status"] == "active" {
            let content = ImageContent::new().size_bytes(image["size"].as_u64().unwrap());
            cloud.pool.activate_image(made, filled, content.checksum(text(&image["checksum"]))).unwrap();
        }
    }
    let mut got = cloud.raw(Method::GET, "/v2/images", b"").is(200).body;
    assert_eq!(keys(&got["images"][0]).len(), 16);
    for body in [&mut got, &mut want] {
        for image in body["images"].as_array_mut().unwrap() {
            for time in ["created_at", "updated_at"] {
                let shape: String = image[time].as_str().unwrap().replace(|c: char| c.is_ascii_digit(), "0");
                image[time] = json!(shape);
            }
            let tags: BTreeSet<String> = image["tags"].as_array().unwrap().iter().map(text).collect();
            image["tags"] = json!(tags);
        }
    }
    assert_eq!(got, want);
    let page = cloud.raw(Method::GET, "/v2/images?limit=1", b"").is(200);
    let next = text(&page.body["next"]);
    let last = cloud.raw(Method::GET, &next, b"").is(200);
    assert_eq!(
        [page.ids("images"), last.ids("images")].concat(),
        Reply { status: 200, text: String::new(), body: got }.ids("images")
    );
    let one = format!("/v2/images/{}", last.ids("images")[0]);
    assert_eq!(cloud.raw(Method::GET, &one, b"").is(200).body["status"], "active");
    cloud.raw(Method::GET, &format!("/v2/images/{NOBODY}"), b"").refused(404, "EVS.5404");
    let own = Cloud { config: Config::new().caller_project("somebody"), ..cloud };
    assert!(own.raw(Method::GET, "/v2/images", b"").is(200).ids("images").is_empty());
    own.raw(Method::GET, &one, b"").refused(404, "EVS.5404");
}

#[test]
fn op_068_and_069_every_error_has_its_shape_and_its_code() {
    let cloud = Cloud::new();
    let volume = cloud.volume();
    let raw = |method, path: &str, body: &'static [u8]| {
        let at = if path.starts_with('/') { path.to_owned() } else { format!("/v2/{P}/{path}") };
        move |c: &Cloud| c.raw(method, &at, body)
    };
    let (get, post) = (Method::GET, Method::POST);
    for body in [
        &b""[..],
        b"{",
        b"[]",
        b"null",
        b"{\"volume\": []}",
        b"{\"volume\": {\"size\": 1},}",
        b"\xff\xfe",
        b"{\"volume\": 5}",
    ] {
        cloud.refuses(400, "EVS.5400", raw(post.clone(), "volumes", body));
    }
    cloud.refuses(400, "EVS.1009", raw(post.clone(), "volumes", b"{}"));
    cloud.refuses(400, "EVS.1009", raw(post.clone(), "volumes", b"{\"volume\": null}"));
    for nowhere in ["/v1", "/v2/p/nothing", "/favicon.ico", "/v2/p/volumes/a/b/c/d", "/v2/p/%ff", "/v2/p"] {
        cloud.refuses(404, "EVS.5404", raw(get.clone(), nowhere, b""));
    }
    for wrong in
        ["volumes", "snapshots", "volumes/detail", "os-availability-zone", "limits", "types", "extensions"]
    {
        cloud.refuses(405, "405", raw(Method::PATCH, wrong, b""));
    }
    cloud.refuses(405, "405", raw(get.clone(), "os-vendor-snapshots/x/rollback", b""));
    for (path, methods) in [
        ("volumes", "GET, POST"),
        ("volumes/detail", "GET"),
        ("volumes/x/action", "POST"),
        ("snapshots/x", "GET, PUT, DELETE"),
        ("snapshots/x/metadata", "GET, POST, PUT"),
    ] {
        let request = Request::patch(format!("/v2/{P}/{path}")).body("").unwrap();
        let answer = dialect::handle(&cloud.pool, &cloud.config, &request);
        assert_eq!((answer.status().as_u16(), &answer.headers()["allow"]), (405, &methods.parse().unwrap()));
    }
    cloud.refuses(405, "405", raw(post.clone(), "/v2/images", b""));
    cloud.refuses(400, "EVS.0001", raw(get.clone(), &format!("/v2/{}/volumes", "p".repeat(61)), b""));
    cloud.refuses(400, "EVS.0001", raw(get.clone(), "/v2//volumes", b""));
    cloud.refuses(404, "EVS.5404", raw(Method::DELETE, &format!("volumes/{}", volume.replace('-', "")), b""));
    let foreign = Cloud::with(Config::new().caller_project("mine"));
    foreign.refuses(400, "EVS.0001", |c| c.get("volumes"));
    foreign.raw(Method::GET, "/v2/mine/volumes", b"").is(200);
    let large = vec![b' '; MAX_BODY_BYTES + 1];
    cloud.refuses(413, "413", |c| c.raw(Method::POST, &format!("/v2/{P}/volumes"), &large));
    let nested = "[".repeat(100_000);
    cloud.refuses(400, "EVS.5400", |c| c.raw(Method::POST, &format!("/v2/{P}/volumes"), nested.as_bytes()));
}

#[test]
fn op_070_what_starts_work_answers_202() {
    let cloud = Cloud::new();
    let volume = cloud.volume();
    let snapshot = cloud.snapshot(&volume);
    let rollback = json!({ "rollback": { "volume_id": volume } });
    cloud.post(&format!("os-vendor-snapshots/{snapshot}/rollback"), rollback).is(202);
    for empty in [
        cloud.action(&volume, json!({ "os-extend": { "new_size": 2 } })),
        cloud.delete(&format!("snapshots/{snapshot}")),
        cloud.delete(&format!("volumes/{volume}")),
    ] {
        assert_eq!(empty.is(202).text, "");
    }
}

#[test]
fn op_071_every_status_is_spelled_as_documented() {
    let volumes: Vec<Value> = VolumeStatus::ALL.iter().map(|s| serde_json::to_value(s).unwrap()).collect();
    assert_eq!(
        json!(volumes),
        json!([
            "creating",
            "available",
            "in-use",
            "error",
            "attaching",
            "detaching",
            "extending",
            "error_extending",
            "backing-up",
            "restoring-backup",
            "error_restoring",
            "rollbacking",
            "error_rollbacking",
            "uploading",
            "downloading",
            "deleting",
            "error_deleting",
            "awaiting-transfer"
        ])
    );
    let snapshots: Vec<Value> =
        SnapshotStatus::ALL.iter().map(|s| serde_json::to_value(s).unwrap()).collect();
    let seven = ["creating", "available", "rollbacking", "error", "error_deleting", "deleting", "backing-up"];
    assert_eq!(json!(snapshots), json!(seven));
}

#[test]
fn versions_types_limits_extensions_and_the_summary_answer() {
    let cloud = Cloud::new();
    let root = cloud.raw(Method::GET, "/", b"").is(300).body;
    let all: Vec<_> = root["versions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| (text(&v["id"]), text(&v["status"]), text(&v["version"]), text(&v["min_version"])))
        .collect();
    let text4 = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned(), c.to_owned());
    assert_eq!(all, [text4("v2.0", "SUPPORTED", ""), text4("v3.0", "CURRENT", "3.0")]);
    for (path, id) in [("/v2", "v2.0"), ("/v2/", "v2.0"), ("/v3/", "v3.0")] {
        let one = cloud.raw(Method::GET, path, b"").is(200).body;
        assert_eq!((&one["versions"][0]["id"], one["versions"].as_array().unwrap().len()), (&json!(id), 1));
    }
    cloud.make(json!({ "size": 3 }));
    let absolute = cloud.get("limits").is(200).body["limits"]["absolute"].clone();
    assert_eq!(
        (&absolute["totalVolumesUsed"], &absolute["totalGigabytesUsed"], &absolute["maxTotalVolumes"]),
        (&json!(1), &json!(3), &json!(-1))
    );
    let types = cloud.get("types").is(200);
    assert_eq!(types.ids("volume_types"), ["SATA", "SAS", "SSD", "GPSSD", "ESSD"]);
    assert_eq!(cloud.get("types/SSD").is(200).body["volume_type"]["name"], "SSD");
    cloud.get("types/TAPE").refused(404, "EVS.5404");
    assert_eq!(cloud.get("extensions").is(200).body, json!({ "extensions": [] }));
    assert_eq!(
        cloud.get("volumes/summary").is(200).body["volume-summary"],
        json!({ "total_count": 1, "total_size": 3 })
    );
}

#[test]
fn projects_do_not_see_each_other() {
    let cloud = Cloud::new();
    let volume = cloud.volume();
    let snapshot = cloud.snapshot(&volume);
    let before = cloud.face();
    let at = |method: Method, path: &str, body: Value| {
        cloud.raw(method, &format!("/v2/another/{path}"), body.to_string().as_bytes())
    };
    let nothing = Value::Null;
    for path in [
        format!("volumes/{volume}"),
        format!("snapshots/{snapshot}"),
        format!("volumes/{volume}/metadata"),
        format!("snapshots/{snapshot}/metadata/k"),
    ] {
        at(Method::GET, &path, nothing.clone()).refused(404, "EVS.5404");
    }
    for path in [format!("volumes/{volume}"), format!("snapshots/{snapshot}")] {
        at(Method::DELETE, &path, nothing.clone()).refused(404, "EVS.5404");
        let kind = path.split('s').next().unwrap().to_owned();
        let body = json!({ if kind == "volume" { "volume" } else { "snapshot" }: { "name": "n" } });
        at(Method::PUT, &path, body).refused(404, "EVS.5404");
    }
    for (path, body) in [
        ("snapshots".to_owned(), json!({ "snapshot": { "volume_id": volume } })),
        ("volumes".to_owned(), json!({ "volume": { "size": 1, "snapshot_id": snapshot } })),
        ("volumes".to_owned(), json!({ "volume": { "size": 1, "source_volid": volume } })),
        (format!("volumes/{volume}/action"), json!({ "os-extend": { "new_size": 2 } })),
        (format!("volumes/{volume}/action"), json!({ "os-reserve": {} })),
        (format!("volumes/{volume}/metadata"), json!({ "metadata": { "k": "v" } })),
        (format!("os-vendor-snapshots/{snapshot}/rollback"), json!({ "rollback": { "volume_id": volume } })),
    ] {
        at(Method::POST, &path, body).refused(404, "EVS.5404");
    }
    for list in ["volumes", "snapshots"] {
        assert!(at(Method::GET, list, nothing.clone()).is(200).ids(list).is_empty());
        let marker = if list == "volumes" { &volume } else { &snapshot };
        at(Method::GET, &format!("{list}?marker={marker}"), nothing.clone()).refused(404, "EVS.5404");
    }
    let filtered = at(Method::GET, &format!("snapshots?volume_id={volume}"), nothing).is(200);
    assert!(filtered.ids("snapshots").is_empty());
    assert_eq!(before, cloud.face());
}

#[test]
fn op_096_and_097_aliases_and_native_calls_name_the_same_things() {
    let cloud = Cloud::new();
    let volume = cloud.volume();
    let alias = cloud.pool.volume(volume_id(&volume)).unwrap().alias;
    assert_eq!(cloud.show(&alias)["id"], json!(volume));
    let snapshot =
        cloud.pool.create_snapshot(volume_id(&volume), SnapshotSpec::new().name("native")).unwrap();
    let shown = cloud.get(&format!("snapshots/{}", snapshot.alias)).is(200).body["snapshot"].clone();
    assert_eq!((&shown["id"], &shown["name"]), (&json!(snapshot.id.to_string()), &json!("native")));
    cloud.pool.rename_snapshot(snapshot.id, "renamed").unwrap();
    assert_eq!(cloud.get("snapshots").body["snapshots"][0]["name"], "renamed");
    cloud.delete(&format!("snapshots/{}", snapshot.alias)).is(202);
    assert!(cloud.pool.snapshot(snapshot.id).is_err());
}
