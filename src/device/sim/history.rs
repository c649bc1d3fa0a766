//! A workload in steps, and what may be found after a loss of power in the middle of it.

use std::ops::RangeInclusive;

use super::states::{CrashState, CrashStates, Depth};
use super::trace::Trace;
use super::{CrashPoint, SimDevice};

/// One step of a workload.
#[derive(Clone, Debug)]
pub struct Step<T> {
    /// What whoever reads must see once the step is done.
    pub state: T,
    /// Whether its end acknowledged everything up to it as durable.
    pub durable: bool,
    /// Number of device operations recorded when it began.
    pub begun: usize,
    /// The same when it ended.
    pub ended: usize,
}

/// A workload that is being recorded, step by step, with what each step must leave behind.
///
/// The steps follow one another in one thread, so that whatever a loss of power leaves must show the state between two
/// steps. `T` is whatever tells these states apart: a model, a digest, a number.
///
/// # Example
///
/// A program that keeps two numbers in the first block of a volume, and this test of its own, for which it
/// is enough that both always change together:
///
/// ```
/// use snapvol::device::sim::{Depth, History, SimDevice};
/// use snapvol::{AttachOptions, Background, CreateOptions, Disk, OpenOptions, Pool, Result, VolumeSpec};
///
/// fn save(disk: &Disk, numbers: [u8; 2]) -> Result<()> {
///     disk.write_at(&numbers, 0)?; // within one block: never a mixture
///     disk.flush()
/// }
///
/// fn load(disk: &Disk) -> Result<[u8; 2]> {
///     let mut numbers = [0; 2];
///     disk.read_at(&mut numbers, 0)?;
///     Ok(numbers)
/// }
///
/// # fn main() -> Result<()> {
/// // Everything small, and no thread of the pool's own: equal runs then give equal histories.
/// let create = CreateOptions::new().blocks_per_chunk(64).log_bytes(64 << 10).initial_bytes(0);
/// let sim = SimDevice::new();
/// let pool = Pool::create_on(sim.clone(), create.background(Background::Manual))?;
/// let volume = pool.create_volume(VolumeSpec::blank(64 << 10))?.id;
/// let disk = pool.attach(volume, AttachOptions::default())?;
///
/// let mut history = History::begin(&sim, [0, 0]);
/// for n in 1..4 {
///     history.step(true, || save(&disk, [n, n]).map(|()| [n, n]))?;
/// }
/// let recording = history.end();
///
/// let mut opened = 0;
/// for crash in recording.crash_states(Depth::QUICK, 1) {
///     let context = || recording.describe(&crash.point);
///     let pool = Pool::open_on(crash.device.clone(), OpenOptions::new().background(Background::Manual))?;
///     let found = load(&pool.attach(volume, AttachOptions::default())?)?;
///     let allowed = recording.allowed(&crash);
///     assert!(allowed.clone().any(|step| recording.steps()[step].state == found), "{}", context());
///     opened += 1;
/// }
/// assert!(opened > 10);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct History<T> {
    sim: SimDevice,
    steps: Vec<Step<T>>,
}

impl<T> History<T> {
    /// Begins a recording on a device where `state` is to be seen, and is durable. What the device recorded before
    /// is forgotten.
    pub fn begin(sim: &SimDevice, state: T) -> Self {
        sim.restart_trace();
        Self { sim: sim.clone(), steps: vec![Step { state, durable: true, begun: 0, ended: 0 }] }
    }

    /// Runs a step, which returns the state that is to be seen after it. `durable`: whether its return acknowledges
    /// everything up to now as durable, as that of a flush does.
    ///
    /// # Errors
    /// That of the step, which is then not in the recording; the device operations that it has made are.
    pub fn step<E>(&mut self, durable: bool, run: impl FnOnce() -> Result<T, E>) -> Result<(), E> {
        let begun = self.sim.op_count();
        let state = run()?;
        self.steps.push(Step { state, durable, begun, ended: self.sim.op_count() });
        Ok(())
    }

    /// Ends the recording. What the device does from here on is not part of it.
    pub fn end(self) -> Recording<T> {
        Recording { trace: self.sim.trace(), steps: self.steps }
    }
}

/// A recorded workload, from which the media are made that a loss of power may leave: see [`History`].
///
/// On a medium made at cut point `k` no state may show that is
///
/// - older than the newest one acknowledged as durable. A medium on which nothing after `k` arrived is possible
///   until the next sync is done, so what was acknowledged until that sync began counts too;
/// - newer than that of the step which was under way at `k`.
#[derive(Clone, Debug)]
pub struct Recording<T> {
    trace: Trace,
    steps: Vec<Step<T>>,
}

