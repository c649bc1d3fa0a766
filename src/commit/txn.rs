//! Catalogue transactions: validated and staged, then applied at one instant, durable on return.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::bases;
use super::catalogue::{self, TABLE_TRASH, object_key};
use super::engine::{Engine, internal_number};
use super::log::{Halt, step_bytes};
use super::reclaim::TrashState;
use crate::alloc::GROWTH_QUARTERS;
use crate::error::{Corruption, Error, Limited, Result};
use crate::extent::Map;
use crate::format::record::{MAX_STEPS, Step};
use crate::memory;
use crate::trace::event;
use crate::units::{BLOCK_BYTES, ObjectId};

/// What one transaction is going to do. Reads see what it has staged.
pub(crate) struct Txn<'e> {
    engine: &'e Engine,
    staged: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    steps: Vec<Step>,
    trashed: Vec<ObjectId>,
    /// Something that was staged found no memory: there is no transaction then.
    refused: Option<Error>,
    /// Bytes by which the catalogue grows.
    grows: i64,
}

impl Txn<'_> {
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        match self.staged.get(key) {
            Some(value) => Ok(value.clone()),
            None => self.engine.get(key),
        }
    }

    /// Visits pairs in `from..to` in order, staged ones included, until `each` says false.
    pub(crate) fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        reverse: bool,
        each: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<()> {
        let mut staged = Vec::new();
        for pair in self.staged.range(from.to_vec()..to.to_vec()) {
            memory::push(&mut staged, pair)?;
        }
        if reverse {
            staged.reverse();
        }
        let mut staged = staged.into_iter().peekable();
        let before = |a: &[u8], b: &[u8]| if reverse { a > b } else { a < b };
        let mut go_on = true;
        self.engine.scan(from, to, reverse, &mut |key, value| {
            while let Some((k, v)) = staged.next_if(|(k, _)| before(k, key)) {
                if let Some(v) = v {
                    go_on = each(k, v);
                    if !go_on {
                        return false;
                    }
                }
            }
            go_on = match staged.next_if(|(k, _)| k.as_slice() == key) {
                Some((_, Some(v))) => each(key, v),
                Some((_, None)) => true,
                None => each(key, value),
            };
            go_on
        })?;
        for (k, v) in staged {
            if !go_on {
                break;
            }
            if let Some(v) = v {
                go_on = each(k, v);
            }
        }
        Ok(())
    }

    pub(crate) fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        // The engine's own entries are part of giving back.
        if key.first() != Some(&TABLE_TRASH) {
            self.grows += pair_bytes(&key, &value) - self.bytes_of(&key);
        }
        self.step(Step::Put(key.clone(), value.clone()));
        self.staged.insert(key, Some(value));
    }

    pub(crate) fn delete(&mut self, key: Vec<u8>) {
        self.grows -= self.bytes_of(&key);
        self.step(Step::Delete(key.clone()));
        self.staged.insert(key, None);
    }

    /// What a pair takes by now. One that cannot be looked up counts as none.
    fn bytes_of(&self, key: &[u8]) -> i64 {
        self.get(key).ok().flatten().map_or(0, |value| pair_bytes(key, &value))
    }

    fn step(&mut self, step: Step) {
        let kept = memory::push(&mut self.steps, step);
        self.refused = self.refused.take().or(kept.err());
    }

    /// Shares the map of `from`, and the base below it, with `to`, in constant time.
    pub(crate) fn copy_map(&mut self, to: ObjectId, from: ObjectId) -> Result<()> {
        self.copy_over(to, from)?;
        self.step(Step::CopyMap(to, from));
        Ok(())
    }

    /// Queues the map of `id` for reclaim. The object must not be used any more. Returns the base that goes with
    /// it, if it was the last over one.
    pub(crate) fn trash(&mut self, id: ObjectId) -> Result<Option<ObjectId>> {
        let base = self.leave_base(id)?;
        self.trash_map(id);
        if let Some(base) = base {
            self.trash_map(base);
        }
        Ok(base)
    }

    pub(super) fn trash_map(&mut self, id: ObjectId) {
        let number = self.engine.next_number();
        self.put(object_key(TABLE_TRASH, id), catalogue::trash_value(number, false));
        let kept = memory::push(&mut self.trashed, id);
        self.refused = self.refused.take().or(kept.err());
    }

    /// Queues the present map of `id` for reclaim; `id` is about to get another.
    pub(crate) fn trash_copy_of(&mut self, id: ObjectId) -> ObjectId {
        let fresh = self.engine.internal_id();
        self.steps.push(Step::CopyMap(fresh, id));
        self.trash_map(fresh);
        fresh
    }

    /// Advances the snapshot epoch: what is written from here on is younger than any snapshot of now.
    pub(crate) fn next_epoch(&mut self) {
        self.step(Step::NextEpoch);
    }
}

