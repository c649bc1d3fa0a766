//! Reading and writing through a map.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::buffer::SLOTS;
use super::catalogue::with_nodes;
use super::engine::{Engine, io};
use super::object::Object;
use crate::alloc::Claim;
use crate::error::{Corruption, Error, Result};
use crate::extent::{self, Extents, Found};
use crate::format::block_crc;
use crate::format::node::Extent;
use crate::format::record::{Change, ChangeKind};
use crate::node::{Cx, Held, Miss};
use crate::units::{BLOCK, BLOCK_BYTES, BlockAddr};

/// Data that may wait for its first sync before writers make one themselves (twice what starts it in the
/// background).
const UNSYNCED_BYTES: u64 = 64 << 20;

impl Engine {
    pub(crate) fn find(&self, object: &Object, lba: u64) -> Result<Found> {
        self.usable()?;
        let _pin = self.pins.enter();
        self.find_pinned(object, lba)
    }

    fn find_pinned(&self, object: &Object, lba: u64) -> Result<Found> {
        let mut held = Held::new();
        loop {
            let found = extent::find(&object.map.read().tree, lba, &self.store, &held);
            match found {
                Ok(found) => return Ok(found),
                // Fetched without the map's lock; the pin keeps the node from being reused meanwhile.
                Err(Miss(r)) => held.add(r.a, self.store.fetch::<Extents>(&r)?),
            }
        }
    }

    /// Data blocks that the map of `object` names.
    pub(crate) fn mapped_blocks(&self, object: &Object) -> Result<u64> {
        self.usable()?;
        let _pin = self.pins.enter();
        let map = object.map.read();
        with_nodes::<Extents, _>(&self.store, |held| {
            let Some(root) = &map.tree.root else { return Ok(0) };
            Ok(crate::node::Got::open(root, &self.store, held)?.weight())
        })
    }

    /// Fills `buf` from byte `offset` on. What is not mapped reads zero.
    pub(crate) fn read(&self, object: &Object, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.usable()?;
        let _pin = self.pins.enter();
        self.counters.reads.fetch_add(1, Ordering::Relaxed);
        let mut at = offset;
        let end = offset + buf.len() as u64;
        while at < end {
            let lba = at / BLOCK_BYTES;
            let out = &mut buf[(at - offset) as usize..];
            let stop = match self.find_pinned(object, lba)? {
                Found::Hole(next) => {
                    let stop = end.min(next.saturating_mul(BLOCK_BYTES));
                    out[..(stop - at) as usize].fill(0);
                    stop
                }
                Found::Extent(e) => {
                    let stop = end.min(e.end() * BLOCK_BYTES);
                    let out = &mut out[..(stop - at) as usize];
                    match e.block() {
                        None => out.fill(0),
                        Some(block) => {
                            let first = BlockAddr::new(block + (lba - e.lba));
                            self.read_run(first, (at % BLOCK_BYTES) as usize, out)?;
                        }
                    }
                    stop
                }
            };
            at = stop;
        }
        Ok(())
    }

    /// Reads consecutive blocks from `skip` bytes into the first.
    fn read_run(&self, first: BlockAddr, skip: usize, out: &mut [u8]) -> Result<()> {
        let (mut addr, mut out, mut skip) = (first, out, skip);
        while !out.is_empty() {
            let n = (BLOCK - skip).min(out.len());
            let whole = if skip == 0 { out.len() / BLOCK } else { 0 };
            if let Some(holder) = self.buffers.holder(addr) {
                self.buffers.read(&holder, |bytes| out[..n].copy_from_slice(&bytes[skip..skip + n]));
                out = &mut out[n..];
                addr = addr + 1;
            } else if whole > 0 {
                // As far as nothing is buffered, one read serves the whole run.
                let mut blocks = 1;
                while blocks < whole && self.buffers.holder(addr + blocks as u64).is_none() {
                    blocks += 1;
                }
                let (now, rest) = out.split_at_mut(blocks * BLOCK);
                self.read_blocks(addr, now)?;
                out = rest;
                addr = addr + blocks as u64;
            } else {
                let mut block = [0u8; BLOCK];
                self.read_blocks(addr, &mut block)?;
                out[..n].copy_from_slice(&block[skip..skip + n]);
                out = &mut out[n..];
                addr = addr + 1;
            }
            skip = 0;
        }
        Ok(())
    }

