//! The stored checksums of data blocks, for what leaves the pool with them.
//!
//! The checksum of a block is computed once, when it is written. What is sent elsewhere takes it along, so that
//! it still protects the bytes on the other side.

use super::engine::Engine;
use super::object::Object;
use crate::error::{Error, Result, Violation};
use crate::extent::{Found, walk};
use crate::units::{BlockAddr, MAX_RUN_BLOCKS};

impl Engine {
    /// Adds the checksums of whole blocks from `lba` on, all of which the map names as data. The map must stand
    /// still: that of a snapshot, or of an ephemeral copy.
    pub(crate) fn sums(&self, object: &Object, lba: u64, blocks: u64, sums: &mut Vec<u32>) -> Result<()> {
        let (mut at, end) = (lba, lba + blocks);
        while at < end {
            let (block, stop) = match self.find(object, at)? {
                Found::Extent(e) if e.block().is_some() => {
                    (e.block().map_or(0, |block| block + (at - e.lba)), e.end().min(end))
                }
                _ => {
                    return Err(Error::invalid("lba", Violation::Range, format!("block {at} holds no data")));
                }
            };
            self.sums_of(BlockAddr::new(block), stop - at, |sum| sums.push(sum))?;
            at = stop;
        }
        Ok(())
    }

    fn sums_of(&self, first: BlockAddr, blocks: u64, mut each: impl FnMut(u32)) -> Result<()> {
        // An extent lies within one chunk (E2), hence in one page; a damaged one is refused there.
        let blocks = blocks.min(MAX_RUN_BLOCKS) as usize;
        let (page, index) = self.page_of(first, blocks)?;
        (index..index + blocks).for_each(|i| each(page.get(i)));
        Ok(())
    }

    /// Shows every block of data that the map of `object` names: its LBA and its checksum. Reads metadata only.
    /// The map must stand still.
    pub(crate) fn each_sum(&self, object: &Object, each: &mut dyn FnMut(u64, u32)) -> Result<()> {
        self.usable()?;
        walk::each_extent(&self.store, &object.map_snapshot(), &mut |e| {
            let Some(block) = e.block() else { return Ok(()) };
            let mut lba = e.lba;
            self.sums_of(BlockAddr::new(block), e.len(), |sum| {
                each(lba, sum);
                lba += 1;
            })
        })
    }
}
