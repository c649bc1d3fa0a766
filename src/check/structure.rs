//! The walk over all trees: every node once, every reference counted.

use std::collections::HashMap;

use super::Meter;
use super::counts::Window;
use super::owners::Suspects;
use super::report::{FindingKind, Findings, located};
use crate::commit::rest::{self, Named, Pairs, Rest};
use crate::error::{Corruption, Error, Result};
use crate::extent::{END, Extents};
use crate::format::{NodeRef, node_sum};
use crate::memory;
use crate::node::{Kind, Node};
use crate::units::{BLOCK, BlockAddr};

/// A place in a metadata chunk that has an owner.
struct Place {
    /// Tells owners apart.
    tag: u64,
    /// What lies below a map node.
    below: Below,
}

/// Range and weight of what lies below a map node.
#[derive(Clone, Copy)]
struct Below {
    low: u64,
    high: u64,
    weight: u64,
}

impl Below {
    const NOTHING: Self = Self { low: u64::MAX, high: 0, weight: 0 };
    /// Nodes cannot weigh that much.
    const LOST: Self = Self { low: u64::MAX, high: 0, weight: u64::MAX };
}

/// What a reference to a node led to.
enum Opened<K: Kind> {
    New(Node<K>),
    Seen(Below),
    Lost,
}

/// One pass over everything that the superblock leads to.
pub(super) struct Walk<'a, 'm> {
    pub(super) rest: &'a Rest<'a>,
    pub(super) window: Window,
    pub(super) findings: &'a mut Findings,
    suspects: &'a mut Suspects,
    pub(super) meter: &'a mut Meter<'m>,
    /// Later passes only count: what there is to find has been found.
    first: bool,
    places: HashMap<u64, Place>,
    nodes: u64,
    pages: u64,
    /// There was no memory to note something: the pass is worth nothing.
    refused: Option<Error>,
}

/// What is left of a pass.
pub(super) struct Done {
    pub(super) window: Window,
    pub(super) nodes: u64,
    pub(super) pages: u64,
}

impl<'a, 'm> Walk<'a, 'm> {
    pub(super) fn new(
        rest: &'a Rest<'a>,
        window: Window,
        findings: &'a mut Findings,
        suspects: &'a mut Suspects,
        meter: &'a mut Meter<'m>,
        first: bool,
    ) -> Self {
        findings.quiet = !first;
        Self {
            rest,
            window,
            findings,
            suspects,
            meter,
            first,
            places: HashMap::new(),
            nodes: 0,
            pages: 0,
            refused: None,
        }
    }

    /// Walks catalogue, maps, reclaim queue and chunk index. Returns what the catalogue names.
    pub(super) fn everything(&mut self) -> Vec<Named> {
        let mut named = Vec::new();
        if let Some(root) = &self.rest.superblock.catalogue_root {
            self.catalogue(root, &[], None, &mut named);
        }
        // A node whose first children have been given up must be met through the queue first.
        for n in &named {
            if let Named::Reclaim { node, next } = n
                && *next > 0
            {
                self.map(node, usize::from(*next));
            }
        }
        for n in &named {
            match n {
                Named::Map { root, .. } => {
                    self.map(root, 0);
                }
                Named::Reclaim { node, next: 0 } => {
                    self.map(node, 0);
                }
                Named::Reclaim { .. } | Named::Trash { .. } => {}
            }
        }
        self.index();
        named
    }

    pub(super) fn finish(self) -> Result<Done> {
        self.findings.quiet = false;
        match self.refused {
            Some(error) => Err(error),
            None => Ok(Done { window: self.window, nodes: self.nodes, pages: self.pages }),
        }
    }

    /// Counts one reference to a run of blocks. False when there is no such run.
    fn name(&mut self, at: BlockAddr, len: u64, data: bool, by: &'static str) -> bool {
        let g = &self.rest.superblock.geometry;
        let chunks = self.rest.superblock.chunks;
        match g.locate(at) {
            Some((chunk, i)) if chunk < chunks && i as u64 + len <= g.blocks_per_chunk => {
                self.window.add(chunk, i, len, data);
                true
            }
            _ => {
                let want = format!("a run within one of {chunks} chunks");
                let c = Corruption::new(
                    by,
                    at.raw(),
                    "reference",
                    want,
                    format!("{len} blocks from {}", at.raw()),
                );
                self.findings.add(FindingKind::BadReference, c, len);
                false
            }
        }
    }

