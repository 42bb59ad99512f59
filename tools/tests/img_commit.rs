//! `commit` beside the installed `qemu-img`, on chains of every shape: the same words, the same disks, nothing leaked.

mod chain;
mod released;
mod side;

use chain::{LONG, SHAPES, SHORT, both, build, expect_info, hold, refused};
use side::{EXECUTORS, Side};

#[test]
fn chains_of_every_shape() {
    for shape in SHAPES {
        for line in ["commit {}/t", "commit -b b {}/t"] {
            let mut side = Side::new();
            // What a short image between two others lacks reads as zeros.
            let through = line.contains("-b b ");
            build(&side, *shape, if through { SHORT } else { LONG });
            side.make("convert -O raw ours/t before");
            both(&mut side, line);
            let about = format!("{shape:?}: {line}");
            hold(&mut side, &about, &["b", "t", "m"]);
            expect_info(&mut side, &about, "t");
            let same = side.theirs("compare -q ours/t before");
            side.expect_alike(&format!("{about}: the disk"), &same.code, &0);
            side.finish();
        }
    }
}

#[test]
fn options() {
    for line in ["commit -d {}/t", "commit -b ./m -t none {}/t", "commit -q -r 1G {}/t"] {
        let mut side = Side::new();
        build(&side, SHAPES[0], LONG);
        both(&mut side, line);
        hold(&mut side, line, &["b", "m", "t"]);
        expect_info(&mut side, line, "t");
        side.finish();
    }
}

#[test]
fn one_image_after_the_other() {
    for executor in EXECUTORS {
        let mut side = Side::new();
        build(&side, SHAPES[0], LONG);
        side.make("convert -O raw ours/t before");
        side.our_make(&format!("commit --executor {executor} ours/t"));
        side.our_make(&format!("commit --executor {executor} -p ours/m"));
        side.make("commit theirs/t");
        side.make("commit theirs/m");
        hold(&mut side, executor, &["b", "m", "t"]);
        let same = side.theirs("compare -q ours/t before");
        side.expect_alike(executor, &same.code, &0);
        side.finish();
    }
}

#[test]
fn into_raw_images_that_grow() {
    let mut side = Side::new();
    for folder in ["ours", "theirs"] {
        std::fs::create_dir(side.path(folder)).expect("a folder");
        side.write(&format!("{folder}/b"), &side::disk(1 << 20, 3));
        side.make(&format!("create -q -f qcow2 -b b -F raw {folder}/t 3M"));
        side.io(&format!("{folder}/t"), "write -P 1 100k 10k; write -z 500k 100k; write -P 2 2500k 200k");
    }
    both(&mut side, "commit {}/t");
    expect_info(&mut side, "raw", "t");
    let (ours, theirs) = (side.read("ours/b"), side.read("theirs/b"));
    side.expect_alike("the base", &(ours.len(), ours == theirs), &(3 << 20, true));
    side.finish();
}

/// What is not only the active disk's stays: clusters are given back one by one.
#[test]
fn an_image_with_a_snapshot() {
    for shape in SHAPES.iter().filter(|shape| !shape[2].contains("data_file") && !shape[2].contains("bits=1"))
    {
        let mut side = Side::new();
        build(&side, *shape, LONG);
        for folder in ["ours", "theirs"] {
            side.make(&format!("snapshot -c s {folder}/t"));
            side.io(&format!("{folder}/t"), "write -P 11 1M 64k");
        }
        both(&mut side, "commit {}/t");
        hold(&mut side, &format!("{shape:?}"), &["m", "t"]);
        for folder in ["ours", "theirs"] {
            side.make(&format!("snapshot -a s {folder}/t"));
        }
        hold(&mut side, &format!("{shape:?}: the snapshot"), &["t"]);
        side.finish();
    }
}

#[test]
fn an_emptied_image_is_written_to_again() {
    for shape in SHAPES {
        let mut side = Side::new();
        build(&side, *shape, LONG);
        both(&mut side, "commit {}/t");
        for folder in ["ours", "theirs"] {
            side.io(&format!("{folder}/t"), "write -P 12 0 3M; write -P 13 5M 1M");
        }
        hold(&mut side, &format!("{shape:?}"), &["t", "m"]);
        side.finish();
    }
}

#[test]
fn refusals() {
    let mut side = Side::new();
    build(&side, SHAPES[0], LONG);
    side.make("create -q r 1M");
    refused(&mut side, REFUSALS);
    side.finish();
}

/// One command line a line.
const REFUSALS: &str = r#"
    commit
    commit {}/t {}/m
    commit nope
    commit {}/b
    commit r
    commit -f raw r
    commit -f qcow2 r
    commit -f foo {}/t
    commit -b nope {}/t
    commit -b {}/b {}/t
    commit -b t {}/t
    commit -b _ {}/t
    commit -b b {}/b
    commit -t foo {}/t
    commit -r x {}/t
    commit -r -1 {}/t
    commit -T none {}/t
    commit -c {}/t
    commit -U {}/t
    commit --image-opts -f qcow2 driver=qcow2,file.filename={}/t
    commit --output=json {}/t
"#;
