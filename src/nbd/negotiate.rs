//! The handshake: fixed newstyle, options until one of them chooses an export.
//!
//! - N1 What a client says about lengths sizes no memory: an option with more than [`MAX_OPTION_BYTES`] is read
//!   over and refused.
//! - N2 Every option but `EXPORT_NAME` is answered and can be followed by another one. `EXPORT_NAME` cannot be
//!   refused but by ending the connection.
//! - N3 Metadata contexts count only for the export name they were selected for, and only those of the last
//!   selection.
//! - N4 Only an export that is chosen is attached, and only a snapshot that is selected as a context.

use std::io;

use super::attachment::Attachment;
use super::context::{ALLOCATION, CHANGED, Context};
use super::export::{self, Export};
use super::reply::cut;
use super::server::Core;
use super::socket::{Input, Socket};
use super::wire::{
    self, Fields, GREETING_MAGIC, MAX_STRING_BYTES, Message, OPTION_MAGIC, can, hello, info, opt, rep,
};
use crate::{BLOCK_BYTES, Error};

/// Most bytes of data in one option: room for the contexts that can be selected at once.
const MAX_OPTION_BYTES: u32 = 128 << 10;
/// Most metadata contexts that a session can select.
const MAX_CONTEXTS: usize = 16;
/// Most options before an export is chosen.
const MAX_OPTIONS: usize = 1024;
/// Most bytes in one read or write: what the protocol wants to be accepted everywhere.
pub(super) const MAX_PAYLOAD_BYTES: u32 = 32 << 20;

/// What a client has chosen.
pub(super) struct Chosen {
    pub(super) export: Attachment,
    pub(super) size_bytes: u64,
    pub(super) read_only: bool,
    pub(super) structured: bool,
    pub(super) contexts: Vec<Context>,
}

/// Negotiates until an export is chosen; `None` when the client wants none, or cannot have it.
///
/// # Errors
/// The connection fails, ends early, or the client breaks the protocol.
pub(super) fn negotiate(core: &Core, socket: &Socket, input: &mut Input<'_>) -> io::Result<Option<Chosen>> {
    let ours = hello::FIXED_NEWSTYLE | hello::NO_ZEROES;
    let greeting = Message::default().u64(GREETING_MAGIC).u64(OPTION_MAGIC).u16(ours);
    socket.send(&[&greeting.done()])?;
    let theirs = u32::from_be_bytes(input.array()?);
    if theirs & !u32::from(ours) != 0 {
        return Err(broken("unknown client flags"));
    }
    let no_zeroes = theirs & u32::from(hello::NO_ZEROES) != 0;
    let mut haggling = Haggling { core, socket, structured: false, selected: None };
    for _ in 0..MAX_OPTIONS {
        let (option, len) = option_head(input)?;
        if len > MAX_OPTION_BYTES {
            if option == opt::EXPORT_NAME {
                return Err(broken("a name that is too long"));
            }
            input.skip(len.into())?;
            haggling.refuse(option, rep::ERR_TOO_BIG, "the option has too much data")?;
            continue;
        }
        let mut data = vec![0; len as usize];
        input.read(&mut data)?;
        match option {
            opt::EXPORT_NAME => return haggling.export_name(&data, no_zeroes).map(Some),
            opt::ABORT => {
                // The client need not wait for the answer.
                let _ = haggling.reply(option, rep::ACK, &[]);
                return Ok(None);
            }
            _ if core.is_closing() => haggling.refuse(option, rep::ERR_SHUTDOWN, "the server is closing")?,
            opt::GO => {
                if let Some(chosen) = haggling.info(option, &data)? {
                    return Ok(Some(chosen));
                }
            }
            opt::INFO => {
                haggling.info(option, &data)?;
            }
            opt::LIST if data.is_empty() => haggling.list()?,
            opt::STRUCTURED_REPLY if data.is_empty() => {
                haggling.structured = true;
                haggling.reply(option, rep::ACK, &[])?;
            }
            opt::LIST | opt::STRUCTURED_REPLY => {
                haggling.refuse(option, rep::ERR_INVALID, "this option has no data")?;
            }
            opt::LIST_META_CONTEXT => haggling.list_contexts(&data)?,
            opt::SET_META_CONTEXT => haggling.select_contexts(&data)?,
            _ => haggling.refuse(option, rep::ERR_UNSUP, "unknown option")?,
        }
    }
    Err(broken("too many options"))
}

fn broken(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn option_head(input: &mut Input<'_>) -> io::Result<(u32, u32)> {
    let bytes: [u8; 16] = input.array()?;
    let mut fields = Fields(&bytes);
    match (fields.u64(), fields.u32(), fields.u32()) {
        (Some(OPTION_MAGIC), Some(option), Some(len)) => Ok((option, len)),
        _ => Err(broken("no option")),
    }
}

/// What has been agreed so far.
struct Haggling<'a> {
    core: &'a Core,
    socket: &'a Socket,
    structured: bool,
    /// The contexts of the last selection, and the export name that they are for.
    selected: Option<(String, Vec<Context>)>,
}

