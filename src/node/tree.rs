//! Copy-on-write trees, whatever they map.
//!
//! - T1 The key of a child is its lower bound, the key of the next child its upper one: every key below it lies
//!   between, and so does everything an item reaches over. The first child of a node may begin anywhere from
//!   the bound of the node itself on; no child has a key below that.
//! - T2 A child's weight is that of the node behind it.
//! - T3 No node is empty, all leaves are on one level, and every node fits its block.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::store::{Held, Store};
use crate::error::Corruption;
use crate::format::{BlockKind, NodeHeader, NodeRef};
use crate::units::BLOCK;

/// What a tree maps and how its nodes look on disk.
pub(crate) trait Kind: Sized + Send + Sync + 'static {
    type Key: Ord + Clone + Send + Sync + std::fmt::Debug;
    type Item: Clone + Send + Sync;
    const LEAF: BlockKind;
    const INNER: BlockKind;
    /// Whether leaves are written twice (interior nodes always are).
    const LEAF_TWIN: bool;

    fn key(item: &Self::Item) -> Self::Key;
    fn leaf_fits(items: &[Self::Item]) -> bool;
    fn inner_fits(kids: &[Kid<Self>]) -> bool;
    /// What interior nodes keep a sum of.
    fn weight(items: &[Self::Item]) -> u64;
    /// Removes everything in `from..to`; returns the weight removed. May leave one item more than before.
    fn cut(items: &mut Vec<Self::Item>, from: &Self::Key, to: &Self::Key) -> u64;
    /// Runs of data blocks that a leaf item names.
    fn blocks(item: &Self::Item) -> Option<(u64, u64)>;
    /// Whether two items name the same blocks at the same key.
    fn same(a: &Self::Item, b: &Self::Item) -> bool;
    /// Whether dropped subtrees go to the reclaim queue instead of being walked by the checkpoint at once.
    const DEFER_DROPS: bool;
    /// Returns the base for the header.
    fn encode_leaf(items: &[Self::Item], block: &mut [u8; BLOCK]) -> u64;
    fn encode_inner(kids: &[(Self::Key, NodeRef, u64)], block: &mut [u8; BLOCK]);
    fn decode_leaf(h: &NodeHeader, block: &[u8; BLOCK]) -> Result<Vec<Self::Item>, Corruption>;
    fn decode_inner(h: &NodeHeader, block: &[u8; BLOCK]) -> Result<Vec<Kid<Self>>, Corruption>;
    fn item_bytes(item: &Self::Item) -> usize;
    /// Room to reserve in a leaf that is going to be changed.
    const LEAF_ROOM: usize;
}

/// A node that is needed and not in memory (N5).
#[derive(Debug)]
pub(crate) struct Miss(pub(crate) NodeRef);

pub(crate) enum Link<K: Kind> {
    Disk(NodeRef),
    Mem(Arc<Node<K>>),
}

impl<K: Kind> Clone for Link<K> {
    fn clone(&self) -> Self {
        match self {
            Link::Disk(r) => Link::Disk(*r),
            Link::Mem(n) => Link::Mem(Arc::clone(n)),
        }
    }
}

impl<K: Kind> Link<K> {
    /// Where the node is on disk, if it has been written.
    pub(crate) fn home(&self) -> Option<NodeRef> {
        match self {
            Link::Disk(r) => Some(*r),
            Link::Mem(n) => n.home().copied(),
        }
    }
}

pub(crate) struct Kid<K: Kind> {
    /// No key below this child is smaller.
    pub(crate) key: K::Key,
    pub(crate) weight: u64,
    pub(crate) link: Link<K>,
}

impl<K: Kind> Clone for Kid<K> {
    fn clone(&self) -> Self {
        Self { key: self.key.clone(), weight: self.weight, link: self.link.clone() }
    }
}

type Home = Arc<OnceLock<NodeRef>>;

pub(crate) struct Node<K: Kind> {
    pub(crate) level: u8,
    /// Contents of a leaf.
    pub(crate) items: Vec<K::Item>,
    /// Children of an interior node.
    pub(crate) kids: Vec<Kid<K>>,
    home: Home,
    /// The written node that this one was copied from: a hint that lets the checkpoint settle counts by
    /// difference instead of child by child.
    origin: Option<Home>,
}

impl<K: Kind> Node<K> {
    fn new(level: u8, items: Vec<K::Item>, kids: Vec<Kid<K>>) -> Self {
        Self { level, items, kids, home: Home::default(), origin: None }
    }

