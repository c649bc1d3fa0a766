//! A pool with everything in it, and what must be true of it when part of its medium is not what was written.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use snapvol::device::sim::{Fate, SimDevice};
use snapvol::{AttachOptions, CheckOptions, CheckReport, Disk, Error, FindingKind, Pool, Snapshots};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use super::model::{BLOCK, Map, Model};
use super::ops::{Action, Kind, Limits, Op};
use super::rng::Rng;
use super::{Rig, Shape, observe};

const LIMITS: Limits = Limits { volumes: 4, snapshots: 5, blocks: 24 };

/// The operations behind [`pool`]: two families that share nothing, with snapshots, a clone, zero extents, holes
/// and a pending delete.
const OPS: [Op; 20] = {
    const fn op(kind: Kind, a: u32, b: u32, c: u32) -> Op {
        Op::new(kind, a, b, c)
    }
    [
        op(Kind::Create, 0, 15, 0),
        op(Kind::Create, 0, 9, 0),
        op(Kind::Write, 0, 0, 115),
        op(Kind::Write, 1, 0, 75),
        op(Kind::Snapshot, 0, 1, 0),
        op(Kind::Write, 0, 2, 8),
        op(Kind::Write, 0, 5, 0),
        op(Kind::CloneSnapshot, 0, 1, 0),
        op(Kind::WriteZeroes, 1, 7, 0),
        op(Kind::Discard, 0, 9, 0),
        op(Kind::Snapshot, 1, 1, 0),
        op(Kind::Checkpoint, 0, 0, 0),
        op(Kind::Drain, 0, 0, 0),
        op(Kind::Write, 1, 1, 0),
        op(Kind::Write, 2, 3, 0),
        op(Kind::Flush, 0, 0, 0),
        op(Kind::Snapshot, 2, 1, 0),
        op(Kind::DeleteSnapshot, 0, 0, 1),
        op(Kind::Write, 0, 4, 25),
        op(Kind::Flush, 0, 0, 0),
    ]
};

/// How the pool came to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    Closed,
    /// What counts stands in the log; the last flush is proved durable there.
    Killed,
}

/// A pool of the smallest geometry at rest: what is on its medium, what it must show, and what was on its medium
/// at earlier times.
pub(crate) struct Subject {
    pub(crate) end: End,
    pub(crate) medium: SimDevice,
    pub(crate) model: Model,
    pub(crate) earlier: Vec<Vec<u8>>,
}

impl Subject {
    /// The smallest there is: the two pairs of superblocks with 1 MiB between them, the log, and some chunks.
    pub(crate) fn new(end: End) -> Self {
        Self::of_shape(end, Shape::SMALL.limit(5 << 19))
    }

    /// A pool that differs in its UUID alone: the same structures in the same places.
    pub(crate) fn twin(end: End) -> Self {
        Self::of_shape(end, Shape::SMALL.limit(5 << 19).ids(4711))
    }

    fn of_shape(end: End, shape: Shape) -> Self {
        let mut rig = Rig::create(SimDevice::new(), shape).unwrap();
        let mut earlier = Vec::new();
        for (nth, op) in OPS.into_iter().enumerate() {
            let action = rig.resolve(op, LIMITS);
            rig.must(action);
            if nth % 5 == 4 {
                earlier.push(rig.medium.view());
            }
        }
        rig.must(Action::Drain);
        earlier.push(rig.medium.view());
        if end == End::Killed {
            // Something that only the log knows; the last flush is claimed durable by a proof, which is
            // background work.
            let volume = *rig.model.volumes.keys().next().unwrap();
            for (stamp, blocks) in [(901, 3), (902, 1)] {
                rig.must(Action::Write { volume, offset: 0, len: blocks * BLOCK, stamp, fua: false });
                rig.must(Action::Flush);
            }
            let pool = rig.pool();
            assert!(pool.step(1).unwrap() && pool.stats().log_used_blocks > 4, "the log holds what counts");
        }
        let (model, sim) = (rig.model.clone(), rig.medium.clone());
        let medium = match end {
            End::Closed => {
                rig.leave().unwrap().close().unwrap();
                sim.crash(|_| Fate::Lost)
            }
            End::Killed => sim.crash(|_| Fate::Kept),
        };
        Self { end, medium, model, earlier }
    }

