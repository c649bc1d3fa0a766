//! N9: a pool that is 85 % full while one of its volumes is overwritten at random, ten times over, with a rolling row of
//! snapshots. The floor does the same writes in turn.
//!
//! The curve shows throughput against the floor and the runs that the engine finds room for: with no garbage collector
//! they shorten as the pool ages, and must not take the throughput with them.

use std::collections::VecDeque;

use snapvol::{CreateOptions, Pool};

use crate::Result;
use crate::design;
use crate::engine::Engine;
use crate::floor::Floor;
use crate::memory::pretouch;
use crate::meter::Meter;
use crate::phases::{rate, timed};
use crate::plan::Plan;
use crate::pools::{Layout, Mapped};
use crate::stamp::{BLOCK_BYTES, Ink};
use crate::store::Contender;
use crate::table::{Report, Sample};

const PASSES: u64 = 10;
/// Writes between two flushes, and between two points of the curve.
const STEPS_PER_PASS: u64 = 16;
/// Steps between two snapshots, and how many there are at a time.
const STEPS_PER_SNAPSHOT: u64 = 4;
const SNAPSHOTS: usize = 2;
/// The pool's limit in volumes, and how full it is with the snapshots.
const POOL_VOLUMES: u64 = 4;
const FULL: f64 = 0.85;

/// One step of the curve.
pub(crate) struct Step {
    /// How often the volume has been overwritten.
    pub(crate) passes: f64,
    pub(crate) engine: f64,
    pub(crate) floor: f64,
    pub(crate) mean_run: f64,
    pub(crate) longest_run: f64,
}

pub(crate) fn run(plan: &Plan, report: &mut Report) -> Result<Vec<Step>> {
    if !plan.wants("N9") {
        return Ok(Vec::new());
    }
    plan.say("ageing");
    let volume_bytes = plan.volume_bytes / if plan.quick { 4 } else { 1 };
    let limit = POOL_VOLUMES * volume_bytes;
    let folder = plan.folder()?;
    let device = Meter::create(&folder.path().join("aged.pool"))?;
    let runs = device.runs();
    let pool = Pool::create_on(device, CreateOptions::new().limit_bytes(limit))?;
    let volume = Mapped::create(&pool, volume_bytes, Layout::Sequential)?;
    // What the snapshots will hold counts as full.
    let held = volume_bytes * STEPS_PER_SNAPSHOT * SNAPSHOTS as u64 / STEPS_PER_PASS;
    let space = pool.space()?;
    let rest = (limit as f64 * FULL) as u64 - space.used_bytes - space.metadata_bytes - held;
    let _rest = Mapped::create(&pool, rest - rest % (1 << 20), Layout::Sequential)?;
    let floor = Contender::fill(Box::new(Floor::create(folder.path())?), volume_bytes / BLOCK_BYTES)?;

    let mut lbas: Vec<u64> = (0..volume.blocks()).collect();
    let mut rng = fastrand::Rng::with_seed(plan.seed);
    let mut snapshots = VecDeque::new();
    let mut steps = Vec::new();
    for pass in 0..PASSES {
        rng.shuffle(&mut lbas);
        let version = 2 + pass as u32;
        for lbas in lbas.chunks(lbas.len() / STEPS_PER_PASS as usize) {
            let step = steps.len() as u64;
            if step.is_multiple_of(STEPS_PER_SNAPSHOT) {
                snapshots.push_back(volume.snapshot(&pool)?);
                if snapshots.len() > SNAPSHOTS {
                    let oldest = snapshots.pop_front().ok_or("no snapshot")?;
                    pool.delete_snapshot(oldest)?.wait()?;
                }
            }
            pretouch(lbas.len());
            runs.take();
            let mut ink = Ink::new(version);
            let engine = timed(|| {
                lbas.iter().try_for_each(|&lba| volume.write(lba, &mut ink))?;
                Ok(volume.disk.flush()?)
            })?;
            let runs = runs.take();
            let on_floor = timed(|| floor.store.write_durably(lbas, &mut ink))?;
            steps.push(Step {
                passes: (step + 1) as f64 / STEPS_PER_PASS as f64,
                engine: rate(lbas.len(), engine),
                floor: rate(lbas.len(), on_floor),
                mean_run: runs.mean,
                longest_run: runs.longest,
            });
        }
        volume.verify(4096, &mut rng)?;
        let total = pool.space()?.total_bytes;
        if total > limit {
            return Err(format!("the pool grew to {total} bytes, its limit is {limit}").into());
        }
    }
    add_rows(&steps, report);
    Ok(steps)
}

fn add_rows(steps: &[Step], report: &mut Report) {
    let last = steps.len() - STEPS_PER_PASS as usize;
    for (index, step) in steps.iter().enumerate() {
        let variant = match index {
            i if i < STEPS_PER_PASS as usize => "first pass",
            i if i >= last => "last pass",
            _ => "passes between",
        };
        let round = index as u32;
        let ratio = Some(step.engine / step.floor);
        report.add_variant(&design::N9, variant, Engine::NAME, Sample { round, value: step.engine, ratio });
        report.add_variant(
            &design::N9,
            variant,
            Floor::NAME,
            Sample { round, value: step.floor, ratio: None },
        );
        for (row, bytes) in [(&design::N9_MEAN, step.mean_run), (&design::N9_LONGEST, step.longest_run)] {
            let sample = Sample { round, value: bytes / 1024.0, ratio: None };
            report.add_variant(row, variant, Engine::NAME, sample);
        }
    }
}
