//! The registry of images: base content that volumes are made from, in constant time.
//!
//! An image has a map of its own, taken from a volume or snapshot that the embedder has filled. What becomes of
//! that one afterwards, and of the image once volumes were made from it, changes neither.

use uuid::Uuid;

use crate::error::{Error, Result, StateRule};
use crate::units::{ImageId, ObjectId};

use super::batch::Batch;
use super::catalogue::{self, Index, Table};
use super::deletion::Deletion;
use super::diff::Point;
use super::image::{Image, ImageContent, ImageSpec, ImageStatus, ImageUpdate};
use super::image_record::ImageRecord;
use super::pool::{Inner, Pool};
use super::projects::{self, Names};
use super::query::{Cut, Page, page, paging};

/// Which images to list. Conditions combine by AND; what is not said does not filter.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ImageQuery {
    cut: Cut,
    status: Option<ImageStatus>,
    public: Option<bool>,
    tag: Option<String>,
    project: Option<String>,
    marker: Option<ImageId>,
}

impl ImageQuery {
    /// Everything, newest first, up to 1,000 items.
    pub fn new() -> Self {
        Self::default()
    }
    /// Only those with exactly this name.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.cut.name = Some(name.into());
        self
    }
    /// Only those in this status.
    #[must_use]
    pub fn status(mut self, status: ImageStatus) -> Self {
        self.status = Some(status);
        self
    }
    /// Only those that come with the system, or only the others.
    #[must_use]
    pub fn public(mut self, on: bool) -> Self {
        self.public = Some(on);
        self
    }
    /// Only those with this tag.
    #[must_use]
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.tag = Some(tag.into());
        self
    }
    /// Only those of this project, and those that come with the system.
    #[must_use]
    pub fn visible_to(mut self, project: impl Into<String>) -> Self {
        self.project = Some(project.into());
        self
    }
}

paging!(ImageQuery, ImageId);

fn wrong_status(id: ImageId, status: ImageStatus, op: &'static str) -> Error {
    let (id, status) = (id.to_string(), status.as_str());
    Error::InvalidState { object: "image", id, status, op, rule: StateRule::Status }
}

pub(super) fn need_active(id: ImageId, record: &ImageRecord, op: &'static str) -> Result<()> {
    match record.status {
        ImageStatus::Active => Ok(()),
        other => Err(wrong_status(id, other, op)),
    }
}

impl Batch<'_> {
    /// Registers an image: see [`Pool::create_image`].
    ///
    /// # Errors
    /// As [`Pool::create_image`].
    pub fn create_image(&mut self, spec: ImageSpec) -> Result<Image> {
        spec.check()?;
        spec.project.as_deref().map_or(Ok(()), projects::check_id)?;
        let id = ImageId::new(self.claim_id("image", spec.id.map(ImageId::raw))?);
        let mut record = ImageRecord {
            status: ImageStatus::Queued,
            public: spec.public,
            protected: spec.protected,
            name: spec.name,
            container_format: spec.container_format,
            disk_format: spec.disk_format,
            checksum: None,
            tags: spec.tags,
            project: 0,
            virtual_bytes: 0,
            size_bytes: 0,
            min_disk_bytes: spec.min_disk_bytes,
            min_ram_bytes: spec.min_ram_bytes,
            created: self.now(),
            updated: None,
        };
        self.stage(|stage| {
            if let Some(project) = &spec.project {
                record.project = projects::register(stage, project)?;
            }
            catalogue::insert_image(stage, id, &record)
        })?;
        self.image(id)
    }

    /// Gives an image its content: see [`Pool::activate_image`].
    ///
    /// # Errors
    /// As [`Pool::activate_image`].
    pub fn activate_image(
        &mut self,
        id: ImageId,
        from: impl Into<Point>,
        content: ImageContent,
    ) -> Result<Image> {
        content.check()?;
        let from = from.into();
        let mut record = catalogue::need_image(self.table(), id)?;
        let virtual_bytes = match from {
            Point::Volume(source) => {
                let volume = catalogue::need_volume(self.table(), source)?;
                let status = self.volume_status(source, &volume)?;
                if !status.allows_clone() {
                    return Err(super::volumes::wrong_status(source, status, "upload"));
                }
                volume.common.size_bytes
            }
            Point::Snapshot(source) => {
                let snapshot = catalogue::need_snapshot(self.table(), source)?;
                self.need_available(source, &snapshot, "upload")?;
                snapshot.common.size_bytes
            }
        };
        if record.status != ImageStatus::Queued {
            return Err(wrong_status(id, record.status, "upload"));
        }
        record.status = ImageStatus::Active;
        record.virtual_bytes = virtual_bytes;
        record.size_bytes = content.size_bytes.unwrap_or(virtual_bytes);
        record.checksum = content.checksum;
        record.updated = Some(self.now());
        self.stage(|stage| catalogue::update_image(stage, id, &record))?;
        self.share(id.object(), from.object())?;
        self.image(id)
    }

    /// Changes what is said about an image: see [`Pool::update_image`].
    ///
    /// # Errors
    /// As [`Pool::update_image`].
    pub fn update_image(&mut self, id: ImageId, update: ImageUpdate) -> Result<Image> {
        update.check()?;
        let mut record = catalogue::need_image(self.table(), id)?;
        update.apply(&mut record);
        record.updated = Some(self.now());
        self.stage(|stage| catalogue::update_image(stage, id, &record))?;
        self.image(id)
    }

    /// Deletes an image: see [`Pool::delete_image`].
    ///
    /// # Errors
    /// As [`Pool::delete_image`].
    pub fn delete_image(&mut self, id: ImageId) -> Result<Deletion> {
        let record = catalogue::need_image(self.table(), id)?;
        if record.protected {
            return Err(Error::Busy { object: "image", id: id.to_string(), why: "it is protected" });
        }
        self.stage(|stage| catalogue::remove_image(stage, id, &record))?;
        let mut ids = Vec::new();
        self.trash(id.object(), &mut ids)?;
        Ok(Deletion::new(self.inner, None, Vec::new(), ids))
    }

    /// The image as this batch leaves it so far.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `Io`.
    pub fn image(&self, id: ImageId) -> Result<Image> {
        let record = catalogue::need_image(self.table(), id)?;
        Inner::describe_image(self.table(), &mut Names::default(), id, record)
    }
}

