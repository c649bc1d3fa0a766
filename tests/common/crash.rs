//! Records workloads of a pool on a simulated device and judges every medium that a loss of power could have left.
//!
//! A single thread drives the pool and its background work, so the states that may be found are the states
//! between actions: what [`Recording::allowed`] says. A medium is opened for writing, read in full, checked and
//! scrubbed. Of some the recovery itself is cut, and some go on with the workload.
//!
//! Where a flush was lost (the device lied about a sync) a pool may also refuse, with a typed error, whatever it
//! cannot show. What it shows is of one state that is allowed, and if anything survived that only a commit after
//! the lost flush could have written, an older state must not pass for the newest.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use snapvol::device::sim::{self, CrashPoint, CrashState, Depth, Fate, History, Recording, SimDevice, Step};
use snapvol::{CheckOptions, Error, Pool};

use super::model::Model;
use super::ops::{Limits, Op};
use super::rng::Rng;
use super::{Rig, Shape, observe};

/// What a pool must show between two actions.
pub(crate) struct State {
    pub(crate) digest: u64,
    pub(crate) model: Model,
}

impl State {
    pub(crate) fn of(model: &Model) -> Self {
        Self { digest: model.digest(), model: model.clone() }
    }
}

/// A recorded workload.
pub(crate) struct Run {
    pub(crate) recording: Recording<State>,
    shape: Shape,
    serial: u64,
    /// How to make this run again, and what it did: for the message of a failed test.
    story: String,
}

/// What was opened so far, over all runs.
#[derive(Default, Debug)]
pub(crate) struct Count {
    /// Media after one loss of power.
    pub(crate) states: AtomicU64,
    /// Media after a second one, during recovery.
    pub(crate) second_cuts: AtomicU64,
    /// Media from which the workload went on, to be cut again.
    pub(crate) continued: AtomicU64,
    pub(crate) torn: AtomicU64,
    /// Media that showed an older state than the newest possible one.
    pub(crate) rolled_back: AtomicU64,
    /// Media without something that a lost flush had promised: the pool says so, or nothing later survived.
    pub(crate) reported: AtomicU64,
    pub(crate) unnoticeable: AtomicU64,
    /// Recorded actions by kind.
    pub(crate) kinds: Mutex<BTreeMap<&'static str, u64>>,
}

fn one(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// For people.
impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        writeln!(
            f,
            "{:>12} media after one loss of power, {} of them torn",
            get(&self.states),
            get(&self.torn)
        )?;
        writeln!(f, "{:>12} media after a second one, during recovery", get(&self.second_cuts))?;
        writeln!(f, "{:>12} media from which the workload went on", get(&self.continued))?;
        writeln!(f, "{:>12} media that showed less than they could have", get(&self.rolled_back))?;
        writeln!(f, "{:>12} losses of a lying device reported", get(&self.reported))?;
        writeln!(f, "{:>12} that left nothing to tell of them", get(&self.unnoticeable))?;
        let kinds = self.kinds.lock().unwrap();
        write!(f, "{:>12} operations:", kinds.values().sum::<u64>())?;
        kinds.iter().try_for_each(|(kind, times)| write!(f, " {kind} {times}"))
    }
}

impl Count {
    pub(crate) fn total(&self) -> u64 {
        self.states.load(Ordering::Relaxed) + self.second_cuts.load(Ordering::Relaxed)
    }
}

/// How thorough a walk is.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) depth: Depth,
    /// One state in so many has its recovery cut, too; 0 never.
    pub(crate) second_cut_one_in: u64,
    /// One state in so many goes on with the same operations, which are cut again; 0 never.
    pub(crate) continue_one_in: u64,
    /// Media of the last action only: workloads with one action less have those before it.
    pub(crate) last_action_only: bool,
    /// Whether syncs that lied are taken at their word: then every loss is a failure.
    pub(crate) believe_lies: bool,
}

impl Plan {
    pub(crate) const FULL: Plan = Plan {
        depth: Depth::FULL,
        second_cut_one_in: 12,
        continue_one_in: 150,
        last_action_only: false,
        believe_lies: false,
    };
    const SECOND: Plan = Plan { depth: SECOND, second_cut_one_in: 0, continue_one_in: 0, ..Plan::FULL };
}

