//! Reads of a polled device make no system call, with no format and with qcow2 on top.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use drystone_core::buf::BufList;
use drystone_core::engine::Io;
use drystone_core::format::qcow2::{CreateOptions, create};
use drystone_core::graph::open::{NodeSpec, OpenMode, open};
use drystone_core::graph::options::from_filename;
use drystone_drivers::nvme::sim::{Sim, SimConfig, SimNamespace};
use drystone_exec_linux::{Client, Config, Image, run};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

/// Says to a process of this program which format it is to read without system calls.
const FORMAT: &str = "DRYSTONE_READS_WITHOUT_SYSTEM_CALLS";

const LEN: u64 = 8 << 20;

fn spec(format: &str) -> NodeSpec {
    let mode = OpenMode { writable: true, ..OpenMode::default() };
    from_filename("nvme://sim:polled_path/1", Some(format), mode).expect("a legal name")
}

/// An image of which all is allocated and all metadata is in memory.
async fn image(client: &Client, format: &str) -> Image {
    if format == "qcow2" {
        let raw = spec("raw");
        let made = client.run(async move |io: Io| {
            let file = open(&io, &raw).await?;
            create(&io, file, &CreateOptions::new(LEN)).await?;
            io.close(file).await
        });
        made.await.expect("the namespace is large enough");
    }
    let image = client.open(&spec(format)).await.expect("opens");
    for at in (0..LEN).step_by(1 << 20) {
        let mut data = client.buffer(1 << 20);
        data.fill(7);
        image.write(at, data).await.1.expect("a controller without faults");
    }
    image
}

async fn reads(image: &Image, mut data: BufList, count: u64) -> BufList {
    for n in 0..count {
        let (back, result) = image.read(n * 7919 % (LEN / 4096) * 4096, data).await;
        result.expect("a controller without faults");
        data = back;
    }
    data
}

/// Reads once everything that happens once has happened, between `before` and `after`.
fn read_warm(format: &str, before: impl FnOnce(), after: impl FnOnce()) {
    let namespaces = vec![SimNamespace::new(4096, 2 * LEN)];
    let sim = Sim::stepwise(SimConfig { namespaces, ..SimConfig::default() });
    sim.register("polled_path");
    let work = async |client: Client| {
        let image = image(&client, format).await;
        let data = reads(&image, client.buffer(4096).into(), 1000).await;
        before();
        let data = reads(&image, data, 10_000).await;
        after();
        drop(data);
        image.close().await.expect("closes");
    };
    run(Config::default(), work).expect("the kernel has it all");
}

fn no_system_calls_from_now_on() {
    let arch = std::env::consts::ARCH.try_into().expect("an architecture with filters");
    let none = Default::default();
    let filter = SeccompFilter::new(none, SeccompAction::KillProcess, SeccompAction::Allow, arch);
    let program: BpfProgram = filter.expect("legal").try_into().expect("short");
    apply_filter(&program).expect("any thread may give up rights");
}

/// A process of its own, which the kernel kills at the first system call of the thread that reads.
#[test]
fn reads_make_no_system_call() {
    if let Ok(format) = std::env::var(FORMAT) {
        static DONE: AtomicBool = AtomicBool::new(false);
        let done = || {
            DONE.store(true, Ordering::Release);
            // Whatever comes next takes system calls.
            loop {
                std::hint::spin_loop();
            }
        };
        std::thread::spawn(move || read_warm(&format, no_system_calls_from_now_on, done));
        while !DONE.load(Ordering::Acquire) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        std::process::exit(0);
    }
    for format in ["raw", "qcow2"] {
        let program = std::env::current_exe().expect("this test runs");
        let arguments = ["--exact", "reads_make_no_system_call", "--nocapture"];
        let child = Command::new(program).args(arguments).env(FORMAT, format).output().expect("starts");
        assert!(child.status.success(), "{format}: {}", child.status);
    }
}
