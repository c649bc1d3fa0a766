//! The reclaim queue: maps that nobody names are walked a piece per checkpoint, and their blocks come back.
//!
//! A queue entry owns one reference to a node. While the node has other owners, giving up that reference
//! is all there is to do; a node that is the queue's alone is opened, its children become entries in turn,
//! and it goes when they have. So every checkpoint leaves counts and queue consistent, and a crash resumes
//! where the last checkpoint stood.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use super::catalogue::{
    self, Catalogue, TABLE_RECLAIM, TABLE_ROOTS, TABLE_TRASH, neighbour, object_key, object_of, queue_key,
    queued,
};
use super::checkpoint::durable_root;
use super::engine::Engine;
use crate::alloc::Ledger;
use crate::error::{Corruption, Error, Result};
use crate::extent::Extents;
use crate::format::NodeRef;
use crate::format::chunk::ChunkKind;
use crate::memory;
use crate::node::{Kind, Link, Store};
use crate::units::{BLOCK_BYTES, BlockAddr, ObjectId};

/// Leaf entries and nodes that one checkpoint walks at least, if there are as many.
const BUDGET: usize = 1 << 18;
/// How many times as many it walks while no writer waits for it. Each checkpoint writes the pages of every chunk
/// that it touched: walking on is cheaper than coming back.
const TIMES: usize = if cfg!(test) { 1 } else { 16 };
/// Data chunks that one pass of a plan counts: 64 GiB, some 20 MiB of memory.
const PLAN_CHUNKS: usize = 16_384;
/// Chunks whose counts one checkpoint may hold before reclaim leaves the rest to the next.
/// Some 800 bytes each.
const CHUNKS: usize = 8192;
/// Deleted maps that one checkpoint takes up at most.
const BATCH: usize = 1024;

/// How far the reclaim of one deleted map has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TrashState {
    pub(crate) done: bool,
    /// Bytes of data blocks that came back so far.
    pub(crate) freed_bytes: u64,
    /// Extents and nodes walked so far.
    pub(crate) scanned: u64,
}

/// What a checkpoint reclaimed.
#[derive(Default)]
pub(super) struct Reclaimed {
    progress: BTreeMap<ObjectId, TrashState>,
}

struct Queue<'a> {
    store: &'a Store,
    tree: &'a mut Catalogue,
    edits: &'a mut Vec<(Vec<u8>, Option<Vec<u8>>)>,
    dummy: &'a std::sync::atomic::AtomicU64,
}

impl Queue<'_> {
    fn set(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) -> Result<()> {
        catalogue::set(self.tree, self.store, self.dummy, &key, value.as_deref())?;
        memory::push(self.edits, (key, value))
    }
}

