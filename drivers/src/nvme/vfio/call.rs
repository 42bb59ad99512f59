//! One call of the kernel, as VFIO and iommufd have them.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::os::fd::AsFd;

use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode};

/// A call, with a number or an address as its argument.
struct Call {
    opcode: Opcode,
    argument: *mut c_void,
}

// SAFETY: the opcode is one of `_IO`, whose argument the kernel takes as it is; the result is the call's own.
unsafe impl Ioctl for Call {
    type Output = i32;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.argument
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<i32> {
        Ok(out)
    }
}

/// Makes a call.
///
/// # Safety
/// What the kernel does with the argument, it may do.
pub(super) unsafe fn call(
    fd: impl AsFd,
    group: u8,
    number: u32,
    argument: *mut c_void,
) -> rustix::io::Result<i32> {
    let call = Call { opcode: opcode::none(group, number as u8), argument };
    // SAFETY: the caller's.
    unsafe { ioctl(fd, call) }
}
