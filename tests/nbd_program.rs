//! The program `nbd_serve`: what it prints, how it fails, how it ends.
#![cfg(feature = "nbd")]
#![allow(clippy::unwrap_used)]

#[path = "common/nbd.rs"]
mod client;
#[path = "common/program.rs"]
mod program;

use std::fs;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use client::{Client, FUA, TRIM, WRITE, ZEROES};
use program::{Folder, Serving, failure};
use snapvol::{CheckOptions, OpenOptions, Pool, SnapshotSpec, VolumeQuery};

/// The example, built once.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| program::build("nbd_serve"))
}

fn run(args: &[&str]) -> Output {
    Command::new(program()).args(args).output().unwrap()
}

fn create(pool: &str, volume: &str, size: &str) -> Output {
    run(&["create", "--pool", pool, "--volume", volume, "--size", size])
}

/// The program, serving.
fn start(args: &[&str]) -> Serving {
    let mut command = Command::new(program());
    command.arg("serve").args(args);
    Serving::start(command)
}

#[test]
fn it_creates_serves_and_ends_on_a_signal_with_everything_durable() {
    let folder = Folder::new();
    let (pool, socket) = (folder.path("p"), folder.path("s"));
    // The pool is made with the first volume, and kept for the second.
    for (name, size) in [("one", "1048576"), ("two", "2097152")] {
        let out = create(&pool, name, size);
        assert!(out.status.success() && out.stderr.is_empty(), "{out:?}");
        let id = String::from_utf8(out.stdout).unwrap();
        let made = Pool::open(&pool, OpenOptions::new()).unwrap();
        let newest = made.list_volumes(&VolumeQuery::new()).unwrap().items.remove(0);
        assert_eq!((newest.id.to_string(), newest.name.as_deref()), (id.trim().to_string(), Some(name)));
        made.create_snapshot(newest.id, SnapshotSpec::new().name("s")).unwrap();
        made.close().unwrap();
    }
    for (round, signal) in ["TERM", "INT"].into_iter().enumerate() {
        let serving = start(&["--pool", &pool, "--socket", &socket]);
        let path = Path::new(&socket);
        assert_eq!(Client::open(path, "two").size, 2 << 20);
        assert_eq!(Client::open(path, "two@s").flags & 2, 2);
        let mut client = Client::open(path, "one");
        assert_eq!(client.read(0, 5), [&b"\0\0\0\0\0"[..], b"round"][round]);
        client.write(0, b"round");
        // Connected, and not flushed.
        let out = serving.end(signal);
        assert!(out.status.success() && out.stderr.is_empty(), "{out:?}");
        assert!(client.is_closed() && !path.exists());
    }
    let pool = Pool::open(&pool, OpenOptions::new()).unwrap();
    assert!(pool.check(CheckOptions::default(), &mut |_| {}).unwrap().findings.is_empty());
}

#[test]
fn it_listens_on_loopback_and_replaces_a_stale_socket() {
    let folder = Folder::new();
    let (pool, socket) = (folder.path("p"), folder.path("s"));
    assert!(create(&pool, "v", "4096").status.success());
    drop(UnixListener::bind(&socket).unwrap());
    let mut serving = start(&["--pool", &pool, "--socket", &socket, "--listen", "0"]);
    Client::open(Path::new(&socket), "").disconnect();
    let address = serving.address();
    assert!(address.starts_with("127.0.0.1:") && std::net::TcpStream::connect(&address).is_ok());
    assert!(serving.end("TERM").status.success());
    let serving = start(&["--pool", &pool, "--listen", &address]);
    assert!(serving.end("TERM").status.success());
}

#[test]
fn a_killed_server_leaves_what_was_durable_and_a_socket_that_is_replaced() {
    let folder = Folder::new();
    let (pool, socket) = (folder.path("p"), folder.path("s"));
    assert!(create(&pool, "v", "1048576").status.success());
    let mut expected = vec![0; 1 << 20];
    // Each is the last thing before the end: what one connection wrote and another one's flush covers, and FUA.
    for (i, (command, flags)) in
        [(WRITE, 0), (WRITE, FUA), (ZEROES, FUA), (TRIM, FUA)].into_iter().enumerate()
    {
        let serving = start(&["--pool", &pool, "--socket", &socket]);
        let mut clients = [0; 2].map(|_| Client::open(Path::new(&socket), "v"));
        assert!(clients[0].read(0, 1 << 20) == expected, "round {i}");
        let at = (i + 1) * 65_536;
        clients[0].write(at as u64, &[7; 8192]);
        clients[1].flush();
        let payload = if command == WRITE { &[9; 8192][..] } else { &[] };
        assert_eq!(clients[0].call(flags, command, at as u64, 8192, payload).error, 0);
        if flags == 0 {
            clients[1].flush();
        }
        assert!(!serving.end("KILL").status.success());
        assert!(Path::new(&socket).exists(), "stale from now on");
        expected[at..at + 8192].fill(if command == WRITE { 9 } else { 0 });
    }
    let serving = start(&["--pool", &pool, "--socket", &socket]);
    assert!(Client::open(Path::new(&socket), "v").read(0, 1 << 20) == expected);
    assert!(serving.end("TERM").status.success());
}

#[test]
fn whatever_fails_is_one_line_and_status_1() {
    let folder = Folder::new();
    let (pool, socket) = (folder.path("p"), folder.path("s"));
    for args in [
        &[][..],
        &["create"],
        &["serve"],
        &["serve", "--pool", &pool],
        &["serve", "--socket", &socket],
        &["create", "--pool", &pool, "--volume", "v"],
        &["create", "--pool", &pool, "--volume", "v", "--size", "large"],
        &["create", "--pool", &pool, "--volume", "v", "--size", "-1"],
        &["create", "--pool", &pool, "--volume", "v", "--size", "4096", "--socket", &socket],
        &["serve", "--pool", &pool, "--listen", "nowhere"],
        &["serve", "--pool", &pool, "--socket", &socket, "--volume", "v"],
        &["remove", "--pool", &pool],
        &["--what"],
    ] {
        failure(run(args));
    }
    assert!(failure(create(&pool, "v", "1000")).contains("4096"), "the rule is told");
    assert!(failure(create(&pool, &"v".repeat(256), "4096")).contains("name"));
    assert!(!Path::new(&pool).exists(), "nothing is left of it");
    assert!(failure(run(&["serve", "--pool", &pool, "--socket", &socket])).contains("No such file"));
    fs::write(&pool, "this is no pool").unwrap();
    failure(run(&["serve", "--pool", &pool, "--socket", &socket]));
    failure(create(&pool, "v", "4096"));
    assert_eq!(fs::read(&pool).unwrap(), b"this is no pool");
    fs::remove_file(&pool).unwrap();

    assert!(create(&pool, "v", "4096").status.success());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let held = TcpListener::bind(taken).unwrap();
    failure(run(&["serve", "--pool", &pool, "--listen", &held.local_addr().unwrap().to_string()]));
    fs::write(&socket, "precious").unwrap();
    assert!(failure(run(&["serve", "--pool", &pool, "--socket", &socket])).contains(&socket));
    assert_eq!(fs::read(&socket).unwrap(), b"precious");
    let other = folder.path("s2");
    let serving = start(&["--pool", &pool, "--socket", &other]);
    assert!(failure(create(&pool, "w", "4096")).contains("open elsewhere"));
    assert!(
        failure(run(&["serve", "--pool", &pool, "--socket", &folder.path("s3")])).contains("open elsewhere")
    );
    assert!(serving.end("TERM").status.success());
}
