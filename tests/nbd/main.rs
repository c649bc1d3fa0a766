//! The NBD server against a client that says exactly what the test wants: each rule of the protocol and of the crate's
//! own once, on a live server.
#![cfg(feature = "nbd")]
#![allow(clippy::unwrap_used)]

#[path = "../common/nbd.rs"]
mod client;
#[path = "../common/nbd_generate.rs"]
mod nbd_generate;
#[path = "../common/nbd_session.rs"]
mod nbd_session;
// Included for what `nbd_generate` draws with; the rest of it is for other tests.
#[allow(dead_code)]
#[path = "../common/rng.rs"]
mod rng;

mod connections;
mod negotiation;
mod requests;

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use client::*;
use snapvol::device::{Device, MemoryDevice};
use snapvol::nbd::{Builder, Server, exports, find_export};
use snapvol::{
    AttachOptions, CreateOptions, Error, OpenOptions, Point, Pool, RollbackOptions, SnapshotId, SnapshotSpec,
    Snapshots, Volume, VolumeId, VolumeSpec, VolumeStatus,
};

const MIB: u64 = 1 << 20;

/// A pool and a server for it on a socket in a folder that goes with it.
struct Rig {
    pool: Pool,
    server: Option<Server>,
    folder: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        Self::of(Pool::create_in_memory(CreateOptions::new().limit_bytes(256 << 20)).unwrap(), |b| b)
    }

    fn of(pool: Pool, tune: impl FnOnce(Builder) -> Builder) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = tune(Server::builder(&pool).unix(folder.path().join("s"))).serve().unwrap();
        Self { pool, server: Some(server), folder }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    fn volume(&self, name: &str, size_bytes: u64) -> VolumeId {
        self.pool.create_volume(VolumeSpec::blank(size_bytes).name(name)).unwrap().id
    }

    fn snapshot(&self, volume: VolumeId, name: &str) -> SnapshotId {
        self.pool.create_snapshot(volume, SnapshotSpec::new().name(name).force(true)).unwrap().id
    }

    fn open(&self, name: &str) -> Client {
        Client::open(&self.path(), name)
    }

    fn status(&self, id: VolumeId) -> VolumeStatus {
        self.pool.volume(id).unwrap().status
    }

    /// Ends the server; afterwards nothing is attached and the pool is sound.
    fn end(mut self) {
        self.server.take().unwrap().shutdown();
        assert!(!self.path().exists());
        let report = self.pool.check(Default::default(), &mut |_| {}).unwrap();
        assert!(report.findings.is_empty(), "{:#?}", report.findings);
        self.pool.close().expect("nothing is attached any more");
    }
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
