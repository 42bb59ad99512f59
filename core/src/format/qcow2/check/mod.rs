//! Check and repair: compares the refcounts of an image with the references that its metadata holds.
//!
//! ```text
//!   header, L1 tables, L2 tables, snapshot table,      one reference each for every cluster that they
//!   refcount table and blocks, bitmaps             ──▶ take or name: `found`
//!                                                                      │ must be equal, cluster by cluster
//!   refcount blocks                                ──▶ `on_disk` ◀─────┘ and decide the COPIED flags
//! ```
//!
//! Owns nothing of the image, and changes nothing unless it is asked to repair. Findings and numbers are those of
//! `qemu-img check`. What a repair writes, and in which order, is in `repair`, and in `rebuild` for refcounts that are
//! lost.
//!
//! Memory is bounded whatever the image says. The counters cover one *window* of clusters at a time: 2^26 clusters
//! with counters of 16 bits, or 2^24 with counters of 64 bits where refcounts have 32 or 64; a larger file takes one
//! pass over the metadata for each window that something refers to, unless there is so little that it is remembered. Time is bounded by the bytes that the file
//! really holds: a table that is named many times, or that overlaps others, is read once and its findings are
//! multiplied.
//!
//! `window` has the counters, `source` the reads, `overlap` what overlaps, `tables` L1 and L2 tables, `blocks` the
//! refcounts, `bitmaps` the dirty bitmaps, `snapshots` the snapshot table.

mod bitmaps;
mod blocks;
mod overlap;
mod rebuild;
mod repair;
mod snapshots;
mod source;
mod spill;
mod tables;
mod window;

use std::any::Any;

use rustc_hash::FxHashSet;

use super::layout::{Autoclear, ClusterBits, HostOffset, Incompatible, Snapshot, extension_kind};
use super::{Geometry, Qcow2, Qcow2Error};
use crate::engine::Io;
use crate::error::{Error, Result};
pub use crate::format::CheckReport;
use crate::graph::NodeId;
use crate::graph::driver::Role;
use source::Source;
use spill::Spill;
use window::{Counter, Window};

/// Findings that are told one by one; more are only counted.
const TOLD_MAX: u64 = 1 << 20;

/// Windows beyond the end of the file that are looked at, for the refcounts of what a damaged entry names there.
const STRAY_WINDOWS_MAX: usize = 64;

/// What a repair changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Refcounts that are higher than the number of references, and COPIED flags once all refcounts are right.
    Leaks,
    /// All that can be repaired without guessing.
    All,
}

/// Checks an image that is open and that nobody writes to.
///
/// `say` gets each finding as a line in the words of `qemu-img check`; `progress` how many bytes of metadata are done,
/// of about how many.
///
/// # Errors
/// When the image cannot be checked at all: its tables cannot be read, or the snapshot table or bitmap directory
/// makes no sense.
pub async fn check(
    io: &Io,
    node: NodeId,
    say: &mut dyn FnMut(String),
    progress: &dyn Fn(u64, u64),
) -> Result<CheckReport> {
    examine(io, node, None, say, progress).await
}

/// Checks an image that is open for writing and that nobody else uses, and repairs what is found.
///
/// All of it is durable on return. An image of which no errors are left loses its dirty and corrupt bits. The report is
/// of the check that led to the repair; another check tells what is there afterwards.
///
/// # Errors
/// As for [`check`]; [`Qcow2Error::RefcountsLost`] when only [`Repair::All`] could help; and when something cannot be
/// written, after which the image is no worse than before.
pub async fn repair(
    io: &Io,
    node: NodeId,
    what: Repair,
    say: &mut dyn FnMut(String),
    progress: &dyn Fn(u64, u64),
) -> Result<CheckReport> {
    examine(io, node, Some(what), say, progress).await
}

