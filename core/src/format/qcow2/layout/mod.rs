//! What is on disk: every structure of a qcow2 image, as types that hold only what is legal.
//! Source: \[qcow2\], QEMU's `docs/interop/qcow2.rst`. All numbers are big-endian.
//!
//! `header` has the header and its extensions, `entry` the entries of L1, L2 and refcount tables,
//! `snapshot` the snapshot table, `luks` the header of an encrypted image.

mod entry;
mod header;
mod snapshot;

pub use entry::{
    COMPRESSED, COPIED, EntryRules, ExtendedL2Entry, L1Entry, L2Entry, OFFSET_MASK, RefcountTableEntry,
    RefcountWidth, SUBCLUSTERS, SubclusterKind, usual_place,
};
pub(super) use header::BACKING_NAME_MAX;
pub use header::{Autoclear, Compatible, Crypt, Extension, Header, Incompatible, extension_kind};
pub use snapshot::Snapshot;

use super::Qcow2Error;
pub use crate::format::{GuestOffset, HostOffset};

/// The first four bytes: `QFI\xfb`.
pub const MAGIC: u32 = 0x5146_49fb;

/// Entries of the active L1 table take 32 MiB at the most. Source: QEMU's limit.
pub const L1_LEN_MAX: u64 = 32 << 20;

/// The refcount table takes 8 MiB at the most. Source: QEMU's limit.
pub const REFCOUNT_TABLE_LEN_MAX: u64 = 8 << 20;

/// Snapshots of one image at the most. Source: QEMU's limit.
pub const SNAPSHOTS_MAX: u32 = 65536;

/// Bytes of a snapshot table at the most. Source: QEMU's limit.
pub const SNAPSHOT_TABLE_LEN_MAX: u64 = 64 << 20;

/// Host offsets have 56 bits. Source: \[qcow2\] "L1 table entry".
pub const HOST_OFFSET_MAX: u64 = 1 << 56;

/// log2 of the cluster size: 9 to 21.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterBits(u32);

impl ClusterBits {
    /// Accepts 512 bytes to 2 MiB.
    pub fn new(bits: u32) -> Option<Self> {
        (9..=21).contains(&bits).then_some(Self(bits))
    }

    /// The number of bits.
    #[inline]
    pub fn bits(self) -> u32 {
        self.0
    }

    /// Bytes of a cluster.
    #[inline]
    pub fn size(self) -> u64 {
        1 << self.0
    }

    /// Place of a byte within its cluster.
    #[inline]
    pub fn offset_in(self, offset: u64) -> u64 {
        offset & (self.size() - 1)
    }

    /// The start of the cluster that holds a byte.
    #[inline]
    pub fn start_of(self, offset: u64) -> u64 {
        offset & !(self.size() - 1)
    }

    /// Clusters that `len` bytes take.
    pub fn count(self, len: u64) -> u64 {
        len.div_ceil(self.size())
    }
}

/// Checks the place and size of a table that the header or an entry names.
pub fn check_table(
    table: &'static str,
    offset: HostOffset,
    len: u64,
    len_max: u64,
    cluster_bits: ClusterBits,
) -> Result<(), Qcow2Error> {
    if len > len_max {
        return Err(Qcow2Error::TableTooLarge { table, len, max: len_max });
    }
    let end = offset.0.checked_add(len);
    if cluster_bits.offset_in(offset.0) != 0 || end.is_none_or(|end| end >= HOST_OFFSET_MAX) {
        return Err(Qcow2Error::TableOffset { table, offset, cluster_size: cluster_bits.size() });
    }
    Ok(())
}
