//! An attached volume or snapshot: bytes in, bytes out.

use std::io::{IoSlice, IoSliceMut};
use std::ops::Range;
use std::sync::Arc;

use serde::Serialize;

use crate::commit::{Object, Shown};
use crate::error::{Error, Limited, Result, StateRule, Violation};
use crate::units::{BLOCK, BLOCK_BYTES, SnapshotId, VolumeId};

use super::attachments::{NoPlace, Place};
use super::catalogue;
use super::limits::MAX_ATTACHMENTS;
use super::pool::{Inner, Pool};
use super::servers::{self, ServerState};
use super::status::{SnapshotStatus, VolumeStatus};
use super::volumes::{attached, busy_snapshot, snapshot_status, wrong_status};

/// How to attach a volume.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
#[must_use]
pub struct AttachOptions {
    read_only: bool,
}

impl AttachOptions {
    /// For reading and writing.
    pub fn new() -> Self {
        Self::default()
    }
    /// Whether this handle refuses to write. Off by default.
    pub fn read_only(mut self, on: bool) -> Self {
        self.read_only = on;
        self
    }
}

/// What lies in a range of a disk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
#[non_exhaustive]
pub enum ExtentKind {
    /// Stored bytes; on a volume over an external base also what was not brought in from there yet.
    Data,
    /// Zeroes that were written as such; they take no data blocks.
    Zero,
    /// Nothing was ever written, or it was discarded; reads zero.
    Hole,
}

impl From<Shown> for ExtentKind {
    fn from(shown: Shown) -> Self {
        match shown {
            Shown::Hole => Self::Hole,
            Shown::Zero => Self::Zero,
            // Nobody knows yet what it is.
            Shown::Data(_) | Shown::Outside(_) => Self::Data,
        }
    }
}

/// A range of a disk and what lies there.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[non_exhaustive]
pub struct Extent {
    /// Byte offsets, half-open.
    pub range: Range<u64>,
    /// What lies there.
    pub kind: ExtentKind,
}

/// An attached volume, or a snapshot attached for reading.
///
/// Offsets and lengths are bytes and may have any alignment; each block of 4,096 bytes is written as a whole
/// or not at all, and overlapping writes never mix within one. Writes are visible at once to every reader of
/// the volume and durable after the next flush. The volume is `in-use` until its last disk is dropped.
#[derive(Debug)]
pub struct Disk {
    inner: Arc<Inner>,
    object: Arc<Object>,
    place: Place,
    of: Attached,
    read_only: Option<&'static str>,
}

#[derive(Clone, Copy, Debug)]
enum Attached {
    Volume(VolumeId),
    Snapshot(SnapshotId),
}

impl Pool {
    /// Attaches a volume. It is `in-use` until the disk is dropped; the attachment itself is never stored. A disk
    /// on a volume that servers hold uses their stored attachment. In a pool opened read-only, on a volume that
    /// only lends itself for reading, and where every server may only read, the disk is read-only.
    ///
    /// # Errors
    /// `NotFound`; `InvalidState` when it is not `available`, or attached and not shared, or over a base that was
    /// not [handed over](Pool::supply_base); `LimitExceeded` at
    /// the seventeenth attachment of a shared volume; `Corrupt`, `Io`, `Closed`.
    pub fn attach(&self, id: VolumeId, options: AttachOptions) -> Result<Disk> {
        let inner = &self.inner;
        // Whether it is shared never changes, so this may be read before the place is taken.
        let multiattach = catalogue::need_volume(&*inner.engine, id)?.multiattach;
        let most = if multiattach { MAX_ATTACHMENTS } else { 1 };
        let place =
            inner.attachments.enter(id.object(), most, inner.engine.now()).map_err(|no| match no {
                NoPlace::Closed => Error::Closed,
                NoPlace::Full if multiattach => {
                    Error::LimitExceeded { what: Limited::Attachments, limit: MAX_ATTACHMENTS.into() }
                }
                NoPlace::Full => attached(id, "attach"),
                NoPlace::Marked(status) => {
                    let (id, rule) = (id.to_string(), StateRule::Status);
                    Error::InvalidState { object: "volume", id, status, op: "attach", rule }
                }
            })?;
        // Only now is the record to be trusted: a delete that came before us has removed it (P6).
        let record = catalogue::need_volume(&*inner.engine, id)?;
        let status = inner.jobs.volume(id).unwrap_or(record.status);
        if status != VolumeStatus::Available {
            return Err(wrong_status(id, status, "attach"));
        }
        inner.need_base_supplied("volume", id.object())?;
        let stored = servers::stored(&*inner.engine, id)?;
        let server_reads = !stored.is_empty() && stored.iter().all(|a| a.read_only);
        let read_only = if inner.engine.is_read_only() {
            Some("pool")
        } else if record.read_only {
            Some("volume")
        } else if options.read_only || server_reads {
            Some("attachment")
        } else {
            None
        };
        place.describe(|handle| handle.read_only = read_only.is_some());
        inner.disk(id, place, record.common.size_bytes, read_only)
    }

