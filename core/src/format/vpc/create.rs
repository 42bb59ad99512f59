//! Create: the file of an empty image.

use super::VpcError;
use super::layout::{DiskType, DynamicHeader, Footer, Geometry, Locator, SECTOR, SECTORS_MAX};
use crate::buf::Buf;
use crate::engine::Io;
use crate::error::{Error, Result};
use crate::graph::NodeId;
use crate::intent::{Fua, Preallocation};

/// Bytes of the BAT that are written at once.
const PIECE: u64 = 1 << 20;

/// Bytes of a block; what all writers use.
const BLOCK_LEN: u64 = 2 << 20;

/// Where a new image has its dynamic header, and behind it what.
const HEADER_AT: u64 = SECTOR;
const TABLE_AT: u64 = 3 * SECTOR;

/// What a new image is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// Bytes of the disk: whole sectors. Without `force_size`, the geometry makes a little more of it.
    pub size: u64,
    /// Whether the file holds the disk as it is.
    pub fixed: bool,
    /// Whether the disk has this size exactly.
    pub force_size: bool,
    /// Seconds since 2000-01-01 UTC.
    pub timestamp: u32,
    /// How the host reserves the file's space.
    pub preallocation: Preallocation,
    /// What lies below; then the disk has exactly the size.
    pub parent: Option<Parent>,
}

/// The parent of a differencing image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// Its path, relative to the image, with slashes of either kind.
    pub relative_path: String,
    /// Its UUID.
    pub uuid: [u8; 16],
}

impl CreateOptions {
    /// A dynamic image with everything else as it is by default.
    pub fn new(size: u64) -> Self {
        let preallocation = Preallocation::Off;
        Self { size, fixed: false, force_size: false, timestamp: 0, preallocation, parent: None }
    }

    /// Size and geometry, and the creator that tells readers which of them counts.
    fn shape(&self) -> Result<(u64, ([u8; 4], Geometry)), VpcError> {
        let sectors = self.size / SECTOR;
        if sectors > SECTORS_MAX {
            return Err(VpcError::TooLarge { size: self.size });
        }
        if self.force_size || self.parent.is_some() {
            return Ok((sectors * SECTOR, (*b"qem2", Geometry::LARGEST)));
        }
        let geometry = match sectors {
            0 => Geometry { cylinders: 0, heads: 0, sectors: 0 },
            _ => Geometry::holding(sectors),
        };
        let sectors = if sectors > Geometry::LARGEST.total() { sectors } else { geometry.total() };
        Ok((sectors * SECTOR, (*b"qemu", geometry)))
    }
}

/// Makes an empty image in an empty file.
///
/// Order on disk: everything but the copy of the footer at the start, a barrier, that, a barrier. Until it is there, the file
/// is no image.
///
/// # Errors
/// When the disk is too large, or the file cannot be written.
pub async fn create(io: &Io, file: NodeId, options: &CreateOptions) -> Result<()> {
    let fail = |fault: VpcError| Error::format(io.title(file), fault);
    let (size, shape) = options.shape().map_err(fail)?;
    let mut uuid = io.entropy::<16>(file).await?;
    // Source: RFC 9562, 5.4: version 4, variant 10.
    (uuid[6], uuid[8]) = (uuid[6] & 0x0f | 0x40, uuid[8] & 0x3f | 0x80);
    let disk_type = match &options.parent {
        Some(_) => DiskType::Differencing,
        None if options.fixed => DiskType::Fixed,
        None => DiskType::Dynamic,
    };
    let footer = Footer::new(disk_type, size, shape, options.timestamp, uuid).encode();
    let write =
        async |label, at, bytes: Vec<u8>| io.write(label, file, at, Buf::from(bytes), Fua::No).await.1;
    if disk_type == DiskType::Fixed {
        io.set_len(file, size + SECTOR, options.preallocation).await?;
        write("vpc.create/fixed_footer", size, footer.to_vec()).await?;
        return io.flush("vpc.create/after", file).await;
    }
    let (header, names) = header_of(size, options.parent.as_ref());
    let names_at = TABLE_AT + header.table_len();
    let end = names_at + names.len() as u64;
    io.set_len(file, end + SECTOR, options.preallocation).await?;
    let mut done = 0;
    while done < header.table_len() {
        let len = PIECE.min(header.table_len() - done);
        write("vpc.create/bat", TABLE_AT + done, vec![0xff; len as usize]).await?;
        done += len;
    }
    if !names.is_empty() {
        write("vpc.create/parent_name", names_at, names).await?;
    }
    write("vpc.create/header", HEADER_AT, header.encode()).await?;
    write("vpc.create/footer", end, footer.to_vec()).await?;
    io.flush("vpc.create/before_copy", file).await?;
    write("vpc.create/copy", 0, footer.to_vec()).await?;
    io.flush("vpc.create/after", file).await
}

/// The dynamic header, and the parent's name as it lies behind the BAT.
fn header_of(size: u64, parent: Option<&Parent>) -> (DynamicHeader, Vec<u8>) {
    let mut header = DynamicHeader {
        table_at: TABLE_AT,
        entries: size.div_ceil(BLOCK_LEN) as u32,
        block_len: BLOCK_LEN,
        parent_uuid: [0; 16],
        parent_name: String::new(),
        locators: Default::default(),
    };
    let Some(parent) = parent else { return (header, Vec::new()) };
    let path = parent.relative_path.replace('/', "\\");
    let mut name: Vec<u8> = path.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let len = name.len() as u32;
    name.resize(name.len().next_multiple_of(SECTOR as usize), 0);
    header.parent_uuid = parent.uuid;
    header.parent_name = path.rsplit('\\').next().unwrap_or_default().to_owned();
    let at = TABLE_AT + header.table_len();
    header.locators[0] = Locator { code: *b"W2ru", space: name.len() as u32, len, at };
    (header, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_creator_says_which_size_counts() {
        let shape = |options: CreateOptions| options.shape().map(|(size, (creator, _))| (size, creator));
        let forced = |size| CreateOptions { force_size: true, ..CreateOptions::new(size) };
        assert_eq!(shape(CreateOptions::new(64 << 20)), Ok((67_125_248, *b"qemu")));
        assert_eq!(shape(forced(64 << 20)), Ok((64 << 20, *b"qem2")));
        assert_eq!(shape(CreateOptions::new(0)), Ok((0, *b"qemu")));
        assert_eq!(shape(CreateOptions::new(128 << 30)), Ok((128 << 30, *b"qemu")));
        assert_eq!(shape(CreateOptions::new(2040 << 30)), Ok((2040 << 30, *b"qemu")));
        assert!(shape(CreateOptions::new(2041 << 30)).is_err());
    }
}
