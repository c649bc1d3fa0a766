//! The pool handle: creating, opening, closing.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use uuid::Uuid;

use crate::commit::{Engine, Stats};
use crate::device::{Device, FileDevice, MemoryDevice};
use crate::error::{Error, Result};
use crate::units::{Geometry, SnapshotId};

use super::attachments::Attachments;
use super::base::Running;
use super::catalogue::{self, Index, Stage};
use super::jobs::Jobs;
use super::limits::Limits;
use super::options::{CreateOptions, OpenOptions, ReadMode};

/// Bytes at the start of a block device that must be zero before a pool is created on it.
const SIGNATURE_BYTES: usize = 64 << 10;
/// Ephemeral copies removed by one transaction when a pool is opened: few enough for the smallest log.
const CLEANUP_PIECE: usize = 16;

/// A pool of volumes and snapshots: a cheap handle that may be cloned and used from many threads.
///
/// The pool is closed by [`close`](Self::close), or quietly when the last handle, disk and iterator is gone.
#[derive(Clone)]
pub struct Pool {
    pub(super) inner: Arc<Inner>,
    pub(super) limits: Arc<Limits>,
}

pub(super) struct Inner {
    pub(super) engine: Arc<Engine>,
    pub(super) attachments: Arc<Attachments>,
    pub(super) jobs: Arc<Jobs>,
    pub(super) backups: super::backups::State,
    pub(super) hydrating: Running,
}

const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<Pool>();
    shared::<super::Disk>();
    shared::<super::Diff>();
    shared::<super::Deletion>();
};

fn opening(source: io::Error) -> Error {
    Error::Io { op: "open", offset: 0, len: 0, source }
}

