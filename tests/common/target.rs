//! A backup target in memory that can fail, lose what was not synced, and be tampered with.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex};

use snapvol::backup::{BackupTarget, Listed};

use super::rng::Rng;

/// What happens to a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// It fails, once, without effect.
    Once,
    /// It fails, once, after all of its effect.
    AfterEffect,
    /// It and every later one fail.
    ForGood,
}

#[derive(Default)]
struct State {
    /// What `get` and `list` show.
    shown: BTreeMap<String, Vec<u8>>,
    durable: BTreeMap<String, Vec<u8>>,
    calls: u64,
    puts: Vec<String>,
    fault: Option<(u64, Fault)>,
    /// Run in the first call that fails.
    probe: Option<Box<dyn FnOnce() + Send>>,
}

/// A handle of the target; clones are handles of the same one.
#[derive(Clone, Default)]
pub(crate) struct MemoryTarget(Arc<Mutex<State>>);

/// Few, so that every listing has several pages.
const PAGE: usize = 7;

impl MemoryTarget {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn connect(&self) -> Arc<dyn BackupTarget> {
        Arc::new(self.clone())
    }

    /// A target of its own with what this one has.
    pub(crate) fn copy(&self) -> Self {
        let state = self.0.lock().unwrap();
        let (shown, durable) = (state.shown.clone(), state.durable.clone());
        Self(Arc::new(Mutex::new(State { shown, durable, ..State::default() })))
    }

    /// From now on, the call with this number (from 0) does this.
    pub(crate) fn fail(&self, call: u64, fault: Fault) {
        let mut state = self.0.lock().unwrap();
        state.calls = 0;
        state.fault = Some((call, fault));
    }

    /// Runs `probe` in the first call that fails: a look at the world as a crash there leaves it.
    pub(crate) fn at_failure(&self, probe: impl FnOnce() + Send + 'static) {
        self.0.lock().unwrap().probe = Some(Box::new(probe));
    }

    /// No more faults; returns how many calls there were since the last [`fail`](Self::fail).
    pub(crate) fn heal(&self) -> u64 {
        let mut state = self.0.lock().unwrap();
        state.fault = None;
        state.probe = None;
        std::mem::take(&mut state.calls)
    }

    /// The host of the target loses power: of what was not synced, each change survives or not.
    pub(crate) fn lose_power(&self, rng: &mut Rng) {
        let mut state = self.0.lock().unwrap();
        let names: BTreeSet<String> = state.shown.keys().chain(state.durable.keys()).cloned().collect();
        for name in names {
            if state.shown.get(&name) != state.durable.get(&name) && rng.below(2) == 0 {
                match state.durable.get(&name).cloned() {
                    Some(bytes) => state.shown.insert(name, bytes),
                    None => state.shown.remove(&name),
                };
            }
        }
        state.durable = state.shown.clone();
    }

    pub(crate) fn names(&self, prefix: &str) -> Vec<String> {
        let state = self.0.lock().unwrap();
        state.shown.keys().filter(|n| n.starts_with(prefix)).cloned().collect()
    }

    /// The objects that were put since this was last asked.
    pub(crate) fn puts(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().puts)
    }

    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        self.0.lock().unwrap().shown[name].clone()
    }

    pub(crate) fn set(&self, name: &str, bytes: Option<Vec<u8>>) {
        let mut state = self.0.lock().unwrap();
        match bytes {
            Some(bytes) => state.shown.insert(name.to_owned(), bytes),
            None => state.shown.remove(name),
        };
        state.durable = state.shown.clone();
    }

    fn call<T>(&self, work: impl FnOnce(&mut State) -> T) -> io::Result<T> {
        let mut state = self.0.lock().unwrap();
        let call = state.calls;
        state.calls += 1;
        if state.fault.is_some_and(|(at, _)| at <= call)
            && let Some(probe) = state.probe.take()
        {
            probe();
        }
        match state.fault {
            Some((at, Fault::Once)) if at == call => Err(io::Error::other("planted")),
            Some((at, Fault::ForGood)) if at <= call => Err(io::Error::other("planted for good")),
            Some((at, Fault::AfterEffect)) if at == call => {
                work(&mut state);
                Err(io::Error::other("planted after the effect"))
            }
            _ => Ok(work(&mut state)),
        }
    }
}

impl BackupTarget for MemoryTarget {
    fn put(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.call(|state| {
            state.puts.push(name.to_owned());
            state.shown.insert(name.to_owned(), bytes.to_vec());
        })
    }
    fn get(&self, name: &str, most_bytes: u64) -> io::Result<Option<Vec<u8>>> {
        let bytes = self.call(|state| state.shown.get(name).cloned())?;
        match bytes {
            Some(bytes) if bytes.len() as u64 > most_bytes => Err(io::ErrorKind::InvalidData.into()),
            bytes => Ok(bytes),
        }
    }
    fn list(&self, prefix: &str, after: Option<&str>) -> io::Result<Vec<Listed>> {
        self.call(|state| {
            let found = state.shown.iter().filter(|(name, _)| name.starts_with(prefix));
            let found = found.filter(|(name, _)| after.is_none_or(|after| name.as_str() > after));
            found.take(PAGE).map(|(n, b)| Listed { name: n.clone(), len: b.len() as u64 }).collect()
        })
    }
    fn delete(&self, name: &str) -> io::Result<()> {
        self.call(|state| {
            state.shown.remove(name);
        })
    }
    fn sync(&self) -> io::Result<()> {
        self.call(|state| state.durable = state.shown.clone())
    }
}
