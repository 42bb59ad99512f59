//! Disks that end inside a sector, beyond their backing file, or together with a limit, beside the installed `qemu-img`.

mod side;

use std::time::{Duration, Instant};

use side::{Side, disk};

/// Bytes that are no whole sectors.
const ODD: usize = 1_234_567;

/// Runs a line with both tools, each time on the same files, and compares what they say and a file that they leave.
fn leaves_the_same(side: &mut Side, line: &str, file: &str) {
    let before = std::fs::read(side.path(file)).ok();
    let ours = (side.ours(line), std::fs::read(side.path(file)).ok());
    match &before {
        Some(bytes) => side.write(file, bytes),
        None => side.remove(file),
    }
    let theirs = (side.theirs(line), std::fs::read(side.path(file)).ok());
    side.expect_alike(line, &ours.0, &theirs.0);
    if ours.1 != theirs.1 {
        side.complain(&format!("{line}: {file} differs"));
    }
    match before {
        Some(bytes) => side.write(file, &bytes),
        None => side.remove(file),
    }
}

#[test]
fn the_last_sector_of_a_target_is_written_whole() {
    let mut side = Side::new();
    side.write("tiny", &disk(700, 3));
    side.write("old", &disk(ODD, 5));
    for line in
        ["-n -O raw tiny old", "-n -O raw tiny tiny old", "-n -S 0 -O raw tiny old", "-n -W -O raw tiny old"]
    {
        leaves_the_same(&mut side, &format!("convert -f raw {line}"), "old");
    }
    side.make("create -q -f qcow2 image 4k");
    side.io("image", "write -P 7 0 4k");
    side.our_make("convert -f raw -n -O qcow2 tiny image");
    side.make("convert -O raw image ours");
    side.io("image", "write -P 7 0 4k");
    side.make("convert -f raw -n -O qcow2 tiny image");
    side.make("convert -O raw image theirs");
    side.expect_alike("an image", &side.read("ours"), &side.read("theirs"));
    side.finish();
}

#[test]
fn a_raw_base_grows_only_for_what_is_held_above_its_end() {
    let mut side = Side::new();
    for written in ["write -P 5 1M 64k", "write -P 5 1234500 400", "write -z 1234432 512", "write -P 5 0 512"]
    {
        side.write("base", &disk(ODD, 5));
        side.make("create -q -f qcow2 -b base -F raw top");
        side.io("top", written);
        let (base, top) = (side.read("base"), side.read("top"));
        for line in ["commit top", "commit -d top"] {
            let ends = [Side::ours, Side::theirs].map(|run| {
                side.write("base", &base);
                side.write("top", &top);
                (run(&side, line), side.read("base").len(), side.read("base") == base)
            });
            side.expect_alike(&format!("{written}: {line}"), &ends[0], &ends[1]);
            let held = side.theirs("compare -q -f raw base top");
            side.expect_alike(&format!("{written}: {line}: the disk"), &held.code, &0);
        }
    }
    side.finish();
}

/// A target that was made just now reads as zeros where its backing file has ended. The reference says the same of one
/// that was there before, and leaves what it holds; ours does not.
#[test]
fn zeros_beyond_a_backing_file_are_not_written() {
    let mut side = Side::new();
    side.make("create -q -f qcow2 base 2M");
    side.io("base", "write -P 1 0 1M");
    side.make("create -q -f qcow2 -b base -F qcow2 top 6M");
    side.io("top", "write -P 2 1M 64k; write -P 3 4M 64k; write -z 5M 64k");
    for format in ["qcow2", "qed"] {
        let line = format!("convert -O {format} -B base -F qcow2 top");
        side.our_make(&format!("{line} ours"));
        side.make(&format!("{line} theirs"));
        let map = |side: &Side, image: &str| {
            let map = side.make(&format!("map --output=json {image}"));
            map.lines()
                .map(|line| line.split(", \"offset\"").next().unwrap_or_default().to_owned())
                .collect::<Vec<_>>()
        };
        side.expect_alike(&line, &map(&side, "ours"), &map(&side, "theirs"));
        side.make("compare ours top");
    }
    side.make("create -q -f qcow2 -b base -F qcow2 there 6M");
    side.io("there", "write -P 9 2M 4M");
    side.our_make("convert -n -O qcow2 -B base -F qcow2 top there");
    side.make("compare there top");
    side.finish();
}

#[test]
fn nothing_is_waited_for_after_the_last_piece() {
    let side = Side::new();
    side.write("small", &disk(100_000, 9));
    let begun = Instant::now();
    side.our_make("convert -r 1k -f raw -O raw small copy");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    side.write("larger", &disk(2 << 20, 9).into_iter().map(|byte| byte | 1).collect::<Vec<_>>());
    let begun = Instant::now();
    side.our_make("convert -r 1M -f raw -O raw larger copy");
    assert!(begun.elapsed() > Duration::from_millis(1400), "{:?}", begun.elapsed());
}

/// Version 2 has zlib alone. The reference looks for compressed clusters in the disk and not in snapshots, which it then
/// cannot read any more.
#[test]
fn an_image_for_zstd_becomes_version_2_while_nothing_is_compressed() {
    let mut side = Side::new();
    let make = |side: &Side, written: &str| {
        side.make("create -q -f qcow2 -o compression_type=zstd image 4M");
        side.io("image", written);
    };
    for written in
        ["length", "write -P 1 0 1M; write -z 1M 1M", "write -c -P 1 0 64k", "write -c -P 1 3M 64k"]
    {
        let [ours, theirs] = [Side::ours, Side::theirs].map(|run| {
            make(&side, written);
            let said = run(&side, "amend -o compat=0.10 image");
            (said, side.make("info --output=json image").replace("actual-size", ""), side.make("check image"))
        });
        side.expect_alike(written, &ours.0, &theirs.0);
        side.expect_alike(written, &ours.2.contains("No errors"), &theirs.2.contains("No errors"));
        let named = |info: &str| {
            ["\"compat\": \"0.10\"", "\"compression-type\": \"zlib\""].map(|text| info.contains(text))
        };
        side.expect_alike(written, &named(&ours.1), &named(&theirs.1));
    }
    make(&side, "write -c -P 1 0 64k");
    side.make("snapshot -c kept image");
    side.io("image", "write -P 2 0 64k");
    let refused = side.ours("amend -o compat=0.10 image");
    assert_eq!(refused.code, 1, "{refused:?}");
    side.make("snapshot -a kept image");
    side.io("image", "read -P 1 0 64k");
    side.finish();
}
