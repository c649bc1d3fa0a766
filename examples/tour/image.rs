//! Disk images: made, imported and exported.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use snapvol::{AttachOptions, ExtentKind, Pool, VolumeId, VolumeSpec};

use super::Outcome;
use super::content::{BLOCK, Content, Writer};
use super::show::Tour;

const IMAGE_BYTES: u64 = 192 << 20;
const PIECE: u64 = 1 << 20;

/// An ext4 image of a real folder where `mke2fs` is installed, else a generated image.
pub(crate) fn make(folder: &Path) -> Outcome<(PathBuf, String)> {
    let path = folder.join("disk.img");
    let sources = source_folder();
    for mke2fs in ["mke2fs", "/usr/sbin/mke2fs", "/sbin/mke2fs", "/opt/homebrew/opt/e2fsprogs/sbin/mke2fs"] {
        let size = format!("{}k", IMAGE_BYTES >> 10);
        let mut command = Command::new(mke2fs);
        command.args(["-q", "-F", "-t", "ext4", "-d"]).arg(&sources).arg(&path).arg(size);
        let made = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        if made.is_ok_and(|status| status.success()) {
            return Ok((path, format!("an ext4 file system with a copy of {}", sources.display())));
        }
    }
    let file = File::create(&path)?;
    file.set_len(IMAGE_BYTES)?;
    let mut writer = Writer::new(7);
    for piece in 0..IMAGE_BYTES / PIECE {
        // Data, a hole of half the length, and now and then a stretch of zero bytes.
        if piece % 3 != 2 {
            file.write_all_at(&writer.bytes((PIECE as usize / 2) << (piece % 2)), piece * PIECE)?;
        }
    }
    Ok((path, "a generated image (mke2fs is not installed)".to_string()))
}

/// The crate's own sources: a folder that every reader of this has.
fn source_folder() -> PathBuf {
    let crate_folder =
        std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from("."), PathBuf::from);
    let sources = crate_folder.join("src");
    if sources.is_dir() { sources } else { crate_folder }
}

/// Copies the image into a new volume. Blocks of zeroes are left out: they read zero anyway.
pub(crate) fn import(tour: &Tour, pool: &Pool, content: &Content, name: &str) -> Outcome<VolumeId> {
    let volume = pool.create_volume(VolumeSpec::blank(content.size_bytes()).name(name))?;
    let disk = pool.attach(volume.id, AttachOptions::default())?;
    let bar = tour.bar(content.size_bytes());
    let mut piece = vec![0; PIECE as usize];
    for offset in (0..content.size_bytes()).step_by(PIECE as usize) {
        let piece = &mut piece[..PIECE.min(content.size_bytes() - offset) as usize];
        content.read(piece, offset)?;
        // Neighbouring blocks with data go in one write.
        let mut at = 0;
        for run in piece.chunk_by_blocks() {
            if run.iter().any(|&byte| byte != 0) {
                disk.write_at(run, offset + at)?;
            }
            at += run.len() as u64;
        }
        bar.inc(piece.len() as u64);
    }
    disk.flush()?;
    bar.finish_and_clear();
    Ok(volume.id)
}

trait ChunkByBlocks {
    /// Longest runs of blocks that are all zero or all not.
    fn chunk_by_blocks(&self) -> Vec<&[u8]>;
}

impl ChunkByBlocks for [u8] {
    fn chunk_by_blocks(&self) -> Vec<&[u8]> {
        let zero = |block: &[u8]| block.iter().all(|&byte| byte == 0);
        let blocks: Vec<&[u8]> = self.chunks(BLOCK as usize).collect();
        let mut rest = self;
        let runs = blocks.chunk_by(|a, b| zero(a) == zero(b));
        runs.map(|run| {
            let (this, after) = rest.split_at(run.iter().map(|block| block.len()).sum());
            rest = after;
            this
        })
        .collect()
    }
}

/// Writes a volume into a sparse file.
pub(crate) fn export(tour: &Tour, pool: &Pool, volume: VolumeId, path: &Path) -> Outcome<()> {
    let disk = pool.attach(volume, AttachOptions::default().read_only(true))?;
    let file = File::create(path)?;
    file.set_len(disk.size_bytes())?;
    let bar = tour.bar(disk.size_bytes());
    let mut piece = vec![0; PIECE as usize];
    for extent in disk.extents(0..disk.size_bytes()) {
        let extent = extent?;
        if extent.kind == ExtentKind::Data {
            for offset in extent.range.clone().step_by(PIECE as usize) {
                let piece = &mut piece[..PIECE.min(extent.range.end - offset) as usize];
                disk.read_at(piece, offset)?;
                file.write_all_at(piece, offset)?;
            }
        }
        bar.set_position(extent.range.end);
    }
    bar.finish_and_clear();
    Ok(())
}
