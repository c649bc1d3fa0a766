//! Pools whose medium is not what was written: a block at a time, and more of it than the tests try.

use std::sync::atomic::Ordering;

use snapvol::device::Device;

use crate::campaign::{Campaign, Outcome};
use crate::common::damage::{End, Outcomes, Subject, Use, survive};
use crate::common::model::BLOCK;
use crate::common::rng::Rng;

/// Damaged pools of one run.
const CASES: usize = 200;

pub(crate) fn run(args: &mut lexopt::Parser) -> Outcome<u64> {
    let campaign = Campaign::parse("damage", Some(10.0), args, |_, _| Ok(false))?;
    let subjects = [End::Closed, End::Killed].map(|end| {
        let subject = Subject::new(end);
        (subject.used_blocks(), subject)
    });
    let outcomes = Outcomes::default();
    let failures = campaign.run(
        || outcomes.cases.load(Ordering::Relaxed),
        |number| {
            let mut rng = Rng::new(campaign.seed_of(number));
            for case in 0..CASES {
                let (blocks, subject) = &subjects[rng.below(2) as usize];
                let story = format!("seed {}, case {case}, {:?}", campaign.seed_of(number), subject.end);
                spoil(subject, blocks, &mut rng, &story, &outcomes);
            }
        },
        |number| campaign.replay_by_seed(number),
        || Ok(()),
    )?;
    outcomes.tell("torture damage", "damaged pools");
    Ok(failures)
}

/// Spoils one block, in one of the ways of hosts and disks, and uses what is left.
fn spoil(subject: &Subject, blocks: &[usize], rng: &mut Rng, story: &str, outcomes: &Outcomes) {
    let block = blocks[rng.below(blocks.len() as u64) as usize];
    let place = (block * BLOCK) as u64;
    let device = subject.copy();
    let way = rng.below(5);
    match way {
        // Bits, some or many.
        0 | 1 => {
            for _ in 0..=rng.below(if way == 0 { 3 } else { 200 }) {
                device.flip_bit(place + rng.below(BLOCK as u64), rng.below(8) as u8);
            }
        }
        // Sectors that hold something else.
        2 => {
            let (from, len) = (rng.below(8), 1 + rng.below(8));
            let bytes = Rng::stamp_bytes(rng.next(), len.min(8 - from) as usize * 512);
            device.write_at(&bytes, place + from * 512).expect("within the device");
        }
        // What once was there, or what is elsewhere.
        3 => {
            let older = &subject.earlier[rng.below(subject.earlier.len() as u64) as usize];
            let Some(bytes) = older.get(block * BLOCK..(block + 1) * BLOCK) else { return };
            device.write_at(bytes, place).expect("within the device");
        }
        _ => {
            let other = blocks[rng.below(blocks.len() as u64) as usize];
            let mut bytes = vec![0; BLOCK];
            device.read_at(&mut bytes, (other * BLOCK) as u64).expect("within the device");
            device.write_at(&bytes, place).expect("within the device");
        }
    }
    let use_it = if rng.one_in(8) { Use::Everything } else { Use::Reading };
    survive(device, &subject.model, block as u64, use_it, &format!("{story}, way {way}"), outcomes);
}
