//! Images: what goes in comes out, real tools agree, and what is not right leaves no trace.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

mod common;
#[cfg(feature = "qcow2")]
#[path = "fuzz/bodies/import.rs"]
mod fuzz;

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use common::observe::{all_volumes, read_all};
use common::rng::{self, Rng};
use common::{Shape, assert_sound};
use snapvol::device::MemoryDevice;
use snapvol::image::{ExportOptions, ImageFormat, ImageProgress, ImageSource, RawImage};
use snapvol::{AttachOptions, Error, Pool, SnapshotSpec, VolumeId, VolumeSpec};

const BLOCK: u64 = 4096;
const MIB: u64 = 1 << 20;

fn go_on(_: ImageProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn pool() -> Pool {
    Pool::create_on(MemoryDevice::new(), Shape::SMALL.limit(256 << 20).create().log_bytes(1 << 20)).unwrap()
}

fn new_file(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create_new(true).open(path).unwrap()
}

/// A volume with data, zeroes and holes in places that try borders: of blocks, clusters, tables.
fn volume(pool: &Pool, size: u64, seed: u64) -> VolumeId {
    let mut rng = Rng::new(seed);
    let id = pool.create_volume(VolumeSpec::blank(size)).unwrap().id;
    let disk = pool.attach(id, AttachOptions::new()).unwrap();
    for _ in 0..60 {
        let at = rng.below(size / BLOCK) * BLOCK;
        let len = (1 + rng.below(40)) * BLOCK;
        let len = len.min(size - at);
        match rng.below(4) {
            0 => disk.write_zeroes(at, len).unwrap(),
            1 => disk.write_at(&vec![0; len as usize], at).unwrap(),
            _ => disk.write_at(&(0..len).map(|_| rng.below(256) as u8).collect::<Vec<_>>(), at).unwrap(),
        }
    }
    disk.write_at(b"the last block", size - BLOCK).unwrap();
    id
}

fn qemu_img(arguments: &[&str]) -> Option<String> {
    let out = match Command::new("qemu-img").args(arguments).output() {
        Ok(out) => out,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            println!("SKIPPED: qemu-img {arguments:?} was not run: qemu-utils is not installed");
            return None;
        }
        Err(e) => panic!("{e}"),
    };
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "qemu-img {arguments:?}: {text}{}", String::from_utf8_lossy(&out.stderr));
    Some(text)
}

