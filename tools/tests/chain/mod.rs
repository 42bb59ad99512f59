//! Two folders with the same chain of images, in which each tool does the same, and what comes of it.

#![allow(dead_code, reason = "each test file uses its part")]

use crate::released::as_released;
use crate::side::{Run, Side};

/// Length of the middle image when it is to be the shortest, and when it is to be as long as the others.
pub const SHORT: u64 = 5 << 20;
pub const LONG: u64 = 6 << 20;

/// `options` of the three images of a chain, base first; `data_file=DATA` gives each a file of its own.
pub fn build(side: &Side, options: [&str; 3], middle_len: u64) {
    for folder in ["ours", "theirs"] {
        let _ = std::fs::create_dir(side.path(folder));
        let [base, middle, top] = options.map(|options| options.to_owned());
        // A data file's name counts from where the reference runs, and from where the image is with us.
        let data = |name: &str| side.path(&format!("{folder}/{name}.data")).display().to_string();
        let with = |options: &str, name: &str| options.replace("DATA", &data(name));
        side.make(&format!("create -q -f qcow2 -o {} {folder}/b {}", with(&base, "b"), 6 << 20));
        side.io(&format!("{folder}/b"), "write -P 1 0 1M; write -P 2 3M 300k; write -P 7 5M 1M");
        let line = format!("-o {} -b b -F qcow2 {folder}/m {middle_len}", with(&middle, "m"));
        side.make(&format!("create -q -f qcow2 {line}"));
        side.io(&format!("{folder}/m"), "write -P 3 500k 1M; write -z 3100k 100k; write -P 9 4M 5k");
        let line = format!("-o {} -b m -F qcow2 {folder}/t {}", with(&top, "t"), 6 << 20);
        side.make(&format!("create -q -f qcow2 {line}"));
        side.io(
            &format!("{folder}/t"),
            "write -P 4 1M 700k; write -z 0 66k; write -P 5 2000k 3k; write -P 6 5500k 99k",
        );
        if !top.contains("data_file") {
            side.io(&format!("{folder}/t"), "write -c -P 8 2M 2M");
        }
    }
}

/// Runs a command line in which `{}` stands for the folder, with each tool in its own.
pub fn both(side: &mut Side, line: &str) -> (Run, Run) {
    let within = |run: Run, folder: &str| {
        let anywhere = |text: String| text.replace(&format!("{folder}/"), "");
        Run { stdout: anywhere(run.stdout), stderr: anywhere(run.stderr), code: run.code }
    };
    let ours = within(side.ours(&line.replace("{}", "ours")), "ours");
    let theirs = within(side.theirs(&line.replace("{}", "theirs")), "theirs");
    side.expect_alike(line, &ours, &theirs);
    (ours, theirs)
}

/// Runs the command lines of a table, one a line, each of which both tools must refuse in the same words. Below the
/// reference's words we may say more of what is wrong with a header.
pub fn refused(side: &mut Side, table: &str) {
    for line in table.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let theirs = side.theirs(&line.replace("{}", "theirs"));
        let ours = side.ours(&line.replace("{}", "ours"));
        let theirs_said = as_released(&theirs.stderr).replace("theirs/", "");
        let mut ours_said = ours.stderr.replace("ours/", "");
        if ours_said.contains("Could not change") && ours.code != 0 {
            let kept = ours_said.split_inclusive('\n').filter(|line| line.contains("qemu-img"));
            ours_said = kept.collect();
        }
        side.expect_alike(
            line,
            &(ours.code, ours.stdout, ours_said),
            &(theirs.code, theirs.stdout, theirs_said),
        );
    }
}

/// Both folders must show the same disks, and the reference find nothing wrong with them.
pub fn hold(side: &mut Side, about: &str, images: &[&str]) {
    for image in images {
        let same = side.theirs(&format!("compare -q ours/{image} theirs/{image}"));
        side.expect_alike(&format!("{about}: {image}: content"), &same.code, &0);
        let checked = side.theirs(&format!("check -q ours/{image}"));
        side.expect_alike(
            &format!("{about}: {image}: check"),
            &(checked.code, checked.stdout),
            &(0, String::new()),
        );
    }
}

/// What `info` says, without what the host decides.
pub fn expect_info(side: &mut Side, about: &str, image: &str) {
    let told = |side: &Side, folder: &str| {
        let text =
            side.make(&format!("info --output=json {folder}/{image}")).replace(&format!("{folder}/"), "");
        let lines = text.lines().filter(|line| !line.contains("actual-size"));
        lines.collect::<Vec<_>>().join("\n")
    };
    let (ours, theirs) = (told(side, "ours"), told(side, "theirs"));
    side.expect_alike(&format!("{about}: {image}: info"), &ours, &theirs);
}

/// Where data is, whatever its place in the file, and however it is cut.
pub const SHAPES: &[[&str; 3]] = &[
    ["cluster_size=64k", "cluster_size=64k", "cluster_size=64k"],
    ["cluster_size=64k", "cluster_size=64k", "cluster_size=512"],
    ["cluster_size=512", "cluster_size=4k", "cluster_size=2M"],
    ["cluster_size=2M", "cluster_size=512", "cluster_size=4k,refcount_bits=1"],
    ["extended_l2=on", "extended_l2=on,cluster_size=16k", "extended_l2=on"],
    ["compat=0.10", "compat=0.10,cluster_size=4k", "compat=0.10"],
    ["compat=0.10", "cluster_size=64k", "compression_type=zstd,cluster_size=2M"],
    ["data_file=DATA", "cluster_size=64k", "data_file=DATA,extended_l2=on"],
    ["lazy_refcounts=on", "refcount_bits=64", "refcount_bits=64,cluster_size=512,lazy_refcounts=on"],
];
