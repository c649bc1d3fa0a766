//! The transmission: requests of one connection, served by several threads.
//!
//! Whoever holds the incoming side reads the next request, with its payload. Where more may be waiting, or the
//! request may take long, he hands the incoming side over before he serves it; where not, he keeps it, which
//! saves a change of threads for each request of a client that waits for its answers.
//!
//! - T1 At most `threads` requests are served at a time, each with one buffer of `piece_bytes`: that is all the
//!   memory a connection can make the server use. Longer reads and writes go through it in pieces.
//! - T2 What is wrong with a request is found before it has any effect, and its payload is read over.
//! - T3 A request that was read is answered before the connection is closed, unless the connection has failed.
//! - T4 Once the server is closing, requests are answered with `ESHUTDOWN` and have no effect.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, Scope};

use parking_lot::{Mutex, MutexGuard};

use crate::{BLOCK_BYTES, Disk, ExtentKind};

use super::negotiate::{Chosen, MAX_PAYLOAD_BYTES};
use super::reply::{Refusal, Replies};
use super::server::Core;
use super::socket::{Input, Socket};
use super::wire::{Request, chunk, cmd, errno, flag};

/// A request with more bytes than this may take long.
const SHORT_BYTES: u32 = 64 << 10;
/// Holes shorter than this, inside of a longer read, are sent as zeroes.
const MIN_HOLE_BYTES: u64 = 64 << 10;

/// Serves requests until the client ends the connection, or it fails.
pub(super) fn serve(core: &Core, socket: &Socket, input: Input<'_>, chosen: &Chosen) {
    let session = Session {
        core,
        socket,
        chosen,
        input: Mutex::new(input),
        replies: Replies::new(socket, chosen.structured),
        threads: AtomicUsize::new(1),
        waiting: AtomicUsize::new(0),
    };
    thread::scope(|scope| session.work(scope));
}

struct Session<'a> {
    core: &'a Core,
    socket: &'a Socket,
    chosen: &'a Chosen,
    input: Mutex<Input<'a>>,
    replies: Replies<'a>,
    threads: AtomicUsize,
    /// Threads that wait for the incoming side.
    waiting: AtomicUsize,
}

/// A request that was read, its payload with it, and what is known about it so far.
struct Taken {
    request: Request,
    verdict: Result<(), Refusal>,
    /// A write that did not fit the buffer was carried out while it came in.
    written: bool,
}

