//! The chunk index: a tree of fixed fan-out from chunk numbers to chunk entries.
//!
//! Nodes at level 0 hold 63 [`ChunkEntry`]s, nodes above 63 [`IndexEntry`]s with totals and maxima of what
//! lies below. A child that was never written stands for chunks that are all free.

use std::sync::Arc;

use crate::error::{Corruption, Result};
use crate::format::chunk::{ChunkEntry, ChunkKind, FANOUT, IndexEntry};
use crate::format::{BlockKind, NodeHeader, NodeRef, Reader, Writer};
use crate::node::Store;
use crate::units::{BLOCK, Geometry};

/// Chunks below one node of `level`.
pub(crate) fn span(level: u8) -> u64 {
    FANOUT.saturating_pow(u32::from(level) + 1)
}

#[derive(Clone, Debug)]
pub(crate) enum IndexNode {
    Leaf(Vec<ChunkEntry>),
    Inner(Vec<IndexEntry>),
}

impl IndexNode {
    pub(crate) fn empty(level: u8) -> Self {
        if level == 0 {
            Self::Leaf(vec![ChunkEntry::default(); FANOUT as usize])
        } else {
            Self::Inner(vec![IndexEntry::default(); FANOUT as usize])
        }
    }

    pub(crate) fn kind(&self) -> BlockKind {
        match self {
            Self::Leaf(_) => BlockKind::IndexLeaf,
            Self::Inner(_) => BlockKind::IndexInner,
        }
    }

    pub(crate) fn encode(&self, mut h: NodeHeader, block: &mut [u8; BLOCK]) {
        h.count = FANOUT as u16;
        let mut w = Writer::new(&mut block[NodeHeader::BYTES..]);
        match self {
            Self::Leaf(entries) => entries.iter().for_each(|e| e.encode(&mut w)),
            Self::Inner(entries) => entries.iter().for_each(|e| e.encode(&mut w)),
        }
        w.finish();
        h.encode(block);
    }

    pub(crate) fn decode(
        block: &[u8; BLOCK],
        r: &NodeRef,
        uuid: &[u8; 16],
        g: &Geometry,
        first: u64,
    ) -> Result<Self, Corruption> {
        let kind = if r.level == 0 { BlockKind::IndexLeaf } else { BlockKind::IndexInner };
        let h = NodeHeader::decode(block, kind, uuid, r)?;
        let mut reader = Reader::new(&block[NodeHeader::BYTES..], kind.name(), r.a.raw());
        if u64::from(h.count) != FANOUT || h.base != first {
            return Err(reader.bad("first chunk", first, h.base));
        }
        let this = if r.level == 0 {
            let entries: Result<_, _> =
                (0..FANOUT).map(|_| ChunkEntry::decode(&mut reader, g.blocks_per_chunk)).collect();
            Self::Leaf(entries?)
        } else {
            let entries: Result<Vec<IndexEntry>, _> =
                (0..FANOUT).map(|_| IndexEntry::decode(&mut reader)).collect();
            let entries = entries?;
            if entries.iter().any(|e| e.child.is_some_and(|c| c.level + 1 != r.level)) {
                return Err(reader.bad("child level", r.level - 1, "another"));
            }
            Self::Inner(entries)
        };
        Ok(this)
    }

    /// Totals of this node, as its parent keeps them.
    pub(crate) fn summary(&self, child: NodeRef) -> IndexEntry {
        let mut sum = IndexEntry { child: Some(child), ..IndexEntry::default() };
        match self {
            Self::Leaf(entries) => {
                for e in entries {
                    match e.kind {
                        ChunkKind::Free => {}
                        ChunkKind::Data => {
                            sum.data_chunks += 1;
                            sum.data_free += u64::from(e.free);
                            sum.data_run = sum.data_run.max(e.longest);
                        }
                        ChunkKind::Meta => {
                            sum.meta_chunks += 1;
                            sum.meta_free += u64::from(e.free);
                            sum.meta_run = sum.meta_run.max(e.longest);
                        }
                    }
                }
            }
            Self::Inner(entries) => {
                for e in entries {
                    sum.data_chunks += e.data_chunks;
                    sum.data_free += e.data_free;
                    sum.data_run = sum.data_run.max(e.data_run);
                    sum.meta_chunks += e.meta_chunks;
                    sum.meta_free += e.meta_free;
                    sum.meta_run = sum.meta_run.max(e.meta_run);
                }
            }
        }
        sum
    }
}

