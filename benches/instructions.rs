//! How many instructions one call on a hot path takes: the guard against getting slower unnoticed.
//!
//! `cargo bench --bench instructions` counts under valgrind's callgrind and compares with the table in
//! `instructions.json`. It fails when a count is off by more than the tolerance there, in either direction: what
//! became cheaper is to be kept. `SNAPVOL_INSTRUCTIONS=write cargo bench --bench instructions` rewrites the table.
//! Without valgrind nothing is counted, which is said, and is no failure.
//!
//! This program runs itself under callgrind, once per path, and only what happens in [`measured`] is counted. Time
//! plays no part: on a pool in memory, without a thread of its own, with ids and a clock in a fixed order, equal
//! programs take equal numbers of instructions, but for the seeds of hash maps (far below 1 %). Compiler and C
//! library have a say, so the table names those that it was counted with.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::{env, fs, io};

use serde::{Deserialize, Serialize};
use snapvol::{
    AttachOptions, Background, CreateOptions, Disk, Pool, RollbackOptions, SequentialIds, SnapshotId,
    SnapshotSpec, StepClock, VolumeId, VolumeSpec,
};

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.json");
/// The C library copies and fills by vectors, as it does without `rep movsb` and `rep stosb`: these take one
/// instruction for each byte to count, and hardly any time.
const TUNABLES: &str =
    "glibc.cpu.x86_rep_movsb_threshold=1073741824:glibc.cpu.x86_rep_stosb_threshold=1073741824";
/// Where callgrind's files stay, for `callgrind_annotate`.
const PROFILES: &str = env!("CARGO_TARGET_TMPDIR");
const REWRITE: &str = "SNAPVOL_INSTRUCTIONS=write cargo bench --bench instructions";

/// Everything in here is counted, nothing else is. Callgrind finds it by its name.
#[inline(never)]
fn measured(operations: &mut dyn FnMut()) {
    operations();
    // Keeps the call above from becoming a jump: the counting ends with the return from here.
    black_box(());
}

/// Prepares, and does the given number of operations in [`measured`].
type Scenario = fn(&Bed, u64);

const PATHS: [(&str, u64, Scenario); 12] = [
    ("write 4 KiB, no snapshot", 1000, |bed, n| {
        bed.write(n);
        measured(&mut || bed.write(n));
    }),
    ("write 4 KiB, first touch after a snapshot", 1000, |bed, n| {
        bed.snapshot();
        measured(&mut || bed.write(n));
    }),
    ("write 512 B into a block shared with a snapshot", 1000, |bed, n| {
        bed.snapshot();
        measured(&mut || {
            for at in scattered(n) {
                bed.disk.write_at(black_box(&bed.data[..512]), at + 1024).expect("a write");
            }
        });
    }),
    ("read 4 KiB, in the hot table", 1000, |bed, n| {
        (0..2).for_each(|_| bed.read(n));
        measured(&mut || bed.read(n));
    }),
    ("read 4 KiB, not in the hot table, map cached", 1000, |bed, n| measured(&mut || bed.read(n))),
    ("read 4 KiB, lately written", 1000, |bed, n| {
        bed.write(n);
        measured(&mut || bed.read(n));
    }),
    ("write 4 KiB and flush", 200, |bed, n| {
        measured(&mut || {
            for at in scattered(n) {
                bed.disk.write_at(black_box(&bed.data), at).expect("a write");
                bed.disk.flush().expect("a flush");
            }
        });
    }),
    ("snapshot", 100, |bed, n| {
        for at in scattered(n) {
            bed.disk.write_at(&bed.data, at).expect("a write");
            measured(&mut || _ = bed.snapshot());
        }
    }),
    ("clone and attach", 100, |bed, n| {
        let point = bed.snapshot();
        for _ in 0..n {
            measured(&mut || {
                let clone = bed.pool.create_volume(VolumeSpec::from_snapshot(point)).expect("a clone");
                black_box(bed.pool.attach(clone.id, AttachOptions::new()).expect("a disk"));
            });
        }
    }),
    ("rollback", 100, |bed, n| {
        let point = bed.snapshot();
        let live = RollbackOptions::new().live(true);
        for at in scattered(n) {
            bed.disk.write_at(&bed.data, at).expect("a write");
            measured(&mut || drop(bed.pool.rollback_with(point, live).expect("a rollback")));
        }
    }),
    ("diff of 1,000 changed blocks", 10, |bed, n| {
        let first = bed.snapshot();
        bed.write(1000);
        let second = bed.snapshot();
        measured(&mut || {
            for _ in 0..n {
                let diff = bed.pool.diff(first, second).expect("a diff");
                let bytes: u64 = diff.map(|c| c.expect("a change").range).map(|r| r.end - r.start).sum();
                assert_eq!(bytes, 1000 * BLOCK);
            }
        });
    }),
    ("delete a snapshot with 1,000 blocks of its own", 4, |bed, n| {
        for _ in 0..n {
            let point = bed.snapshot();
            bed.write(1000);
            // Writing the metadata of these writes is no part of the delete.
            bed.pool.checkpoint().expect("a checkpoint");
            measured(&mut || {
                let freed = bed.pool.delete_snapshot(point).expect("a delete").wait().expect("reclaimed");
                assert_eq!(freed.freed_bytes, 1000 * BLOCK);
            });
        }
    }),
];

