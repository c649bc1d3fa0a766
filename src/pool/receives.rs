//! Snapshots on their way in: hidden until they are whole, then visible in one commit.
//!
//! - R1 What arrives is written into a map that no listing names. It is a snapshot from one commit to the next.
//! - R2 The map of an unfinished receive has an owner in the catalogue from the commit that makes it: nothing
//!   leaks, whenever the pool ends. One that is not to be kept is ephemeral besides, and the next open removes it.
//! - R3 The position is stored by a transaction, which makes everything written before it durable. What lies
//!   before it has arrived; what lies behind may have arrived in part, and is sent again, to the same effect.
//! - R4 One receive of a snapshot runs at a time: whoever runs it has its place among the attachments.

use std::collections::BTreeMap;
use std::sync::Arc;

use uuid::Uuid;

use crate::commit::Object;
use crate::error::{Error, Result, Violation};
use crate::units::{BLOCK_BYTES, SnapshotId, VolumeId};

use super::aliases::AliasOf;
use super::attachments::Place;
use super::batch::Batch;
use super::catalogue::{self, Index, Table};
use super::diff::{Diff, Point};
use super::fingerprint::Fingerprint;
use super::origins::{Identity, Origin, Record, ResumePoint, UnfinishedReceive};
use super::pool::{Inner, Pool};
use super::records::{Common, SnapshotRecord};
use super::snapshot::{Snapshot, SnapshotSpec};
use super::status::{SnapshotStatus, VolumeStatus};
use super::volume::{VolumeSource, VolumeSpec};

/// What is about to arrive.
pub(crate) struct Landing<'a> {
    pub(crate) snapshot: &'a Identity,
    pub(crate) base: Option<&'a Identity>,
    /// The snapshot belongs to the base's volume, else to a new one.
    pub(crate) same_volume: bool,
    /// Blocks below this do not come.
    pub(crate) start_lba: u64,
    /// The id that the snapshot is to have.
    pub(crate) id: Option<SnapshotId>,
    /// Keep what has arrived when the receive ends too early.
    pub(crate) keep: bool,
}

/// What the snapshot will be called, and the volume if it gets a new one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Target {
    pub(crate) name: Option<String>,
    pub(crate) description: Option<String>,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) volume_name: Option<String>,
    pub(crate) volume_id: Option<VolumeId>,
}

/// A receive that runs. Dropped before [`finish`](Self::finish) it leaves what has arrived, or nothing.
pub(crate) struct Arrival {
    pool: Pool,
    inner: Arc<Inner>,
    object: Arc<Object>,
    _place: Place,
    id: SnapshotId,
    record: Record,
    /// Blocks below this have arrived; ahead of the stored position.
    reached: u64,
    keep: bool,
    over: bool,
}

impl Pool {
    /// Receives that began and were not finished, with the point from where on each has to be sent again.
    ///
    /// # Errors
    /// `Corrupt`, `Io`, `Closed`.
    pub fn list_receives(&self) -> Result<Vec<UnfinishedReceive>> {
        let table: &dyn Table = &*self.inner.engine;
        let mut found = Vec::new();
        for object in Index::receives().all(table)? {
            let id = SnapshotId::new(Uuid::from_bytes(object.0));
            // It may have been finished since the index was read.
            let Some(bytes) = catalogue::receive(table, id)? else { continue };
            let record = Record::decode(&bytes)?;
            found.push(UnfinishedReceive {
                id,
                resume: ResumePoint {
                    snapshot: record.snapshot,
                    since: record.since,
                    offset: record.position * BLOCK_BYTES,
                },
                size_bytes: record.size_bytes,
                created_at_micros: record.created,
                running: self.inner.attachments.count(object) > 0,
            });
        }
        Ok(found)
    }

    /// Gives up an unfinished receive: what has arrived is deleted. Durable on return; the space comes back in
    /// the background.
    ///
    /// # Errors
    /// `NotFound`; `Busy` while it runs; `ReadOnly`, `Io`, `Poisoned`, `Closed`.
    pub fn abort_receive(&self, id: SnapshotId) -> Result<()> {
        self.inner.transact(|batch| {
            if catalogue::receive(batch.table(), id)?.is_none() {
                return Err(Error::NotFound { object: "unfinished receive", id: id.to_string() });
            }
            if !batch.alone(id.object(), SnapshotStatus::Deleting.as_str()) {
                return Err(running(id));
            }
            batch.give_up(id)
        })
    }

