//! From native errors to the codes of the documents; those from 62101 are ours, as they name none.

use crate::dialect::lookup;
use crate::error::{Error, Limited, Violation};

/// Why a request gets another `RetCode` than 0.
pub(super) struct Refusal {
    pub(super) code: i64,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn no_action() -> Self {
        Self { code: 160, message: "Action is needed".into() }
    }
    pub(super) fn unknown_action() -> Self {
        Self { code: 161, message: "no such Action".into() }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let names = [("name", "Name"), ("description", "Remark"), ("volume", "DiskID")];
        Self { code: of(&error), message: lookup::message(&error, &names) }
    }
}

fn of(error: &Error) -> i64 {
    use Violation as V;
    match error {
        Error::InvalidArgument { rule, .. } => match rule {
            V::Missing | V::NothingToChange => 220,
            V::Project => 292,
            V::NotSourceVolume => 62105,
            _ => 230,
        },
        Error::NotFound { object: "volume", .. } => 62101,
        Error::NotFound { .. } => 62102,
        Error::InvalidState { object: "volume", .. } => 62103,
        Error::InvalidState { .. } | Error::AlreadyExists { .. } => 62104,
        Error::LimitExceeded { what: Limited::Snapshots, .. } => 62106,
        Error::HasSnapshots { .. } => 62107,
        Error::LimitExceeded { .. } | Error::OutOfSpace { .. } | Error::OutOfMemory { .. } => 62108,
        Error::Busy { .. } | Error::Locked => 62109,
        Error::Unsupported(_) | Error::ReadOnly { .. } => 161,
        // The store's own trouble, and what these calls never meet.
        _ => 1000,
    }
}
