//! Listings: what to list, in which order, how much of it, and the paging that reads no more than the page.
//!
//! A listing in the order of the indexes (newest first, then by id) over one index reads the page and no more.
//! Any other order, and a union of several indexes, reads all that match, and keeps in memory only as many as the
//! page and its offset need.

use serde::Serialize;
use uuid::Uuid;

use crate::error::{Error, Result, Violation};

use super::catalogue::Table;
use super::limits::MAX_PAGE;
use super::projects;
use super::records::Common;

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

/// How much of a listing is asked for: of every query that has a `cut` and a `marker`.
macro_rules! paging {
    ($t:ty, $id:ty) => {
        impl $t {
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
pub(super) use paging;

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
        }
        paging!($t, $id);
    };
}

// Behind the macros that they use.
mod pages;
mod snapshots;
mod volumes;

pub(super) use pages::page;
pub use snapshots::SnapshotQuery;
pub use volumes::VolumeQuery;
