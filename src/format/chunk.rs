//! Chunk index entries and the two kinds of page that describe a data chunk.

use super::{NodeRef, Reader, Writer};
use crate::error::Corruption;
use crate::units::{BLOCK, BlockAddr, MAX_BLOCK_ADDR, MAX_RUN_BLOCKS};

/// Entries in every node of the chunk index.
pub(crate) const FANOUT: u64 = 63;

/// Levels of the chunk index that are needed for `chunks` chunks, at least 1.
pub(crate) fn index_height(chunks: u64) -> u32 {
    let (mut height, mut reach) = (1, FANOUT);
    while reach < chunks {
        reach = reach.saturating_mul(FANOUT);
        height += 1;
    }
    height
}

/// What a chunk is used for. On disk, never renumber.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub(crate) enum ChunkKind {
    #[default]
    Free = 0,
    Data = 1,
    Meta = 2,
}

/// A page outside the index that the index vouches for.
///
/// Count pages have a twin: nothing else knows what they say. Checksum pages have none: what one says can
/// be computed again from the data, and its own checksum proves it right.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PageRef {
    pub(crate) addr: BlockAddr,
    /// The second copy.
    pub(crate) twin: Option<BlockAddr>,
    /// Of both copies, seeded with the address of the first.
    pub(crate) sum: u64,
}

impl PageRef {
    fn encode(this: Option<&Self>, w: &mut Writer<'_>) {
        w.u64(this.map_or(0, |p| p.addr.raw()));
        w.u64(this.map_or(0, |p| p.sum));
    }
    fn decode(r: &mut Reader<'_>) -> Result<Option<Self>, Corruption> {
        let (addr, sum) = (r.u64()?, r.u64()?);
        if addr == 0 && sum != 0 || addr > MAX_BLOCK_ADDR {
            return Err(r.bad("page address", "a block address or zero", addr));
        }
        Ok((addr != 0).then(|| PageRef { addr: BlockAddr::new(addr), twin: None, sum }))
    }
    /// Both places of the page, or its only one.
    pub(crate) fn copies(&self) -> impl Iterator<Item = BlockAddr> + use<> {
        std::iter::once(self.addr).chain(self.twin)
    }
}

/// One chunk, 64 bytes in a leaf of the chunk index.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 1 | kind: 0 free, 1 data, 2 metadata |
/// | 1 | 1 | count width in bits: 0 (uniform), 4, 8, 16 or 32 |
/// | 2 | 2 | device index, reserved, zero |
/// | 4 | 2 | free blocks |
/// | 6 | 2 | longest free run in blocks |
/// | 8 | 4 | count of every block, when the width is 0 |
/// | 12 | 4 | reserved, zero |
/// | 16 | 8 | address of the count page, 0 when uniform |
/// | 24 | 8 | its checksum |
/// | 32 | 8 | address of the checksum page (data chunks), or 0 |
/// | 40 | 8 | its checksum |
/// | 48 | 8 | address of the second copy of the count page, 0 when uniform |
/// | 56 | 8 | location on another device, reserved, zero |
///
/// What the allocator asks for stands first, in one half cache line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct ChunkEntry {
    pub(crate) kind: ChunkKind,
    pub(crate) width: u8,
    pub(crate) free: u16,
    pub(crate) longest: u16,
    pub(crate) uniform: u32,
    pub(crate) counts: Option<PageRef>,
    pub(crate) checksums: Option<PageRef>,
}

impl ChunkEntry {
    pub(crate) const BYTES: usize = 64;

    pub(crate) fn encode(&self, w: &mut Writer<'_>) {
        w.u8(self.kind as u8);
        w.u8(self.width);
        w.u16(0);
        w.u16(self.free);
        w.u16(self.longest);
        w.u32(self.uniform);
        w.u32(0);
        PageRef::encode(self.counts.as_ref(), w);
        PageRef::encode(self.checksums.as_ref(), w);
        w.u64(self.counts.and_then(|p| p.twin).map_or(0, BlockAddr::raw));
        w.zeroes(8);
    }

