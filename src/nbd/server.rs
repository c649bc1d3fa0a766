//! The server: where it listens, which connections there are, and how it ends.
//!
//! - V1 All connections to one volume share one attachment, which ends with the last of them.
//! - V2 What one connection can use is fixed when the server is built: threads, buffers, places. None of them takes
//!   from another.
//! - V3 After [`Server::shutdown`] nothing of the server is left: no thread, no attachment, no socket file.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{Point, Pool, Result};

use super::attachment::{Attachment, Attachments};
use super::negotiate::{MAX_PAYLOAD_BYTES, negotiate};
use super::session;
use super::socket::{Input, Socket};

/// How long the acceptor pauses when the system refuses it a connection, for example for want of descriptors.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// What a server is to be: see [`Server::builder`].
#[derive(Debug)]
#[must_use]
pub struct Builder {
    pool: Pool,
    unix: Vec<PathBuf>,
    tcp: Vec<SocketAddr>,
    connections: usize,
    threads: usize,
    memory_bytes: u64,
    stall: Duration,
    grace: Duration,
}

impl Builder {
    /// Listens on a unix socket at this path as well. A socket file that nobody listens on is replaced; the file
    /// is removed at the end. Who may connect is a matter of the permissions of its folder.
    pub fn unix(mut self, path: impl Into<PathBuf>) -> Self {
        self.unix.push(path.into());
        self
    }
    /// Listens on this TCP address as well; port 0 takes any free one. NBD knows no authentication, and without
    /// TLS, which is not offered, no secrecy: anything but loopback is for trusted networks only.
    pub fn tcp(mut self, address: SocketAddr) -> Self {
        self.tcp.push(address);
        self
    }
    /// Most connections at a time, at least 1; 128 by default. One too many is closed at once.
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections = connections.max(1);
        self
    }
    /// Most requests of one connection that are served at a time, each by a thread of its own, at least 1; 4 by
    /// default. The threads are started when they are needed.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }
    /// Most bytes in payload buffers over all connections, in equal parts; 512 MiB by default. It is used only as far
    /// as requests need it. Requests that are longer than their part, which is at least 64 KiB, are served in pieces.
    pub fn memory_bytes(mut self, bytes: u64) -> Self {
        self.memory_bytes = bytes;
        self
    }
    /// After what time a client is given up that does not read its replies, or stops in the middle of a request or
    /// in the handshake; 60 seconds by default. Between requests it may be silent for ever.
    pub fn stall_limit(mut self, limit: Duration) -> Self {
        self.stall = limit.max(Duration::from_millis(1));
        self
    }
    /// How long [`Server::shutdown`] waits for requests that are being served before it cuts connections off;
    /// 10 seconds by default.
    pub fn shutdown_grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Listens, and serves until [`Server::shutdown`] or until the server is dropped. On return clients can connect.
    ///
    /// Without an address it listens nowhere and serves what [`Server::serve_connection`] is given.
    ///
    /// # Errors
    /// The operating system's, with the address; `AddrInUse` when somebody listens there, `AlreadyExists` when
    /// something else than a socket is at a path.
    pub fn serve(self) -> io::Result<Server> {
        let share = self.memory_bytes / (self.connections as u64 * self.threads as u64);
        let piece_bytes = share.clamp(64 << 10, MAX_PAYLOAD_BYTES.into()) & !4095;
        let limits = Limits {
            connections: self.connections,
            threads: self.threads,
            piece_bytes: piece_bytes as usize,
            stall: self.stall,
        };
        let core = Arc::new(Core::new(self.pool, limits));
        // From here on dropping the server takes back what was done so far.
        let mut server =
            Server { core, acceptors: Vec::new(), paths: Vec::new(), tcp: Vec::new(), grace: self.grace };
        for path in self.unix {
            let listener = listen_unix(&path).map_err(|e| told(e, &path.display()))?;
            server.paths.push(SocketFile::of(path)?);
            server.accept_from(Listener::Unix(listener))?;
        }
        for address in self.tcp {
            let listener = TcpListener::bind(address).map_err(|e| told(e, &address))?;
            server.tcp.push(listener.local_addr()?);
            server.accept_from(Listener::Tcp(listener))?;
        }
        Ok(server)
    }
}

