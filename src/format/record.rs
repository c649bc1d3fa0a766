//! Log records: one commit each, or one part of a large commit.

use xxhash_rust::xxh3::xxh3_64;

use super::Reader;
use crate::error::Result;
use crate::memory;
use crate::units::{BLOCK, MAX_BLOCK_ADDR, MAX_RUN_BLOCKS, ObjectId};

const MAGIC: [u8; 8] = *b"SNAPLOG\x01";

/// More parts of the same commit follow; recovery applies all of them or none.
pub(crate) const FLAG_PART: u32 = 1;
/// A checkpoint froze the state that this record ends.
pub(crate) const FLAG_FREEZE: u32 = 2;
/// Carries no change; says which sequence is durable by now.
pub(crate) const FLAG_PROOF: u32 = 4;
/// Data blocks are inside the record and may not have reached their homes.
pub(crate) const FLAG_INLINE: u32 = 8;
const KNOWN_FLAGS: u32 = FLAG_PART | FLAG_FREEZE | FLAG_PROOF | FLAG_INLINE;

/// Kind of a map change. On disk, never renumber.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum ChangeKind {
    /// The range has no mapping any more and reads zero.
    Hole = 0,
    /// The range maps to a run of data blocks.
    Data = 1,
    /// The range is mapped as zeroes, without data.
    Zero = 2,
}

/// One change of one extent map, 24 bytes in a record.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 8 | first LBA |
/// | 8 | 6 | first block of the run (data), else 0 |
/// | 14 | 1 | kind: 0 hole, 1 data, 2 zero |
/// | 15 | 1 | reserved, zero |
/// | 16 | 8 | length in blocks, at most 1,024 for data |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Change {
    pub(crate) lba: u64,
    pub(crate) block: u64,
    pub(crate) len: u64,
    pub(crate) kind: ChangeKind,
}

/// A change of the catalogue, or of which map an object has. Tags on disk, never renumber.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// Tag 1: u16 key length, u32 value length, key, value.
    Put(Vec<u8>, Vec<u8>),
    /// Tag 2: u16 key length, key.
    Delete(Vec<u8>),
    /// Tag 3: destination, source (16 bytes each): the destination's map becomes the source's of this instant.
    CopyMap(ObjectId, ObjectId),
    /// Tag 4: the snapshot epoch advances by one.
    NextEpoch,
    /// Tag 5: 16 bytes: the object's map becomes empty.
    ClearMap(ObjectId),
}

/// Map changes of one object, in order, and the CRC-32 of every data block they name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Group {
    pub(crate) object: ObjectId,
    pub(crate) changes: Vec<Change>,
    pub(crate) crcs: Vec<u32>,
}

/// What a record says.
///
/// Header, 128 bytes:
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 8 | magic `SNAPLOG\x01` |
/// | 8 | 16 | pool UUID |
/// | 24 | 8 | log epoch |
/// | 32 | 8 | sequence |
/// | 40 | 8 | checksum of the predecessor |
/// | 48 | 8 | durable: highest sequence whose sync had returned |
/// | 56 | 8 | generation of the checkpoint that was newest |
/// | 64 | 4 | flags: 1 part, 2 freeze, 4 proof, 8 inline data |
/// | 68 | 4 | body length in bytes |
/// | 72 | 4 | groups of map changes |
/// | 76 | 4 | steps |
/// | 80 | 4 | inline blocks |
/// | 84 | 4 | snapshot epoch of the map changes |
/// | 88 | 32 | reserved, zero |
/// | 120 | 8 | XXH3-64 of the whole padded copy with this field zero |
///
/// Body: the groups (object 16, changes u32, data blocks u32, the changes, then a CRC-32 for each data
/// block), the steps (tag u8, then as [`Step`] says), the inline blocks (block address u64, 4,096 bytes).
/// Padded with zeroes to whole blocks; then the same bytes again as the second copy. Copies do not share
/// a block, so one bad block never takes both.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Record {
    pub(crate) epoch: u64,
    pub(crate) sequence: u64,
    pub(crate) predecessor: u64,
    pub(crate) durable: u64,
    pub(crate) generation: u64,
    pub(crate) flags: u32,
    pub(crate) snapshot_epoch: u32,
    pub(crate) groups: Vec<Group>,
    pub(crate) steps: Vec<Step>,
    pub(crate) inline: Vec<(u64, Vec<u8>)>,
}

