//! Makes the checksums of a damaged image right again, bottom up, so that what lies behind them is reached.
//!
//! Written from the byte tables of the format guide alone, and in no way from the engine: that a whole pool is left
//! as it is shows that the tables are right.

use std::collections::BTreeMap;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

const BLOCK: usize = 4096;

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut le = [0; 8];
    le.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(le)
}

fn u48_at(bytes: &[u8], at: usize) -> u64 {
    u64_at(bytes, at) & 0xffff_ffff_ffff
}

fn u16_at(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

/// Where in an image a block begins, if it is there.
fn place(image: &[u8], block: u64) -> Option<usize> {
    let at = usize::try_from(block).ok()?.checked_mul(BLOCK)?;
    (at.checked_add(BLOCK)? <= image.len()).then_some(at)
}

/// Offsets of the valid-looking superblocks.
pub(crate) fn superblocks(image: &[u8]) -> Vec<usize> {
    let places = [0, BLOCK, 2 * BLOCK, 3 * BLOCK, 1 << 20, (1 << 20) + BLOCK];
    let there = |at: &usize| image.len() >= at + BLOCK && image[*at..].starts_with(b"SNAPVOL\x01");
    places.into_iter().filter(there).collect()
}

/// Repairs every superblock, everything that they lead to, and every log record.
pub(crate) fn repair(image: &mut [u8]) {
    let superblocks = superblocks(image);
    let mut done = BTreeMap::new();
    for &at in &superblocks {
        for reference in [152, 176] {
            repair_reference(image, at + reference, &mut done, 0);
        }
        let sum = xxh3_64(&image[at..at + BLOCK - 8]);
        image[at + BLOCK - 8..at + BLOCK].copy_from_slice(&sum.to_le_bytes());
    }
    repair_records(image);
}

/// The node behind the reference at this offset, and then the checksum in the reference.
fn repair_reference(image: &mut [u8], at: usize, done: &mut BTreeMap<u64, u64>, depth: usize) {
    let (first, second) = (u48_at(image, at), u48_at(image, at + 6));
    let Some(node) = place(image, first).filter(|_| first != 0 && depth < 20) else { return };
    let sum = match done.get(&first) {
        Some(sum) => *sum,
        None => {
            // A node that leads to itself gets the checksum that it had when it was met.
            done.insert(first, xxh3_64(&image[node..node + BLOCK]));
            repair_below(image, node, done, depth + 1);
            let sum = xxh3_64(&image[node..node + BLOCK]);
            done.insert(first, sum);
            sum
        }
    };
    image[at + 12..at + 20].copy_from_slice(&sum.to_le_bytes());
    if let Some(twin) = place(image, second).filter(|_| second != 0) {
        image.copy_within(node..node + BLOCK, twin);
    }
}

/// All references in a node.
fn repair_below(image: &mut [u8], node: usize, done: &mut BTreeMap<u64, u64>, depth: usize) {
    let (kind, count) = (image[node + 4], u16_at(image, node + 6));
    let body = node + 64;
    match kind {
        2 => (0..count.min(100)).for_each(|i| repair_reference(image, body + i * 40 + 8, done, depth)),
        3 | 4 => {
            let mut at = 64;
            for _ in 0..count {
                if at + 4 > BLOCK {
                    return;
                }
                let key = u16_at(image, node + at);
                let (key_at, reference_at, next) = if kind == 3 {
                    let value = u16_at(image, node + at + 2);
                    (at + 4, at + 4 + key, at + 4 + key + value)
                } else {
                    (at + 26, at + 2, at + 26 + key)
                };
                // In a leaf only the values of two tables are references.
                let table = if kind == 3 { image.get(node + key_at).copied() } else { Some(0xf0) };
                if next <= BLOCK && reference_at + 24 <= BLOCK && matches!(table, Some(0xf0 | 0xf2)) {
                    repair_reference(image, node + reference_at, done, depth);
                }
                at = next;
            }
        }
        5 => (0..63).for_each(|i| repair_pages(image, body + i * 64, node)),
        6 => (0..63).for_each(|i| repair_reference(image, body + i * 64, done, depth)),
        _ => {}
    }
}

/// The count and checksum pages of a chunk entry.
fn repair_pages(image: &mut [u8], entry: usize, node: usize) {
    let uuid: [u8; 16] = image[node + 8..node + 24].try_into().unwrap();
    for (page_at, kind) in [(entry + 16, 8_u8), (entry + 32, 7)] {
        let address = u64_at(image, page_at);
        let Some(page) = place(image, address).filter(|_| address != 0) else { continue };
        let mut head = [0; 32];
        head[..16].copy_from_slice(&uuid);
        head[16] = kind;
        head[24..].copy_from_slice(&address.to_le_bytes());
        let sum = xxh3_64_with_seed(&image[page..page + BLOCK], xxh3_64(&head));
        image[page_at + 8..page_at + 16].copy_from_slice(&sum.to_le_bytes());
        let twin = u64_at(image, entry + 48);
        if let Some(twin) = place(image, twin).filter(|_| kind == 8 && twin != 0) {
            image.copy_within(page..page + BLOCK, twin);
        }
    }
}

/// The checksum of every block that begins like a log record.
fn repair_records(image: &mut [u8]) {
    for at in (0..image.len() / BLOCK * BLOCK).step_by(BLOCK) {
        if !image[at..].starts_with(b"SNAPLOG\x01") {
            continue;
        }
        let body = u64_at(image, at + 64) >> 32;
        let len = (128 + body as usize).next_multiple_of(BLOCK);
        if let Some(copy) = image.get_mut(at..at + len) {
            seal_record(copy);
        }
    }
}

/// Puts the checksum into one copy of a record.
pub(crate) fn seal_record(copy: &mut [u8]) {
    copy[120..128].fill(0);
    let sum = xxh3_64(copy);
    copy[120..128].copy_from_slice(&sum.to_le_bytes());
}
