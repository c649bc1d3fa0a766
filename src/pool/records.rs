//! What the catalogue stores about a volume and a snapshot: one versioned encoding for both.
//!
//! Little-endian. Version 2:
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 1 | version | 2 |
//! | 1 | 1 | kind | 1 volume, 2 snapshot |
//! | 2 | 1 | status | number of the status |
//! | 3 | 1 | source | volume: 0 blank, 1 snapshot, 2 volume, 3 image, 4 backup, 5 base; snapshot: 0 |
//! | 4 | 4 | epoch | snapshot: the epoch it ended; volume: 0 |
//! | 8 | 8 | size_bytes | virtual size in bytes |
//! | 16 | 8 | created | microseconds since 1970 |
//! | 24 | 8 | updated | microseconds since 1970; 0 without flag 3 |
//! | 32 | 16 | other | volume: id of the source, 0 when blank; snapshot: id of its volume |
//! | 48 | 4 | length | bytes in the whole record |
//! | 52 | 4 | pairs | metadata pairs |
//! | 56 | 4 | project | number of the project |
//! | 60 | 2 | zone | number of the zone |
//! | 62 | 2 | flags | bit 0 shared (volume) or held (snapshot), 1 has name, 2 has description, 3 has been updated, 4 has a type, 5 has a placement hint, 6 bootable, 7 read-only (volume) or of a backup (snapshot), 8 automatic (snapshot) |
//! | 64 | 8 | alias | the short id behind its prefix: `a`-`z`, `0`-`9` |
//! | 72 | 2 | name length | bytes; 0 without flag 1 |
//! | 74 | 2 | description length | bytes; 0 without flag 2 |
//! | 76 | 2 | type length | bytes; 0 without flag 4 |
//! | 78 | 2 | placement length | bytes; 0 without flag 5 |
//! | 80 | 16 | reserved | zero: options and key id of the object |
//! | 96 | | name, description, type, placement | UTF-8 |
//! | | | metadata | per pair: key length (1), value length (1), key, value; keys ascend |
//!
//! What every reader needs stands first and at fixed places; what varies comes last, the only unbounded part
//! at the very end, so that a reader of the first segment knows how much follows.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::error::{Corruption, Result};
use crate::units::{BLOCK_BYTES, BackupId, BaseId, ImageId, MAX_VOLUME_BYTES, SnapshotId, VolumeId};

use super::aliases::Alias;
use super::fields::{Texts, id_at, u16_at, u32_at, u64_at};
use super::limits::{MAX_METADATA_BYTES, MAX_PLACEMENT_BYTES, MAX_STORED_TEXT_BYTES, MAX_TEXT_BYTES};
use super::status::{SnapshotStatus, VolumeStatus};
use super::volume::VolumeSource;

/// Bytes before the name.
const HEAD: usize = 96;
const VERSION: u8 = 2;
const KIND_VOLUME: u8 = 1;
const KIND_SNAPSHOT: u8 = 2;
const MARKED: u16 = 1;
const HAS_NAME: u16 = 2;
const HAS_DESCRIPTION: u16 = 4;
const HAS_UPDATED: u16 = 8;
const HAS_TYPE: u16 = 16;
const HAS_PLACEMENT: u16 = 32;
const BOOTABLE: u16 = 64;
const SPECIAL: u16 = 128;
const AUTOMATIC: u16 = 256;
/// More bytes than any record within the limits has: pairs of two length bytes and two strings that are
/// not both empty, hence at most three times the text.
const MAX_RECORD_BYTES: usize =
    HEAD + 2 * MAX_STORED_TEXT_BYTES + MAX_TEXT_BYTES + MAX_PLACEMENT_BYTES + 3 * MAX_METADATA_BYTES + 2;

const _: () = assert!(MAX_RECORD_BYTES < u32::MAX as usize);

#[derive(Clone, PartialEq, Debug)]
pub(super) struct VolumeRecord {
    pub(super) status: VolumeStatus,
    pub(super) multiattach: bool,
    pub(super) read_only: bool,
    pub(super) placement: Option<String>,
    pub(super) source: VolumeSource,
    pub(super) common: Common,
}

