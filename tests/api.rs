//! The public verbs, one by one, as the documents describe them (operations reference, sections 2, 3 and 5).
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IoSlice, IoSliceMut};

use common::rng::Rng;
use common::{Shape, assert_sound};
use snapvol::device::MemoryDevice;
use snapvol::{
    AttachOptions, Background, Change, CheckOptions, CreateOptions, Deletion, Diff, Disk, Error, ExtentKind,
    OpenOptions, Pool, ReadMode, RollbackOptions, SnapshotQuery, SnapshotSpec, SnapshotStatus,
    SnapshotUpdate, Snapshots, VolumeId, VolumeQuery, VolumeSource, VolumeSpec, VolumeStatus, VolumeUpdate,
};
use uuid::Uuid;

const BLOCK: u64 = 4096;
const SIZE: u64 = 64 * BLOCK;

fn pool() -> Pool {
    Pool::create_on(MemoryDevice::new(), Shape::SMALL.limit(64 << 20).create()).unwrap()
}

fn data(stamp: u64, blocks: u64) -> Vec<u8> {
    Rng::stamp_bytes(stamp, (blocks * BLOCK) as usize)
}

fn read(disk: &Disk) -> Vec<u8> {
    common::observe::read_all(disk).unwrap()
}

fn content(pool: &Pool, id: VolumeId) -> Vec<u8> {
    read(&pool.attach(id, AttachOptions::default().read_only(true)).unwrap())
}

fn write(pool: &Pool, id: VolumeId, stamp: u64, block: u64, blocks: u64) {
    let disk = pool.attach(id, AttachOptions::default()).unwrap();
    disk.write_at(&data(stamp, blocks), block * BLOCK).unwrap();
}

fn drain(pool: &Pool) {
    while pool.step(4096).unwrap() {}
}

#[test]
fn handles_are_send_and_sync() {
    fn both<T: Send + Sync>() {}
    both::<Pool>();
    both::<Disk>();
    both::<Diff>();
    both::<Deletion>();
    both::<Error>();
}

// ---- Volumes -------------------------------------------------------------------------------------------

#[test]
fn blank_volume_reads_zero_and_shows_what_it_was_given() {
    let pool = pool();
    let id = VolumeId::new(Uuid::from_u128(77));
    let spec = VolumeSpec::blank(SIZE).id(id).name("root").description("first").metadata("owner", "me");
    let made = pool.create_volume(spec).unwrap();
    let shown = pool.volume(id).unwrap();
    assert_eq!(made, shown);
    assert_eq!(shown.id, id);
    assert_eq!((shown.name.as_deref(), shown.description.as_deref()), (Some("root"), Some("first")));
    assert_eq!(shown.metadata, BTreeMap::from([("owner".into(), "me".into())]));
    assert_eq!((shown.size_bytes, shown.status), (SIZE, VolumeStatus::Available));
    assert_eq!((shown.source, shown.multiattach), (VolumeSource::Blank, false));
    assert_eq!((shown.handles, shown.snapshot_count, shown.updated_at_micros), (0, 0, None));
    assert_eq!(content(&pool, id), vec![0; SIZE as usize]);
    let unnamed = pool.create_volume(VolumeSpec::blank(BLOCK)).unwrap();
    assert_eq!((unnamed.name, unnamed.description), (None, None));
    assert!(unnamed.metadata.is_empty());
    assert_ne!(unnamed.id, id);
}

#[test]
fn several_volumes_at_once_are_numbered_and_all_or_nothing() {
    // All hundred go into one record of the log, which has to be large enough.
    let options = CreateOptions::new().log_bytes(1 << 20).limit_bytes(1 << 30).background(Background::Manual);
    let pool = Pool::create_on(MemoryDevice::new(), options).unwrap();
    let many = pool.create_volumes(VolumeSpec::blank(SIZE).name("node"), 100).unwrap();
    let names: Vec<_> = many.iter().map(|v| v.name.clone().unwrap()).collect();
    assert_eq!(
        (names[0].as_str(), names[1].as_str(), names[99].as_str()),
        ("node-0001", "node-0002", "node-0100")
    );
    let ids: BTreeSet<_> = many.iter().map(|v| v.id).collect();
    assert_eq!(ids.len(), 100);
    assert_eq!(
        pool.create_volumes(VolumeSpec::blank(SIZE).name("one"), 1).unwrap()[0].name.as_deref(),
        Some("one")
    );
    assert_eq!(pool.create_volumes(VolumeSpec::blank(SIZE), 2).unwrap()[1].name, None);
    let page = pool.list_volumes(&VolumeQuery::new().with_total(true)).unwrap();
    assert_eq!((page.items.len(), page.total, page.next), (103, Some(103), None));
    // From a snapshot, too: each is a clone.
    write(&pool, many[0].id, 1, 0, 4);
    let snapshot = pool.create_snapshot(many[0].id, SnapshotSpec::new()).unwrap();
    for clone in pool.create_volumes(VolumeSpec::from_snapshot(snapshot.id), 3).unwrap() {
        assert_eq!(content(&pool, clone.id)[..4 * BLOCK as usize], data(1, 4));
    }
}

