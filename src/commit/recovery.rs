//! Opening: the newest superblock that verifies, then the log behind it.
//!
//! Recovery writes nothing before it has read everything it decides on, so being cut anywhere it starts
//! over with the same result: what it adopts is verified on the medium, what it drops it neither overwrites
//! nor hands out (R3) before the checkpoint that ends it is durable.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::engine::{Config, Engine, fresh_epoch, io};
use crate::device::Device;
use crate::error::{Corruption, Error, Result};
use crate::extent;
use crate::format::block_crc;
use crate::format::node::Extent;
use crate::format::record::{Change, ChangeKind, Record, RecordHead, Step};
use crate::format::superblock::{FAR_SLOTS, NEAR_SLOTS, STATE_CLEAN, SlotFault, Superblock};
use crate::memory;
use crate::node::{Cx, Held, Miss};
use crate::trace::event;
use crate::units::{BLOCK, BLOCK_BYTES, BlockAddr};

/// Blocks of unproven data read at once: 1 MiB.
const ARRIVED_BLOCKS: usize = 256;
/// Blocks of log read at once while looking for stray records.
const SCAN_BLOCKS: u64 = 256;

/// Blocks of log in which a clean pool is asked for records that are newer than its superblock.
const FIRST_BLOCKS: u64 = 16;

/// The superblocks of a device: the newest, and whether both its copies are sound.
struct Slots {
    newest: Superblock,
    whole: bool,
    /// The generation before it is there as well.
    both: bool,
}

fn read_slots(device: &dyn Device) -> Result<Slots> {
    let len = device.len().map_err(io("length", 0, 0))?;
    let mut found: Vec<(u64, Superblock)> = Vec::new();
    let mut newer = None;
    let mut first_fault = None;
    let mut failed = None;
    let mut offsets: Vec<u64> = NEAR_SLOTS.into_iter().chain(FAR_SLOTS).collect();
    offsets.sort_unstable();
    offsets.dedup();
    for offset in offsets.into_iter().filter(|o| o + BLOCK_BYTES <= len) {
        let mut block = [0; BLOCK];
        if let Err(e) = device.read_at(&mut block, offset) {
            // An unreadable copy is a lost copy; the others may serve.
            failed.get_or_insert(io("read", offset, BLOCK_BYTES)(e));
            continue;
        }
        match Superblock::decode(&block, offset / BLOCK_BYTES) {
            Ok(sb) => found.push((offset, sb)),
            Err(SlotFault::Newer(why)) => newer = Some(why),
            Err(SlotFault::Damaged(c)) => {
                first_fault.get_or_insert(c);
            }
        }
    }
    if let Some(why) = newer {
        // Whoever wrote that copy has moved on; older copies beside it say nothing about today.
        return Err(Error::Unsupported(why));
    }
    // A copy that strayed here from another pool is sound in itself: the pool is the one that most copies name.
    let copies_of = |uuid: &[u8; 16]| found.iter().filter(|(_, sb)| sb.uuid == *uuid).count();
    let Some((_, newest)) = found.iter().max_by_key(|(_, sb)| (copies_of(&sb.uuid), sb.generation)).cloned()
    else {
        return Err(match (failed, first_fault) {
            (Some(e), _) => e,
            (None, Some(c)) => c.into(),
            (None, None) => {
                Corruption::new("pool", 0, "length", format!("at least {BLOCK_BYTES} bytes"), len).into()
            }
        });
    };
    let whole = newest.slots().iter().all(|at| found.iter().any(|(o, sb)| o == at && *sb == newest));
    let both = found.iter().any(|(_, sb)| sb.uuid == newest.uuid && sb.generation + 1 == newest.generation);
    Ok(Slots { newest, whole, both })
}

