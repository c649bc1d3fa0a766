//! The example programs as child processes.
// Each test binary uses a part of this.
#![allow(dead_code, clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

/// An example, built as this test was.
pub(crate) fn build(example: &str) -> PathBuf {
    let built = Command::new(env!("CARGO"))
        .args(["build", "--profile", "test", "--all-features", "--example", example])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .unwrap();
    assert!(built.success());
    let tests = std::env::current_exe().unwrap();
    tests.parent().unwrap().parent().unwrap().join("examples").join(example)
}

/// A failure is status 1 and one line on standard error, which is returned.
pub(crate) fn failure(out: Output) -> String {
    assert_eq!(out.status.code(), Some(1), "{out:?}");
    assert!(out.stdout.is_empty(), "{out:?}");
    let line = String::from_utf8(out.stderr).unwrap();
    assert!(line.ends_with('\n') && line.trim_end().lines().count() == 1, "{line:?}");
    line
}

/// A program that serves. It is killed when a test ends without having ended it.
pub(crate) struct Serving(Option<Child>);

impl Serving {
    /// Returns once it has said that it is ready.
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        if line != "ready\n" {
            let mut why = String::new();
            child.stderr.take().unwrap().read_to_string(&mut why).unwrap();
            panic!("{line:?} {why}");
        }
        Self(Some(child))
    }

    /// The address that it took, where it was free to choose a port.
    pub(crate) fn address(&mut self) -> String {
        let mut line = String::new();
        let child = self.0.as_mut().unwrap();
        BufReader::new(child.stderr.as_mut().unwrap()).read_line(&mut line).unwrap();
        line.trim().strip_prefix("listening on ").unwrap().to_owned()
    }

    /// Sends a signal, and returns how the program ended.
    pub(crate) fn end(mut self, signal: &str) -> Output {
        let mut child = self.0.take().unwrap();
        let sent = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        child.wait().unwrap();
        child.wait_with_output().unwrap()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A folder that lives as long as the test.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
    pub(crate) fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().into()
    }
}
