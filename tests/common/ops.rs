//! Operations of a workload: raw words that a generator makes and shrinks, resolved against the model into
//! something concrete, with the model's answer to each.

use snapvol::{BaseId, SnapshotId, Snapshots, VolumeId};
use uuid::Uuid;

use super::model::{BLOCK, BaseModel, Map, Model, Refusal, SnapshotModel, VolumeModel};
use super::rng::Rng;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Flush,
    Write,
    WriteZeroes,
    Discard,
    Snapshot,
    CloneSnapshot,
    CloneVolume,
    Rollback,
    LiveRollback,
    DeleteSnapshot,
    DeleteVolume,
    Extend,
    Create,
    Batch,
    Checkpoint,
    Step,
    Reopen,
    Attach,
    Detach,
    Rename,
    Hold,
    Drain,
    CreateOver,
    Hydrate,
}

/// How often each kind comes up in random workloads.
const WEIGHTS: [(Kind, u32); 24] = [
    (Kind::Flush, 8),
    (Kind::Write, 40),
    (Kind::WriteZeroes, 4),
    (Kind::Discard, 4),
    (Kind::Snapshot, 7),
    (Kind::CloneSnapshot, 3),
    (Kind::CloneVolume, 2),
    (Kind::Rollback, 3),
    (Kind::LiveRollback, 3),
    (Kind::DeleteSnapshot, 6),
    (Kind::DeleteVolume, 3),
    (Kind::Extend, 2),
    (Kind::Create, 3),
    (Kind::Batch, 2),
    (Kind::Checkpoint, 2),
    (Kind::Step, 5),
    (Kind::Reopen, 1),
    (Kind::Attach, 1),
    (Kind::Detach, 3),
    (Kind::Rename, 1),
    (Kind::Hold, 2),
    (Kind::Drain, 1),
    (Kind::CreateOver, 3),
    (Kind::Hydrate, 2),
];

pub(crate) const WEIGHT_SUM: u32 = {
    let (mut sum, mut i) = (0, 0);
    while i < WEIGHTS.len() {
        sum += WEIGHTS[i].1;
        i += 1;
    }
    sum
};

/// One operation before it knows the pool: the numbers select objects and ranges modulo what there is.
#[derive(Clone, Copy)]
pub(crate) struct Op {
    pub(crate) kind: Kind,
    pub(crate) a: u32,
    pub(crate) b: u32,
    pub(crate) c: u32,
}

/// In one line, so that a list of them can be read and pasted.
impl std::fmt::Debug for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "op(Kind::{:?}, {}, {}, {})", self.kind, self.a, self.b, self.c)
    }
}

impl Op {
    pub(crate) const fn new(kind: Kind, a: u32, b: u32, c: u32) -> Self {
        Self { kind, a, b, c }
    }

    /// `weight` is below [`WEIGHT_SUM`].
    pub(crate) fn decode(weight: u32, a: u32, b: u32, c: u32) -> Self {
        let mut left = weight;
        for (kind, share) in WEIGHTS {
            if left < share {
                return Self { kind, a, b, c };
            }
            left -= share;
        }
        unreachable!("the weight is below the sum")
    }

    pub(crate) fn random(rng: &mut Rng) -> Self {
        let weight = rng.below(u64::from(WEIGHT_SUM)) as u32;
        Self::decode(weight, rng.next() as u32, rng.next() as u32, rng.next() as u32)
    }
}

/// How large a random workload may make its pool.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) volumes: usize,
    pub(crate) snapshots: usize,
    pub(crate) blocks: usize,
}