pub(crate) fn fetch(store: &Store, g: &Geometry, r: &NodeRef, first: u64) -> Result<Arc<IndexNode>> {
    if let Some(node) = store.page::<IndexNode>(r.a.raw(), r.sum) {
        return Ok(node);
    }
    let name = if r.level == 0 { BlockKind::IndexLeaf.name() } else { BlockKind::IndexInner.name() };
    let block = store.read_ref(r, name)?;
    let node = Arc::new(IndexNode::decode(&block, r, &store.uuid, g, first)?);
    store.keep(r.a.raw(), r.sum, BLOCK, Arc::clone(&node));
    Ok(node)
}

/// The entry of one chunk; free where the index has no node.
pub(crate) fn entry(store: &Store, g: &Geometry, root: Option<&NodeRef>, chunk: u64) -> Result<ChunkEntry> {
    let Some(mut at) = root.copied().filter(|r| chunk < span(r.level)) else {
        return Ok(ChunkEntry::default());
    };
    let mut first = 0;
    loop {
        let node = fetch(store, g, &at, first)?;
        match &*node {
            IndexNode::Leaf(entries) => return Ok(entries[(chunk - first) as usize]),
            IndexNode::Inner(entries) => {
                let below = span(at.level - 1);
                let i = (chunk - first) / below;
                first += i * below;
                match entries[i as usize].child {
                    Some(child) => at = child,
                    None => return Ok(ChunkEntry::default()),
                }
            }
        }
    }
}

/// What a search looks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Want {
    /// A data chunk with a free run of at least this many blocks.
    Data(u16),
    /// A metadata chunk with a free run of at least this many blocks.
    Meta(u16),
    /// A chunk that is free as a whole.
    Free,
}

impl Want {
    fn chunk(self, e: &ChunkEntry) -> bool {
        match self {
            Want::Data(run) => e.kind == ChunkKind::Data && e.longest >= run,
            Want::Meta(run) => e.kind == ChunkKind::Meta && e.longest >= run,
            Want::Free => e.kind == ChunkKind::Free,
        }
    }
    fn below(self, e: &IndexEntry, chunks_below: u64) -> bool {
        match self {
            Want::Data(run) => e.data_run >= run,
            Want::Meta(run) => e.meta_run >= run,
            Want::Free => e.data_chunks + e.meta_chunks < chunks_below,
        }
    }
}

/// The first chunk at or after `from` (and before `chunks`) that fits. Descends only where the maxima allow.
pub(crate) fn search(
    store: &Store,
    g: &Geometry,
    root: Option<&NodeRef>,
    chunks: u64,
    from: u64,
    want: Want,
) -> Result<Option<u64>> {
    let reach = root.map_or(0, |r| span(r.level));
    let found = match root {
        Some(r) if from < reach => search_in(store, g, r, 0, chunks, from, want)?,
        _ => None,
    };
    if found.is_some() || want != Want::Free {
        return Ok(found);
    }
    let next = from.max(reach);
    Ok((next < chunks).then_some(next))
}

fn search_in(
    store: &Store,
    g: &Geometry,
    at: &NodeRef,
    first: u64,
    chunks: u64,
    from: u64,
    want: Want,
) -> Result<Option<u64>> {
    let node = fetch(store, g, at, first)?;
    match &*node {
        IndexNode::Leaf(entries) => {
            let skip = from.saturating_sub(first) as usize;
            let found = entries.iter().enumerate().skip(skip).find(|(_, e)| want.chunk(e));
            Ok(found.map(|(i, _)| first + i as u64).filter(|c| *c < chunks))
        }
        IndexNode::Inner(entries) => {
            let below = span(at.level - 1);
            for (i, e) in entries.iter().enumerate() {
                let start = first + i as u64 * below;
                let end = (start + below).min(chunks);
                if end <= from || start >= chunks || !want.below(e, end - start) {
                    continue;
                }
                match &e.child {
                    Some(child) => {
                        if let Some(c) = search_in(store, g, child, start, chunks, from, want)? {
                            return Ok(Some(c));
                        }
                    }
                    None if want == Want::Free => return Ok(Some(start.max(from))),
                    None => {}
                }
            }
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_what_heights_reach() {
        assert_eq!(span(0), 63);
        assert_eq!(span(1), 63 * 63);
    }
}
