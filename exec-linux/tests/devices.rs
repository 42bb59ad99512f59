//! Block devices, on a loop device. Needs the right to set one up, and says so when it is missing.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;

use drystone_core::buf::Buf;
use drystone_core::graph::open::{NodeSpec, OpenMode};
use drystone_core::intent::{
    Action, Errno, LeafAccess, LeafId, LeafKind, LeafStatus, Location, Outcome, Preallocation, ZeroFlags,
};
use drystone_exec_linux::{BackendKind, Config, Host, run};

const LEN: u64 = 4 << 20;

#[test]
fn a_device_is_what_the_kernel_says() {
    let Some(device) = LoopDevice::new() else { return };
    let mut host = Host::new();
    let location = Location::Path(device.path.clone());
    let info = host.open(&location, LeafAccess::default()).expect("opens");
    assert_eq!((info.kind, info.len, info.request_align), (LeafKind::HostDevice, LEN, 1));
    let direct = LeafAccess { writable: true, direct: true, ..LeafAccess::default() };
    let info = host.open(&location, direct).expect("opens");
    assert!([512, 4096].contains(&info.request_align), "{}", info.request_align);
    let leaf = info.leaf;
    assert_eq!(status(&mut host, leaf), LeafStatus::of(LEN, false));
    let set_len =
        |host: &mut Host, len| done(host, Action::SetLen { leaf, len, preallocation: Preallocation::Off });
    assert_eq!(set_len(&mut host, LEN), Ok(()));
    assert_eq!(set_len(&mut host, LEN + 1), Err(Errno::EINVAL));
    let create = |host: &mut Host, len| {
        let location = location.clone();
        done(host, Action::Create { location, len, preallocation: Preallocation::Off })
    };
    assert_eq!(create(&mut host, LEN), Ok(()));
    assert_eq!(create(&mut host, LEN + 512), Err(Errno::ENOSPC));
    assert_eq!(done(&mut host, Action::Remove { location: location.clone() }), Err(Errno::ENOTSUP));
}

#[test]
fn limits_are_those_of_the_kernel() {
    for sector in [512, 4096] {
        let Some(device) = LoopDevice::with_sectors(sector) else { return };
        let blockdev = |question: &str| {
            let output =
                Command::new("blockdev").args([question, &device.path]).output().expect("blockdev runs");
            String::from_utf8(output.stdout).expect("UTF-8").trim().parse::<u32>().expect("a number")
        };
        let mut host = Host::new();
        let location = Location::Path(device.path.clone());
        let info = host.open(&location, LeafAccess::default()).expect("opens");
        assert_eq!((info.request_align, info.transfer_max), (1, 0), "the page cache takes everything");
        let preferred = match blockdev("--getioopt") {
            0 => blockdev("--getpbsz"),
            optimal => optimal,
        };
        assert_eq!(info.preferred_size, preferred);
        let direct = LeafAccess { writable: true, direct: true, ..LeafAccess::default() };
        let info = host.open(&location, direct).expect("opens");
        assert_eq!(info.request_align, sector);
        assert_eq!(info.request_align, blockdev("--getss"));
        assert_eq!(info.transfer_max, blockdev("--getmaxsect") * 512);
    }
}

#[test]
fn requests_are_cut_to_the_commands_of_the_device() {
    let Some(device) = LoopDevice::with_sectors(4096) else { return };
    // A command of a loop device has 1280 KiB at the most, where the kernel was looked at.
    let bytes: Vec<u8> = (0..LEN).map(|at| (at / 1000) as u8).collect();
    for backend in [BackendKind::IoUring, BackendKind::Threads] {
        run(Config { backend, ..Config::default() }, async |client| {
            let mode = OpenMode { writable: true, direct: true, ..OpenMode::default() };
            let disk =
                client.open(&NodeSpec::raw(NodeSpec::file(device.path.clone(), mode))).await.expect("opens");
            disk.write(0, Buf::from(&bytes[..])).await.1.expect("writes");
            disk.write(5000, Buf::from(&b"a word"[..])).await.1.expect("within a sector");
            let (data, result) = disk.read(100, Buf::zeroed(LEN as usize - 100)).await;
            result.expect("reads");
            let data = data.into_single();
            assert!(data[..4900] == bytes[100..5000] && data[4906..] == bytes[5006..]);
            // Less than a unit is not given up.
            disk.discard(8192, 100).await.expect("advice");
            assert_eq!(device.bytes()[8192], bytes[8192]);
            disk.close().await.expect("closes");
        })
        .expect("the kernel has it all");
    }
}