#[test]
fn a_raw_image_goes_out_sparse_and_comes_back_equal() {
    let dir = tempfile::tempdir().unwrap();
    let a = pool();
    let id = volume(&a, 64 * MIB, 1);
    let snapshot = a.create_snapshot(id, SnapshotSpec::new()).unwrap().id;
    a.attach(id, AttachOptions::new()).unwrap().write_at(&[1; 9000], 5000).unwrap();
    let path = dir.path().join("disk.raw");
    let file = new_file(&path);
    let mut told = Vec::new();
    let out = a
        .export(snapshot, &file, ExportOptions::new(ImageFormat::Raw), |p| {
            told.push(p);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!((out.size_bytes, out.file_bytes), (64 * MIB, 64 * MIB));
    assert_eq!(out.fingerprint, a.fingerprint(snapshot).unwrap());
    assert!(told.is_sorted_by_key(|p| (p.verifying, p.position)) && told.iter().any(|p| p.verifying));
    assert_eq!(told.last().unwrap().position, 64 * MIB);
    let taken = file.metadata().unwrap().blocks() * 512;
    assert!(taken <= out.data_bytes + MIB, "{taken} bytes on disk for {} of data", out.data_bytes);
    let bytes = read_all(&a.attach_snapshot(snapshot).unwrap()).unwrap();
    assert!(std::fs::read(&path).unwrap() == bytes);

    // Zeroes that were written into the file are found: only data is stored.
    let b = pool();
    file.write_all_at(&vec![0; MIB as usize], 63 * MIB - MIB).unwrap();
    let want = {
        let mut bytes = bytes.clone();
        bytes[62 * MIB as usize..63 * MIB as usize].fill(0);
        bytes
    };
    let image = RawImage::open(File::open(&path).unwrap()).unwrap();
    let made = b.import(image, VolumeSpec::image().name("back").metadata("k", "v"), go_on).unwrap();
    assert_eq!(made.volume.name.as_deref(), Some("back"));
    let disk = b.attach(made.volume.id, AttachOptions::new()).unwrap();
    assert!(read_all(&disk).unwrap() == want);
    let nonzero = want.chunks(BLOCK as usize).filter(|b| b.iter().any(|byte| *byte != 0)).count() as u64;
    assert_eq!(made.data_bytes, nonzero * BLOCK);
    drop(disk);
    assert_eq!(b.volume_space(made.volume.id).unwrap().mapped_bytes, nonzero * BLOCK);
    assert_eq!(b.fingerprint(made.volume.id).unwrap(), made.fingerprint);
    assert_sound(&b);
}

#[test]
fn an_image_that_ends_within_a_block_is_rounded_up_with_zeroes_and_may_be_given_more_room() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("odd.raw");
    std::fs::write(&path, vec![7; 10_000]).unwrap();
    let open = || RawImage::open(File::open(&path).unwrap()).unwrap();
    let p = pool();
    let made = p.import(open(), VolumeSpec::image(), go_on).unwrap();
    assert_eq!(made.volume.size_bytes, 3 * BLOCK);
    let bytes = read_all(&p.attach(made.volume.id, AttachOptions::new()).unwrap()).unwrap();
    assert!(bytes[..10_000].iter().all(|b| *b == 7) && bytes[10_000..].iter().all(|b| *b == 0));
    let larger = p.import(open(), VolumeSpec::image().size(MIB), go_on).unwrap();
    assert_eq!(larger.volume.size_bytes, MIB);
    assert_eq!(p.fingerprint(larger.volume.id).unwrap(), larger.fingerprint);
    let small = p.import(open(), VolumeSpec::image().size(2 * BLOCK), go_on).map(|_| ());
    assert!(matches!(small, Err(Error::InvalidArgument { field: "size_bytes", .. })), "{small:?}");
    std::fs::write(&path, b"").unwrap();
    assert!(matches!(p.import(open(), VolumeSpec::image(), go_on), Err(Error::InvalidArgument { .. })));
    assert_eq!(all_volumes(&p).unwrap().len(), 2);
}

/// Reads well until it does not.
struct Unreliable {
    fails_at: u64,
}

impl ImageSource for Unreliable {
    fn size_bytes(&self) -> u64 {
        8 * MIB
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if offset >= self.fails_at {
            return Err(io::Error::other("the cable is out"));
        }
        buf.fill(9);
        Ok(())
    }
}

struct Liar(Range<u64>);

impl ImageSource for Liar {
    fn size_bytes(&self) -> u64 {
        MIB
    }
    fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<()> {
        Ok(())
    }
    fn next_data(&self, _: u64) -> io::Result<Option<Range<u64>>> {
        Ok(Some(self.0.clone()))
    }
}

#[test]
fn an_import_that_fails_or_is_cancelled_leaves_nothing() {
    let medium = MemoryDevice::new();
    let shape = Shape::SMALL.limit(32 << 20);
    let p = Pool::create_on(medium.share(), shape.create()).unwrap();
    let empty = |p: &Pool| {
        while p.step(1 << 20).unwrap() {}
        p.checkpoint().unwrap();
        while p.step(1 << 20).unwrap() {}
        assert!(all_volumes(p).unwrap().is_empty());
        assert_eq!(p.space().unwrap().used_bytes, 0);
        assert_sound(p);
    };
    let failed = p.import(Unreliable { fails_at: 5 * MIB }, VolumeSpec::image(), go_on);
    assert!(matches!(failed, Err(Error::Io { op: "read of the image", .. })), "{failed:?}");
    empty(&p);
    let stop = |p: ImageProgress| if p.position > 3 * MIB { ControlFlow::Break(()) } else { go_on(p) };
    let cancelled = p.import(Unreliable { fails_at: u64::MAX }, VolumeSpec::image(), stop);
    assert!(matches!(cancelled, Err(Error::Cancelled { .. })));
    empty(&p);
    #[allow(clippy::reversed_empty_ranges)]
    for lie in [0..0, 5..4, 0..2 * MIB, 2 * MIB..3 * MIB, 0..BLOCK] {
        let lied = p.import(Liar(lie.clone()), VolumeSpec::image(), go_on);
        assert!(matches!(lied, Err(Error::Refused { .. })), "{lie:?}: {lied:?}");
    }
    empty(&p);
    // The process dies in the middle, with everything on the medium.
    let image = std::sync::Mutex::new(None);
    let _ = p.import(Unreliable { fails_at: u64::MAX }, VolumeSpec::image(), |at| {
        if at.position == 4 * MIB {
            p.flush().unwrap();
            let mut bytes = vec![0; snapvol::device::Device::len(&medium).unwrap() as usize];
            snapvol::device::Device::read_at(&medium, &mut bytes, 0).unwrap();
            *image.lock().unwrap() = Some(bytes);
        }
        go_on(at)
    });
    let killed = snapvol::device::sim::SimDevice::from_image(image.into_inner().unwrap().unwrap());
    let reopened = Pool::open_on(killed, shape.open_with_ids(50)).unwrap();
    empty(&reopened);
}

#[test]
fn an_export_that_is_cancelled_or_has_no_place_leaves_an_empty_file() {
    let dir = tempfile::tempdir().unwrap();
    let p = pool();
    let id = volume(&p, 16 * MIB, 3);
    for format in [ImageFormat::Raw, ImageFormat::Qcow2] {
        let file = new_file(&dir.path().join(format!("{format:?}")));
        for stop_at in [1, 12, 30] {
            let mut calls = 0;
            let stopped = p.export(id, &file, ExportOptions::new(format), |_| {
                calls += 1;
                if calls == stop_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            assert!(matches!(stopped, Err(Error::Cancelled { .. })), "{stopped:?}");
            assert_eq!(file.metadata().unwrap().len(), 0);
        }
        p.export(id, &file, ExportOptions::new(format), go_on).unwrap();
        let again = p.export(id, &file, ExportOptions::new(format), go_on);
        assert!(matches!(again, Err(Error::InvalidArgument { field: "file", .. })));
        assert!(file.metadata().unwrap().len() > MIB, "a full file is not touched");
    }
}

/// A bit flips in the file between writing and comparing.
#[test]
fn an_image_that_is_not_what_was_written_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let p = pool();
    let id = p.create_volume(VolumeSpec::blank(4 * MIB)).unwrap().id;
    p.attach(id, AttachOptions::new()).unwrap().write_at(&vec![3; 3 * MIB as usize], 0).unwrap();
    for format in [ImageFormat::Raw, ImageFormat::Qcow2] {
        let file = new_file(&dir.path().join(format!("{format:?}")));
        let mut spoiled = false;
        let done = p.export(id, &file, ExportOptions::new(format), |at| {
            if at.verifying && !spoiled {
                spoiled = true;
                file.write_all_at(&[0], 2 * MIB + 100).unwrap();
            }
            ControlFlow::Continue(())
        });
        assert!(spoiled && matches!(done, Err(Error::Corrupt(_))), "{done:?}");
        assert_eq!(file.metadata().unwrap().len(), 0);
    }
}

#[test]
fn qemu_finds_nothing_wrong_with_a_qcow2_image_and_the_same_bytes_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let p = pool();
    let seed = rng::seed("qemu_finds_nothing_wrong_with_a_qcow2_image_and_the_same_bytes_in_it", 41);
    // Empty, one block, one cluster and a bit, several tables, and a terabyte with little in it.
    let blank = p.create_volume(VolumeSpec::blank(BLOCK)).unwrap().id;
    let far = p.create_volume(VolumeSpec::blank(1 << 40)).unwrap().id;
    let disk = p.attach(far, AttachOptions::new()).unwrap();
    for at in [0, (512 << 20) - BLOCK, 512 << 20, 5 << 35, (1 << 40) - BLOCK] {
        disk.write_at(&[5; BLOCK as usize], at).unwrap();
    }
    drop(disk);
    let mut all = vec![blank, far];
    for (n, size) in [BLOCK, 17 * BLOCK, 3 * MIB, 40 * MIB].into_iter().enumerate() {
        all.push(volume(&p, size, seed + n as u64));
    }
    for (n, id) in all.into_iter().enumerate() {
        let size = p.volume(id).unwrap().size_bytes;
        let (qcow2, raw) = (dir.path().join(format!("{n}.qcow2")), dir.path().join(format!("{n}.raw")));
        let exported =
            p.export(id, &new_file(&qcow2), ExportOptions::new(ImageFormat::Qcow2), go_on).unwrap();
        p.export(id, &new_file(&raw), ExportOptions::new(ImageFormat::Raw), go_on).unwrap();
        let (qcow2, raw) = (qcow2.to_str().unwrap(), raw.to_str().unwrap());
        let Some(check) = qemu_img(&["check", "-f", "qcow2", "--output=json", qcow2]) else { return };
        let check: serde_json::Value = serde_json::from_str(&check).unwrap();
        assert_eq!(
            (&check["check-errors"], &check["leaks"]),
            (&0.into(), &serde_json::Value::Null),
            "{check}"
        );
        let info = qemu_img(&["info", "-f", "qcow2", "--output=json", qcow2]).unwrap();
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info["virtual-size"], size);
        assert_eq!(info["format-specific"]["data"]["compat"], "1.1");
        // Of the terabyte, qemu compares what one of the two has.
        println!("{}", qemu_img(&["compare", "-f", "qcow2", "-F", "raw", qcow2, raw]).unwrap().trim());
        assert!(exported.file_bytes < exported.data_bytes * 16 + MIB);
    }
}

