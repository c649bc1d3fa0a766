//! A snapshot as callers see it, and what they say to make or change one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, Violation};
use crate::units::{SnapshotId, VolumeId};

use super::limits::{BACKUP_SNAPSHOT_PREFIX, Limits, check_metadata};
use super::projects::Project;
use super::records::SnapshotRecord;
use super::status::SnapshotStatus;

/// Who asked for a snapshot: a label, which changes nothing else.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Trigger {
    /// Somebody.
    #[default]
    Manual,
    /// A schedule, or a backup.
    Automatic,
}

/// What a caller should know about a call that was accepted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
#[non_exhaustive]
pub enum Warning {
    /// The name of the snapshot begins as those of backups do; it is an ordinary snapshot all the same.
    BackupPrefix,
    /// A snapshot of a backup was deleted: the next backup of its volume is a full one.
    NextBackupIsFull,
}

/// A snapshot at the moment it was asked about.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[non_exhaustive]
pub struct Snapshot {
    /// Its identity.
    pub id: SnapshotId,
    /// A short id, unique in the pool: `snap-` and eight of `a`-`z`, `0`-`9`.
    pub alias: String,
    /// The project it belongs to: that of its volume.
    pub project: Project,
    /// The zone of its volume.
    pub zone: String,
    /// The type of its volume.
    pub volume_type: Option<String>,
    /// Whether its volume is bootable; of a volume that is gone, whether it was when the snapshot was taken.
    pub bootable: bool,
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
    /// Whether a backup made it for itself: it cannot be rolled back to or cloned, and does not count against
    /// the limit of snapshots.
    pub backup_owned: bool,
    /// Who asked for it.
    pub trigger: Trigger,
    /// When it was created, in microseconds since 1970.
    pub created_at_micros: u64,
    /// When anything about it last changed, in microseconds since 1970.
    pub updated_at_micros: Option<u64>,
    /// The pool's snapshot epoch that it ended: blocks it holds were written in this epoch or before.
    pub epoch: u32,
}

impl Snapshot {
    pub(super) fn from_record(id: SnapshotId, record: SnapshotRecord, around: Around) -> Self {
        let Around { project, zone, status, volume_bootable } = around;
        let common = record.common;
        Self {
            id,
            alias: format!("snap-{}", common.alias),
            project,
            zone,
            volume_type: common.volume_type,
            bootable: volume_bootable.unwrap_or(common.bootable),
            volume: record.volume,
            volume_exists: volume_bootable.is_some(),
            name: common.name,
            description: common.description,
            size_bytes: common.size_bytes,
            status,
            metadata: common.metadata,
            held: record.held,
            backup_owned: record.backup_owned,
            trigger: if record.automatic { Trigger::Automatic } else { Trigger::Manual },
            created_at_micros: common.created,
            updated_at_micros: common.updated,
            epoch: record.epoch,
        }
    }
}

impl Snapshot {
    /// What is remarkable about it, if anything: its name begins with [`BACKUP_SNAPSHOT_PREFIX`], and it belongs
    /// to no backup.
    pub fn warning(&self) -> Option<Warning> {
        let named = self.name.as_deref().is_some_and(|name| name.starts_with(BACKUP_SNAPSHOT_PREFIX));
        (named && !self.backup_owned).then_some(Warning::BackupPrefix)
    }
}

/// What is to be known about a snapshot beside its record.
pub(super) struct Around {
    pub(super) project: Project,
    pub(super) zone: String,
    pub(super) status: SnapshotStatus,
    /// Of the volume; `None` when it is gone.
    pub(super) volume_bootable: Option<bool>,
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
    pub(super) trigger: Trigger,
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
    /// Who asks for it: a label. `Manual` by default.
    pub fn trigger(mut self, trigger: Trigger) -> Self {
        self.trigger = trigger;
        self
    }
    /// The id to give it, in place of a fresh one.
    pub fn id(mut self, id: SnapshotId) -> Self {
        self.id = Some(id);
        self
    }

    pub(crate) fn check(&self, limits: &Limits) -> Result<()> {
        limits.check_name(self.name.as_deref(), 0)?;
        limits.check_description(self.description.as_deref())?;
        let prefixed = self.name.as_deref().is_some_and(|name| name.starts_with(BACKUP_SNAPSHOT_PREFIX));
        if limits.refuse_backup_prefix && prefixed {
            let why = format!("names that begin with {BACKUP_SNAPSHOT_PREFIX} belong to backups");
            return Err(Error::invalid("name", Violation::ReservedName, why));
        }
        check_metadata(&self.metadata)
    }
}

/// How to roll back.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
#[must_use]
pub struct RollbackOptions {
    pub(super) live: bool,
    pub(super) volume: Option<VolumeId>,
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
    /// The volume that the caller means to roll back; any but the snapshot's own is refused.
    pub fn volume(mut self, id: VolumeId) -> Self {
        self.volume = Some(id);
        self
    }
}
