//! `drystone-io` beside the installed `qemu-io`: the same lines, the same words, exit codes and bytes.

mod pair;

use std::process::{Command, Output};

use pair::{Pair, words};

const RAW: &[&str] = &["qemu-img create -q -f raw a.raw 1M"];

/// A line a time, on a raw image.
fn lines(options: &str, lines: &[&str]) {
    let mut pair = Pair::new(RAW);
    pair.write("pat", b"stones without mortar");
    pair.write("empty", b"");
    for line in lines {
        pair.both(&format!("{options} -c '{line}' a.raw"));
    }
    pair.same_bytes("a.raw");
    pair.finish();
}

#[test]
fn reads_say_the_same() {
    lines(
        "-f raw",
        &[
            "read",
            "read 0",
            "read 0 512",
            "read 0 512 512",
            "read -v 0 16",
            "read -v 3 40",
            "read -P 1 0 512",
            "read -P 0 0 512",
            "read -P 0x100 0 512",
            "read -P -1 0 512",
            "read -P x 0 512",
            "read -q 0 512",
            "read -C 0 512",
            "read -l 5 0 512",
            "read -s 5 0 512",
            "read -P 0 -l 600 0 512",
            "read -P 0 -s 500 -l 12 0 512",
            "read -P 0 -s 600 0 512",
            "read -P 5 -s 100 -l 12 0 512",
            "read -Z 0 512",
            "read -P",
            "read x 512",
            "read -1 512",
            "read 0 x",
            "read 0 0",
            "read 1M 512",
            "read 1M 0",
            "read 0 2M",
            "read 16E 1",
            "read 1000000000000000000000 1",
            "read 0 3G",
            "read 0 0x7fffffff",
            "read 0 -1",
            "read -b 0 512",
            "read 0.5k 512",
            "read 0x200 0x200",
            "read -p 0 1k",
            "read -r 0 1k",
            "read 512b 1",
            "read 0 1.5",
            "foo",
            "",
            " ",
            "read  0   512",
            "read -s x -P 0 0 512",
            "read -P 0 -l x 0 512",
            "read -P 0 -l -5 0 512",
            "read 0 512 -q",
            "read -P 1",
            "read -- 0 512",
            "read --foo 0 512",
            "read -P 010 0 512",
            "r 0 512",
            "readv",
            "readv 0",
            "readv 0 512",
            "readv 0 512 512",
            "readv -v 0 8 8",
            "readv -P 3 0 512",
            "readv 0 x",
            "readv 0 -5",
            "readv 0 3G",
            "readv -C 0 512 512",
            "readv 0 2G 2G",
            "readv 0 0",
            "readv 0 1G 1G 1G",
            "aio_read",
            "aio_read 0",
            "aio_read 0 512",
            "aio_read -v 0 16",
            "aio_read -P 9 0 512",
            "aio_read -i 0 512",
            "aio_read 1M 512",
            "aio_read -C 0 512",
            "aio_read -q 0 512",
            "aio_read 0 2G",
        ],
    );
}

#[test]
fn writes_say_and_do_the_same() {
    lines(
        "-f raw",
        &[
            "write",
            "write 0 512",
            "write -P 7 0 512",
            "write -C 0 512",
            "write -z 0 512",
            "write -z -P 5 0 512",
            "write -u 0 512",
            "write -n 0 512",
            "write -z -n 0 512",
            "write -zu 0 512",
            "write -zf 0 512",
            "write -f 0 512",
            "write -c 0 512",
            "write -bz 0 512",
            "write -bc 0 512",
            "write -bf 0 512",
            "write -zc 0 512",
            "write -z -s pat 0 512",
            "write -s pat 100 512",
            "write -s empty 0 512",
            "write -s nonexist 0 512",
            "write -s pat -P 3 0 512",
            "write -s",
            "write 1M 512",
            "write -1 5",
            "write 0 x",
            "write -b 0 512",
            "write -c 0 65536",
            "write -r 0 512",
            "write -zr 0 512",
            "write 0 512 512",
            "write -q 0 512",
            "write -p 0 512",
            "write -P 999 0 512",
            "write -c 0 100",
            "write -c 100 512",
            "write -b 100 512",
            "write -zn 0 3G",
            "write -z 0 3G",
            "writev",
            "writev 0",
            "writev 0 512 512",
            "writev -q 0 512",
            "writev -P 4 5000 512 3",
            "writev -f 0 512",
            "writev 0 x",
            "writev -z 0 512",
            "aio_write",
            "aio_write 0 512",
            "aio_write -z 0 512",
            "aio_write -z 0 512 512",
            "aio_write -zP 3 0 512",
            "aio_write -u 0 512",
            "aio_write -i 0 512",
            "aio_write -zi 0 512",
            "aio_write -C 0 512",
            "aio_write 2M 512",
            "aio_write -f -P 8 9000 512",
            "aio_write -n 0 512",
            "aio_write 0 3G",
            "aio_write 0 512 512",
            "aio_write -zu 0 512",
            "aio_write -zr 0 512",
            "w 0 512",
            "discard",
            "discard 0",
            "discard 0 512",
            "discard -C 0 512",
            "discard -q 64k 64k",
            "discard 0 2M",
            "discard 0 x",
            "discard x 5",
            "discard -1 5",
            "discard 0 3G",
            "discard 0 0",
            "discard -Z 0 5",
            "d 0 512",
        ],
    );
}

