//! External bases: bytes that the opener hands over, shared by all volumes over them, until the pool has them all.
//!
//! A base is an object of the pool with an id and a map of its own; what it means for reads and writes is in
//! `commit::lower`. It comes into being with its first volume and goes with the last volume, snapshot or image over
//! it, in the same transaction.
//!
//! - X1 The pool names nothing outside. It keeps the length of a base and what tells it from others; the opener
//!   brings the bytes. They are only read.
//! - X2 A snapshot, clone, image or frozen point of what lies over a base lies over it too: whoever copies a map
//!   copies its link, in the same transaction. A rollback does not change it, because a volume and its snapshots lie
//!   over the same.
//! - X3 What has been shown stays. A block is in the pool, with its checksum, before anybody sees it (B3 of
//!   `commit::lower`), and each commit has every block that was seen before it. So once seen, no change of what lies
//!   outside, and no other file handed over later, can change it. Not so in a pool that is opened for reading, latched
//!   or full: there a block that the pool lacks comes from outside each time.
//! - X4 With [checksums](BaseChecksums) of all content, nothing that differs from them is shown, ever: 256 KiB at a
//!   time are read and compared before the first byte of them is seen, in any pool, and the checksums that are handed
//!   over have to be those whose digest the pool keeps.
//! - X5 Without them one thing can go unnoticed: blocks that nobody has seen yet differ from what they were when the
//!   base was made, where length and up to 256 sampled blocks do not. What the volumes show then is what lies outside
//!   when each block is first seen.
//! - X6 Nobody reads without the bytes: neither volume nor snapshot over a base that is not whole is attached before it
//!   was handed over, and whatever meets a block that cannot be had fails; it never reads zero.
//! - X7 A base that is [complete](Base::complete) needs nothing from outside. That is stored by the commit behind the
//!   last block.

mod checksums;
mod hydration;
mod record;
mod source;

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;

use crate::commit::{self, TABLE_BASES, base_key};
use crate::error::{Error, Result, StateRule, Violation};
use crate::units::{BLOCK_BYTES, BaseId, ObjectId};

use super::batch::Batch;
use super::catalogue::{self, Index, Table};
use super::diff::Point;
use super::pool::{Inner, Pool};
use super::volume::{Volume, VolumeSource, VolumeSpec};

pub use checksums::BaseChecksums;
pub use hydration::{Hydrating, Hydration};
pub(super) use record::BaseRecord;
#[cfg(feature = "internals")]
pub(crate) use record::law;
pub use source::BaseSource;

use source::Feed;

/// An external base at the moment it was asked about.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[non_exhaustive]
pub struct Base {
    /// Its identity.
    pub id: BaseId,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Bytes that the pool has of it without a gap, from its start.
    pub position: u64,
    /// Data of it in the pool, in bytes; zeroes take none.
    pub held_bytes: u64,
    /// The pool has all of it: nothing from outside is needed any more.
    pub complete: bool,
    /// Whether it has been handed over since the pool was opened.
    pub supplied: bool,
    /// Whether somebody hydrates it now.
    pub hydrating: bool,
    /// Whether the pool keeps a digest of all content.
    pub has_checksums: bool,
    /// Volumes, snapshots and images that lie over it.
    pub users: u64,
}

/// Bases that are being hydrated.
pub(super) type Running = Arc<Mutex<HashSet<BaseId>>>;

impl Pool {
    /// Makes a volume over a new base: an image, or anything else that can be read at an offset, which the pool only
    /// reads. The volume can be attached, read and written, snapshotted and cloned at once, and is as large as the
    /// base or larger; what was not written yet comes from the base, and is in the pool from then on.
    /// [`hydrate`](Self::hydrate) brings in the rest, and then nothing outside is needed any more. Durable on return.
    ///
    /// The base is [`source`](Volume::source) of the volume. [`VolumeSpec::from_base`] makes further volumes over it.
    ///
    /// The pool stores no path. It keeps the base's size and a hash of up to 256 blocks spread over it, which tells a
    /// wrong file from the right one, and with [`BaseSource::checksums`] a digest of all content. After the pool was
    /// opened the base has to be [handed over](Self::supply_base) again.
    ///
    /// # Errors
    /// As [`create_volume`](Self::create_volume); `InvalidArgument` for an empty base; `Refused` when the checksums
    /// are of one of another size; `Io` when it cannot be read.
    pub fn create_volume_over(&self, base: impl Into<BaseSource>, mut spec: VolumeSpec) -> Result<Volume> {
        let base = base.into();
        let record = BaseRecord::of(&base)?;
        if spec.source != VolumeSource::Blank {
            return Err(Error::invalid(
                "spec",
                Violation::SeveralSources,
                "a volume is over a base or made from a source, not both",
            ));
        }
        let (volume, id) = self.transact(|batch| {
            let id = BaseId::new(batch.claim_id("base", base.id.map(BaseId::raw))?);
            batch.stage(|stage| {
                stage.put(base_key(id.object()), record.encode());
                Ok(())
            })?;
            spec.source = VolumeSource::Base(id);
            Ok((batch.create_volume(spec)?, id))
        })?;
        self.inner.supply(id, &record, base)?;
        Ok(volume)
    }

