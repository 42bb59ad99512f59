//! NVMe namespaces as leaves of every executor: the same bytes and refusals as files have, on a simulated controller.
//!
//! `DRYSTONE_TEST_NVME=0000:01:00.0/4` names a namespace of 8 MiB with blocks of 512 bytes on a real controller; the next one
//! has blocks of 4096 bytes. **Both are overwritten.** Run with `--test-threads 1` then: a device is one process's, and each
//! case opens it anew.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use drystone_core::buf::Buf;
use drystone_core::error::Result;
use drystone_core::format::qcow2::{CreateOptions, create};
use drystone_core::graph::open::{NodeSpec, OpenMode, open};
use drystone_core::graph::options::from_filename;
use drystone_core::intent::ZeroFlags;
use drystone_drivers::nvme::sim::{Fault, Sim, SimConfig, SimNamespace};
use drystone_drivers::nvme::{Device, Options};
use drystone_exec_linux::{Client, Image};

/// Makes a test of every case on every executor.
macro_rules! cases {
    ($($case:ident),+) => {
        cases!(@executor linux, drystone_exec_linux::run, Always, $($case),+);
        cases!(@executor tokio, drystone_exec_tokio::run, Always, $($case),+);
        cases!(@executor monoio, drystone_exec_monoio::run, Always, $($case),+);
        cases!(@executor glommio, drystone_exec_glommio::run, Always, $($case),+);
        cases!(@executor linux_interrupts, drystone_exec_linux::run, Never, $($case),+);
        cases!(@executor tokio_adaptive, drystone_exec_tokio::run, Adaptive, $($case),+);
        cases!(@executor monoio_interrupts, drystone_exec_monoio::run, Never, $($case),+);
        cases!(@executor glommio_interrupts, drystone_exec_glommio::run, Never, $($case),+);
    };
    (@executor $name:ident, $run:path, $polling:ident, $($case:ident),+) => {
        mod $name {
            $(#[test]
            fn $case() {
                let target = super::Target::new(concat!(stringify!($name), "-", stringify!($case)));
                let polling = drystone_exec_linux::Polling::$polling;
                let config = drystone_exec_linux::Config { polling, ..Default::default() };
                $run(config, async |client| super::$case(&client, &target).await)
                    .expect("the kernel has it all");
                target.end();
            })+
        }
    };
}

cases!(
    bytes_are_those_of_a_vector,
    an_image_in_a_namespace_is_like_any_other,
    a_reset_beneath_an_image_goes_unnoticed,
    many_requests_at_once,
    other_threads_reach_it,
    jobs_have_buffers_that_the_device_reaches,
    a_namespace_that_is_formatted_anew_is_used_no_more,
    what_cannot_open_says_why
);

/// A controller, simulated or not: its namespace 1 has blocks of 512 bytes, 2 of 4096.
struct Target {
    sim: Option<Sim>,
    device: String,
    /// The controller's number of namespace 1.
    first: u32,
}

impl Target {
    fn new(name: &str) -> Self {
        if let Ok(named) = std::env::var("DRYSTONE_TEST_NVME") {
            let (device, first) = named.rsplit_once('/').expect("DRYSTONE_TEST_NVME=0000:01:00.0/4");
            return Self { sim: None, device: device.into(), first: first.parse().expect("a number") };
        }
        let namespaces = vec![SimNamespace::new(512, 8 << 20), SimNamespace::new(4096, 8 << 20)];
        let sim = Sim::threaded(SimConfig { namespaces, seed: Some(7), ..SimConfig::default() });
        sim.register(name);
        Self { sim: Some(sim), device: format!("sim:{name}"), first: 1 }
    }

    fn path(&self, namespace: u32) -> String {
        format!("nvme://{}/{}", self.device, self.first + namespace - 1)
    }

    fn spec(&self, namespace: u32, format: &str, writable: bool) -> NodeSpec {
        let mode = OpenMode { writable, ..OpenMode::default() };
        from_filename(&self.path(namespace), Some(format), mode).expect("legal")
    }

    /// The device, while an image has it open.
    fn opened(&self) -> Arc<Device> {
        drystone_drivers::nvme::open(&self.device, Options::default()).expect("it is open")
    }

    fn end(self) {
        if let Some(sim) = self.sim {
            assert!(sim.controller().is_shut_down(), "the controller was shut down");
            assert_eq!((sim.mapped(), sim.violations()), (0, 0), "nothing stays mapped");
        }
    }
}

async fn bytes_are_those_of_a_vector(client: &Client, target: &Target) {
    for namespace in [1, 2] {
        let disk = client.open(&target.spec(namespace, "raw", true)).await.expect("opens");
        assert_eq!(disk.len(), 8 << 20);
        disk.write_zeroes(0, 8 << 20, ZeroFlags::default()).await.expect("a clean disk");
        let mut model = vec![0; 8 << 20];
        random_operations(client, &disk, &mut model, u64::from(namespace)).await;
        let (data, result) = disk.read(0, client.buffer(8 << 20)).await;
        result.expect("reads all of it");
        assert!(*data.into_single() == model, "{namespace}");
        disk.close().await.expect("closes");
        if let Some(sim) = &target.sim {
            let mut controller = sim.controller();
            assert!(controller.config().namespaces[namespace as usize - 1].bytes() == model, "{namespace}");
        }
    }
}

