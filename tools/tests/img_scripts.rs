//! What people do with chains of images, as they publish it, with both tools; and what is left when a tool is killed or
//! meets the end of its room in the middle of it.

mod side;

use std::time::Duration;

use side::{Side, disk};

/// Lines of a script; `io IMAGE COMMANDS` writes as a guest would.
fn script(side: &Side, folder: &str, ours: bool, lines: &str) {
    let _ = std::fs::create_dir(side.path(folder));
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let line = line.replace("@", &format!("{folder}/"));
        match line.strip_prefix("io ").and_then(|rest| rest.split_once(' ')) {
            Some((image, commands)) => side.io(image, commands),
            None if ours => drop(side.our_make(&line)),
            None => drop(side.make(&line)),
        }
    }
}

fn both_end_alike(lines: &str, images: &[&str]) {
    let side = Side::new();
    script(&side, "ours", true, lines);
    script(&side, "theirs", false, lines);
    for image in images {
        let same = side.theirs(&format!("compare ours/{image} theirs/{image}"));
        assert_eq!((same.code, same.stdout.as_str()), (0, "Images are identical.\n"), "{image}");
        side.make(&format!("check -q ours/{image}"));
        let told = |folder: &str| {
            let text = side.make(&format!("info --output=json {folder}/{image}")).replace(folder, "");
            let told =
                ["backing", "\"name\"", "\"id\"", "granularity", "\"auto\"", "in-use", "vm-state-size"];
            let lines = text.lines().filter(|line| told.iter().any(|told| line.contains(told)));
            lines.collect::<Vec<_>>().join("\n")
        };
        assert_eq!(told("ours"), told("theirs"), "{image}");
    }
}

/// A golden image, overlays for machines, one of which becomes the next golden image.
#[test]
fn a_golden_image_with_overlays() {
    both_end_alike(
        "
        create -q -f qcow2 @golden 8M
        io @golden write -P 1 0 3M
        create -q -f qcow2 -b golden -F qcow2 @web
        create -q -f qcow2 -b golden -F qcow2 @db
        io @web write -P 2 1M 500k; write -z 2M 64k
        io @db write -P 3 7M 900k; discard 0 64k
        measure -O qcow2 @web
        convert -O qcow2 -c @golden @golden.next
        rebase -q -b golden.next -F qcow2 @db
        io @db write -P 4 4M 70k
        commit -q @web
        io @web write -P 5 5M 5k
        ",
        &["golden", "golden.next", "web", "db"],
    );
}

/// A backing file is taken out of the middle of a chain, then all of it is flattened into one image.
#[test]
fn rebase_to_flatten() {
    both_end_alike(
        "
        create -q -f qcow2 @base 4M
        io @base write -P 1 0 1M; write -P 2 3M 1M
        create -q -f qcow2 -b base -F qcow2 @snap1
        io @snap1 write -P 3 512k 1M
        create -q -f qcow2 -b snap1 -F qcow2 @snap2
        io @snap2 write -P 4 1M 64k; write -z 3M 512k
        create -q -f qcow2 -b snap2 -F qcow2 @active
        io @active write -P 5 2M 100k
        rebase -q -b base -F qcow2 @snap2
        rebase -q -b base -F qcow2 @active
        rebase -q -b _ @active
        dd -O qcow2 bs=64k if=@active of=@copy
        ",
        &["base", "snap2", "active", "copy"],
    );
}

/// Snapshots within an image around an upgrade that goes wrong once, and then well.
#[test]
fn snapshot_and_roll_back() {
    both_end_alike(
        "
        create -q -f qcow2 -o cluster_size=4k @disk 6M
        io @disk write -P 1 0 2M
        snapshot -c installed @disk
        io @disk write -P 2 1M 2M; discard 0 256k
        snapshot -c upgraded @disk
        io @disk write -P 3 0 3M
        convert -O qcow2 -l snapshot.name=upgraded @disk @broken
        snapshot -a installed @disk
        snapshot -d upgraded @disk
        io @disk write -P 4 1500k 1M; write -z 0 100k
        snapshot -c again @disk
        io @disk write -P 5 5M 64k
        snapshot -a again @disk
        snapshot -d installed @disk
        convert -O qcow2 -l again @disk @kept
        resize -q @disk 8M
        check -q @disk
        ",
        &["disk", "broken", "kept"],
    );
}

