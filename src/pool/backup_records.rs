//! What the catalogue stores about a backup.
//!
//! Little-endian. Version 1:
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 1 | version | 1 |
//! | 1 | 1 | kind | 3 |
//! | 2 | 1 | status | 2 available, 3 error; the others are never stored |
//! | 3 | 1 | flags | bit 0 incremental, 1 has a dependent, 2 has been updated |
//! | 4 | 2 | texts | bit n is 1 when text n is there |
//! | 6 | 2 | reserved | zero |
//! | 8 | 8 | size_bytes | virtual size of the volume in bytes |
//! | 16 | 8 | created | microseconds since 1970 |
//! | 24 | 8 | updated | microseconds since 1970; 0 without flag 2 |
//! | 32 | 16 | volume | the volume it is of |
//! | 48 | 4 | length | bytes in the whole record |
//! | 52 | 4 | piece_bytes | bytes in a piece |
//! | 56 | 16 | snapshot | the snapshot it was read from, which may be gone; zero when imported |
//! | 72 | 16 | parent | the backup it began from; zero when full |
//! | 88 | 16 | pool | the pool that made it |
//! | 104 | 8 | taken | when the content was what it is, microseconds since 1970 |
//! | 112 | 8 | objects | objects it is made of; 0 until it is whole |
//! | 120 | 8 | stored | bytes that are not zero |
//! | 128 | 32 | manifest | digest at the end of the manifest; zero until it is whole |
//! | 160 | 7 | lengths | bytes of each text |
//! | 167 | 25 | reserved | zero |
//! | 192 | | texts | container, name, description, zone, volume type, project, reason of failure: UTF-8 |
//!
//! The length stands where every record has it. The tables:
//!
//! | table | key behind it | value | serves |
//! |---|---|---|---|
//! | 0x40 backups | id (16), segment (2) | up to 1,000 bytes of the record | a backup by id |
//! | 0x41 backup times | inverted time (8), id (16) | empty | backups, newest first, then by id |
//! | 0x42 backups of | volume (16), inverted time (8), id (16) | empty | the backups of one volume |
//! | 0x43 bases | volume (16) | backup (16), snapshot (16) | what the next backup of a volume begins from |

use uuid::Uuid;

use super::catalogue::{Index, Stage, Table, cut, id_key, read, segment_key, timed, write};
use super::fields::{id_at, u32_at, u64_at};
use super::records::Record;
use super::status::BackupStatus;
use crate::error::{Corruption, Error, Result};
use crate::units::{BLOCK_BYTES, BackupId, MAX_VOLUME_BYTES, ObjectId, SnapshotId, VolumeId};

const BACKUPS: u8 = 0x40;
const BACKUP_TIMES: u8 = 0x41;
const BACKUPS_OF: u8 = 0x42;
const BASES: u8 = 0x43;

const HEAD: usize = 192;
const VERSION: u8 = 1;
const KIND_BACKUP: u8 = 3;
const TEXTS: usize = 7;

#[derive(Clone, PartialEq, Debug)]
pub(crate) struct BackupRecord {
    pub(crate) status: BackupStatus,
    pub(crate) incremental: bool,
    pub(crate) has_dependent: bool,
    pub(crate) size_bytes: u64,
    pub(crate) created: u64,
    pub(crate) updated: Option<u64>,
    pub(crate) volume: VolumeId,
    pub(crate) snapshot: Option<SnapshotId>,
    pub(crate) parent: Option<BackupId>,
    pub(crate) pool: Uuid,
    pub(crate) taken: u64,
    pub(crate) objects: u64,
    pub(crate) stored_bytes: u64,
    pub(crate) piece_bytes: u64,
    pub(crate) manifest: [u8; 32],
    pub(crate) container: String,
    pub(crate) name: Option<String>,
    pub(crate) description: Option<String>,
    pub(crate) zone: Option<String>,
    pub(crate) volume_type: Option<String>,
    pub(crate) project: Option<String>,
    pub(crate) fail_reason: Option<String>,
}

impl Record for BackupRecord {
    const STRUCTURE: &'static str = "backup record";

    fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; HEAD];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        let flags = u8::from(self.incremental)
            | u8::from(self.has_dependent) << 1
            | u8::from(self.updated.is_some()) << 2;
        put(0, &[VERSION, KIND_BACKUP, self.status.code(), flags]);
        put(8, &self.size_bytes.to_le_bytes());
        put(16, &self.created.to_le_bytes());
        put(24, &self.updated.unwrap_or(0).to_le_bytes());
        put(32, self.volume.raw().as_bytes());
        put(52, &(self.piece_bytes as u32).to_le_bytes());
        put(56, self.snapshot.map_or(Uuid::nil(), SnapshotId::raw).as_bytes());
        put(72, self.parent.map_or(Uuid::nil(), BackupId::raw).as_bytes());
        put(88, self.pool.as_bytes());
        put(104, &self.taken.to_le_bytes());
        put(112, &self.objects.to_le_bytes());
        put(120, &self.stored_bytes.to_le_bytes());
        put(128, &self.manifest);
        let texts = [
            Some(&self.container),
            self.name.as_ref(),
            self.description.as_ref(),
            self.zone.as_ref(),
            self.volume_type.as_ref(),
            self.project.as_ref(),
            self.fail_reason.as_ref(),
        ];
        for (n, text) in texts.into_iter().enumerate() {
            let Some(text) = text else { continue };
            out[4] |= 1 << n;
            // The limits were checked before the record came to be: every length fits its byte.
            out[160 + n] = text.len() as u8;
            out.extend_from_slice(text.as_bytes());
        }
        let len = out.len() as u32;
        out[48..52].copy_from_slice(&len.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, Corruption> {
        let bad = |field, expected: &str, found: String| {
            Corruption::new(Self::STRUCTURE, 0, field, expected, found)
        };
        if bytes.len() < HEAD || u32_at(bytes, 48) as usize != bytes.len() {
            return Err(bad("length", "at least 192, as the record says", bytes.len().to_string()));
        }
        if bytes[..2] != [VERSION, KIND_BACKUP] {
            return Err(bad("version and kind", "1 and 3", format!("{:?}", &bytes[..2])));
        }
        let status = BackupStatus::from_code(bytes[2]).filter(|s| s.is_stored());
        let status = status.ok_or_else(|| bad("status", "2 or 3", bytes[2].to_string()))?;
        let (flags, present) = (bytes[3], bytes[4]);
        let reserved = bytes[5..8].iter().chain(&bytes[167..HEAD]).any(|b| *b != 0);
        if flags & !7 != 0 || present >> TEXTS != 0 || present & 1 == 0 || reserved {
            return Err(bad("flags", "known ones, and zeroes", format!("{flags:#x} {present:#x}")));
        }
        let size_bytes = u64_at(bytes, 8);
        if size_bytes == 0 || size_bytes > MAX_VOLUME_BYTES || !size_bytes.is_multiple_of(BLOCK_BYTES) {
            return Err(bad("size_bytes", "whole blocks, at most 1 EiB", size_bytes.to_string()));
        }
        let updated = u64_at(bytes, 24);
        if updated != 0 && flags & 4 == 0 {
            return Err(bad("updated", "0", updated.to_string()));
        }
        let mut rest_of = &bytes[HEAD..];
        let mut text = |n: usize, field| -> Result<Option<String>, Corruption> {
            let (is_there, len) = (present & (1 << n) != 0, usize::from(bytes[160 + n]));
            if !is_there && len != 0 {
                return Err(bad(field, "no bytes without its flag", len.to_string()));
            }
            let Some((text, behind)) = rest_of.split_at_checked(len) else {
                return Err(bad(field, &format!("{len} bytes"), rest_of.len().to_string()));
            };
            rest_of = behind;
            let text = std::str::from_utf8(text).map_err(|e| bad(field, "UTF-8", e.to_string()))?;
            Ok(is_there.then(|| text.to_owned()))
        };
        let container = text(0, "container")?.unwrap_or_default();
        let (name, description) = (text(1, "name")?, text(2, "description")?);
        let (zone, volume_type) = (text(3, "zone")?, text(4, "volume type")?);
        let (project, fail_reason) = (text(5, "project")?, text(6, "reason of failure")?);
        if !rest_of.is_empty() {
            return Err(bad("texts", "nothing behind them", rest_of.len().to_string()));
        }
        let id = |at: usize| Some(Uuid::from_bytes(id_at(bytes, at))).filter(|id| !id.is_nil());
        let mut manifest = [0; 32];
        manifest.copy_from_slice(&bytes[128..160]);
        Ok(Self {
            status,
            incremental: flags & 1 != 0,
            has_dependent: flags & 2 != 0,
            size_bytes,
            created: u64_at(bytes, 16),
            updated: (flags & 4 != 0).then_some(updated),
            volume: VolumeId::new(Uuid::from_bytes(id_at(bytes, 32))),
            snapshot: id(56).map(SnapshotId::new),
            parent: id(72).map(BackupId::new),
            pool: Uuid::from_bytes(id_at(bytes, 88)),
            taken: u64_at(bytes, 104),
            objects: u64_at(bytes, 112),
            stored_bytes: u64_at(bytes, 120),
            piece_bytes: u32_at(bytes, 52).into(),
            manifest,
            container,
            name,
            description,
            zone,
            volume_type,
            project,
            fail_reason,
        })
    }
}

/// What the next backup of a volume may begin from: its newest backup, and the snapshot that was read for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Base {
    pub(super) backup: BackupId,
    pub(super) snapshot: SnapshotId,
}

pub(super) fn backup(table: &dyn Table, id: BackupId) -> Result<Option<BackupRecord>> {
    read(table, BACKUPS, id.object())
}