#[cfg(feature = "qcow2")]
mod qcow2 {
    use snapvol::image::Qcow2Image;

    use super::*;

    fn open(path: &Path) -> Result<Qcow2Image, Error> {
        Qcow2Image::open(File::open(path).unwrap())
    }

    #[test]
    fn what_was_exported_as_qcow2_comes_back_equal() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (pool(), pool());
        let id = volume(&a, 40 * MIB, 8);
        let path = dir.path().join("disk.qcow2");
        let out = a.export(id, &new_file(&path), ExportOptions::new(ImageFormat::Qcow2), go_on).unwrap();
        let made = b.import(open(&path).unwrap(), VolumeSpec::image(), go_on).unwrap();
        assert_eq!((made.fingerprint, made.data_bytes), (out.fingerprint, out.data_bytes));
        assert_eq!(b.fingerprint(made.volume.id).unwrap(), a.fingerprint(id).unwrap());
        assert_sound(&b);
    }

    #[test]
    fn images_that_qemu_wrote_are_read_in_every_kind() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (pool(), pool());
        let id = volume(&a, 24 * MIB, 9);
        let raw = dir.path().join("disk.raw");
        a.export(id, &new_file(&raw), ExportOptions::new(ImageFormat::Raw), go_on).unwrap();
        for (n, options) in [
            "compat=1.1",
            "compat=0.10",
            "cluster_size=512",
            "cluster_size=2M",
            "preallocation=metadata",
            "refcount_bits=1",
        ]
        .into_iter()
        .enumerate()
        {
            for compress in [false, true] {
                if compress && options.starts_with("prealloc") {
                    continue;
                }
                let path = dir.path().join(format!("{n}{compress}.qcow2"));
                let (from, to) = (raw.to_str().unwrap(), path.to_str().unwrap());
                let mut arguments = vec!["convert", "-f", "raw", "-O", "qcow2", "-o", options];
                if compress {
                    arguments.push("-c");
                }
                arguments.extend([from, to]);
                if qemu_img(&arguments).is_none() {
                    return;
                }
                let made = b.import(open(&path).unwrap(), VolumeSpec::image(), go_on).unwrap();
                assert_eq!(made.fingerprint, a.fingerprint(id).unwrap(), "{options}, compressed {compress}");
                b.delete_volume(made.volume.id, snapvol::Snapshots::Refuse).unwrap().wait().unwrap();
            }
        }
        assert_sound(&b);
    }

    #[test]
    fn images_that_name_other_files_or_are_encrypted_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("base.raw"), vec![1; MIB as usize]).unwrap();
        let made = [
            qemu_img(&["create", "-f", "qcow2", "-b", &path("base.raw"), "-F", "raw", &path("backed")]),
            qemu_img(&[
                "create",
                "-f",
                "qcow2",
                "-o",
                &format!("data_file={}", path("data")),
                &path("outside"),
                "1M",
            ]),
        ];
        if made.iter().any(Option::is_none) {
            return;
        }
        for name in ["backed", "outside"] {
            let refused = open(path(name).as_ref());
            assert!(
                matches!(refused, Err(Error::Refused { input: "qcow2 image", .. })),
                "{name}: {refused:?}"
            );
        }
        std::fs::write(path("text"), b"QFI\xfb").unwrap();
        assert!(matches!(open(path("text").as_ref()), Err(Error::Refused { .. })));
        assert!(matches!(open(path("base.raw").as_ref()), Err(Error::Refused { .. })));
    }

    /// An image of some clusters, to be spoiled.
    fn sound_image() -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let p = pool();
        let id = p.create_volume(VolumeSpec::blank(MIB)).unwrap().id;
        let disk = p.attach(id, AttachOptions::new()).unwrap();
        disk.write_at(&[7; 5000], 3000).unwrap();
        disk.write_at(&[8; 5000], MIB - 5000).unwrap();
        drop(disk);
        let path = dir.path().join("sound");
        p.export(id, &new_file(&path), ExportOptions::new(ImageFormat::Qcow2), go_on).unwrap();
        std::fs::read(&path).unwrap()
    }

    #[test]
    fn spoiled_images_end_in_an_error_or_in_a_volume_never_in_a_panic() {
        let sound = sound_image();
        super::fuzz::import(&sound).unwrap();
        let mut rng =
            Rng::new(rng::seed("spoiled_images_end_in_an_error_or_in_a_volume_never_in_a_panic", 77));
        let (mut refused, mut read) = (0, 0);
        // The header, then the tables.
        let places = |rng: &mut Rng| match rng.below(3) {
            0 => rng.below(112),
            1 => (1 << 16) + rng.below(16),
            _ => (2 << 16) + rng.below(160),
        };
        for round in 0..3000 {
            let mut bytes = sound.clone();
            for _ in 0..1 + rng.below(3) {
                let at = places(&mut rng) as usize;
                bytes[at] = [0, 0xFF, 1 << rng.below(8), rng.below(256) as u8][rng.below(4) as usize];
            }
            if round % 10 == 0 {
                bytes.truncate(rng.below(bytes.len() as u64) as usize);
            }
            match super::fuzz::import(&bytes) {
                Ok(()) => read += 1,
                Err(
                    Error::Refused { .. }
                    | Error::InvalidArgument { .. }
                    | Error::OutOfSpace { .. }
                    | Error::Cancelled { .. },
                ) => {
                    refused += 1;
                }
                Err(e) => panic!("round {round}: {e:?}"),
            }
        }
        println!("{refused} refused, {read} read");
        assert!(refused > 1000 && read > 100);
    }
}
