//! Backups as the pool knows them: what callers see, and how they are listed. The steps they are made in are those of
//! [`backup_steps`](super::backup_steps), the bytes are the business of [`crate::backup`].
//!
//! - B1 A record says `error` from the moment it exists until the backup is whole, and a volume that is being
//!   restored into says `error_restoring` until it is: a crash needs no repair to be told truly. While a call runs,
//!   `creating`, `backing-up` and the like are known in memory only.
//! - B2 The snapshot of a backup that is not whole is noted as unfinished (see [`filling`](super::filling)): the next
//!   open removes it.
//! - B3 A volume has at most one base: the snapshot of its newest backup. A new one takes its place in the very
//!   transaction that makes the new backup available.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;
use uuid::Uuid;

use super::backup_records::{self as tables, BackupRecord};
use super::catalogue::Table;
use super::limits::MAX_TEXT_BYTES;
use super::pool::{Inner, Pool};
use super::query::{Cut, Page, page, paging};
pub use super::status::BackupStatus;
use crate::error::{Error, Result, Violation};
use crate::target::{BackupTarget, Claims};
use crate::units::{BackupId, SnapshotId, VolumeId};

/// What the pool holds in memory about backups.
#[derive(Default)]
pub(super) struct State {
    pub(super) targets: Mutex<BTreeMap<String, Arc<dyn BackupTarget>>>,
    passing: Arc<Mutex<HashMap<BackupId, BackupStatus>>>,
    pub(super) claims: Arc<Claims>,
}

/// A backup that something is being done with, until this is dropped. It begins inside a transaction, after the
/// status has been looked at there, so that no two calls find a backup at rest.
pub(super) struct Passing {
    table: Arc<Mutex<HashMap<BackupId, BackupStatus>>>,
    id: BackupId,
}

impl State {
    pub(super) fn pass(&self, id: BackupId, status: BackupStatus) -> Passing {
        self.passing.lock().insert(id, status);
        Passing { table: Arc::clone(&self.passing), id }
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        self.table.lock().remove(&self.id);
    }
}

/// A backup at the moment it was asked about.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[non_exhaustive]
pub struct Backup {
    /// Its identity.
    pub id: BackupId,
    /// Its name, which need not be unique: at most 255 bytes.
    pub name: Option<String>,
    /// Its description: at most 255 bytes.
    pub description: Option<String>,
    /// What it is doing.
    pub status: BackupStatus,
    /// The volume it is of, which may be gone.
    pub volume: VolumeId,
    /// The snapshot it was read from, which goes with the next backup of the volume; `None` when imported.
    pub snapshot: Option<SnapshotId>,
    /// Virtual size of the volume in bytes: what a restore needs.
    pub size_bytes: u64,
    /// How many objects in the target it is made of, shared ones included; 0 until it is whole.
    pub object_count: u64,
    /// Bytes that are stored for it, those it shares with other backups included; 0 until it is whole.
    pub stored_bytes: u64,
    /// The name under which its target is connected.
    pub container: String,
    /// Zone of the volume.
    pub zone: Option<String>,
    /// Type of the volume.
    pub volume_type: Option<String>,
    /// Project of the volume; of an imported one whose volume this pool does not have, the default project.
    pub project: Option<String>,
    /// Why it is in status `error`.
    pub fail_reason: Option<String>,
    /// Whether only what had changed since the backup before was read.
    pub is_incremental: bool,
    /// The backup that an incremental one began from, which may be gone.
    pub parent: Option<BackupId>,
    /// Whether a later backup began from this one. It can be deleted all the same.
    pub has_dependent_backups: bool,
    /// The pool that made it; another one when it was imported.
    pub pool: Uuid,
    /// When it was asked for, in microseconds since 1970.
    pub created_at_micros: u64,
    /// When its record last changed, in microseconds since 1970.
    pub updated_at_micros: Option<u64>,
    /// When the volume had this content, in microseconds since 1970.
    pub data_at_micros: u64,
}

/// Which backups to list. Conditions combine by AND; what is not said does not filter.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct BackupQuery {
    cut: Cut,
    status: Option<BackupStatus>,
    volume: Option<VolumeId>,
    project: Option<String>,
    marker: Option<BackupId>,
}

paging!(BackupQuery, BackupId);

