//! Receiving: every byte is verified before it is written, and the snapshot appears at the end or not at all.

use std::io::{self, Read};
use std::ops::ControlFlow;

use serde::Serialize;

use super::wire::{HEAD, Header, Kind, RECORD, RECORD_BLOCKS, Record};
use crate::error::{Error, Result};
use crate::format::block_crc;
use crate::memory;
use crate::pool::{Arrival, Landing, Pool, Snapshot, Target};
use crate::units::{BLOCK, BLOCK_BYTES, SnapshotId, VolumeId};

const INPUT: &str = "delta stream";
/// Bytes of data between two stored positions of a receive that is kept.
const SAVE_BYTES: u64 = 64 << 20;

/// How to receive: what to call what arrives, and what becomes of it when the rest does not.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
#[must_use]
pub struct ReceiveOptions {
    snapshot_id: Option<SnapshotId>,
    snapshot_name: Option<String>,
    volume_id: Option<VolumeId>,
    volume_name: Option<String>,
    resumable: bool,
}

impl ReceiveOptions {
    /// Fresh ids, names as the stream has them, and nothing left of a stream that ends too early.
    pub fn new() -> Self {
        Self::default()
    }
    /// The id to give the snapshot, in place of a fresh one.
    pub fn snapshot_id(mut self, id: SnapshotId) -> Self {
        self.snapshot_id = Some(id);
        self
    }
    /// A name for the snapshot of at most 255 bytes, in place of the one it has where it comes from.
    pub fn snapshot_name(mut self, name: impl Into<String>) -> Self {
        self.snapshot_name = Some(name.into());
        self
    }
    /// The id to give the volume, in place of a fresh one. Where the snapshot goes to a volume that is there
    /// this has no effect.
    pub fn volume_id(mut self, id: VolumeId) -> Self {
        self.volume_id = Some(id);
        self
    }
    /// A name for the new volume of at most 255 bytes, in place of the one it has where it comes from.
    pub fn volume_name(mut self, name: impl Into<String>) -> Self {
        self.volume_name = Some(name.into());
        self
    }
    /// Whether what has arrived is kept, hidden, when the stream ends too early, the connection breaks or the
    /// process dies: then [`list_receives`](Pool::list_receives) says from where on to send, and
    /// [`abort_receive`](Pool::abort_receive) gives it up. Off by default: an unfinished receive then leaves
    /// nothing, and one that a crash cut short is removed when the pool is opened.
    pub fn resumable(mut self, on: bool) -> Self {
        self.resumable = on;
        self
    }
}

/// How far a receive has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct ReceiveProgress {
    /// Bytes of the snapshot that the stream has dealt with, from its start.
    pub position: u64,
    /// Size of the snapshot in bytes.
    pub size_bytes: u64,
    /// Bytes of data that have been written.
    pub data_bytes: u64,
    /// Bytes of the stream read so far.
    pub stream_bytes: u64,
}

/// What has arrived.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[non_exhaustive]
pub struct Received {
    /// The snapshot, equal to the one that was sent.
    pub snapshot: Snapshot,
    /// Bytes of data that were written.
    pub data_bytes: u64,
    /// Bytes of the stream.
    pub stream_bytes: u64,
}

