//! Pools in memory.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use super::Device;

/// Bytes in one page, the unit in which memory is taken and given back.
const PAGE: u64 = 64 * 1024;
/// Pages are spread over this many locks, so that threads on different pages seldom meet.
const SHARDS: usize = 16;

type Shard = RwLock<HashMap<u64, Box<[u8]>>>;

/// A pool in memory: sparse, shared by its clones, gone with the last of them.
///
/// A clone is a second handle on the same bytes. The lock belongs to the handle that took it, as it would
/// to an open file, and goes when that handle is dropped. `sync` promises nothing beyond the process.
pub struct MemoryDevice {
    storage: Arc<Storage>,
    holds_lock: AtomicBool,
}

struct Storage {
    /// Held shared by every transfer inside the length, exclusively by whatever changes the length.
    len: RwLock<u64>,
    /// Page number -> bytes; a page that is not here reads zero. Bytes past `len` are zero.
    shards: [Shard; SHARDS],
    locked: AtomicBool,
}

impl MemoryDevice {
    /// An empty device.
    pub fn new() -> Self {
        let storage =
            Storage { len: RwLock::new(0), shards: Default::default(), locked: AtomicBool::new(false) };
        Self { storage: Arc::new(storage), holds_lock: AtomicBool::new(false) }
    }

    /// A device that holds `bytes`.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        let device = Self::new();
        *device.storage.len.write() = bytes.len() as u64;
        for (number, chunk) in bytes.chunks(PAGE as usize).enumerate() {
            if chunk.iter().any(|&b| b != 0) {
                device.storage.write(chunk, number as u64 * PAGE);
            }
        }
        device
    }

    /// Another handle on the same bytes, without the lock; the same as `clone`.
    pub fn share(&self) -> Self {
        Self { storage: Arc::clone(&self.storage), holds_lock: AtomicBool::new(false) }
    }

    /// A copy of all bytes. Writes under way at the same time may be in it in part.
    pub fn snapshot_bytes(&self) -> Vec<u8> {
        let len = self.storage.len.read();
        let mut bytes = vec![0; *len as usize];
        self.storage.read(&mut bytes, 0);
        bytes
    }

    /// Bytes of memory that the pages take; less than the length where the device is sparse.
    pub fn resident_bytes(&self) -> u64 {
        self.storage.shards.iter().map(|shard| shard.read().len() as u64 * PAGE).sum()
    }
}

impl Default for MemoryDevice {
    fn default() -> Self {
        Self::new()
    }
}

impl Clone for MemoryDevice {
    fn clone(&self) -> Self {
        self.share()
    }
}

impl Drop for MemoryDevice {
    fn drop(&mut self) {
        if *self.holds_lock.get_mut() {
            self.storage.locked.store(false, Ordering::Release);
        }
    }
}

impl fmt::Debug for MemoryDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryDevice").field("len_bytes", &*self.storage.len.read()).finish_non_exhaustive()
    }
}

impl Storage {
    fn shard(&self, page: u64) -> &Shard {
        &self.shards[(page % SHARDS as u64) as usize]
    }

    fn read(&self, buf: &mut [u8], offset: u64) {
        let mut rest = buf;
        for (page, inside) in pages(offset, rest.len() as u64) {
            let (part, tail) = rest.split_at_mut(inside.len());
            match self.shard(page).read().get(&page) {
                Some(bytes) => part.copy_from_slice(&bytes[inside]),
                None => part.fill(0),
            }
            rest = tail;
        }
    }

    fn write(&self, buf: &[u8], offset: u64) {
        let mut rest = buf;
        for (page, inside) in pages(offset, rest.len() as u64) {
            let (part, tail) = rest.split_at(inside.len());
            let mut shard = self.shard(page).write();
            shard.entry(page).or_insert_with(new_page)[inside].copy_from_slice(part);
            rest = tail;
        }
    }

    fn zero(&self, offset: u64, len: u64) {
        for (page, inside) in pages(offset, len) {
            let mut shard = self.shard(page).write();
            if inside.len() as u64 == PAGE {
                shard.remove(&page);
            } else if let Some(bytes) = shard.get_mut(&page) {
                bytes[inside].fill(0);
            }
        }
    }

    fn shrink(&self, from: u64, to: u64) {
        // The rest of the page that stays, then whole pages by looking at those that exist: a sparse
        // device may be far longer than it is full.
        let whole = to.div_ceil(PAGE);
        self.zero(to, (whole * PAGE).min(from) - to);
        for shard in &self.shards {
            shard.write().retain(|&page, _| page < whole);
        }
    }
}

