//! Whole pools, sound and damaged.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use crate::alloc::IndexNode;
use crate::device::{Device, MemoryDevice};
use crate::format::chunk::{ChunkEntry, ChunkKind, Counts};
use crate::format::superblock::Superblock;
use crate::format::{BlockKind, NodeHeader, NodeRef, node_sum, page_sum};
use crate::units::{BLOCK, BLOCK_BYTES, BlockAddr, SnapshotId, VolumeId};
use crate::{
    AttachOptions, Background, CreateOptions, OpenOptions, Pool, SequentialIds, SnapshotSpec, Snapshots,
    StepClock, VolumeSpec,
};

const B: u64 = BLOCK_BYTES;

fn create(device: &MemoryDevice) -> Pool {
    let options = CreateOptions::new()
        .blocks_per_chunk(64)
        .log_bytes(64 << 10)
        .limit_bytes(8 << 20)
        .background(Background::Manual)
        .id_source(Arc::new(SequentialIds::new(7)))
        .clock(Arc::new(StepClock::new(1, 1)));
    Pool::create_on(device.share(), options).unwrap()
}

fn open(device: &MemoryDevice, read_only: bool) -> Pool {
    let options = OpenOptions::new().read_only(read_only).background(Background::Manual);
    Pool::open_on(device.share(), options).unwrap()
}

fn write(pool: &Pool, id: VolumeId, lba: u64, blocks: u64, byte: u8) {
    let disk = pool.attach(id, AttachOptions::new()).unwrap();
    for i in 0..blocks {
        // All blocks differ, so that no two have the same checksum.
        let mut block = vec![byte; BLOCK];
        block[..8].copy_from_slice(&(lba + i).to_le_bytes());
        disk.write_at(&block, (lba + i) * B).unwrap();
    }
}

struct Family {
    volume: VolumeId,
    snapshot: SnapshotId,
    clone: VolumeId,
}

/// A volume, a snapshot, a clone, several leaves, zeroes, and something on its way out.
fn fill(pool: &Pool) -> Family {
    let volume = pool.create_volume(VolumeSpec::blank(4000 * B)).unwrap().id;
    for i in 0..300 {
        write(pool, volume, i * 3, 1, 1);
    }
    let snapshot = pool.create_snapshot(volume, SnapshotSpec::new()).unwrap().id;
    write(pool, volume, 100, 20, 2);
    let clone = pool.create_volume(VolumeSpec::from_snapshot(snapshot)).unwrap().id;
    write(pool, clone, 600, 9, 3);
    pool.attach(clone, AttachOptions::new()).unwrap().write_zeroes(30 * B, 50 * B).unwrap();
    let gone = pool.create_volume(VolumeSpec::from_volume(volume)).unwrap().id;
    write(pool, gone, 2000, 5, 4);
    drop(pool.delete_volume(gone, Snapshots::Refuse).unwrap());
    Family { volume, snapshot, clone }
}

fn kinds(report: &CheckReport) -> BTreeSet<String> {
    report.findings.iter().map(|f| format!("{:?}", f.kind)).collect()
}

#[test]
fn a_sound_pool_is_clean_and_adds_up_in_any_number_of_passes() {
    let pool = create(&MemoryDevice::new());
    let family = fill(&pool);
    let mut last = None;
    let one = pool.scrub(CheckOptions::new(), &mut |p| last = Some(p)).unwrap();
    assert_eq!(one.findings, []);
    assert!(one.latest && one.nodes > 6 && one.pages > 2, "{one:?}");
    assert_eq!(one.verified_blocks, one.data_blocks);
    assert_eq!(last.map(|p| p.phase), Some(Phase::Data));
    let space = pool.space().unwrap();
    assert_eq!(space.used_bytes, one.data_blocks * B);
    assert_eq!(
        space.total_bytes,
        (one.data_blocks + one.metadata_blocks + one.free_blocks + one.fixed_blocks) * B
    );
    let many = pool.scrub(CheckOptions::new().memory_bytes(1), &mut |_| {}).unwrap();
    assert_eq!(many.findings, []);
    assert!(many.passes > 4);
    assert_eq!((many.data_blocks, many.verified_blocks), (one.data_blocks, one.data_blocks));
    assert_eq!((many.nodes, many.maps), (one.nodes, one.maps));
    drop(pool.delete_snapshot(family.snapshot).unwrap());
    for _ in 0..20 {
        assert_eq!(pool.check(CheckOptions::new(), &mut |_| {}).unwrap().findings, []);
    }
}

