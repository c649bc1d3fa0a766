//! The public verbs: pools, volumes, snapshots, attached disks, and the documented rules about them.
//!
//! The room owns the records of volumes and snapshots and their indexes in the catalogue, the table of
//! attachments, and the lifetimes of handles. It never touches a device: bytes and maps belong to `commit`.
//!
//! - P1 A refused call leaves no trace: everything is checked before the first change is staged, and a
//!   transaction whose builder fails has no effect.
//! - P2 Each rule exists once, on [`Batch`]; a single operation is a batch of one.
//! - P3 A record and its index entries change in the same transaction, so a listing never names what is
//!   not there, and never misses what is.
//! - P4 Only `available` and the error statuses are stored; `in-use` follows from the attachments, which
//!   are never stored. After a crash there is therefore no transient status.
//! - P5 Volumes, snapshots and ephemeral copies share one space of ids: an id names one map.
//! - P6 Attaching claims its place before it looks at the record; deleting looks at the places inside its
//!   transaction. Whichever comes second loses with a typed error.
//!
//! It assumes of `commit` that a transaction is one instant, is durable when it returns, sees its own
//! staged changes, and that transactions run one after another.

mod attachments;
mod batch;
mod catalogue;
mod deletion;
mod diff;
mod disk;
mod limits;
mod options;
#[allow(clippy::module_inception)]
mod pool;
mod query;
mod records;
mod snapshot;
mod snapshots;
mod space;
mod status;
#[cfg(test)]
mod tests;
mod verify;
mod volume;
mod volumes;

pub use batch::Batch;
pub use deletion::{DeletePlan, Deletion, DeletionProgress, Freed};
pub use diff::{Change, Diff, Point};
pub use disk::{AttachOptions, Disk, Extent, ExtentKind, Extents};
pub use limits::{MAX_ATTACHMENTS, MAX_METADATA_BYTES, MAX_PAGE, MAX_TEXT_BYTES, MAX_VOLUMES_PER_CALL};
pub use options::{Background, CreateOptions, OpenOptions, ReadMode};
pub use pool::Pool;
pub use query::{Page, SnapshotQuery, VolumeQuery};
pub use snapshot::{RollbackOptions, Snapshot, SnapshotSpec, SnapshotUpdate};
pub use space::{ObjectSpace, PoolSpace};
pub use status::{SnapshotStatus, VolumeStatus};
pub use volume::{Snapshots, Volume, VolumeSource, VolumeSpec, VolumeUpdate};
