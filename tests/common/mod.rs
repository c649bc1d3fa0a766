//! What the integration tests share: a model of a pool, operations on both, and a pool that checks itself.
//!
//! Each test file is a crate of its own and uses a part of this.
// Every test binary compiles all of this and uses some of it; what one leaves unused another one needs.
#![allow(dead_code, clippy::unwrap_used)]

pub(crate) mod bases;
pub(crate) mod crash;
pub(crate) mod damage;
pub(crate) mod kill;
pub(crate) mod model;
pub(crate) mod observe;
pub(crate) mod ops;
pub(crate) mod rng;
pub(crate) mod syncs;
pub(crate) mod target;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use snapvol::device::Device;
use snapvol::device::MemoryDevice;
use snapvol::device::sim::SimDevice;
use snapvol::{
    AttachOptions, Background, CheckOptions, CreateOptions, Disk, Error, OpenOptions, Pool, RollbackOptions,
    SequentialIds, SnapshotSpec, StepClock, VolumeId, VolumeSpec,
};

use model::{BLOCK, Model};
use ops::{Action, Limits, Op};
use rng::Rng;

/// A device of which a second handle can be had, as another process would.
pub(crate) trait Medium: Device {
    fn again(&self) -> Self;
}

impl Medium for SimDevice {
    fn again(&self) -> Self {
        self.clone()
    }
}

impl Medium for MemoryDevice {
    fn again(&self) -> Self {
        self.share()
    }
}

/// How a test's pools are made.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) blocks_per_chunk: u64,
    pub(crate) log_bytes: u64,
    pub(crate) limit_bytes: u64,
    pub(crate) cache_bytes: u64,
    pub(crate) host_discard: bool,
    /// Where the ids that a pool gives to itself begin.
    pub(crate) first_id: u64,
}

impl Shape {
    /// The smallest geometry: a whole pool in about 1 MiB.
    pub(crate) const SMALL: Shape = Shape {
        blocks_per_chunk: 64,
        log_bytes: 64 << 10,
        limit_bytes: 4 << 20,
        cache_bytes: 4 << 20,
        host_discard: false,
        first_id: 7,
    };

    pub(crate) fn limit(self, limit_bytes: u64) -> Self {
        Self { limit_bytes, ..self }
    }

    pub(crate) fn cache(self, cache_bytes: u64) -> Self {
        Self { cache_bytes, ..self }
    }

    pub(crate) fn host_discard(self) -> Self {
        Self { host_discard: true, ..self }
    }

    pub(crate) fn ids(self, first_id: u64) -> Self {
        Self { first_id, ..self }
    }

    pub(crate) fn create(&self) -> CreateOptions {
        CreateOptions::new()
            .blocks_per_chunk(self.blocks_per_chunk)
            .log_bytes(self.log_bytes)
            .limit_bytes(self.limit_bytes)
            .initial_bytes(0)
            .cache_bytes(self.cache_bytes)
            .host_discard(self.host_discard)
            .background(Background::Manual)
            .id_source(Arc::new(SequentialIds::new(self.first_id)))
            .clock(Arc::new(StepClock::new(1_700_000_000_000_000, 1)))
    }

    pub(crate) fn open(&self) -> OpenOptions {
        self.open_with_ids(8)
    }

    /// Each opening of one pool needs ids of its own.
    pub(crate) fn open_with_ids(&self, seed: u64) -> OpenOptions {
        OpenOptions::new()
            .cache_bytes(self.cache_bytes)
            .host_discard(self.host_discard)
            .background(Background::Manual)
            .id_source(Arc::new(SequentialIds::new(seed)))
            .clock(Arc::new(StepClock::new(1_700_000_000_000_000, 1)))
    }
}

/// A pool, the model it must equal, and the disks that are attached.
pub(crate) struct Rig<M: Medium> {
    pub(crate) pool: Option<Pool>,
    pub(crate) medium: M,
    pub(crate) shape: Shape,
    pub(crate) model: Model,
    pub(crate) disks: BTreeMap<VolumeId, Disk>,
    /// Objects whose space is still on its way back: exact figures wait for it.
    pub(crate) reclaiming: bool,
    serial: u64,
}

impl<M: Medium> Rig<M> {
    pub(crate) fn create(medium: M, shape: Shape) -> Result<Self, Error> {
        let pool = Pool::create_on(medium.again(), shape.create())?;
        Ok(Self::over(pool, medium, shape, Model::default()))
    }

    pub(crate) fn open(medium: M, shape: Shape, model: Model) -> Result<Self, Error> {
        let pool = Pool::open_on(medium.again(), shape.open())?;
        Ok(Self::over(pool, medium, shape, model))
    }

    pub(crate) fn over(pool: Pool, medium: M, shape: Shape, mut model: Model) -> Self {
        model.attached.clear();
        bases::supply_all(&pool).unwrap();
        // What an earlier user deleted may still be on its way back.
        Self { pool: Some(pool), medium, shape, model, disks: BTreeMap::new(), reclaiming: true, serial: 1 }
    }

