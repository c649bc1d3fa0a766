//! Stored attachments: which servers hold a volume, until somebody says otherwise.
//!
//! They survive reopening. A handle ([`Pool::attach`]) on a volume with a stored attachment uses that one;
//! otherwise it makes its own for as long as it is open, which is shown with the others and never stored.
//!
//! Record, little-endian: version 1 (1), flags (1): bit 0 read-only, 1 has a server kind, 2 a host name, 3 a
//! device; state of the server (1); reserved (1); attached at, microseconds since 1970 (8); lengths of server id,
//! kind, host name and device (1 each); these texts.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{Corruption, Error, Limited, Result, StateRule, Violation};
use crate::units::{AttachmentId, VolumeId};

use super::batch::Batch;
use super::catalogue::{self, ATTACHMENTS, Index, Table};
use super::fields::{Texts, u64_at};
use super::limits::{MAX_ATTACHMENTS, check_label};
use super::pool::Pool;
use super::status::VolumeStatus;
use super::volume::Volume;
use super::volumes::{attached, wrong_status};

const VERSION: u8 = 1;
const HEAD: usize = 16;
const READ_ONLY: u8 = 1;
const HAS_KIND: u8 = 2;
const HAS_HOST: u8 = 4;
const HAS_DEVICE: u8 = 8;
/// Most bytes of a server kind: with the other texts the record stays one value of the catalogue.
const MAX_KIND_BYTES: usize = 60;

/// What the server that a volume is attached to is doing, as far as that matters for the volume.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[non_exhaustive]
// The numbers are on disk, never renumber.
pub enum ServerState {
    /// Running: what is assumed until something else is said.
    #[default]
    #[serde(rename = "ACTIVE")]
    Active = 1,
    /// Paused, memory kept.
    #[serde(rename = "PAUSED")]
    Paused = 2,
    /// Suspended to disk.
    #[serde(rename = "SUSPENDED")]
    Suspended = 3,
    /// Shut off.
    #[serde(rename = "SHUTOFF")]
    Shutoff = 4,
    /// Anything else: starting, rebooting, moving, broken. The volume cannot be extended meanwhile.
    #[serde(rename = "OTHER")]
    Other = 5,
}

impl ServerState {
    /// Whether a volume attached to such a server may be extended.
    pub const fn allows_extend(self) -> bool {
        !matches!(self, Self::Other)
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::Active, Self::Paused, Self::Suspended, Self::Shutoff, Self::Other]
            .into_iter()
            .find(|s| *s as u8 == code)
    }
}

/// One attachment of a volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[non_exhaustive]
pub struct Attachment {
    /// Its identity. An attachment that a handle made has it for as long as the handle is open.
    pub id: AttachmentId,
    /// The volume.
    pub volume: VolumeId,
    /// The server; `None` for a handle in this process.
    pub server_id: Option<String>,
    /// What kind of thing the server is, for example `VM`.
    pub server_kind: Option<String>,
    /// Name of the server's host.
    pub host_name: Option<String>,
    /// Where the server sees it, for example `/dev/vdb`.
    pub device: Option<String>,
    /// Whether the server may only read.
    pub read_only: bool,
    /// What the server is doing.
    pub server_state: ServerState,
    /// When it was attached, in microseconds since 1970.
    pub attached_at_micros: u64,
    /// Whether it survives reopening: false for a handle in this process.
    pub stored: bool,
}

/// What a stored attachment is to say.
#[derive(Clone, Debug)]
#[non_exhaustive]
#[must_use]
pub struct AttachmentSpec {
    server_id: String,
    server_kind: Option<String>,
    host_name: Option<String>,
    device: Option<String>,
    read_only: bool,
    server_state: ServerState,
    id: Option<AttachmentId>,
}

