//! The NBD server against a client that says exactly what the test wants: each rule of the protocol and of the crate's
//! own once, on a live server.
#![cfg(feature = "nbd")]
#![allow(clippy::unwrap_used)]

#[path = "common/nbd.rs"]
mod client;
#[path = "common/nbd_generate.rs"]
mod nbd_generate;
#[path = "common/nbd_session.rs"]
mod nbd_session;
// Included for what `nbd_generate` draws with; the rest of it is for other tests.
#[allow(dead_code)]
#[path = "common/rng.rs"]
mod rng;

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use client::*;
use snapvol::device::{Device, MemoryDevice};
use snapvol::nbd::{Builder, Server, exports, find_export};
use snapvol::{
    AttachOptions, CreateOptions, Error, OpenOptions, Point, Pool, RollbackOptions, SnapshotId, SnapshotSpec,
    Snapshots, Volume, VolumeId, VolumeSpec, VolumeStatus,
};

const MIB: u64 = 1 << 20;

/// A pool and a server for it on a socket in a folder that goes with it.
struct Rig {
    pool: Pool,
    server: Option<Server>,
    folder: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        Self::of(Pool::create_in_memory(CreateOptions::new().limit_bytes(256 << 20)).unwrap(), |b| b)
    }

    fn of(pool: Pool, tune: impl FnOnce(Builder) -> Builder) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = tune(Server::builder(&pool).unix(folder.path().join("s"))).serve().unwrap();
        Self { pool, server: Some(server), folder }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    fn volume(&self, name: &str, size_bytes: u64) -> VolumeId {
        self.pool.create_volume(VolumeSpec::blank(size_bytes).name(name)).unwrap().id
    }

    fn snapshot(&self, volume: VolumeId, name: &str) -> SnapshotId {
        self.pool.create_snapshot(volume, SnapshotSpec::new().name(name).force(true)).unwrap().id
    }

    fn open(&self, name: &str) -> Client {
        Client::open(&self.path(), name)
    }

    fn status(&self, id: VolumeId) -> VolumeStatus {
        self.pool.volume(id).unwrap().status
    }

    /// Ends the server; afterwards nothing is attached and the pool is sound.
    fn end(mut self) {
        self.server.take().unwrap().shutdown();
        assert!(!self.path().exists());
        let report = self.pool.check(Default::default(), &mut |_| {}).unwrap();
        assert!(report.findings.is_empty(), "{:#?}", report.findings);
        self.pool.close().expect("nothing is attached any more");
    }
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

// ---- Names -------------------------------------------------------------------------------------------------------

#[test]
fn an_id_always_names_its_object_and_a_name_does_while_it_is_the_only_one() {
    let rig = Rig::new();
    let a = rig.volume("a", MIB);
    let twin_1 = rig.volume("twin", 2 * MIB);
    let twin_2 = rig.volume("twin", 3 * MIB);
    let odd = rig.volume("with@sign", 4 * MIB);
    let daily = rig.snapshot(a, "daily");
    let daily_2 = rig.snapshot(twin_1, "daily");
    let nightly = rig.snapshot(odd, "night@ly");
    let usurper = rig.volume(&a.to_string(), 5 * MIB);
    let point = |name: &str| find_export(&rig.pool, name).map(|e| e.point);
    for (name, object) in [
        (a.to_string(), Point::Volume(a)),
        (usurper.to_string(), Point::Volume(usurper)),
        (twin_2.to_string(), Point::Volume(twin_2)),
        (daily.to_string(), Point::Snapshot(daily)),
        ("a".into(), Point::Volume(a)),
        ("with@sign".into(), Point::Volume(odd)),
        ("a@daily".into(), Point::Snapshot(daily)),
        ("twin@daily".into(), Point::Snapshot(daily_2)),
        (format!("{twin_1}@daily"), Point::Snapshot(daily_2)),
        ("night@ly".into(), Point::Snapshot(nightly)),
        ("with@sign@night@ly".into(), Point::Snapshot(nightly)),
    ] {
        assert_eq!(point(&name).unwrap(), object, "{name}");
        let mut client = rig.open(&name);
        assert_eq!(client.size, find_export(&rig.pool, &name).unwrap().size_bytes);
        client.read(0, 512);
        client.disconnect();
    }
    for name in ["twin", "daily", ""] {
        assert!(matches!(point(name), Err(Error::InvalidArgument { field: "name", .. })), "{name:?}");
    }
    for name in ["b", "a@", "@daily", "a@night@ly", "twin@twin", "0f0f0f0f-0f0f-0f0f-0f0f-0f0f0f0f0f0f"] {
        assert!(matches!(point(name), Err(Error::NotFound { .. })), "{name}");
        let mut client = Client::hello(&rig.path(), 3);
        assert_eq!(client.go(name).unwrap_err().0, ERR_UNKNOWN);
        assert_eq!(client.verdict(2, &[]), ACK, "it may go on after that");
    }
    rig.end();
}

#[test]
fn the_empty_name_is_the_only_volume() {
    let rig = Rig::new();
    assert!(matches!(find_export(&rig.pool, ""), Err(Error::NotFound { .. })));
    let only = rig.volume("only", MIB);
    rig.snapshot(only, "snapshots do not count");
    assert_eq!(rig.open("").size, MIB);
    rig.volume("another", MIB);
    assert_eq!(Client::hello(&rig.path(), 3).go("").unwrap_err().0, ERR_UNKNOWN);
    rig.end();
}

#[test]
fn every_object_is_listed_once_under_a_name_that_finds_it() {
    let rig = Rig::new();
    // More than one page of each kind.
    let mut all = Vec::new();
    for i in 0..150 {
        let volume = rig.volume(&format!("v{}", i / 2), 4096);
        all.push(volume.raw());
        all.push(rig.snapshot(volume, &format!("s{i}")).raw());
    }
    for name in ["", "a\0b", &all[0].to_string()] {
        let volume = rig.volume(name, 4096);
        all.push(volume.raw());
        all.push(rig.snapshot(volume, name).raw());
    }
    all.push(rig.pool.create_volume(VolumeSpec::blank(4096)).unwrap().id.raw());
    let listed: Vec<_> = exports(&rig.pool).unwrap().map(Result::unwrap).collect();
    let mut ids: Vec<_> = listed.iter().map(|e| e.id()).collect();
    for export in &listed {
        let found = find_export(&rig.pool, &export.name).unwrap();
        assert_eq!((found.id(), found.size_bytes, found.read_only), (export.id(), 4096, export.read_only));
        assert_eq!(export.read_only, matches!(export.point, Point::Snapshot(_)));
    }
    ids.sort();
    all.sort();
    assert_eq!(ids, all);
    let names: Vec<&str> = listed.iter().map(|e| e.name.as_str()).collect();
    assert!(names.contains(&"v0@s1") && !names.contains(&"v0"), "v0 is the name of two volumes");

    let mut client = Client::hello(&rig.path(), 3);
    let replies = client.option(3, &[]);
    let said: Vec<String> = replies[..replies.len() - 1]
        .iter()
        .map(|(kind, payload)| {
            assert_eq!(*kind, 2);
            let len = be32(payload) as usize;
            assert!(payload.len() > 4 + len, "a description for people follows");
            String::from_utf8(payload[4..4 + len].to_vec()).unwrap()
        })
        .collect();
    assert_eq!(said, names);
    drop(client);
    rig.end();
}