#[test]
fn volume_of_an_exbibyte_costs_a_catalogue_entry_and_works_at_both_ends() {
    let pool = pool();
    let before = pool.space().unwrap();
    let id = pool.create_volume(VolumeSpec::blank(1 << 60)).unwrap().id;
    let disk = pool.attach(id, AttachOptions::default()).unwrap();
    disk.write_at(b"end", (1 << 60) - 3).unwrap();
    disk.write_at(b"start", 0).unwrap();
    disk.write_at(b"middle", 1 << 59).unwrap();
    let mut end = [0; 6];
    disk.read_at(&mut end, (1 << 60) - 6).unwrap();
    assert_eq!(&end, b"\0\0\0end");
    let found: Vec<_> =
        disk.extents(0..1 << 60).map(|e| e.unwrap()).filter(|e| e.kind == ExtentKind::Data).collect();
    assert_eq!(found.iter().map(|e| e.range.start).collect::<Vec<_>>(), [0, 1 << 59, (1 << 60) - BLOCK]);
    disk.discard(0, 1 << 60).unwrap();
    disk.read_at(&mut end, (1 << 60) - 6).unwrap();
    assert_eq!(end, [0; 6]);
    drop(disk);
    pool.delete_volume(id, Snapshots::Refuse).unwrap().wait().unwrap();
    drain(&pool);
    pool.checkpoint().unwrap();
    assert_eq!(pool.space().unwrap().used_bytes, before.used_bytes);
    assert_sound(&pool);
}

#[test]
fn clone_is_independent_of_its_source_and_outlives_it() {
    let pool = pool();
    let id = pool.create_volume(VolumeSpec::blank(SIZE)).unwrap().id;
    write(&pool, id, 1, 0, 8);
    let snapshot = pool.create_snapshot(id, SnapshotSpec::new()).unwrap();
    let from_snapshot = pool.create_volume(VolumeSpec::from_snapshot(snapshot.id)).unwrap();
    assert_eq!((from_snapshot.size_bytes, from_snapshot.source), (SIZE, VolumeSource::Snapshot(snapshot.id)));
    let larger = pool.create_volume(VolumeSpec::from_snapshot(snapshot.id).size(2 * SIZE)).unwrap();
    // A volume may be cloned while it is attached.
    let disk = pool.attach(id, AttachOptions::default()).unwrap();
    let from_volume = pool.create_volume(VolumeSpec::from_volume(id)).unwrap();
    assert_eq!(from_volume.source, VolumeSource::Volume(id));
    disk.write_at(&data(2, 8), 0).unwrap();
    drop(disk);
    write(&pool, from_volume.id, 3, 4, 1);
    let mut expected = data(1, 8);
    assert_eq!(content(&pool, from_snapshot.id)[..8 * BLOCK as usize], expected);
    let larger = content(&pool, larger.id);
    assert_eq!(larger.len() as u64, 2 * SIZE);
    assert!(larger[8 * BLOCK as usize..].iter().all(|&b| b == 0));
    pool.delete_volume(id, Snapshots::Delete).unwrap().wait().unwrap();
    assert_eq!(content(&pool, from_snapshot.id)[..8 * BLOCK as usize], expected);
    expected[4 * BLOCK as usize..5 * BLOCK as usize].copy_from_slice(&data(3, 1));
    assert_eq!(content(&pool, from_volume.id)[..8 * BLOCK as usize], expected);
    // Where it came from is remembered and can be asked for, though it is gone.
    let made = pool.list_volumes(&VolumeQuery::new().created_from(snapshot.id)).unwrap().items;
    assert_eq!(made.len(), 2);
    assert_sound(&pool);
}

#[test]
fn lists_are_newest_first_and_filters_combine() {
    let pool = pool();
    let mut ids = Vec::new();
    for n in 0..25 {
        let name = if n % 5 == 0 { "same".to_string() } else { format!("Disk-{n}") };
        let spec =
            VolumeSpec::blank(SIZE).name(name).metadata("parity", if n % 2 == 0 { "even" } else { "odd" });
        ids.push(pool.create_volume(spec).unwrap().id);
    }
    let list = |query: VolumeQuery| {
        let page = pool.list_volumes(&query).unwrap();
        page.items.into_iter().map(|v| v.id).collect::<Vec<_>>()
    };
    let newest_first: Vec<_> = ids.iter().rev().copied().collect();
    assert_eq!(list(VolumeQuery::new()), newest_first);
    assert_eq!(list(VolumeQuery::new().limit(3)), newest_first[..3]);
    // Offset 11, limit 10 starts at the twelfth.
    assert_eq!(list(VolumeQuery::new().offset(11).limit(10)), newest_first[11..21]);
    assert_eq!(list(VolumeQuery::new().marker(newest_first[4]).limit(2)), newest_first[5..7]);
    assert_eq!(list(VolumeQuery::new().name("same")).len(), 5);
    assert_eq!(list(VolumeQuery::new().name("sam")).len(), 0);
    assert_eq!(list(VolumeQuery::new().text("DISK-1")).len(), 9);
    assert_eq!(list(VolumeQuery::new().text(&ids[7].to_string()[..])), [ids[7]]);
    assert_eq!(list(VolumeQuery::new().metadata("parity", "odd")).len(), 12);
    assert_eq!(list(VolumeQuery::new().metadata("parity", "odd").name("same")).len(), 2);
    let disk = pool.attach(ids[3], AttachOptions::default()).unwrap();
    assert_eq!(list(VolumeQuery::new().status(VolumeStatus::InUse)), [ids[3]]);
    assert_eq!(list(VolumeQuery::new().status(VolumeStatus::Available)).len(), 24);
    drop(disk);
    assert_eq!(list(VolumeQuery::new().status(VolumeStatus::InUse)), []);
    // Following the markers visits each once.
    let mut seen = Vec::new();
    let mut query = VolumeQuery::new().limit(7).with_total(true);
    loop {
        let page = pool.list_volumes(&query).unwrap();
        assert_eq!(page.total, Some(25), "the total is of all matches, not of the page");
        seen.extend(page.items.iter().map(|v| v.id));
        let Some(next) = page.next else { break };
        query = query.marker(next);
    }
    assert_eq!(seen, newest_first);
}

