//! What connects the simulated controller: registers, memory by device addresses, time, and who makes it move.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::SimConfig;
use super::controller::SimController;
use crate::nvme::error::NvmeError;
use crate::nvme::layout::doorbells;
use crate::nvme::memory::{DmaMemory, Registers};
use crate::nvme::transport::Transport;

const PAGE: usize = 4096;

/// The first device address; far from what addresses of ours or small numbers look like.
const IOVA_FIRST: u64 = 0x7_0000_0000;

/// Virtual time that passes with each pause.
const PAUSE: Duration = Duration::from_micros(10);

/// Steps without anything to do after which the controller's thread lets others run.
const IDLE_STEPS: u32 = 64;

/// Pages of the heap.
pub(super) struct Pages {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the memory is only touched as `Registers` and `DmaMemory` allow.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Pages {
    fn new(len: usize) -> Arc<Self> {
        let layout = Layout::from_size_align(len.next_multiple_of(PAGE).max(PAGE), PAGE)
            .expect("a simulated device's memory is small");
        // SAFETY: the layout has a size above zero.
        let memory = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(memory) else { handle_alloc_error(layout) };
        Arc::new(Self { start, layout })
    }

    fn len(&self) -> usize {
        self.layout.size()
    }

    fn registers(self: &Arc<Self>) -> Registers {
        // SAFETY: page-aligned memory that lives as long as the keeper, and is only used as registers.
        unsafe { Registers::new(self.start, self.len(), self.clone()) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this very layout; whoever uses it keeps it.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// What the device reaches, by its addresses.
#[derive(Default)]
struct Mappings {
    table: Mutex<BTreeMap<u64, Arc<Pages>>>,
    /// Changes with the table.
    version: AtomicU64,
}

/// Memory of the driver while it is mapped.
struct Mapping {
    mappings: Arc<Mappings>,
    iova: u64,
    pages: Arc<Pages>,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.mappings.table.lock().expect("changing the table does not panic").remove(&self.iova);
        self.mappings.version.fetch_add(1, Ordering::Release);
    }
}

/// The controller's view of the driver's memory.
pub(super) struct Reach {
    mappings: Arc<Mappings>,
    version: u64,
    cached: Vec<DmaMemory>,
    violations: Arc<AtomicU64>,
}

impl Reach {
    /// The memory at a device address, if all of it is mapped.
    #[inline]
    pub(super) fn at(&mut self, iova: u64, len: usize) -> Option<(&DmaMemory, usize)> {
        if self.mappings.version.load(Ordering::Acquire) != self.version {
            self.refresh();
        }
        let found = self.cached.iter().find(|memory| {
            let at = iova.wrapping_sub(memory.iova());
            at < memory.len() as u64 && memory.len() as u64 - at >= len as u64
        });
        match found {
            Some(memory) => Some((memory, (iova - memory.iova()) as usize)),
            None => {
                self.violations.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }

    #[cold]
    fn refresh(&mut self) {
        let table = self.mappings.table.lock().expect("changing the table does not panic");
        self.version = self.mappings.version.load(Ordering::Acquire);
        self.cached.clear();
        for (iova, pages) in table.iter() {
            // SAFETY: page-aligned memory that lives as long as the keeper; touched as the driver's own view allows.
            let memory = unsafe { DmaMemory::new(pages.start, pages.len(), *iova, pages.clone()) };
            self.cached.push(memory);
        }
    }
}

/// Controllers that can be opened by name.
static REGISTERED: Mutex<BTreeMap<String, Weak<dyn Transport>>> = Mutex::new(BTreeMap::new());

/// Time, as the driver sees it.
enum Clock {
    Virtual(AtomicU64),
    Real(Instant),
}

/// What the controller's vectors signal.
pub(super) type Vectors = Arc<Mutex<Vec<Option<OwnedFd>>>>;

/// A simulated controller, and what moves it.
pub struct Sim {
    transport: Arc<SimTransport>,
}

/// The driver's way to a simulated controller.
pub struct SimTransport {
    registers: Arc<Pages>,
    mappings: Arc<Mappings>,
    next_iova: AtomicU64,
    clock: Clock,
    vectors: Vectors,
    violations: Arc<AtomicU64>,
    controller: Arc<Mutex<SimController>>,
    thread: Option<Moving>,
    /// What steps on the driver's thread have taken, while somebody counts.
    account: Mutex<Option<Account>>,
}

/// What steps take, in some unit.
struct Account {
    meter: Box<dyn FnMut() -> u64 + Send>,
    /// What a look at the meter takes.
    look: u64,
    spent: u64,
}

/// The controller's thread.
struct Moving {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Moving {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so already.
            let _ = thread.join();
        }
    }
}

impl Sim {
    /// Makes a controller that moves when it is told to, in virtual time.
    pub fn stepwise(config: SimConfig) -> Self {
        Self::new(config, Clock::Virtual(AtomicU64::new(0)), false)
    }

    /// Makes a controller that polls on a thread of its own.
    pub fn threaded(config: SimConfig) -> Self {
        Self::new(config, Clock::Real(Instant::now()), true)
    }

    fn new(config: SimConfig, clock: Clock, threaded: bool) -> Self {
        let stride = 4 << config.doorbell_stride;
        let (_, last) = doorbells(config.queue_pairs, stride);
        let registers = Pages::new(last + 4);
        let (mappings, violations) = (Arc::<Mappings>::default(), Arc::<AtomicU64>::default());
        let vectors: Vectors = Arc::new(Mutex::new((0..config.vectors).map(|_| None).collect()));
        let reach = Reach {
            mappings: Arc::clone(&mappings),
            version: u64::MAX,
            cached: Vec::new(),
            violations: Arc::clone(&violations),
        };
        let controller = SimController::new(config, registers.registers(), reach, Arc::clone(&vectors));
        let controller = Arc::new(Mutex::new(controller));
        let thread = threaded.then(|| move_by_itself(&controller));
        let transport = SimTransport {
            registers,
            mappings,
            next_iova: AtomicU64::new(IOVA_FIRST),
            clock,
            vectors,
            violations,
            controller,
            thread,
            account: Mutex::default(),
        };
        Self { transport: Arc::new(transport) }
    }

    /// Has [`open`](crate::nvme::open) find it as `sim:NAME`, until this is dropped.
    pub fn register(&self, name: &str) {
        let mut registered = REGISTERED.lock().expect("registering does not panic");
        let transport: Weak<dyn Transport> = Arc::<SimTransport>::downgrade(&self.transport);
        registered.insert(name.into(), transport);
    }

    /// The way to the one of that name.
    pub(in crate::nvme) fn registered(name: &str) -> Result<Arc<dyn Transport>, NvmeError> {
        let registered = REGISTERED.lock().expect("registering does not panic");
        registered
            .get(name)
            .and_then(Weak::upgrade)
            .ok_or_else(|| NvmeError::Unusable(format!("there is no simulated controller '{name}'")))
    }

    /// The driver's way to it.
    pub fn transport(&self) -> Arc<dyn Transport> {
        self.transport.clone()
    }

    /// The controller itself; it stands still meanwhile.
    pub fn controller(&self) -> MutexGuard<'_, SimController> {
        self.transport.controller()
    }

    /// Moves it once. Tells whether there was anything to do.
    pub fn step(&self) -> bool {
        self.transport.step()
    }

    /// Begins to count what its steps take, by a meter that is looked at before and after each: time, cycles, instructions. Where
    /// the meter counts a look at itself, too, `look` is how much. Steps of a thread of its own are not counted.
    pub fn count(&self, meter: impl FnMut() -> u64 + Send + 'static, look: u64) {
        let account = Account { meter: Box::new(meter), look, spent: 0 };
        *self.transport.account() = Some(account);
    }

    /// What its steps have taken since they are counted: what a measurement of the driver has to leave out.
    pub fn spent(&self) -> u64 {
        self.transport.account().as_ref().map_or(0, |account| account.spent)
    }

    /// Lets virtual time pass.
    pub fn advance(&self, time: Duration) {
        if let Clock::Virtual(now) = &self.transport.clock {
            now.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
        }
    }

    /// How often the controller was told to reach what is not mapped.
    pub fn violations(&self) -> u64 {
        self.transport.violations.load(Ordering::Relaxed)
    }

    /// Pieces of memory that are mapped.
    pub fn mapped(&self) -> usize {
        self.transport.mappings.table.lock().expect("changing the table does not panic").len()
    }
}

fn move_by_itself(controller: &Arc<Mutex<SimController>>) -> Moving {
    let stop = Arc::new(AtomicBool::new(false));
    let (controller, stopped) = (Arc::clone(controller), Arc::clone(&stop));
    let work = move || {
        let mut idle = 0;
        while !stopped.load(Ordering::Relaxed) {
            let moved = controller.lock().expect("a step does not panic").step();
            idle = if moved { 0 } else { idle + 1 };
            if idle >= IDLE_STEPS {
                std::thread::yield_now();
            }
        }
    };
    let thread = std::thread::Builder::new().name("nvme-sim".into()).spawn(work);
    Moving { stop, thread: Some(thread.expect("the host gives this process one more thread")) }
}

impl SimTransport {
    fn step(&self) -> bool {
        let mut account = self.account();
        let Some(Account { meter, look, spent }) = &mut *account else { return self.controller().step() };
        let start = meter();
        let moved = self.controller().step();
        *spent += meter() - start + *look;
        moved
    }

    fn account(&self) -> MutexGuard<'_, Option<Account>> {
        self.account.lock().expect("neither counting nor a step panics")
    }

    fn controller(&self) -> MutexGuard<'_, SimController> {
        self.controller.lock().expect("a step does not panic")
    }
}

impl Transport for SimTransport {
    fn name(&self) -> String {
        "sim".into()
    }

