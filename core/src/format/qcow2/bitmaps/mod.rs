//! Persistent dirty bitmaps: which parts of the disk changed, kept in the image. Source: \[qcow2\] "Bitmaps extension".
//!
//! ```text
//!   header extension ──▶ directory ──▶ table of each bitmap ──▶ clusters of bits, or all zeros, or all ones
//! ```
//!
//! An image that is opened for writing loads its bitmaps, and says in the directory, durably, that they are in use before
//! anything else is written: what a crash leaves behind is not taken for the truth. Lookups for writes set bits
//! ([`dirty`](Qcow2)); closing stores them (`store`). `bits` has them in memory, `directory` has the layout.

pub mod directory;
mod store;

use super::layout::{Autoclear, extension_kind};
use super::lookup::be_u64;
use super::{Lock, Qcow2, Qcow2Error};
use crate::buf::Buf;
use crate::engine::Io;
use crate::error::Result;
use crate::format::bits::Bits;
use crate::graph::NodeId;
use crate::intent::Fua;
use directory::{BITMAPS_MAX, DIRECTORY_LEN_MAX, Entry, Extension, NAME_LEN_MAX};

/// Bytes of one stored bitmap at the most. Source: QEMU's limit.
const BITMAP_LEN_MAX: u64 = 512 << 20;

/// A bitmap in the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    /// Its name.
    pub name: String,
    /// Bytes of the disk that one bit stands for.
    pub granularity: u64,
    /// Whether it was not saved properly, and cannot be trusted.
    pub in_use: bool,
    /// Whether it counts from when the image is opened.
    pub auto: bool,
}

/// A bitmap with its bits.
#[derive(Clone, Debug)]
pub struct DirtyBitmap {
    /// What it is called, and how it counts.
    pub about: Bitmap,
    /// None where the image did not save it properly.
    bits: Option<Bits>,
    /// Where the file has it; none before it was stored.
    stored: Option<(u64, u32)>,
    /// Whether the file has other bits.
    changed: bool,
}

/// The bitmaps of an image that is open for writing.
#[derive(Debug, Default)]
pub(super) struct Bitmaps {
    all: Vec<DirtyBitmap>,
    /// The directory in the file: place and length.
    directory: Option<(u64, u64)>,
    /// What was removed: place and length of the tables.
    removed: Vec<(u64, u32)>,
}

impl DirtyBitmap {
    fn granularity_bits(&self) -> u32 {
        self.about.granularity.trailing_zeros()
    }

    /// Takes note of a change of the disk.
    fn set(&mut self, offset: u64, len: u64) {
        let shift = self.granularity_bits();
        if let Some(bits) = &mut self.bits
            && len > 0
        {
            self.changed = true;
            bits.set(offset >> shift..((offset + len - 1) >> shift) + 1);
        }
    }

    fn usable(&self) -> Result<&Bits, Qcow2Error> {
        self.bits.as_ref().ok_or_else(|| Qcow2Error::InconsistentBitmap { name: self.about.name.clone() })
    }

    /// Whether the image saved it properly, so that it says something.
    pub fn is_consistent(&self) -> bool {
        self.bits.is_some()
    }

    /// Ranges of the disk that are dirty, in order: offset and length.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let (shift, mut at) = (self.granularity_bits(), 0);
        std::iter::from_fn(move || {
            let run = self.bits.as_ref()?.next_run(at)?;
            at = run.end;
            Some((run.start << shift, (run.end - run.start) << shift))
        })
    }
}

impl Qcow2 {
    /// The dirty bitmaps of the image that `file` holds; none where somebody changed it who knows none.
    ///
    /// # Errors
    /// When the directory is damaged or cannot be read.
    pub async fn bitmaps(&self, io: &Io, file: NodeId) -> Result<Vec<Bitmap>> {
        Ok(self.directory(io, file).await?.into_iter().map(|entry| entry.bitmap).collect())
    }

    async fn directory(&self, io: &Io, file: NodeId) -> Result<Vec<Entry>> {
        let header = self.header();
        let Some(extension) = header.extension(extension_kind::BITMAPS) else { return Ok(Vec::new()) };
        if header.autoclear & Autoclear::BITMAPS == 0 {
            return Ok(Vec::new());
        }
        let Extension { count, len, at } = Extension::parse(extension).map_err(|fault| self.fail(fault))?;
        let inside = at.checked_add(len).is_some_and(|end| end <= io.len(file));
        if len > DIRECTORY_LEN_MAX || !inside {
            let problem = "the place or length of the bitmap directory is impossible";
            return Err(self.fail(Qcow2Error::Bitmaps { problem }));
        }
        let bytes = io.read_bytes("qcow2.bitmaps/directory", file, at, len as usize).await?;
        directory::parse(&bytes, count).map_err(|fault| self.fail(fault))
    }

