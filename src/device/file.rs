//! Files and block devices of the host.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut, Seek, SeekFrom};
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Advice, FallocateFlags, FlockOperation, fadvise, fallocate, flock};
use rustix::io::{Errno, pread, preadv, pwritev};

use super::Device;

mod mmap;
use mmap::ReadMap;

/// Writes of at least this many bytes, aligned to [`DIRECT_ALIGN`] in memory and in the file, go past the page
/// cache. Of smaller ones many are quicker through it: the next sync writes them together.
const DIRECT_BYTES: usize = 256 << 10;
const DIRECT_ALIGN: usize = 4096;

/// Most buffers that one vectored call of the operating system takes (`IOV_MAX` on Linux).
const MAX_VECTORS: usize = 1024;

/// A pool in a regular file or on a block device.
///
/// Reads are `pread` unless [`set_mmap_reads`](Self::set_mmap_reads) asks for a mapping; writes are always
/// `pwrite`, with `O_DIRECT` when they are large and aligned and the file system offers it. Interrupted calls are repeated and short transfers continued, so that a call either moves every
/// byte or fails.
pub struct FileDevice {
    file: File,
    /// The same file, opened past the page cache.
    direct: Option<File>,
    /// Absolute, so that `sync_parent` finds the directory after a `chdir` too.
    path: PathBuf,
    read_only: bool,
    block_device: bool,
    mmap_reads: AtomicBool,
    map: ReadMap,
}

impl FileDevice {
    /// Creates a new empty file at `path`, for reading and writing.
    ///
    /// Its name is durable only after [`sync_parent`](Self::sync_parent).
    ///
    /// # Errors
    /// `AlreadyExists` when the path is taken, else what the operating system says.
    pub fn create(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        Ok(Self::from_parts(file, path, false, false))
    }

    /// Opens the file or block device at `path`.
    ///
    /// # Errors
    /// `InvalidInput` when the path is neither (a directory, a pipe, a character device), else what the
    /// operating system says.
    pub fn open(path: impl AsRef<Path>, read_only: bool) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        // Looked at before it is opened: opening a pipe would wait for its other end.
        check_kind(&fs::metadata(&path)?)?;
        let file = OpenOptions::new().read(true).write(!read_only).open(&path)?;
        let block_device = check_kind(&file.metadata()?)?;
        Ok(Self::from_parts(file, path, read_only, block_device))
    }

    fn from_parts(file: File, path: PathBuf, read_only: bool, block_device: bool) -> Self {
        let direct = if read_only { None } else { open_direct(&file, &path) };
        let mmap_reads = AtomicBool::new(false);
        Self { file, direct, path, read_only, block_device, mmap_reads, map: ReadMap::new() }
    }

    /// The absolute path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the device was opened for reading only.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Makes the name of the file durable, by a sync of its directory.
    ///
    /// # Errors
    /// What the operating system says. A block device has no name to sync: always `Ok`.
    pub fn sync_parent(&self) -> io::Result<()> {
        if self.block_device {
            return Ok(());
        }
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        File::open(parent)?.sync_all()
    }

    /// Serves later reads from a read-only mapping of the file (`true`) or with `pread` (`false`, the default).
    ///
    /// A mapping makes hot reads cheaper. The price: when another program shortens the file, or the medium
    /// fails under a mapped page, the process gets `SIGBUS` instead of an error. Writes never go through it.
    pub fn set_mmap_reads(&self, on: bool) {
        self.mmap_reads.store(on, Ordering::Relaxed);
        if !on {
            self.map.without(|| ());
        }
    }

    fn file_len(&self) -> io::Result<u64> {
        if self.block_device {
            // The inode of a block device says 0. The cursor moved here is used by nothing else.
            (&self.file).seek(SeekFrom::End(0))
        } else {
            Ok(self.file.metadata()?.len())
        }
    }

    fn check_writable(&self) -> io::Result<()> {
        if self.read_only {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the device was opened read-only"));
        }
        Ok(())
    }

    fn extend_to(&self, end: u64) -> io::Result<()> {
        if end <= self.file_len()? {
            return Ok(());
        }
        if self.block_device {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.file.set_len(end)
    }
}

