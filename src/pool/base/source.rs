//! What the opener hands over, and how it is read.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::commit::{BRING_BLOCKS, Outside};
use crate::error::{Error, Result};
use crate::image::ImageSource;
use crate::units::{BLOCK_BYTES, BaseId};

use super::checksums::{BaseChecksums, PIECE_BLOCKS};

const _: () = assert!(BRING_BLOCKS.is_multiple_of(PIECE_BLOCKS));

/// An external base as the opener hands it over: an image, and what is known of it.
#[must_use]
pub struct BaseSource {
    pub(super) source: Arc<dyn ImageSource>,
    pub(super) checksums: Option<BaseChecksums>,
    pub(super) id: Option<BaseId>,
}

impl BaseSource {
    /// An image, of which nothing is known.
    pub fn new(source: impl ImageSource + 'static) -> Self {
        Self { source: Arc::new(source), checksums: None, id: None }
    }

    /// Checksums of all its content: whatever differs from them is never shown.
    pub fn checksums(mut self, checksums: BaseChecksums) -> Self {
        self.checksums = Some(checksums);
        self
    }

    /// The id that a new base is to have, in place of a fresh one.
    pub fn id(mut self, id: BaseId) -> Self {
        self.id = Some(id);
        self
    }

    /// Reads all of it. Returns the digest of the checksums.
    pub(super) fn compute_checksums(&mut self) -> Result<u128> {
        let made = BaseChecksums::of(&*self.source, |_| ControlFlow::Continue(()))?;
        let digest = made.digest();
        self.checksums = Some(made);
        Ok(digest)
    }
}

impl<S: ImageSource + 'static> From<S> for BaseSource {
    fn from(source: S) -> Self {
        Self::new(source)
    }
}

impl std::fmt::Debug for BaseSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BaseSource").field("size_bytes", &self.source.size_bytes()).finish_non_exhaustive()
    }
}

pub(super) fn read(source: &dyn ImageSource, out: &mut [u8], offset: u64) -> Result<()> {
    let len = out.len() as u64;
    source.read_at(out, offset).map_err(|source| Error::Io { op: "read of the base", offset, len, source })
}

/// A base as a map sees it.
pub(super) struct Feed {
    source: BaseSource,
    /// As the pool knows it, whatever the source says later.
    size_bytes: u64,
}

impl Feed {
    pub(super) fn new(source: BaseSource, size_bytes: u64) -> Self {
        Self { source, size_bytes }
    }
}

impl Outside for Feed {
    fn piece_blocks(&self) -> u64 {
        if self.source.checksums.is_some() { PIECE_BLOCKS } else { 1 }
    }

    fn read(&self, out: &mut [u8], offset: u64) -> Result<()> {
        let there = self.size_bytes.saturating_sub(offset).min(out.len() as u64);
        let (now, behind) = out.split_at_mut(there as usize);
        behind.fill(0);
        if !now.is_empty() {
            read(&*self.source.source, now, offset)?;
        }
        self.source.checksums.as_ref().map_or(Ok(()), |sums| sums.verify(out, offset))
    }

    fn zeroes_until(&self, lba: u64) -> Result<u64> {
        if self.source.checksums.is_some() {
            // What the source says about its holes is as good as its bytes: only what was read counts.
            return Ok(lba);
        }
        let offset = lba * BLOCK_BYTES;
        let op = "search of the base";
        let found = self.source.source.next_data(offset);
        let found = found.map_err(|source| Error::Io { op, offset, len: 0, source })?;
        Ok(found.map_or(u64::MAX, |range| range.start.max(offset)) / BLOCK_BYTES)
    }
}
