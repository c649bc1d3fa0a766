//! The log: one record per commit, one barrier per flush.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::catalogue::Catalogue;
use super::engine::{Engine, io};
use super::object::Object;
use crate::device::SlotBuffer;
use crate::error::{Error, Limited, Result};
use crate::extent::Map;
use crate::format::record::{Change, ChangeKind, FLAG_FREEZE, FLAG_INLINE, FLAG_PROOF, Group, Record, Step};
use crate::format::superblock::Superblock;
use crate::memory;
use crate::units::{BLOCK, BLOCK_BYTES, BlockAddr, ObjectId};

/// Data blocks that a record may carry instead of sending them home first (32 KiB).
const INLINE_BLOCKS: u64 = 8;
/// Most blocks in both copies of a record that goes past the page cache.
const SMALL_BLOCKS: usize = 32;
/// Carried blocks that may wait for their way home.
const HOMELESS_BLOCKS: usize = 128;
/// Bytes of changes after which a commit is made without being asked for (65,536 changes).
const PENDING_BYTES: u64 = 65_536 * 28;

/// Where the log stands. Its lock is the commit lock: one commit at a time.
pub(super) struct Log {
    /// Block in the log area where the next record goes.
    pub(super) at: u64,
    /// Blocks between the checkpoint's start and `at`.
    pub(super) used: u64,
    /// Sequence of the newest record written.
    pub(super) sequence: u64,
    /// Its checksum.
    pub(super) predecessor: u64,
    /// Newest sequence that changes something.
    pub(super) content: u64,
    /// Newest sequence whose sync has returned.
    pub(super) durable: u64,
    /// Newest `durable` that a record says.
    pub(super) proved: u64,
    pub(super) epoch: u64,
    /// Generation of the newest durable checkpoint.
    pub(super) generation: u64,
    /// Newest commit (by [`Engine::cuts`]) that is durable.
    synced_cut: u64,
    /// Changes that were cut from their objects by a commit which then could not be written.
    backlog: Vec<(ObjectId, Vec<Change>)>,
    /// Changes that only the checkpoint under way has; no commit until it ends one way or the other.
    unlogged: Vec<(ObjectId, Vec<Change>)>,
    blocked: bool,
    buf: Vec<u8>,
    /// Small records go out from here: aligned, so that they may go straight to the medium.
    small: SlotBuffer,
}

impl Log {
    pub(super) fn new(sb: &Superblock) -> Result<Self> {
        Ok(Self {
            at: sb.log_at % sb.geometry.log_blocks,
            used: 0,
            sequence: sb.log_sequence,
            predecessor: sb.log_predecessor,
            content: sb.log_sequence,
            durable: sb.log_sequence,
            proved: sb.log_sequence,
            epoch: sb.log_epoch,
            generation: sb.generation,
            synced_cut: 0,
            backlog: Vec::new(),
            unlogged: Vec::new(),
            blocked: false,
            buf: Vec::new(),
            small: SlotBuffer::new(SMALL_BLOCKS)?,
        })
    }
}

impl Log {
    /// The checkpoint that `unlogged` waited for is durable, or (`failed`) will not be.
    pub(super) fn unblock(&mut self, failed: bool) {
        self.blocked = false;
        let unlogged = std::mem::take(&mut self.unlogged);
        if failed {
            self.backlog.splice(0..0, unlogged);
        }
    }
}

/// The state of one instant, taken by a freeze.
pub(super) struct Frozen {
    /// Nodes that were dirty.
    dirtied: u64,
    pub(super) roots: Vec<(Arc<Object>, Map)>,
    pub(super) catalogue: Catalogue,
    pub(super) epoch: u32,
    pub(super) log_at: u64,
    pub(super) log_used: u64,
    pub(super) log_sequence: u64,
    pub(super) log_predecessor: u64,
}

/// Why a commit did not happen.
pub(super) enum Halt {
    /// The log has no room: a checkpoint first.
    LogFull,
    Failed(Error),
}

impl From<Error> for Halt {
    fn from(e: Error) -> Self {
        Halt::Failed(e)
    }
}

fn copies_blocks(bytes: u64) -> u64 {
    2 * (bytes + 128).div_ceil(BLOCK_BYTES)
}

