//! What happened to a simulated device, and the medium that a loss of power at any point leaves.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use super::SimDevice;
use super::image::Image;

/// The unit that a disk writes whole: tearing happens between sectors.
pub const SECTOR_BYTES: u64 = 512;

/// One recorded operation, in the order in which the calls returned.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Op {
    /// Bytes written at an offset.
    Write {
        /// First byte.
        offset: u64,
        /// What was written.
        bytes: Arc<[u8]>,
    },
    /// The length in bytes was set.
    SetLen(u64),
    /// The device was made at least this many bytes long.
    Allocate(u64),
    /// The range was given back; it reads zero once this has reached the medium.
    Discard {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// A sync that did its work: everything before it is durable.
    Sync,
    /// A sync that reported success and made nothing durable: what was pending stays pending.
    SyncLied,
    /// A sync that reported failure; what was pending stays pending.
    SyncFailed,
    /// A sync that reported failure, after which the host takes the pending data for written. The fates say what
    /// of it the disk has got, oldest first, and the rest is lost. No later sync makes that durable. Lengths stay
    /// pending, as the host keeps them with the file and not with its pages.
    SyncDropped(Arc<[Fate]>),
    /// A bit of the medium went bad.
    Flip {
        /// The byte.
        offset: u64,
        /// The bit, 0 the lowest.
        bit: u8,
    },
}

impl Op {
    fn apply(&self, image: &mut Image) {
        match self {
            Op::Write { offset, bytes } => image.write(bytes, *offset),
            Op::SetLen(len) => image.set_len(*len),
            Op::Allocate(end) => image.extend(*end),
            Op::Discard { offset, len } => image.zero(*offset, *len),
            Op::Sync | Op::SyncLied | Op::SyncFailed | Op::SyncDropped(_) => {}
            Op::Flip { offset, bit } => image.flip(*offset, *bit),
        }
    }

    /// What is still on its way to the medium when the disk has got this much of the operation and the host will
    /// not send the rest.
    fn arrived(self, fate: &Fate) -> Vec<Op> {
        match self {
            Op::Write { offset, bytes } if *fate != Fate::Kept => {
                let len = bytes.len() as u64;
                let mut parts = vec![Op::Allocate(offset + len)];
                for_kept_sectors(offset, len, fate, |part| {
                    let inside = (part.start - offset) as usize..(part.end - offset) as usize;
                    parts.push(Op::Write { offset: part.start, bytes: bytes[inside].into() });
                });
                parts
            }
            other => vec![other],
        }
    }

    fn apply_with(&self, image: &mut Image, fate: &Fate) {
        match (self, fate) {
            (_, Fate::Kept) => self.apply(image),
            (_, Fate::Lost) => {}
            (Op::Write { offset, bytes }, Fate::LengthOnly) => image.extend(offset + bytes.len() as u64),
            (Op::Write { offset, bytes }, torn) => {
                for_kept_sectors(*offset, bytes.len() as u64, torn, |part| {
                    let start = (part.start - offset) as usize;
                    image.write(&bytes[start..][..(part.end - part.start) as usize], part.start);
                });
            }
            (Op::Discard { .. }, Fate::LengthOnly) => {}
            (Op::Discard { offset, len }, torn) => {
                for_kept_sectors(*offset, *len, torn, |part| image.zero(part.start, part.end - part.start));
            }
            _ => self.apply(image),
        }
    }
}

/// In words, without the bytes.
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Write { offset, bytes } => write!(f, "write of {} bytes at {offset}", bytes.len()),
            Op::SetLen(len) => write!(f, "length set to {len}"),
            Op::Allocate(end) => write!(f, "length at least {end}"),
            Op::Discard { offset, len } => write!(f, "discard of {len} bytes at {offset}"),
            Op::Sync => f.write_str("sync"),
            Op::SyncLied => f.write_str("sync that lied"),
            Op::SyncFailed => f.write_str("sync that failed"),
            Op::SyncDropped(_) => f.write_str("sync that failed and dropped what was pending"),
            Op::Flip { offset, bit } => write!(f, "bit {bit} of byte {offset} flipped"),
        }
    }
}

