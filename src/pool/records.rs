//! What the catalogue stores about a volume and a snapshot: one versioned encoding for both.
//!
//! Little-endian. Version 1:
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 1 | version | 1 |
//! | 1 | 1 | kind | 1 volume, 2 snapshot |
//! | 2 | 1 | status | number of the status |
//! | 3 | 1 | flags | bit 0 shared (volume) or held (snapshot), 1 has name, 2 has description, 3 has been updated |
//! | 4 | 4 | tag | volume: source (0 blank, 1 snapshot, 2 volume); snapshot: epoch |
//! | 8 | 8 | size_bytes | virtual size in bytes |
//! | 16 | 8 | created | microseconds since 1970 |
//! | 24 | 8 | updated | microseconds since 1970; 0 without flag 3 |
//! | 32 | 16 | other | volume: id of the source, 0 when blank; snapshot: id of its volume |
//! | 48 | 4 | length | bytes in the whole record |
//! | 52 | 4 | pairs | metadata pairs |
//! | 56 | 1 | name length | bytes; 0 without flag 1 |
//! | 57 | 1 | description length | bytes; 0 without flag 2 |
//! | 58 | 38 | reserved | zero: options and key id of the object |
//! | 96 | | name, description | UTF-8 |
//! | | | metadata | per pair: key length (1), value length (1), key, value; keys ascend |
//!
//! What every reader needs stands first and at fixed places; what varies comes last, the only unbounded part
//! at the very end, so that a reader of the first segment knows how much follows.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::error::{Corruption, Result};
use crate::units::{BLOCK_BYTES, MAX_VOLUME_BYTES, SnapshotId, VolumeId};

use super::limits::MAX_METADATA_BYTES;
use super::status::{SnapshotStatus, VolumeStatus};
use super::volume::VolumeSource;

/// Bytes before the name.
const HEAD: usize = 96;
const VERSION: u8 = 1;
const KIND_VOLUME: u8 = 1;
const KIND_SNAPSHOT: u8 = 2;
const MARKED: u8 = 1;
const HAS_NAME: u8 = 2;
const HAS_DESCRIPTION: u8 = 4;
const HAS_UPDATED: u8 = 8;
/// More bytes than any record within the limits has: pairs of two length bytes and two strings that are
/// not both empty, hence at most three times the text.
const MAX_RECORD_BYTES: usize = HEAD + 2 * 255 + 3 * MAX_METADATA_BYTES + 2;

const _: () = assert!(MAX_RECORD_BYTES < u32::MAX as usize);

#[derive(Clone, PartialEq, Debug)]
pub(super) struct VolumeRecord {
    pub(super) status: VolumeStatus,
    pub(super) multiattach: bool,
    pub(super) source: VolumeSource,
    pub(super) common: Common,
}

#[derive(Clone, PartialEq, Debug)]
pub(super) struct SnapshotRecord {
    pub(super) status: SnapshotStatus,
    pub(super) held: bool,
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
}

/// A record whose bytes the catalogue can store in segments.
pub(super) trait Record: Sized {
    const STRUCTURE: &'static str;
    fn encode(&self) -> Vec<u8>;
    fn decode(bytes: &[u8]) -> Result<Self, Corruption>;
}

impl Record for VolumeRecord {
    const STRUCTURE: &'static str = "volume record";

    fn encode(&self) -> Vec<u8> {
        let (tag, other) = match self.source {
            VolumeSource::Blank => (0, Uuid::nil()),
            VolumeSource::Snapshot(id) => (1, id.raw()),
            VolumeSource::Volume(id) => (2, id.raw()),
        };
        let marked = u8::from(self.multiattach) * MARKED;
        self.common.encode([KIND_VOLUME, self.status.code(), marked], tag, other)
    }

    fn decode(bytes: &[u8]) -> Result<Self, Corruption> {
        let head = Head::decode(bytes, KIND_VOLUME, Self::STRUCTURE)?;
        let bad =
            |field, expected: &str, found: u64| Corruption::new(Self::STRUCTURE, 0, field, expected, found);
        let status = VolumeStatus::from_code(head.status)
            .ok_or_else(|| bad("status", "a volume status", head.status.into()))?;
        let source = match (head.tag, head.other) {
            (0, id) if id.is_nil() => VolumeSource::Blank,
            (1, id) => VolumeSource::Snapshot(SnapshotId::new(id)),
            (2, id) => VolumeSource::Volume(VolumeId::new(id)),
            (tag, _) => return Err(bad("source", "0 without an id, 1 or 2", tag.into())),
        };
        Ok(Self { status, multiattach: head.marked, source, common: head.common })
    }
}

