//! What can be done with volumes, and when.

use crate::error::{Error, Result, StateRule, Violation};
use crate::memory;
use crate::units::{ObjectId, SnapshotId, VolumeId};

use super::aliases::AliasOf;
use super::backup_records;
use super::batch::Batch;
use super::catalogue::{self, Index, Table};
use super::deletion::{DeletePlan, Deletion};
use super::images;
use super::limits::MAX_VOLUMES_PER_CALL;
use super::pool::Pool;
use super::projects;
use super::records::{Common, SnapshotRecord, VolumeRecord};
use super::status::{SnapshotStatus, VolumeStatus};
use super::update::VolumeUpdate;
use super::volume::{Snapshots, Volume, VolumeSource, VolumeSpec};
use super::zones;

/// How many snapshots `HasSnapshots` names.
const NAMED_SNAPSHOTS: usize = 1000;

/// What a new volume gets, once its source and place were looked at.
pub(super) struct Plan {
    size_bytes: u64,
    project: Option<u32>,
    zone: u16,
    volume_type: Option<String>,
    bootable: bool,
}

/// What a source hands on to a volume made from it.
#[derive(Default)]
struct Origin {
    least_bytes: u64,
    project: Option<u32>,
    zone: Option<u16>,
    volume_type: Option<String>,
    bootable: bool,
}

impl Origin {
    fn of(common: &Common) -> Self {
        Self {
            least_bytes: common.size_bytes,
            project: Some(common.project),
            zone: Some(common.zone),
            volume_type: common.volume_type.clone(),
            bootable: common.bootable,
        }
    }
}

