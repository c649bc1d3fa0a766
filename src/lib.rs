//! Thin copy-on-write volumes, snapshots, clones, rollback and cascade delete in one pool file.

mod alloc;
mod commit;
pub mod device;
mod error;
mod extent;
mod format;
pub mod guide;
mod node;
mod pool;
mod units;

pub use commit::Stats;
pub use error::{Corruption, Error, Result};
pub use pool::*;
pub use units::{BLOCK_BYTES, BlockAddr, Geometry, Lba, MAX_VOLUME_BYTES, SnapshotId, VolumeId};
