//! luks: what its volumes are made with, and what a command that made one opens it with.

use drystone_core::format::luks::CreateOptions as Volume;
use drystone_core::job::ImageSpec;
use drystone_tools::img::create::CreateOptions;
use drystone_tools::img::luks::LuksChoice;
use serde_json::{Map, Value};

use super::preallocation;

/// The volume that the options describe.
pub fn image_spec(options: &CreateOptions) -> Result<ImageSpec, String> {
    let size = options.number("size").unwrap_or(0).next_multiple_of(512);
    let choice = LuksChoice::parse(options, "")?;
    let volume = choice.volume(size, options.number("iter-time"))?;
    // The reference lists this option and refuses it whenever it is used.
    let detached = options.switch("detached-header").unwrap_or(false);
    Ok(ImageSpec::Luks(Volume { preallocation: preallocation(options)?, detached, ..volume }))
}

/// The options that open a volume, or an encrypted image, that was made with `options`.
pub fn open_options(options: &CreateOptions) -> Map<String, Value> {
    let keys: &[&str] = match options.format() {
        "luks" => &["key-secret"],
        _ => &["encrypt.format", "encrypt.key-secret"],
    };
    let given = keys.iter().filter(|key| options.has(key));
    given.filter_map(|key| Some(((*key).to_owned(), options.text(key)?.into()))).collect()
}
