//! Where records and indexes lie in the catalogue.
//!
//! The first byte of a key is its table; numbers in keys are big-endian so that they sort.
//!
//! | table | key behind it | value | serves |
//! |---|---|---|---|
//! | 0x01 volumes | id (16), segment (2) | up to 1,000 bytes of the record | a volume by id |
//! | 0x02 snapshots | id (16), segment (2) | up to 1,000 bytes of the record | a snapshot by id |
//! | 0x03 volume times | inverted time (8), id (16) | empty | volumes, newest first, then by id |
//! | 0x04 snapshot times | inverted time (8), id (16) | empty | snapshots, newest first, then by id |
//! | 0x05 snapshots of | volume (16), inverted time (8), id (16) | empty | the snapshots of one volume |
//! | 0x06 made from | source (16), inverted time (8), id (16) | empty | volumes made from a snapshot or volume |
//! | 0x07 ephemeral | id (16) | empty | copies that the next open removes |
//! | 0x08 counts | volume (16) | count (8, little-endian) | how many snapshots of a volume exist |
//!
//! The count stands apart from the record so that a snapshot of a volume with a MiB of metadata does not
//! rewrite that MiB. It outlives a volume whose snapshots were kept.

use crate::commit::{Engine, TABLE_TRASH, Txn};
use crate::error::{Corruption, Error, Result};
use crate::units::{ObjectId, SnapshotId, VolumeId};

use super::records::{Record, SnapshotRecord, VolumeRecord, declared_len};
use super::volume::VolumeSource;

const VOLUMES: u8 = 0x01;
const SNAPSHOTS: u8 = 0x02;
const VOLUME_TIMES: u8 = 0x03;
const SNAPSHOT_TIMES: u8 = 0x04;
const SNAPSHOTS_OF: u8 = 0x05;
const MADE_FROM: u8 = 0x06;
const EPHEMERAL: u8 = 0x07;
const COUNTS: u8 = 0x08;

/// Bytes of a record in one catalogue entry.
const SEGMENT_BYTES: usize = 1000;
/// Index entries fetched per scan, so that a listing holds little and blocks nobody for long.
const SCAN_PIECE: usize = 256;

/// What can be read: the pool as it is, or as a transaction would leave it.
pub(super) trait Table {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>>;
    fn scan(&self, from: &[u8], to: &[u8], each: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<()>;
}

/// What a transaction can stage.
pub(super) trait Stage: Table {
    fn put(&mut self, key: Vec<u8>, value: Vec<u8>);
    fn delete(&mut self, key: Vec<u8>);
    fn copy_map(&mut self, to: ObjectId, from: ObjectId);
    fn trash(&mut self, id: ObjectId);
    fn trash_copy_of(&mut self, id: ObjectId) -> ObjectId;
    fn next_epoch(&mut self);
    /// The transaction as something to read; a supertrait is not reached through `dyn` by itself.
    fn table(&self) -> &dyn Table;
}

impl Table for Engine {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Engine::get(self, key)
    }
    fn scan(&self, from: &[u8], to: &[u8], each: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<()> {
        Engine::scan(self, from, to, false, each)
    }
}

impl Table for Txn<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Txn::get(self, key)
    }
    fn scan(&self, from: &[u8], to: &[u8], each: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<()> {
        Txn::scan(self, from, to, false, each)
    }
}

impl Stage for Txn<'_> {
    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        Txn::put(self, key, value);
    }
    fn delete(&mut self, key: Vec<u8>) {
        Txn::delete(self, key);
    }
    fn copy_map(&mut self, to: ObjectId, from: ObjectId) {
        Txn::copy_map(self, to, from);
    }
    fn trash(&mut self, id: ObjectId) {
        Txn::trash(self, id);
    }
    fn trash_copy_of(&mut self, id: ObjectId) -> ObjectId {
        Txn::trash_copy_of(self, id)
    }
    fn next_epoch(&mut self) {
        Txn::next_epoch(self);
    }
    fn table(&self) -> &dyn Table {
        self
    }
}

