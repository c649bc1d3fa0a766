//! Reads a whole pool through its public door and compares it with a model.

use std::collections::{BTreeMap, BTreeSet};

use snapvol::{
    AttachOptions, Disk, Error, ExtentKind, Pool, Snapshot, SnapshotQuery, Volume, VolumeId, VolumeQuery,
    VolumeStatus,
};
use xxhash_rust::xxh3::xxh3_64;

use super::bases;
use super::model::{BLOCK, Cell, Digest, HOLE_MARK, Map, Model, ZERO_MARK, zero_hash};

/// All volumes, a few at a time, so that paging is in every test.
pub(crate) fn all_volumes(pool: &Pool) -> Result<Vec<Volume>, Error> {
    let mut volumes = Vec::new();
    let mut query = VolumeQuery::new().limit(3);
    loop {
        let page = pool.list_volumes(&query)?;
        volumes.extend(page.items);
        match page.next {
            Some(marker) => query = query.marker(marker),
            None => return Ok(volumes),
        }
    }
}

pub(crate) fn all_snapshots(pool: &Pool) -> Result<Vec<Snapshot>, Error> {
    let mut snapshots = Vec::new();
    let mut query = SnapshotQuery::new().limit(3);
    loop {
        let page = pool.list_snapshots(&query)?;
        snapshots.extend(page.items);
        match page.next {
            Some(marker) => query = query.marker(marker),
            None => return Ok(snapshots),
        }
    }
}

pub(crate) fn read_all(disk: &Disk) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0xee; disk.size_bytes() as usize];
    disk.read_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// What [`Cell::mark`] says of each block: the hash of its bytes, or that it is a hole or a zero extent.
fn marks(disk: &Disk) -> Result<Vec<u64>, Error> {
    let bytes = read_all(disk)?;
    let mut marks = vec![None; bytes.len() / BLOCK];
    for extent in disk.extents(0..bytes.len() as u64) {
        let extent = extent?;
        let blocks = (extent.range.start / BLOCK as u64) as usize..(extent.range.end / BLOCK as u64) as usize;
        let mark = match extent.kind {
            ExtentKind::Hole => HOLE_MARK,
            ExtentKind::Zero => ZERO_MARK,
            _ => continue,
        };
        let inside = bytes[blocks.start * BLOCK..blocks.end * BLOCK].chunks(BLOCK);
        for (found, block) in marks[blocks].iter_mut().zip(inside) {
            // Cheaper than a hash: most blocks of most media are such.
            assert!(block == [0; BLOCK], "a {:?} at {:?} does not read zero", extent.kind, extent.range);
            *found = Some(mark);
        }
    }
    let marked = marks.into_iter().zip(bytes.chunks(BLOCK));
    Ok(marked.map(|(mark, block)| mark.unwrap_or_else(|| xxh3_64(block))).collect())
}

/// The digest of a pool in which nothing is attached; equals [`Model::digest`] of the same state.
pub(crate) fn digest(pool: &Pool) -> Result<u64, Error> {
    digest_with(pool, &BTreeMap::new())
}

/// The same with the handles of what is attached.
pub(crate) fn digest_with(pool: &Pool, disks: &BTreeMap<VolumeId, Disk>) -> Result<u64, Error> {
    bases::supply_all(pool)?;
    let mut digest = Digest::default();
    let mut volumes = all_volumes(pool)?;
    volumes.sort_by_key(|v| v.id);
    for volume in volumes {
        let marks = match disks.get(&volume.id) {
            Some(disk) => marks(disk)?,
            None => marks(&pool.attach(volume.id, AttachOptions::default().read_only(true))?)?,
        };
        let name = volume.name.unwrap_or_default();
        digest.volume(volume.id, &name, marks.into_iter());
    }
    let mut snapshots = all_snapshots(pool)?;
    snapshots.sort_by_key(|s| s.id);
    for snapshot in snapshots {
        let disk = pool.attach_snapshot(snapshot.id)?;
        let name = snapshot.name.unwrap_or_default();
        digest.snapshot(snapshot.id, snapshot.volume, &name, snapshot.held, marks(&disk)?.into_iter());
    }
    for base in pool.list_bases()? {
        digest.base(base.id, base.size_bytes as usize / BLOCK);
    }
    Ok(digest.finish())
}

