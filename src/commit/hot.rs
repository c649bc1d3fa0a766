//! Blocks lately read: where each lies, and its checksum, without a walk through map and pages.
//!
//! - H1 An entry is put in while the map's lock is held, and taken out, under the same lock, by whoever changes
//!   what it says. A reader that looks without the lock and still finds it has overlapped with the change, and
//!   its pin keeps the block from being reused.
//! - H2 Entries are about blocks that the device has and that never change again.
//! - H3 An entry is four words that are read and written one by one. Two of them are masked with a mix of the
//!   others, so that words of different entries do not add up to one. No map has state 0, which an untouched
//!   entry is about.

use crate::device::Words;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::units::BlockAddr;

/// Tells the states of maps apart, in this process.
static NEXT_STATE: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);

/// A number that no map has had: its entries are not those of what it was before.
pub(super) fn next_state() -> u64 {
    NEXT_STATE.fetch_add(1, Ordering::Relaxed)
}

/// Words of an entry: state, LBA, block, checksum.
const ENTRY: usize = 4;

struct Entry<'a>(&'a [AtomicU64; ENTRY]);

impl Entry<'_> {
    fn put(&self, state: u64, lba: u64, block: u64, crc: u64) {
        let mask = mix(block, crc);
        for (word, value) in self.0.iter().zip([state ^ mask, lba ^ mask, block, crc]) {
            word.store(value, Ordering::Relaxed);
        }
    }

    #[inline]
    fn get(&self, state: u64, lba: u64) -> Option<(BlockAddr, u32)> {
        let [masked_state, masked_lba, block, crc] = self.0;
        let (block, crc) = (block.load(Ordering::Relaxed), crc.load(Ordering::Relaxed));
        let mask = mix(block, crc);
        let same = masked_state.load(Ordering::Relaxed) ^ mask == state
            && masked_lba.load(Ordering::Relaxed) ^ mask == lba;
        same.then(|| (BlockAddr::new(block), crc as u32))
    }
}

fn mix(block: u64, crc: u64) -> u64 {
    let x = (block ^ crc.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

/// A table of fixed size; what is put in may push out something else.
pub(super) struct Hot {
    /// A power of two of entries, or none.
    entries: Option<Words>,
}

impl Hot {
    /// A table of at most `bytes` of memory, which it takes as it is used.
    pub(super) fn new(bytes: u64) -> Self {
        let entries = bytes / (ENTRY * size_of::<u64>()) as u64;
        // Few under a model, so that they push each other out.
        let entries = if cfg!(snapvol_shuttle) { entries.min(4) } else { entries };
        let entries = entries.checked_ilog2().and_then(|log| Words::new(ENTRY << log));
        Self { entries }
    }

    /// Neighbouring blocks of a map are neighbours here.
    #[inline]
    fn entry(&self, state: u64, lba: u64) -> Option<Entry<'_>> {
        let (entries, _) = self.entries.as_ref()?.as_slice().as_chunks();
        let at = lba.wrapping_add(state.wrapping_mul(0x9e37_79b9_7f4a_7c15)) as usize;
        entries.get(at & entries.len().wrapping_sub(1)).map(Entry)
    }

    #[inline]
    pub(super) fn get(&self, state: u64, lba: u64) -> Option<(BlockAddr, u32)> {
        self.entry(state, lba)?.get(state, lba)
    }

    /// The caller holds the map (H1).
    pub(super) fn put(&self, state: u64, lba: u64, block: BlockAddr, crc: u32) {
        if let Some(entry) = self.entry(state, lba) {
            entry.put(state, lba, block.raw(), crc.into());
        }
    }

    /// Forgets `len` blocks from `lba` on. The caller holds the map for writing (H1).
    pub(super) fn forget(&self, state: u64, lba: u64, len: u64) {
        for lba in lba..lba + len {
            if let Some(entry) = self.entry(state, lba).filter(|entry| entry.get(state, lba).is_some()) {
                entry.put(0, 0, 0, 0);
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
    fn words_of_different_entries_never_make_one() {
        let words: [[AtomicU64; ENTRY]; 8] = Default::default();
        let all: Vec<Entry<'_>> = words.iter().map(Entry).collect();
        for (i, e) in (0..).zip(&all) {
            e.put(1 + i % 2, 10 + i / 2, 100 + i, 1000 + i);
        }
        for i in 0..8usize.pow(4) {
            let pick = |k: usize| words[i / 8usize.pow(k as u32) % 8][k].load(Ordering::Relaxed);
            let torn: [AtomicU64; ENTRY] = std::array::from_fn(|k| AtomicU64::new(pick(k)));
            let torn = Entry(&torn);
            for (n, e) in (0u64..).zip(&all) {
                let (state, lba) = (1 + n % 2, 10 + n / 2);
                if let Some(found) = torn.get(state, lba) {
                    assert_eq!(Some(found), e.get(state, lba));
                }
            }
        }
    }
}
