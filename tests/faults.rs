//! P7, P8: every call of the device fails in turn, in every way that it can, once and for good.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use common::model::Model;
use common::ops::{Action, Kind, Limits, Op};
use common::rng::Rng;
use common::{Rig, Shape, assert_sound, observe, on_all_cores, rng};
use snapvol::device::sim::{CallKind, FailedSync, Fate, Fault, SimDevice};
use snapvol::{Error, Pool};

const LIMITS: Limits = Limits { volumes: 3, snapshots: 5, blocks: 16 };

const fn op(kind: Kind, a: u32, b: u32, c: u32) -> Op {
    Op::new(kind, a, b, c)
}

/// Every operation there is, with a reopening in the middle and a close at the end.
const SCRIPT: [Op; 46] = [
    op(Kind::Create, 0, 11, 0),
    op(Kind::Write, 0, 0, 35),
    op(Kind::Flush, 0, 0, 0),
    op(Kind::Write, 0, 1, 8),
    op(Kind::Snapshot, 0, 1, 0),
    op(Kind::Write, 0, 2, 0),
    op(Kind::Write, 0, 0, 7),
    op(Kind::Flush, 0, 0, 0),
    op(Kind::CloneSnapshot, 0, 1, 0),
    op(Kind::Write, 1, 3, 45),
    op(Kind::Checkpoint, 0, 0, 0),
    op(Kind::Write, 0, 4, 155),
    op(Kind::Discard, 0, 1, 0),
    op(Kind::WriteZeroes, 0, 5, 1),
    op(Kind::Step, 40, 0, 0),
    op(Kind::Flush, 0, 0, 0),
    op(Kind::Reopen, 0, 0, 0),
    op(Kind::Write, 0, 0, 25),
    op(Kind::LiveRollback, 0, 0, 0),
    op(Kind::Extend, 0, 0, 5),
    op(Kind::Batch, 0, 1, 0),
    op(Kind::CloneVolume, 0, 1, 0),
    op(Kind::Rename, 2, 0, 0),
    op(Kind::Attach, 2, 0, 0),
    op(Kind::Write, 2, 2, 15),
    op(Kind::Detach, 2, 0, 0),
    op(Kind::Hold, 1, 0, 0),
    op(Kind::Hold, 1, 1, 0),
    op(Kind::Rollback, 0, 1, 0),
    op(Kind::DeleteVolume, 2, 3, 1),
    op(Kind::Write, 0, 3, 97),
    op(Kind::Write, 0, 6, 0),
    op(Kind::Flush, 0, 0, 0),
    op(Kind::DeleteSnapshot, 0, 0, 1),
    op(Kind::Drain, 0, 0, 0),
    op(Kind::Write, 1, 6, 15),
    op(Kind::DeleteVolume, 0, 3, 1),
    op(Kind::CreateOver, 0, 10, 1),
    op(Kind::CreateOver, 0, 9, 1),
    op(Kind::Write, 0, 1, 8),
    op(Kind::Checkpoint, 0, 0, 0),
    op(Kind::Drain, 0, 0, 0),
    op(Kind::Flush, 0, 0, 0),
    op(Kind::Reopen, 0, 0, 0),
    op(Kind::Hydrate, 0, 0, 0),
    op(Kind::Hydrate, 0, 1, 0),
];

fn shape() -> Shape {
    // So small that checkpoints and log turns come up within the script.
    Shape::SMALL.cache(256 << 10).host_discard()
}

/// A pool that a killed process has left, to be recovered.
struct Killed {
    medium: SimDevice,
    model: Model,
}

impl Killed {
    fn new() -> Self {
        let mut rig = Rig::create(SimDevice::new(), shape()).unwrap();
        // Up to before the reopening: no close has tidied up.
        for op in SCRIPT.iter().take_while(|op| op.kind != Kind::Reopen) {
            let action = rig.resolve(*op, LIMITS);
            rig.must(action);
        }
        let (medium, model) = (rig.medium.crash(|_| Fate::Kept), rig.model.clone());
        let killed = rig.medium.reopen();
        drop((rig.leave(), killed));
        Self { medium, model: Model { attached: BTreeSet::new(), ..model } }
    }
}

/// Operations, on a new pool or one that has to be recovered, and the calls of a run in which nothing fails.
struct Script {
    name: String,
    start: Option<Killed>,
    ops: Vec<Op>,
    calls: Vec<CallKind>,
}

impl Script {
    fn new(name: impl Into<String>, ops: &[Op]) -> Self {
        Self::over(None, name, ops)
    }

