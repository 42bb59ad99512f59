//! What commands say when an image cannot be opened, or was opened on a guess.

use crate::message::{Failure, Message};
use crate::options::ImageName;

/// The failure when an image cannot be opened; `error` is why.
#[must_use]
pub fn cannot_open(name: &ImageName, error: &str) -> Failure {
    Failure::new(format!("Could not open '{}': {error}", name.text()))
}

/// What is said when an image that is to be written was taken for `raw` because nothing else fits.
#[must_use]
pub fn guessed_raw(filename: &str) -> Message {
    Message::Plain(format!(
        "WARNING: Image format was not specified for '{filename}' and probing guessed raw.\n         \
         Automatically detecting the format is dangerous for raw images, write operations on block 0 will be \
         restricted.\n         \
         Specify the 'raw' format explicitly to remove the restrictions."
    ))
}
