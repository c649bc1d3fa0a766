//! Every operation on a pool that is large enough for what it lists, walks and writes to be long: each long
//! allocation is refused, once and from there on. The call says so or does without, and the pool is sound.

use std::io::{self, Read};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use snapvol::backup::{BackupSpec, LocalFolder};
use snapvol::device::MemoryDevice;
use snapvol::image::{ExportOptions, ImageFormat, RawImage};
use snapvol::{
    AttachOptions, Background, CheckOptions, CreateOptions, Disk, Error, OpenOptions, Pool, ReceiveOptions,
    Result, SendOptions, SnapshotId, SnapshotQuery, SnapshotSpec, Snapshots, VolumeId, VolumeQuery,
    VolumeSpec,
};

use crate::scarce::{Own, plenty, refuse, relent, scarce};

const BLOCK: usize = 4096;
/// Of the large volume: more than 225 of the smallest chunks, which is where tables of chunks become long.
const BLOCKS: usize = 16_000;
/// Snapshots of one volume, and volumes beside it.
const MANY: usize = 1_800;
/// So many of an operation's long allocations are refused, unless `SNAPVOL_FULL=1` asks for all: those that copy
/// in pieces make the same ones over and over.
const PLACES: usize = 12;

fn options() -> CreateOptions {
    CreateOptions::new()
        .limit_bytes(1 << 30)
        .blocks_per_chunk(64)
        .log_bytes(4 << 20)
        .cache_bytes(16 << 20)
        .background(Background::Manual)
}

fn open(medium: &MemoryDevice) -> Result<Pool> {
    let options = OpenOptions::new().cache_bytes(16 << 20).background(Background::Manual);
    Pool::open_on(Own(medium.share()), options)
}

/// A pool at rest and the same as a kill left it, with what is in it.
struct Prepared {
    closed: Vec<u8>,
    killed: Vec<u8>,
    big: VolumeId,
    many: VolumeId,
    big_snapshot: SnapshotId,
    first: SnapshotId,
    last: SnapshotId,
}

fn prepare() -> Prepared {
    let medium = MemoryDevice::new();
    let pool = Pool::create_on(medium.share(), options()).unwrap();
    let attach = |id| pool.attach(id, AttachOptions::default()).unwrap();
    let big = pool.create_volume(VolumeSpec::blank((BLOCKS * BLOCK) as u64)).unwrap().id;
    let disk = attach(big);
    for n in 0..BLOCKS / 1000 {
        disk.write_at(&vec![n as u8 + 1; 1000 * BLOCK], (n * 1000 * BLOCK) as u64).unwrap();
    }
    let snapshot = |id| pool.create_snapshot(id, SnapshotSpec::new().force(true)).unwrap().id;
    let big_snapshot = snapshot(big);
    let many = pool.create_volume(VolumeSpec::blank(1 << 20)).unwrap().id;
    let small = attach(many);
    let snapshots: Vec<SnapshotId> = (0..MANY)
        .map(|n| {
            small.write_at(&[n as u8; BLOCK], (n % 256 * BLOCK) as u64).unwrap();
            snapshot(many)
        })
        .collect();
    let beside: Vec<VolumeId> =
        (0..MANY).map(|_| pool.create_volume(VolumeSpec::blank(1 << 20)).unwrap().id).collect();
    pool.checkpoint().unwrap();
    while pool.step(1024).unwrap() {}
    // A long log.
    for n in 0..4_000 {
        disk.write_at(&[n as u8; BLOCK], (n * 3 * BLOCK) as u64).unwrap();
    }
    for id in &beside[..900] {
        attach(*id).write_at(&[1; BLOCK], 0).unwrap();
    }
    disk.flush().unwrap();
    drop((disk, small));
    let killed = medium.snapshot_bytes();
    pool.close().unwrap();
    let (first, last) = (snapshots[0], snapshots[MANY - 1]);
    Prepared { closed: medium.snapshot_bytes(), killed, big, many, big_snapshot, first, last }
}

fn on<T>(_: T) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// The big volume is changed in every fourth block, so that each is a change of its own.
fn scattered(pool: &Pool, p: &Prepared, change: fn(&Disk, u64) -> Result<()>) -> Result<()> {
    let disk = pool.attach(p.big, AttachOptions::default())?;
    for n in 0..BLOCKS / 4 {
        change(&disk, (n * 4 * BLOCK) as u64)?;
    }
    pool.flush()?;
    pool.checkpoint()
}

/// A delete, with everything that brings its space back.
fn gone(pool: &Pool, id: VolumeId) -> Result<()> {
    pool.delete_volume(id, Snapshots::Delete)?.wait()?;
    pool.checkpoint()
}

type Operation = fn(&Pool, &Prepared) -> Result<()>;

