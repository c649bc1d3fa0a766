//! imago on qcow2: a snapshot is a new overlay over the image, which is reopened for reading.
//!
//! An overlay is not merged back, which would copy it: with its snapshot it goes, and the image is as it was.

use std::fs;
use std::path::{Path, PathBuf};

use imago::file::File;
use imago::qcow2::Qcow2;
use imago::storage::StorageCreateOptions;
use imago::{FormatAccess, FormatCreateBuilder, FormatDriverBuilder, PermissiveImplicitOpenGate, Storage};

use crate::Result;
use crate::store::{After, Store};

type Image = FormatAccess<File>;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clusters {
    /// 64 KiB.
    Default,
    /// 4 KiB, like the engine's blocks.
    Blocks,
}

pub(crate) struct Qcow2Store {
    name: &'static str,
    clusters: Clusters,
    base: PathBuf,
    overlay: PathBuf,
    bytes: u64,
    /// None only while it is being reopened.
    image: Option<Image>,
}

impl Qcow2Store {
    pub(crate) const DEFAULT: &str = "imago";
    pub(crate) const SMALL: &str = "imago-4k";

    pub(crate) fn create(folder: &Path, clusters: Clusters, bytes: u64) -> Result<Self> {
        let name = if clusters == Clusters::Default { Self::DEFAULT } else { Self::SMALL };
        let base = folder.join(format!("{name}.qcow2"));
        let overlay = folder.join(format!("{name}-overlay.qcow2"));
        let mut store = Self { name, clusters, base, overlay, bytes, image: None };
        store.lay_out(&store.base, None)?;
        store.image = Some(open(&store.base, None, true)?);
        Ok(store)
    }

    fn lay_out(&self, path: &Path, backing: Option<&Path>) -> Result<()> {
        let file = File::create_open(StorageCreateOptions::new().filename(path))?;
        let mut builder = Qcow2::<File>::create_builder(file).size(self.bytes);
        if self.clusters == Clusters::Blocks {
            builder = builder.cluster_size(4096);
        }
        if let Some(backing) = backing {
            builder = builder.backing(backing.display().to_string(), "qcow2".to_owned());
        }
        Ok(builder.create()?)
    }

    fn image(&self) -> Result<&Image> {
        Ok(self.image.as_ref().ok_or("the image could not be reopened")?)
    }

    /// A fresh overlay in place of what is open.
    fn overlay(&mut self) -> Result<()> {
        self.image = None;
        if self.overlay.exists() {
            fs::remove_file(&self.overlay)?;
        }
        self.lay_out(&self.overlay, Some(&self.base))?;
        let base = open(&self.base, None, false)?;
        self.image = Some(open(&self.overlay, Some(base), true)?);
        self.flush()
    }
}

fn open(path: &Path, backing: Option<Image>, writable: bool) -> Result<Image> {
    let builder = Qcow2::<File>::builder_path(path).backing(backing).write(writable);
    Ok(FormatAccess::new(builder.open(PermissiveImplicitOpenGate::default())?))
}

impl Store for Qcow2Store {
    fn name(&self) -> &'static str {
        self.name
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        Ok(self.image()?.read(buf, offset)?)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        Ok(self.image()?.write(data, offset)?)
    }

    fn flush(&self) -> Result<()> {
        self.image()?.flush()?;
        Ok(self.image()?.sync()?)
    }

    fn snapshot(&mut self) -> Result<()> {
        self.flush()?;
        self.overlay()
    }

    fn release(&mut self) -> Result<After> {
        self.image = None;
        fs::remove_file(&self.overlay)?;
        self.image = Some(open(&self.base, None, true)?);
        Ok(After::Undone)
    }

    fn rollback(&mut self) -> Result<bool> {
        self.overlay()?;
        Ok(true)
    }
}
