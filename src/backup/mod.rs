//! Backups: full or incremental copies of volumes outside the pool, and what can be done with them.
//!
//! A backup goes to a [`BackupTarget`], which is connected to the pool under a name:
//!
//! ```
//! # fn main() -> snapvol::Result<()> {
//! use std::ops::ControlFlow;
//! use std::sync::Arc;
//! use snapvol::backup::{BackupSpec, LocalFolder};
//! use snapvol::{CreateOptions, Pool, VolumeSpec};
//!
//! # let dir = tempfile::tempdir().unwrap();
//! # let path = dir.path().join("backups");
//! let pool = Pool::create_in_memory(CreateOptions::new())?;
//! # let folder = LocalFolder::open(path).unwrap();
//! pool.connect_backup_target("local", Arc::new(folder))?; // LocalFolder::open("/srv/backups")
//! let volume = pool.create_volume(VolumeSpec::blank(1 << 30))?.id;
//! let go_on = &mut |_| ControlFlow::Continue(());
//! let first = pool.create_backup(volume, BackupSpec::new("local"), go_on)?; // full
//! let second = pool.create_backup(volume, BackupSpec::new("local"), go_on)?; // incremental
//! pool.delete_backup(first.id)?; // harms no other
//! assert!(pool.verify_backup(second.id, go_on)?.is_whole());
//! let copy = pool.create_volume_from_backup(VolumeSpec::from_backup(second.id, 1 << 30), go_on)?;
//! # let _ = copy;
//! pool.sweep_backups("local", go_on)?; // what nothing names any more goes
//! # Ok(())
//! # }
//! ```
//!
//! [`guide::backups`](crate::guide::backups) has the layout of a target, byte for byte.
//!
//! - K1 What a manifest names is durable before the manifest is put, and a backup is available only after its
//!   manifest is durable. A backup that is cut off anywhere leaves objects that nothing names, and no more.
//! - K2 Every manifest names all that its backup needs; no backup needs another.
//! - K3 What is stored under the digest of its bytes is never changed. Putting it again heals every backup that
//!   names it.
//! - K4 A pool puts and deletes only below its own id in a target. As a pool has one writer, whatever two calls may
//!   do to each other there, they do in one process, which keeps them apart (`target::claims`).
//! - K5 No byte from a target is used before its digest has been checked, and no length from it is believed.
//!
//! It assumes of the target T1 to T3, see [`BackupTarget`]; of the pool, that a snapshot does not change.

mod create;
mod digest;
mod manage;
mod manifest;
mod piece;
mod progress;
mod restore;
mod send;
mod shelf;
mod sweep;
mod table;
mod verify;

pub use crate::target::{BackupTarget, Listed, LocalFolder};
pub use create::BackupSpec;
pub use piece::{DEFAULT_PIECE_BYTES, MAX_PIECE_BYTES, MIN_PIECE_BYTES};
pub use progress::BackupProgress;
pub use sweep::Swept;
pub use verify::{BackupDamage, BackupReport, DamageKind};
