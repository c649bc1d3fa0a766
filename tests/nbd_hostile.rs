//! Ten thousand clients that lie about lengths, send garbage, vanish in mid-request or never read, against a live
//! server: none of them takes anything but its own connection, and a well-behaved client goes on beside them.
#![cfg(all(feature = "nbd", target_os = "linux"))]
#![allow(clippy::unwrap_used)]

#[path = "common/nbd.rs"]
mod client;
#[path = "common/nbd_generate.rs"]
mod nbd_generate;
#[path = "common/rng.rs"]
mod rng;

use std::collections::VecDeque;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use client::*;
use nbd_generate::mutated_session;
use rng::Rng;
use snapvol::nbd::Server;
use snapvol::{CheckOptions, CreateOptions, Pool, SnapshotSpec, VolumeSpec};

const MIB: u64 = 1 << 20;
const SESSIONS: u64 = 10_000;
const DRIVERS: u64 = 4;
/// Connections that each driver leaves lying about, unread and unclosed.
const LITTER: usize = 8;
/// Most that the server may use for payloads.
const MEMORY: u64 = 32 * MIB;

fn resident_bytes() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

fn entries(folder: &str) -> usize {
    fs::read_dir(folder).unwrap().count()
}

/// What a hostile client does with its bytes. Returns whether it got as far as a reply to a request, and the
/// connection if it is to be left open.
fn attack(path: &Path, rng: &mut Rng) -> (bool, Option<UnixStream>) {
    let bytes = mutated_session(rng);
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
    // The server may have hung up already, or may want to be read first.
    let _ = stream.write_all(&bytes);
    match rng.below(4) {
        // Gone at once, with whatever is on its way.
        0 => return (false, None),
        // Never reads, never leaves.
        1 => return (false, Some(stream)),
        _ => {}
    }
    let _ = stream.shutdown(Shutdown::Write);
    let mut said = Vec::new();
    // A test that hangs would say nothing.
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    let end = (&mut stream).take(256 << 10).read_to_end(&mut said).map_err(|e| e.kind());
    assert_ne!(end, Err(ErrorKind::WouldBlock), "the server neither goes on nor hangs up");
    let replied = said.windows(4).any(|w| w == [0x67, 0x44, 0x66, 0x98] || w == [0x66, 0x8e, 0x33, 0xef]);
    (replied, None)
}

#[test]
fn ten_thousand_hostile_sessions_disturb_nobody() {
    let seed = rng::seed("hostile nbd", 5);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let pool =
        Pool::create_in_memory(CreateOptions::new().limit_bytes(64 << 20).cache_bytes(4 << 20)).unwrap();
    let good = pool.create_volume(VolumeSpec::blank(4 * MIB).name("good")).unwrap().id;
    let v = pool.create_volume(VolumeSpec::blank(64 * MIB).name("v")).unwrap().id;
    pool.create_snapshot(v, SnapshotSpec::new().name("s")).unwrap();
    let server = Server::builder(&pool)
        .unix(&path)
        .memory_bytes(MEMORY)
        .stall_limit(Duration::from_millis(500))
        .serve()
        .unwrap();
    let mut client = Client::open_with(&path, "good", &["base:allocation"]);
    // Memory and descriptors are counted once everything has been used.
    for i in 0..200 {
        attack(&path, &mut Rng::new(i));
    }
    let settle = || {
        while server.connections() > 1 {
            thread::yield_now();
        }
    };
    settle();
    let (memory, descriptors, threads) =
        (resident_bytes(), entries("/proc/self/fd"), entries("/proc/self/task"));

    let (stop, reached, peak) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let (rounds, slowest) = thread::scope(|scope| {
        let (path, stop, reached, peak) = (&path, &stop, &reached, &peak);
        let undisturbed = scope.spawn(move || {
            let mut rng = Rng::new(seed);
            let mut model = vec![0; 4 << 20];
            let (mut rounds, mut slowest) = (0_u64, Duration::ZERO);
            while !stop.load(Ordering::SeqCst) {
                let began = Instant::now();
                let (at, len) = (rng.below(4 * MIB - 40_000), 1 + rng.below(40_000));
                let place = at as usize..(at + len) as usize;
                let data = Rng::stamp_bytes(rounds, len as usize);
                client.write(at, &data);
                model[place.clone()].copy_from_slice(&data);
                if rounds.is_multiple_of(16) {
                    client.flush();
                    assert_eq!(client.call(0, STATUS, at, len as u32, &[]).error, 0);
                }
                let other = rng.below(4 * MIB - 40_000);
                assert!(client.read(other, 40_000) == model[other as usize..other as usize + 40_000]);
                assert!(client.read(at, len as u32) == model[place]);
                rounds += 1;
                slowest = slowest.max(began.elapsed());
                peak.fetch_max(resident_bytes(), Ordering::SeqCst);
            }
            assert!(client.read(0, 4 << 20) == model);
            (rounds, slowest)
        });
        let drivers: Vec<_> = (0..DRIVERS)
            .map(|driver| {
                scope.spawn(move || {
                    let mut rng = Rng::new(seed * 1000 + driver);
                    let mut litter = VecDeque::new();
                    for _ in 0..SESSIONS / DRIVERS {
                        let (replied, left) = attack(path, &mut rng);
                        reached.fetch_add(u64::from(replied), Ordering::SeqCst);
                        litter.extend(left);
                        if litter.len() > LITTER {
                            litter.pop_front();
                        }
                    }
                })
            })
            .collect();
        drivers.into_iter().for_each(|d| d.join().unwrap());
        stop.store(true, Ordering::SeqCst);
        undisturbed.join().unwrap()
    });
    let (reached, peak) = (reached.into_inner(), peak.into_inner());
    println!(
        "{SESSIONS} hostile sessions, {reached} of them answered; beside them {rounds} rounds, the slowest took \
         {slowest:?}; memory {} MiB before, {} MiB at most",
        memory / MIB,
        peak / MIB
    );
    assert!(reached > SESSIONS / 10, "the mutations leave nothing to talk about");
    assert!(rounds > 100);
    // Payload buffers, the pool in memory, its cache.
    let most = memory + MEMORY + 68 * MIB;
    assert!(peak < most, "{peak} bytes");

    // A hundred that want the longest reads and writes there are, and neither take nor send them.
    let hoarders: Vec<Client> = (0..100)
        .map(|i| {
            let mut client = Client::open(&path, "v");
            if i % 2 == 0 {
                for cookie in 0..8 {
                    client.send(&request(DF, READ, cookie, 0, 32 << 20));
                }
                client.bytes(1);
            } else {
                // More than the sockets hold, so that the server has begun to take it.
                client.send(&request(0, WRITE, 0, 0, 32 << 20));
                client.send(&[0; 400 << 10]);
            }
            client
        })
        .collect();
    let hoarded = resident_bytes();
    println!("a hundred hoarders: {} MiB", hoarded / MIB);
    assert!(hoarded < most, "{hoarded} bytes");
    drop(hoarders);
    // The well-behaved client has gone by now.
    while server.connections() > 0 {
        thread::yield_now();
    }
    // Threads end a moment after their connections.
    while entries("/proc/self/task") > threads {
        thread::yield_now();
    }
    assert!(entries("/proc/self/fd") <= descriptors, "descriptors leak");
    server.shutdown();
    assert_eq!(pool.volume(good).unwrap().attachments.len(), 0);
    assert!(pool.check(CheckOptions::default(), &mut |_| {}).unwrap().findings.is_empty());
    pool.close().unwrap();
}
