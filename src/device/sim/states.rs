//! The media that a loss of power may leave, one after the other.

use std::fmt;
use std::str::FromStr;

use super::trace::{Cursor, Fate, Op, Trace, split_mix};
use super::{ParseError, SimDevice};

/// How many media are made at each cut point.
///
/// With `n` operations pending there are 2^n ways to keep or lose them, and many more to tear them. Small `n` are
/// tried out; of larger ones a sample is drawn, by preference where almost everything, or almost nothing, arrived:
/// that is where an order shows that a program relied upon and did not enforce.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Depth {
    subsets_up_to: usize,
    samples: usize,
    tears: bool,
}

impl Depth {
    /// All subsets of up to 10 pending operations, 40 samples of more, and torn ones.
    pub const FULL: Depth = Depth { subsets_up_to: 10, samples: 40, tears: true };
    /// Everything kept, everything lost, 2 samples between them, and torn ones.
    pub const QUICK: Depth = Depth { subsets_up_to: 1, samples: 2, tears: true };

    /// All subsets are tried of up to this many pending operations: at most 20.
    ///
    /// # Panics
    /// When `operations` passes 20, which is a million media for one cut.
    #[must_use]
    pub const fn subsets_up_to(self, operations: usize) -> Self {
        assert!(operations <= 20, "all subsets of more than 20 operations are too many");
        Self { subsets_up_to: operations, ..self }
    }

    /// Number of samples where there are more pending operations than that.
    #[must_use]
    pub const fn samples(self, samples: usize) -> Self {
        Self { samples, ..self }
    }

    /// Whether pending writes and discards are torn as well.
    #[must_use]
    pub const fn tears(self, on: bool) -> Self {
        Self { tears: on, ..self }
    }
}

/// A loss of power: when, and what became of each operation that no sync had covered.
///
/// It is written and read as text, `17:K-L-P1` for example, so that a failed test can name the medium it met:
/// the cut point, then the [`Fate`] of each pending operation, oldest first. `K` kept, `L` lost, `G` grown only,
/// `P`n and `S`n the first and the last n sectors, `R` with a seed by chance, `T` with a 0 or 1 for each sector.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CrashPoint {
    /// Number of operations before the loss of power.
    pub cut: usize,
    /// What became of each pending one, oldest first; those past the end of the list are kept.
    pub fates: Vec<Fate>,
}

impl fmt::Display for CrashPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.cut)?;
        for (index, fate) in self.fates.iter().enumerate() {
            write!(f, "{}{fate}", if index == 0 { "" } else { "-" })?;
        }
        Ok(())
    }
}

impl FromStr for CrashPoint {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (cut, fates) = text.split_once(':').ok_or(ParseError)?;
        let fates = fates.split('-').filter(|part| !part.is_empty()).map(str::parse);
        Ok(Self { cut: cut.parse().map_err(|_| ParseError)?, fates: fates.collect::<Result<_, _>>()? })
    }
}

/// One medium that a loss of power may leave, ready to be opened.
#[derive(Debug)]
pub struct CrashState {
    /// The medium as a new device: no lock, no faults, no history. What a program does to it is recorded, so
    /// [`SimDevice::trace`] of it leads to the second loss of power, during recovery.
    pub device: SimDevice,
    /// How it came about; [`Trace::device_after`] makes the same medium again.
    pub point: CrashPoint,
    /// What had been acknowledged as durable when this many operations were recorded must be on the medium.
    pub sure_until: usize,
    /// The same, if every sync is believed; differs from `sure_until` only when one has lied.
    pub claimed_until: usize,
}

impl CrashState {
    /// Whether an operation was torn, not just kept or lost.
    pub fn is_torn(&self) -> bool {
        self.point.fates.iter().any(|fate| !matches!(fate, Fate::Kept | Fate::Lost))
    }
}

/// Iterator over the media of a trace, made by [`Trace::crash_states`].
pub struct CrashStates<'a> {
    trace: &'a Trace,
    cursor: Cursor<'a>,
    depth: Depth,
    dice: Dice,
    /// Fates for media of this cut that are still to be made, the next one last.
    waiting: Vec<Vec<Fate>>,
    begun: bool,
    /// Where the syncs stand around the cursor.
    sure_until: usize,
    claimed_until: usize,
}