    /// Claims a place for one owner; false when it was that owner's already.
    fn claim(&mut self, at: BlockAddr, tag: u64, by: &'static str) -> std::result::Result<bool, ()> {
        match self.places.get(&at.raw()) {
            None => {
                if let Err(error) = memory::place(&mut self.places) {
                    self.refused.get_or_insert(error);
                    return Err(());
                }
                self.places.insert(at.raw(), Place { tag, below: Below::NOTHING });
                Ok(true)
            }
            Some(place) if place.tag == tag => Ok(false),
            Some(_) => {
                let c = Corruption::new(by, at.raw(), "place", "its own", "another structure's too");
                self.findings.add(FindingKind::Overlap, c, 1);
                Err(())
            }
        }
    }

    /// Names both copies of a node, claims their places, and reads what was not read before.
    /// `None`: nothing can be said about it, or nothing new; the flag tells whether it is sound.
    pub(super) fn block(
        &mut self,
        r: &NodeRef,
        twin: bool,
        by: &'static str,
    ) -> (bool, Option<Box<[u8; BLOCK]>>) {
        let mut sound = r.b.is_some() == twin;
        if !sound {
            let c = Corruption::new(by, r.a.raw(), "copies", 1 + u8::from(twin), 1 + u8::from(!twin));
            self.findings.add(FindingKind::BadReference, c, 1);
        }
        for at in std::iter::once(r.a).chain(r.b) {
            sound &= self.name(at, 1, false, by);
        }
        let b = r.b.map_or(0, BlockAddr::raw);
        let tag = tag(by, r.level, r.sum ^ b.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let fresh = match (sound, self.claim(r.a, tag, by)) {
            (true, Ok(fresh)) => fresh,
            _ => {
                self.findings.unknown = true;
                return (false, None);
            }
        };
        if !fresh {
            return (true, None);
        }
        if let Some(b) = r.b
            && self.claim(b, tag ^ 1, by) != Ok(true)
        {
            self.findings.unknown = true;
        }
        self.nodes += 1;
        self.meter.step(1 + u64::from(r.b.is_some()));
        let block = self.copies(r, by);
        (block.is_some(), block)
    }

    /// The first sound copy; in the first pass both are read.
    fn copies(&mut self, r: &NodeRef, by: &'static str) -> Option<Box<[u8; BLOCK]>> {
        let mut good = None;
        let mut faults = Vec::new();
        for at in std::iter::once(r.a).chain(r.b) {
            if good.is_some() && !self.first {
                break;
            }
            match self.rest.store.read_block(at, by) {
                Ok(block) => {
                    let sum = node_sum(&block[..]);
                    if sum == r.sum {
                        good.get_or_insert(block);
                    } else {
                        let (want, got) = (format!("{:#x}", r.sum), format!("{sum:#x}"));
                        faults.push(Corruption::new(by, at.raw(), "checksum", want, got));
                    }
                }
                Err(e) => faults.push(located(e, by, at.raw())),
            }
        }
        if good.is_some() {
            for c in faults {
                self.findings.add(FindingKind::BadCopy, c, 1);
            }
        } else if let Some(c) = faults.into_iter().next() {
            self.lost(r, c);
        }
        good
    }

    fn lost(&mut self, r: &NodeRef, c: Corruption) {
        self.findings.unknown = true;
        // The next parent must not take it for an empty one.
        self.remember(r, Below::LOST);
        if let Some(finding) = self.findings.add(FindingKind::BadNode, c, 1) {
            self.suspects.node(r.a, finding);
        }
    }

    fn open<K: Kind>(&mut self, r: &NodeRef) -> Opened<K> {
        let by = if r.level == 0 { K::LEAF.name() } else { K::INNER.name() };
        match self.block(r, r.level > 0 || K::LEAF_TWIN, by) {
            (false, _) => Opened::Lost,
            (true, None) => match self.places.get(&r.a.raw()) {
                Some(place) if place.below.weight != Below::LOST.weight => Opened::Seen(place.below),
                _ => Opened::Lost,
            },
            (true, Some(block)) => match Node::<K>::decode(&block, r, &self.rest.store.uuid) {
                Ok(node) => Opened::New(node),
                Err(c) => {
                    self.lost(r, c);
                    Opened::Lost
                }
            },
        }
    }

    fn remember(&mut self, r: &NodeRef, below: Below) {
        if let Some(place) = self.places.get_mut(&r.a.raw()) {
            place.below = below;
        }
    }

    /// One catalogue node, whose keys must lie in `lower..upper`.
    fn catalogue(&mut self, r: &NodeRef, lower: &[u8], upper: Option<&[u8]>, named: &mut Vec<Named>) {
        let node = match self.open::<Pairs>(r) {
            Opened::New(node) => node,
            Opened::Seen(_) => {
                let c = Corruption::new("catalogue node", r.a.raw(), "parents", 1, "more");
                self.findings.add(FindingKind::Overlap, c, 1);
                return;
            }
            Opened::Lost => return,
        };
        let keys = node.items.iter().map(|(k, _)| k).chain(node.kids.iter().map(|k| &k.key));
        if keys.clone().any(|k| k.as_slice() < lower || upper.is_some_and(|u| k.as_slice() >= u)) {
            let c =
                Corruption::new("catalogue node", r.a.raw(), "keys", "within the parent's range", "outside");
            self.findings.add(FindingKind::BadOrder, c, 1);
        }
        for (key, value) in &node.items {
            match rest::named(key, value) {
                Ok(Some(n)) => {
                    if let Err(error) = memory::push(named, n) {
                        self.refused.get_or_insert(error);
                    }
                }
                Ok(None) => {}
                Err(e) => {
                    self.findings.unknown = true;
                    let c = located(e, "catalogue record", r.a.raw());
                    self.findings.add(FindingKind::BadRecord, c, 0);
                }
            }
        }
        for (i, kid) in node.kids.iter().enumerate() {
            let Some(home) = kid.link.home() else { continue };
            let next = node.kids.get(i + 1).map(|k| k.key.as_slice()).or(upper);
            self.catalogue(&home, &kid.key, next, named);
        }
    }

    /// One map node, without its first `skip` children. Says what lies below it, unless it is lost.
    fn map(&mut self, r: &NodeRef, skip: usize) -> Option<Below> {
        let node = match self.open::<Extents>(r) {
            Opened::New(node) => node,
            Opened::Seen(below) => {
                if skip > 0 {
                    let c =
                        Corruption::new("reclaim queue", r.a.raw(), "owners of an opened node", 1, "more");
                    self.findings.add(FindingKind::Overlap, c, 1);
                }
                return Some(below);
            }
            Opened::Lost => return None,
        };
        if skip > node.kids.len() {
            let c = Corruption::new("reclaim queue", r.a.raw(), "next child", node.kids.len(), skip);
            self.findings.add(FindingKind::BadRecord, c, 0);
        }
        for e in &node.items {
            if let Some((block, len)) = Extents::blocks(e) {
                self.name(BlockAddr::new(block), len, true, "map leaf");
            }
        }
        let mut below = Below {
            low: node.items.first().map_or(u64::MAX, |e| e.lba),
            high: node.items.last().map_or(0, |e| e.end()),
            weight: node.weight(),
        };
        for (i, kid) in node.kids.iter().enumerate().skip(skip) {
            let Some(home) = kid.link.home() else { continue };
            let upper = node.kids.get(i + 1).map_or(END, |k| k.key);
            let Some(child) = self.map(&home, 0) else { continue };
            if child.low < kid.key || child.high > upper {
                let (want, got) = (format!("{}..{upper}", kid.key), format!("{}..{}", child.low, child.high));
                let c = Corruption::new("map node", home.a.raw(), "range", want, got);
                self.findings.add(FindingKind::BadOrder, c, 1);
            }
            if child.weight != kid.weight {
                let c = Corruption::new(
                    "map node",
                    r.a.raw(),
                    "mapped blocks of a child",
                    child.weight,
                    kid.weight,
                );
                self.findings.add(FindingKind::BadSummary, c, 1);
            }
            below.high = below.high.max(child.high);
        }
        if let Some(kid) = node.kids.first() {
            below.low = kid.key;
        }
        self.remember(r, below);
        Some(below)
    }

    /// A page, or a copy of one: named once, by the entry of its chunk. `owner` tells it from all others.
    pub(super) fn page(&mut self, at: BlockAddr, by: &'static str, owner: u64) {
        self.pages += 1;
        self.meter.step(1);
        if self.name(at, 1, false, by) {
            let _ = self.claim(at, tag(by, 0, owner), by);
        }
    }
}

fn tag(by: &'static str, level: u8, what: u64) -> u64 {
    // Names of structures differ in length and first letters.
    let name = by.bytes().fold(0u64, |sum, b| sum.wrapping_mul(31).wrapping_add(u64::from(b)));
    (what ^ name.rotate_left(20) ^ u64::from(level) << 56).wrapping_mul(0xff51_afd7_ed55_8ccd) & !1
}
