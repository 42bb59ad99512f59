//! Check and repair, with the findings and the words of `qemu-img check`, in its order.
//!
//! Order on disk of a repair: copies of clusters that two entries name, a barrier, the BAT, a barrier, the header, a barrier. A
//! crash leaves what there was, or less of it. Memory: two bits for each cluster of the file.

use super::bitmaps::find_extension;
use super::extension::Extension;
use super::layout::{ClusterIndex, Entry, Fit, Geometry, HEADER_LEN, Header, InUse};
use super::space::Clusters;
use super::{CheckReport, Parallels, ParallelsError, Repair, of_node};
use crate::buf::Buf;
use crate::engine::Io;
use crate::error::{Error, Result};
use crate::graph::NodeId;
use crate::intent::{Fua, Preallocation};

/// Bytes of the BAT that are read at once, and of a cluster that are copied at once.
const PIECE: u64 = 1 << 20;

/// What is put right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fix {
    Nothing,
    Leaks,
    All,
}

impl Fix {
    fn verb(self, of: Self) -> &'static str {
        if self.covers(of) { "Repairing" } else { "ERROR" }
    }

    fn covers(self, what: Self) -> bool {
        self == Self::All || self == what
    }
}

/// The image that is looked at: its file.
pub(super) struct Target<'a> {
    pub io: &'a Io,
    pub file: NodeId,
    pub name: &'a str,
}

/// What was found.
pub(super) struct Looked {
    pub report: CheckReport,
    /// Clusters that the BAT and the extension name.
    pub taken: Clusters,
    pub extension: Option<Extension>,
}

/// Checks an image. `say` gets each finding as a line.
///
/// # Errors
/// When the BAT cannot be read.
pub async fn check(io: &Io, node: NodeId, say: &mut dyn FnMut(String)) -> Result<CheckReport> {
    examined(io, node, Fix::Nothing, say).await
}

/// Checks an image that is open for writing, for nothing else, and repairs what it can.
///
/// # Errors
/// As for [`check`], and when the file cannot be written.
pub async fn repair(io: &Io, node: NodeId, what: Repair, say: &mut dyn FnMut(String)) -> Result<CheckReport> {
    let fix = match what {
        Repair::Leaks => Fix::Leaks,
        Repair::All => Fix::All,
    };
    examined(io, node, fix, say).await
}

async fn examined(io: &Io, node: NodeId, fix: Fix, say: &mut dyn FnMut(String)) -> Result<CheckReport> {
    let (driver, file) = of_node(io, node)?;
    let image = driver.as_any().downcast_ref::<Parallels>().expect("what the node was asked for");
    let mut header = image.header();
    let looked = Target { io, file, name: &image.name }.examine(&mut header, fix, say).await?;
    *image.header.borrow_mut() = header;
    Ok(looked.report)
}

impl Target<'_> {
    pub fn fail(&self, fault: ParallelsError) -> Box<Error> {
        Error::format(self.name, fault)
    }

    /// Looks at all of an image, and repairs what `fix` covers; `header` is what the file says afterwards.
    pub async fn examine(
        &self,
        header: &mut Header,
        fix: Fix,
        say: &mut dyn FnMut(String),
    ) -> Result<Looked> {
        let held = self.io.len(self.file);
        let mut pass = Pass { target: self, fix, held, say, report: CheckReport::default() };
        let before = header.clone();
        pass.header(header);
        let geometry = header.geometry(self.io.len(self.file));
        let mut taken = pass.places(&geometry).await?;
        let extension = find_extension(self, header, &mut taken).await?;
        pass.end_of_file(&geometry, &taken).await?;
        pass.entries(&geometry, &mut taken).await?;
        if fix == Fix::All && extension.is_none() {
            header.ext_off = 0;
        }
        pass.report.total_clusters = geometry.entries.into();
        pass.report.image_end_offset = geometry.place_of(taken.end());
        let report = pass.report;
        if report.corruptions_fixed + report.leaks_fixed > 0 {
            self.io.flush("parallels.repair/before_header", self.file).await?;
            if *header != before {
                let bytes = Buf::from(&header.encode()[..]);
                self.io.write("parallels.repair/header", self.file, 0, bytes, Fua::No).await.1?;
            }
            self.io.flush("parallels.repair/after", self.file).await?;
        } else {
            *header = before;
        }
        Ok(Looked { report, taken, extension })
    }
}

