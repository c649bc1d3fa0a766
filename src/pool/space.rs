//! How much space the pool, a volume or a snapshot takes.

use serde::Serialize;

use crate::error::Result;
use crate::units::{BLOCK_BYTES, ObjectId, SnapshotId, VolumeId};

use super::catalogue;
use super::pool::Pool;

/// Space of one volume or snapshot, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[non_exhaustive]
pub struct ObjectSpace {
    /// Its virtual size.
    pub virtual_bytes: u64,
    /// Data that its map reaches, shared or not.
    pub mapped_bytes: u64,
    /// Data that nothing else reaches: what deleting it would give back.
    pub exclusive_bytes: u64,
}

/// Space of the pool, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[non_exhaustive]
pub struct PoolSpace {
    /// Size of the pool now.
    pub total_bytes: u64,
    /// Size to which it may grow.
    pub limit_bytes: u64,
    /// Taken by data, each block once however many share it.
    pub used_bytes: u64,
    /// Taken by metadata: maps, catalogue, checksums, log.
    pub metadata_bytes: u64,
    /// Free within the present size.
    pub free_bytes: u64,
    /// The part of it that is kept for deletes, rollbacks and flushes of a full pool.
    pub reserved_bytes: u64,
}

impl Pool {
    /// Space of the whole pool, as of now.
    ///
    /// # Errors
    /// `Closed`.
    pub fn space(&self) -> Result<PoolSpace> {
        let blocks = self.inner.engine.pool_space();
        Ok(PoolSpace {
            total_bytes: blocks.total * BLOCK_BYTES,
            limit_bytes: blocks.limit * BLOCK_BYTES,
            used_bytes: blocks.data_used * BLOCK_BYTES,
            metadata_bytes: (blocks.meta_used + blocks.fixed) * BLOCK_BYTES,
            free_bytes: blocks.free * BLOCK_BYTES,
            reserved_bytes: blocks.reserved * BLOCK_BYTES,
        })
    }

    /// Space of a volume, as of now. Finishes earlier deletions first, and walks the part of its map that nothing
    /// else shares.
    ///
    /// # Errors
    /// `NotFound`; `Unsupported` in a pool that is open for reading only and was not closed, or was deleting something:
    /// what is exclusive cannot be told then; `OutOfSpace`, `Corrupt`, `Io`, `Poisoned`, `Closed`.
    pub fn volume_space(&self, id: VolumeId) -> Result<ObjectSpace> {
        let record = catalogue::need_volume(&*self.inner.engine, id)?;
        self.object_space(id.object(), record.common.size_bytes)
    }

    /// Space of a snapshot, as of now. Finishes earlier deletions first, and walks the part of its map that nothing
    /// else shares.
    ///
    /// # Errors
    /// `NotFound`; `Unsupported` in a pool that is open for reading only and was not closed, or was deleting something:
    /// what is exclusive cannot be told then; `OutOfSpace`, `Corrupt`, `Io`, `Poisoned`, `Closed`.
    pub fn snapshot_space(&self, id: SnapshotId) -> Result<ObjectSpace> {
        let record = catalogue::need_snapshot(&*self.inner.engine, id)?;
        self.object_space(id.object(), record.common.size_bytes)
    }

    fn object_space(&self, id: ObjectId, virtual_bytes: u64) -> Result<ObjectSpace> {
        let engine = &self.inner.engine;
        let object = engine.object(id)?;
        Ok(ObjectSpace {
            virtual_bytes,
            mapped_bytes: engine.mapped_blocks(&object)? * BLOCK_BYTES,
            exclusive_bytes: engine.exclusive_blocks(&[id])? * BLOCK_BYTES,
        })
    }
}
