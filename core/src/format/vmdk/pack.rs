//! Compressed grains: packed sector after sector behind a marker each, read and written with one codec call.
//!
//! Order on disk of a new grain: the grain, then the grain table's entry (`flush`). A grain that is there is never written
//! again: what would take its place may not fit.

use super::layout::{GRAIN_MARKER_LEN, GrainMarker, SECTOR};
use super::sparse::{Encoding, Entry, Found, Packing, Sparse};
use super::{Missing, Vmdk, VmdkError, whole_sectors};
use crate::buf::{Buf, BufList};
use crate::compute::{Codec, Compute};
use crate::engine::Io;
use crate::error::Result;
use crate::format::HostOffset;
use crate::graph::driver::{Driver, Role};
use crate::intent::Fua;

/// Where a grain is packed.
struct Packed {
    at: u64,
    /// Bytes up to the grain behind it, or as many as there may be.
    room: u64,
}

/// Bytes of a packed grain at the most. Source: `qemu-img`'s limit.
fn packed_max(sparse: &Sparse) -> u64 {
    2 * sparse.grain_len
}

impl Vmdk {
    /// Reads a part of one packed grain.
    pub(super) async fn read_packed(&self, io: &Io, offset: u64, data: &mut BufList) -> Result<()> {
        let (number, sparse, within) = self.sparse_at(offset);
        let (grain, in_grain) = (within / sparse.grain_len, (within % sparse.grain_len) as usize);
        let place = self.place_of(io, number, grain).await?;
        let packed = self.read_stream(io, sparse, grain, &place).await?;
        // The last grain may be more than the disk has.
        let plain_len = sparse.grain_len.min(sparse.len - grain * sparse.grain_len) as usize;
        // A read of the whole grain is decompressed where it is wanted.
        let whole = data.len_bytes() == plain_len && data.windows().len() == 1;
        let plain = if whole { std::mem::take(data).into_single() } else { Buf::zeroed(plain_len) };
        let work = Compute::Decompress { codec: Codec::ZlibStream, packed, plain };
        let computed = io.compute("vmdk.decompress", work).await;
        match whole {
            true => *data = computed.output.into(),
            false => data.copy_in(0, &computed.output[in_grain..]),
        }
        computed.result.map_err(|error| {
            let (file, at, problem) = (sparse.file.clone(), place.at, error.to_string());
            self.fail(VmdkError::Packed { file, grain, at, problem })
        })
    }

    /// Where a grain is that was seen to be packed.
    async fn place_of(&self, io: &Io, number: usize, grain: u64) -> Result<Packed> {
        let sparse = self.parts[number].sparse().expect("packed grains are in sparse extents");
        loop {
            let (slot, index) = match sparse.find(grain).map_err(|fault| self.fail(fault))? {
                Found::At(slot, index) => (slot, index),
                Found::Miss(table) => {
                    self.load(io, Missing::Table(table).miss(number)).await?;
                    continue;
                }
                Found::NoTable => unreachable!("a packed grain has a table"),
            };
            let tables = sparse.tables.borrow();
            let table = tables.bytes(slot);
            let entry = |nth: u64| sparse.entry(table, index + nth as usize, grain + nth);
            let Entry::Grain(at) = entry(0).map_err(|fault| self.fail(fault))? else {
                unreachable!("a packed grain stays one")
            };
            let left = sparse.table_entries - grain % sparse.table_entries;
            let next = (1..left).find_map(|nth| match entry(nth) {
                Ok(Entry::Grain(next)) => Some(next),
                _ => None,
            });
            let end = sparse.space.end.get();
            let next = next.filter(|next| *next > at).unwrap_or(end).min(end);
            return Ok(Packed { at, room: (next - at).min(packed_max(sparse)) });
        }
    }

    /// Reads a grain's compressed stream, after its marker.
    async fn read_stream(&self, io: &Io, sparse: &Sparse, grain: u64, place: &Packed) -> Result<Buf> {
        let (file, at) = (io.child(sparse.role), place.at);
        let mut bytes = io.read_bytes("vmdk.decompress/read", file, at, place.room as usize).await?;
        if sparse.packing == Packing::Bare {
            return Ok(bytes);
        }
        let wrong = |field, found, expected| {
            self.fail(VmdkError::Marker { file: sparse.file.clone(), grain, at, field, found, expected })
        };
        let Some(marker) = GrainMarker::parse(&bytes) else {
            return Err(wrong("length", place.room, GRAIN_MARKER_LEN as u64));
        };
        let sector = grain * (sparse.grain_len / SECTOR);
        if marker.sector != sector {
            return Err(wrong("sector", marker.sector, sector));
        }
        let len = GRAIN_MARKER_LEN as u64 + u64::from(marker.len);
        let most = packed_max(sparse).min(sparse.space.end.get() - at);
        if marker.len == 0 || len > most {
            return Err(wrong("length", marker.len.into(), most - GRAIN_MARKER_LEN as u64));
        }
        if len > bytes.len() as u64 {
            // The next grain of the disk is not the next one of the file.
            bytes = io.read_bytes("vmdk.decompress/read", file, at, len as usize).await?;
        }
        drop(bytes.split_off(len as usize));
        Ok(bytes.split_off(GRAIN_MARKER_LEN))
    }

    /// Writes whole grains, each packed.
    pub(super) async fn write_packed(&self, io: &Io, offset: u64, data: &mut BufList) -> Result<()> {
        let mut rest = std::mem::take(data);
        let mut at = offset;
        let mut result = Ok(());
        while !rest.is_empty() && result.is_ok() {
            let (_, sparse, within) = self.sparse_at(at);
            let room = (sparse.grain_len - within % sparse.grain_len).min(rest.len_bytes() as u64);
            let mut grain = rest.split_to(room as usize);
            result = self.write_grain(io, at, &mut grain).await;
            data.append(grain);
            at += room;
        }
        data.append(rest);
        result
    }