impl AttachmentSpec {
    /// An attachment to this server (1 to 255 bytes), for reading and writing.
    pub fn new(server_id: impl Into<String>) -> Self {
        Self {
            server_id: server_id.into(),
            server_kind: None,
            host_name: None,
            device: None,
            read_only: false,
            server_state: ServerState::Active,
            id: None,
        }
    }
    /// What kind of thing the server is, for example `VM`: 1 to 60 bytes.
    pub fn server_kind(mut self, kind: impl Into<String>) -> Self {
        self.server_kind = Some(kind.into());
        self
    }
    /// Name of the server's host: 1 to 255 bytes.
    pub fn host_name(mut self, name: impl Into<String>) -> Self {
        self.host_name = Some(name.into());
        self
    }
    /// Where the server sees it, for example `/dev/vdb`: 1 to 255 bytes.
    pub fn device(mut self, device: impl Into<String>) -> Self {
        self.device = Some(device.into());
        self
    }
    /// Whether the server may only read. Off by default; then a handle on the volume cannot write either.
    pub fn read_only(mut self, on: bool) -> Self {
        self.read_only = on;
        self
    }
    /// What the server is doing; `Active` by default.
    pub fn server_state(mut self, state: ServerState) -> Self {
        self.server_state = state;
        self
    }
    /// The id to give it, in place of a fresh one.
    pub fn id(mut self, id: AttachmentId) -> Self {
        self.id = Some(id);
        self
    }

    fn check(&self) -> Result<()> {
        check_label("server_id", Violation::Id, &self.server_id)?;
        for (field, text) in [("host_name", &self.host_name), ("device", &self.device)] {
            text.as_ref().map_or(Ok(()), |t| check_label(field, Violation::TooLong, t))?;
        }
        match &self.server_kind {
            Some(kind) if kind.is_empty() || kind.len() > MAX_KIND_BYTES => {
                let why = format!("1 to {MAX_KIND_BYTES} bytes are needed, {} given", kind.len());
                Err(Error::invalid("server_kind", Violation::TooLong, why))
            }
            _ => Ok(()),
        }
    }
}

fn key(volume: VolumeId, id: AttachmentId) -> Vec<u8> {
    let mut key = catalogue::id_key(ATTACHMENTS, volume.object());
    key.extend_from_slice(id.raw().as_bytes());
    key
}

fn encode(a: &Attachment) -> Vec<u8> {
    let texts = [&a.server_id, &a.server_kind, &a.host_name, &a.device];
    let mut out = vec![0; HEAD];
    out[0] = VERSION;
    out[1] = (u8::from(a.read_only) * READ_ONLY)
        | (u8::from(a.server_kind.is_some()) * HAS_KIND)
        | (u8::from(a.host_name.is_some()) * HAS_HOST)
        | (u8::from(a.device.is_some()) * HAS_DEVICE);
    out[2] = a.server_state as u8;
    out[4..12].copy_from_slice(&a.attached_at_micros.to_le_bytes());
    for (n, text) in texts.into_iter().enumerate() {
        let text = text.as_deref().unwrap_or("");
        // Within its limit.
        out[12 + n] = text.len() as u8;
        out.extend_from_slice(text.as_bytes());
    }
    out
}

fn decode(volume: VolumeId, id: AttachmentId, bytes: &[u8]) -> Result<Attachment> {
    let structure = "attachment record";
    let bad = |field, expected: &str, found: u64| Corruption::new(structure, 0, field, expected, found);
    if bytes.len() < HEAD {
        return Err(bad("length", "at least 16", bytes.len() as u64).into());
    }
    let flags = bytes[1];
    if bytes[0] != VERSION {
        return Err(bad("version", "1", bytes[0].into()).into());
    }
    if flags > 15 || bytes[3] != 0 {
        return Err(bad("flags", "only bits 0 to 3", flags.into()).into());
    }
    let state = ServerState::from_code(bytes[2]).ok_or_else(|| bad("state", "1 to 5", bytes[2].into()))?;
    let mut rest = Texts { bytes: &bytes[HEAD..], structure };
    let server = rest.optional(true, bytes[12].into(), "server id")?;
    let kind = rest.optional(flags & HAS_KIND != 0, bytes[13].into(), "server kind")?;
    let host_name = rest.optional(flags & HAS_HOST != 0, bytes[14].into(), "host name")?;
    let device = rest.optional(flags & HAS_DEVICE != 0, bytes[15].into(), "device")?;
    rest.end()?;
    Ok(Attachment {
        id,
        volume,
        server_id: server,
        server_kind: kind,
        host_name,
        device,
        read_only: flags & READ_ONLY != 0,
        server_state: state,
        attached_at_micros: u64_at(bytes, 4),
        stored: true,
    })
}

fn one(table: &dyn Table, volume: VolumeId, id: AttachmentId) -> Result<Option<Attachment>> {
    table.get(&key(volume, id))?.map(|bytes| decode(volume, id, &bytes)).transpose()
}

