//! Walking two maps side by side.
//!
//! Both trees are descended in lockstep, level by level. Where the same node lies on both paths everything
//! below it is equal (E4), and the walk goes on behind it without having read it: so the cost follows what
//! has changed, not what is mapped. Nothing is locked: maps are cheap copies, and nodes are fetched as needed.

use std::ops::Range;
use std::sync::Arc;

use super::{END, Extents, Map, begun};
use crate::error::{Corruption, Result};
use crate::format::node::Extent;
use crate::node::{Link, Node, Store};

/// Adjacent changes of one kind are joined until they are this long: 64 MiB.
const JOIN_LBAS: u64 = 16 << 10;

/// What lies in a range of the second map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ChangeKind {
    Data,
    Zero,
    Hole,
}

/// The first range at or after `from` (and before `limit`) whose content differs between `a` and `b`, with
/// what `b` has there. LBAs are equal when both maps name the same block, both map zeroes, or neither maps
/// anything. A hole and a zero extent both read zero and yet differ: whoever carries a change to another pool
/// carries what is mapped too. Neighbours of one kind are joined up to 64 MiB.
pub(crate) fn next_change(
    store: &Store,
    a: &Map,
    b: &Map,
    from: u64,
    limit: u64,
) -> Result<Option<(Range<u64>, ChangeKind)>> {
    let limit = limit.min(END);
    let (mut a, mut b) = (Cursor::new(store, a), Cursor::new(store, b));
    let mut at = from;
    let mut found: Option<(Range<u64>, ChangeKind)> = None;
    while at < limit {
        a.seek(at);
        b.seek(at);
        if let Some(end) = shared(&a, &b) {
            if found.is_some() {
                break;
            }
            at = end;
            continue;
        }
        // The higher side goes down first, so that equal levels meet.
        let (above_a, above_b) = (a.inner_level(), b.inner_level());
        if above_a.is_some() && above_a >= above_b {
            a.descend(at)?;
            continue;
        }
        if above_b.is_some() {
            b.descend(at)?;
            continue;
        }
        let ((x, end_x), (y, end_y)) = (a.content(at)?, b.content(at)?);
        let end = end_x.min(end_y).min(limit);
        match &mut found {
            None if x == y => {}
            None => found = Some((at..end, y.kind())),
            Some((range, kind)) => {
                if x == y || *kind != y.kind() || range.end - range.start >= JOIN_LBAS {
                    break;
                }
                range.end = end;
            }
        }
        at = end;
    }
    Ok(found)
}

/// Shows every extent of a map, in ascending order. A map whose extents do not ascend ends the walk with an
/// error: so a damaged one is not walked in circles.
pub(crate) fn each_extent(
    store: &Store,
    map: &Map,
    each: &mut dyn FnMut(&Extent) -> Result<()>,
) -> Result<()> {
    fn below(
        store: &Store,
        link: &Link<Extents>,
        at: &mut u64,
        each: &mut dyn FnMut(&Extent) -> Result<()>,
    ) -> Result<()> {
        let node = match link {
            Link::Mem(node) => Arc::clone(node),
            Link::Disk(r) => store.fetch::<Extents>(r)?,
        };
        // Levels fall by one each time (checked when a node is decoded).
        for kid in &node.kids {
            below(store, &kid.link, at, each)?;
        }
        for e in &node.items {
            if e.lba < *at {
                let block = node.home().map_or(0, |home| home.a.raw());
                return Err(
                    Corruption::new("map", block, "extent order", format!("at least {at}"), e.lba).into()
                );
            }
            *at = e.end();
            each(e)?;
        }
        Ok(())
    }
    map.root.as_ref().map_or(Ok(()), |root| below(store, root, &mut 0, each))
}

/// What a map says from some LBA on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Content {
    Hole,
    Zero,
    /// Consecutive blocks from this one on.
    Data(u64),
}

impl Content {
    fn kind(self) -> ChangeKind {
        match self {
            Self::Hole => ChangeKind::Hole,
            Self::Zero => ChangeKind::Zero,
            Self::Data(_) => ChangeKind::Data,
        }
    }
}

/// One node on the path to the present position; fetched when its content is asked for.
struct Frame {
    link: Link<Extents>,
    level: u8,
    /// Nothing at or behind this LBA lies below the node, in this tree.
    upper: u64,
    node: Option<Arc<Node<Extents>>>,
}

/// A path from the root of one map.
struct Cursor<'a> {
    store: &'a Store,
    path: Vec<Frame>,
}

