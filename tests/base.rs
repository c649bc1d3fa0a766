//! Volumes over an external base: the base shows where nothing was written, and in the end is not needed.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

mod common;

use std::io;
use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use common::observe::{all_volumes, read_all};
use common::rng::{self, Rng};
use common::{Shape, assert_sound};
use snapvol::device::sim::{Fate, SimDevice};
use snapvol::image::ImageSource;
use snapvol::{
    AttachOptions, BaseChecksums, BaseId, BaseSource, Disk, Error, ExtentKind, Hydration, Pool,
    ReceiveOptions, SendOptions, SnapshotSpec, Snapshots, Volume, VolumeId, VolumeSource, VolumeSpec,
};

const BLOCK: usize = 4096;

/// Bytes in memory that count how often each block is read, can be taken away and changed under their reader.
#[derive(Clone)]
struct Bytes {
    bytes: Arc<RwLock<Vec<u8>>>,
    reads: Arc<Vec<AtomicU64>>,
    gone: Arc<AtomicBool>,
}

impl Bytes {
    fn new(bytes: Vec<u8>) -> Self {
        let reads = (0..bytes.len().div_ceil(BLOCK)).map(|_| AtomicU64::new(0)).collect();
        Self { bytes: Arc::new(RwLock::new(bytes)), reads: Arc::new(reads), gone: Arc::default() }
    }

    fn to_vec(&self) -> Vec<u8> {
        self.bytes.read().unwrap().clone()
    }

    fn len(&self) -> usize {
        self.bytes.read().unwrap().len()
    }

    fn blocks(&self) -> Vec<Vec<u8>> {
        self.to_vec().chunks(BLOCK).map(<[u8]>::to_vec).collect()
    }

    fn change(&self, at: usize) {
        self.bytes.write().unwrap()[at] ^= 0x5a;
    }

    /// How often the most read block was read since this was asked the last time.
    fn most_reads(&self) -> u64 {
        self.reads.iter().map(|n| n.swap(0, Ordering::Relaxed)).max().unwrap_or(0)
    }

    fn is_held(&self) -> bool {
        Arc::strong_count(&self.bytes) > 1
    }
}

impl ImageSource for Bytes {
    fn size_bytes(&self) -> u64 {
        self.len() as u64
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if self.gone.load(Ordering::Relaxed) {
            return Err(io::Error::other("the base is gone"));
        }
        let (from, to) = (offset as usize, offset as usize + buf.len());
        for n in &self.reads[from / BLOCK..to.div_ceil(BLOCK)] {
            n.fetch_add(1, Ordering::Relaxed);
        }
        buf.copy_from_slice(&self.bytes.read().unwrap()[from..to]);
        Ok(())
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        // Knows its zeroes in pieces of 16 blocks.
        let bytes = self.bytes.read().unwrap();
        let (piece, size) = (16 * BLOCK as u64, bytes.len() as u64);
        let mut at = offset;
        while at < size {
            let end = (at / piece * piece + piece).min(size);
            if bytes[at as usize..end as usize].iter().any(|byte| *byte != 0) {
                return Ok(Some(at..end));
            }
            at = end;
        }
        Ok(None)
    }
}

/// Data with zeroes in it, of `len` bytes.
fn base(len: usize, seed: u64) -> Bytes {
    let mut rng = Rng::new(seed);
    let mut bytes = vec![0; len];
    let mut at = 0;
    while at < len {
        let end = (at + (1 + rng.below(30) as usize) * BLOCK).min(len);
        if !rng.one_in(3) {
            bytes[at..end].iter_mut().for_each(|byte| *byte = 1 + rng.below(255) as u8);
        }
        at = end;
    }
    *bytes.last_mut().unwrap() = 77;
    Bytes::new(bytes)
}

fn shape() -> Shape {
    Shape::SMALL.limit(24 << 20)
}

fn create(sim: &SimDevice) -> Pool {
    Pool::create_on(sim.clone(), shape().create()).unwrap()
}

fn attach(pool: &Pool, id: VolumeId) -> Disk {
    pool.attach(id, AttachOptions::new()).unwrap()
}

/// A volume over a new base, and the base.
fn over(pool: &Pool, source: impl Into<BaseSource>, spec: VolumeSpec) -> (VolumeId, BaseId) {
    let volume = pool.create_volume_over(source, spec).unwrap();
    (volume.id, base_of(&volume))
}

