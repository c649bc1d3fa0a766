//! Listings: what to list, in which order, how much of it, and the paging that reads no more than the page.
//!
//! A listing in the order of the indexes (newest first, then by id) over one index reads the page and no more.
//! Any other order, and a union of several indexes, reads all that match, and keeps in memory only as many as the
//! page and its offset need.

use std::cmp::Ordering;
use std::collections::HashMap;

use serde::Serialize;
use uuid::Uuid;

use crate::error::{Error, Result, Violation};
use crate::memory;
use crate::units::{AttachmentId, ObjectId, SnapshotId, VolumeId};

use super::catalogue::{self, Index, Table};
use super::limits::MAX_PAGE;
use super::pool::{Inner, Pool};
use super::projects::{self, Names};
use super::records::{Common, SnapshotRecord, VolumeRecord};
use super::servers::{self, Attachment};
use super::snapshot::{self, Snapshot, Trigger};
use super::status::{SnapshotStatus, VolumeStatus};
use super::volume::{self, Volume};

/// Some of the items that a query matches, in its order.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[non_exhaustive]
pub struct Page<T, Id> {
    /// The items, in the order asked for: newest first, then by id, unless something else was said.
    pub items: Vec<T>,
    /// The id to give as the next query's marker; `None` when nothing follows.
    pub next: Option<Id>,
    /// How many items match in all, whatever the page; only when the query asked for it.
    pub total: Option<u64>,
}

/// What to sort by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum SortKey {
    /// The id.
    Id,
    /// The status, by its spelling.
    Status,
    /// The size in bytes.
    Size,
    /// When it was created.
    CreatedAt,
    /// When it last changed; what never did comes first.
    UpdatedAt,
    /// The name, by its bytes; what has none comes first.
    Name,
}

/// In which direction to sort.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum SortOrder {
    /// Smallest first.
    Ascending,
    /// Largest first.
    Descending,
}

/// What the kinds of query have in common.
#[derive(Clone, Debug)]
pub(super) struct Cut {
    pub(super) name: Option<String>,
    text: Option<String>,
    metadata: Vec<(String, String)>,
    projects: Option<Vec<String>>,
    zone: Option<String>,
    volume_type: Option<String>,
    bootable: Option<bool>,
    ids: Option<Vec<Uuid>>,
    sort: Vec<(SortKey, SortOrder)>,
    pub(super) limit: u32,
    pub(super) offset: u64,
    pub(super) with_total: bool,
}

impl Default for Cut {
    fn default() -> Self {
        Self {
            name: None,
            text: None,
            metadata: Vec::new(),
            projects: None,
            zone: None,
            volume_type: None,
            bootable: None,
            ids: None,
            sort: Vec::new(),
            limit: MAX_PAGE,
            offset: 0,
            with_total: false,
        }
    }
}

impl Cut {
    pub(super) fn check(&self) -> Result<()> {
        if !(1..=MAX_PAGE).contains(&self.limit) {
            return Err(Error::invalid(
                "limit",
                Violation::Page,
                format!("a page has 1 to {MAX_PAGE} items, {} given", self.limit),
            ));
        }
        Ok(())
    }

    /// Whether the record alone, apart from its project and its status, cannot make an object fail.
    fn takes_all(&self) -> bool {
        self.name.is_none()
            && self.text.is_none()
            && self.metadata.is_empty()
            && self.zone.is_none()
            && self.volume_type.is_none()
            && self.bootable.is_none()
            && self.ids.is_none()
    }

    fn matches(&self, common: &Common, id: Uuid, known: &Known) -> bool {
        let has = |field: &Option<String>, text: &str| {
            field.as_ref().is_some_and(|f| f.to_lowercase().contains(text))
        };
        self.name.as_ref().is_none_or(|want| common.name.as_ref() == Some(want))
            && self.metadata.iter().all(|(key, value)| common.metadata.get(key) == Some(value))
            && known.projects.as_ref().is_none_or(|numbers| numbers.contains(&common.project))
            && self.ids.as_ref().is_none_or(|ids| ids.contains(&id))
            && self.volume_type.as_ref().is_none_or(|want| common.volume_type.as_ref() == Some(want))
            && self.text.as_ref().is_none_or(|text| {
                let text = text.to_lowercase();
                has(&common.name, &text) || has(&common.description, &text) || id.to_string().contains(&text)
            })
    }

