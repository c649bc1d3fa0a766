//! One attachment per volume or snapshot, shared by everybody who uses it through this server.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;

use parking_lot::Mutex;
use uuid::Uuid;

use crate::{AttachOptions, Disk, Point, Pool, Result};

use super::export::id_of;

/// What is attached now, and in how many shares.
#[derive(Debug, Default)]
pub(super) struct Attachments(Mutex<HashMap<Uuid, (Arc<Disk>, usize)>>);

impl Attachments {
    /// Attaches, or takes a share in the attachment that is there.
    ///
    /// # Errors
    /// Those of [`Pool::attach`] and [`Pool::attach_snapshot`].
    pub(super) fn attach(self: &Arc<Self>, pool: &Pool, point: Point) -> Result<Attachment> {
        // Held while the pool attaches and detaches: nobody meets an attachment that is about to end.
        let mut table = self.0.lock();
        let disk = match table.get_mut(&id_of(point)) {
            Some((disk, shares)) => {
                *shares += 1;
                Arc::clone(disk)
            }
            None => {
                let disk = Arc::new(match point {
                    Point::Volume(id) => pool.attach(id, AttachOptions::default())?,
                    Point::Snapshot(id) => pool.attach_snapshot(id)?,
                });
                table.insert(id_of(point), (Arc::clone(&disk), 1));
                disk
            }
        };
        Ok(Attachment { table: Arc::clone(self), point, disk: Some(disk) })
    }
}

/// A share in an attachment; with the last one the disk is detached.
pub(super) struct Attachment {
    table: Arc<Attachments>,
    pub(super) point: Point,
    /// Emptied under the table's lock, when the share ends.
    disk: Option<Arc<Disk>>,
}

impl Deref for Attachment {
    type Target = Disk;

    fn deref(&self) -> &Disk {
        match &self.disk {
            Some(disk) => disk,
            None => unreachable!("it is taken out by drop only"),
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let mut table = self.table.0.lock();
        if let Some((_, shares)) = table.get_mut(&id_of(self.point)) {
            *shares -= 1;
            if *shares == 0 {
                table.remove(&id_of(self.point));
            }
        }
        // Before the table is free again: who asks for the disk next must find it detached.
        self.disk = None;
    }
}
