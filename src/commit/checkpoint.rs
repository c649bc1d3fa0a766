//! Checkpoints: the changed nodes of one instant, then a superblock pair.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::catalogue::{self, Catalogue, Pairs, TABLE_ROOTS, object_key};
use super::engine::{Engine, io};
use super::log::Frozen;
use super::outgoing::Outgoing;
use super::reclaim::Reclaimed;
use crate::alloc::{Ledger, Sink};
use crate::error::{Corruption, Error, Result};
use crate::extent::Extents;
use crate::format::chunk::ChunkKind;
use crate::format::superblock::{STATE_CLEAN, STATE_FAR, Superblock, Totals};
use crate::format::{NodeHeader, NodeRef, node_sum};
use crate::memory;
use crate::node::{Kind, Link, Node, Store};
use crate::trace::event;
use crate::units::{BLOCK, BLOCK_BYTES, BlockAddr, ObjectId};

/// Nodes of one kind that a checkpoint has given places.
pub(super) struct Placed<K: Kind> {
    homes: HashMap<*const Node<K>, NodeRef>,
    /// Their first places.
    fresh: BTreeSet<BlockAddr>,
    nodes: Vec<Arc<Node<K>>>,
}

impl<K: Kind> Placed<K> {
    fn none() -> Self {
        Self { homes: HashMap::new(), fresh: BTreeSet::new(), nodes: Vec::new() }
    }
    pub(super) fn home(&self, link: &Link<K>) -> Option<NodeRef> {
        match link {
            Link::Disk(r) => Some(*r),
            Link::Mem(n) => n.home().copied().or_else(|| self.homes.get(&Arc::as_ptr(n)).copied()),
        }
    }
    /// Whether the place holds nothing yet: nobody may read it before the checkpoint has written it.
    fn is_fresh(&self, at: BlockAddr) -> bool {
        self.fresh.contains(&at)
    }
    /// The checkpoint is durable: nodes get their homes, and the cache may have them.
    fn settle(&self, store: &Store) {
        for node in &self.nodes {
            if let Some(home) = self.homes.get(&Arc::as_ptr(node)) {
                node.settle(*home);
            }
        }
        for node in &self.nodes {
            if let Some(home) = node.home() {
                store.keep_node(home, &node.settled());
            }
        }
    }
}

/// New nodes of some trees, found by walking from their roots over what is not yet written.
struct News<K: Kind> {
    /// By address in memory: the node and how many links lead to it.
    seen: HashMap<*const Node<K>, usize>,
    nodes: Vec<(Arc<Node<K>>, u32)>,
}

impl<K: Kind> News<K> {
    fn visit(&mut self, link: &Link<K>) -> Result<()> {
        let Link::Mem(node) = link else { return Ok(()) };
        if node.home().is_some() {
            return Ok(());
        }
        if let Some(i) = self.seen.get(&Arc::as_ptr(node)) {
            self.nodes[*i].1 += 1;
            return Ok(());
        }
        memory::place(&mut self.seen)?;
        self.seen.insert(Arc::as_ptr(node), self.nodes.len());
        memory::push(&mut self.nodes, (Arc::clone(node), 1))?;
        node.kids.iter().try_for_each(|kid| self.visit(&kid.link))
    }
}