    pub(crate) fn decode(r: &mut Reader<'_>, blocks_per_chunk: u64) -> Result<Self, Corruption> {
        let kind = match r.u8()? {
            0 => ChunkKind::Free,
            1 => ChunkKind::Data,
            2 => ChunkKind::Meta,
            other => return Err(r.bad("chunk kind", "0, 1 or 2", other)),
        };
        let width = r.u8()?;
        r.zeroes(2)?;
        let (free, longest, uniform) = (r.u16()?, r.u16()?, r.u32()?);
        r.zeroes(4)?;
        let (mut counts, checksums) = (PageRef::decode(r)?, PageRef::decode(r)?);
        let twin = r.u64()?;
        if (twin != 0) != counts.is_some() || twin > MAX_BLOCK_ADDR {
            return Err(r.bad("second count page", "a block address where there is a first", twin));
        }
        if let Some(page) = &mut counts {
            page.twin = Some(BlockAddr::new(twin));
        }
        r.zeroes(8)?;
        if !matches!(width, 0 | 4 | 8 | 16 | 32) || (width == 0) != counts.is_none() {
            return Err(r.bad("count width", "0 without a page, else 4, 8, 16 or 32", width));
        }
        if u64::from(free) > blocks_per_chunk
            || longest > free
            || (free > 0) != (longest > 0) && kind != ChunkKind::Free
        {
            return Err(r.bad(
                "free blocks",
                format!("at most {blocks_per_chunk}"),
                format!("{free}/{longest}"),
            ));
        }
        let this = Self { kind, width, free, longest, uniform, counts, checksums };
        if kind == ChunkKind::Free && this != Self::default() {
            return Err(r.bad("free chunk", "all zero", "not zero"));
        }
        Ok(this)
    }
}

/// One child of an interior node of the chunk index, 64 bytes.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 24 | reference to the child; zero: every chunk below is free |
/// | 24 | 8 | free blocks in data chunks |
/// | 32 | 8 | free blocks in metadata chunks |
/// | 40 | 8 | data chunks |
/// | 48 | 8 | metadata chunks |
/// | 56 | 2 | longest free run in a data chunk, in blocks |
/// | 58 | 2 | longest free run in a metadata chunk, in blocks |
/// | 60 | 4 | reserved, zero |
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct IndexEntry {
    pub(crate) child: Option<NodeRef>,
    pub(crate) data_free: u64,
    pub(crate) meta_free: u64,
    pub(crate) data_chunks: u64,
    pub(crate) meta_chunks: u64,
    pub(crate) data_run: u16,
    pub(crate) meta_run: u16,
}

impl IndexEntry {
    pub(crate) const BYTES: usize = 64;

    pub(crate) fn encode(&self, w: &mut Writer<'_>) {
        NodeRef::encode(self.child.as_ref(), w);
        w.u64(self.data_free);
        w.u64(self.meta_free);
        w.u64(self.data_chunks);
        w.u64(self.meta_chunks);
        w.u16(self.data_run);
        w.u16(self.meta_run);
        w.zeroes(4);
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Self, Corruption> {
        let this = Self {
            child: NodeRef::decode(r)?,
            data_free: r.u64()?,
            meta_free: r.u64()?,
            data_chunks: r.u64()?,
            meta_chunks: r.u64()?,
            data_run: r.u16()?,
            meta_run: r.u16()?,
        };
        r.zeroes(4)?;
        if this.data_free.max(this.meta_free).max(this.data_chunks).max(this.meta_chunks) > MAX_BLOCK_ADDR {
            return Err(r.bad("index totals", "at most 2^48", "more"));
        }
        Ok(this)
    }
}

/// Reference counts of the blocks of one chunk.
///
/// On disk: `blocks_per_chunk` counts of the entry's width, packed from the low bits up, then zeroes to
/// the end of the block. A chunk whose counts are all equal has no page.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Counts {
    width: u8,
    blocks: usize,
    packed: Vec<u8>,
}

impl Counts {
    pub(crate) fn uniform(blocks: usize, value: u32) -> Self {
        let width = Self::width_for(value);
        let mut this = Self { width, blocks, packed: vec![0; blocks * width as usize / 8] };
        if value != 0 {
            this.pack(0, &vec![value; blocks]);
        }
        this
    }

    fn width_for(value: u32) -> u8 {
        match value {
            0..=0xf => 4,
            0x10..=0xff => 8,
            0x100..=0xffff => 16,
            _ => 32,
        }
    }

    #[inline]
    pub(crate) fn get(&self, i: usize) -> u32 {
        match self.width {
            4 => u32::from(self.packed[i / 2] >> (4 * (i % 2)) & 0xf),
            8 => u32::from(self.packed[i]),
            16 => u32::from(u16::from_le_bytes([self.packed[2 * i], self.packed[2 * i + 1]])),
            _ => {
                let p = &self.packed[4 * i..4 * i + 4];
                u32::from_le_bytes([p[0], p[1], p[2], p[3]])
            }
        }
    }

