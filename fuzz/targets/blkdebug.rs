//! A config file of blkdebug.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| drystone_fuzz::targets::blkdebug(data));
