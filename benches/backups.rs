//! How fast are backups, and how large should their pieces be? A volume in memory is backed up into memory, so that
//! what is measured is this crate's own work, and into a local folder; each row is one size of piece.
//!
//! `cargo bench --bench backups [-- FOLDER]`; without a folder one for temporary files is used. MiB/s are of the
//! volume: an incremental backup and a restore over a volume that is nearly the same pass most of it by.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use snapvol::backup::{BackupProgress, BackupSpec, BackupTarget, Listed, LocalFolder};
use snapvol::{AttachOptions, CreateOptions, Pool, VolumeId, VolumeSpec};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 512 * MIB;
const BLOCK: u64 = 4096;
/// Blocks that change between two backups: one of a hundred, each by itself.
const CHANGED: u64 = SIZE / BLOCK / 100;
const ROUNDS: u64 = 5;

/// Objects in memory.
#[derive(Default)]
struct Memory(Mutex<BTreeMap<String, Vec<u8>>>);

impl BackupTarget for Memory {
    fn put(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap().insert(name.into(), bytes.into());
        Ok(())
    }
    fn get(&self, name: &str, _most_bytes: u64) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.lock().unwrap().get(name).cloned())
    }
    fn list(&self, prefix: &str, after: Option<&str>) -> io::Result<Vec<Listed>> {
        let all = self.0.lock().unwrap();
        let behind =
            all.range(after.unwrap_or(prefix).to_owned()..).filter(|(name, _)| Some(name.as_str()) != after);
        let mine = behind.take_while(|(name, _)| name.starts_with(prefix)).take(4096);
        Ok(mine.map(|(name, bytes)| Listed { name: name.clone(), len: bytes.len() as u64 }).collect())
    }
    fn delete(&self, name: &str) -> io::Result<()> {
        self.0.lock().unwrap().remove(name);
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// What one size of piece costs. Seconds are the median of the rounds; the full backup happens once.
struct Row {
    full: f64,
    incremental: f64,
    sent_mib: f64,
    verify: f64,
    restore: f64,
    over: f64,
    objects: u64,
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn timed<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let begin = Instant::now();
    let value = work();
    (begin.elapsed().as_secs_f64(), value)
}

fn on(_: BackupProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn change(pool: &Pool, volume: VolumeId, rng: &mut fastrand::Rng) {
    let disk = pool.attach(volume, AttachOptions::new()).unwrap();
    let mut block = [0; BLOCK as usize];
    for _ in 0..CHANGED {
        rng.fill(&mut block);
        disk.write_at(&block, rng.u64(0..SIZE / BLOCK) * BLOCK).unwrap();
    }
    disk.flush().unwrap();
}

fn row(target: Arc<dyn BackupTarget>, piece_bytes: u64) -> Row {
    let mut rng = fastrand::Rng::with_seed(7);
    let pool = Pool::create_in_memory(CreateOptions::new().limit_bytes(4 << 30)).unwrap();
    let volume = pool.create_volume(VolumeSpec::blank(SIZE)).unwrap().id;
    {
        let disk = pool.attach(volume, AttachOptions::new()).unwrap();
        let mut piece = vec![0; MIB as usize];
        for at in (0..SIZE).step_by(MIB as usize) {
            rng.fill(&mut piece);
            disk.write_at(&piece, at).unwrap();
        }
    }
    pool.connect_backup_target("t", target).unwrap();
    let back_up = || {
        let mut sent = 0;
        let spec = BackupSpec::new("t").piece_bytes(piece_bytes);
        let made = pool.create_backup(volume, spec, &mut |progress: BackupProgress| {
            sent = progress.moved_bytes;
            ControlFlow::Continue(())
        });
        (made.unwrap(), sent)
    };
    let (full, (first, _)) = timed(back_up);
    let [mut incremental, mut verify, mut restore, mut over] = [const { Vec::new() }; 4];
    let (mut sent_mib, mut newest) = (0.0, first.clone());
    for _ in 0..ROUNDS {
        change(&pool, volume, &mut rng);
        let (seconds, (made, sent)) = timed(back_up);
        assert!(made.is_incremental);
        incremental.push(seconds);
        sent_mib = sent as f64 / MIB as f64;
        verify.push(timed(|| assert!(pool.verify_backup(made.id, &mut on).unwrap().is_whole())).0);
        let spec = VolumeSpec::from_backup(made.id, SIZE);
        let (seconds, copy) = timed(|| pool.create_volume_from_backup(spec, &mut on).unwrap().id);
        restore.push(seconds);
        // Back to the one before, of which one block of a hundred differs.
        over.push(timed(|| pool.restore_backup(newest.id, copy, &mut on).unwrap()).0);
        pool.delete_volume(copy, snapvol::Snapshots::Refuse).unwrap().wait().unwrap();
        newest = made;
    }
    let [incremental, verify, restore, over] = [incremental, verify, restore, over].map(median);
    Row { full, incremental, sent_mib, verify, restore, over, objects: first.object_count }
}

fn main() {
    let folder = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let speed = |seconds: f64| (SIZE / MIB) as f64 / seconds;
    println!("{} MiB of random bytes; {CHANGED} blocks of 4 KiB change between backups", SIZE / MIB);
    println!(
        "| target | piece KiB | objects | full MiB/s | incremental MiB/s | sent MiB | verify MiB/s | \
         restore MiB/s | over a volume MiB/s |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for name in ["memory", "folder"] {
        for piece_kib in [64, 256, 1024, 4096] {
            let dir = match &folder {
                Some(path) => tempfile::tempdir_in(path),
                None => tempfile::tempdir(),
            };
            let dir = dir.unwrap();
            let target: Arc<dyn BackupTarget> = match name {
                "memory" => Arc::new(Memory::default()),
                _ => Arc::new(LocalFolder::open(dir.path()).unwrap()),
            };
            let row = row(target, piece_kib << 10);
            println!(
                "| {name} | {piece_kib} | {} | {:.0} | {:.0} | {:.1} | {:.0} | {:.0} | {:.0} |",
                row.objects,
                speed(row.full),
                speed(row.incremental),
                row.sent_mib,
                speed(row.verify),
                speed(row.restore),
                speed(row.over)
            );
        }
    }
}
