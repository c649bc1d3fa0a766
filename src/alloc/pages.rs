//! The pages that describe a data chunk: how often its blocks are named, and their checksums.

use std::sync::{Arc, OnceLock};

use super::Bits;
use super::space::Space;
use crate::error::{Corruption, Result};
use crate::format::chunk::{ChunkEntry, Counts, PageRef};
use crate::format::{BlockKind, block_crc, page_sum};
use crate::memory;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::trace::event;
use crate::units::{BLOCK, BlockAddr, MAX_RUN_BLOCKS};

/// Blocks read at once when a checksum page is computed from the data.
const REBUILD_BLOCKS: usize = 64;
/// CRC-32 of every block of one data chunk. Blocks that nothing names have meaningless entries in memory,
/// and zero on the medium (A7).
pub(crate) struct ChecksumPage {
    crcs: [std::sync::atomic::AtomicU32; MAX_RUN_BLOCKS as usize],
    /// Where blocks lie in the run buffers, from the first time that one does; 0 is nowhere.
    places: OnceLock<Box<[AtomicU32]>>,
}

impl ChecksumPage {
    pub(crate) fn zeroed() -> Self {
        Self {
            crcs: [const { std::sync::atomic::AtomicU32::new(0) }; MAX_RUN_BLOCKS as usize],
            places: OnceLock::new(),
        }
    }
    /// Place of a block in the run buffers, or 0.
    #[inline]
    pub(crate) fn place(&self, i: usize) -> u32 {
        self.places.get().map_or(0, |places| places[i].load(Ordering::Acquire))
    }
    /// The block lies at this place in the run buffers from now on.
    pub(crate) fn enter(&self, i: usize, place: u32) {
        let places = self.places.get_or_init(|| (0..MAX_RUN_BLOCKS).map(|_| AtomicU32::new(0)).collect());
        places[i].store(place, Ordering::Release);
    }
    /// The place is about to be used for another block.
    pub(crate) fn leave(&self, i: usize, place: u32) {
        if let Some(places) = self.places.get() {
            // Where the block has been written again since, it lies elsewhere.
            let _ = places[i].compare_exchange(place, 0, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
    pub(crate) fn decode(page: &[u8; BLOCK]) -> Self {
        let this = Self::zeroed();
        for (slot, bytes) in this.crcs.iter().zip(page.chunks_exact(4)) {
            slot.store(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]), Ordering::Relaxed);
        }
        this
    }
    /// The page of a checkpoint in which the blocks have these counts.
    pub(crate) fn encode(&self, counts: &Counts, page: &mut [u8; BLOCK]) {
        for (i, bytes) in page.chunks_exact_mut(4).enumerate() {
            let counted = i < counts.blocks() && counts.get(i) > 0;
            let crc = if counted { self.get(i) } else { 0 };
            bytes.copy_from_slice(&crc.to_le_bytes());
        }
    }
    #[inline]
    pub(crate) fn get(&self, i: usize) -> u32 {
        self.crcs[i].load(Ordering::Acquire)
    }
    #[inline]
    pub(crate) fn set(&self, i: usize, crc: u32) {
        self.crcs[i].store(crc, Ordering::Release);
    }
}

impl Space {
    /// Counts of a chunk in the last durable checkpoint.
    pub(crate) fn counts_of(&self, e: &ChunkEntry) -> Result<Counts> {
        let blocks = self.geometry.blocks_per_chunk as usize;
        let Some(page) = e.counts else { return Ok(Counts::uniform(blocks, e.uniform)) };
        if let Some(counts) = self.store.page::<Counts>(page.addr.raw(), page.sum) {
            return Ok(Counts::clone(&counts));
        }
        let bytes = self.read_page(page, BlockKind::Counts)?;
        let counts = Counts::decode(&bytes, e.width, blocks, page.addr)?;
        self.store.keep(page.addr.raw(), page.sum, counts.memory_bytes(), Arc::new(counts.clone()));
        Ok(counts)
    }

    /// Reads a page: either copy whose checksum is right.
    pub(crate) fn read_page(&self, page: PageRef, kind: BlockKind) -> Result<Box<[u8; BLOCK]>> {
        let first = match self.read_copy(page, page.addr, kind) {
            Ok(bytes) => return Ok(bytes),
            Err(e) => e,
        };
        let Some(Ok(bytes)) = page.twin.map(|twin| self.read_copy(page, twin, kind)) else {
            return Err(first);
        };
        self.store.second_copies.fetch_add(1, Ordering::Relaxed);
        Ok(bytes)
    }

    /// Reads the copy of a page that lies at `at`.
    pub(crate) fn read_copy(
        &self,
        page: PageRef,
        at: BlockAddr,
        kind: BlockKind,
    ) -> Result<Box<[u8; BLOCK]>> {
        let bytes = self.store.read_block(at, kind.name())?;
        let sum = page_sum(&bytes[..], &self.store.uuid, kind, page.addr);
        if sum != page.sum {
            let (want, got) = (format!("{:#x}", page.sum), format!("{sum:#x}"));
            return Err(Corruption::new(kind.name(), at.raw(), "checksum", want, got).into());
        }
        Ok(bytes)
    }

    /// The checksums of a chunk as the durable checkpoint has them; computed from the data where their page
    /// is damaged, which the next checkpoint then writes anew.
    pub(crate) fn stored_checksums(&self, chunk: u64, e: &ChunkEntry) -> Result<ChecksumPage> {
        let Some(page) = e.checksums else { return Ok(ChecksumPage::zeroed()) };
        let damage = match self.read_page(page, BlockKind::Checksums) {
            Ok(bytes) => return Ok(ChecksumPage::decode(&bytes)),
            Err(e) => e,
        };
        let built = self.rebuild_checksums(chunk, e, page).ok_or(damage)?;
        self.rewrite_soon(chunk);
        Ok(built)
    }

    /// Computes a checksum page from the data that it is about. The page's own checksum tells whether all of
    /// that data is what it was (A7); if it is not, there is no telling which block is wrong.
    fn rebuild_checksums(&self, chunk: u64, e: &ChunkEntry, page: PageRef) -> Option<ChecksumPage> {
        let counts = self.counts_of(e).ok()?;
        let start = self.geometry.chunk_start(chunk);
        let built = ChecksumPage::zeroed();
        let mut buf = memory::filled(0, REBUILD_BLOCKS * BLOCK).ok()?;
        for (at, len) in Bits::used_in(&counts).runs() {
            for at in (at..at + len).step_by(REBUILD_BLOCKS).map(|i| i..(i + REBUILD_BLOCKS).min(at + len)) {
                let data = &mut buf[..at.len() * BLOCK];
                self.store.device.read_at(data, (start + at.start as u64).byte_offset()).ok()?;
                at.zip(data.chunks_exact(BLOCK)).for_each(|(i, block)| built.set(i, block_crc(block)));
            }
        }
        let mut bytes = [0; BLOCK];
        built.encode(&counts, &mut bytes);
        let sum = page_sum(&bytes, &self.store.uuid, BlockKind::Checksums, page.addr);
        (sum == page.sum).then(|| {
            self.store.rebuilt_pages.fetch_add(1, Ordering::Relaxed);
            event!(chunk, "checksum page computed from the data");
            built
        })
    }
}