#[test]
fn a_listing_goes_on_where_objects_are_deleted_under_it() {
    let rig = Rig::new();
    for i in 0..200 {
        rig.volume(&format!("v{i:03}"), 4096);
    }
    let mut listing = exports(&rig.pool).unwrap();
    let mut seen: Vec<String> = listing.by_ref().take(64).map(|e| e.unwrap().name).collect();
    // Newest first: these are the last ones of the first page, and some of the second.
    for i in 120..140 {
        let gone = find_export(&rig.pool, &format!("v{i:03}")).unwrap();
        let Point::Volume(id) = gone.point else { panic!("not a volume") };
        let _ = rig.pool.delete_volume(id, Snapshots::Refuse).unwrap();
    }
    seen.extend(listing.map(|e| e.unwrap().name));
    let want: Vec<String> =
        (0..200).rev().filter(|i| !(120..136).contains(i)).map(|i| format!("v{i:03}")).collect();
    assert_eq!(seen, want);
    rig.end();
}

// ---- Handshake ---------------------------------------------------------------------------------------------------

#[test]
fn options_are_answered_as_the_protocol_says() {
    let rig = Rig::new();
    rig.volume("v", MIB);
    let mut client = Client::hello(&rig.path(), 3);
    // Unknown, withdrawn and TLS: refused, and the next one is understood.
    for unknown in [0, 4, 5, 11, 12, 0xffff_ffff] {
        assert_eq!(client.verdict(unknown, b"whatever"), ERR_UNSUP);
    }
    assert_eq!(client.verdict(3, b"data"), ERR_INVALID);
    assert_eq!(client.verdict(8, b"data"), ERR_INVALID);
    // Lengths that lie.
    for data in [
        &b""[..],
        b"\0\0\0",
        b"\0\0\0\x09v\0\0",
        b"\xff\xff\xff\xffv\0\0",
        b"\0\0\0\x01v\0\x01",
        b"\0\0\0\x01v\0\0more",
        b"\0\0\0\x01\xff\0\0",
    ] {
        assert_eq!(client.verdict(6, data), ERR_INVALID, "{data:?}");
        assert_eq!(client.verdict(7, data), ERR_INVALID, "{data:?}");
    }
    assert_eq!(client.verdict(6, &vec![0; (128 << 10) + 1]), ERR_TOO_BIG);
    // INFO, then GO with the same wishes.
    let wishes = info_data("v", &[0, 1, 2, 3, 77]);
    let mut info = client.option(6, &wishes);
    let part = |info: &[(u32, Vec<u8>)], kind| {
        info.iter().find(|(k, p)| *k == 3 && be16(p) == kind).map(|(_, p)| p[2..].to_vec()).unwrap()
    };
    let export = part(&info, 0);
    assert_eq!((be64(&export), be16(&export[8..])), (MIB, 0b1101_0110_1101));
    assert_eq!(part(&info, 1), b"v");
    assert!(part(&info, 2).starts_with(b"volume "));
    let sizes = part(&info, 3);
    assert_eq!((be32(&sizes), be32(&sizes[4..]), be32(&sizes[8..])), (1, 4096, 32 << 20));
    assert_eq!(info.len(), 5);
    let mut go = client.option(7, &wishes);
    info.sort();
    go.sort();
    assert_eq!(info, go);
    assert_eq!(client.read(0, 1), [0]);
    client.disconnect();
    // DF is offered with structured replies only.
    let mut client = Client::hello(&rig.path(), 3);
    client.structured();
    client.go("v").unwrap();
    assert_eq!(client.flags, 0b1101_1110_1101);
    // What is not asked for is not told.
    drop(client);
    assert_eq!(Client::hello(&rig.path(), 3).go("v").unwrap().len(), 2);
    rig.end();
}

#[test]
fn info_attaches_nothing_and_go_does() {
    let rig = Rig::new();
    let id = rig.volume("v", MIB);
    let mut client = Client::hello(&rig.path(), 3);
    assert_eq!(client.verdict(6, &info_data("v", &[])), ACK);
    assert_eq!(rig.status(id), VolumeStatus::Available);
    let disk = rig.pool.attach(id, AttachOptions::default()).unwrap();
    let (kind, why) = client.go("v").unwrap_err();
    assert_eq!(kind, ERR_UNKNOWN);
    assert!(why.contains("in-use"), "{why}");
    drop(disk);
    client.go("v").unwrap();
    assert_eq!(rig.status(id), VolumeStatus::InUse);
    drop(client);
    rig.end();
}

#[test]
fn the_old_way_in_works_and_ends_the_connection_where_it_cannot() {
    let rig = Rig::new();
    rig.volume("v", MIB);
    for (flags, tail) in [(0, 124), (1, 124), (2, 0), (3, 0)] {
        let mut client = Client::hello(&rig.path(), flags);
        client.send(&option(1, b"v"));
        let said = client.bytes(10 + tail);
        assert_eq!((be64(&said), be16(&said[8..])), (MIB, 0b1101_0110_1101));
        assert!(said[10..].iter().all(|b| *b == 0));
        client.write(7, b"old");
        assert_eq!(client.read(6, 5), b"\0old\0");
        assert_eq!(client.call(DF, READ, 0, 1, &[]).error, EINVAL, "DF was not negotiated");
        client.disconnect();
        let mut client = Client::hello(&rig.path(), flags);
        client.send(&option(1, b"nothing"));
        assert!(client.is_closed());
    }
    for flags in [4, 0x8000_0001] {
        assert!(Client::hello(&rig.path(), flags).is_closed(), "unknown client flags");
    }
    let mut client = Client::hello(&rig.path(), 3);
    assert_eq!(client.verdict(2, b"ignored"), ACK);
    assert!(client.is_closed());
    let mut client = Client::hello(&rig.path(), 3);
    client.send(&option(1, &vec![b'x'; 200 << 10]));
    assert!(client.is_closed());
    rig.end();
}

