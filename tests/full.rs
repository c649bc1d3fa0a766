//! P7: full is survivable. What does not fit is refused before any effect; deletes, rollbacks, discards and
//! flushes go on; and what comes back can be used again, all of it.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

mod common;

use common::ops::{Action, Kind, Limits, Op};
use common::rng::Rng;
use common::{Rig, Shape, assert_sound, observe, rng};
use snapvol::device::MemoryDevice;
use snapvol::{
    AttachOptions, Error, OpenOptions, Pool, RollbackOptions, SnapshotSpec, Snapshots, VolumeId, VolumeQuery,
    VolumeSpec, VolumeUpdate,
};

const BLOCK: u64 = 4096;

fn small_pool() -> (MemoryDevice, Pool) {
    let memory = MemoryDevice::new();
    let pool = Pool::create_on(memory.share(), Shape::SMALL.create()).unwrap();
    (memory, pool)
}

/// Writes one block after another until the pool is full; returns how many fitted.
fn fill(pool: &Pool, id: VolumeId, salt: u64) -> u64 {
    let disk = pool.attach(id, AttachOptions::default()).unwrap();
    for block in 0.. {
        match disk.write_at(&Rng::stamp_bytes(salt + block, BLOCK as usize), block * BLOCK) {
            Ok(()) => {}
            Err(Error::OutOfSpace { needed_bytes, available_bytes }) => {
                assert!(needed_bytes > available_bytes, "{needed_bytes} needed, {available_bytes} available");
                let mut bytes = [1; BLOCK as usize];
                disk.read_at(&mut bytes, block * BLOCK).unwrap();
                assert_eq!(bytes, [0; BLOCK as usize], "the refused write had no effect");
                disk.flush().unwrap();
                return block;
            }
            Err(error) => panic!("block {block}: {error:?}"),
        }
    }
    unreachable!("no pool holds that many blocks")
}

fn assert_filled(pool: &Pool, id: VolumeId, salt: u64, blocks: u64) {
    let disk = pool.attach(id, AttachOptions::default().read_only(true)).unwrap();
    let mut bytes = vec![0; BLOCK as usize];
    for block in 0..blocks {
        disk.read_at(&mut bytes, block * BLOCK).unwrap();
        assert!(bytes == Rng::stamp_bytes(salt + block, BLOCK as usize), "block {block}");
    }
}

#[test]
fn full_pool_refuses_writes_keeps_everything_and_goes_on_after_a_delete() {
    let (memory, pool) = small_pool();
    let keep = pool.create_volume(VolumeSpec::blank(1 << 30)).unwrap().id;
    let go = pool.create_volume(VolumeSpec::blank(1 << 30)).unwrap().id;
    let disk = pool.attach(keep, AttachOptions::default()).unwrap();
    for block in 0..40 {
        disk.write_at(&Rng::stamp_bytes(block, BLOCK as usize), block * BLOCK).unwrap();
    }
    drop(disk);
    let mut first = None;
    for cycle in 0..12 {
        let fitted = fill(&pool, go, 1_000 * cycle);
        let first = *first.get_or_insert(fitted);
        // What one cycle gives back the next one can use: nothing leaks away.
        assert!(fitted + 64 >= first, "cycle {cycle}: {fitted} blocks fit, {first} did at first");
        assert!(fitted > 300, "{fitted} blocks are little for a pool of 4 MiB");
        assert_filled(&pool, go, 1_000 * cycle, fitted);
        assert_filled(&pool, keep, 0, 40);
        assert_sound(&pool);
        match cycle % 3 {
            0 => {
                let disk = pool.attach(go, AttachOptions::default()).unwrap();
                disk.discard(0, 1 << 30).unwrap();
                disk.flush().unwrap();
            }
            1 => {
                pool.delete_volume(go, Snapshots::Refuse).unwrap().wait().unwrap();
                pool.create_volume(VolumeSpec::blank(1 << 30).id(go)).unwrap();
            }
            _ => {
                let disk = pool.attach(go, AttachOptions::default()).unwrap();
                disk.write_zeroes(0, 1 << 30).unwrap();
                disk.flush().unwrap();
            }
        }
        while pool.step(4096).unwrap() {}
        pool.checkpoint().unwrap();
        while pool.step(4096).unwrap() {}
    }
    pool.close().unwrap();
    let pool = Pool::open_on(memory, Shape::SMALL.open()).unwrap();
    assert_filled(&pool, keep, 0, 40);
    assert_sound(&pool);
}