/// The stored attachments of a volume, oldest first.
pub(super) fn stored(table: &dyn Table, volume: VolumeId) -> Result<Vec<Attachment>> {
    let mut all = Vec::new();
    for object in Index::attachments(volume).all(table)? {
        let id = AttachmentId::new(Uuid::from_bytes(object.0));
        // Outside a transaction it may have gone since the index was read.
        all.extend(one(table, volume, id)?);
    }
    all.sort_by_key(|a| (a.attached_at_micros, a.id));
    Ok(all)
}

impl Batch<'_> {
    /// Stores that a server holds the volume: see [`Pool::attach_server`].
    ///
    /// # Errors
    /// As [`Pool::attach_server`].
    pub fn attach_server(&mut self, volume: VolumeId, spec: AttachmentSpec) -> Result<Attachment> {
        spec.check()?;
        let record = catalogue::need_volume(self.table(), volume)?;
        let status = self.volume_status(volume, &record)?;
        let reserved = self.inner.jobs.is_reserved(volume, VolumeStatus::Attaching);
        let mut holders = self.inner.attachments_of(self.table(), volume)?;
        match status {
            VolumeStatus::Available => {}
            VolumeStatus::Attaching if reserved => {}
            VolumeStatus::InUse if record.multiattach => {}
            VolumeStatus::InUse => return Err(attached(volume, "attach")),
            other => return Err(wrong_status(volume, other, "attach")),
        }
        if holders.iter().any(|a| a.server_id.as_ref() == Some(&spec.server_id)) {
            return Err(Error::AlreadyExists { object: "attachment to server", id: spec.server_id });
        }
        // A handle uses a stored attachment as soon as there is one: only those beyond it count.
        holders.retain(|a| a.stored);
        if holders.len() >= MAX_ATTACHMENTS as usize {
            return Err(Error::LimitExceeded { what: Limited::Attachments, limit: MAX_ATTACHMENTS.into() });
        }
        // A handle that is just being opened has a place already, and is or is not too late by that.
        if !record.multiattach && !self.alone(volume.object(), VolumeStatus::Attaching.as_str()) {
            return Err(attached(volume, "attach"));
        }
        let id = match spec.id {
            Some(id) if one(self.table(), volume, id)?.is_some() => {
                return Err(Error::AlreadyExists { object: "attachment", id: id.to_string() });
            }
            Some(id) => id,
            None => AttachmentId::new(self.claim_id("attachment", None)?),
        };
        let attachment = Attachment {
            id,
            volume,
            server_id: Some(spec.server_id),
            server_kind: spec.server_kind,
            host_name: spec.host_name,
            device: spec.device,
            read_only: spec.read_only,
            server_state: spec.server_state,
            attached_at_micros: self.now(),
            stored: true,
        };
        self.stage(|stage| {
            stage.put(key(volume, id), encode(&attachment));
            Ok(())
        })?;
        self.completes(volume, VolumeStatus::Attaching);
        Ok(attachment)
    }

    /// Ends a stored attachment: see [`Pool::detach_server`].
    ///
    /// # Errors
    /// As [`Pool::detach_server`].
    pub fn detach_server(&mut self, volume: VolumeId, id: Option<AttachmentId>) -> Result<Volume> {
        let record = catalogue::need_volume(self.table(), volume)?;
        let stored = stored(self.table(), volume)?;
        let gone = match (id, &stored[..]) {
            (Some(id), all) => all.iter().find(|a| a.id == id).map(|a| a.id),
            (None, [] | [_]) => stored.first().map(|a| a.id),
            (None, several) => {
                let why = format!("the volume has {} attachments: say which", several.len());
                return Err(Error::invalid("attachment", Violation::Missing, why));
            }
        };
        let reserved = self.inner.jobs.is_reserved(volume, VolumeStatus::Detaching);
        match (self.volume_status(volume, &record)?, gone) {
            (VolumeStatus::InUse, Some(_)) => {}
            (VolumeStatus::Detaching, Some(_)) if reserved => {}
            (VolumeStatus::InUse, None) => {
                let id = id.map_or_else(|| "of a server".into(), |id| id.to_string());
                return Err(Error::NotFound { object: "attachment", id });
            }
            (other, _) => return Err(wrong_status(volume, other, "detach")),
        }
        self.stage(|stage| {
            if let Some(gone) = gone {
                stage.delete(key(volume, gone));
            }
            Ok(())
        })?;
        self.completes(volume, VolumeStatus::Detaching);
        self.volume(volume)
    }

    /// Says what a server is doing: see [`Pool::set_server_state`].
    ///
    /// # Errors
    /// As [`Pool::set_server_state`].
    pub fn set_server_state(
        &mut self,
        volume: VolumeId,
        id: AttachmentId,
        state: ServerState,
    ) -> Result<Attachment> {
        catalogue::need_volume(self.table(), volume)?;
        let mut attachment =
            one(self.table(), volume, id)?.ok_or_else(|| Error::not_found("attachment", id))?;
        attachment.server_state = state;
        self.stage(|stage| {
            stage.put(key(volume, id), encode(&attachment));
            Ok(())
        })?;
        Ok(attachment)
    }

    /// An attached volume may be extended if no server that holds it stands in the way.
    pub(super) fn check_servers(&self, volume: VolumeId, op: &'static str) -> Result<()> {
        let holders = self.inner.attachments_of(self.table(), volume)?;
        if holders.iter().all(|a| a.server_state.allows_extend()) {
            return Ok(());
        }
        Err(Error::InvalidState {
            object: "volume",
            id: volume.to_string(),
            status: VolumeStatus::InUse.as_str(),
            op,
            rule: StateRule::Server,
        })
    }
}

