//! NVMe over PCIe by VFIO: registers mapped, memory pinned behind the IOMMU, interrupts as eventfds.
//!
//! ```text
//!   /dev/vfio/vfio (container: IOMMU mappings) ◀── /dev/vfio/N (group) ──▶ device: BAR 0, configuration space, MSI-X
//! ```
//!
//! `place` finds the device in sysfs, and says what to do when it cannot be used; `system` is the kernel's interface.
//! Source: the kernel's `Documentation/driver-api/vfio.rst`, and `linux/vfio.h`.

mod place;
mod system;

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use drystone_core::intent::Errno;
use rustix::time::{ClockId, clock_gettime};

use super::device::Completions;
use super::error::NvmeError;
use super::memory::{DmaMemory, Registers};
use super::transport::Transport;
use place::Place;
use system::{Container, PciDevice};

/// The first device address: above what a PC reserves for its interrupts, and within what every IOMMU translates.
const IOVA_FIRST: u64 = 1 << 32;

/// Mappings begin at multiples of this, so that large pages of the host can be large pages of the IOMMU.
const IOVA_ALIGN: u64 = 2 << 20;

/// Pauses that only spin, before the thread sleeps for a moment.
const SPINS: u64 = 200;

/// How long a pause is, once spinning did not help: bring-up takes milliseconds.
const NAP: Duration = Duration::from_micros(50);

/// A controller on the PCI bus that is ours alone while this lives.
pub struct Vfio {
    address: String,
    device: PciDevice,
    registers: Registers,
    container: Arc<Container>,
    next_iova: AtomicU64,
    vectors: u16,
    pauses: AtomicU64,
}

impl Vfio {
    /// Takes the controller at a PCI address such as `0000:01:00.0`, which is bound to `vfio-pci`.
    ///
    /// # Errors
    /// With what to do: [`NvmeError::Unusable`] for what sysfs shows, [`NvmeError::Host`] for what the kernel refuses.
    pub fn open(address: &str, completions: Completions) -> Result<Self, NvmeError> {
        let place = Place::find("/".as_ref(), address)?;
        let container = Container::open()?;
        let group = container.join(place.group)?;
        let device = group.device(address)?;
        device.check_class(address)?;
        device.enable()?;
        let registers = device.map_registers()?;
        let vectors = match completions {
            Completions::Polled => 0,
            // Before the controller is enabled: an emulated one looks whether MSI-X is on when its queues are made.
            _ => device.enable_interrupts()?,
        };
        Ok(Self {
            address: address.into(),
            device,
            registers,
            container: Arc::new(container),
            next_iova: AtomicU64::new(IOVA_FIRST),
            vectors,
            pauses: AtomicU64::new(0),
        })
    }
}

impl Transport for Vfio {
    fn name(&self) -> String {
        self.address.clone()
    }

    fn registers(&self) -> Registers {
        self.registers.clone()
    }

    fn allocate(&self, len: usize) -> Result<DmaMemory, NvmeError> {
        let room = (len as u64).next_multiple_of(IOVA_ALIGN);
        let iova = self.next_iova.fetch_add(room, Ordering::Relaxed);
        self.container.allocate(len, iova)
    }

    fn now(&self) -> Duration {
        let now = clock_gettime(ClockId::Monotonic);
        Duration::new(now.tv_sec.cast_unsigned(), now.tv_nsec as u32)
    }

    fn pause(&self) {
        // Spinning is for what takes microseconds; a reset takes milliseconds.
        match self.pauses.fetch_add(1, Ordering::Relaxed) % (SPINS + 1) {
            SPINS => std::thread::sleep(NAP),
            _ => std::hint::spin_loop(),
        }
    }

    fn isolate(&self) -> Result<(), NvmeError> {
        self.device.isolate()
    }

    fn vectors(&self) -> u16 {
        self.vectors
    }

    fn bind_interrupt(&self, vector: u16, event: BorrowedFd<'_>) -> Result<(), NvmeError> {
        self.device.bind_interrupt(vector, event)
    }
}

/// The error of a call that the kernel refused.
fn host(what: impl Into<String>, error: rustix::io::Errno, hint: &'static str) -> NvmeError {
    NvmeError::Host { what: what.into(), errno: Errno(error.raw_os_error()), hint }
}
