//! What the tests and fuzz targets of the dialects share: a store that is asked by requests, what it shows, and
//! requests out of arbitrary bytes.
//!
//! Each test file is a crate of its own and uses a part of this.
#![allow(dead_code, clippy::unwrap_used)]

pub(crate) mod cbs;
pub(crate) mod evs;
pub(crate) mod fault;
pub(crate) mod random;
pub(crate) mod ucloud;

use std::sync::Arc;

use http::{Request, header};
use serde_json::Value;
use snapvol::dialect::{self, Config};
use snapvol::{
    AttachOptions, Background, BackupQuery, CreateOptions, ImageQuery, Pool, SequentialIds, SnapshotId,
    SnapshotJob, SnapshotQuery, SnapshotSpec, SnapshotStatus, StepClock, Volume, VolumeId, VolumeQuery,
    VolumeSpec,
};

pub(crate) const GIB: u64 = 1 << 30;
/// 2016-05-17 19:58:48 UTC, the moment in the CBS sample.
pub(crate) const SAMPLE_MICROS: u64 = 1_463_515_128_000_000;

/// A small pool, driven by the test alone, in the moment of the sample.
pub(crate) fn options() -> CreateOptions {
    CreateOptions::new()
        .blocks_per_chunk(64)
        .limit_bytes(64 << 20)
        .initial_bytes(0)
        .log_bytes(1 << 20)
        .cache_bytes(4 << 20)
        .background(Background::Manual)
        .id_source(Arc::new(SequentialIds::new(7)))
        .clock(Arc::new(StepClock::new(SAMPLE_MICROS, 1)))
}

/// A pool and how its requests are answered.
pub(crate) struct Store {
    pub(crate) pool: Pool,
    pub(crate) config: Config,
}

impl Store {
    pub(crate) fn new() -> Self {
        Self { pool: Pool::create_in_memory(options()).unwrap(), config: Config::new() }
    }

    /// Of nobody and of the projects `p` and `q`, with a snapshot each.
    pub(crate) fn with_three_disks() -> Self {
        let store = Self::new();
        for volume in [store.disk(1), store.disk_of("p"), store.disk_of("q")] {
            store.pool.create_snapshot(volume.id, SnapshotSpec::new().name("s").force(true)).unwrap();
        }
        store
    }

    pub(crate) fn disk(&self, gib: u64) -> Volume {
        self.pool.create_volume(VolumeSpec::blank(gib * GIB)).unwrap()
    }

    pub(crate) fn disk_of(&self, project: &str) -> Volume {
        self.pool.create_volume(VolumeSpec::blank(GIB).project(project)).unwrap()
    }

    /// Any request; the answer's status and JSON.
    pub(crate) fn ask<B: AsRef<[u8]>>(&self, request: Request<B>) -> (u16, Value) {
        let answer = dialect::handle(&self.pool, &self.config, &request);
        assert_eq!(answer.headers()[header::CONTENT_TYPE], "application/json");
        (answer.status().as_u16(), serde_json::from_slice(answer.body()).unwrap())
    }

    fn get(&self, uri: &str) -> Value {
        let (status, answer) = self.ask(Request::get(uri).body("").unwrap());
        assert_eq!(status, 200, "{uri}: {answer}");
        answer
    }

    /// A CBS action with its parameters, by `GET`.
    pub(crate) fn cbs(&self, query: &str) -> Value {
        self.get(&format!("/v2/index.php?Action={query}"))
    }

    /// A UCloud action with its parameters, by `GET`.
    pub(crate) fn ucloud(&self, query: &str) -> Value {
        self.get(&format!("/?Action={query}"))
    }

    /// An EVS request that has to succeed; its answer.
    pub(crate) fn evs(&self, request: http::request::Builder, body: &str) -> Value {
        let (status, answer) = self.ask(request.body(body.to_owned()).unwrap());
        assert!((200..300).contains(&status), "{status} {answer}");
        answer
    }

