//! NVMe namespaces as leaves: a queue pair for each device that an engine uses, on the engine's thread.
//!
//! Opening a device takes milliseconds and happens on a thread of the pool; the queue pair is made when the leaf gets its
//! number. While anything is in flight, the thread of the engine looks for completions and does not sleep; or it sleeps
//! after a while, until the device's interrupt rings the engine's bell.

use std::cell::RefCell;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use drystone_core::buf::{Buf, BufList};
use drystone_core::engine::Lone;
use drystone_core::intent::{
    Action, Errno, Fua, LeafId, LeafInfo, LeafKind, LockRefused, Outcome, Permissions, Token,
};
use drystone_drivers::nvme::layout::Namespace;
use drystone_drivers::nvme::{
    self, Answer, Arena, Completions, Device, NvmeError, Operation, Options, QueuePair, Request,
};

use crate::config::Polling;
use crate::doorbell::Doorbell;

/// Looks for completions between two looks at everything else that a queue pair may need.
const LOOKS: u32 = 256;

/// Looks in vain after which it is worth to sleep: some tens of microseconds, what a fast device takes for a request.
const PATIENCE: u32 = 2000;

/// How often a sleeping engine is woken to see what takes too long.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// Why a device does not open.
pub(crate) type Refused = (Errno, Box<str>);

/// A namespace that is open.
pub(crate) struct OpenNamespace {
    device: Arc<Device>,
    namespace: Namespace,
    /// Names this leaf among all that use the device.
    holder: u64,
}

impl std::fmt::Debug for OpenNamespace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OpenNamespace({}, {})", self.device.name(), self.namespace.id)
    }
}

impl OpenNamespace {
    /// Opens a namespace of the controller of that name; brings the controller up, unless this process has.
    pub(crate) fn open(device: &str, namespace: u32, polling: Polling) -> Result<(Self, LeafInfo), Refused> {
        static HOLDERS: AtomicU64 = AtomicU64::new(0);
        let refused = |error: NvmeError| (error.errno(), error.to_string().into());
        let completions = match polling {
            Polling::Always => Completions::Polled,
            Polling::Adaptive => Completions::Adaptive,
            Polling::Never => Completions::Interrupt,
        };
        let device = nvme::open(device, Options { completions, ..Options::default() }).map_err(refused)?;
        let namespace = device.namespace(namespace).map_err(refused)?;
        let info = LeafInfo {
            leaf: LeafId(u32::MAX),
            len: namespace.len_bytes(),
            request_align: namespace.block(),
            // Whatever the device does not take is copied once, here.
            memory_align: 1,
            preferred_size: namespace.preferred,
            transfer_max: u32::try_from(device.transfer_max()).unwrap_or(0),
            kind: LeafKind::Namespace,
            grows_as_zeroes: false,
            // A controller may leave blocks as they are.
            discard_zeroes: false,
            fast_zeroes: device.identity().write_zeroes,
        };
        let holder = HOLDERS.fetch_add(1, Ordering::Relaxed);
        Ok((Self { device, namespace, holder }, info))
    }

    pub(crate) fn len(&self) -> u64 {
        self.namespace.len_bytes()
    }

    pub(crate) fn lock(&self, holds: Permissions, shares: Permissions) -> Result<(), LockRefused> {
        self.device.claim(self.namespace.id, self.holder, holds, shares)
    }
}

impl Drop for OpenNamespace {
    fn drop(&mut self) {
        let released = self.lock(Permissions::NONE, Permissions::ALL);
        debug_assert!(released.is_ok(), "who holds nothing is in nobody's way");
    }
}

/// The queue pairs of one engine.
pub(crate) struct Lanes {
    lanes: Vec<Lane>,
    bell: Arc<Doorbell>,
    /// Wakes the engine from time to time, once there is a lane that it does not always look at.
    watch: Option<Watch>,
    /// Which lane and namespace a leaf is, at the place of its number.
    leaves: Vec<Option<Place>>,
    /// The memory that each leaf's device reaches, for who makes buffers.
    arenas: Arenas,
    /// What the request in flight as [`LONE`] goes on as, once nobody looks for it alone any more.
    lone: Option<Token>,
}