#[test]
fn everything_else_says_the_same() {
    lines(
        "-f raw",
        &[
            "aio_flush",
            "aio_flush x",
            "flush",
            "flush x",
            "flush -q",
            "truncate",
            "truncate 2M",
            "truncate 1M",
            "truncate -m full 2M",
            "truncate -m foo 2M",
            "truncate -m off 1M",
            "truncate x",
            "truncate -1",
            "truncate -m",
            "truncate -Z 5",
            "truncate 1M 2M",
            "alloc",
            "alloc 0",
            "alloc 0 512",
            "alloc 0 1M",
            "alloc 0 2M",
            "alloc x",
            "alloc 0 x",
            "alloc -1",
            "alloc 1M",
            "alloc 2M 1",
            "alloc 0 0",
            "map",
            "map x",
            "length",
            "length x",
            "l",
            "info",
            "info x",
            "info -x",
            "i",
            "open",
            "open a.raw",
            "close",
            "close x",
            "reopen",
            "reopen -r",
            "reopen -w",
            "reopen -rw",
            "reopen -c none",
            "reopen -c foo",
            "reopen x",
            "reopen -Z",
            "sleep",
            "sleep 1",
            "sleep x",
            "sleep -1",
            "sleep 1x",
            "sigraise",
            "sigraise x",
            "sigraise 0",
            "sigraise 1000",
            "sigraise -1",
            "sigraise 15",
            "sigraise 9",
            "abort",
            "quit",
            "q",
            "help foo",
            "help quit extra",
            "break",
            "break l2_load",
            "break l2_load A",
            "break foo A",
            "remove_break",
            "remove_break A",
            "resume",
            "resume A",
            "wait_break",
            "s",
            "c",
            "o",
            "f",
        ],
    );
}

/// A disk has whole sectors, even where its file ends within one.
#[test]
fn files_that_end_within_a_sector_are_the_same() {
    let mut pair = Pair::new(RAW);
    pair.write("a.raw", &[7; 3000]);
    for commands in [
        "length; map; alloc 0 1M; alloc 2900; read -v 2990 82; read -P 7 0 3000; read 0 3073; read 3000 72",
        "aio_read -v 2990 82; aio_flush; readv -v 2990 40 42",
        "write -P 9 3060 12; length; read -v 2990 82",
    ] {
        pair.script("-f raw", commands, "a.raw");
    }
    pair.same_bytes("a.raw");
    pair.finish();
}

