//! P10: one writer at a time, in this process and among processes; and what a killed process leaves behind.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::assert_sound;
use common::rng::Rng;
use snapvol::device::MemoryDevice;
use snapvol::{AttachOptions, CreateOptions, Error, OpenOptions, Pool, VolumeQuery, VolumeSpec};

const BLOCKS: u64 = 32;

fn options() -> CreateOptions {
    CreateOptions::new().blocks_per_chunk(64).log_bytes(256 << 10).limit_bytes(64 << 20)
}

fn assert_locked(outcome: Result<Pool, Error>) {
    match outcome {
        Err(Error::Locked) => {}
        Err(error) => panic!("must be locked: {error:?}"),
        Ok(_) => panic!("must be locked: it opened"),
    }
}

#[test]
fn second_open_in_this_process_is_locked_until_the_first_is_closed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pool");
    let pool = Pool::create(&path, options()).unwrap();
    assert_locked(Pool::open(&path, OpenOptions::new()));
    assert_locked(Pool::open(&path, OpenOptions::new().read_only(true)));
    let again = Pool::create(&path, options());
    assert!(matches!(again, Err(Error::Locked | Error::AlreadyExists { .. })), "{:?}", again.map(|_| ()));
    let id = pool.create_volume(VolumeSpec::blank(1 << 20)).unwrap().id;
    pool.close().unwrap();
    let pool = Pool::open(&path, OpenOptions::new()).unwrap();
    assert_eq!(pool.volume(id).unwrap().size_bytes, 1 << 20);
    // A drop closes, too.
    drop(pool);
    Pool::open(&path, OpenOptions::new()).unwrap().close().unwrap();
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["pool"], "no second file appears beside the pool");
}

/// A program that spawns others must be able to close a pool and open it again: a child has copies of all
/// descriptors until its `exec`, and must not keep the lock.
#[test]
fn children_being_spawned_do_not_keep_the_lock() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pool");
    Pool::create(&path, options()).unwrap().close().unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                Command::new("true").status().unwrap();
            }
        });
        for _ in 0..200 {
            let opened = Pool::open(&path, OpenOptions::new());
            done.store(opened.is_err(), std::sync::atomic::Ordering::Relaxed);
            opened.unwrap().close().unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn second_open_of_memory_is_locked() {
    let memory = MemoryDevice::new();
    let pool = Pool::create_on(memory.share(), options()).unwrap();
    assert_locked(Pool::open_on(memory.share(), OpenOptions::new()));
    pool.close().unwrap();
    Pool::open_on(memory, OpenOptions::new()).unwrap();
}

#[test]
fn clones_of_a_pool_handle_share_the_lock_and_the_last_one_releases_it() {
    let memory = MemoryDevice::new();
    let pool = Pool::create_on(memory.share(), options()).unwrap();
    let other = pool.clone();
    drop(pool);
    assert_locked(Pool::open_on(memory.share(), OpenOptions::new()));
    drop(other);
    Pool::open_on(memory, OpenOptions::new()).unwrap();
}

/// The pool in the other process, and what it has told about its progress.
struct Other {
    child: Child,
    lines: std::sync::mpsc::Receiver<u64>,
}

impl Other {
    /// Runs this test binary again as [`child_writes_until_it_is_killed`].
    fn start(path: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_writes_until_it_is_killed", "--nocapture", "--test-threads=1"])
            .env("SNAPVOL_TEST_CHILD", path)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                // The test harness may have printed before it on the same line.
                if let Some((_, number)) = line.split_once("flushed ")
                    && let Ok(number) = number.trim().parse()
                {
                    let _ = send.send(number);
                }
            }
        });
        Self { child, lines }
    }

    fn next(&self) -> u64 {
        self.lines.recv_timeout(Duration::from_secs(60)).expect("the other process makes progress")
    }

    /// Kills it and returns the last round that it had told to be flushed.
    fn kill(mut self) -> Option<u64> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let mut last = None;
        while let Ok(number) = self.lines.recv_timeout(Duration::from_millis(200)) {
            last = Some(number);
        }
        last
    }
}

