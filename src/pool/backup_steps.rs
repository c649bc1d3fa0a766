//! The steps that [`crate::backup`] takes: what a backup is while it is made, read or deleted. Each step is one
//! transaction; B1 to B3 of [`backups`](super::backups) hold between any two.

use std::sync::Arc;

pub(crate) use super::backup_records::BackupRecord;
use super::backup_records::{self as tables, Base};
use super::backups::{BackupStatus, Passing, check_text};
use super::batch::Batch;
use super::catalogue::{self, Table};
use super::deletion::Deletion;
use super::filling::BackupRun;
use super::limits::MAX_TEXT_BYTES;
use super::pool::Pool;
use super::projects;
use super::snapshot::SnapshotSpec;
use crate::error::{Error, Result, StateRule};
use crate::target::{BackupTarget, Claims};
use crate::units::{BackupId, SnapshotId, VolumeId};

/// Why a backup is in status `error` while nothing better is known.
const NOT_FINISHED: &str = "it was cut off before it was whole";
const NOT_DELETED: &str = "its deletion was cut off";

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

/// At most 255 bytes of it.
fn shortened(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
    text
}
