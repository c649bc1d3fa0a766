//! The rules of the room, asked through its public doors.

use crate::sources::{SequentialIds, StepClock};
use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;

use uuid::Uuid;

use super::catalogue::Table;
use super::*;
use crate::device::MemoryDevice;
use crate::error::Error;
use crate::units::{SnapshotId, VolumeId};

pub(super) fn pool() -> Pool {
    let options = CreateOptions::new()
        .limit_bytes(1 << 30)
        .background(Background::Manual)
        .id_source(Arc::new(SequentialIds::new(1)))
        .clock(Arc::new(StepClock::new(1000, 1)));
    Pool::create_in_memory(options).unwrap()
}

fn blank(pool: &Pool, blocks: u64) -> VolumeId {
    pool.create_volume(VolumeSpec::blank(blocks * 4096)).unwrap().id
}

fn attach(pool: &Pool, id: VolumeId) -> Disk {
    pool.attach(id, AttachOptions::new()).unwrap()
}

fn read(disk: &Disk, offset: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0xEE; len];
    disk.read_at(&mut buf, offset).unwrap();
    buf
}

/// All that a listing shows, to see that a refused call left no trace.
fn face(pool: &Pool) -> String {
    let volumes = pool.list_volumes(&VolumeQuery::new()).unwrap();
    let snapshots = pool.list_snapshots(&SnapshotQuery::new()).unwrap();
    format!("{volumes:?} {snapshots:?}")
}

/// Every pair of this room's tables.
fn stored(pool: &Pool) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut all = Vec::new();
    let table: &dyn Table = &*pool.inner.engine;
    table
        .scan(&[0x01], &[0x80], &mut |k, v| {
            all.push((k.to_vec(), v.to_vec()));
            true
        })
        .unwrap();
    all
}

#[test]
fn a_volume_shows_what_it_was_created_with() {
    let pool = pool();
    let spec = VolumeSpec::blank(10 << 20).name("n").description("d").metadata("k", "v").multiattach(true);
    let made = pool.create_volume(spec).unwrap();
    assert_eq!(made, pool.volume(made.id).unwrap());
    assert_eq!((made.name.as_deref(), made.description.as_deref()), (Some("n"), Some("d")));
    assert_eq!((made.size_bytes, made.status, made.multiattach), (10 << 20, VolumeStatus::Available, true));
    assert_eq!((made.source, made.handles, made.snapshot_count), (VolumeSource::Blank, 0, 0));
    assert_eq!(made.updated_at_micros, None);
    let renamed = pool.rename_volume(made.id, "m").unwrap();
    assert!(renamed.updated_at_micros.unwrap() > renamed.created_at_micros);
    assert_eq!(renamed.metadata, BTreeMap::from([("k".into(), "v".into())]));
    let bare = VolumeUpdate::new().name(None).description(None).metadata(BTreeMap::new());
    let bare = pool.update_volume(made.id, bare).unwrap();
    assert_eq!((bare.name, bare.description, bare.metadata.len()), (None, None, 0));
}

#[test]
fn a_mebibyte_of_metadata_is_kept_and_taken_back() {
    let pool = pool();
    let empty = stored(&pool).len();
    let many: BTreeMap<String, String> = (0..4096).map(|i| (format!("{i:0>4}"), "v".repeat(252))).collect();
    let id = pool.create_volume(VolumeSpec::blank(4096).metadata_map(many.clone())).unwrap().id;
    assert_eq!(pool.volume(id).unwrap().metadata, many);
    pool.update_volume(id, VolumeUpdate::new().metadata(BTreeMap::new())).unwrap();
    // The record, two listings, the alias and the usage of the project.
    assert_eq!(stored(&pool).len(), empty + 5);
    pool.update_volume(id, VolumeUpdate::new().metadata(many)).unwrap();
    let _ = pool.delete_volume(id, Snapshots::Refuse).unwrap();
    assert_eq!(stored(&pool).len(), empty);
}

