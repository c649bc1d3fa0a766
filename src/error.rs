//! The one public error type, grouped by what the caller does next.

use std::io;

use crate::units::{SnapshotId, VolumeId};

/// Result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call was refused or failed. A refused call has changed nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument is outside what the call accepts: correct it and call again.
    #[error("invalid argument {field}: {why}")]
    InvalidArgument {
        /// The argument, by its name in the API.
        field: &'static str,
        /// Which rule, for a program to tell apart.
        rule: Violation,
        /// The rule it breaks, with the limit and the value.
        why: String,
    },
    /// The object is in a state in which the documented rules refuse the operation.
    #[error("{object} {id} is {status}, which does not allow {op}{}", rule.explained())]
    InvalidState {
        /// `volume`, `snapshot`, `image`, `backup` or `batch`.
        object: &'static str,
        /// Id of the object.
        id: String,
        /// Its status now.
        status: &'static str,
        /// The refused operation: `attach`, `backup`, `bootable`, `clone`, `create_snapshot`, `delete`, `detach`,
        /// `extend`, `read_only`, `reserve`, `restore`, `rollback`, `update`...
        op: &'static str,
        /// Which rule, for a program to tell apart.
        rule: StateRule,
    },
    /// No such object in this pool.
    #[error("no {object} {id} in this pool")]
    NotFound {
        /// `volume`, `snapshot`, `image`, `attachment`, `project`, `zone` or `metadata key`.
        object: &'static str,
        /// The id asked for.
        id: String,
    },
    /// A supplied id or a path is taken.
    #[error("{object} {id} already exists")]
    AlreadyExists {
        /// `volume`, `snapshot`, `image`, `project`, `zone` or `pool`.
        object: &'static str,
        /// The id or path.
        id: String,
    },
    /// A configured or structural limit would be passed.
    #[error("{what} would pass the limit of {limit}")]
    LimitExceeded {
        /// What is limited.
        what: Limited,
        /// The limit.
        limit: u64,
    },
    /// The volume has snapshots and the policy says to refuse.
    #[error("volume {volume} has {} snapshots; delete them, or choose a policy", snapshots.len())]
    HasSnapshots {
        /// The volume.
        volume: VolumeId,
        /// Its snapshots (the first 1,000).
        snapshots: Vec<SnapshotId>,
    },
    /// The object is held or in use by another call: try again after it is released.
    #[error("{object} {id} is busy: {why}")]
    Busy {
        /// `volume`, `snapshot`, `image` or `pool`.
        object: &'static str,
        /// Id of the object.
        id: String,
        /// Who holds it.
        why: &'static str,
    },
    /// The pool is open elsewhere, in this or another process.
    #[error("the pool is open elsewhere; close it there first")]
    Locked,
    /// The pool, snapshot or attachment is read-only.
    #[error("{object} is read-only")]
    ReadOnly {
        /// `pool`, `snapshot`, `volume` or `attachment`.
        object: &'static str,
    },
    /// No space for this write, before any of its effects: delete something or raise the limit.
    #[error("out of space: {needed_bytes} bytes needed, {available_bytes} available")]
    OutOfSpace {
        /// Bytes the call needs.
        needed_bytes: u64,
        /// Bytes it could have had.
        available_bytes: u64,
    },
    /// The process could not have this much memory in one piece. The call has changed nothing, but that of a write
    /// of several blocks the first ones may have been written.
    #[error("out of memory: {bytes} bytes were refused")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: u64,
    },
    /// This pool or this device does not offer the feature.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// Bytes from outside (a delta stream, an image, an external base) are not what they have to be. Nothing
    /// visible has changed: get the input anew, or the right one.
    #[error("{input} refused at byte {offset}: {why}")]
    Refused {
        /// `delta stream`, `qcow2 image`, `image` or `base`.
        input: &'static str,
        /// How far the input was read, in bytes from its start.
        offset: u64,
        /// The rule it breaks, with what was expected and what was found.
        why: String,
    },
    /// Bytes on the device are not what was written there. Everything else stays readable.
    #[error("corrupt: {0}")]
    Corrupt(#[from] Corruption),
    /// The device, or the file or stream that was handed over, failed. What was durable before stays durable.
    #[error("{op} of {len} bytes at offset {offset} failed")]
    Io {
        /// `read`, `write`, `sync`, `allocate`, `discard`, `open`...
        op: &'static str,
        /// Byte offset in the pool, or in the file or stream that `op` names.
        offset: u64,
        /// Length of the transfer in bytes.
        len: u64,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
    /// A backup target failed. What it had durable stays durable; call again when it works.
    #[error("{op} of {name:?} on the backup target failed")]
    Target {
        /// `put`, `get`, `list`, `delete` or `sync`.
        op: &'static str,
        /// The object, or the prefix that was listed.
        name: String,
        /// What the target said.
        #[source]
        source: io::Error,
    },
    /// The caller's progress callback ended the call.
    #[error("{op} was cancelled")]
    Cancelled {
        /// The call.
        op: &'static str,
    },
    /// An earlier sync or log write failed: nothing more is written until the pool is reopened.
    #[error("an earlier sync failed; reopen the pool")]
    Poisoned,
    /// The pool handle was closed.
    #[error("the pool is closed")]
    Closed,
}

impl Error {
    pub(crate) fn invalid(field: &'static str, rule: Violation, why: impl Into<String>) -> Self {
        Self::InvalidArgument { field, rule, why: why.into() }
    }

    pub(crate) fn refused(input: &'static str, offset: u64, why: impl Into<String>) -> Self {
        Self::Refused { input, offset, why: why.into() }
    }

    pub(crate) fn not_found(object: &'static str, id: impl ToString) -> Self {
        Self::NotFound { object, id: id.to_string() }
    }
}

/// The rules about arguments. A dialect maps each to the code that its documents name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Violation {
    /// A number is outside its range: bounds of a transfer, options of a pool, a count of attachments.
    Range,
    /// The request cannot be read at all. Only dialects find this.
    Malformed,
    /// A field has another type than it must have. Only dialects find this.
    WrongType,
    /// Something that is needed was not given.
    Missing,
    /// An update that changes nothing.
    NothingToChange,
    /// An id that no object can have.
    Id,
    /// A name that more than one object has.
    Ambiguous,
    /// A project id that cannot be one, or that is not the caller's.
    Project,
    /// A text is too long.
    TooLong,
    /// A name with a prefix that belongs to the system, where the profile refuses it.
    ReservedName,
    /// A metadata key or value is too long.
    Metadata,
    /// The metadata as a whole are too large.
    MetadataTooLarge,
    /// A metadata pair that asks for encryption has a bad value.
    Encryption,
    /// The metadata key `hw:passthrough` has a bad value.
    Passthrough,
    /// The metadata key `full_clone` has a bad value.
    FullClone,
    /// A metadata key with a meaning that a volume from a snapshot or image cannot have.
    SourceMetadata,
    /// A size is missing, no multiple of its step, or out of its range.
    Size,
    /// A size is below that of the source of the data, or below what an image needs.
    BelowSource,
    /// A size is below that of the backup.
    BelowBackup,
    /// An extension to a size that is not larger.
    NotLarger,
    /// More than one source of data.
    SeveralSources,
    /// A number of volumes outside its range.
    Count,
    /// Several volumes from one backup.
    CountFromBackup,
    /// A volume type that the profile does not know.
    VolumeType,
    /// Another volume type than the source has.
    VolumeTypeDiffers,
    /// A zone that is not there, or not available.
    Zone,
    /// Another zone than the source is in.
    ZoneDiffers,
    /// Another zone than the backup is in.
    BackupZone,
    /// A bad value for whether a volume is shared. Only dialects find this.
    Shared,
    /// A shared volume from an image.
    SharedImage,
    /// A limit, offset or marker of a page that cannot be one.
    Page,
    /// A key to sort by that is not known.
    SortKey,
    /// A direction to sort in that is not known.
    SortDirection,
    /// A status that no object can have.
    StatusFilter,
    /// A bad zone in a filter.
    ZoneFilter,
    /// A bad metadata filter.
    MetadataFilter,
    /// Any other bad filter.
    Filter,
    /// A rollback to a volume that the snapshot is not of.
    NotSourceVolume,
}

