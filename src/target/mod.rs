//! Where backups are kept: whole objects under names, and nothing else.

mod claims;
mod folder;

use std::io;

pub(crate) use claims::{Claimant, Claimed, Claims, Sweeping};
pub use folder::LocalFolder;

/// One object in a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Its length in bytes.
    pub len: u64,
}

/// A place outside the pool that keeps backups: a folder, or a bucket of an object store.
///
/// It stores whole objects under names such as `a/b/c`: lower-case letters, digits, `-` and `/`, at most 200 bytes.
/// An object is put, got, listed and deleted as a whole; there is no rename, no append and no lock. Any call may
/// fail, once or for good, and may or may not have had its effect then; whoever called tries again later.
///
/// What this crate relies on:
///
/// - T1 An object is never seen in part: `get` and `list` show the old bytes, the new ones or nothing, while `put`
///   runs and after a crash in it.
/// - T2 Once `put` or `delete` has returned, every `get` and `list` that begins later shows its effect.
/// - T3 Once `sync` has returned, everything that `get` and `list` showed before it survives a crash of the host,
///   and everything that was deleted stays deleted. Where a `put` that returned is durable anyway, as in an object
///   store, `sync` has nothing to do.
///
/// Calls come from several threads.
pub trait BackupTarget: Send + Sync {
    /// Stores an object, in place of the one of that name if there is one.
    ///
    /// # Errors
    /// Whatever the place answers; the object may be there or not.
    fn put(&self, name: &str, bytes: &[u8]) -> io::Result<()>;

    /// The bytes of an object, or `None` where there is none of that name.
    ///
    /// # Errors
    /// `InvalidData` when the object has more than `most_bytes` bytes, without reading them all; whatever the place
    /// answers.
    fn get(&self, name: &str, most_bytes: u64) -> io::Result<Option<Vec<u8>>>;

    /// Some of the objects whose names begin with `prefix`, in ascending order of the bytes of their names, from
    /// the first one behind `after` on. As many as suits the place; none only when none follows.
    ///
    /// # Errors
    /// Whatever the place answers.
    fn list(&self, prefix: &str, after: Option<&str>) -> io::Result<Vec<Listed>>;

    /// Removes an object. One that is not there is no error.
    ///
    /// # Errors
    /// Whatever the place answers; the object may be there or not.
    fn delete(&self, name: &str) -> io::Result<()>;

    /// Makes what `get` and `list` show durable (T3).
    ///
    /// # Errors
    /// Whatever the place answers; nothing is known to be durable then.
    fn sync(&self) -> io::Result<()>;
}

/// Longest name of an object in bytes.
const MAX_NAME_BYTES: usize = 200;

/// Whether this is a name that a target has to know: parts of letters, digits and `-`, apart by single `/`.
fn is_name(name: &str) -> bool {
    let part = |p: &str| {
        !p.is_empty() && p.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    name.len() <= MAX_NAME_BYTES && name.split('/').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_nowhere_else() {
        for good in ["a", "a/b", "0f/1-2/z"] {
            assert!(is_name(good), "{good}");
        }
        let long = "a".repeat(201);
        for bad in ["", "/", "a/", "/a", "a//b", "..", "a/../b", ".a", "A", "a b", "a\0", "ä", &long] {
            assert!(!is_name(bad), "{bad:?}");
        }
    }
}