    fn registers(&self) -> Registers {
        self.registers.registers()
    }

    fn allocate(&self, len: usize) -> Result<DmaMemory, NvmeError> {
        let pages = Pages::new(len);
        // A page between two pieces belongs to nobody.
        let iova = self.next_iova.fetch_add((pages.len() + PAGE) as u64, Ordering::Relaxed);
        let mut table = self.mappings.table.lock().expect("changing the table does not panic");
        table.insert(iova, Arc::clone(&pages));
        self.mappings.version.fetch_add(1, Ordering::Release);
        drop(table);
        let mapping = Mapping { mappings: Arc::clone(&self.mappings), iova, pages };
        let (start, len) = (mapping.pages.start, mapping.pages.len());
        // SAFETY: page-aligned memory that the mapping keeps, and that only the driver and the controller know.
        Ok(unsafe { DmaMemory::new(start, len, iova, Arc::new(mapping)) })
    }

    fn now(&self) -> Duration {
        match &self.clock {
            Clock::Virtual(now) => Duration::from_nanos(now.load(Ordering::Relaxed)),
            Clock::Real(start) => start.elapsed(),
        }
    }

    fn pause(&self) {
        match &self.clock {
            Clock::Virtual(now) => {
                self.step();
                now.fetch_add(PAUSE.as_nanos() as u64, Ordering::Relaxed);
            }
            Clock::Real(_) => std::thread::yield_now(),
        }
    }

    fn relax(&self) {
        self.pause();
    }

    fn isolate(&self) -> Result<(), NvmeError> {
        self.controller().isolate();
        Ok(())
    }

    fn vectors(&self) -> u16 {
        self.vectors.lock().expect("signalling does not panic").len() as u16
    }

    fn bind_interrupt(&self, vector: u16, event: BorrowedFd<'_>) -> Result<(), NvmeError> {
        let host = |error: std::io::Error| NvmeError::Host {
            what: "duplicating an eventfd".into(),
            errno: drystone_core::intent::Errno(error.raw_os_error().unwrap_or(5)),
            hint: "",
        };
        let event = event.try_clone_to_owned().map_err(host)?;
        if let Some(place) =
            self.vectors.lock().expect("signalling does not panic").get_mut(usize::from(vector))
        {
            *place = Some(event);
        }
        Ok(())
    }
}

impl Drop for SimTransport {
    fn drop(&mut self) {
        // The thread ends before what it works on.
        drop(self.thread.take());
    }
}
