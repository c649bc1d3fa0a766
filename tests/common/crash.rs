//! Records a workload on a simulated device, then opens every medium that a loss of power could have left.
//!
//! A single thread drives the pool and its background work, so the states that may be found are the states
//! between actions. A medium made at cut point `k` must show
//!
//! - no older state than the newest one that an action had acknowledged as durable. A medium in which nothing
//!   after `k` arrived is possible until the next sync begins, so what was acknowledged until then counts too;
//! - no newer state than that of the action which was under way at `k`.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use snapvol::Pool;
use snapvol::device::sim::{self, Fate, SimDevice, Trace};

use super::model::Model;
use super::ops::{Limits, Op};
use super::rng::Rng;
use super::{Rig, Shape, assert_sound, observe};

/// A state between two actions.
pub(crate) struct Recorded {
    /// Device operations before and after the action that made this state.
    start: usize,
    end: usize,
    durable: bool,
    pub(crate) digest: u64,
    pub(crate) model: Model,
    action: String,
}

/// A recorded workload.
pub(crate) struct Run {
    pub(crate) trace: Trace,
    pub(crate) states: Vec<Recorded>,
    shape: Shape,
    serial: u64,
    /// How to make this run again, for the message of a failed test.
    story: String,
}

/// What was opened so far, over all runs of a test.
#[derive(Default, Debug)]
pub(crate) struct Count {
    pub(crate) states: AtomicU64,
    pub(crate) second_cuts: AtomicU64,
    pub(crate) continued: AtomicU64,
    pub(crate) torn: AtomicU64,
    pub(crate) rolled_back: AtomicU64,
}

impl Count {
    pub(crate) fn total(&self) -> u64 {
        self.states.load(Ordering::Relaxed) + self.second_cuts.load(Ordering::Relaxed)
    }
}

/// How thorough a walk is.
#[derive(Clone, Copy)]
pub(crate) struct Depth {
    /// All subsets up to this many pending operations, samples above.
    pub(crate) subsets_up_to: usize,
    pub(crate) samples: usize,
    /// One state in so many has its recovery cut, too; 0 never.
    pub(crate) second_cut_one_in: u64,
    /// One state in so many goes on with the same operations, which are cut again; 0 never.
    pub(crate) continue_one_in: u64,
}

impl Depth {
    pub(crate) const FULL: Depth =
        Depth { subsets_up_to: 10, samples: 40, second_cut_one_in: 12, continue_one_in: 150 };
    const SECOND: Depth = Depth { subsets_up_to: 1, samples: 3, second_cut_one_in: 0, continue_one_in: 0 };
}

/// Runs `ops` on a rig whose whole state is durable. The trace begins here.
pub(crate) fn record(mut rig: Rig<SimDevice>, ops: &[Op], limits: Limits, story: &str) -> Run {
    let sim = rig.medium.clone();
    sim.restart_trace();
    let first = Recorded {
        start: 0,
        end: 0,
        durable: true,
        digest: rig.model.digest(),
        model: rig.model.clone(),
        action: "the beginning".into(),
    };
    let mut states = vec![first];
    let mut story = format!("{story}\n");
    for op in ops {
        let action = rig.resolve(*op, limits);
        let start = sim.op_count();
        let refused = rig.model.after(&action).is_err();
        let _ = writeln!(story, "  {}: {action:?}{}", states.len(), if refused { " (refused)" } else { "" });
        if let Err(error) = rig.apply(&action) {
            panic!("{story}failed: {error:?}");
        }
        states.push(Recorded {
            start,
            end: sim.op_count(),
            durable: action.is_durable() && !refused,
            digest: rig.model.digest(),
            model: rig.model.clone(),
            action: format!("{action:?}"),
        });
    }
    let (trace, serial) = (sim.trace(), rig.serial());
    let killed = sim.reopen();
    drop(rig.leave());
    drop(killed);
    Run { trace, states, shape: rig.shape.clone(), serial, story }
}

