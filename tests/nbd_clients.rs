//! Programs that nobody here wrote use volumes over NBD: qemu-img, qemu-io, nbdcopy, nbdinfo, fio, nbdfuse, and through
//! that an ext4 file system with its fsck. A test whose program is not installed says so and does nothing.
#![cfg(feature = "nbd")]
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use snapvol::nbd::Server;
use snapvol::{
    CheckOptions, CreateOptions, Pool, RollbackOptions, SnapshotId, SnapshotSpec, VolumeId, VolumeSpec,
};

const MIB: u64 = 1 << 20;

/// Whether all of these can be run; says loudly which one cannot.
fn installed(programs: &[&str]) -> bool {
    let missing: Vec<_> =
        programs.iter().filter(|p| Command::new(p).arg("--version").output().is_err()).collect();
    for program in &missing {
        eprintln!(
            "\n*** SKIPPED: {program} IS NOT INSTALLED (qemu-utils, libnbd-bin, fio, e2fsprogs, fuse3) ***\n"
        );
    }
    missing.is_empty()
}

/// A pool in a file, served on a unix socket and on a TCP port.
struct Rig {
    pool: Pool,
    server: Option<Server>,
    folder: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pool = Pool::create(folder.path().join("p"), CreateOptions::new().limit_bytes(4 << 30)).unwrap();
        let server = Server::builder(&pool)
            .unix(folder.path().join("s"))
            .tcp((Ipv4Addr::LOCALHOST, 0).into())
            .serve()
            .unwrap();
        Self { pool, server: Some(server), folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.path("s").display())
    }

    fn tcp_uri(&self, export: &str) -> String {
        format!("nbd://{}/{export}", self.server.as_ref().unwrap().tcp_addresses()[0])
    }

    fn volume(&self, name: &str, size_bytes: u64) -> VolumeId {
        self.pool.create_volume(VolumeSpec::blank(size_bytes).name(name)).unwrap().id
    }

    fn snapshot(&self, volume: VolumeId, name: &str) -> SnapshotId {
        self.pool.create_snapshot(volume, SnapshotSpec::new().name(name).force(true)).unwrap().id
    }

    /// A file with data, holes and runs of zeroes, of which it returns the ranges that are not zero.
    fn image(&self, name: &str, size_bytes: u64) -> (PathBuf, Vec<(u64, u64)>) {
        let path = self.path(name);
        let file = File::create(&path).unwrap();
        file.set_len(size_bytes).unwrap();
        let mut ranges = Vec::new();
        let mut seed = 1_u64;
        for i in 0..size_bytes / (4 * MIB) {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (at, len) = (i * 4 * MIB + (seed >> 40) % 256 * 4096, ((seed >> 50) % 512 + 1) * 4096);
            let bytes: Vec<u8> = (0..len / 8)
                .flat_map(|w| (seed ^ w.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes())
                .collect();
            file.write_all_at(&bytes, at).unwrap();
            file.write_all_at(&[0; 65_536], at + len).unwrap();
            ranges.push((at, len));
        }
        (path, ranges)
    }

    /// Ends the server; afterwards the pool is sound and nothing is attached.
    fn end(mut self) {
        self.server.take().unwrap().shutdown();
        assert_sound(&self.pool);
        self.pool.close().unwrap();
    }
}

fn assert_sound(pool: &Pool) {
    let report = pool.check(CheckOptions::default(), &mut |_| {}).unwrap();
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
    let report = pool.scrub(CheckOptions::default(), &mut |_| {}).unwrap();
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
}

fn output(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"))
}

/// Runs a program that has to succeed, and returns what it printed.
fn run(program: &str, args: &[&str]) -> String {
    let out = output(program, args);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{program} {args:?}: {}\n{text}{errors}", out.status);
    text
}

fn json(program: &str, args: &[&str]) -> Value {
    serde_json::from_str(&run(program, args)).unwrap()
}

fn same(a: &Path, b: &Path) -> bool {
    fs::read(a).unwrap() == fs::read(b).unwrap()
}

