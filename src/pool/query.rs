//! Listings: what to list, how much of it, and the paging that reads no more than the page.

use std::collections::HashMap;

use serde::Serialize;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::units::{ObjectId, SnapshotId, VolumeId};

use super::catalogue::{self, Index, Table};
use super::limits::MAX_PAGE;
use super::pool::{Inner, Pool};
use super::records::{Common, SnapshotRecord, VolumeRecord};
use super::snapshot::Snapshot;
use super::status::{SnapshotStatus, VolumeStatus};
use super::volume::Volume;

/// Some of the items that a query matches, in its order.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[non_exhaustive]
pub struct Page<T, Id> {
    /// The items, newest first, then by id.
    pub items: Vec<T>,
    /// The id to give as the next query's marker; `None` when nothing follows.
    pub next: Option<Id>,
    /// How many items match in all, whatever the page; only when the query asked for it.
    pub total: Option<u64>,
}

/// What the two kinds of query have in common.
#[derive(Clone, Debug)]
struct Cut {
    name: Option<String>,
    text: Option<String>,
    metadata: Vec<(String, String)>,
    limit: u32,
    offset: u64,
    with_total: bool,
}

impl Default for Cut {
    fn default() -> Self {
        Self { name: None, text: None, metadata: Vec::new(), limit: MAX_PAGE, offset: 0, with_total: false }
    }
}

