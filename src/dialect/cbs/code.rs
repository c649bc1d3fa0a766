//! From native errors to the codes of the documents.

use crate::dialect::lookup;
use crate::error::{Error, Limited, Violation};

use super::types::{Answer, Nothing, Outcome};

pub(super) const SNAPSHOT_NOT_FOUND: i64 = 16003;

/// The code, and the word for it.
pub(super) fn of(error: &Error) -> (i64, &'static str) {
    use Violation as V;
    match error {
        Error::InvalidArgument { rule, .. } => match rule {
            V::Malformed | V::Missing | V::NothingToChange => (4000, "InvalidRequest"),
            V::VolumeType | V::VolumeTypeDiffers => (16007, "InvalidStorageType"),
            _ => (9003, "InvalidParameter"),
        },
        Error::NotFound { object: "snapshot", .. } => (SNAPSHOT_NOT_FOUND, "SnapshotNotFound"),
        Error::NotFound { .. } => (5000, "ResourceNotFound"),
        // A snapshot of the disk is being made: that of a backup.
        Error::InvalidState { object: "volume", status: "backing-up", op: "create_snapshot", .. }
        | Error::InvalidState {
            object: "snapshot", status: "creating" | "backing-up", op: "rollback", ..
        } => (16027, "SnapshotCreating"),
        Error::InvalidState { object: "snapshot", op: "rollback" | "clone", .. } => {
            (9003, "InvalidParameter")
        }
        Error::InvalidState { object: "volume", .. } | Error::Busy { .. } | Error::Locked => {
            (16005, "InvalidStorageState")
        }
        Error::InvalidState { .. }
        | Error::AlreadyExists { .. }
        | Error::HasSnapshots { .. }
        | Error::ReadOnly { .. } => (5100, "OperationFailed"),
        Error::LimitExceeded { what: Limited::Snapshots, .. } => (16006, "SnapshotLimitExceeded"),
        Error::LimitExceeded { .. } | Error::OutOfSpace { .. } | Error::OutOfMemory { .. } => {
            (5200, "ResourceInsufficient")
        }
        Error::Unsupported(_) => (6100, "Unsupported"),
        // The store's own trouble, and what these calls never meet.
        _ => (6000, "InternalError"),
    }
}

fn message(error: &Error) -> String {
    lookup::message(error, &[("name", "snapshotName"), ("volume", "storageId")])
}

pub(super) fn failure(error: &Error) -> Answer<Nothing> {
    let (code, word) = of(error);
    Answer { code, message: message(error), code_desc: Some(word.into()), body: None }
}

/// What became of one id of several, in the words of the documents where they have some.
pub(super) fn outcome<T>(done: Result<T, Error>) -> Outcome {
    match done {
        Ok(_) => Outcome::new(0, "return successfully!"),
        Err(error) => match of(&error).0 {
            SNAPSHOT_NOT_FOUND => Outcome::new(SNAPSHOT_NOT_FOUND, "snap not exist"),
            code => Outcome::new(code, message(&error)),
        },
    }
}
