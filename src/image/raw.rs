//! Raw images: the bytes of the disk, and holes where the file system keeps them.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::ImageSource;
use crate::error::{Error, Result};

/// A raw image, or a block device, that was opened for reading.
#[derive(Debug)]
pub struct RawImage {
    file: File,
    size_bytes: u64,
}

impl RawImage {
    /// Takes a file as it is. Its position is moved; its content is not touched.
    ///
    /// # Errors
    /// `Io` when its length cannot be told.
    pub fn open(file: File) -> Result<Self> {
        let size_bytes = rustix::fs::seek(&file, SeekFrom::End(0)).map_err(|e| Error::Io {
            op: "length of the image",
            offset: 0,
            len: 0,
            source: e.into(),
        })?;
        Ok(Self { file, size_bytes })
    }

    /// The position right behind the hole or the data that lies at `offset`; `None` past the last data.
    fn seek(&self, to: SeekFrom) -> io::Result<Option<u64>> {
        match rustix::fs::seek(&self.file, to) {
            Ok(at) => Ok(Some(at)),
            Err(Errno::NXIO) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }
}

impl ImageSource for RawImage {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        if offset >= self.size_bytes {
            return Ok(None);
        }
        match self.seek(SeekFrom::Data(offset)) {
            Ok(None) => Ok(None),
            Ok(Some(start)) => {
                let end = self.seek(SeekFrom::Hole(start))?.unwrap_or(self.size_bytes);
                let end = end.min(self.size_bytes);
                Ok((start < end).then_some(start..end))
            }
            // Not every file system, and no block device, knows its holes: then all may be data.
            Err(e) if e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                Ok(Some(offset..self.size_bytes))
            }
            Err(e) => Err(e),
        }
    }
}
