//! Volumes that are filled from outside, and snapshots that a backup reads: work that takes its time.
//!
//! What a crash shall leave is stored before the work begins; the transient status lives in memory. A volume that
//! is being made is stored as `error` and noted as unfinished, so that the next open removes it; one that is being
//! restored is stored as `error_restoring`; the snapshot of a backup is noted as unfinished.

use std::sync::Arc;

use uuid::Uuid;

use crate::error::{Error, Result, Violation};
use crate::units::{SnapshotId, VolumeId};

use super::batch::Batch;
use super::catalogue;
use super::disk::Disk;
use super::jobs::Job;
use super::limits::BACKUP_SNAPSHOT_PREFIX;
use super::pool::{Inner, Pool};
use super::query::SnapshotQuery;
use super::snapshot::{Snapshot, SnapshotSpec, Trigger};
use super::status::{SnapshotStatus, VolumeStatus};
use super::volume::{Volume, VolumeSpec};
use super::volumes::wrong_status;

/// A volume that is being filled: see [`Pool::begin_volume`] and [`Pool::begin_restore`].
///
/// Dropped without [`finish`](Self::finish), a volume that was to be created is gone again, and one that was to be
/// restored is `error_restoring`. A crash does the same.
#[must_use = "dropping it gives the work up"]
pub struct Filling {
    inner: Arc<Inner>,
    id: VolumeId,
    /// `None` once it is decided what becomes of the volume.
    work: Option<(Disk, Job)>,
    creates: bool,
    status: VolumeStatus,
}

impl Filling {
    /// The volume.
    pub fn volume(&self) -> VolumeId {
        self.id
    }

    /// The status it shows.
    pub fn status(&self) -> VolumeStatus {
        self.status
    }

    /// Where its bytes are written. Only this handle reaches the volume.
    ///
    /// # Errors
    /// `Closed` when the work is over.
    pub fn disk(&self) -> Result<&Disk> {
        self.work.as_ref().map(|(disk, _)| disk).ok_or(Error::Closed)
    }

    /// Makes the volume `available`, with everything that was written. Durable on return.
    ///
    /// # Errors
    /// `OutOfSpace`, `Io`, `Poisoned`, `Closed`; the work is given up then.
    pub fn finish(mut self) -> Result<Volume> {
        self.end(VolumeStatus::Available)
    }

    /// Gives the work up and leaves the volume in the error status of it: `error` or `error_restoring`. Durable on
    /// return.
    ///
    /// # Errors
    /// As [`finish`](Self::finish).
    pub fn fail(mut self) -> Result<Volume> {
        self.end(if self.creates { VolumeStatus::Error } else { VolumeStatus::ErrorRestoring })
    }

    fn end(&mut self, status: VolumeStatus) -> Result<Volume> {
        let id = self.id;
        self.inner.transact(|batch| {
            batch.store_volume_status(id, status)?;
            batch.stage(|stage| {
                catalogue::set_finished(stage, id.object());
                Ok(())
            })
        })?;
        self.work = None;
        Pool::from_inner(&self.inner).volume(id)
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        if self.work.take().is_some() && self.creates {
            // If this fails, the next open does it.
            let _ = self.inner.transact(|batch| batch.abandon(self.id.raw()));
        }
    }
}

/// A backup that runs: see [`Pool::begin_backup`].
///
/// Dropped without [`finish`](Self::finish), its snapshot is gone again. A crash does the same.
#[must_use = "dropping it gives the backup up"]
pub struct BackupRun {
    inner: Arc<Inner>,
    volume: VolumeId,
    snapshot: SnapshotId,
    jobs: Option<(Job, Job)>,
}

impl BackupRun {
    /// The volume, which is `backing-up` while this lives.
    pub fn volume(&self) -> VolumeId {
        self.volume
    }

    /// The snapshot that the backup reads, `backing-up` too. It can be attached and compared.
    pub fn snapshot(&self) -> SnapshotId {
        self.snapshot
    }

    /// Ends the backup; its snapshot stays, to compare the next one with, and older snapshots of backups of this
    /// volume are deleted. Durable on return.
    ///
    /// # Errors
    /// `Io`, `Poisoned`, `Closed`; the backup is given up then.
    pub fn finish(self) -> Result<Snapshot> {
        self.finish_with(|_| Ok(()))
    }

