//! More threads, on one disk and on several: no row may fall when one is added.

use snapvol::{CreateOptions, Pool};

use crate::Result;
use crate::design::{self, Row};
use crate::engine::Engine;
use crate::memory::pretouch;
use crate::phases::{in_threads, rate, timed};
use crate::plan::Plan;
use crate::pools::{Layout, Mapped};
use crate::stamp::{BLOCK, Ink};
use crate::table::{Report, Sample};

/// What a thread does with the blocks it got.
type Work = fn(&Mapped, &[u64], u32) -> Result<()>;

/// Rows, by what their operations are fewer than those of a phase of writes, and the work.
static ROWS: [(&Row, usize, Work); 4] = [
    (&design::THREADS_READ, 1, |volume, lbas, _| {
        let mut block = vec![0; BLOCK];
        lbas.iter().try_for_each(|&lba| volume.read(lba, &mut block))
    }),
    (&design::THREADS_WRITE, 1, |volume, lbas, version| write(volume, lbas, version, lbas.len())),
    (&design::THREADS_FLUSH_32, 1, |volume, lbas, version| write(volume, lbas, version, 32)),
    (&design::THREADS_FLUSH, 16, |volume, lbas, version| write(volume, lbas, version, 1)),
];

fn write(volume: &Mapped, lbas: &[u64], version: u32, batch: usize) -> Result<()> {
    let mut ink = Ink::new(version);
    for lbas in lbas.chunks(batch) {
        lbas.iter().try_for_each(|&lba| volume.write(lba, &mut ink))?;
        volume.disk.flush()?;
    }
    Ok(())
}

pub(crate) fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    plan.say("threads");
    let cores = std::thread::available_parallelism()?.get();
    let counts: Vec<usize> = [1, 2, 4, 8].into_iter().filter(|&threads| threads <= cores.max(2)).collect();
    let most = counts.iter().copied().max().unwrap_or(1);
    let folder = plan.folder()?;
    let pool = Pool::create(folder.path().join("threads.pool"), CreateOptions::new())?;
    let bytes = plan.volume_bytes / 4;
    let volumes: Result<Vec<Mapped>> =
        (0..most).map(|_| Mapped::create(&pool, bytes, Layout::Sequential)).collect();
    let volumes = volumes?;
    let mut lbas: Vec<u64> = (0..volumes[0].blocks()).collect();
    let mut rng = fastrand::Rng::with_seed(plan.seed);
    let mut versions = 2..;
    for round in 0..plan.rounds {
        for (row, fewer, work) in ROWS {
            for (disks, several) in [("one disk", false), ("a disk each", true)] {
                let mut alone = None;
                for (&threads, version) in counts.iter().zip(versions.by_ref()) {
                    rng.shuffle(&mut lbas);
                    // Each thread does as much as a single one did, where there are blocks enough.
                    let share = plan.writes.min(lbas.len() / threads) / fewer;
                    let shares: Vec<(&Mapped, &[u64])> = (0..threads)
                        .map(|t| (&volumes[if several { t } else { 0 }], &lbas[t * share..(t + 1) * share]))
                        .collect();
                    pool.checkpoint()?;
                    pretouch(threads * share);
                    let took = timed(|| {
                        in_threads(shares.into_iter(), |(volume, lbas)| work(volume, lbas, version))
                    })?;
                    let value = rate(threads * share, took);
                    let ratio = Some(value / *alone.get_or_insert(value));
                    let variant = format!("{threads} on {disks}");
                    report.add_variant(row, &variant, Engine::NAME, Sample { round, value, ratio });
                }
            }
        }
        volumes.iter().try_for_each(|volume| volume.verify(2000, &mut rng))?;
    }
    Ok(())
}
