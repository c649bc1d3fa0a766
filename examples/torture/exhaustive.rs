//! Every workload of up to so many operations, every cut, every second cut. Stopped, it goes on where it was.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use serde_json::{Value, json};
use snapvol::device::sim::Depth;

use crate::campaign::{Campaign, Outcome};
use crate::common::crash::{Count, Plan, short_run, short_workloads};

/// Workloads that are marked as done together.
const PIECE: usize = 32;

const PLAN: Plan =
    Plan { depth: Depth::FULL.samples(24), second_cut_one_in: 1, continue_one_in: 0, ..Plan::FULL };

pub(crate) fn run(args: &mut lexopt::Parser) -> Outcome<u64> {
    let (mut length, mut file, mut only) = (3, PathBuf::from("torture-exhaustive.json"), None);
    let mut campaign = Campaign::parse("exhaustive", None, args, |name, args| {
        use lexopt::ValueExt;
        match name {
            "length" => length = args.value()?.parse::<u32>()?.clamp(1, 4),
            "state" => file = args.value()?.into(),
            "only" => only = Some(args.value()?.parse::<usize>()?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let count = Count::default();
    if let Some(workload) = only {
        short_run(workload, PLAN, &count);
        println!("{count}");
        return Ok(0);
    }
    let workloads = short_workloads(length);
    let progress = Mutex::new(Progress::load(&file, length)?);
    let (before, todo) = {
        let progress = progress.lock();
        let pieces = 0..workloads.div_ceil(PIECE);
        (progress.clone(), pieces.filter(|piece| !progress.done.contains(piece)).collect::<Vec<_>>())
    };
    println!("{workloads} workloads; {} of them are left", (todo.len() * PIECE).min(workloads));
    campaign.runs = todo.len() as u64;
    let failed = Mutex::new(BTreeSet::new());
    let failures = campaign.run(
        || count.total(),
        |number| {
            let piece = todo[number as usize];
            for workload in piece * PIECE..((piece + 1) * PIECE).min(workloads) {
                failed.lock().insert(workload);
                short_run(workload, PLAN, &count);
                failed.lock().remove(&workload);
            }
            progress.lock().done.insert(piece);
        },
        |number| {
            let piece = todo[number as usize];
            let failed = failed.lock();
            let workload = failed.range(piece * PIECE..(piece + 1) * PIECE).next();
            format!(
                "cargo run --release --features sim --example torture -- exhaustive --only {}",
                workload.copied().unwrap_or(piece * PIECE)
            )
        },
        || {
            let mut progress = progress.lock();
            progress.states = before.states + count.states.load(Ordering::Relaxed);
            progress.second_cuts = before.second_cuts + count.second_cuts.load(Ordering::Relaxed);
            progress.save(&file, length)
        },
    )?;
    let progress = progress.into_inner();
    println!(
        "{} of {workloads} workloads done; in all {} media after one loss of power, {} after a second one",
        (progress.done.len() * PIECE).min(workloads),
        progress.states,
        progress.second_cuts
    );
    Ok(failures)
}

/// What is done, as the file holds it. Media of a piece that was broken off are counted when it is done again, too.
#[derive(Clone, Default)]
struct Progress {
    done: BTreeSet<usize>,
    states: u64,
    second_cuts: u64,
}

impl Progress {
    fn load(file: &Path, length: u32) -> Outcome<Self> {
        if !file.exists() {
            return Ok(Self::default());
        }
        let saved: Value = serde_json::from_slice(&fs::read(file)?)?;
        if saved["length"] != json!(length) || saved["piece"] != json!(PIECE) {
            return Err(format!("{} is of another campaign: name another --state", file.display()).into());
        }
        let number = |field: &str| saved[field].as_u64().ok_or(format!("{}: no {field}", file.display()));
        let done = saved["done"].as_array().into_iter().flatten();
        Ok(Self {
            done: done.filter_map(|piece| piece.as_u64().map(|piece| piece as usize)).collect(),
            states: number("states")?,
            second_cuts: number("second_cuts")?,
        })
    }

    fn save(&self, file: &Path, length: u32) -> Outcome<()> {
        let saved = json!({
            "length": length, "piece": PIECE, "done": self.done,
            "states": self.states, "second_cuts": self.second_cuts,
        });
        // Another file first: whoever stops the campaign in the middle of this loses nothing.
        let fresh = file.with_extension("new");
        fs::write(&fresh, serde_json::to_vec(&saved)?)?;
        Ok(fs::rename(&fresh, file)?)
    }
}
