//! Page-aligned buffers that many threads fill and read, slot by slot.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fmt;
use std::ptr::NonNull;
use std::slice;

use crate::error::{Error, Result};
use crate::sync::{RawLock as _, RawRwLock, raw_lock};

/// Bytes in one slot, and the alignment of the buffer.
const SLOT: usize = 4096;

/// A contiguous, 4,096-aligned buffer of 4,096-byte slots, each with a lock of its own.
///
/// - B1 A slot is changed only under its exclusive lock and read only under its shared lock, so that a
///   reader never sees two fills mixed within one slot.
/// - B2 A thread holds at most one exclusive lock and takes nothing while it has it; ranges are locked
///   in ascending order. So no two threads can wait for each other, provided the closures do not come
///   back to the same buffer.
///
/// The memory is zeroed by the operating system on first touch: an unused buffer costs address space.
pub(crate) struct SlotBuffer {
    /// What was allocated: a slot more than is used, so that the used part can begin where a page does.
    /// Zeroed memory of a large alignment would be written over at once instead.
    whole: NonNull<u8>,
    layout: Layout,
    /// The first slot.
    bytes: NonNull<u8>,
    locks: Box<[RawRwLock]>,
}

// SAFETY: the buffer owns its allocation, and no part of it is tied to the thread that made it.
unsafe impl Send for SlotBuffer {}
// SAFETY: by B1 the bytes of a slot are reached only through `fill`, `with` and `with_range`, which hold
// that slot's reader-writer lock for as long as the slice they hand out lives.
unsafe impl Sync for SlotBuffer {}

impl SlotBuffer {
    /// A zeroed buffer of `slots` slots, unless the process cannot have so much memory.
    ///
    /// # Panics
    /// When `slots` is zero or the size in bytes passes `isize::MAX`: both are mistakes of the caller.
    pub(crate) fn new(slots: usize) -> Result<Self> {
        assert!(slots > 0, "a slot buffer has at least one slot");
        let size = slots.checked_add(1).and_then(|slots| slots.checked_mul(SLOT));
        let Some(layout) = size.and_then(|size| Layout::array::<u8>(size).ok()) else {
            panic!("a slot buffer of {slots} slots passes the address space");
        };
        // SAFETY: the layout's size is not zero, because `slots` is not.
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(whole) = NonNull::new(raw) else {
            return Err(Error::OutOfMemory { bytes: layout.size() as u64 });
        };
        let skew = whole.addr().get().next_multiple_of(SLOT) - whole.addr().get();
        // SAFETY: `skew` is less than a slot, and the allocation has a slot to spare.
        let bytes = unsafe { whole.add(skew) };
        Ok(Self { whole, layout, bytes, locks: (0..slots).map(|_| raw_lock()).collect() })
    }

    /// Number of slots.
    pub(crate) fn slots(&self) -> usize {
        self.locks.len()
    }

    /// Hands the 4,096 bytes of `slot` to `change`, with every other user of the slot kept out.
    ///
    /// # Panics
    /// When `slot` is outside the buffer.
    pub(crate) fn fill<R>(&self, slot: usize, change: impl FnOnce(&mut [u8]) -> R) -> R {
        let lock = &self.locks[slot];
        lock.lock_exclusive();
        let _guard = ExclusiveGuard(lock);
        // SAFETY: `slot` is in range (indexed above), so the SLOT bytes lie inside the allocation; the
        // exclusive lock is held until after `change` returns or unwinds, so nobody else has a slice of it.
        change(unsafe { slice::from_raw_parts_mut(self.slot_ptr(slot), SLOT) })
    }

    /// Hands the 4,096 bytes of `slot` to `read`, with writers of the slot kept out.
    ///
    /// # Panics
    /// When `slot` is outside the buffer.
    pub(crate) fn with<R>(&self, slot: usize, read: impl FnOnce(&[u8]) -> R) -> R {
        self.with_range(slot, 1, read)
    }

    /// Hands the bytes of `count` slots from `first_slot` to `read`, with writers of all of them kept out.
    ///
    /// # Panics
    /// When the range passes the end of the buffer.
    pub(crate) fn with_range<R>(&self, first_slot: usize, count: usize, read: impl FnOnce(&[u8]) -> R) -> R {
        let mut guard = SharedGuard { locks: &self.locks[first_slot..][..count], held: 0 };
        guard.lock_all();
        if count == 0 {
            return read(&[]);
        }
        // SAFETY: the range is in bounds (sliced above) and not empty; the shared locks of all its slots
        // are held until after `read` returns or unwinds, so nobody has an exclusive slice of any of them.
        read(unsafe { slice::from_raw_parts(self.slot_ptr(first_slot), count * SLOT) })
    }

