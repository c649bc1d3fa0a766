//! What a pool must hold: arrays of blocks, copied whole wherever the pool shares.
//!
//! A block is an `Arc`, so that a copy of a state costs pointers; and because every write makes a new `Arc`, two
//! places hold the same `Arc` exactly when the pool may share one block between them. That makes the model an
//! oracle for space as well: a block that only one object reaches is exclusive to it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use snapvol::{BaseId, Error, SnapshotId, VolumeId};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::rng::Rng;

pub(crate) const BLOCK: usize = 4096;

pub(crate) struct Block {
    pub(crate) hash: u64,
    pub(crate) bytes: Box<[u8]>,
    /// It belongs to a base: whether the pool has it yet depends on who has looked.
    of_base: bool,
}

impl Block {
    fn new(bytes: Vec<u8>) -> Arc<Self> {
        assert_eq!(bytes.len(), BLOCK);
        Arc::new(Self { hash: xxh3_64(&bytes), bytes: bytes.into(), of_base: false })
    }
}

/// An external base: what it holds follows from its id.
#[derive(Clone)]
pub(crate) struct BaseModel(Arc<Vec<Arc<Block>>>);

impl BaseModel {
    pub(crate) fn new(id: BaseId, blocks: usize) -> Self {
        let block = |n| {
            let bytes = Self::bytes(id, n);
            Arc::new(Block { hash: xxh3_64(&bytes), bytes: bytes.into(), of_base: true })
        };
        Self(Arc::new((0..blocks).map(block).collect()))
    }

    /// The bytes of one block.
    pub(crate) fn bytes(id: BaseId, block: usize) -> Vec<u8> {
        Rng::stamp_bytes(xxh3_64(id.raw().as_bytes()) ^ block as u64, BLOCK)
    }

    pub(crate) fn blocks(&self) -> usize {
        self.0.len()
    }
}

pub(crate) const HOLE_MARK: u64 = 1;
pub(crate) const ZERO_MARK: u64 = 2;

#[derive(Clone)]
pub(crate) enum Cell {
    Hole,
    Zero,
    Data(Arc<Block>),
}

pub(crate) fn zero_hash() -> u64 {
    static HASH: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *HASH.get_or_init(|| xxh3_64(&[0; BLOCK]))
}

impl Cell {
    pub(crate) fn hash(&self) -> u64 {
        match self {
            Cell::Data(block) => block.hash,
            Cell::Hole | Cell::Zero => zero_hash(),
        }
    }

    /// As the hash, but a hole and a zero extent are told apart: they are different states of a pool.
    pub(crate) fn mark(&self) -> u64 {
        match self {
            Cell::Data(block) => block.hash,
            Cell::Hole => HOLE_MARK,
            Cell::Zero => ZERO_MARK,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        match self {
            Cell::Data(block) => block.bytes.to_vec(),
            Cell::Hole | Cell::Zero => vec![0; BLOCK],
        }
    }

    fn address(&self) -> Option<*const Block> {
        match self {
            Cell::Data(block) if !block.of_base => Some(Arc::as_ptr(block)),
            Cell::Data(_) | Cell::Hole | Cell::Zero => None,
        }
    }
}

/// The content of a volume or snapshot.
#[derive(Clone)]
pub(crate) struct Map {
    cells: Arc<Vec<Cell>>,
    /// The base that it lies over, and how far that reaches, in blocks.
    pub(crate) over: Option<(BaseId, usize)>,
}

impl Map {
    pub(crate) fn blank(blocks: usize) -> Self {
        Self { cells: Arc::new(vec![Cell::Hole; blocks]), over: None }
    }

    pub(crate) fn over(id: BaseId, base: &BaseModel, blocks: usize) -> Self {
        let mut cells: Vec<Cell> = base.0.iter().cloned().map(Cell::Data).collect();
        cells.resize(blocks, Cell::Hole);
        Self { cells: Arc::new(cells), over: Some((id, base.blocks())) }
    }

    pub(crate) fn cells(&self) -> &[Cell] {
        &self.cells
    }

    pub(crate) fn blocks(&self) -> usize {
        self.cells.len()
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        (self.blocks() * BLOCK) as u64
    }