impl Engine {
    /// Bytes of changes that may wait for a record.
    pub(super) fn pending_cap(&self) -> u64 {
        (self.space.geometry.log_blocks * BLOCK_BYTES / 16).min(PENDING_BYTES)
    }

    /// Log blocks that only a freeze may use: it must always find room.
    fn freeze_reserve(&self) -> u64 {
        let cap = self.pending_cap();
        copies_blocks(cap + 8192.min(2 * cap))
    }

    /// Largest set of steps, in bytes, that one transaction may have: with the changes that may wait beside
    /// it, one record of it must fit in an empty log, and a freeze behind it.
    pub(super) fn steps_limit(&self) -> u64 {
        let copy = (self.space.geometry.log_blocks - self.freeze_reserve()) / 2 - 1;
        (copy * BLOCK_BYTES).saturating_sub(self.pending_cap() + 2048)
    }

    /// Makes everything acknowledged before the call durable, with one sync, shared with whoever waits.
    pub(crate) fn flush(&self) -> Result<()> {
        self.writable()?;
        self.counters.flushes.fetch_add(1, Ordering::Relaxed);
        let seen = self.cuts.load(Ordering::SeqCst);
        loop {
            let mut log = self.log.lock();
            self.writable()?;
            if log.synced_cut > seen {
                // A commit that began after this call is durable: it covers what this call must (C3).
                return Ok(());
            }
            if log.durable >= log.content
                && log.backlog.is_empty()
                && self.dirty.lock().is_empty()
                && self.buffers.unsynced.load(Ordering::SeqCst) == 0
            {
                return Ok(());
            }
            match self.commit(&mut log, 0, &[], true, None) {
                Ok(()) => return Ok(()),
                Err(Halt::Failed(e)) => return Err(e),
                Err(Halt::LogFull) => drop(log),
            }
            self.checkpoint()?;
        }
    }

    /// Moves pending changes into the log without a sync.
    pub(super) fn commit_pending(&self) -> Result<()> {
        loop {
            let mut log = self.log.lock();
            self.writable()?;
            if self.pending_bytes.load(Ordering::Relaxed) < self.pending_cap() / 2 {
                return Ok(());
            }
            match self.commit(&mut log, 0, &[], false, None) {
                Ok(()) => return Ok(()),
                Err(Halt::Failed(e)) => return Err(e),
                Err(Halt::LogFull) => drop(log),
            }
            self.checkpoint()?;
        }
    }

