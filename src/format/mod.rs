//! Pure codecs: what each structure looks like in bytes, and nothing else.
//!
//! Everything is little-endian. Each structure has one `encode` and one `decode`, side by side, with
//! its byte table above. Reserved bytes are written as zero and checked on reading.
//!
//! - F1 `decode(encode(x)) == x` for every lawful `x`.
//! - F2 `decode` never panics and never allocates more than its input is long, whatever the input.
//! - F3 The pool's UUID, the structure's kind and its own address enter every checksum, so a block
//!   that is stale in place or copied from elsewhere does not verify.

use crate::error::Corruption;
use crate::units::{BLOCK, BlockAddr, MAX_BLOCK_ADDR};

pub(crate) mod chunk;
pub(crate) mod node;
pub(crate) mod record;
pub(crate) mod superblock;

/// Sequential reader over bytes that may be anything.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    structure: &'static str,
    block: u64,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8], structure: &'static str, block: u64) -> Self {
        Self { bytes, at: 0, structure, block }
    }
    pub(crate) fn bad(
        &self,
        field: &'static str,
        expected: impl ToString,
        found: impl ToString,
    ) -> Corruption {
        Corruption::new(self.structure, self.block, field, expected, found)
    }
    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], Corruption> {
        match self.at.checked_add(len).filter(|end| *end <= self.bytes.len()) {
            Some(end) => {
                let out = &self.bytes[self.at..end];
                self.at = end;
                Ok(out)
            }
            None => Err(self.bad("length", format!("{len} more bytes"), self.bytes.len() - self.at)),
        }
    }
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Corruption> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }
    pub(crate) fn u8(&mut self) -> Result<u8, Corruption> {
        Ok(self.array::<1>()?[0])
    }
    pub(crate) fn u16(&mut self) -> Result<u16, Corruption> {
        self.array().map(u16::from_le_bytes)
    }
    pub(crate) fn u32(&mut self) -> Result<u32, Corruption> {
        self.array().map(u32::from_le_bytes)
    }
    pub(crate) fn u64(&mut self) -> Result<u64, Corruption> {
        self.array().map(u64::from_le_bytes)
    }
    pub(crate) fn u48(&mut self) -> Result<u64, Corruption> {
        let six = self.array::<6>()?;
        let mut eight = [0; 8];
        eight[..6].copy_from_slice(&six);
        Ok(u64::from_le_bytes(eight))
    }
    pub(crate) fn zeroes(&mut self, len: usize) -> Result<(), Corruption> {
        // Without a way out in the middle the loop is done many bytes at a time: most blocks are mostly reserved.
        if self.take(len)?.iter().fold(0, |all, b| all | b) != 0 {
            return Err(self.bad("reserved bytes", "zero", "non-zero"));
        }
        Ok(())
    }
    pub(crate) fn rest(&self) -> usize {
        self.bytes.len() - self.at
    }
    /// The remaining bytes must be zero.
    pub(crate) fn finish(mut self) -> Result<(), Corruption> {
        self.zeroes(self.rest())
    }
}

/// Sequential writer into a buffer that is large enough by construction.
pub(crate) struct Writer<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes, at: 0 }
    }
    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }
    pub(crate) fn u8(&mut self, v: u8) {
        self.put(&[v]);
    }
    pub(crate) fn u16(&mut self, v: u16) {
        self.put(&v.to_le_bytes());
    }
    pub(crate) fn u32(&mut self, v: u32) {
        self.put(&v.to_le_bytes());
    }
    pub(crate) fn u64(&mut self, v: u64) {
        self.put(&v.to_le_bytes());
    }
    pub(crate) fn u48(&mut self, v: u64) {
        debug_assert!(v <= MAX_BLOCK_ADDR);
        self.put(&v.to_le_bytes()[..6]);
    }
    pub(crate) fn zeroes(&mut self, len: usize) {
        self.bytes[self.at..self.at + len].fill(0);
        self.at += len;
    }
    /// Zeroes the rest.
    pub(crate) fn finish(self) {
        let at = self.at;
        self.bytes[at..].fill(0);
    }
}

