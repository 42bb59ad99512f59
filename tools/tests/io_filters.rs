//! Filters beside the reference's: the same failures at the same commands, the same logs, the same bytes.

mod pair;

use pair::{Pair, words};

const RAW: &[&str] = &["qemu-img create -q -f raw a.raw 1M"];

/// A blkdebug node with `rules`, below raw.
fn debug_raw(rules: &str) -> String {
    format!(
        "'json:{{\"driver\":\"raw\",\"file\":{{\"driver\":\"blkdebug\",{rules}\"image\":{{\"driver\":\"file\",\"filename\":\"a.raw\"}}}}}}'"
    )
}

/// A blkdebug node with `rules`, below qcow2.
fn debug_qcow2(rules: &str) -> String {
    format!(
        "'json:{{\"driver\":\"qcow2\",\"file\":{{\"driver\":\"blkdebug\",{rules}\"image\":{{\"driver\":\"file\",\"filename\":\"a.qcow2\"}}}}}}'"
    )
}

#[test]
fn rules_fail_the_same_requests() {
    let mut pair = Pair::new(RAW);
    let commands =
        "read 0 512; read 4k 512; write 0 512; write -z 0 512; discard 0 512; flush; map; write 4000 200";
    for rules in [
        r#""inject-error":[{"event":"none"}],"#,
        r#""inject-error":[{"event":"none","iotype":"write"}],"#,
        r#""inject-error":[{"event":"none","iotype":"block-status"}],"#,
        r#""inject-error":[{"event":"none","iotype":"discard","errno":28}],"#,
        r#""inject-error":[{"event":"none","iotype":"flush"}],"#,
        r#""inject-error":[{"event":"none","iotype":"foo"}],"#,
        r#""inject-error":[{"event":"none","sector":8}],"#,
        r#""inject-error":[{"event":"none","once":true}],"#,
        r#""inject-error":[{"event":"none","once":true},{"event":"none","once":true,"errno":28}],"#,
        r#""inject-error":[{"event":"none","immediately":true,"errno":5}],"#,
        r#""inject-error":[{"event":"none","errno":0}],"#,
        r#""inject-error":[{"event":"foo"}],"#,
        r#""inject-error":[{"errno":5}],"#,
        r#""inject-error":[{"event":"none","foo":5}],"#,
        r#""inject-error":{"event":"none"},"#,
        r#""inject-error.0.event":"read_aio","inject-error.0.state":2,"set-state.0.event":"write_aio","set-state.0.new_state":2,"#,
        r#""inject-error.0.event":"read_aio","inject-error.1.event":"pwritev_zero","inject-error.1.errno":28,"#,
        r#""set-state":[{"event":"none"}],"#,
        r#""align":3,"#,
        r#""align":0,"#,
        r#""align":512,"max-transfer":1024,"#,
        r#""max-transfer":511,"align":512,"#,
        r#""align":512,"inject-error":[{"event":"pwritev_rmw_head"}],"#,
        r#""align":512,"inject-error":[{"event":"pwritev_rmw_tail"}],"#,
        r#""align":512,"inject-error":[{"event":"pwritev_rmw_after_head","once":true}],"#,
        r#""align":512,"inject-error":[{"event":"pwritev_rmw_after_tail","once":true}],"#,
        r#""align":512,"inject-error":[{"event":"none","sector":8,"iotype":"write"}],"#,
        r#""align":512,"opt-write-zero":1024,"max-write-zero":1024,"inject-error":[{"event":"none","iotype":"write-zeroes"}],"#,
        r#""align":512,"max-discard":512,"inject-error":[{"event":"none","iotype":"discard"}],"#,
        r#""foo":5,"#,
    ] {
        pair.script("", commands, &debug_raw(rules));
    }
    pair.same_bytes("a.raw");
    pair.finish();
}

