//! Options: from QEMU's block-device options, dotted or nested, and file names to a [`NodeSpec`].
//!
//! ```text
//!   {"driver": "qcow2", "file": {"driver": "file", "filename": "a.qcow2"}}     {"file.filename": "a.qcow2"}
//!   json:{"driver": "raw", "offset": 512, "file": {…}}                         a.qcow2
//! ```
//!
//! Every option is read by the driver that has it; one that is left over is an error. What filters have is in `filters`.

mod filters;
mod formats;
pub mod json;
mod nbd;
mod values;

use std::time::Duration;

use serde_json::{Map, Value};

use super::DetectZeroes;
use super::open::{ChildSpec, DriverSpec, NodeSpec, OpenMode, names_protocol};
use crate::error::{Error, Result};
use crate::filter::{FilterSpec, NullName};
use crate::format::qcow2::{Protect, Qcow2Options};
use crate::intent::{Aio, Location};
pub(super) use formats::Format;
use values::Options;

/// Nesting of options at the most; no honest description comes near.
const DEPTH_MAX: usize = 64;

/// Bytes of a leaf without storage that does not say how long it is.
const NULL_LEN: u64 = 1 << 30;

/// Bytes of `cache-size` that are for refcounts, at the most.
const REFCOUNT_SHARE_MAX: u64 = 4 << 20;

/// Reads a file name: a path, `file:PATH`, or `json:{…}`. Without a `format`, the image's first bytes tell it.
///
/// # Errors
/// [`Error::Options`] with what is wrong.
pub fn from_filename(name: &str, format: Option<&str>, mode: OpenMode) -> Result<NodeSpec> {
    named(name, format, Map::new(), mode)
}

/// Reads a file name as [`from_filename`] does, and options that add to what it says: the name and the format are those
/// of an image's backing file, and the options may say otherwise.
///
/// # Errors
/// [`Error::Options`] with what is wrong.
pub fn from_filename_and(
    name: Option<&str>,
    format: Option<&str>,
    options: Map<String, Value>,
    mode: OpenMode,
) -> Result<NodeSpec> {
    let other_file = name_a_file(&options);
    let format = if options.contains_key("driver") { None } else { format };
    match name.filter(|_| !other_file) {
        Some(name) => named(name, format, options, mode),
        None => {
            let mut options = Options::flat(options);
            if let Some(format) = format {
                options.put("driver", format);
            }
            usable(node(options, None, mode, 0)?, mode)
        }
    }
}

/// Whether options say what holds the image, so that no other name counts.
pub(super) fn name_a_file(options: &Map<String, Value>) -> bool {
    options.keys().any(|key| key == "file" || key.starts_with("file."))
}

/// Whether flat options name a node that is open already.
pub(super) fn refer_to_nodes(options: &Map<String, Value>) -> bool {
    const CHILDREN: [&str; 8] = ["file", "backing", "data-file", "image", "raw", "test", "log", "header"];
    let is_child = |key: &str| key.rsplit('.').next().is_some_and(|last| CHILDREN.contains(&last));
    options.iter().any(|(key, value)| is_child(key) && value.as_str().is_some_and(|name| !name.is_empty()))
}

fn named(name: &str, format: Option<&str>, options: Map<String, Value>, mode: OpenMode) -> Result<NodeSpec> {
    let (mut map, path) = match name.strip_prefix("json:") {
        None => (Map::new(), Some(name)),
        Some(json) => {
            let value = json::parse(json)
                .map_err(|error| refused(format!("Could not parse the JSON options: {error}")))?;
            let Value::Object(map) = value else { return Err(refused("Invalid JSON object given".into())) };
            (map, None)
        }
    };
    if let Some(format) = format {
        match map.get("driver").and_then(Value::as_str) {
            Some(driver) if driver != format => return Err(refused("Driver specified twice".into())),
            _ => map.insert("driver".into(), format.into()),
        };
    }
    map.extend(options);
    usable(node(Options::flat(map), path, mode, 0)?, mode)
}