    /// Whether the indexes have the order that is asked for.
    fn natural(&self) -> bool {
        matches!(self.sort[..], [] | [(SortKey::CreatedAt, SortOrder::Descending)])
    }

    /// The numbers of the projects that are asked for; unknown ones match nothing.
    fn known(&self, table: &dyn Table) -> Result<Known> {
        let Some(ids) = &self.projects else { return Ok(Known { projects: None }) };
        let mut numbers = Vec::new();
        for id in ids {
            if let Some(number) = projects::find(table, id)?.filter(|n| !numbers.contains(n)) {
                numbers.push(number);
            }
        }
        Ok(Known { projects: Some(numbers) })
    }
}

struct Known {
    projects: Option<Vec<u32>>,
}

impl Known {
    fn serves(&self, project: u32) -> bool {
        self.projects.as_ref().is_none_or(|numbers| numbers.contains(&project))
    }
}

macro_rules! shared_filters {
    ($t:ty, $id:ty, $status:ty) => {
        impl $t {
            /// Everything, newest first, up to 1,000 items.
            pub fn new() -> Self {
                Self::default()
            }
            /// Only those with exactly this name.
            #[must_use]
            pub fn name(mut self, name: impl Into<String>) -> Self {
                self.cut.name = Some(name.into());
                self
            }
            /// Only those with this text in name, description or id, whatever its case. Reads every record.
            #[must_use]
            pub fn text(mut self, text: impl Into<String>) -> Self {
                self.cut.text = Some(text.into());
                self
            }
            /// Only those with this metadata pair; called again, those with all of the pairs.
            #[must_use]
            pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
                self.cut.metadata.push((key.into(), value.into()));
                self
            }
            /// Only those in this status; called again, those in one of them.
            #[must_use]
            pub fn status(mut self, status: $status) -> Self {
                self.status.push(status);
                self
            }
            /// Only those of this project; called again, those of one of them. A project that is not known has
            /// nothing. Uses an index.
            #[must_use]
            pub fn project(mut self, id: impl Into<String>) -> Self {
                self.cut.projects.get_or_insert_default().push(id.into());
                self
            }
            /// Only those in this zone; one that is not known has nothing.
            #[must_use]
            pub fn zone(mut self, name: impl Into<String>) -> Self {
                self.cut.zone = Some(name.into());
                self
            }
            /// Only those of this volume type.
            #[must_use]
            pub fn volume_type(mut self, name: impl Into<String>) -> Self {
                self.cut.volume_type = Some(name.into());
                self
            }
            /// Only bootable ones (of a snapshot: whose volume is), or only the others.
            #[must_use]
            pub fn bootable(mut self, on: bool) -> Self {
                self.cut.bootable = Some(on);
                self
            }
            /// Only these; ids that name nothing match nothing. Looks only at them.
            #[must_use]
            pub fn ids(mut self, ids: impl IntoIterator<Item = $id>) -> Self {
                let ids = ids.into_iter().map(<$id>::raw);
                self.cut.ids.get_or_insert_default().extend(ids);
                self
            }
            /// Sorts by this; called again, by this where the keys before are equal, and last by id. Reads all
            /// that match, unless it is the natural order: newest first.
            #[must_use]
            pub fn sort(mut self, key: SortKey, order: SortOrder) -> Self {
                self.cut.sort.push((key, order));
                self
            }
            /// Most items in the page: 1 to 1,000, the default.
            #[must_use]
            pub fn limit(mut self, items: u32) -> Self {
                self.cut.limit = items;
                self
            }
            /// How many matching items to skip, counted behind the marker if there is one.
            #[must_use]
            pub fn offset(mut self, items: u64) -> Self {
                self.cut.offset = items;
                self
            }
            /// Starts behind this item: the last of the page before.
            #[must_use]
            pub fn marker(mut self, id: $id) -> Self {
                self.marker = Some(id);
                self
            }
            /// Also counts all matches, which takes a scan of the index, or of the records with a filter.
            #[must_use]
            pub fn with_total(mut self, on: bool) -> Self {
                self.cut.with_total = on;
                self
            }
        }
    };
}

