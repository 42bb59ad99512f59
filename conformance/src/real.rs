//! The real executors as executors that the suite runs on.
//!
//! A [`Machine`] is an engine on a thread of its own, driven by one of the executors; a [`RealRunner`] asks it for one
//! image at a time, on real files. Start at [`Machine::start`].

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use drystone_core::buf::BufList;
use drystone_core::crypto::Secret;
use drystone_core::engine::Reply;
use drystone_core::error::Result as CoreResult;
use drystone_core::graph::open::NodeSpec;
use drystone_exec_linux::{BackendKind, Client, Config, Handle, RemoteImage, Ticket};

use crate::scenario::{Ask, RunError, Runner};
use crate::sim::{SECRETS, Stopped};

/// Real time in which every request is answered, on however slow a machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Which runtime drives the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Executor {
    /// tokio, on a current-thread runtime.
    Tokio,
    /// monoio.
    Monoio,
    /// glommio.
    Glommio,
}

impl Executor {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tokio, Self::Monoio, Self::Glommio];

    fn run<T>(self, config: Config, main: impl AsyncFnOnce(Client) -> T) -> std::io::Result<T> {
        match self {
            Self::Tokio => drystone_exec_tokio::run(config, main),
            Self::Monoio => drystone_exec_monoio::run(config, main),
            Self::Glommio => drystone_exec_glommio::run(config, main),
        }
    }
}

/// An engine on a thread of its own; dropped, it ends.
pub struct Machine {
    handle: Handle,
    desk: Arc<Desk>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

/// Work for an engine's thread, with what only that thread has.
pub(crate) type Errand = Box<dyn FnOnce(Client) -> Pin<Box<dyn Future<Output = ()>>> + Send>;

impl Machine {
    /// Starts an engine.
    ///
    /// # Errors
    /// The kernel's, where it refuses the runtime or the backend.
    ///
    /// # Panics
    /// When the host has no room for a thread, or the runtime panics.
    pub fn start(executor: Executor, backend: BackendKind) -> std::io::Result<Self> {
        let config = Config { backend, workers: 2, ring_entries: 32, ..Config::default() };
        let desk = Arc::new(Desk::default());
        let (send, receive) = mpsc::channel();
        let heeds = Arc::clone(&desk);
        let main = async move |client: Client| {
            for (id, passphrase) in SECRETS {
                client.add_secret(id, Secret::new(passphrase.into()));
            }
            send.send(client.handle()).expect("who starts a machine waits for its handle");
            while let Some(errand) = heeds.next().await {
                errand(client.clone()).await;
            }
        };
        let thread = std::thread::spawn(move || executor.run(config, main));
        match receive.recv() {
            Ok(handle) => Ok(Self { handle, desk, thread: Some(thread) }),
            // The channel closes without a handle when the runtime did not start.
            Err(_) => Err(thread.join().expect("no panic").expect_err("the runtime did not start")),
        }
    }

    /// Has the engine's thread do something, after what it was given before.
    pub(crate) fn send(&self, errand: Errand) {
        self.put(Some(errand)).expect("the engine listens until it is told to stop");
    }

    /// Puts an errand on the desk; none is the last.
    fn put(&self, errand: Option<Errand>) -> CoreResult<()> {
        self.desk.errands.lock().expect("nothing panics inside").push_back(errand);
        let desk = Arc::clone(&self.desk);
        // From the engine's own thread, because not every runtime hears a waker from another.
        self.handle.run(move |_| async move {
            desk.ring();
            Ok(())
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let told = self.put(None);
        let thread = self.thread.take().expect("taken only here");
        let ended = thread.join();
        if !std::thread::panicking() {
            ended.expect("no panic").expect("the runtime ends in order");
            told.expect("the engine listens until it is told to stop");
        }
    }
}

/// What an engine's main task waits for.
#[derive(Default)]
struct Desk {
    errands: Mutex<VecDeque<Option<Errand>>>,
    waker: Mutex<Option<Waker>>,
}

impl Desk {
    fn ring(&self) {
        if let Some(waker) = self.waker.lock().expect("nothing panics inside").take() {
            waker.wake();
        }
    }

    /// The next errand; none when it is over.
    fn next(&self) -> impl Future<Output = Option<Errand>> {
        std::future::poll_fn(|cx| {
            *self.waker.lock().expect("nothing panics inside") = Some(cx.waker().clone());
            self.errands.lock().expect("nothing panics inside").pop_front().map_or(Poll::Pending, Poll::Ready)
        })
    }
}

type Answer = Ticket<(BufList, CoreResult<()>)>;

/// A machine as a [`Runner`].
pub struct RealRunner<'a> {
    machine: &'a Machine,
    image: Option<RemoteImage>,
    in_flight: Vec<(u64, Answer)>,
    waker: Waker,
}

impl<'a> RealRunner<'a> {
    /// Returns a runner that has nothing open. It belongs to the thread that calls.
    pub fn new(machine: &'a Machine) -> Self {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        Self { machine, image: None, in_flight: Vec::new(), waker }
    }

    fn image(&self) -> &RemoteImage {
        self.image.as_ref().expect("the suite opens an image before it uses one")
    }

    fn next(&mut self) -> Option<Reply> {
        let mut cx = Context::from_waker(&self.waker);
        let polled = self.in_flight.iter_mut().enumerate().find_map(|(index, (_, answer))| {
            match Pin::new(answer).poll(&mut cx) {
                Poll::Ready(answer) => Some((index, answer)),
                Poll::Pending => None,
            }
        });
        polled.map(|(index, (data, result))| {
            let (tag, _) = self.in_flight.remove(index);
            Reply { tag, data, result }
        })
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl Runner for RealRunner<'_> {
    fn open(&mut self, spec: &NodeSpec) -> Result<(), RunError> {
        self.image = Some(self.machine.handle.open(spec)?);
        Ok(())
    }

    fn size(&mut self) -> u64 {
        self.image().len()
    }

    fn submit(&mut self, batch: Vec<Ask>) {
        for Ask { op, offset, len, data, tag } in batch {
            let answer = self.image().submit(op, offset, len, data);
            self.in_flight.push((tag, answer));
        }
    }

    fn wait(&mut self) -> Result<Reply, Stopped> {
        assert!(!self.in_flight.is_empty(), "a reply is waited for only while a request is in flight");
        let begun = Instant::now();
        loop {
            if let Some(reply) = self.next() {
                return Ok(reply);
            }
            let left = PATIENCE.checked_sub(begun.elapsed());
            std::thread::park_timeout(left.expect("a request is answered in the end"));
        }
    }

    fn close(&mut self) -> Result<(), RunError> {
        let image = self.image.take().expect("the suite closes an image once");
        Ok(image.close()?)
    }
}

/// What a run that failed left open is closed, so that the next one can open it.
impl Drop for RealRunner<'_> {
    fn drop(&mut self) {
        if let Some(image) = self.image.take() {
            // The failure that led here is the one to report.
            let _ = image.close();
        }
    }
}
