//! Servers that run while a test does, and tools that must be there.

#![allow(dead_code, reason = "each test file uses its part")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a server may take to listen, or to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long a program that is run may take, in seconds: what never ends is to fail, not to stop all tests.
const LONGEST: &str = "300";

/// A folder, and what runs in it.
pub struct Place {
    pub folder: TempDir,
}

/// A server; it is killed when this goes.
pub struct Served {
    pub child: Child,
    pub socket: PathBuf,
}

impl Place {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder can be made") }
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().expect("UTF-8").to_owned()
    }

    /// Runs a program with arguments separated by spaces, in the folder.
    pub fn run(&self, program: &str, line: &str) -> Output {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        self.run_args(program, &arguments)
    }

    pub fn run_args(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new("timeout");
        command.args([LONGEST, program]).args(arguments).current_dir(self.folder.path());
        let output = command.output();
        output.unwrap_or_else(|error| panic!("{program} cannot be run: {error}"))
    }

    /// Runs a program, which must succeed; returns what it prints.
    #[track_caller]
    pub fn make(&self, program: &str, line: &str) -> String {
        let output = self.run(program, line);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            output.status.success(),
            "{program} {line}: {}{}",
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// Starts a server that makes `socket`, with arguments separated by spaces.
    pub fn serve(&self, program: &str, socket: &str, line: &str) -> Served {
        let path = self.folder.path().join(socket);
        let mut command = Command::new(program);
        command.args(line.split_whitespace()).current_dir(self.folder.path()).stdout(Stdio::null());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{program} cannot be run: {error}"));
        let begun = Instant::now();
        while !path.exists() {
            assert!(begun.elapsed() < PATIENCE, "{program} {line}: it does not listen");
            if let Some(status) = child.try_wait().expect("the server is ours") {
                panic!("{program} {line}: {status}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Served { child, socket: path }
    }

    /// Starts ours on a socket of the folder.
    pub fn ours(&self, socket: &str, line: &str) -> Served {
        let path = self.path(socket);
        self.serve(env!("CARGO_BIN_EXE_drystone-nbd"), socket, &format!("-k {path} {line}"))
    }

    /// Starts the reference on a socket of the folder.
    pub fn theirs(&self, socket: &str, line: &str) -> Served {
        let path = self.path(socket);
        self.serve("qemu-nbd", socket, &format!("-k {path} {line}"))
    }
}

impl Served {
    /// Its default export, or the one of a name.
    pub fn uri(&self, export: &str) -> String {
        let slash = if export.is_empty() { "" } else { "/" };
        format!("nbd+unix://{slash}{export}?socket={}", self.socket.display())
    }

    /// Sends SIGTERM; returns the exit code.
    pub fn stop(mut self) -> Option<i32> {
        let sent = Command::new("kill").arg(self.child.id().to_string()).status();
        assert!(sent.expect("kill is there").success());
        self.wait()
    }

    /// Waits for its end; returns the exit code.
    pub fn wait(&mut self) -> Option<i32> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("the server is ours") {
                return status.code();
            }
            assert!(begun.elapsed() < PATIENCE, "the server does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills it at once.
    pub fn kill(mut self) {
        self.child.kill().expect("the server is ours");
        let _ = self.child.wait();
    }

    /// Descriptors that it has open.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("it runs").count()
    }

    /// Waits until it has more descriptors than `before`: a client has come.
    pub fn wait_for_client(&self, before: usize) {
        let begun = Instant::now();
        while self.descriptors() <= before {
            assert!(begun.elapsed() < PATIENCE, "no client comes");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until it has no more descriptors than `before`: its clients have gone.
    pub fn wait_for_descriptors(&self, before: usize) {
        let begun = Instant::now();
        while self.descriptors() > before {
            assert!(begun.elapsed() < PATIENCE, "it keeps who has gone");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Memory that it has at the moment, in bytes.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it is told");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a program is there; says so where it is not.
pub fn have(program: &str, package: &str) -> bool {
    let there = std::env::var("PATH")
        .unwrap_or_default()
        .split(':')
        .any(|folder| Path::new(folder).join(program).exists());
    if !there {
        let _ = writeln!(std::io::stderr(), "skipped: {program} is not installed (package {package})");
    }
    there
}

/// Writes `len` bytes that are no pattern to a file.
pub fn noise(path: &str, len: usize) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let bytes: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(len)
    .collect();
    std::fs::write(path, bytes).expect("the folder takes files");
}