fn told(e: io::Error, address: &dyn std::fmt::Display) -> io::Error {
    io::Error::new(e.kind(), format!("cannot listen on {address}: {e}"))
}

/// Binds a path; a socket that nobody listens on any more is in nobody's way.
fn listen_unix(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            if !fs::symlink_metadata(path)?.file_type().is_socket() {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, "this is not a socket"));
            }
            match UnixStream::connect(path) {
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
                Err(e) => return Err(e),
                Ok(_) => return Err(io::Error::new(io::ErrorKind::AddrInUse, "somebody listens there")),
            }
            UnixListener::bind(path)
        }
        other => other,
    }
}

/// A socket file of ours, to be removed unless somebody has replaced it.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn of(path: PathBuf) -> io::Result<Self> {
        let found = fs::symlink_metadata(&path)?;
        Ok(Self { path, identity: (found.dev(), found.ino()) })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.identity) {
            // Nobody could do anything about a failure; the next server replaces the file.
            let _ = fs::remove_file(&self.path);
        }
    }
}

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    fn accept(&self) -> io::Result<OwnedFd> {
        Ok(match self {
            Self::Unix(l) => l.accept()?.0.into(),
            Self::Tcp(l) => l.accept()?.0.into(),
        })
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(l) => l.as_fd(),
            Self::Tcp(l) => l.as_fd(),
        }
    }
}

/// Serves the volumes and snapshots of a pool over NBD: see the [module](super).
///
/// Dropping it is a [`shutdown`](Self::shutdown).
#[derive(Debug)]
pub struct Server {
    core: Arc<Core>,
    /// Each acceptor ends when its other half of the pair is gone.
    acceptors: Vec<(UnixStream, JoinHandle<()>)>,
    paths: Vec<SocketFile>,
    tcp: Vec<SocketAddr>,
    grace: Duration,
}

impl Server {
    /// A server for this pool that listens nowhere yet.
    pub fn builder(pool: &Pool) -> Builder {
        Builder {
            pool: pool.clone(),
            unix: Vec::new(),
            tcp: Vec::new(),
            connections: 128,
            threads: 4,
            memory_bytes: 512 << 20,
            stall: Duration::from_secs(60),
            grace: Duration::from_secs(10),
        }
    }

    /// The TCP addresses it listens on, with the ports that it got.
    pub fn tcp_addresses(&self) -> &[SocketAddr] {
        &self.tcp
    }

    /// How many connections there are now.
    pub fn connections(&self) -> usize {
        self.core.connections.lock().live.len()
    }

    /// Serves one connected stream socket, however it came about, and returns when it is over. Calls count as
    /// connections like any other, and may be made from many threads.
    ///
    /// # Errors
    /// `ConnectionRefused` when there are as many connections as may be, or the server is closing; the handshake's
    /// errors. What happens after the handshake is between the server and the client.
    pub fn serve_connection(&self, socket: impl Into<OwnedFd>) -> io::Result<()> {
        self.core.connect(socket.into())?.serve()
    }

    /// Refuses new connections, answers what clients still ask with `ESHUTDOWN`, waits until what is being served
    /// is done, and closes everything: listeners, connections, attachments, socket files. Clients that do not take
    /// their replies are cut off after the grace period. Nothing is flushed that no client asked for:
    /// [`Pool::close`] does that.
    pub fn shutdown(self) {
        drop(self);
    }

    fn accept_from(&mut self, listener: Listener) -> io::Result<()> {
        let (ours, theirs) = UnixStream::pair()?;
        let core = Arc::clone(&self.core);
        // A connection may be gone between poll and accept.
        rustix::fs::fcntl_setfl(
            &listener,
            rustix::fs::fcntl_getfl(&listener)? | rustix::fs::OFlags::NONBLOCK,
        )?;
        let accepting = move || core.accept(&listener, &theirs);
        let thread = thread::Builder::new().name("nbd-accept".into()).spawn(accepting)?;
        self.acceptors.push((ours, thread));
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.core.closing.store(true, Ordering::SeqCst);
        for (wake, thread) in self.acceptors.drain(..) {
            drop(wake);
            // A panic in there has been reported by its thread.
            let _ = thread.join();
        }
        self.paths.clear();
        self.core.close_connections(self.grace);
    }
}

