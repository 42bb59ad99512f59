//! Entries of the L1 table, of L2 tables, of the refcount table, and refcounts.

use super::{ClusterBits, HOST_OFFSET_MAX, HostOffset};
use crate::format::qcow2::Qcow2Error;

/// Bits 9 to 55: a host offset.
pub const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit 63: the refcount of what the entry points to is exactly one.
pub const COPIED: u64 = 1 << 63;
/// Bit 62 of an L2 entry: a compressed cluster.
pub const COMPRESSED: u64 = 1 << 62;
/// Bit 0 of a standard L2 entry, from version 3 on: the cluster reads as zeros.
const ZERO: u64 = 1;

/// Compressed data is counted in sectors.
const SECTOR: u64 = 512;

/// Subclusters of a cluster with extended L2 entries.
pub const SUBCLUSTERS: u32 = 32;

/// What the header says about how L2 entries are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryRules {
    /// Cluster size.
    pub cluster_bits: ClusterBits,
    /// Guest data is in a data file, where offset 0 is a place like any other.
    pub data_file: bool,
    /// Extended L2 entries, where bit 0 has no meaning.
    pub extended: bool,
    /// Version of the format: 2 has no zero flag.
    pub version: u32,
}

impl EntryRules {
    /// The bits that make a standard L2 entry, or an L1 entry, more than the place of a cluster.
    pub fn unusual(&self) -> u64 {
        COMPRESSED | ZERO | OFFSET_MASK & (self.cluster_bits.size() - 1)
    }
}

/// The place in an entry that has none of the [unusual](EntryRules::unusual) bits; nothing if there is none, or has some.
#[inline(always)]
pub fn usual_place(raw: u64, unusual: u64) -> Option<HostOffset> {
    let at = raw & OFFSET_MASK;
    (raw & unusual == 0 && at != 0).then_some(HostOffset(at))
}

/// L1 table entry. Source: \[qcow2\] "L1 table entry".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L1Entry {
    /// No L2 table: all clusters of its range are unallocated.
    Unallocated,
    /// An L2 table.
    Table {
        /// Its place, whole clusters.
        at: HostOffset,
        /// Whether its refcount is exactly one, so that it may be changed.
        copied: bool,
    },
}

impl L1Entry {
    /// Reads an entry. An offset of 0 is no table, whatever the other bits say.
    #[inline]
    pub fn parse(raw: u64, cluster_bits: ClusterBits) -> Result<Self, Qcow2Error> {
        let at = raw & OFFSET_MASK;
        if at == 0 {
            return Ok(Self::Unallocated);
        }
        if cluster_bits.offset_in(at) != 0 {
            return Err(Qcow2Error::Misaligned { what: "L2 table", raw, cluster_size: cluster_bits.size() });
        }
        Ok(Self::Table { at: HostOffset(at), copied: raw & COPIED != 0 })
    }

    /// The inverse of [`parse`](Self::parse).
    pub fn encode(self) -> u64 {
        match self {
            Self::Unallocated => 0,
            Self::Table { at, copied } => at.0 | if copied { COPIED } else { 0 },
        }
    }
}

/// Standard L2 table entry. Source: \[qcow2\] "Standard Cluster Descriptor", "Compressed Clusters Descriptor".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L2Entry {
    /// What the backing file says, or zeros.
    Unallocated,
    /// A cluster of data.
    Standard {
        /// Its place.
        host: HostOffset,
        /// Whether its refcount is exactly one, so that it may be overwritten.
        copied: bool,
    },
    /// The cluster reads as zeros.
    Zero {
        /// A cluster that is kept for it all the same.
        host: Option<HostOffset>,
        /// As for [`Standard`](Self::Standard).
        copied: bool,
    },
    /// Compressed data, whose end within its last sector is unknown.
    Compressed {
        /// First byte; need not be aligned to anything.
        host: HostOffset,
        /// Bytes to the end of the last sector.
        len: u32,
    },
}

