//! How often each block is named, and how often its chunk says so.

use super::owners::Suspects;
use super::report::{FindingKind, Findings, located};
use crate::commit::rest::Rest;
use crate::error::{Corruption, Result};
use crate::format::BlockKind;
use crate::format::chunk::{ChunkEntry, ChunkKind, Counts};
use crate::memory;
use crate::units::{BlockAddr, Geometry};

const DATA: u8 = 1;
const META: u8 = 2;

/// The chunks that one pass counts.
pub(super) struct Window {
    pub(super) geometry: Geometry,
    first: u64,
    counts: Vec<u32>,
    chunks: Vec<Chunk>,
}

#[derive(Clone, Copy)]
struct Chunk {
    /// `None` where the index is lost.
    entry: Option<ChunkEntry>,
    /// What kinds of block are named in it.
    named: u8,
}

impl Window {
    pub(super) fn new(geometry: Geometry, first: u64, end: u64) -> Result<Self> {
        let n = end.saturating_sub(first) as usize;
        let free = Chunk { entry: Some(ChunkEntry::default()), named: 0 };
        Ok(Self {
            geometry,
            first,
            counts: memory::filled(0, n * geometry.blocks_per_chunk as usize)?,
            chunks: memory::filled(free, n)?,
        })
    }

    fn at(&self, chunk: u64) -> Option<usize> {
        let i = chunk.checked_sub(self.first)? as usize;
        (i < self.chunks.len()).then_some(i)
    }

    pub(super) fn add(&mut self, chunk: u64, at: usize, len: u64, data: bool) {
        let Some(i) = self.at(chunk) else { return };
        self.chunks[i].named |= if data { DATA } else { META };
        let start = i * self.geometry.blocks_per_chunk as usize + at;
        for count in &mut self.counts[start..start + len as usize] {
            *count = count.saturating_add(1);
        }
    }

    pub(super) fn set_entry(&mut self, chunk: u64, e: ChunkEntry) {
        if let Some(i) = self.at(chunk) {
            self.chunks[i].entry = Some(e);
        }
    }

    /// Nothing is known about the chunks in `first..end`.
    pub(super) fn forget(&mut self, first: u64, end: u64) {
        let clamp = |chunk: u64| (chunk.saturating_sub(self.first) as usize).min(self.chunks.len());
        let (from, to) = (clamp(first), clamp(end));
        if from < to {
            self.chunks[from..to].iter_mut().for_each(|c| c.entry = None);
        }
    }

    /// The chunks of the window: number, entry if it is known, how often each block is named.
    pub(super) fn chunks(&self) -> impl Iterator<Item = (u64, Option<&ChunkEntry>, &[u32])> {
        let bpc = self.geometry.blocks_per_chunk as usize;
        let counts = self.counts.chunks_exact(bpc);
        (self.first..)
            .zip(self.chunks.iter().zip(counts))
            .map(|(n, (c, counts))| (n, c.entry.as_ref(), counts))
    }
}

/// Blocks of a window by what names them.
#[derive(Default)]
pub(super) struct Counted {
    pub(super) data: u64,
    pub(super) meta: u64,
    pub(super) free: u64,
}

/// Compares what was counted with what the index and the count pages say.
pub(super) fn compare(
    rest: &Rest<'_>,
    window: &Window,
    findings: &mut Findings,
    suspects: &mut Suspects,
) -> Counted {
    let mut out = Counted::default();
    for ((number, entry, found), chunk) in window.chunks().zip(&window.chunks) {
        let used = found.iter().filter(|n| **n > 0).count() as u64;
        out.free += found.len() as u64 - used;
        if chunk.named & DATA != 0 {
            out.data += used;
        } else {
            out.meta += used;
        }
        let Some(entry) = entry else { continue };
        let start = window.geometry.chunk_start(number);
        let lawful = match entry.kind {
            ChunkKind::Free => 0,
            ChunkKind::Data => DATA,
            ChunkKind::Meta => META,
        };
        if chunk.named & !lawful != 0 {
            let got = ["nothing", "data", "metadata", "data and metadata"][usize::from(chunk.named & 3)];
            let c = Corruption::new("chunk", start.raw(), "named blocks", format!("{:?}", entry.kind), got);
            findings.add(FindingKind::Overlap, c, found.len() as u64);
        }
        checksums(rest, entry, number, start, found.len() as u64, findings, suspects);
        match counts_of(rest, entry, found.len(), findings) {
            Ok(counts) => {
                summary(entry, &counts, start, findings);
                differences(&counts, found, start, findings);
            }
            Err(e) => {
                let at = entry.counts.map_or(start, |page| page.addr);
                findings.add(FindingKind::BadCountPage, located(e, "count page", at.raw()), 1);
            }
        }
    }
    out
}