/// Blocks that the index of a closed pool counts, by kind of chunk.
fn used(device: &MemoryDevice) -> Vec<(BlockAddr, ChunkKind)> {
    let (sb, _, entries) = index(device);
    let mut block = [0; BLOCK];
    let mut out = Vec::new();
    for (chunk, e) in (0u64..).zip(&entries) {
        let counts = match e.counts {
            None => Counts::uniform(64, e.uniform),
            Some(page) => {
                device.read_at(&mut block, page.addr.byte_offset()).unwrap();
                Counts::decode(&block, e.width, 64, page.addr).unwrap()
            }
        };
        let blocks = (0..64).filter(|i| counts.get(*i) > 0);
        out.extend(blocks.map(|i| (sb.geometry.chunk_start(chunk) + i as u64, e.kind)));
    }
    out
}

#[test]
fn a_map_that_is_half_reclaimed_is_counted_right() {
    let options = CreateOptions::new().limit_bytes(256 << 20).background(Background::Manual);
    let pool = Pool::create_in_memory(options).unwrap();
    let id = pool.create_volume(VolumeSpec::blank(1_000_000 * B)).unwrap().id;
    let disk = pool.attach(id, AttachOptions::new()).unwrap();
    // More extents than one checkpoint walks; zeroes, because they take no space.
    for i in 0..300_000 {
        disk.write_zeroes(i * 2 * B, B).unwrap();
    }
    drop(disk);
    let check = || pool.check(CheckOptions::new(), &mut |_| {}).unwrap();
    let whole = check();
    drop(pool.delete_volume(id, Snapshots::Refuse).unwrap());
    let (half, none) = (check(), check());
    assert_eq!([&whole.findings[..], &half.findings, &none.findings], [&[]; 3]);
    assert!(whole.nodes > half.nodes && half.nodes > none.nodes + 10, "{whole:?} {half:?} {none:?}");
}

#[test]
fn no_used_block_can_go_bad_unnoticed() {
    let device = MemoryDevice::new();
    let pool = create(&device);
    let family = fill(&pool);
    pool.close().unwrap();
    let used = used(&device);
    let bytes = device.snapshot_bytes();
    let reopen = |bytes: Vec<u8>| {
        let pool = open(&MemoryDevice::from_bytes(bytes), true);
        (
            pool.check(CheckOptions::new(), &mut |_| {}).unwrap(),
            pool.scrub(CheckOptions::new(), &mut |_| {}).unwrap(),
        )
    };
    let (check, scrub) = reopen(bytes.clone());
    assert!(check.is_clean() && scrub.is_clean());
    assert_eq!(used.len() as u64, scrub.data_blocks + scrub.metadata_blocks);
    for (addr, kind) in used {
        let mut bad = bytes.clone();
        bad[addr.byte_offset() as usize + 777] ^= 4;
        let (check, scrub) = reopen(bad);
        if kind == ChunkKind::Data {
            assert_eq!(check.findings, []);
            assert_eq!(kinds(&scrub), BTreeSet::from(["BadData".into()]));
            let owners: BTreeSet<_> = scrub.findings[0].owners.iter().map(|o| o.object).collect();
            let mine = BTreeSet::from([family.volume.raw(), family.snapshot.raw(), family.clone.raw()]);
            assert!(owners.is_subset(&mine), "{scrub:?}");
        } else {
            assert_eq!(check.findings, scrub.findings);
            let lawful = ["BadNode", "BadCopy", "RebuiltChecksumPage"];
            assert!(
                !scrub.is_clean() && kinds(&scrub).iter().all(|k| lawful.contains(&k.as_str())),
                "{scrub:?}"
            );
        }
    }
}

#[test]
fn a_lost_checksum_page_is_computed_again_and_written_anew() {
    let device = MemoryDevice::new();
    let pool = create(&device);
    let family = fill(&pool);
    pool.delete_snapshot(family.snapshot).unwrap().wait().unwrap();
    pool.close().unwrap();
    let (sb, _, entries) = index(&device);
    let lost: Vec<_> = entries.iter().filter_map(|e| e.checksums).collect();
    assert!(lost.len() > 3 && entries.iter().any(|e| e.checksums.is_some() && e.free > 0));
    for page in &lost {
        device.write_at(&[0x5a; BLOCK], page.addr.byte_offset()).unwrap();
    }
    // All of them lost at once, and still everything can be read.
    let pool = open(&device, false);
    let report = pool.scrub(CheckOptions::new(), &mut |_| {}).unwrap();
    assert_eq!(kinds(&report), BTreeSet::from(["RebuiltChecksumPage".into()]));
    assert_eq!((report.findings.len(), report.verified_blocks), (lost.len(), report.data_blocks));
    pool.checkpoint().unwrap();
    let report = pool.scrub(CheckOptions::new(), &mut |_| {}).unwrap();
    assert_eq!(report.findings, []);
    pool.close().unwrap();
    // One block of data damaged too: nobody can tell which of the chunk's blocks are sound.
    let (_, _, entries) = index(&device);
    let chunk = entries.iter().position(|e| e.kind == ChunkKind::Data).unwrap();
    let block = used(&device).iter().find(|(_, kind)| *kind == ChunkKind::Data).unwrap().0;
    assert_eq!(sb.geometry.locate(block).unwrap().0, chunk as u64);
    let page = entries[chunk].checksums.unwrap();
    device.write_at(&[0x5a; 9], page.addr.byte_offset()).unwrap();
    device.write_at(&[0x5a; 9], block.byte_offset()).unwrap();
    let report = open(&device, true).scrub(CheckOptions::new(), &mut |_| {}).unwrap();
    assert_eq!(kinds(&report), BTreeSet::from(["BadChecksumPage".into()]));
    assert!(report.findings[0].owners_total > 0 && report.verified_blocks < report.data_blocks);
}

