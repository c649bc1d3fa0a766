//! Making a backup.

use std::collections::{BTreeSet, HashSet, btree_map::Entry};
use std::iter::Peekable;
use std::ops::{ControlFlow, Range};
use std::thread;

use super::digest::Digest;
use super::manifest::{MAX_TABLES, Manifest, TableRef};
use super::piece::{self, DEFAULT_PIECE_BYTES, MAX_PIECE_BYTES, MIN_PIECE_BYTES, is_piece_bytes};
use super::progress::{BackupProgress, Meter};
use super::send::{Senders, Shared};
use super::shelf::{Kind, Shelf, Stock};
use super::table::{PieceRef, TABLE_PIECES, Table};
use crate::error::{Error, Limited, Result, Violation};
use crate::memory;
use crate::pool::backup_steps::{Begun, Made, NewBackup};
use crate::pool::backups::Backup;
use crate::pool::{Change, Diff, Disk, ExtentKind, Pool};
use crate::target::{Claimant, Claimed};
use crate::units::{BackupId, VolumeId};

/// Most objects on their way at once.
const MAX_SENDERS: usize = 64;

/// What a new backup is to be.
#[derive(Clone, Debug)]
#[non_exhaustive]
#[must_use]
pub struct BackupSpec {
    container: String,
    name: Option<String>,
    description: Option<String>,
    id: Option<BackupId>,
    full: bool,
    piece_bytes: u64,
    senders: usize,
}

impl BackupSpec {
    /// A backup into the target that is connected under this name.
    pub fn new(target: impl Into<String>) -> Self {
        Self {
            container: target.into(),
            name: None,
            description: None,
            id: None,
            full: false,
            piece_bytes: DEFAULT_PIECE_BYTES,
            senders: 4,
        }
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
    /// The id to give it, in place of a fresh one.
    pub fn id(mut self, id: BackupId) -> Self {
        self.id = Some(id);
        self
    }
    /// Whether the whole volume is read even where an incremental backup is possible. What the target has already
    /// is not sent again either way. Off by default.
    pub fn full(mut self, on: bool) -> Self {
        self.full = on;
        self
    }
    /// Bytes in a piece, the unit in which content is stored and shared: a power of two from 64 KiB to 4 MiB, 256 KiB by
    /// default. Smaller ones send less where changes are scattered, and make more objects. A backup of another
    /// piece size than the one before reads everything.
    pub fn piece_bytes(mut self, bytes: u64) -> Self {
        self.piece_bytes = bytes;
        self
    }
    /// How many objects are on their way to the target at once: 1 to 64, 4 by default. Memory for twice as many
    /// pieces is used.
    pub fn senders(mut self, count: usize) -> Self {
        self.senders = count;
        self
    }

    fn check(&self) -> Result<()> {
        if !is_piece_bytes(self.piece_bytes) {
            let (least, most, given) = (MIN_PIECE_BYTES, MAX_PIECE_BYTES, self.piece_bytes);
            let why = format!("it must be a power of two from {least} to {most} bytes, {given} given");
            return Err(Error::invalid("piece_bytes", Violation::Range, why));
        }
        if !(1..=MAX_SENDERS).contains(&self.senders) {
            let why = format!("1 to {MAX_SENDERS} are possible, {} given", self.senders);
            return Err(Error::invalid("senders", Violation::Range, why));
        }
        Ok(())
    }
}

impl Pool {
    /// Makes a backup of a volume, attached or not, as it is now. The volume may be read and written meanwhile; its
    /// status is `backing-up`.
    ///
    /// It is read from a snapshot whose name begins with `autobk_snapshot_`, which stays until the next backup of
    /// the volume and makes that one incremental: only what has changed since is read, and only what the target
    /// does not have is sent. Without that snapshot, or without the backup it belongs to, everything is read. What
    /// the target has lost of anything this backup needs is noticed, by name and length, and sent again.
    ///
    /// On return the backup is durable in the target. If the call fails, the record stays in status `error` and
    /// says why; if `progress` ends it, nothing stays but objects in the target, which the next backup uses or the
    /// next sweep removes.
    ///
    /// # Errors
    /// `InvalidArgument` for a name, description or number out of range; `NotFound` for the volume, or when no such
    /// target is connected; `InvalidState` when the volume is neither `available` nor `in-use`; `AlreadyExists` for
    /// a supplied id that is taken; `Target` when the target fails, `Corrupt` when something of the volume cannot be
    /// read, `LimitExceeded` when the manifest would pass 64 MiB; `Cancelled`, `ReadOnly`, `OutOfSpace`, `Io`,
    /// `Poisoned`, `Closed`.
    pub fn create_backup(
        &self,
        volume: VolumeId,
        spec: BackupSpec,
        progress: &mut dyn FnMut(BackupProgress) -> ControlFlow<()>,
    ) -> Result<Backup> {
        spec.check()?;
        let target = self.backup_target(&spec.container)?;
        let BackupSpec { container, name, description, id, full, piece_bytes, senders } = spec;
        let new = NewBackup { container, name, description, id, full, piece_bytes };
        let mut begun = self.start_backup(volume, new)?;
        // From here on everything that the target has may be counted on, once it is claimed.
        let claimant = self.claims().begin();
        let shelf = Shelf::new(&*target, self.uuid());
        let mut meter = Meter::new("create_backup", begun.record.size_bytes, progress);
        let made = copy(self, &begun, shelf, &claimant, senders, &mut meter);
        match made.and_then(|made| self.finish_backup(&mut begun, made)) {
            Ok(()) => {
                let id = begun.id;
                drop(begun);
                self.backup(id)
            }
            Err(e) => {
                let why = (!matches!(e, Error::Cancelled { .. })).then(|| said(&e));
                // If that fails too, the record says what is true all the same, and the next open tidies up.
                let _ = self.abandon_backup(begun, why);
                Err(e)
            }
        }
    }
}

/// The message of an error with those it came from.
fn said(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        text = format!("{text}: {e}");
        cause = e.source();
    }
    text
}

