//! Counts during a checkpoint: deltas are applied, metadata blocks acquired and given up, and at the end
//! the pages and index nodes that describe all this are laid out.
//!
//! The snake that eats its tail: writing a count page takes a block, which changes a count, which dirties
//! a page. [`Ledger::close`] therefore first closes the set of pages and nodes that must be written (each
//! gets its place exactly once, so this ends), and only then encodes anything.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::Bits;
use super::index::{self, IndexNode};
use super::pages::ChecksumPage;
use super::space::Space;
use crate::error::{Corruption, Error, Result};
use crate::format::chunk::{ChunkEntry, ChunkKind, Counts, PageRef};
use crate::format::chunk::{FANOUT, index_height};
use crate::format::superblock::Totals;
use crate::format::{BlockKind, NodeHeader, NodeRef, node_sum, page_sum};
use crate::node::AddrHash;
use crate::units::{BLOCK, BLOCK_BYTES, BlockAddr};

struct Work {
    old: ChunkEntry,
    kind: ChunkKind,
    counts: Counts,
    /// Free in the durable checkpoint and not acquired by this one: what metadata may take (A1).
    base_free: Bits,
    dirty: bool,
    /// Some block came to zero.
    freed: bool,
    /// The checksum page, where this checkpoint knows more of it than the medium.
    checksums: Option<Arc<ChecksumPage>>,
    /// The checksum page is to be written; it is loaded only then, so that many of them take no memory.
    blanked: bool,
    closed: bool,
    counts_at: Option<(BlockAddr, BlockAddr)>,
    checksums_at: Option<BlockAddr>,
}

/// Takes the blocks of a checkpoint as they are encoded, in whatever order they come.
pub(crate) trait Sink {
    /// Writes `block` at `at`, now or later.
    fn put(&mut self, at: BlockAddr, block: Box<[u8; BLOCK]>) -> Result<()>;
}

/// What closing the ledger produced: the new root of the index.
pub(crate) struct Closing {
    pub(crate) root: Option<NodeRef>,
    pub(crate) totals: Totals,
    pub(crate) height: u32,
    /// Chunks that the index covers.
    pub(crate) chunks: u64,
}

/// Counts as the checkpoint under way changes them.
pub(crate) struct Ledger<'a> {
    space: &'a Space,
    works: HashMap<u64, Work, AddrHash>,
    chunks: u64,
    old_root: Option<NodeRef>,
    /// Metadata chunk that blocks are taken from now.
    source: Option<u64>,
    class: u16,
    cursor: u64,
    /// Data chunks that are counted; the others are passed over.
    window: std::ops::Range<u64>,
}

impl<'a> Ledger<'a> {
    pub(crate) fn new(space: &'a Space) -> Self {
        let index = *space.index.read();
        let class = (space.geometry.blocks_per_chunk / 4).min(64) as u16;
        Self {
            space,
            works: HashMap::default(),
            chunks: index.chunks,
            old_root: index.root,
            source: None,
            class,
            cursor: 0,
            window: 0..u64::MAX,
        }
    }

    /// A ledger that counts data only in these chunks: whoever asks about much works in passes, so that
    /// memory stays bounded.
    pub(crate) fn within(space: &'a Space, window: std::ops::Range<u64>) -> Self {
        Self { window, ..Self::new(space) }
    }

    fn work(&mut self, chunk: u64) -> Result<&mut Work> {
        match self.works.entry(chunk) {
            Entry::Occupied(e) => Ok(e.into_mut()),
            Entry::Vacant(e) => {
                let old = self.space.entry(chunk)?;
                let counts = self.space.counts_of(&old)?;
                let base_free = Bits::free_in(&counts);
                Ok(e.insert(Work {
                    kind: old.kind,
                    old,
                    counts,
                    base_free,
                    dirty: false,
                    freed: false,
                    checksums: None,
                    blanked: false,
                    closed: false,
                    counts_at: None,
                    checksums_at: None,
                }))
            }
        }
    }

