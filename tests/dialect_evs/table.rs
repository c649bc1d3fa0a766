//! OP-072: every status of a volume and of a snapshot against every operation, over the wire.

use serde_json::json;
use snapvol::{SnapshotJob, SnapshotStatus, VolumeJob, VolumeStatus};

use super::*;

#[derive(Clone, Copy, PartialEq, Debug)]
enum Op {
    Extend,
    Snapshot,
    SnapshotForced,
    Rollback,
    Delete,
    Attach,
    Detach,
    Clone,
    Rename,
    Reserve,
    Bootable,
    ReadOnly,
    Show,
}

const OPS: [Op; 13] = [
    Op::Extend,
    Op::Snapshot,
    Op::SnapshotForced,
    Op::Rollback,
    Op::Delete,
    Op::Attach,
    Op::Detach,
    Op::Clone,
    Op::Rename,
    Op::Reserve,
    Op::Bootable,
    Op::ReadOnly,
    Op::Show,
];

fn allowed(status: VolumeStatus, shared: bool, op: Op) -> bool {
    use VolumeStatus as S;
    match (op, status) {
        (Op::Show, _) => true,
        (Op::Rename | Op::Bootable, status) => status != S::Deleting,
        (Op::Detach, S::Available) => false,
        (_, S::Available) => true,
        (Op::Extend, S::InUse) => !shared,
        (Op::Attach | Op::Reserve, S::InUse) => shared,
        (Op::SnapshotForced | Op::Detach | Op::Clone, S::InUse) => true,
        (Op::Delete, S::Error | S::ErrorExtending | S::ErrorRestoring | S::ErrorRollbacking) => true,
        (Op::Rollback, S::ErrorRollbacking) => true,
        _ => false,
    }
}

fn perform(cloud: &Cloud, volume: &str, snapshot: &str, op: Op) -> Reply {
    let snap =
        |force: bool| cloud.post("snapshots", json!({ "snapshot": { "volume_id": volume, "force": force } }));
    match op {
        Op::Extend => cloud.action(volume, json!({ "os-extend": { "new_size": 2 } })),
        Op::Snapshot => snap(false),
        Op::SnapshotForced => snap(true),
        Op::Rollback => {
            let body = json!({ "rollback": { "volume_id": volume } });
            cloud.post(&format!("os-vendor-snapshots/{snapshot}/rollback"), body)
        }
        Op::Delete => cloud.delete(&format!("volumes/{volume}")),
        Op::Attach => {
            let body = json!({ "os-attach": { "instance_uuid": "another", "mountpoint": "/dev/vdc" } });
            cloud.action(volume, body)
        }
        Op::Detach => cloud.action(volume, json!({ "os-detach": {} })),
        Op::Clone => cloud.post("volumes", json!({ "volume": { "source_volid": volume } })),
        Op::Rename => cloud.put(&format!("volumes/{volume}"), json!({ "volume": { "name": "renamed" } })),
        Op::Reserve => cloud.action(volume, json!({ "os-reserve": {} })),
        Op::Bootable => cloud.action(volume, json!({ "os-set_bootable": { "bootable": true } })),
        Op::ReadOnly => cloud.action(volume, json!({ "os-update_readonly_flag": { "readonly": true } })),
        Op::Show => cloud.get(&format!("volumes/{volume}")),
    }
}

/// Brings a volume into a status.
fn bring(cloud: &Cloud, volume: &str, status: VolumeStatus) -> Option<VolumeJob> {
    match status {
        VolumeStatus::Available => None,
        VolumeStatus::InUse => {
            cloud.attach(volume, "server");
            None
        }
        error if error.is_error() => {
            cloud.pool.reset_volume_status(volume_id(volume), error).unwrap();
            None
        }
        transient => {
            if transient == VolumeStatus::Detaching {
                cloud.attach(volume, "server");
            }
            Some(cloud.pool.begin_volume_job(volume_id(volume), transient).unwrap())
        }
    }
}

#[test]
fn op_072_every_status_of_a_volume_allows_what_the_table_says() {
    use VolumeStatus as S;
    for &status in VolumeStatus::ALL {
        for shared in [false, true] {
            for op in OPS {
                let cloud = Cloud::new();
                let volume = cloud.make(json!({ "multiattach": shared }));
                let snapshot = cloud.snapshot(&volume);
                let job = bring(&cloud, &volume, status);
                assert_eq!(cloud.status(&volume), status.as_str());
                let before = cloud.face();
                let reply = perform(&cloud, &volume, &snapshot, op);
                if allowed(status, shared, op) {
                    assert!([200, 202].contains(&reply.status), "{status} {op:?}: {}", reply.text);
                } else {
                    let code = match (op, status) {
                        (Op::Extend, S::InUse) => "EVS.1065",
                        (Op::Extend, _) => "EVS.1064",
                        (Op::Delete, S::BackingUp) => "EVS.2130",
                        (Op::Delete, _) => "EVS.1046",
                        _ => "EVS.5400",
                    };
                    reply.refused(400, code);
                    assert_eq!(before, cloud.face(), "{status} {op:?} left a trace");
                }
                drop(job);
            }
        }
    }
}