    pub(crate) fn resize(&mut self, blocks: usize) {
        Arc::make_mut(&mut self.cells).resize(blocks, Cell::Hole);
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        self.change(offset, data.len() as u64, |_, old, inside, from| {
            let mut bytes = old.bytes();
            bytes[inside.clone()].copy_from_slice(&data[from..][..inside.len()]);
            Cell::Data(Block::new(bytes))
        });
    }

    /// Whole blocks become zero extents; the bytes at the ends of an unaligned range are written.
    pub(crate) fn write_zeroes(&mut self, offset: u64, len: u64) {
        self.change(offset, len, |_, old, inside, _| {
            if inside.len() == BLOCK {
                return Cell::Zero;
            }
            let mut bytes = old.bytes();
            bytes[inside].fill(0);
            Cell::Data(Block::new(bytes))
        });
    }

    /// `offset` and `len` are multiples of the block size. Over a base a discarded range becomes zeroes, or the base
    /// would show.
    pub(crate) fn discard(&mut self, offset: u64, len: u64) {
        if self.over.is_some_and(|(_, blocks)| offset < (blocks * BLOCK) as u64) {
            return self.write_zeroes(offset, len);
        }
        self.change(offset, len, |_, _, inside, _| {
            assert_eq!(inside.len(), BLOCK, "the model discards whole blocks");
            Cell::Hole
        });
    }

    fn change(
        &mut self,
        offset: u64,
        len: u64,
        mut with: impl FnMut(usize, &Cell, std::ops::Range<usize>, usize) -> Cell,
    ) {
        let cells = Arc::make_mut(&mut self.cells);
        let (mut at, end) = (offset as usize, (offset + len) as usize);
        while at < end {
            let block = at / BLOCK;
            let inside = at % BLOCK..(end - block * BLOCK).min(BLOCK);
            let length = inside.len();
            cells[block] = with(block, &cells[block], inside, at - offset as usize);
            at += length;
        }
    }

    pub(crate) fn read(&self) -> Vec<u8> {
        self.cells.iter().flat_map(|cell| cell.bytes()).collect()
    }

    /// Blocks that its own map names.
    pub(crate) fn data_blocks(&self) -> usize {
        self.cells.iter().filter(|cell| matches!(cell, Cell::Data(block) if !block.of_base)).count()
    }
}

#[derive(Clone)]
pub(crate) struct VolumeModel {
    pub(crate) name: String,
    pub(crate) map: Map,
    /// Objects that came from one blank volume, or lie over one base, are of one family; only these can be compared.
    pub(crate) family: u64,
}

#[derive(Clone)]
pub(crate) struct SnapshotModel {
    pub(crate) volume: VolumeId,
    pub(crate) name: String,
    pub(crate) held: bool,
    pub(crate) map: Map,
    pub(crate) family: u64,
}

/// Which refusal the documented rules ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    InvalidArgument,
    InvalidState,
    NotFound,
    HasSnapshots,
    Busy,
}

impl Refusal {
    pub(crate) fn is(self, error: &Error) -> bool {
        matches!(
            (self, error),
            (Refusal::InvalidArgument, Error::InvalidArgument { .. })
                | (Refusal::InvalidState, Error::InvalidState { .. })
                | (Refusal::NotFound, Error::NotFound { .. })
                | (Refusal::HasSnapshots, Error::HasSnapshots { .. })
                | (Refusal::Busy, Error::Busy { .. })
        )
    }
}

/// All of a pool at one instant. `attached` belongs to the process, not to the pool: it is in no digest.
#[derive(Clone, Default)]
pub(crate) struct Model {
    pub(crate) volumes: BTreeMap<VolumeId, VolumeModel>,
    pub(crate) snapshots: BTreeMap<SnapshotId, SnapshotModel>,
    /// Bases over which something lies.
    pub(crate) bases: BTreeMap<BaseId, BaseModel>,
    pub(crate) attached: BTreeSet<VolumeId>,
}

