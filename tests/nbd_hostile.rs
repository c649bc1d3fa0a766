//! Ten thousand clients that lie about lengths, send garbage, vanish in mid-request or never read, against a live
//! server: none of them takes anything but its own connection, and a well-behaved client goes on beside them.
#![cfg(all(feature = "nbd", target_os = "linux"))]
#![allow(clippy::unwrap_used)]

#[path = "common/nbd.rs"]
mod client;
#[path = "common/nbd_session.rs"]
mod nbd_session;
#[path = "common/rng.rs"]
mod rng;

use std::collections::VecDeque;
use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use client::*;
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

/// What a client might say that keeps to the protocol, to the volume `v` of about 1 MiB.
fn sound_session(rng: &mut Rng) -> Vec<u8> {
    let mut said = (rng.below(4) as u32).to_be_bytes().to_vec();
    let structured = !rng.one_in(3);
    if structured {
        said.extend(option(8, &[]));
    }
    for _ in 0..rng.below(3) {
        let contexts: &[&str] = if rng.one_in(2) { &[] } else { &["base:", "qemu:", "base:allocation"] };
        said.extend(match rng.below(4) {
            0 => option(3, &[]),
            1 => option(6, &info_data("v@s", &[0, 1, 2, 3])),
            2 => option(9, &context_data("v", contexts)),
            _ => option(77, b"what is that"),
        });
    }
    if structured {
        said.extend(option(10, &context_data("v", &["base:allocation", "qemu:dirty-bitmap:s"])));
    }
    said.extend(match rng.one_in(3) {
        true => option(1, b"v"),
        false => option(7, &info_data("v", &[3])),
    });
    for cookie in 0..rng.below(12) {
        let most = if rng.one_in(8) { 1 << 18 } else { 9000 };
        let (offset, len) = (rng.below(1 << 20), rng.below(most) as u32);
        let (command, flags, len) = match rng.below(8) {
            0 | 1 => (0, if structured { 4 * rng.below(2) } else { 0 }, len),
            2 | 3 => (1, rng.below(2), len % 9000),
            4 => (3, 0, 0),
            5 => (4, rng.below(2), len),
            6 => (6, rng.below(4) | (16 * rng.below(2)), len),
            _ => (7, 8 * rng.below(2), len),
        };
        said.extend(request(flags as u16, command, cookie, if command == 3 { 0 } else { offset }, len));
        if command == 1 {
            said.extend(vec![cookie as u8; len as usize]);
        }
    }
    if rng.one_in(2) {
        said.extend(request(0, 2, 0, 0, 0));
    }
    said
}

/// A session of which bits, lengths and parts were changed, or none.
fn mutated_session(rng: &mut Rng) -> Vec<u8> {
    let mut said = sound_session(rng);
    for _ in 0..rng.below(5) {
        let at = rng.below(said.len() as u64) as usize;
        match rng.below(7) {
            0 => said[at] ^= 1 << rng.below(8),
            1 => said[at] = rng.next() as u8,
            2 => said.truncate(at + 1),
            // A number that lies.
            3 => {
                let number = [0, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 33 << 20][rng.below(6) as usize];
                let end = said.len().min(at + 4);
                said[at..end].copy_from_slice(&u32::to_be_bytes(number)[..end - at]);
            }
            4 => {
                let garbage = Rng::stamp_bytes(rng.next(), rng.below(600) as usize);
                said.splice(at..at, garbage);
            }
            5 => {
                let end = said.len().min(at + rng.below(100) as usize);
                said.drain(at..end);
            }
            _ => {
                let end = said.len().min(at + rng.below(400) as usize);
                let again = said[at..end].to_vec();
                said.splice(at..at, again);
            }
        }
        if said.is_empty() {
            break;
        }
    }
    said
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
    let _ = (&mut stream).take(256 << 10).read_to_end(&mut said);
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
    let v = pool.create_volume(VolumeSpec::blank(MIB).name("v")).unwrap().id;
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
    assert!(peak < memory + MEMORY + 68 * MIB, "{peak} bytes");
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
    assert_eq!(pool.volume(good).unwrap().attachments, 0);
    assert!(pool.check(CheckOptions::default(), &mut |_| {}).unwrap().findings.is_empty());
    pool.close().unwrap();
}

/// What the fuzzer runs, on the sessions that it may start from and on damaged ones.
#[test]
fn the_fuzz_body_takes_sound_and_damaged_sessions() {
    for seed in 0..300 {
        nbd_session::session(&sound_session(&mut Rng::new(seed)));
        nbd_session::session(&mutated_session(&mut Rng::new(seed)));
    }
}
