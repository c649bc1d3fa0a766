//! A piece: a fixed range of a volume as it is stored, without the blocks that are zero.
//!
//! Little-endian. Version 1:
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 8 | magic | `SVPIECE`, 0x01 |
//! | 8 | 4 | blocks | blocks of 4,096 bytes in the range: a power of two from 16 to 1,024 |
//! | 12 | 4 | stored | how many of them follow |
//! | 16 | 8 per 64 blocks, at least 8 | map | bit n of the whole is 1 when block n is stored; others are zero |
//! | | 4,096 each | data | the stored blocks, ascending |
//!
//! One content has one encoding: a block of zeroes is never stored, and a range of zeroes has no piece. So equal
//! ranges have equal names, whatever way their zeroes came about.

use crate::error::{Corruption, Result};
use crate::units::{BLOCK, BLOCK_BYTES};

const MAGIC: &[u8; 8] = b"SVPIECE\x01";
const HEAD: usize = 16;

/// Smallest piece in bytes.
pub const MIN_PIECE_BYTES: u64 = 64 << 10;
/// Largest piece in bytes.
pub const MAX_PIECE_BYTES: u64 = 4 << 20;
/// Size of a piece in bytes unless a backup says otherwise: see the choices in [`guide::backups`](crate::guide::backups).
pub const DEFAULT_PIECE_BYTES: u64 = 256 << 10;

const _: () = assert!(MAX_PIECE_BYTES / BLOCK_BYTES == 1024 && MIN_PIECE_BYTES / BLOCK_BYTES == 16);

pub(super) fn is_piece_bytes(bytes: u64) -> bool {
    bytes.is_power_of_two() && (MIN_PIECE_BYTES..=MAX_PIECE_BYTES).contains(&bytes)
}

const fn map_bytes(blocks: usize) -> usize {
    blocks.div_ceil(64) * 8
}

/// Length in bytes of a piece of `blocks` blocks that stores `stored` of them.
pub(super) const fn encoded_len(blocks: usize, stored: usize) -> u64 {
    (HEAD + map_bytes(blocks) + stored * BLOCK) as u64
}

fn is_zero(block: &[u8]) -> bool {
    // Wide words: an order of magnitude faster than byte by byte.
    block.as_chunks::<16>().0.iter().all(|w| u128::from_le_bytes(*w) == 0)
}

/// Encodes a range into `out`, in place of what was there; returns how many blocks are stored, and leaves `out`
/// empty when there are none. `range` has a whole number of blocks that makes a piece.
pub(super) fn encode(range: &[u8], out: &mut Vec<u8>) -> u32 {
    let blocks = range.len() / BLOCK;
    out.clear();
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&(blocks as u32).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.resize(HEAD + map_bytes(blocks), 0);
    let mut stored = 0u32;
    for (n, block) in range.chunks_exact(BLOCK).enumerate() {
        if !is_zero(block) {
            out[HEAD + n / 8] |= 1 << (n % 8);
            out.extend_from_slice(block);
            stored += 1;
        }
    }
    if stored == 0 {
        out.clear();
    } else {
        out[12..16].copy_from_slice(&stored.to_le_bytes());
    }
    stored
}

/// A piece whose encoding has been checked.
pub(super) struct Piece<'a> {
    map: &'a [u8],
    data: &'a [u8],
}

impl<'a> Piece<'a> {
    /// Checks everything but the content of the blocks, which the digest vouches for. Only the first `within` of
    /// its blocks lie in the volume, and only they may be stored.
    pub(super) fn decode(bytes: &'a [u8], blocks: usize, within: usize) -> Result<Self, Corruption> {
        let bad = |field, expected: String, found: String| {
            Corruption::new("backup piece", 0, field, expected, found)
        };
        let data_at = HEAD + map_bytes(blocks);
        let Some((head, data)) = bytes.split_at_checked(data_at) else {
            return Err(bad("length", format!("at least {data_at}"), bytes.len().to_string()));
        };
        let (head, map) = head.split_at(HEAD);
        if head[..8] != MAGIC[..] {
            return Err(bad("magic", format!("{MAGIC:02x?}"), format!("{:02x?}", &head[..8])));
        }
        let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        if number(8) as usize != blocks {
            return Err(bad("blocks", blocks.to_string(), number(8).to_string()));
        }
        let (stored, bits) =
            (number(12) as usize, map.iter().map(|b| b.count_ones() as usize).sum::<usize>());
        if stored != bits || stored == 0 || data.len() != stored * BLOCK {
            let found = format!("{stored}, with {bits} in the map and {} bytes of data", data.len());
            return Err(bad("stored", "as many as the map and the length say, above 0".into(), found));
        }
        let within = within.min(blocks);
        if (within..map.len() * 8).any(|n| map[n / 8] & (1 << (n % 8)) != 0) {
            return Err(bad("map", format!("zeroes behind block {within}"), "ones".into()));
        }
        Ok(Self { map, data })
    }

