//! What lies below a map: bytes from outside, where the map has a hole.
//!
//! - B1 While something lies below, nothing makes a hole where it reaches: a discard maps zeroes. So a hole says
//!   that the block is still as it is below.
//! - B2 What comes from below is mapped only into a hole, under the map's lock: what was written meanwhile stays.
//! - B3 It is taken away when no hole is left where it reaches, and never put back. Whoever found a hole, and then
//!   nothing below it, looks the block up again.

use std::sync::Arc;

use super::engine::Engine;
use super::object::Object;
use crate::alloc::GROWTH_QUARTERS;
use crate::error::Result;
use crate::extent::{self, Behind, Extents, Found};
use crate::format::node::Extent;
use crate::format::record::{Change, ChangeKind};
use crate::node::{Cx, Held, Miss};
use crate::sync::RwLock;
use crate::sync::atomic::{AtomicBool, Ordering};

/// Bytes below a map.
pub(crate) trait Lower: Send + Sync {
    /// Blocks that it has; behind them a hole reads zero.
    fn blocks(&self) -> u64;
    /// Fills `out` with the bytes from byte `offset` on; behind its end with zeroes.
    fn read(&self, out: &mut [u8], offset: u64) -> Result<()>;
}

/// The place for it in an object. Most never have anything there.
#[derive(Default)]
pub(super) struct Below {
    ever: AtomicBool,
    now: RwLock<Option<Arc<dyn Lower>>>,
}

impl Below {
    /// What lies below, for somebody who has just found a hole.
    pub(super) fn get(&self) -> Beneath {
        if !self.ever.load(Ordering::Acquire) {
            return Beneath::Never;
        }
        self.now.read().clone().map_or(Beneath::Gone, Beneath::There)
    }
    /// Blocks that it has, 0 for nothing. With the map's lock held this stays true (B1).
    pub(super) fn blocks(&self) -> u64 {
        match self.get() {
            Beneath::There(lower) => lower.blocks(),
            Beneath::Never | Beneath::Gone => 0,
        }
    }
}

pub(super) enum Beneath {
    Never,
    /// It was taken away, perhaps after the hole was found (B3).
    Gone,
    There(Arc<dyn Lower>),
}

impl Engine {
    /// Puts something below a map, before anybody reads through it.
    pub(crate) fn set_below(&self, object: &Object, lower: Arc<dyn Lower>) {
        *object.below.now.write() = Some(lower);
        object.below.ever.store(true, Ordering::Release);
    }

    /// Takes away what lies below (B3). The caller knows that no hole is left.
    pub(crate) fn detach_below(&self, object: &Object) {
        let _map = object.map.write();
        *object.below.now.write() = None;
    }

    /// What the map says about a block; or, where what lies below shows through, up to which block it does.
    pub(crate) fn look(&self, object: &Object, lba: u64) -> Result<std::result::Result<Found, u64>> {
        let mut again = false;
        loop {
            let found = self.find(object, lba)?;
            let Found::Hole(end) = found else { return Ok(Ok(found)) };
            match object.below.get() {
                Beneath::There(lower) if lba < lower.blocks() => return Ok(Err(end.min(lower.blocks()))),
                // It may have been mapped since (B3).
                Beneath::Gone if !again => again = true,
                _ => return Ok(Ok(found)),
            }
        }
    }

    /// The first hole at or behind `from` and before `to`, cut there.
    pub(crate) fn next_hole(&self, object: &Object, from: u64, to: u64) -> Result<Option<(u64, u64)>> {
        let mut at = from;
        while at < to {
            match self.find(object, at)? {
                Found::Hole(end) => return Ok(Some((at, end.min(to)))),
                Found::Extent(e) => at = e.end(),
            }
        }
        Ok(None)
    }

    /// Maps blocks from below, each only if it is still a hole (B2). Returns how many were.
    pub(crate) fn fill_holes(&self, object: &Arc<Object>, lba: u64, data: &[u8]) -> Result<u64> {
        let mut claim = self.claim((data.len() / crate::units::BLOCK) as u64)?;
        let mut filled = 0;
        for (lba, block) in (lba..).zip(data.chunks_exact(crate::units::BLOCK)) {
            let _gate = self.enter_write(28 + 32)?;
            let _pin = self.pins.enter();
            let Some(lease) = self.buffers.lease(&self.space, Some(&mut claim), 1)? else { break };
            lease.fill(0, block);
            filled += u64::from(self.map_run(object, lba, lease.addr(), 1, Some(Behind::Hole))?);
            lease.finish();
        }
        Ok(filled)
    }

    /// Maps the holes in a range as zeroes.
    pub(crate) fn zero_holes(&self, object: &Arc<Object>, from: u64, to: u64) -> Result<()> {
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
