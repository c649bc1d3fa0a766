//! Backups as the pool knows them: what callers see, how they are listed, and which steps they are made of. The
//! bytes are the business of [`crate::backup`].
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

pub(crate) use super::backup_records::BackupRecord;
use super::backup_records::{self as tables, Base};
use super::batch::Batch;
use super::catalogue::{self, Table};
use super::deletion::Deletion;
use super::filling::BackupRun;
use super::limits::{MAX_PAGE, MAX_TEXT_BYTES};
use super::pool::{Inner, Pool};
use super::projects;
use super::query::Page;
use super::snapshot::SnapshotSpec;
pub use super::status::BackupStatus;
use crate::error::{Error, Result, StateRule, Violation};
use crate::target::{BackupTarget, Claims};
use crate::units::{BackupId, SnapshotId, VolumeId};

/// Why a backup is in status `error` while nothing better is known.
const NOT_FINISHED: &str = "it was cut off before it was whole";
const NOT_DELETED: &str = "its deletion was cut off";

/// What the pool holds in memory about backups.
#[derive(Default)]
pub(super) struct State {
    targets: Mutex<BTreeMap<String, Arc<dyn BackupTarget>>>,
    passing: Arc<Mutex<HashMap<BackupId, BackupStatus>>>,
    claims: Arc<Claims>,
}

/// A backup that something is being done with, until this is dropped. It begins inside a transaction, after the
/// status has been looked at there, so that no two calls find a backup at rest.
struct Passing {
    table: Arc<Mutex<HashMap<BackupId, BackupStatus>>>,
    id: BackupId,
}

