//! What is served: from a command line to an open image, and what clients may ask about it.

use drystone_core::engine::Io;
use drystone_core::error::Error;
use drystone_core::format::qcow2::{DirtyBitmap, Qcow2, SnapshotChoice, find_bitmap};
use drystone_core::graph::open::{DriverSpec, NodeSpec, OpenMode};
use drystone_core::graph::options::{from_filename, from_options};
use drystone_core::graph::{NodeId, NodeInfo, Role};
use drystone_core::intent::Permissions;
use drystone_core::protocol::nbd::layout::BlockSizes;
use drystone_core::protocol::nbd::limits::PAYLOAD_MAX;
use drystone_core::protocol::nbd::server::{Context, Export};
use drystone_exec_linux::{Client, Image, NbdBitmap, NbdExport};
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
    let mut spec = spec(args).map_err(|error| cannot(&error))?;
    // What lies above the image has no snapshots, which is said once the image is there.
    let direct = !args.snapshot && args.offset == 0;
    if let Some(name) = args.load_snapshot.as_ref().filter(|_| direct)
        && let DriverSpec::Qcow2 { options, .. } | DriverSpec::Probe { options, .. } = &mut spec.driver
    {
        options.snapshot = Some(match name.clone() {
            SnapshotName::IdOrName(text) => SnapshotChoice::IdOrName(text),
            SnapshotName::Both { id, name } => SnapshotChoice::Both { id, name },
        });
    }
    let mode = spec.mode;
    let top = match args.snapshot {
        true => match open_overlay(client, spec, mode).await {
            Ok((_, image)) => window_above(client, image, mode, args.offset).await,
            Err(error) => Err(error),
        },
        false => client.open(&windowed(spec, args.offset)).await.map_err(|error| error.to_string()),
    };
    tell_events_of(client, Some(&args.file));
    let image = top.map_err(|error| match error.as_str() {
        "Can't find snapshot" => no_snapshot(),
        text if text.starts_with("Offset (") && args.offset > 0 => Failure::new(text),
        _ => cannot(&error),
    })?;
    match (&args.load_snapshot, args.snapshot) {
        (Some(_), true) => return Err(no_snapshot()),
        (Some(_), false) if args.offset > 0 => return Err(no_snapshots_in("raw")),
        _ => {}
    }
    let driver = format_of(client, &image, args.offset > 0);
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
    for pair in parse_list(&args.file, Some("file")) {
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

/// An image that is open, from an offset on.
async fn window_above(client: &Client, image: Image, mode: OpenMode, offset: u64) -> Result<Image, String> {
    if offset == 0 {
        return Ok(image);
    }
    let name = node(client, |info| info.id == image.node()).expect("it is open").name;
    let driver = DriverSpec::Node(name);
    let opened = client.open(&windowed(NodeSpec { node_name: None, mode, driver }, offset)).await;
    // The window keeps the image open; without it, the image closes.
    let closed = image.close().await;
    opened.and_then(|window| closed.map(|()| window)).map_err(|error| error.to_string())
}

/// The first node of that kind.
fn node(client: &Client, is_it: impl Fn(&NodeInfo) -> bool) -> Option<NodeInfo> {
    client.graph().into_iter().find(is_it)
}

/// The node below another.
fn below(client: &Client, above: &NodeInfo, role: Role) -> Option<NodeInfo> {
    let (_, name) = above.edges.iter().find(|(edge, _)| *edge == role)?;
    node(client, |info| info.name == *name)
}

/// The image's own node, below the window on it.
fn format_of(client: &Client, image: &Image, has_window: bool) -> NodeInfo {
    let top = node(client, |info| info.id == image.node()).expect("it is open");
    below(client, &top, Role::File).filter(|_| has_window).unwrap_or(top)
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
    // The reference tells of the last one first.
    for name in args.bitmaps.iter().rev() {
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

/// A bitmap as clients see it, of the first image of a chain that has one of that name: where that may be written to, as it is
/// whenever they ask. What is shown from an offset on has none, as in the reference.
async fn bitmap_of(
    client: &Client,
    format: &NodeInfo,
    name: &str,
    args: &ServeArgs,
) -> Result<NbdBitmap, Failure> {
    let mut writable = !args.read_only;
    let mut next = Some(format.clone()).filter(|_| args.offset == 0);
    while let Some(info) = next {
        let found = match info.driver == "qcow2" {
            true => find(client, info.id, name, writable).await?,
            false => None,
        };
        let Some(bitmap) = found else {
            next = below(client, &info, Role::Backing);
            writable = false;
            continue;
        };
        if !bitmap.is_consistent() || bitmap.about.in_use && !writable {
            return Err(Failure::new(format!("Bitmap '{name}' is inconsistent and cannot be used")));
        }
        if !writable || !bitmap.about.auto {
            return Ok(NbdBitmap::Fixed(bitmap.ranges().collect()));
        }
        let wanted = name.to_owned();
        return Ok(NbdBitmap::Live(Box::new(move |io: &Io| {
            let driver = io.driver(info.id).expect("an image has a driver");
            let qcow2 = driver.as_any().downcast_ref::<Qcow2>().expect("its name says so");
            qcow2.bitmap(&wanted).expect("nobody removes a bitmap while it is served").ranges().collect()
        })));
    }
    Err(Failure::new(format!("Bitmap '{name}' is not found")))
}

/// The bitmap of an image, if it has it.
async fn find(
    client: &Client,
    node: NodeId,
    name: &str,
    writable: bool,
) -> Result<Option<DirtyBitmap>, Failure> {
    let name = name.to_owned();
    let loaded = client.run(move |io| async move {
        let driver = io.driver(node).expect("an image has a driver");
        let qcow2 = driver.as_any().downcast_ref::<Qcow2>().expect("its name says so");
        if writable {
            return Ok(qcow2.bitmap(&name).ok());
        }
        let file = io.edge(node, Role::File).expect("an image has a file");
        Ok::<_, Box<Error>>(find_bitmap(&qcow2.load_bitmaps(&io, file).await?, &name).ok().cloned())
    });
    loaded.await.map_err(|error| Failure::new(error.to_string()))
}