async fn examine(
    io: &Io,
    node: NodeId,
    what: Option<Repair>,
    say: &mut dyn FnMut(String),
    progress: &dyn Fn(u64, u64),
) -> Result<CheckReport> {
    let unsupported = |driver| {
        let what = "a qcow2 check";
        Box::new(Error::Unsupported { node: io.title(node), driver, what })
    };
    let driver = io.driver(node).ok_or_else(|| unsupported("file"))?;
    let name = driver.name();
    let any: &dyn Any = driver.as_any();
    let image = any.downcast_ref::<Qcow2>().ok_or_else(|| unsupported(name))?;
    let file = io.edge(node, Role::File).ok_or_else(|| unsupported(name))?;
    let table = match what {
        Some(Repair::All) => snapshots::Table::read(io, file, image, say).await?,
        _ => None,
    };
    let mut report = check_file(io, file, image, (what, table.as_ref()), say, progress).await?;
    if what.is_none() {
        return Ok(report);
    }
    image.reload(io, file).await?;
    if let Some(table) = table.filter(|table| table.changes > 0) {
        image.replace_snapshot_table(&io.for_node(node), &table).await?;
        report.corruptions_fixed += table.changes;
    }
    if (report.corruptions, report.check_errors) == (0, 0) {
        image.mark_sound(io, file).await?;
    }
    Ok(report)
}

/// Checks the image in `file`, which need not be a node yet.
pub(super) async fn check_file(
    io: &Io,
    file: NodeId,
    image: &Qcow2,
    (what, table): (Option<Repair>, Option<&snapshots::Table>),
    say: &mut dyn FnMut(String),
    progress: &dyn Fn(u64, u64),
) -> Result<CheckReport> {
    let plan = Plan::of(io, file, image, table).await?;
    let tell = Tell { report: CheckReport::default(), say, told: 0 };
    match plan.width_bits {
        ..=16 => Check::<u16>::new(plan, what, tell, progress).run().await,
        _ => Check::<u64>::new(plan, what, tell, progress).run().await,
    }
}

/// What is known of the image before its tables are walked.
struct Plan<'a> {
    image: &'a Qcow2,
    /// The snapshot table as it is to be, where it is repaired.
    table: Option<&'a snapshots::Table>,
    source: Source<'a>,
    geometry: Geometry,
    bits: ClusterBits,
    width_bits: u32,
    disk_size: u64,
    /// Clusters of the file.
    clusters: u64,
    /// The active L1 table, as it is in the file.
    l1: Vec<u64>,
    l1_at: HostOffset,
    refcount_table: Vec<u64>,
    refcount_table_at: HostOffset,
    snapshots: Vec<Snapshot>,
    snapshots_at: HostOffset,
    /// Bytes of the snapshot table.
    snapshots_len: u64,
    bitmaps: Option<bitmaps::Directory>,
    crypto_header: Option<(u64, u64)>,
    /// Guest offsets are the data file's.
    raw_data_file: bool,
}

impl<'a> Plan<'a> {
    async fn of(
        io: &'a Io,
        file: NodeId,
        image: &'a Qcow2,
        table: Option<&'a snapshots::Table>,
    ) -> Result<Self> {
        let header = image.header();
        let bits = header.cluster_bits;
        // Files are counted in sectors.
        let source = Source { io, file, len: io.len(file).next_multiple_of(512) };
        let clusters = bits.count(source.len);
        if clusters > i32::MAX as u64 {
            return Err(image.fail(Qcow2Error::CheckTooLarge { clusters }));
        }
        let (snapshots, snapshots_len) = match table {
            Some(table) => (table.entries.clone(), table.old_len),
            None => {
                let entries = image.snapshots_to_check(io, file).await?;
                let len = entries.iter().map(|snapshot| snapshot.entry_len).sum();
                (entries, len)
            }
        };
        let bitmaps = match header.extension(extension_kind::BITMAPS) {
            Some(extension) if header.version >= 3 && header.autoclear & Autoclear::BITMAPS != 0 => {
                let found = bitmaps::Directory::read(&source, extension, bits, header.size).await?;
                Some(found.map_err(|fault| image.fail(fault))?)
            }
            _ => None,
        };
        let (refcount_table, refcount_table_at) = {
            let refcounts = image.refcounts.borrow();
            (refcounts.table.clone(), refcounts.table_at)
        };
        let (l1, l1_at) = {
            let l1 = image.l1.borrow();
            (l1.entries.clone(), l1.at)
        };
        let number = |bytes: &[u8], at: usize| {
            bytes.get(at..at + 8).map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().expect("eight")))
        };
        Ok(Self {
            image,
            table,
            source,
            geometry: image.geometry,
            bits,
            width_bits: header.refcount_width.bits(),
            disk_size: header.size,
            clusters,
            l1,
            l1_at,
            refcount_table,
            refcount_table_at,
            snapshots,
            snapshots_at: header.snapshots_offset,
            snapshots_len,
            bitmaps,
            crypto_header: header
                .extension(extension_kind::CRYPTO_HEADER)
                .map(|extension| (number(extension, 0), number(extension, 8))),
            raw_data_file: header.has(Incompatible::DATA_FILE)
                && header.autoclear & Autoclear::RAW_DATA_FILE != 0,
        })
    }
}

