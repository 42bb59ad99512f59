//! One engine with its backend, and everyone who waits for an answer.
//!
//! A request or job is known to the engine by the key of its [`Waiter`]. [`Session::pump`] moves intents one way and
//! outcomes the other until nothing moves; whoever submits only marks the session and wakes its driver task, so that
//! many requests of one turn of the runtime go to the kernel in one call.

use std::cell::{Cell, RefCell, RefMut};
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use drystone_core::buf::{Buf, BufList};
use drystone_core::crypto::Secret;
use drystone_core::engine::{Engine, Event, Io, Job, Lone, Op, Reply, Request, Stored};
use drystone_core::error::Result;
use drystone_core::graph::{NodeId, NodeInfo};
use drystone_core::intent::Outcome;
use slab::Slab;

use crate::backend::Backend;
use crate::config::{Config, Trace};
use crate::doorbell::Doorbell;
use crate::handle::{COMMANDS_MAX, Command, Gate, Handle, RemoteRequest};
use crate::namespace::LONE;
use crate::nbd::TlsCredentials;
use crate::nbd::server::{Finished, InFile, Job as ClientJob, NbdPlan, NbdServer, Server};
use crate::opened::Opened;
use crate::promise::Answer;
use crate::sync::Mutex;
use crate::sync::mpsc::{Receiver, sync_channel};

/// An engine on this thread, and what carries out its intents.
pub struct Session {
    engine: Engine,
    backend: RefCell<Backend>,
    trace: Option<Trace>,
    waiters: RefCell<Slab<Waiter>>,
    /// Other threads, once there is a handle for them.
    others: RefCell<Option<Rc<Others>>>,
    /// The driver task, while it waits.
    driver: RefCell<Option<Waker>>,
    /// The driver task was woken, or is at it.
    kicked: Cell<bool>,
    /// The kernel takes no more requests: nobody is answered any more.
    failed: Cell<bool>,
    /// No client is left: the driver ends with the last request.
    closing: Cell<bool>,
    /// Somebody was answered, and may want to do something.
    answered: Cell<bool>,
    /// Requests that [`submit_alone`](Self::submit_alone) may begin before the driver task has its turn.
    alone: Cell<u32>,
    /// NBD servers of this engine's images, and what came of their clients' requests.
    servers: RefCell<Vec<Server>>,
    finished: Rc<RefCell<Finished>>,
}

/// What other threads ask, and the images that they use.
struct Others {
    commands: Receiver<Command>,
    handle: Handle,
    gate: Arc<Gate>,
    images: RefCell<Slab<Rc<Opened>>>,
}

/// Looks for completions of polled leaves, before others on this thread have their turn.
const LOOKS: u32 = 64;

/// Requests that were answered by who asked, one after the other, before others on this thread have their turn.
const ALONE_MAX: u32 = 64;

/// Requests of all kinds in flight from which on other threads have to wait.
const WAITERS_MAX: usize = 4096;

/// What became of a request that was to be carried out alone.
pub(crate) enum Alone {
    /// All of it was moved.
    Done(BufList),
    /// Its answer goes to this key.
    Waits(usize),
    /// It did not begin.
    No,
}

/// What was seen while a request is in flight alone.
enum Around {
    Nothing,
    /// Others have their turn.
    Others,
    /// What came of the request itself, which is not simply done.
    Lone(Outcome),
}

/// Who waits for a reply.
enum Waiter {
    Waiting {
        waker: Option<Waker>,
        image: Option<Rc<Opened>>,
    },
    Answered(BufList, Result<()>),
    /// Another thread waits.
    Remote {
        answer: Answer<(BufList, Result<()>)>,
        image: Rc<Opened>,
    },
    /// A client of a server waits.
    Client {
        job: ClientJob,
        image: Rc<Opened>,
    },
    /// The future was dropped; the answer is dropped too.
    Abandoned {
        image: Option<Rc<Opened>>,
    },
}

impl Session {
    /// Starts an engine with an empty graph.
    ///
    /// # Errors
    /// The kernel's, where it refuses what the configuration asks for.
    pub fn new(config: &Config) -> io::Result<Rc<Self>> {
        let (engine, backend) = (Engine::new(), Backend::new(config)?);
        engine.supply_buffers(backend.supply());
        Ok(Rc::new(Self {
            engine,
            backend: RefCell::new(backend),
            trace: config.trace,
            waiters: RefCell::default(),
            others: RefCell::default(),
            driver: RefCell::default(),
            kicked: Cell::new(false),
            failed: Cell::new(false),
            closing: Cell::new(false),
            answered: Cell::new(false),
            alone: Cell::new(0),
            servers: RefCell::default(),
            finished: Rc::default(),
        }))
    }

