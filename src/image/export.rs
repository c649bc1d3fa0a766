//! Export: an image file with the content of a volume or snapshot.

use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;

use serde::Serialize;

use super::qcow2_writer::Qcow2Writer;
use super::{ImageProgress, PIECE_BYTES};
use crate::error::{Corruption, Error, Result, Violation};
use crate::format::{block_crc, is_zero};
use crate::memory;
use crate::pool::{Diff, ExtentKind, Fingerprint, Point, Pool};
use crate::units::{BLOCK, BLOCK_BYTES};

/// Formats that can be written.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
#[non_exhaustive]
pub enum ImageFormat {
    /// The bytes of the disk, sparse.
    Raw,
    /// QCOW version 3, clusters of 64 KiB, without backing file, snapshots or compression; for disks of up to
    /// 2 PiB.
    Qcow2,
}

/// How to export.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
#[must_use]
pub struct ExportOptions {
    format: ImageFormat,
    verify: bool,
}

impl ExportOptions {
    /// Into this format, and compared afterwards.
    pub fn new(format: ImageFormat) -> Self {
        Self { format, verify: true }
    }
    /// Whether the image is read again when it is complete, and each block compared with its checksum in the
    /// pool. On by default.
    pub fn verify(mut self, on: bool) -> Self {
        self.verify = on;
        self
    }
}

/// What was exported.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
#[non_exhaustive]
pub struct Exported {
    /// Size of the disk in bytes.
    pub size_bytes: u64,
    /// Bytes of data in the image; zeroes and holes take none.
    pub data_bytes: u64,
    /// Length of the file in bytes, holes included.
    pub file_bytes: u64,
    /// Fingerprint of what was exported.
    pub fingerprint: Fingerprint,
}

/// Where the blocks of an image go.
pub(super) trait Sink {
    /// Whole blocks that are not zero, in ascending order.
    fn put(&mut self, file: &File, lba: u64, blocks: &[u8]) -> std::io::Result<()>;
    /// Everything has been put.
    fn finish(&mut self, file: &File) -> std::io::Result<()>;
    /// Reads a block back; one that was not put is zero.
    fn read(&mut self, file: &File, lba: u64, block: &mut [u8; BLOCK]) -> std::io::Result<()>;
}

struct Raw {
    size_bytes: u64,
}

impl Sink for Raw {
    fn put(&mut self, file: &File, lba: u64, blocks: &[u8]) -> std::io::Result<()> {
        file.write_all_at(blocks, lba * BLOCK_BYTES)
    }
    fn finish(&mut self, file: &File) -> std::io::Result<()> {
        file.set_len(self.size_bytes)
    }
    fn read(&mut self, file: &File, lba: u64, block: &mut [u8; BLOCK]) -> std::io::Result<()> {
        file.read_exact_at(block, lba * BLOCK_BYTES)
    }
}

impl Pool {
    /// Writes the content of a volume or snapshot, as it is when the call begins, into an empty file that is open
    /// for reading and writing. The image is complete and durable on return; its name is the caller's business.
    ///
    /// Holes and blocks of zeroes are not written. `progress` is called every MiB, also while the image is
    /// compared; when it answers `Break` the export ends with `Cancelled`.
    ///
    /// # Errors
    /// After any error the file is empty again. `InvalidArgument` when it is not an empty regular file, or the disk
    /// is larger than the format can hold; `NotFound`; `Corrupt` when a block of the pool is damaged, or the image
    /// is not what was written; `Cancelled`; `Io`; `OutOfSpace` of the pool, `Poisoned`, `Closed`.
    pub fn export(
        &self,
        point: impl Into<Point>,
        file: &File,
        options: ExportOptions,
        mut progress: impl FnMut(ImageProgress) -> ControlFlow<()>,
    ) -> Result<Exported> {
        let there = file.metadata().map_err(io("length of the image", 0))?;
        if !there.is_file() || there.len() > 0 {
            let why = format!("an empty regular file is needed, this one has {} bytes", there.len());
            return Err(Error::invalid("file", Violation::Range, why));
        }
        let frozen = self.freeze(point.into())?;
        let size_bytes = frozen.size_bytes();
        let sink: Box<dyn Sink> = match options.format {
            ImageFormat::Raw => Box::new(Raw { size_bytes }),
            ImageFormat::Qcow2 => Box::new(Qcow2Writer::new(size_bytes)?),
        };
        let mut export = Export {
            frozen,
            file,
            sink,
            progress: ImageProgress { size_bytes, ..ImageProgress::default() },
            each: &mut progress,
        };
        let done = export.run(options.verify);
        if done.is_err() {
            // The first error says more than one about this.
            let _ = file.set_len(0);
        }
        done
    }
}

