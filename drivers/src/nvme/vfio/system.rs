//! The kernel's VFIO interface: one function a call. Source: linux/vfio.h.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::{pread, pwrite};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use vfio_bindings::bindings::vfio::{
    VFIO_API_VERSION, VFIO_BASE, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_GROUP_FLAGS_VIABLE,
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_PCI_BAR0_REGION_INDEX,
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_REGION_INFO_FLAG_MMAP, VFIO_TYPE,
    VFIO_TYPE1v2_IOMMU, vfio_device_attach_iommufd_pt, vfio_device_bind_iommufd, vfio_group_status,
    vfio_iommu_type1_dma_map, vfio_irq_info, vfio_region_info,
};

use super::call::call;
use super::host;
use super::iommufd::AddressSpace;
use super::pages::Pages;
use crate::nvme::error::NvmeError;
use crate::nvme::memory::Registers;

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
    pub(super) const DEVICE_BIND_IOMMUFD: u32 = 18;
    pub(super) const DEVICE_ATTACH_IOMMUFD_PT: u32 = 19;
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

/// A call of VFIO whose argument is a number.
fn with_number(fd: impl AsFd, number: u32, argument: usize) -> rustix::io::Result<i32> {
    // SAFETY: calls with a number as their argument touch no memory of this process.
    unsafe { call(fd, VFIO_TYPE, VFIO_BASE + number, std::ptr::without_provenance_mut(argument)) }
}

/// A call of VFIO whose argument is a structure that says its own size.
fn with<T>(fd: impl AsFd, number: u32, argument: &mut T) -> rustix::io::Result<i32> {
    // SAFETY: the kernel touches no more than the structure, whose size is in its first field.
    unsafe { call(fd, VFIO_TYPE, VFIO_BASE + number, std::ptr::from_mut(argument).cast()) }
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

    /// Maps memory for the devices.
    pub(super) fn map(&self, pages: &Pages, iova: u64) -> Result<(), rustix::io::Errno> {
        let mut map = vfio_iommu_type1_dma_map {
            argsz: size_of::<vfio_iommu_type1_dma_map>() as u32,
            flags: VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
            vaddr: pages.start().as_ptr() as u64,
            iova,
            size: pages.len() as u64,
        };
        with(&self.0, call::IOMMU_MAP_DMA, &mut map).map(drop)
    }

    /// Takes memory from the devices.
    pub(super) fn unmap(&self, len: usize, iova: u64) -> Result<(), rustix::io::Errno> {
        /// `vfio_iommu_type1_dma_unmap` without the data that may follow.
        #[repr(C)]
        struct Unmap {
            argsz: u32,
            flags: u32,
            iova: u64,
            size: u64,
        }
        let argsz = size_of::<Unmap>() as u32;
        let mut unmap = Unmap { argsz, flags: 0, iova, size: len as u64 };
        with(&self.0, call::IOMMU_UNMAP_DMA, &mut unmap).map(drop)
    }
}

impl Group {
    /// Takes a device of the group, which stays ours as long as the device is open.
    pub(super) fn device(self, address: &str) -> Result<PciDevice, NvmeError> {
        let name = CString::new(address).expect("an address has no zero byte");
        let number = VFIO_BASE + call::GROUP_GET_DEVICE_FD;
        // SAFETY: the kernel reads the name up to its zero byte.
        let fd = unsafe { call(&self.0, VFIO_TYPE, number, name.as_ptr().cast_mut().cast()) }
            .map_err(|error| host(format!("taking {address}"), error, "; another process may use it"))?;
        // SAFETY: the kernel has just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        PciDevice::new(fd, Some(self))
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
    fd: OwnedFd,
    /// What it was taken from, where that keeps it ours.
    _group: Option<Group>,
    /// Where configuration space is in the descriptor.
    config: u64,
}

impl PciDevice {
    fn new(fd: OwnedFd, group: Option<Group>) -> Result<Self, NvmeError> {
        let config = region(&fd, VFIO_PCI_CONFIG_REGION_INDEX)?;
        Ok(Self { fd, _group: group, config: config.offset })
    }

    /// Takes a device by its own file, and has it reach what is mapped in an address space of iommufd.
    pub(super) fn attach(fd: OwnedFd, space: &AddressSpace) -> Result<Self, NvmeError> {
        let mut bind = vfio_device_bind_iommufd {
            argsz: size_of::<vfio_device_bind_iommufd>() as u32,
            iommufd: space.as_fd().as_raw_fd(),
            ..vfio_device_bind_iommufd::default()
        };
        with(&fd, call::DEVICE_BIND_IOMMUFD, &mut bind).map_err(|error| {
            let hint = match error {
                rustix::io::Errno::PERM => {
                    "; without interrupt remapping, /sys/module/iommufd/parameters/allow_unsafe_interrupts has to be Y"
                }
                rustix::io::Errno::BUSY => "; another process uses the device, or one of its IOMMU group",
                _ => "",
            };
            host("binding the device to iommufd", error, hint)
        })?;
        let mut attach = vfio_device_attach_iommufd_pt {
            argsz: size_of::<vfio_device_attach_iommufd_pt>() as u32,
            pt_id: space.id(),
            ..vfio_device_attach_iommufd_pt::default()
        };
        with(&fd, call::DEVICE_ATTACH_IOMMUFD_PT, &mut attach)
            .map_err(|error| host("attaching the device to an address space", error, ""))?;
        Self::new(fd, None)
    }

    /// Refuses what is no NVMe controller.
    pub(super) fn check_class(&self, address: &str) -> Result<(), NvmeError> {
        let mut class = [0; 3];
        pread(&self.fd, &mut class, self.config + PCI_CLASS)
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
        pread(&self.fd, &mut command, self.config + PCI_COMMAND)
            .map_err(|error| host("reading configuration space", error, ""))?;
        Ok(u16::from_le_bytes(command))
    }

    fn set_command(&self, command: u16) -> Result<(), NvmeError> {
        pwrite(&self.fd, &command.to_le_bytes(), self.config + PCI_COMMAND)
            .map_err(|error| host("writing configuration space", error, ""))?;
        Ok(())
    }

    /// Resets the device, and lets it answer and reach memory.
    pub(super) fn enable(&self) -> Result<(), NvmeError> {
        // Not every device can be reset; disabling the controller does what is needed.
        let _ = with_number(&self.fd, call::DEVICE_RESET, 0);
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
            unsafe { mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, &self.fd, info.offset) }
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
        with(&self.fd, call::DEVICE_GET_IRQ_INFO, &mut info)
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
        let number = VFIO_BASE + call::DEVICE_SET_IRQS;
        // SAFETY: the kernel touches no more than the words, whose size is in the first one.
        unsafe { call(&self.fd, VFIO_TYPE, number, set.as_mut_ptr().cast()) }
            .map_err(|error| host("setting up MSI-X interrupts", error, ""))?;
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