/// Which volumes to list. Conditions combine by AND; what is not said does not filter.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct VolumeQuery {
    cut: Cut,
    status: Vec<VolumeStatus>,
    from: Option<ObjectId>,
    multiattach: Option<bool>,
    marker: Option<VolumeId>,
}

shared_filters!(VolumeQuery, VolumeId, VolumeStatus);

impl VolumeQuery {
    /// Only volumes that were made from this snapshot, which may be gone meanwhile. Uses an index.
    #[must_use]
    pub fn created_from(mut self, snapshot: SnapshotId) -> Self {
        self.from = Some(snapshot.object());
        self
    }
    /// Only volumes that were cloned from this volume, which may be gone meanwhile. Uses an index.
    #[must_use]
    pub fn cloned_from(mut self, volume: VolumeId) -> Self {
        self.from = Some(volume.object());
        self
    }
    /// Only volumes that may be attached more than once, or only the others.
    #[must_use]
    pub fn multiattach(mut self, on: bool) -> Self {
        self.multiattach = Some(on);
        self
    }
}

/// Which snapshots to list. Conditions combine by AND; what is not said does not filter.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct SnapshotQuery {
    cut: Cut,
    status: Vec<SnapshotStatus>,
    volumes: Option<Vec<VolumeId>>,
    backup_owned: Option<bool>,
    trigger: Option<Trigger>,
    marker: Option<SnapshotId>,
}

shared_filters!(SnapshotQuery, SnapshotId, SnapshotStatus);

impl SnapshotQuery {
    /// Only snapshots of this volume, which may be gone meanwhile; called again, those of one of them. Uses an
    /// index.
    #[must_use]
    pub fn volume(mut self, volume: VolumeId) -> Self {
        self.volumes.get_or_insert_default().push(volume);
        self
    }
    /// Only snapshots of these volumes: of none, when there are none.
    #[must_use]
    pub fn volumes(mut self, volumes: impl IntoIterator<Item = VolumeId>) -> Self {
        self.volumes.get_or_insert_default().extend(volumes);
        self
    }
    /// Only snapshots that belong to backups, or only the others.
    #[must_use]
    pub fn backup_owned(mut self, on: bool) -> Self {
        self.backup_owned = Some(on);
        self
    }
    /// Only snapshots that were asked for so.
    #[must_use]
    pub fn trigger(mut self, trigger: Trigger) -> Self {
        self.trigger = Some(trigger);
        self
    }
}

/// Where the candidates of a listing come from.
enum Candidates {
    Index(Index),
    Several(Vec<Index>),
    Ids(Vec<ObjectId>),
}

impl Candidates {
    fn ids(ids: &[Uuid]) -> Self {
        let mut ids: Vec<ObjectId> = ids.iter().map(|id| ObjectId(id.into_bytes())).collect();
        ids.sort();
        ids.dedup();
        Self::Ids(ids)
    }

    fn of(mut indexes: Vec<Index>) -> Self {
        match (indexes.pop(), indexes.is_empty()) {
            (Some(one), true) => Self::Index(one),
            (last, _) => {
                indexes.extend(last);
                Self::Several(indexes)
            }
        }
    }