    /// One commit: cut, data, record, and with `sync` the barrier (C2).
    pub(super) fn commit(
        &self,
        log: &mut Log,
        flags: u32,
        steps: &[Step],
        sync: bool,
        freeze: Option<&mut Option<Frozen>>,
    ) -> Result<(), Halt> {
        let freezing = freeze.is_some();
        let log_blocks = self.space.geometry.log_blocks;
        let steps_bytes: u64 = steps.iter().map(step_bytes).sum();
        let backlog: usize = log.backlog.iter().map(|(_, c)| group_bytes(c)).sum();
        let kept = if freezing { 0 } else { self.freeze_reserve() };
        let waiting = self.pending_bytes.load(Ordering::SeqCst) + 28 * 64;
        let need = copies_blocks(waiting + backlog as u64 + steps_bytes);
        if (log.used + need + kept > log_blocks || log.blocked) && !freezing {
            return Err(Halt::LogFull);
        }
        // What may fail without harm comes before the cut: maps are looked up, and data goes home that the record is
        // not going to carry.
        let _at_hand = self.objects_in(steps)?;
        let carried = self.buffers.unsynced.load(Ordering::SeqCst) <= INLINE_BLOCKS * BLOCK_BYTES
            && self.buffers.waiting_blocks() <= HOMELESS_BLOCKS;
        if !steps.is_empty() && !carried {
            self.buffers.write_sealed(&*self.device)?;
        }
        self.cuts.fetch_add(1, Ordering::SeqCst);
        let cut = self.cuts.load(Ordering::SeqCst);
        let unsynced = self.buffers.unsynced.load(Ordering::SeqCst);
        let snapshot_epoch;
        // Of each map that a step gives another root.
        let mut undo = memory::with_room(steps.len())?;
        let mut groups = std::mem::take(&mut log.backlog);
        {
            let _gate = self.gate.write();
            // What the cut needs is had before it, so that a refusal leaves everything where it was.
            let dirty = { self.dirty.lock().len() };
            let changed = if freezing { self.changed.lock().len() } else { 0 };
            let roots = match memory::room(&mut groups, dirty).and_then(|()| memory::with_room(changed)) {
                Ok(roots) => roots,
                Err(e) => {
                    log.backlog = groups;
                    return Err(e.into());
                }
            };
            self.buffers.seal();
            snapshot_epoch = self.epoch();
            for object in std::mem::take(&mut *self.dirty.lock()) {
                let changes = std::mem::take(&mut object.map.write().pending);
                if !changes.is_empty() {
                    groups.push((object.id, changes));
                }
            }
            self.pending_bytes.store(0, Ordering::SeqCst);
            for step in steps {
                // Only changes of maps: they belong to this instant. The catalogue follows when it is durable.
                if let Step::CopyMap(to, _) | Step::ClearMap(to) = step {
                    let object = self.object(*to).map_err(|e| self.poison(e))?;
                    let tree = object.map_snapshot();
                    undo.push((object, tree));
                }
                self.apply_map_step(step).map_err(|e| self.poison(e))?;
            }
            if let Some(slot) = freeze {
                *slot = Some(self.take_frozen(roots));
            }
        }
        let has_steps = !steps.is_empty();
        if freezing {
            let bytes: usize = groups.iter().map(|(_, c)| group_bytes(c)).sum();
            if log.used + copies_blocks(bytes as u64) > log_blocks {
                // No room, because checkpoints failed before. These changes go into the checkpoint alone, and
                // until it is durable no record may follow that builds on them.
                log.blocked = true;
                log.unlogged = std::mem::take(&mut groups);
            }
        }
        let written = self.write_commit(log, flags, snapshot_epoch, &groups, steps, sync, freezing);
        match written {
            Ok(()) => {}
            Err(e) if has_steps || self.poisoned.load(Ordering::SeqCst) => {
                take_back(&undo);
                return Err(self.poison(e).into());
            }
            Err(e) => {
                // The data did not reach the device. It stays buffered, the changes wait for the next commit.
                log.backlog = groups;
                return Err(e.into());
            }
        }
        self.counters.commits.fetch_add(1, Ordering::Relaxed);
        if sync {
            self.sync_device().inspect_err(|_| take_back(&undo))?;
            log.durable = log.sequence;
            log.synced_cut = cut;
            self.buffers.unsynced.fetch_sub(unsynced, Ordering::SeqCst);
        }
        // Records are seen when they are durable, not before.
        for step in steps {
            self.apply_catalogue_step(step).map_err(|e| self.poison(e))?;
        }
        Ok(())
    }

    /// The objects whose maps these steps change or share: while they are held, looking them up reads nothing.
    fn objects_in(&self, steps: &[Step]) -> Result<Vec<Arc<Object>>> {
        let ids = steps.iter().flat_map(|step| match step {
            Step::CopyMap(to, from) => [Some(*to), Some(*from)],
            Step::ClearMap(id) => [Some(*id), None],
            Step::Put(..) | Step::Delete(_) | Step::NextEpoch => [None, None],
        });
        ids.flatten().map(|id| self.object(id)).collect()
    }

    pub(super) fn sync_device(&self) -> Result<()> {
        self.counters.syncs.fetch_add(1, Ordering::Relaxed);
        self.device.sync().map_err(io("sync", 0, 0)).map_err(|e| self.poison(e))
    }

    /// Everything that a checkpoint describes, at this instant. The caller holds the gate.
    fn take_frozen(&self, mut roots: Vec<(Arc<Object>, Map)>) -> Frozen {
        let changed = std::mem::take(&mut *self.changed.lock());
        roots.extend(changed.into_values().map(|object| {
            let mut map = object.map.write();
            map.changed = false;
            let tree = map.tree.clone();
            drop(map);
            (object, tree)
        }));
        self.buffers.give_back(&self.space);
        self.space.freeze();
        let dirtied = self.dirtied.swap(0, Ordering::Relaxed);
        Frozen {
            dirtied,
            roots,
            catalogue: self.catalogue.read().clone(),
            epoch: self.epoch(),
            log_at: 0,
            log_used: 0,
            log_sequence: 0,
            log_predecessor: 0,
        }
    }

