//! Nodes that several others have open: the last to close one closes it, and what they do with it must go together.

use std::path::PathBuf;
use std::process::Command;

use drystone_core::buf::Buf;
use drystone_core::graph::open::{NodeSpec, OpenMode};
use drystone_core::graph::options::from_filename;
use drystone_exec_linux::{Client, Config, Image, run};

const WRITABLE: OpenMode = OpenMode { writable: true, ..READING };
const READING: OpenMode = OpenMode {
    writable: false,
    direct: false,
    no_flush: false,
    write_through: false,
    discard: true,
    aio: drystone_core::intent::Aio::Auto,
    force_share: false,
    locking: true,
    names: drystone_core::graph::open::ImageNames::Follow,
    takes: drystone_core::intent::Permissions::RESIZE,
    denies: drystone_core::intent::Permissions::NONE,
    commits_down: 0,
    detect_zeroes: drystone_core::graph::DetectZeroes::Off,
};

#[test]
fn the_last_parent_closes_a_file() {
    let image = TempImage::qcow2("1M", None);
    run(Config::default(), async |client| {
        let file = named(&client, "f", &image, READING).await;
        let first = open(&client, r#"{"driver": "qcow2", "node-name": "a", "file": "f"}"#, READING).await;
        let second = open(&client, r#"{"driver": "qcow2", "node-name": "b", "file": "f"}"#, READING).await;
        assert_eq!(names(&client), ["f", "a", "b"]);
        file.close().await.expect("closes for its opener");
        first.close().await.expect("closes");
        assert_eq!(names(&client), ["f", "b"]);
        // What nobody has in memory yet is read through the file.
        let (data, result) = second.read(0, Buf::from(vec![0xee; 65_536])).await;
        result.expect("its file is open");
        assert!(data.is_zero());
        second.close().await.expect("closes");
        assert!(client.graph().is_empty());
    })
    .expect("starts");
}

#[test]
fn overlays_share_a_base() {
    let base = TempImage::qcow2("1M", None);
    let wrote = Command::new("qemu-io").args(["-c", "write -P 7 0 128k", &base.path()]).output();
    assert!(wrote.expect("qemu-io runs").status.success());
    let overlays = [TempImage::qcow2("1M", Some(&base)), TempImage::qcow2("1M", Some(&base))];
    run(Config::default(), async |client| {
        let of =
            r#"{"driver": "qcow2", "node-name": "base", "file": {"driver": "file", "filename": "PATH"}}"#;
        let shared = open(&client, &of.replace("PATH", &base.path()), READING).await;
        let of = r#"{"driver": "qcow2", "backing": "base", "file": {"driver": "file", "filename": "PATH"}}"#;
        let mut disks = Vec::new();
        for overlay in &overlays {
            disks.push(open(&client, &of.replace("PATH", &overlay.path()), WRITABLE).await);
        }
        shared.close().await.expect("closes for its opener");
        while let Some(disk) = disks.pop() {
            disk.write(512, Buf::from(vec![1; 512])).await.1.expect("copies the rest of the cluster");
            let (data, result) = disk.read(0, Buf::zeroed(1024)).await;
            result.expect("the base is open");
            let data = data.into_single();
            assert!(data[..512].iter().all(|byte| *byte == 7) && data[512..].iter().all(|byte| *byte == 1));
            disk.close().await.expect("closes");
        }
        assert!(client.graph().is_empty());
    })
    .expect("starts");
}

#[test]
fn uses_that_conflict_are_refused_in_the_words_of_qemu() {
    let image = TempImage::qcow2("1M", None);
    let daemon = Command::new("qemu-storage-daemon")
        .args(["--blockdev", &format!("driver=file,node-name=f,filename={}", image.path())])
        .args(["--blockdev", "driver=qcow2,node-name=a,file=f"])
        .args(["--blockdev", "driver=qcow2,node-name=b,file=f"])
        .output()
        .expect("qemu-storage-daemon runs");
    let theirs = String::from_utf8(daemon.stderr).expect("UTF-8");
    run(Config::default(), async |client| {
        let file = named(&client, "f", &image, WRITABLE).await;
        let of = |name| format!(r#"json:{{"driver": "qcow2", "node-name": "{name}", "file": "f"}}"#);
        let spec = |name| from_filename(&of(name), None, WRITABLE).expect("legal");
        let first = client.open(&spec("a")).await.expect("opens");
        let error = client.open(&spec("b")).await.map(drop).expect_err("two would write the metadata");
        assert!(theirs.trim_end().ends_with(&error.to_string()), "{error}\n{theirs}");
        // What failed has left nothing behind.
        first.write(0, Buf::from(vec![1; 512])).await.1.expect("its file is open");
        first.close().await.expect("closes");
        client.open(&spec("b")).await.expect("nobody else").close().await.expect("closes");
        // With the parents their locks are gone too, though the file is open.
        let qemu = Command::new("qemu-io").args(["-c", "write 0 512", &image.path()]).output();
        assert!(qemu.expect("qemu-io runs").status.success());
        file.close().await.expect("closes");
        assert!(client.graph().is_empty());
    })
    .expect("starts");
}

async fn named(client: &Client, name: &str, image: &TempImage, mode: OpenMode) -> Image {
    let spec = NodeSpec { node_name: Some(name.into()), ..NodeSpec::file(image.path(), mode) };
    client.open(&spec).await.expect("opens")
}

async fn open(client: &Client, json: &str, mode: OpenMode) -> Image {
    let spec = from_filename(&format!("json:{json}"), None, mode).expect(json);
    client.open(&spec).await.expect(json)
}

fn names(client: &Client) -> Vec<String> {
    client.graph().into_iter().map(|node| node.name).collect()
}

/// An image that goes when this does.
struct TempImage(PathBuf);

impl TempImage {
    fn qcow2(size: &str, backing: Option<&Self>) -> Self {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("drystone-nodes-{}-{number}", std::process::id()));
        let mut command = Command::new("qemu-img");
        command.args(["create", "-q", "-f", "qcow2"]);
        if let Some(backing) = backing {
            command.args(["-F", "qcow2", "-b", &backing.path()]);
        }
        let made = command.arg(&path).arg(size).status();
        assert!(made.expect("qemu-img runs").success());
        Self(path)
    }

    fn path(&self) -> String {
        self.0.to_str().expect("UTF-8").into()
    }
}

impl Drop for TempImage {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
