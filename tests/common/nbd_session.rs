//! One NBD session whose client side is arbitrary bytes, for the fuzzer and for plain tests.
// Each user takes a part of this.
#![allow(dead_code, clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use snapvol::nbd::Server;
use snapvol::{CreateOptions, Pool, SnapshotSpec, VolumeSpec};

/// A server over a small pool in memory, whose volume `v` has a snapshot `s`.
pub(crate) fn server() -> Server {
    let pool = Pool::create_in_memory(CreateOptions::new().limit_bytes(64 << 20)).unwrap();
    let id = pool.create_volume(VolumeSpec::blank(1 << 20).name("v")).unwrap().id;
    pool.create_snapshot(id, SnapshotSpec::new().name("s")).unwrap();
    Server::builder(&pool).stall_limit(Duration::from_secs(5)).serve().unwrap()
}

/// Says all of `input` to the server and takes whatever it answers. The body of the fuzz target: the server must
/// neither panic nor hang.
pub(crate) fn session(input: &[u8]) {
    static SERVER: OnceLock<Server> = OnceLock::new();
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
        let _ = SERVER.get_or_init(server).serve_connection(theirs);
    });
}