impl Pool {
    /// Makes a snapshot from a [stream](Self::send), equal to the one that was sent, byte for byte. It and all it
    /// takes become visible in one commit when the whole stream has arrived and is right; durable on return.
    ///
    /// A whole snapshot gets a new volume, with the same content. Changes go to the volume whose snapshot they
    /// start from; the volume itself stays as it is, but for its size if the snapshot is larger. To move it on,
    /// [`rollback`](Self::rollback) to the new snapshot, which takes constant time. Changes between snapshots of
    /// two volumes (a clone since what it was made from) make a new volume that shares with the first.
    ///
    /// Reads `stream` up to the end that it declares and no further, in pieces of up to 1 MiB. `progress` is
    /// called after each piece; when it answers `Break` the receive ends with `Cancelled`.
    ///
    /// # Errors
    /// After any error nothing is to be seen, and nothing is left unless the receive is
    /// [`resumable`](ReceiveOptions::resumable). `Refused` for a stream that is damaged, cut short, out of order, of
    /// another format, or made from a base of another content; `NotFound` when its base is not here;
    /// `AlreadyExists` when the snapshot is here already, or a supplied id is taken; `Busy` while the same snapshot
    /// is being received; `InvalidState` when the volume would have to grow and cannot; `InvalidArgument` for a
    /// name that is too long; `Cancelled`; `Io` when `stream` fails; `ReadOnly`, `OutOfSpace`, `Poisoned`, `Closed`.
    pub fn receive(
        &self,
        stream: impl Read,
        options: ReceiveOptions,
        mut progress: impl FnMut(ReceiveProgress) -> ControlFlow<()>,
    ) -> Result<Received> {
        let mut input = Input { stream, at: 0 };
        let (header, chain) = read_header(&mut input)?;
        let landing = Landing {
            snapshot: &header.snapshot,
            base: header.base.as_ref(),
            same_volume: header.same_volume,
            start_lba: header.start_lba,
            id: options.snapshot_id,
            keep: options.resumable,
        };
        let arrival = self.land(&landing)?;
        let mut receive =
            Receive { input, header: &header, chain, arrival, progress: ReceiveProgress::default() };
        receive.records(&mut progress)?;
        if let Err(e) = receive.prove() {
            // Nothing that could still come makes it right.
            receive.arrival.spoil();
            return Err(e);
        }
        let Receive { arrival, input, progress, .. } = receive;
        let target = Target {
            name: options.snapshot_name.or(header.name),
            description: header.description,
            metadata: header.metadata,
            volume_name: options.volume_name.or(header.volume_name),
            volume_id: options.volume_id,
        };
        let snapshot = arrival.finish(&target)?;
        Ok(Received { snapshot, data_bytes: progress.data_bytes, stream_bytes: input.at })
    }
}

/// The stream, and how far it has been read.
struct Input<R> {
    stream: R,
    at: u64,
}

impl<R: Read> Input<R> {
    fn refuse(&self, why: impl Into<String>) -> Error {
        Error::refused(INPUT, self.at, why)
    }

    fn fill(&mut self, out: &mut [u8]) -> Result<()> {
        let mut filled = 0;
        while filled < out.len() {
            match self.stream.read(&mut out[filled..]) {
                Ok(0) => return Err(self.refuse("it ends before its end record")),
                Ok(n) => {
                    filled += n;
                    self.at += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    let len = (out.len() - filled) as u64;
                    return Err(Error::Io { op: "read of the delta stream", offset: self.at, len, source });
                }
            }
        }
        Ok(())
    }
}

fn read_header<R: Read>(input: &mut Input<R>) -> Result<(Header, u64)> {
    let mut head = [0; HEAD];
    input.fill(&mut head)?;
    // The length is bounded, and memory follows what has arrived, not what is declared.
    let len = Header::declared_len(&head).map_err(|why| input.refuse(why))?;
    let mut bytes = head.to_vec();
    let mut piece = [0; 4096];
    while bytes.len() < len {
        let n = (len - bytes.len()).min(piece.len());
        input.fill(&mut piece[..n])?;
        bytes.extend_from_slice(&piece[..n]);
    }
    let (header, chain) = Header::decode(&bytes).map_err(|why| input.refuse(why))?;
    let metadata: usize = header.metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    if metadata > crate::pool::MAX_METADATA_BYTES {
        let limit = crate::pool::MAX_METADATA_BYTES;
        return Err(input.refuse(format!("{metadata} bytes of metadata, more than the {limit} allowed")));
    }
    Ok((header, chain))
}

struct Receive<'a, R> {
    input: Input<R>,
    header: &'a Header,
    chain: u64,
    arrival: Arrival,
    progress: ReceiveProgress,
}