impl L2Entry {
    /// Reads an entry.
    #[inline]
    pub fn parse(raw: u64, rules: &EntryRules) -> Result<Self, Qcow2Error> {
        if raw & COMPRESSED != 0 {
            return Ok(Self::parse_compressed(raw, rules.cluster_bits));
        }
        let (at, copied) = (raw & OFFSET_MASK, raw & COPIED != 0);
        if rules.cluster_bits.offset_in(at) != 0 {
            let cluster_size = rules.cluster_bits.size();
            return Err(Qcow2Error::Misaligned { what: "data cluster", raw, cluster_size });
        }
        let there = at != 0 || (rules.data_file && copied);
        if raw & ZERO != 0 && !rules.extended {
            if rules.version < 3 {
                return Err(Qcow2Error::ZeroFlagInVersion2 { raw });
            }
            return Ok(Self::Zero { host: there.then_some(HostOffset(at)), copied });
        }
        Ok(if there { Self::Standard { host: HostOffset(at), copied } } else { Self::Unallocated })
    }

    fn parse_compressed(raw: u64, cluster_bits: ClusterBits) -> Self {
        let split = 62 - (cluster_bits.bits() - 8);
        let host = (raw & ((1 << split) - 1)) & (HOST_OFFSET_MAX - 1);
        let more_sectors = (raw & (COMPRESSED - 1)) >> split;
        let len = (more_sectors + 1) * SECTOR - host % SECTOR;
        Self::Compressed { host: HostOffset(host), len: u32::try_from(len).expect("at most 2^14 sectors") }
    }

    /// The inverse of [`parse`](Self::parse).
    pub fn encode(self, rules: &EntryRules) -> u64 {
        let flag = |copied| if copied { COPIED } else { 0 };
        match self {
            Self::Unallocated => 0,
            Self::Standard { host, copied } => host.0 | flag(copied),
            Self::Zero { host, copied } => host.map_or(0, |host| host.0) | flag(copied) | ZERO,
            Self::Compressed { host, len } => {
                let split = 62 - (rules.cluster_bits.bits() - 8);
                let sectors = (host.0 % SECTOR + u64::from(len)).div_ceil(SECTOR);
                COMPRESSED | (sectors - 1) << split | host.0
            }
        }
    }

    /// The cluster that the entry owns or shares, unless it is compressed.
    pub fn host(self) -> Option<HostOffset> {
        match self {
            Self::Standard { host, .. } => Some(host),
            Self::Zero { host, .. } => host,
            Self::Unallocated | Self::Compressed { .. } => None,
        }
    }

    /// The bytes of host clusters to which the entry is a reference: start and length.
    pub fn reference(self, cluster_bits: ClusterBits) -> Option<(HostOffset, u64)> {
        match self {
            Self::Compressed { host, len } => Some((host, u64::from(len))),
            other => other.host().map(|host| (host, cluster_bits.size())),
        }
    }

    /// Whether the entry says that it may be changed in place.
    pub fn copied(self) -> bool {
        matches!(self, Self::Standard { copied: true, .. } | Self::Zero { copied: true, .. })
    }

    /// The same entry with the flag that says whether its refcount is one.
    #[must_use]
    pub fn with_copied(self, copied: bool) -> Self {
        match self {
            Self::Standard { host, .. } => Self::Standard { host, copied },
            Self::Zero { host: Some(host), .. } => Self::Zero { host: Some(host), copied },
            other => other,
        }
    }
}

/// L2 entry with a bitmap of 32 subclusters. Source: \[qcow2\] "Extended L2 Entries".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtendedL2Entry {
    /// The first eight bytes; never [`L2Entry::Zero`].
    pub entry: L2Entry,
    /// One bit a subcluster: its data is in the cluster.
    pub allocated: u32,
    /// One bit a subcluster: it reads as zeros.
    pub zero: u32,
}

