//! The manifest: what one backup is, and which tables make it up. Put last; a backup without one does not exist.
//!
//! Little-endian. Version 1:
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 8 | magic | `SVBACKUP` |
//! | 8 | 4 | version | 1 |
//! | 12 | 4 | length | bytes in the whole manifest |
//! | 16 | 16 | pool | the pool that made it |
//! | 32 | 16 | backup | its own id |
//! | 48 | 16 | volume | the volume it is of |
//! | 64 | 16 | parent | the backup that an incremental one began from; zero for a full one |
//! | 80 | 8 | size_bytes | virtual size of the volume, whole blocks of 4,096 bytes, at most 1 EiB |
//! | 88 | 8 | taken | when the content was what it is here, microseconds since 1970 |
//! | 96 | 4 | piece_bytes | bytes in a range that is one piece: a power of two from 64 KiB to 4 MiB |
//! | 100 | 4 | tables | how many |
//! | 104 | 8 | pieces | in all tables together |
//! | 112 | 8 | stored | blocks of 4,096 bytes in all pieces together |
//! | 120 | 1 | flags | bit 0 has name, 1 has description, 2 has zone, 3 has volume type, 4 has volume name |
//! | 121 | 5 | lengths | bytes of name, description, zone, volume type, volume name; 0 without the flag |
//! | 126 | 34 | reserved | zero |
//! | 160 | | texts | name, description, zone, volume type, volume name: UTF-8 |
//! | | 48 each | tables | number (8), entries (4), reserved, zero (4), digest of the table (32); ascending |
//! | | 32 | digest | BLAKE3 of all bytes before |
//!
//! The texts are for whoever finds the backup without its pool.

use uuid::Uuid;

use super::digest::Digest;
use super::piece::is_piece_bytes;
use super::table::TABLE_PIECES;
use crate::error::{Corruption, Result};
use crate::units::{BLOCK_BYTES, BackupId, MAX_VOLUME_BYTES, VolumeId};

const MAGIC: &[u8; 8] = b"SVBACKUP";
const VERSION: u32 = 1;
const HEAD: usize = 160;
const RESERVED: std::ops::Range<usize> = 126..HEAD;
const TEXTS: usize = 5;
const TABLE: usize = 48;
/// Longest manifest in bytes: with pieces of the usual size, room for tables over 1.3 PiB of a volume where each range
/// has something.
pub(super) const MAX_MANIFEST_BYTES: u64 = 64 << 20;
/// Most tables that surely fit, whatever the texts.
pub(super) const MAX_TABLES: usize =
    (MAX_MANIFEST_BYTES as usize - HEAD - TEXTS * 255 - Digest::BYTES) / TABLE;

/// A table as a manifest names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct TableRef {
    pub(super) number: u64,
    /// How many pieces it names.
    pub(super) entries: u32,
    pub(super) digest: Digest,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Manifest {
    pub(super) pool: Uuid,
    pub(super) backup: BackupId,
    pub(super) volume: VolumeId,
    pub(super) parent: Option<BackupId>,
    pub(super) size_bytes: u64,
    pub(super) taken: u64,
    pub(super) piece_bytes: u64,
    pub(super) pieces: u64,
    pub(super) stored: u64,
    pub(super) name: Option<String>,
    pub(super) description: Option<String>,
    pub(super) zone: Option<String>,
    pub(super) volume_type: Option<String>,
    pub(super) volume_name: Option<String>,
    pub(super) tables: Vec<TableRef>,
}

impl Manifest {
    /// Blocks of 4,096 bytes in a piece.
    pub(super) fn piece_blocks(&self) -> usize {
        // At most 1,024 (checked where it came from).
        (self.piece_bytes / BLOCK_BYTES) as usize
    }

    /// Ranges of a piece each in the whole volume.
    pub(super) fn ranges(&self) -> u64 {
        self.size_bytes.div_ceil(self.piece_bytes)
    }

    fn texts(&self) -> [&Option<String>; TEXTS] {
        [&self.name, &self.description, &self.zone, &self.volume_type, &self.volume_name]
    }

