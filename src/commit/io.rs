//! Reading and writing through a map.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::buffer::{Lease, SLOTS};
use super::catalogue::with_nodes;
use super::engine::{Engine, io};
use super::object::Object;
use crate::alloc::{ChecksumPage, Claim, DISCARD_QUARTERS, GREAT_DISCARD_QUARTERS, GROWTH_QUARTERS};
use crate::error::{Corruption, Error, Result};
use crate::extent::{self, Behind, Extents, Found};
use crate::format::block_crc;
use crate::format::node::Extent;
use crate::format::record::{Change, ChangeKind};
use crate::memory;
use crate::node::{Cx, Held, Miss};
use crate::sync::RwLockReadGuard;
use crate::units::{BLOCK, BLOCK_BYTES, BlockAddr, MAX_RUN_BLOCKS};

/// Data that may wait for its first sync before writers make one themselves (twice what starts it in the
/// background).
const UNSYNCED_BYTES: u64 = 64 << 20;

/// Blocks of a long read that are read and then verified together: 128 KiB.
const VERIFY_BLOCKS: usize = 32;
/// Blocks that are forgotten one by one when they change; beyond this the whole map is.
const FORGET_BLOCKS: u64 = 1024;

impl Engine {
    pub(crate) fn find(&self, object: &Object, lba: u64) -> Result<Found> {
        self.usable()?;
        let _pin = self.pins.enter();
        self.find_pinned(object, lba)
    }

    pub(super) fn find_pinned(&self, object: &Object, lba: u64) -> Result<Found> {
        self.find_and(object, lba, |_| ())
    }