/// Reads, writes, zeros and discards at any offset and length, one after the other, against a vector in memory.
async fn random_operations(client: &Client, disk: &Image, model: &mut [u8], seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    for step in 0..150 {
        let len = random.usize(1..200_000);
        let at = random.usize(..model.len() - len);
        let case = format!("seed {seed}, step {step}: {len} bytes at {at}");
        // Memory of the device's, or any other.
        let mut data = if random.bool() { client.buffer(len) } else { Buf::zeroed(len) };
        match random.u32(..8) {
            0..4 => {
                let (data, result) = disk.read(at as u64, data).await;
                result.expect(&case);
                assert!(*data.into_single() == model[at..at + len], "{case}");
            }
            4..7 => {
                data.fill_with(|| random.u8(..));
                model[at..at + len].copy_from_slice(&data);
                disk.write(at as u64, data).await.1.expect(&case);
            }
            _ => {
                let flags = ZeroFlags { may_unmap: random.bool(), no_fallback: false };
                disk.write_zeroes(at as u64, len as u64, flags).await.expect(&case);
                model[at..at + len].fill(0);
            }
        }
    }
    disk.flush().await.expect("flushes");
}

/// Makes a qcow2 image of `size` bytes in a namespace.
async fn make(client: &Client, target: &Target, namespace: u32, size: u64) -> Result<()> {
    let raw = target.spec(namespace, "raw", true);
    client
        .run(async move |io| {
            let file = open(&io, &raw).await?;
            create(&io, file, &CreateOptions::new(size)).await?;
            io.close(file).await
        })
        .await
}

async fn an_image_in_a_namespace_is_like_any_other(client: &Client, target: &Target) {
    for namespace in [1, 2] {
        make(client, target, namespace, 6 << 20).await.expect("an empty image");
        let disk = client.open(&target.spec(namespace, "qcow2", true)).await.expect("opens");
        let mut model = vec![0; 6 << 20];
        random_operations(client, &disk, &mut model, 10 + u64::from(namespace)).await;
        disk.close().await.expect("closes");
        let disk = client.open(&target.spec(namespace, "qcow2", false)).await.expect("opens again");
        let (data, result) = disk.read(0, Buf::zeroed(6 << 20)).await;
        result.expect("reads all of it");
        assert!(*data.into_single() == model, "{namespace}");
        disk.close().await.expect("closes");
    }
}

