//! Image formats, one folder each, with the same file names in every folder.

pub mod qcow2;
pub mod raw;
