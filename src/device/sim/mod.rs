//! A device that is lost, torn and broken on command: for crash and fault tests, of this crate and of yours.
//!
//! A [`SimDevice`] keeps everything that was written in the order in which it was written. Reads see all of
//! it, as through a page cache. At any moment [`SimDevice::trace`] gives the history, from which a test makes
//! every medium that a loss of power could have left: unsynced writes kept, lost, reordered or torn.
//!
//! - S1 An operation survives every loss of power after the end of a sync that began after it, unless that
//!   sync was told to fail or to lie. Nothing else survives for certain.
//! - S2 An operation that was counted but failed has no effect, except as its [`Fault`] says.
//! - S3 Equal calls give equal traces: there is no clock and no chance in it.
//!
//! A crash test of your own records a workload with [`History`], opens every medium that [`Recording::crash_states`]
//! gives, and asks whether it shows one of the states that are [allowed](Recording::allowed): the example is at
//! [`History`]. What a program does while it recovers is recorded too, so that a second loss of power during
//! recovery is one more loop over the [trace](SimDevice::trace) of the medium that was opened. Anything that
//! keeps its data on a [`Device`] can be tested so, not only a pool.
//!
//! Failing calls are planned with [`SimDevice::fail_at`] and [`SimDevice::fail_kind_at`], lost flushes with
//! [`SimDevice::lying_sync`], and [`SimDevice::on_failed_sync`] chooses what a host makes of the data when a sync
//! has failed.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::Device;

mod fault;
mod history;
mod image;
mod states;
mod trace;

pub use fault::{CallKind, FailedSync, Fault};
pub use history::{History, Recording, Step};
pub use states::{CrashPoint, CrashState, CrashStates, Depth};
pub use trace::{Cursor, Fate, Op, ParseError, SECTOR_BYTES, Trace};

use fault::Faults;
use image::Image;

/// A simulated device. A clone is another handle on the same state, without the lock.
pub struct SimDevice {
    state: Arc<Mutex<State>>,
    /// Tells the handles of one process apart, for the lock.
    handle: u64,
}

/// Everything that the handles share. One mutex: calls are atomic and have one order.
#[derive(Default)]
struct State {
    /// What was on the medium when recording began.
    initial: Image,
    ops: Vec<Op>,
    /// What reads see: everything applied, synced or not.
    view: Image,
    faults: Faults,
    failed_sync: FailedSync,
    /// What of the pending data a failing sync still brings to the disk.
    arrives: Option<Arrives>,
    /// Pages of the view that count as clean and are not what the medium holds: a failed sync gave them up.
    ghosts: BTreeSet<u64>,
    holder: Option<u64>,
    /// Handles that held the lock when `reopen` took it away: killed processes.
    fenced: Vec<u64>,
}

/// Says of each pending operation, oldest first, what becomes of it.
type Arrives = Box<dyn FnMut(usize) -> Fate + Send>;

/// Bytes in one page of the simulated cache.
const PAGE_BYTES: u64 = 4096;

fn pages(offset: u64, len: u64) -> std::ops::Range<u64> {
    offset / PAGE_BYTES..(offset + len).div_ceil(PAGE_BYTES)
}

impl State {
    fn record(&mut self, op: Op) {
        self.ops.push(op);
    }

    fn at_end(&self) -> Cursor<'_> {
        Cursor::over(&self.initial, &self.ops)
    }

    fn write(&mut self, bytes: &[u8], offset: u64) {
        self.view.write(bytes, offset);
        let touched = pages(offset, bytes.len() as u64);
        if self.ghosts.range(touched.clone()).next().is_none() {
            return self.record(Op::Write { offset, bytes: bytes.into() });
        }
        // A page that is written again is dirty again as a whole: what was given up goes out with it.
        let start = touched.start * PAGE_BYTES;
        let mut whole = vec![0; ((touched.end * PAGE_BYTES).min(self.view.len()) - start) as usize];
        self.view.read(&mut whole, start);
        self.ghosts.retain(|page| !touched.contains(page));
        self.record(Op::Write { offset: start, bytes: whole.into() });
    }

    fn sync_failed(&mut self) {
        if self.failed_sync == FailedSync::StaysDirty {
            return self.record(Op::SyncFailed);
        }
        let pending = self.at_end().pending;
        let mut fates = Vec::with_capacity(pending.len());
        for (index, op) in pending.iter().enumerate() {
            let fate = self.arrives.as_mut().map_or(Fate::Lost, |arrives| arrives(index));
            if let Op::Write { offset, bytes } = op
                && fate != Fate::Kept
            {
                self.ghosts.extend(pages(*offset, bytes.len() as u64));
            }
            fates.push(fate);
        }
        self.record(Op::SyncDropped(fates.into()));
        if self.failed_sync == FailedSync::Dropped {
            self.evict();
        }
    }

    /// Dirty pages are not evicted: only what a failed sync took for clean goes back to the medium's bytes.
    fn evict(&mut self) {
        if !std::mem::take(&mut self.ghosts).is_empty() {
            self.view = self.at_end().make(|_| Fate::Kept);
        }
    }
}

