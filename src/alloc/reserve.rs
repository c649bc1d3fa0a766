//! The metadata reserve: what deletes, checkpoints and discards may need when nothing else is left (P7), and who stops
//! before it is eaten (A5).

use super::space::{IndexRoot, Space, State};
use crate::format::chunk::FANOUT;
use crate::sync::atomic::Ordering;
use crate::units::BLOCK_BYTES;

/// Nodes that may be dirty at once, at least.
const LEAST_DIRTY: u64 = 8;
/// Nodes that one transaction changes, at most, unless it is a long one.
const TRANSACTION_NODES: u64 = 64;
/// Quarters of the metadata reserve at which calls stop that make the metadata grow. Data that fills holes between
/// other data is one of them: it takes no chunk, but its maps do.
pub(crate) const GROWTH_QUARTERS: u64 = 5;
/// At which discards stop: they give blocks back, but may split extents.
pub(crate) const DISCARD_QUARTERS: u64 = 4;
/// At which discards of great ranges stop: these give more back than they split.
pub(crate) const GREAT_DISCARD_QUARTERS: u64 = 2;
impl Space {
    /// Whoever filled the pool may have had a smaller cache and set less aside: of what is left, only so many nodes
    /// may be dirty at once that data is refused, and discards are not.
    pub(super) fn affordable(&self, dirty_limit: u64) -> u64 {
        let index = self.index.read();
        let free = self.metadata_free(&index, &self.state.lock());
        let others = self.reserve_blocks(index.chunks) - 2 * self.reserved_nodes();
        let nodes = (free / 6 * 4).saturating_sub(others) / 2;
        dirty_limit.min(nodes).max(LEAST_DIRTY)
    }

    /// Blocks that metadata may still need (A5): all nodes that may be dirty, twice, the index, and for every chunk
    /// three pages while a checkpoint writes all of them anew, and two of counts where giving back ends a uniform one.
    pub(crate) fn reserve_blocks(&self, chunks: u64) -> u64 {
        2 * self.reserved_nodes() + 5 * chunks + 4 * (chunks / FANOUT + 2) + 8
    }

    /// However few may be dirty, one transaction changes some dozens of nodes.
    fn reserved_nodes(&self) -> u64 {
        let least = (self.limit_bytes / BLOCK_BYTES / 16).min(TRANSACTION_NODES);
        self.dirty_limit.max(least)
    }

    /// Whether what is left for metadata is less than so many quarters of the reserve, and `more` blocks. Data takes
    /// no further chunk at six; [`GROWTH_QUARTERS`] and [`DISCARD_QUARTERS`] say who stops next. What only gives back
    /// never stops, and a whole reserve is there for it (P7).
    pub(crate) fn metadata_is_short(&self, quarters: u64, more: u64) -> bool {
        self.is_short(&self.index.read(), &self.state.lock(), quarters, more)
    }

    pub(super) fn is_short(&self, index: &IndexRoot, s: &State, quarters: u64, more: u64) -> bool {
        self.metadata_free(index, s) < self.reserve_blocks(index.chunks) / 4 * quarters + more
    }

    /// Blocks that metadata can still have, in chunks of its own, in free ones, and where the pool may yet grow.
    fn metadata_free(&self, index: &IndexRoot, s: &State) -> u64 {
        let g = &self.geometry;
        let most = if self.store.device.can_grow() && !self.full_host.load(Ordering::Relaxed) {
            self.limit_bytes.saturating_sub(g.bytes_for(0)) / (g.blocks_per_chunk * BLOCK_BYTES)
        } else {
            index.chunks
        };
        let used = index.totals.data_chunks + index.totals.meta_chunks + s.opened;
        most.max(index.chunks).saturating_sub(used) * g.blocks_per_chunk + index.totals.meta_free
    }

    /// Whether writers have to ask for room for metadata, too: data that fills holes needs maps as well.
    #[inline]
    pub(crate) fn is_tight(&self) -> bool {
        self.tight.load(Ordering::Relaxed)
    }

    /// Blocks of metadata in use: no transaction changes more than all of it.
    pub(crate) fn metadata_blocks(&self) -> u64 {
        let totals = self.index.read().totals;
        (totals.meta_chunks * self.geometry.blocks_per_chunk).saturating_sub(totals.meta_free)
    }
}
