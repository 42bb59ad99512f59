//! What people type: option strings, JSON, sizes.

use drystone_conformance::trace::tell;
use drystone_core::graph::open::OpenMode;
use drystone_core::graph::options::from_options;
use drystone_tools::options::{ImageName, flatten, json as json_format, nest, parse_keyval, parse_list};
use drystone_tools::size::{humanise, parse_number, parse_size};
use fastrand::Rng;
use serde_json::Value;

/// Nesting that a text may have at the most before it is left to the parser's own limit.
const TEXT_MAX: usize = 4096;

fn text(data: &[u8]) -> String {
    String::from_utf8_lossy(&data[..data.len().min(TEXT_MAX)]).into_owned()
}

/// An option string, read in every way in which command lines are.
///
/// # Panics
/// When what was read does not survive being written.
pub fn options(data: &[u8]) {
    let text = text(data);
    let pairs = parse_list(&text, Some("file"));
    tell(|| format!("{pairs:?}"));
    let written: Vec<String> =
        pairs.iter().map(|pair| format!("{}={}", pair.key, pair.value.replace(',', ",,"))).collect();
    let again = parse_list(&written.join(","), None);
    let same = |a: &[drystone_tools::options::Pair], b: &[drystone_tools::options::Pair]| {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (&a.key, &a.value) == (&b.key, &b.value))
    };
    assert!(same(&pairs, &again), "{pairs:?} became {again:?}");
    let keyval = parse_keyval(&text, "driver");
    tell(|| format!("{keyval:?}"));
    for name in [ImageName::from_filename(&text), ImageName::from_image_opts(&text).map(|(name, _)| name)] {
        tell(|| format!("{name:?}"));
        let Ok(name) = name else { continue };
        let options = name.options();
        if let Ok(nested) = nest(options.clone()) {
            assert_eq!(nest(flatten(nested.clone())), Ok(nested), "options do not survive being flattened");
        }
        match from_options(options, OpenMode::default()) {
            Ok(spec) => tell(|| format!("{spec:?}")),
            Err(error) => assert!(!error.to_string().is_empty(), "an error has words"),
        }
    }
}

/// JSON as the tools read and write it.
///
/// # Panics
/// When what was read does not survive being written.
pub fn json(data: &[u8]) {
    let parsed = json_format::parse(&text(data));
    tell(|| format!("{parsed:?}"));
    let Ok(value) = parsed else { return };
    for written in [json_format::to_line(&value), json_format::to_pages(&value)] {
        let again = json_format::parse(&written);
        assert!(
            again.as_ref().is_ok_and(|again| alike(again, &value)),
            "{value:?}, written {written}, is {again:?}"
        );
    }
}

/// Whether two values are the same but for the order of keys, in which the reference prints them.
fn alike(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len()
                && a.iter().all(|(key, value)| b.get(key).is_some_and(|other| alike(value, other)))
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| alike(a, b)),
        // Floats are printed with as many digits as C prints.
        (Value::Number(a), Value::Number(b)) if a.is_f64() || b.is_f64() => {
            let (a, b) = (a.as_f64().unwrap_or_default(), b.as_f64().unwrap_or_default());
            a == b || (a - b).abs() <= a.abs() * 1e-9
        }
        _ => a == b,
    }
}

/// Sizes and numbers.
///
/// # Panics
/// When a number does not survive being written.
pub fn size(data: &[u8]) {
    let text = text(data);
    let (size, number) = (parse_size(&text), parse_number(&text));
    tell(|| format!("{text:?}: {size:?} {number:?}"));
    for bytes in [size, number].into_iter().flatten() {
        tell(|| humanise(bytes));
        assert_eq!(parse_size(&bytes.to_string()), Ok(bytes));
        assert_eq!(parse_number(&format!("{bytes:#x}")), Ok(bytes));
        assert!(!humanise(bytes).is_empty());
    }
}

fn words(rng: &mut Rng, words: &[&str]) -> Vec<u8> {
    let mut text: Vec<u8> = Vec::new();
    for _ in 0..1 + rng.usize(..24) {
        match rng.u8(..12) {
            0 => text.push(rng.u8(..)),
            1 => text.extend(rng.u64(..).to_string().bytes()),
            _ => text.extend(words[rng.usize(..words.len())].bytes()),
        }
    }
    text
}

pub(crate) fn option_string(rng: &mut Rng) -> Vec<u8> {
    const WORDS: [&str; 36] = [
        "driver",
        "file",
        "filename",
        "backing",
        "node-name",
        "qcow2",
        "raw",
        "null-co",
        "id",
        "size",
        "help",
        "no",
        "on",
        "off",
        "cache.direct",
        "read-only",
        "json:{",
        "\"",
        "'",
        ":",
        "}",
        "[",
        "]",
        "null",
        "{",
        "=",
        "=",
        ",",
        ",",
        ",,",
        ".",
        ".",
        "0",
        "1",
        "a",
        " ",
    ];
    words(rng, &WORDS)
}

pub(crate) fn json_text(rng: &mut Rng) -> Vec<u8> {
    const WORDS: [&str; 28] = [
        "{",
        "}",
        "{",
        "}",
        "[",
        "]",
        ":",
        ":",
        ",",
        ",",
        "\"a\"",
        "\"b\"",
        "'c'",
        "\"",
        "\\",
        "\\u00e4",
        "\\ud83d",
        "true",
        "false",
        "null",
        "0",
        "-1",
        "1.5",
        "1e300",
        "18446744073709551615",
        "9223372036854775808",
        " ",
        "\n",
    ];
    words(rng, &WORDS)
}

pub(crate) fn size_text(rng: &mut Rng) -> Vec<u8> {
    const WORDS: [&str; 22] = [
        "0", "1", "9", "07", "0x", "f", ".", ".5", "e", "E", "+", "-", " ", "K", "k", "M", "G", "T", "P",
        "b", "s", "inf",
    ];
    let mut text = words(rng, &WORDS);
    text.truncate(rng.usize(1..12));
    text
}