// Keys.

fn segment_key(table: u8, id: ObjectId, segment: u16) -> Vec<u8> {
    let mut key = Vec::with_capacity(19);
    key.push(table);
    key.extend_from_slice(&id.0);
    key.extend_from_slice(&segment.to_be_bytes());
    key
}

fn id_key(table: u8, id: ObjectId) -> Vec<u8> {
    let mut key = Vec::with_capacity(17);
    key.push(table);
    key.extend_from_slice(&id.0);
    key
}

/// Inverted, so that an ascending scan meets the newest first.
fn timed(mut key: Vec<u8>, created: u64, id: ObjectId) -> Vec<u8> {
    key.extend_from_slice(&(!created).to_be_bytes());
    key.extend_from_slice(&id.0);
    key
}

/// The entries of one index, as a range of keys in listing order.
pub(super) struct Index {
    from: Vec<u8>,
    to: Vec<u8>,
    prefix: Vec<u8>,
}

impl Index {
    fn of(prefix: Vec<u8>) -> Self {
        let mut to = prefix.clone();
        // A key has at most 24 bytes behind its prefix; 32 bytes of 0xFF lie behind them all.
        to.extend_from_slice(&[0xFF; 32]);
        Self { from: prefix.clone(), to, prefix }
    }
    pub(super) fn volumes() -> Self {
        Self::of(vec![VOLUME_TIMES])
    }
    pub(super) fn snapshots() -> Self {
        Self::of(vec![SNAPSHOT_TIMES])
    }
    pub(super) fn snapshots_of(volume: VolumeId) -> Self {
        Self::of(id_key(SNAPSHOTS_OF, volume.object()))
    }
    pub(super) fn made_from(source: ObjectId) -> Self {
        Self::of(id_key(MADE_FROM, source))
    }
    pub(super) fn ephemeral() -> Self {
        Self::of(vec![EPHEMERAL])
    }
    /// Starts behind the object that was created then under this id, whether it is in this index or not.
    pub(super) fn after(mut self, created: u64, id: ObjectId) -> Self {
        self.from = timed(self.prefix.clone(), created, id);
        self.from.push(0);
        self
    }

    /// The next ids, at most `max`; none at the end. What was returned is not returned again.
    pub(super) fn next_ids(&mut self, table: &dyn Table, max: usize) -> Result<Vec<ObjectId>> {
        let max = max.clamp(1, SCAN_PIECE);
        let mut ids = Vec::with_capacity(max);
        let mut last = None;
        let mut bad = None;
        table.scan(&self.from, &self.to, &mut |key, _| {
            match key.last_chunk::<16>() {
                Some(id) if key.len() > 16 => ids.push(ObjectId(*id)),
                _ => bad = Some(key.len()),
            }
            if ids.len() == max || bad.is_some() {
                last = Some(key.to_vec());
            }
            last.is_none()
        })?;
        if let Some(len) = bad {
            return Err(Corruption::new("catalogue index", 0, "key length", "at least 17", len).into());
        }
        match last {
            Some(mut key) => {
                key.push(0);
                self.from = key;
            }
            None => self.from = self.to.clone(),
        }
        Ok(ids)
    }

    /// How many entries there are from here on.
    pub(super) fn count(&self, table: &dyn Table) -> Result<u64> {
        let mut n = 0;
        table.scan(&self.from, &self.to, &mut |_, _| {
            n += 1;
            true
        })?;
        Ok(n)
    }

    /// Every id from here on.
    pub(super) fn all(mut self, table: &dyn Table) -> Result<Vec<ObjectId>> {
        let mut all = Vec::new();
        loop {
            let ids = self.next_ids(table, SCAN_PIECE)?;
            if ids.is_empty() {
                return Ok(all);
            }
            all.extend(ids);
        }
    }
}

