//! What else a Rust program could keep its disks in.
//!
//! Each peer is used as well as its API allows: writes that come together are one transaction where there are
//! transactions, and a flush that follows them is that transaction's durable commit.

mod imago;
mod lmdb;
mod redb;

use std::path::Path;

use crate::Result;
use crate::store::Store;

pub(crate) const LMDB: &str = lmdb::Lmdb::NAME;
pub(crate) const NAMES: [&str; 4] =
    [imago::Qcow2Store::DEFAULT, imago::Qcow2Store::SMALL, redb::Redb::NAME, LMDB];

pub(crate) fn all(folder: &Path, volume_bytes: u64) -> Result<Vec<Box<dyn Store>>> {
    Ok(vec![
        Box::new(imago::Qcow2Store::create(folder, imago::Clusters::Default, volume_bytes)?),
        Box::new(imago::Qcow2Store::create(folder, imago::Clusters::Blocks, volume_bytes)?),
        Box::new(redb::Redb::create(folder)?),
        Box::new(lmdb::Lmdb::create(folder, volume_bytes)?),
    ])
}
