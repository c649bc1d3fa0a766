//! External bases whose bytes follow from their ids, so that whoever opens a pool can hand them over.

use std::io;

use snapvol::image::ImageSource;
use snapvol::{BaseId, BaseSource, Error, Pool};

use super::model::{BLOCK, BaseModel};

struct Pattern {
    id: BaseId,
    size_bytes: u64,
}

impl ImageSource for Pattern {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let first = offset as usize / BLOCK;
        let last = (offset as usize + buf.len()).div_ceil(BLOCK);
        let bytes: Vec<u8> = (first..last).flat_map(|block| BaseModel::bytes(self.id, block)).collect();
        buf.copy_from_slice(&bytes[offset as usize - first * BLOCK..][..buf.len()]);
        Ok(())
    }
}

/// The base of this id.
pub(crate) fn source(id: BaseId, size_bytes: u64) -> BaseSource {
    BaseSource::new(Pattern { id, size_bytes }).id(id)
}

/// Hands over every base that a pool still needs.
pub(crate) fn supply_all(pool: &Pool) -> Result<(), Error> {
    for base in pool.list_bases()? {
        if !base.complete && !base.supplied {
            pool.supply_base(base.id, source(base.id, base.size_bytes))?;
        }
    }
    Ok(())
}