/// Reads the options of a node. What they do not say is as in `mode`.
///
/// # Errors
/// [`Error::Options`] with what is wrong.
pub fn from_options(map: Map<String, Value>, mode: OpenMode) -> Result<NodeSpec> {
    usable(node(Options::flat(map), None, mode, 0)?, mode)
}

/// Refuses a node that its options open for reading where it is to be written to.
fn usable(spec: NodeSpec, mode: OpenMode) -> Result<NodeSpec> {
    match mode.writable && !spec.mode.writable {
        true => Err(refused("Block node is read-only".into())),
        false => Ok(spec),
    }
}

fn refused(text: String) -> Box<Error> {
    Box::new(Error::Options(text))
}

fn no_child(key: &str) -> Box<Error> {
    refused(format!("A block device must be specified for \"{key}\""))
}

/// `path` is what a file name on a command line, or in an image, says.
fn node(options: Options, path: Option<&str>, mode: OpenMode, depth: usize) -> Result<NodeSpec> {
    if depth > DEPTH_MAX {
        return Err(refused(format!("options are nested more than {DEPTH_MAX} deep")));
    }
    let mut options = options;
    let driver = options.word("driver");
    if driver.is_none() && path.is_none() && !options.has("file") && !options.has_below("file") {
        return Err(refused("Must specify either driver or file".into()));
    }
    let node_name = options.text("node-name");
    let mode = read_mode(&mut options, mode)?;
    if let Some(driver) = driver.as_deref().filter(|driver| filters::is_filter(driver)) {
        let spec = filters::filter(&mut options, driver, path, mode.below(), depth)?;
        options.finish(driver)?;
        return Ok(NodeSpec { node_name, mode, driver: spec });
    }
    if let Some(protocol @ ("file" | "host_device" | "null-co" | "null-aio" | "nvme" | "nbd")) =
        driver.as_deref()
    {
        let spec = leaf(&mut options, protocol, path, mode)?;
        options.finish(protocol)?;
        return Ok(NodeSpec { node_name, ..spec });
    }
    let format = match driver {
        None => None,
        Some(name) => match Format::named(&name) {
            None => return Err(refused(format!("Unknown driver '{name}'"))),
            format => format,
        },
    };
    let below = mode.below();
    let file = Box::new(child(&mut options, "file", path, below, depth)?);
    let driver = match format {
        Some(format) => {
            let name = format.name();
            let driver = format.read(&mut options, file, below, depth, Qcow2Options::default())?;
            options.finish(name)?;
            driver
        }
        None => {
            let backing = backing_child(&mut options, below)?;
            DriverSpec::Probe { file, backing, options: Qcow2Options::default(), unread: options.into_map() }
        }
    };
    Ok(NodeSpec { node_name, mode, driver })
}

/// Reads what was said of an image in a format that is known only now. `file` stands for what holds it, and the backing
/// file was read before.
///
/// # Errors
/// [`Error::Options`] with what is wrong, above all what the format does not have.
pub(super) fn guessed(
    format: Format,
    unread: Map<String, Value>,
    file: NodeSpec,
    usual: Qcow2Options,
) -> Result<DriverSpec> {
    let (mut options, name, below) = (Options::flat(unread), format.name(), file.mode);
    let driver = format.read(&mut options, Box::new(file), below, 0, usual)?;
    options.finish(name)?;
    Ok(driver)
}