pub(super) fn need_backup(table: &dyn Table, id: BackupId) -> Result<BackupRecord> {
    backup(table, id)?.ok_or_else(|| Error::NotFound { object: "backup", id: id.to_string() })
}

/// The key that exists as long as the backup has a record.
pub(super) fn backup_key(id: ObjectId) -> Vec<u8> {
    segment_key(BACKUPS, id, 0)
}

pub(super) fn insert_backup(stage: &mut dyn Stage, id: BackupId, record: &BackupRecord) -> Result<()> {
    let (object, created) = (id.object(), record.created);
    write(stage, BACKUPS, object, record)?;
    stage.put(timed(vec![BACKUP_TIMES], created, object), Vec::new());
    stage.put(timed(id_key(BACKUPS_OF, record.volume.object()), created, object), Vec::new());
    Ok(())
}

/// Replaces the record of a backup that exists. Creation time and volume are fixed.
pub(super) fn update_backup(stage: &mut dyn Stage, id: BackupId, record: &BackupRecord) -> Result<()> {
    write(stage, BACKUPS, id.object(), record)
}

pub(super) fn remove_backup(stage: &mut dyn Stage, id: BackupId, record: &BackupRecord) -> Result<()> {
    let (object, created) = (id.object(), record.created);
    cut(stage, BACKUPS, object, 0)?;
    stage.delete(timed(vec![BACKUP_TIMES], created, object));
    stage.delete(timed(id_key(BACKUPS_OF, record.volume.object()), created, object));
    Ok(())
}

/// Says of every backup of one project that it is of another.
pub(super) fn move_to_project(stage: &mut dyn Stage, from: &str, to: &str) -> Result<()> {
    for object in backups(None).all(stage.table())? {
        let id = BackupId::new(Uuid::from_bytes(object.0));
        let mut record = need_backup(stage.table(), id)?;
        if record.project.as_deref() == Some(from) {
            record.project = Some(to.to_owned());
            update_backup(stage, id, &record)?;
        }
    }
    Ok(())
}

pub(super) fn backups(volume: Option<VolumeId>) -> Index {
    Index::of(volume.map_or_else(|| vec![BACKUP_TIMES], |v| id_key(BACKUPS_OF, v.object())))
}

pub(super) fn base_of(table: &dyn Table, volume: VolumeId) -> Result<Option<Base>> {
    let Some(value) = table.get(&id_key(BASES, volume.object()))? else { return Ok(None) };
    if value.len() != 32 {
        return Err(Corruption::new("backup base", 0, "length", 32, value.len()).into());
    }
    let id = |at: usize| Uuid::from_bytes(id_at(&value, at));
    Ok(Some(Base { backup: BackupId::new(id(0)), snapshot: SnapshotId::new(id(16)) }))
}

pub(super) fn set_base(stage: &mut dyn Stage, volume: VolumeId, base: Option<Base>) {
    let key = id_key(BASES, volume.object());
    match base {
        Some(base) => {
            let value = [base.backup.raw().into_bytes(), base.snapshot.raw().into_bytes()].concat();
            stage.put(key, value);
        }
        None => stage.delete(key),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(name: Option<String>, bits: u8) -> BackupRecord {
        let on = |n: u8| bits & (1 << n) != 0;
        BackupRecord {
            status: if on(0) { BackupStatus::Available } else { BackupStatus::Error },
            incremental: on(1),
            has_dependent: on(2),
            size_bytes: 1 << 30,
            created: 3,
            updated: on(3).then_some(4),
            volume: VolumeId::new(Uuid::from_u128(5)),
            snapshot: on(4).then_some(SnapshotId::new(Uuid::from_u128(6))),
            parent: on(5).then_some(BackupId::new(Uuid::from_u128(7))),
            pool: Uuid::from_u128(8),
            taken: 9,
            objects: 10,
            stored_bytes: 11,
            piece_bytes: 1 << 20,
            manifest: [12; 32],
            container: "local".into(),
            name,
            description: on(6).then(String::new),
            zone: None,
            volume_type: None,
            project: Some("p".into()),
            fail_reason: on(7).then(|| "why".into()),
        }
    }

    proptest! {
        #[test]
        fn a_record_survives_its_encoding(name in proptest::option::of("\\PC{0,60}"), bits in any::<u8>()) {
            let record = record(name, bits);
            prop_assert_eq!(BackupRecord::decode(&record.encode()).unwrap(), record);
        }

        #[test]
        fn what_decodes_is_the_one_encoding(at in any::<proptest::sample::Index>(), bit in 0u8..8, cut in any::<proptest::sample::Index>()) {
            let mut bytes = record(Some("n".into()), 0xff).encode();
            let n = bytes.len();
            bytes[at.index(n)] ^= 1 << bit;
            if let Ok(read) = BackupRecord::decode(&bytes) {
                prop_assert_eq!(read.encode(), bytes.clone());
            }
            prop_assert!(BackupRecord::decode(&bytes[..cut.index(n)]).is_err());
        }
    }
}
