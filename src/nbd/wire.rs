//! The protocol's numbers, and its messages of fixed size as bytes. Pure; every number on the wire is
//! big-endian, and what a client says is taken as it stands: whether it makes sense is for others to judge.

// The handshake.
pub(super) const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943; // "NBDMAGIC"
pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054; // "IHAVEOPT"
pub(super) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// The server's handshake flags, and the client's answer to them.
pub(super) mod hello {
    pub(in crate::nbd) const FIXED_NEWSTYLE: u16 = 1 << 0;
    pub(in crate::nbd) const NO_ZEROES: u16 = 1 << 1;
}

/// Options of the negotiation.
pub(super) mod opt {
    pub(in crate::nbd) const EXPORT_NAME: u32 = 1;
    pub(in crate::nbd) const ABORT: u32 = 2;
    pub(in crate::nbd) const LIST: u32 = 3;
    pub(in crate::nbd) const INFO: u32 = 6;
    pub(in crate::nbd) const GO: u32 = 7;
    pub(in crate::nbd) const STRUCTURED_REPLY: u32 = 8;
    pub(in crate::nbd) const LIST_META_CONTEXT: u32 = 9;
    pub(in crate::nbd) const SET_META_CONTEXT: u32 = 10;
}

/// Types of replies to an option.
pub(super) mod rep {
    pub(in crate::nbd) const ACK: u32 = 1;
    pub(in crate::nbd) const SERVER: u32 = 2;
    pub(in crate::nbd) const INFO: u32 = 3;
    pub(in crate::nbd) const META_CONTEXT: u32 = 4;
    pub(in crate::nbd) const ERR_UNSUP: u32 = 1 << 31 | 1;
    pub(in crate::nbd) const ERR_INVALID: u32 = 1 << 31 | 3;
    pub(in crate::nbd) const ERR_UNKNOWN: u32 = 1 << 31 | 6;
    pub(in crate::nbd) const ERR_SHUTDOWN: u32 = 1 << 31 | 7;
    pub(in crate::nbd) const ERR_TOO_BIG: u32 = 1 << 31 | 9;
}

/// Kinds of information in a reply to `INFO` and `GO`.
pub(super) mod info {
    pub(in crate::nbd) const EXPORT: u16 = 0;
    pub(in crate::nbd) const NAME: u16 = 1;
    pub(in crate::nbd) const DESCRIPTION: u16 = 2;
    pub(in crate::nbd) const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags: what an export can do.
pub(super) mod can {
    pub(in crate::nbd) const HAS_FLAGS: u16 = 1 << 0;
    pub(in crate::nbd) const READ_ONLY: u16 = 1 << 1;
    pub(in crate::nbd) const SEND_FLUSH: u16 = 1 << 2;
    pub(in crate::nbd) const SEND_FUA: u16 = 1 << 3;
    pub(in crate::nbd) const SEND_TRIM: u16 = 1 << 5;
    pub(in crate::nbd) const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub(in crate::nbd) const SEND_DF: u16 = 1 << 7;
    pub(in crate::nbd) const MULTI_CONN: u16 = 1 << 8;
    pub(in crate::nbd) const SEND_CACHE: u16 = 1 << 10;
    pub(in crate::nbd) const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Commands of the transmission.
pub(super) mod cmd {
    pub(in crate::nbd) const READ: u16 = 0;
    pub(in crate::nbd) const WRITE: u16 = 1;
    pub(in crate::nbd) const DISC: u16 = 2;
    pub(in crate::nbd) const FLUSH: u16 = 3;
    pub(in crate::nbd) const TRIM: u16 = 4;
    pub(in crate::nbd) const CACHE: u16 = 5;
    pub(in crate::nbd) const WRITE_ZEROES: u16 = 6;
    pub(in crate::nbd) const BLOCK_STATUS: u16 = 7;
}

/// Flags of a command.
pub(super) mod flag {
    pub(in crate::nbd) const FUA: u16 = 1 << 0;
    pub(in crate::nbd) const NO_HOLE: u16 = 1 << 1;
    pub(in crate::nbd) const DF: u16 = 1 << 2;
    pub(in crate::nbd) const REQ_ONE: u16 = 1 << 3;
    pub(in crate::nbd) const FAST_ZERO: u16 = 1 << 4;
}

/// Types of the chunks of a structured reply.
pub(super) mod chunk {
    pub(in crate::nbd) const NONE: u16 = 0;
    pub(in crate::nbd) const OFFSET_DATA: u16 = 1;
    pub(in crate::nbd) const OFFSET_HOLE: u16 = 2;
    pub(in crate::nbd) const BLOCK_STATUS: u16 = 5;
    pub(in crate::nbd) const ERROR: u16 = 1 << 15 | 1;
    pub(in crate::nbd) const ERROR_OFFSET: u16 = 1 << 15 | 2;
    /// The only flag of a chunk: it is the last of its reply.
    pub(in crate::nbd) const DONE: u16 = 1 << 0;
}

/// Flags of an extent in a block status.
pub(super) mod state {
    pub(in crate::nbd) const HOLE: u32 = 1 << 0;
    pub(in crate::nbd) const ZERO: u32 = 1 << 1;
    /// Of `qemu:dirty-bitmap:`.
    pub(in crate::nbd) const DIRTY: u32 = 1 << 0;
}

/// The error values of the protocol, whatever the system calls them.
pub(super) mod errno {
    pub(in crate::nbd) const EPERM: u32 = 1;
    pub(in crate::nbd) const EIO: u32 = 5;
    pub(in crate::nbd) const EINVAL: u32 = 22;
    pub(in crate::nbd) const ENOSPC: u32 = 28;
    pub(in crate::nbd) const ENOTSUP: u32 = 95;
    pub(in crate::nbd) const ESHUTDOWN: u32 = 108;
}

const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Longest string of the protocol, in bytes.
pub(super) const MAX_STRING_BYTES: usize = 4096;

/// Takes numbers and bytes from the front; `None` when there are not that many.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }
    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }
    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }
    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }
    /// A string with its length of 32 bits before it.
    pub(super) fn string(&mut self) -> Option<&'a str> {
        let len = self.u32()? as usize;
        text(self.bytes(len)?)
    }
}

