//! Units used by every room: addresses, counts, identities and the geometry of a pool.
//!
//! Each type has only the arithmetic that means something. A [`Lba`] is what a guest sees, a
//! [`BlockAddr`] is a place in the pool; the two never mix.

use std::fmt;
use std::ops::Add;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Bytes in one block: the unit of mapping, allocation and checksumming.
pub const BLOCK_BYTES: u64 = 4096;
/// [`BLOCK_BYTES`] as an index into memory.
pub(crate) const BLOCK: usize = 4096;
/// Largest virtual size of a volume in bytes: 1 EiB.
pub const MAX_VOLUME_BYTES: u64 = 1 << 60;
/// Largest block address that a node can hold (48 bits): a pool of 1 EiB.
pub(crate) const MAX_BLOCK_ADDR: u64 = (1 << 48) - 1;
/// Most blocks that one data extent may name; an extent never crosses a chunk.
pub(crate) const MAX_RUN_BLOCKS: u64 = 1024;

/// Logical block address: the number of a 4 KiB block as the user of a volume sees it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Lba(u64);

impl Lba {
    /// The address of block number `raw`.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }
    /// The block number.
    pub const fn raw(self) -> u64 {
        self.0
    }
    /// The first byte of this block, as an offset into the volume.
    pub const fn byte_offset(self) -> u64 {
        self.0 * BLOCK_BYTES
    }
}

impl Add<u64> for Lba {
    type Output = Lba;
    fn add(self, blocks: u64) -> Lba {
        Lba(self.0 + blocks)
    }
}

/// Address of a 4 KiB block in the pool, counted from the pool's first byte.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct BlockAddr(u64);

impl BlockAddr {
    /// The address of pool block number `raw`.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }
    /// The block number.
    pub const fn raw(self) -> u64 {
        self.0
    }
    /// The first byte of this block in the pool file.
    pub const fn byte_offset(self) -> u64 {
        self.0 * BLOCK_BYTES
    }
}

impl Add<u64> for BlockAddr {
    type Output = BlockAddr;
    fn add(self, blocks: u64) -> BlockAddr {
        BlockAddr(self.0 + blocks)
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// The id with these 128 bits.
            pub const fn new(raw: Uuid) -> Self {
                Self(raw)
            }
            /// The 128 bits of this id.
            pub const fn raw(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }
    };
}

id!(
    /// Identity of a volume, unique in its pool, never used again.
    VolumeId
);
id!(
    /// Identity of a snapshot, unique in its pool, never used again.
    SnapshotId
);
id!(
    /// Identity of an image, unique in its pool, never used again.
    ImageId
);
id!(
    /// Identity of an external base, unique in its pool, never used again.
    BaseId
);
id!(
    /// Identity of a backup.
    BackupId
);
id!(
    /// Identity of one attachment of a volume to a server.
    AttachmentId
);

macro_rules! objects {
    ($($name:ident),*) => {
        $(impl $name {
            pub(crate) fn object(self) -> ObjectId {
                ObjectId(self.0.into_bytes())
            }
        })*
    };
}

objects!(VolumeId, SnapshotId, ImageId, BaseId, BackupId);

/// Anything that owns an extent map: a volume, a snapshot, an image, a base, or a map on its way out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ObjectId(pub(crate) [u8; 16]);

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectId({})", Uuid::from_bytes(self.0))
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Uuid::from_bytes(self.0).fmt(f)
    }
}

/// Sizes that are fixed when a pool is created.
///
/// A pool is made of chunks of `blocks_per_chunk` blocks; the log takes `log_blocks` blocks before
/// the first chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[non_exhaustive]
pub struct Geometry {
    /// Blocks in a chunk: a power of two from 64 to 1,024.
    pub blocks_per_chunk: u64,
    /// First block of the log area.
    pub log_start_block: u64,
    /// Blocks in the log area, at least 16 (64 KiB).
    pub log_blocks: u64,
    /// First block of chunk 0.
    pub first_chunk_block: u64,
}

impl Geometry {
    pub(crate) fn chunk_start(&self, chunk: u64) -> BlockAddr {
        BlockAddr(self.first_chunk_block + chunk * self.blocks_per_chunk)
    }
    /// The chunk that holds `addr` and the index of the block in it; `None` before the first chunk.
    #[inline]
    pub(crate) fn locate(&self, addr: BlockAddr) -> Option<(u64, usize)> {
        let rel = addr.0.checked_sub(self.first_chunk_block)?;
        // blocks_per_chunk is a power of two (checked when the superblock is decoded).
        let shift = self.blocks_per_chunk.trailing_zeros();
        Some((rel >> shift, (rel & (self.blocks_per_chunk - 1)) as usize))
    }
    /// Pool length in bytes that `chunks` chunks need.
    pub(crate) fn bytes_for(&self, chunks: u64) -> u64 {
        (self.first_chunk_block + chunks * self.blocks_per_chunk) * BLOCK_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locate_is_the_inverse_of_chunk_start() {
        let g = Geometry { blocks_per_chunk: 64, log_start_block: 4, log_blocks: 16, first_chunk_block: 20 };
        for chunk in [0u64, 1, 7, 1000] {
            let start = g.chunk_start(chunk);
            assert_eq!(g.locate(start), Some((chunk, 0)));
            assert_eq!(g.locate(start + 63), Some((chunk, 63)));
        }
        assert_eq!(g.locate(BlockAddr::new(19)), None);
    }
}
