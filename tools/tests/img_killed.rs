//! Commands that are killed at any moment, or find no room: the image is as before or as after, at most clusters are leaked,
//! and no snapshot or bitmap is lost.

mod side;

use std::process::Stdio;
use std::time::Instant;

use side::Side;

/// A command, and what must be left of it wherever it is killed.
struct Case {
    /// The command line.
    line: &'static str,
    /// The image whose disk is looked at.
    image: &'static str,
    /// What its disk may be then.
    disk: Disk,
    /// Names of snapshots and bitmaps that must be there still.
    kept: &'static [&'static str],
}

#[derive(PartialEq, Eq)]
enum Disk {
    /// What it was, all along.
    Same,
    /// What it was, or what it is to be.
    Either,
    /// Anything: its content is being replaced.
    Any,
}

/// Kills of each command, from its very start to somewhat past its end.
const KILLS: u32 = 5;

const NAMES: &[&str] = &["first", "second", "b0", "b1"];

const CASES: &[Case] = &[
    Case { line: "resize -q full 40M", image: "full", disk: Disk::Either, kept: NAMES },
    Case { line: "resize -q --preallocation=full full 9M", image: "full", disk: Disk::Either, kept: NAMES },
    Case { line: "resize -q --shrink full 1M", image: "full", disk: Disk::Either, kept: NAMES },
    Case { line: "snapshot -c third full", image: "full", disk: Disk::Same, kept: NAMES },
    Case { line: "snapshot -d first full", image: "full", disk: Disk::Same, kept: &["second", "b0", "b1"] },
    Case { line: "snapshot -a first plain", image: "plain", disk: Disk::Either, kept: &["first", "second"] },
    Case { line: "amend -o refcount_bits=64 full", image: "full", disk: Disk::Same, kept: NAMES },
    Case { line: "amend -o compat=0.10 plain", image: "plain", disk: Disk::Same, kept: &["first", "second"] },
    Case {
        line: "amend -o compat=1.1,lazy_refcounts=on old",
        image: "old",
        disk: Disk::Same,
        kept: &["first"],
    },
    Case { line: "bitmap --add -g 512 full b2", image: "full", disk: Disk::Same, kept: NAMES },
    Case { line: "bitmap --merge b0 full b1", image: "full", disk: Disk::Same, kept: NAMES },
    Case {
        line: "bitmap --remove full b0",
        image: "full",
        disk: Disk::Same,
        kept: &["first", "second", "b1"],
    },
    Case { line: "bitmap --clear full b0", image: "full", disk: Disk::Same, kept: NAMES },
    Case { line: "bitmap --disable --enable full b0", image: "full", disk: Disk::Same, kept: NAMES },
    Case {
        line: "resize -q --preallocation=metadata full 9M",
        image: "full",
        disk: Disk::Either,
        kept: NAMES,
    },
    Case { line: "amend -o size=9M full", image: "full", disk: Disk::Either, kept: NAMES },
    Case { line: "snapshot -c third dirty", image: "dirty", disk: Disk::Same, kept: &["first", "second"] },
    Case { line: "commit -q -d top", image: "top", disk: Disk::Same, kept: &[] },
    Case { line: "rebase -u -b base -F qcow2 top", image: "top", disk: Disk::Either, kept: &[] },
    Case { line: "check -q -r leaks leaky", image: "leaky", disk: Disk::Same, kept: &["first"] },
    Case { line: "check -q -r all lost", image: "lost", disk: Disk::Same, kept: &["first"] },
    Case { line: "commit -q top", image: "top", disk: Disk::Same, kept: &[] },
    Case { line: "commit -q -b base top", image: "top", disk: Disk::Same, kept: &[] },
    Case { line: "rebase -b base -F qcow2 top", image: "top", disk: Disk::Same, kept: &[] },
    Case { line: "rebase -c -b _ top", image: "top", disk: Disk::Same, kept: &[] },
    Case { line: "check -q -r all leaking", image: "leaking", disk: Disk::Same, kept: &["first"] },
    Case { line: "check -q -r all wrong", image: "wrong", disk: Disk::Same, kept: &["first"] },
    Case { line: "convert -n -O qcow2 plain full", image: "full", disk: Disk::Any, kept: NAMES },
    Case { line: "convert -n -O qcow2 plain top", image: "top", disk: Disk::Any, kept: &[] },
];

const IMAGES: &[&str] =
    &["full", "plain", "old", "base", "middle", "top", "leaking", "wrong", "dirty", "lost", "leaky"];

