//! Options of filters, and the names by which they can be asked for: `blkdebug:CONFIG:IMAGE`, `blkverify:RAW:IMAGE`,
//! `null-co://`.

use std::time::Duration;

use serde_json::Map;

use super::values::Options;
use super::{child, leaf, nbd, refused};
use crate::error::Result;
use crate::filter::rule_config::{Problem, Section, Values, add};
use crate::filter::{BlkdebugOptions, FilterSpec, Limits, LogOptions, NullName, PreallocateOptions, Rules};
use crate::format::qcow2::Qcow2Options;
use crate::graph::open::{ChildSpec, DriverSpec, NodeSpec, OpenMode};
use crate::intent::Permissions;

/// Bytes of a limit of blkdebug at the most: what a signed 32-bit number holds.
const LIMIT_MAX: u64 = i32::MAX as u64;

/// Whether there is a filter of that name.
pub(super) fn is_filter(driver: &str) -> bool {
    matches!(driver, "blkdebug" | "blklogwrites" | "blkverify" | "compress" | "copy-on-read" | "preallocate")
}

/// Reads the options of a filter; its node name and mode are read already.
pub(super) fn filter(
    options: &mut Options,
    driver: &str,
    path: Option<&str>,
    mode: OpenMode,
    depth: usize,
) -> Result<DriverSpec> {
    if let Some(path) = path
        && path.strip_prefix(driver).is_some_and(|rest| rest.starts_with(':'))
        && let Some(named) = named(path, mode, depth)?
    {
        return Ok(named.driver);
    }
    let file = |options: &mut Options, key| child(options, key, path, mode, depth).map(Box::new);
    let (file, filter) = match driver {
        "blkdebug" => {
            let filter = FilterSpec::Blkdebug(blkdebug(options)?);
            let named = options.text("x-image");
            if named.is_some() && options.has("image.filename") {
                let text = "Can't specify 'file' and 'filename' options at the same time";
                return Err(refused(text.into()));
            }
            let image = child(options, "image", path.or(named.as_deref()), mode, depth)?;
            (Box::new(image), filter)
        }
        "blkverify" => {
            let (raw, image) = (options.text("x-raw"), options.text("x-image"));
            let raw = child(options, "raw", raw.as_deref(), mode, depth)?;
            let test = match image {
                Some(image) => Box::new(probed(&image, mode, depth)?),
                None => file(options, "test")?,
            };
            (test, FilterSpec::Blkverify { raw })
        }
        "blklogwrites" => {
            let file = file(options, "file")?;
            let log = child(options, "log", None, mode, depth)?;
            (file, FilterSpec::Blklogwrites { log, options: log_options(options)? })
        }
        "compress" => (file(options, "file")?, FilterSpec::Compress),
        "copy-on-read" => {
            let bottom = options.text("bottom");
            (file(options, "file")?, FilterSpec::CopyOnRead { bottom })
        }
        "preallocate" => {
            let filter = FilterSpec::Preallocate(preallocate(options)?);
            (file(options, "file")?, filter)
        }
        other => return Err(refused(format!("Unknown driver '{other}'"))),
    };
    Ok(DriverSpec::Filter { file, filter: Box::new(filter) })
}

/// Reads a file name that asks for a filter; `None` when it asks for none.
pub(super) fn named(name: &str, mode: OpenMode, depth: usize) -> Result<Option<NodeSpec>> {
    if depth > super::DEPTH_MAX {
        return Err(refused(format!("names are nested more than {} deep", super::DEPTH_MAX)));
    }
    let (file, filter) = match name.split_once(':') {
        Some(("blkdebug", rest)) => {
            let (config, image) = rest.split_once(':').ok_or_else(|| {
                let text = "blkdebug requires both config file and image path: blkdebug:CONFIG:IMAGE";
                refused(text.into())
            })?;
            let config = (!config.is_empty()).then(|| config.to_owned());
            (
                below(image, mode, depth)?,
                FilterSpec::Blkdebug(BlkdebugOptions { config, ..BlkdebugOptions::default() }),
            )
        }
        Some(("blkverify", rest)) => {
            let (raw, image) = rest
                .split_once(':')
                .ok_or_else(|| refused("blkverify requires raw copy and original image path".into()))?;
            let image = probed(image, mode, depth)?;
            (image, FilterSpec::Blkverify { raw: below(raw, mode, depth)? })
        }
        Some((protocol, _)) if NullName::parse(protocol).is_some() => {
            let spec = leaf(&mut Options::flat(Default::default()), protocol, Some(name), mode)?;
            return Ok(Some(spec));
        }
        Some(("host_device", path)) => {
            let spec = leaf(&mut Options::flat(Default::default()), "host_device", Some(path), mode)?;
            return Ok(Some(spec));
        }
        Some(("nvme", _)) => {
            let spec = leaf(&mut Options::flat(Default::default()), "nvme", Some(name), mode)?;
            return Ok(Some(spec));
        }
        Some(_) if nbd::is_named(name) => {
            let spec = leaf(&mut Options::flat(Default::default()), "nbd", Some(name), mode)?;
            return Ok(Some(spec));
        }
        _ => return Ok(None),
    };
    let driver = DriverSpec::Filter { file: Box::new(file), filter: Box::new(filter) };
    Ok(Some(NodeSpec { node_name: None, mode, driver }))
}

