//! A small NBD client that says exactly what a test wants it to say. It trusts the server no further than it must,
//! and panics where the server breaks the protocol.
// Each test binary uses a part of this.
#![allow(dead_code, clippy::unwrap_used)]

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISC: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const CACHE: u16 = 5;
pub(crate) const ZEROES: u16 = 6;
pub(crate) const STATUS: u16 = 7;

pub(crate) const FUA: u16 = 1;
pub(crate) const NO_HOLE: u16 = 2;
pub(crate) const DF: u16 = 4;
pub(crate) const REQ_ONE: u16 = 8;
pub(crate) const FAST_ZERO: u16 = 16;

pub(crate) const EPERM: u32 = 1;
pub(crate) const EIO: u32 = 5;
pub(crate) const EINVAL: u32 = 22;
pub(crate) const ENOSPC: u32 = 28;
pub(crate) const ENOTSUP: u32 = 95;
pub(crate) const ESHUTDOWN: u32 = 108;

pub(crate) const ACK: u32 = 1;
pub(crate) const ERR_UNSUP: u32 = 0x8000_0001;
pub(crate) const ERR_INVALID: u32 = 0x8000_0003;
pub(crate) const ERR_UNKNOWN: u32 = 0x8000_0006;
pub(crate) const ERR_SHUTDOWN: u32 = 0x8000_0007;
pub(crate) const ERR_TOO_BIG: u32 = 0x8000_0009;

/// A test that hangs would say nothing; this long after the last byte it fails instead.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) fn be16(bytes: &[u8]) -> u16 {
    u16::from_be_bytes(bytes[..2].try_into().unwrap())
}
pub(crate) fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().unwrap())
}
pub(crate) fn be64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes[..8].try_into().unwrap())
}

/// A string with its length before it.
pub(crate) fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat()
}

pub(crate) fn option(option: u32, data: &[u8]) -> Vec<u8> {
    [b"IHAVEOPT", &option.to_be_bytes()[..], &(data.len() as u32).to_be_bytes(), data].concat()
}

pub(crate) fn info_data(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut data = string(name);
    data.extend((wanted.len() as u16).to_be_bytes());
    data.extend(wanted.iter().flat_map(|w| w.to_be_bytes()));
    data
}

pub(crate) fn context_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = string(name);
    data.extend((queries.len() as u32).to_be_bytes());
    data.extend(queries.iter().flat_map(|q| string(q)));
    data
}

pub(crate) fn request(flags: u16, command: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    [
        &0x2560_9513_u32.to_be_bytes()[..],
        &flags.to_be_bytes(),
        &command.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &len.to_be_bytes(),
    ]
    .concat()
}

/// Type and payload of a reply to an option.
pub(crate) type OptionReply = (u32, Vec<u8>);

/// One message of a reply.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Message {
    Simple { error: u32, cookie: u64 },
    Chunk { done: bool, kind: u16, cookie: u64, payload: Vec<u8> },
}

/// A whole reply.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) error: u32,
    /// Words of the error, where it had some.
    pub(crate) why: String,
    pub(crate) error_at: Option<u64>,
    /// What was read, in order of offset.
    pub(crate) data: Vec<u8>,
    /// Chunks that were holes, as offset and length.
    pub(crate) holes: Vec<(u64, u32)>,
    pub(crate) content_chunks: usize,
    /// Context id, and length and flags of each extent.
    pub(crate) status: Vec<(u32, Vec<(u32, u32)>)>,
}

pub(crate) struct Client {
    pub(crate) stream: UnixStream,
    pub(crate) structured: bool,
    pub(crate) size: u64,
    pub(crate) flags: u16,
    next_cookie: u64,
}

impl Client {
    /// Connects and shakes hands, with client flags as given.
    pub(crate) fn hello(path: &Path, flags: u32) -> Self {
        Self::over(UnixStream::connect(path).unwrap(), flags)
    }