    fn store(&mut self, i: usize, value: u32) {
        match self.width {
            4 => {
                let shift = 4 * (i % 2);
                let byte = &mut self.packed[i / 2];
                *byte = *byte & !(0xf << shift) | (value as u8) << shift;
            }
            8 => self.packed[i] = value as u8,
            16 => self.packed[2 * i..2 * i + 2].copy_from_slice(&(value as u16).to_le_bytes()),
            _ => self.packed[4 * i..4 * i + 4].copy_from_slice(&value.to_le_bytes()),
        }
    }

    /// Stores `value`, widening the page when it does not fit.
    pub(crate) fn set(&mut self, i: usize, value: u32) {
        self.widen(Self::width_for(value));
        self.store(i, value);
    }

    pub(crate) fn blocks(&self) -> usize {
        self.blocks
    }
    pub(crate) fn width(&self) -> u8 {
        self.width
    }
    /// Bytes this takes in memory.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.packed.len() + size_of::<Self>()
    }

    /// Counts of consecutive blocks from `first` on, one a word. A page is looked at as a whole in this form, with
    /// one decision about its width instead of one a block.
    fn unpack(&self, first: usize, out: &mut [u32]) {
        match self.width {
            4 => out.iter_mut().zip(first..).for_each(|(to, i)| *to = self.get(i)),
            8 => out.iter_mut().zip(&self.packed[first..]).for_each(|(to, from)| *to = u32::from(*from)),
            16 => {
                let from = self.packed[2 * first..].as_chunks().0;
                out.iter_mut().zip(from).for_each(|(to, from)| *to = u16::from_le_bytes(*from).into());
            }
            _ => {
                let from = self.packed[4 * first..].as_chunks().0;
                out.iter_mut().zip(from).for_each(|(to, from)| *to = u32::from_le_bytes(*from));
            }
        }
    }

    /// The other way round. The counts fit the width.
    fn pack(&mut self, first: usize, counts: &[u32]) {
        match self.width {
            4 => counts.iter().zip(first..).for_each(|(count, i)| self.store(i, *count)),
            8 => {
                let to = self.packed[first..].iter_mut();
                to.zip(counts).for_each(|(to, count)| *to = *count as u8);
            }
            16 => {
                let to = self.packed[2 * first..].as_chunks_mut().0.iter_mut();
                to.zip(counts).for_each(|(to, count)| *to = (*count as u16).to_le_bytes());
            }
            _ => {
                let to = self.packed[4 * first..].as_chunks_mut().0.iter_mut();
                to.zip(counts).for_each(|(to, count)| *to = count.to_le_bytes());
            }
        }
    }

    /// Hands all counts, one a word, to `look`.
    fn look<R>(&self, look: impl FnOnce(&[u32]) -> R) -> R {
        let mut all = [0; MAX_RUN_BLOCKS as usize];
        let all = &mut all[..self.blocks];
        self.unpack(0, all);
        look(all)
    }

    /// Adds `delta` to the counts of `len` blocks from `first` on. Returns how many came to zero, or, with no effect,
    /// the first count that would leave the range of counts and what it would be.
    pub(crate) fn add(&mut self, first: usize, len: usize, delta: i64) -> Result<u64, (usize, i64)> {
        if len == 1 {
            let new = i64::from(self.get(first)) + delta;
            let count = u32::try_from(new).map_err(|_| (first, new))?;
            self.set(first, count);
            return Ok(u64::from(count == 0));
        }
        let mut counts = [0; MAX_RUN_BLOCKS as usize];
        let counts = &mut counts[..len];
        self.unpack(first, counts);
        let (mut most, mut zeroed) = (0, 0);
        for (i, count) in counts.iter_mut().enumerate() {
            let new = i64::from(*count) + delta;
            *count = u32::try_from(new).map_err(|_| (first + i, new))?;
            most = most.max(*count);
            zeroed += u64::from(*count == 0);
        }
        self.widen(Self::width_for(most));
        self.pack(first, counts);
        Ok(zeroed)
    }

    /// The one value that all blocks have, if they have one.
    pub(crate) fn is_uniform(&self) -> Option<u32> {
        let first = self.get(0);
        self.look(|all| all.iter().all(|count| *count == first).then_some(first))
    }

    fn widen(&mut self, width: u8) {
        if width > self.width {
            self.rewrite(width);
        }
    }

    /// Narrows to the least width that holds every count.
    pub(crate) fn narrow(&mut self) {
        let most = self.look(|all| all.iter().copied().fold(0, u32::max));
        if Self::width_for(most) < self.width {
            self.rewrite(Self::width_for(most));
        }
    }

    /// The same counts in another width, which holds all of them.
    fn rewrite(&mut self, width: u8) {
        let mut other =
            Self { width, blocks: self.blocks, packed: vec![0; self.blocks * width as usize / 8] };
        self.look(|all| other.pack(0, all));
        *self = other;
    }

    /// Free blocks and the longest run of them.
    pub(crate) fn free_and_longest(&self) -> (u16, u16) {
        self.look(|all| {
            let (mut free, mut run, mut longest) = (0u16, 0u16, 0u16);
            for count in all {
                run = if *count == 0 { run + 1 } else { 0 };
                free += u16::from(*count == 0);
                longest = longest.max(run);
            }
            (free, longest)
        })
    }

    pub(crate) fn encode(&self, page: &mut [u8; BLOCK]) {
        page[..self.packed.len()].copy_from_slice(&self.packed);
        page[self.packed.len()..].fill(0);
    }

    pub(crate) fn decode(
        page: &[u8; BLOCK],
        width: u8,
        blocks: usize,
        at: BlockAddr,
    ) -> Result<Self, Corruption> {
        let len = blocks * width as usize / 8;
        if len > BLOCK || page[len..].iter().any(|b| *b != 0) {
            return Err(Corruption::new("count page", at.raw(), "padding", "zero", "non-zero"));
        }
        Ok(Self { width, blocks, packed: page[..len].to_vec() })
    }
}