async fn a_reset_beneath_an_image_goes_unnoticed(client: &Client, target: &Target) {
    make(client, target, 1, 6 << 20).await.expect("an empty image");
    let disk = client.open(&target.spec(1, "qcow2", true)).await.expect("opens");
    let device = target.opened();
    let thread = match &target.sim {
        Some(sim) => {
            let mut count = 0;
            sim.controller().inject(move |queue, _| {
                count += u32::from(queue > 0);
                if queue > 0 && count % 50 == 0 { Fault::WrongCid(0x7777) } else { Fault::None }
            });
            None
        }
        None => Some(std::thread::spawn({
            let device = Arc::clone(&device);
            move || {
                for _ in 0..4 {
                    device.reset();
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        })),
    };
    let mut model = vec![0; 6 << 20];
    random_operations(client, &disk, &mut model, 20).await;
    if let Some(sim) = &target.sim {
        sim.controller().relent();
    }
    if let Some(thread) = thread {
        thread.join().expect("no panic");
    }
    let (data, result) = disk.read(0, client.buffer(6 << 20)).await;
    result.expect("reads all of it");
    assert!(*data.into_single() == model);
    // Resets that are asked for while one goes on are one reset; real controllers take their time.
    let least = if target.sim.is_some() { 3 } else { 1 };
    assert!(device.resets().0 >= least, "{:?}", device.resets());
    drop(device);
    disk.close().await.expect("closes");
}

async fn many_requests_at_once(client: &Client, target: &Target) {
    let disk = client.open(&target.spec(2, "raw", true)).await.expect("opens");
    let writes: Vec<_> =
        (0..600u64).map(|block| disk.write(block * 4096, Buf::from(vec![block as u8; 4096]))).collect();
    for write in writes {
        write.await.1.expect("writes");
    }
    let (data, result) = disk.read(0, client.buffer(600 * 4096)).await;
    result.expect("reads");
    let data = data.into_single();
    assert!(
        data.chunks(4096).enumerate().all(|(block, bytes)| bytes.iter().all(|byte| *byte == block as u8))
    );
    disk.close().await.expect("closes");
}

async fn other_threads_reach_it(client: &Client, target: &Target) {
    let handle = client.handle();
    let spec = target.spec(1, "raw", true);
    let thread = std::thread::spawn(move || {
        let disk = handle.open(&spec).expect("opens");
        disk.write(512, Buf::from(vec![7; 512])).1.expect("writes");
        let (data, result) = disk.read(0, Buf::zeroed(1024));
        result.expect("reads");
        disk.close().expect("closes");
        data.into_single().to_vec()
    });
    while !thread.is_finished() {
        let sleep = async |io: drystone_core::engine::Io| {
            io.sleep(Duration::from_millis(1)).await;
            Ok(())
        };
        client.run(sleep).await.expect("time passes");
    }
    let bytes = thread.join().expect("no panic");
    assert_eq!((bytes[511], bytes[512], bytes[1023]), (0, 7, 7));
}

async fn jobs_have_buffers_that_the_device_reaches(client: &Client, target: &Target) {
    make(client, target, 2, 4 << 20).await.expect("an empty image");
    for format in ["raw", "qcow2"] {
        let disk = client.open(&target.spec(2, format, true)).await.expect("opens");
        let (node, device) = (disk.node(), target.opened());
        let before = device.arena().free_len();
        let buffer = client.run(async move |io| Ok(io.buffer(&[node], 64 << 10))).await.expect("a buffer");
        assert_eq!((buffer.len(), before - device.arena().free_len()), (64 << 10, 64 << 10), "{format}");
        assert!(buffer.iter().all(|byte| *byte == 0));
        // More than there is comes from elsewhere.
        let large = client.run(async move |io| Ok(io.buffer(&[node], 64 << 20))).await.expect("a buffer");
        assert_eq!((large.len(), before - device.arena().free_len()), (64 << 20, 64 << 10), "{format}");
        drop((buffer, large));
        assert_eq!(device.arena().free_len(), before);
        drop(device);
        disk.close().await.expect("closes");
    }
}

async fn a_namespace_that_is_formatted_anew_is_used_no_more(client: &Client, target: &Target) {
    let Some(sim) = &target.sim else {
        let _ = writeln!(std::io::stderr(), "skipped: a controller that is not simulated stays as it is");
        return;
    };
    let first = client.open(&target.spec(1, "raw", true)).await.expect("opens");
    let second = client.open(&target.spec(2, "raw", true)).await.expect("opens");
    // It moves no data: what is read before the driver knows is of another length than asked for.
    sim.controller().config().namespaces[0] = SimNamespace::nothing(4096, 8 << 20);
    sim.controller().set_log(4, &[1, 0, 0, 0]);
    let until = Instant::now() + Duration::from_secs(30);
    let mut told = false;
    let error = loop {
        told = told || sim.controller().tell(2, 0, 4);
        let (_, result) = second.read(0, Buf::zeroed(4096)).await;
        result.expect("the other namespace is as it was");
        if let Err(error) = first.read(0, Buf::zeroed(4096)).await.1
            && error.to_string().contains("No such device")
        {
            break error;
        }
        assert!(Instant::now() < until, "the namespace is still used");
    };
    assert!(told, "{error}");
    let error = first.write(0, Buf::zeroed(4096)).await.1.expect_err("it is used no more");
    assert!(error.to_string().contains("No such device"), "{error}");
    second.close().await.expect("closes");
    // Whether that says so depends on whether there is anything to flush.
    drop(first.close().await);
}

async fn what_cannot_open_says_why(client: &Client, target: &Target) {
    let check = async |path: &str, expected: &str| {
        let spec = from_filename(path, Some("raw"), OpenMode::default()).expect("legal");
        let error = client.open(&spec).await.err().expect("does not open");
        assert_eq!(error.to_string(), expected);
    };
    let path = target.path(77);
    let number = path.rsplit('/').next().expect("a number");
    check(&path, &format!("Could not open '{path}': the controller has no active namespace {number}")).await;
    check(
        "nvme://ffff:ff:1f.7/1",
        "Could not open 'nvme://ffff:ff:1f.7/1': there is no PCI device ffff:ff:1f.7; `lspci -D` lists those that there \
         are",
    )
    .await;
    check(
        "nvme://disk/1",
        "Could not open 'nvme://disk/1': 'disk' is no PCI address; one looks like 0000:01:00.0",
    )
    .await;
    // Two images that write cannot share a namespace, as with files.
    make(client, target, 1, 1 << 20).await.expect("an empty image");
    let first = client.open(&target.spec(1, "qcow2", true)).await.expect("opens");
    let error = client.open(&target.spec(1, "qcow2", true)).await.err().expect("somebody writes to it");
    let expected =
        format!("Failed to get \"write\" lock\nIs another process using the image [{}]?", target.path(1));
    assert_eq!(error.to_string(), expected);
    first.close().await.expect("closes");
    let again = client.open(&target.spec(1, "qcow2", true)).await.expect("nobody else writes");
    again.close().await.expect("closes");
}
