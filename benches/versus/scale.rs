//! Size: what opening, memory, metadata and checkpoints cost as pools, volumes and their numbers grow.
//!
//! Large pools lie on a simulated device that keeps metadata and forgets data.

use std::path::Path;

use snapvol::{CreateOptions, Pool, VolumeSpec};

use crate::Result;
use crate::child::Task;
use crate::design::{self, Row};
use crate::engine::Engine;
use crate::phases::timed;
use crate::plan::Plan;
use crate::pools::{Layout, Mapped, Medium};
use crate::table::{Report, Sample};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const MIB_F: f64 = MIB as f64;
const DEFAULT_CACHE: u64 = 64 << 20;
/// N18's.
const SMALL_CACHE: u64 = 8 << 20;
/// Changes that recovery has to replay: just below what starts a checkpoint.
const LOGGED: u64 = 240_000;
/// Random overwrites before each checkpoint that is timed.
const CHANGES: u64 = 1000;

struct Sizes {
    random_bytes: u64,
    small_cache_bytes: u64,
    huge_bytes: u64,
    snapshots: u64,
    volumes: u32,
    ops: u64,
}

pub(crate) fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    let sizes = if plan.quick {
        report
            .note("scale: the pools of 1 TiB, 16 GiB and 4 GiB are 16 GiB, 1 GiB and 512 MiB in a quick run");
        Sizes {
            random_bytes: 512 * MIB,
            small_cache_bytes: GIB,
            huge_bytes: 16 * GIB,
            snapshots: 1000,
            volumes: 1000,
            ops: 20_000,
        }
    } else {
        Sizes {
            random_bytes: 4 * GIB,
            small_cache_bytes: 16 * GIB,
            huge_bytes: 1024 * GIB,
            snapshots: 10_000,
            volumes: 10_000,
            ops: 100_000,
        }
    };
    if plan.wants("N12") {
        metadata(&sizes, report)?;
    }
    if !(plan.wants("N13") || plan.wants("N14") || plan.wants("N18")) {
        return Ok(());
    }
    let folder = plan.folder()?;
    plan.say("scale: random blocks on a file");
    random_on_file(plan, &sizes, folder.path(), report)?;
    plan.say("scale: random blocks behind a small cache");
    small_cache(plan, &sizes, folder.path(), report)?;
    plan.say("scale: snapshots and volumes by the thousand");
    many_snapshots(plan, &sizes, folder.path(), report)?;
    many_volumes(plan, &sizes, folder.path(), report)?;
    plan.say("scale: the largest pool");
    huge(plan, &sizes, folder.path(), report)
}

fn stamped(path: &Path) -> Result<Pool> {
    Medium::Stamps.create(path, CreateOptions::new().limit_bytes(4 << 40))
}

fn gib(bytes: u64) -> String {
    if bytes < GIB { format!("{} MiB", bytes / MIB) } else { format!("{} GiB", bytes / GIB) }
}

/// Opens the pool in a child in each round; memory beyond the cache counts at its most.
fn open_and_work(
    plan: &Plan,
    task: &Task,
    row: &'static Row,
    variant: &str,
    report: &mut Report,
) -> Result<()> {
    for round in 0..plan.rounds {
        let found = task.run()?;
        let sample = |value| Sample { round, value, ratio: None };
        report.add_variant(row, variant, Engine::NAME, sample(found.open_millis));
        let beyond = found.most_bytes.saturating_sub(task.cache_bytes) as f64 / MIB_F;
        report.add_variant(&design::N14, variant, Engine::NAME, sample(beyond));
        report.add_variant(
            &design::N14_OPEN,
            variant,
            Engine::NAME,
            sample(found.opened_bytes as f64 / MIB_F),
        );
    }
    Ok(())
}

fn metadata(sizes: &Sizes, report: &mut Report) -> Result<()> {
    for (layout, row) in
        [(Layout::Sequential, &design::N12_SEQUENTIAL), (Layout::Random, &design::N12_RANDOM)]
    {
        let pool = Pool::create_in_memory(CreateOptions::new())?;
        let empty = pool.space()?.metadata_bytes;
        let bytes = sizes.random_bytes.min(GIB);
        let _volume = Mapped::create(&pool, bytes, layout)?;
        let grown = (pool.space()?.metadata_bytes - empty) as f64;
        report.add(row, Engine::NAME, 0, grown / MIB_F / (bytes as f64 / GIB as f64), None);
    }
    Ok(())
}

fn random_on_file(plan: &Plan, sizes: &Sizes, folder: &Path, report: &mut Report) -> Result<()> {
    let path = folder.join("random.pool");
    let pool = Pool::create(&path, CreateOptions::new())?;
    drop(Mapped::create(&pool, sizes.random_bytes, Layout::Random)?);
    pool.close()?;
    let task = Task::open(&path, Medium::File);
    let size = gib(sizes.random_bytes);
    open_and_work(
        plan,
        &task.clone().ops(sizes.ops),
        &design::N13_RANDOM,
        &format!("{size} in random blocks"),
        report,
    )?;
    for round in 0..plan.rounds {
        task.clone().ops(LOGGED).crash()?;
        let sample = Sample { round, value: task.run()?.open_millis, ratio: None };
        report.add_variant(&design::N13_CRASH, &format!("{size} in random blocks"), Engine::NAME, sample);
    }
    std::fs::remove_file(&path)?;
    Ok(())
}

