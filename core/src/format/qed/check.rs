//! Check: each cluster of the file has at most one owner, and tables and clusters are where they can be. A repair takes away
//! entries that name no place in the file.
//!
//! Numbers are those of `qemu-img check`, which says nothing else. Memory: a bit for each cluster of the file.
//! Source: \[qed\] "Consistency checking".

use super::{CheckReport, Qed, ZERO};
use crate::buf::Buf;
use crate::engine::Io;
use crate::error::{Error, Result};
use crate::graph::NodeId;
use crate::graph::driver::Role;
use crate::intent::Fua;

/// Bytes of a table that are read at once.
const PIECE: u64 = 1 << 16;

/// What is done about what is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fix {
    Nothing,
    Errors,
}

/// Checks an image.
///
/// # Errors
/// When its tables cannot be read.
pub async fn check(io: &Io, node: NodeId) -> Result<CheckReport> {
    examined(io, node, Fix::Nothing).await
}

/// Checks an image, and takes away entries that name no place in the file, durably.
///
/// # Errors
/// When its tables cannot be read or written.
pub async fn repair(io: &Io, node: NodeId) -> Result<CheckReport> {
    examined(io, node, Fix::Errors).await
}

async fn examined(io: &Io, node: NodeId, fix: Fix) -> Result<CheckReport> {
    let driver = io.driver(node);
    let image = driver.as_ref().and_then(|driver| driver.as_any().downcast_ref::<Qed>());
    let (Some(image), Some(file)) = (image, io.edge(node, Role::File)) else {
        let (node, driver) = (io.title(node), driver.as_ref().map_or("file", |driver| driver.name()));
        return Err(Box::new(Error::Unsupported { node, driver, what: "a QED check" }));
    };
    let report = examine(image, io, file, fix).await?;
    if fix == Fix::Errors && report.corruptions == 0 {
        image.clear_mark(&io.for_node(node)).await?;
    }
    Ok(report)
}

/// Which clusters of the file have an owner.
struct Used {
    words: Vec<u64>,
    clusters: u64,
    cluster_len: u64,
}

impl Used {
    fn new(file_len: u64, cluster_len: u64) -> Self {
        let clusters = file_len / cluster_len;
        Self { words: vec![0; clusters.div_ceil(64) as usize], clusters, cluster_len }
    }

    /// Takes clusters; returns how many had an owner.
    fn take(&mut self, at: u64, count: u64) -> u64 {
        let first = at / self.cluster_len;
        let mut twice = 0;
        for cluster in first..(first + count).min(self.clusters) {
            let (word, bit) = (&mut self.words[cluster as usize / 64], 1 << (cluster % 64));
            twice += u64::from(*word & bit != 0);
            *word |= bit;
        }
        twice
    }

    fn unused(&self) -> u64 {
        self.clusters - self.words.iter().map(|word| u64::from(word.count_ones())).sum::<u64>()
    }
}

pub(super) async fn examine(image: &Qed, io: &Io, file: NodeId, fix: Fix) -> Result<CheckReport> {
    let header = image.header.get();
    let (cluster_len, table_clusters) = (header.cluster_len(), u64::from(header.table_size));
    let mut used = Used::new(io.len(file), cluster_len);
    let mut report =
        CheckReport { total_clusters: header.size.div_ceil(cluster_len), ..CheckReport::default() };
    used.take(0, header.header_size.into());
    report.corruptions += used.take(header.l1_at, table_clusters);
    let mut fixed = false;
    let mut tables = Entries::of(header.l1_at, header.table_len());
    while let Some(piece) = tables.next(image, io, file).await? {
        for (entry, at) in piece {
            if at == 0 {
                continue;
            }
            if !image.tables.is_table(at) {
                fixed |= wrong(io, file, fix, entry, &mut report).await?;
                image.tables.forget_table((entry - header.l1_at) / 8);
                continue;
            }
            let twice = used.take(at, table_clusters);
            report.corruptions += twice;
            if twice > 0 {
                continue;
            }
            let mut last = 0;
            let mut clusters = Entries::of(at, header.table_len());
            while let Some(piece) = clusters.next(image, io, file).await? {
                for (entry, raw) in piece.into_iter().filter(|(_, raw)| *raw > ZERO) {
                    report.allocated_clusters += 1;
                    let follows = last == 0 || raw == u64::wrapping_add(last, cluster_len);
                    report.fragmented_clusters += u64::from(!follows);
                    last = raw;
                    match image.is_cluster(raw) {
                        true => report.corruptions += used.take(raw, 1),
                        false => fixed |= wrong(io, file, fix, entry, &mut report).await?,
                    }
                }
            }
        }
    }
    if fixed {
        // Nothing has changed a table yet: what is in memory is what was in the file.
        image.tables.forget_slices();
        io.flush("qed.repair", file).await?;
    }
    report.leaks = used.unused();
    Ok(report)
}

/// Counts an entry that names no place in the file, or makes it name nothing; whether it did.
async fn wrong(io: &Io, file: NodeId, fix: Fix, entry: u64, report: &mut CheckReport) -> Result<bool> {
    if fix == Fix::Nothing {
        report.corruptions += 1;
        return Ok(false);
    }
    io.write("qed.repair/entry", file, entry, Buf::zeroed(8), Fua::No).await.1?;
    report.corruptions_fixed += 1;
    Ok(true)
}

/// A table that is read piece by piece.
struct Entries {
    at: u64,
    end: u64,
}

impl Entries {
    fn of(at: u64, len: u64) -> Self {
        Self { at, end: at + len }
    }

    /// The next entries, each with its place in the file.
    async fn next(&mut self, image: &Qed, io: &Io, file: NodeId) -> Result<Option<Vec<(u64, u64)>>> {
        if self.at == self.end {
            return Ok(None);
        }
        let len = (self.end - self.at).min(PIECE);
        let bytes = io.read_bytes("qed.check/table", file, self.at, len as usize).await?;
        let places = (self.at..).step_by(8);
        self.at += len;
        Ok(Some(places.zip(image.tables.shape.decode(&bytes)).collect()))
    }
}
