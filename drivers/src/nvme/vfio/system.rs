//! The kernel's VFIO interface: one function a call.
#![allow(unsafe_code)]

use std::ffi::{CString, c_void};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::{pread, pwrite};
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use vfio_bindings::bindings::vfio::{
    VFIO_API_VERSION, VFIO_BASE, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_GROUP_FLAGS_VIABLE,
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_PCI_BAR0_REGION_INDEX,
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_REGION_INFO_FLAG_MMAP, VFIO_TYPE,
    VFIO_TYPE1v2_IOMMU, vfio_group_status, vfio_iommu_type1_dma_map, vfio_irq_info, vfio_region_info,
};

use super::host;
use crate::nvme::error::NvmeError;
use crate::nvme::memory::{DmaMemory, Registers};

/// Calls, by their number after `VFIO_BASE`. Source: linux/vfio.h.
mod call {
    pub(super) const GET_API_VERSION: u32 = 0;
    pub(super) const CHECK_EXTENSION: u32 = 1;
    pub(super) const SET_IOMMU: u32 = 2;
    pub(super) const GROUP_GET_STATUS: u32 = 3;
    pub(super) const GROUP_SET_CONTAINER: u32 = 4;
    pub(super) const GROUP_GET_DEVICE_FD: u32 = 6;
    pub(super) const DEVICE_GET_REGION_INFO: u32 = 8;
    pub(super) const DEVICE_GET_IRQ_INFO: u32 = 9;
    pub(super) const DEVICE_SET_IRQS: u32 = 10;
    pub(super) const DEVICE_RESET: u32 = 11;
    pub(super) const IOMMU_MAP_DMA: u32 = 13;
    pub(super) const IOMMU_UNMAP_DMA: u32 = 14;
}

/// Registers of PCI configuration space. Source: \[PCI\] 6.1.
const PCI_COMMAND: u64 = 0x04;
const PCI_CLASS: u64 = 0x09;
/// Memory space and bus mastering, in the command register.
const MEMORY_AND_MASTER: u16 = 0x06;
const BUS_MASTER: u16 = 0x04;

/// Programming interface, subclass, class of an NVMe controller. Source: \[NVMe\] 2.1.5.
const NVME_CLASS: [u8; 3] = [0x02, 0x08, 0x01];

/// Interrupt vectors that are asked for at the most.
const VECTORS_MAX: u32 = 128;

/// Bytes from which memory is worth large pages.
const HUGE_PAGE: usize = 2 << 20;

/// Any call, with a number or an address as its argument.
struct Call {
    number: u32,
    argument: *mut c_void,
}

// SAFETY: the opcode is one of `_IO`, whose argument the kernel takes as it is; the result is the call's own.
unsafe impl Ioctl for Call {
    type Output = i32;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        opcode::none(VFIO_TYPE, (VFIO_BASE + self.number) as u8)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.argument
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<i32> {
        Ok(out)
    }
}

/// A call whose argument is a number.
fn with_number(fd: impl AsFd, number: u32, argument: usize) -> rustix::io::Result<i32> {
    let call = Call { number, argument: std::ptr::without_provenance_mut(argument) };
    // SAFETY: calls with a number as their argument touch no memory of this process.
    unsafe { ioctl(fd, call) }
}

/// A call whose argument is a structure that says its own size.
fn with<T>(fd: impl AsFd, number: u32, argument: &mut T) -> rustix::io::Result<i32> {
    let call = Call { number, argument: std::ptr::from_mut(argument).cast() };
    // SAFETY: the kernel touches no more than the structure, whose size is in its first field.
    unsafe { ioctl(fd, call) }
}

/// What the kernel maps for devices of one group.
pub(super) struct Container(OwnedFd);

/// A group, which keeps its devices ours.
pub(super) struct Group(OwnedFd);

