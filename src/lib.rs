//! Thin copy-on-write volumes, snapshots, clones, rollback and cascade delete in one pool file.

pub mod device;
mod error;
mod extent;
mod format;
mod node;
mod alloc;
mod units;

pub use error::{Corruption, Error, Result};
pub use units::*;
