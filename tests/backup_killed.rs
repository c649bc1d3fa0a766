//! A process that makes, deletes and sweeps backups in a local folder is killed (SIGKILL) at moments of chance. Then
//! every backup that is listed as available is whole and restores what its volume held, and the work goes on.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

#[path = "common/rng.rs"]
mod rng;

use std::io::{BufRead, BufReader, Write};
use std::ops::ControlFlow;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use rng::{Rng, seed};
use snapvol::backup::{BackupProgress, BackupSpec, LocalFolder, MIN_PIECE_BYTES};
use snapvol::{
    AttachOptions, BackupQuery, BackupStatus, CheckOptions, CreateOptions, OpenOptions, Pool, SnapshotQuery,
    SnapshotStatus, VolumeId, VolumeQuery, VolumeSpec, VolumeStatus,
};

const KILLS: usize = 30;
/// Backups that a process keeps at once.
const MOST: usize = 5;
const SIZE: u64 = 24 * MIN_PIECE_BYTES;

fn on(_: BackupProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// The pool and the folder of a test.
fn open(dir: &Path) -> (Pool, VolumeId) {
    let pool = Pool::open(dir.join("pool"), OpenOptions::new()).unwrap();
    let folder = LocalFolder::open(dir.join("backups")).unwrap();
    pool.connect_backup_target("local", Arc::new(folder)).unwrap();
    let volume = pool.list_volumes(&VolumeQuery::new().name("v")).unwrap().items[0].id;
    (pool, volume)
}

fn content(pool: &Pool, volume: VolumeId) -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    pool.attach(volume, AttachOptions::new()).unwrap().read_at(&mut bytes, 0).unwrap();
    bytes
}

/// What tells contents apart: 64 bits of FNV-1a.
fn print_of(bytes: &[u8]) -> String {
    let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    format!("{:016x}", bytes.iter().fold(0xcbf2_9ce4_8422_2325, fnv))
}

/// Not a test of its own: what the process does that is going to be killed. Returns at once in any other.
#[test]
fn child_works_until_it_is_killed() {
    let Ok(order) = std::env::var("SNAPVOL_BACKUP_CHILD") else { return };
    let (dir, seed) = order.split_once('|').unwrap();
    let mut rng = Rng::new(seed.parse().unwrap());
    let (pool, volume) = open(Path::new(dir));
    let mut out = std::io::stdout();
    writeln!(out, "\nopen").unwrap();
    let mut held = content(&pool, volume);
    for n in 0u64.. {
        let all = pool.list_backups(&BackupQuery::new()).unwrap().items;
        let done = match rng.below(10) {
            0..6 if all.len() < MOST => {
                {
                    let disk = pool.attach(volume, AttachOptions::new()).unwrap();
                    for _ in 0..rng.below(6) {
                        let at = rng.below(SIZE / 4096) as usize * 4096;
                        // Some of it is the same as elsewhere, some is nothing.
                        let block = match rng.below(4) {
                            0 => vec![0; 4096],
                            1 => vec![7; 4096],
                            _ => Rng::stamp_bytes(rng.next(), 4096),
                        };
                        disk.write_at(&block, at as u64).unwrap();
                        held[at..at + 4096].copy_from_slice(&block);
                    }
                }
                // What the backup must restore is told in its own description.
                let spec = BackupSpec::new("local").piece_bytes(MIN_PIECE_BYTES).description(print_of(&held));
                let spec = spec.full(rng.one_in(4)).senders(1 + rng.below(4) as usize);
                pool.create_backup(volume, spec, &mut on).unwrap().id.to_string()
            }
            0..9 if !all.is_empty() => {
                pool.delete_backup(all[rng.below(all.len() as u64) as usize].id).unwrap();
                "deleted".into()
            }
            _ => format!("{} swept", pool.sweep_backups("local", &mut on).unwrap().objects),
        };
        writeln!(out, "{n} {done}").unwrap();
    }
}