#[test]
fn update_changes_what_it_names_and_stamps_the_time() {
    let pool = pool();
    let made =
        pool.create_volume(VolumeSpec::blank(SIZE).name("a").description("d").metadata("k", "v")).unwrap();
    let renamed = pool.rename_volume(made.id, "b").unwrap();
    assert_eq!((renamed.name.as_deref(), renamed.description.as_deref()), (Some("b"), Some("d")));
    assert!(renamed.updated_at_micros > Some(made.created_at_micros));
    assert_eq!(renamed.created_at_micros, made.created_at_micros);
    let metadata = BTreeMap::from([("x".to_string(), "y".to_string())]);
    let update = VolumeUpdate::new().name(None).metadata(metadata.clone());
    let updated = pool.update_volume(made.id, update).unwrap();
    assert_eq!((updated.name, updated.description.as_deref()), (None, Some("d")));
    assert_eq!(updated.metadata, metadata);
    // Attached or not makes no difference to names.
    let _disk = pool.attach(made.id, AttachOptions::default()).unwrap();
    assert_eq!(pool.rename_volume(made.id, "c").unwrap().status, VolumeStatus::InUse);
    let snapshot = pool.create_snapshot(made.id, SnapshotSpec::new().name("s").force(true)).unwrap();
    assert_eq!(snapshot.updated_at_micros, None);
    let renamed = pool.rename_snapshot(snapshot.id, "t").unwrap();
    assert_eq!(renamed.name.as_deref(), Some("t"));
    let update = SnapshotUpdate::new().description(Some("why".into())).metadata(metadata.clone());
    let updated = pool.update_snapshot(snapshot.id, update).unwrap();
    assert_eq!((updated.name.as_deref(), updated.description.as_deref()), (Some("t"), Some("why")));
    assert_eq!((updated.metadata, updated.volume), (metadata, made.id));
}

#[test]
fn extend_keeps_data_reads_zero_behind_it_and_leaves_snapshots_alone() {
    let pool = pool();
    let id = pool.create_volume(VolumeSpec::blank(SIZE)).unwrap().id;
    write(&pool, id, 1, 60, 4);
    let snapshot = pool.create_snapshot(id, SnapshotSpec::new()).unwrap();
    let disk = pool.attach(id, AttachOptions::default()).unwrap();
    let volume = pool.extend(id, 2 * SIZE).unwrap();
    assert_eq!((volume.size_bytes, volume.status), (2 * SIZE, VolumeStatus::InUse));
    assert_eq!(disk.size_bytes(), 2 * SIZE, "an attached disk sees the new size at once");
    disk.write_at(b"far", 2 * SIZE - 3).unwrap();
    let all = read(&disk);
    assert_eq!(all[60 * BLOCK as usize..SIZE as usize], data(1, 4));
    assert!(all[SIZE as usize..2 * SIZE as usize - 3].iter().all(|&b| b == 0));
    assert_eq!(pool.snapshot(snapshot.id).unwrap().size_bytes, SIZE);
    assert_eq!(read(&pool.attach_snapshot(snapshot.id).unwrap()).len() as u64, SIZE);
    drop(disk);
    // Rollback keeps the larger size; behind the snapshot's it reads zero.
    let volume = pool.rollback(snapshot.id).unwrap();
    assert_eq!(volume.size_bytes, 2 * SIZE);
    let all = content(&pool, id);
    assert_eq!(all[60 * BLOCK as usize..SIZE as usize], data(1, 4));
    assert!(all[SIZE as usize..].iter().all(|&b| b == 0));
}

#[test]
fn delete_policies_refuse_take_along_or_keep_the_snapshots() {
    let pool = pool();
    let make = |stamp| {
        let id = pool.create_volume(VolumeSpec::blank(SIZE)).unwrap().id;
        write(&pool, id, stamp, 0, 10);
        let first = pool.create_snapshot(id, SnapshotSpec::new()).unwrap().id;
        write(&pool, id, stamp + 1, 0, 3);
        let second = pool.create_snapshot(id, SnapshotSpec::new()).unwrap().id;
        write(&pool, id, stamp + 2, 1, 1);
        (id, first, second)
    };
    let (id, first, second) = make(10);
    match pool.delete_volume(id, Snapshots::Refuse) {
        Err(Error::HasSnapshots { volume, snapshots }) => {
            assert_eq!(volume, id);
            assert_eq!(BTreeSet::from_iter(snapshots), BTreeSet::from([first, second]));
        }
        other => panic!("{other:?}"),
    }
    // The plan says what the delete does: 10 + 3 + 1 blocks belong to nobody else.
    let plan = pool.plan_delete(id, Snapshots::Delete).unwrap();
    assert_eq!((plan.volume, plan.frees_bytes), (Some(id), 14 * BLOCK));
    assert_eq!(BTreeSet::from_iter(plan.snapshots), BTreeSet::from([first, second]));
    assert_eq!(pool.plan_delete(id, Snapshots::Keep).unwrap().frees_bytes, BLOCK);
    assert_eq!(pool.plan_delete_snapshot(first).unwrap().frees_bytes, 3 * BLOCK);
    assert!(matches!(pool.plan_delete(id, Snapshots::Refuse), Err(Error::HasSnapshots { .. })));
    let deletion = pool.delete_volume(id, Snapshots::Delete).unwrap();
    assert_eq!(deletion.volume(), Some(id));
    for gone in [first, second] {
        assert!(matches!(pool.snapshot(gone), Err(Error::NotFound { .. })));
    }
    assert_eq!(deletion.wait().unwrap().freed_bytes, 14 * BLOCK);
    // Kept snapshots lose their volume and with it the rollback, nothing else.
    let (id, first, second) = make(20);
    pool.delete_volume(id, Snapshots::Keep).unwrap().wait().unwrap();
    let orphan = pool.snapshot(first).unwrap();
    assert_eq!((orphan.volume, orphan.volume_exists), (id, false));
    assert!(matches!(pool.rollback(first), Err(Error::NotFound { object: "volume", .. })));
    let clone = pool.create_volume(VolumeSpec::from_snapshot(second)).unwrap();
    assert_eq!(content(&pool, clone.id)[..3 * BLOCK as usize], data(21, 3));
    let mut changes = pool.diff(first, second).unwrap().map(|change| change.unwrap().range);
    assert_eq!((changes.next(), changes.next()), (Some(0..3 * BLOCK), None));
    drop(changes);
    assert_eq!(pool.list_snapshots(&SnapshotQuery::new().volume(id)).unwrap().items.len(), 2);
    pool.delete_snapshot(first).unwrap().wait().unwrap();
    pool.delete_snapshot(second).unwrap().wait().unwrap();
    assert_eq!(content(&pool, clone.id)[..3 * BLOCK as usize], data(21, 3));
    assert_sound(&pool);
}

