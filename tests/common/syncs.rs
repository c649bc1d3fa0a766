//! A sync fails, and the host does with the waiting pages what hosts do: keeps them dirty, keeps them and calls them
//! clean, or throws them out. What was acknowledged as durable stays, nothing later is called durable, and a
//! reopened pool shows nothing that the disk does not hold.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use snapvol::device::sim::{CallKind, Depth, FailedSync, Fate, Fault, SimDevice};
use snapvol::{Error, Pool};

use super::crash::{LIMITS, kill, prepared};
use super::model::Model;
use super::ops::{Action, Op};
use super::rng::Rng;
use super::{Rig, Shape, assert_scrubs, observe};

/// What of the waiting data reaches the disk before the sync fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Brings {
    Nothing,
    Everything,
    /// Some of it, by chance.
    Some(u64),
}

/// What the process does after the failure, before it is killed or the power is lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Then {
    /// It goes on with its workload.
    GoesOn,
    /// The same while the host is short of memory and evicts clean pages.
    GoesOnWithoutCache,
    /// It closes the pool at once and opens it again.
    Reopens,
}

pub(crate) const HOSTS: [FailedSync; 3] =
    [FailedSync::StaysDirty, FailedSync::KeptClean, FailedSync::Dropped];
pub(crate) const THEN: [Then; 3] = [Then::GoesOn, Then::GoesOnWithoutCache, Then::Reopens];

/// One failure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failure {
    /// Number of the sync, counted from the beginning of the workload.
    pub(crate) sync: usize,
    pub(crate) host: FailedSync,
    pub(crate) brings: Brings,
    pub(crate) then: Then,
}

#[derive(Default, Debug)]
pub(crate) struct Count {
    /// Workloads in which the sync failed.
    pub(crate) failures: AtomicU64,
    /// Calls that a latched pool refused.
    pub(crate) refused: AtomicU64,
    /// Media opened afterwards: after a kill, after losses of power, after a second failure.
    pub(crate) states: AtomicU64,
    /// Media that no longer showed something that the failed process had shown.
    pub(crate) taken_back: AtomicU64,
}

fn one(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// For people.
impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        writeln!(f, "{:>12} workloads in which a sync failed", get(&self.failures))?;
        writeln!(f, "{:>12} later calls refused by a latched pool", get(&self.refused))?;
        writeln!(f, "{:>12} media opened afterwards", get(&self.states))?;
        write!(f, "{:>12} of them without something that had been shown", get(&self.taken_back))
    }
}

/// Number of syncs that a workload makes when nothing fails.
pub(crate) fn syncs_of(shape: &Shape, ops: &[Op]) -> usize {
    let mut rig = prepared(shape, LIMITS);
    let before = rig.medium.calls_of(CallKind::Sync);
    for op in ops {
        let action = rig.resolve(*op, LIMITS);
        rig.must(action);
    }
    rig.medium.calls_of(CallKind::Sync) - before
}

/// States that may be found, the last one acknowledged as durable first.
struct Possible(Vec<Model>);

impl Possible {
    fn found(&self, pool: &Pool, story: &dyn Fn() -> String) -> usize {
        let digest = observe::digest(pool).unwrap_or_else(|e| panic!("{}\nreading: {e:?}", story()));
        match self.0.iter().rposition(|model| model.digest() == digest) {
            Some(found) => found,
            None => panic!(
                "{}\nshows no possible state\nagainst the newest: {:#?}\nagainst the oldest: {:#?}",
                story(),
                observe::differences(pool, &self.0[self.0.len() - 1]),
                observe::differences(pool, &self.0[0])
            ),
        }
    }
}

/// Whether a latched pool may do this: it changes nothing, or nothing but what the process itself knows.
fn harmless(rig: &Rig<SimDevice>, action: &Action) -> bool {
    let idle =
        matches!(action, Action::Attach { .. } | Action::Detach { .. } | Action::Step { .. } | Action::Drain);
    idle || rig.model.after(action).is_err()
}

