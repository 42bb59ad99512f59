//! Snapshots, lengths, preallocation and amended headers: `drystone-img` and the installed `qemu-img` on each other's
//! images.

mod side;

use side::{EXECUTORS, Side};

/// Options of `-f qcow2` for images whose clusters are shared.
const OPTIONS: &[&str] = &[
    "cluster_size=64k",
    "cluster_size=512",
    "cluster_size=4k",
    "cluster_size=2M",
    "compat=0.10",
    "compat=0.10,cluster_size=1k",
    "refcount_bits=4,cluster_size=512",
    "refcount_bits=8",
    "refcount_bits=64,cluster_size=512",
    "refcount_bits=64,cluster_size=4k",
    "extended_l2=on",
    "extended_l2=on,cluster_size=16k,refcount_bits=8",
    "compression_type=zstd,cluster_size=4k",
    "lazy_refcounts=on",
];

/// Two tools: the one that makes a change, and whether it is ours.
fn run(side: &Side, ours: bool, args: &str) {
    if ours {
        side.our_make(args)
    } else {
        side.make(args)
    };
}

/// Both must find an image in order, and show the same of it.
fn in_order(side: &mut Side, about: &str, image: &str) {
    let code = side.theirs(&format!("check -q {image}")).code;
    side.expect_alike(&format!("{about}: their check"), &code, &0);
    let code = side.ours(&format!("check -q {image}")).code;
    side.expect_alike(&format!("{about}: our check"), &code, &0);
    side.both(about, &format!("info --output=json {image}"));
}

/// What the guest sees must be what a raw file holds, to both.
fn holds(side: &mut Side, about: &str, image: &str, raw: &str) {
    for theirs in [false, true] {
        let args = format!("compare -q -f raw -F qcow2 {raw} {image}");
        let run = if theirs { side.theirs(&args) } else { side.ours(&args) };
        side.expect_alike(&format!("{about}: {raw}"), &(run.code, run.stderr), &(0, String::new()));
    }
}

/// A snapshot must hold what a raw file holds.
fn snapshot_holds(side: &mut Side, about: &str, image: &str, tag: &str, raw: &str) {
    let convert = format!("convert -l snapshot.name={tag} -O raw {image} shown.raw");
    side.make(&convert);
    let same = side.read("shown.raw") == side.read(raw);
    side.expect_alike(&format!("{about}: snapshot {tag}"), &same, &true);
    side.our_make(&convert);
    let same = side.read("shown.raw") == side.read(raw);
    side.expect_alike(&format!("{about}: snapshot {tag}, read by us"), &same, &true);
}

#[test]
fn snapshots_are_shared_with_them() {
    let mut side = Side::new();
    for options in OPTIONS {
        // Who takes the first and the second snapshot, goes back, and deletes them.
        for makers in [[true, true, true, true], [true, false, true, false], [false, true, false, true]] {
            let about = format!("{options}, ours: {makers:?}");
            let [first, second, back, delete] = makers;
            let image = "i.qcow2";
            side.make(&format!("create -q -f qcow2 -o {options} {image} 5M"));
            side.io(image, "write -P 1 0 100k; write -P 2 200k 1M; discard 700k 256k");
            // Many packed clusters share one, more than narrow refcounts can count twice.
            if !["512", "1k", "refcount_bits=8"].iter().any(|short| options.contains(short)) {
                side.io(image, "write -c -P 6 2M 2M");
            }
            side.make(&format!("convert -O raw {image} one.raw"));
            run(&side, first, &format!("snapshot -c one {image}"));
            in_order(&mut side, &about, image);
            side.io(image, "write -P 3 64k 128k; write -P 4 4500k 4k; write -P 5 1M 512");
            in_order(&mut side, &about, image);
            side.make(&format!("convert -O raw {image} two.raw"));
            run(&side, second, &format!("snapshot -c two {image}"));
            side.io(image, "write -P 7 2M 200k; write -P 9 0 64k");
            side.both(&about, &format!("snapshot -l {image}"));
            in_order(&mut side, &about, image);
            snapshot_holds(&mut side, &about, image, "one", "one.raw");
            snapshot_holds(&mut side, &about, image, "two", "two.raw");
            run(&side, back, &format!("snapshot -a one {image}"));
            in_order(&mut side, &about, image);
            holds(&mut side, &about, image, "one.raw");
            run(&side, delete, &format!("snapshot -d one {image}"));
            in_order(&mut side, &about, image);
            holds(&mut side, &about, image, "one.raw");
            snapshot_holds(&mut side, &about, image, "two", "two.raw");
            side.io(image, "write -P 7 2M 200k; write -P 9 0 64k");
            run(&side, back, &format!("snapshot -a 2 {image}"));
            run(&side, delete, &format!("snapshot -d two {image}"));
            in_order(&mut side, &about, image);
            holds(&mut side, &about, image, "two.raw");
            side.both(&about, &format!("snapshot -l {image}"));
            side.remove(image);
        }
    }
    side.finish();
}