    /// As [`finish`](Self::finish), with one more thing that happens at the same instant.
    pub(super) fn finish_with(mut self, also: impl FnOnce(&mut Batch<'_>) -> Result<()>) -> Result<Snapshot> {
        let (volume, snapshot) = (self.volume, self.snapshot);
        let pool = Pool::from_inner(&self.inner);
        let mine = pool.list_snapshots(&SnapshotQuery::new().volume(volume).backup_owned(true))?;
        let (kept, _deletions) = self.inner.transact(|batch| {
            let old = mine.items.iter().filter(|s| s.id != snapshot);
            // One that is held, attached or gone meanwhile is left alone.
            let deletions: Vec<_> = old.filter_map(|old| batch.delete_snapshot(old.id).ok()).collect();
            batch.stage(|stage| {
                catalogue::set_finished(stage, snapshot.object());
                Ok(())
            })?;
            also(batch)?;
            Ok((batch.snapshot(snapshot)?, deletions))
        })?;
        self.jobs = None;
        Ok(Snapshot { status: SnapshotStatus::Available, ..kept })
    }
}

impl Drop for BackupRun {
    fn drop(&mut self) {
        if self.jobs.take().is_some() {
            // If this fails, the next open does it.
            let _ = self.inner.transact(|batch| batch.abandon(self.snapshot.raw()));
        }
    }
}

impl Batch<'_> {
    /// Removes what was not finished, if it is still there.
    pub(super) fn abandon(&mut self, id: Uuid) -> Result<()> {
        let (volume, snapshot) = (VolumeId::new(id), SnapshotId::new(id));
        let object = volume.object();
        if !self.alone(object, VolumeStatus::Deleting.as_str()) {
            return Err(Error::Busy { object: "volume", id: id.to_string(), why: "it is attached" });
        }
        let volume_record = catalogue::volume(self.table(), volume)?;
        let snapshot_record = catalogue::snapshot(self.table(), snapshot)?;
        self.stage(|stage| {
            catalogue::set_finished(stage, object);
            match (&volume_record, &snapshot_record) {
                (Some(record), _) => catalogue::remove_volume(stage, volume, record),
                (None, Some(record)) => catalogue::remove_snapshot(stage, snapshot, record),
                (None, None) => Ok(()),
            }
        })?;
        if volume_record.is_some() || snapshot_record.is_some() {
            self.trash_unwatched(object)?;
        }
        Ok(())
    }
}

impl Pool {
    /// Begins a volume that is filled through the returned handle: `status` says what it shows meanwhile,
    /// `creating` or `downloading`. It counts against quotas from now on. The rules are those of
    /// [`create_volume`](Self::create_volume), and a backup may be the source.
    ///
    /// # Errors
    /// As [`create_volume`](Self::create_volume); `InvalidArgument` for another status.
    pub fn begin_volume(&self, spec: VolumeSpec, status: VolumeStatus) -> Result<Filling> {
        if !matches!(status, VolumeStatus::Creating | VolumeStatus::Downloading) {
            let why = format!("a volume is filled in `creating` or `downloading`, {status} given");
            return Err(Error::invalid("status", Violation::Filter, why));
        }
        let (id, size_bytes, job) = self.transact(|batch| {
            spec.check(&self.limits, 0)?;
            let plan = batch.plan_volume(&spec, 1)?;
            let volume = batch.make_volume(spec, &plan, VolumeStatus::Error)?;
            batch.stage(|stage| {
                catalogue::set_unfinished(stage, volume.id.object());
                Ok(())
            })?;
            Ok((volume.id, volume.size_bytes, self.inner.jobs.begin_volume(volume.id, status)))
        })?;
        self.fill(id, size_bytes, job, true, status)
    }

