//! A device in memory that counts what is asked of it: a run that goes on for ever asks for ever.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use snapvol::device::{Device, MemoryDevice};

/// Calls beyond which something must be going round in circles: an open of the largest image here, with all that
/// is done to it, takes a few thousand.
const MOST_CALLS: u64 = 200_000;
/// The same in bytes.
const MOST_BYTES: u64 = 4 << 30;

/// A [`MemoryDevice`] that panics when it is asked too much.
pub(crate) struct Watched {
    inner: MemoryDevice,
    spent: Arc<[AtomicU64; 2]>,
}

impl Watched {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self { inner: MemoryDevice::from_bytes(bytes), spent: Arc::default() }
    }

    /// Another handle on the same bytes and counters, without the lock.
    pub(crate) fn again(&self) -> Self {
        Self { inner: self.inner.share(), spent: Arc::clone(&self.spent) }
    }

    fn count(&self, bytes: usize) {
        let [calls, moved] = &*self.spent;
        let calls = calls.fetch_add(1, Ordering::Relaxed) + 1;
        let moved = moved.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        assert!(calls < MOST_CALLS && moved < MOST_BYTES, "a hang: {calls} calls, {moved} bytes");
    }
}

impl Device for Watched {
    fn len(&self) -> io::Result<u64> {
        self.count(0);
        self.inner.len()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.count(buf.len());
        self.inner.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.count(buf.len());
        self.inner.write_at(buf, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.count(0);
        self.inner.sync()
    }
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.count(0);
        // Forged limits must not make the host fall over: it has no more than this.
        if offset.saturating_add(len) > 1 << 30 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.inner.allocate(offset, len)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.count(0);
        self.inner.set_len(len)
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.count(0);
        self.inner.discard(offset, len)
    }
    fn lock(&self) -> io::Result<bool> {
        self.inner.lock()
    }
    fn drop_cache(&self) -> io::Result<()> {
        self.inner.drop_cache()
    }
}
