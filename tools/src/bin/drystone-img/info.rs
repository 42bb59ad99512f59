//! `info`.

use drystone_core::engine::Io;
use drystone_core::error::Result as CoreResult;
use drystone_core::format::qcow2::Qcow2;
use drystone_core::graph::open::{ImageNames, NodeSpec, OpenMode, beside, names_protocol};
use drystone_core::graph::options::from_filename;
use drystone_core::graph::{NodeId, Role};
use drystone_core::intent::LeafKind;
use drystone_exec_linux::Client;
use drystone_tools::img::args::{InfoArgs, OutputFormat};
use drystone_tools::img::info::{
    BackingName, Child, FormatSpecific, ImageInfo, Snapshot, qcow2_facts, render_human, render_json,
};
use drystone_tools::img::inspect::{Inspection, OutsideName};
use drystone_tools::img::open::cannot_open;
use drystone_tools::message::Failure;
use drystone_tools::options::{ImageName, json_filename};
use jiff::tz::TimeZone;
use serde_json::{Map, Value, json};

use crate::image;

/// Images of a chain at the most.
const CHAIN_MAX: usize = 200;

pub async fn run(client: &Client, args: &InfoArgs) -> Result<u8, Failure> {
    let mode =
        OpenMode { force_share: args.force_share, names: args.common.image_names, ..OpenMode::default() };
    let mut spec = image::spec(&args.source, mode)?;
    if args.inspect {
        return inspect(client, args, spec).await;
    }
    let mut name = args.source.name.clone();
    let mut images: Vec<ImageInfo> = Vec::new();
    loop {
        let mut info = look(client, &name, spec.metadata_only()).await?;
        if let ImageName::Options { .. } = &name
            && shows_a_part(&name.options())
        {
            info.filename = json_filename(&with_protocol(name.options()));
        }
        let next = info
            .backing
            .as_ref()
            .and_then(|backing| Some((backing.full_filename.clone()?, backing.format.clone())));
        images.push(info);
        let Some((filename, format)) = next.filter(|_| args.backing_chain) else { break };
        let refused = match args.common.image_names {
            ImageNames::Follow => false,
            ImageNames::Plain => names_protocol(&filename),
            ImageNames::Forbid => true,
        };
        if refused {
            let text = format!("--image-names does not allow the backing file '{filename}' to be opened");
            return Err(cannot_open(&name, &text));
        }
        if images.iter().any(|image| image.filename == filename) {
            return Err(Failure::new(format!("Backing file '{filename}' creates an infinite loop.")));
        }
        if images.len() >= CHAIN_MAX {
            return Err(Failure::new(format!("the backing chain is more than {CHAIN_MAX} images long")));
        }
        name = ImageName::File(filename.clone());
        spec = from_filename(&filename, format.as_deref(), mode)
            .map_err(|error| cannot_open(&name, &error.to_string()))?;
    }
    crate::print(&match args.output {
        OutputFormat::Human => render_human(&images, &TimeZone::system()),
        OutputFormat::Json => render_json(&images, args.backing_chain),
    })?;
    Ok(0)
}

/// Lists the names that the image holds. Only its own file is opened.
async fn inspect(client: &Client, args: &InfoArgs, spec: NodeSpec) -> Result<u8, Failure> {
    let name = &args.source.name;
    let disk = image::open_spec(client, name, &spec.metadata_only()).await?;
    let node = disk.node();
    let looked = client.run(move |io| async move {
        let title = io.title(node);
        let facts = io.driver(node).map(|driver| driver.facts()).unwrap_or_default();
        let path = |name: &str| (!names_protocol(name)).then(|| beside(&title, name));
        let backing = facts.backing.iter().map(|backing| {
            OutsideName::new("backing file", &backing.name, backing.format.as_deref(), path(&backing.name))
        });
        let parts = facts
            .names
            .iter()
            .map(|part| OutsideName::new(part.what, &part.name, None, Some(beside(&title, &part.name))));
        let names = backing.chain(parts).collect();
        Ok(Inspection { filename: title.clone(), format: driver_name(&io, node), names })
    });
    let inspection = looked.await.map_err(|error| cannot_open(name, &error.to_string()))?;
    image::close(disk).await?;
    crate::print(&inspection.render(args.output))?;
    Ok(0)
}

/// Whether options say which part of a file a node shows, which no plain file name can.
fn shows_a_part(options: &Map<String, Value>) -> bool {
    let part = |key: &str| matches!(key, "offset" | "size");
    options
        .iter()
        .any(|(key, value)| part(key) || (key == "file" && value.as_object().is_some_and(shows_a_part)))
}

