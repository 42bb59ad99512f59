//! qcow2 images with some of their metadata changed.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| drystone_fuzz::targets::qcow2_fields(data));
