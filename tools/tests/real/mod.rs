//! Images that other programs made: a folder of the host that the environment names, and the list of what they hold.

#![allow(dead_code, reason = "each test file uses its part")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::side::Side;

/// The folder with the images, and one to unpack them in.
pub struct Real {
    folder: PathBuf,
    manifest: String,
    pub side: Side,
}

impl Real {
    /// None, and a word about it, where there are no images.
    pub fn new() -> Option<Self> {
        let folder = folder()?;
        match std::fs::read_to_string(folder.join("MANIFEST.md")) {
            Ok(manifest) => Some(Self { folder, manifest, side: Side::new() }),
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "SKIPPED: {}: MANIFEST.md: {error}", folder.display());
                None
            }
        }
    }

    /// Unpacks an image to a file of the side.
    pub fn unpack(&self, name: &str, file: &str) {
        let out = std::fs::File::create(self.side.path(file)).expect("a file can be made");
        let mut command = unpacker(&self.folder.join(name));
        let status = command.stdout(Stdio::from(out)).status();
        let status = status.unwrap_or_else(|error| panic!("{name}: {command:?}: {error}"));
        assert!(status.success(), "{name}: {command:?}");
    }

    /// Wants our conversion of an image to have the digest that the list has for it: that of the blocks that are not zeros.
    pub fn holds(&self, name: &str, file: &str, format: &str) {
        self.side.our_make(&format!("convert -f {format} -O raw {file} {file}.raw"));
        let found = sparse_digest(&self.side.path(&format!("{file}.raw")));
        self.side.remove(&format!("{file}.raw"));
        let row = self.manifest.lines().find(|line| line.starts_with(&format!("| {name} |")));
        let row = row.unwrap_or_else(|| panic!("{name} is not in the list"));
        let expected = row.split('|').nth(8).expect("a column of digests").split_whitespace().next();
        assert_eq!(Some(&*found), expected, "{name}");
    }
}

/// The folder with the images; none, and a word about it, where it is not there.
pub fn folder() -> Option<PathBuf> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/images");
    let folder = std::env::var_os("DRYSTONE_IMAGES").map_or(default.into(), PathBuf::from);
    match folder.canonicalize() {
        Ok(folder) => Some(folder),
        Err(error) => {
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED: {}: {error}; DRYSTONE_IMAGES names the folder with the images",
                folder.display()
            );
            None
        }
    }
}

/// What an image holds, unpacked.
pub fn unpacked(path: &Path) -> Vec<u8> {
    let mut command = unpacker(path);
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Writes an image to its standard output.
fn unpacker(path: &Path) -> Command {
    const ZIP: &str = "import sys, zipfile; z = zipfile.ZipFile(sys.argv[1]); sys.stdout.buffer.write(z.read(z.namelist()[0]))";
    let program: &[&str] = match path.extension().and_then(|extension| extension.to_str()) {
        Some("gz") => &["gzip", "-dc"],
        Some("bz2") => &["bzip2", "-dc"],
        Some("xz") => &["xz", "-dc"],
        Some("zip") => &["python3", "-c", ZIP],
        _ => &["cat"],
    };
    let mut command = Command::new(program[0]);
    command.args(&program[1..]).arg(path);
    command
}

/// SHA-256 over the offset and the bytes of each block of 4096 bytes that is not all zeros.
fn sparse_digest(path: &Path) -> String {
    const SCRIPT: &str = "
import hashlib, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
end, at, zeros, digest = os.fstat(fd).st_size, 0, bytes(4096), hashlib.sha256()
while at < end:
    try: at = os.lseek(fd, at, os.SEEK_DATA) & ~4095
    except OSError: break
    hole = os.lseek(fd, at, os.SEEK_HOLE)
    while at < hole:
        block = os.pread(fd, 4096, at).ljust(4096, b'\\0')
        if block != zeros: digest.update(struct.pack('<Q', at) + block)
        at += 4096
print(digest.hexdigest())
";
    let output =
        Command::new("python3").args(["-c", SCRIPT]).arg(path).output().expect("python3 is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