#[test]
fn contexts_are_listed_and_selected_as_the_protocol_says() {
    let rig = Rig::new();
    let v = rig.volume("v", MIB);
    let other = rig.volume("other", MIB);
    rig.snapshot(v, "one");
    let two = rig.snapshot(v, "two");
    rig.snapshot(other, "elsewhere");
    let mut client = Client::hello(&rig.path(), 3);
    assert_eq!(client.verdict(10, &context_data("v", &["base:allocation"])), ERR_INVALID, "not structured");
    client.structured();
    let mut names = |option: u32, export: &str, queries: &[&str]| -> Vec<String> {
        let mut replies = client.option(option, &context_data(export, queries));
        assert_eq!(replies.pop().unwrap().0, ACK, "{queries:?}");
        let ids: Vec<u32> = replies.iter().map(|r| be32(&r.1)).collect();
        assert!(option == 9 || ids.iter().enumerate().all(|(i, id)| ids[..i].iter().all(|o| o != id)));
        replies
            .iter()
            .map(|(kind, p)| (assert_eq!(*kind, 4), String::from_utf8(p[4..].to_vec()).unwrap()).1)
            .collect()
    };
    let of = |name: &str| format!("qemu:dirty-bitmap:{name}");
    let all = ["base:allocation".into(), of("v@two"), of("v@one")];
    assert_eq!(names(9, "v", &[]), all);
    assert_eq!(names(9, "v@one", &[]), all, "a snapshot has those of its volume");
    assert_eq!(names(9, "v", &["qemu:", "base:"]), all);
    assert_eq!(names(9, "v", &["qemu:dirty-bitmap:"]), all[1..]);
    assert_eq!(names(9, "v", &[&of("elsewhere"), &of("nothing"), "base:nothing"]), [of("elsewhere")]);
    assert_eq!(names(9, "v", &["x-unknown:a", "nbd-server:"]), [""; 0]);
    assert_eq!(names(10, "v", &[]), [""; 0]);
    assert_eq!(names(10, "v", &["base:", "qemu:", "qemu:dirty-bitmap:", "qemu:allocation-depth"]), [""; 0]);
    let by_id = of(&two.to_string());
    let mut both = names(10, "v", &[&by_id, "base:allocation", &by_id]);
    both.sort();
    assert_eq!(both, ["base:allocation", &by_id]);
    for export in ["nothing", ""] {
        assert_eq!(client.verdict(9, &context_data(export, &[])), ERR_UNKNOWN);
        assert_eq!(client.verdict(10, &context_data(export, &["base:allocation"])), ERR_UNKNOWN);
    }
    for data in [&b"\0\0\0\x01v"[..], b"\0\0\0\x01v\0\0\0\x01", b"\0\0\0\x01v\0\0\0\x01\xff\xff\xff\xff", b""]
    {
        assert_eq!(client.verdict(9, data), ERR_INVALID);
        assert_eq!(client.verdict(10, data), ERR_INVALID);
    }
    assert_eq!(client.verdict(10, &context_data("v", &["no colon"])), ERR_INVALID);
    assert_eq!(client.verdict(10, &context_data("v", &["a:b"; 17])), ERR_TOO_BIG);
    // The last selection counts, a failed one too.
    client.go("v").unwrap();
    assert_eq!(client.call(0, STATUS, 0, 4096, &[]).error, EINVAL);
    drop(client);
    // As does the export name that it was made for.
    let mut client = Client::hello(&rig.path(), 3);
    client.structured();
    assert_eq!(client.verdict(10, &context_data("v", &["base:allocation"])), ACK);
    client.go("other").unwrap();
    assert_eq!(client.call(0, STATUS, 0, 4096, &[]).error, EINVAL);
    drop(client);
    // A snapshot that is selected stays.
    let client = Client::open_with(&rig.path(), "v", &[&by_id]);
    assert!(matches!(rig.pool.delete_snapshot(two), Err(Error::Busy { .. } | Error::InvalidState { .. })));
    client.disconnect();
    let _ = rig.pool.delete_snapshot(two).unwrap();
    rig.end();
}

// ---- Transmission ------------------------------------------------------------------------------------------------

#[test]
fn any_alignment_reads_and_writes_what_it_says_with_either_kind_of_reply() {
    // The smallest buffers, so that pieces of all sizes occur.
    let pool = Pool::create_in_memory(CreateOptions::new().limit_bytes(256 << 20)).unwrap();
    let rig = Rig::of(pool, |b| b.memory_bytes(0));
    rig.volume("v", 40 * MIB);
    let mut model = vec![0; 40 << 20];
    let mut clients = [Client::open(&rig.path(), "v"), Client::open_simple(&rig.path(), "v")];
    let sizes =
        [1, 511, 512, 4095, 4096, 4097, 65_535, 65_536, 65_537, 200_000, 1 << 20, (2 << 20) + 17, 32 << 20];
    for (i, len) in sizes.into_iter().enumerate() {
        let (i, at) = (i as u64, i as u64 * 4096 * 3 + 4095 * (i as u64 % 3));
        let data = pattern(i, len);
        clients[i as usize % 2].write(at, &data);
        model[at as usize..at as usize + len].copy_from_slice(&data);
        for (flags, client) in [(0, 0), (DF, 0), (0, 1)] {
            let (from, len) = (at.saturating_sub(700), (len as u32 + 900).min(32 << 20));
            let got = clients[client].call(flags, READ, from, len, &[]);
            assert_eq!(got.error, 0);
            assert!(got.data == model[from as usize..(from + u64::from(len)) as usize], "{len} at {from}");
        }
    }
    for client in &mut clients {
        // What has no length has no effect.
        for command in [READ, WRITE, TRIM, ZEROES, CACHE] {
            assert_eq!(client.call(0, command, 4096, 0, &[]).error, 0);
        }
        client.flush();
    }
    drop(clients);
    rig.end();
}