    /// Attaches a snapshot for reading, any number of times. It cannot be deleted until its disks are dropped.
    ///
    /// # Errors
    /// `NotFound`; `InvalidState` when it is neither `available` nor `backing-up`, or over a base that was not
    /// [handed over](Pool::supply_base); `Busy` while it is being deleted; `Corrupt`,
    /// `Io`, `Closed`.
    pub fn attach_snapshot(&self, id: SnapshotId) -> Result<Disk> {
        let inner = &self.inner;
        let place = inner.attachments.enter(id.object(), u32::MAX, 0).map_err(|no| match no {
            NoPlace::Closed => Error::Closed,
            NoPlace::Full | NoPlace::Marked(_) => busy_snapshot(id, "it is being deleted"),
        })?;
        let record = catalogue::need_snapshot(&*inner.engine, id)?;
        match inner.snapshot_status(id, &record) {
            // A backup reads the snapshot it works on.
            SnapshotStatus::Available | SnapshotStatus::BackingUp => {}
            status => return Err(snapshot_status(id, status, "attach")),
        }
        inner.need_base_supplied("snapshot", id.object())?;
        place.grow(record.common.size_bytes);
        let object = inner.engine.object(id.object())?;
        let of = Attached::Snapshot(id);
        Ok(Disk { inner: Arc::clone(inner), object, place, of, read_only: Some("snapshot") })
    }
}

impl Inner {
    /// A disk on a volume in which the caller has a place.
    pub(super) fn disk(
        self: &Arc<Self>,
        id: VolumeId,
        place: Place,
        size_bytes: u64,
        read_only: Option<&'static str>,
    ) -> Result<Disk> {
        place.grow(size_bytes);
        let object = self.engine.object(id.object())?;
        Ok(Disk { inner: Arc::clone(self), object, place, of: Attached::Volume(id), read_only })
    }
}

impl Disk {
    /// Says what the server behind this handle is doing: it decides whether the volume may be extended meanwhile.
    /// `Active` until something else is said. Never stored.
    pub fn set_server_state(&self, state: ServerState) {
        self.place.describe(|handle| handle.server_state = state);
    }

    /// Size in bytes; grows when the volume is extended.
    pub fn size_bytes(&self) -> u64 {
        self.place.size_bytes()
    }

    /// The volume that is attached; `None` for a snapshot.
    pub fn volume_id(&self) -> Option<VolumeId> {
        match self.of {
            Attached::Volume(id) => Some(id),
            Attached::Snapshot(_) => None,
        }
    }

    /// The snapshot that is attached; `None` for a volume.
    pub fn snapshot_id(&self) -> Option<SnapshotId> {
        match self.of {
            Attached::Volume(_) => None,
            Attached::Snapshot(id) => Some(id),
        }
    }

