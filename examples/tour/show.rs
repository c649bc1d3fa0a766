//! What the tour prints, and the proof after each step.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use snapvol::{
    AttachOptions, Pool, Progress, Snapshot, SnapshotId, SnapshotQuery, Volume, VolumeId, VolumeQuery,
    VolumeSource,
};

use super::Outcome;
use super::content::{Content, checksum_of};

/// Steps with their times, and every state that must exist.
pub(crate) struct Tour {
    times: Vec<(String, Duration)>,
    volumes: BTreeMap<VolumeId, Content>,
    snapshots: BTreeMap<SnapshotId, Content>,
    proofs: usize,
}

pub(crate) fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

impl Tour {
    pub(crate) fn new() -> Self {
        Self { times: Vec::new(), volumes: BTreeMap::new(), snapshots: BTreeMap::new(), proofs: 0 }
    }

    pub(crate) fn say(&self, text: &str) {
        println!("    {text}");
    }

    /// Runs one step, tells what it is and how long it took.
    pub(crate) fn step<T>(&mut self, what: &str, run: impl FnOnce(&Self) -> Outcome<T>) -> Outcome<T> {
        println!("* {what}");
        let began = Instant::now();
        let outcome = run(self)?;
        self.times.push((what.to_string(), began.elapsed()));
        Ok(outcome)
    }

    /// A bar for something long. Not shown where the output is not a terminal.
    pub(crate) fn bar(&self, length: u64) -> ProgressBar {
        let style = ProgressStyle::with_template("    {wide_bar} {binary_bytes}/{binary_total_bytes} {eta}");
        ProgressBar::new(length).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
    }

    pub(crate) fn expect_volume(&mut self, id: VolumeId, content: &Content) {
        self.volumes.insert(id, content.clone());
    }

    pub(crate) fn expect_snapshot(&mut self, id: SnapshotId, content: &Content) {
        self.snapshots.insert(id, content.clone());
    }

    pub(crate) fn snapshot(&self, id: SnapshotId) -> Content {
        self.snapshots[&id].clone()
    }

    pub(crate) fn gone_volume(&mut self, id: VolumeId) {
        self.volumes.remove(&id);
    }

    pub(crate) fn gone_snapshot(&mut self, id: SnapshotId) {
        self.snapshots.remove(&id);
    }

    pub(crate) fn proofs(&self) -> usize {
        self.proofs
    }

    /// Reads every volume and snapshot in full and compares its checksum with what it must be; nothing else exists.
    pub(crate) fn prove(&mut self, pool: &Pool) -> Outcome<()> {
        let began = Instant::now();
        let (volumes, snapshots) = all(pool)?;
        let total = volumes.iter().map(|v| v.size_bytes).chain(snapshots.iter().map(|s| s.size_bytes)).sum();
        let bar = self.bar(total);
        let (have, want) = ((volumes.len(), snapshots.len()), (self.volumes.len(), self.snapshots.len()));
        if have != want {
            return Err(format!("(volumes, snapshots): {have:?}, but there must be {want:?}").into());
        }
        let mut compare = |name: &Option<String>, found: u64, expected: Option<&Content>| -> Outcome<()> {
            let expected = expected.ok_or("something exists that must not")?.checksum()?;
            if found != expected {
                return Err(format!("{name:?}: checksum {found:016x}, but it must be {expected:016x}").into());
            }
            self.proofs += 1;
            Ok(())
        };
        for volume in &volumes {
            let disk = pool.attach(volume.id, AttachOptions::default().read_only(true))?;
            compare(&volume.name, checksum_of(&disk)?, self.volumes.get(&volume.id))?;
            bar.inc(volume.size_bytes);
        }
        for snapshot in &snapshots {
            let disk = pool.attach_snapshot(snapshot.id)?;
            compare(&snapshot.name, checksum_of(&disk)?, self.snapshots.get(&snapshot.id))?;
            bar.inc(snapshot.size_bytes);
        }
        bar.finish_and_clear();
        let count = volumes.len() + snapshots.len();
        println!("    = {count} states byte-equal to what they must be");
        self.times.push((format!("  compare {count} states, {} MiB", mib(total)), began.elapsed()));
        Ok(())
    }

