//! The timed phases: what one contender does in one row of one round, verified afterwards.

use std::time::{Duration, Instant};

use crate::Result;
use crate::memory::pretouch;
use crate::stamp::{BLOCK, BLOCK_BYTES, Ink, Ledger, PART_START};
use crate::store::{Contender, Store};
use crate::table::Spread;

const MIB: usize = 1 << 20;
/// Times a call of N10 is repeated within a round; the median counts.
const CALLS: usize = 9;

/// What all contenders of one row and round get alike.
pub(crate) struct Load {
    /// Distinct blocks in random order.
    pub(crate) lbas: Vec<u64>,
    pub(crate) version: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flush {
    Never,
    Last,
    /// After each batch.
    Each,
}

/// Random writes of whole blocks.
#[derive(Clone, Copy)]
pub(crate) struct Burst {
    pub(crate) snapshot: bool,
    pub(crate) threads: usize,
    /// Blocks that come together.
    pub(crate) batch: usize,
    pub(crate) flush: Flush,
}

impl Burst {
    /// Operations a second.
    pub(crate) fn run(self, c: &mut Contender, load: &Load) -> Result<f64> {
        if self.snapshot {
            c.snapshot()?;
        }
        pretouch(load.lbas.len());
        let share = load.lbas.len().div_ceil(self.threads);
        let store = &*c.store;
        let took = timed(|| {
            in_threads(load.lbas.chunks(share), |lbas| self.write(store, lbas, load.version))?;
            if self.flush == Flush::Last { store.flush() } else { Ok(()) }
        })?;
        store.settle()?;
        load.lbas.iter().for_each(|&lba| c.ledger.wrote_block(lba, load.version));
        c.verify(&load.lbas)?;
        if self.snapshot {
            c.release()?;
        }
        Ok(rate(load.lbas.len(), took))
    }