/// Option, kind of reply and words.
type Answer<'a> = (u32, &'a str);

impl Haggling<'_> {
    fn reply(&self, option: u32, kind: u32, payload: &[u8]) -> io::Result<()> {
        self.socket.send(&[&wire::option_reply(option, kind, payload.len() as u32), payload])
    }

    fn refuse(&self, option: u32, kind: u32, why: &str) -> io::Result<()> {
        self.reply(option, kind, cut(why).as_bytes())
    }

    fn refuse_for(&self, option: u32, e: &Error) -> io::Result<()> {
        let kind = if matches!(e, Error::Closed) { rep::ERR_SHUTDOWN } else { rep::ERR_UNKNOWN };
        self.refuse(option, kind, &e.to_string())
    }

    fn transmission_flags(&self, read_only: bool) -> u16 {
        let always = can::HAS_FLAGS
            | can::SEND_FLUSH
            | can::SEND_FUA
            | can::SEND_TRIM
            | can::SEND_WRITE_ZEROES
            | can::SEND_FAST_ZERO
            | can::SEND_CACHE
            | can::MULTI_CONN;
        let df = if self.structured { can::SEND_DF } else { 0 };
        let read_only = if read_only { can::READ_ONLY } else { 0 };
        always | df | read_only
    }

    /// Attaches what was chosen.
    fn choose(&mut self, name: &str, found: &Export) -> Result<Chosen, Error> {
        let export = self.core.attach(found.point)?;
        let contexts = match self.selected.take() {
            Some((of, contexts)) if of == name => contexts,
            _ => Vec::new(),
        };
        let (size_bytes, read_only) = (export.size_bytes(), export.is_read_only());
        Ok(Chosen { export, size_bytes, read_only, structured: self.structured, contexts })
    }

    fn export_name(&mut self, data: &[u8], no_zeroes: bool) -> io::Result<Chosen> {
        if self.core.is_closing() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let name = wire::text(data).ok_or_else(|| broken("no name"))?;
        let chosen = export::find_export(self.core.pool(), name).and_then(|found| self.choose(name, &found));
        let chosen = chosen.map_err(io::Error::other)?;
        let flags = self.transmission_flags(chosen.read_only);
        let said = Message::default().u64(chosen.size_bytes).u16(flags).done();
        let zeroes = [0; 124];
        self.socket.send(&[&said, if no_zeroes { &[] } else { &zeroes }])?;
        Ok(chosen)
    }

    /// `INFO` and `GO`, which differ in what follows them.
    fn info(&mut self, option: u32, data: &[u8]) -> io::Result<Option<Chosen>> {
        let Some((name, wanted)) = info_request(data) else {
            self.refuse(
                option,
                rep::ERR_INVALID,
                "the lengths in the option do not fit, or the name is no text",
            )?;
            return Ok(None);
        };
        let looked_up = export::find_export(self.core.pool(), name).and_then(|found| {
            let chosen = if option == opt::GO { Some(self.choose(name, &found)?) } else { None };
            Ok((found, chosen))
        });
        let (found, chosen) = match looked_up {
            Ok(both) => both,
            Err(e) => {
                self.refuse_for(option, &e)?;
                return Ok(None);
            }
        };
        let (size_bytes, read_only) =
            chosen.as_ref().map_or((found.size_bytes, found.read_only), |c| (c.size_bytes, c.read_only));
        let say = |kind: u16| Message::default().u16(kind);
        let flags = self.transmission_flags(read_only);
        self.reply(option, rep::INFO, &say(info::EXPORT).u64(size_bytes).u16(flags).done())?;
        if wanted.contains(&info::NAME) {
            // The name may be left out, and is where it cannot be found out.
            if let Ok(name) = export::listed_name(self.core.pool(), found.point) {
                self.reply(option, rep::INFO, &say(info::NAME).bytes(name.as_bytes()).done())?;
            }
        }
        if wanted.contains(&info::DESCRIPTION) {
            self.reply(
                option,
                rep::INFO,
                &say(info::DESCRIPTION).bytes(found.description.as_bytes()).done(),
            )?;
        }
        if wanted.contains(&info::BLOCK_SIZE) {
            let sizes = say(info::BLOCK_SIZE).u32(1).u32(BLOCK_BYTES as u32).u32(MAX_PAYLOAD_BYTES);
            self.reply(option, rep::INFO, &sizes.done())?;
        }
        self.reply(option, rep::ACK, &[])?;
        Ok(chosen)
    }

    fn list(&self) -> io::Result<()> {
        let say = |export: Export| {
            let said = Message::default().u32(export.name.len() as u32).bytes(export.name.as_bytes());
            self.reply(opt::LIST, rep::SERVER, &said.bytes(export.description.as_bytes()).done())
        };
        match export::exports(self.core.pool()) {
            Ok(exports) => {
                for export in exports {
                    match export {
                        Ok(export) => say(export)?,
                        Err(e) => return self.refuse_for(opt::LIST, &e),
                    }
                }
                self.reply(opt::LIST, rep::ACK, &[])
            }
            Err(e) => self.refuse_for(opt::LIST, &e),
        }
    }

    fn context_reply(&self, option: u32, id: u32, name: &str) -> io::Result<()> {
        self.reply(option, rep::META_CONTEXT, &Message::default().u32(id).bytes(name.as_bytes()).done())
    }

    fn list_contexts(&self, data: &[u8]) -> io::Result<()> {
        const OPTION: u32 = opt::LIST_META_CONTEXT;
        let (name, queries) = match context_request(data) {
            Ok(request) => request,
            Err((kind, why)) => return self.refuse(OPTION, kind, why),
        };
        let found = match export::find_export(self.core.pool(), name) {
            Ok(found) => found,
            Err(e) => return self.refuse_for(OPTION, &e),
        };
        let any = |names: &[&str]| queries.is_empty() || queries.iter().any(|q| names.contains(q));
        if any(&["base:", ALLOCATION]) {
            self.context_reply(OPTION, 0, ALLOCATION)?;
        }
        if any(&["qemu:", CHANGED]) {
            // Any snapshot can be selected; those of the export's own volume are listed.
            let volume = match found.point {
                crate::Point::Volume(id) => Ok(id),
                crate::Point::Snapshot(id) => self.core.pool().snapshot(id).map(|s| s.volume),
            };
            let all = volume.and_then(|v| Ok(export::exports(self.core.pool())?.snapshots_of(v)));
            let all = match all {
                Ok(all) => all,
                Err(e) => return self.refuse_for(OPTION, &e),
            };
            for snapshot in all {
                match snapshot {
                    Ok(snapshot) => self.context_reply(OPTION, 0, &format!("{CHANGED}{}", snapshot.name))?,
                    Err(e) => return self.refuse_for(OPTION, &e),
                }
            }
        } else {
            for query in queries.iter().filter(|q| q.len() > CHANGED.len()) {
                if let Some(name) = query.strip_prefix(CHANGED)
                    && export::find_snapshot(self.core.pool(), name).is_ok()
                {
                    self.context_reply(OPTION, 0, query)?;
                }
            }
        }
        self.reply(OPTION, rep::ACK, &[])
    }

    fn select_contexts(&mut self, data: &[u8]) -> io::Result<()> {
        const OPTION: u32 = opt::SET_META_CONTEXT;
        self.selected = None;
        if !self.structured {
            return self.refuse(OPTION, rep::ERR_INVALID, "ask for structured replies first");
        }
        let (name, mut queries) = match context_request(data) {
            Ok(request) => request,
            Err((kind, why)) => return self.refuse(OPTION, kind, why),
        };
        if let Err(e) = export::find_export(self.core.pool(), name) {
            return self.refuse_for(OPTION, &e);
        }
        queries.sort_unstable();
        queries.dedup();
        let mut contexts = Vec::new();
        for query in queries {
            if let Some(context) = Context::find(self.core, query) {
                self.context_reply(OPTION, contexts.len() as u32, query)?;
                contexts.push(context);
            }
        }
        self.selected = Some((name.into(), contexts));
        self.reply(OPTION, rep::ACK, &[])
    }
}

