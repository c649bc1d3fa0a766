//! Run buffers: blocks wait in memory and reach the device as large writes.
//!
//! - F1 A block's page says in which slot it lies from before any map names it until the device has it, and
//!   longer, until the slot is used again. A reader looks there first, and once more under the slot's lock.
//! - F2 A slot below the seal of its frame never changes again until the frame is empty: a commit or a root
//!   names it. Above the seal only the writer's own root does, and the block may be changed in place.
//! - F3 The seal moves under the gate, when no writer is between a lease and its map; or to the end of a
//!   frame that is full, to write it early.
//! - F4 Blocks set aside for the next leases of a frame are named by nobody. A freeze gives them back first.
//!
//! Frames whose blocks the device has are kept as long as there is no better use for them: what was just
//! written is what is read next, and large writes go past the host's page cache. Blocks that have been read from
//! such a frame are asked for by the host's cache when the frame is used again: they would be read from the device
//! the next time.

use std::collections::VecDeque;
use std::sync::Arc;

use super::pins::thread_shard;
use crate::alloc::{ChecksumPage, Claim, Run, Space};
use crate::device::{Device, SlotBuffer};
use crate::error::{Error, Result};
use crate::format::block_crc;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Mutex, RwLock};
use crate::units::{BLOCK, BLOCK_BYTES, BlockAddr};

/// Blocks in one frame: 1 MiB. Few under a model, so that frames fill and come round again.
pub(crate) const SLOTS: usize = if cfg!(snapvol_shuttle) { 4 } else { 256 };
/// Frames filled at once, by different threads.
const SHARDS: usize = 4;
/// Blocks that the host's cache is to be asked for, at most; what is beyond is read from the device when it is needed.
const WANTED: usize = 2048;
/// Blocks set aside for the next leases, so that most of them ask nobody.
const AHEAD: u64 = if cfg!(snapvol_shuttle) { 2 } else { 64 };

/// Consecutive blocks in consecutive slots.
struct Piece {
    addr: BlockAddr,
    len: usize,
    slot: usize,
    /// Index of the first block in its chunk.
    index: usize,
    page: Arc<ChecksumPage>,
}

#[derive(Default)]
struct Fill {
    used: usize,
    pieces: Vec<Piece>,
    /// Taken, and waiting to be leased (F4).
    ahead: Option<Run>,
}

/// Up to 256 blocks on their way to the device.
pub(crate) struct Frame {
    number: usize,
    slots: SlotBuffer,
    fill: Mutex<Fill>,
    /// Slots below this do not change any more (F2).
    sealed: AtomicUsize,
    /// Leased and not yet finished: such a frame is not written early.
    unfilled: AtomicUsize,
    /// The device has the slots below this.
    written: AtomicUsize,
    /// Held while the device is being written.
    writing: Mutex<()>,
    /// Slots that were read after they had been written, a bit each.
    read: [std::sync::atomic::AtomicU64; SLOTS.div_ceil(64)],
}

impl Frame {
    fn new(number: usize) -> Result<Self> {
        Ok(Self {
            number,
            slots: SlotBuffer::new(SLOTS)?,
            fill: Mutex::default(),
            sealed: AtomicUsize::new(0),
            unfilled: AtomicUsize::new(0),
            written: AtomicUsize::new(0),
            writing: Mutex::new(()),
            read: Default::default(),
        })
    }

    /// What the pages of its blocks say about a slot.
    fn place(&self, slot: usize) -> u32 {
        (self.number * SLOTS + slot + 1) as u32
    }

    /// Adds a run to what the frame holds.
    fn add(&self, fill: &mut Fill, run: &Run, index: usize) -> usize {
        let (slot, len) = (fill.used, run.len as usize);
        match fill.pieces.last_mut() {
            Some(p) if p.addr + p.len as u64 == run.addr && Arc::ptr_eq(&p.page, &run.checksums) => {
                p.len += len;
            }
            _ => {
                let page = Arc::clone(&run.checksums);
                fill.pieces.push(Piece { addr: run.addr, len, slot, index, page });
            }
        }
        fill.used += len;
        slot
    }

