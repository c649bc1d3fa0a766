//! Locks and atomics of everything that threads share: `parking_lot` and `std`, and nothing else.
//!
//! Under `--cfg snapvol_shuttle` they are those of the model checker instead, so that the tests in `tests/models/` run
//! the engine itself in many orders of its threads, and not a copy of it. Counters and whatever else may be read
//! late without harm stay with `std`: every atomic here is a point at which a model changes threads.

#[cfg(snapvol_shuttle)]
pub(crate) use model::*;
#[cfg(not(snapvol_shuttle))]
pub(crate) use plain::*;

#[cfg(not(snapvol_shuttle))]
mod plain {
    use std::cell::Cell;

    pub(crate) use parking_lot::lock_api::RawRwLock as RawLock;
    pub(crate) use parking_lot::{Condvar, Mutex, RawRwLock, RwLock, RwLockReadGuard};
    pub(crate) use std::hint::spin_loop;
    pub(crate) use std::sync::atomic;
    pub(crate) use std::thread::yield_now;

    /// A lock without a guard.
    pub(crate) fn raw_lock() -> RawRwLock {
        RawRwLock::INIT
    }

    /// A small number of this thread's own.
    pub(crate) fn thread_number() -> usize {
        static NEXT: atomic::AtomicUsize = atomic::AtomicUsize::new(0);
        thread_local!(static MINE: Cell<usize> = const { Cell::new(usize::MAX) });
        MINE.with(|mine| {
            if mine.get() == usize::MAX {
                mine.set(NEXT.fetch_add(1, atomic::Ordering::Relaxed));
            }
            mine.get()
        })
    }
}

/// The same names over shuttle, whose locks are shaped like those of `std`.
#[cfg(snapvol_shuttle)]
mod model {
    use std::ops::{Deref, DerefMut};
    use std::sync::PoisonError;
    use std::time::Duration;

    pub(crate) use shuttle::hint::spin_loop;
    pub(crate) use shuttle::sync::{RwLockReadGuard, RwLockWriteGuard, atomic};
    pub(crate) use shuttle::thread::yield_now;

    pub(crate) fn raw_lock() -> RawRwLock {
        RawRwLock::default()
    }

    pub(crate) fn thread_number() -> usize {
        usize::from(shuttle::current::me())
    }

    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

    /// Can be taken apart for the time of a wait.
    pub(crate) struct MutexGuard<'a, T>(Option<shuttle::sync::MutexGuard<'a, T>>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(shuttle::sync::Mutex::new(value))
        }
        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            MutexGuard(Some(self.0.lock().unwrap_or_else(PoisonError::into_inner)))
        }
        pub(crate) fn is_locked(&self) -> bool {
            self.0.try_lock().is_err()
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;
        fn deref(&self) -> &T {
            match &self.0 {
                Some(guard) => guard,
                None => unreachable!("nobody looks while the guard waits"),
            }
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            match &mut self.0 {
                Some(guard) => guard,
                None => unreachable!("nobody looks while the guard waits"),
            }
        }
    }

    #[derive(Debug, Default)]
    pub(crate) struct RwLock<T>(shuttle::sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(shuttle::sync::RwLock::new(value))
        }
        pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0.read().unwrap_or_else(PoisonError::into_inner)
        }
        pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0.write().unwrap_or_else(PoisonError::into_inner)
        }
    }

    #[derive(Debug, Default)]
    pub(crate) struct Condvar(shuttle::sync::Condvar);

    impl Condvar {
        pub(crate) fn new() -> Self {
            Self::default()
        }
        pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
            if let Some(inner) = guard.0.take() {
                guard.0 = Some(self.0.wait(inner).unwrap_or_else(PoisonError::into_inner));
            }
        }
        pub(crate) fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, _: Duration) {
            // Time does not pass in a model: whoever waits for it has waited long enough.
            if let Some(inner) = guard.0.take() {
                drop(inner);
                yield_now();
            }
        }
        pub(crate) fn notify_one(&self) {
            self.0.notify_one();
        }
        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }
    }

    /// What the slots of buffers have.
    pub(crate) trait RawLock {}

    /// A lock without a guard: how many read, or -1 for a writer.
    #[derive(Default)]
    pub(crate) struct RawRwLock {
        state: shuttle::sync::Mutex<isize>,
        moved: shuttle::sync::Condvar,
    }

    impl RawRwLock {
        pub(crate) fn lock_exclusive(&self) {
            self.take(|state| *state == 0, -1);
        }
        pub(crate) fn lock_shared(&self) {
            self.take(|state| *state >= 0, 1);
        }
        /// As unsafe as the plain one, so that callers are the same.
        pub(crate) unsafe fn unlock_exclusive(&self) {
            self.give(1);
        }
        /// As above.
        pub(crate) unsafe fn unlock_shared(&self) {
            self.give(-1);
        }

        fn take(&self, free: impl Fn(&isize) -> bool, by: isize) {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            while !free(&state) {
                state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            *state += by;
        }
        fn give(&self, by: isize) {
            *self.state.lock().unwrap_or_else(PoisonError::into_inner) += by;
            self.moved.notify_all();
        }
    }
}