impl<'a> Cursor<'a> {
    fn new(store: &'a Store, map: &Map) -> Self {
        let mut this = Self { store, path: Vec::new() };
        if let Some(root) = &map.root {
            this.push(root.clone(), END);
        }
        this
    }

    fn push(&mut self, link: Link<Extents>, upper: u64) {
        let level = match &link {
            Link::Disk(r) => r.level,
            Link::Mem(n) => n.level,
        };
        self.path.push(Frame { link, level, upper, node: None });
    }

    /// Goes up until the last node of the path is one that `at` belongs to.
    fn seek(&mut self, at: u64) {
        while self.path.len() > 1 && self.path.last().is_some_and(|f| f.upper <= at) {
            self.path.pop();
        }
    }

    /// Level of the last node of the path, if it has children.
    fn inner_level(&self) -> Option<u8> {
        self.path.last().map(|f| f.level).filter(|level| *level > 0)
    }

    fn last_node(&mut self) -> Result<Option<(Arc<Node<Extents>>, u64)>> {
        let Some(frame) = self.path.last_mut() else { return Ok(None) };
        let node = match &frame.node {
            Some(node) => Arc::clone(node),
            None => {
                let node = match &frame.link {
                    Link::Mem(n) => Arc::clone(n),
                    Link::Disk(r) => self.store.fetch::<Extents>(r)?,
                };
                frame.node = Some(Arc::clone(&node));
                node
            }
        };
        Ok(Some((node, frame.upper)))
    }

    /// One step down, towards `at`.
    fn descend(&mut self, at: u64) -> Result<()> {
        if let Some((node, upper)) = self.last_node()? {
            let i = node.child_for(&at);
            // A child reaches to the next one, but never past its parent: so every step moves on.
            let upper = node.kids.get(i + 1).map_or(upper, |k| k.key.min(upper));
            self.push(node.kids[i].link.clone(), upper);
        }
        Ok(())
    }

    /// What the leaf at the end of the path says about `at`, and up to where.
    fn content(&mut self, at: u64) -> Result<(Content, u64)> {
        let Some((leaf, upper)) = self.last_node()? else { return Ok((Content::Hole, END)) };
        let i = begun(&leaf.items, at);
        if let Some(e) = i.checked_sub(1).map(|i| leaf.items[i]).filter(|e| at < e.end()) {
            let content = e.block().map_or(Content::Zero, |block| Content::Data(block + (at - e.lba)));
            return Ok((content, e.end().min(upper)));
        }
        Ok((Content::Hole, leaf.items.get(i).map_or(upper, |e| e.lba.min(upper))))
    }

    fn at_level(&self, level: u8) -> Option<&Frame> {
        // Levels fall by one along the path (checked when a node is decoded).
        let below_root = self.path.first()?.level.checked_sub(level)?;
        self.path.get(usize::from(below_root))
    }
}

/// Where a node ends that is on both paths. Its bounds may be narrower in one tree, because a neighbour has
/// grown there: it ends where the first of them does.
fn shared(a: &Cursor<'_>, b: &Cursor<'_>) -> Option<u64> {
    for (x, y) in [(a, b), (b, a)] {
        let last = x.path.last()?;
        if let Some(other) = y.at_level(last.level).filter(|other| same(&last.link, &other.link)) {
            return Some(last.upper.min(other.upper));
        }
    }
    None
}

