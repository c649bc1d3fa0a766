//! Delta streams: a snapshot, or the change between two, as bytes that another pool makes the same snapshot from.
//!
//! - S1 Every bit of a stream is covered by a checksum: those of the header, of each record, of each block of
//!   data. That of a record continues the one before, and the first that of the header, so that nothing can be
//!   left out, moved or taken from elsewhere. The end is a record too: without it nothing becomes visible.
//! - S2 Bytes are verified before they are written, and nothing is sized by a number that was not checked.
//! - S3 Records say what a range is to be, never what is to be done to what was there: applying one twice is
//!   applying it once. So a stream may go on from any position at or before the one that was reached.
//! - S4 A stream of changes applies only to a snapshot that has the origin, the size and the content that it was
//!   made from; what comes out has the content that the sender has, or nothing becomes visible.
//! - S5 The checksum of a block is the one that was computed when it was first written.
//!
//! It assumes of `pool` that snapshots never change, that a frozen pair stays as it is, and what is said in
//! `pool::receives`. [`crate::guide::streams`] has every byte.

mod receive;
mod send;
mod wire;

pub use receive::{ReceiveOptions, ReceiveProgress, Received};
pub use send::{SendOptions, SendProgress, SendStream};

use crate::pool::{Identity, Origin};
