//! Commands on images of other formats than qcow2 that are killed at any moment, or find no room: the image opens, its disk
//! is as before or as after, and a check repairs what it finds.

mod side;

use std::time::{Duration, Instant};

use side::{Run, Side};

/// A command, and what must be left of it wherever it is killed.
struct Case {
    format: &'static str,
    /// The command line.
    line: &'static str,
    /// What the disk may be then.
    disk: Disk,
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

/// Kills of each command, from its very start to its end.
const KILLS: u32 = 6;

const fn case(format: &'static str, line: &'static str, disk: Disk) -> Case {
    Case { format, line, disk }
}

/// Not here: a commit of VMDK images, after which the parent has another content ID, and the reference reads no overlay.
const CASES: &[Case] = &[
    case("vmdk", "convert -n -O vmdk disk image", Disk::Any),
    case("vhdx", "convert -n -O vhdx disk image", Disk::Any),
    case("vhdx", "resize -q -f vhdx image 40M", Disk::Either),
    case("vpc", "convert -n -O vpc disk image", Disk::Any),
    case("vdi", "convert -n -O vdi disk image", Disk::Any),
    case("parallels", "convert -n -O parallels disk image", Disk::Any),
    case("parallels", "check -q -r all -f parallels image", Disk::Same),
    case("qed", "convert -n -O qed disk image", Disk::Any),
    case("qed", "resize -q -f qed image 40M", Disk::Either),
    case("qed", "commit -q -f qed top", Disk::Same),
    case("qed", "rebase -f qed -b _ top", Disk::Same),
    case("qcow", "convert -n -O qcow disk image", Disk::Any),
    case("qcow", "commit -q -f qcow top", Disk::Same),
    case("luks", "convert -n --object SECRET --target-image-opts disk LUKS", Disk::Any),
    case("luks", "resize -q --object SECRET --image-opts LUKS 40M", Disk::Either),
    case(
        "luks",
        "amend --object SECRET --object secret,id=new,data=other --image-opts LUKS -o state=active,new-secret=new,iter-time=10",
        Disk::Same,
    ),
];

const SECRET: &str = "secret,id=key,data=stones";
const LUKS: &str = "driver=luks,file.filename=image,key-secret=key";

fn expanded(line: &str) -> String {
    line.replace("SECRET", SECRET).replace("LUKS", LUKS)
}

/// An image with data, and one above it where the format has backing files.
fn images(side: &Side, format: &str) -> Vec<&'static str> {
    for name in ["image", "top"] {
        side.remove(name);
    }
    if format == "luks" {
        let create = "create -q -f luks --object SECRET -o key-secret=key,iter-time=10 image 8M";
        side.make(&expanded(create));
        side.make(&expanded("convert -n --object SECRET --target-image-opts -f raw first LUKS"));
        return vec!["image"];
    }
    side.make(&format!("create -q -f {format} image 8M"));
    side.make(&format!("convert -n -f raw -O {format} first image"));
    if !matches!(format, "vmdk" | "qed" | "qcow") {
        return vec!["image"];
    }
    side.make(&format!("create -q -f {format} -b image -F {format} top"));
    let mut writes = side.command("qemu-io", &format!("-f {format}"));
    writes.args(["-c", "write -P 2 512k 3M", "-c", "write -P 3 7M 512k", "top"]);
    assert!(writes.output().expect("qemu-io is installed").status.success());
    vec!["image", "top"]
}

/// The disk, as the reference reads it.
fn shown(side: &Side, format: &str, image: &str) -> Result<Vec<u8>, Run> {
    let run = match format {
        "luks" => side.theirs(&expanded("convert -O raw --object SECRET --image-opts LUKS shown")),
        _ => side.theirs(&format!("convert -f {format} -O raw {image} shown")),
    };
    if run.code == 0 { Ok(side.read("shown")) } else { Err(run) }
}

