//! What is exported, and by which names.
//!
//! - E1 An id always names its volume or snapshot; no name of another object can take it away.
//! - E2 A name, or `VOLUME@SNAPSHOT`, names an object while it is the only one in the pool that it fits.
//! - E3 A listing gives each object one name, and looking it up finds that object: its id where no other name would do.
//!
//! Nothing is kept: names are looked up in the pool when they are asked for. A listing and a look-up by name
//! read every record once; a look-up by id reads one.

use std::collections::HashSet;
use std::vec;

use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    Error, Point, Pool, Result, Snapshot, SnapshotId, SnapshotQuery, Violation, Volume, VolumeId, VolumeQuery,
};

use super::wire;

/// Records read at once. They may be large: their metadata comes along.
const PAGE: u32 = 64;

/// A volume or snapshot as clients see it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Export {
    /// A name that finds it: its own, `VOLUME@SNAPSHOT`, or its id.
    pub name: String,
    /// What it is.
    pub point: Point,
    /// A line for people.
    pub description: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Whether it cannot be written: a snapshot, a volume that only lends itself for reading, or anything in a pool
    /// that was opened read-only.
    pub read_only: bool,
}

impl Export {
    /// The id of the volume or snapshot.
    pub fn id(&self) -> Uuid {
        id_of(self.point)
    }

    fn volume(pool: &Pool, name: String, volume: &Volume) -> Self {
        let own = volume.description.as_ref().filter(|d| wire::text(d.as_bytes()).is_some());
        Self {
            name,
            point: Point::Volume(volume.id),
            description: own.map_or_else(|| format!("volume {}", volume.id), Clone::clone),
            size_bytes: volume.size_bytes,
            read_only: pool.is_read_only() || volume.read_only,
        }
    }

    fn snapshot(name: String, snapshot: &Snapshot) -> Self {
        let own = snapshot.description.as_ref().filter(|d| wire::text(d.as_bytes()).is_some());
        let made = || format!("snapshot {} of volume {}", snapshot.id, snapshot.volume);
        Self {
            name,
            point: Point::Snapshot(snapshot.id),
            description: own.map_or_else(made, Clone::clone),
            size_bytes: snapshot.size_bytes,
            read_only: true,
        }
    }
}

pub(super) fn id_of(point: Point) -> Uuid {
    match point {
        Point::Volume(id) => id.raw(),
        Point::Snapshot(id) => id.raw(),
    }
}

/// Finds what a name means: an id; the name of a volume or a snapshot, or `VOLUME@SNAPSHOT` with the volume's
/// name or id, where only one object in the pool fits; or the empty name, where the pool has one volume.
///
/// # Errors
/// `NotFound` when nothing fits; `InvalidArgument` when more than one object does; `Corrupt`, `Io`, `Closed`.
pub fn find_export(pool: &Pool, name: &str) -> Result<Export> {
    if let Some(export) = find_id(pool, name)? {
        return Ok(export);
    }
    let mut fits = Vec::new();
    if name.is_empty() {
        let two = pool.list_volumes(&VolumeQuery::new().limit(2))?.items;
        fits.extend(two.iter().map(|v| Export::volume(pool, name.into(), v)));
    } else {
        let two = pool.list_volumes(&VolumeQuery::new().name(name).limit(2))?.items;
        fits.extend(two.iter().map(|v| Export::volume(pool, name.into(), v)));
        let mut volumes = VolumeNames::default();
        for snapshot in Walk::snapshots(pool) {
            let snapshot = snapshot?;
            if fits.len() < 2 && fits_snapshot(pool, &mut volumes, &snapshot, name)? {
                fits.push(Export::snapshot(name.into(), &snapshot));
            }
        }
    }
    let several = fits.len() > 1;
    match fits.pop() {
        Some(_) if several && name.is_empty() => {
            Err(Error::invalid("name", Violation::Ambiguous, "the pool has more than one volume: say which"))
        }
        Some(_) if several => Err(Error::invalid(
            "name",
            Violation::Ambiguous,
            format!("more than one volume or snapshot is called {name:?}: use an id"),
        )),
        Some(export) => Ok(export),
        None => Err(Error::NotFound { object: "volume or snapshot", id: format!("{name:?}") }),
    }
}

