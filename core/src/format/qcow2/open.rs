//! Open: from the first cluster of a file to an image in memory.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use rustc_hash::FxHashSet;

use super::check::{Repair, check_file};
use super::crypt::{EncryptOptions, Key};
use super::layout::{
    Autoclear, Crypt, EntryRules, Header, HostOffset, Incompatible, L1Entry, RefcountTableEntry,
    SNAPSHOT_TABLE_LEN_MAX, SNAPSHOTS_MAX, Snapshot, check_table, extension_kind,
};
use super::lookup::be_u64;
use super::refcount::Refcounts;
use super::snapshot_table::{Beyond, read_snapshots};
use super::{Discards, Geometry, L1Table, Lock, Qcow2, Qcow2Error};
use crate::buf::Buf;
use crate::engine::{self, Io};
use crate::error::{Error, Result};
use crate::filter::DebugEvent;
use crate::format::cache::SliceCache;
use crate::graph::NodeId;
use crate::graph::driver::Role;
use crate::intent::Fua;

/// Bytes of L2 slices kept in memory unless the options say otherwise: enough for 256 GiB of disk at 64 KiB a cluster.
const L2_CACHE_LEN: u64 = 32 << 20;

/// Bytes of refcount slices kept in memory.
const REFCOUNT_CACHE_LEN: u64 = 4 << 20;

/// Metadata is read and written in pieces of this size, or whole clusters where those are smaller.
const SLICE_LEN: u64 = 4096;

/// Bytes of the file that opening reads at first; more, where the first cluster is larger and the header says so.
const HEAD_LEN: u64 = 64 << 10;

/// Which internal snapshot; it has all that is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotChoice {
    /// One whose id is this, or else one whose name is.
    IdOrName(String),
    /// Both, as far as they are given.
    Both {
        /// Its id.
        id: Option<String>,
        /// Its name.
        name: Option<String>,
    },
}

impl SnapshotChoice {
    pub(super) fn find<'a>(&self, snapshots: &'a [Snapshot]) -> Option<&'a Snapshot> {
        match self {
            Self::IdOrName(text) => snapshots
                .iter()
                .find(|snapshot| snapshot.id == *text)
                .or_else(|| snapshots.iter().find(|snapshot| snapshot.name == *text)),
            Self::Both { id, name } => snapshots.iter().find(|snapshot| {
                id.as_ref().is_none_or(|id| snapshot.id == *id)
                    && name.as_ref().is_none_or(|name| snapshot.name == *name)
            }),
        }
    }
}

/// What the caller asks of an image beyond what its header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qcow2Options {
    /// Which freed clusters are punched out of the file.
    pub discards: Discards,
    /// Bytes of L2 table slices kept in memory.
    pub l2_cache_len: u64,
    /// Bytes of a slice of an L2 table: a power of two from 512 to the cluster size.
    pub l2_cache_entry_len: Option<u64>,
    /// Bytes of refcount slices kept in memory.
    pub refcount_cache_len: u64,
    /// After how long slices leave memory that nobody used (`cache-clean-interval`); without one, only for others.
    pub cache_clean_interval: Option<Duration>,
    /// Allow refcounts to lag behind. They never do; the specification leaves that to the writer.
    pub lazy_refcounts: bool,
    /// Show an internal snapshot, by its id or its name, rather than the disk as it is now; read-only.
    pub snapshot: Option<SnapshotChoice>,
    /// What is said of the image's encryption.
    pub encrypt: EncryptOptions,
    /// Open for looking at metadata alone: an encrypted image opens, a data file stays
    /// closed, and the data of both cannot be read.
    pub metadata_only: bool,
    /// Open for a check or a repair: images open that are marked corrupt or dirty, or whose refcounts are lost, and
    /// bitmaps stay as they are. The guest's data is not to be written.
    pub for_check: bool,
    /// Metadata that no data may be written over (`overlap-check`).
    pub protect: Protect,
    /// A discarded cluster stays where it is, and reads as zeros (`discard-no-unref`).
    pub discard_no_unref: bool,
    /// Refuse compressed writes where a cluster is allocated, as QEMU does. Otherwise they replace it.
    pub pack_fresh_only: bool,
}

/// Metadata that is protected from writes of data besides the header, which always is: no entry can name its cluster, and
/// QEMU 10.0.2 refuses to allocate it for a table at every level, `none` too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protect {
    /// `active-l1`.
    pub active_l1: bool,
    /// `active-l2`.
    pub active_l2: bool,
    /// `refcount-table`.
    pub refcount_table: bool,
    /// `refcount-block`.
    pub refcount_block: bool,
    /// `snapshot-table`.
    pub snapshot_table: bool,
    /// `inactive-l1`: L1 tables of snapshots.
    pub inactive_l1: bool,
    /// `inactive-l2`: L2 tables of snapshots, which opening has to look for.
    pub inactive_l2: bool,
    /// `bitmap-directory`.
    pub bitmap_directory: bool,
}

