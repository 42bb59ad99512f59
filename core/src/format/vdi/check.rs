//! Check: entries of the block map that no two share, that lie in the image, and that are as many as the header says.
//!
//! Findings and their words are those of `qemu-img check`. Memory: a bit for each block, at most 64 MiB.

use super::layout::{BLOCKS_MAX, Entry};
use super::{CheckReport, Vdi};
use crate::engine::Io;
use crate::error::{Error, Result};
use crate::graph::NodeId;
use crate::graph::driver::Role;

/// Bytes of the map that are read at once.
const PIECE: u64 = 1 << 20;

/// Checks an image. `say` gets each finding as a line.
///
/// # Errors
/// When the map cannot be read.
pub async fn check(io: &Io, node: NodeId, say: &mut dyn FnMut(String)) -> Result<CheckReport> {
    let driver = io.driver(node);
    let image = driver.as_ref().and_then(|driver| driver.as_any().downcast_ref::<Vdi>());
    let (Some(image), Some(file)) = (image, io.edge(node, Role::File)) else {
        let (node, driver) = (io.title(node), driver.as_ref().map_or("file", |driver| driver.name()));
        return Err(Box::new(Error::Unsupported { node, driver, what: "a VDI check" }));
    };
    let header = image.header();
    let mut report = CheckReport::default();
    let mut seen = vec![0u64; (header.blocks.min(BLOCKS_MAX) as usize).div_ceil(64)];
    let (mut allocated, mut block) = (0u32, 0u64);
    while block < u64::from(header.blocks) {
        let count = (u64::from(header.blocks) - block).min(PIECE / 4);
        let at = header.map_at + block * 4;
        let bytes = io.read_bytes("vdi.check/block_map", file, at, (count * 4) as usize).await?;
        for (raw, block) in bytes.chunks_exact(4).zip(block..) {
            let raw = u32::from_le_bytes(raw.try_into().expect("four bytes"));
            match Entry::parse(raw, &header) {
                Ok(Entry::Zero) => {}
                Ok(Entry::Block(index)) => {
                    allocated += 1;
                    let (word, bit) = (index as usize / 64, 1 << (index % 64));
                    if seen[word] & bit != 0 {
                        say(format!("ERROR: block index {index} also used by {index}"));
                        report.corruptions += 1;
                    }
                    seen[word] |= bit;
                }
                Err(found) => {
                    say(format!("ERROR: block index {block} too large, is {found}"));
                    report.corruptions += 1;
                }
            }
        }
        block += count;
    }
    if allocated != header.allocated {
        say(format!("ERROR: allocated blocks mismatch, is {allocated}, should be {}", header.allocated));
        report.corruptions += 1;
    }
    Ok(report)
}
