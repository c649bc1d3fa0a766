//! How long one 4 KiB write and one flush take, alone and while the pool works in the background.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use snapvol::{CheckOptions, CreateOptions, Pool};

use crate::Result;
use crate::design;
use crate::engine::Engine;
use crate::plan::Plan;
use crate::pools::{Layout, Mapped};
use crate::stamp::Ink;
use crate::table::{Report, Sample};

/// Writes before each flush.
const BATCH: u64 = 32;

/// What runs beside the writes, again and again.
type Beside = fn(&Pool, &Mapped) -> Result<()>;

static CASES: [(&str, Beside); 4] = [
    ("alone", |_, _| {
        std::thread::sleep(Duration::from_millis(1));
        Ok(())
    }),
    ("checkpoints beside", |pool, _| Ok(pool.checkpoint()?)),
    ("deletes beside", |pool, volume| {
        let snapshot = volume.snapshot(pool)?;
        // The writes of this while are what the snapshot will have to itself.
        std::thread::sleep(Duration::from_millis(20));
        pool.delete_snapshot(snapshot)?.wait()?;
        Ok(())
    }),
    ("a scrub beside", |pool, _| {
        let report = pool.scrub(CheckOptions::default(), &mut |_| {})?;
        if report.is_clean() { Ok(()) } else { Err("the scrub found damage".into()) }
    }),
];

struct Latencies {
    write: Histogram<u64>,
    flush: Histogram<u64>,
}

pub(crate) fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    plan.say("latency");
    let folder = plan.folder()?;
    let pool = Pool::create(folder.path().join("latency.pool"), CreateOptions::new())?;
    let volume = Mapped::create(&pool, plan.volume_bytes, Layout::Sequential)?;
    let mut rng = fastrand::Rng::with_seed(plan.seed);
    let period = Duration::from_millis(if plan.quick { 300 } else { 1500 });
    for round in 0..plan.rounds {
        for (name, beside) in CASES {
            pool.checkpoint()?;
            let seen = measure(&pool, &volume, beside, period, &mut rng)?;
            let quantiles = [
                (0.5, &design::WRITE_P50, &design::FLUSH_P50),
                (0.99, &design::WRITE_P99, &design::FLUSH_P99),
                (0.999, &design::WRITE_P999, &design::FLUSH_P999),
            ];
            for (quantile, write, flush) in quantiles {
                for (row, histogram) in [(write, &seen.write), (flush, &seen.flush)] {
                    let value = histogram.value_at_quantile(quantile) as f64 / 1e3;
                    report.add_variant(row, name, Engine::NAME, Sample { round, value, ratio: None });
                }
            }
        }
        volume.verify(2000, &mut rng)?;
    }
    Ok(())
}

fn measure(
    pool: &Pool,
    volume: &Mapped,
    beside: Beside,
    period: Duration,
    rng: &mut fastrand::Rng,
) -> Result<Latencies> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let background = scope.spawn(|| {
            while !stop.load(Ordering::Acquire) {
                beside(pool, volume)?;
            }
            Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
        });
        let seen = write_for(volume, period, rng);
        stop.store(true, Ordering::Release);
        background.join().map_err(|_| "a thread panicked")??;
        seen
    })
}

/// Random writes with a flush after each batch, one after another, for as long as asked.
fn write_for(volume: &Mapped, period: Duration, rng: &mut fastrand::Rng) -> Result<Latencies> {
    let mut seen = Latencies { write: Histogram::new(3)?, flush: Histogram::new(3)? };
    let mut ink = Ink::new(2);
    let began = Instant::now();
    while began.elapsed() < period {
        for _ in 0..BATCH {
            let lba = rng.u64(..volume.blocks());
            let at = Instant::now();
            volume.write(lba, &mut ink)?;
            seen.write.record(at.elapsed().as_nanos() as u64)?;
        }
        let at = Instant::now();
        volume.disk.flush()?;
        seen.flush.record(at.elapsed().as_nanos() as u64)?;
    }
    Ok(seen)
}
