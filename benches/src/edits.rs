//! Whole processes that change an image: `drystone-img` beside `qemu-img`, each on a copy of the same image.

use std::fs::OpenOptions;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::measure::{Subject, in_turns, myself, once, print_processes};
use crate::tools::words;

/// Clusters of the image in no order.
const FRAGMENTS: u64 = 262_144;

/// Clusters of the image whose snapshot is gone back to, which takes `qemu-img` minutes where there are more.
const FEW: u64 = 16_384;

/// Extents of the disk of 1 TiB.
const EXTENTS: u64 = 1_000_000;

/// What is compared: a title, the image that each run gets a copy of, and the command line with `IMAGE` for the copy.
type Case<'a> = (&'a str, &'a str, &'a [&'a str]);

/// Images of which both tools change copies, and what they do. Where much is written, neither waits for the disk.
const CASES: [Case<'_>; 13] = [
    ("check -r leaks, every cluster leaked", "leaked", &["check", "-q", "-r", "leaks", "IMAGE"]),
    ("snapshot -c, 262,144 clusters of 4 KiB", "fragments", &["snapshot", "-c", "new", "IMAGE"]),
    ("snapshot -a, 16,384 clusters of 4 KiB", "snapshot", &["snapshot", "-a", "old", "IMAGE"]),
    ("snapshot -d of the same", "snapshot", &["snapshot", "-d", "old", "IMAGE"]),
    ("snapshot -c, 262,144 clusters of 64 KiB", "large", &["snapshot", "-c", "new", "IMAGE"]),
    ("snapshot -d of the same", "large-snapshot", &["snapshot", "-d", "old", "IMAGE"]),
    ("resize to 64 TiB", "large", &["resize", "-q", "IMAGE", "64T"]),
    ("resize --shrink, 245,760 clusters go", "large", &["resize", "-q", "--shrink", "IMAGE", "1G"]),
    ("amend -o refcount_bits=64", "large", &["amend", "-o", "refcount_bits=64", "IMAGE"]),
    (
        "commit -d, 512 MiB of every second cluster",
        "overlay",
        &["commit", "-q", "-t", "unsafe", "-d", "IMAGE"],
    ),
    ("rebase to an equal file", "overlay", &["rebase", "-t", "unsafe", "-b", "BASE2", "-F", "raw", "IMAGE"]),
    ("rebase to no file", "overlay", &["rebase", "-t", "unsafe", "-b", "", "IMAGE"]),
    ("rebase -u", "overlay", &["rebase", "-u", "-b", "BASE2", "-F", "raw", "IMAGE"]),
];

/// What only reads the image of 1 TiB.
const READERS: [Case<'_>; 3] = [
    ("map of 1 TiB, 1,000,000 extents", "extents", &["map", "--output=json", "IMAGE"]),
    ("map of the same for people", "extents", &["map", "IMAGE"]),
    ("measure of the same", "extents", &["measure", "-O", "qcow2", "IMAGE"]),
];

/// Compares the tools and prints a table.
///
/// # Errors
/// When an image cannot be made.
pub fn compare(drystone_img: &Path, qemu_img: &Path, dir: &Path, rounds: usize) -> io::Result<()> {
    let at = |name: &str| dir.join(name).to_string_lossy().into_owned();
    println!("\n| what | time, theirs | times as fast | CPU, theirs | ratio | memory, theirs |");
    println!("|---|---|---|---|---|---|");
    make_images(qemu_img, &at)?;
    for case in CASES {
        pair(drystone_img, qemu_img, &at, (case, true), rounds);
    }
    for name in
        ["leaked", "fragments", "snapshot", "large", "large-snapshot", "overlay", "base", "base2", "copy"]
    {
        let _ = std::fs::remove_file(at(name));
    }
    once(&mut myself("extents/tokio", at("extents"), EXTENTS)?)?;
    for case in READERS {
        pair(drystone_img, qemu_img, &at, (case, false), rounds);
    }
    let _ = std::fs::remove_file(at("extents"));
    Ok(())
}

fn make_images(qemu_img: &Path, at: &impl Fn(&str) -> String) -> io::Result<()> {
    let tool = |line: &[&str]| once(Command::new(qemu_img).args(line)).map(drop);
    let (fragments, snapshot, leaked) = (at("fragments"), at("snapshot"), at("leaked"));
    once(&mut myself("fragments/tokio", &fragments, FRAGMENTS)?)?;
    once(&mut myself("fragments/tokio", &snapshot, FEW)?)?;
    tool(&["snapshot", "-c", "old", &snapshot])?;
    copy(&fragments, &leaked)?;
    tool(&["snapshot", "-c", "old", &leaked])?;
    forget_snapshots(&leaked)?;
    let (large, large_snapshot) = (at("large"), at("large-snapshot"));
    tool(&["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", &large, "16G"])?;
    copy(&large, &large_snapshot)?;
    tool(&["snapshot", "-c", "old", &large_snapshot])?;
    let (base, overlay) = (at("base"), at("overlay"));
    words(&base, 1 << 30)?;
    copy(&base, &at("base2"))?;
    tool(&["create", "-q", "-f", "qcow2", "-b", &base, "-F", "raw", &overlay])?;
    once(&mut myself("every-second/tokio", &overlay, 16_384)?).map(drop)
}

/// Measures one case. What fails is a line of the table.
fn pair(
    ours: &Path,
    theirs: &Path,
    at: &impl Fn(&str) -> String,
    (case, changes): (Case<'_>, bool),
    rounds: usize,
) {
    let (title, image, line) = case;
    let (source, target) = (at(image), if changes { at("copy") } else { at(image) });
    let subject = |tool: &Path| {
        let mut command = Command::new(tool);
        // A line for each leak, which nobody is to wait for.
        command.stderr(Stdio::null()).args(line.iter().map(|word| match *word {
            "IMAGE" => target.clone(),
            "BASE2" => at("base2"),
            word => word.to_owned(),
        }));
        let (source, target) = (source.clone(), target.clone());
        Subject::new(title, command).after(move || if changes { copy(&source, &target) } else { Ok(()) })
    };
    match in_turns(&mut [subject(ours), subject(theirs)], rounds) {
        Ok(usages) => print_processes(title, &usages),
        Err(error) => println!("| {title} | {error} | | | | |"),
    }
}

/// Copies a file with its holes, and has the copy on the disk: nobody's run is to write it out.
fn copy(from: &str, to: &str) -> io::Result<()> {
    once(Command::new("cp").args(["--sparse=always", from, to]))?;
    OpenOptions::new().write(true).open(to)?.sync_all()
}

/// Makes leaks of what only a snapshot holds. Source: \[qcow2\] "Header": bytes 60 to 72 count and place snapshots.
fn forget_snapshots(image: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(image)?;
    file.seek(SeekFrom::Start(60))?;
    file.write_all(&[0; 12])
}