/// What a file name stands for below a filter.
fn below(name: &str, mode: OpenMode, depth: usize) -> Result<NodeSpec> {
    match named(name, mode, depth + 1)? {
        Some(spec) => Ok(spec),
        None => leaf(&mut Options::flat(Default::default()), "file", Some(name), mode),
    }
}

/// The same, with a format that is looked for in it.
fn probed(name: &str, mode: OpenMode, depth: usize) -> Result<NodeSpec> {
    let (file, backing) = (Box::new(below(name, mode, depth)?), ChildSpec::FromImage);
    let driver = DriverSpec::Probe { file, backing, options: Qcow2Options::default(), unread: Map::new() };
    Ok(NodeSpec { node_name: None, mode, driver })
}

/// Refuses a name of a leaf without storage that says anything.
pub(super) fn check_null_name(driver: &str, path: Option<&str>) -> Result<()> {
    let only = format!("{driver}://");
    match path {
        Some(path) if path != only => {
            Err(refused(format!("The only allowed filename for this driver is '{only}'")))
        }
        _ => Ok(()),
    }
}

/// Reads how long a leaf without storage takes for a request.
pub(super) fn latency(options: &mut Options) -> Result<Duration> {
    let nanoseconds = options.number("latency-ns")?.unwrap_or(0);
    match i64::try_from(nanoseconds) {
        Ok(_) => Ok(Duration::from_nanos(nanoseconds)),
        Err(_) => Err(refused("latency-ns is invalid".into())),
    }
}

fn blkdebug(options: &mut Options) -> Result<BlkdebugOptions> {
    let config = options.text("config").filter(|path| !path.is_empty());
    let mut rules = Rules::default();
    for section in [Section::InjectError, Section::SetState] {
        for values in sections(options, section)? {
            add(&mut rules, section, &values).map_err(|problem| match problem {
                Problem::NoEvent => refused("Missing event name for rule".into()),
                Problem::Value(text) => refused(text),
            })?;
        }
    }
    let (takes, unshares) =
        (permissions(options, "take-child-perms")?, permissions(options, "unshare-child-perms")?);
    Ok(BlkdebugOptions { config, rules, limits: limits(options)?, takes, unshares })
}

/// The rules of a kind: under numbers, or one without.
fn sections(options: &mut Options, section: Section) -> Result<Vec<Values>> {
    let name = section.name();
    let mut all: Vec<(String, Values)> = Vec::new();
    for (key, value) in options.below(name).into_texts() {
        let (number, key) = match key.split_once('.') {
            Some((number, key)) => (number.to_owned(), key.to_owned()),
            None => (String::new(), key),
        };
        if !section.has(&key) {
            return Err(refused(format!("[{name}] section doesn't support the option '{key}'")));
        }
        match all.iter_mut().find(|(other, _)| *other == number) {
            Some((_, values)) => values.push((key, value)),
            None => all.push((number, vec![(key, value)])),
        }
    }
    all.sort_by_key(|(number, _)| number.parse::<u64>().unwrap_or(0));
    Ok(all.into_iter().map(|(_, values)| values).collect())
}

/// Reads a list of permissions.
fn permissions(options: &mut Options, key: &str) -> Result<Permissions> {
    const KNOWN: [(&str, Permissions); 4] = [
        ("consistent-read", Permissions::CONSISTENT_READ),
        ("write", Permissions::WRITE),
        ("write-unchanged", Permissions::WRITE_UNCHANGED),
        ("resize", Permissions::RESIZE),
    ];
    options.below(key).into_texts().iter().try_fold(Permissions::NONE, |all, (place, name)| {
        if let Some((index, _)) = place.split_once('.') {
            return Err(refused(format!("Invalid parameter type for '[{index}]', expected: string")));
        }
        match KNOWN.iter().find(|(known, _)| known == name) {
            Some((_, permission)) => Ok(all.with(*permission)),
            None => Err(refused(format!("Parameter 'null' does not accept value '{name}'"))),
        }
    })
}

fn limits(options: &mut Options) -> Result<Limits> {
    let align = options.size("align")?.unwrap_or(0);
    if align != 0 && (!align.is_power_of_two() || align >= LIMIT_MAX) {
        return Err(refused(format!("Cannot meet constraints with align {align}")));
    }
    let mut limit = |key: &str, unit: u64| {
        let value = options.size(key)?.unwrap_or(0);
        match value <= LIMIT_MAX && value.is_multiple_of(unit.max(1)) {
            true => Ok(value),
            false => Err(refused(format!("Cannot meet constraints with {key} {value}"))),
        }
    };
    let max_transfer = limit("max-transfer", align)?;
    let opt_write_zero = limit("opt-write-zero", align)?;
    let max_write_zero = limit("max-write-zero", opt_write_zero.max(align))?;
    let opt_discard = limit("opt-discard", align)?;
    let max_discard = limit("max-discard", opt_discard.max(align))?;
    Ok(Limits { align, max_transfer, opt_write_zero, max_write_zero, opt_discard, max_discard })
}

