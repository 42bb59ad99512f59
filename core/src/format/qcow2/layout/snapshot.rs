//! The snapshot table. Source: \[qcow2\] "Snapshots".

use nom::Parser;
use nom::bytes::complete::take;
use nom::number::complete::{be_u16, be_u32, be_u64};

use super::HostOffset;

/// Bytes of extra data that an entry may have. Source: QEMU's limit.
const EXTRA_MAX: u32 = 1024;

/// One entry of the snapshot table.
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
            entry_len: len.next_multiple_of(8),
        })
    }
}
