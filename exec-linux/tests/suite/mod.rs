//! What every executor must do, whichever kernel interface carries it: the same bytes, states and errors as std and
//! QEMU's tools see. Each executor's `tests/suite.rs` includes this file and runs [`suite`] with its own `run`.

use std::fs::{File, OpenOptions};
use std::future::{Future, poll_fn};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use drystone_core::buf::{Buf, BufList};
use drystone_core::compute::{Codec, Compute};
use drystone_core::engine::Op;
use drystone_core::error::{Error, Result};
use drystone_core::graph::NodeId;
use drystone_core::graph::open::{DriverSpec, NodeSpec, OpenMode};
use drystone_core::intent::{Aio, Errno, Fua, Location, Preallocation, ZeroFlags};
use drystone_exec_linux::{Client, Image};

/// Makes a test of every case on every backend of an executor.
macro_rules! suite {
    ($run:path) => {
        crate::cases::suite!(@backend $run, io_uring, IoUring);
        crate::cases::suite!(@backend $run, threads, Threads);
    };
    (@backend $run:path, $name:ident, $kind:ident) => {
        mod $name {
            crate::cases::suite!(@cases $run, $kind,
                bytes_are_those_of_a_vector, bytes_are_those_of_a_vector_past_the_page_cache,
                blocking_calls_on_request, drivers_rest_when_nothing_is_left,
                many_windows_are_one_request, sixty_four_at_once,
                short_files_read_as_zeros_beyond_their_end, files_keep_their_length_past_the_page_cache, holes_and_zeros_are_what_the_kernel_says,
                lengths_change, files_are_created_emptied_and_removed, what_cannot_open_says_why,
                null_leaves_store_nothing, dropped_requests_finish_on_their_own,
                images_close_when_they_are_dropped, timers_ring_in_their_order, work_runs_on_threads,
                coroutines_end_when_nobody_waits, other_threads_share_the_engine,
                handles_outlive_the_engine_and_say_so);
        }
    };
    (@cases $run:path, $kind:ident, $($case:ident),+) => {
        $(#[test]
        fn $case() {
            use drystone_exec_linux::{BackendKind, Config};
            let config = Config { backend: BackendKind::$kind, ring_entries: 32, ..Config::default() };
            $run(config, async |client| crate::cases::$case(&client).await).expect("the kernel has it all");
            crate::cases::after_the_end();
        })+
    };
}
pub(crate) use suite;

fn writable() -> OpenMode {
    OpenMode { writable: true, ..OpenMode::default() }
}

pub async fn bytes_are_those_of_a_vector(client: &Client) {
    random_operations(client, writable(), 1).await;
}

pub async fn bytes_are_those_of_a_vector_past_the_page_cache(client: &Client) {
    random_operations(client, OpenMode { direct: true, ..writable() }, 2).await;
}

pub async fn blocking_calls_on_request(client: &Client) {
    random_operations(client, OpenMode { aio: Aio::Threads, ..writable() }, 3).await;
}

/// Reads, writes and zeros at any offset and length, one after the other, against a vector in memory; then the file
/// itself through std.
async fn random_operations(client: &Client, mode: OpenMode, seed: u64) {
    const LEN: usize = 300_000;
    let mut random = Random(seed);
    let mut model = random.bytes(LEN);
    let file = TempFile::with(&model);
    let disk = client.open(&file.raw(mode)).await.expect("opens");
    for step in 0..300 {
        let at = random.below(LEN);
        let len = match random.below(4) {
            0 => random.below(LEN - at + 1),
            _ => random.below(5000).min(LEN - at),
        };
        let case = format!("seed {seed}, step {step}: {len} bytes at {at}");
        match random.below(6) {
            0..=2 => {
                let (data, result) = disk.read(at as u64, windows(&vec![0xee; len], &mut random)).await;
                result.expect(&case);
                assert!(*data.into_single() == model[at..at + len], "{case}");
            }
            3 => {
                let bytes = random.bytes(len);
                model[at..at + len].copy_from_slice(&bytes);
                let fua = if random.below(4) == 0 { Fua::Yes } else { Fua::No };
                let data = windows(&bytes, &mut random);
                disk.transfer(Op::Write(fua), at as u64, 0, data).await.1.expect(&case);
            }
            4 => {
                model[at..at + len].fill(0);
                let flags = ZeroFlags { may_unmap: random.below(2) == 0, no_fallback: false };
                disk.write_zeroes(at as u64, len as u64, flags).await.expect(&case);
            }
            _ => disk.flush().await.expect(&case),
        }
    }
    disk.close().await.expect("closes");
    assert!(file.bytes() == model, "seed {seed}: the file is not what was written");
}

