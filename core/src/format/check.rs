//! Check of an image in whatever format.

use super::{qcow2, qed, vdi, vhdx, vmdk};
use crate::engine::Io;
use crate::error::{Error, Result};
use crate::graph::NodeId;

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

/// Checks an image that is open and that nobody writes to.
///
/// `say` gets each finding as a line in the words of `qemu-img check`; `progress` how many bytes of metadata are done,
/// of about how many.
///
/// # Errors
/// [`Error::Unsupported`] where the format has no check, and when the image cannot be checked at all.
pub async fn check(
    io: &Io,
    node: NodeId,
    say: &mut dyn FnMut(String),
    progress: &dyn Fn(u64, u64),
) -> Result<CheckReport> {
    match io.driver(node).map_or("file", |driver| driver.name()) {
        "qcow2" => qcow2::check::check(io, node, say, progress).await,
        "qed" => qed::check(io, node).await,
        "vdi" => vdi::check(io, node, say).await,
        "vmdk" => vmdk::check(io, node, say).await,
        "vhdx" => vhdx::check(io, node, say).await,
        driver => Err(Box::new(Error::Unsupported { node: io.title(node), driver, what: "checks" })),
    }
}