    async fn write_grain(&self, io: &Io, offset: u64, data: &mut BufList) -> Result<()> {
        let (number, sparse, within) = self.sparse_at(offset);
        let len = data.len_bytes() as u64;
        if !is_whole(sparse, within, len) {
            return Err(self.fail(VmdkError::PartOfGrain { grain: sparse.grain_len, len, offset }));
        }
        let grain = within / sparse.grain_len;
        let node = io.shared().graph.node(io.node());
        let _claim = node.claims.take(&io.shared().tasks, offset, offset + sparse.grain_len).await;
        if let Entry::Grain(_) = self.entry_of(io, number, grain).await? {
            return Err(self.fail(VmdkError::Occupied { file: sparse.file.clone(), grain }));
        }
        let plain = std::mem::take(data).into_single();
        // A stream of what does not shrink is a little longer than that.
        let limit = (sparse.grain_len + sparse.grain_len / 8 + SECTOR) as usize;
        let work = Compute::Compress { codec: Codec::ZlibStream, plain, limit };
        let computed = io.compute("vmdk.compress", work).await;
        *data = computed.input.into();
        computed.result.map_err(|error| {
            let (file, problem) = (sparse.file.clone(), error.to_string());
            self.fail(VmdkError::Packed { file, grain, at: 0, problem })
        })?;
        let bytes = with_marker(sparse, grain, &computed.output);
        let len = bytes.len() as u64;
        let at = sparse.take(len).map_err(|fault| self.fail(fault))?;
        let file = io.child(sparse.role);
        let written = io.write("vmdk.compress/write", file, at, bytes, Fua::No).await.1;
        if written.is_err() && sparse.space.end.get() == at + len {
            sparse.space.end.set(at);
        }
        written?;
        self.set_entry(io, number, grain, Entry::Grain(at)).await
    }

    /// Makes a range read as zeros, where it holds nothing yet.
    pub(super) async fn zero_packed(&self, io: &Io, offset: u64, len: u64) -> Result<()> {
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let (number, sparse, within) = self.sparse_at(at);
            let grain = within / sparse.grain_len;
            let part = (sparse.grain_len - within % sparse.grain_len).min(end - at);
            let zeroed = matches!(sparse.encoding, Encoding::Sectors { zeroed: true, .. });
            let shows_parent = io.try_child(Role::Backing).is_some();
            match self.entry_of(io, number, grain).await? {
                Entry::Grain(_) => {
                    return Err(self.fail(VmdkError::Occupied { file: sparse.file.clone(), grain }));
                }
                Entry::Unallocated if zeroed && is_whole(sparse, within, part) => {
                    let node = io.shared().graph.node(io.node());
                    let _claim = node.claims.take(&io.shared().tasks, at, at + sparse.grain_len).await;
                    if self.entry_of(io, number, grain).await? == Entry::Unallocated {
                        self.set_entry(io, number, grain, Entry::Zero).await?;
                    }
                }
                Entry::Unallocated if shows_parent => {
                    let mut zeros = BufList::from(Buf::zeroed(part as usize));
                    self.write_grain(io, at, &mut zeros).await?;
                }
                Entry::Unallocated | Entry::Zero => {}
            }
            at += part;
        }
        Ok(())
    }

    async fn entry_of(&self, io: &Io, number: usize, grain: u64) -> Result<Entry> {
        let sparse = self.parts[number].sparse().expect("packed grains are in sparse extents");
        loop {
            match sparse.find(grain).map_err(|fault| self.fail(fault))? {
                Found::NoTable => return Ok(Entry::Unallocated),
                Found::Miss(table) => self.load_packed(io, number, table).await?,
                Found::At(slot, index) => {
                    let tables = sparse.tables.borrow();
                    return sparse.entry(tables.bytes(slot), index, grain).map_err(|fault| self.fail(fault));
                }
            }
        }
    }

    async fn set_entry(&self, io: &Io, number: usize, grain: u64, entry: Entry) -> Result<()> {
        let sparse = self.parts[number].sparse().expect("packed grains are in sparse extents");
        while let Err(table) = sparse.set(grain, 1, entry).map_err(|fault| self.fail(fault))? {
            self.load_packed(io, number, table).await?;
        }
        self.changes.set(self.changes.get() + 1);
        Ok(())
    }

    async fn load_packed(&self, io: &Io, number: usize, table: HostOffset) -> Result<()> {
        self.load(io, Missing::Table(table).miss(number)).await
    }
}

/// Whether a range is a whole grain, or all that there is of the last one.
fn is_whole(sparse: &Sparse, within: u64, len: u64) -> bool {
    within.is_multiple_of(sparse.grain_len) && (len == sparse.grain_len || within + len == sparse.len)
}

/// A packed grain as it lies in the file.
fn with_marker(sparse: &Sparse, grain: u64, packed: &[u8]) -> Buf {
    let sector = grain * (sparse.grain_len / SECTOR);
    let len = u32::try_from(packed.len()).expect("a grain has at most 16 MiB");
    let mut bytes = match sparse.packing {
        Packing::Marked => GrainMarker { sector, len }.encode().to_vec(),
        Packing::Bare | Packing::None => Vec::new(),
    };
    bytes.extend_from_slice(packed);
    bytes.resize(whole_sectors(bytes.len() as u64) as usize, 0);
    Buf::from(bytes)
}
