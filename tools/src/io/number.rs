//! Numbers of commands: offsets, lengths, patterns.

use super::command::Refusal;
use crate::size::{SizeError, parse_number, parse_size};

/// Bytes that one request moves at the most: the reference's limit, whole sectors below 2^31.
pub(super) const REQUEST_MAX: u64 = 2_147_483_136;

/// Bytes of a sector.
pub(super) const SECTOR: u64 = 512;

/// Reads an offset or a length.
pub(super) fn number(text: &str) -> Result<u64, Refusal> {
    let bytes = parse_size(text).and_then(|bytes| match i64::try_from(bytes) {
        Ok(_) => Ok(bytes),
        Err(_) => Err(SizeError::OutOfRange),
    });
    bytes.map_err(|error| {
        let what = match error {
            SizeError::Malformed => "non-numeric argument, or extraneous/unrecognized suffix",
            SizeError::OutOfRange => "argument too large",
        };
        Refusal::Said(format!("Parsing error: {what} -- {text}"))
    })
}

/// Reads a byte: decimal, hexadecimal with `0x`, octal with `0`.
pub(super) fn pattern(text: &str) -> Result<u8, Refusal> {
    let byte = parse_number(text).ok().and_then(|number| u8::try_from(number).ok());
    byte.ok_or_else(|| Refusal::Said(format!("{text} is not a valid pattern byte")))
}

/// Reads a whole number as C's `strtol` does, which is held at its end.
pub(super) fn milliseconds(text: &str) -> Result<u64, Refusal> {
    match (parse_number(text), text.starts_with('-')) {
        (Ok(0), _) => Ok(0),
        (Ok(number), false) => Ok(number),
        (Err(SizeError::OutOfRange), false) => Ok(u64::MAX),
        _ => Err(Refusal::Said(format!("{text} is not a valid number"))),
    }
}

/// Refuses what begins or ends within a sector.
pub(super) fn whole_sectors(offset: u64, count: u64) -> Result<(), Refusal> {
    for (value, what) in [(offset, "offset"), (count, "count")] {
        if !value.is_multiple_of(SECTOR) {
            return Err(Refusal::Said(format!("{value} is not a sector-aligned value for '{what}'")));
        }
    }
    Ok(())
}