    /// The dirty bitmaps with their bits, as the file has them.
    ///
    /// Takes memory in proportion to the file: where bitmaps share tables or clusters, so that there is more of them than
    /// the file can hold, they are damaged.
    ///
    /// # Errors
    /// When they are damaged or cannot be read.
    pub async fn load_bitmaps(&self, io: &Io, file: NodeId) -> Result<Vec<DirtyBitmap>> {
        let mut all = Vec::new();
        let mut room = Room { left: io.len(file).next_multiple_of(self.geometry.cluster_size) };
        for Entry { table_at, table_len, bitmap } in self.directory(io, file).await? {
            let bits = match bitmap.in_use {
                true => None,
                false => Some(self.load_bits(io, file, &bitmap, (table_at, table_len), &mut room).await?),
            };
            all.push(DirtyBitmap {
                about: bitmap,
                bits,
                stored: Some((table_at, table_len)),
                changed: false,
            });
        }
        Ok(all)
    }

    async fn load_bits(
        &self,
        io: &Io,
        file: NodeId,
        bitmap: &Bitmap,
        (table_at, table_len): (u64, u32),
        room: &mut Room,
    ) -> Result<Bits> {
        const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
        const RESERVED: u64 = 0xff00_0000_0000_01fe;
        let wrong = |problem| self.fail(Qcow2Error::Bitmaps { problem });
        let cluster = self.geometry.cluster_size;
        if !(512..=1 << 31).contains(&bitmap.granularity) {
            return Err(wrong("an entry has an impossible granularity"));
        }
        let mut bits = self.new_bits(bitmap.granularity).map_err(|fault| self.fail(fault))?;
        let needed = bits.count().div_ceil(8).div_ceil(cluster);
        let end = table_at.checked_add(u64::from(table_len) * 8);
        let inside = end.is_some_and(|end| end <= io.len(file).next_multiple_of(cluster));
        if u64::from(table_len) != needed || !inside || self.geometry.cluster_bits.offset_in(table_at) != 0 {
            return Err(wrong("the place or length of a bitmap table does not fit the disk"));
        }
        room.take(u64::from(table_len) * 8).map_err(|fault| self.fail(fault))?;
        let table = io.read_bytes("qcow2.bitmaps/table", file, table_at, table_len as usize * 8).await?;
        for (index, raw) in table.chunks_exact(8).map(|raw| be_u64(raw, 0)).enumerate() {
            let (at, first) = (raw & OFFSET, index as u64 * cluster);
            if raw & RESERVED != 0
                || at != 0 && (raw & 1 != 0 || self.geometry.cluster_bits.offset_in(at) != 0)
            {
                return Err(wrong("an entry of a bitmap table is impossible"));
            }
            if at != 0 {
                room.take(cluster).map_err(|fault| self.fail(fault))?;
                let bytes = io.read_bytes("qcow2.bitmaps/bits", file, at, cluster as usize).await?;
                bits.copy_in(first, &bytes);
            } else if raw & 1 != 0 {
                bits.set(first * 8..(first + cluster) * 8);
            }
        }
        Ok(bits)
    }

    fn new_bits(&self, granularity: u64) -> Result<Bits, Qcow2Error> {
        bit_count(self.header.borrow().size, granularity).map(Bits::new)
    }

    /// Whether the bitmaps can be those of a disk of `len` bytes.
    pub(super) fn check_bitmaps_for(&self, len: u64) -> Result<(), Qcow2Error> {
        let bitmaps = self.dirty_bitmaps.borrow();
        bitmaps.all.iter().try_for_each(|bitmap| bit_count(len, bitmap.about.granularity).map(drop))
    }

    /// Has the bitmaps follow the length of the disk; what is new is clean, as in QEMU 10.0.2.
    pub(super) fn resize_bitmaps(&self, len: u64) {
        for bitmap in &mut self.dirty_bitmaps.borrow_mut().all {
            if let (Some(bits), Ok(count)) = (&mut bitmap.bits, bit_count(len, bitmap.about.granularity)) {
                bits.resize(count);
                bitmap.changed = true;
            }
        }
    }