impl Container {
    pub(super) fn open() -> Result<Self, NvmeError> {
        let path = "/dev/vfio/vfio";
        let fd = open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| host(format!("opening {path}"), error, "; is the module vfio-pci loaded?"))?;
        let version = with_number(&fd, call::GET_API_VERSION, 0)
            .map_err(|error| host("asking for the version of VFIO", error, ""))?;
        if version != VFIO_API_VERSION as i32 {
            return Err(NvmeError::Unusable(format!("VFIO has version {version}, expected 0")));
        }
        let known = with_number(&fd, call::CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU as usize);
        if !matches!(known, Ok(known) if known > 0) {
            let text = "VFIO has no type 1 IOMMU: load the module vfio_iommu_type1";
            return Err(NvmeError::Unusable(text.into()));
        }
        Ok(Self(fd))
    }

    /// Takes a group, and puts it behind this container's IOMMU.
    pub(super) fn join(&self, number: u32) -> Result<Group, NvmeError> {
        let path = format!("/dev/vfio/{number}");
        let group = open(path.as_str(), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|error| {
            let hint = match error {
                rustix::io::Errno::BUSY => "; another process uses the device",
                rustix::io::Errno::ACCESS => "; run as root, or have the file belong to this user",
                _ => "",
            };
            host(format!("opening {path}"), error, hint)
        })?;
        let mut status = vfio_group_status { argsz: size_of::<vfio_group_status>() as u32, flags: 0 };
        with(&group, call::GROUP_GET_STATUS, &mut status)
            .map_err(|error| host(format!("asking for the state of IOMMU group {number}"), error, ""))?;
        if status.flags & VFIO_GROUP_FLAGS_VIABLE == 0 {
            return Err(NvmeError::Unusable(format!(
                "IOMMU group {number} has devices that are not bound to vfio-pci: see \
                 /sys/kernel/iommu_groups/{number}/devices"
            )));
        }
        let mut container = self.0.as_raw_fd();
        with(&group, call::GROUP_SET_CONTAINER, &mut container)
            .map_err(|error| host(format!("taking IOMMU group {number}"), error, ""))?;
        with_number(&self.0, call::SET_IOMMU, VFIO_TYPE1v2_IOMMU as usize).map_err(|error| {
            let hint = match error {
                rustix::io::Errno::PERM => {
                    "; without interrupt remapping, /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts has \
                     to be Y"
                }
                _ => "",
            };
            host("choosing the type 1 IOMMU", error, hint)
        })?;
        Ok(Group(group))
    }

    /// Takes memory, and maps it at `iova` for the devices.
    pub(super) fn allocate(self: &Arc<Self>, len: usize, iova: u64) -> Result<DmaMemory, NvmeError> {
        let pages = Pages::new(len)?;
        let mut map = vfio_iommu_type1_dma_map {
            argsz: size_of::<vfio_iommu_type1_dma_map>() as u32,
            flags: VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
            vaddr: pages.start.as_ptr() as u64,
            iova,
            size: pages.len as u64,
        };
        with(&self.0, call::IOMMU_MAP_DMA, &mut map).map_err(|error| {
            let hint = match error {
                rustix::io::Errno::NOMEM => "; raise the limit on locked memory (ulimit -l)",
                rustix::io::Errno::NOSPC => "; the module's parameter dma_entry_limit is reached",
                _ => "",
            };
            host(format!("mapping {} bytes for the device", pages.len), error, hint)
        })?;
        let (start, len) = (pages.start, pages.len);
        let mapping = Mapping { container: Arc::clone(self), iova, pages };
        // SAFETY: page-aligned zero memory that the mapping keeps, and that nobody else knows.
        Ok(unsafe { DmaMemory::new(start, len, iova, Arc::new(mapping)) })
    }
}

/// Memory while the devices reach it.
struct Mapping {
    container: Arc<Container>,
    iova: u64,
    pages: Pages,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        /// `vfio_iommu_type1_dma_unmap` without the data that may follow.
        #[repr(C)]
        struct Unmap {
            argsz: u32,
            flags: u32,
            iova: u64,
            size: u64,
        }
        let argsz = size_of::<Unmap>() as u32;
        let mut unmap = Unmap { argsz, flags: 0, iova: self.iova, size: self.pages.len as u64 };
        if with(&self.container.0, call::IOMMU_UNMAP_DMA, &mut unmap).is_err() {
            // Still within reach of the device: better it is never anything else.
            self.pages.leak = true;
        }
    }
}

