//! One controller: bring-up, admin commands, reset, shutdown. An explicit state machine, polled by whoever needs it.
//!
//! ```text
//!                 RDY=0           RDY=1             identified
//!   Disabling ──────────▶ Enabling ─────▶ Starting ───────────▶ Ready ──▶ ShuttingDown ──▶ Off
//!       ▲                                    │                   │
//!       └───────────── reset (a few times) ──┴───────────────────┤
//!                                                                └─ removed, or given up ──▶ Failed
//! ```
//!
//! Owns the registers and the admin queue. Refuses to know about I/O queue pairs: they see by the
//! [epoch](Controller::epoch) that queues made before are no more. Time is what the transport says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::admin::{Admin, Call};
use super::device::Options;
use super::error::NvmeError;
use super::layout::{
    Arbitration, Capabilities, Command, ControllerIdentity, ControllerStatus, IDENTIFY_LEN, Namespace, Prp,
    Shutdown, Status, active_namespaces, configuration, offset,
};
use super::memory::{DmaMemory, Registers};
use super::transport::Transport;
use super::watch::{Event, Watch};

/// Namespaces that are looked at, at the most; no controller of today has as many.
const NAMESPACES_MAX: usize = 1024;

/// Resets in a row, without the controller becoming ready, after which it is given up.
const RESETS_MAX: u32 = 3;

/// How often CSTS is read while all seems well: a register costs a round trip on the bus.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long a shutdown may take, where CAP.TO is shorter.
const SHUTDOWN_MIN: Duration = Duration::from_secs(5);

/// Which asynchronous events are asked for: all critical warnings, and changes of namespaces where they are offered.
const EVENTS_WANTED: u32 = 1 << 8;
const WARNINGS_WANTED: u32 = 0x1f;

/// Where a controller is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// CC.EN was cleared.
    Disabling { until: Duration },
    /// CC.EN was set.
    Enabling { until: Duration },
    /// One admin command after the other.
    Starting { step: Step, call: Call },
    /// Queue pairs may be made.
    Ready,
    /// CC.SHN was set.
    ShuttingDown { until: Duration },
    /// It was shut down.
    Off,
    /// It is of no use any more.
    Failed(NvmeError),
}

/// What is asked of a controller that was just enabled, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Identify,
    Queues,
    Arbitration,
    WriteCache,
    AsyncEvents,
    Shadow,
    Active { after: u32 },
    Namespace { index: usize },
}

/// A controller, behind a lock that is not taken while all goes well.
pub(super) struct Controller {
    transport: Arc<dyn Transport>,
    registers: Registers,
    capabilities: Capabilities,
    pub(super) admin: Admin,
    /// Where Identify and log pages go: a page each.
    identify_page: DmaMemory,
    pub(super) log_page: DmaMemory,
    /// Shadow doorbells and event indices, once the controller has taken them.
    shadow: Option<[DmaMemory; 2]>,
    shadow_wanted: bool,
    arbitration: Option<Arbitration>,
    state: State,
    /// Shared with the queue pairs, which look at it without the lock.
    epoch: Arc<AtomicU32>,
    identity: Option<ControllerIdentity>,
    queues_wanted: u16,
    queues_granted: u16,
    active: Vec<u32>,
    pub(super) namespaces: BTreeMap<u32, Result<Namespace, NvmeError>>,
    /// Changes when namespaces do, beneath who uses them.
    pub(super) namespaces_version: Arc<AtomicU32>,
    pub(super) watch: Watch,
    /// Resets since it was last ready; and all of them.
    resets_in_a_row: u32,
    resets: u32,
    /// The last error that made it be reset.
    trouble: Option<NvmeError>,
    looked: Duration,
    /// It does no DMA any more, for sure.
    isolated: bool,
}

impl Controller {
    /// Begins to bring a controller up.
    pub(super) fn new(transport: Arc<dyn Transport>, options: &Options) -> Result<Self, NvmeError> {
        let registers = transport.registers();
        if registers.len() < offset::DOORBELLS + 8 {
            return Err(NvmeError::NoDoorbell { queue: 0, len: registers.len() });
        }
        let capabilities = Capabilities::parse(registers.read64(offset::CAP))?;
        let (page, stride) = (capabilities.page, capabilities.doorbell_stride);
        if registers.len() < offset::DOORBELLS + 2 * stride {
            return Err(NvmeError::NoDoorbell { queue: 0, len: registers.len() });
        }
        let queues_len = Admin::memory_len(page);
        let memory = transport.allocate(queues_len + 2 * page)?;
        let mut this = Self {
            admin: Admin::new(memory.part(0, queues_len), &registers, stride),
            identify_page: memory.part(queues_len, page),
            log_page: memory.part(queues_len + page, page),
            transport,
            registers,
            capabilities,
            shadow: None,
            shadow_wanted: options.shadow_doorbells,
            arbitration: options.arbitration,
            state: State::Off,
            epoch: Arc::default(),
            identity: None,
            queues_wanted: options.queue_pairs.max(1),
            queues_granted: 0,
            active: Vec::new(),
            namespaces: BTreeMap::new(),
            namespaces_version: Arc::default(),
            watch: Watch::default(),
            resets_in_a_row: 0,
            resets: 0,
            trouble: None,
            looked: Duration::ZERO,
            isolated: false,
        };
        this.disable();
        Ok(this)
    }

