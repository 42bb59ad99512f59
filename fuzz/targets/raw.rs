//! Requests, faults and crashes on raw images.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| drystone_fuzz::targets::raw(data));
