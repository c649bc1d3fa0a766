//! P1, P11: readers and writers on one disk and on many, while snapshots, rollbacks and deletes go on. Each block
//! is always one of the values that were written to it, whole.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::assert_sound;
use common::rng::Rng;
use snapvol::device::MemoryDevice;
use snapvol::{
    AttachOptions, CreateOptions, Disk, Error, OpenOptions, Pool, RollbackOptions, SnapshotId, SnapshotQuery,
    SnapshotSpec, Snapshots, VolumeId, VolumeSpec,
};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 48;

fn options() -> CreateOptions {
    CreateOptions::new().blocks_per_chunk(64).log_bytes(512 << 10).limit_bytes(96 << 20).cache_bytes(1 << 20)
}

fn budget() -> Duration {
    let seconds = std::env::var("SNAPVOL_SECONDS").ok().and_then(|n| n.parse().ok());
    seconds.map_or(Duration::from_millis(2_500), Duration::from_secs)
}

/// One value for all 512 words of a block: block number, writer and count.
fn value(block: u64, writer: u64, count: u64) -> u64 {
    (block + 1) << 48 | writer << 40 | count
}

fn block_of(value: u64) -> Vec<u8> {
    value.to_le_bytes().repeat(512)
}

/// The one value that the block holds: zero, or something that was written to this block.
fn value_in(bytes: &[u8], block: u64) -> u64 {
    let words: Vec<u64> = bytes.chunks_exact(8).map(|w| u64::from_le_bytes(w.try_into().unwrap())).collect();
    let first = words[0];
    assert!(words.iter().all(|&word| word == first), "block {block} is a mixture: {:x?}", &words[..4]);
    assert!(first == 0 || first >> 48 == block + 1, "block {block} holds {first:x}, which belongs elsewhere");
    first
}

fn read_block(disk: &Disk, block: u64) -> u64 {
    let mut bytes = vec![0xee; BLOCK as usize];
    disk.read_at(&mut bytes, block * BLOCK).unwrap();
    value_in(&bytes, block)
}

fn values(disk: &Disk) -> Vec<u64> {
    let mut bytes = vec![0xee; disk.size_bytes() as usize];
    disk.read_at(&mut bytes, 0).unwrap();
    bytes.chunks(BLOCK as usize).enumerate().map(|(block, bytes)| value_in(bytes, block as u64)).collect()
}

fn shared_volume(pool: &Pool) -> VolumeId {
    pool.create_volume(VolumeSpec::blank(BLOCKS * BLOCK).multiattach(true)).unwrap().id
}

