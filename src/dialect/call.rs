//! A request as the dialects look at it.

use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use serde::Serialize;

/// A request with its query taken apart. Whatever the bytes are, taking them apart cannot fail.
pub(super) struct Call<'a> {
    pub(super) method: &'a Method,
    /// As sent, percent signs and all.
    pub(super) path: &'a str,
    /// In order, decoded; bytes that are no UTF-8 become U+FFFD.
    pub(super) query: Vec<(String, String)>,
    // For the dialects whose bodies have several forms.
    pub(super) headers: &'a HeaderMap,
    /// Of the URI, or of the `Host` header.
    pub(super) host: &'a str,
    pub(super) body: &'a [u8],
}

impl<'a> Call<'a> {
    pub(super) fn new<B: AsRef<[u8]>>(request: &'a Request<B>) -> Self {
        let uri = request.uri();
        let header = || request.headers().get(header::HOST).and_then(|h| h.to_str().ok());
        Self {
            method: request.method(),
            path: uri.path(),
            query: pairs(uri.query().unwrap_or("").as_bytes()),
            headers: request.headers(),
            host: header().or(uri.authority().map(|a| a.as_str())).unwrap_or("localhost"),
            body: request.body().as_ref(),
        }
    }
}

/// The pairs of a query or form, in order.
pub(super) fn pairs(bytes: &[u8]) -> Vec<(String, String)> {
    form_urlencoded::parse(bytes).into_owned().collect()
}

/// An answer with a JSON body.
pub(super) fn json<T: Serialize>(status: StatusCode, body: &T) -> Response<Vec<u8>> {
    // Maps with string keys, numbers, strings: nothing that the writer refuses.
    let body = serde_json::to_vec(body).unwrap_or_default();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let kind = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