impl Record for SnapshotRecord {
    const STRUCTURE: &'static str = "snapshot record";

    fn encode(&self) -> Vec<u8> {
        let marked = u8::from(self.held) * MARKED;
        self.common.encode([KIND_SNAPSHOT, self.status.code(), marked], self.epoch, self.volume.raw())
    }

    fn decode(bytes: &[u8]) -> Result<Self, Corruption> {
        let head = Head::decode(bytes, KIND_SNAPSHOT, Self::STRUCTURE)?;
        let status = SnapshotStatus::from_code(head.status)
            .ok_or_else(|| Corruption::new(Self::STRUCTURE, 0, "status", "a snapshot status", head.status))?;
        Ok(Self {
            status,
            held: head.marked,
            volume: VolumeId::new(head.other),
            epoch: head.tag,
            common: head.common,
        })
    }
}

/// The length that the first segment of a record declares for the whole.
pub(super) fn declared_len(first: &[u8], structure: &'static str) -> Result<usize, Corruption> {
    let len = first.get(48..52).map_or(0, |b| u32_at(b, 0) as usize);
    if !(HEAD..=MAX_RECORD_BYTES).contains(&len) {
        let want = format!("{HEAD} to {MAX_RECORD_BYTES} bytes");
        return Err(Corruption::new(structure, 0, "length", want, len));
    }
    Ok(len)
}

impl Common {
    fn encode(&self, [kind, status, marked]: [u8; 3], tag: u32, other: Uuid) -> Vec<u8> {
        let name = self.name.as_deref().unwrap_or("");
        let description = self.description.as_deref().unwrap_or("");
        let mut out = vec![0u8; HEAD];
        out[0] = VERSION;
        out[1] = kind;
        out[2] = status;
        out[3] = marked
            | (u8::from(self.name.is_some()) * HAS_NAME)
            | (u8::from(self.description.is_some()) * HAS_DESCRIPTION)
            | (u8::from(self.updated.is_some()) * HAS_UPDATED);
        out[4..8].copy_from_slice(&tag.to_le_bytes());
        out[8..16].copy_from_slice(&self.size_bytes.to_le_bytes());
        out[16..24].copy_from_slice(&self.created.to_le_bytes());
        out[24..32].copy_from_slice(&self.updated.unwrap_or(0).to_le_bytes());
        out[32..48].copy_from_slice(other.as_bytes());
        out[52..56].copy_from_slice(&(self.metadata.len() as u32).to_le_bytes());
        // The limits were checked before a record came to be: every length fits its byte.
        out[56] = name.len() as u8;
        out[57] = description.len() as u8;
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(description.as_bytes());
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
    status: u8,
    marked: bool,
    tag: u32,
    other: Uuid,
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
        let flags = bytes[3];
        if flags & !(MARKED | HAS_NAME | HAS_DESCRIPTION | HAS_UPDATED) != 0 {
            return Err(bad("flags", "only bits 0 to 3".into(), format!("{flags:#x}")));
        }
        if bytes[58..HEAD].iter().any(|b| *b != 0) {
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
        let mut rest = Texts { bytes: &bytes[HEAD..], structure };
        let name = rest.optional(flags & HAS_NAME != 0, bytes[56], "name")?;
        let description = rest.optional(flags & HAS_DESCRIPTION != 0, bytes[57], "description")?;
        let metadata = rest.pairs(u32_at(bytes, 52))?;
        Ok(Self {
            status: bytes[2],
            marked: flags & MARKED != 0,
            tag: u32_at(bytes, 4),
            other: Uuid::from_bytes(id_at(bytes, 32)),
            common: Common {
                name,
                description,
                size_bytes,
                metadata,
                created: u64_at(bytes, 16),
                updated: (flags & HAS_UPDATED != 0).then_some(updated),
            },
        })
    }
}

/// The strings behind the head, taken one after another.
struct Texts<'a> {
    bytes: &'a [u8],
    structure: &'static str,
}