    /// A descriptor that becomes readable when there is something to do, after
    /// [`pump_and_arm`](Self::pump_and_arm).
    ///
    /// # Errors
    /// The kernel's.
    pub fn readiness_fd(&self) -> io::Result<OwnedFd> {
        self.backend.borrow().as_fd().try_clone_to_owned()
    }

    /// As [`readiness_fd`](Self::readiness_fd), for runtimes that cannot poll: an eventfd whose 8 bytes are to be read, and
    /// that makes the reader wait while there is nothing to do.
    ///
    /// # Errors
    /// The kernel's.
    pub fn counter_fd(&self) -> io::Result<OwnedFd> {
        self.bell().leave_to_reader()?;
        self.readiness_fd()
    }

    /// Moves intents to the backend and outcomes to the engine until nothing moves without waiting.
    ///
    /// # Errors
    /// The kernel's, when it takes no more intents at all.
    pub fn pump(self: &Rc<Self>) -> io::Result<()> {
        // Whoever submits meanwhile is seen below.
        self.kicked.set(true);
        self.answered.set(false);
        let mut looks = 0;
        loop {
            let moved = self.turn()?;
            // Who was answered may have more to ask, which then goes out with what else there is to do.
            let yields = self.answered.get() && self.is_still();
            if yields || !moved && (looks >= LOOKS || !self.looks_again()) {
                break;
            }
            looks += 1;
        }
        self.kicked.set(false);
        let alone = self.trace.is_none() && self.backend.borrow().has_polled();
        self.alone.set(if alone { ALONE_MAX } else { 0 });
        Ok(())
    }

    /// Whether nothing waits to be moved but what may have completed in the meantime, of which the backend tells.
    #[inline]
    fn is_still(&self) -> bool {
        !self.engine.has_intents()
            && self.servers.borrow().is_empty()
            && self.others.borrow().is_none()
            && self.backend.borrow().is_still()
    }

    /// Pumps, and has the descriptor tell when there is more.
    ///
    /// # Errors
    /// The kernel's, when it takes no more intents at all.
    pub fn pump_and_arm(self: &Rc<Self>) -> io::Result<()> {
        self.backend.borrow_mut().disarm();
        loop {
            self.pump()?;
            if self.must_poll() {
                return Ok(());
            }
            if !self.backend.borrow_mut().arm() {
                return Ok(());
            }
        }
    }

    /// Whether nobody tells of what is in flight, so that the caller has to pump again without waiting.
    pub fn must_poll(&self) -> bool {
        self.backend.borrow().must_poll()
    }

    /// Memory that the device below a leaf reaches without copying, if there is one with room; else other memory. It holds
    /// anything.
    pub(crate) fn buffer(&self, len: usize) -> Buf {
        self.backend.borrow().buffer(len).unwrap_or_else(|| Buf::zeroed(len))
    }

    /// Makes the descriptor unreadable again, once it was seen to be readable.
    pub fn hush(&self) {
        self.backend.borrow().hush();
    }

    /// Whether it is worth to look again for completions at once; lets the least time pass then.
    fn looks_again(&self) -> bool {
        let backend = self.backend.borrow();
        let again = backend.must_poll() && !self.answered.get();
        if again {
            backend.relax();
        }
        again
    }

    /// Moves everything once. Tells whether anything moved.
    #[inline]
    fn turn(self: &Rc<Self>) -> io::Result<bool> {
        let mut backend = self.backend.borrow_mut();
        if self.closing.get() {
            // Nobody waits for time to pass any more.
            backend.hurry()?;
        }
        self.hand_over(&mut backend)?;
        backend.submit()?;
        let moved = backend.reap(|token, outcome| self.engine.complete(token, outcome))?;
        drop(backend);
        let answered = self.deliver();
        let asked = self.hear_others();
        let served = self.serve_clients();
        Ok(moved || answered || asked || served)
    }

