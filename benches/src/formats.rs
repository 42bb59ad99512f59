//! The formats beside qcow2: conversions to and from each, by `drystone-img` and `qemu-img` in turns; and encrypted volumes beside
//! what their cipher does alone, as `openssl speed` measures it on as many processors.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use flate2::write::ZlibEncoder;

use crate::measure::{Subject, in_turns, once, print_processes};
use crate::tools::words;

/// Bytes of the disk that is converted, and of the one that is packed.
const PLAIN_LEN: u64 = 512 << 20;
const PACKED_LEN: u64 = 128 << 20;

/// Formats that are written, with options: a title, the format, options.
const WRITTEN: [(&str, &str, &str); 10] = [
    ("qcow2", "qcow2", ""),
    ("vmdk", "vmdk", ""),
    ("vmdk flat", "vmdk", "subformat=monolithicFlat"),
    ("vhdx", "vhdx", ""),
    ("vdi", "vdi", ""),
    ("vpc", "vpc", "force_size=on"),
    ("parallels", "parallels", ""),
    ("qed", "qed", ""),
    ("qcow", "qcow", ""),
    ("luks", "luks", "key-secret=s,iter-time=10"),
];

const SECRET: [&str; 2] = ["--object", "secret,id=s,data=abc"];

/// Bytes of a request to an encrypted volume, requests in flight, and how many there are.
const REQUEST: u64 = 1 << 20;
const IN_FLIGHT: u64 = 8;
const REQUESTS: u64 = 1024;

/// Compares the tools and prints two tables.
///
/// # Errors
/// When a file cannot be written.
pub fn compare(drystone_img: &Path, qemu_img: &Path, dir: &Path, rounds: usize) -> io::Result<()> {
    let at = |name: &str| dir.join(name).to_string_lossy().into_owned();
    println!("\n| what | time, theirs | times as fast | CPU, theirs | ratio | memory, theirs |");
    println!("|---|---|---|---|---|---|");
    let (raw, text, image, out) = (at("plain.raw"), at("text.raw"), at("image"), at("out"));
    words(&raw, PLAIN_LEN)?;
    words(&text, PACKED_LEN)?;
    let pair = |title: &str, line: &[&str]| {
        let subject = |tool: &Path| {
            let mut command = Command::new(tool);
            command.args(line).stderr(Stdio::null());
            let (out, flat) = (out.clone(), format!("{out}-flat.vmdk"));
            // Both write into a file that is not there yet.
            Subject::new(title, command).after(move || absent(&out).and_then(|()| absent(&flat)))
        };
        match in_turns(&mut [subject(drystone_img), subject(qemu_img)], rounds) {
            Ok(usages) => print_processes(title, &usages),
            Err(error) => println!("| {title} | {error} | | | | |"),
        }
    };
    for (title, format, options) in WRITTEN {
        let options: &[&str] = if options.is_empty() { &[] } else { &["-o", options] };
        let to = |image| [&["convert"], &SECRET[..], &["-O", format], options, &[&raw, image]].concat();
        pair(&format!("raw to {title}"), &to(&out));
        // Where several files make an image, they are named after the first.
        once(Command::new(qemu_img).args(to(&image)).stderr(Stdio::null()))?;
        let file = format!("driver={format},file.filename={image}");
        let file = if format == "luks" { format!("{file},key-secret=s") } else { file };
        pair(
            &format!("{title} to raw"),
            &[&["convert"], &SECRET[..], &["--image-opts", &file, "-O", "raw", &out]].concat(),
        );
        absent(&image)?;
    }
    let stream = ["-O", "vmdk", "-o", "subformat=streamOptimized", &text];
    pair("raw to vmdk streamOptimized", &[&["convert"], &stream[..], &[&out]].concat());
    once(Command::new(qemu_img).arg("convert").args(stream).arg(&image))?;
    pair("vmdk streamOptimized to raw", &["convert", "-f", "vmdk", "-O", "raw", &image, &out]);
    let dmg = at("image.dmg");
    write_dmg(&text, &dmg)?;
    pair("dmg of zlib to raw", &["convert", "-f", "dmg", "-O", "raw", &dmg, &out]);
    encrypted(drystone_img, qemu_img, &image, rounds)?;
    for file in [&raw, &text, &image, &out, &dmg, &at("image-flat.vmdk"), &at("out-flat.vmdk")] {
        absent(file)?;
    }
    Ok(())
}

