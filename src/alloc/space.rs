//! Space between two checkpoints: claims, free runs, and what is taken.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use serde::Serialize;

use super::Bits;
use super::index::{self, Want};
use super::pages::ChecksumPage;
use super::reserve::GROWTH_QUARTERS;
use crate::error::{Corruption, Error, Result};
use crate::format::NodeRef;
use crate::format::chunk::{ChunkEntry, ChunkKind};
use crate::format::superblock::Totals;
use crate::node::Store;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, RwLock};
use crate::trace::event;
use crate::units::{BLOCK, BLOCK_BYTES, BlockAddr, Geometry};

/// Damaged checksum pages that one checkpoint writes anew.
const HEALED_CHUNKS: usize = 64;

/// Free runs shorter than twice this are holes.
const SHORT: u16 = 16;
/// Free chunks that are kept ready while the pool may grow: 64 MiB.
const AHEAD_CHUNKS: u64 = 16;

/// The index of the last durable checkpoint.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IndexRoot {
    pub(crate) root: Option<NodeRef>,
    /// Chunks in the pool, which may be more than that checkpoint knew.
    pub(crate) chunks: u64,
    pub(crate) totals: Totals,
}

/// A free run of blocks in a data chunk, now the caller's.
#[derive(Clone)]
pub(crate) struct Run {
    pub(crate) addr: BlockAddr,
    pub(crate) len: u64,
    pub(crate) checksums: Arc<ChecksumPage>,
}

/// What happened to a data chunk since the last durable checkpoint.
pub(super) struct Touched {
    /// Free in the last durable checkpoint.
    base_free: Bits,
    /// Taken before the freeze of the checkpoint under way.
    frozen: Bits,
    /// Taken since.
    taken: Bits,
    checksums: Arc<ChecksumPage>,
    /// It was free as a whole in the last durable checkpoint.
    fresh: bool,
}

#[derive(Default)]
pub(super) struct State {
    touched: BTreeMap<u64, Touched>,
    /// Free runs found and not yet handed out.
    found: VecDeque<(u64, usize, usize)>,
    /// The same, kept for large writes, so that what is written in one piece lies in one piece.
    long: VecDeque<(u64, usize, usize)>,
    /// Longest runs first: the least run searched for now.
    class: u16,
    cursor: u64,
    /// Data blocks taken since the last durable checkpoint.
    taken: u64,
    /// Promised to writers, not yet taken.
    claimed: u64,
    /// Free chunks that data has opened since the last durable checkpoint.
    pub(super) opened: u64,
    /// Free chunks that the checkpoint under way uses for metadata.
    meta_opened: Vec<u64>,
    /// Chunks whose pages are damaged, and their free blocks: not offered.
    damaged: BTreeSet<u64>,
    lost: u64,
    /// Chunks whose checksum page had to be computed again: the next checkpoint writes it.
    rebuilt: BTreeSet<u64>,
}

/// Blocks of the pool by use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct PoolBlocks {
    pub(crate) total: u64,
    pub(crate) fixed: u64,
    pub(crate) data_used: u64,
    pub(crate) meta_used: u64,
    pub(crate) free: u64,
    pub(crate) reserved: u64,
    /// What the pool may grow to.
    pub(crate) limit: u64,
}

/// Blocks promised to a writer. Dropping it gives back what was not taken.
#[must_use]
pub(crate) struct Claim<'a> {
    space: &'a Space,
    pub(crate) left: u64,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.space.state.lock().claimed -= self.left;
    }
}

/// Space of a pool.
pub(crate) struct Space {
    pub(crate) geometry: Geometry,
    pub(crate) store: Arc<Store>,
    pub(crate) index: RwLock<IndexRoot>,
    pub(super) state: Mutex<State>,
    /// Held while looking for free runs, so that nobody looks twice and `state` is free meanwhile.
    refill: Mutex<()>,
    pub(super) limit_bytes: u64,
    /// The engine's latch.
    poisoned: Arc<AtomicBool>,
    /// Nodes that may be dirty at once: twice this, and pages, are reserved for metadata (P7).
    pub(crate) dirty_limit: u64,
    /// So little is left for metadata that data may not even fill holes (see [`metadata_is_short`](Self::metadata_is_short)).
    /// Metadata grows by checkpoints, so each of them looks.
    pub(super) tight: AtomicBool,
    /// The device refused to grow when it was last asked: what is free counts within its present size.
    pub(super) full_host: AtomicBool,
    host_end: AtomicU64,
    /// Chunks whose pages are held in memory until the next checkpoint.
    touched: AtomicU64,
}

