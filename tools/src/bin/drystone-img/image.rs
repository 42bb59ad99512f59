//! From a source on the command line to an open image.

use std::os::unix::fs::MetadataExt;

use drystone_core::engine::Io;
use drystone_core::error::Error;
use drystone_core::format::qcow2::SnapshotChoice;
use drystone_core::graph::open::{DriverSpec, NodeSpec, OpenMode};
use drystone_core::graph::options::{from_filename, from_options};
use drystone_core::graph::{NodeId, Role};
use drystone_core::intent::{LeafKind, Permissions};
use drystone_exec_linux::{Client, Image};
use drystone_tools::img::args::{CacheMode, Common, SnapshotName, Source};
use drystone_tools::img::convert::{no_snapshot, no_snapshots_in};
use drystone_tools::img::open::cannot_open;
use drystone_tools::message::Failure;
use drystone_tools::options::{ImageName, refusal};

use crate::FORMATS;
use crate::events::tell_events_of;

/// How an image is opened for reading with a cache mode.
pub fn reading(common: &Common, cache: CacheMode, force_share: bool) -> OpenMode {
    OpenMode {
        direct: cache.direct,
        no_flush: cache.no_flush,
        write_through: cache.writethrough,
        force_share,
        takes: Permissions::NONE,
        names: common.image_names,
        ..OpenMode::default()
    }
}

/// What a source names.
pub fn spec(source: &Source, mode: OpenMode) -> Result<NodeSpec, Failure> {
    if let Some(format) = source.format.as_deref().filter(|format| !FORMATS.contains(format)) {
        return Err(cannot_open(&source.name, &format!("Unknown driver '{format}'")));
    }
    let read = match &source.name {
        ImageName::File(path) => {
            from_filename(path, source.format.as_deref(), mode).map_err(|error| error.to_string())
        }
        ImageName::Options { options, .. } => {
            let mut options = options.clone();
            if let Some(format) = &source.format {
                options.insert("driver".into(), format.as_str().into());
            }
            from_options(options.clone(), mode).map_err(|error| refusal(&error, None, &options))
        }
    };
    read.map_err(|error| cannot_open(&source.name, &error))
}

/// Opens a source.
pub async fn open(client: &Client, source: &Source, mode: OpenMode) -> Result<Image, Failure> {
    let spec = spec(source, mode)?;
    open_spec(client, &source.name, &spec).await
}

/// Opens a source for reading, at an internal snapshot where one is named.
pub async fn open_at(
    client: &Client,
    source: &Source,
    mode: OpenMode,
    snapshot: Option<&SnapshotName>,
) -> Result<Image, Failure> {
    let mut spec = spec(source, mode)?;
    if let Some(name) = snapshot
        && let DriverSpec::Qcow2 { options, .. } | DriverSpec::Probe { options, .. } = &mut spec.driver
    {
        options.snapshot = Some(match name.clone() {
            SnapshotName::IdOrName(text) => SnapshotChoice::IdOrName(text),
            SnapshotName::Both { id, name } => SnapshotChoice::Both { id, name },
        });
    }
    let opened = client.open(&spec).await.map_err(|error| {
        let text = error.to_string();
        if text == "Can't find snapshot" { no_snapshot() } else { cannot_open(&source.name, &text) }
    })?;
    let driver = driver_of(client, &opened);
    if snapshot.is_some() && driver != "qcow2" {
        close(opened).await?;
        return Err(no_snapshots_in(driver));
    }
    Ok(opened)
}

/// Opens what was read from a name.
pub async fn open_spec(client: &Client, name: &ImageName, spec: &NodeSpec) -> Result<Image, Failure> {
    let opened = client.open(spec).await;
    tell_events_of(client, Some(name.text()));
    opened.map_err(|error| cannot_open(name, &error.to_string()))
}

/// Name of the driver of an open image.
pub fn driver_of(client: &Client, image: &Image) -> &'static str {
    let node = image.node();
    client.graph().into_iter().find(|info| info.id == node).map_or("raw", |info| info.driver)
}

/// Bytes that a file takes on the host.
pub fn bytes_on_host(io: &Io, file: NodeId) -> Option<u64> {
    let mut leaf = file;
    while let Some(below) = io.edge(leaf, Role::File) {
        // Neither of them asks further, in the reference.
        if matches!(io.driver_name(leaf), "blkdebug" | "blkverify") {
            return None;
        }
        leaf = below;
    }
    match io.leaf_info(leaf).is_some_and(|leaf| leaf.kind == LeafKind::Null) {
        true => Some(0),
        false => std::fs::metadata(io.title(file)).ok().map(|about| about.blocks() * 512),
    }
}

/// Closes an image; what cannot be written at the end is an error of the command.
pub async fn close(image: Image) -> Result<(), Failure> {
    image.close().await.map_err(|error| Failure::new(error.to_string()))
}

/// The host's words for what went wrong.
pub fn strerror(error: &Error) -> String {
    error.errno().to_string()
}