impl Texts<'_> {
    fn bad(&self, field: &'static str, expected: &str, found: impl ToString) -> Corruption {
        Corruption::new(self.structure, 0, field, expected, found)
    }

    fn take(&mut self, len: usize, field: &'static str) -> Result<String, Corruption> {
        let Some((text, rest)) = self.bytes.split_at_checked(len) else {
            return Err(self.bad(field, &format!("{len} bytes"), format!("{} bytes", self.bytes.len())));
        };
        let text = std::str::from_utf8(text).map_err(|e| self.bad(field, "UTF-8", e))?;
        self.bytes = rest;
        Ok(text.to_owned())
    }

    fn optional(
        &mut self,
        present: bool,
        len: u8,
        field: &'static str,
    ) -> Result<Option<String>, Corruption> {
        if !present && len != 0 {
            return Err(self.bad(field, "no bytes without its flag", len));
        }
        let text = self.take(usize::from(len), field)?;
        Ok(present.then_some(text))
    }

    fn pairs(&mut self, count: u32) -> Result<BTreeMap<String, String>, Corruption> {
        // The count is not trusted with memory: each pair is read before room is made for it.
        let mut out = BTreeMap::new();
        for _ in 0..count {
            let Some(([key, value], rest)) = self.bytes.split_first_chunk::<2>() else {
                return Err(self.bad("metadata", &format!("{count} pairs"), out.len()));
            };
            let (key, value) = (usize::from(*key), usize::from(*value));
            self.bytes = rest;
            let key = self.take(key, "metadata key")?;
            let value = self.take(value, "metadata value")?;
            if out.last_key_value().is_some_and(|(last, _)| *last >= key) {
                return Err(self.bad("metadata key", "ascending keys", key));
            }
            out.insert(key, value);
        }
        if !self.bytes.is_empty() {
            return Err(self.bad("metadata", "no bytes behind the last pair", self.bytes.len()));
        }
        Ok(out)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut le = [0; 4];
    le.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(le)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut le = [0; 8];
    le.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(le)
}

fn id_at(bytes: &[u8], at: usize) -> [u8; 16] {
    let mut id = [0; 16];
    id.copy_from_slice(&bytes[at..at + 16]);
    id
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
        )
            .prop_map(|(name, description, blocks, metadata, created, updated)| Common {
                name,
                description,
                size_bytes: blocks * 4096,
                metadata,
                created,
                updated,
            })
    }

    proptest! {
        #[test]
        fn records_survive_their_encoding(common in common(), id in any::<u128>(), mark in any::<bool>(), pick in 0usize..18, epoch in any::<u32>()) {
            let id = Uuid::from_u128(id);
            let source = match pick % 3 {
                0 => VolumeSource::Blank,
                1 => VolumeSource::Snapshot(SnapshotId::new(id)),
                _ => VolumeSource::Volume(VolumeId::new(id)),
            };
            let volume = VolumeRecord { status: VolumeStatus::ALL[pick], multiattach: mark, source, common: common.clone() };
            prop_assert_eq!(VolumeRecord::decode(&volume.encode()).unwrap(), volume.clone());
            prop_assert!(SnapshotRecord::decode(&volume.encode()).is_err());
            let snapshot = SnapshotRecord { status: SnapshotStatus::ALL[pick % 7], held: mark, volume: VolumeId::new(id), epoch, common };
            prop_assert_eq!(SnapshotRecord::decode(&snapshot.encode()).unwrap(), snapshot);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = VolumeRecord::decode(&bytes);
            let _ = SnapshotRecord::decode(&bytes);
        }

        #[test]
        fn a_damaged_record_never_panics_and_never_grows(common in common(), at in any::<proptest::sample::Index>(), bit in 0u8..8, cut in any::<proptest::sample::Index>()) {
            let record = VolumeRecord { status: VolumeStatus::Available, multiattach: false, source: VolumeSource::Blank, common };
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
            volume: VolumeId::new(Uuid::from_u128(0x0102)),
            epoch: 9,
            common: Common {
                name: Some("n".into()),
                description: None,
                size_bytes: 4096,
                metadata: BTreeMap::from([("k".into(), "vv".into())]),
                created: 5,
                updated: None,
            },
        };
        let mut want = vec![1, 2, 2, 3, 9, 0, 0, 0];
        want.extend(4096u64.to_le_bytes());
        want.extend(5u64.to_le_bytes());
        want.extend([0; 8]);
        want.extend(0x0102u128.to_be_bytes());
        want.extend([102, 0, 0, 0, 1, 0, 0, 0, 1, 0]);
        want.extend([0; 38]);
        want.extend(b"n\x01\x02kvv");
        assert_eq!(record.encode(), want);
    }
}