#[test]
fn every_writer_owns_its_blocks_and_reads_what_it_wrote() {
    let pool = Pool::create_on(MemoryDevice::new(), options()).unwrap();
    let id = shared_volume(&pool);
    let disk = Arc::new(pool.attach(id, AttachOptions::default()).unwrap());
    let stop = AtomicBool::new(false);
    let (writes, snapshots) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for writer in 0..4 {
            let (disk, stop, writes) = (&disk, &stop, &writes);
            scope.spawn(move || {
                let mut rng = Rng::new(writer);
                let mut mine = vec![0; BLOCKS as usize];
                for count in 1.. {
                    // Blocks of this writer only: what it wrote last must be what it reads (P1).
                    let block = rng.below(BLOCKS / 4) * 4 + writer;
                    if rng.one_in(3) {
                        assert_eq!(
                            read_block(disk, block),
                            mine[block as usize],
                            "writer {writer}, block {block}"
                        );
                    } else {
                        mine[block as usize] = value(block, writer, count);
                        disk.write_at(&block_of(mine[block as usize]), block * BLOCK).unwrap();
                        writes.fetch_add(1, Ordering::Relaxed);
                    }
                    if rng.one_in(200) {
                        disk.flush().unwrap();
                    }
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        let (pool, stop, snapshots) = (&pool, &stop, &snapshots);
        scope.spawn(move || {
            let end = Instant::now() + budget();
            let mut held: Vec<(SnapshotId, Vec<u64>)> = Vec::new();
            let mut rng = Rng::new(77);
            while Instant::now() < end {
                let snapshot = pool.create_snapshot(id, SnapshotSpec::new().force(true)).unwrap();
                snapshots.fetch_add(1, Ordering::Relaxed);
                held.push((snapshot.id, values(&pool.attach_snapshot(snapshot.id).unwrap())));
                if held.len() > 4 {
                    let (gone, seen) = held.swap_remove(rng.below(held.len() as u64) as usize);
                    let now = values(&pool.attach_snapshot(gone).unwrap());
                    assert_eq!(now, seen, "a snapshot never changes");
                    drop(pool.delete_snapshot(gone).unwrap());
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
    });
    println!("{} writes, {} snapshots", writes.into_inner(), snapshots.into_inner());
    drop(disk);
    assert_sound(&pool);
}

#[test]
fn overlapping_writes_leave_each_block_one_of_them_through_rollbacks() {
    let pool = Pool::create_on(MemoryDevice::new(), options()).unwrap();
    let id = shared_volume(&pool);
    let stop = AtomicBool::new(false);
    let first = pool.create_snapshot(id, SnapshotSpec::new()).unwrap().id;
    let rollbacks = AtomicU64::new(0);
    thread::scope(|scope| {
        for writer in 0..3 {
            let (pool, stop) = (&pool, &stop);
            scope.spawn(move || {
                // A handle each: a shared attachment.
                let disk = pool.attach(id, AttachOptions::default()).unwrap();
                let mut rng = Rng::new(writer + 10);
                for count in 1.. {
                    let from = rng.below(BLOCKS - 8);
                    let blocks = rng.below(8) + 1;
                    let bytes: Vec<u8> = (from..from + blocks)
                        .flat_map(|block| block_of(value(block, writer, count)))
                        .collect();
                    match rng.below(12) {
                        0 => disk.discard(from * BLOCK, blocks * BLOCK).unwrap(),
                        1 => disk.write_zeroes(from * BLOCK, blocks * BLOCK).unwrap(),
                        2 => disk.write_fua_at(&bytes, from * BLOCK).unwrap(),
                        _ => disk.write_at(&bytes, from * BLOCK).unwrap(),
                    }
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        for reader in 0..2 {
            let (pool, stop) = (&pool, &stop);
            scope.spawn(move || {
                let disk = pool.attach(id, AttachOptions::default().read_only(true)).unwrap();
                let mut rng = Rng::new(reader + 20);
                while !stop.load(Ordering::Relaxed) {
                    if rng.one_in(10) {
                        values(&disk);
                    } else {
                        read_block(&disk, rng.below(BLOCKS));
                    }
                }
            });
        }
        let (pool, stop, rollbacks) = (&pool, &stop, &rollbacks);
        scope.spawn(move || {
            let end = Instant::now() + budget();
            let mut points = vec![first];
            let mut rng = Rng::new(99);
            while Instant::now() < end {
                match rng.below(4) {
                    0 => points.push(pool.create_snapshot(id, SnapshotSpec::new().force(true)).unwrap().id),
                    1 if points.len() > 3 => {
                        let gone = points.swap_remove(rng.below(points.len() as u64) as usize);
                        pool.delete_snapshot(gone).unwrap().wait().unwrap();
                    }
                    _ => {
                        let to = points[rng.below(points.len() as u64) as usize];
                        pool.rollback_with(to, RollbackOptions::new().live(true)).unwrap();
                        rollbacks.fetch_add(1, Ordering::Relaxed);
                    }
                }
                thread::sleep(Duration::from_micros(300));
            }
            stop.store(true, Ordering::Relaxed);
        });
    });
    println!("{} live rollbacks", rollbacks.into_inner());
    assert_sound(&pool);
}

#[test]
fn writes_to_different_bytes_of_one_block_all_survive() {
    let pool = Pool::create_on(MemoryDevice::new(), options()).unwrap();
    let id = shared_volume(&pool);
    let disk = pool.attach(id, AttachOptions::default()).unwrap();
    let writers = 8;
    let done = AtomicU64::new(0);
    /// Counts its thread as done even when an assertion fails, so that the flushes end.
    struct Done<'a>(&'a AtomicU64);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    thread::scope(|scope| {
        // Flushes close the buffers all the time: most writes find their block at rest and must copy it, so
        // that two of them often start from the same copy.
        scope.spawn(|| {
            while done.load(Ordering::SeqCst) < writers {
                disk.flush().unwrap();
            }
        });
        for writer in 0..writers {
            let done = &done;
            let (disk, pool) = (&disk, &pool);
            scope.spawn(move || {
                let _done = Done(done);
                let at = writer * 512;
                for count in 1..=24_000_u64 {
                    let bytes = [(count % 251) as u8 + 1; 512];
                    let block = count % 3;
                    // What was written three rounds ago is still there: nobody copied over it.
                    let mut before = [0; 512];
                    disk.read_at(&mut before, block * BLOCK + at).unwrap();
                    let then = if count > 3 { ((count - 3) % 251) as u8 + 1 } else { 0 };
                    assert_eq!(before, [then; 512], "writer {writer}, before write {count}");
                    disk.write_at(&bytes, block * BLOCK + at).unwrap();
                    let mut back = [0; 512];
                    disk.read_at(&mut back, block * BLOCK + at).unwrap();
                    assert_eq!(back, bytes, "writer {writer}, write {count}");
                    if writer == 0 && count % 400 == 0 {
                        pool.create_snapshot(id, SnapshotSpec::new().force(true)).unwrap();
                    }
                }
            });
        }
    });
    let mut all = vec![0; 3 * BLOCK as usize];
    disk.read_at(&mut all, 0).unwrap();
    for (index, part) in all.chunks(512).enumerate() {
        assert!(part[0] != 0 && part.iter().all(|&b| b == part[0]), "part {index}");
    }
    drop(disk);
    assert_sound(&pool);
}

/// Many volumes on a file: each thread has its own, with snapshots, clones, rollbacks and deletes of its own.
#[test]
fn many_disks_at_once_keep_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pool");
    let pool = Pool::create(&path, options()).unwrap();
    let stop = Instant::now() + budget();
    let survivors: Vec<(VolumeId, Vec<u64>)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..6_u64)
            .map(|writer| {
                let pool = &pool;
                scope.spawn(move || {
                    let mut rng = Rng::new(writer + 500);
                    let mut id = pool.create_volume(VolumeSpec::blank(BLOCKS * BLOCK)).unwrap().id;
                    let mut now = vec![0; BLOCKS as usize];
                    let mut points: Vec<(SnapshotId, Vec<u64>)> = Vec::new();
                    let mut count = 0;
                    while Instant::now() < stop {
                        let disk = pool.attach(id, AttachOptions::default()).unwrap();
                        assert_eq!(values(&disk), now, "writer {writer}");
                        for _ in 0..rng.below(20) {
                            count += 1;
                            let block = rng.below(BLOCKS);
                            now[block as usize] = value(block, writer, count);
                            disk.write_at(&block_of(now[block as usize]), block * BLOCK).unwrap();
                        }
                        if rng.one_in(4) {
                            disk.flush().unwrap();
                        }
                        drop(disk);
                        match rng.below(6) {
                            0 | 1 => {
                                let snapshot = pool.create_snapshot(id, SnapshotSpec::new()).unwrap();
                                points.push((snapshot.id, now.clone()));
                            }
                            2 if !points.is_empty() => {
                                let (point, seen) = &points[rng.below(points.len() as u64) as usize];
                                pool.rollback(*point).unwrap();
                                now.clone_from(seen);
                            }
                            3 if points.len() > 3 => {
                                let (gone, _) = points.swap_remove(rng.below(points.len() as u64) as usize);
                                let deletion = pool.delete_snapshot(gone).unwrap();
                                if rng.one_in(2) {
                                    deletion.wait().unwrap();
                                }
                            }
                            4 if !points.is_empty() => {
                                // A fork takes over; the old volume goes with all of its snapshots.
                                let (point, seen) = points.pop().unwrap();
                                let fork = pool.create_volume(VolumeSpec::from_snapshot(point)).unwrap();
                                drop(pool.delete_volume(id, Snapshots::Delete).unwrap());
                                points.clear();
                                id = fork.id;
                                now = seen;
                            }
                            _ => {}
                        }
                    }
                    (id, now)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_sound(&pool);
    pool.close().unwrap();
    let pool = Pool::open(&path, OpenOptions::new()).unwrap();
    for (id, now) in &survivors {
        assert_eq!(&values(&pool.attach(*id, AttachOptions::default()).unwrap()), now);
    }
    assert_sound(&pool);
}

/// Flushes from many threads: each covers what its own thread had written, whoever's sync it shares.
#[test]
fn flush_of_any_thread_covers_its_own_writes() {
    use snapvol::device::sim::{Fate, SimDevice};
    for round in 0..40_u64 {
        let sim = SimDevice::new();
        let pool = Pool::create_on(sim.clone(), options()).unwrap();
        let id = pool.create_volume(VolumeSpec::blank(BLOCKS * BLOCK)).unwrap().id;
        let disk = pool.attach(id, AttachOptions::default()).unwrap();
        let flushed: Vec<AtomicU64> = (0..4).map(|_| AtomicU64::new(0)).collect();
        let stop = AtomicBool::new(false);
        let survivor = thread::scope(|scope| {
            for writer in 0..4_u64 {
                let (disk, flushed, stop) = (&disk, &flushed, &stop);
                scope.spawn(move || {
                    for count in 1.. {
                        // The cut may come at any moment, also inside of these calls.
                        if stop.load(Ordering::Acquire) {
                            return;
                        }
                        disk.write_at(&block_of(value(writer, writer, count)), writer * BLOCK).unwrap();
                        disk.flush().unwrap();
                        flushed[writer as usize].store(count, Ordering::Release);
                    }
                });
            }
            thread::sleep(Duration::from_micros(200 + round * 171));
            // Read before the cut: a lower bound of what is durable in it.
            let bound: Vec<u64> = flushed.iter().map(|f| f.load(Ordering::Acquire)).collect();
            let survivor =
                sim.crash(|i| if (i as u64 ^ round).is_multiple_of(3) { Fate::Kept } else { Fate::Lost });
            stop.store(true, Ordering::Release);
            (survivor, bound)
        });
        drop(disk);
        let (survivor, bound) = survivor;
        let pool = Pool::open_on(survivor, OpenOptions::new()).unwrap();
        let disk = pool.attach(id, AttachOptions::default()).unwrap();
        for writer in 0..4_u64 {
            let found = read_block(&disk, writer) & 0xff_ffff_ffff;
            let bound = bound[writer as usize];
            assert!(found >= bound, "round {round}: writer {writer} had flushed {bound}, {found} is there");
        }
        drop(disk);
        assert_sound(&pool);
    }
}

/// Listing, describing, attaching and deleting meet in every order; each answer is right or a typed refusal.
#[test]
fn lists_and_attachments_meet_deletes_without_surprises() {
    let pool = Pool::create_on(MemoryDevice::new(), options()).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (pool, stop) = (&pool, &stop);
        for _ in 0..2 {
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    for snapshot in pool.list_snapshots(&SnapshotQuery::new()).unwrap().items {
                        match pool.attach_snapshot(snapshot.id) {
                            Ok(disk) => drop(values(&disk)),
                            Err(Error::NotFound { .. } | Error::Busy { .. }) => {}
                            Err(error) => panic!("{error:?}"),
                        }
                    }
                }
            });
        }
        scope.spawn(move || {
            let end = Instant::now() + budget() / 2;
            let id = shared_volume(pool);
            let mut snapshots = Vec::new();
            let mut rng = Rng::new(5);
            while Instant::now() < end {
                let disk = pool.attach(id, AttachOptions::default()).unwrap();
                let block = rng.below(BLOCKS);
                disk.write_at(&block_of(value(block, 1, 1)), block * BLOCK).unwrap();
                drop(disk);
                snapshots.push(pool.create_snapshot(id, SnapshotSpec::new()).unwrap().id);
                if snapshots.len() > 3 {
                    let gone = snapshots.remove(0);
                    loop {
                        match pool.delete_snapshot(gone) {
                            Ok(_) => break,
                            // A reader has it attached just now.
                            Err(Error::Busy { .. }) => thread::yield_now(),
                            Err(error) => panic!("{error:?}"),
                        }
                    }
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
    });
    assert_sound(&pool);
}
