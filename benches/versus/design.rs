//! The rows of the benchmark, and the bounds that the design sets for the engine.

use crate::engine::Engine;

/// Which direction is good.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    More,
    Less,
}

/// What a bound is about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    Value,
    Ratio,
}

/// What a contender must reach, and what it aims at. The direction is the row's.
pub(crate) struct Bound {
    pub(crate) contender: &'static str,
    pub(crate) of: Of,
    pub(crate) must: f64,
    pub(crate) aim: f64,
}

pub(crate) struct Row {
    /// Name in the design.
    pub(crate) id: &'static str,
    pub(crate) what: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
    /// What the ratio is to; empty where there is none.
    pub(crate) against: &'static str,
    pub(crate) bounds: &'static [Bound],
}

const RAW: &str = "raw-4k";

const fn row(id: &'static str, what: &'static str, unit: &'static str, better: Better) -> Row {
    Row { id, what, unit, better, against: "", bounds: &[] }
}

impl Row {
    const fn against(self, against: &'static str) -> Self {
        Self { against, ..self }
    }

    const fn bounds(self, bounds: &'static [Bound]) -> Self {
        Self { bounds, ..self }
    }
}

const fn ratio(must: f64, aim: f64) -> Bound {
    Bound { contender: Engine::NAME, of: Of::Ratio, must, aim }
}

const fn value(must: f64, aim: f64) -> Bound {
    Bound { contender: Engine::NAME, of: Of::Value, must, aim }
}

const fn mapped_value(must: f64, aim: f64) -> Bound {
    Bound { contender: Engine::MMAP, of: Of::Value, must, aim }
}

const fn mapped_ratio(must: f64, aim: f64) -> Bound {
    Bound { contender: Engine::MMAP, of: Of::Ratio, must, aim }
}

const fn ops(id: &'static str, what: &'static str) -> Row {
    row(id, what, "op/s", Better::More)
}

pub(crate) static N1: Row = ops("N1", "random 4 KiB write, first touch after a snapshot, not flushed")
    .against(RAW)
    .bounds(&[ratio(1.0, 2.0)]);
pub(crate) static N2: Row = ops("N2", "the same write with no snapshot in the pool")
    .against("N1 over this")
    .bounds(&[ratio(0.90, 0.98)]);
pub(crate) static N3_ONE: Row =
    ops("N3", "many first touches and one flush, 1 thread").against(RAW).bounds(&[ratio(1.5, 3.0)]);
pub(crate) static N3_TWO: Row =
    ops("N3", "many first touches and one flush, 2 threads").against(RAW).bounds(&[ratio(1.5, 3.0)]);
pub(crate) static N4: Row =
    ops("N4", "32 first touches and a flush, repeated").against(RAW).bounds(&[ratio(1.5, 2.5)]);
pub(crate) static N5: Row =
    ops("N5", "one write and a flush, repeated").against(RAW).bounds(&[ratio(0.9, 1.2)]);
pub(crate) static N6_ONE: Row = ops("N6", "random 4 KiB hot read, 1 thread")
    .against(RAW)
    .bounds(&[ratio(0.85, 1.0), mapped_ratio(1.3, 1.5)]);
pub(crate) static N6_TWO: Row = ops("N6", "random 4 KiB hot read, 2 threads")
    .against("1 thread")
    .bounds(&[ratio(1.7, 1.7), mapped_ratio(1.7, 1.7)]);
pub(crate) static N8: Row =
    ops("N8", "512 B into a block shared with a snapshot").against(RAW).bounds(&[ratio(0.5, 1.0)]);
pub(crate) static N10_SNAPSHOT: Row =
    row("N10", "snapshot, durable", "us", Better::Less).against("durable write").bounds(&[ratio(2.0, 1.2)]);
pub(crate) static N10_ROLLBACK: Row =
    row("N10", "rollback, durable", "us", Better::Less).against("durable write").bounds(&[ratio(2.0, 1.2)]);
pub(crate) static N15_WRITE: Row = row("N15", "sequential 1 MiB writes and one flush", "MiB/s", Better::More)
    .against(RAW)
    .bounds(&[ratio(1.0, 1.5)]);
pub(crate) static N15_READ: Row =
    row("N15", "sequential 1 MiB reads, hot", "MiB/s", Better::More).against(RAW).bounds(&[ratio(0.8, 1.0)]);

macro_rules! ahead {
    ($($name:ident, $of:literal, $must:literal, $bound:ident;)*) => {
        $(pub(crate) static $name: Row = row("N17", concat!("times ahead of the best peer in ", $of), "x", Better::More)
            .bounds(&[$bound($must, 2.0)]);)*
    };
}

ahead! {
    N17_N1, "N1", 1.0, value;
    N17_N3_ONE, "N3, 1 thread", 1.0, value;
    N17_N3_TWO, "N3, 2 threads", 1.0, value;
    N17_N4, "N4", 1.0, value;
    N17_N5, "N5", 0.95, value;
    N17_N6_ONE, "N6, 1 thread", 1.0, mapped_value;
    N17_N6_TWO, "N6, 2 threads", 1.0, mapped_value;
    N17_N8, "N8", 1.0, value;
    N17_N10_SNAPSHOT, "N10, snapshot", 1.0, value;
    N17_N10_ROLLBACK, "N10, rollback", 1.0, value;
}

