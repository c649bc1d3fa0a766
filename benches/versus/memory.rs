//! Memory of the machine.

use std::hint::black_box;

/// Bytes that a timed write phase may dirty at most, page cache included.
const PHASE_BYTES: usize = 256 << 20;

/// Touches memory and gives it back, so that the phase that follows does not pay for pages which a hypervisor has to
/// find first. Without this a write that grows the page cache can be five times slower for no reason of its own.
pub(crate) fn pretouch() {
    black_box(vec![1_u8; PHASE_BYTES]);
}