    /// Every candidate in turn.
    fn each(self, table: &dyn Table, look: &mut dyn FnMut(ObjectId) -> Result<()>) -> Result<()> {
        let indexes = match self {
            Self::Ids(ids) => return ids.into_iter().try_for_each(look),
            Self::Index(one) => vec![one],
            Self::Several(several) => several,
        };
        for mut index in indexes {
            loop {
                let ids = index.next_ids(table, usize::MAX)?;
                if ids.is_empty() {
                    break;
                }
                ids.into_iter().try_for_each(&mut *look)?;
            }
        }
        Ok(())
    }
}

/// One page: `index` from its start or the marker, `whole` for the total.
///
/// Records are read outside of the index scan, so a record may have gone in between: it is skipped.
pub(super) fn page<T>(
    table: &dyn Table,
    mut index: Index,
    whole: Index,
    cut: &Cut,
    unfiltered: bool,
    load: &mut dyn FnMut(ObjectId) -> Result<Option<T>>,
) -> Result<(Vec<T>, bool, Option<u64>)> {
    let limit = cut.limit as usize;
    let mut items = Vec::new();
    let mut skip = cut.offset;
    let mut more = false;
    'pages: loop {
        // One more than the page needs tells whether another page follows.
        let want = (limit + 1 - items.len()).saturating_add(usize::try_from(skip).unwrap_or(usize::MAX));
        let ids = index.next_ids(table, want)?;
        if ids.is_empty() {
            break;
        }
        for id in ids {
            if unfiltered && skip > 0 {
                skip -= 1;
                continue;
            }
            if unfiltered && items.len() == limit {
                more = true;
                break 'pages;
            }
            let Some(item) = load(id)? else { continue };
            if skip > 0 {
                skip -= 1;
            } else if items.len() == limit {
                more = true;
                break 'pages;
            } else {
                memory::push(&mut items, item)?;
            }
        }
    }
    let total = match (cut.with_total, unfiltered) {
        (false, _) => None,
        (true, true) => Some(whole.count(table)?),
        (true, false) => {
            let (mut whole, mut n) = (whole, 0);
            loop {
                let ids = whole.next_ids(table, usize::MAX)?;
                if ids.is_empty() {
                    break Some(n);
                }
                for id in ids {
                    n += u64::from(load(id)?.is_some());
                }
            }
        }
    };
    Ok((items, more, total))
}

/// What a listing in another order compares.
struct Sortable {
    id: Uuid,
    status: &'static str,
    size_bytes: u64,
    created: u64,
    updated: Option<u64>,
    name: Option<String>,
}

impl Sortable {
    fn of(id: Uuid, status: &'static str, common: &Common) -> Self {
        let Common { size_bytes, created, updated, .. } = *common;
        Self { id, status, size_bytes, created, updated, name: common.name.clone() }
    }

    fn compare(&self, other: &Self, sort: &[(SortKey, SortOrder)]) -> Ordering {
        const NATURAL: [(SortKey, SortOrder); 1] = [(SortKey::CreatedAt, SortOrder::Descending)];
        let sort = if sort.is_empty() { &NATURAL } else { sort };
        for (key, order) in sort {
            let found = match key {
                SortKey::Id => self.id.cmp(&other.id),
                SortKey::Status => self.status.cmp(other.status),
                SortKey::Size => self.size_bytes.cmp(&other.size_bytes),
                SortKey::CreatedAt => self.created.cmp(&other.created),
                SortKey::UpdatedAt => self.updated.cmp(&other.updated),
                SortKey::Name => self.name.cmp(&other.name),
            };
            let found = if *order == SortOrder::Descending { found.reverse() } else { found };
            if found != Ordering::Equal {
                return found;
            }
        }
        self.id.cmp(&other.id)
    }
}

