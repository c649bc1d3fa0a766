//! Listing snapshots.

use std::collections::HashMap;

use uuid::Uuid;

use crate::error::{Error, Result};
use crate::units::{ObjectId, SnapshotId, VolumeId};

use super::super::catalogue::{self, Index, Table};
use super::super::pool::Pool;
use super::super::projects::Names;
use super::super::snapshot::{self, Snapshot, Trigger};
use super::super::status::SnapshotStatus;
use super::pages::{Candidates, Sortable, page, sorted_page};
use super::{Cut, Page, SortKey, SortOrder};

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

impl Pool {
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

#[cfg(test)]
mod tests {
    use super::super::super::SnapshotSpec;
    use super::super::super::tests::pool;
    use super::super::super::{Snapshots, VolumeSpec};
    use super::*;

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
}
