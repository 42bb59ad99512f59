//! A runtime that goes with requests in flight: the kernel lets go of their buffers first.

use std::rc::Rc;
use std::time::{Duration, Instant};

use drystone_core::buf::Buf;
use drystone_core::graph::open::{NodeSpec, OpenMode};
use drystone_exec_tokio::{BackendKind, Config, start};
use tokio::runtime::{Builder, LocalOptions};

#[test]
fn a_runtime_may_be_dropped_at_any_time() {
    let path = std::env::temp_dir().join(format!("drystone-drop-{}", std::process::id()));
    std::fs::write(&path, vec![0; 8 << 20]).expect("a temporary file");
    let mode = OpenMode { writable: true, direct: true, ..OpenMode::default() };
    let spec = NodeSpec::raw(NodeSpec::file(path.to_str().expect("UTF-8"), mode));
    let begin = Instant::now();
    for backend in [BackendKind::IoUring, BackendKind::Threads] {
        for round in 1..=20u8 {
            let runtime = Builder::new_current_thread().enable_io().build_local(LocalOptions::default());
            let runtime = runtime.expect("tokio starts");
            runtime.block_on(async {
                let client = start(Config { backend, ..Config::default() }).expect("starts");
                let disk = Rc::new(client.open(&spec).await.expect("opens"));
                tokio::task::spawn_local(async move {
                    client
                        .run(|io| async move {
                            io.sleep(Duration::from_hours(1)).await;
                            Ok(())
                        })
                        .await
                });
                for block in 0..128 {
                    let disk = Rc::clone(&disk);
                    tokio::task::spawn_local(async move {
                        let _ = disk.write(block * 65_536, Buf::from(vec![round; 65_536])).await;
                    });
                }
                // Lets the tasks begin, and the driver hand over what they ask for.
                for _ in 0..round % 4 + 1 {
                    tokio::task::yield_now().await;
                }
            });
        }
    }
    assert!(begin.elapsed() < Duration::from_secs(60));
    let bytes = std::fs::read(&path).expect("it is there");
    std::fs::remove_file(&path).expect("it is there");
    assert!(bytes.iter().any(|byte| *byte != 0), "nothing was in flight");
    // Each block is whole: of one round or another.
    assert!(bytes.chunks(65_536).all(|block| block.iter().all(|byte| *byte == block[0])));
}
