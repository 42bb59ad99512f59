//! Reaching an engine from other threads.
//!
//! Commands go through a bounded queue to the engine's thread, which answers through a promise. A command that is never
//! carried out, because the engine has ended, answers that it was cancelled when it is dropped.

use std::future::Future;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use drystone_core::buf::BufList;
use drystone_core::engine::{Io, Op, Status};
use drystone_core::error::{Error, Result};
use drystone_core::graph::open::{NodeSpec, open};
use drystone_core::graph::{NodeId, NodeInfo};
use drystone_core::intent::{Fua, ZeroFlags};

use crate::client::while_wanted;
use crate::doorbell::Doorbell;
use crate::opened::Opened;
use crate::promise::{Answer, Ticket, promise};
use crate::session::Session;
use crate::sync::Mutex;
use crate::sync::mpsc::SyncSender;

/// Commands that wait for the engine's thread at the most; who sends more waits.
pub(crate) const COMMANDS_MAX: usize = 1024;

/// What another thread asks of the engine's thread.
pub(crate) enum Command {
    Request(RemoteRequest),
    Do(Task),
}

/// What is to be done on the engine's thread.
type Task = Box<dyn FnOnce(&Rc<Session>) + Send>;

/// A request from another thread.
pub(crate) struct RemoteRequest {
    pub(crate) image: RemoteImage,
    pub(crate) op: Op,
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) data: BufList,
    pub(crate) answer: Answer<(BufList, Result<()>)>,
}

/// What handles and images of other threads share with the engine's thread, beside the commands.
pub(crate) struct Gate {
    pub(crate) bell: Arc<Doorbell>,
    /// Images whose last clone is gone. As many as there are images at the most.
    pub(crate) forgotten: Mutex<Vec<usize>>,
}

/// Access to an engine from other threads.
///
/// Calls wait for their answers, so they are not for the engine's own thread, which would wait for itself. The engine
/// ends with its last [`Client`](crate::Client), whatever handles there are; calls fail with [`Error::Cancelled`] then.
///
/// ```
/// use drystone_core::buf::Buf;
/// use drystone_core::graph::open::{DriverSpec, NodeSpec, OpenMode};
/// use drystone_core::intent::Location;
/// use drystone_exec_linux::{Config, Handle, run};
///
/// let (send, receive) = std::sync::mpsc::channel::<Handle>();
/// let other = std::thread::spawn(move || {
///     let handle = receive.recv().expect("an engine starts");
///     let location = Location::Null { len: 512, read_zeroes: true };
///     let spec = NodeSpec { node_name: None, mode: OpenMode::default(), driver: DriverSpec::Leaf(location) };
///     let disk = handle.open(&spec).expect("opens");
///     let (data, result) = disk.read(0, Buf::from(vec![1; 512]));
///     result.expect("reads");
///     assert!(data.is_zero());
///     disk.close().expect("closes");
///     handle.run(|io| async move { Ok(io.graph().len()) })
/// });
/// run(Config::default(), async |client| {
///     send.send(client.handle()).expect("the thread listens");
///     // Until the other thread is done, this one carries out what it asks for.
///     while !other.is_finished() {
///         client.run(async |io| Ok(io.sleep(std::time::Duration::from_millis(1)).await)).await.expect("sleeps");
///     }
///     assert_eq!(other.join().expect("no panic").expect("runs"), 0);
/// })?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct Handle {
    commands: SyncSender<Command>,
    gate: Arc<Gate>,
}

impl Handle {
    pub(crate) fn new(commands: SyncSender<Command>, gate: Arc<Gate>) -> Self {
        Self { commands, gate }
    }

    /// Opens a tree of nodes and returns its root.
    ///
    /// # Errors
    /// What the leaves, the locks or the formats say.
    pub fn open(&self, spec: &NodeSpec) -> Result<RemoteImage> {
        let (spec, handle) = (spec.clone(), self.clone());
        self.ask(move |session, answer| {
            let weak = Rc::downgrade(session);
            session.run_detached(move |io| async move {
                let opened = open(&io, &spec).await;
                answer.give(opened.and_then(|node| admit(&weak, &io, node, handle)));
            });
        })
    }

    /// Runs a coroutine of core on the engine's thread. Inside, only what [`Io`] offers may be awaited.
    ///
    /// # Errors
    /// The coroutine's.
    pub fn run<T: Send + 'static, F: Future<Output = Result<T>> + 'static>(
        &self,
        coroutine: impl FnOnce(Io) -> F + Send + 'static,
    ) -> Result<T> {
        self.ask(move |session, answer| {
            let session_here = Rc::downgrade(session);
            session.run_detached(move |io| async move {
                let wanted = || session_here.upgrade().is_some_and(|session| !session.is_closing());
                // Dropping the answer says that it was cancelled.
                if let Some(value) = while_wanted(coroutine(io), wanted).await {
                    answer.give(value);
                }
            });
        })
    }