impl Space {
    pub(crate) fn new(
        geometry: Geometry,
        store: Arc<Store>,
        index: IndexRoot,
        limit_bytes: u64,
        dirty_limit: u64,
        poisoned: Arc<AtomicBool>,
    ) -> Self {
        let host_end = AtomicU64::new(geometry.bytes_for(index.chunks));
        store.set_end(geometry.bytes_for(index.chunks) / BLOCK_BYTES);
        let state = State { class: geometry.blocks_per_chunk as u16, ..State::default() };
        let mut space = Self {
            geometry,
            store,
            index: RwLock::new(index),
            state: Mutex::new(state),
            refill: Mutex::new(()),
            limit_bytes,
            poisoned,
            dirty_limit,
            tight: AtomicBool::new(false),
            full_host: AtomicBool::new(false),
            host_end,
            touched: AtomicU64::new(0),
        };
        space.dirty_limit = space.affordable(dirty_limit);
        let tight = space.is_short(&space.index.read(), &space.state.lock(), GROWTH_QUARTERS, 0);
        space.tight.store(tight, Ordering::Relaxed);
        space
    }

    /// Chunks whose pages the next checkpoint has to write. Each counts as a dirty node does.
    pub(crate) fn touched_chunks(&self) -> u64 {
        self.touched.load(Ordering::Relaxed)
    }

    fn free_chunks_for_data(&self, index: &IndexRoot, s: &State) -> u64 {
        let bpc = self.geometry.blocks_per_chunk;
        let free = index.chunks - index.totals.data_chunks - index.totals.meta_chunks;
        let free = free.saturating_sub(s.opened + s.meta_opened.len() as u64);
        let reserve = self.reserve_blocks(index.chunks);
        let reserve = (reserve + reserve / 2).saturating_sub(index.totals.meta_free);
        free.saturating_sub(reserve.div_ceil(bpc))
    }

    fn available(&self, index: &IndexRoot, s: &State) -> u64 {
        let bpc = self.geometry.blocks_per_chunk;
        let in_chunks = index.totals.data_free + s.opened * bpc;
        (in_chunks + self.free_chunks_for_data(index, s) * bpc).saturating_sub(s.taken + s.claimed + s.lost)
    }