    fn locate(&self, addr: BlockAddr, len: u64) -> Result<(u64, usize)> {
        let g = &self.space.geometry;
        g.locate(addr)
            .filter(|(chunk, at)| *chunk < self.chunks && *at as u64 + len <= g.blocks_per_chunk)
            .ok_or_else(|| {
                let want = format!("a run within one of {} chunks", self.chunks);
                Corruption::new("reference", addr.raw(), "address", want, format!("{}+{len}", addr.raw()))
                    .into()
            })
    }

    /// How often `addr` is named by now.
    pub(crate) fn count(&mut self, addr: BlockAddr) -> Result<u32> {
        let (chunk, at) = self.locate(addr, 1)?;
        Ok(self.work(chunk)?.counts.get(at))
    }

    /// Adds `delta` to the counts of a run. Returns how many blocks came to zero.
    pub(crate) fn add(&mut self, addr: BlockAddr, len: u64, delta: i64, kind: ChunkKind) -> Result<u64> {
        let (chunk, at) = self.locate(addr, len)?;
        if kind == ChunkKind::Data && !self.window.contains(&chunk) {
            return Ok(0);
        }
        let w = self.work(chunk)?;
        if w.kind == ChunkKind::Free {
            w.kind = kind;
        }
        if w.kind != kind {
            return Err(Corruption::new(
                "chunk",
                chunk,
                "kind",
                format!("{kind:?}"),
                format!("{:?}", w.kind),
            )
            .into());
        }
        w.dirty = true;
        let zeroed = w.counts.add(at, len as usize, delta).map_err(|(i, new)| {
            Corruption::new("count", addr.raw() + (i - at) as u64, "count", "0 to 2^32-1", new)
        })?;
        w.freed |= zeroed > 0;
        Ok(zeroed)
    }

    /// Adds `delta` to both copies of a node. Returns true when it is named no more.
    pub(crate) fn add_node(&mut self, r: &NodeRef, delta: i64) -> Result<bool> {
        let mut gone = false;
        for at in std::iter::once(r.a).chain(r.b) {
            gone = self.add(at, 1, delta, ChunkKind::Meta)? > 0;
        }
        Ok(gone)
    }

    /// Chunks with this property, ascending: equal checkpoints are written as equal bytes.
    fn chunks_where(&self, is: impl Fn(&Work) -> bool) -> Vec<u64> {
        let mut chunks: Vec<u64> =
            self.works.iter().filter(|(_, w)| is(w)).map(|(chunk, _)| *chunk).collect();
        chunks.sort_unstable();
        chunks
    }

    /// Chunks that have been looked at: what the ledger takes in memory.
    pub(crate) fn chunks_held(&self) -> usize {
        self.works.len()
    }

    /// Runs of data blocks that are named no more. Read before the ledger is closed.
    pub(crate) fn freed_runs(&self) -> Vec<(BlockAddr, u64)> {
        let mut runs = Vec::new();
        for chunk in self.chunks_where(|w| w.dirty && w.old.kind == ChunkKind::Data) {
            let w = &self.works[&chunk];
            let Ok(before) = self.space.counts_of(&w.old) else { continue };
            let mut freed = Bits::free_in(&w.counts);
            freed.subtract(&Bits::free_in(&before));
            let start = self.space.geometry.chunk_start(chunk);
            runs.extend(freed.runs().map(|(at, len)| (start + at as u64, len as u64)));
        }
        runs
    }

    /// The checksum page of this data chunk must be written: blocks in it were taken.
    pub(crate) fn checksums_changed(&mut self, chunk: u64, page: Arc<ChecksumPage>) -> Result<()> {
        let w = self.work(chunk)?;
        w.checksums = Some(page);
        Ok(())
    }

    /// Acquires one metadata block, counted once per `count` references it is about to have.
    pub(crate) fn take(&mut self, count: u32) -> Result<BlockAddr> {
        loop {
            if let Some(chunk) = self.source {
                let start = self.space.geometry.chunk_start(chunk);
                let w = self.work(chunk)?;
                let next = w.base_free.runs().next();
                if let Some((at, _)) = next {
                    w.base_free.remove(at, 1);
                    w.counts.set(at, count);
                    w.kind = ChunkKind::Meta;
                    w.dirty = true;
                    return Ok(start + at as u64);
                }
            }
            self.source = Some(self.next_source()?);
        }
    }

