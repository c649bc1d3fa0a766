//! The only writer of log and superblocks: order of writes, barriers, checkpoints, recovery.
//!
//! - C1 Nothing is overwritten in place but log blocks older than the checkpoint and the older pair of
//!   superblock slots.
//! - C2 A commit writes its data runs and one record, in two copies, and then issues one sync. The record
//!   may reach the medium before the data: recovery verifies the data of records that nobody claims durable.
//! - C3 A flush returns only after a sync that was issued after its own record and data had been written.
//! - C4 A superblock is written only after a sync that covers every block it leads to.
//! - C5 A block becomes free for reuse only when the checkpoint that dropped it is durable and no reader
//!   that could still look at it is left ([`pins`]).
//! - C6 After a failed sync or a failed write of log or superblock nothing is written any more (the latch).
//! - C7 All maps and the catalogue in a record, and in a checkpoint, are of one instant: the gate is held
//!   exclusively while it is taken, and writers hold it shared from taking space to changing the map.
//!
//! Lock order: transaction, checkpoint, log, gate, catalogue, object table, map, space. No lock that a reader or writer
//! needs is held across a device call.

mod ahead;
mod background;
mod buffer;
mod catalogue;
mod checkpoint;
mod engine;
mod hot;
mod io;
mod log;
mod lower;
#[cfg(all(snapvol_shuttle, feature = "internals"))]
pub(crate) mod models;
mod object;
mod outgoing;
mod pins;
mod reclaim;
mod recovery;
pub(crate) mod rest;
mod sums;
mod txn;

pub use background::Stats;
pub(crate) use catalogue::TABLE_TRASH;
#[cfg(feature = "internals")]
pub(crate) use catalogue::laws;
pub(crate) use engine::{Config, Engine};
pub(crate) use lower::Lower;
pub(crate) use object::Object;
pub(crate) use txn::Txn;
