//! Volumes over an external base: bytes that the opener hands over, until the pool has them all.
//!
//! - X1 The pool names nothing outside: it keeps size and identity of a base, and the opener brings the bytes. They
//!   are never written.
//! - X2 A hole of such a volume says that the block is still as it is in the base; what is written, zeroed or
//!   discarded is an extent, so never a hole again (B1 of `commit::lower`). A volume whose record is lost sight
//!   of would read zeroes there, so the record goes only by the commit behind the last hole.
//! - X3 Hydration fills holes and nothing else: what was written to the volume meanwhile stays.
//! - X4 Until then nothing else may name the map: no snapshot, clone, comparison, stream or export.
//! - X5 Nobody reads through the map without the base: the volume is not attached before it was handed over.
//!
//! | offset | size | field of the record (catalogue table 0x0C, key: volume) |
//! |---|---|---|
//! | 0 | 1 | version, 1 |
//! | 1 | 7 | reserved |
//! | 8 | 8 | size of the base in bytes |
//! | 16 | 16 | identity of the base |

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use serde::Serialize;
use xxhash_rust::xxh3::Xxh3;

use crate::commit::{Lower, Object};
use crate::error::{Corruption, Error, Result, StateRule, Violation};
use crate::image::{ImageSource, is_zero};
use crate::memory;
use crate::units::{BLOCK, BLOCK_BYTES, MAX_VOLUME_BYTES, VolumeId};

use super::batch::Batch;
use super::catalogue::{self, Table};
use super::pool::{Inner, Pool};
use super::volume::{Volume, VolumeSource, VolumeSpec};

const VERSION: u8 = 1;
/// Places that the identity of a base looks at.
const SAMPLES: u64 = 256;
/// Bytes read from a base at once.
const PIECE_BYTES: u64 = 1 << 20;

/// How far a volume has come on its way to stand alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[non_exhaustive]
pub struct Hydration {
    /// Bytes of the base that the pool has, counted from its start.
    pub position: u64,
    /// Size of the base in bytes.
    pub size_bytes: u64,
    /// Whether the base has been handed over since the pool was opened.
    pub supplied: bool,
    /// Whether somebody hydrates the volume now.
    pub running: bool,
}

/// What tells a base from others.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct BaseRecord {
    size_bytes: u64,
    identity: u128,
}

