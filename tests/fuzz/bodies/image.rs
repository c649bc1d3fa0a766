//! Any bytes as a pool, opened and used.
//!
//! An input says from which image to start (an empty one, a closed or a killed pool of the smallest
//! geometry), what to change in it, and whether checksums are made right afterwards:
//!
//! | bytes | meaning |
//! |---|---|
//! | 1 | bits 0-2: the image (modulo 3); bit 3: repair the checksums; bit 4: open for reading only; bit 5: go on without the newest commit |
//! | 1 + ... | changes: a code (modulo 6), then 0: u16 block, u16 place in it, u8 length, bytes; 1: u16 block, u16 place, u8 a notable number of 8 bytes; 2: u16 block, u16 place, u8 to add to the byte; 3: u16 from block, u16 to block; 4: u16 block of zeroes; 5: u16 length in blocks, u8 sectors more |
//!
//! Blocks count among those that the image uses, so that few changes are wasted.

use std::sync::{Arc, OnceLock};

use snapvol::{
    AttachOptions, Background, CheckOptions, Error, OpenOptions, Point, Pool, SequentialIds, SnapshotSpec,
    Snapshots, StepClock, VolumeSpec,
};

use super::repair::repair;
use super::{Input, Watched};
use crate::common::damage::{End, Subject};
use crate::common::observe;

const BLOCK: usize = 4096;
/// Longest image that an input can make.
const MOST_BLOCKS: usize = 1024;
/// Of a volume that says it is longer only this much is read.
const MOST_READ: usize = 1 << 20;

/// Images to start from, and the blocks of each that hold anything.
fn images() -> &'static [(Vec<u8>, Vec<usize>)] {
    static IMAGES: OnceLock<Vec<(Vec<u8>, Vec<usize>)>> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let subjects = [Subject::new(End::Closed), Subject::new(End::Killed)];
        let mut all = vec![(Vec::new(), Vec::new())];
        all.extend(subjects.iter().map(|subject| (subject.medium.view(), subject.used_blocks())));
        all
    })
}

/// The image that an input describes.
fn build(input: &mut Input<'_>, flags: u8) -> Vec<u8> {
    let images = images();
    let (base, used) = &images[flags as usize % 8 % images.len()];
    let mut image = base.clone();
    while !input.is_empty() {
        let code = input.u8() % 6;
        if code == 5 {
            let blocks = usize::from(input.u16()) % (MOST_BLOCKS + 1);
            image.resize(blocks * BLOCK + usize::from(input.u8()) % 8 * 512, 0);
            continue;
        }
        let whole = (image.len() / BLOCK).max(1);
        let mut block = || {
            let n = usize::from(input.u16());
            if used.is_empty() { n % whole } else { used[n % used.len()].min(whole - 1) }
        };
        let at = block() * BLOCK;
        if code == 3 {
            let to = block() * BLOCK;
            if at.max(to) + BLOCK <= image.len() {
                image.copy_within(at..at + BLOCK, to);
            }
            continue;
        }
        let place = at + if code == 4 { 0 } else { usize::from(input.u16()) % BLOCK };
        let put = |image: &mut Vec<u8>, bytes: &[u8]| {
            for (to, from) in image.iter_mut().skip(place).zip(bytes) {
                *to = *from;
            }
        };
        match code {
            0 => {
                let len = input.u8();
                put(&mut image, input.bytes(len.into()));
            }
            1 => {
                let notable = [0, 1, u64::MAX, 1 << 63, u64::from(u32::MAX), 1 << 48, (1 << 48) - 1, 1 << 32];
                put(&mut image, &notable[usize::from(input.u8()) % notable.len()].to_le_bytes());
            }
            2 => {
                let more = input.u8();
                if let Some(byte) = image.get_mut(place) {
                    *byte = byte.wrapping_add(more);
                }
            }
            _ => put(&mut image, &[0; BLOCK]),
        }
    }
    image
}

