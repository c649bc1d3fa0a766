//! Wrong arguments get a typed error that names the field and the limit, and leave no trace. Files that are no
//! pools get a typed error.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use common::Shape;
use common::model::Model;
use common::ops::{Kind, Limits, Op};
use snapvol::device::sim::{Fate, SimDevice};
use snapvol::device::{Device, MemoryDevice};
use snapvol::{
    AttachOptions, CreateOptions, Error, OpenOptions, Pool, SnapshotId, SnapshotQuery, SnapshotSpec,
    SnapshotUpdate, Snapshots, VolumeId, VolumeQuery, VolumeSpec, VolumeUpdate,
};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

const SIZE: u64 = 1 << 20;

struct Fixture {
    pool: Pool,
    volume: VolumeId,
    other: VolumeId,
    snapshot: SnapshotId,
}

fn fixture() -> Fixture {
    fixture_with(Shape::SMALL.limit(16 << 20).create())
}

fn fixture_with(options: CreateOptions) -> Fixture {
    let pool = Pool::create_on(MemoryDevice::new(), options).unwrap();
    let volume = pool.create_volume(VolumeSpec::blank(SIZE).name("v")).unwrap().id;
    let other = pool.create_volume(VolumeSpec::blank(SIZE).name("o")).unwrap().id;
    pool.attach(volume, AttachOptions::default()).unwrap().write_at(&[7; 5000], 100).unwrap();
    let snapshot = pool.create_snapshot(volume, SnapshotSpec::new().name("s")).unwrap().id;
    Fixture { pool, volume, other, snapshot }
}

/// Everything that a listing shows: equal before and after a refused call.
fn listing(pool: &Pool) -> String {
    let volumes = pool.list_volumes(&VolumeQuery::new().with_total(true)).unwrap();
    let snapshots = pool.list_snapshots(&SnapshotQuery::new().with_total(true)).unwrap();
    format!("{volumes:?} {snapshots:?} {:?}", pool.space().unwrap())
}

impl Fixture {
    /// The call is refused, with this field, a reason that names `limit`, and no trace.
    fn refuses<T>(&self, field: &str, limit: &str, call: impl FnOnce(&Pool) -> snapvol::Result<T>) {
        let before = listing(&self.pool);
        match call(&self.pool).map(|_| "done") {
            Err(Error::InvalidArgument { field: named, why, .. }) => {
                assert_eq!(named, field, "{why}");
                assert!(why.contains(limit), "the reason must name {limit}: {why}");
            }
            other => panic!("{field}: {other:?}"),
        }
        assert_eq!(listing(&self.pool), before, "a refused call leaves no trace");
    }

    fn misses<T>(&self, object: &str, call: impl FnOnce(&Pool) -> snapvol::Result<T>) {
        let before = listing(&self.pool);
        match call(&self.pool).map(|_| "done") {
            Err(Error::NotFound { object: named, .. }) => assert_eq!(named, object),
            other => panic!("{object}: {other:?}"),
        }
        assert_eq!(listing(&self.pool), before);
    }

    fn state<T>(&self, status: &str, op: &str, call: impl FnOnce(&Pool) -> snapvol::Result<T>) {
        let before = listing(&self.pool);
        match call(&self.pool).map(|_| "done") {
            Err(Error::InvalidState { status: is, op: named, .. }) => assert_eq!((is, named), (status, op)),
            other => panic!("{op}: {other:?}"),
        }
        assert_eq!(listing(&self.pool), before);
    }
}

#[test]
fn sizes_outside_the_rules_are_refused() {
    let f = fixture();
    for bad in [0, 1, 4095, 4097, SIZE + 1, (1 << 60) + 4096, u64::MAX] {
        f.refuses("size_bytes", "4096", |p| p.create_volume(VolumeSpec::blank(bad)));
        f.refuses("size_bytes", &bad.to_string(), |p| {
            p.create_volume(VolumeSpec::from_snapshot(f.snapshot).size(bad))
        });
    }
    f.refuses("size_bytes", &SIZE.to_string(), |p| {
        p.create_volume(VolumeSpec::from_snapshot(f.snapshot).size(SIZE - 4096))
    });
    f.refuses("size_bytes", &SIZE.to_string(), |p| {
        p.create_volume(VolumeSpec::from_volume(f.volume).size(4096))
    });
    for bad in [SIZE, SIZE - 4096, 0, SIZE + 100, u64::MAX] {
        let limit = if bad % 4096 == 0 && bad > 0 { SIZE } else { 4096 };
        f.refuses("size_bytes", &limit.to_string(), |p| p.extend(f.volume, bad));
    }
    f.pool.create_volume(VolumeSpec::blank(1 << 60)).unwrap();
    f.pool.create_volume(VolumeSpec::blank(4096)).unwrap();
}

