//! What is to be run, and how large.

use std::path::PathBuf;

use lexopt::prelude::*;
use tempfile::TempDir;

use crate::Result;

const USAGE: &str = "cargo bench --bench versus -- [--quick] [--rows N1,N3,...] [--rounds N] [--seed N]
                              [--only core|ageing|scale|threads] [--without-peers]";

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Core,
    Ageing,
    Scale,
    Threads,
}

pub(crate) struct Plan {
    pub(crate) quick: bool,
    pub(crate) rounds: u32,
    pub(crate) seed: u64,
    rows: Vec<String>,
    only: Option<Part>,
    /// Whether the peers take part beside the engine and the floor.
    pub(crate) peers: bool,
    /// Size of the volumes of the core rows.
    pub(crate) volume_bytes: u64,
    /// Operations of a phase that writes, flushes after each operation, or reads.
    pub(crate) writes: usize,
    pub(crate) flushes: usize,
    pub(crate) reads: usize,
}

impl Plan {
    /// From the command line; nothing when there is nothing to run.
    pub(crate) fn from_args() -> Result<Option<Self>> {
        let mut plan = Self::full();
        let mut rounds = None;
        let mut args = lexopt::Parser::from_env();
        while let Some(arg) = args.next()? {
            match arg {
                Long("quick") => {
                    let Self { rows, only, peers, seed, .. } = plan;
                    plan = Self { rows, only, peers, seed, ..Self::quick() }
                }
                Long("rows") => {
                    plan.rows = args.value()?.string()?.split(',').map(str::to_owned).collect();
                }
                Long("rounds") => rounds = Some(args.value()?.parse()?),
                Long("seed") => plan.seed = args.value()?.parse()?,
                Long("only") => {
                    plan.only = Some(match args.value()?.string()?.as_str() {
                        "core" => Part::Core,
                        "ageing" => Part::Ageing,
                        "scale" => Part::Scale,
                        "threads" => Part::Threads,
                        other => return Err(format!("no part is called {other}\n{USAGE}").into()),
                    });
                }
                Long("without-peers") => plan.peers = false,
                // What cargo passes to every bench.
                Long("bench") => {}
                Long("help") => {
                    println!("{USAGE}");
                    return Ok(None);
                }
                other => return Err(format!("{}\n{USAGE}", other.unexpected()).into()),
            }
        }
        plan.rounds = rounds.unwrap_or(plan.rounds);
        Ok(Some(plan))
    }

    fn full() -> Self {
        Self {
            quick: false,
            rounds: 5,
            seed: 1,
            rows: Vec::new(),
            only: None,
            peers: true,
            volume_bytes: 1 << 30,
            writes: 16_384,
            flushes: 1024,
            reads: 131_072,
        }
    }

    fn quick() -> Self {
        Self {
            quick: true,
            rounds: 3,
            volume_bytes: 256 << 20,
            writes: 4096,
            flushes: 256,
            reads: 32_768,
            ..Self::full()
        }
    }

    pub(crate) fn wants(&self, row: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|wanted| wanted == row)
    }

    pub(crate) fn includes(&self, part: Part) -> bool {
        self.only.is_none_or(|only| only == part)
    }

    /// A folder for pool files on the file system of the build, gone with the value.
    pub(crate) fn folder(&self) -> Result<TempDir> {
        Ok(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?)
    }

    /// Where results go.
    pub(crate) fn results(&self) -> Result<PathBuf> {
        let results = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("versus");
        std::fs::create_dir_all(&results)?;
        Ok(results)
    }

    pub(crate) fn say(&self, what: &str) {
        eprintln!("versus: {what}");
    }
}
