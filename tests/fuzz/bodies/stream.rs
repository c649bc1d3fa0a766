//! Delta streams that somebody else made up, into an empty pool and into one that has a base for them.

use std::ops::ControlFlow;

use snapvol::{Background, CreateOptions, Pool, ReceiveOptions, VolumeQuery};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// The body of the fuzz target `stream`.
// Other tests include this file for the parts below alone.
#[allow(dead_code)]
pub(crate) fn stream(input: &[u8]) {
    let _ = receive(input);
}

/// The first byte says whether checksums are put right, so that what lies behind them is reached; the rest is the
/// stream. Returns the bytes of data in it if it was accepted.
pub(crate) fn receive(input: &[u8]) -> Option<u64> {
    let (mode, bytes) = input.split_first()?;
    let mut bytes = bytes.to_vec();
    if mode & 1 == 1 {
        put_right(&mut bytes, false);
    }
    let options = CreateOptions::new()
        .limit_bytes(4 << 20)
        .log_bytes(64 << 10)
        .blocks_per_chunk(64)
        .cache_bytes(1 << 20)
        .background(Background::Manual);
    let pool = Pool::create_in_memory(options).expect("valid options");
    let received = pool.receive(&bytes[..], ReceiveOptions::new(), |_| ControlFlow::Continue(()));
    let volumes = pool.list_volumes(&VolumeQuery::new()).expect("a listing").items.len();
    assert_eq!(volumes, usize::from(received.is_ok()), "what is refused leaves no trace");
    assert!(pool.list_receives().expect("a listing").is_empty());
    received.ok().map(|received| received.data_bytes)
}

fn number(bytes: &[u8], at: usize, len: usize) -> usize {
    bytes[at..at + len].iter().rev().fold(0, |sum, byte| (sum << 8) | usize::from(*byte))
}

/// Gives header, records and blocks the checksums that the documentation of the format asks for, as far as there is
/// something to put right. Fingerprints are taken out, or kept as they are.
pub(crate) fn put_right(bytes: &mut [u8], keep_fingerprints: bool) {
    if bytes.len() < 192 {
        return;
    }
    let header = number(bytes, 12, 4);
    if header < 192 || header > bytes.len() {
        return;
    }
    if !keep_fingerprints {
        bytes[16] &= !4;
        bytes[136..168].fill(0);
    }
    let sum = xxh3_64(&bytes[..header - 8]);
    bytes[header - 8..header].copy_from_slice(&sum.to_le_bytes());
    let (mut at, mut chain) = (header, sum);
    while at + 32 <= bytes.len() {
        let blocks = if number(bytes, at, 4) == 1 { number(bytes, at + 16, 8).min(256) } else { 0 };
        let (sums, data) = (at + 32, at + 32 + 4 * blocks);
        let end = data + 4096 * blocks;
        if end > bytes.len() {
            return;
        }
        for i in 0..blocks {
            let crc = crc32fast::hash(&bytes[data + i * 4096..data + (i + 1) * 4096]);
            bytes[sums + i * 4..sums + i * 4 + 4].copy_from_slice(&crc.to_le_bytes());
        }
        chain = xxh3_64_with_seed(&bytes[sums..data], xxh3_64_with_seed(&bytes[at..at + 24], chain));
        bytes[at + 24..at + 32].copy_from_slice(&chain.to_le_bytes());
        at = end;
    }
}