#[test]
fn discards_and_zeros_reach_the_file_behind_it() {
    let Some(device) = LoopDevice::new() else { return };
    for (backend, direct) in [
        (BackendKind::IoUring, false),
        (BackendKind::IoUring, true),
        (BackendKind::Threads, false),
        (BackendKind::Threads, true),
    ] {
        let case = format!("{backend:?}, direct {direct}");
        run(Config { backend, ..Config::default() }, async |client| {
            let mode = OpenMode { writable: true, direct, ..OpenMode::default() };
            let spec = NodeSpec::raw(NodeSpec::file(device.path.clone(), mode));
            let disk = client.open(&spec).await.expect(&case);
            disk.write(0, Buf::from(vec![1; LEN as usize])).await.1.expect(&case);
            // Not whole blocks: what the device does not take is written.
            let flags = ZeroFlags::default();
            disk.write_zeroes(100, 9000, flags).await.expect(&case);
            disk.write(600, Buf::from(&b"a word"[..])).await.1.expect(&case);
            disk.flush().await.expect(&case);
            let full = device.blocks();
            let flags = ZeroFlags { may_unmap: true, no_fallback: true };
            disk.write_zeroes(65_536, 65_536, flags).await.expect(&case);
            disk.discard(131_072 + 1, 131_072).await.expect(&case);
            disk.close().await.expect(&case);
            // What is not whole blocks stays.
            assert!(device.blocks() + (65_536 + 131_072 - 8192) / 512 <= full, "{case}: {full}");
        })
        .expect("the kernel has it all");
        let bytes = device.bytes();
        assert!(bytes[..100].iter().all(|byte| *byte == 1), "{case}");
        assert!(bytes[100..600].iter().all(|byte| *byte == 0), "{case}");
        assert_eq!(&bytes[600..606], b"a word", "{case}");
        assert!(bytes[606..9100].iter().all(|byte| *byte == 0), "{case}");
        assert!(bytes[9100..65_536].iter().all(|byte| *byte == 1), "{case}");
        assert!(bytes[65_536..131_072].iter().all(|byte| *byte == 0), "{case}");
        assert!(bytes[131_072] == 1 && bytes[262_145..].iter().all(|byte| *byte == 1), "{case}");
    }
}

fn done(host: &mut Host, action: Action) -> Result<(), Errno> {
    match host.carry_out(action) {
        Outcome::Done(result) => result,
        other => panic!("answered with {other:?}"),
    }
}

fn status(host: &mut Host, leaf: LeafId) -> LeafStatus {
    match host.carry_out(Action::BlockStatus { leaf, offset: 0, len: LEN }) {
        Outcome::Status(Ok(status)) => status,
        other => panic!("answered with {other:?}"),
    }
}

/// A loop device on a file; both go when this does.
struct LoopDevice {
    path: String,
    file: String,
}

impl LoopDevice {
    fn new() -> Option<Self> {
        Self::with_sectors(512)
    }

    /// A device with sectors of that many bytes.
    fn with_sectors(sector: u32) -> Option<Self> {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let file = std::env::temp_dir().join(format!("drystone-loop-{}-{number}", std::process::id()));
        File::create(&file).and_then(|file| file.set_len(LEN)).expect("a temporary file");
        let file = file.to_str().expect("UTF-8").to_owned();
        let made = Command::new("losetup")
            .args(["--find", "--show", "--sector-size", &sector.to_string(), &file])
            .output();
        let path = match made {
            Ok(output) if output.status.success() => String::from_utf8(output.stdout).expect("UTF-8"),
            other => {
                let _ = writeln!(std::io::stderr(), "skipped: no loop device can be set up here: {other:?}");
                std::fs::remove_file(&file).expect("it is there");
                return None;
            }
        };
        Some(Self { path: path.trim().into(), file })
    }

    fn blocks(&self) -> u64 {
        File::open(&self.file).and_then(|file| file.metadata()).expect("it is there").blocks()
    }

    /// What the device reads as.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0xee; LEN as usize];
        File::open(&self.path).and_then(|file| file.read_exact_at(&mut bytes, 0)).expect("reads");
        bytes
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.path]).status();
        let _ = std::fs::remove_file(&self.file);
    }
}
