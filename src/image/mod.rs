//! Disk images: import from and export to raw and qcow2 files.
//!
//! - M1 Nothing of an import is to be seen before the whole image has been read, and nothing is left of one that
//!   failed, was cancelled or was cut short by a crash.
//! - M2 No image names another file: backing files and external data files are refused, formats are never guessed.
//! - M3 What was stored is compared with what was read, block checksum by block checksum, and what was written to
//!   an image is read back and compared with the checksums in the pool.
//! - M4 Holes stay holes both ways, and blocks that are all zero are not written.
//! - M5 An image that lies about lengths and places costs bounded memory and ends in an error.
//!
//! It assumes of `pool` that a frozen point stays as it is, and that a volume being filled is hidden.

mod export;
mod import;
#[cfg(feature = "qcow2")]
mod qcow2;
mod qcow2_writer;
mod raw;

pub use export::{ExportOptions, Exported, ImageFormat};
pub use import::Imported;
#[cfg(feature = "qcow2")]
pub use qcow2::Qcow2Image;
pub use raw::RawImage;

use std::io;
use std::ops::Range;

use serde::Serialize;

use crate::error::Error;

/// How far an import or export has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct ImageProgress {
    /// Bytes of the image that have been dealt with, from its start, holes included.
    pub position: u64,
    /// Size of the image in bytes.
    pub size_bytes: u64,
    /// Bytes of data that have been written.
    pub data_bytes: u64,
    /// What has been written is being compared with what it was made from.
    pub verifying: bool,
}

/// Bytes that a volume can be filled from: an image file, or whatever else can be read at an offset.
pub trait ImageSource: Send + Sync {
    /// Size in bytes. It must not change.
    fn size_bytes(&self) -> u64;

    /// Fills `buf` with the bytes from `offset` on, all of them.
    ///
    /// # Errors
    /// `InvalidData` or `UnexpectedEof` when the image is not what it should be; others when it cannot be read.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// The next range at or behind `offset` that may hold other bytes than zeroes; `None` when there is none. The
    /// default says that all the rest may.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        Ok((offset < self.size_bytes()).then(|| offset..self.size_bytes()))
    }
}

impl<T: ImageSource + ?Sized> ImageSource for &T {
    fn size_bytes(&self) -> u64 {
        (**self).size_bytes()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_at(buf, offset)
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        (**self).next_data(offset)
    }
}

/// Bytes read or written at once.
const PIECE_BYTES: u64 = 1 << 20;

fn refused(input: &'static str, offset: u64, why: impl Into<String>) -> Error {
    Error::refused(input, offset, why)
}

/// What went wrong with an image that is read.
fn failed(op: &'static str, offset: u64, len: u64) -> impl FnOnce(io::Error) -> Error {
    move |source| match source.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
            refused("image", offset, source.to_string())
        }
        _ => Error::Io { op, offset, len, source },
    }
}
