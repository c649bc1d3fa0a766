//! What is being done with an object right now, in memory only.
//!
//! A transient status never reaches the disk: a crash, a close or the end of the job leaves what the record says.
//! Whoever does work that a crash cuts short stores beforehand what shall be left then, as [`Filling`] does.
//! A job begins inside a transaction, so that no other operation comes between the look at the status and the
//! change of it.
//!
//! [`Filling`]: super::Filling

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::{Error, Result, Violation};
use crate::units::{ObjectId, SnapshotId, VolumeId};

use super::batch::Batch;
use super::catalogue;
use super::pool::{Inner, Pool};
use super::status::{SnapshotStatus, VolumeStatus};
use super::volume::Volume;
use super::volumes::{snapshot_status, wrong_status};

#[derive(Default)]
pub(super) struct Jobs {
    running: Mutex<HashMap<ObjectId, Running>>,
}

#[derive(Clone, Copy)]
struct Running {
    status: Doing,
    /// Ends by a call of its own: no guard belongs to it.
    reservation: bool,
}

#[derive(Clone, Copy)]
enum Doing {
    Volume(VolumeStatus),
    Snapshot(SnapshotStatus),
}

impl Jobs {
    pub(super) fn volume(&self, id: VolumeId) -> Option<VolumeStatus> {
        match self.running.lock().get(&id.object())?.status {
            Doing::Volume(status) => Some(status),
            Doing::Snapshot(_) => None,
        }
    }

    pub(super) fn snapshot(&self, id: SnapshotId) -> Option<SnapshotStatus> {
        match self.running.lock().get(&id.object())?.status {
            Doing::Snapshot(status) => Some(status),
            Doing::Volume(_) => None,
        }
    }

    /// Whether the status was set by a reservation, which the next step of the caller completes.
    pub(super) fn is_reserved(&self, id: VolumeId, as_what: VolumeStatus) -> bool {
        match self.running.lock().get(&id.object()) {
            Some(Running { status: Doing::Volume(status), reservation: true }) => *status == as_what,
            _ => false,
        }
    }

    pub(super) fn reserve(&self, id: VolumeId, status: VolumeStatus) {
        let running = Running { status: Doing::Volume(status), reservation: true };
        self.running.lock().insert(id.object(), running);
    }

    /// Ends a reservation; anything else goes on.
    pub(super) fn unreserve(&self, id: VolumeId, as_what: VolumeStatus) {
        if self.is_reserved(id, as_what) {
            self.running.lock().remove(&id.object());
        }
    }

    /// The caller has seen, inside its transaction, that no job runs on the object.
    pub(super) fn begin_volume(self: &Arc<Self>, id: VolumeId, status: VolumeStatus) -> Job {
        self.begin(id.object(), Doing::Volume(status))
    }

    pub(super) fn begin_snapshot(self: &Arc<Self>, id: SnapshotId, status: SnapshotStatus) -> Job {
        self.begin(id.object(), Doing::Snapshot(status))
    }

    fn begin(self: &Arc<Self>, id: ObjectId, status: Doing) -> Job {
        self.running.lock().insert(id, Running { status, reservation: false });
        Job { jobs: Arc::clone(self), id }
    }
}

/// A job that runs; its status is gone when this is dropped.
pub(super) struct Job {
    jobs: Arc<Jobs>,
    id: ObjectId,
}

impl Drop for Job {
    fn drop(&mut self) {
        self.jobs.running.lock().remove(&self.id);
    }
}

/// A volume that shows a transient status while somebody works on it: see [`Pool::begin_volume_job`].
///
/// Dropping it ends the job; the volume then shows the status from before. A crash does the same.
#[must_use = "the status lasts as long as this lives"]
pub struct VolumeJob {
    inner: Arc<Inner>,
    id: VolumeId,
    status: VolumeStatus,
    job: Job,
}

/// A snapshot that shows a transient status while somebody works on it: see [`Pool::begin_snapshot_job`].
#[must_use = "the status lasts as long as this lives"]
pub struct SnapshotJob {
    id: SnapshotId,
    status: SnapshotStatus,
    _job: Job,
}

impl VolumeJob {
    /// The volume.
    pub fn volume(&self) -> VolumeId {
        self.id
    }
    /// The status it shows.
    pub fn status(&self) -> VolumeStatus {
        self.status
    }
    /// Ends the job: what dropping does too.
    pub fn finish(self) {}
    /// Ends the job with an error status, which is stored and durable on return.
    ///
    /// # Errors
    /// `InvalidArgument` for a status that is no error; `NotFound`; `ReadOnly`, `OutOfSpace`, `Io`, `Poisoned`,
    /// `Closed`: the job is over all the same.
    pub fn fail(self, status: VolumeStatus) -> Result<Volume> {
        if !status.is_error() {
            let why = format!("a job fails with an error status, {status} given");
            return Err(Error::invalid("status", Violation::Filter, why));
        }
        let Self { inner, id, job, .. } = self;
        inner.transact(|batch| batch.store_volume_status(id, status))?;
        drop(job);
        Pool::from_inner(&inner).volume(id)
    }
}

