//! A table: which pieces make up 4,096 neighbouring ranges of a volume. An incremental backup takes over, by name,
//! every table in whose ranges nothing has changed.
//!
//! Little-endian. Version 1:
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 8 | magic | `SVTABLE`, 0x01 |
//! | 8 | 8 | number | the table is for ranges 4,096 x number on |
//! | 16 | 4 | entries | 1 to 4,096 |
//! | 20 | 4 | reserved | zero |
//! | 24 | 40 each | entry | ascending by index |
//!
//! An entry: index of the range in the table (2), stored blocks (2), reserved, zero (4), digest of the piece (32).
//! A range without an entry reads zero.

use std::collections::BTreeMap;

use super::digest::Digest;
use super::piece::encoded_len;
use crate::error::{Corruption, Result};

const MAGIC: &[u8; 8] = b"SVTABLE\x01";
const HEAD: usize = 24;
const ENTRY: usize = 40;
/// Ranges that one table is for.
pub(super) const TABLE_PIECES: u64 = 4096;
/// Longest table in bytes.
pub(super) const MAX_TABLE_BYTES: u64 = HEAD as u64 + TABLE_PIECES * ENTRY as u64;

/// A piece as a table names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PieceRef {
    pub(super) digest: Digest,
    /// Blocks that it stores; with the size of the piece this gives its length.
    pub(super) stored: u16,
}

impl PieceRef {
    pub(super) fn len(&self, blocks: usize) -> u64 {
        encoded_len(blocks, self.stored.into())
    }
}

/// The pieces of a table by their index in it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Table {
    pub(super) number: u64,
    pub(super) pieces: BTreeMap<u16, PieceRef>,
}

impl Table {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD + self.pieces.len() * ENTRY);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&(self.pieces.len() as u32).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        for (index, piece) in &self.pieces {
            out.extend_from_slice(&index.to_le_bytes());
            out.extend_from_slice(&piece.stored.to_le_bytes());
            out.extend_from_slice(&[0; 4]);
            out.extend_from_slice(&piece.digest.0);
        }
        out
    }

    /// Reads the table of that number over pieces of `blocks` blocks; `ranges` is how many the volume has in all.
    pub(super) fn decode(bytes: &[u8], number: u64, blocks: usize, ranges: u64) -> Result<Self, Corruption> {
        let bad = |field, expected: String, found: String| {
            Corruption::new("backup table", 0, field, expected, found)
        };
        let Some((head, entries)) = bytes.split_at_checked(HEAD) else {
            return Err(bad("length", format!("at least {HEAD}"), bytes.len().to_string()));
        };
        if head[..8] != MAGIC[..] {
            return Err(bad("magic", format!("{MAGIC:02x?}"), format!("{:02x?}", &head[..8])));
        }
        let mut word = [0; 8];
        word.copy_from_slice(&head[8..16]);
        let found = u64::from_le_bytes(word);
        if found != number {
            return Err(bad("number", number.to_string(), found.to_string()));
        }
        word.copy_from_slice(&head[16..24]);
        // Entries in the lower half; the upper is reserved.
        let count = u64::from_le_bytes(word);
        let (entries, rest) = entries.as_chunks::<ENTRY>();
        if !(1..=TABLE_PIECES).contains(&count) || entries.len() as u64 != count || !rest.is_empty() {
            let found = format!("{count}, with {} in {} bytes", entries.len(), bytes.len());
            return Err(bad("entries", format!("1 to {TABLE_PIECES}, as many as there are"), found));
        }
        let in_table = ranges.saturating_sub(number.saturating_mul(TABLE_PIECES)).min(TABLE_PIECES);
        let mut pieces = BTreeMap::new();
        let mut least = 0u64;
        for entry in entries {
            let (index, stored) =
                (u16::from_le_bytes([entry[0], entry[1]]), u16::from_le_bytes([entry[2], entry[3]]));
            if u64::from(index) < least || u64::from(index) >= in_table {
                let want = format!("ascending, below {in_table}");
                return Err(bad("index", want, index.to_string()));
            }
            least = u64::from(index) + 1;
            if stored == 0 || usize::from(stored) > blocks {
                return Err(bad("stored", format!("1 to {blocks}"), stored.to_string()));
            }
            if entry[4..8] != [0; 4] {
                return Err(bad("reserved", "zeroes".into(), format!("{:02x?}", &entry[4..8])));
            }
            let mut digest = [0; Digest::BYTES];
            digest.copy_from_slice(&entry[8..]);
            pieces.insert(index, PieceRef { digest: Digest(digest), stored });
        }
        Ok(Self { number, pieces })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(number: u64, entries: &[(u16, u16)]) -> Table {
        let piece = |(index, stored): &(u16, u16)| {
            (*index, PieceRef { digest: Digest::of(&index.to_le_bytes()), stored: *stored })
        };
        Table { number, pieces: entries.iter().map(piece).collect() }
    }

    proptest! {
        #[test]
        fn a_table_survives_its_encoding(number in 0u64..1000, entries in proptest::collection::btree_map(0u16..4096, 1u16..=16, 1..50)) {
            let table = table(number, &entries.into_iter().collect::<Vec<_>>());
            prop_assert_eq!(Table::decode(&table.encode(), number, 16, u64::MAX).unwrap(), table);
        }

        #[test]
        fn what_decodes_is_the_one_encoding(at in any::<proptest::sample::Index>(), bit in 0u8..8, cut in any::<proptest::sample::Index>()) {
            let mut bytes = table(3, &[(0, 1), (7, 16), (4095, 2)]).encode();
            let n = bytes.len();
            bytes[at.index(n)] ^= 1 << bit;
            if let Ok(read) = Table::decode(&bytes, 3, 16, u64::MAX) {
                prop_assert_eq!(read.encode(), bytes.clone());
            }
            prop_assert!(Table::decode(&bytes[..cut.index(n)], 3, 16, u64::MAX).is_err());
        }

        #[test]
        fn any_bytes_are_refused_or_read(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Table::decode(&bytes, 0, 16, 10);
        }
    }

    #[test]
    fn the_encoding_is_the_documented_one() {
        let table = Table {
            number: 5,
            pieces: BTreeMap::from([(258, PieceRef { digest: Digest([9; 32]), stored: 3 })]),
        };
        let mut want = b"SVTABLE\x01\x05\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\x01\x03\0\0\0\0\0".to_vec();
        want.extend([9; 32]);
        assert_eq!(table.encode(), want);
    }

    #[test]
    fn ranges_behind_the_volume_have_no_pieces() {
        let bytes = table(1, &[(9, 1)]).encode();
        assert!(Table::decode(&bytes, 1, 16, 4096 + 10).is_ok());
        assert_eq!(Table::decode(&bytes, 1, 16, 4096 + 9).unwrap_err().field, "index");
        assert_eq!(Table::decode(&bytes, 1, 16, 0).unwrap_err().field, "index");
        assert_eq!(Table::decode(&bytes, 2, 16, u64::MAX).unwrap_err().field, "number");
    }
}
