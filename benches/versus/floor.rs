//! `raw-4k`: a plain file laid down 4 KiB at a time, driven with pread, pwrite and fdatasync.
//!
//! It preserves nothing and checks nothing. Written in larger pieces it would have large folios, and random writes
//! into those are several times slower: a flattering floor.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::Result;
use crate::store::{After, Store};

pub(crate) struct Floor {
    file: File,
}

impl Floor {
    pub(crate) const NAME: &str = "raw-4k";

    pub(crate) fn create(folder: &Path) -> Result<Self> {
        let path = folder.join("raw-4k.img");
        Ok(Self { file: OpenOptions::new().read(true).write(true).create_new(true).open(path)? })
    }
}

impl Store for Floor {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        Ok(self.file.read_exact_at(buf, offset)?)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        Ok(self.file.write_all_at(data, offset)?)
    }

    fn flush(&self) -> Result<()> {
        Ok(self.file.sync_data()?)
    }

    fn snapshot(&mut self) -> Result<()> {
        Ok(())
    }

    fn release(&mut self) -> Result<After> {
        Ok(After::Kept)
    }

    fn rollback(&mut self) -> Result<bool> {
        Ok(false)
    }
}