    /// Writes what is sealed and not yet written. True when the frame is full and all of it is on the device.
    fn write(&self, device: &dyn Device) -> Result<bool> {
        let _writing = self.writing.lock();
        let full = self.fill.lock().used == SLOTS;
        if full && self.unfilled.load(Ordering::SeqCst) == 0 {
            self.sealed.store(SLOTS, Ordering::SeqCst);
        }
        let to = self.sealed.load(Ordering::SeqCst);
        let mut from = self.written.load(Ordering::SeqCst);
        while from < to {
            let (slot, len, addr) = {
                let fill = self.fill.lock();
                let at = fill.pieces.partition_point(|p| p.slot + p.len <= from);
                let Some(p) = fill.pieces.get(at) else { break };
                (from, (p.slot + p.len).min(to) - from, p.addr + (from - p.slot) as u64)
            };
            let offset = addr.byte_offset();
            let write = |bytes: &[u8]| device.write_at(bytes, offset);
            let wrote = self.slots.with_range(slot, len, write);
            wrote.map_err(|source| Error::Io { op: "write", offset, len: (len * BLOCK) as u64, source })?;
            from += len;
            self.written.store(from, Ordering::SeqCst);
        }
        Ok(from == SLOTS)
    }

    /// Notes that a slot was read, if the device has it.
    #[inline]
    fn was_read(&self, slot: usize) {
        let (word, bit) = (&self.read[slot / 64], 1 << (slot % 64));
        if slot < self.written.load(Ordering::Relaxed) && word.load(Ordering::Relaxed) & bit == 0 {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// Makes the frame empty. The device has all of its blocks. Those that were read are added to `wanted`.
    fn clear(&self, wanted: &mut Vec<BlockAddr>) {
        // Whoever still believes that there is something to write must not do it half before and half after.
        let _writing = self.writing.lock();
        let mut fill = self.fill.lock();
        for p in fill.pieces.drain(..) {
            for i in 0..p.len {
                p.page.leave(p.index + i, self.place(p.slot + i));
                let (word, bit) = (&self.read[(p.slot + i) / 64], 1 << ((p.slot + i) % 64));
                if word.load(Ordering::Relaxed) & bit != 0 && wanted.len() < wanted.capacity() {
                    wanted.push(p.addr + i as u64);
                }
            }
        }
        self.read.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        fill.used = 0;
        self.sealed.store(0, Ordering::SeqCst);
        self.written.store(0, Ordering::SeqCst);
    }
}

/// Where a writer may put its next blocks.
pub(crate) struct Lease {
    frame: Arc<Frame>,
    slot: usize,
    addr: BlockAddr,
    blocks: usize,
    page: Arc<ChecksumPage>,
    index: usize,
}

impl Drop for Lease {
    fn drop(&mut self) {
        // A writer that gave up leaves slots that nobody names; they may be written as they are.
        self.frame.unfilled.fetch_sub(self.blocks, Ordering::SeqCst);
    }
}

impl Lease {
    pub(crate) fn addr(&self) -> BlockAddr {
        self.addr
    }
    pub(crate) fn blocks(&self) -> u64 {
        self.blocks as u64
    }
    /// Fills block `i` of the lease, and says where it is (F1).
    pub(crate) fn fill(&self, i: usize, bytes: &[u8]) {
        self.frame.slots.fill(self.slot + i, |slot| slot.copy_from_slice(bytes));
        self.page.enter(self.index + i, self.frame.place(self.slot + i));
    }

    /// Has the one block of the lease filled by `fill`, which says whether it could.
    pub(crate) fn fill_by(&self, fill: impl FnOnce(&mut [u8]) -> bool) -> bool {
        let filled = self.frame.slots.fill(self.slot, fill);
        if filled {
            self.page.enter(self.index, self.frame.place(self.slot));
        }
        filled
    }

    /// Sets the checksums of what has been filled, before the gate is left. Not while filling: the copy is on
    /// its way to memory then, and the checksum would wait for it.
    pub(crate) fn finish(self) {
        for i in 0..self.blocks {
            self.frame.slots.with(self.slot + i, |slot| self.page.set(self.index + i, block_crc(slot)));
        }
    }
}

#[derive(Default)]
struct Queue {
    /// Full, oldest first; the device does not have all of it.
    full: VecDeque<Arc<Frame>>,
    /// The device has all of it, oldest first.
    kept: VecDeque<Arc<Frame>>,
}

/// All blocks that the device does not have yet, and some that it has.
pub(crate) struct Buffers {
    /// By number.
    frames: RwLock<Vec<Arc<Frame>>>,
    /// Being filled, each by some of the threads.
    shards: Box<[Mutex<Option<Arc<Frame>>>]>,
    queue: Mutex<Queue>,
    full: AtomicUsize,
    /// Blocks that were read lately and are in no frame any more.
    wanted: Mutex<Vec<BlockAddr>>,
    /// Frames that the cache's limit allows.
    most: usize,
    /// Bytes leased since the last sync.
    pub(crate) unsynced: AtomicU64,
}

impl Buffers {
    /// Buffers of about `bytes` of memory, at least a few frames.
    pub(crate) fn new(bytes: u64) -> Self {
        let most = ((bytes / (SLOTS * BLOCK) as u64) as usize).max(4);
        Self {
            frames: RwLock::default(),
            shards: (0..SHARDS.min(most / 4)).map(|_| Mutex::new(None)).collect(),
            queue: Mutex::default(),
            full: AtomicUsize::new(0),
            wanted: Mutex::new(Vec::with_capacity(WANTED)),
            most,
            unsynced: AtomicU64::new(0),
        }
    }

    /// An empty frame: a new one while there are few, else the one that was written longest ago. Writers make
    /// sure beforehand that there is one ([`is_pressed`](Self::is_pressed)); of those that come at once some
    /// may get one more than the limit says.
    fn fresh(&self) -> Result<Arc<Frame>> {
        let mut queue = self.queue.lock();
        let enough =
            self.frames.read().len() >= if queue.kept.len() >= 4 { self.most / 2 } else { self.most };
        if let Some(frame) = enough.then(|| queue.kept.pop_front()).flatten() {
            frame.clear(&mut self.wanted.lock());
            return Ok(frame);
        }
        let mut frames = self.frames.write();
        let frame = Arc::new(Frame::new(frames.len())?);
        frames.push(Arc::clone(&frame));
        Ok(frame)
    }

    /// The frame of a shard, or another one when it is full.
    fn with_room<'a>(&self, current: &'a mut Option<Arc<Frame>>) -> Result<&'a Arc<Frame>> {
        if current.as_ref().is_some_and(|f| f.fill.lock().used == SLOTS) {
            // The next one first: without it nothing has changed.
            let next = self.fresh()?;
            if let Some(full) = current.replace(Arc::clone(&next)) {
                let ahead = full.fill.lock().ahead.take();
                next.fill.lock().ahead = ahead;
                let mut queue = self.queue.lock();
                queue.full.push_back(full);
                self.full.store(queue.full.len(), Ordering::SeqCst);
            }
        }
        match current {
            Some(frame) => Ok(frame),
            None => Ok(current.insert(self.fresh()?)),
        }
    }

