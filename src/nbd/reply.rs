//! Replies: what goes out for a request, in the form that was negotiated.
//!
//! - R1 Each request gets one reply: a simple one, or chunks of which the last is marked.
//! - R2 With structured replies a read is always answered in chunks, and every error says in words why.
//! - R3 Once a chunk's head is out, its whole length follows. Without structured replies a read that fails after
//!   its head is out ends the connection: there is no other way to say so.

use std::io;

use parking_lot::{Mutex, MutexGuard};

use crate::Error;

use super::socket::Socket;
use super::wire::{self, MAX_STRING_BYTES, Message, Request, chunk, errno};

/// Why a request was refused or failed, as the client is told.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) errno: u32,
    pub(super) why: String,
    /// The first byte that could not be read.
    pub(super) at: Option<u64>,
}

impl Refusal {
    pub(super) fn new(errno: u32, why: impl Into<String>) -> Self {
        Self { errno, why: why.into(), at: None }
    }

    pub(super) fn at(self, offset: u64) -> Self {
        Self { at: Some(offset), ..self }
    }
}

impl From<Error> for Refusal {
    fn from(e: Error) -> Self {
        let errno = match &e {
            Error::ReadOnly { .. } => errno::EPERM,
            Error::OutOfSpace { .. } => errno::ENOSPC,
            Error::InvalidArgument { .. } => errno::EINVAL,
            Error::Closed => errno::ESHUTDOWN,
            _ => errno::EIO,
        };
        let mut why = e.to_string();
        if let Error::Io { source, .. } = &e {
            why = format!("{why}: {source}");
        }
        Self::new(errno, why)
    }
}

/// The outgoing side of a session.
pub(super) struct Replies<'a> {
    socket: &'a Socket,
    pub(super) structured: bool,
    sending: Mutex<()>,
}

impl<'a> Replies<'a> {
    pub(super) fn new(socket: &'a Socket, structured: bool) -> Self {
        Self { socket, structured, sending: Mutex::new(()) }
    }

    /// Answers anything but a successful read or block status.
    pub(super) fn outcome(&self, request: &Request, outcome: Result<(), Refusal>) -> io::Result<()> {
        match outcome {
            // A simple reply is the shorter one, and allowed for whatever has no payload.
            Ok(()) => self.lock().send(&[&wire::simple_reply(request.cookie, 0)]),
            Err(refusal) if self.structured => self.lock().error(request, &refusal),
            Err(refusal) => self.lock().send(&[&wire::simple_reply(request.cookie, refusal.errno)]),
        }
    }

    /// Answers with chunks of the same type, of which the last ends the reply.
    pub(super) fn chunks(&self, request: &Request, kind: u16, payloads: &[Vec<u8>]) -> io::Result<()> {
        for (i, payload) in payloads.iter().enumerate() {
            self.lock().chunk(request, kind, i + 1 == payloads.len(), &[payload])?;
        }
        Ok(())
    }

    /// The outgoing side for one message.
    pub(super) fn lock(&self) -> Sending<'_> {
        Sending { socket: self.socket, _turn: self.sending.lock() }
    }
}

/// The outgoing side, while one message is sent.
pub(super) struct Sending<'a> {
    socket: &'a Socket,
    _turn: MutexGuard<'a, ()>,
}

impl Sending<'_> {
    pub(super) fn send(&self, parts: &[&[u8]]) -> io::Result<()> {
        self.socket.send(parts)
    }

    /// A chunk whose payload is the parts, one behind the other: at most three.
    fn chunk(&self, request: &Request, kind: u16, done: bool, parts: &[&[u8]]) -> io::Result<()> {
        let bytes: usize = parts.iter().map(|p| p.len()).sum();
        let head = wire::chunk_head(request.cookie, kind, done, bytes as u32);
        let mut all: [&[u8]; 4] = [&head, &[], &[], &[]];
        all[1..=parts.len()].copy_from_slice(parts);
        self.send(&all[..=parts.len()])
    }

    /// The end of a reply in chunks.
    pub(super) fn end(&self, request: &Request) -> io::Result<()> {
        self.chunk(request, chunk::NONE, true, &[])
    }

    pub(super) fn data(&self, request: &Request, offset: u64, bytes: &[u8], done: bool) -> io::Result<()> {
        self.chunk(request, chunk::OFFSET_DATA, done, &[&offset.to_be_bytes(), bytes])
    }

    /// The head of a data chunk whose `len` bytes follow in pieces.
    pub(super) fn data_head(&self, request: &Request) -> io::Result<()> {
        let head = wire::chunk_head(request.cookie, chunk::OFFSET_DATA, false, request.len + 8);
        self.send(&[&head, &request.offset.to_be_bytes()])
    }

    pub(super) fn hole(&self, request: &Request, offset: u64, len: u32, done: bool) -> io::Result<()> {
        let parts: [&[u8]; 2] = [&offset.to_be_bytes(), &len.to_be_bytes()];
        self.chunk(request, chunk::OFFSET_HOLE, done, &parts)
    }

    /// An error, which ends the reply.
    pub(super) fn error(&self, request: &Request, refusal: &Refusal) -> io::Result<()> {
        let why = cut(&refusal.why);
        let said = Message::default().u32(refusal.errno).u16(why.len() as u16).bytes(why.as_bytes());
        let (kind, said) = match refusal.at {
            Some(offset) => (chunk::ERROR_OFFSET, said.u64(offset)),
            None => (chunk::ERROR, said),
        };
        self.chunk(request, kind, true, &[&said.done()])
    }
}

/// As much of a text as a string of the protocol may hold.
pub(super) fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_STRING_BYTES)]
}
