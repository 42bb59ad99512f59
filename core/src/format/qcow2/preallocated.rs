//! A guess: was the image's metadata made ahead of its data?
//!
//! Such an image says of every cluster that it holds data, while the host keeps next to nothing of the file. Who wants
//! to know what there really is, asks the host about what the image calls data.

use super::Qcow2;
use super::layout::RefcountTableEntry;
use crate::engine::Io;
use crate::error::Result;
use crate::graph::NodeId;

impl Qcow2 {
    /// Whether `file`, which takes `allocated` bytes on the host, holds clearly more counted clusters than the host
    /// keeps: a ninth more, and two at least. The reference draws the line there too.
    ///
    /// # Errors
    /// When a refcount block cannot be read.
    pub async fn seems_preallocated(&self, io: &Io, file: NodeId, allocated: u64) -> Result<bool> {
        let bits = self.geometry.cluster_bits;
        let kept = allocated / bits.size();
        let enough = (kept.saturating_mul(10) / 9).max(kept + 2);
        let clusters = io.len(file).div_ceil(bits.size());
        if clusters < enough {
            return Ok(false);
        }
        let (per_block, width, blocks) = {
            let refcounts = self.refcounts.borrow();
            (refcounts.per_block(), refcounts.width, clusters.div_ceil(refcounts.per_block()))
        };
        let mut counted = 0;
        for index in 0..blocks {
            let Some(raw) = self.refcounts.borrow().table.get(index as usize).copied() else { break };
            let entry = RefcountTableEntry::parse(raw, index, bits).map_err(|fault| self.fail(fault))?;
            let Some(block) = entry.block() else { continue };
            let bytes = io.read_bytes("qcow2/preallocated", file, block.0, bits.size() as usize).await?;
            let here = per_block.min(clusters - index * per_block) as usize;
            counted += (0..here).filter(|at| width.get(&bytes, *at) != 0).count() as u64;
            if counted >= enough {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