    /// A copy of the medium to be damaged.
    pub(crate) fn copy(&self) -> SimDevice {
        self.medium.crash(|_| Fate::Kept)
    }

    /// Numbers of the blocks that hold anything.
    pub(crate) fn used_blocks(&self) -> Vec<usize> {
        let image = self.medium.view();
        let used = |block: &usize| image[block * BLOCK..].iter().take(BLOCK).any(|&byte| byte != 0);
        (0..image.len().div_ceil(BLOCK)).filter(used).collect()
    }
}

/// What became of the damaged pools of one test.
#[derive(Default)]
pub(crate) struct Outcomes {
    pub(crate) cases: AtomicU64,
    /// Nothing was wrong, and where somebody looked nothing was noticed.
    pub(crate) unharmed: AtomicU64,
    /// Bad blocks with which the pool could be opened for reading only.
    pub(crate) refused: Mutex<BTreeSet<u64>>,
    /// With blocks that cannot be read.
    pub(crate) errors: AtomicU64,
    pub(crate) findings: AtomicU64,
}

impl Outcomes {
    /// Prints the counts. Returns the cases, those with errors, and the blocks that made recovery refuse.
    pub(crate) fn tell(&self, test: &str, what: &str) -> [u64; 3] {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let [cases, errors] = [&self.cases, &self.errors].map(get);
        let refused = self.refused.lock().unwrap();
        println!(
            "{test}: {cases} {what}: {} unharmed, {errors} with unreadable blocks, {} with findings; for reading \
             only while one of these is bad: {refused:?}",
            get(&self.unharmed),
            get(&self.findings),
        );
        assert!(get(&self.findings) >= errors);
        [cases, errors, refused.len() as u64]
    }
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// What is done with a damaged pool.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// All of it is read; where that meets an error, check and scrub must say the same.
    Reading,
    /// It is checked, scrubbed and written in any case.
    Everything,
}

/// Places that cannot be read: object and block of it.
type Unreadable = BTreeSet<(Uuid, u64)>;

/// Reads block by block: each is right or `Corrupt`.
fn read(disk: &Disk, id: Uuid, map: &Map, story: &str, unreadable: &mut Unreadable) {
    let mut buf = vec![0xee; BLOCK];
    assert_eq!(disk.size_bytes(), map.size_bytes(), "{story}");
    for (index, cell) in map.cells().iter().enumerate() {
        match disk.read_at(&mut buf, (index * BLOCK) as u64) {
            Ok(()) => {
                assert_eq!(xxh3_64(&buf), cell.hash(), "{story}: block {index} is wrong and nobody says so");
            }
            Err(Error::Corrupt(_)) => drop(unreadable.insert((id, index as u64))),
            Err(error) => panic!("{story}: block {index}: {error:?}"),
        }
    }
}

