//! P2, P3: after a loss of power at any point a pool opens at a commit boundary, no older than the last one
//! acknowledged. Media are made from recorded workloads with unsynced writes lost, reordered and torn.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use common::crash::{self, ALPHABET, Count, LIMITS, Plan, kill, prepared, record};
use common::ops::{Kind, Op};
use common::rng::Rng;
use common::{Shape, assert_sound, on_all_cores, rng};
use snapvol::device::sim::{CallKind, Depth, Fate, SimDevice};
use snapvol::{Error, Pool};

fn report(test: &str, count: &Count) {
    println!("{test}: {} states opened\n{count}", count.total());
}

fn seen(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// Random workloads in every run of the tests; `SNAPVOL_CRASH_RUNS` makes more or fewer.
const RUNS: usize = 160;

/// Random workloads, one in eight with a lost flush, until 100,000 media and more have been opened.
#[test]
fn every_cut_of_random_workloads_opens_at_a_commit_boundary() {
    let name = "every_cut_of_random_workloads_opens_at_a_commit_boundary";
    let seed = rng::seed(name, 20_260_101);
    let count = Count::default();
    let runs: usize = std::env::var("SNAPVOL_CRASH_RUNS").ok().and_then(|n| n.parse().ok()).unwrap_or(RUNS);
    let began = std::time::Instant::now();
    on_all_cores(runs, |index| {
        let run_seed = seed.wrapping_add(index as u64 * 7919);
        let run = || crash::random_run(run_seed, Plan::FULL, &count);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
            println!(
                "replay: SNAPVOL_SEED={run_seed} SNAPVOL_CRASH_RUNS=1 cargo test --all-features --test crash {name}"
            );
            std::panic::resume_unwind(panic);
        }
    });
    report("random workloads", &count);
    println!("{:.0} states a second", count.total() as f64 / began.elapsed().as_secs_f64());
    if runs < RUNS {
        return;
    }
    assert!(count.total() >= 100_000, "only {} states were opened", count.total());
    assert!(seen(&count.torn) > 1_000 && seen(&count.second_cuts) > 1_000 && seen(&count.continued) > 20);
    // A simulator that drops nothing would let everything pass.
    assert!(seen(&count.rolled_back) > 500, "hardly any state lost an unacknowledged change");
    assert!(seen(&count.reported) > 10, "hardly any lost flush was noticed");
    let kinds: BTreeSet<_> = count.kinds.lock().unwrap().keys().copied().collect();
    for kind in [
        "write",
        "partialwrite",
        "writezeroes",
        "discard",
        "flush",
        "snapshot",
        "clonesnapshot",
        "clonevolume",
        "rollback",
        "deletesnapshot",
        "deletevolume",
        "extend",
        "batch",
        "checkpoint",
        "reopen",
        "create",
        "createover",
        "hydrate",
    ] {
        assert!(kinds.contains(kind), "no workload has a {kind}: {kinds:?}");
    }
}

/// Every workload of up to two operations; of three with `SNAPVOL_EXHAUSTIVE=3`.
#[test]
fn every_short_workload_survives_every_cut() {
    let length: u32 = std::env::var("SNAPVOL_EXHAUSTIVE").ok().and_then(|n| n.parse().ok()).unwrap_or(2);
    let count = Count::default();
    let workloads = crash::short_workloads(length);
    let depth = Depth::FULL.samples(12);
    let plan = Plan { depth, second_cut_one_in: 20, continue_one_in: 500, ..Plan::FULL };
    on_all_cores(workloads, |index| crash::short_run(index, plan, &count));
    report("short workloads", &count);
    assert!(count.total() >= workloads as u64 * 2);
}

/// A flush is lost: the device says that it is done, and then the power goes. Each sync of each workload lies once.
#[test]
fn lost_flush_is_reported_wherever_something_later_survived() {
    let seed = rng::seed("lost_flush_is_reported_wherever_something_later_survived", 77);
    let count = Count::default();
    let lies = AtomicU64::new(0);
    on_all_cores(24, |index| {
        let run_seed = seed + index as u64;
        let ops: Vec<Op> = {
            let mut rng = Rng::new(run_seed);
            (0..14).map(|_| Op::random(&mut rng)).collect()
        };
        // One sync lies, or two in a row.
        for (nth, in_a_row) in (0..).flat_map(|nth| [(nth, 1), (nth, 2)]) {
            let rig = prepared(&Shape::SMALL, LIMITS);
            let before = rig.medium.calls_of(CallKind::Sync);
            (nth..nth + in_a_row).for_each(|nth| rig.medium.lying_sync(before + nth));
            let story = format!("seed {run_seed}, {in_a_row} syncs from {nth} on lie");
            let run = record(rig, &ops, LIMITS, &story, &count);
            if !run.has_lie() {
                break;
            }
            lies.fetch_add(1, Ordering::Relaxed);
            let depth = Depth::FULL.subsets_up_to(7).samples(12);
            let plan = Plan { depth, second_cut_one_in: 0, continue_one_in: 0, ..Plan::FULL };
            run.walk(&ops, LIMITS, plan, &mut Rng::new(nth as u64), &count);
        }
    });
    report("lost flushes", &count);
    println!("{} workloads with lies", lies.into_inner());
    assert!(seen(&count.reported) > 100 && seen(&count.unnoticeable) > 20);
}

/// The judge of all this is judged: a device whose syncs lie loses what was acknowledged, and whoever believes it
/// sees that.
#[test]
fn device_that_lies_about_its_syncs_is_found_out() {
    let ops: Vec<Op> = (0..4)
        .flat_map(|n| [ALPHABET[0], Op::new(Kind::Write, 0, n, 0), Op::new(Kind::Flush, 0, 0, 0)])
        .collect();
    let (mut noticed, mut lies) = (0, 0);
    for nth in 0..8 {
        let rig = prepared(&Shape::SMALL, LIMITS);
        let sim = rig.medium.clone();
        sim.lying_sync(sim.calls_of(CallKind::Sync) + nth);
        let run = record(rig, &ops, LIMITS, "a lying sync", &Count::default());
        lies += usize::from(run.has_lie());
        let plan = Plan { believe_lies: true, ..Plan::FULL };
        let walk = || run.walk(&ops, LIMITS, plan, &mut Rng::new(nth as u64), &Count::default());
        noticed += usize::from(catch_unwind(AssertUnwindSafe(walk)).is_err());
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
    kill(&sim, pool);
    drop(sim);
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
                    kill(&device, pool);
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
        let rig = prepared(&shape, LIMITS);
        let mut ops = Vec::new();
        for _ in 0..4 {
            for block in 0..4 {
                ops.push(Op::new(Kind::Write, 0, block * 2, 5 + 10 * (rng.below(6) as u32)));
            }
            ops.push(Op::new(Kind::Discard, 0, rng.below(8) as u32, 5 + 10 * 3));
            ops.push(Op::new(Kind::Checkpoint, 0, 0, 0));
            ops.push(Op::new(Kind::Drain, 0, 0, 0));
        }
        let run = record(rig, &ops, LIMITS, &format!("seed {seed} + {index}"), &count);
        let depth = Depth::FULL.subsets_up_to(6).samples(12);
        let plan = Plan { depth, second_cut_one_in: 40, continue_one_in: 300, ..Plan::FULL };
        run.walk(&ops, LIMITS, plan, &mut rng, &count);
    });
    report("discards", &count);
}
