//! What tests that answer intents by hand have in common.

use drystone_core::intent::{LeafId, LeafInfo, LeafKind};

/// A file of a host that can do everything, without alignments.
pub fn file_info(leaf: u32, len: u64) -> LeafInfo {
    LeafInfo {
        leaf: LeafId(leaf),
        len,
        request_align: 1,
        memory_align: 1,
        preferred_size: 0,
        transfer_max: 0,
        kind: LeafKind::File,
        grows_as_zeroes: true,
        discard_zeroes: true,
        fast_zeroes: true,
    }
}
