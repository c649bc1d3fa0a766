//! Proof that a pool is whole: a walk from the roots, everything recomputed, expected against found.
//!
//! A check looks at the durable checkpoint, which does not change meanwhile: it holds off the next one.
//! Writers go on until they need it. It repairs nothing.
//!
//! - K1 Reachability equals the counts: each block is counted exactly as often as something names it.
//!   A node names blocks once, however many lead to it; the reclaim queue's own references count too.
//! - K2 Nothing overlaps: no place is claimed by two structures, data and metadata never share a chunk.
//! - K3 Whatever the bytes, a check ends: levels fall by one per step, and no node is descended into twice.
//! - K4 Damage is a finding, never an error and never a panic. Below a node that is lost nothing can be
//!   known, so counts that are too high are reported only where everything could be read.
//! - K5 Memory: four bytes per block of the chunks looked at, within the budget, in as many passes as that
//!   takes; and some 60 bytes per node.

mod counts;
mod index;
mod owners;
mod report;
mod scrub;
mod slots;
mod structure;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use serde::Serialize;

use crate::alloc::IndexRoot;
use crate::commit::Engine;
use crate::commit::rest::{Named, Rest};
use crate::error::{Corruption, Error, Result};
use crate::units::ObjectId;

use counts::Window;
use owners::Suspects;
use report::Findings;
use structure::Walk;

pub use report::{CheckReport, Finding, FindingKind, Owner};

/// What a check is doing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
#[non_exhaustive]
pub enum Phase {
    /// Nodes, pages and counts.
    Structure,
    /// Data blocks against their checksums.
    Data,
    /// Whom the damage that was found belongs to.
    Owners,
}

/// How far a check has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[non_exhaustive]
pub struct Progress {
    /// What it is doing.
    pub phase: Phase,
    /// Blocks of 4 KiB looked at in this phase.
    pub done: u64,
    /// Blocks of 4 KiB to look at in this phase, as far as that is known beforehand.
    pub total: u64,
}

/// How a check or a scrub is made.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CheckOptions {
    memory_bytes: u64,
    findings_limit: usize,
}

impl Default for CheckOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl CheckOptions {
    /// 64 MiB of memory for counts, and up to 10,000 findings.
    pub fn new() -> Self {
        Self { memory_bytes: 64 << 20, findings_limit: 10_000 }
    }
    /// Memory in bytes for counting references, beside some 60 bytes per node; 64 MiB by default, which does
    /// for 64 GiB of pool at a time. Larger pools take several passes over their maps.
    #[must_use]
    pub fn memory_bytes(mut self, bytes: u64) -> Self {
        self.memory_bytes = bytes;
        self
    }
    /// Findings that are kept in the report, 10,000 by default; the rest is counted.
    #[must_use]
    pub fn findings_limit(mut self, findings: usize) -> Self {
        self.findings_limit = findings;
        self
    }
}

/// Catalogue keys of which one exists if this map has an owner.
pub(crate) type OwnerKeys = fn(ObjectId) -> Vec<Vec<u8>>;

/// What goes on telling the caller how far things are.
pub(crate) struct Meter<'a> {
    each: &'a mut dyn FnMut(Progress),
    now: Progress,
    told: u64,
}

/// Blocks between two reports of progress.
const TELL_BLOCKS: u64 = 1024;

impl<'a> Meter<'a> {
    fn new(each: &'a mut dyn FnMut(Progress)) -> Self {
        Self { each, now: Progress { phase: Phase::Structure, done: 0, total: 0 }, told: 0 }
    }
    /// Goes on with `phase` where it stood, or begins it.
    fn enter(&mut self, phase: Phase, done: u64, total: u64) {
        self.now = Progress { phase, done: done.min(total), total };
        self.told = self.now.done;
        (self.each)(self.now);
    }
    fn step(&mut self, blocks: u64) {
        // The total is an estimate where something is damaged; nobody is to see more than all of it.
        self.now.done = (self.now.done + blocks).min(self.now.total);
        if self.now.done >= self.told + TELL_BLOCKS {
            self.told = self.now.done;
            (self.each)(self.now);
        }
    }
}

/// Checks the structure of the durable checkpoint, which is made first where the pool can be written.
///
/// `progress` is called with locks held and must not call the pool.
pub(crate) fn check(
    engine: &Engine,
    options: &CheckOptions,
    owner_keys: OwnerKeys,
    progress: &mut dyn FnMut(Progress),
) -> Result<CheckReport> {
    engine.at_rest(|rest| run(rest, options, owner_keys, false, progress))
}

/// As [`check`], and reads and verifies every data block that some map names.
pub(crate) fn scrub(
    engine: &Engine,
    options: &CheckOptions,
    owner_keys: OwnerKeys,
    progress: &mut dyn FnMut(Progress),
) -> Result<CheckReport> {
    engine.at_rest(|rest| {
        // The bytes on the medium are the question, not those that the host remembers.
        rest.store.device.drop_cache().map_err(|source| Error::Io {
            op: "drop cache",
            offset: 0,
            len: 0,
            source,
        })?;
        run(rest, options, owner_keys, true, progress)
    })
}