/// Threads of the kernel flush files, and may say that there is more to do when it is done already: about once in a
/// thousand flushes.
pub async fn drivers_rest_when_nothing_is_left(client: &Client) {
    let file = TempFile::with(&[1; 1 << 16]);
    let disk = client.open(&file.raw(writable())).await.expect("opens");
    for _ in 0..3000 {
        disk.write(0, Buf::zeroed(512)).await.1.expect("writes");
        disk.flush().await.expect("flushes");
    }
    disk.close().await.expect("closes");
}

pub async fn many_windows_are_one_request(client: &Client) {
    let mut random = Random(4);
    // More windows than the kernel takes in one call.
    let bytes = random.bytes(3000);
    let file = TempFile::with(&[0; 4000]);
    let disk = client.open(&file.raw(writable())).await.expect("opens");
    let singles = || bytes.iter().map(|byte| Buf::from(&[*byte][..])).collect::<BufList>();
    let (data, result) = disk.write(17, singles()).await;
    result.expect("writes");
    assert_eq!(data.windows().len(), bytes.len());
    assert!(file.bytes()[17..3017] == bytes);
    let (data, result) = disk.read(17, bytes.iter().map(|_| Buf::zeroed(1)).collect::<BufList>()).await;
    result.expect("reads");
    assert!(*data.into_single() == bytes);
    disk.close().await.expect("closes");
}

pub async fn sixty_four_at_once(client: &Client) {
    const BLOCK: usize = 4096;
    const BLOCKS: usize = 256;
    let mut random = Random(5);
    let mut bytes = random.bytes(BLOCK * BLOCKS);
    let file = TempFile::with(&bytes);
    let disk = client.open(&file.raw(writable())).await.expect("opens");
    for _ in 0..20 {
        let reads: Vec<_> = (0..64).map(|_| random.below(BLOCK * (BLOCKS - 1))).collect();
        let futures = reads.iter().map(|at| disk.read(*at as u64, Buf::zeroed(BLOCK)));
        for (at, (data, result)) in reads.iter().zip(join_all(futures).await) {
            result.expect("reads");
            assert!(*data.into_single() == bytes[*at..at + BLOCK], "at {at}");
        }
        let first = random.below(BLOCKS - 64);
        let futures = (first..first + 64).map(|block| {
            let fresh = random.bytes(BLOCK);
            bytes[block * BLOCK..][..BLOCK].copy_from_slice(&fresh);
            disk.write((block * BLOCK) as u64, Buf::from(fresh))
        });
        for (_, result) in join_all(futures.collect::<Vec<_>>()).await {
            result.expect("writes");
        }
    }
    disk.close().await.expect("closes");
    assert!(file.bytes() == bytes);
}

pub async fn short_files_read_as_zeros_beyond_their_end(client: &Client) {
    for direct in [false, true] {
        let file = TempFile::with(&[7; 5000]);
        let disk = client.open(&file.raw(OpenMode { direct, ..writable() })).await.expect("opens");
        assert_eq!(disk.len(), 5000);
        // Somebody cuts the file short: what is gone reads as zeros.
        file.file().set_len(600).expect("truncates");
        let (data, result) = disk.read(0, Buf::from(vec![0xee; 5000])).await;
        result.expect("reads");
        let data = data.into_single();
        assert!(data[..600].iter().all(|byte| *byte == 7) && data[600..].iter().all(|byte| *byte == 0));
        disk.close().await.expect("closes");
    }
}

pub async fn files_keep_their_length_past_the_page_cache(client: &Client) {
    let file = TempFile::with(&[7; 5000]);
    let disk = client.open(&file.raw(OpenMode { direct: true, ..writable() })).await.expect("opens");
    let writes = [(4608, 392), (4999, 1), (4900, 100), (600, 4400)].map(|(at, len)| {
        let (disk, data) = (&disk, Buf::from(vec![at as u8; len]));
        async move { disk.write(at, data).await.1 }
    });
    for result in join_all(writes).await {
        result.expect("writes");
    }
    assert_eq!((disk.len(), file.bytes().len()), (5000, 5000));
    disk.write(4999, Buf::from(&b"!"[..])).await.1.expect("writes");
    disk.close().await.expect("closes");
    let bytes = file.bytes();
    assert_eq!((bytes.len(), bytes[4999], bytes[599]), (5000, b'!', 7));
}

