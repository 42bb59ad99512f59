//! Runs `drystone-img`, under the name `qemu-img`, beside the installed `qemu-img`.

#![allow(dead_code, reason = "each test file uses its part")]

use std::fmt::Write as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a run may take before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(180);

/// The three executors.
pub const EXECUTORS: &[&str] = &["tokio", "monoio", "glommio"];

/// What a run left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub stdout: String,
    pub stderr: String,
    /// The exit code; 1000 and the signal's number where a signal ended it.
    pub code: i32,
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            code: output.status.code().unwrap_or_else(|| 1000 + output.status.signal().unwrap_or(0)),
        }
    }
}

/// A folder in which both tools run.
pub struct Side {
    folder: TempDir,
    differences: String,
}

impl Side {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        Self { folder, differences: String::new() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
    }

    pub fn remove(&self, name: &str) {
        let _ = std::fs::remove_file(self.path(name));
    }

    /// A command in the folder, not yet run.
    pub fn command(&self, program: &str, args: &str) -> Command {
        let mut command = Command::new(program);
        command.args(words(args)).current_dir(self.folder.path()).env("TZ", "UTC");
        command
    }

    /// Our tool under the reference's name, not yet run.
    pub fn our_command(&self, args: &str) -> Command {
        let mut command = self.command(env!("CARGO_BIN_EXE_drystone-img"), args);
        command.arg0("qemu-img");
        command
    }

    /// Runs our tool.
    pub fn ours(&self, args: &str) -> Run {
        in_time(&mut self.our_command(args)).into()
    }

    /// Runs our tool where the host lets no file grow beyond so many KiB.
    pub fn ours_with_room(&self, kib: u64, args: &str) -> Run {
        // A write beyond the limit sends SIGXFSZ, which would end the tool, unless it is ignored.
        let script = format!("trap '' XFSZ; ulimit -f {kib}; exec \"$@\"");
        let mut command = self.command("bash", "");
        command.args(["-c", &script, "bash", env!("CARGO_BIN_EXE_drystone-img")]).args(words(args));
        command.output().expect("bash runs").into()
    }

    /// Runs the reference.
    pub fn theirs(&self, args: &str) -> Run {
        in_time(&mut self.command("qemu-img", args)).into()
    }

    /// Runs the reference, which must succeed.
    pub fn make(&self, args: &str) -> String {
        let run = self.theirs(args);
        assert_eq!(run.code, 0, "qemu-img {args}: {}", run.stderr);
        run.stdout
    }

    /// Runs our tool, which must succeed.
    pub fn our_make(&self, args: &str) -> String {
        let run = self.ours(args);
        assert_eq!(run.code, 0, "ours: {args}: {} {}", run.stdout, run.stderr);
        run.stdout
    }

    /// Runs the commands of `qemu-io`, separated by semicolons.
    pub fn io(&self, image: &str, commands: &str) {
        let mut command = self.command("qemu-io", "-f qcow2");
        for line in commands.split(';') {
            command.args(["-c", line.trim()]);
        }
        let output = command.arg(image).output().expect("qemu-io is installed (package qemu-utils)");
        assert!(output.status.success(), "qemu-io {image}: {commands}: {output:?}");
    }

    /// Runs both tools, and keeps what differs for [`Side::finish`].
    pub fn both(&mut self, about: &str, args: &str) {
        let (ours, theirs) = (self.ours(args), self.theirs(args));
        self.expect_alike(&format!("{about}: {args}"), &ours, &theirs);
    }

    /// Keeps a difference for [`Side::finish`].
    pub fn expect_alike<T: PartialEq + std::fmt::Debug>(&mut self, about: &str, ours: &T, theirs: &T) {
        if ours != theirs {
            let _ = writeln!(self.differences, "{about}\n  ours: {ours:?}\ntheirs: {theirs:?}");
        }
    }

    /// Keeps something wrong for [`Side::finish`].
    pub fn complain(&mut self, about: &str) {
        let _ = writeln!(self.differences, "{about}");
    }

    /// Fails when anything differed.
    pub fn finish(self) {
        assert!(self.differences.is_empty(), "\n{}", self.differences);
    }
}

/// Runs a command to its end, or kills it when it hangs, so that what it said is seen.
fn in_time(command: &mut Command) -> Output {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.unwrap_or_else(|error| panic!("{:?} does not run: {error}", command.get_program()));
    let pid = child.id().to_string();
    let (ended, end) = mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        if end.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
            let _ = Command::new("kill").args(["-KILL", &pid]).status();
        }
    });
    let output = child.wait_with_output().expect("its output can be read");
    drop(ended);
    watch.join().expect("watching does not panic");
    output
}

/// Splits at spaces; an underscore between two spaces stands for an empty word.
fn words(args: &str) -> impl Iterator<Item = &str> {
    args.split_whitespace().map(|word| if word == "_" { "" } else { word })
}

/// Runs again while the image is locked: under direct I/O a killed process's image is free once the kernel has let go of
/// its ring, which is when nothing is on its way to the disk any more.
pub fn once_free(run: impl Fn() -> Run) -> Run {
    let begun = Instant::now();
    loop {
        let run = run();
        if !run.stderr.contains("Is another process using the image") || begun.elapsed().as_secs() >= 5 {
            return run;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Bytes of a disk: runs of data and of zeros of many lengths, the same for the same seed.
pub fn disk(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let kind = next() % 4;
        let run = 512 << (next() % 10);
        for _ in 0..run / 8 {
            let word = match kind {
                0 => 0,
                1 => 0x4141_4141_4141_4141,
                2 => next() & 0x0f0f,
                _ => next(),
            };
            bytes.extend_from_slice(&word.to_le_bytes());
        }
    }
    bytes.truncate(len);
    bytes
}
