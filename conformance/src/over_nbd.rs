//! Images behind real NBD connections: a server on one machine's thread, its client on another's, a socket of the file
//! system between, and where a test wants it a [`Proxy`] that cuts connections off.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use drystone_core::engine::Reply;
use drystone_core::error::Result as CoreResult;
use drystone_core::graph::open::NodeSpec;
use drystone_core::intent::Location;
use drystone_core::protocol::nbd::server::Export;
use drystone_core::protocol::nbd::{NbdAddress, NbdLocation};
use drystone_exec_linux::{Client, NbdExport, NbdPlan, TlsCredentials, TlsServer};

use crate::cases::WRITABLE;
use crate::real::{Machine, RealRunner};
use crate::scenario::{Ask, RunError, Runner};
use crate::sim::Stopped;
use crate::wire::{Towards, export};

/// An image that a machine serves until it is [taken back](Self::close).
pub struct Served {
    /// Where clients connect.
    pub path: PathBuf,
    stop: UnixStream,
    closed: Receiver<CoreResult<()>>,
}

impl Served {
    /// Opens an image, and serves it at a path to as many clients as come.
    ///
    /// # Errors
    /// What core says about the image.
    ///
    /// # Panics
    /// When the host has no socket for it.
    pub fn begin(
        machine: &Machine,
        spec: &NodeSpec,
        path: &Path,
        tls: Option<TlsServer>,
    ) -> CoreResult<Self> {
        Self::promising(machine, spec, path, (true, tls))
    }

    /// The same; tells clients that a flush is about what was done through all connections, or does not tell them.
    ///
    /// # Errors
    /// What core says about the image.
    ///
    /// # Panics
    /// When the host has no socket for it.
    pub fn promising(
        machine: &Machine,
        spec: &NodeSpec,
        path: &Path,
        (shared, tls): (bool, Option<TlsServer>),
    ) -> CoreResult<Self> {
        let listener = UnixListener::bind(path).expect("the folder is ours");
        listener.set_nonblocking(true).expect("a socket has that switch");
        let (stop, stopped) = UnixStream::pair().expect("the kernel has sockets");
        let (opened, is_open) = channel();
        let (closed, is_closed) = channel();
        let spec = spec.clone();
        machine.send(Box::new(move |client: Client| {
            Box::pin(async move {
                let image = match client.open(&spec).await {
                    Ok(image) => image,
                    Err(error) => return opened.send(Err(error)).expect("somebody waits for it"),
                };
                let export = Export { shared, ..export(image.len()) };
                let export = NbdExport { image: image.clone(), export, bitmaps: Vec::new() };
                let plan = NbdPlan {
                    tls,
                    clients_max: usize::MAX,
                    stop: Some(stopped.into()),
                    ..NbdPlan::new(listener.into(), vec![export])
                };
                let server = client.serve(plan).expect("the kernel watches sockets");
                opened.send(Ok(())).expect("somebody waits for it");
                server.ended().await;
                // Who gave up on the server does not ask.
                let _ = closed.send(image.close().await);
            })
        }));
        is_open.recv().expect("the machine answers")?;
        Ok(Self { path: path.to_owned(), stop, closed: is_closed })
    }

    /// Ends the server, and closes the image.
    ///
    /// # Errors
    /// What core says about the image.
    ///
    /// # Panics
    /// When the machine has ended.
    pub fn close(self) -> CoreResult<()> {
        self.tell_to_stop();
        self.closed.recv().expect("the machine answers")
    }

    fn tell_to_stop(&self) {
        // A server that has ended does not listen.
        let _ = (&self.stop).write_all(&[0]);
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.tell_to_stop();
    }
}

/// Gives a machine's engine credentials.
///
/// # Panics
/// When the machine has ended.
pub fn give_credentials(machine: &Machine, id: &'static str, credentials: TlsCredentials) {
    let (done, is_done) = channel();
    machine.send(Box::new(move |client: Client| {
        Box::pin(async move {
            client.add_tls_credentials(id, credentials);
            done.send(()).expect("somebody waits for it");
        })
    }));
    is_done.recv().expect("the machine answers");
}

/// The image at a socket of the file system, for writing.
pub fn at(path: &Path) -> NbdLocation {
    NbdLocation::new(NbdAddress::Unix { path: path.to_str().expect("tests have plain names").into() }, "")
}

/// raw on an export.
pub fn raw_on(location: NbdLocation) -> NodeSpec {
    NodeSpec::raw(NodeSpec::leaf(Location::Nbd(Box::new(location)), WRITABLE))
}

