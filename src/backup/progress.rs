//! How far a long call is, and whether it is to go on.

use std::ops::ControlFlow;

use serde::Serialize;

use crate::error::{Error, Result};

/// How far a call on a backup is. The callback that is told may call the pool, and ends the call by
/// `ControlFlow::Break`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct BackupProgress {
    /// Bytes of the volume, or objects of a sweep, that are done with. Holes count as they are passed.
    pub done: u64,
    /// What `done` is going to be.
    pub total: u64,
    /// Bytes sent to the target or got from it.
    pub moved_bytes: u64,
}

/// What callers hand in: it is told how far the call is, and may end it with `ControlFlow::Break`.
pub(super) type Watch<'a> = &'a mut dyn FnMut(BackupProgress) -> ControlFlow<()>;

/// Tells the caller, and notices when it has had enough.
pub(super) struct Meter<'a> {
    op: &'static str,
    watch: Watch<'a>,
    pub(super) now: BackupProgress,
}

impl<'a> Meter<'a> {
    pub(super) fn new(op: &'static str, total: u64, watch: Watch<'a>) -> Self {
        Self { op, watch, now: BackupProgress { total, ..BackupProgress::default() } }
    }

    /// Everything before `done` is done with.
    pub(super) fn reach(&mut self, done: u64) -> Result<()> {
        self.now.done = done.min(self.now.total);
        match (self.watch)(self.now) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Cancelled { op: self.op }),
        }
    }

    pub(super) fn moved(&mut self, bytes: u64) {
        self.now.moved_bytes += bytes;
    }
}
