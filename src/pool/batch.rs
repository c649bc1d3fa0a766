//! Several operations at one instant, all or nothing; and the one way in which operations happen at all.

use std::sync::Arc;

use uuid::Uuid;

use crate::error::{Error, Result, StateRule, Violation};
use crate::units::{ObjectId, SnapshotId, VolumeId};

use super::attachments::Mark;
use super::catalogue::{self, Stage, Table};
use super::limits::Limits;
use super::pool::{Inner, Pool};
use super::snapshot::Snapshot;
use super::status::VolumeStatus;
use super::volume::Volume;

/// How often the source of ids is asked before a taken id is an error.
const ID_TRIES: usize = 16;

/// Operations that happen together: see [`Pool::batch`].
///
/// Each one sees what those before it did. One that returns an error has done nothing, and the others may
/// still be committed.
pub struct Batch<'a> {
    pub(super) inner: &'a Arc<Inner>,
    /// What the handle that began it allows.
    pub(super) limits: &'a Limits,
    stage: &'a mut dyn Stage,
    effects: Effects,
    /// A map was shared: what is written from now on belongs to the next epoch.
    shares: bool,
    /// Ids whose maps are on their way out; they cannot be given again in the same instant.
    gone: Vec<ObjectId>,
    /// An operation failed when some of it was staged already.
    broken: bool,
}

/// What happens outside the catalogue once the transaction is through.
#[derive(Default)]
pub(super) struct Effects {
    /// Keep newcomers out until then.
    marks: Vec<Mark>,
    sizes: Vec<(ObjectId, u64)>,
    /// Maps on their way out whose progress nobody will ask for.
    unwatched: Vec<ObjectId>,
    /// Reservations that this has completed.
    completed: Vec<(VolumeId, VolumeStatus)>,
}

