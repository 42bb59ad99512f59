//! VDI images beside the installed `qemu-img`: words and exit codes, each other's images, and damaged ones.

mod side;

use side::{Side, disk};

fn images() -> Side {
    let side = Side::new();
    side.write("r", &disk(5 << 20, 3));
    for line in [
        "create -q -f vdi empty.vdi 10M",
        "create -q -f vdi -o static=on static.vdi 3M",
        "convert -O vdi r theirs.vdi",
        "create -q -f vdi filled.vdi 5M",
    ] {
        side.make(line);
    }
    let mut fill = side.command("qemu-io", "-f vdi filled.vdi");
    let filled = fill.args(["-c", "write -P 1 0 64k", "-c", "write -P 2 2M 1M"]).output();
    assert!(filled.expect("qemu-io is installed (package qemu-utils)").status.success());
    side
}

#[test]
fn commands_say_the_same() {
    let mut side = images();
    for image in ["empty.vdi", "static.vdi", "theirs.vdi", "filled.vdi"] {
        for line in ["info", "info --output=json", "check", "check --output=json", "map", "map --output=json"]
        {
            side.both("vdi", &format!("{line} {image}"));
        }
    }
    for line in [
        "check -r all filled.vdi",
        "resize filled.vdi 20M",
        "snapshot -c one filled.vdi",
        "convert -c -O vdi r packed.vdi",
        "create -f vdi huge.vdi 1000T",
        "create -f vdi -o help x",
        "measure -O vdi --size 10M",
        "compare r theirs.vdi",
        "compare filled.vdi theirs.vdi",
    ] {
        side.both("vdi", line);
    }
    side.finish();
}

#[test]
fn each_reads_what_the_other_made() {
    let side = images();
    side.our_make("convert -O vdi r ours.vdi");
    side.our_make("create -q -f vdi -o static=on fixed.vdi 5M");
    side.our_make("convert -n -O vdi r fixed.vdi");
    for image in ["ours.vdi", "fixed.vdi", "theirs.vdi"] {
        for run in [side.theirs(&format!("compare r {image}")), side.ours(&format!("compare r {image}"))] {
            assert_eq!((run.code, &*run.stdout), (0, "Images are identical.\n"), "{image}");
        }
        assert_eq!(side.theirs(&format!("check {image}")).code, 0, "{image}");
    }
    let made = (side.read("ours.vdi"), side.read("theirs.vdi"));
    assert!(made.0[64..392] == made.1[64..392], "all of the header but who made it, and when");
    assert!(made.0[456..] == made.1[456..], "the map and the blocks");
    side.finish();
}

/// Offset in the image, what stands there instead.
const DAMAGE: [(usize, u32); 13] = [
    (68, 0x1_0000),     // the version
    (340, 513),         // the place of the map
    (344, 1025),        // the place of the blocks
    (360, 4096),        // the sector size
    (368, 6 << 20),     // a disk larger than the map
    (376, 2 << 20),     // the block size
    (384, 0x3fff_ffff), // more blocks than there may be
    (384, 3),           // fewer than the disk needs
    (388, 5),           // the count of blocks
    (424, 5),           // the parent
    (440, 5),           // the parent's last change
    (516, 0),           // a block that two entries name
    (516, 0xffff_fffe), // a block that was given up
];

#[test]
fn damaged_images_are_refused_alike() {
    let mut side = images();
    let sound = side.read("filled.vdi");
    for (at, value) in DAMAGE {
        let mut bytes = sound.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        side.write("bad.vdi", &bytes);
        for line in ["info -f vdi bad.vdi", "check -f vdi bad.vdi"] {
            side.both(&format!("{value:#x} at {at}"), line);
        }
    }
    // A map that names a block behind the end is told, and no read goes there.
    let mut bytes = sound.clone();
    bytes[516..520].copy_from_slice(&77u32.to_le_bytes());
    side.write("bad.vdi", &bytes);
    side.both("a block behind the end", "check bad.vdi");
    assert_eq!(side.ours("convert -O raw bad.vdi out").code, 1);
    // The reference reads a map that is not there as zeros, which makes all blocks the first one.
    side.write("bad.vdi", &sound[..600]);
    let cut = side.ours("info -f vdi bad.vdi");
    assert_eq!(cut.code, 0, "the map of five blocks is there: {}", cut.stderr);
    side.write("bad.vdi", &sound[..520]);
    assert_eq!(side.ours("info -f vdi bad.vdi").code, 1);
    side.finish();
}
