//! What can be wrong with a qcow2 image, or with what is asked of one.

use super::layout::{GuestOffset, HostOffset};
use crate::error::{FaultKind, FormatError};
use crate::intent::Errno;

/// An error of the qcow2 format. Texts that scripts know from `qemu-img` begin with its words.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the message beside each variant says what its fields are")]
pub enum Qcow2Error {
    #[error("Image is not in qcow2 format")]
    NotQcow2,
    #[error("qcow2 header too short")]
    HeaderTooShort { len: u64, min: u64 },
    #[error("qcow2 header exceeds cluster size: it has {len} bytes, where at most {max} fit")]
    HeaderTooLong { len: u64, max: u64 },
    #[error("Unsupported qcow2 version {found}")]
    Version { found: u32 },
    #[error("Unsupported cluster size: 2^{bits}")]
    ClusterSize { bits: u32 },
    #[error("Image is too big: the header (byte 24) says {found} bytes, at most 2^63 - 1 are possible")]
    Size { found: u64 },
    #[error("Unsupported qcow2 feature(s): {names}")]
    Features { names: String },
    #[error("Unsupported encryption method {found}")]
    CryptMethod { found: u32 },
    #[error(
        "Reference count entry width too large; may not exceed 64 bits (header byte 96 says 2^{order} bits)"
    )]
    RefcountWidth { order: u32 },
    #[error(
        "qcow2: compression type {found} (header byte 104) does not go with the compression feature bit, which is {}",
        if *.flagged { "set" } else { "clear" }
    )]
    CompressionType { found: u8, flagged: bool },
    #[error("Invalid backing file offset: {len} bytes at {offset} lie outside the first cluster")]
    BackingNameOffset { offset: u64, len: u64 },
    #[error("Backing file name too long: {len} bytes, at most {max} are allowed")]
    BackingNameLen { len: u64, max: u64 },
    #[error("Header extension too large: extension {kind:#010x} claims {len} bytes where {room} are left")]
    ExtensionLen { kind: u32, len: u64, room: u64 },
    #[error("the {field} in the header is not UTF-8 from its byte {at} on")]
    NotText { field: &'static str, at: usize },
    #[error("{table} too large: {len} bytes, at most {max} are supported")]
    TableTooLarge { table: &'static str, len: u64, max: u64 },
    #[error(
        "{table} offset invalid: {:#x} is not a multiple of the cluster size ({cluster_size}) below 2^56",
        .offset.0
    )]
    TableOffset { table: &'static str, offset: HostOffset, cluster_size: u64 },
    #[error("Image does not contain a reference count table")]
    NoRefcountTable,
    #[error("L1 table is too small")]
    L1TooSmall { entries: u32, needed: u64 },
    #[error("extended L2 entries need clusters of at least 16384 bytes, the header says {cluster_size}")]
    ExtendedL2ClusterSize { cluster_size: u64 },
    #[error("the snapshot table at {:#x} is damaged: entry {index}: {field} does not fit", .at.0)]
    SnapshotTable { at: HostOffset, index: u32, field: &'static str },
    #[error(
        "the snapshot table has {count} entries, at most {max} are allowed; `check -r all` removes those that are too many"
    )]
    SnapshotsOverhang { count: u32, max: u32 },
    #[error("{table} at {:#x} lies beyond the end of the file ({file_len} bytes)", .at.0)]
    BeyondEnd { table: &'static str, at: HostOffset, file_len: u64 },

    #[error("qcow2: Image is corrupt; cannot be opened read/write")]
    MarkedCorrupt,
    #[error(
        "Could not repair dirty image: {errors} errors of the check leave its refcounts unknown; open it read-only, or run \
         'check -r all' on it"
    )]
    DirtyNotRepaired { errors: u64 },
    #[error("the image was opened for its metadata alone, and its data is encrypted")]
    Encrypted,
    #[error("No encryption in image header, but options specified format '{asked}'")]
    NotEncrypted { asked: String },
    #[error("Header reported '{found}' encryption format but options specify '{asked}'")]
    OtherEncryption { found: &'static str, asked: String },
    #[error(
        "images with AES encryption, which is not safe, are only read; convert it to one with encrypt.format=luks"
    )]
    AesIsReadOnly,
    #[error("the LUKS header is damaged: {problem}")]
    Luks { problem: String },
    #[error("L2 cache entry size must be a power of two between 512 and the cluster size ({cluster_size})")]
    L2CacheEntrySize { cluster_size: u64 },
    #[error("Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level")]
    LazyRefcountsInVersion2,
    #[error("discard-no-unref is only supported since qcow2 version 3")]
    DiscardNoUnrefInVersion2,
    #[error("Can't find snapshot")]
    NoSnapshot,
    #[error("'data-file' is required for this image")]
    NoDataFile,

    #[error(
        "entry {raw:#018x} names a {what} that is not at a multiple of the cluster size ({cluster_size})"
    )]
    Misaligned { what: &'static str, raw: u64, cluster_size: u64 },
    #[error("L2 entry {raw:#018x} has the zero flag, which version 2 does not know")]
    ZeroFlagInVersion2 { raw: u64 },
    #[error("extended L2 entry {raw:#018x} has the impossible subcluster bitmap {bitmap:#018x}")]
    SubclusterBitmap { raw: u64, bitmap: u64 },
    #[error(
        "refcount table entry {index} is {raw:#018x}: no multiple of the cluster size ({cluster_size}) below 2^56"
    )]
    RefcountBlockOffset { index: u64, raw: u64, cluster_size: u64 },
    #[error(
        "L2 table slice at {:#x}, entry for guest offset {:#x}: {problem}; the image is corrupt, run 'check' on it",
        .slice.0, .guest.0
    )]
    InL2Slice { slice: HostOffset, guest: GuestOffset, problem: Box<Qcow2Error> },
    #[error("L1 table entry {index}: {problem}; the image is corrupt, run 'check' on it")]
    InL1Table { index: usize, problem: Box<Qcow2Error> },
    #[error(
        "Preventing invalid write on metadata (overlaps with {holds}): the data of guest offset {:#x} is said to be at \
         {:#x}; the image is corrupt, run 'check' on it", .guest.0, .at.0
    )]
    OverlapsMetadata { guest: GuestOffset, at: HostOffset, holds: &'static str },
    #[error(
        "the image is corrupt, and was marked so: nothing is written to it until 'check -r all' has repaired it"
    )]
    BecameCorrupt,
    #[error(
        "compressed cluster for guest offset {:#x}, {len} bytes at {:#x}: {problem}", .guest.0, .host.0
    )]
    CompressedCluster { guest: GuestOffset, host: HostOffset, len: u32, problem: String },

    #[error(
        "compressed data goes only where nothing is yet: the cluster of guest offset {:#x} is allocated; convert to a new \
         image, or without compression", .guest.0
    )]
    Occupied { guest: GuestOffset },
    #[error("all cached metadata holds changes that cannot be written")]
    CacheExhausted,
    #[error("the image cannot grow beyond {clusters} clusters")]
    ImageFull { clusters: u64 },
    #[error(
        "Preventing invalid allocation of cluster {:#x}: it holds the image's metadata, and yet its refcount is 0; \
         the image is corrupt, run 'check' on it", .at.0
    )]
    MetadataIsFree { at: HostOffset },
    #[error("refcount table entry {index} names {:#x}, which holds other metadata; run 'check' on the image", .at.0)]
    RefcountBlockShared { index: u64, at: HostOffset },
    #[error("cluster {:#x} is freed, and yet its refcount is 0; the image is corrupt, run 'check' on it", .at.0)]
    RefcountUnderflow { at: HostOffset },

    #[error("refcounts are lost, and have to be rebuilt: repair it with 'check -r all'")]
    RefcountsLost,
    #[error("the rebuilt refcounts do not agree with the references")]
    RebuiltWrong,
    #[error(
        "cluster {:#x}, which {what}, is not counted; the image is corrupt, run 'check' on it", .at.0
    )]
    NotCounted { at: HostOffset, what: &'static str },
    #[error(
        "cluster {:#x} was free a moment ago, and is counted now: somebody else writes to the image, or it is corrupt; run \
         'check' on it", .at.0
    )]
    NoLongerFree { at: HostOffset },
    #[error("cluster {:#x} has as many references as fit {bits} bits; no snapshot can share it", .at.0)]
    RefcountFull { at: HostOffset, bits: u32 },
    #[error("Cannot decrease refcount entry width to {bits} bits: Cluster at offset {:#x} has a refcount of {count}", .at.0)]
    RefcountTooWide { at: HostOffset, count: u64, bits: u32 },
    #[error("two entries of the L1 table at {:#x} name the L2 table at {:#x}; run 'check' on the image", .l1.0, .at.0)]
    L2TableShared { l1: HostOffset, at: HostOffset },
    #[error(
        "the header could neither be changed nor put back; nothing more is written until the image is opened again"
    )]
    HeaderAdrift,
    #[error("Snapshots are not supported with an external data file")]
    SnapshotOfDataFile,
    #[error("Device has active dirty bitmaps")]
    CountsChanges,
    #[error("the image has {max} snapshots already, as many as there can be")]
    SnapshotsFull { max: u32 },

    #[error("the file has {clusters} clusters, of which at most 2^31 - 1 can be checked")]
    CheckTooLarge { clusters: u64 },
    #[error("the raw data file is the disk: it cannot be emptied so that a backing file shows through")]
    RawDataFileHoldsAll,
    #[error("Dirty bitmap '{name}' not found")]
    NoBitmap { name: String },
    #[error("Bitmap already exists: {name}")]
    BitmapExists { name: String },
    #[error("Bitmap name cannot be empty")]
    BitmapNameEmpty,
    #[error("Granularity must be power of 2 and at least 512")]
    BitmapGranularity,
    #[error("Can't make bitmap '{name}' persistent in '{node}': {problem}")]
    BitmapUnstorable { name: String, node: String, problem: &'static str },
    #[error(
        "Bitmap '{name}' is inconsistent and cannot be used\nTry block-dirty-bitmap-remove to delete this bitmap from disk"
    )]
    InconsistentBitmap { name: String },
    #[error(
        "Bitmaps are of different sizes (destination size is {to}, source size is {from}) and can't be merged"
    )]
    BitmapSizes { to: u64, from: u64 },
    #[error("a bitmap of this disk would take more than 512 MiB; its granularity is too small")]
    BitmapTooLarge,
    #[error("the dirty bitmaps are damaged: {problem}")]
    Bitmaps { problem: &'static str },

    #[error(
        "{len} bytes of a machine's state at byte {offset} of it: no L1 table of 32 MiB reaches so far behind the disk"
    )]
    VmstateTooFar { offset: u64, len: u64 },

    #[error("{0}")]
    Option(String),
}