/// Counts findings and tells them.
struct Tell<'a> {
    report: CheckReport,
    say: &'a mut dyn FnMut(String),
    told: u64,
}

impl Tell<'_> {
    fn line(&mut self, line: impl FnOnce() -> String) {
        self.told += 1;
        if self.told <= TOLD_MAX {
            (self.say)(line());
        } else if self.told == TOLD_MAX + 1 {
            (self.say)("More findings are counted, and not shown one by one.".into());
        }
    }

    /// Whether further lines are left out.
    fn is_full(&self) -> bool {
        self.told > TOLD_MAX
    }

    /// A finding that `times` entries share.
    fn corruption(&mut self, times: u64, line: impl FnOnce() -> String) {
        self.report.corruptions = self.report.corruptions.saturating_add(times);
        self.line(line);
    }

    fn check_error(&mut self, times: u64, line: impl FnOnce() -> String) {
        self.report.check_errors = self.report.check_errors.saturating_add(times);
        self.line(line);
    }
}

/// A check that is running.
struct Check<'a, C> {
    plan: Plan<'a>,
    tell: Tell<'a>,
    progress: &'a dyn Fn(u64, u64),
    /// What is repaired, if anything.
    what: Option<Repair>,
    /// L2 entries that are to become zero clusters: their places.
    zeroed: Vec<u64>,
    /// Whether refcounts cannot be repaired where they are.
    lost: bool,
    /// What comparing refcounts with references found.
    differences: repair::Differences,
    /// All metadata but L2 tables and the bitmaps themselves, once something is to be written.
    other_metadata: Option<Vec<overlap::Named>>,
    /// The refcount table and its blocks are not counted: they are about to be replaced.
    without_refcounts: bool,
    /// Bytes of metadata read, and about how many there are.
    done: u64,
    of: u64,
    /// References that were found.
    found: Window<C>,
    /// Refcounts as the image has them.
    on_disk: Window<C>,
    /// Highest refcount that the image can hold.
    refcount_max: u64,
    /// Clusters that are compared: those of the file, and one more where a reference reaches into it.
    compared: u64,
    /// Whether this is the first pass, which tells what concerns no cluster of the window.
    first_pass: bool,
    /// What the first pass meets outside its window, while it walks the metadata.
    spill: Option<Spill>,
    /// The same once it is complete; none when there was too much of it.
    remembered: Option<Spill>,
    /// Windows, by number, that something refers to.
    referred: std::collections::BTreeSet<u64>,
    last_referred: u64,
    strays_dropped: bool,
    /// L2 tables to follow.
    tables: Vec<tables::Table>,
    misaligned_followed: u64,
    /// Wrong COPIED flags, to be told last.
    copied_lines: Vec<String>,
    highest: u64,
    /// Places of refcount blocks that could not be read.
    unreadable: FxHashSet<u64>,
}

