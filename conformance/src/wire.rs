//! A disk of the simulator behind the NBD protocol: both ends are core's state machines, and the stream between them is
//! simulated, down to the byte after which it breaks.
//!
//! ```text
//!   suite ─▶ Engine (raw on an export) ─▶ client::Transmission ═ stream ═ server::Transmission ─▶ Sim ─▶ disks
//! ```
//!
//! A stream that is cut is followed by a new one at once, on which everything is asked for again that was not answered.
//! What the server had begun is done by then, though nobody hears of it: the protocol cannot hold back what an old
//! connection still does. Start at [`WireRunner`].

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::rc::Rc;

use drystone_core::buf::{Buf, BufList};
use drystone_core::engine::{Engine, Io, Op, Reply, Request};
use drystone_core::error::Result as CoreResult;
use drystone_core::graph::NodeId;
use drystone_core::graph::open::{NodeSpec, open};
use drystone_core::intent::{Action, Fua, Intent, LeafId, Location, Outcome, Token};
use drystone_core::protocol::nbd::client::{self, Encryption, Purpose, Wishes};
use drystone_core::protocol::nbd::server::{self, Answer, Command, Export, OrderId, Security};
use drystone_core::protocol::nbd::{Mode, NbdAddress, NbdLocation, Outgoing};

use crate::cases::WRITABLE;
use crate::scenario::{Ask, RunError, Runner};
use crate::sim::{FIRST, Sim, Stopped};
use crate::world::World;

/// The tag of the client's own jobs.
const JOB_TAG: u64 = u64::MAX;

/// The one leaf of the client's engine.
const LEAF: LeafId = LeafId(0);

/// Turns without anything that moves, after which somebody is said to wait for ever.
const IDLE_MAX: u32 = 4;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Towards {
    /// From the client.
    Server,
    /// From the server.
    Client,
}

/// An image of so many bytes as its clients see it.
pub(crate) fn export(len: u64) -> Export {
    Export::new("", len)
}

/// How a stream delivers.
#[derive(Clone, Copy, Debug)]
pub struct Delivery {
    /// How the machines agree that replies look, at the best.
    pub mode: Mode,
    /// Bytes that come in one piece at the most.
    pub piece: usize,
    /// The first connection ends once so many bytes went that way.
    pub cut: Option<(Towards, u64)>,
}

/// An image of the simulator that is used through the protocol.
pub struct WireRunner {
    sim: Sim,
    engine: Engine,
    root: Option<NodeId>,
    delivery: Delivery,
    /// Bytes that went each way, towards the server first.
    moved: [u64; 2],
    client: Client,
    /// Orders that wait for a connection.
    waiting: VecDeque<client::Order>,
    server: Server,
    replies: VecDeque<Reply>,
}

/// The client's side of a connection.
enum Client {
    /// Nobody wants one.
    Away,
    Negotiating {
        negotiation: Box<client::Negotiation>,
        opens: Option<Token>,
    },
    Up(Box<client::Transmission>),
}

/// The server's side, with the image behind it.
struct Server {
    /// The image, once it is open.
    node: Option<NodeId>,
    exports: Rc<[Export]>,
    phase: Phase,
    unread: Vec<u8>,
    /// Orders that the simulator carries out, by the tags of its requests.
    begun: BTreeMap<u64, OrderId>,
    next_tag: u64,
}

enum Phase {
    Negotiating(Box<server::Negotiation>),
    Serving(Box<server::Transmission>),
}

impl Phase {
    /// The beginning, with a client who may have these.
    fn to(exports: &Rc<[Export]>) -> Self {
        Self::Negotiating(Box::new(server::Negotiation::new(Rc::clone(exports), Security::Plain)))
    }
}

