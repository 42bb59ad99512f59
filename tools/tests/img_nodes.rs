//! Commands on nodes that are no plain images (leaves without storage, filters), on damaged images, and with objects,
//! beside the installed `qemu-img`; and names in an image that would steer a terminal.

mod side;

use side::Side;

fn images() -> Side {
    let side = Side::new();
    for line in [
        "create -q r 1M",
        "create -q -f qcow2 base 1M",
        "create -q -f qcow2 -b base -F qcow2 top",
        "create -q -f qcow2 q 1M",
        "create -q -f qcow2 bm 1M",
        "bitmap --add bm b0",
    ] {
        side.make(line);
    }
    side.io("base", "write -P 1 0 512k");
    side.io("top", "write -P 3 64k 64k");
    side.io("q", "write -P 9 0 200k");
    side.write("pw", b"abc");
    side.write("conf", b"[inject-error]\nevent = \"l2_update\"\n");
    side
}

#[test]
fn leaves_without_storage_and_filters() {
    let mut side = images();
    for line in NODES.lines().map(str::trim).filter(|line| !line.is_empty()) {
        side.both("node", line);
    }
    // The reference takes 0 for no granularity.
    for (name, made) in [
        ("ours", side.ours("bitmap --add -g 0 bm ours")),
        ("theirs", side.theirs("bitmap --add -g 0 bm theirs")),
    ] {
        let info = side.make("info bm");
        let (_, about) = info.split_once(&format!("name: {name}")).expect("the bitmap");
        side.expect_alike(
            name,
            &(made.code, about.lines().nth(1)),
            &(0, Some("            granularity: 65536")),
        );
    }
    side.finish();
}