impl Engine {
    /// Opens the pool on `device`.
    pub(crate) fn open(device: Arc<dyn Device>, config: Config) -> Result<Arc<Self>> {
        if !device.lock().map_err(io("lock", 0, 0))? {
            return Err(Error::Locked);
        }
        let mut slots = read_slots(&*device)?;
        let read_only = config.read_only || slots.newest.read_only_compatible != 0;
        let clean = slots.newest.state & STATE_CLEAN != 0 && slots.whole;
        if !clean {
            // After a failed sync or a kill the cache may hold what the disk does not: push out what can
            // be pushed out, forget the rest, and decide only on what the medium says.
            if !read_only {
                device.sync().map_err(io("sync", 0, 0))?;
            }
            device.drop_cache().map_err(io("drop cache", 0, 0))?;
            slots = read_slots(&*device)?;
        }
        let sb = slots.newest;
        let len = device.len().map_err(io("length", 0, 0))?;
        if len < sb.geometry.bytes_for(sb.chunks) {
            let want = format!("at least {} bytes", sb.geometry.bytes_for(sb.chunks));
            return Err(Corruption::new("pool", 0, "length", want, len).into());
        }
        // The pool may have grown since that superblock; growth is durable before anything refers to it.
        let chunk_bytes = sb.geometry.blocks_per_chunk * BLOCK_BYTES;
        let room = |bytes: u64| bytes.saturating_sub(sb.geometry.bytes_for(0)) / chunk_bytes;
        let chunks = room(len).min(room(sb.limit_bytes)).max(sb.chunks);
        let engine = Self::assemble(device, config, sb.clone(), chunks, read_only)?;
        if clean {
            // When the other generation is gone from both its slots, it may have been the newer one, and anything
            // in the log may say so. Where it is there, only a device that lied about the sync of `begin_epoch` and
            // about the next one can have lost a newer one: then the first records say so, if any of them is left.
            let ring = engine.space.geometry.log_blocks;
            engine.refuse_if_newer(&sb, if slots.both { FIRST_BLOCKS.min(ring) } else { ring })?;
            if !read_only {
                // A close whose last sync failed may have left that superblock in the host's cache alone. Before the
                // older pair is given up the medium has it: the same bytes once more, and a sync that must succeed.
                engine.write_superblock(&sb)?;
                engine.begin_epoch(&sb)?;
            }
            return Ok(engine.start());
        }
        let tail = engine.read_log(&sb)?;
        event!(
            generation = sb.generation,
            records = tail.records.len(),
            sequence = tail.sequence,
            "recovering from an unclean end"
        );
        let dropped_to_read_only = tail.read_only;
        if dropped_to_read_only {
            engine.read_only.store(true, Ordering::Relaxed);
        }
        engine.expect_leaves(&tail.records)?;
        engine.adopt(&tail)?;
        for record in &tail.records {
            engine.replay(record)?;
        }
        engine.pending_bytes.store(0, Ordering::Relaxed);
        {
            let mut log = engine.log.lock();
            log.at = tail.at;
            log.used = tail.used;
            log.sequence = tail.sequence;
            log.predecessor = tail.predecessor;
            log.content = tail.sequence;
        }
        if engine.is_read_only() {
            return Ok(engine.start());
        }
        if !slots.whole {
            // Both copies of the adopted generation, before the first new write. A second line of defence: the
            // checkpoint below overwrites the other pair, so one sound copy would do unless it went bad meanwhile.
            engine.write_superblock(&sb)?;
        }
        {
            // Everything replayed goes into a checkpoint under a fresh epoch: the old log is history then.
            engine.log.lock().epoch = fresh_epoch(&engine.config);
            let mut superblock = engine.checkpoint.lock();
            engine.checkpoint_with(&mut superblock, false, false)?;
            let mut log = engine.log.lock();
            log.durable = log.sequence;
            log.proved = log.sequence;
            engine.buffers.unsynced.store(0, Ordering::Relaxed);
        }
        Ok(engine.start())
    }

