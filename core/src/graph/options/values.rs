//! The options of one node that nobody has read yet, and how values of each kind are read.

use serde_json::{Map, Value};

use super::refused;
use crate::error::{Error, Result};

/// What the reference says below a size that it cannot read.
const SIZE_HINT: &str = "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n\
                         and exabytes, respectively.";

/// Options under dotted keys; values are scalars, or maps and lists without anything in them.
pub(super) struct Options(Map<String, Value>);

impl Options {
    /// Turns nested maps and lists into dotted keys. A later value replaces an earlier one.
    pub(super) fn flat(map: Map<String, Value>) -> Self {
        let mut flat = Map::new();
        flatten(String::new(), Value::Object(map), &mut flat);
        Self(flat)
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// Whether there is an option of a child.
    pub(super) fn has_below(&self, key: &str) -> bool {
        self.0.keys().any(|name| name.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the option is there and null.
    pub(super) fn take_null(&mut self, key: &str) -> bool {
        let null = self.0.get(key).is_some_and(Value::is_null);
        if null {
            self.0.shift_remove(key);
        }
        null
    }

    /// The options of a child.
    pub(super) fn below(&mut self, key: &str) -> Self {
        let mut below = Map::new();
        let mut rest = Map::new();
        for (name, value) in std::mem::take(&mut self.0) {
            match name.strip_prefix(key).and_then(|name| name.strip_prefix('.')) {
                Some(name) => below.insert(name.to_owned(), value),
                None => rest.insert(name, value),
            };
        }
        self.0 = rest;
        Self(below)
    }

    pub(super) fn into_map(self) -> Map<String, Value> {
        self.0
    }

    /// Every option with its value as text; what is no scalar has none.
    pub(super) fn into_texts(mut self) -> Vec<(String, String)> {
        let keys: Vec<String> = self.0.keys().cloned().collect();
        keys.into_iter()
            .map(|key| (self.text(&key).unwrap_or_default(), key))
            .map(|(text, key)| (key, text))
            .collect()
    }

    pub(super) fn put(&mut self, key: &str, value: &str) {
        self.0.insert(key.into(), value.into());
    }

    /// Any scalar, as it would be written in a list of options; what is none stays for [`finish`](Self::finish).
    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        let text = match self.0.get(key)? {
            Value::String(text) => text.clone(),
            Value::Bool(true) => "on".into(),
            Value::Bool(false) => "off".into(),
            Value::Number(number) => number.to_string(),
            Value::Null | Value::Array(_) | Value::Object(_) => return None,
        };
        self.0.shift_remove(key);
        Some(text)
    }

    /// A string, and nothing that would have to be turned into one.
    pub(super) fn word(&mut self, key: &str) -> Option<String> {
        if self.0.get(key)?.is_string() { self.text(key) } else { None }
    }

    pub(super) fn switch(&mut self, key: &str) -> Result<Option<bool>> {
        match self.text(key).as_deref() {
            None => Ok(None),
            Some("on" | "yes" | "true" | "y") => Ok(Some(true)),
            Some("off" | "no" | "false" | "n") => Ok(Some(false)),
            Some(_) => Err(refused(format!("Parameter '{key}' expects 'on' or 'off'"))),
        }
    }

    /// A number of bytes, with or without one of the suffixes b, k, M, G, T, P, E.
    pub(super) fn size(&mut self, key: &str) -> Result<Option<u64>> {
        let Some(text) = self.text(key) else { return Ok(None) };
        match size(&text) {
            Size::Bytes(bytes) => Ok(Some(bytes)),
            Size::OutOfRange => Err(refused(format!("Value '{text}' is out of range for parameter '{key}'"))),
            Size::Malformed => Err(refused(format!(
                "Parameter '{key}' expects a non-negative number below 2^64\n{SIZE_HINT}"
            ))),
        }
    }

    /// A whole number; below zero it counts back from 2^64, as in the reference.
    pub(super) fn number(&mut self, key: &str) -> Result<Option<u64>> {
        let Some(text) = self.text(key) else { return Ok(None) };
        let number = text.parse::<u64>().or_else(|_| text.parse::<i64>().map(i64::cast_unsigned));
        number.map(Some).map_err(|_| refused(format!("Parameter '{key}' expects a number")))
    }

    pub(super) fn one_of<T: Copy>(&mut self, key: &str, values: &[(&str, T)]) -> Result<Option<T>> {
        let Some(text) = self.text(key) else { return Ok(None) };
        let found = values.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        found.map(Some).ok_or_else(|| refused(format!("invalid parameter value: {text}")))
    }

    /// Refuses what nobody has read.
    pub(super) fn finish(self, driver: &str) -> Result<()> {
        let Some(key) = self.0.keys().next() else { return Ok(()) };
        Err(Box::new(Error::UnknownOption(match driver {
            "file" | "host_device" | "null-co" | "null-aio" | "nvme" | "nbd" | "blkdebug" | "blkverify" => {
                format!("Block protocol '{driver}' doesn't support the option '{key}'")
            }
            _ => format!("Block format '{driver}' does not support the option '{key}'"),
        })))
    }
}

fn flatten(key: String, value: Value, flat: &mut Map<String, Value>) {
    let under = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
    match value {
        Value::Object(map) if key.is_empty() || !map.is_empty() => {
            for (name, value) in map {
                flatten(under(&name), value, flat);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (at, value) in items.into_iter().enumerate() {
                flatten(under(&at.to_string()), value, flat);
            }
        }
        scalar => drop(flat.insert(key, scalar)),
    }
}

enum Size {
    Bytes(u64),
    OutOfRange,
    Malformed,
}

fn size(text: &str) -> Size {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    let shift = match suffix {
        "" | "b" | "B" => 0,
        "k" | "K" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        "P" | "p" => 50,
        "E" | "e" => 60,
        _ => return Size::Malformed,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // Fractions of bytes are none.
    if !digits(whole) || (number.contains('.') && (!digits(fraction) || shift == 0)) {
        return Size::Malformed;
    }
    if text.starts_with('-') {
        return Size::OutOfRange;
    }
    let part = format!("0.{fraction}0").parse::<f64>().map_or(0.0, |part| part * (1u64 << shift) as f64);
    let bytes = whole.parse::<u64>().ok().and_then(|whole| whole.checked_mul(1 << shift));
    match bytes.and_then(|bytes| bytes.checked_add(part as u64)) {
        Some(bytes) => Size::Bytes(bytes),
        None => Size::OutOfRange,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_suffixes_and_fractions() {
        for (text, bytes) in [("0", 0), ("1k", 1024), ("1.5M", 3 << 19), ("7E", 7 << 60), ("12b", 12)] {
            assert!(matches!(size(text), Size::Bytes(found) if found == bytes), "{text}");
        }
        for text in ["", "k", "1Z", "1.5", "1.", ".5M", "x", "1kk", "0x10"] {
            assert!(matches!(size(text), Size::Malformed), "{text}");
        }
        for text in ["-1", "16E", "99999999999999999999"] {
            assert!(matches!(size(text), Size::OutOfRange), "{text}");
        }
    }
}