const BLOCK: u64 = 4096;
/// Blocks of the volume, a power of two. All are mapped, each by an extent of its own.
const BLOCKS: u64 = 4096;

/// A pool at work, with one attached volume. Map and checksums of the volume are in the cache, its data is neither
/// in the hot table nor in the buffers, which hold blocks of another volume, and have their memory already.
struct Bed {
    pool: Pool,
    disk: Disk,
    volume: VolumeId,
    data: Vec<u8>,
}

impl Bed {
    fn new() -> Self {
        let options = CreateOptions::new()
            .background(Background::Manual)
            .id_source(Arc::new(SequentialIds::new(1)))
            .clock(Arc::new(StepClock::new(1, 1)));
        let pool = Pool::create_in_memory(options).expect("a pool");
        let attached = || {
            let volume = pool.create_volume(VolumeSpec::blank(BLOCKS * BLOCK)).expect("a volume").id;
            (volume, pool.attach(volume, AttachOptions::new()).expect("a disk"))
        };
        let (volume, disk) = attached();
        let data: Vec<u8> = (0..BLOCK).map(|i| (i % 251) as u8).collect();
        scattered(BLOCKS).for_each(|at| disk.write_at(&data, at).expect("a write"));
        let (_, other) = attached();
        for at in (0..BLOCKS * BLOCK).step_by(1 << 20).cycle().take(32) {
            pool.flush().expect("a flush");
            other.write_at(&data.repeat(256), at).expect("a write");
        }
        pool.checkpoint().expect("a checkpoint");
        // The hot table remembers reads of single blocks only.
        let mut two = vec![0; 2 * BLOCK as usize];
        for at in (0..BLOCKS * BLOCK).step_by(two.len()) {
            disk.read_at(&mut two, at).expect("a read");
        }
        Self { pool, disk, volume, data }
    }

    fn snapshot(&self) -> SnapshotId {
        let spec = SnapshotSpec::new().force(true);
        self.pool.create_snapshot(self.volume, spec).expect("a snapshot").id
    }

    fn write(&self, blocks: u64) {
        scattered(blocks).for_each(|at| self.disk.write_at(black_box(&self.data), at).expect("a write"));
    }

    fn read(&self, blocks: u64) {
        let mut block = [0; BLOCK as usize];
        scattered(blocks).for_each(|at| self.disk.read_at(black_box(&mut block), at).expect("a read"));
    }
}

/// Offsets of different blocks in an order that looks random.
fn scattered(blocks: u64) -> impl Iterator<Item = u64> {
    // An odd multiplier permutes the powers of two.
    (1..=blocks).map(|i| i.wrapping_mul(0x9e37_79b1) % BLOCKS * BLOCK)
}

#[derive(Serialize, Deserialize)]
struct Table {
    tolerance_percent: f64,
    /// Those that have a say in the counts.
    counted_with: String,
    instructions_per_operation: BTreeMap<String, u64>,
}

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    if let [flag, wanted] = &args[..]
        && flag == "--count"
    {
        let (_, operations, scenario) = PATHS.iter().find(|(name, ..)| name == wanted).expect("a path");
        scenario(&Bed::new(), *operations);
        return ExitCode::SUCCESS;
    }
    if !args.iter().any(|a| a == "--bench") || args.iter().any(|a| a == "--test") {
        // Run by `cargo test`: only whether everything works.
        PATHS.iter().for_each(|(_, operations, scenario)| scenario(&Bed::new(), *operations));
        return ExitCode::SUCCESS;
    }
    let write = match env::var("SNAPVOL_INSTRUCTIONS").as_deref() {
        Ok("write") => true,
        Ok("" | "check") | Err(env::VarError::NotPresent) => false,
        other => {
            eprintln!(
                "SNAPVOL_INSTRUCTIONS is {other:?}; known are `write` and `check`, which is the default"
            );
            return ExitCode::FAILURE;
        }
    };
    match run(write) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("\n{why}");
            ExitCode::FAILURE
        }
    }
}

