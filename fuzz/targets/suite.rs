//! Requests, faults and crashes on images of QEMU's tools.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| drystone_fuzz::targets::suite(data));