fn base_of(volume: &Volume) -> BaseId {
    match volume.source {
        VolumeSource::Base(id) => id,
        other => panic!("made from {other:?}"),
    }
}

fn go_on(_: Hydration) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn step(_: Hydration) -> ControlFlow<()> {
    ControlFlow::Break(())
}

/// One change to a disk and to the array that it must equal.
fn change(disk: &Disk, model: &mut [u8], rng: &mut Rng) {
    let at = rng.below(model.len() as u64 - 1) as usize;
    let len = (1 + rng.below(5 * BLOCK as u64) as usize).min(model.len() - at);
    match rng.below(4) {
        0 => {
            disk.discard(at as u64, len as u64).unwrap();
            let (from, to) = (at.div_ceil(BLOCK) * BLOCK, (at + len) / BLOCK * BLOCK);
            if from < to {
                model[from..to].fill(0);
            }
        }
        1 => {
            disk.write_zeroes(at as u64, len as u64).unwrap();
            model[at..at + len].fill(0);
        }
        _ => {
            let data = vec![rng.below(256) as u8; len];
            disk.write_at(&data, at as u64).unwrap();
            model[at..at + len].copy_from_slice(&data);
        }
    }
}

#[test]
fn a_volume_over_a_base_is_an_array_that_began_as_the_base_however_far_it_is_hydrated() {
    let seed =
        rng::seed("a_volume_over_a_base_is_an_array_that_began_as_the_base_however_far_it_is_hydrated", 5);
    for round in 0..20 {
        let mut rng = Rng::new(seed + round);
        let (sim, blocks) = (SimDevice::new(), 300 + rng.below(600) as usize);
        // The last block of the base is cut short; the volume may be larger.
        let source = base(blocks * BLOCK - 1000, seed + round);
        let mut pool = create(&sim);
        let more = rng.below(3) as usize * 50;
        let spec = VolumeSpec::image().size(((blocks + more) * BLOCK) as u64);
        let (id, base) = over(&pool, source.clone(), spec);
        let mut model = vec![0; (blocks + more) * BLOCK];
        model[..source.len()].copy_from_slice(&source.to_vec());
        let mut reopened = 0;
        loop {
            let disk = attach(&pool, id);
            for _ in 0..rng.below(8) {
                change(&disk, &mut model, &mut rng);
            }
            assert!(read_all(&disk).unwrap() == model, "round {round}");
            for extent in disk.extents(0..disk.size_bytes()).map(|e| e.unwrap()) {
                let range = extent.range.start as usize..extent.range.end as usize;
                assert!(extent.kind == ExtentKind::Data || model[range].iter().all(|byte| *byte == 0));
            }
            drop(disk);
            if rng.one_in(4) {
                pool.close().unwrap();
                pool = Pool::open_on(sim.reopen(), shape().open_with_ids(100 + reopened)).unwrap();
                reopened += 1;
                pool.supply_base(base, source.clone()).unwrap();
            }
            match pool.hydrate(base, step) {
                Err(Error::Cancelled { .. }) => {}
                done => break done.unwrap(),
            }
        }
        let whole = pool.base(base).unwrap();
        assert!(whole.complete && !whole.supplied && whole.position == source.size_bytes());
        source.gone.store(true, Ordering::Relaxed);
        assert!(!source.is_held(), "the pool has let go of the base");
        let disk = attach(&pool, id);
        for _ in 0..20 {
            change(&disk, &mut model, &mut rng);
        }
        drop(disk);
        let snapshot = pool.create_snapshot(id, SnapshotSpec::new()).unwrap().id;
        assert!(read_all(&pool.attach_snapshot(snapshot).unwrap()).unwrap() == model);
        assert_sound(&pool);
        pool.close().unwrap();
        let pool = Pool::open_on(sim.reopen(), shape().open_with_ids(90)).unwrap();
        assert!(read_all(&attach(&pool, id)).unwrap() == model);
    }
}

