//! Measures Drystone beside its peers and prints tables of ratios.
//!
//! `cargo run --release -p drystone-benches --features peers -- [reads] [writes] [tools] [edits] [formats] [codecs] [nbd]
//! [--rounds N] [--dir DIR] [--qemu-img PATH] [--drystone-img PATH] [--drystone-nbd PATH]`
//!
//! Each subject is this program again (`subject NAME FILE COUNT`), or somebody else's tool. What is not there is left
//! out, and said.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use drystone_benches::executor::{Executor, Load};
use drystone_benches::measure::{Subject, in_turns, myself, once, print_requests};
use drystone_benches::{BLOCK, CLUSTER, DEPTH, bare, codec, edits, executor, formats, nbd, tools};
use lexopt::prelude::*;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// Random reads in one run of a subject.
const READS: u64 = 400_000;

/// Clusters of the image that is read, and that is written in one run.
const CLUSTERS: u64 = 8192;

/// Distance of the reads of `qemu-img bench`, which knows no random order: prime, in blocks.
const STRIDE: u64 = 12_289 * BLOCK as u64;

fn main() -> ExitCode {
    let done = Arguments::parse().and_then(|arguments| match &arguments.what[..] {
        [what, name, file, count] if what == "subject" => subject(name, file, count.parse()?),
        _ => compare(&arguments),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ratios: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Arguments {
    what: Vec<String>,
    rounds: usize,
    dir: PathBuf,
    qemu_img: PathBuf,
    drystone_img: Option<PathBuf>,
    drystone_nbd: Option<PathBuf>,
}

impl Arguments {
    fn parse() -> Outcome<Self> {
        let dir = std::env::temp_dir().join("drystone-ratios");
        let mut read = Self {
            what: vec![],
            rounds: 5,
            dir,
            qemu_img: "qemu-img".into(),
            drystone_img: None,
            drystone_nbd: None,
        };
        let mut parser = lexopt::Parser::from_env();
        while let Some(argument) = parser.next()? {
            match argument {
                Value(what) => read.what.push(what.string()?),
                Long("rounds") => read.rounds = parser.value()?.parse()?,
                Long("dir") => read.dir = parser.value()?.into(),
                Long("qemu-img") => read.qemu_img = parser.value()?.into(),
                Long("drystone-img") => read.drystone_img = Some(parser.value()?.into()),
                Long("drystone-nbd") => read.drystone_nbd = Some(parser.value()?.into()),
                other => return Err(other.unexpected().into()),
            }
        }
        const KNOWN: [&str; 7] = ["reads", "writes", "tools", "edits", "formats", "codecs", "nbd"];
        let unknown = read.what.iter().find(|what| !KNOWN.contains(&what.as_str()));
        match unknown.filter(|_| read.what.first().is_none_or(|what| what != "subject")) {
            Some(what) => Err(format!("nothing is called '{what}'; there are {}", KNOWN.join(", ")).into()),
            None => Ok(read),
        }
    }

    fn wants(&self, what: &str) -> bool {
        self.what.is_empty() || self.what.iter().any(|wanted| wanted == what)
    }
}

/// Does what one subject is measured by.
fn subject(name: &str, file: &str, count: u64) -> Outcome {
    let executor = |name| match name {
        "tokio" => Executor::Tokio,
        "monoio" => Executor::Monoio,
        _ => Executor::Glommio,
    };
    match name.split_once('/') {
        Some(("reads", "bare")) => bare::read(file, count)?,
        Some(("writes", "bare")) => bare::write(file, count)?,
        Some(("pack", codec)) => codec::pack(codec == "zstd", file, &format!("{file}.{codec}"))?,
        Some(("unpack", codec)) => {
            codec::unpack(codec == "zstd", &format!("{file}.{codec}"), &format!("{file}.out"))?
        }
        Some(("nbd", depth)) => nbd::read(file, depth.parse()?, count)?,
        #[cfg(feature = "peers")]
        Some((load, name @ ("imago" | "qcow2-rs"))) => peer(load, name, file, count)?,
        Some(("reads", name)) => executor::run(executor(name), Load::Reads(count), file)?,
        Some(("fragments", name)) => executor::run(executor(name), Load::Fragments(count), file)?,
        Some(("extents", name)) => executor::run(executor(name), Load::Extents(count), file)?,
        Some(("every-second", name)) => executor::run(executor(name), Load::EverySecond(count), file)?,
        Some(("writes", name)) => executor::run(executor(name), Load::Writes(count), file)?,
        _ => return Err(format!("no subject is called '{name}'").into()),
    }
    Ok(())
}

#[cfg(feature = "peers")]
fn peer(load: &str, name: &str, file: &str, count: u64) -> Outcome {
    use drystone_benches::peers::{Load, imago, qcow2_rs};
    let load = if load == "reads" { Load::Reads(count) } else { Load::Writes(count) };
    match name {
        "imago" => imago(load, file)?,
        _ => qcow2_rs(load, file),
    }
    Ok(())
}

fn compare(arguments: &Arguments) -> Outcome {
    std::fs::create_dir_all(&arguments.dir)?;
    let qemu_img = once(Command::new(&arguments.qemu_img).arg("--version")).is_ok();
    if !qemu_img {
        eprintln!("ratios: no {}: it is left out", arguments.qemu_img.display());
    }
    if arguments.wants("reads") {
        reads(arguments, qemu_img)?;
    }
    if arguments.wants("writes") {
        writes(arguments, qemu_img)?;
    }
    match &arguments.drystone_img {
        Some(drystone_img) if arguments.wants("tools") && qemu_img => {
            tools::compare(drystone_img, &arguments.qemu_img, &arguments.dir, arguments.rounds)?;
        }
        _ => {}
    }
    match &arguments.drystone_img {
        Some(drystone_img) if arguments.wants("edits") && qemu_img => {
            edits::compare(drystone_img, &arguments.qemu_img, &arguments.dir, arguments.rounds)?;
        }
        _ => {}
    }
    match &arguments.drystone_img {
        Some(drystone_img) if arguments.wants("formats") && qemu_img => {
            formats::compare(drystone_img, &arguments.qemu_img, &arguments.dir, arguments.rounds)?;
        }
        _ => {}
    }
    match &arguments.drystone_img {
        Some(drystone_img) if arguments.wants("codecs") && qemu_img => codecs(arguments, drystone_img)?,
        _ if arguments.wants("tools") || arguments.wants("codecs") => {
            eprintln!("ratios: tools need --drystone-img and qemu-img: left out")
        }
        _ => {}
    }
    match &arguments.drystone_nbd {
        Some(drystone_nbd) if arguments.wants("nbd") => {
            nbd::compare(drystone_nbd, &arguments.dir, arguments.rounds)?;
        }
        None if arguments.wants("nbd") => eprintln!("ratios: nbd needs --drystone-nbd: left out"),
        _ => {}
    }
    Ok(())
}

fn reads(arguments: &Arguments, qemu_img: bool) -> Outcome {
    let image = arguments.dir.join("reads.qcow2");
    once(&mut myself("writes/tokio", &image, CLUSTERS)?)?;
    let mut names = vec!["bare", "tokio", "monoio", "glommio"];
    if cfg!(feature = "peers") {
        names.extend(["imago", "qcow2-rs"]);
    }
    let mut subjects = Vec::new();
    for name in names {
        subjects.push(Subject::new(name, myself(&format!("reads/{name}"), &image, READS)?));
    }
    for aio in ["io_uring", "threads"] {
        if qemu_img {
            let mut command = Command::new(&arguments.qemu_img);
            command.args(["bench", "-f", "qcow2", "-t", "writeback", "-i", aio]);
            command.args(["-c", &READS.to_string(), "-d", &DEPTH.to_string()]);
            command.args(["-s", &BLOCK.to_string(), "-S", &STRIDE.to_string()]).arg(&image);
            subjects.push(Subject::new(&format!("qemu-img bench -i {aio}"), command));
        }
    }
    let usages = in_turns(&mut subjects, arguments.rounds)?;
    let title = "4 KiB random reads of a qcow2 image in the page cache, 64 in flight";
    print_requests(title, &subjects, &usages, READS);
    std::fs::remove_file(image)?;
    Ok(())
}

fn writes(arguments: &Arguments, qemu_img: bool) -> Outcome {
    let image = arguments.dir.join("writes.qcow2");
    let mut subjects = Vec::new();
    let remove = |image: &Path| match std::fs::remove_file(image) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    for name in ["bare", "tokio", "monoio", "glommio"] {
        let image = image.clone();
        let command = myself(&format!("writes/{name}"), &image, CLUSTERS)?;
        subjects.push(Subject::new(name, command).after(move || remove(&image)));
    }
    let mut others = Vec::new();
    if cfg!(feature = "peers") && qemu_img {
        others.push(("imago".to_owned(), myself("writes/imago", &image, CLUSTERS)?));
        others.push(("qcow2-rs".to_owned(), myself("writes/qcow2-rs", &image, CLUSTERS)?));
    }
    for aio in ["io_uring", "threads"] {
        if qemu_img {
            let mut command = Command::new(&arguments.qemu_img);
            command.args(["bench", "-w", "-f", "qcow2", "-t", "unsafe", "-i", aio]);
            command.args(["-c", &CLUSTERS.to_string(), "-d", &DEPTH.to_string()]);
            command.args(["-s", &CLUSTER.to_string()]).arg(&image);
            others.push((format!("qemu-img bench -w -i {aio}"), command));
        }
    }
    for (name, command) in others {
        let (image, tool) = (image.clone(), arguments.qemu_img.clone());
        let size = (CLUSTERS * CLUSTER as u64).to_string();
        subjects.push(Subject::new(&name, command).after(move || {
            remove(&image)?;
            once(Command::new(&tool).args(["create", "-f", "qcow2"]).arg(&image).arg(&size)).map(drop)
        }));
    }
    let usages = in_turns(&mut subjects, arguments.rounds)?;
    print_requests("64 KiB allocating sequential writes, 64 in flight", &subjects, &usages, CLUSTERS);
    std::fs::remove_file(image)?;
    Ok(())
}

/// Compressed images beside the codec alone, which runs on one processor and writes no image.
fn codecs(arguments: &Arguments, drystone_img: &Path) -> Outcome {
    let at = |name: &str| arguments.dir.join(name).to_string_lossy().into_owned();
    let (text, out) = (at("text.raw"), at("out.img"));
    tools::words(&text, tools::PACKED_LEN)?;
    let clusters = tools::PACKED_LEN / CLUSTER as u64;
    for codec in ["zlib", "zstd"] {
        let (ours, theirs) = (at("ours.qcow2"), at("theirs.qcow2"));
        let option = format!("compression_type={codec}");
        let packs = |tool: &Path, image: &str| {
            let mut command = Command::new(tool);
            command.args(["convert", "-c", "-O", "qcow2", "-o", &option, &text, image]);
            command
        };
        let mut subjects = [
            Subject::new("the codec", myself(&format!("pack/{codec}"), &text, 0)?),
            Subject::new("drystone-img convert -c", packs(drystone_img, &ours)),
            Subject::new("qemu-img convert -c", packs(&arguments.qemu_img, &theirs)),
        ];
        let usages = in_turns(&mut subjects, arguments.rounds)?;
        print_requests(
            &format!("{codec}: writing compressed clusters of 64 KiB"),
            &subjects,
            &usages,
            clusters,
        );
        let len = |file: &str| std::fs::metadata(file).map(|about| about.len());
        println!("\nBytes: {} ours, {} theirs", len(&ours)?, len(&theirs)?);
        let unpacks = |tool: &Path| {
            let mut command = Command::new(tool);
            command.args(["convert", "-O", "raw", &ours, &out]);
            command
        };
        let mut subjects = [
            Subject::new("the codec", myself(&format!("unpack/{codec}"), &text, 0)?),
            Subject::new("drystone-img convert", unpacks(drystone_img)),
            Subject::new("qemu-img convert", unpacks(&arguments.qemu_img)),
        ];
        let usages = in_turns(&mut subjects, arguments.rounds)?;
        print_requests(&format!("{codec}: reading them"), &subjects, &usages, clusters);
    }
    for name in [
        "text.raw",
        "text.raw.zlib",
        "text.raw.zstd",
        "text.raw.out",
        "out.img",
        "ours.qcow2",
        "theirs.qcow2",
    ] {
        let _ = std::fs::remove_file(at(name));
    }
    Ok(())
}
