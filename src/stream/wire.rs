//! The bytes of a delta stream: header and records, both ways. Byte tables are in [`crate::guide::streams`].

use std::collections::BTreeMap;

use uuid::Uuid;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::{Identity, Origin};
use crate::pool::{Fingerprint, MAX_METADATA_BYTES, MAX_STORED_TEXT_BYTES};
use crate::units::{BLOCK, BLOCK_BYTES, MAX_VOLUME_BYTES};

pub(super) const MAGIC: [u8; 8] = *b"SNAPDIFF";
pub(super) const VERSION: u32 = 1;
/// Bytes of the header before its texts.
pub(super) const HEAD: usize = 184;
const SUM: usize = 8;
/// Pairs take two length bytes each and are not both empty, hence at most three times their text.
const MAX_HEADER: usize = HEAD + 3 * MAX_STORED_TEXT_BYTES + 3 * MAX_METADATA_BYTES + 2 + SUM;
/// Bytes of a record before its block checksums.
pub(super) const RECORD: usize = 32;
/// Most blocks of data in one record: 1 MiB.
pub(super) const RECORD_BLOCKS: usize = 256;

const HAS_BASE: u32 = 1;
const SAME_VOLUME: u32 = 2;
const HAS_FINGERPRINTS: u32 = 4;
const HAS_NAME: u8 = 1;
const HAS_DESCRIPTION: u8 = 2;
const HAS_VOLUME_NAME: u8 = 4;

const _: () = assert!(MAX_HEADER < u32::MAX as usize);

/// What a stream says of itself before its first record.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Header {
    /// Records name no block before this one; above 0 in a stream that goes on where one stopped.
    pub(super) start_lba: u64,
    /// When the snapshot was made, in microseconds since 1970.
    pub(super) created: u64,
    pub(super) snapshot: Identity,
    pub(super) base: Option<Identity>,
    /// Base and snapshot are of one volume.
    pub(super) same_volume: bool,
    pub(super) name: Option<String>,
    pub(super) description: Option<String>,
    pub(super) volume_name: Option<String>,
    pub(super) metadata: BTreeMap<String, String>,
}

