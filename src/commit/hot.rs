//! Blocks lately read: where each lies, and its checksum, without a walk through map and pages.
//!
//! - H1 An entry is put in while the map's lock is held, and taken out, under the same lock, by whoever changes
//!   what it says. A reader that looks without the lock and still finds it has overlapped with the change, and
//!   its pin keeps the block from being reused.
//! - H2 Entries are about blocks that the device has and that never change again.
//! - H3 An entry is four words that are read and written one by one. Two of them are masked with a mix of the
//!   others, so that words of different entries do not add up to one.

use std::sync::OnceLock;

use crate::sync::atomic::{AtomicU64, Ordering};
use crate::units::BlockAddr;

/// Entries that come into being together: 32 KiB. Few under a model, so that they push each other out.
const GROUP: usize = if cfg!(snapvol_shuttle) { 4 } else { 1024 };

/// Tells the states of maps apart, in this process.
static NEXT_STATE: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);

/// A number that no map has had: its entries are not those of what it was before.
pub(super) fn next_state() -> u64 {
    NEXT_STATE.fetch_add(1, Ordering::Relaxed)
}

#[derive(Default)]
#[repr(align(32))]
struct Entry {
    state: AtomicU64,
    lba: AtomicU64,
    block: AtomicU64,
    crc: AtomicU64,
}

impl Entry {
    fn put(&self, state: u64, lba: u64, block: u64, crc: u64) {
        let mask = mix(block, crc);
        self.state.store(state ^ mask, Ordering::Relaxed);
        self.lba.store(lba ^ mask, Ordering::Relaxed);
        self.block.store(block, Ordering::Relaxed);
        self.crc.store(crc, Ordering::Relaxed);
    }

    #[inline]
    fn get(&self, state: u64, lba: u64) -> Option<(BlockAddr, u32)> {
        let (block, crc) = (self.block.load(Ordering::Relaxed), self.crc.load(Ordering::Relaxed));
        let mask = mix(block, crc);
        let same = self.state.load(Ordering::Relaxed) ^ mask == state
            && self.lba.load(Ordering::Relaxed) ^ mask == lba;
        same.then(|| (BlockAddr::new(block), crc as u32))
    }
}

fn mix(block: u64, crc: u64) -> u64 {
    let x = (block ^ crc.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

/// A table of fixed size; what is put in may push out something else.
pub(super) struct Hot {
    groups: Box<[OnceLock<Box<[Entry]>>]>,
}

impl Hot {
    /// A table of at most `bytes` of memory, which it takes as it is used.
    pub(super) fn new(bytes: u64) -> Self {
        let groups = bytes / (GROUP * size_of::<Entry>()) as u64;
        let groups = if groups < 2 { groups } else { 1 << groups.ilog2() };
        Self { groups: (0..groups).map(|_| OnceLock::new()).collect() }
    }

    /// Neighbouring blocks of a map are neighbours here.
    #[inline]
    fn place(&self, state: u64, lba: u64) -> Option<(&OnceLock<Box<[Entry]>>, usize)> {
        let at = lba.wrapping_add(state.wrapping_mul(0x9e37_79b9_7f4a_7c15)) as usize;
        let group = self.groups.get((at / GROUP) & self.groups.len().wrapping_sub(1))?;
        Some((group, at % GROUP))
    }

    #[inline]
    pub(super) fn get(&self, state: u64, lba: u64) -> Option<(BlockAddr, u32)> {
        let (group, at) = self.place(state, lba)?;
        group.get()?[at].get(state, lba)
    }

    /// The caller holds the map (H1).
    pub(super) fn put(&self, state: u64, lba: u64, block: BlockAddr, crc: u32) {
        if let Some((group, at)) = self.place(state, lba) {
            let group = group.get_or_init(|| (0..GROUP).map(|_| Entry::default()).collect());
            group[at].put(state, lba, block.raw(), crc.into());
        }
    }

    /// Forgets `len` blocks from `lba` on. The caller holds the map for writing (H1).
    pub(super) fn forget(&self, state: u64, lba: u64, len: u64) {
        for lba in lba..lba + len {
            if let Some((group, at)) = self.place(state, lba)
                && let Some(group) = group.get()
                && group[at].get(state, lba).is_some()
            {
                group[at].put(0, 0, 0, 0);
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
        assert_eq!((hot.get(8, 4321), hot.get(7, 5000), hot.get(0, 0)), (None, None, None));
        hot.forget(7, 4000, 500);
        assert_eq!((hot.get(7, 4321), hot.get(7, 3999).is_some()), (None, true));
        assert_eq!(Hot::new(0).get(7, 1), None);
    }

    #[test]
    fn words_of_different_entries_never_make_one() {
        let all: Vec<Entry> = (0..8).map(|_| Entry::default()).collect();
        for (i, e) in (0..).zip(&all) {
            e.put(1 + i % 2, 10 + i / 2, 100 + i, 1000 + i);
        }
        let load = |w: &AtomicU64| w.load(Ordering::Relaxed);
        for i in 0..8usize.pow(4) {
            let pick = |k: u32| &all[i / 8usize.pow(k) % 8];
            let torn = Entry::default();
            torn.state.store(load(&pick(0).state), Ordering::Relaxed);
            torn.lba.store(load(&pick(1).lba), Ordering::Relaxed);
            torn.block.store(load(&pick(2).block), Ordering::Relaxed);
            torn.crc.store(load(&pick(3).crc), Ordering::Relaxed);
            for (n, e) in (0u64..).zip(&all) {
                let (state, lba) = (1 + n % 2, 10 + n / 2);
                if let Some(found) = torn.get(state, lba) {
                    assert_eq!(Some(found), e.get(state, lba));
                }
            }
        }
    }
}
