//! `drystone-img` and the installed `qemu-img` on each other's qcow2 images.

mod side;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;

use side::{EXECUTORS, Run, Side, disk};

/// Options of `-f qcow2`; `data_file` names are the image's with `.data` behind it.
const OPTIONS: &[&str] = &[
    "cluster_size=64k",
    "cluster_size=512",
    "cluster_size=4k",
    "cluster_size=2M",
    "compat=0.10",
    "compat=0.10,cluster_size=1k",
    "refcount_bits=1",
    "refcount_bits=2,cluster_size=512",
    "refcount_bits=8",
    "refcount_bits=32",
    "refcount_bits=64,cluster_size=4k",
    "extended_l2=on",
    "extended_l2=on,cluster_size=16k",
    "extended_l2=on,cluster_size=2M,refcount_bits=64",
    "compression_type=zstd",
    "compression_type=zstd,cluster_size=4k",
    "data_file=DATA",
    "data_file=DATA,data_file_raw=on",
    "data_file=DATA,extended_l2=on",
    "lazy_refcounts=on",
    "lazy_refcounts=on,extended_l2=on,refcount_bits=8,cluster_size=32k",
];

const LEN: usize = (5 << 20) + 512;

/// What is shown of an image must be shown alike, and what it holds must be the same.
///
/// The files are made dense first: where a file has fewer blocks than its refcounts say, the reference's `map` goes down
/// to the holes of the file, and ours stays with what the format says.
fn hold_beside(side: &mut Side, about: &str, image: &str) {
    for name in [image.to_owned(), format!("{image}.data")] {
        if side.path(&name).exists() {
            side.write(&name, &side.read(&name));
        }
    }
    for args in ["info", "info --output=json", "map", "map --output=json", "check", "check --output=json"] {
        side.both(about, &format!("{args} {image}"));
    }
    side.both(about, &format!("info -f qcow2 --backing-chain --output=json {image}"));
    side.both(about, &format!("map --output=json -s 1000k -l 700k {image}"));
    side.both(about, &format!("info -U {image}"));
    side.make(&format!("convert -O raw {image} expected"));
    let run = side.ours(&format!("convert -O raw {image} found"));
    side.expect_alike(&format!("{about}: convert"), &(run.code, run.stderr.as_str()), &(0, ""));
    if run.code == 0 && side.read("expected") != side.read("found") {
        side.complain(&format!("{about}: convert gave other bytes"));
    }
    side.both(about, &format!("compare {image} expected"));
    side.remove("found");
}

fn with_data_file(options: &str, image: &str) -> String {
    options.replace("DATA", &format!("{image}.data"))
}

/// An image made and changed by the reference.
fn their_image(side: &Side, options: &str, image: &str) {
    let options = with_data_file(options, image);
    side.make(&format!("create -q -f qcow2 -o {options} {image} {LEN}"));
    side.io(image, "write -P 1 0 100k; write -P 2 200k 1M; write -z 300k 200k; discard 700k 256k");
    let plain = !options.contains("data_file");
    if plain && !options.contains("refcount_bits=1") {
        side.make(&format!("snapshot -c first {image}"));
    }
    side.io(image, "write -P 3 64k 128k; write -P 4 4500k 512; write -P 5 5M 512; write -z -u 4M 300k");
    if plain {
        // Compressed writes end at the end of the disk or of a cluster.
        side.io(image, if options.contains("=2M") { "write -c -P 6 2M 2M" } else { "write -c -P 6 2M 1M" });
    }
}

#[test]
fn their_images_are_read() {
    let mut side = Side::new();
    for (number, options) in OPTIONS.iter().enumerate() {
        let image = format!("i{number}.qcow2");
        their_image(&side, options, &image);
        hold_beside(&mut side, options, &image);
    }
    side.finish();
}

#[test]
fn their_converted_images_are_read() {
    let mut side = Side::new();
    side.write("source", &disk(LEN, 7));
    for (number, options) in OPTIONS.iter().enumerate() {
        for compress in ["", "-c "] {
            if !compress.is_empty() && options.contains("data_file") {
                continue;
            }
            let image = format!("i{number}.qcow2");
            let made = with_data_file(options, &image);
            side.make(&format!("convert {compress}-f raw -O qcow2 -o {made} source {image}"));
            hold_beside(&mut side, &format!("{compress}{options}"), &image);
            side.remove(&image);
        }
    }
    side.finish();
}