impl Pool {
    /// Creates a pool in a new file at `path`, or on the block device there.
    ///
    /// On return the empty pool and its name are durable.
    ///
    /// # Errors
    /// `InvalidArgument` for an option out of range; `AlreadyExists` when the path is taken, or when the first
    /// 64 KiB of the block device are not zeroes; `Locked`, `OutOfSpace`, `Io`. A file that a failed call made is
    /// removed again.
    pub fn create(path: impl AsRef<Path>, options: CreateOptions) -> Result<Self> {
        let path = path.as_ref();
        let config = options.config()?;
        let on_block_device = fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device());
        let device = if on_block_device {
            let device = FileDevice::open(path, false).map_err(opening)?;
            check_wiped(&device, path)?;
            device
        } else {
            FileDevice::create(path).map_err(|e| match e.kind() {
                io::ErrorKind::AlreadyExists => {
                    Error::AlreadyExists { object: "pool", id: path.display().to_string() }
                }
                _ => opening(e),
            })?
        };
        device.set_mmap_reads(options.read_mode_of() == ReadMode::Mmap);
        let device = Arc::new(device);
        let made = Engine::create(Arc::clone(&device) as Arc<dyn Device>, config).and_then(|engine| {
            // Until the directory is durable the whole pool can vanish in a crash.
            let named =
                device.sync_parent().map_err(|source| Error::Io { op: "sync", offset: 0, len: 0, source });
            named.map(|()| engine)
        });
        match made {
            Ok(engine) => Ok(Self::of(engine)),
            Err(e) => {
                if !on_block_device {
                    // The first error says more than one about the removal.
                    let _ = fs::remove_file(device.path());
                }
                Err(e)
            }
        }
    }

    /// Opens the pool in the file or on the block device at `path`.
    ///
    /// After an unclean end this recovers: the pool opens at the last successful flush or a later commit.
    ///
    /// # Errors
    /// `InvalidArgument` for an option out of range; `Locked` when it is open elsewhere; `Corrupt` when no
    /// commit can be found, `Unsupported` for a format this version does not know; `Io`.
    pub fn open(path: impl AsRef<Path>, options: OpenOptions) -> Result<Self> {
        let config = options.config()?;
        let device = FileDevice::open(path, options.read_only).map_err(opening)?;
        device.set_mmap_reads(options.read_mode == ReadMode::Mmap);
        let engine = Engine::open(Arc::new(device), config)?;
        Self::opened(engine)
    }

    /// Creates a pool on a device of the caller's, overwriting what is there.
    ///
    /// # Errors
    /// As [`create`](Self::create), but for what concerns paths.
    pub fn create_on(device: impl Device, options: CreateOptions) -> Result<Self> {
        let engine = Engine::create(Arc::new(device), options.config()?)?;
        Ok(Self::of(engine))
    }

    /// Opens the pool on a device of the caller's.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_on(device: impl Device, options: OpenOptions) -> Result<Self> {
        let engine = Engine::open(Arc::new(device), options.config()?)?;
        Self::opened(engine)
    }

    /// Creates a pool in memory, gone with its last handle.
    ///
    /// # Errors
    /// `InvalidArgument` for an option out of range.
    pub fn create_in_memory(options: CreateOptions) -> Result<Self> {
        Self::create_on(MemoryDevice::new(), options)
    }

    fn of(engine: Arc<Engine>) -> Self {
        let inner = Inner {
            engine,
            attachments: Arc::default(),
            jobs: Arc::default(),
            backups: Default::default(),
            hydrating: Running::default(),
        };
        Self::from_inner(&Arc::new(inner))
    }

    /// A handle without a profile.
    pub(super) fn from_inner(inner: &Arc<Inner>) -> Self {
        Self { inner: Arc::clone(inner), limits: Arc::new(Limits::native()) }
    }

    /// Another handle of the same pool, whose calls obey these limits. Nothing is stored, and what exists is not
    /// touched; other handles keep theirs.
    #[must_use]
    pub fn limited(&self, limits: Limits) -> Self {
        Self { inner: Arc::clone(&self.inner), limits: Arc::new(limits) }
    }

    /// The limits of this handle.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    fn opened(engine: Arc<Engine>) -> Result<Self> {
        let pool = Self::of(engine);
        if !pool.inner.engine.is_read_only() {
            pool.remove_ephemeral()?;
            pool.remove_unfinished()?;
        }
        Ok(pool)
    }

    /// Copies that iterators held when the pool was last open belong to nobody now.
    fn remove_ephemeral(&self) -> Result<()> {
        loop {
            let left = Index::ephemeral().next_ids(&*self.inner.engine, CLEANUP_PIECE)?;
            if left.is_empty() {
                return Ok(());
            }
            let mut gone = Vec::new();
            self.inner.engine.transact(|txn| {
                for id in &left {
                    catalogue::remove_ephemeral(txn, *id);
                    // An unfinished receive that was not to be kept is one of them.
                    catalogue::remove_receive(txn, SnapshotId::new(Uuid::from_bytes(id.0)));
                    gone.extend(Stage::trash(txn, *id)?.into_iter().chain([*id]));
                }
                Ok(())
            })?;
            self.inner.engine.forget_trash(&gone);
        }
    }

    /// Volumes and snapshots that were being made when the pool was last open are not whole.
    fn remove_unfinished(&self) -> Result<()> {
        loop {
            let left = Index::unfinished().next_ids(&*self.inner.engine, 1)?;
            let Some(id) = left.first() else { return Ok(()) };
            let id = Uuid::from_bytes(id.0);
            self.transact(|batch| batch.abandon(id))?;
        }
    }

    /// Makes everything durable and closes the pool, for all clones of this handle.
    ///
    /// Later calls on clones, iterators and deletions that are still about return `Closed`.
    ///
    /// # Errors
    /// `Busy` while disks are attached: nothing has happened then. `Io`, `Poisoned`: what was durable stays so.
    pub fn close(self) -> Result<()> {
        if !self.inner.attachments.close() {
            let id = self.uuid().to_string();
            return Err(Error::Busy { object: "pool", id, why: "disks are attached" });
        }
        let closed = self.inner.engine.close();
        if closed.is_err() {
            // The engine decides what still works; the handles are not cut off from it.
            self.inner.attachments.reopen();
        }
        closed
    }

    /// Makes every write acknowledged before this call durable, on all volumes of the pool.
    ///
    /// # Errors
    /// `Io` when the sync fails, after which writes return `Poisoned`; `OutOfSpace`, `Closed`.
    pub fn flush(&self) -> Result<()> {
        self.inner.engine.flush()
    }

    /// Writes all metadata to its place, so that the next open has no log to replay. Durable on return.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    pub fn checkpoint(&self) -> Result<()> {
        self.inner.engine.checkpoint()
    }

    /// Does up to `budget` units of background work: how an embedder drives a pool opened with
    /// [`Background::Manual`](super::Background::Manual). Returns false when there is nothing to do.
    ///
    /// # Errors
    /// `Io`, `Corrupt`, `Poisoned`, `Closed`.
    pub fn step(&self, budget: usize) -> Result<bool> {
        self.inner.engine.step(budget)
    }

    /// Counters of what the engine did since it was opened.
    pub fn stats(&self) -> Stats {
        self.inner.engine.stats()
    }

    /// Identity of the pool, given when it was created.
    pub fn uuid(&self) -> Uuid {
        self.inner.engine.uuid()
    }

    /// Sizes that were fixed when the pool was created.
    pub fn geometry(&self) -> Geometry {
        self.inner.engine.geometry()
    }

    /// Whether the pool was opened for reading only.
    pub fn is_read_only(&self) -> bool {
        self.inner.engine.is_read_only()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Nobody is left to hear about a failure; close() is there for those who want to.
        let _ = self.engine.close();
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("uuid", &self.uuid()).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").finish_non_exhaustive()
    }
}

/// A block device always exists, so its content has to say whether it is free.
fn check_wiped(device: &FileDevice, path: &Path) -> Result<()> {
    let len = device.len().map_err(opening)?.min(SIGNATURE_BYTES as u64);
    let mut start = vec![0; len as usize];
    device.read_at(&mut start, 0).map_err(|source| Error::Io { op: "read", offset: 0, len, source })?;
    if start.iter().any(|b| *b != 0) {
        return Err(Error::AlreadyExists { object: "data on", id: path.display().to_string() });
    }
    Ok(())
}
