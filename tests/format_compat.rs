//! Pools of format 1 as this crate once wrote them: every version opens them and finds what they held.
//!
//! `SNAPVOL_GOLDEN=write cargo test --all-features --test format_compat` writes the images anew; that is right only
//! together with a change of the format version, or to add an image.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;

use common::model::{BLOCK, Model};
use common::ops::{Action, Kind, Limits, Op};
use common::{Rig, Shape};
use snapvol::device::sim::SimDevice;
use snapvol::{VolumeQuery, VolumeUpdate};
use xxhash_rust::xxh3::xxh3_64;

const LIMITS: Limits = Limits { volumes: 4, snapshots: 6, blocks: 24 };

struct Golden {
    name: &'static str,
    bytes: Vec<u8>,
    model: Model,
}

const fn op(kind: Kind, a: u32, b: u32, c: u32) -> Op {
    Op::new(kind, a, b, c)
}

fn metadata() -> BTreeMap<String, String> {
    (0..40).map(|n| (format!("key {n}"), format!("{n} ").repeat(20))).collect()
}

fn rig(ops: &[Op]) -> Rig<SimDevice> {
    let mut rig = Rig::create(SimDevice::new(), Shape::SMALL.limit(5 << 19)).unwrap();
    for op in ops {
        let action = rig.resolve(*op, LIMITS);
        rig.must(action);
    }
    rig
}

fn closed(name: &'static str, mut rig: Rig<SimDevice>) -> Golden {
    let (model, sim) = (rig.model.clone(), rig.medium.clone());
    rig.leave().unwrap().close().unwrap();
    Golden { name, bytes: sim.view(), model }
}

const FAMILY: [Op; 12] = [
    op(Kind::Create, 0, 15, 0),
    op(Kind::Create, 0, 9, 0),
    op(Kind::Write, 0, 0, 115),
    op(Kind::Write, 1, 0, 75),
    op(Kind::Snapshot, 0, 1, 0),
    op(Kind::Write, 0, 2, 8),
    op(Kind::CloneSnapshot, 0, 1, 0),
    op(Kind::WriteZeroes, 1, 7, 0),
    op(Kind::Discard, 0, 9, 0),
    op(Kind::Snapshot, 1, 1, 0),
    op(Kind::Hold, 1, 0, 0),
    op(Kind::Write, 2, 3, 0),
];

/// The images, made by this version.
fn make() -> Vec<Golden> {
    let empty = closed("empty", rig(&[]));

    let family = rig(&FAMILY);
    let first = family.pool().list_volumes(&VolumeQuery::new()).unwrap().items[0].id;
    family.pool().update_volume(first, VolumeUpdate::new().metadata(metadata())).unwrap();
    let clean = closed("clean", family);

    let mut killed = rig(&FAMILY);
    for op in [
        op(Kind::Checkpoint, 0, 0, 0),
        op(Kind::Write, 0, 4, 25),
        op(Kind::LiveRollback, 1, 0, 0),
        op(Kind::Write, 1, 1, 0),
        op(Kind::Flush, 0, 0, 0),
    ] {
        let action = killed.resolve(op, LIMITS);
        killed.must(action);
    }
    let (model, bytes) = (killed.model.clone(), killed.medium.view());
    let killed = Golden { name: "killed", bytes, model };

    let mut deleting = rig(&FAMILY);
    let volume = *deleting.model.volumes.keys().next().unwrap();
    let policy = snapvol::Snapshots::Keep;
    deleting.must(Action::DeleteVolume { id: volume, policy, detach: true, wait: false });
    vec![empty, clean, killed, closed("deleting", deleting)]
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.blocks"))
}

/// Length of the pool, then each block that is not all zero behind its number; numbers are `u64`, little-endian.
fn pack(bytes: &[u8]) -> Vec<u8> {
    let mut packed = (bytes.len() as u64).to_le_bytes().to_vec();
    for (number, block) in bytes.chunks(BLOCK).enumerate() {
        if block.iter().any(|&byte| byte != 0) {
            packed.extend((number as u64).to_le_bytes());
            packed.extend(block);
        }
    }
    packed
}