    /// Reads whole blocks from the device and verifies each (P6).
    pub(super) fn read_blocks(&self, first: BlockAddr, out: &mut [u8]) -> Result<()> {
        let located = self.space.geometry.locate(first);
        let chunks = self.space.index.read().chunks;
        let Some((chunk, index)) = located.filter(|(c, at)| {
            *c < chunks && at + out.len() / BLOCK <= self.space.geometry.blocks_per_chunk as usize
        }) else {
            let want = format!("a run within one of {chunks} chunks");
            return Err(Corruption::new("extent", first.raw(), "block address", want, first.raw()).into());
        };
        let page = self.space.checksums(chunk)?;
        let offset = first.byte_offset();
        self.device.read_at(out, offset).map_err(io("read", offset, out.len() as u64))?;
        for (i, block) in out.chunks_exact(BLOCK).enumerate() {
            let (want, got) = (page.get(index + i), block_crc(block));
            if want != got {
                let addr = first.raw() + i as u64;
                return Err(Corruption::new(
                    "data block",
                    addr,
                    "checksum",
                    format!("{want:#010x}"),
                    format!("{got:#010x}"),
                )
                .into());
            }
        }
        Ok(())
    }

    /// Most blocks that one piece of a write may have, so that its changes fit in any log.
    fn piece_blocks(&self) -> u64 {
        (self.pending_cap() / 32).clamp(1, SLOTS as u64)
    }

    /// Writes `data` at byte `offset`. Fails before any effect when there is no space for all of it.
    pub(crate) fn write(&self, object: &Arc<Object>, offset: u64, data: &[u8]) -> Result<()> {
        self.writable()?;
        if data.is_empty() {
            return Ok(());
        }
        self.counters.writes.fetch_add(1, Ordering::Relaxed);
        let end = offset + data.len() as u64;
        let blocks = (end - 1) / BLOCK_BYTES - offset / BLOCK_BYTES + 1;
        let mut claim = self.claim(blocks)?;
        let mut at = offset;
        while at < end {
            let rest = &data[(at - offset) as usize..];
            let skip = (at % BLOCK_BYTES) as usize;
            if skip != 0 || rest.len() < BLOCK {
                let n = rest.len().min(BLOCK - skip);
                let lba = at / BLOCK_BYTES;
                let mut done = self.write_part(object, &mut claim, lba, skip, &rest[..n])?;
                while !done {
                    // Somebody else changed the block meanwhile: the copy is given up (A2), and the next one
                    // has a claim of its own, made where a checkpoint may still make room for it.
                    done = self.write_part(object, &mut self.claim(1)?, lba, skip, &rest[..n])?;
                }
                at += n as u64;
            } else {
                let n = (rest.len() / BLOCK).min(self.piece_blocks() as usize) * BLOCK;
                self.write_whole(object, &mut claim, at / BLOCK_BYTES, &rest[..n])?;
                at += n as u64;
            }
        }
        Ok(())
    }

