//! Memory of this process, before and while devices reach it.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use super::host;
use crate::nvme::error::NvmeError;

/// Bytes from which memory is worth large pages.
const HUGE_PAGE: usize = 2 << 20;

/// Pages of the kernel.
pub(super) struct Pages {
    start: NonNull<u8>,
    len: usize,
    leak: bool,
}

// SAFETY: the pages are touched only as `DmaMemory` allows.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Pages {
    pub(super) fn new(len: usize) -> Result<Self, NvmeError> {
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

    /// First byte.
    pub(super) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Bytes.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Has the pages stay when this is dropped, for they are still within reach of a device.
    pub(super) fn leak(&mut self) {
        self.leak = true;
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