impl Batch<'_> {
    /// Creates a volume: see [`Pool::create_volume`].
    ///
    /// # Errors
    /// As [`Pool::create_volume`].
    pub fn create_volume(&mut self, spec: VolumeSpec) -> Result<Volume> {
        Ok(self.create_volumes(spec, 1)?.remove(0))
    }

    /// Creates several volumes: see [`Pool::create_volumes`].
    ///
    /// # Errors
    /// As [`Pool::create_volumes`].
    pub fn create_volumes(&mut self, spec: VolumeSpec, count: u32) -> Result<Vec<Volume>> {
        if !(1..=MAX_VOLUMES_PER_CALL).contains(&count) {
            let why = format!("1 to {MAX_VOLUMES_PER_CALL} volumes are created at once, {count} asked for");
            return Err(Error::invalid("count", Violation::Count, why));
        }
        if let VolumeSource::Backup(_) = spec.source {
            if count > 1 {
                let why = format!("one volume at a time is made from a backup, {count} asked for");
                return Err(Error::invalid("count", Violation::CountFromBackup, why));
            }
            return Err(Error::Unsupported(
                "a volume from a backup is filled: begin it with begin_volume".into(),
            ));
        }
        if count > 1 && spec.id.is_some() {
            return Err(Error::invalid("id", Violation::Id, "one id cannot name several volumes"));
        }
        // Room for the number that each name gets.
        spec.check(self.limits, if count > 1 { "-0001".len() } else { 0 })?;
        let plan = self.plan_volume(&spec, count.into())?;
        let mut made = Vec::with_capacity(count as usize);
        for number in 1..=count {
            let mut one = spec.clone();
            if count > 1 {
                one.name = spec.name.as_ref().map(|name| format!("{name}-{number:04}"));
            }
            let volume = self.make_volume(one, &plan, VolumeStatus::Available);
            // All or nothing, even when the caller goes on after the error.
            made.push(if number == 1 { volume? } else { self.stage(|_| volume)? });
        }
        Ok(made)
    }

    /// Looks at the source, the place and the quota for `count` such volumes; changes nothing.
    pub(super) fn plan_volume(&self, spec: &VolumeSpec, count: u64) -> Result<Plan> {
        let table = self.table();
        let origin = self.origin(spec)?;
        let named = spec.project.as_deref();
        if let Some(project) = origin.project
            && !projects::serves(table, named, project)?
        {
            let (object, id) = spec.source.named();
            return Err(Error::NotFound { object, id });
        }
        let step = self.limits.step_bytes;
        let least = origin.least_bytes;
        let size_bytes =
            spec.size_bytes.unwrap_or_else(|| least.checked_next_multiple_of(step).unwrap_or(u64::MAX));
        let bootable = spec.bootable.unwrap_or(origin.bootable);
        if size_bytes < least {
            let why = format!("at least the {least} bytes of the source are needed, {size_bytes} given");
            return Err(Error::invalid("size_bytes", Violation::BelowSource, why));
        }
        self.limits.check_size(size_bytes, bootable)?;
        let zone = match (&spec.zone, origin.zone) {
            (Some(name), theirs) => {
                let zone = zones::choose(table, name)?;
                if let Some(theirs) = theirs.filter(|t| *t != zone) {
                    let theirs = zones::by_number(table, theirs)?.name;
                    let why = format!("the source is in {theirs:?}, {name:?} given");
                    return Err(Error::invalid("zone", Violation::ZoneDiffers, why));
                }
                zone
            }
            (None, Some(theirs)) => theirs,
            (None, None) => zones::choose(table, &zones::by_number(table, 0)?.name)?,
        };
        let volume_type = match (&spec.volume_type, origin.volume_type) {
            // A backup is content alone: nothing ties it to the type that it was read from.
            (Some(wanted), Some(theirs))
                if *wanted != theirs && !matches!(spec.source, VolumeSource::Backup(_)) =>
            {
                let why = format!("the source is of type {theirs:?}, {wanted:?} given");
                return Err(Error::invalid("volume_type", Violation::VolumeTypeDiffers, why));
            }
            (wanted, theirs) => wanted.clone().or(theirs),
        };
        if spec.multiattach && matches!(spec.source, VolumeSource::Image(_)) {
            let why = "a volume from an image cannot be shared";
            return Err(Error::invalid("multiattach", Violation::SharedImage, why));
        }
        self.check_source_status(spec)?;
        let project = match named {
            Some(id) => projects::find(table, id)?,
            None => Some(origin.project.unwrap_or(0)),
        };
        let usage = project.map_or(Ok(Default::default()), |number| projects::usage(table, number))?;
        self.limits.check_quota(&usage, count, size_bytes.saturating_mul(count))?;
        Ok(Plan { size_bytes, project, zone, volume_type, bootable })
    }

    fn origin(&self, spec: &VolumeSpec) -> Result<Origin> {
        let table = self.table();
        Ok(match spec.source {
            VolumeSource::Blank => Origin::default(),
            // One that the pool has no record of is filled by the caller, who knows what it is.
            VolumeSource::Backup(id) => {
                let volume_type = backup_records::backup(table, id)?.and_then(|backup| backup.volume_type);
                Origin { volume_type, ..Origin::default() }
            }
            VolumeSource::Snapshot(id) => Origin::of(&catalogue::need_snapshot(table, id)?.common),
            VolumeSource::Volume(id) => Origin::of(&catalogue::need_volume(table, id)?.common),
            VolumeSource::Image(id) => {
                let image = catalogue::need_image(table, id)?;
                // One of the system belongs to everybody.
                let project = (!image.public && spec.project.is_some()).then_some(image.project);
                let least_bytes = image.virtual_bytes.max(image.min_disk_bytes);
                Origin { least_bytes, project, bootable: true, ..Origin::default() }
            }
            VolumeSource::Base(id) => {
                let least_bytes = self.inner.need_base_record(table, id)?.volume_bytes();
                Origin { least_bytes, ..Origin::default() }
            }
        })
    }

    fn check_source_status(&self, spec: &VolumeSpec) -> Result<()> {
        let table = self.table();
        match spec.source {
            VolumeSource::Blank | VolumeSource::Backup(_) | VolumeSource::Base(_) => Ok(()),
            VolumeSource::Snapshot(id) => {
                let record = catalogue::need_snapshot(table, id)?;
                if record.backup_owned {
                    return Err(self.backup_owned(id, &record, "clone"));
                }
                self.need_available(id, &record, "clone")
            }
            VolumeSource::Volume(id) => {
                let record = catalogue::need_volume(table, id)?;
                match self.volume_status(id, &record)? {
                    status if status.allows_clone() => Ok(()),
                    status => Err(wrong_status(id, status, "clone")),
                }
            }
            VolumeSource::Image(id) => images::need_active(id, &catalogue::need_image(table, id)?, "clone"),
        }
    }

    pub(super) fn make_volume(
        &mut self,
        spec: VolumeSpec,
        plan: &Plan,
        status: VolumeStatus,
    ) -> Result<Volume> {
        let id = VolumeId::new(self.claim_id("volume", spec.id.map(VolumeId::raw))?);
        let alias = self.claim_alias(AliasOf::Volume, id.object())?;
        let mut record = VolumeRecord {
            status,
            multiattach: spec.multiattach,
            read_only: false,
            placement: spec.placement,
            source: spec.source,
            common: Common {
                name: spec.name,
                description: spec.description,
                size_bytes: plan.size_bytes,
                metadata: spec.metadata,
                created: self.now(),
                updated: None,
                project: 0,
                zone: plan.zone,
                alias,
                volume_type: plan.volume_type.clone(),
                bootable: plan.bootable,
            },
        };
        self.stage(|stage| {
            record.common.project = match (plan.project, &spec.project) {
                (Some(number), _) => number,
                (None, Some(project)) => projects::register(stage, project)?,
                (None, None) => 0,
            };
            catalogue::insert_volume(stage, id, &record)
        })?;
        match spec.source {
            VolumeSource::Blank | VolumeSource::Backup(_) => {}
            VolumeSource::Snapshot(source) => self.share(id.object(), source.object())?,
            VolumeSource::Volume(source) => self.share(id.object(), source.object())?,
            VolumeSource::Image(source) => self.share(id.object(), source.object())?,
            VolumeSource::Base(source) => self.lay_over(id.object(), source)?,
        }
        self.volume(id)
    }

    /// Changes name, description or metadata: see [`Pool::update_volume`].
    ///
    /// # Errors
    /// As [`Pool::update_volume`].
    pub fn update_volume(&mut self, id: VolumeId, update: VolumeUpdate) -> Result<Volume> {
        update.check(self.limits)?;
        self.change_volume(id, |record| update.apply(&mut record.common))
    }

    /// Says whether a server can boot from it: see [`Pool::set_bootable`].
    ///
    /// # Errors
    /// As [`Pool::set_bootable`].
    pub fn set_bootable(&mut self, id: VolumeId, on: bool) -> Result<Volume> {
        self.change_volume(id, |record| {
            record.common.bootable = on;
            Ok(())
        })
    }

    /// Says whether it only lends itself for reading: see [`Pool::set_read_only`].
    ///
    /// # Errors
    /// As [`Pool::set_read_only`].
    pub fn set_read_only(&mut self, id: VolumeId, on: bool) -> Result<Volume> {
        let record = catalogue::need_volume(self.table(), id)?;
        match self.volume_status(id, &record)? {
            VolumeStatus::Available if self.alone(id.object(), VolumeStatus::Attaching.as_str()) => {}
            VolumeStatus::Available => return Err(attached(id, "read_only")),
            status => return Err(wrong_status(id, status, "read_only")),
        }
        self.change_volume(id, |record| {
            record.read_only = on;
            Ok(())
        })
    }

    /// What is said about a volume may change in every status but `deleting`.
    fn change_volume(
        &mut self,
        id: VolumeId,
        change: impl FnOnce(&mut VolumeRecord) -> Result<()>,
    ) -> Result<Volume> {
        let mut record = catalogue::need_volume(self.table(), id)?;
        if let status @ VolumeStatus::Deleting = self.volume_status(id, &record)? {
            return Err(wrong_status(id, status, "update"));
        }
        change(&mut record)?;
        record.common.updated = Some(self.now());
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
        self.limits.check_size(new_size_bytes, false)?;
        let mut record = catalogue::need_volume(self.table(), id)?;
        self.limits.check_size(new_size_bytes, record.common.bootable)?;
        let (size_bytes, project) = (record.common.size_bytes, record.common.project);
        if new_size_bytes <= size_bytes {
            let why =
                format!("it must be larger than the present {size_bytes} bytes, {new_size_bytes} given");
            return Err(Error::invalid("size_bytes", Violation::NotLarger, why));
        }
        match self.volume_status(id, &record)? {
            VolumeStatus::Available => {}
            VolumeStatus::InUse if record.multiattach => {
                return Err(Error::InvalidState {
                    object: "volume",
                    id: id.to_string(),
                    status: VolumeStatus::InUse.as_str(),
                    op: "extend",
                    rule: StateRule::Shared,
                });
            }
            VolumeStatus::InUse => self.check_servers(id, "extend")?,
            status => return Err(wrong_status(id, status, "extend")),
        }
        let more = new_size_bytes - size_bytes;
        self.limits.check_quota(&projects::usage(self.table(), project)?, 0, more)?;
        record.common.size_bytes = new_size_bytes;
        record.common.updated = Some(self.now());
        self.stage(|stage| {
            catalogue::update_volume(stage, id, &record)?;
            projects::change_usage(stage, project, |usage| {
                usage.volume_bytes = usage.volume_bytes.saturating_add(more);
            })
        })?;
        self.resized(id.object(), new_size_bytes);
        self.inner.describe_volume(self.table(), id, record)
    }

    /// Deletes a volume: see [`Pool::delete_volume`]. The handle is of use once the batch is committed.
    ///
    /// # Errors
    /// As [`Pool::delete_volume`].
    pub fn delete_volume(&mut self, id: VolumeId, snapshots: Snapshots) -> Result<Deletion> {
        let record = catalogue::need_volume(self.table(), id)?;
        let status = self.volume_status(id, &record)?;
        if !status.allows_delete() {
            return Err(wrong_status(id, status, "delete"));
        }
        let doomed = doomed_snapshots(self.table(), id, snapshots)?;
        for (snapshot, record) in &doomed {
            let status = self.snapshot_status(*snapshot, record);
            if !status.allows_delete() {
                return Err(snapshot_status(*snapshot, status, "delete"));
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
        // What is told at the end is made before anything is done; each map may take a base along.
        let mut ids = memory::with_room(2 * (1 + doomed.len()))?;
        let mut snapshots = memory::with_room(doomed.len())?;
        snapshots.extend(doomed.iter().map(|(snapshot, _)| *snapshot));
        self.stage(|stage| {
            for (snapshot, record) in &doomed {
                catalogue::remove_snapshot(stage, *snapshot, record)?;
            }
            // A volume that is being filled and abandoned goes like any other.
            catalogue::set_finished(stage, id.object());
            catalogue::remove_volume(stage, id, &record)
        })?;
        self.trash(id.object(), &mut ids)?;
        for (snapshot, _) in &doomed {
            self.trash(snapshot.object(), &mut ids)?;
        }
        Ok(Deletion::new(self.inner, Some(id), snapshots, ids))
    }
}

impl Pool {
    /// Creates a volume: blank, or as a clone of a snapshot, volume or image. Costs the same whatever its size and
    /// whatever is mapped in its source. Durable on return.
    ///
    /// # Errors
    /// `InvalidArgument` for a size, name, description, metadata, type or zone out of range, for another type or
    /// zone than the source's, for a shared volume from an image; `NotFound` for a source that is not there, or
    /// in another project than the one named; `InvalidState` for one that is not `available` (a volume may be
    /// attached), not `active`, or of a backup; `LimitExceeded` beyond the quota of the profile;
    /// `AlreadyExists` for a supplied id that is taken; `Unsupported` for encryption and for a backup as
    /// source; `ReadOnly`, `OutOfSpace`, `Io`, `Poisoned`, `Closed`.
    pub fn create_volume(&self, spec: VolumeSpec) -> Result<Volume> {
        self.transact(|batch| batch.create_volume(spec))
    }

    /// Creates `count` (1 to 100) volumes at one instant, all or none. For more than one, each name gets
    /// `-0001`, `-0002` and so on behind it. Durable on return.
    ///
    /// # Errors
    /// `InvalidArgument` for a count out of range, a name without room for its number, or a supplied id for several; else
    /// as [`create_volume`](Self::create_volume).
    pub fn create_volumes(&self, spec: VolumeSpec, count: u32) -> Result<Vec<Volume>> {
        self.transact(|batch| batch.create_volumes(spec, count))
    }

    /// Changes name, description or metadata of a volume, attached or not. Durable on return.
    ///
    /// # Errors
    /// `InvalidArgument` for a text or metadata out of range, or when nothing is to change; `NotFound` for the
    /// volume or a metadata key to remove; `InvalidState` while it is deleted; `ReadOnly`, `OutOfSpace`, `Io`,
    /// `Poisoned`, `Closed`.
    pub fn update_volume(&self, id: VolumeId, update: VolumeUpdate) -> Result<Volume> {
        self.transact(|batch| batch.update_volume(id, update))
    }

    /// Says whether a server can boot from a volume, attached or not. Durable on return.
    ///
    /// # Errors
    /// `NotFound`; `InvalidState` while it is deleted; `ReadOnly`, `OutOfSpace`, `Io`, `Poisoned`, `Closed`.
    pub fn set_bootable(&self, id: VolumeId, on: bool) -> Result<Volume> {
        self.transact(|batch| batch.set_bootable(id, on))
    }

    /// Says whether a volume only lends itself for reading: handles that are opened from then on cannot write.
    /// Durable on return.
    ///
    /// # Errors
    /// `NotFound`; `InvalidState` when it is not `available`; `ReadOnly`, `OutOfSpace`, `Io`, `Poisoned`, `Closed`.
    pub fn set_read_only(&self, id: VolumeId, on: bool) -> Result<Volume> {
        self.transact(|batch| batch.set_read_only(id, on))
    }

    /// Gives a volume another name, within the limits of the profile. Durable on return.
    ///
    /// # Errors
    /// As [`update_volume`](Self::update_volume).
    pub fn rename_volume(&self, id: VolumeId, name: impl Into<String>) -> Result<Volume> {
        self.transact(|batch| batch.rename_volume(id, name))
    }

    /// Makes a volume `new_size_bytes` bytes large: a multiple of 4,096, more than now, at most 1 EiB. The new
    /// range reads zero; snapshots keep their size. An attached disk sees the new size when this returns.
    /// Durable on return.
    ///
    /// # Errors
    /// `InvalidArgument` for a size out of range or not larger; `NotFound`; `InvalidState` when the volume is
    /// neither `available` nor `in-use`, is `in-use` and shared, or its server is in a state that forbids it;
    /// `LimitExceeded` beyond the quota of the profile; `ReadOnly`, `OutOfSpace`, `Io`, `Poisoned`, `Closed`.
    pub fn extend(&self, id: VolumeId, new_size_bytes: u64) -> Result<Volume> {
        self.transact(|batch| batch.extend(id, new_size_bytes))
    }

    /// Deletes a volume and, as `snapshots` says, its snapshots. Clones of either live on. The delete is
    /// durable on return; the space comes back in the background, see [`Deletion`].
    ///
    /// # Errors
    /// `NotFound`; `InvalidState` while it is attached, or in a status that forbids it; `HasSnapshots` when
    /// the policy is to refuse; `Busy` when a snapshot that would go is held or attached; `ReadOnly`, `Io`,
    /// `Poisoned`, `Closed`.
    pub fn delete_volume(&self, id: VolumeId, snapshots: Snapshots) -> Result<Deletion> {
        self.transact(|batch| batch.delete_volume(id, snapshots))
    }

    /// What [`delete_volume`](Self::delete_volume) would delete and how many bytes that would free, as of
    /// now. Finishes earlier deletions first, and walks the maps concerned, skipping what is shared. Changes nothing
    /// else; the volume may be attached.
    ///
    /// # Errors
    /// `NotFound`; `HasSnapshots`, `Busy` as the delete; the others as [`volume_space`](Self::volume_space).
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
                memory::push(&mut doomed, (snapshot, record))?;
            }
            Ok(doomed)
        }
    }
}

