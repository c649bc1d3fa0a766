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
//! | 0x06 made from | source (16), inverted time (8), id (16) | empty | volumes made from a snapshot, volume, image, backup or base |
//! | 0x07 ephemeral | id (16) | empty | copies that the next open removes |
//! | 0x08 counts | volume (16) | count (8), of them of backups (8), little-endian | how many snapshots of a volume exist |
//! | 0x09 images | id (16), segment (2) | up to 1,000 bytes of the record | an image by id |
//! | 0x0A image times | inverted time (8), id (16) | empty | images, newest first, then by id |
//! | 0x0B attachments | volume (16), attachment (16) | see [`servers`](super::servers) | what servers hold a volume |
//! | 0x0C projects | number (4); nothing | see [`projects`](super::projects); highest number (4) | a project by number |
//! | 0x0D project ids | id (1 to 60) | number (4) | a project by id |
//! | 0x0E usage | project (4) | see [`projects`](super::projects) | what a project has |
//! | 0x0F zones | number (2) | see [`zones`](super::zones) | zones |
//! | 0x10 aliases | 1 volume, 2 snapshot (1), alias (8) | id (16) | an object by its alias |
//! | 0x11 unfinished | id (16) | empty | volumes and snapshots that the next open removes |
//! | 0x12 volumes in | project (4), inverted time (8), id (16) | empty | the volumes of one project |
//! | 0x13 snapshots in | project (4), inverted time (8), id (16) | empty | the snapshots of one project |
//! | 0x20 origins | snapshot (16) | pool (16), snapshot (16) | where a received snapshot was first taken |
//! | 0x21 received | pool (16), snapshot (16), snapshot here (16) | empty | a received snapshot by its origin |
//! | 0x22 receives | snapshot to be (16) | 128 bytes, see [`origins`](super::origins) | unfinished receives; they own a map |
//!
//! Tables 0x40 to 0x43 are those of backups: see [`backup_records`](super::backup_records). Those of the engine begin
//! at 0xF0; the records of external bases in one of them are this room's: see [`base`](super::base).
//!
//! The count stands apart from the record so that a snapshot of a volume with a MiB of metadata does not
//! rewrite that MiB. It outlives a volume whose snapshots were kept.

use uuid::Uuid;

use crate::commit::{Engine, TABLE_TRASH, Txn, base_key};
use crate::error::{Corruption, Error, Result};
use crate::memory;
use crate::units::{ImageId, ObjectId, SnapshotId, VolumeId};

use super::aliases::{Alias, AliasOf};
use super::backup_records::{backup_key, set_base};
use super::image_record::ImageRecord;
use super::origins::Origin;
use super::projects::{self, Usage};
use super::records::{Record, SnapshotRecord, VolumeRecord};
use super::volume::VolumeSource;