#[test]
fn a_disk_of_another_length_comes_back_with_its_snapshot() {
    let mut side = Side::new();
    for ours in [true, false] {
        side.make("create -q -f qcow2 i.qcow2 3M");
        side.io("i.qcow2", "write -P 1 0 3M");
        side.make("convert -O raw i.qcow2 three.raw");
        run(&side, ours, "snapshot -c three i.qcow2");
        run(&side, !ours, "resize -q i.qcow2 5000M");
        side.io("i.qcow2", "write -P 2 4000M 3M");
        run(&side, ours, "snapshot -c long i.qcow2");
        run(&side, ours, "snapshot -a three i.qcow2");
        in_order(&mut side, "back", "i.qcow2");
        holds(&mut side, "back", "i.qcow2", "three.raw");
        run(&side, !ours, "snapshot -a long i.qcow2");
        in_order(&mut side, "forth", "i.qcow2");
        side.both("forth", "map --output=json i.qcow2");
        run(&side, ours, "snapshot -d long i.qcow2");
        in_order(&mut side, "deleted", "i.qcow2");
    }
    side.finish();
}

/// Every executor does the same.
#[test]
fn executors_agree_on_snapshots() {
    let side = Side::new();
    for executor in EXECUTORS {
        side.make("create -q -f qcow2 i.qcow2 3M");
        side.io("i.qcow2", "write -P 1 0 1M");
        for line in ["-c a", "-a a", "-c b", "-d a", "-d b"] {
            side.our_make(&format!("snapshot --executor {executor} {line} i.qcow2"));
        }
        side.our_make(&format!("resize --executor {executor} -q --preallocation=falloc i.qcow2 4M"));
        side.our_make(&format!("amend --executor {executor} -o refcount_bits=64 i.qcow2"));
        side.make("check -q i.qcow2");
    }
}

#[test]
fn lengths_change() {
    let mut side = Side::new();
    let more = ["refcount_bits=1,cluster_size=4k", "data_file=DATA", "data_file=DATA,data_file_raw=on"];
    for options in OPTIONS.iter().chain(&more) {
        for how in ["off", "metadata", "falloc", "full"] {
            let about = format!("{options}, {how}");
            let image = "i.qcow2";
            let options = options.replace("DATA", "i.data");
            side.make(&format!("create -q -f qcow2 -o {options} {image} 3000k"));
            side.io(image, "write -P 1 0 100k; write -P 2 200k 1M; discard 700k 256k; write -P 5 2990k 10k");
            side.make(&format!("convert -O raw {image} before.raw"));
            let mut bytes = side.read("before.raw");
            side.our_make(&format!("resize -f qcow2 --preallocation={how} {image} 5000k"));
            bytes.resize(5000 << 10, 0);
            side.write("expected.raw", &bytes);
            in_order(&mut side, &about, image);
            holds(&mut side, &about, image, "expected.raw");
            side.io(image, "write -P 1 4000k 100k");
            side.our_make(&format!("resize -f qcow2 --shrink {image} 1000k"));
            bytes.truncate(1000 << 10);
            side.write("expected.raw", &bytes);
            in_order(&mut side, &about, image);
            holds(&mut side, &about, image, "expected.raw");
            // The reference shows what was behind the end of the last cluster before.
            side.our_make(&format!("resize -f qcow2 {image} +4M"));
            bytes.resize((1000 << 10) + (4 << 20), 0);
            side.write("expected.raw", &bytes);
            in_order(&mut side, &about, image);
            holds(&mut side, &about, image, "expected.raw");
            side.remove(image);
            side.remove("i.data");
        }
    }
    side.finish();
}

