//! What clients say over NBD: sound sessions, and damaged ones.

// Each user takes a part of this.
#![allow(dead_code)]

use super::client::{context_data, info_data, option, request};
use super::rng::Rng;

/// What a client might say that keeps to the protocol, to the volume `v` of about 1 MiB.
pub(crate) fn sound_session(rng: &mut Rng) -> Vec<u8> {
    let mut said = (rng.below(4) as u32).to_be_bytes().to_vec();
    let structured = !rng.one_in(3);
    if structured {
        said.extend(option(8, &[]));
    }
    for _ in 0..rng.below(3) {
        let contexts: &[&str] = if rng.one_in(2) { &[] } else { &["base:", "qemu:", "base:allocation"] };
        said.extend(match rng.below(4) {
            0 => option(3, &[]),
            1 => option(6, &info_data("v@s", &[0, 1, 2, 3])),
            2 => option(9, &context_data("v", contexts)),
            _ => option(77, b"what is that"),
        });
    }
    if structured {
        said.extend(option(10, &context_data("v", &["base:allocation", "qemu:dirty-bitmap:s"])));
    }
    said.extend(match rng.one_in(3) {
        true => option(1, b"v"),
        false => option(7, &info_data("v", &[3])),
    });
    for cookie in 0..rng.below(12) {
        let most = if rng.one_in(8) { 1 << 18 } else { 9000 };
        let (offset, len) = (rng.below(1 << 20), rng.below(most) as u32);
        let (command, flags, len) = match rng.below(8) {
            0 | 1 => (0, if structured { 4 * rng.below(2) } else { 0 }, len),
            2 | 3 => (1, rng.below(2), len % 9000),
            4 => (3, 0, 0),
            5 => (4, rng.below(2), len),
            6 => (6, rng.below(4) | (16 * rng.below(2)), len),
            _ => (7, 8 * rng.below(2), len),
        };
        said.extend(request(flags as u16, command, cookie, if command == 3 { 0 } else { offset }, len));
        if command == 1 {
            said.extend(vec![cookie as u8; len as usize]);
        }
    }
    if rng.one_in(2) {
        said.extend(request(0, 2, 0, 0, 0));
    }
    said
}

/// A session of which bits, lengths and parts were changed, or none.
pub(crate) fn mutated_session(rng: &mut Rng) -> Vec<u8> {
    let mut said = sound_session(rng);
    for _ in 0..rng.below(5) {
        let at = rng.below(said.len() as u64) as usize;
        match rng.below(7) {
            0 => said[at] ^= 1 << rng.below(8),
            1 => said[at] = rng.next() as u8,
            2 => said.truncate(at + 1),
            // A number that lies.
            3 => {
                let number = [0, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 33 << 20][rng.below(6) as usize];
                let end = said.len().min(at + 4);
                said[at..end].copy_from_slice(&u32::to_be_bytes(number)[..end - at]);
            }
            4 => {
                let garbage = Rng::stamp_bytes(rng.next(), rng.below(600) as usize);
                said.splice(at..at, garbage);
            }
            5 => {
                let end = said.len().min(at + rng.below(100) as usize);
                said.drain(at..end);
            }
            _ => {
                let end = said.len().min(at + rng.below(400) as usize);
                let again = said[at..end].to_vec();
                said.splice(at..at, again);
            }
        }
        if said.is_empty() {
            break;
        }
    }
    said
}
