//! The engine: what all parts of a running pool share.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;

use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use super::background::{Counters, Wake};
use super::bases::Over;
use super::buffer::Buffers;
use super::catalogue::{self, Catalogue, TABLE_OVER, TABLE_ROOTS, object_key};
use super::hot::Hot;
use super::log::Log;
use super::lower::Base;
use super::object::Object;
use super::pins::Pins;
use super::reclaim::TrashState;
use crate::alloc::{PoolBlocks, Space};
use crate::device::Device;
use crate::error::{Error, Result, Violation};
use crate::extent::Map;
use crate::format::NodeRef;
use crate::format::chunk::index_height;
use crate::format::superblock::{FAR_FROM_BYTES, STATE_FAR, Superblock, Totals};
use crate::memory;
use crate::node::{Link, Store};
use crate::sources::{Clock, IdSource};
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use crate::sync::{Condvar, Mutex, RwLock};
use crate::trace::alarm;
use crate::units::{BLOCK_BYTES, Geometry, ObjectId};

/// What the opener decides.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) cache_bytes: u64,
    pub(crate) log_bytes: u64,
    pub(crate) limit_bytes: u64,
    pub(crate) blocks_per_chunk: u64,
    pub(crate) initial_bytes: u64,
    pub(crate) read_only: bool,
    pub(crate) last_good: bool,
    pub(crate) host_discard: bool,
    pub(crate) background: bool,
    pub(crate) ids: Arc<dyn IdSource>,
    pub(crate) clock: Arc<dyn Clock>,
}

/// A pool at work.
pub(crate) struct Engine {
    pub(crate) device: Arc<dyn Device>,
    pub(super) store: Arc<Store>,
    pub(super) space: Space,
    pub(super) config: Config,
    pub(super) gate: RwLock<()>,
    pub(super) pins: Pins,
    pub(super) buffers: Buffers,
    pub(super) hot: Hot,
    pub(super) objects: Mutex<BTreeMap<ObjectId, Arc<Object>>>,
    /// Bases in use.
    pub(super) bases: Mutex<BTreeMap<ObjectId, Arc<Base>>>,
    /// Objects with changes that no record has.
    pub(super) dirty: Mutex<Vec<Arc<Object>>>,
    /// Objects whose root differs from the one of the last freeze.
    pub(super) changed: Mutex<BTreeMap<ObjectId, Arc<Object>>>,
    pub(super) catalogue: RwLock<Catalogue>,
    /// Held by a catalogue transaction from validation to commit. Taken before all others.
    pub(super) transaction: Mutex<()>,
    pub(super) log: Mutex<Log>,
    /// Commits begun; see [`Engine::flush`].
    pub(super) cuts: AtomicU64,
    /// The newest superblock; held for the whole of a checkpoint.
    pub(super) checkpoint: Mutex<Superblock>,
    /// Root of the catalogue in that superblock.
    pub(super) durable_catalogue: Mutex<Option<NodeRef>>,
    pub(super) epoch: AtomicU32,
    pub(super) internal_ids: AtomicU64,
    /// Bytes that the changes since the last commit will take in a record, at most.
    pub(super) pending_bytes: AtomicU64,
    /// Nodes made dirty since the last freeze.
    pub(super) dirtied: std::sync::atomic::AtomicU64,
    pub(super) poisoned: Arc<AtomicBool>,
    pub(super) closed: AtomicBool,
    pub(super) read_only: AtomicBool,
    pub(super) trash: Mutex<BTreeMap<ObjectId, TrashState>>,
    pub(super) trash_moved: Condvar,
    pub(super) counters: Counters,
    pub(super) wake: Wake,
    pub(super) worker: Mutex<Option<JoinHandle<()>>>,
}

pub(super) fn io(op: &'static str, offset: u64, len: u64) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::Io { op, offset, len, source }
}

/// A log epoch that no earlier opening had. All of an id counts: sources may count up in one half of it.
pub(super) fn fresh_epoch(config: &Config) -> u64 {
    xxh3_64(config.ids.next_id().as_bytes())
}

