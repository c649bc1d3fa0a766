//! Bringing the content of a backup back, into a new volume or an existing one.

use std::ops::ControlFlow;

use super::digest::Digest;
use super::manifest::Manifest;
use super::piece::{self, Piece};
use super::progress::{BackupProgress, Meter};
use super::shelf::Shelf;
use super::table::{PieceRef, TABLE_PIECES};
use crate::error::{Error, Result, Violation};
use crate::memory;
use crate::pool::{Disk, Pool, Volume, VolumeSpec, VolumeStatus};
use crate::units::{BLOCK, BLOCK_BYTES, BackupId, VolumeId};

impl Pool {
    /// Makes a volume with the content of a backup, as [`VolumeSpec::from_backup`] describes it: at least as large as
    /// the backup, and in its zone, unless another pool has made it. What the backup has not reads zero. The volume is
    /// `creating` until all of its content is there; if the call fails, is ended by `progress` or is cut off, there is
    /// none. Every piece is verified. Durable on return.
    ///
    /// # Errors
    /// `InvalidArgument` for a spec that names no backup, a size below that of the backup, another zone, or whatever
    /// [`begin_volume`](Self::begin_volume) refuses; `NotFound` for the backup, or when its target is not connected;
    /// `InvalidState` when the backup is not `available`, which it is not either while another call reads it;
    /// `Corrupt` when something of the backup is lost or damaged, `Target` when the target fails; `Cancelled`,
    /// `LimitExceeded`, `AlreadyExists`, `ReadOnly`, `OutOfSpace`, `Io`, `Poisoned`, `Closed`.
    pub fn create_volume_from_backup(
        &self,
        spec: VolumeSpec,
        progress: &mut dyn FnMut(BackupProgress) -> ControlFlow<()>,
    ) -> Result<Volume> {
        self.need_writable()?;
        let Some((backup, size_bytes)) = spec.backup_source() else {
            let why = "it must be that of a volume from a backup";
            return Err(Error::invalid("spec", Violation::Missing, why));
        };
        let held = self.begin_reading_backup(backup, "restore")?;
        let least = held.record.size_bytes;
        let size_bytes = size_bytes.unwrap_or(least);
        if size_bytes < least {
            let why = format!("at least the {least} bytes of the backup are needed, {size_bytes} given");
            return Err(Error::invalid("size_bytes", Violation::BelowBackup, why));
        }
        let mut spec = spec.size(size_bytes);
        // Zones of another pool are not ours, and one that has got another name since is not known by this one.
        let zones = self.zones()?;
        let known =
            |zone: &&String| held.record.pool == self.uuid() && zones.iter().any(|z| z.name == **zone);
        if let Some(zone) = held.record.zone.as_ref().filter(known) {
            if let Some(wanted) = spec.wanted_zone().filter(|wanted| wanted != zone) {
                let why = format!("the backup is in {zone:?}, {wanted:?} given");
                return Err(Error::invalid("zone", Violation::BackupZone, why));
            }
            spec = spec.zone(zone);
        }
        let target = self.backup_target(&held.record.container)?;
        let shelf = Shelf::new(&*target, held.record.pool);
        let manifest = shelf.manifest_of(backup, &held.record.manifest)?;
        let filling = self.begin_volume(spec, VolumeStatus::Creating)?;
        let meter = Meter::new("create_volume_from_backup", manifest.size_bytes, progress);
        Fill { shelf, manifest: &manifest, disk: filling.disk()?, old: None, meter }.run()?;
        filling.finish()
    }

