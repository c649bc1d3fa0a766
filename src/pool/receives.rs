//! Snapshots on their way in: hidden until they are whole, then visible in one commit.
//!
//! - R1 What arrives is written into a map that no listing names. It is a snapshot from one commit to the next.
//! - R2 The map of an unfinished receive has an owner in the catalogue from the commit that makes it: nothing
//!   leaks, whenever the pool ends. One that is not to be kept is ephemeral besides, and the next open removes it.
//! - R3 The position is stored by a transaction, which makes everything written before it durable. What lies
//!   before it has arrived; what lies behind may have arrived in part, and is sent again, to the same effect.
//! - R4 One receive of a snapshot runs at a time: whoever runs it has its place among the attachments.
//!
//! | offset | size | field of an unfinished receive (catalogue table 0x22) |
//! |---|---|---|
//! | 0 | 1 | version, 1 |
//! | 1 | 1 | 1 when there is a base, else 0 |
//! | 2 | 6 | reserved |
//! | 8 | 8 | position: blocks below it have arrived |
//! | 16 | 8 | size of the snapshot in bytes |
//! | 24 | 8 | when the receive began, in microseconds since 1970 |
//! | 32 | 32 | origin of the snapshot: pool, snapshot |
//! | 64 | 32 | origin of the base, or zeroes |
//! | 96 | 16 | the base here, or zeroes |
//! | 112 | 16 | the volume that the snapshot will belong to; zeroes: a new one |

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::commit::Object;
use crate::error::{Corruption, Error, Result, Violation};
use crate::units::{BLOCK_BYTES, MAX_VOLUME_BYTES, SnapshotId, VolumeId};

use super::aliases::AliasOf;
use super::attachments::Place;
use super::batch::Batch;
use super::catalogue::{self, Index, Table};
use super::diff::{Diff, Point};
use super::fingerprint::Fingerprint;
use super::pool::{Inner, Pool};
use super::records::{Common, SnapshotRecord};
use super::snapshot::{Snapshot, SnapshotSpec};
use super::status::{SnapshotStatus, VolumeStatus};
use super::volume::{VolumeSource, VolumeSpec};

const BYTES: usize = 128;
const VERSION: u8 = 1;

/// Where a snapshot was first taken: it stays the same however often the snapshot is sent on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Origin {
    /// Identity of the pool, see [`Pool::uuid`].
    pub pool: Uuid,
    /// Id of the snapshot in that pool.
    pub snapshot: Uuid,
}

impl Origin {
    pub(crate) const fn new(pool: Uuid, snapshot: Uuid) -> Self {
        Self { pool, snapshot }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of pool {}", self.snapshot, self.pool)
    }
}

/// What tells a snapshot apart, in whatever pool it lies.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Identity {
    pub(crate) origin: Origin,
    pub(crate) size_bytes: u64,
    /// Blocks mapped to data.
    pub(crate) data_blocks: u64,
    pub(crate) fingerprint: Option<Fingerprint>,
}

/// From where on a snapshot has to be sent: what a receiver that stopped tells the sender.
///
/// As text it is one word, to be sent by whatever way there is; it is no secret.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ResumePoint {
    /// The snapshot that is being sent.
    pub snapshot: Origin,
    /// The snapshot that the receiver had already, for a stream of changes.
    pub since: Option<Origin>,
    /// Bytes of the snapshot that have arrived, from its start.
    pub offset: u64,
}

impl fmt::Display for ResumePoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = |id: Uuid| id.simple();
        write!(f, "{}.{}", hex(self.snapshot.pool), hex(self.snapshot.snapshot))?;
        if let Some(since) = self.since {
            write!(f, ".{}.{}", hex(since.pool), hex(since.snapshot))?;
        }
        write!(f, ".{}", self.offset)
    }
}

