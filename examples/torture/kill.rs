//! Processes that are killed while they use a pool.

use std::sync::atomic::Ordering;

use crate::campaign::{Campaign, Outcome};
use crate::common::kill::{Count, kill_users, work_until_killed};

/// How often the user of one pool is killed.
const KILLS: usize = 10;

pub(crate) fn run(args: &mut lexopt::Parser) -> Outcome<u64> {
    // This very program is what is killed, too: then it has orders, and does not come back from here.
    work_until_killed();
    let campaign = Campaign::parse("kill", Some(10.0), args, |_, _| Ok(false))?;
    let folder = tempfile::tempdir()?;
    let count = Count::default();
    let failures = campaign.run(
        || count.kills.load(Ordering::Relaxed),
        |number| {
            let path = folder.path().join(format!("pool {number}"));
            kill_users(&path, campaign.seed_of(number), KILLS, &["kill"], &count);
            // A pool that something is wrong with stays until the end.
            let _ = std::fs::remove_file(&path);
        },
        |number| campaign.replay_by_seed(number),
        || Ok(()),
    )?;
    println!("{count}");
    Ok(failures)
}