pub async fn holes_and_zeros_are_what_the_kernel_says(client: &Client) {
    const UNIT: u64 = 65_536;
    let file = TempFile::with(&[]);
    file.file().set_len(8 * UNIT).expect("a hole");
    file.file().write_all_at(&[1; 2 * UNIT as usize], 3 * UNIT).expect("data in the middle");
    let disk = client.open(&file.raw(writable())).await.expect("opens");
    assert_eq!(map(&disk).await, [(0, 3, true), (3, 2, false), (5, 3, true)]);

    let flags = ZeroFlags { may_unmap: true, no_fallback: true };
    disk.write_zeroes(3 * UNIT, UNIT, flags).await.expect("a hole is fast");
    assert_eq!(map(&disk).await, [(0, 4, true), (4, 1, false), (5, 3, true)]);
    let before = file.file().metadata().expect("a file").blocks();
    let flags = ZeroFlags { may_unmap: false, no_fallback: false };
    disk.write_zeroes(0, 2 * UNIT, flags).await.expect("zeros");
    let after = file.file().metadata().expect("a file").blocks();
    assert!(
        after >= before + 2 * UNIT / 512,
        "zeros that may not be unmapped take space: {before} to {after}"
    );
    disk.discard(4 * UNIT, UNIT).await.expect("a file has holes");
    assert!(file.bytes().iter().all(|byte| *byte == 0));
    disk.close().await.expect("closes");

    let disk = client.open(&file.raw(OpenMode { discard: false, ..writable() })).await.expect("opens");
    disk.write(0, Buf::from(vec![1; 4096])).await.1.expect("writes");
    disk.discard(0, 4096).await.expect("ignored");
    assert_eq!(file.bytes()[0], 1);
    disk.close().await.expect("closes");
}

/// What backs each unit of 64 KiB: first unit, units, whether it is a hole. Neighbours that are alike are one.
async fn map(disk: &Image) -> Vec<(u64, u64, bool)> {
    let mut extents: Vec<(u64, u64, bool)> = Vec::new();
    let mut at = 0;
    while at < disk.len() {
        let status = disk.block_status(at, disk.len() - at).await.expect("a file knows");
        let (first, units) = (at / 65_536, status.len / 65_536);
        match extents.last_mut() {
            Some(last) if last.2 == status.zero => last.1 += units,
            _ => extents.push((first, units, status.zero)),
        }
        at += status.len;
    }
    extents
}

pub async fn lengths_change(client: &Client) {
    for (preallocation, least_blocks) in
        [(Preallocation::Off, 0), (Preallocation::Falloc, 1 << 11), (Preallocation::Full, 1 << 11)]
    {
        let file = TempFile::with(b"head");
        let disk = client.open(&file.raw(writable())).await.expect("opens");
        set_len(client, disk.node(), 1 << 20, preallocation).await.expect("grows");
        assert_eq!(disk.len(), 1 << 20);
        let about = file.file().metadata().expect("a file");
        assert_eq!(about.len(), 1 << 20);
        assert!(about.blocks() >= least_blocks, "{preallocation:?}: {} blocks", about.blocks());
        assert_eq!(&file.bytes()[..6], b"head\0\0");
        disk.write((1 << 20) - 4, Buf::from(&b"tail"[..])).await.1.expect("up to the new end");
        disk.write((1 << 20) - 3, Buf::from(&b"tail"[..])).await.1.expect_err("not beyond");
        set_len(client, disk.node(), 4, Preallocation::Off).await.expect("shrinks");
        assert_eq!(file.bytes(), b"head");
        disk.close().await.expect("closes");
    }
}

async fn set_len(client: &Client, node: NodeId, len: u64, how: Preallocation) -> Result<()> {
    client.run(move |io| async move { io.set_len(node, len, how).await }).await
}