/// Everything that shares a map shares what shows through it, long before the pool has it.
#[test]
fn what_lies_over_a_base_is_snapshotted_cloned_compared_and_rolled_back_before_the_pool_has_it() {
    let sim = SimDevice::new();
    let mut pool = create(&sim);
    let source = base(200 * BLOCK, 1);
    let (id, base) = over(&pool, source.clone(), VolumeSpec::image().name("over"));
    let first = source.to_vec();
    let disk = attach(&pool, id);
    disk.write_at(b"mine", 10).unwrap();
    disk.discard(BLOCK as u64 * 50, BLOCK as u64 * 3).unwrap();
    let snapshot = pool.create_snapshot(id, SnapshotSpec::new().force(true)).unwrap().id;
    let mut seen = first.clone();
    seen[10..14].copy_from_slice(b"mine");
    seen[50 * BLOCK..53 * BLOCK].fill(0);
    disk.write_at(&[7; BLOCK], 100 * BLOCK as u64).unwrap();
    drop(disk);
    let changed: Vec<_> = pool.diff(snapshot, id).unwrap().map(|c| c.unwrap().range.start / 4096).collect();
    assert_eq!(changed, [100]);
    // Back again: what the volume covers is uncovered there.
    let back: Vec<_> = pool.diff(id, snapshot).unwrap().map(|c| c.unwrap()).collect();
    assert!(matches!(&back[..], [one] if one.range == (409_600..413_696) && one.kind == ExtentKind::Data));
    let clone = pool.create_volume(VolumeSpec::from_snapshot(snapshot)).unwrap().id;
    let second = pool.create_volume(VolumeSpec::from_base(base).size(250 * BLOCK as u64)).unwrap();
    assert_eq!((base_of(&second), second.size_bytes), (base, 250 * BLOCK as u64));
    assert_eq!(pool.base(base).unwrap().users, 4);
    for point in [id, clone, second.id] {
        assert_eq!(pool.base_of(point).unwrap(), Some(base));
    }
    let image = pool.create_image(snapvol::ImageSpec::new().name("golden")).unwrap().id;
    pool.activate_image(image, snapshot, snapvol::ImageContent::new()).unwrap();
    let of_image = pool.create_volume(VolumeSpec::from_image(image)).unwrap().id;
    for round in 0..2 {
        assert!(read_all(&pool.attach_snapshot(snapshot).unwrap()).unwrap() == seen);
        assert!(read_all(&attach(&pool, clone)).unwrap() == seen);
        assert!(read_all(&attach(&pool, of_image)).unwrap() == seen);
        let larger = read_all(&attach(&pool, second.id)).unwrap();
        assert!(larger[..first.len()] == first && larger[first.len()..].iter().all(|b| *b == 0));
        if round == 0 {
            assert_sound(&pool);
            pool.close().unwrap();
            pool = Pool::open_on(sim.reopen(), shape().open_with_ids(90)).unwrap();
            let refused = pool.attach_snapshot(snapshot).map(|_| ());
            assert!(matches!(refused, Err(Error::InvalidState { op: "attach", .. })), "{refused:?}");
            pool.supply_base(base, source.clone()).unwrap();
        }
    }
    pool.rollback(snapshot).unwrap();
    assert!(read_all(&attach(&pool, id)).unwrap() == seen);
    pool.extend(clone, 300 * BLOCK as u64).unwrap();
    assert!(read_all(&attach(&pool, clone)).unwrap()[seen.len()..].iter().all(|b| *b == 0));
    // Two volumes over one base differ where one of them was written; where both show it they do not.
    let differ: Vec<_> =
        pool.diff(clone, second.id).unwrap().map(|c| c.unwrap().range.start / 4096).collect();
    assert_eq!(differ, [0, 50]);
    // Over another base, and over none, everything may differ.
    let (other, _) = over(&pool, base_of_blocks(100, 5), VolumeSpec::image());
    let told = |changes: snapvol::Diff| {
        let mut told = vec![false; second.size_bytes as usize];
        changes.map(|c| c.unwrap().range).for_each(|r| told[r.start as usize..r.end as usize].fill(true));
        told
    };
    for told in [told(pool.diff(other, second.id).unwrap()), told(pool.allocated(second.id).unwrap())] {
        assert!(first.iter().zip(&told).all(|(byte, told)| *byte == 0 || *told), "all data is told of");
        assert!(!told[first.len()..].contains(&true), "behind the base there is nothing");
    }
    assert_sound(&pool);
}

fn base_of_blocks(blocks: usize, seed: u64) -> Bytes {
    base(blocks * BLOCK, seed)
}

