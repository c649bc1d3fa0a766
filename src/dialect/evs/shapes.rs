//! What answers hold, named as the documents name it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use crate::pool::{
    Attachment, Backup, BackupStatus, Image, Snapshot, SnapshotStatus, Volume, VolumeSource, VolumeStatus,
};
use crate::units::{AttachmentId, BackupId, ImageId, SnapshotId, VolumeId};

use super::scope::Scope;

const GIB: u64 = 1 << 30;
/// No user is known here; the field wants 32 hexadecimal digits.
const USER: &str = "00000000000000000000000000000000";

pub(super) use crate::dialect::lookup::gib;

/// Bytes in so many GiB; more than any volume has, when that cannot be counted.
pub(super) fn bytes(gib: i64) -> u64 {
    u64::try_from(gib).unwrap_or(0).saturating_mul(GIB)
}

fn time(micros: u64, format: &str) -> String {
    let micros = i64::try_from(micros).unwrap_or(i64::MAX);
    Timestamp::from_microsecond(micros).unwrap_or(Timestamp::MAX).strftime(format).to_string()
}

/// UTC with six digits of a second, and nothing that says so.
pub(super) fn at(micros: u64) -> String {
    time(micros, "%Y-%m-%dT%H:%M:%S%.6f")
}

/// As the list of images has it.
fn image_time(micros: u64) -> String {
    time(micros, "%Y-%m-%dT%H:%M:%SZ")
}

#[derive(Serialize, Clone)]
pub(super) struct Link {
    pub(super) href: String,
    pub(super) rel: &'static str,
}

impl Link {
    /// To the object itself, and without the version.
    pub(super) fn pair(scope: &Scope<'_>, path: &str) -> [Self; 2] {
        let (host, version, project) = (scope.host, scope.version.prefix(), &scope.project_text);
        [
            Self { href: format!("http://{host}/{version}/{project}/{path}"), rel: "self" },
            Self { href: format!("http://{host}/{project}/{path}"), rel: "bookmark" },
        ]
    }
}

#[derive(Serialize)]
pub(super) struct BriefVolume {
    id: VolumeId,
    links: [Link; 2],
    name: Option<String>,
}

impl BriefVolume {
    pub(super) fn new(scope: &Scope<'_>, volume: Volume) -> Self {
        Self { id: volume.id, links: Link::pair(scope, &format!("volumes/{}", volume.id)), name: volume.name }
    }
}

#[derive(Serialize)]
struct ShownAttachment {
    id: VolumeId,
    volume_id: VolumeId,
    attachment_id: AttachmentId,
    server_id: String,
    host_name: String,
    device: String,
    attached_at: String,
}

impl From<Attachment> for ShownAttachment {
    fn from(a: Attachment) -> Self {
        Self {
            id: a.volume,
            volume_id: a.volume,
            attachment_id: a.id,
            server_id: a.server_id.unwrap_or_default(),
            host_name: a.host_name.unwrap_or_default(),
            device: a.device.unwrap_or_default(),
            attached_at: at(a.attached_at_micros),
        }
    }
}

#[derive(Serialize)]
pub(super) struct FullVolume {
    attachments: Vec<ShownAttachment>,
    availability_zone: String,
    bootable: &'static str,
    consistencygroup_id: Option<String>,
    created_at: String,
    description: Option<String>,
    encrypted: bool,
    id: VolumeId,
    links: [Link; 2],
    metadata: BTreeMap<String, String>,
    name: Option<String>,
    replication_status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    shareable: Option<bool>,
    multiattach: bool,
    size: u64,
    snapshot_id: Option<SnapshotId>,
    source_volid: Option<VolumeId>,
    status: VolumeStatus,
    updated_at: Option<String>,
    user_id: &'static str,
    volume_type: Option<String>,
}

