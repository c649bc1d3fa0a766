//! What lies below a map: a base, whose bytes come from outside until the pool has them.
//!
//! A base is a map of its own, which every map over it shows where it has a hole.
//!
//! - B1 Nothing makes a hole in a map over a base where the base reaches: a discard maps zeroes. So a hole says that
//!   the block is as it is in the base.
//! - B2 The map of a base is only filled. What comes from outside is mapped only into its holes, under its lock, and
//!   nothing changes or unmaps it: what a base has shown once it shows for ever.
//! - B3 Whoever meets a hole in a base brings the block in and reads it from the map then. Bytes from outside are
//!   shown without being kept only where they cannot be kept: in a pool that is full, latched or open for reading.
//! - B4 As every change of a map, what was brought in is part of the next commit. So every commit has all that was
//!   shown before it.
//! - B5 A base lies over nothing: the depth is one, whatever a catalogue says.
//! - B6 Nothing is brought in with a gate or a pin held: room for it may have to be made by a checkpoint.

use std::sync::Arc;

use super::engine::Engine;
use super::object::Object;
use crate::alloc::GROWTH_QUARTERS;
use crate::error::{Error, Result, StateRule};
use crate::extent::{self, Behind, Extents, Found};
use crate::format::is_zero;
use crate::format::node::Extent;
use crate::format::record::{Change, ChangeKind};
use crate::memory;
use crate::node::{Cx, Held, Miss};
use crate::sync::RwLock;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::units::{BLOCK, BLOCK_BYTES, BlockAddr, ObjectId};

/// Blocks that are brought in at once: 1 MiB.
pub(crate) const BRING_BLOCKS: u64 = 256;

/// Where the bytes of a base come from.
pub(crate) trait Outside: Send + Sync {
    /// Blocks that have to be read together, 1 where it does not matter; at most [`BRING_BLOCKS`].
    fn piece_blocks(&self) -> u64;
    /// Fills `out` with the bytes from byte `offset` on, whole pieces; behind the end with zeroes.
    fn read(&self, out: &mut [u8], offset: u64) -> Result<()>;
    /// Up to which block from `lba` on there is nothing but zeroes, as far as that is known without reading.
    fn zeroes_until(&self, lba: u64) -> Result<u64>;
}

/// A base in use.
pub(crate) struct Base {
    object: Arc<Object>,
    blocks: u64,
    outside: RwLock<Option<Arc<dyn Outside>>>,
    /// No hole lies before this block. Holes do not come back (B2).
    filled: AtomicU64,
}

/// What became of bytes from outside.
enum Brought {
    Kept,
    /// They could not be kept, for this reason.
    Shown {
        first: u64,
        bytes: Vec<u8>,
        why: Error,
    },
}

impl Base {
    pub(super) fn new(object: Arc<Object>, blocks: u64) -> Self {
        Self { object, blocks, outside: RwLock::new(None), filled: AtomicU64::new(0) }
    }

    pub(crate) fn id(&self) -> ObjectId {
        self.object.id
    }

    /// Blocks that it has; behind them it reads zero.
    pub(crate) fn blocks(&self) -> u64 {
        self.blocks
    }

    pub(crate) fn object(&self) -> &Object {
        &self.object
    }

    pub(crate) fn is_supplied(&self) -> bool {
        self.outside.read().is_some()
    }

    /// Says where its bytes come from; the first word counts, because somebody may be reading through it.
    pub(crate) fn supply(&self, outside: Arc<dyn Outside>) {
        self.outside.write().get_or_insert(outside);
    }

    /// Nothing from outside is needed any more.
    pub(crate) fn let_go(&self) {
        *self.outside.write() = None;
    }

    fn outside(&self) -> Result<Arc<dyn Outside>> {
        let missing = || Error::InvalidState {
            object: "base",
            id: self.object.id.to_string(),
            status: "not handed over",
            op: "read",
            rule: StateRule::Status,
        };
        self.outside.read().clone().ok_or_else(missing)
    }
}

