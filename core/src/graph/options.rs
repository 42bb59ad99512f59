//! Options: from QEMU's block-device options, dotted or nested, and file names to a [`NodeSpec`].
//!
//! ```text
//!   {"driver": "qcow2", "file": {"driver": "file", "filename": "a.qcow2"}}     {"file.filename": "a.qcow2"}
//!   json:{"driver": "raw", "offset": 512, "file": {…}}                         a.qcow2
//! ```
//!
//! Every option is read by the driver that has it; one that is left over is an error.

use serde_json::{Map, Value};

use super::open::{ChildSpec, DriverSpec, NodeSpec, OpenMode, names_protocol};
use crate::error::{Error, Result};
use crate::format::qcow2::Qcow2Options;
use crate::intent::{Aio, Location};

/// Nesting of options at the most; no honest description comes near.
const DEPTH_MAX: usize = 64;

/// Reads a file name: a path, `file:PATH`, or `json:{…}`. Without a `format`, the image's first bytes tell it.
///
/// # Errors
/// [`Error::Options`] with what is wrong.
pub fn from_filename(name: &str, format: Option<&str>, mode: OpenMode) -> Result<NodeSpec> {
    let mut map = if let Some(json) = name.strip_prefix("json:") {
        let value = serde_json::from_str(json)
            .map_err(|error| refused(format!("Could not parse the JSON options: {error}")))?;
        let Value::Object(map) = value else { return Err(refused("Invalid JSON object given".into())) };
        map
    } else {
        Map::from_iter([("filename".into(), Value::String(name.into()))])
    };
    if let Some(format) = format {
        match map.get("driver").and_then(Value::as_str) {
            Some(driver) if driver != format => {
                return Err(refused("Driver specified twice".into()));
            }
            _ => map.insert("driver".into(), Value::String(format.into())),
        };
    }
    from_options(map, mode)
}

/// Reads the options of a node. What they do not say is as in `mode`.
///
/// # Errors
/// [`Error::Options`] with what is wrong.
pub fn from_options(map: Map<String, Value>, mode: OpenMode) -> Result<NodeSpec> {
    node(Options(nested(map)?), mode, 0)
}

fn refused(text: String) -> Box<Error> {
    Box::new(Error::Options(text))
}

/// Turns dotted keys into nested maps.
fn nested(map: Map<String, Value>) -> Result<Map<String, Value>> {
    let mut out = Map::new();
    for (key, value) in map {
        let mut keys = key.split('.').peekable();
        let mut at = &mut out;
        while let Some(part) = keys.next() {
            if keys.peek().is_none() {
                match (at.get_mut(part), value) {
                    (Some(Value::Object(there)), Value::Object(more)) => there.extend(more),
                    (_, value) => drop(at.insert(part.into(), value)),
                }
                break;
            }
            let next = at.entry(part).or_insert_with(|| Value::Object(Map::new()));
            let Value::Object(next) = next else {
                return Err(refused(format!("Cannot mix scalar and non-scalar keys: '{key}'")));
            };
            at = next;
        }
    }
    Ok(out)
}

/// Options of one node that nobody has read yet.
struct Options(Map<String, Value>);

impl Options {
    fn text(&mut self, key: &str) -> Result<Option<String>> {
        match self.0.shift_remove(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => {
                Err(refused(format!("Invalid parameter type for '{key}', expected: string, found {other}")))
            }
        }
    }

    fn switch(&mut self, key: &str) -> Result<Option<bool>> {
        match self.0.shift_remove(key) {
            None => Ok(None),
            Some(Value::Bool(on)) => Ok(Some(on)),
            Some(Value::String(text)) if text == "on" => Ok(Some(true)),
            Some(Value::String(text)) if text == "off" => Ok(Some(false)),
            Some(_) => Err(refused(format!("Parameter '{key}' expects 'on' or 'off'"))),
        }
    }

    /// A number of bytes, with or without one of the suffixes k, M, G, T, P, E.
    fn size(&mut self, key: &str) -> Result<Option<u64>> {
        let Some(value) = self.0.shift_remove(key) else { return Ok(None) };
        let number = match &value {
            Value::Number(number) => number.as_u64(),
            Value::String(text) => size(text),
            _ => None,
        };
        number.map(Some).ok_or_else(|| refused(format!("Parameter '{key}' expects a size, found {value}")))
    }

