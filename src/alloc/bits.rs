//! One bit per block of a chunk.

use bitvec::array::BitArray;
use bitvec::order::Lsb0;

use crate::format::chunk::Counts;

/// A set of blocks of one chunk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Bits(BitArray<[u64; 16], Lsb0>);

impl Bits {
    pub(crate) fn none() -> Self {
        Self(BitArray::ZERO)
    }
    pub(crate) fn first(n: usize) -> Self {
        let mut this = Self::none();
        this.0[..n].fill(true);
        this
    }
    /// The blocks whose count is zero.
    pub(crate) fn free_in(counts: &Counts) -> Self {
        let mut this = Self::none();
        for i in 0..counts.blocks() {
            if counts.get(i) == 0 {
                this.0.set(i, true);
            }
        }
        this
    }
    /// The blocks whose count is not zero.
    pub(crate) fn used_in(counts: &Counts) -> Self {
        let mut this = Self::first(counts.blocks());
        this.subtract(&Self::free_in(counts));
        this
    }
    pub(crate) fn get(&self, i: usize) -> bool {
        self.0[i]
    }
    pub(crate) fn insert(&mut self, from: usize, len: usize) {
        self.0[from..from + len].fill(true);
    }
    pub(crate) fn remove(&mut self, from: usize, len: usize) {
        self.0[from..from + len].fill(false);
    }
    pub(crate) fn subtract(&mut self, other: &Self) {
        for (a, b) in self.0.data.iter_mut().zip(other.0.data) {
            *a &= !b;
        }
    }
    pub(crate) fn add(&mut self, other: &Self) {
        for (a, b) in self.0.data.iter_mut().zip(other.0.data) {
            *a |= b;
        }
    }
    pub(crate) fn is_empty(&self) -> bool {
        self.0.not_any()
    }
    pub(crate) fn count(&self) -> usize {
        self.0.count_ones()
    }
    /// Runs of members in ascending order: start and length.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = at + self.0.get(at..)?.first_one()?;
            let len = self.0[start..].first_zero().unwrap_or(self.0.len() - start);
            at = start + len;
            Some((start, len))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_found_in_order() {
        let mut b = Bits::none();
        b.insert(0, 3);
        b.insert(10, 1);
        b.insert(1000, 24);
        assert_eq!(b.runs().collect::<Vec<_>>(), [(0, 3), (10, 1), (1000, 24)]);
        b.remove(1, 1);
        assert_eq!(b.count(), 27);
        assert_eq!(Bits::first(1024).runs().collect::<Vec<_>>(), [(0, 1024)]);
    }
}
