//! A large table of words, of memory that is mapped in large pages where the system offers them.
//!
//! A lookup in a table that is larger than what the processor can address from its translation buffers costs a
//! walk of the page tables on top of the cache miss. Large pages spare that walk: a third of the lookup.

#[cfg(not(snapvol_shuttle))]
pub(crate) use plain::Words;

#[cfg(not(snapvol_shuttle))]
mod plain {
    use std::fmt;
    use std::slice;
    use std::sync::atomic::AtomicU64;

    use memmap2::{MmapMut, MmapOptions};

    /// Zeroed words that threads read and write one by one. Takes memory only as it is touched.
    pub(crate) struct Words {
        map: MmapMut,
        len: usize,
    }

    impl Words {
        /// `len` words; none where the system has no memory for them.
        pub(crate) fn new(len: usize) -> Option<Self> {
            let bytes = len.checked_mul(size_of::<AtomicU64>()).filter(|bytes| *bytes > 0)?;
            let map = MmapOptions::new().len(bytes).map_anon().ok()?;
            // Only advice: where it is not taken, the table is as good but slower.
            #[cfg(target_os = "linux")]
            let _ = map.advise(memmap2::Advice::HugePage);
            Some(Self { map, len })
        }

        #[inline]
        pub(crate) fn as_slice(&self) -> &[AtomicU64] {
            // SAFETY: the mapping is private, zeroed, page-aligned, `len` words long, and lives as long as `self`.
            // `map` is touched by nothing else until it is unmapped, so that all access is through these atomics, for
            // which any bits are a value.
            unsafe { slice::from_raw_parts(self.map.as_ptr().cast(), self.len) }
        }
    }

    impl fmt::Debug for Words {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Words").field("len", &self.len).finish_non_exhaustive()
        }
    }
}

/// The words of the model checker have a size of their own.
#[cfg(snapvol_shuttle)]
pub(crate) struct Words(Box<[crate::sync::atomic::AtomicU64]>);

#[cfg(snapvol_shuttle)]
impl Words {
    pub(crate) fn new(len: usize) -> Option<Self> {
        Some(Self((0..len).map(|_| crate::sync::atomic::AtomicU64::new(0)).collect()))
    }
    pub(crate) fn as_slice(&self) -> &[crate::sync::atomic::AtomicU64] {
        &self.0
    }
}