impl<'a> Session<'a> {
    fn work<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) {
        let mut buf = Vec::new();
        let mut kept: Option<MutexGuard<'_, Input<'a>>> = None;
        loop {
            let mut input = kept.take().unwrap_or_else(|| {
                self.waiting.fetch_add(1, Ordering::SeqCst);
                let input = self.input.lock();
                self.waiting.fetch_sub(1, Ordering::SeqCst);
                input
            });
            if input.ended {
                return;
            }
            let Ok(Some(taken)) = self.take(&mut input, &mut buf) else {
                input.ended = true;
                return;
            };
            if input.has_more() || may_take_long(&taken.request) {
                drop(input);
                self.call_another(scope);
            } else {
                kept = Some(input);
            }
            if self.carry_out(taken, &mut buf).is_err() {
                // Nothing can be said any more, so there is nothing to listen to either.
                self.socket.cut();
            }
        }
    }

    /// Sees to it that somebody reads the next request.
    fn call_another<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            return;
        }
        let count = self.threads.fetch_add(1, Ordering::SeqCst);
        let started = count < self.core.limits().threads
            && thread::Builder::new().name("nbd".into()).spawn_scoped(scope, || self.work(scope)).is_ok();
        if !started {
            self.threads.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn disk(&self) -> &Disk {
        &self.chosen.export
    }

    fn piece(&self) -> usize {
        self.core.limits().piece_bytes
    }

    /// Reads a request with its payload; `None` when there are no more.
    fn take(&self, input: &mut Input<'_>, buf: &mut Vec<u8>) -> io::Result<Option<Taken>> {
        if !input.wait()? {
            return Ok(None);
        }
        let request = Request::decode(&input.array()?).ok_or(io::ErrorKind::InvalidData)?;
        if request.command == cmd::DISC {
            return Ok(None);
        }
        let mut taken = Taken { request, verdict: self.judge(&request), written: false };
        if request.command == cmd::WRITE {
            if taken.verdict.is_err() {
                input.skip(request.len.into())?;
            } else if request.len as usize <= self.piece() {
                input.read(room(buf, request.len as usize))?;
            } else {
                taken.verdict = self.write_in_pieces(input, &request, buf)?;
                taken.written = true;
            }
        }
        Ok(Some(taken))
    }

    /// Writes while the payload comes in. What follows an error is read over.
    fn write_in_pieces(
        &self,
        input: &mut Input<'_>,
        request: &Request,
        buf: &mut Vec<u8>,
    ) -> io::Result<Result<(), Refusal>> {
        for piece in pieces(request.offset..request.end(), self.piece()) {
            let bytes = room(buf, (piece.end - piece.start) as usize);
            input.read(bytes)?;
            if let Err(e) = self.disk().write_at(bytes, piece.start) {
                input.skip(request.end() - piece.end)?;
                return Ok(Err(e.into()));
            }
        }
        Ok(Ok(()))
    }

    /// What is wrong with a request, before anything is done about it.
    fn judge(&self, request: &Request) -> Result<(), Refusal> {
        let refuse = |errno, why: String| Err(Refusal::new(errno, why));
        if self.core.is_closing() {
            return refuse(errno::ESHUTDOWN, "the server is closing".into());
        }
        let (allowed, writes) = match request.command {
            cmd::READ if self.chosen.structured => (flag::DF, false),
            cmd::READ | cmd::FLUSH | cmd::CACHE => (0, false),
            cmd::WRITE | cmd::TRIM => (0, true),
            cmd::WRITE_ZEROES => (flag::NO_HOLE | flag::FAST_ZERO, true),
            cmd::BLOCK_STATUS => (flag::REQ_ONE, false),
            other => return refuse(errno::EINVAL, format!("unknown command {other}")),
        };
        if writes && self.chosen.read_only {
            return refuse(errno::EPERM, "the export is read-only".into());
        }
        // FUA is valid with every command.
        let unknown = request.flags & !(allowed | flag::FUA);
        if unknown != 0 {
            return refuse(errno::EINVAL, format!("flags {unknown:#x} do not go with this command"));
        }
        if request.command == cmd::FLUSH {
            return match (request.offset, request.len) {
                (0, 0) => Ok(()),
                _ => refuse(errno::EINVAL, "a flush has neither offset nor length".into()),
            };
        }
        let size = self.chosen.size_bytes;
        if request.offset.checked_add(request.len.into()).is_none_or(|end| end > size) {
            let grows = matches!(request.command, cmd::WRITE | cmd::WRITE_ZEROES);
            let errno = if grows { errno::ENOSPC } else { errno::EINVAL };
            let (len, offset) = (request.len, request.offset);
            return refuse(
                errno,
                format!("{len} bytes at {offset} pass the end of the export at {size} bytes"),
            );
        }
        if matches!(request.command, cmd::READ | cmd::WRITE) && request.len > MAX_PAYLOAD_BYTES {
            return refuse(errno::EINVAL, format!("at most {MAX_PAYLOAD_BYTES} bytes are moved at once"));
        }
        if request.command == cmd::BLOCK_STATUS && (self.chosen.contexts.is_empty() || request.len == 0) {
            return refuse(errno::EINVAL, "a block status needs a metadata context and a length".into());
        }
        Ok(())
    }

    /// Does what a request asks for, and answers it.
    fn carry_out(&self, taken: Taken, buf: &mut Vec<u8>) -> io::Result<()> {
        let Taken { request, verdict, written } = taken;
        let outcome = match (request.command, verdict) {
            (_, Err(refusal)) => Err(refusal),
            (cmd::READ, Ok(())) => return self.read(&request, buf),
            (cmd::BLOCK_STATUS, Ok(())) => return self.block_status(&request),
            (cmd::WRITE, Ok(())) if !written => {
                self.disk().write_at(&buf[..request.len as usize], request.offset).map_err(Refusal::from)
            }
            (cmd::TRIM, Ok(())) => {
                self.disk().discard(request.offset, request.len.into()).map_err(Refusal::from)
            }
            (cmd::WRITE_ZEROES, Ok(())) => self.write_zeroes(&request, buf),
            (cmd::CACHE, Ok(())) => self.cache(&request, buf),
            (_, Ok(())) => Ok(()),
        };
        let durable = request.command == cmd::FLUSH || request.has(flag::FUA);
        let outcome = match outcome {
            Ok(()) if durable => self.disk().flush().map_err(Refusal::from),
            other => other,
        };
        self.replies.outcome(&request, outcome)
    }

    /// Zeroes without a hole are written as data, and so have their blocks.
    fn write_zeroes(&self, request: &Request, buf: &mut Vec<u8>) -> Result<(), Refusal> {
        let whole_blocks = request.end() / BLOCK_BYTES > request.offset.div_ceil(BLOCK_BYTES);
        if request.has(flag::FAST_ZERO) && (request.has(flag::NO_HOLE) || !whole_blocks) {
            return Err(Refusal::new(errno::ENOTSUP, "this is not faster than a write"));
        }
        if !request.has(flag::NO_HOLE) {
            return Ok(self.disk().write_zeroes(request.offset, request.len.into())?);
        }
        for piece in pieces(request.offset..request.end(), self.piece()) {
            self.still_open()?;
            let zeroes = room(buf, (piece.end - piece.start) as usize);
            zeroes.fill(0);
            self.disk().write_at(zeroes, piece.start)?;
        }
        Ok(())
    }

    /// Reads what is stored, so that it is in memory when it is asked for.
    fn cache(&self, request: &Request, buf: &mut Vec<u8>) -> Result<(), Refusal> {
        for extent in self.disk().extents(request.offset..request.end()) {
            let extent = extent?;
            if extent.kind != ExtentKind::Data {
                continue;
            }
            for piece in pieces(extent.range, self.piece()) {
                self.still_open()?;
                self.disk().read_at(room(buf, (piece.end - piece.start) as usize), piece.start)?;
            }
        }
        Ok(())
    }

    /// A request of up to 4 GiB does not keep the server from closing.
    fn still_open(&self) -> Result<(), Refusal> {
        match self.core.is_closing() {
            true => Err(Refusal::new(errno::ESHUTDOWN, "the server is closing")),
            false => Ok(()),
        }
    }

    fn block_status(&self, request: &Request) -> io::Result<()> {
        let range = request.offset..request.end();
        let one = request.has(flag::REQ_ONE);
        let (pool, of) = (self.core.pool(), &self.chosen.export);
        let all: Result<Vec<_>, _> = (0..)
            .zip(&self.chosen.contexts)
            .map(|(id, context)| context.status(id, pool, of, range.clone(), one))
            .collect();
        match all {
            Ok(payloads) => self.replies.chunks(request, chunk::BLOCK_STATUS, &payloads),
            Err(e) => self.replies.outcome(request, Err(e.into())),
        }
    }

    fn read(&self, request: &Request, buf: &mut Vec<u8>) -> io::Result<()> {
        if !self.replies.structured || request.has(flag::DF) {
            self.read_in_one(request, buf)
        } else {
            self.read_in_chunks(request, buf)
        }
    }

    /// One run of bytes. What does not fit the buffer follows piece by piece.
    fn read_in_one(&self, request: &Request, buf: &mut Vec<u8>) -> io::Result<()> {
        let mut pieces = pieces(request.offset..request.end(), self.piece());
        let first = pieces.next().unwrap_or(request.offset..request.offset);
        let len = (first.end - first.start) as usize;
        if let Err(e) = self.disk().read_at(room(buf, len), first.start) {
            return self.replies.outcome(request, Err(Refusal::from(e).at(first.start)));
        }
        let out = self.replies.lock();
        if !self.replies.structured {
            out.send(&[&super::wire::simple_reply(request.cookie, 0), &buf[..len]])?;
            for piece in pieces {
                let bytes = room(buf, (piece.end - piece.start) as usize);
                self.disk().read_at(bytes, piece.start).map_err(io::Error::other)?;
                out.send(&[bytes])?;
            }
            return Ok(());
        }
        match request.len as usize {
            0 => return out.end(request),
            all if all == len => return out.data(request, request.offset, &buf[..len], true),
            _ => {}
        }
        out.data_head(request)?;
        out.send(&[&buf[..len]])?;
        let mut failed = None;
        for piece in pieces {
            let bytes = room(buf, (piece.end - piece.start) as usize);
            if failed.is_none()
                && let Err(e) = self.disk().read_at(bytes, piece.start)
            {
                failed = Some(Refusal::from(e).at(piece.start));
            }
            if failed.is_some() {
                bytes.fill(0);
            }
            out.send(&[bytes])?;
        }
        match failed {
            Some(refusal) => out.error(request, &refusal),
            None => out.end(request),
        }
    }

    /// Data and holes as they lie.
    fn read_in_chunks(&self, request: &Request, buf: &mut Vec<u8>) -> io::Result<()> {
        let parts = match self.parts(request.offset..request.end()) {
            Ok(parts) => parts,
            Err(e) => return self.replies.outcome(request, Err(Refusal::from(e).at(request.offset))),
        };
        for (range, is_hole) in parts {
            if is_hole {
                let done = range.end == request.end();
                let len = (range.end - range.start) as u32;
                self.replies.lock().hole(request, range.start, len, done)?;
                continue;
            }
            for piece in pieces(range, self.piece()) {
                let bytes = room(buf, (piece.end - piece.start) as usize);
                let (sound, refusal) = match self.disk().read_at(bytes, piece.start) {
                    Ok(()) => (bytes.len(), None),
                    Err(e) => self.sound_part(bytes, piece.start, e),
                };
                let out = self.replies.lock();
                let done = piece.end == request.end() && refusal.is_none();
                if sound > 0 {
                    out.data(request, piece.start, &bytes[..sound], done)?;
                }
                if let Some(refusal) = refusal {
                    return out.error(request, &refusal);
                }
            }
        }
        if request.len == 0 { self.replies.lock().end(request) } else { Ok(()) }
    }

    /// The bytes before the first block that cannot be read, and what is wrong with that one.
    fn sound_part(&self, bytes: &mut [u8], offset: u64, e: crate::Error) -> (usize, Option<Refusal>) {
        let mut at = offset;
        let end = offset + bytes.len() as u64;
        while at < end {
            let next = (at / BLOCK_BYTES + 1).saturating_mul(BLOCK_BYTES).min(end);
            let block = &mut bytes[(at - offset) as usize..(next - offset) as usize];
            if let Err(e) = self.disk().read_at(block, at) {
                return ((at - offset) as usize, Some(Refusal::from(e).at(at)));
            }
            at = next;
        }
        // Each block can be read now, and yet the whole could not: better to say so than to guess.
        (0, Some(Refusal::from(e).at(offset)))
    }

    /// A range as runs of data and of holes that are worth a chunk.
    fn parts(&self, range: Range<u64>) -> crate::Result<Vec<(Range<u64>, bool)>> {
        let mut parts: Vec<(Range<u64>, bool)> = Vec::new();
        for extent in self.disk().extents(range.clone()) {
            let extent = extent?;
            let len = extent.range.end - extent.range.start;
            let is_hole = extent.kind != ExtentKind::Data && (len >= MIN_HOLE_BYTES || extent.range == range);
            match parts.last_mut() {
                Some((last, kind)) if *kind == is_hole => last.end = extent.range.end,
                _ => parts.push((extent.range, is_hole)),
            }
        }
        Ok(parts)
    }
}