/// What every node has.
fn read_mode(options: &mut Options, mode: OpenMode) -> Result<OpenMode> {
    let mut mode = mode;
    if let Some(read_only) = options.switch("read-only")? {
        mode.writable = !read_only && mode.writable;
    }
    if let Some(force_share) = options.switch("force-share")? {
        mode.force_share = force_share;
    }
    if mode.force_share && mode.writable {
        return Err(refused("force-share=on can only be used with read-only images".into()));
    }
    mode.direct = options.switch("cache.direct")?.unwrap_or(mode.direct);
    mode.no_flush = options.switch("cache.no-flush")?.unwrap_or(mode.no_flush);
    // Falling back to read-only is what opening for reading does anyway.
    let _ = options.switch("auto-read-only")?;
    let discard = options.text("discard");
    mode.discard = match discard.as_deref() {
        None => mode.discard,
        Some("ignore" | "off") => false,
        Some("unmap" | "on") => true,
        Some(_) => return Err(refused("Invalid discard option".into())),
    };
    mode.detect_zeroes = detect_zeroes(options, discard.is_some() && mode.discard)?;
    if options.switch("active")? == Some(false) {
        return Err(refused("active=off is not supported: there is no migration that would need it".into()));
    }
    Ok(mode)
}

fn detect_zeroes(options: &mut Options, unmaps: bool) -> Result<DetectZeroes> {
    let values = [("off", DetectZeroes::Off), ("on", DetectZeroes::On), ("unmap", DetectZeroes::Unmap)];
    let chosen = options.one_of("detect-zeroes", &values)?.unwrap_or_default();
    if chosen == DetectZeroes::Unmap && !unmaps {
        let text = "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap";
        return Err(refused(text.into()));
    }
    Ok(chosen)
}

fn leaf(options: &mut Options, driver: &str, path: Option<&str>, mode: OpenMode) -> Result<NodeSpec> {
    let mut mode = mode;
    if let Some(name) = NullName::parse(driver) {
        filters::check_null_name(driver, path)?;
        let len = options.size("size")?.unwrap_or(NULL_LEN);
        let read_zeroes = options.switch("read-zeroes")?.unwrap_or(false);
        let latency = filters::latency(options)?;
        let leaf = DriverSpec::Leaf(Location::Null { len, read_zeroes });
        let spec = NodeSpec { node_name: None, mode, driver: leaf };
        if name == NullName::Co && latency.is_zero() {
            return Ok(spec);
        }
        let filter = Box::new(FilterSpec::Null { name, latency });
        let driver = DriverSpec::Filter { file: Box::new(spec), filter };
        return Ok(NodeSpec { node_name: None, mode, driver });
    }
    if matches!(driver, "nvme" | "nbd") {
        let location =
            if driver == "nvme" { namespace(options, path)? } else { nbd::location(options, path)? };
        return Ok(NodeSpec { node_name: None, mode, driver: DriverSpec::Leaf(location) });
    }
    let aio = [("threads", Aio::Threads), ("io_uring", Aio::IoUring), ("native", Aio::Native)];
    mode.aio = options.one_of("aio", &aio)?.unwrap_or(mode.aio);
    let locking = [("on", true), ("auto", true), ("off", false)];
    mode.locking = options.one_of("locking", &locking)?.unwrap_or(mode.locking);
    if mode.aio == Aio::Native && !mode.direct {
        let text = "aio=native was specified, but it requires cache.direct=on, which was not specified.";
        return Err(refused(text.into()));
    }
    // The executor fits its batches to the ring by itself.
    if options.number("aio-max-batch")?.is_some_and(|batch| batch != 0) {
        return Err(refused("aio-max-batch is not supported; 0 leaves it to the executor".into()));
    }
    // Both are about the source of a migration, which these nodes never are.
    let _ = (options.switch("drop-cache")?, options.switch("x-check-cache-dropped")?);
    if let Some(id) = options.text("pr-manager") {
        return Err(refused(format!("No persistent reservation manager with id '{id}'")));
    }
    let filename = match options.word("filename") {
        Some(filename) => filename,
        None => match path {
            Some(path) => path_of(path)?,
            None => String::new(),
        },
    };
    if filename.is_empty() {
        return Err(refused(format!("The '{driver}' block driver requires a file name")));
    }
    match driver {
        "host_device" => Ok(NodeSpec { node_name: None, mode, driver: DriverSpec::Device(filename) }),
        _ => Ok(NodeSpec::file(filename, mode)),
    }
}