    fn over(start: Option<Killed>, name: impl Into<String>, ops: &[Op]) -> Self {
        let mut this = Self { name: name.into(), start, ops: ops.to_vec(), calls: Vec::new() };
        let sim = this.device();
        let mut rig = this.begin(&sim).unwrap();
        for op in ops {
            let action = rig.resolve(*op, LIMITS);
            rig.must(action);
        }
        this.calls = sim.calls();
        rig.verify();
        rig.leave().unwrap().close().unwrap();
        this
    }

    /// A device as it is before the run.
    fn device(&self) -> SimDevice {
        self.start.as_ref().map_or_else(SimDevice::new, |killed| killed.medium.crash(|_| Fate::Kept))
    }

    fn begin(&self, sim: &SimDevice) -> Result<Rig<SimDevice>, Error> {
        let Some(killed) = &self.start else { return Rig::create(sim.clone(), shape()) };
        let mut rig = Rig::open(sim.clone(), shape(), killed.model.clone())?;
        // Other ids, names and bytes than those of the process that was killed.
        rig.serial_from(1_000);
        Ok(rig)
    }
}

/// How long a fault lasts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lasts {
    Once,
    /// This kind of call fails from now on; a medium that can only be read, for example.
    ForThisKind,
    /// Everything fails from now on: the device is gone.
    ForAll,
}

/// Everything that a call of this kind can do instead of what it should, once and for good. `EINTR` never comes out
/// of the devices of this crate, which repeat the call; of another device it is an error like any other.
fn ways(kind: CallKind) -> Vec<(Fault, Lasts)> {
    use Fault::{Eio, EioAfterEffect, Enospc, Interrupted, ShortRead, ShortWrite, Unsupported};
    let own: &[Fault] = match kind {
        CallKind::Read => &[ShortRead],
        CallKind::Write => &[ShortWrite, EioAfterEffect],
        CallKind::Sync | CallKind::Allocate => &[EioAfterEffect],
        _ => &[Unsupported],
    };
    let faults = [Eio, Enospc, Interrupted].iter().chain(own);
    faults
        .flat_map(|fault| [Lasts::Once, Lasts::ForThisKind, Lasts::ForAll].map(|lasts| (*fault, lasts)))
        .collect()
}

/// What may be found, in memory and after a loss of power.
struct Expected {
    /// States since the last acknowledged durable one, that one first.
    possible: Vec<Model>,
}

impl Expected {
    fn acknowledged(&mut self, model: &Model, durable: bool) {
        if durable {
            self.possible.clear();
        }
        self.possible.push(model.clone());
    }

    fn assert_has(&self, pool: &Pool, story: &str) {
        let digest = observe::digest(pool).unwrap_or_else(|e| panic!("{story}: reading: {e:?}"));
        let found = self.possible.iter().any(|model| model.digest() == digest);
        assert!(
            found,
            "{story}\nagainst the newest: {:#?}\nagainst the oldest: {:#?}",
            observe::differences(pool, self.possible.last().unwrap()),
            observe::differences(pool, &self.possible[0])
        );
    }
}

fn typed(error: &Error) -> bool {
    matches!(error, Error::Io { .. } | Error::OutOfSpace { .. } | Error::Poisoned)
}