struct Export<'a> {
    frozen: Diff,
    file: &'a File,
    sink: Box<dyn Sink>,
    progress: ImageProgress,
    each: &'a mut dyn FnMut(ImageProgress) -> ControlFlow<()>,
}

fn io(op: &'static str, offset: u64) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::Io { op, offset, len: 0, source }
}

impl Export<'_> {
    fn run(&mut self, verify: bool) -> Result<Exported> {
        self.pieces(Self::write)?;
        self.sink.finish(self.file).map_err(io("write of the image", 0))?;
        self.file.sync_all().map_err(io("sync of the image", 0))?;
        if verify {
            self.progress = ImageProgress { position: 0, verifying: true, ..self.progress };
            self.frozen.rewind();
            self.pieces(Self::compare)?;
        }
        let file_bytes = self.file.metadata().map_err(io("length of the image", 0))?.len();
        Ok(Exported {
            size_bytes: self.progress.size_bytes,
            data_bytes: self.progress.data_bytes,
            file_bytes,
            fingerprint: self.frozen.fingerprint()?,
        })
    }

    /// Does `job` with every piece of data.
    fn pieces(&mut self, job: impl Fn(&mut Self, u64, u64) -> Result<()>) -> Result<()> {
        while let Some(change) = self.frozen.next().transpose()? {
            let mut at = change.range.start;
            while change.kind == ExtentKind::Data && at < change.range.end {
                let n = (change.range.end - at).min(PIECE_BYTES);
                job(self, at / BLOCK_BYTES, n / BLOCK_BYTES)?;
                at += n;
                self.tell(at)?;
            }
            self.progress.position = change.range.end;
        }
        self.tell(self.progress.size_bytes)
    }

    fn tell(&mut self, position: u64) -> Result<()> {
        self.progress.position = position;
        if (self.each)(self.progress).is_break() { Err(Error::Cancelled { op: "export" }) } else { Ok(()) }
    }

    fn write(&mut self, lba: u64, blocks: u64) -> Result<()> {
        let mut data = memory::filled(0, blocks as usize * BLOCK)?;
        self.frozen.read(lba, &mut data)?;
        let zero: Vec<bool> = data.chunks_exact(BLOCK).map(is_zero).collect();
        let mut from = 0;
        for run in zero.chunk_by(|a, b| a == b) {
            if !run[0] {
                let bytes = &data[from * BLOCK..][..run.len() * BLOCK];
                let lba = lba + from as u64;
                self.sink.put(self.file, lba, bytes).map_err(io("write of the image", lba * BLOCK_BYTES))?;
                self.progress.data_bytes += bytes.len() as u64;
            }
            from += run.len();
        }
        Ok(())
    }

    fn compare(&mut self, lba: u64, blocks: u64) -> Result<()> {
        let mut sums = Vec::with_capacity(blocks as usize);
        self.frozen.sums(lba, blocks, &mut sums)?;
        let mut block = [0; BLOCK];
        for (lba, want) in (lba..).zip(sums) {
            self.sink.read(self.file, lba, &mut block).map_err(io("read of the image", lba * BLOCK_BYTES))?;
            let got = block_crc(&block);
            if got != want {
                let (want, got) = (format!("{want:#010x}"), format!("{got:#010x}"));
                return Err(Corruption::new("exported image", lba, "checksum of the block", want, got).into());
            }
        }
        Ok(())
    }
}