/// What a loss of power makes of one operation that no sync has covered.
///
/// Only writes and discards can be torn; for a change of length everything but `Lost` means `Kept`.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Fate {
    /// It reached the medium whole.
    Kept,
    /// It never reached the medium. When it was to extend the device, the device is not extended.
    Lost,
    /// The device was extended by it but the data is missing: zeroes, or the old bytes.
    LengthOnly,
    /// Only its first sectors reached the medium.
    TornPrefix(usize),
    /// Only its last sectors reached the medium.
    TornSuffix(usize),
    /// Each sector reached the medium or not by chance; equal seeds give equal results.
    TornRandom(u64),
    /// Sector by sector; those past the end of the list are lost.
    Torn(Vec<bool>),
}

impl Fate {
    fn keeps(&self, sector: usize, sectors: usize) -> bool {
        match self {
            Fate::Kept => true,
            Fate::Lost | Fate::LengthOnly => false,
            Fate::TornPrefix(count) => sector < *count,
            Fate::TornSuffix(count) => sector + count >= sectors,
            Fate::TornRandom(seed) => split_mix(seed.wrapping_add(sector as u64)) & 1 == 1,
            Fate::Torn(kept) => kept.get(sector).is_some_and(|&kept| kept),
        }
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fate::Kept => f.write_str("K"),
            Fate::Lost => f.write_str("L"),
            Fate::LengthOnly => f.write_str("G"),
            Fate::TornPrefix(count) => write!(f, "P{count}"),
            Fate::TornSuffix(count) => write!(f, "S{count}"),
            Fate::TornRandom(seed) => write!(f, "R{seed}"),
            Fate::Torn(kept) => {
                f.write_str("T")?;
                kept.iter().try_for_each(|&kept| f.write_str(if kept { "1" } else { "0" }))
            }
        }
    }
}

/// The text is not that of a [`Fate`] or a [`CrashPoint`](super::CrashPoint).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ParseError;

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a crash point, which reads like 17:K-L-P1")
    }
}

impl std::error::Error for ParseError {}

impl FromStr for Fate {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let kind = text.chars().next().ok_or(ParseError)?;
        let rest = &text[kind.len_utf8()..];
        let sector = |c| match c {
            '0' => Ok(false),
            '1' => Ok(true),
            _ => Err(ParseError),
        };
        match kind {
            'K' if rest.is_empty() => Ok(Fate::Kept),
            'L' if rest.is_empty() => Ok(Fate::Lost),
            'G' if rest.is_empty() => Ok(Fate::LengthOnly),
            'P' => rest.parse().map(Fate::TornPrefix).map_err(|_| ParseError),
            'S' => rest.parse().map(Fate::TornSuffix).map_err(|_| ParseError),
            'R' => rest.parse().map(Fate::TornRandom).map_err(|_| ParseError),
            'T' => rest.chars().map(sector).collect::<Result<_, _>>().map(Fate::Torn),
            _ => Err(ParseError),
        }
    }
}

/// SplitMix64: neighbouring inputs give unrelated outputs.
pub(super) fn split_mix(input: u64) -> u64 {
    let mut z = input.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Calls `keep` for the kept parts of a range, cut where the sectors of the medium begin.
fn for_kept_sectors(offset: u64, len: u64, fate: &Fate, mut keep: impl FnMut(Range<u64>)) {
    let end = offset + len;
    let first = offset / SECTOR_BYTES;
    let sectors = (end.div_ceil(SECTOR_BYTES) - first) as usize;
    for sector in 0..sectors {
        if fate.keeps(sector, sectors) {
            let start = (first + sector as u64) * SECTOR_BYTES;
            keep(start.max(offset)..(start + SECTOR_BYTES).min(end));
        }
    }
}

/// The recorded history of a device: what was on the medium at first, and every operation since.
///
/// A *cut point* `k` is the moment after the first `k` operations, so there are `len() + 1` of them. The
/// operations before the cut that no sync has covered are *pending*; they are numbered from 0, oldest
/// first, and whoever makes an image decides the [`Fate`] of each. They are applied in order, so a later
/// one that is kept over an earlier one that is lost is a reordering.
#[derive(Clone)]
pub struct Trace {
    pub(super) initial: Image,
    pub(super) ops: Arc<[Op]>,
}

/// Without the bytes.
impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trace").field("initial_bytes", &self.initial.len()).field("ops", &self.len()).finish()
    }
}

