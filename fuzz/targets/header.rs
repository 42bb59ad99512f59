//! Headers of qcow2 images: what is parsed survives encoding.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| drystone_fuzz::targets::header(data));