#[test]
fn config_files_say_the_same() {
    let mut pair = Pair::new(RAW);
    let rules = "[inject-error]\nevent = \"read_aio\"\nerrno = \"28\"\nonce = \"on\"\n[set-state]\nevent = \"write_aio\"\n\
                 state = \"1\"\nnew_state = \"2\"\n# a comment\n[inject-error \"id\"]\nevent = \"read_aio\"\nstate = \"2\"\n";
    let commands = "read 0 512; read 0 512; write 0 512; read 0 512; read 0 512";
    for config in [rules, "", "[inject-error]\n", "[inject-error]\nevent = \"none\"\n"] {
        pair.write("cfg", config.as_bytes());
        pair.script("-f raw", commands, "blkdebug:cfg:a.raw");
    }
    pair.script("-f raw", commands, "blkdebug::a.raw");
    pair.script("-f raw", commands, "blkdebug:none:a.raw");
    pair.script("-f raw", commands, "blkdebug::none");
    // What is wrong with a file, and where, is said better than by the reference.
    for config in [
        "[foo]",
        "event = \"foo\"",
        "[inject-error]\nevent = \"foo\"",
        "[set-state]\nfoo = \"1\"",
        "[inject-error\n",
    ] {
        pair.write("cfg", config.as_bytes());
        let line = words("-f raw -c 'read 0 512' blkdebug:cfg:a.raw");
        let (ours, theirs) = (pair.run_ours(&line, ""), pair.run_theirs(&line, ""));
        if (ours.code, theirs.code) != (1, 1)
            || !ours.stderr.starts_with("qemu-io: can't open device blkdebug:cfg:a.raw: ")
        {
            pair.complain(&format!("{config:?}: {ours:?}"));
        }
    }
    pair.finish();
}

/// The reference writes what it failed to read around an unaligned write, and calls that a success.
#[test]
fn what_cannot_be_read_is_not_written_back() {
    let mut pair = Pair::new(RAW);
    let rules = r#""align":512,"inject-error":[{"event":"none","sector":7,"iotype":"read"}],"#;
    let mut line = words("-c 'write 4000 200' -c 'write 4096 200'");
    line.extend(words(&debug_raw(rules)));
    let run = pair.run_ours(&line, "");
    if run.code != 1
        || run.stdout
            != "write failed: Input/output error\nwrote 200/200 bytes at offset 4096\n200 bytes, 1 ops; TIME\n"
    {
        pair.complain(&format!("{run:?}"));
    }
    pair.finish();
}

/// What an image cannot be opened for is said with more than the reference says.
#[test]
fn events_of_opening_fail_it() {
    let mut pair = Pair::new(&["qemu-img create -q -f qcow2 a.qcow2 1M"]);
    for event in ["none", "reftable_load"] {
        let mut line = words("-c 'read 0 4k'");
        line.extend(words(&debug_qcow2(&format!(
            "\"inject-error\":[{{\"event\":\"{event}\",\"once\":true}}],"
        ))));
        let (ours, theirs) = (pair.run_ours(&line, ""), pair.run_theirs(&line, ""));
        if (ours.code, theirs.code) != (1, 1) || !ours.stderr.ends_with("Input/output error\n") {
            pair.complain(&format!("{event}: {ours:?}"));
        }
    }
    pair.finish();
}