/// What changed since the last backup is counted in a bitmap; bitmaps take turns, and go along with a copy.
#[test]
fn backups_take_turns_by_bitmaps() {
    both_end_alike(
        "
        create -q -f qcow2 @disk 8M
        io @disk write -P 1 0 3M
        convert -O qcow2 @disk @full
        bitmap --add @disk since-full
        io @disk write -P 2 1M 64k
        bitmap --add -g 128k @disk monday
        io @disk write -P 3 4M 200k
        bitmap --disable @disk monday
        bitmap --add -g 128k @disk tuesday
        io @disk write -P 4 5M 64k; discard 2M 64k
        bitmap --add --disable -g 64k @disk both
        bitmap --merge monday --merge tuesday @disk both
        bitmap --remove @disk monday
        bitmap --clear @disk tuesday
        convert -O qcow2 --bitmaps @disk @copy
        create -q -f qcow2 -b disk -F qcow2 @over
        bitmap --add -g 64k @over since-disk
        io @over write -P 5 6M 300k
        bitmap --add @disk since-disk
        bitmap --merge since-disk -b @over -F qcow2 @disk since-disk
        commit -q @over
        ",
        &["disk", "full", "copy", "over"],
    );
}

/// A snapshot is merged down into the image below it, and the name is put right by hand.
#[test]
fn blocks_committed_down() {
    both_end_alike(
        "
        create -q -f raw @disk 4M
        create -q -f qcow2 -b disk -F raw @overlay1
        io @overlay1 write -P 1 0 1M
        create -q -f qcow2 -b overlay1 -F qcow2 @overlay2
        io @overlay2 write -P 2 512k 1M
        commit -q -b disk @overlay2
        rebase -q -u -b disk -F raw @overlay2
        ",
        &["overlay2"],
    );
}

/// A chain with much to copy, and what its guest sees.
fn large() -> Side {
    let side = Side::new();
    side.write("base.raw", &disk(24 << 20, 3));
    side.make("convert -f raw -O qcow2 base.raw base");
    side.write("top.raw", &disk(24 << 20, 8));
    side.make("convert -f raw -O qcow2 -B base -F qcow2 top.raw top");
    side.write("other.raw", &disk(20 << 20, 21));
    side.make("convert -f raw -O qcow2 other.raw other");
    side.make("create -q -f qcow2 -b base -F qcow2 thin");
    side.io("thin", "write -P 1 5M 1M");
    side.make("convert -O raw top seen");
    side
}

/// Whatever became of a command, the disk that `image` shows is the one in `seen`, and no cluster in use counts as free.
fn hold(side: &Side, image: &str, seen: &str, about: &str) {
    let mut same = side.theirs(&format!("compare -F raw {image} {seen}"));
    for _ in 0..200 {
        // The kernel finishes what is in flight after a process has died, and keeps the image locked until then.
        if !same.stderr.contains("lock") {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
        same = side.theirs(&format!("compare -F raw {image} {seen}"));
    }
    assert_eq!((same.code, same.stdout.as_str()), (0, "Images are identical.\n"), "{about}: {}", same.stderr);
    for image in [image, "base"] {
        let checked = side.theirs(&format!("check {image}"));
        assert!(matches!(checked.code, 0 | 3), "{about}: {image}: {}", checked.stdout);
    }
}

#[test]
fn killed_in_the_middle() {
    for (line, image) in [("commit -r 40M top", "top"), ("rebase -b other -F qcow2 thin", "thin")] {
        for delay in [3, 20, 60, 150, 400] {
            let side = large();
            side.make(&format!("convert -O raw {image} seen"));
            let mut child = side.our_command(line).spawn().expect("our own tool runs");
            std::thread::sleep(Duration::from_millis(delay));
            let _ = child.kill();
            child.wait().expect("it was started");
            hold(&side, image, "seen", &format!("{line}, killed after {delay} ms"));
        }
    }
}

/// The host refuses to let files grow beyond a length.
#[test]
fn no_room_in_the_middle() {
    for (line, image) in
        [("commit top", "top"), ("rebase -b other -F qcow2 thin", "thin"), ("rebase -b _ thin", "thin")]
    {
        for mebibytes in [1, 5, 12, 18] {
            let side = large();
            side.make(&format!("convert -O raw {image} seen"));
            let run = side.ours_with_room(mebibytes << 10, line);
            assert!(run.code < 1000, "{line}, {mebibytes} MiB: {run:?}");
            hold(&side, image, "seen", &format!("{line}, {mebibytes} MiB, exit {}", run.code));
        }
    }
}