    /// The bytes, and the digest at their end.
    pub(super) fn encode(&self) -> (Vec<u8>, Digest) {
        let mut out = vec![0; HEAD];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(16, self.pool.as_bytes());
        put(32, self.backup.raw().as_bytes());
        put(48, self.volume.raw().as_bytes());
        put(64, self.parent.map_or(Uuid::nil(), BackupId::raw).as_bytes());
        put(80, &self.size_bytes.to_le_bytes());
        put(88, &self.taken.to_le_bytes());
        put(96, &(self.piece_bytes as u32).to_le_bytes());
        put(100, &(self.tables.len() as u32).to_le_bytes());
        put(104, &self.pieces.to_le_bytes());
        put(112, &self.stored.to_le_bytes());
        for (n, text) in self.texts().into_iter().enumerate() {
            let Some(text) = text else { continue };
            out[120] |= 1 << n;
            // The limits were checked before the record came to be: every length fits its byte.
            out[121 + n] = text.len() as u8;
            out.extend_from_slice(text.as_bytes());
        }
        for table in &self.tables {
            out.extend_from_slice(&table.number.to_le_bytes());
            out.extend_from_slice(&table.entries.to_le_bytes());
            out.extend_from_slice(&[0; 4]);
            out.extend_from_slice(&table.digest.0);
        }
        let len = (out.len() + Digest::BYTES) as u32;
        out[12..16].copy_from_slice(&len.to_le_bytes());
        let digest = Digest::of(&out);
        out.extend_from_slice(&digest.0);
        (out, digest)
    }

    /// Reads a manifest and checks every field; returns it with the digest at its end.
    pub(super) fn decode(bytes: &[u8]) -> Result<(Self, Digest), Corruption> {
        let bad = |field, expected: &str, found: String| {
            Corruption::new("backup manifest", 0, field, expected, found)
        };
        if bytes.len() < HEAD + Digest::BYTES || bytes.len() as u64 > MAX_MANIFEST_BYTES {
            return Err(bad("length", "at least 192, at most 64 MiB", bytes.len().to_string()));
        }
        if bytes[..8] != MAGIC[..] {
            return Err(bad("magic", "SVBACKUP", format!("{:02x?}", &bytes[..8])));
        }
        if u32_at(bytes, 8) != VERSION {
            return Err(bad("version", "1", u32_at(bytes, 8).to_string()));
        }
        if u32_at(bytes, 12) as usize != bytes.len() {
            return Err(bad("length", &u32_at(bytes, 12).to_string(), bytes.len().to_string()));
        }
        let (body, end) = bytes.split_at(bytes.len() - Digest::BYTES);
        let digest = Digest::of(body);
        if digest.0[..] != *end {
            return Err(bad("digest", &digest.to_string(), "another".into()));
        }
        if body[RESERVED].iter().any(|b| *b != 0) {
            return Err(bad("reserved", "zeroes", "other bytes".into()));
        }
        let (size_bytes, piece_bytes) = (u64_at(body, 80), u64::from(u32_at(body, 96)));
        if size_bytes == 0 || size_bytes > MAX_VOLUME_BYTES || !size_bytes.is_multiple_of(BLOCK_BYTES) {
            return Err(bad("size_bytes", "whole blocks, at most 1 EiB", size_bytes.to_string()));
        }
        if !is_piece_bytes(piece_bytes) {
            return Err(bad("piece_bytes", "a power of two from 64 KiB to 4 MiB", piece_bytes.to_string()));
        }
        let flags = body[120];
        if flags >> TEXTS != 0 {
            return Err(bad("flags", "only bits 0 to 4", format!("{flags:#x}")));
        }
        let mut rest = &body[HEAD..];
        let mut text = |n: usize, field| -> Result<Option<String>, Corruption> {
            let (present, len) = (flags & (1 << n) != 0, usize::from(body[121 + n]));
            if !present && len != 0 {
                return Err(bad(field, "no bytes without its flag", len.to_string()));
            }
            let Some((bytes, behind)) = rest.split_at_checked(len) else {
                return Err(bad(field, &format!("{len} bytes"), rest.len().to_string()));
            };
            rest = behind;
            let text = std::str::from_utf8(bytes).map_err(|e| bad(field, "UTF-8", e.to_string()))?;
            Ok(present.then(|| text.to_owned()))
        };
        let name = text(0, "name")?;
        let description = text(1, "description")?;
        let zone = text(2, "zone")?;
        let volume_type = text(3, "volume type")?;
        let volume_name = text(4, "volume name")?;
        let parent = Some(id_at(body, 64)).filter(|id| !id.is_nil()).map(BackupId::new);
        let mut manifest = Self {
            pool: id_at(body, 16),
            backup: BackupId::new(id_at(body, 32)),
            volume: VolumeId::new(id_at(body, 48)),
            parent,
            size_bytes,
            taken: u64_at(body, 88),
            piece_bytes,
            pieces: u64_at(body, 104),
            stored: u64_at(body, 112),
            name,
            description,
            zone,
            volume_type,
            volume_name,
            tables: Vec::new(),
        };
        manifest.tables = manifest.decode_tables(rest, u32_at(body, 100))?;
        Ok((manifest, digest))
    }

