//! Catalogue transactions: validated and staged, then applied at one instant, durable on return.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::bases;
use super::catalogue::{self, TABLE_TRASH, object_key};
use super::engine::{Engine, internal_number};
use super::log::{Halt, step_bytes};
use super::reclaim::TrashState;
use crate::error::{Corruption, Error, Limited, Result};
use crate::extent::Map;
use crate::format::record::{MAX_STEPS, Step};
use crate::trace::event;
use crate::units::ObjectId;

/// What one transaction is going to do. Reads see what it has staged.
pub(crate) struct Txn<'e> {
    engine: &'e Engine,
    staged: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    steps: Vec<Step>,
    trashed: Vec<ObjectId>,
    /// Something is put where nothing was: the catalogue grows.
    grows: bool,
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
        let mut staged: Vec<(&Vec<u8>, &Option<Vec<u8>>)> =
            self.staged.range(from.to_vec()..to.to_vec()).collect();
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
        // What cannot be looked up counts as new; the engine's own entries are part of giving back.
        self.grows |= key.first() != Some(&TABLE_TRASH) && !matches!(self.get(&key), Ok(Some(_)));
        self.steps.push(Step::Put(key.clone(), value.clone()));
        self.staged.insert(key, Some(value));
    }

    pub(crate) fn delete(&mut self, key: Vec<u8>) {
        self.steps.push(Step::Delete(key.clone()));
        self.staged.insert(key, None);
    }

    /// Shares the map of `from`, and the base below it, with `to`, in constant time.
    pub(crate) fn copy_map(&mut self, to: ObjectId, from: ObjectId) -> Result<()> {
        self.copy_over(to, from)?;
        self.steps.push(Step::CopyMap(to, from));
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
        self.trashed.push(id);
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
        self.steps.push(Step::NextEpoch);
    }
}

impl Engine {
    /// Runs `build` with the catalogue at rest, then applies what it staged: all of it or nothing, at one
    /// instant, durable on return together with everything acknowledged before.
    pub(crate) fn transact<T>(&self, build: impl FnOnce(&mut Txn<'_>) -> Result<T>) -> Result<T> {
        // Only transactions change the catalogue: what `build` has validated stays true until the commit,
        // whatever checkpoint must come in between to make room.
        let _one = self.transaction.lock();
        self.writable()?;
        let mut txn = Txn {
            engine: self,
            staged: BTreeMap::new(),
            steps: Vec::new(),
            trashed: Vec::new(),
            grows: false,
        };
        let value = build(&mut txn)?;
        let Txn { mut steps, trashed, grows, .. } = txn;
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
        if grows && trashed.is_empty() {
            self.room_for_metadata(5)?;
        }
        // Registered before the commit: once it is visible, the background may reclaim it at any time.
        self.trash.lock().extend(trashed.iter().map(|id| (*id, TrashState::default())));
        loop {
            let mut log = self.log.lock();
            self.writable()?;
            match self.commit(&mut log, 0, steps.clone(), true, None) {
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
