//! VMDK: what its images are made with.

use drystone_core::format::vmdk::{Adapter, CreateOptions as Vmdk, Subformat};
use drystone_core::job::ImageSpec;
use drystone_tools::img::create::CreateOptions;

/// The image that the options describe.
pub fn image_spec(options: &CreateOptions) -> Result<ImageSpec, String> {
    let invalid = |value: &str| format!("invalid parameter value: {value}");
    let adapter = match options.text("adapter_type") {
        None => Adapter::default(),
        Some(name) => Adapter::from_name(name).ok_or_else(|| invalid(name))?,
    };
    let subformat = match options.text("subformat") {
        None => Subformat::default(),
        Some(name) => Subformat::from_name(name).ok_or_else(|| invalid(name))?,
    };
    if options.text("backing_fmt").is_some_and(|format| format != "vmdk") {
        return Err("backing_file must be a vmdk image".into());
    }
    let hw_version = match (options.text("hwversion"), options.switch("compat6")) {
        (None | Some("undefined"), Some(true)) => "6",
        (Some(_), Some(true)) => return Err("compat6 cannot be enabled with hwversion set".into()),
        (None | Some("undefined"), _) => "4",
        (Some(version), _) => version,
    };
    let plain = |text: &str| !text.contains(['"', '\n', '\r']);
    let tools_version = options.text("toolsversion").unwrap_or("2147483647");
    let backing = options.text("backing_file").map(str::to_owned);
    for text in [hw_version, tools_version, backing.as_deref().unwrap_or_default()] {
        if !plain(text) {
            return Err(invalid(text));
        }
    }
    let size = options.number("size").unwrap_or(0).next_multiple_of(512);
    Ok(ImageSpec::Vmdk(Vmdk {
        size,
        subformat,
        adapter,
        backing,
        hw_version: hw_version.into(),
        tools_version: tools_version.into(),
        zeroed_grain: options.switch("zeroed_grain").unwrap_or(false),
    }))
}
