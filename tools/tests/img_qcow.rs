//! qcow images beside the installed `qemu-img`: words and exit codes, each other's images, and damaged ones.

mod side;

use side::{Side, disk};

fn images() -> Side {
    let side = Side::new();
    side.write("r", &disk((5 << 20) - 1536, 3));
    let soft: Vec<u8> = (0..3u32 << 20).map(|at| (at >> 14) as u8 ^ (at % 7) as u8).collect();
    side.write("soft", &soft);
    for line in [
        "create -q -f qcow empty.qcow 10M",
        "convert -O qcow r theirs.qcow",
        "create -q -f qcow -b theirs.qcow -F qcow child.qcow",
    ] {
        side.make(line);
    }
    // It ends with 1 and says nothing, and all of the disk is there.
    side.theirs("convert -c -O qcow soft packed.qcow");
    let mut fill = side.command("qemu-io", "-f qcow child.qcow");
    let filled = fill.args(["-c", "write -P 7 1M 100k", "-c", "write -P 8 100k 700"]).output();
    assert!(filled.expect("qemu-io is installed (package qemu-utils)").status.success());
    side
}

#[test]
fn commands_say_the_same() {
    let mut side = images();
    for image in ["empty.qcow", "theirs.qcow", "packed.qcow", "child.qcow"] {
        for line in ["info", "info --output=json", "check", "check --output=json", "map", "map --output=json"]
        {
            side.both("qcow", &format!("{line} {image}"));
        }
    }
    for line in [
        "check -r all theirs.qcow",
        "resize empty.qcow 20M",
        "snapshot -c one empty.qcow",
        "amend -o size=4k empty.qcow",
        "create -f qcow -o help x",
        "create -f qcow x.qcow 0",
        "measure -O qcow --size 10M",
        "compare r theirs.qcow",
        "compare soft packed.qcow",
        "compare child.qcow theirs.qcow",
    ] {
        side.both("qcow", line);
    }
    side.finish();
}

#[test]
fn each_reads_what_the_other_made() {
    let side = images();
    side.our_make("convert -O qcow r ours.qcow");
    side.our_make("convert -c -O qcow r ours-packed.qcow");
    side.our_make("convert -c -O qcow soft ours-soft.qcow");
    side.our_make("create -q -f qcow -b theirs.qcow -F qcow ours-child.qcow");
    for (image, source) in [
        ("ours.qcow", "r"),
        ("ours-packed.qcow", "r"),
        ("ours-child.qcow", "r"),
        ("theirs.qcow", "r"),
        ("ours-soft.qcow", "soft"),
        ("packed.qcow", "soft"),
    ] {
        let compare = format!("compare {source} {image}");
        for run in [side.theirs(&compare), side.ours(&compare)] {
            assert_eq!((run.code, &*run.stdout), (0, "Images are identical.\n"), "{image}");
        }
    }
    let (ours, theirs) = (side.read("ours-child.qcow"), side.read("child.qcow"));
    assert!(ours[20..48] == theirs[20..48], "all of the header but the name");
    assert!(side.read("ours-packed.qcow").len() < side.read("ours.qcow").len());
    assert!(side.read("ours-soft.qcow").len() < 1 << 20);
    side.our_make("convert -O raw child.qcow ours");
    side.make("convert -O raw child.qcow theirs");
    assert!(side.read("ours") == side.read("theirs"));
    side.finish();
}

#[test]
fn a_commit_empties_the_image() {
    let side = images();
    side.our_make("convert -O raw child.qcow before");
    side.our_make("commit child.qcow");
    assert!(side.read("child.qcow").len() < 4096);
    for image in ["child.qcow", "theirs.qcow"] {
        assert_eq!(side.theirs(&format!("compare before {image}")).code, 0, "{image}");
    }
    side.finish();
}

/// Offset in the image, what stands there instead.
const DAMAGE: [(usize, &[u8]); 12] = [
    (0, b"X"),                                   // the signature
    (7, &[2]),                                   // another version
    (8, &[0, 0, 0, 0, 0, 0, 0, 48, 0, 0, 4, 0]), // a long name
    (24, &[0; 8]),                               // a disk of nothing
    (24, &[0, 0, 0, 0, 0, 0, 0, 1]),             // of one byte
    (24, &[255]),                                // of more than there can be
    (32, &[8]),                                  // small clusters
    (32, &[17]),                                 // large ones
    (33, &[5]),                                  // small tables
    (33, &[14]),                                 // large ones
    (36, &[0, 0, 0, 2]),                         // an encryption that nobody knows
    (36, &[0, 0, 0, 1]),                         // AES
];

#[test]
fn damaged_images_are_refused_as_well() {
    let mut side = images();
    let sound = side.read("theirs.qcow");
    for (at, bytes) in DAMAGE {
        let mut image = sound.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        side.write("bad.qcow", &image);
        let line = "info -f qcow bad.qcow";
        let (ours, theirs) = (side.ours(line), side.theirs(line));
        let begins = theirs.stderr.lines().next().is_none_or(|line| ours.stderr.starts_with(line));
        if ours.code != theirs.code || !begins || ours.stdout != theirs.stdout {
            side.complain(&format!("{bytes:x?} at {at}\n  ours: {ours:?}\ntheirs: {theirs:?}"));
        }
    }
    let mut image = sound.clone();
    image[36..40].copy_from_slice(&1u32.to_be_bytes());
    side.write("bad.qcow", &image);
    let aes = side.ours("convert -O raw bad.qcow out");
    assert!(aes.code == 1 && aes.stderr.contains("encrypted with AES"), "{}", aes.stderr);
    // A table in the header, a cluster in a table, and a table behind the end.
    let l1 = u64::from_be_bytes(sound[40..48].try_into().expect("eight bytes")) as usize;
    for place in [0u64, 40, 1 << 50] {
        let mut image = sound.clone();
        image[l1..l1 + 8].copy_from_slice(&(place | 1).to_be_bytes());
        side.write("bad.qcow", &image);
        let refused = side.ours("convert -O raw bad.qcow out");
        assert!(refused.code == 1 && refused.stderr.contains("L1 entry 0"), "{}", refused.stderr);
    }
    side.finish();
}