/// The options, with the protocol that a file name without one has.
fn with_protocol(mut options: Map<String, Value>) -> Map<String, Value> {
    if let Some(Value::Object(file)) = options.get_mut("file") {
        let protocol = Map::from_iter([("driver".to_owned(), json!("file"))]);
        let given = std::mem::replace(file, protocol);
        file.extend(with_protocol(given));
    }
    options
}

async fn look(client: &Client, name: &ImageName, spec: NodeSpec) -> Result<ImageInfo, Failure> {
    let disk = image::open_spec(client, name, &spec).await?;
    let node = disk.node();
    let info = client.run(move |io| async move { describe(&io, node).await }).await;
    let info = info.map_err(|error| cannot_open(name, &error.to_string()))?;
    image::close(disk).await?;
    Ok(info)
}

async fn describe(io: &Io, node: NodeId) -> CoreResult<ImageInfo> {
    let format = driver_name(io, node);
    // What takes its time above a leaf without storage is one with it.
    let file = io.edge(node, Role::File).filter(|_| !format.starts_with("null-"));
    let mut children = Vec::new();
    for (name, role) in edges(&format) {
        if let Some(child) = io.edge(node, role) {
            children.push(Child { name: name.into(), info: Box::pin(describe(io, child)).await? });
        }
    }
    let filename = io.title(node);
    let actual_size = image::bytes_on_host(io, node);
    let mut info = ImageInfo {
        format,
        // The reference counts whole sectors.
        virtual_size: io.len(node).next_multiple_of(512),
        actual_size,
        dirty: (!is_null(io, node)).then_some(false),
        cluster_size: None,
        encrypted: false,
        compressed: false,
        backing: None,
        snapshots: None,
        format_specific: None,
        children,
        filename,
    };
    let driver = io.driver(node);
    let Some(file) = file else {
        let kind = info.format.clone();
        let on_host = matches!(kind.as_str(), "file" | "host_device");
        info.format_specific = on_host.then(|| FormatSpecific { kind: "file".into(), data: Map::new() });
        return Ok(info);
    };
    let facts = driver.as_ref().map(|driver| driver.facts()).unwrap_or_default();
    info.dirty = info.dirty.map(|_| facts.dirty).filter(|_| !facts.tells_no_state);
    info.cluster_size = facts.cluster_size;
    info.encrypted = facts.encrypted;
    info.compressed = facts.compressed;
    info.backing = facts.backing.map(|backing| BackingName {
        full_filename: Some(match names_protocol(&backing.name) {
            true => backing.name.clone(),
            false => beside(&info.filename, &backing.name),
        }),
        filename: backing.name,
        format: backing.format,
    });
    let specific = match driver.as_ref().and_then(|driver| driver.as_any().downcast_ref::<Qcow2>()) {
        None => facts.specific,
        Some(qcow2) => {
            let snapshots = qcow2.snapshots(io, file).await?;
            info.snapshots = (!snapshots.is_empty()).then(|| snapshots.into_iter().map(snapshot).collect());
            Some(qcow2_facts(io, qcow2, file).await?)
        }
    };
    info.format_specific = specific.map(|data| FormatSpecific { kind: info.format.clone(), data });
    Ok(info)
}

/// The edges of a driver that are shown, by the reference's names, the newest first.
fn edges(driver: &str) -> Vec<(&'static str, Role)> {
    match driver {
        "blkdebug" => vec![("image", Role::File)],
        "blkverify" => vec![("test", Role::File), ("raw", Role::Raw)],
        "blklogwrites" => vec![("log", Role::Log), ("file", Role::File)],
        "null-co" | "null-aio" => Vec::new(),
        _ => vec![("file", Role::File)],
    }
}

/// Whether what is shown comes from a leaf without storage.
fn is_null(io: &Io, node: NodeId) -> bool {
    let leaf = std::iter::successors(Some(node), |node| io.edge(*node, Role::File)).last();
    leaf.and_then(|leaf| io.leaf_info(leaf)).is_some_and(|leaf| leaf.kind == LeafKind::Null)
}

fn driver_name(io: &Io, node: NodeId) -> String {
    io.graph().into_iter().find(|info| info.id == node).map_or("raw".into(), |info| info.driver.to_owned())
}

/// A snapshot as it is shown.
pub fn snapshot(snapshot: drystone_core::format::qcow2::layout::Snapshot) -> Snapshot {
    Snapshot {
        id: snapshot.id,
        name: snapshot.name,
        vm_state_size: snapshot.vm_state_len,
        date_sec: i64::from(snapshot.seconds),
        date_nsec: snapshot.nanoseconds,
        vm_clock_nsec: snapshot.guest_nanoseconds,
        icount: snapshot.icount,
    }
}
