//! QED images beside the installed `qemu-img`: words and exit codes, each other's images, and damaged ones.

mod side;

use side::{Side, disk};

fn images() -> Side {
    let side = Side::new();
    side.write("r", &disk(5 << 20, 3));
    for line in [
        "create -q -f qed empty.qed 10M",
        "create -q -f qed -o cluster_size=4k,table_size=2 small.qed 10M",
        "convert -O qed r theirs.qed",
        "create -q -f qed -b r -F raw child.qed 6M",
        "create -q -f qed -b theirs.qed -F qed above.qed",
    ] {
        side.make(line);
    }
    fill(&side, "small.qed", &["write -P 1 0 64k", "write -P 2 5M 1M", "write -z 2M 100k"]);
    fill(&side, "child.qed", &["write -P 7 1M 100k", "write -z 2M 64k"]);
    side
}

fn fill(side: &Side, image: &str, commands: &[&str]) {
    let mut fill = side.command("qemu-io", &format!("-f qed {image}"));
    let filled = fill.args(commands.iter().flat_map(|command| ["-c", command])).output();
    assert!(filled.expect("qemu-io is installed (package qemu-utils)").status.success(), "{image}");
}

#[test]
fn commands_say_the_same() {
    let mut side = images();
    // A backing file of which the name has no bytes, or a zero for its first, is none.
    for (name, len) in [("blank.qed", 0_u32), ("zeros.qed", 5)] {
        let mut bytes = side.read("empty.qed");
        bytes[16] |= 1;
        bytes[56..60].copy_from_slice(&64_u32.to_le_bytes());
        bytes[60..64].copy_from_slice(&len.to_le_bytes());
        side.write(name, &bytes);
    }
    for image in ["empty.qed", "small.qed", "theirs.qed", "child.qed", "above.qed", "blank.qed", "zeros.qed"]
    {
        for line in ["info", "info --output=json", "check", "check --output=json", "map", "map --output=json"]
        {
            side.both("qed", &format!("{line} {image}"));
        }
    }
    for line in [
        "check -r all small.qed",
        "check -r leaks small.qed",
        "snapshot -c one small.qed",
        "amend -o cluster_size=4k small.qed",
        "convert -c -O qed r packed.qed",
        "create -f qed -o help x",
        "create -f qed -o cluster_size=1k x 10M",
        "create -f qed -o table_size=3 x 10M",
        "create -f qed huge.qed 1000T",
        "measure -O qed --size 10M",
        "compare r theirs.qed",
        "compare small.qed theirs.qed",
        "resize --shrink small.qed 5M",
    ] {
        side.both("qed", line);
    }
    side.finish();
}

#[test]
fn each_reads_what_the_other_made() {
    let side = images();
    for options in ["cluster_size=64k", "cluster_size=4k,table_size=2", "cluster_size=1M,table_size=2"] {
        side.our_make(&format!("convert -O qed -o {options} r ours.qed"));
        side.make(&format!("convert -O qed -o {options} r theirs.qed"));
        for image in ["ours.qed", "theirs.qed"] {
            for run in [side.theirs(&format!("compare r {image}")), side.ours(&format!("compare r {image}"))]
            {
                assert_eq!((run.code, &*run.stdout), (0, "Images are identical.\n"), "{image}, {options}");
            }
            assert_eq!(side.theirs(&format!("check {image}")).code, 0, "{image}, {options}");
            assert_eq!(side.read(image)[16], 0, "no mark is left");
        }
        assert!(side.read("ours.qed")[..4096] == side.read("theirs.qed")[..4096], "{options}: the header");
    }
    side.finish();
}

#[test]
fn a_longer_disk_and_another_backing_file() {
    let side = images();
    side.our_make("resize child.qed 8M");
    side.our_make("convert -O raw child.qed ours");
    side.make("convert -O raw child.qed theirs");
    let (ours, longer) = (side.read("ours"), side.read("r").len());
    assert!(
        ours == side.read("theirs") && ours.len() == 8 << 20 && ours[longer..].iter().all(|byte| *byte == 0)
    );
    // What a backing file holds behind the old end must not show.
    side.our_make("create -q -f qed -b r -F raw short.qed 1M");
    side.our_make("resize short.qed 3M");
    side.make("convert -O raw short.qed theirs");
    let shown = side.read("theirs");
    assert!(shown[..1 << 20] == side.read("r")[..1 << 20] && shown[1 << 20..].iter().all(|byte| *byte == 0));

    side.write("copy", &side.read("r"));
    side.our_make("rebase -u -b copy -F raw child.qed");
    let info = side.our_make("info child.qed");
    assert!(info.contains("backing file: copy") && info.contains("backing file format: raw"), "{info}");
    assert_eq!(side.theirs("compare ours child.qed").code, 0);
    side.our_make("rebase -b _ child.qed");
    assert_eq!(side.theirs("compare ours child.qed").code, 0);
    assert!(!side.our_make("info child.qed").contains("backing file"));
    assert_eq!(side.theirs("check child.qed").code, 0);
    side.finish();
}

