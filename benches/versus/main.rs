//! The engine against the raw floor and its best peers: `cargo bench --bench versus`.
//!
//! ```text
//! cargo bench --bench versus -- [--quick] [--rows N1,N3,...] [--rounds N] [--only core|ageing|scale|threads] [--without-peers]
//! ```
//!
//! Every row of the design's table is run by all contenders within one round, one after another, in an order that
//! rotates; only ratios within a round are compared. What was read is verified in every round. One table goes to
//! standard output, and with a chart into `target/versus`.

mod ageing;
mod best_peer;
mod calls;
mod chart;
mod child;
mod design;
mod device;
mod engine;
mod floor;
mod latency;
mod memory;
mod meter;
mod peers;
mod phases;
mod plan;
mod pools;
mod rows;
mod scale;
mod stamp;
mod store;
mod table;
mod threads;

use plan::{Part, Plan};
use table::Report;

type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

fn main() -> Result<()> {
    if let Some(task) = child::task()? {
        return child::work(&task);
    }
    let Some(plan) = Plan::from_args()? else { return Ok(()) };
    let mut report = Report::default();
    if plan.includes(Part::Core) {
        rows::run(&plan, &mut report)?;
        best_peer::compare(&mut report);
        calls::run(&plan, &mut report)?;
    }
    let aged = if plan.includes(Part::Ageing) { ageing::run(&plan, &mut report)? } else { Vec::new() };
    if plan.includes(Part::Threads) {
        threads::run(&plan, &mut report)?;
        latency::run(&plan, &mut report)?;
    }
    if plan.includes(Part::Scale) {
        scale::run(&plan, &mut report)?;
    }
    if plan.quick {
        report.note("a quick run: three rounds, small volumes and short phases, good for seeing that everything works");
    }
    report.print(&mut std::io::stdout().lock())?;
    let results = plan.results()?;
    report.write_json(&results.join("versus.json"))?;
    chart::ratios(&report, &results.join("versus.svg"))?;
    chart::ageing(&aged, &results.join("ageing.svg"))?;
    plan.say(&format!("written to {}", results.display()));
    Ok(())
}
