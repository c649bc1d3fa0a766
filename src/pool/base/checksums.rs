//! Checksums of all content of a base, made once, wherever that is convenient, and handed over with it.
//!
//! As bytes, little-endian:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | `SNAPBAS\x01` |
//! | 8 | 8 | size of the base in bytes |
//! | 16 | 16 each | XXH3-128 of every 256 KiB, the last one of what is left |
//! | | 8 | XXH3-64 of all before |

use std::ops::ControlFlow;

use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_128};

use crate::error::{Error, Result, Violation};
use crate::image::{ImageProgress, ImageSource};
use crate::memory;
use crate::units::{BLOCK_BYTES, MAX_VOLUME_BYTES};

use super::source::read;

const MAGIC: &[u8; 8] = b"SNAPBAS\x01";
const HEAD: usize = 16;
const SUM: usize = 16;
/// Blocks that one checksum is about: 256 KiB.
pub(super) const PIECE_BLOCKS: u64 = 64;
const PIECE_BYTES: u64 = PIECE_BLOCKS * BLOCK_BYTES;

/// Checksums of all content of an [external base](super::BaseSource): 16 bytes for every 256 KiB.
///
/// Whoever publishes an image makes them once and keeps them beside it. They find mistakes and damage; they are no
/// cryptographic proof against somebody who forges.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BaseChecksums {
    size_bytes: u64,
    sums: Vec<u128>,
}

impl BaseChecksums {
    /// Reads all of an image. `progress` is called for every MiB; when it answers `Break` the call ends with
    /// `Cancelled`.
    ///
    /// # Errors
    /// `InvalidArgument` for an empty image; `Io` when it cannot be read; `Cancelled`.
    pub fn of(
        source: &dyn ImageSource,
        mut progress: impl FnMut(ImageProgress) -> ControlFlow<()>,
    ) -> Result<Self> {
        let size_bytes = source.size_bytes();
        if size_bytes == 0 || size_bytes > MAX_VOLUME_BYTES {
            let why = format!("it has {size_bytes} bytes; a volume has 1 to {MAX_VOLUME_BYTES}");
            return Err(Error::invalid("base", Violation::Size, why));
        }
        let mut sums = Vec::new();
        let mut piece = memory::filled(0, PIECE_BYTES.min(size_bytes) as usize)?;
        let mut at = 0;
        while at < size_bytes {
            piece.truncate((size_bytes - at).min(PIECE_BYTES) as usize);
            read(source, &mut piece, at)?;
            memory::push(&mut sums, xxh3_128(&piece))?;
            at += piece.len() as u64;
            if at.is_multiple_of(1 << 20) || at == size_bytes {
                let now = ImageProgress { position: at, size_bytes, ..ImageProgress::default() };
                if progress(now).is_break() {
                    return Err(Error::Cancelled { op: "checksums of a base" });
                }
            }
        }
        Ok(Self { size_bytes, sums })
    }

    /// Size of the base in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// What the pool keeps of them.
    pub(super) fn digest(&self) -> u128 {
        let mut hash = Xxh3::new();
        hash.update(&self.size_bytes.to_le_bytes());
        self.sums.iter().for_each(|sum| hash.update(&sum.to_le_bytes()));
        hash.digest128()
    }

    /// Compares whole pieces from byte `offset` on; what lies behind the end of the base is not looked at.
    pub(super) fn verify(&self, bytes: &[u8], offset: u64) -> Result<()> {
        for (n, piece) in (offset / PIECE_BYTES..).zip(bytes.chunks(PIECE_BYTES as usize)) {
            let at = n * PIECE_BYTES;
            let there = self.size_bytes.saturating_sub(at).min(piece.len() as u64) as usize;
            let want = self.sums.get(n as usize).copied();
            let got = xxh3_128(&piece[..there]);
            if want != Some(got) {
                let want = want.unwrap_or(0);
                let why = format!("{there} bytes have checksum {got:032x}, {want:032x} is expected");
                return Err(Error::refused("base", at, why));
            }
        }
        Ok(())
    }

    /// As bytes, to be kept beside the image.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&self.size_bytes.to_le_bytes());
        self.sums.iter().for_each(|sum| out.extend_from_slice(&sum.to_le_bytes()));
        let sum = xxh3_64(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        out
    }

    /// What [`to_bytes`](Self::to_bytes) has made.
    ///
    /// # Errors
    /// `Refused` for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let refused = |why: String| Error::refused("base checksums", 0, why);
        let Some((body, sum)) = bytes.split_last_chunk::<8>() else {
            return Err(refused(format!("{} bytes are too few", bytes.len())));
        };
        let (Some((head, sums)), true) =
            (body.split_first_chunk::<HEAD>(), xxh3_64(body) == u64::from_le_bytes(*sum))
        else {
            return Err(refused("they are damaged, or are none".into()));
        };
        let (magic, size) = head.split_at(MAGIC.len());
        let size_bytes = size.try_into().map_or(0, u64::from_le_bytes);
        let (sums, rest) = sums.as_chunks::<SUM>();
        let pieces = size_bytes.div_ceil(PIECE_BYTES);
        if magic != MAGIC || !(1..=MAX_VOLUME_BYTES).contains(&size_bytes) {
            return Err(refused(format!("they are of another format, or of {size_bytes} bytes")));
        }
        if sums.len() as u64 != pieces || !rest.is_empty() {
            let there = sums.len();
            return Err(refused(format!("{size_bytes} bytes have {pieces} checksums, {there} given")));
        }
        Ok(Self { size_bytes, sums: sums.iter().map(|sum| u128::from_le_bytes(*sum)).collect() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn they_survive_their_encoding_and_nothing_else_is_taken(
            size_bytes in 1u64..4 * PIECE_BYTES, seed in any::<u128>(), at in any::<proptest::sample::Index>(), flip in 1u8..,
        ) {
            let sums = (0..size_bytes.div_ceil(PIECE_BYTES)).map(|n| seed.wrapping_mul(n.into())).collect();
            let made = BaseChecksums { size_bytes, sums };
            let mut bytes = made.to_bytes();
            prop_assert_eq!(BaseChecksums::from_bytes(&bytes).unwrap(), made);
            let cut = at.index(bytes.len());
            prop_assert!(BaseChecksums::from_bytes(&bytes[..cut]).is_err());
            bytes[cut] ^= flip;
            prop_assert!(BaseChecksums::from_bytes(&bytes).is_err());
        }
    }
}