impl FullVolume {
    pub(super) fn new(scope: &Scope<'_>, volume: Volume) -> Self {
        Self {
            attachments: volume.attachments.into_iter().map(Into::into).collect(),
            availability_zone: volume.zone,
            bootable: if volume.bootable { "true" } else { "false" },
            consistencygroup_id: None,
            created_at: at(volume.created_at_micros),
            description: volume.description,
            encrypted: false,
            id: volume.id,
            links: Link::pair(scope, &format!("volumes/{}", volume.id)),
            metadata: volume.metadata,
            name: volume.name,
            replication_status: "disabled",
            shareable: scope.version.is_v2().then_some(volume.multiattach),
            multiattach: volume.multiattach,
            size: gib(volume.size_bytes),
            snapshot_id: match volume.source {
                VolumeSource::Snapshot(id) => Some(id),
                _ => None,
            },
            source_volid: match volume.source {
                VolumeSource::Volume(id) => Some(id),
                _ => None,
            },
            status: volume.status,
            updated_at: volume.updated_at_micros.map(at),
            user_id: USER,
            volume_type: volume.volume_type,
        }
    }

    /// The answer to a create: the work counts as begun, whatever has been done by now.
    pub(super) fn just_made(scope: &Scope<'_>, volume: Volume) -> Self {
        let made = Self::new(scope, volume);
        Self {
            status: VolumeStatus::Creating,
            bootable: "false",
            attachments: Vec::new(),
            updated_at: None,
            ..made
        }
    }
}

#[derive(Serialize)]
pub(super) struct DetailedVolume {
    #[serde(flatten)]
    full: FullVolume,
    #[serde(rename = "os-vol-tenant-attr:tenant_id")]
    tenant_id: String,
    #[serde(rename = "os-vol-host-attr:host")]
    host: Option<String>,
    volume_image_metadata: BTreeMap<&'static str, String>,
    #[serde(rename = "os-vol-mig-status-attr:migstat")]
    migstat: Option<String>,
    #[serde(rename = "os-vol-mig-status-attr:name_id")]
    name_id: Option<String>,
    #[serde(rename = "os-volume-replication:extended_status", skip_serializing_if = "Option::is_none")]
    extended_status: Option<Option<String>>,
}

impl DetailedVolume {
    /// The image it came from may be gone: its part is empty then.
    pub(super) fn new(scope: &Scope<'_>, volume: Volume) -> Self {
        let image = match volume.source {
            VolumeSource::Image(id) => scope.pool.image(id).ok(),
            _ => None,
        };
        Self {
            tenant_id: volume.project.id.clone(),
            full: FullVolume::new(scope, volume),
            host: None,
            volume_image_metadata: image.map(image_metadata).unwrap_or_default(),
            migstat: None,
            name_id: None,
            extended_status: scope.version.is_v2().then_some(None),
        }
    }
}

fn image_metadata(image: Image) -> BTreeMap<&'static str, String> {
    let mut all = BTreeMap::from([
        ("image_id", image.id.to_string()),
        ("container_format", image.container_format),
        ("disk_format", image.disk_format),
        ("min_disk", gib(image.min_disk_bytes).to_string()),
        ("min_ram", mib(image.min_ram_bytes).to_string()),
    ]);
    all.extend(image.name.map(|name| ("image_name", name)));
    all.extend(image.size_bytes.map(|size| ("size", size.to_string())));
    all.extend(image.checksum.map(|checksum| ("checksum", checksum)));
    all
}

#[derive(Serialize)]
pub(super) struct FullSnapshot {
    status: SnapshotStatus,
    description: Option<String>,
    created_at: String,
    metadata: BTreeMap<String, String>,
    volume_id: VolumeId,
    size: u64,
    id: SnapshotId,
    name: Option<String>,
    updated_at: Option<String>,
}

impl From<Snapshot> for FullSnapshot {
    fn from(snapshot: Snapshot) -> Self {
        Self {
            status: snapshot.status,
            description: snapshot.description,
            created_at: at(snapshot.created_at_micros),
            metadata: snapshot.metadata,
            volume_id: snapshot.volume,
            size: gib(snapshot.size_bytes),
            id: snapshot.id,
            name: snapshot.name,
            updated_at: snapshot.updated_at_micros.map(at),
        }
    }
}

impl FullSnapshot {
    /// The answer to a create: only there does a snapshot that never changed have a time of change.
    pub(super) fn just_made(snapshot: Snapshot) -> Self {
        let made = Self::from(snapshot);
        Self { status: SnapshotStatus::Creating, updated_at: Some(made.created_at.clone()), ..made }
    }
}

#[derive(Serialize)]
pub(super) struct DetailedSnapshot {
    #[serde(flatten)]
    full: FullSnapshot,
    #[serde(rename = "os-extended-snapshot-attributes:progress")]
    progress: &'static str,
    #[serde(rename = "os-extended-snapshot-attributes:project_id")]
    project_id: String,
}