fn may_take_long(request: &Request) -> bool {
    let moves = matches!(request.command, cmd::READ | cmd::WRITE);
    !moves || request.has(flag::FUA) || request.len > SHORT_BYTES
}

/// The first `len` bytes of a buffer that grows as needed.
fn room(buf: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if buf.len() < len {
        buf.resize(len, 0);
    }
    &mut buf[..len]
}

/// A range cut into pieces of at most `most` bytes, at multiples of it.
fn pieces(range: Range<u64>, most: usize) -> impl Iterator<Item = Range<u64>> {
    let most = most as u64;
    let mut at = range.start;
    std::iter::from_fn(move || {
        let end = ((at / most + 1).saturating_mul(most)).min(range.end);
        let piece = at..end;
        at = end;
        (!piece.is_empty()).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_a_range_once_and_meet_at_multiples() {
        let cut = |range| pieces(range, 4096).map(|p| (p.start, p.end)).collect::<Vec<_>>();
        assert_eq!(cut(10..10), []);
        assert_eq!(cut(0..4096), [(0, 4096)]);
        assert_eq!(cut(100..9000), [(100, 4096), (4096, 8192), (8192, 9000)]);
        assert_eq!(cut(u64::MAX - 1..u64::MAX), [(u64::MAX - 1, u64::MAX)]);
    }
}