impl Protect {
    /// The level `none`.
    pub const NONE: Self = Self::level(false, false, false);
    /// The level `constant`: what stays where it is while an image is open.
    pub const CONSTANT: Self = Self::level(true, false, false);
    /// The level `cached`: what memory holds besides.
    pub const CACHED: Self = Self::level(true, true, false);
    /// The level `all`.
    pub const ALL: Self = Self::level(true, true, true);

    const fn level(constant: bool, cached: bool, all: bool) -> Self {
        Self {
            active_l1: constant,
            active_l2: cached,
            refcount_table: constant,
            refcount_block: cached,
            snapshot_table: constant,
            inactive_l1: cached,
            inactive_l2: all,
            bitmap_directory: constant,
        }
    }
}

impl Default for Protect {
    fn default() -> Self {
        Self::CACHED
    }
}

impl Default for Qcow2Options {
    fn default() -> Self {
        Self {
            discards: Discards { request: true, snapshot: true, other: false },
            l2_cache_len: L2_CACHE_LEN,
            l2_cache_entry_len: None,
            refcount_cache_len: REFCOUNT_CACHE_LEN,
            cache_clean_interval: None,
            lazy_refcounts: false,
            snapshot: None,
            encrypt: EncryptOptions::default(),
            metadata_only: false,
            for_check: false,
            protect: Protect::default(),
            discard_no_unref: false,
            pack_fresh_only: false,
        }
    }
}

/// Tells whether the first bytes of a file are those of a qcow2 image.
pub fn probe(head: &[u8]) -> bool {
    head.len() >= 8
        && head[..4] == super::layout::MAGIC.to_be_bytes()
        && u32::from_be_bytes([head[4], head[5], head[6], head[7]]) >= 2
}

pub(super) fn fault(io: &Io, node: NodeId, fault: Qcow2Error) -> Box<Error> {
    Error::format(io.title(node), fault)
}

/// Reads the header of the image in `file`.
///
/// # Errors
/// What the file says when it is read, and what is wrong with the header.
pub async fn read_header(io: &Io, file: NodeId) -> Result<Header> {
    let len = io.len(file).min(HEAD_LEN);
    let mut head = io.read_bytes("qcow2.open/header", file, 0, len as usize).await?;
    if probe(&head)
        && let Some(cluster_size) = Header::cluster_size_of(&head)
        && cluster_size > HEAD_LEN
    {
        let len = io.len(file).min(cluster_size);
        head = io.read_bytes("qcow2.open/header", file, 0, len as usize).await?;
    }
    Header::parse(&head).map_err(|error| fault(io, file, error))
}

