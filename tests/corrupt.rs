//! P6, P9: every byte of a pool goes bad in turn, once closed cleanly and once as a kill leaves it. What is read
//! is right or a typed error; nothing panics, nothing is silently older.
//!
//! By default one bit of every byte of every block that holds anything goes bad, and of every 331st byte of
//! the others. `SNAPVOL_FULL=bytes` flips one bit of every byte, `SNAPVOL_FULL=1` every bit; `SNAPVOL_PART=3/16` does the
//! third sixteenth of it, so that such a run can be interrupted and gone on with.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

mod common;

use common::damage::{End, Outcomes, Subject, Use, survive};
use common::model::{BLOCK, Cell};
use common::ops::{Kind, Limits, Op};
use common::rng::{self, Rng};
use common::{Rig, Shape, observe, on_all_cores};
use snapvol::device::Device;
use snapvol::device::sim::{Fate, SimDevice};
use snapvol::{AttachOptions, CheckOptions, Error, Pool, VolumeId};
use xxhash_rust::xxh3::xxh3_64;

const LIMITS: Limits = Limits { volumes: 4, snapshots: 5, blocks: 24 };

/// The part of a full run that is asked for, and of how many.
fn part() -> (usize, usize) {
    let part = std::env::var("SNAPVOL_PART").unwrap_or("1/1".into());
    let (nth, of) = part.split_once('/').expect("SNAPVOL_PART is like 3/16");
    let (nth, of): (usize, usize) = (nth.parse().unwrap(), of.parse().unwrap());
    assert!((1..=of).contains(&nth), "SNAPVOL_PART={part}: parts are counted from 1");
    (nth, of)
}

/// The places to flip: byte and bit.
fn places(subject: &Subject) -> Vec<(usize, u8)> {
    let length = subject.medium.len().unwrap() as usize;
    // The bit changes from byte to byte and from block to block.
    let bit = |at: usize| ((at + at / BLOCK) % 8) as u8;
    let bits = match std::env::var("SNAPVOL_FULL").as_deref() {
        Ok("1") => 8,
        Ok("bytes") => 1,
        _ => {
            let mut used = vec![false; length.div_ceil(BLOCK)];
            subject.used_blocks().into_iter().for_each(|block| used[block] = true);
            let some = (0..length).filter(|at| used[at / BLOCK] || at % 331 == 0);
            return some.map(|at| (at, bit(at))).collect();
        }
    };
    let ((nth, of), all) = (part(), length * bits);
    let place = |at: usize| if bits == 1 { (at, bit(at)) } else { (at / 8, (at % 8) as u8) };
    (all * (nth - 1) / of..all * nth / of).map(place).collect()
}

/// Flips everywhere and returns how many blocks make recovery refuse to write when they are bad.
fn flip_everywhere(test: &str, end: End) -> u64 {
    let subject = Subject::new(end);
    let (places, outcomes) = (places(&subject), Outcomes::default());
    on_all_cores(places.len(), |n| {
        let (at, bit) = places[n];
        let device = subject.copy();
        device.flip_bit(at as u64, bit);
        let block = at / BLOCK;
        let story = format!("{test}: byte {at} (block {block}), bit {bit}");
        // Most are only read: what is done beyond that depends on the block, not on the byte.
        let use_it = if n % 23 == 0 { Use::Everything } else { Use::Reading };
        survive(device, &subject.model, block as u64, use_it, &story, &outcomes);
    });
    println!("{test}: a pool of {} bytes", subject.medium.len().unwrap());
    let [_, errors, refused] = outcomes.tell(test, "flips");
    // A part may lie where nothing is.
    assert!(errors > 100 || part().1 > 1, "hardly any flip was seen");
    refused
}

#[test]
fn bad_bit_in_a_closed_pool_is_an_error_or_harmless() {
    let refused = flip_everywhere("bad_bit_in_a_closed_pool_is_an_error_or_harmless", End::Closed);
    assert_eq!(refused, 0, "one bad bit costs one copy: what open needs has two");
}

#[test]
fn bad_bit_in_a_killed_pool_is_an_error_or_harmless() {
    let refused = flip_everywhere("bad_bit_in_a_killed_pool_is_an_error_or_harmless", End::Killed);
    // Only what the replay itself changes and has one copy: here one leaf.
    assert!(refused <= 1, "{refused} blocks stop recovery");
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
    let base = Subject::new(End::Killed).medium;
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
