//! Open: the header, and slices of the BAT as they are missed.
//!
//! An image that is to be written to has its BAT read through first: who writes must know which clusters are taken, and that no
//! two entries name the same one. What is wrong with it is repaired, as `qemu-img` does.

use super::bitmaps::{self, Bitmaps};
use super::check::{Fix, Target};
use super::layout::{HEADER_LEN, Header};
use super::space::Space;
use super::{CheckReport, Parallels, ParallelsError, SLICE_LEN};
use crate::engine::{Event, Io};
use crate::error::{Error, Result};
use crate::format::HostOffset;
use crate::format::cache::SliceCache;
use crate::graph::driver::Role;
use crate::graph::opening::Opening;
use crate::intent::{Errno, Preallocation};

/// Bytes of the BAT in memory: what 4 TiB of the disk need, with clusters of 1 MiB.
const CACHE_LEN: usize = 16 << 20;

/// What is said of an image when it is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParallelsOptions {
    /// `prealloc-mode`: how the file gets longer.
    pub prealloc_mode: PreallocMode,
    /// `prealloc-size`: by how many bytes at least.
    pub prealloc_size: u64,
    /// For `check`: what is wrong with the image is left as it is.
    pub for_check: bool,
}

impl Default for ParallelsOptions {
    fn default() -> Self {
        Self { prealloc_mode: PreallocMode::Falloc, prealloc_size: 128 << 20, for_check: false }
    }
}

/// How the file gets longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreallocMode {
    /// The host reserves the space.
    Falloc,
    /// It does not.
    Truncate,
}

/// Opens an image whose file is open.
///
/// # Errors
/// When the image is damaged or not supported, or its metadata cannot be read, or repaired.
pub(in crate::format) async fn open(opening: &Opening<'_>, options: &ParallelsOptions) -> Result<Parallels> {
    let (io, file) = (opening.io, opening.file);
    let name = io.title(file);
    let fail = |fault| Error::format(&*name, fault);
    let file_len = io.len(file);
    if file_len < HEADER_LEN as u64 {
        return Err(fail(ParallelsError::HeaderTooShort { len: file_len }));
    }
    let head = io.read_bytes("parallels.open/header", file, 0, HEADER_LEN).await?;
    let mut header = Header::parse(&head).map_err(fail)?;
    // What lies beyond the end would read as zeros, and make clusters that are there vanish.
    if header.bat_end() > file_len {
        let (entries, end) = (header.entries, header.bat_end());
        return Err(fail(ParallelsError::BatOutside { entries, end, len: file_len }));
    }
    let (mut space, mut bitmaps) = (Space::default(), Bitmaps::default());
    if opening.writable() && !opening.metadata_only && !options.for_check {
        let target = Target { io, file, name: &name };
        let looked = target.examine(&mut header, Fix::Nothing, &mut |_| {}).await?;
        let looked = match looked.report {
            CheckReport { corruptions: 0, .. } => looked,
            _ => {
                let mut say = |line| io.report(Event::Repair { node: name.clone(), line });
                target.examine(&mut header, Fix::All, &mut say).await?;
                target.examine(&mut header, Fix::Nothing, &mut |_| {}).await?
            }
        };
        let geometry = header.geometry(io.len(file));
        let room = u32::try_from(geometry.clusters_in(io.len(file))).unwrap_or(u32::MAX);
        space = Space::new(looked.taken, room);
        bitmaps = bitmaps::load_for_writing(&target, &header, looked.extension).await?;
        // One that is not kept in step says what is not so from the first change on.
        if !bitmaps.has_extension() {
            header.ext_off = 0;
        }
    }
    let geometry = header.geometry(io.len(file));
    Ok(Parallels {
        geometry,
        header: header.into(),
        options: options.clone(),
        marked: false.into(),
        marks: Default::default(),
        bat: SliceCache::new(SLICE_LEN as usize, CACHE_LEN).into(),
        space: space.into(),
        growth: Default::default(),
        file_len: io.len(file).into(),
        bitmaps: bitmaps.into(),
        changes: 0.into(),
        durable: 0.into(),
        commits: Default::default(),
        loads: Default::default(),
        freed: Default::default(),
        unnamed: Default::default(),
        reclaiming: Default::default(),
        reclaimed: Default::default(),
        name,
    })
}

