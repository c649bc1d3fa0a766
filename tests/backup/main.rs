//! Backups: what they hold, what one may do to another, and what is left when something fails.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod deleting;
mod failing;
mod making;
mod restoring;

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
