//! Work that nobody waits for: early writes of full buffers, syncs of old data, proofs, checkpoints, reclaim.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::engine::Engine;
use super::pins::Tally;
use crate::error::Result;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Condvar, Mutex};

/// Data without a sync that makes the background flush.
const UNSYNCED_BYTES: u64 = 32 << 20;
/// How long the worker sleeps when nothing happens; a proof follows a flush by about this much.
const NAP: Duration = Duration::from_millis(5);
const LONG_NAP: Duration = Duration::from_millis(250);
/// How long what was deleted waits at most for a nap without commits: those who snapshot, roll back and delete in
/// quick succession do not wait for the syncs of a checkpoint after each. Whoever waits for the space, or needs it,
/// makes the checkpoint at once.
const RECLAIM_WAIT: Duration = Duration::from_millis(500);

#[derive(Default)]
pub(super) struct Counters {
    pub(super) reads: Tally,
    pub(super) writes: Tally,
    pub(super) flushes: AtomicU64,
    pub(super) commits: AtomicU64,
    pub(super) syncs: AtomicU64,
    pub(super) checkpoints: AtomicU64,
    pub(super) checkpoint_nodes: AtomicU64,
    pub(super) checkpoint_bytes: AtomicU64,
    pub(super) log_bytes: AtomicU64,
    pub(super) reclaimed_bytes: AtomicU64,
    /// Pieces of the reclaim queue dealt with, by any checkpoint.
    pub(super) reclaim_steps: AtomicU64,
}

/// What a pool has done since it was opened, and what it holds now.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Read calls on disks.
    pub reads: u64,
    /// Write calls on disks.
    pub writes: u64,
    /// Flush calls, shared ones included.
    pub flushes: u64,
    /// Commits written to the log.
    pub commits: u64,
    /// Syncs of the device.
    pub syncs: u64,
    /// Checkpoints completed.
    pub checkpoints: u64,
    /// Bytes of metadata that checkpoints wrote.
    pub checkpoint_bytes: u64,
    /// Bytes written to the log.
    pub log_bytes: u64,
    /// Bytes that reclaim gave back.
    pub reclaimed_bytes: u64,
    /// Metadata blocks read from the device.
    pub metadata_reads: u64,
    /// Reads of a damaged first copy that the second copy served.
    pub second_copies: u64,
    /// Damaged checksum pages that were computed again from the data.
    pub rebuilt_pages: u64,
    /// Clean nodes and pages in the cache, in bytes.
    pub cached_bytes: u64,
    /// Nodes changed since the last checkpoint.
    pub dirty_nodes: u64,
    /// Log blocks in use.
    pub log_used_blocks: u64,
    /// Generation of the newest durable checkpoint.
    pub generation: u64,
}

#[derive(Default)]
pub(super) struct Wake {
    asked: Mutex<bool>,
    bell: Condvar,
    stop: AtomicBool,
}

impl Engine {
    pub(crate) fn stats(&self) -> Stats {
        let get = |c: &AtomicU64| c.load(Ordering::Relaxed);
        let c = &self.counters;
        let (log_used_blocks, generation) = {
            let log = self.log.lock();
            (log.used, log.generation)
        };
        Stats {
            reads: c.reads.sum(),
            writes: c.writes.sum(),
            flushes: get(&c.flushes),
            commits: get(&c.commits),
            syncs: get(&c.syncs),
            checkpoints: get(&c.checkpoints),
            checkpoint_bytes: get(&c.checkpoint_bytes),
            log_bytes: get(&c.log_bytes),
            reclaimed_bytes: get(&c.reclaimed_bytes),
            metadata_reads: get(&self.store.fetched),
            second_copies: get(&self.store.second_copies),
            rebuilt_pages: get(&self.store.rebuilt_pages),
            cached_bytes: self.store.cached_bytes(),
            dirty_nodes: get(&self.dirtied),
            log_used_blocks,
            generation,
        }
    }

    /// Nodes and pages that the next checkpoint has to write.
    pub(super) fn dirty_pages(&self) -> u64 {
        self.dirtied.load(Ordering::Relaxed) + self.space.touched_chunks()
    }

    /// Asks the background for attention.
    pub(super) fn wake(&self) {
        if self.config.background {
            let mut asked = self.wake.asked.lock();
            if !*asked {
                *asked = true;
                self.wake.bell.notify_one();
            }
        }
    }