fn unpack(packed: &[u8]) -> Vec<u8> {
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap()) as usize;
    let (length, blocks) = packed.split_at(8);
    let mut bytes = vec![0; number(length)];
    for record in blocks.chunks_exact(8 + BLOCK) {
        bytes[number(&record[..8]) * BLOCK..][..BLOCK].copy_from_slice(&record[8..]);
    }
    bytes
}

/// The stored image of that name; with `SNAPVOL_GOLDEN=write` the fresh one is stored first.
fn stored(golden: &Golden) -> Vec<u8> {
    static WRITE: Mutex<()> = Mutex::new(());
    let _one = WRITE.lock();
    if std::env::var("SNAPVOL_GOLDEN").is_ok_and(|v| v == "write") {
        std::fs::write(path(golden.name), pack(&golden.bytes)).unwrap();
    }
    let packed = std::fs::read(path(golden.name));
    unpack(&packed.unwrap_or_else(|e| panic!("golden image {}: {e}", golden.name)))
}

#[test]
fn golden_pools_open_and_hold_what_they_held() {
    for golden in make() {
        let sim = SimDevice::from_image(stored(&golden));
        println!("golden image {}", golden.name);
        let mut rig = Rig::open(sim.clone(), Shape::SMALL, golden.model.clone()).unwrap();
        rig.verify();
        if golden.name == "clean" {
            let first = rig.pool().list_volumes(&VolumeQuery::new()).unwrap().items.remove(0);
            assert_eq!(first.metadata, metadata());
        }
        // To be used, not only to be looked at.
        rig.serial_from(10_000);
        for op in [
            op(Kind::Create, 0, 5, 0),
            op(Kind::Write, 0, 1, 65),
            op(Kind::Snapshot, 0, 1, 0),
            op(Kind::Drain, 0, 0, 0),
            op(Kind::Reopen, 0, 0, 0),
        ] {
            let action = rig.resolve(op, LIMITS);
            rig.must(action);
        }
        rig.verify();
        common::observe::assert_space(rig.pool(), &rig.model);
    }
}

#[test]
fn golden_pools_open_for_reading_without_a_write() {
    for golden in make() {
        let bytes = stored(&golden);
        let sim = SimDevice::from_image(bytes.clone());
        let pool = snapvol::Pool::open_on(sim.clone(), Shape::SMALL.open().read_only(true)).unwrap();
        assert_eq!(common::observe::digest(&pool).unwrap(), golden.model.digest(), "{}", golden.name);
        drop(pool);
        assert_eq!(sim.view(), bytes, "{}", golden.name);
    }
}

/// The superblock, read as the description says and not with the crate's own codec.
#[test]
fn golden_superblock_is_where_and_what_the_description_says() {
    let goldens = make();
    let bytes = stored(goldens.iter().find(|g| g.name == "clean").unwrap());
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let mut generations = Vec::new();
    for slot in [0, 4096, 1 << 20, (1 << 20) + 4096] {
        assert_eq!(&bytes[slot..slot + 8], b"SNAPVOL\x01", "slot at {slot}");
        assert_eq!(u32_at(slot + 8), 1, "format version");
        assert_eq!([u64_at(slot + 16), u64_at(slot + 24), u64_at(slot + 32)], [0; 3], "features");
        assert_eq!((u32_at(slot + 64), u32_at(slot + 68)), (4096, 64), "block size, blocks per chunk");
        assert_eq!(u64_at(slot + 80), 16, "blocks in the log");
        assert_eq!(u64_at(slot + 104), 5 << 19, "growth limit");
        assert!(bytes[slot + 248..slot + 4088].iter().all(|&b| b == 0), "reserved");
        assert_eq!(u64_at(slot + 4088), xxh3_64(&bytes[slot..slot + 4088]), "checksum");
        generations.push(u64_at(slot + 56));
    }
    assert_eq!((generations[0], generations[1]), (generations[2], generations[3]), "two copies each");
    assert_eq!(generations[0].abs_diff(generations[1]), 1, "two generations");
    assert_eq!(generations[0] % 2, 0, "even generations in slots 0 and 2");
    let newest = if generations[0] > generations[1] { 0 } else { 4096 };
    assert_eq!(u32_at(newest + 12) & 1, 1, "closed cleanly");
}