    pub(crate) fn home(&self) -> Option<&NodeRef> {
        self.home.get()
    }
    pub(crate) fn origin(&self) -> Option<NodeRef> {
        self.origin.as_ref().and_then(|o| o.get().copied())
    }
    /// Gives the node its place on disk; from here on it never changes (N1).
    pub(crate) fn settle(&self, at: NodeRef) {
        let fresh = self.home.set(at).is_ok();
        debug_assert!(fresh, "N1: a node is written once");
    }
    pub(crate) fn is_leaf(&self) -> bool {
        self.level == 0
    }
    pub(crate) fn twin(&self) -> bool {
        self.level > 0 || K::LEAF_TWIN
    }
    pub(crate) fn kind(&self) -> BlockKind {
        if self.level == 0 { K::LEAF } else { K::INNER }
    }

    fn copy(&self) -> Self {
        let mut items = Vec::new();
        let mut kids = Vec::new();
        if self.is_leaf() {
            items.reserve_exact(K::LEAF_ROOM.max(self.items.len() + 2));
            items.extend_from_slice(&self.items);
        } else {
            kids.reserve(self.kids.len() + 2);
            kids.extend_from_slice(&self.kids);
        }
        // Later copies of a copy point at the nearest ancestor that has, or will get, a home.
        Self { origin: Some(Arc::clone(&self.home)), ..Self::new(self.level, items, kids) }
    }

    fn empty(&self) -> bool {
        self.items.is_empty() && self.kids.is_empty()
    }
    fn fits(&self) -> bool {
        if self.is_leaf() { K::leaf_fits(&self.items) } else { K::inner_fits(&self.kids) }
    }
    pub(crate) fn weight(&self) -> u64 {
        if self.is_leaf() { K::weight(&self.items) } else { self.kids.iter().map(|k| k.weight).sum() }
    }
    fn lowest(&self) -> Option<K::Key> {
        if self.is_leaf() { self.items.first().map(K::key) } else { self.kids.first().map(|k| k.key.clone()) }
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        let items: usize = self.items.iter().map(K::item_bytes).sum();
        size_of::<Self>() + items + self.kids.len() * (size_of::<Kid<K>>() + 8)
    }

    /// Index of the child that `key` belongs to.
    pub(crate) fn child_for(&self, key: &K::Key) -> usize {
        self.kids.partition_point(|k| k.key <= *key).saturating_sub(1)
    }

    pub(crate) fn decode(block: &[u8; BLOCK], r: &NodeRef, uuid: &[u8; 16]) -> Result<Self, Corruption> {
        let kind = if r.level == 0 { K::LEAF } else { K::INNER };
        let h = NodeHeader::decode(block, kind, uuid, r)?;
        let node = if r.level == 0 {
            Self::new(0, K::decode_leaf(&h, block)?, Vec::new())
        } else {
            Self::new(r.level, Vec::new(), K::decode_inner(&h, block)?)
        };
        let _ = node.home.set(*r);
        Ok(node)
    }

    /// Encodes for the given places; `home` says where a child that has none yet is going to be.
    pub(crate) fn encode(
        &self,
        mut h: NodeHeader,
        home: &dyn Fn(&Link<K>) -> Option<NodeRef>,
        block: &mut [u8; BLOCK],
    ) -> Option<()> {
        if self.is_leaf() {
            h.count = self.items.len() as u16;
            h.base = K::encode_leaf(&self.items, block);
        } else {
            h.count = self.kids.len() as u16;
            let kids: Option<Vec<_>> =
                self.kids.iter().map(|k| Some((k.key.clone(), home(&k.link)?, k.weight))).collect();
            K::encode_inner(&kids?, block);
        }
        h.encode(block);
        Some(())
    }

    /// This node as the cache may hold it: children by address only (N3).
    pub(crate) fn settled(self: &Arc<Self>) -> Arc<Self> {
        if self.kids.iter().all(|k| matches!(k.link, Link::Disk(_))) {
            return Arc::clone(self);
        }
        let kids = self
            .kids
            .iter()
            .map(|k| Kid {
                key: k.key.clone(),
                weight: k.weight,
                link: Link::Disk(k.link.home().expect("children of a written node are written")),
            })
            .collect();
        Arc::new(Self {
            level: self.level,
            items: Vec::new(),
            kids,
            home: Arc::clone(&self.home),
            origin: None,
        })
    }

