//! Where snapshots come from, and what is kept of one that has arrived in part.
//!
//! | offset | size | field of an unfinished receive (catalogue table 0x22) |
//! |---|---|---|
//! | 0 | 1 | version, 1 |
//! | 1 | 1 | 1 when there is a base, else 0 |
//! | 2 | 6 | reserved |
//! | 8 | 8 | position: blocks below it have arrived |
//! | 16 | 8 | size of the snapshot in bytes |
//! | 24 | 8 | when the receive began, in microseconds since 1970 |
//! | 32 | 32 | origin of the snapshot: pool, snapshot |
//! | 64 | 32 | origin of the base, or zeroes |
//! | 96 | 16 | the base here, or zeroes |
//! | 112 | 16 | the volume that the snapshot will belong to; zeroes: a new one |

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{Corruption, Error, Result, Violation};
use crate::units::{BLOCK_BYTES, MAX_VOLUME_BYTES, SnapshotId, VolumeId};

use super::fingerprint::Fingerprint;
#[cfg(doc)]
use super::pool::Pool;

const BYTES: usize = 128;
const VERSION: u8 = 1;

/// Where a snapshot was first taken: it stays the same however often the snapshot is sent on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Origin {
    /// Identity of the pool, see [`Pool::uuid`].
    pub pool: Uuid,
    /// Id of the snapshot in that pool.
    pub snapshot: Uuid,
}

impl Origin {
    pub(crate) const fn new(pool: Uuid, snapshot: Uuid) -> Self {
        Self { pool, snapshot }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of pool {}", self.snapshot, self.pool)
    }
}

/// What tells a snapshot apart, in whatever pool it lies.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Identity {
    pub(crate) origin: Origin,
    pub(crate) size_bytes: u64,
    /// Blocks mapped to data.
    pub(crate) data_blocks: u64,
    pub(crate) fingerprint: Option<Fingerprint>,
}

/// From where on a snapshot has to be sent: what a receiver that stopped tells the sender.
///
/// As text it is one word, to be sent by whatever way there is; it is no secret.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ResumePoint {
    /// The snapshot that is being sent.
    pub snapshot: Origin,
    /// The snapshot that the receiver had already, for a stream of changes.
    pub since: Option<Origin>,
    /// Bytes of the snapshot that have arrived, from its start.
    pub offset: u64,
}

impl fmt::Display for ResumePoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = |id: Uuid| id.simple();
        write!(f, "{}.{}", hex(self.snapshot.pool), hex(self.snapshot.snapshot))?;
        if let Some(since) = self.since {
            write!(f, ".{}.{}", hex(since.pool), hex(since.snapshot))?;
        }
        write!(f, ".{}", self.offset)
    }
}

impl FromStr for ResumePoint {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::invalid("resume point", Violation::Range, format!("{text:?} is no resume point"));
        let parts: Vec<&str> = text.split('.').take(6).collect();
        let id = |text: &str| Uuid::try_parse(text).map_err(|_| bad());
        let origin = |pool, snapshot| Ok::<_, Error>(Origin::new(id(pool)?, id(snapshot)?));
        let (snapshot, since, offset) = match parts[..] {
            [pool, snapshot, offset] => (origin(pool, snapshot)?, None, offset),
            [pool, snapshot, base_pool, base, offset] => {
                (origin(pool, snapshot)?, Some(origin(base_pool, base)?), offset)
            }
            _ => return Err(bad()),
        };
        Ok(Self { snapshot, since, offset: offset.parse().map_err(|_| bad())? })
    }
}

/// A receive that began and was not finished: see [`Pool::list_receives`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[non_exhaustive]
pub struct UnfinishedReceive {
    /// The id that the snapshot will have; names the receive until then.
    pub id: SnapshotId,
    /// From where on the snapshot has to be sent.
    pub resume: ResumePoint,
    /// Size of the snapshot in bytes.
    pub size_bytes: u64,
    /// When it began, in microseconds since 1970.
    pub created_at_micros: u64,
    /// Whether it runs now, in this process.
    pub running: bool,
}

/// What the catalogue keeps of a receive that is not over.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Record {
    pub(super) position: u64,
    pub(super) size_bytes: u64,
    pub(super) created: u64,
    pub(super) snapshot: Origin,
    pub(super) since: Option<Origin>,
    pub(super) base: Option<SnapshotId>,
    pub(super) volume: Option<VolumeId>,
}

impl Record {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION, self.since.is_some().into(), 0, 0, 0, 0, 0, 0];
        for number in [self.position, self.size_bytes, self.created] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let since = self.since.unwrap_or(Origin::new(Uuid::nil(), Uuid::nil()));
        let base = self.base.map_or(Uuid::nil(), SnapshotId::raw);
        let volume = self.volume.map_or(Uuid::nil(), VolumeId::raw);
        for id in [self.snapshot.pool, self.snapshot.snapshot, since.pool, since.snapshot, base, volume] {
            out.extend_from_slice(id.as_bytes());
        }
        debug_assert_eq!(out.len(), BYTES);
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Corruption> {
        let bad = |field, want: &str, got: u64| Corruption::new("unfinished receive", 0, field, want, got);
        let Ok(bytes) = <&[u8; BYTES]>::try_from(bytes) else {
            return Err(bad("length", "128", bytes.len() as u64));
        };
        if bytes[0] != VERSION || bytes[1] > 1 || bytes[2..8] != [0; 6] {
            return Err(bad("version", "1", bytes[0].into()));
        }
        let number = |at: usize| {
            let mut le = [0; 8];
            le.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(le)
        };
        let id = |at: usize| {
            let mut id = [0; 16];
            id.copy_from_slice(&bytes[at..at + 16]);
            Uuid::from_bytes(id)
        };
        let (position, size_bytes) = (number(8), number(16));
        if size_bytes > MAX_VOLUME_BYTES || position > size_bytes / BLOCK_BYTES {
            return Err(bad("position", "within the size", position));
        }
        let optional = |at| Some(id(at)).filter(|id| !id.is_nil());
        Ok(Self {
            position,
            size_bytes,
            created: number(24),
            snapshot: Origin::new(id(32), id(48)),
            since: (bytes[1] == 1).then(|| Origin::new(id(64), id(80))),
            base: optional(96).map(SnapshotId::new),
            volume: optional(112).map(VolumeId::new),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn origin() -> impl Strategy<Value = Origin> {
        (any::<u128>(), any::<u128>())
            .prop_map(|(pool, snapshot)| Origin::new(Uuid::from_u128(pool), Uuid::from_u128(snapshot)))
    }

    proptest! {
        #[test]
        fn records_and_resume_points_survive_their_encoding(
            snapshot in origin(), since in proptest::option::of(origin()), position in 0u64..1 << 30, ids in any::<[u128; 2]>(),
        ) {
            let record = Record {
                position,
                size_bytes: (position + 1) * BLOCK_BYTES,
                created: position,
                snapshot,
                since,
                base: since.map(|_| SnapshotId::new(Uuid::from_u128(ids[0] | 1))),
                volume: since.map(|_| VolumeId::new(Uuid::from_u128(ids[1] | 1))),
            };
            prop_assert_eq!(Record::decode(&record.encode()).unwrap(), record);
            let point = ResumePoint { snapshot, since, offset: position };
            prop_assert_eq!(point.to_string().parse::<ResumePoint>().unwrap(), point);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "\\PC{0,80}") {
            let _ = Record::decode(&bytes);
            let _ = text.parse::<ResumePoint>();
        }
    }
}
