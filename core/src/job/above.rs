//! What the images of a backing chain say that lie above one of them.

use crate::engine::Io;
use crate::error::Result;
use crate::graph::{NodeId, Role};

/// Who decides what a range holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Above {
    /// An image above, with data.
    Data,
    /// An image above: zeros. The end of one that is too short counts too.
    Zero,
    /// None of them: the image below, or what lies below that, shows through.
    Nothing,
}

/// Asks the images from `top` down to, and without, `base` about the start of a range, and says for how many bytes the
/// answer holds.
///
/// # Errors
/// When metadata is damaged or cannot be read.
pub(super) async fn above(io: &Io, top: NodeId, base: NodeId, offset: u64, len: u64) -> Result<(u64, Above)> {
    let (mut image, mut len) = (top, len);
    loop {
        let backing = io.edge(image, Role::Backing);
        let status = io.status(image, offset, len, backing).await?;
        len = status.len;
        if status.allocated {
            return Ok((len, if status.zero { Above::Zero } else { Above::Data }));
        }
        match backing {
            Some(backing) if backing == base => return Ok((len, Above::Nothing)),
            // What a short image lacks reads as zeros, whatever lies below it.
            Some(backing) if offset < io.len(backing) => {
                len = len.min(io.len(backing) - offset);
                image = backing;
            }
            _ => return Ok((len, Above::Zero)),
        }
    }
}
