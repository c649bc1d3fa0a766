//! What the workloads ask of a block store: the engine, the floor and the peers are one each.

use crate::Result;
use crate::stamp::{BLOCK, BLOCK_BYTES, Ink, Ledger};

/// Where the writes made after a snapshot are once it is gone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    Kept,
    /// The store goes back to the snapshot, because it cannot merge cheaply.
    Undone,
}

/// A volume of fixed size in some store. Offsets are bytes.
pub(crate) trait Store: Sync {
    fn name(&self) -> &'static str;

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// Once it returns every later read sees the bytes; they need not be durable.
    fn write(&self, offset: u64, data: &[u8]) -> Result<()>;

    /// Writes that come together: a store with transactions may make one of them.
    fn write_blocks(&self, lbas: &[u64], ink: &mut Ink) -> Result<()> {
        lbas.iter().try_for_each(|&lba| self.write(lba * BLOCK_BYTES, ink.block(lba)))
    }

    /// Writes that come together and are durable on return.
    fn write_durably(&self, lbas: &[u64], ink: &mut Ink) -> Result<()> {
        self.write_blocks(lbas, ink)?;
        self.flush()
    }

    /// Makes every write before it durable.
    fn flush(&self) -> Result<()>;

    /// Finishes what the store has put off, so that it is not paid in the next phase.
    fn settle(&self) -> Result<()> {
        self.flush()
    }

    /// Preserves the volume as it is now, durably where the store can.
    fn snapshot(&mut self) -> Result<()>;

    /// Gives the last snapshot up.
    fn release(&mut self) -> Result<After>;

    /// Goes back to the last snapshot, durably, and keeps it. False where the store has no such thing.
    fn rollback(&mut self) -> Result<bool>;
}

/// A store in the contest, with what it must hold.
pub(crate) struct Contender {
    pub(crate) store: Box<dyn Store>,
    pub(crate) ledger: Ledger,
    /// The ledger at the moment of the snapshot.
    before: Option<Ledger>,
}

impl Contender {
    /// Lays the whole volume down, block by block.
    pub(crate) fn fill(store: Box<dyn Store>, blocks: u64) -> Result<Self> {
        let mut ledger = Ledger::new(blocks);
        let mut ink = Ink::new(1);
        let lbas: Vec<u64> = (0..blocks).collect();
        for lbas in lbas.chunks(1024) {
            store.write_blocks(lbas, &mut ink)?;
            lbas.iter().for_each(|&lba| ledger.wrote_block(lba, ink.version()));
        }
        store.settle()?;
        Ok(Self { store, ledger, before: None })
    }

    pub(crate) fn name(&self) -> &'static str {
        self.store.name()
    }

    pub(crate) fn snapshot(&mut self) -> Result<()> {
        self.store.snapshot()?;
        self.before = Some(self.ledger.clone());
        Ok(())
    }

    pub(crate) fn release(&mut self) -> Result<()> {
        let after = self.store.release()?;
        if let (After::Undone, Some(before)) = (after, self.before.take()) {
            self.ledger = before;
        }
        self.store.settle()
    }

    /// False where the store cannot.
    pub(crate) fn rollback(&mut self) -> Result<bool> {
        let offered = self.store.rollback()?;
        if let (true, Some(before)) = (offered, &self.before) {
            self.ledger = before.clone();
        }
        Ok(offered)
    }

    /// Reads blocks back and compares every byte.
    pub(crate) fn verify(&self, lbas: &[u64]) -> Result<()> {
        let mut ink = Ink::new(0);
        let mut block = vec![0; BLOCK];
        for &lba in lbas {
            self.store.read(lba * BLOCK_BYTES, &mut block)?;
            let checked = self.ledger.check(lba, &block, &mut ink);
            checked.map_err(|e| format!("{}: {e}", self.name()))?;
        }
        Ok(())
    }
}
