//! Trees with very small nodes, so that a few hundred entries make them deep.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use proptest::prelude::*;

use super::*;
use crate::device::MemoryDevice;
use crate::error::Corruption;
use crate::format::{BlockKind, NodeHeader, NodeRef};
use crate::units::BLOCK;

/// Keys to values; an item weighs its value.
struct Small;

type Pair = (u64, u64);

impl Kind for Small {
    type Key = u64;
    type Item = Pair;
    const LEAF: BlockKind = BlockKind::MapLeaf;
    const INNER: BlockKind = BlockKind::MapInner;
    const LEAF_TWIN: bool = false;
    const LEAF_ROOM: usize = 9;
    const DEFER_DROPS: bool = false;

    fn key(item: &Pair) -> u64 {
        item.0
    }
    fn leaf_fits(items: &[Pair]) -> bool {
        items.len() <= 8
    }
    fn inner_fits(kids: &[Kid<Self>]) -> bool {
        kids.len() <= 5
    }
    fn weight(items: &[Pair]) -> u64 {
        items.iter().map(|i| i.1).sum()
    }
    fn cut(items: &mut Vec<Pair>, from: &u64, to: &u64) -> u64 {
        let before = Self::weight(items);
        items.retain(|i| i.0 < *from || i.0 >= *to);
        before - Self::weight(items)
    }
    fn blocks(_: &Pair) -> Option<(u64, u64)> {
        None
    }
    fn same(a: &Pair, b: &Pair) -> bool {
        a == b
    }
    fn encode_leaf(_: &[Pair], _: &mut [u8; BLOCK]) -> u64 {
        unreachable!("these trees stay in memory")
    }
    fn encode_inner(_: &[(u64, NodeRef, u64)], _: &mut [u8; BLOCK]) {
        unreachable!("these trees stay in memory")
    }
    fn decode_leaf(_: &NodeHeader, _: &[u8; BLOCK]) -> Result<Vec<Pair>, Corruption> {
        unreachable!("these trees stay in memory")
    }
    fn decode_inner(_: &NodeHeader, _: &[u8; BLOCK]) -> Result<Vec<Kid<Self>>, Corruption> {
        unreachable!("these trees stay in memory")
    }
    fn item_bytes(_: &Pair) -> usize {
        size_of::<Pair>()
    }
}

fn put(tree: &mut Tree<Small>, cx: &Cx<'_, Small>, key: u64, value: u64) {
    let edited = tree.edit(cx, &key, |items, upper| {
        assert!(upper.is_none_or(|u| key < *u), "T1: the edit came to the wrong leaf");
        let change = match items.binary_search_by_key(&key, |i| i.0) {
            Ok(at) => value as i64 - std::mem::replace(&mut items[at].1, value) as i64,
            Err(at) => {
                items.insert(at, (key, value));
                value as i64
            }
        };
        ((), change)
    });
    assert!(edited.is_ok());
}

/// T1 to T3 below `link`; returns the height and gathers the items.
fn sound(link: &Link<Small>, lower: u64, upper: u64, root: bool, out: &mut Vec<Pair>) -> u32 {
    let Link::Mem(node) = link else { panic!("these trees stay in memory") };
    if node.is_leaf() {
        assert!(root || !node.items.is_empty(), "T3: an empty leaf");
        assert!(Small::leaf_fits(&node.items));
        assert!(
            node.items.iter().all(|i| (lower..upper).contains(&i.0)),
            "T1: {:?} {lower}..{upper}",
            node.items
        );
        out.extend(&node.items);
        return 0;
    }
    assert!(!node.kids.is_empty() && Small::inner_fits(&node.kids), "T3");
    assert!(node.kids[0].key >= lower && node.kids.is_sorted_by(|a, b| a.key < b.key), "T1: keys");
    let mut height = None;
    for (i, kid) in node.kids.iter().enumerate() {
        let end = node.kids.get(i + 1).map_or(upper, |k| k.key);
        let Link::Mem(below) = &kid.link else { panic!("these trees stay in memory") };
        assert_eq!(kid.weight, below.weight(), "T2");
        let below = sound(&kid.link, kid.key, end, false, out);
        assert_eq!(*height.get_or_insert(below), below, "T3: leaves on one level");
    }
    height.unwrap_or(0) + 1
}

#[derive(Clone, Debug)]
enum Op {
    Put(u64, u64),
    /// From here on so many neighbouring keys.
    Run(u64, u64),
    Cut(u64, u64),
    /// Cuts exactly between keys that bound children.
    CutAligned(u64, u64),
    Share,
}

fn op() -> impl Strategy<Value = Op> {
    let key = 0u64..2_000;
    prop_oneof![
        30 => (key.clone(), 1u64..9).prop_map(|(k, v)| Op::Put(k, v)),
        3 => (key.clone(), 1u64..60).prop_map(|(k, n)| Op::Run(k, n)),
        6 => (key.clone(), 1u64..12).prop_map(|(k, n)| Op::Cut(k, n)),
        4 => (key.clone(), 1u64..700).prop_map(|(k, n)| Op::Cut(k, n)),
        2 => (key.clone(), 1u64..400).prop_map(|(k, n)| Op::CutAligned(k, n)),
        1 => Just(Op::Share),
    ]
}

fn bounds(link: &Link<Small>, out: &mut Vec<u64>) {
    if let Link::Mem(node) = link {
        for kid in &node.kids {
            out.push(kid.key);
            bounds(&kid.link, out);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn deep_trees_behave_like_a_sorted_map(ops in proptest::collection::vec(op(), 1..600)) {
        let store = Store::new(Arc::new(MemoryDevice::new()), [0; 16], 1 << 16);
        let (dirtied, held) = (AtomicU64::new(0), Held::new());
        let cx = Cx { store: &store, held: &held, dirtied: &dirtied };
        let mut tree = Tree::<Small>::empty();
        let mut model = BTreeMap::new();
        let mut shared: Vec<(Tree<Small>, BTreeMap<u64, u64>)> = Vec::new();
        for op in ops {
            let (from, to) = match op {
                Op::Put(key, value) => {
                    put(&mut tree, &cx, key, value);
                    model.insert(key, value);
                    continue;
                }
                Op::Run(from, n) => {
                    for key in from..from + n {
                        put(&mut tree, &cx, key, 1);
                        model.insert(key, 1);
                    }
                    continue;
                }
                Op::Share => {
                    if shared.len() < 3 {
                        shared.push((tree.clone(), model.clone()));
                    }
                    continue;
                }
                Op::Cut(from, n) => (from, from + n),
                Op::CutAligned(from, n) => {
                    let mut all = Vec::new();
                    tree.root.iter().for_each(|root| bounds(root, &mut all));
                    let snap = |key| all.iter().copied().filter(|b| *b <= key).max().unwrap_or(key);
                    (snap(from), snap(from + n))
                }
            };
            let gone: u64 = model.range(from..to.max(from)).map(|(_, v)| v).sum();
            let cut = if from < to { tree.cut(&cx, &from, &to) } else { Ok(0) };
            prop_assert!(matches!(cut, Ok(n) if n == gone), "{cut:?}, not {gone}");
            model.retain(|key, _| *key < from || *key >= to);
        }
        for (tree, model) in shared.iter().chain([(tree, model)].iter()) {
            let mut found = Vec::new();
            if let Some(root) = &tree.root {
                sound(root, 0, u64::MAX, true, &mut found);
            }
            prop_assert_eq!(&found, &model.iter().map(|(k, v)| (*k, *v)).collect::<Vec<_>>());
        }
    }
}