    /// Up to `most` blocks and the slots for them: what is set aside, else against the claim. `None` when
    /// nothing is set aside and there is no claim.
    pub(crate) fn lease(
        &self,
        space: &Space,
        claim: Option<&mut Claim<'_>>,
        most: u64,
    ) -> Result<Option<Lease>> {
        let mut current = self.shards[thread_shard() % self.shards.len()].lock();
        let frame = self.with_room(&mut current)?;
        let mut fill = frame.fill.lock();
        let room = (SLOTS - fill.used) as u64;
        let mut run = match (fill.ahead.take(), claim) {
            (Some(run), _) => run,
            (None, None) => return Ok(None),
            (None, Some(claim)) => {
                // Lookups that may wait for the device come before anything is promised to this frame.
                drop(fill);
                space.prepare()?;
                // What is set aside has a claim of its own: a freeze may take it away again, and the writer's must
                // last for all that it has to write.
                let (own, now) = (claim.left, most.min(room));
                let more = space.claim_more(claim, AHEAD.saturating_sub(now));
                let run = space.take(claim, most, now + more)?;
                space.claim_less(claim, own.saturating_sub(run.len.min(now)));
                fill = frame.fill.lock();
                run
            }
        };
        let n = most.min(run.len).min(room);
        let index = space.geometry.locate(run.addr).map_or(0, |(_, at)| at);
        let ahead = Run { addr: run.addr + n, len: run.len - n, checksums: Arc::clone(&run.checksums) };
        run.len = n;
        let slot = frame.add(&mut fill, &run, index);
        fill.ahead = (ahead.len > 0).then_some(ahead);
        frame.unfilled.fetch_add(n as usize, Ordering::SeqCst);
        drop(fill);
        self.unsynced.fetch_add(n * BLOCK_BYTES, Ordering::Relaxed);
        let (addr, blocks, page) = (run.addr, n as usize, run.checksums);
        let frame = Arc::clone(frame);
        Ok(Some(Lease { frame, slot, addr, blocks, page, index }))
    }