    /// Where a snapshot was first taken: here, or in the pool that it was received from.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt`, `Io`, `Closed`.
    pub fn snapshot_origin(&self, id: SnapshotId) -> Result<Origin> {
        let table: &dyn Table = &*self.inner.engine;
        catalogue::need_snapshot(table, id)?;
        let received = catalogue::origin_of(table, id)?;
        Ok(received.unwrap_or_else(|| Origin::new(self.uuid(), id.raw())))
    }

    /// The snapshot of this pool that has that origin, whether it was taken here or received.
    ///
    /// # Errors
    /// `Corrupt`, `Io`, `Closed`.
    pub fn snapshot_from(&self, origin: Origin) -> Result<Option<SnapshotId>> {
        self.inner.find_origin(&*self.inner.engine, origin)
    }

    /// Freezes a snapshot, and the one that changes are counted from.
    pub(crate) fn freeze_pair(
        &self,
        base: Option<SnapshotId>,
        snapshot: SnapshotId,
        offset: u64,
    ) -> Result<Diff> {
        for id in base.into_iter().chain([snapshot]) {
            self.inner.need_base_complete("snapshot", id.object(), "send")?;
        }
        self.inner.compare(base.map(Point::from), snapshot.into(), offset)
    }

    /// Begins to receive, or goes on where one stopped.
    pub(crate) fn land(&self, landing: &Landing<'_>) -> Result<Arrival> {
        let inner = &self.inner;
        if inner.engine.is_read_only() {
            return Err(Error::ReadOnly { object: "pool" });
        }
        let table: &dyn Table = &*inner.engine;
        if inner.find_receive(table, landing)?.is_none() {
            inner.check_base(landing)?;
        }
        let (id, record, keep) = inner.transact(|batch| batch.land(landing))?;
        let place = inner.attachments.enter(id.object(), 1, inner.engine.now()).map_err(|_| running(id))?;
        let object = inner.engine.object(id.object())?;
        let (pool, inner, reached) = (self.clone(), Arc::clone(inner), record.position);
        Ok(Arrival { pool, inner, object, _place: place, id, record, reached, keep, over: false })
    }
}

fn running(id: SnapshotId) -> Error {
    Error::Busy { object: "receive", id: id.to_string(), why: "it runs already" }
}

fn refused(why: String) -> Error {
    Error::refused("delta stream", 0, why)
}

impl Inner {
    fn find_origin(&self, table: &dyn Table, origin: Origin) -> Result<Option<SnapshotId>> {
        let own = SnapshotId::new(origin.snapshot);
        if origin.pool == self.engine.uuid()
            && catalogue::snapshot(table, own)?.is_some()
            && catalogue::origin_of(table, own)?.is_none()
        {
            return Ok(Some(own));
        }
        catalogue::received_from(table, origin)
    }

    fn find_receive(&self, table: &dyn Table, l: &Landing<'_>) -> Result<Option<(SnapshotId, Record)>> {
        let since = l.base.map(|base| base.origin);
        for object in Index::receives().all(table)? {
            let id = SnapshotId::new(Uuid::from_bytes(object.0));
            let Some(bytes) = catalogue::receive(table, id)? else { continue };
            let record = Record::decode(&bytes)?;
            if record.snapshot == l.snapshot.origin && record.since == since {
                return Ok(Some((id, record)));
            }
        }
        Ok(None)
    }

    fn need_base(&self, table: &dyn Table, base: &Identity) -> Result<(SnapshotId, SnapshotRecord)> {
        let missing = || Error::NotFound { object: "base snapshot", id: base.origin.to_string() };
        let id = self.find_origin(table, base.origin)?.ok_or_else(missing)?;
        Ok((id, catalogue::snapshot(table, id)?.ok_or_else(missing)?))
    }

