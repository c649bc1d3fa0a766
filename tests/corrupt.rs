//! P6, P9: every byte of a pool goes bad in turn, once closed cleanly and once as a kill leaves it. What is read
//! is right or a typed error; nothing panics, nothing is silently older.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use common::model::{BLOCK, Cell, Map, Model};
use common::ops::{Action, Kind, Limits, Op};
use common::rng::Rng;
use common::{Rig, Shape, observe, on_all_cores, rng};
use snapvol::device::Device;
use snapvol::device::sim::{Fate, SimDevice};
use snapvol::{AttachOptions, CheckOptions, CheckReport, Disk, Error, Pool, Snapshots, VolumeId};
use xxhash_rust::xxh3::xxh3_64;

const LIMITS: Limits = Limits { volumes: 4, snapshots: 5, blocks: 24 };

/// Two families that share nothing, with snapshots, a clone, zero extents, holes and a pending delete.
fn pool() -> Rig<SimDevice> {
    let mut rig = Rig::create(SimDevice::new(), Shape::SMALL.limit(5 << 19)).unwrap();
    let op = Op::new;
    for op in [
        op(Kind::Create, 0, 15, 0),
        op(Kind::Create, 0, 9, 0),
        op(Kind::Write, 0, 0, 115),
        op(Kind::Write, 1, 0, 75),
        op(Kind::Snapshot, 0, 1, 0),
        op(Kind::Write, 0, 2, 8),
        op(Kind::Write, 0, 5, 0),
        op(Kind::CloneSnapshot, 0, 1, 0),
        op(Kind::WriteZeroes, 1, 7, 0),
        op(Kind::Discard, 0, 9, 0),
        op(Kind::Snapshot, 1, 1, 0),
        op(Kind::Checkpoint, 0, 0, 0),
        op(Kind::Drain, 0, 0, 0),
        op(Kind::Write, 1, 1, 0),
        op(Kind::Write, 2, 3, 0),
        op(Kind::Flush, 0, 0, 0),
        op(Kind::Snapshot, 2, 1, 0),
        op(Kind::DeleteSnapshot, 0, 0, 1),
        op(Kind::Write, 0, 4, 25),
        op(Kind::Flush, 0, 0, 0),
    ] {
        let action = rig.resolve(op, LIMITS);
        rig.must(action);
    }
    rig
}

