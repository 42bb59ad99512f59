//! Drivers in user space: what speaks to hardware through rings in shared memory.
//!
//! Start at [`nvme`].
#![deny(unsafe_code)]

pub mod nvme;