fn run(write: bool) -> Result<(), String> {
    if let Some(why) = obstacle() {
        let why = format!("NO INSTRUCTIONS COUNTED, nothing was checked: {why}");
        if write {
            return Err(why);
        }
        eprintln!("\n*** {why} ***\n");
        return Ok(());
    }
    let text = fs::read_to_string(TABLE).map_err(|e| format!("{TABLE}: {e}"))?;
    let mut table: Table = serde_json::from_str(&text).map_err(|e| format!("{TABLE}: {e}"))?;
    let with = counted_with();
    let mut wrong = Vec::new();
    let mut found = BTreeMap::new();
    println!("{:48}{:>12}{:>12}{:>10}", "instructions per operation", "expected", "found", "change");
    for (name, operations, _) in PATHS {
        let count = count(name)? / operations;
        found.insert(name.to_string(), count);
        let Some(expected) = table.instructions_per_operation.get(name).copied() else {
            println!("{name:48}{:>12}{count:>12}", "-");
            wrong.push(format!("{name}: not in the table, found {count} instructions per operation"));
            continue;
        };
        let percent = (count as f64 / expected.max(1) as f64 - 1.0) * 100.0;
        println!("{name:48}{expected:>12}{count:>12}{percent:>+9.1}%");
        if percent.abs() > table.tolerance_percent {
            let (direction, advice) = if percent > 0.0 {
                ("more", "")
            } else {
                ("fewer", "; the table should hold on to the gain")
            };
            wrong.push(format!(
                "{name}: expected {expected} instructions per operation, found {count}: {:.1} % {direction}, \
                 tolerated are {} %{advice}",
                percent.abs(),
                table.tolerance_percent,
            ));
        }
    }
    for name in table.instructions_per_operation.keys().filter(|name| !found.contains_key(*name)) {
        wrong.push(format!("{name}: in the table, but there is no such path any more"));
    }
    if write {
        (table.counted_with, table.instructions_per_operation) = (with, found);
        let text = serde_json::to_string_pretty(&table).expect("a table");
        fs::write(TABLE, text + "\n").map_err(|e| format!("{TABLE}: {e}"))?;
        println!("\nwritten to {TABLE}");
        return Ok(());
    }
    if wrong.is_empty() {
        return Ok(());
    }
    let mut why = format!("hot paths do not take the instructions they should:\n  {}\n", wrong.join("\n  "));
    if with != table.counted_with {
        // Another compiler makes other code: that is no fault of whoever changed something here.
        println!("\n*** NOT COMPARABLE, nothing was checked: {why}");
        println!(
            "counted now with {with},\nfor the table with {}\nto check here: {REWRITE}",
            table.counted_with
        );
        return Ok(());
    }
    why += &format!("where they go: callgrind_annotate {PROFILES}/*.callgrind\n");
    Err(why + &format!("when it is meant to be so: {REWRITE}"))
}

/// Why counts would say nothing here.
fn obstacle() -> Option<String> {
    if cfg!(not(all(target_arch = "x86_64", target_os = "linux", target_env = "gnu"))) {
        return Some("the table is for x86_64 Linux with glibc".into());
    }
    if cfg!(feature = "tracing") {
        return Some("the table is for the default features, and `tracing` is on".into());
    }
    match Command::new("valgrind").arg("--version").output() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Some("valgrind is not installed".into()),
        _ => None,
    }
}

fn counted_with() -> String {
    let said = |program: &str, arg: &str| {
        let output = Command::new(program).arg(arg).output().ok().filter(|o| o.status.success());
        let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
        // Name and version; what follows tells who built it.
        text.unwrap_or_else(|| format!("{program} unknown"))
            .split_whitespace()
            .take(2)
            .collect::<Vec<_>>()
            .join(" ")
    };
    [said("rustc", "--version"), said("getconf", "GNU_LIBC_VERSION"), said("valgrind", "--version")]
        .join(", ")
}

/// Runs one scenario under callgrind: all instructions that its operations took.
fn count(name: &str) -> Result<u64, String> {
    let file = name.replace(',', "").replace(' ', "_") + ".callgrind";
    let profile = Path::new(PROFILES).join(file);
    // So that what is read below is of this run. There is none the first time.
    let _ = fs::remove_file(&profile);
    let program = env::current_exe().map_err(|e| format!("this program's path: {e}"))?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no", "--toggle-collect=*instructions*measured*"])
        .arg(format!("--callgrind-out-file={}", profile.display()))
        .arg(program)
        .args(["--count", name])
        .env("GLIBC_TUNABLES", TUNABLES)
        .output()
        .map_err(|e| format!("valgrind: {e}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{name}: valgrind ended with {}\n{said}", output.status));
    }
    let text = fs::read_to_string(&profile).map_err(|e| format!("{}: {e}", profile.display()))?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok());
    match total {
        Some(total) if total > 0 => Ok(total),
        _ => Err(format!("{name}: callgrind counted nothing, see {}", profile.display())),
    }
}
