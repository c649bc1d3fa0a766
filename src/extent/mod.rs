//! The extent map: LBA ranges to block runs and zeroes, as a copy-on-write tree.
//!
//! - E1 Extents of a map never overlap and ascend.
//! - E2 An extent lies within the bounds of its leaf, and a data extent within one chunk.
//! - E3 A node's weight is the number of LBAs mapped to data below it (zero extents weigh nothing).
//! - E4 Two maps that share a node are equal below it: comparing prunes there.

use crate::error::Corruption;
use crate::format::node::{
    self as codec, Extent, LEAF_EXTENTS, decode_inner, decode_leaf, encode_inner, encode_leaf,
};
use crate::format::{BlockKind, NodeHeader, NodeRef};
use crate::node::{Cx, Got, Held, Kid, Kind, Link, Miss, Store, Tree};
use crate::units::{BLOCK, BlockAddr, Geometry};

pub(crate) mod walk;

/// Trees of this kind map LBAs to [`Extent`]s.
pub(crate) struct Extents;

/// The extent map of one volume or snapshot.
pub(crate) type Map = Tree<Extents>;

impl Kind for Extents {
    type Key = u64;
    type Item = Extent;
    const LEAF: BlockKind = BlockKind::MapLeaf;
    const INNER: BlockKind = BlockKind::MapInner;
    // A lost leaf takes only its own extents with it.
    const LEAF_TWIN: bool = false;
    // An edit may leave two more than fit until the leaf is split.
    const LEAF_ROOM: usize = LEAF_EXTENTS + 2;

    fn key(item: &Extent) -> u64 {
        item.lba
    }
    fn leaf_fits(items: &[Extent]) -> bool {
        codec::leaf_fits(items)
    }
    fn inner_fits(kids: &[Kid<Self>]) -> bool {
        kids.len() <= codec::INNER_KIDS
    }
    fn weight(items: &[Extent]) -> u64 {
        items.iter().filter(|e| e.block().is_some()).map(Extent::len).sum()
    }
    fn cut(items: &mut Vec<Extent>, from: &u64, to: &u64) -> u64 {
        cut(items, *from, *to).1
    }
    fn blocks(item: &Extent) -> Option<(u64, u64)> {
        item.block().map(|block| (block, item.len()))
    }
    fn same(a: &Extent, b: &Extent) -> bool {
        a.lba == b.lba && a.block() == b.block() && a.len() == b.len()
    }
    const DEFER_DROPS: bool = true;
    fn encode_leaf(items: &[Extent], block: &mut [u8; BLOCK]) -> u64 {
        encode_leaf(items, block)
    }
    fn encode_inner(kids: &[(u64, NodeRef, u64)], block: &mut [u8; BLOCK]) {
        encode_inner(kids.iter().copied(), block);
    }
    fn decode_leaf(h: &NodeHeader, block: &[u8; BLOCK]) -> Result<Vec<Extent>, Corruption> {
        decode_leaf(h, block)
    }
    fn decode_inner(h: &NodeHeader, block: &[u8; BLOCK]) -> Result<Vec<Kid<Self>>, Corruption> {
        let kids = decode_inner(h, block)?;
        Ok(kids.into_iter().map(|(key, node, weight)| Kid { key, weight, link: Link::Disk(node) }).collect())
    }
    fn item_bytes(_: &Extent) -> usize {
        size_of::<Extent>()
    }
}

/// How many of these sorted extents begin at or before `lba`.
///
/// Where extents are of about equal length the first guess is right or nearly so: two or three cache misses
/// instead of the seven of a binary search, and this is what a lookup costs.
pub(crate) fn begun(items: &[Extent], lba: u64) -> usize {
    let (Some(first), Some(last)) = (items.first(), items.last()) else { return 0 };
    if lba < first.lba {
        return 0;
    }
    if lba >= last.lba {
        return items.len();
    }
    // Products stay below 2^48 * 2^16.
    let guess = (lba - first.lba) * (items.len() as u64 - 1) / (last.lba - first.lba);
    let (mut low, mut high, mut step) = (guess as usize, guess as usize, 1);
    // From the guess outwards in doubling steps: `low` begins at or before, `high` behind `lba`.
    while items[low].lba > lba {
        high = low;
        low = low.saturating_sub(step);
        step *= 2;
    }
    while items[high].lba <= lba {
        low = high;
        high = (high + step).min(items.len() - 1);
        step *= 2;
    }
    low + items[low..high].partition_point(|e| e.lba <= lba)
}

/// Removes `from..to` from sorted extents. Returns where the gap is and the data blocks removed.
fn cut(items: &mut Vec<Extent>, from: u64, to: u64) -> (usize, u64) {
    let mut first = begun(items, from);
    if first > 0 && items[first - 1].end() > from {
        first -= 1;
    }
    let within = |i: usize| items.get(i).is_some_and(|e| e.lba < to);
    let last = match (within(first), within(first + 1)) {
        (false, _) => return (first, 0),
        (true, false) => first + 1,
        (true, true) => first + 2 + items[first + 2..].partition_point(|e| e.lba < to),
    };
    let mut removed: u64 = Extents::weight(&items[first..last]);
    let (head, tail) = (items[first], items[last - 1]);
    let left = (head.lba < from).then(|| head.slice(head.lba, from));
    let right = (tail.end() > to).then(|| tail.slice(to, tail.end()));
    removed -= Extents::weight(left.as_slice()) + Extents::weight(right.as_slice());
    // At most one more item than before; the usual overwrite of one extent by one moves nothing.
    items.splice(first..last, left.into_iter().chain(right));
    (first + usize::from(left.is_some()), removed)
}