    /// Whether the image is open with bitmaps, which count from the disk as it is.
    pub(super) fn counts_changes(&self) -> bool {
        !self.dirty_bitmaps.borrow().all.is_empty()
    }

    /// Loads the bitmaps of an image that is about to be written to, and says that they are in use.
    ///
    /// Order on disk: the flags in the directory, a barrier, whatever the guest writes. The bits in the file stay what they
    /// were, so that flags of which a crash keeps some are true each for itself.
    pub(super) async fn use_bitmaps(&self, io: &Io, file: NodeId) -> Result<()> {
        let all = self.load_bitmaps(io, file).await?;
        if all.is_empty() {
            return Ok(());
        }
        let header = self.header();
        let extension = header.extension(extension_kind::BITMAPS).expect("it named the bitmaps");
        let Extension { len, at, .. } = Extension::parse(extension).map_err(|fault| self.fail(fault))?;
        let entries = all.iter().map(|bitmap| {
            let (table_at, table_len) = bitmap.stored.expect("just read");
            Entry { table_at, table_len, bitmap: Bitmap { in_use: true, ..bitmap.about.clone() } }
        });
        let bytes = directory::encode(&entries.collect::<Vec<_>>());
        if bytes.len() as u64 > len {
            return Err(
                self.fail(Qcow2Error::Bitmaps { problem: "the directory is shorter than its entries" })
            );
        }
        io.write("qcow2.bitmaps/in_use", file, at, Buf::from(bytes), Fua::No).await.1?;
        io.flush("qcow2.bitmaps/in_use", file).await?;
        *self.dirty_bitmaps.borrow_mut() = Bitmaps { all, directory: Some((at, len)), removed: Vec::new() };
        self.watch();
        Ok(())
    }

    /// Has lookups for writes told of, while a bitmap counts.
    fn watch(&self) {
        let counts = |bitmap: &DirtyBitmap| bitmap.about.auto && bitmap.bits.is_some();
        let counts = self.dirty_bitmaps.borrow().all.iter().any(counts);
        match self.locked.get() {
            None | Some(Lock::Watched) => self.locked.set(counts.then_some(Lock::Watched)),
            Some(_) => {}
        }
    }

    /// Sets the bits of a range that is about to be written.
    #[cold]
    pub(super) fn dirty(&self, offset: u64, len: u64) {
        for bitmap in self.dirty_bitmaps.borrow_mut().all.iter_mut().filter(|bitmap| bitmap.about.auto) {
            bitmap.set(offset, len);
        }
    }

    /// Adds an empty bitmap, in memory; it is stored when the image is closed.
    ///
    /// # Errors
    /// When there is one of the name, or the format cannot hold it.
    pub fn add_bitmap(&self, name: &str, granularity: Option<u64>, counts: bool) -> Result<(), Qcow2Error> {
        let granularity = granularity.unwrap_or(self.geometry.cluster_size.clamp(4096, 65536));
        if !granularity.is_power_of_two() || !(512..=1 << 31).contains(&granularity) {
            return Err(Qcow2Error::BitmapGranularity);
        }
        if name.is_empty() {
            return Err(Qcow2Error::BitmapNameEmpty);
        }
        let unstorable =
            |problem| Qcow2Error::BitmapUnstorable { name: name.into(), node: self.name.clone(), problem };
        if self.dirty_bitmaps.borrow().all.iter().any(|bitmap| bitmap.about.name == name) {
            return Err(Qcow2Error::BitmapExists { name: name.into() });
        }
        if self.geometry.version < 3 {
            return Err(unstorable("Cannot store dirty bitmaps in qcow2 v2 files"));
        }
        if name.len() > NAME_LEN_MAX {
            return Err(unstorable("Name length exceeds maximum (1023 characters)"));
        }
        if self.dirty_bitmaps.borrow().all.len() >= BITMAPS_MAX as usize {
            return Err(unstorable("Maximum number of persistent bitmaps is already reached"));
        }
        let too_large =
            |_| unstorable("Too much space will be occupied by the bitmap. Use larger granularity");
        let bits = Some(self.new_bits(granularity).map_err(too_large)?);
        let about = Bitmap { name: name.into(), granularity, in_use: false, auto: counts };
        let bitmap = DirtyBitmap { about, bits, stored: None, changed: true };
        self.dirty_bitmaps.borrow_mut().all.push(bitmap);
        self.watch();
        Ok(())
    }