const OPERATIONS: &[(&str, Operation)] = &[
    ("write", |pool, p| {
        let disk = pool.attach(p.big, AttachOptions::default())?;
        disk.write_at(&plenty(|| vec![9; 8 << 20]), 3 * BLOCK as u64 + 100)
    }),
    ("read", |pool, p| {
        let mut bytes = plenty(|| vec![0; 8 << 20]);
        pool.attach_snapshot(p.big_snapshot)?.read_at(&mut bytes, 100)
    }),
    ("scattered writes", |pool, p| scattered(pool, p, |disk, at| disk.write_at(&[7; BLOCK], at))),
    ("parts of blocks", |pool, p| scattered(pool, p, |disk, at| disk.write_at(&[7; 10], at + 5))),
    ("zeroes", |pool, p| scattered(pool, p, |disk, at| disk.write_zeroes(at, BLOCK as u64))),
    ("discards", |pool, p| scattered(pool, p, |disk, at| disk.discard(at, BLOCK as u64))),
    ("extents", |pool, p| {
        let disk = pool.attach(p.big, AttachOptions::default())?;
        disk.extents(0..disk.size_bytes()).try_for_each(|extent| extent.map(drop))
    }),
    ("list volumes, write each", |pool, _| {
        for offset in [0, 1000] {
            let page = pool.list_volumes(&VolumeQuery::new().limit(1000).offset(offset).with_total(true))?;
            for volume in &page.items {
                pool.attach(volume.id, AttachOptions::default())?.write_at(&[3; BLOCK], 0)?;
            }
        }
        pool.checkpoint()
    }),
    ("list snapshots", |pool, _| pool.list_snapshots(&SnapshotQuery::new().limit(1000)).map(drop)),
    ("list in another order", |pool, _| {
        use snapvol::{SortKey, SortOrder};
        let by_name = SnapshotQuery::new().limit(1000).sort(SortKey::Name, SortOrder::Ascending);
        pool.list_snapshots(&by_name).map(drop)
    }),
    ("snapshot", |pool, p| pool.create_snapshot(p.big, SnapshotSpec::new()).map(drop)),
    ("clone", |pool, p| pool.create_volume(VolumeSpec::from_snapshot(p.last)).map(drop)),
    ("batch", |pool, p| {
        pool.batch(|batch| {
            batch.create_volumes(VolumeSpec::blank(BLOCK as u64), 100)?;
            batch.create_snapshot(p.many, SnapshotSpec::new()).map(drop)
        })
    }),
    ("rollback", |pool, p| {
        pool.rollback(p.big_snapshot)?;
        while pool.step(1024)? {}
        pool.checkpoint()
    }),
    ("delete snapshot", |pool, p| {
        pool.delete_snapshot(p.first)?.wait()?;
        pool.checkpoint()
    }),
    ("delete with many snapshots", |pool, p| gone(pool, p.many)),
    ("delete with many blocks", |pool, p| gone(pool, p.big)),
    ("plan a delete", |pool, p| pool.plan_delete(p.many, Snapshots::Delete).map(drop)),
    ("extend", |pool, p| pool.extend(p.big, (2 * BLOCKS * BLOCK) as u64).map(drop)),
    ("space", |pool, p| {
        pool.space()?;
        pool.volume_space(p.big)?;
        pool.snapshot_space(p.big_snapshot).map(drop)
    }),
    ("diff", |pool, p| pool.diff(p.big_snapshot, p.big)?.try_for_each(|change| change.map(drop))),
    ("fingerprint", |pool, p| pool.fingerprint(p.big_snapshot).map(drop)),
    ("check", |pool, _| pool.check(CheckOptions::new(), &mut |_| {}).map(drop)),
    ("scrub", |pool, _| pool.scrub(CheckOptions::new(), &mut |_| {}).map(drop)),
    ("send and receive", |pool, p| {
        let mut stream = pool.send(p.big_snapshot, SendOptions::new())?;
        let mut bytes = plenty(|| Vec::with_capacity(80 << 20));
        if let Err(error) = stream.read_to_end(&mut bytes) {
            // What the pool said is the source of what the reader is told.
            assert!(error.to_string().contains("memory"), "{error:?}");
            return Err(Error::OutOfMemory { bytes: 0 });
        }
        let there = plenty(|| Pool::create_in_memory(options()).unwrap());
        there.receive(&bytes[..], ReceiveOptions::new(), on).map(drop)
    }),
    ("export and import", |pool, p| {
        let file = plenty(|| tempfile::tempfile().unwrap());
        pool.export(p.big_snapshot, &file, ExportOptions::new(ImageFormat::Raw), on)?;
        pool.import(RawImage::open(file)?, VolumeSpec::image(), on).map(drop)
    }),
    ("export as qcow2", |pool, p| {
        let file = plenty(|| tempfile::tempfile().unwrap());
        pool.export(p.big_snapshot, &file, ExportOptions::new(ImageFormat::Qcow2), on).map(drop)
    }),
    ("volume over a base", |pool, _| {
        let image = plenty(|| {
            let file = tempfile::tempfile().unwrap();
            io::Write::write_all(&mut &file, &vec![5; 16 << 20]).unwrap();
            file
        });
        let made = pool.create_volume_over(RawImage::open(image)?, VolumeSpec::image())?;
        let disk = pool.attach(made.id, AttachOptions::default())?;
        disk.write_at(&[1; 100], 50)?;
        disk.read_at(&mut plenty(|| vec![0; 8 << 20]), 0)?;
        let base = pool.base_of(made.id)?.unwrap();
        pool.hydrate(base, on)
    }),
    ("backup and restore", |pool, p| {
        let folder = plenty(|| {
            let folder = tempfile::tempdir().unwrap();
            let target = LocalFolder::open(folder.path()).unwrap();
            pool.connect_backup_target("t", Arc::new(target)).unwrap();
            folder
        });
        let backup = pool.create_backup(p.big, BackupSpec::new("t").piece_bytes(256 << 10), &mut on)?;
        pool.verify_backup(backup.id, &mut on)?;
        let spec = VolumeSpec::from_backup(backup.id, backup.size_bytes);
        pool.create_volume_from_backup(spec, &mut on)?;
        pool.restore_backup(backup.id, p.big, &mut on)?;
        pool.delete_backup(backup.id)?;
        pool.sweep_backups("t", &mut on)?;
        plenty(|| drop(folder));
        Ok(())
    }),
];

