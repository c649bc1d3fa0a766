//! Pools that the engine's own rows are measured on.

use snapvol::{
    AttachOptions, CreateOptions, Disk, OpenOptions, Pool, SnapshotId, SnapshotSpec, VolumeId, VolumeQuery,
    VolumeSpec,
};

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::Result;
use crate::device::Stamps;
use crate::stamp::{BLOCK, BLOCK_BYTES, Ink, recognise};

const MIB: u64 = 1 << 20;

/// Where a pool lies.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Medium {
    File,
    /// See [`Stamps`].
    Stamps,
}

impl Medium {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Stamps => "stamps",
        }
    }

    pub(crate) fn create(self, path: &Path, options: CreateOptions) -> Result<Pool> {
        Ok(match self {
            Self::File => Pool::create(path, options)?,
            Self::Stamps => Pool::create_on(Stamps::create(path)?, options)?,
        })
    }

    /// The pool, and a counter of the device's reads where it has one.
    pub(crate) fn open(self, path: &Path, options: OpenOptions) -> Result<(Pool, Arc<AtomicU64>)> {
        match self {
            Self::File => Ok((Pool::open(path, options)?, Arc::default())),
            Self::Stamps => {
                let device = Stamps::open(path)?;
                let reads = device.reads();
                Ok((Pool::open_on(device, options)?, reads))
            }
        }
    }
}

/// How a volume is laid down.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    Sequential,
    /// In random blocks of 4 KiB.
    Random,
}

/// An attached volume of an engine's pool.
pub(crate) struct Mapped {
    pub(crate) id: VolumeId,
    pub(crate) disk: Disk,
}

impl Mapped {
    /// A new volume, mapped from end to end in version 1 and checkpointed.
    pub(crate) fn create(pool: &Pool, bytes: u64, layout: Layout) -> Result<Self> {
        let mapped = Self::blank(pool, bytes)?;
        match layout {
            Layout::Sequential => mapped.map_sequentially(0..bytes)?,
            Layout::Random => {
                let mut lbas: Vec<u32> = (0..(bytes / BLOCK_BYTES) as u32).collect();
                fastrand::Rng::with_seed(bytes).shuffle(&mut lbas);
                let mut ink = Ink::new(1);
                lbas.into_iter().try_for_each(|lba| mapped.write(u64::from(lba), &mut ink))?;
            }
        }
        pool.checkpoint()?;
        Ok(mapped)
    }

    pub(crate) fn blank(pool: &Pool, bytes: u64) -> Result<Self> {
        let id = pool.create_volume(VolumeSpec::blank(bytes))?.id;
        Ok(Self { id, disk: pool.attach(id, AttachOptions::new())? })
    }

    /// The first volume of a pool.
    pub(crate) fn first(pool: &Pool) -> Result<Self> {
        let page = pool.list_volumes(&VolumeQuery::new().limit(1))?;
        let id = page.items.first().ok_or("the pool has no volume")?.id;
        Ok(Self { id, disk: pool.attach(id, AttachOptions::new())? })
    }

    pub(crate) fn blocks(&self) -> u64 {
        self.disk.size_bytes() / BLOCK_BYTES
    }

    pub(crate) fn map_sequentially(&self, bytes: std::ops::Range<u64>) -> Result<()> {
        let mut ink = Ink::new(1);
        let mut piece = vec![0; MIB as usize];
        ink.fill(0, &mut piece);
        for offset in bytes.step_by(MIB as usize) {
            ink.readdress(offset / BLOCK_BYTES, &mut piece);
            self.disk.write_at(&piece, offset)?;
        }
        Ok(())
    }

    pub(crate) fn write(&self, lba: u64, ink: &mut Ink) -> Result<()> {
        Ok(self.disk.write_at(ink.block(lba), lba * BLOCK_BYTES)?)
    }

    /// Reads a block and recognises it.
    pub(crate) fn read(&self, lba: u64, block: &mut [u8]) -> Result<()> {
        self.disk.read_at(block, lba * BLOCK_BYTES)?;
        match recognise(block) {
            Some((found, _)) if found == lba => Ok(()),
            _ => Err(format!("block {lba} is not what was written there").into()),
        }
    }

    /// Overwrites random blocks, each drawn anew.
    pub(crate) fn overwrite(&self, count: u64, version: u32, rng: &mut fastrand::Rng) -> Result<()> {
        let mut ink = Ink::new(version);
        (0..count).try_for_each(|_| self.write(rng.u64(..self.blocks()), &mut ink))
    }

    /// Reads random blocks and recognises them.
    pub(crate) fn verify(&self, count: u64, rng: &mut fastrand::Rng) -> Result<()> {
        let mut block = vec![0; BLOCK];
        (0..count).try_for_each(|_| self.read(rng.u64(..self.blocks()), &mut block))
    }

    pub(crate) fn snapshot(&self, pool: &Pool) -> Result<SnapshotId> {
        Ok(pool.create_snapshot(self.id, SnapshotSpec::new().force(true))?.id)
    }
}
