//! Places in the work of formats that a test can wait for, by the names that QEMU gives them.
//!
//! Nobody tells `reftable_grow` and `refblock_update`: QEMU 10.0.2, which has these names too, tells neither in any of its
//! operations on qcow2.

macro_rules! events {
    ($($variant:ident = $name:literal, $what:literal;)*) => {
        /// A place in the work of a driver, told to the [`Blkdebug`](super::Blkdebug) below it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum DebugEvent {
            $(#[doc = $what] $variant,)*
        }

        impl DebugEvent {
            /// All of them, in the order of the reference.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// QEMU's name.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

events! {
    L1Update = "l1_update", "Entries of the L1 table are about to be written.";
    L1GrowAllocTable = "l1_grow_alloc_table", "A larger L1 table is about to get space.";
    L1GrowWriteTable = "l1_grow_write_table", "A larger L1 table is about to be written.";
    L1GrowActivateTable = "l1_grow_activate_table", "The header is about to point to a larger L1 table.";
    L2Load = "l2_load", "A slice of an L2 table is about to be read.";
    L2Update = "l2_update", "Slices of L2 tables are about to be written.";
    L2UpdateCompressed = "l2_update_compressed", "An L2 entry is about to point to compressed data.";
    L2AllocCowRead = "l2_alloc_cow_read", "An L2 table that a snapshot shares is about to be read.";
    L2AllocWrite = "l2_alloc_write", "A new L2 table is about to be written.";
    ReadAio = "read_aio", "Guest data is about to be read from the file.";
    ReadBackingAio = "read_backing_aio", "Guest data is about to be read from the backing file.";
    ReadCompressed = "read_compressed", "Compressed data is about to be read.";
    WriteAio = "write_aio", "Guest data is about to be written to the file.";
    WriteCompressed = "write_compressed", "Compressed data is about to be written.";
    VmstateLoad = "vmstate_load", "The state of a machine is about to be read.";
    VmstateSave = "vmstate_save", "The state of a machine is about to be written.";
    CowRead = "cow_read", "What a write leaves of a cluster is about to be read.";
    CowWrite = "cow_write", "What a write leaves of a cluster is about to be written, apart from the write.";
    ReftableLoad = "reftable_load", "The refcount table is about to be read.";
    ReftableGrow = "reftable_grow", "A name without a place: a table that grows is told as `refblock_alloc_write_table`.";
    ReftableUpdate = "reftable_update", "The header is about to point to the refcount table of an emptied image.";
    RefblockLoad = "refblock_load", "A slice of a refcount block is about to be read.";
    RefblockUpdate = "refblock_update", "A name without a place: blocks are written a part at a time.";
    RefblockUpdatePart = "refblock_update_part", "Slices of refcount blocks are about to be written.";
    RefblockAlloc = "refblock_alloc", "Clusters were taken, which a refcount block must count.";
    RefblockAllocHookup = "refblock_alloc_hookup", "The refcount table is about to point to a new block.";
    RefblockAllocWrite = "refblock_alloc_write", "A new refcount block is about to be written.";
    RefblockAllocWriteBlocks = "refblock_alloc_write_blocks", "Blocks for a larger table are about to be written.";
    RefblockAllocWriteTable = "refblock_alloc_write_table", "A larger refcount table is about to be written.";
    RefblockAllocSwitchTable = "refblock_alloc_switch_table", "The header is about to point to that table.";
    ClusterAlloc = "cluster_alloc", "Clusters were taken.";
    ClusterAllocBytes = "cluster_alloc_bytes", "Space for compressed data was taken.";
    ClusterFree = "cluster_free", "Clusters are about to be given back.";
    FlushToOs = "flush_to_os", "A flush begins.";
    FlushToDisk = "flush_to_disk", "A flush has written what was held back, and is about to make it durable.";
    PwritevRmwHead = "pwritev_rmw_head", "The block in which an unaligned write begins is about to be read.";
    PwritevRmwAfterHead = "pwritev_rmw_after_head", "That block was read.";
    PwritevRmwTail = "pwritev_rmw_tail", "The block in which an unaligned write ends is about to be read.";
    PwritevRmwAfterTail = "pwritev_rmw_after_tail", "That block was read.";
    Pwritev = "pwritev", "The blkdebug node itself is about to write.";
    PwritevZero = "pwritev_zero", "The blkdebug node itself is about to write zeros.";
    PwritevDone = "pwritev_done", "The blkdebug node itself has written.";
    EmptyImagePrepare = "empty_image_prepare", "An image is about to be emptied.";
    L1ShrinkWriteTable = "l1_shrink_write_table", "A shorter L1 table is about to be written.";
    L1ShrinkFreeL2Clusters = "l1_shrink_free_l2_clusters", "L2 tables beyond a shorter L1 table are about to be freed.";
    CorWrite = "cor_write", "What was read from a backing file is about to be written.";
    ClusterAllocSpace = "cluster_alloc_space", "What a write leaves of a new cluster is about to be made zeros.";
    None = "none", "The node has just been opened.";
}

impl DebugEvent {
    /// The event of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|event| event.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_are_found() {
        assert_eq!(DebugEvent::ALL.len(), 48);
        for event in DebugEvent::ALL {
            assert_eq!(DebugEvent::parse(event.name()), Some(*event));
        }
        assert_eq!(DebugEvent::parse("foo"), None);
    }
}