    /// Hands a base over, after the pool was opened. It stays with the pool until the base is complete, or gone, or
    /// the pool is closed. One that was handed over already stays the one that is read.
    ///
    /// Where the pool keeps a digest of all content and no [checksums](BaseSource::checksums) come along, they are
    /// computed, which reads all of it.
    ///
    /// # Errors
    /// `NotFound`; `InvalidState` when it is complete; `Refused` when this is not it; `Io` when it cannot be read;
    /// `Closed`.
    pub fn supply_base(&self, id: BaseId, base: impl Into<BaseSource>) -> Result<()> {
        let table: &dyn Table = &*self.inner.engine;
        let record = self.inner.need_base_record(table, id)?;
        if record.complete {
            return Err(wrong_base(id, "complete", "supply_base"));
        }
        let mut base = base.into();
        record.recognize(id, &mut base)?;
        self.inner.supply(id, &record, base)
    }

    /// The base as it is now.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt`, `Io`, `Closed`.
    pub fn base(&self, id: BaseId) -> Result<Base> {
        let table: &dyn Table = &*self.inner.engine;
        let record = self.inner.need_base_record(table, id)?;
        self.inner.describe_base(table, id, &record)
    }

    /// All bases, in the order of their ids.
    ///
    /// # Errors
    /// `Corrupt`, `Io`, `Closed`.
    pub fn list_bases(&self) -> Result<Vec<Base>> {
        let table: &dyn Table = &*self.inner.engine;
        let mut found = Vec::new();
        for object in Index::of(vec![TABLE_BASES]).all(table)? {
            let id = BaseId::new(uuid::Uuid::from_bytes(object.0));
            // It may have gone since the index was read.
            let Some(record) = self.inner.base_record(table, id)? else { continue };
            found.push(self.inner.describe_base(table, id, &record)?);
        }
        Ok(found)
    }

    /// The base that a volume or snapshot lies over, if it lies over one.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt`, `Io`, `Closed`.
    pub fn base_of(&self, point: impl Into<Point>) -> Result<Option<BaseId>> {
        let point = point.into();
        point.size_bytes(&*self.inner.engine)?;
        Ok(self.inner.engine.base_below(point.object())?.map(|base| id_of(base.id())))
    }
}

fn id_of(object: ObjectId) -> BaseId {
    BaseId::new(uuid::Uuid::from_bytes(object.0))
}

fn wrong_base(id: BaseId, status: &'static str, op: &'static str) -> Error {
    Error::InvalidState { object: "base", id: id.to_string(), status, op, rule: StateRule::Status }
}

impl Inner {
    fn base_record(&self, table: &dyn Table, id: BaseId) -> Result<Option<BaseRecord>> {
        let value = table.get(&base_key(id.object()))?;
        Ok(value.map(|value| BaseRecord::decode(&value)).transpose()?)
    }

    pub(super) fn need_base_record(&self, table: &dyn Table, id: BaseId) -> Result<BaseRecord> {
        self.base_record(table, id)?.ok_or_else(|| Error::not_found("base", id))
    }

    fn describe_base(&self, table: &dyn Table, id: BaseId, record: &BaseRecord) -> Result<Base> {
        let base = self.engine.base(id.object())?.ok_or_else(|| Error::not_found("base", id))?;
        let mut users = 0;
        for user in self.engine.users_of(id.object(), usize::MAX)? {
            users += u64::from(!catalogue::is_ephemeral(table, user)?);
        }
        Ok(Base {
            id,
            size_bytes: record.size_bytes,
            position: (self.engine.filled(&base)? * BLOCK_BYTES).min(record.size_bytes),
            held_bytes: self.engine.mapped_blocks(base.object())? * BLOCK_BYTES,
            complete: record.complete,
            supplied: base.is_supplied(),
            hydrating: self.hydrating.lock().contains(&id),
            has_checksums: record.digest.is_some(),
            users,
        })
    }

    fn supply(&self, id: BaseId, record: &BaseRecord, source: BaseSource) -> Result<()> {
        let base = self.engine.base(id.object())?.ok_or_else(|| Error::not_found("base", id))?;
        base.supply(Arc::new(Feed::new(source, record.size_bytes)));
        Ok(())
    }

    /// The base below a map, and whether it still lacks something.
    fn base_under(&self, id: ObjectId) -> Result<Option<(Arc<commit::Base>, bool)>> {
        let Some(base) = self.engine.base_below(id)? else { return Ok(None) };
        let record = self.need_base_record(&*self.engine, id_of(base.id()))?;
        Ok(Some((base, !record.complete)))
    }

    /// X6: refuses to attach what lies over a base that is not there.
    pub(super) fn need_base_supplied(&self, object: &'static str, id: ObjectId) -> Result<()> {
        match self.base_under(id)? {
            Some((base, true)) if !base.is_supplied() => Err(Error::InvalidState {
                object,
                id: id.to_string(),
                status: "over a base that was not handed over",
                op: "attach",
                rule: StateRule::Status,
            }),
            _ => Ok(()),
        }
    }

    /// Refuses what needs to know beforehand which blocks hold data: those of a base that is not complete cannot be
    /// counted.
    pub(super) fn need_base_complete(
        &self,
        object: &'static str,
        id: ObjectId,
        op: &'static str,
    ) -> Result<()> {
        match self.base_under(id)? {
            Some((_, true)) => Err(Error::InvalidState {
                object,
                id: id.to_string(),
                status: "over a base that is not hydrated",
                op,
                rule: StateRule::Status,
            }),
            _ => Ok(()),
        }
    }
}

impl Batch<'_> {
    /// Lays a new map over a base that exists.
    pub(super) fn lay_over(&mut self, id: ObjectId, base: BaseId) -> Result<()> {
        let blocks = self.inner.need_base_record(self.table(), base)?.blocks();
        self.stage(|stage| {
            stage.lay_over(id, base.object(), blocks);
            Ok(())
        })
    }
}