/// Offset in the image, what stands there instead.
const DAMAGE: [(usize, &[u8]); 14] = [
    (0, b"X"),          // the signature
    (4, &[1, 0, 0, 0]), // the cluster size
    (4, &[0; 4]),       // none
    (8, &[3]),          // the table size
    (8, &[32]),         // too large a one
    (8, &[0]),          // none
    (12, &[255]),       // a header over the table
    (16, &[8]),         // a feature that nobody knows
    (24, &[1]),         // one that does not matter
    (40, &[1]),         // the place of the table
    (40, &[0, 0, 255]), // one behind the end
    (48, &[1]),         // a part of a sector
    (55, &[0x7f]),      // a disk larger than the tables
    (16, &[2]),         // not closed in order
];

#[test]
fn damaged_images_are_refused_as_well() {
    let mut side = images();
    let sound = side.read("theirs.qed");
    for (at, bytes) in DAMAGE {
        let mut image = sound.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        side.write("bad.qed", &image);
        for line in ["info -f qed bad.qed", "check -f qed bad.qed"] {
            let (ours, theirs) = (side.ours(line), side.theirs(line));
            let begins = theirs.stderr.lines().next().is_none_or(|line| ours.stderr.starts_with(line));
            if ours.code != theirs.code || !begins || (ours.code == 0 && ours.stdout != theirs.stdout) {
                side.complain(&format!("{bytes:x?} at {at}: {line}\n  ours: {ours:?}\ntheirs: {theirs:?}"));
            }
        }
    }
    side.finish();
}

#[test]
fn a_check_counts_and_repairs_alike() {
    let mut side = images();
    let sound = side.read("small.qed");
    let long =
        |at: u64| u64::from_le_bytes(sound[at as usize..at as usize + 8].try_into().expect("eight bytes"));
    let l1 = long(40);
    let l2 = long(l1);
    let damage = [
        ("a place off clusters", l2 + 8, 0x10001),
        ("a place behind the end", l2 + 8, 1 << 40),
        ("a cluster of two owners", l2 + 8, long(l2)),
        ("a lost cluster", l2 + 8, 0),
        ("a table off clusters", l1 + 24, 0x10001),
        ("a table of two entries", l1 + 24, l2),
    ];
    for (what, at, value) in damage {
        let mut image = sound.clone();
        image[at as usize..at as usize + 8].copy_from_slice(&u64::to_le_bytes(value));
        image[16] = 2;
        side.write("bad.qed", &image);
        side.both(what, "check bad.qed");
        side.both(what, "check --output=json bad.qed");
        let ours = side.ours("check -r all bad.qed");
        let repaired = side.read("bad.qed");
        side.write("bad.qed", &image);
        let theirs = side.theirs("check -r all bad.qed");
        side.expect_alike(&format!("{what}: check -r all"), &ours, &theirs);
        // The reference takes the mark away whatever is left; here it stays until the tables are in order.
        if theirs.code != 2 {
            side.expect_alike(what, &(repaired == side.read("bad.qed")), &true);
        }
    }
    side.finish();
}

#[test]
fn an_image_that_was_not_closed_is_checked_before_it_changes() {
    let side = images();
    let mut image = side.read("small.qed");
    image[16] = 2;
    let l1 = u64::from_le_bytes(image[40..48].try_into().expect("eight bytes")) as usize;
    let l2 = u64::from_le_bytes(image[l1..l1 + 8].try_into().expect("eight bytes")) as usize;
    image[l2 + 800..l2 + 808].copy_from_slice(&(1u64 << 40).to_le_bytes());
    side.write("torn.qed", &image);
    let write = side
        .command(env!("CARGO_BIN_EXE_drystone-io"), "-f qed torn.qed")
        .args(["-c", "write -P 9 8M 4k", "-c", "read -P 9 8M 4k", "-c", "read -P 0 400k 4k"])
        .output();
    let write = write.expect("drystone-io runs");
    assert!(write.status.success(), "{write:?}");
    let mended = side.read("torn.qed");
    assert_eq!((mended[16], mended[l2 + 805]), (0, 0), "the mark and the torn entry are gone");
    assert_eq!(side.theirs("check torn.qed").code, 0);
    side.finish();
}
