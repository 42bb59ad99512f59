//! Create: the metadata of an empty image.
//!
//! ```text
//!   header | refcount table | refcount blocks | L1 table
//! ```
//!
//! Order on disk: everything else, a barrier, the header. A crash before leaves a file that is no image.

use super::layout::{
    Autoclear, BACKING_NAME_MAX, ClusterBits, Compatible, Crypt, Extension, Header, HostOffset, Incompatible,
    L1_LEN_MAX, REFCOUNT_TABLE_LEN_MAX, RefcountWidth, extension_kind,
};
use super::{Qcow2, Qcow2Error};
use crate::buf::Buf;
use crate::compute::Codec;
use crate::engine::Io;
use crate::error::{Error, Result};
use crate::format::luks;
use crate::graph::NodeId;
use crate::graph::driver::Preallocate;
use crate::intent::{Fua, Preallocation};

/// What is said when the tables of an image would be larger than the format allows.
const TOO_LARGE: &str =
    "The image size is too large for file format 'qcow2' (try using a larger cluster size)";

/// Clusters up to this size get no table of feature names. Observed on QEMU 10.0.
const FEATURE_NAMES_ABOVE: u64 = 4096;

/// What an image is to be like. The defaults are those of `qemu-img create`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// Length of the disk in bytes, a multiple of 512.
    pub size: u64,
    /// 2 (`compat=0.10`) or 3 (`compat=1.1`).
    pub version: u32,
    /// Bytes of a cluster: a power of two, 512 to 2 MiB.
    pub cluster_size: u64,
    /// Bits of a refcount: a power of two, 1 to 64.
    pub refcount_bits: u32,
    /// 32 subclusters a cluster.
    pub extended_l2: bool,
    /// How clusters are compressed.
    pub compression: Codec,
    /// Allow refcounts to be written late.
    pub lazy_refcounts: bool,
    /// Name and format of the backing file, as the image is to state them.
    pub backing: Option<(String, Option<String>)>,
    /// Name of the external data file, as the image is to state it.
    pub data_file: Option<String>,
    /// The data file is to read as a raw image.
    pub data_file_raw: bool,
    /// What is reserved for the disk before anybody writes to it.
    pub preallocation: Preallocate,
    /// The volume that encrypts the data; its size is of no meaning.
    pub encrypt: Option<luks::CreateOptions>,
}