/// A case with its images as they were made, and what they show before and after.
struct Made {
    line: String,
    image: &'static str,
    files: Vec<(&'static str, Vec<u8>)>,
    before: Vec<u8>,
    after: Vec<u8>,
    /// How long the command takes.
    whole: Duration,
}

fn make(side: &Side, case: &Case) -> Made {
    let names = images(side, case.format);
    if case.line.starts_with("check") {
        // A cluster that nothing names.
        let bytes = side.read("image");
        side.write("image", &[&bytes[..], &[7; 1 << 20]].concat());
        assert_eq!(side.theirs(&format!("check -f {} image", case.format)).code, 3, "it is lost");
    }
    let image = if case.line.ends_with("top") { "top" } else { "image" };
    let files = names.iter().map(|name| (*name, side.read(name))).collect();
    let line = expanded(case.line);
    let before = shown(side, case.format, image).expect("it is sound");
    let begun = Instant::now();
    side.our_make(&line);
    let whole = begun.elapsed();
    let after = shown(side, case.format, image).expect("it is sound");
    Made { line, image, files, before, after, whole }
}

impl Made {
    fn put_back(&self, side: &Side) {
        self.files.iter().for_each(|(name, bytes)| side.write(name, bytes));
    }
}

fn sources() -> Side {
    let side = Side::new();
    side.write("disk", &side::disk(8 << 20, 11));
    side.write("first", &side::disk(8 << 20, 7));
    side
}

#[test]
fn killed_anywhere_an_image_is_before_or_after() {
    let mut side = sources();
    for (number, case) in (0..).zip(CASES) {
        let made = make(&side, case);
        for kill in 0..KILLS {
            made.put_back(&side);
            let mut child = side.our_command(&made.line).spawn().expect("our own tool runs");
            // The same fractions for every command would miss what they all do in the same moment.
            let parts = kill * CASES.len() as u32 + number;
            std::thread::sleep(made.whole * parts / (KILLS * CASES.len() as u32));
            child.kill().expect("SIGKILL reaches it");
            child.wait().expect("it ended");
            let about = format!("{}, killed at {parts} parts of {:?}", made.line, made.whole);
            look(&mut side, case, &made, &about);
        }
    }
    side.finish();
}

/// The host refuses to let files grow beyond a length.
#[test]
fn without_room_an_image_is_before_or_after() {
    let mut side = sources();
    for case in CASES {
        let made = make(&side, case);
        let grown = made.files.iter().map(|(name, bytes)| (bytes.len() as u64, side.read(name).len() as u64));
        let Some((old, new)) = grown.filter(|(old, new)| new > old).max_by_key(|(old, new)| new - old) else {
            continue;
        };
        for part in 0..4 {
            made.put_back(&side);
            let limit = (old + (new - old) * part / 4) >> 10;
            let (line, run) = (&made.line, side.ours_with_room(limit, &made.line));
            if run.code >= 1000 {
                side.complain(&format!("{line}, {limit} KiB: {run:?}"));
            }
            look(&mut side, case, &made, &format!("{line}, {limit} KiB, exit {}", run.code));
        }
    }
    side.finish();
}

/// What a command left that did not come to its end.
fn look(side: &mut Side, case: &Case, made: &Made, about: &str) {
    let (format, image) = (case.format, made.image);
    // QCOW and VHD have no check, and neither has LUKS.
    if !matches!(format, "qcow" | "vpc" | "luks") {
        // A log is replayed by who opens the image for writing, as a guest does; and so are marks of a writer cleared.
        let repaired = side.ours(&format!("check -q -r all -f {format} {image}"));
        let checked = side.theirs(&format!("check -f {format} {image}"));
        // No repair gives a QED image back what it lost, of either tool.
        let lost = format == "qed" && checked.code == 3;
        if checked.code != 0 && !lost {
            side.complain(&format!("{about}: {repaired:?}, then {checked:?}"));
        }
    }
    let _ = match format {
        "luks" => side.ours(&expanded("info --object SECRET --image-opts LUKS")),
        _ => side.ours(&format!("info -f {format} {image}")),
    };
    match shown(side, format, image) {
        Err(run) => side.complain(&format!("{about}: it does not open: {run:?}")),
        Ok(disk) => {
            let right = match case.disk {
                Disk::Same => disk == made.before,
                Disk::Either => disk == made.before || disk == made.after,
                Disk::Any => true,
            };
            if !right {
                side.complain(&format!("{about}: the disk is neither what it was nor what it is to be"));
            }
        }
    }
}