/// The token of a request that went past intents, as long as nobody else looks for it. There is one of them at a time.
pub(crate) const LONE: Token = Token(u64::MAX);

/// Where requests to a leaf go.
#[derive(Clone, Copy)]
struct Place {
    lane: usize,
    namespace: Namespace,
    /// It went, or was formatted anew: its blocks are not what the engine knows.
    lost: bool,
}

/// Memory of devices, at the places of their leaves.
type Arenas = Rc<RefCell<Vec<Option<Arc<Arena>>>>>;

struct Lane {
    pair: QueuePair,
    device: Arc<Device>,
    leaves: usize,
    looks: u32,
    /// The device's, when its namespaces were last looked at.
    namespaces_version: u32,
    /// Looks in a row that found nothing, before which it is not worth to sleep; nothing where an interrupt never comes.
    patience: Option<u32>,
    in_vain: u32,
}

impl Lanes {
    /// There are none yet; `bell` wakes the engine's thread.
    pub(crate) fn new(bell: Arc<Doorbell>) -> Self {
        let (lanes, leaves) = (Vec::new(), Vec::new());
        Self { lanes, bell, watch: None, leaves, arenas: Arenas::default(), lone: None }
    }

    /// Whether any leaf is a namespace.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// Whether there are leaves that are namespaces, and no interrupt tells of any of them.
    #[inline]
    pub(crate) fn are_only_polled(&self) -> bool {
        !self.is_empty() && self.lanes.iter().all(|lane| lane.patience.is_none())
    }

    /// Takes a leaf that has its number.
    pub(crate) fn admit(&mut self, leaf: LeafId, open: &OpenNamespace) -> Result<(), Refused> {
        let same = |lane: &Lane| Arc::ptr_eq(&lane.device, &open.device);
        let index = match self.lanes.iter().position(same) {
            Some(index) => index,
            None => {
                let lane = self.lane(&open.device);
                self.lanes.push(lane.map_err(|error| (error.errno(), error.to_string().into()))?);
                self.lanes.len() - 1
            }
        };
        self.lanes[index].leaves += 1;
        let place = leaf.0 as usize;
        if self.leaves.len() <= place {
            self.leaves.resize(place + 1, None);
        }
        self.leaves[place] = Some(Place { lane: index, namespace: open.namespace, lost: false });
        let mut arenas = self.arenas.borrow_mut();
        if arenas.len() <= place {
            arenas.resize(place + 1, None);
        }
        arenas[place] = Some(Arc::clone(open.device.arena()));
        Ok(())
    }

    fn lane(&mut self, device: &Arc<Device>) -> Result<Lane, NvmeError> {
        let pair = QueuePair::new(device)?;
        let signals = pair.bind_interrupt(self.bell.as_fd())?;
        let patience = match device.options().completions {
            _ if !signals => None,
            Completions::Polled => None,
            Completions::Adaptive => Some(PATIENCE),
            Completions::Interrupt => Some(0),
        };
        if patience.is_some() && self.watch.is_none() {
            self.watch = Some(Watch::new(Arc::clone(&self.bell)));
        }
        let namespaces_version = device.namespaces_version();
        let device = Arc::clone(device);
        Ok(Lane { pair, device, leaves: 0, looks: 0, namespaces_version, patience, in_vain: 0 })
    }

    /// Forgets a leaf that closes; the queue pair goes with the last one.
    pub(crate) fn close(&mut self, leaf: LeafId) {
        let place = self.leaves.get_mut(leaf.0 as usize).and_then(Option::take);
        let Some(Place { lane: index, .. }) = place else { return };
        self.arenas.borrow_mut()[leaf.0 as usize] = None;
        let lane = &mut self.lanes[index];
        lane.leaves -= 1;
        if lane.leaves > 0 {
            return;
        }
        self.lanes.swap_remove(index);
        let moved = self.lanes.len();
        for place in self.leaves.iter_mut().flatten() {
            if place.lane == moved {
                place.lane = index;
            }
        }
    }

    /// Whether the leaf is a namespace.
    #[inline]
    pub(crate) fn has(&self, leaf: LeafId) -> bool {
        matches!(self.leaves.get(leaf.0 as usize), Some(Some(_)))
    }