impl Qcow2Error {
    /// The same error, with the place of the L2 entry that shows it.
    pub(super) fn in_l2_slice(self, slice: HostOffset, guest: GuestOffset) -> Self {
        Self::InL2Slice { slice, guest, problem: Box::new(self) }
    }
}

impl FormatError for Qcow2Error {
    fn kind(&self) -> FaultKind {
        match self {
            Self::Version { .. }
            | Self::Features { .. }
            | Self::Encrypted
            | Self::AesIsReadOnly
            | Self::CryptMethod { .. }
            | Self::SnapshotOfDataFile => FaultKind::Unsupported,
            Self::L2CacheEntrySize { .. }
            | Self::LazyRefcountsInVersion2
            | Self::DiscardNoUnrefInVersion2
            | Self::Option(_)
            | Self::NoBitmap { .. }
            | Self::BitmapExists { .. }
            | Self::BitmapNameEmpty
            | Self::BitmapGranularity
            | Self::BitmapUnstorable { .. }
            | Self::InconsistentBitmap { .. }
            | Self::BitmapSizes { .. }
            | Self::BitmapTooLarge
            | Self::NoSnapshot
            | Self::NoDataFile
            | Self::RefcountFull { .. }
            | Self::RefcountTooWide { .. }
            | Self::SnapshotsFull { .. }
            | Self::CountsChanges
            | Self::RawDataFileHoldsAll
            | Self::VmstateTooFar { .. }
            | Self::ImageFull { .. } => FaultKind::Misuse,
            Self::CacheExhausted | Self::HeaderAdrift | Self::Occupied { .. } => FaultKind::Io,
            _ => FaultKind::Corrupt,
        }
    }

    fn errno(&self) -> Option<Errno> {
        matches!(self, Self::VmstateTooFar { .. }).then_some(Errno::EFBIG)
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