    /// Gives the backend what the engine has for it, as far as there is room.
    #[inline]
    fn hand_over(&self, backend: &mut Backend) -> io::Result<()> {
        while self.engine.has_intents()
            && backend.has_room()
            && let Some(intent) = self.engine.next_intent()
        {
            if let Some(trace) = self.trace {
                trace(&intent);
            }
            backend.push(intent)?;
        }
        Ok(())
    }

    /// Carries a request out past the engine's queues, while nobody else waits, and looks a little for its end: on a polled leaf the
    /// way over the driver task, and back by waking who asked, would be most of what it costs. The buffers stay where they are
    /// if it is no request for that, or somebody waits, or would be kept waiting.
    #[inline(always)]
    pub(crate) fn submit_alone(&self, image: &Rc<Opened>, op: Op, offset: u64, data: &mut BufList) -> Alone {
        let Some(left) = self.alone.get().checked_sub(1) else { return Alone::No };
        if !self.waiters.borrow().is_empty() {
            return Alone::No;
        }
        let Some(lone) = self.engine.begin_lone(image.node(), op, offset, data) else { return Alone::No };
        let mut backend = self.backend.borrow_mut();
        let Some(lane) = backend.lanes().begin_lone(&lone, data) else { return Alone::No };
        self.alone.set(left);
        let Some(data) = backend.lanes().take_lone(lane) else {
            return self.look_for_end(backend, image, lone, lane);
        };
        drop(backend);
        self.end_lone(lone);
        Alone::Done(data)
    }

    /// Looks a little for the end of a request that is in flight alone, with all that goes on beside it.
    #[inline(never)]
    fn look_for_end(
        &self,
        mut backend: RefMut<'_, Backend>,
        image: &Rc<Opened>,
        mut lone: Lone,
        lane: usize,
    ) -> Alone {
        self.engine.count_lone(&mut lone);
        for _ in 0..LOOKS {
            match self.look_around(&mut backend) {
                Around::Nothing => backend.relax(),
                Around::Others => break,
                Around::Lone(outcome) => return self.go_on(backend, image, lone, Some(outcome)),
            }
            if let Some(data) = backend.lanes().take_lone(lane) {
                drop(backend);
                self.end_lone(lone);
                return Alone::Done(data);
            }
        }
        self.go_on(backend, image, lone, None)
    }

    #[inline(always)]
    fn end_lone(&self, lone: Lone) {
        if self.engine.end_lone(lone) {
            // What nobody waits for is the driver's to carry on with.
            self.kick();
        }
    }

    /// Looks at polled leaves while a request is in flight alone. As nobody else waits, nobody is answered; what the engine does by
    /// itself may have more for the backend to do.
    fn look_around(&self, backend: &mut Backend) -> Around {
        let mut outcome = None;
        backend.lanes().reap(&mut |token, done| match token == LONE {
            true => outcome = Some(done),
            false => self.engine.complete(token, done),
        });
        match outcome {
            Some(outcome) => Around::Lone(outcome),
            None if self.engine.has_intents() => Around::Others,
            None => Around::Nothing,
        }
    }

    /// Has a request that was begun alone go on as any other; `outcome` is what came of it, if something did.
    #[cold]
    fn go_on(
        &self,
        mut backend: RefMut<'_, Backend>,
        image: &Rc<Opened>,
        lone: Lone,
        outcome: Option<Outcome>,
    ) -> Alone {
        image.enter();
        let waiter = Waiter::Waiting { waker: None, image: Some(Rc::clone(image)) };
        let key = self.waiters.borrow_mut().insert(waiter);
        let token = self.engine.lone_goes_on(lone, key as u64);
        match outcome {
            Some(outcome) => self.engine.complete(token, outcome),
            None => backend.lanes().lone_goes_on(token),
        }
        drop(backend);
        self.deliver();
        self.kick();
        Alone::Waits(key)
    }

    /// Gives servers their turn. Tells whether they did anything.
    fn serve_clients(self: &Rc<Self>) -> bool {
        let mut servers = self.servers.borrow_mut();
        if servers.is_empty() {
            return false;
        }
        let mut ready = Vec::new();
        self.backend.borrow_mut().take_ready(&mut ready);
        let mut finished = std::mem::take(&mut *self.finished.borrow_mut());
        let mut any = !ready.is_empty();
        for server in servers.iter_mut() {
            ready.iter().for_each(|ready| server.ready(*ready));
            any |= server.turn(self, &mut finished);
        }
        servers.retain(|server| !server.has_ended());
        any
    }

