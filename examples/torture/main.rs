//! Fault campaigns that run as long as you like:
//! `cargo run --release --features sim --example torture -- MODE [OPTIONS]`.
//!
//! What the tests of this crate do for minutes in every run, this does for hours. A mode is a file of this folder and a
//! row of [`MODES`]; what it judges by is shared with the tests (`tests/common`).

use std::process::ExitCode;

mod campaign;
#[path = "../../tests/common/mod.rs"]
mod common;
mod crash;
mod damage;
mod exhaustive;
mod kill;
mod syncs;

use campaign::Outcome;

/// A kind of campaign: its name, what it takes and does, and the function that runs it.
struct Mode {
    name: &'static str,
    help: &'static str,
    /// Returns the number of failures.
    run: fn(&mut lexopt::Parser) -> Outcome<u64>,
}

const MODES: [Mode; 5] = [
    Mode {
        name: "crash",
        help: "random workloads, some with a lost flush; every cut, torn and reordered; recoveries cut again
             --minutes N (10)  --seed S (by chance)  --runs N (unlimited)  --threads N (all cores)",
        run: crash::run,
    },
    Mode {
        name: "exhaustive",
        help: "every workload of up to N operations, every cut, every second cut; goes on where it stopped
             --length N (3)  --state FILE (torture-exhaustive.json)  --minutes N (unlimited)  --threads N
             --only NUMBER: this workload alone",
        run: exhaustive::run,
    },
    Mode {
        name: "syncs",
        help: "random workloads in which a sync fails; the host keeps or drops its pages
             --minutes N (10)  --seed S (by chance)  --runs N (unlimited)  --threads N (all cores)",
        run: syncs::run,
    },
    Mode {
        name: "damage",
        help: "pools with one spoilt block: bits, sectors, stale blocks, blocks of elsewhere
             --minutes N (10)  --seed S (by chance)  --runs N (unlimited)  --threads N (all cores)",
        run: damage::run,
    },
    Mode {
        name: "kill",
        help: "processes that use a pool in a file and are killed (SIGKILL)
             --minutes N (10)  --seed S (by chance)  --runs N (unlimited)  --threads N (all cores)",
        run: kill::run,
    },
];

fn help() {
    println!("torture MODE [OPTIONS]\n");
    for mode in MODES {
        println!("  {:<11}{}", mode.name, mode.help);
    }
    println!("\nEnds with status 1 when something failed, after the command that repeats each failure.");
}

fn main() -> Outcome<ExitCode> {
    let mut args = lexopt::Parser::from_env();
    let name = match args.next()? {
        Some(lexopt::Arg::Value(name)) => name.to_string_lossy().into_owned(),
        _ => {
            help();
            return Ok(ExitCode::SUCCESS);
        }
    };
    let Some(mode) = MODES.iter().find(|mode| mode.name == name) else {
        help();
        return Err(format!("there is no mode {name}").into());
    };
    let failures = (mode.run)(&mut args)?;
    Ok(if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
