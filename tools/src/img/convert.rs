//! What `convert` decides once its sources are open and before it makes the target, and what it says when it fails.
//!
//! ```text
//!   open sources ─▶ check_snapshot ─▶ plan_target ─▶ check_bitmaps ─▶ (make and open the target) ─▶ (copy)
//! ```

use super::args::{ConvertArgs, ConvertTarget, SnapshotName};
use super::create::{CreateOptions, Known, create_options};
use crate::message::Failure;

/// The target, as far as the arguments say.
#[derive(Clone, Debug)]
pub struct TargetPlan {
    /// How to make it; `None` when it exists.
    pub options: Option<CreateOptions>,
    /// Whether it has a backing file, so that what reads as zeroes must be written, not left out.
    pub has_backing: bool,
}

/// Formats that can hold compressed clusters.
const COMPRESSING: &[&str] = &["qcow", "qcow2", "vmdk"];

/// Checks that only one source is there when a snapshot of it is wanted by id or name.
///
/// # Errors
/// The reference's words. When there is no such snapshot, [`no_snapshot`] is the failure.
pub fn check_snapshot(args: &ConvertArgs) -> Result<(), Failure> {
    match &args.snapshot {
        Some(SnapshotName::IdOrName(_)) if args.sources.len() > 1 => {
            Err(Failure::new("No support for concatenating multiple snapshot"))
        }
        _ => Ok(()),
    }
}

/// The failure when a source does not have the snapshot.
#[must_use]
pub fn no_snapshot() -> Failure {
    Failure::new("Failed to load snapshot: Can't find snapshot")
}

/// The failure when the source's format has no snapshots.
#[must_use]
pub fn no_snapshots_in(format: &str) -> Failure {
    Failure::new(format!(
        "Failed to load snapshot: Block format '{format}' used by device '' does not support temporarily loading \
         internal snapshots"
    ))
}

/// Collects the options of the target; `source_bytes` is what all sources have together, which is rounded up to whole
/// sectors and counts even when `-o size=` says something else.
///
/// # Errors
/// What does not fit together, in the words of the reference.
pub fn plan_target(args: &ConvertArgs, known: Known<'_>, source_bytes: u64) -> Result<TargetPlan, Failure> {
    let options = match args.target_format.as_deref() {
        Some(format) if !args.no_create => Some(target_options(args, format, known, source_bytes)?),
        _ => None,
    };
    let backing = match &options {
        Some(options) => options.text("backing_file").map(str::to_owned),
        None => args.backing.clone(),
    };
    if args.target_is_zero && backing.is_some() {
        // The reference says this and then exits with 0.
        let text = "Cannot use --target-is-zero when the destination image has a backing file";
        return Err(Failure::new(text));
    }
    if args.sources.len() > 1 && backing.is_some() {
        let text =
            "Having a backing file for the target makes no sense when concatenating multiple input images";
        return Err(Failure::new(text));
    }
    if let Some(options) = &options {
        if backing.is_some() && options.text("backing_fmt").is_none() {
            return Err(Failure::new("Use of backing file requires explicit backing format"));
        }
        if options.text("backing_file") == Some("") {
            return Err(Failure::new("Expected backing file name, got empty string"));
        }
    }
    if args.compress {
        check_compression(args.target_format.as_deref(), options.as_ref())?;
    }
    Ok(TargetPlan { options, has_backing: backing.is_some() })
}

/// Checks whether bitmaps can be read; `supported` is whether the first source's format has any.
///
/// # Errors
/// The reference's words. When the target has none, [`no_bitmaps`] is the failure.
pub fn check_bitmaps(args: &ConvertArgs, supported: bool) -> Result<(), Failure> {
    match args {
        ConvertArgs { bitmaps: false, .. } => Ok(()),
        args if args.sources.len() > 1 => {
            Err(Failure::new("Copying bitmaps only possible with single source"))
        }
        _ if !supported => Err(Failure::new("Source lacks bitmap support")),
        _ => Ok(()),
    }
}

/// The failure when the target's format has no bitmaps.
#[must_use]
pub fn no_bitmaps(format: &str) -> Failure {
    Failure::new(format!("Format driver '{format}' does not support bitmaps"))
}

/// The failure when the target exists, and its format, which is known only once it is open, cannot be compressed.
#[must_use]
pub fn cannot_compress() -> Failure {
    Failure::new("Compression not supported for this file format")
}

/// The failure when the target cannot be made.
#[must_use]
pub fn cannot_create(args: &ConvertArgs, error: &str) -> Failure {
    let filename = match &args.target {
        Some(ConvertTarget::File(name)) => name.as_str(),
        Some(ConvertTarget::Options(name)) => name.text(),
        None => "",
    };
    let format = args.target_format.as_deref().unwrap_or_default();
    Failure::new(format!("{filename}: error while converting {format}: {error}"))
}

fn target_options(
    args: &ConvertArgs,
    format: &str,
    known: Known<'_>,
    source_bytes: u64,
) -> Result<CreateOptions, Failure> {
    create_options(format, None, known).map_err(Failure::new)?;
    let protocol = known.protocol.map_err(|name| Failure::new(format!("Unknown protocol '{name}'")))?;
    let mut options = create_options(format, Some(protocol), known).map_err(Failure::new)?;
    if let Some(list) = &args.options {
        options.apply(list).map_err(|error| Failure::new(error.to_string()))?;
    }
    let size = source_bytes.next_multiple_of(512);
    options.set("size", size.to_string()).expect("every format has a size, and this one is a number");
    for (name, what, value) in
        [("backing_file", "file", &args.backing), ("backing_fmt", "file format", &args.backing_format)]
    {
        let Some(value) = value else { continue };
        let unsupported =
            |_| Failure::new(format!("Backing {what} not supported for file format '{format}'"));
        options.set(name, value.clone()).map_err(unsupported)?;
    }
    Ok(options)
}

fn check_compression(format: Option<&str>, options: Option<&CreateOptions>) -> Result<(), Failure> {
    let Some(options) = options else { return Ok(()) };
    if !format.is_some_and(|format| COMPRESSING.contains(&format)) {
        return Err(cannot_compress());
    }
    if options.text("data_file").is_some() {
        return Err(Failure::new("Compression and an external data file not supported at the same time"));
    }
    if options.switch("encryption") == Some(true) || options.text("encrypt.format").is_some() {
        return Err(Failure::new("Compression and encryption not supported at the same time"));
    }
    if options.text("preallocation").is_some_and(|mode| mode != "off") {
        return Err(Failure::new("Compression and preallocation not supported at the same time"));
    }
    Ok(())
}
