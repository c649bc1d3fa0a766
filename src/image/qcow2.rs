//! Reading qcow2, by way of the imago crate.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use imago::format::drivers::FormatDriverInstance;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, Mapping};

use super::{ImageSource, failed, refused};
use crate::error::Result;
use crate::units::MAX_VOLUME_BYTES;

const INPUT: &str = "qcow2 image";
/// Bytes of the header that are looked at before anything else is.
const HEADER: usize = 104;
/// Largest L1 table: 32 MiB, as QEMU has it.
const MAX_L1_BYTES: u64 = 32 << 20;
/// Incompatible features that do not matter to a reader: the image was not closed cleanly.
const DIRTY: u64 = 1;
/// The type of compression is given; deflate is 0.
const COMPRESSION: u64 = 8;

/// A qcow2 image of version 2 or 3 that was opened for reading, compressed or not.
///
/// It stands alone: one with a backing file, an external data file or encryption is refused. Snapshots inside the
/// image are not looked at.
pub struct Qcow2Image {
    image: FormatAccess<imago::file::File>,
    size_bytes: u64,
    file_bytes: u64,
}

impl Qcow2Image {
    /// Takes a file as it is, and looks at its header. The file is not written.
    ///
    /// # Errors
    /// `Refused` when it is no qcow2 image, is damaged, or names other files; `Io`.
    pub fn open(file: File) -> Result<Self> {
        let file_bytes = file.metadata().map_err(failed("length of the image", 0, 0))?.len();
        check_header(&file, file_bytes)?;
        let storage = imago::file::File::try_from(file).map_err(failed("open of the image", 0, 0))?;
        let broken = |e: io::Error| match at_fault(e) {
            e if e.kind() == io::ErrorKind::InvalidData => refused(INPUT, 0, e.to_string()),
            e => failed("read of the image", 0, 0)(e),
        };
        let mut image: Qcow2<imago::file::File> = Qcow2::open_image(storage, false).map_err(broken)?;
        if image.requires_external_data_file()
            || image.implicit_external_data_file().is_some()
            || image.implicit_backing_file().is_some()
        {
            return Err(refused(INPUT, 0, "it names another file; only images that stand alone are read"));
        }
        image.set_backing(None);
        image.set_data_file(None);
        let size_bytes = image.size();
        Ok(Self { image: FormatAccess::new(image), size_bytes, file_bytes })
    }
}

/// What the system did not report is the image's fault.
fn at_fault(e: io::Error) -> io::Error {
    if e.raw_os_error().is_some() { e } else { io::Error::new(io::ErrorKind::InvalidData, e) }
}

/// Refuses what must not be followed, and what would cost memory that the file does not justify.
fn check_header(file: &File, file_bytes: u64) -> Result<()> {
    let mut head = [0; HEADER];
    let there = file_bytes.min(HEADER as u64) as usize;
    file.read_exact_at(&mut head[..there], 0).map_err(failed("read of the image", 0, there as u64))?;
    let u32_at = |at: usize| head[at..at + 4].iter().fold(0u32, |n, byte| (n << 8) | u32::from(*byte));
    let u64_at = |at: usize| (u64::from(u32_at(at)) << 32) | u64::from(u32_at(at + 4));
    let refuse = |at: u64, why: String| Err(refused(INPUT, at, why));
    if head[..4] != *b"QFI\xfb" {
        return refuse(0, "this is no qcow2 image: it does not begin with QFI".into());
    }
    let version = u32_at(4);
    if there < 72 || !(2..=3).contains(&version) || (version == 3 && there < HEADER) {
        return refuse(4, format!("version {version} in {file_bytes} bytes; versions 2 and 3 are known"));
    }
    if u64_at(8) != 0 || u32_at(16) != 0 {
        return refuse(8, "it has a backing file; only images that stand alone are read".into());
    }
    let cluster_bits = u32_at(20);
    if !(9..=21).contains(&cluster_bits) {
        return refuse(20, format!("clusters of 2^{cluster_bits} bytes; 2^9 to 2^21 are known"));
    }
    let size_bytes = u64_at(24);
    if size_bytes == 0 || size_bytes > MAX_VOLUME_BYTES {
        return refuse(24, format!("a disk of {size_bytes} bytes; 1 to {MAX_VOLUME_BYTES} are possible"));
    }
    if u32_at(32) != 0 {
        return refuse(32, "it is encrypted".into());
    }
    let (l1_bytes, l1_at) = (u64::from(u32_at(36)) * 8, u64_at(40));
    if l1_bytes > MAX_L1_BYTES || l1_at.checked_add(l1_bytes).is_none_or(|end| end > file_bytes) {
        return refuse(36, format!("an L1 table of {l1_bytes} bytes at {l1_at}, in a file of {file_bytes}"));
    }
    let reach = (l1_bytes / 8).saturating_mul(1 << (2 * cluster_bits - 3));
    if reach < size_bytes {
        return refuse(36, format!("its L1 table reaches {reach} of {size_bytes} bytes"));
    }
    let features = if version == 3 { u64_at(72) } else { 0 };
    if features & !(DIRTY | COMPRESSION) != 0 {
        let why =
            format!("incompatible features {features:#x}: an external data file, damage, or unknown ones");
        return refuse(72, why);
    }
    Ok(())
}

impl ImageSource for Qcow2Image {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.image.read(buf, offset).map_err(at_fault)
    }

    fn next_data(&self, mut offset: u64) -> io::Result<Option<Range<u64>>> {
        while offset < self.size_bytes {
            let (mapping, len) =
                self.image.get_mapping(offset, self.size_bytes - offset).map_err(at_fault)?;
            let end = offset.saturating_add(len).min(self.size_bytes);
            if end <= offset {
                return Ok(None);
            }
            match mapping {
                Mapping::Zero { .. } => offset = end,
                // Behind the end of the file everything would read zero: an image that was cut short.
                Mapping::Raw { offset: at, .. } if at >= self.file_bytes => {
                    let why = format!("data at {at}, and the file ends at {}", self.file_bytes);
                    return Err(io::Error::new(io::ErrorKind::InvalidData, why));
                }
                Mapping::Raw { offset: at, .. }
                    if at.saturating_add(end - offset) > self.file_bytes + (2 << 20) =>
                {
                    let why = format!("data at {at}, and the file ends at {}", self.file_bytes);
                    return Err(io::Error::new(io::ErrorKind::InvalidData, why));
                }
                _ => return Ok(Some(offset..end)),
            }
        }
        Ok(None)
    }
}

impl std::fmt::Debug for Qcow2Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Qcow2Image").field("size_bytes", &self.size_bytes).finish_non_exhaustive()
    }
}