impl SnapshotJob {
    /// The snapshot.
    pub fn snapshot(&self) -> SnapshotId {
        self.id
    }
    /// The status it shows.
    pub fn status(&self) -> SnapshotStatus {
        self.status
    }
    /// Ends the job: what dropping does too.
    pub fn finish(self) {}
}

impl VolumeStatus {
    /// The operation that shows this status while it runs; `None` for one that lasts.
    fn operation(self) -> Option<&'static str> {
        use VolumeStatus as S;
        Some(match self {
            S::Creating => "create",
            S::Attaching => "attach",
            S::Detaching => "detach",
            S::Extending => "extend",
            S::BackingUp => "backup",
            S::RestoringBackup => "restore",
            S::Rollbacking => "rollback",
            S::Uploading => "upload",
            S::Downloading => "download",
            S::Deleting => "delete",
            S::AwaitingTransfer => "transfer",
            S::Available
            | S::InUse
            | S::Error
            | S::ErrorExtending
            | S::ErrorRestoring
            | S::ErrorRollbacking
            | S::ErrorDeleting => return None,
        })
    }
}

impl Batch<'_> {
    pub(super) fn store_volume_status(&mut self, id: VolumeId, status: VolumeStatus) -> Result<()> {
        let mut record = catalogue::need_volume(self.table(), id)?;
        record.status = status;
        self.stage(|stage| catalogue::update_volume(stage, id, &record))
    }
}

impl Pool {
    /// Shows a transient status while the returned guard lives, and refuses what that status does not allow: for
    /// work on a volume that the pool itself knows nothing of, such as an export. The job begins only in a status
    /// in which the documents let it begin. Disks go on reading and writing under `extending`, `backing-up`,
    /// `attaching` and `detaching`; for any other status the volume must have none. Nothing is stored.
    ///
    /// # Errors
    /// `InvalidArgument` for a status that is not transient; `NotFound`; `InvalidState` when the volume is not in
    /// a status in which this may begin; `ReadOnly`, `Io`, `Poisoned`, `Closed`.
    pub fn begin_volume_job(&self, id: VolumeId, status: VolumeStatus) -> Result<VolumeJob> {
        let Some(op) = status.operation() else {
            let why = format!("a job shows a transient status, {status} given");
            return Err(Error::invalid("status", Violation::Filter, why));
        };
        self.transact(|batch| {
            let record = catalogue::need_volume(batch.table(), id)?;
            let now = batch.volume_status(id, &record)?;
            use VolumeStatus as S;
            let begins = match (status, now) {
                (S::Detaching, S::Available) => false,
                (_, S::Available) => true,
                (S::BackingUp | S::Uploading | S::Detaching, S::InUse) => true,
                (S::Attaching, S::InUse) => record.multiattach,
                (S::Extending, S::InUse) => !record.multiattach,
                (S::Rollbacking, S::ErrorRollbacking) => true,
                (S::Deleting, other) => other.allows_delete(),
                _ => false,
            };
            if !begins {
                return Err(wrong_status(id, now, op));
            }
            let io_goes_on = matches!(status, S::Extending | S::BackingUp | S::Attaching | S::Detaching);
            if !io_goes_on && !batch.alone(id.object(), status.as_str()) {
                return Err(wrong_status(id, S::InUse, op));
            }
            let job = self.inner.jobs.begin_volume(id, status);
            Ok(VolumeJob { inner: Arc::clone(&self.inner), id, status, job })
        })
    }

    /// Shows a transient status while the returned guard lives: `backing-up` and the like, in which nothing is
    /// allowed but to read the snapshot. Nothing is stored.
    ///
    /// # Errors
    /// `InvalidArgument` for a status that is not transient; `NotFound`; `InvalidState` when the snapshot is not
    /// `available` (or `error`, for `deleting`); `ReadOnly`, `Io`, `Poisoned`, `Closed`.
    pub fn begin_snapshot_job(&self, id: SnapshotId, status: SnapshotStatus) -> Result<SnapshotJob> {
        use SnapshotStatus as S;
        let op = match status {
            S::Creating => "create",
            S::Rollbacking => "rollback",
            S::Deleting => "delete",
            S::BackingUp => "backup",
            S::Available | S::Error | S::ErrorDeleting => {
                let why = format!("a job shows a transient status, {status} given");
                return Err(Error::invalid("status", Violation::Filter, why));
            }
        };
        self.transact(|batch| {
            let record = catalogue::need_snapshot(batch.table(), id)?;
            match batch.snapshot_status(id, &record) {
                S::Available => {}
                S::Error if status == S::Deleting => {}
                now => return Err(snapshot_status(id, now, op)),
            }
            let job = self.inner.jobs.begin_snapshot(id, status);
            Ok(SnapshotJob { id, status, _job: job })
        })
    }

