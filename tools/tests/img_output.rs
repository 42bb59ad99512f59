//! What the commands of `drystone-img` show, held beside the installed `qemu-img`.
//!
//! The reference's JSON is read into our structs; from them both its JSON and its text for people must come out again.

mod reference;

use drystone_core::format::CheckReport as Found;
use drystone_tools::img::args::{Action, Command, OutputFormat, parse};
use drystone_tools::img::bench;
use drystone_tools::img::check::{CheckError, CheckReport};
use drystone_tools::img::compare::{Comparison, SIZE_WARNING};
use drystone_tools::img::info::{
    BackingName, Child, FormatSpecific, ImageInfo, Snapshot, render_human, render_json,
};
use drystone_tools::img::map::{MapEntry, MapPrinter};
use drystone_tools::img::progress::{Line, Progress};
use drystone_tools::options::json;
use jiff::tz::TimeZone;
use reference::Reference;
use serde_json::Value;

/// A folder with the images that `lines` make.
fn images(lines: &[&str]) -> Reference {
    let reference = Reference::new();
    for line in lines {
        reference.make(line);
    }
    reference
}

/// A folder with images of many kinds.
fn many_images() -> Reference {
    let reference = images(&[
        "create -q -f raw r 1M",
        "create -q -f qcow2 base.qcow2 64M",
        "create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2",
        "create -q -f qcow2 -o data_file=d.raw,compression_type=zstd,extended_l2=on,cluster_size=128k d.qcow2 3G",
        "create -q -f qcow2 -o compat=0.10 old.qcow2 1M",
        "create -q -f qcow2 -u -b nowhere -F raw lost.qcow2 1M",
        "create -q -f vmdk -o subformat=twoGbMaxExtentFlat split.vmdk 1M",
        "create -q -f vdi d.vdi 1500k",
        "create -q -f vpc d.vpc 1M",
        "create -q -f vhdx d.vhdx 1M",
        "create -q -f parallels d.parallels 1M",
        "create -q --object secret,id=s,data=x -f luks -o key-secret=s,iter-time=10 d.luks 1M",
        "create -q --object secret,id=s,data=x -f qcow2 -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 secret.qcow2 1M",
        "create -q --object secret,id=s,data=x -f qcow2 -o encrypt.format=aes,encrypt.key-secret=s aes.qcow2 1M",
        "snapshot -c first top.qcow2",
        "snapshot -c a-name-that-is-longer-than-its-column top.qcow2",
        "bitmap --add -g 1M top.qcow2 b0",
        "bitmap --add --disable top.qcow2 b1",
    ]);
    std::fs::create_dir(reference.folder.path().join("sub")).unwrap();
    reference.make("create -q -u -f qcow2 -b ../base.qcow2 -F qcow2 sub/s.qcow2 64M");
    reference.make("create -q -f qcow2 -o lazy_refcounts=on dirty.qcow2 1M");
    // Incompatible feature bit 0: not closed properly.
    patch(&reference, "dirty.qcow2", 79, 1);
    reference
}

