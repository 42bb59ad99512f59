//! Changes of images as a whole.

use crate::engine::Io;
use crate::error::{Error, Result};
use crate::format::qcow2::{Amend, Qcow2};
use crate::graph::NodeId;

/// Changes what the header of an image promises; nobody else uses the node meanwhile. Durable on return.
///
/// # Errors
/// When the node's format has no such options, or as the format says.
pub async fn amend(io: &Io, node: NodeId, to: &Amend) -> Result<()> {
    let driver = io.driver(node);
    let name = driver.as_ref().map_or("file", |driver| driver.name());
    let Some(qcow2) = driver.as_ref().and_then(|driver| driver.as_any().downcast_ref::<Qcow2>()) else {
        let what = "option amendment";
        return Err(Box::new(Error::Unsupported { node: io.title(node), driver: name, what }));
    };
    qcow2.amend(&io.for_node(node), to).await
}
