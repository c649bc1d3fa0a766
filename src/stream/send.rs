//! Sending: the stream is made while it is read.

use std::io::{self, Read};

use serde::Serialize;

use super::wire::{Header, Kind, RECORD_BLOCKS, Record};
use super::{Identity, Origin};
use crate::error::{Error, Result, Violation};
use crate::memory;
use crate::pool::{Change, Diff, ExtentKind, Pool, ResumePoint};
use crate::units::{BLOCK, BLOCK_BYTES, SnapshotId};

/// What to send beside the snapshot itself.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
#[must_use]
pub struct SendOptions {
    since: Option<SnapshotId>,
    fingerprints: bool,
}

impl Default for SendOptions {
    fn default() -> Self {
        Self { since: None, fingerprints: true }
    }
}

impl SendOptions {
    /// The whole snapshot, with fingerprints.
    pub fn new() -> Self {
        Self::default()
    }
    /// Only what has changed since this snapshot, which the receiver must have. It may be of another volume:
    /// what a clone was made from, for example.
    pub fn since(mut self, base: SnapshotId) -> Self {
        self.since = Some(base);
        self
    }
    /// Whether the stream carries the [fingerprints](crate::Fingerprint) of base and snapshot, so that the
    /// receiver proves that it starts from the same bytes and ends with them. On by default. Computing them reads
    /// some 5 bytes of metadata per mapped block, on both sides, before the first byte is sent and after the
    /// last; without them origins, sizes and numbers of blocks are still compared.
    pub fn fingerprints(mut self, on: bool) -> Self {
        self.fingerprints = on;
        self
    }
}

/// How far a stream has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct SendProgress {
    /// Bytes of the snapshot that the stream has dealt with, from its start.
    pub position: u64,
    /// Size of the snapshot in bytes.
    pub size_bytes: u64,
    /// Bytes of the snapshot's data in the stream so far.
    pub data_bytes: u64,
    /// Bytes of the stream so far.
    pub stream_bytes: u64,
}

/// A delta stream: read it to its end. See [`Pool::send`].
///
/// The snapshots stay as they are while this lives, whatever becomes of them. After an error, which is a
/// [`snapvol::Error`](crate::Error) inside the [`io::Error`], every further read fails. Dropping it is how to
/// cancel.
pub struct SendStream {
    diff: Diff,
    /// The rest of a change that did not fit into one record.
    change: Option<Change>,
    buffer: Vec<u8>,
    taken: usize,
    sums: Vec<u32>,
    chain: u64,
    records: u64,
    state: State,
    progress: SendProgress,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Records,
    Ended,
    Failed,
}