impl FromStr for ResumePoint {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::invalid("resume point", Violation::Range, format!("{text:?} is no resume point"));
        let parts: Vec<&str> = text.split('.').take(6).collect();
        let id = |text: &str| Uuid::try_parse(text).map_err(|_| bad());
        let origin = |pool, snapshot| Ok::<_, Error>(Origin::new(id(pool)?, id(snapshot)?));
        let (snapshot, since, offset) = match parts[..] {
            [pool, snapshot, offset] => (origin(pool, snapshot)?, None, offset),
            [pool, snapshot, base_pool, base, offset] => {
                (origin(pool, snapshot)?, Some(origin(base_pool, base)?), offset)
            }
            _ => return Err(bad()),
        };
        Ok(Self { snapshot, since, offset: offset.parse().map_err(|_| bad())? })
    }
}

/// A receive that began and was not finished: see [`Pool::list_receives`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[non_exhaustive]
pub struct UnfinishedReceive {
    /// The id that the snapshot will have; names the receive until then.
    pub id: SnapshotId,
    /// From where on the snapshot has to be sent.
    pub resume: ResumePoint,
    /// Size of the snapshot in bytes.
    pub size_bytes: u64,
    /// When it began, in microseconds since 1970.
    pub created_at_micros: u64,
    /// Whether it runs now, in this process.
    pub running: bool,
}

#[derive(Clone, PartialEq, Debug)]
struct Record {
    position: u64,
    size_bytes: u64,
    created: u64,
    snapshot: Origin,
    since: Option<Origin>,
    base: Option<SnapshotId>,
    volume: Option<VolumeId>,
}

impl Record {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION, self.since.is_some().into(), 0, 0, 0, 0, 0, 0];
        for number in [self.position, self.size_bytes, self.created] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let since = self.since.unwrap_or(Origin::new(Uuid::nil(), Uuid::nil()));
        let base = self.base.map_or(Uuid::nil(), SnapshotId::raw);
        let volume = self.volume.map_or(Uuid::nil(), VolumeId::raw);
        for id in [self.snapshot.pool, self.snapshot.snapshot, since.pool, since.snapshot, base, volume] {
            out.extend_from_slice(id.as_bytes());
        }
        debug_assert_eq!(out.len(), BYTES);
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, Corruption> {
        let bad = |field, want: &str, got: u64| Corruption::new("unfinished receive", 0, field, want, got);
        let Ok(bytes) = <&[u8; BYTES]>::try_from(bytes) else {
            return Err(bad("length", "128", bytes.len() as u64));
        };
        if bytes[0] != VERSION || bytes[1] > 1 || bytes[2..8] != [0; 6] {
            return Err(bad("version", "1", bytes[0].into()));
        }
        let number = |at: usize| {
            let mut le = [0; 8];
            le.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(le)
        };
        let id = |at: usize| {
            let mut id = [0; 16];
            id.copy_from_slice(&bytes[at..at + 16]);
            Uuid::from_bytes(id)
        };
        let (position, size_bytes) = (number(8), number(16));
        if size_bytes > MAX_VOLUME_BYTES || position > size_bytes / BLOCK_BYTES {
            return Err(bad("position", "within the size", position));
        }
        let optional = |at| Some(id(at)).filter(|id| !id.is_nil());
        Ok(Self {
            position,
            size_bytes,
            created: number(24),
            snapshot: Origin::new(id(32), id(48)),
            since: (bytes[1] == 1).then(|| Origin::new(id(64), id(80))),
            base: optional(96).map(SnapshotId::new),
            volume: optional(112).map(VolumeId::new),
        })
    }
}

/// What is about to arrive.
pub(crate) struct Landing<'a> {
    pub(crate) snapshot: &'a Identity,
    pub(crate) base: Option<&'a Identity>,
    /// The snapshot belongs to the base's volume, else to a new one.
    pub(crate) same_volume: bool,
    /// Blocks below this do not come.
    pub(crate) start_lba: u64,
    /// The id that the snapshot is to have.
    pub(crate) id: Option<SnapshotId>,
    /// Keep what has arrived when the receive ends too early.
    pub(crate) keep: bool,
}

