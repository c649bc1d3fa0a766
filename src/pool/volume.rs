//! A volume as callers see it, and what they say to make or change one.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::error::{Error, Result, Violation};
use crate::units::{BackupId, BaseId, ImageId, SnapshotId, VolumeId};

use super::limits::{Limits, MAX_PLACEMENT_BYTES, check_metadata};
use super::projects::{self, Project};
use super::records::VolumeRecord;
use super::servers::Attachment;
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
    /// An image.
    Image(ImageId),
    /// A backup.
    Backup(BackupId),
    /// An external base, which shows where nothing was written.
    Base(BaseId),
}

/// A volume at the moment it was asked about.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[non_exhaustive]
pub struct Volume {
    /// Its identity.
    pub id: VolumeId,
    /// A short id, unique in the pool: `disk-` and eight of `a`-`z`, `0`-`9`.
    pub alias: String,
    /// The project it belongs to; fixed at creation.
    pub project: Project,
    /// The zone it is in; fixed at creation.
    pub zone: String,
    /// Its type, a label; fixed at creation.
    pub volume_type: Option<String>,
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
    /// Whether a server can boot from it.
    pub bootable: bool,
    /// Whether it only lends itself for reading.
    pub read_only: bool,
    /// The opaque placement hint it was created with.
    pub placement: Option<String>,
    /// Where its first content came from.
    pub source: VolumeSource,
    /// Who holds it now: stored attachments, oldest first, then handles beyond them.
    pub attachments: Vec<Attachment>,
    /// How many handles of this process are open on it.
    pub handles: u32,
    /// How many snapshots of it exist.
    pub snapshot_count: u64,
    /// When it was created, in microseconds since 1970.
    pub created_at_micros: u64,
    /// When anything about it last changed, its attachments apart, in microseconds since 1970.
    pub updated_at_micros: Option<u64>,
}

impl Volume {
    pub(super) fn from_record(id: VolumeId, record: VolumeRecord, around: Around) -> Self {
        let Around { project, zone, status, attachments, handles, snapshot_count } = around;
        let common = record.common;
        Self {
            id,
            alias: format!("disk-{}", common.alias),
            project,
            zone,
            volume_type: common.volume_type,
            name: common.name,
            description: common.description,
            size_bytes: common.size_bytes,
            status,
            metadata: common.metadata,
            multiattach: record.multiattach,
            bootable: common.bootable,
            read_only: record.read_only,
            placement: record.placement,
            source: record.source,
            attachments,
            handles,
            snapshot_count,
            created_at_micros: common.created,
            updated_at_micros: common.updated,
        }
    }
}

