//! JSON text: what is parsed survives printing.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| drystone_fuzz::targets::json(data));