/// What the snapshot will be called, and the volume if it gets a new one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Target {
    pub(crate) name: Option<String>,
    pub(crate) description: Option<String>,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) volume_name: Option<String>,
    pub(crate) volume_id: Option<VolumeId>,
}

/// A receive that runs. Dropped before [`finish`](Self::finish) it leaves what has arrived, or nothing.
pub(crate) struct Arrival {
    pool: Pool,
    inner: Arc<Inner>,
    object: Arc<Object>,
    _place: Place,
    id: SnapshotId,
    record: Record,
    /// Blocks below this have arrived; ahead of the stored position.
    reached: u64,
    keep: bool,
    over: bool,
}

impl Pool {
    /// Receives that began and were not finished, with the point from where on each has to be sent again.
    ///
    /// # Errors
    /// `Corrupt`, `Io`, `Closed`.
    pub fn list_receives(&self) -> Result<Vec<UnfinishedReceive>> {
        let table: &dyn Table = &*self.inner.engine;
        let mut found = Vec::new();
        for object in Index::receives().all(table)? {
            let id = SnapshotId::new(Uuid::from_bytes(object.0));
            // It may have been finished since the index was read.
            let Some(bytes) = catalogue::receive(table, id)? else { continue };
            let record = Record::decode(&bytes)?;
            found.push(UnfinishedReceive {
                id,
                resume: ResumePoint {
                    snapshot: record.snapshot,
                    since: record.since,
                    offset: record.position * BLOCK_BYTES,
                },
                size_bytes: record.size_bytes,
                created_at_micros: record.created,
                running: self.inner.attachments.count(object) > 0,
            });
        }
        Ok(found)
    }

    /// Gives up an unfinished receive: what has arrived is deleted. Durable on return; the space comes back in
    /// the background.
    ///
    /// # Errors
    /// `NotFound`; `Busy` while it runs; `ReadOnly`, `Io`, `Poisoned`, `Closed`.
    pub fn abort_receive(&self, id: SnapshotId) -> Result<()> {
        self.inner.transact(|batch| {
            if catalogue::receive(batch.table(), id)?.is_none() {
                return Err(Error::NotFound { object: "unfinished receive", id: id.to_string() });
            }
            if !batch.alone(id.object(), SnapshotStatus::Deleting.as_str()) {
                return Err(running(id));
            }
            batch.give_up(id)
        })
    }

    /// Where a snapshot was first taken: here, or in the pool that it was received from.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt`, `Io`, `Closed`.
    pub fn snapshot_origin(&self, id: SnapshotId) -> Result<Origin> {
        let table: &dyn Table = &*self.inner.engine;
        catalogue::need_snapshot(table, id)?;
        let received = catalogue::origin_of(table, id)?;
        Ok(received.unwrap_or_else(|| Origin::new(self.uuid(), id.raw())))
    }

    /// The snapshot of this pool that has that origin, whether it was taken here or received.
    ///
    /// # Errors
    /// `Corrupt`, `Io`, `Closed`.
    pub fn snapshot_from(&self, origin: Origin) -> Result<Option<SnapshotId>> {
        self.inner.find_origin(&*self.inner.engine, origin)
    }

    /// Freezes a snapshot, and the one that changes are counted from.
    pub(crate) fn freeze_pair(
        &self,
        base: Option<SnapshotId>,
        snapshot: SnapshotId,
        offset: u64,
    ) -> Result<Diff> {
        for id in base.into_iter().chain([snapshot]) {
            self.inner.need_base_complete("snapshot", id.object(), "send")?;
        }
        self.inner.compare(base.map(Point::from), snapshot.into(), offset)
    }