#[test]
fn qemu_img_converts_compares_maps_and_describes() {
    if !installed(&["qemu-img"]) {
        return;
    }
    let rig = Rig::new();
    let id = rig.volume("v", 128 * MIB);
    let (raw, ranges) = rig.image("raw", 128 * MIB);
    let (raw, uri, tcp) = (raw.to_str().unwrap(), rig.uri("v"), rig.tcp_uri("v"));
    let info = json("qemu-img", &["info", "--output=json", &uri]);
    assert_eq!((&info["virtual-size"], &info["format"]), (&Value::from(128 * MIB), &Value::from("raw")));
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", "-m", "8", "-W", raw, &uri]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", raw, &uri]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", raw, &tcp]);
    // Zeroes are not stored, and the map says where data is.
    let stored = rig.pool.volume_space(id).unwrap().mapped_bytes;
    assert_eq!(stored, ranges.iter().map(|r| r.1).sum::<u64>());
    let map = json("qemu-img", &["map", "--output=json", "-f", "raw", &uri]);
    let data: Vec<(u64, u64)> = map
        .as_array()
        .unwrap()
        .iter()
        .filter(|e| e["data"] == true)
        .map(|e| (e["start"].as_u64().unwrap(), e["length"].as_u64().unwrap()))
        .collect();
    assert_eq!(data, ranges);
    // Out again, into a format of its own, from a snapshot, while the volume changes.
    rig.snapshot(id, "s");
    run("qemu-io", &["-f", "raw", "-c", "write -P 1 0 128M", &uri]);
    let qcow = rig.path("out.qcow2");
    let qcow = qcow.to_str().unwrap();
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", "-m", "8", &rig.uri("v@s"), qcow]);
    run("qemu-img", &["check", qcow]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", raw, qcow]);
    assert_eq!(output("qemu-img", &["compare", "-f", "raw", "-F", "raw", raw, &uri]).status.code(), Some(1));
    rig.end();
}

#[test]
fn qemu_io_patterns_read_back_at_any_alignment() {
    if !installed(&["qemu-io"]) {
        return;
    }
    let rig = Rig::new();
    let id = rig.volume("v", 64 * MIB);
    rig.snapshot(id, "s");
    let io = |export: &str, commands: &[&str]| {
        let mut args = vec!["-f", "raw", "-t", "writeback", "-d", "unmap"];
        commands.iter().for_each(|c| args.extend(["-c", c]));
        let uri = rig.uri(export);
        args.push(&uri);
        let out = output("qemu-io", &args);
        let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        (out.status.success() && !said.contains("verification failed") && !said.contains("failed:"), said)
    };
    let (fine, said) = io(
        "v",
        &[
            "write -P 0x11 0 3M",
            "write -P 0x22 1000 3000",
            "read -P 0x11 0 1000",
            "read -P 0x22 1000 3000",
            "read -P 0x11 4000 96",
            "write -f -P 0x33 12M 5M",
            "read -P 0x33 12M 5M",
            "write -z 13M 1M",
            "read -P 0 13M 1M",
            "write -z -u 14M 1M",
            "read -P 0 14M 1M",
            "discard 15M 1M",
            "read -P 0 15M 1M",
            "read -P 0x33 16M 1M",
            "aio_write -P 0x44 20M 1M",
            "aio_write -P 0x55 21M 1M",
            "aio_write -P 0x66 22M 1M",
            "aio_flush",
            "read -P 0x44 20M 1M",
            "read -P 0x55 21M 1M",
            "read -P 0x66 22M 1M",
            "flush",
        ],
    );
    assert!(fine, "{said}");
    let (fine, said) = io("v", &["read -P 0x77 0 512"]);
    assert!(!fine, "a wrong pattern is noticed: {said}");
    let (fine, said) = io("v@s", &["write 0 512"]);
    assert!(!fine, "a snapshot cannot be written: {said}");
    rig.end();
}

