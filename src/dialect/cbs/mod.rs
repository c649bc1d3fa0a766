//! CBS: the snapshot family, `GET` or form `POST` of `/v2/index.php?Action=...`.
//!
//! Actions: `DescribeSnapshots`, `CreateSnapshot`, `ModifySnapshot`, `ApplySnapshot` (a rollback), `DeleteSnapshot`.
//! The HTTP status is always 200, but for a body that is too large; `code` says what happened. Callers see every
//! project. Ids are printed as aliases; a volume that is gone has no alias left and is printed as its UUID.
//!
//! The types are those of the documents, for servers and clients: what is written in two ways there is read in both.

mod code;
mod serve;
mod types;

pub(super) use serve::{answer, body_too_large};
pub use types::{
    Answer, CreateSnapshot, DeleteSnapshot, DescribeSnapshots, DiskType, Nothing, Outcome, Snapshot,
    SnapshotStatus,
};
