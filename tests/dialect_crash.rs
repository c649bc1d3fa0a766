//! OP-099: each request changes one thing, in one commit. Power is lost at every write of a row of requests, and
//! whatever the device has kept by then, the pool opens with each request done or not done, and with no transient
//! status: in each dialect, all that its callers can change.
#![cfg(all(feature = "dialect", feature = "sim"))]
#![allow(clippy::unwrap_used)]

mod clouds;

use std::collections::BTreeSet;

use clouds::{GIB, Store, options};
use serde_json::{Value, json};
use snapvol::device::sim::{Fate, SimDevice};
use snapvol::dialect::Config;
use snapvol::{OpenOptions, Pool, SnapshotSpec, Snapshots, VolumeId, VolumeQuery, VolumeSpec};

/// All that callers see, and what the volumes hold.
#[derive(Clone, PartialEq, Debug)]
struct Seen {
    answers: Vec<Value>,
    contents: Vec<(VolumeId, u8)>,
}

/// What every status may be when nothing is being done.
const AT_REST: [&str; 4] = ["available", "in-use", "normal", "Normal"];

fn look(store: &Store) -> Seen {
    let evs = ["volumes/detail", "snapshots/detail", "limits"].map(|list| {
        let (status, answer) = store.evs_of_p(&format!("GET {list}"), "");
        assert_eq!(status, 200, "{answer}");
        answer
    });
    let (cbs, ucloud) = (store.cbs("DescribeSnapshots"), store.ucloud("DescribeSnapshot"));
    for (list, key) in [
        (&evs[0]["volumes"], "status"),
        (&evs[1]["snapshots"], "status"),
        (&cbs["snapshotSet"], "snapshotStatus"),
        (&ucloud["Infos"], "SnapshotStatus"),
    ] {
        for one in list.as_array().unwrap() {
            assert!(AT_REST.contains(&one[key].as_str().unwrap()), "a transient status: {one}");
        }
    }
    let volumes = store.pool.list_volumes(&VolumeQuery::new()).unwrap().items;
    let contents = volumes.iter().map(|volume| (volume.id, store.read(volume.id))).collect();
    Seen { answers: [&evs[..], &[cbs, ucloud]].concat(), contents }
}

/// Does one thing after another; power is lost at every write, in several ways.
fn crash_everywhere(store: &Store, device: &SimDevice, steps: &[&dyn Fn()]) {
    store.pool.checkpoint().unwrap();
    device.restart_trace();
    let mut states = vec![(0, look(store))];
    for (n, step) in steps.iter().enumerate() {
        step();
        states.push((device.op_count(), look(store)));
        assert_ne!(states[n].1, states[n + 1].1, "step {n} changed nothing");
    }
    let trace = device.trace();
    let mut seen = BTreeSet::new();
    for cut in 0..=trace.len() {
        let acknowledged = states.iter().rposition(|(end, _)| *end <= cut).unwrap();
        for way in 0..8 {
            let fate = |n: usize| match way {
                0 => Fate::Kept,
                1 => Fate::Lost,
                2 | 3 if n % 2 == way - 2 => Fate::Kept,
                2 | 3 => Fate::Lost,
                seed => Fate::TornRandom((cut * 8 + seed) as u64),
            };
            let pool = Pool::open_on(trace.device_at(cut, fate), OpenOptions::new()).unwrap();
            let found = look(&Store { pool, config: Config::new() });
            let number = states.iter().position(|(_, state)| *state == found);
            let lawful = acknowledged..=acknowledged + 1;
            assert!(number.is_some_and(|n| lawful.contains(&n)), "cut {cut}, way {way}: {found:#?}");
            seen.extend(number);
        }
    }
    println!("{} cuts of {} steps", trace.len(), steps.len());
    assert_eq!(seen.len(), states.len(), "each state is met");
}

