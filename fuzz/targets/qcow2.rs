//! Any bytes as a qcow2 image.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| drystone_fuzz::targets::qcow2(data));
