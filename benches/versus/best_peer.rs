//! N17: the engine against the best peer of each row and round.

use std::collections::BTreeSet;

use crate::design::{self, Better, Row};
use crate::engine::Engine;
use crate::peers;
use crate::table::Report;

/// A row of N17, the row it compares, and who stands for the engine there.
struct Pair {
    of: &'static Row,
    row: &'static Row,
    engine: &'static str,
}

static PAIRS: [Pair; 10] = [
    pair(&design::N1, &design::N17_N1),
    pair(&design::N3_ONE, &design::N17_N3_ONE),
    pair(&design::N3_TWO, &design::N17_N3_TWO),
    pair(&design::N4, &design::N17_N4),
    pair(&design::N5, &design::N17_N5),
    Pair { of: &design::N6_ONE, row: &design::N17_N6_ONE, engine: Engine::MMAP },
    Pair { of: &design::N6_TWO, row: &design::N17_N6_TWO, engine: Engine::MMAP },
    pair(&design::N8, &design::N17_N8),
    pair(&design::N10_SNAPSHOT, &design::N17_N10_SNAPSHOT),
    pair(&design::N10_ROLLBACK, &design::N17_N10_ROLLBACK),
];

const fn pair(of: &'static Row, row: &'static Row) -> Pair {
    Pair { of, row, engine: Engine::NAME }
}

/// Adds the rows whose figures are there.
pub(crate) fn compare(report: &mut Report) {
    for pair in &PAIRS {
        let rounds: BTreeSet<u32> =
            report.series.iter().flat_map(|s| s.samples.iter().map(|sample| sample.round)).collect();
        for round in rounds {
            let value = |who: &str| report.value(pair.of, who, round);
            // LMDB's snapshot is not durable.
            let durable = |who: &&&str| pair.of.id != "N10" || **who != peers::LMDB;
            let rivals = peers::NAMES.iter().filter(durable).filter_map(|who| value(who));
            let best = match pair.of.better {
                Better::More => rivals.reduce(f64::max),
                Better::Less => rivals.reduce(f64::min),
            };
            let (Some(engine), Some(best)) = (value(pair.engine), best) else { continue };
            let ahead = match pair.of.better {
                Better::More => engine / best,
                Better::Less => best / engine,
            };
            report.add(pair.row, pair.engine, round, ahead, None);
        }
    }
}
