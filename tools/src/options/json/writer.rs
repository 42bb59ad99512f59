//! Values to text.

use std::fmt::Write as _;

use serde_json::{Map, Number, Value};

/// Writes a value on one line: `{"driver": "raw", "file": {"driver": "file", "filename": "a"}}`.
#[must_use]
pub fn to_line(value: &Value) -> String {
    write(value, None)
}

/// Writes a value over several lines, four spaces a level, without a newline at the end.
///
/// Empty maps and lists take two lines as well.
#[must_use]
pub fn to_pages(value: &Value) -> String {
    write(value, Some(0))
}

/// The members of a map in the order in which the reference writes them.
///
/// It keeps maps in a hash table of 512 chains and walks the chains in turn; the newest entry of a chain comes first.
/// The order of members in `map` counts as the order in which they were added.
#[must_use]
pub fn in_reference_order(map: &Map<String, Value>) -> Vec<(&str, &Value)> {
    let mut members: Vec<_> = map.iter().map(|(key, value)| (key.as_str(), value)).rev().collect();
    members.sort_by_key(|(key, _)| chain_of(key));
    members
}

/// Number of chains in the reference's hash table.
const CHAINS: u32 = 512;

/// The chain that a key belongs to: each byte is shifted by its place and added, then the sum is scattered by a linear
/// congruential step.
fn chain_of(key: &str) -> u32 {
    let mut sum = 0x238f_13af_u32.wrapping_mul(key.len() as u32);
    for (at, byte) in key.bytes().enumerate() {
        sum = sum.wrapping_add(u32::from(byte) << (at * 5 % 24));
    }
    sum.wrapping_mul(1_103_515_243).wrapping_add(12_345) % CHAINS
}

fn write(value: &Value, level: Option<usize>) -> String {
    let mut out = String::new();
    Writer { out: &mut out, level }.value(value);
    out
}

struct Writer<'a> {
    out: &'a mut String,
    /// How deep the current value stands; `None` on one line.
    level: Option<usize>,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value) {
        match value {
            Value::Null => self.out.push_str("null"),
            Value::Bool(yes) => self.out.push_str(if *yes { "true" } else { "false" }),
            Value::Number(number) => self.number(number),
            Value::String(text) => quote(self.out, text),
            Value::Array(items) => self.group("[", items, "]", |writer, item| writer.value(item)),
            Value::Object(map) => self.group("{", &in_reference_order(map), "}", |writer, (key, value)| {
                quote(writer.out, key);
                writer.out.push_str(": ");
                writer.value(value);
            }),
        }
    }

    fn group<T>(&mut self, open: &str, items: &[T], close: &str, mut one: impl FnMut(&mut Self, &T)) {
        self.out.push_str(open);
        self.level = self.level.map(|level| level + 1);
        for (at, item) in items.iter().enumerate() {
            if at > 0 {
                self.out.push_str(if self.level.is_some() { "," } else { ", " });
            }
            self.new_line();
            one(self, item);
        }
        self.level = self.level.map(|level| level - 1);
        self.new_line();
        self.out.push_str(close);
    }

    fn new_line(&mut self) {
        if let Some(level) = self.level {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n("    ", level));
        }
    }

    fn number(&mut self, number: &Number) {
        match number.as_f64() {
            Some(float) if number.is_f64() => self.out.push_str(&shortest_of_17_digits(float)),
            _ => write!(self.out, "{number}").expect("writing to a string does not fail"),
        }
    }
}

/// What C's `%.17g` prints: 17 significant digits without trailing zeros, in scientific notation when the exponent is
/// below -4 or above 16.
fn shortest_of_17_digits(float: f64) -> String {
    let scientific = format!("{float:.16e}");
    let (digits, exponent) = scientific.split_once('e').expect("the format has an exponent");
    let exponent: i32 = exponent.parse().expect("the exponent is a number");
    let trim = |text: &str| text.trim_end_matches('0').trim_end_matches('.').to_owned();
    if (-4..17).contains(&exponent) {
        let decimals = usize::try_from(16 - exponent).expect("the exponent is at most 16");
        let plain = format!("{float:.decimals$}");
        return if decimals == 0 { plain } else { trim(&plain) };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{}e{sign}{:02}", trim(digits), exponent.abs())
}

/// Everything outside printable ASCII is escaped, characters beyond 16 bits as a pair.
fn quote(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            ' '..='~' => out.push(c),
            other => {
                for unit in other.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04X}").expect("writing to a string does not fail");
                }
            }
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lines_and_pages() {
        let value = json!({"file": {"filename": "r", "driver": "file"}, "size": 1024, "driver": "raw", "offset": null});
        assert_eq!(
            to_line(&value),
            r#"{"offset": null, "driver": "raw", "size": 1024, "file": {"driver": "file", "filename": "r"}}"#
        );
        assert_eq!(to_pages(&json!([{"data": {}}])), "[\n    {\n        \"data\": {\n        }\n    }\n]");
    }

    #[test]
    fn characters_outside_ascii_are_escaped() {
        assert_eq!(to_line(&json!("é\"𝄞\u{7f}\t\u{1}")), r#""\u00E9\"\uD834\uDD1E\u007F\t\u0001""#);
    }

    #[test]
    fn floats_have_17_digits() {
        // Expected: C's printf("%.17g").
        for (float, text) in [
            (1536.0, "1536"),
            (0.1, "0.10000000000000001"),
            (1e20, "1e+20"),
            (1.5e-7, "1.4999999999999999e-07"),
            (123_456_789.25, "123456789.25"),
            (-2.5, "-2.5"),
            (0.0, "0"),
            (1e16, "10000000000000000"),
            (1e17, "1e+17"),
        ] {
            assert_eq!(to_line(&json!(float)), text);
        }
    }
}
