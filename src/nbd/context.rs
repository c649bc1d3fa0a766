//! Metadata contexts: what a block status can be asked about.
//!
//! `base:allocation` says where data blocks lie. `qemu:dirty-bitmap:SNAPSHOT` says what has changed since a
//! snapshot: any snapshot of the pool, by the names that exports have. A snapshot that a session has selected
//! stays attached, and cannot be deleted, until the session ends.

use std::ops::Range;

use crate::{Disk, ExtentKind, Point, Pool, Result};

use super::attachment::Attachment;
use super::export;
use super::server::Core;
use super::wire::{Message, state};

/// Most extents in one answer: 64 KiB of them. The client asks again from there.
const MAX_EXTENTS: usize = 8192;

pub(super) const ALLOCATION: &str = "base:allocation";
pub(super) const CHANGED: &str = "qemu:dirty-bitmap:";

/// A context that a session has selected. Its place in the session's list is its id.
pub(super) enum Context {
    Allocation,
    Changed { since: Attachment },
}

impl Context {
    /// The context of this name; `None` when there is none.
    pub(super) fn find(core: &Core, name: &str) -> Option<Self> {
        if name == ALLOCATION {
            return Some(Self::Allocation);
        }
        let snapshot = export::find_snapshot(core.pool(), name.strip_prefix(CHANGED)?).ok()?;
        let since = core.attach(Point::Snapshot(snapshot)).ok()?;
        Some(Self::Changed { since })
    }

    /// Payload of the answer: the context's id and the extents of the range, or the first of them.
    pub(super) fn status(
        &self,
        id: u32,
        pool: &Pool,
        of: &Attachment,
        range: Range<u64>,
        only_one: bool,
    ) -> Result<Vec<u8>> {
        let most = if only_one { 1 } else { MAX_EXTENTS };
        let mut extents = Extents { at: range.start, end: range.end, most, found: Vec::new() };
        match self {
            Self::Allocation => allocation(of, &mut extents)?,
            Self::Changed { since } => changed(pool, since.point, of.point, &mut extents)?,
        }
        let said = Message::default().u32(id);
        let said = extents.found.iter().fold(said, |said, (len, flags)| said.u32(*len).u32(*flags));
        Ok(said.done())
    }
}

/// Zeroes that take no blocks count as a hole: writing there needs space.
fn allocation(disk: &Disk, extents: &mut Extents) -> Result<()> {
    for extent in disk.extents(extents.at..extents.end) {
        let extent = extent?;
        let flags = match extent.kind {
            ExtentKind::Data => 0,
            ExtentKind::Zero | ExtentKind::Hole => state::HOLE | state::ZERO,
        };
        if !extents.up_to(extent.range.end, flags) {
            break;
        }
    }
    Ok(())
}

fn changed(pool: &Pool, since: Point, now: Point, extents: &mut Extents) -> Result<()> {
    for change in pool.diff_from(since, now, extents.at)? {
        let range = change?.range;
        if range.start >= extents.end {
            break;
        }
        if !(extents.up_to(range.start, 0) && extents.up_to(range.end, state::DIRTY)) {
            return Ok(());
        }
    }
    extents.up_to(extents.end, 0);
    Ok(())
}

/// Extents of a range in ascending order, neighbours with the same flags joined.
struct Extents {
    at: u64,
    end: u64,
    most: usize,
    /// Length and flags. A length fits, because that of a request does.
    found: Vec<(u32, u32)>,
}

impl Extents {
    /// Says what lies between here and `until`; false when nothing more is wanted.
    fn up_to(&mut self, until: u64, flags: u32) -> bool {
        let until = until.min(self.end);
        if until <= self.at {
            return self.at < self.end;
        }
        let len = (until - self.at) as u32;
        let full = self.found.len() == self.most;
        match self.found.last_mut() {
            Some(last) if last.1 == flags => last.0 += len,
            _ if full => return false,
            _ => self.found.push((len, flags)),
        }
        self.at = until;
        self.at < self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_joined_clipped_and_limited() {
        let mut extents = Extents { at: 100, end: 1000, most: 2, found: Vec::new() };
        assert!(extents.up_to(50, 3), "what lies before the range says nothing");
        assert!(extents.up_to(200, 0) && extents.up_to(300, 0) && extents.up_to(400, 1));
        assert!(extents.up_to(500, 1), "the last one still grows");
        assert!(!extents.up_to(600, 0), "a third one is not wanted");
        assert_eq!(extents.found, [(200, 0), (200, 1)]);
        let mut all = Extents { at: 0, end: u64::from(u32::MAX), most: 9, found: Vec::new() };
        assert!(!all.up_to(u64::MAX, 3));
        assert_eq!(all.found, [(u32::MAX, 3)]);
    }
}