fn same(a: &Link<Extents>, b: &Link<Extents>) -> bool {
    match (a, b) {
        (Link::Mem(a), Link::Mem(b)) if Arc::ptr_eq(a, b) => true,
        _ => a.home().is_some_and(|home| b.home() == Some(home)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicU64, Ordering};

    use proptest::prelude::*;

    use super::super::replace;
    use super::*;
    use crate::device::{Device, MemoryDevice};
    use crate::format::{NodeHeader, NodeRef, node_sum};
    use crate::node::{Cx, Held, Miss};
    use crate::units::{BLOCK, BlockAddr, Geometry};

    const G: Geometry =
        Geometry { blocks_per_chunk: 1024, log_start_block: 4, log_blocks: 16, first_chunk_block: 20 };
    const LBAS: u64 = 12_000;

    type Model = BTreeMap<u64, Option<u64>>;

    fn retry(store: &Store, mut f: impl FnMut(&Held<Extents>) -> Result<(), Miss>) {
        let mut held = Held::new();
        while let Err(Miss(r)) = f(&held) {
            held.add(r.a, store.fetch::<Extents>(&r).unwrap());
        }
    }

    /// A map with its model and everything that changing it takes.
    struct Bench {
        store: Store,
        dirtied: AtomicU64,
        next_block: u64,
        next_home: u64,
    }

    impl Bench {
        fn new(cache_bytes: u64) -> Self {
            let device = MemoryDevice::new();
            device.set_len(256 << 20).unwrap();
            let store = Store::new(Arc::new(device), [0; 16], cache_bytes);
            Self { store, dirtied: AtomicU64::new(0), next_block: 20, next_home: 1 }
        }

        fn apply(&mut self, map: &mut Map, model: &mut Model, lba: u64, len: u64, what: u8) {
            if what == 0 {
                retry(&self.store, |held| {
                    let cx = Cx { store: &self.store, held, dirtied: &self.dirtied };
                    map.cut(&cx, &lba, &(lba + len)).map(|_| ())
                });
                model.retain(|k, _| !(lba..lba + len).contains(k));
                return;
            }
            let fill = if what == 1 {
                model.extend((lba..lba + len).map(|k| (k, None)));
                Extent::zero(lba, len, 1)
            } else {
                let in_chunk = (self.next_block - 20) % 1024;
                if in_chunk + len > 1024 {
                    self.next_block += 1024 - in_chunk;
                }
                let block = self.next_block;
                self.next_block += len;
                model.extend((0..len).map(|k| (lba + k, Some(block + k))));
                Extent::data(lba, block, len, 1)
            };
            retry(&self.store, |held| {
                let cx = Cx { store: &self.store, held, dirtied: &self.dirtied };
                replace(map, &cx, &G, fill)
            });
        }

        /// Writes every node that has no place yet, as a checkpoint would.
        fn write(&mut self, map: &mut Map) {
            fn write(bench: &mut Bench, node: &Arc<Node<Extents>>) {
                if node.home().is_some() {
                    return;
                }
                for kid in &node.kids {
                    if let Link::Mem(child) = &kid.link {
                        write(bench, child);
                    }
                }
                let a = BlockAddr::new(bench.next_home);
                let b = node.twin().then(|| BlockAddr::new(bench.next_home + 1));
                bench.next_home += 2;
                let header = NodeHeader {
                    kind: node.kind(),
                    level: node.level,
                    count: 0,
                    uuid: [0; 16],
                    a,
                    b,
                    generation: 1,
                    base: 0,
                };
                let mut block = [0; BLOCK];
                node.encode(header, &|link| link.home(), &mut block).unwrap();
                bench.store.device.write_at(&block, a.byte_offset()).unwrap();
                node.settle(NodeRef { a, b, sum: node_sum(&block), level: node.level });
            }
            if let Some(Link::Mem(root)) = map.root.clone() {
                write(self, &root);
            }
            map.settle();
        }
    }

    fn changes(store: &Store, a: &Map, b: &Map, from: u64, limit: u64) -> Vec<(Range<u64>, ChangeKind)> {
        let mut out = Vec::new();
        let mut at = from;
        while let Some((range, kind)) = next_change(store, a, b, at, limit).unwrap() {
            assert!(at <= range.start && range.start < range.end && range.end <= limit);
            at = range.end;
            out.push((range, kind));
        }
        out
    }

    fn spread(changes: Vec<(Range<u64>, ChangeKind)>) -> BTreeMap<u64, ChangeKind> {
        changes.into_iter().flat_map(|(range, kind)| range.map(move |lba| (lba, kind))).collect()
    }

    fn kind_in(model: &Model, lba: u64) -> ChangeKind {
        match model.get(&lba) {
            None => ChangeKind::Hole,
            Some(None) => ChangeKind::Zero,
            Some(Some(_)) => ChangeKind::Data,
        }
    }

    fn op() -> impl Strategy<Value = (u64, u64, u8, bool)> {
        (0u64..LBAS - 2400, 1u64..40, 0u8..8, any::<bool>())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]
        #[test]
        fn the_difference_is_that_of_two_arrays(
            base in proptest::collection::vec(op(), 0..1200),
            left in proptest::collection::vec(op(), 0..12),
            right in proptest::collection::vec(op(), 0..300),
            write_base in any::<bool>(),
            write_right in any::<bool>(),
            tiny_cache in any::<bool>(),
            window in (0u64..LBAS, 0u64..LBAS),
        ) {
            let mut bench = Bench::new(if tiny_cache { 0 } else { 8 << 20 });
            let (mut map, mut model) = (Map::empty(), Model::new());
            let run = |bench: &mut Bench, map: &mut Map, model: &mut Model, ops: Vec<(u64, u64, u8, bool)>| {
                for (lba, len, what, wide) in ops {
                    let len = if wide && what < 2 { len * 60 } else { len };
                    bench.apply(map, model, lba, len, what);
                }
            };
            run(&mut bench, &mut map, &mut model, base);
            if write_base {
                bench.write(&mut map);
            }
            let (mut a, mut model_a) = (map.clone(), model.clone());
            let (mut b, mut model_b) = (map, model);
            run(&mut bench, &mut a, &mut model_a, left);
            run(&mut bench, &mut b, &mut model_b, right);
            if write_right {
                bench.write(&mut b);
            }
            for (from, limit) in [(0, LBAS), window] {
                let want: BTreeMap<u64, ChangeKind> = (from..limit)
                    .filter(|lba| model_a.get(lba) != model_b.get(lba))
                    .map(|lba| (lba, kind_in(&model_b, lba)))
                    .collect();
                prop_assert_eq!(spread(changes(&bench.store, &a, &b, from, limit)), want);
            }
            prop_assert!(changes(&bench.store, &b, &b.clone(), 0, LBAS).is_empty());
        }
    }

    #[test]
    fn shared_nodes_are_not_read() {
        let mut bench = Bench::new(0);
        let (mut a, mut model) = (Map::empty(), Model::new());
        for i in 0..60_000u64 {
            // Never adjacent, so that each is an extent of its own.
            bench.apply(&mut a, &mut model, i * 2, 1, 2);
        }
        bench.write(&mut a);
        assert!(matches!(&a.root, Some(Link::Disk(r)) if r.level == 2));
        let (mut b, mut model) = (a.clone(), model);
        bench.apply(&mut b, &mut model, 50_000, 1, 2);
        bench.write(&mut b);
        let before = bench.store.fetched.load(Ordering::Relaxed);
        let found = changes(&bench.store, &a, &b, 0, END);
        assert_eq!(found, [(50_000..50_001, ChangeKind::Data)]);
        let fetched = bench.store.fetched.load(Ordering::Relaxed) - before;
        // Two paths of three nodes, once to find the change and once to find nothing behind it.
        assert!(fetched <= 12, "{fetched} nodes read");
    }

    #[test]
    fn shared_node_ends_where_the_first_of_its_bounds_does() {
        let mut bench = Bench::new(8 << 20);
        let (mut a, mut model) = (Map::empty(), Model::new());
        for i in 0..2000u64 {
            bench.apply(&mut a, &mut model, i * 2, 1, 2);
        }
        let bounds: Vec<u64> = match &a.root {
            Some(Link::Mem(root)) => root.kids.iter().map(|k| k.key).collect(),
            _ => panic!("in memory"),
        };
        // A whole leaf goes from one map: the one before it is shared and reaches further there.
        let (mut b, mut model_b) = (a.clone(), model);
        bench.apply(&mut b, &mut model_b, bounds[2], bounds[3] - bounds[2], 0);
        let gone = |to: ChangeKind| (bounds[2]..bounds[3]).step_by(2).map(move |lba| (lba, to)).collect();
        assert_eq!(spread(changes(&bench.store, &a, &b, 0, END)), gone(ChangeKind::Hole));
        assert_eq!(spread(changes(&bench.store, &b, &a, 0, END)), gone(ChangeKind::Data));
    }

    #[test]
    fn neighbours_of_one_kind_are_one_change() {
        let mut bench = Bench::new(8 << 20);
        let (mut map, mut model) = (Map::empty(), Model::new());
        for i in 0..40 {
            bench.apply(&mut map, &mut model, i * 1000, 1000, 2);
        }
        let found = changes(&bench.store, &Map::empty(), &map, 0, END);
        assert!(found.len() <= 4, "{} changes", found.len());
        assert_eq!(spread(found).len(), 40_000);
    }

    #[test]
    fn zeroes_over_a_hole_are_a_change() {
        let mut bench = Bench::new(8 << 20);
        let (mut map, mut model) = (Map::empty(), Model::new());
        bench.apply(&mut map, &mut model, 10, 5, 1);
        let found = next_change(&bench.store, &Map::empty(), &map, 0, END).unwrap();
        assert_eq!(found, Some((10..15, ChangeKind::Zero)));
    }
}
