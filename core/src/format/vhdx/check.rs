//! Check: entries of the BAT that lie in the file, and that no two share. Memory: a bit for each MiB of the file.

use super::layout::{MIB, SECTOR};
use super::lookup::Block;
use super::open::read_through;
use super::{CheckReport, Vhdx, VhdxError};
use crate::engine::Io;
use crate::error::{Error, Result};
use crate::graph::NodeId;
use crate::graph::driver::Role;

/// Sectors of the BAT that are read at once.
const PIECE: u64 = MIB;

/// Faults that are kept; all are counted.
const FAULTS_MAX: usize = 1000;

/// What reading all of the BAT found.
#[derive(Default)]
pub(super) struct Survey {
    /// The byte behind all that is in use.
    pub(super) end: u64,
    /// What is wrong, as far as it is kept.
    pub(super) faults: Vec<VhdxError>,
    /// How much is wrong.
    count: u64,
    used: Vec<u64>,
}

impl Survey {
    fn fault(&mut self, fault: VhdxError) {
        self.count += 1;
        if self.faults.len() < FAULTS_MAX {
            self.faults.push(fault);
        }
    }

    /// Takes note of a block; whether any part of it is another one's.
    fn note(&mut self, at: u64, len: u64) -> bool {
        let mut shared = false;
        for mib in at / MIB..(at + len) / MIB {
            let (word, bit) = ((mib / 64) as usize, 1 << (mib % 64));
            if word >= self.used.len() {
                self.used.resize(word + 1, 0);
            }
            shared |= self.used[word] & bit != 0;
            self.used[word] |= bit;
        }
        self.end = self.end.max(at + len);
        shared
    }
}

impl Vhdx {
    /// Reads all of the BAT.
    pub(super) async fn survey(&self, io: &Io, survey: &mut Survey) -> Result<()> {
        survey.end = self.taken.iter().map(|region| region.end()).max().unwrap_or(MIB);
        let file = io.child(Role::File);
        let entries = self.entries_for(self.size.get());
        let mut index = 0;
        while index < entries {
            let len = ((entries - index) * 8).min(PIECE).next_multiple_of(SECTOR as u64);
            let at = self.bat.at + index * 8;
            let bytes = read_through(io, "vhdx.check/bat", file, &self.overlay, at, len as usize).await?;
            for (raw, index) in bytes.chunks_exact(8).zip(index..entries) {
                let raw = u64::from_le_bytes(raw.try_into().expect("eight bytes"));
                match self.block_at(index, raw) {
                    Ok(None) => {}
                    Ok(Some((at, len))) if survey.note(at, len) => {
                        survey.fault(VhdxError::Overlap { index, at })
                    }
                    Ok(Some(_)) => {}
                    Err(fault) => survey.fault(fault),
                }
            }
            index += len / 8;
        }
        Ok(())
    }

    /// The place and the length of what an entry names.
    fn block_at(&self, index: u64, raw: u64) -> Result<Option<(u64, u64)>, VhdxError> {
        let ratio = self.chunk_ratio();
        if index % (ratio + 1) == ratio {
            return Ok(self.parse_bitmap(index, raw)?.map(|at| (at, MIB)));
        }
        Ok(match self.parse_block(index, raw)? {
            Block::Full(at) | Block::Partial(at) => Some((at, self.metadata.block_len)),
            Block::Parent | Block::Zeros => None,
        })
    }
}

/// Checks an image. `say` gets each finding as a line. A log that was replayed into the file is one error repaired, as in the
/// reference.
///
/// # Errors
/// When the BAT cannot be read.
pub async fn check(io: &Io, node: NodeId, say: &mut dyn FnMut(String)) -> Result<CheckReport> {
    let driver = io.driver(node);
    let image = driver.as_ref().and_then(|driver| driver.as_any().downcast_ref::<Vhdx>());
    let Some(image) = image else {
        let (node, driver) = (io.title(node), driver.as_ref().map_or("file", |driver| driver.name()));
        return Err(Box::new(Error::Unsupported { node, driver, what: "a VHDX check" }));
    };
    let mut survey = Survey::default();
    image.survey(&io.for_node(node), &mut survey).await?;
    for fault in &survey.faults {
        say(format!("ERROR: {fault}"));
    }
    let repaired = !io.flags(node).read_only && image.replayed.replace(false);
    Ok(CheckReport {
        corruptions: survey.count,
        corruptions_fixed: u64::from(repaired),
        ..CheckReport::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_that_share_a_mib_are_noticed() {
        let mut survey = Survey::default();
        assert!(!survey.note(4 * MIB, 2 * MIB));
        assert!(!survey.note(200 * MIB, MIB));
        assert!(survey.note(5 * MIB, 2 * MIB));
        assert_eq!(survey.end, 201 * MIB);
    }
}
