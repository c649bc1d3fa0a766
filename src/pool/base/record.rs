//! What the pool keeps of a base.
//!
//! | offset | size | field of the record (catalogue table 0xF5, key: base) |
//! |---|---|---|
//! | 0 | 1 | version, 1 |
//! | 1 | 1 | flags: bit 0 complete, bit 1 has a digest |
//! | 2 | 6 | reserved |
//! | 8 | 8 | size in bytes |
//! | 16 | 16 | hash of up to 256 blocks of it |
//! | 32 | 16 | digest of its checksums; zeroes without bit 1 |

use xxhash_rust::xxh3::Xxh3;

use crate::error::{Corruption, Error, Result, Violation};
use crate::pool::fields::{id_at, u64_at};
use crate::units::{BLOCK, BLOCK_BYTES, BaseId, MAX_VOLUME_BYTES};

use super::checksums::BaseChecksums;
use super::source::{BaseSource, read};

const VERSION: u8 = 1;
const COMPLETE: u8 = 1;
const HAS_DIGEST: u8 = 2;
const RECORD: usize = 48;
/// Places that the hash of samples looks at.
const SAMPLES: u64 = 256;

#[derive(Clone, Copy, PartialEq, Debug)]
pub(in crate::pool) struct BaseRecord {
    pub(super) complete: bool,
    pub(super) size_bytes: u64,
    samples: u128,
    pub(super) digest: Option<u128>,
}

impl BaseRecord {
    pub(super) fn encode(self) -> Vec<u8> {
        let flags = (u8::from(self.complete) * COMPLETE) | (u8::from(self.digest.is_some()) * HAS_DIGEST);
        let mut out = vec![VERSION, flags, 0, 0, 0, 0, 0, 0];
        out.extend_from_slice(&self.size_bytes.to_le_bytes());
        out.extend_from_slice(&self.samples.to_le_bytes());
        out.extend_from_slice(&self.digest.unwrap_or(0).to_le_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Corruption> {
        let bad = |field, want: &str, got: u64| Corruption::new("base record", 0, field, want, got);
        if bytes.len() != RECORD {
            return Err(bad("length", "48", bytes.len() as u64));
        }
        let (version, flags) = (bytes[0], bytes[1]);
        if version != VERSION {
            return Err(bad("version", "1", version.into()));
        }
        if flags & !(COMPLETE | HAS_DIGEST) != 0 {
            return Err(bad("flags", "only bits 0 and 1", flags.into()));
        }
        if bytes[2..8].iter().any(|byte| *byte != 0) {
            return Err(bad("reserved", "zeroes", 1));
        }
        let size_bytes = u64_at(bytes, 8);
        if size_bytes == 0 || size_bytes > MAX_VOLUME_BYTES {
            return Err(bad("size", "1 byte to 1 EiB", size_bytes));
        }
        let digest = u128::from_le_bytes(id_at(bytes, 32));
        let has_digest = flags & HAS_DIGEST != 0;
        if !has_digest && digest != 0 {
            return Err(bad("digest", "zeroes without its flag", 1));
        }
        Ok(Self {
            complete: flags & COMPLETE != 0,
            size_bytes,
            samples: u128::from_le_bytes(id_at(bytes, 16)),
            digest: has_digest.then_some(digest),
        })
    }

    /// Looks at what is handed over for the first time.
    pub(super) fn of(base: &BaseSource) -> Result<Self> {
        let size_bytes = base.source.size_bytes();
        if size_bytes == 0 || size_bytes > MAX_VOLUME_BYTES {
            let why = format!("it has {size_bytes} bytes; a volume has 1 to {MAX_VOLUME_BYTES}");
            return Err(Error::invalid("base", Violation::Size, why));
        }
        let checksums = base.checksums.as_ref();
        if let Some(other) = checksums.map(BaseChecksums::size_bytes).filter(|size| *size != size_bytes) {
            let why = format!("its checksums are of {other} bytes, it has {size_bytes}");
            return Err(Error::refused("base", 0, why));
        }
        let samples = samples(base, size_bytes)?;
        Ok(Self { complete: false, size_bytes, samples, digest: checksums.map(BaseChecksums::digest) })
    }

    /// Refuses what is not the base that this was made of, and computes what checksums it should have brought.
    pub(super) fn recognize(self, id: BaseId, base: &mut BaseSource) -> Result<()> {
        let got = Self::of(base)?;
        if (self.size_bytes, self.samples) != (got.size_bytes, got.samples) {
            let why = format!(
                "base {id} has {} bytes and hash {:032x}, this one {} and {:032x}",
                self.size_bytes, self.samples, got.size_bytes, got.samples
            );
            return Err(Error::refused("base", 0, why));
        }
        let Some(want) = self.digest else { return Ok(()) };
        let got = match &base.checksums {
            Some(there) => there.digest(),
            None => base.compute_checksums()?,
        };
        if got != want {
            let why = format!("base {id} has checksums of digest {want:032x}, this one {got:032x}");
            return Err(Error::refused("base", 0, why));
        }
        Ok(())
    }

    /// Nothing of it is missing any more.
    pub(super) fn completed(self) -> Self {
        Self { complete: true, ..self }
    }

    pub(super) fn blocks(self) -> u64 {
        self.size_bytes.div_ceil(BLOCK_BYTES)
    }

    /// The least size of a volume over it.
    pub(in crate::pool) fn volume_bytes(self) -> u64 {
        self.blocks() * BLOCK_BYTES
    }
}

/// Hash of size, first and last block, and blocks at equal distances between.
fn samples(base: &BaseSource, size_bytes: u64) -> Result<u128> {
    let mut hash = Xxh3::new();
    hash.update(&size_bytes.to_le_bytes());
    let blocks = size_bytes.div_ceil(BLOCK_BYTES);
    let samples = blocks.min(SAMPLES);
    let mut block = [0; BLOCK];
    for sample in 0..samples {
        // The products stay below 2^60 * 2^8 as u128.
        let lba = (u128::from(sample) * u128::from(blocks - 1) / u128::from((samples - 1).max(1))) as u64;
        let n = (size_bytes - lba * BLOCK_BYTES).min(BLOCK_BYTES) as usize;
        read(&*base.source, &mut block[..n], lba * BLOCK_BYTES)?;
        hash.update(&block[..n]);
    }
    Ok(hash.digest128())
}

/// For any bytes: what is accepted encodes to them again.
#[cfg(feature = "internals")]
pub(crate) fn law(bytes: &[u8]) {
    if let Ok(base) = BaseRecord::decode(bytes) {
        assert!(base.encode() == bytes, "a base record has changed");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn records_survive_their_encoding(
            complete in any::<bool>(), size_bytes in 1..=MAX_VOLUME_BYTES, samples in any::<u128>(),
            digest in proptest::option::of(any::<u128>()),
        ) {
            let record = BaseRecord { complete, size_bytes, samples, digest };
            prop_assert_eq!(BaseRecord::decode(&record.encode()).unwrap(), record);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(record) = BaseRecord::decode(&bytes) {
                prop_assert_eq!(record.encode(), bytes);
            }
        }
    }
}
