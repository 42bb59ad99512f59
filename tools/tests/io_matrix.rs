//! Each command of `qemu-io` with each of its flags and each pair of them, with good and bad operands, beside the reference:
//! the same words, exit codes, and bytes afterwards.

mod pair;

use pair::Pair;

/// A command, its flags, and its operands.
struct Row {
    command: &'static str,
    flags: &'static [&'static str],
    operands: &'static [&'static str],
}

const fn row(
    command: &'static str,
    flags: &'static [&'static str],
    operands: &'static [&'static str],
) -> Row {
    Row { command, flags, operands }
}

/// `-Z` is a flag that no command has. Not here: `help`, whose words are ours; `wait_break`, with which the reference waits
/// for ever; `-r` of requests in the background, which ends the reference by an assertion; `sigraise` and `abort`, which
/// end the tool.
const ROWS: &[Row] = &[
    row(
        "read",
        &["-b", "-C", "-q", "-r", "-v", "-p", "-P 1", "-P 0", "-P x", "-s 5", "-l 16", "-Z"],
        &["0 512", "1M 64k", "0 0", "3 5", "-1 512", "x 1", "0", "", "4M 512", "0 5M", "0 512 512"],
    ),
    row(
        "readv",
        &["-C", "-q", "-r", "-v", "-P 1", "-Z"],
        &["0 512 512", "1M 1k", "0", "", "-1 5", "0 x", "4M 1", "5M 1", "0 0 0", "100 3 5"],
    ),
    row(
        "write",
        &["-b", "-c", "-C", "-f", "-n", "-q", "-r", "-u", "-z", "-p", "-P 7", "-s pat", "-Z"],
        &["0 512", "1M 64k", "0 0", "3 5", "-1 512", "0", "", "4M 512", "64k 128k", "0 512 512", "3 64k"],
    ),
    row(
        "writev",
        &["-C", "-f", "-q", "-r", "-P 9", "-Z"],
        &["0 512 512", "1M 1k", "0", "", "4M 1", "5M 1", "100 3 5", "0 x"],
    ),
    row("aio_read", &["-C", "-i", "-q", "-v", "-P 1", "-Z"], &["0 512", "1M 1k 1k", "0", "", "4M 1", "3 5"]),
    row(
        "aio_write",
        &["-C", "-f", "-i", "-q", "-u", "-z", "-P 5", "-Z"],
        &["0 512", "1M 1k 1k", "0", "", "4M 1", "3 5", "64k 64k"],
    ),
    row(
        "discard",
        &["-C", "-q", "-Z"],
        &["0 512", "1M 64k", "0", "", "4M 1", "0 0", "3 5", "0 5M", "x 1", "0 3G"],
    ),
    row("flush", &["-q"], &["", "x"]),
    row("aio_flush", &["-q"], &["", "x"]),
    row(
        "truncate",
        &["-m", "-m off", "-m falloc", "-m full", "-m metadata", "-m x", "-Z"],
        &["5M", "", "4M", "x", "-1", "5M 6M"],
    ),
    row("alloc", &["-q"], &["0 64k", "", "0", "1M", "x", "0 x", "5M", "1M 4M", "-1", "0 0"]),
    row("map", &["-q"], &["", "x"]),
    row("length", &["-q"], &["", "x"]),
    row("info", &["-q"], &["", "x"]),
    row("sleep", &[], &["", "0", "x", "1 2", "-1"]),
    row(
        "reopen",
        &[
            "-r",
            "-w",
            "-c none",
            "-c writeback",
            "-c x",
            "-o cache.direct=on",
            "-o x=y",
            "-o discard=unmap",
            "-Z",
        ],
        &["", "x"],
    ),
    row(
        "open",
        &[
            "-r",
            "-s",
            "-C",
            "-n",
            "-k",
            "-U",
            "-t none",
            "-t x",
            "-d unmap",
            "-d x",
            "-o driver=FORMAT",
            "-o driver=FORMAT,x",
            "-Z",
        ],
        &["image", "", "image x"],
    ),
    row("open", &[], &["nope"]),
    row("close", &["-q"], &["", "x"]),
    row("break", &[], &["", "x", "read_aio A", "bogus A", "read_aio A B"]),
    row("remove_break", &[], &["", "A", "A B"]),
    row("resume", &[], &["", "A"]),
    row("zone_report", &[], &["", "0", "0 1", "x 1", "0 x"]),
    row("zone_open", &[], &["", "0 1", "0 x"]),
    row("zone_close", &[], &["", "0 1"]),
    row("zone_finish", &[], &["", "0 1"]),
    row("zone_reset", &[], &["", "0 1"]),
    row("zone_append", &[], &["", "0 1", "0 x"]),
    row("r", &["-q"], &["0 512"]),
    row("w", &["-q"], &["0 512"]),
    row("d", &["-q"], &["0 512"]),
    row("t", &["-q"], &["4M"]),
    row("f", &[], &[""]),
    row("i", &[], &[""]),
    row("l", &[], &[""]),
    row("rv", &[], &[""]),
    row("bogus", &[], &["", "x"]),
    row("quit", &["-q"], &["", "x"]),
    row("q", &[], &[""]),
];