    /// Looks `lba` up and shows what was found to `note` while the map stands still.
    fn find_and(&self, object: &Object, lba: u64, note: impl Fn(&Found)) -> Result<Found> {
        let mut held = Held::new();
        loop {
            let found = {
                let map = object.map.read();
                extent::find(&map.tree, lba, &self.store, &held).inspect(&note)
            };
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
        self.counters.reads.add(1);
        self.read_map(object, offset, buf)
    }

    #[inline]
    pub(super) fn read_map(&self, object: &Object, offset: u64, buf: &mut [u8]) -> Result<()> {
        let mut _pin = self.pins.enter();
        if self.read_hot(object, offset, buf) {
            return Ok(());
        }
        let mut at = offset;
        let end = offset + buf.len() as u64;
        // Of longer reads the lookup is the least part.
        let one = offset / BLOCK_BYTES == end.saturating_sub(1) / BLOCK_BYTES;
        while at < end {
            let lba = at / BLOCK_BYTES;
            let out = &mut buf[(at - offset) as usize..];
            let found = self.find_and(object, lba, |found| {
                if one {
                    self.remember(object, lba, found);
                }
            });
            let stop = match found? {
                Found::Hole(next) => {
                    let stop = end.min(next.saturating_mul(BLOCK_BYTES));
                    let out = &mut out[..(stop - at) as usize];
                    match object.below.get() {
                        None => out.fill(0),
                        Some(base) => {
                            drop(_pin);
                            self.read_base(&base, at, out)?;
                            _pin = self.pins.enter();
                        }
                    }
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

    /// Reads from one block that was read lately. False when it was not, or is not what it was then: the long
    /// way finds out what is wrong with it.
    #[inline]
    fn read_hot(&self, object: &Object, offset: u64, buf: &mut [u8]) -> bool {
        let (lba, skip) = (offset / BLOCK_BYTES, (offset % BLOCK_BYTES) as usize);
        if skip + buf.len() > BLOCK {
            return false;
        }
        if buf.len() == BLOCK {
            return self.read_hot_block(object, lba, buf);
        }
        let mut block = [0; BLOCK];
        let right = self.read_hot_block(object, lba, &mut block);
        buf.copy_from_slice(&block[skip..skip + buf.len()]);
        right
    }

    /// Reads a whole block that was read lately.
    #[inline]
    fn read_hot_block(&self, object: &Object, lba: u64, block: &mut [u8]) -> bool {
        let Some((addr, crc)) = self.hot.get(object.state(), lba) else { return false };
        self.device.read_at(block, addr.byte_offset()).is_ok() && block_crc(block) == crc
    }

    /// Remembers where `lba` lies, if it is a block of data that the device has. The map stands still (H1).
    fn remember(&self, object: &Object, lba: u64, found: &Found) {
        if let Some(addr) = block_behind(*found, lba).map(BlockAddr::new)
            && let Some((chunk, index)) = self.space.geometry.locate(addr)
            && let Some(page) = self.space.checksums_at_hand(chunk)
            && page.place(index) == 0
        {
            self.hot.put(object.state(), lba, addr, page.get(index));
        }
    }

    /// Reads consecutive blocks from `skip` bytes into the first.
    pub(super) fn read_run(&self, first: BlockAddr, skip: usize, out: &mut [u8]) -> Result<()> {
        let (page, mut index) = self.page_of(first, (skip + out.len()).div_ceil(BLOCK))?;
        let (mut out, mut skip) = (out, skip);
        let mut addr = first;
        while !out.is_empty() {
            let n = (BLOCK - skip).min(out.len());
            let whole = if skip == 0 { out.len() / BLOCK } else { 0 };
            let mut blocks = 1;
            let copy = |bytes: &[u8]| out[..n].copy_from_slice(&bytes[skip..skip + n]);
            if self.buffers.read(&page, index, copy).is_some() {
                out = &mut out[n..];
            } else if whole > 0 {
                // As far as nothing is buffered, one read serves the whole run.
                while blocks < whole && page.place(index + blocks) == 0 {
                    blocks += 1;
                }
                let (now, rest) = out.split_at_mut(blocks * BLOCK);
                self.read_verified(addr, &page, index, now)?;
                out = rest;
            } else {
                let mut block = [0u8; BLOCK];
                self.read_verified(addr, &page, index, &mut block)?;
                out[..n].copy_from_slice(&block[skip..skip + n]);
                out = &mut out[n..];
            }
            addr = addr + blocks as u64;
            index += blocks;
            skip = 0;
        }
        Ok(())
    }

    /// The page of the chunk that a run lies in, and the place of its first block there.
    pub(super) fn page_of(&self, first: BlockAddr, blocks: usize) -> Result<(Arc<ChecksumPage>, usize)> {
        let g = &self.space.geometry;
        let chunks = self.space.index.read().chunks;
        match g.locate(first) {
            Some((chunk, index)) if chunk < chunks && index + blocks <= g.blocks_per_chunk as usize => {
                Ok((self.space.checksums(chunk)?, index))
            }
            _ => {
                let want = format!("a run within one of {chunks} chunks");
                Err(Corruption::new("extent", first.raw(), "block address", want, first.raw()).into())
            }
        }
    }

    /// Reads whole blocks from the device and verifies each (P6).
    fn read_verified(
        &self,
        first: BlockAddr,
        page: &ChecksumPage,
        index: usize,
        out: &mut [u8],
    ) -> Result<()> {
        // Piece by piece: what has just been read is verified while it is in the processor's cache.
        for (n, piece) in (0..).zip(out.chunks_mut(VERIFY_BLOCKS * BLOCK)) {
            let at = n * VERIFY_BLOCKS;
            let offset = (first + at as u64).byte_offset();
            self.device.read_at(piece, offset).map_err(io("read", offset, piece.len() as u64))?;
            let mut blocks = (at..).zip(piece.chunks_exact(BLOCK));
            let bad = blocks.find_map(|(i, block)| {
                let (want, got) = (page.get(index + i), block_crc(block));
                (want != got).then_some((i, want, got))
            });
            if let Some((i, want, got)) = bad {
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
        self.counters.writes.add(1);
        if self.space.is_tight() {
            self.room_for_metadata(GROWTH_QUARTERS, 0)?;
        }
        let end = offset + data.len() as u64;
        let blocks = (end - 1) / BLOCK_BYTES - offset / BLOCK_BYTES + 1;
        // One block needs no claim where some are set aside.
        let mut claim = if blocks > 1 { Some(self.claim(blocks)?) } else { None };
        let mut at = offset;
        while at < end {
            let rest = &data[(at - offset) as usize..];
            let (lba, skip) = (at / BLOCK_BYTES, (at % BLOCK_BYTES) as usize);
            let part = skip != 0 || rest.len() < BLOCK;
            let n = if part {
                rest.len().min(BLOCK - skip)
            } else {
                (rest.len() / BLOCK).min(self.piece_blocks() as usize) * BLOCK
            };
            let write = |claim: Option<&mut Claim<'_>>| match part {
                true => {
                    self.bring_below(object, lba)?;
                    self.write_part(object, claim, lba, skip, &rest[..n])
                }
                false => self.write_whole(object, claim, lba, &rest[..n]),
            };
            let mut done = write(claim.as_mut())?;
            while !done {
                // Nothing was set aside, or somebody else changed the block meanwhile and the copy was given up
                // (A2): a claim of its own, made here, where a checkpoint may still make room for it.
                done = write(Some(&mut self.claim(1)?))?;
            }
            at += n as u64;
        }
        Ok(())
    }

    /// Claims space, making room by a checkpoint while that helps (P7).
    pub(super) fn claim(&self, blocks: u64) -> Result<Claim<'_>> {
        match self.space.claim(blocks) {
            Err(Error::OutOfSpace { .. }) => self.buffers.give_back(&self.space),
            done => return done,
        }
        loop {
            match self.space.claim(blocks) {
                Err(Error::OutOfSpace { .. }) if self.make_room(blocks)? => {}
                done => return done,
            }
        }
    }

    /// Writes whole blocks. False when there is no claim and nothing is set aside.
    fn write_whole(
        &self,
        object: &Arc<Object>,
        mut claim: Option<&mut Claim<'_>>,
        lba: u64,
        data: &[u8],
    ) -> Result<bool> {
        let _gate = self.enter_write((data.len() / BLOCK) as u64 * 28 + 32)?;
        let _pin = self.pins.enter();
        let mut done = 0;
        while done < data.len() {
            let rest = ((data.len() - done) / BLOCK) as u64;
            let Some(lease) = self.buffers.lease(&self.space, claim.as_deref_mut(), rest)? else {
                return Ok(false);
            };
            for (i, block) in data[done..].chunks_exact(BLOCK).take(lease.blocks() as usize).enumerate() {
                lease.fill(i, block);
            }
            self.map_run(object, lba + (done / BLOCK) as u64, lease.addr(), lease.blocks(), None)?;
            done += lease.blocks() as usize * BLOCK;
            lease.finish();
        }
        Ok(true)
    }

    /// Maps a run that has been filled. With `only_if`, only while `lba` is still mapped as it says.
    pub(super) fn map_run(
        &self,
        object: &Arc<Object>,
        lba: u64,
        addr: BlockAddr,
        blocks: u64,
        only_if: Option<Behind>,
    ) -> Result<bool> {
        let fill = Extent::data(lba, addr.raw(), blocks, self.epoch());
        let in_chunk = self.space.geometry.locate(addr).map_or(0, |(_, at)| at as u64);
        let mut held = Held::new();
        loop {
            let missed = {
                let mut map = object.map.write();
                let map = &mut *map;
                self.room(map)?;
                let cx = Cx { store: &self.store, held: &held, dirtied: &self.dirtied };
                let tried = match only_if {
                    Some(was) => extent::exchange(&mut map.tree, &cx, &self.space.geometry, fill, was),
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

    /// Room to note one more change, before the map is changed.
    #[inline]
    fn room(&self, map: &mut super::object::ObjectMap) -> Result<()> {
        if map.pending.is_empty() {
            // Others may push before this one does.
            memory::room(&mut self.dirty.lock(), 64)?;
        }
        map.room()
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
        if change.len <= FORGET_BLOCKS {
            self.hot.forget(object.state(), change.lba, change.len);
        } else {
            object.renew();
        }
        self.mark_changed(object, &mut map.changed);
    }

    /// Writes part of one block: in place while nothing else names it, else as a changed copy. False when there
    /// is no claim and nothing is set aside, or when somebody else wrote the block between reading and mapping
    /// it: both writes must survive (P1), so it is to be tried again.
    fn write_part(
        &self,
        object: &Arc<Object>,
        mut claim: Option<&mut Claim<'_>>,
        lba: u64,
        skip: usize,
        part: &[u8],
    ) -> Result<bool> {
        let _gate = self.enter_write(28 + 32)?;
        let _pin = self.pins.enter();
        let put = |bytes: &mut [u8]| bytes[skip..skip + part.len()].copy_from_slice(part);
        let map = |lease: Lease, was: Behind| {
            let mapped = self.map_run(object, lba, lease.addr(), 1, Some(was));
            lease.finish();
            mapped
        };
        // A block that was read lately comes from the device straight into its new place.
        let mut place = None;
        if let Some((addr, crc)) = self.hot.get(object.state(), lba) {
            let Some(lease) = self.buffers.lease(&self.space, claim.as_deref_mut(), 1)? else {
                return Ok(false);
            };
            let read = |slot: &mut [u8]| {
                let read = self.device.read_at(slot, addr.byte_offset());
                let right = read.is_ok() && block_crc(slot) == crc;
                put(slot);
                right
            };
            if lease.fill_by(read) {
                return map(lease, Behind::Data(addr));
            }
            // The long way finds out what is wrong with it.
            place = Some(lease);
        }
        let mut block = [0u8; BLOCK];
        let was = Behind::of(self.find_pinned(object, lba)?, lba);
        if was == Behind::Hole
            && let Some(base) = object.below.get()
            && !self.read_brought(&base, lba, &mut block)?
        {
            // The map was rolled back to what it had below since that was brought in.
            return Ok(false);
        }
        if let Behind::Data(addr) = was {
            let (page, index) = self.page_of(addr, 1)?;
            if self.buffers.change(&page, index, put) {
                return Ok(true);
            }
            if self.buffers.read(&page, index, |bytes| block.copy_from_slice(bytes)).is_none() {
                self.read_verified(addr, &page, index, &mut block)?;
            }
        }
        put(&mut block);
        if place.is_none() {
            place = self.buffers.lease(&self.space, claim, 1)?;
        }
        let Some(lease) = place else { return Ok(false) };
        lease.fill(0, &block);
        map(lease, was)
    }

    /// Unmaps `from..to`, or maps it as zeroes.
    pub(crate) fn unmap(&self, object: &Arc<Object>, from: u64, to: u64, zero: bool) -> Result<()> {
        self.writable()?;
        if from >= to {
            return Ok(());
        }
        // Both may split extents; a discard at least gives blocks back, so it may go further.
        let quarters = match to - from {
            _ if zero => GROWTH_QUARTERS,
            ..MAX_RUN_BLOCKS => DISCARD_QUARTERS,
            _ => GREAT_DISCARD_QUARTERS,
        };
        self.room_for_metadata(quarters, 0)?;
        let _gate = self.enter_write(24 + 32)?;
        let _pin = self.pins.enter();
        let mut held = Held::new();
        loop {
            let missed = {
                let mut map = object.map.write();
                let map = &mut *map;
                self.room(map)?;
                let cx = Cx { store: &self.store, held: &held, dirtied: &self.dirtied };
                // No holes where something lies below (B1).
                let zero = zero || from < object.below.blocks();
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
    pub(super) fn enter_write(&self, bytes: u64) -> Result<RwLockReadGuard<'_, ()>> {
        loop {
            self.writable()?;
            let dirty = self.dirty_pages();
            if dirty >= self.space.dirty_limit {
                self.checkpoint_when(|e| e.dirty_pages() >= e.space.dirty_limit)?;
            } else if dirty >= self.space.dirty_limit / 2 {
                self.wake();
            }
            let unsynced = self.buffers.unsynced.load(Ordering::Relaxed);
            if unsynced >= UNSYNCED_BYTES {
                self.flush()?;
            } else if unsynced >= UNSYNCED_BYTES / 2 {
                self.wake();
            }
            if self.buffers.has_full() > 0 {
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