impl WireRunner {
    /// Returns a runner that has nothing open; `sim` is the machine of the server.
    pub fn new(sim: Sim, delivery: Delivery) -> Self {
        let nothing: Rc<[Export]> = Rc::new([]);
        let server = Server {
            node: None,
            phase: Phase::to(&nothing),
            exports: nothing,
            unread: Vec::new(),
            begun: BTreeMap::new(),
            next_tag: 0,
        };
        Self {
            sim,
            engine: Engine::new(),
            root: None,
            delivery,
            moved: [0; 2],
            client: Client::Away,
            waiting: VecDeque::new(),
            server,
            replies: VecDeque::new(),
        }
    }

    /// Bytes that went to the server, and to the client.
    pub fn moved(&self) -> [u64; 2] {
        self.moved
    }

    /// Intents that the server's machine answered.
    pub fn answered(&self) -> u64 {
        self.sim.answered()
    }

    /// What the server's machine holds in the end.
    pub fn into_world(self) -> World {
        self.sim.into_world()
    }

    /// Runs a coroutine of the client's engine to its end.
    fn run<T: 'static, F: Future<Output = T> + 'static>(
        &mut self,
        coroutine: impl FnOnce(Io) -> F,
    ) -> Result<T, Stopped> {
        let job = self.engine.run(JOB_TAG, coroutine);
        loop {
            if let Some(value) = job.take() {
                return Ok(value);
            }
            self.turn()?;
        }
    }

    /// Moves everything once.
    fn turn(&mut self) -> Result<(), Stopped> {
        for _ in 0..IDLE_MAX {
            let mut any = false;
            while let Some(intent) = self.engine.next_intent() {
                any = true;
                self.begin(intent);
            }
            any |= self.deliver_to_server();
            any |= self.carry_out()?;
            any |= self.deliver_to_client();
            any |= self.hear();
            if any {
                return Ok(());
            }
        }
        panic!("client and server wait for each other");
    }

    /// Takes an intent of the client's engine.
    fn begin(&mut self, Intent { token, action, .. }: Intent) {
        let outcome = match action {
            Action::Open { location: Location::Nbd(_), .. } => return self.connect(Some(token)),
            Action::Lock { .. } => Outcome::Locked(Ok(())),
            Action::Close { .. } => {
                if let Client::Up(transmission) = &mut self.client {
                    transmission.disconnect();
                }
                Outcome::Done(Ok(()))
            }
            action => match client::Order::of(token, action) {
                Ok((_, order)) => {
                    match &mut self.client {
                        Client::Up(transmission) => transmission.submit(order),
                        _ => self.waiting.push_back(order),
                    }
                    return;
                }
                Err(action) => panic!("{action:?} is not for an export"),
            },
        };
        self.engine.complete(token, outcome);
    }

    fn connect(&mut self, opens: Option<Token>) {
        let wishes = Wishes {
            export: String::new(),
            purpose: Purpose::Use,
            encryption: Encryption::Off,
            mode: self.delivery.mode,
            context: Some("base:allocation".into()),
        };
        self.server.accept();
        let negotiation = Box::new(client::Negotiation::new(wishes));
        self.client = Client::Negotiating { negotiation, opens };
    }

    /// How many of `count` bytes may go that way before the connection ends.
    fn allowed(&mut self, towards: Towards, count: usize) -> usize {
        let moved = &mut self.moved[towards as usize];
        let left = match self.delivery.cut {
            Some((way, after)) if way == towards => after - *moved,
            _ => u64::MAX,
        };
        let count = count.min(usize::try_from(left).unwrap_or(usize::MAX));
        *moved += count as u64;
        count
    }

    /// Whether the connection ends here; then there is a new one.
    fn is_cut(&mut self) -> Result<bool, Stopped> {
        let at_its_end = |(way, after): (Towards, u64)| self.moved[way as usize] == after;
        if matches!(self.client, Client::Away) || !self.delivery.cut.is_some_and(at_its_end) {
            return Ok(false);
        }
        self.delivery.cut = None;
        self.hear();
        self.sim.run_until_idle()?;
        while self.sim.next_reply().is_some() {}
        match std::mem::replace(&mut self.client, Client::Away) {
            Client::Away => {}
            Client::Negotiating { opens, .. } => self.connect(opens),
            Client::Up(mut transmission) => {
                self.waiting.extend(transmission.take_orders());
                self.connect(None);
            }
        }
        Ok(true)
    }

