//! The refcount table and its blocks: what they say, what they refer to, and whether they agree with the references.

use super::source::{Holes, Piece, Source};
use super::window::Counter;
use super::{Check, Repair};
use crate::format::qcow2::layout::{HOST_OFFSET_MAX, RefcountWidth};

/// Bits of a refcount table entry that must be zero.
const RESERVED: u64 = 0x1ff;

/// A refcount block, as the table names it.
struct Block {
    at: u64,
    index: u64,
}

impl<C: Counter> Check<'_, C> {
    pub(super) fn refcount_width(&self) -> RefcountWidth {
        RefcountWidth::new(self.plan.width_bits.trailing_zeros()).expect("the header's")
    }

    /// Clusters that one block counts.
    pub(super) fn per_block(&self) -> u64 {
        self.plan.bits.size() * 8 / u64::from(self.plan.width_bits)
    }

    /// The block that counts a cluster, as the table names it; 0 where there is none.
    pub(super) fn block_entry(&self, cluster: u64) -> u64 {
        let index = usize::try_from(cluster >> self.per_block().trailing_zeros()).unwrap_or(usize::MAX);
        self.plan.refcount_table.get(index).map_or(0, |entry| entry & !RESERVED)
    }

    /// Whether the refcount of a cluster cannot be known.
    #[cold]
    pub(super) fn block_is_unreadable(&self, cluster: u64) -> bool {
        self.is_unreadable(self.block_entry(cluster))
    }

    fn is_unreadable(&self, block: u64) -> bool {
        self.plan.bits.offset_in(block) != 0 || block >= 1 << 63 || self.unreadable.contains(&block)
    }

    /// Reads the refcounts of the window.
    pub(super) async fn load_refcounts(&mut self) {
        let (per_block, size) = (self.per_block(), self.plan.bits.size());
        let clusters = self.on_disk.clusters();
        let table_len = self.plan.refcount_table.len() as u64;
        let indexes = clusters.start / per_block..clusters.end.div_ceil(per_block).min(table_len);
        let mut holes = Holes::of(self.plan.source);
        let mut blocks = Vec::new();
        for index in indexes {
            let at = self.plan.refcount_table[index as usize] & !RESERVED;
            let there = at != 0 && at < self.plan.source.len.min(HOST_OFFSET_MAX);
            if there && self.plan.bits.offset_in(at) == 0 {
                blocks.push(Block { at, index });
            }
        }
        blocks.sort_unstable_by_key(|block| block.at);
        if blocks.len() as u64 * size > 64 << 20 {
            let mut kept = Vec::new();
            for block in blocks {
                if holes.end(block.at).await < block.at + size {
                    kept.push(block);
                }
            }
            blocks = kept;
        }
        let mut decoded = (0, Vec::new());
        let mut rest = &blocks[..];
        while !rest.is_empty() {
            let (reads, count) = Source::group(rest.iter().map(|block| block.at), size);
            let (now, later) = rest.split_at(count);
            rest = later;
            let mut now = now.iter().peekable();
            for (read, piece) in reads.iter().zip(self.plan.source.read_all(&reads).await) {
                let end = read.0 + read.1;
                while let Some(block) = now.next_if(|block| block.at + size <= end) {
                    match &piece {
                        Ok(Piece { at, bytes }) => {
                            let start = (block.at - at) as usize;
                            self.take_block(block, &bytes[start..start + size as usize], &mut decoded);
                        }
                        Err(_) => {
                            self.unreadable.insert(block.at);
                        }
                    }
                }
            }
            self.advance(count as u64 * size);
        }
    }

    /// `decoded` holds the last block that was decoded: a hostile table names one block many times.
    fn take_block(&mut self, block: &Block, bytes: &[u8], decoded: &mut (u64, Vec<C>)) {
        let width = self.refcount_width();
        let per_block = self.per_block();
        if decoded.0 != block.at {
            decoded.0 = block.at;
            decoded.1.clear();
            let all = (0..per_block as usize).map(|index| C::from_count(width.get(bytes, index)));
            decoded.1.extend(all);
        }
        let first = block.index * per_block;
        let covered = self.on_disk.part_of(&(first..first + per_block));
        let part = (covered.start - first) as usize..(covered.end - first) as usize;
        if let Some(counters) = decoded.1.get(part) {
            self.on_disk.set(covered.start, counters);
        }
    }

    /// Counts the references to refcount blocks, each of which must be the only one to its block. Blocks of which that
    /// is not true are lost.
    ///
    /// A block beyond the end of the image counts nothing. The reference grows the file to make it one that does, and
    /// then finds that it does not count itself; here such a block is left out when refcounts are rebuilt.
    pub(super) fn check_refcount_blocks(&mut self) {
        let (bits, first, covered) = (self.plan.bits, self.first_pass, self.found.clusters());
        for index in 0..self.plan.refcount_table.len() {
            let raw = self.plan.refcount_table[index];
            let at = raw & !RESERVED;
            let cluster = at >> bits.bits();
            if !first && !covered.contains(&cluster) {
                continue;
            }
            let outside = raw & RESERVED == 0 && bits.offset_in(at) == 0 && cluster >= self.compared;
            let problem = match () {
                () if raw & RESERVED != 0 => {
                    Some(format!("ERROR refcount table entry {index} has reserved bits set"))
                }
                () if bits.offset_in(at) != 0 => Some(format!(
                    "ERROR refcount block {index} is not cluster aligned; refcount table entry corrupted"
                )),
                () if outside && self.what == Some(Repair::All) => {
                    Some(format!("Repairing refcount block {index} is outside image"))
                }
                () if outside => Some(format!("ERROR refcount block {index} is outside image")),
                () => None,
            };
            // One beyond the end is only worth a new structure where everything is repaired.
            self.lost |= problem.is_some() && (!outside || self.what == Some(Repair::All));
            match problem {
                Some(line) if first && outside && self.what == Some(Repair::All) => {
                    self.tell.report.corruptions_fixed += 1;
                    self.tell.line(|| line);
                }
                Some(line) if first => self.tell.corruption(1, || line),
                Some(_) => {}
                None if at == 0 => {}
                None => {
                    self.reference(at, bits.size(), 1);
                    let count = self.found.try_get(cluster).filter(|count| *count != 1);
                    if let Some(count) = count {
                        self.lost = true;
                        self.tell.corruption(1, || format!("ERROR refcount block {index} refcount={count}"));
                    }
                }
            }
        }
    }

    /// Compares what was found with the refcounts, cluster by cluster, and changes the refcounts in memory as far as
    /// they are to be repaired. Returns the blocks that changed.
    pub(super) fn compare(&mut self, repair: Option<Repair>) -> Vec<u64> {
        let mut changed = Vec::new();
        let clusters = self.found.part_of(&(0..self.compared));
        let block_bits = self.per_block().trailing_zeros();
        let mut cluster = clusters.start;
        while cluster < clusters.end {
            let (idle, chunk_end) = self.found.idle_chunk(cluster);
            let block_end = ((cluster >> block_bits) + 1) << block_bits;
            let end = chunk_end.min(block_end).min(clusters.end);
            if self.is_unreadable(self.block_entry(cluster)) {
                self.unknown(cluster..end);
            } else if idle && self.on_disk.idle_chunk(cluster).0 {
                // Neither counted nor referred to.
            } else if idle && self.tell.is_full() && repair.is_none() {
                self.leaked(cluster..end);
            } else if self.compare_run(cluster..end, repair)
                && changed.last() != Some(&(cluster >> block_bits))
            {
                changed.push(cluster >> block_bits);
            }
            cluster = end;
        }
        changed
    }

    /// Whether any refcount changed.
    fn compare_run(&mut self, clusters: std::ops::Range<u64>, repair: Option<Repair>) -> bool {
        let mut changed = false;
        for cluster in clusters {
            let (refcount, reference) = (self.on_disk.get(cluster), self.found.get(cluster));
            if refcount | reference != 0 {
                self.highest = cluster;
            }
            if refcount == reference {
                continue;
            }
            let line = || format!("cluster {cluster} refcount={refcount} reference={reference}");
            let repaired = repair == Some(Repair::All) || (repair.is_some() && refcount > reference);
            if repaired {
                let report = &mut self.tell.report;
                match refcount > reference {
                    true => report.leaks_fixed += 1,
                    false => report.corruptions_fixed += 1,
                }
                self.tell.line(|| format!("Repairing {}", line()));
                self.on_disk.put(cluster, reference);
                changed = true;
            } else if refcount < reference {
                self.lost |= refcount == 0;
                self.tell.corruption(1, || format!("ERROR {}", line()));
            } else {
                self.tell.report.leaks += 1;
                self.tell.line(|| format!("Leaked {}", line()));
            }
        }
        changed
    }

    /// Clusters without references, when no more lines are told.
    fn leaked(&mut self, clusters: std::ops::Range<u64>) {
        let (leaks, last) = self.on_disk.used(&clusters);
        self.tell.report.leaks += leaks;
        self.highest = last.unwrap_or(self.highest);
    }

    /// Clusters whose block cannot be read.
    fn unknown(&mut self, clusters: std::ops::Range<u64>) {
        for cluster in clusters {
            self.tell
                .check_error(1, || format!("Can't get refcount for cluster {cluster}: Input/output error"));
        }
    }
}
