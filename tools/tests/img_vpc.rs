//! VHD images beside the installed `qemu-img`: words and exit codes, bytes, each other's images, damaged ones, and those that
//! other programs made.

mod real;
mod side;

use real::Real;
use side::{Side, disk};

fn images() -> Side {
    let side = Side::new();
    side.write("r", &disk(5 << 20, 3));
    for line in [
        "create -q -f vpc empty.vhd 10M",
        "create -q -f vpc -o subformat=fixed fixed.vhd 3M",
        "convert -O vpc -o force_size=on r theirs.vhd",
        "create -q -f vpc -o force_size=on filled.vhd 5M",
    ] {
        side.make(line);
    }
    let mut fill = side.command("qemu-io", "-f vpc filled.vhd");
    let filled = fill.args(["-c", "write -P 1 0 64k", "-c", "write -P 2 4M 1M"]).output();
    assert!(filled.expect("qemu-io is installed (package qemu-utils)").status.success());
    side
}

#[test]
fn commands_say_the_same() {
    let mut side = images();
    for image in ["empty.vhd", "theirs.vhd", "filled.vhd"] {
        for line in ["info", "info --output=json", "check", "map", "map --output=json"] {
            side.both("vpc", &format!("{line} {image}"));
        }
    }
    for line in [
        "info -f vpc fixed.vhd",
        "info fixed.vhd",
        "map -f vpc --output=json fixed.vhd",
        "check -r all filled.vhd",
        "resize filled.vhd 20M",
        "snapshot -c one filled.vhd",
        "convert -c -O vpc r packed.vhd",
        "create -f vpc huge.vhd 2041G",
        "create -f vpc -o subformat=foo odd.vhd 10M",
        "create -f vpc -b r -F raw above.vhd",
        "create -f vpc -o help x",
        "measure -O vpc --size 10M",
        "amend -f vpc -o size=3 filled.vhd",
        "compare r theirs.vhd",
        "compare filled.vhd theirs.vhd",
        "info --image-opts driver=vpc,file.filename=filled.vhd,force_size_calc=chs",
        "info --image-opts driver=vpc,file.filename=empty.vhd,force_size_calc=current_size",
        "info --image-opts driver=vpc,file.filename=empty.vhd,force_size_calc=foo",
        "info --image-opts driver=vpc,file.filename=empty.vhd,foo=bar",
    ] {
        side.both("vpc", line);
    }
    side.finish();
}

#[test]
fn new_images_have_the_sizes_of_the_reference() {
    let side = Side::new();
    for line in
        ["0", "512", "4M", "64M", "1G", "127G", "128G", "2040G", "-o force_size=on", "-o subformat=fixed"]
    {
        let line =
            if line.starts_with('-') { format!("{line} made.vhd 20M") } else { format!("made.vhd {line}") };
        let made = |run: &dyn Fn(&str)| {
            run(&format!("create -q -f vpc {line}"));
            let bytes = side.read("made.vhd");
            side.remove("made.vhd");
            bytes
        };
        let (ours, theirs) = (made(&|args| drop(side.our_make(args))), made(&|args| drop(side.make(args))));
        assert_eq!(ours.len(), theirs.len(), "{line}");
        // All but time, checksum and UUID.
        let end = ours.len() - 512;
        for footer in [0, end] {
            let differs = |bytes: &[u8]| {
                [
                    &bytes[footer..footer + 24],
                    &bytes[footer + 28..footer + 64],
                    &bytes[footer + 84..footer + 512],
                ]
                .concat()
            };
            if ours[footer..].starts_with(b"conectix") {
                assert_eq!(differs(&ours), differs(&theirs), "{line}: the footer at {footer}");
            }
        }
        assert!(ours[512.min(end)..end] == theirs[512.min(end)..end], "{line}: header and BAT");
    }
    side.finish();
}

