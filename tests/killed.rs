//! P2: a process that writes, flushes, snapshots, clones, rolls back and deletes is killed (SIGKILL) at moments
//! of chance, 200 times. The pool then opens at a state that the process went through, no older than the last one
//! it had been told to be durable, and whole.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

mod common;

use common::kill::{Count, kill_users, work_until_killed};
use common::{on_all_cores, rng};

/// Pools, and how often the user of each is killed.
const POOLS: usize = 20;
const KILLS: usize = 10;

/// Not a test of its own: what the process does that is going to be killed. Returns at once in any other.
#[test]
fn child_works_until_it_is_killed() {
    work_until_killed();
}

#[test]
fn killed_200_times_and_nothing_that_was_flushed_is_lost() {
    let seed = rng::seed("killed_200_times_and_nothing_that_was_flushed_is_lost", 9);
    let folder = tempfile::tempdir().unwrap();
    let count = Count::default();
    on_all_cores(POOLS, |number| {
        let path = folder.path().join(format!("pool {number}"));
        let arguments = ["--exact", "child_works_until_it_is_killed", "--nocapture", "--test-threads=1"];
        kill_users(&path, seed + number as u64, KILLS, &arguments, &count);
    });
    println!("{count}");
    assert_eq!(count.kills.into_inner(), (POOLS * KILLS) as u64);
    assert!(count.operations.into_inner() > 2_000, "hardly anything was done before the kills");
}
