//! The catalogue: a copy-on-write tree from byte keys to byte values, and the tables that belong to the
//! engine itself.

use crate::error::{Corruption, Result};
use crate::format::node::{
    BODY, MAX_KEY, MAX_VALUE, Pair, decode_fences, decode_pairs, encode_fences, encode_pairs,
};
use crate::format::{BlockKind, NodeHeader, NodeRef, Reader, Writer};
use crate::node::{Cx, Got, Held, Kid, Kind, Link, Miss, Store, Tree};
use crate::units::{BLOCK, ObjectId};

/// Trees of this kind map byte strings to byte strings.
pub(crate) struct Pairs;

pub(crate) type Catalogue = Tree<Pairs>;

/// Table of map roots: key `0xF0`, object id; value: a node reference.
pub(crate) const TABLE_ROOTS: u8 = 0xF0;
/// Table of objects whose maps are to be reclaimed: key `0xF1`, object id; value: u64 number of the deletion,
/// u8 1 once the map is in the queue. The entry goes when the last block has come back.
pub(crate) const TABLE_TRASH: u8 = 0xF1;
/// The reclaim queue: key `0xF2`, u64 number of the deletion, object id, u16 depth (numbers big-endian); value:
/// a node reference, u16 next child. Deletions are reclaimed in the order in which they were made: a block
/// that two of them shared comes back with the later one, which was its last owner. Number 0, before all of
/// them, are subtrees that discards and rewrites displaced.
/// The entry owns one reference to the node and has dropped its children before `next`.
pub(crate) const TABLE_RECLAIM: u8 = 0xF2;
/// What map lies over which base, who lies over a base, and the bases: see [`bases`](super::bases).
pub(super) const TABLE_OVER: u8 = 0xF3;
pub(super) const TABLE_USERS: u8 = 0xF4;
pub(crate) const TABLE_BASES: u8 = 0xF5;

impl Kind for Pairs {
    type Key = Vec<u8>;
    type Item = Pair;
    const LEAF: BlockKind = BlockKind::CatalogueLeaf;
    const INNER: BlockKind = BlockKind::CatalogueInner;
    const LEAF_TWIN: bool = true;
    const LEAF_ROOM: usize = 64;
    const DEFER_DROPS: bool = false;

    fn key(item: &Pair) -> Vec<u8> {
        item.0.clone()
    }
    fn leaf_fits(items: &[Pair]) -> bool {
        items.iter().map(|(k, v)| 4 + k.len() + v.len()).sum::<usize>() <= BODY
    }
    fn inner_fits(kids: &[Kid<Self>]) -> bool {
        kids.iter().map(|k| 2 + NodeRef::BYTES + k.key.len()).sum::<usize>() <= BODY
    }
    fn weight(_: &[Pair]) -> u64 {
        0
    }
    fn cut(items: &mut Vec<Pair>, from: &Vec<u8>, to: &Vec<u8>) -> u64 {
        items.retain(|(k, _)| k < from || k >= to);
        0
    }
    fn blocks(_: &Pair) -> Option<(u64, u64)> {
        None
    }
    fn same(a: &Pair, b: &Pair) -> bool {
        a == b
    }
    fn encode_leaf(items: &[Pair], block: &mut [u8; BLOCK]) -> u64 {
        encode_pairs(items.iter().map(|(k, v)| (k.as_slice(), v.as_slice())), block);
        0
    }
    fn encode_inner(kids: &[(Vec<u8>, NodeRef, u64)], block: &mut [u8; BLOCK]) {
        encode_fences(kids.iter().map(|(k, r, _)| (k.as_slice(), *r)), block);
    }
    fn decode_leaf(h: &NodeHeader, block: &[u8; BLOCK]) -> Result<Vec<Pair>, Corruption> {
        decode_pairs(h, block)
    }
    fn decode_inner(h: &NodeHeader, block: &[u8; BLOCK]) -> Result<Vec<Kid<Self>>, Corruption> {
        let kids = decode_fences(h, block)?;
        Ok(kids.into_iter().map(|(key, node)| Kid { key, weight: 0, link: Link::Disk(node) }).collect())
    }
    fn item_bytes(item: &Pair) -> usize {
        size_of::<Pair>() + item.0.len() + item.1.len() + 32
    }
}