impl From<Snapshot> for DetailedSnapshot {
    fn from(snapshot: Snapshot) -> Self {
        Self {
            // Whatever is listed has its whole content.
            progress: if snapshot.status == SnapshotStatus::Creating { "0%" } else { "100%" },
            project_id: snapshot.project.id.clone(),
            full: snapshot.into(),
        }
    }
}

#[derive(Serialize)]
pub(super) struct BriefBackup {
    id: BackupId,
    links: [Link; 2],
    name: Option<String>,
}

impl BriefBackup {
    pub(super) fn new(scope: &Scope<'_>, backup: Backup) -> Self {
        Self { id: backup.id, links: Link::pair(scope, &format!("backups/{}", backup.id)), name: backup.name }
    }
}

#[derive(Serialize)]
pub(super) struct DetailedBackup {
    status: BackupStatus,
    description: Option<String>,
    availability_zone: Option<String>,
    volume_id: VolumeId,
    snapshot_id: Option<SnapshotId>,
    size: u64,
    object_count: u64,
    container: String,
    fail_reason: Option<String>,
    created_at: String,
    updated_at: Option<String>,
    data_timestamp: String,
    has_dependent_backups: bool,
    is_incremental: bool,
    #[serde(rename = "os-backup-project-attr:project_id")]
    project_id: Option<String>,
    #[serde(flatten)]
    brief: BriefBackup,
}

impl DetailedBackup {
    pub(super) fn new(scope: &Scope<'_>, mut backup: Backup) -> Self {
        Self {
            status: backup.status,
            description: backup.description.take(),
            availability_zone: backup.zone.take(),
            volume_id: backup.volume,
            snapshot_id: backup.snapshot,
            size: gib(backup.size_bytes),
            object_count: backup.object_count,
            container: std::mem::take(&mut backup.container),
            fail_reason: backup.fail_reason.take(),
            created_at: at(backup.created_at_micros),
            updated_at: backup.updated_at_micros.map(at),
            data_timestamp: at(backup.data_at_micros),
            has_dependent_backups: backup.has_dependent_backups,
            is_incremental: backup.is_incremental,
            project_id: backup.project.take(),
            brief: BriefBackup::new(scope, backup),
        }
    }
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

#[derive(Serialize)]
pub(super) struct ShownImage {
    status: &'static str,
    name: Option<String>,
    tags: Vec<String>,
    container_format: String,
    created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    disk_format: String,
    updated_at: String,
    visibility: &'static str,
    #[serde(rename = "self")]
    itself: String,
    min_disk: u64,
    protected: bool,
    id: ImageId,
    file: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    checksum: Option<String>,
    owner: String,
    min_ram: u64,
    schema: String,
}

impl ShownImage {
    pub(super) fn new(prefix: &str, image: Image) -> Self {
        let itself = format!("/{prefix}/images/{}", image.id);
        Self {
            status: image.status.as_str(),
            name: image.name,
            tags: image.tags.into_iter().collect(),
            container_format: image.container_format,
            created_at: image_time(image.created_at_micros),
            size: image.size_bytes,
            disk_format: image.disk_format,
            updated_at: image_time(image.updated_at_micros.unwrap_or(image.created_at_micros)),
            visibility: if image.public { "public" } else { "private" },
            file: format!("{itself}/file"),
            itself,
            min_disk: gib(image.min_disk_bytes),
            protected: image.protected,
            id: image.id,
            checksum: image.checksum,
            owner: image.project.id,
            min_ram: mib(image.min_ram_bytes),
            schema: format!("/{prefix}/schemas/image"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc_with_six_digits_and_sizes_are_whole() {
        assert_eq!(at(0), "1970-01-01T00:00:00.000000");
        assert_eq!(at(1_361_764_613_081_642), "2013-02-25T03:56:53.081642");
        assert_eq!(image_time(1_418_692_925_999_999), "2014-12-16T01:22:05Z");
        assert!(at(u64::MAX).starts_with("9999-12-30T"), "{}", at(u64::MAX));
        assert_eq!((gib(0), gib(1), gib(GIB), gib(GIB + 1)), (0, 1, 1, 2));
        assert_eq!((bytes(-1), bytes(2), bytes(i64::MAX)), (0, 2 * GIB, u64::MAX));
    }
}