    pub(crate) fn pool(&self) -> &Pool {
        self.pool.as_ref().expect("the rig is open")
    }

    /// Makes ids, names and bytes differ from those of earlier rigs over the same pool.
    pub(crate) fn serial_from(&mut self, serial: u64) {
        self.serial = serial;
    }

    pub(crate) fn serial(&self) -> u64 {
        self.serial
    }

    pub(crate) fn resolve(&mut self, op: Op, limits: Limits) -> Action {
        self.serial += 1;
        Action::resolve(op, &self.model, limits, self.serial)
    }

    /// Does the action on pool and model. A refusal that the rules ask for is checked here and is no failure; after
    /// an error the pool may show the state before or after the action.
    pub(crate) fn apply(&mut self, action: &Action) -> Result<(), Error> {
        let expected = self.model.after(action);
        let got = self.perform(action);
        match (expected, got) {
            (Ok(next), Ok(())) => self.model = next,
            (Err(refusal), Err(error)) if refusal.is(&error) => {}
            (Err(refusal), Err(error)) => {
                let typed = matches!(error, Error::Io { .. } | Error::Poisoned | Error::Closed);
                assert!(typed, "{action:?} must be refused as {refusal:?}, but: {error:?}");
                self.model.attached = self.disks.keys().copied().collect();
                return Err(error);
            }
            (Err(refusal), Ok(())) => panic!("{action:?} must be refused as {refusal:?}, but it was done"),
            (Ok(_), Err(error)) => {
                self.model.attached = self.disks.keys().copied().collect();
                return Err(error);
            }
        }
        self.model.attached = self.disks.keys().copied().collect();
        Ok(())
    }

    /// Applies an action that has to work.
    pub(crate) fn must(&mut self, action: Action) {
        if let Err(error) = self.apply(&action) {
            panic!("{action:?} failed: {error:?}");
        }
    }

    fn disk(&mut self, volume: VolumeId) -> Result<&Disk, Error> {
        if !self.disks.contains_key(&volume) {
            let disk = self.pool().attach(volume, AttachOptions::default())?;
            self.disks.insert(volume, disk);
        }
        Ok(&self.disks[&volume])
    }