const HEADER: usize = 128;
/// Most steps in one record. One of a single byte takes more than fifty in memory: without a bound a record could ask
/// for many times the memory that its pool is long.
pub(crate) const MAX_STEPS: usize = 1 << 18;
const SUM_AT: usize = 120;

/// What stands in front of a record's body, enough to find its end.
pub(crate) struct RecordHead {
    /// Blocks of one copy.
    pub(crate) blocks: u64,
    pub(crate) epoch: u64,
    pub(crate) sequence: u64,
}

impl Record {
    /// Bytes that one change takes, CRCs included.
    pub(crate) fn change_bytes(change: &Change) -> usize {
        24 + if change.kind == ChangeKind::Data { 4 * change.len as usize } else { 0 }
    }

    /// Bytes of both copies.
    pub(crate) fn encoded_bytes(&self) -> usize {
        let group = |g: &Group| 24 + g.changes.len() * 24 + g.crcs.len() * 4;
        let step = |s: &Step| match s {
            Step::Put(key, value) => 7 + key.len() + value.len(),
            Step::Delete(key) => 3 + key.len(),
            Step::CopyMap(..) => 33,
            Step::NextEpoch => 1,
            Step::ClearMap(_) => 17,
        };
        let body = self.groups.iter().map(group).sum::<usize>()
            + self.steps.iter().map(step).sum::<usize>()
            + self.inline.len() * (8 + BLOCK);
        2 * (HEADER + body).next_multiple_of(BLOCK)
    }

    /// Appends both copies to `out`, which holds whole blocks, and returns the record's checksum.
    pub(crate) fn encode(&self, uuid: &[u8; 16], out: &mut Vec<u8>) -> u64 {
        let start = out.len();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(uuid);
        for v in [self.epoch, self.sequence, self.predecessor, self.durable, self.generation] {
            out.extend_from_slice(&v.to_le_bytes());
        }
        out.extend_from_slice(&self.flags.to_le_bytes());
        out.extend_from_slice(&[0; 4]); // body length, filled in below
        for v in [self.groups.len(), self.steps.len(), self.inline.len()] {
            out.extend_from_slice(&(v as u32).to_le_bytes());
        }
        out.extend_from_slice(&self.snapshot_epoch.to_le_bytes());
        out.resize(start + HEADER, 0);
        for g in &self.groups {
            out.extend_from_slice(&g.object.0);
            out.extend_from_slice(&(g.changes.len() as u32).to_le_bytes());
            out.extend_from_slice(&(g.crcs.len() as u32).to_le_bytes());
            for c in &g.changes {
                out.extend_from_slice(&c.lba.to_le_bytes());
                out.extend_from_slice(&(c.block | u64::from(c.kind as u8) << 48).to_le_bytes());
                out.extend_from_slice(&c.len.to_le_bytes());
            }
            for crc in &g.crcs {
                out.extend_from_slice(&crc.to_le_bytes());
            }
        }
        for s in &self.steps {
            match s {
                Step::Put(key, value) => {
                    out.push(1);
                    out.extend_from_slice(&(key.len() as u16).to_le_bytes());
                    out.extend_from_slice(&(value.len() as u32).to_le_bytes());
                    out.extend_from_slice(key);
                    out.extend_from_slice(value);
                }
                Step::Delete(key) => {
                    out.push(2);
                    out.extend_from_slice(&(key.len() as u16).to_le_bytes());
                    out.extend_from_slice(key);
                }
                Step::CopyMap(to, from) => {
                    out.push(3);
                    out.extend_from_slice(&to.0);
                    out.extend_from_slice(&from.0);
                }
                Step::NextEpoch => out.push(4),
                Step::ClearMap(object) => {
                    out.push(5);
                    out.extend_from_slice(&object.0);
                }
            }
        }
        for (addr, bytes) in &self.inline {
            out.extend_from_slice(&addr.to_le_bytes());
            out.extend_from_slice(bytes);
        }
        let body = out.len() - start - HEADER;
        out[start + 68..start + 72].copy_from_slice(&(body as u32).to_le_bytes());
        out.resize(start + (HEADER + body).next_multiple_of(BLOCK), 0);
        let sum = xxh3_64(&out[start..]);
        out[start + SUM_AT..start + HEADER].copy_from_slice(&sum.to_le_bytes());
        out.extend_from_within(start..);
        sum
    }

