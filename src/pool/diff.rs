//! What changed between two points, without anything armed beforehand.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use serde::Serialize;

use crate::commit::{Base, Engine, Object, Shown};
use crate::error::{Error, Result};
use crate::extent::Map;
use crate::extent::walk::{self, ChangeKind};
use crate::units::{BLOCK_BYTES, ObjectId, SnapshotId, VolumeId};

use super::catalogue::{self, Table};
use super::disk::ExtentKind;
use super::fingerprint::Fingerprint;
use super::pool::{Inner, Pool};

/// Changes found in one go: the maps are looked at afresh after that many.
const PIECE: usize = 256;

/// A point in time: a snapshot, or a volume as it is when the comparison begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Point {
    /// The volume as it is now.
    Volume(VolumeId),
    /// The snapshot.
    Snapshot(SnapshotId),
}

impl From<VolumeId> for Point {
    fn from(id: VolumeId) -> Self {
        Self::Volume(id)
    }
}

impl From<SnapshotId> for Point {
    fn from(id: SnapshotId) -> Self {
        Self::Snapshot(id)
    }
}

impl Point {
    pub(super) fn object(self) -> ObjectId {
        match self {
            Self::Volume(id) => id.object(),
            Self::Snapshot(id) => id.object(),
        }
    }
    pub(super) fn size_bytes(self, table: &dyn Table) -> Result<u64> {
        Ok(match self {
            Self::Volume(id) => catalogue::need_volume(table, id)?.common.size_bytes,
            Self::Snapshot(id) => catalogue::need_snapshot(table, id)?.common.size_bytes,
        })
    }
}

/// A range that differs between two points, and what lies there at the second.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[non_exhaustive]
pub struct Change {
    /// Byte offsets, half-open, in whole blocks of 4,096 bytes.
    pub range: Range<u64>,
    /// What lies there at the second point.
    pub kind: ExtentKind,
}

/// Ranges that differ between two points, ascending and apart: see [`Pool::diff`]. Ends after the first error.
///
/// Both points stay as they are for as long as this lives, whatever is written or deleted meanwhile: it
/// holds an ephemeral snapshot of each, which keeps their blocks from being used again. Drop it when done.
pub struct Diff {
    inner: Arc<Inner>,
    from: Option<Side>,
    to: Side,
    /// Where the search goes on, in blocks.
    next_lba: u64,
    /// One past the last block to look at.
    limit_lba: u64,
    found: VecDeque<Change>,
    /// The search is over; `found` may still hold something.
    done: bool,
    size_bytes: u64,
    ephemeral: Vec<ObjectId>,
}

struct Side {
    object: Arc<Object>,
}

impl Side {
    fn map(side: Option<&Self>) -> Map {
        side.map_or_else(Map::empty, |s| s.object.map_snapshot())
    }

    fn base(side: Option<&Self>) -> Option<Arc<Base>> {
        side.and_then(|s| s.object.base())
    }

    /// What it shows at a block, and before which block that may change.
    fn show(side: Option<&Self>, engine: &Engine, lba: u64) -> Result<(Shown, u64)> {
        side.map_or(Ok((Shown::Hole, u64::MAX)), |s| engine.show(&s.object, lba))
    }
}

impl Pool {
    /// The ranges of bytes in which `to` differs from `from`, in ascending order; equal content that was
    /// written twice may show as a difference. Costs what has changed, not what is mapped. A range that only
    /// `from` has is a hole in `to`; beyond the size of `to` nothing is reported.
    ///
    /// Any two points can be compared, related or not. Both are frozen at the same instant; a pool opened
    /// read-only does not change anyway.
    ///
    /// # Errors
    /// `NotFound`; `OutOfSpace`, `Io`, `Poisoned`, `Closed`.
    pub fn diff(&self, from: impl Into<Point>, to: impl Into<Point>) -> Result<Diff> {
        self.diff_from(from, to, 0)
    }

    /// What `point` holds now, held still.
    pub(crate) fn freeze(&self, point: Point) -> Result<Diff> {
        self.inner.freeze(point)
    }

    /// As [`diff`](Self::diff), but only what lies at `offset` bytes (rounded down to a block) or behind it:
    /// how an interrupted transfer between two snapshots goes on.
    ///
    /// # Errors
    /// As [`diff`](Self::diff).
    pub fn diff_from(&self, from: impl Into<Point>, to: impl Into<Point>, offset: u64) -> Result<Diff> {
        self.inner.compare(Some(from.into()), to.into(), offset)
    }

