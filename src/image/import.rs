//! Import: a volume filled from an image.

use std::ops::ControlFlow;

use serde::Serialize;

use super::{ImageProgress, ImageSource, PIECE_BYTES, failed, refused};
use crate::error::{Corruption, Error, Result, Violation};
use crate::format::{block_crc, is_zero};
use crate::memory;
use crate::pool::{Fingerprint, Fingerprinter, Importing, Pool, Volume, VolumeSpec};
use crate::units::{BLOCK, BLOCK_BYTES, MAX_VOLUME_BYTES};

/// What was imported.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[non_exhaustive]
pub struct Imported {
    /// The new volume.
    pub volume: Volume,
    /// Bytes of data that were written; zeroes and holes take none.
    pub data_bytes: u64,
    /// Fingerprint of what was read, which is that of the volume.
    pub fingerprint: Fingerprint,
}

impl Pool {
    /// Makes a volume with the content of an image: a [`RawImage`](super::RawImage), with the feature `qcow2` a
    /// `Qcow2Image`, or any other [`ImageSource`](super::ImageSource). The volume is as large as the image, rounded
    /// up to whole blocks of 4,096 bytes, or larger where the spec says so.
    ///
    /// Holes are skipped, blocks of zeroes are found and not written. The volume appears when all of it is there
    /// and its checksums are those of what was read; durable on return. `progress` is called every MiB; when it
    /// answers `Break` the import ends with `Cancelled`.
    ///
    /// ```no_run
    /// # use std::{fs::File, ops::ControlFlow};
    /// # use snapvol::{image::RawImage, *};
    /// # fn main() -> Result<()> {
    /// # let pool = Pool::create_in_memory(CreateOptions::new())?;
    /// # let file = File::open("debian.raw").unwrap();
    /// let image = RawImage::open(file)?;
    /// let made = pool.import(image, VolumeSpec::image().name("debian"), |_| ControlFlow::Continue(()))?;
    /// println!("{} bytes of data", made.data_bytes);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// After any error nothing is left. `Refused` when the image is damaged or lies; `InvalidArgument` for an
    /// empty image, or a spec as in [`create_volume`](Self::create_volume); `AlreadyExists` for a supplied id that
    /// is taken; `Cancelled`; `Io` when the image cannot be read; `ReadOnly`, `OutOfSpace`, `Poisoned`, `Closed`.
    pub fn import(
        &self,
        source: impl ImageSource,
        spec: VolumeSpec,
        mut progress: impl FnMut(ImageProgress) -> ControlFlow<()>,
    ) -> Result<Imported> {
        let image_bytes = source.size_bytes();
        if image_bytes == 0 || image_bytes > MAX_VOLUME_BYTES {
            let why = format!("it has {image_bytes} bytes; a volume has 1 to {MAX_VOLUME_BYTES}");
            return Err(Error::invalid("image", Violation::Size, why));
        }
        let filling = self.begin_import(spec, image_bytes.next_multiple_of(BLOCK_BYTES))?;
        let mut import = Import {
            source: &source,
            image_bytes,
            print: Fingerprinter::new(filling.size_bytes()),
            filling,
            progress: ImageProgress { size_bytes: image_bytes, ..ImageProgress::default() },
        };
        import.run(&mut progress)?;
        let Import { filling, print, progress: done, .. } = import;
        let (want, got) = (print.finish(), filling.fingerprint()?);
        if want != got {
            return Err(Corruption::new("imported volume", 0, "fingerprint", want, got).into());
        }
        Ok(Imported { volume: filling.finish()?, data_bytes: done.data_bytes, fingerprint: got })
    }
}

struct Import<'a> {
    source: &'a dyn ImageSource,
    image_bytes: u64,
    filling: Importing,
    print: Fingerprinter,
    progress: ImageProgress,
}

impl Import<'_> {
    fn run(&mut self, each: &mut dyn FnMut(ImageProgress) -> ControlFlow<()>) -> Result<()> {
        let mut buffer = Vec::new();
        let mut at = 0;
        while at < self.image_bytes {
            let next = self.source.next_data(at).map_err(failed("search of the image", at, 0))?;
            let Some(range) = next else { break };
            if range.start < at || range.end <= range.start || range.end > self.image_bytes {
                let why = format!("data at {range:?}, asked for from {at} to {}", self.image_bytes);
                return Err(refused("image", at, why));
            }
            // Whole blocks; `at` is always the start of one, or the end.
            at = range.start / BLOCK_BYTES * BLOCK_BYTES;
            let end = range.end.next_multiple_of(BLOCK_BYTES);
            while at < end {
                let n = (end - at).min(PIECE_BYTES);
                buffer.clear();
                memory::resize(&mut buffer, n as usize, 0)?;
                // The last block of an image may be cut short; the rest of it stays zero.
                let there = n.min(self.image_bytes - at);
                let part = &mut buffer[..there as usize];
                self.source.read_at(part, at).map_err(failed("read of the image", at, there))?;
                self.store(at / BLOCK_BYTES, &buffer)?;
                at += n;
                self.progress.position = at.min(self.image_bytes);
                if each(self.progress).is_break() {
                    return Err(Error::Cancelled { op: "import" });
                }
            }
        }
        self.progress.position = self.image_bytes;
        Ok(())
    }

    /// Writes what is not zero.
    fn store(&mut self, lba: u64, piece: &[u8]) -> Result<()> {
        let blocks: Vec<bool> = piece.chunks_exact(BLOCK).map(is_zero).collect();
        let mut from = 0;
        for run in blocks.chunk_by(|a, b| a == b) {
            let bytes = &piece[from * BLOCK..][..run.len() * BLOCK];
            if !run[0] {
                for (lba, block) in (lba + from as u64..).zip(bytes.chunks_exact(BLOCK)) {
                    self.print.add(lba, block_crc(block));
                }
                self.filling.write(lba + from as u64, bytes)?;
                self.progress.data_bytes += bytes.len() as u64;
            }
            from += run.len();
        }
        Ok(())
    }
}
