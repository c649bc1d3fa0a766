//! Space: which blocks are free, which are taken, how often each is named.
//!
//! Life of a block: free -> taken (a record or a buffer names it) -> counted (a checkpoint's maps name it)
//! -> dropped (count zero in a newer checkpoint) -> free once that checkpoint is durable.
//!
//! - A1 A block is handed out only when its count is zero in the last durable checkpoint and nothing has
//!   taken it since. So whatever a log record allocates is free in the checkpoint the log starts from.
//! - A2 A block taken and given up between two checkpoints stays taken until the next one is durable.
//! - A3 Counts change only inside a checkpoint; the write path neither reads nor writes them.
//! - A4 Data and metadata never share a chunk. A chunk becomes free again when nothing in it is counted.
//! - A5 Data may open a free chunk only while enough free space for the metadata reserve remains; whatever makes the
//!   metadata grow stops before it has eaten what giving back needs (P7).
//! - A6 The checksum of a block is set before any map names the block, and not changed while one does,
//!   except by its only writer while its buffer is open.
//! - A7 On the medium, the checksum of a block whose count is zero is zero. So a checksum page is a function
//!   of the counts and the data, and a damaged one can be computed again, proved by its own checksum.

mod bits;
mod index;
mod ledger;
mod pages;
mod reserve;
mod space;

pub(crate) use bits::Bits;
pub(crate) use index::IndexNode;
pub(crate) use ledger::{Ledger, Sink};
pub(crate) use pages::ChecksumPage;
pub(crate) use reserve::{DISCARD_QUARTERS, GREAT_DISCARD_QUARTERS, GROWTH_QUARTERS};
pub(crate) use space::{Claim, IndexRoot, PoolBlocks, Run, Space};
