//! Snapshot, clone, rollback and delete, at several sizes and layouts (N10, N11, N16), and reads with many snapshots
//! behind the volume (N7). The engine and the floor only, once per round.

use std::path::Path;
use std::time::{Duration, Instant};

use snapvol::{AttachOptions, CreateOptions, Pool, RollbackOptions, Snapshots, VolumeSpec};

use crate::Result;
use crate::design::{self, Row};
use crate::engine::Engine;
use crate::floor::Floor;
use crate::phases::{rate, timed};
use crate::plan::Plan;
use crate::pools::{Layout, Mapped, Medium};
use crate::stamp::{BLOCK, BLOCK_BYTES, Ink};
use crate::store::Store;
use crate::table::{Report, Sample, Spread};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Calls within a round; their median counts.
const CALLS: usize = 9;
/// Clones whose space is divided by their number.
const CLONES: usize = 200;

struct Sizes {
    small_bytes: u64,
    large_bytes: u64,
    /// The volume of which 1 % is overwritten.
    changed_bytes: u64,
    /// Volumes of N7 and the snapshots behind them.
    read_bytes: u64,
    deep: [u64; 3],
}

pub(crate) fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    let sizes = if plan.quick {
        report
            .note("N7, N10, N11: 64 MiB and 512 MiB, 1 GiB changed, 1,000 snapshots at most in a quick run");
        Sizes {
            small_bytes: 64 * MIB,
            large_bytes: 512 * MIB,
            changed_bytes: GIB,
            read_bytes: 64 * MIB,
            deep: [0, 100, 1000],
        }
    } else {
        Sizes {
            small_bytes: 256 * MIB,
            large_bytes: 4 * GIB,
            changed_bytes: 16 * GIB,
            read_bytes: 256 * MIB,
            deep: [0, 100, 10_000],
        }
    };
    let folder = plan.folder()?;
    if plan.wants("N7") {
        plan.say("snapshots behind the volume");
        deep_reads(plan, &sizes, folder.path(), report)?;
    }
    if plan.wants("N10") || plan.wants("N16") {
        plan.say("calls at several sizes");
        calls(plan, &sizes, folder.path(), report)?;
    }
    if plan.wants("N11") {
        plan.say("deletes");
        delete_contiguous(plan, &sizes, folder.path(), report)?;
        delete_scattered(plan, &sizes, folder.path(), report)?;
    }
    Ok(())
}

/// The floor's file: one durable write of a block to it is what the calls are measured against.
struct Yardstick {
    floor: Floor,
    ink: Ink,
}

/// A call in microseconds, and in durable writes.
struct Paired {
    micros: f64,
    ratio: f64,
}

impl Yardstick {
    /// Calls and durable writes in turn.
    fn median(&mut self, mut call: impl FnMut() -> Result<Duration>) -> Result<Paired> {
        let (mut calls, mut writes) = (Vec::new(), Vec::new());
        for _ in 0..CALLS {
            let write = timed(|| self.floor.write_durably(&[0], &mut self.ink))?;
            writes.push(write.as_secs_f64() * 1e6);
            calls.push(call()?.as_secs_f64() * 1e6);
        }
        let micros = Spread::of(&mut calls).median;
        Ok(Paired { micros, ratio: micros / Spread::of(&mut writes).median })
    }
}

fn deep_reads(plan: &Plan, sizes: &Sizes, folder: &Path, report: &mut Report) -> Result<()> {
    let pool = Pool::create(folder.join("deep.pool"), CreateOptions::new())?;
    let mut rng = fastrand::Rng::with_seed(plan.seed);
    let mut volumes = Vec::new();
    for snapshots in sizes.deep {
        let volume = Mapped::create(&pool, sizes.read_bytes, Layout::Sequential)?;
        // All are written alike, so that only the snapshots differ.
        for written in 0..sizes.deep[2] {
            volume.overwrite(1, 2, &mut rng)?;
            if written < snapshots {
                volume.snapshot(&pool)?;
            }
        }
        volumes.push((snapshots, volume));
    }
    pool.checkpoint()?;
    for round in 0..plan.rounds {
        let mut alone = None;
        for (snapshots, volume) in &volumes {
            let value = read(volume, plan.reads)?;
            let ratio = alone.map(|alone| value / alone);
            alone = alone.or(Some(value));
            let variant = format!("{snapshots} snapshots");
            report.add_variant(&design::N7, &variant, Engine::NAME, Sample { round, value, ratio });
        }
    }
    Ok(())
}