#[derive(Clone, PartialEq, Debug)]
pub(super) struct SnapshotRecord {
    pub(super) status: SnapshotStatus,
    pub(super) held: bool,
    pub(super) backup_owned: bool,
    pub(super) automatic: bool,
    pub(super) volume: VolumeId,
    pub(super) epoch: u32,
    pub(super) common: Common,
}

/// What both have.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Common {
    pub(super) name: Option<String>,
    pub(super) description: Option<String>,
    pub(super) size_bytes: u64,
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) created: u64,
    pub(super) updated: Option<u64>,
    pub(super) project: u32,
    pub(super) zone: u16,
    pub(super) alias: Alias,
    pub(super) volume_type: Option<String>,
    /// Whether a server can boot from it; of a snapshot: whether one could from its volume at that moment.
    pub(super) bootable: bool,
}

/// A record whose bytes the catalogue can store in segments.
pub(super) trait Record: Sized {
    const STRUCTURE: &'static str;
    fn encode(&self) -> Vec<u8>;
    fn decode(bytes: &[u8]) -> Result<Self, Corruption>;
    /// The length of the whole that the first segment declares.
    fn declared_len(first: &[u8]) -> Result<usize, Corruption> {
        declared_len(first, Self::STRUCTURE)
    }
}

impl Record for VolumeRecord {
    const STRUCTURE: &'static str = "volume record";

    fn encode(&self) -> Vec<u8> {
        let (source, other) = match self.source {
            VolumeSource::Blank => (0, Uuid::nil()),
            VolumeSource::Snapshot(id) => (1, id.raw()),
            VolumeSource::Volume(id) => (2, id.raw()),
            VolumeSource::Image(id) => (3, id.raw()),
            VolumeSource::Backup(id) => (4, id.raw()),
            VolumeSource::Base(id) => (5, id.raw()),
        };
        let flags = (u16::from(self.multiattach) * MARKED) | (u16::from(self.read_only) * SPECIAL);
        let head = Fixed { kind: KIND_VOLUME, status: self.status.code(), source, flags, epoch: 0, other };
        self.common.encode(head, self.placement.as_deref())
    }

    fn decode(bytes: &[u8]) -> Result<Self, Corruption> {
        let head = Head::decode(bytes, KIND_VOLUME, Self::STRUCTURE)?;
        let bad =
            |field, expected: &str, found: u64| Corruption::new(Self::STRUCTURE, 0, field, expected, found);
        let fixed = head.fixed;
        let status = VolumeStatus::from_code(fixed.status)
            .ok_or_else(|| bad("status", "a volume status", fixed.status.into()))?;
        let source = match (fixed.source, fixed.other) {
            (0, id) if id.is_nil() => VolumeSource::Blank,
            (1, id) => VolumeSource::Snapshot(SnapshotId::new(id)),
            (2, id) => VolumeSource::Volume(VolumeId::new(id)),
            (3, id) => VolumeSource::Image(ImageId::new(id)),
            (4, id) => VolumeSource::Backup(BackupId::new(id)),
            (5, id) => VolumeSource::Base(BaseId::new(id)),
            (source, _) => return Err(bad("source", "0 without an id, or 1 to 5", source.into())),
        };
        if fixed.epoch != 0 {
            return Err(bad("epoch", "0", fixed.epoch.into()));
        }
        if fixed.flags & AUTOMATIC != 0 {
            return Err(bad("flags", "no bit of a snapshot", fixed.flags.into()));
        }
        Ok(Self {
            status,
            multiattach: fixed.flags & MARKED != 0,
            read_only: fixed.flags & SPECIAL != 0,
            placement: head.placement,
            source,
            common: head.common,
        })
    }
}

impl Record for SnapshotRecord {
    const STRUCTURE: &'static str = "snapshot record";

    fn encode(&self) -> Vec<u8> {
        let flags = (u16::from(self.held) * MARKED)
            | (u16::from(self.backup_owned) * SPECIAL)
            | (u16::from(self.automatic) * AUTOMATIC);
        let (status, epoch, other) = (self.status.code(), self.epoch, self.volume.raw());
        self.common.encode(Fixed { kind: KIND_SNAPSHOT, status, source: 0, flags, epoch, other }, None)
    }