/// Runs the script with one planned fault, then asks what is left.
fn run(script: &Script, index: usize, fault: Fault, lasts: Lasts, drops: bool, latched: &AtomicU64) -> bool {
    let kind = script.calls[index];
    let name = &script.name;
    let story = format!("{name}, call {index} ({kind:?}), {fault:?}, lasts: {lasts:?}, drops pages: {drops}");
    let sim = script.device();
    sim.on_failed_sync(if drops { FailedSync::KeptClean } else { FailedSync::StaysDirty });
    if lasts == Lasts::ForThisKind {
        let nth = script.calls[..index].iter().filter(|&&call| call == kind).count();
        sim.fail_kind_at(kind, nth, fault, true);
    } else {
        sim.fail_at(index, fault, lasts == Lasts::ForAll);
    }
    let hit = || sim.call_count() > index;
    let mut rig = match script.begin(&sim) {
        Ok(rig) => rig,
        Err(error) => {
            assert!(hit() && typed(&error), "{story}: the beginning: {error:?}");
            sim.clear_faults();
            let rig = script.begin(&sim);
            let mut rig = rig.unwrap_or_else(|e| panic!("{story}: the beginning, tried again: {e:?}"));
            rig.verify();
            return true;
        }
    };
    let mut expected = Expected { possible: vec![rig.model.clone()] };
    let mut poisoned = false;
    for op in &script.ops {
        let action = rig.resolve(*op, LIMITS);
        if rig.pool.is_none() {
            break;
        }
        let was_hit = hit();
        let refused = rig.model.after(&action).is_err();
        match rig.apply(&action) {
            Ok(()) => {
                let changes =
                    !matches!(action, Action::Attach { .. } | Action::Detach { .. } | Action::Reopen);
                let done = changes && !refused && !is_idle(&action);
                assert!(!(poisoned && done), "{story}: {action:?} was done by a latched pool");
                expected.acknowledged(&rig.model, action.is_durable() && !refused);
                poisoned &= !matches!(action, Action::Reopen);
            }
            Err(error) => {
                assert!(hit(), "{story}: {action:?} failed without a fault: {error:?}");
                assert!(typed(&error), "{story}: {action:?}: {error:?}");
                let mut outcomes = rig.model.halfway(&action);
                outcomes.extend(rig.model.after(&action));
                expected.possible.extend(outcomes.iter().cloned());
                if let Some(pool) = &rig.pool {
                    // Reads go on, and show the state before or after the action that failed, or a part of a write.
                    match observe::digest_with(pool, &rig.disks) {
                        Ok(seen) if seen == rig.model.digest() => {}
                        Ok(seen) => match outcomes.into_iter().find(|model| model.digest() == seen) {
                            Some(model) => {
                                let attached = rig.model.attached.clone();
                                rig.model = Model { attached, ..model };
                            }
                            None => panic!(
                                "{story}: {action:?} failed ({error:?}) and left a mixture behind: {:#?}",
                                observe::differences(pool, &rig.model)
                            ),
                        },
                        Err(error) => {
                            // A read may itself be what failed; a device that can still be read has to be read.
                            let gone = lasts == Lasts::ForAll || kind == CallKind::Read;
                            assert!(gone && lasts != Lasts::Once, "{story}: reading: {error:?}");
                            // From here on nobody knows which of the states it is.
                            break;
                        }
                    }
                }
                if kind == CallKind::Sync && !was_hit && rig.pool.is_some() {
                    latched.fetch_add(1, Ordering::Relaxed);
                    poisoned = true;
                }
                poisoned |= matches!(error, Error::Poisoned);
            }
        }
    }
    let was_hit = hit();
    sim.clear_faults();
    // A loss of power that takes along everything unsynced, and a kill that takes nothing.
    let lost = sim.crash(|_| Fate::Lost);
    let killed = sim.reopen();
    drop(rig.leave());
    for device in [lost, killed] {
        let pool = Pool::open_on(device, shape().open()).unwrap_or_else(|e| panic!("{story}: open: {e:?}"));
        expected.assert_has(&pool, &story);
        assert_sound(&pool);
        pool.close().unwrap_or_else(|e| panic!("{story}: close: {e:?}"));
    }
    was_hit
}

/// Background work that finds nothing to do may say so even when the pool is latched.
fn is_idle(action: &Action) -> bool {
    matches!(action, Action::Step { .. } | Action::Drain)
}

/// Fails every call of the script in every way, and proves that each was hit.
fn fail_every_call(script: &Script) {
    let calls = &script.calls;
    let hits = Mutex::new(BTreeSet::new());
    let failed = Mutex::new(Vec::new());
    let (runs, latched) = (AtomicU64::new(0), AtomicU64::new(0));
    on_all_cores(calls.len(), |index| {
        for (fault, lasts) in ways(calls[index]) {
            for drops in [false, true] {
                if drops && calls[index] != CallKind::Sync {
                    continue;
                }
                runs.fetch_add(1, Ordering::Relaxed);
                let run = || run(script, index, fault, lasts, drops, &latched);
                match catch_unwind(AssertUnwindSafe(run)) {
                    Ok(true) => drop(hits.lock().unwrap().insert(index)),
                    Ok(false) => {}
                    // One engine fault shows in many runs: tell how many, and which.
                    Err(_) => failed.lock().unwrap().push((index, calls[index], fault, lasts, drops)),
                }
            }
        }
    });
    let (hits, mut failed) = (hits.into_inner().unwrap(), failed.into_inner().unwrap());
    failed.sort_by_key(|failure| failure.0);
    let (name, runs) = (&script.name, runs.into_inner());
    assert!(failed.is_empty(), "{name}: {} runs failed, see above: {failed:?}", failed.len());
    println!("faults, {name}: {runs} runs, {} of {} calls hit", hits.len(), calls.len());
    let missed: Vec<_> = (0..calls.len()).filter(|index| !hits.contains(index)).collect();
    assert!(missed.is_empty(), "{name}: calls that no fault struck: {missed:?}");
    assert!(latched.into_inner() > 10, "{name}: hardly any failed sync latched a pool");
}

#[test]
fn every_call_may_fail_once_or_for_good_and_nothing_acknowledged_is_lost() {
    fail_every_call(&Script::new("new pool", &SCRIPT));
}

