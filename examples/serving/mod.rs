//! What the programs that serve a pool have in common: how they fail, and what an address is.

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::process::ExitCode;

/// What a step of a program gives, or why the program ends.
pub(crate) type Outcome<T> = Result<T, Box<dyn Error>>;

/// The status a program ends with. What failed is told in one line on standard error, causes included.
pub(crate) fn ended(program: &str, done: Outcome<()>) -> ExitCode {
    let Err(error) = done else { return ExitCode::SUCCESS };
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    eprintln!("{program}: {}", line.replace('\n', " "));
    ExitCode::FAILURE
}

/// `HOST:PORT`, or a port alone: that is one of this host's own, which nobody else reaches.
pub(crate) fn address(text: &str) -> Outcome<SocketAddr> {
    if let Ok(port) = text.trim_start_matches(':').parse() {
        return Ok((Ipv4Addr::LOCALHOST, port).into());
    }
    let found = text.to_socket_addrs().map_err(|e| format!("no address to listen on, {text:?}: {e}"))?;
    found.into_iter().next().ok_or_else(|| format!("no address to listen on: {text:?}").into())
}
