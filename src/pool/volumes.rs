//! What can be done with volumes, and when.

use crate::error::{Error, Result};
use crate::units::{ObjectId, SnapshotId, VolumeId};

use super::batch::Batch;
use super::catalogue::{self, Index, Table};
use super::deletion::{DeletePlan, Deletion};
use super::limits::{MAX_TEXT_BYTES, MAX_VOLUMES_PER_CALL, check_metadata, check_size, check_text};
use super::pool::Pool;
use super::records::{Common, SnapshotRecord, VolumeRecord};
use super::status::{SnapshotStatus, VolumeStatus};
use super::volume::{Snapshots, Volume, VolumeSource, VolumeSpec, VolumeUpdate};

/// How many snapshots `HasSnapshots` names.
const NAMED_SNAPSHOTS: usize = 1000;

impl Batch<'_> {
    /// Creates a volume: see [`Pool::create_volume`].
    ///
    /// # Errors
    /// As [`Pool::create_volume`].
    pub fn create_volume(&mut self, spec: VolumeSpec) -> Result<Volume> {
        spec.check(MAX_TEXT_BYTES)?;
        let size_bytes = self.check_source(&spec)?;
        self.make_volume(spec, size_bytes)
    }

    /// Creates several volumes: see [`Pool::create_volumes`].
    ///
    /// # Errors
    /// As [`Pool::create_volumes`].
    pub fn create_volumes(&mut self, spec: VolumeSpec, count: u32) -> Result<Vec<Volume>> {
        if !(1..=MAX_VOLUMES_PER_CALL).contains(&count) {
            let why = format!("1 to {MAX_VOLUMES_PER_CALL} volumes are created at once, {count} asked for");
            return Err(Error::invalid("count", why));
        }
        if count == 1 {
            return Ok(vec![self.create_volume(spec)?]);
        }
        if spec.id.is_some() {
            return Err(Error::invalid("id", "one id cannot name several volumes"));
        }
        // Room for the number that each name gets.
        spec.check(MAX_TEXT_BYTES - "-0001".len())?;
        let size_bytes = self.check_source(&spec)?;
        let mut made = Vec::with_capacity(count as usize);
        for number in 1..=count {
            let mut one = spec.clone();
            one.name = spec.name.as_ref().map(|name| format!("{name}-{number:04}"));
            let volume = self.make_volume(one, size_bytes);
            // All or nothing, even when the caller goes on after the error.
            made.push(if number == 1 { volume? } else { self.stage(|_| volume)? });
        }
        Ok(made)
    }

    /// The size that the volume gets, after its source was looked at.
    fn check_source(&self, spec: &VolumeSpec) -> Result<u64> {
        let least = match spec.source {
            VolumeSource::Blank => 0,
            VolumeSource::Snapshot(id) => {
                let record = catalogue::need_snapshot(self.table(), id)?;
                need_available(id, &record, "clone")?;
                record.common.size_bytes
            }
            VolumeSource::Volume(id) => {
                let record = catalogue::need_volume(self.table(), id)?;
                if record.status != VolumeStatus::Available {
                    return Err(wrong_status(id, record.status, "clone"));
                }
                record.common.size_bytes
            }
        };
        let size_bytes = spec.size_bytes.unwrap_or(least);
        if size_bytes < least {
            let why = format!("at least the {least} bytes of the source are needed, {size_bytes} given");
            return Err(Error::invalid("size_bytes", why));
        }
        Ok(size_bytes)
    }

    fn make_volume(&mut self, spec: VolumeSpec, size_bytes: u64) -> Result<Volume> {
        let id = VolumeId::new(self.claim_id("volume", spec.id.map(VolumeId::raw))?);
        let record = VolumeRecord {
            status: VolumeStatus::Available,
            multiattach: spec.multiattach,
            source: spec.source,
            common: Common {
                name: spec.name,
                description: spec.description,
                size_bytes,
                metadata: spec.metadata,
                created: self.now(),
                updated: None,
            },
        };
        self.stage(|stage| catalogue::insert_volume(stage, id, &record))?;
        match spec.source {
            VolumeSource::Blank => {}
            VolumeSource::Snapshot(source) => self.share(id.object(), source.object()),
            VolumeSource::Volume(source) => self.share(id.object(), source.object()),
        }
        Ok(Volume::from_record(id, record, 0, 0))
    }

    /// Changes name, description or metadata: see [`Pool::update_volume`].
    ///
    /// # Errors
    /// As [`Pool::update_volume`].
    pub fn update_volume(&mut self, id: VolumeId, update: VolumeUpdate) -> Result<Volume> {
        check_text("name", update.name.as_ref().and_then(|n| n.as_deref()), MAX_TEXT_BYTES)?;
        check_text("description", update.description.as_ref().and_then(|d| d.as_deref()), MAX_TEXT_BYTES)?;
        if let Some(metadata) = &update.metadata {
            check_metadata(metadata)?;
        }
        if update.name.is_none() && update.description.is_none() && update.metadata.is_none() {
            return Err(Error::invalid("update", "there is nothing to change"));
        }
        let mut record = catalogue::need_volume(self.table(), id)?;
        let common = &mut record.common;
        if let Some(name) = update.name {
            common.name = name;
        }
        if let Some(description) = update.description {
            common.description = description;
        }
        if let Some(metadata) = update.metadata {
            common.metadata = metadata;
        }
        common.updated = Some(self.now());
        self.stage(|stage| catalogue::update_volume(stage, id, &record))?;
        self.inner.describe_volume(self.table(), id, record)
    }

    /// Renames a volume: see [`Pool::rename_volume`].
    ///
    /// # Errors
    /// As [`Pool::update_volume`].
    pub fn rename_volume(&mut self, id: VolumeId, name: impl Into<String>) -> Result<Volume> {
        self.update_volume(id, VolumeUpdate::new().name(Some(name.into())))
    }

    /// Makes a volume larger: see [`Pool::extend`].
    ///
    /// # Errors
    /// As [`Pool::extend`].
    pub fn extend(&mut self, id: VolumeId, new_size_bytes: u64) -> Result<Volume> {
        check_size(new_size_bytes)?;
        let mut record = catalogue::need_volume(self.table(), id)?;
        let size_bytes = record.common.size_bytes;
        if new_size_bytes <= size_bytes {
            let why =
                format!("it must be larger than the present {size_bytes} bytes, {new_size_bytes} given");
            return Err(Error::invalid("size_bytes", why));
        }
        match self.inner.volume_status(id, &record) {
            VolumeStatus::Available => {}
            VolumeStatus::InUse if !record.multiattach => {}
            status => return Err(wrong_status(id, status, "extend")),
        }
        record.common.size_bytes = new_size_bytes;
        record.common.updated = Some(self.now());
        self.stage(|stage| catalogue::update_volume(stage, id, &record))?;
        self.resized(id.object(), new_size_bytes);
        self.inner.describe_volume(self.table(), id, record)
    }

    /// Deletes a volume: see [`Pool::delete_volume`]. The handle is of use once the batch is committed.
    ///
    /// # Errors
    /// As [`Pool::delete_volume`].
    pub fn delete_volume(&mut self, id: VolumeId, snapshots: Snapshots) -> Result<Deletion> {
        let record = catalogue::need_volume(self.table(), id)?;
        let status = self.inner.volume_status(id, &record);
        if !status.allows_delete() {
            return Err(wrong_status(id, status, "delete"));
        }
        let doomed = doomed_snapshots(self.table(), id, snapshots)?;
        for (snapshot, record) in &doomed {
            if !matches!(record.status, SnapshotStatus::Available | SnapshotStatus::Error) {
                return Err(snapshot_status(*snapshot, record.status, "delete"));
            }
        }
        // From here on nobody can attach, until the delete is through or refused (P6).
        if !self.alone(id.object(), VolumeStatus::Deleting.as_str()) {
            return Err(wrong_status(id, VolumeStatus::InUse, "delete"));
        }
        for (snapshot, _) in &doomed {
            if !self.alone(snapshot.object(), SnapshotStatus::Deleting.as_str()) {
                return Err(busy_snapshot(*snapshot, "it is attached"));
            }
        }
        self.stage(|stage| {
            for (snapshot, record) in &doomed {
                catalogue::remove_snapshot(stage, *snapshot, record)?;
            }
            catalogue::remove_volume(stage, id, &record)
        })?;
        let mut ids: Vec<ObjectId> = vec![id.object()];
        ids.extend(doomed.iter().map(|(snapshot, _)| snapshot.object()));
        for id in &ids {
            self.trash(*id);
        }
        let snapshots = doomed.into_iter().map(|(snapshot, _)| snapshot).collect();
        Ok(Deletion::new(self.inner, Some(id), snapshots, ids))
    }
}