/// An operation that knows its objects and ranges.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    Create {
        id: VolumeId,
        blocks: usize,
        name: String,
    },
    /// A volume over a base: a new one, or one that is there.
    CreateOver {
        id: VolumeId,
        base: BaseId,
        base_blocks: usize,
        blocks: usize,
        name: String,
    },
    /// Brings so many pieces of a base in, or all of it.
    Hydrate {
        base: BaseId,
        pieces: Option<usize>,
    },
    CloneSnapshot {
        id: VolumeId,
        from: SnapshotId,
        blocks: usize,
        name: String,
    },
    CloneVolume {
        id: VolumeId,
        from: VolumeId,
        blocks: usize,
        name: String,
    },
    Attach {
        volume: VolumeId,
    },
    Detach {
        volume: VolumeId,
    },
    Write {
        volume: VolumeId,
        offset: u64,
        len: usize,
        stamp: u64,
        fua: bool,
    },
    WriteZeroes {
        volume: VolumeId,
        offset: u64,
        len: u64,
    },
    Discard {
        volume: VolumeId,
        offset: u64,
        len: u64,
    },
    Flush,
    Checkpoint,
    Step {
        budget: usize,
    },
    Drain,
    Reopen,
    Snapshot {
        id: SnapshotId,
        volume: VolumeId,
        force: bool,
        name: String,
    },
    /// Two snapshots and, with `rollback`, the return of the first volume to one of its older ones.
    Batch {
        snapshots: [(SnapshotId, VolumeId); 2],
        name: String,
        rollback: Option<SnapshotId>,
    },
    Rollback {
        snapshot: SnapshotId,
        live: bool,
        detach: bool,
    },
    DeleteSnapshot {
        id: SnapshotId,
        wait: bool,
    },
    DeleteVolume {
        id: VolumeId,
        policy: Snapshots,
        detach: bool,
        wait: bool,
    },
    Extend {
        volume: VolumeId,
        blocks: usize,
    },
    Rename {
        volume: VolumeId,
        name: String,
    },
    Hold {
        snapshot: SnapshotId,
        on: bool,
    },
}

fn nth<T: Copy>(from: impl ExactSizeIterator<Item = T>, n: u32) -> Option<T> {
    let count = from.len();
    if count == 0 { None } else { from.into_iter().nth(n as usize % count) }
}