    /// Whether every write is refused.
    pub fn is_read_only(&self) -> bool {
        self.read_only.is_some()
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<()> {
        let size = self.size_bytes();
        match offset.checked_add(len) {
            Some(end) if end <= size => Ok(()),
            _ => {
                let why = format!("{len} bytes at {offset} pass the end of the disk at {size} bytes");
                Err(Error::invalid("offset", Violation::Range, why))
            }
        }
    }

    fn check_write(&self, offset: u64, len: u64) -> Result<()> {
        if let Some(object) = self.read_only {
            return Err(Error::ReadOnly { object });
        }
        self.check_range(offset, len)
    }

    /// Fills `buf` with the bytes from `offset` on. What was never written reads zero.
    ///
    /// # Errors
    /// `InvalidArgument` when the range passes the end; `Corrupt` when a block is damaged, and then nothing
    /// in `buf` counts; `Io`, `Closed`.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.check_range(offset, buf.len() as u64)?;
        self.inner.engine.read(&self.object, offset, buf)
    }

    /// Fills the buffers in turn with the bytes from `offset` on.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    pub fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<()> {
        self.check_range(offset, bufs.iter().map(|b| b.len() as u64).sum())?;
        let mut at = offset;
        for buf in bufs.iter_mut().filter(|b| !b.is_empty()) {
            self.inner.engine.read(&self.object, at, buf)?;
            at += buf.len() as u64;
        }
        Ok(())
    }

    /// Writes `data` at `offset`: visible at once, durable after the next flush.
    ///
    /// # Errors
    /// `ReadOnly`; `InvalidArgument` when the range passes the end; `OutOfSpace` before any effect;
    /// `Corrupt` when a block that is written in part is damaged; `Io`, `Poisoned`, `Closed`.
    pub fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        self.check_write(offset, data.len() as u64)?;
        if data.is_empty() {
            return Ok(());
        }
        self.inner.engine.write(&self.object, offset, data)
    }

    /// Writes the buffers in turn at `offset`. A block that several of them fill is still written as a whole.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at); after `OutOfSpace` the blocks before it may have been written.
    pub fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> Result<()> {
        self.check_write(offset, bufs.iter().map(|b| b.len() as u64).sum())?;
        let mut at = offset;
        // The part of a block that buffers met so far have filled: it waits for the rest.
        let mut part: Vec<u8> = Vec::new();
        let send = |at: &mut u64, data: &[u8]| -> Result<()> {
            self.inner.engine.write(&self.object, *at, data)?;
            *at += data.len() as u64;
            Ok(())
        };
        for buf in bufs {
            let mut data: &[u8] = buf;
            while !data.is_empty() {
                let whole = data.len() - data.len() % BLOCK;
                if part.is_empty() && at.is_multiple_of(BLOCK_BYTES) && whole > 0 {
                    send(&mut at, &data[..whole])?;
                    data = &data[whole..];
                    continue;
                }
                let room = BLOCK - ((at % BLOCK_BYTES) as usize + part.len());
                let (now, rest) = data.split_at(room.min(data.len()));
                part.extend_from_slice(now);
                data = rest;
                if now.len() == room {
                    send(&mut at, &part)?;
                    part.clear();
                }
            }
        }
        if part.is_empty() { Ok(()) } else { send(&mut at, &part) }
    }

    /// Writes `data` at `offset`, durable on return, as everything acknowledged before it.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at) and [`flush`](Self::flush).
    pub fn write_fua_at(&self, data: &[u8], offset: u64) -> Result<()> {
        self.write_at(data, offset)?;
        self.flush()
    }

    /// Says that the content of the range is no longer needed. Blocks of 4,096 bytes that lie in it whole are
    /// unmapped, give their space back and read zero; those it covers in part stay as they are. Durable after
    /// the next flush.
    ///
    /// # Errors
    /// `ReadOnly`; `InvalidArgument` when the range passes the end; `OutOfSpace` before any effect, in a full pool in
    /// which scattered discards have split so much that no more is set aside for it (deleting still works, and
    /// discarding much at once does longer); `Io`, `Poisoned`, `Closed`.
    pub fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.check_write(offset, len)?;
        let (from, to) = (offset.div_ceil(BLOCK_BYTES), (offset + len) / BLOCK_BYTES);
        if from < to {
            self.inner.engine.unmap(&self.object, from, to, false)?;
        }
        Ok(())
    }

    /// Makes the range read zero, without data blocks where it covers whole ones. Durable after the next
    /// flush.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at); after an error part of the range may read zero.
    pub fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        const ZEROES: [u8; BLOCK] = [0; BLOCK];
        self.check_write(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        let end = offset + len;
        let (from, to) = (offset.div_ceil(BLOCK_BYTES), end / BLOCK_BYTES);
        let edge = |from: u64, to: u64| -> Result<()> {
            if from == to {
                return Ok(());
            }
            self.inner.engine.write(&self.object, from, &ZEROES[..(to - from) as usize])
        };
        if from > to {
            // Both ends lie within one block.
            return edge(offset, end);
        }
        edge(offset, from * BLOCK_BYTES)?;
        edge(to * BLOCK_BYTES, end)?;
        if from < to {
            self.inner.engine.unmap(&self.object, from, to, true)?;
        }
        Ok(())
    }

    /// Makes every write acknowledged before this call durable, on all volumes of the pool, with one sync.
    ///
    /// # Errors
    /// `Io` when the sync fails, after which writes return `Poisoned`; `OutOfSpace`, `Closed`. Nothing is to
    /// be made durable through a read-only disk: `Ok` at once.
    pub fn flush(&self) -> Result<()> {
        if self.is_read_only() {
            return Ok(());
        }
        self.inner.engine.flush()
    }

    /// What lies in a range of bytes, cut at the end of the disk: ascending, without gaps, neighbours of the
    /// same kind joined. Block by block it is true at some moment during the iteration; for one moment in
    /// all, ask for [`Pool::allocated`].
    pub fn extents(&self, range: Range<u64>) -> Extents<'_> {
        let end = range.end.min(self.size_bytes());
        Extents { disk: self, at: range.start, end, ahead: None }
    }

    /// Detaches: what dropping does too.
    pub fn detach(self) {}
}