#[test]
fn command_lines_say_the_same() {
    let mut pair = Pair::new(&[RAW[0], "qemu-img create -q -f qcow2 a.qcow2 1M"]);
    for line in [
        "nonexist",
        "-f foo a.raw",
        "-f qcow2 a.raw",
        "-c length",
        "-c 'read'",
        "-c close",
        "-c 'open -r' -c length",
        "-c 'open -o foo'",
        "-c 'open a b'",
        "-c 'open -t foo a.raw'",
        "-c 'open -d foo a.raw'",
        "-c 'open -i foo a.raw'",
        "-c 'open -Z a.raw'",
        "-c 'open nonexist'",
        "-c 'open -U a.raw'",
        "-c 'open -rU a.raw' -c length",
        "-c 'open a.raw' -c length",
        "-c 'open -o driver=raw a.raw' -c length -c 'write 0 512'",
        "-c 'open -o file.filename=a.raw,driver=raw' -c length",
        "-c 'open -s -o driver=raw a.raw' -c 'write -P 3 0 512' -c 'read -P 3 0 512'",
        "-f raw -c 'close' -c reopen a.raw",
        "-f raw -c 'reopen -r' -c 'write 0 512' -c 'reopen -w' -c 'write -P 9 0 512' a.raw",
        "-f raw -r -c 'write 0 512' -c 'write x' -c 'truncate 5' -c 'discard 0 512' -c 'aio_write 0 512' -c flush a.raw",
        "-t foo a.raw",
        "-d foo a.raw",
        "-i foo a.raw",
        "--image-opts driver=raw,file.filename=a.raw -c length",
        "--image-opts -f raw -c length driver=raw,file.filename=a.raw",
        "--image-opts -c length a.raw",
        "--object foo",
        "-s -r -f raw -c 'write 0 512' -c 'read 0 512' a.raw",
        "--object secret,id=x,data=5 -f raw -c length a.raw",
        "-T foo -f raw -c length a.raw",
        "-U -f raw -c length a.raw",
        "-r -U -f raw -c length a.raw",
        "-n -f raw -c 'write -P 3 512 512' -c 'read -P 3 512 512' a.raw",
        "-n -m -f raw -c 'write -P 4 1024 512' a.raw",
        "-k -f raw -c 'write 0 512' a.raw",
        "-k -n -f raw -c 'write 0 512' a.raw",
        "-i threads -f raw -c 'write -P 5 2048 512' a.raw",
        "-s -f raw -c 'write -P 1 0 512' -c 'read -P 1 0 512' a.raw",
        "-s -f qcow2 -c 'write -P 1 0 512' -c map -c info a.qcow2",
        "-C -f qcow2 -c 'read 0 512' -c map -c info a.qcow2",
        "-C -r -f qcow2 -c 'read 0 512' a.qcow2",
        "a.raw -c length -c 'write -P 3 4k 4k'",
        "-f raw -c 'read 5M 1' -c length -c quit -c length a.raw",
        "-c length null-co://",
        "-f raw -c 'read 0 512' -c map -c info null-co://",
        "-f null-aio -c length -c map null-aio://",
        "-f raw -c length null-co://foo",
        "-f raw -c length null-co:",
        "-c 'read -P 0 0 512' -c info 'json:{\"driver\":\"null-co\",\"size\":1024,\"read-zeroes\":true,\"latency-ns\":1000000}'",
        "-c 'read 0 512' 'json:{\"driver\":\"null-aio\",\"latency-ns\":-1}'",
    ] {
        pair.both(line);
    }
    pair.same_bytes("a.raw");
    pair.same_disks("a.qcow2");
    pair.finish();
}

#[test]
fn the_prompt_says_the_same() {
    let mut pair = Pair::new(RAW);
    for input in [
        "",
        "length",
        "length\nq",
        "read 0 512\nlength\n\nfoo\nquit\nlength\n",
        "close\nlength\nread 0 512\nopen -o driver=raw a.raw\nlength\nmap\nquit",
        "aio_read 0 512\naio_flush\n",
        "read 5M 1\nq\n",
        "sigraise 15\n",
        "abort\n",
    ] {
        pair.both_with("-f raw a.raw", input);
    }
    pair.both_with("", "length\nopen -o driver=raw a.raw\nlength\n");
    pair.finish();
}

#[test]
fn scripts_on_qcow2_say_and_do_the_same() {
    let mut pair = Pair::new(&[
        "qemu-img create -q -f qcow2 a.qcow2 1M",
        "qemu-img create -q -f qcow2 -o compat=0.10,cluster_size=4k b.qcow2 10M",
        "qemu-img create -q -f qcow2 -o extended_l2=on,cluster_size=128k c.qcow2 3M",
        "qemu-io -f qcow2 -c 'write -P 5 0 1M' a.qcow2",
        "qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 top.qcow2 2M",
    ]);
    for (options, commands, image) in [
        (
            "-f qcow2",
            "write 64k 64k; write -z 256k 64k; map; alloc 0 1M; info; alloc 64k 10k; alloc 0 5k",
            "a.qcow2",
        ),
        ("-f qcow2", "write -c 0 1M; discard 64k 64k; map; write -c 0 512; write 1M 1", "a.qcow2"),
        ("-f qcow2", "map; write -P 1 100k 3k; write -zu 200k 1k; read -P 0 200k 1k; map; info", "b.qcow2"),
        (
            "-f qcow2 -n",
            "write -c -P 9 8M 4k; write -P 3 9M 100; read -v 9M 20; discard 0 10M; map",
            "b.qcow2",
        ),
        (
            "-f qcow2",
            "map; write -P 1 100k 3k; write -z 200k 4k; map; alloc 96k 8k; alloc 98k 8k; info",
            "c.qcow2",
        ),
        (
            "-f qcow2",
            "map; write -P 1 100k 3k; write -z 1472k 64k; read -P 5 0 100k; map; alloc 0 2M",
            "top.qcow2",
        ),
        ("-f qcow2 -C", "read 0 1; read 512k 70k; map; info; read 1900k 1; map", "top.qcow2"),
        (
            "-f qcow2 -t writeback",
            "aio_write -P 1 0 64k; aio_flush; aio_write -P 2 512k 64k; aio_flush; read -P 1 0 64k",
            "a.qcow2",
        ),
    ] {
        pair.script(options, commands, image);
    }
    for name in ["a.qcow2", "b.qcow2", "c.qcow2", "top.qcow2"] {
        pair.same_disks(name);
    }
    pair.finish();
}

