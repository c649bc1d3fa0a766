//! Where ids and times come from. Supplied by the opener, so that equal runs give equal pools.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use uuid::Uuid;

/// Mints the ids of pools, volumes and snapshots.
///
/// An id that is taken is refused by the pool and the source is asked again, a few times.
pub trait IdSource: Send + Sync {
    /// A fresh id. Called from several threads.
    fn next_id(&self) -> Uuid;
}

/// Tells the time that records are stamped with.
pub trait Clock: Send + Sync {
    /// Microseconds since 1970-01-01T00:00:00Z. Called from several threads.
    fn now_micros(&self) -> u64;
}

impl fmt::Debug for dyn IdSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdSource")
    }
}

impl fmt::Debug for dyn Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// Random (version 4) ids from the operating system: the default.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemIds;

impl IdSource for SystemIds {
    fn next_id(&self) -> Uuid {
        Uuid::new_v4()
    }
}

/// The wall clock of the system: the default. A clock before 1970 reads 0.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_micros(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }
}

/// Ids in a fixed order: the seed in the upper 64 bits, a counter from 1 in the lower.
#[derive(Debug)]
pub struct SequentialIds {
    seed: u64,
    next: AtomicU64,
}

impl SequentialIds {
    /// Ids that start over at 1. Give each opening of a pool another seed, or ids meet again.
    pub const fn new(seed: u64) -> Self {
        Self { seed, next: AtomicU64::new(1) }
    }
}

impl IdSource for SequentialIds {
    fn next_id(&self) -> Uuid {
        Uuid::from_u64_pair(self.seed, self.next.fetch_add(1, Ordering::Relaxed))
    }
}

/// A clock that advances by a fixed step each time it is asked.
#[derive(Debug)]
pub struct StepClock {
    next_micros: AtomicU64,
    step_micros: u64,
}

impl StepClock {
    /// A clock whose first answer is `start_micros` and each further one `step_micros` later.
    pub const fn new(start_micros: u64, step_micros: u64) -> Self {
        Self { next_micros: AtomicU64::new(start_micros), step_micros }
    }
}

impl Clock for StepClock {
    fn now_micros(&self) -> u64 {
        self.next_micros.fetch_add(self.step_micros, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_equal_ids_and_times() {
        let (a, b) = (SequentialIds::new(7), SequentialIds::new(7));
        assert_eq!((a.next_id(), a.next_id()), (b.next_id(), b.next_id()));
        let clock = StepClock::new(100, 5);
        assert_eq!((clock.now_micros(), clock.now_micros()), (100, 105));
        assert!(SystemClock.now_micros() > 1_000_000_000_000_000);
        assert_ne!(SystemIds.next_id(), SystemIds.next_id());
    }
}