/// Kinds of metadata block. On disk, never renumber.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum BlockKind {
    MapLeaf = 1,
    MapInner = 2,
    CatalogueLeaf = 3,
    CatalogueInner = 4,
    IndexLeaf = 5,
    IndexInner = 6,
    Checksums = 7,
    Counts = 8,
}

impl BlockKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            BlockKind::MapLeaf => "map leaf",
            BlockKind::MapInner => "map node",
            BlockKind::CatalogueLeaf => "catalogue leaf",
            BlockKind::CatalogueInner => "catalogue node",
            BlockKind::IndexLeaf => "chunk index leaf",
            BlockKind::IndexInner => "chunk index node",
            BlockKind::Checksums => "checksum page",
            BlockKind::Counts => "count page",
        }
    }
}

/// Checksum of a block with a header: the header holds UUID, kind and addresses already (F3).
pub(crate) fn node_sum(block: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(block)
}

/// Checksum of a header-less page: what a header would say is hashed first and becomes the seed (F3).
pub(crate) fn page_sum(page: &[u8], uuid: &[u8; 16], kind: BlockKind, addr: BlockAddr) -> u64 {
    let mut head = [0u8; 32];
    head[..16].copy_from_slice(uuid);
    head[16] = kind as u8;
    head[24..].copy_from_slice(&addr.raw().to_le_bytes());
    xxhash_rust::xxh3::xxh3_64_with_seed(page, xxhash_rust::xxh3::xxh3_64(&head))
}

/// Whether every byte is zero.
pub(crate) fn is_zero(block: &[u8]) -> bool {
    match block {
        [] => true,
        // Compared in words by the library's own memcmp: the first difference ends it.
        [first, rest @ ..] => *first == 0 && *rest == block[..rest.len()],
    }
}

/// CRC-32 of a data block (the polynomial of zlib and Ethernet), kept for the block's whole life.
#[inline]
pub(crate) fn block_crc(block: &[u8]) -> u32 {
    crc32fast::hash(block)
}

/// A verified way to a node: both places it is written to and what it hashes to.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 6 | block address of the first copy |
/// | 6 | 6 | block address of the second copy, 0 for a node that is written once (map leaves) |
/// | 12 | 8 | checksum of the block (the copies are equal) |
/// | 20 | 1 | level: 0 for a leaf |
/// | 21 | 3 | reserved, zero |
///
/// All zero means "no node".
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) struct NodeRef {
    pub(crate) a: BlockAddr,
    pub(crate) b: Option<BlockAddr>,
    pub(crate) sum: u64,
    pub(crate) level: u8,
}

/// No tree of this format is higher; a deeper one is damage (stops endless descents).
pub(crate) const MAX_LEVEL: u8 = 16;

impl NodeRef {
    pub(crate) const BYTES: usize = 24;