pub async fn files_are_created_emptied_and_removed(client: &Client) {
    let file = TempFile::with(b"old content");
    let location = Location::Path(file.path());
    let create = |location: Location, len| {
        client.run(move |io| async move { io.create_leaf(&location, len, Preallocation::Off).await })
    };
    create(location.clone(), 4096).await.expect("empties");
    assert_eq!(file.bytes(), [0; 4096]);
    std::fs::remove_file(file.path()).expect("it is there");
    create(location.clone(), 512).await.expect("creates");
    assert_eq!(file.bytes(), [0; 512]);
    // An image in use is not emptied.
    let disk = client.open(&file.raw(writable())).await.expect("opens");
    let error = create(location, 0).await.expect_err("in use");
    assert_eq!(error.errno(), Errno::EAGAIN);
    assert_eq!(file.bytes(), [0; 512]);
    disk.close().await.expect("closes");
    let nowhere = Location::Path("/nonexistent/drystone".into());
    assert_eq!(create(nowhere, 0).await.expect_err("no folder").errno(), Errno::ENOENT);
}

pub async fn what_cannot_open_says_why(client: &Client) {
    let open = async |path: &str, mode| {
        let opened = client.open(&NodeSpec::raw(NodeSpec::file(path, mode))).await;
        opened.map(drop).expect_err("does not open").errno()
    };
    assert_eq!(open("/nonexistent/drystone", writable()).await, Errno::ENOENT);
    assert_eq!(open("/", OpenMode::default()).await, Errno::EINVAL);
    assert_eq!(open("/proc/version/x", OpenMode::default()).await, Errno::ENOTDIR);
    let socket = std::env::temp_dir().join(format!("drystone-socket-{}-{:p}", std::process::id(), client));
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    assert_eq!(open(socket.to_str().expect("UTF-8"), OpenMode::default()).await, Errno::ENXIO);
    std::fs::remove_file(&socket).expect("it is there");

    let file = TempFile::with(&[1; 512]);
    let disk = client.open(&file.raw(OpenMode::default())).await.expect("opens");
    let (data, result) = disk.write(0, Buf::zeroed(512)).await;
    assert!(matches!(*result.expect_err("opened for reading"), Error::ReadOnly { .. }));
    assert_eq!(data.len_bytes(), 512);
    let (data, result) = disk.read(500, Buf::zeroed(13)).await;
    assert!(matches!(*result.expect_err("beyond the end"), Error::OutOfRange { size: 512, .. }));
    assert_eq!(data.len_bytes(), 13);
    disk.close().await.expect("closes");
    assert!(client.graph().is_empty());
}

pub async fn null_leaves_store_nothing(client: &Client) {
    let location = Location::Null { len: 1 << 40, read_zeroes: true };
    let spec = NodeSpec { node_name: None, mode: writable(), driver: DriverSpec::Leaf(location) };
    let disk = client.open(&spec).await.expect("opens");
    let info = client.graph();
    assert_eq!((info[0].driver, info[0].len), ("null-co", 1 << 40));
    disk.write(1 << 39, Buf::from(vec![1; 4096])).await.1.expect("vanishes");
    let (data, result) = disk.read(1 << 39, Buf::from(vec![1; 4096])).await;
    result.expect("reads");
    assert!(data.is_zero());
    disk.flush().await.expect("nothing to do");
    disk.write_zeroes(0, 1 << 40, ZeroFlags::default()).await.expect("nothing to do");
    disk.discard(0, 1 << 40).await.expect("nothing to do");
    disk.close().await.expect("closes");
}

pub async fn dropped_requests_finish_on_their_own(client: &Client) {
    let file = TempFile::with(&[0; 1 << 20]);
    let disk = client.open(&file.raw(writable())).await.expect("opens");
    for round in 0..50u8 {
        let mut writes: Vec<_> = (0..16u64)
            .map(|block| Box::pin(disk.write(block * 65_536, Buf::from(vec![round + 1; 65_536]))))
            .collect();
        // Begun, then dropped: the buffers stay with the kernel until it is done with them.
        poll_fn(|cx| {
            for write in &mut writes {
                let _ = write.as_mut().poll(cx);
            }
            Poll::Ready(())
        })
        .await;
    }
    // Closing waits for them.
    disk.close().await.expect("closes");
    assert!(file.bytes().iter().all(|byte| (1..=50).contains(byte)));
}

pub async fn images_close_when_they_are_dropped(client: &Client) {
    let file = TempFile::with(&[0; 512]);
    let disk = client.open(&file.raw(writable())).await.expect("opens");
    let twin = disk.clone();
    drop(disk);
    twin.read(0, Buf::zeroed(1)).await.1.expect("the twin keeps it open");
    drop(twin);
    // An opening that nobody waits for closes again too.
    let spec = file.raw(writable());
    drop(client.open(&spec));
    let mut opening = Box::pin(client.open(&spec));
    poll_fn(|cx| Poll::Ready(opening.as_mut().poll(cx).is_pending())).await;
    drop(opening);
    let begin = Instant::now();
    while !client.graph().is_empty() && begin.elapsed() < Duration::from_secs(10) {
        sleep(client, 1).await;
    }
    assert!(client.graph().is_empty());
}

