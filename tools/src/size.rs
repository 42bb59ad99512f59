//! Sizes: as people write them (`1.5G`), and as `info` prints them (`1.5 GiB (1610612736 bytes)`).

/// Why a text is no size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// It is not a number with an optional suffix.
    #[error("not a size")]
    Malformed,
    /// It is one, but negative or beyond 64 bits.
    #[error("size out of range")]
    OutOfRange,
}

/// The hint that follows a message about a malformed size in an option list.
pub const SIZE_HINT: &str = "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n\
                             and exabytes, respectively.";

/// Parses a size: decimal with an optional fraction and an optional suffix (`b k K M G T P E`, powers of 1024, in
/// either case), or hexadecimal without either.
///
/// A fraction of the unit is rounded to the nearest byte; a fraction of a byte is malformed unless it is zero. White
/// space and a plus may come first, nothing may follow.
///
/// # Errors
/// [`SizeError`].
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let text = text.trim_start_matches([' ', '\t', '\n', '\r', '\u{b}', '\u{c}']);
    if let Some(positive) = text.strip_prefix('-') {
        return Err(negative(positive));
    }
    let text = text.strip_prefix('+').unwrap_or(text);
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return hexadecimal(digits);
    }

    let (whole, rest) = split_digits(text);
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(rest) => split_digits(rest),
        None => ("", rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return Err(SizeError::Malformed);
    }
    let unit = unit_of(suffix).ok_or(SizeError::Malformed)?;
    let part: f64 = format!("0.{fraction}").parse().map_err(|_| SizeError::Malformed)?;
    if unit == 1 && part != 0.0 {
        return Err(SizeError::Malformed);
    }
    let whole = if whole.is_empty() { Ok(0) } else { whole.parse::<u64>() };
    let bytes = whole.ok().and_then(|whole| whole.checked_mul(unit)).ok_or(SizeError::OutOfRange)?;
    bytes.checked_add((part * unit as f64 + 0.5) as u64).ok_or(SizeError::OutOfRange)
}

/// Parses a plain number, decimal, hexadecimal (`0x`) or octal (`0`), as options of the kind "number" take it.
///
/// # Errors
/// [`SizeError`].
pub fn parse_number(text: &str) -> Result<u64, SizeError> {
    let text = text.trim_start_matches([' ', '\t', '\n', '\r', '\u{b}', '\u{c}']);
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let hex = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let (digits, radix) = match (hex, text.strip_prefix('0')) {
        (Some(digits), _) => (digits, 16),
        (None, Some(digits)) if !digits.is_empty() => (digits, 8),
        _ => (text, 10),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(SizeError::Malformed);
    }
    let number = u64::from_str_radix(digits, radix).map_err(|_| SizeError::OutOfRange)?;
    // The reference lets C's strtoull wrap a negative number around.
    Ok(if negative { number.wrapping_neg() } else { number })
}

/// A size for people, with three significant digits: `512 B`, `196 KiB`, `3.91 MiB`, `1 TiB`.
#[must_use]
pub fn humanise(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    // The unit changes at 1000, not 1024, so that no more than three digits stand before the point.
    let in_unit = |power: i32| bytes as f64 / 1024_f64.powi(power);
    let power = (0..6).find(|power| in_unit(*power) < 1000.0).unwrap_or(6);
    format!("{} {}B", three_digits(in_unit(power)), UNITS[power as usize])
}

/// A size for people followed by the exact one: `64 MiB (67108864 bytes)`.
#[must_use]
pub fn humanise_exactly(bytes: u64) -> String {
    format!("{} ({bytes} bytes)", humanise(bytes))
}

/// Three significant digits, without zeros at the end of a fraction (C's `%.3g` for 0 and numbers from 0.1 to 1000).
fn three_digits(number: f64) -> String {
    let decimals = match number {
        n if n >= 999.5 => return "1e+03".into(),
        n if n >= 99.95 => return format!("{n:.0}"),
        n if n >= 9.995 => 1,
        n if n >= 0.9995 => 2,
        _ => 3,
    };
    format!("{number:.decimals$}").trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A negative number of bytes is out of range; any other text behind a minus is malformed.
fn negative(text: &str) -> SizeError {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if digits { SizeError::OutOfRange } else { SizeError::Malformed }
}

fn hexadecimal(digits: &str) -> Result<u64, SizeError> {
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(SizeError::Malformed);
    }
    u64::from_str_radix(digits, 16).map_err(|_| SizeError::OutOfRange)
}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

fn unit_of(suffix: &str) -> Option<u64> {
    let exponent = match suffix {
        "" | "b" | "B" => 0,
        "k" | "K" => 1,
        "m" | "M" => 2,
        "g" | "G" => 3,
        "t" | "T" => 4,
        "p" | "P" => 5,
        "e" | "E" => 6,
        _ => return None,
    };
    Some(1 << (10 * exponent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_bases() {
        for (text, number) in [("16", 16), ("0x10", 16), ("010", 8), ("0", 0), (" +1", 1), ("-1", u64::MAX)] {
            assert_eq!(parse_number(text), Ok(number), "{text}");
        }
        for text in ["", "x", "8k", "1.0", "0x", "08", "-", "1 "] {
            assert_eq!(parse_number(text), Err(SizeError::Malformed), "{text}");
        }
        assert_eq!(parse_number("18446744073709551616"), Err(SizeError::OutOfRange));
    }

    #[test]
    fn three_digits_are_shown() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "0.977 KiB"),
            (1023, "0.999 KiB"),
            (1_023_500, "1e+03 KiB"),
            (1024, "1 KiB"),
            (4096, "4 KiB"),
            (1_048_064, "1 MiB"),
            (4_100_096, "3.91 MiB"),
            (67_108_864, "64 MiB"),
            (68_719_476_736, "64 GiB"),
            (1 << 40, "1 TiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(humanise(bytes), text);
        }
        assert_eq!(humanise_exactly(1536), "1.5 KiB (1536 bytes)");
    }
}
