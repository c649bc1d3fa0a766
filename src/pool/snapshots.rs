//! What can be done with snapshots, and when.

use std::cell::Cell;

use crate::error::{Error, Limited, Result, Violation};
use crate::units::{SnapshotId, VolumeId};

use super::aliases::AliasOf;
use super::batch::Batch;
use super::catalogue::{self, Table};
use super::deletion::{DeletePlan, Deletion};
use super::pool::Pool;
use super::records::{Common, SnapshotRecord, VolumeRecord};
use super::snapshot::{RollbackOptions, Snapshot, SnapshotSpec, Trigger, Warning};
use super::status::{SnapshotStatus, VolumeStatus};
use super::update::SnapshotUpdate;
use super::volume::Volume;
use super::volumes::{busy_snapshot, snapshot_status, wrong_status};

impl Batch<'_> {
    /// Takes a snapshot: see [`Pool::create_snapshot`].
    ///
    /// # Errors
    /// As [`Pool::create_snapshot`].
    pub fn create_snapshot(&mut self, volume: VolumeId, spec: SnapshotSpec) -> Result<Snapshot> {
        spec.check(self.limits)?;
        let source = catalogue::need_volume(self.table(), volume)?;
        match self.volume_status(volume, &source)? {
            VolumeStatus::Available => {}
            VolumeStatus::InUse if spec.force => {}
            status => return Err(wrong_status(volume, status, "create_snapshot")),
        }
        if let Some(limit) = self.limits.snapshots_per_volume {
            let count = catalogue::snapshot_count(self.table(), volume)?;
            if count.all.saturating_sub(count.of_backups) >= limit {
                return Err(Error::LimitExceeded { what: Limited::Snapshots, limit });
            }
        }
        self.make_snapshot(volume, source, spec, false)
    }

    /// Takes a snapshot that was found to be allowed.
    pub(super) fn make_snapshot(
        &mut self,
        volume: VolumeId,
        source: VolumeRecord,
        spec: SnapshotSpec,
        backup_owned: bool,
    ) -> Result<Snapshot> {
        let id = SnapshotId::new(self.claim_id("snapshot", spec.id.map(SnapshotId::raw))?);
        let alias = self.claim_alias(AliasOf::Snapshot, id.object())?;
        let record = SnapshotRecord {
            status: SnapshotStatus::Available,
            held: false,
            backup_owned,
            automatic: spec.trigger == Trigger::Automatic,
            volume,
            epoch: self.inner.engine.epoch(),
            common: Common {
                name: spec.name,
                description: spec.description,
                metadata: spec.metadata,
                created: self.now(),
                updated: None,
                alias,
                ..source.common
            },
        };
        self.stage(|stage| catalogue::insert_snapshot(stage, id, &record))?;
        self.share(id.object(), volume.object())?;
        self.snapshot(id)
    }

    /// Changes name, description or metadata: see [`Pool::update_snapshot`].
    ///
    /// # Errors
    /// As [`Pool::update_snapshot`].
    pub fn update_snapshot(&mut self, id: SnapshotId, update: SnapshotUpdate) -> Result<Snapshot> {
        update.check(self.limits)?;
        let now = self.now();
        self.change_snapshot(id, |record| {
            update.apply(&mut record.common)?;
            record.common.updated = Some(now);
            Ok(())
        })
    }

    /// Renames a snapshot: see [`Pool::rename_snapshot`].
    ///
    /// # Errors
    /// As [`Pool::update_snapshot`].
    pub fn rename_snapshot(&mut self, id: SnapshotId, name: impl Into<String>) -> Result<Snapshot> {
        self.update_snapshot(id, SnapshotUpdate::new().name(Some(name.into())))
    }

    /// Keeps a snapshot from being deleted: see [`Pool::hold_snapshot`].
    ///
    /// # Errors
    /// As [`Pool::hold_snapshot`].
    pub fn hold_snapshot(&mut self, id: SnapshotId) -> Result<Snapshot> {
        self.change_snapshot(id, |record| {
            record.held = true;
            Ok(())
        })
    }

    /// Ends a hold: see [`Pool::release_snapshot`].
    ///
    /// # Errors
    /// As [`Pool::hold_snapshot`].
    pub fn release_snapshot(&mut self, id: SnapshotId) -> Result<Snapshot> {
        self.change_snapshot(id, |record| {
            record.held = false;
            Ok(())
        })
    }

    fn change_snapshot(
        &mut self,
        id: SnapshotId,
        change: impl FnOnce(&mut SnapshotRecord) -> Result<()>,
    ) -> Result<Snapshot> {
        let mut record = catalogue::need_snapshot(self.table(), id)?;
        if let status @ SnapshotStatus::Deleting = self.snapshot_status(id, &record) {
            return Err(snapshot_status(id, status, "update"));
        }
        change(&mut record)?;
        self.stage(|stage| catalogue::update_snapshot(stage, id, &record))?;
        self.inner.describe_snapshot(self.table(), id, record)
    }

    /// Deletes a snapshot: see [`Pool::delete_snapshot`]. The handle is of use once the batch is committed.
    ///
    /// # Errors
    /// As [`Pool::delete_snapshot`].
    pub fn delete_snapshot(&mut self, id: SnapshotId) -> Result<Deletion> {
        let record = catalogue::need_snapshot(self.table(), id)?;
        let status = self.snapshot_status(id, &record);
        if !status.allows_delete() {
            return Err(snapshot_status(id, status, "delete"));
        }
        if record.held {
            return Err(busy_snapshot(id, "it is held"));
        }
        if !self.alone(id.object(), SnapshotStatus::Deleting.as_str()) {
            return Err(busy_snapshot(id, "it is attached"));
        }
        self.stage(|stage| {
            catalogue::set_finished(stage, id.object());
            catalogue::remove_snapshot(stage, id, &record)
        })?;
        let mut ids = Vec::new();
        self.trash(id.object(), &mut ids)?;
        let mut deletion = Deletion::new(self.inner, None, vec![id], ids);
        if record.backup_owned {
            deletion.warn(Warning::NextBackupIsFull);
        }
        Ok(deletion)
    }

    /// Rolls a detached volume back: see [`Pool::rollback`].
    ///
    /// # Errors
    /// As [`Pool::rollback`].
    pub fn rollback(&mut self, id: SnapshotId) -> Result<Volume> {
        self.rollback_with(id, RollbackOptions::new())
    }

    /// Rolls a volume back, attached or not as the options say: see [`Pool::rollback_with`].
    ///
    /// # Errors
    /// As [`Pool::rollback`].
    pub fn rollback_with(&mut self, id: SnapshotId, options: RollbackOptions) -> Result<Volume> {
        let (volume, record) = self.may_roll_back(id, options)?;
        self.roll_back(id, volume, record)
    }

    /// The volume that is to be rolled back, if nothing forbids it.
    fn may_roll_back(
        &mut self,
        id: SnapshotId,
        options: RollbackOptions,
    ) -> Result<(VolumeId, VolumeRecord)> {
        let snapshot = catalogue::need_snapshot(self.table(), id)?;
        if let Some(meant) = options.volume {
            catalogue::need_volume(self.table(), meant)?;
            if meant != snapshot.volume {
                let why = format!("the snapshot is of volume {}, {meant} given", snapshot.volume);
                return Err(Error::invalid("volume", Violation::NotSourceVolume, why));
            }
        }
        let volume = snapshot.volume;
        let record = catalogue::need_volume(self.table(), volume)?;
        if snapshot.backup_owned {
            return Err(Error::Unsupported(format!(
                "snapshot {id} belongs to a backup: restore the backup instead of rolling back"
            )));
        }
        self.need_available(id, &snapshot, "rollback")?;
        match self.volume_status(volume, &record)? {
            VolumeStatus::Available | VolumeStatus::ErrorRollbacking => {}
            VolumeStatus::InUse if options.live => {}
            status => return Err(wrong_status(volume, status, "rollback")),
        }
        if !options.live && !self.alone(volume.object(), VolumeStatus::Rollbacking.as_str()) {
            return Err(wrong_status(volume, VolumeStatus::InUse, "rollback"));
        }
        Ok((volume, record))
    }

    fn roll_back(&mut self, id: SnapshotId, volume: VolumeId, mut record: VolumeRecord) -> Result<Volume> {
        let was = std::mem::replace(&mut record.status, VolumeStatus::Available);
        if was != VolumeStatus::Available {
            self.stage(|stage| catalogue::update_volume(stage, volume, &record))?;
        }
        self.replace(volume.object(), id.object())?;
        self.inner.describe_volume(self.table(), volume, record)
    }
}