struct Copy<'a> {
    begun: &'a Begun,
    shelf: Shelf<'a>,
    claimant: &'a Claimant,
    senders: Senders<'a>,
    pieces: Stock,
    tables: Stock,
    disk: Disk,
    /// Claimed, but not there, and not sent yet.
    missing: HashSet<Digest>,
    /// A range as it is read, and as it is stored.
    range: Vec<u8>,
    encoded: Vec<u8>,
}

fn copy(
    pool: &Pool,
    begun: &Begun,
    shelf: Shelf<'_>,
    claimant: &Claimant,
    senders: usize,
    meter: &mut Meter<'_>,
) -> Result<Made> {
    meter.reach(0)?;
    let record = &begun.record;
    let disk = pool.attach_snapshot(begun.snapshot)?;
    // A manifest that is lost or damaged is nothing to begin from; one that cannot be got now is an error.
    let parent = match &begun.base {
        None => None,
        Some((id, base, snapshot)) => match shelf.manifest_of(*id, &base.manifest) {
            Ok(manifest) => Some((manifest, *snapshot)),
            Err(Error::Corrupt(_)) => None,
            Err(e) => return Err(e),
        },
    };
    let (pieces, tables) = (shelf.stock(Kind::Piece)?, shelf.stock(Kind::Table)?);
    let changes = match &parent {
        Some((_, snapshot)) => pool.diff(*snapshot, begun.snapshot)?,
        None => pool.allocated(begun.snapshot)?,
    };
    let mut manifest = Manifest {
        pool: record.pool,
        backup: begun.id,
        volume: record.volume,
        parent: parent.as_ref().map(|(m, _)| m.backup),
        size_bytes: record.size_bytes,
        taken: record.taken,
        piece_bytes: record.piece_bytes,
        pieces: 0,
        stored: 0,
        name: record.name.clone(),
        description: record.description.clone(),
        zone: record.zone.clone(),
        volume_type: record.volume_type.clone(),
        volume_name: begun.volume_name.clone(),
        tables: Vec::new(),
    };
    let parent = parent.map(|(manifest, _)| manifest);
    let shared = Shared::default();
    thread::scope(|scope| {
        let piece_bytes = record.piece_bytes as usize;
        // Before anything is copied and any sender runs: there may be no memory for it.
        let range = memory::filled(0, piece_bytes)?;
        let encoded = memory::with_room(piece_bytes + 4096)?;
        let mut copy = Copy {
            begun,
            shelf,
            claimant,
            senders: Senders::start(shelf, senders, &shared, scope),
            pieces,
            tables,
            disk,
            missing: HashSet::new(),
            range,
            encoded,
        };
        copy.tables(parent.as_ref(), changes, &mut manifest, meter)?;
        copy.senders.finish()
    })?;
    // K1: first what it names, then the manifest.
    shelf.sync()?;
    let (bytes, digest) = manifest.encode();
    meter.reach(record.size_bytes)?;
    shelf.put(&shelf.manifest_name(begun.id), &bytes)?;
    meter.moved(bytes.len() as u64);
    shelf.sync()?;
    Ok(Made {
        parent: manifest.parent,
        objects: 1 + manifest.tables.len() as u64 + manifest.pieces,
        stored_bytes: manifest.stored * crate::units::BLOCK_BYTES,
        manifest: digest.0,
    })
}