#[test]
fn refused_calls_leave_no_trace() {
    let pool = pool();
    let id = blank(&pool, 2);
    let snapshot = pool.create_snapshot(id, SnapshotSpec::new()).unwrap().id;
    let long = "x".repeat(256);
    let before = (face(&pool), stored(&pool));
    let nobody = Uuid::from_u128(1 << 100);
    let (no_volume, no_snapshot) = (VolumeId::new(nobody), SnapshotId::new(nobody));
    let refusals: Vec<(&str, Error)> = vec![
        ("size_bytes", pool.create_volume(VolumeSpec::blank(0)).unwrap_err()),
        ("size_bytes", pool.create_volume(VolumeSpec::blank(4095)).unwrap_err()),
        ("size_bytes", pool.create_volume(VolumeSpec::from_snapshot(snapshot).size(4096)).unwrap_err()),
        ("name", pool.create_volume(VolumeSpec::blank(4096).name(&long)).unwrap_err()),
        ("name", pool.create_volumes(VolumeSpec::blank(4096).name(&long[..251]), 2).unwrap_err()),
        ("count", pool.create_volumes(VolumeSpec::blank(4096), 0).unwrap_err()),
        ("count", pool.create_volumes(VolumeSpec::blank(4096), 101).unwrap_err()),
        ("id", pool.create_volumes(VolumeSpec::blank(4096).id(no_volume), 2).unwrap_err()),
        ("id", pool.create_volume(VolumeSpec::blank(4096).id(VolumeId::new(Uuid::max()))).unwrap_err()),
        ("metadata", pool.create_volume(VolumeSpec::blank(4096).metadata(&long, "")).unwrap_err()),
        ("update", pool.update_volume(id, VolumeUpdate::new()).unwrap_err()),
        ("update", pool.update_snapshot(snapshot, SnapshotUpdate::new()).unwrap_err()),
        ("size_bytes", pool.extend(id, 8192).unwrap_err()),
        ("size_bytes", pool.extend(id, 4096).unwrap_err()),
        ("description", pool.create_snapshot(id, SnapshotSpec::new().description(&long)).unwrap_err()),
        ("name", pool.rename_snapshot(snapshot, long.clone()).unwrap_err()),
    ];
    for (want, error) in refusals {
        assert!(matches!(&error, Error::InvalidArgument { field, .. } if *field == want), "{want}: {error}");
    }
    let missing = [
        pool.create_volume(VolumeSpec::from_snapshot(no_snapshot)).unwrap_err(),
        pool.create_volume(VolumeSpec::from_volume(no_volume)).unwrap_err(),
        pool.extend(no_volume, 1 << 30).unwrap_err(),
        pool.delete_volume(no_volume, Snapshots::Delete).unwrap_err(),
        pool.create_snapshot(no_volume, SnapshotSpec::new()).unwrap_err(),
        pool.rollback(no_snapshot).unwrap_err(),
        pool.delete_snapshot(no_snapshot).unwrap_err(),
        pool.hold_snapshot(no_snapshot).unwrap_err(),
        pool.diff(no_snapshot, id).unwrap_err(),
        pool.diff(id, no_volume).unwrap_err(),
        pool.attach(no_volume, AttachOptions::new()).unwrap_err(),
        pool.attach_snapshot(no_snapshot).unwrap_err(),
        pool.volume_space(no_volume).unwrap_err(),
    ];
    for error in missing {
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
    }
    let taken = pool.create_volume(VolumeSpec::blank(4096).id(id)).unwrap_err();
    assert!(matches!(taken, Error::AlreadyExists { object: "volume", .. }));
    let taken = pool.create_volume(VolumeSpec::blank(4096).id(VolumeId::new(snapshot.raw()))).unwrap_err();
    assert!(matches!(taken, Error::AlreadyExists { object: "snapshot", .. }));
    assert_eq!(before, (face(&pool), stored(&pool)));
}

#[test]
fn several_volumes_are_numbered_and_come_together() {
    let pool = pool();
    let names: Vec<_> = pool
        .create_volumes(VolumeSpec::blank(4096).name("v"), 3)
        .unwrap()
        .into_iter()
        .map(|v| v.name.unwrap())
        .collect();
    assert_eq!(names, ["v-0001", "v-0002", "v-0003"]);
    let one = pool.create_volumes(VolumeSpec::blank(4096).name("w"), 1).unwrap();
    assert_eq!(one[0].name.as_deref(), Some("w"));
    assert!(pool.create_volumes(VolumeSpec::blank(4096).name("x".repeat(250)), 100).is_ok());
}