impl Inner {
    fn describe_image(
        table: &dyn Table,
        names: &mut Names,
        id: ImageId,
        record: ImageRecord,
    ) -> Result<Image> {
        let project = names.project(table, record.project)?;
        Ok(Image::from_record(id, record, project))
    }
}

impl Pool {
    /// Registers an image. It is `queued`: its content comes with [`activate_image`](Self::activate_image).
    /// Durable on return.
    ///
    /// # Errors
    /// `InvalidArgument` for a text, tag or project id out of range; `AlreadyExists` for a supplied id that is
    /// taken; `ReadOnly`, `OutOfSpace`, `Io`, `Poisoned`, `Closed`.
    pub fn create_image(&self, spec: ImageSpec) -> Result<Image> {
        self.transact(|batch| batch.create_image(spec))
    }

    /// Gives a queued image the content of a volume or snapshot as it is now, in constant time. It is `active`
    /// from then on, and its content never changes. Durable on return.
    ///
    /// # Errors
    /// `InvalidArgument` for a bad checksum; `NotFound`; `InvalidState` when the image is `active`, the volume
    /// neither `available` nor `in-use`, or the snapshot not `available`; `ReadOnly`, `OutOfSpace`, `Io`,
    /// `Poisoned`, `Closed`.
    pub fn activate_image(
        &self,
        id: ImageId,
        from: impl Into<Point>,
        content: ImageContent,
    ) -> Result<Image> {
        self.transact(|batch| batch.activate_image(id, from, content))
    }

    /// Changes what is said about an image, never its content. Durable on return.
    ///
    /// # Errors
    /// `InvalidArgument` for a text or tag out of range, or when nothing is to change; `NotFound`; `ReadOnly`,
    /// `OutOfSpace`, `Io`, `Poisoned`, `Closed`.
    pub fn update_image(&self, id: ImageId, update: ImageUpdate) -> Result<Image> {
        self.transact(|batch| batch.update_image(id, update))
    }

    /// Deletes an image. Volumes made from it live on. The delete is durable on return; the space comes back in
    /// the background.
    ///
    /// # Errors
    /// `NotFound`; `Busy` when it is protected; `ReadOnly`, `Io`, `Poisoned`, `Closed`.
    pub fn delete_image(&self, id: ImageId) -> Result<Deletion> {
        self.transact(|batch| batch.delete_image(id))
    }

    /// The image as it is now.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` when its record is damaged; `Io`, `Closed`.
    pub fn image(&self, id: ImageId) -> Result<Image> {
        let table: &dyn Table = &*self.inner.engine;
        Inner::describe_image(table, &mut Names::default(), id, catalogue::need_image(table, id)?)
    }

    /// Lists images, newest first, then by id; one page at a time.
    ///
    /// # Errors
    /// `InvalidArgument` for a limit outside 1 to 1,000, `NotFound` for a marker that names no image; `Corrupt`,
    /// `Io`, `Closed`.
    pub fn list_images(&self, query: &ImageQuery) -> Result<Page<Image, ImageId>> {
        query.cut.check()?;
        let table: &dyn Table = &*self.inner.engine;
        let start = match query.marker {
            Some(id) => Index::images().after(catalogue::need_image(table, id)?.created, id.object()),
            None => Index::images(),
        };
        let mut names = Names::default();
        let mut load = |object: ObjectId| {
            let id = ImageId::new(Uuid::from_bytes(object.0));
            let Some(record) = catalogue::image(table, id)? else { return Ok(None) };
            let image = Inner::describe_image(table, &mut names, id, record)?;
            let keep = query.cut.name.as_ref().is_none_or(|n| image.name.as_ref() == Some(n))
                && query.status.is_none_or(|s| s == image.status)
                && query.public.is_none_or(|p| p == image.public)
                && query.tag.as_ref().is_none_or(|t| image.tags.contains(t))
                && query.project.as_ref().is_none_or(|p| image.public || image.project.id == *p);
            Ok(keep.then_some(image))
        };
        let (items, more, total) = page(table, start, Index::images(), &query.cut, false, &mut load)?;
        let next = if more { items.last().map(|i: &Image| i.id) } else { None };
        Ok(Page { items, next, total })
    }

    /// The image that `text` names: its id as lower-case hyphenated UUID.
    ///
    /// # Errors
    /// `NotFound` when it names none; `Corrupt`, `Io`, `Closed`.
    pub fn find_image(&self, text: &str) -> Result<ImageId> {
        let id = Uuid::try_parse(text).ok().filter(|id| id.to_string() == text).map(ImageId::new);
        let id = id.ok_or_else(|| Error::not_found("image", text))?;
        catalogue::need_image(&*self.inner.engine, id)?;
        Ok(id)
    }
}
