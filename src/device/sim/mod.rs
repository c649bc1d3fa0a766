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
//! ```text
//! let sim = SimDevice::new();
//! workload(sim.clone());
//! let trace = sim.trace();
//! let mut cursor = trace.cursor();
//! loop {
//!     for seed in 0..16 {
//!         let survivor = cursor.device(|i| if seed >> (i % 4) & 1 == 1 { Fate::Kept } else { Fate::Lost });
//!         reopen_and_check(survivor);
//!     }
//!     if cursor.step().is_none() { break }
//! }
//! ```

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::Device;

mod fault;
mod image;
mod trace;

pub use fault::{CallKind, Fault};
pub use trace::{Cursor, Fate, Op, SECTOR_BYTES, Trace};

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
    drop_on_failed_sync: bool,
    /// The view shows data that a failed sync has thrown away.
    view_has_ghosts: bool,
    holder: Option<u64>,
    /// Handles that held the lock when `reopen` took it away: killed processes.
    fenced: Vec<u64>,
}

impl State {
    fn record(&mut self, op: Op) {
        self.ops.push(op);
    }

    fn at_end(&self) -> Cursor<'_> {
        Cursor::over(&self.initial, &self.ops)
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

    /// Chooses what a failed sync does. `false`, the default: pending operations stay pending. `true`: the
    /// pending data is thrown away; reads go on seeing it until [`drop_cache`](Device::drop_cache), and
    /// later syncs succeed without making it durable. Linux does this.
    pub fn drop_on_failed_sync(&self, on: bool) {
        self.state.lock().drop_on_failed_sync = on;
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
                state.view.write(&buf[..taken], offset);
                state.record(Op::Write { offset, bytes: buf[..taken].into() });
            }
            fault.map_or(Ok(()), |fault| Err(fault.error()))
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.call(CallKind::Sync, |state, fault| {
            let lies = state.faults.lies_now();
            let op = match fault {
                None if lies => Op::SyncWithoutEffect,
                None | Some(Fault::EioAfterEffect) => Op::Sync,
                Some(_) if state.drop_on_failed_sync => Op::SyncDropped,
                Some(_) => Op::SyncWithoutEffect,
            };
            state.view_has_ghosts |= op == Op::SyncDropped;
            state.record(op);
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
            // Dirty pages are not dropped: only what a failed sync marked clean goes back to the medium's bytes.
            if state.view_has_ghosts {
                state.view = state.at_end().make(|_| Fate::Kept);
                state.view_has_ghosts = false;
            }
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
