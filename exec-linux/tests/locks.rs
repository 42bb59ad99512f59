//! Image locks against the programs that have them: QEMU's tools keep out of ours, and ours out of theirs.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use drystone_core::error::Error;
use drystone_core::graph::open::{NodeSpec, OpenMode};
use drystone_core::graph::options::from_filename;
use drystone_core::intent::{Errno, LockRefused, Permissions};
use drystone_exec_linux::{Config, Host, run};

use drystone_core::intent::{Action, LeafAccess, LeafId, Location, Outcome};

const CONSISTENT_READ: Permissions = Permissions::CONSISTENT_READ;
const WRITER: Permissions = Permissions::CONSISTENT_READ.with(Permissions::WRITE).with(Permissions::RESIZE);
const NO_WRITERS: Permissions = Permissions::WRITE.with(Permissions::RESIZE).complement();

#[test]
fn a_writer_of_qemu_keeps_us_out() {
    let image = Image::new("qcow2");
    let qemu = QemuIo::open(&image, &[]);
    let mut host = Host::new();
    let (file, read_only) = (image.open(&mut host, true), image.open(&mut host, false));
    // The words are those that qemu-img and qemu-io 10.0 say in the same place.
    let refused = lock(&mut host, file, WRITER, NO_WRITERS).expect_err("qemu-io writes");
    assert_eq!(message(refused), "Failed to get \"write\" lock");
    let refused = lock(&mut host, read_only, CONSISTENT_READ, NO_WRITERS).expect_err("qemu-io writes");
    assert_eq!(message(refused), "Failed to get shared \"write\" lock");
    lock(&mut host, read_only, CONSISTENT_READ, Permissions::ALL).expect("reading along is shared");
    qemu.quit();
    lock(&mut host, file, WRITER, NO_WRITERS).expect("nobody is left but the reader, who shares all");
}

#[test]
fn a_reader_of_qemu_lets_readers_in() {
    let image = Image::new("qcow2");
    let qemu = QemuIo::open(&image, &["-r"]);
    let mut host = Host::new();
    let (file, read_only) = (image.open(&mut host, true), image.open(&mut host, false));
    lock(&mut host, read_only, CONSISTENT_READ, NO_WRITERS).expect("two readers");
    let refused = lock(&mut host, file, WRITER, NO_WRITERS).expect_err("qemu-io reads");
    assert_eq!(message(refused), "Failed to get \"write\" lock");
    qemu.quit();
}

#[test]
fn we_keep_qemu_out() {
    let image = Image::new("qcow2");
    let mut host = Host::new();
    let file = image.open(&mut host, true);
    let says = |arguments: &[&str]| {
        let output = Command::new("qemu-img").args(arguments).arg(&image.0).output().expect("qemu-img runs");
        String::from_utf8(output.stderr).expect("UTF-8")
    };
    assert_eq!(says(&["info"]), "");
    lock(&mut host, file, WRITER, NO_WRITERS).expect("nobody else");
    let refusal = says(&["info"]);
    assert!(refusal.contains("Failed to get shared \"write\" lock"), "{refusal}");
    assert_eq!(says(&["info", "-U"]), "");
    let refusal = says(&["check"]);
    assert!(refusal.contains("lock"), "{refusal}");
    // Giving up the writing leaves a reader.
    lock(&mut host, file, CONSISTENT_READ, NO_WRITERS).expect("fewer permissions");
    assert_eq!(says(&["info"]), "");
    let refusal = says(&["snapshot", "-c", "name"]);
    assert!(refusal.contains("Failed to get \"write\" lock"), "{refusal}");
    assert!(matches!(host.carry_out(Action::Close { leaf: file }), Outcome::Done(Ok(()))));
    assert_eq!(says(&["snapshot", "-c", "name"]), "");
}

#[test]
fn a_refused_change_leaves_the_locks_as_they_were() {
    let image = Image::new("raw");
    let mut host = Host::new();
    let (first, second) = (image.open(&mut host, true), image.open(&mut host, true));
    lock(&mut host, first, CONSISTENT_READ, NO_WRITERS).expect("nobody else");
    lock(&mut host, second, CONSISTENT_READ, Permissions::ALL).expect("two readers");
    lock(&mut host, second, WRITER, NO_WRITERS).expect_err("the first reader shares no writing");
    // The second still shares everything: the first may begin to write.
    lock(&mut host, first, WRITER, NO_WRITERS).expect("the second reader shares all");
    let refused = lock(&mut host, second, CONSISTENT_READ, NO_WRITERS).expect_err("the first writes");
    assert!(matches!(refused, LockRefused::Conflict { permission: Permissions::WRITE, shared: true }));
}

#[test]
fn opening_an_image_takes_the_locks() {
    let image = Image::new("raw");
    let mut host = Host::new();
    let file = image.open(&mut host, false);
    lock(&mut host, file, CONSISTENT_READ, NO_WRITERS).expect("nobody else");
    run(Config::default(), async |client| {
        let open = async |mode| client.open(&NodeSpec::raw(NodeSpec::file(image.0.as_str(), mode))).await;
        let writable = OpenMode { writable: true, ..OpenMode::default() };
        let error = open(writable).await.map(drop).expect_err("a reader shares no writing");
        assert!(matches!(*error, Error::Locked { .. }));
        assert_eq!(error.errno(), Errno::EAGAIN);
        open(OpenMode { locking: false, ..writable }).await.expect("opens").close().await.expect("closes");
        // The words are those of qemu-io 10.0.
        let error =
            open(OpenMode { force_share: true, ..writable }).await.map(drop).expect_err("no such use");
        assert_eq!(error.to_string(), "force-share=on can only be used with read-only images");
    })
    .expect("starts");
}

