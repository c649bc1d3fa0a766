//! Short ids beside the UUIDs: `disk-` or `snap-` and eight of `a`-`z`, `0`-`9`, unique in the pool, stored.

use std::fmt;

use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::error::{Error, Result};
use crate::units::{ObjectId, SnapshotId, VolumeId};

use super::batch::Batch;
use super::catalogue::{self, Table};
use super::pool::Pool;

const LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
const TRIES: u64 = 64;

/// What kind of object an alias names, as the key of its table has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum AliasOf {
    Volume = 1,
    Snapshot = 2,
}

/// The eight characters behind the prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Alias([u8; 8]);

impl Default for Alias {
    fn default() -> Self {
        Self([b'a'; 8])
    }
}

impl Alias {
    pub(super) fn from_raw(raw: [u8; 8]) -> Option<Self> {
        raw.iter().all(|b| LETTERS.contains(b)).then_some(Self(raw))
    }
    pub(super) fn raw(self) -> [u8; 8] {
        self.0
    }
    pub(super) fn from_hash(mut hash: u64) -> Self {
        Self(std::array::from_fn(|_| {
            let letter = LETTERS[(hash % 36) as usize];
            hash /= 36;
            letter
        }))
    }
    fn parse(text: &str) -> Option<Self> {
        Self::from_raw(text.as_bytes().try_into().ok()?)
    }
}

impl fmt::Display for Alias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{}", char::from(*b)))
    }
}

impl Batch<'_> {
    /// An alias for a new object: made from its id, so that equal runs give equal pools.
    pub(super) fn claim_alias(&self, of: AliasOf, id: ObjectId) -> Result<Alias> {
        for seed in 0..TRIES {
            let alias = Alias::from_hash(xxh3_64_with_seed(&id.0, seed));
            if catalogue::by_alias(self.table(), of, alias)?.is_none() {
                return Ok(alias);
            }
        }
        Err(Error::AlreadyExists { object: "alias", id: id.to_string() })
    }
}

/// The id that a text names: a UUID in its lower-case form with hyphens, or an alias with its prefix.
fn find(table: &dyn Table, of: AliasOf, prefix: &str, text: &str) -> Result<Option<Uuid>> {
    if let Some(alias) = text.strip_prefix(prefix).and_then(Alias::parse) {
        return Ok(catalogue::by_alias(table, of, alias)?.map(|id| Uuid::from_bytes(id.0)));
    }
    Ok(Uuid::try_parse(text).ok().filter(|id| id.to_string() == text))
}

impl Pool {
    /// The volume that `text` names: its id as lower-case hyphenated UUID, or its [`alias`](super::Volume::alias).
    ///
    /// # Errors
    /// `NotFound` when it names none; `Corrupt`, `Io`, `Closed`.
    pub fn find_volume(&self, text: &str) -> Result<VolumeId> {
        let table: &dyn Table = &*self.inner.engine;
        let id = find(table, AliasOf::Volume, "disk-", text)?.map(VolumeId::new);
        match id {
            Some(id) if catalogue::has_volume(table, id)? => Ok(id),
            _ => Err(Error::not_found("volume", text)),
        }
    }

    /// The snapshot that `text` names: its id as lower-case hyphenated UUID, or its
    /// [`alias`](super::Snapshot::alias).
    ///
    /// # Errors
    /// As [`find_volume`](Self::find_volume).
    pub fn find_snapshot(&self, text: &str) -> Result<SnapshotId> {
        let table: &dyn Table = &*self.inner.engine;
        let id = find(table, AliasOf::Snapshot, "snap-", text)?.map(SnapshotId::new);
        match id {
            Some(id) if catalogue::has_snapshot(table, id)? => Ok(id),
            _ => Err(Error::not_found("snapshot", text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SnapshotSpec, VolumeSpec};

    #[test]
    fn an_object_is_found_by_its_id_and_by_its_alias_and_by_nothing_else() {
        let pool = super::super::tests::pool();
        let volume = pool.create_volume(VolumeSpec::blank(4096)).unwrap();
        let snapshot = pool.create_snapshot(volume.id, SnapshotSpec::new()).unwrap();
        assert!(volume.alias.starts_with("disk-") && volume.alias.len() == 13);
        assert_eq!(pool.find_volume(&volume.alias).unwrap(), volume.id);
        assert_eq!(pool.find_volume(&volume.id.to_string()).unwrap(), volume.id);
        assert_eq!(pool.find_snapshot(&snapshot.alias).unwrap(), snapshot.id);
        for text in ["", "disk-", "disk-ABCDEFGH", "disk-aaaaaaaa", &snapshot.alias, "é"] {
            assert!(
                matches!(pool.find_volume(text), Err(Error::NotFound { object: "volume", .. })),
                "{text}"
            );
        }
        let simple = volume.id.raw().simple().to_string();
        assert!(pool.find_volume(&simple).is_err() && pool.find_snapshot(&volume.id.to_string()).is_err());
        let _ = pool.delete_snapshot(snapshot.id).unwrap();
        assert!(pool.find_snapshot(&snapshot.alias).is_err());
    }

    #[test]
    fn a_taken_alias_is_not_given_again() {
        let pool = super::super::tests::pool();
        let ids: Vec<_> =
            (0..200).map(|_| pool.create_volume(VolumeSpec::blank(4096)).unwrap().alias).collect();
        let distinct: std::collections::BTreeSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len());
    }
}