/// Pages of the kernel.
struct Pages {
    start: NonNull<u8>,
    len: usize,
    leak: bool,
}

// SAFETY: the pages are touched only as `DmaMemory` allows.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Pages {
    fn new(len: usize) -> Result<Self, NvmeError> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let map = |len: usize, flags: MapFlags| {
            // SAFETY: an anonymous mapping at a place of the kernel's choice touches nothing that is there.
            unsafe { mmap_anonymous(std::ptr::null_mut(), len, protection, MapFlags::PRIVATE | flags) }
        };
        let huge_len = len.next_multiple_of(HUGE_PAGE);
        let huge = match len >= HUGE_PAGE {
            true => map(huge_len, MapFlags::HUGETLB).ok().map(|start| (start, huge_len)),
            false => None,
        };
        let (start, len) = match huge {
            Some(huge) => huge,
            None => {
                let len = len.next_multiple_of(rustix::param::page_size());
                let start = map(len, MapFlags::empty())
                    .map_err(|error| host(format!("taking {len} bytes of memory"), error, ""))?;
                // SAFETY: the advice is about the mapping that was just made, and changes no content.
                let advised = unsafe { madvise(start, len, Advice::LinuxHugepage) };
                // Advice that the kernel does not take costs nothing but speed.
                let _ = advised;
                (start, len)
            }
        };
        let start = NonNull::new(start.cast()).expect("the kernel maps nothing at 0");
        Ok(Self { start, len, leak: false })
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if self.leak {
            return;
        }
        // SAFETY: mapped in `new` with this very length; whoever uses it keeps it.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "what was mapped can be unmapped");
    }
}

impl Group {
    /// Takes a device of the group, which stays ours as long as the device is open.
    pub(super) fn device(self, address: &str) -> Result<PciDevice, NvmeError> {
        let name = CString::new(address).expect("an address has no zero byte");
        let call = Call { number: call::GROUP_GET_DEVICE_FD, argument: name.as_ptr().cast_mut().cast() };
        // SAFETY: the kernel reads the name up to its zero byte.
        let fd = unsafe { ioctl(&self.0, call) }
            .map_err(|error| host(format!("taking {address}"), error, "; another process may use it"))?;
        // SAFETY: the kernel has just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let config = region(&fd, VFIO_PCI_CONFIG_REGION_INDEX)?;
        Ok(PciDevice { fd: Arc::new(fd), _group: self, config: config.offset })
    }
}

fn region(fd: &OwnedFd, index: u32) -> Result<vfio_region_info, NvmeError> {
    let argsz = size_of::<vfio_region_info>() as u32;
    let mut info = vfio_region_info { argsz, index, ..vfio_region_info::default() };
    with(fd, call::DEVICE_GET_REGION_INFO, &mut info)
        .map_err(|error| host(format!("asking for region {index} of the device"), error, ""))?;
    Ok(info)
}

/// A PCI device that is ours.
pub(super) struct PciDevice {
    fd: Arc<OwnedFd>,
    _group: Group,
    /// Where configuration space is in the descriptor.
    config: u64,
}

impl PciDevice {
    /// Refuses what is no NVMe controller.
    pub(super) fn check_class(&self, address: &str) -> Result<(), NvmeError> {
        let mut class = [0; 3];
        pread(&*self.fd, &mut class, self.config + PCI_CLASS)
            .map_err(|error| host("reading configuration space", error, ""))?;
        if class == NVME_CLASS {
            return Ok(());
        }
        let [interface, subclass, class] = class;
        Err(NvmeError::Unusable(format!(
            "{address} is no NVMe controller: its class is {class:02x}{subclass:02x}{interface:02x}, expected 010802"
        )))
    }

    fn command(&self) -> Result<u16, NvmeError> {
        let mut command = [0; 2];
        pread(&*self.fd, &mut command, self.config + PCI_COMMAND)
            .map_err(|error| host("reading configuration space", error, ""))?;
        Ok(u16::from_le_bytes(command))
    }