    /// Full buffers leave early: in the background, or, when it does not keep up or there is none, here.
    pub(super) fn hurry_buffers(&self) -> Result<()> {
        if self.config.background {
            self.wake();
        }
        if self.buffers.is_pressed() {
            self.buffers.write_full(&*self.device, self.buffers.has_full().saturating_sub(1))?;
        }
        Ok(())
    }

    /// One piece of background work. False when there was nothing to do.
    pub(crate) fn step(&self, budget: usize) -> Result<bool> {
        self.writable()?;
        let mut did = false;
        for _ in 0..budget.max(1) {
            if !self.step_once(true, true)? {
                break;
            }
            did = true;
        }
        Ok(did)
    }

    /// `quiet`: no commit was made for a while, so a proof is worth its write. `reclaim`: what was deleted has waited
    /// long enough.
    fn step_once(&self, quiet: bool, reclaim: bool) -> Result<bool> {
        self.buffers.want(&*self.device);
        if self.buffers.has_full() > 0 {
            self.buffers.write_full(&*self.device, 0)?;
        }
        if self.buffers.unsynced.load(Ordering::Relaxed) >= UNSYNCED_BYTES {
            self.flush()?;
            return Ok(true);
        }
        if self.space.grow_ahead()? {
            return Ok(true);
        }
        if quiet && self.prove()? {
            return Ok(true);
        }
        let half_log = self.log.lock().used > self.space.geometry.log_blocks / 2;
        let half_cache = self.dirty_pages() > self.space.dirty_limit / 2;
        if half_log || half_cache || (reclaim && self.reclaim_pending()?) {
            self.checkpoint()?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Starts the worker, if the opener wants one.
    pub(super) fn start(self) -> Arc<Self> {
        let engine = Arc::new(self);
        if engine.config.background && !engine.is_read_only() {
            let weak = Arc::downgrade(&engine);
            let thread = std::thread::Builder::new().name("snapvol".into()).spawn(move || work(&weak));
            // Without a thread the writers do everything themselves when limits ask for it.
            *engine.worker.lock() = thread.ok();
        }
        engine
    }

    pub(super) fn stop_worker(&self) {
        self.wake.stop.store(true, Ordering::SeqCst);
        self.wake.bell.notify_all();
        if let Some(thread) = self.worker.lock().take()
            && thread.thread().id() != std::thread::current().id()
        {
            // A worker that panicked has nothing left to say: the caller's own calls will tell.
            let _ = thread.join();
        }
    }
}

fn work(weak: &Weak<Engine>) {
    let mut nap = NAP;
    let mut quiet = 0u32;
    let mut calm = Instant::now();
    loop {
        let Some(engine) = weak.upgrade() else { return };
        let cuts = engine.cuts.load(Ordering::Relaxed);
        {
            let mut asked = engine.wake.asked.lock();
            if !*asked && !engine.wake.stop.load(Ordering::SeqCst) {
                engine.wake.bell.wait_for(&mut asked, nap);
            }
            *asked = false;
        }
        if engine.wake.stop.load(Ordering::SeqCst) {
            return;
        }
        let still = engine.cuts.load(Ordering::Relaxed) == cuts;
        if !still {
            // Whatever is to follow the commit follows after a short nap.
            (nap, quiet) = (NAP, 0);
        }
        let reclaim = still || calm.elapsed() >= RECLAIM_WAIT;
        if reclaim {
            calm = Instant::now();
        }
        match engine.writable().and_then(|()| engine.step_once(still, reclaim)) {
            Ok(true) => (nap, quiet) = (NAP, 0),
            // An error here is not lost: it latched the pool, or the next caller meets it again.
            Ok(false) | Err(_) => {
                quiet += 1;
                if quiet > 4 {
                    nap = LONG_NAP;
                }
                if quiet == 8 {
                    // Idle for a second or two: a checkpoint keeps the next open short.
                    let _ = engine.idle_checkpoint();
                }
            }
        }
    }
}

impl Engine {
    fn idle_checkpoint(&self) -> Result<()> {
        let busy = { self.log.lock().used > 0 } || !self.changed.lock().is_empty();
        if busy { self.checkpoint() } else { Ok(()) }
    }
}