/// Without threads, chance or a clock: equal inputs make equal runs.
pub(super) fn options(user: u64) -> OpenOptions {
    OpenOptions::new()
        .cache_bytes(1 << 20)
        .background(Background::Manual)
        .id_source(Arc::new(SequentialIds::new(90 + user)))
        .clock(Arc::new(StepClock::new(1_700_000_000_000_000, 1)))
}

/// Opens what the input describes, and uses all of it.
pub(crate) fn open(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let flags = input.u8();
    let mut image = build(&mut input, flags);
    if flags & 8 != 0 {
        repair(&mut image);
    }
    let device = Watched::new(image);
    // Twice: what the first user has left is a pool as well.
    for user in 0..2 {
        let options = options(user).read_only(flags & 16 != 0).last_good_commit(flags & 32 != 0);
        let Ok(pool) = Pool::open_on(device.again(), options) else { continue };
        use_all(&pool);
        let _ = pool.close();
    }
}

/// Goes through every door of the pool. Errors are fine, of any kind but one: `InvalidArgument` says that we were
/// wrong, and we were not.
pub(crate) fn use_all(pool: &Pool) {
    let ours = |error: &Error| assert!(!matches!(error, Error::InvalidArgument { .. }), "{error:?}");
    let volumes = observe::all_volumes(pool).inspect_err(ours).unwrap_or_default();
    let snapshots = observe::all_snapshots(pool).inspect_err(ours).unwrap_or_default();
    for volume in volumes.iter().take(8) {
        let Ok(disk) = pool.attach(volume.id, AttachOptions::default()) else { continue };
        let mut buf = vec![0; (disk.size_bytes() as usize).min(MOST_READ)];
        let _ = disk.read_at(&mut buf, 0).inspect_err(ours);
        let _ = disk.extents(0..buf.len() as u64).take(10_000).count();
        let len = buf.len().min(5_000);
        let _ = disk.write_at(&buf[..len / 2], (len / 3) as u64).inspect_err(ours);
        let _ = disk.discard(0, 4096.min(buf.len() as u64)).inspect_err(ours);
        let _ = disk.write_zeroes(0, 4096.min(buf.len() as u64)).inspect_err(ours);
        let _ = disk.flush();
        let _ = pool.create_snapshot(volume.id, SnapshotSpec::new().force(true)).inspect_err(ours);
    }
    for snapshot in snapshots.iter().take(8) {
        if let Ok(disk) = pool.attach_snapshot(snapshot.id) {
            let mut buf = vec![0; (disk.size_bytes() as usize).min(MOST_READ)];
            let _ = disk.read_at(&mut buf, 0).inspect_err(ours);
        }
        if let Some(volume) = volumes.first()
            && let Ok(diff) = pool.diff(Point::from(snapshot.id), Point::from(volume.id))
        {
            let _ = diff.take(10_000).count();
        }
        let _ = pool.create_volume(VolumeSpec::from_snapshot(snapshot.id));
    }
    let _ = pool.flush();
    let _ = pool.check(CheckOptions::default(), &mut |_| {});
    let _ = pool.scrub(CheckOptions::default(), &mut |_| {});
    let _ = pool.checkpoint();
    for snapshot in snapshots.iter().take(4) {
        let _ = pool.rollback(snapshot.id);
        let _ = pool.delete_snapshot(snapshot.id).and_then(|deletion| deletion.wait());
    }
    for volume in volumes.iter().take(4) {
        let _ = pool.delete_volume(volume.id, Snapshots::Keep).and_then(|deletion| deletion.wait());
    }
    for _ in 0..50 {
        if !pool.step(16).unwrap_or(false) {
            break;
        }
    }
}

/// A whole pool is left as it is: the repair knows the format.
pub(crate) fn assert_repair_changes_nothing() {
    for (image, _) in images().iter().skip(1) {
        let mut again = image.clone();
        repair(&mut again);
        let differs = (0..image.len()).find(|&at| image[at] != again[at]);
        assert_eq!(differs, None, "the repair changed this byte of a whole pool");
    }
}
