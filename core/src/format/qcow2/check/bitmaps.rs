//! Dirty bitmaps: the directory, the tables, and the clusters that they take.
//! Source: \[qcow2\] "Bitmaps extension", "Bitmap directory", "Bitmap table".

use nom::Parser;
use nom::number::complete::{be_u8, be_u16, be_u32, be_u64};

use super::Check;
use super::overlap::{Named, disjoint};
use super::source::{Holes, READ_LEN, Source};
use super::window::Counter;
use crate::error::Result;
use crate::format::qcow2::Qcow2Error;
use crate::format::qcow2::layout::ClusterBits;
use crate::format::qcow2::lookup::be_u64 as number;

/// Bitmaps of one image at the most. Source: QEMU's limit.
const BITMAPS_MAX: u32 = 65535;
/// Bytes of a directory at the most. Source: QEMU's limit.
const DIRECTORY_LEN_MAX: u64 = 1024 * BITMAPS_MAX as u64;
/// Bytes of one stored bitmap at the most. Source: QEMU's limit.
const BITMAP_LEN_MAX: u64 = 512 << 20;
/// Entries of a bitmap table at the most. Source: QEMU's limit.
const TABLE_MAX: u32 = 0x0800_0000;
/// Fixed part of a directory entry.
const ENTRY_LEN: u64 = 24;

/// Where an image's bitmaps are.
pub(super) struct Directory {
    at: u64,
    len: u64,
    /// Bitmap tables: place and entries.
    tables: Vec<(u64, u64)>,
}

struct Entry {
    table: (u64, u64),
    len: u64,
}

impl Directory {
    /// Reads the directory that a header extension names.
    pub(super) async fn read(
        source: &Source<'_>,
        extension: &[u8],
        bits: ClusterBits,
        disk_size: u64,
    ) -> Result<Result<Self, Qcow2Error>> {
        let wrong = |problem| Ok(Err(Qcow2Error::Bitmaps { problem }));
        let Ok((_, (count, reserved, len, at))) = (be_u32, be_u32, be_u64, be_u64::<_, ()>).parse(extension)
        else {
            return wrong("the header extension is too short");
        };
        if extension.len() != 24 || reserved != 0 {
            return wrong("the header extension has unknown fields");
        }
        if count == 0 || count > BITMAPS_MAX {
            return wrong("the number of bitmaps is impossible");
        }
        if bits.offset_in(at) != 0 || at == 0 || len == 0 || len > DIRECTORY_LEN_MAX {
            return wrong("the place or length of the bitmap directory is impossible");
        }
        if at >= source.len {
            return wrong("the bitmap directory lies beyond the end of the file");
        }
        let bytes = source.read(at, len).await?;
        let mut tables = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            if tables.len() == count as usize {
                return wrong("more bitmaps are found than the header extension says");
            }
            match Entry::parse(rest, bits, disk_size) {
                Ok(entry) => {
                    tables.push(entry.table);
                    rest = &rest[entry.len as usize..];
                }
                Err(problem) => return wrong(problem),
            }
        }
        if tables.len() != count as usize {
            return wrong("fewer bitmaps are found than the header extension says");
        }
        Ok(Ok(Self { at, len, tables }))
    }
}

impl Entry {
    fn parse(bytes: &[u8], bits: ClusterBits, disk_size: u64) -> Result<Self, &'static str> {
        let mut fields = (be_u64, be_u32, be_u32, be_u8, be_u8, be_u16, be_u32::<_, ()>);
        let Ok((_, (at, entries, flags, kind, granularity, name_len, extra_len))) = fields.parse(bytes)
        else {
            return Err("the bitmap directory ends within an entry");
        };
        let len = (ENTRY_LEN + u64::from(extra_len) + u64::from(name_len)).next_multiple_of(8);
        if len > bytes.len() as u64 {
            return Err("the bitmap directory ends within an entry");
        }
        if extra_len != 0 {
            return Err("extra data of bitmaps is not supported");
        }
        let stored = u64::from(entries) << bits.bits();
        let in_use = flags & 1 != 0;
        let possible = (1..=TABLE_MAX).contains(&entries)
            && (1..=i64::MAX as u64 - DIRECTORY_LEN_MAX).contains(&at)
            && bits.offset_in(at) == 0
            && (9..=31).contains(&granularity)
            && flags & !3 == 0
            && (1..=1023).contains(&name_len)
            && kind == 1
            && stored <= BITMAP_LEN_MAX
            && (in_use || disk_size <= (stored * 8) << granularity);
        match possible {
            true => Ok(Self { table: (at, u64::from(entries)), len }),
            false => Err("a bitmap does not satisfy the constraints of the format"),
        }
    }
}

impl<C: Counter> Check<'_, C> {
    pub(super) async fn count_bitmaps(&mut self) -> Result<()> {
        let Some(directory) = self.plan.bitmaps.take() else { return Ok(()) };
        let result = self.count_directory(&directory).await;
        self.plan.bitmaps = Some(directory);
        result
    }

    async fn count_directory(&mut self, directory: &Directory) -> Result<()> {
        self.reference(directory.at, directory.len, 1);
        for (at, entries) in &directory.tables {
            self.reference(*at, entries * 8, 1);
        }
        let file_len = self.plan.source.len;
        let named = directory.tables.iter().map(|(at, entries)| Named {
            start: *at,
            end: at.saturating_add(entries * 8).min(file_len),
            times: 1,
        });
        let mut holes = Holes::of(self.plan.source);
        for Named { start, end, times } in disjoint(named) {
            let mut at = start;
            while at < end {
                let after_hole = holes.end(at).await;
                if after_hole > at {
                    at = after_hole;
                    continue;
                }
                let len = READ_LEN.min(end - at);
                let bytes = self.plan.source.read(at, len).await?;
                for entry in bytes.chunks_exact(8) {
                    self.bitmap_table_entry(number(entry, 0), times);
                }
                at += len;
            }
        }
        Ok(())
    }

    fn bitmap_table_entry(&mut self, raw: u64, times: u64) {
        const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
        const RESERVED: u64 = 0xff00_0000_0000_01fe;
        const ALL_ONES: u64 = 1;
        let at = raw & OFFSET;
        let bad =
            raw & RESERVED != 0 || at != 0 && (self.plan.bits.offset_in(at) != 0 || raw & ALL_ONES != 0);
        if bad {
            if self.first_pass {
                self.tell.corruption(times, || format!("ERROR bitmap table entry {raw:x} is corrupted"));
            }
        } else if at != 0 {
            self.reference(at, self.plan.bits.size(), times);
        }
    }
}