    fn next_source(&mut self) -> Result<u64> {
        loop {
            if let Some(chunk) = self.space.search_meta(self.cursor, self.class)? {
                self.cursor = chunk + 1;
                match self.work(chunk) {
                    Ok(w) if w.kind == ChunkKind::Meta && !w.base_free.is_empty() => return Ok(chunk),
                    // A damaged count page costs the free blocks of its chunk, not the pool.
                    Ok(_) | Err(Error::Corrupt(_)) => continue,
                    Err(e) => return Err(e),
                }
            }
            if self.class > 1 {
                self.class = (self.class / 4).max(1);
                self.cursor = 0;
                continue;
            }
            let Some(chunk) = self.space.open_meta()? else {
                return Err(Error::OutOfSpace { needed_bytes: BLOCK_BYTES, available_bytes: 0 });
            };
            // The pool may have grown since the ledger was opened; its index covers what it uses.
            self.chunks = self.chunks.max(self.space.index.read().chunks);
            let bpc = self.space.geometry.blocks_per_chunk as usize;
            let w = self.work(chunk)?;
            w.kind = ChunkKind::Meta;
            w.base_free = Bits::first(bpc);
            return Ok(chunk);
        }
    }

    fn take_twin(&mut self, twin: bool, count: u32) -> Result<(BlockAddr, Option<BlockAddr>)> {
        let a = self.take(count)?;
        let b = if twin { Some(self.take(count)?) } else { None };
        Ok((a, b))
    }

    /// Places for a node and, if it is written twice, its second copy.
    pub(crate) fn take_node(&mut self, twin: bool, count: u32) -> Result<(BlockAddr, Option<BlockAddr>)> {
        self.take_twin(twin, count)
    }

    /// The node of the durable index at this position.
    fn old_node(&self, level: u8, number: u64) -> Result<Option<(NodeRef, Arc<IndexNode>)>> {
        let Some(mut at) = self.old_root.filter(|r| level <= r.level) else { return Ok(None) };
        let (store, g) = (&self.space.store, &self.space.geometry);
        let first = number * index::span(level);
        if first >= index::span(at.level) {
            return Ok(None);
        }
        let mut start = 0;
        loop {
            let node = index::fetch(store, g, &at, start)?;
            if at.level == level {
                return Ok(Some((at, node)));
            }
            let IndexNode::Inner(entries) = &*node else { return Ok(None) };
            let below = index::span(at.level - 1);
            let i = (first - start) / below;
            start += i * below;
            match entries[i as usize].child {
                Some(child) => at = child,
                None => return Ok(None),
            }
        }
    }

    /// Lays out everything that changed, and hands it to `sink` as it is encoded. `generation` is the
    /// checkpoint's.
    pub(crate) fn close(mut self, generation: u64, sink: &mut dyn Sink) -> Result<Closing> {
        for w in self.works.values_mut() {
            // A chunk in which nothing is named is free again (A4), and so are its pages.
            if w.dirty && w.kind != ChunkKind::Free && w.counts.is_uniform() == Some(0) {
                w.kind = ChunkKind::Free;
                w.base_free = Bits::none();
            }
        }
        if let Some(source) = self.source
            && self.works.get(&source).is_some_and(|w| w.kind == ChunkKind::Free)
        {
            self.source = None;
        }
        // The first block is taken now: it may grow the pool, and with it the height of the index.
        self.source = Some(match self.source {
            Some(source) => source,
            None => self.next_source()?,
        });
        let mut height = index_height(self.chunks);
        let mut nodes: BTreeMap<(u8, u64), (BlockAddr, BlockAddr)> = BTreeMap::new();
        if let Some(old) = self.old_root {
            // The tree grew higher: the old root must get parents even if nothing below it changed.
            for level in old.level + 1..height as u8 {
                self.place_index_node(&mut nodes, level, 0)?;
            }
        }
        loop {
            let todo = self.chunks_where(|w| !w.closed && (w.dirty || w.checksums.is_some()));
            if todo.is_empty() && index_height(self.chunks) == height {
                break;
            }
            // Growing on the way may have made the index higher: what is placed gets its new parents.
            let now = index_height(self.chunks);
            if now > height {
                let top: Vec<u64> =
                    nodes.keys().filter(|(l, _)| u32::from(*l) == height - 1).map(|k| k.1).collect();
                for level in height as u8..now as u8 {
                    for number in &top {
                        let up = FANOUT.pow(u32::from(level) + 1 - height);
                        self.place_index_node(&mut nodes, level, number / up)?;
                    }
                    if self.old_root.is_some() {
                        self.place_index_node(&mut nodes, level, 0)?;
                    }
                }
                height = now;
            }
            for chunk in todo {
                self.close_chunk(chunk)?;
                for level in 0..height as u8 {
                    self.place_index_node(&mut nodes, level, chunk / index::span(level))?;
                }
            }
        }
        let entries = self.encode_pages(sink)?;
        let (root, totals) = self.encode_index(&nodes, &entries, height, generation, sink)?;
        Ok(Closing { root, totals, height, chunks: self.chunks })
    }

