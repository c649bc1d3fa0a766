//! Replay of a log that somebody else has written: records that are sound in themselves, follow on one another, and
//! say anything.
//!
//! | bytes | meaning |
//! |---|---|
//! | 1 | bit 0: the pool, 0 killed, 1 closed; bit 2: behind its own records (else instead of them); bit 3: open for reading only; bit 4: at the last good commit |
//! | per record | u8 what of its head is not as it should be; u8 flags; u8 what is durable, from the last sequence back; u8 parts |
//! | per part | a code (modulo 8), then its fields: see [`Builder::part`] |

use std::sync::OnceLock;

use snapvol::Pool;

use super::image::{options, use_all};
use super::repair::{seal_record, superblocks, u64_at};
use super::{Input, Watched};
use crate::common::damage::{End, Subject};

const BLOCK: usize = 4096;
const HEADER: usize = 128;

/// What the newest superblock of an image says of its log, and where its records end.
#[derive(Clone)]
struct Log {
    image: Vec<u8>,
    uuid: [u8; 16],
    epoch: u64,
    start: u64,
    blocks: u64,
    first_chunk: u64,
    generation: u64,
    /// Where the next record goes: block in the ring, sequence, checksum of its predecessor. First the place behind
    /// the checkpoint, then that behind the last record.
    ends: [(u64, u64, u64); 2],
}

impl Log {
    fn of(image: Vec<u8>) -> Self {
        let newest = superblocks(&image).into_iter().max_by_key(|at| u64_at(&image, at + 56));
        let at = newest.expect("the pool has superblocks");
        let field = |offset| u64_at(&image, at + offset);
        let begin = (field(120) % field(80), field(128), field(136));
        let (mut end, start, blocks) = (begin, field(72), field(80));
        // Follow the chain as far as it goes without a turn of the ring.
        loop {
            let place = ((start + end.0) as usize) * BLOCK;
            let same_chain = image[place..].starts_with(b"SNAPLOG\x01")
                && u64_at(&image, place + 32) == end.1 + 1
                && u64_at(&image, place + 40) == end.2;
            if !same_chain {
                break;
            }
            let body = u64_at(&image, place + 64) >> 32;
            let len = (HEADER as u64 + body).div_ceil(BLOCK as u64);
            end = ((end.0 + 2 * len) % blocks, end.1 + 1, u64_at(&image, place + 120));
        }
        let uuid = image[at + 40..at + 56].try_into().unwrap();
        let (epoch, first_chunk, generation) = (field(112), field(88), field(56));
        Self { uuid, epoch, start, blocks, first_chunk, generation, ends: [begin, end], image }
    }
}

fn logs() -> &'static [Log; 2] {
    static LOGS: OnceLock<[Log; 2]> = OnceLock::new();
    LOGS.get_or_init(|| {
        [Subject::new(End::Killed), Subject::new(End::Closed)].map(|subject| Log::of(subject.medium.view()))
    })
}

/// The body of a record under construction.
#[derive(Default)]
struct Builder {
    groups: Vec<u8>,
    group_count: u32,
    steps: Vec<u8>,
    step_count: u32,
    inline: Vec<u8>,
    inline_count: u32,
}

