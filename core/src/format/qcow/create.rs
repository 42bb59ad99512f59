//! Create: the file of an empty image.

use super::QcowError;
use super::layout::{BACKING_LEN_MAX, HEADER_LEN, Header, L1_ENTRIES_MAX};
use crate::buf::Buf;
use crate::engine::Io;
use crate::error::{Error, Result};
use crate::graph::NodeId;
use crate::intent::{Fua, Preallocation, ZeroFlags};

/// What a new image is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// Bytes of the disk: whole sectors.
    pub size: u64,
    /// The backing file's name, as it is written into the image.
    pub backing: Option<String>,
}

/// Makes an empty image in an empty file. Clusters are small above a backing file, so that little is copied.
///
/// Order on disk: the L1 table of zeros, a barrier, the header with the backing file's name, a barrier. Until the header is
/// there, the file is no image.
///
/// # Errors
/// When the disk or the name is too large, or the file cannot be written.
pub(crate) async fn create(io: &Io, file: NodeId, options: &CreateOptions) -> Result<()> {
    let fail = |fault| Error::format(io.title(file), fault);
    if options.size == 0 {
        return Err(fail(QcowError::NoSize));
    }
    let name = options.backing.as_deref().unwrap_or_default();
    let name_len = name.len() as u64;
    if name_len > BACKING_LEN_MAX.into() {
        return Err(fail(QcowError::BackingLen { len: name_len, max: BACKING_LEN_MAX.into() }));
    }
    let (cluster_bits, l2_bits) = if name.is_empty() { (12, 9) } else { (9, 12) };
    let header = Header {
        backing: (!name.is_empty()).then_some((HEADER_LEN as u64, name_len as u32)),
        mtime: 0,
        size: options.size,
        cluster_bits,
        l2_bits,
        padding: 0,
        encrypted: false,
        l1_at: (HEADER_LEN as u64 + name_len).next_multiple_of(8),
    };
    let entries = header.l1_entries();
    if entries > L1_ENTRIES_MAX || options.size > i64::MAX as u64 {
        return Err(fail(QcowError::TooLarge { size: options.size, entries, max: L1_ENTRIES_MAX }));
    }
    let end = header.l1_at + entries * 8;
    io.set_len(file, end, Preallocation::Off).await?;
    io.write_zeroes("qcow.create/l1_table", file, 0, end, ZeroFlags::default()).await?;
    io.flush("qcow.create/before_header", file).await?;
    let mut head = header.encode().to_vec();
    head.extend_from_slice(name.as_bytes());
    // A name goes on behind the first sector, which makes the file an image.
    let (first, rest) = head.split_at(head.len().min(512));
    if !rest.is_empty() {
        io.write("qcow.create/name", file, 512, Buf::from(rest), Fua::No).await.1?;
        io.flush("qcow.create/before_header", file).await?;
    }
    io.write("qcow.create/header", file, 0, Buf::from(first), Fua::No).await.1?;
    io.flush("qcow.create/after", file).await
}
