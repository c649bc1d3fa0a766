//! P6: whole blocks that are not what was written there, lost superblocks, and files that are cut short.
//!
//! Beside what [`survive`] asks of each: a scrub names the bad block and exactly those whom it belongs to, and all
//! others can be read.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicU64, Ordering};

use common::damage::{End, Outcomes, Subject, Use, survive};
use common::model::BLOCK;
use common::rng::{self, Rng};
use common::{Shape, assert_sound, observe, on_all_cores};
use snapvol::device::Device;
use snapvol::device::sim::SimDevice;
use snapvol::{Error, Pool};

const ENDS: [End; 2] = [End::Closed, End::Killed];

fn block_of(image: &[u8], block: usize) -> Option<&[u8]> {
    image.get(block * BLOCK..(block + 1) * BLOCK)
}

/// Puts other bytes in the place of each block in turn.
fn replace_blocks(test: &str, end: End, others: impl Fn(&Subject, usize) -> Vec<Vec<u8>> + Sync) {
    let subject = Subject::new(end);
    let (blocks, image, outcomes) = (subject.used_blocks(), subject.medium.view(), Outcomes::default());
    on_all_cores(blocks.len(), |n| {
        let block = blocks[n];
        for (way, bytes) in others(&subject, block).into_iter().enumerate() {
            if block_of(&image, block) == Some(&bytes) {
                continue;
            }
            let device = subject.copy();
            device.write_at(&bytes, (block * BLOCK) as u64).unwrap();
            let story = format!("{test}: {end:?}, block {block}, way {way}");
            survive(device, &subject.model, block as u64, Use::Everything, &story, &outcomes);
        }
    });
    let [cases, errors, refused] = outcomes.tell(&format!("{test}, {end:?}"), "blocks replaced");
    assert!(cases > blocks.len() as u64 / 4 && errors > 2, "hardly any of them was seen");
    // What a recovery itself must change and has one copy: here one leaf.
    assert!(refused <= u64::from(end == End::Killed), "{refused} blocks stop recovery");
}

#[test]
fn swapped_zeroed_and_garbled_blocks_are_errors_or_harmless() {
    let test = "swapped_zeroed_and_garbled_blocks_are_errors_or_harmless";
    let seed = rng::seed(test, 4);
    for end in ENDS {
        replace_blocks(test, end, |subject, block| {
            let mut rng = Rng::new(seed + block as u64);
            let (image, blocks) = (subject.medium.view(), subject.used_blocks());
            let mut other =
                || block_of(&image, blocks[rng.below(blocks.len() as u64) as usize]).unwrap().to_vec();
            vec![vec![0; BLOCK], other(), other(), other(), Rng::stamp_bytes(seed + block as u64, BLOCK)]
        });
    }
}

/// The medium acknowledged a write and kept what was there before.
#[test]
fn stale_blocks_are_errors_or_harmless() {
    for end in ENDS {
        replace_blocks("stale_blocks_are_errors_or_harmless", end, |subject, block| {
            let older =
                subject.earlier.iter().map(|image| block_of(image, block).unwrap_or(&[0; BLOCK]).to_vec());
            let mut older: Vec<_> = older.collect();
            older.sort();
            older.dedup();
            older
        });
    }
}

/// The same block of a pool that differs in its UUID alone: superblocks and records of it are sound in themselves.
#[test]
fn blocks_of_another_pool_are_errors_or_harmless() {
    for end in ENDS {
        let other = Subject::twin(end).medium.view();
        replace_blocks("blocks_of_another_pool_are_errors_or_harmless", end, |_, block| {
            vec![block_of(&other, block).unwrap().to_vec()]
        });
    }
}

/// Nothing at all is missing, and nothing has to be said about it after the next checkpoint.
fn assert_whole(device: SimDevice, subject: &Subject, story: &str) {
    let pool = Pool::open_on(device, Shape::SMALL.open()).unwrap_or_else(|e| panic!("{story}: {e:?}"));
    assert_eq!(observe::digest(&pool).unwrap(), subject.model.digest(), "{story}");
    pool.checkpoint().unwrap();
    pool.checkpoint().unwrap();
    assert_sound(&pool);
    pool.close().unwrap();
}

/// Byte offsets of all valid superblocks, with their generation (bytes 56 to 64).
fn superblocks(image: &[u8]) -> Vec<(usize, u64)> {
    let places = [0, BLOCK, 2 * BLOCK, 3 * BLOCK, 1 << 20, (1 << 20) + BLOCK];
    let sound = places.into_iter().filter(|at| image[*at..].starts_with(b"SNAPVOL\x01"));
    sound.map(|at| (at, u64::from_le_bytes(image[at + 56..][..8].try_into().unwrap()))).collect()
}

#[test]
fn one_lost_superblock_copy_costs_nothing_and_older_ones_never_pass_for_the_newest() {
    let mut cases = 0;
    for end in ENDS {
        let subject = Subject::new(end);
        let copies = superblocks(&subject.medium.view());
        assert_eq!(copies.len(), 4, "two copies of two generations: {copies:?}");
        let newest = copies.iter().map(|copy| copy.1).max().unwrap();
        // Every set of lost copies.
        for (lost, byte) in (0..1_u32 << copies.len()).flat_map(|lost| [(lost, 0), (lost, 0xff)]) {
            let device = subject.copy();
            let mut left = false;
            for (nth, (at, generation)) in copies.iter().enumerate() {
                if lost >> nth & 1 == 1 {
                    device.write_at(&[byte; BLOCK], *at as u64).unwrap();
                } else {
                    left |= *generation == newest;
                }
            }
            let story = format!("{end:?}, copies {copies:?}, lost {lost:04b} to {byte:#x}");
            cases += 1;
            if left {
                assert_whole(device, &subject, &story);
                continue;
            }
            // Both copies of the newest generation: the log may still have what it had, or there is an error.
            match Pool::open_on(device, Shape::SMALL.open()) {
                Ok(pool) => {
                    assert_eq!(observe::digest(&pool).unwrap(), subject.model.digest(), "{story}: older")
                }
                Err(error) => assert!(matches!(error, Error::Corrupt(_)), "{story}: {error:?}"),
            }
        }
    }
    println!("superblocks: {cases} sets of lost copies");
}

#[test]
fn cut_short_at_any_sector_is_corrupt_or_costs_nothing() {
    let [corrupt, whole] = [const { AtomicU64::new(0) }; 2];
    for end in ENDS {
        let subject = Subject::new(end);
        let length = subject.medium.len().unwrap();
        on_all_cores(length as usize / 512, |sector| {
            let story = format!("{end:?}, cut to {sector} sectors of {}", length / 512);
            let device = subject.copy();
            device.set_len(sector as u64 * 512).unwrap();
            for read_only in [true, false] {
                match Pool::open_on(device.reopen(), Shape::SMALL.open().read_only(read_only)) {
                    // The last chunks hold nothing yet and no superblock knows of them.
                    Ok(pool) => {
                        let seen = observe::digest(&pool).unwrap_or_else(|e| panic!("{story}: {e:?}"));
                        assert_eq!(seen, subject.model.digest(), "{story}");
                        if !read_only {
                            assert_sound(&pool);
                            pool.close().unwrap_or_else(|e| panic!("{story}: {e:?}"));
                        }
                        whole.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(Error::Corrupt(_)) => drop(corrupt.fetch_add(1, Ordering::Relaxed)),
                    Err(error) => panic!("{story}: {error:?}"),
                }
            }
        });
    }
    println!("truncations: {corrupt:?} corrupt, {whole:?} cost nothing");
    assert!(corrupt.into_inner() > 1_000);
}