#[test]
fn holes_are_sent_as_holes_where_that_is_worth_a_chunk() {
    let rig = Rig::new();
    rig.volume("v", 8 * MIB);
    let mut client = rig.open("v");
    let data = pattern(3, 100_000);
    client.write(MIB, &data);
    client.write(2 * MIB, &data);
    client.write(2 * MIB + 110_592, &data);
    let got = client.call(0, READ, 0, 4 << 20, &[]);
    let (end, end_2) = (MIB + 102_400, 2 * MIB + 110_592 + 102_400);
    assert_eq!(got.holes, [(0, 1 << 20), (end, (2 * MIB - end) as u32), (end_2, (4 * MIB - end_2) as u32)]);
    assert_eq!(got.content_chunks, 5, "two pieces of data 8 KiB apart are one");
    // In one chunk if it must be, and a small read of a hole is a hole.
    let same = client.call(DF, READ, 0, 4 << 20, &[]);
    assert_eq!((same.data == got.data, same.content_chunks, same.holes.len()), (true, 1, 0));
    assert_eq!(client.call(0, READ, 5 * MIB + 100, 300, &[]).holes, [(5 * MIB + 100, 300)]);
    assert_eq!(client.call(DF, READ, 5 * MIB + 100, 300, &[]).holes, []);
    drop(client);
    rig.end();
}

#[test]
fn errors_have_the_value_that_is_written_down() {
    let rig = Rig::new();
    let id = rig.volume("v", MIB);
    rig.snapshot(id, "s");
    let most = 33 << 20;
    let fill = vec![7; most as usize];
    for (mut client, structured) in [(rig.open("v"), true), (Client::open_simple(&rig.path(), "v"), false)] {
        let mut expect = |flags, command, offset, len: u32, error| {
            let payload = if command == WRITE { &fill[..len as usize] } else { &[] };
            let got = client.call(flags, command, offset, len, payload);
            assert_eq!(got.error, error, "flags {flags} command {command} at {offset} of {len}: {}", got.why);
        };
        for (command, error) in [
            (READ, EINVAL),
            (TRIM, EINVAL),
            (CACHE, EINVAL),
            (WRITE, ENOSPC),
            (ZEROES, ENOSPC),
            (STATUS, EINVAL),
        ] {
            for (offset, len) in [(MIB, 1), (MIB - 1, 2), (0, MIB as u32 + 1), (u64::MAX, 2), (1 << 63, 1)] {
                expect(0, command, offset, len, error);
            }
        }
        let df = if structured { 0 } else { DF };
        for (command, bad) in [
            (READ, NO_HOLE | REQ_ONE | FAST_ZERO | 32 | df),
            (WRITE, NO_HOLE | DF | REQ_ONE | FAST_ZERO | 0x8000),
            (FLUSH, NO_HOLE | DF | REQ_ONE | FAST_ZERO | 32),
            (TRIM, NO_HOLE | DF | REQ_ONE | FAST_ZERO | 32),
            (CACHE, NO_HOLE | DF | REQ_ONE | FAST_ZERO | 32),
            (ZEROES, DF | REQ_ONE | 32),
            (STATUS, NO_HOLE | DF | FAST_ZERO | 32),
        ] {
            let len = if command == FLUSH { 0 } else { 512 };
            for bit in (0..16).map(|b| 1 << b).filter(|b| bad & b != 0) {
                expect(bit, command, 0, len, EINVAL);
            }
            if command != STATUS {
                expect(FUA, command, 0, len, 0);
            }
        }
        for command in [8, 9, 77, 0xffff] {
            expect(0, command, 0, 0, EINVAL);
        }
        expect(0, FLUSH, 1, 0, EINVAL);
        expect(0, FLUSH, 0, 1, EINVAL);
        expect(0, STATUS, 0, 512, EINVAL);
        expect(NO_HOLE | FAST_ZERO, ZEROES, 0, 8192, ENOTSUP);
        expect(FAST_ZERO, ZEROES, 1, 8190, ENOTSUP);
        expect(FAST_ZERO, ZEROES, 1, 8191, 0);
        client.disconnect();
    }
    let mut snapshot = rig.open("s");
    assert_eq!(snapshot.flags & 2, 2, "read-only");
    for (command, payload) in [(WRITE, &[1; 512][..]), (TRIM, &[]), (ZEROES, &[])] {
        assert_eq!(snapshot.call(0, command, 0, 512, payload).error, EPERM);
        assert_eq!(snapshot.call(FUA, command, u64::MAX, 512, payload).error, EPERM);
    }
    snapshot.flush();
    assert_eq!(snapshot.read(0, 512), [0; 512]);
    drop(snapshot);
    rig.end();
}

#[test]
fn a_write_or_read_that_is_too_long_is_refused_and_the_next_request_understood() {
    let rig = Rig::new();
    rig.volume("v", 64 * MIB);
    let mut client = rig.open("v");
    let data = vec![9; (32 << 20) + 1];
    assert_eq!(client.call(0, WRITE, 0, data.len() as u32, &data).error, EINVAL);
    assert_eq!(client.call(0, READ, 0, data.len() as u32, &[]).error, EINVAL);
    assert!(client.read(0, 4096).iter().all(|b| *b == 0), "nothing was written");
    // What moves no bytes has no such limit.
    assert_eq!(client.call(0, ZEROES, 0, 64 << 20, &[]).error, 0);
    assert_eq!(client.call(0, TRIM, 0, 64 << 20, &[]).error, 0);
    drop(client);
    rig.end();
}

#[test]
fn a_full_pool_is_enospc_and_goes_on_after_a_trim() {
    let pool = Pool::create_in_memory(
        CreateOptions::new()
            .limit_bytes(8 << 20)
            .log_bytes(64 << 10)
            .blocks_per_chunk(64)
            .cache_bytes(1 << 20),
    )
    .unwrap();
    let rig = Rig::of(pool, |b| b);
    rig.volume("v", 64 * MIB);
    let mut client = rig.open("v");
    let data = pattern(5, 256 << 10);
    let written = (0..256_u64)
        .take_while(|i| {
            let got = client.call(0, WRITE, i * data.len() as u64, data.len() as u32, &data);
            assert!(got.error == 0 || got.error == ENOSPC, "{}", got.why);
            got.error == 0
        })
        .count() as u64;
    assert!((4..40).contains(&written), "{written}");
    assert_eq!(client.read((written - 1) * data.len() as u64, data.len() as u32), data);
    assert_eq!(client.call(NO_HOLE, ZEROES, 32 * MIB, 16 << 20, &[]).error, ENOSPC);
    client.flush();
    assert_eq!(client.call(FUA, TRIM, 0, 64 << 20, &[]).error, 0);
    let again = |client: &mut Client| client.call(FUA, WRITE, 0, data.len() as u32, &data).error;
    // Space comes back in the background, and each flush gives it a chance.
    while again(&mut client) == ENOSPC {
        client.flush();
    }
    assert_eq!(client.read(0, data.len() as u32), data);
    drop(client);
    rig.end();
}