fn log_options(options: &mut Options) -> Result<LogOptions> {
    let defaults = LogOptions::default();
    let append = options.switch("log-append")?.unwrap_or(false);
    let sector_size = options.size("log-sector-size")?;
    if append && sector_size.is_some() {
        return Err(refused("log-append and log-sector-size are mutually exclusive".into()));
    }
    let super_update_interval =
        options.number("log-super-update-interval")?.unwrap_or(defaults.super_update_interval);
    if super_update_interval == 0 {
        return Err(refused("Invalid log superblock update interval 0".into()));
    }
    let sector_size = sector_size.unwrap_or(defaults.sector_size);
    Ok(LogOptions { sector_size, append, super_update_interval })
}

fn preallocate(options: &mut Options) -> Result<PreallocateOptions> {
    let defaults = PreallocateOptions::default();
    let align = options.size("prealloc-align")?.unwrap_or(defaults.align);
    let size = options.size("prealloc-size")?.unwrap_or(defaults.size);
    match align.is_multiple_of(512) {
        true => Ok(PreallocateOptions { align, size }),
        false => Err(refused("prealloc-align parameter of preallocate filter is not aligned to 512".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::options::from_filename;

    fn refused_with(name: &str) -> String {
        let mode = OpenMode { writable: true, ..OpenMode::default() };
        from_filename(name, None, mode).expect_err(name).to_string()
    }

    fn debug(rules: &str) -> String {
        format!(r#"json:{{"driver":"blkdebug","image":{{"driver":"file","filename":"a"}},{rules}}}"#)
    }

    #[test]
    fn hostile_options_are_refused() {
        for rules in [
            r#""inject-error":[{"event":"none","errno":"x"}]"#,
            r#""inject-error":[{"event":"none","sector":"99999999999999999999"}]"#,
            r#""inject-error":[{"event":"none","state":1e300}]"#,
            r#""inject-error":[{"event":null}]"#,
            r#""inject-error":[[]]"#,
            r#""inject-error":"none""#,
            r#""inject-error.99999999999999999999999.foo":"none""#,
            r#""set-state":[{"event":"none","new_state":"much"}]"#,
            r#""align":4611686018427387904"#,
            r#""align":-1"#,
            r#""max-transfer":2147483648"#,
            r#""opt-discard":1,"align":512"#,
            r#""take-child-perms":["write","graph-mod"]"#,
            r#""unshare-child-perms":[["write"]]"#,
            r#""config":{"a":1}"#,
        ] {
            refused_with(&debug(rules));
        }
        for options in [
            r#"{"driver":"blkverify"}"#,
            r#"{"driver":"blkverify","raw":"a","test":{"driver":"nothing"}}"#,
            r#"{"driver":"blklogwrites","file":"a"}"#,
            r#"{"driver":"blklogwrites","file":"a","log":"b","log-append":"perhaps"}"#,
            r#"{"driver":"blklogwrites","file":"a","log":"b","log-super-update-interval":0}"#,
            r#"{"driver":"preallocate","file":"a","prealloc-align":"16E"}"#,
            r#"{"driver":"preallocate","file":"a","prealloc-size":-1}"#,
            r#"{"driver":"copy-on-read","file":"a","bottom":5,"top":6}"#,
            r#"{"driver":"null-co","latency-ns":18446744073709551615}"#,
            r#"{"driver":"compress","file":{"file":{}}}"#,
        ] {
            refused_with(&format!("json:{options}"));
        }
    }

    #[test]
    fn nesting_has_an_end() {
        let names = format!("{}a", "blkdebug::".repeat(10_000));
        assert_eq!(refused_with(&names), "names are nested more than 64 deep");
        let mut options = r#"{"driver":"file","filename":"a"}"#.to_owned();
        for _ in 0..100 {
            options = format!(r#"{{"driver":"compress","file":{options}}}"#);
        }
        assert_eq!(refused_with(&format!("json:{options}")), "options are nested more than 64 deep");
    }

    #[test]
    fn names_ask_for_filters() {
        let mode = OpenMode::default();
        let spec = from_filename("blkdebug:cfg:blkverify:a:b", Some("raw"), mode).expect("legal");
        let DriverSpec::Raw { file, .. } = spec.driver else { panic!("raw was asked for") };
        let DriverSpec::Filter { file, filter } = file.driver else { panic!("a filter was asked for") };
        assert!(
            matches!(*filter, FilterSpec::Blkdebug(BlkdebugOptions { config: Some(path), .. }) if path == "cfg")
        );
        assert!(matches!(file.driver, DriverSpec::Filter { .. }));
    }
}
