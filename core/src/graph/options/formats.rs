//! The options of the formats that have a row in [`ImageFormat`].

use super::values::Options;
use super::{OpenMode, refused};
use crate::error::Result;
use crate::format::ImageFormat;
use crate::graph::open::{ChildSpec, DriverSpec, NodeSpec};

/// Reads what a format has beside its file.
pub(super) fn image(
    options: &mut Options,
    driver: &str,
    file: Box<NodeSpec>,
    below: OpenMode,
) -> Result<DriverSpec> {
    let format = match driver {
        "qcow" => ImageFormat::Qcow,
        "qed" => ImageFormat::Qed,
        "vdi" => ImageFormat::Vdi,
        "vmdk" => ImageFormat::Vmdk,
        unknown => return Err(refused(format!("Unknown driver '{unknown}'"))),
    };
    let backing = match format.has_backing() {
        true => super::backing_child(options, below)?,
        false => ChildSpec::None,
    };
    Ok(DriverSpec::Image { format, file, backing, metadata_only: false })
}

/// Whether a driver is one of these formats.
pub(super) fn is_image(driver: &str) -> bool {
    matches!(driver, "qcow" | "qed" | "vdi" | "vmdk")
}
