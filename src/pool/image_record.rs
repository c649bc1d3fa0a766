//! What the catalogue stores about an image.
//!
//! Little-endian. Version 1:
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 1 | version | 1 |
//! | 1 | 1 | kind | 3 image |
//! | 2 | 1 | status | 1 queued, 2 active |
//! | 3 | 1 | flags | bit 0 public, 1 protected, 2 has name, 3 has checksum, 4 has been updated |
//! | 4 | 4 | project | number of its owner |
//! | 8 | 8 | virtual_bytes | size of its map in bytes; 0 while queued |
//! | 16 | 8 | created | microseconds since 1970 |
//! | 24 | 8 | updated | microseconds since 1970; 0 without flag 4 |
//! | 32 | 8 | size_bytes | size as it was handed over; 0 while queued |
//! | 40 | 8 | min_disk_bytes | least size of a volume made from it |
//! | 48 | 4 | length | bytes in the whole record |
//! | 52 | 2 | tags | how many |
//! | 54 | 2 | reserved | zero |
//! | 56 | 8 | min_ram_bytes | least memory of a server that boots from it |
//! | 64 | 4 | lengths | of name, container format, disk format, checksum |
//! | 68 | 12 | reserved | zero |
//! | 80 | | texts | name, container format, disk format, checksum |
//! | | | tags | per tag: length (1), text; ascending |

use std::collections::BTreeSet;

use crate::error::{Corruption, Result};
use crate::units::{BLOCK_BYTES, MAX_VOLUME_BYTES};

use super::fields::{Texts, u16_at, u32_at, u64_at};
use super::image::{ImageStatus, MAX_TAGS};
use super::records::Record;

const HEAD: usize = 80;
const VERSION: u8 = 1;
const KIND: u8 = 3;
const PUBLIC: u8 = 1;
const PROTECTED: u8 = 2;
const HAS_NAME: u8 = 4;
const HAS_CHECKSUM: u8 = 8;
const HAS_UPDATED: u8 = 16;
const MAX_RECORD_BYTES: usize = HEAD + 4 * 255 + MAX_TAGS * 256;

#[derive(Clone, PartialEq, Debug)]
pub(super) struct ImageRecord {
    pub(super) status: ImageStatus,
    pub(super) public: bool,
    pub(super) protected: bool,
    pub(super) name: Option<String>,
    pub(super) container_format: String,
    pub(super) disk_format: String,
    pub(super) checksum: Option<String>,
    pub(super) tags: BTreeSet<String>,
    pub(super) project: u32,
    pub(super) virtual_bytes: u64,
    pub(super) size_bytes: u64,
    pub(super) min_disk_bytes: u64,
    pub(super) min_ram_bytes: u64,
    pub(super) created: u64,
    pub(super) updated: Option<u64>,
}

impl Record for ImageRecord {
    const STRUCTURE: &'static str = "image record";

