//! What once went wrong, as small as the model test had shrunk it, each with its story.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

mod common;

use common::ops::Action;
use common::rng::Rng;
use common::{Rig, Shape};
use snapvol::device::MemoryDevice;
use snapvol::device::sim::SimDevice;
use snapvol::{
    AttachOptions, Background, CheckOptions, CreateOptions, Pool, SnapshotId, VolumeId, VolumeSpec,
};
use uuid::Uuid;

/// The volume gives up a block that it shares with a snapshot, and the snapshot is deleted before the next
/// checkpoint. Both let go of the block in the same checkpoint, and the bytes it frees belong to the deletion: nobody
/// else reached the block when it was made. They were counted for nobody.
#[test]
fn deletion_counts_blocks_that_its_volume_gave_up_just_before() {
    let (volume, snapshot) = (VolumeId::new(Uuid::from_u128(9)), SnapshotId::new(Uuid::from_u128(5)));
    for discard in [false, true] {
        let mut rig = Rig::create(MemoryDevice::new(), Shape::SMALL).unwrap();
        rig.must(Action::Create { id: volume, blocks: 3, name: "volume".into() });
        rig.must(Action::Write { volume, offset: 0, len: 3 * 4096, stamp: 1, fua: false });
        rig.must(Action::Snapshot { id: snapshot, volume, force: true, name: "snapshot".into() });
        rig.must(Action::Write { volume, offset: 4096, len: 4096, stamp: 2, fua: false });
        rig.must(Action::Checkpoint);
        rig.must(Action::Drain);
        rig.must(if discard {
            Action::Discard { volume, offset: 0, len: 3 * 4096 }
        } else {
            Action::Write { volume, offset: 0, len: 3 * 4096, stamp: 3, fua: false }
        });
        // The rig compares the freed bytes with the model: three blocks.
        rig.must(Action::DeleteSnapshot { id: snapshot, wait: true });
        rig.verify();
    }
}

/// A map of many small extents, cut through again and again by writes and discards that pass over several leaves.
/// What a cut left of its last leaf was joined with a neighbour that the cut then dropped, and a bound that had been
/// raised in one node only let lookups go astray: blocks read as zeroes or as what they had been before.
#[test]
fn wide_overwrites_of_a_fragmented_map_lose_nothing() {
    const BLOCKS: u64 = 32_768;
    for seed in 1..9 {
        let mut rng = Rng::new(seed);
        let pool = Pool::create_in_memory(CreateOptions::new().background(Background::Manual)).unwrap();
        let id = pool.create_volume(VolumeSpec::blank(BLOCKS * 4096)).unwrap().id;
        let disk = pool.attach(id, AttachOptions::new()).unwrap();
        let mut want = vec![0u64; BLOCKS as usize];
        let mut serial = 0;
        let mut put = |lba: u64, n: u64, want: &mut Vec<u64>| {
            serial += 1;
            want[lba as usize..(lba + n) as usize].fill(serial);
            disk.write_at(&serial.to_le_bytes().repeat(512 * n as usize), lba * 4096).unwrap();
        };
        for _ in 0..30_000 {
            put(rng.below(BLOCKS), 1, &mut want);
        }
        for _ in 0..rng.below(200) + 50 {
            for _ in 0..rng.below(9) + 1 {
                let n = rng.below(200) + 1;
                put(rng.below(BLOCKS - 1100), n, &mut want);
            }
            for _ in 0..rng.below(100) {
                put(rng.below(BLOCKS), 1, &mut want);
            }
            let (lba, n) = (rng.below(BLOCKS - 1100), rng.below(800) + 300);
            if rng.below(2) == 0 {
                put(lba, n, &mut want);
            } else {
                disk.discard(lba * 4096, n * 4096).unwrap();
                want[lba as usize..(lba + n) as usize].fill(0);
            }
        }
        let mut block = vec![0; 4096];
        for (lba, want) in want.iter().enumerate() {
            disk.read_at(&mut block, lba as u64 * 4096).unwrap();
            assert_eq!(block[..8], want.to_le_bytes(), "seed {seed}, block {lba}");
        }
        assert!(pool.check(CheckOptions::default(), &mut |_| {}).unwrap().is_clean(), "seed {seed}");
    }
}

/// A log epoch was the lower half of an id, which sequential ids only count up in: openings with other seeds began the
/// same epoch, and a record of an abandoned history, left behind by a device that had lied about a sync, was adopted.
#[test]
fn openings_with_other_seeds_begin_other_log_epochs() {
    let rig = Rig::create(SimDevice::new(), Shape::SMALL).unwrap();
    let image = rig.medium.view();
    let epochs = |seed| {
        let sim = SimDevice::from_image(image.clone());
        let _pool = Pool::open_on(sim.clone(), Shape::SMALL.open_with_ids(seed)).unwrap();
        // The log epoch of a superblock stands at byte 112; two slots lie at the start of the pool.
        let bytes = sim.view();
        [112, 4096 + 112].map(|at| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()))
    };
    assert_eq!(epochs(1), epochs(1));
    assert!(epochs(1).iter().any(|epoch| !epochs(2).contains(epoch)), "{:x?}", epochs(1));
}
