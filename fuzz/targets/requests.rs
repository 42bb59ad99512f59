//! Requests on qcow2 images of every make, against a flat disk.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| drystone_fuzz::targets::requests(data));