    /// Takes bytes to the server. Tells whether any went.
    fn deliver_to_server(&mut self) -> bool {
        let out = match &mut self.client {
            Client::Away => return false,
            Client::Negotiating { negotiation, .. } => {
                negotiation.out().slices().flatten().copied().collect()
            }
            Client::Up(transmission) => transmission.out().slices().flatten().copied().collect::<Vec<u8>>(),
        };
        let count = self.allowed(Towards::Server, out.len());
        match &mut self.client {
            Client::Away => {}
            Client::Negotiating { negotiation, .. } => negotiation.out().advance(count, |_, _| {}),
            Client::Up(transmission) => transmission.sent(count),
        }
        // What came before there was room for it.
        self.server.feed(&[], &mut self.sim);
        out[..count].chunks(self.delivery.piece).for_each(|piece| self.server.feed(piece, &mut self.sim));
        count > 0
    }

    /// Has the simulator do a step, and the server answer what came of its requests.
    fn carry_out(&mut self) -> Result<bool, Stopped> {
        if self.is_cut()? {
            return Ok(true);
        }
        if self.sim.is_stopped() {
            return Err(Stopped);
        }
        let mut any = self.sim.step();
        while let Some((_, Reply { tag, data, result })) = self.sim.next_reply() {
            any = true;
            self.server.answer(tag, data, result);
        }
        Ok(any)
    }

    /// Takes bytes to the client. Tells whether any went.
    fn deliver_to_client(&mut self) -> bool {
        if let Client::Away = self.client {
            return false;
        }
        let out = self.server.out();
        let count = self.allowed(Towards::Client, out.len());
        self.server.sent(count);
        for piece in out[..count].chunks(self.delivery.piece) {
            let mut input = piece;
            if let Client::Negotiating { negotiation, opens } = &mut self.client
                && let Some(step) = negotiation.feed(&mut input).expect("the server keeps to the rules")
            {
                let client::Step::Use(negotiated) = step else { unreachable!("nothing else was asked for") };
                if let Some(token) = opens.take() {
                    self.engine.complete(token, Outcome::Opened(Ok(negotiated.leaf_info(LEAF))));
                }
                let mut transmission = Box::new(client::Transmission::new(negotiated));
                self.waiting.drain(..).for_each(|order| transmission.submit(order));
                self.client = Client::Up(transmission);
            }
            if let Client::Up(transmission) = &mut self.client {
                transmission.feed(&mut input).expect("the server keeps to the rules");
            }
            assert!(input.is_empty(), "nothing comes before it was asked for");
        }
        count > 0
    }

    /// Tells the client's engine what came of its orders. Tells whether there was anything.
    fn hear(&mut self) -> bool {
        let mut any = false;
        if let Client::Up(transmission) = &mut self.client {
            while let Some(ended) = transmission.next_ended() {
                any = true;
                self.engine.complete(Token(ended.order.tag), ended.outcome());
            }
        }
        while let Some(reply) = self.engine.next_reply() {
            any = true;
            if reply.tag != JOB_TAG {
                self.replies.push_back(reply);
            }
        }
        any
    }
}

impl Server {
    /// Begins anew, with another client.
    fn accept(&mut self) {
        self.begun.clear();
        self.unread.clear();
        self.phase = Phase::to(&self.exports);
    }

    fn feed(&mut self, bytes: &[u8], sim: &mut Sim) {
        let mut all = std::mem::take(&mut self.unread);
        all.extend_from_slice(bytes);
        let mut input = &all[..];
        loop {
            match &mut self.phase {
                Phase::Negotiating(negotiation) => {
                    match negotiation.feed(&mut input).expect("the client keeps to the rules") {
                        None => break,
                        Some(server::Step::Chosen(chosen)) => {
                            let out = std::mem::take(negotiation.out());
                            let next = server::Transmission::new(&self.exports[chosen.export], chosen, out);
                            self.phase = Phase::Serving(Box::new(next));
                        }
                        Some(other) => unreachable!("nobody asks for {other:?}"),
                    }
                }
                Phase::Serving(transmission) => {
                    let order = transmission.feed(&mut input, |len| Buf::zeroed(len).into());
                    match order.expect("the client keeps to the rules") {
                        None => break,
                        Some(order) => self.begin(order, sim),
                    }
                }
            }
        }
        self.unread = input.to_vec();
    }