    /// Promises `blocks` data blocks, growing the pool if it must and may.
    pub(crate) fn claim(&self, blocks: u64) -> Result<Claim<'_>> {
        loop {
            let (available, chunks) = {
                let index = self.index.read();
                let mut s = self.state.lock();
                let available = self.available(&index, &s);
                if available >= blocks {
                    s.claimed += blocks;
                    return Ok(Claim { space: self, left: blocks });
                }
                (available, index.chunks)
            };
            if !self.grow(chunks, blocks - available)? {
                return Err(Error::OutOfSpace {
                    needed_bytes: blocks * BLOCK_BYTES,
                    available_bytes: available * BLOCK_BYTES,
                });
            }
        }
    }

    /// Adds `blocks` to a claim, or none if they cannot be had without growing. Returns how many.
    pub(crate) fn claim_more(&self, claim: &mut Claim<'_>, blocks: u64) -> u64 {
        let index = self.index.read();
        let mut s = self.state.lock();
        if self.available(&index, &s) < blocks {
            return 0;
        }
        s.claimed += blocks;
        claim.left += blocks;
        blocks
    }

    /// Gives up what a claim has beyond `left`.
    pub(crate) fn claim_less(&self, claim: &mut Claim<'_>, left: u64) {
        let surplus = claim.left.saturating_sub(left);
        self.state.lock().claimed -= surplus;
        claim.left -= surplus;
    }

    /// Takes back blocks that were handed out and never named.
    pub(crate) fn give_back(&self, run: &Run) {
        let mut s = self.state.lock();
        let Some((chunk, at)) = self.geometry.locate(run.addr) else { return };
        let len = run.len as usize;
        if let Some(t) = s.touched.get_mut(&chunk) {
            t.taken.remove(at, len);
            s.taken -= run.len;
            s.found.push_front((chunk, at, len));
        }
    }

    /// Blocks that a write could still have without growing.
    pub(crate) fn available_blocks(&self) -> u64 {
        self.available(&self.index.read(), &self.state.lock())
    }

    /// Adds chunks: a step of an eighth of the pool, at least what is asked for, within the limit.
    /// False when the limit or the device does not allow one more.
    fn grow(&self, seen_chunks: u64, blocks: u64) -> Result<bool> {
        let _one = self.refill.lock();
        if self.index.read().chunks != seen_chunks {
            return Ok(true);
        }
        self.grow_now(blocks)
    }

    /// Asks a device that was full again. True when the pool grew.
    pub(crate) fn grow_again(&self) -> Result<bool> {
        let chunks = self.index.read().chunks;
        Ok(self.full_host.load(Ordering::Relaxed) && self.grow(chunks, 1)?)
    }

    /// As [`grow`](Self::grow), with `refill` held by the caller.
    fn grow_now(&self, blocks: u64) -> Result<bool> {
        let now = self.index.read().chunks;
        if !self.store.device.can_grow() {
            return Ok(false);
        }
        let g = &self.geometry;
        let chunk_bytes = g.blocks_per_chunk * BLOCK_BYTES;
        let most = (self.limit_bytes.saturating_sub(g.first_chunk_block * BLOCK_BYTES)) / chunk_bytes;
        let step = (now / 8).clamp(1, 64).max(blocks.div_ceil(g.blocks_per_chunk) + 1);
        let mut want = (now + step).min(most);
        while want > now {
            let (from, to) = (g.bytes_for(now), g.bytes_for(want));
            // The host's space and the new length are durable before anything can refer to them.
            let grown = self.store.device.allocate(from, to - from);
            if grown.is_ok() {
                // A failed sync may have dropped anybody's data: it latches the pool like any other.
                self.store.device.sync().map_err(|source| {
                    self.poisoned.store(true, Ordering::Release);
                    Error::Io { op: "sync", offset: from, len: to - from, source }
                })?;
            }
            match grown {
                Ok(()) => {
                    event!(chunks = want, "pool grew");
                    self.index.write().chunks = want;
                    self.host_end.store(to, Ordering::Relaxed);
                    self.store.set_end(to / BLOCK_BYTES);
                    let mut s = self.state.lock();
                    s.class = g.blocks_per_chunk as u16;
                    s.cursor = now;
                    self.full_host.store(false, Ordering::Relaxed);
                    return Ok(true);
                }
                Err(e) if e.kind() == std::io::ErrorKind::StorageFull && want > now + 1 => want = now + 1,
                Err(e) if e.kind() == std::io::ErrorKind::StorageFull => {
                    self.full_host.store(true, Ordering::Relaxed);
                    self.tight.store(true, Ordering::Relaxed);
                    return Ok(false);
                }
                Err(source) => {
                    return Err(Error::Io { op: "allocate", offset: from, len: to - from, source });
                }
            }
        }
        Ok(false)
    }

    pub(crate) fn entry(&self, chunk: u64) -> Result<ChunkEntry> {
        let root = self.index.read().root;
        index::entry(&self.store, &self.geometry, root.as_ref(), chunk)
    }

    /// The next checkpoint writes the checksum page of this chunk anew.
    pub(super) fn rewrite_soon(&self, chunk: u64) {
        self.state.lock().rebuilt.insert(chunk);
    }

    /// Checksums of the blocks of `chunk`.
    #[inline]
    pub(crate) fn checksums(&self, chunk: u64) -> Result<Arc<ChecksumPage>> {
        match self.checksums_at_hand(chunk) {
            Some(page) => Ok(page),
            None => self.load_checksums(chunk),
        }
    }

    /// As [`checksums`](Self::checksums), if that needs no reading.
    #[inline]
    pub(crate) fn checksums_at_hand(&self, chunk: u64) -> Option<Arc<ChecksumPage>> {
        self.store.page::<ChecksumPage>(crate::node::CHECKSUM_KEY | chunk, 0)
    }

    fn load_checksums(&self, chunk: u64) -> Result<Arc<ChecksumPage>> {
        if let Some(t) = self.state.lock().touched.get(&chunk) {
            return Ok(Arc::clone(&t.checksums));
        }
        let e = self.entry(chunk)?;
        let page = Arc::new(self.stored_checksums(chunk, &e)?);
        // Under the lock: whoever touches the chunk and whoever reads it must share one page.
        let s = self.state.lock();
        let page = match s.touched.get(&chunk) {
            Some(t) => Arc::clone(&t.checksums),
            None => self.store.page(crate::node::CHECKSUM_KEY | chunk, 0).unwrap_or(page),
        };
        self.store.keep(crate::node::CHECKSUM_KEY | chunk, 0, BLOCK, Arc::clone(&page));
        Ok(page)
    }

    /// Looks for free runs if none are at hand, so that [`take`](Self::take) need not read the device while
    /// its caller holds a lock.
    pub(crate) fn prepare(&self) -> Result<()> {
        if self.state.lock().found.is_empty() {
            self.find_more()?;
        }
        Ok(())
    }

    /// Hands out a free run of at most `most` blocks against a claim. A writer that has `wanted` blocks to write
    /// in one piece gets a long run while there are some.
    pub(crate) fn take(&self, claim: &mut Claim<'_>, wanted: u64, most: u64) -> Result<Run> {
        debug_assert!(claim.left > 0, "whoever takes has claimed");
        if claim.left == 0 {
            return Err(Error::OutOfSpace { needed_bytes: BLOCK_BYTES, available_bytes: 0 });
        }
        let most = most.min(claim.left).max(1);
        let mut long = wanted >= u64::from(SHORT);
        loop {
            if long && !self.find_long()? {
                long = false;
            }
            {
                let mut s = self.state.lock();
                let s = &mut *s;
                let (first, second) =
                    if long { (&mut s.long, &mut s.found) } else { (&mut s.found, &mut s.long) };
                let from = if first.is_empty() { second } else { first };
                if let Some((chunk, start, len)) = from.pop_front() {
                    let n = len.min(most as usize);
                    if n < len {
                        from.push_front((chunk, start + n, len - n));
                    }
                    let Some(t) = s.touched.get_mut(&chunk) else { continue };
                    t.taken.insert(start, n);
                    let run = Run {
                        addr: self.geometry.chunk_start(chunk) + start as u64,
                        len: n as u64,
                        checksums: Arc::clone(&t.checksums),
                    };
                    s.taken += n as u64;
                    s.claimed -= n as u64;
                    claim.left -= n as u64;
                    return Ok(run);
                }
            }
            let chunks = self.index.read().chunks;
            if !self.find_more()? && !self.grow(chunks, claim.left)? {
                return Err(Error::OutOfSpace { needed_bytes: claim.left * BLOCK_BYTES, available_bytes: 0 });
            }
        }
    }

    /// Makes sure that a long run is at hand: one that was found, or new space, unless holes are most of the
    /// pool already. False when there is none to be had.
    fn find_long(&self) -> Result<bool> {
        loop {
            let at_hand = |s: &State| {
                !s.long.is_empty() || s.found.front().is_some_and(|run| run.2 >= usize::from(SHORT))
            };
            if at_hand(&self.state.lock()) {
                return Ok(true);
            }
            let _one = self.refill.lock();
            let index = *self.index.read();
            if at_hand(&self.state.lock()) {
                return Ok(true);
            }
            let may_open = self.free_chunks_for_data(&index, &self.state.lock()) > 0;
            let chunk = if may_open { self.search_free(&index, 0)? } else { None };
            if let Some(chunk) = chunk {
                self.touch(chunk)?;
                let mut s = self.state.lock();
                let s = &mut *s;
                if let Some(t) = s.touched.get(&chunk) {
                    s.long.extend(t.base_free.runs().map(|(at, len)| (chunk, at, len)));
                }
                continue;
            }
            let bpc = self.geometry.blocks_per_chunk;
            let used = index.totals.data_chunks * bpc - index.totals.data_free;
            if index.totals.data_free >= used || !self.grow_now(bpc)? {
                return Ok(false);
            }
        }
    }

    /// Finds the next chunk with free runs, longest classes first. False when there is none left.
    fn find_more(&self) -> Result<bool> {
        let _one = self.refill.lock();
        let bpc = self.geometry.blocks_per_chunk as u16;
        loop {
            let index = *self.index.read();
            let (class, cursor, may_open) = {
                let s = self.state.lock();
                if !(s.found.is_empty() && s.long.is_empty()) {
                    return Ok(true);
                }
                (s.class, s.cursor, self.free_chunks_for_data(&index, &s) > 0)
            };
            let (g, store, root) = (&self.geometry, &self.store, index.root.as_ref());
            let mut hit = index::search(store, g, root, index.chunks, cursor, Want::Data(class))?;
            if class == bpc && may_open {
                let free = self.search_free(&index, cursor)?;
                hit = [hit, free].into_iter().flatten().min();
            }
            let Some(chunk) = hit else {
                if class == SHORT && self.has_few_holes(&index) && self.grow_now(bpc.into())? {
                    continue;
                }
                if class == 1 {
                    // A promise stands even if the reserve has grown since it was given.
                    return match self.search_free(&index, 0)? {
                        Some(chunk) => self.open(chunk, bpc).map(|()| true),
                        None => Ok(false),
                    };
                }
                let mut s = self.state.lock();
                s.class = class / 2;
                s.cursor = 0;
                continue;
            };
            self.open(chunk, class)?;
        }
    }

    /// Whether scattered free blocks are few enough to be left alone while the pool may still grow: large
    /// writes into new space are many times faster than small ones into holes. So a pool that is overwritten
    /// at random takes up to half more than what it holds before its holes are filled.
    fn has_few_holes(&self, index: &IndexRoot) -> bool {
        let bpc = self.geometry.blocks_per_chunk;
        let used = index.totals.data_chunks * bpc - index.totals.data_free;
        index.totals.data_free < used / 2
    }

    /// Grows while nobody waits for it, when the space that large writes want runs out. True if it did.
    pub(crate) fn grow_ahead(&self) -> Result<bool> {
        let index = *self.index.read();
        let free = self.free_chunks_for_data(&index, &self.state.lock());
        let wanted = (index.totals.data_chunks / 8).min(AHEAD_CHUNKS);
        if free >= wanted || !self.has_few_holes(&index) {
            return Ok(false);
        }
        self.grow(index.chunks, wanted * self.geometry.blocks_per_chunk)
    }

    /// The next chunk that is free and not opened since the checkpoint.
    fn search_free(&self, index: &IndexRoot, from: u64) -> Result<Option<u64>> {
        let mut from = from;
        loop {
            let root = index.root.as_ref();
            let hit = index::search(&self.store, &self.geometry, root, index.chunks, from, Want::Free)?;
            let Some(chunk) = hit else { return Ok(None) };
            let s = self.state.lock();
            if !s.touched.contains_key(&chunk) && !s.meta_opened.contains(&chunk) {
                return Ok(Some(chunk));
            }
            from = chunk + 1;
        }
    }

    /// Offers the free runs of `chunk` that are at least `class` long.
    fn open(&self, chunk: u64, class: u16) -> Result<()> {
        self.touch(chunk)?;
        let mut s = self.state.lock();
        s.cursor = chunk + 1;
        let s = &mut *s;
        if let Some(t) = s.touched.get(&chunk) {
            let mut free = t.base_free.clone();
            free.subtract(&t.frozen);
            free.subtract(&t.taken);
            s.found.extend(free.runs().filter(|r| r.1 >= class as usize).map(|(at, len)| (chunk, at, len)));
        }
        Ok(())
    }

    /// Brings what is known of a data chunk into memory; a free chunk becomes a data chunk.
    fn touch(&self, chunk: u64) -> Result<()> {
        if self.state.lock().touched.contains_key(&chunk) {
            return Ok(());
        }
        let e = self.entry(chunk)?;
        if e.kind == ChunkKind::Meta {
            return Err(Corruption::new("chunk", chunk, "kind", "data or free", "metadata").into());
        }
        let loaded =
            self.counts_of(&e).and_then(|counts| Ok((Bits::free_in(&counts), self.checksums(chunk)?)));
        let (base_free, checksums) = match loaded {
            Ok(loaded) => loaded,
            Err(Error::Corrupt(_)) => {
                // Nothing of this chunk can be handed out; whatever of it can be verified stays readable.
                let mut s = self.state.lock();
                if s.damaged.insert(chunk) {
                    s.lost += u64::from(e.free);
                }
                s.cursor = s.cursor.max(chunk + 1);
                return Ok(());
            }
            Err(other) => return Err(other),
        };
        let mut s = self.state.lock();
        let fresh = e.kind == ChunkKind::Free;
        if s.touched.contains_key(&chunk) {
            return Ok(());
        }
        // Readers may have loaded the page again since: everybody must share one.
        let checksums = self.store.page(crate::node::CHECKSUM_KEY | chunk, 0).unwrap_or(checksums);
        // With room for the places of its blocks in the run buffers.
        self.store.keep(crate::node::CHECKSUM_KEY | chunk, 0, 2 * BLOCK, Arc::clone(&checksums));
        if fresh {
            s.opened += 1;
        }
        let touched = Touched { base_free, frozen: Bits::none(), taken: Bits::none(), checksums, fresh };
        s.touched.insert(chunk, touched);
        self.touched.store(s.touched.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Recovery: a record names these blocks (R1: they must be free in the checkpoint; R3: taken before
    /// anything is allocated). Sets their checksums.
    pub(crate) fn adopt(&self, addr: BlockAddr, crcs: &[u32]) -> Result<()> {
        let index = *self.index.read();
        let bad = |found: String| {
            Error::from(Corruption::new(
                "log record",
                addr.raw(),
                "data run",
                "free blocks of a chunk",
                found,
            ))
        };
        let Some((chunk, start)) = self.geometry.locate(addr).filter(|(c, _)| *c < index.chunks) else {
            return Err(bad("outside the pool".into()));
        };
        if start + crcs.len() > self.geometry.blocks_per_chunk as usize {
            return Err(bad("across chunks".into()));
        }
        self.touch(chunk)?;
        let mut s = self.state.lock();
        let Some(t) = s.touched.get_mut(&chunk) else { return Err(bad("in a damaged chunk".into())) };
        let mut fresh = 0;
        for (i, crc) in crcs.iter().enumerate() {
            if !t.base_free.get(start + i) {
                return Err(bad(format!("block {} in use", start + i)));
            }
            fresh += u64::from(!t.taken.get(start + i));
            t.checksums.set(start + i, *crc);
        }
        t.taken.insert(start, crcs.len());
        s.taken += fresh;
        Ok(())
    }

    /// Recovery: a dropped record names these blocks. They stay out of use until the checkpoint that ends
    /// recovery is durable, so that being cut again leads to the same decision (R3).
    pub(crate) fn reserve(&self, addr: BlockAddr, len: u64) {
        let chunks = self.index.read().chunks;
        let g = &self.geometry;
        let Some((chunk, start)) =
            g.locate(addr).filter(|(c, at)| *c < chunks && *at as u64 + len <= g.blocks_per_chunk)
        else {
            return;
        };
        if self.touch(chunk).is_err() {
            return;
        }
        let mut s = self.state.lock();
        let s = &mut *s;
        if let Some(t) = s.touched.get_mut(&chunk) {
            for i in start..start + len as usize {
                if t.base_free.get(i) && !t.taken.get(i) {
                    t.taken.insert(i, 1);
                    s.taken += 1;
                }
            }
        }
    }

    /// The freeze of a checkpoint: what is taken so far belongs to it.
    pub(crate) fn freeze(&self) {
        let mut s = self.state.lock();
        for t in s.touched.values_mut() {
            t.frozen.add(&t.taken);
            t.taken = Bits::none();
        }
    }

    /// Data chunks with blocks taken before the freeze, with their checksums; and some of those whose page
    /// needs to be written anew.
    pub(crate) fn frozen_chunks(&self) -> Vec<(u64, Arc<ChecksumPage>)> {
        let (mut chunks, healed): (Vec<_>, Vec<_>) = {
            let mut s = self.state.lock();
            let frozen = s.touched.iter().filter(|(_, t)| !t.frozen.is_empty());
            let chunks = frozen.map(|(c, t)| (*c, Arc::clone(&t.checksums))).collect();
            let healed = (0..HEALED_CHUNKS).map_while(|_| s.rebuilt.pop_first()).collect();
            (chunks, healed)
        };
        // What is beyond repair by now stays as it is.
        chunks.extend(healed.into_iter().filter_map(|c| self.checksums(c).ok().map(|page| (c, page))));
        chunks
    }

    /// A free chunk for metadata, from the reserve too.
    pub(crate) fn open_meta(&self) -> Result<Option<u64>> {
        loop {
            let index = {
                let _one = self.refill.lock();
                let index = *self.index.read();
                if let Some(chunk) = self.search_free(&index, 0)? {
                    self.state.lock().meta_opened.push(chunk);
                    return Ok(Some(chunk));
                }
                index
            };
            if !self.grow(index.chunks, 1)? {
                return Ok(None);
            }
        }
    }

    /// A metadata chunk with a free run of at least `run` blocks, from chunk `from` on.
    pub(crate) fn search_meta(&self, from: u64, run: u16) -> Result<Option<u64>> {
        let index = *self.index.read();
        index::search(&self.store, &self.geometry, index.root.as_ref(), index.chunks, from, Want::Meta(run))
    }

    /// The checkpoint failed: everything stays taken, nothing was given back.
    pub(crate) fn thaw(&self) {
        let mut s = self.state.lock();
        for t in s.touched.values_mut() {
            t.taken.add(&t.frozen);
            t.frozen = Bits::none();
        }
        s.meta_opened.clear();
    }

    /// The checkpoint is durable: its counts say what is free. Called when no reader can still be looking
    /// at a block that it freed.
    pub(crate) fn settle(&self, root: Option<NodeRef>, totals: Totals) -> Result<()> {
        // Chunks are only touched under this lock: the set stands still while its new counts are fetched.
        let _one = self.refill.lock();
        let keys: Vec<u64> = self.state.lock().touched.keys().copied().collect();
        let mut fresh = BTreeMap::new();
        for chunk in keys {
            let e = index::entry(&self.store, &self.geometry, root.as_ref(), chunk)?;
            fresh.insert(chunk, (Bits::free_in(&self.counts_of(&e)?), e.kind == ChunkKind::Free));
        }
        // Sums and sets change at one instant: a claim must not see one without the other.
        let mut index = self.index.write();
        let mut s = self.state.lock();
        index.root = root;
        index.totals = totals;
        debug_assert!(totals.data_chunks + totals.meta_chunks <= index.chunks);
        let s = &mut *s;
        s.meta_opened.clear();
        s.found.clear();
        s.long.clear();
        s.class = self.geometry.blocks_per_chunk as u16;
        s.cursor = 0;
        s.lost = 0;
        s.damaged.clear();
        // Blocks taken after the freeze stay taken, over the new counts.
        s.touched.retain(|_, t| !t.taken.is_empty());
        self.touched.store(s.touched.len() as u64, Ordering::Relaxed);
        (s.taken, s.opened) = (0, 0);
        for (chunk, t) in &mut s.touched {
            if let Some((base, free)) = fresh.remove(chunk) {
                t.base_free = base;
                t.fresh = free;
            }
            t.frozen = Bits::none();
            s.taken += t.taken.count() as u64;
            s.opened += u64::from(t.fresh);
            if t.fresh {
                // The index calls it free, searches pass over it because it is touched: offer it here.
                let mut free = t.base_free.clone();
                free.subtract(&t.taken);
                s.found.extend(free.runs().map(|(at, len)| (*chunk, at, len)));
            }
        }
        self.tight.store(self.is_short(&index, s, GROWTH_QUARTERS, 0), Ordering::Relaxed);
        Ok(())
    }

    /// Blocks taken since the last durable checkpoint.
    pub(crate) fn taken_blocks(&self) -> u64 {
        self.state.lock().taken
    }

    pub(crate) fn blocks(&self) -> PoolBlocks {
        let index = *self.index.read();
        let s = self.state.lock();
        let bpc = self.geometry.blocks_per_chunk;
        let t = index.totals;
        let total = self.geometry.first_chunk_block + index.chunks * bpc;
        let data_used = t.data_chunks * bpc - t.data_free + s.taken;
        let meta_used = t.meta_chunks * bpc - t.meta_free;
        let free = total - self.geometry.first_chunk_block - data_used - meta_used;
        let reserved = free.saturating_sub(self.available(&index, &s));
        let (fixed, limit) = (self.geometry.first_chunk_block, self.limit_bytes / BLOCK_BYTES);
        PoolBlocks { total, fixed, data_used, meta_used, free, reserved, limit }
    }
}