/// The base that a map lies over. Most lie over none.
#[derive(Default)]
pub(super) struct Below {
    ever: AtomicBool,
    now: RwLock<Option<Arc<Base>>>,
}

impl Below {
    pub(super) fn get(&self) -> Option<Arc<Base>> {
        if self.ever.load(Ordering::Acquire) { self.now.read().clone() } else { None }
    }

    pub(super) fn set(&self, base: Option<Arc<Base>>) {
        let some = base.is_some();
        *self.now.write() = base;
        self.ever.fetch_or(some, Ordering::AcqRel);
    }

    /// Blocks that lie below, 0 for none (B1).
    pub(super) fn blocks(&self) -> u64 {
        self.get().map_or(0, |base| base.blocks)
    }
}

impl Engine {
    /// Fills `out` with the bytes of a base from byte `offset` on. The caller holds neither gate nor pin (B6).
    pub(super) fn read_base(&self, base: &Base, offset: u64, out: &mut [u8]) -> Result<()> {
        let (mut at, end) = (offset, offset + out.len() as u64);
        while at < end {
            let lba = at / BLOCK_BYTES;
            let rest = &mut out[(at - offset) as usize..];
            if lba >= base.blocks {
                rest.fill(0);
                return Ok(());
            }
            match self.find(&base.object, lba)? {
                Found::Extent(e) => {
                    let stop = end.min(e.end() * BLOCK_BYTES);
                    self.read_map(&base.object, at, &mut rest[..(stop - at) as usize])?;
                    at = stop;
                }
                Found::Hole(next) => match self.bring(base, lba, next.min(end.div_ceil(BLOCK_BYTES)))? {
                    Brought::Kept => {}
                    Brought::Shown { first, bytes, .. } => {
                        let bytes = &bytes[(at - first * BLOCK_BYTES) as usize..];
                        let n = bytes.len().min(rest.len());
                        rest[..n].copy_from_slice(&bytes[..n]);
                        at += n as u64;
                    }
                },
            }
        }
        Ok(())
    }

    /// Makes sure that what shows through at `lba` can be read under the gate.
    pub(super) fn bring_below(&self, object: &Object, lba: u64) -> Result<()> {
        let Some(base) = object.below.get().filter(|base| lba < base.blocks) else { return Ok(()) };
        if matches!(self.find(object, lba)?, Found::Hole(_)) {
            while matches!(self.find(&base.object, lba)?, Found::Hole(_)) {
                if let Brought::Shown { why, .. } = self.bring(&base, lba, lba + 1)? {
                    return Err(why);
                }
            }
        }
        Ok(())
    }

    /// Reads a block of a base; false where it was not brought in. The caller holds a pin.
    pub(super) fn read_brought(&self, base: &Base, lba: u64, block: &mut [u8; BLOCK]) -> Result<bool> {
        if lba >= base.blocks {
            block.fill(0);
            return Ok(true);
        }
        match Behind::of(self.find_pinned(&base.object, lba)?, lba) {
            Behind::Hole => return Ok(false),
            Behind::Zero => block.fill(0),
            Behind::Data(addr) => self.read_run(addr, 0, block)?,
        }
        Ok(true)
    }