#[test]
fn texts_beyond_255_bytes_are_refused_and_bytes_count_not_characters() {
    let f = fixture();
    let (fits, long) = ("x".repeat(255), "x".repeat(256));
    let (three, too_many) = ("語".repeat(85), "語".repeat(86));
    for bad in [&long, &too_many] {
        f.refuses("name", "255", |p| p.create_volume(VolumeSpec::blank(SIZE).name(bad)));
        f.refuses("description", "255", |p| p.create_volume(VolumeSpec::blank(SIZE).description(bad)));
        f.refuses("metadata", "255", |p| p.create_volume(VolumeSpec::blank(SIZE).metadata(bad, "v")));
        f.refuses("metadata", "255", |p| p.create_volume(VolumeSpec::blank(SIZE).metadata("k", bad)));
        f.refuses("name", "255", |p| p.create_snapshot(f.volume, SnapshotSpec::new().name(bad)));
        f.refuses("description", "255", |p| {
            p.create_snapshot(f.volume, SnapshotSpec::new().description(bad))
        });
        f.refuses("name", "255", |p| p.rename_volume(f.volume, bad));
        f.refuses("name", "255", |p| p.rename_snapshot(f.snapshot, bad));
        f.refuses("description", "255", |p| {
            p.update_volume(f.volume, VolumeUpdate::new().description(Some(bad.clone())))
        });
        f.refuses("description", "255", |p| {
            p.update_snapshot(f.snapshot, SnapshotUpdate::new().description(Some(bad.clone())))
        });
    }
    for good in [fits, three] {
        let volume = f.pool.create_volume(VolumeSpec::blank(SIZE).name(&good).description(&good)).unwrap();
        assert_eq!(volume.name.as_ref(), Some(&good));
        let snapshot = f.pool.create_snapshot(volume.id, SnapshotSpec::new().name(&good)).unwrap();
        assert_eq!(f.pool.snapshot(snapshot.id).unwrap().name, Some(good));
    }
    // Several at once append five characters to the name.
    f.refuses("name", "250", |p| p.create_volumes(VolumeSpec::blank(SIZE).name("x".repeat(251)), 2));
}

#[test]
fn metadata_beyond_a_mebibyte_is_refused_and_a_mebibyte_is_kept() {
    // A record of the log holds all of one change, so what fits depends on the log.
    let f = fixture_with(CreateOptions::new().log_bytes(64 << 20).limit_bytes(1 << 30));
    let pairs = |n: usize| -> BTreeMap<String, String> {
        (0..n).map(|i| (format!("{i:0>4}"), "v".repeat(252))).collect()
    };
    f.refuses("metadata", &(1 << 20).to_string(), |p| {
        p.create_volume(VolumeSpec::blank(SIZE).metadata_map(pairs(4097)))
    });
    let volume = f.pool.create_volume(VolumeSpec::blank(SIZE).metadata_map(pairs(4096))).unwrap();
    assert_eq!(f.pool.volume(volume.id).unwrap().metadata, pairs(4096));
    f.refuses("metadata", &(1 << 20).to_string(), |p| {
        p.update_volume(volume.id, VolumeUpdate::new().metadata(pairs(5000)))
    });
    f.pool.update_volume(volume.id, VolumeUpdate::new().metadata(pairs(3))).unwrap();
    assert_eq!(f.pool.volume(volume.id).unwrap().metadata, pairs(3));
    common::assert_sound(&f.pool);
}

