//! A VDI image with any header and block map.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| drystone_fuzz::targets::vdi(data));
