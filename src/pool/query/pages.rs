//! Pages: of one index, read from where they begin; of any other order, picked from all that there is.

use std::cmp::Ordering;

use uuid::Uuid;

use crate::error::Result;
use crate::memory;
use crate::units::ObjectId;

use super::super::catalogue::{Index, Table};
use super::super::records::Common;
use super::{Cut, SortKey, SortOrder};

/// Where the candidates of a listing come from.
pub(super) enum Candidates {
    Index(Index),
    Several(Vec<Index>),
    Ids(Vec<ObjectId>),
}

impl Candidates {
    pub(super) fn ids(ids: &[Uuid]) -> Self {
        let mut ids: Vec<ObjectId> = ids.iter().map(|id| ObjectId(id.into_bytes())).collect();
        ids.sort();
        ids.dedup();
        Self::Ids(ids)
    }

    pub(super) fn of(mut indexes: Vec<Index>) -> Self {
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
pub(in crate::pool) fn page<T>(
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
pub(super) struct Sortable {
    id: Uuid,
    status: &'static str,
    size_bytes: u64,
    created: u64,
    updated: Option<u64>,
    name: Option<String>,
}

impl Sortable {
    pub(super) fn of(id: Uuid, status: &'static str, common: &Common) -> Self {
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
pub(super) fn sorted_page<T>(
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
