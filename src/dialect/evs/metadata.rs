//! The metadata of a volume or snapshot as a resource of its own.

use std::collections::BTreeMap;

use http::{Method, StatusCode};
use serde_json::Value;

use crate::dialect::call::{Call, json};
use crate::error::Result;
use crate::pool::{SnapshotUpdate, VolumeUpdate};
use crate::units::{SnapshotId, VolumeId};

use super::codes::{BODY, MISMATCH, Refusal};
use super::input::{Metadata, metadata, object, typed, under};
use super::scope::Scope;
use super::{Answer, empty};

type Pairs = BTreeMap<String, String>;

/// Whose metadata.
#[derive(Clone, Copy)]
pub(super) enum Owner<'a> {
    Volume(&'a str),
    Snapshot(&'a str),
}

/// The same, found.
enum Found {
    Volume(VolumeId, Pairs),
    Snapshot(SnapshotId, Pairs),
}

/// What is to become of them.
enum Change {
    Replace(Pairs),
    Merge(Pairs),
    Remove(String),
}

impl Owner<'_> {
    fn find(self, scope: &Scope<'_>) -> Result<Found, Refusal> {
        Ok(match self {
            Self::Volume(id) => {
                let volume = scope.volume(id)?;
                Found::Volume(volume.id, volume.metadata)
            }
            Self::Snapshot(id) => {
                let snapshot = scope.snapshot(id)?;
                Found::Snapshot(snapshot.id, snapshot.metadata)
            }
        })
    }
}

impl Found {
    fn pairs(self) -> Pairs {
        match self {
            Self::Volume(_, pairs) | Self::Snapshot(_, pairs) => pairs,
        }
    }

    /// The metadata afterwards.
    fn change(self, scope: &Scope<'_>, change: Change) -> Result<Pairs> {
        macro_rules! update {
            ($update:ident) => {
                match change {
                    Change::Replace(pairs) => $update::new().metadata(pairs),
                    Change::Merge(pairs) => $update::new().merge_metadata(pairs),
                    Change::Remove(key) => $update::new().remove_metadata(key),
                }
            };
        }
        match self {
            // To add nothing is no change, and no mistake.
            Self::Volume(_, pairs) | Self::Snapshot(_, pairs) if matches!(&change, Change::Merge(more) if more.is_empty()) => {
                Ok(pairs)
            }
            Self::Volume(id, _) => Ok(scope.pool.update_volume(id, update!(VolumeUpdate))?.metadata),
            Self::Snapshot(id, _) => Ok(scope.pool.update_snapshot(id, update!(SnapshotUpdate))?.metadata),
        }
    }
}

/// `…/metadata`.
pub(super) fn all(scope: &Scope<'_>, call: &Call<'_>, owner: Owner<'_>) -> Answer {
    let answer = |pairs: Pairs| json(StatusCode::OK, &BTreeMap::from([("metadata", pairs)]));
    if call.method == Method::GET {
        return Ok(answer(owner.find(scope)?.pairs()));
    }
    let given: Metadata = under(&mut object(call.body)?, "metadata", BODY)?;
    let given = metadata(Some(given))?.unwrap_or_default();
    check(scope, &given)?;
    let change = if call.method == Method::PUT { Change::Replace(given) } else { Change::Merge(given) };
    Ok(answer(owner.find(scope)?.change(scope, change)?))
}

/// `…/metadata/{key}`.
pub(super) fn one(scope: &Scope<'_>, call: &Call<'_>, owner: Owner<'_>, key: &str) -> Answer {
    let meta = |value: String| BTreeMap::from([("meta", BTreeMap::from([(key.to_owned(), value)]))]);
    if call.method == Method::GET {
        let value = owner.find(scope)?.pairs().remove(key);
        let value = value.ok_or_else(|| Refusal::not_found("metadata key", key))?;
        return Ok(json(StatusCode::OK, &meta(value)));
    }
    if call.method == Method::DELETE {
        owner.find(scope)?.change(scope, Change::Remove(key.to_owned()))?;
        return Ok(empty(StatusCode::OK));
    }
    let given: BTreeMap<String, Value> = under(&mut object(call.body)?, "meta", BODY)?;
    let given: Metadata =
        given.into_iter().map(|(k, v)| Ok((k, typed(v)?))).collect::<Result<_, Refusal>>()?;
    let given = metadata(Some(given))?.unwrap_or_default();
    let Some(value) = given.get(key).filter(|_| given.len() == 1).cloned() else {
        return Err(Refusal::new(MISMATCH, format!("\"meta\" holds {key:?} and nothing else")));
    };
    check(scope, &given)?;
    owner.find(scope)?.change(scope, Change::Merge(given))?;
    Ok(json(StatusCode::OK, &meta(value)))
}

/// What can be said about pairs before anything was looked up.
fn check(scope: &Scope<'_>, pairs: &Pairs) -> Result<(), Refusal> {
    let update = VolumeUpdate::new().metadata(pairs.clone());
    update.check(scope.pool.limits()).map_err(Refusal::from)
}
