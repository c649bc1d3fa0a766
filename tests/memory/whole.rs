//! One workload, all of whose long allocations are refused in turn; what it wrote is compared.

use snapvol::device::MemoryDevice;
use snapvol::{
    AttachOptions, Background, CheckOptions, CreateOptions, Error, OpenOptions, Pool, SnapshotSpec, VolumeId,
    VolumeSpec,
};

use crate::scarce::{Own, refuse, relent, scarce};

const BLOCK: usize = 4096;

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
    refuse(from..to);
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
    let (count, (id, expected)) = (relent(), ended.unwrap());
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
