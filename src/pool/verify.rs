//! Check and scrub, as verbs of the pool.

use super::Pool;
use super::catalogue::owner_keys;
use crate::check::{self, CheckOptions, CheckReport, Progress};
use crate::error::Result;

impl Pool {
    /// Proves that the pool's structure is whole: every block is counted exactly as often as something names
    /// it, nothing overlaps, nothing is lost, and all totals are right.
    ///
    /// Makes a checkpoint first, unless the pool is read-only, and looks at that; reads go on meanwhile, writes
    /// until they need the next checkpoint. Reads all metadata, no data. `progress` is called from time to time
    /// and must not call the pool. Repairs nothing.
    ///
    /// # Errors
    /// Damage is not an error but a finding of the report. `Closed`, `Poisoned`; `Io` when the checkpoint cannot
    /// be written.
    pub fn check(&self, options: CheckOptions, progress: &mut dyn FnMut(Progress)) -> Result<CheckReport> {
        check::check(&self.inner.engine, &options, owner_keys, progress)
    }

    /// As [`check`](Self::check), and reads every data block that some map names, past the host's cache where
    /// that can be done, and verifies it. Findings name the volumes and snapshots that the damage belongs to.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn scrub(&self, options: CheckOptions, progress: &mut dyn FnMut(Progress)) -> Result<CheckReport> {
        check::scrub(&self.inner.engine, &options, owner_keys, progress)
    }
}