    /// Whether the base is here and holds what the stream was made from. Snapshots never change, so what is
    /// found now is still so when the receive begins.
    fn check_base(self: &Arc<Self>, l: &Landing<'_>) -> Result<()> {
        let Some(base) = l.base else { return Ok(()) };
        let (id, record) = self.need_base(&*self.engine, base)?;
        self.need_base_complete("snapshot", id.object(), "receive")?;
        let frozen = self.freeze(id.into())?;
        let (_, blocks) = frozen.data_blocks()?;
        if record.common.size_bytes != base.size_bytes || blocks != base.data_blocks {
            return Err(refused(format!(
                "it was made from a base of {} bytes with {} blocks of data; snapshot {id} here has {} bytes and {blocks} blocks",
                base.size_bytes, base.data_blocks, record.common.size_bytes,
            )));
        }
        match base.fingerprint {
            Some(want) if frozen.fingerprint()? != want => {
                Err(refused(format!("snapshot {id} here does not hold what the base of the stream holds")))
            }
            _ => Ok(()),
        }
    }
}

impl Batch<'_> {
    /// The receive, and whether it is kept: one that was left is.
    fn land(&mut self, l: &Landing<'_>) -> Result<(SnapshotId, Record, bool)> {
        if let Some(there) = self.inner.find_origin(self.table(), l.snapshot.origin)? {
            return Err(Error::AlreadyExists { object: "snapshot", id: there.to_string() });
        }
        if let Some((id, record)) = self.inner.find_receive(self.table(), l)? {
            if record.size_bytes != l.snapshot.size_bytes {
                return Err(refused(format!(
                    "a snapshot of {} bytes, and what arrived before is of one of {}",
                    l.snapshot.size_bytes, record.size_bytes
                )));
            }
            if l.start_lba > record.position {
                return Err(refused(format!(
                    "it starts at byte {}, and only {} bytes have arrived",
                    l.start_lba * BLOCK_BYTES,
                    record.position * BLOCK_BYTES
                )));
            }
            if l.id.is_some_and(|want| want != id) {
                return Err(Error::invalid(
                    "snapshot id",
                    Violation::Id,
                    format!("the receive that goes on is of {id}"),
                ));
            }
            return Ok((id, record, true));
        }
        if l.start_lba > 0 {
            return Err(refused(format!(
                "it starts at byte {}, and nothing of it has arrived",
                l.start_lba * BLOCK_BYTES
            )));
        }
        let base = l.base.map(|base| self.inner.need_base(self.table(), base)).transpose()?;
        let id = SnapshotId::new(self.claim_id("snapshot", l.id.map(SnapshotId::raw))?);
        let record = Record {
            position: 0,
            size_bytes: l.snapshot.size_bytes,
            created: self.now(),
            snapshot: l.snapshot.origin,
            since: l.base.map(|base| base.origin),
            base: base.as_ref().map(|(id, _)| *id),
            volume: base.as_ref().filter(|_| l.same_volume).map(|(_, record)| record.volume),
        };
        self.stage(|stage| {
            catalogue::set_receive(stage, id, record.encode());
            if !l.keep {
                catalogue::insert_ephemeral(stage, id.object());
            }
            Ok(())
        })?;
        if let Some((base, _)) = base {
            self.share(id.object(), base.object())?;
        }
        Ok((id, record, l.keep))
    }

    fn give_up(&mut self, id: SnapshotId) -> Result<()> {
        self.stage(|stage| {
            catalogue::remove_receive(stage, id);
            catalogue::remove_ephemeral(stage, id.object());
            Ok(())
        })?;
        self.trash_unwatched(id.object())
    }

    fn settle(&mut self, id: SnapshotId, record: &Record, target: &Target) -> Result<Snapshot> {
        let size_bytes = record.size_bytes;
        let volume = match record.volume {
            Some(volume) => {
                // A rollback to the snapshot must fit.
                if let Some(there) = catalogue::volume(self.table(), volume)?
                    && there.common.size_bytes < size_bytes
                {
                    self.extend(volume, size_bytes)?;
                }
                volume
            }
            None => {
                let mut spec = VolumeSpec::blank(size_bytes);
                (spec.name, spec.id) = (target.volume_name.clone(), target.volume_id);
                spec.check(self.limits, 0)?;
                let plan = self.plan_volume(&spec, 1)?;
                if let Some(base) = record.base
                    && catalogue::snapshot(self.table(), base)?.is_some()
                {
                    spec.source = VolumeSource::Snapshot(base);
                }
                let volume = self.make_volume(spec, &plan, VolumeStatus::Available)?.id;
                // In place of what making it from the base has shared.
                self.share(volume.object(), id.object())?;
                volume
            }
        };
        let mut spec = SnapshotSpec::new();
        (spec.name, spec.description) = (target.name.clone(), target.description.clone());
        spec.metadata.clone_from(&target.metadata);
        spec.check(self.limits)?;
        // Project, zone and what else belongs to the place come from the volume, or from the base without one.
        let around = match (catalogue::volume(self.table(), volume)?, record.base) {
            (Some(volume), _) => volume.common,
            (None, Some(base)) => {
                catalogue::snapshot(self.table(), base)?.map_or_else(Common::default, |base| base.common)
            }
            (None, None) => Common::default(),
        };
        let made = SnapshotRecord {
            status: SnapshotStatus::Available,
            held: false,
            backup_owned: false,
            automatic: false,
            volume,
            epoch: self.inner.engine.epoch(),
            common: Common {
                name: spec.name,
                description: spec.description,
                size_bytes,
                metadata: spec.metadata,
                created: self.now(),
                updated: None,
                alias: self.claim_alias(AliasOf::Snapshot, id.object())?,
                ..around
            },
        };
        self.stage(|stage| {
            catalogue::remove_receive(stage, id);
            catalogue::remove_ephemeral(stage, id.object());
            catalogue::set_origin(stage, id, record.snapshot);
            catalogue::insert_snapshot(stage, id, &made)
        })?;
        self.ended_epoch();
        self.snapshot(id)
    }
}

