//! The superblock: root of everything, four slots, two copies of each of two generations.

use serde::Serialize;
use xxhash_rust::xxh3::xxh3_64;

use super::{NodeRef, Reader, Writer};
use crate::error::Corruption;
use crate::units::{BLOCK, BLOCK_BYTES, Geometry, MAX_BLOCK_ADDR, MAX_RUN_BLOCKS};

/// Format version this crate writes and reads.
pub(crate) const FORMAT_VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"SNAPVOL\x01";

/// Where copies of the superblock may lie, in bytes. Even generations use slots 0 and 2, odd ones 1 and
/// 3. Pools of 2 MiB and more keep slots 2 and 3 a whole MiB away from 0 and 1, so that one bad stretch
/// of medium does not take both copies of a generation; smaller pools keep them right behind.
pub(crate) const FAR_SLOTS: [u64; 4] = [0, BLOCK_BYTES, 1 << 20, (1 << 20) + BLOCK_BYTES];
/// Slots of a pool that is smaller than [`FAR_FROM_BYTES`].
pub(crate) const NEAR_SLOTS: [u64; 4] = [0, BLOCK_BYTES, 2 * BLOCK_BYTES, 3 * BLOCK_BYTES];
/// Pools that may become at least this long use [`FAR_SLOTS`].
pub(crate) const FAR_FROM_BYTES: u64 = 2 << 20;

/// Longest log, in blocks: 16 GiB. Recovery reads it whole.
pub(crate) const MAX_LOG_BLOCKS: u64 = (16 << 30) / BLOCK_BYTES;

/// Set when the pool was closed: the log holds nothing and need not be read.
pub(crate) const STATE_CLEAN: u32 = 1;
/// Slots 2 and 3 are far away.
pub(crate) const STATE_FAR: u32 = 2;

/// One generation of the pool's root.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 8 | magic `SNAPVOL\x01` |
/// | 8 | 4 | format version |
/// | 12 | 4 | state: bit 0 clean, bit 1 far slots |
/// | 16 | 8 | incompatible features: refuse to open when unknown |
/// | 24 | 8 | read-only compatible features: open read-only when unknown |
/// | 32 | 8 | compatible features: ignore when unknown |
/// | 40 | 16 | pool UUID |
/// | 56 | 8 | generation |
/// | 64 | 4 | block size in bytes, 4,096 |
/// | 68 | 4 | blocks per chunk |
/// | 72 | 8 | first block of the log |
/// | 80 | 8 | blocks in the log |
/// | 88 | 8 | first block of chunk 0 |
/// | 96 | 8 | chunks in the pool |
/// | 104 | 8 | growth limit in bytes |
/// | 112 | 8 | log epoch: random, fresh for each writable open |
/// | 120 | 8 | log: block offset in the area where the next record goes |
/// | 128 | 8 | log: sequence of the last record this checkpoint covers |
/// | 136 | 8 | log: checksum of that record (the predecessor of the next) |
/// | 144 | 4 | snapshot epoch |
/// | 148 | 4 | height of the chunk index |
/// | 152 | 24 | chunk index root |
/// | 176 | 24 | catalogue root |
/// | 200 | 8 | data chunks |
/// | 208 | 8 | metadata chunks |
/// | 216 | 8 | free blocks in data chunks |
/// | 224 | 8 | free blocks in metadata chunks |
/// | 232 | 8 | time of creation, microseconds since 1970 |
/// | 240 | 8 | ids handed out by the pool itself |
/// | 248 | 3840 | reserved, zero |
/// | 4088 | 8 | XXH3-64 of bytes 0..4088 |
///
/// Version and features come before anything whose meaning could change with them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Superblock {
    pub(crate) state: u32,
    pub(crate) incompatible: u64,
    pub(crate) read_only_compatible: u64,
    pub(crate) compatible: u64,
    pub(crate) uuid: [u8; 16],
    pub(crate) generation: u64,
    pub(crate) geometry: Geometry,
    pub(crate) chunks: u64,
    pub(crate) limit_bytes: u64,
    pub(crate) log_epoch: u64,
    pub(crate) log_at: u64,
    pub(crate) log_sequence: u64,
    pub(crate) log_predecessor: u64,
    pub(crate) snapshot_epoch: u32,
    pub(crate) index_height: u32,
    pub(crate) index_root: Option<NodeRef>,
    pub(crate) catalogue_root: Option<NodeRef>,
    pub(crate) totals: Totals,
    pub(crate) created_micros: u64,
    pub(crate) next_internal_id: u64,
}

/// Sums over the chunk index, kept so that nothing is scanned at open.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub(crate) struct Totals {
    pub(crate) data_chunks: u64,
    pub(crate) meta_chunks: u64,
    pub(crate) data_free: u64,
    pub(crate) meta_free: u64,
}