/// What one connection may use.
#[derive(Debug)]
pub(super) struct Limits {
    connections: usize,
    pub(super) threads: usize,
    pub(super) piece_bytes: usize,
    stall: Duration,
}

/// What all connections share.
#[derive(Debug)]
pub(super) struct Core {
    pool: Pool,
    limits: Limits,
    closing: AtomicBool,
    attachments: Arc<Attachments>,
    connections: Mutex<Connections>,
    /// A connection has ended.
    ended: Condvar,
}

#[derive(Default)]
struct Connections {
    next: u64,
    live: HashMap<u64, Arc<Socket>>,
}

impl std::fmt::Debug for Connections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connections").field("live", &self.live.len()).finish()
    }
}

impl Core {
    fn new(pool: Pool, limits: Limits) -> Self {
        Self {
            pool,
            limits,
            closing: AtomicBool::new(false),
            attachments: Arc::default(),
            connections: Mutex::default(),
            ended: Condvar::new(),
        }
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    pub(super) fn attach(&self, point: Point) -> Result<Attachment> {
        self.attachments.attach(&self.pool, point)
    }

    fn accept(self: &Arc<Self>, listener: &Listener, wake: &UnixStream) {
        loop {
            let mut both = [PollFd::new(wake, PollFlags::IN), PollFd::new(listener, PollFlags::IN)];
            if poll(&mut both, None).is_err() {
                continue;
            }
            if !both[0].revents().is_empty() {
                return;
            }
            match listener.accept() {
                Ok(socket) => {
                    // A connection that is refused closes with its socket.
                    let Ok(connection) = self.connect(socket) else { continue };
                    let serving = move || drop(connection.serve());
                    // Without a thread it is refused, too.
                    let _ = thread::Builder::new().name("nbd".into()).spawn(serving);
                }
                Err(e)
                    if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted) => {}
                Err(_) => {
                    let _ = poll(&mut [PollFd::new(wake, PollFlags::IN)], Some(&PAUSE));
                }
            }
        }
    }

    /// Takes a place for a connection.
    fn connect(self: &Arc<Self>, socket: OwnedFd) -> io::Result<Connection> {
        let socket = Arc::new(Socket::new(socket, self.limits.stall)?);
        let mut connections = self.connections.lock();
        // Looked at under the lock: whoever closes the connections later sees this one.
        if self.is_closing() || connections.live.len() >= self.limits.connections {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let id = connections.next;
        connections.next += 1;
        connections.live.insert(id, Arc::clone(&socket));
        Ok(Connection { core: Arc::clone(self), id, socket })
    }

    fn close_connections(&self, grace: Duration) {
        let mut connections = self.connections.lock();
        connections.live.values().for_each(|socket| socket.end_input());
        let deadline = Instant::now() + grace;
        while !connections.live.is_empty() {
            if self.ended.wait_until(&mut connections, deadline).timed_out() {
                break;
            }
        }
        connections.live.values().for_each(|socket| socket.cut());
        while !connections.live.is_empty() {
            self.ended.wait(&mut connections);
        }
    }
}

/// A connection that has its place.
struct Connection {
    core: Arc<Core>,
    id: u64,
    socket: Arc<Socket>,
}

impl Connection {
    fn serve(&self) -> io::Result<()> {
        let mut input = Input::new(&self.socket);
        if let Some(chosen) = negotiate(&self.core, &self.socket, &mut input)? {
            session::serve(&self.core, &self.socket, input, &chosen);
        }
        Ok(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.core.connections.lock().live.remove(&self.id);
        self.core.ended.notify_all();
    }
}
