//! An extent map in use: the runtime side of a volume or snapshot.

use parking_lot::RwLock;

use crate::extent::Map;
use crate::format::record::{Change, ChangeKind};
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
}

pub(crate) struct ObjectMap {
    pub(crate) tree: Map,
    /// Changes since the last commit, in order.
    pub(crate) pending: Vec<Change>,
    /// The root differs from the one that the last freeze saw.
    pub(crate) changed: bool,
}

impl Object {
    pub(crate) fn new(id: ObjectId, tree: Map) -> Self {
        Self { id, map: RwLock::new(ObjectMap { tree, pending: Vec::new(), changed: false }) }
    }

    /// The map as it is now; shares everything with the object's own.
    pub(crate) fn map_snapshot(&self) -> Map {
        self.map.read().tree.clone()
    }
}

impl ObjectMap {
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
