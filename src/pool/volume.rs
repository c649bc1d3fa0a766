//! A volume as callers see it, and what they say to make or change one.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::units::{SnapshotId, VolumeId};

use super::limits::{MAX_TEXT_BYTES, check_metadata, check_size, check_text};
use super::records::VolumeRecord;
use super::status::VolumeStatus;

/// Where the first content of a volume came from. The origin may be gone meanwhile.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[non_exhaustive]
pub enum VolumeSource {
    /// Nowhere: it began as zeroes.
    Blank,
    /// A snapshot.
    Snapshot(SnapshotId),
    /// Another volume, at the moment of the clone.
    Volume(VolumeId),
}

/// A volume at the moment it was asked about.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[non_exhaustive]
pub struct Volume {
    /// Its identity.
    pub id: VolumeId,
    /// Its name, which need not be unique: at most 255 bytes.
    pub name: Option<String>,
    /// Its description: at most 255 bytes.
    pub description: Option<String>,
    /// Virtual size in bytes, a multiple of 4,096.
    pub size_bytes: u64,
    /// What it is doing.
    pub status: VolumeStatus,
    /// The caller's own pairs.
    pub metadata: BTreeMap<String, String>,
    /// Whether it may be attached more than once; fixed at creation.
    pub multiattach: bool,
    /// Where its first content came from.
    pub source: VolumeSource,
    /// How many handles are attached now.
    pub attachments: u32,
    /// How many snapshots of it exist.
    pub snapshot_count: u64,
    /// When it was created, in microseconds since 1970.
    pub created_at_micros: u64,
    /// When name, description, metadata or size last changed, in microseconds since 1970.
    pub updated_at_micros: Option<u64>,
}

impl Volume {
    pub(super) fn from_record(
        id: VolumeId,
        record: VolumeRecord,
        attachments: u32,
        snapshot_count: u64,
    ) -> Self {
        let status = match record.status {
            VolumeStatus::Available if attachments > 0 => VolumeStatus::InUse,
            stored => stored,
        };
        let common = record.common;
        Self {
            id,
            name: common.name,
            description: common.description,
            size_bytes: common.size_bytes,
            status,
            metadata: common.metadata,
            multiattach: record.multiattach,
            source: record.source,
            attachments,
            snapshot_count,
            created_at_micros: common.created,
            updated_at_micros: common.updated,
        }
    }
}

/// What a new volume is to be.
#[derive(Clone, Debug)]
#[non_exhaustive]
#[must_use]
pub struct VolumeSpec {
    pub(super) source: VolumeSource,
    pub(super) size_bytes: Option<u64>,
    pub(super) name: Option<String>,
    pub(super) description: Option<String>,
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) multiattach: bool,
    pub(super) id: Option<VolumeId>,
}

impl VolumeSpec {
    fn new(source: VolumeSource, size_bytes: Option<u64>) -> Self {
        Self {
            source,
            size_bytes,
            name: None,
            description: None,
            metadata: BTreeMap::new(),
            multiattach: false,
            id: None,
        }
    }
    /// Zeroes of `size_bytes` bytes: a multiple of 4,096 from 4,096 to 1 EiB.
    pub fn blank(size_bytes: u64) -> Self {
        Self::new(VolumeSource::Blank, Some(size_bytes))
    }
    /// A clone of a snapshot, as large as it unless [`size`](Self::size) says more.
    pub fn from_snapshot(snapshot: SnapshotId) -> Self {
        Self::new(VolumeSource::Snapshot(snapshot), None)
    }
    /// A clone of a volume as it is at that moment, as large as it unless [`size`](Self::size) says more.
    pub fn from_volume(volume: VolumeId) -> Self {
        Self::new(VolumeSource::Volume(volume), None)
    }
    /// Size in bytes: a multiple of 4,096, at least the source's. What the source has not reads zero.
    pub fn size(mut self, bytes: u64) -> Self {
        self.size_bytes = Some(bytes);
        self
    }
    /// A name of at most 255 bytes; 250 when several volumes are created.
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
    /// Whether the volume may be attached up to 16 times at once; otherwise once. Cannot be changed later.
    pub fn multiattach(mut self, on: bool) -> Self {
        self.multiattach = on;
        self
    }
    /// The id to give it, in place of a fresh one.
    pub fn id(mut self, id: VolumeId) -> Self {
        self.id = Some(id);
        self
    }

    pub(super) fn check(&self, name_limit_bytes: usize) -> Result<()> {
        check_text("name", self.name.as_deref(), name_limit_bytes)?;
        check_text("description", self.description.as_deref(), MAX_TEXT_BYTES)?;
        check_metadata(&self.metadata)?;
        match (self.size_bytes, self.source) {
            (Some(bytes), _) => check_size(bytes),
            (None, VolumeSource::Blank) => Err(Error::invalid("size_bytes", "a blank volume needs a size")),
            (None, _) => Ok(()),
        }
    }
}

/// What to change about a volume; what is `None` stays.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
#[must_use]
pub struct VolumeUpdate {
    /// The new name; `Some(None)` removes it.
    pub name: Option<Option<String>>,
    /// The new description; `Some(None)` removes it.
    pub description: Option<Option<String>>,
    /// The new metadata, in place of all there was.
    pub metadata: Option<BTreeMap<String, String>>,
}

impl VolumeUpdate {
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

/// What happens to the snapshots of a volume that is deleted. There is no default: say it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Snapshots {
    /// A volume with snapshots is not deleted.
    Refuse,
    /// They go too, at the same instant.
    Delete,
    /// They live on without their volume: to be cloned, compared and deleted, but not rolled back.
    Keep,
}