/// The snapshot that a name means, by the rules of [`find_export`].
pub(super) fn find_snapshot(pool: &Pool, name: &str) -> Result<SnapshotId> {
    match find_export(pool, name)?.point {
        Point::Snapshot(id) => Ok(id),
        Point::Volume(id) => Err(Error::NotFound { object: "snapshot", id: id.to_string() }),
    }
}

fn find_id(pool: &Pool, name: &str) -> Result<Option<Export>> {
    let Ok(id) = name.parse::<Uuid>() else { return Ok(None) };
    match pool.volume(VolumeId::new(id)) {
        Ok(volume) => return Ok(Some(Export::volume(pool, name.into(), &volume))),
        Err(Error::NotFound { .. }) => {}
        Err(e) => return Err(e),
    }
    match pool.snapshot(SnapshotId::new(id)) {
        Ok(snapshot) => Ok(Some(Export::snapshot(name.into(), &snapshot))),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

fn fits_snapshot(pool: &Pool, volumes: &mut VolumeNames, snapshot: &Snapshot, name: &str) -> Result<bool> {
    let Some(own) = &snapshot.name else { return Ok(false) };
    if own == name {
        return Ok(true);
    }
    let Some(volume) = name.strip_suffix(own.as_str()).and_then(|v| v.strip_suffix('@')) else {
        return Ok(false);
    };
    Ok(snapshot.volume.to_string() == volume || volumes.of(pool, snapshot.volume)?.as_deref() == Some(volume))
}

/// Names of volumes; the last one asked about is remembered.
#[derive(Default)]
struct VolumeNames(Option<(VolumeId, Option<String>)>);

impl VolumeNames {
    /// `None` when it has no name, or is gone.
    fn of(&mut self, pool: &Pool, id: VolumeId) -> Result<Option<String>> {
        if let Some((last, name)) = &self.0
            && *last == id
        {
            return Ok(name.clone());
        }
        let name = match pool.volume(id) {
            Ok(volume) => volume.name,
            Err(Error::NotFound { .. }) => None,
            Err(e) => return Err(e),
        };
        self.0 = Some((id, name.clone()));
        Ok(name)
    }
}

/// Every volume and snapshot of the pool with the name under which it is exported, volumes first, each kind newest
/// first. What is made or deleted meanwhile may or may not be among them.
///
/// # Errors
/// `Corrupt`, `Io`, `Closed`, here and from the iterator, which ends with its first error.
pub fn exports(pool: &Pool) -> Result<Exports> {
    let mut names = Counter::default();
    let mut volumes = VolumeNames::default();
    for volume in Walk::volumes(pool) {
        names.note(volume?.name.as_deref());
    }
    for snapshot in Walk::snapshots(pool) {
        let snapshot = snapshot?;
        let Some(name) = &snapshot.name else { continue };
        names.note(Some(name));
        names.note(Some(&format!("{}@{name}", snapshot.volume)));
        if let Some(volume) = volumes.of(pool, snapshot.volume)? {
            names.note(Some(&format!("{volume}@{name}")));
        }
    }
    Ok(Exports {
        pool: pool.clone(),
        names: Names(names.more),
        known: volumes,
        volumes: Some(Walk::volumes(pool)),
        snapshots: Walk::snapshots(pool),
    })
}

/// The name under which [`exports`] lists a volume or snapshot.
pub(super) fn listed_name(pool: &Pool, point: Point) -> Result<String> {
    for export in exports(pool)? {
        let export = export?;
        if export.point == point {
            return Ok(export.name);
        }
    }
    Ok(id_of(point).to_string())
}

/// Counts names, by their hashes.
#[derive(Default)]
struct Counter {
    once: HashSet<u64>,
    more: HashSet<u64>,
}

impl Counter {
    fn note(&mut self, name: Option<&str>) {
        let Some(name) = name else { return };
        let hash = xxh3_64(name.as_bytes());
        if !self.once.insert(hash) {
            self.more.insert(hash);
        }
    }
}

/// The names that fit more than one object, by their hashes: should two names share one, ids are listed in
/// their place.
struct Names(HashSet<u64>);

impl Names {
    /// Whether it can be said on the wire, and finds one object only.
    fn serves(&self, name: &str) -> bool {
        !name.is_empty()
            && wire::text(name.as_bytes()).is_some()
            && name.parse::<Uuid>().is_err()
            && !self.0.contains(&xxh3_64(name.as_bytes()))
    }
}

/// The exports of a pool: see [`exports`].
#[must_use]
pub struct Exports {
    pool: Pool,
    names: Names,
    known: VolumeNames,
    volumes: Option<Walk<Volume>>,
    snapshots: Walk<Snapshot>,
}

impl Exports {
    fn name_snapshot(&mut self, snapshot: &Snapshot) -> Result<Export> {
        let mut name = None;
        if let Some(own) = &snapshot.name {
            let long = self.known.of(&self.pool, snapshot.volume)?.map(|volume| format!("{volume}@{own}"));
            name = long.filter(|n| self.names.serves(n));
            name = name.or_else(|| self.names.serves(own).then(|| own.clone()));
        }
        Ok(Export::snapshot(name.unwrap_or_else(|| snapshot.id.to_string()), snapshot))
    }

    /// Only the snapshots of one volume.
    pub(super) fn snapshots_of(self, volume: VolumeId) -> impl Iterator<Item = Result<Export>> {
        let mut all = Exports { volumes: None, ..self };
        std::iter::from_fn(move || {
            loop {
                let snapshot = match all.snapshots.next()? {
                    Ok(snapshot) if snapshot.volume != volume => continue,
                    Ok(snapshot) => snapshot,
                    Err(e) => return Some(Err(e)),
                };
                return Some(all.name_snapshot(&snapshot));
            }
        })
    }
}

impl Iterator for Exports {
    type Item = Result<Export>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(volumes) = &mut self.volumes {
            if let Some(volume) = volumes.next() {
                return Some(volume.map(|volume| {
                    let own = volume.name.clone().filter(|n| self.names.serves(n));
                    Export::volume(&self.pool, own.unwrap_or_else(|| volume.id.to_string()), &volume)
                }));
            }
            self.volumes = None;
        }
        let snapshot = self.snapshots.next()?;
        Some(snapshot.and_then(|snapshot| self.name_snapshot(&snapshot)))
    }
}

impl std::fmt::Debug for Exports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exports").finish_non_exhaustive()
    }
}

