//! An extent map in use: the runtime side of a volume or snapshot.

use std::sync::Arc;

use super::hot;
use super::lower::{Base, Below};
use crate::error::Result;
use crate::extent::Map;
use crate::format::record::{Change, ChangeKind};
use crate::memory;
use crate::sync::RwLock;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::units::{MAX_RUN_BLOCKS, ObjectId};

impl std::fmt::Debug for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Object({})", self.id)
    }
}

/// The map of one object, and what the log does not have of it yet.
pub(crate) struct Object {
    pub(crate) id: ObjectId,
    pub(crate) map: RwLock<ObjectMap>,
    /// The base that shows where the map has a hole.
    pub(super) below: Below,
    /// Under what number the table of hot blocks knows the map; another one after it has changed as a whole.
    state: AtomicU64,
}

pub(crate) struct ObjectMap {
    pub(crate) tree: Map,
    /// Changes since the last commit, in order.
    pub(crate) pending: Vec<Change>,
    /// The root differs from the one that the last freeze saw.
    pub(crate) changed: bool,
}

impl Object {
    pub(crate) fn new(id: ObjectId, tree: Map, base: Option<Arc<Base>>) -> Self {
        let map = RwLock::new(ObjectMap { tree, pending: Vec::new(), changed: false });
        let below = Below::default();
        below.set(base);
        Self { id, map, below, state: AtomicU64::new(hot::next_state()) }
    }

    /// The base that it lies over.
    pub(crate) fn base(&self) -> Option<Arc<Base>> {
        self.below.get()
    }

    pub(super) fn state(&self) -> u64 {
        self.state.load(Ordering::Acquire)
    }

    /// Whatever is known of the map's blocks is forgotten. The caller holds the map for writing.
    pub(super) fn renew(&self) {
        self.state.store(hot::next_state(), Ordering::Release);
    }

    /// Puts another map in the place of the present one.
    pub(super) fn replace_map(&self, map: &mut ObjectMap, tree: Map) {
        map.tree = tree;
        self.renew();
    }

    /// The map as it is now; shares everything with the object's own.
    pub(crate) fn map_snapshot(&self) -> Map {
        self.map.read().tree.clone()
    }
}

impl ObjectMap {
    /// Room for one more change, before the map is changed.
    #[inline]
    pub(crate) fn room(&mut self) -> Result<()> {
        memory::room(&mut self.pending, 1)
    }

    /// Notes a change for the next record, joined to the one before where it continues it.
    pub(crate) fn note(&mut self, next: Change, in_chunk: u64) {
        if let Some(last) = self.pending.last_mut() {
            let follows = last.kind == next.kind && last.lba + last.len == next.lba;
            let joins = match next.kind {
                ChangeKind::Data => {
                    last.block + last.len == next.block
                        && in_chunk != 0
                        && last.len + next.len <= MAX_RUN_BLOCKS
                }
                ChangeKind::Zero | ChangeKind::Hole => true,
            };
            if follows && joins {
                last.len += next.len;
                return;
            }
        }
        self.pending.push(next);
    }
}