    /// A clean superblock needs no log. But if a sound record of this pool belongs to a later generation, that
    /// superblock is not the newest there was.
    /// Looks at so many blocks of the log, from where the next record goes on.
    fn refuse_if_newer(&self, sb: &Superblock, blocks: u64) -> Result<()> {
        let ring = self.space.geometry.log_blocks;
        let mut budget = 4 * ring;
        let mut done = 0;
        while done < blocks {
            let from = (sb.log_at + done) % ring;
            let piece = (blocks - done).min(SCAN_BLOCKS).min(ring - from);
            done += piece;
            // What cannot be read says nothing.
            let Ok(bytes) = self.read_ring(from, piece) else { continue };
            for (at, block) in (from..).zip(bytes.chunks_exact(BLOCK)) {
                let fits = |h: &RecordHead| h.blocks <= ring / 2;
                if !Record::peek(block, &self.store.uuid).is_some_and(|head| fits(&head)) {
                    continue;
                }
                if let Ok(Some((record, ..))) = self.record_at(at, &mut budget, fits)
                    && record.generation > sb.generation
                {
                    let place = self.space.geometry.log_start_block + at;
                    return Err(Corruption::new(
                        "log",
                        place,
                        "generation",
                        record.generation,
                        sb.generation,
                    )
                    .into());
                }
            }
        }
        Ok(())
    }

    /// A clean pool is opened for writing: from here on the log counts, under a fresh epoch.
    fn begin_epoch(&self, sb: &Superblock) -> Result<()> {
        let epoch = fresh_epoch(&self.config);
        let mut superblock = self.checkpoint.lock();
        *superblock = Superblock {
            state: sb.state & !STATE_CLEAN,
            generation: sb.generation + 1,
            log_epoch: epoch,
            ..sb.clone()
        };
        self.write_superblock(&superblock)?;
        let mut log = self.log.lock();
        log.epoch = epoch;
        log.generation = superblock.generation;
        Ok(())
    }

    fn read_ring(&self, at: u64, blocks: u64) -> Result<Vec<u8>> {
        let g = &self.space.geometry;
        let mut out = memory::filled(0, blocks as usize * BLOCK)?;
        let head = blocks.min(g.log_blocks - at);
        let (first, second) = out.split_at_mut(head as usize * BLOCK);
        for (bytes, block) in [(first, g.log_start_block + at), (second, g.log_start_block)] {
            if !bytes.is_empty() {
                let offset = block * BLOCK_BYTES;
                let read = self.device.read_at(bytes, offset);
                read.map_err(io("read", offset, bytes.len() as u64))?;
            }
        }
        Ok(out)
    }

    /// A sound copy at this place that `fits`: the record, its checksum, its blocks. The head is looked at
    /// before the rest is read, and `budget` bounds what all calls together may read.
    fn record_at(
        &self,
        at: u64,
        budget: &mut u64,
        fits: impl Fn(&RecordHead) -> bool,
    ) -> Result<Option<(Record, u64, u64)>> {
        let head = self.read_ring(at, 1)?;
        let Some(head) = Record::peek(&head, &self.store.uuid).filter(|h| fits(h) && h.blocks <= *budget)
        else {
            return Ok(None);
        };
        *budget -= head.blocks;
        let copy = self.read_ring(at, head.blocks)?;
        let place = self.space.geometry.log_start_block + at;
        let decoded = Record::decode(&copy, &self.store.uuid, place);
        match decoded {
            Ok((record, sum)) => Ok(Some((record, sum, head.blocks))),
            Err(Error::Corrupt(_)) => Ok(None),
            // Nothing is known about it then: it must not pass for one that is not there.
            Err(e) => Err(e),
        }
    }