#[test]
fn an_attached_volume_allows_what_the_documents_say() {
    let pool = pool();
    let id = blank(&pool, 4);
    let snapshot = pool.create_snapshot(id, SnapshotSpec::new()).unwrap().id;
    let disk = attach(&pool, id);
    assert_eq!(pool.volume(id).unwrap().status, VolumeStatus::InUse);
    let before = stored(&pool);
    let in_use = |e: Error, want: &str| {
        assert!(
            matches!(&e, Error::InvalidState { object: "volume", status: "in-use", op, .. } if *op == want),
            "{e}"
        );
    };
    in_use(pool.attach(id, AttachOptions::new()).unwrap_err(), "attach");
    in_use(pool.create_snapshot(id, SnapshotSpec::new()).unwrap_err(), "create_snapshot");
    in_use(pool.rollback(snapshot).unwrap_err(), "rollback");
    in_use(pool.delete_volume(id, Snapshots::Delete).unwrap_err(), "delete");
    assert_eq!(before, stored(&pool));
    assert!(matches!(pool.clone().close(), Err(Error::Busy { object: "pool", .. })));
    disk.write_at(&[7; 4096], 0).unwrap();
    let forced = pool.create_snapshot(id, SnapshotSpec::new().force(true)).unwrap();
    disk.write_at(&[8; 4096], 0).unwrap();
    assert_eq!(pool.extend(id, 8 * 4096).unwrap().size_bytes, disk.size_bytes());
    disk.write_at(&[9; 4096], 7 * 4096).unwrap();
    pool.rollback_with(forced.id, RollbackOptions::new().live(true)).unwrap();
    assert_eq!(read(&disk, 0, 4096), [7; 4096]);
    assert_eq!(read(&disk, 7 * 4096, 4096), [0; 4096]);
    assert_eq!(pool.volume(id).unwrap().size_bytes, 8 * 4096);
    drop(disk);
    assert_eq!(pool.volume(id).unwrap().status, VolumeStatus::Available);
    pool.rollback(snapshot).unwrap();
    assert_eq!(read(&attach(&pool, id), 0, 4096), [0; 4096]);
}

#[test]
fn a_shared_volume_takes_sixteen_disks() {
    let pool = pool();
    let id = pool.create_volume(VolumeSpec::blank(4096).multiattach(true)).unwrap().id;
    let mut disks: Vec<Disk> = (0..16).map(|_| attach(&pool, id)).collect();
    assert_eq!(pool.volume(id).unwrap().handles, 16);
    let over = pool.attach(id, AttachOptions::new()).unwrap_err();
    assert!(matches!(over, Error::LimitExceeded { limit: 16, .. }), "{over}");
    assert!(matches!(pool.extend(id, 8192), Err(Error::InvalidState { op: "extend", .. })));
    disks.truncate(1);
    assert!(matches!(
        pool.delete_volume(id, Snapshots::Refuse),
        Err(Error::InvalidState { op: "delete", .. })
    ));
    disks.clear();
    assert!(pool.extend(id, 8192).is_ok());
    assert!(pool.delete_volume(id, Snapshots::Refuse).is_ok());
    assert!(matches!(pool.attach(id, AttachOptions::new()), Err(Error::NotFound { .. })));
}