/// The bytes come in once, whoever asks first, and are there for everybody.
#[test]
fn each_block_comes_in_once_for_all_that_lie_over_a_base() {
    let sim = SimDevice::new();
    let pool = create(&sim);
    let source = base(2000 * BLOCK, 3);
    let (first, base) = over(&pool, source.clone(), VolumeSpec::image());
    let others: Vec<VolumeId> =
        (0..5).map(|_| pool.create_volume(VolumeSpec::from_base(base)).unwrap().id).collect();
    source.most_reads();
    let disk = attach(&pool, first);
    let mut part = vec![0; 300 * BLOCK];
    disk.read_at(&mut part, 400 * BLOCK as u64 + 77).unwrap();
    let mut calls = 0;
    let stopped = pool.hydrate(base, |_| {
        calls += 1;
        if calls == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(stopped, Err(Error::Cancelled { .. })));
    let want = source.to_vec();
    assert!(part == want[400 * BLOCK + 77..][..part.len()]);
    for id in &others {
        assert!(read_all(&attach(&pool, *id)).unwrap() == want);
    }
    pool.hydrate(base, go_on).unwrap();
    pool.hydrate(base, go_on).unwrap();
    assert_eq!(source.most_reads(), 1);
    let (whole, space) = (pool.base(base).unwrap(), pool.space().unwrap());
    let data = source.blocks().iter().filter(|block| block.iter().any(|b| *b != 0)).count() * BLOCK;
    assert_eq!((whole.held_bytes, space.used_bytes, whole.users), (data as u64, data as u64, 6));
    assert!(matches!(pool.supply_base(base, source.clone()), Err(Error::InvalidState { .. })));
    // As long as anybody else is there, what one gives back is its own.
    attach(&pool, others[0]).write_at(&[1; 3 * BLOCK], 0).unwrap();
    assert_eq!(pool.volume_space(others[0]).unwrap().exclusive_bytes, 3 * BLOCK as u64);
    assert_eq!(pool.plan_delete(others[0], Snapshots::Refuse).unwrap().frees_bytes, 3 * BLOCK as u64);
    drop(disk);
    for id in &others[1..] {
        assert_eq!(pool.delete_volume(*id, Snapshots::Refuse).unwrap().wait().unwrap().freed_bytes, 0);
    }
    let gone = pool.delete_volume(first, Snapshots::Refuse).unwrap();
    assert_eq!(gone.wait().unwrap().freed_bytes, 0);
    // The last one takes the base along.
    let all = (data + 3 * BLOCK) as u64;
    assert_eq!(pool.volume_space(others[0]).unwrap().exclusive_bytes, all);
    assert_eq!(pool.plan_delete(others[0], Snapshots::Refuse).unwrap().frees_bytes, all);
    let gone = pool.delete_volume(others[0], Snapshots::Refuse).unwrap();
    assert_eq!(gone.wait().unwrap().freed_bytes, all);
    assert!(matches!(pool.base(base), Err(Error::NotFound { .. })) && pool.list_bases().unwrap().is_empty());
    assert_eq!(pool.space().unwrap().used_bytes, 0);
    assert_sound(&pool);
}

#[test]
fn a_snapshot_over_a_complete_base_is_sent_exported_and_received_like_any_other() {
    let sim = SimDevice::new();
    let pool = create(&sim);
    let source = base(150 * BLOCK, 8);
    let (id, base) = over(&pool, source.clone(), VolumeSpec::image().size(170 * BLOCK as u64));
    attach(&pool, id).write_at(b"mine", 99_000).unwrap();
    let monday = pool.create_snapshot(id, SnapshotSpec::new()).unwrap().id;
    let export = |format, name: &str| {
        let dir = tempfile::tempdir().unwrap();
        let mut open = std::fs::OpenOptions::new();
        let file = open.read(true).write(true).create_new(true).open(dir.path().join(name)).unwrap();
        let options = snapvol::image::ExportOptions::new(format);
        pool.export(monday, &file, options, |_| ControlFlow::Continue(())).unwrap().fingerprint
    };
    // What has to be counted beforehand waits for the base; what is only read does not.
    let refused = pool.send(monday, SendOptions::new()).map(|_| ());
    assert!(matches!(refused, Err(Error::InvalidState { op: "send", .. })), "{refused:?}");
    let before = export(snapvol::image::ImageFormat::Raw, "raw");
    pool.hydrate(base, go_on).unwrap();
    assert_eq!(export(snapvol::image::ImageFormat::Qcow2, "qcow2"), before);
    assert_eq!(pool.fingerprint(monday).unwrap(), before);
    let there = Pool::create_in_memory(shape().ids(55).create()).unwrap();
    let stream = pool.send(monday, SendOptions::new()).unwrap();
    let got = there.receive(stream, ReceiveOptions::new(), |_| ControlFlow::Continue(())).unwrap();
    let want = read_all(&pool.attach_snapshot(monday).unwrap()).unwrap();
    assert!(read_all(&there.attach_snapshot(got.snapshot.id).unwrap()).unwrap() == want);
    // There it is written to, and comes back to lie over the base here.
    let far = got.snapshot.volume;
    let disk = attach(&there, far);
    disk.write_at(b"theirs", 5000).unwrap();
    disk.discard(20 * BLOCK as u64, 40 * BLOCK as u64).unwrap();
    drop(disk);
    let tuesday = there.create_snapshot(far, SnapshotSpec::new()).unwrap().id;
    let stream = there.send(tuesday, SendOptions::new().since(got.snapshot.id)).unwrap();
    let back =
        pool.receive(stream, ReceiveOptions::new(), |_| ControlFlow::Continue(())).unwrap().snapshot.id;
    assert_eq!(pool.fingerprint(back).unwrap(), there.fingerprint(tuesday).unwrap());
    let want = read_all(&there.attach_snapshot(tuesday).unwrap()).unwrap();
    assert!(read_all(&pool.attach_snapshot(back).unwrap()).unwrap() == want);
    pool.rollback(back).unwrap();
    assert!(read_all(&attach(&pool, id)).unwrap() == want);
    assert_sound(&pool);
    assert_sound(&there);
}

#[test]
fn only_the_base_it_was_made_over_is_taken_and_without_it_nothing_is_read() {
    let sim = SimDevice::new();
    let pool = create(&sim);
    let source = base(100 * BLOCK, 1);
    let (id, base) = over(&pool, source.clone(), VolumeSpec::image());
    attach(&pool, id).write_at(b"mine", 10).unwrap();
    pool.close().unwrap();
    let pool = Pool::open_on(sim.reopen(), shape().open()).unwrap();
    let attached = pool.attach(id, AttachOptions::new()).map(|_| ());
    assert!(matches!(attached, Err(Error::InvalidState { op: "attach", .. })), "{attached:?}");
    assert!(matches!(pool.hydrate(base, go_on), Err(Error::InvalidState { op: "hydrate", .. })));
    let printed = pool.fingerprint(id);
    assert!(matches!(printed, Err(Error::InvalidState { op: "read", .. })), "{printed:?}");
    assert!(!pool.base(base).unwrap().supplied);
    let mut other = source.to_vec();
    other[50 * BLOCK] ^= 1;
    let longer = [source.to_vec(), vec![0]].concat();
    for wrong in [other, longer, vec![1; BLOCK]] {
        let refused = pool.supply_base(base, Bytes::new(wrong));
        assert!(matches!(refused, Err(Error::Refused { input: "base", .. })), "{refused:?}");
    }
    pool.supply_base(base, source.clone()).unwrap();
    // A base that fails is the device's failure; what the pool has is read all the same.
    source.gone.store(true, Ordering::Relaxed);
    let disk = attach(&pool, id);
    let mut seen = [0; 4];
    disk.read_at(&mut seen, 10).unwrap();
    assert_eq!(&seen, b"mine");
    let failed = disk.read_at(&mut seen, 5 * BLOCK as u64);
    assert!(matches!(failed, Err(Error::Io { op: "read of the base", .. })), "{failed:?}");
    assert!(disk.write_at(b"part", 5 * BLOCK as u64 + 9).is_err());
    disk.write_at(&[4; BLOCK], 5 * BLOCK as u64).unwrap();
    assert!(matches!(pool.hydrate(base, go_on), Err(Error::Io { .. })));
    source.gone.store(false, Ordering::Relaxed);
    drop(disk);
    pool.hydrate(base, go_on).unwrap();
    let mut want = source.to_vec();
    want[10..14].copy_from_slice(b"mine");
    want[5 * BLOCK..6 * BLOCK].fill(4);
    assert!(read_all(&attach(&pool, id)).unwrap() == want);
    assert_sound(&pool);
}

/// The base changes outside. Whatever anybody has seen stays, over a crash and under another file too.
#[test]
fn what_was_shown_once_is_shown_for_ever() {
    let sim = SimDevice::new();
    let pool = create(&sim);
    let source = base(600 * BLOCK, 2);
    let (id, base) = over(&pool, source.clone(), VolumeSpec::image());
    let before = source.to_vec();
    let mut seen = vec![0; 10 * BLOCK];
    let disk = attach(&pool, id);
    disk.read_at(&mut seen, 301 * BLOCK as u64).unwrap();
    // A write of a part shows the rest, too.
    disk.write_at(b"x", 320 * BLOCK as u64).unwrap();
    for block in (300..330).filter(|block| block % 2 == 1) {
        source.change(block * BLOCK + 5);
    }
    let mut again = vec![0; 10 * BLOCK];
    disk.read_at(&mut again, 301 * BLOCK as u64).unwrap();
    assert!(seen == again && seen == before[301 * BLOCK..311 * BLOCK]);
    disk.flush().unwrap();
    drop(disk);
    let survivor = sim.reopen();
    drop(pool);
    let pool = Pool::open_on(survivor, shape().open()).unwrap();
    // 600 blocks, of which 256 are looked at: the odd ones between are as good as any.
    let clone = pool.create_volume(VolumeSpec::from_base(base)).unwrap().id;
    match pool.supply_base(base, source.clone()) {
        Ok(()) => {}
        Err(Error::Refused { .. }) => {
            for block in (300..330).filter(|block| block % 2 == 1) {
                source.change(block * BLOCK + 5);
            }
            pool.supply_base(base, source.clone()).unwrap();
            source.change(303 * BLOCK);
            source.change(320 * BLOCK);
        }
        Err(e) => panic!("{e:?}"),
    }
    for volume in [id, clone] {
        attach(&pool, volume).read_at(&mut again, 301 * BLOCK as u64).unwrap();
        assert!(seen == again);
    }
    let mut part = [0; BLOCK];
    attach(&pool, id).read_at(&mut part, 320 * BLOCK as u64).unwrap();
    assert!(part[0] == b'x' && part[1..] == before[320 * BLOCK + 1..321 * BLOCK]);
    assert_sound(&pool);
}

/// With checksums of everything no other byte is ever shown, whatever becomes of the file.
#[test]
fn nothing_that_differs_from_its_checksums_is_shown() {
    let sim = SimDevice::new();
    let pool = create(&sim);
    let source = base(700 * BLOCK - 9, 4);
    let sums = BaseChecksums::of(&source, |_| ControlFlow::Continue(())).unwrap();
    let sums = BaseChecksums::from_bytes(&sums.to_bytes()).unwrap();
    let (id, base) =
        over(&pool, BaseSource::new(source.clone()).checksums(sums.clone()), VolumeSpec::image());
    assert!(pool.base(base).unwrap().has_checksums);
    let before = source.to_vec();
    // Pieces have 64 blocks; the second and the last are damaged, one of them in its zeroes perhaps.
    source.change(100 * BLOCK);
    source.change(before.len() - 2);
    let disk = attach(&pool, id);
    let mut block = [0; BLOCK];
    for lba in 0..700u64 {
        let read = disk.read_at(&mut block, lba * BLOCK as u64);
        if (64..128).contains(&lba) || lba >= 640 {
            assert!(matches!(read, Err(Error::Refused { input: "base", .. })), "block {lba}: {read:?}");
        } else {
            read.unwrap();
            assert!(block[..] == before[lba as usize * BLOCK..][..BLOCK], "block {lba}");
        }
    }
    assert!(matches!(disk.write_at(b"part", 100 * BLOCK as u64 + 1), Err(Error::Refused { .. })));
    assert!(matches!(pool.hydrate(base, go_on), Err(Error::Refused { .. })));
    drop(disk);
    pool.close().unwrap();
    // Only the same checksums are taken; without any they are computed, and found to differ.
    let open = |ids| Pool::open_on(sim.reopen(), shape().open_with_ids(ids)).unwrap();
    let pool = open(50);
    let refused = pool.supply_base(base, source.clone());
    assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
    let others = BaseChecksums::of(&source, |_| ControlFlow::Continue(())).unwrap();
    let refused = pool.supply_base(base, BaseSource::new(source.clone()).checksums(others));
    assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
    source.change(before.len() - 2);
    source.change(100 * BLOCK);
    pool.supply_base(base, source.clone()).unwrap();
    source.change(70 * BLOCK);
    // In a pool that is only read, too.
    pool.flush().unwrap();
    let reader = Pool::open_on(sim.reopen(), shape().open_with_ids(51).read_only(true)).unwrap();
    reader.supply_base(base, BaseSource::new(source.clone()).checksums(sums.clone())).unwrap();
    let disk = reader.attach(id, AttachOptions::new()).unwrap();
    assert!(matches!(disk.read_at(&mut block, 101 * BLOCK as u64), Err(Error::Refused { .. })));
    disk.read_at(&mut block, 5 * BLOCK as u64).unwrap();
    assert!(block[..] == before[5 * BLOCK..6 * BLOCK]);
    source.change(70 * BLOCK);
    drop((disk, reader, pool));
    let pool = open(52);
    pool.supply_base(base, BaseSource::new(source.clone()).checksums(sums)).unwrap();
    pool.hydrate(base, go_on).unwrap();
    assert!(read_all(&attach(&pool, id)).unwrap()[..before.len()] == before);
    assert_sound(&pool);
}

#[test]
fn a_base_larger_than_the_pool_is_read_and_hydrated_as_far_as_there_is_room() {
    let sim = SimDevice::new();
    let pool = Pool::create_on(sim, Shape::SMALL.limit(3 << 20).create()).unwrap();
    let source = Bytes::new((0..1500 * BLOCK).map(|at| (at / BLOCK) as u8 | 1).collect());
    let (id, base) = over(&pool, source.clone(), VolumeSpec::image());
    let full = pool.hydrate(base, go_on);
    assert!(matches!(full, Err(Error::OutOfSpace { .. })), "{full:?}");
    let disk = attach(&pool, id);
    assert!(read_all(&disk).unwrap() == source.to_vec());
    // A block of which a part is written needs one here, and before that one in the base.
    let mut want = source.to_vec();
    let refused = (0..1500).rev().find_map(|lba| match disk.write_at(b"part", lba * BLOCK as u64 + 1) {
        Ok(()) => {
            want[lba as usize * BLOCK + 1..][..4].copy_from_slice(b"part");
            None
        }
        Err(e) => Some(e),
    });
    assert!(matches!(refused, Some(Error::OutOfSpace { .. })), "{refused:?}");
    assert!(read_all(&disk).unwrap() == want);
    let (held, own) = (pool.base(base).unwrap().held_bytes, pool.volume_space(id).unwrap().mapped_bytes);
    assert!(held > 0 && held < source.size_bytes());
    drop(disk);
    let gone = pool.delete_volume(id, Snapshots::Refuse).unwrap();
    assert_eq!(gone.wait().unwrap().freed_bytes, held + own);
    pool.create_volume_over(base_of_blocks(20, 1), VolumeSpec::image()).unwrap();
    assert_sound(&pool);
}

#[test]
fn a_base_whose_last_volume_goes_while_it_is_hydrated_goes_with_the_hydration() {
    let sim = SimDevice::new();
    let pool = create(&sim);
    let source = base(2000 * BLOCK, 1);
    let (id, base) = over(&pool, source.clone(), VolumeSpec::image());
    let mut told = None;
    let ended = pool.hydrate(base, |at| {
        assert!(at.position > 0);
        let again = pool.hydrate(base, go_on);
        told = Some((pool.base(base).unwrap(), again));
        pool.delete_volume(id, Snapshots::Refuse).unwrap().wait().unwrap();
        ControlFlow::Continue(())
    });
    assert!(matches!(ended, Err(Error::NotFound { object: "base", .. })), "{ended:?}");
    let (seen, again) = told.unwrap();
    assert!(seen.hydrating && seen.users == 1 && matches!(again, Err(Error::Busy { .. })));
    while pool.step(100).unwrap() {}
    assert!(all_volumes(&pool).unwrap().is_empty() && pool.space().unwrap().used_bytes == 0);
    assert!(!source.is_held() && pool.list_bases().unwrap().is_empty());
    assert_sound(&pool);
}

/// Writers stamp blocks of their own, discard them and read them back, while the base comes in.
#[test]
fn what_is_written_while_the_base_comes_in_stays() {
    let pool = Pool::create_in_memory(Shape::SMALL.limit(64 << 20).create().log_bytes(1 << 20)).unwrap();
    for round in 0..6 {
        let source = base(3000 * BLOCK, round);
        let spec = VolumeSpec::image().multiattach(true);
        let (id, base) = over(&pool, source.clone(), spec);
        let done = AtomicBool::new(false);
        std::thread::scope(|threads| {
            for thread in 0..3u64 {
                let (disk, source, done) = (attach(&pool, id), &source, &done);
                threads.spawn(move || {
                    let mut rng = Rng::new(round * 10 + thread);
                    // Every third block is this thread's.
                    let mut mine = source.blocks();
                    let mut rounds = 0;
                    while !done.load(Ordering::Relaxed) || rounds < 300 {
                        rounds += 1;
                        let lba = rng.below(1000) * 3 + thread;
                        let (at, block) = (lba * BLOCK as u64, &mut mine[lba as usize]);
                        match rng.below(4) {
                            0 => {
                                disk.discard(at, BLOCK as u64).unwrap();
                                block.fill(0);
                            }
                            1 => {
                                disk.write_at(&[rounds as u8; 100], at + 50).unwrap();
                                block[50..150].fill(rounds as u8);
                            }
                            2 => {
                                disk.write_at(&[rounds as u8; BLOCK], at).unwrap();
                                block.fill(rounds as u8);
                            }
                            _ => {}
                        }
                        let mut seen = vec![0; BLOCK];
                        disk.read_at(&mut seen, at).unwrap();
                        assert!(seen == *block, "block {lba} of thread {thread}, round {rounds}");
                    }
                    for (lba, block) in mine.iter().enumerate().filter(|(lba, _)| *lba as u64 % 3 == thread) {
                        let mut seen = vec![0; BLOCK];
                        disk.read_at(&mut seen, (lba * BLOCK) as u64).unwrap();
                        assert!(seen == *block, "block {lba} of thread {thread} in the end");
                    }
                });
            }
            pool.hydrate_in_background(base).unwrap().wait().unwrap();
            done.store(true, Ordering::Relaxed);
        });
        assert_sound(&pool);
        pool.delete_volume(id, Snapshots::Refuse).unwrap().wait().unwrap();
    }
}

/// Whatever is left after a loss of power: with the base while there is a record of it, without it otherwise.
#[test]
fn a_crash_at_any_point_of_a_hydration_loses_nothing_of_base_or_volume() {
    let sim = SimDevice::new();
    let pool = create(&sim);
    let source = base(700 * BLOCK, 9);
    let (id, base) = over(&pool, source.clone(), VolumeSpec::image());
    let mut model = source.to_vec();
    let mut rng = Rng::new(4);
    let disk = attach(&pool, id);
    for _ in 0..30 {
        change(&disk, &mut model, &mut rng);
    }
    disk.flush().unwrap();
    drop(disk);
    sim.restart_trace();
    let mut calls = 0;
    pool.hydrate(base, |_| {
        calls += 1;
        if calls % 2 == 0 {
            pool.flush().unwrap();
        }
        if calls % 3 == 0 {
            pool.checkpoint().unwrap();
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    pool.checkpoint().unwrap();
    let trace = sim.trace();
    let (mut over_it, mut alone, mut opened) = (0, 0, 0);
    for cut in 0..=trace.len() {
        for sample in 0..4 {
            let device = trace.device_at(cut, |_| match sample {
                0 => Fate::Kept,
                1 => Fate::Lost,
                _ if rng.one_in(2) => Fate::Kept,
                _ => Fate::Lost,
            });
            let pool = Pool::open_on(device, shape().open_with_ids(100 + opened)).unwrap();
            opened += 1;
            let there = pool.base(base).unwrap();
            assert_eq!(there.users, 1, "the hydration that was cut off is no user any more");
            if there.complete {
                alone += 1;
            } else {
                over_it += 1;
                pool.supply_base(base, source.clone()).unwrap();
                assert!(read_all(&attach(&pool, id)).unwrap() == model, "cut {cut}, over the base");
                pool.hydrate(base, go_on).unwrap();
            }
            assert!(read_all(&attach(&pool, id)).unwrap() == model, "cut {cut}");
            assert_sound(&pool);
        }
    }
    println!("{opened} states opened: {over_it} over the base, {alone} alone");
    assert!(over_it > 20 && alone > 3);
}