    /// Changes whenever all I/O queues are gone; never 0 from then on.
    pub(super) fn epoch(&self) -> Arc<AtomicU32> {
        Arc::clone(&self.epoch)
    }

    pub(super) fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    pub(super) fn identity(&self) -> Option<&ControllerIdentity> {
        self.identity.as_ref()
    }

    pub(super) fn queues_granted(&self) -> u16 {
        self.queues_granted
    }

    /// Shadow doorbells and event indices, where they are in use.
    pub(super) fn shadow(&self) -> Option<&[DmaMemory; 2]> {
        self.shadow.as_ref().filter(|_| self.identity.as_ref().is_some_and(|id| id.doorbell_buffer))
    }

    pub(super) fn namespaces(&self) -> &BTreeMap<u32, Result<Namespace, NvmeError>> {
        &self.namespaces
    }

    pub(super) fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    pub(super) fn is_off(&self) -> bool {
        self.state == State::Off
    }

    /// Why the controller is of no use any more, if it is not.
    pub(super) fn failure(&self) -> Option<&NvmeError> {
        match &self.state {
            State::Failed(error) => Some(error),
            _ => None,
        }
    }

    /// Whether a controller that failed surely does no DMA any more.
    pub(super) fn is_isolated(&self) -> bool {
        self.isolated
    }

    /// Whether queue pairs have priorities.
    pub(super) fn is_weighted(&self) -> bool {
        self.capabilities.weighted_round_robin && self.arbitration.is_some()
    }

    /// How often the controller was reset, and why the last time.
    pub(super) fn resets(&self) -> (u32, Option<&NvmeError>) {
        (self.resets, self.trouble.as_ref())
    }

    pub(super) fn next_event(&mut self) -> Option<Event> {
        self.watch.next_event()
    }

    fn timeout(&self) -> Duration {
        Duration::from_millis(self.capabilities.timeout_ms.into())
    }

    /// Begins another epoch. None is 0.
    fn next_epoch(&self) {
        let next = self.epoch.load(Ordering::Relaxed).wrapping_add(1).max(1);
        self.epoch.store(next, Ordering::Release);
    }

    /// Begins to disable the controller, whatever it is doing. All its queues are gone with that.
    fn disable(&mut self) {
        self.next_epoch();
        self.watch.reset();
        self.registers.write32(offset::CC, 0);
        self.state = State::Disabling { until: self.transport.now() + self.timeout() };
    }

    /// Begins a reset, because of `trouble`. What is in flight on queue pairs is theirs to send again.
    pub(super) fn reset(&mut self, trouble: NvmeError) {
        // Otherwise one is under way, or there is nothing left to reset.
        if self.state == State::Ready {
            self.resets_in_a_row += 1;
            self.resets += 1;
            self.trouble = Some(trouble);
            self.disable();
        }
    }

    /// Begins a clean shutdown. Source: \[NVMe\] 7.6.2.
    pub(super) fn shut_down(&mut self) {
        if self.state != State::Ready {
            return;
        }
        self.next_epoch();
        let configuration = self.registers.read32(offset::CC) & !Shutdown::MASK;
        self.registers.write32(offset::CC, configuration | Shutdown::NORMAL);
        let until = self.transport.now() + self.timeout().max(SHUTDOWN_MIN);
        self.state = State::ShuttingDown { until };
    }

    /// Gives the controller up.
    pub(super) fn fail(&mut self, error: NvmeError) {
        self.next_epoch();
        // A device that is not there does no DMA either.
        self.isolated = self.transport.isolate().is_ok() || error == NvmeError::Removed;
        self.state = State::Failed(error);
    }

    /// Goes on with whatever is under way.
    pub(super) fn poll(&mut self) {
        if let Err(error) = self.step() {
            self.recover(error);
        }
    }

    /// Tries again after an error, or gives up.
    fn recover(&mut self, error: NvmeError) {
        let deterministic =
            matches!(error, NvmeError::Removed | NvmeError::Identify { .. } | NvmeError::Register { .. });
        let started = self.resets > 0 || self.state == State::Ready;
        let ending = matches!(self.state, State::ShuttingDown { .. });
        if deterministic || ending || !started || self.resets_in_a_row >= RESETS_MAX {
            return self.fail(error);
        }
        self.resets_in_a_row += 1;
        self.resets += 1;
        self.trouble = Some(error);
        self.disable();
    }

