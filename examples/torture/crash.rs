//! Random workloads, cut everywhere.

use crate::campaign::{Campaign, Outcome};
use crate::common::crash::{Count, Plan, random_run};

pub(crate) fn run(args: &mut lexopt::Parser) -> Outcome<u64> {
    let campaign = Campaign::parse("crash", Some(10.0), args, |_, _| Ok(false))?;
    let count = Count::default();
    let failures = campaign.run(
        || count.total(),
        |number| random_run(campaign.seed_of(number), Plan::FULL, &count),
        |number| campaign.replay_by_seed(number),
        || Ok(()),
    )?;
    println!("{count}");
    Ok(failures)
}
