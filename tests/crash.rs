//! P2, P3: after a loss of power at any point a pool opens at a commit boundary, no older than the last one
//! acknowledged. Media are made from recorded workloads with unsynced writes lost, reordered and torn.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicU64, Ordering};

use common::crash::{Count, Depth, kill, record};
use common::ops::{Kind, Limits, Op};
use common::rng::Rng;
use common::{Rig, Shape, assert_sound, observe, on_all_cores, rng};
use snapvol::device::sim::{CallKind, Fate, Fault, SimDevice};
use snapvol::{Error, Pool};

const LIMITS: Limits = Limits { volumes: 3, snapshots: 4, blocks: 16 };

fn report(test: &str, count: &Count) {
    println!("{test}: {} states opened: {count:?}", count.total());
}

/// Two volumes of one family with shared blocks, and one of its own, all durable.
fn prepared(shape: &Shape) -> Rig<SimDevice> {
    let mut rig = Rig::create(SimDevice::new(), shape.clone()).unwrap();
    let no = |kind, a, b, c| Op::new(kind, a, b, c);
    for op in [
        no(Kind::Create, 0, 7, 0),
        no(Kind::Write, 0, 0, 0),
        no(Kind::Write, 0, 1, 36),
        no(Kind::Snapshot, 0, 1, 0),
        no(Kind::Write, 0, 1, 0),
        no(Kind::CloneSnapshot, 0, 1, 0),
        no(Kind::Write, 1, 2, 0),
        no(Kind::Checkpoint, 0, 0, 0),
        no(Kind::Flush, 0, 0, 0),
    ] {
        let action = rig.resolve(op, LIMITS);
        rig.must(action);
    }
    rig
}

fn random_ops(rng: &mut Rng, count: usize) -> Vec<Op> {
    (0..count).map(|_| Op::random(rng)).collect()
}

/// Random workloads until 20,000 media and more have been opened.
#[test]
fn every_cut_of_random_workloads_opens_at_a_commit_boundary() {
    let seed = rng::seed("every_cut_of_random_workloads_opens_at_a_commit_boundary", 20_260_101);
    let count = Count::default();
    let runs: usize = std::env::var("SNAPVOL_CRASH_RUNS").ok().and_then(|n| n.parse().ok()).unwrap_or(120);
    on_all_cores(runs, |index| {
        let run_seed = seed.wrapping_add(index as u64 * 7919);
        let mut rng = Rng::new(run_seed);
        let shape = match index % 3 {
            0 => Shape::SMALL,
            1 => Shape::SMALL.host_discard(),
            _ => Shape::SMALL.cache(256 << 10),
        };
        let rig = prepared(&shape);
        let length = 6 + rng.below(20) as usize;
        let ops = random_ops(&mut rng, length);
        let run = record(rig, &ops, LIMITS, &format!("run seed {run_seed} (run {index} of seed {seed})"));
        run.walk(&ops, LIMITS, Depth::FULL, &mut rng, &count);
    });
    report("random workloads", &count);
    assert!(count.total() >= 20_000, "only {} states were opened", count.total());
    let seen = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    assert!(seen(&count.torn) > 1_000 && seen(&count.second_cuts) > 1_000 && seen(&count.continued) > 20);
    // A simulator that drops nothing would let everything pass.
    assert!(seen(&count.rolled_back) > 500, "hardly any state lost an unacknowledged change");
}

/// Each operation that changes a pool, once.
const ALPHABET: [Op; 21] = [
    Op::new(Kind::Write, 0, 0, 0),
    Op::new(Kind::Write, 0, 3, 65),
    Op::new(Kind::Write, 1, 1, 7),
    Op::new(Kind::WriteZeroes, 0, 1, 0),
    Op::new(Kind::Discard, 0, 0, 0),
    Op::new(Kind::Flush, 0, 0, 0),
    Op::new(Kind::Snapshot, 0, 1, 0),
    Op::new(Kind::CloneSnapshot, 0, 1, 0),
    Op::new(Kind::CloneVolume, 0, 0, 2),
    Op::new(Kind::Rollback, 0, 1, 0),
    Op::new(Kind::LiveRollback, 0, 0, 0),
    Op::new(Kind::DeleteSnapshot, 0, 0, 1),
    Op::new(Kind::DeleteVolume, 0, 4, 1),
    Op::new(Kind::DeleteVolume, 0, 1, 1),
    Op::new(Kind::Extend, 0, 0, 3),
    Op::new(Kind::Create, 0, 4, 0),
    Op::new(Kind::Batch, 0, 0, 0),
    Op::new(Kind::Checkpoint, 0, 0, 0),
    Op::new(Kind::Drain, 0, 0, 0),
    Op::new(Kind::Reopen, 0, 0, 0),
    Op::new(Kind::Hold, 0, 0, 0),
];