impl Action {
    /// `serial` is different for each action of a workload: it makes the ids, names and bytes.
    pub(crate) fn resolve(op: Op, model: &Model, limits: Limits, serial: u64) -> Action {
        let Op { kind, a, b, c } = op;
        let fresh = |salt: u64| Uuid::from_u64_pair(Rng::new(serial * 2 + salt).next(), serial << 1 | salt);
        let name = format!("n{serial}");
        // Where there is nothing to select the operation names an object that does not exist.
        let volume = nth(model.volumes.keys().copied(), a).unwrap_or(VolumeId::new(Uuid::from_u128(1)));
        let snapshot = nth(model.snapshots.keys().copied(), a).unwrap_or(SnapshotId::new(Uuid::from_u128(2)));
        let blocks_of = |id: VolumeId| model.volumes.get(&id).map_or(1, |v| v.map.blocks());
        let range = |whole_blocks: bool| {
            let size = blocks_of(volume) * BLOCK;
            let block = b as usize % blocks_of(volume);
            let (skew, len) = match c % 10 {
                0..5 => (0, BLOCK),
                5..7 => (0, (c as usize / 10 % 16 + 1) * BLOCK),
                _ if whole_blocks => (0, (c as usize / 10 % 4 + 1) * BLOCK),
                7 => (c as usize / 10 % 8 * 512, 512),
                _ => (c as usize / 10 % BLOCK, c as usize / 41_000 % 9_000 + 1),
            };
            let offset = block * BLOCK + skew;
            (offset as u64, len.min(size - offset))
        };
        match kind {
            Kind::Flush => Action::Flush,
            Kind::Checkpoint => Action::Checkpoint,
            Kind::Step => Action::Step { budget: a as usize % 64 + 1 },
            Kind::Drain => Action::Drain,
            Kind::Reopen => Action::Reopen,
            Kind::Write => {
                let (offset, len) = range(false);
                Action::Write { volume, offset, len, stamp: serial, fua: a % 29 == 7 }
            }
            Kind::WriteZeroes => {
                let (offset, len) = range(c % 3 != 0);
                Action::WriteZeroes { volume, offset, len: len as u64 }
            }
            Kind::Discard => {
                let (offset, len) = range(true);
                Action::Discard { volume, offset, len: len as u64 }
            }
            Kind::Create if model.volumes.len() < limits.volumes => {
                Action::Create { id: VolumeId::new(fresh(0)), blocks: b as usize % limits.blocks + 1, name }
            }
            Kind::CloneSnapshot if model.volumes.len() < limits.volumes => {
                let blocks = model.snapshots.get(&snapshot).map_or(1, |s| s.map.blocks());
                let blocks = blocks + if b % 3 == 0 { c as usize % 5 } else { 0 };
                Action::CloneSnapshot { id: VolumeId::new(fresh(0)), from: snapshot, blocks, name }
            }
            Kind::CloneVolume if model.volumes.len() < limits.volumes => {
                let blocks = blocks_of(volume) + if b % 3 == 0 { c as usize % 5 } else { 0 };
                Action::CloneVolume { id: VolumeId::new(fresh(0)), from: volume, blocks, name }
            }
            Kind::CreateOver if model.volumes.len() < limits.volumes => {
                let there = nth(model.bases.iter(), a).filter(|_| b % 3 == 0);
                let fresh_blocks = b as usize % limits.blocks + 1;
                let (base, base_blocks) = there.map_or_else(
                    || (BaseId::new(fresh(1)), fresh_blocks),
                    |(base, model)| (*base, model.blocks()),
                );
                let blocks = base_blocks + c as usize % 4;
                Action::CreateOver { id: VolumeId::new(fresh(0)), base, base_blocks, blocks, name }
            }
            Kind::Hydrate => {
                let base = nth(model.bases.keys().copied(), a).unwrap_or(BaseId::new(Uuid::from_u128(3)));
                Action::Hydrate { base, pieces: (b % 2 == 0).then_some(c as usize % 3 + 1) }
            }
            Kind::Create
            | Kind::CreateOver
            | Kind::CloneSnapshot
            | Kind::CloneVolume
            | Kind::DeleteVolume => {
                let policy = match b % 5 {
                    0 => Snapshots::Refuse,
                    1 | 2 => Snapshots::Keep,
                    _ => Snapshots::Delete,
                };
                Action::DeleteVolume { id: volume, policy, detach: c % 4 != 0, wait: c % 3 == 0 }
            }
            Kind::Snapshot if model.snapshots.len() < limits.snapshots => {
                Action::Snapshot { id: SnapshotId::new(fresh(0)), volume, force: b % 4 != 0, name }
            }
            Kind::Batch if model.snapshots.len() + 1 < limits.snapshots => {
                let other = nth(model.volumes.keys().copied(), a.wrapping_add(1)).unwrap_or(volume);
                let older = model.snapshots_of(volume);
                let rollback = nth(older.iter().copied(), c).filter(|_| b % 3 == 0);
                let ids = [SnapshotId::new(fresh(0)), SnapshotId::new(fresh(1))];
                Action::Batch { snapshots: [(ids[0], volume), (ids[1], other)], name, rollback }
            }
            Kind::Snapshot | Kind::Batch | Kind::DeleteSnapshot => {
                Action::DeleteSnapshot { id: snapshot, wait: c % 3 == 0 }
            }
            Kind::Rollback => Action::Rollback { snapshot, live: false, detach: b % 4 != 0 },
            Kind::LiveRollback => Action::Rollback { snapshot, live: true, detach: false },
            Kind::Extend => {
                let blocks = blocks_of(volume);
                let more = if blocks >= limits.blocks * 2 { 0 } else { c as usize % 9 };
                Action::Extend { volume, blocks: blocks + more }
            }
            Kind::Attach => Action::Attach { volume },
            Kind::Detach => Action::Detach { volume },
            Kind::Rename => Action::Rename { volume, name },
            Kind::Hold => Action::Hold { snapshot, on: b % 3 == 0 },
        }
    }

    /// Number of different answers of [`kind`](Self::kind).
    pub(crate) const KINDS: usize = 23;

