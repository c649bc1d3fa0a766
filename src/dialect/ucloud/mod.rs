//! UCloud: the snapshot family, `GET`, form `POST` or JSON `POST` of `/?Action=...`.
//!
//! Actions: `CreateSnapshot`, `DescribeSnapshot`, `RollbackSnapshot`, `DeleteSnapshot`, and `ModifyNameAndRemark` for
//! snapshots. The HTTP status is always 200, but for a body that is too large; `RetCode` says what happened. Callers
//! see every project unless they name some. Ids are printed as UUIDs.
//!
//! The types are those of the documents, for servers and clients: what is spelled in two ways there is read in both.

mod code;
mod serve;
mod types;

pub(super) use serve::{answer, body_too_large};
pub use types::{
    Answer, CreateSnapshot, DescribeSnapshot, DiskType, Nothing, SnapshotInfo, SnapshotStatus, SnapshotType,
};
