//! Readers in flight: who may still look at blocks that a checkpoint gives back.

use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{spin_loop, thread_number, yield_now};

/// Few under a model, where each costs steps.
const SHARDS: usize = if cfg!(snapvol_shuttle) { 2 } else { 16 };

#[derive(Default)]
#[repr(align(128))]
struct Shard {
    /// Readers that entered under even and odd epochs.
    inside: [AtomicU64; 2],
}

/// Counts readers by epoch. A reader that entered before [`wait`](Self::wait) was called has left when it
/// returns; one that enters later cannot see what was current before.
#[derive(Default)]
pub(crate) struct Pins {
    epoch: AtomicU64,
    shards: [Shard; SHARDS],
}

/// While it lives, no block that was reachable when it was made is handed out again.
pub(crate) struct Pin<'a>(&'a AtomicU64);

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A count to which many threads add and that is rarely read.
#[derive(Default)]
pub(super) struct Tally([Line; SHARDS]);

#[derive(Default)]
#[repr(align(128))]
struct Line(std::sync::atomic::AtomicU64);

impl Tally {
    pub(super) fn add(&self, n: u64) {
        self.0[thread_shard()].0.fetch_add(n, Ordering::Relaxed);
    }
    pub(super) fn sum(&self) -> u64 {
        self.0.iter().map(|line| line.0.load(Ordering::Relaxed)).sum()
    }
}

/// A small number of this thread's own, for whatever is kept per thread.
pub(super) fn thread_shard() -> usize {
    thread_number() % SHARDS
}

impl Pins {
    pub(crate) fn enter(&self) -> Pin<'_> {
        let shard = &self.shards[thread_shard()];
        loop {
            let epoch = self.epoch.load(Ordering::SeqCst);
            let count = &shard.inside[(epoch & 1) as usize];
            count.fetch_add(1, Ordering::SeqCst);
            // If the epoch moved on in between, the waiter may not have seen us: enter again.
            if self.epoch.load(Ordering::SeqCst) == epoch {
                return Pin(count);
            }
            count.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Waits until everybody who is inside now has left. One caller at a time (the checkpoint).
    pub(crate) fn wait(&self) {
        let old = self.epoch.fetch_add(1, Ordering::SeqCst);
        for shard in &self.shards {
            let mut spins = 0u32;
            while shard.inside[(old & 1) as usize].load(Ordering::SeqCst) != 0 {
                spins += 1;
                if spins < 64 { spin_loop() } else { yield_now() }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn wait_outlasts_every_earlier_reader() {
        let pins = Arc::new(Pins::default());
        let left = Arc::new(AtomicBool::new(false));
        let pin = pins.enter();
        let waiter = std::thread::spawn({
            let (pins, left) = (Arc::clone(&pins), Arc::clone(&left));
            move || {
                pins.wait();
                assert!(left.load(Ordering::SeqCst));
            }
        });
        std::thread::sleep(std::time::Duration::from_millis(20));
        let _late = pins.enter();
        left.store(true, Ordering::SeqCst);
        drop(pin);
        waiter.join().unwrap();
    }
}
