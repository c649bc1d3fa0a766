//! LMDB as a block store, through heed. A snapshot is a read transaction that is held: it is gone when the process
//! is, and there is no way back to it.
//!
//! Commits do not sync, and a flush is one forced sync. That is LMDB at its fastest, and less than the engine promises:
//! a loss of power between the two may damage the environment.

use std::path::Path;
use std::sync::Mutex;

use heed::byteorder::BigEndian;
use heed::types::{Bytes, U64};
use heed::{Database, Env, EnvFlags, EnvOpenOptions, RoTxn, RwTxn, WithoutTls};

use crate::Result;
use crate::stamp::{BLOCK, BLOCK_BYTES, Ink};
use crate::store::{After, Store};

/// Room for what a held snapshot keeps.
const MAP_FACTOR: u64 = 8;

pub(crate) struct Lmdb {
    env: Env<WithoutTls>,
    blocks: Database<U64<BigEndian>, Bytes>,
    snapshot: Mutex<Option<RoTxn<'static, WithoutTls>>>,
}

impl Lmdb {
    pub(crate) const NAME: &str = "lmdb";

    pub(crate) fn create(folder: &Path, volume_bytes: u64) -> Result<Self> {
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options.map_size((MAP_FACTOR * volume_bytes) as usize);
        // SAFETY: the flags only weaken what a loss of power leaves behind, and no other program or environment of this
        // process opens the file in the benchmark's own folder.
        let env = unsafe {
            options.flags(EnvFlags::NO_SUB_DIR | EnvFlags::NO_SYNC | EnvFlags::NO_MEM_INIT);
            options.open(folder.join("blocks.lmdb"))?
        };
        let mut txn = env.write_txn()?;
        let blocks = env.create_database(&mut txn, None)?;
        txn.commit()?;
        Ok(Self { env, blocks, snapshot: Mutex::new(None) })
    }

    fn commit(&self, work: impl FnOnce(&mut RwTxn<'_>) -> Result<()>) -> Result<()> {
        let mut txn = self.env.write_txn()?;
        work(&mut txn)?;
        Ok(txn.commit()?)
    }
}

impl Store for Lmdb {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let txn = self.env.read_txn()?;
        for (lba, part) in (offset / BLOCK_BYTES..).zip(buf.chunks_mut(BLOCK)) {
            part.copy_from_slice(self.blocks.get(&txn, &lba)?.ok_or("a block is missing")?);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.commit(|txn| {
            let first = offset / BLOCK_BYTES;
            if data.len().is_multiple_of(BLOCK) {
                for (lba, block) in (first..).zip(data.chunks_exact(BLOCK)) {
                    self.blocks.put(txn, &lba, block)?;
                }
                return Ok(());
            }
            let mut block = self.blocks.get(txn, &first)?.ok_or("a block is missing")?.to_vec();
            let start = (offset % BLOCK_BYTES) as usize;
            block[start..start + data.len()].copy_from_slice(data);
            Ok(self.blocks.put(txn, &first, &block)?)
        })
    }

    fn write_blocks(&self, lbas: &[u64], ink: &mut Ink) -> Result<()> {
        self.commit(|txn| lbas.iter().try_for_each(|lba| Ok(self.blocks.put(txn, lba, ink.block(*lba))?)))
    }

    fn flush(&self) -> Result<()> {
        Ok(self.env.force_sync()?)
    }

    fn snapshot(&mut self) -> Result<()> {
        let txn = self.env.clone().static_read_txn()?;
        *self.held()? = Some(txn);
        Ok(())
    }

    fn release(&mut self) -> Result<After> {
        *self.held()? = None;
        Ok(After::Kept)
    }

    fn rollback(&mut self) -> Result<bool> {
        Ok(false)
    }
}

impl Lmdb {
    fn held(&mut self) -> Result<&mut Option<RoTxn<'static, WithoutTls>>> {
        self.snapshot.get_mut().map_err(|_| "a thread panicked".into())
    }
}