    /// Removes a bitmap, in memory; its space is given back when the image is closed.
    ///
    /// # Errors
    /// When there is none of the name.
    pub fn remove_bitmap(&self, name: &str) -> Result<(), Qcow2Error> {
        {
            let mut bitmaps = self.dirty_bitmaps.borrow_mut();
            let index = bitmaps.index_of(name)?;
            let removed = bitmaps.all.remove(index);
            bitmaps.removed.extend(removed.stored);
        }
        self.watch();
        Ok(())
    }

    /// Clears all bits of a bitmap, in memory.
    ///
    /// # Errors
    /// When there is none of the name, or it is inconsistent.
    pub fn clear_bitmap(&self, name: &str) -> Result<(), Qcow2Error> {
        self.change_bitmap(name, |bitmap| {
            bitmap.changed = true;
            bitmap.bits.as_mut().expect("it is usable").clear();
        })
    }

    /// Has a bitmap count what is written, or not, in memory.
    ///
    /// # Errors
    /// When there is none of the name, or it is inconsistent.
    pub fn enable_bitmap(&self, name: &str, counts: bool) -> Result<(), Qcow2Error> {
        self.change_bitmap(name, |bitmap| bitmap.about.auto = counts)?;
        self.watch();
        Ok(())
    }

    fn change_bitmap(&self, name: &str, change: impl FnOnce(&mut DirtyBitmap)) -> Result<(), Qcow2Error> {
        let mut bitmaps = self.dirty_bitmaps.borrow_mut();
        let index = bitmaps.index_of(name)?;
        bitmaps.all[index].usable()?;
        change(&mut bitmaps.all[index]);
        Ok(())
    }

    /// Sets in a bitmap what is set in another, which may be of another image and have another granularity.
    ///
    /// # Errors
    /// When there is none of the name, one of them is inconsistent, or their disks differ in length.
    pub fn merge_bitmap(&self, name: &str, from: &DirtyBitmap, from_size: u64) -> Result<(), Qcow2Error> {
        from.usable()?;
        let size = self.header.borrow().size;
        self.change_bitmap(name, |_| ())?;
        if size != from_size {
            return Err(Qcow2Error::BitmapSizes { to: size, from: from_size });
        }
        self.change_bitmap(name, |bitmap| {
            for (offset, len) in from.ranges() {
                bitmap.set(offset, len);
            }
        })
    }

    /// A copy of a bitmap as it is in memory.
    ///
    /// # Errors
    /// When there is none of the name.
    pub fn bitmap(&self, name: &str) -> Result<DirtyBitmap, Qcow2Error> {
        let bitmaps = self.dirty_bitmaps.borrow();
        Ok(bitmaps.all[bitmaps.index_of(name)?].clone())
    }
}

impl Bitmaps {
    fn index_of(&self, name: &str) -> Result<usize, Qcow2Error> {
        let found = self.all.iter().position(|bitmap| bitmap.about.name == name);
        found.ok_or_else(|| Qcow2Error::NoBitmap { name: name.into() })
    }
}

/// How much of the file may still belong to bitmaps.
struct Room {
    left: u64,
}

impl Room {
    fn take(&mut self, len: u64) -> Result<(), Qcow2Error> {
        let problem = "tables and clusters of bitmaps are more than the file holds";
        self.left = self.left.checked_sub(len).ok_or(Qcow2Error::Bitmaps { problem })?;
        Ok(())
    }
}

/// The bitmap of a name among those that [`load_bitmaps`](Qcow2::load_bitmaps) read.
///
/// # Errors
/// When there is none.
pub fn find_bitmap<'a>(all: &'a [DirtyBitmap], name: &str) -> Result<&'a DirtyBitmap, Qcow2Error> {
    let found = all.iter().find(|bitmap| bitmap.about.name == name);
    found.ok_or_else(|| Qcow2Error::NoBitmap { name: name.into() })
}

/// Bits of a bitmap of a disk of `len` bytes.
fn bit_count(len: u64, granularity: u64) -> Result<u64, Qcow2Error> {
    let count = len.div_ceil(granularity);
    match count.div_ceil(8) <= BITMAP_LEN_MAX {
        true => Ok(count),
        false => Err(Qcow2Error::BitmapTooLarge),
    }
}