#[test]
fn our_images_are_read_by_them() {
    let mut side = Side::new();
    side.write("source", &disk(LEN, 99));
    for (number, options) in OPTIONS.iter().enumerate() {
        for flags in ["", "-c", "-W -m 16", "-S 64k", "-S 0", "-C"] {
            if flags == "-c" && options.contains("data_file") {
                continue;
            }
            let image = format!("o{number}.qcow2");
            let about = format!("convert {flags} -o {options}");
            let made = with_data_file(options, &image);
            let run = side.ours(&format!("convert {flags} -f raw -O qcow2 -o {made} source {image}"));
            side.expect_alike(&about, &(run.code, run.stderr.as_str()), &(0, ""));
            let run = side.theirs(&format!("check -f qcow2 {image}"));
            side.expect_alike(&about, &run.code, &0);
            let run = side.theirs(&format!("compare -f raw -F qcow2 source {image}"));
            side.expect_alike(&about, &run.stdout.as_str(), &"Images are identical.\n");
            hold_beside(&mut side, &about, &image);
            side.remove(&image);
        }
    }
    side.finish();
}

#[test]
fn images_that_we_create_are_used_by_them() {
    let mut side = Side::new();
    for (number, options) in OPTIONS.iter().enumerate() {
        let image = format!("c{number}.qcow2");
        let made = with_data_file(options, &image);
        let line = format!("create -f qcow2 -o {made} {image} {LEN}");
        let theirs = side.theirs(&line);
        let info = side.make(&format!("info --output=json {image}"));
        let header = side.read(&image)[..104].to_vec();
        side.remove(&image);
        let ours = side.ours(&line);
        side.expect_alike(&line, &ours, &theirs);
        side.expect_alike(&format!("{line}: header"), &side.read(&image)[..104].to_vec(), &header);
        let without_sizes = |info: String| {
            let kept = info.lines().filter(|line| !line.contains("\"actual-size\"") && !is_file_len(line));
            kept.map(str::to_owned).collect::<Vec<_>>()
        };
        let found = without_sizes(side.make(&format!("info --output=json {image}")));
        side.expect_alike(&format!("{line}: info"), &found, &without_sizes(info));
        side.io(&image, "write -P 1 0 100k; write -P 2 200k 1M; write -z 300k 200k; discard 700k 256k");
        let run = side.theirs(&format!("check {image}"));
        side.expect_alike(&format!("{line}: check"), &run.code, &0);
        hold_beside(&mut side, options, &image);
    }
    side.finish();
}

/// Whether a line of `info` tells the length of the file itself, which depends on how full the image is.
fn is_file_len(line: &str) -> bool {
    line.contains("\"virtual-size\"") && !line.contains(&LEN.to_string())
}

#[test]
fn backing_chains_are_read() {
    let mut side = Side::new();
    std::fs::create_dir(side.path("sub")).unwrap();
    side.write("base.raw", &disk(3 << 20, 5));
    side.make("create -q -f qcow2 -b base.raw -F raw mid.qcow2 2M");
    side.io("mid.qcow2", "write -P 9 100k 64k; write -z 1M 128k");
    side.make("create -q -f qcow2 -o cluster_size=4k -b ../mid.qcow2 -F qcow2 sub/top.qcow2 4M");
    side.io("sub/top.qcow2", "write -P 8 512 512; write -P 7 2047k 2k; write -z 0 512; discard 1100k 4k");
    side.make(
        "create -q -f qcow2 -o extended_l2=on,cluster_size=128k -b sub/top.qcow2 -F qcow2 x.qcow2 4500k",
    );
    side.io("x.qcow2", "write -P 6 4k 4k; write -P 5 4095k 2k; write -z 8k 4k");
    side.make("create -q -f qcow2 -b base.raw -F raw short.qcow2 64k");
    side.make("create -q -f qcow2 -u -b nowhere.raw -F raw lost.qcow2 64k");
    side.make("create -q -f qcow2 -o compat=0.10 -b base.raw -F raw old.qcow2 3M");
    for image in ["mid.qcow2", "sub/top.qcow2", "x.qcow2", "short.qcow2", "old.qcow2"] {
        hold_beside(&mut side, "chain", image);
        side.both("chain", &format!("info --backing-chain {image}"));
    }
    for args in ["info lost.qcow2", "info --backing-chain lost.qcow2", "map lost.qcow2", "check lost.qcow2"] {
        side.both("lost", args);
    }
    side.both("lost", "convert -O raw lost.qcow2 y");
    side.both("lost", "compare lost.qcow2 base.raw");
    side.finish();
}

