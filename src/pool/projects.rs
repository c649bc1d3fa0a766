//! Projects: they group volumes, snapshots and images, and keep their quotas.
//!
//! A project exists from the first object that is made in it; its number is given then and never changes.
//! Number 0 is the default project: of volumes made without a project. A caller that stands for one project
//! asks with [`Pool::volume_in`], [`Pool::snapshot_in`] and the `project` of a query: what belongs to another
//! project does not exist for it.
//!
//! | record | encoding, little-endian |
//! |---|---|
//! | project | version 1 (1), id length (1), name length (1), id, name; a name of no bytes is none |
//! | usage | volumes (8), their bytes (8), snapshots (8), their bytes (8) |

use std::collections::HashMap;

use serde::Serialize;

use crate::error::{Corruption, Error, Result, Violation};
use crate::units::{SnapshotId, VolumeId};

use super::backup_records;
use super::batch::Batch;
use super::catalogue::{PROJECT_IDS, PROJECTS, Stage, Table, USAGE};
use super::fields::Texts;
use super::limits::{check_key_text, check_label};
use super::pool::Pool;
use super::snapshot::Snapshot;
use super::volume::Volume;

/// The id of project 0 until it gets another.
const DEFAULT_ID: &str = "default";
const VERSION: u8 = 1;

/// A project.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize)]
#[non_exhaustive]
pub struct Project {
    /// Its number: 0 for the default project, then in the order in which they were first used.
    pub number: u32,
    /// Its id: 1 to 60 bytes.
    pub id: String,
    /// Its name, where one was given.
    pub name: Option<String>,
}

/// What a project has: counted as it changes, never by a scan.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Usage {
    /// Its volumes.
    pub volumes: u64,
    /// Their virtual sizes together, in bytes.
    pub volume_bytes: u64,
    /// Its snapshots, those of backups too.
    pub snapshots: u64,
    /// The virtual sizes of its snapshots together, in bytes.
    pub snapshot_bytes: u64,
}

fn key(number: u32) -> Vec<u8> {
    let mut key = vec![PROJECTS];
    key.extend_from_slice(&number.to_be_bytes());
    key
}

fn id_key(id: &str) -> Vec<u8> {
    let mut key = vec![PROJECT_IDS];
    key.extend_from_slice(id.as_bytes());
    key
}

fn number_of(bytes: &[u8]) -> Result<u32> {
    match bytes.try_into() {
        Ok(le) => Ok(u32::from_le_bytes(le)),
        Err(_) => Err(Corruption::new("project number", 0, "length", 4, bytes.len()).into()),
    }
}

fn encode(project: &Project) -> Vec<u8> {
    let name = project.name.as_deref().unwrap_or("");
    // Both are within their limits.
    let mut out = vec![VERSION, project.id.len() as u8, name.len() as u8];
    out.extend_from_slice(project.id.as_bytes());
    out.extend_from_slice(name.as_bytes());
    out
}

fn decode(number: u32, bytes: &[u8]) -> Result<Project> {
    let structure = "project record";
    let Some(([version, id_len, name_len], rest)) = bytes.split_first_chunk::<3>() else {
        return Err(Corruption::new(structure, 0, "length", "at least 3", bytes.len()).into());
    };
    if *version != VERSION {
        return Err(Corruption::new(structure, 0, "version", VERSION, version).into());
    }
    let mut rest = Texts { bytes: rest, structure };
    let id = rest.take((*id_len).into(), "id")?;
    let name = rest.take((*name_len).into(), "name")?;
    rest.end()?;
    Ok(Project { number, id, name: (!name.is_empty()).then_some(name) })
}

/// The project of a number that some record names.
pub(super) fn by_number(table: &dyn Table, number: u32) -> Result<Project> {
    match table.get(&key(number))? {
        Some(bytes) => decode(number, &bytes),
        None if number == 0 => Ok(Project { number, id: DEFAULT_ID.into(), name: None }),
        None => Err(Corruption::new("project record", 0, "number", "a known project", number).into()),
    }
}

/// The number of a project that is known by this id.
pub(super) fn find(table: &dyn Table, id: &str) -> Result<Option<u32>> {
    if id.is_empty() || id.len() > super::limits::MAX_KEY_TEXT_BYTES {
        return Ok(None);
    }
    match table.get(&id_key(id))? {
        Some(bytes) => number_of(&bytes).map(Some),
        None if id == DEFAULT_ID && table.get(&key(0))?.is_none() => Ok(Some(0)),
        None => Ok(None),
    }
}