impl Copy<'_> {
    /// Goes through the volume, table by table, where the parent has one or something has changed.
    fn tables(
        &mut self,
        parent: Option<&Manifest>,
        changes: Diff,
        out: &mut Manifest,
        meter: &mut Meter<'_>,
    ) -> Result<()> {
        let table_bytes = out.piece_bytes * TABLE_PIECES;
        let mut changes = changes.peekable();
        let mut old = parent.map_or(&[][..], |m| &m.tables).iter().peekable();
        // What a change that reaches into further tables has left for them.
        let mut rest: Option<Change> = None;
        loop {
            let next_old = old.peek().map(|t| t.number);
            let next_change = match &rest {
                Some(change) => Some(change),
                None => match changes.peek() {
                    Some(Err(_)) => {
                        return Err(changes.next().and_then(Result::err).unwrap_or(Error::Closed));
                    }
                    Some(Ok(change)) => Some(change),
                    None => None,
                },
            };
            let at = next_change.map(|c| (c.range.start / table_bytes, c.kind));
            let number = match (next_old, at) {
                (None, None) => return Ok(()),
                (Some(number), None) => number,
                (Some(number), Some((at, _))) if number <= at => number,
                // Nothing was there and nothing is: on to where something was, or to the next change.
                (_, Some((_, kind))) if kind != ExtentKind::Data => {
                    let to = next_old.unwrap_or(u64::MAX).saturating_mul(table_bytes);
                    let change = self.take(&mut rest, &mut changes)?;
                    let from = change.range.start.max(to.min(change.range.end));
                    rest = (from < change.range.end)
                        .then_some(Change { range: from..change.range.end, ..change });
                    continue;
                }
                (_, Some((at, _))) => at,
            };
            let span = number * table_bytes..(number + 1) * table_bytes;
            let mut here = Vec::new();
            while let Some(change) = self.take_before(&mut rest, &mut changes, span.end)? {
                if change.range.end > span.end {
                    rest = Some(Change { range: span.end..change.range.end, kind: change.kind });
                }
                here.push(Change { range: change.range.start..change.range.end.min(span.end), ..change });
            }
            let reference = old.next_if(|t| t.number == number);
            let known = match (parent, reference) {
                (Some(parent), Some(reference)) => match self.shelf.table(parent, reference) {
                    Ok(table) => Some(table),
                    // Lost or damaged: what it named is found again by reading the volume.
                    Err(Error::Corrupt(_)) => None,
                    Err(e) => return Err(e),
                },
                _ => Some(Table { number, ..Table::default() }),
            };
            let table = self.table(number, known, &here, meter)?;
            if !table.pieces.is_empty() {
                if out.tables.len() == MAX_TABLES {
                    let limit = MAX_TABLES as u64;
                    return Err(Error::LimitExceeded { what: Limited::BackupTables, limit });
                }
                out.pieces += table.pieces.len() as u64;
                out.stored += table.pieces.values().map(|p| u64::from(p.stored)).sum::<u64>();
                out.tables.push(self.keep_table(&table, meter)?);
            }
            meter.reach(span.end)?;
        }
    }

    fn take(&self, rest: &mut Option<Change>, changes: &mut Peekable<Diff>) -> Result<Change> {
        match rest.take() {
            Some(change) => Ok(change),
            // Only called when there is one.
            None => changes.next().unwrap_or(Err(Error::Closed)),
        }
    }

    fn take_before(
        &self,
        rest: &mut Option<Change>,
        changes: &mut Peekable<Diff>,
        end: u64,
    ) -> Result<Option<Change>> {
        if rest.as_ref().is_some_and(|c| c.range.start < end) {
            return Ok(rest.take());
        }
        if rest.is_some() {
            return Ok(None);
        }
        changes.next_if(|c| c.as_ref().map_or(true, |c| c.range.start < end)).transpose()
    }

    /// The table as it is now; `known` is what it was, `None` when that is lost.
    fn table(
        &mut self,
        number: u64,
        known: Option<Table>,
        changes: &[Change],
        meter: &mut Meter<'_>,
    ) -> Result<Table> {
        let piece_bytes = self.begun.record.piece_bytes;
        let first = number * TABLE_PIECES;
        let mut read: BTreeSet<u16> = BTreeSet::new();
        let indexes = |range: &Range<u64>| {
            let (from, to) = (range.start / piece_bytes, (range.end - 1) / piece_bytes);
            // Within this table, as the range is.
            (from - first) as u16..=(to - first) as u16
        };
        let mut table = match known {
            Some(table) => table,
            None => {
                let span = first * piece_bytes..(first + TABLE_PIECES) * piece_bytes;
                for extent in self.disk.extents(span) {
                    let extent = extent?;
                    if extent.kind == ExtentKind::Data {
                        read.extend(indexes(&extent.range));
                    }
                }
                Table { number, ..Table::default() }
            }
        };
        for change in changes {
            if change.kind == ExtentKind::Data {
                read.extend(indexes(&change.range));
            } else {
                // Zero now: only what was there before needs a look, and at the edges a second one.
                let mut gone = Vec::new();
                for index in table.pieces.range(indexes(&change.range)).map(|(index, _)| *index) {
                    let start = (first + u64::from(index)) * piece_bytes;
                    let end = (start + piece_bytes).min(self.begun.record.size_bytes);
                    if change.range.start <= start && end <= change.range.end {
                        gone.push(index);
                    } else {
                        read.insert(index);
                    }
                }
                for index in gone {
                    table.pieces.remove(&index);
                }
            }
        }
        let blocks = self.range.len() / crate::units::BLOCK;
        for (index, piece) in &table.pieces {
            if read.contains(index) {
                continue;
            }
            let there = match self.claimant.claim(piece.digest.0) {
                Claimed::Before => !self.missing.contains(&piece.digest),
                Claimed::Fresh => self.pieces.has(&piece.digest, piece.len(blocks)),
                Claimed::Swept => false,
            };
            if !there {
                // Lost, or swept with the backup that it belonged to: read and sent again.
                self.missing.insert(piece.digest);
                read.insert(*index);
            }
        }
        for index in read {
            let at = first + u64::from(index);
            match (self.keep_piece(at, meter)?, table.pieces.entry(index)) {
                (Some(piece), entry) => {
                    entry.insert_entry(piece);
                }
                (None, Entry::Occupied(entry)) => {
                    entry.remove();
                }
                (None, Entry::Vacant(_)) => {}
            }
            meter.reach(at * piece_bytes)?;
        }
        Ok(table)
    }

    /// Reads a range and sees to it that the target has it; `None` when it is all zero.
    fn keep_piece(&mut self, at: u64, meter: &mut Meter<'_>) -> Result<Option<PieceRef>> {
        let start = at * self.begun.record.piece_bytes;
        let len = (self.begun.record.size_bytes - start).min(self.range.len() as u64) as usize;
        let (range, behind) = self.range.split_at_mut(len);
        self.disk.read_at(range, start)?;
        behind.fill(0);
        let stored = piece::encode(&self.range, &mut self.encoded);
        if stored == 0 {
            return Ok(None);
        }
        let digest = Digest::of(&self.encoded);
        if self.is_missing(Kind::Piece, &digest, self.encoded.len()) {
            meter.moved(self.encoded.len() as u64);
            let room = memory::with_room(self.encoded.capacity())?;
            let bytes = std::mem::replace(&mut self.encoded, room);
            self.senders.send(self.shelf.name(Kind::Piece, &digest), bytes)?;
        }
        // At most 1,024.
        Ok(Some(PieceRef { digest, stored: stored as u16 }))
    }

    fn keep_table(&mut self, table: &Table, meter: &mut Meter<'_>) -> Result<TableRef> {
        let bytes = table.encode();
        let digest = Digest::of(&bytes);
        if self.is_missing(Kind::Table, &digest, bytes.len()) {
            meter.moved(bytes.len() as u64);
            self.senders.send(self.shelf.name(Kind::Table, &digest), bytes)?;
        }
        Ok(TableRef { number: table.number, entries: table.pieces.len() as u32, digest })
    }

    /// Whether an object is to be sent: not before in this backup, and not there.
    fn is_missing(&mut self, kind: Kind, digest: &Digest, len: usize) -> bool {
        let stock = match kind {
            Kind::Piece => &self.pieces,
            Kind::Table => &self.tables,
        };
        match self.claimant.claim(digest.0) {
            Claimed::Before => self.missing.remove(digest),
            Claimed::Fresh => !stock.has(digest, len as u64),
            Claimed::Swept => true,
        }
    }
}