/// What became of a pool with one bad byte.
#[derive(Default)]
struct Outcomes {
    flips: AtomicU64,
    unharmed: AtomicU64,
    refused: AtomicU64,
    errors: AtomicU64,
    findings: AtomicU64,
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// Reads block by block: each is right or `Corrupt`. Returns how many are not readable.
fn read(disk: &Disk, map: &Map, story: &str) -> u64 {
    let mut buf = vec![0xee; BLOCK];
    let mut errors = 0;
    assert_eq!(disk.size_bytes(), map.size_bytes(), "{story}");
    for (index, cell) in map.cells().iter().enumerate() {
        match disk.read_at(&mut buf, (index * BLOCK) as u64) {
            Ok(()) => {
                assert_eq!(xxh3_64(&buf), cell.hash(), "{story}: block {index} is wrong and nobody says so")
            }
            Err(Error::Corrupt(_)) => errors += 1,
            Err(error) => panic!("{story}: block {index}: {error:?}"),
        }
    }
    errors
}

/// Opens the medium with its one bad byte and uses all of it.
fn survive(device: SimDevice, model: &Model, story: &str, outcomes: &Outcomes) {
    add(&outcomes.flips, 1);
    let (pool, writable) = match Pool::open_on(device.clone(), Shape::SMALL.open()) {
        Ok(pool) => (pool, true),
        Err(error) => {
            // Recovery must change a leaf, which has one copy: it cannot write what it does not know. For
            // reading the pool opens all the same.
            assert!(matches!(error, Error::Corrupt(_)), "{story}: open: {error:?}");
            add(&outcomes.refused, 1);
            let pool = Pool::open_on(device.reopen(), Shape::SMALL.open().read_only(true));
            (pool.unwrap_or_else(|e| panic!("{story}: open for reading: {e:?}")), false)
        }
    };
    let mut harmed: BTreeMap<u64, u64> = BTreeMap::new();
    for (id, volume) in &model.volumes {
        let errors = match pool.attach(*id, AttachOptions::default().read_only(true)) {
            Ok(disk) => read(&disk, &volume.map, story),
            Err(Error::Corrupt(_)) => volume.map.blocks() as u64,
            Err(error) => panic!("{story}: the newest state must be there: {error:?}"),
        };
        *harmed.entry(volume.family).or_default() += errors;
    }
    for (id, snapshot) in &model.snapshots {
        let errors = match pool.attach_snapshot(*id) {
            Ok(disk) => read(&disk, &snapshot.map, story),
            Err(Error::Corrupt(_)) => snapshot.map.blocks() as u64,
            Err(error) => panic!("{story}: the newest state must be there: {error:?}"),
        };
        *harmed.entry(snapshot.family).or_default() += errors;
    }
    for listed in [
        observe::all_volumes(&pool).map(|v| v.len() == model.volumes.len()),
        observe::all_snapshots(&pool).map(|s| s.len() == model.snapshots.len()),
    ] {
        assert!(matches!(listed, Ok(true) | Err(Error::Corrupt(_))), "{story}: list: {listed:?}");
    }
    let errors: u64 = harmed.values().sum();
    let findings = |report: Result<CheckReport, Error>| match report {
        Ok(report) => report.findings.iter().map(|finding| format!("{finding:?}")).collect(),
        Err(Error::Corrupt(corruption)) => vec![corruption.to_string()],
        Err(error) => panic!("{story}: {error:?}"),
    };
    let mut found = findings(pool.check(CheckOptions::default(), &mut |_| {}));
    found.extend(findings(pool.scrub(CheckOptions::default(), &mut |_| {})));
    let families = harmed.values().filter(|&&errors| errors > 0).count();
    // Whatever is bad is a block of data or a leaf, of one family; everything else can be had from elsewhere.
    assert!(
        families <= 1,
        "{story}: one bad byte took blocks of two families: {harmed:?}; {:#?}",
        found.first()
    );
    let page =
        found.iter().any(|finding| finding.contains("checksum page") || finding.contains("count page"));
    assert!(errors == 0 || !page, "{story}: a page took {errors} blocks: {:#?}", found.first());
    add(&outcomes.errors, u64::from(errors > 0));
    let found = found.len();
    assert!(errors == 0 || found > 0, "{story}: {errors} blocks cannot be read and no finding says so");
    add(&outcomes.findings, u64::from(found > 0));
    add(&outcomes.unharmed, u64::from(errors == 0 && found == 0));
    if !writable {
        return;
    }
    // Writing goes on or is refused with a type; what it must not do is panic or damage the rest.
    write(&pool, model, story);
}

fn write(pool: &Pool, model: &Model, story: &str) {
    let outcome = || -> Result<(), Error> {
        for (stamp, id) in model.volumes.keys().enumerate() {
            let disk = pool.attach(*id, AttachOptions::default())?;
            disk.write_at(&Rng::stamp_bytes(stamp as u64 + 900, 3 * BLOCK + 100), 0)?;
            disk.flush()?;
        }
        pool.checkpoint()?;
        for id in model.snapshots.keys() {
            pool.delete_snapshot(*id)?.wait()?;
        }
        for id in model.volumes.keys() {
            pool.delete_volume(*id, Snapshots::Keep)?.wait()?;
        }
        Ok(())
    };
    if let Err(error) = outcome() {
        assert!(matches!(error, Error::Corrupt(_) | Error::Poisoned), "{story}: {error:?}");
    }
}

fn stride() -> usize {
    let full = std::env::var("SNAPVOL_FULL").is_ok_and(|v| v == "1");
    // A prime: over the blocks of a pool every place in a block comes up.
    if full { 1 } else { 331 }
}

fn flip_everywhere(test: &str, base: &SimDevice, model: &Model) -> Outcomes {
    let length = base.len().unwrap() as usize;
    let stride = stride();
    let start = rng::seed(test, 17) as usize % stride;
    // Every byte of every block that holds anything; of blocks that are zero throughout a sample will do.
    let image = base.view();
    let block = BLOCK;
    let used = |at: usize| image[at / block * block..].iter().take(block).any(|&b| b != 0);
    let used: Vec<bool> = (0..length).step_by(block).map(used).collect();
    let mut places: Vec<usize> = (start..length).step_by(stride).collect();
    places.extend((0..length).filter(|&at| used[at / block]));
    places.sort_unstable();
    places.dedup();
    let outcomes = Outcomes::default();
    on_all_cores(places.len(), |n| {
        let at = places[n];
        let device = base.crash(|_| Fate::Kept);
        let bit = (at / stride.max(7) % 8) as u8;
        device.flip_bit(at as u64, bit);
        survive(device, model, &format!("{test}: byte {at} (block {}), bit {bit}", at / BLOCK), &outcomes);
    });
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    println!(
        "{test}: {} bytes of {length} flipped: {} unharmed, {} refused to open, {} with unreadable blocks, {} with findings",
        get(&outcomes.flips),
        get(&outcomes.unharmed),
        get(&outcomes.refused),
        get(&outcomes.errors),
        get(&outcomes.findings),
    );
    assert!(get(&outcomes.errors) > 100, "hardly any flip was seen");
    assert!(get(&outcomes.findings) >= get(&outcomes.errors));
    outcomes
}

#[test]
fn bad_byte_in_a_closed_pool_is_an_error_or_harmless() {
    let mut rig = pool();
    rig.must(Action::Drain);
    let model = rig.model.clone();
    let sim = rig.medium.clone();
    rig.leave().unwrap().close().unwrap();
    let outcomes = flip_everywhere("bad_byte_in_a_closed_pool_is_an_error_or_harmless", &sim, &model);
    let refused = outcomes.refused.into_inner();
    assert_eq!(refused, 0, "one bad byte costs one copy: what open needs has two");
}

#[test]
fn bad_byte_in_a_killed_pool_is_an_error_or_harmless() {
    let mut rig = pool();
    rig.must(Action::Drain);
    // Something that only the log knows; the last flush is claimed durable by a proof, which is background work.
    let volume = *rig.model.volumes.keys().next().unwrap();
    for (stamp, blocks) in [(901, 3), (902, 1)] {
        rig.must(Action::Write { volume, offset: 0, len: blocks * BLOCK, stamp, fua: false });
        rig.must(Action::Flush);
    }
    assert!(
        rig.pool().step(1).unwrap() && rig.pool().stats().log_used_blocks > 4,
        "the log holds what counts"
    );
    let model = rig.model.clone();
    let sim = rig.medium.clone();
    let killed = sim.crash(|_| Fate::Kept);
    let outcomes = flip_everywhere("bad_byte_in_a_killed_pool_is_an_error_or_harmless", &killed, &model);
    // Only what the replay itself changes and has one copy: here one leaf.
    let refused = outcomes.refused.into_inner() / BLOCK as u64;
    assert!(refused <= 1, "{refused} blocks stop recovery");
}

/// Whole blocks of another place, of zeroes or of noise, where a block should be.
#[test]
fn misdirected_lost_and_garbled_blocks_are_errors_or_harmless() {
    let mut rig = pool();
    rig.must(Action::Drain);
    let model = rig.model.clone();
    let sim = rig.medium.clone();
    rig.leave().unwrap().close().unwrap();
    let seed = rng::seed("misdirected_lost_and_garbled_blocks_are_errors_or_harmless", 4);
    let image = sim.view();
    let blocks: Vec<usize> =
        (0..image.len() / BLOCK).filter(|b| image[b * BLOCK..][..BLOCK].iter().any(|&x| x != 0)).collect();
    let outcomes = Outcomes::default();
    on_all_cores(blocks.len() * 3, |n| {
        let (block, way) = (blocks[n / 3], n % 3);
        let mut rng = Rng::new(seed + n as u64);
        let bytes = match way {
            0 => vec![0; BLOCK],
            1 => Rng::stamp_bytes(rng.next(), BLOCK),
            _ => image[blocks[rng.below(blocks.len() as u64) as usize] * BLOCK..][..BLOCK].to_vec(),
        };
        let device = sim.crash(|_| Fate::Kept);
        device.write_at(&bytes, (block * BLOCK) as u64).unwrap();
        survive(device, &model, &format!("block {block}, way {way}"), &outcomes);
    });
    println!("whole blocks: {} damaged", outcomes.flips.into_inner());
}

/// A damaged newest commit is never a silent return to an older one: both copies of its record are made bad.
#[test]
fn both_copies_of_an_acknowledged_record_bad_is_corrupt_not_older() {
    let mut rig = Rig::create(SimDevice::new(), Shape::SMALL).unwrap();
    for kind in
        [Op::new(Kind::Create, 0, 7, 0), Op::new(Kind::Write, 0, 0, 0), Op::new(Kind::Checkpoint, 0, 0, 0)]
    {
        let action = rig.resolve(kind, LIMITS);
        rig.must(action);
    }
    let sim = rig.medium.clone();
    sim.restart_trace();
    for kind in [Op::new(Kind::Write, 0, 1, 0), Op::new(Kind::Flush, 0, 0, 0)] {
        let action = rig.resolve(kind, LIMITS);
        rig.must(action);
    }
    let acknowledged = sim.trace();
    for kind in [Op::new(Kind::Write, 0, 2, 0), Op::new(Kind::Flush, 0, 0, 0)] {
        let action = rig.resolve(kind, LIMITS);
        rig.must(action);
    }
    let log = rig.pool().geometry();
    let log = log.log_start_block * BLOCK as u64..(log.log_start_block + log.log_blocks) * BLOCK as u64;
    let killed = sim.crash(|_| Fate::Kept);
    let mut hit = 0;
    for op in acknowledged.ops() {
        if let snapvol::device::sim::Op::Write { offset, bytes } = op
            && log.contains(offset)
        {
            killed.write_at(&vec![0x55; bytes.len()], *offset).unwrap();
            hit += 1;
        }
    }
    assert!(hit > 0, "the flush wrote no record");
    let opened = Pool::open_on(killed.clone(), Shape::SMALL.open());
    assert!(matches!(opened, Err(Error::Corrupt(_))), "{:?}", opened.map(|_| "opened"));
    // Asked for, the last good commit can still be read.
    let options = Shape::SMALL.open().last_good_commit(true).read_only(true);
    let pool = Pool::open_on(killed, options).unwrap();
    let id: VolumeId = *rig.model.volumes.keys().next().unwrap();
    let disk = pool.attach(id, AttachOptions::default().read_only(true)).unwrap();
    let mut block = vec![0; BLOCK];
    disk.read_at(&mut block, 0).unwrap();
    let Cell::Data(first) = &rig.model.volumes[&id].map.cells()[0] else { panic!("block 0 holds data") };
    assert_eq!(xxh3_64(&block), first.hash);
}

/// P9: bytes that are no pool, and pools with much of them replaced.
#[test]
fn arbitrary_bytes_never_panic() {
    let seed = rng::seed("arbitrary_bytes_never_panic", 99);
    let mut rig = pool();
    rig.must(Action::Drain);
    let base = rig.medium.crash(|_| Fate::Kept);
    let length = base.len().unwrap();
    on_all_cores(1_500, |n| {
        let mut rng = Rng::new(seed + n as u64);
        let device = if n % 3 == 0 {
            let length = rng.below(300_000) as usize;
            SimDevice::from_image(Rng::stamp_bytes(rng.next(), length))
        } else {
            base.crash(|_| Fate::Kept)
        };
        if n % 3 != 0 {
            for _ in 0..rng.below(40) + 1 {
                let at = rng.below(length - 4096);
                let bytes = match rng.below(3) {
                    0 => vec![0xff; 8],
                    1 => rng.next().to_le_bytes().to_vec(),
                    _ => Rng::stamp_bytes(rng.next(), 4096),
                };
                device.write_at(&bytes, at).unwrap();
            }
            if n % 5 == 0 {
                device.set_len(rng.below(length)).unwrap();
            }
        }
        if let Ok(pool) = Pool::open_on(device, Shape::SMALL.open()) {
            for volume in observe::all_volumes(&pool).unwrap_or_default() {
                if let Ok(disk) = pool.attach(volume.id, AttachOptions::default())
                    && disk.size_bytes() < 1 << 20
                {
                    let _ = observe::read_all(&disk);
                    let _ = disk.write_at(&[1; 5000], 100);
                }
            }
            let _ = pool.flush();
            let _ = pool.check(CheckOptions::default(), &mut |_| {});
            let _ = pool.scrub(CheckOptions::default(), &mut |_| {});
            let _ = pool.checkpoint();
        }
    });
}
