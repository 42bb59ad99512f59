//! What goes wrong around an image: killed processes, full disks, and others who hold it.

mod side;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use side::{EXECUTORS, Run, Side, disk, once_free};

#[test]
fn a_killed_convert_leaves_no_corruption() {
    let mut side = Side::new();
    side.write("source", &disk(64 << 20, 11));
    let begun = Instant::now();
    side.our_make("convert -f raw -O qcow2 source whole.qcow2");
    let whole = begun.elapsed();
    let mut images = 0;
    for turn in 0..30_u32 {
        let flags = ["", "-W", "-t none", "-m 1", "-c", "-o cluster_size=4k"][turn as usize % 6];
        side.remove("out.qcow2");
        let args = format!("convert {flags} -f raw -O qcow2 source out.qcow2");
        let mut child = side.our_command(&args).spawn().expect("our own tool runs");
        // From the very start to somewhat past the end of the quickest.
        std::thread::sleep(whole * turn / 25);
        child.kill().expect("SIGKILL reaches it");
        child.wait().expect("it ended");
        if !side.path("out.qcow2").exists() {
            continue;
        }
        let theirs = || side.theirs("check out.qcow2");
        let check = if flags == "-t none" { once_free(theirs) } else { theirs() };
        images += usize::from(check.code != 63);
        // 0: good, 3: leaked clusters, 63: no image yet.
        if ![0, 3, 63].contains(&check.code) {
            side.complain(&format!("turn {turn}: {args}: {check:?}"));
        }
        let ours = side.ours("check out.qcow2");
        side.expect_alike(&format!("turn {turn}: {args}"), &ours, &check);
    }
    assert!(images > 3, "only {images} runs were killed late enough");
    side.finish();
}

#[test]
fn a_full_disk_is_told_and_leaves_no_corruption() {
    let mut side = Side::new();
    side.write("source", &disk(16 << 20, 12));
    for executor in EXECUTORS {
        for flags in ["-O qcow2", "-c -O qcow2", "-O raw", "-O qcow2 -o cluster_size=4k"] {
            side.remove("out");
            let tool = env!("CARGO_BIN_EXE_drystone-img");
            let args = format!(
                "--fsize=3145728 --core=0 -- {tool} convert --executor {executor} {flags} -f raw source out"
            );
            // A write beyond the limit sends SIGXFSZ, which would end the tool, unless it is ignored.
            let script = "trap '' XFSZ; exec prlimit \"$@\"";
            let mut shell = side.command("sh", "-c");
            let output = shell.arg(script).arg("sh").args(args.split_whitespace()).output().unwrap();
            let run = Run::from(output);
            side.expect_alike(&format!("{args}: {}", run.stderr), &run.code, &1);
            // A raw target gets its length at once, and fails before the first write.
            let action = if flags == "-O raw" { "Could not create 'out'" } else { "write" };
            for word in ["out", action, "File too large"] {
                if !run.stderr.contains(word) {
                    side.complain(&format!("{args}: no {word:?} in {:?}", run.stderr));
                }
            }
            if flags != "-O raw" && !run.stderr.bytes().any(|byte| byte.is_ascii_digit()) {
                side.complain(&format!("{args}: no offset in {:?}", run.stderr));
            }
            if flags != "-O raw" {
                let check = side.theirs("check out");
                if ![0, 3, 63].contains(&check.code) {
                    side.complain(&format!("{args}: {check:?}"));
                }
            }
        }
    }
    side.finish();
}