#[test]
fn backing_chains_are_made() {
    let mut side = Side::new();
    let base = disk(3 << 20, 5);
    side.write("base.raw", &base);
    let mut changed = base;
    changed[1_000_000..1_100_000].fill(7);
    changed[2_000_000..2_100_000].fill(0);
    changed.resize(4 << 20, 0);
    changed[3_500_000..3_500_512].fill(3);
    side.write("changed.raw", &changed);
    for options in ["cluster_size=64k", "cluster_size=512", "extended_l2=on,cluster_size=16k"] {
        side.make("create -q -f qcow2 -b base.raw -F raw diff.qcow2 4M");
        side.make("convert -n -f raw -O qcow2 changed.raw diff.qcow2");
        for flags in ["", "-c"] {
            let convert = format!("convert {flags} -O qcow2 -o {options} -B base.raw -F raw diff.qcow2");
            let theirs = side.theirs(&format!("{convert} theirs.qcow2"));
            let ours = side.ours(&format!("{convert} ours.qcow2"));
            side.expect_alike(&convert, &ours, &theirs);
            let check = side.theirs("check -q ours.qcow2");
            side.expect_alike(&format!("{convert}: check"), &(check.code, check.stderr.as_str()), &(0, ""));
            let compare = side.theirs("compare -F raw ours.qcow2 changed.raw");
            side.expect_alike(
                &format!("{convert}: compare"),
                &compare.stdout.as_str(),
                &"Images are identical.\n",
            );
            hold_beside(&mut side, &convert, "ours.qcow2");
        }
    }
    for line in [
        "create -f qcow2 -b base.raw -F raw c.qcow2",
        "create -f qcow2 -b base.raw -F raw c.qcow2 1M",
        "create -f qcow2 -b base.raw c.qcow2",
        "create -f qcow2 -u -b nowhere -F raw c.qcow2 1M",
        "create -f qcow2 -b nowhere -F raw c.qcow2 1M",
        "create -f qcow2 -b nowhere -F raw c.qcow2",
        "create -f qcow2 -b base.raw -F qcow2 c.qcow2",
        "create -f qcow2 -b ours.qcow2 -F qcow2 c.qcow2",
        "create -f qcow2 -b ours.qcow2 -F nope c.qcow2",
        "create -f qcow2 -o cluster_size=3k c.qcow2 1M",
        "create -f qcow2 -o cluster_size=256 c.qcow2 1M",
        "create -f qcow2 -o cluster_size=4M c.qcow2 1M",
        "create -f qcow2 -o refcount_bits=3 c.qcow2 1M",
        "create -f qcow2 -o refcount_bits=128 c.qcow2 1M",
        "create -f qcow2 -o compat=0.10,refcount_bits=8 c.qcow2 1M",
        "create -f qcow2 -o compat=0.10,lazy_refcounts=on c.qcow2 1M",
        "create -f qcow2 -o compat=0.10,extended_l2=on c.qcow2 1M",
        "create -f qcow2 -o compat=0.10,compression_type=zstd c.qcow2 1M",
        "create -f qcow2 -o extended_l2=on,cluster_size=8k c.qcow2 1M",
        "create -f qcow2 -o compat=0.11 c.qcow2 1M",
        "create -f qcow2 -o compression_type=lzma c.qcow2 1M",
        "create -f qcow2 -o data_file_raw=on c.qcow2 1M",
        "create -f qcow2 -o cluster_size=512 c.qcow2 1P",
        "create -f qcow2 c.qcow2 9E",
        "create -f qcow2 nowhere/c.qcow2 1M",
        "create -f raw nowhere/c.raw 1M",
        "create -f raw c.raw 1000",
        "create -f raw c.raw 9E",
        "create -f raw -o preallocation=foo c.raw 1M",
        "create -f qcow2 -o preallocation=foo c.qcow2 1M",
        "create -f qcow2 c.qcow2 1000",
        "create -f qcow2 c.qcow2 0",
        &format!("create -f qcow2 -u -b {} -F raw c.qcow2 1M", "b".repeat(1023)),
        &format!("create -f qcow2 -u -b {} -F raw c.qcow2 1M", "b".repeat(1024)),
        &format!("create -f qcow2 -u -b {} c.qcow2 1M", "b".repeat(1024)),
    ] {
        side.remove("c.qcow2");
        side.both("create", line);
    }
    side.finish();
}