    /// Stores a lasting status by hand: the operator's way out of an error status, and into one. Durable on
    /// return.
    ///
    /// # Errors
    /// `InvalidArgument` for a transient status or `in-use`; `NotFound`; `InvalidState` while a job runs on the
    /// volume; `ReadOnly`, `OutOfSpace`, `Io`, `Poisoned`, `Closed`.
    pub fn reset_volume_status(&self, id: VolumeId, status: VolumeStatus) -> Result<Volume> {
        if status != VolumeStatus::Available && !status.is_error() {
            let why = format!("`available` or an error status can be stored, {status} given");
            return Err(Error::invalid("status", Violation::Filter, why));
        }
        self.transact(|batch| {
            catalogue::need_volume(batch.table(), id)?;
            if let Some(now) = self.inner.jobs.volume(id) {
                return Err(wrong_status(id, now, "reset"));
            }
            if status != VolumeStatus::Available && !batch.alone(id.object(), status.as_str()) {
                return Err(wrong_status(id, VolumeStatus::InUse, "reset"));
            }
            batch.store_volume_status(id, status)?;
            batch.volume(id)
        })
    }

    /// Stores a lasting status of a snapshot by hand. Durable on return.
    ///
    /// # Errors
    /// As [`reset_volume_status`](Self::reset_volume_status).
    pub fn reset_snapshot_status(&self, id: SnapshotId, status: SnapshotStatus) -> Result<super::Snapshot> {
        use SnapshotStatus as S;
        if !matches!(status, S::Available | S::Error | S::ErrorDeleting) {
            let why = format!("`available` or an error status can be stored, {status} given");
            return Err(Error::invalid("status", Violation::Filter, why));
        }
        self.transact(|batch| {
            let mut record = catalogue::need_snapshot(batch.table(), id)?;
            if let Some(now) = self.inner.jobs.snapshot(id) {
                return Err(snapshot_status(id, now, "reset"));
            }
            record.status = status;
            batch.stage(|stage| catalogue::update_snapshot(stage, id, &record))?;
            batch.snapshot(id)
        })
    }

    /// Says that the volume is about to be attached: it is `attaching` until
    /// [`attach_server`](Self::attach_server) completes that, or [`unreserve`](Self::unreserve) takes it back, or
    /// the pool is closed. Nothing is stored.
    ///
    /// # Errors
    /// `NotFound`; `InvalidState` when it is neither `available` nor shared and `in-use`; `ReadOnly`, `Io`,
    /// `Poisoned`, `Closed`.
    pub fn reserve(&self, id: VolumeId) -> Result<()> {
        self.transact(|batch| {
            let record = catalogue::need_volume(batch.table(), id)?;
            match batch.volume_status(id, &record)? {
                VolumeStatus::Available => {}
                VolumeStatus::InUse if record.multiattach => {}
                now => return Err(wrong_status(id, now, "reserve")),
            }
            self.inner.jobs.reserve(id, VolumeStatus::Attaching);
            Ok(())
        })
    }

    /// Takes a [`reserve`](Self::reserve) back; without one nothing changes.
    ///
    /// # Errors
    /// `NotFound`; `ReadOnly`, `Io`, `Poisoned`, `Closed`.
    pub fn unreserve(&self, id: VolumeId) -> Result<()> {
        self.end_reservation(id, VolumeStatus::Attaching)
    }

    /// Says that the volume is about to be detached: it is `detaching` until
    /// [`detach_server`](Self::detach_server) completes that, or [`roll_detaching`](Self::roll_detaching) takes
    /// it back, or the pool is closed. Nothing is stored.
    ///
    /// # Errors
    /// `NotFound`; `InvalidState` when it is not `in-use`; `ReadOnly`, `Io`, `Poisoned`, `Closed`.
    pub fn begin_detaching(&self, id: VolumeId) -> Result<()> {
        self.transact(|batch| {
            let record = catalogue::need_volume(batch.table(), id)?;
            match batch.volume_status(id, &record)? {
                VolumeStatus::InUse => {}
                now => return Err(wrong_status(id, now, "begin_detaching")),
            }
            self.inner.jobs.reserve(id, VolumeStatus::Detaching);
            Ok(())
        })
    }

    /// Takes a [`begin_detaching`](Self::begin_detaching) back; without one nothing changes.
    ///
    /// # Errors
    /// `NotFound`; `ReadOnly`, `Io`, `Poisoned`, `Closed`.
    pub fn roll_detaching(&self, id: VolumeId) -> Result<()> {
        self.end_reservation(id, VolumeStatus::Detaching)
    }

    fn end_reservation(&self, id: VolumeId, as_what: VolumeStatus) -> Result<()> {
        self.transact(|batch| {
            catalogue::need_volume(batch.table(), id)?;
            self.inner.jobs.unreserve(id, as_what);
            Ok(())
        })
    }
}

impl std::fmt::Debug for VolumeJob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VolumeJob").field("id", &self.id).field("status", &self.status).finish()
    }
}

impl std::fmt::Debug for SnapshotJob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotJob").field("id", &self.id).field("status", &self.status).finish()
    }
}