impl Trace {
    /// Number of recorded operations.
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// The recorded operations.
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// Number of pending operations at cut point `k`.
    ///
    /// # Panics
    /// When `k` passes [`len`](Self::len).
    pub fn pending_at(&self, k: usize) -> usize {
        self.cursor_at(k).pending()
    }

    /// The medium after a loss of power at cut point `k`, with the given fate of each pending operation.
    ///
    /// Replays from the start: use a [`cursor`](Self::cursor) to visit many cut points.
    ///
    /// # Panics
    /// When `k` passes [`len`](Self::len).
    pub fn image_at(&self, k: usize, fate: impl FnMut(usize) -> Fate) -> Vec<u8> {
        self.cursor_at(k).image(fate)
    }

    /// The same medium as [`image_at`](Self::image_at), as a new device.
    ///
    /// # Panics
    /// When `k` passes [`len`](Self::len).
    pub fn device_at(&self, k: usize, fate: impl FnMut(usize) -> Fate) -> SimDevice {
        self.cursor_at(k).device(fate)
    }

    /// A cursor at cut point 0.
    pub fn cursor(&self) -> Cursor<'_> {
        Cursor { ops: &self.ops, next: 0, durable: self.initial.clone(), pending: Vec::new() }
    }

    fn cursor_at(&self, k: usize) -> Cursor<'_> {
        let mut cursor = self.cursor();
        cursor.advance_to(k);
        cursor
    }
}

/// Walks the cut points of a [`Trace`] in order, keeping what is durable up to date: an image at the next
/// cut point costs its pending operations, not the history.
#[derive(Clone)]
pub struct Cursor<'a> {
    ops: &'a [Op],
    next: usize,
    pub(super) durable: Image,
    pub(super) pending: Vec<Op>,
}

impl<'a> Cursor<'a> {
    pub(super) fn over(initial: &Image, ops: &'a [Op]) -> Self {
        let mut cursor = Cursor { ops, next: 0, durable: initial.clone(), pending: Vec::new() };
        cursor.advance_to(ops.len());
        cursor
    }

    /// The cut point: how many operations lie before it.
    pub fn position(&self) -> usize {
        self.next
    }

    /// Number of pending operations here.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// The pending operations, oldest first, for choosing fates that fit them.
    pub fn pending_ops(&self) -> &[Op] {
        &self.pending
    }