pub(super) fn check_id(id: &str) -> Result<()> {
    check_key_text("project", Violation::Project, id)
}

/// The project's number; one that is not known yet gets the next.
pub(super) fn register(stage: &mut dyn Stage, id: &str) -> Result<u32> {
    if let Some(number) = find(stage.table(), id)? {
        return Ok(number);
    }
    let last = stage.get(&[PROJECTS])?.map_or(Ok(0), |bytes| number_of(&bytes))?;
    let Some(number) = last.checked_add(1) else {
        return Err(Corruption::new("project number", 0, "number", "below 2^32 - 1", last).into());
    };
    stage.put(vec![PROJECTS], number.to_le_bytes().to_vec());
    put(stage, &Project { number, id: id.into(), name: None });
    Ok(number)
}

fn put(stage: &mut dyn Stage, project: &Project) {
    stage.put(id_key(&project.id), project.number.to_le_bytes().to_vec());
    stage.put(key(project.number), encode(project));
}

pub(super) fn usage(table: &dyn Table, project: u32) -> Result<Usage> {
    let mut key = vec![USAGE];
    key.extend_from_slice(&project.to_be_bytes());
    let Some(bytes) = table.get(&key)? else { return Ok(Usage::default()) };
    match *bytes.as_chunks::<8>().0 {
        [a, b, c, d] if bytes.len() == 32 => Ok(Usage {
            volumes: u64::from_le_bytes(a),
            volume_bytes: u64::from_le_bytes(b),
            snapshots: u64::from_le_bytes(c),
            snapshot_bytes: u64::from_le_bytes(d),
        }),
        _ => Err(Corruption::new("usage", 0, "length", 32, bytes.len()).into()),
    }
}

pub(super) fn change_usage(
    stage: &mut dyn Stage,
    project: u32,
    change: impl FnOnce(&mut Usage),
) -> Result<()> {
    let mut usage = usage(stage.table(), project)?;
    change(&mut usage);
    let mut key = vec![USAGE];
    key.extend_from_slice(&project.to_be_bytes());
    if usage == Usage::default() {
        stage.delete(key);
    } else {
        let numbers = [usage.volumes, usage.volume_bytes, usage.snapshots, usage.snapshot_bytes];
        stage.put(key, numbers.iter().flat_map(|n| n.to_le_bytes()).collect());
    }
    Ok(())
}

/// Projects and zones by number, each read once in a listing.
#[derive(Default)]
pub(super) struct Names {
    projects: HashMap<u32, Project>,
    zones: HashMap<u16, String>,
}

impl Names {
    pub(super) fn project(&mut self, table: &dyn Table, number: u32) -> Result<Project> {
        if let Some(project) = self.projects.get(&number) {
            return Ok(project.clone());
        }
        let project = by_number(table, number)?;
        self.projects.insert(number, project.clone());
        Ok(project)
    }

    pub(super) fn zone(&mut self, table: &dyn Table, number: u16) -> Result<String> {
        if let Some(name) = self.zones.get(&number) {
            return Ok(name.clone());
        }
        let name = super::zones::by_number(table, number)?.name;
        self.zones.insert(number, name.clone());
        Ok(name)
    }
}

impl Batch<'_> {
    /// Makes a project known: see [`Pool::create_project`].
    ///
    /// # Errors
    /// As [`Pool::create_project`].
    pub fn create_project(&mut self, id: &str) -> Result<Project> {
        check_id(id)?;
        let number = self.stage(|stage| register(stage, id))?;
        by_number(self.table(), number)
    }

    /// Names a project: see [`Pool::name_project`].
    ///
    /// # Errors
    /// As [`Pool::name_project`].
    pub fn name_project(&mut self, id: &str, name: Option<String>) -> Result<Project> {
        check_id(id)?;
        if let Some(name) = &name {
            check_label("name", Violation::TooLong, name)?;
        }
        let number = find(self.table(), id)?.ok_or_else(|| Error::not_found("project", id))?;
        let project = Project { name, ..by_number(self.table(), number)? };
        self.stage(|stage| {
            put(stage, &project);
            Ok(())
        })?;
        Ok(project)
    }

    /// Gives the default project its id: see [`Pool::set_default_project`].
    ///
    /// # Errors
    /// As [`Pool::set_default_project`].
    pub fn set_default_project(&mut self, id: &str) -> Result<Project> {
        check_id(id)?;
        let project = by_number(self.table(), 0)?;
        match find(self.table(), id)? {
            Some(0) => return Ok(project),
            Some(_) => return Err(Error::AlreadyExists { object: "project", id: id.into() }),
            None => {}
        }
        let renamed = Project { id: id.into(), ..project.clone() };
        self.stage(|stage| {
            stage.delete(id_key(&project.id));
            put(stage, &renamed);
            // Volumes name it by its number, backups by its id.
            backup_records::move_to_project(stage, &project.id, id)
        })?;
        Ok(renamed)
    }
}