    /// Cuts off what does not fit; every part returned fits.
    fn split(&mut self, append: bool) -> Vec<Self> {
        let mut parts = Vec::new();
        let mut rest = if self.is_leaf() {
            let rest = split_off(&mut self.items, append, K::leaf_fits);
            Self::new(0, rest, Vec::new())
        } else {
            let rest = split_off(&mut self.kids, append, K::inner_fits);
            Self::new(self.level, Vec::new(), rest)
        };
        rest.items.reserve(2);
        while !rest.fits() {
            let mut more = rest.split(false);
            debug_assert!(rest.fits());
            parts.push(rest);
            rest = more.remove(0);
            for part in more.into_iter().rev() {
                debug_assert!(part.fits());
                parts.push(part);
            }
        }
        parts.push(rest);
        parts
    }
}

fn split_off<T>(all: &mut Vec<T>, append: bool, fits: impl Fn(&[T]) -> bool) -> Vec<T> {
    // An append leaves the left part full: sequential writing makes full leaves.
    let mut at = if append { all.len() - 1 } else { all.len() / 2 };
    while at > 1 && !fits(&all[..at]) {
        at -= 1;
    }
    all.split_off(at.max(1))
}

/// What an edit needs from outside the tree.
pub(crate) struct Cx<'a, K: Kind> {
    pub(crate) store: &'a Store,
    pub(crate) held: &'a Held<K>,
    /// Counts nodes that became dirty.
    pub(crate) dirtied: &'a AtomicU64,
}

/// A node seen through a link: borrowed from the tree, or out of the cache.
pub(crate) enum Got<'a, K: Kind> {
    Tree(&'a Node<K>),
    Cache(Arc<Node<K>>),
}

impl<K: Kind> std::ops::Deref for Got<'_, K> {
    type Target = Node<K>;
    #[inline]
    fn deref(&self) -> &Node<K> {
        match self {
            Got::Tree(n) => n,
            Got::Cache(n) => n,
        }
    }
}

impl<'a, K: Kind> Got<'a, K> {
    #[inline]
    pub(crate) fn open(link: &'a Link<K>, store: &Store, held: &Held<K>) -> Result<Self, Miss> {
        match link {
            Link::Mem(n) => Ok(Got::Tree(n)),
            Link::Disk(r) => store.cached(r, held).map(Got::Cache).ok_or(Miss(*r)),
        }
    }
    /// Child number `i`. A cached node has no `Mem` children (N3), so borrowing never outlives the cache's `Arc`.
    #[inline]
    pub(crate) fn child(&self, i: usize, store: &Store, held: &Held<K>) -> Result<Got<'a, K>, Miss> {
        match self {
            Got::Tree(n) => Got::open(&n.kids[i].link, store, held),
            Got::Cache(n) => match &n.kids[i].link {
                Link::Disk(r) => store.cached(r, held).map(Got::Cache).ok_or(Miss(*r)),
                Link::Mem(child) => Ok(Got::Cache(Arc::clone(child))),
            },
        }
    }
}

/// How an edit left the node it descended into.
enum Outcome {
    Fine,
    Empty,
    Over,
}

/// A tree: no root means no entries.
pub(crate) struct Tree<K: Kind> {
    pub(crate) root: Option<Link<K>>,
}

impl<K: Kind> Clone for Tree<K> {
    fn clone(&self) -> Self {
        Self { root: self.root.clone() }
    }
}

impl<K: Kind> Tree<K> {
    pub(crate) const fn empty() -> Self {
        Self { root: None }
    }

    /// Runs `f` on the items of the leaf that `key` belongs to. `f` gets the leaf's upper bound and returns
    /// its result and the change in weight. Splits, merges and removes nodes as needed.
    pub(crate) fn edit<R>(
        &mut self,
        cx: &Cx<'_, K>,
        key: &K::Key,
        f: impl FnOnce(&mut Vec<K::Item>, Option<&K::Key>) -> (R, i64),
    ) -> Result<R, Miss> {
        let root = self.root.get_or_insert_with(|| {
            cx.dirtied.fetch_add(1, Ordering::Relaxed);
            Link::Mem(Arc::new(Node::new(0, Vec::with_capacity(K::LEAF_ROOM), Vec::new())))
        });
        let mut f = Some(f);
        let done = Self::edit_in(cx, root, key, None, &mut f);
        match done {
            Ok((result, _, outcome)) => {
                self.tidy(cx, outcome, key);
                Ok(result)
            }
            Err(miss) => Err(miss),
        }
    }