/// Lines of one run.
const LINES: usize = 20;

/// All lines of a row: without flags and with each with all operands, and pairs of flags with one of the first three.
fn lines(row: &Row) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = |flags: &[&str], operands: &str| {
        let words = [&[row.command], flags, &[operands]].concat();
        lines.push(words.join(" ").trim().to_owned());
    };
    row.operands.iter().for_each(|operands| line(&[], operands));
    for (at, one) in row.flags.iter().enumerate() {
        row.operands.iter().for_each(|operands| line(&[one], operands));
        for (then, two) in row.flags.iter().enumerate().skip(at + 1) {
            line(&[one, two], row.operands[(at + then) % row.operands.len().min(3)]);
        }
    }
    lines
}

/// The line with what makes its effect show, and what the next one needs.
fn with_more(command: &str, line: &str) -> Vec<String> {
    let more: &[&str] = match command {
        "aio_read" | "aio_write" => &["aio_flush"],
        "open" => &["length", "close", "open image"],
        "close" => &["length", "open image"],
        "reopen" | "truncate" | "t" => &["length"],
        _ => &[],
    };
    // An image that is open already is not opened.
    let before: &[&str] = if command == "open" { &["open nope", "close"] } else { &[] };
    let all = before.iter().copied().chain([line]).chain(more.iter().copied());
    all.map(str::to_owned).collect()
}

fn matrix(options: &str, format: &str) {
    let create = format!("qemu-img create -q -f {format} image 4M");
    let fill = format!("qemu-io -f {format} -c 'write -P 1 0 1M' image");
    let mut pair = Pair::new(&[&create, &fill]);
    pair.write("pat", b"stones without mortar");
    let mut count = 0;
    for row in ROWS {
        // A temporary overlay is not opened again, for what was written would be gone.
        if row.command == "reopen" && options == "-s" {
            continue;
        }
        let lines: Vec<_> = lines(row).iter().map(|line| line.replace("FORMAT", format)).collect();
        count += lines.len();
        let at_once = if row.command.starts_with('q') { 1 } else { LINES };
        for some in lines.chunks(at_once) {
            let commands = some.iter().flat_map(|line| with_more(row.command, line));
            let commands: String = commands.map(|line| format!("-c '{line}' ")).collect();
            pair.both(&format!("{options} -f {format} {commands} image"));
        }
    }
    assert!(count > 600, "{count} lines");
    match format {
        "raw" => pair.same_bytes("image"),
        _ => pair.same_disks("image"),
    }
    pair.finish();
}

#[test]
fn raw() {
    matrix("", "raw");
}

#[test]
fn qcow2() {
    matrix("", "qcow2");
}

#[test]
fn qcow2_read_only() {
    matrix("-r", "qcow2");
}

#[test]
fn qcow2_in_an_overlay() {
    matrix("-s", "qcow2");
}

/// What ends the tool ends it alike.
#[test]
fn signals() {
    let mut pair = Pair::new(&["qemu-img create -q -f raw image 1M"]);
    for operands in ["", "x", "0", "99", "-1", "9", "15", "10 11"] {
        pair.both(&format!("-f raw -c 'sigraise {operands}' -c length image"));
    }
    for line in ["abort", "abort x"] {
        pair.both(&format!("-f raw -c '{line}' -c length image"));
    }
    pair.finish();
}
