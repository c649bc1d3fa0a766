//! Memory of the machine and of this process.

use std::hint::black_box;

use crate::Result;
use crate::stamp::BLOCK;

/// Blocks of memory that writing one block may dirty, page cache, copies and metadata included.
const TOUCHED_PER_BLOCK: usize = 4;
const MOST_BYTES: usize = 512 << 20;

/// Touches what writing `blocks` may need and gives it back, so that the phase that follows does not pay for pages
/// which a hypervisor has to find first. Without this a write that grows the page cache can be five times slower for
/// no reason of its own.
pub(crate) fn pretouch(blocks: usize) {
    black_box(vec![1_u8; (blocks * TOUCHED_PER_BLOCK * BLOCK).min(MOST_BYTES)]);
}

/// Anonymous memory of this process in bytes: heaps and stacks, without mapped files.
pub(crate) fn resident_bytes() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let kib = status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB"));
    let kib: u64 = kib.ok_or("no RssAnon in /proc/self/status")?.trim().parse()?;
    Ok(kib << 10)
}