/// Whether everything of a damaged pool that can still be read is of this state: what is missing is a typed error.
pub(crate) fn shows_nothing_else(pool: &Pool, model: &Model) -> bool {
    let (volumes, snapshots) = (all_volumes(pool), all_snapshots(pool));
    let damaged = |error: &Error| matches!(error, Error::Corrupt(_));
    let volumes_fit = match &volumes {
        Ok(found) => {
            found.iter().map(|v| v.id).collect::<BTreeSet<_>>() == model.volumes.keys().copied().collect()
        }
        Err(error) => damaged(error),
    };
    let snapshots_fit = match &snapshots {
        Ok(found) => {
            found.iter().map(|s| s.id).collect::<BTreeSet<_>>() == model.snapshots.keys().copied().collect()
        }
        Err(error) => damaged(error),
    };
    let volume_fits = |v: &Volume| {
        let disk = pool.attach(v.id, AttachOptions::default().read_only(true));
        model.volumes.get(&v.id).is_some_and(|expected| {
            disk.map_or_else(|e| damaged(&e), |disk| blocks_fit(&disk, &expected.map, &damaged))
        })
    };
    let snapshot_fits = |s: &Snapshot| {
        model.snapshots.get(&s.id).is_some_and(|expected| {
            let disk = pool.attach_snapshot(s.id);
            disk.map_or_else(|e| damaged(&e), |disk| blocks_fit(&disk, &expected.map, &damaged))
        })
    };
    volumes_fit
        && snapshots_fit
        && volumes.unwrap_or_default().iter().all(volume_fits)
        && snapshots.unwrap_or_default().iter().all(snapshot_fits)
}

fn blocks_fit(disk: &Disk, map: &Map, damaged: &dyn Fn(&Error) -> bool) -> bool {
    let mut bytes = vec![0xee; BLOCK];
    disk.size_bytes() == map.size_bytes()
        && map.cells().iter().enumerate().all(|(index, cell)| {
            match disk.read_at(&mut bytes, (index * BLOCK) as u64) {
                Ok(()) => xxh3_64(&bytes) == cell.hash(),
                Err(error) => damaged(&error),
            }
        })
}

/// The differences between a pool and a model in words, for the message of a failed test.
pub(crate) fn differences(pool: &Pool, model: &Model) -> Vec<String> {
    let mut out = Vec::new();
    let volumes: BTreeMap<_, _> = all_volumes(pool).unwrap().into_iter().map(|v| (v.id, v)).collect();
    let snapshots: BTreeMap<_, _> = all_snapshots(pool).unwrap().into_iter().map(|s| (s.id, s)).collect();
    for (id, expected) in &model.volumes {
        let Some(found) = volumes.get(id) else {
            out.push(format!("volume {id} ({}) is missing", expected.name));
            continue;
        };
        if found.name.as_deref() != Some(&expected.name) {
            out.push(format!("volume {id} has name {:?}, not {}", found.name, expected.name));
        }
        match pool.attach(*id, AttachOptions::default().read_only(true)).and_then(|disk| read_all(&disk)) {
            Ok(bytes) => {
                map_differences(&mut out, &format!("volume {}", expected.name), &bytes, &expected.map)
            }
            Err(error) => out.push(format!("volume {}: {error:?}", expected.name)),
        }
    }
    for (id, expected) in &model.snapshots {
        let Some(found) = snapshots.get(id) else {
            out.push(format!("snapshot {id} ({}) is missing", expected.name));
            continue;
        };
        if (found.held, found.volume) != (expected.held, expected.volume) {
            out.push(format!("snapshot {} is {found:?}, held must be {}", expected.name, expected.held));
        }
        match pool.attach_snapshot(*id).and_then(|disk| read_all(&disk)) {
            Ok(bytes) => {
                map_differences(&mut out, &format!("snapshot {}", expected.name), &bytes, &expected.map);
            }
            Err(error) => out.push(format!("snapshot {}: {error:?}", expected.name)),
        }
    }
    out.extend(
        volumes.keys().filter(|id| !model.volumes.contains_key(id)).map(|id| format!("volume {id} is extra")),
    );
    out.extend(
        snapshots
            .keys()
            .filter(|id| !model.snapshots.contains_key(id))
            .map(|id| format!("snapshot {id} is extra")),
    );
    out
}

fn map_differences(out: &mut Vec<String>, what: &str, bytes: &[u8], map: &Map) {
    if bytes.len() as u64 != map.size_bytes() {
        out.push(format!("{what} has {} bytes, not {}", bytes.len(), map.size_bytes()));
    }
    for (index, (found, expected)) in bytes.chunks(BLOCK).zip(map.cells()).enumerate() {
        if xxh3_64(found) != expected.hash() {
            let kind = match expected {
                Cell::Hole => "hole",
                Cell::Zero => "zero",
                Cell::Data(_) => "data",
            };
            let zero = found.iter().all(|&b| b == 0);
            out.push(format!("{what} block {index} ({kind}) differs; what is read is zero: {zero}"));
        }
    }
}