    /// Reads the head of a copy; `None` when there is no record of this pool here.
    pub(crate) fn peek(bytes: &[u8], uuid: &[u8; 16]) -> Option<RecordHead> {
        let mut r = Reader::new(bytes, "log record", 0);
        if r.array::<8>().ok()? != MAGIC || r.array::<16>().ok()? != *uuid {
            return None;
        }
        let epoch = r.u64().ok()?;
        let sequence = r.u64().ok()?;
        r.take(24 + 4).ok()?;
        let body = r.u32().ok()? as usize;
        let blocks = (HEADER + body).div_ceil(BLOCK) as u64;
        Some(RecordHead { blocks, epoch, sequence })
    }

    /// Decodes one copy (exactly its padded bytes). Returns the record and its checksum; `Corrupt`, or `OutOfMemory`,
    /// which says nothing about the record.
    pub(crate) fn decode(copy: &[u8], uuid: &[u8; 16], at_block: u64) -> Result<(Self, u64)> {
        let mut r = Reader::new(copy, "log record", at_block);
        let magic = r.array::<8>()?;
        if magic != MAGIC || r.array::<16>()? != *uuid {
            return Err(r.bad("identity", "a record of this pool", "something else").into());
        }
        let sum = {
            let mut hasher = xxhash_rust::xxh3::Xxh3::new();
            if copy.len() < HEADER {
                return Err(r.bad("length", HEADER, copy.len()).into());
            }
            hasher.update(&copy[..SUM_AT]);
            hasher.update(&[0; 8]);
            hasher.update(&copy[HEADER..]);
            hasher.digest()
        };
        let stored = Reader::new(&copy[SUM_AT..], "log record", at_block).u64()?;
        if sum != stored {
            return Err(r.bad("checksum", format!("{sum:#x}"), format!("{stored:#x}")).into());
        }
        let mut this = Self {
            epoch: r.u64()?,
            sequence: r.u64()?,
            predecessor: r.u64()?,
            durable: r.u64()?,
            generation: r.u64()?,
            flags: r.u32()?,
            ..Self::default()
        };
        let body = r.u32()? as usize;
        let (groups, steps, inline) = (r.u32()?, r.u32()?, r.u32()?);
        this.snapshot_epoch = r.u32()?;
        r.zeroes(SUM_AT - 88)?;
        r.take(8)?;
        if body > r.rest() || this.flags & !KNOWN_FLAGS != 0 {
            return Err(r.bad("body length or flags", format!("at most {}", r.rest()), body).into());
        }
        if steps as usize > MAX_STEPS {
            return Err(r.bad("steps", format!("at most {MAX_STEPS}"), steps).into());
        }
        for _ in 0..groups {
            let object = ObjectId(r.array()?);
            let (changes, crcs) = (r.u32()? as usize, r.u32()? as usize);
            if changes.saturating_mul(24).saturating_add(crcs.saturating_mul(4)) > r.rest() {
                return Err(r.bad("changes", format!("within {} bytes", r.rest()), changes).into());
            }
            let mut g =
                Group { object, changes: memory::with_room(changes)?, crcs: memory::with_room(crcs)? };
            let mut named = 0;
            for _ in 0..changes {
                let (lba, block, kind, pad, len) = (r.u64()?, r.u48()?, r.u8()?, r.u8()?, r.u64()?);
                let kind = match kind {
                    0 => ChangeKind::Hole,
                    1 => ChangeKind::Data,
                    2 => ChangeKind::Zero,
                    other => return Err(r.bad("change kind", "0, 1 or 2", other).into()),
                };
                let fits = lba <= MAX_BLOCK_ADDR && len <= MAX_BLOCK_ADDR + 1 - lba;
                let lawful = match kind {
                    ChangeKind::Data => len <= MAX_RUN_BLOCKS && block + len <= MAX_BLOCK_ADDR,
                    _ => block == 0,
                };
                if pad != 0 || len == 0 || !fits || !lawful {
                    return Err(r
                        .bad("change", "a range within 48 bits", format!("{lba}+{len} -> {block}"))
                        .into());
                }
                if kind == ChangeKind::Data {
                    named += len as usize;
                }
                g.changes.push(Change { lba, block, len, kind });
            }
            if named != crcs {
                return Err(r.bad("block checksums", named, crcs).into());
            }
            for _ in 0..crcs {
                g.crcs.push(r.u32()?);
            }
            this.groups.push(g);
        }
        for _ in 0..steps {
            this.steps.push(match r.u8()? {
                1 => {
                    let (k, v) = (r.u16()? as usize, r.u32()? as usize);
                    Step::Put(r.take(k)?.to_vec(), r.take(v)?.to_vec())
                }
                2 => {
                    let k = r.u16()? as usize;
                    Step::Delete(r.take(k)?.to_vec())
                }
                3 => Step::CopyMap(ObjectId(r.array()?), ObjectId(r.array()?)),
                4 => Step::NextEpoch,
                5 => Step::ClearMap(ObjectId(r.array()?)),
                other => return Err(r.bad("step tag", "1 to 5", other).into()),
            });
        }
        for _ in 0..inline {
            this.inline.push((r.u64()?, r.take(BLOCK)?.to_vec()));
        }
        if this.inline.is_empty() != (this.flags & FLAG_INLINE == 0) {
            return Err(r.bad("inline blocks", "as the flag says", this.inline.len()).into());
        }
        r.finish()?;
        Ok((this, sum))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Record {
        Record {
            epoch: 1,
            sequence: 2,
            predecessor: 3,
            durable: 1,
            generation: 4,
            flags: FLAG_INLINE,
            snapshot_epoch: 9,
            groups: vec![Group {
                object: ObjectId([5; 16]),
                changes: vec![
                    Change { lba: 1, block: 70, len: 2, kind: ChangeKind::Data },
                    Change { lba: 9, block: 0, len: 1 << 40, kind: ChangeKind::Hole },
                ],
                crcs: vec![8, 9],
            }],
            steps: vec![
                Step::Put(b"k".to_vec(), b"value".to_vec()),
                Step::Delete(b"k2".to_vec()),
                Step::CopyMap(ObjectId([1; 16]), ObjectId([2; 16])),
                Step::NextEpoch,
                Step::ClearMap(ObjectId([3; 16])),
            ],
            inline: vec![(70, vec![1; BLOCK])],
        }
    }

    #[test]
    fn both_copies_decode_to_what_was_encoded() {
        let mut out = Vec::new();
        let sum = sample().encode(&[6; 16], &mut out);
        assert_eq!(out.len(), sample().encoded_bytes());
        let half = out.len() / 2;
        assert_eq!(Record::peek(&out, &[6; 16]).unwrap().blocks as usize * BLOCK, half);
        for copy in [&out[..half], &out[half..]] {
            assert_eq!(Record::decode(copy, &[6; 16], 0).unwrap(), (sample(), sum));
        }
    }

    #[test]
    fn more_steps_than_memory_is_meant_for_are_refused() {
        for (steps, fits) in [(MAX_STEPS, true), (MAX_STEPS + 1, false)] {
            let record = Record { steps: vec![Step::NextEpoch; steps], ..Record::default() };
            let mut out = Vec::new();
            record.encode(&[6; 16], &mut out);
            assert_eq!(Record::decode(&out[..out.len() / 2], &[6; 16], 0).is_ok(), fits, "{steps} steps");
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed() {
        let mut out = Vec::new();
        sample().encode(&[6; 16], &mut out);
        let half = out.len() / 2;
        for at in 0..half {
            out[at] ^= 1;
            assert!(Record::decode(&out[..half], &[6; 16], 0).is_err(), "byte {at}");
            out[at] ^= 1;
        }
    }
}
