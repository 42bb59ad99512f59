//! What the kernel has of a file in memory.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::libc;

/// The call's number, the same on all processors. Source: linux/include/uapi/asm-generic/unistd.h, since Linux 6.5.
const CACHESTAT: libc::c_long = 451;

/// Source: linux/include/uapi/linux/mman.h, `struct cachestat_range`.
#[repr(C)]
struct Range {
    offset: u64,
    len: u64,
}

/// Source: linux/include/uapi/linux/mman.h, `struct cachestat`. Numbers of pages.
#[repr(C)]
#[derive(Default)]
struct Pages {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Whether all pages of a range are in memory now, which is not empty; nobody keeps them there. Where the kernel does not
/// tell (before 6.5, or of files that are not ours to write), none is.
pub(crate) fn is_cached(file: BorrowedFd<'_>, offset: u64, len: u64) -> bool {
    let range = Range { offset, len };
    let mut pages = Pages::default();
    // SAFETY: the kernel reads one structure and writes the other, both of which are as it declares them, during the call only.
    let failed =
        unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), &raw const range, &raw mut pages, 0_u32) };
    let page = rustix::param::page_size() as u64;
    let asked = (offset + len - 1) / page - offset / page + 1;
    failed == 0 && pages.cached >= asked
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn what_was_just_written_is_cached_and_a_hole_is_not() {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&[1; 10_000]).expect("room");
        file.set_len(1 << 20).expect("a hole");
        // A kernel that does not know says no to both.
        let known = is_cached(file.as_fd(), 0, 1);
        for (offset, len, cached) in
            [(0, 10_000, true), (8191, 2, true), (8192, 8192, false), (500_000, 1, false)]
        {
            assert_eq!(is_cached(file.as_fd(), offset, len), cached && known, "{offset}+{len}");
        }
        if !known {
            eprintln!("skipped: this kernel does not tell what it has cached");
        }
    }
}