/// The rules about states. A dialect maps each to the code that its documents name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum StateRule {
    /// The status does not allow it, whatever else is said.
    Status,
    /// It is attached, and the call did not say that this is accepted, or this never is.
    Attached,
    /// It is shared and not `available`.
    Shared,
    /// The server it is attached to is in a state that does not allow it.
    Server,
    /// The snapshot belongs to a backup.
    BackupOwned,
}

impl StateRule {
    fn explained(self) -> &'static str {
        match self {
            Self::Status | Self::Attached => "",
            Self::Shared => " because it is shared",
            Self::Server => " because of the state of its server",
            Self::BackupOwned => " because it belongs to a backup",
        }
    }
}

/// What a limit is about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Limited {
    /// Attachments of one volume.
    Attachments,
    /// Snapshots of one volume, those of backups not counted.
    Snapshots,
    /// Volumes of one project.
    Volumes,
    /// Bytes of the volumes of one project, by their virtual size.
    VolumeBytes,
    /// Zones of the pool.
    Zones,
    /// Bytes that one transaction changes; a larger log allows more.
    TransactionBytes,
    /// Changes of records and maps that one transaction makes.
    TransactionSteps,
    /// Blocks of the log.
    LogBlocks,
    /// Tables that the manifest of one backup names; larger pieces need fewer.
    BackupTables,
}

impl std::fmt::Display for Limited {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Attachments => "attachments of the volume",
            Self::Snapshots => "snapshots of the volume",
            Self::Volumes => "volumes of the project",
            Self::VolumeBytes => "bytes in the volumes of the project",
            Self::Zones => "zones of the pool",
            Self::TransactionBytes => "bytes of the transaction",
            Self::TransactionSteps => "steps of the transaction",
            Self::LogBlocks => "blocks of the log",
            Self::BackupTables => "tables of the backup",
        })
    }
}

/// A located difference between what the pool must hold and what it holds.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error, serde::Serialize)]
#[error("{structure} at block {block}: {field} is {found}, expected {expected}")]
#[non_exhaustive]
pub struct Corruption {
    /// The structure, for example `superblock`, `map node`, `data block`.
    pub structure: &'static str,
    /// Block address in the pool (4 KiB units), or 0 where none applies.
    pub block: u64,
    /// The field that differs.
    pub field: &'static str,
    /// What it had to be.
    pub expected: String,
    /// What it is.
    pub found: String,
}

impl Corruption {
    pub(crate) fn new(
        structure: &'static str,
        block: u64,
        field: &'static str,
        expected: impl ToString,
        found: impl ToString,
    ) -> Self {
        Self { structure, block, field, expected: expected.to_string(), found: found.to_string() }
    }
}
