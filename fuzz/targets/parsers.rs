//! Structures of formats and of NBD that whole images and sessions seldom reach.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| drystone_fuzz::targets::parsers(data));