#[test]
fn a_damaged_block_is_eio_with_its_offset_and_the_rest_stays_readable() {
    let device = MemoryDevice::new();
    let pool = Pool::create_on(device.share(), CreateOptions::new().limit_bytes(64 << 20)).unwrap();
    let id = pool.create_volume(VolumeSpec::blank(4 * MIB).name("v")).unwrap().id;
    let data = pattern(11, 512 << 10);
    let disk = pool.attach(id, AttachOptions::default()).unwrap();
    disk.write_at(&data, 0).unwrap();
    drop(disk);
    pool.close().unwrap();
    // One bit of block 40.
    let damaged = 40 * 4096..41 * 4096;
    let bytes = device.snapshot_bytes();
    let places: Vec<usize> =
        (0..bytes.len()).step_by(4096).filter(|at| bytes[*at..*at + 4096] == data[damaged.clone()]).collect();
    assert_eq!(places.len(), 1);
    device.write_at(&[bytes[places[0] + 9] ^ 4], places[0] as u64 + 9).unwrap();

    let rig = Rig::of(Pool::open_on(device, OpenOptions::new()).unwrap(), |b| b.memory_bytes(0));
    let mut client = rig.open("v");
    let got = client.call(0, READ, 100, 400_000, &[]);
    assert_eq!((got.error, got.error_at), (EIO, Some(damaged.start as u64)), "{}", got.why);
    assert!(got.data == data[100..damaged.start], "what lies before it is there");
    assert_eq!(got.data.len(), damaged.start - 100);
    // In one chunk: up to the piece that has it.
    let got = client.call(DF, READ, 0, 400_000, &[]);
    let at = got.error_at.unwrap() as usize;
    assert_eq!(got.error, EIO);
    assert!(at <= damaged.start && got.data[..at] == data[..at]);
    let got = client.call(DF, READ, damaged.start as u64 + 5, 10, &[]);
    assert_eq!((got.error, got.data.len()), (EIO, 0));
    assert_eq!(client.call(0, CACHE, 0, 1 << 20, &[]).error, EIO);
    assert!(client.read(damaged.end as u64, 200_000) == data[damaged.end..damaged.end + 200_000]);
    let mut simple = Client::open_simple(&rig.path(), "v");
    assert_eq!(simple.call(0, READ, damaged.start as u64, 4096, &[]).error, EIO);
    assert!(simple.read(0, 4096) == data[..4096], "the connection goes on");
    // Part of it cannot be written, all of it can.
    assert_eq!(client.call(0, WRITE, damaged.start as u64 + 1, 5, b"12345").error, EIO);
    client.write(damaged.start as u64, &data[damaged.clone()]);
    assert!(client.read(0, 400_000) == data[..400_000]);
    drop((client, simple));
    rig.end();
}

#[test]
fn trim_and_write_zeroes_do_what_their_flags_say() {
    let rig = Rig::new();
    rig.volume("v", 4 * MIB);
    let mut client = Client::open_with(&rig.path(), "v", &["base:allocation"]);
    let data = pattern(1, 1 << 20);
    let is_data = |client: &mut Client, at: u64| client.call(0, STATUS, at, 4096, &[]).status[0].1[0].1 == 0;
    client.write(0, &data);
    // Trim leaves blocks that it covers in part.
    assert_eq!(client.call(0, TRIM, 100, 3 * 4096, &[]).error, 0);
    let got = client.read(0, 5 * 4096);
    assert!(got[..4096] == data[..4096] && got[4096..3 * 4096].iter().all(|b| *b == 0));
    assert!(got[3 * 4096..] == data[3 * 4096..5 * 4096]);
    assert!(!is_data(&mut client, 4096) && is_data(&mut client, 0));
    // Zeroes are zero to the byte, without data blocks.
    assert_eq!(client.call(FUA, ZEROES, 20_000, 20_000, &[]).error, 0);
    let got = client.read(19_000, 22_000);
    assert!(got[..1000] == data[19_000..20_000] && got[21_000..] == data[40_000..41_000]);
    assert!(got[1000..21_000].iter().all(|b| *b == 0));
    assert!(!is_data(&mut client, 24_576));
    // With NO_HOLE they have blocks.
    assert_eq!(client.call(NO_HOLE, ZEROES, 2 * MIB, 1 << 20, &[]).error, 0);
    assert!(client.read(2 * MIB, 1 << 20).iter().all(|b| *b == 0));
    assert!(is_data(&mut client, 2 * MIB) && is_data(&mut client, 3 * MIB - 4096));
    assert_eq!(client.call(FAST_ZERO, ZEROES, 2 * MIB, 1 << 20, &[]).error, 0);
    assert!(!is_data(&mut client, 2 * MIB));
    assert_eq!(client.call(0, CACHE, 0, 4 << 20, &[]).error, 0);
    drop(client);
    rig.end();
}