const _: () = assert!(ChunkEntry::BYTES == IndexEntry::BYTES);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn counts_behave_like_an_array(
            ops in proptest::collection::vec((0usize..64, 0u32..0x2_0000, 0usize..64, -3i64..20), 0..200),
        ) {
            let mut counts = Counts::uniform(64, 0);
            let mut model = [0u32; 64];
            for (i, v, len, delta) in ops {
                counts.set(i, v);
                model[i] = v;
                let end = (i + len).min(64);
                let before = counts.clone();
                let low = (i..end).find(|&k| i64::from(model[k]) + delta < 0);
                match counts.add(i, end - i, delta) {
                    Ok(zeroed) => {
                        prop_assert_eq!(low, None);
                        model[i..end].iter_mut().for_each(|v| *v = (i64::from(*v) + delta) as u32);
                        prop_assert_eq!(zeroed, model[i..end].iter().filter(|v| **v == 0).count() as u64);
                    }
                    Err((at, new)) => {
                        prop_assert_eq!((low, &counts), (Some(at), &before));
                        prop_assert_eq!(i64::from(model[at]) + delta, new);
                    }
                }
            }
            let runs = model.split(|v| *v != 0).map(<[u32]>::len);
            let free = model.iter().filter(|v| **v == 0).count();
            prop_assert_eq!(counts.free_and_longest(), (free as u16, runs.max().unwrap_or(0) as u16));
            prop_assert_eq!(counts.is_uniform(), model.iter().all(|v| *v == model[0]).then_some(model[0]));
            for (i, v) in model.iter().enumerate() {
                prop_assert_eq!(counts.get(i), *v);
            }
            let mut page = [0; BLOCK];
            counts.narrow();
            counts.encode(&mut page);
            let back = Counts::decode(&page, counts.width(), 64, BlockAddr::new(1)).unwrap();
            prop_assert_eq!(back, counts);
        }
    }

    #[test]
    fn height_grows_with_reach() {
        assert_eq!(index_height(0), 1);
        assert_eq!(index_height(63), 1);
        assert_eq!(index_height(64), 2);
        assert_eq!(index_height(63 * 63 + 1), 3);
    }

    #[test]
    fn an_entry_survives_a_round_trip() {
        let e = ChunkEntry {
            kind: ChunkKind::Data,
            width: 4,
            free: 10,
            longest: 3,
            uniform: 0,
            counts: Some(PageRef { addr: BlockAddr::new(5), twin: Some(BlockAddr::new(9)), sum: 6 }),
            checksums: Some(PageRef { addr: BlockAddr::new(7), twin: None, sum: 8 }),
        };
        let mut bytes = [0; ChunkEntry::BYTES];
        e.encode(&mut Writer::new(&mut bytes));
        assert_eq!(ChunkEntry::decode(&mut Reader::new(&bytes, "test", 0), 1024).unwrap(), e);
    }
}
