//! The run buffer: full blocks wait in memory and reach the device as large writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::alloc::{ChecksumPage, Claim, Run, Space};
use crate::device::{Device, SlotBuffer};
use crate::error::{Error, Result};
use crate::format::block_crc;
use crate::units::{BLOCK, BLOCK_BYTES, BlockAddr};

/// Blocks in one buffer: 1 MiB.
pub(crate) const SLOTS: usize = 256;
/// Buffers kept for reuse, so that memory that is warm is written again.
const SPARE: usize = 16;

/// Consecutive blocks in consecutive slots.
#[derive(Clone)]
struct Piece {
    addr: BlockAddr,
    len: usize,
    slot: usize,
    /// Index of the first block in its chunk.
    index: usize,
    checksums: Arc<ChecksumPage>,
}

/// Up to 256 blocks on their way to the device.
pub(crate) struct Batch {
    slots: SlotBuffer,
    pieces: RwLock<Vec<Piece>>,
    /// While open, its blocks are named by nobody but the writer's own root, and may be changed in place.
    open: AtomicBool,
    used: AtomicUsize,
    /// Leased and not yet filled: such a buffer is not written early.
    unfilled: AtomicUsize,
    /// Set once everything is on the device; held while it is being written.
    written: Mutex<bool>,
}

impl Batch {
    fn new() -> Self {
        Self {
            slots: SlotBuffer::new(SLOTS),
            pieces: RwLock::new(Vec::with_capacity(8)),
            open: AtomicBool::new(true),
            used: AtomicUsize::new(0),
            unfilled: AtomicUsize::new(0),
            written: Mutex::new(false),
        }
    }

    fn slot_of(&self, addr: BlockAddr) -> Option<usize> {
        let pieces = self.pieces.read();
        let hit = pieces.iter().find(|p| addr >= p.addr && addr.raw() < p.addr.raw() + p.len as u64)?;
        Some(hit.slot + (addr.raw() - hit.addr.raw()) as usize)
    }

    /// Writes everything to its home, unless that has been done.
    fn write(&self, device: &dyn Device) -> Result<()> {
        let mut written = self.written.lock();
        if *written {
            return Ok(());
        }
        self.open.store(false, Ordering::SeqCst);
        let pieces = self.pieces.read();
        for p in pieces.iter() {
            let offset = p.addr.byte_offset();
            self.slots
                .with_range(p.slot, p.len, |bytes| device.write_at(bytes, offset))
                .map_err(|source| Error::Io { op: "write", offset, len: (p.len * BLOCK) as u64, source })?;
        }
        *written = true;
        Ok(())
    }
}

/// Where a writer may put its next blocks.
pub(crate) struct Lease {
    batch: Arc<Batch>,
    slot: usize,
    run: Run,
    index: usize,
    filled: std::cell::Cell<usize>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        // A writer that gave up leaves slots that nobody names; they may be written as they are.
        let left = self.run.len as usize - self.filled.get();
        self.batch.unfilled.fetch_sub(left, Ordering::SeqCst);
    }
}

impl Lease {
    pub(crate) fn addr(&self) -> BlockAddr {
        self.run.addr
    }
    pub(crate) fn blocks(&self) -> u64 {
        self.run.len
    }
    /// Fills block `i` of the lease and sets its checksum.
    pub(crate) fn fill(&self, i: usize, bytes: &[u8]) {
        let crc = self.batch.slots.fill(self.slot + i, |slot| {
            slot.copy_from_slice(bytes);
            block_crc(slot)
        });
        self.run.checksums.set(self.index + i, crc);
        self.filled.set(self.filled.get() + 1);
        self.batch.unfilled.fetch_sub(1, Ordering::SeqCst);
    }
}

/// All buffers that hold blocks which the device does not have yet.
pub(crate) struct Buffers {
    waiting: RwLock<Vec<Arc<Batch>>>,
    /// Buffers in `waiting`: lets readers skip the lock when there are none.
    count: AtomicUsize,
    current: Mutex<Option<Arc<Batch>>>,
    spare: Mutex<Vec<Batch>>,
    /// Bytes filled since the last sync.
    pub(crate) unsynced: AtomicU64,
}

impl Buffers {
    pub(crate) fn new() -> Self {
        Self {
            waiting: RwLock::new(Vec::new()),
            count: AtomicUsize::new(0),
            current: Mutex::new(None),
            spare: Mutex::new(Vec::new()),
            unsynced: AtomicU64::new(0),
        }
    }

    fn fresh(&self) -> Arc<Batch> {
        let batch = match self.spare.lock().pop() {
            Some(batch) => {
                batch.pieces.write().clear();
                batch.open.store(true, Ordering::SeqCst);
                batch.used.store(0, Ordering::SeqCst);
                *batch.written.lock() = false;
                batch
            }
            None => Batch::new(),
        };
        let batch = Arc::new(batch);
        let mut waiting = self.waiting.write();
        waiting.push(Arc::clone(&batch));
        self.count.store(waiting.len(), Ordering::SeqCst);
        batch
    }

