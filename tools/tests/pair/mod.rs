//! Runs `drystone-io`, under the name `qemu-io`, beside the installed `qemu-io`, each in a folder of its own with the same
//! files in it.

#![allow(dead_code, reason = "each test file uses its part")]

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// What a run left behind; what differs from run to run is masked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub stdout: String,
    pub stderr: String,
    /// The exit code; 1000 and the signal's number where a signal ended it.
    pub code: i32,
}

/// Two folders.
pub struct Pair {
    ours: TempDir,
    theirs: TempDir,
    differences: String,
}

impl Pair {
    /// Makes files with the reference, the same in both folders: lines of `qemu-img` or `qemu-io`.
    pub fn new(lines: &[&str]) -> Self {
        let folder = || tempfile::tempdir().expect("a temporary folder can be made");
        let pair = Self { ours: folder(), theirs: folder(), differences: String::new() };
        for line in lines {
            pair.make(line);
        }
        for entry in std::fs::read_dir(pair.theirs.path()).expect("a folder") {
            let path = entry.expect("an entry").path();
            // Both are copies, with the same holes.
            let copy = pair.ours(&path.file_name().expect("a file").to_string_lossy());
            for (from, to) in [(&path, &copy), (&copy, &path)] {
                let copied = Command::new("cp").arg("--sparse=auto").args([from, to]).status();
                assert!(copied.expect("cp runs").success(), "{path:?} can be copied");
            }
        }
        pair
    }

    /// Runs a line of the reference's tools in its folder; it must succeed. A part in `'` is one word.
    fn make(&self, line: &str) {
        let words = words(line);
        let output = Command::new(&words[0]).args(&words[1..]).current_dir(self.theirs.path()).output();
        let output = output.expect("QEMU's tools are installed (package qemu-utils)");
        assert!(output.status.success(), "{line}: {output:?}");
    }

    pub fn ours(&self, name: &str) -> PathBuf {
        self.ours.path().join(name)
    }

    pub fn theirs(&self, name: &str) -> PathBuf {
        self.theirs.path().join(name)
    }

    /// Puts a file into both folders.
    pub fn write(&self, name: &str, bytes: &[u8]) {
        for folder in [&self.ours, &self.theirs] {
            std::fs::write(folder.path().join(name), bytes).expect("a file can be written");
        }
    }

    /// Runs our tool.
    pub fn run_ours(&self, args: &[String], input: &str) -> Run {
        let mut command = Command::new(env!("CARGO_BIN_EXE_drystone-io"));
        command.arg0("qemu-io");
        run(command, args, input, self.ours.path())
    }

    /// Runs the reference.
    pub fn run_theirs(&self, args: &[String], input: &str) -> Run {
        run(Command::new("qemu-io"), args, input, self.theirs.path())
    }

    /// Runs both tools, and keeps what differs for [`Pair::finish`].
    pub fn both(&mut self, line: &str) {
        self.both_with(line, "");
    }

    /// The same, with an input.
    pub fn both_with(&mut self, line: &str, input: &str) {
        let args = words(line);
        let (ours, theirs) = (self.run_ours(&args, input), self.run_theirs(&args, input));
        if ours != theirs {
            let _ = writeln!(self.differences, "{line} {input:?}\n  ours: {ours:?}\ntheirs: {theirs:?}");
        }
    }

    /// Runs the commands, which are separated by semicolons, on an image, with both tools.
    pub fn script(&mut self, options: &str, commands: &str, image: &str) {
        let commands: String = commands.split(';').map(|line| format!("-c '{}' ", line.trim())).collect();
        self.both(&format!("{options} {commands} {image}"));
    }

    /// Has both folders hold the same bytes under a name.
    pub fn same_bytes(&mut self, name: &str) {
        let read = |path: PathBuf| std::fs::read(path).expect("a file of the test");
        let (ours, theirs) = (read(self.ours(name)), read(self.theirs(name)));
        if ours != theirs {
            let at = ours.iter().zip(&theirs).position(|(a, b)| a != b);
            let _ = writeln!(
                self.differences,
                "{name}: {} and {} bytes, first difference at {at:?}",
                ours.len(),
                theirs.len()
            );
        }
    }

    /// Has both folders hold images under a name that the reference calls identical and good.
    pub fn same_disks(&mut self, name: &str) {
        let (ours, theirs) = (self.ours(name), self.theirs(name));
        for (command, paths) in [("compare", vec![&ours, &theirs]), ("check", vec![&ours])] {
            let mut tool = Command::new("qemu-img");
            tool.args([command, "-U"]).args(paths).current_dir(self.ours.path());
            let output = tool.output().expect("qemu-img is installed");
            if !output.status.success() {
                let _ = writeln!(self.differences, "qemu-img {command} {name}: {output:?}");
            }
        }
    }

    /// Has the reference see both folders' images under a name in the same extents.
    pub fn same_maps(&mut self, name: &str) {
        let map = |path: PathBuf| {
            let output = Command::new("qemu-img").args(["map", "--output=json"]).arg(&path).output();
            let output = output.expect("qemu-img is installed");
            // Where a file keeps its clusters is its own affair.
            let offsets = |line: &str| line.split(", \"offset\"").next().unwrap_or_default().to_owned();
            String::from_utf8_lossy(&output.stdout).lines().map(offsets).collect::<Vec<_>>()
        };
        let (ours, theirs) = (map(self.ours(name)), map(self.theirs(name)));
        if ours != theirs {
            let _ = writeln!(self.differences, "map of {name}\n  ours: {ours:#?}\ntheirs: {theirs:#?}");
        }
    }

    pub fn complain(&mut self, text: &str) {
        let _ = writeln!(self.differences, "{text}");
    }

    /// Fails when anything differed.
    pub fn finish(self) {
        assert!(self.differences.is_empty(), "\n{}", self.differences);
    }
}

/// Splits at blanks; what stands between two `'` is one word.
pub fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (at, part) in line.split('\'').enumerate() {
        match at % 2 {
            0 => words.extend(part.split_whitespace().map(str::to_owned)),
            _ => words.push(part.to_owned()),
        }
    }
    words
}

fn run(mut command: Command, args: &[String], input: &str, folder: &Path) -> Run {
    command
        .args(args)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("the tool runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    // A tool that ends early does not read it all.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().expect("the tool ends");
    let text = |bytes: &[u8]| masked(&String::from_utf8_lossy(bytes));
    Run {
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
        code: output.status.code().unwrap_or_else(|| 1000 + output.status.signal().unwrap_or(0)),
    }
}

/// Masks times, and the words that follow a command's usage.
fn masked(text: &str) -> String {
    let mut masked = String::new();
    for line in text.lines() {
        masked += &masked_line(line);
        masked.push('\n');
    }
    masked
}

fn masked_line(line: &str) -> String {
    if let Some((before, rest)) = line.split_once(" ops; ") {
        // The shape must be right: TIME (AMOUNT/sec and NUMBER ops/sec)
        let shaped = rest.ends_with(" ops/sec)") && rest.contains(" (") && rest.contains("/sec and ");
        return format!("{before} ops; {}", if shaped { "TIME" } else { rest });
    }
    let fields: Vec<&str> = line.split(',').collect();
    if fields.len() == 5 && fields[2].contains(':') {
        return format!("{},{},TIME", fields[0], fields[1]);
    }
    if let Some((usage, _)) = line.split_once(" -- ")
        && !line.starts_with("Parsing error")
        && !line.contains(": invalid option")
        && !line.contains(": option requires")
    {
        return usage.split(' ').next().unwrap_or_default().to_owned() + " USAGE";
    }
    line.to_owned()
}