    fn decode(bytes: &[u8]) -> Result<Self, Corruption> {
        let head = Head::decode(bytes, KIND_SNAPSHOT, Self::STRUCTURE)?;
        let fixed = head.fixed;
        let bad =
            |field, expected: &str, found: u64| Corruption::new(Self::STRUCTURE, 0, field, expected, found);
        let status = SnapshotStatus::from_code(fixed.status)
            .ok_or_else(|| bad("status", "a snapshot status", fixed.status.into()))?;
        if fixed.source != 0 {
            return Err(bad("source", "0", fixed.source.into()));
        }
        if head.placement.is_some() {
            return Err(bad("flags", "no placement hint of a snapshot", fixed.flags.into()));
        }
        Ok(Self {
            status,
            held: fixed.flags & MARKED != 0,
            backup_owned: fixed.flags & SPECIAL != 0,
            automatic: fixed.flags & AUTOMATIC != 0,
            volume: VolumeId::new(fixed.other),
            epoch: fixed.epoch,
            common: head.common,
        })
    }
}

fn declared_len(first: &[u8], structure: &'static str) -> Result<usize, Corruption> {
    let len = first.get(48..52).map_or(0, |b| u32_at(b, 0) as usize);
    if !(HEAD..=MAX_RECORD_BYTES).contains(&len) {
        let want = format!("{HEAD} to {MAX_RECORD_BYTES} bytes");
        return Err(Corruption::new(structure, 0, "length", want, len));
    }
    Ok(len)
}

/// The numbers of a head that each kind reads in its own way.
struct Fixed {
    kind: u8,
    status: u8,
    source: u8,
    flags: u16,
    epoch: u32,
    other: Uuid,
}

impl Common {
    fn encode(&self, fixed: Fixed, placement: Option<&str>) -> Vec<u8> {
        let texts = [
            (HAS_NAME, self.name.as_deref()),
            (HAS_DESCRIPTION, self.description.as_deref()),
            (HAS_TYPE, self.volume_type.as_deref()),
            (HAS_PLACEMENT, placement),
        ];
        let mut flags = fixed.flags
            | (u16::from(self.updated.is_some()) * HAS_UPDATED)
            | (u16::from(self.bootable) * BOOTABLE);
        let mut out = vec![0u8; HEAD];
        for (n, (flag, text)) in texts.into_iter().enumerate() {
            let Some(text) = text else { continue };
            flags |= flag;
            // The limits were checked before a record came to be: every length fits.
            out[72 + 2 * n..74 + 2 * n].copy_from_slice(&(text.len() as u16).to_le_bytes());
            out.extend_from_slice(text.as_bytes());
        }
        out[..4].copy_from_slice(&[VERSION, fixed.kind, fixed.status, fixed.source]);
        out[4..8].copy_from_slice(&fixed.epoch.to_le_bytes());
        out[8..16].copy_from_slice(&self.size_bytes.to_le_bytes());
        out[16..24].copy_from_slice(&self.created.to_le_bytes());
        out[24..32].copy_from_slice(&self.updated.unwrap_or(0).to_le_bytes());
        out[32..48].copy_from_slice(fixed.other.as_bytes());
        out[52..56].copy_from_slice(&(self.metadata.len() as u32).to_le_bytes());
        out[56..60].copy_from_slice(&self.project.to_le_bytes());
        out[60..62].copy_from_slice(&self.zone.to_le_bytes());
        out[62..64].copy_from_slice(&flags.to_le_bytes());
        out[64..72].copy_from_slice(&self.alias.raw());
        for (key, value) in &self.metadata {
            out.extend_from_slice(&[key.len() as u8, value.len() as u8]);
            out.extend_from_slice(key.as_bytes());
            out.extend_from_slice(value.as_bytes());
        }
        let len = out.len() as u32;
        out[48..52].copy_from_slice(&len.to_le_bytes());
        out
    }
}

struct Head {
    fixed: Fixed,
    placement: Option<String>,
    common: Common,
}