#[test]
fn unknown_ids_are_not_found_everywhere() {
    let f = fixture();
    let (v, s) = (VolumeId::new(Uuid::from_u128(99)), SnapshotId::new(Uuid::from_u128(98)));
    f.misses("volume", |p| p.volume(v));
    f.misses("volume", |p| p.extend(v, SIZE * 2));
    f.misses("volume", |p| p.rename_volume(v, "n"));
    f.misses("volume", |p| p.update_volume(v, VolumeUpdate::new().name(None)));
    f.misses("volume", |p| p.attach(v, AttachOptions::default()));
    f.misses("volume", |p| p.create_snapshot(v, SnapshotSpec::new()));
    f.misses("volume", |p| p.create_volume(VolumeSpec::from_volume(v)));
    f.misses("volume", |p| p.delete_volume(v, Snapshots::Delete));
    f.misses("volume", |p| p.plan_delete(v, Snapshots::Delete));
    f.misses("volume", |p| p.volume_space(v));
    f.misses("volume", |p| p.diff(v, f.volume));
    f.misses("volume", |p| p.list_volumes(&VolumeQuery::new().marker(v)));
    f.misses("snapshot", |p| p.snapshot(s));
    f.misses("snapshot", |p| p.rollback(s));
    f.misses("snapshot", |p| p.rename_snapshot(s, "n"));
    f.misses("snapshot", |p| p.update_snapshot(s, SnapshotUpdate::new().name(None)));
    f.misses("snapshot", |p| p.attach_snapshot(s));
    f.misses("snapshot", |p| p.hold_snapshot(s));
    f.misses("snapshot", |p| p.release_snapshot(s));
    f.misses("snapshot", |p| p.delete_snapshot(s));
    f.misses("snapshot", |p| p.plan_delete_snapshot(s));
    f.misses("snapshot", |p| p.snapshot_space(s));
    f.misses("snapshot", |p| p.create_volume(VolumeSpec::from_snapshot(s)));
    f.misses("snapshot", |p| p.diff(f.volume, s));
    f.misses("snapshot", |p| p.allocated(s));
    f.misses("snapshot", |p| p.list_snapshots(&SnapshotQuery::new().marker(s)));
    // An id of the other kind is not found either.
    f.misses("snapshot", |p| p.snapshot(SnapshotId::new(f.volume.raw())));
    f.misses("volume", |p| p.volume(VolumeId::new(f.snapshot.raw())));
    // In a filter it matches nothing.
    assert!(f.pool.list_snapshots(&SnapshotQuery::new().volume(v)).unwrap().items.is_empty());
    assert!(f.pool.list_volumes(&VolumeQuery::new().created_from(s)).unwrap().items.is_empty());
}

#[test]
fn taken_ids_are_refused() {
    let f = fixture();
    let before = listing(&f.pool);
    let taken = |outcome: Option<Error>| match outcome {
        Some(Error::AlreadyExists { .. }) => assert_eq!(listing(&f.pool), before),
        other => panic!("{other:?}"),
    };
    taken(f.pool.create_volume(VolumeSpec::blank(SIZE).id(f.volume)).err());
    taken(f.pool.create_volume(VolumeSpec::blank(SIZE).id(VolumeId::new(f.snapshot.raw()))).err());
    taken(f.pool.create_snapshot(f.other, SnapshotSpec::new().id(f.snapshot)).err());
    taken(f.pool.create_snapshot(f.other, SnapshotSpec::new().id(SnapshotId::new(f.volume.raw()))).err());
    let twice = f.pool.batch(|b| {
        let id = VolumeId::new(Uuid::from_u128(5));
        b.create_volume(VolumeSpec::blank(SIZE).id(id))?;
        b.create_volume(VolumeSpec::blank(SIZE).id(id))
    });
    taken(twice.err());
}

#[test]
fn counts_limits_and_pages_outside_the_rules_are_refused() {
    let f = fixture();
    f.refuses("count", "100", |p| p.create_volumes(VolumeSpec::blank(SIZE), 0));
    f.refuses("count", "100", |p| p.create_volumes(VolumeSpec::blank(SIZE), 101));
    f.refuses("limit", "1000", |p| p.list_volumes(&VolumeQuery::new().limit(0)));
    f.refuses("limit", "1000", |p| p.list_volumes(&VolumeQuery::new().limit(1001)));
    f.refuses("limit", "1000", |p| p.list_snapshots(&SnapshotQuery::new().limit(0)));
    f.refuses("limit", "1000", |p| p.list_snapshots(&SnapshotQuery::new().limit(1001)));
}