    #[allow(clippy::too_many_arguments)] // One caller; a struct would only name the arguments again.
    fn write_commit(
        &self,
        log: &mut Log,
        flags: u32,
        snapshot_epoch: u32,
        groups: &[(ObjectId, Vec<Change>)],
        steps: &[Step],
        sync: bool,
        freezing: bool,
    ) -> Result<()> {
        if groups.is_empty() && steps.is_empty() {
            return self.buffers.write_sealed(&*self.device);
        }
        // Sealed blocks that the device does not have are named by this record or carried by an earlier one: each
        // commit leaves no others behind. Where this one names none, nothing has to go home for it.
        let data = groups.iter().flat_map(|(_, c)| c).filter(|c| c.kind == ChangeKind::Data);
        let blocks: u64 = data.clone().map(|c| c.len).sum();
        let room = self.space.geometry.log_blocks - log.used;
        let mut inline = Vec::new();
        let small = sync && !freezing && (1..=INLINE_BLOCKS).contains(&blocks);
        let fits = copies_blocks(blocks * (BLOCK_BYTES + 8) + 4096) + self.freeze_reserve() <= room;
        if small && fits && self.buffers.waiting_blocks() <= HOMELESS_BLOCKS {
            let addrs = data.flat_map(|c| c.block..c.block + c.len).map(BlockAddr::new);
            inline =
                addrs.map(|addr| self.buffered(addr)).collect::<Result<Option<_>>>()?.unwrap_or_default();
        }
        let mut flags = flags | if freezing { FLAG_FREEZE } else { 0 };
        if !inline.is_empty() {
            flags |= FLAG_INLINE;
        } else if blocks > 0 || freezing {
            self.buffers.write_sealed(&*self.device)?;
        }
        let mut described = memory::with_room(groups.len())?;
        for (object, changes) in groups {
            let data = || changes.iter().filter(|c| c.kind == ChangeKind::Data);
            let mut crcs = memory::with_room(data().map(|c| c.len as usize).sum())?;
            for c in data() {
                self.checksums_of(c.block, c.len, &mut crcs)?;
            }
            described.push(Group { object: *object, changes: memory::copied(changes)?, crcs });
        }
        let record = Record {
            flags,
            snapshot_epoch,
            groups: described,
            steps: memory::copied(steps)?,
            inline,
            ..Record::default()
        };
        self.append(log, record, sync)?;
        log.content = log.sequence;
        Ok(())
    }

    /// A copy of a block, for a record that carries it.
    fn buffered(&self, addr: BlockAddr) -> Result<Option<(u64, Vec<u8>)>> {
        let (page, index) = self.page_of(addr, 1)?;
        Ok(self.buffers.read(&page, index, <[u8]>::to_vec).map(|bytes| (addr.raw(), bytes)))
    }

    fn checksums_of(&self, block: u64, len: u64, out: &mut Vec<u32>) -> Result<()> {
        let Some((chunk, at)) = self.space.geometry.locate(BlockAddr::new(block)) else { return Ok(()) };
        let page = self.space.checksums(chunk)?;
        out.extend((at..at + len as usize).map(|i| page.get(i)));
        Ok(())
    }

