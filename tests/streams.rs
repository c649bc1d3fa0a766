//! Delta streams: what arrives equals what was sent, and what is not right leaves no trace.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

mod common;
#[path = "fuzz/bodies/stream.rs"]
mod fuzz;

use std::io::{self, Read};
use std::ops::ControlFlow;
use std::sync::Arc;

use common::observe::{all_snapshots, all_volumes, digest, read_all};
use common::rng::{self, Rng};
use common::{Shape, assert_sound};
use snapvol::device::sim::{Fate, SimDevice};
use snapvol::{
    AttachOptions, Disk, Error, ExtentKind, Pool, ReceiveOptions, ReceiveProgress, Received, ResumePoint,
    SendOptions, SequentialIds, SnapshotId, SnapshotSpec, Snapshots, VolumeId, VolumeSpec,
};

const BLOCK: u64 = 4096;

fn go_on(_: ReceiveProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn shape() -> Shape {
    Shape::SMALL.limit(16 << 20)
}

fn pool_on(sim: &SimDevice, seed: u64) -> Pool {
    let options = shape().create().id_source(Arc::new(SequentialIds::new(seed)));
    Pool::create_on(sim.clone(), options).unwrap()
}

fn pool(seed: u64) -> Pool {
    pool_on(&SimDevice::new(), seed)
}

fn stream(pool: &Pool, snapshot: SnapshotId, options: SendOptions) -> Vec<u8> {
    let mut bytes = Vec::new();
    pool.send(snapshot, options).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

fn receive(pool: &Pool, bytes: &[u8]) -> Result<Received, Error> {
    pool.receive(bytes, ReceiveOptions::new(), go_on)
}

fn extents(disk: &Disk) -> Vec<(u64, u64, ExtentKind)> {
    disk.extents(0..disk.size_bytes())
        .map(|e| e.unwrap())
        .map(|e| (e.range.start, e.range.end, e.kind))
        .collect()
}

/// Equal byte for byte, and equal in what is mapped.
fn assert_equal(a: (&Pool, SnapshotId), b: (&Pool, SnapshotId)) {
    let (x, y) = (a.0.attach_snapshot(a.1).unwrap(), b.0.attach_snapshot(b.1).unwrap());
    assert_eq!(x.size_bytes(), y.size_bytes());
    assert!(read_all(&x).unwrap() == read_all(&y).unwrap(), "bytes differ");
    assert_eq!(extents(&x), extents(&y));
    assert_eq!(a.0.fingerprint(a.1).unwrap(), b.0.fingerprint(b.1).unwrap());
}

/// A few changes of every kind.
fn scribble(pool: &Pool, volume: VolumeId, rng: &mut Rng) {
    let disk = pool.attach(volume, AttachOptions::new()).unwrap();
    let blocks = disk.size_bytes() / BLOCK;
    for _ in 0..1 + rng.below(12) {
        let at = rng.below(blocks);
        let len = 1 + rng.below((blocks - at).min(20));
        match rng.below(6) {
            0 => disk.discard(at * BLOCK, len * BLOCK).unwrap(),
            1 => disk.write_zeroes(at * BLOCK, len * BLOCK).unwrap(),
            2 => disk.write_at(&vec![0; BLOCK as usize], at * BLOCK).unwrap(),
            3 => disk.write_at(&[rng.below(256) as u8; 100], at * BLOCK + rng.below(3900)).unwrap(),
            _ => {
                let data: Vec<u8> = (0..len * BLOCK).map(|_| rng.below(256) as u8).collect();
                disk.write_at(&data, at * BLOCK).unwrap();
            }
        }
    }
}

fn snap(pool: &Pool, volume: VolumeId, name: &str) -> SnapshotId {
    pool.create_snapshot(volume, SnapshotSpec::new().name(name)).unwrap().id
}

fn names(pool: &Pool) -> (usize, usize, usize) {
    let (volumes, snapshots) = (all_volumes(pool).unwrap().len(), all_snapshots(pool).unwrap().len());
    (volumes, snapshots, pool.list_receives().unwrap().len())
}

fn used(pool: &Pool) -> u64 {
    while pool.step(1 << 20).unwrap() {}
    pool.checkpoint().unwrap();
    while pool.step(1 << 20).unwrap() {}
    pool.space().unwrap().used_bytes
}

#[test]
fn a_family_sent_step_by_step_is_equal_in_the_other_pool_and_in_a_third() {
    let seed = rng::seed("a_family_sent_step_by_step_is_equal_in_the_other_pool_and_in_a_third", 11);
    for round in 0..25 {
        let mut rng = Rng::new(seed + round);
        let (a, b, c) = (pool(1), pool(2), pool(3));
        let volume = a.create_volume(VolumeSpec::blank(120 * BLOCK).name("family")).unwrap().id;
        let mut last: Option<(SnapshotId, SnapshotId, SnapshotId)> = None;
        for step in 0..4 {
            scribble(&a, volume, &mut rng);
            if step == 2 {
                a.extend(volume, 150 * BLOCK).unwrap();
                scribble(&a, volume, &mut rng);
            }
            let here = snap(&a, volume, &format!("step {step}"));
            let options = last.map_or(SendOptions::new(), |(base, ..)| SendOptions::new().since(base));
            let there = receive(&b, &stream(&a, here, options)).unwrap().snapshot;
            assert_eq!(there.name.as_deref(), Some(format!("step {step}").as_str()));
            assert_equal((&a, here), (&b, there.id));
            // Sent on, a snapshot is still the one it was: the third pool takes either's changes.
            let options = last.map_or(SendOptions::new(), |(_, base, _)| SendOptions::new().since(base));
            let from_a = last
                .filter(|_| rng.one_in(2))
                .map(|(base, ..)| stream(&a, here, SendOptions::new().since(base)));
            let third =
                receive(&c, &from_a.unwrap_or_else(|| stream(&b, there.id, options))).unwrap().snapshot;
            assert_equal((&a, here), (&c, third.id));
            assert_eq!(c.snapshot_origin(third.id).unwrap(), a.snapshot_origin(here).unwrap());
            last = Some((here, there.id, third.id));
        }
        for replica in [&b, &c] {
            assert_eq!(names(replica), (1, 4, 0));
            assert_eq!(all_volumes(replica).unwrap()[0].name.as_deref(), Some("family"));
            assert_sound(replica);
        }
        // The replica takes over at the newest snapshot.
        let moved = b.rollback(last.unwrap().1).unwrap();
        let disk = b.attach(moved.id, AttachOptions::new()).unwrap();
        assert_eq!(read_all(&disk).unwrap(), read_all(&a.attach_snapshot(last.unwrap().0).unwrap()).unwrap());
    }
}

#[test]
fn a_clone_is_sent_as_changes_since_what_it_was_made_from_and_shares_there() {
    let (a, b) = (pool(1), pool(2));
    let mut rng = Rng::new(5);
    let base = a.create_volume(VolumeSpec::blank(100 * BLOCK)).unwrap().id;
    a.attach(base, AttachOptions::new()).unwrap().write_at(&vec![7; 90 * BLOCK as usize], 0).unwrap();
    let image = snap(&a, base, "image");
    let clone = a.create_volume(VolumeSpec::from_snapshot(image).name("clone").size(110 * BLOCK)).unwrap().id;
    scribble(&a, clone, &mut rng);
    let ready = snap(&a, clone, "ready");
    let there = receive(&b, &stream(&a, image, SendOptions::new())).unwrap().snapshot;
    let before = used(&b);
    let changes = stream(&a, ready, SendOptions::new().since(image));
    let got = receive(&b, &changes).unwrap();
    assert_equal((&a, ready), (&b, got.snapshot.id));
    assert_ne!(got.snapshot.volume, there.volume);
    let made = b.volume(got.snapshot.volume).unwrap();
    assert_eq!((made.name.as_deref(), made.size_bytes), (Some("clone"), 110 * BLOCK));
    assert_eq!(made.source, snapvol::VolumeSource::Snapshot(there.id));
    assert_eq!(used(&b) - before, got.data_bytes);
    // The other way round: what lies behind the smaller end does not come along.
    let back = receive(&b, &stream(&a, image, SendOptions::new().since(ready))).map(|_| ());
    assert!(matches!(back, Err(Error::AlreadyExists { object: "snapshot", .. })), "{back:?}");
    let c = pool(3);
    receive(&c, &stream(&a, ready, SendOptions::new())).unwrap();
    let smaller = receive(&c, &stream(&a, image, SendOptions::new().since(ready))).unwrap();
    assert_equal((&a, image), (&c, smaller.snapshot.id));
    assert_sound(&b);
    assert_sound(&c);
}

/// Two snapshots, and the streams of the first and of the change.
fn pair() -> (Pool, Vec<u8>, Vec<u8>) {
    let a = pool(1);
    let volume = a.create_volume(VolumeSpec::blank(40 * BLOCK).name("v").metadata("k", "v")).unwrap().id;
    let disk = a.attach(volume, AttachOptions::new()).unwrap();
    disk.write_at(&[1; 2 * BLOCK as usize], 3 * BLOCK).unwrap();
    disk.write_zeroes(10 * BLOCK, 4 * BLOCK).unwrap();
    disk.write_at(&[2; BLOCK as usize], 30 * BLOCK).unwrap();
    drop(disk);
    let first =
        a.create_snapshot(volume, SnapshotSpec::new().name("one").metadata("key", "value")).unwrap().id;
    let disk = a.attach(volume, AttachOptions::new()).unwrap();
    disk.write_at(&[3; BLOCK as usize], 4 * BLOCK).unwrap();
    disk.discard(11 * BLOCK, BLOCK).unwrap();
    disk.write_zeroes(30 * BLOCK, BLOCK).unwrap();
    drop(disk);
    let second = snap(&a, volume, "two");
    let (full, change) =
        (stream(&a, first, SendOptions::new()), stream(&a, second, SendOptions::new().since(first)));
    (a, full, change)
}

/// Where the header ends and where each record begins, by the documented bytes.
fn records(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let number = |at: usize, n: usize| {
        bytes[at..at + n].iter().rev().fold(0usize, |sum, byte| (sum << 8) | usize::from(*byte))
    };
    let mut at = number(12, 4);
    let mut all = Vec::new();
    while at < bytes.len() {
        let data = if number(at, 4) == 1 { number(at + 16, 8) * (4 + BLOCK as usize) } else { 0 };
        all.push(at..at + 32 + data);
        at += 32 + data;
    }
    all
}

#[test]
fn every_flipped_bit_and_every_cut_is_refused_and_leaves_no_trace() {
    let (a, full, change) = pair();
    let b = pool(2);
    let mut refusals = 0;
    let mut attack = |b: &Pool, bytes: &[u8], what: &str| {
        let done = receive(b, bytes);
        assert!(matches!(done, Err(Error::Refused { .. })), "{what}: {done:?}");
        assert_eq!(b.list_receives().unwrap(), [], "{what}");
        refusals += 1;
    };
    let spoil = |b: &Pool, bytes: &[u8], attack: &mut dyn FnMut(&Pool, &[u8], &str)| {
        let records = records(bytes);
        let starts: Vec<usize> = records.iter().map(|r| r.start).collect();
        let near_a_head = |at: usize| {
            at < starts[0]
                || starts.iter().any(|start| (*start..*start + 48).contains(&at))
                || at.is_multiple_of(397)
        };
        for at in (0..bytes.len()).filter(|at| near_a_head(*at)) {
            let mut spoiled = bytes.to_vec();
            spoiled[at] ^= 1 << (at % 8);
            attack(b, &spoiled, &format!("bit {} of byte {at}", at % 8));
            attack(b, &bytes[..at], &format!("cut at {at}"));
        }
        // Left out, repeated and exchanged records; all of them whole.
        for i in 0..records.len() - 1 {
            let without = [&bytes[..records[i].start], &bytes[records[i].end..]].concat();
            attack(b, &without, &format!("without record {i}"));
            let twice = [&bytes[..records[i].end], &bytes[records[i].start..]].concat();
            attack(b, &twice, &format!("record {i} twice"));
            if i + 2 < records.len() {
                let (x, y) = (records[i].clone(), records[i + 1].clone());
                let swapped = [&bytes[..x.start], &bytes[y.clone()], &bytes[x], &bytes[y.end..]].concat();
                attack(b, &swapped, &format!("records {i} and {} exchanged", i + 1));
            }
        }
    };
    let empty = digest(&b).unwrap();
    spoil(&b, &full, &mut attack);
    assert_eq!((digest(&b).unwrap(), used(&b)), (empty, 0));
    receive(&b, &full).unwrap();
    let first = (digest(&b).unwrap(), used(&b));
    spoil(&b, &change, &mut attack);
    // Without fingerprints every bit is covered all the same.
    let newest = all_snapshots(&a).unwrap().remove(0).id;
    let base = all_snapshots(&a).unwrap().remove(1).id;
    let plain = stream(&a, newest, SendOptions::new().since(base).fingerprints(false));
    spoil(&b, &plain, &mut attack);
    // Records of another stream, behind a header they do not belong to.
    let spliced = [&change[..records(&change)[0].start], &full[records(&full)[0].start..]].concat();
    attack(&b, &spliced, "records of another stream");
    attack(&b, b"QFI\xfb and more that is no stream at all, however long it may be", "an image");
    assert_eq!((digest(&b).unwrap(), used(&b)), first);
    receive(&b, &change).unwrap();
    assert_sound(&b);
    println!("{refusals} spoiled streams refused");
    assert!(refusals > 1400);
}

#[test]
fn changes_are_refused_where_the_base_is_missing_or_holds_something_else() {
    let (_, full, change) = pair();
    let b = pool(2);
    assert!(matches!(receive(&b, &change), Err(Error::NotFound { object: "base snapshot", .. })));
    assert_eq!(names(&b), (0, 0, 0));
    receive(&b, &full).unwrap();
    receive(&b, &change).unwrap();
    assert!(matches!(receive(&b, &change), Err(Error::AlreadyExists { .. })));
    assert_eq!(names(&b), (1, 2, 0));

    // A pool of the same identity, whose snapshot has the same id and size and as many blocks, but other bytes.
    let twin = pool(1);
    let volume = twin.create_volume(VolumeSpec::blank(40 * BLOCK)).unwrap().id;
    let disk = twin.attach(volume, AttachOptions::new()).unwrap();
    disk.write_at(&[9; 3 * BLOCK as usize], 3 * BLOCK).unwrap();
    drop(disk);
    let base = snap(&twin, volume, "one");
    let (a, _, _) = pair();
    assert_eq!(
        twin.snapshot_origin(base).unwrap(),
        a.snapshot_origin(all_snapshots(&a).unwrap()[1].id).unwrap()
    );
    let done = receive(&twin, &change);
    assert!(matches!(&done, Err(Error::Refused { why, .. }) if why.contains("does not hold")), "{done:?}");
    assert_eq!(names(&twin), (1, 1, 0));
}

/// Fails for good after so many bytes, as a connection does.
struct Breaks<R>(R, u64);

impl<R: Read> Read for Breaks<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.1 == 0 {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let n = out.len().min(self.1 as usize).min(1000);
        let n = self.0.read(&mut out[..n])?;
        self.1 -= n as u64;
        Ok(n)
    }
}

#[test]
fn a_receive_that_breaks_again_and_again_goes_on_where_it_stopped() {
    let mut rng = Rng::new(3);
    let (a, b) = (pool(1), pool(2));
    let volume = a.create_volume(VolumeSpec::blank(400 * BLOCK)).unwrap().id;
    a.attach(volume, AttachOptions::new()).unwrap().write_at(&[5; 50 * BLOCK as usize], 0).unwrap();
    let base = snap(&a, volume, "base");
    receive(&b, &stream(&a, base, SendOptions::new())).unwrap();
    let disk = a.attach(volume, AttachOptions::new()).unwrap();
    for i in 0..60 {
        disk.write_at(&[i as u8; BLOCK as usize], (i * 3 + 1) * BLOCK).unwrap();
    }
    drop(disk);
    let snapshot = snap(&a, volume, "more");
    let options = ReceiveOptions::new().resumable(true);
    let mut first = b.receive(
        Breaks(a.send(snapshot, SendOptions::new().since(base)).unwrap(), 20_000),
        options.clone(),
        go_on,
    );
    let (mut breaks, mut sent) = (0, 0);
    let received = loop {
        match std::mem::replace(&mut first, Err(Error::Closed)) {
            Ok(received) => break received,
            Err(Error::Io { source, .. }) => assert_eq!(source.kind(), io::ErrorKind::ConnectionReset),
            Err(Error::Closed) => {}
            Err(e) => panic!("{e}"),
        }
        breaks += 1;
        assert_eq!(names(&b), (1, 1, 1), "hidden until it is whole");
        let left = b.list_receives().unwrap().remove(0);
        assert!(!left.running && left.size_bytes == 400 * BLOCK);
        // As text over any wire.
        let point: ResumePoint = left.resume.to_string().parse().unwrap();
        assert_eq!(point, left.resume);
        assert!(point.offset > 0);
        // A little earlier than need be is right, too; later is refused.
        let too_far = ResumePoint::clone(&point);
        let early = ReceiveOptions::new().resumable(true);
        let ahead = a.resume_send(&far(&too_far, 3 * BLOCK), SendOptions::new()).unwrap();
        assert!(matches!(b.receive(ahead, early, go_on), Err(Error::Refused { .. })));
        let back = rng.below(3) * BLOCK;
        let stream = a.resume_send(&near(&point, back), SendOptions::new()).unwrap();
        let budget = 30_000 + rng.below(40_000);
        sent += budget;
        first = b.receive(Breaks(stream, budget), options.clone(), go_on);
    };
    assert_eq!(received.snapshot.name.as_deref(), Some("more"));
    assert_equal((&a, snapshot), (&b, received.snapshot.id));
    assert!(breaks > 3, "{breaks} breaks, {sent} bytes");
    assert_eq!(names(&b), (1, 2, 0));
    assert_sound(&b);
}

fn far(point: &ResumePoint, by: u64) -> ResumePoint {
    let mut point = *point;
    point.offset += by;
    point
}

fn near(point: &ResumePoint, by: u64) -> ResumePoint {
    let mut point = *point;
    point.offset = point.offset.saturating_sub(by);
    point
}

#[test]
fn an_unfinished_receive_is_given_up_on_request_and_cannot_run_twice() {
    let (a, full, _) = pair();
    let b = pool(2);
    let keep = || ReceiveOptions::new().resumable(true);
    let mut inner = None;
    let cancelled = b.receive(&full[..], keep(), |_| {
        if inner.is_none() {
            let running = b.list_receives().unwrap().remove(0);
            assert!(running.running);
            let again = b.receive(&full[..], keep(), go_on).map(|_| ());
            inner = Some((again, b.abort_receive(running.id)));
        }
        ControlFlow::Break(())
    });
    assert!(matches!(cancelled, Err(Error::Cancelled { .. })));
    assert!(matches!(inner, Some((Err(Error::Busy { .. }), Err(Error::Busy { .. })))), "{inner:?}");
    let left = b.list_receives().unwrap().remove(0);
    b.abort_receive(left.id).unwrap();
    assert!(matches!(b.abort_receive(left.id), Err(Error::NotFound { .. })));
    assert_eq!((names(&b), used(&b)), ((0, 0, 0), 0));
    // Not to be resumed: nothing of it has arrived.
    let rest = a.resume_send(&far(&left.resume, BLOCK), SendOptions::new()).unwrap();
    assert!(matches!(b.receive(rest, keep(), go_on), Err(Error::Refused { .. })));
    assert_eq!(names(&b), (0, 0, 0));
    assert_sound(&b);
}

/// The whole life of a receive under loss of power at every point, kept and not kept.
#[test]
fn a_crash_at_any_point_of_a_receive_leaves_it_whole_or_hidden_and_leaks_nothing() {
    let (a, full, change) = pair();
    let mut opened = 0;
    let mut rng = Rng::new(17);
    for keep in [false, true] {
        let sim = SimDevice::new();
        let b = pool_on(&sim, 2);
        receive(&b, &full).unwrap();
        b.checkpoint().unwrap();
        sim.restart_trace();
        let options = || ReceiveOptions::new().resumable(keep);
        let broken = b.receive(&change[..change.len() - 40], options(), |_| {
            // Every record is a point that the pool may be found at.
            b.flush().unwrap();
            ControlFlow::Continue(())
        });
        assert!(broken.is_err());
        if keep {
            let left = b.list_receives().unwrap().remove(0);
            b.receive(a.resume_send(&left.resume, SendOptions::new()).unwrap(), options(), go_on).unwrap();
        } else {
            receive(&b, &change).unwrap();
        }
        let trace = sim.trace();
        drop(b);
        let (mut hidden, mut whole) = (0, 0);
        for cut in 0..=trace.len() {
            for sample in 0..3 {
                let device = trace.device_at(cut, |_| match sample {
                    0 => Fate::Kept,
                    1 => Fate::Lost,
                    _ if rng.one_in(2) => Fate::Kept,
                    _ => Fate::Lost,
                });
                let pool = Pool::open_on(device, shape().open_with_ids(100 + opened)).unwrap();
                opened += 1;
                assert_sound(&pool);
                let (volumes, snapshots, receives) = names(&pool);
                assert_eq!(volumes, 1);
                match (snapshots, receives) {
                    (2, 0) => whole += 1,
                    (1, 1) if keep => hidden += 1,
                    (1, 0) => {}
                    other => panic!("cut {cut}, kept {keep}: {other:?}"),
                }
                if snapshots == 1 {
                    if let Some(left) = pool.list_receives().unwrap().pop() {
                        let rest = a.resume_send(&left.resume, SendOptions::new()).unwrap();
                        pool.receive(rest, options(), go_on).unwrap();
                    } else {
                        assert_eq!(used(&pool), 3 * BLOCK, "cut {cut}: space has leaked");
                        receive(&pool, &change).unwrap();
                    }
                }
                let newest = all_snapshots(&a).unwrap()[0].id;
                let there = pool.snapshot_from(a.snapshot_origin(newest).unwrap()).unwrap().unwrap();
                assert_equal((&a, newest), (&pool, there));
                assert_eq!(used(&pool), 5 * BLOCK - BLOCK, "cut {cut}: space has leaked");
            }
        }
        assert!(whole > 3 && (hidden > 10 || !keep), "kept {keep}: {hidden} hidden, {whole} whole");
    }
    println!("{opened} states opened");
}

#[test]
fn a_received_snapshot_that_is_deleted_can_be_received_again() {
    let (_, full, change) = pair();
    let b = pool(2);
    let first = receive(&b, &full).unwrap().snapshot;
    let second = receive(&b, &change).unwrap().snapshot;
    b.delete_snapshot(second.id).unwrap().wait().unwrap();
    let again = receive(&b, &change).unwrap().snapshot;
    assert_ne!(again.id, second.id);
    // Without its volume, too: the family lives on in its snapshots.
    b.delete_snapshot(again.id).unwrap().wait().unwrap();
    b.delete_volume(first.volume, Snapshots::Keep).unwrap().wait().unwrap();
    let orphan = receive(&b, &change).unwrap().snapshot;
    assert_eq!((orphan.volume, orphan.volume_exists), (first.volume, false));
    assert_sound(&b);
    b.delete_snapshot(orphan.id).unwrap().wait().unwrap();
    b.delete_snapshot(first.id).unwrap().wait().unwrap();
    assert_eq!((names(&b), used(&b)), ((0, 0, 0), 0));
}

#[test]
fn a_stream_that_does_not_fit_is_refused_and_gives_its_space_back() {
    let (a, b) = (pool(1), pool(2));
    let volume = a.create_volume(VolumeSpec::blank(1500 * BLOCK)).unwrap().id;
    a.attach(volume, AttachOptions::new()).unwrap().write_at(&vec![5; 1500 * BLOCK as usize], 0).unwrap();
    let snapshot = snap(&a, volume, "large");
    let other = b.create_volume(VolumeSpec::blank(2500 * BLOCK)).unwrap().id;
    b.attach(other, AttachOptions::new()).unwrap().write_at(&vec![6; 2500 * BLOCK as usize], 0).unwrap();
    let full = receive(&b, &stream(&a, snapshot, SendOptions::new()));
    assert!(matches!(full, Err(Error::OutOfSpace { .. })), "{full:?}");
    assert_eq!((names(&b), used(&b)), ((1, 0, 0), 2500 * BLOCK));
    assert_sound(&b);
}

#[test]
fn a_pool_opened_for_reading_sends_and_equal_sends_give_equal_bytes() {
    let sim = SimDevice::new();
    let a = pool_on(&sim, 1);
    let mut rng = Rng::new(1);
    let volume = a.create_volume(VolumeSpec::blank(64 * BLOCK)).unwrap().id;
    scribble(&a, volume, &mut rng);
    let base = snap(&a, volume, "base");
    scribble(&a, volume, &mut rng);
    let snapshot = snap(&a, volume, "next");
    let send = |pool: &Pool| stream(pool, snapshot, SendOptions::new().since(base));
    let bytes = send(&a);
    drop(a.delete_volume(volume, Snapshots::Keep).unwrap());
    assert_eq!(names(&a).1, 2);
    a.close().unwrap();
    let reader = Pool::open_on(sim.clone(), shape().open().read_only(true)).unwrap();
    // The name of the volume went with it; all else is the same.
    assert!(send(&reader) == bytes);
    assert!(matches!(receive(&reader, &bytes), Err(Error::ReadOnly { .. })));
    let progress = {
        let mut stream = reader.send(snapshot, SendOptions::new()).unwrap();
        io::copy(&mut stream, &mut io::sink()).unwrap();
        stream.progress()
    };
    assert_eq!((progress.position, progress.size_bytes), (64 * BLOCK, 64 * BLOCK));
}

/// Every checksum is right, and the stream is wrong all the same.
#[test]
fn a_forger_who_knows_the_checksums_is_held_to_the_rules_of_the_format() {
    let (_, full, _) = pair();
    let r = records(&full);
    assert!(r.len() >= 4);
    let refused = |mut bytes: Vec<u8>, keep: bool, because: &str| {
        fuzz::put_right(&mut bytes, keep);
        let b = pool(2);
        let done = receive(&b, &bytes);
        assert!(
            matches!(&done, Err(Error::Refused { why, .. }) if why.contains(because)),
            "{because}: {done:?}"
        );
        assert_eq!((names(&b), used(&b)), ((0, 0, 0), 0));
    };
    let end = r.last().unwrap().clone();
    // The records exchanged; one twice; one left out; an end that counts wrongly, or ends elsewhere.
    let exchanged =
        [&full[..r[0].start], &full[r[1].clone()], &full[r[0].clone()], &full[r[1].end..]].concat();
    refused(exchanged, false, "must lie within");
    refused([&full[..r[0].end], &full[r[0].start..]].concat(), false, "must lie within");
    refused([&full[..r[0].start], &full[r[0].end..]].concat(), false, "tells of");
    for at in [end.start + 8, end.start + 16] {
        let mut bytes = full.clone();
        bytes[at] ^= 1;
        refused(bytes, false, "tells of");
    }
    // Other data, or another fingerprint; fewer blocks than the header says.
    let mut bytes = full.clone();
    bytes[r[0].end - 1] ^= 1;
    refused(bytes, true, "fingerprint");
    let mut bytes = full.clone();
    bytes[140] ^= 1;
    refused(bytes, true, "fingerprint");
    let mut bytes = full.clone();
    bytes[80] ^= 1;
    refused(bytes, false, "blocks of data");
    // Longer than the disk; of no length; of a kind that there is not; with something in what is reserved.
    for (at, byte, because) in [
        (17, 2, "1 to 256"),
        (16, 0, "1 to 256"),
        (9, 1, "must lie within"),
        (0, 9, "unknown kind"),
        (5, 1, "reserved"),
    ] {
        let mut bytes = full.clone();
        bytes[r[0].start + at] = byte;
        refused(bytes, false, because);
    }
}

#[test]
fn arbitrary_and_forged_streams_are_refused_without_a_trace() {
    let (_, full, change) = pair();
    let mut rng = Rng::new(rng::seed("arbitrary_and_forged_streams_are_refused_without_a_trace", 23));
    let mut accepted = 0;
    for round in 0..3000 {
        let source = if round % 2 == 0 { &full } else { &change };
        let mut bytes = vec![(round % 3 == 0).into()];
        bytes.extend_from_slice(source);
        if rng.one_in(4) {
            bytes.truncate(rng.below(source.len() as u64) as usize);
        }
        let heads: Vec<usize> = records(source).iter().map(|record| record.start + 1).collect();
        for _ in 0..rng.below(4) {
            // Where numbers lie: in the header, and at the heads of records.
            let at = match rng.below(3) {
                0 => rng.below(180),
                1 => heads[rng.below(heads.len() as u64) as usize] as u64 + rng.below(40),
                _ => rng.below(source.len() as u64),
            };
            if let Some(byte) = bytes.get_mut(at as usize) {
                *byte = [0, 0xFF, 1 << rng.below(8), rng.below(256) as u8][rng.below(4) as usize];
            }
        }
        accepted += u32::from(fuzz::receive(&bytes).is_some());
    }
    println!("{accepted} forged streams are right");
    assert!(accepted > 100);
    // The body's own checksums are those of the format.
    assert!(fuzz::receive(&[&[0], &full[..]].concat()).is_some());
    assert!(fuzz::receive(&[&[1], &full[..]].concat()).is_some());
}