#[test]
fn states_that_do_not_allow_an_operation_refuse_it() {
    let f = fixture();
    let disk = f.pool.attach(f.volume, AttachOptions::default()).unwrap();
    f.state("in-use", "create_snapshot", |p| p.create_snapshot(f.volume, SnapshotSpec::new()));
    f.state("in-use", "rollback", |p| p.rollback(f.snapshot));
    f.state("in-use", "delete", |p| p.delete_volume(f.volume, Snapshots::Delete));
    f.state("in-use", "attach", |p| p.attach(f.volume, AttachOptions::default()));
    match f.pool.clone().close() {
        Err(Error::Busy { object: "pool", .. }) => {}
        other => panic!("{other:?}"),
    }
    disk.write_at(&[1], 0).unwrap();
    drop(disk);
    f.refuses("update", "nothing", |p| p.update_volume(f.volume, VolumeUpdate::new()));
    f.refuses("update", "nothing", |p| p.update_snapshot(f.snapshot, SnapshotUpdate::new()));
    f.refuses("id", "", |p| {
        p.create_volumes(VolumeSpec::blank(SIZE).id(VolumeId::new(Uuid::from_u128(3))), 2)
    });
    let shared = f.pool.create_volume(VolumeSpec::blank(SIZE).multiattach(true)).unwrap().id;
    let disk = f.pool.attach(shared, AttachOptions::default()).unwrap();
    f.state("in-use", "extend", |p| p.extend(shared, SIZE * 2));
    drop(disk);
    f.pool.extend(shared, SIZE * 2).unwrap();
}

#[test]
fn offsets_and_lengths_outside_a_disk_are_refused() {
    let f = fixture();
    let disk = f.pool.attach(f.volume, AttachOptions::default()).unwrap();
    let reader = f.pool.attach_snapshot(f.snapshot).unwrap();
    let mut buf = [0; 100];
    for offset in [SIZE - 99, SIZE, SIZE + 1, u64::MAX - 50, u64::MAX] {
        let refused = |outcome: snapvol::Result<()>| match outcome {
            Err(Error::InvalidArgument { field, why, .. }) => {
                assert!(field == "offset" || field == "range" || field == "len", "{field}: {why}");
                assert!(why.contains(&SIZE.to_string()), "{why}");
            }
            other => panic!("{offset}: {other:?}"),
        };
        refused(disk.read_at(&mut buf, offset));
        refused(reader.read_at(&mut buf, offset));
        refused(disk.write_at(&buf, offset));
        refused(disk.write_fua_at(&buf, offset));
        refused(disk.write_zeroes(offset, 100));
        refused(disk.discard(offset, 100));
        refused(disk.read_vectored_at(&mut [std::io::IoSliceMut::new(&mut buf)], offset));
        refused(disk.write_vectored_at(&[std::io::IoSlice::new(&[0; 100])], offset));
    }
    disk.discard(0, u64::MAX).unwrap_err();
    disk.write_zeroes(4096, u64::MAX).unwrap_err();
    // Nothing at the very end is not outside.
    disk.read_at(&mut [], SIZE).unwrap();
    disk.write_at(&[], SIZE).unwrap();
    disk.read_at(&mut buf, SIZE - 100).unwrap();
    assert_eq!(buf, [0; 100], "no refused write had an effect");
}

#[test]
fn read_only_attachments_and_pools_refuse_changes() {
    let memory = MemoryDevice::new();
    let pool = Pool::create_on(memory.share(), Shape::SMALL.create()).unwrap();
    let id = pool.create_volume(VolumeSpec::blank(SIZE)).unwrap().id;
    let snapshot = pool.create_snapshot(id, SnapshotSpec::new()).unwrap().id;
    let read_only = |outcome: snapvol::Result<()>, what: &str| match outcome {
        Err(Error::ReadOnly { object }) => assert_eq!(object, what),
        other => panic!("{other:?}"),
    };
    let disk = pool.attach(id, AttachOptions::default().read_only(true)).unwrap();
    assert!(disk.is_read_only());
    read_only(disk.write_at(&[1], 0), "attachment");
    read_only(disk.write_fua_at(&[1], 0), "attachment");
    read_only(disk.discard(0, 4096), "attachment");
    read_only(disk.write_zeroes(0, 4096), "attachment");
    drop(disk);
    let disk = pool.attach_snapshot(snapshot).unwrap();
    read_only(disk.write_at(&[1], 0), "snapshot");
    read_only(disk.discard(0, 4096), "snapshot");
    drop(disk);
    pool.close().unwrap();
    let before = memory.snapshot_bytes();
    let pool = Pool::open_on(memory.share(), Shape::SMALL.open().read_only(true)).unwrap();
    read_only(pool.create_volume(VolumeSpec::blank(SIZE)).map(drop), "pool");
    read_only(pool.create_snapshot(id, SnapshotSpec::new()).map(drop), "pool");
    read_only(pool.delete_snapshot(snapshot).map(drop), "pool");
    read_only(pool.rollback(snapshot).map(drop), "pool");
    read_only(pool.extend(id, SIZE * 2).map(drop), "pool");
    let disk = pool.attach(id, AttachOptions::default().read_only(true)).unwrap();
    common::observe::read_all(&disk).unwrap();
    drop(disk);
    pool.close().unwrap();
    assert_eq!(memory.snapshot_bytes(), before, "a pool opened for reading is not written");
}