    /// Passes one operation and returns it; `None` at the end.
    pub fn step(&mut self) -> Option<&'a Op> {
        let op = self.ops.get(self.next)?;
        self.next += 1;
        match op {
            Op::Sync => {
                for op in self.pending.drain(..) {
                    op.apply(&mut self.durable);
                }
            }
            Op::SyncLied | Op::SyncFailed => {}
            Op::SyncDropped(fates) => {
                for (index, op) in std::mem::take(&mut self.pending).into_iter().enumerate() {
                    self.pending.extend(op.arrived(fates.get(index).unwrap_or(&Fate::Lost)));
                }
            }
            Op::Flip { offset, bit } => {
                op.apply(&mut self.durable);
                for pending in &mut self.pending {
                    if let Op::Write { offset: start, bytes } = pending
                        && let Some(at) = offset.checked_sub(*start)
                        && at < bytes.len() as u64
                    {
                        Arc::make_mut(bytes)[at as usize] ^= 1 << bit;
                    }
                }
            }
            _ => self.pending.push(op.clone()),
        }
        Some(op)
    }

    /// Goes forward to cut point `k`.
    ///
    /// # Panics
    /// When `k` lies behind the cursor or past the end of the trace.
    pub fn advance_to(&mut self, k: usize) {
        assert!(self.next <= k && k <= self.ops.len(), "a cursor only goes forward, to the end at most");
        while self.next < k {
            self.step();
        }
    }

    /// The medium after a loss of power here.
    pub fn image(&self, fate: impl FnMut(usize) -> Fate) -> Vec<u8> {
        self.make(fate).to_bytes()
    }

    /// The medium after a loss of power here, as a new device. Far cheaper than
    /// [`image`](Self::image): unchanged pages are shared, not copied.
    pub fn device(&self, fate: impl FnMut(usize) -> Fate) -> SimDevice {
        SimDevice::over(self.make(fate))
    }

    pub(super) fn make(&self, mut fate: impl FnMut(usize) -> Fate) -> Image {
        let mut image = self.durable.clone();
        for (index, op) in self.pending.iter().enumerate() {
            op.apply_with(&mut image, &fate(index));
        }
        image
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    /// A device with 4 KiB of durable ones and then two pending writes that overlap.
    fn sample() -> Trace {
        let sim = SimDevice::new();
        sim.write_at(&[1; 4096], 0).unwrap();
        sim.sync().unwrap();
        sim.write_at(&[2; 2048], 0).unwrap();
        sim.write_at(&[3; 2048], 1024).unwrap();
        sim.trace()
    }

    fn runs(image: &[u8]) -> Vec<(u8, usize)> {
        image.chunk_by(|a, b| a == b).map(|run| (run[0], run.len())).collect()
    }

    #[test]
    fn pending_is_what_no_sync_has_covered() {
        let trace = sample();
        let expected = [0, 1, 0, 1, 2];
        assert_eq!(trace.len() + 1, expected.len());
        let mut cursor = trace.cursor();
        for (k, pending) in expected.into_iter().enumerate() {
            assert_eq!(trace.pending_at(k), pending);
            assert_eq!((cursor.position(), cursor.pending()), (k, pending));
            cursor.step();
        }
        assert!(cursor.step().is_none());
    }

    #[test]
    fn lost_is_lost_and_kept_is_kept_in_every_combination() {
        let trace = sample();
        let fates = |a: bool, b: bool| move |i| if [a, b][i] { Fate::Kept } else { Fate::Lost };
        assert_eq!(runs(&trace.image_at(4, fates(false, false))), [(1, 4096)]);
        assert_eq!(runs(&trace.image_at(4, fates(true, false))), [(2, 2048), (1, 2048)]);
        assert_eq!(runs(&trace.image_at(4, fates(false, true))), [(1, 1024), (3, 2048), (1, 1024)]);
        assert_eq!(runs(&trace.image_at(4, fates(true, true))), [(2, 1024), (3, 2048), (1, 1024)]);
        assert_eq!(trace.image_at(0, |_| Fate::Kept), Vec::<u8>::new());
        assert_eq!(trace.image_at(1, |_| Fate::Lost), Vec::<u8>::new());
        assert_eq!(runs(&trace.image_at(2, |_| Fate::Lost)), [(1, 4096)]);
    }

    #[test]
    fn torn_writes_keep_some_sectors_and_lose_others() {
        let trace = sample();
        let torn = |fate: Fate| runs(&trace.image_at(3, |_| fate.clone()));
        assert_eq!(torn(Fate::TornPrefix(1)), [(2, 512), (1, 3584)]);
        assert_eq!(torn(Fate::TornSuffix(1)), [(1, 1536), (2, 512), (1, 2048)]);
        assert_eq!(torn(Fate::Torn(vec![false, true])), [(1, 512), (2, 512), (1, 3072)]);
        assert_eq!(torn(Fate::TornPrefix(99)), torn(Fate::Kept));
        assert_eq!(torn(Fate::TornSuffix(0)), torn(Fate::Lost));
        assert_eq!(torn(Fate::LengthOnly), torn(Fate::Lost));
        let random: Vec<_> = (0..50).map(|seed| torn(Fate::TornRandom(seed))).collect();
        assert_eq!(random[7], torn(Fate::TornRandom(7)));
        let partial = random.iter().filter(|r| **r != torn(Fate::Kept) && **r != torn(Fate::Lost)).count();
        assert!(partial > 20, "TornRandom hardly tears: {partial} of 50");
        assert!(random.iter().any(|r| *r != random[0]));
    }

    #[test]
    fn unaligned_writes_tear_where_the_sectors_of_the_medium_begin() {
        let sim = SimDevice::from_image(vec![1; 2048]);
        sim.write_at(&[2; 600], 500).unwrap();
        let trace = sim.trace();
        let torn = |fate: Fate| runs(&trace.image_at(1, |_| fate.clone()));
        assert_eq!(torn(Fate::TornPrefix(1)), [(1, 500), (2, 12), (1, 1536)]);
        assert_eq!(torn(Fate::TornPrefix(2)), [(1, 500), (2, 524), (1, 1024)]);
        assert_eq!(torn(Fate::TornSuffix(1)), [(1, 1024), (2, 76), (1, 948)]);
    }

    #[test]
    fn growth_can_be_lost_come_without_data_or_be_implied_by_a_later_write() {
        let sim = SimDevice::from_image(vec![1; 512]);
        sim.write_at(&[2; 512], 512).unwrap();
        sim.write_at(&[3; 512], 1024).unwrap();
        sim.set_len(4096).unwrap();
        sim.allocate(0, 8192).unwrap();
        let trace = sim.trace();
        let at = |fates: [Fate; 4]| runs(&trace.image_at(4, |i| fates[i].clone()));
        use Fate::{Kept, LengthOnly, Lost, TornPrefix};
        assert_eq!(at([Lost, Lost, Lost, Lost]), [(1, 512)]);
        assert_eq!(at([LengthOnly, Lost, Lost, Lost]), [(1, 512), (0, 512)]);
        assert_eq!(at([Lost, Kept, Lost, Lost]), [(1, 512), (0, 512), (3, 512)]);
        assert_eq!(at([Kept, Lost, Kept, Lost]), [(1, 512), (2, 512), (0, 3072)]);
        assert_eq!(at([Lost, Lost, Lost, TornPrefix(0)]), [(1, 512), (0, 7680)]);
    }

    #[test]
    fn lost_discard_shows_the_old_bytes() {
        let sim = SimDevice::from_image(vec![1; 4096]);
        sim.discard(0, 1024).unwrap();
        let trace = sim.trace();
        assert_eq!(runs(&trace.image_at(1, |_| Fate::Lost)), [(1, 4096)]);
        assert_eq!(runs(&trace.image_at(1, |_| Fate::Kept)), [(0, 1024), (1, 3072)]);
        assert_eq!(runs(&trace.image_at(1, |_| Fate::TornSuffix(1))), [(1, 512), (0, 512), (1, 3072)]);
    }

    #[test]
    fn cursor_device_and_image_agree_at_every_cut() {
        let sim = SimDevice::new();
        for round in 0..60_u64 {
            sim.write_at(&vec![round as u8 + 1; 700 + round as usize * 31], round * 997 % 20_000).unwrap();
            match round % 7 {
                3 => sim.sync().unwrap(),
                4 => sim.set_len(10_000 + round * 50).unwrap(),
                5 => sim.discard(round * 100, 5000).unwrap(),
                _ => {}
            }
        }
        let trace = sim.trace();
        let mut cursor = trace.cursor();
        for k in 0..=trace.len() {
            cursor.advance_to(k);
            let fate = |i: usize| {
                if (i + k).is_multiple_of(3) { Fate::Lost } else { Fate::TornRandom((i * k) as u64) }
            };
            let image = trace.image_at(k, fate);
            assert_eq!(cursor.image(fate), image);
            assert_eq!(cursor.device(fate).view(), image);
            assert_eq!(trace.device_at(k, fate).view(), image);
            assert_eq!(cursor.pending(), trace.pending_at(k));
        }
        assert_eq!(cursor.image(|_| Fate::Kept), sim.view());
    }

    #[test]
    fn making_a_state_does_not_change_the_trace_or_the_device() {
        let trace = sample();
        let before = trace.image_at(4, |_| Fate::Kept);
        let state = trace.device_at(4, |_| Fate::Kept);
        state.write_at(&[9; 4096], 0).unwrap();
        state.sync().unwrap();
        assert_eq!(trace.image_at(4, |_| Fate::Kept), before);
    }
}
