//! Snapshots within an image. What has begun goes on to its end, even when nobody waits for it any more.

use std::rc::Rc;

use crate::engine::Io;
use crate::error::{Error, Result};
use crate::format::qcow2::{NewSnapshot, Qcow2, SnapshotChoice};
use crate::graph::{Driver, NodeId};

/// Takes a snapshot of a node, which is open for writing; returns its id. Durable on return.
///
/// # Errors
/// When the node's format has no snapshots, or as the format says; the image is then what it was.
pub async fn create_snapshot(io: &Io, node: NodeId, new: &NewSnapshot) -> Result<String> {
    let (driver, here, new) = (with_snapshots(io, node)?, io.for_node(node), new.clone());
    io.to_end(async move { qcow2(&driver).create_snapshot(&here, &new).await }).await
}

/// Makes the disk what it was when a snapshot was taken, its length included. Durable on return.
///
/// # Errors
/// As [`create_snapshot`].
pub async fn apply_snapshot(io: &Io, node: NodeId, choice: &SnapshotChoice) -> Result<()> {
    let (driver, here, choice) = (with_snapshots(io, node)?, io.for_node(node), choice.clone());
    io.to_end(async move { qcow2(&driver).apply_snapshot(&here, &choice).await }).await
}

/// Deletes a snapshot. Durable on return; its space is free once the image is closed, or earlier.
///
/// # Errors
/// As [`create_snapshot`].
pub async fn delete_snapshot(io: &Io, node: NodeId, choice: &SnapshotChoice) -> Result<()> {
    let (driver, here, choice) = (with_snapshots(io, node)?, io.for_node(node), choice.clone());
    io.to_end(async move { qcow2(&driver).delete_snapshot(&here, &choice).await }).await
}

/// The driver of a node that can have snapshots.
fn with_snapshots(io: &Io, node: NodeId) -> Result<Rc<dyn Driver>> {
    let driver = io.driver(node);
    let name = driver.as_ref().map_or("file", |driver| driver.name());
    driver.filter(|driver| driver.as_any().is::<Qcow2>()).ok_or_else(|| {
        let what = "snapshots";
        Box::new(Error::Unsupported { node: io.title(node), driver: name, what })
    })
}

fn qcow2(driver: &Rc<dyn Driver>) -> &Qcow2 {
    driver.as_any().downcast_ref().expect("looked at before")
}