    /// Gives an existing volume the content of a backup, of this or any other volume. Only what differs is written,
    /// so what the volume shares with its snapshots stays shared where it is the same; behind the size of the
    /// backup the volume reads zero. Snapshots of the volume stay as they are. Every piece is verified before it is
    /// written. Durable on return.
    ///
    /// While it runs the status of the volume is `restoring-backup`. If it fails, is ended by `progress` or is cut
    /// off, the volume is neither what it was nor what the backup is; its status is `error_restoring`, and all that
    /// can be done with it is to delete it.
    ///
    /// # Errors
    /// `NotFound` for backup or volume, or when the target is not connected; `InvalidState` when the backup or the
    /// volume is not `available`; `InvalidArgument` when the volume is smaller than the backup. These, and a
    /// manifest that is lost or damaged, change nothing. Later: `Corrupt` when something of the backup is lost or
    /// damaged, `Target` when the target fails; `Cancelled`, `OutOfSpace`, `Io`, `Poisoned`. `ReadOnly`, `Closed`.
    pub fn restore_backup(
        &self,
        backup: BackupId,
        volume: VolumeId,
        progress: &mut dyn FnMut(BackupProgress) -> ControlFlow<()>,
    ) -> Result<Volume> {
        self.need_writable()?;
        let held = self.begin_reading_backup(backup, "restore")?;
        let (have, want) = (self.volume(volume)?.size_bytes, held.record.size_bytes);
        // A volume only grows, so this stays true.
        if have < want {
            let why = format!("a volume of {have} bytes is too small for a backup of {want} bytes");
            return Err(Error::invalid("volume", Violation::BelowBackup, why));
        }
        let target = self.backup_target(&held.record.container)?;
        let shelf = Shelf::new(&*target, held.record.pool);
        let manifest = shelf.manifest_of(backup, &held.record.manifest)?;
        let filling = self.begin_restore(volume)?;
        let piece_bytes = manifest.piece_bytes as usize;
        let old =
            Old { range: memory::filled(0, piece_bytes)?, encoded: memory::with_room(piece_bytes + 4096)? };
        let meter = Meter::new("restore_backup", manifest.size_bytes, progress);
        Fill { shelf, manifest: &manifest, disk: filling.disk()?, old: Some(old), meter }.run()?;
        filling.finish()
    }
}

struct Fill<'a> {
    shelf: Shelf<'a>,
    manifest: &'a Manifest,
    disk: &'a Disk,
    /// Room to look at what is there; `None` when nothing is.
    old: Option<Old>,
    meter: Meter<'a>,
}

struct Old {
    range: Vec<u8>,
    encoded: Vec<u8>,
}

impl Fill<'_> {
    fn run(mut self) -> Result<()> {
        let size_bytes = self.disk.size_bytes();
        self.meter.reach(0)?;
        let piece_bytes = self.manifest.piece_bytes;
        // Everything before is as the backup has it.
        let mut done = 0;
        for reference in &self.manifest.tables {
            let table = self.shelf.table(self.manifest, reference)?;
            for (index, piece) in &table.pieces {
                let start = (reference.number * TABLE_PIECES + u64::from(*index)) * piece_bytes;
                self.clear(done, start)?;
                self.piece(start, piece)?;
                done = (start + piece_bytes).min(size_bytes);
                self.meter.reach(done)?;
            }
        }
        self.clear(done, size_bytes)?;
        self.meter.reach(size_bytes)
    }

    fn clear(&self, from: u64, to: u64) -> Result<()> {
        if self.old.is_some() && from < to {
            self.disk.discard(from, to - from)?;
        }
        Ok(())
    }

    fn piece(&mut self, start: u64, reference: &PieceRef) -> Result<()> {
        let blocks = self.manifest.piece_blocks();
        let piece_bytes = self.manifest.piece_bytes;
        // What the table says of ranges was checked: `start` lies in the volume.
        let within = (self.manifest.size_bytes - start).min(piece_bytes) / BLOCK_BYTES;
        if let Some(old) = &mut self.old {
            let len = (self.disk.size_bytes() - start).min(piece_bytes) as usize;
            let (range, behind) = old.range.split_at_mut(len);
            behind.fill(0);
            // What cannot be read is not the same, whatever it is.
            let read = self.disk.read_at(range, start);
            if read.is_ok()
                && piece::encode(&old.range, &mut old.encoded) == u32::from(reference.stored)
                && Digest::of(&old.encoded) == reference.digest
            {
                return Ok(());
            }
        }
        let bytes = self.shelf.piece(reference, blocks)?;
        self.meter.moved(bytes.len() as u64);
        let piece = Piece::decode(&bytes, blocks, within as usize)?;
        let end = (start + piece_bytes).min(self.disk.size_bytes());
        let mut done = start;
        for (first, run) in piece.runs() {
            let at = start + (first * BLOCK) as u64;
            self.clear(done, at)?;
            self.disk.write_at(run, at)?;
            done = at + run.len() as u64;
        }
        self.clear(done, end)
    }
}
