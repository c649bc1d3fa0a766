//! The seeds in `seeds/`, made from real pools: `SNAPVOL_WRITE_SEEDS=1 cargo test --all-features --test fuzz seeds`.

use std::io::Read;
use std::path::Path;

use snapvol::{
    AttachOptions, CreateOptions, Pool, SendOptions, SequentialIds, SnapshotSpec, StepClock, VolumeId,
    VolumeSpec,
};

use crate::bodies::TARGETS;
use crate::common::damage::{End, Subject};
use crate::common::rng::Rng;
use crate::nbd_generate::sound_session;

const BLOCK: usize = 4096;

fn trimmed(bytes: &[u8]) -> Vec<u8> {
    let end = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |at| at + 1);
    bytes[..end].to_vec()
}

/// Some of all seeds of one target, no two of one length: those differ in numbers only.
fn thin(mut seeds: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    seeds.sort_by_key(Vec::len);
    seeds.dedup_by_key(|seed| seed.len());
    let step = seeds.len().div_ceil(8).max(1);
    seeds.into_iter().step_by(step).collect()
}

/// A volume of a MiB with one block of data and one of zeroes.
fn small_volume() -> (Pool, VolumeId) {
    let ids = std::sync::Arc::new(SequentialIds::new(1));
    let clock = std::sync::Arc::new(StepClock::new(1_700_000_000_000_000, 1));
    let options = CreateOptions::new().limit_bytes(1 << 30).id_source(ids).clock(clock);
    let pool = Pool::create_in_memory(options).unwrap();
    let id = pool.create_volume(VolumeSpec::blank(1 << 20).name("v")).unwrap().id;
    let disk = pool.attach(id, AttachOptions::new()).unwrap();
    disk.write_at(&[7; BLOCK], 5 * BLOCK as u64).unwrap();
    disk.write_zeroes(9 * BLOCK as u64, BLOCK as u64).unwrap();
    drop(disk);
    (pool, id)
}

/// An image of 32 KiB in clusters of 512 bytes, one of them data, one zeroes: header, L1, L2, data, refcount table.
fn smallest_qcow2(version: u32) -> Vec<u8> {
    let mut image = vec![0; 5 * 512];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb");
    for (at, number) in [(4, version), (20, 9), (36, 1), (56, 1), (96, 4), (100, 104)] {
        put(at, &number.to_be_bytes());
    }
    for (at, number) in [(24, 32u64 << 10), (40, 512), (48, 2048)] {
        put(at, &number.to_be_bytes());
    }
    let copied = 1u64 << 63;
    put(512, &(1024 | copied).to_be_bytes());
    put(1024, &(1536 | copied).to_be_bytes());
    put(1024 + 8 * 9, &1u64.to_be_bytes());
    put(1536, &[7; 512]);
    image
}

