//! Which map lies over which base, in the catalogue and in memory (B4, B5 of [`lower`](super::lower)).
//!
//! | table | key behind it | value |
//! |---|---|---|
//! | 0xF3 over | object (16) | base (16), blocks of the base (8, little-endian) |
//! | 0xF4 users | base (16), object (16) | empty |
//! | 0xF5 bases | base (16) | what the pool keeps of it, see `pool` |

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::catalogue::{TABLE_BASES, TABLE_OVER, TABLE_USERS, object_key, object_of};
use super::engine::Engine;
use super::lower::Base;
use super::object::Object;
use super::txn::Txn;
use crate::error::{Corruption, Result};
use crate::format::record::Step;
use crate::memory;
use crate::units::{BLOCK_BYTES, MAX_VOLUME_BYTES, ObjectId};

/// What a map lies over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Over {
    pub(super) base: ObjectId,
    blocks: u64,
}

impl Over {
    fn encode(self) -> Vec<u8> {
        [&self.base.0[..], &self.blocks.to_le_bytes()].concat()
    }

    pub(super) fn decode(value: &[u8]) -> Result<Self, Corruption> {
        let bad = |field, want, got: u64| Corruption::new("base of a map", 0, field, want, got);
        let (Some(base), Some(blocks), 24) =
            (value.first_chunk::<16>(), value.last_chunk::<8>(), value.len())
        else {
            return Err(bad("length", "24", value.len() as u64));
        };
        let blocks = u64::from_le_bytes(*blocks);
        if blocks == 0 || blocks > MAX_VOLUME_BYTES / BLOCK_BYTES {
            return Err(bad("blocks", "1 to 2^48", blocks));
        }
        Ok(Self { base: ObjectId(*base), blocks })
    }
}

fn user_key(base: ObjectId, user: ObjectId) -> Vec<u8> {
    [&object_key(TABLE_USERS, base)[..], &user.0].concat()
}

/// The keys of all users of a base, half-open.
fn users(base: ObjectId) -> (Vec<u8>, Vec<u8>) {
    let from = object_key(TABLE_USERS, base);
    let to = [&from[..], &[0xFF; 17]].concat();
    (from, to)
}

fn user_of(key: &[u8]) -> Option<ObjectId> {
    Some(ObjectId(key.get(17..33)?.try_into().ok()?))
}

/// Whether a pair of the tables of bases is one of them; pairs of other tables are.
pub(super) fn check_pair(key: &[u8], value: &[u8]) -> Result<(), Corruption> {
    let keys = match key.first() {
        Some(&TABLE_OVER) => {
            Over::decode(value)?;
            17
        }
        Some(&TABLE_USERS) if !value.is_empty() => {
            return Err(Corruption::new("user of a base", 0, "length", 0, value.len()));
        }
        Some(&TABLE_USERS) => 33,
        Some(&TABLE_BASES) => 17,
        _ => return Ok(()),
    };
    if key.len() == keys {
        Ok(())
    } else {
        Err(Corruption::new("catalogue", 0, "key length", keys, key.len()))
    }
}

/// The record of a base, for who knows what it says.
pub(crate) fn base_key(base: ObjectId) -> Vec<u8> {
    object_key(TABLE_BASES, base)
}

impl Txn<'_> {
    fn over(&self, id: ObjectId) -> Result<Option<Over>> {
        let value = self.get(&object_key(TABLE_OVER, id))?;
        Ok(value.map(|value| Over::decode(&value)).transpose()?)
    }

    fn put_over(&mut self, id: ObjectId, over: Over) {
        self.put(object_key(TABLE_OVER, id), over.encode());
        self.put(user_key(over.base, id), Vec::new());
    }

    /// Lays the map of `id` over a base, whose record is put by the caller.
    pub(crate) fn lay_over(&mut self, id: ObjectId, base: ObjectId, blocks: u64) {
        self.put_over(id, Over { base, blocks });
    }

    /// Has `to` lie over whatever `from` lies over.
    pub(super) fn copy_over(&mut self, to: ObjectId, from: ObjectId) -> Result<()> {
        let (was, now) = (self.over(to)?, self.over(from)?);
        if was != now {
            if let Some(base) = self.leave_base(to)? {
                self.trash_map(base);
            }
            if let Some(over) = now {
                self.put_over(to, over);
            }
        }
        Ok(())
    }

    /// The map of `id` goes. Returns the base if that was its last user: it goes too.
    pub(super) fn leave_base(&mut self, id: ObjectId) -> Result<Option<ObjectId>> {
        let Some(Over { base, .. }) = self.over(id)? else { return Ok(None) };
        self.delete(object_key(TABLE_OVER, id));
        self.delete(user_key(base, id));
        let (from, to) = users(base);
        let mut used = false;
        self.scan(&from, &to, false, &mut |_, _| {
            used = true;
            false
        })?;
        if used {
            return Ok(None);
        }
        self.delete(base_key(base));
        Ok(Some(base))
    }
}