    /// Describes the nodes that are open.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when the engine has ended.
    pub fn graph(&self) -> Result<Vec<NodeInfo>> {
        self.ask(|session, answer| answer.give(Ok(session.graph())))
    }

    /// Has `command` run on the engine's thread, and waits for what it answers.
    fn ask<T: Send + 'static>(
        &self,
        command: impl FnOnce(&Rc<Session>, Answer<Result<T>>) + Send + 'static,
    ) -> Result<T> {
        let (answer, ticket) = promise();
        self.send(Command::Do(Box::new(move |session| command(session, answer))));
        ticket.wait()
    }

    fn send(&self, command: Command) {
        // A command that nobody takes any more answers when it is dropped.
        let _ = self.commands.send(command);
        self.gate.bell.ring();
    }
}

/// Makes an image of a node for other threads.
fn admit(session: &Weak<Session>, io: &Io, node: NodeId, handle: Handle) -> Result<RemoteImage> {
    let session = session.upgrade().ok_or(Error::Cancelled)?;
    let key = session.keep(Rc::new(Opened::new(&session, node))).ok_or(Error::Cancelled)?;
    Ok(RemoteImage(Arc::new(Remote { handle, key, len: io.len(node) })))
}

/// A disk that other threads use: an [`Image`](crate::Image) whose calls wait for their answers.
///
/// Clones are the same disk; it closes when the last one is gone.
#[derive(Clone)]
pub struct RemoteImage(Arc<Remote>);

struct Remote {
    handle: Handle,
    key: usize,
    len: u64,
}

impl Drop for Remote {
    fn drop(&mut self) {
        // Not a command, which might have to wait: this may be the engine's own thread.
        let gate = &self.handle.gate;
        gate.forgotten.lock().expect("pushing and taking do not panic").push(self.key);
        gate.bell.ring();
    }
}

impl RemoteImage {
    /// Length in bytes when it was opened.
    pub fn len(&self) -> u64 {
        self.0.len
    }

    /// Tells whether it held no bytes when it was opened.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Begins a request; `len` is for those that carry no data. Waits only while the engine's
    /// thread is more than a thousand commands behind.
    pub fn submit(&self, op: Op, offset: u64, len: u64, data: BufList) -> Ticket<(BufList, Result<()>)> {
        let (answer, ticket) = promise();
        let request = RemoteRequest { image: self.clone(), op, offset, len, data, answer };
        self.0.handle.send(Command::Request(request));
        ticket
    }

    /// Fills `buf` from `offset` on. The buffers come back whatever happens.
    pub fn read(&self, offset: u64, buf: impl Into<BufList>) -> (BufList, Result<()>) {
        self.submit(Op::Read, offset, 0, buf.into()).wait()
    }

    /// Writes `buf` at `offset`. The buffers come back whatever happens.
    pub fn write(&self, offset: u64, buf: impl Into<BufList>) -> (BufList, Result<()>) {
        self.submit(Op::Write(Fua::No), offset, 0, buf.into()).wait()
    }

    /// Makes everything durable that completed before.
    ///
    /// # Errors
    /// When a leaf fails.
    pub fn flush(&self) -> Result<()> {
        self.submit(Op::Flush, 0, 0, BufList::new()).wait().1
    }

    /// Gives up the content of a range.
    ///
    /// # Errors
    /// When a leaf fails, or the range is beyond the end.
    pub fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.submit(Op::Discard, offset, len, BufList::new()).wait().1
    }

    /// Makes a range read as zeros.
    ///
    /// # Errors
    /// When a leaf fails, or the range is beyond the end.
    pub fn write_zeroes(&self, offset: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        self.submit(Op::WriteZeroes(flags, Fua::No), offset, len, BufList::new()).wait().1
    }

    /// Says what backs the range at `offset`; the answer may cover fewer than `len` bytes.
    ///
    /// # Errors
    /// When metadata is damaged, or a leaf fails.
    pub fn block_status(&self, offset: u64, len: u64) -> Result<Status> {
        let image = self.clone();
        self.0.handle.ask(move |session, answer| match image.opened(session).in_use() {
            Err(error) => answer.give(Err(error)),
            Ok(image) => session.run_detached(move |io| async move {
                answer.give(io.status(image.node(), offset, len, None).await);
            }),
        })
    }

    /// Waits for the requests in flight, writes out what is held back, and closes the nodes.
    ///
    /// # Errors
    /// The first failure; the nodes are gone all the same. [`Error::NoSuchNode`] when it was closed before.
    pub fn close(&self) -> Result<()> {
        let image = self.clone();
        self.0.handle.ask(move |session, answer| {
            let opened = image.opened(session);
            match opened.check_open() {
                Err(error) => answer.give(Err(error)),
                Ok(()) => opened.close(move |result| answer.give(result)).expect("it is open"),
            }
        })
    }

    /// What the engine's thread keeps for it.
    pub(crate) fn opened(&self, session: &Session) -> Rc<Opened> {
        session.kept(self.0.key)
    }
}