#[test]
fn block_status_says_what_is_there_and_what_has_changed() {
    let rig = Rig::new();
    let id = rig.volume("v", 8 * MIB);
    let mut client = rig.open("v");
    client.write(MIB, &pattern(1, 1 << 20));
    rig.snapshot(id, "one");
    client.write(3 * MIB, &pattern(2, 8192));
    rig.snapshot(id, "two");
    client.write(5 * MIB + 100, b"x");
    client.call(0, TRIM, MIB, 4096, &[]);
    client.disconnect();

    let names = ["base:allocation", "qemu:dirty-bitmap:one", "qemu:dirty-bitmap:v@two"];
    let mut client = Client::open_with(&rig.path(), "v", &names);
    let mib = MIB as u32;
    let (hole, data, clean, dirty) = (3, 0, 0, 1);
    let got = client.call(0, STATUS, 0, 8 * mib, &[]).status;
    assert_eq!(got.iter().map(|s| s.0).collect::<Vec<_>>(), [0, 1, 2]);
    let tail = (4096, data);
    assert_eq!(
        got[0].1,
        [
            (mib + 4096, hole),
            (mib - 4096, data),
            (mib, hole),
            (8192, data),
            (2 * mib - 8192, hole),
            tail,
            (3 * mib - 4096, hole)
        ]
    );
    let since_two =
        [(mib, clean), (4096, dirty), (4 * mib - 4096, clean), (4096, dirty), (3 * mib - 4096, clean)];
    assert_eq!(got[2].1, since_two);
    assert_eq!(got[1].1[..4], [(mib, clean), (4096, dirty), (2 * mib - 4096, clean), (8192, dirty)]);
    // From the middle of extents, one at a time.
    let got = client.call(REQ_ONE, STATUS, MIB + 100, 8000, &[]).status;
    assert_eq!(got, [(0, vec![(3996, hole)]), (1, vec![(3996, dirty)]), (2, vec![(3996, dirty)])]);
    let got = client.call(REQ_ONE, STATUS, 6 * MIB, 2 * mib, &[]).status;
    assert_eq!(got, [(0, vec![(2 * mib, hole)]), (1, vec![(2 * mib, clean)]), (2, vec![(2 * mib, clean)])]);
    // It is the state of now.
    client.write(7 * MIB, b"new");
    let got = client.call(REQ_ONE, STATUS, 7 * MIB, 4096, &[]).status;
    assert_eq!(got, [(0, vec![(4096, data)]), (1, vec![(4096, dirty)]), (2, vec![(4096, dirty)])]);
    drop(client);
    // Between two snapshots.
    let mut client = Client::open_with(&rig.path(), "v@two", &names);
    let got = client.call(0, STATUS, 0, 8 * mib, &[]).status;
    assert_eq!(got[1].1, [(3 * mib, clean), (8192, dirty), (5 * mib - 8192, clean)]);
    assert_eq!(got[2].1, [(8 * mib, clean)]);
    drop(client);
    rig.end();
}

#[test]
fn a_block_status_has_a_limited_number_of_extents() {
    let rig = Rig::new();
    let id = rig.volume("v", 128 * MIB);
    rig.snapshot(id, "empty");
    let disk = rig.pool.attach(id, AttachOptions::default()).unwrap();
    for block in (0..20_000).step_by(2) {
        disk.write_at(b"x", block * 4096).unwrap();
    }
    drop(disk);
    let mut client = Client::open_with(&rig.path(), "v", &["base:allocation", "qemu:dirty-bitmap:empty"]);
    for context in 0..2 {
        let (mut at, mut found) = (0_u64, 0);
        while at < 128 * MIB {
            let status =
                client.call(0, STATUS, at, (128 * MIB - at) as u32, &[]).status.swap_remove(context).1;
            assert!(status.len() <= 8192);
            found += status.len();
            at += status.iter().map(|s| u64::from(s.0)).sum::<u64>();
        }
        assert_eq!(found, 20_000);
    }
    drop(client);
    rig.end();
}

// ---- Connections -------------------------------------------------------------------------------------------------

#[test]
fn sixty_four_connections_share_one_attachment_that_ends_with_the_last() {
    let rig = Rig::new();
    let id = rig.volume("v", 4 * MIB);
    let mut clients: Vec<Client> = (0..64).map(|_| rig.open("v")).collect();
    assert_eq!(rig.pool.volume(id).unwrap().attachments.len(), 1);
    assert_eq!(rig.server.as_ref().unwrap().connections(), 64);
    // All of them at once, and each sees what the others were acknowledged.
    thread::scope(|scope| {
        for (i, client) in clients.iter_mut().enumerate() {
            scope.spawn(move || {
                for round in 0..8 {
                    client.write(i as u64 * 65_536, &pattern(i as u64 * 100 + round, 65_536));
                    client.flush();
                }
            });
        }
    });
    for (i, client) in (0_u64..).zip(&mut clients) {
        let other = (i + 31) % 64;
        assert!(client.read(other * 65_536, 65_536) == pattern(other * 100 + 7, 65_536));
    }
    let last = clients.pop().unwrap();
    clients.into_iter().for_each(Client::disconnect);
    assert_eq!(rig.status(id), VolumeStatus::InUse);
    last.disconnect();
    assert_eq!(rig.status(id), VolumeStatus::Available);
    rig.end();
}

#[test]
fn one_connection_too_many_is_closed_and_the_place_of_a_closed_one_is_free() {
    let pool = Pool::create_in_memory(CreateOptions::new()).unwrap();
    let rig = Rig::of(pool, |b| b.connections(2));
    rig.volume("v", MIB);
    let (first, mut second) = (rig.open("v"), rig.open("v"));
    let mut refused = UnixStream::connect(rig.path()).unwrap();
    assert_eq!(refused.read(&mut [0; 8]).unwrap_or(0), 0);
    first.disconnect();
    second.write(0, b"goes on");
    assert_eq!(rig.open("v").read(0, 7), b"goes on");
    drop(second);
    rig.end();
}

/// A device whose syncs wait while the gate is shut.
struct Gated(MemoryDevice, Arc<Gate>);

#[derive(Default)]
struct Gate {
    /// Whether it is shut, and how many wait before it.
    state: Mutex<(bool, usize)>,
    changed: Condvar,
}

impl Gate {
    fn set(&self, shut: bool) {
        self.state.lock().unwrap().0 = shut;
        self.changed.notify_all();
    }
    fn wait_for_someone(&self) {
        let state = self.state.lock().unwrap();
        drop(self.changed.wait_while(state, |s| s.1 == 0).unwrap());
    }
    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.1 += 1;
        self.changed.notify_all();
        self.changed.wait_while(state, |s| s.0).unwrap().1 -= 1;
    }
}

impl Device for Gated {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(buf, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.1.pass();
        self.0.sync()
    }
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.allocate(offset, len)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.discard(offset, len)
    }
    fn lock(&self) -> io::Result<bool> {
        self.0.lock()
    }
    fn drop_cache(&self) -> io::Result<()> {
        self.0.drop_cache()
    }
}

fn gated(tune: impl FnOnce(Builder) -> Builder) -> (Rig, Arc<Gate>) {
    let gate = Arc::new(Gate::default());
    let device = Gated(MemoryDevice::new(), Arc::clone(&gate));
    let pool = Pool::create_on(device, CreateOptions::new()).unwrap();
    (Rig::of(pool, tune), gate)
}

#[test]
fn a_request_that_waits_for_the_device_does_not_hold_up_those_behind_it() {
    let (rig, gate) = gated(|b| b);
    rig.volume("v", MIB);
    let mut client = rig.open("v");
    client.write(0, b"seen");
    gate.set(true);
    client.send(&request(0, FLUSH, 77, 0, 0));
    gate.wait_for_someone();
    assert_eq!(client.read(0, 4), b"seen", "answered while the flush still waits");
    gate.set(false);
    assert_eq!(client.answer(0, FLUSH, 77, 0, 0).error, 0);
    drop(client);
    rig.end();
}

