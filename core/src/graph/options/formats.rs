//! The options of the formats that have a row in [`ImageFormat`].

use super::values::Options;
use super::{OpenMode, refused};
use crate::error::Result;
use crate::format::ImageFormat;
use crate::format::parallels::{ParallelsOptions, PreallocMode};
use crate::graph::open::{ChildSpec, DriverSpec, NodeSpec};

/// Reads what a format has beside its file.
pub(super) fn image(
    options: &mut Options,
    driver: &str,
    file: Box<NodeSpec>,
    below: OpenMode,
) -> Result<DriverSpec> {
    let format = match driver {
        "bochs" => ImageFormat::Bochs,
        "cloop" => ImageFormat::Cloop,
        "dmg" => ImageFormat::Dmg,
        "parallels" => ImageFormat::Parallels(parallels(options)?),
        "vdi" => ImageFormat::Vdi,
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
    matches!(driver, "bochs" | "cloop" | "dmg" | "parallels" | "vdi")
}

fn parallels(options: &mut Options) -> Result<ParallelsOptions> {
    let modes = [("falloc", PreallocMode::Falloc), ("truncate", PreallocMode::Truncate)];
    let usual = ParallelsOptions::default();
    Ok(ParallelsOptions {
        prealloc_mode: options.one_of("prealloc-mode", &modes)?.unwrap_or(usual.prealloc_mode),
        prealloc_size: options.size("prealloc-size")?.unwrap_or(usual.prealloc_size),
        ..usual
    })
}