    /// An EVS request of project `p`, as `METHOD path behind it`; the answer's status and JSON, null where it is empty.
    pub(crate) fn evs_of_p(&self, line: &str, body: &str) -> (u16, Value) {
        let (method, path) = line.split_once(' ').unwrap();
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/v2/p/{path}") };
        let request = Request::builder().method(method).uri(path).body(body.to_owned()).unwrap();
        let answer = dialect::handle(&self.pool, &self.config, &request);
        let text = answer.body();
        let body = if text.is_empty() { Value::Null } else { serde_json::from_slice(text).unwrap() };
        (answer.status().as_u16(), body)
    }

    /// What is refused, leaves no trace: the answer's code under `key`.
    pub(crate) fn refused(&self, key: &str, ask: impl FnOnce(&Self) -> Value) -> i64 {
        let before = self.face();
        let answer = ask(self);
        assert_eq!(before, self.face(), "a refused call left a trace: {answer}");
        let code = answer[key].as_i64().unwrap();
        assert_ne!(code, 0, "{answer}");
        code
    }

    pub(crate) fn refused_cbs(&self, query: &str) -> i64 {
        self.refused("code", |store| store.cbs(query))
    }

    pub(crate) fn refused_ucloud(&self, query: &str) -> i64 {
        self.refused("RetCode", |store| store.ucloud(query))
    }

    /// All that any listing shows.
    pub(crate) fn face(&self) -> String {
        let volumes = self.pool.list_volumes(&VolumeQuery::new().with_total(true)).unwrap();
        let snapshots = self.pool.list_snapshots(&SnapshotQuery::new().with_total(true)).unwrap();
        let images = self.pool.list_images(&ImageQuery::new()).unwrap();
        let backups = self.pool.list_backups(&BackupQuery::new()).unwrap();
        let projects = self.pool.projects().unwrap();
        let usage: Vec<_> = projects.iter().map(|p| self.pool.usage(&p.id).unwrap()).collect();
        let zones = self.pool.zones().unwrap();
        format!("{volumes:?}{snapshots:?}{images:?}{backups:?}{projects:?}{usage:?}{zones:?}")
    }

    /// Brings a snapshot into a status: a transient one lasts as long as what is returned.
    pub(crate) fn in_status(&self, id: SnapshotId, status: SnapshotStatus) -> Option<SnapshotJob> {
        use SnapshotStatus as S;
        if let S::Available | S::Error | S::ErrorDeleting = status {
            self.pool.reset_snapshot_status(id, status).unwrap();
            return None;
        }
        self.pool.reset_snapshot_status(id, S::Available).unwrap();
        Some(self.pool.begin_snapshot_job(id, status).unwrap())
    }

    /// All that the listings of one project show.
    pub(crate) fn face_of(&self, project: &str) -> String {
        let volumes = self.pool.list_volumes(&VolumeQuery::new().project(project)).unwrap().items;
        let snapshots = self.pool.list_snapshots(&SnapshotQuery::new().project(project)).unwrap().items;
        format!("{volumes:?}{snapshots:?}")
    }

    pub(crate) fn write(&self, id: VolumeId, byte: u8) {
        let disk = self.pool.attach(id, AttachOptions::new()).unwrap();
        disk.write_at(&[byte; 4096], 0).unwrap();
        disk.flush().unwrap();
    }

    pub(crate) fn read(&self, id: VolumeId) -> u8 {
        let mut bytes = [0; 4096];
        self.pool.attach(id, AttachOptions::new()).unwrap().read_at(&mut bytes, 0).unwrap();
        assert!(bytes.iter().all(|b| *b == bytes[0]));
        bytes[0]
    }
}

/// The keys of an object, in their order of the alphabet.
pub(crate) fn keys(object: &Value) -> Vec<&str> {
    object.as_object().unwrap().keys().map(String::as_str).collect()
}

/// The same text so often, ready for a query.
pub(crate) fn many(percent_encoded: &str, count: usize) -> String {
    percent_encoded.repeat(count)
}