const VOLUMES: u8 = 0x01;
const SNAPSHOTS: u8 = 0x02;
const VOLUME_TIMES: u8 = 0x03;
const SNAPSHOT_TIMES: u8 = 0x04;
const SNAPSHOTS_OF: u8 = 0x05;
const MADE_FROM: u8 = 0x06;
const EPHEMERAL: u8 = 0x07;
const COUNTS: u8 = 0x08;
const IMAGES: u8 = 0x09;
const IMAGE_TIMES: u8 = 0x0A;
pub(super) const ATTACHMENTS: u8 = 0x0B;
pub(super) const PROJECTS: u8 = 0x0C;
pub(super) const PROJECT_IDS: u8 = 0x0D;
pub(super) const USAGE: u8 = 0x0E;
pub(super) const ZONES: u8 = 0x0F;
const ALIASES: u8 = 0x10;
const UNFINISHED: u8 = 0x11;
const VOLUMES_IN: u8 = 0x12;
const SNAPSHOTS_IN: u8 = 0x13;
const ORIGINS: u8 = 0x20;
const RECEIVED: u8 = 0x21;
const RECEIVES: u8 = 0x22;

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
    fn copy_map(&mut self, to: ObjectId, from: ObjectId) -> Result<()>;
    fn lay_over(&mut self, id: ObjectId, base: ObjectId, blocks: u64);
    /// The base that goes with it.
    fn trash(&mut self, id: ObjectId) -> Result<Option<ObjectId>>;
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
    fn copy_map(&mut self, to: ObjectId, from: ObjectId) -> Result<()> {
        Txn::copy_map(self, to, from)
    }
    fn lay_over(&mut self, id: ObjectId, base: ObjectId, blocks: u64) {
        Txn::lay_over(self, id, base, blocks);
    }
    fn trash(&mut self, id: ObjectId) -> Result<Option<ObjectId>> {
        Txn::trash(self, id)
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

pub(super) fn segment_key(table: u8, id: ObjectId, segment: u16) -> Vec<u8> {
    let mut key = Vec::with_capacity(19);
    key.push(table);
    key.extend_from_slice(&id.0);
    key.extend_from_slice(&segment.to_be_bytes());
    key
}

pub(super) fn id_key(table: u8, id: ObjectId) -> Vec<u8> {
    let mut key = Vec::with_capacity(17);
    key.push(table);
    key.extend_from_slice(&id.0);
    key
}

fn number_key(table: u8, number: u32) -> Vec<u8> {
    let mut key = Vec::with_capacity(29);
    key.push(table);
    key.extend_from_slice(&number.to_be_bytes());
    key
}

fn alias_key(of: AliasOf, alias: Alias) -> Vec<u8> {
    let mut key = vec![ALIASES, of as u8];
    key.extend_from_slice(&alias.raw());
    key
}

/// Inverted, so that an ascending scan meets the newest first.
pub(super) fn timed(mut key: Vec<u8>, created: u64, id: ObjectId) -> Vec<u8> {
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
    pub(super) fn of(prefix: Vec<u8>) -> Self {
        let mut to = prefix.clone();
        // A key has at most 48 bytes behind its prefix; 48 bytes of 0xFF lie behind them all.
        to.extend_from_slice(&[0xFF; 48]);
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
    pub(super) fn receives() -> Self {
        Self::of(vec![RECEIVES])
    }
    pub(super) fn ephemeral() -> Self {
        Self::of(vec![EPHEMERAL])
    }
    pub(super) fn unfinished() -> Self {
        Self::of(vec![UNFINISHED])
    }
    pub(super) fn images() -> Self {
        Self::of(vec![IMAGE_TIMES])
    }
    pub(super) fn volumes_in(project: u32) -> Self {
        Self::of(number_key(VOLUMES_IN, project))
    }
    pub(super) fn snapshots_in(project: u32) -> Self {
        Self::of(number_key(SNAPSHOTS_IN, project))
    }
    pub(super) fn attachments(volume: VolumeId) -> Self {
        Self::of(id_key(ATTACHMENTS, volume.object()))
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
            memory::extend(&mut all, ids.into_iter())?;
        }
    }
}

// Records.

pub(super) fn read<R: Record>(table: &dyn Table, code: u8, id: ObjectId) -> Result<Option<R>> {
    let Some(mut bytes) = table.get(&segment_key(code, id, 0))? else { return Ok(None) };
    let len = R::declared_len(&bytes)?;
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

pub(super) fn write<R: Record>(stage: &mut dyn Stage, code: u8, id: ObjectId, record: &R) -> Result<()> {
    let bytes = record.encode();
    let mut segment = 0u16;
    for piece in bytes.chunks(SEGMENT_BYTES) {
        stage.put(segment_key(code, id, segment), piece.to_vec());
        segment += 1;
    }
    cut(stage, code, id, segment)
}

/// Removes the segments from `first` on: a record that shrank, or that goes.
pub(super) fn cut(stage: &mut dyn Stage, code: u8, id: ObjectId, first: u16) -> Result<()> {
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

pub(super) fn image(table: &dyn Table, id: ImageId) -> Result<Option<ImageRecord>> {
    read(table, IMAGES, id.object())
}

pub(super) fn need_image(table: &dyn Table, id: ImageId) -> Result<ImageRecord> {
    image(table, id)?.ok_or_else(|| Error::not_found("image", id))
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

pub(super) fn has_snapshot(table: &dyn Table, id: SnapshotId) -> Result<bool> {
    Ok(table.get(&segment_key(SNAPSHOTS, id.object(), 0))?.is_some())
}

pub(super) fn by_alias(table: &dyn Table, of: AliasOf, alias: Alias) -> Result<Option<ObjectId>> {
    let Some(bytes) = table.get(&alias_key(of, alias))? else { return Ok(None) };
    match <[u8; 16]>::try_from(&bytes[..]) {
        Ok(id) => Ok(Some(ObjectId(id))),
        Err(_) => Err(Corruption::new("alias", 0, "length", 16, bytes.len()).into()),
    }
}

/// What an id already names, if anything. Snapshots that were kept still claim the id of their volume.
pub(super) fn taken_by(table: &dyn Table, id: ObjectId) -> Result<Option<&'static str>> {
    let names = [
        ("backup", backup_key(id)),
        ("volume", segment_key(VOLUMES, id, 0)),
        ("snapshot", segment_key(SNAPSHOTS, id, 0)),
        ("image", segment_key(IMAGES, id, 0)),
        ("volume", id_key(COUNTS, id)),
        ("ephemeral copy", id_key(EPHEMERAL, id)),
        ("unfinished receive", id_key(RECEIVES, id)),
        ("base", base_key(id)),
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
    vec![
        segment_key(VOLUMES, id, 0),
        segment_key(SNAPSHOTS, id, 0),
        segment_key(IMAGES, id, 0),
        id_key(EPHEMERAL, id),
        id_key(RECEIVES, id),
        base_key(id),
    ]
}

/// Whether a map under this id is still being reclaimed. The engine's own tables know it, across openings too.
pub(super) fn is_leaving(table: &dyn Table, id: ObjectId) -> Result<bool> {
    Ok(table.get(&id_key(TABLE_TRASH, id))?.is_some())
}

/// How many snapshots of a volume there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct SnapshotCount {
    pub(super) all: u64,
    pub(super) of_backups: u64,
}

pub(super) fn snapshot_count(table: &dyn Table, volume: VolumeId) -> Result<SnapshotCount> {
    let Some(bytes) = table.get(&id_key(COUNTS, volume.object()))? else {
        return Ok(SnapshotCount::default());
    };
    match *bytes.as_chunks::<8>().0 {
        [all, of_backups] if bytes.len() == 16 => {
            Ok(SnapshotCount { all: u64::from_le_bytes(all), of_backups: u64::from_le_bytes(of_backups) })
        }
        _ => Err(Corruption::new("snapshot count", 0, "length", 16, bytes.len()).into()),
    }
}

fn set_count(stage: &mut dyn Stage, volume: VolumeId, count: SnapshotCount) {
    let key = id_key(COUNTS, volume.object());
    if count.all == 0 {
        stage.delete(key);
    } else {
        let mut value = count.all.to_le_bytes().to_vec();
        value.extend(count.of_backups.to_le_bytes());
        stage.put(key, value);
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

impl VolumeSource {
    pub(super) fn object(self) -> Option<ObjectId> {
        match self {
            Self::Blank => None,
            Self::Snapshot(id) => Some(id.object()),
            Self::Volume(id) => Some(id.object()),
            Self::Image(id) => Some(id.object()),
            Self::Backup(id) => Some(id.object()),
            Self::Base(id) => Some(id.object()),
        }
    }
}

fn volume_keys(id: ObjectId, record: &VolumeRecord) -> Vec<Vec<u8>> {
    let common = &record.common;
    let mut keys = vec![
        timed(vec![VOLUME_TIMES], common.created, id),
        timed(number_key(VOLUMES_IN, common.project), common.created, id),
    ];
    if let Some(source) = record.source.object() {
        keys.push(timed(id_key(MADE_FROM, source), common.created, id));
    }
    keys
}

fn snapshot_keys(id: ObjectId, record: &SnapshotRecord) -> Vec<Vec<u8>> {
    let common = &record.common;
    vec![
        timed(vec![SNAPSHOT_TIMES], common.created, id),
        timed(number_key(SNAPSHOTS_IN, common.project), common.created, id),
        timed(id_key(SNAPSHOTS_OF, record.volume.object()), common.created, id),
    ]
}

pub(super) fn insert_volume(stage: &mut dyn Stage, id: VolumeId, record: &VolumeRecord) -> Result<()> {
    let (object, common) = (id.object(), &record.common);
    write(stage, VOLUMES, object, record)?;
    for key in volume_keys(object, record) {
        stage.put(key, Vec::new());
    }
    stage.put(alias_key(AliasOf::Volume, common.alias), object.0.to_vec());
    projects::change_usage(stage, common.project, |usage| {
        let Usage { volumes, volume_bytes, .. } = usage;
        *volumes = volumes.saturating_add(1);
        *volume_bytes = volume_bytes.saturating_add(common.size_bytes);
    })
}

pub(super) fn remove_volume(stage: &mut dyn Stage, id: VolumeId, record: &VolumeRecord) -> Result<()> {
    let (object, common) = (id.object(), &record.common);
    cut(stage, VOLUMES, object, 0)?;
    set_base(stage, id, None);
    for key in volume_keys(object, record) {
        stage.delete(key);
    }
    stage.delete(alias_key(AliasOf::Volume, common.alias));
    projects::change_usage(stage, common.project, |usage| {
        let Usage { volumes, volume_bytes, .. } = usage;
        *volumes = volumes.saturating_sub(1);
        *volume_bytes = volume_bytes.saturating_sub(common.size_bytes);
    })
}

pub(super) fn insert_snapshot(stage: &mut dyn Stage, id: SnapshotId, record: &SnapshotRecord) -> Result<()> {
    let (object, common, volume) = (id.object(), &record.common, record.volume);
    let mut count = snapshot_count(stage.table(), volume)?;
    write(stage, SNAPSHOTS, object, record)?;
    for key in snapshot_keys(object, record) {
        stage.put(key, Vec::new());
    }
    stage.put(alias_key(AliasOf::Snapshot, common.alias), object.0.to_vec());
    count.all = count.all.saturating_add(1);
    count.of_backups = count.of_backups.saturating_add(record.backup_owned.into());
    set_count(stage, volume, count);
    projects::change_usage(stage, common.project, |usage| {
        let Usage { snapshots, snapshot_bytes, .. } = usage;
        *snapshots = snapshots.saturating_add(1);
        *snapshot_bytes = snapshot_bytes.saturating_add(common.size_bytes);
    })
}

pub(super) fn remove_snapshot(stage: &mut dyn Stage, id: SnapshotId, record: &SnapshotRecord) -> Result<()> {
    let (object, common, volume) = (id.object(), &record.common, record.volume);
    let mut count = snapshot_count(stage.table(), volume)?;
    cut(stage, SNAPSHOTS, object, 0)?;
    for key in snapshot_keys(object, record) {
        stage.delete(key);
    }
    stage.delete(alias_key(AliasOf::Snapshot, common.alias));
    count.all = count.all.saturating_sub(1);
    count.of_backups = count.of_backups.saturating_sub(record.backup_owned.into());
    set_count(stage, volume, count);
    if let Some(origin) = origin_of(stage.table(), id)? {
        stage.delete(id_key(ORIGINS, object));
        stage.delete(received_key(origin, object));
    }
    projects::change_usage(stage, common.project, |usage| {
        let Usage { snapshots, snapshot_bytes, .. } = usage;
        *snapshots = snapshots.saturating_sub(1);
        *snapshot_bytes = snapshot_bytes.saturating_sub(common.size_bytes);
    })
}

pub(super) fn insert_image(stage: &mut dyn Stage, id: ImageId, record: &ImageRecord) -> Result<()> {
    write(stage, IMAGES, id.object(), record)?;
    stage.put(timed(vec![IMAGE_TIMES], record.created, id.object()), Vec::new());
    Ok(())
}

/// Replaces the record of an image that exists.
pub(super) fn update_image(stage: &mut dyn Stage, id: ImageId, record: &ImageRecord) -> Result<()> {
    write(stage, IMAGES, id.object(), record)
}

pub(super) fn remove_image(stage: &mut dyn Stage, id: ImageId, record: &ImageRecord) -> Result<()> {
    cut(stage, IMAGES, id.object(), 0)?;
    stage.delete(timed(vec![IMAGE_TIMES], record.created, id.object()));
    Ok(())
}

fn received_key(origin: Origin, id: ObjectId) -> Vec<u8> {
    let mut key = id_key(RECEIVED, ObjectId(origin.pool.into_bytes()));
    key.extend_from_slice(origin.snapshot.as_bytes());
    key.extend_from_slice(&id.0);
    key
}

/// Where a snapshot was first taken, if it was received.
pub(super) fn origin_of(table: &dyn Table, id: SnapshotId) -> Result<Option<Origin>> {
    let Some(bytes) = table.get(&id_key(ORIGINS, id.object()))? else { return Ok(None) };
    let (Some(pool), Some(snapshot)) = (bytes.first_chunk::<16>(), bytes.last_chunk::<16>()) else {
        return Err(Corruption::new("snapshot origin", 0, "length", 32, bytes.len()).into());
    };
    Ok(Some(Origin { pool: Uuid::from_bytes(*pool), snapshot: Uuid::from_bytes(*snapshot) }))
}

pub(super) fn set_origin(stage: &mut dyn Stage, id: SnapshotId, origin: Origin) {
    let value = [origin.pool.into_bytes(), origin.snapshot.into_bytes()].concat();
    stage.put(id_key(ORIGINS, id.object()), value);
    stage.put(received_key(origin, id.object()), Vec::new());
}

/// The snapshot here that was received from there.
pub(super) fn received_from(table: &dyn Table, origin: Origin) -> Result<Option<SnapshotId>> {
    let mut prefix = received_key(origin, ObjectId([0; 16]));
    prefix.truncate(33);
    let found = Index::of(prefix).next_ids(table, 1)?;
    Ok(found.first().map(|id| SnapshotId::new(Uuid::from_bytes(id.0))))
}

/// The bytes that an unfinished receive keeps.
pub(super) fn receive(table: &dyn Table, id: SnapshotId) -> Result<Option<Vec<u8>>> {
    table.get(&id_key(RECEIVES, id.object()))
}

pub(super) fn set_receive(stage: &mut dyn Stage, id: SnapshotId, value: Vec<u8>) {
    stage.put(id_key(RECEIVES, id.object()), value);
}

pub(super) fn remove_receive(stage: &mut dyn Stage, id: SnapshotId) {
    stage.delete(id_key(RECEIVES, id.object()));
}

pub(super) fn insert_ephemeral(stage: &mut dyn Stage, id: ObjectId) {
    stage.put(id_key(EPHEMERAL, id), Vec::new());
}

pub(super) fn is_ephemeral(table: &dyn Table, id: ObjectId) -> Result<bool> {
    Ok(table.get(&id_key(EPHEMERAL, id))?.is_some())
}

pub(super) fn remove_ephemeral(stage: &mut dyn Stage, id: ObjectId) {
    stage.delete(id_key(EPHEMERAL, id));
}

/// Says that an object is not whole yet: unless [`set_finished`] follows, the next open removes it.
pub(super) fn set_unfinished(stage: &mut dyn Stage, id: ObjectId) {
    stage.put(id_key(UNFINISHED, id), Vec::new());
}

pub(super) fn set_finished(stage: &mut dyn Stage, id: ObjectId) {
    stage.delete(id_key(UNFINISHED, id));
}
