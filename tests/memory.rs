//! Memory that the process cannot have: every allocation above 64 KiB fails in turn, once and for good. The call
//! returns an error, nothing acknowledged is lost, and with memory again the pool goes on or asks to be reopened.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io;
use std::ptr::null_mut;

use snapvol::device::{Device, MemoryDevice};
use snapvol::{
    AttachOptions, Background, CheckOptions, CreateOptions, Error, OpenOptions, Pool, SnapshotSpec, VolumeId,
    VolumeSpec,
};

/// Longer ones are counted and can be refused.
const LONG: usize = 64 << 10;
const BLOCK: usize = 4096;

thread_local! {
    /// Only what the pool itself asks for counts.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
    static COUNT: Cell<usize> = const { Cell::new(0) };
    static FAIL_FROM: Cell<usize> = const { Cell::new(usize::MAX) };
    static FAIL_TO: Cell<usize> = const { Cell::new(usize::MAX) };
}

struct Scarce;

fn refused(bytes: usize) -> bool {
    if bytes <= LONG || !INSIDE.try_with(Cell::get).unwrap_or(false) {
        return false;
    }
    let n = COUNT.get();
    COUNT.set(n + 1);
    (FAIL_FROM.get()..FAIL_TO.get()).contains(&n)
}

// SAFETY: every call is passed on to the system's allocator as it is, or answered as if there were no memory.
unsafe impl GlobalAlloc for Scarce {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if refused(layout.size()) {
            return null_mut();
        }
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if refused(layout.size()) {
            return null_mut();
        }
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if refused(new_size) {
            return null_mut();
        }
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static HEAP: Scarce = Scarce;

/// Runs one call of the pool with memory being scarce.
fn scarce<T>(call: impl FnOnce() -> T) -> T {
    INSIDE.set(true);
    let done = call();
    INSIDE.set(false);
    done
}

/// A device whose own memory is not the pool's.
struct Own(MemoryDevice);

impl Own {
    fn own<T>(&self, call: impl FnOnce(&MemoryDevice) -> T) -> T {
        let inside = INSIDE.replace(false);
        let done = call(&self.0);
        INSIDE.set(inside);
        done
    }
}

impl Device for Own {
    fn len(&self) -> io::Result<u64> {
        self.own(Device::len)
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.own(|device| device.read_at(buf, offset))
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.own(|device| device.write_at(buf, offset))
    }
    fn sync(&self) -> io::Result<()> {
        self.own(Device::sync)
    }
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.own(|device| device.allocate(offset, len))
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.own(|device| device.set_len(len))
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.own(|device| device.discard(offset, len))
    }
    fn lock(&self) -> io::Result<bool> {
        self.own(Device::lock)
    }
    fn drop_cache(&self) -> io::Result<()> {
        self.own(Device::drop_cache)
    }
}

/// What every block of the volume may hold, by its stamp; the first is what was written last.
struct Expected(Vec<Vec<u8>>);

const BLOCKS: usize = 12_000;

fn options() -> CreateOptions {
    CreateOptions::new().limit_bytes(1 << 30).cache_bytes(16 << 20).background(Background::Manual)
}

fn reopen(medium: &MemoryDevice) -> Result<Pool, Error> {
    Pool::open_on(
        Own(medium.share()),
        OpenOptions::new().cache_bytes(16 << 20).background(Background::Manual),
    )
}

