//! The bytes of a simulated namespace.

use crate::nvme::layout::IDENTIFY_LEN;

/// What a namespace does with data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Keeps it.
    Memory,
    /// Moves nothing: reads leave their buffers as they are, writes vanish. For measuring everything else.
    Nothing,
}

/// A namespace.
#[derive(Clone, Debug)]
pub struct SimNamespace {
    /// Bytes of a block.
    pub block: u32,
    /// Size in blocks.
    pub blocks: u64,
    /// What becomes of data.
    pub storage: Storage,
    /// Bytes of metadata beside each block: this driver refuses them.
    pub metadata: u16,
    bytes: Vec<u8>,
}

impl SimNamespace {
    /// A namespace of `len` bytes that keeps its data.
    pub fn new(block: u32, len: u64) -> Self {
        let bytes = vec![0; usize::try_from(len).expect("simulated namespaces fit memory")];
        let blocks = len / u64::from(block);
        Self { block, blocks, storage: Storage::Memory, metadata: 0, bytes }
    }

    /// A namespace of `len` bytes that moves no data.
    pub fn nothing(block: u32, len: u64) -> Self {
        let blocks = len / u64::from(block);
        Self { block, blocks, storage: Storage::Nothing, metadata: 0, bytes: Vec::new() }
    }

    /// What it holds.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What it holds, to be changed behind the driver's back.
    pub fn bytes_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// The Identify data structure.
    pub(super) fn identify(&self) -> [u8; IDENTIFY_LEN] {
        let mut data = [0; IDENTIFY_LEN];
        for at in [0, 8, 16] {
            data[at..at + 8].copy_from_slice(&self.blocks.to_le_bytes());
        }
        // Deallocated blocks read as zeros, and Write Zeroes may deallocate.
        data[33] = 1 | 1 << 3;
        data[128..130].copy_from_slice(&self.metadata.to_le_bytes());
        data[130] = self.block.trailing_zeros() as u8;
        data
    }

    /// The bytes of a range of blocks, if it lies inside.
    pub(super) fn range(&mut self, lba: u64, blocks: u64) -> Option<&mut [u8]> {
        let end = lba.checked_add(blocks)?;
        if end > self.blocks {
            return None;
        }
        if self.storage == Storage::Nothing {
            return Some(&mut []);
        }
        let block = u64::from(self.block);
        Some(&mut self.bytes[(lba * block) as usize..(end * block) as usize])
    }
}