/// One command line a line.
const NODES: &str = r#"
    info --image-opts driver=qcow2,file.driver=blkdebug,file.image.filename=top
    info --output=json --backing-chain --image-opts driver=qcow2,file.driver=blkdebug,file.image.filename=top
    info --backing-chain blkdebug::top
    info --output=json blkdebug:conf:top
    info blkdebug:conf:blkdebug::top
    info -f raw blkdebug::top
    info --backing-chain --image-opts driver=compress,file.driver=qcow2,file.file.filename=top
    info --output=json --image-opts driver=compress,file.driver=qcow2,file.file.filename=top
    info --image-opts driver=copy-on-read,file.driver=raw,file.file.filename=r
    info --output=json --image-opts driver=blkdebug,image.driver=qcow2,image.file.filename=top
    info --image-opts driver=blkdebug,image.driver=compress,image.file.driver=qcow2,image.file.file.filename=top
    info --backing-chain --image-opts driver=blkverify,raw.filename=base,test.driver=qcow2,test.file.filename=top
    info --output=json --image-opts driver=blkverify,raw.filename=r,test.driver=raw,test.file.filename=r
    info --image-opts driver=blkverify,raw.driver=blkdebug,raw.image.filename=r,test.driver=raw,test.file.driver=blkdebug,test.file.image.filename=r
    info --image-opts driver=blkverify,raw.filename=r,test.driver=raw,test.offset=0,test.file.filename=r
    info blkverify:r:r
    map --output=json --image-opts driver=blkverify,raw.filename=r,test.driver=qcow2,test.file.filename=q
    info --image-opts driver=blklogwrites,file.filename=base,log.filename=pw
    info --image-opts driver=blklogwrites,log-sector-size=4096,file.filename=base,log.filename=pw
    info --image-opts driver=preallocate,prealloc-size=1M,file.filename=base
    info --image-opts driver=preallocate,file.driver=blkdebug,file.image.filename=base
    info --output=json --image-opts driver=qcow2,file.driver=preallocate,file.file.filename=top
    info --image-opts driver=raw,offset=512,size=1024,file.filename=base
    info --image-opts driver=raw,file.driver=raw,file.file.filename=base
    info --output=json --backing-chain --image-opts driver=raw,file.driver=qcow2,file.file.filename=top
    info --image-opts driver=qcow2,file.driver=raw,file.offset=0,file.file.filename=top
    info --image-opts driver=qcow2,file.driver=blklogwrites,file.file.filename=top,file.log.filename=pw
    info --image-opts driver=compress,file.driver=raw,file.offset=512,file.file.filename=base
    info --image-opts driver=qcow2,file.driver=blkdebug,file.config=conf,file.align=4096,file.image.filename=top
    info json:{"driver":"blkdebug","align":4096,"image":{"driver":"file","filename":"base"}}
    info json:{"driver":"blkdebug","inject-error":[{"event":"l2_update","errno":5}],"image":{"driver":"file","filename":"base"}}
    info --image-opts driver=blkdebug,set-state.0.event=l2_update,set-state.0.new_state=5,image.driver=file,image.filename=base,max-transfer=65536,opt-write-zero=4096
    info --image-opts driver=null-co,size=1M,latency-ns=5,read-zeroes=on
    info --image-opts driver=raw,file.driver=null-co,file.read-zeroes=on
    info --image-opts driver=raw,file.driver=null-co,file.latency-ns=5
    info --image-opts driver=raw,file.driver=null-aio
    info json:{"driver":"raw","size":1024,"file":{"driver":"null-co","size":4096}}
    info --image-opts driver=qcow2,lazy-refcounts=on,file.filename=top,file.locking=off,read-only=on
    info --image-opts driver=qcow2,file.filename=top,backing=null
    info json:{"driver":"qcow2","backing":null,"file":{"driver":"file","filename":"top"}}
    info json:{"driver":"qcow2","backing":{"driver":"raw","file":{"driver":"file","filename":"base"}},"file":{"driver":"file","filename":"top"}}
    info --image-opts driver=null-co
    info --output=json --image-opts driver=null-co
    info --output=json --image-opts driver=null-co,size=1M,read-zeroes=on
    info --output=json --image-opts driver=raw,file.driver=null-co
    info --output=json --image-opts driver=null-aio,size=1M
    map --image-opts driver=null-co,size=1M
    map --output=json --image-opts driver=null-co,size=1M
    map --output=json --image-opts driver=null-co,size=1M,read-zeroes=on
    map --output=json --image-opts driver=raw,file.driver=null-co,file.size=1M
    measure --image-opts -O qcow2 driver=null-co,size=1M
    measure --image-opts -O qcow2 driver=null-co,size=1M,read-zeroes=on
    compare --image-opts driver=null-co,size=1M,read-zeroes=on driver=raw,file.filename=r
    convert --image-opts -O raw driver=null-co,size=1M,read-zeroes=on out
    resize --image-opts driver=null-co,size=1M 2M
    resize --image-opts driver=raw,file.driver=null-co,file.size=1M 2M
    check --image-opts driver=null-co
    map --output=json --image-opts driver=qcow2,file.driver=blkdebug,file.image.filename=q
    map --output=json --image-opts driver=copy-on-read,file.driver=qcow2,file.file.filename=top
    snapshot -a nope --image-opts driver=raw,file.filename=r
    create --object secret,id=s,file=nope x 1M
    create --object secret,id=s,file=pw x 1M
    create --object secret,id=s,data=a,keyid=t x 1M
    create --object iothread,id=i x 1M
    create --object rng-random,id=i x 1M
    create --object nonsense,id=i x 1M
    rebase -b nope top
    rebase -b nope -F qcow2 top
    rebase -b foo:bar -F qcow2 top
    rebase -b base top
    rebase -f raw -b base r
    rebase -f raw -b nope -F raw r
    rebase -f raw -u -b base -F qcow2 r
    rebase -c -f raw -b base -F qcow2 r
    convert -O qcow2 --bitmaps -o compat=0.10 bm out
    convert -n -O raw --bitmaps bm r
"#;