impl Cut {
    fn check(&self) -> Result<()> {
        if !(1..=MAX_PAGE).contains(&self.limit) {
            return Err(Error::invalid(
                "limit",
                format!("a page has 1 to {MAX_PAGE} items, {} given", self.limit),
            ));
        }
        Ok(())
    }
    fn takes_all(&self) -> bool {
        self.name.is_none() && self.text.is_none() && self.metadata.is_empty()
    }
    fn matches(&self, common: &Common, id: Uuid) -> bool {
        let has = |field: &Option<String>, text: &str| {
            field.as_ref().is_some_and(|f| f.to_lowercase().contains(text))
        };
        self.name.as_ref().is_none_or(|want| common.name.as_ref() == Some(want))
            && self.metadata.iter().all(|(key, value)| common.metadata.get(key) == Some(value))
            && self.text.as_ref().is_none_or(|text| {
                let text = text.to_lowercase();
                has(&common.name, &text) || has(&common.description, &text) || id.to_string().contains(&text)
            })
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
            /// Only those in this status.
            #[must_use]
            pub fn status(mut self, status: $status) -> Self {
                self.status = Some(status);
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
    status: Option<VolumeStatus>,
    from: Option<ObjectId>,
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
}

/// Which snapshots to list. Conditions combine by AND; what is not said does not filter.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct SnapshotQuery {
    cut: Cut,
    status: Option<SnapshotStatus>,
    volume: Option<VolumeId>,
    marker: Option<SnapshotId>,
}

shared_filters!(SnapshotQuery, SnapshotId, SnapshotStatus);

impl SnapshotQuery {
    /// Only snapshots of this volume, which may be gone meanwhile. Uses an index.
    #[must_use]
    pub fn volume(mut self, volume: VolumeId) -> Self {
        self.volume = Some(volume);
        self
    }
}

/// One page: `index` from its start or the marker, `whole` for the total.
///
/// Records are read outside of the index scan, so a record may have gone in between: it is skipped.
fn page<T>(
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
                items.push(item);
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

impl Pool {
    /// Lists volumes, newest first, then by id; one page at a time.
    ///
    /// Reads the page's records and nothing else, unless a filter other than
    /// [`created_from`](VolumeQuery::created_from) makes it look further.
    ///
    /// # Errors
    /// `InvalidArgument` for a limit outside 1 to 1,000, `NotFound` for a marker that names no volume; `Corrupt`,
    /// `Io`, `Closed`.
    pub fn list_volumes(&self, query: &VolumeQuery) -> Result<Page<Volume, VolumeId>> {
        query.cut.check()?;
        let inner = &*self.inner;
        let table: &dyn Table = &*inner.engine;
        let index = || query.from.map_or_else(Index::volumes, Index::made_from);
        let start = match query.marker {
            Some(id) => index().after(catalogue::need_volume(table, id)?.common.created, id.object()),
            None => index(),
        };
        let unfiltered = query.cut.takes_all() && query.status.is_none();
        let mut load = |object: ObjectId| {
            let id = VolumeId::new(Uuid::from_bytes(object.0));
            let Some(record) = catalogue::volume(table, id)? else { return Ok(None) };
            let keep = query.cut.matches(&record.common, id.raw());
            let keep = keep && query.status.is_none_or(|s| s == inner.volume_status(id, &record));
            if keep { inner.describe_volume(table, id, record).map(Some) } else { Ok(None) }
        };
        let (items, more, total) = page(table, start, index(), &query.cut, unfiltered, &mut load)?;
        let next = if more { items.last().map(|v: &Volume| v.id) } else { None };
        Ok(Page { items, next, total })
    }

    /// Lists snapshots, newest first, then by id; one page at a time.
    ///
    /// Reads the page's records and nothing else, unless a filter other than
    /// [`volume`](SnapshotQuery::volume) makes it look further.
    ///
    /// # Errors
    /// `InvalidArgument` for a limit outside 1 to 1,000, `NotFound` for a marker that names no snapshot; `Corrupt`,
    /// `Io`, `Closed`.
    pub fn list_snapshots(&self, query: &SnapshotQuery) -> Result<Page<Snapshot, SnapshotId>> {
        query.cut.check()?;
        let table: &dyn Table = &*self.inner.engine;
        let index = || query.volume.map_or_else(Index::snapshots, Index::snapshots_of);
        let start = match query.marker {
            Some(id) => index().after(catalogue::need_snapshot(table, id)?.common.created, id.object()),
            None => index(),
        };
        let unfiltered = query.cut.takes_all() && query.status.is_none();
        // Snapshots of one volume stand together in many listings: ask once whether it exists.
        let mut exists: HashMap<VolumeId, bool> = HashMap::new();
        let mut load = |object: ObjectId| {
            let id = SnapshotId::new(Uuid::from_bytes(object.0));
            let Some(record) = catalogue::snapshot(table, id)? else { return Ok(None) };
            let keep = query.cut.matches(&record.common, id.raw());
            if !(keep && query.status.is_none_or(|s| s == record.status)) {
                return Ok(None);
            }
            let volume = record.volume;
            let there = match exists.get(&volume) {
                Some(there) => *there,
                None => *exists.entry(volume).or_insert(catalogue::has_volume(table, volume)?),
            };
            Ok(Some(Snapshot::from_record(id, record, there)))
        };
        let (items, more, total) = page(table, start, index(), &query.cut, unfiltered, &mut load)?;
        let next = if more { items.last().map(|s: &Snapshot| s.id) } else { None };
        Ok(Page { items, next, total })
    }
}

impl Inner {
    /// The stored status, or what the attachments make of it.
    pub(super) fn volume_status(&self, id: VolumeId, record: &VolumeRecord) -> VolumeStatus {
        match record.status {
            VolumeStatus::Available if self.attachments.count(id.object()) > 0 => VolumeStatus::InUse,
            stored => stored,
        }
    }

    pub(super) fn describe_volume(
        &self,
        table: &dyn Table,
        id: VolumeId,
        record: VolumeRecord,
    ) -> Result<Volume> {
        let attachments = self.attachments.count(id.object());
        let snapshot_count = catalogue::snapshot_count(table, id)?;
        Ok(Volume::from_record(id, record, attachments, snapshot_count))
    }

    pub(super) fn describe_snapshot(
        &self,
        table: &dyn Table,
        id: SnapshotId,
        record: SnapshotRecord,
    ) -> Result<Snapshot> {
        let there = catalogue::has_volume(table, record.volume)?;
        Ok(Snapshot::from_record(id, record, there))
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
