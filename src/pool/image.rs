//! An image as callers see it, and what they say to make or change one.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, Violation};
use crate::units::ImageId;

use super::image_record::ImageRecord;
use super::limits::{MAX_TEXT_BYTES, check_label};
use super::projects::Project;

/// Most tags of one image.
pub(super) const MAX_TAGS: usize = 128;

/// Status of an image.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[non_exhaustive]
// The numbers are on disk, never renumber.
pub enum ImageStatus {
    /// Known, without content.
    #[serde(rename = "queued")]
    Queued = 1,
    /// Has its content, which never changes: volumes can be made from it.
    #[serde(rename = "active")]
    Active = 2,
}

impl ImageStatus {
    /// The documented spelling.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Active => "active",
        }
    }
    pub(super) const fn code(self) -> u8 {
        self as u8
    }
    pub(super) fn from_code(code: u8) -> Option<Self> {
        [Self::Queued, Self::Active].into_iter().find(|s| s.code() == code)
    }
}

/// An image at the moment it was asked about.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[non_exhaustive]
pub struct Image {
    /// Its identity.
    pub id: ImageId,
    /// Its name, which need not be unique: at most 255 bytes.
    pub name: Option<String>,
    /// Whether it has its content.
    pub status: ImageStatus,
    /// Whether it comes with the system; otherwise it is somebody's own.
    pub public: bool,
    /// Whether it is kept from being deleted.
    pub protected: bool,
    /// How it is wrapped, for example `bare`: a label.
    pub container_format: String,
    /// The format that its bytes were handed over in, for example `raw` or `qcow2`: a label.
    pub disk_format: String,
    /// Least size in bytes of a volume made from it.
    pub min_disk_bytes: u64,
    /// Least memory in bytes of a server that boots from it.
    pub min_ram_bytes: u64,
    /// Size in bytes as it was handed over; `None` while queued.
    pub size_bytes: Option<u64>,
    /// Size in bytes of what a volume made from it begins with; `None` while queued.
    pub virtual_bytes: Option<u64>,
    /// MD5 in hexadecimal digits, where whoever handed over the bytes gave it.
    pub checksum: Option<String>,
    /// Its tags.
    pub tags: BTreeSet<String>,
    /// The project it belongs to.
    pub project: Project,
    /// When it was created, in microseconds since 1970.
    pub created_at_micros: u64,
    /// When anything about it last changed, in microseconds since 1970.
    pub updated_at_micros: Option<u64>,
}

impl Image {
    pub(super) fn from_record(id: ImageId, record: ImageRecord, project: Project) -> Self {
        let active = record.status == ImageStatus::Active;
        Self {
            id,
            name: record.name,
            status: record.status,
            public: record.public,
            protected: record.protected,
            container_format: record.container_format,
            disk_format: record.disk_format,
            min_disk_bytes: record.min_disk_bytes,
            min_ram_bytes: record.min_ram_bytes,
            size_bytes: active.then_some(record.size_bytes),
            virtual_bytes: active.then_some(record.virtual_bytes),
            checksum: record.checksum,
            tags: record.tags,
            project,
            created_at_micros: record.created,
            updated_at_micros: record.updated,
        }
    }
}

/// What a new image is to be.
#[derive(Clone, Debug)]
#[non_exhaustive]
#[must_use]
pub struct ImageSpec {
    pub(super) name: Option<String>,
    pub(super) public: bool,
    pub(super) protected: bool,
    pub(super) container_format: String,
    pub(super) disk_format: String,
    pub(super) min_disk_bytes: u64,
    pub(super) min_ram_bytes: u64,
    pub(super) tags: BTreeSet<String>,
    pub(super) project: Option<String>,
    pub(super) id: Option<ImageId>,
}

impl Default for ImageSpec {
    fn default() -> Self {
        Self {
            name: None,
            public: false,
            protected: false,
            container_format: "bare".into(),
            disk_format: "raw".into(),
            min_disk_bytes: 0,
            min_ram_bytes: 0,
            tags: BTreeSet::new(),
            project: None,
            id: None,
        }
    }
}

impl ImageSpec {
    /// A private image without a name, `bare` and `raw`.
    pub fn new() -> Self {
        Self::default()
    }
    /// A name of at most 255 bytes.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }
    /// Whether it comes with the system. Off by default.
    pub fn public(mut self, on: bool) -> Self {
        self.public = on;
        self
    }
    /// Whether it is kept from being deleted. Off by default.
    pub fn protected(mut self, on: bool) -> Self {
        self.protected = on;
        self
    }
    /// How it is wrapped: 1 to 255 bytes, `bare` by default.
    pub fn container_format(mut self, format: impl Into<String>) -> Self {
        self.container_format = format.into();
        self
    }
    /// The format that its bytes come in: 1 to 255 bytes, `raw` by default.
    pub fn disk_format(mut self, format: impl Into<String>) -> Self {
        self.disk_format = format.into();
        self
    }
    /// Least size in bytes of a volume made from it.
    pub fn min_disk_bytes(mut self, bytes: u64) -> Self {
        self.min_disk_bytes = bytes;
        self
    }
    /// Least memory in bytes of a server that boots from it.
    pub fn min_ram_bytes(mut self, bytes: u64) -> Self {
        self.min_ram_bytes = bytes;
        self
    }
    /// One more tag: 1 to 255 bytes, at most 128 of them.
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.tags.insert(tag.into());
        self
    }
    /// The project it belongs to; the default project unless said.
    pub fn project(mut self, id: impl Into<String>) -> Self {
        self.project = Some(id.into());
        self
    }
    /// The id to give it, in place of a fresh one.
    pub fn id(mut self, id: ImageId) -> Self {
        self.id = Some(id);
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        check_name(self.name.as_deref())?;
        check_label("container_format", Violation::TooLong, &self.container_format)?;
        check_label("disk_format", Violation::TooLong, &self.disk_format)?;
        check_tags(&self.tags)
    }
}