/// Lets a process work, and kills it. Returns the backups that it was told to be durable.
fn run_and_kill(dir: &Path, rng: &mut Rng) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_works_until_it_is_killed", "--nocapture", "--test-threads=1"])
        .env("SNAPVOL_BACKUP_CHILD", format!("{}|{}", dir.display(), rng.next()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    while lines.next().expect("the process opens the pool").unwrap() != "open" {}
    let mut told = Vec::new();
    for _ in 0..rng.below(12) {
        told.push(lines.next().expect("the process goes on until it is killed").unwrap());
    }
    for _ in 0..rng.below(3_000_000) {
        std::hint::spin_loop();
    }
    child.kill().unwrap();
    told.extend(lines.map_while(Result::ok));
    assert_eq!(child.wait().unwrap().signal(), Some(9), "not by our hand");
    told
}

#[test]
fn whatever_a_killed_process_leaves_is_whole_or_says_that_it_is_not() {
    let mut rng = Rng::new(seed("backup_killed", 21));
    let dir = tempfile::tempdir().unwrap();
    let pool = Pool::create(dir.path().join("pool"), CreateOptions::new().log_bytes(1 << 20)).unwrap();
    let volume = pool.create_volume(VolumeSpec::blank(SIZE).name("v")).unwrap().id;
    pool.close().unwrap();
    let (mut steps, mut cut_off, mut restored) = (0, 0, 0);
    for kill in 0..KILLS {
        let before: Vec<String> = {
            let (pool, _) = open(dir.path());
            let all = pool.list_backups(&BackupQuery::new()).unwrap().items;
            all.iter().map(|backup| backup.id.to_string()).collect()
        };
        let told = run_and_kill(dir.path(), &mut rng);
        steps += told.len();
        let (pool, _) = open(dir.path());
        // A backup that was answered is there, unless it was deleted again.
        let listed = pool.list_backups(&BackupQuery::new()).unwrap().items;
        let made = told.iter().filter_map(|line| line.split(' ').nth(1)).filter(|word| word.len() == 36);
        let deleted = told.iter().filter(|line| line.ends_with("deleted")).count();
        let known = before.iter().map(String::as_str).chain(made);
        let lost = known.filter(|id| listed.iter().all(|b| b.id.to_string() != **id)).count();
        // One deletion more may have ended untold.
        assert!(
            lost == deleted || lost == deleted + 1,
            "kill {kill}: {lost} are gone, {deleted} were deleted: {told:?}"
        );
        for backup in listed {
            match backup.status {
                BackupStatus::Available => {
                    let report = pool.verify_backup(backup.id, &mut on).unwrap();
                    assert!(report.is_whole(), "kill {kill}: {report:?}");
                    let spec = VolumeSpec::from_backup(backup.id, SIZE);
                    let copy = pool.create_volume_from_backup(spec, &mut on).unwrap().id;
                    assert_eq!(Some(print_of(&content(&pool, copy))), backup.description, "kill {kill}");
                    drop(pool.delete_volume(copy, snapvol::Snapshots::Refuse).unwrap());
                    restored += 1;
                }
                BackupStatus::Error => {
                    cut_off += 1;
                    pool.delete_backup(backup.id).unwrap();
                }
                other => panic!("kill {kill}: {other} after a crash"),
            }
        }
        assert_eq!(pool.volume(volume).unwrap().status, VolumeStatus::Available);
        let snapshots = pool.list_snapshots(&SnapshotQuery::new()).unwrap().items;
        assert!(snapshots.len() <= 1 && snapshots.iter().all(|s| s.status == SnapshotStatus::Available));
        // What nobody needs goes, and what is needed stays.
        if kill % 4 == 3 {
            pool.sweep_backups("local", &mut on).unwrap();
            for backup in pool.list_backups(&BackupQuery::new()).unwrap().items {
                assert!(pool.verify_backup(backup.id, &mut on).unwrap().is_whole(), "kill {kill}, swept");
            }
        }
        assert_eq!(std::fs::read_dir(dir.path().join("backups/.partial")).unwrap().count(), 0);
        assert!(pool.check(CheckOptions::default(), &mut |_| {}).unwrap().is_clean());
        // Some are closed, some are left as a crash would.
        if kill % 2 == 0 {
            pool.close().unwrap();
        }
    }
    println!("{KILLS} killed after {steps} steps: {restored} restored, {cut_off} cut off");
    assert!(steps > 2 * KILLS && restored > KILLS && cut_off > 3, "the kills meet nothing");
}
