//! NVMe over PCIe by VFIO: registers mapped, memory pinned behind the IOMMU, interrupts as eventfds.
//!
//! ```text
//!   /dev/iommu (address space) ◀──────────────────── /dev/vfio/devices/vfioN ─▶ device: BAR 0, configuration space, MSI-X
//!   /dev/vfio/vfio (container) ◀── /dev/vfio/N (group) ─────────────────────▶ the same, where there is no iommufd
//! ```
//!
//! `place` finds the device in sysfs, and says what to do when it cannot be used; `system` and `iommufd` are the kernel's
//! interfaces. Source: the kernel's `Documentation/driver-api/vfio.rst` and `Documentation/userspace-api/iommufd.rst`.
#![allow(unsafe_code)]

mod call;
mod iommufd;
mod pages;
mod place;
mod system;

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use drystone_core::intent::Errno;
use rustix::fs::{Mode, OFlags, open};
use rustix::time::{ClockId, clock_gettime};

use super::device::Completions;
use super::error::NvmeError;
use super::memory::{DmaMemory, Registers};
use super::transport::Transport;
use iommufd::AddressSpace;
use pages::Pages;
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

/// What the device's addresses are translated by.
enum Iommu {
    Container(Container),
    AddressSpace(AddressSpace),
}

/// A device, and what translates its addresses: mappings keep both, since what is mapped can be unmapped only while the device
/// is attached.
struct Attached {
    device: PciDevice,
    iommu: Iommu,
}

impl Attached {
    /// Takes memory, and maps it at `iova` for the device.
    fn allocate(self: &Arc<Self>, len: usize, iova: u64) -> Result<DmaMemory, NvmeError> {
        let pages = Pages::new(len)?;
        let mapped = match &self.iommu {
            Iommu::Container(container) => container.map(&pages, iova),
            Iommu::AddressSpace(space) => space.map(&pages, iova),
        };
        mapped.map_err(|error| {
            let hint = match error {
                rustix::io::Errno::NOMEM => "; raise the limit on locked memory (ulimit -l)",
                rustix::io::Errno::NOSPC => "; the module's parameter dma_entry_limit is reached",
                _ => "",
            };
            host(format!("mapping {} bytes for the device", pages.len()), error, hint)
        })?;
        let (start, len) = (pages.start(), pages.len());
        let mapping = Mapping { attached: Arc::clone(self), iova, pages };
        // SAFETY: page-aligned zero memory that the mapping keeps, and that nobody else knows.
        Ok(unsafe { DmaMemory::new(start, len, iova, Arc::new(mapping)) })
    }
}

/// Memory while the device reaches it.
struct Mapping {
    attached: Arc<Attached>,
    iova: u64,
    pages: Pages,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let len = self.pages.len();
        let unmapped = match &self.attached.iommu {
            Iommu::Container(container) => container.unmap(len, self.iova),
            Iommu::AddressSpace(space) => space.unmap(len, self.iova),
        };
        if unmapped.is_err() {
            // Still within reach of the device: better it is never anything else.
            self.pages.leak();
        }
    }
}

/// A controller on the PCI bus that is ours alone while this lives.
pub struct Vfio {
    address: String,
    attached: Arc<Attached>,
    registers: Registers,
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
        let (iommu, device) = match by_its_file(&place)? {
            Some((space, device)) => (Iommu::AddressSpace(space), device),
            None => {
                let container = Container::open()?;
                let group = container.join(place.group)?;
                (Iommu::Container(container), group.device(address)?)
            }
        };
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
            attached: Arc::new(Attached { device, iommu }),
            registers,
            next_iova: AtomicU64::new(IOVA_FIRST),
            vectors,
            pauses: AtomicU64::new(0),
        })
    }
}

/// Takes a device by its own file, where the kernel has iommufd and gives both to this process; else there are groups.
fn by_its_file(place: &Place) -> Result<Option<(AddressSpace, PciDevice)>, NvmeError> {
    let Some(path) = &place.file else { return Ok(None) };
    let Some(space) = AddressSpace::new()? else { return Ok(None) };
    let fd = match open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::ACCESS) => return Ok(None),
        Err(error) => {
            let what = format!("opening {}", path.display());
            return Err(host(what, error, "; another process may use the device"));
        }
    };
    let device = PciDevice::attach(fd, &space)?;
    Ok(Some((space, device)))
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
        self.attached.allocate(len, iova)
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
        self.attached.device.isolate()
    }

    fn vectors(&self) -> u16 {
        self.vectors
    }

    fn bind_interrupt(&self, vector: u16, event: BorrowedFd<'_>) -> Result<(), NvmeError> {
        self.attached.device.bind_interrupt(vector, event)
    }
}

/// The error of a call that the kernel refused.
fn host(what: impl Into<String>, error: rustix::io::Errno, hint: &'static str) -> NvmeError {
    NvmeError::Host { what: what.into(), errno: Errno(error.raw_os_error()), hint }
}
