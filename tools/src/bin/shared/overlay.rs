//! An image below an empty overlay: what is written is gone in the end.

use std::os::unix::fs::OpenOptionsExt;
use std::time::{SystemTime, UNIX_EPOCH};

use drystone_core::format::qcow2::{CreateOptions, Qcow2Options, create};
use drystone_core::graph::NodeId;
use drystone_core::graph::open::{ChildSpec, DriverSpec, NodeSpec, OpenMode, open as open_nodes};
use drystone_exec_linux::{Client, Image};

/// Name of the image below an overlay, unless it has one.
const BASE_NAME: &str = "snapshot-base";

/// Opens an image for reading, below an empty overlay that is gone when it is closed.
pub async fn open_overlay(
    client: &Client,
    spec: NodeSpec,
    mode: OpenMode,
) -> Result<(NodeId, Image), String> {
    let below = OpenMode { writable: false, write_through: false, ..mode };
    // Others may write to the image that is read, and not to the overlay.
    let own = OpenMode { force_share: false, ..below };
    let name = spec.node_name.clone().unwrap_or_else(|| BASE_NAME.into());
    let spec = NodeSpec { node_name: Some(name.clone()), ..read_only(spec) };
    let base = client.open(&spec).await.map_err(|error| error.to_string())?;
    let made = make_overlay(client, base.len()).await;
    let opened = match &made {
        Err(why) => Err(why.clone()),
        Ok(path) => {
            let backing = NodeSpec { node_name: None, mode: below, driver: DriverSpec::Node(name) };
            let driver = DriverSpec::Qcow2 {
                file: Box::new(NodeSpec::file(path, OpenMode { writable: mode.writable, ..own })),
                backing: ChildSpec::Spec(Box::new(backing)),
                data_file: ChildSpec::FromImage,
                options: Qcow2Options { pack_fresh_only: true, ..Qcow2Options::default() },
            };
            // Nothing that is lost in a crash is worth a flush.
            let mode = OpenMode { writable: mode.writable, no_flush: true, ..own };
            let overlay = NodeSpec { node_name: None, mode, driver };
            client.open(&overlay).await.map_err(|error| error.to_string())
        }
    };
    if let Ok(path) = &made {
        // The file lives until it is closed.
        let _ = std::fs::remove_file(path);
    }
    // The overlay keeps the image open; without it, the image closes.
    let closed = base.close().await.map_err(|error| error.to_string());
    opened.and_then(|image| closed.map(|()| (image.node(), image)))
}

/// The same tree, opened for reading.
fn read_only(mut spec: NodeSpec) -> NodeSpec {
    spec.mode.writable = false;
    spec.mode.write_through = false;
    match &mut spec.driver {
        DriverSpec::Raw { file, .. }
        | DriverSpec::Probe { file, .. }
        | DriverSpec::Image { file, .. }
        | DriverSpec::Filter { file, .. } => {
            **file = read_only((**file).clone());
        }
        DriverSpec::Qcow2 { file, data_file, .. } => {
            **file = read_only((**file).clone());
            if let ChildSpec::Spec(child) = data_file {
                **child = read_only((**child).clone());
            }
        }
        _ => {}
    }
    spec
}

/// Makes an empty image in a file of its own, which nobody else can read.
async fn make_overlay(client: &Client, len: u64) -> Result<String, String> {
    let folder = std::env::var("TMPDIR").unwrap_or_else(|_| "/var/tmp".into());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.subsec_nanos());
    let mut number = 0;
    let path = loop {
        let path = format!("{folder}/drystone-{}-{now}-{number}.qcow2", std::process::id());
        let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        match made {
            Ok(_) => break path,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && number < 100 => number += 1,
            Err(error) => return Err(format!("could not make the overlay '{path}': {error}")),
        }
    };
    let file =
        NodeSpec::file(path.clone(), OpenMode { writable: true, no_flush: true, ..OpenMode::default() });
    let options = CreateOptions::new(len.next_multiple_of(512));
    let created = client.run(async move |io| {
        let node = open_nodes(&io, &file).await?;
        let created = create(&io, node, &options).await;
        let closed = io.close(node).await;
        created.and(closed)
    });
    match created.await {
        Ok(()) => Ok(path),
        Err(error) => {
            let _ = std::fs::remove_file(&path);
            Err(error.to_string())
        }
    }
}