impl BackupQuery {
    /// Everything, newest first, up to 1,000 items.
    pub fn new() -> Self {
        Self::default()
    }
    /// Only those with exactly this name.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.cut.name = Some(name.into());
        self
    }
    /// Only those in this status.
    #[must_use]
    pub fn status(mut self, status: BackupStatus) -> Self {
        self.status = Some(status);
        self
    }
    /// Only backups of this volume, which may be gone meanwhile. Uses an index.
    #[must_use]
    pub fn volume(mut self, volume: VolumeId) -> Self {
        self.volume = Some(volume);
        self
    }
    /// Only backups of volumes of this project.
    #[must_use]
    pub fn project(mut self, project: impl Into<String>) -> Self {
        self.project = Some(project.into());
        self
    }

    fn matches(&self, backup: &Backup) -> bool {
        self.cut.name.as_ref().is_none_or(|name| backup.name.as_ref() == Some(name))
            && self.status.is_none_or(|status| backup.status == status)
            && self.project.as_ref().is_none_or(|project| backup.project.as_ref() == Some(project))
    }
}

impl Pool {
    /// Names a backup target for as long as this pool is open. Backups keep the name, never a place: connect the
    /// same target under the same name whenever the pool is opened. A name that is taken gets the new target.
    ///
    /// # Errors
    /// `InvalidArgument` for a name that is empty or has more than 255 bytes.
    pub fn connect_backup_target(
        &self,
        name: impl Into<String>,
        target: Arc<dyn BackupTarget>,
    ) -> Result<()> {
        let name = name.into();
        check_text("container", Some(&name))?;
        if name.is_empty() {
            return Err(Error::invalid("container", Violation::Missing, "a target needs a name"));
        }
        self.inner.backups.targets.lock().insert(name, target);
        Ok(())
    }

    /// The names under which targets are connected now.
    pub fn backup_targets(&self) -> Vec<String> {
        self.inner.backups.targets.lock().keys().cloned().collect()
    }

    /// The backup as it is now.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` when its record is damaged; `Io`, `Closed`.
    pub fn backup(&self, id: BackupId) -> Result<Backup> {
        Ok(self.inner.describe_backup(id, tables::need_backup(&*self.inner.engine, id)?))
    }

    /// Lists backups, newest first, then by id; one page at a time.
    ///
    /// # Errors
    /// `InvalidArgument` for a limit outside 1 to 1,000, `NotFound` for a marker that names no backup; `Corrupt`,
    /// `Io`, `Closed`.
    pub fn list_backups(&self, query: &BackupQuery) -> Result<Page<Backup, BackupId>> {
        query.cut.check()?;
        let table: &dyn Table = &*self.inner.engine;
        let whole = || tables::backups(query.volume);
        let mut index = whole();
        if let Some(id) = query.marker {
            index = index.after(tables::need_backup(table, id)?.created, id.object());
        }
        let unfiltered = query.cut.name.is_none() && query.status.is_none() && query.project.is_none();
        let (items, more, total) = page(table, index, whole(), &query.cut, unfiltered, &mut |object| {
            let id = BackupId::new(Uuid::from_bytes(object.0));
            let Some(record) = tables::backup(table, id)? else { return Ok(None) };
            Ok(Some(self.inner.describe_backup(id, record)).filter(|backup| query.matches(backup)))
        })?;
        let next = if more { items.last().map(|b| b.id) } else { None };
        Ok(Page { items, next, total })
    }
}

impl Inner {
    fn describe_backup(&self, id: BackupId, record: BackupRecord) -> Backup {
        let status = self.backup_status(id, &record);
        Backup {
            id,
            name: record.name,
            description: record.description,
            status,
            volume: record.volume,
            snapshot: record.snapshot,
            size_bytes: record.size_bytes,
            object_count: record.objects,
            stored_bytes: record.stored_bytes,
            container: record.container,
            zone: record.zone,
            volume_type: record.volume_type,
            project: record.project,
            // Until the call that makes it is over, it has not failed.
            fail_reason: record.fail_reason.filter(|_| status == BackupStatus::Error),
            is_incremental: record.incremental,
            parent: record.parent,
            has_dependent_backups: record.has_dependent,
            pool: record.pool,
            created_at_micros: record.created,
            updated_at_micros: record.updated,
            data_at_micros: record.taken,
        }
    }

    pub(super) fn backup_status(&self, id: BackupId, record: &BackupRecord) -> BackupStatus {
        self.backups.passing.lock().get(&id).copied().unwrap_or(record.status)
    }
}
pub(super) fn check_text(field: &'static str, text: Option<&str>) -> Result<()> {
    match text.map(str::len) {
        Some(len) if len > MAX_TEXT_BYTES => {
            let why = format!("at most {MAX_TEXT_BYTES} bytes are allowed, {len} given");
            Err(Error::invalid(field, Violation::TooLong, why))
        }
        _ => Ok(()),
    }
}