/// Gives the page behind the item with this id, or the first, and whether another one follows.
type NextPage<T> = Box<dyn FnMut(Option<Uuid>) -> Result<(Vec<T>, bool)> + Send>;

/// All volumes or snapshots, a page at a time.
struct Walk<T> {
    next_page: NextPage<T>,
    id: fn(&T) -> Uuid,
    page: vec::IntoIter<T>,
    /// Ids of the whole page.
    ids: Vec<Uuid>,
    more: bool,
}

impl Walk<Volume> {
    fn volumes(pool: &Pool) -> Self {
        let pool = pool.clone();
        let next_page = move |after: Option<Uuid>| {
            let query = VolumeQuery::new().limit(PAGE);
            let page = pool.list_volumes(&match after {
                Some(id) => query.marker(VolumeId::new(id)),
                None => query,
            })?;
            Ok((page.items, page.next.is_some()))
        };
        Self::new(Box::new(next_page), |volume| volume.id.raw())
    }
}

impl Walk<Snapshot> {
    fn snapshots(pool: &Pool) -> Self {
        let pool = pool.clone();
        let next_page = move |after: Option<Uuid>| {
            let query = SnapshotQuery::new().limit(PAGE);
            let page = pool.list_snapshots(&match after {
                Some(id) => query.marker(SnapshotId::new(id)),
                None => query,
            })?;
            Ok((page.items, page.next.is_some()))
        };
        Self::new(Box::new(next_page), |snapshot| snapshot.id.raw())
    }
}

impl<T> Walk<T> {
    fn new(next_page: NextPage<T>, id: fn(&T) -> Uuid) -> Self {
        Self { next_page, id, page: Vec::new().into_iter(), ids: Vec::new(), more: true }
    }

    /// Goes on behind the last item, or, where that was deleted meanwhile, behind the last one that is left.
    fn turn(&mut self) -> Result<()> {
        let mut ids = std::mem::take(&mut self.ids);
        let (page, more) = loop {
            let after = ids.pop();
            match (self.next_page)(after) {
                Err(Error::NotFound { .. }) if !ids.is_empty() => {}
                other => break other?,
            }
        };
        self.ids = page.iter().map(self.id).collect();
        (self.page, self.more) = (page.into_iter(), more);
        Ok(())
    }
}

impl<T> Iterator for Walk<T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(item) = self.page.next() {
                return Some(Ok(item));
            }
            if !std::mem::replace(&mut self.more, false) {
                return None;
            }
            if let Err(e) = self.turn() {
                return Some(Err(e));
            }
        }
    }
}