impl Pool {
    /// Creates a volume: blank, or as a clone of a snapshot or volume. Costs the same whatever its size and
    /// whatever is mapped in its source. Durable on return.
    ///
    /// # Errors
    /// `InvalidArgument` for a size, name, description or metadata out of range; `NotFound` for a source that
    /// is not there, `InvalidState` for one that is not `available` (a volume may be attached);
    /// `AlreadyExists` for a supplied id that is taken; `ReadOnly`, `OutOfSpace`, `Io`, `Poisoned`, `Closed`.
    pub fn create_volume(&self, spec: VolumeSpec) -> Result<Volume> {
        self.inner.transact(|batch| batch.create_volume(spec))
    }

    /// Creates `count` (1 to 100) volumes at one instant, all or none. For more than one, each name gets
    /// `-0001`, `-0002` and so on behind it. Durable on return.
    ///
    /// # Errors
    /// `InvalidArgument` for a count out of range, a name over 250 bytes, or a supplied id for several; else
    /// as [`create_volume`](Self::create_volume).
    pub fn create_volumes(&self, spec: VolumeSpec, count: u32) -> Result<Vec<Volume>> {
        self.inner.transact(|batch| batch.create_volumes(spec, count))
    }

    /// Changes name, description or metadata of a volume, attached or not. Durable on return.
    ///
    /// # Errors
    /// `InvalidArgument` for a text or metadata out of range, or when nothing is to change; `NotFound`;
    /// `ReadOnly`, `OutOfSpace`, `Io`, `Poisoned`, `Closed`.
    pub fn update_volume(&self, id: VolumeId, update: VolumeUpdate) -> Result<Volume> {
        self.inner.transact(|batch| batch.update_volume(id, update))
    }

