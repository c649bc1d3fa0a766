//! What a snapshot holds, in 128 bits: to compare content in different pools without reading it.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::commit::Object;
use crate::error::{Error, Result, Violation};
use crate::format::block_crc;
use crate::units::BLOCK;

use super::diff::Point;
use super::pool::{Inner, Pool};

/// Bytes of input handed to the hash at once.
const PIECE_BYTES: usize = 12 << 10;

/// Says what a volume or snapshot holds, in 128 bits: see [`Pool::fingerprint`].
///
/// Equal bytes have equal fingerprints, in whatever pool they lie. Different bytes have different ones but for
/// chance: it finds mistakes and damage, it is no cryptographic proof against somebody who forges.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Fingerprint(u128);

impl Fingerprint {
    pub(crate) const fn new(raw: u128) -> Self {
        Self(raw)
    }
    /// The 128 bits.
    pub const fn raw(self) -> u128 {
        self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for Fingerprint {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let digits = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
        match u128::from_str_radix(text, 16) {
            Ok(raw) if digits => Ok(Self(raw)),
            _ => Err(Error::invalid(
                "fingerprint",
                Violation::Range,
                format!("32 hexadecimal digits are needed, got {text:?}"),
            )),
        }
    }
}

impl Pool {
    /// The fingerprint of what `point` holds now: the XXH3-128 of its size in bytes (8 bytes, little-endian)
    /// and, for every block of data that is not all zero, its number (8) and the CRC-32 of its 4,096 bytes (4).
    ///
    /// Reads metadata only, some 5 bytes per mapped block. What is mapped and what is a hole makes no
    /// difference, only the bytes do.
    ///
    /// # Errors
    /// `NotFound`; `OutOfSpace`, `Corrupt`, `Io`, `Poisoned`, `Closed`.
    pub fn fingerprint(&self, point: impl Into<Point>) -> Result<Fingerprint> {
        self.inner.freeze(point.into())?.fingerprint()
    }
}

impl Inner {
    /// The map must stand still.
    pub(super) fn fingerprint_of(&self, object: &Object, size_bytes: u64) -> Result<Fingerprint> {
        let mut print = Fingerprinter::new(size_bytes);
        self.engine.each_sum(object, &mut |lba, sum| print.add(lba, sum))?;
        Ok(print.finish())
    }
}

/// Makes a fingerprint block by block, in ascending order.
pub(crate) struct Fingerprinter {
    hash: Xxh3,
    piece: Vec<u8>,
}

impl Fingerprinter {
    pub(crate) fn new(size_bytes: u64) -> Self {
        let mut hash = Xxh3::new();
        hash.update(&size_bytes.to_le_bytes());
        Self { hash, piece: Vec::with_capacity(PIECE_BYTES + 12) }
    }

    /// The block has this checksum.
    pub(crate) fn add(&mut self, lba: u64, sum: u32) {
        static ZEROES: LazyLock<u32> = LazyLock::new(|| block_crc(&[0; BLOCK]));
        if sum != *ZEROES {
            self.piece.extend_from_slice(&lba.to_le_bytes());
            self.piece.extend_from_slice(&sum.to_le_bytes());
        }
        if self.piece.len() >= PIECE_BYTES {
            self.hash.update(&self.piece);
            self.piece.clear();
        }
    }

    pub(crate) fn finish(mut self) -> Fingerprint {
        self.hash.update(&self.piece);
        Fingerprint(self.hash.digest128())
    }
}