    /// The record that continues the chain at its end: the first copy, or the second one wherever behind a
    /// damaged first copy it must start. A place that cannot be read is an error unless the other copy
    /// serves: what may have been durable is never taken for absent.
    ///
    /// Epoch and sequence name one record, because every open draws a fresh epoch and a failed write of the log
    /// latches the pool. That the record names its predecessor is a second line of defence behind them, against
    /// a log that is put together from copies of one pool that went on apart.
    fn next_record(
        &self,
        sb: &Superblock,
        tail: &Tail,
        budget: &mut u64,
    ) -> Result<Option<(Record, u64, u64)>> {
        let ring = self.space.geometry.log_blocks;
        let left = ring.saturating_sub(tail.used);
        let mut failed = None;
        for skip in 0..=left / 2 {
            let fits = |h: &RecordHead| {
                let here = if skip == 0 { 2 * h.blocks <= left } else { h.blocks == skip };
                here && h.epoch == sb.log_epoch && h.sequence == tail.sequence + 1
            };
            match self.record_at((tail.at + skip) % ring, budget, fits) {
                Ok(Some(hit)) if hit.0.predecessor == tail.predecessor => return Ok(Some(hit)),
                Ok(_) => {}
                Err(e) => {
                    failed.get_or_insert(e);
                }
            }
        }
        failed.map_or(Ok(None), Err)
    }

    /// Follows the chain from the superblock and decides what of it counts.
    fn read_log(&self, sb: &Superblock) -> Result<Tail> {
        let ring = self.space.geometry.log_blocks;
        let mut tail = Tail {
            records: Vec::new(),
            named: Vec::new(),
            at: sb.log_at % ring,
            used: 0,
            sequence: sb.log_sequence,
            predecessor: sb.log_predecessor,
            read_only: false,
        };
        let mut ends = Vec::new();
        let mut budget = 8 * ring;
        while let Some((record, sum, blocks)) = self.next_record(sb, &tail, &mut budget)? {
            tail.at = (tail.at + 2 * blocks) % ring;
            tail.used += 2 * blocks;
            tail.sequence += 1;
            tail.predecessor = sum;
            memory::push(&mut tail.records, record)?;
            memory::push(&mut ends, (tail.at, tail.used, tail.sequence, tail.predecessor))?;
        }
        // What any record of this epoch claims, even one that the chain does not reach.
        let claims = self.scan_claims(sb)?;
        let claimed = tail.records.iter().map(|r| r.durable).chain(claims.durable).max().unwrap_or(0);
        let mut lost = None;
        if claimed > tail.sequence {
            lost = Some(("sequence", claimed, tail.sequence));
        }
        if let Some(generation) = claims.generation.filter(|g| *g > sb.generation) {
            lost = Some(("generation", generation, sb.generation));
        }
        for r in &tail.records {
            let data = r.groups.iter().flat_map(|g| &g.changes).filter(|c| c.kind == ChangeKind::Data);
            for c in data {
                memory::push(&mut tail.named, (c.block, c.len))?;
            }
        }
        // Records that nobody claims durable count only as far as their data is on the medium (P2).
        let first = sb.log_sequence;
        let mut keep = tail.records.len();
        for (i, record) in tail.records.iter().enumerate() {
            let sequence = first + 1 + i as u64;
            if sequence > claimed && !self.data_arrived(record)? {
                keep = i;
                break;
            }
        }
        tail.records.truncate(keep);
        let end = match keep {
            0 => (sb.log_at % ring, 0, sb.log_sequence, sb.log_predecessor),
            n => ends[n - 1],
        };
        (tail.at, tail.used, tail.sequence, tail.predecessor) = end;
        if let Some((field, expected, found)) = lost {
            if !self.config.last_good {
                return Err(Corruption::new(
                    "log",
                    self.space.geometry.log_start_block,
                    field,
                    expected,
                    found,
                )
                .into());
            }
            tail.read_only = true;
        }
        Ok(tail)
    }