impl<'a, C: Counter> Check<'a, C> {
    fn new(plan: Plan<'a>, what: Option<Repair>, tell: Tell<'a>, progress: &'a dyn Fn(u64, u64)) -> Self {
        let cluster_size = plan.bits.size();
        let used = |table: &[u64]| table.iter().filter(|entry| **entry != 0).count() as u64;
        let of = (used(&plan.l1) + used(&plan.refcount_table)) * cluster_size;
        let per_block = cluster_size * 8 / u64::from(plan.width_bits);
        let blocks =
            plan.refcount_table.iter().rposition(|entry| *entry != 0).map_or(0, |last| last as u64 + 1);
        // All that is counted, so that a cluster outside is one that no block counts, or of another window.
        let room = (plan.clusters + 1).max(blocks * per_block).min(C::WINDOW);
        Self {
            of,
            done: 0,
            what,
            zeroed: Vec::new(),
            lost: false,
            differences: repair::Differences::default(),
            other_metadata: None,
            without_refcounts: false,
            found: Window::new(room),
            on_disk: Window::new(room),
            refcount_max: u64::MAX >> (64 - plan.width_bits),
            compared: plan.clusters,
            first_pass: true,
            spill: None,
            remembered: None,
            referred: Default::default(),
            last_referred: 0,
            strays_dropped: false,
            tables: Vec::new(),
            misaligned_followed: 0,
            copied_lines: Vec::new(),
            highest: 0,
            unreadable: FxHashSet::default(),
            plan,
            tell,
            progress,
        }
    }

    async fn run(mut self) -> Result<CheckReport> {
        self.snapshot_entries();
        self.sweep().await?;
        match self.what {
            None => self.finish(),
            Some(what) => Box::pin(self.repair(what)).await,
        }
    }

    /// Counts and compares all clusters.
    async fn sweep(&mut self) -> Result<()> {
        self.tell.report.total_clusters = self.plan.bits.count(self.plan.disk_size / 512 * 512);
        let mut next = Some(0);
        while let Some(number) = next {
            self.pass(number).await?;
            self.first_pass = false;
            next = self.window_after(number);
        }
        Ok(())
    }

    /// The next window that has something to look at.
    fn window_after(&self, number: u64) -> Option<u64> {
        let windows = self.compared.div_ceil(C::WINDOW);
        match number + 1 {
            inside if inside < windows => Some(inside),
            beyond => self.referred.range(beyond..).next().copied(),
        }
    }

    /// The report, once all is told.
    fn finish(mut self) -> Result<CheckReport> {
        for line in std::mem::take(&mut self.copied_lines) {
            self.tell.line(|| line);
        }
        let end = (self.highest + 1) << self.plan.bits.bits();
        self.tell.report.image_end_offset = end;
        (self.progress)(self.of, self.of);
        Ok(self.tell.report)
    }

    /// Counts and compares the clusters of one window.
    async fn pass(&mut self, number: u64) -> Result<()> {
        self.found.move_to(number);
        self.on_disk.move_to(number);
        self.misaligned_followed = 0;
        self.load_refcounts().await;
        if self.first_pass {
            self.spill = Some(Spill::default());
            self.count_metadata().await?;
            self.remembered = self.spill.take().and_then(Spill::sorted);
        } else if self.referred.contains(&number) {
            match self.remembered.take() {
                Some(spill) => {
                    self.count_remembered(&spill);
                    self.remembered = Some(spill);
                }
                None => self.count_metadata().await?,
            }
        }
        self.check_refcount_blocks();
        let before = self.tell.report;
        self.compare(None);
        self.differences.add(&before, &self.tell.report);
        Ok(())
    }

    /// Counts the clusters of a window once more, without telling what was told.
    async fn recount(&mut self, number: u64) -> Result<()> {
        self.found.move_to(number);
        self.misaligned_followed = 0;
        self.count_metadata().await?;
        if !self.without_refcounts {
            self.check_refcount_blocks();
        }
        Ok(())
    }