/// A longer backing file does not show through what is new.
#[test]
fn what_is_new_hides_the_backing_file() {
    let mut side = Side::new();
    for options in ["compat=1.1", "compat=0.10", "extended_l2=on"] {
        side.make("create -q -f qcow2 base.qcow2 4M");
        side.io("base.qcow2", "write -P 1 0 4M");
        side.make(&format!("create -q -f qcow2 -o {options} -b base.qcow2 -F qcow2 ours.qcow2 2000k"));
        // The reference cannot do so with version 2.
        side.our_make("resize -q ours.qcow2 6M");
        in_order(&mut side, options, "ours.qcow2");
        let mut bytes = vec![1; 2000 << 10];
        bytes.resize(6 << 20, 0);
        side.write("expected.raw", &bytes);
        holds(&mut side, options, "ours.qcow2", "expected.raw");
    }
    side.finish();
}

#[test]
fn preallocated_images_are_as_theirs() {
    let mut side = Side::new();
    let more = ["refcount_bits=1,cluster_size=4k", "data_file=DATA", "data_file=DATA,data_file_raw=on"];
    for options in OPTIONS.iter().chain(&more) {
        for how in ["off", "metadata", "falloc", "full"] {
            let about = format!("{options}, {how}");
            for tool in ["ours", "theirs"] {
                let options = options.replace("DATA", &format!("{tool}.data"));
                run(
                    &side,
                    tool == "ours",
                    &format!("create -q -f qcow2 -o {options},preallocation={how} {tool}.qcow2 5000k"),
                );
            }
            in_order(&mut side, &about, "ours.qcow2");
            // Which clusters follow each other on the host, and where the host has holes, may differ.
            let mapped = |image: &str| {
                let map: serde_json::Value =
                    serde_json::from_str(&side.make(&format!("map --output=json {image}"))).expect("JSON");
                let mut runs: Vec<(bool, bool, u64)> = Vec::new();
                for extent in map.as_array().expect("a list") {
                    let (present, data) = (extent["present"] == true, extent["data"] == true);
                    let len = extent["length"].as_u64().expect("a length");
                    match runs.last_mut() {
                        Some(last) if (last.0, last.1) == (present, data) => last.2 += len,
                        _ => runs.push((present, data, len)),
                    }
                }
                runs
            };
            let (ours, theirs) = (mapped("ours.qcow2"), mapped("theirs.qcow2"));
            side.expect_alike(&about, &ours, &theirs);
            side.write("expected.raw", &vec![0; 5000 << 10]);
            holds(&mut side, &about, "ours.qcow2", "expected.raw");
            let blocks = |name: &str| {
                use std::os::unix::fs::MetadataExt as _;
                std::fs::metadata(side.path(name)).map_or(0, |about| about.blocks() * 512)
            };
            let reserved = blocks("ours.qcow2") + blocks("ours.data");
            if matches!(how, "falloc" | "full") && reserved < 5000 << 10 {
                side.complain(&format!("{about}: only {reserved} bytes are reserved"));
            }
            for name in ["ours.qcow2", "ours.data", "theirs.qcow2", "theirs.data"] {
                side.remove(name);
            }
        }
    }
    side.finish();
}

#[test]
fn converted_images_are_preallocated() {
    let mut side = Side::new();
    side.write("source", &side::disk(3 << 20, 5));
    for how in ["metadata", "falloc", "full"] {
        side.our_make(&format!("convert -f raw -O qcow2 -o preallocation={how} source i.qcow2"));
        in_order(&mut side, how, "i.qcow2");
        holds(&mut side, how, "i.qcow2", "source");
    }
    side.finish();
}

