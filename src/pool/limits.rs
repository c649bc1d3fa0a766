//! The native ceilings, and the one place that checks arguments against them.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::units::{BLOCK_BYTES, MAX_VOLUME_BYTES};

/// Most bytes (UTF-8) in a name, a description, a metadata key or a metadata value.
pub const MAX_TEXT_BYTES: usize = 255;
/// Most bytes (UTF-8) in the keys and values of one object's metadata together: 1 MiB.
pub const MAX_METADATA_BYTES: usize = 1 << 20;
/// Most items in one page of a listing.
pub const MAX_PAGE: u32 = 1000;
/// Most volumes that one call creates.
pub const MAX_VOLUMES_PER_CALL: u32 = 100;
/// Most attachments of one shared volume; any other volume has at most one.
pub const MAX_ATTACHMENTS: u32 = 16;

pub(super) fn check_text(field: &'static str, text: Option<&str>, limit_bytes: usize) -> Result<()> {
    match text {
        Some(t) if t.len() > limit_bytes => {
            Err(Error::invalid(field, format!("at most {limit_bytes} bytes are allowed, {} given", t.len())))
        }
        _ => Ok(()),
    }
}

pub(super) fn check_metadata(metadata: &BTreeMap<String, String>) -> Result<()> {
    let mut total = 0;
    for (key, value) in metadata {
        for (what, text) in [("key", key), ("value", value)] {
            if text.len() > MAX_TEXT_BYTES {
                let why = format!("a {what} has at most {MAX_TEXT_BYTES} bytes, {} given", text.len());
                return Err(Error::invalid("metadata", why));
            }
        }
        total += key.len() + value.len();
    }
    if total > MAX_METADATA_BYTES {
        let why = format!("at most {MAX_METADATA_BYTES} bytes in all are allowed, {total} given");
        return Err(Error::invalid("metadata", why));
    }
    Ok(())
}

pub(super) fn check_size(size_bytes: u64) -> Result<()> {
    if size_bytes == 0 || size_bytes > MAX_VOLUME_BYTES || !size_bytes.is_multiple_of(BLOCK_BYTES) {
        let why = format!(
            "a size is a multiple of {BLOCK_BYTES} bytes, above 0 and at most {MAX_VOLUME_BYTES} bytes, {size_bytes} given"
        );
        return Err(Error::invalid("size_bytes", why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_limits_count_bytes_not_characters() {
        assert!(check_text("name", Some(&"é".repeat(127)), 255).is_ok());
        assert!(check_text("name", Some(&"é".repeat(128)), 255).is_err());
        assert!(check_text("name", None, 255).is_ok());
    }

    #[test]
    fn sizes_are_whole_blocks_above_zero() {
        assert!(check_size(4096).is_ok() && check_size(1 << 60).is_ok());
        for bad in [0, 1, 4095, 4097, (1 << 60) + 4096, u64::MAX] {
            assert!(matches!(check_size(bad), Err(Error::InvalidArgument { field: "size_bytes", .. })));
        }
    }

    #[test]
    fn metadata_is_limited_per_string_and_in_total() {
        let one = |k: usize, v: usize| BTreeMap::from([("k".repeat(k), "v".repeat(v))]);
        assert!(check_metadata(&one(255, 255)).is_ok());
        assert!(check_metadata(&one(256, 1)).is_err());
        assert!(check_metadata(&one(1, 256)).is_err());
        let many: BTreeMap<_, _> = (0..4096).map(|i| (format!("{i:0>4}"), "v".repeat(252))).collect();
        assert!(check_metadata(&many).is_ok());
        let more: BTreeMap<_, _> = (0..4097).map(|i| (format!("{i:0>4}"), "v".repeat(252))).collect();
        assert!(check_metadata(&more).is_err());
    }
}
