//! Backups: what they hold, what one may do to another, and what is left when something fails.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

mod common;

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use common::rng::{Rng, seed};
use common::target::{Fault, MemoryTarget};
use snapvol::backup::{BackupProgress, BackupSpec, DamageKind, LocalFolder, MIN_PIECE_BYTES};
use snapvol::device::{Device, MemoryDevice};
use snapvol::{
    AttachOptions, Background, Backup, BackupQuery, BackupStatus, CheckOptions, CreateOptions, Disk, Error,
    OpenOptions, Pool, SequentialIds, SnapshotQuery, SnapshotSpec, SnapshotStatus, Snapshots, StepClock,
    VolumeId, VolumeSpec, VolumeStatus,
};

const PIECE: u64 = MIN_PIECE_BYTES;
const BLOCK: u64 = 4096;

fn on(_: BackupProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn create_options(seed: u64) -> CreateOptions {
    CreateOptions::new()
        .limit_bytes(64 << 20)
        .log_bytes(256 << 10)
        .blocks_per_chunk(64)
        .background(Background::Manual)
        .id_source(Arc::new(SequentialIds::new(seed)))
        .clock(Arc::new(StepClock::new(1_700_000_000_000_000, 1)))
}

/// One sender: the calls of the target are in one order then.
fn spec() -> BackupSpec {
    BackupSpec::new("t").piece_bytes(PIECE).senders(1)
}

/// A pool with a volume whose content is known, and a target.
struct Rig {
    pool: Pool,
    device: MemoryDevice,
    target: MemoryTarget,
    volume: VolumeId,
    content: Vec<u8>,
    rng: Rng,
    opened: u64,
}

impl Rig {
    fn new(seed: u64, size: u64) -> Self {
        Self::with_target(seed, size, MemoryTarget::new())
    }

    fn with_target(seed: u64, size: u64, target: MemoryTarget) -> Self {
        let device = MemoryDevice::new();
        let pool = Pool::create_on(device.share(), create_options(seed)).unwrap();
        pool.connect_backup_target("t", target.connect()).unwrap();
        let volume = pool.create_volume(VolumeSpec::blank(size)).unwrap().id;
        let (content, rng) = (vec![0; size as usize], Rng::new(seed));
        Self { pool, device, target, volume, content, rng, opened: seed }
    }

    fn disk(&self) -> Disk {
        self.pool.attach(self.volume, AttachOptions::default()).unwrap()
    }

    /// Writes, discards and zeroes here and there.
    fn change(&mut self, times: u64) {
        let disk = self.disk();
        for _ in 0..times {
            let blocks = self.content.len() as u64 / BLOCK;
            let at = self.rng.below(blocks);
            let len = (1 + self.rng.below(20)).min(blocks - at) * BLOCK;
            let at = at * BLOCK;
            let range = at as usize..(at + len) as usize;
            match self.rng.below(6) {
                0 => {
                    disk.discard(at, len).unwrap();
                    self.content[range].fill(0);
                }
                1 => {
                    disk.write_zeroes(at, len).unwrap();
                    self.content[range].fill(0);
                }
                2 => {
                    // Zeroes that were written as data: not to be stored either.
                    disk.write_at(&vec![0; len as usize], at).unwrap();
                    self.content[range].fill(0);
                }
                _ => {
                    let bytes = Rng::stamp_bytes(self.rng.next(), len as usize);
                    disk.write_at(&bytes, at).unwrap();
                    self.content[range].copy_from_slice(&bytes);
                }
            }
        }
        disk.flush().unwrap();
    }

    fn back_up(&self) -> Backup {
        self.pool.create_backup(self.volume, spec(), &mut on).unwrap()
    }

    fn restored(&self, id: snapvol::BackupId) -> Vec<u8> {
        let size = self.pool.backup(id).unwrap().size_bytes;
        let volume = self.pool.create_volume_from_backup(VolumeSpec::from_backup(id, size), &mut on).unwrap();
        let bytes = read(&self.pool, volume.id);
        self.pool.delete_volume(volume.id, Snapshots::Delete).unwrap().wait().unwrap();
        bytes
    }

    /// The process ends, or the host of the pool loses power: both are an unclean end.
    fn reopen(&mut self) {
        self.opened += 1000;
        let ids = Arc::new(SequentialIds::new(self.opened));
        let clock = Arc::new(StepClock::new(1_800_000_000_000_000, 1));
        // The old handle goes, and what it would still write goes nowhere.
        self.device = MemoryDevice::from_bytes(image(&self.device));
        let options = OpenOptions::new().background(Background::Manual).id_source(ids).clock(clock);
        self.pool = Pool::open_on(self.device.share(), options).unwrap();
        self.pool.connect_backup_target("t", self.target.connect()).unwrap();
    }

    fn check(&self) {
        let report = self.pool.check(CheckOptions::default(), &mut |_| {}).unwrap();
        assert!(report.is_clean(), "{report:?}");
    }
}

fn image(device: &MemoryDevice) -> Vec<u8> {
    let mut bytes = vec![0; device.len().unwrap() as usize];
    device.read_at(&mut bytes, 0).unwrap();
    bytes
}

fn read(pool: &Pool, volume: VolumeId) -> Vec<u8> {
    let disk = pool.attach(volume, AttachOptions::default()).unwrap();
    let mut bytes = vec![0; disk.size_bytes() as usize];
    disk.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// Every backup that says it is available is whole.
fn assert_available_are_whole(pool: &Pool) -> usize {
    let backups = pool.list_backups(&BackupQuery::new().status(BackupStatus::Available)).unwrap().items;
    for backup in &backups {
        let report = pool.verify_backup(backup.id, &mut on).unwrap();
        assert!(report.is_whole(), "{backup:?}: {report:?}");
        assert_eq!(report.good_objects, backup.object_count);
    }
    backups.len()
}

#[test]
fn each_backup_of_a_chain_restores_to_what_the_volume_was_then() {
    let seed = seed("chain", 1);
    for round in 0..4 {
        let mut rig = Rig::new(seed + round, 30 * PIECE + 3 * BLOCK);
        let mut points = Vec::new();
        for n in 0..6 {
            let times = rig.rng.below(5);
            rig.change(times);
            if n == 3 {
                let size = rig.content.len() as u64 + 2 * PIECE;
                rig.pool.extend(rig.volume, size).unwrap();
                rig.content.resize(size as usize, 0);
                rig.change(3);
            }
            let backup = rig.back_up();
            assert_eq!(backup.status, BackupStatus::Available);
            assert_eq!(backup.is_incremental, n > 0);
            assert_eq!(backup.size_bytes, rig.content.len() as u64);
            points.push((backup.id, rig.content.clone()));
        }
        for (n, (id, content)) in points.iter().enumerate() {
            assert!(rig.restored(*id) == *content, "backup {n} of round {round}");
            let backup = rig.pool.backup(*id).unwrap();
            assert_eq!(backup.parent, n.checked_sub(1).map(|n| points[n].0));
            assert_eq!(backup.has_dependent_backups, n < 5);
        }
        // A full one of the same content is made of the same objects: only its manifest is new.
        rig.target.puts();
        let full = rig.pool.create_backup(rig.volume, spec().full(true), &mut on).unwrap();
        assert!(!full.is_incremental && rig.target.puts().len() == 1);
        assert!(rig.restored(full.id) == rig.content);
        assert_eq!(assert_available_are_whole(&rig.pool), 7);
        rig.check();
    }
}

#[test]
fn an_incremental_backup_sends_what_has_changed_and_no_more() {
    // Three tables of 4,096 pieces, most of them holes.
    let size = 3 * 4096 * PIECE;
    let rig = Rig::new(2, size);
    let at = |table: u64, piece: u64| (table * 4096 + piece) * PIECE;
    let disk = rig.disk();
    for (table, piece) in [(0, 0), (0, 9), (1, 7)] {
        disk.write_at(&[table as u8 + 1; 8192], at(table, piece) + 4096).unwrap();
    }
    disk.write_at(&[3; 8192], size - 8192).unwrap();
    drop(disk);
    let kinds = |puts: Vec<String>| {
        ["pieces", "tables", "backups"].map(|k| puts.iter().filter(|p| p.starts_with(k)).count())
    };
    let first = rig.back_up();
    // The pieces (0, 0) and (0, 9) are one object.
    assert_eq!(kinds(rig.target.puts()), [3, 3, 1]);
    assert_eq!((first.stored_bytes, first.object_count), (4 * 8192, 8));
    let disk = rig.disk();
    disk.write_at(&[9; 4096], at(1, 7)).unwrap();
    drop(disk);
    let second = rig.back_up();
    assert_eq!(kinds(rig.target.puts()), [1, 1, 1]);
    // A discard over tables that are there and tables that are not.
    rig.disk().discard(at(0, 5), size - at(0, 5) - 4096).unwrap();
    let third = rig.back_up();
    assert_eq!(kinds(rig.target.puts()), [1, 2, 1]);
    assert_eq!((third.stored_bytes, third.object_count), (8192 + 4096, 5));
    let expect = |backup: &Backup, offset: u64, byte: u8| {
        let made =
            rig.pool.create_volume_from_backup(VolumeSpec::from_backup(backup.id, size), &mut on).unwrap();
        let disk = rig.pool.attach(made.id, AttachOptions::default()).unwrap();
        let mut seen = [0xEE; 4096];
        disk.read_at(&mut seen, offset).unwrap();
        assert_eq!(seen, [byte; 4096], "at {offset}");
        let mapped: u64 = disk
            .extents(0..size)
            .map(|e| e.unwrap())
            .map(|e| match e.kind {
                snapvol::ExtentKind::Data => e.range.end - e.range.start,
                _ => 0,
            })
            .sum();
        assert_eq!(mapped, backup.stored_bytes, "no zeroes were written");
    };
    expect(&first, at(1, 7), 0);
    expect(&second, at(1, 7), 9);
    expect(&second, at(0, 9) + 4096, 1);
    expect(&third, at(0, 9) + 4096, 0);
    expect(&third, size - 4096, 3);
}

#[test]
fn without_its_snapshot_or_its_backup_the_next_one_is_full() {
    let mut rig = Rig::new(3, 10 * PIECE);
    rig.change(9);
    let snapshots =
        |rig: &Rig| rig.pool.list_snapshots(&SnapshotQuery::new().volume(rig.volume)).unwrap().items;
    let first = rig.back_up();
    let base = snapshots(&rig).remove(0);
    assert_eq!(base.name.as_deref(), Some(format!("autobk_snapshot_{}", base.id).as_str()));
    assert!(base.backup_owned);
    assert_eq!(Some(base.id), first.snapshot);
    assert!(rig.back_up().is_incremental);
    let newest = snapshots(&rig);
    assert_eq!(newest.len(), 1, "only the newest is kept");
    let _ = rig.pool.delete_snapshot(newest[0].id).unwrap();
    assert!(!rig.back_up().is_incremental);
    let last = rig.back_up();
    assert!(last.is_incremental);
    rig.pool.delete_backup(last.id).unwrap();
    assert!(snapshots(&rig).is_empty());
    assert!(!rig.back_up().is_incremental);
    // Neither does a manifest that the target has lost leave anything to begin from.
    let lost = rig.back_up();
    rig.target.set(&format!("backups/{}/{}", rig.pool.uuid(), lost.id), None);
    assert!(!rig.back_up().is_incremental);
    assert!(
        !rig.pool.create_backup(rig.volume, spec().piece_bytes(2 * PIECE), &mut on).unwrap().is_incremental
    );
    assert!(matches!(rig.pool.verify_backup(lost.id, &mut on).unwrap().damages[0].kind, DamageKind::Lost));
    // Backups outlive their volume.
    rig.pool.delete_volume(rig.volume, Snapshots::Delete).unwrap().wait().unwrap();
    assert!(rig.restored(first.id) == rig.content);
    rig.check();
}

#[test]
fn backups_are_deleted_in_any_order_and_harm_no_other() {
    let mut rig = Rig::new(4, 12 * PIECE);
    let mut points = Vec::new();
    for _ in 0..4 {
        rig.change(3);
        points.push((rig.back_up().id, rig.content.clone()));
    }
    let kept = rig.target.copy();
    for order in 0..24 {
        // A pool of its own that knows the same backups, over a copy of the target.
        let target = kept.copy();
        rig.pool.connect_backup_target("t", target.connect()).unwrap();
        for id in points.iter().map(|p| p.0) {
            rig.pool.forget_backup(id).unwrap();
        }
        assert_eq!(rig.pool.import_backups("t").unwrap().len(), 4);
        let (mut left, mut order) = (points.clone(), order);
        while !left.is_empty() {
            let (gone, _) = left.remove(order % left.len());
            order /= left.len() + 1;
            rig.pool.delete_backup(gone).unwrap();
            rig.pool.sweep_backups("t", &mut on).unwrap();
            assert!(matches!(rig.pool.backup(gone), Err(Error::NotFound { object: "backup", .. })));
            for (id, content) in &left {
                assert!(rig.restored(*id) == *content);
            }
        }
        assert_eq!(target.names(""), Vec::<String>::new(), "nothing is left behind");
        rig.target = kept.copy();
        rig.pool.connect_backup_target("t", rig.target.connect()).unwrap();
        rig.pool.import_backups("t").unwrap();
    }
}

#[test]
fn what_the_target_has_lost_is_sent_again_by_the_next_backup_for_all_that_need_it() {
    let mut rig = Rig::new(5, 12 * PIECE);
    rig.change(12);
    let first = rig.back_up();
    rig.change(1);
    rig.back_up();
    let names: Vec<_> = [rig.target.names("pieces/"), rig.target.names("tables/")].concat();
    let mut healed = 0;
    for name in &names {
        for cut in [None, Some(1000)] {
            let good = rig.target.bytes(name);
            let bad = cut.map(|n| good[..n.min(good.len() - 1)].to_vec());
            rig.target.set(name, bad);
            let before = rig.pool.verify_backup(first.id, &mut on).unwrap().is_whole();
            rig.target.puts();
            let next = rig.back_up();
            assert!(next.is_incremental);
            assert!(rig.pool.verify_backup(next.id, &mut on).unwrap().is_whole(), "{name}");
            let after = rig.pool.verify_backup(first.id, &mut on).unwrap().is_whole();
            if rig.target.puts().contains(name) {
                assert!(after && rig.target.bytes(name) == good);
                healed += u32::from(!before);
            } else {
                // Only what the volume has not any more cannot be sent again.
                rig.target.set(name, Some(good));
            }
            rig.pool.delete_backup(next.id).unwrap();
            rig.back_up();
        }
    }
    assert!(healed > 4, "{healed}");
}

#[test]
fn verify_finds_every_planted_damage_and_a_restore_refuses_it() {
    let mut rig = Rig::new(6, 8 * PIECE);
    rig.change(20);
    let backup = rig.back_up();
    let volume = rig.pool.create_volume(VolumeSpec::blank(8 * PIECE)).unwrap().id;
    for name in rig.target.names("") {
        let good = rig.target.bytes(&name);
        let mut flipped = good.clone();
        let bit = rig.rng.below(good.len() as u64 * 8);
        flipped[bit as usize / 8] ^= 1 << (bit % 8);
        let longer = [&good[..], &[0]].concat();
        let bad =
            [None, Some(flipped), Some(longer), Some(good[..good.len() - 1].to_vec()), Some(Vec::new())];
        for bad in bad {
            let kind = if bad.is_none() { DamageKind::Lost } else { DamageKind::Damaged };
            rig.target.set(&name, bad);
            let report = rig.pool.verify_backup(backup.id, &mut on).unwrap();
            assert!(!report.is_whole());
            assert_eq!(report.damages.len(), 1, "{name}: {report:?}");
            assert_eq!((&report.damages[0].object, report.damages[0].kind), (&name, kind));
            assert_eq!(
                (report.lost_objects, report.damaged_objects),
                match kind {
                    DamageKind::Lost => (1, 0),
                    _ => (0, 1),
                }
            );
            let spec = VolumeSpec::from_backup(backup.id, 8 * PIECE);
            let refused = rig.pool.create_volume_from_backup(spec, &mut on);
            assert!(matches!(refused, Err(Error::Corrupt(_))), "{name}");
        }
        rig.target.set(&name, Some(good));
    }
    assert!(rig.pool.verify_backup(backup.id, &mut on).unwrap().is_whole());
    assert_eq!(rig.pool.volume(volume).unwrap().status, VolumeStatus::Available);
    rig.check();
}

#[test]
fn two_pools_in_one_target_do_not_touch_each_other() {
    let target = MemoryTarget::new();
    let mut rigs: Vec<Rig> = (0..2).map(|n| Rig::with_target(20 + n, 6 * PIECE, target.clone())).collect();
    // The very same content in both.
    let bytes = Rng::stamp_bytes(1, 3 * PIECE as usize);
    for rig in &mut rigs {
        rig.disk().write_at(&bytes, 0).unwrap();
        rig.content[..bytes.len()].copy_from_slice(&bytes);
    }
    let backups: Vec<Backup> = rigs.iter().map(Rig::back_up).collect();
    let [one, two] = &rigs[..] else { unreachable!() };
    // The second pool takes up what the first has made.
    let found = two.pool.import_backups("t").unwrap();
    assert_eq!((found.len(), found[0].id, found[0].pool), (1, backups[0].id, one.pool.uuid()));
    assert!(two.restored(backups[0].id) == one.content);
    let refused = two.pool.delete_backup(backups[0].id);
    assert!(matches!(refused, Err(Error::Unsupported(_))), "{refused:?}");
    two.pool.forget_backup(backups[0].id).unwrap();
    one.pool.delete_backup(backups[0].id).unwrap();
    assert!(one.pool.sweep_backups("t", &mut on).unwrap().objects > 0);
    assert!(target.names("").iter().all(|n| n.contains(&two.pool.uuid().to_string())));
    assert_eq!(assert_available_are_whole(&two.pool), 1);
}

#[test]
fn a_restore_over_a_volume_is_refused_as_documented_and_changes_nothing() {
    let mut rig = Rig::new(7, 8 * PIECE);
    rig.change(10);
    let backup = rig.back_up();
    let small = rig.pool.create_volume(VolumeSpec::blank(7 * PIECE)).unwrap().id;
    let refused = rig.pool.restore_backup(backup.id, small, &mut on);
    assert!(matches!(refused, Err(Error::InvalidArgument { field: "volume", .. })), "{refused:?}");
    let less = VolumeSpec::from_backup(backup.id, 7 * PIECE);
    let refused = rig.pool.create_volume_from_backup(less, &mut on);
    assert!(matches!(refused, Err(Error::InvalidArgument { field: "size_bytes", .. })), "{refused:?}");
    let disk = rig.disk();
    let refused = rig.pool.restore_backup(backup.id, rig.volume, &mut on);
    assert!(matches!(refused, Err(Error::InvalidState { object: "volume", status: "in-use", .. })));
    drop(disk);
    let nobody = snapvol::BackupId::new(uuid::Uuid::from_u128(1));
    assert!(matches!(rig.pool.restore_backup(nobody, rig.volume, &mut on), Err(Error::NotFound { .. })));
    let no_target = rig.pool.create_backup(rig.volume, BackupSpec::new("nowhere"), &mut on);
    assert!(matches!(no_target, Err(Error::NotFound { object: "backup target", .. })));
    for bad in [spec_with(PIECE / 2), spec_with(3 * PIECE), spec().senders(0), spec().name("n".repeat(256))] {
        assert!(matches!(
            rig.pool.create_backup(rig.volume, bad, &mut on),
            Err(Error::InvalidArgument { .. })
        ));
    }
    assert_eq!(rig.pool.volume(rig.volume).unwrap().status, VolumeStatus::Available);
    assert!(read(&rig.pool, rig.volume) == rig.content);
    assert_eq!(rig.pool.list_backups(&BackupQuery::new()).unwrap().items.len(), 1);
}

fn spec_with(piece_bytes: u64) -> BackupSpec {
    spec().piece_bytes(piece_bytes)
}

#[test]
fn a_restored_volume_equals_the_backup_and_stays_shared_where_it_did_before() {
    let mut rig = Rig::new(8, 16 * PIECE);
    rig.change(20);
    let backup = rig.back_up();
    let want = rig.content.clone();
    let snapshot = rig.pool.create_snapshot(rig.volume, SnapshotSpec::new()).unwrap().id;
    let changed = [7; 4096];
    rig.disk().write_at(&changed, 0).unwrap();
    rig.target.puts();
    let mut moved = 0;
    let volume = rig.pool.restore_backup(backup.id, rig.volume, &mut |p| {
        moved = p.moved_bytes;
        ControlFlow::Continue(())
    });
    assert_eq!(volume.unwrap().status, VolumeStatus::Available);
    assert!(read(&rig.pool, rig.volume) == want);
    assert!(moved <= PIECE + 4096, "only the piece that differs was got, not {moved} bytes");
    // Into a larger volume full of something else: behind the backup it reads zero.
    let other = rig.pool.create_volume(VolumeSpec::blank(20 * PIECE)).unwrap().id;
    let disk = rig.pool.attach(other, AttachOptions::default()).unwrap();
    disk.write_at(&vec![0xAB; 20 * PIECE as usize], 0).unwrap();
    drop(disk);
    rig.pool.restore_backup(backup.id, other, &mut on).unwrap();
    let bytes = read(&rig.pool, other);
    assert!(bytes[..want.len()] == want[..] && bytes[want.len()..].iter().all(|b| *b == 0));
    let changes = rig.pool.diff(snapshot, rig.volume).unwrap().map(|c| c.unwrap());
    let data = changes.filter(|c| c.kind == snapvol::ExtentKind::Data).map(|c| c.range.end - c.range.start);
    assert!(data.sum::<u64>() <= PIECE, "the rest is shared still");
    rig.check();
}

#[test]
fn a_restore_that_fails_leaves_error_restoring_or_no_volume() {
    let mut rig = Rig::new(9, 8 * PIECE);
    rig.change(20);
    let backup = rig.back_up();
    rig.disk().write_at(&vec![5; 8 * PIECE as usize], 0).unwrap();
    // The manifest and the table are got; a piece is not.
    rig.target.fail(2, Fault::ForGood);
    let volumes = rig.pool.list_volumes(&snapvol::VolumeQuery::new()).unwrap();
    let failed = rig.pool.create_volume_from_backup(VolumeSpec::from_backup(backup.id, 8 * PIECE), &mut on);
    assert!(matches!(failed, Err(Error::Target { op: "get", .. })), "{failed:?}");
    assert_eq!(rig.pool.list_volumes(&snapvol::VolumeQuery::new()).unwrap(), volumes);
    rig.target.fail(2, Fault::ForGood);
    let failed = rig.pool.restore_backup(backup.id, rig.volume, &mut on);
    assert!(matches!(failed, Err(Error::Target { op: "get", .. })), "{failed:?}");
    rig.target.heal();
    assert_eq!(rig.pool.backup(backup.id).unwrap().status, BackupStatus::Available);
    assert_eq!(rig.pool.volume(rig.volume).unwrap().status, VolumeStatus::ErrorRestoring);
    let refused = rig.pool.attach(rig.volume, AttachOptions::default());
    assert!(matches!(refused, Err(Error::InvalidState { status: "error_restoring", .. })));
    rig.pool.delete_volume(rig.volume, Snapshots::Delete).unwrap().wait().unwrap();
    rig.check();
}

#[test]
fn statuses_are_seen_while_a_call_runs_and_refuse_what_the_documents_say() {
    let mut rig = Rig::new(10, 8 * PIECE);
    rig.change(20);
    let base = rig.back_up();
    rig.disk().write_at(&[3; 4096], 0).unwrap();
    let (pool, volume) = (rig.pool.clone(), rig.volume);
    let disk = rig.disk();
    let mut looked = 0;
    let mut look = |_: BackupProgress| {
        looked += 1;
        assert_eq!(pool.volume(volume).unwrap().status, VolumeStatus::BackingUp);
        let listed = pool.list_backups(&BackupQuery::new().volume(volume)).unwrap().items;
        assert_eq!((listed[0].status, listed[0].fail_reason.as_deref()), (BackupStatus::Creating, None));
        let snapshot = pool.snapshot(listed[0].snapshot.unwrap()).unwrap();
        assert_eq!(snapshot.status, SnapshotStatus::BackingUp);
        // I/O goes on; the backup does not see it.
        disk.write_at(&[looked; 4096], 4096).unwrap();
        let state = |e: Option<Error>| matches!(e, Some(Error::InvalidState { .. } | Error::Busy { .. }));
        assert!(state(pool.extend(volume, 9 * PIECE).err()));
        assert!(state(pool.create_snapshot(volume, SnapshotSpec::new().force(true)).err()));
        assert!(state(pool.create_backup(volume, spec(), &mut on).err()));
        assert!(state(pool.delete_volume(volume, Snapshots::Delete).err()));
        assert!(state(pool.attach(volume, AttachOptions::default()).err()));
        assert!(state(pool.delete_snapshot(snapshot.id).err()));
        assert!(state(pool.delete_backup(listed[0].id).err()));
        assert!(state(pool.verify_backup(listed[0].id, &mut on).err()));
        ControlFlow::Continue(())
    };
    let backup = pool.create_backup(volume, spec(), &mut look).unwrap();
    assert!(looked > 2);
    rig.content[..4096].fill(3);
    assert!(rig.restored(backup.id) == rig.content);
    assert_eq!(pool.volume(volume).unwrap().status, VolumeStatus::InUse);
    drop(disk);
    let mut look = |_: BackupProgress| {
        assert_eq!(pool.volume(volume).unwrap().status, VolumeStatus::RestoringBackup);
        assert_eq!(pool.backup(base.id).unwrap().status, BackupStatus::Restoring);
        let state = |e: Option<Error>| matches!(e, Some(Error::InvalidState { .. }));
        assert!(state(pool.attach(volume, AttachOptions::default()).err()));
        assert!(state(pool.delete_volume(volume, Snapshots::Delete).err()));
        assert!(state(pool.delete_backup(base.id).err()));
        // One at a time from one backup.
        let again = pool.create_volume_from_backup(VolumeSpec::from_backup(base.id, 8 * PIECE), &mut on);
        assert!(state(again.err()));
        ControlFlow::Continue(())
    };
    pool.restore_backup(base.id, volume, &mut look).unwrap();
}

#[test]
fn a_cancelled_backup_leaves_no_record_and_the_next_one_goes_on_where_it_was() {
    let mut rig = Rig::new(11, 16 * PIECE);
    rig.change(30);
    let mut steps = 0;
    let cancelled = rig.pool.create_backup(rig.volume, spec(), &mut |_| {
        steps += 1;
        if steps > 8 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(cancelled, Err(Error::Cancelled { op: "create_backup" })), "{cancelled:?}");
    assert!(rig.pool.list_backups(&BackupQuery::new()).unwrap().items.is_empty());
    assert!(rig.pool.list_snapshots(&SnapshotQuery::new()).unwrap().items.is_empty());
    assert_eq!(rig.pool.volume(rig.volume).unwrap().status, VolumeStatus::Available);
    let sent = rig.target.puts();
    assert!(!sent.is_empty());
    let backup = rig.back_up();
    let again = rig.target.puts();
    assert!(sent.iter().all(|name| !again.contains(name)), "nothing is sent twice");
    assert!(rig.restored(backup.id) == rig.content);
    rig.check();
}

#[test]
fn a_backup_is_restored_after_its_zone_got_another_name() {
    let mut rig = Rig::new(12, 4 * PIECE);
    rig.change(10);
    let backup = rig.back_up();
    let zone = rig.pool.volume(rig.volume).unwrap().zone;
    rig.pool.rename_zone(&zone, "elsewhere").unwrap();
    assert!(rig.restored(backup.id) == rig.content);
}

#[test]
fn a_sweep_beside_a_running_backup_takes_nothing_that_it_needs() {
    let mut rig = Rig::new(12, 12 * PIECE);
    rig.change(20);
    rig.back_up();
    rig.change(2);
    let mut deletions = 0;
    for steps in 0..40 {
        let pool = rig.pool.clone();
        let mut n = 0;
        let made = pool.create_backup(rig.volume, spec().full(steps % 2 == 1), &mut |_| {
            if n == steps / 2 {
                // Everything that came before goes: what the backup has not reached yet included.
                for old in
                    pool.list_backups(&BackupQuery::new().status(BackupStatus::Available)).unwrap().items
                {
                    pool.delete_backup(old.id).unwrap();
                    deletions += 1;
                }
                pool.sweep_backups("t", &mut on).unwrap();
            }
            n += 1;
            ControlFlow::Continue(())
        });
        let made = made.unwrap();
        assert!(rig.pool.verify_backup(made.id, &mut on).unwrap().is_whole(), "step {steps}");
        assert!(rig.restored(made.id) == rig.content);
        rig.change(1);
    }
    assert!(deletions > 10, "{deletions}");
    // The other way round: a backup that is made while a sweep runs, and is over before the sweep is.
    rig.change(3);
    rig.back_up();
    for old in rig.pool.list_backups(&BackupQuery::new()).unwrap().items {
        rig.pool.delete_backup(old.id).unwrap();
    }
    let pool = rig.pool.clone();
    let mut made = None;
    pool.sweep_backups("t", &mut |_| {
        made.get_or_insert_with(|| rig.back_up());
        let again = pool.sweep_backups("t", &mut on);
        assert!(matches!(again, Err(Error::Busy { .. })));
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(rig.pool.verify_backup(made.unwrap().id, &mut on).unwrap().is_whole());
}

/// The calls of each operation fail one after another; whatever is available then is whole, and the operation
/// succeeds when it is called again.
#[test]
fn a_target_that_fails_at_any_call_harms_nothing() {
    let mut cases = 0;
    for fault in [Fault::Once, Fault::AfterEffect, Fault::ForGood] {
        for op in 0..4 {
            for call in 0.. {
                let mut rig = Rig::new(13, 5 * PIECE);
                rig.change(8);
                let first = rig.back_up();
                let point = rig.content.clone();
                rig.change(2);
                let second = (op > 0).then(|| rig.back_up().id);
                if op == 3 {
                    rig.pool.delete_backup(first.id).unwrap();
                }
                rig.target.fail(call, fault);
                let run = |rig: &Rig| match op {
                    0 => rig.pool.create_backup(rig.volume, spec(), &mut on).map(|_| ()),
                    1 => rig.pool.create_backup(rig.volume, spec().full(true), &mut on).map(|_| ()),
                    2 => rig.pool.delete_backup(first.id),
                    _ => rig.pool.sweep_backups("t", &mut on).map(|_| ()),
                };
                let done = run(&rig);
                let calls = rig.target.heal();
                if done.is_ok() {
                    assert!(calls <= call, "an error was swallowed");
                    break;
                }
                cases += 1;
                assert!(matches!(done, Err(Error::Target { .. })), "{done:?}");
                if op < 2 {
                    let listed = rig.pool.list_backups(&BackupQuery::new().limit(1)).unwrap().items.remove(0);
                    assert_eq!(listed.status, BackupStatus::Error);
                    assert!(listed.fail_reason.unwrap().contains("planted"));
                    rig.pool.delete_backup(listed.id).unwrap();
                }
                assert_available_are_whole(&rig.pool);
                if op == 0 {
                    assert!(rig.restored(first.id) == point);
                }
                run(&rig).unwrap();
                rig.pool.sweep_backups("t", &mut on).unwrap();
                assert_available_are_whole(&rig.pool);
                if let Some(second) = second {
                    assert!(rig.restored(second) == rig.content);
                }
            }
        }
    }
    println!("{cases} failures");
    assert!(cases > 100);
}

/// The process ends at any call of the target, and the target's host loses what was not synced.
#[test]
fn a_crash_at_any_call_leaves_backups_that_are_whole_or_say_that_they_are_not() {
    let seed = seed("crash", 14);
    let mut cases = 0;
    for op in 0..4 {
        for call in 0.. {
            let mut rig = Rig::new(seed, 9 * PIECE);
            rig.change(20);
            let first = rig.back_up();
            rig.change(2);
            if op == 2 {
                rig.pool.delete_backup(first.id).unwrap();
            }
            rig.target.fail(call, Fault::ForGood);
            // The pool as it is at that moment: whatever the process does afterwards has not happened.
            let frozen: Arc<Mutex<Option<Vec<u8>>>> = Arc::default();
            let (device, into) = (rig.device.share(), Arc::clone(&frozen));
            rig.target.at_failure(move || *into.lock().unwrap() = Some(image(&device)));
            let done = match op {
                0 => rig.pool.create_backup(rig.volume, spec(), &mut on).map(|_| ()),
                1 => rig.pool.delete_backup(first.id),
                2 => rig.pool.sweep_backups("t", &mut on).map(|_| ()),
                _ => rig.pool.restore_backup(first.id, rig.volume, &mut on).map(|_| ()),
            };
            let calls = rig.target.heal();
            if let Some(image) = frozen.lock().unwrap().take() {
                rig.device = MemoryDevice::from_bytes(image);
            }
            rig.target.lose_power(&mut Rng::new(seed + call));
            rig.reopen();
            cases += 1;
            assert_available_are_whole(&rig.pool);
            let volume = rig.pool.volume(rig.volume).unwrap();
            assert!(matches!(volume.status, VolumeStatus::Available | VolumeStatus::ErrorRestoring));
            if op != 3 {
                assert!(read(&rig.pool, rig.volume) == rig.content);
            } else if volume.status == VolumeStatus::Available && done.is_err() {
                assert!(read(&rig.pool, rig.volume) == rig.content, "the restore had not begun");
            }
            for backup in rig.pool.list_backups(&BackupQuery::new()).unwrap().items {
                match backup.status {
                    BackupStatus::Available => {}
                    BackupStatus::Error => rig.pool.delete_backup(backup.id).unwrap(),
                    other => panic!("{other} after a crash"),
                }
            }
            let snapshots = rig.pool.list_snapshots(&SnapshotQuery::new()).unwrap().items;
            assert!(snapshots.len() <= 1, "{snapshots:?}");
            assert!(snapshots.iter().all(|s| s.status == SnapshotStatus::Available));
            if volume.status == VolumeStatus::Available {
                let content = read(&rig.pool, rig.volume);
                let next = rig.back_up();
                assert!(rig.restored(next.id) == content);
            }
            rig.pool.sweep_backups("t", &mut on).unwrap();
            assert_available_are_whole(&rig.pool);
            rig.check();
            if done.is_ok() {
                assert!(calls <= call);
                break;
            }
        }
    }
    println!("{cases} crashes");
    assert!(cases > 30);
}

#[test]
fn listings_filter_page_and_count() {
    let mut rig = Rig::new(15, 4 * PIECE);
    rig.change(5);
    let other = rig.pool.create_volume(VolumeSpec::blank(PIECE)).unwrap().id;
    let mut ids = Vec::new();
    for n in 0..5 {
        let volume = if n == 2 { other } else { rig.volume };
        let spec = spec().name(format!("n{}", n % 2)).description("d");
        ids.push(rig.pool.create_backup(volume, spec, &mut on).unwrap().id);
    }
    let list = |query: BackupQuery| {
        let page = rig.pool.list_backups(&query.with_total(true)).unwrap();
        (
            page.items.iter().map(|b| ids.iter().position(|id| *id == b.id).unwrap()).collect::<Vec<_>>(),
            page.next,
            page.total.unwrap(),
        )
    };
    assert_eq!(list(BackupQuery::new()), (vec![4, 3, 2, 1, 0], None, 5));
    assert_eq!(list(BackupQuery::new().limit(2)), (vec![4, 3], Some(ids[3]), 5));
    assert_eq!(list(BackupQuery::new().marker(ids[3]).limit(3)), (vec![2, 1, 0], None, 5));
    assert_eq!(list(BackupQuery::new().offset(4)), (vec![0], None, 5));
    assert_eq!(list(BackupQuery::new().volume(other)), (vec![2], None, 1));
    assert_eq!(list(BackupQuery::new().name("n1").volume(rig.volume)), (vec![3, 1], None, 2));
    assert_eq!(list(BackupQuery::new().status(BackupStatus::Error)), (vec![], None, 0));
    assert!(matches!(
        rig.pool.list_backups(&BackupQuery::new().limit(0)),
        Err(Error::InvalidArgument { .. })
    ));
    let taken = rig.pool.create_backup(other, spec().id(ids[0]), &mut on);
    assert!(matches!(taken, Err(Error::AlreadyExists { object: "backup", .. })));
}

#[test]
fn a_folder_keeps_backups_across_openings_with_several_senders() {
    let dir = tempfile::tempdir().unwrap();
    let folder = || Arc::new(LocalFolder::open(dir.path()).unwrap());
    let mut rig = Rig::new(16, 40 * PIECE);
    rig.pool.connect_backup_target("t", folder()).unwrap();
    rig.change(60);
    let many = |rig: &Rig| rig.pool.create_backup(rig.volume, spec().senders(8), &mut on).unwrap();
    let first = many(&rig);
    let point = rig.content.clone();
    rig.change(5);
    rig.reopen();
    rig.pool.connect_backup_target("t", folder()).unwrap();
    let second = many(&rig);
    assert!(second.is_incremental);
    assert!(rig.restored(first.id) == point && rig.restored(second.id) == rig.content);
    rig.pool.delete_backup(first.id).unwrap();
    let swept = rig.pool.sweep_backups("t", &mut on).unwrap();
    assert_eq!(swept.kept, second.object_count - 1);
    assert!(rig.pool.verify_backup(second.id, &mut on).unwrap().is_whole());
    assert_eq!(std::fs::read_dir(dir.path().join(".partial")).unwrap().count(), 0);
}
