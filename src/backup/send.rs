//! Several objects on their way at once: what hides the latency of a target.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use parking_lot::Mutex;

use super::shelf::{Shelf, failed};
use crate::error::{Error, Result};

struct Parcel {
    name: String,
    bytes: Vec<u8>,
}

/// Sends objects. With one sender each is sent before the call returns, in order.
pub(super) struct Senders<'s> {
    shelf: Shelf<'s>,
    line: Option<SyncSender<Parcel>>,
    threads: Vec<ScopedJoinHandle<'s, ()>>,
    shared: &'s Shared,
}

/// What the threads tell.
#[derive(Default)]
pub(super) struct Shared {
    line: Mutex<Option<Receiver<Parcel>>>,
    failed: Mutex<Option<Error>>,
}

impl<'s> Senders<'s> {
    pub(super) fn start(
        shelf: Shelf<'s>,
        count: usize,
        shared: &'s Shared,
        scope: &'s Scope<'s, '_>,
    ) -> Self {
        if count <= 1 {
            return Self { shelf, line: None, threads: Vec::new(), shared };
        }
        // As many again may wait: memory stays within twice the senders' pieces.
        let (line, parcels) = sync_channel(count);
        *shared.line.lock() = Some(parcels);
        let threads = (0..count).map(|_| scope.spawn(move || work(shelf, shared))).collect();
        Self { shelf, line: Some(line), threads, shared }
    }

    pub(super) fn send(&self, name: String, bytes: Vec<u8>) -> Result<()> {
        let Some(line) = &self.line else { return self.shelf.put(&name, &bytes) };
        if self.shared.failed.lock().is_none() && line.send(Parcel { name, bytes }).is_ok() {
            return Ok(());
        }
        self.failure()
    }

    /// Waits until everything has been sent.
    pub(super) fn finish(mut self) -> Result<()> {
        self.line = None;
        for thread in self.threads.drain(..) {
            // One that panicked has said so (`Alarm`).
            let _ = thread.join();
        }
        self.failure()
    }

    fn failure(&self) -> Result<()> {
        self.shared.failed.lock().take().map_or(Ok(()), Err)
    }
}

/// When a target panics, nobody may wait for the thread that it took along.
struct Alarm<'a>(&'a Shared);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let e = std::io::Error::other("the target panicked");
            self.0.failed.lock().get_or_insert(failed("put", "", e));
            *self.0.line.lock() = None;
        }
    }
}

fn work(shelf: Shelf<'_>, shared: &Shared) {
    let _alarm = Alarm(shared);
    loop {
        // Whoever holds the lock waits for the next parcel; the others wait for the lock.
        let parcel = shared.line.lock().as_ref().and_then(|line| line.recv().ok());
        let Some(Parcel { name, bytes }) = parcel else { return };
        if shared.failed.lock().is_some() {
            // Emptied, not sent: so that nobody waits for room in the line.
            continue;
        }
        if let Err(e) = shelf.put(&name, &bytes) {
            shared.failed.lock().get_or_insert(e);
        }
    }
}
