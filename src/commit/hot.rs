//! Blocks lately read: where each lies, and its checksum, without a walk through map and pages.
//!
//! A line of 64 bytes, which is what one cache miss brings, knows up to six neighbouring blocks of one map: whose
//! they are in its first two words, and of each its place and its checksum in one word more.
//!
//! - H1 A block is put in while its map's lock is held, and taken out, under the same lock held for writing, by
//!   whoever changes what is said of it. A reader that looks without the lock and still finds it has overlapped with
//!   the change, and its pin keeps the block from being reused.
//! - H2 What is known is about blocks that the device has and that never change again.
//! - H3 A line changes its owner under a mark in its first word, which also counts its owners: a reader that found
//!   the same first word before and after has seen words of one owner only. The count starts again after 2^23 owners
//!   of one line, each of which has cost a walk: more than can happen between two loads of a reader.
//! - H4 A word of zero knows nothing. No map has state 0, which an untouched line belongs to.

use crate::device::Words;
use crate::sync::atomic::{AtomicU64, Ordering, fence};
use crate::units::BlockAddr;

/// Tells the states of maps apart, in this process.
static NEXT_STATE: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);

/// A number that no map has had: what is known of it is not what it was before.
pub(super) fn next_state() -> u64 {
    NEXT_STATE.fetch_add(1, Ordering::Relaxed)
}

/// Words of a line.
const LINE: usize = 8;
/// Blocks that a line knows.
const BLOCKS: u64 = 6;
/// Bits of the first word that count owners, the lowest of them the mark; those above are the owner's state.
const COUNT_BITS: u32 = 24;
const MARK: u64 = 1;
/// Bits of the second word that say which group of blocks it is (an LBA has 48 bits); those above are the upper half
/// of the blocks' addresses, which are near each other as a rule.
const GROUP_BITS: u32 = 46;

/// Words that are shared, one by one.
struct Line<'a>(&'a [AtomicU64; LINE]);

/// The blocks that a line is about: a map as it is now, and a group of its LBAs.
#[derive(Clone, Copy)]
struct Group {
    state: u64,
    number: u64,
}

impl Group {
    fn of(state: u64, lba: u64) -> Self {
        Self { state, number: lba / BLOCKS }
    }
}

impl Line<'_> {
    fn word(&self, lba: u64) -> &AtomicU64 {
        &self.0[2 + (lba % BLOCKS) as usize]
    }

    #[inline]
    fn get(&self, group: Group, lba: u64) -> Option<(BlockAddr, u32)> {
        let [owner, place, ..] = self.0;
        let before = owner.load(Ordering::Acquire);
        let (place, word) = (place.load(Ordering::Relaxed), self.word(lba).load(Ordering::Relaxed));
        // What was loaded above is not loaded after this.
        fence(Ordering::Acquire);
        let same = owner.load(Ordering::Relaxed) == before && before & MARK == 0;
        let ours = before >> COUNT_BITS == group.state && place & ((1 << GROUP_BITS) - 1) == group.number;
        (same && ours && word != 0)
            .then(|| (BlockAddr::new((place >> GROUP_BITS) << 32 | word >> 32), word as u32))
    }

    fn put(&self, group: Group, lba: u64, block: BlockAddr, crc: u32) {
        let [owner, place, words @ ..] = self.0;
        let before = owner.load(Ordering::Relaxed);
        // Whoever finds the mark leaves the line alone: it is only a cache.
        let marked = before & MARK == 0
            && owner.compare_exchange(before, before | MARK, Ordering::Acquire, Ordering::Relaxed).is_ok();
        if !marked {
            return;
        }
        // The mark is seen before what follows.
        fence(Ordering::Release);
        let here = (block.raw() >> 32) << GROUP_BITS | group.number;
        let mut after = before;
        if before >> COUNT_BITS != group.state || place.load(Ordering::Relaxed) != here {
            words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
            place.store(here, Ordering::Relaxed);
            let count = before.wrapping_add(2) & ((1 << COUNT_BITS) - 1);
            after = group.state << COUNT_BITS | count;
        }
        self.word(lba).store(block.raw() << 32 | u64::from(crc), Ordering::Relaxed);
        owner.store(after, Ordering::Release);
    }

    /// A line that is another's, or is becoming another's, knows nothing of this block or is about to.
    fn forget(&self, group: Group, lba: u64) {
        let [owner, place, ..] = self.0;
        let number = place.load(Ordering::Relaxed) & ((1 << GROUP_BITS) - 1);
        if owner.load(Ordering::Acquire) >> COUNT_BITS == group.state && number == group.number {
            self.word(lba).store(0, Ordering::Relaxed);
        }
    }
}

/// A table of fixed size; what is put in may push out something else.
pub(super) struct Hot {
    /// A power of two of lines, or none.
    lines: Option<Words>,
}

