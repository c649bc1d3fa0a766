//! The bodies of all fuzz targets, over their seeds and 10,000 random inputs each: that they hold is proved here,
//! without libFuzzer; that they are good at finding things is what `fuzz/run` is for.
//!
//! No panic, no run without end (the device counts what it is asked), and memory within twice the input's image
//! plus 64 MiB. `SNAPVOL_SEED` and `SNAPVOL_FUZZ_CASES` repeat or extend a run; a failure prints its input as hex,
//! which `SNAPVOL_FUZZ_INPUT=target:hex` runs alone.
#![cfg(all(
    feature = "sim",
    feature = "internals",
    feature = "qcow2",
    feature = "nbd",
    feature = "dialect",
    target_os = "linux"
))]
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod bodies;
#[path = "../common/nbd.rs"]
mod client;
mod heap;
#[path = "../common/nbd_generate.rs"]
mod nbd_generate;
mod seeds;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use bodies::{Body, TARGETS};
use common::on_all_cores;
use common::rng::{self, Rng};

#[global_allocator]
static HEAP: heap::Counted = heap::Counted;

/// Beyond this, and twice the longest image that an input can make (4 MiB), a body takes too much.
const MOST_BYTES: usize = (64 << 20) + 2 * (4 << 20);

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds").join(target);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{target} has no seeds");
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// An input as a fuzzer would make it: a seed with some changes, or noise.
fn invent(rng: &mut Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    if rng.one_in(8) {
        let len = [16, 200, 5_000][rng.below(3) as usize];
        let len = rng.below(len) as usize;
        return Rng::stamp_bytes(rng.next(), len);
    }
    let pick = |rng: &mut Rng| &seeds[rng.below(seeds.len() as u64) as usize];
    let mut bytes = pick(rng).clone();
    for _ in 0..=rng.below(6) {
        if bytes.is_empty() {
            bytes.push(rng.next() as u8);
        }
        let at = rng.below(bytes.len() as u64) as usize;
        let len = (rng.below(16) as usize + 1).min(bytes.len() - at);
        match rng.below(7) {
            0 => bytes[at] ^= 1 << rng.below(8),
            1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][rng.below(5) as usize],
            2 => bytes[at..at + len].iter_mut().for_each(|byte| *byte = rng.next() as u8),
            3 => drop(bytes.drain(at..at + len)),
            4 => {
                let again = bytes[at..at + len].to_vec();
                bytes.splice(at..at, again);
            }
            5 => {
                let new = Rng::stamp_bytes(rng.next(), len);
                bytes.splice(at..at, new);
            }
            _ => {
                let other = pick(rng);
                let from = rng.below(other.len() as u64 + 1) as usize;
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn run(target: &str, body: Body, input: &[u8]) {
    heap::begin();
    let outcome = catch_unwind(AssertUnwindSafe(|| body(input)));
    let peak = heap::peak();
    if outcome.is_err() || peak > MOST_BYTES {
        panic!(
            "{target}: {peak} bytes of memory; to run it alone: SNAPVOL_FUZZ_INPUT={target}:{}",
            hex(input)
        );
    }
}

fn run_all(target: &str) {
    let body = TARGETS.iter().find(|(name, _)| *name == target).unwrap().1;
    let seeds = seeds(target);
    let seed = rng::seed(target, 2026);
    let cases: usize = std::env::var("SNAPVOL_FUZZ_CASES").map_or(10_000, |n| n.parse().unwrap());
    // What a body makes once and keeps is not counted with any input.
    body(&seeds[0]);
    seeds.iter().for_each(|input| run(target, body, input));
    on_all_cores(cases, |n| {
        let mut rng = Rng::new(seed.wrapping_mul(1_000_003) + n as u64);
        run(target, body, &invent(&mut rng, &seeds));
    });
    println!("{target}: {} seeds and {cases} random inputs", seeds.len());
}

macro_rules! targets {
    ($($name:ident)*) => { $(
        #[test]
        fn $name() {
            run_all(stringify!($name));
        }
    )* };
}

targets! { superblock node page record catalogue open replay operations stream import nbd evs cbs ucloud }

#[test]
fn repair_leaves_a_whole_pool_as_it_is() {
    bodies::assert_repair_changes_nothing();
}

/// Runs one input alone, when it is told to.
#[test]
fn one_input() {
    let Ok(order) = std::env::var("SNAPVOL_FUZZ_INPUT") else { return };
    let (target, input) = order.split_once(':').expect("SNAPVOL_FUZZ_INPUT is like open:00ff");
    let body = TARGETS.iter().find(|(name, _)| *name == target).expect("a target").1;
    let digits: Vec<u8> = input.bytes().map(|b| (b as char).to_digit(16).expect("hex") as u8).collect();
    body(&digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect::<Vec<_>>());
}