#[test]
fn nbdcopy_copies_both_ways_over_several_connections() {
    if !installed(&["nbdcopy"]) {
        return;
    }
    let rig = Rig::new();
    rig.volume("v", 128 * MIB);
    let (raw, _) = rig.image("raw", 128 * MIB);
    let back = rig.path("back");
    let args = ["--connections=8", "--requests=32", "--threads=4", "--flush"];
    for (to, from) in [(rig.uri("v"), rig.tcp_uri("v")), (rig.tcp_uri("v"), rig.uri("v"))] {
        run("nbdcopy", &[&args[..], &[raw.to_str().unwrap(), &to]].concat());
        run("nbdcopy", &[&args[..], &[&from, back.to_str().unwrap()]].concat());
        assert!(same(&raw, &back));
        // With room made for everything, and from one volume to another.
        rig.pool.create_volume(VolumeSpec::blank(128 * MIB).name(format!("w{}", to.len()))).unwrap();
        let other = rig.uri(&format!("w{}", to.len()));
        run("nbdcopy", &[&args[..], &["--allocated", &from, &other]].concat());
        run("nbdcopy", &[&args[..], &[&other, back.to_str().unwrap()]].concat());
        assert!(same(&raw, &back));
    }
    rig.end();
}

#[test]
fn nbdinfo_lists_what_there_is_and_maps_what_has_changed() {
    if !installed(&["nbdinfo", "qemu-io"]) {
        return;
    }
    let rig = Rig::new();
    let id = rig.volume("v", 64 * MIB);
    rig.volume("w", 32 * MIB);
    run("qemu-io", &["-f", "raw", "-c", "write -P 1 0 8M", &rig.uri("v")]);
    rig.snapshot(id, "s");
    run("qemu-io", &["-f", "raw", "-c", "write -P 2 4M 64k", "-c", "write -P 2 40M 4k", &rig.uri("v")]);
    let list = json("nbdinfo", &["--list", "--json", &rig.uri("")]);
    assert_eq!(
        (&list["protocol"], &list["structured"]),
        (&Value::from("newstyle-fixed"), &Value::from(true))
    );
    let mut exports: Vec<(&str, u64, bool)> = list["exports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| {
            for ability in ["can_cache", "can_df", "can_fast_zero", "can_flush", "can_fua", "can_multi_conn"]
            {
                assert_eq!(e[ability], true, "{ability}");
            }
            let sizes = ["block_size_minimum", "block_size_preferred", "block_size_maximum"];
            assert_eq!(sizes.map(|s| e[s].as_u64().unwrap()), [1, 4096, 32 * MIB]);
            let size = e["export-size"].as_u64().unwrap();
            (e["export-name"].as_str().unwrap(), size, e["is_read_only"].as_bool().unwrap())
        })
        .collect();
    exports.sort();
    assert_eq!(exports, [("v", 64 * MIB, false), ("v@s", 64 * MIB, true), ("w", 32 * MIB, false)]);
    let map = json("nbdinfo", &["--map=qemu:dirty-bitmap:v@s", "--json", &rig.uri("v")]);
    let dirty: Vec<(u64, u64)> = map
        .as_array()
        .unwrap()
        .iter()
        .filter(|e| e["type"] == 1)
        .map(|e| (e["offset"].as_u64().unwrap(), e["length"].as_u64().unwrap()))
        .collect();
    assert_eq!(dirty, [(4 * MIB, 65_536), (40 * MIB, 4096)]);
    // The way in which backup programs read a dirty bitmap through qemu.
    let opts = format!(
        "driver=nbd,server.type=unix,server.path={},export=v,x-dirty-bitmap=qemu:dirty-bitmap:v@s",
        rig.path("s").display()
    );
    let map = json("qemu-img", &["map", "--output=json", "--image-opts", &opts]);
    let dirty: Vec<u64> = map
        .as_array()
        .unwrap()
        .iter()
        .filter(|e| e["data"] == false)
        .map(|e| e["start"].as_u64().unwrap())
        .collect();
    assert_eq!(dirty, [4 * MIB, 40 * MIB]);
    rig.end();
}

