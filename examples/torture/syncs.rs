//! Random workloads in which a sync fails.

use std::sync::atomic::Ordering;

use crate::campaign::{Campaign, Outcome};
use crate::common::syncs::{Count, random_run};

pub(crate) fn run(args: &mut lexopt::Parser) -> Outcome<u64> {
    let campaign = Campaign::parse("syncs", Some(10.0), args, |_, _| Ok(false))?;
    let count = Count::default();
    let failures = campaign.run(
        || count.states.load(Ordering::Relaxed),
        |number| random_run(campaign.seed_of(number), &count),
        |number| campaign.replay_by_seed(number),
        || Ok(()),
    )?;
    println!("{count}");
    Ok(failures)
}