impl State {
    fn pass(&self, id: BackupId, status: BackupStatus) -> Passing {
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
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BackupQuery {
    name: Option<String>,
    status: Option<BackupStatus>,
    volume: Option<VolumeId>,
    project: Option<String>,
    limit: u32,
    offset: u64,
    marker: Option<BackupId>,
    with_total: bool,
}

impl Default for BackupQuery {
    fn default() -> Self {
        Self {
            name: None,
            status: None,
            volume: None,
            project: None,
            limit: MAX_PAGE,
            offset: 0,
            marker: None,
            with_total: false,
        }
    }
}

impl BackupQuery {
    /// Everything, newest first, up to 1,000 items.
    pub fn new() -> Self {
        Self::default()
    }
    /// Only those with exactly this name.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
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
    /// Most items in the page: 1 to 1,000, the default.
    #[must_use]
    pub fn limit(mut self, items: u32) -> Self {
        self.limit = items;
        self
    }
    /// How many matching items to skip, counted behind the marker if there is one.
    #[must_use]
    pub fn offset(mut self, items: u64) -> Self {
        self.offset = items;
        self
    }
    /// Starts behind this item: the last of the page before.
    #[must_use]
    pub fn marker(mut self, id: BackupId) -> Self {
        self.marker = Some(id);
        self
    }
    /// Also counts all matches, which reads every record.
    #[must_use]
    pub fn with_total(mut self, on: bool) -> Self {
        self.with_total = on;
        self
    }

    fn matches(&self, backup: &Backup) -> bool {
        self.name.is_none() && self.status.is_none() && self.project.is_none()
            || self.name.as_ref().is_none_or(|name| backup.name.as_ref() == Some(name))
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
        if !(1..=MAX_PAGE).contains(&query.limit) {
            let why = format!("a page has 1 to {MAX_PAGE} items, {} given", query.limit);
            return Err(Error::invalid("limit", Violation::Page, why));
        }
        let table: &dyn Table = &*self.inner.engine;
        let mut index = tables::backups(query.volume);
        if let Some(id) = query.marker {
            index = index.after(tables::need_backup(table, id)?.created, id.object());
        }
        let (mut items, mut more, mut skip): (Vec<Backup>, _, _) = (Vec::new(), false, query.offset);
        self.each_backup(index, &mut |backup| {
            if !query.matches(&backup) {
                return true;
            }
            if skip > 0 {
                skip -= 1;
            } else if items.len() == query.limit as usize {
                more = true;
            } else {
                items.push(backup);
            }
            !more
        })?;
        let mut total = query.with_total.then_some(0);
        if let Some(total) = &mut total {
            self.each_backup(tables::backups(query.volume), &mut |backup| {
                *total += u64::from(query.matches(&backup));
                true
            })?;
        }
        let next = if more { items.last().map(|b| b.id) } else { None };
        Ok(Page { items, next, total })
    }

    /// Visits backups in the order of the index until `each` says false.
    fn each_backup(&self, mut index: catalogue::Index, each: &mut dyn FnMut(Backup) -> bool) -> Result<()> {
        let table: &dyn Table = &*self.inner.engine;
        loop {
            let ids = index.next_ids(table, usize::MAX)?;
            if ids.is_empty() {
                return Ok(());
            }
            for object in ids {
                let id = BackupId::new(Uuid::from_bytes(object.0));
                // Records are read outside of the index scan: one may have gone.
                let Some(record) = tables::backup(table, id)? else { continue };
                if !each(self.inner.describe_backup(id, record)) {
                    return Ok(());
                }
            }
        }
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

    fn backup_status(&self, id: BackupId, record: &BackupRecord) -> BackupStatus {
        self.backups.passing.lock().get(&id).copied().unwrap_or(record.status)
    }
}

/// What a backup is to be.
pub(crate) struct NewBackup {
    pub(crate) container: String,
    pub(crate) name: Option<String>,
    pub(crate) description: Option<String>,
    pub(crate) id: Option<BackupId>,
    pub(crate) full: bool,
    pub(crate) piece_bytes: u64,
}

/// A backup that is being made.
pub(crate) struct Begun {
    pub(crate) id: BackupId,
    pub(crate) record: BackupRecord,
    pub(crate) snapshot: SnapshotId,
    pub(crate) volume_name: Option<String>,
    /// The backup and snapshot before it, where an incremental one is possible.
    pub(crate) base: Option<(BackupId, BackupRecord, SnapshotId)>,
    /// `None` once it is decided what becomes of the snapshot.
    run: Option<BackupRun>,
    _passing: Passing,
}

/// What a backup has become.
pub(crate) struct Made {
    pub(crate) parent: Option<BackupId>,
    pub(crate) objects: u64,
    pub(crate) stored_bytes: u64,
    pub(crate) manifest: [u8; 32],
}

/// A backup that is being read or deleted: nobody else does so meanwhile.
pub(crate) struct Held {
    pub(crate) record: BackupRecord,
    _passing: Passing,
}

/// The steps that [`crate::backup`] takes. Each is one transaction.
impl Pool {
    pub(crate) fn claims(&self) -> &Arc<Claims> {
        &self.inner.backups.claims
    }

    pub(crate) fn backup_target(&self, name: &str) -> Result<Arc<dyn BackupTarget>> {
        let targets = self.inner.backups.targets.lock();
        targets
            .get(name)
            .cloned()
            .ok_or_else(|| Error::NotFound { object: "backup target", id: name.to_owned() })
    }

    pub(crate) fn backup_record(&self, id: BackupId) -> Result<BackupRecord> {
        tables::need_backup(&*self.inner.engine, id)
    }

    pub(crate) fn need_writable(&self) -> Result<()> {
        if self.is_read_only() { Err(Error::ReadOnly { object: "pool" }) } else { Ok(()) }
    }

    pub(crate) fn start_backup(&self, volume: VolumeId, new: NewBackup) -> Result<Begun> {
        check_text("name", new.name.as_deref())?;
        check_text("description", new.description.as_deref())?;
        let claim = |batch: &Batch<'_>| batch.claim_id("backup", new.id.map(BackupId::raw));
        // Before anything is done, so that an id that is taken leaves no trace.
        let id = BackupId::new(self.transact(|batch| claim(batch))?);
        let run = self.begin_backup(volume, SnapshotSpec::new())?;
        let (snapshot, point) = (run.snapshot(), self.snapshot(run.snapshot())?);
        let source = self.volume(volume)?;
        let record = BackupRecord {
            status: BackupStatus::Error,
            incremental: false,
            has_dependent: false,
            size_bytes: point.size_bytes,
            created: point.created_at_micros,
            updated: None,
            volume,
            snapshot: Some(snapshot),
            parent: None,
            pool: self.uuid(),
            taken: point.created_at_micros,
            objects: 0,
            stored_bytes: 0,
            piece_bytes: new.piece_bytes,
            manifest: [0; 32],
            container: new.container.clone(),
            name: new.name.clone(),
            description: new.description.clone(),
            zone: Some(source.zone),
            volume_type: source.volume_type,
            project: Some(source.project.id),
            fail_reason: Some(NOT_FINISHED.into()),
        };
        let (base, passing) = self.inner.transact(|batch| {
            let wanted = Some(id.raw());
            batch.claim_id("backup", wanted)?;
            let base = if new.full { None } else { batch.usable_base(volume, &new)? };
            batch.stage(|stage| tables::insert_backup(stage, id, &record))?;
            Ok((base, self.inner.backups.pass(id, BackupStatus::Creating)))
        })?;
        let volume_name = source.name;
        Ok(Begun { id, record, snapshot, volume_name, base, run: Some(run), _passing: passing })
    }

    pub(crate) fn finish_backup(&self, begun: &mut Begun, made: Made) -> Result<()> {
        let (id, volume, snapshot) = (begun.id, begun.record.volume, begun.snapshot);
        let mut record = begun.record.clone();
        record.status = BackupStatus::Available;
        record.fail_reason = None;
        record.incremental = made.parent.is_some();
        record.parent = made.parent;
        record.objects = made.objects;
        record.stored_bytes = made.stored_bytes;
        record.manifest = made.manifest;
        let Some(run) = begun.run.take() else { return Err(Error::Closed) };
        run.finish_with(|batch| {
            let parent = match made.parent {
                Some(id) => tables::backup(batch.table(), id)?.map(|record| (id, record)),
                None => None,
            };
            batch.stage(|stage| {
                tables::update_backup(stage, id, &record)?;
                tables::set_base(stage, volume, Some(Base { backup: id, snapshot }));
                match parent {
                    Some((parent, mut record)) => {
                        record.has_dependent = true;
                        tables::update_backup(stage, parent, &record)
                    }
                    None => Ok(()),
                }
            })
        })?;
        Ok(())
    }

    /// Ends a backup that failed (`why`), or that the caller cancelled: then it leaves no record.
    pub(crate) fn abandon_backup(&self, mut begun: Begun, why: Option<String>) -> Result<()> {
        drop(begun.run.take());
        let (id, mut record) = (begun.id, begun.record.clone());
        self.inner.transact(|batch| {
            batch.stage(|stage| match why {
                Some(why) => {
                    record.fail_reason = Some(shortened(why));
                    record.snapshot = None;
                    tables::update_backup(stage, id, &record)
                }
                None => tables::remove_backup(stage, id, &record),
            })
        })
    }

    /// Takes a backup that is available for reading.
    pub(crate) fn begin_reading_backup(&self, id: BackupId, op: &'static str) -> Result<Held> {
        let take = |table: &dyn Table| {
            let record = tables::need_backup(table, id)?;
            match self.inner.backup_status(id, &record) {
                BackupStatus::Available => {}
                status => return Err(backup_status(id, status, op)),
            }
            let passing = self.inner.backups.pass(id, BackupStatus::Restoring);
            Ok(Held { record, _passing: passing })
        };
        if self.is_read_only() {
            // There is nobody to race with but other readers, who do no harm.
            return take(&*self.inner.engine);
        }
        self.inner.transact(|batch| take(batch.table()))
    }

    /// Says that a backup is no longer whole, before anything of it is deleted.
    pub(crate) fn begin_deleting_backup(&self, id: BackupId) -> Result<Held> {
        self.inner.transact(|batch| {
            let mut record = tables::need_backup(batch.table(), id)?;
            match batch.inner.backup_status(id, &record) {
                BackupStatus::Available | BackupStatus::Error => {}
                status => return Err(backup_status(id, status, "delete")),
            }
            if record.pool != batch.inner.engine.uuid() {
                let why =
                    format!("backup {id} belongs to pool {}: delete it there, forget it here", record.pool);
                return Err(Error::Unsupported(why));
            }
            record.status = BackupStatus::Error;
            record.fail_reason = Some(NOT_DELETED.into());
            record.updated = Some(batch.now());
            batch.stage(|stage| tables::update_backup(stage, id, &record))?;
            let passing = batch.inner.backups.pass(id, BackupStatus::Deleting);
            Ok(Held { record, _passing: passing })
        })
    }

    pub(crate) fn finish_deleting_backup(&self, id: BackupId, held: Held) -> Result<()> {
        let gone = self.inner.transact(|batch| batch.remove_backup(id, &held.record))?;
        drop(gone);
        Ok(())
    }

    /// Removes the record of a backup and leaves the target as it is. An [import](Self::import_backups) brings it
    /// back. For backups of other pools, and for those whose target is gone. Durable on return.
    ///
    /// # Errors
    /// `NotFound`; `InvalidState` while a call works on it; `ReadOnly`, `Io`, `Poisoned`, `Closed`.
    pub fn forget_backup(&self, id: BackupId) -> Result<()> {
        let gone = self.inner.transact(|batch| {
            let record = tables::need_backup(batch.table(), id)?;
            match batch.inner.backup_status(id, &record) {
                BackupStatus::Available | BackupStatus::Error => batch.remove_backup(id, &record),
                status => Err(backup_status(id, status, "forget")),
            }
        })?;
        drop(gone);
        Ok(())
    }

    /// Adds the record of a backup that was found in a target; false when it is known.
    pub(crate) fn adopt_backup(&self, id: BackupId, mut record: BackupRecord) -> Result<bool> {
        self.inner.transact(|batch| {
            if tables::backup(batch.table(), id)?.is_some() {
                return Ok(false);
            }
            batch.claim_id("backup", Some(id.raw()))?;
            // Whose it is does not stand in the target: the projects of one pool mean nothing to another.
            let project = match catalogue::volume(batch.table(), record.volume)? {
                Some(volume) => volume.common.project,
                None => 0,
            };
            record.project = Some(projects::by_number(batch.table(), project)?.id);
            batch.stage(|stage| tables::insert_backup(stage, id, &record))?;
            Ok(true)
        })
    }
}

impl Batch<'_> {
    fn usable_base(
        &self,
        volume: VolumeId,
        new: &NewBackup,
    ) -> Result<Option<(BackupId, BackupRecord, SnapshotId)>> {
        let Some(base) = tables::base_of(self.table(), volume)? else { return Ok(None) };
        let Some(record) = tables::backup(self.table(), base.backup)? else { return Ok(None) };
        let usable = self.inner.backup_status(base.backup, &record) != BackupStatus::Deleting
            && record.status == BackupStatus::Available
            && record.container == new.container
            && record.piece_bytes == new.piece_bytes
            && catalogue::snapshot(self.table(), base.snapshot)?.is_some_and(|s| s.volume == volume);
        Ok(usable.then_some((base.backup, record, base.snapshot)))
    }

    /// Removes the record of a backup. Its snapshot goes too where the next backup would have begun from it: without
    /// its backup nothing can. One that is held or attached stays, and is the caller's to delete.
    fn remove_backup(&mut self, id: BackupId, record: &BackupRecord) -> Result<Option<Deletion>> {
        let parent = match record.parent {
            Some(parent) => tables::backup(self.table(), parent)?.map(|r| (parent, r)),
            None => None,
        };
        let base = tables::base_of(self.table(), record.volume)?.filter(|base| base.backup == id);
        self.stage(|stage| {
            tables::remove_backup(stage, id, record)?;
            if let Some((parent, mut record)) = parent {
                record.has_dependent = false;
                tables::update_backup(stage, parent, &record)?;
            }
            if base.is_some() {
                tables::set_base(stage, record.volume, None);
            }
            Ok(())
        })?;
        Ok(base.and_then(|base| self.delete_snapshot(base.snapshot).ok()))
    }
}

fn backup_status(id: BackupId, status: BackupStatus, op: &'static str) -> Error {
    let rule = StateRule::Status;
    Error::InvalidState { object: "backup", id: id.to_string(), status: status.as_str(), op, rule }
}

fn check_text(field: &'static str, text: Option<&str>) -> Result<()> {
    match text.map(str::len) {
        Some(len) if len > MAX_TEXT_BYTES => {
            let why = format!("at most {MAX_TEXT_BYTES} bytes are allowed, {len} given");
            Err(Error::invalid(field, Violation::TooLong, why))
        }
        _ => Ok(()),
    }
}

/// At most 255 bytes of it.
fn shortened(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
    text
}