/// Opens the image whose header [`read_header`] read.
///
/// # Errors
/// When the image cannot be used as it is asked for, or when its tables cannot be read.
pub(crate) async fn open(
    io: &Io,
    file: NodeId,
    header: Header,
    writable: bool,
    (options, key): (&Qcow2Options, Key),
) -> Result<Qcow2> {
    let fail = |error| fault(io, file, error);
    let mut header = header;
    admit(&header, writable, options).map_err(fail)?;
    if let Some(choice) = &options.snapshot {
        let snapshots = read_snapshots(io, file, &header, Beyond::Refuse).await?;
        let snapshot = choice.find(&snapshots).ok_or_else(|| fail(Qcow2Error::NoSnapshot))?;
        if writable {
            return Err(Box::new(Error::ReadOnly { node: io.title(file) }));
        }
        header.l1_offset = snapshot.l1_offset;
        header.l1_entries = snapshot.l1_entries;
        header.size = snapshot.disk_size.unwrap_or(header.size);
        header.check_tables().map_err(fail)?;
    }
    let (l1, table) = read_tables(io, file, &header, options.for_check).await?;
    let table_at = header.refcount_table_offset;
    let geometry = geometry(&header, options, &key);
    let slice_len = header.cluster_bits.size().min(SLICE_LEN) as usize;
    let cache = SliceCache::new(slice_len, options.refcount_cache_len as usize);
    let mut refcounts = Refcounts::new(header.refcount_width, header.cluster_bits, table_at, table, cache);
    refcounts.protect = options.protect;
    let file_len = io.len(file);
    if grows_as_zeroes(io, file) {
        refcounts.fresh_beyond(file_len);
    }
    let dirty = header.has(Incompatible::DIRTY);
    let locked = match options.metadata_only {
        true if header.crypt != Crypt::None => Some(Lock::Encrypted),
        true if header.has(Incompatible::DATA_FILE) => Some(Lock::NoDataFile),
        _ => None,
    };
    let qcow2 = Qcow2 {
        name: io.title(file),
        l1: RefCell::new(L1Table { at: header.l1_offset, entries: l1, dirty: None, writing: None }),
        l2: RefCell::new(SliceCache::new(geometry.l2_slice_len, options.l2_cache_len as usize)),
        writes_version: Cell::new(header.version),
        header: RefCell::new(header),
        geometry,
        refcounts: RefCell::new(refcounts),
        loads: Default::default(),
        tables: Default::default(),
        blocks: Default::default(),
        headers: Default::default(),
        resizes: Default::default(),
        shown_len: Cell::new(None),
        commits: Default::default(),
        reclaims: Default::default(),
        committing: Cell::new(false),
        written: Cell::new(0),
        durable: Cell::new(0),
        reclaiming: Cell::new(0),
        reclaimed: Default::default(),
        reclaim_error: RefCell::default(),
        discards: options.discards,
        pack_fresh_only: options.pack_fresh_only,
        discard_no_unref: options.discard_no_unref,
        writable,
        closing: Cell::new(false),
        key_secret: options.encrypt.key_secret.clone(),
        aes: match key {
            Key::Aes(cipher) => Some(cipher),
            Key::None | Key::Luks(_) | Key::Node => None,
        },
        locked: Cell::new(locked),
        corruption: RefCell::default(),
        dirty_bitmaps: RefCell::default(),
    };
    if writable && !options.for_check {
        match dirty {
            true => qcow2.repair_dirty(io, file).await?,
            false => qcow2.protect_metadata()?,
        }
        qcow2.protect_more(io, file).await?;
        qcow2.clear_stale_features(io, file).await?;
        qcow2.use_bitmaps(io, file).await?;
    }
    Ok(qcow2)
}

/// Reads the active L1 table and the refcount table. For a check, what lies beyond the end of the file is zeros.
async fn read_tables(
    io: &Io,
    file: NodeId,
    header: &Header,
    for_check: bool,
) -> Result<(Vec<u64>, Vec<u64>)> {
    let l1_len = u64::from(header.l1_entries) * 8;
    let l1 = match for_check && header.l1_offset.0 >= io.len(file) {
        true => vec![0; header.l1_entries as usize],
        false => read_table(io, file, "Active L1 table", header.l1_offset, l1_len).await?,
    };
    let table_at = header.refcount_table_offset;
    let table_len = u64::from(header.refcount_table_clusters) << header.cluster_bits.bits();
    if for_check && table_at.0 >= io.len(file) {
        return Ok((l1, vec![0; table_len as usize / 8]));
    }
    io.event_at(file, DebugEvent::ReftableLoad).await;
    let table = read_table(io, file, "Reference count table", table_at, table_len).await?;
    Ok((l1, table))
}

/// Whether an image may be used in the way that is asked for.
fn admit(header: &Header, writable: bool, options: &Qcow2Options) -> Result<(), Qcow2Error> {
    if header.crypt != Crypt::None && options.metadata_only && writable {
        return Err(Qcow2Error::Encrypted);
    }
    if header.crypt == Crypt::Aes && writable {
        return Err(Qcow2Error::AesIsReadOnly);
    }
    let cluster_size = header.cluster_bits.size();
    if let Some(len) = options.l2_cache_entry_len
        && !(len.is_power_of_two() && (512..=cluster_size).contains(&len))
    {
        return Err(Qcow2Error::L2CacheEntrySize { cluster_size });
    }
    if options.lazy_refcounts && header.version < 3 {
        return Err(Qcow2Error::LazyRefcountsInVersion2);
    }
    if writable && header.has(Incompatible::CORRUPT) && !options.for_check {
        return Err(Qcow2Error::MarkedCorrupt);
    }
    if header.refcount_table_clusters == 0 && !options.for_check {
        return Err(Qcow2Error::NoRefcountTable);
    }
    if options.discard_no_unref && header.version < 3 {
        return Err(Qcow2Error::DiscardNoUnrefInVersion2);
    }
    if header.snapshot_count > SNAPSHOTS_MAX && !options.for_check {
        let len = u64::from(header.snapshot_count) * 40;
        return Err(Qcow2Error::TableTooLarge {
            table: "Snapshot table",
            len,
            max: u64::from(SNAPSHOTS_MAX) * 40,
        });
    }
    // Also for a check, which would take other bytes for the entries; and where there are none, as in the reference.
    let len = u64::from(header.snapshot_count.min(SNAPSHOTS_MAX)) * 40;
    check_table("Snapshot table", header.snapshots_offset, len, SNAPSHOT_TABLE_LEN_MAX, header.cluster_bits)
}

