//! Create: the file of an empty image.

use super::layout::{
    DISK_MAX, Guid, HEADERS_AT, Header, Locator, MIB, Metadata, PayloadEntry, REGION_TABLES_AT, Region,
    RegionTable, encode_file_type,
};
use super::{VhdxError, session};
use crate::buf::Buf;
use crate::engine::Io;
use crate::error::{Error, Result};
use crate::format::HostOffset;
use crate::graph::NodeId;
use crate::intent::{Fua, Preallocation};

/// Bytes of the BAT that are written at once.
const PIECE: u64 = MIB;

/// Bytes of a log at the most: what fits in the header.
const LOG_MAX: u64 = (1 << 32) - MIB;

/// What a new image is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// Bytes of the disk: whole sectors.
    pub size: u64,
    /// Bytes of a block; by the size of the disk, for 0.
    pub block_size: u64,
    /// Bytes of the log.
    pub log_size: u64,
    /// Whether all blocks are there from the start.
    pub fixed: bool,
    /// Whether blocks that are not there are called zeros.
    pub block_state_zero: bool,
    /// Bytes of a sector: 512 or 4096.
    pub sector: u64,
    /// What lies below.
    pub parent: Option<Parent>,
}

/// The parent of a differencing image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// Its path, relative to the image, with slashes of either kind.
    pub relative_path: String,
    /// What its header says of its data.
    pub data_write: Guid,
}

impl CreateOptions {
    /// A dynamic image with everything else as it is by default.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            block_size: 0,
            log_size: MIB,
            fixed: false,
            block_state_zero: true,
            sector: 512,
            parent: None,
        }
    }

    /// The metadata of the image, and the length of its log.
    fn check(&self) -> Result<(Metadata, u64), VhdxError> {
        if self.size > DISK_MAX {
            return Err(VhdxError::DiskTooLarge { size: self.size });
        }
        if !self.size.is_multiple_of(self.sector) {
            return Err(VhdxError::Sectors { wanted: self.size, sector: self.sector });
        }
        let block_len = match self.block_size {
            0 => default_block(self.size),
            size => size.checked_next_multiple_of(MIB).unwrap_or(u64::MAX).min(256 * MIB),
        };
        if !block_len.is_power_of_two() {
            return Err(VhdxError::BlockSize { found: block_len });
        }
        let log_len = self.log_size.max(1).checked_next_multiple_of(MIB).filter(|len| *len <= LOG_MAX);
        let log_len = log_len.ok_or(VhdxError::LogSize { len: self.log_size, max: LOG_MAX })?;
        let parent = self.parent.as_ref().map(|parent| {
            let path = parent.relative_path.replace('/', "\\");
            let linkage = format!("{{{}}}", parent.data_write);
            Locator(vec![("parent_linkage".into(), linkage), ("relative_path".into(), path)])
        });
        let metadata = Metadata {
            block_len,
            leave_allocated: self.fixed,
            size: self.size,
            sector: self.sector,
            physical_sector: self.sector,
            page83: Guid::NIL,
            parent,
        };
        Ok((metadata, log_len))
    }
}

/// Bytes of a block for a disk of `size` bytes; the reference's choice.
fn default_block(size: u64) -> u64 {
    const TIB: u64 = 1 << 40;
    const GIB: u64 = 1 << 30;
    match size {
        size if size > 32 * TIB => 64 * MIB,
        size if size > 100 * GIB => 32 * MIB,
        size if size > GIB => 16 * MIB,
        _ => 8 * MIB,
    }
}