/// One look at an image.
struct Pass<'a> {
    target: &'a Target<'a>,
    fix: Fix,
    /// Bytes of the file before anything was repaired.
    held: u64,
    say: &'a mut dyn FnMut(String),
    report: CheckReport,
}

impl Pass<'_> {
    fn error(&mut self, what: &str) {
        (self.say)(format!("{} {what}", self.fix.verb(Fix::All)));
        match self.fix {
            Fix::All => self.report.corruptions_fixed += 1,
            Fix::Leaks | Fix::Nothing => self.report.corruptions += 1,
        }
    }

    fn header(&mut self, header: &mut Header) {
        let file_len = self.target.io.len(self.target.file);
        if header.in_use == InUse::Open {
            self.error("image was not closed correctly");
            if self.fix == Fix::All {
                header.in_use = InUse::Old(0);
            }
        }
        if !header.data_off_is_sound(file_len) {
            self.error("data_off field has incorrect value");
            if self.fix == Fix::All {
                header.data_off = header.usual_data_off();
            }
        }
    }

    async fn read_piece(&self, geometry: &Geometry, first: u64) -> Result<Buf> {
        let len = (u64::from(geometry.entries) - first).min(PIECE / 4) * 4;
        let at = HEADER_LEN as u64 + first * 4;
        self.target.io.read_bytes("parallels.check/bat", self.target.file, at, len as usize).await
    }

    async fn write_piece(&self, first: u64, bytes: Buf) -> Result<()> {
        let at = HEADER_LEN as u64 + first * 4;
        self.target.io.write("parallels.repair/bat", self.target.file, at, bytes, Fua::No).await.1
    }

    /// Collects the clusters that entries name, and takes out entries that name none. A last cluster of which the file holds a
    /// part gets the rest.
    async fn places(&mut self, geometry: &Geometry) -> Result<Clusters> {
        let file_len = self.target.io.len(self.target.file);
        let mut taken = Clusters::of_file(geometry, file_len).map_err(|fault| self.target.fail(fault))?;
        let (mut first, mut cut) = (0, None);
        while first < u64::from(geometry.entries) {
            let mut bytes = self.read_piece(geometry, first).await?;
            let mut changed = false;
            for (bytes, cluster) in bytes.chunks_exact_mut(4).zip(first..) {
                let Entry::At(host) = geometry.entry(number(bytes)) else { continue };
                match geometry.fit(host, file_len) {
                    Fit::Whole(index) => {
                        taken.add(index);
                    }
                    // Until it has a copy of its own, nobody cuts off or overwrites the two that it lies in.
                    Fit::Misaligned => {
                        let first = ((host - geometry.data_at) / geometry.cluster_len) as ClusterIndex;
                        taken.add(first);
                        taken.add(first.saturating_add(1));
                    }
                    Fit::Cut(index) => {
                        self.error(&format!("cluster {cluster} is outside image"));
                        taken.add(index);
                        cut = Some(index);
                    }
                    Fit::Outside => {
                        self.error(&format!("cluster {cluster} is outside image"));
                        changed = self.fix == Fix::All;
                        if changed {
                            bytes.fill(0);
                        }
                    }
                }
            }
            let count = bytes.len() as u64 / 4;
            if changed {
                self.write_piece(first, bytes).await?;
            }
            first += count;
        }
        if let Some(index) = cut.filter(|_| self.fix == Fix::All) {
            let len = geometry.place_of(index) + geometry.cluster_len;
            self.target.io.set_len(self.target.file, len, Preallocation::Off).await?;
        }
        Ok(taken)
    }

    /// Finds clusters behind all that are named; one before them is not lost, but used when the next one is needed.
    async fn end_of_file(&mut self, geometry: &Geometry, taken: &Clusters) -> Result<()> {
        let (io, file) = (self.target.io, self.target.file);
        let end = geometry.place_of(taken.end());
        let lost = io.len(file).saturating_sub(end);
        if lost == 0 {
            return Ok(());
        }
        (self.say)(format!("{} space leaked at the end of the image {lost}", self.fix.verb(Fix::Leaks)));
        let clusters = lost.div_ceil(geometry.cluster_len);
        if self.fix.covers(Fix::Leaks) {
            io.set_len(file, end, Preallocation::Off).await?;
            self.report.leaks_fixed += clusters;
        } else {
            self.report.leaks += clusters;
        }
        Ok(())
    }

    /// Finds entries that share a cluster with another, or name a place that is none, and gives each a copy of its own.
    async fn entries(&mut self, geometry: &Geometry, taken: &mut Clusters) -> Result<()> {
        let file_len = self.target.io.len(self.target.file);
        let mut seen = Clusters::default();
        let (mut first, mut before) = (0, None);
        while first < u64::from(geometry.entries) {
            let mut bytes = self.read_piece(geometry, first).await?;
            let mut changed = false;
            for (bytes, cluster) in bytes.chunks_exact_mut(4).zip(first..) {
                let Entry::At(mut host) = geometry.entry(number(bytes)) else {
                    before = None;
                    continue;
                };
                let problem = match geometry.fit(host, file_len) {
                    Fit::Whole(index) | Fit::Cut(index) if seen.add(index) => None,
                    Fit::Whole(_) | Fit::Cut(_) => Some(format!("duplicate offset in BAT entry {cluster}")),
                    Fit::Misaligned => Some(format!("BAT entry {cluster} is not at a whole cluster")),
                    // Told and taken out before.
                    Fit::Outside => continue,
                };
                if let Some(problem) = problem {
                    self.error(&problem);
                    if self.fix == Fix::All {
                        let copy = taken.end();
                        let Some(raw) = geometry.raw_entry(copy) else {
                            return Err(self.target.fail(ParallelsError::Full { end: file_len }));
                        };
                        self.copy(geometry, host, geometry.place_of(copy)).await?;
                        taken.add(copy);
                        bytes.copy_from_slice(&raw.to_le_bytes());
                        (changed, host) = (true, geometry.place_of(copy));
                    }
                }
                self.report.allocated_clusters += 1;
                let follows = before.is_none_or(|before: u64| before + geometry.cluster_len == host);
                self.report.fragmented_clusters += u64::from(!follows);
                before = Some(host);
            }
            let count = bytes.len() as u64 / 4;
            if changed {
                // A copy is durable before the BAT names it.
                self.target.io.flush("parallels.repair/before_bat", self.target.file).await?;
                self.write_piece(first, bytes).await?;
            }
            first += count;
        }
        Ok(())
    }

    /// Copies a cluster behind all others. A cluster may be larger than the file by far: what the file did not hold reads as
    /// zeros in both places, where growing brings zeros, and is not written.
    async fn copy(&self, geometry: &Geometry, from: u64, to: u64) -> Result<()> {
        let (io, file) = (self.target.io, self.target.file);
        let grows_as_zeroes = io.leaf_info(file).is_some_and(|leaf| leaf.grows_as_zeroes);
        let held = if grows_as_zeroes { self.held.saturating_sub(from) } else { u64::MAX };
        let (mut done, end) = (0, geometry.cluster_len.min(held));
        while done < end {
            let len = PIECE.min(end - done);
            let bytes = io.read_bytes("parallels.repair/read", file, from + done, len as usize).await?;
            io.write("parallels.repair/copy", file, to + done, bytes, Fua::No).await.1?;
            done += len;
        }
        let whole = to + geometry.cluster_len;
        if io.len(file) < whole && grows_as_zeroes {
            io.set_len(file, whole, Preallocation::Off).await?;
        }
        Ok(())
    }
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().expect("four bytes"))
}