    /// The ranges of bytes in which something was written at `point`, data and zeroes, in ascending order;
    /// everything else reads zero.
    ///
    /// # Errors
    /// As [`diff`](Self::diff).
    pub fn allocated(&self, point: impl Into<Point>) -> Result<Diff> {
        self.inner.compare(None, point.into(), 0)
    }
}

impl Inner {
    /// What `point` holds now, held still; nothing is asked of it but what it holds.
    pub(super) fn freeze(self: &Arc<Self>, point: Point) -> Result<Diff> {
        self.compare(None, point, 0)
    }

    pub(super) fn compare(self: &Arc<Self>, from: Option<Point>, to: Point, offset: u64) -> Result<Diff> {
        if self.engine.is_read_only() {
            // Nothing changes, so nothing has to be held.
            let table: &dyn Table = &*self.engine;
            if let Some(from) = from {
                from.size_bytes(table)?;
            }
            let size_bytes = to.size_bytes(table)?;
            let from = from.map(Point::object);
            return Diff::new(self, from, to.object(), size_bytes, offset, Vec::new());
        }
        let (from, to, size_bytes) = self.transact(|batch| {
            if let Some(from) = from {
                from.size_bytes(batch.table())?;
            }
            let size_bytes = to.size_bytes(batch.table())?;
            let mut freeze = |point: Point| -> Result<ObjectId> {
                let id = ObjectId(batch.claim_id("ephemeral copy", None)?.into_bytes());
                batch.stage(|stage| {
                    catalogue::insert_ephemeral(stage, id);
                    Ok(())
                })?;
                batch.share(id, point.object())?;
                Ok(id)
            };
            let from = from.map(&mut freeze).transpose()?;
            Ok((from, freeze(to)?, size_bytes))
        })?;
        let ephemeral: Vec<ObjectId> = from.into_iter().chain([to]).collect();
        Diff::new(self, from, to, size_bytes, offset, ephemeral)
    }

    fn thaw(&self, ids: &[ObjectId]) -> Result<()> {
        let mut gone = Vec::new();
        self.engine.transact(|txn| {
            for id in ids {
                catalogue::remove_ephemeral(txn, *id);
                gone.extend(catalogue::Stage::trash(txn, *id)?.into_iter().chain([*id]));
            }
            Ok(())
        })?;
        self.engine.forget_trash(&gone);
        Ok(())
    }
}

impl Diff {
    fn new(
        inner: &Arc<Inner>,
        from: Option<ObjectId>,
        to: ObjectId,
        size_bytes: u64,
        offset: u64,
        ephemeral: Vec<ObjectId>,
    ) -> Result<Self> {
        let side = |id: ObjectId| -> Result<Side> { Ok(Side { object: inner.engine.object(id)? }) };
        match (|| Ok((from.map(side).transpose()?, side(to)?)))() {
            Ok((from, to)) => Ok(Self {
                inner: Arc::clone(inner),
                from,
                to,
                next_lba: offset / BLOCK_BYTES,
                limit_lba: size_bytes / BLOCK_BYTES,
                found: VecDeque::new(),
                done: false,
                size_bytes,
                ephemeral,
            }),
            Err(e) => {
                let _: Result<()> = inner.thaw(&ephemeral);
                Err(e)
            }
        }
    }

    /// Size in bytes of the second point.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Reads what lies at `lba` and behind it at the second point.
    pub(crate) fn read(&self, lba: u64, out: &mut [u8]) -> Result<()> {
        self.engine().read(&self.to.object, lba * BLOCK_BYTES, out)
    }

    /// Adds the checksums of whole blocks of data of the second point.
    pub(crate) fn sums(&self, lba: u64, blocks: u64, sums: &mut Vec<u32>) -> Result<()> {
        self.engine().sums(&self.to.object, lba, blocks, sums)
    }

    /// Starts again from the beginning.
    pub(crate) fn rewind(&mut self) {
        (self.next_lba, self.done) = (0, false);
        self.found.clear();
    }

    /// Data blocks mapped at the first point, if there is one, and at the second.
    pub(crate) fn data_blocks(&self) -> Result<(Option<u64>, u64)> {
        let count = |side: &Side| self.engine().shown_blocks(&side.object);
        Ok((self.from.as_ref().map(count).transpose()?, count(&self.to)?))
    }