impl Pool {
    /// Stores that a server holds the volume, which is `in-use` from then on, across reopening. Completes a
    /// [`reserve`](Self::reserve). Durable on return.
    ///
    /// # Errors
    /// `InvalidArgument` for a text out of range; `NotFound`; `InvalidState` when the volume is not `available`
    /// and not reserved, unless it is shared and `in-use`; `AlreadyExists` when this server holds it already, or a
    /// supplied id is taken; `LimitExceeded` at the seventeenth attachment of a shared volume; `ReadOnly`,
    /// `OutOfSpace`, `Io`, `Poisoned`, `Closed`.
    pub fn attach_server(&self, volume: VolumeId, spec: AttachmentSpec) -> Result<Attachment> {
        self.transact(|batch| batch.attach_server(volume, spec))
    }

    /// Ends a stored attachment; `None` is the only one. Completes a [`begin_detaching`](Self::begin_detaching).
    /// Handles that are open stay so. Durable on return.
    ///
    /// # Errors
    /// `NotFound` for the volume or the attachment; `InvalidArgument` when there are several and none is named;
    /// `InvalidState` when the volume is not `in-use`; `ReadOnly`, `OutOfSpace`, `Io`, `Poisoned`, `Closed`.
    pub fn detach_server(&self, volume: VolumeId, id: Option<AttachmentId>) -> Result<Volume> {
        self.transact(|batch| batch.detach_server(volume, id))
    }

    /// Says what the server of a stored attachment is doing: it decides whether the volume may be extended.
    /// Durable on return. The same for a handle: [`Disk::set_server_state`](super::Disk::set_server_state).
    ///
    /// # Errors
    /// `NotFound` for the volume or the attachment; `ReadOnly`, `OutOfSpace`, `Io`, `Poisoned`, `Closed`.
    pub fn set_server_state(
        &self,
        volume: VolumeId,
        id: AttachmentId,
        state: ServerState,
    ) -> Result<Attachment> {
        self.transact(|batch| batch.set_server_state(volume, id, state))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn attachments_survive_their_encoding(
            server in "\\PC{1,60}",
            kind in proptest::option::of("\\PC{1,15}"),
            host_name in proptest::option::of("\\PC{1,60}"),
            device in proptest::option::of("\\PC{1,60}"),
            read_only in any::<bool>(),
            at in any::<u64>(),
            damage in (any::<proptest::sample::Index>(), any::<u8>()),
        ) {
            let (id, volume) = (AttachmentId::new(Uuid::from_u128(1)), VolumeId::new(Uuid::from_u128(2)));
            let attachment = Attachment {
                id, volume, server_id: Some(server), server_kind: kind, host_name, device, read_only,
                server_state: ServerState::Suspended, attached_at_micros: at, stored: true,
            };
            let mut bytes = encode(&attachment);
            prop_assert_eq!(decode(volume, id, &bytes).unwrap(), attachment);
            let at = damage.0.index(bytes.len());
            bytes[at] = damage.1;
            let _ = decode(volume, id, &bytes);
            let _ = decode(volume, id, &bytes[..at]);
        }
    }
}