/// A filter's children have the names that the reference gives them, and its file is not looked at for the space it takes.
#[test]
fn filters_show_their_children() {
    let side = images();
    for (line, shown) in [
        ("driver=qcow2,file.driver=blkdebug,file.image.filename=q", vec!["/file", "/file/image"]),
        (
            "driver=blkverify,raw.filename=r,test.driver=qcow2,test.file.filename=q",
            vec!["/test", "/test/file", "/raw"],
        ),
        ("driver=blklogwrites,file.filename=r,log.filename=pw", vec!["/log", "/file"]),
    ] {
        for run in [
            side.ours(&format!("info --image-opts {line}")),
            side.theirs(&format!("info --image-opts {line}")),
        ] {
            assert_eq!(run.code, 0, "{line}: {}", run.stderr);
            let names = run.stdout.lines().filter_map(|line| line.trim().strip_prefix("Child node '"));
            let names: Vec<_> = names.map(|name| name.trim_end_matches("':")).collect();
            assert_eq!(names, shown, "{line}");
            let unavailable = run.stdout.matches("disk size: unavailable").count();
            assert_eq!(unavailable > 0, !line.contains("log"), "{line}: {}", run.stdout);
        }
    }
}

/// The sizes of what zeros become, and what stays of a target.
#[test]
fn zeros_and_targets_of_convert() {
    let mut side = images();
    for line in [
        "convert -S 0 -O qcow2 base out",
        "convert -S 0 -n -O qcow2 base q",
        "convert -S 0 -O qcow2 -B base -F qcow2 top out",
        "convert -n -B base -F qcow2 -O qcow2 top q",
        "convert -n -B base -F qcow2 -O qcow2 base q",
    ] {
        let target = line.rsplit(' ').next().expect("a word");
        let mut left = Vec::new();
        for ours in [true, false] {
            side.make("create -q -f qcow2 q 1M");
            side.io("q", "write -P 9 0 1M");
            let run = if ours { side.ours(line) } else { side.theirs(line) };
            let map = side.make(&format!("map --output=json {target}"));
            let map: Vec<_> =
                map.lines().map(|line| line.split("\"offset\"").next().unwrap_or("").to_owned()).collect();
            side.make(&format!("convert -O raw {target} shown"));
            left.push((
                run,
                map,
                side.read("shown").into_iter().fold(7u64, |sum, byte| sum.wrapping_mul(31) + u64::from(byte)),
            ));
        }
        side.expect_alike(line, &left[0], &left[1]);
    }
    side.finish();
}

#[test]
fn a_check_counts_what_a_table_beyond_the_end_means() {
    let mut side = images();
    let good = side.read("q");
    for (at, place) in [(40, 0x1000_0000_u64), (40, 0x70_0000_0000_0000), (40, 0xa_0000), (48, 0x1000_0000)] {
        let mut bytes = good.clone();
        bytes[at..at + 8].copy_from_slice(&place.to_be_bytes());
        for line in ["check q", "check --output=json q", "check -r leaks q"] {
            side.write("q", &bytes);
            let theirs = side.theirs(line);
            side.write("q", &bytes);
            let ours = side.ours(line);
            side.expect_alike(&format!("{at}, {place:#x}: {line}"), &ours, &theirs);
        }
    }
    side.finish();
}