    /// Serves images to clients from now on.
    ///
    /// # Errors
    /// The kernel's, when it does not watch a socket.
    pub(crate) fn serve(self: &Rc<Self>, plan: NbdPlan) -> io::Result<NbdServer> {
        let state = Rc::default();
        let server = Server::new(plan, Rc::clone(&state), self)?;
        self.servers.borrow_mut().push(server);
        self.kick();
        Ok(NbdServer::new(state, Rc::clone(self)))
    }

    /// Has a socket watched; it is known by the number returned.
    pub(crate) fn add_socket(&self, socket: BorrowedFd<'_>) -> io::Result<u32> {
        self.backend.borrow_mut().add_socket(socket)
    }

    /// Where answers to clients' orders are put that are no plain requests.
    pub(crate) fn finished(&self) -> Rc<RefCell<Finished>> {
        Rc::clone(&self.finished)
    }

    /// The files that hold a range of an image as it reads, where its bytes may be taken from them: the kernel has them in
    /// memory now, and they stay where they are.
    pub(crate) fn cached(&self, image: &Opened, offset: u64, len: u64) -> Option<InFile> {
        image.check_open().ok()?;
        let places = self.engine.places(image.node(), offset, len)?;
        let backend = self.backend.borrow();
        let file = |place: &Stored| {
            let leaf = backend.leaf(place.leaf)?;
            leaf.has_cached(place.offset, place.len).then(|| (Arc::clone(leaf), place.offset, place.len))
        };
        places.iter().map(file).collect()
    }

    /// Begins a request of a client; what comes of it is told when servers have their turn.
    pub(crate) fn submit_for_client(&self, image: &Rc<Opened>, request: Request, job: ClientJob) {
        if let Err(error) = image.check_open() {
            return self.finished.borrow_mut().requests.push_back((job, request.data, Err(error)));
        }
        image.enter();
        let key = self.waiters.borrow_mut().insert(Waiter::Client { job, image: Rc::clone(image) });
        self.engine.submit(Request { tag: key as u64, ..request });
    }

    /// Begins what other threads ask for. Tells whether there was anything.
    fn hear_others(self: &Rc<Self>) -> bool {
        let Some(others) = self.others.borrow().clone() else { return false };
        if self.closing.get() {
            // What is in the queue is cancelled, and the images close, when the last of `others` goes.
            return self.others.take().is_some();
        }
        let mut any = false;
        while self.waiters.borrow().len() < WAITERS_MAX
            && let Ok(command) = others.commands.try_recv()
        {
            any = true;
            match command {
                Command::Do(command) => command(self),
                Command::Request(request) => self.submit_remote(request),
            }
        }
        let forgotten = std::mem::take(&mut *others.gate.forgotten.lock().expect("pushing does not panic"));
        for key in forgotten {
            // The borrow ends before the image does, which may begin to close its node.
            let image = others.images.borrow_mut().remove(key);
            drop(image);
            any = true;
        }
        any
    }

    fn submit_remote(&self, request: RemoteRequest) {
        let RemoteRequest { image, op, offset, len, data, answer } = request;
        let image = image.opened(self);
        if let Err(error) = image.check_open() {
            return answer.give((data, Err(error)));
        }
        image.enter();
        let node = image.node();
        let key = self.waiters.borrow_mut().insert(Waiter::Remote { answer, image });
        self.engine.submit(Request { node, op, offset, len, data, tag: key as u64 });
    }

    /// Access from other threads.
    pub(crate) fn handle(&self) -> Handle {
        if let Some(others) = &*self.others.borrow() {
            return others.handle.clone();
        }
        let (sender, commands) = sync_channel(COMMANDS_MAX);
        let gate = Arc::new(Gate { bell: self.bell(), forgotten: Mutex::default() });
        let handle = Handle::new(sender, Arc::clone(&gate));
        let others = Others { commands, handle: handle.clone(), gate, images: RefCell::default() };
        *self.others.borrow_mut() = Some(Rc::new(others));
        handle
    }

    /// Keeps an image for other threads, until they forget it; nothing when the engine is ending.
    pub(crate) fn keep(&self, image: Rc<Opened>) -> Option<usize> {
        let others = self.others.borrow().clone()?;
        let key = others.images.borrow_mut().insert(image);
        Some(key)
    }