/// What one subcluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubclusterKind {
    /// Its data is in the cluster.
    Allocated,
    /// It reads as zeros.
    Zero,
    /// It reads as the backing file says.
    Unallocated,
}

impl ExtendedL2Entry {
    /// Reads the entry and its bitmap.
    #[inline]
    pub fn parse(raw: u64, bitmap: u64, rules: &EntryRules) -> Result<Self, Qcow2Error> {
        let entry = L2Entry::parse(raw, rules)?;
        let (allocated, zero) = (bitmap as u32, (bitmap >> 32) as u32);
        let legal = match entry {
            L2Entry::Compressed { .. } => bitmap == 0,
            L2Entry::Unallocated => allocated == 0,
            _ => allocated & zero == 0,
        };
        if !legal {
            return Err(Qcow2Error::SubclusterBitmap { raw, bitmap });
        }
        Ok(Self { entry, allocated, zero })
    }

    /// The inverse of [`parse`](Self::parse): the entry and its bitmap.
    pub fn encode(self, rules: &EntryRules) -> (u64, u64) {
        (self.entry.encode(rules), u64::from(self.zero) << 32 | u64::from(self.allocated))
    }

    /// What subcluster `first` is, and how many from there on are alike.
    #[inline]
    pub fn run_at(self, first: u32) -> (SubclusterKind, u32) {
        let (allocated, zero) = (self.allocated >> first, self.zero >> first);
        let (kind, same) = if allocated & 1 == 1 {
            (SubclusterKind::Allocated, allocated)
        } else if zero & 1 == 1 {
            (SubclusterKind::Zero, zero)
        } else {
            (SubclusterKind::Unallocated, !(allocated | zero))
        };
        (kind, (!same).trailing_zeros().min(SUBCLUSTERS - first))
    }
}

/// Refcount table entry. Source: \[qcow2\] "Refcount table entry".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefcountTableEntry(u64);

impl RefcountTableEntry {
    /// Reads the entry that has number `index`.
    pub fn parse(raw: u64, index: u64, cluster_bits: ClusterBits) -> Result<Self, Qcow2Error> {
        let at = raw & !(SECTOR - 1);
        if cluster_bits.offset_in(at) != 0 || at >= HOST_OFFSET_MAX {
            return Err(Qcow2Error::RefcountBlockOffset { index, raw, cluster_size: cluster_bits.size() });
        }
        Ok(Self(at))
    }

    /// The entry that points to a block.
    pub fn of(block: HostOffset) -> Self {
        Self(block.0)
    }

    /// The block it points to.
    pub fn block(self) -> Option<HostOffset> {
        (self.0 != 0).then_some(HostOffset(self.0))
    }

    /// The inverse of [`parse`](Self::parse).
    pub fn encode(self) -> u64 {
        self.0
    }
}

/// Bits of a refcount: 1 to 64, a power of two. Source: \[qcow2\] "Refcount block entry".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefcountWidth(u32);

impl RefcountWidth {
    /// From log2 of the bits, at most 6.
    pub fn new(order: u32) -> Option<Self> {
        (order <= 6).then_some(Self(order))
    }

    /// log2 of the bits.
    pub fn order(self) -> u32 {
        self.0
    }

    /// Number of bits.
    pub fn bits(self) -> u32 {
        1 << self.0
    }

    /// The highest count.
    pub fn max(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }

    /// Refcount number `index` of a block, or of a part of one.
    #[inline]
    pub fn get(self, block: &[u8], index: usize) -> u64 {
        match self.0 {
            order @ 0..3 => {
                let bit = index << order;
                u64::from(block[bit / 8] >> (bit % 8)) & self.max()
            }
            3 => u64::from(block[index]),
            4 => u64::from(u16::from_be_bytes([block[2 * index], block[2 * index + 1]])),
            5 => u64::from(u32::from_be_bytes(block[4 * index..][..4].try_into().expect("four bytes"))),
            _ => u64::from_be_bytes(block[8 * index..][..8].try_into().expect("eight bytes")),
        }
    }

