//! Serves a pool to NBD clients.
//!
//! ```text
//! nbd_serve create --pool POOL --volume NAME --size BYTES
//! nbd_serve serve --pool POOL (--socket PATH | --listen ADDRESS)...
//! ```
//!
//! `create` makes a volume, and the pool if there is none, and prints the volume's id. `serve` exports every volume
//! and every snapshot, prints `ready` once clients can connect, and ends cleanly on SIGINT and SIGTERM. An address is
//! `HOST:PORT`, or a port alone, on loopback then; with port 0 the one that was taken is told on standard error.
//! Whatever fails is told in one line on standard error, with status 1.

#[path = "../serving/mod.rs"]
mod serving;

use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use lexopt::prelude::*;
use serving::{Outcome, address};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use snapvol::{CreateOptions, OpenOptions, Pool, VolumeSpec, nbd};

const USAGE: &str = "nbd_serve create --pool POOL --volume NAME --size BYTES, \
                     or nbd_serve serve --pool POOL (--socket PATH | --listen ADDRESS)";

fn main() -> ExitCode {
    let done = Command::parse().and_then(|command| match command {
        Command::Create { pool, volume, size_bytes } => create(pool, volume, size_bytes),
        Command::Serve { pool, sockets, addresses } => serve(pool, sockets, addresses),
    });
    serving::ended("nbd_serve", done)
}

enum Command {
    Create { pool: PathBuf, volume: String, size_bytes: u64 },
    Serve { pool: PathBuf, sockets: Vec<PathBuf>, addresses: Vec<SocketAddr> },
}

impl Command {
    fn parse() -> Outcome<Self> {
        let mut args = lexopt::Parser::from_env();
        let mut command: Option<OsString> = None;
        let (mut pool, mut volume, mut size_bytes) = (None, None, None);
        let (mut sockets, mut addresses) = (Vec::new(), Vec::new());
        while let Some(arg) = args.next()? {
            match arg {
                Value(word) if command.is_none() => command = Some(word),
                Long("pool") => pool = Some(PathBuf::from(args.value()?)),
                Long("volume") => volume = Some(args.value()?.string()?),
                Long("size") => size_bytes = Some(args.value()?.parse()?),
                Long("socket") => sockets.push(PathBuf::from(args.value()?)),
                Long("listen") => addresses.push(address(&args.value()?.string()?)?),
                other => return Err(format!("{}; usage: {USAGE}", other.unexpected()).into()),
            }
        }
        let listens = !sockets.is_empty() || !addresses.is_empty();
        match (command.as_ref().and_then(|c| c.to_str()), pool, volume, size_bytes) {
            (Some("create"), Some(pool), Some(volume), Some(size_bytes)) if !listens => {
                Ok(Self::Create { pool, volume, size_bytes })
            }
            (Some("serve"), Some(pool), None, None) if listens => {
                Ok(Self::Serve { pool, sockets, addresses })
            }
            _ => Err(format!("usage: {USAGE}").into()),
        }
    }
}

fn create(path: PathBuf, volume: String, size_bytes: u64) -> Outcome<()> {
    let made = !path.exists();
    let pool = match made {
        true => Pool::create(&path, CreateOptions::new())?,
        false => Pool::open(&path, OpenOptions::new())?,
    };
    match pool.create_volume(VolumeSpec::blank(size_bytes).name(volume)) {
        Ok(volume) => {
            pool.close()?;
            println!("{}", volume.id);
            Ok(())
        }
        Err(e) => {
            drop(pool);
            if made {
                // A refused call leaves nothing behind.
                std::fs::remove_file(&path)?;
            }
            Err(e.into())
        }
    }
}

fn serve(path: PathBuf, sockets: Vec<PathBuf>, addresses: Vec<SocketAddr>) -> Outcome<()> {
    // From here on a signal is kept until it is looked at.
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let pool = Pool::open(&path, OpenOptions::new())?;
    let any_port = addresses.iter().any(|a| a.port() == 0);
    let server = nbd::Server::builder(&pool);
    let server = sockets.into_iter().fold(server, |server, path| server.unix(path));
    let server = addresses.into_iter().fold(server, |server, address| server.tcp(address));
    let server = server.serve()?;
    if any_port {
        for address in server.tcp_addresses() {
            eprintln!("listening on {address}");
        }
    }
    println!("ready");
    std::io::stdout().flush()?;
    signals.forever().next();
    server.shutdown();
    pool.close()?;
    Ok(())
}