    fn slot_ptr(&self, slot: usize) -> *mut u8 {
        debug_assert!(slot < self.slots());
        // SAFETY: callers have checked that `slot` is in range, so the offset stays inside the allocation.
        unsafe { self.bytes.as_ptr().add(slot * SLOT) }
    }
}

impl Drop for SlotBuffer {
    fn drop(&mut self) {
        // SAFETY: `whole` came from `alloc_zeroed` with this layout and is freed only here.
        unsafe { dealloc(self.whole.as_ptr(), self.layout) }
    }
}

impl fmt::Debug for SlotBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlotBuffer").field("slots", &self.slots()).finish_non_exhaustive()
    }
}

/// Gives an exclusive lock back, also when the closure unwinds.
struct ExclusiveGuard<'a>(&'a RawRwLock);

impl Drop for ExclusiveGuard<'_> {
    fn drop(&mut self) {
        // SAFETY: made only right after `lock_exclusive` on the same lock by the same thread.
        unsafe { self.0.unlock_exclusive() }
    }
}

/// Holds the shared locks of the first `held` slots of a range. No allocation, unlike a list of guards.
struct SharedGuard<'a> {
    locks: &'a [RawRwLock],
    held: usize,
}

impl SharedGuard<'_> {
    fn lock_all(&mut self) {
        for lock in self.locks {
            lock.lock_shared();
            self.held += 1;
        }
    }
}

impl Drop for SharedGuard<'_> {
    fn drop(&mut self) {
        for lock in &self.locks[..self.held] {
            // SAFETY: `held` counts the locks on which this guard called `lock_shared`.
            unsafe { lock.unlock_shared() }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn new_buffer_is_aligned_and_zero() {
        let buffer = SlotBuffer::new(3).unwrap();
        assert_eq!(buffer.slots(), 3);
        buffer.with_range(0, 3, |bytes| {
            assert_eq!(bytes.len(), 3 * SLOT);
            assert_eq!(bytes.as_ptr() as usize % SLOT, 0);
            assert!(bytes.iter().all(|&b| b == 0));
        });
        assert_eq!(buffer.with_range(3, 0, <[u8]>::len), 0);
    }

    #[test]
    fn range_is_the_slots_in_order() {
        let buffer = SlotBuffer::new(4).unwrap();
        for slot in 0..4 {
            buffer.fill(slot, |bytes| bytes.fill(slot as u8 + 1));
        }
        buffer.with(2, |bytes| assert!(bytes.len() == SLOT && bytes.iter().all(|&b| b == 3)));
        buffer.with_range(1, 3, |bytes| {
            for (slot, chunk) in bytes.chunks(SLOT).enumerate() {
                assert!(chunk.iter().all(|&b| b == slot as u8 + 2));
            }
        });
    }

    #[test]
    fn readers_never_see_a_mixture_of_two_fills() {
        let buffer = SlotBuffer::new(2).unwrap();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..20_000_u32 {
                    buffer.fill((round % 2) as usize, |bytes| bytes.fill(round as u8));
                }
                done.store(true, Ordering::Release);
            });
            let mut seen_last = 0;
            while !done.load(Ordering::Acquire) {
                buffer.with_range(0, 2, |bytes| {
                    for chunk in bytes.chunks(SLOT) {
                        assert!(chunk.iter().all(|&b| b == chunk[0]), "a mixture");
                    }
                    seen_last = bytes[0];
                });
                buffer.with(1, |bytes| assert!(bytes.iter().all(|&b| b == bytes[0]), "a mixture"));
            }
            std::hint::black_box(seen_last);
        });
    }

    #[test]
    fn a_panicking_closure_gives_its_locks_back() {
        let buffer = SlotBuffer::new(2).unwrap();
        let fill = catch_unwind(AssertUnwindSafe(|| buffer.fill(0, |_| panic!("planned"))));
        let read = catch_unwind(AssertUnwindSafe(|| buffer.with_range(0, 2, |_| panic!("planned"))));
        assert!(fill.is_err() && read.is_err());
        buffer.fill(0, |bytes| bytes[0] = 1);
        buffer.fill(1, |bytes| bytes[0] = 1);
    }

    #[test]
    #[should_panic(expected = "out of range")]
    fn range_past_the_end_is_refused() {
        SlotBuffer::new(2).unwrap().with_range(1, 2, |_| ());
    }
}
