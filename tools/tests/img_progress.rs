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
    for line in [
        "full sparse",
        "full image",
        "packed image",
        "sparse empty",
        "empty empty",
        "-s image packed",
        "-s full empty",
        "-s empty image",
    ] {
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

/// A chain of three, over which the top holds a little, and another image to put it on.
fn chain(side: &Side, cluster: &str, sizes: [&str; 3]) {
    let options = format!("create -q -f qcow2 -o cluster_size={cluster}");
    side.make(&format!("{options} base {}", sizes[0]));
    side.io("base", "write -P 1 1M 5M");
    side.make(&format!("{options} other {}", sizes[0]));
    side.io("other", "write -P 2 2M 6M; write -z 9M 64k");
    side.make(&format!("{options} -b base -F qcow2 mid {}", sizes[1]));
    side.io("mid", "write -P 3 3M 1M");
    side.make(&format!("{options} -b mid -F qcow2 top {}", sizes[2]));
    side.io("top", "write -P 4 8M 1M; write 0 64k; write 192k 64k");
}

#[test]
fn rebase_counts_what_the_reference_compares() {
    let mut side = Side::new();
    let shapes = [
        ("64k", ["10M", "10M", "10M"]),
        ("64k", ["11M", "11M", "11M"]),
        ("64k", ["700M", "700M", "700M"]),
        ("64k", ["20M", "5M", "30M"]),
        ("4k", ["20M", "20M", "30M"]),
        ("2M", ["20M", "20M", "30M"]),
        ("512", ["20M", "20M", "10M"]),
    ];
    for (cluster, sizes) in shapes {
        chain(&side, cluster, sizes);
        let kept = side.read("top");
        let onto =
            ["-b other -F qcow2", "-b base -F qcow2", "-b mid -F qcow2", "-b _", "-c -b other -F qcow2"];
        // The largest is about where slices of tables end.
        for onto in &onto[..if sizes[0] == "700M" { 2 } else { 5 }] {
            let line = format!("rebase -p -f qcow2 {onto} top");
            let ours = side.ours(&line);
            side.write("top", &kept);
            let theirs = side.theirs(&line);
            side.write("top", &kept);
            side.expect_alike(&format!("{cluster} {sizes:?}: {line}"), &ours, &theirs);
        }
    }
    side.finish();
}

#[test]
fn amend_counts_what_the_reference_goes_through() {
    let mut side = Side::new();
    let images = [
        ("compat=1.1", "64M", "write 0 1M; write -z 2M 1M"),
        ("compat=0.10", "64M", "write 0 1M"),
        ("compat=1.1,cluster_size=4k", "1G", "write 0 2M; write -z 128M 2M; write 512M 3M"),
        ("compat=1.1,cluster_size=512", "64M", "write 0 1M; write -z 16M 1M; write 32M 1M"),
        ("compat=1.1,cluster_size=4k,refcount_bits=8", "1M", "write 0 64k"),
    ];
    let changes = [
        "compat=1.1",
        "compat=0.10",
        "refcount_bits=32",
        "refcount_bits=16",
        "compat=1.1,refcount_bits=8",
        "compat=0.10,refcount_bits=16",
        "compat=0.10,refcount_bits=32",
        "compat=1.1,lazy_refcounts=on",
        "size=65M",
        "backing_file=foo,backing_fmt=raw",
    ];
    for (options, size, filled) in images {
        for snapshots in [0, 2] {
            side.remove("image");
            side.make(&format!("create -q -f qcow2 -o {options} image {size}"));
            side.io("image", filled);
            for number in 0..snapshots {
                side.make(&format!("snapshot -c s{number} image"));
            }
            let kept = side.read("image");
            for change in changes {
                let line = format!("amend -p -f qcow2 -o {change} image");
                side.write("image", &kept);
                let ours = side.ours(&line);
                side.write("image", &kept);
                let theirs = side.theirs(&line);
                side.expect_alike(&format!("{options} {size} {snapshots}: {line}"), &ours, &theirs);
            }
        }
    }
    side.finish();
}

/// The reference's steps depend on time; ours are the same in each run, and say as much.
#[test]
fn commit_goes_up_to_the_end() {
    let side = Side::new();
    for base in ["", "-b base", "-d"] {
        chain(&side, "64k", ["10M", "10M", "10M"]);
        let kept = ["base", "mid", "top"].map(|name| (name, side.read(name)));
        let line = format!("commit -p -f qcow2 {base} top");
        let steps = |run: &side::Run| {
            assert_eq!(run.code, 0, "{line}: {run:?}");
            let (steps, said) = run.stdout.split_once('\n').expect("a line after the steps");
            assert_eq!(said, "Image committed.\n");
            let percent =
                |step: &str| step.trim().strip_prefix('(')?.strip_suffix("/100%)")?.parse::<f64>().ok();
            let steps: Vec<f64> =
                steps.split_terminator('\r').map(|step| percent(step).expect("a percentage")).collect();
            assert!(steps.is_sorted() && steps[0] == 0.0 && steps[steps.len() - 1] == 100.0, "{steps:?}");
            steps
        };
        let ours = steps(&side.ours(&line));
        assert!(ours.len() > 3, "{line}: {ours:?}");
        let again = |run: fn(&Side, &str) -> side::Run| {
            for (name, bytes) in &kept {
                side.write(name, bytes);
            }
            steps(&run(&side, &line))
        };
        assert_eq!(again(Side::ours), ours);
        again(Side::theirs);
    }
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
