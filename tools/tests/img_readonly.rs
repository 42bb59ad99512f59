//! bochs, cloop and dmg images, and images that other makers left: what they hold, beside the installed `qemu-img`, and what is
//! refused.

mod real;
mod side;

use std::io::Write as _;
use std::process::Command;

use real::{folder, unpacked};
use side::Side;

/// A file of the folder of other makers' images, unpacked into `side`; false, and a word about it, where that is not there.
fn foreign(side: &Side, name: &str) -> bool {
    let Some(path) = folder().map(|folder| folder.join(format!("{name}.bz2"))) else { return false };
    if !path.exists() {
        let _ = writeln!(std::io::stderr(), "SKIPPED: {} is not there", path.display());
        return false;
    }
    side.write(name, &unpacked(&path));
    true
}

/// Name, bytes of the disk, SHA-256 of it.
const READ_ONLY: [(&str, &str); 3] = [
    ("empty.bochs", "85e614bc2ef17bec493b849dbeea34687ba52d7b1fedc4e5fc3729b0fb059aad"),
    ("simple-pattern.cloop", "7c77af2771e0f86b7ec9707374c7416037fedae45cb0e6e27fbdf55688a5dd12"),
    ("simple-dmg.dmg", "20647e0a98a830a6a250b91e0e6d7200a872caea07b87a3c19611f3dd031c9df"),
];

fn sha256(side: &Side, name: &str) -> String {
    let sum = Command::new("sha256sum").arg(side.path(name)).output().expect("sha256sum is there");
    String::from_utf8_lossy(&sum.stdout).split(' ').next().unwrap_or_default().to_owned()
}

#[test]
fn images_of_other_makers_hold_what_they_must() {
    let mut side = Side::new();
    for (name, digest) in READ_ONLY {
        if !foreign(&side, name) {
            continue;
        }
        side.our_make(&format!("convert -O raw {name} ours.raw"));
        assert_eq!(sha256(&side, "ours.raw"), digest, "{name}");
        for line in ["info", "info --output=json", "check", "map", "map --output=json", "compare ours.raw"] {
            side.both(name, &format!("{line} {name}"));
        }
        side.both(name, &format!("resize {name} 100M"));
        side.both(name, &format!("snapshot -c one {name}"));
    }
    for format in ["bochs", "cloop", "dmg"] {
        side.both(format, &format!("create -f {format} x 1M"));
    }
    side.finish();
}

#[test]
fn parallels_images_of_other_makers_hold_what_they_must() {
    let mut side = Side::new();
    if !foreign(&side, "parallels-v1") || !foreign(&side, "parallels-with-bitmap") {
        return;
    }
    side.our_make("convert -O raw parallels-v1 ours.raw");
    let digest = "15faf41ebc93b5f734341cb7a2d909001e3f7306960f9d8bc63894f2a8e5bc45";
    assert_eq!(sha256(&side, "ours.raw"), digest);
    for line in ["info", "check", "map --output=json"] {
        side.both("parallels-v1", &format!("{line} parallels-v1"));
        if line != "check" {
            side.both("parallels-with-bitmap", &format!("{line} parallels-with-bitmap"));
        }
    }
    // The reference calls the extension's clusters lost, and would cut them off.
    let found = side.ours("check parallels-with-bitmap");
    assert_eq!((found.code, &*found.stderr), (0, ""), "{}", found.stdout);
    // What is written to is in the bitmap afterwards: bit 0 stands for 64 KiB, the bits are in the third cluster.
    let before = side.read("parallels-with-bitmap");
    let mut io = Command::new(env!("CARGO_BIN_EXE_drystone-io"));
    let image = side.path("parallels-with-bitmap");
    let wrote = io.args(["-f", "parallels", "-c", "write -P 1 0 512"]).arg(&image).status();
    assert!(wrote.expect("it was built with the test").success());
    let after = side.read("parallels-with-bitmap");
    assert_eq!((before[1 << 20] & 1, after[1 << 20]), (0, before[1 << 20] | 1));
    assert_eq!(after[44..48], before[44..48], "closed by who keeps the extension in step");
    // The reference checks the extension's checksum when it opens the image for reading.
    side.both("after a write", "info parallels-with-bitmap");
    side.make("compare -f parallels parallels-with-bitmap parallels-with-bitmap");
    side.finish();
}

/// Image, offset in it, what stands there instead (in the order of the file), and what is said of it.
const REFUSED: [(&str, usize, [u8; 4], &str); 11] = [
    ("simple-pattern.cloop", 128, [0; 4], "block_size cannot be zero"),
    ("simple-pattern.cloop", 128, [0, 0, 2, 1], "block_size 513 must be a multiple of 512"),
    ("simple-pattern.cloop", 128, [0xff, 0xff, 0xfe, 0], "block_size 4294966784 must be 64 MB or less"),
    ("simple-pattern.cloop", 132, [0xff; 4], "the table of 4294967295 offsets at byte 136 ends at"),
    ("simple-pattern.cloop", 140, [0, 0, 9, 0], "ends behind the end of the file at"),
    ("empty.bochs", 72, [0, 0, 0x11, 0], "Catalog size is too large"),
    ("empty.bochs", 80, [0; 4], "Extent size must be at least 512"),
    ("empty.bochs", 80, [1, 0x10, 0, 0], "Extent size 4097 is not a power of two"),
    ("empty.bochs", 80, [0, 0, 0, 2], "Extent size 33554432 is too large"),
    ("empty.bochs", 72, [3, 0, 0, 0], "Catalog size is too small for this disk size"),
    ("empty.bochs", 68, [0xff; 4], "the catalog of 512 entries at 4294967295 does not fit"),
];