/// What a command may change.
fn images_of(case: &Case) -> &'static [&'static str] {
    match case.image {
        "full" => &["full"],
        "plain" => &["plain"],
        "old" => &["old"],
        "leaking" => &["leaking"],
        "wrong" => &["wrong"],
        "dirty" => &["dirty"],
        "lost" => &["lost"],
        "leaky" => &["leaky"],
        _ => &["top", "middle", "base"],
    }
}

/// Images of many small clusters, so that every command has something to do.
fn images(side: &Side) {
    for (image, options) in
        [("full", "cluster_size=512"), ("plain", "cluster_size=512"), ("old", "compat=0.10")]
    {
        side.make(&format!("create -q -f qcow2 -o {options} {image} 4M"));
        side.io(image, "write -P 1 0 2M");
        side.make(&format!("snapshot -c first {image}"));
        side.io(image, "write -P 2 1M 1M; write -P 3 3M 500k");
    }
    side.io("plain", "write -z 1200k 100k");
    side.make("snapshot -c second full");
    side.make("snapshot -c second plain");
    side.make("bitmap --add full b0");
    side.make("bitmap --add -g 512 full b1");
    side.io("full", "write -P 4 1500k 300k");
    side.make("create -q -f qcow2 -o cluster_size=512 base 4M");
    side.io("base", "write -P 1 0 3M");
    side.make("create -q -f qcow2 -o cluster_size=512 -b base -F qcow2 middle");
    side.io("middle", "write -P 2 500k 1M; write -z 2M 200k");
    side.make("create -q -f qcow2 -o cluster_size=512 -b middle -F qcow2 top");
    side.io("top", "write -P 3 1M 1M; write -P 4 3M 200k");
    // Refcounts that are too high leak; those that are too low are errors.
    for (image, value) in [("leaking", 2_u8), ("leaky", 4), ("wrong", 0), ("dirty", 0), ("lost", 0)] {
        side.write(image, &side.read("plain"));
        let mut bytes = side.read(image);
        let at = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes")) as usize;
        let (table, block) = (at(48), at(at(48) + 8 * 4));
        for entry in 0..64 {
            bytes[block + 2 * entry + 1] = value;
        }
        match image {
            // Whoever writes to it next repairs it first.
            "dirty" => bytes[79] |= 1,
            // No entry of the refcount table is left.
            "lost" => {
                let clusters = u32::from_be_bytes(bytes[56..60].try_into().expect("four bytes")) as usize;
                bytes[table..table + 512 * clusters].fill(0);
            }
            _ => {}
        }
        side.write(image, &bytes);
    }
}

fn shown(side: &Side, image: &str) -> Vec<u8> {
    side.make(&format!("convert -O raw {image} shown"));
    side.read("shown")
}

#[test]
fn killed_anywhere_an_image_is_before_or_after() {
    let mut side = Side::new();
    images(&side);
    let made: Vec<_> = IMAGES.iter().map(|image| (*image, side.read(image))).collect();
    let put_back = |side: &Side, case: &Case| {
        let touched = made.iter().filter(|(image, _)| images_of(case).contains(image));
        touched.for_each(|(image, bytes)| side.write(image, bytes));
    };
    for (number, case) in CASES.iter().enumerate() {
        put_back(&side, case);
        let before = shown(&side, case.image);
        let begun = Instant::now();
        side.our_make(case.line);
        let whole = begun.elapsed();
        let after = shown(&side, case.image);
        for kill in 0..KILLS {
            put_back(&side, case);
            let mut command = side.our_command(case.line);
            let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
            let mut child = child.expect("our own tool runs");
            // The same fractions for every command would miss what they all do in the same moment.
            let parts = kill * CASES.len() as u32 + number as u32;
            std::thread::sleep(whole * parts / (KILLS * CASES.len() as u32));
            child.kill().expect("SIGKILL reaches it");
            child.wait().expect("it ended");
            let about = format!("{}, killed at {parts} parts of {whole:?}", case.line);
            look(&mut side, case, &about, (&before, &after));
        }
    }
    side.finish();
}