impl CreateOptions {
    /// QEMU's defaults for a disk of `size` bytes.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            version: 3,
            cluster_size: 65536,
            refcount_bits: 16,
            extended_l2: false,
            compression: Codec::Zlib,
            lazy_refcounts: false,
            backing: None,
            data_file: None,
            data_file_raw: false,
            preallocation: Preallocate::Off,
            encrypt: None,
        }
    }

    /// What is preallocated: a raw data file is read by those who know no entries, so that each says that the data is
    /// there.
    pub fn preallocates(&self) -> Preallocate {
        match self.preallocation {
            Preallocate::Off if self.data_file_raw => Preallocate::Metadata,
            how => how,
        }
    }

    /// Checks that the options go together. The messages are `qemu-img`'s.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self) -> Result<(), Qcow2Error> {
        let refuse = |text: &str| Err(Qcow2Error::Option(text.into()));
        if !self.cluster_size.is_power_of_two() || !(512..=2 << 20).contains(&self.cluster_size) {
            return refuse("Cluster size must be a power of two between 512 and 2048k");
        }
        if self.extended_l2 && self.version < 3 {
            return refuse(
                "Extended L2 entries are only supported with compatibility level 1.1 and above (use version=v3 or greater)",
            );
        }
        if self.extended_l2 && self.cluster_size < 16384 {
            return refuse(
                "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes",
            );
        }
        if !self.size.is_multiple_of(512) {
            return refuse("The image size must be a multiple of 512 bytes");
        }
        if self.lazy_refcounts && self.version < 3 {
            return refuse(
                "Lazy refcounts only supported with compatibility level 1.1 and above (use version=v3 or greater)",
            );
        }
        if !self.refcount_bits.is_power_of_two() || self.refcount_bits > 64 {
            return refuse("Refcount width must be a power of two and may not exceed 64 bits");
        }
        if self.version < 3 && self.refcount_bits != 16 {
            return refuse(
                "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)",
            );
        }
        if self.data_file_raw && self.data_file.is_none() {
            return refuse("data-file-raw requires data-file");
        }
        if self.data_file_raw && self.backing.is_some() {
            return refuse("Backing file and data-file-raw cannot be used at the same time");
        }
        if self.preallocation != Preallocate::Off && self.backing.is_some() && !self.extended_l2 {
            return refuse(
                "Backing file and preallocation can only be used at the same time if extended_l2 is on",
            );
        }
        if self.data_file.is_some() && self.version < 3 {
            return refuse(
                "External data files are only supported with compatibility level 1.1 and above (use version=v3 or greater)",
            );
        }
        if self.compression != Codec::Zlib && self.version < 3 {
            return refuse(
                "Non-zlib compression type is only supported with compatibility level 1.1 and above (use version=v3 or greater)",
            );
        }
        if let Some((name, format)) = self.backing.as_ref().filter(|(name, _)| name.len() > BACKING_NAME_MAX)
        {
            let format = format.as_ref().map(|format| format!(" with format '{format}'")).unwrap_or_default();
            return Err(Qcow2Error::Option(format!(
                "Could not assign backing file '{name}'{format}: Invalid argument"
            )));
        }
        let entry_len = if self.extended_l2 { 16 } else { 8 };
        if self.size.div_ceil(self.cluster_size).div_ceil(self.cluster_size / entry_len) * 8 > L1_LEN_MAX {
            return refuse(TOO_LARGE);
        }
        Ok(())
    }

    /// The header of such an image, for tests of what becomes of headers.
    #[cfg(test)]
    pub(super) fn header_bytes(&self) -> Vec<u8> {
        let plan = Plan::new(self).expect("legal options");
        self.header(&plan).encode().expect("a header that fits")
    }

    fn header(&self, plan: &Plan) -> Header {
        let set = |on: bool, bit: u64| if on { bit } else { 0 };
        let bits = ClusterBits::new(self.cluster_size.trailing_zeros()).expect("checked");
        let at = |cluster: u64| HostOffset(cluster << bits.bits());
        let v3 = self.version >= 3;
        Header {
            version: self.version,
            cluster_bits: bits,
            size: self.size,
            crypt: if self.encrypt.is_some() { Crypt::Luks } else { Crypt::None },
            l1_entries: plan.l1_entries as u32,
            l1_offset: at(plan.l1_cluster),
            refcount_table_offset: at(1),
            refcount_table_clusters: plan.table_clusters as u32,
            snapshot_count: 0,
            snapshots_offset: HostOffset(0),
            incompatible: set(self.data_file.is_some(), Incompatible::DATA_FILE)
                | set(self.compression != Codec::Zlib, Incompatible::COMPRESSION)
                | set(self.extended_l2, Incompatible::EXTENDED_L2),
            compatible: set(self.lazy_refcounts, Compatible::LAZY_REFCOUNTS),
            autoclear: set(self.data_file_raw, Autoclear::RAW_DATA_FILE),
            refcount_width: RefcountWidth::new(self.refcount_bits.trailing_zeros()).expect("checked"),
            compression: self.compression,
            more: Vec::new(),
            backing_file: self.backing.as_ref().map(|(name, _)| name.clone()),
            backing_format: self.backing.as_ref().and_then(|(_, format)| format.clone()),
            data_file: self.data_file.clone(),
            // Small clusters need their space for names; the reference leaves the table out for the same ones.
            extensions: {
                let volume = self.encrypt.as_ref().map(|volume| {
                    let place = at(plan.volume_cluster).0.to_be_bytes();
                    let data = [place, volume.header_len().to_be_bytes()].concat();
                    Extension { kind: extension_kind::CRYPTO_HEADER, data }
                });
                let names = v3 && self.cluster_size > FEATURE_NAMES_ABOVE;
                volume.into_iter().chain(names.then(Header::feature_name_table)).collect()
            },
        }
    }
}

/// Where the metadata goes.
struct Plan {
    l1_entries: u64,
    l1_cluster: u64,
    table_clusters: u64,
    block_count: u64,
    /// Where the header of the volume begins, if there is one.
    volume_cluster: u64,
    /// Clusters in use, all from the first on.
    used: u64,
}

