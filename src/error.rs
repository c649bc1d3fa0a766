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
        /// The rule it breaks, with the limit and the value.
        why: String,
    },
    /// The object is in a state in which the documented rules refuse the operation.
    #[error("{object} {id} is {status}, which does not allow {op}")]
    InvalidState {
        /// `volume` or `snapshot`.
        object: &'static str,
        /// Id of the object.
        id: String,
        /// Its status now.
        status: &'static str,
        /// The refused operation.
        op: &'static str,
    },
    /// No such object in this pool.
    #[error("no {object} {id} in this pool")]
    NotFound {
        /// `volume` or `snapshot`.
        object: &'static str,
        /// The id asked for.
        id: String,
    },
    /// A supplied id or a path is taken.
    #[error("{object} {id} already exists")]
    AlreadyExists {
        /// `volume`, `snapshot` or `pool`.
        object: &'static str,
        /// The id or path.
        id: String,
    },
    /// A configured or structural limit would be passed.
    #[error("{what} would pass the limit of {limit}")]
    LimitExceeded {
        /// What is limited.
        what: &'static str,
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
        /// `volume`, `snapshot` or `pool`.
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
        /// `pool`, `snapshot` or `attachment`.
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
    /// This pool or this device does not offer the feature.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// Bytes on the device are not what was written there. Everything else stays readable.
    #[error("corrupt: {0}")]
    Corrupt(#[from] Corruption),
    /// The device failed. What was durable before stays durable.
    #[error("{op} of {len} bytes at offset {offset} failed")]
    Io {
        /// `read`, `write`, `sync`, `allocate`, `discard`, `open`...
        op: &'static str,
        /// Byte offset in the pool.
        offset: u64,
        /// Length of the transfer in bytes.
        len: u64,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
    /// An earlier sync or log write failed: nothing more is written until the pool is reopened.
    #[error("an earlier sync failed; reopen the pool")]
    Poisoned,
    /// The pool handle was closed.
    #[error("the pool is closed")]
    Closed,
}

impl Error {
    pub(crate) fn invalid(field: &'static str, why: impl Into<String>) -> Self {
        Self::InvalidArgument { field, why: why.into() }
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