#[test]
fn ways_to_convert() {
    let mut side = Side::new();
    side.write("a.raw", &disk(1_500_000 / 512 * 512, 1));
    side.write("b.raw", &disk((2 << 20) + 512, 2));
    side.write("odd.raw", &disk(1 << 20, 3)[..700_001]);
    side.make("convert -f raw -O qcow2 a.raw a.qcow2");
    side.make("snapshot -c first a.qcow2");
    side.io("a.qcow2", "write -P 3 0 300k");
    side.make("snapshot -c second a.qcow2");
    side.io("a.qcow2", "discard 0 1M");
    for (executor, line) in EXECUTORS.iter().flat_map(|executor| WAYS.iter().map(move |way| (executor, way)))
    {
        let (flags, rest) = line.split_once(" : ").unwrap_or(("", line));
        for name in ["ours", "theirs"] {
            // A target that exists and holds something, for -n.
            if flags.contains("-n") || rest.contains("-n ") {
                let zero = rest.contains("target-is-zero");
                side.make(&format!("create -q -f qcow2 {name}.out 4M"));
                if !zero {
                    side.io(&format!("{name}.out"), "write -P 5 0 4M");
                }
            }
        }
        let line = line.replace(" : ", " ");
        let ours = side.ours(
            &line.replace("convert", &format!("convert --executor {executor}")).replace("OUT", "ours.out"),
        );
        let mut theirs = side.theirs(&line.replace("OUT", "theirs.out"));
        theirs.stderr = theirs.stderr.replace("theirs.out", "ours.out");
        side.expect_alike(&format!("{executor}: {line}"), &ours, &theirs);
        if theirs.code == 0 {
            let run = side.theirs("compare ours.out theirs.out");
            side.expect_alike(&format!("{executor}: {line}: bytes"), &run.code, &0);
        }
        side.remove("ours.out");
        side.remove("theirs.out");
    }
    side.finish();
}

