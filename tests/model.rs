//! P1, P3, P4: random operation lists against a model that copies whole arrays.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use common::ops::{Action, Kind, Limits, Op, WEIGHT_SUM};
use common::{Rig, Shape, observe, rng};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use snapvol::Error;
use snapvol::device::MemoryDevice;

fn op() -> impl Strategy<Value = Op> {
    (0..WEIGHT_SUM, any::<u32>(), any::<u32>(), any::<u32>()).prop_map(|(w, a, b, c)| Op::decode(w, a, b, c))
}

/// Runs lists of operations until `operations` have been done, each list on a pool of its own.
fn run(test: &str, default_seed: u64, shape: Shape, limits: Limits, operations: u64) {
    const LENGTH: usize = 200;
    let seed = rng::seed(test, default_seed);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        // Lists of every length up to twice this: on average so many, and a tenth more to be sure.
        cases: (operations * 11 / 10 / LENGTH as u64 + 1) as u32,
        // The seed is printed and can be given again: no file is left behind.
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..Config::default()
    };
    let (done, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    let counts: Mutex<BTreeMap<&'static str, u64>> = Mutex::default();
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let outcome = runner.run(&vec(op(), 1..=2 * LENGTH), |ops| {
        let mut rig = Rig::create(MemoryDevice::new(), shape.clone()).map_err(fail)?;
        let length = ops.len();
        // Something to begin with; most operations need a volume.
        let first = [Op::new(Kind::Create, 0, 20, 0), Op::new(Kind::Create, 0, 5, 0)];
        for (index, op) in first.into_iter().chain(ops).enumerate() {
            let action = rig.resolve(op, limits);
            let kind = action.kind();
            match rig.model.after(&action) {
                Ok(_) => *counts.lock().unwrap().entry(kind).or_insert(0) += 1,
                Err(_) => drop(refused.fetch_add(1, Ordering::Relaxed)),
            }
            if let Err(error) = rig.apply(&action) {
                return Err(TestCaseError::fail(format!("operation {index}, {action:?}: {error:?}")));
            }
            if index % 61 == 60 {
                observe::assert_equals(rig.pool(), &rig.model, &rig.disks);
            }
        }
        rig.verify();
        rig.must(Action::Drain);
        rig.must(Action::Reopen);
        rig.verify();
        observe::assert_space(rig.pool(), &rig.model);
        observe::assert_diffs(rig.pool(), &rig.model);
        done.fetch_add(length as u64, Ordering::Relaxed);
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{test}, SNAPVOL_SEED={seed}: {error}");
    }
    let done = done.into_inner();
    let (counts, refused) = (counts.into_inner().unwrap(), refused.into_inner());
    println!("{test}: {done} operations, {refused} refused as they must be; {counts:?}");
    assert!(done >= operations && refused * 2 < done);
    assert_eq!(counts.len(), Action::KINDS, "some kind of operation never happened");
    assert!(
        counts.values().all(|&n| n > operations / 2_000),
        "some kind of operation hardly happened: {counts:?}"
    );
}

fn fail(error: Error) -> TestCaseError {
    TestCaseError::fail(format!("{error:?}"))
}

#[test]
fn small_volumes_with_many_snapshots_equal_the_model() {
    let limits = Limits { volumes: 5, snapshots: 12, blocks: 24 };
    let shape = Shape::SMALL.limit(64 << 20);
    run("small_volumes_with_many_snapshots_equal_the_model", 1, shape, limits, 150_000);
}

#[test]
fn larger_volumes_in_a_small_cache_equal_the_model() {
    let limits = Limits { volumes: 4, snapshots: 6, blocks: 600 };
    let shape = Shape::SMALL.limit(128 << 20).cache(256 << 10).host_discard();
    run("larger_volumes_in_a_small_cache_equal_the_model", 2, shape, limits, 100_000);
}

#[test]
fn one_volume_and_its_clones_equal_the_model() {
    let limits = Limits { volumes: 9, snapshots: 3, blocks: 6 };
    let shape = Shape::SMALL.limit(64 << 20);
    run("one_volume_and_its_clones_equal_the_model", 3, shape, limits, 100_000);
}