    /// Gives a volume another name of at most 255 bytes. Durable on return.
    ///
    /// # Errors
    /// As [`update_volume`](Self::update_volume).
    pub fn rename_volume(&self, id: VolumeId, name: impl Into<String>) -> Result<Volume> {
        self.inner.transact(|batch| batch.rename_volume(id, name))
    }

    /// Makes a volume `new_size_bytes` bytes large: a multiple of 4,096, more than now, at most 1 EiB. The new
    /// range reads zero; snapshots keep their size. An attached disk sees the new size when this returns.
    /// Durable on return.
    ///
    /// # Errors
    /// `InvalidArgument` for a size out of range or not larger; `NotFound`; `InvalidState` when the volume is
    /// neither `available` nor `in-use`, or is `in-use` and shared; `ReadOnly`, `OutOfSpace`, `Io`,
    /// `Poisoned`, `Closed`.
    pub fn extend(&self, id: VolumeId, new_size_bytes: u64) -> Result<Volume> {
        self.inner.transact(|batch| batch.extend(id, new_size_bytes))
    }

    /// Deletes a volume and, as `snapshots` says, its snapshots. Clones of either live on. The delete is
    /// durable on return; the space comes back in the background, see [`Deletion`].
    ///
    /// # Errors
    /// `NotFound`; `InvalidState` while it is attached, or in a status that forbids it; `HasSnapshots` when
    /// the policy is to refuse; `Busy` when a snapshot that would go is held or attached; `ReadOnly`, `Io`,
    /// `Poisoned`, `Closed`.
    pub fn delete_volume(&self, id: VolumeId, snapshots: Snapshots) -> Result<Deletion> {
        self.inner.transact(|batch| batch.delete_volume(id, snapshots))
    }