#[test]
fn the_policy_decides_about_snapshots_of_a_deleted_volume() {
    let pool = pool();
    let empty = stored(&pool);
    let id = blank(&pool, 4);
    attach(&pool, id).write_at(b"kept", 0).unwrap();
    let first = pool.create_snapshot(id, SnapshotSpec::new()).unwrap().id;
    let second = pool.create_snapshot(id, SnapshotSpec::new()).unwrap().id;
    match pool.delete_volume(id, Snapshots::Refuse) {
        Err(Error::HasSnapshots { volume, snapshots }) => {
            assert_eq!((volume, snapshots), (id, vec![second, first]));
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(pool.plan_delete(id, Snapshots::Refuse), Err(Error::HasSnapshots { .. })));
    pool.hold_snapshot(first).unwrap();
    match pool.delete_volume(id, Snapshots::Delete) {
        Err(Error::Busy { object: "snapshot", id, .. }) => assert_eq!(id, first.to_string()),
        other => panic!("{other:?}"),
    }
    assert!(matches!(pool.delete_snapshot(first), Err(Error::Busy { .. })));
    let deletion = pool.delete_volume(id, Snapshots::Keep).unwrap();
    assert_eq!((deletion.volume(), deletion.snapshots().len()), (Some(id), 0));
    deletion.wait().unwrap();
    assert!(!pool.snapshot(first).unwrap().volume_exists);
    assert!(matches!(pool.rollback(first), Err(Error::NotFound { object: "volume", .. })));
    // The snapshots still claim the id: a stranger must not inherit them.
    let taken = pool.create_volume(VolumeSpec::blank(4096).id(id));
    assert!(matches!(taken, Err(Error::AlreadyExists { .. })));
    let clone = pool.create_volume(VolumeSpec::from_snapshot(first)).unwrap();
    assert_eq!((clone.size_bytes, clone.source), (4 * 4096, VolumeSource::Snapshot(first)));
    assert_eq!(&read(&attach(&pool, clone.id), 0, 4), b"kept");
    pool.release_snapshot(first).unwrap();
    let _ = pool.delete_snapshot(first).unwrap();
    let _ = pool.delete_snapshot(second).unwrap();
    assert_eq!(&read(&attach(&pool, clone.id), 0, 4), b"kept");
    let _ = pool.delete_volume(clone.id, Snapshots::Refuse).unwrap();
    assert_eq!(stored(&pool), empty);
}

#[test]
fn a_cascade_takes_the_snapshots_and_leaves_the_clones() {
    let pool = pool();
    let id = blank(&pool, 4);
    attach(&pool, id).write_at(b"data", 4096).unwrap();
    let snapshots: Vec<_> =
        (0..3).map(|_| pool.create_snapshot(id, SnapshotSpec::new()).unwrap().id).collect();
    let clone = pool.create_volume(VolumeSpec::from_snapshot(snapshots[1]).size(1 << 20)).unwrap().id;
    let plan = pool.plan_delete(id, Snapshots::Delete).unwrap();
    assert_eq!((plan.volume, plan.snapshots.len()), (Some(id), 3));
    let reader = pool.attach_snapshot(snapshots[0]).unwrap();
    assert!(matches!(pool.delete_volume(id, Snapshots::Delete), Err(Error::Busy { .. })));
    // The refused delete keeps nobody out.
    drop(attach(&pool, id));
    drop(reader);
    let gone = pool.delete_volume(id, Snapshots::Delete).unwrap();
    assert_eq!(gone.snapshots().len(), 3);
    gone.wait().unwrap();
    for snapshot in snapshots {
        assert!(matches!(pool.snapshot(snapshot), Err(Error::NotFound { .. })));
    }
    assert_eq!(&read(&attach(&pool, clone), 4096, 4), b"data");
    assert_eq!(read(&attach(&pool, clone), (1 << 20) - 4096, 4096), [0; 4096]);
}

#[test]
fn a_batch_happens_as_a_whole_or_not_at_all() {
    let pool = pool();
    let (a, b) = (blank(&pool, 2), blank(&pool, 2));
    let before = stored(&pool);
    let failed = pool.batch(|batch| {
        batch.create_snapshot(a, SnapshotSpec::new())?;
        batch.extend(b, 1 << 20)?;
        let _ = batch.delete_volume(a, Snapshots::Delete)?;
        batch.create_snapshot(a, SnapshotSpec::new())
    });
    assert!(matches!(failed, Err(Error::NotFound { .. })));
    assert_eq!(stored(&pool), before);
    drop(attach(&pool, a));
    let (first, clone) = pool
        .batch(|batch| {
            let first = batch.create_snapshot(a, SnapshotSpec::new().name("one"))?;
            let second = batch.create_snapshot(b, SnapshotSpec::new())?;
            assert_eq!(first.epoch, second.epoch);
            // An error that the caller swallows has done nothing.
            assert!(batch.extend(a, 4096).is_err());
            let clone = batch.create_volume(VolumeSpec::from_snapshot(first.id))?;
            batch.rollback(second.id)?;
            let _ = batch.delete_snapshot(second.id)?;
            assert_eq!(batch.volume(a)?.snapshot_count, 1);
            Ok((first, clone))
        })
        .unwrap();
    assert_eq!(pool.snapshot(first.id).unwrap(), first);
    assert_eq!(pool.volume(clone.id).unwrap(), clone);
    assert_eq!(pool.volume(b).unwrap().snapshot_count, 0);
    let later = pool.create_snapshot(a, SnapshotSpec::new()).unwrap();
    assert!(later.epoch > first.epoch);
}

#[test]
fn disks_check_their_bounds_and_their_mode() {
    let pool = pool();
    let id = blank(&pool, 4);
    let disk = attach(&pool, id);
    let mut buf = [0; 2];
    for (offset, len) in [(16384, 1), (16383, 2), (u64::MAX, 1), (u64::MAX, 2)] {
        let refused = disk.read_at(&mut buf[..len], offset);
        assert!(matches!(refused, Err(Error::InvalidArgument { field: "offset", .. })));
        assert!(disk.write_at(&buf[..len], offset).is_err());
        assert!(disk.discard(offset, len as u64).is_err());
        assert!(disk.write_zeroes(offset, len as u64).is_err());
    }
    disk.read_at(&mut [], 16384).unwrap();
    disk.write_at(&[], 16384).unwrap();
    disk.discard(16384, 0).unwrap();
    disk.write_zeroes(5, 0).unwrap();
    drop(disk);
    let snapshot = pool.create_snapshot(id, SnapshotSpec::new()).unwrap().id;
    let readers = [
        (pool.attach(id, AttachOptions::new().read_only(true)).unwrap(), "attachment"),
        (pool.attach_snapshot(snapshot).unwrap(), "snapshot"),
    ];
    for (disk, what) in readers {
        assert!(disk.is_read_only());
        for refused in [disk.write_at(b"x", 0), disk.discard(0, 4096), disk.write_zeroes(0, 1)] {
            assert!(matches!(refused, Err(Error::ReadOnly { object }) if object == what));
        }
        disk.flush().unwrap();
    }
}

#[test]
fn discard_takes_whole_blocks_and_write_zeroes_takes_every_byte() {
    let pool = pool();
    let id = blank(&pool, 6);
    let disk = attach(&pool, id);
    disk.write_fua_at(&[1; 6 * 4096], 0).unwrap();
    disk.discard(4096 - 1, 4096 + 2).unwrap();
    assert_eq!(read(&disk, 0, 4096), [1; 4096]);
    assert_eq!(read(&disk, 4096, 4096), [0; 4096]);
    assert_eq!(read(&disk, 8192, 4096), [1; 4096]);
    disk.write_zeroes(8192 + 5, 10).unwrap();
    let mut want = [1; 4096];
    want[5..15].fill(0);
    assert_eq!(read(&disk, 8192, 4096), want);
    disk.write_zeroes(3 * 4096 - 1, 4096 + 2).unwrap();
    assert_eq!(read(&disk, 3 * 4096 - 2, 4), [1, 0, 0, 0]);
    assert_eq!(read(&disk, 4 * 4096, 3), [0, 1, 1]);
    let extents: Vec<_> = disk.extents(0..u64::MAX).map(|e| e.map(|e| (e.range, e.kind)).unwrap()).collect();
    let want = vec![
        (0..4096, ExtentKind::Data),
        (4096..8192, ExtentKind::Hole),
        (8192..12288, ExtentKind::Data),
        (12288..16384, ExtentKind::Zero),
        (16384..24576, ExtentKind::Data),
    ];
    assert_eq!(extents, want);
    assert_eq!(disk.extents(5000..6000).next().unwrap().unwrap().range, 5000..6000);
    assert!(disk.extents(24576..30000).next().is_none());
}

#[test]
fn vectored_transfers_are_the_bytes_in_turn() {
    let pool = pool();
    let id = blank(&pool, 16);
    let disk = attach(&pool, id);
    let bytes: Vec<u8> = (0..50_000u32).map(|i| ((i * 7) >> 3) as u8).collect();
    for (offset, cuts) in [
        (0, vec![4096, 8192]),
        (1, vec![0, 1, 4095, 4096, 20_000]),
        (4000, vec![96, 97, 9000]),
        (4095, vec![]),
    ] {
        let mut rest = &bytes[..];
        let mut pieces = Vec::new();
        for cut in cuts {
            let (now, then) = rest.split_at(cut);
            pieces.push(IoSlice::new(now));
            rest = then;
        }
        pieces.push(IoSlice::new(rest));
        disk.write_zeroes(0, disk.size_bytes()).unwrap();
        disk.write_vectored_at(&pieces, offset).unwrap();
        assert_eq!(read(&disk, offset, bytes.len()), bytes);
        let (mut one, mut two) = (vec![0; 12_345], vec![0; 50_000 - 12_345]);
        disk.read_vectored_at(&mut [IoSliceMut::new(&mut one), IoSliceMut::new(&mut two)], offset).unwrap();
        assert_eq!([one, two].concat(), bytes);
    }
}

#[test]
fn a_diff_names_what_differs_and_stays_at_its_instant() {
    let pool = pool();
    let id = blank(&pool, 64);
    let disk = attach(&pool, id);
    disk.write_at(&[1; 8 * 4096], 0).unwrap();
    let before = pool.create_snapshot(id, SnapshotSpec::new().force(true)).unwrap().id;
    disk.write_at(&[2; 2 * 4096], 2 * 4096).unwrap();
    disk.discard(6 * 4096, 4096).unwrap();
    disk.write_zeroes(20 * 4096, 4096).unwrap();
    pool.extend(id, 70 * 4096).unwrap();
    disk.write_at(&[3; 10], 69 * 4096).unwrap();
    let catalogue = stored(&pool).len();
    let diff = pool.diff(before, id).unwrap();
    assert_eq!(diff.size_bytes(), 70 * 4096);
    // Whatever happens now is no concern of the comparison.
    disk.write_at(&[9; 32 * 4096], 0).unwrap();
    assert_eq!(pool.list_snapshots(&SnapshotQuery::new()).unwrap().items.len(), 1);
    let _ = pool.delete_snapshot(before).unwrap();
    let changes: Vec<_> =
        diff.map(|c| c.map(|c| (c.range.start / 4096, c.range.end / 4096, c.kind)).unwrap()).collect();
    use ExtentKind::{Data, Hole, Zero};
    assert_eq!(changes, [(2, 4, Data), (6, 7, Hole), (20, 21, Zero), (69, 70, Data)]);
    assert!(stored(&pool).len() < catalogue);
    let now = pool.create_snapshot(id, SnapshotSpec::new().force(true)).unwrap().id;
    assert_eq!(pool.diff(now, id).unwrap().count(), 0);
    let rest: Vec<_> = pool.allocated(now).unwrap().map(|c| c.unwrap().range).collect();
    assert_eq!(rest, [0..32 * 4096, 69 * 4096..70 * 4096]);
    let blank = blank(&pool, 64);
    let from = pool.diff_from(blank, now, 40 * 4096 + 17).unwrap().next().unwrap().unwrap();
    assert_eq!(from.range, 69 * 4096..70 * 4096);
    // Nothing is reported beyond the smaller second point.
    let holes: Vec<_> = pool.diff(now, blank).unwrap().map(|c| c.unwrap()).collect();
    assert_eq!(holes.len(), 1);
    assert_eq!((holes[0].range.clone(), holes[0].kind), (0..32 * 4096, Hole));
}

#[test]
fn a_comparison_of_many_pieces_is_whole() {
    let pool = pool();
    let id = blank(&pool, 4096);
    let disk = attach(&pool, id);
    for lba in (0..4096).step_by(2) {
        disk.write_at(&[5; 4096], lba * 4096).unwrap();
    }
    let ranges: Vec<_> = pool.allocated(id).unwrap().map(|c| c.unwrap().range.start / 4096).collect();
    assert_eq!(ranges, (0..4096).step_by(2).collect::<Vec<u64>>());
    disk.write_at(&vec![6; 4096 * 4096], 0).unwrap();
    let whole: Vec<_> = pool.allocated(id).unwrap().map(|c| c.unwrap().range).collect();
    assert_eq!(whole, vec![0..4096 * 4096]);
}

#[test]
fn a_closed_pool_says_so() {
    let pool = pool();
    let id = blank(&pool, 1);
    let again = pool.clone();
    pool.close().unwrap();
    assert!(matches!(again.volume(id), Err(Error::Closed)));
    assert!(matches!(again.attach(id, AttachOptions::new()), Err(Error::Closed)));
    assert!(matches!(again.create_volume(VolumeSpec::blank(4096)), Err(Error::Closed)));
    again.close().unwrap();
}

#[test]
fn attaching_and_deleting_at_once_never_leaves_a_disk_without_a_volume() {
    let pool = pool();
    for _ in 0..200 {
        let id = blank(&pool, 1);
        let barrier = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            let attached = scope.spawn(|| {
                barrier.wait();
                pool.attach(id, AttachOptions::new())
            });
            barrier.wait();
            let deleted = pool.delete_volume(id, Snapshots::Refuse);
            match (attached.join().unwrap(), deleted) {
                (Ok(disk), Err(Error::InvalidState { status: "in-use", .. })) => {
                    disk.write_at(b"x", 0).unwrap()
                }
                (Err(Error::NotFound { .. } | Error::InvalidState { status: "deleting", .. }), Ok(_)) => {}
                // The attachment lost only because the delete was still looking.
                (Ok(_), Ok(_)) => panic!("a disk without a volume"),
                (attached, deleted) => panic!("{attached:?} {deleted:?}"),
            }
        });
    }
}