/// Everything a user can see, against the model. `disks` are the handles of the attached volumes.
pub(crate) fn assert_equals(pool: &Pool, model: &Model, disks: &BTreeMap<VolumeId, Disk>) {
    let bases = pool.list_bases().unwrap();
    assert_eq!(
        bases.iter().map(|base| (base.id, base.size_bytes)).collect::<Vec<_>>(),
        model.bases.iter().map(|(id, base)| (*id, (base.blocks() * BLOCK) as u64)).collect::<Vec<_>>(),
        "bases"
    );
    let volumes = all_volumes(pool).unwrap();
    let listed: BTreeSet<_> = volumes.iter().map(|v| v.id).collect();
    assert_eq!(listed.len(), volumes.len(), "a volume is listed twice");
    assert_eq!(listed, model.volumes.keys().copied().collect(), "volumes");
    for volume in &volumes {
        let expected = &model.volumes[&volume.id];
        assert_eq!(volume.name.as_deref(), Some(expected.name.as_str()));
        assert_eq!(volume.size_bytes, expected.map.size_bytes());
        let attached = model.attached.contains(&volume.id);
        assert_eq!(volume.status, if attached { VolumeStatus::InUse } else { VolumeStatus::Available });
        assert_eq!(volume.snapshot_count, model.snapshots_of(volume.id).len() as u64, "snapshot_count");
        match disks.get(&volume.id) {
            Some(disk) => assert_disk(disk, &expected.map, &expected.name),
            None => {
                let disk = pool.attach(volume.id, AttachOptions::default().read_only(true)).unwrap();
                assert_disk(&disk, &expected.map, &expected.name);
            }
        }
    }
    let snapshots = all_snapshots(pool).unwrap();
    let listed: BTreeSet<_> = snapshots.iter().map(|s| s.id).collect();
    assert_eq!(listed.len(), snapshots.len(), "a snapshot is listed twice");
    assert_eq!(listed, model.snapshots.keys().copied().collect(), "snapshots");
    for snapshot in &snapshots {
        let expected = &model.snapshots[&snapshot.id];
        assert_eq!(snapshot.name.as_deref(), Some(expected.name.as_str()));
        assert_eq!(snapshot.size_bytes, expected.map.size_bytes());
        assert_eq!(snapshot.volume, expected.volume);
        assert_eq!(snapshot.volume_exists, model.volumes.contains_key(&snapshot.volume));
        assert_eq!(snapshot.held, expected.held);
        assert_disk(&pool.attach_snapshot(snapshot.id).unwrap(), &expected.map, &expected.name);
    }
}

fn assert_disk(disk: &Disk, map: &Map, what: &str) {
    let found = read_all(disk).unwrap();
    let mut out = Vec::new();
    map_differences(&mut out, what, &found, map);
    assert!(out.is_empty(), "{out:#?}");
    assert_extents(disk, map, what);
}

/// The extents cover the disk without gap or overlap, and each block's kind is what the model says.
fn assert_extents(disk: &Disk, map: &Map, what: &str) {
    let mut at = 0;
    for extent in disk.extents(0..disk.size_bytes()) {
        let extent = extent.unwrap();
        assert_eq!(extent.range.start, at, "{what}: extents leave no gap");
        assert!(extent.range.end > at, "{what}: an extent is never empty");
        for block in extent.range.start / BLOCK as u64..extent.range.end / BLOCK as u64 {
            let fits = match map.cells()[block as usize] {
                Cell::Data(_) => extent.kind == ExtentKind::Data,
                Cell::Zero => extent.kind == ExtentKind::Zero,
                Cell::Hole => extent.kind == ExtentKind::Hole,
            };
            assert!(fits, "{what}: block {block} shows as {:?}", extent.kind);
        }
        at = extent.range.end;
    }
    assert_eq!(at, disk.size_bytes(), "{what}: extents cover the disk");
}

/// Changed ranges between two maps of one family: every block that differs is named, no shared block is.
pub(crate) fn assert_diff(
    changes: impl Iterator<Item = snapvol::Result<snapvol::Change>>,
    from: &Map,
    to: &Map,
) {
    // Beyond the second point nothing is reported: there is nothing.
    let blocks = to.blocks();
    let mut changed = vec![false; blocks];
    let mut at = 0;
    for change in changes {
        let range = change.unwrap().range;
        assert!(range.start >= at && range.end > range.start, "changes come in order");
        at = range.end;
        for block in range.start / BLOCK as u64..range.end.div_ceil(BLOCK as u64) {
            changed[block as usize] = true;
        }
    }
    for (block, changed) in changed.into_iter().enumerate() {
        let (old, new) = (from.cells().get(block), to.cells().get(block));
        let hash = |cell: Option<&Cell>| cell.map_or_else(zero_hash, Cell::hash);
        if hash(old) != hash(new) {
            assert!(changed, "block {block} differs and the diff does not name it");
        }
        let shared = match (old, new) {
            (Some(Cell::Data(a)), Some(Cell::Data(b))) => std::sync::Arc::ptr_eq(a, b),
            (Some(Cell::Hole) | None, Some(Cell::Hole) | None) => true,
            (Some(Cell::Zero), Some(Cell::Zero)) => true,
            _ => false,
        };
        assert!(!(shared && changed), "block {block} is shared and the diff names it");
    }
}