impl Device for MemoryDevice {
    fn len(&self) -> io::Result<u64> {
        Ok(*self.storage.len.read())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = end_of(offset, buf.len() as u64)?;
        let len = self.storage.len.read();
        if !buf.is_empty() && end > *len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.storage.read(buf, offset);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let end = end_of(offset, buf.len() as u64)?;
        if buf.is_empty() {
            return Ok(());
        }
        {
            let len = self.storage.len.read();
            if end <= *len {
                self.storage.write(buf, offset);
                return Ok(());
            }
        }
        // Readers are kept out until the bytes are there: a longer device with a gap is never seen.
        let mut len = self.storage.len.write();
        self.storage.write(buf, offset);
        *len = end.max(*len);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = end_of(offset, len)?;
        if len > 0 {
            let mut current = self.storage.len.write();
            *current = end.max(*current);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        end_of(len, 0)?;
        let mut current = self.storage.len.write();
        if len < *current {
            self.storage.shrink(*current, len);
        }
        *current = len;
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = end_of(offset, len)?;
        let current = self.storage.len.read();
        let end = end.min(*current);
        if offset < end {
            self.storage.zero(offset, end - offset);
        }
        Ok(())
    }

    fn lock(&self) -> io::Result<bool> {
        if self.holds_lock.load(Ordering::Acquire) {
            return Ok(true);
        }
        let taken =
            self.storage.locked.compare_exchange(false, true, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if taken {
            self.holds_lock.store(true, Ordering::Release);
        }
        Ok(taken)
    }

    fn drop_cache(&self) -> io::Result<()> {
        Ok(())
    }
}

fn new_page() -> Box<[u8]> {
    vec![0; PAGE as usize].into_boxed_slice()
}

/// The same limit as files have, so that a pool behaves alike on both.
fn end_of(offset: u64, len: u64) -> io::Result<u64> {
    match offset.checked_add(len) {
        Some(end) if end <= i64::MAX as u64 => Ok(end),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "the range passes the largest offset")),
    }
}

/// The pages that a range touches, each with the part of it that the range covers.
fn pages(offset: u64, len: u64) -> impl Iterator<Item = (u64, Range<usize>)> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let page = at / PAGE;
        let stop = end.min((page + 1) * PAGE);
        let inside = (at - page * PAGE) as usize..(stop - page * PAGE) as usize;
        at = stop;
        Some((page, inside))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(device: &MemoryDevice, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut buf = vec![0xee; len];
        device.read_at(&mut buf, offset).map(|()| buf)
    }

    #[test]
    fn writes_across_pages_are_read_back_and_gaps_are_zero() {
        let device = MemoryDevice::new();
        assert!(device.is_empty().unwrap());
        let data: Vec<u8> = (0..200_000_u32).map(|i| (i % 251) as u8).collect();
        device.write_at(&data, 100_000).unwrap();
        assert_eq!(device.len().unwrap(), 300_000);
        assert_eq!(read(&device, 100_000, 200_000).unwrap(), data);
        assert_eq!(read(&device, 0, 100_000).unwrap(), vec![0; 100_000]);
        assert_eq!(read(&device, 299_999, 2).unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "D3");
        assert!(read(&device, u64::MAX, 2).is_err());
        let bytes = device.snapshot_bytes();
        assert_eq!(bytes[100_000..], data);
        assert_eq!(MemoryDevice::from_bytes(bytes.clone()).snapshot_bytes(), bytes);
    }

    #[test]
    fn shrunk_and_grown_again_reads_zero() {
        let device = MemoryDevice::from_bytes(vec![5; 3 * PAGE as usize]);
        device.set_len(PAGE + 10).unwrap();
        assert_eq!(device.resident_bytes(), 2 * PAGE);
        device.set_len(1 << 40).unwrap();
        assert_eq!(read(&device, PAGE, 12).unwrap(), [5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 0, 0]);
        assert_eq!(read(&device, 2 * PAGE, 1).unwrap(), [0]);
        device.set_len(0).unwrap();
        assert_eq!(device.resident_bytes(), 0);
    }

    #[test]
    fn discard_zeroes_and_gives_whole_pages_back() {
        let device = MemoryDevice::from_bytes(vec![5; 4 * PAGE as usize]);
        device.discard(PAGE - 1, 2 * PAGE).unwrap();
        assert_eq!(device.resident_bytes(), 3 * PAGE);
        assert_eq!(read(&device, PAGE - 2, 2).unwrap(), [5, 0]);
        assert_eq!(read(&device, 3 * PAGE - 2, 2).unwrap(), [0, 5]);
        device.discard(0, u64::MAX / 4).unwrap();
        assert_eq!(device.len().unwrap(), 4 * PAGE);
        assert_eq!(device.resident_bytes(), 0);
    }

    #[test]
    fn allocate_extends_and_never_shortens() {
        let device = MemoryDevice::new();
        device.allocate(10, 90).unwrap();
        device.allocate(0, 10).unwrap();
        assert_eq!(device.len().unwrap(), 100);
    }

    #[test]
    fn lock_belongs_to_one_handle_and_goes_with_it() {
        let first = MemoryDevice::new();
        let second = first.share();
        assert!(first.lock().unwrap());
        assert!(first.lock().unwrap(), "taking it twice is harmless");
        assert!(!second.lock().unwrap());
        drop(second);
        let third = first.clone();
        assert!(!third.lock().unwrap(), "a handle without the lock does not release it");
        drop(first);
        assert!(third.lock().unwrap());
    }
}
