//! What is served: from a command line to an open image, and what clients may ask about it.

use drystone_core::engine::Io;
use drystone_core::error::Error;
use drystone_core::format::qcow2::{DirtyBitmap, Qcow2, SnapshotChoice, find_bitmap};
use drystone_core::graph::open::{DriverSpec, NodeSpec, OpenMode};
use drystone_core::graph::options::{from_filename, from_options};
use drystone_core::graph::{NodeInfo, Role};
use drystone_core::intent::Permissions;
use drystone_core::protocol::nbd::layout::BlockSizes;
use drystone_core::protocol::nbd::limits::PAYLOAD_MAX;
use drystone_core::protocol::nbd::server::{Context, Export};
use drystone_exec_linux::{Client, DirtyRanges, Image, NbdBitmap, NbdExport};
use drystone_tools::img::args::SnapshotName;
use drystone_tools::img::convert::{no_snapshot, no_snapshots_in};
use drystone_tools::message::Failure;
use drystone_tools::nbd::args::ServeArgs;
use drystone_tools::options::{parse_list, refusal};
use serde_json::{Map, Value};

use crate::events::tell_events_of;
use crate::overlay::open_overlay;

/// Opens the image; also returns it as it is served.
pub async fn open(client: &Client, args: &ServeArgs) -> Result<NbdExport, Failure> {
    let cannot =
        |why: &dyn std::fmt::Display| Failure::new(format!("Failed to blk_new_open '{}': {why}", args.file));
    if args.snapshot && args.offset > 0 {
        return Err(Failure::new("-s and -o cannot be combined: the overlay is as long as the image"));
    }
    let mut spec = spec(args).map_err(|error| cannot(&error))?;
    if let Some(name) = &args.load_snapshot
        && let DriverSpec::Qcow2 { options, .. } | DriverSpec::Probe { options, .. } = &mut spec.driver
    {
        options.snapshot = Some(match name.clone() {
            SnapshotName::IdOrName(text) => SnapshotChoice::IdOrName(text),
            SnapshotName::Both { id, name } => SnapshotChoice::Both { id, name },
        });
    }
    let mode = spec.mode;
    let top = match args.snapshot {
        true => open_overlay(client, spec, mode).await.map(|(_, image)| image),
        false => client.open(&windowed(spec, args.offset)).await.map_err(|error| error.to_string()),
    };
    tell_events_of(client, Some(&args.file));
    let image = top.map_err(|error| match error.as_str() {
        "Can't find snapshot" => no_snapshot(),
        _ => cannot(&error),
    })?;
    let driver = format_of(client, &image, args.offset > 0 && !args.snapshot);
    if args.load_snapshot.is_some() && driver.driver != "qcow2" {
        return Err(no_snapshots_in(driver.driver));
    }
    export(client, image, args, &driver).await
}

fn spec(args: &ServeArgs) -> Result<NodeSpec, String> {
    let mode = OpenMode {
        writable: !args.read_only,
        direct: args.cache.direct,
        no_flush: args.cache.no_flush,
        write_through: args.cache.writethrough,
        discard: args.discard,
        detect_zeroes: args.detect_zeroes,
        aio: args.aio,
        takes: Permissions::NONE,
        // Clients were told how long the disk is.
        denies: Permissions::RESIZE,
        names: args.image_names,
        ..OpenMode::default()
    };
    if !args.image_opts {
        let read = from_filename(&args.file, args.format.as_deref(), mode);
        return read.map_err(|error| error.to_string());
    }
    let mut options = Map::new();
    for pair in parse_list(&args.file, None) {
        options.insert(pair.key, Value::String(pair.value));
    }
    from_options(options.clone(), mode).map_err(|error| refusal(&error, None, &options))
}