#[test]
fn fio_verifies_what_it_wrote_while_snapshots_come_and_go() {
    if !installed(&["fio"]) {
        return;
    }
    if !run("fio", &["--enghelp"]).contains("nbd") {
        eprintln!("\n*** SKIPPED: THIS fio HAS NO NBD ENGINE ***\n");
        return;
    }
    let rig = Rig::new();
    let id = rig.volume("v", 256 * MIB);
    let done = AtomicBool::new(false);
    let snapshots = thread::scope(|scope| {
        let (rig, done) = (&rig, &done);
        let snapshots = scope.spawn(move || {
            let mut made = 0;
            while !done.load(Ordering::SeqCst) {
                let snapshot = rig.snapshot(id, "passing");
                thread::sleep(Duration::from_millis(20));
                rig.pool.delete_snapshot(snapshot).unwrap().wait().unwrap();
                made += 1;
            }
            made
        });
        let uri = format!("--uri={}", rig.uri("v"));
        let args = [
            "--ioengine=nbd",
            &uri,
            "--verify=crc32c",
            "--verify_fatal=1",
            "--randrepeat=1",
            "--size=64m",
            "--offset_increment=64m",
            "--minimal",
            "--verify_state_save=0",
        ];
        let jobs = [
            &["--name=random", "--rw=randrw", "--bs=4k", "--iodepth=32", "--numjobs=2", "--fsync=256"][..],
            &["--name=uneven", "--rw=randwrite", "--bsrange=512-128k", "--bs_unaligned", "--iodepth=16"],
            &["--name=run", "--rw=write", "--bs=1m", "--iodepth=8", "--numjobs=4"],
            // Writes what it has just trimmed: two requests for the same bytes, which may not be in flight at once.
            &["--name=trim", "--rw=randtrimwrite", "--bs=16k", "--iodepth=1"],
        ];
        let said: Vec<_> = jobs.iter().map(|job| output("fio", &[&args[..], job].concat())).collect();
        done.store(true, Ordering::SeqCst);
        for out in said {
            let errors = String::from_utf8_lossy(&out.stderr);
            assert!(out.status.success() && !errors.contains("verify"), "{errors}");
        }
        snapshots.join().unwrap()
    });
    println!("fio: {snapshots} snapshots came and went");
    rig.end();
}

// ---- A file system -------------------------------------------------------------------------------------------------

/// An export as a file, through nbdfuse.
struct Fuse {
    folder: PathBuf,
    process: std::process::Child,
}

impl Fuse {
    /// `None` where that is not allowed.
    fn mount(rig: &Rig, export: &str) -> Option<Self> {
        let folder = rig.path("fuse");
        fs::create_dir_all(&folder).unwrap();
        let mut process =
            Command::new("nbdfuse").arg(&folder).arg(rig.uri(export)).spawn().expect("nbdfuse is installed");
        while !folder.join("nbd").exists() {
            if process.try_wait().unwrap().is_some() {
                return None;
            }
            thread::yield_now();
        }
        Some(Self { folder, process })
    }

    fn file(&self) -> String {
        self.folder.join("nbd").to_str().unwrap().into()
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        let _ = Command::new("fusermount3").arg("-u").arg(&self.folder).status();
        let _ = self.process.wait();
    }
}

/// A mounted file system.
struct Mount(PathBuf);