#[test]
fn headers_are_amended() {
    let mut side = Side::new();
    let zeros = "write -P 1 0 1M; write -z 300k 300k; write -z -u 800k 100k";
    for (options, amended) in [
        ("compat=0.10", "compat=1.1"),
        ("compat=0.10,cluster_size=512", "compat=v3,lazy_refcounts=on,refcount_bits=1"),
        ("compat=1.1", "compat=0.10"),
        ("compat=1.1,lazy_refcounts=on", "compat=v2"),
        ("refcount_bits=64,cluster_size=512", "compat=0.10,refcount_bits=16"),
        ("cluster_size=4k", "refcount_bits=64"),
        ("refcount_bits=64,cluster_size=4k", "refcount_bits=1"),
        ("refcount_bits=1,cluster_size=512", "refcount_bits=64,size=5M"),
        ("lazy_refcounts=on", "lazy_refcounts=off"),
        ("extended_l2=on", "lazy_refcounts=on,refcount_bits=2"),
        ("cluster_size=64k", "refcount_bits=32,size=9M"),
        ("data_file=DATA,data_file_raw=on", "data_file_raw=off"),
        ("data_file=DATA", "refcount_bits=8,size=4M"),
    ] {
        for (ours, tool) in [(true, "ours"), (false, "theirs")] {
            let options = options.replace("DATA", &format!("{tool}.data"));
            side.make(&format!("create -q -f qcow2 -o {options} {tool}.qcow2 3M"));
            side.io(
                &format!("{tool}.qcow2"),
                if options.contains("0.10") { "write -P 1 0 1M" } else { zeros },
            );
            run(&side, ours, &format!("amend -o {amended} {tool}.qcow2"));
        }
        let about = format!("{options} to {amended}");
        in_order(&mut side, &about, "ours.qcow2");
        side.make("convert -O raw theirs.qcow2 expected.raw");
        holds(&mut side, &about, "ours.qcow2", "expected.raw");
        let shown = |image: &str| {
            let info = side.make(&format!("info {image}.qcow2"));
            let at = info.find("Format specific").expect("qcow2 has some");
            let end = info.find("Child node").expect("a file");
            info[at..end].replace(image, "")
        };
        let (ours, theirs) = (shown("ours"), shown("theirs"));
        side.expect_alike(&about, &ours, &theirs);
        // It goes on as any other image does.
        side.io("ours.qcow2", "write -P 7 500k 1M; write -z 100k 200k; discard 2M 512k");
        in_order(&mut side, &about, "ours.qcow2");
        for name in ["ours.qcow2", "ours.data", "theirs.qcow2", "theirs.data"] {
            side.remove(name);
        }
    }
    side.finish();
}

/// A backing file is not changed here, and said to be what it is only by its name and its format.
#[test]
fn backing_files_are_named_as_they_are() {
    let mut side = Side::new();
    side.make("create -q -f qcow2 base 1M");
    side.make("create -q -f qcow2 -b base -F qcow2 top");
    for named in [
        "file=base",
        "fmt=qcow2",
        "file=base,backing_fmt=qcow2",
        "file=",
        "fmt=raw",
        "file=other,backing_fmt=qcow2",
    ] {
        for image in ["base", "top"] {
            side.both("amend", &format!("amend -o backing_{named} {image}"));
        }
    }
    side.finish();
}

/// Of a table that is made longer, the host keeps what is not zero.
#[test]
fn a_long_table_is_a_hole() {
    use std::os::unix::fs::MetadataExt as _;
    let mut side = Side::new();
    for (options, len, far) in
        [("cluster_size=64k", "64T", "60T"), ("cluster_size=4k", "8T", "7T"), ("compat=0.10", "10T", "9T")]
    {
        let image = "i.qcow2";
        side.make(&format!("create -q -f qcow2 -o {options} {image} 1G"));
        side.io(image, "write -P 1 0 512k");
        let kept = |side: &Side| side.path(image).metadata().expect("a file").blocks() * 512;
        let before = kept(&side);
        side.our_make(&format!("resize -q {image} {len}"));
        let more = kept(&side) - before;
        if more > 192 << 10 {
            side.complain(&format!("{options}: {more} more bytes are kept"));
        }
        in_order(&mut side, options, image);
        side.io(image, &format!("read -P 1 0 512k; read -P 0 {far} 64k; write -P 2 {far} 64k"));
        in_order(&mut side, options, image);
        if !options.contains("0.10") {
            side.our_make(&format!("snapshot -c one {image}"));
        }
        side.our_make(&format!("resize -q --shrink {image} 1G"));
        side.our_make(&format!("resize -q {image} {len}"));
        side.io(image, &format!("read -P 1 0 512k; read -P 0 {far} 64k"));
        in_order(&mut side, options, image);
    }
    side.finish();
}

#[test]
fn snapshots_live_through_amends() {
    let mut side = Side::new();
    side.make("create -q -f qcow2 -o compat=0.10,cluster_size=4k i.qcow2 3M");
    side.io("i.qcow2", "write -P 1 0 1M");
    side.make("convert -O raw i.qcow2 one.raw");
    side.our_make("snapshot -c one i.qcow2");
    side.io("i.qcow2", "write -P 2 500k 1M");
    side.make("convert -O raw i.qcow2 now.raw");
    for amended in ["compat=1.1", "refcount_bits=4", "refcount_bits=64", "refcount_bits=16", "compat=0.10"] {
        side.our_make(&format!("amend -o {amended} i.qcow2"));
        in_order(&mut side, amended, "i.qcow2");
        holds(&mut side, amended, "i.qcow2", "now.raw");
        snapshot_holds(&mut side, amended, "i.qcow2", "one", "one.raw");
    }
    side.make("snapshot -a one i.qcow2");
    side.make("snapshot -d one i.qcow2");
    in_order(&mut side, "deleted", "i.qcow2");
    side.finish();
}

