//! Parallels images beside the installed `qemu-img`: words and exit codes, each other's images, and damaged ones.

mod side;

use side::{Side, disk};

fn images() -> Side {
    let side = Side::new();
    side.write("r", &disk(5 << 20, 3));
    for line in [
        "create -q -f parallels empty.par 10M",
        "create -q -f parallels -o cluster_size=1000 small.par 1M",
        "convert -O parallels r theirs.par",
        "create -q -f parallels -o cluster_size=64k filled.par 640k",
    ] {
        side.make(line);
    }
    let mut fill = side.command("qemu-io", "-f parallels filled.par");
    let writes = ["-c", "write -P 1 0 64k", "-c", "write -P 2 320k 64k", "-c", "write -P 3 192k 64k"];
    let filled = fill.args(writes).output();
    assert!(filled.expect("qemu-io is installed (package qemu-utils)").status.success());
    side
}

#[test]
fn commands_say_the_same() {
    let mut side = images();
    for image in ["empty.par", "small.par", "theirs.par", "filled.par"] {
        for line in ["info", "info --output=json", "check", "check --output=json", "map", "map --output=json"]
        {
            side.both("parallels", &format!("{line} {image}"));
        }
    }
    for line in [
        "check -r all filled.par",
        "resize filled.par 20M",
        "snapshot -c one filled.par",
        "convert -c -O parallels r packed.par",
        "create -f parallels huge.par 4096T",
        "create -f parallels -o cluster_size=2G huge.par 1M",
        "create -f parallels -o cluster_size=0 huge.par 1M",
        "create -f parallels -o preallocation=metadata x 1M",
        "create -f parallels -o preallocation=full x 1M",
        "create -f parallels -b r -F raw x 1M",
        "create -f parallels -o help x",
        "create -f parallels odd.par 1000k",
        "create -f parallels -o cluster_size=63k odd.par 1M",
        "create -f parallels none.par 0",
        "info none.par",
        "measure -O parallels --size 10M",
        "measure -O qcow2 none.par",
        "measure -O qcow2 --output=json none.par",
        "measure -O qcow2 -o compat=0.10 none.par",
        "compare r theirs.par",
        "compare filled.par theirs.par",
    ] {
        side.both("parallels", line);
    }
    side.finish();
}

#[test]
fn each_reads_what_the_other_made() {
    let side = images();
    for (cluster, ours, theirs) in [("1M", "ours.par", "them.par"), ("3k", "little.par", "small.par")] {
        side.our_make(&format!("convert -O parallels -o cluster_size={cluster} r {ours}"));
        side.make(&format!("convert -O parallels -o cluster_size={cluster} r {theirs}"));
        for image in [ours, theirs] {
            for run in [side.theirs(&format!("compare r {image}")), side.ours(&format!("compare r {image}"))]
            {
                assert_eq!((run.code, &*run.stdout), (0, "Images are identical.\n"), "{image}");
            }
            for run in [side.theirs(&format!("check {image}")), side.ours(&format!("check {image}"))] {
                assert_eq!(run.code, 0, "{image}: {}{}", run.stdout, run.stderr);
            }
        }
        assert!(side.read(ours) == side.read(theirs), "the files are alike to the byte: {ours}");
    }
    side.finish();
}

/// The reference makes such images, and takes other clusters for theirs when it opens them.
#[test]
fn small_clusters_begin_where_the_reference_finds_them() {
    let side = images();
    side.our_make("convert -O parallels -o cluster_size=3584 r ours.par");
    for run in [side.theirs("compare r ours.par"), side.ours("compare r ours.par")] {
        assert_eq!((run.code, &*run.stdout), (0, "Images are identical.\n"));
    }
    assert_eq!(side.theirs("check ours.par").code, 0);
    side.finish();
}

/// Offset in the image, what stands there instead.
const DAMAGE: [(usize, u32); 10] = [
    (44, 0x746f_6e59), // nobody closed it
    (44, 5),           // a mark that nobody knows
    (48, 0),           // where the first cluster is
    (48, 1),
    (48, 0xffff_ff80),
    (52, 1), // the image is called empty
    (20, 8), // heads
    (72, 1), // a cluster that two entries name
    (72, 3),
    (68, 0),
];

#[test]
fn damage_is_found_and_repaired_alike() {
    let mut side = images();
    let sound = side.read("filled.par");
    for (at, value) in DAMAGE {
        let mut bytes = sound.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        for extra in [0, 100_000] {
            bytes.resize(sound.len() + extra, 7);
            let about = format!("{value:#x} at {at}, {extra} bytes more");
            let lines = [
                "info -f parallels bad.par",
                "check -f parallels bad.par",
                "check --output=json -f parallels bad.par",
            ];
            for line in lines.into_iter().filter(|_| extra == 0) {
                side.write("bad.par", &bytes);
                side.both(&about, line);
            }
            // A mark that is neither of the two words: what is left of it is not compared.
            if value == 5 {
                continue;
            }
            let repaired = |side: &Side, ours| {
                side.write("bad.par", &bytes);
                let line = "check -q -f parallels -r all bad.par";
                let run = if ours { side.ours(line) } else { side.theirs(line) };
                assert_eq!(run.code, 0, "{about}: {}", run.stderr);
                side.read("bad.par")
            };
            assert!(repaired(&side, true) == repaired(&side, false), "{about}: repaired to other bytes");
        }
    }
    side.finish();
}

