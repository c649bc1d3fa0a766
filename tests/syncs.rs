//! P8, P2: each sync in turn fails, on hosts that treat its pages in different ways. Nothing acknowledged as durable is
//! lost, nothing is called durable after it, and a reopened pool shows nothing that the disk does not hold.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::Ordering;

use common::crash::ALPHABET;
use common::ops::{Kind, Op};
use common::syncs::{self, Brings, Count, Failure, HOSTS, THEN};
use common::{Shape, on_all_cores, rng};

/// Every operation that changes a pool, with something unsynced before each.
fn script() -> Vec<Op> {
    let write = |n: usize| Op::new(Kind::Write, n as u32 % 2, n as u32 * 3, 0);
    ALPHABET.iter().enumerate().flat_map(|(n, op)| [write(n), *op]).collect()
}

#[test]
fn each_sync_fails_in_turn_and_nothing_acknowledged_is_lost() {
    let ops = script();
    let shape = Shape::SMALL.cache(256 << 10).host_discard();
    let syncs = syncs::syncs_of(&shape, &ops);
    let count = Count::default();
    on_all_cores(syncs, |sync| {
        for host in HOSTS {
            for brings in [Brings::Nothing, Brings::Everything, Brings::Some(3), Brings::Some(4)] {
                for then in THEN {
                    let failure = Failure { sync, host, brings, then };
                    assert!(
                        syncs::run(&shape, &ops, failure, "script", &count),
                        "{failure:?} did not strike"
                    );
                }
            }
        }
    });
    println!("failed syncs: {syncs} syncs, {count:?}");
    assert!(syncs > 20);
    assert!(count.refused.load(Ordering::Relaxed) > 1_000, "hardly anything was asked of a latched pool");
    assert!(count.taken_back.load(Ordering::Relaxed) > 100, "hardly any failed sync had a consequence");
}

#[test]
fn random_syncs_of_random_workloads_fail_and_nothing_acknowledged_is_lost() {
    let seed = rng::seed("random_syncs_of_random_workloads_fail_and_nothing_acknowledged_is_lost", 900);
    let count = Count::default();
    on_all_cores(150, |index| syncs::random_run(seed + index as u64 * 31, &count));
    println!("failed syncs of random workloads: {count:?}");
    assert!(count.failures.load(Ordering::Relaxed) > 300);
}