/// Makes an empty image in an empty file.
///
/// Order on disk: everything but the file type identifier, a barrier, that, a barrier. Until it is there, the file is no
/// image.
///
/// # Errors
/// When the options do not go together, or the file cannot be written.
pub async fn create(io: &Io, file: NodeId, options: &CreateOptions) -> Result<()> {
    let fail = |fault: VhdxError| Error::format(io.title(file), fault);
    let (metadata, log_len) = options.check().map_err(fail)?;
    let [file_write, data_write, page83] = session::guids(io, file).await?;
    let metadata = Metadata { page83, ..metadata };
    let blocks = metadata.size.div_ceil(metadata.block_len);
    let ratio = super::layout::CHUNK_SECTORS * metadata.sector / metadata.block_len;
    let entries = match metadata.parent {
        None => blocks + blocks.saturating_sub(1) / ratio,
        Some(_) => blocks.div_ceil(ratio) * (ratio + 1),
    };
    let bat = Region { at: MIB + log_len, len: (entries * 8).max(1).next_multiple_of(MIB) };
    let region = Region { at: bat.end(), len: MIB };
    let first_block = region.end();
    let end = if options.fixed { first_block + blocks * metadata.block_len } else { first_block };
    io.set_len(file, end, Preallocation::Off).await?;
    let entry = |index: u64| {
        let block = index - index / (ratio + 1);
        match (index % (ratio + 1) == ratio, options) {
            (true, _) => 0,
            _ if block >= blocks => 0,
            (_, CreateOptions { fixed: true, .. }) => {
                PayloadEntry::FullyPresent(HostOffset(first_block + block * metadata.block_len)).encode()
            }
            (_, CreateOptions { block_state_zero: true, parent: None, .. }) => PayloadEntry::Zero.encode(),
            _ => PayloadEntry::NotPresent.encode(),
        }
    };
    let mut index = 0;
    while index < entries {
        let count = (entries - index).min(PIECE / 8);
        let mut bytes: Vec<u8> =
            (index..index + count).flat_map(|index| entry(index).to_le_bytes()).collect();
        bytes.resize(bytes.len().next_multiple_of(4096), 0);
        io.write("vhdx.create/bat", file, bat.at + index * 8, Buf::from(bytes), Fua::No).await.1?;
        index += count;
    }
    let write =
        async |label, at, bytes: Vec<u8>| io.write(label, file, at, Buf::from(bytes), Fua::No).await.1;
    write("vhdx.create/metadata", region.at, metadata.encode()).await?;
    for at in REGION_TABLES_AT {
        write("vhdx.create/region_table", at, RegionTable::new(bat, region).encode()).await?;
    }
    for (at, sequence) in HEADERS_AT.into_iter().zip(1..) {
        let header = Header { sequence, file_write, data_write, log: Guid::NIL, log_len, log_at: MIB };
        write("vhdx.create/header", at, header.encode()).await?;
    }
    io.flush("vhdx.create/before_file_type", file).await?;
    write("vhdx.create/file_type", 0, encode_file_type()).await?;
    io.flush("vhdx.create/after", file).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_reference() {
        let block = |size, block_size| {
            let options = CreateOptions { block_size, ..CreateOptions::new(size) };
            options.check().map(|(metadata, _)| metadata.block_len / MIB)
        };
        for (size, expected) in
            [(0, 8), (1 << 30, 8), (32 << 30, 16), (100 << 30, 16), (129 << 30, 32), (64 << 40, 64)]
        {
            assert_eq!(block(size, 0), Ok(expected), "{size}");
        }
        for (size, expected) in [(1, 1), (512 << 10, 1), (2 << 20, 2), (512 << 20, 256)] {
            assert_eq!(block(MIB, size), Ok(expected), "{size}");
        }
        assert_eq!(block(MIB, 3 << 20), Err(VhdxError::BlockSize { found: 3 << 20 }));
        assert_eq!(block(65 << 40, 0), Err(VhdxError::DiskTooLarge { size: 65 << 40 }));
        let log =
            |log_size| CreateOptions { log_size, ..CreateOptions::new(0) }.check().map(|(_, log)| log / MIB);
        assert_eq!([log(5), log(3_000_000), log(0)], [Ok(1), Ok(3), Ok(1)]);
        assert!(log(1 << 40).is_err());
    }
}
