//! Verified fetching, and the one cache with a byte limit.

use std::any::Any;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::sync::{Cache, DefaultLifecycle};

use super::tree::{Kind, Node};
use crate::device::Device;
use crate::error::{Corruption, Error, Result};
use crate::format::{NodeRef, node_sum};
use crate::units::{BLOCK, BlockAddr};

/// Keys are addresses and chunk numbers: one multiplication spreads them well enough.
#[derive(Default)]
pub(crate) struct AddrHasher(u64);

impl Hasher for AddrHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.write_u64(u64::from(*b));
        }
    }
    fn write_u64(&mut self, v: u64) {
        let x = (self.0 ^ v).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = x ^ (x >> 29);
    }
}

pub(crate) type AddrHash = BuildHasherDefault<AddrHasher>;

#[derive(Clone)]
struct Page {
    sum: u64,
    bytes: u32,
    content: Arc<dyn Any + Send + Sync>,
}

#[derive(Clone)]
struct ByBytes;

impl quick_cache::Weighter<u64, Page> for ByBytes {
    fn weight(&self, _key: &u64, page: &Page) -> u64 {
        u64::from(page.bytes)
    }
}

/// Nodes that an operation fetched for itself: it finishes even when the cache cannot keep them.
pub(crate) struct Held<K: Kind>(Vec<(BlockAddr, Arc<Node<K>>)>);

impl<K: Kind> Held<K> {
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }
    pub(crate) fn add(&mut self, at: BlockAddr, node: Arc<Node<K>>) {
        self.0.push((at, node));
    }
    fn get(&self, at: BlockAddr) -> Option<Arc<Node<K>>> {
        self.0.iter().find(|(a, _)| *a == at).map(|(_, n)| Arc::clone(n))
    }
}

/// The device seen as verified nodes and pages.
pub(crate) struct Store {
    pub(crate) device: Arc<dyn Device>,
    pub(crate) uuid: [u8; 16],
    cache: Cache<u64, Page, ByBytes, AddrHash, DefaultLifecycle<u64, Page>>,
    /// Metadata blocks read from the device.
    pub(crate) fetched: AtomicU64,
    /// First copies that were bad while the second served.
    pub(crate) second_copies: AtomicU64,
    /// Damaged checksum pages that were computed from the data.
    pub(crate) rebuilt_pages: AtomicU64,
    end_block: AtomicU64,
}

/// Cache key of the checksum page of a chunk, which keeps its key when it moves.
pub(crate) const CHECKSUM_KEY: u64 = 1 << 63;
/// What a cached item costs beside its bytes.
const OVERHEAD: usize = 64;

impl Store {
    pub(crate) fn new(device: Arc<dyn Device>, uuid: [u8; 16], cache_bytes: u64) -> Self {
        let items = (cache_bytes / 4096).clamp(16, 1 << 20) as usize;
        Self {
            device,
            uuid,
            cache: Cache::with(items, cache_bytes, ByBytes, AddrHash::default(), DefaultLifecycle::default()),
            fetched: AtomicU64::new(0),
            second_copies: AtomicU64::new(0),
            rebuilt_pages: AtomicU64::new(0),
            end_block: AtomicU64::new(u64::MAX),
        }
    }

    /// Addresses at or past this block are damage.
    pub(crate) fn set_end(&self, block: u64) {
        self.end_block.store(block, Ordering::Relaxed);
    }

    pub(crate) fn cached_bytes(&self) -> u64 {
        self.cache.weight()
    }

    pub(crate) fn page<T: Any + Send + Sync>(&self, key: u64, sum: u64) -> Option<Arc<T>> {
        let page = self.cache.get(&key)?;
        if page.sum != sum {
            return None;
        }
        page.content.downcast::<T>().ok()
    }

    pub(crate) fn keep<T: Any + Send + Sync>(&self, key: u64, sum: u64, bytes: usize, content: Arc<T>) {
        self.cache.insert(key, Page { sum, bytes: (bytes + OVERHEAD) as u32, content });
    }

    /// Reads one block of metadata, unverified.
    pub(crate) fn read_block(&self, at: BlockAddr, structure: &'static str) -> Result<Box<[u8; BLOCK]>> {
        if at.raw() >= self.end_block.load(Ordering::Relaxed) {
            let end = self.end_block.load(Ordering::Relaxed);
            return Err(
                Corruption::new(structure, at.raw(), "address", format!("below {end}"), at.raw()).into()
            );
        }
        let mut block = Box::new([0u8; BLOCK]);
        self.fetched.fetch_add(1, Ordering::Relaxed);
        self.device.read_at(&mut block[..], at.byte_offset()).map_err(|source| Error::Io {
            op: "read",
            offset: at.byte_offset(),
            len: BLOCK as u64,
            source,
        })?;
        Ok(block)
    }

    /// Reads a block by reference: either copy whose checksum is right.
    pub(crate) fn read_ref(&self, r: &NodeRef, structure: &'static str) -> Result<Box<[u8; BLOCK]>> {
        let mut first = None;
        for (nth, at) in std::iter::once(r.a).chain(r.b).enumerate() {
            let failed = match self.read_block(at, structure) {
                Ok(block) => {
                    let sum = node_sum(&block[..]);
                    if sum == r.sum {
                        if nth > 0 {
                            self.second_copies.fetch_add(1, Ordering::Relaxed);
                        }
                        return Ok(block);
                    }
                    let (want, got) = (format!("{:#x}", r.sum), format!("{sum:#x}"));
                    Error::from(Corruption::new(structure, at.raw(), "checksum", want, got))
                }
                Err(e) => e,
            };
            first.get_or_insert(failed);
        }
        Err(first.unwrap_or(Error::Poisoned))
    }

    pub(crate) fn cached<K: Kind>(&self, r: &NodeRef, held: &Held<K>) -> Option<Arc<Node<K>>> {
        self.page::<Node<K>>(r.a.raw(), r.sum).or_else(|| held.get(r.a).filter(|n| n.home() == Some(r)))
    }

    /// The node behind `r`, from the cache or the device (N4).
    pub(crate) fn fetch<K: Kind>(&self, r: &NodeRef) -> Result<Arc<Node<K>>> {
        if let Some(node) = self.page::<Node<K>>(r.a.raw(), r.sum) {
            return Ok(node);
        }
        let name = if r.level == 0 { K::LEAF.name() } else { K::INNER.name() };
        let block = self.read_ref(r, name)?;
        let node = Arc::new(Node::<K>::decode(&block, r, &self.uuid)?);
        self.keep_node(r, &node);
        Ok(node)
    }

    pub(crate) fn keep_node<K: Kind>(&self, r: &NodeRef, node: &Arc<Node<K>>) {
        self.keep(r.a.raw(), r.sum, node.memory_bytes(), Arc::clone(node));
    }
}
