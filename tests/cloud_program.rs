//! The program `cloud_serve` over real sockets: three dialects on one port and the data beside them, what a kill
//! leaves, what each option does, how it ends.
#![cfg(all(feature = "dialect", feature = "nbd"))]
#![allow(clippy::unwrap_used)]

#[path = "common/nbd.rs"]
mod client;
#[path = "common/program.rs"]
mod program;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use client::Client;
use program::{Folder, Serving, failure};
use serde_json::{Value, json};
use snapvol::dialect::MAX_BODY_BYTES;
use snapvol::{CheckOptions, OpenOptions, Pool};

/// The example, built once.
fn binary() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| program::build("cloud_serve"))
}

fn run(args: &[&str]) -> Output {
    Command::new(binary()).args(args).output().unwrap()
}

/// The program on a free port of loopback.
struct Cloud {
    serving: Serving,
    address: String,
}

/// What came back: nothing when the program was gone before it could say it.
type Answer = Option<(u16, Value)>;

/// One request over a connection of its own.
fn send(address: &str, head: &str, body: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let head = format!("{head}\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).ok()?;
    // A server that has read enough may hang up before all was written.
    let _ = stream.write_all(body);
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let body = &answer[end + 4..];
    let length = head
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    if length != Some(body.len()) {
        return None;
    }
    let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(body).unwrap() };
    Some((status, body))
}

fn ask(address: &str, line: &str, body: &str) -> Answer {
    let head = format!("{line} HTTP/1.1\r\nX-Auth-Token: any\r\nContent-Length: {}", body.len());
    send(address, &head, body.as_bytes())
}

impl Cloud {
    fn start(pool: &str, more: &[&str]) -> Self {
        let mut command = Command::new(binary());
        command.args(["--pool", pool, "--listen", "0"]).args(more);
        let mut serving = Serving::start(command);
        let address = serving.address();
        assert!(address.starts_with("127.0.0.1:"), "{address}");
        Self { serving, address }
    }

    fn ask(&self, line: &str, body: Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        ask(&self.address, line, &body).unwrap()
    }