    /// The name of the variant, for counts.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Action::Create { .. } => "create",
            Action::CreateOver { .. } => "createover",
            Action::Hydrate { .. } => "hydrate",
            Action::CloneSnapshot { .. } => "clonesnapshot",
            Action::CloneVolume { .. } => "clonevolume",
            Action::Attach { .. } => "attach",
            Action::Detach { .. } => "detach",
            Action::Write { .. } => "write",
            Action::WriteZeroes { .. } => "writezeroes",
            Action::Discard { .. } => "discard",
            Action::Flush => "flush",
            Action::Checkpoint => "checkpoint",
            Action::Step { .. } => "step",
            Action::Drain => "drain",
            Action::Reopen => "reopen",
            Action::Snapshot { .. } => "snapshot",
            Action::Batch { .. } => "batch",
            Action::Rollback { .. } => "rollback",
            Action::DeleteSnapshot { .. } => "deletesnapshot",
            Action::DeleteVolume { .. } => "deletevolume",
            Action::Extend { .. } => "extend",
            Action::Rename { .. } => "rename",
            Action::Hold { .. } => "hold",
        }
    }

    /// As [`kind`](Self::kind), with writes of parts of blocks told apart.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Action::Write { offset, len, .. }
                if !offset.is_multiple_of(BLOCK as u64) || !len.is_multiple_of(BLOCK) =>
            {
                "partialwrite"
            }
            _ => self.kind(),
        }
    }

    /// Whether everything up to and with this action is durable when it has returned without an error.
    pub(crate) fn is_durable(&self) -> bool {
        match self {
            Action::Write { fua, .. } => *fua,
            Action::WriteZeroes { .. }
            | Action::Discard { .. }
            | Action::Attach { .. }
            | Action::Detach { .. }
            | Action::Drain
            | Action::Hydrate { .. }
            | Action::Step { .. } => false,
            _ => true,
        }
    }
}

impl Model {
    /// The state after the action, or the refusal that the documented rules ask for.
    pub(crate) fn after(&self, action: &Action) -> Result<Model, Refusal> {
        let mut next = self.clone();
        match action {
            Action::Flush | Action::Checkpoint | Action::Step { .. } | Action::Drain => {}
            Action::Reopen => next.attached.clear(),
            Action::Create { id, blocks, name } => {
                let family = id.raw().as_u64_pair().1;
                let volume = VolumeModel { name: name.clone(), map: Map::blank(*blocks), family };
                next.volumes.insert(*id, volume);
            }
            Action::CreateOver { id, base, base_blocks, blocks, name } => {
                let model = next.bases.entry(*base).or_insert_with(|| BaseModel::new(*base, *base_blocks));
                let map = Map::over(*base, model, *blocks);
                // No blank volume has such a number.
                let family = !base.raw().as_u64_pair().1;
                next.volumes.insert(*id, VolumeModel { name: name.clone(), map, family });
            }
            Action::Hydrate { base, .. } => {
                if !self.bases.contains_key(base) {
                    return Err(Refusal::NotFound);
                }
            }
            Action::CloneSnapshot { id, from, blocks, name } => {
                let source = self.snapshots.get(from).ok_or(Refusal::NotFound)?;
                let mut map = source.map.clone();
                map.resize(*blocks);
                let volume = VolumeModel { name: name.clone(), map, family: source.family };
                next.volumes.insert(*id, volume);
            }
            Action::CloneVolume { id, from, blocks, name } => {
                let source = self.volumes.get(from).ok_or(Refusal::NotFound)?;
                let mut map = source.map.clone();
                map.resize(*blocks);
                let volume = VolumeModel { name: name.clone(), map, family: source.family };
                next.volumes.insert(*id, volume);
            }
            Action::Attach { volume } => {
                if !self.volumes.contains_key(volume) {
                    return Err(Refusal::NotFound);
                }
                if !next.attached.insert(*volume) {
                    return Err(Refusal::InvalidState);
                }
            }
            Action::Detach { volume } => {
                next.attached.remove(volume);
            }
            Action::Write { volume, offset, len, stamp, .. } => {
                let target = next.volumes.get_mut(volume).ok_or(Refusal::NotFound)?;
                target.map.write(*offset, &Rng::stamp_bytes(*stamp, *len));
                next.attached.insert(*volume);
            }
            Action::WriteZeroes { volume, offset, len } => {
                let target = next.volumes.get_mut(volume).ok_or(Refusal::NotFound)?;
                target.map.write_zeroes(*offset, *len);
                next.attached.insert(*volume);
            }
            Action::Discard { volume, offset, len } => {
                let target = next.volumes.get_mut(volume).ok_or(Refusal::NotFound)?;
                target.map.discard(*offset, *len);
                next.attached.insert(*volume);
            }
            Action::Snapshot { id, volume, force, name } => {
                next.snapshot(*id, *volume, *force, name)?;
            }
            Action::Batch { snapshots, name, rollback } => {
                for (id, volume) in snapshots {
                    next.snapshot(*id, *volume, true, name)?;
                }
                if let Some(snapshot) = rollback {
                    next.rollback(*snapshot, false)?;
                }
            }
            Action::Rollback { snapshot, live, detach } => {
                if *detach && let Some(snapshot) = self.snapshots.get(snapshot) {
                    next.attached.remove(&snapshot.volume);
                }
                next.rollback(*snapshot, *live)?;
            }
            Action::DeleteSnapshot { id, .. } => {
                let snapshot = self.snapshots.get(id).ok_or(Refusal::NotFound)?;
                if snapshot.held {
                    return Err(Refusal::Busy);
                }
                next.snapshots.remove(id);
                next.forget_bases();
            }
            Action::DeleteVolume { id, policy, detach, .. } => {
                if !self.volumes.contains_key(id) {
                    return Err(Refusal::NotFound);
                }
                if *detach {
                    next.attached.remove(id);
                }
                if next.attached.contains(id) {
                    return Err(Refusal::InvalidState);
                }
                let snapshots = self.snapshots_of(*id);
                match policy {
                    Snapshots::Refuse if !snapshots.is_empty() => return Err(Refusal::HasSnapshots),
                    Snapshots::Delete => {
                        if snapshots.iter().any(|id| self.snapshots[id].held) {
                            return Err(Refusal::Busy);
                        }
                        next.snapshots.retain(|_, s| s.volume != *id);
                    }
                    _ => {}
                }
                next.volumes.remove(id);
                next.forget_bases();
            }
            Action::Extend { volume, blocks } => {
                let target = next.volumes.get_mut(volume).ok_or(Refusal::NotFound)?;
                if *blocks <= target.map.blocks() {
                    return Err(Refusal::InvalidArgument);
                }
                target.map.resize(*blocks);
            }
            Action::Rename { volume, name } => {
                next.volumes.get_mut(volume).ok_or(Refusal::NotFound)?.name = name.clone();
            }
            Action::Hold { snapshot, on } => {
                next.snapshots.get_mut(snapshot).ok_or(Refusal::NotFound)?.held = *on;
            }
        }
        Ok(next)
    }

