//! Faults that a simulated device can be told to show.

use std::io;

/// The calls of a device, as counted and logged.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each is the method of `Device` with its name")]
pub enum CallKind {
    Len,
    Read,
    Write,
    Sync,
    Allocate,
    SetLen,
    Discard,
    Lock,
    DropCache,
}

/// What goes wrong in one call. A fault that does not fit the call acts as [`Eio`](Fault::Eio).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Fault {
    /// The call fails with `EIO` and has no effect.
    Eio,
    /// The call fails with `ENOSPC` and has no effect.
    Enospc,
    /// The call fails with kind `Unsupported` and has no effect, as on hosts without it.
    Unsupported,
    /// The call fails with kind `Interrupted` and has no effect. A device of this crate repeats interrupted
    /// calls by itself, so whoever sees this may treat it as any other error.
    Interrupted,
    /// A write takes the first half of its bytes and then fails.
    ShortWrite,
    /// A read fills the first half of the buffer and then fails with `UnexpectedEof`.
    ShortRead,
    /// The call does all of its work and then fails with `EIO` all the same: failed does not mean undone.
    EioAfterEffect,
}

/// What the host does with data that waited for a sync when that sync fails.
///
/// Hosts differ, and programs have lost data by trusting one of these ways: Linux file systems mostly keep the pages
/// and call them clean, so that a sync which is simply tried again succeeds and has written nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[non_exhaustive]
pub enum FailedSync {
    /// The data stays in the cache and waits for the next sync. The default.
    #[default]
    StaysDirty,
    /// The data stays in the cache and counts as written: reads go on seeing it until the page is evicted, by
    /// [`SimDevice::evict`](super::SimDevice::evict) or [`Device::drop_cache`](crate::device::Device::drop_cache).
    /// Later syncs succeed without it.
    KeptClean,
    /// The data is thrown out of the cache: reads see at once what the medium holds. Later syncs succeed without it.
    Dropped,
}

impl Fault {
    pub(super) fn error(self) -> io::Error {
        match self {
            Fault::Eio | Fault::EioAfterEffect => eio(),
            // 28 is ENOSPC on every Unix; going through the number makes the message the host's.
            Fault::Enospc => io::Error::from_raw_os_error(28),
            Fault::Unsupported => io::ErrorKind::Unsupported.into(),
            Fault::Interrupted => io::ErrorKind::Interrupted.into(),
            Fault::ShortWrite => io::Error::new(io::ErrorKind::WriteZero, "short write"),
            Fault::ShortRead => io::Error::new(io::ErrorKind::UnexpectedEof, "short read"),
        }
    }

    /// The fault as it shows in a call of this kind.
    fn fit(self, kind: CallKind) -> Self {
        match self {
            Fault::ShortWrite if kind != CallKind::Write => Fault::Eio,
            Fault::ShortRead if kind != CallKind::Read => Fault::Eio,
            other => other,
        }
    }
}

/// `EIO`, which is 5 on every Unix.
pub(super) fn eio() -> io::Error {
    io::Error::from_raw_os_error(5)
}

/// When a fault strikes.
struct Rule {
    /// Counts calls of this kind, or all calls.
    kind: Option<CallKind>,
    index: usize,
    fault: Fault,
    repeat: bool,
}

/// The planned faults and the log of calls.
#[derive(Default)]
pub(super) struct Faults {
    rules: Vec<Rule>,
    lying_syncs: Vec<usize>,
    calls: Vec<CallKind>,
    /// Number of calls of each kind, by its place in [`CallKind`].
    counts: [usize; CallKind::DropCache as usize + 1],
}

impl Faults {
    pub(super) fn plan(&mut self, kind: Option<CallKind>, index: usize, fault: Fault, repeat: bool) {
        self.rules.push(Rule { kind, index, fault, repeat });
    }

    pub(super) fn plan_lying_sync(&mut self, index: usize) {
        self.lying_syncs.push(index);
    }

    pub(super) fn clear(&mut self) {
        self.rules.clear();
        self.lying_syncs.clear();
    }

    pub(super) fn calls(&self) -> &[CallKind] {
        &self.calls
    }

    pub(super) fn calls_of(&self, kind: CallKind) -> usize {
        self.counts[kind as usize]
    }

    /// Whether the sync that is being made, already counted, is one of the lying ones.
    pub(super) fn lies_now(&self) -> bool {
        !self.lying_syncs.is_empty() && self.lying_syncs.contains(&(self.calls_of(CallKind::Sync) - 1))
    }

    /// Counts a call and says what goes wrong in it. The rule that was planned first wins.
    pub(super) fn enter(&mut self, kind: CallKind) -> Option<Fault> {
        let all = self.calls.len();
        let strikes = |rule: &Rule| {
            let at = match rule.kind {
                None => all,
                Some(wanted) if wanted == kind => self.calls_of(kind),
                Some(_) => return false,
            };
            at == rule.index || rule.repeat && at > rule.index
        };
        let hit = self.rules.iter().position(strikes);
        self.calls.push(kind);
        self.counts[kind as usize] += 1;
        let hit = hit?;
        let fault = self.rules[hit].fault;
        if !self.rules[hit].repeat {
            self.rules.remove(hit);
        }
        Some(fault.fit(kind))
    }
}
