//! Requests in the documents' dialects, some after one another to one store: whatever they are, none panics, none
//! is answered as a fault of the store's own, what is refused has changed nothing, and nothing of another project
//! is seen.

#[path = "../../clouds/mod.rs"]
mod clouds;

use snapvol::CheckOptions;

use super::Input;

/// Longer sessions find nothing that shorter ones do not.
const MOST: usize = 12;

/// Calls `ask` with the bytes of each request, which a length stands before.
fn each(input: &[u8], store: &clouds::Store, mut ask: impl FnMut(&[u8])) {
    let mut input = Input::new(input);
    for _ in 0..MOST {
        if input.is_empty() {
            break;
        }
        let len = input.u8();
        ask(input.bytes(len.into()));
        while store.pool.step(64).unwrap() {}
    }
    assert!(store.pool.check(CheckOptions::new(), &mut |_| {}).unwrap().is_clean());
}

/// The body of the fuzz target `evs`.
pub(crate) fn evs(input: &[u8]) {
    let store = clouds::evs::store();
    each(input, &store, |bytes| _ = clouds::evs::one_request(&store, bytes));
}

/// The body of the fuzz target `cbs`.
pub(crate) fn cbs(input: &[u8]) {
    let store = clouds::cbs::store();
    let mut face = store.face();
    each(input, &store, |bytes| drop(clouds::cbs::one_request(&store, bytes, &mut face)));
}

/// The body of the fuzz target `ucloud`.
pub(crate) fn ucloud(input: &[u8]) {
    let store = clouds::ucloud::store();
    let mut face = store.face();
    each(input, &store, |bytes| drop(clouds::ucloud::one_request(&store, bytes, &mut face)));
}