fn absent(path: &str) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Sequential reads and writes of a volume, in bytes a second, beside the cipher alone. `qemu-img bench` takes no secrets: what the
/// reference does is in the conversions.
fn encrypted(drystone_img: &Path, qemu_img: &Path, image: &str, rounds: usize) -> io::Result<()> {
    let cores = std::thread::available_parallelism()?.get();
    let size = (REQUEST * REQUESTS).to_string();
    let create = ["create", "-q", "-f", "luks", "-o", "key-secret=s,iter-time=10", image, &size];
    once(Command::new(qemu_img).args([&create[..1], &SECRET, &create[1..]].concat()))?;
    let opened = format!("driver=luks,key-secret=s,file.filename={image}");
    let (count, depth, len) = (REQUESTS.to_string(), IN_FLIGHT.to_string(), REQUEST.to_string());
    let run = |write: &[&str]| -> io::Result<f64> {
        let mut command = Command::new(drystone_img);
        command.args(["bench", "-t", "unsafe", "-c", &count, "-d", &depth, "-s", &len]).args(SECRET);
        command.args(write).args(["--image-opts", &opened]);
        let said = command.stdin(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let seconds = said.split_whitespace().rev().nth(1).and_then(|word| word.parse::<f64>().ok());
        let seconds = seconds.ok_or_else(|| io::Error::other(format!("{command:?}: {said}")))?;
        Ok((REQUEST * REQUESTS) as f64 / seconds)
    };
    // The first one makes the file.
    run(&["-w"])?;
    let mut figures: [Vec<f64>; 3] = Default::default();
    for _ in 0..rounds.max(1) {
        figures[0].push(cipher_alone(cores)?);
        figures[1].push(run(&[])?);
        figures[2].push(run(&["-w"])?);
    }
    let [alone, reads, writes] = figures.map(|mut runs| {
        runs.sort_by(f64::total_cmp);
        runs[runs.len() / 2]
    });
    println!("\naes-256-xts of `openssl speed` on {cores} processors: {:.2} GB/s\n", alone / 1e9);
    println!("| LUKS, requests of 1 MiB | GB/s | of the cipher alone |");
    println!("|---|---|---|");
    for (what, ours) in [("reads", reads), ("writes", writes)] {
        println!("| {what} | {:.2} | {:.2} |", ours / 1e9, ours / alone);
    }
    Ok(())
}

/// Bytes a second of the cipher on so many processors.
fn cipher_alone(cores: usize) -> io::Result<f64> {
    let multi = cores.to_string();
    let mut command = Command::new("openssl");
    command.args(["speed", "-multi", &multi, "-seconds", "1", "-bytes", "131072", "-evp", "aes-256-xts"]);
    let output = command.stderr(Stdio::null()).stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let figure = said
        .lines()
        .rev()
        .find_map(|line| line.split_whitespace().nth(1)?.strip_suffix('k')?.parse::<f64>().ok());
    figure
        .map(|thousands| thousands * 1000.0)
        .ok_or_else(|| io::Error::other(format!("openssl speed: {said}")))
}

/// Bytes of a chunk of a disk image of macOS.
const CHUNK: usize = 256 << 10;

/// Packs a raw file into a disk image of macOS: chunks of zlib, their table in a property list, and a trailer.
fn write_dmg(from: &str, to: &str) -> io::Result<()> {
    const ZLIB: u32 = 0x8000_0005;
    const END: u32 = 0xffff_ffff;
    let (mut from, mut file) = (File::open(from)?, File::create(to)?);
    let (mut entries, mut offset, mut sector) = (Vec::new(), 0_u64, 0_u64);
    let mut entry = |kind: u32, sector: u64, sectors: u64, offset: u64, len: u64| {
        entries.extend([kind.to_be_bytes(), [0; 4]].concat());
        entries.extend([sector, sectors, offset, len].map(u64::to_be_bytes).concat());
    };
    let mut count = 1;
    loop {
        let mut plain = Vec::with_capacity(CHUNK);
        if Read::by_ref(&mut from).take(CHUNK as u64).read_to_end(&mut plain)? == 0 {
            break;
        }
        let mut packed = ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        packed.write_all(&plain)?;
        let packed = packed.finish()?;
        file.write_all(&packed)?;
        entry(ZLIB, sector, plain.len() as u64 / 512, offset, packed.len() as u64);
        (offset, sector, count) =
            (offset + packed.len() as u64, sector + plain.len() as u64 / 512, count + 1);
    }
    entry(END, sector, 0, offset, 0);
    let mut table =
        [&b"mish"[..], &1_u32.to_be_bytes(), &0_u64.to_be_bytes(), &sector.to_be_bytes()].concat();
    table.resize(200, 0);
    table.extend(u32::to_be_bytes(count));
    table.extend(entries);
    let list = format!(
        "<?xml version=\"1.0\"?><plist version=\"1.0\"><dict><key>resource-fork</key><dict><key>blkx</key><array><dict>\
         <key>Data</key><data>{}</data></dict></array></dict></dict></plist>",
        base64(&table)
    );
    file.write_all(list.as_bytes())?;
    let mut trailer = vec![0; 512];
    let mut put = |at: usize, bytes: &[u8]| trailer[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"koly");
    put(4, &4_u32.to_be_bytes());
    put(8, &512_u32.to_be_bytes());
    put(32, &offset.to_be_bytes());
    put(216, &offset.to_be_bytes());
    put(224, &(list.len() as u64).to_be_bytes());
    put(492, &sector.to_be_bytes());
    file.write_all(&trailer)
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let word = three.iter().fold(0, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for digit in 0..4 {
            let known = digit <= three.len();
            text.push(if known { char::from(DIGITS[(word >> (18 - 6 * digit) & 63) as usize]) } else { '=' });
        }
    }
    text
}
