//! What belongs to one pool in a target: names, and bytes that have been checked.
//!
//! | object | name |
//! |---|---|
//! | manifest | `backups/POOL/BACKUP` |
//! | table | `tables/POOL/XX/DIGEST` |
//! | piece | `pieces/POOL/XX/DIGEST` |
//!
//! `POOL` and `BACKUP` are ids as lower-case text with hyphens, `DIGEST` 64 hexadecimal digits, `XX` the first two
//! of them.

use std::io;

use uuid::Uuid;

use super::digest::Digest;
use super::manifest::{MAX_MANIFEST_BYTES, Manifest, TableRef};
use super::piece::encoded_len;
use super::table::{MAX_TABLE_BYTES, PieceRef, Table};
use crate::error::{Corruption, Error, Result};
use crate::target::{BackupTarget, Listed};
use crate::units::BackupId;

/// Begins the name of every manifest, whichever pool made it.
pub(super) const MANIFESTS: &str = "backups/";

/// The two kinds of objects that are named by their content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Table,
    Piece,
}

#[derive(Clone, Copy)]
pub(super) struct Shelf<'a> {
    target: &'a dyn BackupTarget,
    pool: Uuid,
}

/// What a target lists of one kind, in ascending order.
pub(super) struct Stock {
    items: Vec<(Digest, u64)>,
}

impl Stock {
    /// Whether an object of this digest and length is there.
    pub(super) fn has(&self, digest: &Digest, len: u64) -> bool {
        self.find(digest).is_some_and(|n| self.items[n].1 == len)
    }
    pub(super) fn find(&self, digest: &Digest) -> Option<usize> {
        self.items.binary_search_by(|(d, _)| d.cmp(digest)).ok()
    }
    pub(super) fn items(&self) -> &[(Digest, u64)] {
        &self.items
    }
}

impl<'a> Shelf<'a> {
    pub(super) fn new(target: &'a dyn BackupTarget, pool: Uuid) -> Self {
        Self { target, pool }
    }

    fn prefix(&self, kind: Kind) -> String {
        match kind {
            Kind::Table => format!("tables/{}/", self.pool),
            Kind::Piece => format!("pieces/{}/", self.pool),
        }
    }

    pub(super) fn name(&self, kind: Kind, digest: &Digest) -> String {
        let digest = digest.to_string();
        format!("{}{}/{digest}", self.prefix(kind), &digest[..2])
    }

    pub(super) fn manifest_name(&self, id: BackupId) -> String {
        format!("{MANIFESTS}{}/{id}", self.pool)
    }

    pub(super) fn put(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.target.put(name, bytes).map_err(|e| failed("put", name, e))
    }

    pub(super) fn delete(&self, name: &str) -> Result<()> {
        self.target.delete(name).map_err(|e| failed("delete", name, e))
    }

    pub(super) fn sync(&self) -> Result<()> {
        self.target.sync().map_err(|e| failed("sync", "", e))
    }

    /// What the target has of one kind. Takes 40 bytes of memory for each.
    pub(super) fn stock(&self, kind: Kind) -> Result<Stock> {
        let mut items = Vec::new();
        each_listed(self.target, &self.prefix(kind), &mut |listed| {
            let digest = listed.name.rsplit('/').next().and_then(Digest::parse);
            // Whatever is not called as we would call it is none of ours.
            if let Some(digest) = digest.filter(|d| self.name(kind, d) == listed.name) {
                items.push((digest, listed.len));
            }
            Ok(())
        })?;
        // As names ascend, so do digests; but that is for the target to keep, and cheap to make sure of.
        items.sort_unstable();
        Ok(Stock { items })
    }