impl Pool {
    /// Takes a snapshot of a volume: its whole content at one moment, at a cost that does not depend on how
    /// much that is. Durable on return, together with everything written before.
    ///
    /// # Errors
    /// `InvalidArgument` for a name, description or metadata out of range; `NotFound`; `InvalidState` when
    /// the volume is attached and [`force`](SnapshotSpec::force) is off, or when it is neither `available`
    /// nor `in-use`; `LimitExceeded` beyond the snapshots that the profile allows; `AlreadyExists` for a supplied
    /// id that is taken; `ReadOnly`, `OutOfSpace`, `Io`, `Poisoned`, `Closed`.
    pub fn create_snapshot(&self, volume: VolumeId, spec: SnapshotSpec) -> Result<Snapshot> {
        self.transact(|batch| batch.create_snapshot(volume, spec))
    }

    /// Changes name, description or metadata of a snapshot; its content never changes. Durable on return.
    ///
    /// # Errors
    /// `InvalidArgument` for a text or metadata out of range, or when nothing is to change; `NotFound`;
    /// `InvalidState` while it is deleted; `ReadOnly`, `OutOfSpace`, `Io`, `Poisoned`, `Closed`.
    pub fn update_snapshot(&self, id: SnapshotId, update: SnapshotUpdate) -> Result<Snapshot> {
        self.transact(|batch| batch.update_snapshot(id, update))
    }