#[test]
fn closed_pool_refuses_everything() {
    let f = fixture();
    let other = f.pool.clone();
    f.pool.close().unwrap();
    for outcome in [
        other.volume(f.volume).map(drop),
        other.flush(),
        other.create_volume(VolumeSpec::blank(SIZE)).map(drop),
        other.attach(f.volume, AttachOptions::default()).map(drop),
        other.list_volumes(&VolumeQuery::new()).map(drop),
        other.checkpoint(),
    ] {
        assert!(matches!(outcome, Err(Error::Closed)), "{outcome:?}");
    }
    other.close().unwrap();
}

#[test]
fn options_outside_the_rules_are_refused() {
    let refuses = |field: &str, options: CreateOptions| {
        let device = MemoryDevice::new();
        match Pool::create_on(device.share(), options).map(drop) {
            Err(Error::InvalidArgument { field: named, .. }) => assert_eq!(named, field),
            other => panic!("{field}: {other:?}"),
        }
        assert!(device.is_empty().unwrap(), "a refused create writes nothing");
    };
    refuses("blocks_per_chunk", CreateOptions::new().blocks_per_chunk(63));
    refuses("blocks_per_chunk", CreateOptions::new().blocks_per_chunk(0));
    refuses("blocks_per_chunk", CreateOptions::new().blocks_per_chunk(1 << 40));
    refuses("log_bytes", CreateOptions::new().log_bytes(0));
    refuses("log_bytes", CreateOptions::new().log_bytes(u64::MAX));
    refuses("limit_bytes", CreateOptions::new().limit_bytes(0));
    refuses("limit_bytes", CreateOptions::new().limit_bytes(u64::MAX));
    refuses("cache_bytes", CreateOptions::new().cache_bytes(0));
    refuses("initial_bytes", CreateOptions::new().limit_bytes(1 << 30).initial_bytes(2 << 30));
}

// ---- Files that are no pools -------------------------------------------------------------------------------

fn closed_pool() -> (SimDevice, Model) {
    let mut rig = common::Rig::create(SimDevice::new(), Shape::SMALL).unwrap();
    let limits = Limits { volumes: 4, snapshots: 4, blocks: 16 };
    for op in
        [Op::new(Kind::Create, 0, 7, 0), Op::new(Kind::Write, 0, 0, 35), Op::new(Kind::Snapshot, 0, 1, 0)]
    {
        let action = rig.resolve(op, limits);
        rig.must(action);
    }
    let (model, sim) = (rig.model.clone(), rig.medium.clone());
    rig.leave().unwrap().close().unwrap();
    (sim, model)
}

fn open_error(device: SimDevice) -> Error {
    match Pool::open_on(device, OpenOptions::new()) {
        Ok(_) => panic!("it opened"),
        Err(error) => error,
    }
}

#[test]
fn files_that_are_no_pools_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let missing = Pool::open(folder.path().join("missing"), OpenOptions::new());
    assert!(matches!(missing, Err(Error::Io { op: "open", .. })), "{:?}", missing.map(|_| ()));
    assert!(Pool::open(folder.path(), OpenOptions::new()).is_err());
    for (length, byte) in [(0, 0), (1, 1), (4095, 0), (4096, 0), (100_000, 0), (100_000, 0xff), (3 << 20, 0)]
    {
        let error = open_error(SimDevice::from_image(vec![byte; length]));
        assert!(matches!(error, Error::Corrupt(_)), "{length} bytes of {byte}: {error:?}");
    }
    let path = folder.path().join("text");
    std::fs::write(&path, "this is a text\n".repeat(10_000)).unwrap();
    let error = Pool::open(&path, OpenOptions::new()).map(drop).unwrap_err();
    assert!(matches!(error, Error::Corrupt(_)), "{error:?}");
    assert!(std::fs::read(&path).unwrap().starts_with(b"this is a text"), "it was written to");
}