/// Runs `f`, fetching every node that it misses.
pub(crate) fn with_nodes<K: Kind, T>(
    store: &Store,
    mut f: impl FnMut(&Held<K>) -> Result<T, Miss>,
) -> Result<T> {
    let mut held = Held::new();
    loop {
        match f(&held) {
            Ok(done) => return Ok(done),
            Err(Miss(r)) => held.add(r.a, store.fetch::<K>(&r)?),
        }
    }
}

pub(crate) fn get(tree: &Catalogue, store: &Store, key: &[u8]) -> Result<Option<Vec<u8>>> {
    let key = key.to_vec();
    with_nodes::<Pairs, _>(store, |held| {
        let Some(root) = &tree.root else { return Ok(None) };
        let mut at = Got::open(root, store, held)?;
        while !at.is_leaf() {
            at = at.child(at.child_for(&key), store, held)?;
        }
        let hit = at.items.binary_search_by(|item| item.0.cmp(&key));
        Ok(hit.ok().map(|i| at.items[i].1.clone()))
    })
}

/// The first pair at or after `key` (or, in reverse, the last before it).
pub(crate) fn neighbour(tree: &Catalogue, store: &Store, key: &[u8], reverse: bool) -> Result<Option<Pair>> {
    let key = key.to_vec();
    with_nodes::<Pairs, _>(store, |held| {
        let Some(root) = &tree.root else { return Ok(None) };
        let at = Got::open(root, store, held)?;
        near(&at, store, held, &key, reverse)
    })
}

fn near(
    at: &Got<'_, Pairs>,
    store: &Store,
    held: &Held<Pairs>,
    key: &Vec<u8>,
    reverse: bool,
) -> Result<Option<Pair>, Miss> {
    if at.is_leaf() {
        let i = at.items.partition_point(|item| item.0 < *key);
        let i = if reverse { i.checked_sub(1) } else { Some(i) };
        return Ok(i.and_then(|i| at.items.get(i)).cloned());
    }
    // The key's own child, or the one beside it: leaves are never empty, so a sound tree answers there, and
    // one that is not sound costs no more.
    let own = at.child_for(key);
    let beside = if reverse { own.checked_sub(1) } else { Some(own + 1).filter(|n| *n < at.kids.len()) };
    for i in std::iter::once(own).chain(beside) {
        let child = at.child(i, store, held)?;
        if let Some(pair) = near(&child, store, held, key, reverse)? {
            return Ok(Some(pair));
        }
    }
    Ok(None)
}

/// Sets or removes one pair.
pub(crate) fn set(
    tree: &mut Catalogue,
    store: &Store,
    dirtied: &std::sync::atomic::AtomicU64,
    key: &[u8],
    value: Option<&[u8]>,
) -> Result<()> {
    let key = key.to_vec();
    debug_assert!(key.len() <= MAX_KEY && value.is_none_or(|v| v.len() <= MAX_VALUE));
    if value.is_none() && tree.root.is_none() {
        return Ok(());
    }
    let mut held = Held::new();
    loop {
        let cx = Cx { store, held: &held, dirtied };
        let done = tree.edit(&cx, &key, |items, _| {
            match (items.binary_search_by(|item| item.0.cmp(&key)), value) {
                (Ok(i), Some(v)) => items[i].1 = v.to_vec(),
                (Ok(i), None) => {
                    items.remove(i);
                }
                (Err(i), Some(v)) => items.insert(i, (key.clone(), v.to_vec())),
                (Err(_), None) => {}
            }
            ((), 0)
        });
        match done {
            Ok(()) => return Ok(()),
            Err(Miss(r)) => held.add(r.a, store.fetch::<Pairs>(&r)?),
        }
    }
}

