//! What a request costs: 4 KiB random reads of a cached file, 64 in flight, through this executor and through a bare
//! io_uring, in CPU time per request.
//!
//! `cargo run --release -p drystone-exec-tokio --example randread [FILE] [MIB]`
//!
//! Both take turns; the best of each is what counts, for a busy machine only ever adds.

use std::hint::black_box;
use std::io;
use std::os::fd::AsRawFd;
use std::rc::Rc;

use drystone_core::buf::{Buf, BufList};
use drystone_core::graph::open::{NodeSpec, OpenMode};
use drystone_exec_tokio::{BackendKind, Config, run};
use io_uring::{
    IoUring, opcode,
    types::{Fd, Fixed},
};

const BLOCK: usize = 4096;
const DEPTH: usize = 64;
const READS: u64 = 640_000;
const ROUNDS: u32 = 12;

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let scratch = std::env::temp_dir().join(format!("drystone-randread-{}", std::process::id()));
    let given = arguments.next();
    let path = given.clone().unwrap_or_else(|| scratch.to_string_lossy().into_owned());
    let number =
        |argument: Option<String>, otherwise| argument.and_then(|n| n.parse().ok()).unwrap_or(otherwise);
    let len: u64 = number(arguments.next(), 1024) << 20;
    if given.is_none() {
        fill(&path, len)?;
    }
    let mut best = [f64::INFINITY; 3];
    for _ in 0..ROUNDS {
        best[0] = per_request(READS, || bare(&path, len, READS, Table::Process))?.min(best[0]);
        best[1] = per_request(READS, || bare(&path, len, READS, Table::Ring))?.min(best[1]);
        best[2] = per_request(READS, || engine(&path, len, READS))?.min(best[2]);
    }
    let [plain, registered, ours] = best;
    println!("bare io_uring {plain:.0} ns, with the file registered {registered:.0} ns");
    println!("drystone on tokio {ours:.0} ns: {:.3} and {:.3} times", ours / plain, ours / registered);
    if given.is_none() {
        std::fs::remove_file(&path)?;
    }
    Ok(())
}

/// A raw image on tokio, one task for each read in flight.
fn engine(path: &str, len: u64, reads: u64) -> io::Result<()> {
    let config = Config { backend: BackendKind::IoUring, ..Config::default() };
    let spec = NodeSpec::raw(NodeSpec::file(path, OpenMode::default()));
    run(config, async |client| {
        let disk = client.open(&spec).await.expect("the file opens");
        let disk = Rc::new(disk);
        let tasks: Vec<_> = (0..DEPTH as u64)
            .map(|task| {
                let disk = Rc::clone(&disk);
                tokio::task::spawn_local(async move {
                    let mut random = Random(task + 1);
                    let mut data = BufList::from(Buf::zeroed(BLOCK));
                    for _ in 0..reads / DEPTH as u64 {
                        let (back, result) = disk.read(random.block(len), data).await;
                        result.expect("a cached file reads");
                        data = black_box(back);
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("no task panics");
        }
        disk.close().await.expect("closes");
    })
}

/// Where the kernel looks a file up.
#[derive(Clone, Copy, PartialEq)]
enum Table {
    Process,
    Ring,
}

/// The same reads with nothing in between.
fn bare(path: &str, len: u64, reads: u64, table: Table) -> io::Result<()> {
    let file = std::fs::File::open(path)?;
    let mut ring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(256)?;
    ring.submitter().register_files(&[file.as_raw_fd()])?;
    let mut buffers: Vec<Buf> = (0..DEPTH).map(|_| Buf::zeroed(BLOCK)).collect();
    let mut random = Random(1);
    let mut push = |ring: &mut IoUring, slot: usize| {
        let (address, offset) = (buffers[slot].as_mut_ptr(), random.block(len));
        let read = match table {
            Table::Process => opcode::Read::new(Fd(file.as_raw_fd()), address, BLOCK as u32),
            Table::Ring => opcode::Read::new(Fixed(0), address, BLOCK as u32),
        };
        let entry = read.offset(offset).build().user_data(slot as u64);
        // SAFETY: the buffer lives longer than the loop that waits for every read, and nothing else touches it.
        unsafe { ring.submission().push(&entry) }.expect("the queue has room");
    };
    for slot in 0..DEPTH {
        push(&mut ring, slot);
    }
    let (mut done, mut free) = (0, Vec::with_capacity(DEPTH));
    while done < reads {
        ring.submit_and_wait(1)?;
        for completion in ring.completion() {
            assert_eq!(completion.result(), BLOCK as i32);
            free.push(completion.user_data() as usize);
        }
        done += free.len() as u64;
        for slot in free.drain(..) {
            push(&mut ring, slot);
        }
    }
    ring.submit_and_wait(DEPTH)?;
    Ok(())
}

/// Nanoseconds of CPU time a request, in all threads.
fn per_request(reads: u64, work: impl FnOnce() -> io::Result<()>) -> io::Result<f64> {
    let before = cpu_nanos()?;
    work()?;
    Ok((cpu_nanos()? - before) as f64 / reads as f64)
}

fn cpu_nanos() -> io::Result<u64> {
    let mut sum = 0;
    for task in std::fs::read_dir("/proc/self/task")? {
        let stat = std::fs::read_to_string(task?.path().join("schedstat"))?;
        sum += stat.split(' ').next().and_then(|nanos| nanos.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(sum)
}

fn fill(path: &str, len: u64) -> io::Result<()> {
    use std::io::Write;
    let mut file = std::fs::File::create(path)?;
    let chunk = vec![0x5a; 1 << 20];
    for _ in 0..len >> 20 {
        file.write_all(&chunk)?;
    }
    Ok(())
}

struct Random(u64);

impl Random {
    fn block(&mut self, len: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % (len / BLOCK as u64) * BLOCK as u64
    }
}