    /// Claims space, making room by a checkpoint while that helps (P7).
    fn claim(&self, blocks: u64) -> Result<Claim<'_>> {
        loop {
            match self.space.claim(blocks) {
                Err(Error::OutOfSpace { .. }) if self.make_room(blocks)? => {}
                done => return done,
            }
        }
    }

    fn write_whole(&self, object: &Arc<Object>, claim: &mut Claim<'_>, lba: u64, data: &[u8]) -> Result<()> {
        let _gate = self.enter_write((data.len() / BLOCK) as u64 * 28 + 32)?;
        let _pin = self.pins.enter();
        let mut done = 0;
        while done < data.len() {
            let lease = self.buffers.lease(&self.space, claim, ((data.len() - done) / BLOCK) as u64)?;
            for (i, block) in data[done..].chunks_exact(BLOCK).take(lease.blocks() as usize).enumerate() {
                lease.fill(i, block);
            }
            self.map_run(object, lba + (done / BLOCK) as u64, lease.addr(), lease.blocks(), None)?;
            done += lease.blocks() as usize * BLOCK;
        }
        Ok(())
    }

    /// Maps a run that has been filled. With `only_if`, only while `lba` is still mapped as it says.
    fn map_run(
        &self,
        object: &Arc<Object>,
        lba: u64,
        addr: BlockAddr,
        blocks: u64,
        only_if: Option<Option<u64>>,
    ) -> Result<bool> {
        let fill = Extent::data(lba, addr.raw(), blocks, self.epoch());
        let in_chunk = self.space.geometry.locate(addr).map_or(0, |(_, at)| at as u64);
        let mut held = Held::new();
        loop {
            let missed = {
                let mut map = object.map.write();
                let map = &mut *map;
                let cx = Cx { store: &self.store, held: &held, dirtied: &self.dirtied };
                let tried = match only_if {
                    Some(was) => extent::find(&map.tree, lba, &self.store, &held).and_then(|now| {
                        if block_behind(now, lba) != was {
                            return Ok(false);
                        }
                        extent::replace(&mut map.tree, &cx, &self.space.geometry, fill).map(|()| true)
                    }),
                    None => extent::replace(&mut map.tree, &cx, &self.space.geometry, fill).map(|()| true),
                };
                match tried {
                    Ok(true) => {
                        let change = Change { lba, block: addr.raw(), len: blocks, kind: ChangeKind::Data };
                        self.note(object, map, change, in_chunk);
                        return Ok(true);
                    }
                    Ok(false) => return Ok(false),
                    Err(Miss(r)) => r,
                }
            };
            held.add(missed.a, self.store.fetch::<Extents>(&missed)?);
        }
    }

    pub(super) fn note(
        &self,
        object: &Arc<Object>,
        map: &mut super::object::ObjectMap,
        change: Change,
        in_chunk: u64,
    ) {
        if map.pending.is_empty() {
            self.dirty.lock().push(Arc::clone(object));
        }
        map.note(change, in_chunk);
        self.mark_changed(object, &mut map.changed);
    }

    /// Writes part of one block: in place while its buffer is open, else as a changed copy. False when somebody
    /// else wrote the block between reading and mapping it: both writes must survive (P1), so it is to be tried
    /// again.
    fn write_part(
        &self,
        object: &Arc<Object>,
        claim: &mut Claim<'_>,
        lba: u64,
        skip: usize,
        part: &[u8],
    ) -> Result<bool> {
        let _gate = self.enter_write(28 + 32)?;
        let _pin = self.pins.enter();
        let was = block_behind(self.find_pinned(object, lba)?, lba);
        let mut block = [0u8; BLOCK];
        if let Some(addr) = was.map(BlockAddr::new) {
            match self.buffers.holder(addr) {
                Some(holder) => {
                    let put = |bytes: &mut [u8]| bytes[skip..skip + part.len()].copy_from_slice(part);
                    if self.buffers.change(&holder, addr, put) {
                        return Ok(true);
                    }
                    self.buffers.read(&holder, |bytes| block.copy_from_slice(bytes));
                }
                None => self.read_blocks(addr, &mut block)?,
            }
        }
        block[skip..skip + part.len()].copy_from_slice(part);
        let lease = self.buffers.lease(&self.space, claim, 1)?;
        lease.fill(0, &block);
        self.map_run(object, lba, lease.addr(), 1, Some(was))
    }

    /// Unmaps `from..to`, or maps it as zeroes.
    pub(crate) fn unmap(&self, object: &Arc<Object>, from: u64, to: u64, zero: bool) -> Result<()> {
        self.writable()?;
        if from >= to {
            return Ok(());
        }
        // Both may split extents; a discard at least gives blocks back, so it may go further.
        self.room_for_metadata(if zero { 5 } else { 2 })?;
        let _gate = self.enter_write(24 + 32)?;
        let _pin = self.pins.enter();
        let mut held = Held::new();
        loop {
            let missed = {
                let mut map = object.map.write();
                let map = &mut *map;
                let cx = Cx { store: &self.store, held: &held, dirtied: &self.dirtied };
                let done = if zero {
                    let fill = Extent::zero(from, to - from, self.epoch());
                    extent::replace(&mut map.tree, &cx, &self.space.geometry, fill)
                } else {
                    map.tree.cut(&cx, &from, &to).map(|_| ())
                };
                match done {
                    Ok(()) => {
                        let kind = if zero { ChangeKind::Zero } else { ChangeKind::Hole };
                        self.note(object, map, Change { lba: from, block: 0, len: to - from, kind }, 0);
                        return Ok(());
                    }
                    Err(Miss(r)) => r,
                }
            };
            held.add(missed.a, self.store.fetch::<Extents>(&missed)?);
        }
    }

    /// Passes the gate with room for `bytes` in the next record. Makes a commit or a checkpoint first where
    /// limits ask for one; nothing is held meanwhile.
    fn enter_write(&self, bytes: u64) -> Result<parking_lot::RwLockReadGuard<'_, ()>> {
        loop {
            self.writable()?;
            if self.dirtied.load(Ordering::Relaxed) >= self.space.dirty_limit {
                self.checkpoint_when(|e| e.dirtied.load(Ordering::Relaxed) >= e.space.dirty_limit)?;
            } else if self.dirtied.load(Ordering::Relaxed) >= self.space.dirty_limit / 2 {
                self.wake();
            }
            let unsynced = self.buffers.unsynced.load(Ordering::Relaxed);
            if unsynced >= UNSYNCED_BYTES {
                self.flush()?;
            } else if unsynced >= UNSYNCED_BYTES / 2 {
                self.wake();
            } else if self.buffers.has_full() > 0 {
                self.hurry_buffers()?;
            }
            let gate = self.gate.read();
            let cap = self.pending_cap();
            let before = self.pending_bytes.fetch_add(bytes, Ordering::Relaxed);
            if before == 0 || before + bytes <= cap {
                return Ok(gate);
            }
            self.pending_bytes.fetch_sub(bytes, Ordering::Relaxed);
            drop(gate);
            self.commit_pending()?;
        }
    }
}

fn block_behind(found: Found, lba: u64) -> Option<u64> {
    match found {
        Found::Extent(e) => e.block().map(|b| b + (lba - e.lba)),
        Found::Hole(_) => None,
    }
}
