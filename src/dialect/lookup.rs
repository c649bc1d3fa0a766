//! From the ids in a request to objects, and from a page of snapshots to the volumes they are of.

use std::collections::{HashMap, hash_map::Entry};

use uuid::Uuid;

use crate::error::{Error, Result, Violation};
use crate::pool::{Pool, Snapshot, Volume};
use crate::units::{SnapshotId, VolumeId};

/// What `found` is about, or nothing when it names nothing.
pub(super) fn known<T>(found: Result<T>) -> Result<Option<T>> {
    match found {
        Ok(object) => Ok(Some(object)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(other) => Err(other),
    }
}

/// What a caller can see: everything, or what one project has.
#[derive(Clone, Copy)]
pub(super) struct Seen<'a> {
    pub(super) pool: &'a Pool,
    pub(super) project: Option<&'a str>,
}

impl Seen<'_> {
    pub(super) fn volume(self, text: &str) -> Result<VolumeId> {
        let id = self.pool.find_volume(text)?;
        match self.project {
            Some(project) => Ok(self.pool.volume_in(project, id)?.id),
            None => Ok(id),
        }
    }

    pub(super) fn snapshot(self, text: &str) -> Result<SnapshotId> {
        let id = self.pool.find_snapshot(text)?;
        match self.project {
            Some(project) => Ok(self.pool.snapshot_in(project, id)?.id),
            None => Ok(id),
        }
    }
}

/// Another project was named than that of the caller.
pub(super) fn not_the_callers(field: &'static str) -> Error {
    Error::invalid(field, Violation::Project, "it is not the caller's project")
}

/// The volumes that a filter names. One that is gone may still have snapshots, and is known by its id then.
pub(super) fn volumes(pool: &Pool, texts: &[String]) -> Result<Vec<VolumeId>> {
    let mut ids = Vec::new();
    for text in texts {
        let gone = || Uuid::try_parse(text).ok().filter(|id| id.to_string() == *text).map(VolumeId::new);
        ids.extend(known(pool.find_volume(text))?.or_else(gone));
    }
    Ok(ids)
}

/// The snapshots that a filter names; what names none is left out.
pub(super) fn snapshots(pool: &Pool, texts: &[String]) -> Result<Vec<SnapshotId>> {
    let mut ids = Vec::new();
    for text in texts {
        ids.extend(known(pool.find_snapshot(text))?);
    }
    Ok(ids)
}

/// The volumes of a page of snapshots, each looked at once.
pub(super) struct Sources(HashMap<VolumeId, Option<Volume>>);

impl Sources {
    pub(super) fn of(pool: &Pool, snapshots: &[Snapshot]) -> Result<Self> {
        let mut all = HashMap::new();
        for snapshot in snapshots {
            if let Entry::Vacant(entry) = all.entry(snapshot.volume) {
                entry.insert(known(pool.volume(snapshot.volume))?);
            }
        }
        Ok(Self(all))
    }

    /// `None` when it is gone.
    pub(super) fn get(&self, id: VolumeId) -> Option<&Volume> {
        self.0.get(&id).and_then(Option::as_ref)
    }
}

/// An error in the words of a dialect: `names` are its names for native arguments.
pub(super) fn message(error: &Error, names: &[(&str, &str)]) -> String {
    match error {
        Error::InvalidArgument { field, why, .. } => {
            let name = names.iter().find(|(native, _)| native == field).map_or(*field, |(_, name)| name);
            format!("invalid argument {name}: {why}")
        }
        // What is wrong inside is the operator's business.
        Error::Corrupt(_) | Error::Io { .. } | Error::Poisoned => "the store has failed".into(),
        other => other.to_string(),
    }
}

/// Whole GB (of 2^30 bytes), rounded up.
pub(super) fn gib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 30)
}
