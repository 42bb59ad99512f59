//! What a VHD image is made of.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use drystone_core::format::vpc::CreateOptions as CreateVpc;
use drystone_core::intent::Preallocation;
use drystone_core::job::ImageSpec;
use drystone_tools::img::create::CreateOptions;

/// From 1970 to 2000, where the format's time begins.
const EPOCH: Duration = Duration::from_secs(946_684_800);

/// The image that the options describe.
pub fn image_spec(options: &CreateOptions, preallocation: Preallocation) -> Result<ImageSpec, String> {
    let size = options.number("size").unwrap_or(0).next_multiple_of(512);
    let fixed = match options.text("subformat") {
        None | Some("dynamic") => false,
        Some("fixed") => true,
        Some(other) => return Err(format!("Parameter 'subformat' does not accept value '{other}'")),
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH + EPOCH).unwrap_or_default();
    Ok(ImageSpec::Vpc(CreateVpc {
        fixed,
        force_size: options.switch("force_size").unwrap_or(false),
        timestamp: u32::try_from(now.as_secs()).unwrap_or(u32::MAX),
        preallocation,
        ..CreateVpc::new(size)
    }))
}