    /// The image of that number; whoever knows the number keeps it from being forgotten.
    pub(crate) fn kept(&self, key: usize) -> Rc<Opened> {
        let others = self.others.borrow().clone().expect("other threads have a handle");
        Rc::clone(&others.images.borrow()[key])
    }

    /// Wakes the thread that drives this session, from any thread.
    pub(crate) fn bell(&self) -> Arc<Doorbell> {
        self.backend.borrow().bell()
    }

    /// Waits until the backend has something to do. For threads without a runtime.
    pub(crate) fn wait(&self) -> io::Result<()> {
        self.backend.borrow_mut().wait()
    }

    /// Whether the last client is gone.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.get()
    }

    /// Whether there is nothing left to do, and nobody to ask for more.
    pub(crate) fn is_over(&self) -> bool {
        self.closing.get() && self.engine.is_idle() && self.backend.borrow().is_idle()
    }

    /// Has the driver end once everything in flight has ended; timers end at once.
    pub fn close(&self) {
        self.closing.set(true);
        self.kick();
    }

    /// Has the driver task pump, once, however often this is called before it does.
    #[inline]
    pub(crate) fn kick(&self) {
        if self.kicked.replace(true) {
            return;
        }
        let driver = self.driver.borrow_mut().take();
        if let Some(driver) = driver {
            driver.wake();
        }
    }

    /// Begins a request; its answer goes to the key returned, which takes the place of the tag.
    pub(crate) fn submit(&self, image: &Rc<Opened>, request: Request) -> usize {
        image.enter();
        let waiter = Waiter::Waiting { waker: None, image: Some(Rc::clone(image)) };
        let key = self.waiters.borrow_mut().insert(waiter);
        self.engine.submit(Request { tag: key as u64, ..request });
        // What memory alone can answer is answered by now.
        self.deliver();
        self.kick();
        key
    }

    /// Begins a coroutine; that it ended is answered to the key returned.
    pub(crate) fn run<T: 'static, F: Future<Output = T> + 'static>(
        &self,
        coroutine: impl FnOnce(Io) -> F,
    ) -> (usize, Job<T>) {
        let key = self.waiters.borrow_mut().insert(Waiter::Waiting { waker: None, image: None });
        let job = self.engine.run(key as u64, coroutine);
        self.kick();
        (key, job)
    }

    /// Begins a coroutine that nobody waits for.
    pub(crate) fn run_detached<F: Future<Output = ()> + 'static>(&self, coroutine: impl FnOnce(Io) -> F) {
        let (key, _) = self.run(coroutine);
        self.abandon(key);
    }

    /// Takes the answer of a key, which is free then; or sees to it that `cx` is woken by it.
    #[inline]
    pub(crate) fn poll_answer(&self, key: usize, cx: &Context<'_>) -> Poll<(BufList, Result<()>)> {
        assert!(!self.failed.get(), "the driver of this engine failed: the kernel takes no more requests");
        let mut waiters = self.waiters.borrow_mut();
        match &mut waiters[key] {
            Waiter::Waiting { waker: Some(waker), .. } if waker.will_wake(cx.waker()) => Poll::Pending,
            Waiter::Waiting { waker, .. } => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
            Waiter::Answered(..) => match waiters.remove(key) {
                Waiter::Answered(data, result) => Poll::Ready((data, result)),
                _ => unreachable!("matched above"),
            },
            Waiter::Remote { .. } | Waiter::Client { .. } | Waiter::Abandoned { .. } => {
                unreachable!("who waits has not given up")
            }
        }
    }

    /// Has everyone who waits find out that nothing will come.
    fn fail(&self) {
        self.failed.set(true);
        self.alone.set(0);
        drop(self.others.take());
        let remote = |waiter: &Waiter| matches!(waiter, Waiter::Remote { .. });
        self.waiters.borrow_mut().retain(|_, waiter| !remote(waiter));
        let waiters = self.waiters.borrow();
        for (_, waiter) in waiters.iter() {
            if let Waiter::Waiting { waker: Some(waker), .. } = waiter {
                waker.wake_by_ref();
            }
        }
    }

    /// Gives up waiting. What is in flight keeps its buffers until it ends.
    pub(crate) fn abandon(&self, key: usize) {
        let mut waiters = self.waiters.borrow_mut();
        let waiter = &mut waiters[key];
        match waiter {
            Waiter::Waiting { image, .. } => {
                let image = image.take();
                *waiter = Waiter::Abandoned { image };
            }
            Waiter::Answered(..) => {
                let answered = waiters.remove(key);
                drop(waiters);
                drop(answered);
            }
            Waiter::Remote { .. } | Waiter::Client { .. } | Waiter::Abandoned { .. } => {
                unreachable!("a future is dropped once")
            }
        }
    }

    /// Hands replies to who waits for them. Tells whether there were any.
    #[inline]
    fn deliver(&self) -> bool {
        let mut any = false;
        while let Some(Reply { tag, data, result }) = self.engine.next_reply() {
            any = true;
            let key = usize::try_from(tag).expect("a key of the slab");
            let mut waiters = self.waiters.borrow_mut();
            let waiter = &mut waiters[key];
            if let Waiter::Waiting { waker, image } = waiter {
                let (waker, image) = (waker.take(), image.take());
                *waiter = Waiter::Answered(data, result);
                drop(waiters);
                if let Some(image) = image {
                    image.leave();
                }
                if let Some(waker) = waker {
                    self.answered.set(true);
                    waker.wake();
                }
                continue;
            }
            let waiter = waiters.remove(key);
            // Whoever is told may come back with something new.
            drop(waiters);
            match waiter {
                Waiter::Remote { answer, image } => {
                    image.leave();
                    answer.give((data, result));
                }
                Waiter::Client { job, image } => {
                    image.leave();
                    self.finished.borrow_mut().requests.push_back((job, data, result));
                }
                Waiter::Abandoned { image: Some(image) } => image.leave(),
                Waiter::Abandoned { image: None } => {}
                Waiter::Waiting { .. } | Waiter::Answered(..) => unreachable!("a request is answered once"),
            }
        }
        any
    }

    /// The next thing that happened to a node by itself.
    pub(crate) fn next_event(&self) -> Option<Event> {
        self.engine.next_event()
    }

    /// Keeps credentials for encrypted connections.
    pub(crate) fn add_tls_credentials(&self, id: &str, credentials: TlsCredentials) {
        self.backend.borrow().credentials().add(id, credentials);
    }

    /// Keeps a passphrase or key.
    pub(crate) fn add_secret(&self, id: &str, secret: Secret) {
        self.engine.add_secret(id, secret);
    }

    /// Describes the graph.
    pub(crate) fn graph(&self) -> Vec<NodeInfo> {
        self.engine.graph()
    }

    /// Length of what a node shows, in bytes.
    pub(crate) fn len(&self, node: NodeId) -> u64 {
        self.engine.len(node)
    }
}