fn geometry(header: &Header, options: &Qcow2Options, key: &Key) -> Geometry {
    let data = if header.has(Incompatible::DATA_FILE) { Role::DataFile } else { Role::File };
    let aes = matches!(key, Key::Aes(_));
    let cluster_size = header.cluster_bits.size();
    let extended = header.has(Incompatible::EXTENDED_L2);
    let l2_entry_len = header.l2_entry_len();
    let rules = EntryRules {
        cluster_bits: header.cluster_bits,
        data_file: header.has(Incompatible::DATA_FILE),
        extended,
        version: header.version,
    };
    Geometry {
        cluster_bits: header.cluster_bits,
        cluster_size,
        l2_entry_len,
        l2_bits: header.cluster_bits.bits() - l2_entry_len.trailing_zeros(),
        l2_slice_len: options.l2_cache_entry_len.unwrap_or(cluster_size.min(SLICE_LEN)) as usize,
        subcluster_size: if extended {
            cluster_size / u64::from(super::layout::SUBCLUSTERS)
        } else {
            cluster_size
        },
        rules,
        data,
        guest: if matches!(key, Key::Luks(_) | Key::Node) { Role::Crypt } else { data },
        aes,
        direct: l2_entry_len == 8 && !aes,
        unusual: rules.unusual(),
        version: header.version,
    }
}

/// Reads a table of eight-byte entries.
pub(super) async fn read_table(
    io: &Io,
    file: NodeId,
    table: &'static str,
    at: HostOffset,
    len: u64,
) -> Result<Vec<u64>> {
    let file_len = io.len(file);
    if len > 0 && at.0 >= file_len {
        return Err(fault(io, file, Qcow2Error::BeyondEnd { table, at, file_len }));
    }
    let bytes = io.read_bytes("qcow2.open/table", file, at.0, len as usize).await?;
    Ok(bytes.chunks_exact(8).map(|entry| be_u64(entry, 0)).collect())
}

fn grows_as_zeroes(io: &Io, file: NodeId) -> bool {
    let mut leaf = file;
    while let Some(below) = io.edge(leaf, Role::File) {
        leaf = below;
    }
    leaf == file && io.leaf_info(leaf).is_some_and(|info| info.grows_as_zeroes)
}

/// Clusters that must never be given to data: what a wrong refcount would otherwise lead to.
pub(super) fn metadata_clusters(
    header: &Header,
    l1: &[u64],
    table: &[u64],
) -> Result<FxHashSet<u64>, Qcow2Error> {
    let bits = header.cluster_bits;
    let mut clusters = FxHashSet::default();
    let mut add = |at: HostOffset, len: u64| {
        let first = at.0 >> bits.bits();
        clusters.extend(first..first + bits.count(len));
    };
    add(HostOffset(0), 1);
    add(header.l1_offset, u64::from(header.l1_entries) * 8);
    add(header.refcount_table_offset, u64::from(header.refcount_table_clusters) << bits.bits());
    for (index, raw) in table.iter().enumerate() {
        let entry = RefcountTableEntry::parse(*raw, index as u64, bits);
        if let Some(block) = entry.ok().and_then(RefcountTableEntry::block) {
            // A table whose entries share a block would have the search for a free cluster go on without end.
            if !clusters.insert(block.0 >> bits.bits()) {
                return Err(Qcow2Error::RefcountBlockShared { index: index as u64, at: block });
            }
        }
    }
    for raw in l1 {
        if let Ok(L1Entry::Table { at, .. }) = L1Entry::parse(*raw, bits) {
            clusters.insert(at.0 >> bits.bits());
        }
    }
    Ok(clusters)
}