/// Version 2 has no entry that says zero, in snapshots neither. One cluster keeps its place where it becomes zero: it is
/// data in the snapshot before.
#[test]
fn zeros_of_snapshots_live_through_a_downgrade() {
    let mut side = Side::new();
    side.make("create -q -f qcow2 base.qcow2 2M");
    side.io("base.qcow2", "write -P 9 0 2M");
    for above in ["", "-b base.qcow2 -F qcow2"] {
        side.make(&format!("create -q -f qcow2 -o cluster_size=4k {above} i.qcow2 5M"));
        side.io("i.qcow2", "write -P 1 0 1M; write -P 2 3M 1M");
        let mut views = Vec::new();
        for (name, change) in [
            ("data", "write -P 3 64k 64k"),
            ("zeros", "write -z 100k 100k; write -z -u 300k 100k; write -z 1900k 300k; write -z 4500k 8k"),
            ("more", "write -z 3100k 8k"),
        ] {
            side.io("i.qcow2", change);
            side.make(&format!("convert -O raw i.qcow2 {}.raw", views.len()));
            side.our_make(&format!("snapshot -c {name} i.qcow2"));
            views.push(name);
        }
        side.io("i.qcow2", "write -P 4 150k 30k; write -P 5 4500k 4k; write -z 500k 8k");
        side.make("convert -O raw i.qcow2 now.raw");
        side.our_make("amend -o compat=0.10 i.qcow2");
        let about = format!("to version 2 {above}");
        assert!(side.make("info i.qcow2").contains("compat: 0.10"), "{about}");
        for again in 0..2 {
            in_order(&mut side, &about, "i.qcow2");
            for (number, name) in views.iter().enumerate() {
                snapshot_holds(&mut side, &about, "i.qcow2", name, &format!("{number}.raw"));
            }
            if again == 0 {
                holds(&mut side, &about, "i.qcow2", "now.raw");
                // Tables that are shared are shared still.
                side.make("snapshot -a zeros i.qcow2");
                side.io("i.qcow2", "write -P 7 100k 8k; write -P 8 1950k 200k");
            }
        }
        for name in views {
            side.make(&format!("snapshot -d {name} i.qcow2"));
            in_order(&mut side, &about, "i.qcow2");
        }
        side.remove("i.qcow2");
    }
    side.finish();
}

/// A process that is killed leaves the image as it was or as it is to be, and at most leaked clusters.
#[test]
fn killed_anywhere_an_image_is_whole() {
    let side = Side::new();
    side.make("create -q -f qcow2 -o cluster_size=512 made.qcow2 4M");
    side.io("made.qcow2", "write -P 1 0 3M");
    side.make("snapshot -c first made.qcow2");
    side.io("made.qcow2", "write -P 2 1M 1M");
    side.make("convert -O raw made.qcow2 now.raw");
    side.make("convert -l snapshot.name=first -O raw made.qcow2 first.raw");
    for (args, delay_us) in
        ["snapshot -c second", "snapshot -d first", "snapshot -a first", "amend -o refcount_bits=64"]
            .iter()
            .flat_map(|args| (0..12).map(move |step| (args, 1000 + step * 1500)))
    {
        side.write("i.qcow2", &side.read("made.qcow2"));
        let mut child = side.our_command(&format!("{args} i.qcow2")).spawn().expect("our own tool runs");
        std::thread::sleep(std::time::Duration::from_micros(delay_us));
        let _ = child.kill();
        let ended = child.wait().expect("it ends");
        let about = format!("{args}, killed after {delay_us} us, {ended}");
        // Who was not killed in time has done it.
        assert!(ended.success() || ended.code().is_none(), "{about}");
        let code = side.theirs("check -q i.qcow2").code;
        assert!(matches!(code, 0 | 3), "{about}: check says {code}");
        side.make("convert -O raw i.qcow2 shown.raw");
        let shown = side.read("shown.raw");
        let back = args.ends_with("-a first") && shown == side.read("first.raw");
        assert!(shown == side.read("now.raw") || back, "{about}: the disk is neither");
        let list = side.make("snapshot -l i.qcow2");
        assert!(list.contains("first") || args.ends_with("-d first"), "{about}: {list}");
    }
}
