//! Memory that may be refused: what is longer than 64 KiB, or may become so, is asked for here, and a refusal is an
//! error of the call that asked. Smaller pieces end the process when there are none left, as everywhere in Rust.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};

use crate::error::{Error, Result};

fn refused<T>(items: usize) -> Error {
    Error::OutOfMemory { bytes: items.saturating_mul(size_of::<T>()) as u64 }
}

/// Room for `more` further items, so that pushing them allocates nothing.
#[inline]
pub(crate) fn room<T>(items: &mut Vec<T>, more: usize) -> Result<()> {
    if items.capacity() - items.len() >= more {
        return Ok(());
    }
    items.try_reserve(more).map_err(|_| refused::<T>(items.len() + more))
}

/// Appends an item.
#[inline]
pub(crate) fn push<T>(items: &mut Vec<T>, item: T) -> Result<()> {
    room(items, 1)?;
    items.push(item);
    Ok(())
}

/// Appends the items.
pub(crate) fn extend<T>(items: &mut Vec<T>, more: impl ExactSizeIterator<Item = T>) -> Result<()> {
    room(items, more.len())?;
    items.extend(more);
    Ok(())
}

/// Makes the list `len` items long, with copies of `item` at its end where it was shorter.
pub(crate) fn resize<T: Clone>(items: &mut Vec<T>, len: usize, item: T) -> Result<()> {
    room(items, len.saturating_sub(items.len()))?;
    items.resize(len, item);
    Ok(())
}

/// A place for one more entry, so that inserting it allocates nothing.
#[inline]
pub(crate) fn place<K: Eq + Hash, V, S: BuildHasher>(map: &mut HashMap<K, V, S>) -> Result<()> {
    map.try_reserve(1).map_err(|_| refused::<(K, V)>(map.len() + 1))
}

/// An empty list with room for `len` items.
pub(crate) fn with_room<T>(len: usize) -> Result<Vec<T>> {
    let mut items = Vec::new();
    items.try_reserve_exact(len).map_err(|_| refused::<T>(len))?;
    Ok(items)
}

/// A list of `len` equal items.
pub(crate) fn filled<T: Clone>(item: T, len: usize) -> Result<Vec<T>> {
    let mut items = with_room(len)?;
    items.resize(len, item);
    Ok(items)
}

/// A copy of the items.
pub(crate) fn copied<T: Clone>(items: &[T]) -> Result<Vec<T>> {
    let mut copy = with_room(items.len())?;
    copy.extend_from_slice(items);
    Ok(copy)
}
