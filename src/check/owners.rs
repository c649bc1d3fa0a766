//! Whom damage belongs to: one more walk, over the paths that lead to it.

use std::collections::BTreeMap;

use super::Meter;
use super::report::{Findings, Owner};
use crate::commit::rest::{Named, Rest};
use crate::extent::Extents;
use crate::format::NodeRef;
use crate::node::Node;
use crate::units::{BlockAddr, ObjectId};

/// Places that something was found at, with the number of the finding.
#[derive(Default)]
pub(super) struct Suspects {
    nodes: BTreeMap<BlockAddr, usize>,
    /// First block of a run: its length and finding. Runs do not overlap.
    runs: BTreeMap<u64, (u64, usize)>,
}

impl Suspects {
    pub(super) fn node(&mut self, at: BlockAddr, finding: usize) {
        self.nodes.insert(at, finding);
    }
    pub(super) fn blocks(&mut self, at: BlockAddr, len: u64, finding: usize) {
        self.runs.insert(at.raw(), (len, finding));
    }
    pub(super) fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.runs.is_empty()
    }
    /// The runs that meet `block..block + len`: the first common block and the finding.
    fn meeting(&self, block: u64, len: u64) -> impl Iterator<Item = (u64, usize)> {
        let meets = move |(start, (n, finding)): (&u64, &(u64, usize))| {
            (start + n > block).then_some(((*start).max(block), *finding))
        };
        let before = self.runs.range(..block).next_back();
        before.into_iter().chain(self.runs.range(block..block + len)).filter_map(meets)
    }
}

struct Search<'a, 'm> {
    rest: &'a Rest<'a>,
    suspects: &'a Suspects,
    findings: &'a mut Findings,
    meter: &'a mut Meter<'m>,
    /// Nodes looked at, and whether damage lies behind them.
    seen: BTreeMap<BlockAddr, bool>,
}

/// Adds to every finding the objects and LBAs that lead to it. Maps on their way out are left aside.
pub(super) fn find(
    rest: &Rest<'_>,
    named: &[Named],
    suspects: &Suspects,
    findings: &mut Findings,
    meter: &mut Meter<'_>,
) {
    let mut search = Search { rest, suspects, findings, meter, seen: BTreeMap::new() };
    for n in named {
        if let Named::Map { object, root } = n
            && search.tainted(root)
        {
            search.tell(root, *object, 0);
        }
    }
}

impl Search<'_, '_> {
    fn node(&self, r: &NodeRef) -> Option<Node<Extents>> {
        let block = self.rest.store.read_ref(r, "map node").ok()?;
        Node::decode(&block, r, &self.rest.store.uuid).ok()
    }

    /// Whether damage lies behind this node; each is looked at once.
    fn tainted(&mut self, r: &NodeRef) -> bool {
        if self.suspects.nodes.contains_key(&r.a) {
            return true;
        }
        if let Some(known) = self.seen.get(&r.a) {
            return *known;
        }
        self.meter.step(1);
        let Some(node) = self.node(r) else { return false };
        let mut tainted = node
            .items
            .iter()
            .filter_map(|e| e.block().map(|block| (block, e.len())))
            .any(|(block, len)| self.suspects.meeting(block, len).next().is_some());
        for kid in node.kids.iter().filter_map(|k| k.link.home()) {
            tainted |= self.tainted(&kid);
        }
        self.seen.insert(r.a, tainted);
        tainted
    }

    /// Goes down where damage lies and says whose it is. `from`: where the node begins.
    fn tell(&mut self, r: &NodeRef, object: ObjectId, from: u64) {
        let owner = |lba| Owner { object: uuid::Uuid::from_bytes(object.0), lba };
        if let Some(finding) = self.suspects.nodes.get(&r.a) {
            self.findings.own(*finding, owner(from));
            return;
        }
        if self.seen.get(&r.a) != Some(&true) {
            return;
        }
        let Some(node) = self.node(r) else { return };
        for e in &node.items {
            let Some(block) = e.block() else { continue };
            for (bad, finding) in self.suspects.meeting(block, e.len()) {
                self.findings.own(finding, owner(e.lba + (bad - block)));
            }
        }
        for kid in &node.kids {
            if let Some(home) = kid.link.home() {
                self.tell(&home, object, kid.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_that_only_touch_do_not_meet() {
        let mut s = Suspects::default();
        s.blocks(BlockAddr::new(10), 5, 0);
        s.blocks(BlockAddr::new(20), 1, 1);
        let meet = |block, len| s.meeting(block, len).collect::<Vec<_>>();
        assert_eq!(meet(5, 5), []);
        assert_eq!(meet(15, 5), []);
        assert_eq!(meet(5, 6), [(10, 0)]);
        assert_eq!(meet(12, 20), [(12, 0), (20, 1)]);
        assert_eq!(meet(14, 1), [(14, 0)]);
    }
}