/// A failure at each event, once, and the commands that fail.
#[test]
fn events_of_qcow2_fail_the_same_commands() {
    let commands = [
        ("l2_load", "read 0 4k; read 0 4k; flush"),
        ("l2_update", "read 0 4k; write 64k 512; write 256k 64k; flush"),
        ("cluster_alloc", "write 0 4k; write 256k 64k; write 320k 512; flush"),
        ("refblock_alloc", "write 0 4k; write 256k 64k; flush"),
        ("refblock_load", "write 0 4k; write 256k 64k; flush"),
        ("refblock_update_part", "write 0 4k; write 256k 64k; flush"),
        ("l2_alloc_write", "write 0 4k; write 256k 64k; flush"),
        ("l1_update", "write 0 4k; write 256k 64k; flush"),
        ("flush_to_os", "write 0 4k; flush; flush"),
        ("flush_to_disk", "write 0 4k; flush; flush"),
        ("write_aio", "write 0 4k; write 256k 4k; flush"),
        ("read_aio", "read 0 4k; read 0 4k"),
        ("cow_read", "write 0 512; write 704k 512"),
        ("cow_write", "write 0 512; write 704k 512; write 832k 512"),
        ("read_backing_aio", "read 0 4k; read 704k 4k; write 0 4k; write 4k 4k"),
        ("pwritev", "write 0 4k; write 0 4k"),
        ("pwritev_done", "write 0 4k; write 0 4k"),
        ("read_compressed", "read 512k 4k; read 512k 4k"),
        ("write_compressed", "write -c 256k 64k; write -c 320k 64k"),
        ("cluster_alloc_bytes", "write -c 256k 64k; write -c 320k 64k"),
    ];
    let mut failures = String::new();
    for (event, commands) in commands {
        let mut pair = Pair::new(&[
            "qemu-img create -q -f qcow2 base.qcow2 1M",
            "qemu-io -f qcow2 -c 'write -P 7 0 1M' base.qcow2",
            "qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 a.qcow2 1M",
            "qemu-io -f qcow2 -c 'write -P 1 0 192k' -c 'write -c -P 2 512k 64k' a.qcow2",
        ]);
        let rules = format!("\"inject-error\":[{{\"event\":\"{event}\",\"once\":true}}],");
        // Where every write is flushed, the reference leaves out the flushes that a script asks for, and their events.
        let options = if event.starts_with("flush") { "-t writeback" } else { "" };
        pair.script(options, commands, &debug_qcow2(&rules));
        if let Err(error) = std::panic::catch_unwind(|| pair.finish()) {
            failures += &format!("{event}: {}\n", error.downcast_ref::<String>().map_or("", String::as_str));
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

/// What a write leaves of a cluster that nothing was in is made zeros, in one go or apart.
#[test]
fn zeros_around_a_write_are_told() {
    for (options, commands) in [
        ("cluster_size=64k", "write 1000 4k; write 128k 64k; write 300k 512; flush"),
        ("cluster_size=2M", "write 1000 4k; write 3M 512; flush"),
        ("extended_l2=on", "write 1000 4k; write 300k 512; flush"),
    ] {
        let mut pair = Pair::new(&[&format!("qemu-img create -q -f qcow2 -o {options} a.qcow2 4M")]);
        let rules = r#""inject-error":[{"event":"cluster_alloc_space","once":true}],"#;
        pair.script("", commands, &debug_qcow2(rules));
        pair.script(
            "",
            "break cluster_alloc_space A; aio_write 500k 512; wait_break A; resume A; aio_flush",
            &debug_qcow2(""),
        );
        pair.same_disks("a.qcow2");
        pair.finish();
    }
}

#[test]
fn breakpoints_hold_up_the_same_requests() {
    let mut pair = Pair::new(&["qemu-img create -q -f qcow2 a.qcow2 1M"]);
    for commands in [
        "break write_aio A; aio_write 0 64k; wait_break A; resume A; aio_flush; read -P 0xcd 0 64k",
        "break foo A; break l2_load B; remove_break B; remove_break C; resume C",
        "break write_aio X; aio_write 0 4k; wait_break X; remove_break X; aio_flush",
        "break read_aio X; break read_aio Y; aio_read 0 4k; wait_break X; resume X; wait_break Y; resume Y; aio_flush",
        "break cluster_alloc A; aio_write 256k 4k; wait_break A; resume A; aio_flush; map",
    ] {
        pair.script("", commands, &debug_qcow2(""));
    }
    pair.same_disks("a.qcow2");
    pair.finish();
}

/// One entry of a log, read without our own code.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    sector: u64,
    flags: u64,
    data: Vec<u8>,
}

fn read_log(bytes: &[u8]) -> (u64, Vec<Entry>) {
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    assert_eq!((word(0), word(8)), (0x006a_7366_7773_6872, 1), "magic and version");
    let (count, size) = (word(16), word(24) & 0xffff_ffff);
    let mut at = size as usize;
    let mut entries = Vec::new();
    for _ in 0..count {
        let (sector, sectors, flags) = (word(at), word(at + 8), word(at + 16));
        assert_eq!(word(at + 24), 0, "data_len is of marks");
        at += size as usize;
        let len = if flags & 4 == 0 { (sectors * size) as usize } else { 0 };
        // Zeros at the end of a log may be a hole that the file does not reach.
        let mut data = bytes.get(at..(at + len).min(bytes.len())).unwrap_or_default().to_vec();
        data.resize(len, 0);
        at += len;
        entries.push(Entry { sector, flags, data });
    }
    (size, entries)
}

#[test]
fn logs_are_the_same() {
    let logged = |more: &str| {
        format!(
            "'json:{{\"driver\":\"raw\",\"file\":{{\"driver\":\"blklogwrites\",{more}\"file\":{{\"driver\":\"file\",\"filename\":\"a.raw\"}},\
             \"log\":{{\"driver\":\"file\",\"filename\":\"log\"}}}}}}'"
        )
    };
    let commands = "write -P 1 0 512; write -P 2 100 10; write -z 4k 4k; discard 8k 4k; flush; flush; write -f -P 3 16k 512; \
                    write -zu 20k 512; writev -P 4 30000 512 70 3; write -z 40k 700; read -P 4 30000 585; write -P 5 4000 5000";
    for (options, more) in [
        ("", ""),
        ("-n", ""),
        ("-t writeback", ""),
        ("", "\"log-sector-size\":4096,"),
        ("", "\"log-super-update-interval\":1,"),
    ] {
        let mut pair = Pair::new(RAW);
        pair.write("log", b"");
        pair.script(options, commands, &logged(more));
        pair.same_bytes("a.raw");
        compare_logs(&mut pair, &format!("{options} {more}"));
        // The log goes on where it ended.
        pair.script(options, "write -P 9 64k 4k; discard 64k 4k; flush", &logged("\"log-append\":true,"));
        compare_logs(&mut pair, &format!("{options} {more} appended"));
        pair.finish();
    }
    let mut pair = Pair::new(RAW);
    pair.write("log", &[b'x'; 1024]);
    for more in [
        "\"log-append\":true,",
        "\"log-append\":true,\"log-sector-size\":512,",
        "\"log-sector-size\":3,",
        "\"log-sector-size\":0,",
        "\"log-super-update-interval\":0,",
        "\"foo\":1,",
    ] {
        pair.script("", "read 0 512", &logged(more));
    }
    pair.finish();
}

fn compare_logs(pair: &mut Pair, about: &str) {
    let read = |path| read_log(&std::fs::read(path).expect("a log"));
    let (ours, theirs) = (read(pair.ours("log")), read(pair.theirs("log")));
    if ours != theirs {
        let brief = |(size, entries): &(u64, Vec<Entry>)| {
            let entries: Vec<_> = entries.iter().map(|e| (e.sector, e.flags, e.data.len())).collect();
            format!("{size} {entries:?}")
        };
        pair.complain(&format!("{about}:\n  ours {}\ntheirs {}", brief(&ours), brief(&theirs)));
    }
}

/// A log replayed up to its flushes makes the disk as it was then.
#[test]
fn a_log_can_be_replayed() {
    let pair = Pair::new(RAW);
    pair.write("log", b"");
    let image = "json:{\"driver\":\"raw\",\"file\":{\"driver\":\"blklogwrites\",\"file\":{\"driver\":\"file\",\"filename\":\"a.raw\"},\
                 \"log\":{\"driver\":\"file\",\"filename\":\"log\"}}}";
    let line = format!(
        "-t writeback -c 'write -P 1 0 64k' -c 'write -z 8k 4k' -c 'write -P 2 5000 77' -c flush '{image}'"
    );
    let run = pair.run_ours(&words(&line), "");
    assert_eq!(run.code, 0, "{run:?}");
    let (size, entries) = read_log(&std::fs::read(pair.ours("log")).expect("a log"));
    let mut disk = vec![0; 1 << 20];
    for entry in &entries {
        let at = (entry.sector * size) as usize;
        disk[at..at + entry.data.len()].copy_from_slice(&entry.data);
    }
    assert_eq!(entries.last().map(|entry| entry.flags), Some(1), "the flush");
    assert!(disk == std::fs::read(pair.ours("a.raw")).expect("a disk"));
}

#[test]
fn copies_are_compared() {
    let mut pair = Pair::new(&[
        RAW[0],
        "qemu-img create -q -f qcow2 a.qcow2 1M",
        "qemu-img create -q -f raw s.raw 512k",
    ]);
    pair.script(
        "-f raw",
        "write -P 1 0 512; read 0 1k; write 512k 64k; read -P 0xcd 512k 64k; flush",
        "blkverify:a.raw:a.qcow2",
    );
    pair.same_bytes("a.raw");
    pair.same_disks("a.qcow2");
    pair.both("-f raw -c 'read 0 512' blkverify:a.raw");
    pair.both("-f raw -c 'read 0 512' blkverify:none:a.qcow2");
    pair.both("-f raw -c 'read 0 512' blkverify:a.raw:none");
    let json = "'json:{\"driver\":\"blkverify\",\"raw\":{\"driver\":\"file\",\"filename\":\"a.raw\"},\
                \"test\":{\"driver\":\"qcow2\",\"file.filename\":\"a.qcow2\"}}'";
    pair.script("", "read 0 512; length", json);
    // From here on the two differ.
    for name in [pair.ours("a.raw"), pair.theirs("a.raw")] {
        let mut bytes = std::fs::read(&name).expect("a disk");
        bytes[4097] ^= 1;
        std::fs::write(&name, bytes).expect("a disk");
    }
    pair.script("-f raw", "read 0 512; read 0 8k; read 0 512", "blkverify:a.raw:a.qcow2");
    pair.finish();
}

#[test]
fn every_write_is_compressed() {
    let mut pair = Pair::new(&[RAW[0], "qemu-img create -q -f qcow2 c.qcow2 1M"]);
    let image =
        "'json:{\"driver\":\"compress\",\"file\":{\"driver\":\"qcow2\",\"file.filename\":\"c.qcow2\"}}'";
    let commands = "write -P 1 0 64k; write -P 2 70k 1k; write -z 256k 64k; map; info; write 512k 512k; read -P 2 70k 1k";
    pair.script("", commands, image);
    let map = |name| {
        let output = std::process::Command::new("qemu-img").args(["map", "--output=json"]).arg(name).output();
        String::from_utf8(output.expect("qemu-img runs").stdout).expect("text")
    };
    let (ours, theirs) = (map(pair.ours("c.qcow2")), map(pair.theirs("c.qcow2")));
    if ours != theirs {
        pair.complain(&format!("map\n  ours: {ours}\ntheirs: {theirs}"));
    }
    for refused in [
        "{\"driver\":\"compress\",\"file\":{\"driver\":\"raw\",\"file.filename\":\"a.raw\"}}",
        "{\"driver\":\"compress\",\"file\":{\"driver\":\"file\",\"filename\":\"a.raw\"}}",
        "{\"driver\":\"compress\",\"file.filename\":\"c.qcow2\"}",
        "{\"driver\":\"compress\"}",
    ] {
        pair.script("", "write 0 64k", &format!("'json:{refused}'"));
    }
    pair.same_disks("c.qcow2");
    // Beyond the reference: what is compressed already can be written again.
    let line = words("-c 'write -P 3 71k 1k' -c 'read -P 2 70k 1k' -c 'read -P 3 71k 1k'");
    let mut line: Vec<String> = line;
    line.extend(words(image));
    let run = pair.run_ours(&line, "");
    if run.code != 0 {
        pair.complain(&format!("{run:?}"));
    }
    pair.finish();
}

#[test]
fn files_grow_ahead_and_are_cut_back() {
    let image = |more: &str| {
        format!(
            "'json:{{\"driver\":\"qcow2\",\"file\":{{\"driver\":\"preallocate\",{more}\"file\":{{\"driver\":\"file\",\"filename\":\"p.qcow2\"}}}}}}'"
        )
    };
    let create = &["qemu-img create -q -f qcow2 p.qcow2 1G", RAW[0]];
    let mut pair = Pair::new(create);
    for more in [
        "\"prealloc-size\":1048576,\"prealloc-align\":65536,",
        "\"prealloc-align\":0,",
        "\"prealloc-align\":3,",
        "\"prealloc-align\":512,",
        "\"prealloc-size\":0,",
        "\"prealloc-size\":-1,",
        "\"foo\":0,",
    ] {
        pair.script("", "write -P 1 0 64k; write -P 2 10M 64k; read -P 1 0 64k", &image(more));
    }
    pair.script("-r", "read -P 1 0 64k", &image(""));
    let json = "'json:{\"driver\":\"preallocate\",\"file\":{\"driver\":\"file\",\"filename\":\"a.raw\"}}'";
    pair.script("", "write 0 512; write 1M 512; length; truncate 2M; length; read -P 0 1M 1M", json);
    pair.same_bytes("a.raw");
    pair.same_disks("p.qcow2");
    let len = std::fs::metadata(pair.ours("p.qcow2")).expect("an image").len();
    let theirs = std::fs::metadata(pair.theirs("p.qcow2")).expect("an image").len();
    if len != theirs {
        pair.complain(&format!("p.qcow2 has {len} bytes, the reference's has {theirs}"));
    }
    // While the image is open the file is longer than its data.
    let mut line = words("-c 'write 100M 64k' -c abort");
    line.extend(words(&image("\"prealloc-size\":1048576,\"prealloc-align\":65536,")));
    let run = pair.run_ours(&line, "");
    let grown = std::fs::metadata(pair.ours("p.qcow2")).expect("an image").len();
    if run.code != 1006 || grown < len + (1 << 20) {
        pair.complain(&format!("{len} bytes, then {grown}: {run:?}"));
    }
    pair.finish();
}

#[test]
fn what_is_read_is_kept() {
    let mut pair = Pair::new(&[
        "qemu-img create -q -f qcow2 base.qcow2 1M",
        "qemu-io -f qcow2 -c 'write -P 1 0 256k' base.qcow2",
        "qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 mid.qcow2",
        "qemu-io -f qcow2 -c 'write -P 2 64k 64k' mid.qcow2",
        "qemu-img create -q -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2",
        "qemu-img create -q -f qcow2 -b mid.qcow2 -F qcow2 other.qcow2",
    ]);
    let plain = "'json:{\"driver\":\"copy-on-read\",\"file\":{\"driver\":\"qcow2\",\"file.filename\":\"top.qcow2\"}}'";
    pair.script(
        "",
        "read -P 1 0 512; read -P 2 100k 512; read 512k 512; map; write -P 9 200k 1k; read 0 1M; map",
        plain,
    );
    let bottom = "'json:{\"driver\":\"copy-on-read\",\"bottom\":\"mid\",\"file\":{\"driver\":\"qcow2\",\"file.filename\":\"other.qcow2\",\
                  \"backing\":{\"driver\":\"qcow2\",\"node-name\":\"mid\",\"file.filename\":\"mid.qcow2\"}}}'";
    pair.script("", "read -P 1 0 512; read -P 2 100k 512; map; read -P 1 128k 64k; map", bottom);
    for refused in [
        "{\"driver\":\"copy-on-read\",\"bottom\":\"nope\",\"file\":{\"driver\":\"qcow2\",\"file.filename\":\"top.qcow2\"}}",
        "{\"driver\":\"copy-on-read\",\"file.filename\":\"top.qcow2\",\"foo\":1}",
        "{\"driver\":\"copy-on-read\"}",
    ] {
        pair.script("", "read 0 512", &format!("'json:{refused}'"));
    }
    pair.script("-r", "read 0 512", plain);
    pair.same_disks("top.qcow2");
    pair.same_disks("other.qcow2");
    pair.finish();
}

/// Permissions that a node takes or denies beyond those of the nodes above, as other processes see them.
#[test]
fn permissions_keep_others_out() {
    let mut pair = Pair::new(RAW);
    let one = |key: &str, permission: &str| format!(r#""{key}":["{permission}"],"#);
    let known = ["consistent-read", "write", "write-unchanged", "resize", "graph-mod"];
    let mut rules = vec![
        String::new(),
        r#""take-child-perms":["write-unchanged"],"unshare-child-perms":["resize"],"#.to_owned(),
        r#""unshare-child-perms":["consistent-read","write","resize","write-unchanged"],"#.to_owned(),
    ];
    rules.extend(known.map(|permission| one("take-child-perms", permission)));
    rules.extend(known.map(|permission| one("unshare-child-perms", permission)));
    for rules in &rules {
        let above = debug_raw(rules);
        let alone = above.replace("\"driver\":\"raw\",\"file\":{", "").replace("}}}'", "}}'");
        for image in [&above, &alone] {
            for options in ["", "-r"] {
                pair.script(options, "read 0 512; write 0 512; truncate 1M", image);
                expect_held_alike(&mut pair, options, image);
            }
        }
    }
    pair.finish();
}

/// Windows, filters and formats on a file, as other processes see them.
#[test]
fn nodes_without_metadata_let_others_write() {
    let mut pair = Pair::new(&[RAW[0], "qemu-img create -q -f qcow2 -b a.raw -F raw a.qcow2"]);
    for image in [
        r#"{"driver":"file","filename":"a.raw"}"#,
        r#"{"driver":"raw","file.filename":"a.raw"}"#,
        r#"{"driver":"raw","offset":512,"file.filename":"a.raw"}"#,
        r#"{"driver":"raw","size":512,"file":{"driver":"raw","file.filename":"a.raw"}}"#,
        r#"{"driver":"copy-on-read","file":{"driver":"raw","file.filename":"a.raw"}}"#,
        r#"{"driver":"preallocate","file.filename":"a.raw"}"#,
        r#"{"driver":"qcow2","file.filename":"a.qcow2"}"#,
    ] {
        for options in ["", "-r", "-r -U"] {
            expect_held_alike(&mut pair, options, &format!("'json:{image}'"));
        }
    }
    pair.finish();
}

/// Has both tools hold an image, and both keep the same others out.
fn expect_held_alike(pair: &mut Pair, options: &str, image: &str) {
    let args = words(&format!("{options} {image}"));
    let ours = held_up(env!("CARGO_BIN_EXE_drystone-io"), &args, &pair.ours(""));
    let theirs = held_up("qemu-io", &args, &pair.theirs(""));
    if ours != theirs {
        pair.complain(&format!("{options} {image}:\n  ours: {ours:?}\ntheirs: {theirs:?}"));
    }
}

/// What the reference says to those who open the file while a tool has an image in it open: to read, to write, and to change
/// its length.
fn held_up(program: &str, args: &[String], folder: &std::path::Path) -> Vec<String> {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::process::{Command, Stdio};
    let other = |args: &str| {
        let mut command = Command::new("qemu-io");
        command.args(words(args)).arg("a.raw").current_dir(folder);
        let output = command.output().expect("qemu-io is installed");
        String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or_default().to_owned()
    };
    // Who had the image open before may not have let go of it.
    for _ in 0..100 {
        if other("-f raw -c length").is_empty() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let mut holder = Command::new(program);
    holder.args(args).current_dir(folder);
    holder.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut holder = holder.spawn().expect("the tool runs");
    let mut stdin = holder.stdin.take().expect("a pipe");
    let mut stdout = BufReader::new(holder.stdout.take().expect("a pipe"));
    // It answers once it has the image open; or it has ended.
    let _ = stdin.write_all(b"length\n");
    let mut line = String::new();
    let _ = stdout.read_line(&mut line);
    let others = ["-r -f raw -c length", "-f raw -c length", "-f raw -c 'truncate 1M'"];
    let said = others.into_iter().map(other).collect();
    drop(stdin);
    holder.wait().expect("it ends");
    said
}

/// Where the copy holds something is what the node tells of itself.
#[test]
fn a_verified_image_has_the_map_of_its_copy() {
    let mut pair = Pair::new(&[
        "qemu-img create -q -f raw a.raw 1M",
        "qemu-img create -q -f qcow2 a.qcow2 1M",
        "qemu-io -f raw -c 'write -P 5 64k 64k' a.raw",
        "qemu-io -f qcow2 -c 'write -P 5 64k 64k' a.qcow2",
    ]);
    let options = "driver=blkverify,x-image=a.qcow2,x-raw=a.raw";
    pair.script("--image-opts", "map; alloc 0 1M; read -P 5 64k 64k; write 0 4k; map", options);
    pair.finish();
}

/// Names in options, as scripts of long ago have them.
#[test]
fn images_are_named_in_options() {
    let mut pair = Pair::new(&[
        "qemu-img create -q -f raw a.raw 1M",
        "qemu-img create -q -f qcow2 a.qcow2 1M",
        "qemu-img create -q -f raw b.raw 1M",
    ]);
    for options in [
        "driver=blkverify,x-image=a.qcow2,x-raw=a.raw",
        "driver=blkverify,x-image=a.qcow2,raw.driver=file,raw.filename=a.raw",
        "driver=blkverify,x-image=a.qcow2,x-raw=a.raw,bogus=1",
        "driver=blkverify,x-image=none,x-raw=a.raw",
        "driver=qcow2,file.driver=blkdebug,file.x-image=a.qcow2",
        "driver=qcow2,file.driver=blkdebug,file.x-image=a.qcow2,file.image.driver=file,file.image.filename=a.raw",
    ] {
        pair.script("--image-opts", "read 0 512; write -P 3 0 64k; read -P 3 0 4k; flush", options);
    }
    pair.same_disks("a.qcow2");
    pair.finish();
}