    fn declared_len(first: &[u8]) -> Result<usize, Corruption> {
        let len = first.get(48..52).map_or(0, |b| u32_at(b, 0) as usize);
        if !(HEAD..=MAX_RECORD_BYTES).contains(&len) {
            let want = format!("{HEAD} to {MAX_RECORD_BYTES} bytes");
            return Err(Corruption::new(Self::STRUCTURE, 0, "length", want, len));
        }
        Ok(len)
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; HEAD];
        out[..3].copy_from_slice(&[VERSION, KIND, self.status.code()]);
        out[3] = (u8::from(self.public) * PUBLIC)
            | (u8::from(self.protected) * PROTECTED)
            | (u8::from(self.name.is_some()) * HAS_NAME)
            | (u8::from(self.checksum.is_some()) * HAS_CHECKSUM)
            | (u8::from(self.updated.is_some()) * HAS_UPDATED);
        out[4..8].copy_from_slice(&self.project.to_le_bytes());
        let numbers = [
            (8, self.virtual_bytes),
            (16, self.created),
            (24, self.updated.unwrap_or(0)),
            (32, self.size_bytes),
            (40, self.min_disk_bytes),
            (56, self.min_ram_bytes),
        ];
        for (at, number) in numbers {
            out[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        out[52..54].copy_from_slice(&(self.tags.len() as u16).to_le_bytes());
        let texts = [
            self.name.as_deref().unwrap_or(""),
            &self.container_format,
            &self.disk_format,
            self.checksum.as_deref().unwrap_or(""),
        ];
        for (n, text) in texts.into_iter().enumerate() {
            // Within its limit.
            out[64 + n] = text.len() as u8;
            out.extend_from_slice(text.as_bytes());
        }
        for tag in &self.tags {
            out.push(tag.len() as u8);
            out.extend_from_slice(tag.as_bytes());
        }
        let len = out.len() as u32;
        out[48..52].copy_from_slice(&len.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, Corruption> {
        let bad =
            |field, expected: &str, found: u64| Corruption::new(Self::STRUCTURE, 0, field, expected, found);
        if bytes.len() != Self::declared_len(bytes)? {
            return Err(bad("length", "as declared", bytes.len() as u64));
        }
        if bytes[..2] != [VERSION, KIND] {
            return Err(bad("version", "1, of an image", bytes[0].into()));
        }
        let flags = bytes[3];
        if flags > 31 || bytes[54..56] != [0; 2] || bytes[68..HEAD] != [0; 12] {
            return Err(bad("flags", "bits 0 to 4, zeroes where reserved", flags.into()));
        }
        let status =
            ImageStatus::from_code(bytes[2]).ok_or_else(|| bad("status", "1 or 2", bytes[2].into()))?;
        let virtual_bytes = u64_at(bytes, 8);
        if virtual_bytes > MAX_VOLUME_BYTES || !virtual_bytes.is_multiple_of(BLOCK_BYTES) {
            return Err(bad("virtual_bytes", "whole blocks, at most 1 EiB", virtual_bytes));
        }
        let updated = u64_at(bytes, 24);
        if updated != 0 && flags & HAS_UPDATED == 0 {
            return Err(bad("updated", "0", updated));
        }
        let mut rest = Texts { bytes: &bytes[HEAD..], structure: Self::STRUCTURE };
        let name = rest.optional(flags & HAS_NAME != 0, bytes[64].into(), "name")?;
        let container_format = rest.take(bytes[65].into(), "container format")?;
        let disk_format = rest.take(bytes[66].into(), "disk format")?;
        let checksum = rest.optional(flags & HAS_CHECKSUM != 0, bytes[67].into(), "checksum")?;
        let mut tags = BTreeSet::new();
        for _ in 0..u16_at(bytes, 52) {
            let Some((len, text)) = rest.bytes.split_first() else {
                return Err(rest.bad("tags", "as many as declared", tags.len()));
            };
            rest.bytes = text;
            let tag = rest.take((*len).into(), "tag")?;
            if tags.last().is_some_and(|last| *last >= tag) {
                return Err(rest.bad("tag", "ascending tags", tag));
            }
            tags.insert(tag);
        }
        rest.end()?;
        Ok(Self {
            status,
            public: flags & PUBLIC != 0,
            protected: flags & PROTECTED != 0,
            name,
            container_format,
            disk_format,
            checksum,
            tags,
            project: u32_at(bytes, 4),
            virtual_bytes,
            size_bytes: u64_at(bytes, 32),
            min_disk_bytes: u64_at(bytes, 40),
            min_ram_bytes: u64_at(bytes, 56),
            created: u64_at(bytes, 16),
            updated: (flags & HAS_UPDATED != 0).then_some(updated),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn image_records_survive_their_encoding_and_damage_never_panics(
            name in proptest::option::of("\\PC{0,60}"),
            checksum in proptest::option::of("[0-9a-f]{32}"),
            tags in proptest::collection::btree_set("\\PC{0,60}", 0..9),
            numbers in any::<[u64; 4]>(),
            blocks in 0u64..1 << 48,
            updated in proptest::option::of(any::<u64>()),
            damage in (any::<proptest::sample::Index>(), any::<u8>()),
        ) {
            let record = ImageRecord {
                status: ImageStatus::Active,
                public: numbers[0] % 2 == 0,
                protected: numbers[1] % 2 == 0,
                name,
                container_format: "bare".into(),
                disk_format: "qcow2".into(),
                checksum,
                tags,
                project: 7,
                virtual_bytes: blocks * 4096,
                size_bytes: numbers[0],
                min_disk_bytes: numbers[1],
                min_ram_bytes: numbers[2],
                created: numbers[3],
                updated,
            };
            let mut bytes = record.encode();
            prop_assert_eq!(ImageRecord::decode(&bytes).unwrap(), record);
            let at = damage.0.index(bytes.len());
            bytes[at] = damage.1;
            if let Ok(read) = ImageRecord::decode(&bytes) {
                prop_assert_eq!(read.encode(), bytes.clone());
            }
            let _ = ImageRecord::decode(&bytes[..at]);
        }
    }
}
