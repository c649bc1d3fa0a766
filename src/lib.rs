//! Thin copy-on-write volumes, snapshots, clones, rollback and cascade delete in one pool file: in-process,
//! without root, a daemon or a kernel module.
//!
//! ```
//! use snapvol::{AttachOptions, CreateOptions, Pool, SnapshotSpec, Snapshots, VolumeSpec};
//!
//! # fn main() -> snapvol::Result<()> {
//! let pool = Pool::create_in_memory(CreateOptions::new())?; // or Pool::create("disks.pool", ...)
//! let base = pool.create_volume(VolumeSpec::blank(1 << 30).name("base"))?;
//! let disk = pool.attach(base.id, AttachOptions::default())?;
//! disk.write_at(b"first state", 0)?;
//! let daily = pool.create_snapshot(base.id, SnapshotSpec::new().name("daily").force(true))?;
//! disk.write_at(b"later state", 0)?;
//! let fork = pool.create_volume(VolumeSpec::from_snapshot(daily.id))?; // constant time, constant space
//! drop(disk);
//! pool.rollback(daily.id)?;
//! let mut seen = [0; 11];
//! pool.attach(base.id, AttachOptions::default())?.read_at(&mut seen, 0)?;
//! assert_eq!(&seen, b"first state");
//! let gone = pool.delete_volume(base.id, Snapshots::Delete)?; // durable now; `fork` lives on
//! println!("{} bytes back", gone.wait()?.freed_bytes);
//! # let _ = fork;
//! # Ok(())
//! # }
//! ```
//!
//! # Concepts
//!
//! A [`Pool`] is one file (or block device, or memory) that holds any number of *volumes*. A volume is thin: it
//! has a virtual size, and takes space only for blocks of 4 KiB that were written. A *snapshot* is the content of
//! a volume at one instant, read-only; a *clone* is a volume made from a snapshot or from another volume. They
//! share blocks until one of them writes. Making, rolling back and deleting them takes the same time whatever
//! their size, and reads cost the same however many of them there are.
//!
//! A volume is read and written through a [`Disk`], which [`Pool::attach`] hands out. Several operations over
//! several volumes can be made at one instant, all or nothing, by [`Pool::batch`]. [`Pool::diff`] names what
//! differs between any two points of a family; [`Pool::check`] proves that the pool is whole.
//!
//! # What survives a crash
//!
//! [`Disk::flush`] makes everything acknowledged before it durable, on every volume of the pool. After a crash at
//! any point the pool opens at the last flush or a later commit, everything at the same instant.
//! [`guide::durability`] has the rules, [`mod@guide::format`] every byte of the file.
//!
//! # Features
//!
//! Features only add. `dialect` answers the requests of three documented clouds (`dialect::handle`); `nbd` serves a
//! pool to NBD clients ([`nbd`]); `qcow2` reads qcow2 images ([`image`]); `sim` makes
//! the fault-injecting simulated device (`device::sim`) public, with which you can crash-test your own program;
//! `tracing` reports what happens inside.

/// The README's program compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;

mod alloc;
pub mod backup;
mod check;
mod commit;
pub mod device;
#[cfg(feature = "dialect")]
pub mod dialect;
mod error;
mod extent;
mod format;
pub mod guide;
pub mod image;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals;
mod memory;
#[cfg(feature = "nbd")]
pub mod nbd;
mod node;
mod pool;
mod sources;
mod stream;
mod sync;
mod target;
mod trace;
mod units;

pub use check::{CheckOptions, CheckReport, Finding, FindingKind, Owner, Phase, Progress};
pub use commit::Stats;
pub use error::{Corruption, Error, Limited, Result, StateRule, Violation};
pub use pool::*;
pub use sources::{Clock, IdSource, SequentialIds, StepClock, SystemClock, SystemIds};
pub use stream::{ReceiveOptions, ReceiveProgress, Received, SendOptions, SendProgress, SendStream};
pub use units::{
    AttachmentId, BLOCK_BYTES, BackupId, BaseId, BlockAddr, Geometry, ImageId, Lba, MAX_VOLUME_BYTES,
    SnapshotId, VolumeId,
};