/// Runs the workload with one failed sync and judges everything that may come after it. False when the workload ended
/// before that sync.
pub(crate) fn run(shape: &Shape, ops: &[Op], failure: Failure, name: &str, count: &Count) -> bool {
    let story = || format!("{name}, {failure:?}");
    let mut rig = prepared(shape, LIMITS);
    let sim = rig.medium.clone();
    let Failure { sync, host, brings, then } = failure;
    sim.on_failed_sync(host);
    sim.failed_sync_brings(move |index| match brings {
        Brings::Nothing => Fate::Lost,
        Brings::Everything => Fate::Kept,
        Brings::Some(seed) => Fate::TornRandom(seed.wrapping_add(index as u64 * 1009)),
    });
    sim.fail_kind_at(CallKind::Sync, sim.calls_of(CallKind::Sync) + sync, Fault::Eio, false);
    let last = sim.calls_of(CallKind::Sync) + sync;
    let failed = || sim.calls_of(CallKind::Sync) > last;
    let mut possible = Possible(vec![rig.model.clone()]);
    let mut latched = false;
    for op in ops {
        let action = rig.resolve(*op, LIMITS);
        if latched && then == Then::GoesOnWithoutCache {
            sim.evict();
        }
        let harmless = harmless(&rig, &action);
        match rig.apply(&action) {
            Ok(()) => {
                assert!(!failed() || latched, "{}\n{action:?} hides that its sync failed", story());
                assert!(!latched || harmless, "{}\n{action:?} was done by a latched pool", story());
                if !harmless {
                    if action.is_durable() {
                        possible.0.clear();
                    }
                    possible.0.push(rig.model.clone());
                }
            }
            Err(error) if !latched => {
                assert!(failed(), "{}\n{action:?} failed without a fault: {error:?}", story());
                assert!(matches!(error, Error::Io { .. }), "{}\n{action:?}: {error:?}", story());
                latched = true;
                one(&count.failures);
                possible.0.extend(rig.model.halfway(&action));
                possible.0.extend(rig.model.after(&action));
                if rig.pool.is_none() || then == Then::Reopens {
                    break;
                }
            }
            // What failed may have been done all the same, so that what follows is refused for another reason.
            Err(_) => {
                one(&count.refused);
                if rig.pool.is_none() {
                    break;
                }
            }
        }
    }
    if !latched {
        return false;
    }
    // A loss of power now. What the disk has got and no sync has covered may be there or not.
    for crash in sim.trace().crash_states_from(sim.op_count(), Depth::QUICK.subsets_up_to(4).samples(6), 1) {
        crash.device.on_failed_sync(host);
        after(shape, &possible, crash.device, &|| format!("{}\n{:?}", story(), crash.point), count);
    }
    // A kill or a close: the next process has the same host, with what is left in its cache.
    match then {
        Then::Reopens => {
            let pool = rig.leave();
            drop(pool);
        }
        _ => {
            let reopened = sim.reopen();
            drop(rig.leave());
            drop(reopened);
        }
    }
    after(shape, &possible, sim.clone(), &|| format!("{}\nopened by the next process", story()), count);
    true
}

/// Opens the medium, with every sync of that failing once, then for good; what it shows must be on the disk.
fn after(shape: &Shape, possible: &Possible, sim: SimDevice, story: &dyn Fn() -> String, count: &Count) {
    for nth in 0..4 {
        let before = sim.calls_of(CallKind::Sync);
        sim.fail_kind_at(CallKind::Sync, before + nth, Fault::Eio, false);
        let opened = Pool::open_on(sim.clone(), shape.open_with_ids(20 + nth as u64));
        sim.clear_faults();
        match opened {
            Err(Error::Io { .. }) => continue,
            Err(error) => panic!("{}\nopen with sync {nth} failing: {error:?}", story()),
            Ok(pool) => {
                let failed = sim.calls_of(CallKind::Sync) > before + nth;
                assert!(!failed, "{}\nopen hides that its sync {nth} failed", story());
                kill(&sim, pool);
                break;
            }
        }
    }
    one(&count.states);
    let pool = match Pool::open_on(sim.clone(), shape.open()) {
        Ok(pool) => pool,
        Err(error) => panic!("{}\nopen: {error:?}", story()),
    };
    let found = possible.found(&pool, story);
    if found + 1 < possible.0.len() {
        one(&count.taken_back);
    }
    // Adopted means durable: a loss of power right now changes nothing.
    let lost = sim.crash(|_| Fate::Lost);
    let again = match Pool::open_on(lost.clone(), shape.open_with_ids(30)) {
        Ok(again) => again,
        Err(error) => panic!("{}\nadopted, lost power, open: {error:?}", story()),
    };
    one(&count.states);
    let second = possible.found(&again, &|| format!("{}\nadopted, then lost power", story()));
    let digests = [found, second].map(|i| possible.0[i].digest());
    assert_eq!(digests[0], digests[1], "{}\nadopted {found}, and {second} is on the disk", story());
    assert_scrubs(&again);
    kill(&lost, again);
    assert_scrubs(&pool);
    kill(&sim, pool);
}

/// A random workload with a random sync that fails, all of it given by its seed.
pub(crate) fn random_run(seed: u64, count: &Count) {
    let mut rng = Rng::new(seed);
    let shape = if rng.one_in(2) { Shape::SMALL } else { Shape::SMALL.cache(256 << 10).host_discard() };
    let ops: Vec<Op> = (0..8 + rng.below(24)).map(|_| Op::random(&mut rng)).collect();
    let syncs = syncs_of(&shape, &ops).max(1) as u64;
    for _ in 0..6 {
        let failure = Failure {
            sync: rng.below(syncs) as usize,
            host: HOSTS[rng.below(3) as usize],
            brings: match rng.below(4) {
                0 => Brings::Nothing,
                1 => Brings::Everything,
                _ => Brings::Some(rng.next()),
            },
            then: THEN[rng.below(3) as usize],
        };
        run(&shape, &ops, failure, &format!("run seed {seed}"), count);
    }
}
