//! Writing qcow2: one pass, in ascending order, every cluster used once.
//!
//! ```text
//! header | L1 table | data and L2 tables, in the order in which they come | refcount table | refcount blocks
//! ```
//!
//! An L2 table gets its place when the first cluster of its range comes, and is written when the next range begins.
//! What lies where is known only at the end, and so are the refcounts, all of which are 1. The header is written
//! last: before it, the file is no image.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::export::Sink;
use crate::error::{Error, Result, Violation};
use crate::memory;
use crate::units::{BLOCK, BLOCK_BYTES};

const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Entries of 8 bytes in a table of one cluster.
const ENTRIES: u64 = CLUSTER / 8;
/// Counts of 16 bits in a refcount block.
const COUNTS: u64 = CLUSTER / 2;
/// Largest L1 table that readers accept: 32 MiB.
const MAX_L1_ENTRIES: u64 = (32 << 20) / 8;
/// The cluster is used once, so it may be written in place.
const COPIED: u64 = 1 << 63;
const HEADER_BYTES: u32 = 104;

pub(super) struct Qcow2Writer {
    size_bytes: u64,
    /// Offset of each L2 table in the file, 0 for none.
    l1: Vec<u64>,
    /// The table that is being filled, and its number.
    l2: Option<(u64, Vec<u64>)>,
    /// The cluster that is being filled, and its number in the disk.
    cluster: Option<(u64, Vec<u8>)>,
    /// Clusters of the file that have a use.
    used: u64,
}

impl Qcow2Writer {
    pub(super) fn new(size_bytes: u64) -> Result<Self> {
        let l1_entries = size_bytes.div_ceil(CLUSTER * ENTRIES);
        if l1_entries > MAX_L1_ENTRIES {
            let limit = MAX_L1_ENTRIES * ENTRIES * CLUSTER;
            let why = format!("a qcow2 image holds disks of up to {limit} bytes, this one has {size_bytes}");
            return Err(Error::invalid("format", Violation::Size, why));
        }
        let used = 1 + l1_entries.div_ceil(ENTRIES);
        let l1 = memory::filled(0, l1_entries as usize)?;
        Ok(Self { size_bytes, l1, l2: None, cluster: None, used })
    }

    fn take_cluster(&mut self) -> u64 {
        self.used += 1;
        (self.used - 1) * CLUSTER
    }

    fn end_cluster(&mut self, file: &File) -> io::Result<()> {
        let Some((number, bytes)) = self.cluster.take() else { return Ok(()) };
        let (table, index) = (number / ENTRIES, number % ENTRIES);
        if self.l2.as_ref().is_none_or(|(open, _)| *open != table) {
            self.end_table(file)?;
            self.l1[table as usize] = self.take_cluster();
            self.l2 = Some((table, vec![0; ENTRIES as usize]));
        }
        let place = self.take_cluster();
        if let Some((_, entries)) = &mut self.l2 {
            entries[index as usize] = place | COPIED;
        }
        file.write_all_at(&bytes, place)
    }

    fn end_table(&mut self, file: &File) -> io::Result<()> {
        let Some((number, entries)) = self.l2.take() else { return Ok(()) };
        file.write_all_at(&table(&entries), self.l1[number as usize])
    }
}

fn table(entries: &[u64]) -> Vec<u8> {
    entries.iter().flat_map(|entry| entry.to_be_bytes()).collect()
}

impl Sink for Qcow2Writer {
    fn put(&mut self, file: &File, lba: u64, blocks: &[u8]) -> io::Result<()> {
        for (lba, block) in (lba..).zip(blocks.chunks_exact(BLOCK)) {
            let (number, at) = (lba * BLOCK_BYTES / CLUSTER, (lba * BLOCK_BYTES % CLUSTER) as usize);
            if self.cluster.as_ref().is_none_or(|(open, _)| *open != number) {
                self.end_cluster(file)?;
                self.cluster = Some((number, vec![0; CLUSTER as usize]));
            }
            if let Some((_, bytes)) = &mut self.cluster {
                bytes[at..at + BLOCK].copy_from_slice(block);
            }
        }
        Ok(())
    }

    fn finish(&mut self, file: &File) -> io::Result<()> {
        self.end_cluster(file)?;
        self.end_table(file)?;
        let l1: Vec<u64> = self.l1.iter().map(|at| if *at == 0 { 0 } else { at | COPIED }).collect();
        file.write_all_at(&table(&l1), CLUSTER)?;
        // The refcounts count their own clusters, too: more of them until they cover themselves.
        let (mut blocks, mut tables) = (1, 1);
        loop {
            let total = self.used + tables + blocks;
            let (need_blocks, need_tables) =
                (total.div_ceil(COUNTS), total.div_ceil(COUNTS).div_ceil(ENTRIES));
            if (need_blocks, need_tables) == (blocks, tables) {
                break;
            }
            (blocks, tables) = (need_blocks, need_tables);
        }
        let (table_at, total) = (self.used * CLUSTER, self.used + tables + blocks);
        let first_block = table_at + tables * CLUSTER;
        let places: Vec<u64> = (0..blocks).map(|i| first_block + i * CLUSTER).collect();
        file.write_all_at(&table(&places), table_at)?;
        for (i, place) in (0..).zip(&places) {
            let ones = (total - i * COUNTS).min(COUNTS) as usize;
            let mut counts = [0u8, 1].repeat(ones);
            counts.resize(CLUSTER as usize, 0);
            file.write_all_at(&counts, *place)?;
        }
        // The file ends with the last cluster, whole.
        file.set_len(total * CLUSTER)?;
        let mut header = Vec::with_capacity(HEADER_BYTES as usize + 8);
        header.extend_from_slice(b"QFI\xfb");
        header.extend_from_slice(&3u32.to_be_bytes()); // version
        header.extend_from_slice(&[0; 12]); // no backing file
        header.extend_from_slice(&CLUSTER_BITS.to_be_bytes());
        header.extend_from_slice(&self.size_bytes.to_be_bytes());
        header.extend_from_slice(&[0; 4]); // not encrypted
        header.extend_from_slice(&(self.l1.len() as u32).to_be_bytes());
        header.extend_from_slice(&CLUSTER.to_be_bytes()); // the L1 table
        header.extend_from_slice(&table_at.to_be_bytes());
        header.extend_from_slice(&(tables as u32).to_be_bytes());
        header.extend_from_slice(&[0; 12]); // no snapshots
        header.extend_from_slice(&[0; 24]); // no features
        header.extend_from_slice(&4u32.to_be_bytes()); // refcounts of 2^4 bits
        header.extend_from_slice(&HEADER_BYTES.to_be_bytes());
        header.extend_from_slice(&[0; 8]); // no extensions
        file.sync_data()?;
        file.write_all_at(&header, 0)
    }

    /// Follows the tables in the file, not those in memory.
    fn read(&mut self, file: &File, lba: u64, block: &mut [u8; BLOCK]) -> io::Result<()> {
        let offset = lba * BLOCK_BYTES;
        let number = offset / CLUSTER;
        let entry = |at: u64| -> io::Result<u64> {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, at)?;
            Ok(u64::from_be_bytes(bytes) & !COPIED)
        };
        block.fill(0);
        let l2 = entry(CLUSTER + number / ENTRIES * 8)?;
        if l2 == 0 {
            return Ok(());
        }
        match entry(l2 + number % ENTRIES * 8)? {
            0 => Ok(()),
            place => file.read_exact_at(block, place + offset % CLUSTER),
        }
    }
}
