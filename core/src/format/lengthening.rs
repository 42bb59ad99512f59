//! Making the file of an image longer beside writes into it.

use crate::engine::Io;
use crate::engine::task::Gate;
use crate::error::Result;
use crate::graph::NodeId;
use crate::intent::Preallocation;

/// Held while the file gets a new length. No space is taken meanwhile: a write behind the new length that completes before it
/// is set would be cut off.
#[derive(Default)]
pub(in crate::format) struct Lengthening(Gate);

impl Lengthening {
    /// Whether space has to wait for [`settle`](Self::settle).
    pub fn is_under_way(&self) -> bool {
        self.0.is_held()
    }

    /// Waits until the length is not about to change.
    pub async fn settle(&self, io: &Io) {
        drop(self.0.enter(&io.shared().tasks).await);
    }

    /// Gives `file` the length that ends where `taken` says that all space which is taken does, unless it is longer.
    ///
    /// # Errors
    /// When the leaf fails.
    pub async fn cover(&self, io: &Io, file: NodeId, taken: impl Fn() -> u64) -> Result<()> {
        if io.len(file) >= taken() {
            return Ok(());
        }
        let _no_space_is_taken = self.0.enter(&io.shared().tasks).await;
        let end = taken();
        if io.len(file) < end { io.set_len(file, end, Preallocation::Off).await } else { Ok(()) }
    }
}
