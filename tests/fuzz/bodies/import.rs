//! Disk images that somebody else made up, imported into an empty pool.

use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;

use snapvol::image::{ImageProgress, Qcow2Image};
use snapvol::{Background, CreateOptions, Error, Pool, VolumeQuery, VolumeSpec};

/// The body of the fuzz target `import`.
// Other tests include this file for the parts below alone.
#[allow(dead_code)]
pub(crate) fn qcow2(bytes: &[u8]) {
    let _ = import(bytes);
}

/// Imports the bytes as a qcow2 image.
pub(crate) fn import(bytes: &[u8]) -> Result<(), Error> {
    let options = CreateOptions::new()
        .limit_bytes(4 << 20)
        .log_bytes(64 << 10)
        .blocks_per_chunk(64)
        .cache_bytes(1 << 20)
        .background(Background::Manual);
    let pool = Pool::create_in_memory(options).expect("valid options");
    let file = tempfile::tempfile().expect("a file");
    file.write_all_at(bytes, 0).expect("its content");
    // An image may say that an EiB of it is compressed data; whoever imports it watches the same numbers.
    let mut pieces = 0;
    let bounded = |_: ImageProgress| {
        pieces += 1;
        if pieces > 64 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let imported = Qcow2Image::open(file).and_then(|image| pool.import(image, VolumeSpec::image(), bounded));
    let volumes = pool.list_volumes(&VolumeQuery::new()).expect("a listing").items.len();
    assert_eq!(volumes, usize::from(imported.is_ok()), "what is refused leaves no trace");
    imported.map(|_| ())
}
