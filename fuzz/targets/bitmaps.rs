//! Directories and tables of dirty bitmaps: what is parsed survives encoding, and memory is bounded by the file.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| drystone_fuzz::targets::bitmaps(data));
