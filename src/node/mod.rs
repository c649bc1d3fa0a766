//! Where bytes and types meet: nodes are fetched, verified, cached and changed here, and nowhere else.
//!
//! A tree is a web of [`Link`]s. A `Disk` link names a node that a durable checkpoint wrote; it is
//! fetched through the [`Store`] on demand. A `Mem` link holds a node that has changed since. Changing a
//! node copies it first unless this tree is its only owner and it has never been written, so sharing a
//! root is all that a snapshot or a freeze has to do.
//!
//! - N1 A node that has a home (an address given by a checkpoint) is never changed again.
//! - N2 A node reachable from two links is never changed: `Arc` counts the links.
//! - N3 A cached node has only `Disk` children, so evicting it frees everything it holds.
//! - N4 A fetched node has been verified against the reference that led to it: checksum, kind, level,
//!   pool, own addresses. If the first copy fails and there is a second, that one serves.
//! - N5 An edit that meets a node outside memory stops with [`Miss`] before it has any effect; the caller
//!   fetches the node without locks held and tries again.

mod store;
#[cfg(test)]
mod tests;
mod tree;

pub(crate) use store::{AddrHash, CHECKSUM_KEY, Held, Store};
pub(crate) use tree::{Cx, Got, Kid, Kind, Link, Miss, Node, Tree};