impl Engine {
    /// The part of a checkpoint that walks the queue. `fresh` are nodes that this checkpoint has yet to write.
    pub(super) fn reclaim(
        &self,
        ledger: &mut Ledger<'_>,
        tree: &mut Catalogue,
        edits: &mut Vec<(Vec<u8>, Option<Vec<u8>>)>,
        dropped: Vec<NodeRef>,
        fresh: &dyn Fn(BlockAddr) -> bool,
    ) -> Result<Reclaimed> {
        let mut out = Reclaimed::default();
        let mut q = Queue { store: &self.store, tree, edits, dummy: &self.counters.checkpoint_nodes };
        for r in dropped {
            // Before every deletion: what was displaced is not to be credited to whoever was deleted after it.
            let id = self.internal_id();
            q.set(queue_key(0, id, 0), Some(catalogue::queue_value(&r, 0)))?;
        }
        // Deleted objects hand their root to the queue.
        let mut waiting = Vec::new();
        let mut at = vec![TABLE_TRASH];
        while let Some((key, value)) =
            neighbour(q.tree, q.store, &at, false)?.filter(|(k, _)| k[0] == TABLE_TRASH)
        {
            let (number, in_queue) = catalogue::parse_trash(&value)?;
            if let Some(id) = object_of(&key).filter(|_| !in_queue) {
                memory::push(&mut waiting, (number, id))?;
            }
            at = key;
            at.push(0);
        }
        waiting.sort_unstable();
        for (number, id) in waiting.into_iter().take(BATCH) {
            let key = object_key(TABLE_TRASH, id);
            match durable_root(q.store, q.tree, id)? {
                Some(root) => {
                    q.set(queue_key(number, id, 0), Some(catalogue::queue_value(&root, 0)))?;
                    q.set(object_key(TABLE_ROOTS, id), None)?;
                    q.set(key, Some(catalogue::trash_value(number, true)))?;
                }
                None => {
                    out.progress.entry(id).or_default().done = true;
                    q.set(key, None)?;
                }
            }
        }
        let (mut budget, mut times) = (BUDGET, 1);
        loop {
            if budget == 0 {
                let pressed = self.dirty_pages() >= self.space.dirty_limit / 2;
                if times == TIMES || pressed || ledger.chunks_held() > CHUNKS {
                    break;
                }
                (budget, times) = (BUDGET, times + 1);
            }
            let next = neighbour(q.tree, q.store, &[TABLE_RECLAIM], false)?;
            let Some((key, _)) = next.filter(|(k, _)| k[0] == TABLE_RECLAIM) else { break };
            let Some((number, id)) = queued(&key) else {
                let found = format!("{key:02x?}");
                return Err(
                    Corruption::new("reclaim queue", 0, "key", "a number and an object", found).into()
                );
            };
            let before = stack_of(q.tree, q.store, number, id)?;
            if before.is_empty() || before.iter().any(|(r, _)| fresh(r.a)) {
                // Its nodes are on the medium when the next checkpoint comes; the order is kept.
                break;
            }
            let mut stack = before.clone();
            let progress = out.progress.entry(id).or_default();
            walk(ledger, &self.store, &mut stack, progress, &mut budget)?;
            progress.done = stack.is_empty();
            if stack.is_empty() && catalogue::get(q.tree, q.store, &object_key(TABLE_TRASH, id))?.is_some() {
                q.set(object_key(TABLE_TRASH, id), None)?;
            }
            for depth in 0..before.len().max(stack.len()) {
                if before.get(depth) != stack.get(depth) {
                    let value = stack.get(depth).map(|(r, next)| catalogue::queue_value(r, *next));
                    q.set(queue_key(number, id, depth as u16), value)?;
                }
            }
        }
        self.counters.reclaim_steps.fetch_add(q.edits.len() as u64, Ordering::Relaxed);
        Ok(out)
    }

    pub(super) fn reclaim_done(&self, reclaimed: Reclaimed) {
        let mut trash = self.trash.lock();
        for (id, p) in reclaimed.progress {
            self.counters.reclaimed_bytes.fetch_add(p.freed_bytes, Ordering::Relaxed);
            if let Some(state) = trash.get_mut(&id) {
                state.done |= p.done;
                state.freed_bytes += p.freed_bytes;
                state.scanned += p.scanned;
            }
        }
        self.trash_moved.notify_all();
    }

    /// Whether anything waits to be reclaimed.
    pub(super) fn reclaim_pending(&self) -> Result<bool> {
        let _pin = self.pins.enter();
        let next = neighbour(&self.catalogue.read(), &self.store, &[TABLE_TRASH], false)?;
        Ok(next.is_some_and(|(key, _)| key[0] == TABLE_TRASH || key[0] == TABLE_RECLAIM))
    }

    /// Whether the durable checkpoint is not what there is now: maps or catalogue are newer, or the log has records.
    fn is_ahead(&self) -> bool {
        self.log.lock().used > 0
            || !self.changed.lock().is_empty()
            || matches!(self.catalogue.read().root, Some(Link::Mem(_)))
    }

    pub(crate) fn trash_state(&self, id: ObjectId) -> TrashState {
        let done = TrashState { done: true, ..TrashState::default() };
        self.trash.lock().get(&id).copied().unwrap_or(done)
    }

    /// Nobody will ask for these any more.
    pub(crate) fn forget_trash(&self, ids: &[ObjectId]) {
        let mut trash = self.trash.lock();
        ids.iter().for_each(|id| {
            trash.remove(id);
        });
    }

    /// Waits until the space of these deleted maps is back. Returns the bytes freed.
    pub(crate) fn wait_trash(&self, ids: &[ObjectId]) -> Result<u64> {
        loop {
            {
                let trash = self.trash.lock();
                let states = || ids.iter().filter_map(|id| trash.get(id));
                if states().all(|s| s.done) {
                    return Ok(states().map(|s| s.freed_bytes).sum());
                }
            }
            // Whoever waits does the work: no need to wait for a thread to come round.
            self.writable()?;
            self.checkpoint()?;
        }
    }

    /// Gives back what was deleted before: what somebody shares with it is counted as theirs alone then.
    fn finish_deletions(&self) -> Result<()> {
        while self.reclaim_pending()? {
            let walked = self.counters.reclaim_steps.load(Ordering::Relaxed);
            self.checkpoint()?;
            if self.counters.reclaim_steps.load(Ordering::Relaxed) == walked {
                break;
            }
        }
        Ok(())
    }