    /// Submits an action on a namespace; gives back what a queue pair does not do, and the answer to what needs none.
    #[inline]
    pub(crate) fn push(&mut self, token: Token, action: Action) -> Pushed {
        let (leaf, op, offset, len, data) = match action {
            Action::Read { leaf, offset, data } => {
                (leaf, Operation::Read, offset, data.len_bytes() as u64, data)
            }
            Action::Write { leaf, offset, data, fua } => {
                let op = Operation::Write { fua: fua == Fua::Yes };
                (leaf, op, offset, data.len_bytes() as u64, data)
            }
            Action::Flush { leaf } => (leaf, Operation::Flush, 0, 0, BufList::new()),
            Action::Discard { leaf, offset, len } => {
                (leaf, Operation::Deallocate, offset, len, BufList::new())
            }
            Action::WriteZeroes { leaf, offset, len, flags } => {
                (leaf, Operation::WriteZeroes { deallocate: flags.may_unmap }, offset, len, BufList::new())
            }
            other => return Pushed::Back(other),
        };
        let Some(Some(Place { lane, namespace, lost })) = self.leaves.get(leaf.0 as usize) else {
            unreachable!("the caller has asked whether the leaf is a namespace")
        };
        if *lost {
            return Pushed::Done(match op {
                Operation::Read | Operation::Write { .. } => {
                    Outcome::Moved { data, result: Err(Errno::ENXIO) }
                }
                _ => Outcome::Done(Err(Errno::ENXIO)),
            });
        }
        let (mut offset, mut len) = (offset, len);
        if op == Operation::Deallocate {
            // Whole blocks of it: a discard is a hint.
            let block = u64::from(namespace.block());
            let end = (offset.saturating_add(len)) / block * block;
            offset = offset.next_multiple_of(block);
            if offset >= end {
                return Pushed::Done(Outcome::Done(Ok(())));
            }
            len = end - offset;
        }
        let lane = &mut self.lanes[*lane];
        lane.in_vain = 0;
        lane.pair.submit(namespace, Request { tag: token.0, op, offset, len, data });
        Pushed::InFlight
    }

    /// Begins a read or write past intents, at once; tells the number of the queue pair. The buffers stay where they are if the leaf is
    /// no namespace.
    #[inline(always)]
    pub(crate) fn begin_lone(&mut self, lone: &Lone, data: &mut BufList) -> Option<usize> {
        let Some(Some(Place { lane, namespace, lost: false })) = self.leaves.get(lone.leaf().0 as usize)
        else {
            return None;
        };
        let Lane { pair, .. } = self.lanes.get_mut(*lane)?;
        debug_assert!(self.lone.is_none(), "the one before has been answered");
        let op = if lone.writes() { Operation::Write { fua: false } } else { Operation::Read };
        let (offset, len, data) = (lone.offset(), lone.len_bytes(), std::mem::take(data));
        pair.submit(namespace, Request { tag: LONE.0, op, offset, len, data });
        pair.ring();
        Some(*lane)
    }

    /// The buffers of the lone request on that queue pair, once all of it was moved, and it is next. Else [`reap`](Self::reap)
    /// may have more to say.
    #[inline(always)]
    pub(crate) fn take_lone(&mut self, lane: usize) -> Option<BufList> {
        self.lanes.get_mut(lane)?.pair.take(LONE.0)
    }

    /// Has the lone request go on as any other, whose answer goes to `token`.
    pub(crate) fn lone_goes_on(&mut self, token: Token) {
        self.lone = Some(token);
    }

    /// Whether every queue pair takes another request.
    #[inline]
    pub(crate) fn has_room(&self) -> bool {
        self.pairs().all(QueuePair::has_room)
    }

    /// Whether somebody has to look for completions at once: nobody will tell of them, or it will not be long.
    #[inline]
    pub(crate) fn must_poll(&self) -> bool {
        let must = |lane: &Lane| {
            let soon = lane.patience.is_none_or(|patience| lane.in_vain < patience);
            !lane.pair.is_idle() && (soon || !lane.pair.is_running())
        };
        self.lanes.iter().any(must)
    }

