//! How programs use an engine: opening images, and running coroutines of core.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};

use drystone_core::buf::Buf;
use drystone_core::crypto::Secret;
use drystone_core::engine::{Event, Io, Job};
use drystone_core::error::Result;
use drystone_core::graph::open::{NodeSpec, open};
use drystone_core::graph::{NodeId, NodeInfo};

use crate::handle::Handle;
use crate::image::Image;
use crate::nbd::TlsCredentials;
use crate::nbd::server::{NbdPlan, NbdServer};
use crate::session::Session;

/// A program's access to the engine of its thread.
///
/// Cheap to clone. When the last client and image are gone, the driver task finishes what is in flight and ends.
#[derive(Clone)]
pub struct Client {
    alive: Rc<Alive>,
}

/// Tells the session when the last client is gone.
struct Alive {
    session: Rc<Session>,
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.session.close();
    }
}

impl Client {
    /// Makes the client of a session; whoever does so also sees to it that the session is driven.
    pub fn new(session: Rc<Session>) -> Self {
        Self { alive: Rc::new(Alive { session }) }
    }

    pub(crate) fn session(&self) -> &Rc<Session> {
        &self.alive.session
    }

    /// Opens a tree of nodes and returns its root.
    ///
    /// # Errors
    /// What the leaves, the locks or the formats say; then nothing of the tree stays open.
    pub async fn open(&self, spec: &NodeSpec) -> Result<Image> {
        let spec = spec.clone();
        // An image that opens after its opener gave up is closed again.
        let wanted = Wanted::default();
        let still = wanted.0.clone();
        let node = self.run_to_end(move |io| async move {
            let opened: Result<NodeId> = open(&io, &spec).await;
            if let Ok(node) = opened
                && !still.get()
            {
                io.close(node).await?;
            }
            opened
        });
        Ok(Image::new(self.clone(), node.await?))
    }

    /// Runs a coroutine of core: a job, or several requests with one answer. Inside, only what [`Io`] offers may be
    /// awaited.
    ///
    /// Dropping the future drops the coroutine, at the latest when what it waits for comes.
    ///
    /// # Errors
    /// The coroutine's.
    pub async fn run<T: 'static, F: Future<Output = Result<T>> + 'static>(
        &self,
        coroutine: impl FnOnce(Io) -> F,
    ) -> Result<T> {
        let wanted = Wanted::default();
        let still = wanted.0.clone();
        let ended = self.start(|io| while_wanted(coroutine(io), move || still.get()));
        ended.await.expect("who waits for a coroutine wants it to run")
    }

    /// Runs a coroutine that goes on to its end even when the future is dropped.
    pub(crate) async fn run_to_end<T: 'static, F: Future<Output = T> + 'static>(
        &self,
        coroutine: impl FnOnce(Io) -> F,
    ) -> T {
        self.start(coroutine).await
    }

    fn start<T: 'static, F: Future<Output = T> + 'static>(
        &self,
        coroutine: impl FnOnce(Io) -> F,
    ) -> Ended<'_, T> {
        let session = self.session();
        let (key, job) = session.run(coroutine);
        Ended { session, key: Some(key), job }
    }

    /// Takes a buffer of `len` bytes that holds anything: where a leaf is a device that this program drives itself, such as
    /// an NVMe namespace, from memory that the device reaches, so that nothing is copied.
    pub fn buffer(&self, len: usize) -> Buf {
        self.session().buffer(len)
    }

    /// Serves images to NBD clients, as long as this client's session is driven.
    ///
    /// # Errors
    /// The kernel's, when it does not watch a socket.
    pub fn serve(&self, plan: NbdPlan) -> io::Result<NbdServer> {
        self.session().serve(plan)
    }

    /// Access to the same engine from other threads.
    pub fn handle(&self) -> Handle {
        self.session().handle()
    }

    /// The next thing that happened to a node by itself.
    pub fn next_event(&self) -> Option<Event> {
        self.session().next_event()
    }

    /// Keeps a passphrase or key, which options of images refer to by `id`.
    pub fn add_secret(&self, id: &str, secret: Secret) {
        self.session().add_secret(id, secret);
    }

    /// Keeps credentials for encrypted connections, which options of images refer to by `id`.
    pub fn add_tls_credentials(&self, id: &str, credentials: TlsCredentials) {
        self.session().add_tls_credentials(id, credentials);
    }

    /// Describes the nodes that are open.
    pub fn graph(&self) -> Vec<NodeInfo> {
        self.session().graph()
    }
}

/// Runs a coroutine until its end, or until it is polled while nobody wants it.
pub(crate) async fn while_wanted<F: Future>(coroutine: F, wanted: impl Fn() -> bool) -> Option<F::Output> {
    let mut coroutine = pin!(coroutine);
    poll_fn(|cx| match wanted() {
        true => coroutine.as_mut().poll(cx).map(Some),
        false => Poll::Ready(None),
    })
    .await
}

/// Whether somebody still waits for a coroutine; `false` once this is dropped.
struct Wanted(Rc<Cell<bool>>);

impl Default for Wanted {
    fn default() -> Self {
        Self(Rc::new(Cell::new(true)))
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

/// Waits for the end of a coroutine.
struct Ended<'a, T> {
    session: &'a Session,
    key: Option<usize>,
    job: Job<T>,
}

impl<T> Future for Ended<'_, T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let key = self.key.expect("a future is not polled after its end");
        self.session.poll_answer(key, cx).map(|_| {
            self.key = None;
            self.job.take().expect("a coroutine that ended gave its value")
        })
    }
}

impl<T> Drop for Ended<'_, T> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.session.abandon(key);
        }
    }
}
