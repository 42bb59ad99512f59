//! The kernel's iommufd: an address space that devices are attached to by their own files. Source: linux/iommufd.h.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use super::call::call;
use super::host;
use super::pages::Pages;
use crate::nvme::error::NvmeError;

/// `IOMMUFD_TYPE`.
const TYPE: u8 = b';';

/// Numbers of calls.
mod number {
    pub(super) const IOAS_ALLOC: u32 = 0x81;
    pub(super) const IOAS_MAP: u32 = 0x85;
    pub(super) const IOAS_UNMAP: u32 = 0x86;
}

/// The mapping is to be at the address that is given; the device may write, and read.
const MAP_FLAGS: u32 = 1 << 0 | 1 << 1 | 1 << 2;

/// `struct iommu_ioas_alloc`.
#[repr(C)]
struct Alloc {
    size: u32,
    flags: u32,
    out_ioas_id: u32,
}

/// `struct iommu_ioas_map`.
#[repr(C)]
struct Map {
    size: u32,
    flags: u32,
    ioas_id: u32,
    reserved: u32,
    user_va: u64,
    length: u64,
    iova: u64,
}

/// `struct iommu_ioas_unmap`.
#[repr(C)]
struct Unmap {
    size: u32,
    ioas_id: u32,
    iova: u64,
    length: u64,
}

/// A call whose argument is a structure that says its own size.
fn with<T>(fd: impl AsFd, number: u32, argument: &mut T) -> rustix::io::Result<i32> {
    // SAFETY: the kernel touches no more than the structure, whose size is in its first field.
    unsafe { call(fd, TYPE, number, std::ptr::from_mut(argument).cast()) }
}

/// An I/O address space, which goes with its descriptor.
pub(super) struct AddressSpace {
    fd: OwnedFd,
    id: u32,
}

impl AddressSpace {
    /// Makes an empty one; nothing where this kernel has no iommufd, or does not give it to this process.
    pub(super) fn new() -> Result<Option<Self>, NvmeError> {
        let Ok(fd) = open("/dev/iommu", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) else {
            return Ok(None);
        };
        let mut alloc = Alloc { size: size_of::<Alloc>() as u32, flags: 0, out_ioas_id: 0 };
        with(&fd, number::IOAS_ALLOC, &mut alloc)
            .map_err(|error| host("making an address space", error, ""))?;
        Ok(Some(Self { fd, id: alloc.out_ioas_id }))
    }

    /// Names it, to who attaches a device.
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// Maps memory for the devices.
    pub(super) fn map(&self, pages: &Pages, iova: u64) -> Result<(), Errno> {
        let mut map = Map {
            size: size_of::<Map>() as u32,
            flags: MAP_FLAGS,
            ioas_id: self.id,
            reserved: 0,
            user_va: pages.start().as_ptr() as u64,
            length: pages.len() as u64,
            iova,
        };
        with(&self.fd, number::IOAS_MAP, &mut map).map(drop)
    }

    /// Takes memory from the devices.
    pub(super) fn unmap(&self, len: usize, iova: u64) -> Result<(), Errno> {
        let mut unmap = Unmap { size: size_of::<Unmap>() as u32, ioas_id: self.id, iova, length: len as u64 };
        with(&self.fd, number::IOAS_UNMAP, &mut unmap).map(drop)
    }
}

impl AsFd for AddressSpace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