impl Parallels {
    /// Reads a slice of the BAT. Two that miss the same slice read it once.
    pub(super) async fn load_slice(&self, io: &Io, at: HostOffset) -> Result<()> {
        let read = self.read_slice(io, at);
        self.loads.once(&io.shared().tasks, at, || self.bat.borrow().find(at).is_some(), read).await
    }

    async fn read_slice(&self, io: &Io, at: HostOffset) -> Result<()> {
        // The last slice ends where the BAT does: what is behind it belongs to clusters.
        let len = SLICE_LEN.min(self.geometry.bat_end.next_multiple_of(512) - at.0) as usize;
        let bytes = io.read_bytes("parallels.load/bat", io.child(Role::File), at.0, len).await?;
        while !self.bat.borrow().has_room() {
            // All slices hold changes: writing them out makes room.
            self.commit(io).await?;
        }
        let inserted = self.bat.borrow_mut().insert(at, bytes);
        inserted.map(drop).map_err(|_| self.fail(ParallelsError::CacheExhausted))
    }

    /// Says in the file that somebody writes to the image, durably, before the first change: whoever finds it so after a crash
    /// trusts no bitmap, and looks for clusters that nothing names.
    pub(super) async fn mark(&self, io: &Io) -> Result<()> {
        let _one_at_a_time = self.marks.enter(&io.shared().tasks).await;
        if self.marked.get() {
            return Ok(());
        }
        let header = self.header().in_use_by_us();
        self.write_header(io, "parallels.mark/header", &header).await?;
        io.flush("parallels.mark/before_changes", io.child(Role::File)).await?;
        self.marked.set(true);
        Ok(())
    }

    /// Makes the file longer, unless somebody has meanwhile. What is new reads as zeros.
    pub(super) async fn make_room(&self, io: &Io, clusters: u64) -> Result<()> {
        let _one_at_a_time = self.growth.enter(&io.shared().tasks).await;
        if self.space.borrow().has_room() {
            return Ok(());
        }
        let geometry = self.geometry;
        let room = u64::from(self.space.borrow().room());
        // Places that no BAT entry can name are none.
        let limit = ((u64::from(u32::MAX) * geometry.unit_len - geometry.data_at) / geometry.cluster_len)
            .min(u64::from(u32::MAX));
        if room >= limit {
            return Err(self.fail(ParallelsError::Full { end: self.file_len.get() }));
        }
        let ahead = self.options.prealloc_size / geometry.cluster_len;
        let (wanted, needed) = ((room + clusters.max(ahead)).min(limit), (room + 1).min(limit));
        let how = match self.options.prealloc_mode {
            PreallocMode::Falloc => Preallocation::Falloc,
            PreallocMode::Truncate => Preallocation::Off,
        };
        let file = io.child(Role::File);
        let len = |room: u64| geometry.data_at + room * geometry.cluster_len;
        let grown = match io.set_len(file, len(wanted), how).await {
            Ok(()) => wanted,
            // Room ahead is a wish; what is needed may fit all the same, or the write itself will say why not.
            Err(error) if !is_short_of_space(&error) => return Err(error),
            Err(_) => {
                io.set_len(file, len(needed), Preallocation::Off).await?;
                needed
            }
        };
        self.file_len.set(len(grown));
        self.space.borrow_mut().grown_to(grown as u32);
        Ok(())
    }
}

/// Whether the host has no room for what it was asked for, or no way to reserve it.
fn is_short_of_space(error: &Error) -> bool {
    let short = [Errno::ENOSPC, Errno::ENOTSUP, Errno::EINVAL, Errno::EFBIG];
    matches!(error, Error::Leaf { errno, .. } if short.contains(errno))
}