/// The host refuses to let files grow beyond a length, at four places between what was there and what is to be.
#[test]
fn without_room_an_image_is_before_or_after() {
    let mut side = Side::new();
    images(&side);
    let made: Vec<_> = IMAGES.iter().map(|image| (*image, side.read(image))).collect();
    let mut stopped = 0;
    for case in CASES {
        let touched = || made.iter().filter(|(image, _)| images_of(case).contains(image));
        let put_back = |side: &Side| touched().for_each(|(image, bytes)| side.write(image, bytes));
        put_back(&side);
        let before = shown(&side, case.image);
        side.our_make(case.line);
        let after = shown(&side, case.image);
        let grown = touched().map(|(image, bytes)| (bytes.len() as u64, side.read(image).len() as u64));
        let most = grown.filter(|(old, new)| new > old).max_by_key(|(old, new)| new - old);
        let Some((old, new)) = most else { continue };
        for part in 0..4 {
            put_back(&side);
            let limit = (old + (new - old) * part / 4) >> 10;
            let (line, run) = (case.line, side.ours_with_room(limit, case.line));
            if run.code >= 100 {
                side.complain(&format!("{line}, {limit} KiB: {run:?}"));
            }
            stopped += u32::from(run.code != 0);
            look(&mut side, case, &format!("{line}, {limit} KiB, exit {}", run.code), (&before, &after));
        }
    }
    assert!(stopped > 10, "only {stopped} commands met the end of their room");
    side.finish();
}

/// A new image is there as a whole, or not at all; and the next attempt makes it.
#[test]
fn a_killed_create_leaves_no_half_image() {
    let side = Side::new();
    side.write("source", &side::disk(4 << 20, 5));
    for (about, line) in [
        ("created", "create -q -f qcow2 -o cluster_size=512,preallocation=metadata new 64M"),
        ("converted", "convert -f raw -O qcow2 -o cluster_size=512 source new"),
    ] {
        side.remove("new");
        let begun = Instant::now();
        side.our_make(line);
        let whole = begun.elapsed();
        for kill in 0..2 * KILLS {
            side.remove("new");
            let mut child = side.our_command(line).spawn().expect("our own tool runs");
            std::thread::sleep(whole * kill / (2 * KILLS));
            child.kill().expect("SIGKILL reaches it");
            child.wait().expect("it ended");
            let about = format!("{about}, killed at {kill} tenths of {whole:?}");
            if side.path("new").exists() {
                let checked = side.theirs("check -f qcow2 new");
                assert!(matches!(checked.code, 0 | 1 | 3), "{about}: {checked:?}");
                // What does not open does so because there is no header yet.
                assert!(
                    checked.code != 1 || checked.stderr.contains("not in qcow2 format"),
                    "{about}: {checked:?}"
                );
            }
            let again = side.ours(line);
            assert_eq!(again.code, 0, "{about}: {again:?}");
            side.make("check -q -f qcow2 new");
        }
    }
}

/// What a killed command left.
fn look(side: &mut Side, case: &Case, about: &str, (before, after): (&[u8], &[u8])) {
    let broken = case.line.starts_with("check") || case.image == "dirty";
    let repairs = if broken { "all" } else { "leaks" };
    let image = case.image;
    for image in images_of(case) {
        // The repair is ours: QEMU 10.0.2's own loses the snapshots of an image that has bitmaps too.
        let repaired = side.ours(&format!("check -q -r {repairs} {image}"));
        let checked = side.theirs(&format!("check {image}"));
        if checked.code != 0 {
            side.complain(&format!("{about}: {image}: {repaired:?}, then {checked:?}"));
        }
    }
    let disk = shown(side, image);
    let right = match case.disk {
        Disk::Same => disk == before,
        Disk::Either => disk == before || disk == after,
        Disk::Any => true,
    };
    if !right {
        side.complain(&format!("{about}: the disk is neither what it was nor what it is to be"));
    }
    let info = side.make(&format!("info {image}"));
    for name in case.kept {
        let there = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.get(1) == Some(name)
        };
        if !info.lines().any(there) {
            side.complain(&format!("{about}: {name} is lost: {info}"));
        }
    }
}

/// Bitmaps are stored when an image closes, which may have no room where its new size had.
#[test]
fn a_resize_without_room_says_which_size_holds() {
    let side = Side::new();
    side.make("create -q -f qcow2 made 64M");
    side.io("made", "write 0 1M");
    side.make("bitmap --add --enable -g 64k made b");
    side.io("made", "write 3M 64k");
    let made = side.read("made");
    let mut told = 0;
    for kib in (1400..2800).step_by(64) {
        side.write("image", &made);
        let run = side.ours_with_room(kib, "resize -f qcow2 image 20G");
        let grown = side.make("info -f qcow2 image").contains("virtual size: 20 GiB");
        let says = run.stderr.contains("The image has its new size");
        assert_eq!(grown, run.code == 0 || says, "{kib} KiB: {run:?}");
        told += u32::from(says);
    }
    assert!(told > 0, "there was room for all or for nothing");
}