    /// Sets refcount number `index`; `count` is at most [`max`](Self::max).
    pub fn set(self, block: &mut [u8], index: usize, count: u64) {
        match self.0 {
            order @ 0..3 => {
                let bit = index << order;
                let mask = (self.max() as u8) << (bit % 8);
                let byte = &mut block[bit / 8];
                *byte = *byte & !mask | (count as u8) << (bit % 8);
            }
            3 => block[index] = count as u8,
            4 => block[2 * index..][..2].copy_from_slice(&(count as u16).to_be_bytes()),
            5 => block[4 * index..][..4].copy_from_slice(&(count as u32).to_be_bytes()),
            _ => block[8 * index..][..8].copy_from_slice(&count.to_be_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rules(bits: u32, extended: bool) -> EntryRules {
        let cluster_bits = ClusterBits::new(bits).expect("legal");
        EntryRules { cluster_bits, data_file: false, extended, version: 3 }
    }

    #[test]
    fn an_l1_entry_without_an_offset_is_no_table_even_with_the_copied_bit() {
        let bits = ClusterBits::new(16).expect("legal");
        assert_eq!(L1Entry::parse(COPIED, bits), Ok(L1Entry::Unallocated));
        assert!(L1Entry::parse(0x1_0200, bits).is_err());
    }

    #[test]
    fn version_2_has_no_zero_flag() {
        let rules = EntryRules { version: 2, ..rules(16, false) };
        assert_eq!(L2Entry::parse(ZERO, &rules), Err(Qcow2Error::ZeroFlagInVersion2 { raw: ZERO }));
    }

    #[test]
    fn subclusters_run_until_the_kind_changes() {
        let entry = ExtendedL2Entry {
            entry: L2Entry::Standard { host: HostOffset(1 << 16), copied: true },
            allocated: 0b0000_0011,
            zero: 0b0001_1000,
        };
        assert_eq!(entry.run_at(0), (SubclusterKind::Allocated, 2));
        assert_eq!(entry.run_at(2), (SubclusterKind::Unallocated, 1));
        assert_eq!(entry.run_at(3), (SubclusterKind::Zero, 2));
        assert_eq!(entry.run_at(5), (SubclusterKind::Unallocated, 27));
        let full = ExtendedL2Entry { allocated: u32::MAX, zero: 0, ..entry };
        assert_eq!(full.run_at(7), (SubclusterKind::Allocated, 25));
    }

    proptest! {
        #[test]
        fn l2_entries_survive_encoding(raw: u64, bits in 9u32..=21) {
            let rules = rules(bits, false);
            if let Ok(entry) = L2Entry::parse(raw, &rules) {
                prop_assert_eq!(L2Entry::parse(entry.encode(&rules), &rules), Ok(entry));
            }
        }

        #[test]
        fn extended_entries_survive_encoding(raw: u64, bitmap: u64) {
            let rules = rules(16, true);
            if let Ok(entry) = ExtendedL2Entry::parse(raw, bitmap, &rules) {
                let (raw, bitmap) = entry.encode(&rules);
                prop_assert_eq!(ExtendedL2Entry::parse(raw, bitmap, &rules), Ok(entry));
            }
        }

        #[test]
        fn a_refcount_changes_alone(order in 0u32..=6, index in 0usize..64, count: u64, old: u8) {
            let width = RefcountWidth::new(order).expect("legal");
            let count = count & width.max();
            let mut block = [old; 512];
            let before: Vec<_> = (0..64).map(|i| width.get(&block, i)).collect();
            width.set(&mut block, index, count);
            for (i, before) in before.into_iter().enumerate() {
                prop_assert_eq!(width.get(&block, i), if i == index { count } else { before });
            }
        }
    }
}