    fn decode_tables(&self, bytes: &[u8], count: u32) -> Result<Vec<TableRef>, Corruption> {
        let bad = |field, expected: String, found: String| {
            Corruption::new("backup manifest", 0, field, expected, found)
        };
        let (tables, rest) = bytes.as_chunks::<TABLE>();
        if tables.len() != count as usize || !rest.is_empty() {
            return Err(bad("tables", count.to_string(), format!("{} bytes", bytes.len())));
        }
        // No more than what the bytes at hand hold.
        let mut out: Vec<TableRef> = Vec::with_capacity(tables.len());
        let limit = self.ranges().div_ceil(TABLE_PIECES);
        let mut sum = 0u64;
        for table in tables {
            let (number, entries) = (u64_at(table, 0), u32_at(table, 8));
            if number >= limit || out.last().is_some_and(|last| last.number >= number) {
                return Err(bad("table number", format!("ascending, below {limit}"), number.to_string()));
            }
            if !(1..=TABLE_PIECES).contains(&entries.into()) || table[12..16] != [0; 4] {
                return Err(bad("table entries", format!("1 to {TABLE_PIECES}"), entries.to_string()));
            }
            sum += u64::from(entries);
            let mut digest = [0; Digest::BYTES];
            digest.copy_from_slice(&table[16..]);
            out.push(TableRef { number, entries, digest: Digest(digest) });
        }
        if sum != self.pieces {
            return Err(bad("pieces", sum.to_string(), self.pieces.to_string()));
        }
        let most = sum.saturating_mul(self.piece_blocks() as u64);
        if self.stored < sum || self.stored > most {
            return Err(bad("stored", format!("{sum} to {most}"), self.stored.to_string()));
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

fn id_at(bytes: &[u8], at: usize) -> Uuid {
    let mut id = [0; 16];
    id.copy_from_slice(&bytes[at..at + 16]);
    Uuid::from_bytes(id)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn manifest(tables: u64, name: Option<String>) -> Manifest {
        let table =
            |n: u64| TableRef { number: n * 2, entries: 1 + n as u32, digest: Digest::of(&n.to_le_bytes()) };
        let pieces = (0..tables).map(|n| n + 1).sum();
        Manifest {
            pool: Uuid::from_u128(1),
            backup: BackupId::new(Uuid::from_u128(2)),
            volume: VolumeId::new(Uuid::from_u128(3)),
            parent: None,
            size_bytes: 1 << 50,
            taken: 4,
            piece_bytes: 1 << 16,
            pieces,
            stored: pieces * 16,
            name,
            description: None,
            zone: Some("az1".into()),
            volume_type: None,
            volume_name: Some(String::new()),
            tables: (0..tables).map(table).collect(),
        }
    }

    /// With the digest made right again, as somebody who means harm would.
    fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.truncate(bytes.len() - 32);
        let digest = Digest::of(&bytes);
        bytes.extend(digest.0);
        bytes
    }

    proptest! {
        #[test]
        fn a_manifest_survives_its_encoding(tables in 0u64..9, name in proptest::option::of("\\PC{0,60}"), parent in any::<u128>()) {
            let parent = Some(Uuid::from_u128(parent)).filter(|id| !id.is_nil()).map(BackupId::new);
            let manifest = Manifest { parent, ..manifest(tables, name) };
            let (bytes, digest) = manifest.encode();
            prop_assert_eq!(Manifest::decode(&bytes).unwrap(), (manifest, digest));
        }

        #[test]
        fn a_flipped_bit_is_noticed(at in any::<proptest::sample::Index>(), bit in 0u8..8) {
            let (mut bytes, _) = manifest(3, Some("n".into())).encode();
            let n = bytes.len();
            bytes[at.index(n)] ^= 1 << bit;
            prop_assert!(Manifest::decode(&bytes).is_err());
            prop_assert!(Manifest::decode(&bytes[..at.index(n)]).is_err());
        }

        #[test]
        fn a_hostile_manifest_is_refused_or_the_one_encoding(edits in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4)) {
            let (mut bytes, _) = manifest(3, Some("n".into())).encode();
            for (at, value) in edits {
                let n = bytes.len();
                bytes[at.index(n)] = value;
            }
            let bytes = sealed(bytes);
            if let Ok((read, _)) = Manifest::decode(&bytes) {
                prop_assert_eq!(read.encode().0, bytes);
            }
        }

        #[test]
        fn any_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(Manifest::decode(&bytes).is_err());
        }
    }