/// Command lines of `convert`; `a.qcow2` has the snapshots `first` and `second`.
const WAYS: &[&str] = &[
    "convert a.qcow2 OUT",
    "convert -O raw a.qcow2 OUT",
    "convert -O qcow2 a.qcow2 OUT",
    "convert -l first -O raw a.qcow2 OUT",
    "convert -l 2 -O raw a.qcow2 OUT",
    "convert -l snapshot.name=second -O qcow2 a.qcow2 OUT",
    "convert -l snapshot.id=1 -O qcow2 a.qcow2 OUT",
    "convert -l snapshot.id=1,snapshot.name=second -O qcow2 a.qcow2 OUT",
    "convert -l third -O qcow2 a.qcow2 OUT",
    "convert -l first -O qcow2 -f raw a.raw OUT",
    "convert -f raw -O raw a.raw b.raw OUT",
    "convert -f raw -O raw odd.raw b.raw odd.raw OUT",
    "convert -f raw -O qcow2 odd.raw a.raw OUT",
    "convert -c -f raw -O qcow2 -o cluster_size=4k odd.raw odd.raw a.raw OUT",
    "convert -f raw -O qcow2 b.raw a.raw b.raw OUT",
    "convert -f raw -c -O qcow2 b.raw a.raw b.raw OUT",
    "convert -S 0 -f raw -O raw b.raw OUT",
    "convert -S 64k -f raw -O raw b.raw OUT",
    "convert -S 0 -f raw -O qcow2 b.raw OUT",
    "convert -S 512 -f raw -O qcow2 b.raw OUT",
    "convert -S 1000 -f raw -O qcow2 b.raw OUT",
    "convert -n -f raw -O qcow2 b.raw OUT",
    "convert -n -f raw -O qcow2 --target-is-zero b.raw OUT",
    "convert -n -f raw --target-image-opts b.raw driver=qcow2,file.filename=OUT",
    "convert -n -f raw -O raw b.raw a.raw b.raw OUT",
    "convert -n -f raw b.raw OUT nowhere",
    "convert -m 1 -f raw -O qcow2 b.raw OUT",
    "convert -m 16 -W -f raw -O qcow2 b.raw OUT",
    "convert -W -f raw -O raw b.raw OUT",
    "convert -C -f raw -O raw b.raw OUT",
    "convert -C -f raw -O qcow2 b.raw OUT",
    "convert -C -O raw a.qcow2 OUT",
    "convert -T none -t none -f raw -O qcow2 b.raw OUT",
    "convert -T directsync -t directsync -f raw -O qcow2 b.raw OUT",
    "convert -T writethrough -t writethrough -O raw a.qcow2 OUT",
    "convert -T unsafe -t writeback -O raw a.qcow2 OUT",
    "convert -t bogus -O raw a.qcow2 OUT",
    "convert -p -q -f raw -O qcow2 b.raw OUT",
    "convert --image-opts -O raw driver=qcow2,file.filename=a.qcow2 OUT",
    "convert --image-opts -O raw driver=raw,file.driver=file,file.filename=a.raw,offset=512,size=64k OUT",
    "convert -O raw json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"a.qcow2\"}} OUT",
    "convert -O raw json:{\"file.filename\":\"a.qcow2\"} OUT",
    "convert -U -O raw a.qcow2 OUT",
    "convert --salvage -O raw a.qcow2 OUT",
    "convert -r 100M -f raw -O raw b.raw OUT",
    "convert -f qcow2 -O raw a.raw OUT",
    "convert -f raw -O qcow2 nowhere OUT",
    "convert -O raw file:a.qcow2 OUT",
];

/// Everything in such an image is data to the format, and its file is one large hole.
#[test]
fn preallocated_metadata_is_not_copied() {
    let side = Side::new();
    side.make("create -q -f qcow2 -o preallocation=metadata image 16G");
    side.io("image", "write -P 7 3G 100k; write -P 8 9G 512");
    let begun = std::time::Instant::now();
    for args in ["-O raw image out", "-O qcow2 image out", "-c -O qcow2 image out"] {
        side.our_make(&format!("convert {args}"));
        side.make("compare image out");
        side.remove("out");
    }
    assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
}

#[test]
fn comparisons_are_told_alike() {
    let mut side = Side::new();
    let bytes = disk(2 << 20, 41);
    side.write("a.raw", &bytes);
    let mut other = bytes.clone();
    other[1_234_567] ^= 1;
    side.write("b.raw", &other);
    side.write("short.raw", &bytes[..1 << 20]);
    other = bytes;
    other.resize(3 << 20, 0);
    side.write("zeroes.raw", &other);
    side.make("convert -f raw -O qcow2 a.raw a.qcow2");
    for names in [
        "a.raw a.qcow2",
        "a.raw b.raw",
        "b.raw a.qcow2",
        "a.raw short.raw",
        "a.raw zeroes.raw",
        "nowhere a.raw",
    ] {
        for flags in ["", "-q"] {
            side.both("compare", &format!("compare {flags} {names}"));
        }
    }
    side.finish();
}

#[test]
fn executors_write_the_same_bytes() {
    let mut side = Side::new();
    side.write("source", &disk(LEN, 3));
    for flags in
        ["-O raw", "-O qcow2", "-c -O qcow2", "-W -O qcow2", "-O qcow2 -o extended_l2=on,cluster_size=16k"]
    {
        let mut first = None;
        for executor in EXECUTORS {
            side.our_make(&format!("convert --executor {executor} -m 1 -f raw {flags} source out"));
            let bytes = side.read("out");
            side.remove("out");
            let expected = first.get_or_insert_with(|| bytes.clone()).clone();
            if bytes != expected {
                side.complain(&format!("{executor}: {flags}: other bytes"));
            }
        }
    }
    side.finish();
}

