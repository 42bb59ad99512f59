//! A raw file through the whole stack, against the same file through std.

use drystone_core::buf::Buf;
use drystone_core::graph::open::{NodeSpec, OpenMode};
use drystone_exec_tokio::{BackendKind, Config, run};

#[test]
fn what_is_written_is_in_the_file_and_reads_back() {
    let path = std::env::temp_dir().join(format!("drystone-raw-{}", std::process::id()));
    std::fs::write(&path, vec![7u8; 1 << 20]).expect("a temporary file");
    let mode = OpenMode { writable: true, ..OpenMode::default() };
    let spec = NodeSpec::raw(NodeSpec::file(path.to_str().expect("UTF-8"), mode));
    for backend in [BackendKind::Threads, BackendKind::IoUring] {
        let config = Config { backend, ..Config::default() };
        run(config, async |client| {
            let disk = client.open(&spec).await.expect("opens");
            assert_eq!(disk.len(), 1 << 20);
            let written = disk.write(4097, Buf::from(vec![9u8; 10_000])).await;
            written.1.expect("writes");
            let (data, result) = disk.read(4096, Buf::zeroed(10_002)).await;
            result.expect("reads");
            let data = data.into_single();
            assert_eq!((data[0], data[1], data[10_000], data[10_001]), (7, 9, 9, 7));
            disk.flush().await.expect("flushes");
            disk.close().await.expect("closes");
            assert!(client.graph().is_empty());
            disk.read(0, Buf::zeroed(1)).await.1.expect_err("closed");
        })
        .expect("tokio starts");
    }
    let bytes = std::fs::read(&path).expect("the file is still there");
    assert_eq!(bytes.iter().filter(|byte| **byte == 9).count(), 10_000);
    std::fs::remove_file(&path).expect("the file is still there");
}
