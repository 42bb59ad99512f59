//! Create: the file of an empty image.

use super::QedError;
use super::layout::{Features, HEADER_LEN, Header, legal_cluster_size, legal_table_size};
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
    /// Bytes of a cluster.
    pub cluster_size: u64,
    /// Clusters of a table.
    pub table_size: u64,
    /// The backing file's name as it is written into the image, and whether it is raw whatever it begins with.
    pub backing: Option<(String, bool)>,
}

impl CreateOptions {
    /// The reference's shape.
    pub fn new(size: u64) -> Self {
        Self { size, cluster_size: 65536, table_size: 4, backing: None }
    }

    fn header(&self) -> Result<Header, QedError> {
        if !legal_cluster_size(self.cluster_size) {
            return Err(QedError::CreateClusterSize);
        }
        if !legal_table_size(self.table_size) {
            return Err(QedError::CreateTableSize);
        }
        let mut features = Features::default();
        let mut backing_len = 0;
        if let Some((name, raw)) = &self.backing {
            features = features.with(Features::BACKING, true).with(Features::BACKING_RAW, *raw);
            backing_len = name.len() as u64;
        }
        let max = self.cluster_size - HEADER_LEN as u64;
        if backing_len > max {
            return Err(QedError::BackingLen { len: backing_len, max });
        }
        let header = Header {
            cluster_size: self.cluster_size as u32,
            table_size: self.table_size as u32,
            header_size: 1,
            features,
            compat_features: 0,
            autoclear_features: 0,
            l1_at: self.cluster_size,
            size: self.size,
            backing_at: if backing_len > 0 { HEADER_LEN as u32 } else { 0 },
            backing_len: backing_len as u32,
        };
        let max = header.size_max();
        if self.size > max { Err(QedError::CreateSize { max }) } else { Ok(header) }
    }
}

/// Makes an empty image in an empty file.
///
/// Order on disk: the L1 table of zeros and all of the backing file's name behind the first sector, a barrier, the first
/// sector, a barrier. Until the header is there, the file is no image.
///
/// # Errors
/// When the options are not legal, or the file cannot be written.
pub(crate) async fn create(io: &Io, file: NodeId, options: &CreateOptions) -> Result<()> {
    let header = options.header().map_err(|fault| Error::format(io.title(file), fault))?;
    let end = header.l1_at + header.table_len();
    io.set_len(file, end, Preallocation::Off).await?;
    io.write_zeroes("qed.create/l1_table", file, 0, end, ZeroFlags::default()).await?;
    let mut head = header.encode().to_vec();
    if let Some((name, _)) = &options.backing {
        head.extend_from_slice(name.as_bytes());
    }
    let (first, rest) = head.split_at(head.len().min(512));
    if !rest.is_empty() {
        io.write("qed.create/name", file, 512, Buf::from(rest), Fua::No).await.1?;
    }
    io.flush("qed.create/before_header", file).await?;
    io.write("qed.create/header", file, 0, Buf::from(first), Fua::No).await.1?;
    io.flush("qed.create/after", file).await
}
