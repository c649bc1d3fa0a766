//! Whole pools: group commit, reuse of blocks, buffers and tables of blocks that push each other out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use shuttle::thread;
use snapvol::device::sim::{Fate, SimDevice};
use snapvol::{
    AttachOptions, Background, CheckOptions, CreateOptions, Disk, OpenOptions, Pool, SequentialIds,
    SnapshotSpec, StepClock, VolumeSpec,
};
use snapvol_models::{Paced, run};

const BLOCK: u64 = 4096;

fn create(sim: &SimDevice) -> Pool {
    let options = CreateOptions::new()
        .blocks_per_chunk(64)
        .log_bytes(64 << 10)
        .limit_bytes(4 << 20)
        .initial_bytes(0)
        .cache_bytes(256 << 10)
        // Blocks that are given back are punched: whoever still reads one finds zeroes.
        .host_discard(true)
        .background(Background::Manual)
        .id_source(Arc::new(SequentialIds::new(1)))
        .clock(Arc::new(StepClock::new(1, 1)));
    Pool::create_on(Paced(sim.clone()), options).unwrap()
}

fn open(sim: SimDevice) -> Pool {
    let options = OpenOptions::new()
        .background(Background::Manual)
        .id_source(Arc::new(SequentialIds::new(2)))
        .clock(Arc::new(StepClock::new(1, 1)));
    Pool::open_on(Paced(sim), options).unwrap()
}

/// What a block holds: its number and a count, all over.
fn bytes(block: u64, count: u64) -> Vec<u8> {
    (block << 32 | count).to_le_bytes().repeat(512)
}

/// The count in a block. It is one that was written there, whole.
fn count(disk: &Disk, block: u64) -> u64 {
    let mut seen = vec![0xee; BLOCK as usize];
    disk.read_at(&mut seen, block * BLOCK).unwrap();
    let first = u64::from_le_bytes(seen[..8].try_into().unwrap());
    assert!(seen.chunks(8).all(|word| word == first.to_le_bytes()), "block {block} is a mixture");
    assert!(first == 0 || first >> 32 == block, "block {block} holds {first:#x}, which belongs elsewhere");
    first & 0xffff_ffff
}

fn assert_sound(pool: &Pool) {
    for report in [
        pool.check(CheckOptions::default(), &mut |_| {}).unwrap(),
        pool.scrub(CheckOptions::default(), &mut |_| {}).unwrap(),
    ] {
        assert!(report.is_clean(), "{:?}", report.findings);
    }
}

/// C3: a flush covers what its thread has written, whoever's commit and sync it shares.
#[test]
fn a_flush_returns_after_a_sync_that_covers_it() {
    run("group commit", 4_000, || {
        let sim = SimDevice::new();
        let pool = create(&sim);
        let id = pool.create_volume(VolumeSpec::blank(4 * BLOCK)).unwrap().id;
        let disk = Arc::new(pool.attach(id, AttachOptions::default()).unwrap());
        let flushed: Arc<[AtomicU64; 3]> = Arc::default();
        let writers: Vec<_> = (0..3_u64)
            .map(|writer| {
                let (disk, flushed) = (Arc::clone(&disk), Arc::clone(&flushed));
                thread::spawn(move || {
                    for n in 1..=2 {
                        disk.write_at(&bytes(writer, n), writer * BLOCK).unwrap();
                        disk.flush().unwrap();
                        flushed[writer as usize].store(n, Ordering::SeqCst);
                        thread::yield_now();
                    }
                })
            })
            .collect();
        // The power goes at some moment: everything that was not synced is lost.
        for _ in 0..shuttle_steps() {
            thread::yield_now();
        }
        let bounds = [0, 1, 2].map(|writer: usize| flushed[writer].load(Ordering::SeqCst));
        let survivor = sim.crash(|_| Fate::Lost);
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        let pool = open(survivor);
        let disk = pool.attach(id, AttachOptions::default()).unwrap();
        for (writer, bound) in (0..).zip(bounds) {
            let found = count(&disk, writer);
            assert!(found >= bound, "writer {writer} had flushed {bound}, {found} is there");
        }
    });
}

/// A number of steps, by the schedule's own chance.
fn shuttle_steps() -> usize {
    use shuttle::rand::Rng as _;
    shuttle::rand::thread_rng().gen_range(0..150)
}

/// C5: blocks that a checkpoint gives back are not written again while somebody may still read them. Reads go past
/// the tables and through them, while every block moves all the time and frames come round again.
#[test]
fn readers_never_see_a_block_that_was_used_again() {
    run("view pinning", 3_000, || {
        let sim = SimDevice::new();
        let pool = create(&sim);
        let id = pool.create_volume(VolumeSpec::blank(4 * BLOCK)).unwrap().id;
        let disk = Arc::new(pool.attach(id, AttachOptions::default()).unwrap());
        for block in 0..3 {
            disk.write_at(&bytes(block, 1), block * BLOCK).unwrap();
        }
        pool.checkpoint().unwrap();
        let readers: Vec<_> = (0..2_u64)
            .map(|reader| {
                let disk = Arc::clone(&disk);
                thread::spawn(move || {
                    let mut last = [0; 3];
                    for n in 0..4 {
                        let block = (reader + n) % 2;
                        let now = count(&disk, block);
                        assert!(now >= last[block as usize].max(1), "block {block} went back to {now}");
                        last[block as usize] = now;
                    }
                })
            })
            .collect();
        let keeper = thread::spawn({
            let pool = pool.clone();
            move || (0..3).for_each(|_| pool.checkpoint().unwrap())
        });
        for n in 2..6 {
            for block in 0..2 {
                disk.write_at(&bytes(block, n), block * BLOCK).unwrap();
            }
        }
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        keeper.join().unwrap();
        assert_eq!([0, 1, 2].map(|block| count(&disk, block)), [5, 5, 1]);
        drop(disk);
        assert_sound(&pool);
    });
}

/// P1: writes to different parts of one block both survive, through buffers, checkpoints and snapshots.
#[test]
fn writes_to_different_parts_of_a_block_both_survive() {
    run("partial writes", 3_000, || {
        let sim = SimDevice::new();
        let pool = create(&sim);
        let id = pool.create_volume(VolumeSpec::blank(BLOCK)).unwrap().id;
        let disk = Arc::new(pool.attach(id, AttachOptions::default()).unwrap());
        let writers: Vec<_> = (0..2_u64)
            .map(|writer| {
                let disk = Arc::clone(&disk);
                thread::spawn(move || {
                    for n in 1..=3_u8 {
                        disk.write_at(&[n; 512], writer * 512).unwrap();
                        let mut back = [0; 512];
                        disk.read_at(&mut back, writer * 512).unwrap();
                        assert_eq!(back, [n; 512], "writer {writer}");
                    }
                })
            })
            .collect();
        pool.flush().unwrap();
        let snapshot = pool.create_snapshot(id, SnapshotSpec::new().force(true)).unwrap();
        let seen = |disk: &Disk| {
            let mut seen = [0; 1024];
            disk.read_at(&mut seen, 0).unwrap();
            seen
        };
        let frozen = pool.attach_snapshot(snapshot.id).unwrap();
        let before = seen(&frozen);
        pool.checkpoint().unwrap();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        assert_eq!(seen(&disk), [3; 1024]);
        assert_eq!(seen(&frozen), before, "a snapshot never changes");
        drop((disk, frozen));
        assert_sound(&pool);
    });
}
