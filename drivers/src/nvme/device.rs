//! A controller that is open: what all its queue pairs share.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use drystone_core::intent::{LockRefused, Permissions};

use super::arena::Arena;
use super::controller::Controller;
use super::error::NvmeError;
use super::layout::{Arbitration, Capabilities, Command, ControllerIdentity, Namespace, doorbells};
use super::mapper::TRANSFER_MAX;
use super::memory::Registers;
use super::transport::Transport;
use super::watch::Event;

/// How a controller is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Queue pairs to ask for: one for each engine that uses the device.
    pub queue_pairs: u16,
    /// Entries of each queue, where the controller has so many; one less can be in flight.
    pub queue_entries: u16,
    /// Bytes of memory that the device reaches, for buffers.
    pub arena_len: usize,
    /// How long a command may take before it is aborted, and as long again before the controller is reset.
    pub timeout: Duration,
    /// Whether to use doorbells in memory where the controller offers them: for emulated controllers, which then need
    /// not be woken by each.
    pub shadow_doorbells: bool,
    /// How completions are found.
    pub completions: Completions,
    /// How queue pairs take turns; nothing for as the controller has it.
    pub arbitration: Option<Arbitration>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            queue_pairs: 64,
            queue_entries: 256,
            arena_len: 32 << 20,
            timeout: Duration::from_secs(30),
            shadow_doorbells: true,
            completions: Completions::Polled,
            arbitration: None,
        }
    }
}

/// How completions are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Completions {
    /// By looking, all the time while something is in flight.
    #[default]
    Polled,
    /// By looking for a while, then by an interrupt.
    Adaptive,
    /// By an interrupt.
    Interrupt,
}

/// A controller in use. Dropping the last reference shuts it down.
pub struct Device {
    pub(super) transport: Arc<dyn Transport>,
    controller: Mutex<Controller>,
    epoch: Arc<AtomicU32>,
    namespaces_version: Arc<AtomicU32>,
    /// Numbers of queue pairs that nobody has.
    free_queues: Mutex<Vec<u16>>,
    queues_granted: u16,
    identity: ControllerIdentity,
    capabilities: Capabilities,
    arena: Arc<Arena>,
    options: Options,
    claims: Mutex<Vec<Claim>>,
}

/// What somebody does with a namespace.
struct Claim {
    namespace: u32,
    holder: u64,
    holds: Permissions,
    shares: Permissions,
}

impl Device {
    /// Brings a controller up, and waits until it is ready.
    ///
    /// # Errors
    /// What the controller or the host says; then the controller is left disabled.
    pub fn open(transport: Arc<dyn Transport>, options: Options) -> Result<Arc<Self>, NvmeError> {
        let mut controller = Controller::new(Arc::clone(&transport), &options)?;
        while !controller.is_ready() {
            controller.poll();
            if let Some(error) = controller.failure() {
                return Err(error.clone());
            }
            transport.pause();
        }
        let identity = controller.identity().cloned().expect("a ready controller was identified");
        let (capabilities, granted) = (controller.capabilities(), controller.queues_granted());
        let arena = match transport.allocate(options.arena_len.max(capabilities.page)) {
            Ok(memory) => Arena::new(memory, capabilities.page),
            Err(error) => {
                end(&mut controller, &*transport);
                return Err(error);
            }
        };
        Ok(Arc::new(Self {
            transport,
            epoch: controller.epoch(),
            namespaces_version: Arc::clone(&controller.namespaces_version),
            controller: Mutex::new(controller),
            free_queues: Mutex::new((1..=granted).rev().collect()),
            queues_granted: granted,
            identity,
            capabilities,
            arena: Arc::new(arena),
            options,
            claims: Mutex::default(),
        }))
    }

    /// What the controller is called in messages.
    pub fn name(&self) -> String {
        self.transport.name()
    }

    /// What the controller says of itself.
    pub fn identity(&self) -> &ControllerIdentity {
        &self.identity
    }

    /// Queue pairs that the controller grants.
    pub fn queues_granted(&self) -> u16 {
        self.queues_granted
    }

    /// Memory that the device reaches.
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// Bytes of one command's data at the most; larger requests become several commands.
    pub fn transfer_max(&self) -> usize {
        self.identity.transfer_max.unwrap_or(TRANSFER_MAX).min(TRANSFER_MAX)
    }

    /// Says what `holder` does with a namespace, and what it tolerates that others do; what it said before counts no more.
    /// The device is this process's alone, so that those are all there are.
    ///
    /// # Errors
    /// When that does not go with what another holder said; then nothing changes.
    pub fn claim(
        &self,
        namespace: u32,
        holder: u64,
        holds: Permissions,
        shares: Permissions,
    ) -> Result<(), LockRefused> {
        let mut claims = self.claims.lock().expect("claiming does not panic");
        let others = claims.iter().filter(|other| other.namespace == namespace && other.holder != holder);
        for other in others {
            let conflict = |needs: Permissions, tolerates: Permissions, shared| {
                let permission = needs.iter().find(|one| !tolerates.contains(*one))?;
                Some(LockRefused::Conflict { permission, shared })
            };
            let refused =
                conflict(holds, other.shares, false).or_else(|| conflict(other.holds, shares, true));
            if let Some(refused) = refused {
                return Err(refused);
            }
        }
        claims.retain(|other| other.holder != holder);
        if holds != Permissions::NONE || shares != Permissions::ALL {
            claims.push(Claim { namespace, holder, holds, shares });
        }
        Ok(())
    }

