//! What running backups count on, so that a sweep leaves it alone.
//!
//! A pool has one writer, and only that writer puts and deletes what belongs to the pool in a target. So it is
//! enough that this process knows what it is doing:
//!
//! - C1 A backup claims an object before it decides whether the target has it, and the claim lasts until its
//!   manifest is put, or it has given up.
//! - C2 A sweep deletes an object only while nobody can claim it, and only if nobody has. Whoever claims it later
//!   learns that it was swept, whatever an older listing says.
//! - C3 What is claimed while a sweep runs stays claimed until the sweep is over: the sweep may have read the
//!   manifests before that of the claimant was put.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;

/// The digest that names an object.
type Key = [u8; 32];

#[derive(Default)]
pub(crate) struct Claims {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    running: HashMap<u64, HashSet<Key>>,
    /// Claims of those who came to their end while a sweep runs (C3).
    outlived: Vec<HashSet<Key>>,
    sweeping: bool,
    /// Deleted since the oldest running backup began.
    swept: HashSet<Key>,
}

/// What a claim has told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Claimed {
    /// This claimant had it already.
    Before,
    /// It is as the target lists it.
    Fresh,
    /// It was deleted, perhaps after the listing.
    Swept,
}

impl Claims {
    /// Begins to claim. The claimant lists the target only after this.
    pub(crate) fn begin(self: &Arc<Self>) -> Claimant {
        let mut state = self.state.lock();
        let id = state.next;
        state.next += 1;
        state.running.insert(id, HashSet::new());
        Claimant { claims: Arc::clone(self), id }
    }

    /// Begins a sweep; `None` while another runs. The sweep reads the manifests only after this.
    pub(crate) fn sweep(self: &Arc<Self>) -> Option<Sweeping> {
        let mut state = self.state.lock();
        if state.sweeping {
            return None;
        }
        state.sweeping = true;
        Some(Sweeping { claims: Arc::clone(self) })
    }
}

/// A backup that counts on objects; ends when dropped.
pub(crate) struct Claimant {
    claims: Arc<Claims>,
    id: u64,
}

impl Claimant {
    pub(crate) fn claim(&self, key: Key) -> Claimed {
        let mut state = self.claims.state.lock();
        let swept = state.swept.contains(&key);
        match state.running.get_mut(&self.id).map(|keys| keys.insert(key)) {
            Some(false) => Claimed::Before,
            _ if swept => Claimed::Swept,
            _ => Claimed::Fresh,
        }
    }
}

impl Drop for Claimant {
    fn drop(&mut self) {
        let mut state = self.claims.state.lock();
        let keys = state.running.remove(&self.id);
        if state.sweeping {
            state.outlived.extend(keys);
        }
        if state.running.is_empty() {
            state.swept = HashSet::new();
        }
    }
}

/// A sweep; ends when dropped.
pub(crate) struct Sweeping {
    claims: Arc<Claims>,
}

impl Sweeping {
    /// Runs `delete` unless somebody has claimed the object; `None` then.
    pub(crate) fn delete<T>(&self, key: Key, delete: impl FnOnce() -> T) -> Option<T> {
        // Held while the target works: a claim made meanwhile must not be answered too early (C2).
        let mut state = self.claims.state.lock();
        let claimed = |keys: &HashSet<Key>| keys.contains(&key);
        if state.running.values().any(claimed) || state.outlived.iter().any(claimed) {
            return None;
        }
        if !state.running.is_empty() {
            state.swept.insert(key);
        }
        Some(delete())
    }
}

impl Drop for Sweeping {
    fn drop(&mut self) {
        let mut state = self.claims.state.lock();
        state.sweeping = false;
        state.outlived = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Key = [1; 32];
    const B: Key = [2; 32];

    #[test]
    fn a_sweep_spares_what_is_claimed_even_by_those_who_are_done() {
        let claims = Arc::new(Claims::default());
        let backup = claims.begin();
        assert_eq!((backup.claim(A), backup.claim(A)), (Claimed::Fresh, Claimed::Before));
        let sweep = claims.sweep().unwrap();
        assert!(claims.sweep().is_none());
        assert_eq!(sweep.delete(A, || ()), None);
        assert_eq!(sweep.delete(B, || ()), Some(()));
        assert_eq!(backup.claim(B), Claimed::Swept);
        drop(backup);
        assert_eq!((sweep.delete(A, || ()), sweep.delete(B, || ())), (None, None));
        drop(sweep);
        let sweep = claims.sweep().unwrap();
        assert_eq!(sweep.delete(A, || ()), Some(()));
        // Nobody runs: nothing needs to be remembered.
        assert!(claims.state.lock().swept.is_empty());
    }
}