    /// Reads the whole log for records of the current epoch and what they say is durable.
    fn scan_claims(&self, sb: &Superblock) -> Result<Claims> {
        let g = &self.space.geometry;
        let mut claims = Claims::default();
        // Overlapping forgeries must not make this quadratic: each byte may be looked at a few times.
        let mut budget = 4 * g.log_blocks;
        let mut at = 0;
        while at < g.log_blocks {
            let blocks = SCAN_BLOCKS.min(g.log_blocks - at);
            let offset = (g.log_start_block + at) * BLOCK_BYTES;
            let mut bytes = memory::filled(0, blocks as usize * BLOCK)?;
            if self.device.read_at(&mut bytes, offset).is_err() {
                // A bad sector in unused log must not stop the pool; block by block what can be read is.
                for (i, block) in bytes.chunks_exact_mut(BLOCK).enumerate() {
                    if self.device.read_at(block, offset + (i * BLOCK) as u64).is_err() {
                        block.fill(0);
                    }
                }
            }
            for (i, block) in bytes.chunks_exact(BLOCK).enumerate() {
                let Some(head) = Record::peek(block, &self.store.uuid) else { continue };
                if head.epoch != sb.log_epoch || head.sequence <= sb.log_sequence || head.blocks > budget {
                    continue;
                }
                let fits = |h: &RecordHead| h.blocks <= g.log_blocks / 2;
                match self.record_at(at + i as u64, &mut budget, fits) {
                    Ok(Some((record, ..))) => {
                        claims.durable = claims.durable.max(Some(record.durable));
                        claims.generation = claims.generation.max(Some(record.generation));
                    }
                    Err(e @ Error::OutOfMemory { .. }) => return Err(e),
                    Ok(None) | Err(_) => {}
                }
            }
            at += blocks;
        }
        Ok(claims)
    }

    /// Whether every data block that the record names is on the medium as written.
    fn data_arrived(&self, record: &Record) -> Result<bool> {
        let inline: HashMap<u64, &Vec<u8>> = record.inline.iter().map(|(a, b)| (*a, b)).collect();
        // Blocks that follow each other, however their LBAs lie, are read together.
        let (mut first, mut sums) = (0, Vec::with_capacity(ARRIVED_BLOCKS));
        let mut buf = Vec::new();
        for g in &record.groups {
            let mut crcs = g.crcs.iter();
            let data = g.changes.iter().filter(|c| c.kind == ChangeKind::Data);
            for addr in data.flat_map(|c| c.block..c.block + c.len) {
                let Some(want) = crcs.next() else { return Ok(false) };
                if let Some(bytes) = inline.get(&addr) {
                    if block_crc(bytes) != *want {
                        return Ok(false);
                    }
                    continue;
                }
                if first + sums.len() as u64 != addr || sums.len() == ARRIVED_BLOCKS {
                    if !self.run_arrived(first, &sums, &mut buf)? {
                        return Ok(false);
                    }
                    first = addr;
                    sums.clear();
                }
                sums.push(*want);
            }
        }
        self.run_arrived(first, &sums, &mut buf)
    }

    /// Whether consecutive blocks have these checksums on the medium.
    fn run_arrived(&self, first: u64, sums: &[u32], buf: &mut Vec<u8>) -> Result<bool> {
        let end = self.space.geometry.bytes_for(self.space.index.read().chunks);
        if sums.is_empty() {
            return Ok(true);
        }
        let (offset, len) = (BlockAddr::new(first).byte_offset(), sums.len() * BLOCK);
        if offset.saturating_add(len as u64) > end {
            return Ok(false);
        }
        memory::room(buf, len.saturating_sub(buf.len()))?;
        buf.resize(buf.len().max(len), 0);
        // A block that cannot be read is not one that never arrived: the caller may try again, and nothing has been
        // decided.
        self.device.read_at(&mut buf[..len], offset).map_err(io("read", offset, len as u64))?;
        Ok(buf.chunks_exact(BLOCK).zip(sums).all(|(block, sum)| block_crc(block) == *sum))
    }