/// Seeds for one target.
pub(crate) fn made_for(target: &str) -> Vec<Vec<u8>> {
    let images: Vec<Vec<u8>> =
        [End::Closed, End::Killed].into_iter().map(|end| Subject::new(end).medium.view()).collect();
    let blocks = || images.iter().flat_map(|image| image.chunks_exact(BLOCK));
    let begin = |magic: &'static [u8]| blocks().filter(move |block| block.starts_with(magic));
    let mut rng = Rng::new(5);
    let mut random = |len: usize, head: &[u8]| [head, &Rng::stamp_bytes(rng.next(), len)].concat();
    match target {
        "superblock" => thin(begin(b"SNAPVOL\x01").map(trimmed).collect()),
        "node" => (1..=6)
            .flat_map(|kind| {
                let of_kind = begin(b"SVN1").filter(|block| block[4] == kind).map(trimmed).collect();
                thin(of_kind).into_iter().take(3)
            })
            .collect(),
        "page" => {
            // Blocks without a magic that end in zeroes: counts of a small chunk, checksums of one.
            let bare = blocks().filter(|b| !b.starts_with(b"SVN1") && !b.starts_with(b"SNAP")).map(trimmed);
            let bare = thin(bare.filter(|b| (1..=256).contains(&b.len())).collect());
            bare.into_iter().flat_map(|page| [0, 1, 0x20].map(|way| [&[way][..], &page].concat())).collect()
        }
        "record" => {
            let copy = |at: usize, image: &[u8]| {
                let body = u32::from_le_bytes(image[at + 68..at + 72].try_into().unwrap());
                trimmed(&image[at..image.len().min(at + 128 + body as usize)])
            };
            let all = images.iter().flat_map(|image| {
                let starts = (0..image.len() / BLOCK).map(|n| n * BLOCK);
                starts.filter(|at| image[*at..].starts_with(b"SNAPLOG\x01")).map(|at| copy(at, image))
            });
            thin(all.filter(|seed| seed.len() < 3_000).collect())
        }
        "catalogue" => {
            let leaves = begin(b"SVN1").filter(|block| block[4] == 3);
            let all = leaves.flat_map(|block| {
                let count = u16::from_le_bytes([block[6], block[7]]);
                let mut at = 64;
                (0..count)
                    .map(|_| {
                        let [key, value] = [at, at + 2]
                            .map(|at| usize::from(u16::from_le_bytes([block[at], block[at + 1]])));
                        let from = at + 4 + key;
                        at = from + value;
                        block[from..at].to_vec()
                    })
                    .collect::<Vec<_>>()
            });
            thin(all.filter(|value| !value.is_empty()).collect())
        }
        // A field of a superblock, of a node, of a record; swapped, zeroed, cut.
        "open" => [
            &[1, 0, 0, 0, 60, 0, 4, 1, 2, 3, 4][..],
            &[9, 1, 0, 0, 152, 0, 1],
            &[9, 2, 9, 0, 70, 0, 1, 2, 20, 0, 80, 0, 3],
            &[10, 2, 12, 0, 72, 0, 1, 3, 30, 0, 31, 0],
            &[2, 4, 3, 0, 4, 40, 0, 5, 0, 2, 3],
            &[8 | 16 | 1, 2, 33, 0, 6, 0, 200],
            &[32 | 10, 2, 5, 0, 8, 0, 1],
            &[0, 5, 200, 1, 0, 0, 0, 0, 0, 0, 16, b'S', b'N', b'A', b'P', b'V', b'O', b'L', 1],
        ]
        .map(<[u8]>::to_vec)
        .to_vec(),
        "replay" => [
            &[4, 0, 0, 0, 2, 0, 3, 1, 5, 0, 20, 0, 3, 4, 1, 2][..],
            &[4, 0, 0, 1, 3, 2, 0xf0, 16, 24, 1, 2, 3, 4, 5, 6, 7, 8, 9, 5, 0, 6, 9, 0, 7],
            &[0, 0, 2, 1, 2, 3, 1, 4, 4, 2, 3, 0, 0, 4, 1, 5, 1, 4],
            &[1, 0, 0, 0, 2, 0, 3, 0x81, 5, 0, 20, 0, 3, 1, 4, 2, 1, 0, 0, 90, 1],
            &[12, 8, 0, 0, 1, 7, 3, 6, 1, 2, 3, 4, 5, 6],
        ]
        .map(<[u8]>::to_vec)
        .to_vec(),
        "operations" => (0..6).map(|n| random(7 * (10 + 12 * n), &[n as u8])).collect(),
        "stream" => {
            let streams = [false, true].map(|changes| {
                let (pool, id) = small_volume();
                let first =
                    pool.create_snapshot(id, SnapshotSpec::new().name("a").metadata("k", "v")).unwrap().id;
                let disk = pool.attach(id, AttachOptions::new()).unwrap();
                disk.discard(0, 1 << 20).unwrap();
                drop(disk);
                let second = pool.create_snapshot(id, SnapshotSpec::new()).unwrap().id;
                let (of, options) = match changes {
                    true => (second, SendOptions::new().since(first)),
                    false => (first, SendOptions::new()),
                };
                let mut bytes = Vec::new();
                pool.send(of, options).unwrap().read_to_end(&mut bytes).unwrap();
                bytes
            });
            streams.iter().flat_map(|bytes| [0, 1].map(|mode| [&[mode][..], bytes].concat())).collect()
        }
        "import" => [2, 3].map(smallest_qcow2).to_vec(),
        "nbd" => {
            let whole =
                (0..200).map(|seed| sound_session(&mut Rng::new(seed))).filter(|said| said.len() < 400);
            let whole = whole.take(5).map(|said| [&[0][..], &said].concat());
            let requests = [9, 11, 13, 15].map(|mode| random(16 * 8, &[mode]));
            whole.chain(requests).collect()
        }
        "evs" | "cbs" | "ucloud" => {
            (1..=6).map(|n| (0..n).flat_map(|_| random(64, &[64])).collect()).collect()
        }
        other => panic!("{other} has no seeds"),
    }
}

#[test]
fn seeds_can_be_made() {
    let write = std::env::var("SNAPVOL_WRITE_SEEDS").is_ok_and(|v| v == "1");
    for (target, body) in TARGETS {
        let seeds = made_for(target);
        assert!(!seeds.is_empty(), "{target} has no seeds");
        seeds.iter().for_each(|seed| body(seed));
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds").join(target);
        if write {
            std::fs::create_dir_all(&folder).unwrap();
            for (n, seed) in seeds.iter().enumerate() {
                std::fs::write(folder.join(format!("{n:02}")), seed).unwrap();
            }
        }
    }
}
