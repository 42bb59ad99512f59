//! What `create` decides before the engine makes an image, and the line it prints.
//!
//! ```text
//!   CreateArgs ─▶ CreateRequest::new ─▶ (open the backing file, if any) ─▶ finish ─▶ CreateOptions ─▶ (make it)
//! ```

mod formats;
mod options;

pub use formats::{CreateOption, Kind, options_of};
pub use options::{CreateOptions, OptionError};

use super::args::CreateArgs;
use crate::message::Failure;

/// An image to make, before its backing file was looked at.
#[derive(Clone, Debug)]
pub struct CreateRequest {
    filename: String,
    options: CreateOptions,
    /// The backing file and its format, when it has to be opened.
    backing_to_open: Option<(String, Option<String>)>,
    size: Option<u64>,
}

/// What was found when the backing file was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackingFound {
    /// Its virtual size.
    pub virtual_size: u64,
    /// Its format.
    pub format: String,
}

/// The formats and protocols that the engine knows.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Formats and protocols by name, those that make no images too.
    pub drivers: &'a [&'a str],
    /// The protocol of the file name; an error is the protocol in the name, which is not known.
    pub protocol: Result<&'a str, &'a str>,
}

/// The text that `-o help` asks for; `filename` is the target, if one was given.
///
/// # Errors
/// When format or protocol are not known or make no images.
pub fn option_help(format: &str, filename: Option<&str>, known: Known<'_>) -> Result<String, Failure> {
    let own = create_options(format, None, known).map_err(Failure::new)?;
    if filename.is_none() {
        return Ok(own.help(None));
    }
    let protocol = known.protocol.map_err(|name| Failure::new(format!("Unknown protocol '{name}'")))?;
    let options = create_options(format, Some(protocol), known).map_err(Failure::new)?;
    Ok(options.help(Some(protocol)))
}

impl CreateRequest {
    /// Checks all that can be checked without opening a file.
    ///
    /// # Errors
    /// What is wrong, in the words of the reference.
    pub fn new(args: &CreateArgs, known: Known<'_>) -> Result<Self, Failure> {
        let failure = |error: String| Failure::new(format!("{}: {error}", args.filename));
        let format_options = create_options(&args.format, None, known).map_err(failure)?;
        let protocol = known.protocol.map_err(|name| failure(format!("Unknown protocol '{name}'")))?;
        let mut options = create_options(&args.format, Some(protocol), known).map_err(failure)?;
        if let Some(list) = &args.options {
            options.apply(list).map_err(|error| failure(error.to_string()))?;
        }
        let format = format_options.format();
        if let Some(backing) = &args.backing {
            let unsupported = |_| failure(format!("Backing file not supported for file format '{format}'"));
            options.set("backing_file", backing.clone()).map_err(unsupported)?;
        }
        if let Some(backing_format) = &args.backing_format {
            let unsupported =
                |_| failure(format!("Backing file format not supported for file format '{format}'"));
            options.set("backing_fmt", backing_format.clone()).map_err(unsupported)?;
        }
        let backing = options.text("backing_file").map(str::to_owned);
        match backing.as_deref() {
            Some("") => return Err(failure("Expected backing file name, got empty string".into())),
            Some(backing) if backing == args.filename => {
                let text = "Error: Trying to create an image with the same filename as the backing file";
                return Err(failure(text.into()));
            }
            _ => {}
        }
        // The largest number of 64 bits counts as no size.
        let size = match (options.number("size").filter(|size| *size != u64::MAX), args.size) {
            (Some(_), Some(_)) => return Err(failure("The image size must be specified only once".into())),
            (in_options, argument) => in_options.or(argument),
        };
        let backing_format = options.text("backing_fmt").map(str::to_owned);
        let backing_to_open =
            backing.filter(|_| !args.backing_unsafe).map(|backing| (backing, backing_format));
        Ok(Self { filename: args.filename.clone(), options, backing_to_open, size })
    }

    /// The backing file that is to be opened, read-only, and its format if it was given.
    ///
    /// When that fails, the command fails with [`backing_failure`](Self::backing_failure).
    #[must_use]
    pub fn backing_to_open(&self) -> Option<(&str, Option<&str>)> {
        self.backing_to_open.as_ref().map(|(name, format)| (name.as_str(), format.as_deref()))
    }

    /// The failure when the backing file cannot be opened; `error` is why, such as `Could not open 'x': …`.
    #[must_use]
    pub fn backing_failure(&self, error: &str) -> Failure {
        Failure::new(format!("{}: {error}\nCould not open backing image.", self.filename))
    }

    /// Completes the options with what was found in the backing file.
    ///
    /// # Errors
    /// When the backing file's format or a size is missing.
    pub fn finish(mut self, found: Option<&BackingFound>) -> Result<CreateOptions, Failure> {
        let failure = |error: String| Failure::new(format!("{}: {error}", self.filename));
        if self.options.text("backing_file").is_some() && self.options.text("backing_fmt").is_none() {
            let detected =
                found.map_or(String::new(), |found| format!("\nDetected format of {}.", found.format));
            return Err(failure(format!("Backing file specified without backing format{detected}")));
        }
        let Some(size) = self.size.or(found.map(|found| found.virtual_size)) else {
            return Err(failure("Image creation needs a size parameter".into()));
        };
        let set = self.options.set("size", size.to_string());
        set.expect("every format has a size, and this one is a number");
        Ok(self.options)
    }
}

/// The options of an image of so many bytes and no others, for a command that makes one by the way.
///
/// # Errors
/// When the format or the protocol makes no images.
pub fn new_image(format: &str, size: u64, known: Known<'_>) -> Result<CreateOptions, Failure> {
    if !known.drivers.contains(&format) {
        return Err(Failure::new("Unknown file format"));
    }
    let protocol = known.protocol.map_err(|name| Failure::new(format!("Unknown protocol '{name}'")))?;
    let mut options = create_options(format, Some(protocol), known).map_err(Failure::new)?;
    options.set("size", size.to_string()).expect("every format has a size, and this one is a number");
    Ok(options)
}

/// The options with which `format` makes an image on `protocol`.
pub(super) fn create_options(
    format: &str,
    protocol: Option<&str>,
    known: Known<'_>,
) -> Result<CreateOptions, String> {
    if !known.drivers.contains(&format) {
        return Err(format!("Unknown file format '{format}'"));
    }
    let unable = |kind: &str, name: &str| format!("{kind} driver '{name}' does not support image creation");
    let own = CreateOptions::new(format, None).ok_or_else(|| unable("Format", format))?;
    match protocol {
        None => Ok(own),
        Some(name) => CreateOptions::new(format, protocol).ok_or_else(|| unable("Protocol", name)),
    }
}