#[test]
fn a_bad_block_names_everyone_who_shares_it() {
    let device = MemoryDevice::new();
    let pool = create(&device);
    let family = fill(&pool);
    pool.close().unwrap();
    // LBA 9 was written once, before the snapshot.
    let (sb, ..) = index(&device);
    let bytes = device.snapshot_bytes();
    let blocks = (0u64..).zip(bytes.chunks_exact(BLOCK)).skip(sb.geometry.first_chunk_block as usize);
    let mut hits = blocks.filter(|(_, b)| b[..8] == 9u64.to_le_bytes() && b[8..].iter().all(|x| *x == 1));
    let at = BlockAddr::new(hits.next().unwrap().0);
    assert!(hits.next().is_none());
    device.write_at(&[0xee; 10], at.byte_offset()).unwrap();
    let report = open(&device, false).scrub(CheckOptions::new(), &mut |_| {}).unwrap();
    let [finding] = &report.findings[..] else { panic!("{report:?}") };
    assert_eq!((finding.kind, finding.corruption.block), (FindingKind::BadData, at.raw()));
    let owners: BTreeSet<_> = finding.owners.iter().map(|o| (o.object, o.lba)).collect();
    let all = [family.volume.raw(), family.snapshot.raw(), family.clone.raw()];
    assert_eq!(owners, all.map(|id| (id, 9)).into_iter().collect());
    assert_eq!(report.verified_blocks, report.data_blocks - 1);
}

#[test]
fn a_pool_with_a_lost_map_node_reports_no_leaks() {
    let device = MemoryDevice::new();
    let pool = create(&device);
    fill(&pool);
    pool.close().unwrap();
    let pool = open(&device, true);
    let before = pool.check(CheckOptions::new(), &mut |_| {}).unwrap();
    drop(pool);
    // Every map leaf goes: all data is unreachable then, none of it lost space.
    let mut lost = 0;
    let mut bytes = device.snapshot_bytes();
    for block in bytes.chunks_exact_mut(BLOCK) {
        if block.starts_with(b"SVN1") && block[4] == BlockKind::MapLeaf as u8 {
            block[100] ^= 1;
            lost += 1;
        }
    }
    assert!(lost > 2);
    let pool = open(&MemoryDevice::from_bytes(bytes), true);
    let report = pool.scrub(CheckOptions::new().findings_limit(2), &mut |_| {}).unwrap();
    assert_eq!(kinds(&report), BTreeSet::from(["BadNode".into()]));
    assert_eq!(report.findings.len(), 2);
    assert!(report.findings_total > 2 && report.data_blocks == 0, "{report:?}");
    assert!(report.findings.iter().all(|f| f.owners_total > 0), "{report:?}");
    assert_eq!(report.metadata_blocks, before.metadata_blocks);
}

/// Superblock, index root and chunk entries of a closed pool.
fn index(device: &MemoryDevice) -> (Superblock, NodeRef, Vec<ChunkEntry>) {
    let mut newest: Option<Superblock> = None;
    let mut block = [0; BLOCK];
    for slot in 0..device.len().unwrap() / B {
        device.read_at(&mut block, slot * B).unwrap();
        if let Ok(sb) = Superblock::decode(&block, slot)
            && newest.as_ref().is_none_or(|n| n.generation < sb.generation)
        {
            newest = Some(sb);
        }
    }
    let sb = newest.unwrap();
    let root = sb.index_root.unwrap();
    device.read_at(&mut block, root.a.byte_offset()).unwrap();
    match IndexNode::decode(&block, &root, &sb.uuid, &sb.geometry, 0).unwrap() {
        IndexNode::Leaf(entries) => (sb, root, entries),
        IndexNode::Inner(_) => panic!("the pool is too large for one leaf"),
    }
}