impl VolumeSource {
    /// What to call it when it is not found.
    fn named(self) -> (&'static str, String) {
        match self {
            Self::Blank => ("volume", String::new()),
            Self::Snapshot(id) => ("snapshot", id.to_string()),
            Self::Volume(id) => ("volume", id.to_string()),
            Self::Image(id) => ("image", id.to_string()),
            Self::Backup(id) => ("backup", id.to_string()),
            Self::Base(id) => ("base", id.to_string()),
        }
    }
}

pub(super) fn wrong_status(id: VolumeId, status: VolumeStatus, op: &'static str) -> Error {
    let rule = if status == VolumeStatus::InUse { StateRule::Attached } else { StateRule::Status };
    Error::InvalidState { object: "volume", id: id.to_string(), status: status.as_str(), op, rule }
}

pub(super) fn attached(id: VolumeId, op: &'static str) -> Error {
    wrong_status(id, VolumeStatus::InUse, op)
}

pub(super) fn snapshot_status(id: SnapshotId, status: SnapshotStatus, op: &'static str) -> Error {
    let (id, status) = (id.to_string(), status.as_str());
    Error::InvalidState { object: "snapshot", id, status, op, rule: StateRule::Status }
}

pub(super) fn busy_snapshot(id: SnapshotId, why: &'static str) -> Error {
    Error::Busy { object: "snapshot", id: id.to_string(), why }
}

impl Batch<'_> {
    pub(super) fn volume_status(&self, id: VolumeId, record: &VolumeRecord) -> Result<VolumeStatus> {
        self.inner.volume_status(self.table(), id, record)
    }

    pub(super) fn snapshot_status(&self, id: SnapshotId, record: &SnapshotRecord) -> SnapshotStatus {
        self.inner.snapshot_status(id, record)
    }

    pub(super) fn need_available(
        &self,
        id: SnapshotId,
        record: &SnapshotRecord,
        op: &'static str,
    ) -> Result<()> {
        match self.snapshot_status(id, record) {
            SnapshotStatus::Available => Ok(()),
            status => Err(snapshot_status(id, status, op)),
        }
    }

    pub(super) fn backup_owned(&self, id: SnapshotId, record: &SnapshotRecord, op: &'static str) -> Error {
        let status = self.snapshot_status(id, record).as_str();
        let rule = StateRule::BackupOwned;
        Error::InvalidState { object: "snapshot", id: id.to_string(), status, op, rule }
    }
}