    /// R3: every block that any record names, adopted or dropped, is taken before anything is handed out.
    fn adopt(&self, tail: &Tail) -> Result<()> {
        for record in &tail.records {
            for g in &record.groups {
                let mut crcs = g.crcs.as_slice();
                for c in g.changes.iter().filter(|c| c.kind == ChangeKind::Data) {
                    let (now, rest) = crcs.split_at(c.len as usize);
                    self.unless_damaged(self.space.adopt(BlockAddr::new(c.block), now))?;
                    crcs = rest;
                }
            }
            for (addr, bytes) in &record.inline {
                let addr = BlockAddr::new(*addr);
                let Some((chunk, index)) = self.space.geometry.locate(addr) else { continue };
                let page = match self.space.checksums(chunk) {
                    Err(Error::Corrupt(_)) if self.is_read_only() => continue,
                    page => page?,
                };
                if page.get(index) != block_crc(bytes) {
                    let found = "bytes of another checksum";
                    return Err(Corruption::new(
                        "log record",
                        addr.raw(),
                        "inline block",
                        "the record's own",
                        found,
                    )
                    .into());
                }
                self.buffers.adopt(addr, index, bytes, page)?;
            }
        }
        for (block, len) in &tail.named {
            // Of dropped records only the blocks count; their checksums mean nothing.
            self.space.reserve(BlockAddr::new(*block), *len);
        }
        Ok(())
    }

    /// A damaged leaf or page stops recovery, which would have to write what it cannot know. A pool that is
    /// opened for reading only goes on: what lies behind the damage cannot be read anyway, the rest can.
    fn unless_damaged(&self, done: Result<()>) -> Result<()> {
        match done {
            Err(Error::Corrupt(_)) if self.is_read_only() => Ok(()),
            done => done,
        }
    }

    fn replay(&self, record: &Record) -> Result<()> {
        // Midway through a long log the cache may be too small for all that changed; dirty nodes then grow
        // beyond it until the checkpoint at the end, which is bounded by the log's length.
        for g in &record.groups {
            let object = self.object(g.object)?;
            for c in &g.changes {
                self.unless_damaged(self.replay_change(&object, c, record.snapshot_epoch))?;
            }
        }
        for step in &record.steps {
            if let Step::Put(k, v) = step
                && (k.is_empty()
                    || k.len() > crate::format::node::MAX_KEY
                    || v.len() > crate::format::node::MAX_VALUE)
            {
                return Err(Corruption::new(
                    "log record",
                    0,
                    "key or value length",
                    "within limits",
                    k.len(),
                )
                .into());
            }
            self.apply_map_step(step)?;
            self.apply_catalogue_step(step)?;
        }
        Ok(())
    }

    fn replay_change(&self, object: &Arc<super::object::Object>, c: &Change, epoch: u32) -> Result<()> {
        let mut held = Held::new();
        loop {
            let missed = {
                let mut map = object.map.write();
                let map = &mut *map;
                let cx = Cx { store: &self.store, held: &held, dirtied: &self.dirtied };
                let g = &self.space.geometry;
                let done = match c.kind {
                    ChangeKind::Data => {
                        extent::replace(&mut map.tree, &cx, g, Extent::data(c.lba, c.block, c.len, epoch))
                    }
                    ChangeKind::Zero => {
                        extent::replace(&mut map.tree, &cx, g, Extent::zero(c.lba, c.len, epoch))
                    }
                    ChangeKind::Hole => map.tree.cut(&cx, &c.lba, &(c.lba + c.len)).map(|_| ()),
                };
                match done {
                    Ok(()) => {
                        self.mark_changed(object, &mut map.changed);
                        return Ok(());
                    }
                    Err(Miss(r)) => r,
                }
            };
            held.add(missed.a, self.store.fetch::<extent::Extents>(&missed)?);
        }
    }
}

/// What of the log counts, and where it ends.
struct Tail {
    records: Vec<Record>,
    /// Blocks that any record of the chain names.
    named: Vec<(u64, u64)>,
    at: u64,
    used: u64,
    sequence: u64,
    predecessor: u64,
    read_only: bool,
}

#[derive(Default)]
struct Claims {
    durable: Option<u64>,
    generation: Option<u64>,
}