/// Changes the entries of a closed pool's chunk index, with all checksums put right again.
fn tamper(device: &MemoryDevice, change: impl FnOnce(&mut [ChunkEntry], &Superblock)) {
    let (mut sb, root, mut entries) = index(device);
    change(&mut entries, &sb);
    let mut block = [0; BLOCK];
    let h = NodeHeader {
        kind: BlockKind::IndexLeaf,
        level: 0,
        count: 0,
        uuid: sb.uuid,
        a: root.a,
        b: root.b,
        generation: sb.generation,
        base: 0,
    };
    IndexNode::Leaf(entries).encode(h, &mut block);
    for at in [Some(root.a), root.b].into_iter().flatten() {
        device.write_at(&block, at.byte_offset()).unwrap();
    }
    sb.index_root = Some(NodeRef { sum: node_sum(&block), ..root });
    sb.encode(&mut block);
    for offset in sb.slots() {
        device.write_at(&block, offset).unwrap();
    }
}

/// A sound closed pool with one thing changed in its index: what a check says to that.
fn tampered(change: impl FnOnce(&mut [ChunkEntry], &Superblock, &MemoryDevice)) -> CheckReport {
    let device = MemoryDevice::new();
    let pool = create(&device);
    fill(&pool);
    pool.close().unwrap();
    tamper(&device, |entries, sb| change(entries, sb, &device));
    open(&device, true).check(CheckOptions::new(), &mut |_| {}).unwrap()
}

fn data_chunk(entries: &mut [ChunkEntry]) -> &mut ChunkEntry {
    entries.iter_mut().find(|e| e.kind == ChunkKind::Data && e.counts.is_some() && e.free > 1).unwrap()
}

/// Changes one count of a chunk.
fn set_count(
    e: &mut ChunkEntry,
    sb: &Superblock,
    device: &MemoryDevice,
    pick: impl Fn(u32) -> bool,
    to: u32,
) {
    let mut page = e.counts.unwrap();
    let mut block = [0; BLOCK];
    device.read_at(&mut block, page.addr.byte_offset()).unwrap();
    let mut counts = Counts::decode(&block, e.width, 64, page.addr).unwrap();
    let i = (0..64).find(|i| pick(counts.get(*i))).unwrap();
    counts.set(i, to);
    assert_eq!(counts.width(), e.width);
    counts.encode(&mut block);
    for at in page.copies() {
        device.write_at(&block, at.byte_offset()).unwrap();
    }
    page.sum = page_sum(&block, &sb.uuid, BlockKind::Counts, page.addr);
    e.counts = Some(page);
}

#[test]
fn wrong_counts_and_sums_are_found() {
    assert_eq!(tampered(|_, _, _| {}).findings, []);
    let high = tampered(|e, sb, d| set_count(data_chunk(e), sb, d, |n| n > 0, 9));
    assert_eq!(kinds(&high), BTreeSet::from(["CountMismatch".into()]));
    assert_eq!(high.findings[0].corruption.found, "9");
    let leak = tampered(|e, sb, d| set_count(data_chunk(e), sb, d, |n| n == 0, 1));
    assert_eq!(kinds(&leak), BTreeSet::from(["BadSummary".into(), "Leak".into()]));
    let low = tampered(|e, sb, d| set_count(data_chunk(e), sb, d, |n| n > 0, 0));
    assert_eq!(kinds(&low), BTreeSet::from(["BadSummary".into(), "CountMismatch".into()]));
    let sums = tampered(|e, _, _| data_chunk(e).free += 1);
    assert_eq!(kinds(&sums), BTreeSet::from(["BadSummary".into()]));
    // Both the chunk and the totals of the pool are wrong then.
    assert_eq!(sums.findings_total, 2);
    let kind = tampered(|e, _, _| data_chunk(e).kind = ChunkKind::Meta);
    assert!(kinds(&kind).contains("Overlap"), "{kind:?}");
    let freed = tampered(|e, _, _| *data_chunk(e) = ChunkEntry::default());
    assert!(
        kinds(&freed).is_superset(&BTreeSet::from(["CountMismatch".into(), "Overlap".into()])),
        "{freed:?}"
    );
    let twice = tampered(|e, _, _| {
        let other = e.iter().find(|e| e.kind == ChunkKind::Meta).unwrap().counts;
        data_chunk(e).checksums = other;
    });
    assert!(kinds(&twice).contains("Overlap") && kinds(&twice).contains("BadChecksumPage"), "{twice:?}");
    let outside = tampered(|e, _, _| {
        if let Some(page) = &mut data_chunk(e).checksums {
            page.addr = BlockAddr::new(1 << 40);
        }
    });
    assert!(kinds(&outside).contains("BadReference"), "{outside:?}");
}