impl<R: Read> Receive<'_, R> {
    fn records(&mut self, each: &mut dyn FnMut(ReceiveProgress) -> ControlFlow<()>) -> Result<()> {
        let end_lba = self.header.snapshot.size_bytes / BLOCK_BYTES;
        let (mut next_lba, mut records, mut unsaved) = (self.header.start_lba, 0u64, 0u64);
        let mut sums = Vec::new();
        let mut data = Vec::new();
        self.progress.size_bytes = self.header.snapshot.size_bytes;
        if let Some(base) = &self.header.base
            && base.size_bytes > self.header.snapshot.size_bytes
        {
            // A base of another volume may be larger; nothing of it lies behind the end.
            self.arrival.unmap(end_lba, base.size_bytes / BLOCK_BYTES, false)?;
        }
        loop {
            let mut head = [0; RECORD];
            self.input.fill(&mut head)?;
            let record = Record::decode(&head).map_err(|why| self.input.refuse(why))?;
            sums.resize(record.sums_bytes(), 0);
            self.input.fill(&mut sums)?;
            if !Record::verify(&head, &sums, &mut self.chain) {
                return Err(self
                    .input
                    .refuse("the checksum of a record is wrong, or does not continue the one before"));
            }
            if record.kind == Kind::End {
                if record.blocks != records || record.lba != end_lba {
                    let why = format!("its end tells of {} records, {records} were read", record.blocks);
                    return Err(self.input.refuse(why));
                }
                return Ok(());
            }
            let to = record.lba.checked_add(record.blocks).filter(|to| *to <= end_lba && record.blocks > 0);
            let Some(to) = to.filter(|_| record.lba >= next_lba) else {
                let why = format!(
                    "a record of {} blocks at block {}, which must lie within {next_lba}..{end_lba}",
                    record.blocks, record.lba
                );
                return Err(self.input.refuse(why));
            };
            match record.kind {
                Kind::Data => {
                    memory::resize(&mut data, record.blocks as usize * BLOCK, 0)?;
                    self.input.fill(&mut data)?;
                    self.check_blocks(record.lba, &sums, &data)?;
                    self.arrival.write(record.lba, &data)?;
                    self.progress.data_bytes += data.len() as u64;
                    unsaved += data.len() as u64;
                }
                kind => self.arrival.unmap(record.lba, to, kind == Kind::Zero)?,
            }
            next_lba = to;
            records += 1;
            self.arrival.reached(to);
            if unsaved >= SAVE_BYTES {
                self.arrival.save()?;
                unsaved = 0;
            }
            self.progress.position = to * BLOCK_BYTES;
            self.progress.stream_bytes = self.input.at;
            if each(self.progress).is_break() {
                return Err(Error::Cancelled { op: "receive" });
            }
        }
    }

    fn check_blocks(&self, lba: u64, sums: &[u8], data: &[u8]) -> Result<()> {
        debug_assert!(data.len() <= RECORD_BLOCKS * BLOCK);
        for ((lba, block), sum) in (lba..).zip(data.chunks_exact(BLOCK)).zip(sums.chunks_exact(4)) {
            if block_crc(block).to_le_bytes() != sum {
                return Err(self.input.refuse(format!("the data of block {lba} does not have its checksum")));
            }
        }
        Ok(())
    }

    /// What has arrived is what was sent (S4).
    fn prove(&self) -> Result<()> {
        let (want, got) = (self.header.snapshot.data_blocks, self.arrival.data_blocks()?);
        if want != got {
            return Err(self
                .input
                .refuse(format!("the snapshot has {want} blocks of data, {got} have arrived")));
        }
        match self.header.snapshot.fingerprint {
            Some(want) if self.arrival.fingerprint()? != want => {
                Err(self.input.refuse("what has arrived does not have the fingerprint of the snapshot"))
            }
            _ => Ok(()),
        }
    }
}