/// The fates of the pending operations for which a medium is made. The newest always has some effect: media
/// without it were made at an earlier cut.
fn fates(pending: &[sim::Op], depth: Depth, rng: &mut Rng) -> Vec<Vec<Fate>> {
    let Some(older) = pending.len().checked_sub(1) else { return vec![Vec::new()] };
    let kept = |bit: bool| if bit { Fate::Kept } else { Fate::Lost };
    let random = |rng: &mut Rng| -> Vec<Fate> { (0..older).map(|_| kept(rng.one_in(2))).collect() };
    let mut all: Vec<Vec<Fate>> = Vec::new();
    let mut add = |mut fates: Vec<Fate>, newest: Fate| {
        fates.push(newest);
        all.push(fates);
    };
    if pending.len() <= depth.subsets_up_to {
        for mask in 0..1_u32 << older {
            add((0..older).map(|bit| kept(mask >> bit & 1 == 1)).collect(), Fate::Kept);
        }
    } else {
        add(vec![Fate::Kept; older], Fate::Kept);
        add(vec![Fate::Lost; older], Fate::Kept);
        for _ in 0..depth.samples {
            // Mostly kept and mostly lost are where an order that was relied upon shows.
            let fates = match rng.below(3) {
                0 => random(rng),
                1 => (0..older).map(|_| kept(!rng.one_in(older as u64 + 1))).collect(),
                _ => (0..older).map(|_| kept(rng.one_in(older as u64 + 1))).collect(),
            };
            add(fates, Fate::Kept);
        }
    }
    if matches!(pending[older], sim::Op::Write { .. } | sim::Op::Discard { .. }) {
        let tears =
            [Fate::TornPrefix(1), Fate::TornSuffix(1), Fate::LengthOnly, Fate::TornRandom(rng.next())];
        for tear in tears {
            add(vec![Fate::Kept; older], tear.clone());
            if older > 0 {
                add(random(rng), tear);
            }
        }
    }
    if older > 0 {
        let mut fates = vec![Fate::Kept; older];
        fates[rng.below(older as u64) as usize] = Fate::TornRandom(rng.next());
        add(fates, Fate::Kept);
        let torn = (0..older).map(|_| Fate::TornRandom(rng.next())).collect();
        add(torn, Fate::TornRandom(rng.next()));
    }
    all
}

impl Run {
    /// Opens the media of every cut point.
    pub(crate) fn walk(&self, ops: &[Op], limits: Limits, depth: Depth, rng: &mut Rng, count: &Count) {
        let trace_ops = self.trace.ops();
        let mut cursor = self.trace.cursor();
        loop {
            let k = cursor.position();
            let passed = k.checked_sub(1).map(|last| &trace_ops[last]);
            // A sync leaves nothing pending; the media before it were made at the cuts before it.
            let next_sync = (k..trace_ops.len()).find(|&i| trace_ops[i] == sim::Op::Sync);
            let low = self.newest(|s| s.durable && s.end <= next_sync.unwrap_or(trace_ops.len()));
            let high = self.newest(|s| s.start < k);
            let skip = matches!(passed, Some(sim::Op::SyncWithoutEffect));
            let all = if skip { Vec::new() } else { fates(cursor.pending_ops(), depth, rng) };
            for fates in all {
                let device = cursor.device(|i| fates[i].clone());
                count.states.fetch_add(1, Ordering::Relaxed);
                if fates.iter().any(|f| !matches!(f, Fate::Kept | Fate::Lost)) {
                    count.torn.fetch_add(1, Ordering::Relaxed);
                }
                let context = || {
                    format!(
                        "{}cut at {k} of {}, fates {fates:?}\npending: {}",
                        self.story,
                        trace_ops.len(),
                        describe(cursor.pending_ops())
                    )
                };
                self.judge(device, low, high.max(low), ops, limits, depth, rng, count, &context);
            }
            if cursor.step().is_none() {
                return;
            }
        }
    }

    fn newest(&self, fits: impl Fn(&Recorded) -> bool) -> usize {
        (1..self.states.len()).rev().find(|&i| fits(&self.states[i])).unwrap_or(0)
    }

