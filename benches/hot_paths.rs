//! What one call on a hot path costs. One pool on a file for all rows, in the temporary folder.
//!
//! `cargo bench --bench hot_paths` measures; `cargo bench --bench hot_paths -- --test` runs each row once.
//! Rows whose call changes the pool for good (snapshot, clone, delete) set up and clean up outside of the time.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use snapvol::{
    AttachOptions, CreateOptions, Disk, Pool, RollbackOptions, SnapshotId, SnapshotSpec, Snapshots, VolumeId,
    VolumeSpec,
};

const BLOCK: u64 = 4096;
/// Bytes that are mapped before anything is measured.
const MAPPED: u64 = 64 << 20;
const BLOCKS: u64 = MAPPED / BLOCK;

struct Bed {
    pool: Pool,
    disk: Disk,
    volume: VolumeId,
    _folder: tempfile::TempDir,
}

/// A pool with one attached volume, mapped in full and flushed.
fn bed() -> Bed {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let options = CreateOptions::new().limit_bytes(32 << 30);
    let pool = Pool::create(folder.path().join("bench.pool"), options).expect("a pool");
    let volume = pool.create_volume(VolumeSpec::blank(MAPPED)).expect("a volume").id;
    let disk = pool.attach(volume, AttachOptions::default()).expect("a disk");
    for offset in (0..MAPPED).step_by(1 << 20) {
        disk.write_at(&stamp(offset, 1 << 20), offset).expect("a write");
    }
    disk.flush().expect("a flush");
    Bed { pool, disk, volume, _folder: folder }
}

impl Bed {
    fn snapshot(&self) -> SnapshotId {
        let spec = SnapshotSpec::new().force(true);
        self.pool.create_snapshot(self.volume, spec).expect("a snapshot").id
    }

    fn forget(&self, snapshot: SnapshotId) {
        let deletion = self.pool.delete_snapshot(snapshot).expect("a delete");
        deletion.wait().expect("reclaimed");
    }
}

fn stamp(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed | 1;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&x.to_le_bytes());
    }
    bytes
}

/// Visits every block once in an order that looks random, again and again.
struct Order(u64);

impl Order {
    fn next(&mut self) -> u64 {
        // An odd multiplier permutes the powers of two.
        self.0 += 1;
        self.0.wrapping_mul(0x9e37_79b1) % BLOCKS * BLOCK
    }
}

fn writes(c: &mut Criterion) {
    let bed = bed();
    let data = stamp(9, BLOCK as usize);
    let mut order = Order(0);
    let mut group = c.benchmark_group("write 4 KiB");
    group.throughput(Throughput::Bytes(BLOCK));
    group.bench_function("no snapshot", |b| {
        b.iter(|| bed.disk.write_at(black_box(&data), order.next()).expect("a write"));
    });
    // Each block is written once after each snapshot: every write is a first touch.
    group.bench_function("first touch after a snapshot", |b| {
        b.iter_custom(|count| {
            let mut spent = Duration::ZERO;
            let mut left = count;
            while left > 0 {
                let now = left.min(BLOCKS);
                let snapshot = bed.snapshot();
                let began = Instant::now();
                for _ in 0..now {
                    bed.disk.write_at(black_box(&data), order.next()).expect("a write");
                }
                spent += began.elapsed();
                bed.forget(snapshot);
                left -= now;
            }
            spent
        });
    });
    group.finish();

    let mut group = c.benchmark_group("write 512 B");
    group.throughput(Throughput::Bytes(512));
    group.bench_function("into a block shared with a snapshot", |b| {
        b.iter_custom(|count| {
            let mut spent = Duration::ZERO;
            let mut left = count;
            while left > 0 {
                let now = left.min(BLOCKS);
                let snapshot = bed.snapshot();
                let began = Instant::now();
                for _ in 0..now {
                    bed.disk.write_at(black_box(&data[..512]), order.next() + 1024).expect("a write");
                }
                spent += began.elapsed();
                bed.forget(snapshot);
                left -= now;
            }
            spent
        });
    });
    group.finish();
}

