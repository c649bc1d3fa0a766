//! Backups: lists, show, and how many there are. They are made by native calls.

use http::StatusCode;
use serde::Serialize;

use crate::dialect::call::{Call, json};
use crate::pool::{BackupQuery, SortKey, SortOrder};

use super::Answer;
use super::codes::{Refusal, SORT_DIR, SORT_KEY};
use super::listing::Asked;
use super::scope::Scope;
use super::shapes::{BriefBackup, DetailedBackup, Link, gib};

#[derive(Serialize)]
struct OneBackup {
    backup: DetailedBackup,
}

#[derive(Serialize)]
struct ManyBackups<T> {
    backups: Vec<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backups_links: Option<Option<Vec<Link>>>,
}

pub(super) fn list(scope: &Scope<'_>, call: &Call<'_>, detail: bool) -> Answer {
    let mut asked = Asked::of(call, scope.version)?;
    // Backups have one order. Another one is refused, as its pages would not be what was asked for.
    match asked.order()?.first() {
        None | Some((SortKey::CreatedAt, SortOrder::Descending)) => {}
        Some((SortKey::CreatedAt, _)) => {
            return Err(Refusal::new(SORT_DIR, "backups are listed newest first"));
        }
        Some(_) => return Err(Refusal::new(SORT_KEY, "backups are listed by created_at")),
    }
    let mut query = BackupQuery::new().project(scope.project.clone()).offset(asked.offset());
    if let Some(name) = asked.name() {
        query = query.name(name);
    }
    if let Some(status) = asked.status()? {
        query = query.status(status);
    }
    if let Some(volume) = asked.volume(scope)? {
        query = query.volume(volume);
    }
    if let Some(marker) = asked.get("marker") {
        query = query.marker(scope.backup(marker)?.id);
    }
    let (backups, _) = asked.page(|items| scope.pool.list_backups(&query.limit(items)))?;
    let last = backups.last().map(|b| b.id.to_string());
    let backups_links = scope.next_links(asked.links(&scope.here(call), last, backups.len()));
    if detail {
        let backups = backups.into_iter().map(|b| DetailedBackup::new(scope, b)).collect();
        return Ok(json(StatusCode::OK, &ManyBackups { backups, backups_links }));
    }
    let backups = backups.into_iter().map(|b| BriefBackup::new(scope, b)).collect();
    Ok(json(StatusCode::OK, &ManyBackups { backups, backups_links }))
}

pub(super) fn show(scope: &Scope<'_>, id: &str) -> Answer {
    let backup = DetailedBackup::new(scope, scope.backup(id)?);
    Ok(json(StatusCode::OK, &OneBackup { backup }))
}

/// How many the project has, and their sizes in GiB together. Counted by offset: a marker could be gone by then.
pub(super) fn used(scope: &Scope<'_>) -> Result<(u64, u64), Refusal> {
    let (mut count, mut size) = (0, 0u64);
    loop {
        let query = BackupQuery::new().project(scope.project.clone()).offset(count);
        let page = scope.pool.list_backups(&query)?;
        count += page.items.len() as u64;
        size = page.items.iter().fold(size, |sum, backup| sum.saturating_add(gib(backup.size_bytes)));
        if page.next.is_none() {
            return Ok((count, size));
        }
    }
}