fn run(
    rest: &Rest<'_>,
    options: &CheckOptions,
    owner_keys: OwnerKeys,
    data: bool,
    progress: &mut dyn FnMut(Progress),
) -> Result<CheckReport> {
    let sb = rest.superblock;
    let g = sb.geometry;
    let totals = sb.totals;
    let mut findings = Findings::new(options.findings_limit);
    let mut suspects = Suspects::default();
    let mut report = CheckReport {
        findings: Vec::new(),
        findings_total: 0,
        generation: sb.generation,
        latest: rest.latest,
        maps: 0,
        nodes: 0,
        pages: 0,
        data_blocks: 0,
        metadata_blocks: 0,
        free_blocks: 0,
        fixed_blocks: g.first_chunk_block,
        verified_blocks: 0,
        passes: 0,
    };
    slots::check(rest, &mut findings);
    // P9: the superblock's numbers are within bounds, but they may be lies; nothing is sized by them alone.
    let chunks = sb.chunks;
    let per_pass = (options.memory_bytes / (g.blocks_per_chunk * 4)).clamp(1, chunks.max(1));
    let passes = chunks.div_ceil(per_pass).max(1);
    let meta_used = (totals.meta_chunks * g.blocks_per_chunk).saturating_sub(totals.meta_free);
    let data_used = (totals.data_chunks * g.blocks_per_chunk).saturating_sub(totals.data_free);
    let mut meter = Meter::new(progress);
    let (mut structure_done, mut data_done) = (0, 0);
    let mut named: Vec<Named> = Vec::new();
    for pass in 0..passes {
        let first = pass * per_pass;
        let window = Window::new(g, first, (first + per_pass).min(chunks))?;
        meter.enter(Phase::Structure, structure_done, meta_used.saturating_mul(passes));
        let mut walk = Walk::new(rest, window, &mut findings, &mut suspects, &mut meter, pass == 0);
        let found = walk.everything();
        let done = walk.finish()?;
        structure_done = meter.now.done;
        if pass == 0 {
            report.nodes = done.nodes;
            report.pages = done.pages;
            report.maps = found.iter().filter(|n| matches!(n, Named::Map { .. })).count() as u64;
            named = found;
        }
        let counted = counts::compare(rest, &done.window, &mut findings, &mut suspects);
        report.data_blocks += counted.data;
        report.metadata_blocks += counted.meta;
        report.free_blocks += counted.free;
        if data {
            meter.enter(Phase::Data, data_done, data_used);
            report.verified_blocks +=
                scrub::read(rest, &done.window, &mut findings, &mut suspects, &mut meter)?;
            data_done = meter.now.done;
        }
    }
    report.passes = passes;
    if !findings.unknown {
        find_orphans(rest, &named, owner_keys, &mut findings);
    }
    add_up(rest, &report, &mut findings);
    if !suspects.is_empty() {
        meter.enter(Phase::Owners, 0, meta_used);
        owners::find(rest, &named, &suspects, &mut findings, &mut meter);
    }
    (report.findings, report.findings_total) = findings.into_kept();
    Ok(report)
}

/// What the pool says about its space must be what was counted.
fn add_up(rest: &Rest<'_>, report: &CheckReport, findings: &mut Findings) {
    let sb = rest.superblock;
    let bad = |field, want: u64, got: u64| Corruption::new("pool totals", 0, field, want, got);
    let IndexRoot { totals, root, .. } = *rest.space.index.read();
    if totals != sb.totals || root != sb.index_root {
        let (want, got) = (format!("{:?}", sb.totals), format!("{totals:?}"));
        let c = Corruption::new("pool totals", 0, "totals in use", want, got);
        findings.add(FindingKind::BadSummary, c, 0);
    }
    if findings.total() > 0 {
        // Each difference has been reported where it is.
        return;
    }
    let bpc = sb.geometry.blocks_per_chunk;
    let data = (totals.data_chunks * bpc).saturating_sub(totals.data_free);
    let meta = (totals.meta_chunks * bpc).saturating_sub(totals.meta_free);
    let free = (sb.chunks * bpc).saturating_sub(data + meta);
    for (field, counted, said) in [
        ("data blocks", report.data_blocks, data),
        ("metadata blocks", report.metadata_blocks, meta),
        ("free blocks", report.free_blocks, free),
    ] {
        if counted != said {
            findings.add(FindingKind::BadSummary, bad(field, counted, said), 0);
        }
    }
}

/// Maps that nothing above knows of are lost space.
fn find_orphans(rest: &Rest<'_>, named: &[Named], owner_keys: OwnerKeys, findings: &mut Findings) {
    // One by one: a tree of small pieces, however many there are.
    let mut trashed = BTreeSet::new();
    for n in named {
        if let Named::Trash { object } = n {
            trashed.insert(*object);
        }
    }
    for n in named {
        let Named::Map { object, root } = n else { continue };
        if trashed.contains(object) {
            continue;
        }
        // What cannot be looked up has been reported as a damaged node.
        let owned = owner_keys(*object).iter().any(|key| rest.get(key).map_or(true, |value| value.is_some()));
        if !owned {
            let c = Corruption::new("map", root.a.raw(), "owner", "a volume or snapshot", object);
            findings.add(FindingKind::Orphan, c, 0);
        }
    }
}
