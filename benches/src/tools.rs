//! Whole processes: `drystone-img` beside `qemu-img`, on the same command lines.

use std::io::{self, Write};
use std::path::Path;
use std::process::Command;

use crate::Random;
use crate::measure::{Subject, in_turns, myself, once, print_processes};

/// Bytes of the disk that is converted.
const PLAIN_LEN: u64 = 1 << 30;

/// Bytes of the disk that is compressed.
pub const PACKED_LEN: u64 = 128 << 20;

/// Clusters of the image that is checked.
const FRAGMENTS: u64 = 262_144;

/// Compares the tools and prints a table.
///
/// # Errors
/// When a file cannot be written, or a tool fails.
pub fn compare(drystone_img: &Path, qemu_img: &Path, dir: &Path, rounds: usize) -> io::Result<()> {
    let at = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let (raw, text, out) = (at("plain.raw"), at("text.raw"), at("out"));
    words(&raw, PLAIN_LEN)?;
    words(&text, PACKED_LEN)?;
    let (qcow2, zlib, zstd, fragments) =
        (at("plain.qcow2"), at("zlib.qcow2"), at("zstd.qcow2"), at("fragments.qcow2"));
    once(&mut myself("fragments/tokio", &fragments, FRAGMENTS)?)?;
    let zstd_option = "compression_type=zstd";
    for line in [
        vec!["convert", "-O", "qcow2", &raw, &qcow2],
        vec!["convert", "-c", "-O", "qcow2", &text, &zlib],
        vec!["convert", "-c", "-O", "qcow2", "-o", zstd_option, &text, &zstd],
    ] {
        once(Command::new(qemu_img).args(line))?;
    }
    println!("\n| what | time, theirs | times as fast | CPU, theirs | ratio | memory, theirs |");
    println!("|---|---|---|---|---|---|");
    let lines: [(&str, &[&str]); 8] = [
        ("raw to qcow2", &["convert", "-O", "qcow2", &raw, &out]),
        ("qcow2 to raw", &["convert", "-O", "raw", &qcow2, &out]),
        ("raw to qcow2, -c zlib", &["convert", "-c", "-O", "qcow2", &text, &out]),
        ("raw to qcow2, -c zstd", &["convert", "-c", "-O", "qcow2", "-o", zstd_option, &text, &out]),
        ("zlib qcow2 to raw", &["convert", "-O", "raw", &zlib, &out]),
        ("zstd qcow2 to raw", &["convert", "-O", "raw", &zstd, &out]),
        ("check of 262,144 clusters in no order", &["check", &fragments]),
        ("map of 262,144 clusters in no order", &["map", "--output=json", &fragments]),
    ];
    for (title, line) in lines {
        let subject = |tool: &Path| {
            let mut command = Command::new(tool);
            command.args(line);
            let out = out.clone();
            // Both write into a file that is not there yet.
            Subject::new(title, command).after(move || match std::fs::remove_file(&out) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            })
        };
        match in_turns(&mut [subject(drystone_img), subject(qemu_img)], rounds) {
            Ok(usages) => print_processes(title, &usages),
            Err(error) => println!("| {title} | {error} | | | | |"),
        }
    }
    for file in [&raw, &text, &qcow2, &zlib, &zstd, &fragments, &out] {
        let _ = std::fs::remove_file(file);
    }
    Ok(())
}

/// Fills a file with lines of words: compressible about as far as text is.
///
/// # Errors
/// The kernel's.
pub fn words(path: &str, len: u64) -> io::Result<()> {
    let mut file = io::BufWriter::with_capacity(1 << 20, std::fs::File::create(path)?);
    let mut random = Random::new(7);
    let vocabulary: Vec<String> = (0..4096)
        .map(|_| (0..3 + random.below(7)).map(|_| char::from(b'a' + random.below(26) as u8)).collect())
        .collect();
    let mut written = 0;
    while written < len {
        let word = &vocabulary[random.below(4096).min(random.below(4096)) as usize];
        let room = (len - written - 1).min(word.len() as u64);
        file.write_all(&word.as_bytes()[..room as usize])?;
        file.write_all(b" ")?;
        written += room + 1;
    }
    file.flush()
}
