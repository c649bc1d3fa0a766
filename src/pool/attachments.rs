//! Who is attached to what, in memory only.
//!
//! Attaching claims its place first and reads the record afterwards; an operation that needs a detached
//! object looks at the places inside its transaction and keeps newcomers out until it is over. Either the
//! operation sees the place, or the newcomer sees the mark or a record that is gone.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::units::ObjectId;

use super::servers::ServerState;

#[derive(Default)]
pub(super) struct Attachments {
    table: Mutex<Places>,
}

#[derive(Default)]
struct Places {
    closed: bool,
    taken: u64,
    /// Numbers the places.
    entered: u64,
    objects: BTreeMap<ObjectId, Entry>,
}

#[derive(Default)]
struct Entry {
    attached: u32,
    marks: u32,
    /// What the last mark is for.
    status: &'static str,
    size_bytes: Arc<AtomicU64>,
    handles: Vec<Handle>,
}

/// One place that is taken, as others may see it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Handle {
    pub(super) number: u64,
    pub(super) since_micros: u64,
    pub(super) read_only: bool,
    pub(super) server_state: ServerState,
}

/// Why there is no place.
#[derive(Debug)]
pub(super) enum NoPlace {
    /// The pool is being closed.
    Closed,
    /// As many as may be are attached.
    Full,
    /// Another call has the object to itself, and makes it this.
    Marked(&'static str),
}

impl Attachments {
    pub(super) fn count(&self, id: ObjectId) -> u32 {
        self.table.lock().objects.get(&id).map_or(0, |e| e.attached)
    }

    /// Who has a place, first come first.
    pub(super) fn handles(&self, id: ObjectId) -> Vec<Handle> {
        self.table.lock().objects.get(&id).map_or_else(Vec::new, |e| e.handles.clone())
    }

    /// Takes one of `most` places.
    pub(super) fn enter(self: &Arc<Self>, id: ObjectId, most: u32, now: u64) -> Result<Place, NoPlace> {
        self.take(id, most, now, false)
    }

    /// Takes a place for whoever has marked the object.
    pub(super) fn enter_marked(self: &Arc<Self>, id: ObjectId, now: u64) -> Result<Place, NoPlace> {
        self.take(id, 1, now, true)
    }

    fn take(self: &Arc<Self>, id: ObjectId, most: u32, now: u64, marked: bool) -> Result<Place, NoPlace> {
        let mut table = self.table.lock();
        if table.closed {
            return Err(NoPlace::Closed);
        }
        table.entered += 1;
        let number = table.entered;
        let entry = table.objects.entry(id).or_default();
        if entry.marks > 0 && !marked {
            return Err(NoPlace::Marked(entry.status));
        }
        if entry.attached >= most {
            return Err(NoPlace::Full);
        }
        entry.attached += 1;
        let server_state = ServerState::Active;
        entry.handles.push(Handle { number, since_micros: now, read_only: false, server_state });
        let size_bytes = Arc::clone(&entry.size_bytes);
        table.taken += 1;
        Ok(Place { table: Arc::clone(self), id, number, size_bytes })
    }

    /// Keeps newcomers out while the mark lives; `None` when somebody is attached.
    pub(super) fn mark(self: &Arc<Self>, id: ObjectId, status: &'static str) -> Option<Mark> {
        let mut table = self.table.lock();
        let entry = table.objects.entry(id).or_default();
        if entry.attached > 0 {
            return None;
        }
        entry.marks += 1;
        entry.status = status;
        Some(Mark { table: Arc::clone(self), id })
    }

    /// Tells attached disks about a new size. Sizes only grow, so the largest is the newest.
    pub(super) fn grow(&self, id: ObjectId, size_bytes: u64) {
        if let Some(entry) = self.table.lock().objects.get(&id) {
            entry.size_bytes.fetch_max(size_bytes, Ordering::Release);
        }
    }

    /// Lets nobody in any more; false, and nothing changes, while somebody is attached.
    pub(super) fn close(&self) -> bool {
        let mut table = self.table.lock();
        table.closed = table.closed || table.taken == 0;
        table.closed
    }

    pub(super) fn reopen(&self) {
        self.table.lock().closed = false;
    }
}

impl Places {
    fn tidy(&mut self, id: ObjectId) {
        if self.objects.get(&id).is_some_and(|e| e.attached == 0 && e.marks == 0) {
            self.objects.remove(&id);
        }
    }
}

/// One attachment; ends when dropped.
pub(super) struct Place {
    table: Arc<Attachments>,
    id: ObjectId,
    number: u64,
    size_bytes: Arc<AtomicU64>,
}

impl Place {
    /// Changes what others see of it.
    pub(super) fn describe(&self, change: impl FnOnce(&mut Handle)) {
        let mut table = self.table.table.lock();
        let entry = table.objects.get_mut(&self.id);
        if let Some(handle) = entry.and_then(|e| e.handles.iter_mut().find(|h| h.number == self.number)) {
            change(handle);
        }
    }
    pub(super) fn id(&self) -> ObjectId {
        self.id
    }
    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }
    pub(super) fn grow(&self, size_bytes: u64) {
        self.size_bytes.fetch_max(size_bytes, Ordering::Release);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.table.table.lock();
        table.taken -= 1;
        if let Some(entry) = table.objects.get_mut(&self.id) {
            entry.attached -= 1;
            entry.handles.retain(|h| h.number != self.number);
        }
        table.tidy(self.id);
    }
}

/// An object that one operation has to itself; ends when dropped.
pub(super) struct Mark {
    table: Arc<Attachments>,
    id: ObjectId,
}

impl Drop for Mark {
    fn drop(&mut self) {
        let mut table = self.table.table.lock();
        if let Some(entry) = table.objects.get_mut(&self.id) {
            entry.marks -= 1;
        }
        table.tidy(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: ObjectId = ObjectId([7; 16]);

    #[test]
    fn a_mark_keeps_newcomers_out_and_a_place_refuses_the_mark() {
        let table = Arc::new(Attachments::default());
        let place = table.enter(ID, 1, 0).unwrap_or_else(|_| panic!("a free place"));
        assert!(matches!(table.enter(ID, 1, 0), Err(NoPlace::Full)));
        assert!(table.enter(ID, 2, 0).is_ok());
        assert!(table.mark(ID, "deleting").is_none());
        assert!(!table.close());
        drop(place);
        let (one, two) = (table.mark(ID, "deleting"), table.mark(ID, "deleting"));
        drop(one);
        assert!(matches!(table.enter(ID, 1, 0), Err(NoPlace::Marked("deleting"))));
        drop(two);
        assert!(table.table.lock().objects.is_empty());
        assert!(table.close());
        assert!(matches!(table.enter(ID, 1, 0), Err(NoPlace::Closed)));
    }

    #[test]
    fn attached_disks_share_a_size_that_only_grows() {
        let table = Arc::new(Attachments::default());
        let (a, b) = (table.enter(ID, 2, 0).ok().unwrap(), table.enter(ID, 2, 0).ok().unwrap());
        a.grow(8192);
        table.grow(ID, 16384);
        b.grow(8192);
        assert_eq!((a.size_bytes(), b.size_bytes()), (16384, 16384));
    }
}
