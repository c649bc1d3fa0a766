//! Listing volumes.

use uuid::Uuid;

use crate::error::{Error, Result};
use crate::units::{ObjectId, SnapshotId, VolumeId};

use super::super::catalogue::{self, Index, Table};
use super::super::pool::Pool;
use super::super::projects::Names;
use super::super::status::VolumeStatus;
use super::super::volume::Volume;
use super::pages::{Candidates, Sortable, page, sorted_page};
use super::{Cut, Page, SortKey, SortOrder};

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
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::super::tests::pool;
    use super::super::super::{CreateOptions, SnapshotSpec, VolumeSpec};
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