impl Header {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; HEAD];
        let proven = self.snapshot.fingerprint.is_some();
        let flags = (u32::from(self.base.is_some()) * HAS_BASE)
            | (u32::from(self.same_volume) * SAME_VOLUME)
            | (u32::from(proven) * HAS_FINGERPRINTS);
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[16..20].copy_from_slice(&flags.to_le_bytes());
        out[20..24].copy_from_slice(&(BLOCK as u32).to_le_bytes());
        out[24..32].copy_from_slice(&self.start_lba.to_le_bytes());
        out[32..40].copy_from_slice(&self.created.to_le_bytes());
        let mut put = |at: usize, fingerprint: usize, identity: &Identity| {
            out[at..at + 16].copy_from_slice(identity.origin.pool.as_bytes());
            out[at + 16..at + 32].copy_from_slice(identity.origin.snapshot.as_bytes());
            out[at + 32..at + 40].copy_from_slice(&identity.size_bytes.to_le_bytes());
            out[at + 40..at + 48].copy_from_slice(&identity.data_blocks.to_le_bytes());
            let print = identity.fingerprint.map_or(0, Fingerprint::raw);
            out[fingerprint..fingerprint + 16].copy_from_slice(&print.to_le_bytes());
        };
        put(40, 136, &self.snapshot);
        if let Some(base) = &self.base {
            put(88, 152, base);
        }
        let texts = [(&self.name, HAS_NAME), (&self.description, HAS_DESCRIPTION)];
        for (i, (text, bit)) in texts.into_iter().chain([(&self.volume_name, HAS_VOLUME_NAME)]).enumerate() {
            if let Some(text) = text {
                out[168] |= bit;
                // The limits were checked before the record came to be: every length fits.
                out[170 + 2 * i..172 + 2 * i].copy_from_slice(&(text.len() as u16).to_le_bytes());
                out.extend_from_slice(text.as_bytes());
            }
        }
        out[176..180].copy_from_slice(&(self.metadata.len() as u32).to_le_bytes());
        for (key, value) in &self.metadata {
            out.extend_from_slice(&[key.len() as u8, value.len() as u8]);
            out.extend_from_slice(key.as_bytes());
            out.extend_from_slice(value.as_bytes());
        }
        let len = (out.len() + SUM) as u32;
        out[12..16].copy_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&xxh3_64(&out).to_le_bytes());
        out
    }

    /// Length of the whole header, of which the first [`HEAD`] bytes are given.
    pub(super) fn declared_len(head: &[u8; HEAD]) -> Result<usize, String> {
        if head[..8] != MAGIC {
            return Err("this is no delta stream: it does not begin with SNAPDIFF".into());
        }
        let version = u32_at(head, 8);
        if version != VERSION {
            return Err(format!("version {version} of the format, and only {VERSION} is known"));
        }
        let len = u32_at(head, 12) as usize;
        if !(HEAD + SUM..=MAX_HEADER).contains(&len) {
            return Err(format!("a header has {} to {MAX_HEADER} bytes, {len} declared", HEAD + SUM));
        }
        Ok(len)
    }

    /// Reads a whole header, and gives the checksum that its first record continues.
    pub(super) fn decode(bytes: &[u8]) -> Result<(Self, u64), String> {
        let head = bytes.first_chunk::<HEAD>().ok_or("the header is cut short")?;
        if Self::declared_len(head)? != bytes.len() {
            return Err("the header is not as long as it says".into());
        }
        let (body, sum) = bytes.split_at(bytes.len() - SUM);
        let sum = u64_at(sum, 0);
        if xxh3_64(body) != sum {
            return Err("the header's checksum is wrong".into());
        }
        let flags = u32_at(head, 16);
        if flags & !(HAS_BASE | SAME_VOLUME | HAS_FINGERPRINTS) != 0 {
            return Err(format!("unknown flags {flags:#x}"));
        }
        if u64::from(u32_at(head, 20)) != BLOCK_BYTES {
            return Err(format!("blocks of {} bytes, and only {BLOCK_BYTES} are known", u32_at(head, 20)));
        }
        let proven = flags & HAS_FINGERPRINTS != 0;
        let snapshot = identity(head, 40, 136, proven)?;
        let base = if flags & HAS_BASE != 0 {
            Some(identity(head, 88, 152, proven)?)
        } else if head[88..136].iter().chain(&head[152..168]).any(|b| *b != 0) || flags & SAME_VOLUME != 0 {
            return Err("it tells of a base that it does not have".into());
        } else {
            None
        };
        let start_lba = u64_at(head, 24);
        if start_lba > snapshot.size_bytes / BLOCK_BYTES {
            return Err(format!("it starts at block {start_lba}, behind the end"));
        }
        let mut rest = &body[HEAD..];
        let mut text = |bit: u8, at: usize| -> Result<Option<String>, String> {
            let present = head[168] & bit != 0;
            let len = usize::from(u16::from_le_bytes([head[at], head[at + 1]]));
            if !present && len != 0 {
                return Err("a text that is not there has a length".into());
            }
            let text = take(&mut rest, len)?;
            Ok(present.then_some(text))
        };
        if head[168] & !(HAS_NAME | HAS_DESCRIPTION | HAS_VOLUME_NAME) != 0 {
            return Err(format!("unknown text flags {:#x}", head[168]));
        }
        if head[169] != 0 || head[180..184] != [0; 4] {
            return Err("reserved bytes of the header are not zero".into());
        }
        let name = text(HAS_NAME, 170)?;
        let description = text(HAS_DESCRIPTION, 172)?;
        let volume_name = text(HAS_VOLUME_NAME, 174)?;
        let mut metadata = BTreeMap::new();
        // The count is not trusted with memory: each pair is read before room is made for it.
        for _ in 0..u32_at(head, 176) {
            let Some(([key, value], after)) = rest.split_first_chunk::<2>() else {
                return Err("the header ends within its metadata".into());
            };
            rest = after;
            let key = take(&mut rest, (*key).into())?;
            let value = take(&mut rest, (*value).into())?;
            if metadata.last_key_value().is_some_and(|(last, _)| *last >= key) {
                return Err("metadata keys do not ascend".into());
            }
            metadata.insert(key, value);
        }
        if !rest.is_empty() {
            return Err(format!("{} bytes too many in the header", rest.len()));
        }
        let same_volume = flags & SAME_VOLUME != 0;
        let created = u64_at(head, 32);
        let header = Self {
            start_lba,
            created,
            snapshot,
            base,
            same_volume,
            name,
            description,
            volume_name,
            metadata,
        };
        Ok((header, sum))
    }
}