#[test]
fn names_in_an_image_do_not_steer_a_terminal() {
    let side = images();
    let name = "a\u{1b}[2J\u{7}b";
    for (image, made) in [
        ("back", "create -q -f qcow2 -u -b PLACEHOLD -F raw back 1M"),
        ("data", "create -q -f qcow2 -o data_file=PLACEHOLD data 1M"),
    ] {
        side.make(made);
        let mut bytes = side.read(image);
        let at = bytes.windows(9).position(|nine| nine == b"PLACEHOLD").expect("the name");
        bytes[at..at + 7].copy_from_slice(name.as_bytes());
        bytes[at + 7..at + 9].copy_from_slice(b"bb");
        side.write(image, &bytes);
    }
    side.make("create -q -f qcow2 snap 1M");
    side.make(&format!("snapshot -c {name} snap"));
    side.make("create -q -f qcow2 feature 1M");
    let mut bytes = side.read("feature");
    let at = bytes.windows(9).position(|nine| nine == b"dirty bit").expect("the feature name table");
    bytes[at..at + 7].copy_from_slice(name.as_bytes());
    // The name is that of bit 7, which the image has.
    bytes[at - 1] = 7;
    bytes[79] |= 0x80;
    side.write("feature", &bytes);
    for line in [
        "info back",
        "map back",
        "info --backing-chain back",
        "info --inspect back",
        "info data",
        "map data",
        "info snap",
        "snapshot -l snap",
        "snapshot -d a snap",
        "info feature",
        "check feature",
        "info --output=json back",
        "check --output=json back",
    ] {
        let run = side.ours(line);
        let steers = |text: &str| text.chars().any(|c| c.is_control() && c != '\n');
        assert!(!steers(&run.stdout) && !steers(&run.stderr), "{line}: {run:?}");
        let told = run.stdout + &run.stderr;
        let forms = ["\\x1b[2J\\x07b", "\\u001B[2J\\u0007b", "\\u001b[2J\\u0007b", "\\u{1b}[2J\\u{7}b"];
        let escaped = forms.iter().any(|form| told.contains(form));
        let tells = !matches!(line, "snapshot -d a snap" | "check --output=json back");
        assert!(escaped || !tells, "{line}: {told}");
    }
}

/// Labels are ours; the reference's events are places in its code.
#[test]
fn a_trace_shows_the_intents_that_it_names() {
    let side = images();
    side.our_make("-T qcow2.load/*,file=lines map q");
    let lines = String::from_utf8(side.read("lines")).expect("text");
    assert!(lines.lines().any(|line| line.starts_with("qcow2.load/l2_table read ")), "{lines}");
    assert!(lines.lines().all(|line| line.starts_with("qcow2.load/")), "{lines}");
    side.write("wanted", b"# a comment\nopen*\n");
    let run = side.ours("-T events=wanted map q");
    assert!(run.stderr.lines().any(|line| line.contains("open") && line.contains(" ro")), "{}", run.stderr);
    for help in ["help", "?", "enable=help", "file=n,enable=?"] {
        let run = side.ours(&format!("-T {help} info q"));
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{help}");
        assert!(run.stdout.starts_with("Events are the labels of intents"), "{help}: {}", run.stdout);
    }
    let run = side.ours("-T events=n info q");
    assert_eq!((run.code, run.stderr.as_str()), (1, "qemu-img: n: No such file or directory\n"));
    let run = side.ours("-T bdrv_open_common info q");
    assert_eq!(
        (run.code, run.stderr.matches("trace event 'bdrv_open_common' does not exist").count()),
        (0, 1)
    );
    side.finish();
}

/// `openssl enc -aes-256-cbc` with a key of 32 `k` and an `iv` of 16 `v`, of `hunter22`, and without padding of fifteen bytes
/// and 0x00, 0x05, 0x11.
const ENCRYPTED: &[&str] = &[
    "AUGz+B2oaGA9kcw+97gIqA==",
    "HsR/fwhmOomTsehIvAjq3g==",
    "/DkYtDNPEnUdx+NXGudajw==",
    "GzUsyEZ57BhdD6KNPlfGnA==",
];