/// What a map says about one LBA and those behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    /// The extent that holds the LBA.
    Extent(Extent),
    /// Unmapped up to (not including) this LBA; there may be more hole behind it.
    Hole(u64),
}

/// One LBA past the last that can exist.
pub(crate) const END: u64 = 1 << 48;

/// Looks `lba` up.
#[inline]
pub(crate) fn find(map: &Map, lba: u64, store: &Store, held: &Held<Extents>) -> Result<Found, Miss> {
    let Some(root) = &map.root else { return Ok(Found::Hole(END)) };
    let mut upper = END;
    let mut at = Got::open(root, store, held)?;
    while !at.is_leaf() {
        let i = at.child_for(&lba);
        if let Some(next) = at.kids.get(i + 1) {
            upper = next.key;
        }
        at = at.child(i, store, held)?;
    }
    let i = begun(&at.items, lba);
    if let Some(e) = i.checked_sub(1).map(|i| at.items[i]).filter(|e| lba < e.end()) {
        return Ok(Found::Extent(e));
    }
    Ok(Found::Hole(at.items.get(i).map_or(upper, |e| e.lba)))
}

/// Replaces what `fill` covers by `fill` (at most one chunk's run, or zeroes of any length).
pub(crate) fn replace(map: &mut Map, cx: &Cx<'_, Extents>, g: &Geometry, fill: Extent) -> Result<(), Miss> {
    let (lba, end) = (fill.lba, fill.end());
    let within = map.edit(cx, &lba, |items, upper| {
        if upper.is_some_and(|u| *u < end) {
            return (false, 0);
        }
        (true, put(items, fill, g))
    })?;
    if within {
        return Ok(());
    }
    // The range passes the bounds of its leaf: empty it as a whole, then fill leaf by leaf (E2). From the
    // cut on nobody may see the map, so nodes that are missing are fetched on the spot; if one cannot be had,
    // the map is again what it was.
    let before = map.clone();
    let filled = map.cut(cx, &lba, &end).and_then(|_| fill_leaves(map, cx, g, fill));
    if filled.is_err() {
        *map = before;
    }
    filled
}

/// What a map says about one block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Behind {
    Hole,
    Zero,
    Data(BlockAddr),
}

impl Behind {
    pub(crate) fn of(found: Found, lba: u64) -> Self {
        match found {
            Found::Hole(_) => Self::Hole,
            Found::Extent(e) => {
                e.block().map_or(Self::Zero, |block| Self::Data(BlockAddr::new(block + (lba - e.lba))))
            }
        }
    }
}

/// Replaces one block by `fill`, if `was` is what it is mapped to now. False, and no effect, when it is not.
pub(crate) fn exchange(
    map: &mut Map,
    cx: &Cx<'_, Extents>,
    g: &Geometry,
    fill: Extent,
    was: Behind,
) -> Result<bool, Miss> {
    map.edit(cx, &fill.lba, |items, _| {
        let before = begun(items, fill.lba).checked_sub(1).map(|i| items[i]);
        let now = before.filter(|e| fill.lba < e.end());
        let now = now.map_or(Behind::Hole, |e| Behind::of(Found::Extent(e), fill.lba));
        if now == was { (true, put(items, fill, g)) } else { (false, 0) }
    })
}

/// Puts `fill` where nothing is mapped, piece by piece as the bounds of the leaves ask.
fn fill_leaves(map: &mut Map, cx: &Cx<'_, Extents>, g: &Geometry, fill: Extent) -> Result<(), Miss> {
    let (mut at, end) = (fill.lba, fill.end());
    while at < end {
        let mut held = Held::new();
        at = loop {
            let cx = Cx { store: cx.store, held: &held, dirtied: cx.dirtied };
            let filled = map.edit(&cx, &at, |items, upper| {
                let to = upper.map_or(end, |u| end.min(*u));
                (to, put(items, fill.slice(at, to), g))
            });
            match filled {
                Ok(to) => break to,
                Err(Miss(r)) => {
                    let node = cx.store.fetch::<Extents>(&r).map_err(|_| Miss(r))?;
                    held.add(r.a, node);
                }
            }
        };
    }
    Ok(())
}

