//! Contents of map and catalogue nodes behind the common header.

use super::{NodeHeader, NodeRef, Reader, Writer};
use crate::error::Corruption;
use crate::units::{BLOCK, MAX_BLOCK_ADDR, MAX_RUN_BLOCKS};

/// A catalogue entry: key and value.
pub(crate) type Pair = (Vec<u8>, Vec<u8>);

/// Bytes of a node behind its header.
pub(crate) const BODY: usize = BLOCK - NodeHeader::BYTES;
/// Extents in a full map leaf.
pub(crate) const LEAF_EXTENTS: usize = BODY / Extent::BYTES;
/// Children of a full interior map node.
pub(crate) const INNER_KIDS: usize = BODY / INNER_BYTES;
const INNER_BYTES: usize = 8 + NodeRef::BYTES + 8;
/// Longest catalogue key in bytes.
pub(crate) const MAX_KEY: usize = 64;
/// Longest catalogue value in bytes; longer ones are cut into segments by the catalogue.
pub(crate) const MAX_VALUE: usize = 1024;

/// A contiguous LBA run and what stands behind it, 16 bytes in a map leaf.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 4 | LBA, from the leaf's base |
/// | 4 | 4 | birth: snapshot epoch that wrote it |
/// | 8 | 8 | bits 0-47 block address (data) or length in blocks - 1 (zero); 48-57 length - 1 (data); 58-60 kind: 1 data, 2 zero, others reserved; 61-63 reserved, zero |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Extent {
    pub(crate) lba: u64,
    /// Block address of data, length of a zero extent.
    target: u64,
    pub(crate) birth: u32,
    run: u16,
    zero: bool,
}

impl Extent {
    pub(crate) const BYTES: usize = 16;

    pub(crate) fn data(lba: u64, block: u64, len: u64, birth: u32) -> Self {
        debug_assert!((1..=MAX_RUN_BLOCKS).contains(&len));
        Self { lba, target: block, birth, run: len as u16, zero: false }
    }
    pub(crate) fn zero(lba: u64, len: u64, birth: u32) -> Self {
        debug_assert!(len > 0);
        Self { lba, target: len, birth, run: 0, zero: true }
    }
    #[inline]
    pub(crate) fn len(&self) -> u64 {
        if self.zero { self.target } else { u64::from(self.run) }
    }
    #[inline]
    pub(crate) fn end(&self) -> u64 {
        self.lba + self.len()
    }
    /// First block of the run; `None` for zeroes.
    #[inline]
    pub(crate) fn block(&self) -> Option<u64> {
        (!self.zero).then_some(self.target)
    }
    /// The part of this extent from `from` to `to` (within it).
    pub(crate) fn slice(&self, from: u64, to: u64) -> Self {
        debug_assert!(self.lba <= from && from < to && to <= self.end());
        match self.block() {
            Some(block) => Self::data(from, block + (from - self.lba), to - from, self.birth),
            None => Self::zero(from, to - from, self.birth),
        }
    }
    /// Whether `next` can become one extent with this one. Runs never pass a chunk: the caller says where
    /// chunks begin, because only it knows the geometry.
    pub(crate) fn joins(&self, next: &Self, first_chunk: u64, chunk_mask: u64) -> bool {
        if self.end() != next.lba || self.birth != next.birth || self.zero != next.zero {
            return false;
        }
        self.zero
            || (self.target + u64::from(self.run) == next.target
                && (next.target - first_chunk) & chunk_mask != 0)
    }
    pub(crate) fn join(&mut self, next: &Self) {
        if self.zero {
            self.target += next.target;
        } else {
            self.run += next.run;
        }
    }

    fn encode(&self, base: u64, w: &mut Writer<'_>) {
        w.u32((self.lba - base) as u32);
        w.u32(self.birth);
        let kind = if self.zero { 2u64 } else { 1 };
        let run = if self.zero { 0 } else { u64::from(self.run) - 1 };
        // A zero extent may have 2^48 blocks: its length is stored less one, as a run's is.
        let target = if self.zero { self.target - 1 } else { self.target };
        w.u64(target | run << 48 | kind << 58);
    }