    /// Fingerprint of the second point.
    pub(crate) fn fingerprint(&self) -> Result<Fingerprint> {
        self.inner.fingerprint_of(&self.to.object, self.size_bytes)
    }

    /// Fingerprint of the first point, which had that size.
    pub(crate) fn base_fingerprint(&self, size_bytes: u64) -> Result<Option<Fingerprint>> {
        self.from.as_ref().map(|from| self.inner.fingerprint_of(&from.object, size_bytes)).transpose()
    }

    fn engine(&self) -> &Engine {
        &self.inner.engine
    }

    /// Finds the next changes; the last of them is kept back, because the next may continue it.
    fn search(&mut self) -> Result<()> {
        let (from, to) = (Side::map(self.from.as_ref()), Side::map(Some(&self.to)));
        let bases = (Side::base(self.from.as_ref()), Side::base(Some(&self.to)));
        let apart = match &bases {
            (Some(a), Some(b)) if a.id() != b.id() => a.blocks().max(b.blocks()),
            (None, Some(base)) | (Some(base), None) => base.blocks(),
            _ => 0,
        };
        while !self.done && self.found.len() <= PIECE {
            if self.next_lba >= self.limit_lba {
                self.done = true;
            } else if self.next_lba < apart {
                self.step(apart)?;
            } else if let Some((lbas, kind)) =
                walk::next_change(self.engine().store(), &from, &to, self.next_lba, self.limit_lba)?
            {
                match kind {
                    // Both lie over the same: where only the first map had something, that shows again.
                    ChangeKind::Hole if bases.1.is_some() => self.uncovered(lbas)?,
                    ChangeKind::Data => self.add(lbas, ExtentKind::Data),
                    ChangeKind::Zero => self.add(lbas, ExtentKind::Zero),
                    ChangeKind::Hole => self.add(lbas, ExtentKind::Hole),
                }
            } else {
                self.done = true;
            }
        }
        Ok(())
    }

    /// Compares the next blocks of two points over different bases, up to `end`: equal holes are not equal there.
    fn step(&mut self, end: u64) -> Result<()> {
        let lba = self.next_lba;
        let (a, end_a) = Side::show(self.from.as_ref(), self.engine(), lba)?;
        let (b, end_b) = Side::show(Some(&self.to), self.engine(), lba)?;
        let end = end_a.min(end_b).min(end).min(self.limit_lba);
        if a == b {
            self.next_lba = end.max(lba + 1);
        } else {
            self.add(lba..end, b.into());
        }
        Ok(())
    }

    /// Adds what the second point shows of its base in a range, or the first pieces of it.
    fn uncovered(&mut self, lbas: Range<u64>) -> Result<()> {
        let mut lba = lbas.start;
        while lba < lbas.end && self.found.len() <= PIECE {
            let (shown, end) = self.engine().show(&self.to.object, lba)?;
            let end = end.min(lbas.end);
            self.add(lba..end, shown.into());
            lba = end.max(lba + 1);
        }
        Ok(())
    }

    fn add(&mut self, lbas: Range<u64>, kind: ExtentKind) {
        // Whatever the maps say, the search moves on.
        self.next_lba = lbas.end.max(self.next_lba + 1);
        let range = lbas.start * BLOCK_BYTES..lbas.end * BLOCK_BYTES;
        match self.found.back_mut() {
            Some(last) if last.kind == kind && last.range.end == range.start => last.range.end = range.end,
            _ => self.found.push_back(Change { range, kind }),
        }
    }
}

impl Iterator for Diff {
    type Item = Result<Change>;

    fn next(&mut self) -> Option<Self::Item> {
        if !self.done
            && self.found.len() < 2
            && let Err(e) = self.search()
        {
            self.done = true;
            self.found.clear();
            return Some(Err(e));
        }
        self.found.pop_front().map(Ok)
    }
}

impl Drop for Diff {
    fn drop(&mut self) {
        if !self.ephemeral.is_empty() {
            // If this fails they stay until the pool is opened the next time.
            let _: Result<(), Error> = self.inner.thaw(&self.ephemeral);
        }
    }
}

impl std::fmt::Debug for Diff {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Diff").field("size_bytes", &self.size_bytes).finish_non_exhaustive()
    }
}
