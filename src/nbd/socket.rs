//! A connected stream socket, of whichever family: bytes in through a small buffer, whole messages out.
//!
//! - S1 A peer that stops reading, or stops in the middle of a message, is given up after the stall limit.
//!   One that is silent between requests may be so for ever.
//! - S2 A message goes out whole and unmixed: whoever sends holds the outgoing side for its length.
//! - S3 No signal: writing to a peer that has gone is an error, also in a process that did not ask to ignore
//!   `SIGPIPE`.

use std::io::{self, BufRead, BufReader, IoSlice, Read};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown};

/// Requests and small payloads that arrived together are taken in with one call of the system.
const INPUT_BYTES: usize = 32 << 10;

pub(super) struct Socket(OwnedFd);

impl Socket {
    /// Takes over a connected stream socket.
    pub(super) fn new(fd: OwnedFd, stall: Duration) -> io::Result<Self> {
        rustix::fs::fcntl_setfl(&fd, rustix::fs::fcntl_getfl(&fd)? - rustix::fs::OFlags::NONBLOCK)?;
        sockopt::set_socket_timeout(&fd, Timeout::Recv, Some(stall))?;
        sockopt::set_socket_timeout(&fd, Timeout::Send, Some(stall))?;
        let family = rustix::net::getsockname(&fd)?.address_family();
        if family == AddressFamily::INET || family == AddressFamily::INET6 {
            sockopt::set_tcp_nodelay(&fd, true)?;
            // A peer that is silent because its host has gone is found out some day.
            sockopt::set_socket_keepalive(&fd, true)?;
        }
        Ok(Self(fd))
    }

    /// Nothing more is taken in: what has arrived can still be read, then the stream ends.
    pub(super) fn end_input(&self) {
        // It fails where the peer was quicker.
        let _ = rustix::net::shutdown(&self.0, Shutdown::Read);
    }

    /// Ends the connection in both directions, and every call that waits for it.
    pub(super) fn cut(&self) {
        let _ = rustix::net::shutdown(&self.0, Shutdown::Both);
    }

    /// Sends all of the parts, one behind the other.
    ///
    /// The caller sees to it that nobody else sends in between (S2).
    pub(super) fn send(&self, parts: &[&[u8]]) -> io::Result<()> {
        let mut slices = [IoSlice::new(&[]); 4];
        for (slice, part) in slices.iter_mut().zip(parts) {
            *slice = IoSlice::new(part);
        }
        let mut rest = &mut slices[..parts.len()];
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            match rustix::net::sendmsg(
                &self.0,
                rest,
                &mut SendAncillaryBuffer::default(),
                SendFlags::NOSIGNAL,
            ) {
                Ok(sent) => IoSlice::advance_slices(&mut rest, sent),
                Err(Errno::INTR) => {}
                Err(e) => return Err(stalled(e)),
            }
        }
        Ok(())
    }
}

impl Read for &Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match rustix::net::recv(&self.0, &mut *buf, RecvFlags::empty()) {
                Ok((_, received)) => return Ok(received),
                Err(Errno::INTR) => {}
                Err(e) => return Err(stalled(e)),
            }
        }
    }
}

fn stalled(e: Errno) -> io::Error {
    match e {
        Errno::AGAIN => io::Error::new(io::ErrorKind::TimedOut, "the peer has stalled"),
        e => e.into(),
    }
}

/// The incoming side of a socket.
pub(super) struct Input<'a> {
    reader: BufReader<&'a Socket>,
    /// Whoever comes next is not to read any more.
    pub(super) ended: bool,
}

impl<'a> Input<'a> {
    pub(super) fn new(socket: &'a Socket) -> Self {
        Self { reader: BufReader::with_capacity(INPUT_BYTES, socket), ended: false }
    }

    /// Waits for the next message for as long as it takes; false when none will come.
    pub(super) fn wait(&mut self) -> io::Result<bool> {
        loop {
            match self.reader.fill_buf() {
                Ok(bytes) => return Ok(!bytes.is_empty()),
                Err(e) if e.kind() == io::ErrorKind::TimedOut => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Whether more than was asked for has arrived already.
    pub(super) fn has_more(&self) -> bool {
        !self.reader.buffer().is_empty()
    }

    pub(super) fn read(&mut self, buf: &mut [u8]) -> io::Result<()> {
        self.reader.read_exact(buf)
    }

    pub(super) fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut array = [0; N];
        self.read(&mut array)?;
        Ok(array)
    }

    /// Reads over `len` bytes.
    pub(super) fn skip(&mut self, len: u64) -> io::Result<()> {
        let skipped = io::copy(&mut (&mut self.reader).take(len), &mut io::sink())?;
        if skipped < len { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }
}