fn patch(reference: &Reference, name: &str, at: usize, byte: u8) {
    let path = reference.folder.path().join(name);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[at] = byte;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn info_is_shown_alike() {
    let reference = many_images();
    for args in [
        "r",
        "-f file r",
        "base.qcow2",
        "top.qcow2",
        "--backing-chain top.qcow2",
        "--backing-chain base.qcow2",
        "d.qcow2",
        "old.qcow2",
        "lost.qcow2",
        "split.vmdk",
        "d.vdi",
        "d.vpc",
        "d.vhdx",
        "d.parallels",
        "d.luks",
        "secret.qcow2",
        "aes.qcow2",
        "sub/s.qcow2",
        "dirty.qcow2",
        "--image-opts driver=null-co,read-zeroes=on,size=1234567",
        "--image-opts driver=raw,offset=512,size=64k,file.driver=raw,file.file.filename=r",
        "--image-opts driver=compress,file.driver=qcow2,file.file.filename=top.qcow2",
        "--image-opts driver=quorum,vote-threshold=1,children.0.driver=raw,children.0.file.filename=r,children.1.driver=raw,children.1.file.filename=r",
    ] {
        let expected = reference.make(&format!("info --output=json {args}"));
        let value = json::parse(&expected).unwrap();
        let (images, chain) = match &value {
            Value::Array(items) => (items.iter().map(image).collect(), true),
            one => (vec![image(one)], false),
        };
        let images: Vec<ImageInfo> = images;
        assert_eq!(render_json(&images, chain), expected, "{args}");
        let expected = reference.make(&format!("info {args}"));
        assert_eq!(render_human(&images, || TimeZone::UTC), expected, "{args}");
    }
}

fn image(value: &Value) -> ImageInfo {
    let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let number = |key: &str| value.get(key).and_then(Value::as_u64);
    let specific = |value: &Value| FormatSpecific {
        kind: value["type"].as_str().unwrap().to_owned(),
        data: value["data"].as_object().unwrap().clone(),
    };
    let child =
        |value: &Value| Child { name: value["name"].as_str().unwrap().into(), info: image(&value["info"]) };
    ImageInfo {
        filename: text("filename").unwrap(),
        format: text("format").unwrap(),
        virtual_size: number("virtual-size").unwrap(),
        actual_size: number("actual-size"),
        dirty: value.get("dirty-flag").and_then(Value::as_bool),
        cluster_size: number("cluster-size"),
        encrypted: value.get("encrypted").is_some(),
        compressed: value.get("compressed").is_some(),
        backing: text("backing-filename").map(|filename| BackingName {
            filename,
            full_filename: text("full-backing-filename"),
            format: text("backing-filename-format"),
        }),
        snapshots: value.get("snapshots").map(|list| list.as_array().unwrap().iter().map(snapshot).collect()),
        format_specific: value.get("format-specific").map(specific),
        children: value["children"].as_array().unwrap().iter().map(child).collect(),
    }
}

fn snapshot(value: &Value) -> Snapshot {
    let number = |key: &str| value[key].as_u64().unwrap();
    Snapshot {
        id: value["id"].as_str().unwrap().into(),
        name: value["name"].as_str().unwrap().into(),
        vm_state_size: number("vm-state-size"),
        date_sec: value["date-sec"].as_i64().unwrap(),
        date_nsec: u32::try_from(number("date-nsec")).unwrap(),
        vm_clock_nsec: number("vm-clock-sec") * 1_000_000_000 + number("vm-clock-nsec"),
        icount: value.get("icount").and_then(Value::as_u64),
    }
}

#[test]
fn maps_are_shown_alike() {
    let reference = images(&[
        "create -q r 1M",
        "create -q -f qcow2 base.qcow2 64M",
        "create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2",
        "create -q -f vmdk -o subformat=twoGbMaxExtentFlat split.vmdk 1M",
    ]);
    io(&reference, "base.qcow2", &["write 0 128k", "write 1M 64k", "write -z 2M 64k"]);
    io(&reference, "top.qcow2", &["write 3M 64k", "write -z 64k 64k", "write 5M 64k"]);
    io(&reference, "r", &["write 64k 64k", "write 512k 512k"]);
    reference.make("convert -c -O qcow2 base.qcow2 packed.qcow2");
    std::fs::write(reference.folder.path().join("empty"), "").unwrap();
    let chain = ["top.qcow2", "base.qcow2"];
    let null = "--image-opts driver=null-co,read-zeroes=on";
    for (args, start, files) in [
        ("top.qcow2", 0, &chain[..]),
        ("--start-offset 100k --max-length 1M top.qcow2", 102_400, &chain),
        ("--start-offset 65M top.qcow2", 68_157_440, &chain),
        ("r", 0, &["r"]),
        ("empty", 0, &["empty"]),
        ("packed.qcow2", 0, &["packed.qcow2"]),
        ("split.vmdk", 0, &["split-f001.vmdk"]),
        (null, 0, &[""]),
        ("--max-length 0 top.qcow2", 0, &chain),
    ] {
        let expected = reference.make(&format!("map --output=json {args}"));
        let Value::Array(items) = json::parse(&expected).unwrap() else { panic!() };
        let entries: Vec<_> = items.iter().flat_map(|item| pieces(item, files)).collect();
        let json = render_map(OutputFormat::Json, &entries, start);
        assert_eq!(json, (expected, String::new(), 0), "{args}");
        let run = reference.run(&format!("map {args}"));
        let human = render_map(OutputFormat::Human, &entries, start);
        assert_eq!(human, (run.stdout, run.stderr, run.code), "{args}");
    }
}

/// An entry cut in three, to be joined again.
fn pieces(value: &Value, files: &[&str]) -> Vec<MapEntry> {
    let number = |key: &str| value[key].as_u64().unwrap();
    let is = |key: &str| value[key].as_bool().unwrap();
    let depth = u32::try_from(number("depth")).unwrap();
    let offset = value.get("offset").and_then(Value::as_u64);
    let whole = MapEntry {
        start: number("start"),
        length: number("length"),
        depth,
        present: is("present"),
        zero: is("zero"),
        data: is("data"),
        compressed: is("compressed"),
        offset,
        filename: offset.map(|_| files[depth as usize].to_owned()),
    };
    let cuts = [0, whole.length / 3, whole.length / 2, whole.length];
    let piece = |cut: &[u64]| MapEntry {
        start: whole.start + cut[0],
        length: cut[1] - cut[0],
        offset: whole.offset.map(|offset| offset + cut[0]),
        ..whole.clone()
    };
    cuts.windows(2).map(piece).filter(|piece| piece.length > 0).collect()
}

fn render_map(format: OutputFormat, entries: &[MapEntry], start: u64) -> (String, String, i32) {
    let (mut printer, mut text) = MapPrinter::new(format);
    for entry in entries {
        match printer.push(entry.clone()) {
            Ok(more) => text += &more,
            Err(failure) => return (text, failure.render("qemu-img"), i32::from(failure.code)),
        }
    }
    match printer.finish(start) {
        Ok(more) => (text + &more, String::new(), 0),
        Err(failure) => (text, failure.render("qemu-img"), i32::from(failure.code)),
    }
}

fn io(reference: &Reference, image: &str, commands: &[&str]) {
    let mut io = std::process::Command::new("qemu-io");
    for command in commands {
        io.args(["-c", command]);
    }
    let format = if image == "r" { "raw" } else { "qcow2" };
    let output = io.args(["-f", format, image]).current_dir(reference.folder.path()).output();
    assert!(output.expect("qemu-io is installed (package qemu-utils)").status.success());
}

#[test]
fn checks_are_shown_alike() {
    let reference = images(&[
        "create -q r 1M",
        "create -q -f qcow2 base.qcow2 64M",
        "create -q -f parallels d.parallels 1M",
        "create -q -f vdi d.vdi 1500k",
    ]);
    io(&reference, "base.qcow2", &["write 0 128k", "write 1M 64k"]);
    reference.make("convert -c -O qcow2 base.qcow2 packed.qcow2");
    std::fs::copy(reference.folder.path().join("base.qcow2"), reference.folder.path().join("bad.qcow2"))
        .unwrap();
    // The refcount of the first data cluster, which is cluster 5, and of a cluster behind the image's end.
    patch(&reference, "bad.qcow2", 0x20000 + 11, 0);
    std::fs::copy(reference.folder.path().join("base.qcow2"), reference.folder.path().join("leak.qcow2"))
        .unwrap();
    reference.make("resize -q leak.qcow2 65M");
    patch(&reference, "leak.qcow2", 0x20000 + 17, 1);
    let leak = reference.folder.path().join("leak.qcow2");
    std::fs::File::options().write(true).open(leak).unwrap().set_len(0xa0000).unwrap();
    for (image, code) in [
        ("base.qcow2", 0),
        ("packed.qcow2", 0),
        ("d.parallels", 0),
        ("d.vdi", 0),
        ("bad.qcow2", 2),
        ("leak.qcow2", 3),
    ] {
        let json = reference.run(&format!("check --output=json {image}"));
        let report = report(&json::parse(&json.stdout).unwrap());
        assert_eq!(report.render(OutputFormat::Json), json.stdout);
        let human = reference.run(&format!("check {image}"));
        assert_eq!((report.render(OutputFormat::Human), human.code), (human.stdout, code), "{image}");
        assert_eq!(report.exit_code().map(i32::from), Ok(code));
    }
    repaired_alike(&reference, "leak.qcow2");
    let run = reference.run("check r");
    let failure = CheckError::NotSupported.into_failure();
    assert_eq!((failure.render("qemu-img"), i32::from(failure.code)), (run.stderr, run.code));
}

fn repaired_alike(reference: &Reference, image: &str) {
    let path = reference.folder.path().join(image);
    let before = std::fs::read(&path).unwrap();
    let json = reference.run(&format!("check -r all --output=json {image}"));
    std::fs::write(&path, before).unwrap();
    let human = reference.run(&format!("check -r all {image}"));
    let second = report(&json::parse(&json.stdout).unwrap());
    assert!(second.repaired());
    let text = second.repair_summary() + &second.render(OutputFormat::Human);
    assert_eq!((text, second.render(OutputFormat::Json)), (human.stdout, json.stdout));
    let mut unrepaired = second.clone();
    unrepaired.found.leaks_fixed = 0;
    assert_eq!(unrepaired.with_repairs_of(&second), second);
}

fn report(value: &Value) -> CheckReport {
    let number = |key: &str| value.get(key).and_then(Value::as_u64).unwrap_or(0);
    CheckReport {
        filename: value["filename"].as_str().unwrap().into(),
        format: value["format"].as_str().unwrap().into(),
        found: Found {
            check_errors: number("check-errors"),
            corruptions: number("corruptions"),
            leaks: number("leaks"),
            corruptions_fixed: number("corruptions-fixed"),
            leaks_fixed: number("leaks-fixed"),
            image_end_offset: number("image-end-offset"),
            total_clusters: number("total-clusters"),
            allocated_clusters: number("allocated-clusters"),
            fragmented_clusters: number("fragmented-clusters"),
            compressed_clusters: number("compressed-clusters"),
        },
    }
}

#[test]
fn comparisons_are_shown_alike() {
    let reference = images(&[
        "create -q r 1M",
        "create -q r1 1M",
        "create -q r2 2M",
        "create -q -f qcow2 q1 1M",
        "create -q -f qcow2 q2 1M",
    ]);
    io(&reference, "r", &["write 64k 64k"]);
    reference.make("create -q r3 1M");
    std::fs::write(reference.folder.path().join("r3"), [vec![0; 1 << 20], vec![1; 512]].concat()).unwrap();
    io(&reference, "q2", &["write -P 0 0 64k"]);
    let mismatch = Comparison::ContentDiffers { offset: 65536 };
    for (args, warning, result) in [
        ("r1 r1", "", Comparison::Identical),
        ("r1 r2", SIZE_WARNING, Comparison::Identical),
        ("-s r1 r2", "", Comparison::SizesDiffer),
        ("r1 r", "", mismatch.clone()),
        // What both have is compared first.
        ("r2 r", "", mismatch),
        ("r1 r3", SIZE_WARNING, Comparison::ContentDiffers { offset: 1 << 20 }),
        ("q1 q2", "", Comparison::Identical),
        ("-s q1 q2", "", Comparison::StatusDiffers { offset: 0 }),
    ] {
        let run = reference.run(&format!("compare {args}"));
        assert_eq!(
            (format!("{warning}{}", result.text()), i32::from(result.exit_code())),
            (run.stdout, run.code)
        );
    }
}

#[test]
fn benchmarks_are_shown_alike() {
    let reference = images(&["create -q r 1M"]);
    for line in
        ["bench -c 10 r", "bench -f raw -w -c 10 -d 2 --flush-interval 5 r", "bench -c 9 -s 3 -o 7 -S 9 r"]
    {
        let run = reference.run(line);
        let Command::Bench(args) = run_of(&format!("x {line}")) else { panic!() };
        let (last, seconds) = run.stdout.rsplit_once("in ").unwrap();
        let seconds: f64 = seconds.split(' ').next().unwrap().parse().unwrap();
        let ours = bench::announcement(&args) + &bench::result(std::time::Duration::from_secs_f64(seconds));
        assert_eq!(ours, run.stdout, "{last}");
    }
    let run = reference.run("bench -c 10 -o 10M r");
    assert_eq!(bench::failure("Input/output error").render("qemu-img"), run.stderr);
}

#[test]
fn progress_is_written_alike() {
    let reference = Reference::new();
    let (pieces, piece) = (48_u64, 2 << 20);
    let data = vec![0xa5_u8; usize::try_from(pieces * piece).unwrap()];
    std::fs::write(reference.folder.path().join("full"), data).unwrap();
    let written = reference.make("convert -p -f raw -O raw full copy");
    let mut progress = Progress::new(true, false, 1.0);
    // The reference copies 2 MiB at a time, and says that it is done once more at the end.
    let steps = (0..=pieces).chain([pieces]);
    let shown = |line| match line {
        Some(Line::Output(text)) => text,
        _ => String::new(),
    };
    let mut ours: String = steps.map(|step| shown(progress.update(step * piece, pieces * piece))).collect();
    ours += progress.finish();
    assert_eq!(ours, written);
}

fn run_of(line: &str) -> Command {
    let argv: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
    match parse(&argv).map(|invocation| invocation.action) {
        Ok(Action::Run(command)) => *command,
        other => panic!("{line}: {other:?}"),
    }
}
