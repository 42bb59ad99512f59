//! The snapshot table. Source: \[qcow2\] "Snapshots".

use nom::Parser;
use nom::bytes::complete::take;
use nom::number::complete::{be_u16, be_u32, be_u64};

use super::HostOffset;

/// Bytes of extra data that an entry may have. Source: QEMU's limit.
const EXTRA_MAX: u32 = 1024;

/// Bytes of the extra data that this program knows, and writes.
const EXTRA_KNOWN: usize = 24;

/// One entry of the snapshot table.
///
/// | bytes  | field               | unit, limits                                             |
/// |--------|---------------------|----------------------------------------------------------|
/// | 0..8   | l1_table_offset     | bytes in the file                                        |
/// | 8..12  | l1_size             | entries                                                  |
/// | 12..14 | id_str_size         | bytes                                                    |
/// | 14..16 | name_size           | bytes                                                    |
/// | 16..20 | date_sec            | seconds since 1970                                       |
/// | 20..24 | date_nsec           |                                                          |
/// | 24..32 | vm_clock_nsec       |                                                          |
/// | 32..36 | vm_state_size       | bytes; what the extra data says counts where it is there |
/// | 36..40 | extra_data_size     | bytes; version 3 has 16 at least                         |
/// | 40..   | extra data          | vm_state_size u64, disk size u64, icount u64, unknown    |
/// |        | id, name            | zeros up to a multiple of 8                              |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Place of its L1 table.
    pub l1_offset: HostOffset,
    /// Entries of its L1 table.
    pub l1_entries: u32,
    /// Its id: a number in practice, a string by the format.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was taken: seconds since 1970.
    pub seconds: u32,
    /// …and nanoseconds.
    pub nanoseconds: u32,
    /// How long the guest had run, in nanoseconds.
    pub guest_nanoseconds: u64,
    /// Bytes of saved machine state.
    pub vm_state_len: u64,
    /// Length of the disk at the time; the image's own where the entry does not say.
    pub disk_size: Option<u64>,
    /// Instruction count, where it was recorded.
    pub icount: Option<u64>,
    /// Extra data that this program does not know; kept.
    pub unknown_extra: Vec<u8>,
    /// Bytes of the entry in the table, with its padding.
    pub entry_len: u64,
}

impl Snapshot {
    /// Reads the entry at the start of `bytes`.
    ///
    /// # Errors
    /// Names the field that does not fit; `bytes` holds too little of the table then, or the entry is damaged.
    pub fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let mut fixed = (be_u64, be_u32, be_u16, be_u16, be_u32, be_u32, be_u64, be_u32, be_u32);
        let (rest, fields) = (fixed.parse(bytes)).map_err(|_: nom::Err<()>| "the fixed fields")?;
        let (l1_offset, l1_entries, id_len, name_len, seconds, nanoseconds, guest, state, extra_len) = fields;
        if extra_len > EXTRA_MAX {
            return Err("the length of the extra data");
        }
        let mut parts = (take::<_, _, ()>(extra_len), take(id_len), take(name_len));
        let (_, (extra, id, name)) = parts.parse(rest).map_err(|_| "the extra data, id or name")?;
        let number =
            |at: usize| extra.get(at..at + 8).map(|b| u64::from_be_bytes(b.try_into().expect("eight")));
        let len = 40 + u64::from(extra_len) + u64::from(id_len) + u64::from(name_len);
        Ok(Self {
            l1_offset: HostOffset(l1_offset),
            l1_entries,
            id: String::from_utf8_lossy(id).into_owned(),
            name: String::from_utf8_lossy(name).into_owned(),
            seconds,
            nanoseconds,
            guest_nanoseconds: guest,
            vm_state_len: number(0).unwrap_or(u64::from(state)),
            disk_size: number(8),
            icount: number(16).filter(|count| *count != u64::MAX),
            unknown_extra: extra.get(EXTRA_KNOWN..).unwrap_or_default().to_vec(),
            entry_len: len.next_multiple_of(8),
        })
    }

    /// The entry in the table, with all the extra data that is known and its padding. Id and name have at most 65535
    /// bytes.
    pub fn encode(&self) -> Vec<u8> {
        let len16 = |text: &str| u16::try_from(text.len()).expect("ids and names are short").to_be_bytes();
        let extra_len = u32::try_from(EXTRA_KNOWN + self.unknown_extra.len()).expect("at most 1024 bytes");
        let mut out = Vec::with_capacity(40 + extra_len as usize + self.id.len() + self.name.len() + 8);
        out.extend(self.l1_offset.0.to_be_bytes());
        out.extend(self.l1_entries.to_be_bytes());
        out.extend(len16(&self.id));
        out.extend(len16(&self.name));
        out.extend(self.seconds.to_be_bytes());
        out.extend(self.nanoseconds.to_be_bytes());
        out.extend(self.guest_nanoseconds.to_be_bytes());
        // Who reads only this field takes a state that does not fit it for none.
        out.extend(u32::try_from(self.vm_state_len).unwrap_or(0).to_be_bytes());
        out.extend(extra_len.to_be_bytes());
        out.extend(self.vm_state_len.to_be_bytes());
        out.extend(self.disk_size.unwrap_or(0).to_be_bytes());
        out.extend(self.icount.unwrap_or(u64::MAX).to_be_bytes());
        out.extend(&self.unknown_extra);
        out.extend(self.id.as_bytes());
        out.extend(self.name.as_bytes());
        out.resize(out.len().next_multiple_of(8), 0);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_entry_survives_encoding(
            id in "[0-9]{1,5}", name in "[a-zä ]{0,40}", numbers: (u64, u32, u32, u32, u64), state: u64, disk: u64,
            icount in proptest::option::of(0..u64::MAX), unknown in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut entry = Snapshot {
                l1_offset: HostOffset(numbers.0),
                l1_entries: numbers.1,
                id,
                name,
                seconds: numbers.2,
                nanoseconds: numbers.3,
                guest_nanoseconds: numbers.4,
                vm_state_len: state,
                disk_size: Some(disk),
                icount,
                unknown_extra: unknown,
                entry_len: 0,
            };
            let bytes = entry.encode();
            entry.entry_len = bytes.len() as u64;
            prop_assert_eq!(Snapshot::parse(&bytes), Ok(entry));
        }
    }
}
