//! The EVS dialect, wire for wire: one test per line of the operations' acceptance list, named after it; the
//! documents' samples as fixtures; every status against every operation; random requests.
#![cfg(feature = "dialect")]
#![allow(clippy::unwrap_used)]

#[path = "../clouds/mod.rs"]
mod clouds;

mod backups;
mod lists;
mod random;
mod snapshots;
mod table;
mod volumes;

use std::collections::BTreeSet;
use std::sync::Arc;

use clouds::fault::assert_fault;
use http::{Method, Request};
use serde_json::{Value, json};
use snapvol::dialect::{self, Config};
use snapvol::{
    AttachOptions, Background, BackupQuery, CreateOptions, Disk, ImageQuery, Pool, SequentialIds, SnapshotId,
    SnapshotQuery, StepClock, VolumeId, VolumeQuery,
};

const GIB: u64 = 1 << 30;
const P: &str = "5dd0b0056f3d47b6ab4121667d35621a";
/// An id that names nothing.
const NOBODY: &str = "00000000-0000-4000-8000-000000000001";

/// A pool behind the dialect.
struct Cloud {
    pool: Pool,
    config: Config,
    prefix: &'static str,
}

#[derive(Debug)]
struct Reply {
    status: u16,
    text: String,
    body: Value,
}

impl Cloud {
    fn new() -> Self {
        Self::with(Config::new())
    }

    fn with(config: Config) -> Self {
        let options = CreateOptions::new()
            .blocks_per_chunk(64)
            .log_bytes(4 << 20)
            .limit_bytes(64 << 20)
            .initial_bytes(0)
            .cache_bytes(4 << 20)
            .background(Background::Manual)
            .id_source(Arc::new(SequentialIds::new(7)))
            .clock(Arc::new(StepClock::new(1_361_764_613_081_642, 1)));
        Self { pool: Pool::create_in_memory(options).unwrap(), config, prefix: "v2" }
    }

    fn v3(mut self) -> Self {
        self.prefix = "v3";
        self
    }

    /// A request to an address behind the version and the project.
    fn send(&self, method: Method, path: &str, body: Option<Value>) -> Reply {
        let body = body.map(|b| b.to_string()).unwrap_or_default();
        self.raw(method, &format!("/{}/{P}/{path}", self.prefix), body.as_bytes())
    }

    fn raw(&self, method: Method, uri: &str, body: &[u8]) -> Reply {
        let request = Request::builder().method(method).uri(uri).header("host", "evs.example:8776");
        let request = request.header("x-auth-token", "any").body(body).unwrap();
        let answer = dialect::handle(&self.pool, &self.config, &request);
        let text = String::from_utf8(answer.body().clone()).unwrap();
        let body = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() };
        Reply { status: answer.status().as_u16(), text, body }
    }

    fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, None)
    }
    fn post(&self, path: &str, body: Value) -> Reply {
        self.send(Method::POST, path, Some(body))
    }
    fn put(&self, path: &str, body: Value) -> Reply {
        self.send(Method::PUT, path, Some(body))
    }
    fn delete(&self, path: &str) -> Reply {
        self.send(Method::DELETE, path, None)
    }
    fn action(&self, id: &str, body: Value) -> Reply {
        self.post(&format!("volumes/{id}/action"), body)
    }

    /// A new volume with these keys beside a size of 1.
    fn make(&self, mut more: Value) -> String {
        let keys = more.as_object_mut().unwrap();
        keys.entry("size").or_insert(json!(1));
        let reply = self.post("volumes", json!({ "volume": keys })).is(202);
        text(&reply.body["volume"]["id"])
    }

    fn volume(&self) -> String {
        self.make(json!({}))
    }

    fn snapshot(&self, volume: &str) -> String {
        let reply = self.post("snapshots", json!({ "snapshot": { "volume_id": volume } })).is(202);
        text(&reply.body["snapshot"]["id"])
    }

    fn attach(&self, volume: &str, server: &str) {
        let body =
            json!({ "os-attach": { "instance_uuid": server, "mountpoint": "/dev/vdb", "host_name": "h1" } });
        self.action(volume, body).is(202);
    }

    fn show(&self, volume: &str) -> Value {
        self.get(&format!("volumes/{volume}")).is(200).body["volume"].clone()
    }

    fn status(&self, volume: &str) -> String {
        text(&self.show(volume)["status"])
    }

    fn disk(&self, volume: &str) -> Disk {
        self.pool.attach(volume.parse().unwrap(), AttachOptions::new()).unwrap()
    }

    fn write(&self, volume: &str, at: u64, fill: u8) {
        let disk = self.disk(volume);
        disk.write_at(&[fill; 4096], at).unwrap();
        disk.flush().unwrap();
    }

    fn read(&self, volume: &str, at: u64) -> u8 {
        let mut seen = [0; 4096];
        self.disk(volume).read_at(&mut seen, at).unwrap();
        assert!(seen.iter().all(|b| *b == seen[0]));
        seen[0]
    }

    /// All that any listing shows: equal before and after a refused call.
    fn face(&self) -> String {
        let pool = &self.pool;
        let volumes = pool.list_volumes(&VolumeQuery::new()).unwrap();
        let snapshots = pool.list_snapshots(&SnapshotQuery::new()).unwrap();
        let images = pool.list_images(&ImageQuery::new()).unwrap();
        let backups = pool.list_backups(&BackupQuery::new()).unwrap();
        let projects = pool.projects().unwrap();
        let usage: Vec<_> = projects.iter().map(|p| pool.usage(&p.id).unwrap()).collect();
        format!("{volumes:?}{snapshots:?}{images:?}{backups:?}{projects:?}{usage:?}")
    }

    /// A call that must be refused with this code, and change nothing.
    fn refuses(&self, status: u16, code: &str, call: impl FnOnce(&Self) -> Reply) {
        let before = self.face();
        call(self).refused(status, code);
        assert_eq!(before, self.face(), "a refused call left a trace");
    }
}

impl Reply {
    #[track_caller]
    fn is(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text);
        self
    }

    /// An error as the documents shape it.
    #[track_caller]
    fn refused(&self, status: u16, code: &str) {
        assert_fault((self.status, &self.body), status, code);
    }

    #[track_caller]
    fn ids(&self, key: &str) -> Vec<String> {
        self.body[key].as_array().unwrap().iter().map(|one| text(&one["id"])).collect()
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

fn set<'a>(names: &[&'a str]) -> BTreeSet<&'a str> {
    names.iter().copied().collect()
}

fn sample(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// The kind of each value, for comparing shapes.
fn kinds(value: &Value) -> Vec<(String, &'static str)> {
    let kind = |v: &Value| match v {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "text",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    value.as_object().unwrap().iter().map(|(k, v)| (k.clone(), kind(v))).collect()
}

fn volume_id(text: &str) -> VolumeId {
    text.parse().unwrap()
}

fn snapshot_id(text: &str) -> SnapshotId {
    text.parse().unwrap()
}

/// `YYYY-MM-DDTHH:MM:SS.ffffff`.
fn assert_time(value: &Value) {
    let shape: String =
        value.as_str().unwrap().chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(shape, "0000-00-00T00:00:00.000000");
}