fn block_of_round(round: u64) -> Vec<u8> {
    let mut bytes = Rng::stamp_bytes(round + 1, 4096);
    bytes[..8].copy_from_slice(&round.to_le_bytes());
    bytes
}

/// Not a test of its own: what another process does. Returns at once when it is not that process.
#[test]
fn child_writes_until_it_is_killed() {
    let Some(path) = std::env::var_os("SNAPVOL_TEST_CHILD") else { return };
    let pool = Pool::open(path, OpenOptions::new()).unwrap();
    let id = pool.list_volumes(&VolumeQuery::new()).unwrap().items[0].id;
    let disk = pool.attach(id, AttachOptions::default()).unwrap();
    let first = next_round(&disk);
    for round in first.. {
        disk.write_at(&block_of_round(round), round % BLOCKS * 4096).unwrap();
        if round % 7 == 3 {
            disk.flush().unwrap();
            println!("flushed {round}");
        }
        if round % 50 == 9 {
            let snapshot = pool.create_snapshot(id, snapvol::SnapshotSpec::new().force(true)).unwrap();
            println!("flushed {round}");
            if round % 100 == 9 {
                drop(pool.delete_snapshot(snapshot.id).unwrap());
            }
        }
    }
}

/// The round to go on with: every block holds a round that belongs there, and they follow on one another.
fn next_round(disk: &snapvol::Disk) -> u64 {
    let mut bytes = vec![0; (BLOCKS * 4096) as usize];
    disk.read_at(&mut bytes, 0).unwrap();
    let written: Vec<Option<u64>> = (0..BLOCKS)
        .map(|block| {
            let found = &bytes[(block * 4096) as usize..][..4096];
            if found.iter().all(|&b| b == 0) {
                return None;
            }
            let round = u64::from_le_bytes(found[..8].try_into().unwrap());
            let right = round % BLOCKS == block && block_of_round(round) == found;
            assert!(right, "block {block} holds bytes that nobody wrote there");
            Some(round)
        })
        .collect();
    let Some(last) = written.iter().flatten().max().copied() else { return 0 };
    // A commit boundary: no older round is missing while a newer one is there.
    for (block, found) in written.iter().enumerate() {
        let block = block as u64;
        let expected = if last >= block { Some(last - (last - block) % BLOCKS) } else { None };
        assert_eq!(*found, expected, "block {block}; the newest round is {last}");
    }
    last + 1
}

#[test]
fn other_process_finds_the_pool_locked_and_a_killed_one_leaves_no_lock_and_loses_nothing_flushed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pool");
    let pool = Pool::create(&path, options()).unwrap();
    let id = pool.create_volume(VolumeSpec::blank(BLOCKS * 4096)).unwrap().id;
    pool.close().unwrap();
    let mut rng = Rng::new(common::rng::seed("killed process", 3));
    let mut rounds = 0;
    for kill in 0..12 {
        let other = Other::start(&path);
        let mut flushed = other.next();
        assert_locked(Pool::open(&path, OpenOptions::new()));
        for _ in 0..rng.below(30) {
            flushed = flushed.max(other.next());
        }
        std::thread::sleep(Duration::from_micros(rng.below(3_000)));
        flushed = flushed.max(other.kill().unwrap_or(0));
        let pool = Pool::open(&path, OpenOptions::new()).expect("the lock went with the process");
        let disk = pool.attach(id, AttachOptions::default().read_only(true)).unwrap();
        let next = next_round(&disk);
        assert!(next > flushed, "kill {kill}: round {flushed} was flushed, the next one would be {next}");
        drop(disk);
        assert_sound(&pool);
        if kill % 2 == 0 {
            pool.close().unwrap();
        }
        rounds = next;
    }
    println!("12 processes killed, {rounds} rounds written");
}