impl Pool {
    /// Runs several operations as one: after a crash all of them have happened or none, and no write falls
    /// between them. Durable on return, together with everything written before.
    ///
    /// `build` runs while no other operation on the pool's volumes and snapshots can: it must not call the
    /// [`Pool`] itself, nor wait for a thread that does.
    ///
    /// ```
    /// # use snapvol::{CreateOptions, Pool, SnapshotSpec, VolumeSpec};
    /// # let pool = Pool::create_in_memory(CreateOptions::new().limit_bytes(1 << 30))?;
    /// let data = pool.create_volume(VolumeSpec::blank(1 << 20))?.id;
    /// let journal = pool.create_volume(VolumeSpec::blank(1 << 20))?.id;
    /// let (first, second) = pool.batch(|b| {
    ///     let first = b.create_snapshot(data, SnapshotSpec::new())?;
    ///     let second = b.create_snapshot(journal, SnapshotSpec::new())?;
    ///     Ok((first, second))
    /// })?;
    /// assert_eq!(first.epoch, second.epoch);
    /// # Ok::<(), snapvol::Error>(())
    /// ```
    ///
    /// # Errors
    /// The error that `build` returns, without any effect; `ReadOnly`, `OutOfSpace`, `Io`, `Poisoned`, `Closed`.
    pub fn batch<T>(&self, build: impl FnOnce(&mut Batch<'_>) -> Result<T>) -> Result<T> {
        self.transact(build)
    }

    /// As [`batch`](Self::batch), from within the crate.
    pub(super) fn transact<T>(&self, build: impl FnOnce(&mut Batch<'_>) -> Result<T>) -> Result<T> {
        self.inner.transact_within(&self.limits, build)
    }

    /// The volume as it is now.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` when its record is damaged; `Io`, `Closed`.
    pub fn volume(&self, id: VolumeId) -> Result<Volume> {
        let table: &dyn Table = &*self.inner.engine;
        self.inner.describe_volume(table, id, catalogue::need_volume(table, id)?)
    }

    /// The snapshot as it is now.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` when its record is damaged; `Io`, `Closed`.
    pub fn snapshot(&self, id: SnapshotId) -> Result<Snapshot> {
        let table: &dyn Table = &*self.inner.engine;
        self.inner.describe_snapshot(table, id, catalogue::need_snapshot(table, id)?)
    }
}

impl Inner {
    /// A transaction of the pool's own, which no profile limits.
    pub(super) fn transact<T>(
        self: &Arc<Self>,
        build: impl FnOnce(&mut Batch<'_>) -> Result<T>,
    ) -> Result<T> {
        self.transact_within(&Limits::native(), build)
    }

    fn transact_within<T>(
        self: &Arc<Self>,
        limits: &Limits,
        build: impl FnOnce(&mut Batch<'_>) -> Result<T>,
    ) -> Result<T> {
        if self.engine.is_read_only() {
            return Err(Error::ReadOnly { object: "pool" });
        }
        let (value, effects) = self.engine.transact(|txn| {
            let mut batch = Batch {
                inner: self,
                limits,
                stage: txn,
                effects: Effects::default(),
                shares: false,
                gone: Vec::new(),
                broken: false,
            };
            let value = build(&mut batch)?;
            Ok((value, batch.finish()?))
        })?;
        let Effects { marks, sizes, unwatched, completed } = effects;
        self.engine.forget_trash(&unwatched);
        for (id, size_bytes) in sizes {
            self.attachments.grow(id, size_bytes);
        }
        for (id, status) in completed {
            self.jobs.unreserve(id, status);
        }
        // Only now that the records are gone or changed may others look at them.
        drop(marks);
        Ok(value)
    }
}

impl Batch<'_> {
    /// The volume as this batch leaves it so far.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `Io`.
    pub fn volume(&self, id: VolumeId) -> Result<Volume> {
        self.inner.describe_volume(self.table(), id, catalogue::need_volume(self.table(), id)?)
    }

    /// The snapshot as this batch leaves it so far.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `Io`.
    pub fn snapshot(&self, id: SnapshotId) -> Result<Snapshot> {
        self.inner.describe_snapshot(self.table(), id, catalogue::need_snapshot(self.table(), id)?)
    }

    pub(super) fn table(&self) -> &dyn Table {
        self.stage.table()
    }

    pub(super) fn now(&self) -> u64 {
        self.inner.engine.now()
    }

    /// The id asked for, or a fresh one, that names nothing yet (P5).
    pub(super) fn claim_id(&self, object: &'static str, wanted: Option<Uuid>) -> Result<Uuid> {
        if wanted.is_some_and(is_reserved) {
            return Err(Error::invalid(
                "id",
                Violation::Id,
                "ids whose first eight bytes are all 0xff belong to the engine",
            ));
        }
        let mut id = wanted.unwrap_or_else(|| self.inner.engine.new_id());
        for _ in 0..ID_TRIES {
            let key = ObjectId(id.into_bytes());
            let taken = catalogue::taken_by(self.table(), key)?;
            if taken.is_none() && !self.gone.contains(&key) && !is_reserved(id) {
                // A map under this id may still be on its way out; a new one must not meet it.
                if wanted.is_none() || !catalogue::is_leaving(self.table(), key)? {
                    return Ok(id);
                }
                let why = "an object of this id was deleted and its space is not back yet";
                return Err(Error::Busy { object, id: id.to_string(), why });
            }
            if wanted.is_some() {
                return Err(Error::AlreadyExists { object: taken.unwrap_or(object), id: id.to_string() });
            }
            id = self.inner.engine.new_id();
        }
        Err(Error::AlreadyExists { object, id: id.to_string() })
    }

    /// Keeps newcomers away from an object that has to be detached, or says how many are attached.
    pub(super) fn alone(&mut self, id: ObjectId, status: &'static str) -> bool {
        match self.inner.attachments.mark(id, status) {
            Some(mark) => {
                self.effects.marks.push(mark);
                true
            }
            None => false,
        }
    }

    /// Stages the changes of an operation that has been checked. A failure half-way dooms the whole batch.
    pub(super) fn stage<T>(&mut self, change: impl FnOnce(&mut dyn Stage) -> Result<T>) -> Result<T> {
        let done = change(&mut *self.stage);
        self.broken |= done.is_err();
        done
    }

    pub(super) fn share(&mut self, to: ObjectId, from: ObjectId) -> Result<()> {
        self.shares = true;
        self.stage(|stage| stage.copy_map(to, from))
    }

    /// Adds what goes to `ids`: the map, and the base that it was the last to lie over.
    pub(super) fn trash(&mut self, id: ObjectId, ids: &mut Vec<ObjectId>) -> Result<()> {
        let base = self.stage(|stage| stage.trash(id))?;
        let goes = std::iter::once(id).chain(base);
        self.gone.extend(goes.clone());
        ids.extend(goes);
        Ok(())
    }

    /// As [`trash`](Self::trash), and nobody is going to ask how far it is.
    pub(super) fn trash_unwatched(&mut self, id: ObjectId) -> Result<()> {
        let mut ids = Vec::new();
        self.trash(id, &mut ids)?;
        self.effects.unwatched.extend(ids);
        Ok(())
    }

    /// What is written from now on belongs to the next epoch.
    pub(super) fn ended_epoch(&mut self) {
        self.shares = true;
    }

    /// Gives an object the map of another; the one it had goes.
    pub(super) fn replace(&mut self, to: ObjectId, from: ObjectId) -> Result<()> {
        let old = self.stage.trash_copy_of(to);
        self.effects.unwatched.push(old);
        self.share(to, from)
    }

    /// A reservation that is over once the transaction is through.
    pub(super) fn completes(&mut self, id: VolumeId, status: VolumeStatus) {
        self.effects.completed.push((id, status));
    }

    pub(super) fn resized(&mut self, id: ObjectId, size_bytes: u64) {
        self.effects.sizes.push((id, size_bytes));
    }

    fn finish(self) -> Result<Effects> {
        if self.broken {
            return Err(Error::InvalidState {
                object: "batch",
                id: self.inner.engine.uuid().to_string(),
                status: "half staged after an error",
                op: "commit",
                rule: StateRule::Status,
            });
        }
        if self.shares {
            self.stage.next_epoch();
        }
        Ok(self.effects)
    }
}

/// The engine names maps on their way out with such ids; no version of UUID has them.
fn is_reserved(id: Uuid) -> bool {
    id.as_bytes().starts_with(&[0xFF; 8])
}

impl std::fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch").field("broken", &self.broken).finish_non_exhaustive()
    }
}
