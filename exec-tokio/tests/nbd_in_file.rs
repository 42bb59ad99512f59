//! A server leaves large reads of what the kernel has in memory to the kernel.

use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicUsize, Ordering};

use drystone_core::buf::{Buf, BufList};
use drystone_core::graph::open::OpenMode;
use drystone_core::graph::options::from_filename;
use drystone_core::intent::{Action, Intent};
use drystone_core::protocol::nbd::server::Export;
use drystone_exec_tokio::{Client, Config, Image, NbdExport, NbdPlan, run};

const LEN: usize = 1 << 20;

static READS: AtomicUsize = AtomicUsize::new(0);

fn count(intent: &Intent) {
    if matches!(intent.action, Action::Read { .. }) {
        READS.fetch_add(1, Ordering::Relaxed);
    }
}

async fn open(client: &Client, options: String) -> Image {
    let mode = OpenMode { writable: true, ..OpenMode::default() };
    let spec = from_filename(&format!("json:{options}"), None, mode).expect("plain options");
    client.open(&spec).await.expect("it is there")
}

async fn read(image: &Image, offset: usize, len: usize) -> Result<Vec<u8>, String> {
    let (data, result) = image.read(offset as u64, BufList::from(Buf::zeroed(len))).await;
    result.map(|()| data.into_single().to_vec()).map_err(|error| error.to_string())
}

/// Whether the kernel has `cachestat`, which came with Linux 6.5.
fn kernel_tells() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("Linux says its release");
    let mut numbers = release.split(|byte: char| !byte.is_ascii_digit()).map_while(|text| text.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 5)
}

#[test]
fn large_reads_are_sent_out_of_the_page_cache() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, socket) = (folder.path().join("disk"), folder.path().join("socket"));
    let mut bytes: Vec<u8> = (0..LEN).map(|at| (at / 512 * 7) as u8 | 1).collect();
    std::fs::write(&file, &bytes).expect("room");
    let config = Config { trace: Some(count), ..Config::default() };
    let done = run(config, async |client| {
        let window = format!(
            r#"{{"driver": "raw", "offset": 4096, "file": {{"driver": "file", "filename": {file:?}}}}}"#
        );
        let image = open(&client, window).await;
        let export = Export::new("", image.len());
        let export = NbdExport { image: image.clone(), export, bitmaps: Vec::new() };
        let listener = UnixListener::bind(&socket).expect("the folder is ours");
        let server = client.serve(NbdPlan::new(listener.into(), vec![export])).expect("sockets are watched");
        let leaf = format!(r#"{{"driver": "nbd", "server": {{"type": "unix", "path": {socket:?}}}}}"#);
        let disk = open(&client, format!(r#"{{"driver": "raw", "file": {leaf}}}"#)).await;

        let mut reads = Vec::new();
        for (offset, len) in
            [(0, 512 << 10), (4096, 32 << 10), (511, 70_001), (0, 4096), (4096, (32 << 10) - 1)]
        {
            let before = READS.load(Ordering::Relaxed);
            assert!(read(&disk, offset, len).await.as_deref() == Ok(&bytes[4096 + offset..][..len]));
            reads.push(READS.load(Ordering::Relaxed) - before);
        }
        // The client's, and the server's where it has to read itself.
        match kernel_tells() {
            true => assert_eq!(reads, [1, 1, 1, 2, 2]),
            false => eprintln!("skipped: this kernel does not tell what it has cached"),
        }

        // A write that was answered is seen.
        let (_, written) = disk.write(100_000, BufList::from(Buf::from(vec![99; 50_000]))).await;
        written.expect("it is writable");
        bytes[104_096..154_096].fill(99);
        assert!(read(&disk, 90_000, 100_000).await.as_deref() == Ok(&bytes[94_096..194_096]));

        // A file that has become too short reads as the engine says, and the connection goes on.
        let cut = std::fs::OpenOptions::new().write(true).open(&file).expect("it is there");
        cut.set_len(64 << 10).expect("it is ours");
        let short = read(&disk, 0, 128 << 10).await.expect("what is beyond the end of a file is zeros");
        assert!(short[..60 << 10] == bytes[4096..64 << 10]);
        assert!(short[60 << 10..].iter().all(|byte| *byte == 0));

        disk.close().await.expect("nothing is left to do");
        server.stop();
        server.ended().await;
        image.close().await.expect("nothing is left to do");
    });
    done.expect("the kernel has what the executor needs");
}
