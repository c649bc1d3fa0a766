//! Long documents: they belong to the crate and are checked with it.
//!
//! - [`mod@format`] describes every byte of a pool, for readers and for other implementations.
//! - [`images`] is about disk images, and volumes over an external base.
//! - [`streams`] describes every byte of a delta stream.
//! - [`durability`] says what survives what, and how each promise is tested.
//! - [`operations`] names every documented operation, its native call, and what refuses it.
//! - [`backups`] describes every byte of a backup target, and the rules.
//! - [`performance`] says what calls cost, and what bounds them.
//! - [`changelog`] lists what changed for users.

#[doc = include_str!("format.md")]
pub mod format {}

#[doc = include_str!("images.md")]
pub mod images {}

#[doc = include_str!("streams.md")]
pub mod streams {}

#[doc = include_str!("durability.md")]
pub mod durability {}

#[doc = include_str!("operations.md")]
pub mod operations {}

#[doc = include_str!("backups.md")]
pub mod backups {}

#[doc = include_str!("performance.md")]
pub mod performance {}

#[doc = include_str!("changelog.md")]
pub mod changelog {}