/// The largest part of what is asked for waits at a breakpoint, and the rest overtakes it.
/// `detect-zeroes`: writes of zeros become zeros, on the node that looks for them.
#[test]
fn zeros_are_looked_for() {
    let writes = "write -P 0 64k 64k; write -P 0 512k 64k; write -P 0 100k 1k; write -P 1 600k 4k; aio_write -P 0 128k 64k; \
                  aio_flush; write -c -P 0 704k 64k; map; info";
    for (image, node) in [
        ("a.qcow2", "driver=qcow2,file.filename=a.qcow2,detect-zeroes=on"),
        ("a.qcow2", "driver=qcow2,file.filename=a.qcow2,detect-zeroes=off"),
        ("a.qcow2", "driver=qcow2,file.filename=a.qcow2,detect-zeroes=unmap,discard=unmap"),
        ("a.qcow2", "driver=qcow2,file.filename=a.qcow2,file.detect-zeroes=on"),
        ("a.qcow2", "driver=qcow2,file.filename=a.qcow2,detect-zeroes=on,file.detect-zeroes=on"),
        ("a.qcow2", "file.filename=a.qcow2,detect-zeroes=on,cache-clean-interval=1"),
        ("a.qcow2", "driver=qcow2,file.filename=a.qcow2,detect-zeroes=unmap"),
        ("a.qcow2", "driver=qcow2,file.filename=a.qcow2,detect-zeroes=foo"),
        ("a.raw", "driver=raw,file.filename=a.raw,detect-zeroes=on"),
        ("a.raw", "driver=raw,file.filename=a.raw,file.detect-zeroes=on"),
        ("a.raw", "driver=raw,file.filename=a.raw,detect-zeroes=unmap,discard=unmap"),
    ] {
        for cache in ["", "-t writeback"] {
            let mut pair = Pair::new(&[
                "qemu-img create -q -f raw a.raw 1M",
                "qemu-io -f raw -c 'write -P 5 0 200k' a.raw",
                "qemu-img create -q -f qcow2 a.qcow2 1M",
                "qemu-io -f qcow2 -c 'write -P 5 0 200k' a.qcow2",
            ]);
            let options = format!("{cache} --image-opts");
            pair.script(
                &options,
                if image == "a.raw" { "write -P 0 64k 64k; map; write -P 0 100 5" } else { writes },
                node,
            );
            if image == "a.raw" {
                pair.same_bytes(image);
            } else {
                pair.same_disks(image);
            }
            pair.finish();
        }
    }
}

/// `discard`: the host keeps as much of the file as with the reference, for discards and for zeros that may be unmapped.
#[test]
fn what_is_not_to_be_discarded_keeps_its_space() {
    use std::os::unix::fs::MetadataExt;
    let commands =
        "write -z -u 2M 1M; write -z 5M 1M; discard 6M 1M; write -c -P 1 7M 64k; write -z -u 7M 64k";
    for format in ["raw", "qcow2"] {
        for options in ["-d ignore", "-d unmap", "", "discard=ignore", "discard=unmap", "file.discard=ignore"]
        {
            let mut pair = Pair::new(&[
                &format!("qemu-img create -q -f {format} a 8M"),
                &format!("qemu-io -f {format} -c 'write -P 5 0 8M' a"),
            ]);
            if options.contains('=') {
                pair.script("--image-opts", commands, &format!("driver={format},file.filename=a,{options}"));
            } else {
                pair.script(&format!("{options} -f {format}"), commands, "a");
            }
            let kept = |path: std::path::PathBuf| std::fs::metadata(path).expect("it is there").blocks();
            let (ours, theirs) = (kept(pair.ours("a")), kept(pair.theirs("a")));
            // A range is 1 MiB; what the file system keeps beside it differs from run to run.
            if ours.abs_diff(theirs) > 512 {
                pair.complain(&format!("{format} {options:?}: {ours} sectors, theirs {theirs}"));
            }
            pair.finish();
        }
    }
}