    fn write(self, store: &dyn Store, lbas: &[u64], version: u32) -> Result<()> {
        let mut ink = Ink::new(version);
        for lbas in lbas.chunks(self.batch) {
            match self.flush {
                Flush::Each => store.write_durably(lbas, &mut ink)?,
                Flush::Never | Flush::Last => store.write_blocks(lbas, &mut ink)?,
            }
        }
        Ok(())
    }
}

/// Random hot reads of whole blocks, each recognised. Operations a second.
pub(crate) fn read(c: &mut Contender, load: &Load, threads: usize) -> Result<f64> {
    // The first pass makes them hot; it compares every byte.
    c.verify(&load.lbas)?;
    let share = load.lbas.len().div_ceil(threads);
    let (store, ledger) = (&*c.store, &c.ledger);
    let took = timed(|| in_threads(load.lbas.chunks(share), |lbas| read_blocks(store, ledger, lbas)))?;
    Ok(rate(load.lbas.len(), took))
}

fn read_blocks(store: &dyn Store, ledger: &Ledger, lbas: &[u64]) -> Result<()> {
    let mut block = vec![0; BLOCK];
    for &lba in lbas {
        store.read(lba * BLOCK_BYTES, &mut block)?;
        ledger.glance(lba, &block)?;
    }
    Ok(())
}

/// Small writes into blocks that a snapshot shares. Operations a second.
pub(crate) fn write_parts(c: &mut Contender, load: &Load) -> Result<f64> {
    // Hot blocks, as everywhere: the copy is measured, not the disk.
    c.verify(&load.lbas)?;
    c.snapshot()?;
    pretouch(load.lbas.len());
    let mut ink = Ink::new(load.version);
    let took = timed(|| {
        let part_of = |lba| lba * BLOCK_BYTES + PART_START as u64;
        load.lbas.iter().try_for_each(|&lba| c.store.write(part_of(lba), ink.part(lba)))
    })?;
    c.store.settle()?;
    load.lbas.iter().for_each(|&lba| c.ledger.wrote_part(lba, load.version));
    c.verify(&load.lbas)?;
    c.release()?;
    Ok(rate(load.lbas.len(), took))
}

/// 1 MiB writes in sequence from the start of the volume, and one flush. MiB a second.
pub(crate) fn write_sequentially(c: &mut Contender, load: &Load) -> Result<f64> {
    pretouch(load.lbas.len());
    let mut ink = Ink::new(load.version);
    let mut piece = vec![0; MIB];
    ink.fill(0, &mut piece);
    let blocks = load.lbas.len() as u64;
    let mut took = Duration::ZERO;
    for lba in (0..blocks).step_by(MIB / BLOCK) {
        ink.readdress(lba, &mut piece);
        took += timed(|| c.store.write(lba * BLOCK_BYTES, &piece))?;
    }
    took += timed(|| c.store.flush())?;
    c.store.settle()?;
    (0..blocks).for_each(|lba| c.ledger.wrote_block(lba, load.version));
    c.verify(&load.lbas)?;
    Ok(rate(blocks as usize / (MIB / BLOCK), took))
}

/// 1 MiB reads in sequence from the start of the volume, each block recognised. MiB a second.
pub(crate) fn read_sequentially(c: &mut Contender, load: &Load) -> Result<f64> {
    let mut piece = vec![0; MIB];
    let blocks = load.lbas.len() as u64;
    // What is read must be hot: these blocks, and not others as many. The order is that of the random reads, so that
    // no contender is helped by what the host reads ahead.
    let mut lbas: Vec<u64> = (0..blocks).collect();
    fastrand::Rng::with_seed(load.version.into()).shuffle(&mut lbas);
    c.verify(&lbas)?;
    let mut took = Duration::ZERO;
    for lba in (0..blocks).step_by(MIB / BLOCK) {
        took += timed(|| c.store.read(lba * BLOCK_BYTES, &mut piece))?;
        for (at, block) in (lba..).zip(piece.chunks_exact(BLOCK)) {
            c.ledger.glance(at, block)?;
        }
    }
    Ok(rate(blocks as usize / (MIB / BLOCK), took))
}

/// One durable write of a block, which is what N10 is measured against. Microseconds.
pub(crate) fn durable_write(c: &mut Contender, load: &Load) -> Result<f64> {
    median_call(load, |lba| {
        let mut ink = Ink::new(load.version);
        let took = timed(|| c.store.write_durably(&[lba], &mut ink))?;
        c.ledger.wrote_block(lba, load.version);
        c.verify(&[lba])?;
        Ok(took)
    })
}

/// A snapshot of a volume that has nothing unflushed. Microseconds.
pub(crate) fn snapshot(c: &mut Contender, load: &Load) -> Result<f64> {
    median_call(load, |lba| {
        touch(c, lba, load.version)?;
        let took = timed(|| c.snapshot())?;
        c.verify(&[lba])?;
        c.release()?;
        Ok(took)
    })
}

/// A rollback of a volume that has nothing unflushed and differs from the snapshot. Microseconds, or nothing where
/// the store cannot.
pub(crate) fn rollback(c: &mut Contender, load: &Load) -> Result<Option<f64>> {
    c.snapshot()?;
    let mut offered = true;
    let took = median_call(load, |lba| {
        touch(c, lba, load.version)?;
        let took = timed(|| {
            offered &= c.rollback()?;
            Ok(())
        })?;
        c.verify(&[lba])?;
        Ok(took)
    })?;
    c.release()?;
    Ok(offered.then_some(took))
}

fn touch(c: &mut Contender, lba: u64, version: u32) -> Result<()> {
    c.store.write(lba * BLOCK_BYTES, Ink::new(version).block(lba))?;
    c.ledger.wrote_block(lba, version);
    c.store.flush()
}

fn median_call(load: &Load, call: impl FnMut(u64) -> Result<Duration>) -> Result<f64> {
    let calls: Result<Vec<Duration>> = load.lbas.iter().copied().take(CALLS).map(call).collect();
    let mut micros: Vec<f64> = calls?.iter().map(|took| took.as_secs_f64() * 1e6).collect();
    Ok(Spread::of(&mut micros).median)
}

/// How long it took.
pub(crate) fn timed(run: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let began = Instant::now();
    run()?;
    Ok(began.elapsed())
}

pub(crate) fn rate(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

/// Runs each piece of work in a thread of its own; a single one in this thread.
pub(crate) fn in_threads<W: Send>(
    work: impl ExactSizeIterator<Item = W>,
    run: impl Fn(W) -> Result<()> + Sync,
) -> Result<()> {
    if work.len() == 1 {
        return work.into_iter().try_for_each(run);
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> = work.map(|w| scope.spawn(|| run(w))).collect();
        threads.into_iter().try_for_each(|t| t.join().map_err(|_| "a thread panicked")?)
    })
}
