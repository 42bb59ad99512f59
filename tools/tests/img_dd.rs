//! `dd` beside the installed `qemu-img`; where Debian's build miscounts, beside what the release and `dd` do.

mod released;
mod side;

use released::as_released;
use side::{EXECUTORS, Run, Side};

fn with_images() -> Side {
    let side = Side::new();
    side.write("r", &side::disk((3 << 20) + 512, 11));
    side.make("create -q -f qcow2 q 5M");
    side.io("q", "write -P 1 0 100k; write -P 2 1M 1M; write -z 3M 64k; write -c -P 3 4M 64k");
    side
}

#[test]
fn blocks() {
    let mut side = with_images();
    for options in [
        "if=r",
        "if=q",
        "bs=1M if=q",
        "bs=1M count=2 if=q",
        "bs=7 count=1000 if=r",
        "bs=1000 count=3 if=r",
        "bs=1000 skip=3 if=r",
        "bs=64k skip=5 if=q",
        "count=0 if=r",
        "bs=2147483647 if=r",
        "skip=99999999 if=r",
        "skip=6145 if=r",
        "if=q if=r",
        "-O qcow2 bs=64k if=q",
        "-O qcow2 bs=1M count=3 if=r",
        "-O qcow2 skip=99999999 if=r",
        "-f raw if=q",
        "-U if=q",
        "--image-opts if=driver=qcow2,file.filename=q",
    ] {
        let ours = side.ours(&format!("dd {options} of=o"));
        let theirs = side.theirs(&format!("dd {options} of=o2"));
        side.expect_alike(options, &ours, &theirs);
        let format = if options.contains("-O qcow2") { "qcow2" } else { "raw" };
        let lines = format!("compare -s -q -f {format} -F {format} o o2");
        let same = side.theirs(&lines);
        side.expect_alike(
            &format!("{options}: {lines}"),
            &same,
            &Run { stdout: String::new(), stderr: String::new(), code: 0 },
        );
        let lengths = (side.read("o").len(), side.read("o2").len());
        side.expect_alike(options, &lengths.0, &lengths.1);
        side.remove("o");
        side.remove("o2");
    }
    side.finish();
}

/// The release takes suffixes for counts, and counts what is copied, not what is skipped.
#[test]
fn skip_and_count() {
    let mut side = with_images();
    let whole = side.read("r");
    for executor in EXECUTORS {
        for (options, from, len) in [
            ("bs=64k skip=1 count=2", 64 << 10, 128 << 10),
            ("bs=1k count=2k", 0, 2 << 20),
            ("bs=512 skip=1k count=0x10", 512 << 10, 16 << 9),
            ("bs=1M skip=2 count=9", 2 << 20, (1 << 20) + 512),
        ] {
            side.our_make(&format!("dd --executor {executor} {options} if=r of=o"));
            side.expect_alike(options, &(side.read("o") == whole[from..from + len]), &true);
        }
    }
    side.finish();
}

#[test]
fn refusals() {
    let mut side = with_images();
    for line in REFUSALS.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let theirs = side.theirs(line);
        let theirs = Run { stderr: as_released(&theirs.stderr), ..theirs };
        let ours = side.ours(line);
        side.expect_alike(line, &ours, &theirs);
    }
    // The reference empties its own input; ours does not.
    let refused = side.ours("dd if=q of=q");
    side.expect_alike("input and output", &refused.code, &1);
    side.finish();
}

const REFUSALS: &str = r#"
    dd
    dd if=r
    dd of=o
    dd if=r of=o bs=0
    dd if=r of=o bs=-1
    dd if=r of=o bs=x
    dd if=r of=o bs=3G
    dd if=r of=o count=-1
    dd if=r of=o count=x
    dd if=r of=o skip=-1
    dd if=r of=o foo=1
    dd if=r of=o foo
    dd if=r of=o conv=sync
    dd if=nope of=o
    dd if=r of=nodir/o
    dd -O foo if=r of=o
    dd -f qcow2 if=r of=o
    dd -f foo if=r of=o
    dd -f raw --image-opts if=r of=o
    dd if=r of=foo:o
    dd if=_ of=o
    dd -q if=r of=o
    dd -n if=r of=o
    dd -O
    dd -O qcow2 if=q of=q
"#;