impl Hot {
    /// A table of at most `bytes` of memory, which it takes as it is used.
    pub(super) fn new(bytes: u64) -> Self {
        let lines = bytes / (LINE * size_of::<u64>()) as u64;
        // One under a model, so that blocks push each other out.
        let lines = if cfg!(snapvol_shuttle) { lines.min(1) } else { lines };
        let lines = lines.checked_ilog2().and_then(|log| Words::new(LINE << log));
        Self { lines }
    }

    /// Neighbouring groups of a map are neighbours here.
    #[inline]
    fn line(&self, group: Group) -> Option<Line<'_>> {
        let (lines, _) = self.lines.as_ref()?.as_slice().as_chunks();
        let at = group.number.wrapping_add(group.state.wrapping_mul(0x9e37_79b9_7f4a_7c15)) as usize;
        lines.get(at & lines.len().wrapping_sub(1)).map(Line)
    }

    #[inline]
    pub(super) fn get(&self, state: u64, lba: u64) -> Option<(BlockAddr, u32)> {
        let group = Group::of(state, lba);
        self.line(group)?.get(group, lba)
    }

    /// The caller holds the map (H1).
    pub(super) fn put(&self, state: u64, lba: u64, block: BlockAddr, crc: u32) {
        // States beyond that would need a trillion of changed maps; then the long way serves.
        if state >> (u64::BITS - COUNT_BITS) != 0 {
            return;
        }
        let group = Group::of(state, lba);
        if let Some(line) = self.line(group) {
            line.put(group, lba, block, crc);
        }
    }

    /// Forgets `len` blocks from `lba` on. The caller holds the map for writing (H1).
    pub(super) fn forget(&self, state: u64, lba: u64, len: u64) {
        for lba in lba..lba + len {
            let group = Group::of(state, lba);
            if let Some(line) = self.line(group) {
                line.forget(group, lba);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_is_found_until_it_is_forgotten() {
        let hot = Hot::new(1 << 20);
        for lba in 0..5000 {
            hot.put(7, lba, BlockAddr::new(lba + 100), lba as u32);
        }
        assert_eq!(hot.get(7, 4321), Some((BlockAddr::new(4421), 4321)));
        assert_eq!((hot.get(8, 4321), hot.get(7, 5000)), (None, None));
        hot.forget(7, 4000, 500);
        assert_eq!((hot.get(7, 4321), hot.get(7, 3999).is_some()), (None, true));
        assert_eq!(Hot::new(0).get(7, 1), None);
    }

    #[test]
    fn the_largest_addresses_and_lbas_come_back_whole() {
        let hot = Hot::new(1 << 20);
        let (lba, block) = ((1 << 48) - 1, BlockAddr::new((1 << 48) - 1));
        hot.put(1, lba, block, u32::MAX);
        assert_eq!(hot.get(1, lba), Some((block, u32::MAX)));
        // A neighbour whose upper half is another takes the line: only one half is kept.
        hot.put(1, lba - 1, BlockAddr::new(5), 6);
        assert_eq!((hot.get(1, lba), hot.get(1, lba - 1)), (None, Some((BlockAddr::new(5), 6))));
        hot.put(1 << 40, 3, BlockAddr::new(4), 5);
        assert_eq!(hot.get(1 << 40, 3), None, "a state that has no room is not kept");
    }

    #[test]
    fn a_new_owner_leaves_nothing_of_the_old_one() {
        let hot = Hot::new(64);
        (0..BLOCKS).for_each(|lba| hot.put(1, lba, BlockAddr::new(100 + lba), 1));
        hot.put(2, 0, BlockAddr::new(200), 2);
        assert_eq!(hot.get(2, 0), Some((BlockAddr::new(200), 2)));
        assert!((1..BLOCKS).all(|lba| hot.get(2, lba).is_none() && hot.get(1, lba).is_none()));
        hot.forget(1, 0, 1);
        assert!(hot.get(2, 0).is_some(), "what is forgotten is the other map's");
    }

    /// H3: threads that take one line from each other never see what the other has put in.
    #[test]
    fn words_of_different_owners_never_make_one() {
        let hot = Hot::new(64);
        let rounds = 300_000u64;
        std::thread::scope(|scope| {
            for state in 1..=2u64 {
                let hot = &hot;
                scope.spawn(move || {
                    let mut found = 0;
                    for i in 0..rounds {
                        let lba = i % BLOCKS;
                        hot.put(state, lba, BlockAddr::new(state << 33 | lba), state as u32);
                        for lba in 0..BLOCKS {
                            if let Some(known) = hot.get(state, lba) {
                                assert_eq!(known, (BlockAddr::new(state << 33 | lba), state as u32));
                                found += 1;
                            }
                        }
                    }
                    assert!(found > 0, "nothing was ever found");
                });
            }
        });
    }
}