    #[expect(clippy::too_many_arguments, reason = "one medium, its bounds, and how far to go on from it")]
    fn judge(
        &self,
        device: SimDevice,
        low: usize,
        high: usize,
        ops: &[Op],
        limits: Limits,
        depth: Depth,
        rng: &mut Rng,
        count: &Count,
        context: &dyn Fn() -> String,
    ) {
        let pool = match Pool::open_on(device.clone(), self.shape.open()) {
            Ok(pool) => pool,
            Err(error) => panic!("{}\nopen failed: {error:?}", context()),
        };
        let digest = match observe::digest(&pool) {
            Ok(digest) => digest,
            Err(error) => panic!("{}\nreading failed: {error:?}", context()),
        };
        let Some(found) = (low..=high).rev().find(|&i| self.states[i].digest == digest) else {
            let other = (0..self.states.len()).find(|&i| self.states[i].digest == digest);
            panic!(
                "{}\nthe pool must show a state from {low} to {high}; it shows {other:?}\nagainst {high} ({}): {:#?}\nagainst {low} ({}): {:#?}",
                context(),
                self.states[high].action,
                observe::differences(&pool, &self.states[high].model),
                self.states[low].action,
                observe::differences(&pool, &self.states[low].model),
            );
        };
        if found < high {
            count.rolled_back.fetch_add(1, Ordering::Relaxed);
        }
        sound(&pool, context);
        if depth.second_cut_one_in > 0 && rng.one_in(depth.second_cut_one_in) {
            self.cut_recovery(&device, digest, rng, count, context);
        }
        if depth.continue_one_in > 0 && rng.one_in(depth.continue_one_in) {
            count.continued.fetch_add(1, Ordering::Relaxed);
            let model = self.states[found].model.clone();
            let mut rig = Rig::over(pool, device, self.shape.clone(), model);
            rig.serial_from(self.serial + 1_000);
            rig.verify();
            // The found state counts as durable from here: recovery has made it so.
            let story = format!("{}\ngoing on from state {found}:", context());
            let run = record(rig, ops, limits, &story);
            run.walk(ops, limits, Depth::SECOND, rng, count);
            return;
        }
        kill(device, pool);
    }

    /// The writes of a recovery are cut at every point: the next recovery finds the same state.
    fn cut_recovery(
        &self,
        device: &SimDevice,
        digest: u64,
        rng: &mut Rng,
        count: &Count,
        context: &dyn Fn() -> String,
    ) {
        let trace = device.trace();
        let mut cursor = trace.cursor();
        loop {
            for fates in fates(cursor.pending_ops(), Depth::SECOND, rng) {
                count.second_cuts.fetch_add(1, Ordering::Relaxed);
                let again = cursor.device(|i| fates[i].clone());
                let context = || {
                    let pending = describe(cursor.pending_ops());
                    let (at, of) = (cursor.position(), trace.len());
                    format!(
                        "{}\nrecovery cut at {at} of {of}, fates {fates:?}\npending: {pending}",
                        context()
                    )
                };
                let pool = match Pool::open_on(again.clone(), self.shape.open()) {
                    Ok(pool) => pool,
                    Err(error) => panic!("{}\nsecond open failed: {error:?}", context()),
                };
                let second = observe::digest(&pool).unwrap_or_else(|e| panic!("{}\nread: {e:?}", context()));
                if second != digest {
                    let other = self.states.iter().position(|s| s.digest == second);
                    let first = self.states.iter().position(|s| s.digest == digest);
                    panic!("{}\nfirst recovery: state {first:?}, second: {other:?}", context());
                }
                sound(&pool, &context);
                kill(again, pool);
            }
            if cursor.step().is_none() {
                return;
            }
        }
    }
}

fn sound(pool: &Pool, context: &dyn Fn() -> String) {
    let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| assert_sound(pool)));
    if checked.is_err() {
        panic!("{}\nthe state is right but check or scrub is not content", context());
    }
}

/// Drops the handles of a killed process: their last calls go nowhere.
pub(crate) fn kill(device: SimDevice, pool: Pool) {
    let survivor = device.reopen();
    drop(pool);
    drop(device);
    drop(survivor);
}

fn describe(pending: &[sim::Op]) -> String {
    let mut out = String::new();
    for (index, op) in pending.iter().enumerate() {
        let _ = match op {
            sim::Op::Write { offset, bytes } => {
                write!(out, "{index}: write {}+{} ", offset / 512, bytes.len() / 512)
            }
            other => write!(out, "{index}: {other:?} "),
        };
    }
    out.push_str("(sectors)");
    out
}