    fn place_index_node(
        &mut self,
        nodes: &mut BTreeMap<(u8, u64), (BlockAddr, BlockAddr)>,
        level: u8,
        number: u64,
    ) -> Result<()> {
        if nodes.contains_key(&(level, number)) {
            return Ok(());
        }
        if let Some((old, _)) = self.old_node(level, number)? {
            self.add_node(&old, -1)?;
        }
        let (a, b) = (self.take(1)?, self.take(1)?);
        nodes.insert((level, number), (a, b));
        Ok(())
    }

    /// Gives up the old pages of a chunk and finds places for the new ones.
    fn close_chunk(&mut self, chunk: u64) -> Result<()> {
        let space = self.space;
        let w = self.work(chunk)?;
        w.closed = true;
        let old = w.old;
        let free = w.kind == ChunkKind::Free;
        if w.freed && w.kind == ChunkKind::Data && !free && w.checksums.is_none() {
            // The checksums of what is free now go to zero (A7). A page beyond repair stays as it is.
            w.blanked = match space.checksums(chunk) {
                Ok(_) => true,
                Err(Error::Corrupt(_)) => false,
                Err(e) => return Err(e),
            };
        }
        // Counts of metadata chunks may still change while the set is closed: they always get a page.
        let wants_counts = !free && w.dirty && (w.kind == ChunkKind::Meta || w.counts.is_uniform().is_none());
        let counts_change = w.dirty;
        let wants_checksums = !free && (w.checksums.is_some() || w.blanked);
        if counts_change {
            for at in old.counts.iter().flat_map(PageRef::copies) {
                self.add(at, 1, -1, ChunkKind::Meta)?;
            }
        }
        if (free || wants_checksums)
            && let Some(page) = old.checksums
        {
            self.add(page.addr, 1, -1, ChunkKind::Meta)?;
        }
        let counts_at = if wants_counts { Some((self.take(1)?, self.take(1)?)) } else { None };
        let checksums_at = if wants_checksums { Some(self.take(1)?) } else { None };
        let w = self.work(chunk)?;
        w.counts_at = counts_at;
        w.checksums_at = checksums_at;
        Ok(())
    }