#[test]
fn held_snapshot_refuses_delete_and_the_whole_cascade() {
    let pool = pool();
    let id = pool.create_volume(VolumeSpec::blank(SIZE)).unwrap().id;
    let free = pool.create_snapshot(id, SnapshotSpec::new()).unwrap().id;
    let held = pool.create_snapshot(id, SnapshotSpec::new()).unwrap().id;
    assert!(pool.hold_snapshot(held).unwrap().held);
    assert!(pool.hold_snapshot(held).unwrap().held, "holding twice is holding");
    let names_it = |outcome: Result<(), Error>| match outcome {
        Err(Error::Busy { object: "snapshot", id, .. }) => assert_eq!(id, held.to_string()),
        other => panic!("{other:?}"),
    };
    names_it(pool.delete_snapshot(held).map(drop));
    names_it(pool.delete_volume(id, Snapshots::Delete).map(drop));
    names_it(pool.plan_delete(id, Snapshots::Delete).map(drop));
    names_it(pool.plan_delete_snapshot(held).map(drop));
    assert!(pool.snapshot(free).is_ok() && pool.volume(id).is_ok());
    // To be held does not hinder anything else.
    pool.rollback(held).unwrap();
    pool.create_volume(VolumeSpec::from_snapshot(held)).unwrap();
    pool.delete_volume(id, Snapshots::Keep).unwrap().wait().unwrap();
    assert!(pool.snapshot(held).unwrap().held);
    assert!(!pool.release_snapshot(held).unwrap().held);
    pool.delete_snapshot(held).unwrap().wait().unwrap();
}

#[test]
fn delete_returns_at_once_and_tells_its_progress() {
    let pool = pool();
    let id = pool.create_volume(VolumeSpec::blank(1 << 30)).unwrap().id;
    write(&pool, id, 1, 0, 1000);
    let used = pool.space().unwrap().used_bytes;
    let deletion = pool.delete_volume(id, Snapshots::Refuse).unwrap();
    assert!(matches!(pool.volume(id), Err(Error::NotFound { .. })), "gone at once");
    assert!(!deletion.is_done(), "nobody has done the background work yet");
    while pool.step(16).unwrap() {}
    let progress = deletion.progress();
    assert!(progress.done && deletion.is_done());
    assert_eq!(progress.freed_bytes, 1000 * BLOCK);
    assert_eq!(deletion.wait().unwrap().freed_bytes, 1000 * BLOCK);
    pool.checkpoint().unwrap();
    drain(&pool);
    assert_eq!(pool.space().unwrap().used_bytes, used - 1000 * BLOCK);
    // A handle that is dropped loses nothing.
    let id = pool.create_volume(VolumeSpec::blank(SIZE)).unwrap().id;
    write(&pool, id, 2, 0, 5);
    drop(pool.delete_volume(id, Snapshots::Refuse).unwrap());
    drain(&pool);
    pool.checkpoint().unwrap();
    drain(&pool);
    assert_eq!(pool.space().unwrap().used_bytes, used - 1000 * BLOCK);
}

#[test]
fn deletes_that_nobody_waited_for_go_on_after_reopening() {
    let memory = MemoryDevice::new();
    let pool = Pool::create_on(memory.share(), Shape::SMALL.limit(64 << 20).create()).unwrap();
    let id = pool.create_volume(VolumeSpec::blank(1 << 30)).unwrap().id;
    write(&pool, id, 1, 0, 2000);
    drop(pool.delete_volume(id, Snapshots::Refuse).unwrap());
    pool.step(3).unwrap();
    pool.close().unwrap();
    let pool = Pool::open_on(memory, Shape::SMALL.open()).unwrap();
    assert_sound(&pool);
    drain(&pool);
    pool.checkpoint().unwrap();
    drain(&pool);
    assert_eq!(pool.space().unwrap().used_bytes, 0);
    assert_sound(&pool);
}

// ---- Attachments and disks ---------------------------------------------------------------------------------