impl Drop for FileDevice {
    fn drop(&mut self) {
        // Closing the descriptor is not enough: a process that this one is just spawning has a copy of it until
        // its `exec`, and would keep the lock as long.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

impl Device for FileDevice {
    fn len(&self) -> io::Result<u64> {
        self.file_len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = end_of(offset, buf.len() as u64)?;
        if buf.is_empty() || !self.mmap_reads.load(Ordering::Relaxed) {
            return pread_exact(&self.file, buf, offset);
        }
        self.map.read(&self.file, || self.file_len(), buf, offset, end)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        if buf.len() >= DIRECT_BYTES {
            return self.write_soon(buf, offset);
        }
        self.check_writable()?;
        self.file.write_all_at(buf, offset)
    }

    fn write_soon(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.check_writable()?;
        let aligned = |n: u64| n.is_multiple_of(DIRECT_ALIGN as u64);
        if let Some(direct) = &self.direct
            && aligned(offset)
            && aligned(buf.len() as u64)
            && aligned(buf.as_ptr().addr() as u64)
        {
            match direct.write_all_at(buf, offset) {
                // A device with other ideas of alignment, or a short write that left an odd rest.
                Err(e) if e.kind() == io::ErrorKind::InvalidInput => {}
                other => return other,
            }
        }
        self.file.write_all_at(buf, offset)
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], mut offset: u64) -> io::Result<()> {
        if self.mmap_reads.load(Ordering::Relaxed) {
            for buf in bufs {
                self.read_at(buf, offset)?;
                offset += buf.len() as u64;
            }
            return Ok(());
        }
        let mut rest: Vec<IoSliceMut<'_>> = bufs.iter_mut().map(|buf| IoSliceMut::new(buf)).collect();
        let mut rest = &mut rest[..];
        IoSliceMut::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            let batch = rest.len().min(MAX_VECTORS);
            let moved = rustix::io::retry_on_intr(|| preadv(&self.file, &mut rest[..batch], offset))?;
            if moved == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            offset += moved as u64;
            IoSliceMut::advance_slices(&mut rest, moved);
        }
        Ok(())
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], mut offset: u64) -> io::Result<()> {
        self.check_writable()?;
        let mut rest = bufs.to_vec();
        let mut rest = &mut rest[..];
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            let batch = rest.len().min(MAX_VECTORS);
            let moved = rustix::io::retry_on_intr(|| pwritev(&self.file, &rest[..batch], offset))?;
            if moved == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            offset += moved as u64;
            IoSlice::advance_slices(&mut rest, moved);
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        // `sync_data` repeats interrupted calls. fdatasync makes the length durable as well, because the
        // data could not be read back without it.
        self.file.sync_data()
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_writable()?;
        let end = end_of(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        match rustix::io::retry_on_intr(|| fallocate(&self.file, FallocateFlags::empty(), offset, len)) {
            // No promise of space to be had here (tmpfs of old, FUSE, a block device): the length at least.
            Err(e) if is_unsupported(e) => self.extend_to(end),
            other => Ok(other?),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check_writable()?;
        if self.block_device {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the length of a block device is fixed"));
        }
        if len < self.file_len()? {
            // A mapped page past the new end would be a SIGBUS for a reader of ours.
            self.map.without(|| self.file.set_len(len))
        } else {
            self.file.set_len(len)
        }
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_writable()?;
        end_of(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::io::retry_on_intr(|| fallocate(&self.file, flags, offset, len)) {
            Err(e) if is_unsupported(e) => Err(io::Error::new(io::ErrorKind::Unsupported, e)),
            other => Ok(other?),
        }
    }

    fn lock(&self) -> io::Result<bool> {
        // flock, because its locks belong to this open of the file: a second open in the same process is
        // refused too, and closing some other descriptor of the file does not drop it, as with POSIX locks.
        let how = if self.read_only {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        match rustix::io::retry_on_intr(|| flock(&self.file, how)) {
            Err(Errno::WOULDBLOCK) => Ok(false),
            other => Ok(other.map(|()| true)?),
        }
    }

    fn will_need(&self, offset: u64, len: u64) {
        // A hint that is not taken costs what it would have saved, nothing else.
        let _ = fadvise(&self.file, offset, NonZeroU64::new(len), Advice::WillNeed);
    }

    fn drop_cache(&self) -> io::Result<()> {
        // Pages that are mapped stay cached whatever the advice says.
        self.map.without(|| match fadvise(&self.file, 0, None, Advice::DontNeed) {
            Err(e) if is_unsupported(e) => Ok(()),
            other => Ok(other?),
        })
    }

    fn can_grow(&self) -> bool {
        !self.block_device && !self.read_only
    }
}

impl fmt::Debug for FileDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileDevice")
            .field("path", &self.path)
            .field("read_only", &self.read_only)
            .field("block_device", &self.block_device)
            .finish_non_exhaustive()
    }
}

/// Fills `buf`. A system call without the C library around it, which would prepare each for cancellation: 3 % of
/// a hot read.
fn pread_exact(file: &File, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buf.is_empty() {
        let moved = rustix::io::retry_on_intr(|| pread(file, &mut *buf, offset))?;
        if moved == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buf = &mut buf[moved..];
        offset += moved as u64;
    }
    Ok(())
}

/// Opens `file` once more, past the page cache. `None` where that is not offered (tmpfs of old, FUSE).
fn open_direct(file: &File, path: &Path) -> Option<File> {
    let flags = rustix::fs::OFlags::DIRECT.bits().cast_signed();
    let direct = OpenOptions::new().write(true).custom_flags(flags).open(path).ok()?;
    // Somebody may have put another file in its place meanwhile.
    let (a, b) = (file.metadata().ok()?, direct.metadata().ok()?);
    (a.dev() == b.dev() && a.ino() == b.ino()).then_some(direct)
}

/// Whether this is a block device; an error when it is neither that nor a regular file.
fn check_kind(metadata: &fs::Metadata) -> io::Result<bool> {
    let kind = metadata.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a regular file nor a block device"));
    }
    Ok(kind.is_block_device())
}