impl Engine {
    /// Makes a pool on an empty device. Superblocks are written last: before that there is no pool.
    pub(crate) fn create(device: Arc<dyn Device>, config: Config) -> Result<Arc<Self>> {
        if !device.lock().map_err(io("lock", 0, 0))? {
            return Err(Error::Locked);
        }
        let far = config.limit_bytes >= FAR_FROM_BYTES;
        let log_start_block = if far { (1 << 20) / BLOCK_BYTES + 2 } else { 4 };
        let log_blocks = config.log_bytes / BLOCK_BYTES;
        let geometry = Geometry {
            blocks_per_chunk: config.blocks_per_chunk,
            log_start_block,
            log_blocks,
            first_chunk_block: log_start_block + log_blocks,
        };
        let chunk_bytes = geometry.blocks_per_chunk * BLOCK_BYTES;
        let room = |bytes: u64| bytes.saturating_sub(geometry.bytes_for(0)) / chunk_bytes;
        let most = room(config.limit_bytes);
        let chunks = if device.can_grow() {
            room(config.initial_bytes).clamp(3, most.max(3))
        } else {
            room(device.len().map_err(io("length", 0, 0))?).min(most)
        };
        if most < 3 || chunks < 3 {
            let least = geometry.bytes_for(3);
            return Err(Error::invalid(
                "limit_bytes",
                Violation::Range,
                format!("at least {least} for this geometry, got {}", config.limit_bytes),
            ));
        }
        let bytes = geometry.bytes_for(chunks);
        if device.can_grow() {
            device.allocate(0, bytes).map_err(io("allocate", 0, bytes))?;
        }
        // Stale bytes must not look like slots or records; and fresh log space is written once before use,
        // because a sync into unwritten extents costs a journal commit.
        let zeroes = memory::filled(0u8, 1 << 20)?;
        let head = geometry.bytes_for(0);
        let mut at = 0;
        while at < head {
            let n = (head - at).min(zeroes.len() as u64);
            device.write_at(&zeroes[..n as usize], at).map_err(io("write", at, n))?;
            at += n;
        }
        device.sync().map_err(io("sync", 0, 0))?;
        let superblock = Superblock {
            state: if far { STATE_FAR } else { 0 },
            incompatible: 0,
            read_only_compatible: 0,
            compatible: 0,
            uuid: config.ids.next_id().into_bytes(),
            generation: 1,
            geometry,
            chunks,
            limit_bytes: config.limit_bytes,
            log_epoch: fresh_epoch(&config),
            log_at: 0,
            log_sequence: 0,
            log_predecessor: 0,
            snapshot_epoch: 1,
            index_height: index_height(chunks),
            index_root: None,
            catalogue_root: None,
            totals: Totals::default(),
            created_micros: config.clock.now_micros(),
            next_internal_id: 0,
        };
        let engine = Self::assemble(device, config, superblock, chunks, false)?;
        // Both generations exist from the start, so that one lost copy never leaves an empty pair.
        engine.write_superblock(&engine.checkpoint.lock().clone())?;
        {
            let mut sb = engine.checkpoint.lock();
            sb.generation = 2;
            let sb = sb.clone();
            engine.write_superblock(&sb)?;
        }
        engine.log.lock().generation = 2;
        Ok(engine.start())
    }

    pub(super) fn assemble(
        device: Arc<dyn Device>,
        config: Config,
        superblock: Superblock,
        chunks: u64,
        read_only: bool,
    ) -> Result<Self> {
        // The cache's limit is shared: three eighths for buffers, a quarter for clean nodes, a quarter for dirty
        // ones, an eighth for the table of hot blocks.
        let poisoned = Arc::new(AtomicBool::new(false));
        let store = Arc::new(Store::new(Arc::clone(&device), superblock.uuid, config.cache_bytes / 4));
        let limit_blocks = superblock.limit_bytes.max(superblock.geometry.bytes_for(chunks)) / BLOCK_BYTES;
        let dirty_limit = (config.cache_bytes / 4 / 8192).min(limit_blocks / 16);
        let index =
            crate::alloc::IndexRoot { root: superblock.index_root, chunks, totals: superblock.totals };
        let space = Space::new(
            superblock.geometry,
            Arc::clone(&store),
            index,
            superblock.limit_bytes,
            dirty_limit,
            Arc::clone(&poisoned),
        );
        Ok(Self {
            store,
            space,
            gate: RwLock::new(()),
            pins: Pins::default(),
            buffers: Buffers::new(config.cache_bytes / 8 * 3),
            hot: Hot::new(config.cache_bytes / 8),
            objects: Mutex::default(),
            bases: Mutex::default(),
            dirty: Mutex::default(),
            changed: Mutex::default(),
            catalogue: RwLock::new(Catalogue { root: superblock.catalogue_root.map(Link::Disk) }),
            transaction: Mutex::new(()),
            log: Mutex::new(Log::new(&superblock)?),
            cuts: AtomicU64::new(0),
            durable_catalogue: Mutex::new(superblock.catalogue_root),
            epoch: AtomicU32::new(superblock.snapshot_epoch),
            internal_ids: AtomicU64::new(superblock.next_internal_id),
            checkpoint: Mutex::new(superblock),
            pending_bytes: AtomicU64::new(0),
            dirtied: Default::default(),
            poisoned,
            closed: AtomicBool::new(false),
            read_only: AtomicBool::new(read_only),
            trash: Mutex::default(),
            trash_moved: Condvar::new(),
            counters: Counters::default(),
            wake: Wake::default(),
            worker: Mutex::new(None),
            device,
            config,
        })
    }