#[test]
fn create_does_not_overwrite_a_pool_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pool");
    Pool::create(&path, Shape::SMALL.create()).unwrap().close().unwrap();
    let before = std::fs::read(&path).unwrap();
    let again = Pool::create(&path, Shape::SMALL.create()).map(drop);
    assert!(matches!(again, Err(Error::AlreadyExists { .. })), "{again:?}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn truncated_pools_are_refused_or_read_right() {
    let (sim, model) = closed_pool();
    let length = sim.len().unwrap();
    let mut refused = 0;
    for cut in (0..length).step_by(4096).chain([1, 511, 513, length - 1]) {
        let device = sim.crash(|_| Fate::Kept);
        device.set_len(cut).unwrap();
        match Pool::open_on(device, Shape::SMALL.open()) {
            Ok(pool) => {
                for (id, volume) in &model.volumes {
                    let Ok(disk) = pool.attach(*id, AttachOptions::default()) else { continue };
                    for (block, cell) in volume.map.cells().iter().enumerate() {
                        let mut bytes = [0; 4096];
                        match disk.read_at(&mut bytes, block as u64 * 4096) {
                            Ok(()) => assert_eq!(xxh3_64(&bytes), cell.hash(), "{cut}"),
                            Err(Error::Corrupt(_) | Error::Io { .. }) => {}
                            Err(error) => panic!("{cut}: {error:?}"),
                        }
                    }
                }
            }
            Err(Error::Corrupt(_)) => refused += 1,
            Err(error) => panic!("{cut}: {error:?}"),
        }
    }
    assert!(refused > 10);
}

/// Changes a field in every superblock and makes its checksum right again.
fn patch_superblocks(sim: &SimDevice, patch: impl Fn(&mut [u8])) -> SimDevice {
    let device = sim.crash(|_| Fate::Kept);
    let image = device.view();
    let mut patched = 0;
    for (index, block) in image.chunks_exact(4096).enumerate() {
        if block.starts_with(b"SNAPVOL\x01") {
            let mut block = block.to_vec();
            patch(&mut block[..4088]);
            let checksum = xxh3_64(&block[..4088]).to_le_bytes();
            block[4088..].copy_from_slice(&checksum);
            device.write_at(&block, index as u64 * 4096).unwrap();
            patched += 1;
        }
    }
    assert_eq!(patched, 4, "a pool has four superblock slots in use");
    device
}

#[test]
fn newer_versions_and_unknown_features_are_unsupported() {
    let (sim, model) = closed_pool();
    let newer = open_error(patch_superblocks(&sim, |b| b[8..12].copy_from_slice(&2_u32.to_le_bytes())));
    assert!(matches!(&newer, Error::Unsupported(why) if why.contains("version")), "{newer:?}");
    let incompatible = open_error(patch_superblocks(&sim, |b| b[23] = 0x80));
    assert!(matches!(incompatible, Error::Unsupported(_)), "{incompatible:?}");
    // Unknown read-only compatible features: to be read, not to be written.
    let device = patch_superblocks(&sim, |b| b[31] = 0x80);
    let before = device.view();
    let pool = Pool::open_on(device.clone(), Shape::SMALL.open()).unwrap();
    assert!(pool.is_read_only());
    let refused = pool.create_volume(VolumeSpec::blank(SIZE));
    assert!(matches!(refused, Err(Error::ReadOnly { object: "pool" })), "{refused:?}");
    assert_eq!(common::observe::digest(&pool).unwrap(), model.digest());
    pool.close().unwrap();
    assert_eq!(device.view(), before);
    // Unknown compatible ones: nobody minds.
    let pool = Pool::open_on(patch_superblocks(&sim, |b| b[39] = 0x80), Shape::SMALL.open()).unwrap();
    assert_eq!(common::observe::digest(&pool).unwrap(), model.digest());
}

/// Superblocks that verify and say impossible things: range checks come before arithmetic and allocation.
#[test]
fn impossible_superblock_fields_are_corrupt_not_a_panic() {
    let (sim, _) = closed_pool();
    for at in (40..248).step_by(4) {
        for value in [0_u32, 1, 2, 63, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff] {
            let device = patch_superblocks(&sim, |b| b[at..at + 4].copy_from_slice(&value.to_le_bytes()));
            match Pool::open_on(device, Shape::SMALL.open()) {
                Ok(pool) => {
                    let _ = common::observe::digest(&pool);
                    let _ = pool.check(snapvol::CheckOptions::default(), &mut |_| {});
                    let _ = pool.create_volume(VolumeSpec::blank(SIZE));
                }
                Err(
                    Error::Corrupt(_) | Error::Unsupported(_) | Error::Io { .. } | Error::OutOfSpace { .. },
                ) => {}
                Err(error) => panic!("offset {at}, value {value:#x}: {error:?}"),
            }
        }
    }
}