impl Model {
    /// One number for everything that must survive.
    pub(crate) fn digest(&self) -> u64 {
        let mut digest = Digest::default();
        for (id, volume) in &self.volumes {
            digest.volume(*id, &volume.name, volume.map.cells().iter().map(Cell::mark));
        }
        for (id, snapshot) in &self.snapshots {
            let hashes = snapshot.map.cells().iter().map(Cell::mark);
            digest.snapshot(*id, snapshot.volume, &snapshot.name, snapshot.held, hashes);
        }
        for (id, base) in &self.bases {
            digest.base(*id, base.blocks());
        }
        digest.finish()
    }

    pub(crate) fn snapshots_of(&self, volume: VolumeId) -> Vec<SnapshotId> {
        self.snapshots.iter().filter(|(_, s)| s.volume == volume).map(|(id, _)| *id).collect()
    }

    fn maps(&self) -> impl Iterator<Item = (uuid::Uuid, &Map)> {
        let volumes = self.volumes.iter().map(|(id, v)| (id.raw(), &v.map));
        volumes.chain(self.snapshots.iter().map(|(id, s)| (id.raw(), &s.map)))
    }

    /// Bases that go with these objects.
    pub(crate) fn bases_going(&self, ids: &[uuid::Uuid]) -> Vec<BaseId> {
        let left: BTreeSet<BaseId> = self
            .maps()
            .filter(|(id, _)| !ids.contains(id))
            .filter_map(|(_, map)| map.over.map(|(base, _)| base))
            .collect();
        self.bases.keys().filter(|id| !left.contains(id)).copied().collect()
    }

    /// A base goes with the last that lay over it.
    pub(crate) fn forget_bases(&mut self) {
        for id in self.bases_going(&[]) {
            self.bases.remove(&id);
        }
    }

    /// Bytes that come back when all of these objects go, bases apart.
    pub(crate) fn exclusive_bytes(&self, ids: &[uuid::Uuid]) -> u64 {
        let mut mine: HashMap<*const Block, bool> = HashMap::new();
        for (id, map) in self.maps() {
            for address in map.cells().iter().filter_map(Cell::address) {
                let only = mine.entry(address).or_insert(true);
                *only &= ids.contains(&id);
            }
        }
        mine.values().filter(|&&only| only).count() as u64 * BLOCK as u64
    }

    /// Bytes of all blocks that anything reaches, each counted once, bases apart.
    pub(crate) fn data_bytes(&self) -> u64 {
        let all: std::collections::HashSet<_> =
            self.maps().flat_map(|(_, map)| map.cells().iter().filter_map(Cell::address)).collect();
        all.len() as u64 * BLOCK as u64
    }
}

/// The same canonical form for a model and for what is read from a pool.
#[derive(Default)]
pub(crate) struct Digest(Xxh3);

impl Digest {
    pub(crate) fn volume(&mut self, id: VolumeId, name: &str, hashes: impl ExactSizeIterator<Item = u64>) {
        self.0.update(b"volume");
        self.0.update(id.raw().as_bytes());
        self.text(name);
        self.hashes(hashes);
    }

    pub(crate) fn snapshot(
        &mut self,
        id: SnapshotId,
        volume: VolumeId,
        name: &str,
        held: bool,
        hashes: impl ExactSizeIterator<Item = u64>,
    ) {
        self.0.update(b"snapshot");
        self.0.update(id.raw().as_bytes());
        self.0.update(volume.raw().as_bytes());
        self.text(name);
        self.0.update(&[u8::from(held)]);
        self.hashes(hashes);
    }

    pub(crate) fn base(&mut self, id: BaseId, blocks: usize) {
        self.0.update(b"base");
        self.0.update(id.raw().as_bytes());
        self.0.update(&(blocks as u64).to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.0.update(&(text.len() as u64).to_le_bytes());
        self.0.update(text.as_bytes());
    }

    fn hashes(&mut self, hashes: impl ExactSizeIterator<Item = u64>) {
        self.0.update(&(hashes.len() as u64).to_le_bytes());
        for hash in hashes {
            self.0.update(&hash.to_le_bytes());
        }
    }

    pub(crate) fn finish(&self) -> u64 {
        self.0.digest()
    }
}
