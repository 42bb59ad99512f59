//! A Parallels image with any header and BAT.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| drystone_fuzz::targets::parallels(data));
