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
    AttachOptions, Error, OpenOptions, Pool, RollbackOptions, SnapshotSpec, Snapshots, VolumeId, VolumeSpec,
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