    fn edit_in<R, F>(
        cx: &Cx<'_, K>,
        link: &mut Link<K>,
        key: &K::Key,
        upper: Option<&K::Key>,
        f: &mut Option<F>,
    ) -> Result<(R, i64, Outcome), Miss>
    where
        F: FnOnce(&mut Vec<K::Item>, Option<&K::Key>) -> (R, i64),
    {
        let node = own(cx, link)?;
        if node.is_leaf() {
            let f = f.take().expect("one leaf per edit");
            let (result, change) = f(&mut node.items, upper);
            return Ok((result, change, node.state()));
        }
        let i = node.child_for(key);
        if *key < node.kids[i].key {
            node.kids[i].key = key.clone();
        }
        let (head, tail) = node.kids.split_at_mut(i + 1);
        let kid = &mut head[i];
        let upper = tail.first().map(|k| &k.key).or(upper);
        let (result, change, _) = Self::edit_in(cx, &mut kid.link, key, upper, f)?;
        kid.weight = kid.weight.saturating_add_signed(change);
        node.mend(cx, i, key);
        Ok((result, change, node.state()))
    }

    /// Removes every key in `from..to`. Whole subtrees are dropped unread. Returns the weight removed.
    pub(crate) fn cut(&mut self, cx: &Cx<'_, K>, from: &K::Key, to: &K::Key) -> Result<u64, Miss> {
        let Some(root) = &mut self.root else { return Ok(0) };
        // Both edges must be in memory before anything changes (N5), and stay there until it has.
        let mut held = Held::new();
        probe(cx, root, &mut held, |n| n.child_for(from))?;
        probe(cx, root, &mut held, |n| n.kids.partition_point(|k| k.key < *to).saturating_sub(1))?;
        let cx = Cx { store: cx.store, held: &held, dirtied: cx.dirtied };
        let (removed, outcome) = Self::cut_in(&cx, root, from, to, None)?;
        self.tidy(&cx, outcome, from);
        Ok(removed)
    }

    fn cut_in(
        cx: &Cx<'_, K>,
        link: &mut Link<K>,
        from: &K::Key,
        to: &K::Key,
        upper: Option<&K::Key>,
    ) -> Result<(u64, Outcome), Miss> {
        let node = own(cx, link)?;
        if node.is_leaf() {
            let removed = K::cut(&mut node.items, from, to);
            return Ok((removed, node.state()));
        }
        let first = node.child_for(from);
        let last = node.kids.partition_point(|k| k.key < *to).saturating_sub(1).max(first);
        let bound = node.kids.get(last + 1).map(|k| k.key.clone()).or_else(|| upper.cloned());
        if first == last {
            let removed = node.cut_kid(cx, first, from, to, bound.as_ref())?;
            node.mend(cx, first, from);
            return Ok((removed, node.state()));
        }
        let before = node.weight();
        // A child at an edge stays if some of its range does.
        let left = *from > node.kids[first].key;
        let right = bound.as_ref().is_none_or(|b| b > to);
        if right {
            node.cut_kid(cx, last, from, to, bound.as_ref())?;
        }
        if left {
            let bound = node.kids[first + 1].key.clone();
            node.cut_kid(cx, first, from, to, Some(&bound))?;
        }
        node.kids.drain(first + usize::from(left)..last + usize::from(!right));
        let removed = before.saturating_sub(node.weight());
        // Only now, when what goes is gone: an edge may be joined with a neighbour. The right one first, so that
        // the left one is still where it was.
        if right {
            node.mend(cx, first + usize::from(left), to);
        }
        if left {
            node.mend(cx, first, from);
        }
        Ok((removed, node.state()))
    }