/// Extents of a disk in ascending order: see [`Disk::extents`]. Ends after the first error.
#[derive(Debug)]
pub struct Extents<'a> {
    disk: &'a Disk,
    at: u64,
    end: u64,
    /// Found already, but of another kind than the one before.
    ahead: Option<Extent>,
}

impl Extents<'_> {
    fn next_piece(&mut self) -> Result<Option<Extent>> {
        if let Some(extent) = self.ahead.take() {
            return Ok(Some(extent));
        }
        if self.at >= self.end {
            return Ok(None);
        }
        let (shown, next) = self.disk.inner.engine.show(&self.disk.object, self.at / BLOCK_BYTES)?;
        let kind = shown.into();
        let end = next.saturating_mul(BLOCK_BYTES).min(self.end);
        let range = self.at..end;
        self.at = end;
        Ok(Some(Extent { range, kind }))
    }

    fn joined(&mut self) -> Result<Option<Extent>> {
        let Some(mut extent) = self.next_piece()? else { return Ok(None) };
        while let Some(next) = self.next_piece()? {
            if next.kind != extent.kind {
                self.ahead = Some(next);
                break;
            }
            extent.range.end = next.range.end;
        }
        Ok(Some(extent))
    }
}

impl Iterator for Extents<'_> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.joined();
        if next.is_err() {
            (self.at, self.ahead) = (self.end, None);
        }
        next.transpose()
    }
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Place").field("id", &self.id()).field("size_bytes", &self.size_bytes()).finish()
    }
}