impl Pool {
    /// Makes a project known, which its first volume or image does too; one that is known stays as it is.
    /// Durable on return.
    ///
    /// # Errors
    /// `InvalidArgument` for an id that has not 1 to 60 bytes; `ReadOnly`, `OutOfSpace`, `Io`, `Poisoned`, `Closed`.
    pub fn create_project(&self, id: &str) -> Result<Project> {
        self.transact(|batch| batch.create_project(id))
    }

    /// Gives a project a name of 1 to 255 bytes, or takes it away. Durable on return.
    ///
    /// # Errors
    /// `InvalidArgument` for a bad id or name; `NotFound`; `ReadOnly`, `OutOfSpace`, `Io`, `Poisoned`, `Closed`.
    pub fn name_project(&self, id: &str, name: Option<String>) -> Result<Project> {
        self.transact(|batch| batch.name_project(id, name))
    }

    /// Gives the default project, number 0, this id; until then it is `default`. Its backups move with it. Durable
    /// on return.
    ///
    /// # Errors
    /// `InvalidArgument` for an id that has not 1 to 60 bytes; `AlreadyExists` when another project has it;
    /// `LimitExceeded` when it has more backups than one transaction can change;
    /// `ReadOnly`, `OutOfSpace`, `Io`, `Poisoned`, `Closed`.
    pub fn set_default_project(&self, id: &str) -> Result<Project> {
        self.transact(|batch| batch.set_default_project(id))
    }

    /// The project of this id.
    ///
    /// # Errors
    /// `NotFound` when nothing was ever made in it; `Corrupt`, `Io`, `Closed`.
    pub fn project(&self, id: &str) -> Result<Project> {
        let table: &dyn Table = &*self.inner.engine;
        match find(table, id)? {
            Some(number) => by_number(table, number),
            None => Err(Error::not_found("project", id)),
        }
    }

    /// The project of this number: 0 is the default project, which always exists.
    ///
    /// # Errors
    /// `NotFound` when there is none; `Corrupt`, `Io`, `Closed`.
    pub fn project_by_number(&self, number: u32) -> Result<Project> {
        let table: &dyn Table = &*self.inner.engine;
        if number != 0 && table.get(&key(number))?.is_none() {
            return Err(Error::not_found("project", number));
        }
        by_number(table, number)
    }

    /// All projects, by number, the default project first.
    ///
    /// # Errors
    /// `Corrupt`, `Io`, `Closed`.
    pub fn projects(&self) -> Result<Vec<Project>> {
        let table: &dyn Table = &*self.inner.engine;
        let last = table.get(&[PROJECTS])?.map_or(Ok(0), |bytes| number_of(&bytes))?;
        (0..=last).map(|number| by_number(table, number)).collect()
    }

    /// What a project has; nothing, when it is not known.
    ///
    /// # Errors
    /// `Corrupt`, `Io`, `Closed`.
    pub fn usage(&self, project: &str) -> Result<Usage> {
        let table: &dyn Table = &*self.inner.engine;
        find(table, project)?.map_or(Ok(Usage::default()), |number| usage(table, number))
    }

    /// The volume, if it belongs to this project.
    ///
    /// # Errors
    /// As [`volume`](Self::volume); `NotFound` too when it belongs to another project.
    pub fn volume_in(&self, project: &str, id: VolumeId) -> Result<Volume> {
        let volume = self.volume(id)?;
        if volume.project.id == project { Ok(volume) } else { Err(Error::not_found("volume", id)) }
    }

    /// The snapshot, if it belongs to this project.
    ///
    /// # Errors
    /// As [`snapshot`](Self::snapshot); `NotFound` too when it belongs to another project.
    pub fn snapshot_in(&self, project: &str, id: SnapshotId) -> Result<Snapshot> {
        let snapshot = self.snapshot(id)?;
        if snapshot.project.id == project { Ok(snapshot) } else { Err(Error::not_found("snapshot", id)) }
    }
}

/// Whether an object of project `number` may be used by a caller who named a project, if one did.
pub(super) fn serves(table: &dyn Table, wanted: Option<&str>, number: u32) -> Result<bool> {
    match wanted {
        None => Ok(true),
        Some(id) => Ok(find(table, id)? == Some(number)),
    }
}