/// Opens the medium with its one bad block, uses all of it, and holds what can be read, what cannot, and what check
/// and scrub say against each other.
pub(crate) fn survive(
    device: SimDevice,
    model: &Model,
    bad_block: u64,
    use_it: Use,
    story: &str,
    outcomes: &Outcomes,
) {
    add(&outcomes.cases, 1);
    let (pool, writable) = match Pool::open_on(device.clone(), Shape::SMALL.open()) {
        Ok(pool) => (pool, true),
        Err(error) => {
            // Recovery must change a leaf, which has one copy: it cannot write what it does not know. For
            // reading the pool opens all the same.
            assert!(matches!(error, Error::Corrupt(_)), "{story}: open: {error:?}");
            outcomes.refused.lock().unwrap().insert(bad_block);
            let pool = Pool::open_on(device.reopen(), Shape::SMALL.open().read_only(true));
            (pool.unwrap_or_else(|e| panic!("{story}: open for reading: {e:?}")), false)
        }
    };
    let mut unreadable = Unreadable::new();
    let mut families: BTreeMap<u64, u64> = BTreeMap::new();
    let volumes = model.volumes.iter().map(|(id, v)| {
        let attached = pool.attach(*id, AttachOptions::default().read_only(true));
        (id.raw(), &v.map, v.family, attached)
    });
    let snapshots =
        model.snapshots.iter().map(|(id, s)| (id.raw(), &s.map, s.family, pool.attach_snapshot(*id)));
    for (id, map, family, attached) in volumes.chain(snapshots) {
        let before = unreadable.len();
        match attached {
            Ok(disk) => read(&disk, id, map, story, &mut unreadable),
            Err(Error::Corrupt(_)) => unreadable.extend((0..map.blocks() as u64).map(|block| (id, block))),
            Err(error) => panic!("{story}: the newest state must be there: {error:?}"),
        }
        *families.entry(family).or_default() += (unreadable.len() - before) as u64;
    }
    for listed in [
        observe::all_volumes(&pool).map(|v| v.len() == model.volumes.len()),
        observe::all_snapshots(&pool).map(|s| s.len() == model.snapshots.len()),
    ] {
        assert!(matches!(listed, Ok(true) | Err(Error::Corrupt(_))), "{story}: list: {listed:?}");
    }
    let report = |report: Result<CheckReport, Error>| match report {
        Ok(report) => Some(report),
        Err(Error::Corrupt(_)) => None,
        Err(error) => panic!("{story}: {error:?}"),
    };
    if unreadable.is_empty() && use_it == Use::Reading {
        add(&outcomes.unharmed, 1);
        return;
    }
    let checked = report(pool.check(CheckOptions::default(), &mut |_| {}));
    let scrubbed = report(pool.scrub(CheckOptions::default(), &mut |_| {}));
    let silent = |report: &Option<CheckReport>| report.as_ref().is_some_and(|report| report.is_clean());
    let noticed = !silent(&checked) || !silent(&scrubbed);
    // Whatever is bad is a block of data or a leaf, of one family; everything else can be had from elsewhere.
    let harmed = families.values().filter(|&&errors| errors > 0).count();
    assert!(harmed <= 1, "{story}: one bad block took blocks of two families: {families:?}");
    assert!(
        unreadable.is_empty() || noticed,
        "{story}: {unreadable:?} cannot be read and no finding says so"
    );
    if let Some(report) = scrubbed.filter(|_| !unreadable.is_empty()) {
        assert_named(&report, bad_block, &unreadable, story);
    }
    add(&outcomes.errors, u64::from(!unreadable.is_empty()));
    add(&outcomes.findings, u64::from(noticed));
    add(&outcomes.unharmed, u64::from(unreadable.is_empty() && !noticed));
    if writable && use_it == Use::Everything {
        write(&pool, model, story);
    }
}

/// A scrub names the bad block and exactly those whom it belongs to.
fn assert_named(report: &CheckReport, bad_block: u64, unreadable: &Unreadable, story: &str) {
    let Some(finding) = report.findings.iter().find(|finding| finding.corruption.block == bad_block) else {
        panic!("{story}: block {bad_block} is bad and no finding names it: {:#?}", report.findings);
    };
    let owners: Unreadable = finding.owners.iter().map(|owner| (owner.object, owner.lba)).collect();
    match finding.kind {
        FindingKind::BadData => {
            assert_eq!(&owners, unreadable, "{story}: owners, and what cannot be read");
        }
        FindingKind::BadNode => {
            let objects = |places: &Unreadable| places.iter().map(|place| place.0).collect::<BTreeSet<_>>();
            assert_eq!(objects(&owners), objects(unreadable), "{story}: owners of {finding:?}");
        }
        // A page has a second copy, or is computed again: it takes nothing with it.
        other => panic!("{story}: {other:?} took {unreadable:?}"),
    }
}

/// Writing goes on or is refused with a type; what it must not do is panic or damage the rest.
fn write(pool: &Pool, model: &Model, story: &str) {
    let outcome = || -> Result<(), Error> {
        for (stamp, id) in model.volumes.keys().enumerate() {
            let disk = pool.attach(*id, AttachOptions::default())?;
            disk.write_at(&Rng::stamp_bytes(stamp as u64 + 900, 3 * BLOCK + 100), 0)?;
            disk.flush()?;
        }
        pool.checkpoint()?;
        for id in model.snapshots.keys() {
            pool.delete_snapshot(*id)?.wait()?;
        }
        for id in model.volumes.keys() {
            pool.delete_volume(*id, Snapshots::Keep)?.wait()?;
        }
        Ok(())
    };
    if let Err(error) = outcome() {
        assert!(matches!(error, Error::Corrupt(_) | Error::Poisoned), "{story}: {error:?}");
    }
}