pub async fn timers_ring_in_their_order(client: &Client) {
    let begin = Instant::now();
    let sleeps = [60u64, 20, 40].map(|millis| {
        client.run(move |io| async move {
            io.sleep(Duration::from_millis(millis)).await;
            Ok(Instant::now())
        })
    });
    let rang: Vec<Instant> = join_all(sleeps).await.into_iter().map(|at| at.expect("sleeps")).collect();
    assert!(rang[1] < rang[2] && rang[2] < rang[0]);
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(60) && took < Duration::from_secs(5), "{took:?}");
}

pub async fn work_runs_on_threads(client: &Client) {
    let jobs = (0..20u8).map(|seed| {
        client.run(move |io| async move {
            let plain = vec![seed; 100_000];
            let work =
                Compute::Compress { codec: Codec::Zstd, plain: Buf::from(&plain[..]), limit: plain.len() };
            let packed = io.compute("test", work).await.output;
            let room = Buf::zeroed(plain.len());
            let work = Compute::Decompress { codec: Codec::Zstd, packed, plain: room };
            Ok(*io.compute("test", work).await.output == plain)
        })
    });
    for same in join_all(jobs.collect::<Vec<_>>()).await {
        assert!(same.expect("no I/O"));
    }
}

pub async fn coroutines_end_when_nobody_waits(client: &Client) {
    let alive = std::rc::Rc::new(());
    let held = alive.clone();
    let mut sleeping = Box::pin(client.run(move |io| async move {
        let _held = held;
        io.sleep(Duration::from_millis(1)).await;
        io.sleep(Duration::from_hours(1)).await;
        Ok(())
    }));
    poll_fn(|cx| Poll::Ready(sleeping.as_mut().poll(cx).is_pending())).await;
    drop(sleeping);
    sleep(client, 30).await;
    assert_eq!(std::rc::Rc::strong_count(&alive), 1);

    // The engine ends at once although these would sleep on.
    let mut sleeping = Box::pin(client.run(move |io| async move {
        io.sleep(Duration::from_hours(1)).await;
        Ok(())
    }));
    poll_fn(|cx| Poll::Ready(sleeping.as_mut().poll(cx).is_pending())).await;
    let handle = client.handle();
    let (asked, wait) = std::sync::mpsc::channel();
    let other = std::thread::spawn(move || {
        let slept = handle.run(move |io| async move {
            asked.send(()).expect("somebody listens");
            loop {
                io.sleep(Duration::from_hours(1)).await;
            }
        });
        let slept: Result<()> = slept;
        assert!(matches!(*slept.expect_err("the engine ended"), Error::Cancelled));
    });
    while wait.try_recv().is_err() {
        sleep(client, 1).await;
    }
    ENDS.with(|ends| ends.borrow_mut().push((other, TempFile::with(&[]))));
}

pub async fn other_threads_share_the_engine(client: &Client) {
    const PART: usize = 100_000;
    let file = TempFile::with(&[0; 4 * PART]);
    let spec = file.raw(writable());
    let (handle, spec_there) = (client.handle(), spec.clone());
    let opener = std::thread::spawn(move || handle.open(&spec_there));
    while !opener.is_finished() {
        sleep(client, 1).await;
    }
    let disk = opener.join().expect("no panic").expect("opens");
    assert_eq!(disk.len(), 4 * PART as u64);
    let threads: Vec<_> = (0..4u64)
        .map(|number| {
            let disk = disk.clone();
            std::thread::spawn(move || {
                let mut random = Random(number + 10);
                let bytes = random.bytes(PART);
                let start = number * PART as u64;
                // Many at once, then one after the other.
                let chunks = bytes.chunks(777).zip((start..).step_by(777));
                let tickets: Vec<_> = chunks
                    .map(|(chunk, at)| disk.submit(Op::Write(Fua::No), at, 0, Buf::from(chunk).into()))
                    .collect();
                for ticket in tickets {
                    ticket.wait().1.expect("writes");
                }
                for _ in 0..100 {
                    let at = random.below(PART - 1000);
                    let (data, result) = disk.read(start + at as u64, Buf::zeroed(1000));
                    result.expect("reads");
                    assert!(*data.into_single() == bytes[at..at + 1000]);
                }
                let (data, result) = disk.read(4 * PART as u64, Buf::zeroed(5));
                assert!(matches!(*result.expect_err("beyond the end"), Error::OutOfRange { .. }));
                assert_eq!(data.len_bytes(), 5);
                disk.flush().expect("flushes");
                bytes
            })
        })
        .collect();
    while threads.iter().any(|thread| !thread.is_finished()) {
        sleep(client, 1).await;
    }
    let bytes: Vec<u8> = threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect();
    assert!(file.bytes() == bytes);
    // A ticket is a future too, here of the engine's own thread.
    let (data, result) = disk.submit(Op::Read, 7, 0, Buf::zeroed(100).into()).await;
    result.expect("reads");
    assert!(*data.into_single() == bytes[7..107]);
    assert_eq!(client.graph().len(), 2);
    drop(disk);
    while !client.graph().is_empty() {
        sleep(client, 1).await;
    }
}

