//! Memory that may be refused: what is longer than 64 KiB, or may become so, is asked for here, and a refusal is an
//! error of the call that asked. Smaller pieces end the process when there are none left, as everywhere in Rust.

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
