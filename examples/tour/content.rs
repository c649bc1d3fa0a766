//! What a volume or snapshot must hold: the image, and over it the blocks that were written since.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use snapvol::{Disk, Pool, SnapshotId, VolumeId};
use xxhash_rust::xxh3::Xxh3;

use super::Outcome;

pub(crate) const BLOCK: u64 = 4096;
const PIECE: u64 = 1 << 20;

/// A copy costs a pointer for each block that was written.
#[derive(Clone)]
pub(crate) struct Content {
    image: Arc<File>,
    image_bytes: u64,
    size_bytes: u64,
    written: BTreeMap<u64, Arc<[u8]>>,
}

impl Content {
    pub(crate) fn of_file(file: File) -> Outcome<Self> {
        let image_bytes = file.metadata()?.len();
        let size_bytes = image_bytes.next_multiple_of(BLOCK).max(BLOCK);
        Ok(Self { image: Arc::new(file), image_bytes, size_bytes, written: BTreeMap::new() })
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub(crate) fn extend(&mut self, size_bytes: u64) {
        self.size_bytes = size_bytes;
    }

    /// Fills `buf` from a block boundary on; behind the image it is zero.
    pub(crate) fn read(&self, buf: &mut [u8], offset: u64) -> Outcome<()> {
        buf.fill(0);
        let there = self.image_bytes.saturating_sub(offset).min(buf.len() as u64) as usize;
        self.image.read_exact_at(&mut buf[..there], offset)?;
        let blocks = offset / BLOCK..(offset + buf.len() as u64).div_ceil(BLOCK);
        for (block, bytes) in self.written.range(blocks) {
            let at = (block * BLOCK - offset) as usize;
            let part = bytes.len().min(buf.len() - at);
            buf[at..at + part].copy_from_slice(&bytes[..part]);
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8], offset: u64) -> Outcome<()> {
        let mut at = 0;
        while at < bytes.len() {
            let place = offset + at as u64;
            let (block, inside) = (place / BLOCK, (place % BLOCK) as usize);
            let part = (bytes.len() - at).min(BLOCK as usize - inside);
            let mut whole = vec![0; BLOCK as usize];
            self.read(&mut whole, block * BLOCK)?;
            whole[inside..inside + part].copy_from_slice(&bytes[at..at + part]);
            self.written.insert(block, whole.into());
            at += part;
        }
        Ok(())
    }

    /// XXH3-64 of all bytes.
    pub(crate) fn checksum(&self) -> Outcome<u64> {
        checksum(self.size_bytes, |buf, offset| self.read(buf, offset))
    }
}

/// XXH3-64 of all bytes of a disk.
pub(crate) fn checksum_of(disk: &Disk) -> Outcome<u64> {
    checksum(disk.size_bytes(), |buf, offset| Ok(disk.read_at(buf, offset)?))
}

fn checksum(size: u64, mut read: impl FnMut(&mut [u8], u64) -> Outcome<()>) -> Outcome<u64> {
    let mut hash = Xxh3::new();
    let mut buf = vec![0; PIECE as usize];
    for offset in (0..size).step_by(PIECE as usize) {
        let buf = &mut buf[..PIECE.min(size - offset) as usize];
        read(buf, offset)?;
        hash.update(buf);
    }
    Ok(hash.digest())
}

/// Compares a diff with the two contents: every block that differs lies in a changed range, and no range lies where
/// nothing was written. Returns the number of ranges and of bytes in them.
pub(crate) fn diff_is_right(
    pool: &Pool,
    from: SnapshotId,
    from_content: &Content,
    to: VolumeId,
    to_content: &Content,
) -> Outcome<(usize, u64)> {
    let (mut ranges, mut bytes) = (0, 0);
    let mut unseen = to_content.written.clone();
    for change in pool.diff(from, to)? {
        let range = change?.range;
        ranges += 1;
        bytes += range.end - range.start;
        for block in range.start / BLOCK..range.end / BLOCK {
            if unseen.remove(&block).is_none() {
                return Err(format!("the diff names block {block}, which nobody wrote").into());
            }
        }
    }
    let mut old = vec![0; BLOCK as usize];
    for (block, new) in unseen {
        from_content.read(&mut old, block * BLOCK)?;
        if old[..] != new[..] {
            return Err(format!("block {block} differs and the diff does not name it").into());
        }
    }
    Ok((ranges, bytes))
}

/// Writes the same to a disk and to what the disk must hold. Equal seeds write equal bytes.
pub(crate) struct Writer(u64);

impl Writer {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(len);
        bytes
    }

    fn write(&mut self, disk: &Disk, content: &mut Content, offset: u64, len: u64) -> Outcome<()> {
        let len = len.min(content.size_bytes() - offset);
        let bytes = self.bytes(len as usize);
        disk.write_at(&bytes, offset)?;
        content.write(&bytes, offset)
    }

    /// Random whole blocks.
    pub(crate) fn blocks(&mut self, disk: &Disk, content: &mut Content, count: u64) -> Outcome<()> {
        for _ in 0..count {
            let block = self.next() % (content.size_bytes() / BLOCK);
            self.write(disk, content, block * BLOCK, BLOCK)?;
        }
        Ok(())
    }

    /// Random pieces of any offset and up to 9,000 bytes.
    pub(crate) fn pieces(&mut self, disk: &Disk, content: &mut Content, count: u64) -> Outcome<()> {
        for _ in 0..count {
            let (offset, len) = (self.next() % content.size_bytes(), self.next() % 9_000 + 1);
            self.write(disk, content, offset, len)?;
        }
        Ok(())
    }

    /// Random ranges of up to 16 blocks that read zero afterwards: discarded or zeroed.
    pub(crate) fn zeroes(&mut self, disk: &Disk, content: &mut Content, count: u64) -> Outcome<()> {
        let blocks = content.size_bytes() / BLOCK;
        for _ in 0..count {
            let from = self.next() % blocks;
            let len = (self.next() % 16 + 1).min(blocks - from) * BLOCK;
            if self.next().is_multiple_of(2) {
                disk.discard(from * BLOCK, len)?;
            } else {
                disk.write_zeroes(from * BLOCK, len)?;
            }
            content.write(&vec![0; len as usize], from * BLOCK)?;
        }
        Ok(())
    }

    /// Some pieces behind `from`, the last of them at the very end.
    pub(crate) fn tail(&mut self, disk: &Disk, content: &mut Content, from: u64) -> Outcome<()> {
        let space = content.size_bytes() - from;
        for _ in 0..50 {
            let offset = from + self.next() % space;
            self.write(disk, content, offset, 20_000)?;
        }
        self.write(disk, content, content.size_bytes() - 10, 10)
    }
}