/// Links are made before anything names what they are about, so that nobody sees a map without its base.
pub(super) fn links_first(steps: &mut [Step]) {
    let is_link = |step: &Step| matches!(step, Step::Put(key, _) | Step::Delete(key) if key.first() == Some(&TABLE_OVER));
    if steps.iter().any(is_link) {
        steps.sort_by_key(|step| !is_link(step));
    }
}

impl Engine {
    pub(super) fn over(&self, id: ObjectId) -> Result<Option<Over>> {
        let value = self.get(&object_key(TABLE_OVER, id))?;
        Ok(value.map(|value| Over::decode(&value)).transpose()?)
    }

    /// The base that is meant, one for all who lie over it.
    pub(super) fn base_behind(&self, over: Over) -> Result<Arc<Base>> {
        if let Some(base) = self.bases.lock().get(&over.base) {
            return Ok(Arc::clone(base));
        }
        // Without looking whether it lies over something itself (B5).
        let object = {
            let catalogue = self.catalogue.read();
            let known = self.objects.lock().get(&over.base).cloned();
            known.map_or_else(|| self.load(&catalogue, over.base, None), Ok)?
        };
        let mut bases = self.bases.lock();
        let base = bases.entry(over.base).or_insert_with(|| Arc::new(Base::new(object, over.blocks)));
        Ok(Arc::clone(base))
    }

    /// A base by its id, if anything lies over it.
    pub(crate) fn base(&self, base: ObjectId) -> Result<Option<Arc<Base>>> {
        let (from, to) = users(base);
        let mut user = None;
        self.scan(&from, &to, false, &mut |key, _| {
            user = user_of(key);
            false
        })?;
        let Some(user) = user else { return Ok(None) };
        let over = self.over(user)?.filter(|over| over.base == base);
        over.map(|over| self.base_behind(over)).transpose()
    }

    /// The base that the map of `id` lies over.
    pub(crate) fn base_below(&self, id: ObjectId) -> Result<Option<Arc<Base>>> {
        self.over(id)?.map(|over| self.base_behind(over)).transpose()
    }

    /// What lies over a base, `most` at the most: volumes, snapshots, images and copies of them that somebody holds.
    pub(crate) fn users_of(&self, base: ObjectId, most: usize) -> Result<Vec<ObjectId>> {
        let (from, to) = users(base);
        let mut found = Vec::new();
        self.scan(&from, &to, false, &mut |key, _| {
            found.extend(user_of(key));
            found.len() < most
        })?;
        Ok(found)
    }

    /// These maps, and the bases that would go with the last of them.
    pub(super) fn with_bases(&self, ids: &[ObjectId]) -> Result<Vec<ObjectId>> {
        let mut going: BTreeMap<ObjectId, u64> = BTreeMap::new();
        for id in ids.iter().collect::<BTreeSet<_>>() {
            if let Some(over) = self.over(*id)? {
                *going.entry(over.base).or_default() += 1;
            }
        }
        let mut all = memory::copied(ids)?;
        for (base, gone) in going {
            let (from, to) = users(base);
            let mut left = gone + 1;
            self.scan(&from, &to, false, &mut |_, _| {
                left -= 1;
                left > 0
            })?;
            if left > 0 {
                memory::push(&mut all, base)?;
            }
        }
        Ok(all)
    }

    /// In memory, what a step of the catalogue says about bases.
    pub(super) fn apply_base_step(&self, key: &[u8], value: Option<&[u8]>) -> Result<()> {
        let (Some(table), Some(id)) = (key.first(), object_of(key)) else { return Ok(()) };
        match (*table, value) {
            (TABLE_OVER, value) => {
                let object: Option<Arc<Object>> = self.objects.lock().get(&id).cloned();
                if let Some(object) = object {
                    let over = value.map(Over::decode).transpose()?;
                    object.below.set(over.map(|over| self.base_behind(over)).transpose()?);
                }
            }
            (TABLE_BASES, None) => {
                let base = self.bases.lock().remove(&id);
                if let Some(base) = base {
                    base.let_go();
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// For any bytes: what is accepted encodes to them again.
#[cfg(feature = "internals")]
pub(crate) fn law(bytes: &[u8]) {
    if let Ok(over) = Over::decode(bytes) {
        assert!(over.encode() == bytes, "the base of a map has changed");
    }
}
