//! What a request allocates once everything is warm: nothing, in engine, executor and runtime together.

#[path = "../../core/tests/counting/mod.rs"]
mod counting;

use counting::allocations;
use drystone_core::buf::{Buf, BufList};
use drystone_core::graph::open::{NodeSpec, OpenMode};
use drystone_exec_tokio::{BackendKind, Config, run};

#[test]
fn reads_and_writes_allocate_nothing() {
    let path = std::env::temp_dir().join(format!("drystone-allocations-{}", std::process::id()));
    std::fs::write(&path, vec![7; 1 << 20]).expect("a temporary file");
    let mode = OpenMode { writable: true, ..OpenMode::default() };
    let spec = NodeSpec::raw(NodeSpec::file(path.to_str().expect("UTF-8"), mode));
    let config = Config { backend: BackendKind::IoUring, ..Config::default() };
    let allocated = run(config, async |client| {
        let disk = client.open(&spec).await.expect("opens");
        let mut buffers: Vec<BufList> = (0..16).map(|_| Buf::zeroed(4096).into()).collect();
        let mut before = 0;
        // The first rounds fill slabs, queues and the runtime's own lists.
        for round in 0..40 {
            if round == 20 {
                before = allocations();
            }
            for (slot, data) in buffers.iter_mut().enumerate() {
                let at = ((slot * 37 + round) % 256 * 4096) as u64;
                let (back, result) = disk.read(at, std::mem::take(data)).await;
                result.expect("reads");
                let (back, result) = disk.write(at, back).await;
                result.expect("writes");
                *data = back;
            }
        }
        let allocated = allocations() - before;
        disk.close().await.expect("closes");
        allocated
    });
    std::fs::remove_file(&path).expect("it is there");
    assert_eq!(allocated.expect("the kernel has it all"), 0);
}