/// What cannot be read is lost by the sector, and said.
#[test]
fn salvage_loses_only_what_cannot_be_read() {
    let mut side = Side::new();
    side.write("raw", &disk(2 << 20, 7));
    side.make("convert -f raw -O qcow2 raw q");
    side.make("create -q -f raw small 1000");
    let fails = |driver: &str, kind: &str, sector: &str| {
        let name = if driver == "raw" { "raw" } else { "q" };
        format!(
            r#"json:{{"driver":"{driver}","file":{{"driver":"blkdebug","image.filename":"{name}","inject-error":[{{"event":"none","iotype":"{kind}"{sector},"errno":5}}]}}}}"#
        )
    };
    let sources = [
        fails("raw", "read", ",\"sector\":200"),
        fails("raw", "read", ",\"sector\":4095"),
        fails("raw", "read", ""),
        fails("qcow2", "read", ",\"sector\":1800"),
        // The second source begins where the first, which ends inside a sector, has been filled up.
        format!("small {}", fails("raw", "read", ",\"sector\":200")),
    ];
    for source in &sources {
        for flags in ["-O raw", "-q -O raw", "-O qcow2", "-c -O qcow2", "-W -O qcow2", "-p -m 1 -O raw"] {
            let ours = side.ours(&format!("convert --salvage {flags} {source} ours"));
            let theirs = side.theirs(&format!("convert --salvage {flags} {source} theirs"));
            expect_told_alike(&mut side, &format!("{flags} {source}"), (&ours, &theirs), false);
            side.make("compare ours theirs");
        }
    }
    // The reference asks for each status twice, and says so twice; everything can be read all the same.
    for flags in ["-O raw", "-q -O raw", "-O qcow2", "-c -O qcow2"] {
        let source = fails("raw", "block-status", "");
        let ours = side.ours(&format!("convert --salvage {flags} {source} ours"));
        let theirs = side.theirs(&format!("convert --salvage {flags} {source} theirs"));
        expect_told_alike(&mut side, &format!("{flags} {source}"), (&ours, &theirs), true);
        side.make("compare ours raw");
    }
    side.finish();
}

/// Has both runs warn of the same, in whatever order the workers come to it; `once` of what is said again.
fn expect_told_alike(side: &mut Side, about: &str, (ours, theirs): (&Run, &Run), once: bool) {
    let lines = |run: &Run| {
        let mut lines: Vec<_> = run.stderr.lines().map(str::to_owned).collect();
        lines.sort();
        if once {
            lines.dedup();
        }
        lines
    };
    let (our_lines, their_lines) = (lines(ours), lines(theirs));
    side.expect_alike(about, &(ours.code, our_lines.len()), &(theirs.code, their_lines.len()));
    let other = our_lines.iter().zip(&their_lines).find(|(one, other)| one != other);
    if let Some((one, other)) = other {
        side.complain(&format!("{about}: ours: {one}, theirs: {other}"));
    }
}

/// A new image above one that somebody is writing to: nothing of it is read but its length.
#[test]
fn a_backing_file_may_be_in_use() {
    let mut side = Side::new();
    for line in
        ["create -q -f qcow2 base 1M", "create -q -f qcow2 -b base -F qcow2 mid", "create -q -f qed e 1M"]
    {
        side.make(line);
    }
    for (format, name) in [("qcow2", "base"), ("qed", "e")] {
        let mut writer = side.command("qemu-io", &format!("-f {format} {name}"));
        let writer = writer.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut writer = writer.expect("qemu-io is installed (package qemu-utils)");
        let mut input = writer.stdin.take().expect("a pipe");
        // Its answer says that it has the image open.
        input.write_all(b"write 0 512\n").expect("the writer reads");
        let mut lines = BufReader::new(writer.stdout.take().expect("a pipe")).lines();
        assert!(lines.any(|line| line.is_ok_and(|line| line.contains("wrote 512"))), "{name} is open");
        let locked = side.ours(&format!("map {name}"));
        assert!(locked.stderr.contains("Is another process using the image"), "{locked:?}");
        for line in [
            format!("create -f qcow2 -b {name} -F {format} new"),
            format!("create -f qcow2 -o backing_file={name},backing_fmt={format} new"),
            format!("create -f qed -b {name} -F {format} new"),
            "create -f qcow2 -b mid -F qcow2 new".to_owned(),
        ] {
            side.both("in use", &line);
        }
        drop(input);
        assert!(writer.wait().expect("the writer ends").success());
    }
    side.finish();
}