    /// Gives blocks that are set aside back to the space (F4). With the gate held exclusively, or when space
    /// has run out.
    pub(crate) fn give_back(&self, space: &Space) {
        for shard in &self.shards {
            if let Some(frame) = &*shard.lock()
                && let Some(run) = frame.fill.lock().ahead.take()
            {
                space.give_back(&run);
            }
        }
    }

    fn frame_of(&self, place: u32) -> Option<(Arc<Frame>, usize)> {
        let at = (place as usize).checked_sub(1)?;
        Some((Arc::clone(self.frames.read().get(at / SLOTS)?), at % SLOTS))
    }

    /// Hands block `index` of the chunk to `each`, if it is in a frame. `None`: the device has it.
    #[inline]
    pub(crate) fn read<R>(
        &self,
        page: &ChecksumPage,
        index: usize,
        each: impl FnOnce(&[u8]) -> R,
    ) -> Option<R> {
        let place = page.place(index);
        let (frame, slot) = self.frame_of(place)?;
        let read = frame.slots.with(slot, |bytes| (page.place(index) == place).then(|| each(bytes)));
        frame.was_read(slot);
        read
    }

    /// Changes a block in place, if nobody but the writer's own root names it. The checksum follows.
    pub(crate) fn change(&self, page: &ChecksumPage, index: usize, each: impl FnOnce(&mut [u8])) -> bool {
        let place = page.place(index);
        let Some((frame, slot)) = self.frame_of(place) else { return false };
        // What is sealed may be on its way to the device: not to be waited for, least of all ahead of readers.
        if slot < frame.sealed.load(Ordering::SeqCst) {
            return false;
        }
        frame.slots.fill(slot, |bytes| {
            if page.place(index) != place || slot < frame.sealed.load(Ordering::SeqCst) {
                return false;
            }
            each(bytes);
            page.set(index, block_crc(bytes));
            true
        })
    }

    /// Recovery: a block that a record carried, to be served until it has been written home.
    pub(crate) fn adopt(
        &self,
        addr: BlockAddr,
        index: usize,
        bytes: &[u8],
        page: Arc<ChecksumPage>,
    ) -> Result<()> {
        let mut current = self.shards[0].lock();
        let frame = self.with_room(&mut current)?;
        let mut fill = frame.fill.lock();
        let slot = frame.add(&mut fill, &Run { addr, len: 1, checksums: Arc::clone(&page) }, index);
        frame.slots.fill(slot, |s| s.copy_from_slice(bytes));
        page.enter(index, frame.place(slot));
        Ok(())
    }

    /// From here on no block that is buffered now changes any more: something else is about to name it.
    /// The caller holds the gate (F3).
    pub(crate) fn seal(&self) {
        for frame in self.waiting() {
            let used = frame.fill.lock().used;
            frame.sealed.fetch_max(used, Ordering::SeqCst);
        }
    }

    /// Frames that are full and not on the device: another thread may write them early.
    pub(crate) fn has_full(&self) -> usize {
        self.full.load(Ordering::Relaxed)
    }