impl Head {
    fn decode(bytes: &[u8], kind: u8, structure: &'static str) -> Result<Self, Corruption> {
        let bad =
            |field, expected: String, found: String| Corruption::new(structure, 0, field, expected, found);
        let number = |field, expected: u64, found: u64| Corruption::new(structure, 0, field, expected, found);
        let len = declared_len(bytes, structure)?;
        if bytes.len() != len {
            return Err(number("length", len as u64, bytes.len() as u64));
        }
        if bytes[0] != VERSION {
            return Err(number("version", VERSION.into(), bytes[0].into()));
        }
        if bytes[1] != kind {
            return Err(number("kind", kind.into(), bytes[1].into()));
        }
        let flags = u16_at(bytes, 62);
        if flags >= AUTOMATIC << 1 {
            return Err(bad("flags", "only bits 0 to 8".into(), format!("{flags:#x}")));
        }
        if bytes[80..HEAD].iter().any(|b| *b != 0) {
            return Err(bad("reserved", "zeroes".into(), "other bytes".into()));
        }
        let size_bytes = u64_at(bytes, 8);
        if size_bytes == 0 || size_bytes > MAX_VOLUME_BYTES || !size_bytes.is_multiple_of(BLOCK_BYTES) {
            return Err(bad("size_bytes", "whole blocks, at most 1 EiB".into(), size_bytes.to_string()));
        }
        let updated = u64_at(bytes, 24);
        if updated != 0 && flags & HAS_UPDATED == 0 {
            return Err(number("updated", 0, updated));
        }
        let mut alias = [0; 8];
        alias.copy_from_slice(&bytes[64..72]);
        let alias = Alias::from_raw(alias)
            .ok_or_else(|| bad("alias", "letters a to z and digits".into(), format!("{alias:?}")))?;
        let mut rest = Texts { bytes: &bytes[HEAD..], structure };
        let name = rest.optional(flags & HAS_NAME != 0, u16_at(bytes, 72), "name")?;
        let description = rest.optional(flags & HAS_DESCRIPTION != 0, u16_at(bytes, 74), "description")?;
        let volume_type = rest.optional(flags & HAS_TYPE != 0, u16_at(bytes, 76), "type")?;
        let placement = rest.optional(flags & HAS_PLACEMENT != 0, u16_at(bytes, 78), "placement")?;
        let metadata = rest.pairs(u32_at(bytes, 52))?;
        rest.end()?;
        Ok(Self {
            fixed: Fixed {
                kind,
                status: bytes[2],
                source: bytes[3],
                flags: flags & (MARKED | SPECIAL | AUTOMATIC),
                epoch: u32_at(bytes, 4),
                other: Uuid::from_bytes(id_at(bytes, 32)),
            },
            placement,
            common: Common {
                name,
                description,
                size_bytes,
                metadata,
                created: u64_at(bytes, 16),
                updated: (flags & HAS_UPDATED != 0).then_some(updated),
                project: u32_at(bytes, 56),
                zone: u16_at(bytes, 60),
                alias,
                volume_type,
                bootable: flags & BOOTABLE != 0,
            },
        })
    }
}