#[test]
fn each_reads_what_the_other_made() {
    let side = images();
    side.our_make("convert -O vpc -o force_size=on r ours.vhd");
    side.our_make("create -q -f vpc -o subformat=fixed,force_size=on ours-fixed.vhd 5M");
    side.our_make("convert -n -O vpc r ours-fixed.vhd");
    // What they began, we go on with, and the other way round.
    side.our_make("convert -n -O vpc r filled.vhd");
    for image in ["ours.vhd", "ours-fixed.vhd", "theirs.vhd", "filled.vhd"] {
        let line = format!("compare -f raw -F vpc r {image}");
        for run in [side.theirs(&line), side.ours(&line)] {
            assert_eq!((run.code, &*run.stdout), (0, "Images are identical.\n"), "{image}: {}", run.stderr);
        }
        side.make(&format!("convert -n -O vpc r {image}"));
        assert_eq!(side.our_make(&line), "Images are identical.\n", "{image}");
    }
    let (ours, theirs) = (side.read("ours.vhd"), side.read("theirs.vhd"));
    assert!(
        ours[512..ours.len() - 512] == theirs[512..theirs.len() - 512],
        "header, BAT, bitmaps and blocks"
    );
    side.finish();
}

/// Offset in the footer and its copy, or in the dynamic header; what stands there instead; what is said.
const DAMAGE: [(usize, u32, &str); 8] = [
    (64, 1, "Incorrect header checksum"),
    (20, 1 << 30, "the dynamic header at byte"),
    (60, 9, "disk type 9"),
    (512, 0, "Invalid header magic"),
    (544, 0, "Invalid block size 0"),
    (544, 3 << 20, "Invalid block size 3145728"),
    (540, 0x4000_0001, "Max Table Entries too large (1073741825)"),
    (540, 2, "Page table too small"),
];

#[test]
fn damaged_images_are_refused() {
    let side = images();
    let sound = side.read("filled.vhd");
    let end = sound.len() - 512;
    for (at, value, expected) in DAMAGE {
        let mut bytes = sound.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
        if at >= 512 {
            seal(&mut bytes[512..1536], 36);
        } else if at != 64 {
            seal(&mut bytes[..512], 64);
        }
        side.write("bad.vhd", &bytes);
        let run = side.ours("info -f vpc bad.vhd");
        assert_eq!(run.code, 1, "{value:#x} at {at}");
        assert!(run.stderr.contains(expected), "{value:#x} at {at}: {}", run.stderr);
    }
    for (entry, expected) in
        [(0, "a block apart from footer, header, BAT and names"), (0x20_0000, "a block within the file")]
    {
        let mut bytes = sound.clone();
        bytes[1536..1540].copy_from_slice(&u32::to_be_bytes(entry));
        side.write("bad.vhd", &bytes);
        let run = side.ours("convert -f vpc -O raw bad.vhd out");
        assert_eq!((run.code, run.stderr.contains(expected)), (1, true), "{}", run.stderr);
    }
    // Two entries of one block: it is read, and not added to.
    let mut bytes = sound.clone();
    bytes.copy_within(1536..1540, 1540);
    side.write("bad.vhd", &bytes);
    assert_eq!(side.ours("convert -f vpc -O raw bad.vhd out").code, 0);
    let second = u32::from_be_bytes(sound[1536..1540].try_into().expect("four bytes"));
    assert_ne!(second, u32::MAX);
    // A footer that a crash took away at the end, and not at the start.
    let mut bytes = sound;
    bytes[end..].fill(0);
    side.write("hurt.vhd", &bytes);
    assert_eq!(side.our_make("compare filled.vhd hurt.vhd"), "Images are identical.\n");
    side.finish();
}

/// Writes the right checksum into a structure.
fn seal(bytes: &mut [u8], at: usize) {
    bytes[at..at + 4].fill(0);
    let sum: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
    bytes[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
}

#[test]
fn images_of_others_hold_what_they_are_said_to() {
    let Some(real) = Real::new() else { return };
    for (name, file) in [
        ("dfvfs-ext2.vhd", "ext2.vhd"),
        ("plaso-image.vhd", "plaso.vhd"),
        ("virtualpc-dynamic.vhd.bz2", "virtualpc.vhd"),
    ] {
        real.unpack(name, file);
        real.holds(name, file, "vpc");
    }
    for (name, file) in
        [("hostile/afl5-vpc.img.bz2", "afl5.vhd"), ("hostile/vhd-bad-footer-checksum.vhd", "bad.vhd")]
    {
        real.unpack(name, file);
        for line in [format!("info -f vpc {file}"), format!("convert -f vpc -O raw {file} out")] {
            assert_eq!(real.side.ours(&line).code, 1, "{name}: {line}");
        }
    }
}