    /// Begins to receive, or goes on where one stopped.
    pub(crate) fn land(&self, landing: &Landing<'_>) -> Result<Arrival> {
        let inner = &self.inner;
        if inner.engine.is_read_only() {
            return Err(Error::ReadOnly { object: "pool" });
        }
        let table: &dyn Table = &*inner.engine;
        if inner.find_receive(table, landing)?.is_none() {
            inner.check_base(landing)?;
        }
        let (id, record, keep) = inner.transact(|batch| batch.land(landing))?;
        let place = inner.attachments.enter(id.object(), 1, inner.engine.now()).map_err(|_| running(id))?;
        let object = inner.engine.object(id.object())?;
        let (pool, inner, reached) = (self.clone(), Arc::clone(inner), record.position);
        Ok(Arrival { pool, inner, object, _place: place, id, record, reached, keep, over: false })
    }
}

fn running(id: SnapshotId) -> Error {
    Error::Busy { object: "receive", id: id.to_string(), why: "it runs already" }
}

fn refused(why: String) -> Error {
    Error::refused("delta stream", 0, why)
}

impl Inner {
    fn find_origin(&self, table: &dyn Table, origin: Origin) -> Result<Option<SnapshotId>> {
        let own = SnapshotId::new(origin.snapshot);
        if origin.pool == self.engine.uuid()
            && catalogue::snapshot(table, own)?.is_some()
            && catalogue::origin_of(table, own)?.is_none()
        {
            return Ok(Some(own));
        }
        catalogue::received_from(table, origin)
    }

    fn find_receive(&self, table: &dyn Table, l: &Landing<'_>) -> Result<Option<(SnapshotId, Record)>> {
        let since = l.base.map(|base| base.origin);
        for object in Index::receives().all(table)? {
            let id = SnapshotId::new(Uuid::from_bytes(object.0));
            let Some(bytes) = catalogue::receive(table, id)? else { continue };
            let record = Record::decode(&bytes)?;
            if record.snapshot == l.snapshot.origin && record.since == since {
                return Ok(Some((id, record)));
            }
        }
        Ok(None)
    }

    fn need_base(&self, table: &dyn Table, base: &Identity) -> Result<(SnapshotId, SnapshotRecord)> {
        let missing = || Error::NotFound { object: "base snapshot", id: base.origin.to_string() };
        let id = self.find_origin(table, base.origin)?.ok_or_else(missing)?;
        Ok((id, catalogue::snapshot(table, id)?.ok_or_else(missing)?))
    }

    /// Whether the base is here and holds what the stream was made from. Snapshots never change, so what is
    /// found now is still so when the receive begins.
    fn check_base(self: &Arc<Self>, l: &Landing<'_>) -> Result<()> {
        let Some(base) = l.base else { return Ok(()) };
        let (id, record) = self.need_base(&*self.engine, base)?;
        self.need_base_complete("snapshot", id.object(), "receive")?;
        let frozen = self.freeze(id.into())?;
        let (_, blocks) = frozen.data_blocks()?;
        if record.common.size_bytes != base.size_bytes || blocks != base.data_blocks {
            return Err(refused(format!(
                "it was made from a base of {} bytes with {} blocks of data; snapshot {id} here has {} bytes and {blocks} blocks",
                base.size_bytes, base.data_blocks, record.common.size_bytes,
            )));
        }
        match base.fingerprint {
            Some(want) if frozen.fingerprint()? != want => {
                Err(refused(format!("snapshot {id} here does not hold what the base of the stream holds")))
            }
            _ => Ok(()),
        }
    }
}

