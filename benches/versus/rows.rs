//! The core rows: every contender runs each of them one after another within a round, in an order that rotates.

use std::path::Path;

use snapvol::ReadMode;

use crate::design::{self, Row};
use crate::engine::Engine;
use crate::floor::Floor;
use crate::phases::{self, Burst, Flush, Load};
use crate::plan::Plan;
use crate::stamp::BLOCK_BYTES;
use crate::store::Contender;
use crate::table::Report;
use crate::{Result, peers};

/// What the ratio of a row is to.
enum Basis {
    /// The floor in this row.
    Floor,
    /// The contender's own value in another row.
    Own(&'static Row),
    /// The other way round: another row of the contender's over this one.
    Inverse(&'static Row),
}

/// How many operations a row has.
#[derive(Clone, Copy)]
enum Count {
    Writes,
    Flushes,
    Reads,
}

type Run = fn(&mut Contender, &Load) -> Result<Option<f64>>;

struct Phase {
    row: &'static Row,
    /// Also runs when these rows are asked for.
    needed_by: &'static [&'static str],
    basis: Basis,
    count: Count,
    run: Run,
}

const MANY: usize = 1024;

static PHASES: [Phase; 13] = [
    phase(&design::N1, Count::Writes, |c, load| burst(true, 1, 1, Flush::Never).run(c, load).map(Some))
        .needed_by(&["N2"]),
    phase(&design::N2, Count::Writes, |c, load| burst(false, 1, 1, Flush::Never).run(c, load).map(Some))
        .basis(Basis::Inverse(&design::N1)),
    phase(&design::N3_ONE, Count::Writes, |c, load| burst(true, 1, MANY, Flush::Last).run(c, load).map(Some)),
    phase(&design::N3_TWO, Count::Writes, |c, load| burst(true, 2, MANY, Flush::Last).run(c, load).map(Some)),
    phase(&design::N4, Count::Writes, |c, load| burst(true, 1, 32, Flush::Each).run(c, load).map(Some)),
    phase(&design::N5, Count::Flushes, |c, load| burst(false, 1, 1, Flush::Each).run(c, load).map(Some)),
    phase(&design::N6_ONE, Count::Reads, |c, load| phases::read(c, load, 1).map(Some)),
    phase(&design::N6_TWO, Count::Reads, |c, load| phases::read(c, load, 2).map(Some))
        .basis(Basis::Own(&design::N6_ONE)),
    phase(&design::N8, Count::Writes, |c, load| phases::write_parts(c, load).map(Some)),
    phase(&design::N10_SNAPSHOT, Count::Flushes, |c, load| {
        if is_floor(c) { phases::durable_write(c, load) } else { phases::snapshot(c, load) }.map(Some)
    }),
    phase(&design::N10_ROLLBACK, Count::Flushes, |c, load| {
        if is_floor(c) { phases::durable_write(c, load).map(Some) } else { phases::rollback(c, load) }
    }),
    phase(&design::N15_WRITE, Count::Reads, |c, load| phases::write_sequentially(c, load).map(Some)),
    phase(&design::N15_READ, Count::Reads, |c, load| phases::read_sequentially(c, load).map(Some)),
];

const fn phase(row: &'static Row, count: Count, run: Run) -> Phase {
    Phase { row, needed_by: &[], basis: Basis::Floor, count, run }
}

impl Phase {
    const fn needed_by(self, needed_by: &'static [&'static str]) -> Self {
        Self { needed_by, ..self }
    }

    const fn basis(self, basis: Basis) -> Self {
        Self { basis, ..self }
    }
}

const fn burst(snapshot: bool, threads: usize, batch: usize, flush: Flush) -> Burst {
    Burst { snapshot, threads, batch, flush }
}

fn is_floor(c: &Contender) -> bool {
    c.name() == Floor::NAME
}

/// Lays down a volume in every store.
fn contenders(plan: &Plan, folder: &Path) -> Result<Vec<Contender>> {
    let bytes = plan.volume_bytes;
    let blocks = bytes / BLOCK_BYTES;
    let mut all = vec![
        Contender::fill(Box::new(Floor::create(folder)?), blocks)?,
        Contender::fill(Box::new(Engine::create(folder, ReadMode::Pread, bytes)?), blocks)?,
        Contender::fill(Box::new(Engine::create(folder, ReadMode::Mmap, bytes)?), blocks)?,
    ];
    for peer in if plan.peers { peers::all(folder, bytes)? } else { Vec::new() } {
        all.push(Contender::fill(peer, blocks)?);
    }
    Ok(all)
}

pub(crate) fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    let wanted = |p: &&Phase| plan.wants(p.row.id) || p.needed_by.iter().any(|id| plan.wants(id));
    let phases: Vec<&Phase> = PHASES.iter().filter(wanted).collect();
    if phases.is_empty() {
        return Ok(());
    }
    let folder = plan.folder()?;
    plan.say("laying the volumes down");
    let mut contenders = contenders(plan, folder.path())?;
    let mut lbas: Vec<u64> = (0..plan.volume_bytes / BLOCK_BYTES).collect();
    let mut rng = fastrand::Rng::with_seed(plan.seed);
    // The fill wrote version 1.
    let mut versions = 2..;
    for round in 0..plan.rounds {
        plan.say(&format!("round {} of {}", round + 1, plan.rounds));
        for (phase, version) in phases.iter().zip(versions.by_ref()) {
            rng.shuffle(&mut lbas);
            let count = match phase.count {
                Count::Writes => plan.writes,
                Count::Flushes => plan.flushes,
                Count::Reads => plan.reads,
            };
            let load = Load { lbas: lbas[..count].to_vec(), version };
            run_phase(phase, &load, round, &mut contenders, report)?;
        }
    }
    Ok(())
}

fn run_phase(
    phase: &Phase,
    load: &Load,
    round: u32,
    contenders: &mut [Contender],
    report: &mut Report,
) -> Result<()> {
    let mut values = vec![None; contenders.len()];
    for turn in 0..contenders.len() {
        let index = (turn + round as usize) % contenders.len();
        let c = &mut contenders[index];
        let value = (phase.run)(c, load);
        values[index] = value.map_err(|e| format!("{} in {}: {e}", c.name(), phase.row.id))?;
    }
    let floor = contenders.iter().position(is_floor).and_then(|index| values[index]);
    for (c, value) in contenders.iter().zip(values) {
        let Some(value) = value else { continue };
        let own = |row| report.value(row, c.name(), round);
        let ratio = match phase.basis {
            Basis::Floor => floor.map(|floor| value / floor),
            Basis::Own(row) => own(row).map(|other| value / other),
            Basis::Inverse(row) => own(row).map(|other| other / value),
        };
        report.add(phase.row, c.name(), round, value, ratio);
    }
    Ok(())
}
