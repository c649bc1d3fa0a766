//! Requests: what is read, written and reported, and the errors.

use super::*;

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