impl Mount {
    fn new(rig: &Rig, image: &str) -> Option<Self> {
        let folder = rig.path("mnt");
        fs::create_dir_all(&folder).unwrap();
        let out = output("mount", &["-o", "loop", image, folder.to_str().unwrap()]);
        out.status.success().then_some(Self(folder))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

fn content(number: usize, version: u8) -> Vec<u8> {
    (0..1 + number * 7919 % 100_000).map(|i| (i as u8).wrapping_mul(31) ^ number as u8 ^ version).collect()
}

fn write_files(folder: &Path, numbers: std::ops::Range<usize>, version: u8) {
    for number in numbers {
        let place = folder.join(format!("d{}", number % 10));
        fs::create_dir_all(&place).unwrap();
        fs::write(place.join(format!("f{number}")), content(number, version)).unwrap();
    }
}

fn files_are(folder: &Path, numbers: std::ops::Range<usize>, version: u8) {
    for number in numbers {
        let path = folder.join(format!("d{}/f{number}", number % 10));
        assert!(fs::read(&path).unwrap() == content(number, version), "{}", path.display());
    }
}

#[test]
fn an_ext4_file_system_in_use_is_snapshotted_rolled_back_and_clean() {
    if !installed(&["nbdfuse", "mkfs.ext4", "e2fsck", "mount", "fusermount3"]) {
        return;
    }
    let skip = |what: &str| eprintln!("\n*** SKIPPED: {what} IS NOT PERMITTED HERE ***\n");
    let rig = Rig::new();
    let id = rig.volume("v", 256 * MIB);
    let Some(fuse) = Fuse::mount(&rig, "v") else { return skip("A FUSE MOUNT") };
    run("mkfs.ext4", &["-F", "-q", &fuse.file()]);
    let Some(mount) = Mount::new(&rig, &fuse.file()) else { return skip("A LOOP MOUNT") };
    write_files(&mount.0, 0..200, 1);
    run("sync", &["-f", mount.0.to_str().unwrap()]);
    // The snapshot is taken in the middle of further writing.
    let begun = AtomicBool::new(false);
    let snapshot = thread::scope(|scope| {
        let (mount, begun) = (&mount, &begun);
        let writing = scope.spawn(move || {
            for number in 200..400 {
                write_files(&mount.0, number..number + 1, 2);
                begun.store(true, Ordering::SeqCst);
            }
        });
        while !begun.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        let snapshot = rig.snapshot(id, "live");
        writing.join().unwrap();
        snapshot
    });
    // On with it: other content, deletions, all of it on disk.
    write_files(&mount.0, 0..150, 3);
    fs::remove_dir_all(mount.0.join("d9")).unwrap();
    run("sync", &["-f", mount.0.to_str().unwrap()]);
    files_are(&mount.0, 0..9, 3);
    drop(mount);
    run("e2fsck", &["-f", "-n", &fuse.file()]);
    drop(fuse);

    rig.pool.rollback_with(snapshot, RollbackOptions::new().live(true)).unwrap();
    let fuse = Fuse::mount(&rig, "v").unwrap();
    // Mounting replays the journal, as after a power cut at the moment of the snapshot.
    let mount = Mount::new(&rig, &fuse.file()).unwrap();
    files_are(&mount.0, 0..200, 1);
    drop(mount);
    run("e2fsck", &["-f", "-n", &fuse.file()]);
    drop(fuse);
    rig.end();
}

#[test]
fn an_ext4_image_goes_in_and_out_and_back_without_any_mount() {
    if !installed(&["qemu-img", "nbdcopy", "mkfs.ext4", "debugfs", "e2fsck"]) {
        return;
    }
    let rig = Rig::new();
    let id = rig.volume("v", 64 * MIB);
    let (files, image) = (rig.path("files"), rig.path("image"));
    write_files(&files, 0..200, 1);
    File::create(&image).unwrap().set_len(64 * MIB).unwrap();
    let (image, files) = (image.to_str().unwrap(), files.to_str().unwrap());
    run("mkfs.ext4", &["-F", "-q", "-d", files, image]);
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", image, &rig.uri("v")]);
    let snapshot = rig.snapshot(id, "s");
    // Changed outside, and brought back in.
    let changed = rig.path("changed");
    let changed = changed.to_str().unwrap();
    run("nbdcopy", &["--connections=4", &rig.uri("v"), changed]);
    run("debugfs", &["-w", "-R", "rm d3/f13", changed]);
    run("debugfs", &["-w", "-R", &format!("write {files}/d4/f14 another"), changed]);
    run("nbdcopy", &["--connections=4", changed, &rig.uri("v")]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", changed, &rig.uri("v")]);
    run("e2fsck", &["-f", "-n", changed]);

    rig.pool.rollback(snapshot).unwrap();
    let back = rig.path("back");
    let back = back.to_str().unwrap();
    run("nbdcopy", &["--connections=4", &rig.uri("v"), back]);
    run("e2fsck", &["-f", "-n", back]);
    for number in [0, 13, 14, 199] {
        let out = output("debugfs", &["-R", &format!("cat d{}/f{number}", number % 10), back]);
        assert!(out.stdout == content(number, 1), "f{number}");
    }
    assert!(same(Path::new(image), Path::new(back)));
    rig.end();
}