impl SimDevice {
    /// An empty device.
    pub fn new() -> Self {
        Self::over(Image::default())
    }

    /// A device whose medium holds `bytes`, durably.
    pub fn from_image(bytes: Vec<u8>) -> Self {
        Self::over(Image::from_bytes(&bytes))
    }

    fn over(image: Image) -> Self {
        Self::with_state(Arc::new(Mutex::new(State {
            view: image.clone(),
            initial: image,
            ..State::default()
        })))
    }

    fn with_state(state: Arc<Mutex<State>>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { state, handle: NEXT.fetch_add(1, Ordering::Relaxed) }
    }

    // ---- History -------------------------------------------------------------------------------------------

    /// Number of recorded operations: the cut points are 0 up to this number.
    pub fn op_count(&self) -> usize {
        self.state.lock().ops.len()
    }

    /// The history up to now. Later operations do not change it.
    pub fn trace(&self) -> Trace {
        let state = self.state.lock();
        Trace { initial: state.initial.clone(), ops: state.ops.as_slice().into() }
    }

    /// Forgets the history, so that a trace begins here: what is durable becomes the initial medium, and
    /// what is pending stays pending as the first operations.
    pub fn restart_trace(&self) {
        let mut state = self.state.lock();
        let end = state.at_end();
        let (initial, ops) = (end.durable.clone(), end.pending.clone());
        state.initial = initial;
        state.ops = ops;
    }

    /// What reads see now, whole.
    pub fn view(&self) -> Vec<u8> {
        self.state.lock().view.to_bytes()
    }

    /// The medium after a loss of power now, as a new device: no lock, no faults, no history.
    pub fn crash(&self, fate: impl FnMut(usize) -> Fate) -> SimDevice {
        let image = self.state.lock().at_end().make(fate);
        Self::over(image)
    }

    /// Another handle, as a new process would get it after the one that uses the pool was killed: same view,
    /// same pending operations, lock free. The handle that held the lock is cut off: its calls fail with
    /// `EIO` from now on and are neither counted nor recorded, so that its drop cannot disturb the new user.
    pub fn reopen(&self) -> SimDevice {
        let mut state = self.state.lock();
        if let Some(holder) = state.holder.take() {
            state.fenced.push(holder);
        }
        Self::with_state(Arc::clone(&self.state))
    }

    // ---- Faults --------------------------------------------------------------------------------------------

    /// Number of calls so far, of every kind and on every handle, failed ones included.
    pub fn call_count(&self) -> usize {
        self.state.lock().faults.calls().len()
    }

    /// The kinds of all calls so far. `calls()[n]` is the one that a fault planned at index `n` would have hit.
    pub fn calls(&self) -> Vec<CallKind> {
        self.state.lock().faults.calls().to_vec()
    }

    /// Number of calls of one kind so far.
    pub fn calls_of(&self, kind: CallKind) -> usize {
        self.state.lock().faults.calls_of(kind)
    }

    /// Lets call number `call_index` fail, counted from 0 since the device was made; with `repeat` every
    /// later call too. An index that has passed never strikes, unless it repeats.
    pub fn fail_at(&self, call_index: usize, fault: Fault, repeat: bool) {
        self.state.lock().faults.plan(None, call_index, fault, repeat);
    }

    /// Lets call number `index` of one kind fail, counted from 0 among the calls of that kind; with `repeat`
    /// every later call of that kind too.
    pub fn fail_kind_at(&self, kind: CallKind, index: usize, fault: Fault, repeat: bool) {
        self.state.lock().faults.plan(Some(kind), index, fault, repeat);
    }

    /// Lets sync number `n`, counted from 0, return `Ok` and make nothing durable. A later honest sync
    /// covers what it left out.
    pub fn lying_sync(&self, n: usize) {
        self.state.lock().faults.plan_lying_sync(n);
    }

    /// Chooses what the host does with pending data when a sync fails: nothing, as long as nothing is chosen.
    pub fn on_failed_sync(&self, then: FailedSync) {
        self.state.lock().failed_sync = then;
    }

    /// Chooses what of the pending data a failing sync still brings to the disk, where it then waits for the next
    /// sync that works: nothing, as long as nothing is chosen. Called for each pending operation, oldest first.
    /// Without meaning for [`FailedSync::StaysDirty`].
    pub fn failed_sync_brings(&self, fate: impl FnMut(usize) -> Fate + Send + 'static) {
        self.state.lock().arrives = Some(Box::new(fate));
    }

    /// Takes clean pages out of the simulated page cache, as the host does when memory is short. Changes what
    /// reads see only after a failed sync with [`FailedSync::KeptClean`].
    pub fn evict(&self) {
        self.state.lock().evict();
    }

    /// Forgets all planned faults and lying syncs. Calls go on being counted.
    pub fn clear_faults(&self) {
        self.state.lock().faults.clear();
    }