#[test]
fn options_of_the_file_count_as_in_qemu() {
    let image = Image::new("qcow2");
    let qemu = QemuIo::open(&image, &[]);
    let file = |option: &str| {
        let path = &image.0;
        let file = format!(r#""file": {{"driver": "file", "filename": "{path}"{option}}}"#);
        format!(r#"json:{{"driver": "qcow2", {file}}}"#)
    };
    let format =
        |option: &str| format!(r#"json:{{"driver": "qcow2"{option}, "file.filename": "{}"}}"#, image.0);
    let on_the_format = r#", "force-share": true"#;
    for (name, opens) in [
        (file(""), false),
        (file(r#", "locking": "on""#), false),
        (file(r#", "locking": "auto""#), false),
        (file(r#", "locking": "off""#), true),
        (file(r#", "force-share": true"#), true),
        (format(""), false),
        (format(on_the_format), true),
        (format(&format!(r#"{on_the_format}, "file.force-share": false"#)), false),
    ] {
        let theirs = Command::new("qemu-io").args(["-r", "-c", "length", &name]).output().expect("runs");
        assert_eq!(theirs.status.success(), opens, "qemu-io, {name}");
        let spec = from_filename(&name, None, OpenMode::default()).expect(&name);
        run(Config::default(), async |client| match client.open(&spec).await {
            Ok(disk) => {
                assert!(opens, "{name} opens");
                disk.close().await.expect("closes");
            }
            Err(error) => assert!(!opens && matches!(*error, Error::Locked { .. }), "{name}: {error}"),
        })
        .expect("starts");
    }
    qemu.quit();
}

#[test]
fn a_reader_that_shares_all_is_seen_by_others() {
    let image = Image::new("raw");
    let mode = OpenMode { force_share: true, ..OpenMode::default() };
    run(Config::default(), async |client| {
        let disk = client.open(&NodeSpec::raw(NodeSpec::file(image.0.as_str(), mode))).await.expect("opens");
        // One byte is locked: that of the consistent read, as by `qemu-io -U -r`.
        let ours = locked_bytes(&image);
        disk.close().await.expect("closes");
        let qemu = QemuIo::open_as(&image, "raw", &["-U", "-r"]);
        assert_eq!(ours, locked_bytes(&image));
        assert_eq!(ours, [(100, 100)]);
        qemu.quit();
    })
    .expect("starts");
}

/// The ranges of the image that anybody has locked, as the kernel lists them.
fn locked_bytes(image: &Image) -> Vec<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let inode = std::fs::metadata(&image.0).expect("it is there").ino().to_string();
    let locks = std::fs::read_to_string("/proc/locks").expect("the kernel lists them");
    let of_image = locks.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [.., file, first, last] = fields[..] else { return None };
        (file.rsplit(':').next() == Some(&inode)).then(|| (first.parse(), last.parse()))
    });
    of_image.map(|(first, last)| (first.expect("a number"), last.expect("a number"))).collect()
}

fn lock(host: &mut Host, leaf: LeafId, holds: Permissions, shares: Permissions) -> Result<(), LockRefused> {
    match host.carry_out(Action::Lock { leaf, holds, shares }) {
        Outcome::Locked(result) => result,
        other => panic!("a lock was answered with {other:?}"),
    }
}

/// The first line of what the user reads.
fn message(refused: LockRefused) -> String {
    let text = Error::Locked { location: String::new(), refused }.to_string();
    text.lines().next().unwrap_or_default().to_owned()
}

/// An image that goes when this does.
struct Image(String);

impl Image {
    fn new(format: &str) -> Self {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("drystone-locks-{}-{number}", std::process::id()));
        let path = path.to_str().expect("UTF-8").to_owned();
        let made = Command::new("qemu-img").args(["create", "-q", "-f", format, &path, "1M"]).status();
        assert!(made.expect("qemu-img runs").success());
        Self(path)
    }

    fn open(&self, host: &mut Host, writable: bool) -> LeafId {
        let access = LeafAccess { writable, ..LeafAccess::default() };
        host.open(&Location::Path(self.0.clone()), access).expect("opens").leaf
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A `qemu-io` that has an image open, and waits.
struct QemuIo(Child);

impl QemuIo {
    fn open(image: &Image, options: &[&str]) -> Self {
        Self::open_as(image, "qcow2", options)
    }

    fn open_as(image: &Image, format: &str, options: &[&str]) -> Self {
        let mut command = Command::new("qemu-io");
        command.args(options).args(["-f", format, &image.0]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("qemu-io is installed");
        let mut commands = child.stdin.as_ref().expect("a pipe");
        commands.write_all(b"read 0 512\n").expect("qemu-io listens");
        let mut answer = String::new();
        BufReader::new(child.stdout.as_mut().expect("a pipe"))
            .read_line(&mut answer)
            .expect("qemu-io answers");
        assert!(answer.contains("read 512/512"), "{answer}");
        Self(child)
    }

    fn quit(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().expect("qemu-io ends").success());
    }
}