    fn one_of<T: Copy>(&mut self, key: &str, values: &[(&str, T)]) -> Result<Option<T>> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        let found = values.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        found.map(Some).ok_or_else(|| refused(format!("Invalid parameter '{text}' for '{key}'")))
    }

    /// Refuses what nobody has read.
    fn finish(self, driver: &str) -> Result<()> {
        let kind = match driver {
            "file" | "host_device" | "null-co" => "protocol",
            _ => "format",
        };
        match self.0.keys().next() {
            None => Ok(()),
            Some(key) => Err(refused(format!("Block {kind} '{driver}' does not support the option '{key}'"))),
        }
    }
}

fn size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" | "b" | "B" => 0,
        "k" | "K" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        "P" | "p" => 50,
        "E" | "e" => 60,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn node(mut options: Options, mode: OpenMode, depth: usize) -> Result<NodeSpec> {
    if depth > DEPTH_MAX {
        return Err(refused(format!("options are nested more than {DEPTH_MAX} deep")));
    }
    let node_name = options.text("node-name")?;
    let mode = read_mode(&mut options, mode)?;
    let driver = options.text("driver")?;
    if matches!(driver.as_deref(), Some("file" | "host_device" | "null-co")) {
        let spec = leaf(&mut options, mode)?;
        options.finish(driver.as_deref().expect("just matched"))?;
        return Ok(NodeSpec { node_name, ..spec });
    }
    let format = driver.as_deref();
    if !matches!(format, None | Some("raw" | "qcow2")) {
        return Err(refused(format!("Unknown driver '{}'", format.unwrap_or_default())));
    }
    // What is written through at the top needs one flush a write, not one for every write below.
    let below = OpenMode { write_through: false, ..mode };
    let file = Box::new(file_child(&mut options, below, depth)?);
    let driver = match format {
        Some("raw") => {
            let offset = options.size("offset")?.unwrap_or(0);
            DriverSpec::Raw { file, offset, size: options.size("size")? }
        }
        Some(_) => {
            let backing = child(&mut options, "backing", OpenMode { writable: false, ..below }, depth)?;
            let data_file = child(&mut options, "data-file", below, depth)?;
            DriverSpec::Qcow2 { file, backing, data_file, options: qcow2_options(&mut options)? }
        }
        None => {
            let backing = child(&mut options, "backing", OpenMode { writable: false, ..below }, depth)?;
            DriverSpec::Probe { file, backing, options: qcow2_options(&mut options)? }
        }
    };
    options.finish(format.unwrap_or("raw"))?;
    Ok(NodeSpec { node_name, mode, driver })
}

fn read_mode(options: &mut Options, mode: OpenMode) -> Result<OpenMode> {
    let mut mode = mode;
    if let Some(read_only) = options.switch("read-only")? {
        mode.writable = !read_only && mode.writable;
    }
    if let Some(force_share) = options.switch("force-share")? {
        mode.force_share = force_share;
    }
    if let Some(discard) =
        options.one_of("discard", &[("ignore", false), ("off", false), ("unmap", true), ("on", true)])?
    {
        mode.discard = discard;
    }
    if let Some(Value::Object(cache)) = options.0.shift_remove("cache") {
        let mut cache = Options(cache);
        mode.direct = cache.switch("direct")?.unwrap_or(mode.direct);
        mode.no_flush = cache.switch("no-flush")?.unwrap_or(mode.no_flush);
        cache.finish("cache")?;
    }
    // Falling back to read-only is what opening for reading does anyway.
    let _ = options.switch("auto-read-only")?;
    Ok(mode)
}

fn leaf(options: &mut Options, mode: OpenMode) -> Result<NodeSpec> {
    let mut mode = mode;
    if let Some(aio) = options
        .one_of("aio", &[("threads", Aio::Threads), ("io_uring", Aio::IoUring), ("native", Aio::Native)])?
    {
        mode.aio = aio;
    }
    if let Some(locking) = options.one_of("locking", &[("on", true), ("auto", true), ("off", false)])? {
        mode.locking = locking;
    }
    let location = match options.text("filename")? {
        Some(path) => Location::Path(path),
        None => match options.size("size")? {
            Some(len) => Location::Null { len, read_zeroes: options.switch("read-zeroes")?.unwrap_or(false) },
            None => return Err(refused("The 'file' block driver requires a file name".into())),
        },
    };
    Ok(NodeSpec { node_name: None, mode, driver: DriverSpec::Leaf(location) })
}

