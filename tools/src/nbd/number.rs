//! Whole numbers as C reads them: decimal, octal behind a `0`, hexadecimal behind `0x`.

/// Reads all of a text as a number of at most 64 bits and its sign. Blanks before it do not count.
pub(super) fn parse(text: &str) -> Option<i128> {
    let text = text.trim_start_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r']);
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if text.len() > 1 && text.starts_with('0') => (text, 8),
        None => (text, 10),
    };
    // The standard library takes a sign here, too.
    if !digits.chars().all(|digit| digit.is_digit(radix)) {
        return None;
    }
    let number = i128::from(u64::from_str_radix(digits, radix).ok()?);
    Some(if negative { -number } else { number })
}

/// Reads a number that is neither negative nor larger than C's `int`.
pub(super) fn parse_small(text: &str) -> Option<u32> {
    parse(text).and_then(|number| i32::try_from(number).ok()).and_then(|number| u32::try_from(number).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_in_c() {
        for (text, expected) in [
            ("12", Some(12)),
            ("0", Some(0)),
            ("-0", Some(0)),
            ("0200", Some(128)),
            ("0x1F", Some(31)),
            ("0X1f", Some(31)),
            (" \t+5", Some(5)),
            ("-7", Some(-7)),
            ("18446744073709551615", Some(i128::from(u64::MAX))),
            ("18446744073709551616", None),
            ("08", None),
            ("0x", None),
            ("0x+5", None),
            ("+-5", None),
            ("5 ", None),
            ("2M", None),
            ("", None),
            ("-", None),
        ] {
            assert_eq!(parse(text), expected, "{text:?}");
        }
        assert_eq!(["2147483647", "2147483648", "-1"].map(parse_small), [Some(2_147_483_647), None, None]);
    }
}
