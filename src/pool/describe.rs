//! What a record and all that is known beside it make of a volume or snapshot, as callers see it.

use uuid::Uuid;

use crate::error::Result;
use crate::units::{AttachmentId, SnapshotId, VolumeId};

use super::catalogue::{self, Index, Table};
use super::pool::Inner;
use super::projects::Names;
use super::records::{SnapshotRecord, VolumeRecord};
use super::servers::{self, Attachment};
use super::snapshot::{self, Snapshot};
use super::status::{SnapshotStatus, VolumeStatus};
use super::volume::{self, Volume};

impl Inner {
    /// A job that runs, or what attachments make of the stored status, or that.
    pub(super) fn volume_status(
        &self,
        table: &dyn Table,
        id: VolumeId,
        record: &VolumeRecord,
    ) -> Result<VolumeStatus> {
        if let Some(status) = self.jobs.volume(id) {
            return Ok(status);
        }
        if record.status != VolumeStatus::Available {
            return Ok(record.status);
        }
        let attached =
            self.attachments.count(id.object()) > 0 || !Index::attachments(id).next_ids(table, 1)?.is_empty();
        Ok(if attached { VolumeStatus::InUse } else { VolumeStatus::Available })
    }

    pub(super) fn snapshot_status(&self, id: SnapshotId, record: &SnapshotRecord) -> SnapshotStatus {
        self.jobs.snapshot(id).unwrap_or(record.status)
    }

    /// Who holds a volume: stored attachments first; of the handles those beyond them, the latest.
    pub(super) fn attachments_of(&self, table: &dyn Table, id: VolumeId) -> Result<Vec<Attachment>> {
        let mut all = servers::stored(table, id)?;
        let handles = self.attachments.handles(id.object());
        for handle in handles.into_iter().skip(all.len()) {
            all.push(Attachment {
                // Told apart by the number of the handle, and stable while it is open.
                id: AttachmentId::new(Uuid::from_u128(id.raw().as_u128() ^ u128::from(handle.number))),
                volume: id,
                server_id: None,
                server_kind: None,
                host_name: None,
                device: None,
                read_only: handle.read_only,
                server_state: handle.server_state,
                attached_at_micros: handle.since_micros,
                stored: false,
            });
        }
        Ok(all)
    }

    pub(super) fn describe_volume(
        &self,
        table: &dyn Table,
        id: VolumeId,
        record: VolumeRecord,
    ) -> Result<Volume> {
        self.describe_volume_with(table, &mut Names::default(), id, record)
    }

    pub(super) fn describe_volume_with(
        &self,
        table: &dyn Table,
        names: &mut Names,
        id: VolumeId,
        record: VolumeRecord,
    ) -> Result<Volume> {
        let around = volume::Around {
            project: names.project(table, record.common.project)?,
            zone: names.zone(table, record.common.zone)?,
            status: self.volume_status(table, id, &record)?,
            attachments: self.attachments_of(table, id)?,
            handles: self.attachments.count(id.object()),
            snapshot_count: catalogue::snapshot_count(table, id)?.all,
        };
        Ok(Volume::from_record(id, record, around))
    }

    pub(super) fn describe_snapshot(
        &self,
        table: &dyn Table,
        id: SnapshotId,
        record: SnapshotRecord,
    ) -> Result<Snapshot> {
        let mut names = Names::default();
        let around = snapshot::Around {
            project: names.project(table, record.common.project)?,
            zone: names.zone(table, record.common.zone)?,
            status: self.snapshot_status(id, &record),
            volume_bootable: catalogue::volume(table, record.volume)?.map(|v| v.common.bootable),
        };
        Ok(Snapshot::from_record(id, record, around))
    }
}