    /// The bytes of an object, of no more than `most` bytes; `None` when it is lost.
    fn get(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>> {
        self.target.get(name, most).map_err(|e| failed("get", name, e))
    }

    /// An object whose content is what its name says (K5).
    fn get_content(&self, kind: Kind, digest: &Digest, most: u64) -> Result<Vec<u8>> {
        let (name, structure) = (self.name(kind, digest), structure(kind));
        let bytes = match self.target.get(&name, most) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Err(Corruption::new(structure, 0, "object", name, "lost").into()),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                return Err(Corruption::new(structure, 0, "length", format!("{most} bytes"), e).into());
            }
            Err(e) => return Err(failed("get", &name, e)),
        };
        let found = Digest::of(&bytes);
        if found != *digest {
            return Err(Corruption::new(structure, 0, "digest", digest, found).into());
        }
        Ok(bytes)
    }

    /// The manifest of a backup and its digest; `None` when there is none.
    pub(super) fn manifest(&self, id: BackupId) -> Result<Option<(Manifest, Digest)>> {
        let Some(bytes) = self.get(&self.manifest_name(id), MAX_MANIFEST_BYTES)? else { return Ok(None) };
        let (manifest, digest) = Manifest::decode(&bytes)?;
        for (field, want, found) in
            [("pool", self.pool, manifest.pool), ("backup", id.raw(), manifest.backup.raw())]
        {
            if want != found {
                return Err(Corruption::new("backup manifest", 0, field, want, found).into());
            }
        }
        Ok(Some((manifest, digest)))
    }

    /// The manifest that the record of a backup speaks of.
    pub(super) fn manifest_of(&self, id: BackupId, digest: &[u8; 32]) -> Result<Manifest> {
        let Some((manifest, found)) = self.manifest(id)? else {
            let name = self.manifest_name(id);
            return Err(Corruption::new("backup manifest", 0, "object", name, "lost").into());
        };
        if found.0 != *digest {
            return Err(Corruption::new("backup manifest", 0, "digest", Digest(*digest), found).into());
        }
        Ok(manifest)
    }

    pub(super) fn table(&self, manifest: &Manifest, table: &TableRef) -> Result<Table> {
        let bytes = self.get_content(Kind::Table, &table.digest, MAX_TABLE_BYTES)?;
        let (blocks, ranges) = (manifest.piece_blocks(), manifest.ranges());
        let read = Table::decode(&bytes, table.number, blocks, ranges)?;
        if read.pieces.len() as u64 != u64::from(table.entries) {
            let found = read.pieces.len();
            return Err(Corruption::new("backup table", 0, "entries", table.entries, found).into());
        }
        Ok(read)
    }

    /// The encoding of a piece. Its digest is checked, its fields are not.
    pub(super) fn piece(&self, piece: &PieceRef, blocks: usize) -> Result<Vec<u8>> {
        self.get_content(Kind::Piece, &piece.digest, encoded_len(blocks, piece.stored.into()))
    }
}

fn structure(kind: Kind) -> &'static str {
    match kind {
        Kind::Table => "backup table",
        Kind::Piece => "backup piece",
    }
}

/// Visits what a target lists under `prefix`, page by page.
pub(super) fn each_listed(
    target: &dyn BackupTarget,
    prefix: &str,
    each: &mut dyn FnMut(&Listed) -> Result<()>,
) -> Result<()> {
    let mut after: Option<String> = None;
    loop {
        let page = target.list(prefix, after.as_deref()).map_err(|e| failed("list", prefix, e))?;
        let Some(last) = page.last().map(|l| l.name.clone()) else { return Ok(()) };
        for listed in &page {
            // A target that goes round in circles would keep us for ever.
            if !listed.name.starts_with(prefix) || after.as_ref().is_some_and(|a| *a >= listed.name) {
                let e =
                    io::Error::new(io::ErrorKind::InvalidData, format!("{:?} is out of order", listed.name));
                return Err(failed("list", prefix, e));
            }
            after = Some(listed.name.clone());
            each(listed)?;
        }
        after = Some(last);
    }
}

pub(super) fn failed(op: &'static str, name: &str, source: io::Error) -> Error {
    Error::Target { op, name: name.to_owned(), source }
}