/// Puts `fill` among the items of one leaf, joined with its neighbours where they continue each other.
fn put(items: &mut Vec<Extent>, fill: Extent, g: &Geometry) -> i64 {
    // The hot case: one extent replaced by one of the same length.
    let (at, removed) = cut(items, fill.lba, fill.end());
    let (first, mask) = (g.first_chunk_block, g.blocks_per_chunk - 1);
    let added = Extents::weight(&[fill]) as i64;
    if at > 0 && items[at - 1].joins(&fill, first, mask) {
        items[at - 1].join(&fill);
        if at < items.len() && items[at - 1].joins(&items[at], first, mask) {
            let next = items.remove(at);
            items[at - 1].join(&next);
        }
    } else if at < items.len() && fill.joins(&items[at], first, mask) {
        let mut fill = fill;
        fill.join(&items[at]);
        items[at] = fill;
    } else {
        items.insert(at, fill);
    }
    added - removed as i64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use proptest::prelude::*;

    use super::*;
    use crate::device::MemoryDevice;

    const G: Geometry =
        Geometry { blocks_per_chunk: 1024, log_start_block: 4, log_blocks: 16, first_chunk_block: 20 };

    fn lookup_all(map: &Map, store: &Store, to: u64) -> BTreeMap<u64, Option<u64>> {
        let mut out = BTreeMap::new();
        let mut at = 0;
        while at < to {
            match find(map, at, store, &Held::new()).unwrap() {
                Found::Extent(e) => {
                    for lba in at..e.end().min(to) {
                        out.insert(lba, e.block().map(|b| b + lba - e.lba));
                    }
                    at = e.end();
                }
                Found::Hole(next) => {
                    assert!(next > at);
                    at = next;
                }
            }
        }
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_map_behaves_like_an_array(ops in proptest::collection::vec((0u64..6000, 1u64..40, 0u8..8, any::<bool>()), 1..1500)) {
            let store = Store::new(Arc::new(MemoryDevice::new()), [0; 16], 1 << 20);
            let dirtied = AtomicU64::new(0);
            let held = Held::new();
            let cx = Cx { store: &store, held: &held, dirtied: &dirtied };
            let mut map = Map::empty();
            let mut model: BTreeMap<u64, Option<u64>> = BTreeMap::new();
            let mut shared: Vec<(Map, BTreeMap<u64, Option<u64>>)> = Vec::new();
            let mut next = 20u64;
            for (lba, len, what, wide) in ops {
                let len = if wide && what < 2 { len * 60 } else { len };
                match what {
                    0 => {
                        map.cut(&cx, &lba, &(lba + len)).unwrap();
                        for k in lba..lba + len { model.remove(&k); }
                    }
                    1 => {
                        replace(&mut map, &cx, &G, Extent::zero(lba, len, 1)).unwrap();
                        for k in lba..lba + len { model.insert(k, None); }
                    }
                    2 if shared.len() < 3 => shared.push((map.clone(), model.clone())),
                    _ => {
                        // A data run stays within its chunk.
                        let in_chunk = (next - 20) % 1024;
                        if in_chunk + len > 1024 { next += 1024 - in_chunk; }
                        replace(&mut map, &cx, &G, Extent::data(lba, next, len, 1)).unwrap();
                        for k in 0..len { model.insert(lba + k, Some(next + k)); }
                        next += len;
                    }
                }
            }
            let weight = |m: &BTreeMap<u64, Option<u64>>| m.values().flatten().count() as u64;
            for (map, model) in shared.iter().chain([(map, model)].iter()) {
                prop_assert_eq!(&lookup_all(map, &store, 10_000), model);
                if let Some(Link::Mem(root)) = &map.root {
                    prop_assert_eq!(root.weight(), weight(model));
                }
            }
        }
    }

    proptest! {
        #[test]
        fn guessing_finds_what_a_binary_search_does(
            gaps in proptest::collection::vec(prop_oneof![Just(1u64), 1u64..5, 1u64..1 << 38], 0..300),
            probes in proptest::collection::vec(any::<u64>(), 1..50),
        ) {
            let starts = gaps.iter().scan(0, |at, gap| { *at += gap; Some(*at) });
            let items: Vec<Extent> = starts.map(|lba| Extent::data(lba, 20, 1, 1)).collect();
            let end = items.last().map_or(5, |e| e.lba + 3);
            let near = items.iter().flat_map(|e| [e.lba - 1, e.lba, e.lba + 1]);
            for lba in near.chain(probes.into_iter().map(|p| p % end)) {
                prop_assert_eq!(begun(&items, lba), items.partition_point(|e| e.lba <= lba));
            }
        }
    }

    #[test]
    fn extents_far_apart_do_not_share_a_leaf_base() {
        let store = Store::new(Arc::new(MemoryDevice::new()), [0; 16], 1 << 20);
        let (dirtied, held) = (AtomicU64::new(0), Held::new());
        let cx = Cx { store: &store, held: &held, dirtied: &dirtied };
        let mut map = Map::empty();
        for i in 0..100u64 {
            let lba = (i * 37 % 100) << 40;
            replace(&mut map, &cx, &G, Extent::data(lba, 20 + i, 1, 1)).unwrap();
        }
        for i in 0..100u64 {
            let lba = (i * 37 % 100) << 40;
            assert_eq!(
                find(&map, lba, &store, &held).unwrap(),
                Found::Extent(Extent::data(lba, 20 + i, 1, 1))
            );
        }
    }
}