/// A string of the protocol: UTF-8 without NUL, of limited length.
pub(super) fn text(bytes: &[u8]) -> Option<&str> {
    let fits = bytes.len() <= MAX_STRING_BYTES && !bytes.contains(&0);
    fits.then(|| std::str::from_utf8(bytes).ok()).flatten()
}

/// One request of the transmission, without its payload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) flags: u16,
    pub(super) command: u16,
    /// Chosen by the client, and said again in every reply.
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) len: u32,
}

impl Request {
    pub(super) const BYTES: usize = 28;

    /// `None` when it does not begin as a request must: the stream cannot be followed any further.
    pub(super) fn decode(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let mut fields = Fields(bytes);
        if fields.u32()? != REQUEST_MAGIC {
            return None;
        }
        Some(Self {
            flags: fields.u16()?,
            command: fields.u16()?,
            cookie: fields.u64()?,
            offset: fields.u64()?,
            len: fields.u32()?,
        })
    }

    pub(super) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// One past the last byte. Only for requests that were found to lie within their export.
    pub(super) fn end(&self) -> u64 {
        self.offset + u64::from(self.len)
    }
}

/// A message that is put together field by field.
#[derive(Default)]
pub(super) struct Message(Vec<u8>);

impl Message {
    pub(super) fn u16(mut self, value: u16) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }
    pub(super) fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }
    pub(super) fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }
    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
    pub(super) fn done(self) -> Vec<u8> {
        self.0
    }
}

/// Head of a reply to an option.
pub(super) fn option_reply(option: u32, kind: u32, payload_bytes: u32) -> [u8; 20] {
    let mut head = [0; 20];
    head[..8].copy_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    head[8..12].copy_from_slice(&option.to_be_bytes());
    head[12..16].copy_from_slice(&kind.to_be_bytes());
    head[16..].copy_from_slice(&payload_bytes.to_be_bytes());
    head
}

/// A simple reply, or its head where data follows.
pub(super) fn simple_reply(cookie: u64, error: u32) -> [u8; 16] {
    let mut head = [0; 16];
    head[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    head[4..8].copy_from_slice(&error.to_be_bytes());
    head[8..].copy_from_slice(&cookie.to_be_bytes());
    head
}

/// Head of a chunk of a structured reply.
pub(super) fn chunk_head(cookie: u64, kind: u16, done: bool, payload_bytes: u32) -> [u8; 20] {
    let flags = if done { chunk::DONE } else { 0 };
    let mut head = [0; 20];
    head[..4].copy_from_slice(&CHUNK_MAGIC.to_be_bytes());
    head[4..6].copy_from_slice(&flags.to_be_bytes());
    head[6..8].copy_from_slice(&kind.to_be_bytes());
    head[8..16].copy_from_slice(&cookie.to_be_bytes());
    head[16..].copy_from_slice(&payload_bytes.to_be_bytes());
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_as_the_protocol_lays_it_out() {
        let bytes = [
            &[0x25, 0x60, 0x95, 0x13][..],
            &[0, 5, 0, 6],
            &[1, 2, 3, 4, 5, 6, 7, 8],
            &[0, 0, 0, 1, 0, 0, 0, 2],
            &[0, 0, 16, 0],
        ];
        let bytes: [u8; 28] = bytes.concat().try_into().unwrap();
        let request = Request::decode(&bytes).unwrap();
        assert_eq!((request.flags, request.command), (flag::FUA | flag::DF, cmd::WRITE_ZEROES));
        assert_eq!((request.cookie, request.offset, request.len), (0x0102_0304_0506_0708, 1 << 32 | 2, 4096));
        for at in 0..4 {
            let mut other = bytes;
            other[at] ^= 1;
            assert!(Request::decode(&other).is_none());
        }
    }

    #[test]
    fn fields_end_where_the_bytes_end() {
        let bytes = [0, 0, 0, 3, b'a', b'b', b'c', 0, 9];
        let mut fields = Fields(&bytes);
        assert_eq!(fields.string(), Some("abc"));
        assert_eq!((fields.u32(), fields.u16(), fields.u16()), (None, Some(9), None));
        assert_eq!(Fields(&[0, 0, 0, 4, b'a', b'b', b'c']).string(), None);
        assert_eq!(Fields(&[0xff, 0xff, 0xff, 0xff, b'a']).string(), None);
        assert_eq!(Fields(&[0, 0, 0, 1, 0]).string(), None);
        assert_eq!(Fields(&[0, 0, 0, 1, 0xff]).string(), None);
        assert!(text(&[b'x'; 4096]).is_some() && text(&[b'x'; 4097]).is_none());
    }
}