/// Every workload of up to two operations; of three with `SNAPVOL_EXHAUSTIVE=3`.
#[test]
fn every_short_workload_survives_every_cut() {
    let length: u32 = std::env::var("SNAPVOL_EXHAUSTIVE").ok().and_then(|n| n.parse().ok()).unwrap_or(2);
    let count = Count::default();
    let workloads: usize = (1..=length).map(|n| ALPHABET.len().pow(n)).sum();
    let depth = Depth { samples: 12, second_cut_one_in: 60, continue_one_in: 500, ..Depth::FULL };
    on_all_cores(workloads, |index| {
        let (mut number, mut digits) = (index, 1);
        while number >= ALPHABET.len().pow(digits) {
            number -= ALPHABET.len().pow(digits);
            digits += 1;
        }
        let ops: Vec<Op> =
            (0..digits).map(|digit| ALPHABET[number / ALPHABET.len().pow(digit) % ALPHABET.len()]).collect();
        let mut rng = Rng::new(index as u64);
        let run = record(prepared(&Shape::SMALL), &ops, LIMITS, &format!("exhaustive workload {index}"));
        run.walk(&ops, LIMITS, depth, &mut rng, &count);
    });
    report("short workloads", &count);
    assert!(count.total() >= workloads as u64 * 2);
}

/// The judge of all this is judged: a device whose syncs lie loses what was acknowledged, and that is noticed.
#[test]
fn device_that_lies_about_its_syncs_is_found_out() {
    let ops: Vec<Op> =
        (0..4).flat_map(|n| [ALPHABET[0], Op::new(Kind::Write, 0, n, 0), ALPHABET[5]]).collect();
    let (mut noticed, mut lies) = (0, 0);
    for nth in 0..8 {
        let rig = prepared(&Shape::SMALL);
        let sim = rig.medium.clone();
        sim.lying_sync(sim.calls_of(CallKind::Sync) + nth);
        let run = record(rig, &ops, LIMITS, "a lying sync");
        lies += usize::from(run.trace.ops().contains(&snapvol::device::sim::Op::SyncWithoutEffect));
        let walk = || run.walk(&ops, LIMITS, Depth::FULL, &mut Rng::new(nth as u64), &Count::default());
        noticed += usize::from(std::panic::catch_unwind(std::panic::AssertUnwindSafe(walk)).is_err());
    }
    println!("{noticed} of {lies} lying syncs noticed (the panics above are theirs)");
    // Each of the four flushes relies on its sync. A checkpoint's own syncs may lie alone without loss: the log
    // that it would have replaced is still there.
    assert!(noticed >= 4 && noticed + 2 >= lies);
}