#[test]
fn closing_finishes_what_is_served_and_answers_the_rest_with_eshutdown() {
    let (mut rig, gate) = gated(|b| b.threads(1));
    rig.volume("v", MIB);
    let mut client = rig.open("v");
    let mut haggling = Client::hello(&rig.path(), 3);
    client.write(0, b"kept");
    gate.set(true);
    client.send(&request(0, FLUSH, 1, 0, 0));
    gate.wait_for_someone();
    // There is one thread, and it waits. These stay in the socket, the payload too.
    client.send(&[request(0, READ, 2, 0, 4), request(0, WRITE, 3, 0, 4), b"lost".to_vec()].concat());
    let server = rig.server.take().unwrap();
    let closing = thread::spawn(move || server.shutdown());
    // Once the other connection has ended, the server is closing.
    assert!(haggling.is_closed());
    assert!(UnixStream::connect(rig.path()).is_err(), "nobody is let in any more");
    gate.set(false);
    assert_eq!(client.answer(0, FLUSH, 1, 0, 0).error, 0);
    assert_eq!(client.answer(0, READ, 2, 0, 4).error, ESHUTDOWN);
    assert_eq!(client.answer(0, WRITE, 3, 0, 4).error, ESHUTDOWN);
    assert!(client.is_closed());
    closing.join().unwrap();
    let disk = rig.pool.attach(find_volume(&rig.pool), AttachOptions::default()).unwrap();
    let mut seen = [0; 4];
    disk.read_at(&mut seen, 0).unwrap();
    assert_eq!(&seen, b"kept");
}

fn find_volume(pool: &Pool) -> VolumeId {
    let volumes: Vec<Volume> = pool.list_volumes(&Default::default()).unwrap().items;
    volumes[0].id
}

#[test]
fn closing_cuts_off_a_client_that_does_not_take_its_replies() {
    let pool = Pool::create_in_memory(CreateOptions::new()).unwrap();
    let mut rig = Rig::of(pool, |b| b.shutdown_grace(Duration::ZERO));
    let id = rig.volume("v", 64 * MIB);
    let mut client = rig.open("v");
    for cookie in 0..64 {
        client.send(&request(DF, READ, cookie, 0, 32 << 20));
    }
    // The first reply has begun, and is longer than any socket's buffer.
    client.bytes(1);
    rig.server.take().unwrap().shutdown();
    assert_eq!(rig.status(id), VolumeStatus::Available);
}

#[test]
fn a_client_that_stalls_loses_its_connection_and_one_that_is_idle_does_not() {
    let limit = Duration::from_millis(150);
    let pool = Pool::create_in_memory(CreateOptions::new()).unwrap();
    let rig = Rig::of(pool, |b| b.stall_limit(limit));
    rig.volume("v", 64 * MIB);
    let mut idle = rig.open("v");
    idle.write(0, b"idle");
    // Silent in the handshake, in an option, in a request, in a payload.
    let mut silent = Client::hello(&rig.path(), 3);
    let mut in_option = Client::hello(&rig.path(), 3);
    in_option.send(&option(3, b"four")[..18]);
    let mut in_request = rig.open("v");
    in_request.send(&request(0, READ, 0, 0, 1)[..27]);
    let mut in_payload = rig.open("v");
    in_payload.send(&request(0, WRITE, 0, 0, 4096));
    in_payload.send(&[0xee; 4095]);
    // Does not take its replies.
    let mut deaf = rig.open("v");
    for cookie in 0..64 {
        deaf.send(&request(DF, READ, cookie, 0, 32 << 20));
    }
    for client in [&mut silent, &mut in_option, &mut in_request, &mut in_payload] {
        assert!(client.is_closed());
    }
    // Only the idle one is left, before anybody has read a byte of those replies.
    while rig.server.as_ref().unwrap().connections() > 1 {
        thread::yield_now();
    }
    let mut rest = Vec::new();
    let _ = deaf.stream.read_to_end(&mut rest);
    assert!(rest.len() < 32 << 20, "the reply was cut off");
    assert_eq!(idle.read(0, 5), b"idle\0", "the idle one is there, and no part of the payload is");
    drop((silent, in_option, in_request, in_payload, deaf, idle));
    rig.end();
}

#[test]
fn what_is_no_request_ends_the_connection_after_the_replies_that_are_due() {
    let rig = Rig::new();
    rig.volume("v", MIB);
    let mut other = rig.open("v");
    let mut client = rig.open("v");
    client.send(&[request(0, WRITE, 5, 0, 4), b"data".to_vec(), vec![0xab; 28]].concat());
    assert_eq!(client.answer(0, WRITE, 5, 0, 4).error, 0);
    assert!(client.is_closed());
    assert_eq!(other.read(0, 4), b"data");
    drop((other, client));
    rig.end();
}

#[test]
fn the_pool_is_used_while_it_is_served() {
    let rig = Rig::new();
    let id = rig.volume("v", 4 * MIB);
    let mut client = rig.open("v");
    client.write(0, b"first");
    let first = rig.snapshot(id, "first");
    client.write(0, b"later");
    let mut then = rig.open("v@first");
    assert_eq!((then.read(0, 5), client.read(0, 5)), (b"first".to_vec(), b"later".to_vec()));
    let fork = rig.pool.create_volume(VolumeSpec::from_volume(id).name("fork")).unwrap().id;
    rig.pool.rollback_with(first, RollbackOptions::new().live(true)).unwrap();
    assert_eq!((client.read(0, 5), rig.open("fork").read(0, 5)), (b"first".to_vec(), b"later".to_vec()));
    rig.pool.extend(id, 8 * MIB).unwrap();
    assert_eq!(client.call(0, READ, 4 * MIB, 1, &[]).error, EINVAL, "a client keeps the size it was told");
    assert_eq!(rig.open("v").size, 8 * MIB);
    assert!(rig.pool.delete_volume(id, Snapshots::Delete).is_err(), "it is in use");
    drop((client, then));
    rig.pool.delete_volume(fork, Snapshots::Refuse).ok();
    rig.end();
}