impl Pool {
    /// The snapshot as a stream of bytes, from which [`receive`](Self::receive) makes an equal snapshot in another
    /// pool; with [`since`](SendOptions::since), only what has changed, which takes as long as that is large.
    ///
    /// Name, description and metadata of the snapshot and the name of its volume travel along. Nothing else of
    /// the pool does. Equal calls give equal bytes.
    ///
    /// ```
    /// # use std::ops::ControlFlow;
    /// # use snapvol::*;
    /// # let options = || CreateOptions::new().limit_bytes(1 << 30);
    /// # let (here, there) = (Pool::create_in_memory(options())?, Pool::create_in_memory(options())?);
    /// # let volume = here.create_volume(VolumeSpec::blank(1 << 20))?.id;
    /// let monday = here.create_snapshot(volume, SnapshotSpec::new().name("monday"))?.id;
    /// let stream = here.send(monday, SendOptions::new())?;
    /// there.receive(stream, ReceiveOptions::new(), |_| ControlFlow::Continue(()))?;
    ///
    /// here.attach(volume, AttachOptions::new())?.write_at(b"changed", 0)?;
    /// let tuesday = here.create_snapshot(volume, SnapshotSpec::new().name("tuesday"))?.id;
    /// let stream = here.send(tuesday, SendOptions::new().since(monday))?;
    /// let got = there.receive(stream, ReceiveOptions::new(), |_| ControlFlow::Continue(()))?;
    /// assert_eq!(there.fingerprint(got.snapshot.id)?, here.fingerprint(tuesday)?);
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` when a snapshot is to be sent since itself; `OutOfSpace`, `Corrupt`, `Io`,
    /// `Poisoned`, `Closed`.
    pub fn send(&self, snapshot: SnapshotId, options: SendOptions) -> Result<SendStream> {
        SendStream::new(self, snapshot, options, 0)
    }

    /// The rest of a stream that did not arrive as a whole: see [`list_receives`](Self::list_receives).
    ///
    /// # Errors
    /// `NotFound` when this pool has not, or no longer, the snapshots that the point names; `InvalidArgument`
    /// when it lies behind their end or not at a block; else as [`send`](Self::send).
    pub fn resume_send(&self, point: &ResumePoint, options: SendOptions) -> Result<SendStream> {
        let local = |origin: Origin| {
            let missing = || Error::NotFound { object: "snapshot", id: origin.to_string() };
            self.snapshot_from(origin)?.ok_or_else(missing)
        };
        let snapshot = local(point.snapshot)?;
        let since = point.since.map(local).transpose()?;
        SendStream::new(self, snapshot, SendOptions { since, ..options }, point.offset)
    }
}

impl SendStream {
    fn new(pool: &Pool, id: SnapshotId, options: SendOptions, offset: u64) -> Result<Self> {
        if options.since == Some(id) {
            return Err(Error::invalid("since", Violation::Range, "a snapshot is not sent since itself"));
        }
        let snapshot = pool.snapshot(id)?;
        if offset > snapshot.size_bytes || !offset.is_multiple_of(BLOCK_BYTES) {
            let size = snapshot.size_bytes;
            let why = format!("it must be a multiple of {BLOCK_BYTES} within {size} bytes, {offset} given");
            return Err(Error::invalid("offset", Violation::Range, why));
        }
        let base = options.since.map(|base| pool.snapshot(base)).transpose()?;
        let diff = pool.freeze_pair(options.since, id, offset)?;
        let (base_blocks, data_blocks) = diff.data_blocks()?;
        let identity = Identity {
            origin: pool.snapshot_origin(id)?,
            size_bytes: snapshot.size_bytes,
            data_blocks,
            fingerprint: if options.fingerprints { Some(diff.fingerprint()?) } else { None },
        };
        let base_identity = match (&base, base_blocks) {
            (Some(base), Some(data_blocks)) => Some(Identity {
                origin: pool.snapshot_origin(base.id)?,
                size_bytes: base.size_bytes,
                data_blocks,
                fingerprint: if options.fingerprints {
                    diff.base_fingerprint(base.size_bytes)?
                } else {
                    None
                },
            }),
            _ => None,
        };
        let volume = match pool.volume(snapshot.volume) {
            Ok(volume) => Some(volume),
            Err(Error::NotFound { .. }) => None,
            Err(e) => return Err(e),
        };
        let header = Header {
            start_lba: offset / BLOCK_BYTES,
            created: snapshot.created_at_micros,
            snapshot: identity,
            same_volume: base.is_some_and(|base| base.volume == snapshot.volume),
            base: base_identity,
            name: snapshot.name,
            description: snapshot.description,
            volume_name: volume.and_then(|volume| volume.name),
            metadata: snapshot.metadata,
        };
        let buffer = header.encode();
        let chain = buffer.last_chunk::<8>().map_or(0, |sum| u64::from_le_bytes(*sum));
        let size_bytes = snapshot.size_bytes;
        Ok(Self {
            diff,
            change: None,
            buffer,
            taken: 0,
            sums: Vec::new(),
            chain,
            records: 0,
            state: State::Records,
            progress: SendProgress { position: offset, size_bytes, ..SendProgress::default() },
        })
    }

    /// How far it has come.
    pub fn progress(&self) -> SendProgress {
        self.progress
    }

    /// Makes the next record.
    fn next_record(&mut self) -> Result<()> {
        self.buffer.clear();
        self.taken = 0;
        let change = match self.change.take() {
            Some(rest) => Some(rest),
            None => self.diff.next().transpose()?,
        };
        let Some(mut change) = change else {
            self.progress.position = self.progress.size_bytes;
            let record =
                Record { kind: Kind::End, lba: self.progress.size_bytes / BLOCK_BYTES, blocks: self.records };
            record.encode(&[], &mut self.chain, &mut self.buffer);
            self.state = State::Ended;
            return Ok(());
        };
        let lba = change.range.start / BLOCK_BYTES;
        let mut blocks = (change.range.end - change.range.start) / BLOCK_BYTES;
        let kind = match change.kind {
            ExtentKind::Data => {
                blocks = blocks.min(RECORD_BLOCKS as u64);
                Kind::Data
            }
            ExtentKind::Zero => Kind::Zero,
            ExtentKind::Hole => Kind::Hole,
        };
        let record = Record { kind, lba, blocks };
        self.sums.clear();
        if kind == Kind::Data {
            // The data goes behind its checksums, which are known only once it has been read.
            let data_at = super::wire::RECORD + record.sums_bytes();
            memory::resize(&mut self.buffer, data_at + blocks as usize * BLOCK, 0)?;
            let (head, data) = self.buffer.split_at_mut(data_at);
            self.diff.read(lba, data)?;
            self.diff.sums(lba, blocks, &mut self.sums)?;
            let mut front = Vec::with_capacity(data_at);
            record.encode(&self.sums, &mut self.chain, &mut front);
            head.copy_from_slice(&front);
            self.progress.data_bytes += blocks * BLOCK_BYTES;
        } else {
            record.encode(&[], &mut self.chain, &mut self.buffer);
        }
        self.records += 1;
        self.progress.position = (lba + blocks) * BLOCK_BYTES;
        change.range.start = self.progress.position;
        self.change = Some(change).filter(|rest| rest.range.start < rest.range.end);
        Ok(())
    }
}

impl Read for SendStream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        if self.taken == self.buffer.len() {
            match self.state {
                State::Records => {}
                State::Ended => return Ok(0),
                State::Failed => return Err(io::Error::other("the stream failed before")),
            }
            if let Err(e) = self.next_record() {
                // What was begun of a record must not be taken for one.
                self.buffer.clear();
                self.taken = 0;
                self.state = State::Failed;
                return Err(io::Error::other(e));
            }
        }
        let rest = &self.buffer[self.taken..];
        let n = rest.len().min(out.len());
        out[..n].copy_from_slice(&rest[..n]);
        self.taken += n;
        self.progress.stream_bytes += n as u64;
        Ok(n)
    }
}

impl std::fmt::Debug for SendStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SendStream").field("progress", &self.progress).finish_non_exhaustive()
    }
}