    /// The options it was opened with.
    pub fn options(&self) -> Options {
        self.options
    }

    /// The active namespaces, in order of their numbers.
    pub fn namespaces(&self) -> Vec<u32> {
        self.controller().namespaces().keys().copied().collect()
    }

    /// A namespace by its number.
    ///
    /// # Errors
    /// [`NvmeError::NoNamespace`], or why this driver cannot work with it.
    pub fn namespace(&self, id: u32) -> Result<Namespace, NvmeError> {
        self.controller().namespaces().get(&id).cloned().unwrap_or(Err(NvmeError::NoNamespace { id }))
    }

    /// How often the controller was reset, and why the last time.
    pub fn resets(&self) -> (u32, Option<NvmeError>) {
        let controller = self.controller();
        let (resets, trouble) = controller.resets();
        (resets, trouble.cloned())
    }

    /// Changes whenever namespaces have come, gone or changed: what was asked of [`namespace`](Self::namespace) before has to
    /// be asked anew.
    #[inline]
    pub fn namespaces_version(&self) -> u32 {
        self.namespaces_version.load(Ordering::Acquire)
    }

    /// The next thing that the controller told by itself.
    pub fn next_event(&self) -> Option<Event> {
        let mut controller = self.controller();
        controller.poll();
        controller.next_event()
    }

    /// Has the controller reset; requests in flight are sent again.
    pub fn reset(&self) {
        self.controller().reset(NvmeError::Unusable("a reset was asked for".into()));
    }

    pub(super) fn controller(&self) -> MutexGuard<'_, Controller> {
        self.controller.lock().expect("nothing panics while it holds the controller")
    }

    /// The controller, unless another thread is at it.
    pub(super) fn try_controller(&self) -> Option<MutexGuard<'_, Controller>> {
        self.controller.try_lock().ok()
    }

    pub(super) fn epoch(&self) -> Arc<AtomicU32> {
        Arc::clone(&self.epoch)
    }

    pub(super) fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    pub(super) fn registers(&self) -> Registers {
        self.transport.registers()
    }

    /// Takes the number of a queue pair.
    pub(super) fn take_queue(self: &Arc<Self>) -> Result<Lease, NvmeError> {
        let number = self.free_queues.lock().expect("taking does not panic").pop();
        let Some(number) = number else { return Err(NvmeError::NoQueue { granted: self.queues_granted }) };
        let lease = Lease { device: Arc::clone(self), number };
        let (_, head) = doorbells(number, self.capabilities.doorbell_stride);
        let len = self.registers().len();
        if head + 4 > len {
            return Err(NvmeError::NoDoorbell { queue: number, len });
        }
        Ok(lease)
    }

    /// Sends an admin command and waits for its answer.
    pub(super) fn run(&self, what: &'static str, command: Command) -> Result<u32, NvmeError> {
        let mut call = None;
        loop {
            let mut controller = self.controller();
            controller.poll();
            if let Some(error) = controller.failure() {
                return Err(error.clone());
            }
            match call {
                None => call = controller.call(what, command),
                Some(call) => {
                    if let Some(answer) = controller.answer(call) {
                        return answer;
                    }
                }
            }
            drop(controller);
            self.transport.pause();
        }
    }

    /// Waits until a reset is over. Tells whether the controller does no DMA on behalf of anything before it.
    pub(super) fn settle(&self) -> bool {
        loop {
            let mut controller = self.controller();
            controller.poll();
            if controller.is_ready() {
                return true;
            }
            if controller.failure().is_some() {
                return controller.is_isolated();
            }
            drop(controller);
            self.transport.pause();
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let controller = self.controller.get_mut().expect("nothing panics while it holds the controller");
        end(controller, &*self.transport);
    }
}

/// Shuts a controller down, and waits for that.
fn end(controller: &mut Controller, transport: &dyn Transport) {
    // A reset that is under way ends first.
    while !controller.is_ready() && controller.failure().is_none() && !controller.is_off() {
        controller.poll();
        transport.pause();
    }
    controller.shut_down();
    while !controller.is_off() && controller.failure().is_none() {
        controller.poll();
        transport.pause();
    }
}

/// The number of a queue pair, as long as somebody has it.
pub(super) struct Lease {
    pub(super) device: Arc<Device>,
    pub(super) number: u16,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.device.free_queues.lock().expect("taking does not panic").push(self.number);
    }
}