#[test]
fn many_requests_in_flight_on_several_connections_do_what_they_say() {
    let rig = Rig::new();
    const BLOCKS: u64 = 256;
    rig.volume("v", 4 * BLOCKS * 4096);
    thread::scope(|scope| {
        for part in 0..4 {
            let path = rig.path();
            scope.spawn(move || {
                let mut client = Client::open(&path, "v");
                let base = part * BLOCKS * 4096;
                let mut model = vec![0_u8; (BLOCKS * 4096) as usize];
                let mut seed = part + 1;
                for round in 0..40 {
                    // Requests of one round touch different blocks, so that their order is of no account.
                    let mut sent = Vec::new();
                    let mut bytes = Vec::new();
                    for slot in 0..BLOCKS / 4 {
                        seed = seed
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1_442_695_040_888_963_407);
                        let (at, cookie) = (slot * 4 * 4096 + seed % 4096, round << 32 | slot);
                        let len = 1 + (seed >> 20) % 12_000;
                        let place = at as usize..(at + len) as usize;
                        let command = match seed >> 60 {
                            0..6 => WRITE,
                            6 => ZEROES,
                            7 => FLUSH,
                            _ => READ,
                        };
                        let (offset, said) = if command == FLUSH { (0, 0) } else { (base + at, len as u32) };
                        bytes.extend(request(0, command, cookie, offset, said));
                        match command {
                            WRITE => {
                                let data = pattern(seed, len as usize);
                                bytes.extend(&data);
                                model[place.clone()].copy_from_slice(&data);
                            }
                            ZEROES => model[place.clone()].fill(0),
                            _ => {}
                        }
                        sent.push((command, cookie, offset, said, place));
                    }
                    let mut stream = client.stream.try_clone().unwrap();
                    thread::scope(|scope| {
                        scope.spawn(move || stream.write_all(&bytes).unwrap());
                        // One chunk each: none of these reads is a mixture of long holes and data.
                        for _ in 0..sent.len() {
                            let (message, _) = client.message(0);
                            let (cookie, data) = match message {
                                Message::Simple { error, cookie } => (assert_eq!(error, 0), (cookie, None)).1,
                                Message::Chunk { done, kind, cookie, payload } => {
                                    assert!(done && (kind == 1 || kind == 2));
                                    let len = be32(&payload[payload.len() - 4..]) as usize;
                                    (
                                        cookie,
                                        Some(if kind == 1 { payload[8..].to_vec() } else { vec![0; len] }),
                                    )
                                }
                            };
                            let which =
                                sent.iter().position(|s| s.1 == cookie).expect("a cookie of ours, once");
                            let (command, _, _, _, place) = sent.swap_remove(which);
                            assert_eq!(command == READ, data.is_some());
                            assert!(
                                data.is_none_or(|data| data == model[place]),
                                "part {part} round {round}"
                            );
                            if sent.is_empty() {
                                break;
                            }
                        }
                    });
                }
                assert!(client.read(base, (BLOCKS * 4096) as u32) == model);
            });
        }
    });
    rig.end();
}

// ---- Places to listen --------------------------------------------------------------------------------------------

#[test]
fn a_stale_socket_is_replaced_and_anything_else_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let pool = Pool::create_in_memory(CreateOptions::new()).unwrap();
    pool.create_volume(VolumeSpec::blank(MIB)).unwrap();
    let serve = || Server::builder(&pool).unix(&path).serve();
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "a socket that nobody listens on");
    let server = serve().unwrap();
    Client::open(&path, "").disconnect();
    let e = serve().unwrap_err();
    assert_eq!(e.kind(), io::ErrorKind::AddrInUse);
    assert!(e.to_string().contains(path.to_str().unwrap()), "{e}");
    Client::open(&path, "").disconnect();
    server.shutdown();
    assert!(!path.exists());
    std::fs::write(&path, "precious").unwrap();
    assert_eq!(serve().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    assert!(Server::builder(&pool).unix(folder.path().join("no/such/folder")).serve().is_err());
    pool.close().unwrap();
}

#[test]
fn tcp_and_given_sockets_are_served_like_the_others() {
    let pool = Pool::create_in_memory(CreateOptions::new()).unwrap();
    let rig = Rig::of(pool, |b| b.tcp((Ipv4Addr::LOCALHOST, 0).into()).tcp((Ipv4Addr::LOCALHOST, 0).into()));
    rig.volume("v", MIB);
    let server = rig.server.as_ref().unwrap();
    for address in server.tcp_addresses() {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(&[&3_u32.to_be_bytes()[..], &option(1, b"v")].concat()).unwrap();
        stream
            .write_all(&[request(0, WRITE, 1, 0, 3), b"tcp".to_vec(), request(0, DISC, 0, 0, 0)].concat())
            .unwrap();
        let mut said = Vec::new();
        stream.read_to_end(&mut said).unwrap();
        assert_eq!(said.len(), 18 + 10 + 16);
        assert_eq!(be32(&said[32..]), 0, "no error");
    }
    let (ours, theirs) = UnixStream::pair().unwrap();
    thread::scope(|scope| {
        let serving = scope.spawn(|| server.serve_connection(theirs));
        let mut client = Client::over(ours, 3);
        client.go("").unwrap();
        assert_eq!(client.read(0, 3), b"tcp");
        client.disconnect();
        serving.join().unwrap().unwrap();
    });
    rig.end();
}

#[test]
fn a_pool_that_is_open_for_reading_is_exported_for_reading() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p");
    let pool = Pool::create(&path, CreateOptions::new()).unwrap();
    let id = pool.create_volume(VolumeSpec::blank(MIB).name("v")).unwrap().id;
    pool.attach(id, AttachOptions::default()).unwrap().write_at(b"text", 0).unwrap();
    pool.create_snapshot(id, SnapshotSpec::new().name("s")).unwrap();
    pool.close().unwrap();
    let rig = Rig::of(Pool::open(&path, OpenOptions::new().read_only(true)).unwrap(), |b| b);
    let mut client = Client::open_with(&rig.path(), "v", &["qemu:dirty-bitmap:s"]);
    assert_eq!(client.flags & 2, 2);
    assert_eq!(client.read(0, 4), b"text");
    assert_eq!(client.call(0, WRITE, 0, 1, b"x").error, EPERM);
    assert_eq!(client.call(0, STATUS, 0, 4096, &[]).status, [(0, vec![(4096, 0)])]);
    client.flush();
    drop(client);
    rig.end();
}

/// What the fuzzer runs, on the sessions that it may start from and on damaged ones.
#[test]
fn the_fuzz_body_takes_sound_and_damaged_sessions() {
    for seed in 0..300 {
        nbd_session::session(&nbd_generate::sound_session(&mut rng::Rng::new(seed)));
        nbd_session::session(&nbd_generate::mutated_session(&mut rng::Rng::new(seed)));
    }
}