/// What a slot holds when it is not a superblock of this version.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SlotFault {
    /// No superblock, or a damaged one.
    Damaged(Corruption),
    /// A sound superblock of a version or with features that this crate does not know.
    Newer(String),
}

impl From<Corruption> for SlotFault {
    fn from(c: Corruption) -> Self {
        SlotFault::Damaged(c)
    }
}

impl Superblock {
    pub(crate) fn encode(&self, block: &mut [u8; BLOCK]) {
        let mut w = Writer::new(&mut block[..BLOCK - 8]);
        w.put(&MAGIC);
        w.u32(FORMAT_VERSION);
        w.u32(self.state);
        w.u64(self.incompatible);
        w.u64(self.read_only_compatible);
        w.u64(self.compatible);
        w.put(&self.uuid);
        w.u64(self.generation);
        w.u32(BLOCK as u32);
        w.u32(self.geometry.blocks_per_chunk as u32);
        w.u64(self.geometry.log_start_block);
        w.u64(self.geometry.log_blocks);
        w.u64(self.geometry.first_chunk_block);
        w.u64(self.chunks);
        w.u64(self.limit_bytes);
        w.u64(self.log_epoch);
        w.u64(self.log_at);
        w.u64(self.log_sequence);
        w.u64(self.log_predecessor);
        w.u32(self.snapshot_epoch);
        w.u32(self.index_height);
        NodeRef::encode(self.index_root.as_ref(), &mut w);
        NodeRef::encode(self.catalogue_root.as_ref(), &mut w);
        w.u64(self.totals.data_chunks);
        w.u64(self.totals.meta_chunks);
        w.u64(self.totals.data_free);
        w.u64(self.totals.meta_free);
        w.u64(self.created_micros);
        w.u64(self.next_internal_id);
        w.finish();
        let sum = xxh3_64(&block[..BLOCK - 8]);
        block[BLOCK - 8..].copy_from_slice(&sum.to_le_bytes());
    }

    pub(crate) fn decode(block: &[u8; BLOCK], at_block: u64) -> Result<Self, SlotFault> {
        let mut r = Reader::new(&block[..BLOCK - 8], "superblock", at_block);
        let magic = r.array::<8>()?;
        if magic != MAGIC {
            return Err(r.bad("magic", "SNAPVOL", String::from_utf8_lossy(&magic)).into());
        }
        let sum = xxh3_64(&block[..BLOCK - 8]);
        let stored = Reader::new(&block[BLOCK - 8..], "superblock", at_block).u64()?;
        if sum != stored {
            return Err(r.bad("checksum", format!("{sum:#x}"), format!("{stored:#x}")).into());
        }
        let version = r.u32()?;
        if version != FORMAT_VERSION {
            return Err(SlotFault::Newer(format!(
                "format version {version}; this crate reads {FORMAT_VERSION}"
            )));
        }
        let state = r.u32()?;
        let (incompatible, read_only_compatible, compatible) = (r.u64()?, r.u64()?, r.u64()?);
        if incompatible != 0 {
            return Err(SlotFault::Newer(format!("incompatible features {incompatible:#x}")));
        }
        if state & !(STATE_CLEAN | STATE_FAR) != 0 {
            return Err(r.bad("state", "known bits", format!("{state:#x}")).into());
        }
        let uuid = r.array()?;
        let generation = r.u64()?;
        if generation >= 1 << 62 {
            return Err(r.bad("generation", "below 2^62", generation).into());
        }
        let block_bytes = r.u32()?;
        if block_bytes != BLOCK as u32 {
            return Err(r.bad("block size", BLOCK, block_bytes).into());
        }
        let blocks_per_chunk = u64::from(r.u32()?);
        if !blocks_per_chunk.is_power_of_two() || !(64..=MAX_RUN_BLOCKS).contains(&blocks_per_chunk) {
            return Err(r.bad("blocks per chunk", "a power of two from 64 to 1024", blocks_per_chunk).into());
        }
        let geometry = Geometry {
            blocks_per_chunk,
            log_start_block: r.u64()?,
            log_blocks: r.u64()?,
            first_chunk_block: r.u64()?,
        };
        let (chunks, limit_bytes) = (r.u64()?, r.u64()?);
        let g = &geometry;
        let limit = MAX_BLOCK_ADDR / 2;
        if g.log_blocks < 16
            || g.log_blocks > MAX_LOG_BLOCKS
            || g.log_start_block < 4
            || g.log_start_block > limit
            || g.log_start_block + g.log_blocks > g.first_chunk_block
            || g.first_chunk_block > limit
            || chunks > limit / blocks_per_chunk
        {
            return Err(r
                .bad(
                    "geometry",
                    "areas in order and within 48 bits",
                    format!("{geometry:?}, {chunks} chunks"),
                )
                .into());
        }
        let (log_epoch, log_at, log_sequence, log_predecessor) = (r.u64()?, r.u64()?, r.u64()?, r.u64()?);
        if log_sequence >= 1 << 62 {
            return Err(r.bad("log sequence", "below 2^62", log_sequence).into());
        }
        if log_at > g.log_blocks {
            return Err(r.bad("log position", format!("at most {}", g.log_blocks), log_at).into());
        }
        let (snapshot_epoch, index_height) = (r.u32()?, r.u32()?);
        let index_root = NodeRef::decode(&mut r)?;
        let catalogue_root = NodeRef::decode(&mut r)?;
        let totals =
            Totals { data_chunks: r.u64()?, meta_chunks: r.u64()?, data_free: r.u64()?, meta_free: r.u64()? };
        let beyond = |free: u64, chunks: u64| free > chunks.saturating_mul(blocks_per_chunk);
        if beyond(totals.data_free, totals.data_chunks) || beyond(totals.meta_free, totals.meta_chunks) {
            return Err(r.bad("free blocks", "no more than the chunks have", format!("{totals:?}")).into());
        }
        let kinds = totals.data_chunks.checked_add(totals.meta_chunks);
        let free = totals.data_free.checked_add(totals.meta_free);
        if kinds.is_none_or(|k| k > chunks) || free.is_none_or(|f| f > chunks * blocks_per_chunk) {
            return Err(r.bad("totals", format!("within {chunks} chunks"), format!("{totals:?}")).into());
        }
        let height = super::chunk::index_height(chunks);
        if index_height != height || index_root.is_some_and(|n| u32::from(n.level) + 1 != height) {
            return Err(r.bad("index height", height, index_height).into());
        }
        let (created_micros, next_internal_id) = (r.u64()?, r.u64()?);
        if next_internal_id >= 1 << 62 {
            return Err(r.bad("next internal id", "below 2^62", next_internal_id).into());
        }
        r.finish()?;
        Ok(Self {
            state,
            incompatible,
            read_only_compatible,
            compatible,
            uuid,
            generation,
            geometry,
            chunks,
            limit_bytes,
            log_epoch,
            log_at,
            log_sequence,
            log_predecessor,
            snapshot_epoch,
            index_height,
            index_root,
            catalogue_root,
            totals,
            created_micros,
            next_internal_id,
        })
    }

