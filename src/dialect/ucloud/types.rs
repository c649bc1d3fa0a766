//! The answers, as the documents have them.

use serde::{Deserialize, Serialize};

use crate::pool;

/// What every answer begins with, and what a successful one says beyond it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[non_exhaustive]
pub struct Answer<T> {
    /// 0 for success.
    pub ret_code: i64,
    /// The action of the request with `Response` behind it.
    pub action: String,
    /// What went wrong; empty for success.
    #[serde(default)]
    pub message: String,
    /// The rest; nothing in a failure.
    #[serde(flatten)]
    pub body: Option<T>,
}

/// Answers that say no more than whether it worked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Nothing {}

/// The snapshot that was made.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CreateSnapshot {
    /// Its id.
    #[serde(rename = "SnapshotID")]
    pub snapshot_id: String,
}

/// One page of snapshots.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[non_exhaustive]
pub struct DescribeSnapshot {
    /// How many match in all.
    pub total_count: u64,
    /// The page.
    pub infos: Vec<SnapshotInfo>,
}

/// A snapshot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[non_exhaustive]
pub struct SnapshotInfo {
    /// The region: the store's, or where it has none, that of the request.
    pub region: String,
    /// Its name; empty when it has none.
    pub name: String,
    /// Its description; empty when it has none.
    pub remark: String,
    /// The tenant.
    #[serde(rename = "CompanyID")]
    pub company_id: i64,
    /// The project of the disk.
    #[serde(rename = "ProjectID")]
    pub project_id: String,
    /// Its name; empty when it has none.
    pub project_name: String,
    /// Its id.
    #[serde(rename = "SnapshotID")]
    pub snapshot_id: String,
    /// What it is doing.
    pub snapshot_status: SnapshotStatus,
    /// Who asked for it.
    pub r#type: SnapshotType,
    /// The disk whose content it holds.
    #[serde(rename = "DiskID")]
    pub disk_id: String,
    /// The role of the disk.
    pub disk_type: DiskType,
    /// What holds the disk; empty when nothing does.
    #[serde(rename = "DiskAttachResourceID")]
    pub disk_attach_resource_id: String,
    /// What kind of thing that is; empty where it is not known.
    pub disk_attach_resource_type: String,
    /// When it was created, in seconds since 1970.
    pub create_time: u64,
}

/// Status of a snapshot, in the spelling of the documents.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum SnapshotStatus {
    /// Being made, or read by a backup.
    #[serde(alias = "Creating")]
    Createing,
    /// Ready for everything.
    Normal,
    /// Its disk is being rolled back to it.
    #[serde(alias = "Rollbacking")]
    RollBacking,
    /// Its creation or its deletion failed.
    Failure,
    /// Being destroyed.
    Released,
}

impl From<pool::SnapshotStatus> for SnapshotStatus {
    fn from(status: pool::SnapshotStatus) -> Self {
        use pool::SnapshotStatus as S;
        match status {
            S::Creating | S::BackingUp => Self::Createing,
            S::Available => Self::Normal,
            S::Rollbacking => Self::RollBacking,
            S::Error | S::ErrorDeleting => Self::Failure,
            S::Deleting => Self::Released,
        }
    }
}

/// Who asked for a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum SnapshotType {
    /// Somebody.
    Manual,
    /// A schedule, or a backup.
    Automatic,
}

/// The role of a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum DiskType {
    /// A server boots from it.
    Boot,
    /// Any other.
    Data,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_written_in_one_spelling_and_read_in_both() {
        let read = |text: &str| serde_json::from_str::<SnapshotStatus>(text).unwrap();
        for text in ["\"Createing\"", "\"Normal\"", "\"RollBacking\"", "\"Failure\"", "\"Released\""] {
            assert_eq!(serde_json::to_string(&read(text)).unwrap(), text);
        }
        assert_eq!(read("\"Creating\""), SnapshotStatus::Createing);
        assert_eq!(read("\"Rollbacking\""), SnapshotStatus::RollBacking);
    }
}