    pub(crate) fn over(stream: UnixStream, flags: u32) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client = Self { stream, structured: false, size: 0, flags: 0, next_cookie: 1 };
        let greeting = client.bytes(18);
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        assert_eq!(be16(&greeting[16..]), 3, "fixed newstyle, no zeroes");
        client.send(&flags.to_be_bytes());
        client
    }

    /// Connects to an export, with structured replies.
    pub(crate) fn open(path: &Path, name: &str) -> Self {
        let mut client = Self::hello(path, 3);
        client.structured();
        client.go(name).unwrap();
        client
    }

    /// Connects to an export, with simple replies.
    pub(crate) fn open_simple(path: &Path, name: &str) -> Self {
        let mut client = Self::hello(path, 3);
        client.go(name).unwrap();
        client
    }

    /// Connects to an export with these metadata contexts.
    pub(crate) fn open_with(path: &Path, name: &str, contexts: &[&str]) -> Self {
        let mut client = Self::hello(path, 3);
        client.structured();
        let got = client.option(10, &context_data(name, contexts));
        assert_eq!(got.len(), contexts.len() + 1, "{got:?}");
        client.go(name).unwrap();
        client
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Whether the server has closed the connection, after which nothing more comes.
    pub(crate) fn is_closed(&mut self) -> bool {
        match self.stream.read(&mut [0; 1]) {
            Ok(0) => true,
            Ok(_) => false,
            Err(e) => matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
        }
    }

    /// Sends an option and takes all replies: type and payload of each, the final one last.
    pub(crate) fn option(&mut self, number: u32, data: &[u8]) -> Vec<OptionReply> {
        self.send(&option(number, data));
        self.option_replies(number)
    }

    pub(crate) fn option_replies(&mut self, number: u32) -> Vec<OptionReply> {
        let mut replies = Vec::new();
        loop {
            let head = self.bytes(20);
            assert_eq!(be64(&head), 0x0003_e889_0455_65a9);
            assert_eq!(be32(&head[8..]), number);
            let kind = be32(&head[12..]);
            let payload = self.bytes(be32(&head[16..]) as usize);
            replies.push((kind, payload));
            if kind == ACK || kind >> 31 == 1 {
                return replies;
            }
        }
    }

    /// The type of the final reply to an option.
    pub(crate) fn verdict(&mut self, number: u32, data: &[u8]) -> u32 {
        self.option(number, data).pop().unwrap().0
    }

    pub(crate) fn structured(&mut self) {
        assert_eq!(self.verdict(8, &[]), ACK);
        self.structured = true;
    }

    pub(crate) fn go(&mut self, name: &str) -> Result<Vec<OptionReply>, (u32, String)> {
        let replies = self.option(7, &info_data(name, &[]));
        let (kind, why) = replies.last().unwrap().clone();
        if kind != ACK {
            return Err((kind, String::from_utf8(why).unwrap()));
        }
        let export = &replies.iter().find(|(k, p)| *k == 3 && be16(p) == 0).unwrap().1;
        assert_eq!(export.len(), 12);
        (self.size, self.flags) = (be64(&export[2..]), be16(&export[10..]));
        Ok(replies)
    }

    /// The next message; `data` says how many bytes follow a simple reply without error.
    pub(crate) fn message(&mut self, data: usize) -> (Message, Vec<u8>) {
        let magic = be32(&self.bytes(4));
        if magic == 0x6744_6698 {
            let rest = self.bytes(12);
            let (error, cookie) = (be32(&rest), be64(&rest[4..]));
            let data = if error == 0 { self.bytes(data) } else { Vec::new() };
            return (Message::Simple { error, cookie }, data);
        }
        assert_eq!(magic, 0x668e_33ef, "neither a simple reply nor a chunk");
        assert!(self.structured, "a chunk that nobody asked for");
        let rest = self.bytes(16);
        let payload = self.bytes(be32(&rest[12..]) as usize);
        assert!(be16(&rest) <= 1);
        let (done, kind, cookie) = (be16(&rest) == 1, be16(&rest[2..]), be64(&rest[4..]));
        (Message::Chunk { done, kind, cookie, payload }, Vec::new())
    }

    /// Sends a request and takes its whole reply, checking it against the protocol.
    pub(crate) fn call(&mut self, flags: u16, command: u16, offset: u64, len: u32, payload: &[u8]) -> Answer {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let mut bytes = request(flags, command, cookie, offset, len);
        bytes.extend(payload);
        self.send(&bytes);
        self.answer(flags, command, cookie, offset, len)
    }

    pub(crate) fn answer(&mut self, flags: u16, command: u16, cookie: u64, offset: u64, len: u32) -> Answer {
        let mut answer = Answer::default();
        let mut content: Vec<(u64, Vec<u8>)> = Vec::new();
        loop {
            let expected = if command == READ && !self.structured { len as usize } else { 0 };
            match self.message(expected) {
                (Message::Simple { error, cookie: of }, data) => {
                    assert_eq!(of, cookie);
                    assert!(!(self.structured && command == READ), "a read is answered in chunks");
                    assert!(!(self.structured && error != 0), "an error is said in words");
                    return Answer { error, data, ..answer };
                }
                (Message::Chunk { done, kind, cookie: of, payload }, _) => {
                    assert_eq!(of, cookie);
                    match kind {
                        0 => assert!(done && payload.is_empty()),
                        1 => {
                            assert!(payload.len() >= 9);
                            content.push((be64(&payload), payload[8..].to_vec()));
                        }
                        2 => {
                            assert!(payload.len() == 12 && be32(&payload[8..]) > 0);
                            content.push((be64(&payload), vec![0; be32(&payload[8..]) as usize]));
                            answer.holes.push((be64(&payload), be32(&payload[8..])));
                        }
                        5 => {
                            assert!(payload.len() > 4 && payload.len() % 8 == 4);
                            let extents = payload[4..].chunks(8).map(|e| (be32(e), be32(&e[4..]))).collect();
                            answer.status.push((be32(&payload), extents));
                        }
                        0x8001 | 0x8002 => {
                            answer.error = be32(&payload);
                            let words = be16(&payload[4..]) as usize;
                            answer.why = String::from_utf8(payload[6..6 + words].to_vec()).unwrap();
                            let at = &payload[6 + words..];
                            answer.error_at = (kind == 0x8002).then(|| be64(at));
                            assert_eq!(at.len(), if kind == 0x8002 { 8 } else { 0 });
                            assert!(answer.error != 0 && !answer.why.is_empty());
                        }
                        other => panic!("chunk of type {other:#x}"),
                    }
                    if done {
                        break;
                    }
                }
            }
        }
        answer.content_chunks = content.len();
        assert!(flags & DF == 0 || content.len() <= 1, "fragmented");
        content.sort_by_key(|c| c.0);
        let mut at = offset;
        for (from, bytes) in &content {
            assert!(*from >= at && from + bytes.len() as u64 <= offset + u64::from(len), "outside or twice");
            assert!(answer.error != 0 || *from == at, "a gap");
            at = from + bytes.len() as u64;
        }
        if command == READ && answer.error == 0 {
            assert_eq!(at, offset + u64::from(len), "not all of it");
        }
        for (_, extents) in &answer.status {
            let sum = |e: &[(u32, u32)]| e.iter().map(|e| u64::from(e.0)).sum::<u64>();
            assert!(extents.iter().all(|e| e.0 > 0));
            assert!(sum(&extents[..extents.len() - 1]) < u64::from(len));
            assert!(flags & REQ_ONE == 0 || (extents.len() == 1 && extents[0].0 <= len));
        }
        answer.data = content.into_iter().flat_map(|c| c.1).collect();
        answer
    }

    pub(crate) fn read(&mut self, offset: u64, len: u32) -> Vec<u8> {
        let answer = self.call(0, READ, offset, len, &[]);
        assert_eq!(answer.error, 0, "{}", answer.why);
        answer.data
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        assert_eq!(self.call(0, WRITE, offset, data.len() as u32, data).error, 0);
    }

    pub(crate) fn flush(&mut self) {
        assert_eq!(self.call(0, FLUSH, 0, 0, &[]).error, 0);
    }

    pub(crate) fn disconnect(mut self) {
        self.send(&request(0, DISC, 0, 0, 0));
        assert!(self.is_closed());
    }
}
