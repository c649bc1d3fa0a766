//! Serves the volumes and snapshots of a pool to NBD clients: virtual machines, `qemu-img`, `nbdcopy`, `fio`,
//! the kernel (feature `nbd`).
//!
//! ```no_run
//! use snapvol::{Pool, OpenOptions, nbd};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let pool = Pool::open("disks.pool", OpenOptions::new())?;
//! let server = nbd::Server::builder(&pool).unix("/run/disks.sock").serve()?;
//! // qemu-img info nbd+unix:///base?socket=/run/disks.sock
//! # let wait_for_a_signal = || ();
//! wait_for_a_signal();
//! server.shutdown();
//! pool.close()?;
//! # Ok(())
//! # }
//! ```
//!
//! The pool stays usable meanwhile: snapshots can be taken (with `force`, as of any attached volume), volumes cloned,
//! extended and rolled back live, while clients read and write.
//!
//! # What is exported
//!
//! Every volume, for reading and writing, and every snapshot, for reading. A name is looked up when a client asks
//! for it, by the rules of [`find_export`]; [`exports`] gives the names that a client is shown. A volume is attached when
//! the first client chooses it and detached when the last one has gone; in between it is `in-use`, once, whatever the
//! number of connections. A client sees the size of the moment in which it connected.
//!
//! # What is spoken
//!
//! Fixed newstyle, without TLS: `LIST`, `INFO`, `GO`, `EXPORT_NAME`, `ABORT`, `STRUCTURED_REPLY`, `LIST_META_CONTEXT`,
//! `SET_META_CONTEXT`; anything else is answered with `ERR_UNSUP`. All exports offer flush, FUA, trim, write zeroes, fast
//! zero, cache, block status, reads in chunks or (DF) in one, and several connections at once, whose flushes cover each
//! other. Requests may have any alignment; 4,096 bytes suit best, and one read or write moves at most 32 MiB.
//!
//! | request | what it does |
//! |---|---|
//! | read | holes, where they are a whole read or 64 KiB and more, are sent as such; a damaged block is an error with its offset, after what lies before it |
//! | flush, FUA | [`Disk::flush`](crate::Disk::flush): everything acknowledged before, on all volumes of the pool |
//! | trim | [`Disk::discard`](crate::Disk::discard): whole blocks are unmapped |
//! | write zeroes | no data blocks; with `NO_HOLE` zeroes are written as data. `FAST_ZERO` fails with `ENOTSUP` where that, or a range without a whole block, is asked for |
//! | cache | reads the range |
//! | block status | `base:allocation`: a hole that reads zero, or data. `qemu:dirty-bitmap:SNAPSHOT`: what has changed since the snapshot, any of the pool, without anything armed; at most 8,192 extents at a time. On a volume each such answer freezes it for an instant, as [`Pool::diff`](crate::Pool::diff) does |
//!
//! A pool never overwrites in place, so that a block that is there does not promise that the next write to it finds space,
//! with or without `NO_HOLE`.
//!
//! | failure | error value |
//! |---|---|
//! | writing to what is read-only | `EPERM` |
//! | no space left; a write or write zeroes past the end | `ENOSPC` |
//! | any other range, length, flag or command that is not allowed | `EINVAL` |
//! | fast zero that would not be fast | `ENOTSUP` |
//! | the server is closing, or the pool is closed | `ESHUTDOWN` |
//! | anything else | `EIO` |
//!
//! # What a client can do to others
//!
//! It can use up its own threads and buffers, and a place among the connections: see [`Builder`] for their numbers. Lengths
//! that it states size nothing. A client that vanishes, stalls, or sends what is no request loses its connection; what it
//! was acknowledged stays. There is no authentication: whoever can connect can read and write everything.

mod attachment;
mod context;
mod export;
mod negotiate;
mod reply;
mod server;
mod session;
mod socket;
mod wire;

pub use export::{Export, Exports, exports, find_export};
pub use server::{Builder, Server};
