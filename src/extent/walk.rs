//! Walks.
use super::Map;
use crate::error::Result;
use crate::node::Store;
use std::ops::Range;
/// Stub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) enum ChangeKind {
    Data,
    Zero,
    Hole,
}
pub(crate) fn next_change(
    _s: &Store,
    _a: &Map,
    _b: &Map,
    _f: u64,
    _l: u64,
) -> Result<Option<(Range<u64>, ChangeKind)>> {
    Ok(None)
}