/// Everything that a pool asks much memory for. `each` is told of every call that failed, and says whether to go on.
fn workload(
    medium: &MemoryDevice,
    failed: &mut dyn FnMut(&'static str, &Error),
) -> Option<(VolumeId, Expected)> {
    let mut tell = |what, error| failed(what, &error);
    let pool = match scarce(|| Pool::create_on(Own(medium.share()), options())) {
        Ok(pool) => pool,
        Err(error) => {
            tell("create", error);
            Pool::create_on(Own(medium.share()), options()).expect("with memory again")
        }
    };
    let id = pool.create_volume(VolumeSpec::blank((BLOCKS * BLOCK) as u64)).unwrap().id;
    let disk = pool.attach(id, AttachOptions::default()).unwrap();
    let mut expected = Expected(vec![vec![0]; BLOCKS]);
    let mut write = |at: usize, blocks: usize, stamp: u8, tell: &mut dyn FnMut(&'static str, Error)| {
        let bytes = vec![stamp; blocks * BLOCK];
        let done = scarce(|| disk.write_at(&bytes, (at * BLOCK) as u64));
        for block in &mut expected.0[at..at + blocks] {
            // Of a write that failed each block is old or new.
            if done.is_ok() {
                block.clear();
            }
            block.push(stamp);
        }
        if let Err(error) = done {
            tell("write", error);
        }
    };
    for n in 0..6 {
        write(n * 500, 500, n as u8 + 1, &mut tell);
    }
    // Blocks with gaps, so that each is a change of its own.
    for n in 0..5_000 {
        write(n * 2 + 1, 1, (n % 250) as u8 + 1, &mut tell);
    }
    if let Err(error) = scarce(|| pool.flush()) {
        tell("flush", error);
    }
    match scarce(|| pool.create_snapshot(id, SnapshotSpec::new().force(true))) {
        Ok(_) => {}
        Err(error) => tell("snapshot", error),
    }
    if let Err(error) = scarce(|| pool.checkpoint()) {
        tell("checkpoint", error);
    }
    for (what, report) in [
        ("check", scarce(|| pool.check(CheckOptions::new(), &mut |_| {}))),
        ("scrub", scarce(|| pool.scrub(CheckOptions::new(), &mut |_| {}))),
    ] {
        if let Err(error) = report {
            tell(what, error);
        }
    }
    for n in 0..3_000 {
        write(n * 3, 1, (n % 250) as u8 + 2, &mut tell);
    }
    if let Err(error) = scarce(|| pool.flush()) {
        tell("second flush", error);
    }
    drop(disk);
    // As a kill leaves it: what counts stands in the log.
    let killed = MemoryDevice::from_bytes(medium.snapshot_bytes());
    drop(pool);
    match scarce(|| reopen(&killed)) {
        Ok(pool) => drop(pool),
        Err(error) => tell("recovery", error),
    }
    Some((id, expected))
}

/// Runs the workload with these allocations refused, and says how many there were and what failed.
fn run(from: usize, to: usize) -> (usize, Vec<&'static str>) {
    COUNT.set(0);
    FAIL_FROM.set(from);
    FAIL_TO.set(to);
    let medium = MemoryDevice::new();
    let mut failed = Vec::new();
    let mut latched = false;
    let ended = workload(&medium, &mut |what, error| {
        let refused = matches!(error, Error::OutOfMemory { .. });
        assert!(refused || latched && matches!(error, Error::Poisoned), "{what}: {error:?}");
        // A commit of records that cannot be written leaves the pool latched, as a failed log write does.
        latched |= refused;
        failed.push(what);
    });
    FAIL_FROM.set(usize::MAX);
    let (count, (id, expected)) = (COUNT.get(), ended.unwrap());
    let pool = reopen(&medium).expect("with memory again");
    let disk = pool.attach(id, AttachOptions::default()).unwrap();
    let mut bytes = vec![0; BLOCKS * BLOCK];
    disk.read_at(&mut bytes, 0).unwrap();
    // Only a run whose flushes all returned has promised what was written last.
    if !failed.iter().any(|what| what.contains("flush") || *what == "snapshot") {
        for (block, (seen, possible)) in bytes.chunks(BLOCK).zip(&expected.0).enumerate() {
            assert!(
                seen.iter().all(|b| *b == seen[0]) && possible.contains(&seen[0]),
                "block {block}: {}",
                seen[0]
            );
        }
    }
    drop(disk);
    assert!(pool.check(CheckOptions::new(), &mut |_| {}).unwrap().is_clean());
    assert!(pool.scrub(CheckOptions::new(), &mut |_| {}).unwrap().is_clean());
    (count, failed)
}

#[test]
fn every_long_allocation_may_fail_once_or_for_good_and_the_call_says_so() {
    let (count, failed) = run(usize::MAX, usize::MAX);
    assert!(failed.is_empty() && count > 20, "{count} long allocations; {failed:?}");
    let mut calls = std::collections::BTreeMap::<_, usize>::new();
    for n in 0..count {
        for to in [n + 1, usize::MAX] {
            let (_, failed) = run(n, to);
            assert!(
                !failed.is_empty() || to == n + 1,
                "from allocation {n} on none succeeded, and no call failed"
            );
            failed.into_iter().for_each(|what| *calls.entry(what).or_default() += 1);
        }
    }
    println!("{count} long allocations, each refused once and for good: {calls:?}");
    for what in ["create", "write", "flush", "checkpoint", "check", "scrub", "recovery"] {
        assert!(calls.contains_key(what), "{what} never failed: {calls:?}");
    }
}