    fn perform(&mut self, action: &Action) -> Result<(), Error> {
        match action {
            Action::Flush => match self.disks.values().next() {
                // The flush of any disk is the flush of the pool.
                Some(disk) if self.serial.is_multiple_of(2) => disk.flush()?,
                _ => self.pool().flush()?,
            },
            Action::Checkpoint => self.pool().checkpoint()?,
            Action::Step { budget } => {
                if !self.pool().step(*budget)? {
                    self.reclaiming = false;
                }
            }
            Action::Drain => {
                while self.pool().step(1024)? {}
                self.reclaiming = false;
            }
            Action::Reopen => {
                self.disks.clear();
                if let Some(pool) = self.pool.take() {
                    pool.close()?;
                }
                let options = self.shape.open_with_ids(100 + self.serial);
                let pool = self.pool.insert(Pool::open_on(self.medium.again(), options)?);
                bases::supply_all(pool)?;
            }
            Action::Create { id, blocks, name } => {
                let spec = VolumeSpec::blank((blocks * BLOCK) as u64).id(*id).name(name);
                let volume = self.pool().create_volume(spec)?;
                assert_eq!((volume.id, volume.size_bytes), (*id, (blocks * BLOCK) as u64));
            }
            Action::CreateOver { id, base, base_blocks, blocks, name } => {
                let size_bytes = (blocks * BLOCK) as u64;
                let dress = |spec: VolumeSpec| spec.size(size_bytes).id(*id).name(name);
                if self.model.bases.contains_key(base) {
                    self.pool().create_volume(dress(VolumeSpec::from_base(*base)))?;
                } else {
                    let source = bases::source(*base, (base_blocks * BLOCK) as u64);
                    self.pool().create_volume_over(source, dress(VolumeSpec::image()))?;
                }
            }
            Action::Hydrate { base, pieces } => {
                let mut left = pieces.unwrap_or(usize::MAX);
                let hydrated = self.pool().hydrate(*base, |_| {
                    left -= 1;
                    if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                });
                match hydrated {
                    Err(Error::Cancelled { .. }) => {}
                    done => done?,
                }
                self.reclaiming = true;
            }
            Action::CloneSnapshot { id, from, blocks, name } => {
                let spec = VolumeSpec::from_snapshot(*from).size((blocks * BLOCK) as u64).id(*id).name(name);
                self.pool().create_volume(spec)?;
            }
            Action::CloneVolume { id, from, blocks, name } => {
                let spec = VolumeSpec::from_volume(*from).size((blocks * BLOCK) as u64).id(*id).name(name);
                self.pool().create_volume(spec)?;
            }
            Action::Attach { volume } => {
                let disk = self.pool().attach(*volume, AttachOptions::default())?;
                self.disks.insert(*volume, disk);
            }
            Action::Detach { volume } => {
                self.disks.remove(volume);
            }
            Action::Write { volume, offset, len, stamp, fua } => {
                let bytes = Rng::stamp_bytes(*stamp, *len);
                let disk = self.disk(*volume)?;
                if *fua { disk.write_fua_at(&bytes, *offset)? } else { disk.write_at(&bytes, *offset)? }
            }
            Action::WriteZeroes { volume, offset, len } => self.disk(*volume)?.write_zeroes(*offset, *len)?,
            Action::Discard { volume, offset, len } => self.disk(*volume)?.discard(*offset, *len)?,
            Action::Snapshot { id, volume, force, name } => {
                let spec = SnapshotSpec::new().id(*id).name(name).force(*force);
                let snapshot = self.pool().create_snapshot(*volume, spec)?;
                assert_eq!((snapshot.id, snapshot.volume), (*id, *volume));
            }
            Action::Batch { snapshots, name, rollback } => {
                // A batch that fails in its last step must undo the steps before it.
                self.pool().batch(|batch| {
                    for (id, volume) in snapshots {
                        let spec = SnapshotSpec::new().id(*id).name(name).force(true);
                        batch.create_snapshot(*volume, spec)?;
                    }
                    if let Some(snapshot) = rollback {
                        batch.rollback(*snapshot)?;
                    }
                    Ok(())
                })?;
            }
            Action::Rollback { snapshot, live, detach } => {
                if *detach && let Some(model) = self.model.snapshots.get(snapshot) {
                    let volume = model.volume;
                    self.disks.remove(&volume);
                }
                if *live {
                    self.pool().rollback_with(*snapshot, RollbackOptions::new().live(true))?;
                } else {
                    self.pool().rollback(*snapshot)?;
                }
                self.reclaiming = true;
            }
            Action::DeleteSnapshot { id, wait } => {
                let frees = observe::frees(self.pool(), &self.model, &[id.raw()]);
                let exact = !self.reclaiming;
                let deletion = self.pool().delete_snapshot(*id)?;
                self.finish(deletion, *wait, exact, frees)?;
            }
            Action::DeleteVolume { id, policy, detach, wait } => {
                if *detach {
                    self.disks.remove(id);
                }
                let mut ids = vec![id.raw()];
                if *policy == snapvol::Snapshots::Delete {
                    ids.extend(self.model.snapshots_of(*id).iter().map(|id| id.raw()));
                }
                let frees = observe::frees(self.pool(), &self.model, &ids);
                let exact = !self.reclaiming;
                let deletion = self.pool().delete_volume(*id, *policy)?;
                self.finish(deletion, *wait, exact, frees)?;
            }
            Action::Extend { volume, blocks } => {
                let volume = self.pool().extend(*volume, (blocks * BLOCK) as u64)?;
                assert_eq!(volume.size_bytes, (blocks * BLOCK) as u64);
            }
            Action::Rename { volume, name } => {
                self.pool().rename_volume(*volume, name)?;
            }
            Action::Hold { snapshot, on: true } => {
                self.pool().hold_snapshot(*snapshot)?;
            }
            Action::Hold { snapshot, on: false } => {
                self.pool().release_snapshot(*snapshot)?;
            }
        }
        Ok(())
    }

    /// A deletion that is waited for returns exactly the bytes that nobody else reaches.
    fn finish(
        &mut self,
        deletion: snapvol::Deletion,
        wait: bool,
        exact: bool,
        frees: u64,
    ) -> Result<(), Error> {
        self.reclaiming = true;
        if wait {
            let freed = deletion.wait()?.freed_bytes;
            if exact {
                assert_eq!(freed, frees, "a deletion frees exactly what nobody else reaches");
                self.reclaiming = false;
            }
        }
        Ok(())
    }

    /// Reads everything back, compares lists, states and extents, then checks and scrubs.
    pub(crate) fn verify(&mut self) {
        observe::assert_equals(self.pool(), &self.model, &self.disks);
        assert_sound(self.pool());
    }

    /// Takes the pool away as a kill does: nothing more reaches the medium.
    pub(crate) fn leave(&mut self) -> Option<Pool> {
        self.disks.clear();
        self.pool.take()
    }
}

/// No finding of a check, no finding of a scrub.
pub(crate) fn assert_sound(pool: &Pool) {
    let report = pool.check(CheckOptions::default(), &mut |_| {}).unwrap();
    assert!(report.findings.is_empty(), "check: {:#?}", report.findings);
    assert_scrubs(pool);
}

/// No finding of a scrub, which checks everything that a check does.
pub(crate) fn assert_scrubs(pool: &Pool) {
    let report = pool.scrub(CheckOptions::default(), &mut |_| {}).unwrap();
    assert!(report.findings.is_empty(), "scrub: {:#?}", report.findings);
}

/// Runs `job` for every number below `count` on all cores; the first panic ends it.
pub(crate) fn on_all_cores(count: usize, job: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(None);
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count || failed.lock().unwrap().is_some() {
                        return;
                    }
                    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(index))) {
                        failed.lock().unwrap().get_or_insert(panic);
                        return;
                    }
                }
            });
        }
    });
    if let Some(panic) = failed.into_inner().unwrap() {
        resume_unwind(panic);
    }
}