/// Settles the counts of all trees of one kind and places their new nodes.
///
/// Counts follow one rule: a node that is written adds one to everything it names, a node that is named no
/// more takes one from everything it named. Levels are settled from the top, so that all deltas of a node
/// are known when it is decided whether it still lives. A dead node that a new one was copied from is
/// settled by difference. Dead subtrees that nothing replaces go to `dropped` (they keep one count, owned
/// by the reclaim queue) or, for the catalogue, are walked at once.
pub(super) fn settle_trees<K: Kind>(
    ledger: &mut Ledger<'_>,
    store: &Store,
    roots: &[(Option<NodeRef>, Option<Link<K>>)],
    generation: u64,
    sink: &mut dyn Sink,
    dropped: &mut Vec<NodeRef>,
) -> Result<Placed<K>> {
    let mut news = News { seen: HashMap::new(), nodes: Vec::new() };
    let mut deltas: Vec<BTreeMap<BlockAddr, (NodeRef, i64)>> = vec![BTreeMap::new(); 32];
    for (old, new) in roots {
        if let Some(old) = old {
            bump(&mut deltas, old, -1);
        }
        if let Some(new) = new {
            match new.home() {
                Some(home) => bump(&mut deltas, &home, 1),
                None => news.visit(new)?,
            }
        }
    }
    let News { seen: _, nodes } = news;
    if nodes.is_empty() && deltas.iter().all(BTreeMap::is_empty) {
        return Ok(Placed::none());
    }
    let mut by_level: Vec<Vec<usize>> = vec![Vec::new(); 32];
    let mut copied: HashMap<BlockAddr, usize> = HashMap::new();
    for (i, (node, _)) in nodes.iter().enumerate() {
        memory::push(&mut by_level[node.level as usize], i)?;
        if let Some(origin) = node.origin().filter(|o| o.level == node.level) {
            memory::place(&mut copied)?;
            copied.entry(origin.a).or_insert(i);
        }
    }
    for level in (0..32).rev() {
        let mut paired = BTreeSet::new();
        for (addr, (r, delta)) in std::mem::take(&mut deltas[level]) {
            if delta == 0 {
                continue;
            }
            let left = i64::from(ledger.count(addr)?) + delta;
            if left > 0 {
                ledger.add_node(&r, delta)?;
                continue;
            }
            if left < 0 {
                return Err(Corruption::new("count", addr.raw(), "references", "0 or more", left).into());
            }
            match copied.get(&addr) {
                Some(i) => {
                    let old = store.fetch::<K>(&r)?;
                    settle_difference(ledger, &mut deltas, &old, &nodes[*i].0)?;
                    paired.insert(*i);
                    ledger.add_node(&r, delta)?;
                }
                None if K::DEFER_DROPS => {
                    ledger.add_node(&r, delta + 1)?;
                    memory::push(dropped, r)?;
                }
                None => {
                    let old = store.fetch::<K>(&r)?;
                    settle_all(ledger, &mut deltas, &old, -1)?;
                    ledger.add_node(&r, delta)?;
                }
            }
        }
        for i in by_level[level].iter().filter(|i| !paired.contains(i)) {
            settle_all(ledger, &mut deltas, &nodes[*i].0, 1)?;
        }
    }
    // Children before parents: a parent holds its children's checksums.
    let mut placed = Placed::none();
    for (node, links) in by_level.iter().flatten().map(|i| &nodes[*i]) {
        let (a, b) = ledger.take_node(node.twin(), *links)?;
        let header = NodeHeader {
            kind: node.kind(),
            level: node.level,
            count: 0,
            uuid: store.uuid,
            a,
            b,
            generation,
            base: 0,
        };
        let mut block = Box::new([0; BLOCK]);
        let encoded = node.encode(header, &|link| placed.home(link), &mut block);
        debug_assert!(encoded.is_some(), "children are placed before their parents");
        let home = NodeRef { a, b, sum: node_sum(&block[..]), level: node.level };
        memory::place(&mut placed.homes)?;
        placed.homes.insert(Arc::as_ptr(node), home);
        placed.fresh.insert(a);
        memory::push(&mut placed.nodes, Arc::clone(node))?;
        if let Some(b) = b {
            sink.put(b, block.clone())?;
        }
        sink.put(a, block)?;
    }
    Ok(placed)
}

type Deltas = Vec<BTreeMap<BlockAddr, (NodeRef, i64)>>;

fn bump(deltas: &mut Deltas, r: &NodeRef, by: i64) {
    deltas[r.level as usize].entry(r.a).or_insert((*r, 0)).1 += by;
}

