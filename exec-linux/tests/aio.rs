//! `aio`: what is asked for is what carries the requests, and what the kernel refuses is an error.

use std::path::PathBuf;
use std::process::Command;

use drystone_core::buf::Buf;
use drystone_core::error::Error;
use drystone_core::graph::open::OpenMode;
use drystone_core::graph::options::from_filename;
use drystone_core::intent::Errno;
use drystone_exec_linux::{Backend, BackendKind, Config, run};
use nix::libc;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

#[test]
fn io_uring_that_the_kernel_refuses_is_an_error() {
    let file = TempFile::new();
    let options = file.options("io_uring", false);
    // The filter holds for this thread, and for what it starts.
    refuse(&[libc::SYS_io_uring_setup]);
    let error = Backend::new(&Config { backend: BackendKind::IoUring, ..Config::default() })
        .map(drop)
        .expect_err("there is none");
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    assert_eq!(Backend::new(&Config::default()).expect("threads do").kind(), BackendKind::Threads);

    let error = open(&options).expect_err("there is none");
    assert!(matches!(*error, Error::NoIoUring { errno: Errno::EPERM, .. }), "{error:?}");
    // QEMU 10.0 says the same, and goes on with threads.
    let (_, theirs) = qemu(&options, "read 0 512");
    let warning = theirs.trim_end().replace(", falling back to thread pool", "");
    assert!(warning.ends_with(&error.to_string()), "{error}\n{theirs}");
    // Who asks for nothing in particular, or for another interface, has it.
    for other in ["threads", "native"] {
        open(&file.options(other, true)).expect("opens");
    }
    open(&file.plain()).expect("opens");
}

#[test]
fn io_uring_on_an_executor_of_threads_is_an_error() {
    let file = TempFile::new();
    let spec = from_filename(&file.options("io_uring", false), None, OpenMode::default()).expect("legal");
    run(Config { backend: BackendKind::Threads, ..Config::default() }, async |client| {
        let error = client.open(&spec).await.map(drop).expect_err("there is none");
        assert!(matches!(*error, Error::NoIoUring { .. }), "{error:?}");
    })
    .expect("starts");
}

#[test]
fn threads_do_without_a_ring() {
    let file = TempFile::new();
    let options = file.options("threads", false);
    let spec = from_filename(&options, None, OpenMode::default()).expect("legal");
    run(Config { backend: BackendKind::IoUring, ..Config::default() }, async |client| {
        let disk = client.open(&spec).await.expect("opens");
        // From here on a request on the ring would fail; threads that exist by now have no such filter.
        refuse(&[libc::SYS_io_uring_enter]);
        let (data, result) = disk.read(0, Buf::zeroed(4096)).await;
        result.expect("a blocking call");
        assert!(data.into_single().iter().all(|byte| *byte == 7));
        disk.close().await.expect("closes");
    })
    .expect("the ring is not needed");
}

#[test]
fn native_needs_direct_in_the_words_of_qemu() {
    let file = TempFile::new();
    let options = file.options("native", false);
    let (code, theirs) = qemu(&options, "length");
    let error = open(&options).expect_err("not past the page cache");
    assert_ne!(code, 0);
    assert!(theirs.trim_end().ends_with(&error.to_string()), "{error}\n{theirs}");
    let options = file.options("native", true);
    assert_eq!(qemu(&options, "length").0, 0);
    open(&options).expect("opens");
}

/// Opens an image, reads from it, and closes it.
fn open(options: &str) -> Result<(), Box<Error>> {
    let spec = from_filename(options, None, OpenMode::default())?;
    run(Config::default(), async |client| {
        let disk = client.open(&spec).await?;
        let (data, result) = disk.read(0, Buf::zeroed(4096)).await;
        result?;
        assert!(data.into_single().iter().all(|byte| *byte == 7));
        disk.close().await
    })
    .expect("starts")
}

fn qemu(options: &str, command: &str) -> (i32, String) {
    let output = Command::new("qemu-io").args(["-r", "-c", command, options]).output().expect("qemu-io runs");
    (output.status.code().unwrap_or(-1), String::from_utf8(output.stderr).expect("UTF-8"))
}

/// Has the kernel answer this thread, and what it starts, with `EPERM`.
fn refuse(calls: &[i64]) {
    let rules = calls.iter().map(|call| (*call, Vec::new())).collect();
    let arch = std::env::consts::ARCH.try_into().expect("an architecture with filters");
    let refusal = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refusal, arch).expect("legal");
    let program: BpfProgram = filter.try_into().expect("short");
    apply_filter(&program).expect("any thread may give up rights");
}

struct TempFile(PathBuf);

impl TempFile {
    fn new() -> Self {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("drystone-aio-{}-{number}", std::process::id()));
        std::fs::write(&path, [7; 8192]).expect("a temporary file");
        Self(path)
    }

    fn options(&self, aio: &str, direct: bool) -> String {
        let path = self.0.to_str().expect("UTF-8");
        let file = format!(r#"{{"driver": "file", "filename": "{path}", "aio": "{aio}"}}"#);
        format!(r#"json:{{"driver": "raw", "cache.direct": {direct}, "file": {file}}}"#)
    }

    fn plain(&self) -> String {
        format!(r#"json:{{"driver": "raw", "file.filename": "{}"}}"#, self.0.to_str().expect("UTF-8"))
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