/// The `file` child, which may also be given as a file name at the node itself.
fn file_child(options: &mut Options, mode: OpenMode, depth: usize) -> Result<NodeSpec> {
    if let Some(name) = options.text("filename")? {
        return protocol(&name, mode);
    }
    match options.0.shift_remove("file") {
        Some(Value::String(name)) => Ok(NodeSpec { node_name: None, mode, driver: DriverSpec::Node(name) }),
        Some(Value::Object(file)) if !file.contains_key("driver") => {
            let mut file = Options(nested(file)?);
            let node_name = file.text("node-name")?;
            let mode = read_mode(&mut file, mode)?;
            let spec = leaf(&mut file, mode)?;
            file.finish("file")?;
            Ok(NodeSpec { node_name, ..spec })
        }
        Some(Value::Object(file)) => node(Options(nested(file)?), mode, depth + 1),
        _ => Err(refused("A block device must be specified for \"file\"".into())),
    }
}

fn child(options: &mut Options, key: &str, mode: OpenMode, depth: usize) -> Result<ChildSpec> {
    let spec = match options.0.shift_remove(key) {
        None => return Ok(ChildSpec::FromImage),
        Some(Value::Null) => return Ok(ChildSpec::None),
        Some(Value::String(name)) if name.is_empty() => return Ok(ChildSpec::None),
        Some(Value::String(name)) => NodeSpec { node_name: None, mode, driver: DriverSpec::Node(name) },
        Some(Value::Object(child)) if key == "data-file" && !child.contains_key("driver") => {
            let mut child = Options(nested(child)?);
            let spec = leaf(&mut child, mode)?;
            child.finish("file")?;
            spec
        }
        Some(Value::Object(child)) => node(Options(nested(child)?), mode, depth + 1)?,
        Some(_) => return Err(refused(format!("Invalid parameter type for '{key}'"))),
    };
    Ok(ChildSpec::Spec(Box::new(spec)))
}

fn protocol(name: &str, mode: OpenMode) -> Result<NodeSpec> {
    if let Some(path) = name.strip_prefix("file:") {
        return Ok(NodeSpec::file(path, mode));
    }
    if names_protocol(name) {
        let protocol = name.split(':').next().unwrap_or_default();
        return Err(refused(format!("Unknown protocol '{protocol}'")));
    }
    Ok(NodeSpec::file(name, mode))
}

fn qcow2_options(options: &mut Options) -> Result<Qcow2Options> {
    let mut read = Qcow2Options::default();
    if let Some(on) = options.switch("pass-discard-request")? {
        read.discards.request = on;
    }
    if let Some(on) = options.switch("pass-discard-snapshot")? {
        read.discards.snapshot = on;
    }
    if let Some(on) = options.switch("pass-discard-other")? {
        read.discards.other = on;
    }
    if let Some(len) = options.size("cache-size")? {
        read.l2_cache_len = len;
    }
    if let Some(len) = options.size("l2-cache-size")? {
        read.l2_cache_len = len;
    }
    if let Some(len) = options.size("refcount-cache-size")? {
        read.refcount_cache_len = len;
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(name: &str) -> Result<NodeSpec> {
        from_filename(name, None, OpenMode::default())
    }

    #[test]
    fn dotted_and_nested_options_mean_the_same() {
        let nested =
            r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"a"},"cache":{"direct":true}}"#;
        let dotted =
            r#"json:{"driver":"qcow2","file.driver":"file","file.filename":"a","cache.direct":"on"}"#;
        assert_eq!(from(nested).expect("legal"), from(dotted).expect("legal"));
    }

    #[test]
    fn an_option_that_no_driver_has_is_refused() {
        let error =
            from(r#"json:{"driver":"raw","filename":"a","l2-cache-size":1}"#).expect_err("no such option");
        assert_eq!(error.to_string(), "Block format 'raw' does not support the option 'l2-cache-size'");
    }

    #[test]
    fn protocols_that_do_not_exist_are_refused() {
        assert_eq!(from("gluster://x").expect_err("unknown").to_string(), "Unknown protocol 'gluster'");
        assert!(from("./a:b").is_ok());
    }
}