    /// Byte offsets of the two slots that hold `generation`.
    pub(crate) fn slots(&self) -> [u64; 2] {
        let all = if self.state & STATE_FAR != 0 { FAR_SLOTS } else { NEAR_SLOTS };
        let odd = (self.generation & 1) as usize;
        [all[odd], all[odd + 2]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::BlockAddr;

    fn sample() -> Superblock {
        Superblock {
            state: STATE_CLEAN,
            incompatible: 0,
            read_only_compatible: 0,
            compatible: 0,
            uuid: [7; 16],
            generation: 9,
            geometry: Geometry {
                blocks_per_chunk: 64,
                log_start_block: 4,
                log_blocks: 16,
                first_chunk_block: 20,
            },
            chunks: 3,
            limit_bytes: 1 << 20,
            log_epoch: 5,
            log_at: 4,
            log_sequence: 77,
            log_predecessor: 0xdead,
            snapshot_epoch: 3,
            index_height: 1,
            index_root: Some(NodeRef {
                a: BlockAddr::new(30),
                b: Some(BlockAddr::new(31)),
                sum: 4,
                level: 0,
            }),
            catalogue_root: None,
            totals: Totals { data_chunks: 1, meta_chunks: 1, data_free: 3, meta_free: 60 },
            created_micros: 1,
            next_internal_id: 12,
        }
    }

    #[test]
    fn round_trip() {
        let mut b = [0; BLOCK];
        sample().encode(&mut b);
        assert_eq!(Superblock::decode(&b, 0).unwrap(), sample());
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let mut b = [0; BLOCK];
        sample().encode(&mut b);
        for bit in 0..BLOCK * 8 {
            b[bit / 8] ^= 1 << (bit % 8);
            assert!(Superblock::decode(&b, 0).is_err(), "bit {bit}");
            b[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_newer_version_is_told_from_damage() {
        let mut b = [0; BLOCK];
        sample().encode(&mut b);
        b[8] = 2;
        let sum = xxh3_64(&b[..BLOCK - 8]);
        b[BLOCK - 8..].copy_from_slice(&sum.to_le_bytes());
        assert!(matches!(Superblock::decode(&b, 0), Err(SlotFault::Newer(_))));
    }
}