    /// Settles the root after an edit: splits it, drops it, or lowers the tree.
    fn tidy(&mut self, cx: &Cx<'_, K>, outcome: Outcome, key: &K::Key) {
        let Some(root) = &mut self.root else { return };
        match outcome {
            Outcome::Empty => self.root = None,
            Outcome::Fine => {
                while let Some(Link::Mem(node)) = &self.root {
                    if node.is_leaf() || node.kids.len() != 1 {
                        break;
                    }
                    self.root = Some(node.kids[0].link.clone());
                }
            }
            Outcome::Over => {
                let Link::Mem(arc) = root else { return };
                let node = Arc::get_mut(arc).expect("the edit just owned it");
                let append = node.appended(key);
                let level = node.level;
                let parts = node.split(append);
                let mut kids = vec![Kid {
                    key: node.lowest().expect("a split node is not empty"),
                    weight: node.weight(),
                    link: Link::Mem(Arc::clone(arc)),
                }];
                for part in parts {
                    kids.push(part.into_kid(cx));
                }
                cx.dirtied.fetch_add(1, Ordering::Relaxed);
                let mut top = Node::new(level + 1, Vec::new(), kids);
                // A split into very many parts may overflow the new root as well.
                let over = !top.fits();
                if over {
                    let rest = top.split(false);
                    let mut kids = vec![top.into_kid(cx)];
                    kids.extend(rest.into_iter().map(|p| p.into_kid(cx)));
                    top = Node::new(level + 2, Vec::new(), kids);
                }
                self.root = Some(Link::Mem(Arc::new(top)));
            }
        }
    }

    /// After a checkpoint: links to nodes that it wrote become addresses, so that the cache's limit holds.
    pub(crate) fn settle(&mut self) {
        if let Some(root) = &mut self.root {
            settle_link(root);
        }
    }
}

fn settle_link<K: Kind>(link: &mut Link<K>) {
    let Link::Mem(arc) = link else { return };
    if let Some(home) = arc.home().copied() {
        *link = Link::Disk(home);
    } else if let Some(node) = Arc::get_mut(arc) {
        for kid in &mut node.kids {
            settle_link(&mut kid.link);
        }
    }
}

/// Makes the node behind `link` this tree's own and changeable (N1, N2).
fn own<'a, K: Kind>(cx: &Cx<'_, K>, link: &'a mut Link<K>) -> Result<&'a mut Node<K>, Miss> {
    let copy = match link {
        Link::Mem(arc) => {
            if arc.home().is_none() && Arc::get_mut(arc).is_some() {
                None
            } else {
                Some(arc.copy())
            }
        }
        Link::Disk(r) => Some(cx.store.cached(r, cx.held).ok_or(Miss(*r))?.copy()),
    };
    if let Some(node) = copy {
        cx.dirtied.fetch_add(1, Ordering::Relaxed);
        *link = Link::Mem(Arc::new(node));
    }
    match link {
        Link::Mem(arc) => Ok(Arc::get_mut(arc).expect("N2: owned just now")),
        Link::Disk(_) => unreachable!("replaced above"),
    }
}

/// Walks down the edge of a cut and keeps what it saw.
fn probe<K: Kind>(
    cx: &Cx<'_, K>,
    root: &Link<K>,
    keep: &mut Held<K>,
    pick: impl Fn(&Node<K>) -> usize,
) -> Result<(), Miss> {
    let mut at = Got::open(root, cx.store, cx.held)?;
    loop {
        if let Got::Cache(node) = &at
            && let Some(home) = node.home()
        {
            keep.add(home.a, Arc::clone(node));
        }
        if at.is_leaf() {
            return Ok(());
        }
        at = at.child(pick(&at), cx.store, cx.held)?;
    }
}

impl<K: Kind> Node<K> {
    fn state(&self) -> Outcome {
        if self.empty() {
            Outcome::Empty
        } else if self.fits() {
            Outcome::Fine
        } else {
            Outcome::Over
        }
    }

    fn appended(&self, key: &K::Key) -> bool {
        if self.is_leaf() {
            self.items.last().is_some_and(|last| K::key(last) <= *key)
        } else {
            self.kids.last().is_some_and(|last| last.key <= *key)
        }
    }

    fn into_kid(self, cx: &Cx<'_, K>) -> Kid<K> {
        cx.dirtied.fetch_add(1, Ordering::Relaxed);
        Kid {
            key: self.lowest().expect("a part is not empty"),
            weight: self.weight(),
            link: Link::Mem(Arc::new(self)),
        }
    }

    /// Cuts `from..to` out of child `i`, which ends at `upper`. Returns the weight removed.
    fn cut_kid(
        &mut self,
        cx: &Cx<'_, K>,
        i: usize,
        from: &K::Key,
        to: &K::Key,
        upper: Option<&K::Key>,
    ) -> Result<u64, Miss> {
        let kid = &mut self.kids[i];
        let (removed, _) = Tree::cut_in(cx, &mut kid.link, from, to, upper)?;
        // A weight that came from a damaged disk may be anything.
        kid.weight = kid.weight.saturating_sub(removed);
        // Where the beginning of the range has gone, so has what kept the bound low; at every level, or the
        // bounds within the child would reach below its own (T1).
        if *from <= kid.key && kid.key < *to {
            kid.key = to.clone();
        }
        Ok(removed)
    }