/// What a repair says, of damage at which the reference does not abort.
#[test]
fn repairs_are_told_alike() {
    let mut side = images();
    let sound = side.read("filled.par");
    let mut damaged = [("not closed", sound.clone()), ("longer", sound.clone()), ("a cluster twice", sound)];
    damaged[0].1[44..48].copy_from_slice(&0x746f_6e59_u32.to_le_bytes());
    damaged[1].1.extend([7; 512 * 300]);
    damaged[2].1.copy_within(64..68, 68);
    for (about, bytes) in damaged {
        for line in ["check -r leaks -f parallels bad.par", "check -r all -f parallels bad.par"] {
            let [ours, theirs] = [true, false].map(|ours| {
                side.write("bad.par", &bytes);
                let run = if ours { side.ours(line) } else { side.theirs(line) };
                (run.code, run.stdout, run.stderr)
            });
            side.expect_alike(&format!("{about}: {line}"), &ours, &theirs);
        }
    }
    side.finish();
}

/// Offset in the image, what stands there instead, and what we say of it, where the reference aborts, waits or does not notice.
const REFUSED: [(usize, u32, &str); 9] = [
    (16, 3, "Image not in Parallels format (version 3 at byte 16, expected 2)"),
    (28, 0, "Invalid image: Zero sectors per track (at byte 28)"),
    (28, 0x7fff_ffff, "Invalid image: Too big cluster (2147483647 sectors at byte 28, at most 4186127)"),
    (32, 0x2000_0000, "Catalog too large (536870912 entries at byte 32, at most 536870911)"),
    (
        32,
        0x1fff_ffff,
        "the BAT of 536870911 entries ends at 2147483708, behind the end of the file at 262144",
    ),
    (32, 0, "the disk of 1280 sectors at byte 36 needs more than the BAT's 0 clusters of 128 sectors"),
    (32, 9, "the disk of 1280 sectors at byte 36 needs more than the BAT's 9 clusters of 128 sectors"),
    (
        40,
        0x7fff_ffff,
        "the disk of 9223372032559809792 sectors at byte 36 needs more than the BAT's 10 clusters of 128 sectors",
    ),
    (28, 63, "the disk of 1280 sectors at byte 36 needs more than the BAT's 10 clusters of 63 sectors"),
];

#[test]
fn headers_that_cannot_be_are_refused() {
    let side = images();
    let sound = side.read("filled.par");
    for (at, value, text) in REFUSED {
        let mut bytes = sound.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        side.write("bad.par", &bytes);
        for line in ["info -f parallels bad.par", "check -f parallels bad.par"] {
            let run = side.ours(line);
            assert_eq!((run.code, run.stderr.contains(text)), (1, true), "{line}: {}", run.stderr);
        }
        assert!(side.read("bad.par") == bytes);
    }
    side.finish();
}

#[test]
fn entries_that_lead_outside_are_told_and_taken_out() {
    let side = images();
    let sound = side.read("filled.par");
    let mut bytes = sound.clone();
    bytes[72..76].copy_from_slice(&50u32.to_le_bytes());
    side.write("bad.par", &bytes);
    // The reference aborts in this check, and reads zeros.
    let found = side.ours("check -f parallels bad.par");
    assert_eq!((found.code, &*found.stderr), (2, "ERROR cluster 2 is outside image\n"));
    let read = side.ours("convert -f parallels -O raw bad.par out");
    assert!(read.code == 1 && read.stderr.contains("BAT entry 2 leads to byte 3276800"), "{}", read.stderr);
    assert_eq!(side.ours("check -q -f parallels -r all bad.par").code, 0);
    assert!(side.read("bad.par") == sound);
    // What is left of a cut cluster is kept, where the reference drops it.
    side.write("bad.par", &sound[..sound.len() - 512]);
    let found = side.ours("check -f parallels bad.par");
    assert_eq!((found.code, &*found.stderr), (2, "ERROR cluster 3 is outside image\n"));
    assert_eq!(side.ours("check -q -f parallels -r all bad.par").code, 0);
    let repaired = side.read("bad.par");
    assert_eq!(repaired.len(), sound.len());
    assert!(repaired[..sound.len() - 512] == sound[..sound.len() - 512]);
    assert_eq!(side.theirs("check -f parallels bad.par").code, 0);
    side.finish();
}
