//! A heap that refuses long allocations when it is told to, and a device whose own memory is not the pool's.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io;
use std::ptr::null_mut;

use snapvol::device::{Device, MemoryDevice};

/// Longer ones are counted and can be refused.
const LONG: usize = 64 << 10;

thread_local! {
    /// Only what the pool itself asks for counts.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
    static COUNT: Cell<usize> = const { Cell::new(0) };
    static FAIL_FROM: Cell<usize> = const { Cell::new(usize::MAX) };
    static FAIL_TO: Cell<usize> = const { Cell::new(usize::MAX) };
}

struct Scarce;

fn refused(bytes: usize) -> bool {
    if bytes <= LONG || !INSIDE.try_with(Cell::get).unwrap_or(false) {
        return false;
    }
    let n = COUNT.get();
    COUNT.set(n + 1);
    (FAIL_FROM.get()..FAIL_TO.get()).contains(&n)
}

// SAFETY: every call is passed on to the system's allocator as it is, or answered as if there were no memory.
unsafe impl GlobalAlloc for Scarce {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if refused(layout.size()) {
            return null_mut();
        }
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if refused(layout.size()) {
            return null_mut();
        }
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if refused(new_size) {
            return null_mut();
        }
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static HEAP: Scarce = Scarce;

/// Runs one call of the pool with memory being scarce.
pub(crate) fn scarce<T>(call: impl FnOnce() -> T) -> T {
    INSIDE.set(true);
    let done = call();
    INSIDE.set(false);
    done
}

/// Runs what belongs to the test within such a call.
pub(crate) fn plenty<T>(call: impl FnOnce() -> T) -> T {
    let inside = INSIDE.replace(false);
    let done = call();
    INSIDE.set(inside);
    done
}

/// Counts the long allocations of this thread from here on, and refuses those of these numbers.
pub(crate) fn refuse(numbers: std::ops::Range<usize>) {
    COUNT.set(0);
    FAIL_FROM.set(numbers.start);
    FAIL_TO.set(numbers.end);
}

/// Refuses nothing any more. Returns how many long allocations there were.
pub(crate) fn relent() -> usize {
    FAIL_FROM.set(usize::MAX);
    FAIL_TO.set(usize::MAX);
    COUNT.get()
}

/// A device whose own memory is not the pool's.
pub(crate) struct Own(pub(crate) MemoryDevice);

impl Own {
    fn own<T>(&self, call: impl FnOnce(&MemoryDevice) -> T) -> T {
        plenty(|| call(&self.0))
    }
}

impl Device for Own {
    fn len(&self) -> io::Result<u64> {
        self.own(Device::len)
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.own(|device| device.read_at(buf, offset))
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.own(|device| device.write_at(buf, offset))
    }
    fn sync(&self) -> io::Result<()> {
        self.own(Device::sync)
    }
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.own(|device| device.allocate(offset, len))
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.own(|device| device.set_len(len))
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.own(|device| device.discard(offset, len))
    }
    fn lock(&self) -> io::Result<bool> {
        self.own(Device::lock)
    }
    fn drop_cache(&self) -> io::Result<()> {
        self.own(Device::drop_cache)
    }
}
