//! A snapshot as callers see it, and what they say to make or change one.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::error::Result;
use crate::units::{SnapshotId, VolumeId};

use super::limits::{MAX_TEXT_BYTES, check_metadata, check_text};
use super::records::SnapshotRecord;
use super::status::SnapshotStatus;

/// A snapshot at the moment it was asked about.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[non_exhaustive]
pub struct Snapshot {
    /// Its identity.
    pub id: SnapshotId,
    /// The volume whose content it holds.
    pub volume: VolumeId,
    /// Whether that volume still exists.
    pub volume_exists: bool,
    /// Its name, which need not be unique: at most 255 bytes.
    pub name: Option<String>,
    /// Its description: at most 255 bytes.
    pub description: Option<String>,
    /// Size of the volume in bytes at that moment.
    pub size_bytes: u64,
    /// What it is doing.
    pub status: SnapshotStatus,
    /// The caller's own pairs.
    pub metadata: BTreeMap<String, String>,
    /// Whether it is held: a held snapshot is not deleted.
    pub held: bool,
    /// When it was created, in microseconds since 1970.
    pub created_at_micros: u64,
    /// When name, description or metadata last changed, in microseconds since 1970.
    pub updated_at_micros: Option<u64>,
    /// The pool's snapshot epoch that it ended: blocks it holds were written in this epoch or before.
    pub epoch: u32,
}

impl Snapshot {
    pub(super) fn from_record(id: SnapshotId, record: SnapshotRecord, volume_exists: bool) -> Self {
        let common = record.common;
        Self {
            id,
            volume: record.volume,
            volume_exists,
            name: common.name,
            description: common.description,
            size_bytes: common.size_bytes,
            status: record.status,
            metadata: common.metadata,
            held: record.held,
            created_at_micros: common.created,
            updated_at_micros: common.updated,
            epoch: record.epoch,
        }
    }
}

/// What a new snapshot is to be.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
#[must_use]
pub struct SnapshotSpec {
    pub(super) name: Option<String>,
    pub(super) description: Option<String>,
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) force: bool,
    pub(super) id: Option<SnapshotId>,
}

impl SnapshotSpec {
    /// A snapshot without a name, of a volume that is not attached.
    pub fn new() -> Self {
        Self::default()
    }
    /// A name of at most 255 bytes.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }
    /// A description of at most 255 bytes.
    pub fn description(mut self, description: impl Into<String>) -> Self {
        self.description = Some(description.into());
        self
    }
    /// One more metadata pair: key and value of at most 255 bytes each, 1 MiB in all.
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }
    /// All metadata at once, in place of what was there.
    pub fn metadata_map(mut self, metadata: BTreeMap<String, String>) -> Self {
        self.metadata = metadata;
        self
    }
    /// Whether an attached volume is accepted. Off by default: its user may be in the middle of something.
    pub fn force(mut self, on: bool) -> Self {
        self.force = on;
        self
    }
    /// The id to give it, in place of a fresh one.
    pub fn id(mut self, id: SnapshotId) -> Self {
        self.id = Some(id);
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        check_text("name", self.name.as_deref(), MAX_TEXT_BYTES)?;
        check_text("description", self.description.as_deref(), MAX_TEXT_BYTES)?;
        check_metadata(&self.metadata)
    }
}

/// What to change about a snapshot; what is `None` stays.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
#[must_use]
pub struct SnapshotUpdate {
    /// The new name; `Some(None)` removes it.
    pub name: Option<Option<String>>,
    /// The new description; `Some(None)` removes it.
    pub description: Option<Option<String>>,
    /// The new metadata, in place of all there was.
    pub metadata: Option<BTreeMap<String, String>>,
}

impl SnapshotUpdate {
    /// Changes nothing yet.
    pub fn new() -> Self {
        Self::default()
    }
    /// A new name of at most 255 bytes; `None` removes it.
    pub fn name(mut self, name: Option<String>) -> Self {
        self.name = Some(name);
        self
    }
    /// A new description of at most 255 bytes; `None` removes it.
    pub fn description(mut self, description: Option<String>) -> Self {
        self.description = Some(description);
        self
    }
    /// New metadata in place of all there was: keys and values of at most 255 bytes, 1 MiB in all.
    pub fn metadata(mut self, metadata: BTreeMap<String, String>) -> Self {
        self.metadata = Some(metadata);
        self
    }
}

/// How to roll back.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
#[must_use]
pub struct RollbackOptions {
    pub(super) live: bool,
}

impl RollbackOptions {
    /// A rollback of a volume that is not attached.
    pub fn new() -> Self {
        Self::default()
    }
    /// Whether an attached volume is accepted. Its disks read the old content from one call to the next;
    /// whoever caches it must be told. Off by default.
    pub fn live(mut self, on: bool) -> Self {
        self.live = on;
        self
    }
}
