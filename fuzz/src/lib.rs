//! What the targets share: the bodies, which live with the test that runs them without a fuzzer.

#[path = "../../tests/common/mod.rs"]
mod common;

#[path = "../../tests/fuzz/bodies/mod.rs"]
// What only the ordinary test uses of them, such as how it makes random inputs, is idle here.
#[allow(dead_code, unused_imports)]
mod bodies;

/// Runs the body of a target.
pub fn run(target: &str, bytes: &[u8]) {
    let body = bodies::TARGETS.iter().find(|(name, _)| *name == target);
    body.expect("the target has a body").1(bytes);
}
