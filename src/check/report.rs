//! What a check found.

use serde::Serialize;
use uuid::Uuid;

use crate::error::{Corruption, Error};
use crate::memory;

/// Owners kept for one finding.
const OWNERS: usize = 64;

/// What kind of damage a [`Finding`] is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
#[non_exhaustive]
pub enum FindingKind {
    /// A copy of the superblock is damaged or differs from the one in use; another serves.
    BadSuperblock,
    /// No sound copy of a node is left: what it leads to cannot be reached any more.
    BadNode,
    /// One copy of a node is damaged; the other serves.
    BadCopy,
    /// Keys are not in order, or outside the range that the parent gives to the node.
    BadOrder,
    /// A reference leads out of the pool or across chunks.
    BadReference,
    /// Two structures claim the same place, or data and metadata share a chunk.
    Overlap,
    /// A total or a maximum that a parent keeps is not that of what lies below.
    BadSummary,
    /// The reference counts of a chunk cannot be read.
    BadCountPage,
    /// The checksums of a chunk cannot be read, and its data is not what they were made of: which of its
    /// blocks are sound cannot be told, so none is returned.
    BadChecksumPage,
    /// The checksums of a chunk cannot be read; they are computed from its data, which is all sound.
    RebuiltChecksumPage,
    /// A record in the catalogue does not say what its table requires.
    BadRecord,
    /// A block is named more or less often than its count says.
    CountMismatch,
    /// A block is counted and nothing names it: its space is lost.
    Leak,
    /// A map belongs to no volume, no snapshot, and nothing that is being deleted.
    Orphan,
    /// A data block does not match its checksum, or cannot be read.
    BadData,
}

/// An object that a finding concerns.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
#[non_exhaustive]
pub struct Owner {
    /// Id of the volume or snapshot.
    pub object: Uuid,
    /// First block of it that is concerned, in units of 4 KiB from its start.
    pub lba: u64,
}

/// One piece of damage.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// What kind of damage it is.
    pub kind: FindingKind,
    /// Where it is, what was expected there and what was found.
    pub corruption: Corruption,
    /// Blocks of the pool concerned, from the address of `corruption` on; 0 where it names no block.
    pub blocks: u64,
    /// Volumes and snapshots that have the damage in their data or their maps: the first 64.
    pub owners: Vec<Owner>,
    /// All of them, counted; each place in an object counts.
    pub owners_total: u64,
}

/// The outcome of a check or a scrub.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[non_exhaustive]
pub struct CheckReport {
    /// What was found, as far as the limit of the options allows.
    pub findings: Vec<Finding>,
    /// Everything that was found, counted.
    pub findings_total: u64,
    /// Generation of the checkpoint that was looked at.
    pub generation: u64,
    /// Whether that checkpoint covers everything acknowledged before the check. False for a pool that is
    /// read-only, and where damage or a lack of space kept a fresh one from being made.
    pub latest: bool,
    /// Maps of volumes, snapshots and the engine's own.
    pub maps: u64,
    /// Nodes of maps, catalogue and chunk index, each once.
    pub nodes: u64,
    /// Count and checksum pages.
    pub pages: u64,
    /// Data blocks that some map names, each once.
    pub data_blocks: u64,
    /// Blocks that nodes and pages take, copies included.
    pub metadata_blocks: u64,
    /// Blocks in chunks that nothing names. With the two above and the blocks before the first chunk this is
    /// the whole pool.
    pub free_blocks: u64,
    /// Blocks before the first chunk: superblocks and log.
    pub fixed_blocks: u64,
    /// Data blocks that were read and compared with their checksums: a scrub reads all of them.
    pub verified_blocks: u64,
    /// Passes over the maps that the memory budget made necessary.
    pub passes: u64,
}

impl CheckReport {
    /// True when nothing was found.
    pub fn is_clean(&self) -> bool {
        self.findings_total == 0
    }
}

/// Findings as they come in.
pub(super) struct Findings {
    kept: Vec<Finding>,
    total: u64,
    limit: usize,
    /// What is found now has been found before.
    pub(super) quiet: bool,
    /// Something that names blocks could not be read: counts that are too high prove nothing.
    pub(super) unknown: bool,
}

impl Findings {
    pub(super) fn new(limit: usize) -> Self {
        Self { kept: Vec::new(), total: 0, limit, quiet: false, unknown: false }
    }

    /// Adds a finding. Returns its place if it was kept.
    pub(super) fn add(&mut self, kind: FindingKind, corruption: Corruption, blocks: u64) -> Option<usize> {
        if self.quiet {
            return None;
        }
        self.total += 1;
        // What there is no memory for is counted, as what is beyond the limit.
        if self.kept.len() >= self.limit || memory::room(&mut self.kept, 1).is_err() {
            return None;
        }
        self.kept.push(Finding { kind, corruption, blocks, owners: Vec::new(), owners_total: 0 });
        Some(self.kept.len() - 1)
    }

    pub(super) fn own(&mut self, finding: usize, owner: Owner) {
        if let Some(f) = self.kept.get_mut(finding) {
            f.owners_total += 1;
            if f.owners.len() < OWNERS {
                f.owners.push(owner);
            }
        }
    }

    pub(super) fn total(&self) -> u64 {
        self.total
    }

    pub(super) fn into_kept(self) -> (Vec<Finding>, u64) {
        (self.kept, self.total)
    }
}

/// An error about one place as a located difference.
pub(super) fn located(e: Error, structure: &'static str, block: u64) -> Corruption {
    match e {
        Error::Corrupt(c) => c,
        Error::Io { op, source, .. } => Corruption::new(structure, block, op, "success", source),
        other => Corruption::new(structure, block, "content", "readable", other),
    }
}