    #[test]
    fn the_encoding_is_the_documented_one() {
        let table = TableRef { number: 1, entries: 2, digest: Digest([6; 32]) };
        let manifest = Manifest {
            parent: Some(BackupId::new(Uuid::from_u128(5))),
            size_bytes: 1 << 40,
            pieces: 2,
            stored: 3,
            tables: vec![table],
            ..manifest(0, Some("n1".into()))
        };
        let mut want = b"SVBACKUP\x01\0\0\0".to_vec();
        want.extend(245u32.to_le_bytes());
        for id in [1u128, 2, 3, 5] {
            want.extend(id.to_be_bytes());
        }
        want.extend((1u64 << 40).to_le_bytes());
        want.extend(4u64.to_le_bytes());
        want.extend([0, 0, 1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        want.extend([0b10101, 2, 0, 3, 0, 0]);
        want.extend([0; 34]);
        want.extend(b"n1az1");
        want.extend([1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        want.extend([6; 32]);
        let digest = Digest::of(&want);
        want.extend(digest.0);
        assert_eq!(manifest.encode(), (want, digest));
    }

    #[test]
    fn a_manifest_with_a_right_digest_and_wrong_fields_is_refused_by_field() {
        let (bytes, _) = manifest(3, Some("n".into())).encode();
        let refused = |at: usize, with: &[u8]| {
            let mut bytes = bytes.clone();
            bytes[at..at + with.len()].copy_from_slice(with);
            Manifest::decode(&sealed(bytes)).err().map(|c| c.field)
        };
        let tables = bytes.len() - 32 - 3 * 48;
        for (field, at, with) in [
            ("magic", 0, &b"X"[..]),
            ("version", 8, &[2]),
            ("length", 12, &[1]),
            ("size_bytes", 80, &[1]),
            ("size_bytes", 87, &[0xff]),
            ("piece_bytes", 96, &[0, 0, 0, 0]),
            ("piece_bytes", 96, &[0, 0, 0, 0x80]),
            ("tables", 100, &[0xff, 0xff, 0xff, 0xff]),
            ("pieces", 104, &[9]),
            ("stored", 112, &[0, 0]),
            ("stored", 119, &[0xff]),
            ("flags", 120, &[0xff]),
            ("name", 121, &[0xff]),
            ("description", 122, &[1]),
            ("name", 160, &[0xff]),
            ("reserved", 126, &[1]),
            ("table number", tables + 6, &[1]),
            ("table number", tables, &[4]),
            ("table entries", tables + 8, &[0]),
            ("table entries", tables + 10, &[1]),
            ("table entries", tables + 12, &[1]),
        ] {
            assert_eq!(refused(at, with), Some(field), "at {at}");
        }
    }
}
