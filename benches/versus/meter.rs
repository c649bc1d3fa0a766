//! A pool file that watches how long the runs are which the engine writes at once.

use std::io::{self, IoSlice, IoSliceMut};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use snapvol::device::{Device, FileDevice};

/// Writes since the last look.
#[derive(Default)]
pub(crate) struct Runs {
    calls: AtomicU64,
    bytes: AtomicU64,
    longest: AtomicU64,
}

/// Mean and longest run of one period, in bytes.
#[derive(Clone, Copy)]
pub(crate) struct RunBytes {
    pub(crate) mean: f64,
    pub(crate) longest: f64,
}

impl Runs {
    pub(crate) fn take(&self) -> RunBytes {
        let take = |counter: &AtomicU64| counter.swap(0, Ordering::Relaxed) as f64;
        RunBytes { mean: take(&self.bytes) / take(&self.calls).max(1.0), longest: take(&self.longest) }
    }

    fn add(&self, bytes: u64) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.longest.fetch_max(bytes, Ordering::Relaxed);
    }
}

pub(crate) struct Meter {
    file: FileDevice,
    runs: Arc<Runs>,
}

impl Meter {
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        Ok(Self { file: FileDevice::create(path)?, runs: Arc::default() })
    }

    pub(crate) fn runs(&self) -> Arc<Runs> {
        Arc::clone(&self.runs)
    }
}

impl Device for Meter {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.runs.add(buf.len() as u64);
        self.file.write_at(buf, offset)
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<()> {
        self.file.read_vectored_at(bufs, offset)
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.runs.add(bufs.iter().map(|buf| buf.len() as u64).sum());
        self.file.write_vectored_at(bufs, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.allocate(offset, len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.discard(offset, len)
    }

    fn lock(&self) -> io::Result<bool> {
        self.file.lock()
    }

    fn drop_cache(&self) -> io::Result<()> {
        self.file.drop_cache()
    }

    fn can_grow(&self) -> bool {
        self.file.can_grow()
    }
}