#[test]
fn full_pool_can_roll_back_and_delete_snapshots() {
    let (_, pool) = small_pool();
    let id = pool.create_volume(VolumeSpec::blank(1 << 30)).unwrap().id;
    let disk = pool.attach(id, AttachOptions::default()).unwrap();
    for block in 0..100 {
        disk.write_at(&Rng::stamp_bytes(block, BLOCK as usize), block * BLOCK).unwrap();
    }
    drop(disk);
    let point = pool.create_snapshot(id, SnapshotSpec::new()).unwrap().id;
    let fitted = fill(&pool, id, 50_000);
    assert!(fitted > 100);
    // Rollback and delete need no space that is not already set aside, and neither does the flush after them.
    let disk = pool.attach(id, AttachOptions::default()).unwrap();
    pool.rollback_with(point, RollbackOptions::new().live(true)).unwrap();
    disk.flush().unwrap();
    drop(disk);
    assert_filled(&pool, id, 0, 100);
    pool.delete_snapshot(point).unwrap().wait().unwrap();
    while pool.step(4096).unwrap() {}
    pool.checkpoint().unwrap();
    while pool.step(4096).unwrap() {}
    let again = fill(&pool, id, 90_000);
    assert!(again >= fitted, "{again} blocks fit after all that, {fitted} before it");
    assert_sound(&pool);
}

/// A flood of small operations at the edge: each works or is refused as out of space, and none leaves a trace
/// when refused.
#[test]
fn random_operations_on_a_full_pool_work_or_are_out_of_space() {
    let seed = rng::seed("random_operations_on_a_full_pool_work_or_are_out_of_space", 6);
    let limits = Limits { volumes: 6, snapshots: 10, blocks: 400 };
    let (mut refused, mut done) = (0, 0);
    for round in 0..8 {
        let mut rng = Rng::new(seed + round);
        let mut rig = Rig::create(MemoryDevice::new(), Shape::SMALL.limit(3 << 20)).unwrap();
        // Exact figures of a deletion are the model tests' matter.
        for step in 0..1_500 {
            let op = match rng.below(3) {
                0 => Op::random(&mut rng),
                _ => {
                    Op::new(Kind::Write, rng.next() as u32, rng.next() as u32, 5 + 10 * rng.below(16) as u32)
                }
            };
            let action = rig.resolve(op, limits);
            match rig.apply(&action) {
                Ok(()) => done += 1,
                Err(error) => {
                    assert!(
                        matches!(error, Error::OutOfSpace { .. }),
                        "seed {seed}, round {round}, step {step}: {action:?}: {error:?}"
                    );
                    let needs_none = matches!(
                        action,
                        Action::DeleteSnapshot { .. }
                            | Action::DeleteVolume { .. }
                            | Action::Rollback { .. }
                            | Action::Discard { .. }
                            | Action::Flush
                            | Action::Checkpoint
                            | Action::Step { .. }
                            | Action::Drain
                    );
                    assert!(
                        !needs_none,
                        "seed {seed}, round {round}, step {step}: {action:?} must need no space: {error:?}"
                    );
                    refused += 1;
                    if refused % 40 == 0 {
                        observe::assert_equals(rig.pool(), &rig.model, &rig.disks);
                    }
                }
            }
        }
        rig.verify();
    }
    println!("full: {done} operations done, {refused} out of space");
    assert!(refused > 200 && done > 1_000);
}