#[test]
fn requests_in_the_background_run_side_by_side() {
    let pair = Pair::new(RAW);
    let line = "-f raw -t writeback -c 'break write_aio A' -c 'aio_write -P 1 0 64k' -c 'wait_break A' \
                -c 'aio_write -P 2 64k 64k' -c 'read -P 2 64k 0' -c 'sleep 200' -c 'resume A' -c aio_flush \
                -c 'read -P 1 0 64k' blkdebug::a.raw";
    let run = pair.run_ours(&words(line), "");
    assert_eq!(run.code, 0, "{run:?}");
    let place = |text: &str| run.stdout.find(text).unwrap_or_else(|| panic!("{text}: {run:?}"));
    let resumed = place("Resuming request 'A'");
    assert!(place("Suspended request 'A'") < place("offset 65536"), "{run:?}");
    assert!(place("wrote 65536/65536 bytes at offset 65536") < resumed, "{run:?}");
    assert!(resumed < place("wrote 65536/65536 bytes at offset 0"), "{run:?}");
}

#[test]
fn every_executor_does_the_same() {
    let mut pair = Pair::new(RAW);
    for (at, executor) in ["tokio", "monoio", "glommio"].into_iter().enumerate() {
        let line = format!(
            "--executor {executor} -f raw -c 'aio_write -P 1 {at}k 1k' -c aio_flush -c 'read -P 1 {at}k 1k' -c 'sleep 5' a.raw"
        );
        let run = pair.run_ours(&words(&line), "");
        if run.code != 0 || run.stdout.lines().count() != 4 {
            pair.complain(&format!("{executor}: {run:?}"));
        }
        let run = pair.run_ours(&words(&format!("--executor {executor} -f raw a.raw")), "length\nq\n");
        if run.stdout != "qemu-io> 1 MiB\nqemu-io> \n" {
            pair.complain(&format!("{executor}: {run:?}"));
        }
    }
    pair.finish();
}