    /// Data blocks that would come back if all these objects went, with the bases that would go with them. Nothing
    /// is changed.
    pub(crate) fn exclusive_blocks(&self, ids: &[ObjectId]) -> Result<u64> {
        let ids = &self.with_bases(ids)?;
        if !self.is_read_only() {
            self.finish_deletions()?;
        } else if self.reclaim_pending()? || self.is_ahead() {
            return Err(Error::Unsupported(
                "exclusive bytes of a pool that is open for reading only and was not closed, or not done with deleting"
                    .into(),
            ));
        }
        let mut superblock = self.checkpoint.lock();
        if !self.is_read_only() && self.is_ahead() {
            self.checkpoint_with(&mut superblock, true, false)?;
        }
        let tree = Catalogue { root: (*self.durable_catalogue.lock()).map(Link::Disk) };
        let chunks = self.space.index.read().chunks;
        let mut freed = 0;
        for start in (0..chunks).step_by(PLAN_CHUNKS) {
            let mut ledger = Ledger::within(&self.space, start..start + PLAN_CHUNKS as u64);
            for id in ids {
                if let Some(root) = durable_root(&self.store, &tree, *id)? {
                    freed += drop_node(&mut ledger, &self.store, &root)?;
                }
            }
        }
        Ok(freed)
    }
}

/// Takes one reference from a node, in the ledger only; returns data blocks that come to zero.
fn drop_node(ledger: &mut Ledger<'_>, store: &Store, r: &NodeRef) -> Result<u64> {
    if !ledger.add_node(r, -1)? {
        return Ok(0);
    }
    let node = store.fetch::<Extents>(r)?;
    let mut freed = 0;
    // Levels fall by one each time, so this ends (checked when a node is decoded).
    for kid in node.kids.iter().filter_map(|k| k.link.home()) {
        freed += drop_node(ledger, store, &kid)?;
    }
    for (block, len) in node.items.iter().filter_map(Extents::blocks) {
        freed += ledger.add(BlockAddr::new(block), len, -1, ChunkKind::Data)?;
    }
    Ok(freed)
}

type Stack = Vec<(NodeRef, u16)>;

fn stack_of(tree: &Catalogue, store: &Store, number: u64, id: ObjectId) -> Result<Stack> {
    let mut stack = Vec::new();
    while let Some(value) = catalogue::get(tree, store, &queue_key(number, id, stack.len() as u16))? {
        let entry = catalogue::parse_queue(&value)?;
        // Each entry is a child of the one before: levels fall, so a stack is no higher than a tree.
        if stack.last().is_some_and(|(above, _): &(NodeRef, u16)| above.level <= entry.0.level) {
            let (at, found) = (entry.0.a.raw(), entry.0.level);
            return Err(Corruption::new(
                "reclaim queue",
                at,
                "level",
                "below that of the entry before",
                found,
            )
            .into());
        }
        stack.push(entry);
    }
    Ok(stack)
}

fn walk(
    ledger: &mut Ledger<'_>,
    store: &Store,
    stack: &mut Stack,
    progress: &mut TrashState,
    budget: &mut usize,
) -> Result<()> {
    while let Some((r, next)) = stack.last().copied() {
        if *budget == 0 || ledger.chunks_held() > CHUNKS {
            *budget = 0;
            return Ok(());
        }
        *budget -= 1;
        progress.scanned += 1;
        if next == 0 && ledger.count(r.a)? > 1 {
            ledger.add_node(&r, -1)?;
            stack.pop();
            continue;
        }
        let node = match store.fetch::<Extents>(&r) {
            Ok(node) => node,
            Err(Error::Corrupt(_)) => {
                // What a damaged node named cannot be told any more. It stays counted (a leak that check
                // reports) rather than stop the reclaim of everything behind it.
                stack.pop();
                continue;
            }
            Err(e) => return Err(e),
        };
        if let Some(kid) = node.kids.get(next as usize) {
            if let Some(last) = stack.last_mut() {
                last.1 += 1;
            }
            stack.extend(kid.link.home().map(|home| (home, 0)));
            continue;
        }
        for (block, len) in node.items.iter().filter_map(Extents::blocks) {
            let freed = ledger.add(BlockAddr::new(block), len, -1, ChunkKind::Data)?;
            progress.freed_bytes += freed * BLOCK_BYTES;
        }
        progress.scanned += node.items.len() as u64;
        *budget = budget.saturating_sub(node.items.len());
        ledger.add_node(&r, -1)?;
        stack.pop();
    }
    Ok(())
}