pub(crate) static N12_SEQUENTIAL: Row =
    row("N12", "metadata of one GiB mapped in sequence", "MiB", Better::Less).bounds(&[value(1.6, 1.2)]);
pub(crate) static N12_RANDOM: Row =
    row("N12", "metadata of one GiB mapped in random blocks", "MiB", Better::Less).bounds(&[value(8.0, 6.5)]);
pub(crate) static N13_RANDOM: Row =
    row("N13", "open after a clean close", "ms", Better::Less).bounds(&[value(1.0, 0.2)]);
pub(crate) static N13: Row =
    row("N13", "open after a clean close", "ms", Better::Less).bounds(&[value(5.0, 0.2)]);
pub(crate) static N13_CRASH: Row =
    row("N13", "open after a crash", "ms", Better::Less).bounds(&[value(200.0, 50.0)]);
pub(crate) static N14: Row =
    row("N14", "memory beyond the cache at work", "MiB", Better::Less).bounds(&[value(16.0, 8.0)]);
pub(crate) static N14_OPEN: Row = row("N14", "memory after opening", "MiB", Better::Less);
pub(crate) static N18_OPEN: Row = row("N18", "8 MiB cache: open", "ms", Better::Less);
pub(crate) static N18_MEMORY: Row =
    row("N18", "8 MiB cache: memory beyond it", "MiB", Better::Less).bounds(&[value(16.0, 8.0)]);
pub(crate) static N18_READ: Row = ops("N18", "8 MiB cache: random read");
pub(crate) static N18_READS: Row =
    row("N18", "8 MiB cache: device reads of a cold read", "reads", Better::Less).bounds(&[value(3.0, 3.0)]);
pub(crate) static N18_WRITE: Row = ops("N18", "8 MiB cache: random overwrite and one flush");
pub(crate) static N18_P99: Row =
    row("N18", "8 MiB cache: p99 of a write during a checkpoint", "us", Better::Less);
pub(crate) static CHECKPOINT: Row = row("-", "checkpoint after 1,000 random overwrites", "ms", Better::Less);
pub(crate) static CHECKPOINT_BYTES: Row = row("-", "what that checkpoint writes", "MiB", Better::Less);

pub(crate) static N7: Row =
    ops("N7", "random 4 KiB hot read").against("no snapshot").bounds(&[ratio(0.95, 1.0)]);
pub(crate) static N10_CLONE: Row =
    row("N10", "clone, durable", "us", Better::Less).against("durable write").bounds(&[ratio(2.0, 1.2)]);
pub(crate) static N10_SIZES: Row =
    row("N10", "largest size over smallest", "x", Better::Less).bounds(&[value(1.2, 1.0)]);
pub(crate) static N11_RETURNS: Row =
    row("N11", "delete of a snapshot, durable and returned", "us", Better::Less)
        .against("durable write")
        .bounds(&[ratio(2.0, 1.2)]);
pub(crate) static N11_RECLAIM: Row =
    row("N11", "delete and reclaim of a contiguous volume", "GiB/s", Better::More)
        .bounds(&[value(5.0, 20.0)]);
pub(crate) static N11_ENTRIES: Row =
    row("N11", "leaf entries looked at by a reclaim", "/s", Better::More).bounds(&[value(50e6, 50e6)]);
pub(crate) static N16: Row = row("N16", "clone and attach of a base image", "us", Better::Less)
    .against("durable write")
    .bounds(&[ratio(2.0, 1.2)]);
pub(crate) static N16_SPACE: Row =
    row("N16", "space of an untouched clone", "KiB", Better::Less).bounds(&[value(8.0, 8.0)]);

pub(crate) static N9: Row =
    ops("N9", "aged pool: random overwrites and one flush").against(RAW).bounds(&[ratio(1.0, 1.5)]);
pub(crate) static N9_MEAN: Row = row("N9", "aged pool: mean run written at once", "KiB", Better::More);
pub(crate) static N9_LONGEST: Row = row("N9", "aged pool: longest run written at once", "KiB", Better::More);

const fn threads(what: &'static str) -> Row {
    const BOUNDS: &[Bound] = &[ratio(1.0, 1.7)];
    ops("-", what).against("1 thread").bounds(BOUNDS)
}

pub(crate) static THREADS_READ: Row = threads("threads: random 4 KiB hot reads");
pub(crate) static THREADS_WRITE: Row = threads("threads: random writes and one flush each");
pub(crate) static THREADS_FLUSH_32: Row = threads("threads: 32 writes and a flush, repeated");
pub(crate) static THREADS_FLUSH: Row = threads("threads: one write and a flush, repeated");

const fn latency(what: &'static str) -> Row {
    row("-", what, "us", Better::Less)
}

pub(crate) static WRITE_P50: Row = latency("4 KiB write, p50");
pub(crate) static WRITE_P99: Row = latency("4 KiB write, p99");
pub(crate) static WRITE_P999: Row = latency("4 KiB write, p99.9");
pub(crate) static FLUSH_P50: Row = latency("flush of 32 writes, p50");
pub(crate) static FLUSH_P99: Row = latency("flush of 32 writes, p99");
pub(crate) static FLUSH_P999: Row = latency("flush of 32 writes, p99.9");
