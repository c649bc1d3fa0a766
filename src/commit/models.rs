//! Models of single parts of this room, to be run by shuttle in many orders of their threads: see `tests/models/`.

use std::sync::Arc;

use shuttle::thread;

use super::buffer::{Buffers, SLOTS};
use super::hot::Hot;
use super::pins::Pins;
use crate::alloc::ChecksumPage;
use crate::device::{Device, MemoryDevice};
use crate::sync::RwLock;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::units::{BLOCK, BlockAddr};

/// Readers look at what is current; a keeper replaces it, waits, and frees what it was (C5).
pub fn pins() {
    #[derive(Default)]
    struct Shared {
        pins: Pins,
        current: AtomicU64,
        freed: [AtomicBool; 4],
    }
    let shared = Arc::new(Shared::default());
    let readers = [0, 1].map(|_| {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            for _ in 0..2 {
                let _pin = shared.pins.enter();
                let at = shared.current.load(Ordering::SeqCst);
                thread::yield_now();
                assert!(!shared.freed[at as usize].load(Ordering::SeqCst), "{at} was freed under a reader");
            }
        })
    });
    for next in 1..4 {
        shared.current.store(next, Ordering::SeqCst);
        shared.pins.wait();
        shared.freed[next as usize - 1].store(true, Ordering::SeqCst);
    }
    readers.map(|reader| reader.join()).into_iter().for_each(|joined| assert!(joined.is_ok()));
}

/// Readers go through the table, or fill it from a map; a writer moves the block and frees its old place (H1). Two
/// blocks of the map take one line of the table from each other (H3).
pub fn hot_blocks() {
    struct Shared {
        pins: Pins,
        hot: Hot,
        /// Where two blocks lie.
        map: RwLock<[u64; 2]>,
        freed: [AtomicBool; 12],
    }
    const STATE: u64 = 7;
    const LBAS: [u64; 2] = [5, 5 + (1 << 20)];
    let shared = Arc::new(Shared {
        pins: Pins::default(),
        hot: Hot::new(64 << 10),
        map: RwLock::new([0, 1]),
        freed: Default::default(),
    });
    let readers = [0, 1].map(|reader: usize| {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            for n in 0..3 {
                let which = (reader + n) % 2;
                let _pin = shared.pins.enter();
                let at = match shared.hot.get(STATE, LBAS[which]) {
                    Some((at, crc)) => {
                        assert_eq!(at.raw() as u32, crc, "words of different owners");
                        assert_eq!(at.raw() as usize % 2, which, "the place of another block");
                        at.raw()
                    }
                    None => {
                        let map = shared.map.read();
                        let at = map[which];
                        shared.hot.put(STATE, LBAS[which], BlockAddr::new(at), at as u32);
                        at
                    }
                };
                thread::yield_now();
                assert!(!shared.freed[at as usize].load(Ordering::SeqCst), "{at} was freed under a reader");
            }
        })
    });
    for next in 2..8 {
        let which = next as usize % 2;
        let old = {
            let mut map = shared.map.write();
            let old = std::mem::replace(&mut map[which], next);
            shared.hot.forget(STATE, LBAS[which], 1);
            old
        };
        shared.pins.wait();
        shared.freed[old as usize].store(true, Ordering::SeqCst);
    }
    readers.map(|reader| reader.join()).into_iter().for_each(|joined| assert!(joined.is_ok()));
}

/// Frames fill, are written, and come round again, while readers look for blocks in them: each finds its own bytes
/// there, or on the device (F1).
pub fn frames() {
    const BLOCKS: usize = 7 * SLOTS;
    struct Shared {
        buffers: Buffers,
        device: MemoryDevice,
        pages: Vec<Arc<ChecksumPage>>,
        adopted: AtomicU64,
    }
    let device = MemoryDevice::new();
    let grown = device.set_len((BLOCKS * BLOCK) as u64);
    assert!(grown.is_ok());
    let shared = Arc::new(Shared {
        buffers: Buffers::new(0),
        device,
        pages: (0..BLOCKS).map(|_| Arc::new(ChecksumPage::zeroed())).collect(),
        adopted: AtomicU64::new(0),
    });
    let reader = thread::spawn({
        let shared = Arc::clone(&shared);
        move || {
            for n in 0..12 {
                let adopted = shared.adopted.load(Ordering::SeqCst) as usize;
                let Some(at) = adopted.checked_sub(1 + n * 5 % adopted.max(1)) else { continue };
                let here = shared.buffers.read(&shared.pages[at], 0, <[u8]>::to_vec);
                let bytes = here.unwrap_or_else(|| {
                    let mut bytes = vec![0; BLOCK];
                    assert!(shared.device.read_at(&mut bytes, (at * BLOCK) as u64).is_ok());
                    bytes
                });
                assert!(bytes.iter().all(|byte| usize::from(*byte) == at + 1), "block {at}: {}", bytes[0]);
            }
        }
    });
    let writer = thread::spawn({
        let shared = Arc::clone(&shared);
        move || {
            for _ in 0..4 {
                assert!(shared.buffers.write_full(&shared.device, 0).is_ok());
                thread::yield_now();
            }
        }
    });
    for (at, page) in shared.pages.iter().enumerate() {
        // As writers do: none takes the last frame while there is nothing written to take instead.
        while shared.buffers.is_pressed() {
            assert!(shared.buffers.write_full(&shared.device, 0).is_ok());
        }
        let bytes = [at as u8 + 1; BLOCK];
        let adopted = shared.buffers.adopt(BlockAddr::new(at as u64), 0, &bytes, Arc::clone(page));
        assert!(adopted.is_ok());
        shared.adopted.store(at as u64 + 1, Ordering::SeqCst);
    }
    for joined in [reader.join(), writer.join()] {
        assert!(joined.is_ok());
    }
}