    fn step(&mut self) -> Result<(), NvmeError> {
        let now = self.transport.now();
        match self.state.clone() {
            State::Disabling { until } => {
                if !self.status()?.is_ready() {
                    let (stride, page) = (self.capabilities.doorbell_stride, self.capabilities.page);
                    let configuration = configuration(page, self.is_weighted());
                    self.admin.enable(&self.registers, stride, configuration);
                    self.state = State::Enabling { until: now + self.timeout() };
                    return Ok(());
                }
                self.stuck_after(until, now, "become disabled (CSTS.RDY = 0)")
            }
            State::Enabling { until } => {
                let status = self.status()?;
                if status.is_fatal() {
                    return Err(NvmeError::Fatal);
                }
                if status.is_ready() {
                    return self.begin(Step::Identify);
                }
                self.stuck_after(until, now, "become ready (CSTS.RDY = 1)")
            }
            State::Starting { step, call } => {
                self.admin.reap()?;
                match self.admin.answer(call) {
                    Some(answer) => self.started(step, answer),
                    None => self.look(now),
                }
            }
            State::Ready => {
                self.admin.reap()?;
                self.watch();
                self.look(now)
            }
            State::ShuttingDown { until } => {
                if self.status()?.is_shut_down() {
                    self.state = State::Off;
                    return Ok(());
                }
                self.stuck_after(until, now, "shut down (CSTS.SHST = 2)")
            }
            State::Off | State::Failed(_) => Ok(()),
        }
    }

    fn status(&self) -> Result<ControllerStatus, NvmeError> {
        ControllerStatus::parse(self.registers.read32(offset::CSTS))
    }

    fn stuck_after(&self, until: Duration, now: Duration, what: &'static str) -> Result<(), NvmeError> {
        match now < until {
            true => Ok(()),
            false => Err(NvmeError::Stuck { what, within: self.timeout() }),
        }
    }

    /// Looks from time to time whether the controller is still there and well.
    fn look(&mut self, now: Duration) -> Result<(), NvmeError> {
        if now < self.looked + LOOK_EVERY {
            return Ok(());
        }
        self.looked = now;
        self.examine()?;
        match self.admin.overdue(now) {
            Some(what) => Err(NvmeError::Stuck { what, within: super::admin::ADMIN_TIMEOUT }),
            None => Ok(()),
        }
    }

    /// Reads CSTS.
    pub(super) fn examine(&mut self) -> Result<(), NvmeError> {
        if self.status()?.is_fatal() { Err(NvmeError::Fatal) } else { Ok(()) }
    }

    /// Sends the command of a step.
    fn begin(&mut self, step: Step) -> Result<(), NvmeError> {
        let page = Prp::page(self.identify_page.iova());
        let now = self.transport.now();
        let (what, command) = match step {
            Step::Identify => ("Identify Controller", Command::identify_controller(page)),
            Step::Queues => {
                ("Set Features, Number of Queues", Command::set_number_of_queues(self.queues_wanted))
            }
            Step::Arbitration => match self.arbitration {
                Some(arbitration) => ("Set Features, Arbitration", Command::set_arbitration(arbitration)),
                None => return self.begin(Step::WriteCache),
            },
            Step::WriteCache => match self.identity.as_ref().is_some_and(|one| one.volatile_write_cache) {
                true => ("Get Features, Volatile Write Cache", Command::get_write_cache()),
                false => return self.begin(Step::AsyncEvents),
            },
            Step::AsyncEvents => {
                let offered = self.identity.as_ref().map_or(0, |identity| identity.async_events);
                let events = offered & EVENTS_WANTED | WARNINGS_WANTED;
                ("Set Features, Asynchronous Event Configuration", Command::set_async_events(events))
            }
            Step::Shadow => match self.shadow_buffers()? {
                Some((shadow, events)) => {
                    ("Doorbell Buffer Config", Command::doorbell_buffer(shadow, events))
                }
                None => return self.begin(Step::Active { after: 0 }),
            },
            Step::Active { after } => {
                ("Identify, active namespaces", Command::active_namespaces(after, page))
            }
            Step::Namespace { index } => match self.active.get(index) {
                Some(id) => ("Identify Namespace", Command::identify_namespace(*id, page)),
                None => {
                    self.resets_in_a_row = 0;
                    // They may not be what they were before a reset.
                    self.namespaces_version.fetch_add(1, Ordering::Release);
                    self.state = State::Ready;
                    return Ok(());
                }
            },
        };
        self.identify_page.clear();
        let call = self.admin.call(what, command, now).expect("nothing else is in flight during bring-up");
        self.state = State::Starting { step, call };
        Ok(())
    }