    pub(crate) fn encode(this: Option<&Self>, w: &mut Writer<'_>) {
        match this {
            None => w.zeroes(Self::BYTES),
            Some(r) => {
                w.u48(r.a.raw());
                w.u48(r.b.map_or(0, BlockAddr::raw));
                w.u64(r.sum);
                w.u8(r.level);
                w.zeroes(3);
            }
        }
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Option<Self>, Corruption> {
        let (a, b, sum, level) = (r.u48()?, r.u48()?, r.u64()?, r.u8()?);
        r.zeroes(3)?;
        if a == 0 {
            if b != 0 || sum != 0 || level != 0 {
                return Err(r.bad("empty reference", "zero", "non-zero"));
            }
            return Ok(None);
        }
        if level > MAX_LEVEL {
            return Err(r.bad("level", format!("at most {MAX_LEVEL}"), level));
        }
        let b = (b != 0).then(|| BlockAddr::new(b));
        Ok(Some(Self { a: BlockAddr::new(a), b, sum, level }))
    }
}

const NODE_MAGIC: u32 = u32::from_le_bytes(*b"SVN1");

/// First 64 bytes of every metadata block except checksum and count pages.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 4 | magic `SVN1` |
/// | 4 | 1 | kind |
/// | 5 | 1 | level, 0 for a leaf |
/// | 6 | 2 | entries |
/// | 8 | 16 | pool UUID |
/// | 24 | 8 | address of the first copy |
/// | 32 | 8 | address of the second copy or 0 |
/// | 40 | 8 | generation of the checkpoint that wrote it (its birth) |
/// | 48 | 8 | base: LBA that a map leaf's offsets start from, first chunk of an index node, else 0 |
/// | 56 | 8 | reserved, zero |
///
/// The identity comes first so that a hex dump of any stray block says what it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NodeHeader {
    pub(crate) kind: BlockKind,
    pub(crate) level: u8,
    pub(crate) count: u16,
    pub(crate) uuid: [u8; 16],
    pub(crate) a: BlockAddr,
    pub(crate) b: Option<BlockAddr>,
    pub(crate) generation: u64,
    pub(crate) base: u64,
}

impl NodeHeader {
    pub(crate) const BYTES: usize = 64;

    pub(crate) fn encode(&self, block: &mut [u8; BLOCK]) {
        let mut w = Writer::new(&mut block[..Self::BYTES]);
        w.u32(NODE_MAGIC);
        w.u8(self.kind as u8);
        w.u8(self.level);
        w.u16(self.count);
        w.put(&self.uuid);
        w.u64(self.a.raw());
        w.u64(self.b.map_or(0, BlockAddr::raw));
        w.u64(self.generation);
        w.u64(self.base);
        w.finish();
    }

    /// Checks identity against the reference that led here; the checksum is the caller's.
    pub(crate) fn decode(
        block: &[u8; BLOCK],
        kind: BlockKind,
        uuid: &[u8; 16],
        from: &NodeRef,
    ) -> Result<Self, Corruption> {
        let mut r = Reader::new(&block[..Self::BYTES], kind.name(), from.a.raw());
        let magic = r.u32()?;
        if magic != NODE_MAGIC {
            return Err(r.bad("magic", format!("{NODE_MAGIC:#x}"), format!("{magic:#x}")));
        }
        let k = r.u8()?;
        if k != kind as u8 {
            return Err(r.bad("kind", kind as u8, k));
        }
        let level = r.u8()?;
        if level != from.level {
            return Err(r.bad("level", from.level, level));
        }
        let count = r.u16()?;
        let id = r.array::<16>()?;
        if id != *uuid {
            return Err(r.bad("pool uuid", "this pool's", "another"));
        }
        let (a, b) = (r.u64()?, r.u64()?);
        if a != from.a.raw() || b != from.b.map_or(0, BlockAddr::raw) {
            return Err(r.bad("own address", format!("{}/{:?}", from.a.raw(), from.b), format!("{a}/{b}")));
        }
        let (generation, base) = (r.u64()?, r.u64()?);
        r.finish()?;
        Ok(Self { kind, level, count, uuid: id, a: from.a, b: from.b, generation, base })
    }
}

const _: () = assert!(NodeHeader::BYTES == 4 + 1 + 1 + 2 + 16 + 8 + 8 + 8 + 8 + 8);
const _: () = assert!(NodeRef::BYTES == 6 + 6 + 8 + 1 + 3);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_zero_only_if_every_byte_is() {
        let mut block = [0; 4096];
        assert!(is_zero(&block) && is_zero(&[]));
        for at in [0, 1, 7, 8, 4095] {
            block[at] = 1;
            assert!(!is_zero(&block));
            block[at] = 0;
        }
        assert!(!is_zero(&[5; 4096]));
    }
}
