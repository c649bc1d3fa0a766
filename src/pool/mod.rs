//! The public verbs: pools, volumes, snapshots, attached disks, and the documented rules about them.
//!
//! The room owns the records of volumes, snapshots, images, projects, zones and attachments with their indexes in
//! the catalogue, the table of open handles and running jobs, and the lifetimes of handles. No wire format is
//! known here: the documented clouds are translated to these calls, and keep no state beside them. It never touches a device: bytes and maps belong to `commit`.
//!
//! - P1 A refused call leaves no trace: everything is checked before the first change is staged, and a
//!   transaction whose builder fails has no effect.
//! - P2 Each rule exists once, on [`Batch`]; a single operation is a batch of one.
//! - P3 A record and its index entries change in the same transaction, so a listing never names what is
//!   not there, and never misses what is.
//! - P4 Only `available` and the error statuses are stored. `in-use` follows from open handles and from stored
//!   attachments, transient statuses from the jobs that run, in memory. What an interrupted job must leave
//!   behind is stored before it begins. After a crash there is therefore no transient status.
//! - P5 Volumes, snapshots, images, bases and ephemeral copies share one space of ids: an id names one map.
//! - P6 Attaching claims its place before it looks at the record; deleting looks at the places inside its
//!   transaction. Whichever comes second loses with a typed error.
//! - P7 Every rule asks for the status in one way, [`Batch::volume_status`] or [`Batch::snapshot_status`]: a job
//!   first, then attachments, then the record.
//! - P8 The order of looking: arguments, existence, relations between objects, status, quota, space.
//!
//! It assumes of `commit` that a transaction is one instant, is durable when it returns, sees its own
//! staged changes, and that transactions run one after another.

mod aliases;
mod attachments;
mod backup_records;
pub(crate) mod backup_steps;
pub(crate) mod backups;
mod base;
mod batch;
mod catalogue;
mod deletion;
mod describe;
mod diff;
mod disk;
mod fields;
mod filling;
mod fingerprint;
mod image;
mod image_record;
mod images;
mod importing;
mod jobs;
mod limits;
mod options;
mod origins;
#[allow(clippy::module_inception)]
mod pool;
mod projects;
mod query;
mod receives;
mod records;
mod servers;
mod snapshot;
mod snapshots;
mod space;
mod status;
#[cfg(test)]
mod tests;
mod update;
mod verify;
mod volume;
mod volumes;
mod zones;

pub use backups::{Backup, BackupQuery, BackupStatus};
pub use base::{Base, BaseChecksums, BaseSource, Hydrating, Hydration};
#[cfg(feature = "internals")]
pub(crate) use records::law as records_law;

pub use batch::Batch;
pub use deletion::{DeletePlan, Deletion, DeletionProgress, Freed};
pub use diff::{Change, Diff, Point};
pub use disk::{AttachOptions, Disk, Extent, ExtentKind, Extents};
pub use filling::{BackupRun, Filling};
pub use fingerprint::Fingerprint;
pub(crate) use fingerprint::Fingerprinter;
pub use image::{Image, ImageContent, ImageSpec, ImageStatus, ImageUpdate};
pub use images::ImageQuery;
pub(crate) use importing::Importing;
pub use jobs::{SnapshotJob, VolumeJob};
pub(crate) use limits::MAX_STORED_TEXT_BYTES;
pub use limits::{
    BACKUP_SNAPSHOT_PREFIX, Limits, MAX_ATTACHMENTS, MAX_METADATA_BYTES, MAX_PAGE, MAX_TEXT_BYTES,
    MAX_VOLUMES_PER_CALL, TextLimit,
};
pub use options::{Background, CreateOptions, OpenOptions, ReadMode};
pub(crate) use origins::Identity;
pub use origins::{Origin, ResumePoint, UnfinishedReceive};
pub use pool::Pool;
pub use projects::{Project, Usage};
pub use query::{Page, SnapshotQuery, SortKey, SortOrder, VolumeQuery};
pub(crate) use receives::{Arrival, Landing, Target};
pub use servers::{Attachment, AttachmentSpec, ServerState};
pub use snapshot::{RollbackOptions, Snapshot, SnapshotSpec, Trigger, Warning};
pub use space::{ObjectSpace, PoolSpace};
pub use status::{SnapshotStatus, VolumeStatus};
pub use update::{SnapshotUpdate, VolumeUpdate};
pub use volume::{Snapshots, Volume, VolumeSource, VolumeSpec};
pub use zones::Zone;