/// The prompt is there before anything is asked for, and again after each answer, on a pipe too.
#[test]
fn the_prompt_comes_at_once() {
    use std::io::{Read, Write};
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};
    let pair = Pair::new(RAW);
    let mut command = Command::new(env!("CARGO_BIN_EXE_drystone-io"));
    command
        .arg0("qemu-io")
        .args(["-f", "raw"])
        .arg(pair.ours("a.raw"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().expect("our own tool runs");
    let (mut stdin, mut stdout) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
    let mut wait_for = |text: &str| {
        let mut bytes = vec![0; text.len()];
        stdout.read_exact(&mut bytes).expect("output");
        assert_eq!(String::from_utf8_lossy(&bytes), text);
    };
    wait_for("qemu-io> ");
    for _ in 0..3 {
        stdin.write_all(b"length\n").expect("the tool reads");
        wait_for("1 MiB\nqemu-io> ");
    }
    stdin.write_all(b"q\n").expect("the tool reads");
    assert!(child.wait().expect("the tool ends").success());
}

/// Zeros of a part of a unit: it becomes zero as a whole where it stores nothing and the rest reads as zeros.
#[test]
fn zeros_of_parts_leave_the_same_map() {
    const COMMANDS: &str = "write -z 4k 4k; write -z 68k 4k; write -z 132k 4k; write -z 128k 4k; write -z 300k 100k; \
         write -z -u 510k 130k; write -P 3 704k 64k; write -z 705k 1000; discard 704k 64k; write -z 706k 100; \
         write -z -n 836k 4k; write -z 1k 1k; write -z 17k 20k; write -z 996k 4k";
    let mut pair = Pair::new(&[
        "qemu-img create -q -f qcow2 base 1M",
        "qemu-io -f qcow2 -c 'write -P 1 0 64k' -c 'write -P 2 128k 4k' -c 'write -P 3 256k 64k' base",
        "qemu-img create -q -f raw rbase 800k",
        "qemu-io -f raw -c 'write -P 1 0 4k' -c 'write -P 2 136k 8k' rbase",
        "qemu-img create -q -f qcow2 plain 1000k",
        "qemu-img create -q -f qcow2 -b base -F qcow2 above 1000k",
        "qemu-img create -q -f qcow2 -b base -F qcow2 longer 2M",
        "qemu-img create -q -f qcow2 -b rbase -F raw onraw 1000k",
        "qemu-img create -q -f qcow2 -o extended_l2=on sub 1000k",
        "qemu-img create -q -f qcow2 -o extended_l2=on -b base -F qcow2 subabove 1000k",
        "qemu-img create -q -f qcow2 -o compat=0.10 old 1000k",
        "qemu-img create -q -f qcow2 -o compat=0.10 -b base -F qcow2 oldabove 1000k",
        "qemu-img create -q -f qcow2 -o data_file=data datafile 1000k",
        "qemu-img create -q -f qcow2 -o cluster_size=4k small 1000k",
    ]);
    let images =
        ["plain", "above", "longer", "onraw", "sub", "subabove", "old", "oldabove", "datafile", "small"];
    for image in images {
        // Each by itself, and one after the other.
        for command in COMMANDS.split(';') {
            pair.script("-f qcow2", command, image);
        }
        // There all of it is data, of which our file keeps less, and `map` guesses by what the file keeps.
        if image != "oldabove" {
            pair.same_maps(image);
        }
        pair.same_disks(image);
    }
    pair.script("-f qcow2", "write -c -P 4 0 64k; write -z 4k 4k; write -z -n 8k 4k", "plain");
    pair.same_maps("plain");
    pair.finish();
}

/// What `reopen` cannot change, and how it says so.
#[test]
fn options_of_reopen_say_the_same() {
    let mut pair = Pair::new(&[
        "qemu-img create -q -f raw a.raw 1M",
        "qemu-img create -q -f qcow2 base 1M",
        "qemu-img create -q -f qcow2 -b base -F qcow2 top 1M",
    ]);
    for line in [
        "foo=1",
        "lazy-refcounts=foo",
        "cache-size=foo",
        "overlap-check=foo",
        "driver=raw",
        "driver=qcow2",
        "filename=top",
        "file.filename=x",
        "file.filename=top",
        "file.driver=x",
        "file.driver=file",
        "file.locking=off",
        "file=x",
        "backing=x",
        "backing.driver=raw",
        "backing.file.filename=x",
        "node-name=x",
        "data-file=x",
        "read-only=foo",
        "auto-read-only=on",
        "force-share=on",
        "discard=foo",
        "discard=unmap",
        "detect-zeroes=foo",
        "cache.direct=foo",
        "cache.no-flush=on",
        "l2-cache-size=1M,cache-size=64k",
        "l2-cache-entry-size=1000",
        "=",
        "foo",
        "nolazy-refcounts",
    ] {
        pair.script("-f qcow2", &format!("reopen -o {line}; write -P 3 0 512"), "top");
    }
    for line in [
        "-r -o read-only=off",
        "-w -o read-only=on",
        "-c none -o cache.direct=off",
        "-c none -o cache-size=64k",
        "-o lazy-refcounts=on -o lazy-refcounts=off",
    ] {
        pair.script("-f qcow2", &format!("reopen {line}; read 0 512"), "top");
    }
    for line in ["offset=foo", "file.aio=threads", "size=512", "offset=512"] {
        pair.script("-f raw", &format!("reopen -o {line}; length"), "a.raw");
    }
    pair.finish();
}

/// What was said of an image whose format is only guessed, and of one that is only to be read.
#[test]
fn options_of_what_is_opened_say_the_same() {
    let mut pair = Pair::new(&[
        "qemu-img create -q -f raw a.raw 1M",
        "qemu-img create -q -f qcow2 base 1M",
        "qemu-img create -q -f qcow2 -b base -F qcow2 top 1M",
        "qemu-img create -q -f vdi a.vdi 1M",
    ]);
    for line in [
        "-o size=512k a.raw",
        "-o offset=512k a.raw",
        "-o offset=x a.raw",
        "-o lazy-refcounts=on top",
        "-o lazy-refcounts=x top",
        "-o lazy-refcounts=on a.vdi",
        "-o x -o y top",
        "-o x,y a.vdi",
        "-o x -t y top",
        "-o x -Z top",
        "-o x -d y -o z top",
        "-o x top top",
        "-o backing= top",
        "-s -U top",
        "-s -U -o lazy-refcounts=on top",
        "-s a.raw",
        "-r -o read-only=on top",
        "-o read-only=on top",
        "-o file.read-only=on,file.filename=top",
        "-o file.read-only=on,read-only=on,file.filename=top",
        "-o driver=blkdebug,read-only=on,image.filename=a.raw",
        "-s -r top",
        "-s -o read-only=on top",
        "-s -o read-only=on,driver=raw a.raw",
        "-s -o file.read-only=on,driver=raw,file.filename=a.raw",
        "-s -o read-only=off,driver=raw a.raw",
        r#"-s json:{"driver":"raw","read-only":true,"file":{"driver":"file","filename":"a.raw"}}"#,
        "-r -o read-only=off top",
        "-o offset=2M a.raw",
        "-r -o offset=2M a.raw",
        "-s -o offset=2M a.raw",
        "-o foo=1 a.raw",
        "-o foo=1 gone",
        "-o driver=raw,foo=1 gone",
        "-o driver=qcow2,file.filename=gone,file.foo=1",
        "-o driver=blkdebug,image.filename=gone,foo=1",
        "-o driver=qcow2,cache.direct=foo gone",
    ] {
        pair.script("", &format!("open {line}; length; write -P 3 0 512; read -P 3 0 512"), "");
    }
    for line in ["-o foo=1", "-o offset=1", "-o lazy-refcounts=x", "-r -o foo=1"] {
        pair.script("", &format!("reopen {line}; length"), "top");
    }
    for name in ["blkdebug::a.raw", "blkdebug:nowhere:a.raw"] {
        pair.script("", "length", name);
    }
    for line in ["-o x -Z", "-o x -c y", "-o x -r -w", "-o x y"] {
        pair.script("-f raw", &format!("reopen {line}; length"), "a.raw");
    }
    let named = "driver=raw,node-name=n,file.filename=a.raw";
    pair.script("--image-opts", "reopen -o read-only=on; read 0 512", named);
    for time in ["0x1", "-0", "010", "08", "+1", "0x", "1x", "-1"] {
        pair.script("-f raw", &format!("sleep {time}"), "a.raw");
    }
    pair.same_disks("top");
    pair.same_bytes("a.raw");
    pair.finish();
}

/// What images say of themselves while they are opened, repaired and used.
#[test]
fn images_that_are_damaged_say_so() {
    let mut pair = Pair::new(&[
        "qemu-img create -q -f qcow2 -o lazy_refcounts=on whole 1M",
        "qemu-io -f qcow2 -c 'write -P 1 0 128k' whole",
    ]);
    let whole = std::fs::read(pair.ours("whole")).expect("a file of the test");
    let damaged = |places: &[(usize, &[u8])]| {
        let mut image = whole.clone();
        places.iter().for_each(|(at, bytes)| image[*at..at + bytes.len()].copy_from_slice(bytes));
        image
    };
    // A data cluster on the refcount table; an offset inside a cluster; a refcount of 0 in an image that was not closed.
    pair.write("overlap", &damaged(&[(0x40000, &[0x80, 0, 0, 0, 0, 1, 0, 0])]));
    pair.write("unaligned", &damaged(&[(0x40000, &[0x80, 0, 0, 0, 0, 5, 2, 0])]));
    pair.write("dirty", &damaged(&[(79, &[1]), (0x2000a, &[0, 0])]));
    for image in ["overlap", "unaligned", "dirty"] {
        for options in ["-r", ""] {
            // An image that was marked goes on being read here, and is gone there; entries without sense are refused
            // where they are read, and there where their cluster is to be used.
            let commands = match image {
                "overlap" => &["read 0 64k", "write -P 3 0 512", "write -z 0 64k", "alloc 0 1M", "length"],
                "unaligned" => &["read 0 64k", "alloc 0 1M", "map", "alloc 64k 64k", "length"],
                _ => {
                    &["read 0 64k", "write -P 3 0 512; read 0 64k", "write -z 0 64k", "discard 0 64k", "map"]
                }
            };
            for command in commands {
                let bytes = std::fs::read(pair.ours(image)).expect("a file of the test");
                pair.script(&format!("-f qcow2 {options}"), command, image);
                pair.write(image, &bytes);
            }
        }
    }
    // The reference frees the refcount table, and finds out when it takes that for a new cluster.
    let discard = pair.run_ours(&words("-f qcow2 -c 'discard 0 64k' overlap"), "");
    assert!(discard.stderr.contains("overlaps with refcount table"), "{discard:?}");
    assert_eq!((discard.stdout.as_str(), discard.code), ("discard failed: Input/output error\n", 1));
    assert_eq!(std::fs::read(pair.ours("overlap")).expect("a file of the test")[79] & 2, 2);
    pair.finish();
}

/// No file has zones.
#[test]
fn commands_of_zoned_devices_are_refused_in_the_same_words() {
    const COMMANDS: &[&str] = &[
        "zone_report 0 1; zone_open 0 512; zone_close 0 512; zone_finish 0 512; zone_reset 0 512; zone_append 0 512 512",
        "zrp 0 1; zo 0 512; zc 0 512; zf 0 512; zrs 0 512; zap 0 512; zap 0 512 512",
        "zone_report; zone_report 0; zone_report x 1; zone_report 0 x; zone_report 0 99999999999999; zone_report 0 0",
        "zone_open 0; zone_open 0 -1; zone_open x 1; zone_close 0 x; zone_reset 0 1 2; zone_finish 1",
        "zone_append 0 512; zone_append 0 x 512; zone_append x 512 512; zone_append 0 512 x; zone_append 0 100 100",
        "zone_append 0 3G 512; zone_append 0 512 512 512; zone_append 0 1 2 3 4; zone_append 0",
        "zone_append -q 0 512; zone_append 0 -q 512; zone_append -1 512 512; zone_append -q 0 x; zone_append -q 0",
    ];
    let mut pair = Pair::new(RAW);
    for commands in COMMANDS {
        pair.script("-f raw", commands, "a.raw");
        pair.script("-r -f raw", commands, "a.raw");
    }
    pair.both("-c 'zone_report 0 1' -c 'zap 0'");
    pair.finish();
}

/// Whoever comes after a killed process finds the image free at once.
#[test]
fn a_killed_process_holds_no_lock() {
    let pair = Pair::new(&["qemu-img create -q -f qcow2 a 1M", "qemu-img create -q -f raw r 1M"]);
    for (format, image) in [("qcow2", "a"), ("raw", "r")] {
        for (end, signal) in [("sigraise 9", 9), ("abort", 6)] {
            for round in 0..20 {
                let line = format!("-f {format} -c 'write 0 64k' -c '{end}' {image}");
                assert_eq!(pair.run_ours(&words(&line), "").code, 1000 + signal, "{line}");
                let next = pair.run_ours(&words(&format!("-f {format} -c 'write 64k 4k' {image}")), "");
                assert_eq!((next.stderr.as_str(), next.code), ("", 0), "{line}, round {round}");
            }
        }
    }
}

/// What `info` shows of formats other than qcow2: clusters, and what only the format has.
#[test]
fn info_shows_every_format_as_the_reference_does() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let run = |program: &str, args: &[&str]| {
        let output = Command::new(program).current_dir(folder.path()).args(args).output();
        output.unwrap_or_else(|error| panic!("{program}: {error}"))
    };
    const SECRET: [&str; 2] = ["--object", "secret,id=s,data=abc"];
    for (format, options) in [
        ("vmdk", ""),
        ("vmdk", "subformat=monolithicFlat"),
        ("vmdk", "subformat=twoGbMaxExtentSparse"),
        ("vmdk", "subformat=streamOptimized"),
        ("vdi", ""),
        ("vhdx", ""),
        ("vpc", ""),
        ("vpc", "subformat=fixed"),
        ("qed", ""),
        ("qcow", ""),
        ("parallels", ""),
        ("luks", "key-secret=s,iter-time=10"),
        ("qcow2", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"),
    ] {
        let options = if options.is_empty() { vec![] } else { vec!["-o", options] };
        let made = run(
            "qemu-img",
            &[&["create", "-q"], &SECRET[..], &["-f", format], &options, &["d", "4M"]].concat(),
        );
        assert!(made.status.success(), "{format} {options:?}: {made:?}");
        let key = match format {
            "luks" => ",key-secret=s",
            "qcow2" => ",encrypt.key-secret=s",
            _ => "",
        };
        let image = format!("driver={format},file.filename=d{key}");
        let info = [&SECRET[..], &["-c", "info", "--image-opts", &image]].concat();
        let (ours, theirs) = (run(env!("CARGO_BIN_EXE_drystone-io"), &info), run("qemu-io", &info));
        let shown = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(
            (shown(&ours), ours.status.code()),
            (shown(&theirs), theirs.status.code()),
            "{format} {options:?}"
        );
    }
}
