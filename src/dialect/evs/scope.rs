//! Whose request it is, and what that one may see.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::dialect::config::Config;
use crate::error::Error;
use crate::pool::{Backup, Pool, Snapshot, Volume};
use crate::units::{BackupId, SnapshotId, VolumeId};

use super::codes::{Refusal, TENANT};

/// Which prefix a request came under.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Version {
    V2,
    V3,
}

impl Version {
    pub(super) fn of(segment: &str) -> Option<Self> {
        match segment {
            "v2" => Some(Self::V2),
            "v3" => Some(Self::V3),
            _ => None,
        }
    }
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::V2 => "v2",
            Self::V3 => "v3",
        }
    }
    pub(super) fn is_v2(self) -> bool {
        self == Self::V2
    }
}

/// The project of a path: what belongs to another does not exist for the request.
pub(super) struct Scope<'a> {
    pub(super) pool: &'a Pool,
    pub(super) config: &'a Config,
    pub(super) version: Version,
    pub(super) host: &'a str,
    pub(super) project: String,
    /// The same, as it stands in a link.
    pub(super) project_text: String,
}

impl<'a> Scope<'a> {
    pub(super) fn new(
        pool: &'a Pool,
        config: &'a Config,
        version: Version,
        host: &'a str,
        project: &str,
    ) -> Result<Self, Refusal> {
        if project.is_empty() || project.len() > MAX_PROJECT_BYTES {
            let why = format!("1 to {MAX_PROJECT_BYTES} bytes are needed, {} given", project.len());
            return Err(Refusal::new(TENANT, why));
        }
        if config.caller_project.as_deref().is_some_and(|own| own != project) {
            return Err(Refusal::new(TENANT, "it is not the caller's project"));
        }
        let project_text = utf8_percent_encode(project, PLAIN).to_string();
        Ok(Self { pool, config, version, host, project: project.into(), project_text })
    }

    /// The volume that a text names by id or alias, if it is of this project.
    pub(super) fn volume(&self, text: &str) -> Result<Volume, Refusal> {
        let found = self.pool.find_volume(text).and_then(|id| self.pool.volume_in(&self.project, id));
        found.map_err(|e| named(e, "volume", text))
    }

    pub(super) fn volume_id(&self, text: &str) -> Result<VolumeId, Refusal> {
        self.volume(text).map(|volume| volume.id)
    }

    /// The snapshot that a text names by id or alias, if it is of this project.
    pub(super) fn snapshot(&self, text: &str) -> Result<Snapshot, Refusal> {
        let found = self.pool.find_snapshot(text).and_then(|id| self.pool.snapshot_in(&self.project, id));
        found.map_err(|e| named(e, "snapshot", text))
    }

    pub(super) fn snapshot_id(&self, text: &str) -> Result<SnapshotId, Refusal> {
        self.snapshot(text).map(|snapshot| snapshot.id)
    }

    /// The backup that a text names by id, if it is of this project.
    pub(super) fn backup(&self, text: &str) -> Result<Backup, Refusal> {
        let missing = || Refusal::not_found("backup", text);
        // In the form that answers have, like the ids of volumes.
        let id: Option<BackupId> = text.parse().ok().filter(|_| text.len() == 36);
        let id = id.ok_or_else(missing)?;
        let backup = self.pool.backup(id).map_err(|e| named(e, "backup", text))?;
        if backup.project.as_ref() == Some(&self.project) { Ok(backup) } else { Err(missing()) }
    }
}

/// As the native limit of ids that become part of a key.
const MAX_PROJECT_BYTES: usize = 60;
/// What needs no escape in a path.
const PLAIN: &percent_encoding::AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Whether an object is missing or another's must not be told apart: the same words for both.
fn named(error: Error, kind: &str, text: &str) -> Refusal {
    match error {
        Error::NotFound { .. } => Refusal::not_found(kind, text),
        other => other.into(),
    }
}