/// A pool with a volume of project `p` that holds 2 now, and a snapshot of it from when it held 1.
fn begin() -> (Store, SimDevice, VolumeId, String) {
    let device = SimDevice::new();
    let store = Store { pool: Pool::create_on(device.clone(), options()).unwrap(), config: Config::new() };
    let disk = store.disk_of("p").id;
    store.write(disk, 1);
    let snapshot = store.pool.create_snapshot(disk, SnapshotSpec::new().name("first")).unwrap().id;
    store.write(disk, 2);
    (store, device, disk, snapshot.to_string())
}

#[test]
fn op_099_evs_requests_are_done_or_not_done() {
    let (store, device, disk, first) = begin();
    let ask = |line: &str, body: Value| {
        let (status, answer) = store.evs_of_p(line, &body.to_string());
        assert!((200..300).contains(&status), "{line}: {status} {answer}");
        answer
    };
    let of_disk = |rest: &str| format!("volumes/{disk}{rest}");
    let action = |body: Value| drop(ask(&format!("POST {}", of_disk("/action")), body));
    // Made before, to be deleted with what hangs on it.
    let doomed = store.disk_of("p").id;
    store.pool.create_snapshot(doomed, SnapshotSpec::new().name("doomed")).unwrap();
    crash_everywhere(
        &store,
        &device,
        &[
            &|| drop(ask("POST volumes", json!({ "volume": { "size": 1, "name": "n", "count": 3 } }))),
            &|| drop(ask("POST volumes", json!({ "volume": { "snapshot_id": first, "size": 2 } }))),
            &|| drop(ask("POST volumes", json!({ "volume": { "source_volid": disk.to_string() } }))),
            &|| drop(ask(&format!("PUT {}", of_disk("")), json!({ "volume": { "name": "new" } }))),
            &|| drop(ask(&format!("POST {}", of_disk("/metadata")), json!({ "metadata": { "k": "v" } }))),
            &|| drop(ask(&format!("DELETE {}", of_disk("/metadata/k")), Value::Null)),
            &|| action(json!({ "os-extend": { "new_size": 3 } })),
            &|| action(json!({ "os-attach": { "instance_uuid": "vm", "mountpoint": "/dev/vdb" } })),
            &|| {
                let body =
                    json!({ "snapshot": { "volume_id": disk.to_string(), "force": true, "name": "s" } });
                ask("POST cloudsnapshots", body);
            },
            &|| action(json!({ "os-detach": {} })),
            &|| action(json!({ "os-set_bootable": { "bootable": true } })),
            &|| {
                let body = json!({ "rollback": { "volume_id": disk.to_string() } });
                ask(&format!("POST os-vendor-snapshots/{first}/rollback"), body);
            },
            &|| drop(ask(&format!("PUT snapshots/{first}"), json!({ "snapshot": { "description": "d" } }))),
            &|| drop(ask(&format!("DELETE snapshots/{first}"), Value::Null)),
            &|| drop(ask(&format!("DELETE volumes/{doomed}?cascade=true"), Value::Null)),
        ],
    );
}

#[test]
fn op_099_cbs_actions_are_done_or_not_done() {
    let (store, device, disk, first) = begin();
    let ask = |query: &str| assert_eq!(store.cbs(query)["code"], 0, "{query}");
    crash_everywhere(
        &store,
        &device,
        &[
            &|| ask(&format!("ModifySnapshot&snapshotId={first}&snapshotName=renamed")),
            &|| ask(&format!("CreateSnapshot&storageId={disk}&snapshotName=second")),
            &|| ask(&format!("ApplySnapshot&snapshotId={first}&storageId={disk}")),
            &|| ask(&format!("DeleteSnapshot&snapshotIds.0={first}")),
        ],
    );
}

#[test]
fn op_099_ucloud_actions_are_done_or_not_done() {
    let (store, device, disk, first) = begin();
    let ask = |query: &str| assert_eq!(store.ucloud(query)["RetCode"], 0, "{query}");
    crash_everywhere(
        &store,
        &device,
        &[
            &|| ask(&format!("ModifyNameAndRemark&ResourceID={first}&Name=renamed&Remark=r")),
            &|| ask(&format!("CreateSnapshot&DiskID={disk}&Name=second&Type=Automatic")),
            &|| ask(&format!("RollbackSnapshot&SnapshotID={first}&DiskID={disk}")),
            &|| ask(&format!("DeleteSnapshot&SnapshotID={first}")),
        ],
    );
}

