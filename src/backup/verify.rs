//! Reading a backup without restoring it.

use std::ops::{ControlFlow, Range};

use serde::Serialize;

use super::manifest::Manifest;
use super::piece::Piece;
use super::progress::{BackupProgress, Meter};
use super::shelf::{Kind, Shelf};
use super::table::TABLE_PIECES;
use crate::error::{Corruption, Error, Result};
use crate::pool::Pool;
use crate::units::{BLOCK_BYTES, BackupId};

/// How many damages a report names; all are counted.
const NAMED: usize = 1000;

/// What is wrong with an object of a backup.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[non_exhaustive]
pub enum DamageKind {
    /// It is not there. The next backup of the volume that needs it sends it again.
    Lost,
    /// It is there, and is not what was put. Delete it from the target, and it is lost.
    Damaged,
}

/// An object of a backup that is lost or damaged.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[non_exhaustive]
pub struct BackupDamage {
    /// Its name in the target.
    pub object: String,
    /// What is wrong.
    pub kind: DamageKind,
    /// The bytes of the volume that cannot be restored for it, half-open.
    pub range: Range<u64>,
    /// What was expected and what was found; `None` when it is lost.
    pub corruption: Option<Corruption>,
}

/// What [`Pool::verify_backup`] has found.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct BackupReport {
    /// Objects that were read and are what they were.
    pub good_objects: u64,
    /// Objects that are lost.
    pub lost_objects: u64,
    /// Objects that are damaged.
    pub damaged_objects: u64,
    /// The damages in the order of the volume, the first 1,000 of them.
    pub damages: Vec<BackupDamage>,
}

impl BackupReport {
    /// Whether the backup can be restored, every byte of it.
    pub fn is_whole(&self) -> bool {
        self.lost_objects == 0 && self.damaged_objects == 0
    }
}

impl Pool {
    /// Reads everything that a backup is made of, and checks it as a restore would. Writes nothing, to the pool or
    /// to the target. While it runs the status of the backup is `restoring`.
    ///
    /// # Errors
    /// Damage is not an error but part of the report. `NotFound` for the backup, or when its target is not connected;
    /// `InvalidState` when it is not `available`; `Target` when the target fails; `Cancelled`, `Io`, `Closed`.
    pub fn verify_backup(
        &self,
        id: BackupId,
        progress: &mut dyn FnMut(BackupProgress) -> ControlFlow<()>,
    ) -> Result<BackupReport> {
        let held = self.begin_reading_backup(id, "verify")?;
        let target = self.backup_target(&held.record.container)?;
        let shelf = Shelf::new(&*target, held.record.pool);
        let mut meter = Meter::new("verify_backup", held.record.size_bytes, progress);
        meter.reach(0)?;
        let mut report = BackupReport::default();
        let whole = 0..held.record.size_bytes;
        let manifest = shelf.manifest_of(id, &held.record.manifest);
        if let Some(manifest) = report.take(manifest, || shelf.manifest_name(id), whole)? {
            report.tables(shelf, &manifest, &mut meter)?;
        }
        Ok(report)
    }
}

impl BackupReport {
    fn tables(&mut self, shelf: Shelf<'_>, manifest: &Manifest, meter: &mut Meter<'_>) -> Result<()> {
        let (blocks, piece_bytes) = (manifest.piece_blocks(), manifest.piece_bytes);
        let span = |start: u64, len: u64| start..(start + len).min(manifest.size_bytes);
        for reference in &manifest.tables {
            let first = reference.number * TABLE_PIECES;
            let range = span(first * piece_bytes, TABLE_PIECES * piece_bytes);
            let table = shelf.table(manifest, reference);
            let Some(table) = self.take(table, || shelf.name(Kind::Table, &reference.digest), range)? else {
                continue;
            };
            for (index, reference) in &table.pieces {
                let range = span((first + u64::from(*index)) * piece_bytes, piece_bytes);
                let within = ((range.end - range.start) / BLOCK_BYTES) as usize;
                let end = range.end;
                let piece = shelf.piece(reference, blocks).and_then(|bytes| {
                    Piece::decode(&bytes, blocks, within)?;
                    Ok(bytes.len() as u64)
                });
                let name = || shelf.name(Kind::Piece, &reference.digest);
                meter.moved(self.take(piece, name, range)?.unwrap_or(0));
                meter.reach(end)?;
            }
        }
        meter.reach(manifest.size_bytes)
    }

    /// Counts an object, or what is wrong with it. An error that is no damage goes on.
    fn take<T>(
        &mut self,
        object: Result<T>,
        name: impl FnOnce() -> String,
        range: Range<u64>,
    ) -> Result<Option<T>> {
        let corruption = match object {
            Ok(object) => {
                self.good_objects += 1;
                return Ok(Some(object));
            }
            Err(Error::Corrupt(corruption)) => corruption,
            Err(e) => return Err(e),
        };
        let lost = corruption.field == "object";
        *(if lost { &mut self.lost_objects } else { &mut self.damaged_objects }) += 1;
        if self.damages.len() < NAMED {
            let (kind, corruption) =
                if lost { (DamageKind::Lost, None) } else { (DamageKind::Damaged, Some(corruption)) };
            self.damages.push(BackupDamage { object: name(), kind, range, corruption });
        }
        Ok(None)
    }
}