/// The same from a recovery on.
#[test]
fn every_call_of_a_recovery_may_fail_once_or_for_good_and_nothing_durable_is_lost() {
    let ops = [
        op(Kind::Write, 0, 3, 25),
        op(Kind::Flush, 0, 0, 0),
        op(Kind::Snapshot, 0, 1, 0),
        op(Kind::Checkpoint, 0, 0, 0),
    ];
    fail_every_call(&Script::over(Some(Killed::new()), "killed pool", &ops));
}

/// Faults in random places of random workloads.
#[test]
fn random_faults_in_random_workloads_lose_nothing_acknowledged() {
    let seed = rng::seed("random_faults_in_random_workloads_lose_nothing_acknowledged", 41);
    let (failed, latched, runs) = (Mutex::new(Vec::new()), AtomicU64::new(0), AtomicU64::new(0));
    on_all_cores(120, |number| {
        let mut rng = Rng::new(seed + number as u64);
        let mut ops = vec![op(Kind::Create, 0, 15, 0), op(Kind::Write, 0, 0, 35)];
        ops.extend((0..40).map(|_| Op::random(&mut rng)));
        let script = Script::new(format!("seed {seed}, workload {number}"), &ops);
        for _ in 0..40 {
            let index = rng.below(script.calls.len() as u64) as usize;
            let ways = ways(script.calls[index]);
            let (fault, lasts) = ways[rng.below(ways.len() as u64) as usize];
            let drops = rng.one_in(2);
            runs.fetch_add(1, Ordering::Relaxed);
            let run = || run(&script, index, fault, lasts, drops, &latched);
            if catch_unwind(AssertUnwindSafe(run)).is_err() {
                failed.lock().unwrap().push((number, index, script.calls[index], fault, lasts, drops));
            }
        }
    });
    let failed = failed.into_inner().unwrap();
    println!("random faults: {} runs, {} latched", runs.into_inner(), latched.into_inner());
    assert!(failed.is_empty(), "{} runs failed, see above: {failed:?}", failed.len());
}

#[test]
fn the_scripts_use_every_operation_and_every_kind_of_call() {
    let mut rig = Rig::create(SimDevice::new(), shape()).unwrap();
    let mut done = BTreeSet::new();
    for op in SCRIPT {
        let action = rig.resolve(op, LIMITS);
        if rig.model.after(&action).is_ok() {
            done.insert(action.kind());
        }
        rig.must(action);
    }
    assert_eq!(done.len(), Action::KINDS, "operations that are done, not refused: {done:?}");
    let scripts = [Script::new("new pool", &SCRIPT), Script::over(Some(Killed::new()), "killed pool", &[])];
    let used: BTreeSet<_> = scripts.iter().flat_map(|s| &s.calls).map(|kind| format!("{kind:?}")).collect();
    // The engine grows a pool by `allocate` and never makes one shorter: `set_len` has no call site.
    for kind in ["Len", "Read", "Write", "Sync", "Allocate", "Discard", "Lock", "DropCache"] {
        assert!(used.contains(kind), "{kind} is not called: {used:?}");
    }
}

/// The host's disk is full for a while: writes fail, nothing is lost, and the pool goes on when there is room.
#[test]
fn host_without_space_is_out_of_space_until_there_is_some() {
    let limits = Limits { volumes: 3, snapshots: 40, blocks: 600 };
    let mut rig = Rig::create(SimDevice::new(), Shape::SMALL.limit(64 << 20)).unwrap();
    let sim = rig.medium.clone();
    for kind in [op(Kind::Create, 0, 599, 0), op(Kind::Write, 0, 0, 35), op(Kind::Flush, 0, 0, 0)] {
        let action = rig.resolve(kind, limits);
        rig.must(action);
    }
    for kind in [CallKind::Allocate, CallKind::SetLen] {
        let now = sim.calls_of(kind);
        sim.fail_kind_at(kind, now, Fault::Enospc, true);
    }
    let mut refused = 0;
    for round in 0..4_000_u32 {
        let kinds = [Kind::Write, Kind::Write, Kind::Snapshot, Kind::Flush];
        let action = rig.resolve(op(kinds[round as usize % 4], 0, round * 37, 155), limits);
        let before = rig.model.digest();
        if let Err(error) = rig.apply(&action) {
            let full = matches!(error, Error::OutOfSpace { .. } | Error::Io { .. });
            assert!(full, "{action:?}: {error:?}");
            assert_eq!(
                observe::digest_with(rig.pool(), &rig.disks).unwrap(),
                before,
                "{action:?} had an effect"
            );
            refused += 1;
            if refused > 5 {
                break;
            }
        }
    }
    assert!(refused > 5, "the pool grew although its host was full");
    sim.clear_faults();
    let action = rig.resolve(op(Kind::Write, 0, 3, 155), limits);
    rig.must(action);
    rig.must(Action::Flush);
    rig.verify();
}