    /// Takes the answer to the command of a step, and goes on with the next one.
    fn started(&mut self, step: Step, answer: Result<u32, NvmeError>) -> Result<(), NvmeError> {
        match step {
            Step::Identify => {
                answer?;
                let data = self.identify_page.snapshot::<IDENTIFY_LEN>();
                self.identity = Some(ControllerIdentity::parse(&data, self.capabilities.page)?);
                self.begin(Step::Queues)
            }
            Step::Queues => {
                let granted = answer?;
                // Both numbers are zero-based.
                let pairs = (granted & 0xffff).min(granted >> 16) + 1;
                let pairs = u16::try_from(pairs).unwrap_or(u16::MAX).min(self.queues_wanted);
                self.queues_granted = pairs.max(1);
                self.begin(Step::Arbitration)
            }
            Step::Arbitration => {
                answer?;
                self.begin(Step::WriteCache)
            }
            Step::WriteCache => {
                // Bit 0: the cache is on. One that will not say has it on.
                if let (Ok(feature), Some(identity)) = (answer, &mut self.identity)
                    && feature & 1 == 0
                {
                    identity.volatile_write_cache = false;
                }
                self.begin(Step::AsyncEvents)
            }
            // A controller that will not tell is no worse than one that has nothing to tell.
            Step::AsyncEvents => self.begin(Step::Shadow),
            Step::Shadow => {
                if answer.is_err() {
                    self.shadow = None;
                    self.shadow_wanted = false;
                }
                self.begin(Step::Active { after: 0 })
            }
            Step::Active { after } => self.list(after, answer),
            Step::Namespace { index } => {
                let id = self.active[index];
                let data = self.identify_page.snapshot::<IDENTIFY_LEN>();
                let namespace = answer.and_then(|_| Namespace::parse(id, &data));
                self.namespaces.insert(id, namespace);
                self.begin(Step::Namespace { index: index + 1 })
            }
        }
    }

    /// Takes a list of active namespaces. Before version 1.1 there is none: then all numbers are tried.
    fn list(&mut self, after: u32, answer: Result<u32, NvmeError>) -> Result<(), NvmeError> {
        if after == 0 {
            self.active.clear();
            self.namespaces.clear();
        }
        match answer {
            Err(NvmeError::Admin { status, .. }) if is_invalid_field(status) => {
                let max = self.identity.as_ref().map_or(0, |identity| identity.namespace_max);
                self.active = (1..=max).take(NAMESPACES_MAX).collect();
            }
            answer => {
                answer?;
                let data = self.identify_page.snapshot::<IDENTIFY_LEN>();
                let more = active_namespaces(&data, after);
                let full = more.len() == IDENTIFY_LEN / 4;
                self.active.extend(more);
                self.active.truncate(NAMESPACES_MAX);
                if full
                    && self.active.len() < NAMESPACES_MAX
                    && let Some(last) = self.active.last()
                {
                    return self.begin(Step::Active { after: *last });
                }
            }
        }
        self.begin(Step::Namespace { index: 0 })
    }

    /// Memory for shadow doorbells, where the controller takes them and they all fit a page.
    fn shadow_buffers(&mut self) -> Result<Option<(u64, u64)>, NvmeError> {
        let offered = self.identity.as_ref().is_some_and(|identity| identity.doorbell_buffer);
        let page = self.capabilities.page;
        let needed = 2 * (usize::from(self.queues_granted) + 1) * self.capabilities.doorbell_stride;
        if !offered || !self.shadow_wanted || needed > page {
            return Ok(None);
        }
        if self.shadow.is_none() {
            let memory = self.transport.allocate(2 * page)?;
            self.shadow = Some([memory.part(0, page), memory.part(page, page)]);
        }
        let buffers = self.shadow.as_ref().map(|[shadow, events]| {
            shadow.clear();
            events.clear();
            (shadow.iova(), events.iova())
        });
        Ok(buffers)
    }

    /// Sends an admin command of a queue pair; nothing while the controller is not ready for one.
    pub(super) fn call(&mut self, what: &'static str, command: Command) -> Option<Call> {
        if !self.is_ready() {
            return None;
        }
        self.admin.call(what, command, self.transport.now())
    }

    /// Asks for a command to be aborted. Its own completion tells what came of that.
    pub(super) fn abort(&mut self, queue: u16, cid: u16) -> bool {
        self.is_ready() && self.admin.tell("Abort", Command::abort(queue, cid), self.transport.now())
    }

    /// Takes the answer to an admin command, if it has come.
    pub(super) fn answer(&mut self, call: Call) -> Option<Result<u32, NvmeError>> {
        self.admin.answer(call)
    }
}

fn is_invalid_field(status: Status) -> bool {
    status.0 & 0x7ff == Status::INVALID_FIELD.0
}
