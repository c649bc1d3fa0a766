//! What becomes of what was deleted: the space comes back in the background.

use std::sync::Arc;

use serde::Serialize;

use crate::error::Result;
use crate::units::{BLOCK_BYTES, ObjectId, SnapshotId, VolumeId};

use super::pool::Inner;
use super::snapshot::Warning;

/// A deletion that is durable, and whose space is on its way back. Dropping the handle changes nothing.
#[must_use = "the space comes back by itself; wait() tells how much"]
pub struct Deletion {
    inner: Arc<Inner>,
    volume: Option<VolumeId>,
    snapshots: Vec<SnapshotId>,
    ids: Vec<ObjectId>,
    warnings: Vec<Warning>,
}

/// What a finished deletion gave back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[non_exhaustive]
pub struct Freed {
    /// Bytes of data that nobody else reached.
    pub freed_bytes: u64,
}

/// How far a deletion is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[non_exhaustive]
pub struct DeletionProgress {
    /// Whether all of its space has come back.
    pub done: bool,
    /// Bytes of data that have come back.
    pub freed_bytes: u64,
    /// Map entries looked at.
    pub scanned: u64,
}

/// What a deletion would do, as of the moment it was asked about.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[non_exhaustive]
pub struct DeletePlan {
    /// The volume that would go, if it is one.
    pub volume: Option<VolumeId>,
    /// The snapshots that would go.
    pub snapshots: Vec<SnapshotId>,
    /// Bytes of data that would come back: those that nothing else reaches.
    pub frees_bytes: u64,
}

impl Deletion {
    pub(super) fn new(
        inner: &Arc<Inner>,
        volume: Option<VolumeId>,
        snapshots: Vec<SnapshotId>,
        ids: Vec<ObjectId>,
    ) -> Self {
        Self { inner: Arc::clone(inner), volume, snapshots, ids, warnings: Vec::new() }
    }

    pub(super) fn warn(&mut self, warning: Warning) {
        self.warnings.push(warning);
    }

    /// What the caller should know.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// The volume that was deleted, if it was one.
    pub fn volume(&self) -> Option<VolumeId> {
        self.volume
    }

    /// The snapshots that were deleted.
    pub fn snapshots(&self) -> &[SnapshotId] {
        &self.snapshots
    }

    /// Whether all of its space has come back.
    pub fn is_done(&self) -> bool {
        self.progress().done
    }

    /// How far it is.
    pub fn progress(&self) -> DeletionProgress {
        let mut sum = DeletionProgress { done: true, freed_bytes: 0, scanned: 0 };
        for id in &self.ids {
            let one = self.inner.engine.trash_state(*id);
            sum.done &= one.done;
            sum.freed_bytes += one.freed_bytes;
            sum.scanned += one.scanned;
        }
        sum
    }

    /// Waits until the space has come back, helping with the work; where the embedder does the background work,
    /// this does what it takes.
    ///
    /// # Errors
    /// `Corrupt` when a map that is to go is damaged: what lies below the damage does not come back. `Io`,
    /// `Poisoned`, `Closed`.
    pub fn wait(self) -> Result<Freed> {
        Ok(Freed { freed_bytes: self.inner.engine.wait_trash(&self.ids)? })
    }
}

impl Drop for Deletion {
    fn drop(&mut self) {
        self.inner.engine.forget_trash(&self.ids);
    }
}

impl DeletePlan {
    pub(super) fn new(inner: &Inner, volume: Option<VolumeId>, snapshots: Vec<SnapshotId>) -> Result<Self> {
        let mut ids: Vec<ObjectId> = volume.iter().map(|id| id.object()).collect();
        ids.extend(snapshots.iter().map(|id| id.object()));
        let frees_bytes = inner.engine.exclusive_blocks(&ids)? * BLOCK_BYTES;
        Ok(Self { volume, snapshots, frees_bytes })
    }
}

impl std::fmt::Debug for Deletion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deletion").field("volume", &self.volume).field("snapshots", &self.snapshots).finish()
    }
}
