//! A volume that is being filled: hidden until it is whole, gone if it never is.
//!
//! - W1 Its map is an ephemeral copy until the commit that makes the volume: no listing names it, and the next
//!   open removes what a crash left of it.

use std::sync::Arc;

use crate::commit::Object;
use crate::error::{Error, Result, Violation};
use crate::units::{BLOCK_BYTES, VolumeId};

use super::attachments::Place;
use super::batch::Batch;
use super::catalogue;
use super::fingerprint::Fingerprint;
use super::pool::Pool;
use super::status::VolumeStatus;
use super::volume::{Volume, VolumeSource, VolumeSpec};

/// Dropped before [`finish`](Self::finish) it leaves nothing.
pub(crate) struct Importing {
    pool: Pool,
    object: Arc<Object>,
    _place: Place,
    id: VolumeId,
    spec: VolumeSpec,
    size_bytes: u64,
    over: bool,
}

impl Pool {
    /// Begins a volume that has at least `least_bytes` bytes.
    pub(crate) fn begin_import(&self, mut spec: VolumeSpec, least_bytes: u64) -> Result<Importing> {
        if spec.source != VolumeSource::Blank {
            return Err(Error::invalid(
                "spec",
                Violation::SeveralSources,
                "a volume is filled from an image or made from a source, not both",
            ));
        }
        let size_bytes = spec.size_bytes.unwrap_or(least_bytes);
        if size_bytes < least_bytes {
            let why = format!("at least the {least_bytes} bytes of the image are needed, {size_bytes} given");
            return Err(Error::invalid("size_bytes", Violation::BelowSource, why));
        }
        spec.size_bytes = Some(size_bytes);
        spec.check(&self.limits, 0)?;
        let id = self.transact(|batch| {
            batch.plan_volume(&spec, 1)?;
            let id = VolumeId::new(batch.claim_id("volume", spec.id.map(VolumeId::raw))?);
            batch.stage(|stage| {
                catalogue::insert_ephemeral(stage, id.object());
                Ok(())
            })?;
            Ok(id)
        })?;
        let busy = |_| Error::Busy { object: "volume", id: id.to_string(), why: "it is being filled" };
        let place = self.inner.attachments.enter(id.object(), 1, self.inner.engine.now()).map_err(busy)?;
        let object = self.inner.engine.object(id.object())?;
        Ok(Importing { pool: self.clone(), object, _place: place, id, spec, size_bytes, over: false })
    }
}

impl Importing {
    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Writes whole blocks of data from `lba` on.
    pub(crate) fn write(&self, lba: u64, data: &[u8]) -> Result<()> {
        self.pool.inner.engine.write(&self.object, lba * BLOCK_BYTES, data)
    }

    /// Fingerprint of what has been written.
    pub(crate) fn fingerprint(&self) -> Result<Fingerprint> {
        self.pool.inner.fingerprint_of(&self.object, self.size_bytes)
    }

    /// Makes the volume visible: one commit, durable on return.
    pub(crate) fn finish(mut self) -> Result<Volume> {
        let spec = self.spec.clone().id(self.id);
        let volume = self.pool.transact(|batch| {
            batch.stage(|stage| {
                catalogue::remove_ephemeral(stage, self.id.object());
                Ok(())
            })?;
            let plan = batch.plan_volume(&spec, 1)?;
            let volume = batch.make_volume(spec, &plan, VolumeStatus::Available)?;
            batch.ended_epoch();
            Ok(volume)
        })?;
        self.over = true;
        Ok(volume)
    }

    fn give_up(batch: &mut Batch<'_>, id: VolumeId) -> Result<()> {
        batch.stage(|stage| {
            catalogue::remove_ephemeral(stage, id.object());
            Ok(())
        })?;
        batch.trash_unwatched(id.object())
    }
}

impl Drop for Importing {
    fn drop(&mut self) {
        if !self.over {
            // If this fails it stays until the pool is opened the next time.
            let _ = self.pool.transact(|batch| Self::give_up(batch, self.id));
        }
    }
}