    fn encode_pages(&mut self, sink: &mut dyn Sink) -> Result<BTreeMap<u64, ChunkEntry>> {
        let uuid = self.space.store.uuid;
        let mut entries = BTreeMap::new();
        for chunk in self.chunks_where(|w| w.closed) {
            let w = self.works.get_mut(&chunk).ok_or(Error::Poisoned)?;
            if w.kind == ChunkKind::Free {
                entries.insert(chunk, ChunkEntry::default());
                continue;
            }
            let mut e = w.old;
            e.kind = w.kind;
            if w.dirty {
                w.counts.narrow();
                (e.free, e.longest) = w.counts.free_and_longest();
                e.counts = None;
                e.width = 0;
                e.uniform = 0;
                match w.counts_at {
                    Some((addr, twin)) => {
                        let mut page = Box::new([0; BLOCK]);
                        w.counts.encode(&mut page);
                        let sum = page_sum(&page[..], &uuid, BlockKind::Counts, addr);
                        e.counts = Some(PageRef { addr, twin: Some(twin), sum });
                        e.width = w.counts.width();
                        let bytes = w.counts.memory_bytes();
                        self.space.store.keep(addr.raw(), sum, bytes, Arc::new(w.counts.clone()));
                        sink.put(twin, page.clone())?;
                        sink.put(addr, page)?;
                    }
                    None => e.uniform = w.counts.get(0),
                }
            }
            if let Some(addr) = w.checksums_at {
                let checksums = match &w.checksums {
                    Some(page) => Arc::clone(page),
                    None => self.space.checksums(chunk)?,
                };
                let mut page = Box::new([0; BLOCK]);
                checksums.encode(&w.counts, &mut page);
                let sum = page_sum(&page[..], &uuid, BlockKind::Checksums, addr);
                e.checksums = Some(PageRef { addr, twin: None, sum });
                sink.put(addr, page)?;
            }
            entries.insert(chunk, e);
        }
        Ok(entries)
    }

    fn encode_index(
        &self,
        nodes: &BTreeMap<(u8, u64), (BlockAddr, BlockAddr)>,
        entries: &BTreeMap<u64, ChunkEntry>,
        height: u32,
        generation: u64,
        sink: &mut dyn Sink,
    ) -> Result<(Option<NodeRef>, Totals)> {
        let mut done: BTreeMap<(u8, u64), crate::format::chunk::IndexEntry> = BTreeMap::new();
        // Keys ascend by level, so children are encoded before their parents.
        for (&(level, number), &(a, b)) in nodes {
            let mut node = match self.old_node(level, number)? {
                Some((_, node)) => IndexNode::clone(&node),
                None => IndexNode::empty(level),
            };
            let first = number * index::span(level);
            match &mut node {
                IndexNode::Leaf(slots) => {
                    for (chunk, e) in entries.range(first..first + FANOUT) {
                        slots[(chunk - first) as usize] = *e;
                    }
                }
                IndexNode::Inner(slots) => {
                    let kids = number * FANOUT..(number + 1) * FANOUT;
                    if let Some(old) = self.old_root.filter(|r| r.level + 1 == level && number == 0) {
                        let node = index::fetch(&self.space.store, &self.space.geometry, &old, 0)?;
                        slots[0] = node.summary(old);
                    }
                    for (&(_, kid), e) in done.range((level - 1, kids.start)..(level - 1, kids.end)) {
                        slots[(kid - kids.start) as usize] = *e;
                    }
                }
            }
            let mut block = Box::new([0; BLOCK]);
            let header = NodeHeader {
                kind: node.kind(),
                level,
                count: 0,
                uuid: self.space.store.uuid,
                a,
                b: Some(b),
                generation,
                base: first,
            };
            node.encode(header, &mut block);
            let r = NodeRef { a, b: Some(b), sum: node_sum(&block[..]), level };
            done.insert((level, number), node.summary(r));
            self.space.store.keep(a.raw(), r.sum, BLOCK, Arc::new(node));
            sink.put(b, block.clone())?;
            sink.put(a, block)?;
        }
        let root = match done.get(&(height as u8 - 1, 0)) {
            Some(e) => *e,
            None => match self.old_root {
                Some(old) => {
                    let node = index::fetch(&self.space.store, &self.space.geometry, &old, 0)?;
                    node.summary(old)
                }
                None => return Ok((None, Totals::default())),
            },
        };
        let bpc = self.space.geometry.blocks_per_chunk;
        if root.data_chunks + root.meta_chunks > self.chunks
            || root.data_free > root.data_chunks * bpc
            || root.meta_free > root.meta_chunks * bpc
        {
            let want = format!("within {} chunks", self.chunks);
            return Err(Corruption::new("chunk index", 0, "totals", want, format!("{root:?}")).into());
        }
        let totals = Totals {
            data_chunks: root.data_chunks,
            meta_chunks: root.meta_chunks,
            data_free: root.data_free,
            meta_free: root.meta_free,
        };
        Ok((root.child, totals))
    }
}
