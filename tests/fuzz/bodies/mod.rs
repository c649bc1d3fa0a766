//! What a fuzz target does with its bytes: one plain function each, which panics when something is wrong.
//!
//! The targets in `fuzz/fuzz_targets/` hand them what libFuzzer invents; the test beside this hands them the seeds
//! and 10,000 random inputs each. Whoever adds a door through which bytes come in from outside (a protocol, a
//! stream, an image format) adds a function here, a line to [`TARGETS`], a target and some seeds.

mod image;
mod import;
mod log;
mod nbd;
mod ops;
mod repair;
mod requests;
mod stream;
mod watch;

pub(crate) use image::{assert_repair_changes_nothing, open};
pub(crate) use log::replay;
pub(crate) use ops::operations;
use snapvol::internals::decode;
use watch::Watched;

/// A body.
pub(crate) type Body = fn(&[u8]);

/// All of them by the name of their target, which is also that of the folder with their seeds.
pub(crate) const TARGETS: [(&str, Body); 14] = [
    ("superblock", decode::superblock),
    ("node", decode::node),
    ("page", decode::page),
    ("record", decode::record),
    ("catalogue", decode::catalogue),
    ("open", open),
    ("replay", replay),
    ("operations", operations),
    ("stream", stream::stream),
    ("import", import::qcow2),
    ("nbd", nbd::nbd),
    ("evs", requests::evs),
    ("cbs", requests::cbs),
    ("ucloud", requests::ucloud),
];

/// Takes an input apart, from the front. What is missing is zero.
pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let taken = self.bytes(N);
        out[..taken.len()].copy_from_slice(taken);
        out
    }

    pub(crate) fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }
}
