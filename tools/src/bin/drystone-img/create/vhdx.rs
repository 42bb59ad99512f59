//! What a VHDX image is made of.

use drystone_core::format::vhdx::CreateOptions as CreateVhdx;
use drystone_core::job::ImageSpec;
use drystone_tools::img::create::CreateOptions;

/// The image that the options describe.
pub fn image_spec(options: &CreateOptions) -> Result<ImageSpec, String> {
    let size = options.number("size").unwrap_or(0).next_multiple_of(512);
    let fixed = match options.text("subformat") {
        None | Some("dynamic") => false,
        Some("fixed") => true,
        Some(other) => return Err(format!("Parameter 'subformat' does not accept value '{other}'")),
    };
    let defaults = CreateVhdx::new(size);
    Ok(ImageSpec::Vhdx(CreateVhdx {
        block_size: options.number("block_size").unwrap_or(defaults.block_size),
        log_size: options.number("log_size").unwrap_or(defaults.log_size),
        fixed,
        block_state_zero: options.switch("block_state_zero").unwrap_or(defaults.block_state_zero),
        ..defaults
    }))
}