/// What to change about an image; what is `None` stays.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
#[must_use]
pub struct ImageUpdate {
    /// The new name; `Some(None)` removes it.
    pub name: Option<Option<String>>,
    /// Whether it comes with the system.
    pub public: Option<bool>,
    /// Whether it is kept from being deleted.
    pub protected: Option<bool>,
    /// Least size in bytes of a volume made from it.
    pub min_disk_bytes: Option<u64>,
    /// Least memory in bytes of a server that boots from it.
    pub min_ram_bytes: Option<u64>,
    /// The new tags, in place of all there were.
    pub tags: Option<BTreeSet<String>>,
}

impl ImageUpdate {
    /// Changes nothing yet.
    pub fn new() -> Self {
        Self::default()
    }
    /// A new name of at most 255 bytes; `None` removes it.
    pub fn name(mut self, name: Option<String>) -> Self {
        self.name = Some(name);
        self
    }
    /// Whether it comes with the system.
    pub fn public(mut self, on: bool) -> Self {
        self.public = Some(on);
        self
    }
    /// Whether it is kept from being deleted.
    pub fn protected(mut self, on: bool) -> Self {
        self.protected = Some(on);
        self
    }
    /// Least size in bytes of a volume made from it.
    pub fn min_disk_bytes(mut self, bytes: u64) -> Self {
        self.min_disk_bytes = Some(bytes);
        self
    }
    /// Least memory in bytes of a server that boots from it.
    pub fn min_ram_bytes(mut self, bytes: u64) -> Self {
        self.min_ram_bytes = Some(bytes);
        self
    }
    /// New tags in place of all there were: 1 to 255 bytes each, at most 128.
    pub fn tags(mut self, tags: BTreeSet<String>) -> Self {
        self.tags = Some(tags);
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        check_name(self.name.as_ref().and_then(|n| n.as_deref()))?;
        self.tags.as_ref().map_or(Ok(()), check_tags)?;
        if *self == Self::new() {
            return Err(Error::invalid("update", Violation::NothingToChange, "there is nothing to change"));
        }
        Ok(())
    }

    pub(super) fn apply(self, record: &mut ImageRecord) {
        if let Some(name) = self.name {
            record.name = name;
        }
        record.public = self.public.unwrap_or(record.public);
        record.protected = self.protected.unwrap_or(record.protected);
        record.min_disk_bytes = self.min_disk_bytes.unwrap_or(record.min_disk_bytes);
        record.min_ram_bytes = self.min_ram_bytes.unwrap_or(record.min_ram_bytes);
        if let Some(tags) = self.tags {
            record.tags = tags;
        }
    }
}

/// What is known about the bytes of an image that becomes active.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
#[must_use]
pub struct ImageContent {
    pub(super) size_bytes: Option<u64>,
    pub(super) checksum: Option<String>,
}

impl ImageContent {
    /// As large as the volume or snapshot that it is taken from, without a checksum.
    pub fn new() -> Self {
        Self::default()
    }
    /// Size in bytes as they were handed over.
    pub fn size_bytes(mut self, bytes: u64) -> Self {
        self.size_bytes = Some(bytes);
        self
    }
    /// Their MD5: 32 hexadecimal digits.
    pub fn checksum(mut self, md5: impl Into<String>) -> Self {
        self.checksum = Some(md5.into());
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        match &self.checksum {
            Some(md5) if md5.len() != 32 || !md5.bytes().all(|b| b.is_ascii_hexdigit()) => {
                let why = format!("32 hexadecimal digits are needed, {md5:?} given");
                Err(Error::invalid("checksum", Violation::Malformed, why))
            }
            _ => Ok(()),
        }
    }
}

fn check_name(name: Option<&str>) -> Result<()> {
    match name {
        Some(name) if name.len() > MAX_TEXT_BYTES => {
            let why = format!("at most {MAX_TEXT_BYTES} bytes are allowed, {} given", name.len());
            Err(Error::invalid("name", Violation::TooLong, why))
        }
        _ => Ok(()),
    }
}

fn check_tags(tags: &BTreeSet<String>) -> Result<()> {
    if tags.len() > MAX_TAGS {
        let why = format!("at most {MAX_TAGS} tags are possible, {} given", tags.len());
        return Err(Error::invalid("tags", Violation::Range, why));
    }
    tags.iter().try_for_each(|tag| check_label("tags", Violation::TooLong, tag))
}