    /// Gives a snapshot another name, within the limits of the profile. Durable on return.
    ///
    /// # Errors
    /// As [`update_snapshot`](Self::update_snapshot).
    pub fn rename_snapshot(&self, id: SnapshotId, name: impl Into<String>) -> Result<Snapshot> {
        self.transact(|batch| batch.rename_snapshot(id, name))
    }

    /// Holds a snapshot: until it is released neither it nor, with it, its volume can be deleted. A second
    /// hold changes nothing. Durable on return.
    ///
    /// # Errors
    /// `NotFound`; `ReadOnly`, `OutOfSpace`, `Io`, `Poisoned`, `Closed`.
    pub fn hold_snapshot(&self, id: SnapshotId) -> Result<Snapshot> {
        self.transact(|batch| batch.hold_snapshot(id))
    }

    /// Releases a held snapshot; one that is not held stays as it is. Durable on return.
    ///
    /// # Errors
    /// As [`hold_snapshot`](Self::hold_snapshot).
    pub fn release_snapshot(&self, id: SnapshotId) -> Result<Snapshot> {
        self.transact(|batch| batch.release_snapshot(id))
    }

    /// Deletes a snapshot. The volume, other snapshots and clones keep their content. The delete is durable
    /// on return; the space comes back in the background, see [`Deletion`].
    ///
    /// # Errors
    /// `NotFound`; `InvalidState` in a status that forbids it; `Busy` when it is held or attached; `ReadOnly`,
    /// `Io`, `Poisoned`, `Closed`.
    pub fn delete_snapshot(&self, id: SnapshotId) -> Result<Deletion> {
        self.transact(|batch| batch.delete_snapshot(id))
    }

    /// What [`delete_snapshot`](Self::delete_snapshot) would free, as of now. Finishes earlier deletions first; changes
    /// nothing else.
    ///
    /// # Errors
    /// `NotFound`; `Busy` when it is held; the others as [`snapshot_space`](Self::snapshot_space).
    pub fn plan_delete_snapshot(&self, id: SnapshotId) -> Result<DeletePlan> {
        let table: &dyn Table = &*self.inner.engine;
        if catalogue::need_snapshot(table, id)?.held {
            return Err(busy_snapshot(id, "it is held"));
        }
        DeletePlan::new(&self.inner, None, vec![id])
    }

    /// Gives a detached volume the content of one of its snapshots. Older and newer snapshots stay; a volume
    /// that was extended since keeps its size and reads zero behind the snapshot's. May be repeated. Costs
    /// the same whatever has changed. Durable on return.
    ///
    /// # Errors
    /// `NotFound` for the snapshot, or for its volume when that is gone; `InvalidState` when the snapshot is
    /// not `available`, or the volume neither `available` nor `error_rollbacking`; `ReadOnly`, `Io`,
    /// `Poisoned`, `Closed`. `Corrupt` when the snapshot's map is damaged: the volume is `error_rollbacking`
    /// then.
    pub fn rollback(&self, id: SnapshotId) -> Result<Volume> {
        self.rollback_with(id, RollbackOptions::new())
    }

    /// Rolls back as [`rollback`](Self::rollback) does; with [`live`](RollbackOptions::live) also while the
    /// volume is attached.
    ///
    /// # Errors
    /// As [`rollback`](Self::rollback).
    pub fn rollback_with(&self, id: SnapshotId, options: RollbackOptions) -> Result<Volume> {
        let begun = Cell::new(None);
        let done = self.transact(|batch| {
            let (volume, record) = batch.may_roll_back(id, options)?;
            begun.set(Some(volume));
            batch.roll_back(id, volume, record)
        });
        if let (Err(Error::Corrupt(_)), Some(volume)) = (&done, begun.get()) {
            // It was not refused but failed, and the volume says so. If not even that can be stored, the
            // error that the caller gets is the better one.
            let _ = self.transact(|batch| {
                let mut record = catalogue::need_volume(batch.table(), volume)?;
                record.status = VolumeStatus::ErrorRollbacking;
                batch.stage(|stage| catalogue::update_volume(stage, volume, &record))
            });
        }
        done
    }
}
