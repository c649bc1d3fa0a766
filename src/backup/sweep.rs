//! Removing what nothing names any more.

use std::collections::HashSet;
use std::ops::ControlFlow;

use serde::Serialize;
use uuid::Uuid;

use super::progress::{BackupProgress, Meter};
use super::shelf::{Kind, MANIFESTS, Shelf, Stock, each_listed};
use crate::error::{Error, Result};
use crate::pool::Pool;
use crate::units::BackupId;

/// What a sweep has removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Swept {
    /// Objects that were removed.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Objects that are there still.
    pub kept: u64,
}

impl Pool {
    /// Removes from a target what this pool has put there and no backup in it needs: what deleted backups leave, and
    /// those that were cut off. Other pools' objects are not looked at. Backups may be made, restored and verified
    /// meanwhile; a sweep that is cut off anywhere is begun anew. Durable on return.
    ///
    /// Every manifest in the target counts, whether the pool has a record of it or not. Takes 40 bytes of memory for
    /// each object of the pool in the target.
    ///
    /// Do not sweep from a copy of a pool while the original makes backups: they have one id, and neither knows of
    /// the other.
    ///
    /// # Errors
    /// `NotFound` when no such target is connected; `Busy` while another sweep runs; `Corrupt` when a manifest or
    /// table is lost or damaged: nothing is removed then, because nobody can say what it needs. Delete that backup
    /// first; [`verify_backup`](Self::verify_backup) tells which it is. `Target` when the target fails, `Cancelled`,
    /// `ReadOnly`, `Closed`.
    pub fn sweep_backups(
        &self,
        target: &str,
        progress: &mut dyn FnMut(BackupProgress) -> ControlFlow<()>,
    ) -> Result<Swept> {
        // A pool that is open for writing is open nowhere else (K4).
        self.need_writable()?;
        let object = self.backup_target(target)?;
        let Some(sweeping) = self.claims().sweep() else {
            let why = "another sweep of this pool's backups runs";
            return Err(Error::Busy { object: "backup target", id: target.to_owned(), why });
        };
        let shelf = Shelf::new(&*object, self.uuid());
        let (tables, pieces) = (shelf.stock(Kind::Table)?, shelf.stock(Kind::Piece)?);
        let total = (tables.items().len() + pieces.items().len()) as u64;
        let mut meter = Meter::new("sweep_backups", total, progress);
        meter.reach(0)?;
        let mut marks =
            Marks { tables: vec![false; tables.items().len()], pieces: vec![false; pieces.items().len()] };
        // What a deletion has removed must not come back after its pieces have gone.
        shelf.sync()?;
        for id in manifests(&*object, self.uuid())? {
            // One that has gone since it was listed needs nothing.
            let Some((manifest, _)) = shelf.manifest(id)? else { continue };
            let mut seen = HashSet::new();
            for reference in &manifest.tables {
                meter.reach(0)?;
                let at = tables.find(&reference.digest);
                // Tables that backups share are read once; one that came after the listing is not looked for.
                let fresh = match at {
                    Some(n) => !std::mem::replace(&mut marks.tables[n], true),
                    None => seen.insert(reference.digest),
                };
                if !fresh {
                    continue;
                }
                for piece in shelf.table(&manifest, reference)?.pieces.values() {
                    if let Some(n) = pieces.find(&piece.digest) {
                        marks.pieces[n] = true;
                    }
                }
            }
        }
        let mut swept = Swept::default();
        // Tables first: one that stayed without its pieces would be taken over by nobody, but would look whole.
        for (kind, stock, marks) in
            [(Kind::Table, &tables, &marks.tables), (Kind::Piece, &pieces, &marks.pieces)]
        {
            sweep(shelf, kind, stock, marks, &sweeping, &mut swept, &mut meter)?;
        }
        shelf.sync()?;
        Ok(swept)
    }
}

struct Marks {
    tables: Vec<bool>,
    pieces: Vec<bool>,
}

fn sweep(
    shelf: Shelf<'_>,
    kind: Kind,
    stock: &Stock,
    marks: &[bool],
    sweeping: &crate::target::Sweeping,
    swept: &mut Swept,
    meter: &mut Meter<'_>,
) -> Result<()> {
    for ((digest, len), marked) in stock.items().iter().zip(marks) {
        let gone = if *marked {
            None
        } else {
            sweeping.delete(digest.0, || shelf.delete(&shelf.name(kind, digest))).transpose()?
        };
        match gone {
            Some(()) => {
                swept.objects += 1;
                swept.bytes += len;
            }
            None => swept.kept += 1,
        }
        meter.reach(swept.objects + swept.kept)?;
    }
    Ok(())
}

/// The backups of a pool that have a manifest in the target.
fn manifests(target: &dyn crate::target::BackupTarget, pool: Uuid) -> Result<Vec<BackupId>> {
    let prefix = format!("{MANIFESTS}{pool}/");
    let mut ids = Vec::new();
    each_listed(target, &prefix, &mut |listed| {
        ids.extend(listed.name[prefix.len()..].parse::<BackupId>().ok());
        Ok(())
    })?;
    Ok(ids)
}