#[test]
fn attachment_makes_a_volume_in_use_until_the_last_disk_is_dropped() {
    let pool = pool();
    let plain = pool.create_volume(VolumeSpec::blank(SIZE)).unwrap().id;
    let disk = pool.attach(plain, AttachOptions::default()).unwrap();
    let shown = pool.volume(plain).unwrap();
    assert_eq!((shown.status, shown.handles), (VolumeStatus::InUse, 1));
    assert!(matches!(pool.attach(plain, AttachOptions::default()), Err(Error::InvalidState { .. })));
    assert_eq!(disk.volume_id(), Some(plain));
    disk.detach();
    assert_eq!(pool.volume(plain).unwrap().status, VolumeStatus::Available);
    let shared = pool.create_volume(VolumeSpec::blank(SIZE).multiattach(true)).unwrap().id;
    let mut disks: Vec<_> = (0..16).map(|_| pool.attach(shared, AttachOptions::default()).unwrap()).collect();
    match pool.attach(shared, AttachOptions::default()) {
        Err(Error::LimitExceeded { limit: 16, .. }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(pool.volume(shared).unwrap().attachments.len(), 16);
    disks[3].write_at(b"shared", 5).unwrap();
    let mut seen = [0; 6];
    disks[9].read_at(&mut seen, 5).unwrap();
    assert_eq!(&seen, b"shared");
    while let Some(disk) = disks.pop() {
        assert!(pool.delete_volume(shared, Snapshots::Refuse).is_err(), "attached {} times", disks.len() + 1);
        drop(disk);
    }
    drop(pool.delete_volume(shared, Snapshots::Refuse).unwrap());
}

#[test]
fn attached_snapshot_cannot_be_deleted_and_never_changes() {
    let pool = pool();
    let id = pool.create_volume(VolumeSpec::blank(SIZE)).unwrap().id;
    write(&pool, id, 1, 0, 8);
    let snapshot = pool.create_snapshot(id, SnapshotSpec::new()).unwrap().id;
    let (one, two) = (pool.attach_snapshot(snapshot).unwrap(), pool.attach_snapshot(snapshot).unwrap());
    assert_eq!((one.snapshot_id(), one.volume_id(), one.is_read_only()), (Some(snapshot), None, true));
    write(&pool, id, 2, 0, 8);
    assert_eq!(read(&one), read(&two));
    assert_eq!(read(&one)[..8 * BLOCK as usize], data(1, 8));
    drop(one);
    assert!(matches!(pool.delete_snapshot(snapshot), Err(Error::Busy { .. })));
    assert!(matches!(pool.delete_volume(id, Snapshots::Delete), Err(Error::Busy { .. })));
    drop(two);
    drop(pool.delete_volume(id, Snapshots::Delete).unwrap());
}

#[test]
fn reads_and_writes_of_every_alignment_are_byte_exact() {
    let pool = pool();
    let id = pool.create_volume(VolumeSpec::blank(SIZE)).unwrap().id;
    let disk = pool.attach(id, AttachOptions::default()).unwrap();
    let mut expected = vec![0_u8; SIZE as usize];
    let mut rng = Rng::new(3);
    for round in 0..1_500_u64 {
        let len = match rng.below(4) {
            0 => rng.below(20) + 1,
            1 => rng.below(5_000) + 1,
            2 => (rng.below(8) + 1) * BLOCK,
            _ => rng.below(40_000) + 1,
        };
        let mut at = rng.below(SIZE - len);
        if rng.one_in(3) {
            at = at / BLOCK * BLOCK;
        }
        let (from, to) = (at as usize, (at + len) as usize);
        let bytes = Rng::stamp_bytes(round, len as usize);
        match rng.below(8) {
            0 => {
                disk.write_zeroes(at, len).unwrap();
                expected[from..to].fill(0);
            }
            1 => {
                // Blocks that are covered in part stay as they are.
                disk.discard(at, len).unwrap();
                let (first, last) = (at.div_ceil(BLOCK) * BLOCK, (at + len) / BLOCK * BLOCK);
                if first < last {
                    expected[first as usize..last as usize].fill(0);
                }
            }
            2 => {
                let cuts = [bytes.len() / 3, bytes.len() / 2];
                let parts = [&bytes[..cuts[0]], &[], &bytes[cuts[0]..cuts[1]], &bytes[cuts[1]..]];
                disk.write_vectored_at(&parts.map(IoSlice::new), at).unwrap();
                expected[from..to].copy_from_slice(&bytes);
            }
            3 => {
                disk.write_fua_at(&bytes, at).unwrap();
                expected[from..to].copy_from_slice(&bytes);
            }
            _ => {
                disk.write_at(&bytes, at).unwrap();
                expected[from..to].copy_from_slice(&bytes);
            }
        }
        let start = rng.below(SIZE - 100);
        let mut back = vec![0xee; rng.below(SIZE - start) as usize];
        disk.read_at(&mut back, start).unwrap();
        assert!(back == expected[start as usize..][..back.len()], "round {round}");
        if round % 50 == 0 {
            let (mut a, mut b, mut c) = ([0xee; 5], [0xee; 4096], [0xee; 777]);
            let mut bufs = [IoSliceMut::new(&mut a), IoSliceMut::new(&mut b), IoSliceMut::new(&mut c)];
            disk.read_vectored_at(&mut bufs, 4_000).unwrap();
            assert_eq!([&a[..], &b[..], &c[..]].concat(), expected[4_000..4_000 + 5 + 4096 + 777]);
        }
        if round % 100 == 7 {
            pool.flush().unwrap();
        }
        if round % 300 == 11 {
            pool.create_snapshot(id, SnapshotSpec::new().force(true)).unwrap();
        }
    }
    assert_eq!(read(&disk), expected);
    drop(disk);
    assert_sound(&pool);
}

#[test]
fn extents_show_data_zeroes_and_holes() {
    let pool = pool();
    let id = pool.create_volume(VolumeSpec::blank(SIZE)).unwrap().id;
    let disk = pool.attach(id, AttachOptions::default()).unwrap();
    disk.write_at(&data(1, 4), 2 * BLOCK).unwrap();
    disk.write_zeroes(4 * BLOCK, 4 * BLOCK).unwrap();
    disk.discard(3 * BLOCK, BLOCK).unwrap();
    let show = |range| disk.extents(range).map(|e| e.map(|e| (e.range, e.kind)).unwrap()).collect::<Vec<_>>();
    let b = |n: u64| n * BLOCK;
    use ExtentKind::{Data, Hole, Zero};
    let all =
        [(b(0)..b(2), Hole), (b(2)..b(3), Data), (b(3)..b(4), Hole), (b(4)..b(8), Zero), (b(8)..SIZE, Hole)];
    assert_eq!(show(0..SIZE), all);
    assert_eq!(show(0..u64::MAX), all, "cut at the end of the disk");
    assert_eq!(show(b(2)..b(5)), [(b(2)..b(3), Data), (b(3)..b(4), Hole), (b(4)..b(5), Zero)]);
    assert_eq!(show(b(5)..b(5)), []);
    assert_eq!(pool.volume_space(id).unwrap().mapped_bytes, BLOCK);
}

// ---- Snapshots and rollback --------------------------------------------------------------------------------

#[test]
fn snapshot_of_an_attached_volume_needs_force() {
    let pool = pool();
    let id = pool.create_volume(VolumeSpec::blank(SIZE)).unwrap().id;
    let disk = pool.attach(id, AttachOptions::default()).unwrap();
    disk.write_at(&data(1, 2), 0).unwrap();
    match pool.create_snapshot(id, SnapshotSpec::new()) {
        Err(Error::InvalidState { object: "volume", status: "in-use", .. }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(pool.volume(id).unwrap().snapshot_count, 0);
    let spec = SnapshotSpec::new().force(true).name("s").description("d").metadata("k", "v");
    let snapshot = pool.create_snapshot(id, spec).unwrap();
    assert_eq!(
        (snapshot.status, snapshot.size_bytes, snapshot.held),
        (SnapshotStatus::Available, SIZE, false)
    );
    assert_eq!((snapshot.name.as_deref(), snapshot.description.as_deref()), (Some("s"), Some("d")));
    assert_eq!(snapshot.metadata["k"], "v");
    assert_eq!(pool.snapshot(snapshot.id).unwrap(), snapshot);
    disk.write_at(&data(2, 2), 0).unwrap();
    assert_eq!(read(&pool.attach_snapshot(snapshot.id).unwrap())[..2 * BLOCK as usize], data(1, 2));
    drop(disk);
    // A detached one takes force as well.
    let later = pool.create_snapshot(id, SnapshotSpec::new().force(true)).unwrap();
    assert!(later.epoch > snapshot.epoch);
    let listed = pool.list_snapshots(&SnapshotQuery::new().volume(id)).unwrap().items;
    assert_eq!(listed.iter().map(|s| s.id).collect::<Vec<_>>(), [later.id, snapshot.id]);
    assert_eq!(pool.list_snapshots(&SnapshotQuery::new().name("s")).unwrap().items.len(), 1);
    let available = SnapshotQuery::new().status(SnapshotStatus::Available).with_total(true).limit(1);
    assert_eq!(pool.list_snapshots(&available).unwrap().total, Some(2));
}

#[test]
fn rollback_returns_to_any_snapshot_again_and_again_and_keeps_the_others() {
    let pool = pool();
    let id = pool.create_volume(VolumeSpec::blank(SIZE)).unwrap().id;
    let mut points = Vec::new();
    for stamp in 0..6 {
        write(&pool, id, stamp, stamp * 7, 9);
        points.push((pool.create_snapshot(id, SnapshotSpec::new()).unwrap().id, content(&pool, id)));
    }
    for step in [3, 0, 5, 0, 2, 4, 1] {
        let (point, expected) = &points[step];
        let volume = pool.rollback(*point).unwrap();
        assert_eq!((volume.id, volume.status), (id, VolumeStatus::Available));
        assert_eq!(&content(&pool, id), expected, "point {step}");
        write(&pool, id, 100 + step as u64, 0, 64);
        for (point, expected) in &points {
            assert_eq!(&read(&pool.attach_snapshot(*point).unwrap()), expected);
        }
    }
    assert_sound(&pool);
}

#[test]
fn rollback_needs_a_detached_volume_unless_it_is_live() {
    let pool = pool();
    let id = pool.create_volume(VolumeSpec::blank(SIZE)).unwrap().id;
    write(&pool, id, 1, 0, 4);
    let point = pool.create_snapshot(id, SnapshotSpec::new()).unwrap().id;
    let disk = pool.attach(id, AttachOptions::default()).unwrap();
    disk.write_at(&data(2, 4), 2 * BLOCK).unwrap();
    match pool.rollback(point) {
        Err(Error::InvalidState { status: "in-use", op: "rollback", .. }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(read(&disk)[2 * BLOCK as usize..6 * BLOCK as usize], data(2, 4));
    pool.rollback_with(point, RollbackOptions::new().live(true)).unwrap();
    assert_eq!(read(&disk)[..4 * BLOCK as usize], data(1, 4));
    assert!(read(&disk)[4 * BLOCK as usize..].iter().all(|&b| b == 0));
    disk.write_at(&data(3, 1), 0).unwrap();
    assert_eq!(read(&disk)[..BLOCK as usize], data(3, 1));
}

#[test]
fn batch_is_one_instant_and_all_or_nothing() {
    let pool = pool();
    let a = pool.create_volume(VolumeSpec::blank(SIZE)).unwrap().id;
    let b = pool.create_volume(VolumeSpec::blank(SIZE)).unwrap().id;
    let (disk_a, disk_b) = (
        pool.attach(a, AttachOptions::default()).unwrap(),
        pool.attach(b, AttachOptions::default()).unwrap(),
    );
    disk_a.write_at(&data(1, 4), 0).unwrap();
    disk_b.write_at(&data(2, 4), 0).unwrap();
    let forced = || SnapshotSpec::new().force(true);
    let (first, second) = pool
        .batch(|batch| Ok((batch.create_snapshot(a, forced())?, batch.create_snapshot(b, forced())?)))
        .unwrap();
    assert_eq!(first.epoch, second.epoch, "one instant");
    disk_a.write_at(&data(3, 4), 0).unwrap();
    drop((disk_a, disk_b));
    // The third step fails: the first two have not happened.
    let failed = pool.batch(|batch| {
        batch.create_snapshot(a, SnapshotSpec::new())?;
        batch.rollback(first.id)?;
        batch.extend(b, SIZE)?;
        Ok(())
    });
    assert!(matches!(failed, Err(Error::InvalidArgument { .. })), "{failed:?}");
    assert_eq!(pool.volume(a).unwrap().snapshot_count, 1);
    assert_eq!(content(&pool, a)[..4 * BLOCK as usize], data(3, 4));
    // Later steps see earlier ones.
    let clone = pool
        .batch(|batch| {
            let snapshot = batch.create_snapshot(a, SnapshotSpec::new().name("inside"))?;
            let clone = batch.create_volume(VolumeSpec::from_snapshot(snapshot.id).name("fork"))?;
            batch.rollback(first.id)?;
            batch.extend(clone.id, 2 * SIZE)?;
            drop(batch.delete_snapshot(second.id)?);
            assert_eq!(batch.volume(clone.id)?.size_bytes, 2 * SIZE);
            batch.rename_volume(clone.id, "renamed")
        })
        .unwrap();
    assert_eq!(clone.name.as_deref(), Some("renamed"));
    assert_eq!(content(&pool, clone.id)[..4 * BLOCK as usize], data(3, 4));
    assert_eq!(content(&pool, a)[..4 * BLOCK as usize], data(1, 4));
    assert!(matches!(pool.snapshot(second.id), Err(Error::NotFound { .. })));
    assert_sound(&pool);
}

// ---- Diff ----------------------------------------------------------------------------------------------------

#[test]
fn diff_names_the_changed_ranges_between_any_two_points() {
    let pool = pool();
    let id = pool.create_volume(VolumeSpec::blank(SIZE)).unwrap().id;
    write(&pool, id, 1, 0, 32);
    let first = pool.create_snapshot(id, SnapshotSpec::new()).unwrap().id;
    let disk = pool.attach(id, AttachOptions::default()).unwrap();
    disk.write_at(&[1], 3 * BLOCK + 9).unwrap();
    disk.write_at(&data(2, 2), 10 * BLOCK).unwrap();
    disk.write_zeroes(20 * BLOCK, BLOCK).unwrap();
    disk.discard(25 * BLOCK, 2 * BLOCK).unwrap();
    disk.write_at(&data(3, 1), 40 * BLOCK).unwrap();
    drop(disk);
    let list = |diff: Diff| diff.map(|c| c.map(|c: Change| (c.range, c.kind)).unwrap()).collect::<Vec<_>>();
    let b = |n: u64| n * BLOCK;
    use ExtentKind::{Data, Hole, Zero};
    let forward = [
        (b(3)..b(4), Data),
        (b(10)..b(12), Data),
        (b(20)..b(21), Zero),
        (b(25)..b(27), Hole),
        (b(40)..b(41), Data),
    ];
    assert_eq!(list(pool.diff(first, id).unwrap()), forward);
    let backward = [
        (b(3)..b(4), Data),
        (b(10)..b(12), Data),
        (b(20)..b(21), Data),
        (b(25)..b(27), Data),
        (b(40)..b(41), Hole),
    ];
    assert_eq!(list(pool.diff(id, first).unwrap()), backward);
    assert_eq!(list(pool.diff(first, first).unwrap()), []);
    // Resumed from the middle of a block it begins with that block.
    assert_eq!(list(pool.diff_from(first, id, b(11) + 5).unwrap())[0], (b(11)..b(12), Data));
    assert_eq!(list(pool.diff_from(first, id, b(41)).unwrap()), []);
    assert_eq!(list(pool.allocated(first).unwrap()), [(b(0)..b(32), Data)]);
    let mapped = list(pool.allocated(id).unwrap());
    assert_eq!(
        mapped,
        [
            (b(0)..b(20), Data),
            (b(20)..b(21), Zero),
            (b(21)..b(25), Data),
            (b(27)..b(32), Data),
            (b(40)..b(41), Data)
        ]
    );
}

#[test]
fn diff_stays_as_it_was_begun_while_its_points_change_and_go() {
    let pool = pool();
    let id = pool.create_volume(VolumeSpec::blank(1 << 30)).unwrap().id;
    let first = pool.create_snapshot(id, SnapshotSpec::new()).unwrap().id;
    let disk = pool.attach(id, AttachOptions::default()).unwrap();
    for block in 0..2_000 {
        disk.write_at(&data(block, 1), 2 * block * BLOCK).unwrap();
    }
    let mut diff = pool.diff(first, id).unwrap();
    let begun: Vec<_> = diff.by_ref().take(10).map(|c| c.unwrap().range.start).collect();
    assert_eq!(begun, (0..10).map(|n| 2 * n * BLOCK).collect::<Vec<_>>());
    disk.write_zeroes(0, 1 << 30).unwrap();
    drop(disk);
    drop(pool.delete_volume(id, Snapshots::Delete).unwrap());
    drain(&pool);
    let rest: Vec<_> = diff.by_ref().map(|c| c.unwrap().range.start).collect();
    assert_eq!(rest, (10..2_000).map(|n| 2 * n * BLOCK).collect::<Vec<_>>());
    drop(diff);
    drain(&pool);
    pool.checkpoint().unwrap();
    drain(&pool);
    assert_eq!(pool.space().unwrap().used_bytes, 0, "what the diff held has come back");
    assert_sound(&pool);
}

// ---- Pools ---------------------------------------------------------------------------------------------------

#[test]
fn close_and_reopen_keep_everything_in_every_mode() {
    let folder = tempfile::tempdir().unwrap();
    for (name, mode, background) in [
        ("pread", ReadMode::Pread, Background::Thread),
        ("mmap", ReadMode::Mmap, Background::Thread),
        ("manual", ReadMode::Pread, Background::Manual),
    ] {
        let path = folder.path().join(name);
        let options = CreateOptions::new()
            .limit_bytes(1 << 30)
            .log_bytes(1 << 20)
            .read_mode(mode)
            .background(background);
        let pool = Pool::create(&path, options).unwrap();
        let uuid = pool.uuid();
        let id = pool.create_volume(VolumeSpec::blank(1 << 30).name("v").metadata("k", "v")).unwrap().id;
        write(&pool, id, 5, 100, 700);
        let snapshot = pool.create_snapshot(id, SnapshotSpec::new().name("s")).unwrap();
        write(&pool, id, 6, 300, 700);
        let (volume, expected) = (pool.volume(id).unwrap(), data(6, 700));
        pool.close().unwrap();
        let pool = Pool::open(&path, OpenOptions::new().read_mode(mode).background(background)).unwrap();
        assert_eq!(pool.uuid(), uuid);
        assert_eq!(
            (pool.volume(id).unwrap(), pool.snapshot(snapshot.id).unwrap()),
            (volume, snapshot.clone())
        );
        let disk = pool.attach(id, AttachOptions::default()).unwrap();
        let mut bytes = vec![0; 700 * BLOCK as usize];
        disk.read_at(&mut bytes, 300 * BLOCK).unwrap();
        assert!(bytes == expected);
        let old = pool.attach_snapshot(snapshot.id).unwrap();
        old.read_at(&mut bytes, 100 * BLOCK).unwrap();
        assert!(bytes == data(5, 700));
        drop((disk, old));
        assert_sound(&pool);
        drop(pool);
        Pool::open(&path, OpenOptions::new().read_only(true)).unwrap();
    }
}

#[test]
fn reads_see_every_acknowledged_write_before_any_flush() {
    let pool = pool();
    let id = pool.create_volume(VolumeSpec::blank(SIZE)).unwrap().id;
    let disk = pool.attach(id, AttachOptions::default()).unwrap();
    for stamp in 0..300 {
        let block = stamp * 13 % 64;
        disk.write_at(&data(stamp, 1), block * BLOCK).unwrap();
        let mut bytes = vec![0; BLOCK as usize];
        disk.read_at(&mut bytes, block * BLOCK).unwrap();
        assert!(bytes == data(stamp, 1), "write {stamp}");
    }
}

#[test]
fn equal_runs_give_equal_pools() {
    let run = || {
        let memory = MemoryDevice::new();
        let pool = Pool::create_on(memory.share(), Shape::SMALL.create()).unwrap();
        let id = pool.create_volume(VolumeSpec::blank(SIZE).name("v")).unwrap().id;
        write(&pool, id, 1, 0, 20);
        let snapshot = pool.create_snapshot(id, SnapshotSpec::new()).unwrap().id;
        write(&pool, id, 2, 5, 3);
        pool.flush().unwrap();
        drop(pool.delete_snapshot(snapshot).unwrap());
        while pool.step(10).unwrap() {}
        pool.close().unwrap();
        memory.snapshot_bytes()
    };
    let (one, two) = (run(), run());
    assert_eq!(one.len(), two.len());
    let first = one.iter().zip(&two).position(|(a, b)| a != b);
    assert_eq!(first, None, "equal ids, clock and calls give equal bytes");
}

#[test]
fn space_adds_up_and_comes_back() {
    let pool = pool();
    let id = pool.create_volume(VolumeSpec::blank(1 << 40)).unwrap().id;
    write(&pool, id, 1, 0, 100);
    let first = pool.create_snapshot(id, SnapshotSpec::new()).unwrap().id;
    write(&pool, id, 2, 0, 30);
    let volume = pool.volume_space(id).unwrap();
    assert_eq!(
        (volume.virtual_bytes, volume.mapped_bytes, volume.exclusive_bytes),
        (1 << 40, 100 * BLOCK, 30 * BLOCK)
    );
    let snapshot = pool.snapshot_space(first).unwrap();
    assert_eq!((snapshot.mapped_bytes, snapshot.exclusive_bytes), (100 * BLOCK, 30 * BLOCK));
    assert_eq!(pool.space().unwrap().used_bytes, 130 * BLOCK);
    assert_eq!(pool.delete_snapshot(first).unwrap().wait().unwrap().freed_bytes, 30 * BLOCK);
    assert_eq!(pool.volume_space(id).unwrap().exclusive_bytes, 100 * BLOCK);
    pool.checkpoint().unwrap();
    drain(&pool);
    let space = pool.space().unwrap();
    assert_eq!(space.used_bytes, 100 * BLOCK);
    assert!(space.used_bytes + space.metadata_bytes + space.free_bytes <= space.total_bytes, "{space:?}");
    assert!(space.total_bytes <= space.limit_bytes && space.reserved_bytes > 0, "{space:?}");
    assert_sound(&pool);
}

#[test]
fn check_and_scrub_tell_their_progress() {
    let pool = pool();
    let id = pool.create_volume(VolumeSpec::blank(SIZE)).unwrap().id;
    write(&pool, id, 1, 0, 60);
    let mut calls = 0;
    pool.check(CheckOptions::default(), &mut |_| calls += 1).unwrap();
    assert!(calls > 0);
    let mut calls = 0;
    pool.scrub(CheckOptions::default(), &mut |_| calls += 1).unwrap();
    assert!(calls > 0);
}

#[test]
fn stats_count_what_was_done() {
    let pool = pool();
    let id = pool.create_volume(VolumeSpec::blank(SIZE)).unwrap().id;
    let before = format!("{:?}", pool.stats());
    write(&pool, id, 1, 0, 10);
    pool.flush().unwrap();
    assert_ne!(format!("{:?}", pool.stats()), before);
}