/// What takes its time is cut off: what was being made is gone, what was being restored says so, and what only showed
/// a status shows none.
#[test]
fn op_099_work_that_was_cut_off_leaves_no_transient_status() {
    use snapvol::{SnapshotStatus, VolumeStatus};

    /// Does something to the volume, and calls back at the moment at which it is cut off.
    type Work<'a> = dyn Fn(&Store, VolumeId, &mut dyn FnMut()) + 'a;

    let after = |work: &Work<'_>| {
        let (store, device, disk, _) = begin();
        let image = std::cell::RefCell::new(None);
        work(&store, disk, &mut || {
            store.pool.checkpoint().unwrap();
            *image.borrow_mut() = Some(device.view());
        });
        let bytes = image.take().unwrap();
        let pool = Pool::open_on(SimDevice::from_image(bytes), OpenOptions::new()).unwrap();
        let store = Store { pool, config: Config::new() };
        let shown = store.evs_of_p(&format!("GET volumes/{disk}"), "").1;
        let status = shown["volume"]["status"].as_str().unwrap_or("gone").to_owned();
        let volumes = store.evs_of_p("GET volumes", "").1["volumes"].as_array().unwrap().len();
        let snapshots = store.ucloud("DescribeSnapshot");
        let all = snapshots["Infos"].as_array().unwrap();
        assert!(all.iter().all(|s| s["SnapshotStatus"] == "Normal"), "{snapshots}");
        (status, volumes, all.len())
    };
    let done = (String::from("available"), 1, 1);
    for status in [VolumeStatus::Creating, VolumeStatus::Downloading] {
        // An image copy or a create: absent.
        let found = after(&|store, _, cut| {
            let filling = store.pool.begin_volume(VolumeSpec::blank(GIB).project("p"), status).unwrap();
            filling.disk().unwrap().write_at(&[9; 4096], 0).unwrap();
            assert_eq!(store.evs_of_p("GET volumes", "").1["volumes"].as_array().unwrap().len(), 2);
            cut();
        });
        assert_eq!(found, done, "{status}");
    }
    let found = after(&|store, disk, cut| {
        let _restore = store.pool.begin_restore(disk).unwrap();
        cut();
    });
    assert_eq!(found, ("error_restoring".into(), 1, 1));
    let found = after(&|store, disk, cut| {
        let _backup = store.pool.begin_backup(disk, SnapshotSpec::new()).unwrap();
        cut();
    });
    assert_eq!(found, done);
    for &status in VolumeStatus::ALL {
        let found = after(&|store, disk, cut| {
            let _job = store.pool.begin_volume_job(disk, status).ok();
            cut();
        });
        assert_eq!(found, done, "{status}");
    }
    for &status in SnapshotStatus::ALL {
        let found = after(&|store, _, cut| {
            let id = store.ucloud("DescribeSnapshot")["Infos"][0]["SnapshotID"].as_str().unwrap().parse();
            let _job = store.pool.begin_snapshot_job(id.unwrap(), status).ok();
            cut();
        });
        assert_eq!(found, done, "{status}");
    }
    for reserved in [true, false] {
        let found = after(&|store, disk, cut| {
            if reserved {
                store.pool.reserve(disk).unwrap();
            } else {
                store.pool.attach_server(disk, snapvol::AttachmentSpec::new("vm")).unwrap();
                store.pool.begin_detaching(disk).unwrap();
            }
            cut();
        });
        assert_eq!(found.0, if reserved { "available" } else { "in-use" });
    }
    // A delete that was answered is complete, though its space is not back yet.
    let found = after(&|store, disk, cut| {
        drop(store.pool.delete_volume(disk, Snapshots::Delete).unwrap());
        store.disk_of("p");
        cut();
    });
    assert_eq!(found, ("gone".into(), 1, 0));
}