    /// Flips a bit (0 the lowest) of the byte at `offset`, on the medium, in what is pending and in what
    /// reads see. Nothing happens where the device is shorter.
    ///
    /// # Panics
    /// When `bit` passes 7.
    pub fn flip_bit(&self, offset: u64, bit: u8) {
        assert!(bit < 8, "a byte has 8 bits");
        let mut state = self.state.lock();
        state.view.flip(offset, bit);
        state.record(Op::Flip { offset, bit });
    }

    // ---- Calls ---------------------------------------------------------------------------------------------

    /// Counts a call, then runs it with the fault that strikes it.
    fn call<R>(
        &self,
        kind: CallKind,
        body: impl FnOnce(&mut State, Option<Fault>) -> io::Result<R>,
    ) -> io::Result<R> {
        let mut state = self.state.lock();
        if state.fenced.contains(&self.handle) {
            return Err(fault::eio());
        }
        let fault = state.faults.enter(kind);
        body(&mut state, fault)
    }

    /// A call that has its effect whole or not at all.
    fn whole_call<R>(
        &self,
        kind: CallKind,
        effect: impl FnOnce(&mut State) -> io::Result<R>,
    ) -> io::Result<R> {
        self.call(kind, |state, fault| match fault {
            None => effect(state),
            Some(fault) => {
                if fault == Fault::EioAfterEffect {
                    effect(state)?;
                }
                Err(fault.error())
            }
        })
    }
}

impl Default for SimDevice {
    fn default() -> Self {
        Self::new()
    }
}

impl Clone for SimDevice {
    fn clone(&self) -> Self {
        Self::with_state(Arc::clone(&self.state))
    }
}

impl Drop for SimDevice {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        if state.holder == Some(self.handle) {
            state.holder = None;
        }
        state.fenced.retain(|&handle| handle != self.handle);
    }
}

impl fmt::Debug for SimDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("SimDevice")
            .field("len_bytes", &state.view.len())
            .field("ops", &state.ops.len())
            .field("calls", &state.faults.calls().len())
            .finish_non_exhaustive()
    }
}

impl Device for SimDevice {
    fn len(&self) -> io::Result<u64> {
        self.whole_call(CallKind::Len, |state| Ok(state.view.len()))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = end_of(offset, buf.len() as u64)?;
        self.call(CallKind::Read, |state, fault| {
            if !buf.is_empty() && end > state.view.len() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let filled = match fault {
                None | Some(Fault::EioAfterEffect) => buf.len(),
                Some(Fault::ShortRead) => buf.len() / 2,
                Some(_) => 0,
            };
            if filled > 0 {
                state.view.read(&mut buf[..filled], offset);
            }
            fault.map_or(Ok(()), |fault| Err(fault.error()))
        })
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        end_of(offset, buf.len() as u64)?;
        self.call(CallKind::Write, |state, fault| {
            let taken = match fault {
                None | Some(Fault::EioAfterEffect) => buf.len(),
                Some(Fault::ShortWrite) => buf.len() / 2,
                Some(_) => 0,
            };
            if taken > 0 {
                state.write(&buf[..taken], offset);
            }
            fault.map_or(Ok(()), |fault| Err(fault.error()))
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.call(CallKind::Sync, |state, fault| {
            match fault {
                None if state.faults.lies_now() => state.record(Op::SyncLied),
                None | Some(Fault::EioAfterEffect) => state.record(Op::Sync),
                Some(_) => state.sync_failed(),
            }
            fault.map_or(Ok(()), |fault| Err(fault.error()))
        })
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = end_of(offset, len)?;
        self.whole_call(CallKind::Allocate, |state| {
            // Within the length nothing changes that a loss of power could undo.
            if len > 0 && end > state.view.len() {
                state.view.extend(end);
                state.record(Op::Allocate(end));
            }
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        end_of(len, 0)?;
        self.whole_call(CallKind::SetLen, |state| {
            state.view.set_len(len);
            state.record(Op::SetLen(len));
            Ok(())
        })
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        end_of(offset, len)?;
        self.whole_call(CallKind::Discard, |state| {
            if len > 0 {
                state.view.zero(offset, len);
                state.record(Op::Discard { offset, len });
            }
            Ok(())
        })
    }

    fn lock(&self) -> io::Result<bool> {
        self.whole_call(CallKind::Lock, |state| Ok(*state.holder.get_or_insert(self.handle) == self.handle))
    }

    fn drop_cache(&self) -> io::Result<()> {
        self.whole_call(CallKind::DropCache, |state| {
            state.evict();
            Ok(())
        })
    }
}

/// The same limit as files have.
fn end_of(offset: u64, len: u64) -> io::Result<u64> {
    match offset.checked_add(len) {
        Some(end) if end <= i64::MAX as u64 => Ok(end),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "the range passes the largest offset")),
    }
}

#[cfg(test)]
mod tests;