    #[cfg(test)]
    fn stored(&self) -> u32 {
        (self.data.len() / BLOCK) as u32
    }

    /// The runs of stored blocks: number of the first one, and their bytes.
    pub(super) fn runs(&self) -> impl Iterator<Item = (usize, &'a [u8])> {
        let (map, data) = (self.map, self.data);
        let stored = move |n: usize| map.get(n / 8).is_some_and(|byte| byte & (1 << (n % 8)) != 0);
        let (mut n, mut at) = (0, 0);
        std::iter::from_fn(move || {
            while n < map.len() * 8 && !stored(n) {
                n += 1;
            }
            let first = n;
            while stored(n) {
                n += 1;
            }
            let bytes = &data[at..at + (n - first) * BLOCK];
            at += bytes.len();
            (!bytes.is_empty()).then_some((first, bytes))
        })
    }

    #[cfg(test)]
    fn expand(&self, range: &mut [u8]) {
        range.fill(0);
        for (first, bytes) in self.runs() {
            range[first * BLOCK..first * BLOCK + bytes.len()].copy_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(blocks: usize, fill: &[u8]) -> Vec<u8> {
        let mut out = vec![0; blocks * BLOCK];
        for (n, byte) in fill.iter().enumerate().take(blocks) {
            out[n * BLOCK + n * 7 % BLOCK] = *byte;
        }
        out
    }

    proptest! {
        #[test]
        fn a_range_survives_and_zeroes_are_not_stored(shift in 4u32..=7, fill in proptest::collection::vec(0u8..3, 0..130)) {
            let blocks = 1 << shift;
            let range = range(blocks, &fill);
            let mut bytes = vec![1, 2, 3];
            let stored = encode(&range, &mut bytes);
            prop_assert_eq!(stored as usize, fill.iter().take(blocks).filter(|b| **b != 0).count());
            if stored == 0 {
                prop_assert!(bytes.is_empty());
            } else {
                prop_assert_eq!(bytes.len() as u64, encoded_len(blocks, stored as usize));
                let mut back = vec![9; range.len()];
                let piece = Piece::decode(&bytes, blocks, blocks).unwrap();
                prop_assert_eq!(piece.stored(), stored);
                piece.expand(&mut back);
                prop_assert_eq!(back, range);
            }
        }

        #[test]
        fn any_bytes_are_refused_or_read(mut bytes in proptest::collection::vec(any::<u8>(), 0..5000), magic in any::<bool>()) {
            if magic && bytes.len() >= 16 {
                bytes[..8].copy_from_slice(MAGIC);
                bytes[8..16].copy_from_slice(&[16, 0, 0, 0, 1, 0, 0, 0]);
            }
            if let Ok(piece) = Piece::decode(&bytes, 16, 16) {
                piece.expand(&mut [0; 16 * BLOCK]);
            }
        }
    }

    #[test]
    fn the_encoding_is_the_documented_one() {
        let mut source = vec![0; 128 * BLOCK];
        source[3 * BLOCK] = 7;
        source[65 * BLOCK + 4095] = 8;
        let mut bytes = Vec::new();
        assert_eq!(encode(&source, &mut bytes), 2);
        let mut want = b"SVPIECE\x01\x80\0\0\0\x02\0\0\0".to_vec();
        want.extend([8, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        want.push(7);
        want.extend([0; 4095 + 4095]);
        want.push(8);
        assert_eq!(bytes, want);
    }

    #[test]
    fn damage_is_refused_by_field() {
        let mut bytes = Vec::new();
        encode(&range(16, &[1, 0, 2]), &mut bytes);
        let refused = |at: usize, value: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            Piece::decode(&bytes, 16, 16).err().map(|c| c.field)
        };
        assert_eq!(refused(0, 0), Some("magic"));
        assert_eq!(refused(7, 2), Some("magic"));
        assert_eq!(refused(8, 32), Some("blocks"));
        assert_eq!(refused(12, 3), Some("stored"));
        assert_eq!(refused(16, 1), Some("stored"));
        assert_eq!(Piece::decode(&bytes, 16, 2).err().map(|c| c.field), Some("map"));
        let mut moved = bytes.clone();
        (moved[16], moved[18]) = (1, 1);
        assert_eq!(Piece::decode(&moved, 16, 16).err().map(|c| c.field), Some("map"));
        assert_eq!(Piece::decode(&bytes[..bytes.len() - 1], 16, 16).err().map(|c| c.field), Some("stored"));
        assert_eq!(Piece::decode(&bytes[..20], 16, 16).err().map(|c| c.field), Some("length"));
        assert_eq!(Piece::decode(&bytes, 32, 32).err().map(|c| c.field), Some("blocks"));
    }
}