/// What is tried of each cut of a recovery.
const SECOND: Depth = Depth::QUICK.samples(3);

/// Runs `ops` on a rig whose whole state is durable. The trace begins here.
pub(crate) fn record(rig: Rig<SimDevice>, ops: &[Op], limits: Limits, story: &str, count: &Count) -> Run {
    let mut rig = rig;
    let sim = rig.medium.clone();
    let mut history = History::begin(&sim, State::of(&rig.model));
    let mut story = format!("{story}\n");
    let mut kinds: BTreeMap<_, u64> = BTreeMap::new();
    for (number, op) in (1..).zip(ops) {
        let action = rig.resolve(*op, limits);
        let refused = rig.model.after(&action).is_err();
        story.push_str(&format!("  {number}: {action:?}{}\n", if refused { " (refused)" } else { "" }));
        if !refused {
            *kinds.entry(action.label()).or_default() += 1;
        }
        let step = || rig.apply(&action).map(|()| State::of(&rig.model));
        if let Err(error) = history.step(action.is_durable() && !refused, step) {
            panic!("{story}failed: {error:?}");
        }
    }
    let mut all = count.kinds.lock().unwrap();
    for (kind, times) in kinds {
        *all.entry(kind).or_default() += times;
    }
    drop(all);
    let serial = rig.serial();
    let recording = history.end();
    let killed = sim.reopen();
    drop(rig.leave());
    drop(killed);
    Run { recording, shape: rig.shape.clone(), serial, story }
}

/// A medium about to be judged.
struct Case<'a> {
    run: &'a Run,
    point: &'a CrashPoint,
}

impl Case<'_> {
    fn context(&self) -> String {
        format!("{}{}", self.run.story, self.run.recording.describe(self.point))
    }
}

impl Run {
    /// Opens the media of every cut point.
    pub(crate) fn walk(&self, ops: &[Op], limits: Limits, plan: Plan, rng: &mut Rng, count: &Count) {
        let states = if plan.last_action_only {
            self.recording.crash_states_of_last_step(plan.depth, rng.next())
        } else {
            self.recording.crash_states(plan.depth, rng.next())
        };
        for crash in states {
            one(&count.states);
            if crash.is_torn() {
                one(&count.torn);
            }
            self.judge(&crash, ops, limits, plan, rng, count);
        }
    }

    /// Whether the trace has a sync that lied.
    pub(crate) fn has_lie(&self) -> bool {
        self.recording.trace().ops().contains(&sim::Op::SyncLied)
    }

    fn judge(
        &self,
        crash: &CrashState,
        ops: &[Op],
        limits: Limits,
        plan: Plan,
        rng: &mut Rng,
        count: &Count,
    ) {
        let case = Case { run: self, point: &crash.point };
        let allowed = self.recording.allowed(crash);
        let (mut low, high) = (*allowed.start(), *allowed.end());
        let promised = self.recording.promised(crash);
        let may_refuse = crash.sure_until < crash.claimed_until && !plan.believe_lies;
        if plan.believe_lies {
            low = promised;
        }
        let device = &crash.device;
        let states = self.recording.steps();
        let pool = match Pool::open_on(device.clone(), self.shape.open()) {
            Ok(pool) => pool,
            Err(Error::Corrupt(_)) if may_refuse => return one(&count.reported),
            Err(error) => panic!("{}\nopen failed: {error:?}", case.context()),
        };
        let digest = match observe::digest(&pool) {
            Ok(digest) => digest,
            Err(Error::Corrupt(_)) if may_refuse => {
                // What can be read must be of one state all the same.
                let fits = (low..=high).any(|i| observe::shows_nothing_else(&pool, &states[i].state.model));
                assert!(fits, "{}\nwhat can still be read is of no state", case.context());
                one(&count.reported);
                return kill(device, pool);
            }
            Err(error) => panic!("{}\nreading failed: {error:?}", case.context()),
        };
        let Some(found) = (low..=high).rev().find(|&i| states[i].state.digest == digest) else {
            let other = states.iter().position(|s| s.state.digest == digest);
            panic!(
                "{}\nthe pool must show a state from {low} to {high}; it shows {other:?}\nagainst {high}: {:#?}\nagainst {low}: {:#?}",
                case.context(),
                observe::differences(&pool, &states[high].state.model),
                observe::differences(&pool, &states[low].state.model),
            );
        };
        if found < high {
            one(&count.rolled_back);
        }
        if found < promised && digest != states[promised].state.digest {
            let later = self.survivors_of_later_commits(crash, found);
            assert!(
                later.is_empty(),
                "{}\nshows {found}, {promised} was promised, and later commits have survived ({later:?}): the \
                 loss must be reported",
                case.context()
            );
            one(&count.unnoticeable);
        }
        if may_refuse {
            // What nobody has read yet may still be lost; then a scrub says so.
            let report = pool.scrub(CheckOptions::default(), &mut |_| {});
            if !report.is_ok_and(|report| report.findings.is_empty()) {
                one(&count.reported);
                return kill(device, pool);
            }
        }
        sound(&pool, &|| case.context());
        if plan.second_cut_one_in > 0 && rng.one_in(plan.second_cut_one_in) {
            self.cut_recovery(device, digest, may_refuse, rng, count, &case);
        }
        if plan.continue_one_in > 0 && rng.one_in(plan.continue_one_in) {
            one(&count.continued);
            let model = states[found].state.model.clone();
            let mut rig = Rig::over(pool, device.clone(), self.shape.clone(), model);
            rig.serial_from(self.serial + 1_000);
            rig.verify();
            // The found state counts as durable from here: recovery has made it so.
            let story = format!("{}\ngoing on from state {found}:", case.context());
            let run = record(rig, ops, limits, &story, count);
            run.walk(ops, limits, Plan::SECOND, rng, count);
            return;
        }
        kill(device, pool);
    }