#[test]
fn damaged_images_are_refused() {
    let side = Side::new();
    for (name, at, bytes, text) in REFUSED {
        if !foreign(&side, name) {
            return;
        }
        let mut image = side.read(name);
        image[at..at + 4].copy_from_slice(&bytes);
        side.write(name, &image);
        let run = side.ours(&format!("info {name}"));
        assert_eq!((run.code, run.stderr.contains(text)), (1, true), "{name} at {at}: {}", run.stderr);
        // The reference reads a catalog behind the end of the file as zeros.
        if at != 68 {
            assert_eq!(
                side.theirs(&format!("info {name}")).code,
                1,
                "{name} at {at}: the reference opens it"
            );
        }
    }
    if foreign(&side, "simple-dmg.dmg") {
        let mut image = side.read("simple-dmg.dmg");
        // A packed chunk, and then the trailer.
        image[0x16b8 + 40] ^= 0xff;
        side.write("simple-dmg.dmg", &image);
        let run = side.ours("convert -O raw simple-dmg.dmg out");
        assert!(run.code == 1 && run.stderr.contains("does not unpack"), "{}", run.stderr);
        let end = image.len();
        image[end - 512] = b'x';
        side.write("simple-dmg.dmg", &image);
        let run = side.ours("info -f dmg simple-dmg.dmg");
        assert!(run.code == 1 && run.stderr.contains("no trailer 'koly'"), "{}", run.stderr);
    }
    side.finish();
}

/// The first bytes of a format each.
const HEADS: [&[u8]; 6] = [
    b"QFI\xfb\0\0\0\x03",
    b"conectix",
    b"KDMV\x01\0\0\0",
    b"WithoutFreeSpace\x02\0\0\0",
    b"vhdxfile",
    b"LUKS\xba\xbe\0\x01",
];

/// What the guard does not look at is nothing that a format is told by: a descriptor that begins behind a sector of comments.
#[test]
fn a_raw_image_is_told_by_the_sector_that_is_guarded() {
    let side = Side::new();
    let mut comment = vec![b'#'; 511];
    comment.push(b'\n');
    let mut descriptor = b"version=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\
        RW 2 FLAT \"secret\" 0\n"
        .to_vec();
    descriptor.resize(512, 0);
    side.write("secret", &[7; 1024]);
    side.write("comment", &comment);
    side.write("descriptor", &descriptor);
    side.write("disk", &[0; 65536]);
    let run = |program: &str, args: &[&str]| {
        let output =
            Command::new(program).current_dir(side.path("")).args(args).output().expect("it is installed");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let writes = ["-c", "write -s comment 0 512", "-c", "write -s descriptor 512 512", "disk"];
    assert_eq!(run(env!("CARGO_BIN_EXE_drystone-io"), &writes).0, Some(0));
    let told = run(env!("CARGO_BIN_EXE_drystone-img"), &["info", "disk"]);
    assert!(told.1.contains("file format: raw"), "{}", told.1);
    assert_eq!(told, run("qemu-img", &["info", "disk"]));
    side.finish();
}

/// Zeros make a header, too: of what was a byte off.
#[test]
fn zeros_in_a_raw_image_whose_format_was_guessed_make_no_header() {
    let side = Side::new();
    let run = |program: &str, command: &str| {
        let mut almost = b"LUKS\xba\xbe\x05\x01".to_vec();
        almost.resize(65536, 0);
        side.write("disk", &almost);
        let output = Command::new(program).current_dir(side.path("")).args(["-c", command, "disk"]).output();
        let output = output.expect("it is installed");
        let said = [output.stdout, output.stderr].concat();
        let last =
            String::from_utf8_lossy(&said).lines().find(|line| line.contains("failed")).map(str::to_owned);
        (output.status.code(), last, side.read("disk"))
    };
    let ours = env!("CARGO_BIN_EXE_drystone-io");
    for command in [
        "write -z 6 1",
        "write -z -u 6 1",
        "write -z 0 512",
        "write -z 6 1024",
        "write -z -u 0 4k",
        "write -z 7 1",
    ] {
        assert!(run(ours, command) == run("qemu-io", command), "{command}");
    }
    let refused = run(ours, "discard 6 1");
    assert!(refused.0 == Some(1) && refused.2.starts_with(b"LUKS\xba\xbe\x05\x01"), "{:?}", refused.1);
    for command in ["discard 0 512", "discard 0 64k", "discard 1024 512"] {
        assert_eq!(run(ours, command).0, Some(0), "{command}");
    }
    side.finish();
}

/// A guest that writes a header into a disk whose format is guessed could have the next guess follow names that it made up.
#[test]
fn a_raw_image_whose_format_was_guessed_stays_raw() {
    let side = Side::new();
    let run = |program: &str, args: &[&str]| {
        let mut command = Command::new(program);
        let output = command.current_dir(side.path("")).args(args).output().expect("it is installed");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_owned))
    };
    for head in HEADS {
        let mut sector = head.to_vec();
        sector.resize(512, 0);
        side.write("sector", &sector);
        let write = "write -s sector 0 512";
        let parts = "write -s sector 0 4";
        for args in
            [&["-c", write][..], &["-f", "raw", "-c", write], &["-c", parts], &["-c", "write -P 1 0 4k"]]
        {
            let mut both = [("qemu-io", Vec::new()), (env!("CARGO_BIN_EXE_drystone-io"), Vec::new())];
            let mut answers = Vec::new();
            for (program, bytes) in &mut both {
                side.write("disk", &[0; 65536]);
                answers.push(run(program, &[args, &["disk"]].concat()));
                *bytes = side.read("disk");
            }
            assert_eq!(answers[0], answers[1], "{head:?} {args:?}");
            assert!(both[0].1 == both[1].1, "{head:?} {args:?}: other bytes");
        }
    }
    side.finish();
}
