//! Damaged and malicious qcow2 images: every command ends soon, in little memory, with an exit code and a reason.

mod side;

use std::time::{Duration, Instant};

use side::{Run, Side};

/// Bytes, and where they go.
type Patch<'a> = (u64, &'a [u8]);

/// Address space of a run, in bytes: more than the tool needs on a good image, far less than a hostile one could ask for.
const MEMORY_MAX: u64 = 512 << 20;

/// How long a command may take.
const TIME_MAX: Duration = Duration::from_secs(10);

/// The commands that only read; `IMAGE` is replaced.
const READING: &[&str] = &[
    "info IMAGE",
    "info --output=json --backing-chain IMAGE",
    "check IMAGE",
    "check --output=json IMAGE",
    "map --output=json IMAGE",
    "convert -O raw IMAGE out.raw",
    "convert -O qcow2 -c IMAGE out.qcow2",
];

/// Runs our tool within the bounds; `None` when it took too long.
fn bounded(side: &Side, args: &str) -> Option<Run> {
    let limits = format!(
        "--data={MEMORY_MAX} --core=0 -- timeout -s KILL {} {} {args}",
        TIME_MAX.as_secs(),
        env!("CARGO_BIN_EXE_drystone-img"),
    );
    let begun = Instant::now();
    let output = side.command("prlimit", &limits).output().expect("prlimit is installed (util-linux)");
    (begun.elapsed() < TIME_MAX).then(|| output.into())
}

/// What is wrong with how a command ended, if anything.
fn judge(run: Option<&Run>) -> Option<String> {
    let Some(run) = run else { return Some("took too long".into()) };
    let refused = run.code != 0;
    match run.code {
        0..=3 | 63 if refused && run.stderr.trim().is_empty() && run.stdout.trim().is_empty() => {
            Some(format!("says nothing: {run:?}"))
        }
        0..=3 | 63 if run.stderr.contains("panicked") => Some(format!("{run:?}")),
        // 63 is `check` on a file that is no image.
        0..=3 | 63 => None,
        _ => Some(format!("{run:?}")),
    }
}

/// Runs every reading command on the image; all must end well, and `expected` (when not empty) must be in what the
/// commands said that could not do their work.
fn survive(side: &mut Side, about: &str, image: &str) -> Vec<Run> {
    let mut runs = Vec::new();
    for command in READING {
        let args = command.replace("IMAGE", image);
        let run = bounded(side, &args);
        if let Some(wrong) = judge(run.as_ref()) {
            side.complain(&format!("{about}: {args}: {wrong}"));
        }
        runs.extend(run);
    }
    side.remove("out.raw");
    side.remove("out.qcow2");
    runs
}

/// Runs the reading commands; one of them at least must refuse, and say `reason`.
fn refuse(side: &mut Side, about: &str, image: &str, reason: &str) {
    let runs = survive(side, about, image);
    if !runs.iter().any(|run| run.code != 0 && (run.stderr.contains(reason) || run.stdout.contains(reason))) {
        let said: Vec<_> = runs.iter().map(|run| (run.code, run.stderr.as_str())).collect();
        side.complain(&format!("{about}: nobody says {reason:?}: {said:#?}"));
    }
}

/// A writing command on the image must be refused, and must leave it as it is.
fn refuse_writing(side: &mut Side, about: &str, image: &str) {
    let before = side.read(image);
    side.write("small.raw", &[7; 512]);
    let run = bounded(side, &format!("convert -n -f raw -O qcow2 small.raw {image}"));
    match judge(run.as_ref()) {
        Some(wrong) => side.complain(&format!("{about}: writing: {wrong}")),
        None if run.is_some_and(|run| run.code == 0) => {
            side.complain(&format!("{about}: writing was not refused"));
        }
        None if side.read(image) != before => side.complain(&format!("{about}: a refused write changed it")),
        None => {}
    }
}

/// A good image with all kinds of cluster, and a snapshot.
fn good(side: &Side, options: &str, image: &str) {
    side.make(&format!("create -q -f qcow2 -o {options} {image} 8M"));
    side.io(image, "write -P 1 0 300k; write -c -P 2 1M 64k; write -z 2M 64k; write -P 3 5M 64k");
    side.make(&format!("snapshot -c first {image}"));
    side.io(image, "write -P 4 64k 64k; write -c -P 5 6M 64k");
}

