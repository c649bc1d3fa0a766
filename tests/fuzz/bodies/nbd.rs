//! NBD sessions whose client says anything.

#[path = "../../common/nbd_session.rs"]
mod nbd_session;

const REQUEST_MAGIC: [u8; 4] = 0x2560_9513_u32.to_be_bytes();
const WRITE: u8 = 1;

/// The body of the fuzz target `nbd`. The first byte says whether the client has shaken hands before, and how; the
/// rest is what it says, taken for requests that are well-formed if the first byte asks for it.
pub(crate) fn nbd(input: &[u8]) {
    let Some((mode, rest)) = input.split_first() else { return };
    let mut said = if mode & 1 == 1 { handshake(mode & 2 == 2, mode & 4 == 4) } else { Vec::new() };
    match mode & 8 {
        0 => said.extend_from_slice(rest),
        _ => said.extend(requests(rest)),
    }
    nbd_session::session(&said);
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    [b"IHAVEOPT", &number.to_be_bytes()[..], &(data.len() as u32).to_be_bytes(), data].concat()
}

/// Into the export of the volume, or of its snapshot.
fn handshake(structured: bool, snapshot: bool) -> Vec<u8> {
    let name: &[u8] = if snapshot { b"v@s" } else { b"v" };
    let name = [&(name.len() as u32).to_be_bytes(), name].concat();
    let mut said = 3_u32.to_be_bytes().to_vec();
    if structured {
        said.extend(option(8, &[]));
        let context = b"base:allocation";
        let contexts = [&1_u32.to_be_bytes()[..], &(context.len() as u32).to_be_bytes(), context].concat();
        said.extend(option(10, &[&name[..], &contexts].concat()));
    }
    said.extend(option(7, &[&name[..], &[0, 0]].concat()));
    said
}

/// Requests out of 16 bytes each, with the right magic, a command that there is, an offset and a length that lie
/// within the volume or near its end, and as much data as a write says.
fn requests(mut bytes: &[u8]) -> Vec<u8> {
    let mut said = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<16>() {
        let command = head[0] % 9;
        // In units of 16 bytes: at most a little more than the volume.
        let offset =
            u64::from(u32::from_le_bytes([head[4], head[5], head[6], 0])) % 0x10100 * 16 + u64::from(head[7]);
        let len = u32::from_le_bytes([head[8], head[9], head[10] & 1, 0]);
        said.extend(REQUEST_MAGIC);
        said.extend([0, head[1] & 0x1f, 0, command]);
        said.extend(&head[8..16]);
        said.extend(offset.to_be_bytes());
        said.extend(len.to_be_bytes());
        if command == WRITE {
            said.extend(std::iter::repeat_n(head[15], len as usize));
        }
        bytes = rest;
    }
    said
}
