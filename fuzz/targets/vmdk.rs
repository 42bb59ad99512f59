//! A VMDK image with any header, descriptor and tables.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| drystone_fuzz::targets::vmdk(data));
