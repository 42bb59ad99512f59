//! SIGINT and SIGTERM in the middle of `convert`: the tool ends by the signal, nothing stays locked, and what is there of
//! the target is an image that `qemu-img check` finds no errors in. And a pipe that nobody reads any more.

mod side;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use side::{EXECUTORS, Run, Side, disk};

#[test]
fn an_interrupted_convert_leaves_nothing_behind_that_hurts() {
    let side = Side::new();
    let source = disk(64 << 20, 11);
    side.write("full", &source);
    side.make("convert -f raw -O qcow2 full image");
    for executor in EXECUTORS {
        for (signal, number) in [("-INT", 2), ("-TERM", 15)] {
            for options in ["-O qcow2", "-O qcow2 -c", "-O qcow2 -W -m 16", "-O qcow2 -t none"] {
                let run = interrupted(&side, &format!("--executor {executor} {options}"), signal);
                assert_eq!(run.code, 1000 + number, "{executor} {options}: {run:?}");
                assert_eq!(run.stderr, "", "{executor} {options}");
                // Leaks cost space and nothing else.
                let check = side.theirs("check -q target");
                assert!(matches!(check.code, 0 | 3), "{executor} {options}: {check:?}");
                let write = side.command("qemu-io", "-f qcow2 -c").arg("write 0 64k").arg("target").output();
                let write = Run::from(write.expect("qemu-io is installed (package qemu-utils)"));
                assert_eq!(write.code, 0, "the target is locked: {write:?}");
                let write = side.command("qemu-io", "-f qcow2 -c").arg("read 0 64k").arg("image").output();
                let write = Run::from(write.expect("qemu-io is installed (package qemu-utils)"));
                assert_eq!(write.code, 0, "the source is locked: {write:?}");
                side.our_make("convert -O qcow2 image target");
                assert_eq!(side.theirs("compare -f raw -F qcow2 full target").code, 0);
            }
        }
    }
}

/// Starts a slow `convert`, sends the signal once the target has grown, and waits for the end.
fn interrupted(side: &Side, options: &str, signal: &str) -> Run {
    side.remove("target");
    // Who runs the tests in the background of a shell has them ignore SIGINT.
    let tool = env!("CARGO_BIN_EXE_drystone-img");
    let line = format!("--default-signal=INT,TERM {tool} convert -r 16M {options} image target");
    let mut command = side.command("env", &line);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("our own tool runs");
    let begun = Instant::now();
    let grown = || std::fs::metadata(side.path("target")).is_ok_and(|target| target.len() > 1 << 20);
    while !grown() && begun.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let sent = Command::new("kill").args([signal, &child.id().to_string()]).status();
    assert!(sent.expect("kill is there").success());
    let output = child.wait_with_output().expect("it ends");
    assert!(begun.elapsed() < Duration::from_secs(30), "{options}: the signal was not heard");
    output.into()
}

#[test]
fn what_the_caller_ignores_stays_ignored() {
    let side = Side::new();
    side.write("full", &disk(4 << 20, 5));
    let mut shell = side.command("sh", "-c");
    let tool = env!("CARGO_BIN_EXE_drystone-img");
    let line = format!("trap '' HUP INT; exec {tool} convert -r 8M -f raw -O qcow2 full target");
    let child = shell.arg(line).spawn().expect("sh is there");
    std::thread::sleep(Duration::from_millis(300));
    for signal in ["-HUP", "-INT"] {
        let sent = Command::new("kill").args([signal, &child.id().to_string()]).status();
        assert!(sent.expect("kill is there").success());
    }
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_reader_who_has_gone_is_no_error() {
    let side = Side::new();
    side.make("create -q -f qcow2 image 1M");
    for args in ["--help", "info image", "map image", "check image", "convert -p -O raw image out"] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let run: Run = side.our_command(args).stdout(writer).output().expect("our own tool runs").into();
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{args}");
    }
}