#[test]
fn small_writes_leave_a_snapshot_as_it_was() {
    let mut side = Side::new();
    for options in
        ["cluster_size=64k", "cluster_size=512", "extended_l2=on,cluster_size=16k", "refcount_bits=2"]
    {
        let before = disk(4 << 20, 21);
        side.write("before", &before);
        side.make(&format!("convert -f raw -O qcow2 -o {options} before image"));
        side.make("snapshot -c kept image");
        let mut after = before.clone();
        for number in 0..10_usize {
            let at = (number * 389 + 5) * 1024;
            after[at..at + 512 * (number % 3 + 1)].fill(0xa0 + number as u8);
            side.write("after", &after);
            // Only what differs from what is there is written by our tool, a little at a time.
            side.our_make("convert -n -S 0 -f raw -O qcow2 after image");
        }
        side.make("check image");
        side.make("compare -f raw -F qcow2 after image");
        side.make("convert -l kept -O raw image kept");
        assert!(side.read("kept") == before, "{options}: the snapshot changed");
        side.our_make("convert -l kept -O raw image kept");
        assert!(side.read("kept") == before, "{options}: the snapshot is read differently");
        side.both(options, "check image");
    }
    side.finish();
}

/// `qemu-io` holding an image; it lets go when it is dropped.
struct Holder(Child);

impl Holder {
    fn new(side: &Side, args: &str) -> Self {
        let mut command = side.command("qemu-io", args);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // It answers once the image is open.
        child.stdin.as_mut().unwrap().write_all(b"read 0 512\n").unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_image_that_qemu_io_holds_is_refused() {
    let mut side = Side::new();
    side.make("create -q -f qcow2 image 1M");
    side.make("create -q -f raw other 1M");
    {
        let _holder = Holder::new(&side, "-f qcow2 image");
        for args in [
            "info image",
            "check image",
            "map image",
            "compare image other",
            "convert -O raw image out",
            "convert -n -f raw -O qcow2 other image",
            "bench -c 1 -f qcow2 image",
            "create -f qcow2 image 1M",
            "convert -f raw -O qcow2 other image",
        ] {
            side.both("held for writing", args);
        }
        for args in ["info -U image", "check -U image", "map -U image", "convert -U -O raw image out"] {
            side.both("held for writing", args);
        }
    }
    let _holder = Holder::new(&side, "-r -f qcow2 image");
    for args in ["info image", "check image", "map image", "convert -n -f raw -O qcow2 other image"] {
        side.both("held for reading", args);
    }
    side.finish();
}

#[test]
fn an_image_is_not_converted_onto_itself() {
    let mut side = Side::new();
    let content = disk(1 << 20, 5);
    side.write("image", &content);
    side.both("onto itself", "convert -f raw -O raw image image");
    side.both("onto itself", "convert -n -f raw -O raw image image");
    side.both("onto itself", "convert -f raw -O qcow2 image image");
    let left = side.read("image");
    side.expect_alike("what is left", &left, &content);
    side.finish();
}

#[test]
fn an_image_that_we_hold_is_refused_by_them() {
    let mut side = Side::new();
    side.write("source", &disk(4 << 20, 31));
    for executor in EXECUTORS {
        side.remove("out.qcow2");
        let args = format!("convert --executor {executor} -r 256k -m 1 -f raw -O qcow2 source out.qcow2");
        let mut child = side.our_command(&args).spawn().unwrap();
        let begun = Instant::now();
        let held = loop {
            std::thread::sleep(Duration::from_millis(50));
            let info = side.theirs("info -f qcow2 out.qcow2");
            if info.stderr.contains("Failed to get shared \"write\" lock") || begun.elapsed().as_secs() > 5 {
                break info;
            }
        };
        side.expect_alike(&format!("{executor}: {}", held.stderr), &held.code, &1);
        let check = side.theirs("check out.qcow2");
        side.expect_alike(&format!("{executor}: {}", check.stderr), &check.code, &1);
        let source = side.theirs("info -f raw source");
        side.expect_alike(&format!("{executor}: {}", source.stderr), &source.code, &0);
        child.kill().unwrap();
        child.wait().unwrap();
        let check = side.theirs("check -q out.qcow2");
        if ![0, 3].contains(&check.code) {
            side.complain(&format!("{executor}: {check:?}"));
        }
    }
    side.finish();
}