/// Export name and wanted information of an `INFO` or `GO`.
fn info_request(data: &[u8]) -> Option<(&str, Vec<u16>)> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u16()?;
    let wanted = (0..count).map(|_| fields.u16()).collect::<Option<_>>()?;
    fields.0.is_empty().then_some((name, wanted))
}

/// Export name and queries of a `LIST_META_CONTEXT` or `SET_META_CONTEXT`.
fn context_request(data: &[u8]) -> Result<(&str, Vec<&str>), Answer<'static>> {
    const LENGTHS: Answer<'static> = (rep::ERR_INVALID, "the lengths in the option do not fit");
    let mut fields = Fields(data);
    let name = fields.string().ok_or(LENGTHS)?;
    let count = fields.u32().ok_or(LENGTHS)?;
    if count as usize > MAX_CONTEXTS {
        return Err((rep::ERR_TOO_BIG, "too many metadata contexts at once"));
    }
    let mut queries = Vec::new();
    for _ in 0..count {
        let query = fields.string().ok_or(LENGTHS)?;
        if !query.contains(':') {
            return Err((rep::ERR_INVALID, "a metadata context has a namespace and a colon"));
        }
        queries.push(query);
    }
    if fields.0.is_empty() { Ok((name, queries)) } else { Err(LENGTHS) }
}

const _: () = assert!(MAX_OPTION_BYTES as usize > (MAX_CONTEXTS + 1) * (MAX_STRING_BYTES + 4) + 4);