impl BaseRecord {
    fn encode(self) -> Vec<u8> {
        let mut out = vec![VERSION, 0, 0, 0, 0, 0, 0, 0];
        out.extend_from_slice(&self.size_bytes.to_le_bytes());
        out.extend_from_slice(&self.identity.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, Corruption> {
        let bad = |field, want: &str, got: u64| Corruption::new("base record", 0, field, want, got);
        let Some((head, rest)) = bytes.split_first_chunk::<8>() else {
            return Err(bad("length", "32", bytes.len() as u64));
        };
        let (Some((size, identity)), true) = (rest.split_first_chunk::<8>(), bytes.len() == 32) else {
            return Err(bad("length", "32", bytes.len() as u64));
        };
        if *head != [VERSION, 0, 0, 0, 0, 0, 0, 0] {
            return Err(bad("version", "1", head[0].into()));
        }
        let size_bytes = u64::from_le_bytes(*size);
        if size_bytes == 0 || size_bytes > MAX_VOLUME_BYTES {
            return Err(bad("size", "1 byte to 1 EiB", size_bytes));
        }
        let mut le = [0; 16];
        le.copy_from_slice(identity);
        Ok(Self { size_bytes, identity: u128::from_le_bytes(le) })
    }

    /// Looks at a base: its size, its first and last bytes, and blocks at equal distances between.
    fn of(source: &dyn ImageSource) -> Result<Self> {
        let size_bytes = source.size_bytes();
        if size_bytes == 0 || size_bytes > MAX_VOLUME_BYTES {
            let why = format!("it has {size_bytes} bytes; a volume has 1 to {MAX_VOLUME_BYTES}");
            return Err(Error::invalid("base", Violation::Size, why));
        }
        let mut hash = Xxh3::new();
        hash.update(&size_bytes.to_le_bytes());
        let blocks = size_bytes.div_ceil(BLOCK_BYTES);
        let samples = blocks.min(SAMPLES);
        let mut block = [0; BLOCK];
        for sample in 0..samples {
            // The products stay below 2^60 * 2^8 as u128.
            let lba = (u128::from(sample) * u128::from(blocks - 1) / u128::from((samples - 1).max(1))) as u64;
            let n = (size_bytes - lba * BLOCK_BYTES).min(BLOCK_BYTES) as usize;
            read(source, &mut block[..n], lba * BLOCK_BYTES)?;
            hash.update(&block[..n]);
        }
        Ok(Self { size_bytes, identity: hash.digest128() })
    }

    fn blocks(self) -> u64 {
        self.size_bytes.div_ceil(BLOCK_BYTES)
    }
}

fn read(source: &dyn ImageSource, out: &mut [u8], offset: u64) -> Result<()> {
    let len = out.len() as u64;
    source.read_at(out, offset).map_err(|source| Error::Io { op: "read of the base", offset, len, source })
}

/// A base as a map sees it.
struct Base {
    source: Arc<dyn ImageSource>,
    size_bytes: u64,
}

impl Lower for Base {
    fn blocks(&self) -> u64 {
        self.size_bytes.div_ceil(BLOCK_BYTES)
    }
    fn read(&self, out: &mut [u8], offset: u64) -> Result<()> {
        let there = self.size_bytes.saturating_sub(offset).min(out.len() as u64);
        let (now, behind) = out.split_at_mut(there as usize);
        behind.fill(0);
        if now.is_empty() { Ok(()) } else { read(&*self.source, now, offset) }
    }
}

/// Bases that have been handed over, in memory only. Holding the object keeps what lies below it.
#[derive(Default)]
pub(super) struct Bases(Mutex<HashMap<VolumeId, Supplied>>);

struct Supplied {
    object: Arc<Object>,
    base: Arc<Base>,
    running: bool,
    position: u64,
}

impl Pool {
    /// Makes a volume over a base: an image, or anything else that can be read at an offset, which the pool only
    /// reads. The volume can be attached, read and written at once, as large as the base or larger; what was not
    /// written yet comes from the base. [`hydrate`](Self::hydrate) brings the rest into the pool, and then the base
    /// is no longer needed. Durable on return.
    ///
    /// The pool stores no path. It keeps the base's size and a hash of up to 256 blocks spread over it, which tells
    /// a wrong file from the right one; that the base does not change is the caller's promise. After the pool was
    /// opened the base has to be [handed over](Self::supply_base) again.
    ///
    /// Until the volume is hydrated it cannot be snapshotted, cloned, compared, sent or exported: nothing but the
    /// volume itself depends on the base.
    ///
    /// # Errors
    /// As [`create_volume`](Self::create_volume); `InvalidArgument` for an empty base; `Io` when it cannot be read.
    pub fn create_volume_over(
        &self,
        base: impl ImageSource + 'static,
        mut spec: VolumeSpec,
    ) -> Result<Volume> {
        let record = BaseRecord::of(&base)?;
        if spec.source != VolumeSource::Blank {
            return Err(Error::invalid(
                "spec",
                Violation::SeveralSources,
                "a volume is over a base or made from a source, not both",
            ));
        }
        let least = record.blocks() * BLOCK_BYTES;
        let size_bytes = spec.size_bytes.unwrap_or(least);
        if size_bytes < least {
            let why = format!("at least the {least} bytes of the base are needed, {size_bytes} given");
            return Err(Error::invalid("size_bytes", Violation::BelowSource, why));
        }
        spec.size_bytes = Some(size_bytes);
        let volume = self.transact(|batch| {
            let volume = batch.create_volume(spec)?;
            batch.stage(|stage| {
                catalogue::set_external_base(stage, volume.id, record.encode());
                Ok(())
            })?;
            Ok(volume)
        })?;
        self.inner.supply(volume.id, Arc::new(base), record)?;
        Ok(volume)
    }

    /// Hands the base of a volume over, after the pool was opened. It stays with the pool until the volume is
    /// hydrated or the pool is closed.
    ///
    /// # Errors
    /// `NotFound`; `InvalidState` when the volume stands alone; `Refused` when this is not its base; `Io` when it
    /// cannot be read; `Closed`.
    pub fn supply_base(&self, id: VolumeId, base: impl ImageSource + 'static) -> Result<()> {
        let table: &dyn Table = &*self.inner.engine;
        catalogue::need_volume(table, id)?;
        let want = self.inner.need_base_record(table, id, "supply_base")?;
        let got = BaseRecord::of(&base)?;
        if want != got {
            let why = format!(
                "the base of volume {id} has {} bytes and hash {:032x}, this one {} and {:032x}",
                want.size_bytes, want.identity, got.size_bytes, got.identity
            );
            return Err(Error::refused("base", 0, why));
        }
        self.inner.supply(id, Arc::new(base), want)
    }

    /// How far a volume is hydrated; `None` for one that stands alone.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt`, `Io`, `Closed`.
    pub fn hydration(&self, id: VolumeId) -> Result<Option<Hydration>> {
        let table: &dyn Table = &*self.inner.engine;
        catalogue::need_volume(table, id)?;
        let Some(record) = self.inner.base_record(table, id)? else { return Ok(None) };
        let bases = self.inner.bases.0.lock();
        let supplied = bases.get(&id);
        Ok(Some(Hydration {
            position: supplied.map_or(0, |s| s.position),
            size_bytes: record.size_bytes,
            supplied: supplied.is_some(),
            running: supplied.is_some_and(|s| s.running),
        }))
    }

    /// Brings what a volume still needs of its base into the pool, while it is used as before, and makes it an
    /// ordinary volume: one that stands alone, durable on return. Zeroes take no space. To do this in the
    /// background, call it on a thread, or [`hydrate_in_background`](Self::hydrate_in_background).
    ///
    /// `progress` is called after every MiB; when it answers `Break` the call ends with `Cancelled`. What has come
    /// so far stays, and the next call goes on behind it; so it does after a crash.
    ///
    /// # Errors
    /// `NotFound`; `InvalidState` when the volume stands alone, or its base was not handed over; `Busy` while it is
    /// being hydrated; `Cancelled`; `Io` when the base cannot be read; `OutOfSpace`, `ReadOnly`, `Poisoned`, `Closed`.
    pub fn hydrate(
        &self,
        id: VolumeId,
        mut progress: impl FnMut(Hydration) -> ControlFlow<()>,
    ) -> Result<()> {
        let work = self.inner.begin_hydration(id)?;
        work.run(&mut progress)
    }

    /// [Hydrates](Self::hydrate) on a thread of its own. [`hydration`](Self::hydration) says how far it is.
    ///
    /// # Errors
    /// As [`hydrate`](Self::hydrate) before it begins; `Io` when no thread can be had. What goes wrong later is what
    /// [`Hydrating::wait`] returns.
    pub fn hydrate_in_background(&self, id: VolumeId) -> Result<Hydrating> {
        let work = self.inner.begin_hydration(id)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("snapvol hydrate".into())
            .spawn(move || {
                work.run(&mut |_| match stopped.load(Ordering::Relaxed) {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                })
            })
            .map_err(|source| Error::Io { op: "start of a thread", offset: 0, len: 0, source })?;
        Ok(Hydrating { stop, thread: Some(thread) })
    }
}

/// A hydration that runs on a thread of its own. Dropping it stops the hydration; what has come stays.
#[derive(Debug)]
#[must_use = "dropping it stops the hydration"]
pub struct Hydrating {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Hydrating {
    /// Waits until the volume stands alone.
    ///
    /// # Errors
    /// What ended the hydration, as [`Pool::hydrate`].
    pub fn wait(mut self) -> Result<()> {
        self.join()
    }

    /// Stops and waits until nothing runs any more. What has come stays.
    pub fn cancel(self) {}

    fn join(&mut self) -> Result<()> {
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(done)) => done,
            // A panic of ours is nothing to hide.
            Some(Err(panic)) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for Hydrating {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Nobody is left to hear what it says.
            let _ = thread.join();
        }
    }
}

impl Inner {
    fn base_record(&self, table: &dyn Table, id: VolumeId) -> Result<Option<BaseRecord>> {
        Ok(catalogue::external_base(table, id)?.map(|bytes| BaseRecord::decode(&bytes)).transpose()?)
    }

    fn need_base_record(&self, table: &dyn Table, id: VolumeId, op: &'static str) -> Result<BaseRecord> {
        let alone = || Error::InvalidState {
            object: "volume",
            id: id.to_string(),
            status: "without a base",
            op,
            rule: StateRule::Status,
        };
        self.base_record(table, id)?.ok_or_else(alone)
    }

    fn supply(&self, id: VolumeId, source: Arc<dyn ImageSource>, record: BaseRecord) -> Result<()> {
        let mut bases = self.bases.0.lock();
        if bases.contains_key(&id) {
            // Once is enough; disks may be reading through the first.
            return Ok(());
        }
        let object = self.engine.object(id.object())?;
        let base = Arc::new(Base { source, size_bytes: record.size_bytes });
        self.engine.set_below(&object, Arc::clone(&base) as Arc<dyn Lower>);
        bases.insert(id, Supplied { object, base, running: false, position: 0 });
        Ok(())
    }

    /// X4: refuses what would let something else name the map of a volume over a base.
    pub(super) fn need_alone(&self, table: &dyn Table, id: VolumeId, op: &'static str) -> Result<()> {
        match catalogue::external_base(table, id)? {
            None => Ok(()),
            Some(_) => Err(Error::InvalidState {
                object: "volume",
                id: id.to_string(),
                status: "over a base and not hydrated",
                op,
                rule: StateRule::Status,
            }),
        }
    }

    /// X5: refuses to attach a volume whose base is not there.
    pub(super) fn need_base_supplied(&self, id: VolumeId) -> Result<()> {
        if catalogue::external_base(&*self.engine, id)?.is_none() || self.bases.0.lock().contains_key(&id) {
            return Ok(());
        }
        let status = "over a base that was not handed over";
        Err(Error::InvalidState {
            object: "volume",
            id: id.to_string(),
            status,
            op: "attach",
            rule: StateRule::Status,
        })
    }

    fn begin_hydration(self: &Arc<Self>, id: VolumeId) -> Result<Work> {
        // Within a transaction, so that a delete comes before or after.
        self.transact(|batch| {
            catalogue::need_volume(batch.table(), id)?;
            self.need_base_record(batch.table(), id, "hydrate")?;
            let mut bases = self.bases.0.lock();
            let Some(supplied) = bases.get_mut(&id) else {
                let status = "over a base that was not handed over";
                return Err(Error::InvalidState {
                    object: "volume",
                    id: id.to_string(),
                    status,
                    op: "hydrate",
                    rule: StateRule::Status,
                });
            };
            if supplied.running {
                return Err(hydrating(id));
            }
            supplied.running = true;
            let (object, base) = (Arc::clone(&supplied.object), Arc::clone(&supplied.base));
            Ok(Work { inner: Arc::clone(self), id, object, base })
        })
    }
}

fn hydrating(id: VolumeId) -> Error {
    Error::Busy { object: "volume", id: id.to_string(), why: "it is being hydrated" }
}

impl Batch<'_> {
    /// A volume goes: so does what is known of its base.
    pub(super) fn drop_base(&mut self, id: VolumeId) -> Result<()> {
        if catalogue::external_base(self.table(), id)?.is_none() {
            return Ok(());
        }
        {
            let mut bases = self.inner.bases.0.lock();
            if bases.get(&id).is_some_and(|s| s.running) {
                return Err(hydrating(id));
            }
            // If the batch is not committed after all, the base has to be handed over again.
            bases.remove(&id);
        }
        self.stage(|stage| {
            catalogue::remove_external_base(stage, id);
            Ok(())
        })
    }
}

/// A hydration that runs.
struct Work {
    inner: Arc<Inner>,
    id: VolumeId,
    object: Arc<Object>,
    base: Arc<Base>,
}

impl Work {
    fn run(self, each: &mut dyn FnMut(Hydration) -> ControlFlow<()>) -> Result<()> {
        let engine = &self.inner.engine;
        let (end, size_bytes) = (self.base.blocks(), self.base.size_bytes);
        let mut piece = Vec::new();
        let mut lba = 0;
        while let Some((from, hole_end)) = engine.next_hole(&self.object, lba, end)? {
            let to = self.skip_zeroes(from, hole_end)?;
            if let Some(zero_to) = to {
                engine.zero_holes(&self.object, from, zero_to)?;
                lba = zero_to;
            } else {
                let blocks = (hole_end - from).min(PIECE_BYTES / BLOCK_BYTES);
                memory::resize(&mut piece, blocks as usize * BLOCK, 0)?;
                self.base.read(&mut piece, from * BLOCK_BYTES)?;
                self.store(from, &piece)?;
                lba = from + blocks;
            }
            let position = (lba * BLOCK_BYTES).min(size_bytes);
            if let Some(supplied) = self.inner.bases.0.lock().get_mut(&self.id) {
                supplied.position = position;
            }
            if each(Hydration { position, size_bytes, supplied: true, running: true }).is_break() {
                return Err(Error::Cancelled { op: "hydrate" });
            }
        }
        self.detach()
    }