/// Clusters of metadata that may be written over by wish of who opens the image. What holds protected metadata too is none.
pub(super) fn unprotected_clusters(
    header: &Header,
    l1: &[u64],
    table: &[u64],
    protect: Protect,
) -> FxHashSet<u64> {
    let bits = header.cluster_bits;
    if protect.active_l1 && protect.active_l2 && protect.refcount_table && protect.refcount_block {
        return FxHashSet::default();
    }
    let (mut open, mut closed) = (FxHashSet::default(), FxHashSet::from_iter([0]));
    let mut add = |protected: bool, clusters: &mut dyn Iterator<Item = u64>| {
        if protected { closed.extend(clusters) } else { open.extend(clusters) }
    };
    let run = |at: HostOffset, len: u64| {
        let first = at.0 >> bits.bits();
        first..first + bits.count(len)
    };
    add(protect.active_l1, &mut run(header.l1_offset, u64::from(header.l1_entries) * 8));
    let table_len = u64::from(header.refcount_table_clusters) << bits.bits();
    add(protect.refcount_table, &mut run(header.refcount_table_offset, table_len));
    let block = |(index, raw): (usize, &u64)| {
        let entry = RefcountTableEntry::parse(*raw, index as u64, bits).ok()?;
        entry.block().map(|block| block.0 >> bits.bits())
    };
    add(protect.refcount_block, &mut table.iter().enumerate().filter_map(block));
    let l2_table = |raw: &u64| match L1Entry::parse(*raw, bits) {
        Ok(L1Entry::Table { at, .. }) => Some(at.0 >> bits.bits()),
        _ => None,
    };
    add(protect.active_l2, &mut l1.iter().filter_map(l2_table));
    open.retain(|cluster| !closed.contains(cluster));
    open
}

impl Qcow2 {
    /// Reads the tables again that memory keeps whole, and forgets all others: a repair has changed them.
    pub(super) async fn reload(&self, io: &Io, file: NodeId) -> Result<()> {
        let header = self.header();
        let (l1, table) = read_tables(io, file, &header, true).await?;
        self.l2.borrow_mut().clear();
        self.l1.borrow_mut().entries = l1;
        self.refcounts.borrow_mut().replace(header.refcount_table_offset, table);
        self.protect_metadata()
    }

    fn protect_metadata(&self) -> Result<()> {
        let (l1, mut refcounts) = (self.l1.borrow(), self.refcounts.borrow_mut());
        let clusters = metadata_clusters(&self.header.borrow(), &l1.entries, &refcounts.table);
        refcounts.metadata = clusters.map_err(|fault| self.fail(fault))?;
        refcounts.unprotected =
            unprotected_clusters(&self.header.borrow(), &l1.entries, &refcounts.table, refcounts.protect);
        Ok(())
    }

    /// Repairs an image that was not closed properly, before anybody uses it.
    ///
    /// The dirty bit goes last, once all refcounts are right and durable (`check/repair`).
    async fn repair_dirty(&self, io: &Io, file: NodeId) -> Result<()> {
        let node = self.name.clone();
        let mut say = |line: String| io.report(engine::Event::Repair { node: node.clone(), line });
        let what = (Some(Repair::All), None);
        let report = Box::pin(check_file(io, file, self, what, &mut say, &|_, _| {})).await?;
        self.reload(io, file).await?;
        if report.check_errors > 0 {
            return Err(self.fail(Qcow2Error::DirtyNotRepaired { errors: report.check_errors }));
        }
        match report.corruptions {
            0 => self.mark_sound(io, file).await,
            _ => Ok(()),
        }
    }

    /// Clears the dirty and corrupt bits.
    pub(super) async fn mark_sound(&self, io: &Io, file: NodeId) -> Result<()> {
        const BITS: u64 = Incompatible::DIRTY | Incompatible::CORRUPT;
        if self.header.borrow().incompatible & BITS == 0 {
            return Ok(());
        }
        self.write_header(io, file, |header| header.incompatible &= !BITS).await
    }

    /// Clears the autoclear bits whose promises a writer that does not know them breaks.
    ///
    /// Order on disk: the cleared bits are durable before the first change.
    async fn clear_stale_features(&self, io: &Io, file: NodeId) -> Result<()> {
        {
            let mut header = self.header.borrow_mut();
            let known = match header.has(Incompatible::DATA_FILE) {
                true => Autoclear::BITMAPS | Autoclear::RAW_DATA_FILE,
                false => Autoclear::BITMAPS,
            };
            let kept = header.autoclear & known;
            if header.autoclear == kept {
                return Ok(());
            }
            header.autoclear = kept;
        }
        let bytes = self.header.borrow().encode().map_err(|error| self.fail(error))?;
        io.write("qcow2.open/autoclear", file, 0, Buf::from(bytes), Fua::No).await.1?;
        io.flush("qcow2.open/autoclear", file).await
    }

    /// Whether the image has dirty bitmaps.
    pub fn has_bitmaps(&self) -> bool {
        self.header.borrow().extension(extension_kind::BITMAPS).is_some()
    }
}
