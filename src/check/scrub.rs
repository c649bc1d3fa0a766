//! Reading data: every block that some map names, once, against its checksum.

use super::Meter;
use super::counts::Window;
use super::owners::Suspects;
use super::report::{FindingKind, Findings, located};
use crate::alloc::ChecksumPage;
use crate::commit::rest::Rest;
use crate::error::{Corruption, Error, Result};
use crate::format::block_crc;
use crate::format::chunk::ChunkKind;
use crate::memory;
use crate::units::{BLOCK, BLOCK_BYTES, BlockAddr};

/// Blocks in one read: 1 MiB.
const RUN_BLOCKS: usize = 256;

/// Verifies the named blocks of all data chunks in the window. Returns how many were found sound.
pub(super) fn read(
    rest: &Rest<'_>,
    window: &Window,
    findings: &mut Findings,
    suspects: &mut Suspects,
    meter: &mut Meter<'_>,
) -> Result<u64> {
    // As long as the longest run.
    let mut buf: Vec<u8> = Vec::new();
    let mut sound = 0;
    for (number, entry, counts) in window.chunks() {
        let Some(entry) = entry.filter(|e| e.kind == ChunkKind::Data && e.checksums.is_some()) else {
            continue;
        };
        // A page beyond repair has been reported as such; without it nothing can be said about the data.
        let Ok(crcs) = rest.space.stored_checksums(number, entry) else { continue };
        let start = window.geometry.chunk_start(number);
        let mut at = 0;
        while at < counts.len() {
            let run = counts[at..].iter().take(RUN_BLOCKS).take_while(|n| **n > 0).count();
            if run > 0 {
                if buf.len() < run * BLOCK {
                    buf = memory::filled(0, run * BLOCK)?;
                }
                sound +=
                    verify(rest, start + at as u64, at, &crcs, &mut buf[..run * BLOCK], findings, suspects);
                meter.step(run as u64);
            }
            at += run.max(1);
        }
    }
    Ok(sound)
}

/// Verifies one run, whose first block is number `index` of its chunk.
fn verify(
    rest: &Rest<'_>,
    start: BlockAddr,
    index: usize,
    crcs: &ChecksumPage,
    buf: &mut [u8],
    findings: &mut Findings,
    suspects: &mut Suspects,
) -> u64 {
    let device = &*rest.store.device;
    let whole = device.read_at(buf, start.byte_offset()).is_ok();
    let mut sound = 0;
    for (i, block) in buf.chunks_exact_mut(BLOCK).enumerate() {
        let at = start + i as u64;
        // One sector that cannot be read must not hide its neighbours.
        let read = if whole { Ok(()) } else { device.read_at(block, at.byte_offset()) };
        let (want, got) = (crcs.get(index + i), block_crc(block));
        let fault = match read {
            Err(source) => {
                let e = Error::Io { op: "read", offset: at.byte_offset(), len: BLOCK_BYTES, source };
                located(e, "data block", at.raw())
            }
            Ok(()) if want == got => {
                sound += 1;
                continue;
            }
            Ok(()) => Corruption::new(
                "data block",
                at.raw(),
                "checksum",
                format!("{want:#010x}"),
                format!("{got:#010x}"),
            ),
        };
        if let Some(finding) = findings.add(FindingKind::BadData, fault, 1) {
            suspects.blocks(at, 1, finding);
        }
    }
    sound
}