fn settle_all<K: Kind>(ledger: &mut Ledger<'_>, deltas: &mut Deltas, node: &Node<K>, by: i64) -> Result<()> {
    for kid in &node.kids {
        if let Some(home) = kid.link.home() {
            bump(deltas, &home, by);
        }
    }
    for (block, len) in node.items.iter().filter_map(K::blocks) {
        ledger.add(BlockAddr::new(block), len, by, ChunkKind::Data)?;
    }
    Ok(())
}

fn settle_difference<K: Kind>(
    ledger: &mut Ledger<'_>,
    deltas: &mut Deltas,
    old: &Node<K>,
    new: &Node<K>,
) -> Result<()> {
    for (node, by) in [(new, 1), (old, -1)] {
        for home in node.kids.iter().filter_map(|k| k.link.home()) {
            bump(deltas, &home, by);
        }
    }
    let (mut a, mut b) = (old.items.iter().peekable(), new.items.iter().peekable());
    loop {
        let (item, by) = match (a.peek(), b.peek()) {
            (Some(x), Some(y)) if K::same(x, y) => {
                a.next();
                b.next();
                continue;
            }
            (Some(x), Some(y)) if K::key(x) <= K::key(y) => (a.next(), -1),
            (_, Some(_)) => (b.next(), 1),
            (Some(_), None) => (a.next(), -1),
            (None, None) => return Ok(()),
        };
        if let Some((block, len)) = item.and_then(K::blocks) {
            ledger.add(BlockAddr::new(block), len, by, ChunkKind::Data)?;
        }
    }
}

/// Everything a checkpoint is about to write, and what to do once it is durable.
struct Built {
    maps: Placed<Extents>,
    pairs: Placed<Pairs>,
    catalogue: Catalogue,
    edits: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    index_root: Option<NodeRef>,
    index_height: u32,
    chunks: u64,
    totals: Totals,
    reclaimed: Reclaimed,
    punch: Vec<(BlockAddr, u64)>,
}

impl Engine {
    /// Writes a checkpoint of now.
    pub(crate) fn checkpoint(&self) -> Result<()> {
        let mut superblock = self.checkpoint.lock();
        self.checkpoint_with(&mut superblock, true, false)
    }

    /// Writes a checkpoint unless somebody else just made it unnecessary.
    pub(super) fn checkpoint_when(&self, still: impl FnOnce(&Self) -> bool) -> Result<()> {
        let mut superblock = self.checkpoint.lock();
        if still(self) { self.checkpoint_with(&mut superblock, true, false) } else { Ok(()) }
    }

    pub(super) fn checkpoint_with(
        &self,
        superblock: &mut Superblock,
        record: bool,
        clean: bool,
    ) -> Result<()> {
        self.writable()?;
        let frozen = self.freeze(record)?;
        let generation = superblock.generation + 1;
        let built = match self.build(&frozen, generation) {
            Ok(built) => built,
            Err(e) => {
                self.unfreeze(&frozen);
                return Err(e);
            }
        };
        let next = Superblock {
            state: superblock.state & STATE_FAR | if clean { STATE_CLEAN } else { 0 },
            generation,
            chunks: built.chunks,
            log_epoch: self.log.lock().epoch,
            log_at: frozen.log_at,
            log_sequence: frozen.log_sequence,
            log_predecessor: frozen.log_predecessor,
            snapshot_epoch: frozen.epoch,
            index_height: built.index_height,
            index_root: built.index_root,
            catalogue_root: built.pairs.home_of(&built.catalogue),
            totals: built.totals,
            // Not that of the freeze: building the checkpoint has handed out more.
            next_internal_id: self.internal_ids.load(Ordering::Relaxed),
            ..superblock.clone()
        };
        // C4: nodes, data and records of this instant are durable before the superblock names them.
        self.sync_device()?;
        self.write_superblock(&next)?;
        *superblock = next;
        // A half-published checkpoint must not be built upon: the free blocks of the old one are no longer free.
        self.publish(&frozen, built, generation).map_err(|e| self.poison(e))
    }