/// Bytes that come back when these objects go, with what the pool has of the bases that go along.
pub(crate) fn frees(pool: &Pool, model: &Model, ids: &[uuid::Uuid]) -> u64 {
    let bases = model.bases_going(ids).into_iter();
    // In a pool that fails the deletion fails as well, and nobody looks at the figure.
    let held = bases.map(|id| pool.base(id).map_or(0, |base| base.held_bytes));
    model.exclusive_bytes(ids) + held.sum::<u64>()
}

/// Space adds up, object by object and in all. Nothing may be on its way back.
pub(crate) fn assert_space(pool: &Pool, model: &Model) {
    let block = BLOCK as u64;
    for (id, volume) in &model.volumes {
        let space = pool.volume_space(*id).unwrap();
        assert_eq!(space.virtual_bytes, volume.map.size_bytes());
        assert_eq!(space.mapped_bytes, volume.map.data_blocks() as u64 * block, "{}", volume.name);
        assert_eq!(space.exclusive_bytes, frees(pool, model, &[id.raw()]), "{}", volume.name);
        let mut ids = vec![id.raw()];
        ids.extend(model.snapshots_of(*id).iter().map(|id| id.raw()));
        let plan = pool.plan_delete(*id, snapvol::Snapshots::Keep).unwrap();
        assert_eq!(plan.frees_bytes, frees(pool, model, &ids[..1]));
        if model.snapshots_of(*id).iter().all(|id| !model.snapshots[id].held) {
            let plan = pool.plan_delete(*id, snapvol::Snapshots::Delete).unwrap();
            assert_eq!(plan.frees_bytes, frees(pool, model, &ids));
            assert_eq!(plan.snapshots.len() + 1, ids.len());
        }
    }
    for (id, snapshot) in &model.snapshots {
        let space = pool.snapshot_space(*id).unwrap();
        assert_eq!(space.virtual_bytes, snapshot.map.size_bytes());
        assert_eq!(space.mapped_bytes, snapshot.map.data_blocks() as u64 * block, "{}", snapshot.name);
        assert_eq!(space.exclusive_bytes, frees(pool, model, &[id.raw()]), "{}", snapshot.name);
        if !snapshot.held {
            let plan = pool.plan_delete_snapshot(*id).unwrap();
            assert_eq!(plan.frees_bytes, frees(pool, model, &[id.raw()]));
        }
    }
    let space = pool.space().unwrap();
    let held: u64 = pool.list_bases().unwrap().iter().map(|base| base.held_bytes).sum();
    assert_eq!(space.used_bytes, model.data_bytes() + held, "{space:?}");
    assert_eq!(space.used_bytes + space.metadata_bytes + space.free_bytes, space.total_bytes, "{space:?}");
}

/// Diffs between the objects of each family, and what each has allocated.
pub(crate) fn assert_diffs(pool: &Pool, model: &Model) {
    let volumes = model.volumes.iter().map(|(id, v)| (snapvol::Point::from(*id), v.family, &v.map));
    let snapshots = model.snapshots.iter().map(|(id, s)| (snapvol::Point::from(*id), s.family, &s.map));
    let all: Vec<_> = volumes.chain(snapshots).collect();
    for (index, (point, family, map)) in all.iter().enumerate() {
        let blank = Map::blank(map.blocks());
        for change in pool.allocated(*point).unwrap() {
            let change = change.unwrap();
            for block in change.range.start / BLOCK as u64..change.range.end / BLOCK as u64 {
                assert!(!matches!(map.cells()[block as usize], Cell::Hole), "block {block} is a hole");
            }
        }
        assert_diff(pool.allocated(*point).unwrap(), &blank, map);
        // Two partners each are enough; over many pools every pair comes up.
        for (other, other_family, other_map) in all.iter().cycle().skip(index + 1).take(2) {
            if family == other_family {
                assert_diff(pool.diff(*point, *other).unwrap(), map, other_map);
            }
        }
    }
}
