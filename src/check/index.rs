//! The chunk index: nodes, the sums they keep, and the pages their entries name.

use super::report::FindingKind;
use super::structure::Walk;
use crate::alloc::IndexNode;
use crate::error::Corruption;
use crate::format::chunk::FANOUT;
use crate::format::chunk::{ChunkKind, IndexEntry, PageRef};
use crate::format::superblock::Totals;
use crate::format::{BlockKind, NodeRef};

fn span(level: u8) -> u64 {
    FANOUT.saturating_pow(u32::from(level) + 1)
}

impl Walk<'_, '_> {
    /// The whole index, and the totals in the superblock.
    pub(super) fn index(&mut self) {
        let sb = self.rest.superblock;
        let said = sb.totals;
        let counted = match &sb.index_root {
            None => Some(Totals::default()),
            Some(root) => self.index_node(root, 0).map(|sum| Totals {
                data_chunks: sum.data_chunks,
                meta_chunks: sum.meta_chunks,
                data_free: sum.data_free,
                meta_free: sum.meta_free,
            }),
        };
        if let Some(counted) = counted.filter(|c| *c != said) {
            let c = Corruption::new("superblock", 0, "totals", format!("{counted:?}"), format!("{said:?}"));
            self.findings.add(FindingKind::BadSummary, c, 0);
        }
    }

    /// One node; says what its parent must say about it.
    fn index_node(&mut self, r: &NodeRef, first: u64) -> Option<IndexEntry> {
        let sb = self.rest.superblock;
        let by = if r.level == 0 { BlockKind::IndexLeaf.name() } else { BlockKind::IndexInner.name() };
        let (sound, block) = self.block(r, true, by);
        if sound && block.is_none() {
            let c = Corruption::new(by, r.a.raw(), "parents", 1, "more");
            self.findings.add(FindingKind::Overlap, c, 1);
        }
        let node =
            block.map(|block| IndexNode::decode(&block, r, &self.rest.store.uuid, &sb.geometry, first));
        let node = match node {
            Some(Ok(node)) => node,
            lost => {
                if let Some(Err(c)) = lost {
                    self.findings.add(FindingKind::BadNode, c, 1);
                }
                self.findings.unknown = true;
                self.window.forget(first, first.saturating_add(span(r.level)));
                return None;
            }
        };
        match &node {
            IndexNode::Leaf(entries) => {
                for (chunk, e) in (first..).zip(entries) {
                    if chunk >= sb.chunks && e.kind != ChunkKind::Free {
                        let want = format!("below {}", sb.chunks);
                        let c = Corruption::new(by, r.a.raw(), "chunk in use", want, chunk);
                        self.findings.add(FindingKind::BadReference, c, 0);
                    }
                    for (twin, at) in (0..).zip(e.counts.iter().flat_map(PageRef::copies)) {
                        self.page(at, BlockKind::Counts.name(), chunk << 1 | twin);
                    }
                    if let Some(page) = e.checksums {
                        self.page(page.addr, BlockKind::Checksums.name(), chunk << 1);
                    }
                    self.window.set_entry(chunk, *e);
                }
            }
            IndexNode::Inner(entries) => {
                let below = span(r.level - 1);
                for (i, said) in (0u64..).zip(entries) {
                    let start = first.saturating_add(i.saturating_mul(below));
                    let counted = match &said.child {
                        None => Some(IndexEntry::default()),
                        Some(child) if start >= sb.chunks => {
                            let want = format!("below {}", sb.chunks);
                            let c = Corruption::new(by, child.a.raw(), "first chunk", want, start);
                            self.findings.add(FindingKind::BadReference, c, 1);
                            self.findings.unknown = true;
                            None
                        }
                        Some(child) => self.index_node(child, start),
                    };
                    if let Some(counted) = counted.filter(|c| c != said) {
                        let (want, got) = (format!("{counted:?}"), format!("{said:?}"));
                        let c = Corruption::new(by, r.a.raw(), "sums of a child", want, got);
                        self.findings.add(FindingKind::BadSummary, c, 1);
                    }
                }
            }
        }
        Some(node.summary(*r))
    }
}
