//! Image formats, one folder each, with the same file names in every folder. What several of them need is here.

mod cache;
pub mod qcow2;
pub mod raw;
pub mod vdi;

/// A byte of the file that holds the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostOffset(pub u64);

/// A byte of the disk that the guest sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestOffset(pub u64);

/// What a check found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Errors that can cost data.
    pub corruptions: u64,
    /// Clusters whose refcount is higher than the number of references to them.
    pub leaks: u64,
    /// What could not be checked.
    pub check_errors: u64,
    /// Errors that were repaired; `corruptions` are those that are left.
    pub corruptions_fixed: u64,
    /// Leaks that were repaired; `leaks` are those that are left.
    pub leaks_fixed: u64,
    /// End of the last cluster that has a refcount or a reference.
    pub image_end_offset: u64,
    /// Clusters of the guest's disk.
    pub total_clusters: u64,
    /// Those that the active L1 table allocates.
    pub allocated_clusters: u64,
    /// Those that do not follow the one before them in the file.
    pub fragmented_clusters: u64,
    /// Those that are compressed.
    pub compressed_clusters: u64,
}