    /// Puts child `i` right after an edit below it.
    fn mend(&mut self, cx: &Cx<'_, K>, i: usize, key: &K::Key) {
        let Link::Mem(kid) = &self.kids[i].link else { return };
        match kid.state() {
            Outcome::Empty => {
                self.kids.remove(i);
            }
            Outcome::Over => {
                if !self.shift(i) {
                    let kid = &mut self.kids[i];
                    let Link::Mem(arc) = &mut kid.link else { return };
                    let node = Arc::get_mut(arc).expect("the edit just owned it");
                    let append = node.appended(key);
                    let parts = node.split(append);
                    kid.weight = node.weight();
                    let parts: Vec<_> = parts.into_iter().map(|p| p.into_kid(cx)).collect();
                    self.kids.splice(i + 1..i + 1, parts);
                }
            }
            Outcome::Fine => self.merge(i),
        }
    }

    /// Moves entries of the full leaf `i` to a neighbour that is in memory and has room, so that leaves
    /// stay fuller than splitting alone would leave them.
    fn shift(&mut self, i: usize) -> bool {
        if self.level != 1 {
            return false;
        }
        for j in [i.checked_sub(1), Some(i + 1)].into_iter().flatten() {
            if j >= self.kids.len() {
                continue;
            }
            let (low, high) = (i.min(j), i.max(j));
            let (head, tail) = self.kids.split_at_mut(high);
            let (left, right) = (&mut head[low], &mut tail[0]);
            let (Link::Mem(l), Link::Mem(r)) = (&mut left.link, &mut right.link) else { continue };
            if l.home().is_some() || r.home().is_some() {
                continue;
            }
            let (Some(l), Some(r)) = (Arc::get_mut(l), Arc::get_mut(r)) else { continue };
            let total = l.items.len() + r.items.len();
            if total + total / 8 > 2 * K::LEAF_ROOM {
                continue;
            }
            let l_len = l.items.len();
            let mut all = std::mem::take(&mut l.items);
            all.append(&mut r.items);
            // Halves may be too far apart for one base: then everything stays where it was.
            let half = total / 2;
            let fits = half > 0 && K::leaf_fits(&all[..half]) && K::leaf_fits(&all[half..]);
            r.items.extend(all.drain(if fits { half } else { l_len }..));
            l.items = all;
            if !fits {
                continue;
            }
            left.weight = l.weight();
            right.weight = r.weight();
            right.key = r.lowest().expect("half of many");
            return true;
        }
        false
    }

    /// Joins child `i` with a neighbour when it has become small and both are in memory.
    fn merge(&mut self, i: usize) {
        let small = match &self.kids[i].link {
            Link::Mem(n) if n.is_leaf() => n.items.len() < K::LEAF_ROOM / 4,
            Link::Mem(n) => n.kids.len() < 16,
            Link::Disk(_) => false,
        };
        if !small || self.kids.len() < 2 {
            return;
        }
        for low in [i.checked_sub(1), Some(i)].into_iter().flatten() {
            if low + 1 >= self.kids.len() {
                continue;
            }
            let (head, tail) = self.kids.split_at_mut(low + 1);
            let (left, right) = (&mut head[low], &mut tail[0]);
            let (Link::Mem(l), Link::Mem(r)) = (&mut left.link, &mut right.link) else { continue };
            if l.home().is_some() || r.home().is_some() || l.level != r.level {
                continue;
            }
            let (Some(l), Some(r)) = (Arc::get_mut(l), Arc::get_mut(r)) else { continue };
            let fits = if l.is_leaf() {
                // Leave room, or the next insert splits again.
                l.items.len() + r.items.len() < K::LEAF_ROOM * 3 / 4 && {
                    let both: Vec<_> = l.items.iter().chain(&r.items).cloned().collect();
                    K::leaf_fits(&both)
                }
            } else {
                l.kids.len() + r.kids.len() < 64 && {
                    let both: Vec<_> = l.kids.iter().chain(&r.kids).cloned().collect();
                    K::inner_fits(&both)
                }
            };
            if fits {
                l.items.append(&mut r.items);
                l.kids.append(&mut r.kids);
                left.weight += right.weight;
                self.kids.remove(low + 1);
                return;
            }
        }
    }
}