/// A machine as a [`Runner`] of images that another machine serves.
pub struct NbdRunner<'a> {
    server: &'a Machine,
    client: RealRunner<'a>,
    path: PathBuf,
    connections: usize,
    served: Option<Served>,
}

impl<'a> NbdRunner<'a> {
    /// Returns a runner that has nothing open; `path` is for the socket.
    pub fn new(server: &'a Machine, client: &'a Machine, path: PathBuf, connections: usize) -> Self {
        Self { server, client: RealRunner::new(client), path, connections, served: None }
    }
}

impl Runner for NbdRunner<'_> {
    fn open(&mut self, spec: &NodeSpec) -> Result<(), RunError> {
        let _ = std::fs::remove_file(&self.path);
        self.served = Some(Served::begin(self.server, spec, &self.path, None)?);
        let mut location = at(&self.path);
        location.connections = self.connections;
        self.client.open(&raw_on(location))
    }

    fn size(&mut self) -> u64 {
        self.client.size()
    }

    fn submit(&mut self, batch: Vec<Ask>) {
        self.client.submit(batch);
    }

    fn wait(&mut self) -> Result<Reply, Stopped> {
        self.client.wait()
    }

    fn close(&mut self) -> Result<(), RunError> {
        self.client.close()?;
        Ok(self.served.take().expect("the suite closes an image once").close()?)
    }
}

/// Between clients and a server, both of whom it lets down: the first connection after [`cut`](Self::cut) ends once so
/// many bytes went one way; later ones are whole.
pub struct Proxy {
    /// Where clients connect.
    pub path: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    /// What the next connection is to suffer.
    cut: Mutex<Option<(Towards, u64)>>,
    /// Whether it has.
    was_cut: AtomicBool,
    connections: AtomicU64,
    stop: AtomicBool,
}

impl Proxy {
    /// Stands between clients at `path` and the server at `target`.
    ///
    /// # Panics
    /// When the host has no sockets or threads.
    pub fn start(path: &Path, target: &Path) -> Self {
        let listener = UnixListener::bind(path).expect("the folder is ours");
        let shared: Arc<Shared> = Arc::default();
        let (sees, target) = (Arc::clone(&shared), target.to_owned());
        let thread = std::thread::spawn(move || {
            for client in listener.incoming() {
                if sees.stop.load(Ordering::Acquire) {
                    return;
                }
                let client = client.expect("the kernel has a descriptor");
                let Ok(server) = UnixStream::connect(&target) else { continue };
                sees.connections.fetch_add(1, Ordering::AcqRel);
                sees.pass_on(client, server);
            }
        });
        Self { path: path.to_owned(), shared, thread: Some(thread) }
    }

    /// Has the next connection end once so many bytes went that way.
    pub fn cut(&self, towards: Towards, after: u64) {
        self.shared.was_cut.store(false, Ordering::Release);
        *self.shared.cut.lock().expect("nothing panics inside") = Some((towards, after));
    }

    /// Whether a connection has ended so since.
    pub fn was_cut(&self) -> bool {
        self.shared.was_cut.load(Ordering::Acquire)
    }

    /// Connections that came so far.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Acquire)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        let _ = UnixStream::connect(&self.path);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "a proxy panics");
        }
    }
}

impl Shared {
    /// Moves bytes both ways from now on.
    fn pass_on(self: &Arc<Self>, client: UnixStream, server: UnixStream) {
        let cut = self.cut.lock().expect("nothing panics inside").take();
        let ends = Arc::new((client, server));
        for towards in [Towards::Server, Towards::Client] {
            let budget = cut.filter(|(way, _)| *way == towards).map(|(_, after)| after);
            let (ends, shared) = (Arc::clone(&ends), Arc::clone(self));
            std::thread::spawn(move || {
                let (client, server) = &*ends;
                let (from, to) = if towards == Towards::Server { (client, server) } else { (server, client) };
                if copy(from, to, budget) {
                    shared.was_cut.store(true, Ordering::Release);
                }
                for end in [client, server] {
                    // The other direction may have ended it already.
                    let _ = end.shutdown(Shutdown::Both);
                }
            });
        }
    }
}

/// Moves bytes until one end is gone, or `budget` of them have moved, which it tells.
fn copy(mut from: &UnixStream, mut to: &UnixStream, budget: Option<u64>) -> bool {
    let mut left = budget.unwrap_or(u64::MAX);
    let mut bytes = [0; 4096];
    while left > 0 {
        let most = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let Ok(count @ 1..) = from.read(&mut bytes[..most]) else { return false };
        if to.write_all(&bytes[..count]).is_err() {
            return false;
        }
        left -= count as u64;
    }
    true
}