fn identity(head: &[u8; HEAD], at: usize, fingerprint: usize, proven: bool) -> Result<Identity, String> {
    let size_bytes = u64_at(head, at + 32);
    if size_bytes == 0 || size_bytes > MAX_VOLUME_BYTES || !size_bytes.is_multiple_of(BLOCK_BYTES) {
        return Err(format!("a size of {size_bytes} bytes, not whole blocks up to {MAX_VOLUME_BYTES}"));
    }
    let data_blocks = u64_at(head, at + 40);
    if data_blocks > size_bytes / BLOCK_BYTES {
        return Err(format!("{data_blocks} blocks of data in {size_bytes} bytes"));
    }
    let print = u128::from_le_bytes(array(head, fingerprint));
    if !proven && print != 0 {
        return Err("a fingerprint without its flag".into());
    }
    let origin =
        Origin { pool: Uuid::from_bytes(array(head, at)), snapshot: Uuid::from_bytes(array(head, at + 16)) };
    let fingerprint = proven.then(|| Fingerprint::new(print));
    Ok(Identity { origin, size_bytes, data_blocks, fingerprint })
}

fn take(rest: &mut &[u8], len: usize) -> Result<String, String> {
    let (text, after) = rest.split_at_checked(len).ok_or("the header ends within a text")?;
    *rest = after;
    String::from_utf8(text.to_vec()).map_err(|e| format!("a text is not UTF-8: {e}"))
}

/// What a record does to its range.
// On the wire, never renumber.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Data = 1,
    Zero = 2,
    Hole = 3,
    End = 4,
}

/// The fixed part of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Record {
    pub(super) kind: Kind,
    pub(super) lba: u64,
    pub(super) blocks: u64,
}

impl Record {
    /// Appends the record with the checksums of its blocks, and moves the chain on.
    pub(super) fn encode(self, sums: &[u32], chain: &mut u64, out: &mut Vec<u8>) {
        let from = out.len();
        out.extend_from_slice(&(self.kind as u32).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.lba.to_le_bytes());
        out.extend_from_slice(&self.blocks.to_le_bytes());
        let sums_at = out.len() + SUM;
        out.extend_from_slice(&[0; SUM]);
        out.extend(sums.iter().flat_map(|sum| sum.to_le_bytes()));
        *chain = chained(*chain, &out[from..from + 24], &out[sums_at..]);
        out[from + 24..sums_at].copy_from_slice(&chain.to_le_bytes());
    }

    /// Bytes of block checksums behind the fixed part.
    pub(super) fn sums_bytes(self) -> usize {
        if self.kind == Kind::Data { self.blocks as usize * 4 } else { 0 }
    }

    /// Reads the fixed part. What it says is not to be believed before [`verify`](Self::verify), but it is
    /// within bounds.
    pub(super) fn decode(bytes: &[u8; RECORD]) -> Result<Self, String> {
        let kind = match u32_at(bytes, 0) {
            1 => Kind::Data,
            2 => Kind::Zero,
            3 => Kind::Hole,
            4 => Kind::End,
            other => return Err(format!("a record of unknown kind {other}")),
        };
        if bytes[4..8] != [0; 4] {
            return Err("reserved bytes of a record are not zero".into());
        }
        let (lba, blocks) = (u64_at(bytes, 8), u64_at(bytes, 16));
        if kind == Kind::Data && !(1..=RECORD_BLOCKS as u64).contains(&blocks) {
            return Err(format!("a record has 1 to {RECORD_BLOCKS} blocks of data, {blocks} declared"));
        }
        Ok(Self { kind, lba, blocks })
    }

    /// Whether the fixed part and the block checksums continue what came before.
    pub(super) fn verify(bytes: &[u8; RECORD], sums: &[u8], chain: &mut u64) -> bool {
        let want = chained(*chain, &bytes[..24], sums);
        let right = want == u64_at(bytes, 24);
        *chain = want;
        right
    }
}

