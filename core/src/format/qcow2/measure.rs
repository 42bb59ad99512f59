//! Measure: how long the file of an image becomes, before there is one. Source: the reference's own sums, which scripts
//! rely on to the byte.
//!
//! ```text
//!   header | refcount table, refcount blocks | L1 table | L2 tables | data          (a whole image)
//! ```

use super::Bitmap;

/// Bytes of the header of an entry of the bitmap directory.
const BITMAP_ENTRY_LEN: u64 = 24;

/// What decides how much metadata an image has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Bytes of a cluster: a power of two.
    pub cluster_size: u64,
    /// Bits of a refcount: a power of two, 1 to 64.
    pub refcount_bits: u64,
    /// 32 subclusters a cluster.
    pub extended_l2: bool,
}

impl Shape {
    /// Bytes of one L2 entry.
    pub fn l2_entry_len(&self) -> u64 {
        if self.extended_l2 { 16 } else { 8 }
    }

    /// Bytes of the file of an image for `size` bytes of disk in which every cluster is allocated.
    pub fn file_len(&self, size: u64) -> u64 {
        let cluster = self.cluster_size;
        let data = size.next_multiple_of(cluster);
        let l2_entries = (data / cluster).next_multiple_of(cluster / self.l2_entry_len());
        let l2_len = l2_entries * self.l2_entry_len();
        let l1_len = (l2_len / cluster).next_multiple_of(cluster / 8) * 8;
        let counted = cluster + l2_len + l1_len + data;
        counted + self.refcounts_len(counted / cluster)
    }

    /// Bytes of the refcount table and blocks that count so many clusters and themselves.
    fn refcounts_len(&self, clusters: u64) -> u64 {
        let per_block = self.cluster_size * 8 / self.refcount_bits;
        let (mut blocks, mut tables) = (0, 0);
        loop {
            let now = (blocks, tables);
            blocks = (clusters + tables + blocks).div_ceil(per_block);
            tables = (blocks * 8).div_ceil(self.cluster_size);
            if (blocks, tables) == now {
                return (blocks + tables) * self.cluster_size;
            }
        }
    }

    /// Bytes that the bitmaps of a disk of `size` bytes take when every bit of them is set. One that cannot be trusted is
    /// not copied.
    pub fn bitmaps_len(&self, size: u64, bitmaps: &[Bitmap]) -> u64 {
        let (mut len, mut directory) = (0, 0);
        for bitmap in bitmaps.iter().filter(|bitmap| !bitmap.in_use) {
            let clusters = size.div_ceil(bitmap.granularity).div_ceil(8).div_ceil(self.cluster_size);
            len += clusters * self.cluster_size + (clusters * 8).next_multiple_of(self.cluster_size);
            directory += (BITMAP_ENTRY_LEN + bitmap.name.len() as u64).next_multiple_of(8);
        }
        len + directory.next_multiple_of(self.cluster_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_images_are_as_long_as_the_reference_says() {
        let shape =
            |cluster_size, refcount_bits, extended_l2| Shape { cluster_size, refcount_bits, extended_l2 };
        for (shape, size, len) in [
            (shape(65536, 16, false), 0, 196_608),
            (shape(65536, 16, false), 1 << 30, 1_074_135_040),
            (shape(65536, 16, true), 1 << 30, 1_074_266_112),
            (shape(65536, 16, false), 64 << 20, 67_436_544),
        ] {
            assert_eq!(shape.file_len(size), len, "{shape:?}, {size}");
        }
    }
}
