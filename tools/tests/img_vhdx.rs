//! VHDX images beside the installed `qemu-img`: words and exit codes, each other's images, damaged ones, and those that
//! Hyper-V made.

mod real;
mod side;

use real::Real;
use side::{Side, disk};

fn images() -> Side {
    let side = Side::new();
    side.write("r", &disk(5 << 20, 3));
    for line in [
        "create -q -f vhdx empty.vhdx 10M",
        "create -q -f vhdx -o subformat=fixed,block_state_zero=off,block_size=1M fixed.vhdx 3M",
        "convert -O vhdx -o block_size=1M r theirs.vhdx",
        "create -q -f vhdx -o block_size=1M filled.vhdx 5M",
    ] {
        side.make(line);
    }
    let mut fill = side.command("qemu-io", "-f vhdx filled.vhdx");
    let filled = fill.args(["-c", "write -P 1 0 64k", "-c", "write -P 2 2M 1M"]).output();
    assert!(filled.expect("qemu-io is installed (package qemu-utils)").status.success());
    side
}

#[test]
fn commands_say_the_same() {
    let mut side = images();
    for image in ["empty.vhdx", "fixed.vhdx", "theirs.vhdx", "filled.vhdx"] {
        for line in ["info", "info --output=json", "check", "check --output=json"] {
            side.both("vhdx", &format!("{line} {image}"));
        }
    }
    for line in [
        "check -r all filled.vhdx",
        "snapshot -c one filled.vhdx",
        "convert -c -O vhdx r packed.vhdx",
        "create -f vhdx huge.vhdx 65T",
        "create -f vhdx -o block_size=3M odd.vhdx 10M",
        "create -f vhdx -o subformat=foo odd.vhdx 10M",
        "create -f vhdx -b r -F raw above.vhdx",
        "create -f vhdx -o block_size=512k,log_size=5 small.vhdx 10M",
        "create -f vhdx -o help x",
        "measure -O vhdx --size 10M",
        "amend -f vhdx -o size=3 filled.vhdx",
        "compare r theirs.vhdx",
        "compare filled.vhdx theirs.vhdx",
        "info --image-opts driver=vhdx,file.filename=filled.vhdx,foo=bar",
    ] {
        side.both("vhdx", line);
    }
    side.finish();
}

#[test]
fn each_reads_what_the_other_made() {
    let side = images();
    side.our_make("convert -O vhdx r ours.vhdx");
    side.our_make("convert -O vhdx -o block_size=2M,log_size=3M,block_state_zero=off r small.vhdx");
    side.our_make("create -q -f vhdx -o subformat=fixed,block_size=1M ours-fixed.vhdx 5M");
    side.our_make("convert -n -O vhdx r ours-fixed.vhdx");
    // What they began, we go on with, and the other way round.
    side.our_make("convert -n -O vhdx r filled.vhdx");
    for image in ["ours.vhdx", "small.vhdx", "ours-fixed.vhdx", "theirs.vhdx", "filled.vhdx"] {
        for run in [side.theirs(&format!("compare r {image}")), side.ours(&format!("compare r {image}"))] {
            assert_eq!((run.code, &*run.stdout), (0, "Images are identical.\n"), "{image}: {}", run.stderr);
        }
        assert_eq!(side.theirs(&format!("check {image}")).code, 0, "{image}");
        side.make(&format!("convert -n -O vhdx r {image}"));
        assert_eq!(side.ours(&format!("check {image}")).code, 0, "{image}");
        assert_eq!(side.our_make(&format!("compare r {image}")), "Images are identical.\n", "{image}");
    }
    side.finish();
}

