//! The engine on a pool file, with default options, or with mmap reads and all else default.

use std::path::Path;

use snapvol::{
    AttachOptions, CreateOptions, Disk, Pool, ReadMode, RollbackOptions, SnapshotId, SnapshotSpec, VolumeId,
    VolumeSpec,
};

use crate::Result;
use crate::store::{After, Store};

pub(crate) struct Engine {
    name: &'static str,
    pool: Pool,
    disk: Disk,
    volume: VolumeId,
    snapshot: Option<SnapshotId>,
}

impl Engine {
    pub(crate) const NAME: &str = "engine";
    pub(crate) const MMAP: &str = "engine-mmap";

    pub(crate) fn create(folder: &Path, mode: ReadMode, volume_bytes: u64) -> Result<Self> {
        let name = if mode == ReadMode::Mmap { Self::MMAP } else { Self::NAME };
        let pool = Pool::create(folder.join(name), CreateOptions::new().read_mode(mode))?;
        let volume = pool.create_volume(VolumeSpec::blank(volume_bytes))?.id;
        let disk = pool.attach(volume, AttachOptions::new())?;
        Ok(Self { name, pool, disk, volume, snapshot: None })
    }
}

impl Store for Engine {
    fn name(&self) -> &'static str {
        self.name
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        Ok(self.disk.read_at(buf, offset)?)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        Ok(self.disk.write_at(data, offset)?)
    }

    fn flush(&self) -> Result<()> {
        Ok(self.disk.flush()?)
    }

    fn settle(&self) -> Result<()> {
        Ok(self.pool.checkpoint()?)
    }

    fn snapshot(&mut self) -> Result<()> {
        self.snapshot = Some(self.pool.create_snapshot(self.volume, SnapshotSpec::new().force(true))?.id);
        Ok(())
    }

    fn release(&mut self) -> Result<After> {
        if let Some(snapshot) = self.snapshot.take() {
            self.pool.delete_snapshot(snapshot)?.wait()?;
        }
        Ok(After::Kept)
    }

    fn rollback(&mut self) -> Result<bool> {
        if let Some(snapshot) = self.snapshot {
            self.pool.rollback_with(snapshot, RollbackOptions::new().live(true))?;
        }
        Ok(self.snapshot.is_some())
    }
}