    pub(crate) fn timings(&self) {
        println!("\nHow long each step took");
        for (what, time) in &self.times {
            println!("  {:>10.3} ms  {what}", time.as_secs_f64() * 1e3);
        }
    }
}

pub(crate) fn advance(bar: &ProgressBar, progress: &Progress) {
    bar.set_length(progress.total);
    bar.set_position(progress.done);
}

fn all(pool: &Pool) -> Outcome<(Vec<Volume>, Vec<Snapshot>)> {
    Ok((pool.list_volumes(&VolumeQuery::new())?.items, pool.list_snapshots(&SnapshotQuery::new())?.items))
}

/// Prints who came from whom. Oldest first; what has lost its parent stands at the left.
pub(crate) fn family_tree(pool: &Pool) -> Outcome<()> {
    let (mut volumes, mut snapshots) = all(pool)?;
    volumes.reverse();
    snapshots.reverse();
    println!("\nFamily tree");
    let volume_exists = |id: VolumeId| volumes.iter().any(|v| v.id == id);
    let snapshot_exists = |id: SnapshotId| snapshots.iter().any(|s| s.id == id);
    for volume in &volumes {
        let is_root = match volume.source {
            VolumeSource::Snapshot(id) => !snapshot_exists(id),
            VolumeSource::Volume(id) => !volume_exists(id),
            _ => true,
        };
        if is_root {
            show_volume(volume, &volumes, &snapshots, 1);
        }
    }
    for snapshot in snapshots.iter().filter(|s| !s.volume_exists) {
        show_snapshot(snapshot, &volumes, &snapshots, 1);
    }
    println!();
    Ok(())
}

fn name(name: &Option<String>) -> &str {
    name.as_deref().unwrap_or("(no name)")
}

fn show_volume(volume: &Volume, volumes: &[Volume], snapshots: &[Snapshot], depth: usize) {
    println!(
        "{:depth$}{} (volume, {} MiB)",
        "",
        name(&volume.name),
        mib(volume.size_bytes),
        depth = depth * 2
    );
    for snapshot in snapshots.iter().filter(|s| s.volume == volume.id) {
        show_snapshot(snapshot, volumes, snapshots, depth + 1);
    }
    for clone in volumes.iter().filter(|v| v.source == VolumeSource::Volume(volume.id)) {
        show_volume(clone, volumes, snapshots, depth + 1);
    }
}

fn show_snapshot(snapshot: &Snapshot, volumes: &[Volume], snapshots: &[Snapshot], depth: usize) {
    let orphan = if snapshot.volume_exists { "" } else { ", its volume is gone" };
    println!("{:depth$}{} (snapshot{orphan})", "", name(&snapshot.name), depth = depth * 2);
    for clone in volumes.iter().filter(|v| v.source == VolumeSource::Snapshot(snapshot.id)) {
        show_volume(clone, volumes, snapshots, depth + 1);
    }
}

/// Prints what everything takes.
pub(crate) fn space(pool: &Pool) -> Outcome<()> {
    let (volumes, snapshots) = all(pool)?;
    println!("{:<28}{:>14}{:>14}{:>14}", "Space in MiB", "virtual", "mapped", "exclusive");
    let row = |kind: &str, what: &str, space: snapvol::ObjectSpace| {
        let what = format!("  {kind} {what}");
        println!(
            "{what:<28}{:>14}{:>14}{:>14}",
            mib(space.virtual_bytes),
            mib(space.mapped_bytes),
            mib(space.exclusive_bytes)
        );
    };
    for volume in volumes.iter().rev() {
        row("volume", name(&volume.name), pool.volume_space(volume.id)?);
    }
    for snapshot in snapshots.iter().rev() {
        row("snapshot", name(&snapshot.name), pool.snapshot_space(snapshot.id)?);
    }
    let space = pool.space()?;
    println!(
        "  pool: {} data, {} metadata, {} free, {} in all, may grow to {}\n",
        mib(space.used_bytes),
        mib(space.metadata_bytes),
        mib(space.free_bytes),
        mib(space.total_bytes),
        mib(space.limit_bytes)
    );
    Ok(())
}