    /// Brings in a first piece of the hole that `from..to` is, at least the block `from`.
    fn bring(&self, base: &Base, from: u64, to: u64) -> Result<Brought> {
        let outside = base.outside()?;
        let piece = outside.piece_blocks().clamp(1, BRING_BLOCKS);
        let first = from / piece * piece;
        let most = (first + BRING_BLOCKS).min(base.blocks);
        let end = to.next_multiple_of(piece).min(most);
        let zeroes = outside.zeroes_until(first)?;
        if zeroes > from {
            // Zeroes cost nothing: as many as there are, were it the rest of the base.
            let end = zeroes.min(base.blocks);
            return match self.writable().and_then(|()| self.zero_holes(&base.object, first, end)) {
                Ok(()) => Ok(Brought::Kept),
                Err(why) => {
                    let bytes = memory::filled(0, (end.min(most) - first) as usize * BLOCK)?;
                    self.not_kept(base, from, first, bytes, why)
                }
            };
        }
        let mut bytes = memory::filled(0, (end - first) as usize * BLOCK)?;
        outside.read(&mut bytes, first * BLOCK_BYTES)?;
        match self.writable().and_then(|()| self.keep(&base.object, first, &bytes)) {
            Ok(()) => Ok(Brought::Kept),
            Err(why) => self.not_kept(base, from, first, bytes, why),
        }
    }

    /// What to do with bytes from `first` on, wanted from `from` on, that could not all be kept (B3).
    fn not_kept(&self, base: &Base, from: u64, first: u64, bytes: Vec<u8>, why: Error) -> Result<Brought> {
        match why {
            Error::OutOfSpace { .. } | Error::ReadOnly { .. } | Error::Poisoned | Error::Io { .. } => {}
            other => return Err(other),
        }
        // What the map has by now comes from there.
        let Found::Hole(end) = self.find(&base.object, from)? else { return Ok(Brought::Kept) };
        let mut bytes = bytes;
        bytes.truncate(usize::try_from(end - first).unwrap_or(usize::MAX).saturating_mul(BLOCK));
        Ok(Brought::Shown { first, bytes, why })
    }

    /// Maps blocks from outside where there are still holes (B2).
    fn keep(&self, object: &Arc<Object>, lba: u64, bytes: &[u8]) -> Result<()> {
        let zero: Vec<bool> = bytes.chunks_exact(BLOCK).map(is_zero).collect();
        let mut at = 0;
        for run in zero.chunk_by(|a, b| a == b) {
            let from = lba + at as u64;
            if run[0] {
                self.zero_holes(object, from, from + run.len() as u64)?;
            } else {
                self.fill_holes(object, from, &bytes[at * BLOCK..][..run.len() * BLOCK])?;
            }
            at += run.len();
        }
        Ok(())
    }

    /// Brings in the next piece that a base still lacks. Returns up to which block it is whole now; `None` once it
    /// is whole altogether.
    pub(crate) fn fill_base(&self, base: &Base) -> Result<Option<u64>> {
        let filled = base.filled.load(Ordering::Relaxed);
        let Some((from, to)) = self.next_hole(&base.object, filled, base.blocks)? else {
            base.filled.fetch_max(base.blocks, Ordering::Relaxed);
            return Ok(None);
        };
        base.filled.fetch_max(from, Ordering::Relaxed);
        match self.bring(base, from, to)? {
            Brought::Kept => self.filled(base).map(Some),
            Brought::Shown { why, .. } => Err(why),
        }
    }

    /// Up to which block a base is whole.
    pub(crate) fn filled(&self, base: &Base) -> Result<u64> {
        let filled = base.filled.load(Ordering::Relaxed);
        let first = self.next_hole(&base.object, filled, base.blocks)?.map_or(base.blocks, |(from, _)| from);
        base.filled.fetch_max(first, Ordering::Relaxed);
        Ok(first)
    }

    /// The first hole at or behind `from` and before `to`, cut there.
    fn next_hole(&self, object: &Object, from: u64, to: u64) -> Result<Option<(u64, u64)>> {
        let mut at = from;
        while at < to {
            match self.find(object, at)? {
                Found::Hole(end) => return Ok(Some((at, end.min(to)))),
                Found::Extent(e) => at = e.end(),
            }
        }
        Ok(None)
    }

