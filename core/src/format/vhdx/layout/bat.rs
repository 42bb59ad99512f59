//! Entries of the block allocation table. Source: \[VHDX\] 2.5.1.
//!
//! After the entries of as many payload blocks as a sector bitmap block has bits for (the chunk ratio) comes the entry of
//! that sector bitmap block.

use crate::format::HostOffset;

/// Bits 20..64 are a place in the file; bits 3..20 are reserved.
const PLACE: u64 = !0xf_ffff;

/// The entry of a payload block: bits 0..3 are the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadEntry {
    /// Never written: the parent, or zeros without one.
    NotPresent,
    /// Written, and anything since; zeros here.
    Undefined,
    /// Zeros.
    Zero,
    /// Given up; zeros here. Version 0.95 has another number for it.
    Unmapped,
    /// In the file.
    FullyPresent(HostOffset),
    /// Some sectors are in the file, as the sector bitmap says; the rest is the parent's.
    PartiallyPresent(HostOffset),
}

impl PayloadEntry {
    /// Parses an entry; none where its state has no meaning.
    pub fn parse(raw: u64) -> Option<Self> {
        let place = HostOffset(raw & PLACE);
        Some(match raw & 7 {
            0 => Self::NotPresent,
            1 => Self::Undefined,
            2 => Self::Zero,
            3 | 5 => Self::Unmapped,
            6 => Self::FullyPresent(place),
            7 => Self::PartiallyPresent(place),
            _ => return None,
        })
    }

    /// The exact inverse, for places at whole MiB.
    pub fn encode(self) -> u64 {
        match self {
            Self::NotPresent => 0,
            Self::Undefined => 1,
            Self::Zero => 2,
            Self::Unmapped => 3,
            Self::FullyPresent(place) => place.0 | 6,
            Self::PartiallyPresent(place) => place.0 | 7,
        }
    }
}

/// The entry of a sector bitmap block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitmapEntry {
    /// No sector of the chunk's blocks is in this file by a bitmap.
    NotPresent,
    /// 1 MiB: a bit for each sector of the chunk, the first one the lowest bit of the first byte.
    Present(HostOffset),
}

impl BitmapEntry {
    /// Parses an entry; none where its state has no meaning.
    pub fn parse(raw: u64) -> Option<Self> {
        match raw & 7 {
            0 => Some(Self::NotPresent),
            6 => Some(Self::Present(HostOffset(raw & PLACE))),
            _ => None,
        }
    }

    /// The exact inverse, for places at whole MiB.
    pub fn encode(self) -> u64 {
        match self {
            Self::NotPresent => 0,
            Self::Present(place) => place.0 | 6,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parse_is_the_inverse_of_encode(mib in 0u64..1 << 44) {
            let place = HostOffset(mib << 20);
            for entry in [
                PayloadEntry::NotPresent,
                PayloadEntry::Undefined,
                PayloadEntry::Zero,
                PayloadEntry::Unmapped,
                PayloadEntry::FullyPresent(place),
                PayloadEntry::PartiallyPresent(place),
            ] {
                prop_assert_eq!(PayloadEntry::parse(entry.encode()), Some(entry));
            }
            for entry in [BitmapEntry::NotPresent, BitmapEntry::Present(place)] {
                prop_assert_eq!(BitmapEntry::parse(entry.encode()), Some(entry));
            }
        }
    }

    #[test]
    fn states_without_a_meaning_are_none() {
        assert_eq!(PayloadEntry::parse(4), None);
        assert_eq!(PayloadEntry::parse(5), Some(PayloadEntry::Unmapped), "version 0.95");
        assert!([1, 2, 3, 4, 5, 7].into_iter().all(|raw| BitmapEntry::parse(raw).is_none()));
    }
}