/// For any bytes: what is accepted encodes to them again.
#[cfg(feature = "internals")]
pub(crate) fn law(bytes: &[u8]) {
    super::base::law(bytes);
    if let Ok(volume) = VolumeRecord::decode(bytes) {
        assert!(volume.encode() == bytes, "a volume record has changed");
    }
    if let Ok(snapshot) = SnapshotRecord::decode(bytes) {
        assert!(snapshot.encode() == bytes, "a snapshot record has changed");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn common() -> impl Strategy<Value = Common> {
        (
            proptest::option::of("\\PC{0,60}"),
            proptest::option::of("\\PC{0,60}"),
            1u64..=(1 << 48),
            proptest::collection::btree_map("\\PC{0,20}", "\\PC{0,60}", 0..40),
            any::<u64>(),
            proptest::option::of(any::<u64>()),
            (any::<u32>(), any::<u16>(), any::<u64>(), proptest::option::of("\\PC{0,60}"), any::<bool>()),
        )
            .prop_map(|(name, description, blocks, metadata, created, updated, more)| Common {
                name,
                description,
                size_bytes: blocks * 4096,
                metadata,
                created,
                updated,
                project: more.0,
                zone: more.1,
                alias: Alias::from_hash(more.2),
                volume_type: more.3,
                bootable: more.4,
            })
    }

    proptest! {
        #[test]
        fn records_survive_their_encoding(common in common(), id in any::<u128>(), mark in any::<bool>(), placement in proptest::option::of("\\PC{0,60}"), pick in 0usize..18, epoch in any::<u32>()) {
            let id = Uuid::from_u128(id);
            let source = match pick % 6 {
                0 => VolumeSource::Blank,
                1 => VolumeSource::Snapshot(SnapshotId::new(id)),
                2 => VolumeSource::Volume(VolumeId::new(id)),
                3 => VolumeSource::Image(ImageId::new(id)),
                4 => VolumeSource::Base(BaseId::new(id)),
                _ => VolumeSource::Backup(BackupId::new(id)),
            };
            let (status, multiattach, read_only) = (VolumeStatus::ALL[pick], mark, pick % 2 == 0);
            let volume = VolumeRecord { status, multiattach, read_only, placement, source, common: common.clone() };
            prop_assert_eq!(VolumeRecord::decode(&volume.encode()).unwrap(), volume.clone());
            prop_assert!(SnapshotRecord::decode(&volume.encode()).is_err());
            let snapshot = SnapshotRecord { status: SnapshotStatus::ALL[pick % 7], held: mark, backup_owned: pick % 2 == 0, automatic: pick % 3 == 0, volume: VolumeId::new(id), epoch, common };
            prop_assert_eq!(SnapshotRecord::decode(&snapshot.encode()).unwrap(), snapshot);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = VolumeRecord::decode(&bytes);
            let _ = SnapshotRecord::decode(&bytes);
        }

        #[test]
        fn a_damaged_record_never_panics_and_never_grows(common in common(), at in any::<proptest::sample::Index>(), bit in 0u8..8, cut in any::<proptest::sample::Index>()) {
            let record = VolumeRecord { status: VolumeStatus::Available, multiattach: false, read_only: true, placement: None, source: VolumeSource::Blank, common };
            let mut bytes = record.encode();
            let n = bytes.len();
            bytes[at.index(n)] ^= 1 << bit;
            if let Ok(read) = VolumeRecord::decode(&bytes) {
                // What decodes is canonical: it encodes to the very same bytes.
                prop_assert_eq!(read.encode(), bytes.clone());
            }
            let _ = VolumeRecord::decode(&bytes[..cut.index(n)]);
        }
    }

    #[test]
    fn the_encoding_is_the_documented_one() {
        let record = SnapshotRecord {
            status: SnapshotStatus::Available,
            held: true,
            backup_owned: false,
            automatic: true,
            volume: VolumeId::new(Uuid::from_u128(0x0102)),
            epoch: 9,
            common: Common {
                name: Some("n".into()),
                description: None,
                size_bytes: 4096,
                metadata: BTreeMap::from([("k".into(), "vv".into())]),
                created: 5,
                updated: None,
                project: 3,
                zone: 4,
                alias: Alias::from_raw(*b"abcd0123").unwrap(),
                volume_type: Some("SSD".into()),
                bootable: false,
            },
        };
        let mut want = vec![2, 2, 2, 0, 9, 0, 0, 0];
        want.extend(4096u64.to_le_bytes());
        want.extend(5u64.to_le_bytes());
        want.extend([0; 8]);
        want.extend(0x0102u128.to_be_bytes());
        want.extend([105, 0, 0, 0, 1, 0, 0, 0]);
        want.extend([3, 0, 0, 0, 4, 0, 0b0001_0011, 1]);
        want.extend(b"abcd0123");
        want.extend([1, 0, 0, 0, 3, 0, 0, 0]);
        want.extend([0; 16]);
        want.extend(b"nSSD\x01\x02kvv");
        assert_eq!(record.encode(), want);
    }
}