/// The image from an offset on.
fn windowed(spec: NodeSpec, offset: u64) -> NodeSpec {
    if offset == 0 {
        return spec;
    }
    let mode = spec.mode;
    let file = Box::new(NodeSpec { mode: OpenMode { write_through: false, ..mode }, ..spec });
    NodeSpec { node_name: None, mode, driver: DriverSpec::Raw { file, offset, size: None } }
}

/// The image's own node, below the window on it.
fn format_of(client: &Client, image: &Image, has_window: bool) -> NodeInfo {
    let graph = client.graph();
    let find = |id| graph.iter().find(|info| info.id == id).expect("it is open");
    let top = find(image.node());
    let below = top.edges.iter().find(|(role, _)| *role == Role::File).filter(|_| has_window);
    let below = below.and_then(|(_, name)| graph.iter().find(|info| info.name == *name));
    below.unwrap_or(top).clone()
}

async fn export(
    client: &Client,
    image: Image,
    args: &ServeArgs,
    format: &NodeInfo,
) -> Result<NbdExport, Failure> {
    let len = image.len();
    let mut contexts = vec![Context::Allocation];
    if args.depth {
        contexts.push(Context::Depth);
    }
    let mut bitmaps = Vec::new();
    for name in &args.bitmaps {
        bitmaps.push(bitmap_of(client, format, name, args).await?);
        contexts.push(Context::Bitmap(name.clone()));
    }
    let export = Export {
        name: args.name.clone(),
        description: args.description.clone(),
        len,
        read_only: args.read_only,
        shared: args.clients_max != 1,
        sizes: BlockSizes { min: 1, preferred: 4096, max: PAYLOAD_MAX },
        contexts,
    };
    Ok(NbdExport { image, export, bitmaps })
}

/// A bitmap as clients see it, from the offset on: where the image may be written to, as it is whenever they ask.
async fn bitmap_of(
    client: &Client,
    format: &NodeInfo,
    name: &str,
    args: &ServeArgs,
) -> Result<NbdBitmap, Failure> {
    let missing = || Failure::new(format!("Bitmap '{name}' is not found"));
    if format.driver != "qcow2" {
        return Err(missing());
    }
    let (node, offset, wanted) = (format.id, args.offset, name.to_owned());
    let (writable, asked) = (!args.read_only && !args.snapshot, wanted.clone());
    let loaded = client.run(move |io| async move {
        let driver = io.driver(node).expect("an image has a driver");
        let qcow2 = driver.as_any().downcast_ref::<Qcow2>().expect("its name says so");
        if writable {
            return Ok(qcow2.bitmap(&asked).ok());
        }
        let file = io.edge(node, Role::File).expect("an image has a file");
        Ok::<_, Box<Error>>(find_bitmap(&qcow2.load_bitmaps(&io, file).await?, &asked).ok().cloned())
    });
    let bitmap = loaded.await.map_err(|error| Failure::new(error.to_string()))?.ok_or_else(missing)?;
    if !bitmap.is_consistent() || bitmap.about.in_use && !writable {
        return Err(Failure::new(format!("Bitmap '{name}' is inconsistent and cannot be used")));
    }
    if !writable || !bitmap.about.auto {
        return Ok(NbdBitmap::Fixed(shown(&bitmap, offset)));
    }
    Ok(NbdBitmap::Live(Box::new(move |io: &Io| {
        let driver = io.driver(node).expect("an image has a driver");
        let qcow2 = driver.as_any().downcast_ref::<Qcow2>().expect("its name says so");
        shown(&qcow2.bitmap(&wanted).expect("nobody removes a bitmap while it is served"), offset)
    })))
}

/// The dirty ranges of a bitmap behind an offset.
fn shown(bitmap: &DirtyBitmap, offset: u64) -> DirtyRanges {
    let behind = |(at, len): (u64, u64)| {
        let end = (at + len).checked_sub(offset).filter(|end| *end > 0)?;
        let start = at.saturating_sub(offset);
        Some((start, end - start))
    };
    bitmap.ranges().filter_map(behind).collect()
}
