//! Hydration: what the pool still lacks of a base is brought in, once for all that lie over it.
//!
//! - Y1 It fills holes and nothing else (B2 of `commit::lower`), so it can be stopped, cut off and begun again.
//! - Y2 While it runs it is a user of the base: an ephemeral copy of nothing, which the next open removes. So the base
//!   does not go under it, and goes with it when everything else is gone.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use serde::Serialize;

use crate::commit::{Base, base_key};
use crate::error::{Error, Result, StateRule};
use crate::pool::batch::Batch;
use crate::pool::catalogue;
use crate::pool::pool::{Inner, Pool};
use crate::units::{BLOCK_BYTES, BaseId, ObjectId};

use super::Running;

/// How far a base has come on its way into the pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[non_exhaustive]
pub struct Hydration {
    /// Bytes of the base that the pool has without a gap, from its start.
    pub position: u64,
    /// Size of the base in bytes.
    pub size_bytes: u64,
}

impl Pool {
    /// Brings what the pool still lacks of a base in, while everything over it is used as before, and notes that
    /// nothing from outside is needed any more; durable on return. Zeroes take no space. On a base that is complete
    /// it returns at once. To do this in the background, call it on a thread, or
    /// [`hydrate_in_background`](Self::hydrate_in_background).
    ///
    /// `progress` is called after every MiB at the most; when it answers `Break` the call ends with `Cancelled`. What
    /// has come so far stays, and the next call goes on behind it; so it does after a crash.
    ///
    /// # Errors
    /// `NotFound`, also when the last that lay over it was deleted meanwhile; `InvalidState` when it was not handed
    /// over; `Busy` while it is being hydrated; `Cancelled`; `Refused` when it does not have the checksums that were
    /// given; `Io` when it cannot be read; `OutOfSpace`, `ReadOnly`, `Poisoned`, `Closed`.
    pub fn hydrate(&self, id: BaseId, mut progress: impl FnMut(Hydration) -> ControlFlow<()>) -> Result<()> {
        match Work::begin(&self.inner, id)? {
            Some(work) => work.run(&mut progress),
            // Whether it could be done at all is asked in any case.
            None => self.inner.transact(|_| Ok(())),
        }
    }

    /// [Hydrates](Self::hydrate) on a thread of its own. [`base`](Self::base) says how far it is.
    ///
    /// # Errors
    /// As [`hydrate`](Self::hydrate) before it begins; `Io` when no thread can be had. What goes wrong later is what
    /// [`Hydrating::wait`] returns.
    pub fn hydrate_in_background(&self, id: BaseId) -> Result<Hydrating> {
        let stop = Arc::new(AtomicBool::new(false));
        let Some(work) = Work::begin(&self.inner, id)? else { return Ok(Hydrating { stop, thread: None }) };
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("snapvol hydrate".into())
            .spawn(move || {
                work.run(&mut |_| match stopped.load(Ordering::Relaxed) {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                })
            })
            .map_err(|source| Error::Io { op: "start of a thread", offset: 0, len: 0, source })?;
        Ok(Hydrating { stop, thread: Some(thread) })
    }
}

/// A hydration that runs on a thread of its own. Dropping it stops the hydration; what has come stays.
#[derive(Debug)]
#[must_use = "dropping it stops the hydration"]
pub struct Hydrating {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Hydrating {
    /// Waits until the base is complete.
    ///
    /// # Errors
    /// What ended the hydration, as [`Pool::hydrate`].
    pub fn wait(mut self) -> Result<()> {
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(done)) => done,
            // A panic of ours is nothing to hide.
            Some(Err(panic)) => std::panic::resume_unwind(panic),
        }
    }

    /// Stops and waits until nothing runs any more. What has come stays.
    pub fn cancel(self) {}
}

impl Drop for Hydrating {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Nobody is left to hear what it says.
            let _ = thread.join();
        }
    }
}

/// A hydration that runs.
struct Work {
    inner: Arc<Inner>,
    id: BaseId,
    base: Arc<Base>,
    size_bytes: u64,
    /// Its place among the users (Y2).
    user: ObjectId,
    /// It is no user any more.
    gone: bool,
    _alone: Alone,
}

/// The right to hydrate a base; one at a time has it.
struct Alone {
    running: Running,
    id: BaseId,
}

impl Alone {
    fn enter(inner: &Inner, id: BaseId) -> Result<Self> {
        let running = Arc::clone(&inner.hydrating);
        if running.lock().insert(id) {
            return Ok(Self { running, id });
        }
        Err(Error::Busy { object: "base", id: id.to_string(), why: "it is being hydrated" })
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        self.running.lock().remove(&self.id);
    }
}

impl Work {
    /// `None` when there is nothing to do.
    fn begin(inner: &Arc<Inner>, id: BaseId) -> Result<Option<Self>> {
        let record = inner.need_base_record(&*inner.engine, id)?;
        if record.complete {
            return Ok(None);
        }
        let alone = Alone::enter(inner, id)?;
        let user = inner.transact(|batch| {
            let user = ObjectId(batch.claim_id("ephemeral copy", None)?.into_bytes());
            batch.stage(|stage| {
                catalogue::insert_ephemeral(stage, user);
                Ok(())
            })?;
            batch.lay_over(user, id)?;
            Ok(user)
        })?;
        // It cannot go from here on.
        let base = inner.engine.base(id.object())?.ok_or_else(|| Error::not_found("base", id))?;
        let inner = Arc::clone(inner);
        let work = Self { inner, id, base, size_bytes: record.size_bytes, user, gone: false, _alone: alone };
        if !work.base.is_supplied() {
            return Err(Error::InvalidState {
                object: "base",
                id: id.to_string(),
                status: "not handed over",
                op: "hydrate",
                rule: StateRule::Status,
            });
        }
        Ok(Some(work))
    }

    fn run(mut self, each: &mut dyn FnMut(Hydration) -> ControlFlow<()>) -> Result<()> {
        let engine = &self.inner.engine;
        while let Some(filled) = engine.fill_base(&self.base)? {
            let (position, size_bytes) = ((filled * BLOCK_BYTES).min(self.size_bytes), self.size_bytes);
            if each(Hydration { position, size_bytes }).is_break() {
                return Err(Error::Cancelled { op: "hydrate" });
            }
            if engine.users_of(self.id.object(), 2)? == [self.user] {
                return Err(Error::not_found("base", self.id));
            }
        }
        // X7: durable together with the last block. The place among the users goes in the same step, so that nothing
        // can fail behind it.
        self.inner.transact(|batch| {
            let record = self.inner.need_base_record(batch.table(), self.id)?;
            batch.stage(|stage| {
                stage.put(base_key(self.id.object()), record.completed().encode());
                Ok(())
            })?;
            self.leave(batch)
        })?;
        self.gone = true;
        self.base.let_go();
        Ok(())
    }

    fn leave(&self, batch: &mut Batch<'_>) -> Result<()> {
        batch.stage(|stage| {
            catalogue::remove_ephemeral(stage, self.user);
            Ok(())
        })?;
        batch.trash_unwatched(self.user)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if !self.gone {
            // If this fails it stays until the pool is opened the next time.
            let _ = self.inner.transact(|batch| self.leave(batch));
        }
    }
}
