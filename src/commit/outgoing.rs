//! Metadata blocks of a checkpoint on their way to the device: neighbours leave together, and no more wait in
//! memory than one batch, however large the checkpoint is.
//!
//! What is written here lies in blocks that are free in the durable checkpoint (A1): until the superblock
//! names it, it is as if it had not been written.

use std::sync::atomic::Ordering;

use super::engine::{Engine, io};
use crate::alloc::Sink;
use crate::error::Result;
use crate::memory;
use crate::units::{BLOCK, BlockAddr};

/// Consecutive metadata blocks that leave in one write: 1 MiB.
const WRITE_BLOCKS: usize = 256;
/// Blocks that wait for neighbours: 4 MiB.
const BATCH: usize = 1024;

pub(super) struct Outgoing<'a> {
    engine: &'a Engine,
    waiting: Vec<(BlockAddr, Box<[u8; BLOCK]>)>,
}

impl<'a> Outgoing<'a> {
    pub(super) fn new(engine: &'a Engine) -> Self {
        Self { engine, waiting: Vec::new() }
    }

    /// Writes what is left. Durable after the next sync.
    pub(super) fn finish(mut self) -> Result<()> {
        self.write()
    }

    fn write(&mut self) -> Result<()> {
        let mut batch = std::mem::take(&mut self.waiting);
        batch.sort_unstable_by_key(|(addr, _)| *addr);
        let mut run: Vec<u8> = memory::with_room(WRITE_BLOCKS.min(batch.len()) * BLOCK)?;
        for together in batch.chunk_by(|(a, _), (b, _)| *a + 1 == *b) {
            for piece in together.chunks(WRITE_BLOCKS) {
                run.clear();
                piece.iter().for_each(|(_, block)| run.extend_from_slice(&block[..]));
                let offset = piece[0].0.byte_offset();
                let wrote = self.engine.device.write_at(&run, offset);
                wrote.map_err(io("write", offset, run.len() as u64))?;
            }
        }
        let bytes = (batch.len() * BLOCK) as u64;
        self.engine.counters.checkpoint_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }
}

impl Sink for Outgoing<'_> {
    fn put(&mut self, at: BlockAddr, block: Box<[u8; BLOCK]>) -> Result<()> {
        self.waiting.push((at, block));
        if self.waiting.len() < BATCH { Ok(()) } else { self.write() }
    }
}
