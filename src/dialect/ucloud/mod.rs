//! UCloud.

use http::{Response, StatusCode};

use crate::pool::Pool;

use super::call::{Call, json};
use super::config::Config;

/// What a body over the limit gets.
pub(super) fn body_too_large() -> Response<Vec<u8>> {
    json(StatusCode::PAYLOAD_TOO_LARGE, &())
}

/// Answers one request.
pub(super) fn answer(_pool: &Pool, _config: &Config, _call: &Call<'_>) -> Response<Vec<u8>> {
    json(StatusCode::NOT_IMPLEMENTED, &())
}