pub async fn handles_outlive_the_engine_and_say_so(client: &Client) {
    let file = TempFile::with(&[3; 512]);
    let (handle, spec) = (client.handle(), file.raw(writable()));
    let (asked, wait) = std::sync::mpsc::channel();
    let other = std::thread::spawn(move || {
        let disk = handle.open(&spec).expect("opens");
        asked.send(()).expect("somebody listens");
        // The engine ends in between.
        let mut reads = 0;
        let error = loop {
            let (_, result) = disk.read(0, Buf::zeroed(512));
            match result {
                Ok(()) => reads += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(*error, Error::Cancelled), "{error} after {reads} reads");
        assert!(matches!(*disk.close().expect_err("ended"), Error::Cancelled));
        assert!(matches!(*handle.graph().expect_err("ended"), Error::Cancelled));
        drop(disk);
    });
    while wait.try_recv().is_err() {
        sleep(client, 1).await;
    }
    ENDS.with(|ends| ends.borrow_mut().push((other, file)));
}

thread_local! {
    /// Threads that find the engine of this one ended, and what they use.
    static ENDS: std::cell::RefCell<Vec<(std::thread::JoinHandle<()>, TempFile)>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// Waits for the threads that outlive the engine.
pub fn after_the_end() {
    for (thread, _file) in ENDS.take() {
        thread.join().expect("the thread found the engine ended");
    }
}

async fn sleep(client: &Client, millis: u64) {
    let slept = client.run(move |io| async move {
        io.sleep(Duration::from_millis(millis)).await;
        Ok(())
    });
    slept.await.expect("sleeps");
}

/// Waits for all futures, which run side by side.
pub async fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut futures: Vec<Pin<Box<F>>> = futures.into_iter().map(Box::pin).collect();
    let mut outputs: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    poll_fn(|cx| {
        for (future, output) in futures.iter_mut().zip(&mut outputs) {
            if output.is_none()
                && let Poll::Ready(value) = future.as_mut().poll(cx)
            {
                *output = Some(value);
            }
        }
        if outputs.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    outputs.into_iter().flatten().collect()
}

/// The bytes in one to four windows.
fn windows(bytes: &[u8], random: &mut Random) -> BufList {
    let mut rest = bytes;
    let mut list = BufList::new();
    for _ in 0..random.below(4) {
        let (front, back) = rest.split_at(random.below(rest.len() + 1));
        list.append(BufList::from(Buf::from(front)));
        rest = back;
    }
    list.append(BufList::from(Buf::from(rest)));
    list
}

/// A generator of numbers that the same seed repeats.
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        std::iter::repeat_with(|| self.next().to_le_bytes()).flatten().take(len).collect()
    }
}

/// A file that goes when this does.
pub struct TempFile(PathBuf);

impl TempFile {
    pub fn with(bytes: &[u8]) -> Self {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("drystone-suite-{}-{number}", std::process::id()));
        std::fs::write(&path, bytes).expect("the temporary folder takes files");
        Self(path)
    }

    pub fn path(&self) -> String {
        self.0.to_str().expect("UTF-8").into()
    }

    pub fn raw(&self, mode: OpenMode) -> NodeSpec {
        NodeSpec::raw(NodeSpec::file(self.path(), mode))
    }

    fn file(&self) -> File {
        OpenOptions::new().read(true).write(true).open(&self.0).expect("it is there")
    }

    pub fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.0).expect("it is there")
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