    /// Begins to restore a backup into a volume, through the returned handle: it is `restoring-backup` meanwhile.
    /// What it holds stays until it is overwritten.
    ///
    /// # Errors
    /// `NotFound`; `InvalidState` when the volume is not `available`; `ReadOnly`, `OutOfSpace`, `Io`, `Poisoned`,
    /// `Closed`.
    pub fn begin_restore(&self, id: VolumeId) -> Result<Filling> {
        let status = VolumeStatus::RestoringBackup;
        let (size_bytes, job) = self.transact(|batch| {
            let record = catalogue::need_volume(batch.table(), id)?;
            match batch.volume_status(id, &record)? {
                VolumeStatus::Available => {}
                now => return Err(wrong_status(id, now, "restore")),
            }
            if !batch.alone(id.object(), status.as_str()) {
                return Err(wrong_status(id, VolumeStatus::InUse, "restore"));
            }
            batch.store_volume_status(id, VolumeStatus::ErrorRestoring)?;
            Ok((record.common.size_bytes, self.inner.jobs.begin_volume(id, status)))
        })?;
        self.fill(id, size_bytes, job, false, status)
    }

    fn fill(
        &self,
        id: VolumeId,
        size_bytes: u64,
        job: Job,
        creates: bool,
        status: VolumeStatus,
    ) -> Result<Filling> {
        let inner = Arc::clone(&self.inner);
        let place = inner.attachments.enter_marked(id.object(), inner.engine.now());
        let place = place.map_err(|_| Error::Closed)?;
        let disk = inner.disk(id, place, size_bytes, None)?;
        Ok(Filling { inner, id, work: Some((disk, job)), creates, status })
    }

    /// Begins a backup of a volume, attached or not: takes a snapshot that belongs to the backup, and shows both as
    /// `backing-up` until the returned guard is finished or dropped. Unless the spec says so, the snapshot is named
    /// [`BACKUP_SNAPSHOT_PREFIX`] and its id, and is `Automatic`. Durable on return.
    ///
    /// # Errors
    /// `InvalidArgument` for a bad spec; `NotFound`; `InvalidState` when the volume is neither `available` nor
    /// `in-use`; `AlreadyExists` for a supplied id that is taken; `ReadOnly`, `OutOfSpace`, `Io`, `Poisoned`,
    /// `Closed`.
    pub fn begin_backup(&self, volume: VolumeId, spec: SnapshotSpec) -> Result<BackupRun> {
        let (snapshot, jobs) = self.transact(|batch| {
            spec.check(&self.limits)?;
            let record = catalogue::need_volume(batch.table(), volume)?;
            let status = batch.volume_status(volume, &record)?;
            if !matches!(status, VolumeStatus::Available | VolumeStatus::InUse) {
                return Err(wrong_status(volume, status, "backup"));
            }
            let id = SnapshotId::new(batch.claim_id("snapshot", spec.id.map(SnapshotId::raw))?);
            let name = spec.name.clone().unwrap_or_else(|| format!("{BACKUP_SNAPSHOT_PREFIX}{id}"));
            let spec = spec.id(id).name(name).trigger(Trigger::Automatic);
            let snapshot = batch.make_snapshot(volume, record, spec, true)?.id;
            batch.stage(|stage| {
                catalogue::set_unfinished(stage, snapshot.object());
                Ok(())
            })?;
            let jobs = &self.inner.jobs;
            let on_volume = jobs.begin_volume(volume, VolumeStatus::BackingUp);
            Ok((snapshot, (on_volume, jobs.begin_snapshot(snapshot, SnapshotStatus::BackingUp))))
        })?;
        // Made only now: what dropping it does is a transaction of its own.
        Ok(BackupRun { inner: Arc::clone(&self.inner), volume, snapshot, jobs: Some(jobs) })
    }

    /// The snapshot that the last finished backup of a volume has left: what the next one is compared with.
    /// `None`: the next one is full.
    ///
    /// # Errors
    /// `Corrupt`, `Io`, `Closed`.
    pub fn backup_base(&self, volume: VolumeId) -> Result<Option<Snapshot>> {
        let query = SnapshotQuery::new().volume(volume).backup_owned(true);
        let page = self.list_snapshots(&query.status(SnapshotStatus::Available).limit(1))?;
        Ok(page.items.into_iter().next())
    }
}

impl std::fmt::Debug for Filling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filling").field("id", &self.id).field("status", &self.status).finish()
    }
}

impl std::fmt::Debug for BackupRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (volume, snapshot) = (&self.volume, &self.snapshot);
        f.debug_struct("BackupRun").field("volume", volume).field("snapshot", snapshot).finish()
    }
}
