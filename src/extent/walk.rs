//! Walks.
use std::ops::Range;
use super::Map;
use crate::node::Store;
use crate::error::Result;
/// Stub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) enum ChangeKind { Data, Zero, Hole }
pub(crate) fn next_change(_s:&Store,_a:&Map,_b:&Map,_f:u64,_l:u64)->Result<Option<(Range<u64>, ChangeKind)>> { Ok(None) }