/// Random reads of whole blocks after a pass that makes them hot. Operations a second.
fn read(volume: &Mapped, count: usize) -> Result<f64> {
    let mut lbas: Vec<u64> = (0..volume.blocks()).collect();
    fastrand::Rng::with_seed(volume.blocks()).shuffle(&mut lbas);
    lbas.truncate(count);
    let mut block = vec![0; BLOCK];
    let mut pass = || lbas.iter().try_for_each(|&lba| volume.read(lba, &mut block));
    pass()?;
    Ok(rate(lbas.len(), timed(pass)?))
}

fn calls(plan: &Plan, sizes: &Sizes, folder: &Path, report: &mut Report) -> Result<()> {
    let mut yardstick = Yardstick { floor: Floor::create(folder)?, ink: Ink::new(2) };
    let pool = Pool::create(folder.join("calls.pool"), CreateOptions::new())?;
    let mut volumes = Vec::new();
    for bytes in [sizes.small_bytes, sizes.large_bytes] {
        for (layout, name) in [(Layout::Sequential, "sequential"), (Layout::Random, "fragmented")] {
            let volume = Mapped::create(&pool, bytes, layout)?;
            volumes.push((format!("{} MiB {name}", bytes / MIB), volume));
        }
    }
    for round in 0..plan.rounds {
        let mut add = |row: &'static Row, variant: &str, call: Paired| {
            let sample = Sample { round, value: call.micros, ratio: Some(call.ratio) };
            report.add_variant(row, variant, Engine::NAME, sample);
        };
        for (variant, volume) in &volumes {
            add(&design::N10_SNAPSHOT, variant, snapshot(&pool, volume, &mut yardstick)?);
            add(&design::N10_CLONE, variant, clone(&pool, volume, &mut yardstick)?);
            add(&design::N10_ROLLBACK, variant, rollback(&pool, volume, &mut yardstick)?);
            add(&design::N11_RETURNS, variant, delete_returns(&pool, volume, &mut yardstick)?);
        }
        if let Some((variant, volume)) = volumes.last() {
            let (call, bytes) = clone_and_attach(&pool, volume, &mut yardstick)?;
            add(&design::N16, variant, call);
            let sample = Sample { round, value: bytes / 1024.0, ratio: None };
            report.add_variant(&design::N16_SPACE, variant, Engine::NAME, sample);
        }
    }
    compare_sizes(sizes, report);
    Ok(())
}

/// The same call at the largest and the smallest size.
fn compare_sizes(sizes: &Sizes, report: &mut Report) {
    for (row, name) in [
        (&design::N10_SNAPSHOT, "snapshot"),
        (&design::N10_CLONE, "clone"),
        (&design::N10_ROLLBACK, "rollback"),
    ] {
        for layout in ["sequential", "fragmented"] {
            let at = |bytes: u64| report.find(row, &format!("{} MiB {layout}", bytes / MIB), Engine::NAME);
            let (Some(small), Some(large)) = (at(sizes.small_bytes), at(sizes.large_bytes)) else { continue };
            let pairs = large.samples.iter().zip(&small.samples);
            let samples: Vec<Sample> = pairs
                .map(|(large, small)| Sample {
                    round: large.round,
                    value: large.value / small.value,
                    ratio: None,
                })
                .collect();
            for sample in samples {
                report.add_variant(&design::N10_SIZES, &format!("{name}, {layout}"), Engine::NAME, sample);
            }
        }
    }
}

fn snapshot(pool: &Pool, volume: &Mapped, yardstick: &mut Yardstick) -> Result<Paired> {
    yardstick.median(|| {
        pool.flush()?;
        let began = Instant::now();
        let snapshot = volume.snapshot(pool)?;
        let took = began.elapsed();
        pool.delete_snapshot(snapshot)?.wait()?;
        Ok(took)
    })
}

fn clone(pool: &Pool, volume: &Mapped, yardstick: &mut Yardstick) -> Result<Paired> {
    yardstick.median(|| {
        pool.flush()?;
        let began = Instant::now();
        let clone = pool.create_volume(VolumeSpec::from_volume(volume.id))?;
        let took = began.elapsed();
        pool.delete_volume(clone.id, Snapshots::Refuse)?.wait()?;
        Ok(took)
    })
}

