//! Reading ahead of a replay: the leaves that it is going to change are asked for together.
//!
//! After a crash nothing is in the host's cache. A replay that met its leaves one by one would wait for each; the
//! host fetches many at once in less than a tenth of the time. All of this is a hint: what cannot be told is left
//! out, and what is damaged is for the replay to find.

use std::collections::BTreeMap;

use super::engine::Engine;
use crate::error::Result;
use crate::extent::Extents;
use crate::format::NodeRef;
use crate::format::record::Record;
use crate::memory;
use crate::node::{Link, Node};
use crate::units::{BLOCK_BYTES, BlockAddr, ObjectId};

/// Blocks between two leaves that are rather read than skipped.
const GAP_BLOCKS: u64 = 4;

impl Engine {
    /// Has the host fetch the leaves that these records change.
    pub(super) fn expect_leaves(&self, records: &[Record]) -> Result<()> {
        let mut changed: BTreeMap<ObjectId, Vec<u64>> = BTreeMap::new();
        for group in records.iter().flat_map(|record| &record.groups) {
            let lbas = changed.entry(group.object).or_default();
            memory::room(lbas, group.changes.len())?;
            lbas.extend(group.changes.iter().map(|change| change.lba));
        }
        let mut leaves = Vec::new();
        for (object, mut lbas) in changed {
            lbas.sort_unstable();
            // Maps as they are before the replay: those that it copies or makes are not on the medium.
            if let Ok(object) = self.object(object)
                && let Some(Link::Disk(root)) = &object.map.read().tree.root
            {
                self.leaves_below(root, &lbas, &mut leaves)?;
            }
        }
        leaves.sort_unstable();
        for near in leaves.chunk_by(|a, b| b.raw() - a.raw() <= GAP_BLOCKS) {
            if let [first, .., last] | [first @ last] = near {
                self.device.will_need(first.byte_offset(), (last.raw() - first.raw() + 1) * BLOCK_BYTES);
            }
        }
        Ok(())
    }

    /// Adds the leaves below a node that hold one of the LBAs, which ascend. Levels fall by one each time.
    fn leaves_below(&self, r: &NodeRef, lbas: &[u64], leaves: &mut Vec<BlockAddr>) -> Result<()> {
        if r.level == 0 {
            memory::room(leaves, 1)?;
            leaves.push(r.a);
            return Ok(());
        }
        let Ok(node) = self.store.fetch::<Extents>(r) else { return Ok(()) };
        let node: &Node<Extents> = &node;
        let mut rest = lbas;
        for (i, kid) in node.kids.iter().enumerate() {
            let end =
                node.kids.get(i + 1).map_or(rest.len(), |next| rest.partition_point(|lba| *lba < next.key));
            let (here, behind) = rest.split_at(end);
            if let Some(home) = kid.link.home().filter(|_| !here.is_empty()) {
                self.leaves_below(&home, here, leaves)?;
            }
            rest = behind;
        }
        Ok(())
    }
}
