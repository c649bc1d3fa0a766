//! The main job from end to end, on a real disk image: `cargo run --release --example tour [IMAGE]`.
//!
//! Imports the image into a pool, takes snapshots, forks it, writes through volume and fork, shows what changed,
//! rolls back, extends, deletes in an awkward order and by cascade, and exports. After every step each state that
//! exists is read in full and compared by checksum with what it must be. Without an image it makes one: an ext4
//! file system with this crate's sources where `mke2fs` is installed, else a generated one.
//!
//! Everything happens in a temporary folder that is removed at the end. No root, no mount, no network.

use std::error::Error;
use std::fs::File;
use std::path::PathBuf;
use std::time::Instant;

use snapvol::{
    AttachOptions, CheckOptions, CreateOptions, OpenOptions, Pool, RollbackOptions, SnapshotSpec, Snapshots,
    VolumeSpec,
};

mod content;
mod image;
mod show;

use content::{Content, Writer};
use show::{Tour, mib};

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let began = Instant::now();
    let folder = tempfile::Builder::new().prefix("snapvol-tour").tempdir()?;
    let mut tour = Tour::new();

    let given = std::env::args_os().nth(1).map(PathBuf::from);
    let (path, what) = match given {
        Some(path) => (path, "the image you gave".to_string()),
        None => tour.step("make a disk image", |_| image::make(folder.path()))?,
    };
    let base = Content::of_file(File::open(&path)?)?;
    tour.say(&format!("{what}: {} MiB", mib(base.size_bytes())));

    // ---- In ------------------------------------------------------------------------------------------------
    let pool_path = folder.path().join("tour.pool");
    let options = CreateOptions::new().limit_bytes(base.size_bytes() * 2 + (256 << 20));
    let pool = tour.step("create the pool", |_| Ok(Pool::create(&pool_path, options)?))?;

    let root = tour.step("import the image, holes left out", |t| image::import(t, &pool, &base, "root"))?;
    let mut root_now = base.clone();
    tour.expect_volume(root, &root_now);
    tour.prove(&pool)?;

    // ---- Snapshot, fork, write on both sides ---------------------------------------------------------------
    let mut writer = Writer::new(2024);
    let imported = tour.step("snapshot root as `imported`", |_| {
        Ok(pool.create_snapshot(root, SnapshotSpec::new().name("imported"))?.id)
    })?;
    tour.expect_snapshot(imported, &base);
    let fork = tour.step("clone `imported` as `fork`", |_| {
        Ok(pool.create_volume(VolumeSpec::from_snapshot(imported).name("fork"))?.id)
    })?;
    let mut fork_now = base.clone();
    tour.expect_volume(fork, &fork_now);

    let root_disk = pool.attach(root, AttachOptions::default())?;
    let fork_disk = pool.attach(fork, AttachOptions::default())?;
    tour.step("write 4,000 random blocks through the fork", |_| {
        writer.blocks(&fork_disk, &mut fork_now, 4_000)
    })?;
    tour.step("write 2,000 unaligned pieces through root", |_| {
        writer.pieces(&root_disk, &mut root_now, 2_000)
    })?;
    tour.step("discard and zero 200 ranges of the fork", |_| writer.zeroes(&fork_disk, &mut fork_now, 200))?;
    tour.step("flush", |_| Ok(pool.flush()?))?;
    tour.expect_volume(root, &root_now);
    tour.expect_volume(fork, &fork_now);

    let both = tour.step("snapshot root and fork at one instant, both attached", |_| {
        let spec = |name: &str| SnapshotSpec::new().name(name).force(true);
        Ok(pool.batch(|b| {
            Ok((b.create_snapshot(root, spec("pair-a"))?.id, b.create_snapshot(fork, spec("pair-b"))?.id))
        })?)
    })?;
    tour.expect_snapshot(both.0, &root_now);
    tour.expect_snapshot(both.1, &fork_now);
    tour.step("write 1,000 more blocks through both", |_| {
        writer.blocks(&root_disk, &mut root_now, 1_000)?;
        writer.blocks(&fork_disk, &mut fork_now, 1_000)
    })?;
    tour.expect_volume(root, &root_now);
    tour.expect_volume(fork, &fork_now);
    drop((root_disk, fork_disk));
    tour.prove(&pool)?;
    show::family_tree(&pool)?;
    show::space(&pool)?;

    // ---- What changed --------------------------------------------------------------------------------------
    let (ranges, bytes) = tour.step("diff from `imported` to the fork", |_| {
        content::diff_is_right(&pool, imported, &base, fork, &fork_now)
    })?;
    tour.say(&format!("{ranges} changed ranges, {} MiB, and every changed block is in them", mib(bytes)));

    // ---- Back ----------------------------------------------------------------------------------------------
    tour.step("roll root back to `imported`", |_| Ok(pool.rollback(imported)?))?;
    root_now = base.clone();
    tour.expect_volume(root, &root_now);
    let fork_disk = pool.attach(fork, AttachOptions::default())?;
    tour.step("roll the attached fork back to `pair-b`, live", |_| {
        Ok(pool.rollback_with(both.1, RollbackOptions::new().live(true))?)
    })?;
    fork_now = tour.snapshot(both.1);
    tour.expect_volume(fork, &fork_now);
    drop(fork_disk);
    tour.prove(&pool)?;

    let larger = base.size_bytes() + (64 << 20);
    tour.step("extend the fork by 64 MiB", |_| Ok(pool.extend(fork, larger)?))?;
    fork_now.extend(larger);
    let fork_disk = pool.attach(fork, AttachOptions::default())?;
    tour.step("write into the new space", |_| writer.tail(&fork_disk, &mut fork_now, base.size_bytes()))?;
    drop(fork_disk);
    tour.expect_volume(fork, &fork_now);
    let twin = tour.step("clone the fork as `twin`", |_| {
        Ok(pool.create_volume(VolumeSpec::from_volume(fork).name("twin"))?.id)
    })?;
    tour.expect_volume(twin, &fork_now);
    let twin_now = fork_now.clone();
    let (root_disk, fork_disk) =
        (pool.attach(root, AttachOptions::default())?, pool.attach(fork, AttachOptions::default())?);
    tour.step("write 3,000 blocks through root and through the fork", |_| {
        writer.blocks(&root_disk, &mut root_now, 3_000)?;
        writer.blocks(&fork_disk, &mut fork_now, 3_000)
    })?;
    drop((root_disk, fork_disk));
    tour.expect_volume(root, &root_now);
    tour.expect_volume(fork, &fork_now);
    tour.prove(&pool)?;

    // ---- Delete in an awkward order ------------------------------------------------------------------------
    tour.step("delete root, of which everything was cloned, keeping its snapshots", |t| {
        let freed = pool.delete_volume(root, Snapshots::Keep)?.wait()?.freed_bytes;
        t.say(&format!("{} MiB back", mib(freed)));
        Ok(())
    })?;
    tour.gone_volume(root);
    tour.step("delete `imported`, the parent of the fork", |t| {
        let plan = pool.plan_delete_snapshot(imported)?;
        let freed = pool.delete_snapshot(imported)?.wait()?.freed_bytes;
        t.say(&format!("{} MiB back, {} MiB planned", mib(freed), mib(plan.frees_bytes)));
        same("freed and planned bytes", freed, plan.frees_bytes)
    })?;
    tour.gone_snapshot(imported);
    tour.prove(&pool)?;
    show::family_tree(&pool)?;
    tour.step("delete the fork and its snapshots by cascade", |t| {
        let plan = pool.plan_delete(fork, Snapshots::Delete)?;
        let deletion = pool.delete_volume(fork, Snapshots::Delete)?;
        let freed = deletion.wait()?.freed_bytes;
        let snapshots = plan.snapshots.len();
        t.say(&format!(
            "with {snapshots} snapshots, {} MiB back, {} MiB planned",
            mib(freed),
            mib(plan.frees_bytes)
        ));
        same("freed and planned bytes", freed, plan.frees_bytes)
    })?;
    tour.gone_volume(fork);
    tour.gone_snapshot(both.1);
    tour.prove(&pool)?;

    // ---- Close, open, out ----------------------------------------------------------------------------------
    tour.step("close the pool", |_| Ok(pool.close()?))?;
    let pool = tour.step("open it again", |_| Ok(Pool::open(&pool_path, OpenOptions::new())?))?;
    tour.prove(&pool)?;
    let exported = folder.path().join("exported.img");
    tour.step("export the twin", |t| image::export(t, &pool, twin, &exported))?;
    let found = Content::of_file(File::open(&exported)?)?.checksum()?;
    same("checksum of the exported file", found, twin_now.checksum()?)?;
    tour.say("the exported file is byte-equal to the twin");
    tour.step("check the structure and scrub every byte", |t| {
        let bar = t.bar(0);
        let check = pool.check(CheckOptions::default(), &mut |p| show::advance(&bar, &p))?;
        let scrub = pool.scrub(CheckOptions::default(), &mut |p| show::advance(&bar, &p))?;
        bar.finish_and_clear();
        let findings = check.findings.len() + scrub.findings.len();
        same("findings", findings, 0)
    })?;
    show::family_tree(&pool)?;
    show::space(&pool)?;
    pool.close()?;

    tour.timings();
    println!(
        "\nEvery state was what it had to be: {} comparisons, {:.1} s in all.",
        tour.proofs(),
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

fn same<T: PartialEq + std::fmt::Display>(what: &str, found: T, expected: T) -> Outcome<()> {
    if found == expected {
        return Ok(());
    }
    Err(format!("{what}: {found}, but it must be {expected}").into())
}