    fn decode(r: &mut Reader<'_>, base: u64) -> Result<Self, Corruption> {
        let (offset, birth, word) = (u64::from(r.u32()?), r.u32()?, r.u64()?);
        let (target, run, kind) = (word & MAX_BLOCK_ADDR, word >> 48 & 0x3ff, word >> 58);
        let lba = base + offset;
        match kind {
            1 => Ok(Self::data(lba, target, run + 1, birth)),
            2 if run == 0 => Ok(Self::zero(lba, target + 1, birth)),
            _ => Err(r.bad("extent kind", "1 (data) or 2 (zero)", kind)),
        }
    }
}

/// Whether these extents fit in one leaf: few enough, and near enough to its base.
pub(crate) fn leaf_fits(extents: &[Extent]) -> bool {
    match (extents.first(), extents.last()) {
        (Some(a), Some(z)) => extents.len() <= LEAF_EXTENTS && z.lba - a.lba <= u64::from(u32::MAX),
        _ => true,
    }
}

pub(crate) fn encode_leaf(extents: &[Extent], block: &mut [u8; BLOCK]) -> u64 {
    let base = extents.first().map_or(0, |e| e.lba);
    let mut w = Writer::new(&mut block[NodeHeader::BYTES..]);
    for e in extents {
        e.encode(base, &mut w);
    }
    w.finish();
    base
}

pub(crate) fn decode_leaf(h: &NodeHeader, block: &[u8; BLOCK]) -> Result<Vec<Extent>, Corruption> {
    let mut r = Reader::new(&block[NodeHeader::BYTES..], "map leaf", h.a.raw());
    let count = h.count as usize;
    // Empty leaves are never written; refusing them keeps every search of a tree short.
    if count == 0 || count > LEAF_EXTENTS || h.base > MAX_BLOCK_ADDR {
        return Err(r.bad("extents", format!("1 to {LEAF_EXTENTS}"), count));
    }
    let mut out: Vec<Extent> = Vec::with_capacity(LEAF_EXTENTS + 2);
    for _ in 0..count {
        let e = Extent::decode(&mut r, h.base)?;
        if out.last().is_some_and(|p| p.end() > e.lba) || e.end() > MAX_BLOCK_ADDR + 1 {
            return Err(r.bad("extent order", "ascending, without overlap", e.lba));
        }
        out.push(e);
    }
    r.finish()?;
    Ok(out)
}

/// Interior map node: per child its first LBA (8 bytes), its reference (24), mapped blocks below it (8).
pub(crate) fn encode_inner(kids: impl Iterator<Item = (u64, NodeRef, u64)>, block: &mut [u8; BLOCK]) {
    let mut w = Writer::new(&mut block[NodeHeader::BYTES..]);
    for (key, node, weight) in kids {
        w.u64(key);
        NodeRef::encode(Some(&node), &mut w);
        w.u64(weight);
    }
    w.finish();
}

pub(crate) fn decode_inner(
    h: &NodeHeader,
    block: &[u8; BLOCK],
) -> Result<Vec<(u64, NodeRef, u64)>, Corruption> {
    let mut r = Reader::new(&block[NodeHeader::BYTES..], "map node", h.a.raw());
    let count = h.count as usize;
    if count == 0 || count > INNER_KIDS {
        return Err(r.bad("children", format!("1 to {INNER_KIDS}"), count));
    }
    let mut out: Vec<(u64, NodeRef, u64)> = Vec::with_capacity(INNER_KIDS + 2);
    for _ in 0..count {
        let key = r.u64()?;
        let node = NodeRef::decode(&mut r)?;
        let weight = r.u64()?;
        let Some(node) = node.filter(|n| n.level + 1 == h.level) else {
            return Err(r.bad("child level", h.level - 1, "another or none"));
        };
        if key > MAX_BLOCK_ADDR || weight > MAX_BLOCK_ADDR + 1 || out.last().is_some_and(|p| p.0 >= key) {
            return Err(r.bad("child order", "ascending LBAs", key));
        }
        out.push((key, node, weight));
    }
    r.finish()?;
    Ok(out)
}

