//! Servers of the NBD protocol beside each other, on sockets of the file system and with the same clients: `drystone-nbd`,
//! `qemu-nbd`, and `nbdkit` with its file plugin. Each serves the same raw image from the page cache.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use drystone_core::buf::{Buf, BufList};
use drystone_core::error::Result;
use drystone_core::graph::open::OpenMode;
use drystone_core::graph::options::from_filename;
use drystone_exec_tokio::{Client, Config, Image, run};

use crate::measure::{Subject, in_turns, myself, once};
use crate::tools::words;
use crate::{BLOCK, DEPTH, Random};

/// Bytes of the image.
const LEN: u64 = 2 << 30;

/// Random reads in one run, one at a time and many at once.
const READS: [(usize, u64); 2] = [(1, 20_000), (DEPTH, 300_000)];

/// Connections that are compared.
const CONNECTIONS: [usize; 3] = [1, 2, 4];

/// How long a server may take to listen.
const PATIENCE: Duration = Duration::from_secs(10);

/// A server; it is killed when this goes.
struct Server {
    name: &'static str,
    child: Child,
    socket: PathBuf,
}

impl Server {
    /// Starts a server of `image`, unless there is no such program.
    fn start(name: &'static str, program: &Path, dir: &Path, image: &str) -> io::Result<Option<Self>> {
        let socket = dir.join(format!("{name}.socket"));
        let _ = std::fs::remove_file(&socket);
        let path = socket.to_string_lossy();
        let mut command = Command::new(program);
        match name {
            "nbdkit" => command.args(["-f", "-r", "-U", &path, "file", image]),
            _ => command.args(["-t", "-r", "-e", "0", "-f", "raw", "-k", &path, image]),
        };
        let child = match command.stdin(Stdio::null()).stdout(Stdio::null()).spawn() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                eprintln!("ratios: no {name}: it is left out");
                return Ok(None);
            }
            child => child?,
        };
        let server = Self { name, child, socket };
        let begun = Instant::now();
        while UnixStream::connect(&server.socket).is_err() {
            if begun.elapsed() > PATIENCE {
                return Err(io::Error::other(format!("{name} does not listen")));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Some(server))
    }

    /// How our client opens it.
    fn opened(&self, connections: usize) -> String {
        let path = self.socket.to_string_lossy();
        format!(
            r#"json:{{"driver":"raw","file":{{"driver":"nbd","server":{{"type":"unix","path":"{path}"}},"connections":{connections}}}}}"#
        )
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Compares the servers and prints tables.
///
/// # Errors
/// When the image cannot be made, a server does not listen, or a client fails.
pub fn compare(drystone_nbd: &Path, dir: &Path, rounds: usize) -> io::Result<()> {
    let image = dir.join("served.raw").to_string_lossy().into_owned();
    words(&image, LEN)?;
    let programs = [
        ("qemu-nbd", Path::new("qemu-nbd")),
        ("drystone-nbd", drystone_nbd),
        ("nbdkit", Path::new("nbdkit")),
    ];
    let mut servers = Vec::new();
    for (name, program) in programs {
        servers.extend(Server::start(name, program, dir, &image)?);
    }
    if once(Command::new("nbdcopy").arg("--version")).is_ok() {
        let mut subjects: Vec<_> = servers
            .iter()
            .map(|server| {
                let mut command = Command::new("nbdcopy");
                let uri = format!("nbd+unix:///?socket={}", server.socket.display());
                command.args([&uri, "null:"]);
                Subject::new(server.name, command)
            })
            .collect();
        table("nbdcopy of 2 GiB to nowhere", &mut subjects, rounds, LEN >> 20, "MiB")?;
    } else {
        eprintln!("ratios: no nbdcopy: it is left out");
    }
    for (depth, count) in READS {
        let mut subjects = Vec::new();
        for server in &servers {
            let command = myself(&format!("nbd/{depth}"), server.opened(1), count)?;
            subjects.push(Subject::new(server.name, command));
        }
        table(&format!("4 KiB random reads, {depth} in flight"), &mut subjects, rounds, count, "requests")?;
    }
    let (depth, count) = READS[1];
    for server in &servers {
        let mut subjects = Vec::new();
        for connections in CONNECTIONS {
            let command = myself(&format!("nbd/{depth}"), server.opened(connections), count)?;
            subjects.push(Subject::new(&format!("{connections} connections"), command));
        }
        table(&format!("{depth} in flight to {}", server.name), &mut subjects, rounds, count, "requests")?;
    }
    drop(servers);
    std::fs::remove_file(&image)
}

/// Has the subjects take turns, and prints what each gets done in a second beside the first.
fn table(title: &str, subjects: &mut [Subject], rounds: usize, amount: u64, unit: &str) -> io::Result<()> {
    let usages = in_turns(subjects, rounds)?;
    println!("\n{title}\n\n| | {unit}/s | µs each | times the first |\n|---|---|---|---|");
    for (subject, usage) in subjects.iter().zip(&usages) {
        let wall = usage.wall.as_secs_f64();
        println!(
            "| {} | {:.0} | {:.2} | {:.2} |",
            subject.name,
            amount as f64 / wall,
            wall * 1e6 / amount as f64,
            usages[0].wall.as_secs_f64() / wall,
        );
    }
    Ok(())
}

/// Reads blocks of an export in no order, so many at a time.
///
/// # Errors
/// The kernel's, or the export's.
pub fn read(name: &str, depth: usize, count: u64) -> io::Result<()> {
    let done = run(Config::default(), async |client| read_all(&client, name, depth, count).await);
    done?.map_err(|error| io::Error::other(error.to_string()))
}

async fn read_all(client: &Client, name: &str, depth: usize, count: u64) -> Result<()> {
    let disk = client.open(&from_filename(name, Some("raw"), OpenMode::default())?).await?;
    let each = |task| tokio::task::spawn_local(requests(disk.clone(), task, depth, count));
    let tasks: Vec<_> = (0..depth as u64).map(each).collect();
    for task in tasks {
        task.await.expect("no task panics")?;
    }
    disk.close().await
}

/// Task `n` of all: every `depth`th request.
async fn requests(disk: Image, n: u64, depth: usize, count: u64) -> Result<()> {
    let (mut random, len) = (Random::new(n + 1), disk.len());
    let mut data = BufList::from(Buf::zeroed(BLOCK));
    for _ in (n..count).step_by(depth) {
        let (back, result) = disk.read(random.block(len), data).await;
        result?;
        data = back;
    }
    Ok(())
}