fn be_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn be_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// Writes a copy of `good` with some bytes changed.
fn patched(side: &Side, name: &str, good: &[u8], patches: &[(u64, &[u8])]) {
    let mut bytes = good.to_vec();
    for (at, patch) in patches {
        let at = usize::try_from(*at).unwrap();
        bytes.resize(bytes.len().max(at + patch.len()), 0);
        bytes[at..at + patch.len()].copy_from_slice(patch);
    }
    side.write(name, &bytes);
}

/// Positions of header fields. Source: \[qcow2\] "Header".
mod field {
    pub const BACKING_OFFSET: u64 = 8;
    pub const BACKING_LEN: u64 = 16;
    pub const CLUSTER_BITS: u64 = 20;
    pub const SIZE: u64 = 24;
    pub const CRYPT: u64 = 32;
    pub const L1_ENTRIES: u64 = 36;
    pub const L1_OFFSET: u64 = 40;
    pub const REFCOUNT_TABLE: u64 = 48;
    pub const REFCOUNT_TABLE_CLUSTERS: u64 = 56;
    pub const SNAPSHOT_COUNT: u64 = 60;
    pub const SNAPSHOTS: u64 = 64;
    pub const INCOMPATIBLE: u64 = 72;
    pub const REFCOUNT_ORDER: u64 = 96;
    pub const HEADER_LEN: u64 = 100;
}