/// Each checksum continues the one before, so that no record can be left out, moved or taken from elsewhere.
fn chained(chain: u64, head: &[u8], sums: &[u8]) -> u64 {
    xxh3_64_with_seed(sums, xxh3_64_with_seed(head, chain))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

/// Bytes at a place that the caller knows to be there.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn some_identity() -> impl Strategy<Value = Identity> {
        (any::<u128>(), any::<u128>(), 1u64..1 << 40, any::<u64>()).prop_map(
            |(pool, snapshot, blocks, data)| Identity {
                origin: Origin { pool: Uuid::from_u128(pool), snapshot: Uuid::from_u128(snapshot) },
                size_bytes: blocks * BLOCK_BYTES,
                data_blocks: data % blocks,
                fingerprint: None,
            },
        )
    }

    fn header() -> impl Strategy<Value = Header> {
        let texts = || proptest::option::of("\\PC{0,40}");
        let metadata = proptest::collection::btree_map("\\PC{0,20}", "\\PC{0,60}", 0..10);
        let ids =
            (some_identity(), proptest::option::of(some_identity()), proptest::option::of(any::<u128>()));
        (ids, texts(), texts(), texts(), metadata, any::<u64>(), any::<bool>()).prop_map(
            |((mut snapshot, mut base, print), name, description, volume_name, metadata, n, same)| {
                snapshot.fingerprint = print.map(Fingerprint::new);
                if let Some(base) = &mut base {
                    base.fingerprint = print.map(|p| Fingerprint::new(!p));
                }
                Header {
                    start_lba: n % (snapshot.size_bytes / BLOCK_BYTES),
                    created: n,
                    snapshot,
                    same_volume: same && base.is_some(),
                    base,
                    name,
                    description,
                    volume_name,
                    metadata,
                }
            },
        )
    }

    proptest! {
        #[test]
        fn headers_survive_their_encoding(header in header()) {
            let bytes = header.encode();
            prop_assert_eq!(Header::declared_len(bytes.first_chunk().unwrap()).unwrap(), bytes.len());
            let (read, chain) = Header::decode(&bytes).unwrap();
            prop_assert_eq!(read, header);
            prop_assert_eq!(chain, u64_at(&bytes, bytes.len() - 8));
        }

        #[test]
        fn a_damaged_header_is_refused(header in header(), at in any::<proptest::sample::Index>(), bit in 0u8..8) {
            let mut bytes = header.encode();
            let n = bytes.len();
            bytes[at.index(n)] ^= 1 << bit;
            prop_assert!(Header::decode(&bytes).is_err());
        }

        #[test]
        fn forged_headers_never_panic_and_are_canonical(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), shape in any::<bool>()) {
            if shape && bytes.len() > HEAD + SUM {
                let n = bytes.len();
                bytes[..8].copy_from_slice(&MAGIC);
                bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
                bytes[12..16].copy_from_slice(&(n as u32).to_le_bytes());
                bytes[16..20].copy_from_slice(&[7, 0, 0, 0]);
                bytes[20..24].copy_from_slice(&4096u32.to_le_bytes());
                let sum = xxh3_64(&bytes[..n - 8]);
                bytes[n - 8..].copy_from_slice(&sum.to_le_bytes());
            }
            if let Ok((header, _)) = Header::decode(&bytes) {
                prop_assert_eq!(header.encode(), bytes);
            }
        }

        #[test]
        fn records_survive_their_encoding(lba in any::<u64>(), blocks in 1u64..=256, kind in 0usize..4, seed in any::<u64>()) {
            let kind = [Kind::Data, Kind::Zero, Kind::Hole, Kind::End][kind];
            let record = Record { kind, lba, blocks };
            let sums: Vec<u32> = (0..record.sums_bytes() as u32 / 4).collect();
            let (mut out, mut chain) = (Vec::new(), seed);
            record.encode(&sums, &mut chain, &mut out);
            let head: &[u8; RECORD] = out.first_chunk().unwrap();
            prop_assert_eq!(Record::decode(head).unwrap(), record);
            prop_assert_eq!(out.len(), RECORD + record.sums_bytes());
            let mut again = seed;
            prop_assert!(Record::verify(head, &out[RECORD..], &mut again));
            prop_assert_eq!(again, chain);
            let mut elsewhere = seed ^ 1;
            prop_assert!(!Record::verify(head, &out[RECORD..], &mut elsewhere));
        }
    }

    #[test]
    fn a_record_is_encoded_as_documented() {
        let (mut out, mut chain) = (Vec::new(), 7);
        Record { kind: Kind::Data, lba: 5, blocks: 1 }.encode(&[0x0102_0304], &mut chain, &mut out);
        assert_eq!(out[..24], [1, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(out[32..], [4, 3, 2, 1]);
        assert_eq!(u64_at(&out, 24), xxh3_64_with_seed(&out[32..], xxh3_64_with_seed(&out[..24], 7)));
    }
}
