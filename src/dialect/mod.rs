//! Three documented clouds' requests, answered: EVS (with what OpenStack clients need), CBS and UCloud.
//!
//! [`handle`] is a function from a request to an answer, over the types of the `http` crate. There are no sockets
//! and no runtime here, and no state: what an answer says is in the pool, so that the dialects, several servers in
//! one process, and native calls all see the same at once. Each documented operation is one native call
//! ([`guide::operations`](crate::guide::operations)); the dialect translates it and maps its error.
//!
//! - D1 No request panics, and none is answered by 500 for a fault of its own.
//! - D2 A refused request changes nothing: everything is parsed before the one native call that changes something.
//! - D3 A body over [`MAX_BODY_BYTES`] is refused unparsed.
//! - D4 An EVS caller sees the project in its path and no other; callers of the others see the whole account
//!   unless they name one. Where the embedder says whose the caller is, none sees more than that one's project.
//!
//! Tokens and signatures are not looked at: whoever reaches the function is served.
//!
//! ```
//! use http::Request;
//! use snapvol::dialect::{self, Config};
//! # let pool = snapvol::Pool::create_in_memory(snapvol::CreateOptions::new())?;
//! let request = Request::post("/v2/p1/volumes").body(r#"{"volume": {"size": 1, "name": "data"}}"#)?;
//! let answer = dialect::handle(&pool, &Config::new(), &request);
//! assert_eq!(answer.status(), 202);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod call;
pub mod cbs;
mod config;
mod evs;
mod lookup;
mod params;
pub mod ucloud;

use http::{Method, Request, Response};

use crate::pool::Pool;

use call::Call;
pub use config::Config;

/// Largest body that is parsed, in bytes: 2 MiB.
pub const MAX_BODY_BYTES: usize = 2 << 20;

/// Whose documents describe a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Dialect {
    Evs,
    Cbs,
    Ucloud,
}

impl Dialect {
    /// One port serves all: CBS at its script, UCloud at `/`, where a bare `GET` is the list of versions of EVS.
    fn of<B>(request: &Request<B>) -> Self {
        match request.uri().path() {
            "/v2/index.php" => Self::Cbs,
            "" | "/" if *request.method() != Method::GET || request.uri().query().is_some() => Self::Ucloud,
            _ => Self::Evs,
        }
    }
}

/// Answers one request out of the pool. The limits that apply are those of `config`, not those of the handle.
///
/// What the answer says has been done is durable. Links in answers are `http`, with the `Host` of the request.
/// Blocks for as long as the native call does.
pub fn handle<B: AsRef<[u8]>>(pool: &Pool, config: &Config, request: &Request<B>) -> Response<Vec<u8>> {
    let dialect = Dialect::of(request);
    if request.body().as_ref().len() > MAX_BODY_BYTES {
        return match dialect {
            Dialect::Evs => evs::body_too_large(),
            Dialect::Cbs => cbs::body_too_large(),
            Dialect::Ucloud => ucloud::body_too_large(),
        };
    }
    let call = Call::new(request);
    match dialect {
        Dialect::Evs => evs::answer(&pool.limited(config.evs.clone()), config, &call),
        Dialect::Cbs => cbs::answer(&pool.limited(config.cbs.clone()), config, &call),
        Dialect::Ucloud => ucloud::answer(&pool.limited(config.ucloud.clone()), config, &call),
    }
}