/// One page in an order that no index has: everything is looked at, what cannot be in the page is let go.
fn sorted_page<T>(
    table: &dyn Table,
    candidates: Candidates,
    cut: &Cut,
    behind: Option<Sortable>,
    load: &mut dyn FnMut(ObjectId) -> Result<Option<(Sortable, T)>>,
) -> Result<(Vec<T>, bool, Option<u64>)> {
    let skip = usize::try_from(cut.offset).unwrap_or(usize::MAX);
    let need = skip.saturating_add(cut.limit as usize + 1);
    let mut kept: Vec<(Sortable, T)> = Vec::new();
    let mut total = 0;
    candidates.each(table, &mut |object| {
        let Some(item) = load(object)? else { return Ok(()) };
        total += 1;
        if behind.as_ref().is_none_or(|b| item.0.compare(b, &cut.sort) == Ordering::Greater) {
            memory::push(&mut kept, item)?;
        }
        if kept.len() / 2 > need {
            kept.sort_unstable_by(|a, b| a.0.compare(&b.0, &cut.sort));
            kept.truncate(need);
        }
        Ok(())
    })?;
    kept.sort_unstable_by(|a, b| a.0.compare(&b.0, &cut.sort));
    let limit = cut.limit as usize;
    let more = kept.len() > skip.saturating_add(limit);
    let mut items = memory::with_room(limit.min(kept.len().saturating_sub(skip)))?;
    items.extend(kept.into_iter().skip(skip).take(limit).map(|(_, item)| item));
    Ok((items, more, cut.with_total.then_some(total)))
}

impl Pool {
    /// Lists volumes, newest first unless the query says otherwise, then by id; one page at a time.
    ///
    /// Reads the page's records and nothing else, unless a filter other than
    /// [`created_from`](VolumeQuery::created_from) or one project, or another order, makes it look further.
    ///
    /// # Errors
    /// `InvalidArgument` for a limit outside 1 to 1,000, `NotFound` for a marker that names no volume, or one of a
    /// project that the query leaves out; `Corrupt`, `Io`, `Closed`.
    pub fn list_volumes(&self, query: &VolumeQuery) -> Result<Page<Volume, VolumeId>> {
        query.cut.check()?;
        let (inner, cut) = (&*self.inner, &query.cut);
        let table: &dyn Table = &*inner.engine;
        let known = cut.known(table)?;
        let candidates = || match (&cut.ids, query.from, &known.projects) {
            (Some(ids), ..) => Candidates::ids(ids),
            (None, Some(from), _) => Candidates::Index(Index::made_from(from)),
            (None, None, Some(numbers)) => {
                Candidates::of(numbers.iter().map(|n| Index::volumes_in(*n)).collect())
            }
            (None, None, None) => Candidates::Index(Index::volumes()),
        };
        let marked = query.marker.map(|id| -> Result<_> {
            let record = catalogue::need_volume(table, id)?;
            if !known.serves(record.common.project) {
                return Err(Error::not_found("volume", id));
            }
            let status = inner.volume_status(table, id, &record)?.as_str();
            Ok((record.common.created, id.object(), Sortable::of(id.raw(), status, &record.common)))
        });
        let marked = marked.transpose()?;
        let mut names = Names::default();
        let mut load = |object: ObjectId| -> Result<Option<(Sortable, Volume)>> {
            let id = VolumeId::new(Uuid::from_bytes(object.0));
            let Some(record) = catalogue::volume(table, id)? else { return Ok(None) };
            let keep = cut.matches(&record.common, id.raw(), &known)
                && query.from.is_none_or(|from| record.source.object() == Some(from))
                && query.multiattach.is_none_or(|on| on == record.multiattach)
                && cut.bootable.is_none_or(|on| on == record.common.bootable);
            if !keep {
                return Ok(None);
            }
            let status = inner.volume_status(table, id, &record)?;
            if !(query.status.is_empty() || query.status.contains(&status)) {
                return Ok(None);
            }
            if let Some(zone) = &cut.zone
                && names.zone(table, record.common.zone)? != *zone
            {
                return Ok(None);
            }
            let sortable = Sortable::of(id.raw(), status.as_str(), &record.common);
            Ok(Some((sortable, inner.describe_volume_with(table, &mut names, id, record)?)))
        };
        let (items, more, total) = match candidates() {
            Candidates::Index(mut index) if cut.natural() => {
                if let Some((created, object, _)) = marked {
                    index = index.after(created, object);
                }
                let Candidates::Index(whole) = candidates() else { return Err(Error::Closed) };
                let by_index = query.from.is_none() || known.projects.is_none();
                let unfiltered =
                    by_index && cut.takes_all() && query.status.is_empty() && query.multiattach.is_none();
                let mut load = |object| Ok(load(object)?.map(|(_, volume)| volume));
                page(table, index, whole, cut, unfiltered, &mut load)?
            }
            other => sorted_page(table, other, cut, marked.map(|m| m.2), &mut load)?,
        };
        let next = if more { items.last().map(|v: &Volume| v.id) } else { None };
        Ok(Page { items, next, total })
    }