/// What a file name means as a leaf that an image is made in: a path, an NVMe namespace, or an export of a server.
///
/// # Errors
/// [`Error::Options`] with what is wrong.
pub fn location(name: &str) -> Result<Location> {
    let options = &mut Options::flat(Map::new());
    match name {
        name if name.starts_with("nvme:") => namespace(options, Some(name)),
        name if nbd::is_named(name) => nbd::location(options, Some(name)),
        name => Ok(Location::Path(name.into())),
    }
}

/// The namespace that options, or a name like `nvme://0000:01:00.0/1`, mean.
fn namespace(options: &mut Options, path: Option<&str>) -> Result<Location> {
    const NAMED: &str = "nvme://";
    let (device, number) = match path {
        Some(path) => {
            let named = path.strip_prefix(NAMED).and_then(|rest| rest.rsplit_once('/'));
            let Some((device, number)) = named.filter(|(device, _)| !device.is_empty()) else {
                let text = format!("'{path}' is no NVMe namespace; one looks like nvme://0000:01:00.0/1");
                return Err(refused(text));
            };
            (device.to_owned(), number.parse().map_err(|_| refused("Invalid namespace".into()))?)
        }
        None => {
            let device = options.word("device").filter(|device| !device.is_empty());
            let number = options.number("namespace")?;
            let device = device.ok_or_else(|| refused("'device' option is required".into()))?;
            (device, number.ok_or_else(|| refused("'namespace' option is required".into()))?)
        }
    };
    match u32::try_from(number) {
        Ok(namespace) if (1..u32::MAX).contains(&namespace) => Ok(Location::Namespace { device, namespace }),
        _ => Err(refused(format!("namespace number should be between 1 and {}", u32::MAX - 1))),
    }
}

/// A child that is not optional, which may also be given as a file name beside the options.
fn child(
    options: &mut Options,
    key: &str,
    path: Option<&str>,
    mode: OpenMode,
    depth: usize,
) -> Result<NodeSpec> {
    let mut file = options.below(key);
    let reference = options.word(key);
    if reference.is_some() && (path.is_some() || !file.is_empty()) {
        let text = "Cannot reference an existing block device with additional options or a new filename";
        return Err(refused(text.into()));
    }
    if let Some(name) = reference {
        return Ok(NodeSpec { node_name: None, mode, driver: DriverSpec::Node(name) });
    }
    if path.is_none() && file.is_empty() {
        return Err(no_child(key));
    }
    if file.has("driver") {
        return usable(node(file, path, mode, depth + 1)?, mode);
    }
    if path.is_none() && !file.has("filename") {
        return Err(refused("Must specify either driver or file".into()));
    }
    let node_name = file.text("node-name");
    let above = mode;
    let mode = read_mode(&mut file, above)?;
    let spec = match path.map(|path| filters::named(path, mode, depth + 1)).transpose()?.flatten() {
        Some(spec) => spec,
        None => leaf(&mut file, "file", path, mode)?,
    };
    file.finish("file")?;
    usable(NodeSpec { node_name, ..spec }, above)
}

/// What is said about the backing file; the image may add its name and its format.
fn backing_child(options: &mut Options, mode: OpenMode) -> Result<ChildSpec> {
    let below = options.below("backing");
    if options.take_null("backing") {
        return Ok(ChildSpec::None);
    }
    match options.word("backing") {
        None if below.is_empty() => Ok(ChildSpec::FromImage),
        None => Ok(ChildSpec::FromImageAnd(below.into_map())),
        Some(_) if !below.is_empty() => {
            let text = "Cannot reference an existing block device with additional options or a new filename";
            Err(refused(format!("Could not open backing file: {text}")))
        }
        Some(name) if name.is_empty() => Ok(ChildSpec::None),
        Some(name) => {
            let mode = OpenMode { writable: false, ..mode };
            Ok(ChildSpec::Spec(Box::new(NodeSpec { node_name: None, mode, driver: DriverSpec::Node(name) })))
        }
    }
}