    /// Whether the next frame can only be had by writing one.
    pub(crate) fn is_pressed(&self) -> bool {
        self.has_full() + self.shards.len() >= self.most
    }

    /// Frames with blocks that the device may not have, oldest first.
    fn waiting(&self) -> Vec<Arc<Frame>> {
        // Those being filled first: one that fills up meanwhile is then seen twice rather than not at all.
        let open: Vec<_> = self.shards.iter().filter_map(|shard| shard.lock().clone()).collect();
        let mut all: Vec<_> = self.queue.lock().full.iter().cloned().collect();
        all.extend(open);
        all
    }

    /// Blocks that the device does not have.
    pub(crate) fn waiting_blocks(&self) -> usize {
        let left = |f: &Arc<Frame>| f.fill.lock().used - f.written.load(Ordering::Relaxed);
        self.waiting().iter().map(left).sum()
    }

    /// Writes every block that is sealed, and every full frame. What fails stays, to be tried again.
    pub(crate) fn write_sealed(&self, device: &dyn Device) -> Result<()> {
        for frame in self.waiting() {
            if frame.write(device)? {
                self.keep(&frame);
            }
        }
        Ok(())
    }

    /// Writes full frames until `left` remain, oldest first, those that nobody is writing before others. Stops
    /// at one that has yet to be filled by its writer.
    pub(crate) fn write_full(&self, device: &dyn Device, left: usize) -> Result<()> {
        while self.has_full() > left {
            let next = {
                let queue = self.queue.lock();
                let idle = queue.full.iter().find(|f| !f.writing.is_locked());
                idle.or(queue.full.front()).cloned()
            };
            match next {
                Some(frame) if frame.write(device)? => self.keep(&frame),
                _ => return Ok(()),
            }
        }
        Ok(())
    }

    /// Asks the host's cache for blocks that were read from a frame which is used for others now.
    pub(crate) fn want(&self, device: &dyn Device) {
        let mut blocks = {
            let mut wanted = self.wanted.lock();
            if wanted.is_empty() {
                return;
            }
            std::mem::replace(&mut *wanted, Vec::with_capacity(WANTED))
        };
        blocks.sort_unstable();
        blocks.chunk_by(|a, b| *a + 1 == *b).for_each(|run| {
            device.will_need(run[0].byte_offset(), run.len() as u64 * BLOCK_BYTES);
        });
    }

    fn keep(&self, frame: &Arc<Frame>) {
        let mut queue = self.queue.lock();
        // Two may have written it: it may have been emptied and filled again since.
        if frame.written.load(Ordering::SeqCst) == SLOTS
            && let Some(at) = queue.full.iter().position(|f| Arc::ptr_eq(f, frame))
        {
            queue.full.remove(at);
            self.full.store(queue.full.len(), Ordering::SeqCst);
            queue.kept.push_back(Arc::clone(frame));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::MemoryDevice;

    /// Two threads write one frame; the slower one files it only after it has been emptied and filled again.
    #[test]
    fn a_frame_that_was_filled_again_is_not_taken_for_written() {
        let device = MemoryDevice::new();
        device.set_len(16 << 20).unwrap();
        let buffers = Buffers::new(4 << 20);
        let mut block = 0;
        let mut fill_one = || {
            for _ in 0..SLOTS {
                let page = Arc::new(ChecksumPage::zeroed());
                buffers.adopt(BlockAddr::new(block), 0, &[7; BLOCK], page).unwrap();
                block += 1;
            }
        };
        (0..5).for_each(|_| fill_one());
        let first = Arc::clone(&buffers.frames.read()[0]);
        buffers.seal();
        assert!(first.write(&device).unwrap(), "what the slower thread found");
        buffers.write_full(&device, 0).unwrap();
        // The next frame is the first one again, and then it is full.
        fill_one();
        fill_one();
        assert!(buffers.queue.lock().full.iter().any(|f| Arc::ptr_eq(f, &first)), "the scene is set");
        buffers.keep(&first);
        assert!(buffers.queue.lock().full.iter().any(|f| Arc::ptr_eq(f, &first)), "not on the device yet");
    }
}
