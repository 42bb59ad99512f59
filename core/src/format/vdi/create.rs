//! Create: the files of an empty image.

use super::VdiError;
use super::layout::{BLOCK_LEN, Header, ImageType};
use crate::buf::Buf;
use crate::engine::Io;
use crate::error::{Error, Result};
use crate::graph::NodeId;
use crate::intent::{Fua, Preallocation};

/// Bytes of the map that are written at once.
const PIECE: u64 = 1 << 20;

/// What a new image is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// Bytes of the disk: whole sectors.
    pub size: u64,
    /// Whether all blocks are there from the start.
    pub fixed: bool,
    /// How the host reserves their space then.
    pub preallocation: Preallocation,
}

/// Makes an empty image in an empty file.
///
/// Order on disk: the map, a barrier, the header, a barrier. Until the header is there, the file is no image.
///
/// # Errors
/// When the disk is too large, or the file cannot be written.
pub async fn create(io: &Io, file: NodeId, options: &CreateOptions) -> Result<()> {
    let fail = |fault: VdiError| Error::format(io.title(file), fault);
    let uuids = io.entropy::<32>(file).await?;
    let image_type = if options.fixed { ImageType::Static } else { ImageType::Dynamic };
    let header = Header::new(options.size, image_type, &as_uuids(uuids)).map_err(fail)?;
    let end = header.place_of(header.allocated).0;
    io.set_len(file, end, options.preallocation).await?;
    let mut block = 0;
    while block < u64::from(header.blocks) {
        let count = (u64::from(header.blocks) - block).min(PIECE / 4);
        let entries = (block..block + count).map(|block| if options.fixed { block as u32 } else { u32::MAX });
        let mut bytes: Vec<u8> = entries.flat_map(u32::to_le_bytes).collect();
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        let at = header.map_at + block * 4;
        io.write("vdi.create/block_map", file, at, Buf::from(bytes), Fua::No).await.1?;
        block += count;
    }
    io.flush("vdi.create/before_header", file).await?;
    io.write("vdi.create/header", file, 0, Buf::from(&header.encode()[..]), Fua::No).await.1?;
    io.flush("vdi.create/after", file).await
}

/// Two random UUIDs. Source: RFC 9562, 5.4: version 4, variant 10.
fn as_uuids(mut bytes: [u8; 32]) -> [u8; 32] {
    for uuid in bytes.chunks_exact_mut(16) {
        uuid[6] = uuid[6] & 0x0f | 0x40;
        uuid[8] = uuid[8] & 0x3f | 0x80;
    }
    bytes
}

const _: () = assert!(PIECE.is_multiple_of(512) && BLOCK_LEN.is_power_of_two());
