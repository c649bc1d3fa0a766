//! A sandbox host's day: one base image, a thousand clones, each written to a little, all deleted.
//!
//! `fork [--clones N] [--base-mib N] [--pool PATH]`; without a path the pool is a file in the temporary directory
//! and goes when the program ends.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use snapvol::{
    AttachOptions, CheckOptions, CreateOptions, Pool, Result, SnapshotSpec, Snapshots, VolumeId, VolumeSpec,
};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
/// What each clone writes: blocks in so many places.
const PLACES: u64 = 16;

struct Options {
    clones: u64,
    base_bytes: u64,
    pool: Option<PathBuf>,
}

fn options() -> Result<Options, lexopt::Error> {
    use lexopt::prelude::*;
    let mut options = Options { clones: 1000, base_bytes: 256 * MIB, pool: None };
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("clones") => options.clones = arguments.value()?.parse()?,
            Long("base-mib") => {
                let mib: u64 = arguments.value()?.parse()?;
                options.base_bytes = mib.clamp(1, 1 << 20) * MIB;
            }
            Long("pool") => options.pool = Some(arguments.value()?.into()),
            other => return Err(other.unexpected()),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    let done = options().map_err(|e| e.to_string()).and_then(|options| {
        let (path, dir) = match &options.pool {
            Some(path) => (path.clone(), None),
            None => {
                let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
                (dir.path().join("fork.pool"), Some(dir))
            }
        };
        let done = day(&options, &path).map_err(|e| e.to_string());
        drop(dir);
        done
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("fork: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Times of one step for every clone.
struct Times(Vec<Duration>);

impl Times {
    fn print(mut self, what: &str) {
        self.0.sort_unstable();
        let micros = |part: usize| {
            let at = (self.0.len() * part / 100).min(self.0.len().saturating_sub(1));
            self.0.get(at).map_or(0.0, |time| time.as_secs_f64() * 1e6)
        };
        println!("{what:<34} median {:>7.0} us, 99 % within {:>7.0} us", micros(50), micros(99));
    }
}

fn day(options: &Options, path: &std::path::Path) -> Result<()> {
    let limit = options.base_bytes * 4 + options.clones * 2 * MIB + (1 << 30);
    let pool = Pool::create(path, CreateOptions::new().limit_bytes(limit))?;
    println!("a base image of {} MiB", options.base_bytes / MIB);
    let base = pool.create_volume(VolumeSpec::blank(options.base_bytes).name("base"))?;
    let disk = pool.attach(base.id, AttachOptions::new())?;
    let mut piece = vec![0; MIB as usize];
    for at in (0..options.base_bytes).step_by(MIB as usize) {
        // Each block says where it lies, so that a clone can be checked.
        for (n, block) in (0..).zip(piece.chunks_exact_mut(BLOCK as usize)) {
            block[..8].copy_from_slice(&(at + n * BLOCK).to_le_bytes());
        }
        disk.write_at(&piece, at)?;
    }
    drop(disk);
    let image = pool.create_snapshot(base.id, SnapshotSpec::new().name("image"))?;
    pool.checkpoint()?;
    let before = pool.space()?;

    // Each sandbox gets a disk of its own: durable, and ready to be used.
    let (mut clones, mut times) = (Vec::new(), Vec::new());
    for n in 0..options.clones {
        let begun = Instant::now();
        let clone = pool.create_volume(VolumeSpec::from_snapshot(image.id).name(format!("sandbox {n}")))?;
        let disk = pool.attach(clone.id, AttachOptions::new())?;
        times.push(begun.elapsed());
        drop(disk);
        clones.push(clone.id);
    }
    Times(times).print("clone and attach, durable");
    pool.checkpoint()?;
    let untouched = pool.space()?;
    let count = options.clones.max(1);
    let metadata = untouched.metadata_bytes.saturating_sub(before.metadata_bytes) / count;
    println!(
        "{:<34} {} bytes of data, {metadata} of metadata",
        "an untouched clone takes",
        (untouched.used_bytes - before.used_bytes) / count
    );

    // Each writes a little, in places of its own.
    let mut times = Vec::new();
    for (n, clone) in (0..).zip(&clones) {
        let begun = Instant::now();
        write_a_little(&pool, *clone, n, options.base_bytes)?;
        times.push(begun.elapsed());
    }
    Times(times).print("attach, 16 blocks and a flush");

    // The list that a host shows: what each would give back.
    let begun = Instant::now();
    let mut exclusive = 0;
    for (n, clone) in clones.iter().enumerate() {
        let (volume, space) = (pool.volume(*clone)?, pool.volume_space(*clone)?);
        exclusive += space.exclusive_bytes;
        if n < 3 {
            println!(
                "  {:<16} {:>8} bytes of its own",
                volume.name.unwrap_or_default(),
                space.exclusive_bytes
            );
        }
    }
    println!(
        "  ... {} clones listed in {:.0} ms, {exclusive} bytes of their own in all",
        clones.len(),
        begun.elapsed().as_secs_f64() * 1e3
    );
    let written = pool.space()?;
    println!(
        "{:<34} {} bytes of data",
        "a clone that wrote takes",
        (written.used_bytes - before.used_bytes) / count
    );

    let mut times = Vec::new();
    let begun = Instant::now();
    let mut leaving = Vec::new();
    for clone in clones {
        let one = Instant::now();
        leaving.push(pool.delete_volume(clone, Snapshots::Refuse)?);
        times.push(one.elapsed());
    }
    Times(times).print("delete, durable");
    let mut freed = 0;
    for deletion in leaving {
        freed += deletion.wait()?.freed_bytes;
    }
    println!("all deleted and {freed} bytes back after {:.0} ms", begun.elapsed().as_secs_f64() * 1e3);
    let report = pool.check(CheckOptions::new(), &mut |_| {})?;
    let after = pool.space()?;
    println!(
        "check: {} findings; data in the pool as before the day: {}",
        report.findings.len(),
        after.used_bytes == before.used_bytes
    );
    pool.close()
}

fn write_a_little(pool: &Pool, clone: VolumeId, n: u64, base_bytes: u64) -> Result<()> {
    let disk = pool.attach(clone, AttachOptions::new())?;
    let blocks = base_bytes / BLOCK;
    let mut block = [0; BLOCK as usize];
    for place in 0..PLACES {
        let at = (n * 31 + place * 7919) % blocks * BLOCK;
        disk.read_at(&mut block, at)?;
        // It is the base's block, or one that this clone has just written.
        block[8..16].copy_from_slice(&n.to_le_bytes());
        disk.write_at(&block, at)?;
    }
    disk.flush()
}