impl Batch<'_> {
    /// The receive, and whether it is kept: one that was left is.
    fn land(&mut self, l: &Landing<'_>) -> Result<(SnapshotId, Record, bool)> {
        if let Some(there) = self.inner.find_origin(self.table(), l.snapshot.origin)? {
            return Err(Error::AlreadyExists { object: "snapshot", id: there.to_string() });
        }
        if let Some((id, record)) = self.inner.find_receive(self.table(), l)? {
            if record.size_bytes != l.snapshot.size_bytes {
                return Err(refused(format!(
                    "a snapshot of {} bytes, and what arrived before is of one of {}",
                    l.snapshot.size_bytes, record.size_bytes
                )));
            }
            if l.start_lba > record.position {
                return Err(refused(format!(
                    "it starts at byte {}, and only {} bytes have arrived",
                    l.start_lba * BLOCK_BYTES,
                    record.position * BLOCK_BYTES
                )));
            }
            if l.id.is_some_and(|want| want != id) {
                return Err(Error::invalid(
                    "snapshot id",
                    Violation::Id,
                    format!("the receive that goes on is of {id}"),
                ));
            }
            return Ok((id, record, true));
        }
        if l.start_lba > 0 {
            return Err(refused(format!(
                "it starts at byte {}, and nothing of it has arrived",
                l.start_lba * BLOCK_BYTES
            )));
        }
        let base = l.base.map(|base| self.inner.need_base(self.table(), base)).transpose()?;
        let id = SnapshotId::new(self.claim_id("snapshot", l.id.map(SnapshotId::raw))?);
        let record = Record {
            position: 0,
            size_bytes: l.snapshot.size_bytes,
            created: self.now(),
            snapshot: l.snapshot.origin,
            since: l.base.map(|base| base.origin),
            base: base.as_ref().map(|(id, _)| *id),
            volume: base.as_ref().filter(|_| l.same_volume).map(|(_, record)| record.volume),
        };
        self.stage(|stage| {
            catalogue::set_receive(stage, id, record.encode());
            if !l.keep {
                catalogue::insert_ephemeral(stage, id.object());
            }
            Ok(())
        })?;
        if let Some((base, _)) = base {
            self.share(id.object(), base.object())?;
        }
        Ok((id, record, l.keep))
    }

    fn give_up(&mut self, id: SnapshotId) -> Result<()> {
        self.stage(|stage| {
            catalogue::remove_receive(stage, id);
            catalogue::remove_ephemeral(stage, id.object());
            Ok(())
        })?;
        self.trash_unwatched(id.object())
    }

    fn settle(&mut self, id: SnapshotId, record: &Record, target: &Target) -> Result<Snapshot> {
        let size_bytes = record.size_bytes;
        let volume = match record.volume {
            Some(volume) => {
                // A rollback to the snapshot must fit.
                if let Some(there) = catalogue::volume(self.table(), volume)?
                    && there.common.size_bytes < size_bytes
                {
                    self.extend(volume, size_bytes)?;
                }
                volume
            }
            None => {
                let mut spec = VolumeSpec::blank(size_bytes);
                (spec.name, spec.id) = (target.volume_name.clone(), target.volume_id);
                spec.check(self.limits, 0)?;
                let plan = self.plan_volume(&spec, 1)?;
                if let Some(base) = record.base
                    && catalogue::snapshot(self.table(), base)?.is_some()
                {
                    spec.source = VolumeSource::Snapshot(base);
                }
                let volume = self.make_volume(spec, &plan, VolumeStatus::Available)?.id;
                // In place of what making it from the base has shared.
                self.share(volume.object(), id.object())?;
                volume
            }
        };
        let mut spec = SnapshotSpec::new();
        (spec.name, spec.description) = (target.name.clone(), target.description.clone());
        spec.metadata.clone_from(&target.metadata);
        spec.check(self.limits)?;
        // Project, zone and what else belongs to the place come from the volume, or from the base without one.
        let around = match (catalogue::volume(self.table(), volume)?, record.base) {
            (Some(volume), _) => volume.common,
            (None, Some(base)) => {
                catalogue::snapshot(self.table(), base)?.map_or_else(Common::default, |base| base.common)
            }
            (None, None) => Common::default(),
        };
        let made = SnapshotRecord {
            status: SnapshotStatus::Available,
            held: false,
            backup_owned: false,
            automatic: false,
            volume,
            epoch: self.inner.engine.epoch(),
            common: Common {
                name: spec.name,
                description: spec.description,
                size_bytes,
                metadata: spec.metadata,
                created: self.now(),
                updated: None,
                alias: self.claim_alias(AliasOf::Snapshot, id.object())?,
                ..around
            },
        };
        self.stage(|stage| {
            catalogue::remove_receive(stage, id);
            catalogue::remove_ephemeral(stage, id.object());
            catalogue::set_origin(stage, id, record.snapshot);
            catalogue::insert_snapshot(stage, id, &made)
        })?;
        self.ended_epoch();
        self.snapshot(id)
    }
}