/// A pool on a file that may grow does so in steps, and its size is what space() says.
#[test]
fn pool_file_grows_as_it_fills_and_never_passes_its_limit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pool");
    let pool = Pool::create(&path, Shape::SMALL.limit(12 << 20).create()).unwrap();
    let small = std::fs::metadata(&path).unwrap().len();
    let id = pool.create_volume(VolumeSpec::blank(1 << 40)).unwrap().id;
    fill(&pool, id, 3);
    let space = pool.space().unwrap();
    let large = std::fs::metadata(&path).unwrap().len();
    assert!(small < large && large <= 12 << 20, "{small} bytes, then {large}");
    assert_eq!(space.limit_bytes, 12 << 20);
    assert_eq!(space.total_bytes, large);
    assert!(space.used_bytes + space.metadata_bytes + space.free_bytes <= space.total_bytes, "{space:?}");
    pool.close().unwrap();
    Pool::open(&path, OpenOptions::new()).unwrap();
}

/// Whatever was refused: everything can be deleted, the pool closes, and opens again.
fn assert_ends_well(memory: &MemoryDevice, pool: Pool, ids: &[VolumeId]) {
    pool.checkpoint().unwrap();
    for id in ids {
        pool.delete_volume(*id, Snapshots::Delete).unwrap().wait().unwrap();
    }
    pool.close().unwrap();
    let pool = Pool::open_on(memory.share(), Shape::SMALL.open()).unwrap();
    assert_sound(&pool);
    pool.create_volume(VolumeSpec::blank(BLOCK)).unwrap();
}

fn full_pool(shape: &Shape) -> (MemoryDevice, Pool, VolumeId) {
    let memory = MemoryDevice::new();
    let pool = Pool::create_on(memory.share(), shape.create()).unwrap();
    let id = pool.create_volume(VolumeSpec::blank(1 << 60)).unwrap().id;
    (memory, pool, id)
}

fn refused<T: std::fmt::Debug>(mut call: impl FnMut() -> Result<T, Error>) -> Error {
    for _ in 0..100_000 {
        match call() {
            Ok(_) => {}
            Err(error @ Error::OutOfSpace { .. }) => return error,
            Err(error) => panic!("{error:?}"),
        }
    }
    panic!("nothing was refused")
}

/// Only what was put where nothing had been counted as growth: longer names ate the reserve, until no checkpoint could be
/// made, nothing deleted, and the pool not opened any more.
#[test]
fn longer_names_in_a_full_pool_leave_room_for_deletes() {
    let (memory, pool, id) = full_pool(&Shape::SMALL);
    let mut ids: Vec<_> =
        (0..1500).map(|_| pool.create_volume(VolumeSpec::blank(BLOCK)).unwrap().id).collect();
    fill(&pool, id, 0);
    let mut next = ids.iter();
    refused(|| {
        let long = || Some("n".repeat(255));
        pool.update_volume(*next.next().unwrap(), VolumeUpdate::new().name(long()).description(long()))
    });
    ids.truncate(100);
    ids.push(id);
    assert_ends_well(&memory, pool, &ids);
}

/// A batch that deleted something was not asked how much else it did.
#[test]
fn batches_with_a_delete_in_a_full_pool_leave_room_for_deletes() {
    let (memory, pool, id) = full_pool(&Shape::SMALL);
    let mut ids: Vec<_> =
        (0..200).map(|_| pool.create_volume(VolumeSpec::blank(BLOCK)).unwrap().id).collect();
    fill(&pool, id, 0);
    refused(|| {
        let one = ids.pop().unwrap();
        pool.batch(|b| {
            for _ in 0..10 {
                b.create_volume(VolumeSpec::blank(BLOCK).name("n".repeat(200)))?;
            }
            b.delete_volume(one, Snapshots::Delete)
        })
    });
    assert_ends_well(&memory, pool, &[id]);
}