fn data_file_child(options: &mut Options, mode: OpenMode, depth: usize) -> Result<ChildSpec> {
    let mut below = options.below("data-file");
    let spec = match options.word("data-file") {
        Some(name) => NodeSpec { node_name: None, mode, driver: DriverSpec::Node(name) },
        None if below.is_empty() => return Ok(ChildSpec::FromImage),
        None if below.has("filename") && !below.has("driver") => {
            let node_name = below.text("node-name");
            let mode = read_mode(&mut below, mode)?;
            let spec = leaf(&mut below, "file", None, mode)?;
            below.finish("file")?;
            NodeSpec { node_name, ..spec }
        }
        None => node(below, None, mode, depth + 1)?,
    };
    Ok(ChildSpec::Spec(Box::new(spec)))
}

/// The path that a file name means.
fn path_of(name: &str) -> Result<String> {
    if let Some(path) = name.strip_prefix("file:") {
        // As a name, it has to stay one.
        return Ok(if names_protocol(path) { format!("./{path}") } else { path.into() });
    }
    if names_protocol(name) {
        let protocol = name.split(':').next().unwrap_or_default();
        return Err(refused(format!("Unknown protocol '{protocol}'")));
    }
    Ok(name.into())
}

fn qcow2_options(options: &mut Options, usual: Qcow2Options) -> Result<Qcow2Options> {
    let mut read = usual;
    let mut encrypt = options.below("encrypt");
    read.encrypt.format = encrypt.text("format").or(read.encrypt.format);
    read.encrypt.key_secret = encrypt.text("key-secret").or(read.encrypt.key_secret);
    if let Some((key, _)) = encrypt.into_texts().first() {
        return Err(refused(format!("Parameter '{key}' is unexpected")));
    }
    cache_sizes(options, &mut read)?;
    read.l2_cache_entry_len = options.size("l2-cache-entry-size")?.or(read.l2_cache_entry_len);
    read.cache_clean_interval = match options.number("cache-clean-interval")? {
        None => read.cache_clean_interval,
        Some(0) => None,
        Some(seconds) if seconds > u64::from(u32::MAX) => {
            return Err(refused("Cache clean interval too big".into()));
        }
        Some(seconds) => Some(Duration::from_secs(seconds)),
    };
    read.lazy_refcounts = options.switch("lazy-refcounts")?.unwrap_or(read.lazy_refcounts);
    read.protect = overlap_checks(options, read.protect)?;
    let discards = &mut read.discards;
    for (key, passed) in [
        ("pass-discard-request", &mut discards.request),
        ("pass-discard-snapshot", &mut discards.snapshot),
        ("pass-discard-other", &mut discards.other),
    ] {
        *passed = options.switch(key)?.unwrap_or(*passed);
    }
    read.discard_no_unref = options.switch("discard-no-unref")?.unwrap_or(read.discard_no_unref);
    Ok(read)
}

fn cache_sizes(options: &mut Options, read: &mut Qcow2Options) -> Result<()> {
    let all = options.size("cache-size")?;
    let l2 = options.size("l2-cache-size")?;
    let refcounts = options.size("refcount-cache-size")?;
    read.l2_cache_len = l2.unwrap_or(read.l2_cache_len);
    read.refcount_cache_len = refcounts.unwrap_or(read.refcount_cache_len);
    let Some(all) = all else { return Ok(()) };
    if l2.is_some() && refcounts.is_some() {
        let text = "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time";
        return Err(refused(text.into()));
    }
    if l2.is_some_and(|l2| l2 > all) {
        return Err(refused("l2-cache-size may not exceed cache-size".into()));
    }
    if refcounts.is_some_and(|refcounts| refcounts > all) {
        return Err(refused("refcount-cache-size may not exceed cache-size".into()));
    }
    let share = (all / 8).min(REFCOUNT_SHARE_MAX);
    read.refcount_cache_len = refcounts.unwrap_or(l2.map_or(share, |l2| all - l2));
    read.l2_cache_len = l2.unwrap_or(all - read.refcount_cache_len);
    Ok(())
}

