//! Table entries and refcounts: what is parsed survives encoding.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| drystone_fuzz::targets::entries(data));