/// Read past the cache: the copies on the medium are the question.
fn counts_of(rest: &Rest<'_>, entry: &ChunkEntry, blocks: usize, findings: &mut Findings) -> Result<Counts> {
    let Some(page) = entry.counts else { return Ok(Counts::uniform(blocks, entry.uniform)) };
    let copy = |at| rest.space.read_copy(page, at, BlockKind::Counts);
    let (first, second) = (copy(page.addr), page.twin.map(copy));
    let bytes = match (first, second) {
        (Ok(bytes), Some(Err(e))) => {
            let at = page.twin.unwrap_or(page.addr);
            findings.add(FindingKind::BadCopy, located(e, "count page", at.raw()), 1);
            bytes
        }
        (Err(e), Some(Ok(bytes))) => {
            findings.add(FindingKind::BadCopy, located(e, "count page", page.addr.raw()), 1);
            bytes
        }
        (first, _) => first?,
    };
    Ok(Counts::decode(&bytes, entry.width, blocks, page.addr)?)
}

fn summary(entry: &ChunkEntry, counts: &Counts, start: BlockAddr, findings: &mut Findings) {
    if entry.kind == ChunkKind::Free {
        return;
    }
    let (free, longest) = counts.free_and_longest();
    if (entry.free, entry.longest) != (free, longest) {
        let (want, got) = (format!("{free}/{longest}"), format!("{}/{}", entry.free, entry.longest));
        let c = Corruption::new("chunk", start.raw(), "free blocks and longest run", want, got);
        findings.add(FindingKind::BadSummary, c, 0);
    }
}

fn differences(counts: &Counts, found: &[u32], start: BlockAddr, findings: &mut Findings) {
    let mut at = 0;
    while at < found.len() {
        let (said, is) = (counts.get(at), found[at]);
        let run = (at..found.len()).take_while(|i| counts.get(*i) == said && found[*i] == is).count();
        // Too high a count means nothing while something that may name the block cannot be read.
        if said < is || said > is && !findings.unknown {
            let kind = if is == 0 { FindingKind::Leak } else { FindingKind::CountMismatch };
            let c = Corruption::new("count", start.raw() + at as u64, "references", is, said);
            findings.add(kind, c, run as u64);
        }
        at += run;
    }
}

fn checksums(
    rest: &Rest<'_>,
    entry: &ChunkEntry,
    number: u64,
    start: BlockAddr,
    blocks: u64,
    findings: &mut Findings,
    suspects: &mut Suspects,
) {
    let fault = match (entry.kind, entry.checksums) {
        (ChunkKind::Data, Some(page)) => {
            let Err(e) = rest.space.read_page(page, BlockKind::Checksums) else { return };
            let damage = located(e, "checksum page", page.addr.raw());
            if rest.space.stored_checksums(number, entry).is_ok() {
                findings.add(FindingKind::RebuiltChecksumPage, damage, 1);
                return;
            }
            damage
        }
        (ChunkKind::Data, None) if u64::from(entry.free) < blocks => {
            Corruption::new("chunk", start.raw(), "checksum page", "one", format!("none for chunk {number}"))
        }
        (ChunkKind::Meta, Some(page)) => {
            let c = Corruption::new("chunk", start.raw(), "checksum page", "none", page.addr.raw());
            findings.add(FindingKind::BadSummary, c, 0);
            return;
        }
        _ => return,
    };
    if let Some(finding) = findings.add(FindingKind::BadChecksumPage, fault, 1) {
        suspects.blocks(start, blocks, finding);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const G: Geometry =
        Geometry { blocks_per_chunk: 64, log_start_block: 4, log_blocks: 16, first_chunk_block: 20 };

    #[test]
    fn a_window_counts_its_own_chunks_only() {
        let mut w = Window::new(G, 2, 4).unwrap();
        for chunk in 0..6 {
            w.add(chunk, 10, 3, true);
            w.add(chunk, 12, 1, true);
        }
        let seen: Vec<_> = w.chunks().map(|(n, _, counts)| (n, counts[10], counts[12], counts[13])).collect();
        assert_eq!(seen, [(2, 1, 2, 0), (3, 1, 2, 0)]);
        w.forget(0, 3);
        assert_eq!(w.chunks().map(|(_, e, _)| e.is_some()).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn equal_differences_are_one_finding_and_lost_nodes_excuse_high_counts() {
        let mut counts = Counts::uniform(64, 0);
        (3..6).for_each(|i| counts.set(i, 1));
        let mut found = [0u32; 64];
        found[9] = 2;
        let mut findings = Findings::new(10);
        differences(&counts, &found, BlockAddr::new(100), &mut findings);
        let (kept, total) = findings.into_kept();
        let seen: Vec<_> = kept.iter().map(|f| (f.kind, f.corruption.block, f.blocks)).collect();
        assert_eq!(seen, [(FindingKind::Leak, 103, 3), (FindingKind::CountMismatch, 109, 1)]);
        assert_eq!(total, 2);
        let mut findings = Findings::new(10);
        findings.unknown = true;
        differences(&counts, &found, BlockAddr::new(100), &mut findings);
        assert_eq!(findings.total(), 1);
    }
}