    fn get(&self, path: &str) -> Value {
        let (status, body) = self.ask(&format!("GET {path}"), Value::Null);
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    /// A request of project `p1` that starts work.
    fn does(&self, line: &str, body: Value) -> Value {
        let (method, path) = line.split_once(' ').unwrap();
        let (status, answer) = self.ask(&format!("{method} /v2/p1/{path}"), body);
        assert!([200, 202].contains(&status), "{line}: {status} {answer}");
        answer
    }

    fn volume(&self, name: &str) -> String {
        let made = self.does("POST volumes", json!({ "volume": { "size": 1, "name": name } }));
        made["volume"]["id"].as_str().unwrap().to_owned()
    }

    fn snapshot(&self, volume: &str, name: &str) -> String {
        let body = json!({ "snapshot": { "volume_id": volume, "name": name, "force": true } });
        self.does("POST snapshots", body)["snapshot"]["id"].as_str().unwrap().to_owned()
    }

    fn status(&self, volume: &str) -> Value {
        self.get(&format!("/v2/p1/volumes/{volume}"))["volume"]["status"].clone()
    }

    /// Ends as it was asked to, with nothing to say.
    fn end(self, signal: &str) {
        let out = self.serving.end(signal);
        assert!(out.status.success() && out.stderr.is_empty(), "{out:?}");
    }
}

fn assert_clean(pool: &str) {
    let pool = Pool::open(pool, OpenOptions::new()).unwrap();
    assert!(pool.check(CheckOptions::default(), &mut |_| {}).unwrap().is_clean());
}

/// A file system of 16 MiB with one file in it, where the tool to make one is installed; else bytes.
fn file_system(folder: &Folder) -> (Vec<u8>, bool) {
    let (path, tree) = (folder.path("fs"), folder.path("tree"));
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(format!("{tree}/hello"), "world").unwrap();
    std::fs::write(&path, []).unwrap();
    let made = Command::new("mkfs.ext4").args(["-q", "-d", &tree, &path, "16M"]).output();
    match made {
        Ok(out) if out.status.success() => (std::fs::read(&path).unwrap(), true),
        other => {
            eprintln!("NO FILE SYSTEM IS MADE: {other:?}");
            ((0..16 << 20).map(|n: u32| (n / 4096 * 7 + 1) as u8).collect(), false)
        }
    }
}

#[test]
fn control_and_data_meet() {
    let folder = Folder::new();
    let (pool, socket) = (folder.path("pool"), folder.path("nbd"));
    let nbd = Path::new(&socket);
    let cloud = Cloud::start(&pool, &["--nbd-socket", &socket, "--project", "p1"]);
    let volume = cloud.volume("data");
    let attach = json!({ "os-attach": { "instance_uuid": "vm", "mountpoint": "/dev/vdb" } });
    cloud.does(&format!("POST volumes/{volume}/action"), attach);
    assert_eq!(cloud.status(&volume), "in-use");

    let (image, is_file_system) = file_system(&folder);
    let mut client = Client::open(nbd, "data");
    assert_eq!(client.size, 1 << 30);
    let pieces = || image.chunks(1 << 20).enumerate().map(|(n, piece)| ((n as u64) << 20, piece));
    for (at, piece) in pieces().filter(|(_, piece)| piece.iter().any(|b| *b != 0)) {
        client.write(at, piece);
    }
    client.flush();
    let snapshot = cloud.snapshot(&volume, "before");
    // On it goes, all over it.
    for at in 0..16 {
        client.write(at << 20, &[0xEE; 65_536]);
    }
    client.flush();
    assert!(client.read(0, 4096) == [0xEE; 4096]);
    // The snapshot is there to be read; the volume is in use, and is not rolled back.
    let mut frozen = Client::open(nbd, "data@before");
    assert!(pieces().all(|(at, piece)| frozen.read(at, piece.len() as u32) == piece));
    frozen.disconnect();
    let roll = json!({ "rollback": { "volume_id": volume, "name": "data" } });
    let line = format!("POST /v2/p1/os-vendor-snapshots/{snapshot}/rollback");
    assert_eq!(cloud.ask(&line, roll.clone()).0, 400);
    client.disconnect();
    cloud.does(&format!("POST volumes/{volume}/action"), json!({ "os-detach": {} }));
    let mut waited = 0;
    while cloud.status(&volume) != "available" {
        // The server lets go of a connection in its own time.
        thread::sleep(Duration::from_millis(20));
        waited += 1;
        assert!(waited < 500, "the volume stays in use");
    }
    assert_eq!(cloud.ask(&line, roll).0, 202);

    let mut client = Client::open(nbd, "data");
    let back: Vec<u8> = (0..16).flat_map(|n| client.read(n << 20, 1 << 20)).collect();
    assert!(back == image, "the data are as they were");
    client.disconnect();
    if is_file_system {
        let path = folder.path("back");
        std::fs::write(&path, &back).unwrap();
        let checked = Command::new("e2fsck").args(["-fn", &path]).output().unwrap();
        assert!(checked.status.success(), "{checked:?}");
        let read = Command::new("debugfs").args(["-R", "cat /hello", &path]).output().unwrap();
        assert_eq!(read.stdout, b"world");
    }
    // A client that knows nothing of us reads and writes it, too.
    let url = format!("nbd+unix:///data?socket={socket}");
    let script = ["write -P 0x5a 8M 64k", "flush", "read -P 0x5a 8M 64k"].map(|line| ["-c", line]).concat();
    match Command::new("qemu-io").args(["-f", "raw"]).args(script).arg(&url).output() {
        Ok(out) => {
            let said = String::from_utf8_lossy(&out.stdout).into_owned();
            assert!(
                out.status.success() && !said.contains("failed") && said.contains("read 65536"),
                "{out:?}"
            );
            assert!(Client::open(nbd, "data").read(8 << 20, 65_536) == [0x5A; 65_536]);
        }
        Err(missing) => eprintln!("QEMU-IO IS NOT RUN: {missing}"),
    }
    cloud.end("TERM");
    assert_clean(&pool);
}

/// Clients make and change things until the program is killed: whatever was answered is there afterwards, whatever was
/// flushed too, nothing shows a transient status, and what was deleted stays away.
#[test]
fn what_was_answered_is_there_after_a_kill() {
    let folder = Folder::new();
    let (pool, socket) = (folder.path("pool"), folder.path("nbd"));
    let options = ["--nbd-socket", &socket, "--profile", "none"];
    let mut rng = fastrand::Rng::with_seed(11);
    let mut kept: Vec<String> = Vec::new();
    let mut gone: Vec<String> = Vec::new();
    let volume = {
        let cloud = Cloud::start(&pool, &options);
        let volume = cloud.volume("data");
        cloud.end("INT");
        volume
    };
    let mut flushed = 0u64;
    for round in 0..8 {
        let Cloud { serving, address } = Cloud::start(&pool, &options);
        let (made, removed, written) = thread::scope(|scope| {
            // Goes on until nobody answers.
            let control = scope.spawn(|| {
                let (mut made, mut removed) = (Vec::new(), Vec::new());
                for n in 1.. {
                    let body = json!({ "snapshot": { "volume_id": volume, "force": true } }).to_string();
                    let Some((202, answer)) = ask(&address, "POST /v2/p1/snapshots", &body) else { break };
                    made.push(answer["snapshot"]["id"].as_str().unwrap().to_owned());
                    if n % 3 == 0 {
                        // Nobody knows what becomes of this one without an answer.
                        let victim = made.remove(0);
                        let line = format!("DELETE /v2/p1/snapshots/{victim}");
                        let Some((202, _)) = ask(&address, &line, "") else { break };
                        removed.push(victim);
                    }
                }
                (made, removed)
            });
            let mut client = Client::open(Path::new(&socket), "data");
            let count = rng.u64(1..100);
            for n in 1..=count {
                client.write(0, &(flushed + n).to_le_bytes().repeat(512));
                client.flush();
            }
            // Not flushed, and the connection stays open.
            client.write(4096, &[round as u8; 4096]);
            thread::sleep(Duration::from_micros(rng.u64(0..3000)));
            assert!(!serving.end("KILL").status.success());
            let (made, removed) = control.join().unwrap();
            (made, removed, flushed + count)
        });
        println!(
            "round {round}: {} snapshots made, {} deleted, {written} written",
            made.len(),
            removed.len()
        );
        flushed = written;
        kept.extend(made);
        gone.extend(removed);

        let cloud = Cloud::start(&pool, &options);
        let mut seen = Vec::new();
        let mut next = "/v2/p1/snapshots?limit=100".to_owned();
        loop {
            let page = cloud.get(&next);
            for one in page["snapshots"].as_array().unwrap() {
                assert_eq!(one["status"], "available");
                seen.push(one["id"].as_str().unwrap().to_owned());
            }
            let Some(links) = page.get("snapshots_links") else { break };
            let href = links[0]["href"].as_str().unwrap();
            next = href.strip_prefix(&format!("http://{}", cloud.address)).unwrap().to_owned();
        }
        assert!(kept.iter().all(|id| seen.contains(id)), "a snapshot that was answered is missing");
        assert!(gone.iter().all(|id| !seen.contains(id)), "a snapshot that was deleted is back");
        assert!(seen.len() <= kept.len() + 8, "at most one of each round was made without an answer");
        for volume in cloud.get("/v2/p1/volumes/detail")["volumes"].as_array().unwrap() {
            assert_eq!(volume["status"], "available");
        }
        assert_eq!(Client::open(Path::new(&socket), "data").read(0, 8), flushed.to_le_bytes());
        cloud.end("TERM");
        assert_clean(&pool);
    }
    assert!(kept.len() > 50 && gone.len() > 20, "{} and {}", kept.len(), gone.len());
}

#[test]
fn lists_are_paged_by_their_links_under_both_prefixes() {
    let folder = Folder::new();
    let cloud = Cloud::start(&folder.path("pool"), &[]);
    let mut made: Vec<String> = (0..5).map(|n| cloud.volume(&format!("v{n}"))).collect();
    made.reverse();
    for prefix in ["v2", "v3"] {
        let (mut seen, mut pages) = (Vec::new(), 0);
        let mut next = format!("/{prefix}/p1/volumes?limit=2");
        loop {
            let page = cloud.get(&next);
            pages += 1;
            for volume in page["volumes"].as_array().unwrap() {
                let id = volume["id"].as_str().unwrap();
                let itself = format!("http://{}/{prefix}/p1/volumes/{id}", cloud.address);
                assert_eq!(volume["links"][0]["href"], itself);
                seen.push(id.to_owned());
            }
            let Some(links) = page.get("volumes_links") else { break };
            let href = links[0]["href"].as_str().unwrap();
            assert!(href.starts_with(&format!("http://{}/{prefix}/p1/volumes?", cloud.address)), "{href}");
            next = href[7 + cloud.address.len()..].to_owned();
        }
        assert_eq!((seen, pages), (made.clone(), 3));
    }
    cloud.end("INT");
}

#[test]
fn deleting_is_strict_where_that_was_asked_for() {
    let folder = Folder::new();
    for strict in [true, false] {
        let pool = folder.path(&format!("pool-{strict}"));
        let cloud = Cloud::start(&pool, if strict { &["--strict-cascade"] } else { &[] });
        let volume = cloud.volume("v");
        let snapshot = cloud.snapshot(&volume, "s");
        let delete =
            |query: &str| cloud.ask(&format!("DELETE /v2/p1/volumes/{volume}{query}"), Value::Null).0;
        if strict {
            assert_eq!((delete(""), delete("?cascade=false")), (400, 400));
            assert_eq!(cloud.status(&volume), "available");
        }
        assert_eq!(delete(if strict { "?cascade=true" } else { "" }), 202);
        // For good: also when the pool was closed in between.
        cloud.end("TERM");
        let cloud = Cloud::start(&pool, &[]);
        for path in [format!("volumes/{volume}"), format!("snapshots/{snapshot}")] {
            assert_eq!(cloud.ask(&format!("GET /v2/p1/{path}"), Value::Null).0, 404);
        }
    }
}

#[test]
fn a_region_that_was_named_is_the_only_one() {
    let folder = Folder::new();
    let pool = folder.path("pool");
    let region = |cloud: &Cloud, asked: &str| {
        let answer = cloud.get(&format!("/?Action=DescribeSnapshot&Region={asked}"));
        let shown = answer["Infos"][0]["Region"].as_str().map(str::to_owned);
        (answer["TotalCount"].as_u64().unwrap(), shown)
    };
    let cloud = Cloud::start(&pool, &["--region", "cn-north"]);
    let volume = cloud.volume("v");
    cloud.snapshot(&volume, "s");
    assert_eq!(region(&cloud, "cn-north"), (1, Some("cn-north".into())));
    assert_eq!(region(&cloud, ""), (1, Some("cn-north".into())));
    assert_eq!(region(&cloud, "us"), (0, None));
    let refused = cloud.get(&format!("/?Action=CreateSnapshot&Region=us&DiskID={volume}"));
    assert_eq!(refused["RetCode"], 62101);
    cloud.end("TERM");
    // Without a name any is its own, and is echoed.
    let cloud = Cloud::start(&pool, &[]);
    assert_eq!(region(&cloud, "us"), (1, Some("us".into())));
}

#[test]
fn projects_keep_their_numbers() {
    let folder = Folder::new();
    let pool = folder.path("pool");
    let create = |cloud: &Cloud, project: &str| {
        let body = json!({ "volume": { "size": 1 } });
        let (status, made) = cloud.ask(&format!("POST /v2/{project}/volumes"), body);
        assert_eq!(status, 202);
        let body = json!({ "snapshot": { "volume_id": made["volume"]["id"], "name": project } });
        assert_eq!(cloud.ask(&format!("POST /v2/{project}/snapshots"), body).0, 202);
    };
    let numbers = |cloud: &Cloud| -> Vec<(String, u64)> {
        let answer = cloud.get("/v2/index.php?Action=DescribeSnapshots");
        let all = answer["snapshotSet"].as_array().unwrap().iter();
        let pair =
            |s: &Value| (s["snapshotName"].as_str().unwrap().to_owned(), s["projectId"].as_u64().unwrap());
        let mut all: Vec<_> = all.map(pair).collect();
        all.sort();
        all
    };
    let cloud = Cloud::start(&pool, &["--project", "one", "--project", "two"]);
    // The one that is used first comes behind those that were named.
    for project in ["four", "one", "two"] {
        create(&cloud, project);
    }
    let want = |more: &[(&str, u64)]| -> Vec<(String, u64)> {
        let all = [("four", 2), ("one", 0), ("two", 1)].iter().chain(more);
        let mut all: Vec<_> = all.map(|(name, number)| ((*name).to_owned(), *number)).collect();
        all.sort();
        all
    };
    assert_eq!(numbers(&cloud), want(&[]));
    assert_eq!(cloud.get("/v2/index.php?Action=DescribeSnapshots&projectId=0")["totalCount"], 1);
    cloud.end("TERM");
    for options in [&["--project", "one"][..], &[], &["--project", "one", "--project", "nine"]] {
        let cloud = Cloud::start(&pool, options);
        assert_eq!(numbers(&cloud), want(&[]));
        let projects = cloud.get("/?Action=DescribeSnapshot&ProjectIDs.0=two");
        assert_eq!(projects["Infos"][0]["ProjectID"], "two");
        // What belongs to one is not there for another.
        assert_eq!(cloud.get("/v2/one/volumes")["volumes"].as_array().unwrap().len(), 1);
        cloud.end("TERM");
    }
    let cloud = Cloud::start(&pool, &[]);
    create(&cloud, "ten");
    assert_eq!(numbers(&cloud), want(&[("ten", 4)]), "nine was named before");
    cloud.end("TERM");
    // The default project is that one for good.
    let other = failure(run(&["--pool", &pool, "--listen", "0", "--project", "two"]));
    assert!(other.contains("two"), "{other}");
}

#[test]
fn one_port_tells_the_dialects_apart_and_reads_no_more_than_it_must() {
    let folder = Folder::new();
    let cloud = Cloud::start(&folder.path("pool"), &[]);
    let (status, versions) = cloud.ask("GET /", Value::Null);
    assert_eq!((status, versions["versions"].as_array().unwrap().len()), (300, 2));
    let href = versions["versions"][1]["links"][0]["href"].as_str().unwrap();
    assert_eq!(href, format!("http://{}/v3/", cloud.address));
    assert_eq!(cloud.get("/?Region=cn")["RetCode"], 160);
    assert_eq!(cloud.ask("POST /", Value::Null).1["RetCode"], 160);
    assert_eq!(cloud.get("/?Action=DescribeSnapshot")["RetCode"], 0);
    assert_eq!(cloud.get("/v2/index.php?Action=DescribeSnapshots")["code"], 0);
    assert_eq!(cloud.get("/v2/p1/volumes"), json!({ "volumes": [] }));
    assert_eq!(cloud.ask("GET /elsewhere", Value::Null).0, 404);
    // Too much is refused unparsed: it would be a volume. One byte less is one.
    let body = |len: usize| {
        let json = r#"{"volume": {"size": 1}}"#;
        format!("{json}{}", " ".repeat(len - json.len()))
    };
    for line in [
        "POST /v2/p1/volumes",
        "POST /v2/index.php?Action=DescribeSnapshots",
        "POST /?Action=DescribeSnapshot",
    ] {
        let (status, answer) = ask(&cloud.address, line, &body(MAX_BODY_BYTES + 1)).unwrap();
        assert_eq!(status, 413, "{line}: {answer}");
    }
    // The same in pieces whose sum nobody has said.
    let piece = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    let chunks = [piece(&body(MAX_BODY_BYTES)), piece(" "), piece("")].concat();
    let head = "POST /v2/p1/volumes HTTP/1.1\r\nTransfer-Encoding: chunked";
    assert_eq!(send(&cloud.address, head, chunks.as_bytes()).unwrap().0, 413);
    assert_eq!(cloud.get("/v2/p1/volumes"), json!({ "volumes": [] }));
    assert_eq!(ask(&cloud.address, "POST /v2/p1/volumes", &body(MAX_BODY_BYTES)).unwrap().0, 202);
    cloud.end("TERM");
}

#[test]
fn the_profile_says_whose_numbers_bind() {
    let folder = Folder::new();
    for profile in ["evs", "none"] {
        let cloud = Cloud::start(&folder.path(profile), &["--profile", profile]);
        let volume = cloud.volume("v");
        for _ in 0..7 {
            cloud.snapshot(&volume, "s");
        }
        let body = json!({ "snapshot": { "volume_id": volume } });
        let eighth = cloud.ask("POST /v2/p1/snapshots", body).0;
        let typed =
            cloud.ask("POST /v2/p1/volumes", json!({ "volume": { "size": 1, "volume_type": "any" } })).0;
        let name = "x".repeat(61);
        let cbs =
            cloud.get(&format!("/v2/index.php?Action=CreateSnapshot&storageId={volume}&snapshotName={name}"));
        let ucloud = cloud.get(&format!("/?Action=CreateSnapshot&DiskID={volume}&Name={name}"));
        let found = (eighth, typed, cbs["code"].as_i64().unwrap(), ucloud["RetCode"].as_i64().unwrap());
        assert_eq!(found, if profile == "evs" { (413, 400, 9003, 230) } else { (202, 202, 0, 0) });
        // What the pool itself cannot hold is refused under either.
        let long = json!({ "snapshot": { "volume_id": volume, "name": "x".repeat(256) } });
        assert_eq!(cloud.ask("POST /v2/p1/snapshots", long).0, 400);
    }
}

#[test]
fn whatever_fails_is_one_line_and_status_1() {
    let folder = Folder::new();
    let pool = folder.path("pool");
    for args in [
        &[][..],
        &["--pool", &pool],
        &["--listen", "0"],
        &["--pool", &pool, "--listen", "nowhere"],
        &["--pool", &pool, "--listen", "0", "--profile", "gold"],
        &["--pool", &pool, "--listen", "0", "--what"],
        &["--pool", &pool, "--listen", "0", "extra"],
    ] {
        failure(run(args));
        assert!(!Path::new(&pool).exists(), "{args:?} left a pool");
    }
    std::fs::write(&pool, "this is no pool").unwrap();
    failure(run(&["--pool", &pool, "--listen", "0"]));
    assert_eq!(std::fs::read(&pool).unwrap(), b"this is no pool");
    std::fs::remove_file(&pool).unwrap();
    let long = "p".repeat(61);
    assert!(failure(run(&["--pool", &pool, "--listen", "0", "--project", &long])).contains("61"));
    let cloud = Cloud::start(&pool, &[]);
    assert!(failure(run(&["--pool", &pool, "--listen", "0"])).contains("open elsewhere"));
    let other = folder.path("other");
    failure(run(&["--pool", &other, "--listen", &cloud.address]));
    cloud.end("TERM");
}
