//! One NBD session whose client side is arbitrary bytes, for the fuzzer and for plain tests.
// Each user takes a part of this.
#![allow(dead_code, clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use snapvol::nbd::Server;
use snapvol::{Background, CheckOptions, CreateOptions, Pool, SnapshotSpec, VolumeSpec};

const BLOCK: usize = 4096;
/// Bytes of the volume `v`.
pub(crate) const SIZE_BYTES: u64 = 1 << 20;

/// Threads of servers that have panicked: the session that they worked for merely ends.
static PANICS: AtomicU64 = AtomicU64::new(0);

fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if thread::current().name().is_some_and(|name| name.starts_with("nbd")) {
                PANICS.fetch_add(1, Ordering::SeqCst);
            }
            others(panic);
        }));
    });
}

/// Says all of `input` to a server over a small pool in memory, whose volume `v` has a snapshot `s`, and takes whatever
/// it answers. The server must neither panic nor hang, nor leave an attachment, a changed snapshot or an unsound pool.
pub(crate) fn session(input: &[u8]) {
    count_panics();
    let options = CreateOptions::new()
        .limit_bytes(4 << 20)
        .log_bytes(64 << 10)
        .blocks_per_chunk(64)
        .cache_bytes(1 << 20)
        .background(Background::Manual);
    let pool = Pool::create_in_memory(options).unwrap();
    let volume = pool.create_volume(VolumeSpec::blank(SIZE_BYTES).name("v")).unwrap().id;
    let disk = pool.attach(volume, Default::default()).unwrap();
    disk.write_at(&[7; 2 * BLOCK], 0).unwrap();
    drop(disk);
    let snapshot = pool.create_snapshot(volume, SnapshotSpec::new().name("s")).unwrap().id;
    let server = Server::builder(&pool).stall_limit(Duration::from_secs(5)).serve().unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            // The server may hang up before it has heard everything.
            let _ = (&ours).write_all(input);
            let _ = ours.shutdown(Shutdown::Write);
        });
        scope.spawn(|| {
            let mut answer = [0; 64 << 10];
            while (&ours).read(&mut answer).is_ok_and(|len| len > 0) {}
        });
        // What is wrong with the handshake is its error.
        let _ = server.serve_connection(theirs);
    });
    assert_eq!(PANICS.load(Ordering::SeqCst), 0, "a thread of the server has panicked");
    let after = pool.volume(volume).unwrap();
    assert!(after.attachments.is_empty() && after.size_bytes == SIZE_BYTES, "{after:?}");
    server.shutdown();
    let mut seen = vec![0xee; 3 * BLOCK];
    pool.attach_snapshot(snapshot).unwrap().read_at(&mut seen, 0).unwrap();
    assert!(
        seen.iter().enumerate().all(|(at, byte)| *byte == if at < 2 * BLOCK { 7 } else { 0 }),
        "snapshot"
    );
    assert!(pool.scrub(CheckOptions::new(), &mut |_| {}).unwrap().is_clean());
}