    /// Whether anything may be written.
    pub(super) fn writable(&self) -> Result<()> {
        self.usable()?;
        if self.read_only.load(Ordering::Relaxed) {
            return Err(Error::ReadOnly { object: "pool" });
        }
        if self.poisoned.load(Ordering::Acquire) {
            return Err(Error::Poisoned);
        }
        Ok(())
    }

    pub(super) fn usable(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    /// Latches the pool (C6) and passes the error on.
    pub(super) fn poison(&self, e: Error) -> Error {
        self.poisoned.store(true, Ordering::Release);
        alarm!(error = %e, "latched: nothing more is written until the pool is reopened");
        self.trash_moved.notify_all();
        e
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }
    pub(crate) fn geometry(&self) -> Geometry {
        self.space.geometry
    }
    pub(crate) fn uuid(&self) -> Uuid {
        Uuid::from_bytes(self.store.uuid)
    }
    pub(crate) fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }
    pub(crate) fn now(&self) -> u64 {
        self.config.clock.now_micros()
    }
    pub(crate) fn new_id(&self) -> Uuid {
        self.config.ids.next_id()
    }
    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Relaxed)
    }
    pub(crate) fn pool_space(&self) -> PoolBlocks {
        self.buffers.give_back(&self.space);
        self.space.blocks()
    }
    /// The map of `id`. An object that never had a block has an empty one.
    pub(crate) fn object(&self, id: ObjectId) -> Result<Arc<Object>> {
        self.usable()?;
        loop {
            if let Some(o) = self.objects.lock().get(&id) {
                return Ok(Arc::clone(o));
            }
            let over = self.over(id)?;
            let base = over.map(|over| self.base_behind(over)).transpose()?;
            // Both records and the table must be of one instant: a checkpoint moves roots between them, and whoever
            // lays a map over a base looks into the table afterwards.
            let catalogue = self.catalogue.read();
            let now = catalogue::get(&catalogue, &self.store, &object_key(TABLE_OVER, id))?;
            if now.map(|value| Over::decode(&value)).transpose()? == over {
                return self.load(&catalogue, id, base);
            }
        }
    }

    /// The map of `id` as this catalogue has it, unless the table has it already.
    pub(super) fn load(
        &self,
        catalogue: &Catalogue,
        id: ObjectId,
        base: Option<Arc<Base>>,
    ) -> Result<Arc<Object>> {
        let record = catalogue::get(catalogue, &self.store, &object_key(TABLE_ROOTS, id))?;
        let root = record.map(|v| catalogue::parse_root(&v)).transpose()?;
        let map = Map { root: root.map(Link::Disk) };
        let mut objects = self.objects.lock();
        let object = objects.entry(id).or_insert_with(|| Arc::new(Object::new(id, map, base)));
        Ok(Arc::clone(object))
    }

    /// Notes that the root of `object` moved. The caller holds its map.
    pub(super) fn mark_changed(&self, object: &Arc<Object>, changed: &mut bool) {
        if !*changed {
            *changed = true;
            self.changed.lock().insert(object.id, Arc::clone(object));
        }
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.usable()?;
        let _pin = self.pins.enter();
        catalogue::get(&self.catalogue.read(), &self.store, key)
    }

    /// Visits pairs in `from..to`, ascending or descending, until `each` says false.
    pub(crate) fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        reverse: bool,
        each: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<()> {
        self.usable()?;
        let mut at = if reverse { to.to_vec() } else { from.to_vec() };
        loop {
            // One step at a time under the lock: a long listing does not hold up anybody.
            let pair = {
                let _pin = self.pins.enter();
                catalogue::neighbour(&self.catalogue.read(), &self.store, &at, reverse)?
            };
            let Some((key, value)) = pair.filter(|(k, _)| k.as_slice() >= from && k.as_slice() < to) else {
                return Ok(());
            };
            if !each(&key, &value) {
                return Ok(());
            }
            at = key;
            if !reverse {
                at.push(0);
            }
        }
    }

    /// The number of a deletion, from 1: they are reclaimed in order.
    pub(super) fn next_number(&self) -> u64 {
        self.internal_ids.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn internal_id(&self) -> ObjectId {
        let n = self.internal_ids.fetch_add(1, Ordering::Relaxed);
        internal_object(n)
    }
}

/// Ids of maps that never had a name: all bits of the first half set, which no UUID version has.
pub(super) fn internal_object(n: u64) -> ObjectId {
    let mut id = [0xff; 16];
    id[8..].copy_from_slice(&n.to_le_bytes());
    ObjectId(id)
}

pub(super) fn internal_number(id: ObjectId) -> Option<u64> {
    let (head, tail) = id.0.split_at(8);
    (head == [0xff; 8]).then(|| u64::from_le_bytes(tail.try_into().unwrap_or_default()))
}
