//! The only I/O of the crate, and its only `unsafe`.
//!
//! Everything above speaks to a [`Device`]: a file, a block device, memory, or the simulator.
//! The room never interprets a byte.
//!
//! - D1 `write_at` returns `Ok` only when every byte was taken; a short transfer is an error.
//! - D2 After `sync` returns `Ok`, every write that had returned before `sync` was called survives
//!   a loss of power. Nothing is said about a write that was under way.
//! - D3 Reads past the end are errors, never zeroes.

use std::io;

mod aligned;
mod file;
mod memory;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
mod words;

pub(crate) use aligned::SlotBuffer;
pub use file::FileDevice;
pub use memory::MemoryDevice;
pub(crate) use words::Words;

/// Where a pool lives. All offsets and lengths are bytes.
///
/// Implementations are called from several threads at once.
///
/// # Errors
/// Every method returns the host's error as it came, with its kind where the method names one: the pool tells from it
/// whether a call is worth another try. A call that fails may have been done in part, and promises nothing.
pub trait Device: Send + Sync + 'static {
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// True when nothing is stored yet.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills `buf` from `offset`. A range that passes the end is an error of kind `UnexpectedEof`.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `buf` at `offset`; visible to later reads, durable only after [`sync`](Self::sync).
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// As [`write_at`](Self::write_at), for a small write that a sync follows at once: it may go to the medium
    /// by the shortest way.
    fn write_soon(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.write_at(buf, offset)
    }

    /// Fills the buffers in turn from `offset`.
    fn read_vectored_at(&self, bufs: &mut [io::IoSliceMut<'_>], mut offset: u64) -> io::Result<()> {
        for buf in bufs {
            self.read_at(buf, offset)?;
            offset += buf.len() as u64;
        }
        Ok(())
    }

    /// Writes the buffers in turn at `offset`.
    fn write_vectored_at(&self, bufs: &[io::IoSlice<'_>], mut offset: u64) -> io::Result<()> {
        for buf in bufs {
            self.write_at(buf, offset)?;
            offset += buf.len() as u64;
        }
        Ok(())
    }

    /// Makes every write that has returned durable, and the length too.
    fn sync(&self) -> io::Result<()>;

    /// Makes sure that the host has space for the range, extending the device when it passes the end.
    /// New bytes read zero. Where the host cannot promise space this extends the length only.
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Sets the length in bytes; new bytes read zero.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Gives the range back to the host. It reads zero or its old content afterwards.
    /// `Unsupported` where the host has no such call.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Takes the exclusive lock that makes this the pool's only user; false when it is taken.
    /// Released when the device is dropped, and by the operating system when the process dies.
    fn lock(&self) -> io::Result<bool>;

    /// The range is going to be read: where the host has a cache, it may begin to fill it. Only a hint.
    fn will_need(&self, offset: u64, len: u64) {
        let _ = (offset, len);
    }

    /// Forgets cached bytes, so that the next reads come from the medium as far as the host allows.
    fn drop_cache(&self) -> io::Result<()>;

    /// Whether the length can change. A block device's cannot.
    fn can_grow(&self) -> bool {
        true
    }
}