/// What is to be known about a volume beside its record.
pub(super) struct Around {
    pub(super) project: Project,
    pub(super) zone: String,
    pub(super) status: VolumeStatus,
    pub(super) attachments: Vec<Attachment>,
    pub(super) handles: u32,
    pub(super) snapshot_count: u64,
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
    pub(super) project: Option<String>,
    pub(super) zone: Option<String>,
    pub(super) volume_type: Option<String>,
    pub(super) placement: Option<String>,
    pub(super) bootable: Option<bool>,
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
            project: None,
            zone: None,
            volume_type: None,
            placement: None,
            bootable: None,
            id: None,
        }
    }
    /// Zeroes of `size_bytes` bytes: a multiple of 4,096 from 4,096 to 1 EiB.
    pub fn blank(size_bytes: u64) -> Self {
        Self::new(VolumeSource::Blank, Some(size_bytes))
    }
    /// A volume to be [filled from an image](super::Pool::import): as large as the image unless
    /// [`size`](Self::size) says more.
    pub fn image() -> Self {
        Self::new(VolumeSource::Blank, None)
    }
    /// A clone of a snapshot, as large as it unless [`size`](Self::size) says more.
    pub fn from_snapshot(snapshot: SnapshotId) -> Self {
        Self::new(VolumeSource::Snapshot(snapshot), None)
    }
    /// A clone of a volume as it is at that moment, as large as it unless [`size`](Self::size) says more.
    pub fn from_volume(volume: VolumeId) -> Self {
        Self::new(VolumeSource::Volume(volume), None)
    }
    /// A clone of an active image, as large as that needs unless [`size`](Self::size) says more. It is bootable.
    pub fn from_image(image: ImageId) -> Self {
        Self::new(VolumeSource::Image(image), None)
    }
    /// Over an [external base](super::Pool::create_volume_over) that the pool has: as large as it unless
    /// [`size`](Self::size) says more.
    pub fn from_base(base: BaseId) -> Self {
        Self::new(VolumeSource::Base(base), None)
    }
    /// A volume that is going to be filled from a backup: for
    /// [`Pool::create_volume_from_backup`](super::Pool::create_volume_from_backup), or for
    /// [`Pool::begin_volume`](super::Pool::begin_volume) by who fills it himself.
    pub fn from_backup(backup: BackupId, size_bytes: u64) -> Self {
        Self::new(VolumeSource::Backup(backup), Some(size_bytes))
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
    /// The project it belongs to, 1 to 60 bytes; one that was never used begins to exist. Unless said: that of the
    /// source, or the default project. A source in another project is not found.
    pub fn project(mut self, id: impl Into<String>) -> Self {
        self.project = Some(id.into());
        self
    }
    /// The zone to place it in. Unless said: that of the source, or the default zone.
    pub fn zone(mut self, name: impl Into<String>) -> Self {
        self.zone = Some(name.into());
        self
    }
    /// Its type: 1 to 255 bytes, one of those that the profile knows. Unless said: that of the source, which only a
    /// volume from a backup may differ from.
    pub fn volume_type(mut self, name: impl Into<String>) -> Self {
        self.volume_type = Some(name.into());
        self
    }
    /// An opaque hint about its placement, kept and given back: at most 4,096 bytes.
    pub fn placement(mut self, hint: impl Into<String>) -> Self {
        self.placement = Some(hint.into());
        self
    }
    /// Whether a server can boot from it. Unless said: as the source; a volume from an image is.
    pub fn bootable(mut self, on: bool) -> Self {
        self.bootable = Some(on);
        self
    }
    /// The id to give it, in place of a fresh one.
    pub fn id(mut self, id: VolumeId) -> Self {
        self.id = Some(id);
        self
    }

    /// The backup that it is to be filled from, and the size it is to have.
    pub(crate) fn backup_source(&self) -> Option<(BackupId, Option<u64>)> {
        match self.source {
            VolumeSource::Backup(id) => Some((id, self.size_bytes)),
            _ => None,
        }
    }

    /// The zone that was asked for.
    pub(crate) fn wanted_zone(&self) -> Option<&str> {
        self.zone.as_deref()
    }

    /// What can be said without looking at anything; the name has to leave room for `reserve_bytes` more.
    pub(crate) fn check(&self, limits: &Limits, reserve_bytes: usize) -> Result<()> {
        if self.size_bytes.is_none() && self.source == VolumeSource::Blank {
            return Err(Error::invalid("size_bytes", Violation::Size, "a blank volume needs a size"));
        }
        limits.check_name(self.name.as_deref(), reserve_bytes)?;
        limits.check_description(self.description.as_deref())?;
        check_metadata(&self.metadata)?;
        let copies = matches!(self.source, VolumeSource::Snapshot(_) | VolumeSource::Image(_));
        limits.check_system_metadata(&self.metadata, copies)?;
        let system = self.bootable.unwrap_or(matches!(self.source, VolumeSource::Image(_)));
        self.size_bytes.map_or(Ok(()), |bytes| limits.check_size(bytes, system))?;
        limits.check_volume_type(self.volume_type.as_deref())?;
        self.project.as_deref().map_or(Ok(()), projects::check_id)?;
        match &self.placement {
            Some(hint) if hint.len() > MAX_PLACEMENT_BYTES => {
                let why = format!("at most {MAX_PLACEMENT_BYTES} bytes are allowed, {} given", hint.len());
                Err(Error::invalid("placement", Violation::TooLong, why))
            }
            _ => Ok(()),
        }
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
