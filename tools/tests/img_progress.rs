//! `-p` and SIGUSR1, beside the installed `qemu-img`.

mod side;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use side::{Side, disk};

/// 32 MiB of a disk with data here and there, in whole clusters.
fn images() -> Side {
    let side = Side::new();
    let mut bytes = vec![0; 32 << 20];
    for (at, len) in [(3 << 20, 9 << 20), (20 << 20, 64 << 10), ((22 << 20) + (320 << 10), 5 << 20)] {
        let data = disk(len, at as u64).into_iter().map(|byte| byte | 1);
        bytes.splice(at..at + len, data);
    }
    side.write("full", &bytes);
    side.make("convert -f raw -O raw full sparse");
    side.make("convert -f raw -O qcow2 full image");
    side.make("convert -c -f raw -O qcow2 full packed");
    side.write("empty", b"");
    side
}

#[test]
fn programs_read_the_same_steps() {
    let mut side = images();
    for source in ["-f raw full", "-f raw sparse", "image", "packed", "-f raw sparse full", "-f raw empty"] {
        for how in ["-O qcow2", "-O raw", "-O qcow2 -c", "-O qcow2 -S 0", "-O raw -m 1", "-O raw -W", "-q"] {
            side.both("steps", &format!("convert -p {how} {source} target"));
        }
    }
    for line in
        ["full sparse", "full image", "packed image", "sparse empty", "empty empty", "-s image packed"]
    {
        side.both("steps", &format!("compare -p {line}"));
        side.both("none", &format!("compare -p -q {line}"));
    }
    side.finish();
}

#[test]
fn a_header_is_changed_in_one_step() {
    let mut side = images();
    side.make("create -q -f qcow2 -b image -F qcow2 top");
    for line in ["-b image -F qcow2", "-b _", "-q -b image -F qcow2"] {
        side.both("steps", &format!("rebase -p -u {line} top"));
    }
    side.finish();
}

#[test]
fn who_asks_is_told_how_far_it_is() {
    let side = images();
    for (line, asked) in [("-O qcow2", true), ("-p -O qcow2", false)] {
        let mut command = side.our_command(&format!("convert -r 8M {line} -f raw full target"));
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("our own tool runs");
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(600) {
            std::thread::sleep(Duration::from_millis(200));
            let pid = child.id().to_string();
            let sent = Command::new("kill").args(["-USR1", &pid]).status();
            assert!(sent.expect("kill is there").success());
        }
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stderr).expect("text");
        let right = |line: &str| line.starts_with("    (") && line.ends_with("/100%)");
        assert!(said.lines().all(right) && said.is_empty() != asked, "{said}");
    }
}
