//! A simulated device that keeps metadata and forgets data: stamped blocks are drawn again when they are read.
//!
//! Metadata lies in a sparse file at its own offsets. Of a stamped block only address and version are kept, as one
//! word in a second file. So a pool of a TiB takes a few GiB on the host and next to nothing of this process's memory,
//! and what the process takes is the engine's.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use snapvol::device::Device;

use crate::stamp::{BLOCK, BLOCK_BYTES, recognise, redraw};

/// Bytes of a block's code. Zero: the block is in the metadata file. Otherwise address + 1 and version.
const CODE: usize = 8;
const VERSION_BITS: u32 = 24;

pub(crate) struct Stamps {
    metadata: File,
    codes: File,
    len: AtomicU64,
    reads: Arc<AtomicU64>,
}

impl Stamps {
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        Self::open_with(path, OpenOptions::new().create_new(true))
    }

    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Self::open_with(path, &mut OpenOptions::new())
    }

    fn open_with(path: &Path, options: &mut OpenOptions) -> io::Result<Self> {
        let options = options.read(true).write(true);
        let metadata = options.open(path)?;
        let codes = options.open(path.with_extension("codes"))?;
        let len = AtomicU64::new(metadata.metadata()?.len());
        Ok(Self { metadata, codes, len, reads: Arc::default() })
    }

    /// Counts the calls that read.
    pub(crate) fn reads(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.reads)
    }

    fn codes(&self, first: u64, count: usize) -> io::Result<Vec<u64>> {
        let mut bytes = vec![0; count * CODE];
        self.codes.read_exact_at(&mut bytes, first * CODE as u64)?;
        let words = bytes.as_chunks::<CODE>().0;
        Ok(words.iter().map(|word| u64::from_le_bytes(*word)).collect())
    }

    fn read_blocks(&self, buf: &mut [u8], first: u64) -> io::Result<()> {
        let codes = self.codes(first, buf.len() / BLOCK)?;
        for run in runs(&codes) {
            let part = &mut buf[run.start * BLOCK..run.end * BLOCK];
            if codes[run.start] == 0 {
                self.metadata.read_exact_at(part, (first + run.start as u64) * BLOCK_BYTES)?;
                continue;
            }
            for (code, block) in codes[run].iter().zip(part.chunks_exact_mut(BLOCK)) {
                let version = (code & ((1 << VERSION_BITS) - 1)) as u32;
                redraw((code >> VERSION_BITS) - 1, version, block);
            }
        }
        Ok(())
    }
}

fn code_of(block: &[u8]) -> u64 {
    match recognise(block) {
        Some((lba, version)) => (lba + 1) << VERSION_BITS | u64::from(version),
        None => 0,
    }
}

/// Neighbours that are all metadata or all data.
fn runs(codes: &[u64]) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    codes.chunk_by(|a, b| (*a == 0) == (*b == 0)).map(move |run| {
        let start = at;
        at += run.len();
        start..at
    })
}

impl Device for Stamps {
    fn len(&self) -> io::Result<u64> {
        Ok(self.len.load(Ordering::Acquire))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset + buf.len() as u64;
        if end > self.len()? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.reads.fetch_add(1, Ordering::Relaxed);
        let (first, last) = (offset / BLOCK_BYTES, end.div_ceil(BLOCK_BYTES));
        if offset.is_multiple_of(BLOCK_BYTES) && end.is_multiple_of(BLOCK_BYTES) {
            return self.read_blocks(buf, first);
        }
        let mut whole = vec![0; (last - first) as usize * BLOCK];
        self.read_blocks(&mut whole, first)?;
        let start = (offset - first * BLOCK_BYTES) as usize;
        buf.copy_from_slice(&whole[start..start + buf.len()]);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        if !offset.is_multiple_of(BLOCK_BYTES) || !buf.len().is_multiple_of(BLOCK) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "this device takes whole blocks"));
        }
        let first = offset / BLOCK_BYTES;
        let codes: Vec<u64> = buf.chunks_exact(BLOCK).map(code_of).collect();
        for run in runs(&codes).filter(|run| codes[run.start] == 0) {
            let part = &buf[run.start * BLOCK..run.end * BLOCK];
            self.metadata.write_all_at(part, (first + run.start as u64) * BLOCK_BYTES)?;
        }
        let bytes: Vec<u8> = codes.iter().flat_map(|code| code.to_le_bytes()).collect();
        self.codes.write_all_at(&bytes, first * CODE as u64)?;
        let end = offset + buf.len() as u64;
        if end > self.len()? { self.set_len(end) } else { Ok(()) }
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        if offset + len > self.len()? { self.set_len(offset + len) } else { Ok(()) }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.codes.set_len(len.div_ceil(BLOCK_BYTES) * CODE as u64)?;
        // Readers of whole blocks must find the end of the last one.
        self.metadata.set_len(len.next_multiple_of(BLOCK_BYTES))?;
        self.len.store(len, Ordering::Release);
        Ok(())
    }

    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn lock(&self) -> io::Result<bool> {
        Ok(true)
    }

    fn drop_cache(&self) -> io::Result<()> {
        Ok(())
    }
}
