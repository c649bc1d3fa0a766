//! Volumes over an external base: the base shows where nothing was written, and in the end is not needed.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

mod common;

use std::io;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::observe::{all_volumes, read_all};
use common::rng::{self, Rng};
use common::{Shape, assert_sound};
use snapvol::device::sim::{Fate, SimDevice};
use snapvol::image::ImageSource;
use snapvol::{
    AttachOptions, Disk, Error, ExtentKind, Hydration, Pool, SendOptions, SnapshotSpec, Snapshots, VolumeId,
    VolumeSpec,
};

const BLOCK: usize = 4096;

/// Bytes in memory, which count how often they are read and can be taken away.
#[derive(Clone)]
struct Bytes {
    bytes: Arc<Vec<u8>>,
    reads: Arc<AtomicU64>,
    gone: Arc<AtomicBool>,
}

impl Bytes {
    fn new(bytes: Vec<u8>) -> Self {
        Self { bytes: Arc::new(bytes), reads: Arc::default(), gone: Arc::default() }
    }
}

impl ImageSource for Bytes {
    fn size_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        if self.gone.load(Ordering::Relaxed) {
            return Err(io::Error::other("the base is gone"));
        }
        buf.copy_from_slice(&self.bytes[offset as usize..offset as usize + buf.len()]);
        Ok(())
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        // Knows its zeroes in pieces of 16 blocks.
        let piece = 16 * BLOCK as u64;
        let mut at = offset;
        while at < self.size_bytes() {
            let end = (at / piece * piece + piece).min(self.size_bytes());
            if self.bytes[at as usize..end as usize].iter().any(|byte| *byte != 0) {
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
        let id = pool.create_volume_over(source.clone(), spec).unwrap().id;
        let mut model = vec![0; (blocks + more) * BLOCK];
        model[..source.bytes.len()].copy_from_slice(&source.bytes);
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
                pool.supply_base(id, source.clone()).unwrap();
            }
            match pool.hydrate(id, step) {
                Err(Error::Cancelled { .. }) => {}
                done => break done.unwrap(),
            }
        }
        assert_eq!(pool.hydration(id).unwrap(), None);
        source.gone.store(true, Ordering::Relaxed);
        assert_eq!(Arc::strong_count(&source.bytes), 1, "the pool has let go of the base");
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

#[test]
fn what_would_name_the_map_elsewhere_is_refused_until_the_volume_stands_alone() {
    let sim = SimDevice::new();
    let pool = create(&sim);
    let source = base(100 * BLOCK, 1);
    let id = pool.create_volume_over(source.clone(), VolumeSpec::image().name("over")).unwrap().id;
    let dir = tempfile::tempdir().unwrap();
    let refused = |pool: &Pool| {
        let mut open = std::fs::OpenOptions::new();
        let file =
            open.read(true).write(true).create(true).truncate(true).open(dir.path().join("file")).unwrap();
        let raw = snapvol::image::ExportOptions::new(snapvol::image::ImageFormat::Raw);
        [
            pool.create_snapshot(id, SnapshotSpec::new().force(true)).map(|_| ()),
            pool.create_volume(VolumeSpec::from_volume(id)).map(|_| ()),
            pool.allocated(id).map(|_| ()),
            pool.fingerprint(id).map(|_| ()),
            pool.export(id, &file, raw, |_| ControlFlow::Continue(())).map(|_| ()),
        ]
    };
    for done in refused(&pool) {
        assert!(matches!(done, Err(Error::InvalidState { .. })), "{done:?}");
    }
    let state = pool.hydration(id).unwrap().unwrap();
    assert_eq!((state.size_bytes, state.supplied, state.running), (100 * BLOCK as u64, true, false));
    pool.hydrate_in_background(id).unwrap().wait().unwrap();
    assert!(matches!(pool.hydrate(id, go_on), Err(Error::InvalidState { .. })));
    assert!(matches!(pool.supply_base(id, source.clone()), Err(Error::InvalidState { .. })));
    for done in refused(&pool) {
        done.unwrap();
    }
    let snapshot = pool.create_snapshot(id, SnapshotSpec::new()).unwrap().id;
    assert!(pool.send(snapshot, SendOptions::new()).is_ok());
    assert_sound(&pool);
}

#[test]
fn only_the_base_it_was_made_over_is_taken_and_without_it_nothing_is_read() {
    let sim = SimDevice::new();
    let pool = create(&sim);
    let source = base(100 * BLOCK, 1);
    let id = pool.create_volume_over(source.clone(), VolumeSpec::image()).unwrap().id;
    attach(&pool, id).write_at(b"mine", 10).unwrap();
    pool.close().unwrap();
    let pool = Pool::open_on(sim.reopen(), shape().open()).unwrap();
    let attached = pool.attach(id, AttachOptions::new()).map(|_| ());
    assert!(matches!(attached, Err(Error::InvalidState { op: "attach", .. })), "{attached:?}");
    assert!(matches!(pool.hydrate(id, go_on), Err(Error::InvalidState { op: "hydrate", .. })));
    assert!(!pool.hydration(id).unwrap().unwrap().supplied);
    let mut other = source.bytes.to_vec();
    other[50 * BLOCK] ^= 1;
    let longer = [&source.bytes[..], &[0]].concat();
    for wrong in [other, longer, vec![1; BLOCK]] {
        let refused = pool.supply_base(id, Bytes::new(wrong));
        assert!(matches!(refused, Err(Error::Refused { input: "base", .. })), "{refused:?}");
    }
    pool.supply_base(id, source.clone()).unwrap();
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
    assert!(matches!(pool.hydrate(id, go_on), Err(Error::Io { .. })));
    source.gone.store(false, Ordering::Relaxed);
    drop(disk);
    pool.hydrate(id, go_on).unwrap();
    let mut want = source.bytes.to_vec();
    want[10..14].copy_from_slice(b"mine");
    want[5 * BLOCK..6 * BLOCK].fill(4);
    assert!(read_all(&attach(&pool, id)).unwrap() == want);
    assert_sound(&pool);
}

#[test]
fn a_volume_over_a_base_is_deleted_with_all_it_took_but_not_while_it_is_hydrated() {
    let sim = SimDevice::new();
    let pool = create(&sim);
    let source = base(2000 * BLOCK, 1);
    let id = pool.create_volume_over(source.clone(), VolumeSpec::image()).unwrap().id;
    let mut refused = None;
    let stopped = pool.hydrate(id, |at| {
        assert!(at.running && at.position > 0);
        refused = Some((pool.delete_volume(id, Snapshots::Refuse).map(|_| ()), pool.hydrate(id, go_on)));
        ControlFlow::Break(())
    });
    assert!(matches!(stopped, Err(Error::Cancelled { .. })));
    assert!(matches!(refused, Some((Err(Error::Busy { .. }), Err(Error::Busy { .. })))), "{refused:?}");
    pool.delete_volume(id, Snapshots::Refuse).unwrap().wait().unwrap();
    assert!(all_volumes(&pool).unwrap().is_empty() && pool.space().unwrap().used_bytes == 0);
    assert_eq!(Arc::strong_count(&source.bytes), 1);
    assert!(matches!(pool.hydration(id), Err(Error::NotFound { .. })));
    assert_sound(&pool);
}

/// Writers stamp blocks of their own, discard them and read them back, while the base comes in.
#[test]
fn what_is_written_while_the_base_comes_in_stays() {
    let pool = Pool::create_in_memory(Shape::SMALL.limit(64 << 20).create().log_bytes(1 << 20)).unwrap();
    for round in 0..6 {
        let source = base(3000 * BLOCK, round);
        let spec = VolumeSpec::image().multiattach(true);
        let id = pool.create_volume_over(source.clone(), spec).unwrap().id;
        let done = AtomicBool::new(false);
        std::thread::scope(|threads| {
            for thread in 0..3u64 {
                let (disk, pool, source, done) = (attach(&pool, id), &pool, &source, &done);
                threads.spawn(move || {
                    let mut rng = Rng::new(round * 10 + thread);
                    // Every third block is this thread's.
                    let mut mine: Vec<Vec<u8>> = source.bytes.chunks(BLOCK).map(<[u8]>::to_vec).collect();
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
                        let _ = pool;
                    }
                    for (lba, block) in mine.iter().enumerate().filter(|(lba, _)| *lba as u64 % 3 == thread) {
                        let mut seen = vec![0; BLOCK];
                        disk.read_at(&mut seen, (lba * BLOCK) as u64).unwrap();
                        assert!(seen == *block, "block {lba} of thread {thread} in the end");
                    }
                });
            }
            pool.hydrate_in_background(id).unwrap().wait().unwrap();
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
    let id = pool.create_volume_over(source.clone(), VolumeSpec::image()).unwrap().id;
    let mut model = source.bytes.to_vec();
    let mut rng = Rng::new(4);
    let disk = attach(&pool, id);
    for _ in 0..30 {
        change(&disk, &mut model, &mut rng);
    }
    disk.flush().unwrap();
    drop(disk);
    sim.restart_trace();
    let mut calls = 0;
    pool.hydrate(id, |_| {
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
    let (mut over, mut alone, mut opened) = (0, 0, 0);
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
            match pool.hydration(id).unwrap() {
                Some(_) => {
                    over += 1;
                    pool.supply_base(id, source.clone()).unwrap();
                    assert!(read_all(&attach(&pool, id)).unwrap() == model, "cut {cut}, over the base");
                    pool.hydrate(id, go_on).unwrap();
                }
                None => alone += 1,
            }
            assert!(read_all(&attach(&pool, id)).unwrap() == model, "cut {cut}");
            assert_sound(&pool);
        }
    }
    println!("{opened} states opened: {over} over the base, {alone} alone");
    assert!(over > 20 && alone > 3);
}