pub(crate) fn object_key(table: u8, id: ObjectId) -> Vec<u8> {
    let mut key = vec![table];
    key.extend_from_slice(&id.0);
    key
}

pub(crate) fn queue_key(number: u64, id: ObjectId, depth: u16) -> Vec<u8> {
    let mut key = vec![TABLE_RECLAIM];
    key.extend_from_slice(&number.to_be_bytes());
    key.extend_from_slice(&id.0);
    key.extend_from_slice(&depth.to_be_bytes());
    key
}

/// Number and object of a key in the reclaim queue.
pub(crate) fn queued(key: &[u8]) -> Option<(u64, ObjectId)> {
    let number = u64::from_be_bytes(key.get(1..9)?.try_into().ok()?);
    Some((number, ObjectId(key.get(9..25)?.try_into().ok()?))).filter(|_| key.len() == 27)
}

pub(crate) fn trash_value(number: u64, in_queue: bool) -> Vec<u8> {
    let mut value = number.to_le_bytes().to_vec();
    value.push(u8::from(in_queue));
    value
}

/// Number of a deletion, and whether its map is in the queue.
pub(crate) fn parse_trash(value: &[u8]) -> Result<(u64, bool)> {
    let mut r = Reader::new(value, "deletion record", 0);
    let (number, state) = (r.u64()?, r.u8()?);
    if state > 1 {
        return Err(r.bad("state", "0 or 1", state).into());
    }
    // The next ones follow it.
    if number >= 1 << 62 {
        return Err(r.bad("number", "below 2^62", number).into());
    }
    r.finish()?;
    Ok((number, state == 1))
}

pub(crate) fn object_of(key: &[u8]) -> Option<ObjectId> {
    Some(ObjectId(key.get(1..17)?.try_into().ok()?))
}

pub(crate) fn root_value(r: &NodeRef) -> Vec<u8> {
    let mut value = vec![0; NodeRef::BYTES];
    NodeRef::encode(Some(r), &mut Writer::new(&mut value));
    value
}

pub(crate) fn parse_root(value: &[u8]) -> Result<NodeRef> {
    let mut r = Reader::new(value, "map root record", 0);
    let root = NodeRef::decode(&mut r)?;
    let Some(root) = root else { return Err(r.bad("root", "a reference", "none").into()) };
    r.finish()?;
    Ok(root)
}

pub(crate) fn queue_value(r: &NodeRef, next: u16) -> Vec<u8> {
    let mut value = root_value(r);
    value.extend_from_slice(&next.to_le_bytes());
    value
}

pub(crate) fn parse_queue(value: &[u8]) -> Result<(NodeRef, u16)> {
    let (root, next) = value.split_at(value.len().min(NodeRef::BYTES));
    let root = parse_root(root)?;
    let mut r = Reader::new(next, "reclaim queue", root.a.raw());
    let next = r.u16()?;
    r.finish()?;
    Ok((root, next))
}

/// For any bytes: what a decoder of this room accepts encodes to them again.
#[cfg(feature = "internals")]
pub(crate) fn laws(bytes: &[u8]) {
    super::bases::law(bytes);
    if let Ok((number, in_queue)) = parse_trash(bytes) {
        let same = bytes.starts_with(&trash_value(number, in_queue));
        assert!(same && bytes[9..].iter().all(|b| *b == 0), "a deletion record has changed");
    }
    if let Ok(root) = parse_root(bytes) {
        assert!(bytes.starts_with(&root_value(&root)), "a map root has changed");
    }
    if let Ok((node, next)) = parse_queue(bytes) {
        assert!(bytes.starts_with(&queue_value(&node, next)), "an entry of the reclaim queue has changed");
    }
    if let Some((number, object)) = queued(bytes) {
        let depth = u16::from_be_bytes([bytes[25], bytes[26]]);
        assert_eq!(queue_key(number, object, depth)[1..], bytes[1..], "a key of the reclaim queue");
    }
}
