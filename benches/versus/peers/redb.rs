//! redb as a block store: a table of blocks, with persistent savepoints as snapshots.

use std::path::Path;

use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use crate::Result;
use crate::stamp::{BLOCK, BLOCK_BYTES, Ink};
use crate::store::{After, Store};

const BLOCKS: TableDefinition<'_, u64, &[u8; BLOCK]> = TableDefinition::new("blocks");

pub(crate) struct Redb {
    db: Database,
    savepoint: Option<u64>,
}

impl Redb {
    pub(crate) const NAME: &str = "redb";

    pub(crate) fn create(folder: &Path) -> Result<Self> {
        Ok(Self { db: Database::create(folder.join("blocks.redb"))?, savepoint: None })
    }

    /// One transaction. Not durable means visible at once, and durable with the next durable one.
    fn commit(
        &self,
        durability: Durability,
        work: impl FnOnce(&WriteTransaction) -> Result<()>,
    ) -> Result<()> {
        let mut txn = self.db.begin_write()?;
        txn.set_durability(durability)?;
        work(&txn)?;
        Ok(txn.commit()?)
    }

    fn put(&self, durability: Durability, lbas: &[u64], ink: &mut Ink) -> Result<()> {
        self.commit(durability, |txn| {
            let mut table = txn.open_table(BLOCKS)?;
            for &lba in lbas {
                table.insert(lba, &whole(ink.block(lba))?)?;
            }
            Ok(())
        })
    }
}

fn whole(block: &[u8]) -> Result<[u8; BLOCK]> {
    Ok(block.try_into()?)
}

impl Store for Redb {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let table = self.db.begin_read()?.open_table(BLOCKS)?;
        for (lba, part) in (offset / BLOCK_BYTES..).zip(buf.chunks_mut(BLOCK)) {
            let block = table.get(lba)?.ok_or("a block is missing")?;
            part.copy_from_slice(block.value());
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.commit(Durability::None, |txn| {
            let mut table = txn.open_table(BLOCKS)?;
            let first = offset / BLOCK_BYTES;
            if data.len().is_multiple_of(BLOCK) {
                for (lba, block) in (first..).zip(data.chunks_exact(BLOCK)) {
                    table.insert(lba, &whole(block)?)?;
                }
                return Ok(());
            }
            let mut block = *table.get(first)?.ok_or("a block is missing")?.value();
            let start = (offset % BLOCK_BYTES) as usize;
            block[start..start + data.len()].copy_from_slice(data);
            table.insert(first, &block)?;
            Ok(())
        })
    }

    fn write_blocks(&self, lbas: &[u64], ink: &mut Ink) -> Result<()> {
        self.put(Durability::None, lbas, ink)
    }

    fn write_durably(&self, lbas: &[u64], ink: &mut Ink) -> Result<()> {
        self.put(Durability::Immediate, lbas, ink)
    }

    fn flush(&self) -> Result<()> {
        self.commit(Durability::Immediate, |_| Ok(()))
    }

    fn snapshot(&mut self) -> Result<()> {
        let mut savepoint = None;
        self.commit(Durability::Immediate, |txn| {
            savepoint = Some(txn.persistent_savepoint()?);
            Ok(())
        })?;
        self.savepoint = savepoint;
        Ok(())
    }

    fn release(&mut self) -> Result<After> {
        if let Some(savepoint) = self.savepoint.take() {
            self.commit(Durability::Immediate, |txn| {
                txn.delete_persistent_savepoint(savepoint)?;
                Ok(())
            })?;
        }
        Ok(After::Kept)
    }

    fn rollback(&mut self) -> Result<bool> {
        let Some(savepoint) = self.savepoint else { return Ok(false) };
        let mut txn = self.db.begin_write()?;
        let savepoint = txn.get_persistent_savepoint(savepoint)?;
        txn.restore_savepoint(&savepoint)?;
        txn.commit()?;
        Ok(true)
    }
}