/// Under shuttle: the locks, the queue and the bell's flag are shuttle's (`sync`), all else is what programs run.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::mpsc::{Receiver, sync_channel};
    use drystone_core::buf::Buf;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use shuttle::{check_random, thread};

    /// Orders that are tried.
    const ORDERS: usize = 400;

    fn ring(room: usize) -> (Handle, Receiver<Command>) {
        let (sender, commands) = sync_channel(room);
        let bell = Arc::new(Doorbell::new().expect("an eventfd"));
        (Handle::new(sender, Arc::new(Gate { bell, forgotten: Mutex::default() })), commands)
    }

    /// The engine's thread, as far as the ring goes: it sleeps until the bell's descriptor is readable, silences it, and
    /// then looks until there is nothing more, as `session::drive` and `Session::pump` do. A ring that is missed leaves
    /// it asleep, and shuttle reports threads that never end.
    fn serve(commands: &Receiver<Command>, gate: &Gate, requests: usize, images: usize) {
        let (mut served, mut forgotten) = (0, 0);
        while served < requests || forgotten < images {
            while !is_readable(&gate.bell) {
                thread::yield_now();
            }
            gate.bell.hush();
            loop {
                let mut any = gate.bell.answer();
                while let Ok(command) = commands.try_recv() {
                    let Command::Request(RemoteRequest { data, answer, .. }) = command else {
                        unreachable!("only requests are sent")
                    };
                    answer.give((data, Ok(())));
                    served += 1;
                    any = true;
                }
                let gone = std::mem::take(&mut *gate.forgotten.lock().expect("pushing does not panic"));
                forgotten += gone.len();
                if !any && gone.is_empty() {
                    break;
                }
            }
        }
    }

    fn is_readable(bell: &Doorbell) -> bool {
        let mut fds = [PollFd::new(bell, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).expect("polls") > 0
    }

    fn image(handle: &Handle, key: usize) -> RemoteImage {
        RemoteImage(Arc::new(Remote { handle: handle.clone(), key, len: 512 }))
    }

    #[test]
    fn no_ring_is_missed_and_every_request_is_answered() {
        let run = || {
            // Less room than there are requests: some senders wait.
            let (handle, commands) = ring(1);
            let gate = Arc::clone(&handle.gate);
            let clients = [1_u8, 2].map(|number| {
                let handle = handle.clone();
                thread::spawn(move || {
                    let image = image(&handle, number.into());
                    let first = image.submit(Op::Read, 0, 0, Buf::from(vec![number; 4]).into());
                    let (data, result) = image.read(0, Buf::from(vec![number + 10; 4]));
                    result.expect("answered");
                    assert_eq!(*data.into_single(), [number + 10; 4], "an answer is its own request's");
                    assert_eq!(*first.wait().0.into_single(), [number; 4]);
                })
            });
            serve(&commands, &gate, 4, 2);
            clients.into_iter().for_each(|client| client.join().expect("it ends"));
        };
        check_random(run, ORDERS);
    }

    #[test]
    fn a_request_that_an_engine_leaves_behind_is_cancelled() {
        let run = || {
            let (handle, commands) = ring(4);
            let client = {
                let handle = handle.clone();
                thread::spawn(move || image(&handle, 7).flush().expect_err("nobody carries it out"))
            };
            // The engine ends at any moment: before the request, or with it in the queue.
            drop(commands);
            assert!(matches!(*client.join().expect("it ends"), Error::Cancelled));
        };
        check_random(run, ORDERS);
    }

    /// The answer may come before the future is polled, while it is, or after.
    #[test]
    fn a_ticket_wakes_who_waits_for_it() {
        let run = || {
            let (answer, ticket) = promise::<Result<u32>>();
            let giver = thread::spawn(move || answer.give(Ok(5)));
            assert_eq!(shuttle::future::block_on(ticket).expect("given"), 5);
            giver.join().expect("it ends");
        };
        check_random(run, ORDERS);
    }
}
