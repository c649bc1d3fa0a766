//! Serves a pool to the clients of three clouds: EVS (and OpenStack's), CBS and UCloud, on one port; with feature `nbd`
//! its volumes and snapshots as well, so that what is made by one door is used through the other.
//!
//! ```text
//! cloud_serve --pool POOL --listen ADDRESS [--nbd-socket PATH] [--profile evs|none] [--strict-cascade]
//!             [--region NAME] [--project ID]...
//! ```
//!
//! EVS is served by its paths, CBS at `/v2/index.php`, UCloud at `/` with an `Action`. The pool is made if there is none.
//! `ready` is printed once clients can connect; SIGINT and SIGTERM end it cleanly. Whatever fails is told in one line on
//! standard error, with status 1.
//!
//! With `--profile none` requests are bound by what the pool itself can hold, not by the numbers of the documents: any
//! number of snapshots of a volume, 255 bytes of name, any volume type.
//!
//! Any token and any signature is accepted: whoever can connect can do everything. A port alone is on loopback; any
//! other address is for networks in which everybody is trusted.
//!
//! The first `--project` is the default project. Any other that a path names exists from its first use.

#[path = "../serving/mod.rs"]
mod serving;

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use lexopt::prelude::*;
use serving::{Outcome, address};
use snapvol::dialect::{self, Config, MAX_BODY_BYTES};
use snapvol::{CreateOptions, Limits, OpenOptions, Pool};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

const USAGE: &str = "cloud_serve --pool POOL --listen ADDRESS [--nbd-socket PATH] [--profile evs|none] \
                     [--strict-cascade] [--region NAME] [--project ID]...";

fn main() -> ExitCode {
    serving::ended("cloud_serve", Options::parse().and_then(serve))
}

struct Options {
    pool: PathBuf,
    listen: SocketAddr,
    nbd_socket: Option<PathBuf>,
    config: Config,
    projects: Vec<String>,
}

impl Options {
    fn parse() -> Outcome<Self> {
        let mut args = lexopt::Parser::from_env();
        let (mut pool, mut listen, mut nbd_socket) = (None, None, None);
        let (mut config, mut projects) = (Config::new(), Vec::new());
        while let Some(arg) = args.next()? {
            match arg {
                Long("pool") => pool = Some(PathBuf::from(args.value()?)),
                Long("listen") => listen = Some(address(&args.value()?.string()?)?),
                Long("nbd-socket") => nbd_socket = Some(PathBuf::from(args.value()?)),
                Long("profile") => match args.value()?.string()?.as_str() {
                    "evs" => {}
                    "none" => {
                        let native = Limits::native;
                        config = config.evs_limits(native()).cbs_limits(native()).ucloud_limits(native());
                    }
                    other => return Err(format!("no profile is called {other:?}; usage: {USAGE}").into()),
                },
                Long("strict-cascade") => config = config.strict_cascade(true),
                Long("region") => config = config.region(args.value()?.string()?),
                Long("project") => projects.push(args.value()?.string()?),
                other => return Err(format!("{}; usage: {USAGE}", other.unexpected()).into()),
            }
        }
        if nbd_socket.is_some() && cfg!(not(feature = "nbd")) {
            return Err("--nbd-socket needs a build with --features nbd".into());
        }
        match (pool, listen) {
            (Some(pool), Some(listen)) => Ok(Self { pool, listen, nbd_socket, config, projects }),
            _ => Err(format!("usage: {USAGE}").into()),
        }
    }
}

fn open(path: &Path) -> Outcome<Pool> {
    Ok(match path.exists() {
        true => Pool::open(path, OpenOptions::new())?,
        false => Pool::create(path, CreateOptions::new())?,
    })
}

fn serve(options: Options) -> Outcome<()> {
    let pool = open(&options.pool)?;
    for (n, project) in options.projects.iter().enumerate() {
        if n == 0 {
            pool.set_default_project(project)?;
        } else {
            pool.create_project(project)?;
        }
    }
    #[cfg(feature = "nbd")]
    let nbd = match &options.nbd_socket {
        Some(path) => Some(snapvol::nbd::Server::builder(&pool).unix(path).serve()?),
        None => None,
    };
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(answer(pool.clone(), options))?;
    drop(runtime);
    #[cfg(feature = "nbd")]
    drop(nbd);
    pool.close()?;
    Ok(())
}

/// Serves until a signal comes; requests that are being served are answered.
async fn answer(pool: Pool, options: Options) -> Outcome<()> {
    // From here on a signal is kept until it is looked at.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let listener = TcpListener::bind(options.listen)
        .await
        .map_err(|e| format!("cannot listen on {}: {e}", options.listen))?;
    if options.listen.port() == 0 {
        eprintln!("listening on {}", listener.local_addr()?);
    }
    let served = (pool, Arc::new(options.config));
    let router = Router::new().fallback(move |request: Request<Body>| {
        let (pool, config) = served.clone();
        one(pool, config, request)
    });
    println!("ready");
    std::io::stdout().flush()?;
    let ended = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    axum::serve(listener, router).with_graceful_shutdown(ended).await?;
    Ok(())
}

/// Answers one request. The pool blocks, so it has a thread of its own for that.
async fn one(pool: Pool, config: Arc<Config>, request: Request<Body>) -> Response<Body> {
    let (head, body) = request.into_parts();
    // One byte more than is allowed is refused as any number would be, and is all that is kept of them.
    let body = match axum::body::to_bytes(body, MAX_BODY_BYTES).await {
        Ok(bytes) => bytes.into(),
        Err(_) => vec![0; MAX_BODY_BYTES + 1],
    };
    let request = Request::from_parts(head, body);
    let answer = tokio::task::spawn_blocking(move || dialect::handle(&pool, &config, &request)).await;
    answer.map(|answer| answer.map(Body::from)).unwrap_or_else(|_| {
        let mut broken = Response::new(Body::empty());
        *broken.status_mut() = axum::http::StatusCode::INTERNAL_SERVER_ERROR;
        broken
    })
}