    fn begin(&mut self, order: server::Order, sim: &mut Sim) {
        let server::Order { id, command, offset, len, data } = order;
        let (op, data) = match command {
            Command::Read => (Op::Read, Buf::zeroed(len as usize).into()),
            Command::Write(fua) => (Op::Write(fua), data),
            Command::Flush => (Op::Flush, data),
            Command::Trim(Fua::No) => (Op::Discard, data),
            Command::WriteZeroes(flags, fua) => (Op::WriteZeroes(flags, fua), data),
            other => unreachable!("a leaf does not ask for {other:?} of a guest's requests"),
        };
        let tag = self.next_tag;
        self.next_tag += 1;
        self.begun.insert(tag, id);
        let node = self.node.expect("who has an export has its image open");
        sim.submit(FIRST, Request { node, op, offset, len, data, tag });
    }

    fn answer(&mut self, tag: u64, data: BufList, result: CoreResult<()>) {
        let id = self.begun.remove(&tag).expect("the simulator answers what it was asked");
        let Phase::Serving(transmission) = &mut self.phase else {
            unreachable!("requests of an earlier connection have ended before there is a new one")
        };
        let answer = match result {
            Ok(()) if transmission.reads(id) => Answer::Data(data),
            Ok(()) => Answer::Done,
            Err(error) => Answer::Failed(error.errno(), error.to_string()),
        };
        transmission.answer(id, answer);
    }

    fn out(&mut self) -> Vec<u8> {
        let out: &Outgoing = match &mut self.phase {
            Phase::Negotiating(negotiation) => negotiation.out(),
            Phase::Serving(transmission) => transmission.out(),
        };
        out.slices().flatten().copied().collect()
    }

    fn sent(&mut self, count: usize) {
        match &mut self.phase {
            Phase::Negotiating(negotiation) => negotiation.out().advance(count, |_, _| {}),
            Phase::Serving(transmission) => transmission.sent(count, drop),
        }
    }
}

impl Runner for WireRunner {
    fn open(&mut self, spec: &NodeSpec) -> Result<(), RunError> {
        let spec = spec.clone();
        let node = self.sim.run_job(|io| async move { open(&io, &spec).await })??;
        let export = export(self.sim.engine(FIRST).len(node));
        (self.server.node, self.server.exports) = (Some(node), Rc::new([export]));
        let location = NbdLocation::new(NbdAddress::Unix { path: "simulated".into() }, "");
        let spec = NodeSpec::raw(NodeSpec::leaf(Location::Nbd(Box::new(location)), WRITABLE));
        self.root = Some(self.run(|io| async move { open(&io, &spec).await })??);
        Ok(())
    }

    fn size(&mut self) -> u64 {
        self.engine.len(self.root.expect("the suite opens an image before it uses one"))
    }

    fn submit(&mut self, batch: Vec<Ask>) {
        let node = self.root.expect("the suite opens an image before it uses one");
        for Ask { op, offset, len, data, tag } in batch {
            self.engine.submit(Request { node, op, offset, len, data, tag });
        }
    }

    fn wait(&mut self) -> Result<Reply, Stopped> {
        loop {
            self.hear();
            if let Some(reply) = self.replies.pop_front() {
                return Ok(reply);
            }
            self.turn()?;
        }
    }

    fn close(&mut self) -> Result<(), RunError> {
        let (root, node) = self.root.take().zip(self.server.node).expect("the suite closes an image once");
        self.run(move |io| async move { io.close(root).await })??;
        self.deliver_to_server();
        Ok(self.sim.run_job(move |io| async move { io.close(node).await })??)
    }
}
