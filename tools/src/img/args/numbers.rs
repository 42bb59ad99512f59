//! Sizes and numbers as arguments of options.

use crate::message::{Failure, Message};
use crate::size::{SizeError, parse_number, parse_size};

/// Reads a size from 0 to 2^63 - 1; `what` names it in messages.
pub(super) fn size(what: &str, text: &str) -> Result<u64, Failure> {
    size_within(what, text, 0, i64::MAX as u64)
}

/// Reads a size from `min` to `max`.
pub(super) fn size_within(what: &str, text: &str, min: u64, max: u64) -> Result<u64, Failure> {
    match parse_size(text) {
        Ok(size) if (min..=max).contains(&size) => Ok(size),
        Ok(_) | Err(SizeError::OutOfRange) => {
            Err(Failure::new(format!("Invalid {what} specified. Must be between {min} and {max}.")))
        }
        Err(SizeError::Malformed) => {
            let first = format!("Invalid {what} specified. You may use k, M, G, T, P or E suffixes for");
            let second = "kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes.";
            Err(Failure {
                messages: vec![Message::Error(first), Message::Error(second.into())],
                ..Failure::new("")
            })
        }
    }
}

/// Reads a plain number from `min` to `max`; any mistake gives the same message.
pub(super) fn number_within(text: &str, min: u64, max: u64, message: &str) -> Result<u64, Failure> {
    let number = parse_number(text).ok().filter(|number| (min..=max).contains(number));
    number.ok_or_else(|| Failure::new(message))
}