/// Catalogue leaf: per entry u16 key length, u16 value length, key, value.
pub(crate) fn encode_pairs<'a>(pairs: impl Iterator<Item = (&'a [u8], &'a [u8])>, block: &mut [u8; BLOCK]) {
    let mut w = Writer::new(&mut block[NodeHeader::BYTES..]);
    for (k, v) in pairs {
        w.u16(k.len() as u16);
        w.u16(v.len() as u16);
        w.put(k);
        w.put(v);
    }
    w.finish();
}

pub(crate) fn decode_pairs(h: &NodeHeader, block: &[u8; BLOCK]) -> Result<Vec<Pair>, Corruption> {
    let mut r = Reader::new(&block[NodeHeader::BYTES..], "catalogue leaf", h.a.raw());
    if h.count == 0 {
        return Err(r.bad("entries", "at least 1", 0));
    }
    let mut out: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for _ in 0..h.count {
        let (k, v) = (r.u16()? as usize, r.u16()? as usize);
        if k > MAX_KEY || v > MAX_VALUE {
            return Err(r.bad("entry length", format!("at most {MAX_KEY}/{MAX_VALUE}"), format!("{k}/{v}")));
        }
        let (k, v) = (r.take(k)?.to_vec(), r.take(v)?.to_vec());
        if out.last().is_some_and(|p| p.0 >= k) {
            return Err(r.bad("key order", "ascending", format!("{k:02x?}")));
        }
        out.push((k, v));
    }
    r.finish()?;
    Ok(out)
}

/// Interior catalogue node: per child u16 key length, its reference (24), the key.
pub(crate) fn encode_fences<'a>(kids: impl Iterator<Item = (&'a [u8], NodeRef)>, block: &mut [u8; BLOCK]) {
    let mut w = Writer::new(&mut block[NodeHeader::BYTES..]);
    for (k, node) in kids {
        w.u16(k.len() as u16);
        NodeRef::encode(Some(&node), &mut w);
        w.put(k);
    }
    w.finish();
}

pub(crate) fn decode_fences(
    h: &NodeHeader,
    block: &[u8; BLOCK],
) -> Result<Vec<(Vec<u8>, NodeRef)>, Corruption> {
    let mut r = Reader::new(&block[NodeHeader::BYTES..], "catalogue node", h.a.raw());
    let mut out: Vec<(Vec<u8>, NodeRef)> = Vec::new();
    if h.count == 0 {
        return Err(r.bad("children", "at least 1", 0));
    }
    for _ in 0..h.count {
        let k = r.u16()? as usize;
        if k > MAX_KEY {
            return Err(r.bad("key length", format!("at most {MAX_KEY}"), k));
        }
        let node = NodeRef::decode(&mut r)?;
        let k = r.take(k)?.to_vec();
        let Some(node) = node.filter(|n| n.level + 1 == h.level) else {
            return Err(r.bad("child level", h.level - 1, "another or none"));
        };
        if out.last().is_some_and(|p| p.0 >= k) {
            return Err(r.bad("key order", "ascending", format!("{k:02x?}")));
        }
        out.push((k, node));
    }
    r.finish()?;
    Ok(out)
}

const _: () = assert!(LEAF_EXTENTS == 252 && INNER_KIDS == 100);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::BlockKind;
    use crate::units::BlockAddr;

    #[test]
    fn a_leaf_survives_a_round_trip() {
        let extents =
            [Extent::data(5, 900, 1024, 3), Extent::zero(5000, 1 << 30, 4), Extent::data(1 << 31, 7, 1, 5)];
        let mut block = [0; BLOCK];
        let base = encode_leaf(&extents, &mut block);
        let h = NodeHeader {
            kind: BlockKind::MapLeaf,
            level: 0,
            count: 3,
            uuid: [1; 16],
            a: BlockAddr::new(9),
            b: None,
            generation: 1,
            base,
        };
        h.encode(&mut block);
        assert_eq!(decode_leaf(&h, &block).unwrap(), extents);
    }
}