    fn set_command(&self, command: u16) -> Result<(), NvmeError> {
        pwrite(&*self.fd, &command.to_le_bytes(), self.config + PCI_COMMAND)
            .map_err(|error| host("writing configuration space", error, ""))?;
        Ok(())
    }

    /// Resets the device, and lets it answer and reach memory.
    pub(super) fn enable(&self) -> Result<(), NvmeError> {
        // Not every device can be reset; disabling the controller does what is needed.
        let _ = with_number(&*self.fd, call::DEVICE_RESET, 0);
        self.set_command(self.command()? | MEMORY_AND_MASTER)
    }

    /// Stops all DMA for good.
    pub(super) fn isolate(&self) -> Result<(), NvmeError> {
        self.set_command(self.command()? & !BUS_MASTER)?;
        match self.command()? & BUS_MASTER {
            0 => Ok(()),
            _ => Err(host("taking the bus from the device", rustix::io::Errno::IO, "")),
        }
    }

    /// Maps BAR 0.
    pub(super) fn map_registers(&self) -> Result<Registers, NvmeError> {
        let info = region(&self.fd, VFIO_PCI_BAR0_REGION_INDEX)?;
        let len = usize::try_from(info.size).unwrap_or(0);
        if info.flags & VFIO_REGION_INFO_FLAG_MMAP == 0 || len == 0 {
            return Err(NvmeError::Unusable(format!("BAR 0 of {len} bytes cannot be mapped")));
        }
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a mapping at a place of the kernel's choice touches nothing that is there.
        let start =
            unsafe { mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, &*self.fd, info.offset) }
                .map_err(|error| host(format!("mapping {len} bytes of registers"), error, ""))?;
        let start = NonNull::new(start.cast::<u8>()).expect("the kernel maps nothing at 0");
        let keeper = Arc::new(Bar { start, len });
        // SAFETY: page-aligned registers that stay mapped while the keeper lives, and are touched through `Registers`.
        Ok(unsafe { Registers::new(start, len, keeper) })
    }

    /// Turns MSI-X on, with nobody to be told yet. Returns how many vectors there are.
    pub(super) fn enable_interrupts(&self) -> Result<u16, NvmeError> {
        let argsz = size_of::<vfio_irq_info>() as u32;
        let mut info = vfio_irq_info { argsz, index: VFIO_PCI_MSIX_IRQ_INDEX, ..vfio_irq_info::default() };
        with(&*self.fd, call::DEVICE_GET_IRQ_INFO, &mut info)
            .map_err(|error| host("asking for interrupts", error, ""))?;
        let count = info.count.min(VECTORS_MAX);
        if count > 0 {
            self.set_events(0, &vec![-1; count as usize])?;
        }
        Ok(count as u16)
    }

    /// Has a vector signal an eventfd.
    pub(super) fn bind_interrupt(&self, vector: u16, event: BorrowedFd<'_>) -> Result<(), NvmeError> {
        self.set_events(vector, &[event.as_raw_fd()])
    }

    fn set_events(&self, first: u16, events: &[i32]) -> Result<(), NvmeError> {
        /// Words of `vfio_irq_set` before its descriptors.
        const HEADER: usize = 5;
        let words = HEADER + events.len();
        let mut set = vec![
            (words * 4) as u32,
            VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
            VFIO_PCI_MSIX_IRQ_INDEX,
            u32::from(first),
            events.len() as u32,
        ];
        set.extend(events.iter().map(|event| event.cast_unsigned()));
        let call = Call { number: call::DEVICE_SET_IRQS, argument: set.as_mut_ptr().cast() };
        // SAFETY: the kernel touches no more than the words, whose size is in the first one.
        unsafe { ioctl(&*self.fd, call) }.map_err(|error| host("setting up MSI-X interrupts", error, ""))?;
        Ok(())
    }
}

/// Mapped registers.
struct Bar {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the registers are touched only as `Registers` allows.
unsafe impl Send for Bar {}
// SAFETY: as above.
unsafe impl Sync for Bar {}

impl Drop for Bar {
    fn drop(&mut self) {
        // SAFETY: mapped with this very length; whoever uses it keeps it.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "what was mapped can be unmapped");
    }
}