    /// Maps blocks of data, each only if it is still a hole (B2).
    fn fill_holes(&self, object: &Arc<Object>, lba: u64, data: &[u8]) -> Result<()> {
        let mut claim = self.claim((data.len() / BLOCK) as u64)?;
        for (lba, block) in (lba..).zip(data.chunks_exact(BLOCK)) {
            if !matches!(self.find(object, lba)?, Found::Hole(_)) {
                continue;
            }
            let _gate = self.enter_write(28 + 32)?;
            let _pin = self.pins.enter();
            let Some(lease) = self.buffers.lease(&self.space, Some(&mut claim), 1)? else { break };
            lease.fill(0, block);
            self.map_run(object, lba, lease.addr(), 1, Some(Behind::Hole))?;
            lease.finish();
        }
        Ok(())
    }

    /// Maps the holes in a range as zeroes.
    fn zero_holes(&self, object: &Arc<Object>, from: u64, to: u64) -> Result<()> {
        let mut at = from;
        while at < to {
            self.room_for_metadata(GROWTH_QUARTERS, 0)?;
            let _gate = self.enter_write(24 + 32)?;
            let _pin = self.pins.enter();
            let mut held = Held::new();
            at = loop {
                let missed = {
                    let mut map = object.map.write();
                    let map = &mut *map;
                    map.room()?;
                    let cx = Cx { store: &self.store, held: &held, dirtied: &self.dirtied };
                    let done = match extent::find(&map.tree, at, &self.store, &held) {
                        Ok(Found::Extent(e)) => break e.end(),
                        Ok(Found::Hole(end)) => {
                            let end = end.min(to);
                            let fill = Extent::zero(at, end - at, self.epoch());
                            extent::replace(&mut map.tree, &cx, &self.space.geometry, fill).map(|()| end)
                        }
                        Err(miss) => Err(miss),
                    };
                    match done {
                        Ok(end) => {
                            let change = Change { lba: at, block: 0, len: end - at, kind: ChangeKind::Zero };
                            self.note(object, map, change, 0);
                            break end;
                        }
                        Err(Miss(r)) => r,
                    }
                };
                held.add(missed.a, self.store.fetch::<Extents>(&missed)?);
            };
        }
        Ok(())
    }
}

/// Where a block lies, for those who ask what a map shows and not for its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shown {
    /// Nothing, neither in the map nor below it.
    Hole,
    Zero,
    Data(BlockAddr),
    /// In the base that was named, which does not have it yet.
    Outside(ObjectId),
}

impl Shown {
    fn of(found: Found, lba: u64) -> (Self, u64) {
        match (Behind::of(found, lba), found) {
            (_, Found::Hole(end)) => (Self::Hole, end),
            (Behind::Data(addr), Found::Extent(e)) => (Self::Data(addr), e.end()),
            (_, Found::Extent(e)) => (Self::Zero, e.end()),
        }
    }
}

impl Engine {
    /// What a map shows at `lba`, and before which block that may change.
    pub(crate) fn show(&self, object: &Object, lba: u64) -> Result<(Shown, u64)> {
        let (shown, end) = Shown::of(self.find(object, lba)?, lba);
        if shown != Shown::Hole {
            return Ok((shown, end));
        }
        let Some(base) = object.below.get().filter(|base| lba < base.blocks) else {
            return Ok((shown, end));
        };
        let (below, below_end) = Shown::of(self.find(&base.object, lba)?, lba);
        let end = end.min(below_end).min(base.blocks);
        Ok((if below == Shown::Hole { Shown::Outside(base.id()) } else { below }, end))
    }

    /// Blocks of data that a map shows. Those that lie outside count as data.
    pub(crate) fn shown_blocks(&self, object: &Object) -> Result<u64> {
        if object.below.get().is_none() {
            return self.mapped_blocks(object);
        }
        let (mut lba, mut blocks) = (0, 0);
        while lba < extent::END {
            let (shown, end) = self.show(object, lba)?;
            if matches!(shown, Shown::Data(_) | Shown::Outside(_)) {
                blocks += end - lba;
            }
            lba = end;
        }
        Ok(blocks)
    }
}