#[test]
fn op_072_backups_and_block_io_follow_the_status() {
    use VolumeStatus as S;
    for &status in VolumeStatus::ALL {
        let cloud = Cloud::new();
        let volume = cloud.volume();
        // Held open before the status: reads and writes go on, or the status wants it detached.
        let disk = cloud.disk(&volume);
        let job = match status {
            S::Available | S::InUse => None,
            error if error.is_error() => {
                assert!(cloud.pool.reset_volume_status(volume_id(&volume), error).is_err(), "{status}");
                continue;
            }
            transient => match cloud.pool.begin_volume_job(volume_id(&volume), transient) {
                Ok(job) => Some(job),
                Err(refused) => {
                    assert!(matches!(refused, snapvol::Error::InvalidState { .. }), "{status}: {refused}");
                    assert!(![S::Extending, S::BackingUp].contains(&status));
                    continue;
                }
            },
        };
        let goes_on = [S::Available, S::InUse, S::Extending, S::BackingUp, S::Detaching];
        assert!(goes_on.contains(&status), "{status} begins while a disk is open");
        disk.write_at(&[5; 4096], 0).unwrap();
        disk.read_at(&mut [0; 4096], 0).unwrap();
        drop((job, disk));
    }
    for &status in VolumeStatus::ALL {
        let cloud = Cloud::new();
        let volume = cloud.volume();
        let job = bring(&cloud, &volume, status);
        let opened = cloud.pool.attach(volume_id(&volume), AttachOptions::new()).is_ok();
        // A handle uses the attachment that a server has.
        assert_eq!(opened, [S::Available, S::InUse].contains(&status), "{status}");
        let before = cloud.face();
        let backup = cloud.pool.begin_backup(volume_id(&volume), snapvol::SnapshotSpec::new());
        match &backup {
            Ok(_) => assert!([S::Available, S::InUse].contains(&status), "{status}"),
            Err(refused) => {
                assert!(matches!(refused, snapvol::Error::InvalidState { op: "backup", .. }), "{refused}");
                assert_eq!(before, cloud.face(), "{status} left a trace");
                assert!(![S::Available, S::InUse].contains(&status), "{status}");
            }
        }
        drop((job, backup));
    }
}

#[test]
fn op_072_every_status_of_a_snapshot_allows_what_the_table_says() {
    use SnapshotStatus as S;
    for &status in SnapshotStatus::ALL {
        for op in ["clone", "rollback", "delete", "rename", "cascade", "show"] {
            let cloud = Cloud::new();
            let volume = cloud.volume();
            let snapshot = cloud.snapshot(&volume);
            let id = snapshot_id(&snapshot);
            let job: Option<SnapshotJob> = match status {
                S::Available => None,
                S::Error | S::ErrorDeleting => {
                    cloud.pool.reset_snapshot_status(id, status).unwrap();
                    None
                }
                transient => Some(cloud.pool.begin_snapshot_job(id, transient).unwrap()),
            };
            let at = format!("snapshots/{snapshot}");
            assert_eq!(cloud.get(&at).body["snapshot"]["status"], status.as_str());
            let before = cloud.face();
            let (reply, code) = match op {
                "clone" => {
                    (cloud.post("volumes", json!({ "volume": { "snapshot_id": snapshot } })), "EVS.2043")
                }
                "rollback" => (perform(&cloud, &volume, &snapshot, Op::Rollback), "EVS.5400"),
                "delete" => (cloud.delete(&at), "EVS.1047"),
                "rename" => (cloud.put(&at, json!({ "snapshot": { "name": "renamed" } })), "EVS.5400"),
                "cascade" => (cloud.delete(&format!("volumes/{volume}")), "EVS.1047"),
                _ => (cloud.get(&at), ""),
            };
            let allowed = match (op, status) {
                ("show", _) => true,
                ("rename", status) => status != S::Deleting,
                (_, S::Available) | ("delete" | "cascade", S::Error) => true,
                _ => false,
            };
            if allowed {
                assert!([200, 202].contains(&reply.status), "{status} {op}: {}", reply.text);
            } else {
                reply.refused(400, code);
                assert_eq!(before, cloud.face(), "{status} {op} left a trace");
            }
            drop(job);
        }
    }
}