impl Trace {
    /// All media that a loss of power at any cut point may leave, as far as `depth` goes. Equal traces, depths
    /// and seeds give the same media in the same order.
    ///
    /// The newest pending operation always has an effect: media without it belong to an earlier cut.
    pub fn crash_states(&self, depth: Depth, seed: u64) -> CrashStates<'_> {
        self.crash_states_from(0, depth, seed)
    }

    /// The same, from cut point `first` on.
    ///
    /// # Panics
    /// When `first` passes [`len`](Self::len).
    pub fn crash_states_from(&self, first: usize, depth: Depth, seed: u64) -> CrashStates<'_> {
        let mut cursor = self.cursor();
        cursor.advance_to(first);
        CrashStates {
            trace: self,
            cursor,
            depth,
            dice: Dice(seed),
            waiting: Vec::new(),
            begun: false,
            sure_until: 0,
            claimed_until: 0,
        }
    }

    /// The medium after one loss of power, as a new device.
    ///
    /// # Panics
    /// When the cut point passes [`len`](Self::len).
    pub fn device_after(&self, point: &CrashPoint) -> SimDevice {
        self.device_at(point.cut, |i| point.fates.get(i).cloned().unwrap_or(Fate::Kept))
    }

    /// What was pending at a cut point and what became of it, a line for each operation: for the message of a
    /// failed test. Offsets and lengths are bytes.
    ///
    /// # Panics
    /// When the cut point passes [`len`](Self::len).
    pub fn describe(&self, point: &CrashPoint) -> String {
        let mut cursor = self.cursor();
        cursor.advance_to(point.cut);
        let mut out = format!("loss of power after {} of {} operations, {point}", point.cut, self.len());
        for (index, op) in cursor.pending_ops().iter().enumerate() {
            let fate = point.fates.get(index).unwrap_or(&Fate::Kept);
            out.push_str(&format!("\n  {op}: {fate}"));
        }
        out
    }

    /// Up to where an acknowledgement counts at cut `k`: for certain, and if every sync is believed.
    ///
    /// A medium of cut `k` on which nothing later arrived is possible until the next honest sync is done, so
    /// whatever was acknowledged until that sync began must be on it, unless the acknowledgement rests on a lie.
    fn acknowledged_until(&self, k: usize) -> (usize, usize) {
        let last = self.ops[..k].iter().rposition(|op| *op == Op::Sync).map_or(0, |sync| sync + 1);
        let find =
            |from: usize, what: &Op| self.ops[from..].iter().position(|op| op == what).map(|i| from + i);
        let claimed = find(k, &Op::Sync).unwrap_or(self.ops.len());
        let lie = find(last, &Op::SyncLied).unwrap_or(claimed);
        (claimed.min(lie), claimed)
    }
}

impl Iterator for CrashStates<'_> {
    type Item = CrashState;

    fn next(&mut self) -> Option<CrashState> {
        while self.waiting.is_empty() {
            if !self.begun {
                self.begun = true;
            } else {
                match self.cursor.step()? {
                    // Nothing became durable: the media here are those of the cut before.
                    Op::SyncFailed | Op::SyncLied => continue,
                    _ => {}
                }
            }
            (self.sure_until, self.claimed_until) = self.trace.acknowledged_until(self.cursor.position());
            self.waiting = fates(self.cursor.pending_ops(), self.depth, &mut self.dice);
            self.waiting.reverse();
        }
        let fates = self.waiting.pop()?;
        Some(CrashState {
            device: self.cursor.device(|i| fates[i].clone()),
            point: CrashPoint { cut: self.cursor.position(), fates },
            sure_until: self.sure_until,
            claimed_until: self.claimed_until,
        })
    }
}

/// Chance that can be repeated.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        split_mix(self.0)
    }

    fn below(&mut self, limit: usize) -> usize {
        ((u128::from(self.next()) * limit as u128) >> 64) as usize
    }

    fn kept_or_lost(&mut self) -> Fate {
        kept(self.below(2) == 0)
    }
}

fn kept(yes: bool) -> Fate {
    if yes { Fate::Kept } else { Fate::Lost }
}

