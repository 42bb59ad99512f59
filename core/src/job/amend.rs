//! Changes of images as a whole.

use super::Progress;
use crate::engine::Io;
use crate::error::{Error, Result};
use crate::format::luks::{AmendKeyslots, Luks};
use crate::format::qcow2::{Amend, Qcow2};
use crate::graph::NodeId;

/// Changes what the header of an image promises; nobody else uses the node meanwhile. Durable on return; it goes on to its end
/// even when nobody waits for it any more. The progress counts what the reference counts.
///
/// # Errors
/// When the node's format has no such options, or as the format says.
pub async fn amend(io: &Io, node: NodeId, to: &Amend, progress: Progress) -> Result<()> {
    let driver = io.driver(node);
    let name = driver.as_ref().map_or("file", |driver| driver.name());
    let Some(driver) = driver.filter(|driver| driver.as_any().is::<Qcow2>()) else {
        let what = "option amendment";
        return Err(Box::new(Error::Unsupported { node: io.title(node), driver: name, what }));
    };
    let (here, to) = (io.for_node(node), to.clone());
    io.to_end(async move {
        let qcow2: &Qcow2 = driver.as_any().downcast_ref().expect("looked at before");
        qcow2.amend(&here, &to, progress).await
    })
    .await
}

/// Changes the keyslots of an encrypted volume; nobody else changes it meanwhile. Durable on return.
///
/// # Errors
/// When the node is no such volume, and as the format says: what would lose the last key is refused.
pub async fn amend_keyslots(io: &Io, node: NodeId, change: &AmendKeyslots) -> Result<()> {
    let driver = io.driver(node);
    let name = driver.as_ref().map_or("file", |driver| driver.name());
    let Some(luks) = driver.as_ref().and_then(|driver| driver.as_any().downcast_ref::<Luks>()) else {
        let what = "option amendment";
        return Err(Box::new(Error::Unsupported { node: io.title(node), driver: name, what }));
    };
    luks.amend(&io.for_node(node), change).await
}
