//! Create: the file of an empty image.

use super::ParallelsError;
use super::layout::{CLUSTER_SECTORS_MAX, Header, SECTOR};
use crate::buf::Buf;
use crate::engine::Io;
use crate::error::{Error, Result};
use crate::graph::NodeId;
use crate::intent::{Fua, Preallocation};

/// What a new image is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// Bytes of the disk: whole sectors.
    pub size: u64,
    /// Bytes of a cluster, rounded up to whole sectors.
    pub cluster_size: u64,
}

impl CreateOptions {
    /// A disk of `size` bytes, with clusters of 1 MiB.
    pub fn new(size: u64) -> Self {
        Self { size, cluster_size: 1 << 20 }
    }

    fn header(&self) -> Result<Header, ParallelsError> {
        let sectors = self.cluster_size.div_ceil(SECTOR);
        // The reference compares first, and then rounds up; it makes clusters that it refuses to open.
        if self.size >= u64::from(u32::MAX).saturating_mul(self.cluster_size) {
            return Err(ParallelsError::SizeForCluster);
        }
        match u32::try_from(sectors) {
            Ok(sectors @ 1..=CLUSTER_SECTORS_MAX) => Header::new(self.size, sectors),
            _ => Err(ParallelsError::CreateClusterTooLarge),
        }
    }
}

/// Makes an empty image in an empty file.
///
/// Order on disk: the file's length, which makes the BAT zeros, a barrier, the header, a barrier. Until the header is there,
/// the file is no image.
///
/// # Errors
/// When the disk is too large, or the file cannot be written.
pub async fn create(io: &Io, file: NodeId, options: &CreateOptions) -> Result<()> {
    let fail = |fault: ParallelsError| Error::format(io.title(file), fault);
    let header = options.header().map_err(fail)?;
    let end = u64::from(header.data_off) * SECTOR;
    io.set_len(file, end, Preallocation::Off).await?;
    if !io.starts_as_zeroes(file) {
        io.write_zeroes("parallels.create/bat", file, 0, end, Default::default()).await?;
    }
    io.flush("parallels.create/before_header", file).await?;
    io.write("parallels.create/header", file, 0, Buf::from(&header.encode()[..]), Fua::No).await.1?;
    io.flush("parallels.create/after", file).await
}