/// The fates of the pending operations for which a medium is made.
fn fates(pending: &[Op], depth: Depth, dice: &mut Dice) -> Vec<Vec<Fate>> {
    let Some(older) = pending.len().checked_sub(1) else { return vec![Vec::new()] };
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
        if older > 0 {
            add(vec![Fate::Lost; older], Fate::Kept);
            for _ in 0..depth.samples {
                let fates = match dice.below(3) {
                    0 => (0..older).map(|_| dice.kept_or_lost()).collect(),
                    1 => (0..older).map(|_| kept(dice.below(older + 1) > 0)).collect(),
                    _ => (0..older).map(|_| kept(dice.below(older + 1) == 0)).collect(),
                };
                add(fates, Fate::Kept);
            }
        }
    }
    if !depth.tears {
        return all;
    }
    if matches!(pending[older], Op::Write { .. } | Op::Discard { .. }) {
        for tear in
            [Fate::TornPrefix(1), Fate::TornSuffix(1), Fate::LengthOnly, Fate::TornRandom(dice.next())]
        {
            add(vec![Fate::Kept; older], tear.clone());
            if older > 0 {
                add((0..older).map(|_| dice.kept_or_lost()).collect(), tear);
            }
        }
    }
    if older > 0 {
        let mut fates = vec![Fate::Kept; older];
        fates[dice.below(older)] = Fate::TornRandom(dice.next());
        add(fates, Fate::Kept);
        let torn = (0..older).map(|_| Fate::TornRandom(dice.next())).collect();
        add(torn, Fate::TornRandom(dice.next()));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    /// Three pending writes of one page each, then a sync, then one write more.
    fn sample() -> Trace {
        let sim = SimDevice::from_image(vec![0; 4 * 4096]);
        for page in 0..3 {
            sim.write_at(&[page as u8 + 1; 4096], page * 4096).unwrap();
        }
        sim.sync().unwrap();
        sim.write_at(&[9; 4096], 3 * 4096).unwrap();
        sim.trace()
    }

    #[test]
    fn every_subset_of_few_pending_operations_is_made_once() {
        let trace = sample();
        let depth = Depth::FULL.tears(false);
        let mut seen = std::collections::BTreeSet::new();
        for state in trace.crash_states(depth, 1) {
            let pages: Vec<u8> = (0..4).map(|page| state.device.view()[page * 4096]).collect();
            assert!(seen.insert((state.point.cut, pages)), "{}: made twice", state.point);
        }
        let media = |cut| seen.iter().filter(|(at, _)| *at == cut).count();
        // Cut 4 is the sync: everything is durable. Together 1 + 1 + 2 + 4 = 2^3 subsets before it.
        assert_eq!((0..=5).map(media).collect::<Vec<_>>(), [1, 1, 2, 4, 1, 1]);
    }

    #[test]
    fn a_point_is_written_read_and_made_again() {
        let trace = sample();
        let mut torn = 0;
        for state in trace.crash_states(Depth::FULL, 7) {
            let text = state.point.to_string();
            let point: CrashPoint = text.parse().unwrap();
            assert_eq!(point, state.point);
            assert_eq!(trace.device_after(&point).view(), state.device.view(), "{text}");
            assert_eq!(trace.describe(&point).lines().count(), 1 + point.fates.len());
            torn += usize::from(state.is_torn());
        }
        assert!(torn > 10, "{torn}");
        let odd = CrashPoint { cut: 3, fates: vec![Fate::LengthOnly, Fate::Torn(vec![true, false])] };
        assert_eq!(odd.to_string(), "3:G-T10");
        assert_eq!(odd.to_string().parse(), Ok(odd));
        for wrong in ["", "7", "x:K", "1:Q", "1:P", "1:Rz", "1:T2", "1:Kx", ":"] {
            assert!(wrong.parse::<CrashPoint>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn equal_seeds_give_equal_media_and_others_give_others() {
        let trace = sample();
        let depth = Depth::QUICK.samples(5);
        let points = |seed| trace.crash_states(depth, seed).map(|s| s.point).collect::<Vec<_>>();
        assert_eq!(points(3), points(3));
        assert_ne!(points(3), points(4));
    }

    #[test]
    fn what_counts_as_acknowledged_follows_the_syncs_and_the_lies() {
        let sim = SimDevice::new();
        sim.lying_sync(1);
        let write = || sim.write_at(&[1; 512], 0).unwrap();
        write(); // 0
        sim.sync().unwrap(); // 1
        write(); // 2
        sim.sync().unwrap(); // 3, a lie
        write(); // 4
        sim.sync().unwrap(); // 5
        write(); // 6
        let trace = sim.trace();
        let until: Vec<_> = (0..=trace.len()).map(|k| trace.acknowledged_until(k)).collect();
        // Until the lie is covered by sync 5, nothing that came after operation 3 is sure.
        assert_eq!(until, [(1, 1), (1, 1), (3, 5), (3, 5), (3, 5), (3, 5), (7, 7), (7, 7)]);
    }
}
