//! What is written, and how it is recognised when it is read back.
//!
//! A block carries its address and a version at both ends and a fixed pattern between them, so that preparing one
//! costs a few bytes. A [`Ledger`] knows which version every block must have.

use std::sync::LazyLock;

use crate::Result;

pub(crate) const BLOCK: usize = 4096;
pub(crate) const BLOCK_BYTES: u64 = BLOCK as u64;
/// Where in a block the small writes of N8 go, and how long they are.
pub(crate) const PART_START: usize = 1536;
pub(crate) const PART: usize = 512;

const BLOCK_MAGIC: u64 = 0x9d3f_61c8_07b2_e5a4;
const PART_MAGIC: u64 = 0x41e7_5b90_cc28_136f;
const HEAD: usize = 24;
const TAIL: usize = BLOCK - 8;

/// What lies between the ends of a block.
static PATTERN: LazyLock<Box<[u8]>> = LazyLock::new(|| {
    let mut rng = fastrand::Rng::with_seed(BLOCK_MAGIC);
    std::iter::repeat_with(|| rng.u8(..)).take(BLOCK).collect()
});

/// Writes blocks of one version: a phase of the benchmark has one.
#[derive(Clone)]
pub(crate) struct Ink {
    version: u32,
    block: Box<[u8]>,
    part: Box<[u8]>,
}

impl Ink {
    pub(crate) fn new(version: u32) -> Self {
        Self { version, block: PATTERN.clone(), part: PATTERN[PART..2 * PART].into() }
    }

    pub(crate) fn version(&self) -> u32 {
        self.version
    }

    /// The content of a whole block.
    pub(crate) fn block(&mut self, lba: u64) -> &[u8] {
        stamp(&mut self.block, BLOCK_MAGIC, lba, self.version);
        &self.block
    }

    /// The content of a small write into a block.
    pub(crate) fn part(&mut self, lba: u64) -> &[u8] {
        stamp(&mut self.part, PART_MAGIC, lba, self.version);
        &self.part
    }

    /// Many blocks from `lba` on, one after another.
    pub(crate) fn fill(&mut self, lba: u64, blocks: &mut [u8]) {
        for (at, block) in (lba..).zip(blocks.chunks_exact_mut(BLOCK)) {
            block.copy_from_slice(self.block(at));
        }
    }

    /// Readdresses blocks that [`fill`](Self::fill) has laid out once.
    pub(crate) fn readdress(&self, lba: u64, blocks: &mut [u8]) {
        for (at, block) in (lba..).zip(blocks.chunks_exact_mut(BLOCK)) {
            stamp(block, BLOCK_MAGIC, at, self.version);
        }
    }

    /// Writes blocks with another version from now on.
    pub(crate) fn set_version(&mut self, version: u32) {
        self.version = version;
    }
}

/// Writes the block of this address and version anew.
pub(crate) fn redraw(lba: u64, version: u32, block: &mut [u8]) {
    block.copy_from_slice(&PATTERN);
    stamp(block, BLOCK_MAGIC, lba, version);
}

fn stamp(bytes: &mut [u8], magic: u64, lba: u64, version: u32) {
    let version = u64::from(version);
    let tail = bytes.len() - 8;
    bytes[..8].copy_from_slice(&magic.to_le_bytes());
    bytes[8..16].copy_from_slice(&lba.to_le_bytes());
    bytes[16..HEAD].copy_from_slice(&version.to_le_bytes());
    bytes[tail..].copy_from_slice(&(magic ^ lba ^ version.rotate_left(32)).to_le_bytes());
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// Address and version of a stamped block; nothing when these bytes are none.
pub(crate) fn recognise(block: &[u8]) -> Option<(u64, u32)> {
    if word(block, 0) != BLOCK_MAGIC {
        return None;
    }
    let (lba, version) = (word(block, 8), word(block, 16));
    let whole = word(block, TAIL) == BLOCK_MAGIC ^ lba ^ version.rotate_left(32);
    whole.then_some((lba, version as u32))
}

/// The version that every block of a volume must have.
#[derive(Clone)]
pub(crate) struct Ledger {
    blocks: Vec<u32>,
    /// Version of the small write into a block, 0 where there was none since.
    parts: Vec<u32>,
}

impl Ledger {
    pub(crate) fn new(blocks: u64) -> Self {
        Self { blocks: vec![0; blocks as usize], parts: vec![0; blocks as usize] }
    }

    pub(crate) fn wrote_block(&mut self, lba: u64, version: u32) {
        (self.blocks[lba as usize], self.parts[lba as usize]) = (version, 0);
    }

    pub(crate) fn wrote_part(&mut self, lba: u64, version: u32) {
        self.parts[lba as usize] = version;
    }

    /// Whether the head of a block that was read is right: cheap enough for timed reads.
    pub(crate) fn glance(&self, lba: u64, block: &[u8]) -> Result<()> {
        let wanted = (BLOCK_MAGIC, lba, u64::from(self.blocks[lba as usize]));
        if (word(block, 0), word(block, 8), word(block, 16)) == wanted {
            return Ok(());
        }
        let found = match recognise(block) {
            Some((lba, version)) => format!("block {lba} in version {version}"),
            None => "foreign bytes".to_owned(),
        };
        Err(format!("block {lba} in version {} was to be read, it is {found}", wanted.2).into())
    }

    /// Whether every byte of a block that was read is right.
    pub(crate) fn check(&self, lba: u64, block: &[u8], ink: &mut Ink) -> Result<()> {
        self.glance(lba, block)?;
        ink.set_version(self.blocks[lba as usize]);
        let mut wanted = ink.block(lba).to_vec();
        let part = self.parts[lba as usize];
        if part > 0 {
            ink.set_version(part);
            wanted[PART_START..PART_START + PART].copy_from_slice(ink.part(lba));
        }
        if wanted != block {
            return Err(format!("block {lba} has foreign bytes").into());
        }
        Ok(())
    }
}