    /// Takes up to `most` blocks of space and the slots for them.
    pub(crate) fn lease(&self, space: &Space, claim: &mut Claim<'_>, most: u64) -> Result<Lease> {
        space.prepare()?;
        let mut current = self.current.lock();
        let full = current
            .as_ref()
            .is_none_or(|b| b.used.load(Ordering::Relaxed) == SLOTS || !b.open.load(Ordering::SeqCst));
        if full {
            *current = Some(self.fresh());
        }
        let Some(batch) = current.as_ref() else { return Err(Error::Poisoned) };
        let slot = batch.used.load(Ordering::Relaxed);
        let run = space.take(claim, most.min((SLOTS - slot) as u64))?;
        let index = space.geometry.locate(run.addr).map_or(0, |(_, at)| at);
        let len = run.len as usize;
        let mut pieces = batch.pieces.write();
        match pieces.last_mut() {
            Some(p) if p.addr + p.len as u64 == run.addr && Arc::ptr_eq(&p.checksums, &run.checksums) => {
                p.len += len;
            }
            _ => {
                pieces.push(Piece { addr: run.addr, len, slot, index, checksums: Arc::clone(&run.checksums) })
            }
        }
        drop(pieces);
        batch.unfilled.fetch_add(len, Ordering::SeqCst);
        batch.used.store(slot + len, Ordering::Relaxed);
        self.unsynced.fetch_add(run.len * BLOCK_BYTES, Ordering::Relaxed);
        Ok(Lease { batch: Arc::clone(batch), slot, run, index, filled: std::cell::Cell::new(0) })
    }

    /// The buffer that holds `addr`, if it has not reached the device.
    #[inline]
    pub(crate) fn holder(&self, addr: BlockAddr) -> Option<(Arc<Batch>, usize)> {
        if self.count.load(Ordering::SeqCst) == 0 {
            return None;
        }
        let waiting = self.waiting.read();
        // Newest first: what was just written is what is read again.
        waiting.iter().rev().find_map(|b| b.slot_of(addr).map(|slot| (Arc::clone(b), slot)))
    }

    /// Reads a buffered block.
    pub(crate) fn read(&self, holder: &(Arc<Batch>, usize), each: impl FnOnce(&[u8])) {
        holder.0.slots.with(holder.1, each);
    }

    /// Changes a block in place, if its buffer is still open. The checksum follows.
    pub(crate) fn change(
        &self,
        holder: &(Arc<Batch>, usize),
        addr: BlockAddr,
        each: impl FnOnce(&mut [u8]),
    ) -> bool {
        let (batch, slot) = holder;
        batch.slots.fill(*slot, |bytes| {
            if !batch.open.load(Ordering::SeqCst) {
                return false;
            }
            each(bytes);
            let crc = block_crc(bytes);
            let pieces = batch.pieces.read();
            if let Some(p) =
                pieces.iter().find(|p| addr >= p.addr && addr.raw() < p.addr.raw() + p.len as u64)
            {
                p.checksums.set(p.index + (addr.raw() - p.addr.raw()) as usize, crc);
            }
            true
        })
    }

    /// Recovery: a block that a record carried, to be served until it has been written home.
    pub(crate) fn adopt(&self, addr: BlockAddr, index: usize, bytes: &[u8], checksums: Arc<ChecksumPage>) {
        let mut current = self.current.lock();
        if current.as_ref().is_none_or(|b| b.used.load(Ordering::Relaxed) == SLOTS) {
            *current = Some(self.fresh());
        }
        if let Some(batch) = current.as_ref() {
            let slot = batch.used.fetch_add(1, Ordering::Relaxed);
            batch.slots.fill(slot, |s| s.copy_from_slice(bytes));
            batch.pieces.write().push(Piece { addr, len: 1, slot, index, checksums });
        }
    }

    /// From here on no block that is buffered now changes any more: something else is about to name it.
    /// The caller holds the gate, so no writer is between a lease and its map.
    pub(crate) fn seal(&self) {
        let mut current = self.current.lock();
        current.take();
        // Full buffers that wait to be written are still open; they hold blocks of this instant too.
        for batch in self.waiting.read().iter() {
            batch.open.store(false, Ordering::SeqCst);
        }
    }

    /// Buffers that are full: another thread may write them early.
    pub(crate) fn has_full(&self) -> usize {
        self.count.load(Ordering::Relaxed).saturating_sub(1)
    }

    /// All waiting buffers, oldest first; with `open`, also the one that is still being filled.
    fn list(&self, open: bool) -> Vec<Arc<Batch>> {
        let current = self.current.lock();
        let waiting = self.waiting.read();
        let is_current = |b: &Arc<Batch>| current.as_ref().is_some_and(|c| Arc::ptr_eq(b, c));
        waiting.iter().filter(|b| open || !is_current(b)).cloned().collect()
    }

    /// Sealed blocks that are not at home: addresses, for a record that carries them.
    pub(crate) fn waiting_blocks(&self) -> usize {
        self.waiting.read().iter().map(|b| b.used.load(Ordering::Relaxed)).sum()
    }

    /// Copies of the sealed blocks at these addresses.
    pub(crate) fn copies(&self, addrs: impl Iterator<Item = BlockAddr>) -> Option<Vec<(u64, Vec<u8>)>> {
        addrs
            .map(|addr| {
                let holder = self.holder(addr)?;
                let mut bytes = vec![0; BLOCK];
                self.read(&holder, |b| bytes.copy_from_slice(b));
                Some((addr.raw(), bytes))
            })
            .collect()
    }

    /// Writes every buffer that nobody fills any more. What fails stays buffered, to be tried again.
    pub(crate) fn write_sealed(&self, device: &dyn Device) -> Result<()> {
        for batch in self.list(false) {
            if batch.unfilled.load(Ordering::SeqCst) != 0 {
                continue;
            }
            batch.write(device)?;
            self.release(batch);
        }
        Ok(())
    }

    fn release(&self, batch: Arc<Batch>) {
        {
            let mut waiting = self.waiting.write();
            waiting.retain(|b| !Arc::ptr_eq(b, &batch));
            self.count.store(waiting.len(), Ordering::SeqCst);
        }
        if let Some(batch) = Arc::into_inner(batch) {
            let mut spare = self.spare.lock();
            if spare.len() < SPARE {
                spare.push(batch);
            }
        }
    }
}