    /// States that a write may leave behind when the device fails in the middle of it: each block is old or new.
    pub(crate) fn halfway(&self, action: &Action) -> Vec<Model> {
        let block = BLOCK as u64;
        let parts: Vec<Action> = match *action {
            Action::Write { volume, offset, len, stamp, fua } => {
                let end = offset + len as u64;
                let cuts = (offset / block + 1..end.div_ceil(block)).map(|b| (b * block - offset) as usize);
                cuts.map(|len| Action::Write { volume, offset, len, stamp, fua }).collect()
            }
            // The ends first, then the whole blocks between them.
            Action::WriteZeroes { volume, offset, len } => {
                let (from, to) = (offset.next_multiple_of(block), (offset + len) / block * block);
                let ends = [(offset, from.min(offset + len)), (to.max(from), offset + len)];
                let ends = ends.into_iter().filter(|(from, to)| from < to);
                ends.map(|(from, to)| Action::WriteZeroes { volume, offset: from, len: to - from }).collect()
            }
            _ => Vec::new(),
        };
        let one_by_one = parts.iter().filter_map(|part| self.after(part).ok());
        let together = parts.iter().try_fold(self.clone(), |model, part| model.after(part)).ok();
        one_by_one.chain(together).collect()
    }

    fn snapshot(&mut self, id: SnapshotId, volume: VolumeId, force: bool, name: &str) -> Result<(), Refusal> {
        let source = self.volumes.get(&volume).ok_or(Refusal::NotFound)?;
        if self.attached.contains(&volume) && !force {
            return Err(Refusal::InvalidState);
        }
        let (map, family) = (source.map.clone(), source.family);
        self.snapshots.insert(id, SnapshotModel { volume, name: name.into(), held: false, map, family });
        Ok(())
    }

    fn rollback(&mut self, id: SnapshotId, live: bool) -> Result<(), Refusal> {
        let snapshot = self.snapshots.get(&id).ok_or(Refusal::NotFound)?;
        let volume = self.volumes.get_mut(&snapshot.volume).ok_or(Refusal::NotFound)?;
        if self.attached.contains(&snapshot.volume) && !live {
            return Err(Refusal::InvalidState);
        }
        let blocks = volume.map.blocks();
        volume.map = snapshot.map.clone();
        volume.map.resize(blocks);
        Ok(())
    }
}