/// One transaction was let in wherever a small one fitted, however large it was.
#[test]
fn large_batch_in_a_full_pool_is_refused_as_a_whole() {
    let shape = Shape { log_bytes: 4 << 20, ..Shape::SMALL.limit(16 << 20).cache(256 << 10) };
    let (memory, pool, id) = full_pool(&shape);
    fill(&pool, id, 0);
    let made = pool.batch(|b| {
        for _ in 0..2000 {
            b.create_volume(VolumeSpec::blank(BLOCK).name("n".repeat(200)).description("d".repeat(200)))?;
        }
        Ok(())
    });
    assert!(matches!(made, Err(Error::OutOfSpace { .. })), "{made:?}");
    assert_eq!(pool.list_volumes(&VolumeQuery::new().with_total(true)).unwrap().total, Some(1));
    assert_ends_well(&memory, pool, &[id]);
}

/// Data that fills holes takes no chunk, so nobody asked whether its maps still had room: here each block has a leaf of
/// its own.
#[test]
fn scattered_writes_into_holes_leave_room_for_deletes() {
    for blocks_per_chunk in [64, 1024] {
        let shape = Shape { blocks_per_chunk, ..Shape::SMALL.limit(64 << 20).cache(256 << 10) };
        let (memory, pool, id) = full_pool(&shape);
        let blocks = fill(&pool, id, 0);
        let disk = pool.attach(id, AttachOptions::default()).unwrap();
        for block in (0..blocks).step_by(8) {
            disk.discard(block * BLOCK, 4 * BLOCK).unwrap();
        }
        let mut at = 1 << 40;
        refused(|| {
            at += 1 << 46;
            disk.write_at(&[5; BLOCK as usize], at)
        });
        disk.discard(0, 1 << 60).unwrap();
        drop(disk);
        assert_ends_well(&memory, pool, &[id]);
    }
}

/// The reserve is for as many nodes as the cache may have dirty. With a larger cache than the pool was filled through,
/// all that was left was less than the reserve, and discards were refused.
#[test]
fn pool_that_was_filled_through_a_small_cache_takes_discards_through_a_large_one() {
    let (memory, pool, id) = full_pool(&Shape::SMALL.limit(64 << 20).cache(256 << 10));
    let blocks = fill(&pool, id, 0);
    pool.close().unwrap();
    let large = Shape::SMALL.cache(256 << 20);
    let pool = Pool::open_on(memory.share(), large.open()).unwrap();
    let disk = pool.attach(id, AttachOptions::default()).unwrap();
    for block in (0..blocks).step_by(16) {
        disk.discard(block * BLOCK, BLOCK).unwrap();
    }
    drop(disk);
    assert_ends_well(&memory, pool, &[id]);
}

/// Giving back takes space as well: where one volume of several goes that share their chunks, each of these gets pages of
/// counts, which it can do without while all of its blocks are named once.
#[test]
fn volumes_that_share_all_chunks_of_a_full_pool_can_be_deleted() {
    let (memory, pool, first) = full_pool(&Shape::SMALL.limit(64 << 20).cache(256 << 10));
    let mut ids = vec![first];
    ids.extend((0..2).map(|_| pool.create_volume(VolumeSpec::blank(1 << 60)).unwrap().id));
    let disks: Vec<_> = ids.iter().map(|id| pool.attach(*id, AttachOptions::default()).unwrap()).collect();
    let mut blocks = 0;
    refused(|| {
        blocks += 1;
        disks.iter().try_for_each(|disk| disk.write_at(&[4; BLOCK as usize], blocks * BLOCK))
    });
    let mut zero = 1 << 40;
    refused(|| {
        zero += 2 * BLOCK;
        disks[2].write_zeroes(zero, BLOCK)
    });
    let mut block = 0;
    while block < blocks && disks[2].discard(block * BLOCK, BLOCK).is_ok() {
        block += 2;
    }
    drop(disks);
    assert_ends_well(&memory, pool, &ids);
}