    /// Counts all references but those to the refcount blocks.
    async fn count_metadata(&mut self) -> Result<()> {
        self.reference(0, self.plan.bits.size(), 1);
        self.count_active().await?;
        self.count_snapshots().await?;
        if let Some((at, len)) = self.plan.crypto_header {
            self.reference(at, len, 1);
        }
        self.count_bitmaps().await?;
        if !self.without_refcounts {
            let table_len = self.plan.refcount_table.len() as u64 * 8;
            self.reference(self.plan.refcount_table_at.0, table_len, 1);
        }
        Ok(())
    }

    /// Findings in the snapshot table itself.
    fn snapshot_entries(&mut self) {
        if self.plan.geometry.version < 3 {
            return;
        }
        for (index, snapshot) in self.plan.snapshots.iter().enumerate() {
            // One that the repair has completed was told when it was read.
            if snapshot.disk_size.is_none() {
                self.tell.corruption(1, || format!("ERROR snapshot table entry {index} is incomplete"));
            }
        }
    }

    /// Counts `times` references to all clusters that hold some of `len` bytes at `at`.
    fn reference(&mut self, at: u64, len: u64, times: u64) {
        if len == 0 {
            return;
        }
        let end = at.saturating_add(len);
        if end > self.plan.source.len && end - self.plan.source.len >= self.plan.bits.size() {
            if self.first_pass {
                self.tell.corruption(times, || {
                    format!(
                        "ERROR: counting reference for region exceeding the end of the file by one cluster or more: \
                         offset {at:#x} size {len:#x}"
                    )
                });
            }
            return;
        }
        let bits = self.plan.bits.bits();
        let clusters = at >> bits..((end - 1) >> bits) + 1;
        self.compared = self.compared.max(clusters.end);
        let here = self.found.part_of(&clusters);
        if self.first_pass && here.end - here.start < clusters.end - clusters.start {
            for number in clusters.start / C::WINDOW..=(clusters.end - 1) / C::WINDOW {
                self.refers_to(number);
            }
            if let Some(spill) = &mut self.spill {
                spill.reference(clusters.start..here.start.max(clusters.start), times);
                spill.reference(here.end.max(clusters.start)..clusters.end, times);
            }
        }
        for cluster in here {
            let over = self.found.add(cluster, times, self.refcount_max);
            if over > 0 {
                self.overflow(cluster, over);
            }
        }
    }

    /// Counts what the first pass met of this window.
    fn count_remembered(&mut self, spill: &Spill) {
        let clusters = self.found.clusters();
        for (cluster, times) in spill.references_of(&clusters) {
            let (cluster, times) = (u64::from(*cluster), u64::from(*times));
            let over = self.found.add(cluster, times, self.refcount_max);
            if over > 0 {
                self.overflow(cluster, over);
            }
        }
        for flag in spill.flags_of(&clusters) {
            self.check_copied(*flag);
        }
    }

    #[cold]
    fn overflow(&mut self, cluster: u64, over: u64) {
        self.tell.corruption(over, || {
            let at = cluster << self.plan.bits.bits();
            format!(
                "ERROR: overflow cluster offset={at:#x}\nUse qemu-img amend to increase the refcount entry width or \
                 qemu-img convert to create a clean copy if the image cannot be opened for writing"
            )
        });
    }

    /// Takes note that a window has to be walked.
    fn refers_to(&mut self, number: u64) {
        if number == self.last_referred {
            return;
        }
        self.last_referred = number;
        let inside = number <= self.plan.clusters / C::WINDOW;
        if inside || self.referred.len() < STRAY_WINDOWS_MAX {
            self.referred.insert(number);
        } else if !std::mem::replace(&mut self.strays_dropped, true) {
            self.tell.check_error(1, || {
                "ERROR: too many entries name clusters far beyond the end of the file; some are not checked".into()
            });
        }
    }

    fn advance(&mut self, bytes: u64) {
        self.done = (self.done + bytes).min(self.of);
        (self.progress)(self.done, self.of);
    }
}