impl Arrival {
    /// Writes whole blocks of data from `lba` on.
    pub(crate) fn write(&self, lba: u64, data: &[u8]) -> Result<()> {
        self.inner.engine.write(&self.object, lba * BLOCK_BYTES, data)
    }

    /// Makes a range a hole, or zeroes.
    pub(crate) fn unmap(&self, from: u64, to: u64, zero: bool) -> Result<()> {
        self.inner.engine.unmap(&self.object, from, to, zero)
    }

    /// Everything below `lba` has arrived.
    pub(crate) fn reached(&mut self, lba: u64) {
        self.reached = self.reached.max(lba);
    }

    /// Stores the position, with everything that has arrived; for a receive that is kept.
    pub(crate) fn save(&mut self) -> Result<()> {
        if !self.keep || self.reached <= self.record.position {
            return Ok(());
        }
        let record = Record { position: self.reached, ..self.record.clone() };
        self.inner.transact(|batch| {
            batch.stage(|stage| {
                catalogue::set_receive(stage, self.id, record.encode());
                Ok(())
            })
        })?;
        self.record = record;
        Ok(())
    }

    /// What has arrived is not to be kept after all.
    pub(crate) fn spoil(&mut self) {
        self.keep = false;
    }

    /// Blocks of data that have been mapped.
    pub(crate) fn data_blocks(&self) -> Result<u64> {
        self.inner.engine.shown_blocks(&self.object)
    }

    /// Fingerprint of what has arrived.
    pub(crate) fn fingerprint(&self) -> Result<Fingerprint> {
        self.inner.fingerprint_of(&self.object, self.record.size_bytes)
    }

    /// Makes the snapshot visible, and its volume if it has none yet: one commit, durable on return.
    pub(crate) fn finish(mut self, target: &Target) -> Result<Snapshot> {
        let made = self.pool.transact(|batch| batch.settle(self.id, &self.record, target))?;
        self.over = true;
        Ok(made)
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        // If either fails: the stored position is good too, and open removes what is not to be kept.
        if self.keep {
            let _ = self.save();
        } else {
            let _ = self.inner.transact(|batch| batch.give_up(self.id));
        }
    }
}