#[test]
fn a_disk_becomes_longer() {
    let side = images();
    for image in ["theirs.vhdx", "fixed.vhdx"] {
        side.our_make(&format!("resize {image} 9M"));
        assert!(side.make(&format!("info {image}")).contains("virtual size: 9 MiB"), "{image}");
        assert_eq!(side.theirs(&format!("check {image}")).code, 0, "{image}");
    }
    assert_eq!(side.theirs("compare r theirs.vhdx").stderr, "");
    let shorter = side.ours("resize --shrink theirs.vhdx 1M");
    assert_eq!(shorter.code, 1);
    assert!(shorter.stderr.contains("a VHDX image cannot become shorter"), "{}", shorter.stderr);
    side.finish();
}

/// Where the sound image has what: the reference's layout.
const DAMAGE: [(usize, u64, &str); 9] = [
    (0, 0, "Image not in VHDX format"),
    (0x30008, 0xffff, "region table"),
    (0x30_0000, 0, "signature"),
    (0x30_000a, 0xffff, "entry count is 0xffff"),
    (0x31_0000, 3 << 20, "a block size of 2^n bytes"),
    (0x31_0008, 513, "whole sectors, and at most 64 TiB"),
    (0x31_0020, 513, "expected 512 or 4096"),
    (0x20_0000, 4, "BAT entry 0: 0x4, expected a known state"),
    (0x20_0000, 0x10_0006, "a block apart from headers, log and regions"),
];

#[test]
fn damaged_images_are_refused() {
    let side = images();
    let sound = side.read("filled.vhdx");
    for (at, value, expected) in DAMAGE {
        let mut bytes = sound.clone();
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        if at == 0x30008 {
            // Both copies.
            bytes[0x40008..0x40010].copy_from_slice(&value.to_le_bytes());
        }
        side.write("bad.vhdx", &bytes);
        let run = side.ours("convert -f vhdx -O raw bad.vhdx out");
        assert_eq!(run.code, 1, "{value:#x} at {at:#x}");
        assert!(run.stderr.contains(expected), "{value:#x} at {at:#x}: {}", run.stderr);
    }
    for len in [100, 65536, 300_000, 2 << 20] {
        side.write("bad.vhdx", &sound[..len]);
        assert_eq!(side.ours("info -f vhdx bad.vhdx").code, 1, "cut to {len}");
    }
    // One header, and one region table, are enough.
    let mut bytes = sound.clone();
    bytes[0x30010..0x30020].fill(0xee);
    bytes[0x10008..0x10010].fill(0xee);
    side.write("hurt.vhdx", &bytes);
    assert_eq!(side.our_make("compare filled.vhdx hurt.vhdx"), "Images are identical.\n");
    side.finish();
}

#[test]
fn images_of_hyper_v_hold_what_they_are_said_to() {
    let Some(real) = Real::new() else { return };
    for (name, file) in [
        ("discutils-btrfs.vhdx.gz", "btrfs.vhdx"),
        ("iotest-dynamic-1G.vhdx.bz2", "dynamic.vhdx"),
        ("velociraptor-ntfs.vhdx.zip", "ntfs.vhdx"),
    ] {
        real.unpack(name, file);
        real.holds(name, file, "vhdx");
    }
    // A log that is to be replayed: in memory, which the reference cannot, and in the file.
    let name = "iotest-dirtylog-10G-4M.vhdx.bz2";
    real.unpack(name, "dirty.vhdx");
    let before = std::fs::read(real.side.path("dirty.vhdx")).expect("it is there");
    assert!(real.side.our_make("info dirty.vhdx").contains("virtual size: 10 GiB"));
    real.holds(name, "dirty.vhdx", "vhdx");
    assert!(
        before == std::fs::read(real.side.path("dirty.vhdx")).expect("it is there"),
        "nobody wrote to it"
    );
    std::fs::write(real.side.path("theirs.vhdx"), &before).expect("there is room");
    let (ours, theirs) =
        (real.side.ours("check -r all dirty.vhdx"), real.side.theirs("check -r all theirs.vhdx"));
    assert_eq!(ours, theirs);
    assert_eq!(real.side.theirs("check dirty.vhdx").code, 0);
    real.holds(name, "dirty.vhdx", "vhdx");
}