fn pair_bytes(key: &[u8], value: &[u8]) -> i64 {
    (4 + key.len() + value.len()) as i64
}

impl Engine {
    /// Runs `build` with the catalogue at rest, then applies what it staged: all of it or nothing, at one
    /// instant, durable on return together with everything acknowledged before.
    pub(crate) fn transact<T>(&self, build: impl FnOnce(&mut Txn<'_>) -> Result<T>) -> Result<T> {
        // Only transactions change the catalogue: what `build` has validated stays true until the commit,
        // whatever checkpoint must come in between to make room.
        let _one = self.transaction.lock();
        self.writable()?;
        if self.dirty_pages() >= self.space.dirty_limit {
            // As writers do. If it cannot be made, whoever depends on it will say so; a deletion may yet help.
            let _: Result<()> = self.checkpoint_when(|e| e.dirty_pages() >= e.space.dirty_limit);
            self.writable()?;
        }
        let mut txn = Txn {
            engine: self,
            staged: BTreeMap::new(),
            steps: Vec::new(),
            trashed: Vec::new(),
            refused: None,
            grows: 0,
        };
        let value = build(&mut txn)?;
        let Txn { mut steps, trashed, grows, refused, .. } = txn;
        if let Some(error) = refused {
            return Err(error);
        }
        bases::links_first(&mut steps);
        let bytes: u64 = steps.iter().map(step_bytes).sum();
        let limit = self.steps_limit();
        if bytes > limit {
            return Err(Error::LimitExceeded { what: Limited::TransactionBytes, limit });
        }
        if steps.len() > MAX_STEPS {
            return Err(Error::LimitExceeded { what: Limited::TransactionSteps, limit: MAX_STEPS as u64 });
        }
        if steps.is_empty() {
            return Ok(value);
        }
        if grows > 0 {
            // Two copies of leaves that may be half full, and of those that are changed.
            let fresh = 4 * (grows as u64).div_ceil(BLOCK_BYTES);
            let changed = (2 * steps.len() as u64).min(self.space.metadata_blocks());
            self.room_for_metadata(GROWTH_QUARTERS, fresh + changed)?;
        }
        // Registered before the commit: once it is visible, the background may reclaim it at any time.
        self.trash.lock().extend(trashed.iter().map(|id| (*id, TrashState::default())));
        loop {
            let mut log = self.log.lock();
            self.writable()?;
            match self.commit(&mut log, 0, &steps, true, None) {
                Ok(()) => break,
                Err(Halt::Failed(e)) => return Err(e),
                Err(Halt::LogFull) => drop(log),
            }
            self.checkpoint()?;
        }
        event!(steps = steps.len(), deleted = trashed.len(), "catalogue transaction durable");
        if !trashed.is_empty() {
            self.wake();
        }
        Ok(value)
    }

    /// Map part of a step; the caller holds the gate.
    pub(super) fn apply_map_step(&self, step: &Step) -> Result<()> {
        match step {
            Step::CopyMap(to, from) => {
                let tree = self.object(*from)?.map.read().tree.clone();
                self.set_map(*to, tree)
            }
            Step::ClearMap(id) => self.set_map(*id, Map::empty()),
            Step::NextEpoch => {
                self.epoch.fetch_add(1, Ordering::AcqRel);
                Ok(())
            }
            Step::Put(..) | Step::Delete(_) => Ok(()),
        }
    }

    fn set_map(&self, id: ObjectId, tree: Map) -> Result<()> {
        if let Some(n) = internal_number(id) {
            if n >= 1 << 62 {
                return Err(Corruption::new("record", 0, "internal id", "below 2^62", n).into());
            }
            self.internal_ids.fetch_max(n + 1, Ordering::Relaxed);
        }
        let object = self.object(id)?;
        let mut map = object.map.write();
        object.replace_map(&mut map, tree);
        self.mark_changed(&object, &mut map.changed);
        drop(map);
        self.objects.lock().entry(id).or_insert_with(|| Arc::clone(&object));
        Ok(())
    }

    pub(super) fn apply_catalogue_step(&self, step: &Step) -> Result<()> {
        let (key, value) = match step {
            Step::Put(key, value) => (key, Some(value.as_slice())),
            Step::Delete(key) => (key, None),
            _ => return Ok(()),
        };
        if let (Some(&TABLE_TRASH), Some(value)) = (key.first(), value) {
            // Replay: numbers go on behind those that the log has seen.
            let (number, _) = catalogue::parse_trash(value)?;
            self.internal_ids.fetch_max(number, Ordering::Relaxed);
        }
        catalogue::set(&mut self.catalogue.write(), &self.store, &self.dirtied, key, value)?;
        self.apply_base_step(key, value)
    }
}
