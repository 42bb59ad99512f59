//! Runs the installed `qemu-img`, which the tests hold beside this package.

#![allow(dead_code, reason = "each test file uses its part")]

use std::process::{Command, Output};

use tempfile::TempDir;

/// A folder of its own in which the reference runs.
pub struct Reference {
    pub folder: TempDir,
}

/// What a run of the reference left behind.
#[derive(Debug, PartialEq, Eq)]
pub struct Run {
    pub stdout: String,
    pub stderr: String,
    pub code: i32,
}

impl Reference {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder can be made") }
    }

    /// Runs `qemu-img` with arguments separated by spaces.
    pub fn run(&self, args: &str) -> Run {
        self.run_args(&args.split_whitespace().collect::<Vec<_>>())
    }

    /// Runs `qemu-img`.
    pub fn run_args(&self, args: &[&str]) -> Run {
        let mut command = Command::new("qemu-img");
        let output = command.args(args).current_dir(self.folder.path()).env("TZ", "UTC").output();
        output.expect("qemu-img is installed (package qemu-utils)").into()
    }

    /// Runs `qemu-img`, which must succeed.
    pub fn make(&self, args: &str) -> String {
        let run = self.run(args);
        assert_eq!(run.code, 0, "qemu-img {args}: {}", run.stderr);
        run.stdout
    }
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("the reference prints UTF-8");
        Self {
            stdout: text(output.stdout),
            stderr: text(output.stderr),
            code: output.status.code().expect("the reference exits"),
        }
    }
}