    /// Lists snapshots, newest first unless the query says otherwise, then by id; one page at a time.
    ///
    /// Reads the page's records and nothing else, unless a filter other than one
    /// [`volume`](SnapshotQuery::volume) or one project, or another order, makes it look further.
    ///
    /// # Errors
    /// `InvalidArgument` for a limit outside 1 to 1,000, `NotFound` for a marker that names no snapshot, or one of
    /// a project that the query leaves out; `Corrupt`, `Io`, `Closed`.
    pub fn list_snapshots(&self, query: &SnapshotQuery) -> Result<Page<Snapshot, SnapshotId>> {
        query.cut.check()?;
        let (inner, cut) = (&*self.inner, &query.cut);
        let table: &dyn Table = &*inner.engine;
        let known = cut.known(table)?;
        let candidates = || match (&cut.ids, &query.volumes, &known.projects) {
            (Some(ids), ..) => Candidates::ids(ids),
            (None, Some(volumes), _) => {
                let mut volumes = volumes.clone();
                volumes.sort();
                volumes.dedup();
                Candidates::of(volumes.into_iter().map(Index::snapshots_of).collect())
            }
            (None, None, Some(numbers)) => {
                Candidates::of(numbers.iter().map(|n| Index::snapshots_in(*n)).collect())
            }
            (None, None, None) => Candidates::Index(Index::snapshots()),
        };
        let marked = query.marker.map(|id| -> Result<_> {
            let record = catalogue::need_snapshot(table, id)?;
            if !known.serves(record.common.project) {
                return Err(Error::not_found("snapshot", id));
            }
            let status = inner.snapshot_status(id, &record).as_str();
            Ok((record.common.created, id.object(), Sortable::of(id.raw(), status, &record.common)))
        });
        let marked = marked.transpose()?;
        let mut names = Names::default();
        // Snapshots of one volume stand together in many listings: ask once about it.
        let mut volumes: HashMap<VolumeId, Option<bool>> = HashMap::new();
        let mut load = |object: ObjectId| -> Result<Option<(Sortable, Snapshot)>> {
            let id = SnapshotId::new(Uuid::from_bytes(object.0));
            let Some(record) = catalogue::snapshot(table, id)? else { return Ok(None) };
            let status = inner.snapshot_status(id, &record);
            let keep = cut.matches(&record.common, id.raw(), &known)
                && query.volumes.as_ref().is_none_or(|volumes| volumes.contains(&record.volume))
                && (query.status.is_empty() || query.status.contains(&status))
                && query.backup_owned.is_none_or(|on| on == record.backup_owned)
                && query.trigger.is_none_or(|t| (t == Trigger::Automatic) == record.automatic);
            if !keep {
                return Ok(None);
            }
            let bootable = match volumes.get(&record.volume) {
                Some(known) => *known,
                None => {
                    let found = catalogue::volume(table, record.volume)?.map(|v| v.common.bootable);
                    *volumes.entry(record.volume).or_insert(found)
                }
            };
            if cut.bootable.is_some_and(|on| on != bootable.unwrap_or(record.common.bootable)) {
                return Ok(None);
            }
            let zone = names.zone(table, record.common.zone)?;
            if cut.zone.as_ref().is_some_and(|want| *want != zone) {
                return Ok(None);
            }
            let sortable = Sortable::of(id.raw(), status.as_str(), &record.common);
            let project = names.project(table, record.common.project)?;
            let around = snapshot::Around { project, zone, status, volume_bootable: bootable };
            Ok(Some((sortable, Snapshot::from_record(id, record, around))))
        };
        let (items, more, total) = match candidates() {
            Candidates::Index(mut index) if cut.natural() => {
                if let Some((created, object, _)) = marked {
                    index = index.after(created, object);
                }
                let Candidates::Index(whole) = candidates() else { return Err(Error::Closed) };
                let by_index = query.volumes.is_none() || known.projects.is_none();
                let unfiltered = by_index
                    && cut.takes_all()
                    && query.status.is_empty()
                    && query.backup_owned.is_none()
                    && query.trigger.is_none();
                let mut load = |object| Ok(load(object)?.map(|(_, snapshot)| snapshot));
                page(table, index, whole, cut, unfiltered, &mut load)?
            }
            other => sorted_page(table, other, cut, marked.map(|m| m.2), &mut load)?,
        };
        let next = if more { items.last().map(|s: &Snapshot| s.id) } else { None };
        Ok(Page { items, next, total })
    }
}

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

    fn describe_volume_with(
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::tests::pool;
    use super::super::{CreateOptions, SnapshotSpec, Snapshots, VolumeSpec};
    use super::*;
    use crate::sources::StepClock;

    fn names(page: &Page<Volume, VolumeId>) -> Vec<String> {
        page.items.iter().map(|v| v.name.clone().unwrap_or_default()).collect()
    }

    #[test]
    fn following_the_marker_visits_each_volume_once_newest_first() {
        let pool = pool();
        for i in 0..23 {
            pool.create_volume(VolumeSpec::blank(4096).name(format!("v{i:02}"))).unwrap();
        }
        let mut seen = Vec::new();
        let mut query = VolumeQuery::new().limit(5).with_total(true);
        loop {
            let page = pool.list_volumes(&query).unwrap();
            assert_eq!(page.total, Some(23));
            seen.extend(names(&page));
            match page.next {
                Some(id) => query = query.marker(id),
                None => break,
            }
        }
        let want: Vec<String> = (0..23).rev().map(|i| format!("v{i:02}")).collect();
        assert_eq!(seen, want);
        let page = pool.list_volumes(&VolumeQuery::new().offset(11).limit(10)).unwrap();
        assert_eq!(names(&page), want[11..21]);
        assert!(page.next.is_some());
        let past = pool.list_volumes(&VolumeQuery::new().offset(100).with_total(true)).unwrap();
        assert_eq!((past.items.len(), past.next, past.total), (0, None, Some(23)));
        // A page that is just full, with nothing behind it.
        let exact = pool.list_volumes(&VolumeQuery::new().limit(23)).unwrap();
        assert_eq!((exact.items.len(), exact.next), (23, None));
    }

    #[test]
    fn volumes_of_one_instant_are_ordered_by_id() {
        let clock = Arc::new(StepClock::new(5, 0));
        let pool = Pool::create_in_memory(CreateOptions::new().clock(clock)).unwrap();
        pool.create_volumes(VolumeSpec::blank(4096), 9).unwrap();
        let ids: Vec<VolumeId> =
            pool.list_volumes(&VolumeQuery::new()).unwrap().items.iter().map(|v| v.id).collect();
        assert!(ids.is_sorted());
        let rest = pool.list_volumes(&VolumeQuery::new().marker(ids[3])).unwrap();
        assert_eq!(rest.items.iter().map(|v| v.id).collect::<Vec<_>>(), ids[4..]);
    }

    #[test]
    fn filters_combine_by_and() {
        let pool = pool();
        let base =
            pool.create_volume(VolumeSpec::blank(8192).name("Base").metadata("os", "linux")).unwrap().id;
        let snapshot = pool.create_snapshot(base, SnapshotSpec::new().name("s")).unwrap().id;
        for i in 0..4 {
            let spec = VolumeSpec::from_snapshot(snapshot).name("clone").description(format!("Number {i}"));
            pool.create_volume(spec.metadata("n", (i % 2).to_string())).unwrap();
        }
        let count = |query: VolumeQuery| {
            let page = pool.list_volumes(&query.clone().with_total(true)).unwrap();
            assert_eq!(page.total, Some(page.items.len() as u64));
            let one = pool.list_volumes(&query.limit(1)).unwrap();
            assert_eq!(one.next.is_some(), page.items.len() > 1);
            page.items.len()
        };
        assert_eq!(count(VolumeQuery::new().name("clone")), 4);
        assert_eq!(count(VolumeQuery::new().name("clon")), 0);
        assert_eq!(count(VolumeQuery::new().text("bAsE")), 1);
        assert_eq!(count(VolumeQuery::new().text("number")), 4);
        assert_eq!(count(VolumeQuery::new().text(base.to_string())), 1);
        assert_eq!(count(VolumeQuery::new().metadata("n", "1")), 2);
        assert_eq!(count(VolumeQuery::new().metadata("n", "1").text("number 3")), 1);
        assert_eq!(count(VolumeQuery::new().created_from(snapshot)), 4);
        assert_eq!(count(VolumeQuery::new().cloned_from(base)), 0);
        assert_eq!(count(VolumeQuery::new().status(VolumeStatus::InUse)), 0);
        let _disk = pool.attach(base, Default::default()).unwrap();
        assert_eq!(count(VolumeQuery::new().status(VolumeStatus::InUse)), 1);
        assert_eq!(count(VolumeQuery::new().status(VolumeStatus::Available)), 4);
    }

    #[test]
    fn snapshots_are_listed_for_one_volume_or_all() {
        let pool = pool();
        let (a, b) = (VolumeSpec::blank(4096), VolumeSpec::blank(4096));
        let (a, b) = (pool.create_volume(a).unwrap().id, pool.create_volume(b).unwrap().id);
        for i in 0..300 {
            pool.create_snapshot(if i % 3 == 0 { b } else { a }, SnapshotSpec::new().name(format!("{i}")))
                .unwrap();
        }
        assert_eq!(pool.volume(a).unwrap().snapshot_count, 200);
        let page = pool.list_snapshots(&SnapshotQuery::new().volume(b).limit(99).with_total(true)).unwrap();
        assert_eq!((page.items.len(), page.total), (99, Some(100)));
        assert_eq!(page.items[0].name.as_deref(), Some("297"));
        let last = pool.list_snapshots(&SnapshotQuery::new().volume(b).marker(page.next.unwrap())).unwrap();
        assert_eq!((last.items.len(), last.next), (1, None));
        assert_eq!(pool.list_snapshots(&SnapshotQuery::new()).unwrap().items.len(), 300);
        let _ = pool.delete_volume(a, Snapshots::Keep).unwrap();
        let kept = pool.list_snapshots(&SnapshotQuery::new().volume(a)).unwrap();
        assert_eq!(kept.items.len(), 200);
        assert!(kept.items.iter().all(|s| !s.volume_exists));
    }

    #[test]
    fn bad_pages_are_refused() {
        let pool = pool();
        for limit in [0, 1001] {
            let refused = pool.list_volumes(&VolumeQuery::new().limit(limit));
            assert!(matches!(refused, Err(Error::InvalidArgument { field: "limit", .. })));
        }
        let nobody = VolumeId::new(Uuid::from_u128(9));
        let refused = pool.list_volumes(&VolumeQuery::new().marker(nobody));
        assert!(matches!(refused, Err(Error::NotFound { object: "volume", .. })));
        assert!(
            pool.list_volumes(&VolumeQuery::new().created_from(SnapshotId::new(nobody.raw())))
                .unwrap()
                .items
                .is_empty()
        );
    }
}