fn small_cache(plan: &Plan, sizes: &Sizes, folder: &Path, report: &mut Report) -> Result<()> {
    let path = folder.join("small-cache.pool");
    let pool = stamped(&path)?;
    drop(Mapped::create(&pool, sizes.small_cache_bytes, Layout::Random)?);
    pool.close()?;
    let task = Task::open(&path, Medium::Stamps).cache_bytes(SMALL_CACHE).ops(sizes.ops);
    for round in 0..plan.rounds {
        let found = task.run()?;
        let beyond = found.most_bytes.saturating_sub(SMALL_CACHE) as f64 / MIB_F;
        let figures = [
            (&design::N18_OPEN, found.open_millis),
            (&design::N18_MEMORY, beyond),
            (&design::N18_READ, found.reads_per_second),
            (&design::N18_READS, found.device_reads_per_read),
            (&design::N18_WRITE, found.writes_per_second),
            (&design::N18_P99, found.p99_micros),
        ];
        for (row, value) in figures {
            report.add_variant(
                row,
                &gib(sizes.small_cache_bytes),
                Engine::NAME,
                Sample { round, value, ratio: None },
            );
        }
    }
    Ok(())
}

fn many_snapshots(plan: &Plan, sizes: &Sizes, folder: &Path, report: &mut Report) -> Result<()> {
    let path = folder.join("snapshots.pool");
    let pool = stamped(&path)?;
    let volume = Mapped::create(&pool, 64 * MIB, Layout::Sequential)?;
    let mut rng = fastrand::Rng::with_seed(plan.seed);
    for _ in 0..sizes.snapshots {
        volume.overwrite(1, 2, &mut rng)?;
        volume.snapshot(&pool)?;
    }
    drop(volume);
    pool.close()?;
    let task = Task::open(&path, Medium::Stamps).ops(sizes.ops.min(20_000));
    open_and_work(plan, &task, &design::N13, &format!("{} snapshots", sizes.snapshots), report)
}

fn many_volumes(plan: &Plan, sizes: &Sizes, folder: &Path, report: &mut Report) -> Result<()> {
    let path = folder.join("volumes.pool");
    let pool = stamped(&path)?;
    drop(Mapped::create(&pool, MIB, Layout::Sequential)?);
    for _ in 0..sizes.volumes / snapvol::MAX_VOLUMES_PER_CALL {
        pool.create_volumes(VolumeSpec::blank(GIB).name("volume"), snapvol::MAX_VOLUMES_PER_CALL)?;
    }
    pool.close()?;
    let task = Task::open(&path, Medium::Stamps);
    open_and_work(plan, &task, &design::N13, &format!("{} volumes", sizes.volumes), report)
}

/// Maps one large volume in sequence. At each doubling some blocks are overwritten and a checkpoint is timed.
fn huge(plan: &Plan, sizes: &Sizes, folder: &Path, report: &mut Report) -> Result<()> {
    let path = folder.join("huge.pool");
    let pool = stamped(&path)?;
    let volume = Mapped::blank(&pool, sizes.huge_bytes)?;
    let mut rng = fastrand::Rng::with_seed(plan.seed);
    let mut mapped = 0;
    let mut next = GIB;
    while mapped < sizes.huge_bytes {
        volume.map_sequentially(mapped..next)?;
        mapped = next;
        next = (4 * next).min(sizes.huge_bytes);
        pool.checkpoint()?;
        for round in 0..plan.rounds {
            let before = pool.stats().checkpoint_bytes;
            let mut ink = crate::stamp::Ink::new(2);
            let lbas = mapped / crate::stamp::BLOCK_BYTES;
            (0..CHANGES).try_for_each(|_| volume.write(rng.u64(..lbas), &mut ink))?;
            let took = timed(|| Ok(pool.checkpoint()?))?;
            let written = (pool.stats().checkpoint_bytes - before) as f64 / MIB_F;
            let variant = format!("{} mapped", gib(mapped));
            let sample = |value| Sample { round, value, ratio: None };
            report.add_variant(&design::CHECKPOINT, &variant, Engine::NAME, sample(took.as_secs_f64() * 1e3));
            report.add_variant(&design::CHECKPOINT_BYTES, &variant, Engine::NAME, sample(written));
        }
    }
    drop(volume);
    pool.close()?;
    let task = Task::open(&path, Medium::Stamps).cache_bytes(DEFAULT_CACHE).ops(sizes.ops);
    open_and_work(plan, &task, &design::N13, &format!("{} mapped in sequence", gib(sizes.huge_bytes)), report)
}