impl Plan {
    fn new(options: &CreateOptions) -> Result<Self, Qcow2Error> {
        let cluster = options.cluster_size;
        let entry_len = if options.extended_l2 { 16 } else { 8 };
        let l1_entries = options.size.div_ceil(cluster).div_ceil(cluster / entry_len);
        let l1_clusters = (l1_entries * 8).div_ceil(cluster).max(1);
        let volume = options.encrypt.as_ref().map_or(0, |volume| volume.header_len().div_ceil(cluster));
        let per_block = cluster * 8 / u64::from(options.refcount_bits);
        let (mut table_clusters, mut block_count) = (1, 1);
        loop {
            let used = 1 + table_clusters + block_count + l1_clusters + volume;
            let blocks = used.div_ceil(per_block);
            let tables = (blocks * 8).div_ceil(cluster);
            if (blocks, tables) == (block_count, table_clusters) {
                break;
            }
            (block_count, table_clusters) = (blocks.max(block_count), tables.max(table_clusters));
        }
        if table_clusters * cluster > REFCOUNT_TABLE_LEN_MAX {
            return Err(Qcow2Error::Option(TOO_LARGE.into()));
        }
        let l1_cluster = 1 + table_clusters + block_count;
        let volume_cluster = l1_cluster + l1_clusters;
        let used = volume_cluster + volume;
        Ok(Self { l1_entries, l1_cluster, table_clusters, block_count, volume_cluster, used })
    }
}

/// Writes an empty image into `file`, which is open for writing and empty.
///
/// # Errors
/// When the options do not go together, or the file cannot be written.
pub async fn create(io: &Io, file: NodeId, options: &CreateOptions) -> Result<()> {
    let fail = |fault| Error::format(io.title(file), fault);
    options.check().map_err(fail)?;
    let plan = Plan::new(options).map_err(fail)?;
    let passphrase = match &options.encrypt {
        Some(volume) => Some(volume.check(io, luks::Place { node: file, base: 0 }, "encrypt.")?),
        None => None,
    };
    let header = options.header(&plan);
    let bytes = header.encode().map_err(fail)?;
    let cluster = options.cluster_size;
    let mut table = Buf::zeroed((plan.table_clusters * cluster) as usize);
    for block in 0..plan.block_count {
        let at = (1 + plan.table_clusters + block) * cluster;
        table[block as usize * 8..][..8].copy_from_slice(&at.to_be_bytes());
    }
    let mut blocks = Buf::zeroed((plan.block_count * cluster) as usize);
    let per_block = cluster * 8 / u64::from(options.refcount_bits);
    for used in 0..plan.used {
        let block = &mut blocks[(used / per_block * cluster) as usize..];
        header.refcount_width.set(block, (used % per_block) as usize, 1);
    }
    let end = header.l1_offset.0 + plan.l1_entries * 8;
    let l1 = Buf::zeroed((plan.l1_entries * 8) as usize);
    io.write("qcow2.create/refcount_table", file, cluster, table, Fua::No).await.1?;
    let blocks_at = (1 + plan.table_clusters) * cluster;
    io.write("qcow2.create/refcount_blocks", file, blocks_at, blocks, Fua::No).await.1?;
    if end > header.l1_offset.0 {
        io.write("qcow2.create/l1_table", file, header.l1_offset.0, l1, Fua::No).await.1?;
    }
    if let (Some(volume), Some(passphrase)) = (&options.encrypt, passphrase) {
        let place = luks::Place { node: file, base: plan.volume_cluster * cluster };
        // The file holds all of the volume's header, also where no slot is in use.
        io.set_len(file, plan.used * cluster, Preallocation::Off).await?;
        luks::write_volume(io, place, volume, &passphrase).await?;
    }
    io.flush("qcow2.create/barrier", file).await?;
    io.write("qcow2.create/header", file, 0, Buf::from(bytes), Fua::No).await.1?;
    io.flush("qcow2.create/header", file).await
}

/// Reserves space for all of a new image's disk, as its options ask for.
///
/// # Errors
/// When the node is no qcow2 image that is open for writing, or there is no room.
pub async fn preallocate(io: &Io, node: NodeId, how: Preallocate) -> Result<()> {
    let driver = io.driver(node);
    let qcow2 = driver.as_ref().and_then(|driver| driver.as_any().downcast_ref::<Qcow2>());
    let Some(qcow2) = qcow2 else {
        let driver = driver.as_ref().map_or("file", |driver| driver.name());
        return Err(Box::new(Error::Unsupported { node: io.title(node), driver, what: "preallocation" }));
    };
    let len = qcow2.header.borrow().size;
    qcow2.preallocate(&io.for_node(node), 0, len, how).await
}
