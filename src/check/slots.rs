//! The copies of the superblock.

use super::report::{FindingKind, Findings, located};
use crate::commit::rest::Rest;
use crate::error::{Corruption, Error};
use crate::format::superblock::{STATE_CLEAN, SlotFault, Superblock};
use crate::units::{BLOCK, BLOCK_BYTES};

/// Checks both copies of this generation, and of the one before where they must be whole.
pub(super) fn check(rest: &Rest<'_>, findings: &mut Findings) {
    let now = rest.superblock;
    if rest.read_only && now.state & STATE_CLEAN == 0 {
        // A crash may have cut the pair short, and a pool that is only read has not been mended.
        return;
    }
    let mut before = now.clone();
    before.generation = now.generation.saturating_sub(1);
    let newest = now.slots().map(|offset| (offset, true));
    let older = before.slots().map(|offset| (offset, false));
    for (offset, newest) in newest.into_iter().chain(older) {
        if !newest && rest.read_only {
            continue;
        }
        let block = offset / BLOCK_BYTES;
        let mut bytes = [0; BLOCK];
        let read = rest.store.device.read_at(&mut bytes, offset);
        let read = read.map_err(|source| Error::Io { op: "read", offset, len: BLOCK_BYTES, source });
        let fault = match read.map(|()| Superblock::decode(&bytes, block)) {
            Err(e) => Some(located(e, "superblock", block)),
            Ok(Err(SlotFault::Damaged(c))) => Some(c),
            Ok(Err(SlotFault::Newer(what))) => {
                Some(Corruption::new("superblock", block, "version", "this format", what))
            }
            Ok(Ok(copy)) if newest && copy != *now => {
                let want = format!("that of generation {}", now.generation);
                Some(Corruption::new(
                    "superblock",
                    block,
                    "content",
                    want,
                    format!("generation {}", copy.generation),
                ))
            }
            Ok(Ok(copy)) if !newest && (copy.uuid != now.uuid || copy.generation != before.generation) => {
                Some(Corruption::new("superblock", block, "generation", before.generation, copy.generation))
            }
            Ok(Ok(_)) => None,
        };
        if let Some(c) = fault {
            findings.add(FindingKind::BadSuperblock, c, 1);
        }
    }
}