#[test]
fn create_cut_anywhere_leaves_no_pool_or_an_empty_one() {
    let sim = SimDevice::new();
    let pool = Pool::create_on(sim.clone(), Shape::SMALL.create()).unwrap();
    let trace = sim.trace();
    let created = trace.len();
    kill(sim, pool);
    let mut rng = Rng::new(rng::seed("create_cut_anywhere_leaves_no_pool_or_an_empty_one", 11));
    let mut cursor = trace.cursor();
    let (mut opened, mut refused) = (0, 0);
    loop {
        let pending = cursor.pending();
        for round in 0..if pending == 0 { 1 } else { 64 } {
            let device = cursor.device(|_| match rng.below(4) {
                _ if round == 0 => Fate::Kept,
                _ if round == 1 => Fate::Lost,
                0 => Fate::TornRandom(rng.next()),
                1 => Fate::Lost,
                _ => Fate::Kept,
            });
            match Pool::open_on(device.clone(), Shape::SMALL.open()) {
                Ok(pool) => {
                    opened += 1;
                    assert_sound(&pool);
                    kill(device, pool);
                }
                Err(error) => {
                    refused += 1;
                    assert!(
                        cursor.position() < created || pending > 0,
                        "a created pool must open: {error:?}"
                    );
                    let typed = matches!(
                        error,
                        Error::Corrupt(_) | Error::InvalidArgument { .. } | Error::Unsupported(_)
                    );
                    assert!(typed, "{error:?}");
                }
            }
        }
        if cursor.step().is_none() {
            break;
        }
    }
    println!("create: {opened} media opened, {refused} refused");
    assert!(opened > 0 && refused > 0);
    assert_eq!(trace.pending_at(created), 0, "create returns only when the pool is durable");
}

/// Host discards must never reach a block that was allocated again.
#[test]
fn discarded_runs_never_take_reused_blocks_along() {
    let seed = rng::seed("discarded_runs_never_take_reused_blocks_along", 5);
    let count = Count::default();
    on_all_cores(6, |index| {
        let mut rng = Rng::new(seed + index as u64);
        let shape = Shape::SMALL.limit(5 << 19).host_discard();
        let rig = prepared(&shape);
        let mut ops = Vec::new();
        for _ in 0..4 {
            for block in 0..4 {
                ops.push(Op::new(Kind::Write, 0, block * 2, 5 + 10 * (rng.below(6) as u32)));
            }
            ops.push(Op::new(Kind::Discard, 0, rng.below(8) as u32, 5 + 10 * 3));
            ops.push(Op::new(Kind::Checkpoint, 0, 0, 0));
            ops.push(Op::new(Kind::Drain, 0, 0, 0));
        }
        let run = record(rig, &ops, LIMITS, &format!("seed {} + {index}", seed));
        let depth = Depth { samples: 12, subsets_up_to: 6, second_cut_one_in: 40, continue_one_in: 300 };
        run.walk(&ops, LIMITS, depth, &mut rng, &count);
    });
    report("discards", &count);
}

/// A sync that returned an error and threw the pending pages away: what was acknowledged before is still there.
#[test]
fn failed_sync_that_drops_pages_loses_nothing_acknowledged() {
    let mut hit = 0;
    for nth in 0..12 {
        let mut rig = prepared(&Shape::SMALL);
        let sim = rig.medium.clone();
        sim.drop_on_failed_sync(true);
        let at = sim.calls_of(CallKind::Sync) + nth;
        sim.fail_kind_at(CallKind::Sync, at, Fault::Eio, false);
        let mut acknowledged = rig.model.clone();
        let mut in_flight = None;
        for step in 0..16_u32 {
            let kind = [Kind::Write, Kind::Flush, Kind::Snapshot, Kind::Checkpoint][step as usize % 4];
            let action = rig.resolve(Op::new(kind, 0, step, 0), LIMITS);
            if rig.apply(&action).is_err() {
                hit += 1;
                in_flight = rig.model.after(&action).ok();
                let next = rig.resolve(Op::new(Kind::Write, 0, 0, 0), LIMITS);
                let latched = rig.apply(&next).unwrap_err();
                assert!(matches!(latched, Error::Poisoned), "latched: {latched:?}");
                break;
            }
            if action.is_durable() {
                acknowledged = rig.model.clone();
            }
        }
        let latest = rig.model.clone();
        let next = sim.reopen();
        drop(rig.leave());
        let pool = Pool::open_on(next, Shape::SMALL.open()).unwrap();
        let digest = observe::digest(&pool).unwrap();
        let allowed =
            [Some(acknowledged.digest()), Some(latest.digest()), in_flight.map(|model| model.digest())];
        assert!(
            allowed.contains(&Some(digest)),
            "sync {nth}: {:#?}",
            observe::differences(&pool, &acknowledged)
        );
        assert_sound(&pool);
    }
    assert!(hit > 4, "the faults hardly hit");
}