// Records.

fn read<R: Record>(table: &dyn Table, code: u8, id: ObjectId) -> Result<Option<R>> {
    let Some(mut bytes) = table.get(&segment_key(code, id, 0))? else { return Ok(None) };
    let len = declared_len(&bytes, R::STRUCTURE)?;
    let mut segment = 0u16;
    while bytes.len() < len {
        segment += 1;
        let more = table.get(&segment_key(code, id, segment))?.filter(|m| !m.is_empty());
        let Some(more) = more else {
            let found = format!("{} bytes in {segment} segments", bytes.len());
            return Err(Corruption::new(R::STRUCTURE, 0, "length", format!("{len} bytes"), found).into());
        };
        bytes.extend_from_slice(&more);
    }
    Ok(Some(R::decode(&bytes)?))
}

fn write<R: Record>(stage: &mut dyn Stage, code: u8, id: ObjectId, record: &R) -> Result<()> {
    let bytes = record.encode();
    let mut segment = 0u16;
    for piece in bytes.chunks(SEGMENT_BYTES) {
        stage.put(segment_key(code, id, segment), piece.to_vec());
        segment += 1;
    }
    cut(stage, code, id, segment)
}

/// Removes the segments from `first` on: a record that shrank, or that goes.
fn cut(stage: &mut dyn Stage, code: u8, id: ObjectId, first: u16) -> Result<()> {
    for segment in first..=u16::MAX {
        let key = segment_key(code, id, segment);
        if stage.get(&key)?.is_none() {
            break;
        }
        stage.delete(key);
    }
    Ok(())
}

pub(super) fn volume(table: &dyn Table, id: VolumeId) -> Result<Option<VolumeRecord>> {
    read(table, VOLUMES, id.object())
}

pub(super) fn snapshot(table: &dyn Table, id: SnapshotId) -> Result<Option<SnapshotRecord>> {
    read(table, SNAPSHOTS, id.object())
}

pub(super) fn need_volume(table: &dyn Table, id: VolumeId) -> Result<VolumeRecord> {
    volume(table, id)?.ok_or_else(|| Error::NotFound { object: "volume", id: id.to_string() })
}

pub(super) fn need_snapshot(table: &dyn Table, id: SnapshotId) -> Result<SnapshotRecord> {
    snapshot(table, id)?.ok_or_else(|| Error::NotFound { object: "snapshot", id: id.to_string() })
}

pub(super) fn has_volume(table: &dyn Table, id: VolumeId) -> Result<bool> {
    Ok(table.get(&segment_key(VOLUMES, id.object(), 0))?.is_some())
}