    /// Whether nothing is in flight.
    #[inline]
    pub(crate) fn is_idle(&self) -> bool {
        self.pairs().all(QueuePair::is_idle)
    }

    fn pairs(&self) -> impl Iterator<Item = &QueuePair> {
        self.lanes.iter().map(|lane| &lane.pair)
    }

    /// Tells the controllers what was submitted.
    #[inline]
    pub(crate) fn ring(&mut self) {
        self.lanes.iter_mut().for_each(|lane| lane.pair.ring());
    }

    /// Hands over what came of earlier actions. Does not wait. Tells whether there was anything.
    #[inline]
    pub(crate) fn reap(&mut self, done: &mut impl FnMut(Token, Outcome)) -> bool {
        let (mut any, mut changed) = (false, false);
        for lane in &mut self.lanes {
            let pair = &mut lane.pair;
            let lone = &mut self.lone;
            let found = pair.poll(|answer| answered(answer, lone, done));
            lane.in_vain = if found { 0 } else { lane.in_vain.saturating_add(1) };
            any |= found;
            lane.looks += 1;
            // Who sleeps between two looks does not look often.
            if lane.looks >= LOOKS || lane.patience.is_some() || !pair.is_running() {
                lane.looks = 0;
                pair.tick(|answer| {
                    any = true;
                    answered(answer, lone, done);
                });
                changed |= lane.device.namespaces_version() != lane.namespaces_version;
            }
        }
        if changed {
            self.look_again();
        }
        any
    }

    /// Looks at namespaces that may have changed: one that grew or shrank is used as it is, any other no more.
    #[cold]
    fn look_again(&mut self) {
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            lane.namespaces_version = lane.device.namespaces_version();
            for place in self.leaves.iter_mut().flatten().filter(|place| place.lane == index) {
                let found = lane.device.namespace(place.namespace.id);
                let same = found.ok().filter(|found| found.block_bits == place.namespace.block_bits);
                place.lost = same.is_none();
                place.namespace = same.unwrap_or(place.namespace);
            }
        }
    }

    /// Lets the least time pass, after nothing was found.
    #[inline]
    pub(crate) fn relax(&self) {
        self.pairs().for_each(QueuePair::relax);
    }

    /// Where memory comes from that the devices behind leaves reach.
    pub(crate) fn supply(&self) -> impl Fn(LeafId, usize) -> Option<Buf> + use<> {
        let arenas = Rc::clone(&self.arenas);
        move |leaf, len| arenas.borrow().get(leaf.0 as usize)?.as_ref()?.buffer(len)
    }

    /// Memory that a device reaches, if there is one with room; it holds anything.
    pub(crate) fn buffer(&self, len: usize) -> Option<Buf> {
        self.lanes.iter().find_map(|lane| lane.device.arena().buffer(len))
    }
}

/// A thread that rings the bell from time to time: what takes too long is found out by looking.
struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    fn new(bell: Arc<Doorbell>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let work = move || {
            while !stopped.load(Ordering::Relaxed) {
                std::thread::park_timeout(WATCH_EVERY);
                bell.ring();
            }
        };
        let thread = std::thread::Builder::new().name("nvme-watch".into()).spawn(work);
        Self { stop, thread: Some(thread.expect("the host gives this process one more thread")) }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A thread that panicked has said so already.
            let _ = thread.join();
        }
    }
}

/// What became of an action.
pub(crate) enum Pushed {
    /// It will be answered.
    InFlight,
    /// It is answered.
    Done(Outcome),
    /// Somebody else does it.
    Back(Action),
}

/// Hands over an answer; `lone` is what the lone request goes on as.
#[inline]
fn answered(answer: Answer, lone: &mut Option<Token>, done: &mut impl FnMut(Token, Outcome)) {
    let Answer { tag, op, data, result } = answer;
    let token = if tag == LONE.0 { lone.take().unwrap_or(LONE) } else { Token(tag) };
    let outcome = match op {
        Operation::Read | Operation::Write { .. } => {
            let len = data.len_bytes();
            Outcome::Moved { data, result: result.map(|()| len).map_err(|error| error.errno()) }
        }
        _ => Outcome::Done(result.map_err(|error| error.errno())),
    };
    done(token, outcome);
}
