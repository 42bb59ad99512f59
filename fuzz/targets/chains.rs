//! A child of a VMDK, VHDX or VHD image, or a disk of extents of any kind, with any bytes in any of the files.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| drystone_fuzz::targets::chains(data));