impl Arrival {
    /// Writes whole blocks of data from `lba` on.
    pub(crate) fn write(&self, lba: u64, data: &[u8]) -> Result<()> {
        self.inner.engine.write(&self.object, lba * BLOCK_BYTES, data)
    }

    /// Makes a range a hole, or zeroes.
    pub(crate) fn unmap(&self, from: u64, to: u64, zero: bool) -> Result<()> {
        self.inner.engine.unmap(&self.object, from, to, zero)
    }

    /// Everything below `lba` has arrived.
    pub(crate) fn reached(&mut self, lba: u64) {
        self.reached = self.reached.max(lba);
    }

    /// Stores the position, with everything that has arrived; for a receive that is kept.
    pub(crate) fn save(&mut self) -> Result<()> {
        if !self.keep || self.reached <= self.record.position {
            return Ok(());
        }
        let record = Record { position: self.reached, ..self.record.clone() };
        self.inner.transact(|batch| {
            batch.stage(|stage| {
                catalogue::set_receive(stage, self.id, record.encode());
                Ok(())
            })
        })?;
        self.record = record;
        Ok(())
    }

    /// What has arrived is not to be kept after all.
    pub(crate) fn spoil(&mut self) {
        self.keep = false;
    }

    /// Blocks of data that have been mapped.
    pub(crate) fn data_blocks(&self) -> Result<u64> {
        self.inner.engine.shown_blocks(&self.object)
    }

    /// Fingerprint of what has arrived.
    pub(crate) fn fingerprint(&self) -> Result<Fingerprint> {
        self.inner.fingerprint_of(&self.object, self.record.size_bytes)
    }

    /// Makes the snapshot visible, and its volume if it has none yet: one commit, durable on return.
    pub(crate) fn finish(mut self, target: &Target) -> Result<Snapshot> {
        let made = self.pool.transact(|batch| batch.settle(self.id, &self.record, target))?;
        self.over = true;
        Ok(made)
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        // If either fails: the stored position is good too, and open removes what is not to be kept.
        if self.keep {
            let _ = self.save();
        } else {
            let _ = self.inner.transact(|batch| batch.give_up(self.id));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn origin() -> impl Strategy<Value = Origin> {
        (any::<u128>(), any::<u128>())
            .prop_map(|(pool, snapshot)| Origin::new(Uuid::from_u128(pool), Uuid::from_u128(snapshot)))
    }

    proptest! {
        #[test]
        fn records_and_resume_points_survive_their_encoding(
            snapshot in origin(), since in proptest::option::of(origin()), position in 0u64..1 << 30, ids in any::<[u128; 2]>(),
        ) {
            let record = Record {
                position,
                size_bytes: (position + 1) * BLOCK_BYTES,
                created: position,
                snapshot,
                since,
                base: since.map(|_| SnapshotId::new(Uuid::from_u128(ids[0] | 1))),
                volume: since.map(|_| VolumeId::new(Uuid::from_u128(ids[1] | 1))),
            };
            prop_assert_eq!(Record::decode(&record.encode()).unwrap(), record);
            let point = ResumePoint { snapshot, since, offset: position };
            prop_assert_eq!(point.to_string().parse::<ResumePoint>().unwrap(), point);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "\\PC{0,80}") {
            let _ = Record::decode(&bytes);
            let _ = text.parse::<ResumePoint>();
        }
    }
}