    /// Log records and superblocks on this medium that were written after the first step whose promise is not kept
    /// by a pool that shows `found`. Each of them says that what that step promised is durable.
    fn survivors_of_later_commits(&self, crash: &CrashState, found: usize) -> Vec<usize> {
        let steps = self.recording.steps();
        let digest = steps[found].state.digest;
        let broken = |step: &&Step<State>| step.durable && step.state.digest != digest;
        let Some(lost) = steps[found + 1..].iter().find(broken) else { return Vec::new() };
        let ops = &self.recording.trace().ops()[..crash.point.cut];
        let since = ops.iter().rposition(|op| *op == sim::Op::Sync).map_or(0, |sync| sync + 1);
        let mut pending = 0;
        let mut survivors = Vec::new();
        for (number, op) in ops.iter().enumerate().skip(since) {
            match op {
                sim::Op::SyncLied | sim::Op::SyncFailed => {}
                _ => {
                    let kept = crash.point.fates.get(pending).is_none_or(|fate| *fate == Fate::Kept);
                    if let sim::Op::Write { bytes, .. } = op
                        && [b"SNAPLOG\x01", b"SNAPVOL\x01"].iter().any(|magic| bytes.starts_with(*magic))
                        && number >= lost.ended
                        && kept
                    {
                        survivors.push(pending);
                    }
                    pending += 1;
                }
            }
        }
        survivors
    }

    /// The writes of a recovery are cut at every point: the next recovery finds the same state.
    fn cut_recovery(
        &self,
        device: &SimDevice,
        digest: u64,
        may_refuse: bool,
        rng: &mut Rng,
        count: &Count,
        case: &Case<'_>,
    ) {
        let trace = device.trace();
        for second in trace.crash_states(SECOND, rng.next()) {
            one(&count.second_cuts);
            let context = || format!("{}\nthen {}", case.context(), trace.describe(&second.point));
            let pool = match Pool::open_on(second.device.clone(), self.shape.open_with_ids(9)) {
                Ok(pool) => pool,
                // A superblock that the lost flush was to bring may be missed only when another one is torn as well.
                Err(Error::Corrupt(_)) if may_refuse => {
                    one(&count.reported);
                    continue;
                }
                Err(error) => panic!("{}\nsecond open failed: {error:?}", context()),
            };
            let found = observe::digest(&pool).unwrap_or_else(|e| panic!("{}\nread: {e:?}", context()));
            if found != digest {
                let steps = self.recording.steps();
                let number = |digest| steps.iter().position(|s| s.state.digest == digest);
                panic!(
                    "{}\nfirst recovery: state {:?}, second: {:?}",
                    context(),
                    number(digest),
                    number(found)
                );
            }
            sound(&pool, &context);
            kill(&second.device, pool);
        }
    }
}