fn reads(c: &mut Criterion) {
    let bed = bed();
    let mut order = Order(0);
    let mut group = c.benchmark_group("read");
    let mut block = vec![0; BLOCK as usize];
    group.throughput(Throughput::Bytes(BLOCK));
    group.bench_function("random 4 KiB, hot", |b| {
        b.iter(|| bed.disk.read_at(black_box(&mut block), order.next()).expect("a read"));
    });
    let mut piece = vec![0; 1 << 20];
    let mut at = 0;
    group.throughput(Throughput::Bytes(1 << 20));
    group.bench_function("sequential 1 MiB, hot", |b| {
        b.iter(|| {
            at = (at + (1 << 20)) % MAPPED;
            bed.disk.read_at(black_box(&mut piece), at).expect("a read");
        });
    });
    group.finish();
}

fn flushes(c: &mut Criterion) {
    let bed = bed();
    let data = stamp(9, BLOCK as usize);
    let mut order = Order(0);
    let mut group = c.benchmark_group("flush");
    group.sample_size(20);
    for writes in [1_u64, 32, 1024] {
        group.throughput(Throughput::Bytes(writes * BLOCK));
        group.bench_function(format!("{writes} random writes and a flush"), |b| {
            b.iter(|| {
                for _ in 0..writes {
                    bed.disk.write_at(&data, order.next()).expect("a write");
                }
                bed.disk.flush().expect("a flush");
            });
        });
    }
    group.finish();
}

fn family(c: &mut Criterion) {
    let bed = bed();
    let data = stamp(9, BLOCK as usize);
    let mut order = Order(0);
    let mut group = c.benchmark_group("family");
    group.sample_size(20);
    group.bench_function("snapshot", |b| {
        b.iter_custom(|count| timed(count, || bed.snapshot(), |snapshot| bed.forget(snapshot)));
    });
    let point = bed.snapshot();
    group.bench_function("clone", |b| {
        let clone = || bed.pool.create_volume(VolumeSpec::from_snapshot(point)).expect("a clone").id;
        b.iter_custom(|count| {
            timed(count, clone, |id| drop(bed.pool.delete_volume(id, Snapshots::Delete).expect("a delete")))
        });
    });
    group.bench_function("live rollback", |b| {
        let live = RollbackOptions::new().live(true);
        b.iter(|| bed.pool.rollback_with(point, live).expect("a rollback"));
    });
    group.bench_function("delete a snapshot, returned", |b| {
        b.iter_batched(
            || bed.snapshot(),
            |snapshot| drop(bed.pool.delete_snapshot(snapshot).expect("a delete")),
            BatchSize::PerIteration,
        );
    });
    // 1,024 blocks are exclusive to the snapshot that goes.
    group.throughput(Throughput::Bytes(1024 * BLOCK));
    group.bench_function("delete a snapshot with 4 MiB of its own, reclaimed", |b| {
        b.iter_batched(
            || {
                let snapshot = bed.snapshot();
                for _ in 0..1024 {
                    bed.disk.write_at(&data, order.next()).expect("a write");
                }
                snapshot
            },
            |snapshot| bed.forget(snapshot),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

/// Times `run` alone and cleans up after each.
fn timed<T>(count: u64, run: impl Fn() -> T, undo: impl Fn(T)) -> Duration {
    let mut spent = Duration::ZERO;
    for _ in 0..count {
        let began = Instant::now();
        let made = run();
        spent += began.elapsed();
        undo(made);
    }
    spent
}

fn diffs(c: &mut Criterion) {
    let bed = bed();
    let data = stamp(9, BLOCK as usize);
    let mut order = Order(0);
    let first = bed.snapshot();
    for _ in 0..1024 {
        bed.disk.write_at(&data, order.next()).expect("a write");
    }
    let second = bed.snapshot();
    let mut group = c.benchmark_group("diff");
    group.sample_size(20);
    group.throughput(Throughput::Elements(1024));
    group.bench_function("1,024 changed blocks of 16,384", |b| {
        b.iter(|| {
            let diff = bed.pool.diff(first, second).expect("a diff");
            diff.map(|change| change.expect("a change").range.end).max()
        });
    });
    group.finish();
}

criterion_group!(benches, writes, reads, flushes, family, diffs);
criterion_main!(benches);
