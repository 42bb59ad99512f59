//! The options of the formats that have a row in [`ImageFormat`].

use super::values::Options;
use super::{OpenMode, refused};
use crate::error::Result;
use crate::format::ImageFormat;
use crate::format::luks::LuksOptions;
use crate::format::vpc::SizeRule;
use crate::graph::open::{ChildSpec, DriverSpec, NodeSpec};

/// Reads what a format has beside its file.
pub(super) fn image(
    options: &mut Options,
    driver: &str,
    file: Box<NodeSpec>,
    below: OpenMode,
    depth: usize,
) -> Result<DriverSpec> {
    let format = match driver {
        "luks" => ImageFormat::Luks(luks(options, below, depth)?),
        "qcow" => ImageFormat::Qcow,
        "qed" => ImageFormat::Qed,
        "vdi" => ImageFormat::Vdi,
        "vmdk" => ImageFormat::Vmdk,
        "vhdx" => ImageFormat::Vhdx,
        "vpc" => ImageFormat::Vpc { size: vpc_size(options)? },
        unknown => return Err(refused(format!("Unknown driver '{unknown}'"))),
    };
    let backing = match format.has_backing() {
        true => super::backing_child(options, below)?,
        false => ChildSpec::None,
    };
    Ok(DriverSpec::Image { format, file, backing, metadata_only: false })
}

/// Which of the two sizes in a VHD image counts.
fn vpc_size(options: &mut Options) -> Result<SizeRule> {
    match options.text("force_size_calc").as_deref() {
        None => Ok(SizeRule::ByCreator),
        Some("chs") => Ok(SizeRule::Chs),
        Some("current_size") => Ok(SizeRule::CurrentSize),
        Some(other) => Err(refused(format!("Invalid size calculation mode: '{other}'"))),
    }
}

/// Whether a driver is one of these formats.
pub(super) fn is_image(driver: &str) -> bool {
    matches!(driver, "luks" | "qcow" | "qed" | "vdi" | "vhdx" | "vmdk" | "vpc")
}

fn luks(options: &mut Options, below: OpenMode, depth: usize) -> Result<LuksOptions> {
    let key_secret = options.text("key-secret");
    let has_header = options.has("header") || options.has_below("header");
    let header = match has_header {
        true => Some(Box::new(super::child(options, "header", None, below, depth)?)),
        false => None,
    };
    Ok(LuksOptions { key_secret, header })
}