/// A scrub is a check that reads the data as well.
fn sound(pool: &Pool, context: &dyn Fn() -> String) {
    if catch_unwind(AssertUnwindSafe(|| super::assert_scrubs(pool))).is_err() {
        panic!("{}\nthe state is right but scrub is not content", context());
    }
}

/// Drops the handles of a killed process: their last calls go nowhere.
pub(crate) fn kill(device: &SimDevice, pool: Pool) {
    let survivor = device.reopen();
    drop(pool);
    drop(survivor);
}

/// A pool whose creation, contents and all are durable, to begin workloads with: two volumes of one family that share
/// blocks, one of its own, and a snapshot.
pub(crate) fn prepared(shape: &Shape, limits: Limits) -> Rig<SimDevice> {
    use super::ops::Kind;
    let mut rig = Rig::create(SimDevice::new(), shape.clone()).unwrap();
    for op in [
        Op::new(Kind::Create, 0, 7, 0),
        Op::new(Kind::Write, 0, 0, 0),
        Op::new(Kind::Write, 0, 1, 36),
        Op::new(Kind::Snapshot, 0, 1, 0),
        Op::new(Kind::Write, 0, 1, 0),
        Op::new(Kind::CloneSnapshot, 0, 1, 0),
        Op::new(Kind::Write, 1, 2, 0),
        Op::new(Kind::Checkpoint, 0, 0, 0),
        Op::new(Kind::Flush, 0, 0, 0),
    ] {
        let action = rig.resolve(op, limits);
        rig.must(action);
    }
    rig
}

/// One random workload, all of it given by its seed, cut everywhere. One in eight loses a flush.
pub(crate) fn random_run(seed: u64, plan: Plan, count: &Count) {
    let mut rng = Rng::new(seed);
    let shape = match rng.below(3) {
        0 => Shape::SMALL,
        1 => Shape::SMALL.host_discard(),
        _ => Shape::SMALL.cache(256 << 10),
    };
    let rig = prepared(&shape, LIMITS);
    if rng.one_in(8) {
        rig.medium.lying_sync(rig.medium.calls_of(sim::CallKind::Sync) + rng.below(12) as usize);
    }
    let length = 6 + rng.below(20) as usize;
    let ops: Vec<Op> = (0..length).map(|_| Op::random(&mut rng)).collect();
    let run = record(rig, &ops, LIMITS, &format!("run seed {seed}"), count);
    run.walk(&ops, LIMITS, plan, &mut rng, count);
}

/// How large the workloads of crash tests make their pools.
pub(crate) const LIMITS: Limits = Limits { volumes: 3, snapshots: 4, blocks: 16 };

/// Each operation that changes a pool, once.
pub(crate) const ALPHABET: [Op; 24] = {
    use super::ops::Kind;
    [
        Op::new(Kind::Write, 0, 0, 0),
        Op::new(Kind::Write, 0, 3, 65),
        Op::new(Kind::Write, 1, 1, 7),
        Op::new(Kind::Write, 0, 2, 41_008),
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
        Op::new(Kind::CreateOver, 0, 4, 1),
        Op::new(Kind::Hydrate, 0, 1, 0),
    ]
};

/// Number of workloads of up to `length` operations.
pub(crate) fn short_workloads(length: u32) -> usize {
    (1..=length).map(|n| ALPHABET.len().pow(n)).sum()
}

/// Short workload number `index`, cut everywhere that shorter ones were not. Shorter ones have smaller numbers.
pub(crate) fn short_run(index: usize, plan: Plan, count: &Count) {
    let (mut number, mut digits) = (index, 1);
    while number >= ALPHABET.len().pow(digits) {
        number -= ALPHABET.len().pow(digits);
        digits += 1;
    }
    let ops: Vec<Op> =
        (0..digits).map(|d| ALPHABET[number / ALPHABET.len().pow(d) % ALPHABET.len()]).collect();
    let mut rng = Rng::new(index as u64);
    let rig = prepared(&Shape::SMALL, LIMITS);
    let run = record(rig, &ops, LIMITS, &format!("short workload {index}"), count);
    run.walk(&ops, LIMITS, Plan { last_action_only: true, ..plan }, &mut rng, count);
}