    /// Writes `record` behind the newest one, by the shortest way if a sync is going to wait for it. A failure latches
    /// the pool: what the log holds is unknown now.
    fn append(&self, log: &mut Log, mut record: Record, sync: bool) -> Result<()> {
        record.epoch = log.epoch;
        record.sequence = log.sequence + 1;
        record.predecessor = log.predecessor;
        record.durable = log.durable;
        record.generation = log.generation;
        let mut buf = std::mem::take(&mut log.buf);
        buf.clear();
        memory::room(&mut buf, record.encoded_bytes())?;
        let sum = record.encode(&self.store.uuid, &mut buf);
        let g = &self.space.geometry;
        let blocks = (buf.len() / BLOCK) as u64;
        if log.used + blocks > g.log_blocks {
            return Err(self.poison(Error::LimitExceeded { what: Limited::LogBlocks, limit: g.log_blocks }));
        }
        // Past the page cache, which spares the sync to look for it there.
        let soon = sync && blocks <= SMALL_BLOCKS as u64;
        if soon {
            for (slot, block) in buf.chunks_exact(BLOCK).enumerate() {
                log.small.fill(slot, |bytes| bytes.copy_from_slice(block));
            }
        }
        // The area is a ring; a record may continue at its start.
        let head = blocks.min(g.log_blocks - log.at) as usize;
        for (blocks, at) in [(0..head, log.at), (head..blocks as usize, 0)] {
            if blocks.is_empty() {
                continue;
            }
            let (offset, len) = ((g.log_start_block + at) * BLOCK_BYTES, (blocks.len() * BLOCK) as u64);
            let wrote = if soon {
                log.small
                    .with_range(blocks.start, blocks.len(), |bytes| self.device.write_soon(bytes, offset))
            } else {
                self.device.write_at(&buf[blocks.start * BLOCK..blocks.end * BLOCK], offset)
            };
            wrote.map_err(io("write", offset, len)).map_err(|e| self.poison(e))?;
        }
        log.at = (log.at + blocks) % g.log_blocks;
        log.used += blocks;
        log.sequence += 1;
        log.predecessor = sum;
        log.proved = log.durable;
        self.counters.log_bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
        if buf.capacity() > 4 << 20 {
            buf = Vec::new();
        }
        log.buf = buf;
        Ok(())
    }

    /// Says in the log what is durable, so that recovery need not verify it. No sync: it proves the past.
    pub(super) fn prove(&self) -> Result<bool> {
        let mut log = self.log.lock();
        let room = self.space.geometry.log_blocks - log.used;
        if log.proved >= log.durable || log.durable < log.content || room < self.freeze_reserve() + 2 {
            return Ok(false);
        }
        self.append(&mut log, Record { flags: FLAG_PROOF, ..Record::default() }, false)?;
        Ok(true)
    }

    /// A freeze: a commit that ends what the next checkpoint covers. Without `record` (recovery: nothing is
    /// pending) only the state is taken.
    pub(super) fn freeze(&self, record: bool) -> Result<Frozen> {
        let mut log = self.log.lock();
        let mut slot = None;
        if record {
            match self.commit(&mut log, 0, &[], false, Some(&mut slot)) {
                Ok(()) => {}
                Err(Halt::Failed(e)) => {
                    if let Some(frozen) = slot {
                        log.unblock(true);
                        self.unfreeze_roots(&frozen);
                    }
                    return Err(e);
                }
                Err(Halt::LogFull) => {
                    return Err(Error::LimitExceeded {
                        what: Limited::LogBlocks,
                        limit: self.space.geometry.log_blocks,
                    });
                }
            }
        } else {
            self.buffers.seal();
            self.buffers.write_sealed(&*self.device)?;
            let roots = memory::with_room(self.changed.lock().len())?;
            slot = Some(self.take_frozen(roots));
        }
        let Some(mut frozen) = slot else { return Err(Error::Poisoned) };
        frozen.log_at = log.at;
        frozen.log_used = log.used;
        frozen.log_sequence = log.sequence;
        frozen.log_predecessor = log.predecessor;
        Ok(frozen)
    }

    /// The checkpoint of this freeze did not happen: its changes are still to be covered.
    pub(super) fn unfreeze(&self, frozen: &Frozen) {
        self.log.lock().unblock(true);
        self.unfreeze_roots(frozen);
    }

    fn unfreeze_roots(&self, frozen: &Frozen) {
        self.space.thaw();
        for (object, _) in &frozen.roots {
            let mut map = object.map.write();
            self.mark_changed(object, &mut map.changed);
        }
        self.dirtied.fetch_add(frozen.dirtied, Ordering::Relaxed);
    }
}

/// A transaction whose outcome is unknown has latched the pool, which from here on shows the state before it.
fn take_back(undo: &[(Arc<Object>, Map)]) {
    for (object, tree) in undo.iter().rev() {
        object.replace_map(&mut object.map.write(), tree.clone());
    }
}

fn group_bytes(changes: &[Change]) -> usize {
    24 + changes.iter().map(Record::change_bytes).sum::<usize>()
}

pub(super) fn step_bytes(step: &Step) -> u64 {
    match step {
        Step::Put(k, v) => (7 + k.len() + v.len()) as u64,
        Step::Delete(k) => (3 + k.len()) as u64,
        Step::CopyMap(..) => 33,
        Step::NextEpoch => 1,
        Step::ClearMap(_) => 17,
    }
}