/// Secrets: what there is to read of each, and what the reference says of those that are none.
#[test]
fn secrets_are_read_as_the_reference_reads_them() {
    let mut side = images();
    side.write("binary", b"a\xff\xfeb");
    side.write("lines", b"QUFB\nQUFB\r\n");
    side.write("nul", b"QUFB\0QUFB");
    side.write("blank", b"QU FB");
    let key = format!("--object secret,id=k,format=base64,data={}=", "a2tr".repeat(10) + "a2s");
    let iv = "iv=dnZ2dnZ2dnZ2dnZ2dnZ2dg==";
    let encrypted = |more: &str| format!("{key} --object secret,id=s,keyid=k,{more}");
    let mut objects: Vec<String> =
        ENCRYPTED.iter().map(|data| encrypted(&format!("{iv},format=base64,data={data}"))).collect();
    objects.extend(
        [
            "format=base64,data=AAAA",
            "iv=AAAA,format=base64,data=AAAA",
            "iv=,format=base64,data=AAAA",
            "iv=A*A,format=base64,data=AAAA",
        ]
        .map(encrypted),
    );
    objects.extend(
        ["format=base64,data=AAAA", "format=base64,data=A*AA", "data=abc"]
            .map(|data| encrypted(&format!("{iv},{data}"))),
    );
    for object in [
        "secret,id=s,keyid=s,data=x",
        "secret,id=s,keyid=none,iv=zz,data=x",
        "throttle-group,id=k --object secret,id=s,keyid=k,data=x",
        "secret,id=k,data=short --object secret,id=s,keyid=k,data=x",
        "secret,id=s,iv=zz,data=x",
        "secret,id=s,data=",
        "secret,id=s,format=base64,data=AAA",
        "secret,id=s,format=base64,data=A=AA",
        "secret,id=s,format=base64,data=A-AA",
        "secret,id=s,file=binary",
        "secret,id=s,file=binary,format=base64",
        "secret,id=s,file=lines,format=base64",
        "secret,id=s,file=nul,format=base64",
        "secret,id=s,file=blank,format=base64",
        "secret,id=s,file=.",
        "secret,id=s,file=",
    ] {
        objects.push(format!("--object {object}"));
    }
    for objects in objects {
        side.both("secret", &format!("info -f raw r {objects}"));
        let measure = format!("measure -O luks -o key-secret=s,iter-time=10 --size 1M {objects}");
        side.both("passphrase", &measure);
    }
    side.both("no secret", "measure -O luks -o key-secret=s --size 1M --object throttle-group,id=s");
    side.finish();
}

#[test]
fn a_bench_that_writes_says_what_it_took_the_image_for() {
    let mut side = images();
    for line in ["bench -w -c 2 r", "bench -c 2 r", "bench -w -c 2 -f raw r", "bench -w -c 2 q"] {
        let (ours, theirs) = (side.ours(line), side.theirs(line));
        side.expect_alike(line, &(ours.stderr, ours.code), &(theirs.stderr, theirs.code));
    }
    side.finish();
}

/// In one file, what is said on both streams comes in the reference's order: a report is written at the end.
#[test]
fn a_repair_says_the_same_on_one_stream() {
    let mut side = images();
    let mut leaking = side.read("q");
    // The refcount of the first cluster of data.
    leaking[0x20000 + 2 * 5 + 1] = 2;
    let merged = |side: &Side, mut command: std::process::Command| {
        side.write("leaking", &leaking);
        let file = std::fs::File::create(side.path("merged")).expect("a file");
        let both = file.try_clone().expect("a second handle");
        let status = command.stdout(file).stderr(both).status().expect("the tool runs");
        (String::from_utf8_lossy(&side.read("merged")).into_owned(), status.code())
    };
    for line in ["check -r leaks leaking", "check -r all leaking", "check leaking"] {
        let ours = merged(&side, side.our_command(line));
        let theirs = merged(&side, side.command("qemu-img", line));
        side.expect_alike(line, &ours, &theirs);
    }
    side.finish();
}

/// Neither node has a name, so that both are told by the same one while they are opened.
#[test]
fn two_formats_do_not_write_to_one_leaf() {
    let side = images();
    let both = r#"json:{"driver":"qcow2","file":{"driver":"file","node-name":"n","filename":"q"},"backing":{"driver":"qcow2","file":"n","backing":null}}"#;
    for run in [side.ours(&format!("bench -w -c 1 {both}")), side.theirs(&format!("bench -w -c 1 {both}"))] {
        let conflict = "Permission conflict on node 'n': permissions 'write, resize' are both required";
        assert!(run.code == 1 && run.stderr.contains(conflict), "{}: {}", run.code, run.stderr);
    }
}