/// What an id already names, if anything. Snapshots that were kept still claim the id of their volume.
pub(super) fn taken_by(table: &dyn Table, id: ObjectId) -> Result<Option<&'static str>> {
    let names = [
        ("volume", segment_key(VOLUMES, id, 0)),
        ("snapshot", segment_key(SNAPSHOTS, id, 0)),
        ("volume", id_key(COUNTS, id)),
        ("ephemeral copy", id_key(EPHEMERAL, id)),
    ];
    for (name, key) in names {
        if table.get(&key)?.is_some() {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// The keys of which one exists while the map of `id` has an owner.
pub(super) fn owner_keys(id: ObjectId) -> Vec<Vec<u8>> {
    vec![segment_key(VOLUMES, id, 0), segment_key(SNAPSHOTS, id, 0), id_key(EPHEMERAL, id)]
}

/// Whether a map under this id is still being reclaimed. The engine's own tables know it, across openings too.
pub(super) fn is_leaving(table: &dyn Table, id: ObjectId) -> Result<bool> {
    Ok(table.get(&id_key(TABLE_TRASH, id))?.is_some())
}

pub(super) fn snapshot_count(table: &dyn Table, volume: VolumeId) -> Result<u64> {
    match table.get(&id_key(COUNTS, volume.object()))? {
        None => Ok(0),
        Some(bytes) => match <[u8; 8]>::try_from(&bytes[..]) {
            Ok(le) => Ok(u64::from_le_bytes(le)),
            Err(_) => Err(Corruption::new("snapshot count", 0, "length", 8, bytes.len()).into()),
        },
    }
}

fn set_count(stage: &mut dyn Stage, volume: VolumeId, count: u64) {
    let key = id_key(COUNTS, volume.object());
    if count == 0 {
        stage.delete(key);
    } else {
        stage.put(key, count.to_le_bytes().to_vec());
    }
}

/// Replaces the record of a volume that exists. Creation time and source are fixed, so are its indexes.
pub(super) fn update_volume(stage: &mut dyn Stage, id: VolumeId, record: &VolumeRecord) -> Result<()> {
    write(stage, VOLUMES, id.object(), record)
}

/// Replaces the record of a snapshot that exists.
pub(super) fn update_snapshot(stage: &mut dyn Stage, id: SnapshotId, record: &SnapshotRecord) -> Result<()> {
    write(stage, SNAPSHOTS, id.object(), record)
}

fn source_object(source: VolumeSource) -> Option<ObjectId> {
    match source {
        VolumeSource::Blank => None,
        VolumeSource::Snapshot(id) => Some(id.object()),
        VolumeSource::Volume(id) => Some(id.object()),
    }
}

pub(super) fn insert_volume(stage: &mut dyn Stage, id: VolumeId, record: &VolumeRecord) -> Result<()> {
    let (object, created) = (id.object(), record.common.created);
    write(stage, VOLUMES, object, record)?;
    stage.put(timed(vec![VOLUME_TIMES], created, object), Vec::new());
    if let Some(source) = source_object(record.source) {
        stage.put(timed(id_key(MADE_FROM, source), created, object), Vec::new());
    }
    Ok(())
}

pub(super) fn remove_volume(stage: &mut dyn Stage, id: VolumeId, record: &VolumeRecord) -> Result<()> {
    let (object, created) = (id.object(), record.common.created);
    cut(stage, VOLUMES, object, 0)?;
    stage.delete(timed(vec![VOLUME_TIMES], created, object));
    if let Some(source) = source_object(record.source) {
        stage.delete(timed(id_key(MADE_FROM, source), created, object));
    }
    Ok(())
}

pub(super) fn insert_snapshot(stage: &mut dyn Stage, id: SnapshotId, record: &SnapshotRecord) -> Result<()> {
    let (object, created, volume) = (id.object(), record.common.created, record.volume);
    let count = snapshot_count(stage.table(), volume)?;
    write(stage, SNAPSHOTS, object, record)?;
    stage.put(timed(vec![SNAPSHOT_TIMES], created, object), Vec::new());
    stage.put(timed(id_key(SNAPSHOTS_OF, volume.object()), created, object), Vec::new());
    set_count(stage, volume, count.saturating_add(1));
    Ok(())
}

pub(super) fn remove_snapshot(stage: &mut dyn Stage, id: SnapshotId, record: &SnapshotRecord) -> Result<()> {
    let (object, created, volume) = (id.object(), record.common.created, record.volume);
    let count = snapshot_count(stage.table(), volume)?;
    cut(stage, SNAPSHOTS, object, 0)?;
    stage.delete(timed(vec![SNAPSHOT_TIMES], created, object));
    stage.delete(timed(id_key(SNAPSHOTS_OF, volume.object()), created, object));
    set_count(stage, volume, count.saturating_sub(1));
    Ok(())
}

pub(super) fn insert_ephemeral(stage: &mut dyn Stage, id: ObjectId) {
    stage.put(id_key(EPHEMERAL, id), Vec::new());
}

pub(super) fn remove_ephemeral(stage: &mut dyn Stage, id: ObjectId) {
    stage.delete(id_key(EPHEMERAL, id));
}
