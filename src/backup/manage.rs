//! Deleting backups, and finding those that the pool does not know.

use uuid::Uuid;

use super::digest::Digest;
use super::manifest::Manifest;
use super::shelf::{MANIFESTS, Shelf, each_listed};
use crate::error::{Error, Result};
use crate::pool::Pool;
use crate::pool::backup_steps::BackupRecord;
use crate::pool::backups::{Backup, BackupStatus};
use crate::units::{BLOCK_BYTES, BackupId};

impl Pool {
    /// Deletes a backup, whole or not. No other backup needs anything of it. Durable on return, in the pool and in
    /// the target; the space in the target comes back with the next [sweep](Self::sweep_backups). The snapshot that
    /// an incremental backup would have begun from goes with its backup, so that the next one is full.
    ///
    /// If the target fails, the backup is in status `error`, and can be deleted again or be
    /// [forgotten](Self::forget_backup).
    ///
    /// # Errors
    /// `NotFound` for the backup, or when its target is not connected; `InvalidState` while it is being made,
    /// restored or deleted; `Unsupported` for the backup of another pool; `Target` when the target fails;
    /// `ReadOnly`, `Io`, `Poisoned`, `Closed`.
    pub fn delete_backup(&self, id: BackupId) -> Result<()> {
        let target = self.backup_target(&self.backup_record(id)?.container)?;
        let held = self.begin_deleting_backup(id)?;
        let shelf = Shelf::new(&*target, held.record.pool);
        shelf.delete(&shelf.manifest_name(id))?;
        shelf.sync()?;
        self.finish_deleting_backup(id, held)
    }

    /// Makes records of the backups in a target that this pool has none of: those of other pools, and its own that
    /// were [forgotten](Self::forget_backup), or made after the pool file was copied. They can be restored and
    /// verified. Returns the new records. Each is durable when the call returns, or fails at a later one. They belong
    /// to the project of their volume where this pool has it, and to the default project otherwise.
    ///
    /// Manifests that are damaged, or of a version that is not known, are left aside.
    ///
    /// # Errors
    /// `NotFound` when no such target is connected; `Target` when the target fails; `AlreadyExists` when the id of a
    /// backup names something else in this pool; `ReadOnly`, `OutOfSpace`, `Io`, `Poisoned`, `Closed`.
    pub fn import_backups(&self, target: &str) -> Result<Vec<Backup>> {
        self.need_writable()?;
        let object = self.backup_target(target)?;
        let mut found: Vec<(Uuid, BackupId)> = Vec::new();
        each_listed(&*object, MANIFESTS, &mut |listed| {
            let mut parts = listed.name[MANIFESTS.len()..].split('/');
            let ids = (parts.next().map(str::parse::<Uuid>), parts.next().map(str::parse::<BackupId>));
            if let (Some(Ok(pool)), Some(Ok(id))) = ids {
                found.push((pool, id));
            }
            Ok(())
        })?;
        let mut added = Vec::new();
        for (pool, id) in found {
            let shelf = Shelf::new(&*object, pool);
            let (manifest, digest) = match shelf.manifest(id) {
                Ok(Some(found)) => found,
                Ok(None) | Err(Error::Corrupt(_)) => continue,
                Err(e) => return Err(e),
            };
            if self.adopt_backup(id, record_of(target, manifest, digest))? {
                added.push(self.backup(id)?);
            }
        }
        Ok(added)
    }
}

fn record_of(target: &str, manifest: Manifest, digest: Digest) -> BackupRecord {
    BackupRecord {
        status: BackupStatus::Available,
        incremental: manifest.parent.is_some(),
        has_dependent: false,
        size_bytes: manifest.size_bytes,
        created: manifest.taken,
        updated: None,
        volume: manifest.volume,
        snapshot: None,
        parent: manifest.parent,
        pool: manifest.pool,
        taken: manifest.taken,
        objects: 1 + manifest.tables.len() as u64 + manifest.pieces,
        stored_bytes: manifest.stored.saturating_mul(BLOCK_BYTES),
        piece_bytes: manifest.piece_bytes,
        manifest: digest.0,
        container: target.to_owned(),
        name: manifest.name,
        description: manifest.description,
        zone: manifest.zone,
        volume_type: manifest.volume_type,
        // Said when it is adopted.
        project: None,
        fail_reason: None,
    }
}
