//! Power cuts at every moment of a few requests on qcow2 images of every make.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| drystone_fuzz::targets::crashes(data));