/// End of a range whose end the operating system can express.
fn end_of(offset: u64, len: u64) -> io::Result<u64> {
    match offset.checked_add(len) {
        Some(end) if end <= i64::MAX as u64 => Ok(end),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "the range passes the largest file offset")),
    }
}

fn is_unsupported(e: Errno) -> bool {
    // On Linux NOTSUP is the same number as OPNOTSUPP.
    matches!(e, Errno::OPNOTSUPP | Errno::NOSYS)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use tempfile::TempDir;

    use super::*;

    fn new_device() -> (TempDir, FileDevice) {
        let dir = tempfile::tempdir().unwrap();
        let device = FileDevice::create(dir.path().join("pool")).unwrap();
        (dir, device)
    }

    fn read(device: &FileDevice, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut buf = vec![0xee; len];
        device.read_at(&mut buf, offset).map(|()| buf)
    }

    #[test]
    fn what_was_written_is_read_in_both_modes() {
        let (_dir, device) = new_device();
        device.write_at(b"hello", 10).unwrap();
        for mmap in [false, true] {
            device.set_mmap_reads(mmap);
            assert_eq!(read(&device, 8, 7).unwrap(), b"\0\0hello");
            assert_eq!(device.len().unwrap(), 15);
            for (offset, len) in [(8, 8), (15, 1), (1 << 40, 1)] {
                let e = read(&device, offset, len).unwrap_err();
                assert_eq!(e.kind(), io::ErrorKind::UnexpectedEof, "D3 at {offset}");
            }
            assert!(read(&device, u64::MAX - 1, 8).is_err());
            assert!(read(&device, 99, 0).is_ok());
        }
        device.sync().unwrap();
        device.sync_parent().unwrap();
    }

    #[test]
    fn mapping_follows_writes_growth_and_shrinking() {
        let (_dir, device) = new_device();
        device.set_mmap_reads(true);
        assert_eq!(read(&device, 0, 1).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        device.write_at(&[1; 5000], 0).unwrap();
        assert_eq!(read(&device, 0, 5000).unwrap(), [1; 5000]);
        device.write_at(&[2; 10], 0).unwrap();
        assert_eq!(read(&device, 0, 10).unwrap(), [2; 10]);
        device.write_at(&[3; 100_000], 5000).unwrap();
        assert_eq!(read(&device, 4999, 100_001).unwrap()[1..], [3; 100_000]);
        device.set_len(4096).unwrap();
        assert_eq!(read(&device, 5000, 1).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(read(&device, 4000, 96).unwrap(), [1; 96]);
        device.sync().unwrap();
        device.drop_cache().unwrap();
        assert_eq!(read(&device, 4000, 96).unwrap(), [1; 96]);
    }

    #[test]
    fn mapped_readers_survive_growth_and_shrinking_by_another_thread() {
        let (_dir, device) = new_device();
        device.set_mmap_reads(true);
        device.write_at(&[7; 8192], 0).unwrap();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        assert_eq!(read(&device, 0, 8192).unwrap(), [7; 8192]);
                        // Past the part that always exists: whole or refused, never a SIGBUS.
                        if let Err(e) = read(&device, 60_000, 4096) {
                            assert_eq!(e.kind(), io::ErrorKind::UnexpectedEof);
                        }
                    }
                });
            }
            for _ in 0..2_000 {
                device.set_len(1 << 17).unwrap();
                device.set_len(8192).unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn vectored_transfers_move_every_byte_past_the_vector_limit() {
        let (_dir, device) = new_device();
        let pieces: Vec<Vec<u8>> = (0..2_500_usize).map(|i| vec![i as u8; i % 7]).collect();
        let slices: Vec<IoSlice<'_>> = pieces.iter().map(|p| IoSlice::new(p)).collect();
        device.write_vectored_at(&slices, 3).unwrap();
        let whole = pieces.concat();
        assert_eq!(device.len().unwrap(), 3 + whole.len() as u64);
        assert_eq!(read(&device, 3, whole.len()).unwrap(), whole);
        for mmap in [false, true] {
            device.set_mmap_reads(mmap);
            let mut back: Vec<Vec<u8>> = pieces.iter().map(|p| vec![0xee; p.len()]).collect();
            let mut slices: Vec<IoSliceMut<'_>> = back.iter_mut().map(|p| IoSliceMut::new(p)).collect();
            device.read_vectored_at(&mut slices, 3).unwrap();
            assert_eq!(
                device.read_vectored_at(&mut slices, 4).unwrap_err().kind(),
                io::ErrorKind::UnexpectedEof
            );
        }
        let mut back: Vec<Vec<u8>> = pieces.iter().map(|p| vec![0xee; p.len()]).collect();
        let mut slices: Vec<IoSliceMut<'_>> = back.iter_mut().map(|p| IoSliceMut::new(p)).collect();
        device.read_vectored_at(&mut slices, 3).unwrap();
        assert_eq!(back, pieces);
    }

    #[test]
    fn second_open_in_this_process_is_locked_out_until_the_first_is_dropped() {
        let (dir, device) = new_device();
        let path = dir.path().join("pool");
        assert!(device.lock().unwrap());
        assert!(device.lock().unwrap(), "taking it twice is harmless");
        let second = FileDevice::open(&path, false).unwrap();
        let reader = FileDevice::open(&path, true).unwrap();
        assert!(!second.lock().unwrap());
        assert!(!reader.lock().unwrap());
        drop(device);
        assert!(reader.lock().unwrap());
        assert!(FileDevice::open(&path, true).unwrap().lock().unwrap(), "readers share");
        assert!(!second.lock().unwrap());
        drop(reader);
        assert!(second.lock().unwrap());
    }

    #[test]
    fn allocate_extends_with_zeroes_and_keeps_what_is_there() {
        let (_dir, device) = new_device();
        device.write_at(b"abc", 0).unwrap();
        device.allocate(0, 1 << 20).unwrap();
        assert_eq!(device.len().unwrap(), 1 << 20);
        assert_eq!(read(&device, 0, 5).unwrap(), b"abc\0\0");
        device.allocate(0, 10).unwrap();
        device.allocate(5, 0).unwrap();
        assert_eq!(device.len().unwrap(), 1 << 20);
        assert!(device.allocate(u64::MAX, 2).is_err());
        device.extend_to(2 << 20).unwrap();
        device.extend_to(10).unwrap();
        assert_eq!(device.len().unwrap(), 2 << 20);
    }

    #[test]
    fn discard_keeps_the_length_and_its_neighbours() {
        let (_dir, device) = new_device();
        device.write_at(&[9; 16384], 0).unwrap();
        match device.discard(4096, 8192) {
            Ok(()) => assert_eq!(read(&device, 4096, 8192).unwrap(), [0; 8192]),
            Err(e) => assert_eq!(e.kind(), io::ErrorKind::Unsupported),
        }
        device.discard(4096, 0).unwrap();
        assert_eq!(device.len().unwrap(), 16384);
        assert_eq!(read(&device, 0, 4096).unwrap(), [9; 4096]);
        assert_eq!(read(&device, 12288, 4096).unwrap(), [9; 4096]);
    }

    #[test]
    fn read_only_devices_refuse_every_change() {
        let (dir, device) = new_device();
        device.write_at(b"abc", 0).unwrap();
        let reader = FileDevice::open(dir.path().join("pool"), true).unwrap();
        assert!(reader.is_read_only() && !reader.can_grow());
        let refused = [
            reader.write_at(b"x", 0),
            reader.write_vectored_at(&[IoSlice::new(b"x")], 0),
            reader.set_len(1),
            reader.allocate(0, 99),
            reader.discard(0, 1),
        ];
        for result in refused {
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        }
        reader.sync().unwrap();
        assert_eq!(read(&reader, 0, 3).unwrap(), b"abc");
    }

    #[test]
    fn create_refuses_a_taken_path_and_open_refuses_what_is_no_file() {
        let (dir, device) = new_device();
        let e = FileDevice::create(device.path()).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(FileDevice::open(dir.path(), true).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(
            FileDevice::open(dir.path().join("no"), true).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