#[test]
fn wild_header_fields() {
    let mut side = Side::new();
    good(&side, "cluster_size=64k", "good");
    let good = side.read("good");
    let huge = (1_u64 << 60).to_be_bytes();
    let end = (good.len() as u64).next_multiple_of(65536);
    let beyond = (end + (1 << 30)).to_be_bytes();
    let all = u64::MAX.to_be_bytes();
    let cases: &[(&str, &str, &[Patch<'_>])] = &[
        ("L1 of 2^32-1 entries", "L1", &[(field::L1_ENTRIES, &[255; 4])]),
        ("L1 of none", "L1", &[(field::L1_ENTRIES, &[0; 4])]),
        ("L1 at 2^60", "L1", &[(field::L1_OFFSET, &huge)]),
        ("L1 past the end", "L1", &[(field::L1_OFFSET, &beyond)]),
        ("L1 unaligned", "L1", &[(field::L1_OFFSET, &513_u64.to_be_bytes())]),
        ("L1 at the very end of numbers", "L1", &[(field::L1_OFFSET, &all)]),
        ("disk of 2^64-1 bytes", "", &[(field::SIZE, &all)]),
        ("disk of 2^60 bytes", "", &[(field::SIZE, &huge)]),
        ("disk of 2^63-512 bytes", "", &[(field::SIZE, &(i64::MAX as u64 & !511).to_be_bytes())]),
        ("refcount table past the end", "count", &[(field::REFCOUNT_TABLE, &beyond)]),
        ("refcount table at 2^60", "count", &[(field::REFCOUNT_TABLE, &huge)]),
        ("refcount table unaligned", "count", &[(field::REFCOUNT_TABLE, &77_u64.to_be_bytes())]),
        ("refcount table of 2^32-1 clusters", "count", &[(field::REFCOUNT_TABLE_CLUSTERS, &[255; 4])]),
        ("refcount table of none", "count", &[(field::REFCOUNT_TABLE_CLUSTERS, &[0; 4])]),
        ("65536 snapshots", "napshot", &[(field::SNAPSHOT_COUNT, &65536_u32.to_be_bytes())]),
        ("2^32-1 snapshots", "napshot", &[(field::SNAPSHOT_COUNT, &[255; 4])]),
        ("snapshots past the end", "napshot", &[(field::SNAPSHOTS, &beyond)]),
        ("snapshots unaligned", "napshot", &[(field::SNAPSHOTS, &9_u64.to_be_bytes())]),
        (
            "no snapshots, unaligned",
            "napshot",
            &[(field::SNAPSHOT_COUNT, &[0; 4]), (field::SNAPSHOTS, &9_u64.to_be_bytes())],
        ),
        ("cluster bits 8", "luster", &[(field::CLUSTER_BITS, &8_u32.to_be_bytes())]),
        ("cluster bits 63", "luster", &[(field::CLUSTER_BITS, &63_u32.to_be_bytes())]),
        ("cluster bits 22", "luster", &[(field::CLUSTER_BITS, &22_u32.to_be_bytes())]),
        ("encryption method 3", "ncrypt", &[(field::CRYPT, &3_u32.to_be_bytes())]),
        ("refcount order 7", "eference count", &[(field::REFCOUNT_ORDER, &7_u32.to_be_bytes())]),
        ("refcount order 2^32-1", "eference count", &[(field::REFCOUNT_ORDER, &[255; 4])]),
        ("header length 0", "eader", &[(field::HEADER_LEN, &[0; 4])]),
        ("header length 2^32-1", "eader", &[(field::HEADER_LEN, &[255; 4])]),
        ("version 4", "ersion 4", &[(4, &4_u32.to_be_bytes())]),
        (
            "unknown incompatible bit",
            "Unknown incompatible feature: 2000000000",
            &[(field::INCOMPATIBLE, &(1_u64 << 37).to_be_bytes())],
        ),
        (
            "named incompatible bit",
            "corrupt bit of tomorrow",
            &[
                (field::INCOMPATIBLE, &(1_u64 << 50).to_be_bytes()),
                (120, b"\x00\x32corrupt bit of tomorrow\0\0\0\0\0\0"),
            ],
        ),
        (
            "backing name outside the header",
            "acking",
            &[(field::BACKING_OFFSET, &beyond), (field::BACKING_LEN, &16_u32.to_be_bytes())],
        ),
        (
            "backing name of 2^32-1 bytes",
            "acking",
            &[(field::BACKING_OFFSET, &600_u64.to_be_bytes()), (field::BACKING_LEN, &[255; 4])],
        ),
        (
            "backing name of 1024 bytes",
            "acking",
            &[(field::BACKING_OFFSET, &600_u64.to_be_bytes()), (field::BACKING_LEN, &1024_u32.to_be_bytes())],
        ),
        ("header extension longer than its cluster", "xtension", &[(116, &[255; 4])]),
        ("header extension of 2^31 bytes", "xtension", &[(116, &[0x80, 0, 0, 0])]),
    ];
    for (about, reason, patches) in cases {
        patched(&side, "bad", &good, patches);
        if reason.is_empty() {
            survive(&mut side, about, "bad");
        } else {
            refuse(&mut side, about, "bad", reason);
        }
    }
    side.finish();
}

#[test]
fn wild_tables() {
    let mut side = Side::new();
    good(&side, "cluster_size=64k", "good");
    let good = side.read("good");
    let l1 = be_u64(&good, 40);
    let copied = 1_u64 << 63;
    let l2 = be_u64(&good, l1 as usize) & !copied;
    let refcounts = be_u64(&good, 48);
    let compressed = 1_u64 << 62;
    let end = (good.len() as u64).next_multiple_of(65536);
    let cases: &[(&str, &str, u64, u64)] = &[
        ("L1 entry: offset 0, copied", "L2", l1, copied),
        ("L1 entry past the end", "", l1, copied | (end + (1 << 40))),
        ("L1 entry unaligned", "L2", l1, copied | (l2 + 512)),
        ("L1 entry is the header", "", l1, copied),
        ("L1 entry is the L1 table", "", l1, copied | l1),
        ("L1 entry is the refcount table", "", l1, copied | refcounts),
        ("L1 entry with all bits", "", l1, u64::MAX),
        ("L2 entry: offset 0, copied", "", l2, copied),
        ("L2 entry past the end", "", l2, copied | (end + (1 << 40))),
        ("L2 entry unaligned", "ligned", l2, copied | (l2 + 1024)),
        ("L2 entry is its own table", "", l2, copied | l2),
        ("L2 entry is the L1 table", "", l2, copied | l1),
        ("L2 entry with all bits", "", l2, u64::MAX),
        ("compressed past the end", "", l2 + 16 * 8, compressed | (end + (1 << 40))),
        ("compressed at the end of its field", "", l2 + 16 * 8, compressed | ((1 << 54) - 1)),
        ("compressed is the header", "", l2 + 16 * 8, compressed | (3 << 54)),
        ("compressed is all of the file", "", l2 + 16 * 8, compressed | (255 << 54) | 4096),
        ("refcount block past the end", "", refcounts, end + (1 << 40)),
        ("refcount block unaligned", "reserved bits", refcounts, 513),
        ("refcount block missing", "", refcounts, 0),
        ("refcount block is the L1 table", "", refcounts, l1),
        ("refcount block is its table", "", refcounts, refcounts),
        ("refcount block with all bits", "", refcounts, u64::MAX),
    ];
    for (about, reason, at, entry) in cases {
        patched(&side, "bad", &good, &[(*at, &entry.to_be_bytes())]);
        if reason.is_empty() {
            survive(&mut side, about, "bad");
        } else {
            refuse(&mut side, about, "bad", reason);
        }
        // Whatever a write to such an image does, it must come to an end.
        side.write("small.raw", &[7; 8 << 20]);
        let run = bounded(&side, "convert -n -S 0 -f raw -O qcow2 small.raw bad");
        if let Some(wrong) = judge(run.as_ref()) {
            side.complain(&format!("{about}: writing: {wrong}"));
        }
    }
    side.finish();
}

#[test]
fn wild_snapshots() {
    let mut side = Side::new();
    good(&side, "cluster_size=64k", "good");
    let good = side.read("good");
    let table = be_u64(&good, 64);
    assert_eq!(be_u32(&good, 60), 1);
    let name = b"\x1b[2J\"\xff\n\0ab";
    let cases: &[(&str, &[Patch<'_>])] = &[
        ("extra data of 2^32-1 bytes", &[(table + 36, &[255; 4])]),
        ("id of 65535 bytes", &[(table + 12, &[255; 2])]),
        ("name of 65535 bytes", &[(table + 14, &[255; 2])]),
        ("L1 at 2^60", &[(table, &(1_u64 << 60).to_be_bytes())]),
        ("L1 of 2^32-1 entries", &[(table + 8, &[255; 4])]),
        ("L1 unaligned", &[(table, &77_u64.to_be_bytes())]),
        ("no extra data", &[(table + 36, &[0; 4])]),
        ("times at their ends", &[(table + 16, &[255; 20])]),
        ("a wild name", &[(table + 14, &10_u16.to_be_bytes()), (table + 64, name)]),
        ("table is the header", &[(64, &0_u64.to_be_bytes())]),
        ("table is the L1 table", &[(64, &good[40..48]), (60, &1000_u32.to_be_bytes())]),
    ];
    for (about, patches) in cases {
        patched(&side, "bad", &good, patches);
        survive(&mut side, about, "bad");
        for command in ["convert -l first -O raw bad out.raw", "convert -l 1 -O raw bad out.raw"] {
            if let Some(wrong) = judge(bounded(&side, command).as_ref()) {
                side.complain(&format!("{about}: {command}: {wrong}"));
            }
        }
    }
    // What lies between clusters is no table, and is not repaired as if it were one.
    patched(&side, "bad", &good, &[(field::SNAPSHOTS, &(table + 9).to_be_bytes())]);
    let before = side.read("bad");
    for command in ["check bad", "check -r all bad"] {
        side.expect_alike(command, &bounded(&side, command).map(|run| run.code), &Some(1));
    }
    side.expect_alike("a table between clusters is left alone", &(side.read("bad") == before), &true);
    side.finish();
}

#[test]
fn chains_without_an_end() {
    let mut side = Side::new();
    side.make("create -q -f qcow2 -u -b self.qcow2 -F qcow2 new.qcow2 1M");
    std::fs::rename(side.path("new.qcow2"), side.path("self.qcow2")).unwrap();
    side.make("create -q -f qcow2 -u -b b.qcow2 -F qcow2 a.qcow2 1M");
    side.make("create -q -f qcow2 -u -b a.qcow2 -F qcow2 b.qcow2 1M");
    side.make("create -q -f qcow2 -u -b ./a.qcow2 -F qcow2 dot.qcow2 1M");
    std::os::unix::fs::symlink("self.qcow2", side.path("link.qcow2")).unwrap();
    side.make("create -q -f qcow2 -u -b link2.qcow2 -F qcow2 linked.qcow2 1M");
    std::os::unix::fs::symlink("linked.qcow2", side.path("link2.qcow2")).unwrap();
    for image in ["self.qcow2", "a.qcow2", "b.qcow2", "dot.qcow2", "link.qcow2", "linked.qcow2"] {
        refuse(&mut side, "endless chain", image, "");
        let run = side.ours(&format!("convert -O raw {image} out.raw"));
        side.expect_alike(&format!("{image}: convert"), &run.code, &1);
        let times = run.stderr.matches("Could not open backing file").count();
        side.expect_alike(&format!("{image}: the reason, said once"), &times, &1);
        side.both("endless chain", &format!("info {image}"));
    }
    side.both("endless chain", "info --backing-chain self.qcow2");
    side.both("endless chain", "info --backing-chain a.qcow2");
    // A long chain that does end.
    side.make("create -q -f qcow2 c0.qcow2 1M");
    for number in 1..300 {
        let below = number - 1;
        side.make(&format!("create -q -u -f qcow2 -b c{below}.qcow2 -F qcow2 c{number}.qcow2 1M"));
    }
    survive(&mut side, "chain of 300", "c299.qcow2");
    side.finish();
}

#[test]
fn names_that_reach_for_other_files() {
    let mut side = Side::new();
    side.write("secret.txt", b"root:x:0:0");
    let json = r#"json:{"driver":"raw","file":{"driver":"file","filename":"secret.txt"}}"#;
    for (what, name) in [
        ("json", json),
        ("json with a protocol", r#"json:{"driver":"nbd","host":"127.0.0.1","port":"1"}"#),
        ("json that is broken", "json:{{{{"),
        ("a deep json", &format!("json:{}", "[".repeat(900))),
        ("unknown protocol", "frob:nicate"),
        ("a folder", "."),
        ("a device", "/dev/zero"),
        ("a terminal", "/dev/tty"),
        ("nothing", "fd:0"),
        ("fdset", "/dev/fdset/7"),
    ] {
        // The names go into the image byte by byte: the reference would look at them when it makes one.
        side.make("create -q -f qcow2 -o data_file=D plain.qcow2 1M");
        let plain = side.read("plain.qcow2");
        let at = plain.windows(4).position(|bytes| bytes == 0x4441_5441_u32.to_be_bytes()).unwrap();
        let rest = plain[at + 16..512].to_vec();
        let mut padded = name.as_bytes().to_vec();
        padded.resize(name.len().next_multiple_of(8), 0);
        let len = u32::try_from(name.len()).unwrap().to_be_bytes();
        let head = at as u64;
        patched(
            &side,
            "bad",
            &plain,
            &[(head + 4, &len), (head + 8, &padded), (head + 8 + padded.len() as u64, &rest)],
        );
        survive(&mut side, &format!("data file: {what}"), "bad");
        let run = side.ours("info --output=json bad");
        side.expect_alike(&format!("data file: {what}: info"), &run.code, &0);
        let run = side.ours("convert -O raw bad out.raw");
        if what.starts_with("json") && run.code == 0 {
            side.complain(&format!("data file: {what}: opened what the image named"));
        }

        side.make("create -q -f qcow2 back.qcow2 1M");
        let plain = side.read("back.qcow2");
        let len = u32::try_from(name.len()).unwrap().to_be_bytes();
        patched(
            &side,
            "bad",
            &plain,
            &[
                (field::BACKING_OFFSET, &1024_u64.to_be_bytes()),
                (field::BACKING_LEN, &len),
                (1024, name.as_bytes()),
            ],
        );
        survive(&mut side, &format!("backing file: {what}"), "bad");
        side.both(&format!("backing file: {what}"), "info bad");
    }
    side.finish();
}

#[test]
fn a_bare_magic_is_not_taken_for_raw() {
    let mut side = Side::new();
    for (format, name, head) in [
        ("cloop", "other", "#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r"),
        ("parallels", "other", "WithouFreSpacExt\u{2}\0\0\0"),
        ("qcow", "other", "QFI\u{fb}\0\0\0\u{1}"),
        ("qed", "other", "QED\0"),
        ("vhdx", "other", "vhdxfile"),
        ("vpc", "other", "conectix"),
        ("vmdk", "other", "KDMV"),
        ("luks", "other", "LUKS\u{ba}\u{be}\0\u{1}"),
        ("dmg", "other.dmg", ""),
    ] {
        // Each character is a byte.
        let mut bytes: Vec<u8> = head.chars().map(|one| one as u8).collect();
        bytes.resize(4096, 0);
        side.write(name, &bytes);
        refuse(&mut side, format, name, name);
    }
    side.finish();
}

#[test]
fn encrypted_images_are_refused_without_their_key() {
    let mut side = Side::new();
    for options in ["encrypt.format=luks,encrypt.iter-time=10", "encrypt.format=aes"] {
        side.make(&format!(
            "create -q --object secret,id=s,data=x -f qcow2 -o {options},encrypt.key-secret=s secret.qcow2 1M"
        ));
        side.both("encrypted", "info -f raw secret.qcow2");
        if options.contains("aes") {
            side.both("encrypted", "info --output=json secret.qcow2");
        }
        let info = side.our_make("info --output=json secret.qcow2");
        assert!(info.contains("\"encrypted\": true"), "{info}");
        survive(&mut side, options, "secret.qcow2");
        for args in ["convert -O raw secret.qcow2 out.raw", "compare secret.qcow2 secret.qcow2"] {
            let run = side.ours(args);
            if run.code == 0 || !run.stderr.contains("encrypt") {
                side.complain(&format!("{args}: {run:?}"));
            }
        }
        refuse_writing(&mut side, options, "secret.qcow2");
    }
    side.finish();
}

#[test]
fn marked_images_are_not_written_to() {
    let mut side = Side::new();
    good(&side, "lazy_refcounts=on", "good");
    let good = side.read("good");
    for (about, bits) in [("dirty", 1_u64), ("corrupt", 2), ("both", 3)] {
        patched(&side, "bad", &good, &[(field::INCOMPATIBLE, &bits.to_be_bytes())]);
        for run in survive(&mut side, about, "bad") {
            side.expect_alike(&format!("{about}: {}", run.stderr), &run.code, &0);
        }
        side.both(about, "info bad");
        side.both(about, "info --output=json bad");
        // One that is only dirty is repaired as it is opened.
        if bits != 1 {
            refuse_writing(&mut side, about, "bad");
        }
    }
    side.finish();
}

#[test]
fn truncated_images() {
    let mut side = Side::new();
    good(&side, "cluster_size=4k", "good");
    let good = side.read("good");
    for len in (0..512).map(|sectors| sectors * 512).filter(|len| *len < good.len()) {
        side.write("bad", &good[..len]);
        for command in ["check bad", "convert -O raw bad out.raw"] {
            if let Some(wrong) = judge(bounded(&side, command).as_ref()) {
                side.complain(&format!("truncated to {len}: {command}: {wrong}"));
            }
        }
    }
    // All commands on all lengths in the first 4 KiB, where the header is; then on ever fewer.
    let lengths = (0..8).chain((8..64).step_by(3)).chain((64..512).step_by(37)).map(|sectors| sectors * 512);
    for len in lengths.filter(|len| *len < good.len()) {
        side.write("bad", &good[..len]);
        survive(&mut side, &format!("truncated to {len}"), "bad");
    }
    for len in [1, 3, 4, 7, 8, 71, 72, 103, 104, 111, 112, 119] {
        side.write("bad", &good[..len]);
        survive(&mut side, &format!("truncated to {len}"), "bad");
    }
    side.finish();
}

/// `HOSTILE_SEEDS` in the environment tries more, or fewer, than usual.
#[test]
fn flipped_bits() {
    let mut side = Side::new();
    good(&side, "cluster_size=4k", "a");
    good(&side, "cluster_size=16k,extended_l2=on,compression_type=zstd", "b");
    let images = [side.read("a"), side.read("b")];
    let seeds: u64 = std::env::var("HOSTILE_SEEDS").map_or(60, |text| text.parse().expect("a number"));
    for seed in 0..seeds {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut bytes = images[seed as usize % 2].clone();
        let tables = [be_u64(&bytes, 40), be_u64(&bytes, 48), be_u64(&bytes, 64), 0];
        for _ in 0..=seed % 8 {
            let table = tables[random.below(4)] as usize;
            let at = (table + random.below(if table == 0 { 128 } else { 4096 })).min(bytes.len() - 1);
            bytes[at] ^= 1 << random.below(8);
        }
        side.write("bad", &bytes);
        survive(&mut side, &format!("seed {seed}"), "bad");
        side.write("small.raw", &[7; 8 << 20]);
        if let Some(wrong) = judge(bounded(&side, "convert -n -S 0 -f raw -O qcow2 small.raw bad").as_ref()) {
            side.complain(&format!("seed {seed}: writing: {wrong}"));
        }
    }
    side.finish();
}

/// The same numbers for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % end
    }
}
