//! The last durable checkpoint, held still, for those who look at the whole of it.

use super::bases;
use super::catalogue::{self, Catalogue, TABLE_RECLAIM, TABLE_ROOTS, TABLE_TRASH};
use super::engine::Engine;
use crate::alloc::Space;
use crate::error::{Corruption, Error, Result};
use crate::format::NodeRef;
use crate::format::superblock::Superblock;
use crate::node::{Link, Store};
use crate::units::ObjectId;

pub(crate) use super::catalogue::Pairs;

/// What the durable checkpoint consists of. While it lives no other checkpoint is made, so nothing that it
/// leads to moves or is used again; writers go on until they need one.
pub(crate) struct Rest<'a> {
    pub(crate) superblock: &'a Superblock,
    pub(crate) store: &'a Store,
    pub(crate) space: &'a Space,
    pub(crate) read_only: bool,
    /// Whether it covers everything that was acknowledged when it was asked for.
    pub(crate) latest: bool,
}

/// What the engine's own records in the catalogue name.
#[derive(Clone, Debug)]
pub(crate) enum Named {
    /// The map of an object.
    Map { object: ObjectId, root: NodeRef },
    /// An object whose map is to be reclaimed.
    Trash { object: ObjectId },
    /// A node that is being reclaimed: its children before `next` have been given up.
    Reclaim { node: NodeRef, next: u16 },
}

/// What a pair of the catalogue names; none for the records of the rooms above.
pub(crate) fn named(key: &[u8], value: &[u8]) -> Result<Option<Named>> {
    let object = |len: usize| {
        catalogue::object_of(key)
            .filter(|_| key.len() == len)
            .ok_or_else(|| Error::from(Corruption::new("catalogue", 0, "key length", len, key.len())))
    };
    Ok(match key.first() {
        Some(&TABLE_ROOTS) => Some(Named::Map { object: object(17)?, root: catalogue::parse_root(value)? }),
        Some(&TABLE_TRASH) => Some(Named::Trash { object: object(17)? }),
        Some(&TABLE_RECLAIM) => {
            let (node, next) = catalogue::parse_queue(value)?;
            let bad = || crate::Corruption::new("reclaim queue", 0, "key length", 27, key.len());
            catalogue::queued(key).ok_or_else(bad)?;
            Some(Named::Reclaim { node, next })
        }
        Some(_) => {
            bases::check_pair(key, value)?;
            None
        }
        None => None,
    })
}

impl Rest<'_> {
    /// The value of `key` in the durable catalogue.
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let tree = Catalogue { root: self.superblock.catalogue_root.map(Link::Disk) };
        catalogue::get(&tree, self.store, key)
    }
}

impl Engine {
    /// Shows `look` the durable checkpoint, a fresh one where the pool can be written. Damage or a lack of
    /// space that keeps a new checkpoint from being made leaves the one before to look at.
    pub(crate) fn at_rest<T>(&self, look: impl FnOnce(&Rest<'_>) -> Result<T>) -> Result<T> {
        self.usable()?;
        let mut superblock = self.checkpoint.lock();
        let read_only = self.is_read_only();
        let mut latest = false;
        if !read_only {
            match self.checkpoint_with(&mut superblock, true, false) {
                Ok(()) => latest = true,
                Err(Error::Corrupt(_) | Error::OutOfSpace { .. } | Error::Io { op: "read", .. }) => {}
                Err(e) => return Err(e),
            }
        }
        look(&Rest { superblock: &superblock, store: &self.store, space: &self.space, read_only, latest })
    }
}