fn rollback(pool: &Pool, volume: &Mapped, yardstick: &mut Yardstick) -> Result<Paired> {
    let snapshot = volume.snapshot(pool)?;
    let mut rng = fastrand::Rng::with_seed(volume.blocks());
    let took = yardstick.median(|| {
        volume.overwrite(16, 2, &mut rng)?;
        pool.flush()?;
        let took =
            timed(|| Ok(pool.rollback_with(snapshot, RollbackOptions::new().live(true)).map(drop)?))?;
        volume.verify(16, &mut rng)?;
        Ok(took)
    })?;
    pool.delete_snapshot(snapshot)?.wait()?;
    Ok(took)
}

fn delete_returns(pool: &Pool, volume: &Mapped, yardstick: &mut Yardstick) -> Result<Paired> {
    let mut rng = fastrand::Rng::with_seed(volume.blocks());
    yardstick.median(|| {
        let snapshot = volume.snapshot(pool)?;
        volume.overwrite(256, 2, &mut rng)?;
        pool.flush()?;
        let began = Instant::now();
        let deletion = pool.delete_snapshot(snapshot)?;
        let took = began.elapsed();
        deletion.wait()?;
        Ok(took)
    })
}

/// A clone and its attachment, and the bytes that a clone takes.
fn clone_and_attach(pool: &Pool, volume: &Mapped, yardstick: &mut Yardstick) -> Result<(Paired, f64)> {
    let base = volume.snapshot(pool)?;
    pool.checkpoint()?;
    let before = pool.space()?.metadata_bytes;
    let mut clones = Vec::new();
    let mut make = || {
        let began = Instant::now();
        let clone = pool.create_volume(VolumeSpec::from_snapshot(base))?.id;
        drop(pool.attach(clone, AttachOptions::new())?);
        let took = began.elapsed();
        clones.push(clone);
        Ok(took)
    };
    let call = yardstick.median(&mut make)?;
    (CALLS..CLONES).try_for_each(|_| make().map(drop))?;
    pool.checkpoint()?;
    let bytes = pool.space()?.metadata_bytes.saturating_sub(before) as f64 / CLONES as f64;
    for clone in clones {
        pool.delete_volume(clone, Snapshots::Refuse)?.wait()?;
    }
    pool.delete_snapshot(base)?.wait()?;
    Ok((call, bytes))
}

/// A volume mapped in sequence goes.
fn delete_contiguous(plan: &Plan, sizes: &Sizes, folder: &Path, report: &mut Report) -> Result<()> {
    let pool = Medium::Stamps.create(&folder.join("contiguous.pool"), CreateOptions::new())?;
    for round in 0..plan.rounds {
        let volume = Mapped::create(&pool, sizes.large_bytes, Layout::Sequential)?;
        let Mapped { id, disk } = volume;
        drop(disk);
        let began = Instant::now();
        let freed = pool.delete_volume(id, Snapshots::Refuse)?.wait()?.freed_bytes;
        let value = freed as f64 / GIB as f64 / began.elapsed().as_secs_f64();
        let variant = format!("{} MiB", sizes.large_bytes / MIB);
        report.add_variant(
            &design::N11_RECLAIM,
            &variant,
            Engine::NAME,
            Sample { round, value, ratio: None },
        );
    }
    Ok(())
}

/// A snapshot goes from which its volume differs in 1 % of the blocks, at random.
fn delete_scattered(plan: &Plan, sizes: &Sizes, folder: &Path, report: &mut Report) -> Result<()> {
    let pool = Medium::Stamps.create(&folder.join("scattered.pool"), CreateOptions::new())?;
    let volume = Mapped::create(&pool, sizes.changed_bytes, Layout::Sequential)?;
    let mut rng = fastrand::Rng::with_seed(plan.seed);
    for round in 0..plan.rounds {
        let snapshot = volume.snapshot(&pool)?;
        volume.overwrite(sizes.changed_bytes / BLOCK_BYTES / 100, 2, &mut rng)?;
        pool.checkpoint()?;
        let began = Instant::now();
        let deletion = pool.delete_snapshot(snapshot)?;
        while !deletion.is_done() {
            std::thread::yield_now();
        }
        let took = began.elapsed();
        let value = rate(deletion.progress().scanned as usize, took);
        let variant = format!("1 % of {} GiB", sizes.changed_bytes / GIB);
        report.add_variant(
            &design::N11_ENTRIES,
            &variant,
            Engine::NAME,
            Sample { round, value, ratio: None },
        );
        volume.verify(2000, &mut rng)?;
    }
    Ok(())
}
