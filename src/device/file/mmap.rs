//! The opt-in read path through a mapping of the pool file.

use std::fs::File;
use std::io;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use parking_lot::{Mutex, RwLock};

/// Readers are spread over this many locks, so that two threads do not fight over one cache line.
const SHARDS: usize = 8;

/// A read-only mapping of a file that grows, shared by many readers.
///
/// - M1 A mapping covers only bytes below the file's length at the time it is made, and is gone from every
///   shard before this process shortens the file: no read of ours touches a page past the end.
/// - M2 Bytes are only ever copied out through raw pointers. `pwrite` may change them at the same time, so
///   no `&[u8]` over the mapping is ever made.
pub(super) struct ReadMap {
    shards: [Shard; SHARDS],
    /// Held while a mapping is replaced and while the file is shortened.
    replace: Mutex<()>,
}

/// One lock on its own pair of cache lines.
#[derive(Default)]
#[repr(align(128))]
struct Shard(RwLock<Option<Arc<MmapRaw>>>);

impl ReadMap {
    pub(super) fn new() -> Self {
        Self { shards: Default::default(), replace: Mutex::new(()) }
    }

    /// Fills `buf` from `offset`; `end` is `offset + buf.len()`. Maps anew when the range passes the mapping.
    pub(super) fn read(
        &self,
        file: &File,
        file_len: impl Fn() -> io::Result<u64>,
        buf: &mut [u8],
        offset: u64,
        end: u64,
    ) -> io::Result<()> {
        let shard = &self.shards[shard_of_thread()];
        loop {
            if let Some(map) = &*shard.0.read()
                && end <= map.len() as u64
            {
                // SAFETY: `offset + buf.len() == end`, which is inside the mapping, and the mapping lives
                // while the shard's lock is held. `buf` is an exclusive borrow of ordinary memory, so it
                // cannot overlap a read-only mapping that was never handed out (M2). The pages exist as
                // long as nobody else shortens the file (M1; the documented hazard).
                unsafe {
                    ptr::copy_nonoverlapping(map.as_ptr().add(offset as usize), buf.as_mut_ptr(), buf.len())
                };
                return Ok(());
            }
            self.grow(file, &file_len, end)?;
        }
    }

    /// Maps the whole file, unless another thread has just done so. An error when the file ends before `end`.
    fn grow(&self, file: &File, file_len: impl Fn() -> io::Result<u64>, end: u64) -> io::Result<()> {
        let _replacing = self.replace.lock();
        let covered = |shard: &Shard| shard.0.read().as_ref().is_some_and(|map| end <= map.len() as u64);
        if self.shards.iter().all(covered) {
            return Ok(());
        }
        let len = file_len()?;
        if end > len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let map = Arc::new(MmapOptions::new().len(len).map_raw_read_only(file)?);
        for shard in &self.shards {
            *shard.0.write() = Some(Arc::clone(&map));
        }
        Ok(())
    }

    /// Drops every mapping, then runs `change` with new mappings kept out: for shortening the file.
    pub(super) fn without<R>(&self, change: impl FnOnce() -> R) -> R {
        let _replacing = self.replace.lock();
        for shard in &self.shards {
            *shard.0.write() = None;
        }
        change()
    }
}

/// The shard of the calling thread: handed out in turn, so that a few threads never share one.
fn shard_of_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: usize = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS;
    }
    MINE.with(|mine| *mine)
}