/// A level decides what is protected, and single switches what differs from it.
fn overlap_checks(options: &mut Options, usual: Protect) -> Result<Protect> {
    let plain = options.text("overlap-check");
    let template = options.text("overlap-check.template");
    if let (Some(plain), Some(template)) = (&plain, &template)
        && plain != template
    {
        return Err(refused(format!(
            "Conflicting values for qcow2 options 'overlap-check' ('{plain}') and 'overlap-check.template' \
             ('{template}')"
        )));
    }
    let mut protect = match plain.or(template).as_deref() {
        None => usual,
        Some("cached") => Protect::CACHED,
        Some("none") => Protect::NONE,
        Some("constant") => Protect::CONSTANT,
        Some("all") => Protect::ALL,
        Some(other) => {
            return Err(refused(format!(
                "Unsupported value '{other}' for qcow2 option 'overlap-check'. Allowed are any of the following: none, \
                 constant, cached, all"
            )));
        }
    };
    // The header is always protected.
    let _ = options.switch("overlap-check.main-header")?;
    for (key, protected) in [
        ("active-l1", &mut protect.active_l1),
        ("active-l2", &mut protect.active_l2),
        ("refcount-table", &mut protect.refcount_table),
        ("refcount-block", &mut protect.refcount_block),
        ("snapshot-table", &mut protect.snapshot_table),
        ("inactive-l1", &mut protect.inactive_l1),
        ("inactive-l2", &mut protect.inactive_l2),
        ("bitmap-directory", &mut protect.bitmap_directory),
    ] {
        *protected = options.switch(&format!("overlap-check.{key}"))?.unwrap_or(*protected);
    }
    Ok(protect)
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
        let error = from(r#"json:{"driver":"raw","file.filename":"a","l2-cache-size":1}"#)
            .expect_err("no such option");
        assert_eq!(error.to_string(), "Block format 'raw' does not support the option 'l2-cache-size'");
    }

    #[test]
    fn protocols_that_do_not_exist_are_refused() {
        assert_eq!(from("gluster://x").expect_err("unknown").to_string(), "Unknown protocol 'gluster'");
        assert!(from("./a:b").is_ok());
    }

    #[test]
    fn a_namespace_has_a_name_and_options() {
        let named = from("nvme://0000:01:00.0/7").expect("legal");
        let options = r#"json:{"file":{"driver":"nvme","device":"0000:01:00.0","namespace":7}}"#;
        assert_eq!(named, from(options).expect("legal"));
        let check = |name: &str, expected: &str| {
            assert_eq!(from(name).expect_err("refused").to_string(), expected);
        };
        check("nvme://0000:01:00.0/0", "namespace number should be between 1 and 4294967294");
        check("nvme://0000:01:00.0/4294967295", "namespace number should be between 1 and 4294967294");
        check("nvme://0000:01:00.0/x", "Invalid namespace");
        check("nvme:///1", "'nvme:///1' is no NVMe namespace; one looks like nvme://0000:01:00.0/1");
        check(r#"json:{"driver":"nvme","namespace":1}"#, "'device' option is required");
        check(r#"json:{"driver":"nvme","device":"0000:01:00.0"}"#, "'namespace' option is required");
        check(
            r#"json:{"driver":"nvme","device":"0000:01:00.0","namespace":1,"aio":"threads"}"#,
            "Block protocol 'nvme' doesn't support the option 'aio'",
        );
    }

    #[test]
    fn zeros_are_looked_for_at_one_node() {
        let writable = OpenMode { writable: true, ..OpenMode::default() };
        let name = r#"json:{"driver":"qcow2","file.filename":"a","detect-zeroes":"on"}"#;
        let spec = from_filename(name, None, writable).expect("legal");
        assert_eq!(spec.mode.detect_zeroes, DetectZeroes::On);
        let DriverSpec::Qcow2 { file, .. } = spec.driver else { panic!("qcow2 was asked for") };
        assert_eq!(file.mode.detect_zeroes, DetectZeroes::Off);
    }
}
