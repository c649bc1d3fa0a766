//! Opening a pool in a process of its own: what an opening costs and how much memory it takes shows only there.
//!
//! The benchmark runs itself again with hidden arguments and reads one line of JSON from it.

use std::path::{Path, PathBuf};
use std::process::{Command, abort};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use hdrhistogram::Histogram;
use serde_json::{Value, json};
use snapvol::{OpenOptions, Pool};

use crate::Result;
use crate::memory::resident_bytes;
use crate::pools::{Mapped, Medium};
use crate::stamp::{BLOCK, Ink};

/// Operations between two looks at the memory of the process.
const LOOK: u64 = 4096;

/// What a child is to do.
#[derive(Clone)]
pub(crate) struct Task {
    pub(crate) pool: PathBuf,
    pub(crate) medium: Medium,
    pub(crate) cache_bytes: u64,
    /// Random reads, and as many random overwrites.
    pub(crate) ops: u64,
    /// End without closing, so that the next open has to recover.
    pub(crate) crash: bool,
}

/// What a child found.
pub(crate) struct Found {
    pub(crate) open_millis: f64,
    /// Right after opening, and at most while working.
    pub(crate) opened_bytes: u64,
    pub(crate) most_bytes: u64,
    pub(crate) reads_per_second: f64,
    pub(crate) device_reads_per_read: f64,
    pub(crate) writes_per_second: f64,
    /// Of a write while a checkpoint runs.
    pub(crate) p99_micros: f64,
}

impl Task {
    pub(crate) fn open(pool: &Path, medium: Medium) -> Self {
        Self { pool: pool.to_owned(), medium, cache_bytes: 64 << 20, ops: 0, crash: false }
    }

    pub(crate) fn ops(self, ops: u64) -> Self {
        Self { ops, ..self }
    }

    pub(crate) fn cache_bytes(self, cache_bytes: u64) -> Self {
        Self { cache_bytes, ..self }
    }

    /// Runs in a process of its own.
    pub(crate) fn run(&self) -> Result<Found> {
        let output = self.command()?.output()?;
        if !output.status.success() {
            return Err(format!("a child failed: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        let found: Value = serde_json::from_slice(&output.stdout)?;
        let number = |name: &str| found[name].as_f64().ok_or(format!("a child said nothing of {name}"));
        Ok(Found {
            open_millis: number("open_millis")?,
            opened_bytes: number("opened_bytes")? as u64,
            most_bytes: number("most_bytes")? as u64,
            reads_per_second: number("reads_per_second")?,
            device_reads_per_read: number("device_reads_per_read")?,
            writes_per_second: number("writes_per_second")?,
            p99_micros: number("p99_micros")?,
        })
    }

    /// Overwrites blocks at random, flushes and is gone without closing.
    pub(crate) fn crash(&self) -> Result<()> {
        let crashed = Self { crash: true, ..self.clone() }.command()?.output()?;
        // Its last word says that the flush was through.
        if crashed.stdout.is_empty() {
            return Err(format!("a child crashed early: {}", String::from_utf8_lossy(&crashed.stderr)).into());
        }
        Ok(())
    }

    fn command(&self) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--child").arg(&self.pool).arg(self.medium.as_str());
        command.args([self.cache_bytes.to_string(), self.ops.to_string(), self.crash.to_string()]);
        Ok(command)
    }
}

/// The task that this process was started with, if it is a child.
pub(crate) fn task() -> Result<Option<Task>> {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_none_or(|first| first != "--child") {
        return Ok(None);
    }
    let pool = PathBuf::from(args.next().ok_or("no pool")?);
    let mut word = || args.next().and_then(|arg| arg.into_string().ok()).ok_or("an argument is missing");
    let medium = if word()? == Medium::File.as_str() { Medium::File } else { Medium::Stamps };
    let (cache_bytes, ops, crash) = (word()?.parse()?, word()?.parse()?, word()?.parse()?);
    Ok(Some(Task { pool, medium, cache_bytes, ops, crash }))
}

/// What a child does.
pub(crate) fn work(task: &Task) -> Result<()> {
    let options = OpenOptions::new().cache_bytes(task.cache_bytes);
    let before = resident_bytes()?;
    let began = Instant::now();
    let (pool, device_reads) = task.medium.open(&task.pool, options)?;
    let open_millis = began.elapsed().as_secs_f64() * 1e3;
    let mut memory = Memory { before, most: 0 };
    let opened_bytes = memory.look()?;
    let volume = Mapped::first(&pool)?;
    let mut rng = fastrand::Rng::with_seed(task.ops);
    if task.crash {
        volume.overwrite(task.ops, 2, &mut rng)?;
        volume.disk.flush()?;
        println!("flushed");
        abort();
    }

    let began = Instant::now();
    let reads_before = device_reads.load(Ordering::Relaxed);
    let mut block = vec![0; BLOCK];
    for op in 0..task.ops {
        volume.read(rng.u64(..volume.blocks()), &mut block)?;
        memory.look_after(op)?;
    }
    let reads_per_second = task.ops as f64 / began.elapsed().as_secs_f64();
    let device_reads = device_reads.load(Ordering::Relaxed) - reads_before;

    let began = Instant::now();
    let mut ink = Ink::new(3);
    for op in 0..task.ops {
        volume.write(rng.u64(..volume.blocks()), &mut ink)?;
        memory.look_after(op)?;
    }
    volume.disk.flush()?;
    let writes_per_second = task.ops as f64 / began.elapsed().as_secs_f64();
    let p99_micros = if task.ops > 0 { write_during_checkpoint(&pool, &volume, &mut rng)? } else { 0.0 };
    volume.verify(task.ops.min(2000), &mut rng)?;
    memory.look()?;
    let found = json!({
        "open_millis": open_millis,
        "opened_bytes": opened_bytes,
        "most_bytes": memory.most,
        "reads_per_second": reads_per_second,
        "device_reads_per_read": device_reads as f64 / task.ops.max(1) as f64,
        "writes_per_second": writes_per_second,
        "p99_micros": p99_micros,
    });
    println!("{found}");
    drop(volume);
    Ok(pool.close()?)
}

struct Memory {
    before: u64,
    most: u64,
}

impl Memory {
    fn look(&mut self) -> Result<u64> {
        let now = resident_bytes()?.saturating_sub(self.before);
        self.most = self.most.max(now);
        Ok(now)
    }

    fn look_after(&mut self, op: u64) -> Result<()> {
        if op.is_multiple_of(LOOK) {
            self.look()?;
        }
        Ok(())
    }
}

/// The 99th percentile of a write while a checkpoint runs, in microseconds.
fn write_during_checkpoint(pool: &Pool, volume: &Mapped, rng: &mut fastrand::Rng) -> Result<f64> {
    let mut micros = Histogram::<u64>::new(3)?;
    let mut ink = Ink::new(4);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let checkpoint = scope.spawn(|| {
            let result = pool.checkpoint();
            done.store(true, Ordering::Release);
            result
        });
        while !done.load(Ordering::Acquire) {
            let lba = rng.u64(..volume.blocks());
            let began = Instant::now();
            volume.write(lba, &mut ink)?;
            micros.record(began.elapsed().as_nanos() as u64)?;
        }
        checkpoint.join().map_err(|_| "the checkpoint panicked")??;
        Ok(micros.value_at_quantile(0.99) as f64 / 1e3)
    })
}