/// What a call may say when there was no memory for it.
fn is_refusal(error: &Error) -> bool {
    match error {
        Error::OutOfMemory { .. } | Error::Poisoned => true,
        Error::Io { source, .. } | Error::Target { source, .. } => {
            source.kind() == io::ErrorKind::OutOfMemory
        }
        _ => false,
    }
}

/// Runs one operation with these allocations refused. Says how many there were, and whether it failed.
fn run(p: &Prepared, what: &str, operation: Operation, numbers: std::ops::Range<usize>) -> (usize, bool) {
    let story = format!("{what}, refused {numbers:?}");
    let medium = MemoryDevice::from_bytes(p.closed.clone());
    let pool = open(&medium).unwrap();
    refuse(numbers);
    let done = scarce(|| operation(&pool, p));
    let count = relent();
    if let Err(error) = &done {
        assert!(is_refusal(error), "{story}: {error:?}");
    }
    // With memory again it goes on, unless a commit had begun.
    match pool.check(CheckOptions::new(), &mut |_| {}) {
        Ok(report) => assert!(report.is_clean(), "{story}: {report:?}"),
        Err(error) => assert!(done.is_err() && matches!(error, Error::Poisoned), "{story}: {error:?}"),
    }
    drop(pool);
    sound(&medium, p, &story);
    (count, done.is_err())
}

fn sound(medium: &MemoryDevice, p: &Prepared, story: &str) {
    let pool = open(medium).unwrap_or_else(|e| panic!("{story}: {e:?}"));
    let report = pool.check(CheckOptions::new(), &mut |_| {}).unwrap();
    assert!(report.is_clean(), "{story}: {report:?}");
    // Of the snapshots nothing may ever change.
    if let Ok(disk) = pool.attach_snapshot(p.big_snapshot) {
        let mut bytes = vec![0; BLOCK];
        for n in (0..BLOCKS).step_by(777) {
            disk.read_at(&mut bytes, (n * BLOCK) as u64).unwrap();
            assert!(bytes.iter().all(|byte| *byte == (n / 1000) as u8 + 1), "{story}: block {n}");
        }
    }
}

/// Opening, of a closed pool or a killed one.
fn run_open(image: &[u8], p: &Prepared, what: &str, numbers: std::ops::Range<usize>) -> (usize, bool) {
    let story = format!("{what}, refused {numbers:?}");
    let medium = MemoryDevice::from_bytes(image.to_vec());
    refuse(numbers);
    let opened = scarce(|| open(&medium));
    let count = relent();
    let failed = opened.as_ref().err().map(|e| assert!(is_refusal(e), "{story}: {e:?}")).is_some();
    drop(opened);
    sound(&medium, p, &story);
    (count, failed)
}

#[test]
fn every_operation_may_be_refused_its_long_allocations_and_the_pool_is_sound() {
    let p = prepare();
    let all = std::env::var("SNAPVOL_FULL").is_ok_and(|v| v == "1");
    type Run<'a> = Box<dyn Fn(std::ops::Range<usize>) -> (usize, bool) + Sync + 'a>;
    let mut runs: Vec<(&str, Run<'_>)> = vec![
        ("open", Box::new(|numbers| run_open(&p.closed, &p, "open", numbers))),
        ("recovery", Box::new(|numbers| run_open(&p.killed, &p, "recovery", numbers))),
    ];
    for (what, operation) in OPERATIONS {
        let p = &p;
        runs.push((what, Box::new(move |numbers| run(p, what, *operation, numbers))));
    }
    let (next, cases) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || {
        while let Some((what, run)) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (count, failed) = run(0..0);
            assert!(!failed, "{what}");
            let step = if all { 1 } else { count.div_ceil(PLACES).max(1) };
            let mut failures = 0;
            for n in (0..count).step_by(step) {
                for to in [n + 1, usize::MAX] {
                    failures += usize::from(run(n..to).1);
                    cases.fetch_add(1, Ordering::Relaxed);
                }
            }
            println!("{what}: {count} long allocations, {failures} refusals told");
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(work);
        }
    });
    println!("{} operations, {} refusals", runs.len(), cases.into_inner());
}