/// Runs a session until its last client is gone and everything in flight has ended: the body of a driver task.
///
/// `readable` waits until the session's descriptor is readable; it may also return for nothing.
///
/// # Errors
/// The kernel's, or the runtime's. Then requests in flight panic where they are awaited, as they do when this panics.
pub async fn drive(session: Rc<Session>, readable: impl AsyncFnMut() -> io::Result<()>) -> io::Result<()> {
    let unless_it_ends_well = FailOnDrop(&session);
    let result = drive_to_end(&session, readable).await;
    if result.is_ok() {
        std::mem::forget(unless_it_ends_well);
    }
    result
}

/// Has everyone who waits find out that nobody drives the session any more.
struct FailOnDrop<'a>(&'a Session);

impl Drop for FailOnDrop<'_> {
    fn drop(&mut self) {
        self.0.fail();
    }
}

async fn drive_to_end(
    session: &Rc<Session>,
    mut readable: impl AsyncFnMut() -> io::Result<()>,
) -> io::Result<()> {
    loop {
        let mut waiting = pin!(readable());
        let over = poll_fn(|cx| {
            *session.driver.borrow_mut() = Some(cx.waker().clone());
            if let Err(error) = session.pump_and_arm() {
                return Poll::Ready(Err(error));
            }
            if session.is_over() {
                return Poll::Ready(Ok(true));
            }
            if session.must_poll() {
                // Others have their turn, then this one again.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            waiting.as_mut().poll(cx).map_ok(|()| false)
        })
        .await?;
        if over {
            return Ok(());
        }
        session.hush();
    }
}
