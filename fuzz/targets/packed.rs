//! bochs, cloop and dmg images with some bytes changed.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| drystone_fuzz::targets::packed(data));