    fn build(&self, frozen: &Frozen, generation: u64) -> Result<Built> {
        let mut ledger = Ledger::new(&self.space);
        let mut sink = Outgoing::new(self);
        let mut edits = Vec::new();
        for (chunk, page) in self.space.frozen_chunks() {
            ledger.checksums_changed(chunk, page)?;
        }
        let mut roots = memory::with_room(frozen.roots.len())?;
        for (object, map) in &frozen.roots {
            let key = object_key(TABLE_ROOTS, object.id);
            let old = catalogue::get(&frozen.catalogue, &self.store, &key)?;
            let old = old.map(|v| catalogue::parse_root(&v)).transpose()?;
            roots.push((old, map.root.clone()));
        }
        let mut dropped = Vec::new();
        let maps =
            settle_trees::<Extents>(&mut ledger, &self.store, &roots, generation, &mut sink, &mut dropped)?;
        let mut tree = frozen.catalogue.clone();
        for ((object, map), (old, _)) in frozen.roots.iter().zip(&roots) {
            let new = map.root.as_ref().and_then(|link| maps.home(link));
            if new != *old {
                let value = new.map(|r| catalogue::root_value(&r));
                memory::push(&mut edits, (object_key(TABLE_ROOTS, object.id), value))?;
            }
        }
        self.apply_edits(&mut tree, &edits)?;
        let reclaimed = self.reclaim(&mut ledger, &mut tree, &mut edits, dropped, &|at| maps.is_fresh(at))?;
        let old_catalogue = { *self.durable_catalogue.lock() };
        let mut none = Vec::new();
        let pairs = settle_trees::<Pairs>(
            &mut ledger,
            &self.store,
            &[(old_catalogue, tree.root.clone())],
            generation,
            &mut sink,
            &mut none,
        )?;
        let punch = if self.config.host_discard { ledger.freed_runs()? } else { Vec::new() };
        let closing = ledger.close(generation, &mut sink)?;
        sink.finish()?;
        Ok(Built {
            maps,
            pairs,
            catalogue: tree,
            edits,
            index_root: closing.root,
            index_height: closing.height,
            chunks: closing.chunks,
            totals: closing.totals,
            reclaimed,
            punch,
        })
    }

    fn apply_edits(&self, tree: &mut Catalogue, edits: &[(Vec<u8>, Option<Vec<u8>>)]) -> Result<()> {
        for (key, value) in edits {
            catalogue::set(tree, &self.store, &self.counters.checkpoint_nodes, key, value.as_deref())?;
        }
        Ok(())
    }

    /// Writes both copies of one generation and syncs. A failure latches the pool (C6).
    pub(super) fn write_superblock(&self, superblock: &Superblock) -> Result<()> {
        let mut block = [0; BLOCK];
        superblock.encode(&mut block);
        for offset in superblock.slots() {
            let wrote = self.device.write_at(&block, offset);
            wrote.map_err(io("write", offset, BLOCK_BYTES)).map_err(|e| self.poison(e))?;
        }
        self.sync_device()
    }