impl Builder {
    /// Adds one part of the code's kind.
    fn part(&mut self, input: &mut Input<'_>, log: &Log) {
        // Objects of the pool, of which each has a few bytes that tell it from others, or any.
        let object = |input: &mut Input<'_>| -> [u8; 16] {
            let n = input.u8();
            let mut id = [n; 16];
            if n < 128 {
                // Ids lie in the catalogue: any 16 bytes behind a table byte of a root record.
                let roots: Vec<usize> =
                    (0..log.image.len() - 17).filter(|&at| log.image[at] == 0xf0).collect();
                if !roots.is_empty() {
                    let at = roots[usize::from(n) % roots.len()] + 1;
                    id.copy_from_slice(&log.image[at..at + 16]);
                }
            }
            id
        };
        match input.u8() % 8 {
            // A change of a map: object, u8 kind, u16 LBA, u16 block from the first chunk on, u8 length, and with a
            // bit of the kind the checksums of the blocks as they are on the medium.
            0 | 1 => {
                let id = object(input);
                let (kind, lba, block, len) = (input.u8(), input.u16(), input.u16(), input.u8());
                let (data, len) = (kind % 3 == 1, u64::from(len) + 1);
                let block = if data { log.first_chunk + u64::from(block) % 1024 } else { 0 };
                self.groups.extend_from_slice(&id);
                self.groups.extend_from_slice(&1_u32.to_le_bytes());
                self.groups.extend_from_slice(&if data { len as u32 } else { 0 }.to_le_bytes());
                self.groups.extend_from_slice(&u64::from(lba).to_le_bytes());
                self.groups.extend_from_slice(&(block | u64::from(kind % 3) << 48).to_le_bytes());
                self.groups.extend_from_slice(&len.to_le_bytes());
                for block in (block..block + len).filter(|_| data) {
                    let bytes = log.image.get(block as usize * BLOCK..).and_then(|b| b.get(..BLOCK));
                    let crc = bytes.filter(|_| kind & 0x80 == 0).map_or(0, crc32);
                    self.groups.extend_from_slice(&crc.to_le_bytes());
                }
                self.group_count += 1;
            }
            // A record of the catalogue: u8 table, u8 key length, u8 value length, key, value.
            2 => {
                let (table, key, value) = (input.u8(), input.u8() % 70, input.u8());
                let (key, value) = (input.bytes(key.into()), input.bytes(value.into()));
                self.steps.push(1);
                self.steps.extend_from_slice(&(key.len() as u16 + 1).to_le_bytes());
                self.steps.extend_from_slice(&(value.len() as u32).to_le_bytes());
                self.steps.push(table);
                self.steps.extend_from_slice(key);
                self.steps.extend_from_slice(value);
                self.step_count += 1;
            }
            // A table byte and an object: the key that goes.
            3 => {
                let table = [0xf0, 0xf1, 1, 2, 3][usize::from(input.u8()) % 5];
                self.steps.extend_from_slice(&[2, 17, 0, table]);
                self.steps.extend_from_slice(&object(input));
                self.step_count += 1;
            }
            4 => {
                self.steps.push(3);
                self.steps.extend_from_slice(&object(input));
                self.steps.extend_from_slice(&object(input));
                self.step_count += 1;
            }
            5 => {
                self.steps.push(if input.u8().is_multiple_of(2) { 4 } else { 5 });
                if self.steps.last() == Some(&5) {
                    self.steps.extend_from_slice(&object(input));
                }
                self.step_count += 1;
            }
            // A block that the record carries: u16 block from the first chunk on, u8 that fills it.
            6 => {
                let (block, byte) = (log.first_chunk + u64::from(input.u16()) % 1024, input.u8());
                self.inline.extend_from_slice(&block.to_le_bytes());
                self.inline.extend_from_slice(&[byte; BLOCK]);
                self.inline_count += 1;
            }
            // Bytes as they are, in the place of a group or a step.
            _ => {
                let (code, len) = (input.u8(), input.u8());
                let (to, count) = match code % 2 {
                    0 => (&mut self.groups, &mut self.group_count),
                    _ => (&mut self.steps, &mut self.step_count),
                };
                to.extend_from_slice(input.bytes(len.into()));
                *count += u32::from(code >> 1 & 3);
            }
        }
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    static TABLE: OnceLock<[u32; 256]> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        std::array::from_fn(|n| {
            (0..8).fold(n as u32, |crc, _| if crc & 1 == 1 { 0xedb8_8320 ^ crc >> 1 } else { crc >> 1 })
        })
    });
    !bytes.iter().fold(!0, |crc, byte| table[((crc ^ u32::from(*byte)) & 0xff) as usize] ^ crc >> 8)
}

/// Writes what the input describes into the log of a pool, opens the pool, and uses it.
pub(crate) fn replay(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let choice = input.u8();
    let log = &logs()[usize::from(choice & 1)];
    let mut image = log.image.clone();
    let (mut at, mut sequence, mut predecessor) = log.ends[usize::from(choice >> 2 & 1)];
    for _ in 0..16 {
        if input.is_empty() {
            break;
        }
        let (wrong, flags, durable, parts) = (input.u8(), input.u8(), input.u8(), input.u8() % 16);
        let mut body = Builder::default();
        for _ in 0..parts {
            body.part(&mut input, log);
        }
        let flags = u32::from(flags) & 6 | if body.inline_count > 0 { 8 } else { 0 };
        let mut copy = b"SNAPLOG\x01".to_vec();
        copy.extend_from_slice(&log.uuid);
        // Most heads are as they should be; one bit each makes one field wrong.
        let bit = |n: u32| wrong.count_ones() == 1 && wrong >> n & 1 == 1;
        let words = [
            log.epoch ^ u64::from(bit(0)),
            sequence + 1 + u64::from(bit(1)),
            predecessor ^ u64::from(bit(2)),
            if bit(3) { u64::MAX } else { (sequence + 1).saturating_sub(durable.into()) },
            log.generation + u64::from(bit(4)),
        ];
        words.iter().for_each(|word| copy.extend_from_slice(&word.to_le_bytes()));
        let len = body.groups.len() + body.steps.len() + body.inline.len();
        let len = if bit(5) { u32::MAX } else { len as u32 };
        let counts = [body.group_count, body.step_count, body.inline_count];
        let epoch = if bit(6) { u32::MAX } else { 1 };
        let rest = [flags, len, counts[0], counts[1], counts[2], epoch];
        rest.iter().for_each(|word| copy.extend_from_slice(&word.to_le_bytes()));
        copy.resize(HEADER, 0);
        [&body.groups, &body.steps, &body.inline].iter().for_each(|part| copy.extend_from_slice(part));
        copy.resize(copy.len().next_multiple_of(BLOCK), 0);
        seal_record(&mut copy);
        predecessor = u64_at(&copy, 120);
        sequence += 1;
        for block in copy.chunks(BLOCK).chain(copy.chunks(BLOCK)) {
            let place = (log.start + at) as usize * BLOCK;
            image[place..place + BLOCK].copy_from_slice(block);
            at = (at + 1) % log.blocks;
        }
    }
    let device = Watched::new(image);
    for user in 0..2 {
        let options = options(user).read_only(choice & 8 != 0).last_good_commit(choice & 16 != 0);
        if let Ok(pool) = Pool::open_on(device.again(), options) {
            use_all(&pool);
            let _ = pool.close();
        }
    }
}