#[test]
fn paths_are_created_once_and_a_failed_create_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pool");
    let options = || CreateOptions::new().limit_bytes(1 << 30);
    assert!(Pool::create(&path, options().log_bytes(1)).is_err());
    assert!(!path.exists());
    let pool = Pool::create(&path, options()).unwrap();
    assert!(matches!(Pool::create(&path, options()), Err(Error::AlreadyExists { object: "pool", .. })));
    pool.close().unwrap();
    assert!(matches!(Pool::create(&path, options()), Err(Error::AlreadyExists { object: "pool", .. })));
    assert!(matches!(
        Pool::open(dir.path().join("no"), OpenOptions::new()),
        Err(Error::Io { op: "open", .. })
    ));
}

#[test]
fn ephemeral_copies_that_were_left_behind_go_at_the_next_open() {
    let device = MemoryDevice::new();
    let options = CreateOptions::new().limit_bytes(1 << 30).background(Background::Manual);
    let pool = Pool::create_on(device.share(), options).unwrap();
    let id = blank(&pool, 4);
    attach(&pool, id).write_at(&[1; 4096], 0).unwrap();
    let clean = stored(&pool);
    let diff = pool.allocated(id).unwrap();
    assert_eq!(stored(&pool).len(), clean.len() + 1);
    pool.close().unwrap();
    // Too late to tidy up: the pool is closed.
    drop(diff);
    let pool = Pool::open_on(device.share(), OpenOptions::new().background(Background::Manual)).unwrap();
    assert_eq!(stored(&pool), clean);
    assert_eq!(read(&attach(&pool, id), 0, 4096), [1; 4096]);
    drop(pool);
    let pool = Pool::open_on(device.share(), OpenOptions::new().read_only(true)).unwrap();
    assert!(pool.is_read_only());
    assert!(matches!(pool.create_volume(VolumeSpec::blank(4096)), Err(Error::ReadOnly { object: "pool" })));
    let disk = attach(&pool, id);
    assert!(matches!(disk.write_at(b"x", 0), Err(Error::ReadOnly { object: "pool" })));
    assert_eq!(read(&disk, 0, 4096), [1; 4096]);
    // Nothing changes in a read-only pool, so a comparison holds nothing.
    assert!(pool.diff(id, id).unwrap().next().is_none());
}

#[test]
fn an_id_comes_back_only_when_its_space_has_and_then_reads_zero() {
    let pool = pool();
    let id = blank(&pool, 4);
    let spec = || VolumeSpec::blank(4 * 4096).id(id);
    attach(&pool, id).write_at(&[1; 4 * 4096], 0).unwrap();
    pool.checkpoint().unwrap();
    let gone = pool.delete_volume(id, Snapshots::Refuse).unwrap();
    assert!(matches!(pool.create_volume(spec()), Err(Error::Busy { object: "volume", .. })));
    assert_eq!(gone.wait().unwrap().freed_bytes, 4 * 4096);
    pool.create_volume(spec()).unwrap();
    assert_eq!(read(&attach(&pool, id), 0, 4 * 4096), [0; 4 * 4096]);
    attach(&pool, id).write_at(&[2; 4096], 4096).unwrap();
    assert_eq!(pool.volume_space(id).unwrap().exclusive_bytes, 4096);
    let again = pool.delete_volume(id, Snapshots::Refuse).unwrap().wait().unwrap();
    assert_eq!(again.freed_bytes, 4096);
}