    /// The checkpoint is durable: the old state may be forgotten.
    fn publish(&self, frozen: &Frozen, built: Built, generation: u64) -> Result<()> {
        built.maps.settle(&self.store);
        built.pairs.settle(&self.store);
        *self.durable_catalogue.lock() = built.pairs.home_of(&built.catalogue);
        {
            let mut live = self.catalogue.write();
            let same = match (&live.root, &frozen.catalogue.root) {
                (Some(Link::Mem(a)), Some(Link::Mem(b))) => Arc::ptr_eq(a, b),
                (Some(Link::Disk(a)), Some(Link::Disk(b))) => a == b,
                (None, None) => true,
                _ => false,
            };
            if same {
                *live = built.catalogue;
            } else {
                // Transactions went on since the freeze: what the checkpoint changed is changed there too.
                for (key, value) in &built.edits {
                    catalogue::set(&mut live, &self.store, &self.dirtied, key, value.as_deref())?;
                }
            }
            live.settle();
        }
        for (object, _) in &frozen.roots {
            object.map.write().tree.settle();
        }
        // C5: who entered before this point may still look at what the checkpoint freed.
        self.pins.wait();
        let mut punched = false;
        for (addr, blocks) in &built.punch {
            // Not free yet, so nobody can have it; the sync keeps the hole from eating a later write.
            punched |= self.device.discard(addr.byte_offset(), blocks * BLOCK_BYTES).is_ok();
        }
        if punched {
            self.sync_device()?;
        }
        self.space.settle(built.index_root, built.totals)?;
        {
            let mut log = self.log.lock();
            log.unblock(false);
            log.used -= frozen.log_used;
            log.generation = generation;
            log.durable = log.durable.max(frozen.log_sequence);
        }
        self.objects.lock().retain(|_, object| {
            Arc::strong_count(object) > 1 || {
                let map = object.map.read();
                map.changed || !map.pending.is_empty()
            }
        });
        self.counters.checkpoints.fetch_add(1, Ordering::Relaxed);
        event!(generation, "checkpoint durable");
        self.reclaim_done(built.reclaimed);
        Ok(())
    }

    /// Flushes, checkpoints, and says in the superblock that the log need not be read.
    pub(crate) fn close(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Ok(());
        }
        self.stop_worker();
        let result = if self.is_read_only() {
            Ok(())
        } else {
            let mut superblock = self.checkpoint.lock();
            self.writable().and_then(|()| self.checkpoint_with(&mut superblock, true, true))
        };
        self.closed.store(true, Ordering::Release);
        self.trash_moved.notify_all();
        result
    }

    /// Refuses what would make the metadata grow into the space that deletes and checkpoints need (P7), after
    /// a checkpoint has tried to make room. See [`Space::metadata_is_short`](crate::alloc::Space).
    pub(super) fn room_for_metadata(&self, quarters: u64, more: u64) -> Result<()> {
        while self.space.metadata_is_short(quarters, more) {
            let walked = self.counters.reclaim_steps.load(Ordering::Relaxed);
            let worth = self.space.taken_blocks() > 0 || self.reclaim_pending()?;
            if worth {
                self.checkpoint()?;
            }
            if !self.space.metadata_is_short(quarters, more) {
                return Ok(());
            }
            let moved = self.counters.reclaim_steps.load(Ordering::Relaxed) != walked;
            let goes_on = worth && moved && self.reclaim_pending()?;
            if !goes_on && !self.space.grow_again()? {
                return Err(Error::OutOfSpace { needed_bytes: BLOCK_BYTES, available_bytes: 0 });
            }
        }
        Ok(())
    }

    /// Makes room by checkpoints while they free something or the reclaim queue goes on.
    pub(super) fn make_room(&self, blocks: u64) -> Result<bool> {
        let before = self.space.available_blocks();
        if before >= blocks {
            return Ok(true);
        }
        let taken = self.space.taken_blocks();
        let queued = self.reclaim_pending()?;
        if taken == 0 && !queued {
            return Ok(false);
        }
        let walked = self.counters.reclaim_steps.load(Ordering::Relaxed);
        self.checkpoint()?;
        let moved = self.counters.reclaim_steps.load(Ordering::Relaxed) != walked;
        Ok(self.space.available_blocks() > before || (moved && self.reclaim_pending()?))
    }
}

impl Placed<Pairs> {
    fn home_of(&self, tree: &Catalogue) -> Option<NodeRef> {
        tree.root.as_ref().and_then(|link| self.home(link))
    }
}

/// What is known of an object's map in the durable checkpoint.
pub(super) fn durable_root(store: &Store, tree: &Catalogue, id: ObjectId) -> Result<Option<NodeRef>> {
    let record = catalogue::get(tree, store, &object_key(TABLE_ROOTS, id))?;
    record.map(|v| catalogue::parse_root(&v)).transpose()
}