impl<T> Recording<T> {
    /// The device operations.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// The steps; number 0 is the state at the beginning.
    pub fn steps(&self) -> &[Step<T>] {
        &self.steps
    }

    /// All media that a loss of power may leave, as far as `depth` goes: [`Trace::crash_states`].
    pub fn crash_states(&self, depth: Depth, seed: u64) -> CrashStates<'_> {
        self.trace.crash_states(depth, seed)
    }

    /// The same for losses of power during or after the last step only. Workloads that begin alike need the media of
    /// what they share just once.
    pub fn crash_states_of_last_step(&self, depth: Depth, seed: u64) -> CrashStates<'_> {
        let first = self.steps.last().map_or(0, |step| step.begun);
        self.trace.crash_states_from(first, depth, seed)
    }

    /// Numbers of the steps after which the medium may stand, the oldest first.
    pub fn allowed(&self, crash: &CrashState) -> RangeInclusive<usize> {
        let oldest = self.newest(|step| step.durable && step.ended <= crash.sure_until);
        let newest = self.newest(|step| step.begun < crash.point.cut);
        oldest..=newest.max(oldest)
    }

    /// Number of the newest step that was acknowledged as durable. Later than the first of [`allowed`](Self::allowed)
    /// only where a sync has lied.
    pub fn promised(&self, crash: &CrashState) -> usize {
        self.newest(|step| step.durable && step.ended <= crash.claimed_until)
    }

    /// The loss of power in words: [`Trace::describe`].
    pub fn describe(&self, point: &CrashPoint) -> String {
        self.trace.describe(point)
    }

    fn newest(&self, fits: impl Fn(&Step<T>) -> bool) -> usize {
        self.steps.iter().rposition(fits).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    /// Steps that write one page each, with a sync behind every second one. Sync number `lie` lies.
    fn recording(lie: Option<usize>) -> Recording<u8> {
        let sim = SimDevice::from_image(vec![0; 4096]);
        if let Some(lie) = lie {
            sim.lying_sync(lie);
        }
        let mut history = History::begin(&sim, 0);
        for n in 1..=6 {
            let durable = n % 2 == 0;
            let step = || {
                sim.write_at(&[n; 4096], 0)?;
                if durable {
                    sim.sync()?;
                }
                std::io::Result::Ok(n)
            };
            history.step(durable, step).unwrap();
        }
        history.end()
    }

    #[test]
    fn what_is_found_is_allowed_when_every_write_is_one_sector() {
        let recording = recording(None);
        let depth = Depth::FULL.tears(false);
        for crash in recording.crash_states(depth, 1) {
            let allowed = recording.allowed(&crash);
            let found = usize::from(crash.device.view()[0]);
            assert!(allowed.contains(&found), "{found} in {allowed:?}: {}", recording.describe(&crash.point));
            assert_eq!(recording.promised(&crash), *allowed.start());
        }
    }

    #[test]
    fn a_lie_is_promised_and_not_allowed_for() {
        let recording = recording(Some(1));
        let mut lost = 0;
        for crash in recording.crash_states(Depth::FULL.tears(false), 1) {
            let allowed = recording.allowed(&crash);
            let found = usize::from(crash.device.view()[0]);
            assert!(allowed.contains(&found), "{found} in {allowed:?}: {}", recording.describe(&crash.point));
            lost += usize::from(found < recording.promised(&crash));
        }
        assert!(lost > 0);
    }

    #[test]
    fn media_of_the_last_step_are_those_that_shorter_workloads_do_not_have() {
        let recording = recording(None);
        let depth = Depth::FULL.tears(false);
        let points: Vec<_> = recording.crash_states_of_last_step(depth, 1).map(|c| c.point.cut).collect();
        // Steps 5 and 6: write, write, sync. The last step begins when one write is pending.
        assert_eq!(points, [7, 8, 8, 9]);
        assert_eq!(recording.steps()[6].begun, 7);
    }

    #[test]
    fn a_failed_step_is_not_in_the_recording() {
        let sim = SimDevice::new();
        let mut history = History::begin(&sim, 0);
        assert_eq!(history.step(false, || Err("no")), Err("no"));
        assert_eq!(history.end().steps().len(), 1);
    }
}