    /// Where zeroes that the base knows of end, if they begin at this hole.
    fn skip_zeroes(&self, from: u64, to: u64) -> Result<Option<u64>> {
        let offset = from * BLOCK_BYTES;
        let found = self.base.source.next_data(offset).map_err(|source| Error::Io {
            op: "search of the base",
            offset,
            len: 0,
            source,
        })?;
        let data = found.map_or(u64::MAX, |range| range.start.max(offset)) / BLOCK_BYTES;
        Ok((data > from).then_some(data.min(to)))
    }

    fn store(&self, lba: u64, piece: &[u8]) -> Result<()> {
        let zero: Vec<bool> = piece.chunks_exact(BLOCK).map(is_zero).collect();
        let mut at = 0;
        for run in zero.chunk_by(|a, b| a == b) {
            let from = lba + at as u64;
            if run[0] {
                self.inner.engine.zero_holes(&self.object, from, from + run.len() as u64)?;
            } else {
                let bytes = &piece[at * BLOCK..][..run.len() * BLOCK];
                self.inner.engine.fill_holes(&self.object, from, bytes)?;
            }
            at += run.len();
        }
        Ok(())
    }

    /// No hole is left and none can come (X2): the volume stands alone from this commit on.
    fn detach(&self) -> Result<()> {
        self.inner.transact(|batch| {
            batch.stage(|stage| {
                catalogue::remove_external_base(stage, self.id);
                Ok(())
            })
        })?;
        self.inner.engine.detach_below(&self.object);
        self.inner.bases.0.lock().remove(&self.id);
        Ok(())
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Some(supplied) = self.inner.bases.0.lock().get_mut(&self.id) {
            supplied.running = false;
        }
    }
}