    /// What [`delete_volume`](Self::delete_volume) would delete and how many bytes that would free, as of
    /// now. Walks the maps concerned, skipping what is shared. Changes nothing; the volume may be attached.
    ///
    /// # Errors
    /// `NotFound`; `HasSnapshots`, `Busy` as the delete; `Corrupt`, `Io`, `Closed`.
    pub fn plan_delete(&self, id: VolumeId, snapshots: Snapshots) -> Result<DeletePlan> {
        let table: &dyn Table = &*self.inner.engine;
        catalogue::need_volume(table, id)?;
        let doomed = doomed_snapshots(table, id, snapshots)?;
        let snapshots: Vec<SnapshotId> = doomed.into_iter().map(|(snapshot, _)| snapshot).collect();
        DeletePlan::new(&self.inner, Some(id), snapshots)
    }
}

/// The snapshots that go with a volume under this policy.
fn doomed_snapshots(
    table: &dyn Table,
    id: VolumeId,
    policy: Snapshots,
) -> Result<Vec<(SnapshotId, SnapshotRecord)>> {
    let id_of = |object: ObjectId| SnapshotId::new(uuid::Uuid::from_bytes(object.0));
    match policy {
        Snapshots::Keep => Ok(Vec::new()),
        Snapshots::Refuse => {
            let mut index = Index::snapshots_of(id);
            let mut snapshots = Vec::new();
            while snapshots.len() < NAMED_SNAPSHOTS {
                let ids = index.next_ids(table, NAMED_SNAPSHOTS - snapshots.len())?;
                if ids.is_empty() {
                    break;
                }
                snapshots.extend(ids.into_iter().map(id_of));
            }
            if snapshots.is_empty() {
                Ok(Vec::new())
            } else {
                Err(Error::HasSnapshots { volume: id, snapshots })
            }
        }
        Snapshots::Delete => {
            let mut doomed = Vec::new();
            for snapshot in Index::snapshots_of(id).all(table)?.into_iter().map(id_of) {
                // Outside a transaction it may have gone since the index was read.
                let Some(record) = catalogue::snapshot(table, snapshot)? else { continue };
                if record.held {
                    return Err(busy_snapshot(snapshot, "it is held"));
                }
                doomed.push((snapshot, record));
            }
            Ok(doomed)
        }
    }
}

pub(super) fn wrong_status(id: VolumeId, status: VolumeStatus, op: &'static str) -> Error {
    Error::InvalidState { object: "volume", id: id.to_string(), status: status.as_str(), op }
}

pub(super) fn snapshot_status(id: SnapshotId, status: SnapshotStatus, op: &'static str) -> Error {
    Error::InvalidState { object: "snapshot", id: id.to_string(), status: status.as_str(), op }
}

pub(super) fn busy_snapshot(id: SnapshotId, why: &'static str) -> Error {
    Error::Busy { object: "snapshot", id: id.to_string(), why }
}

pub(super) fn need_available(id: SnapshotId, record: &SnapshotRecord, op: &'static str) -> Result<()> {
    match record.status {
        SnapshotStatus::Available => Ok(()),
        status => Err(snapshot_status(id, status, op)),
    }
}
