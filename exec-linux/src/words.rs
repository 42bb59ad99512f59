//! Errors of the kernel in messages.

use std::io;

/// The words of an error, without its number.
pub fn io_error_words(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}
