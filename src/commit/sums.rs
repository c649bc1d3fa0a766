//! The stored checksums of data blocks, for what leaves the pool with them.
//!
//! The checksum of a block is computed once, when it is written. What is sent elsewhere takes it along, so that
//! it still protects the bytes on the other side. What a base does not have yet gets its checksum when it is read.

use super::engine::Engine;
use super::lower::{BRING_BLOCKS, Shown};
use super::object::Object;
use crate::error::{Error, Result, Violation};
use crate::extent::{END, walk};
use crate::format::block_crc;
use crate::memory;
use crate::units::{BLOCK, BLOCK_BYTES, BlockAddr, MAX_RUN_BLOCKS};

impl Engine {
    /// Adds the checksums of whole blocks from `lba` on, all of which the map shows as data. The map must stand
    /// still: that of a snapshot, or of an ephemeral copy.
    pub(crate) fn sums(&self, object: &Object, lba: u64, blocks: u64, sums: &mut Vec<u32>) -> Result<()> {
        let (mut at, end) = (lba, lba + blocks);
        while at < end {
            let (shown, stop) = self.show(object, at)?;
            let stop = stop.min(end);
            match shown {
                Shown::Data(addr) => self.sums_of(addr, stop - at, |sum| sums.push(sum))?,
                Shown::Outside(_) => self.sums_outside(object, at, stop, &mut |_, sum| sums.push(sum))?,
                // Zeroes of a base were data until it was known what they are.
                Shown::Zero if object.base().is_some() => {
                    sums.extend(std::iter::repeat_n(block_crc(&[0; BLOCK]), (stop - at) as usize));
                }
                Shown::Zero | Shown::Hole => {
                    return Err(Error::invalid("lba", Violation::Range, format!("block {at} holds no data")));
                }
            }
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

    /// Checksums of what has to be read for that.
    fn sums_outside(
        &self,
        object: &Object,
        from: u64,
        to: u64,
        each: &mut dyn FnMut(u64, u32),
    ) -> Result<()> {
        let mut bytes = memory::filled(0, (to - from).min(BRING_BLOCKS) as usize * BLOCK)?;
        let mut lba = from;
        while lba < to {
            bytes.truncate((to - lba).min(BRING_BLOCKS) as usize * BLOCK);
            self.read(object, lba * BLOCK_BYTES, &mut bytes)?;
            (lba..).zip(bytes.chunks_exact(BLOCK)).for_each(|(lba, block)| each(lba, block_crc(block)));
            lba += (bytes.len() / BLOCK) as u64;
        }
        Ok(())
    }

    /// Shows every block of data that `object` shows: its LBA and its checksum. Reads metadata only, but for what
    /// a base does not have yet. The map must stand still.
    pub(crate) fn each_sum(&self, object: &Object, each: &mut dyn FnMut(u64, u32)) -> Result<()> {
        self.usable()?;
        if object.base().is_some() {
            return self.each_sum_shown(object, each);
        }
        walk::each_extent(&self.store, &object.map_snapshot(), &mut |e| {
            let Some(block) = e.block() else { return Ok(()) };
            let mut lba = e.lba;
            self.sums_of(BlockAddr::new(block), e.len(), |sum| {
                each(lba, sum);
                lba += 1;
            })
        })
    }

    fn each_sum_shown(&self, object: &Object, each: &mut dyn FnMut(u64, u32)) -> Result<()> {
        let mut at = 0;
        while at < END {
            let (shown, end) = self.show(object, at)?;
            let mut lba = at;
            match shown {
                Shown::Data(addr) => self.sums_of(addr, end - at, |sum| {
                    each(lba, sum);
                    lba += 1;
                })?,
                Shown::Outside(_) => self.sums_outside(object, at, end, each)?,
                Shown::Zero | Shown::Hole => {}
            }
            at = end;
        }
        Ok(())
    }
}
