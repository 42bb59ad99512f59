//! Dirty bitmaps in step with the disk: which parts of it changed, kept in the image.
//!
//! An image that is opened for writing loads its bitmaps; lookups for writes set bits; closing stores them where they were. From
//! the mark on until then the header says that somebody writes, and nobody takes what the file holds of them for the truth.
//! Bitmaps of an image that other software wrote to, which keeps no extension in step, are dropped with the first change:
//! then the header does not say [`InUse::Closed`].
//!
//! A feature that is not known stays, goes, or forbids writing, as its flags say. Source: \[Parallels\] "Format Extension".

use super::check::Target;
use super::extension::{Extension, Feature, Part, StoredBitmap};
use super::layout::{Fit, Header, InUse, SECTOR};
use super::space::Clusters;
use super::{Parallels, ParallelsError};
use crate::buf::Buf;
use crate::engine::Io;
use crate::error::Result;
use crate::format::bits::Bits;
use crate::graph::NodeId;
use crate::graph::driver::Role;
use crate::intent::Fua;

/// Bytes of a format extension at the most: larger clusters hold none that is read.
const EXTENSION_LEN_MAX: u64 = 32 << 20;

/// Bytes of a bitmap that are read and written at once.
const PIECE: u64 = 1 << 20;

/// A dirty bitmap with its bits.
#[derive(Clone, Debug)]
pub struct DirtyBitmap {
    stored: StoredBitmap,
    bits: Bits,
    /// Whether the file has other bits.
    changed: bool,
}

impl DirtyBitmap {
    /// What tells it from others.
    pub fn id(&self) -> [u8; 16] {
        self.stored.id
    }

    /// Bytes of the disk that one bit stands for.
    pub fn granularity(&self) -> u64 {
        u64::from(self.stored.granularity) * SECTOR
    }

    /// Ranges of the disk that are dirty, in order: offset and length.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let (granularity, mut at) = (self.granularity(), 0);
        std::iter::from_fn(move || {
            let run = self.bits.next_run(at)?;
            at = run.end;
            Some((run.start * granularity, (run.end - run.start) * granularity))
        })
    }

    /// The bits of a part of the table.
    fn bits_of(&self, part: usize, cluster_len: u64) -> std::ops::Range<u64> {
        let start = part as u64 * cluster_len * 8;
        start..(start + cluster_len * 8).min(self.bits.count())
    }
}

/// The extension of an image that is open for writing; nothing where it has none that counts.
#[derive(Debug, Default)]
pub(super) struct Bitmaps {
    all: Vec<DirtyBitmap>,
    /// What stands in the extension beside them, and where it is: 0 where it has no place yet.
    others: Option<Extension>,
    /// Whether the extension itself is to be written.
    added: bool,
}

impl Bitmaps {
    pub fn has_extension(&self) -> bool {
        self.others.is_some()
    }

    /// Whether there is more to write than changes of the disk brought.
    pub fn is_new(&self) -> bool {
        self.added
    }

    /// Takes note of a change of the disk.
    pub fn changed(&mut self, offset: u64, len: u64) {
        for bitmap in &mut self.all {
            let granularity = bitmap.granularity();
            bitmap.bits.set(offset / granularity..(offset + len).div_ceil(granularity));
            bitmap.changed = true;
        }
    }
}

/// Reads the extension, unless it does not count; its clusters are added to `taken`. What is damaged counts as little as
/// none, as the specification has it.
pub(super) async fn find_extension(
    target: &Target<'_>,
    header: &Header,
    taken: &mut Clusters,
) -> Result<Option<Extension>> {
    let file_len = target.io.len(target.file);
    let geometry = header.geometry(file_len);
    let at = header.ext_off.checked_mul(SECTOR);
    let Some(at) = at.filter(|at| *at != 0 && header.in_use == InUse::Closed) else { return Ok(None) };
    let whole = |host: u64| match geometry.fit(host, file_len) {
        Fit::Whole(index) => Some(index),
        Fit::Cut(_) | Fit::Misaligned | Fit::Outside => None,
    };
    let Some(own) = whole(at).filter(|_| geometry.cluster_len <= EXTENSION_LEN_MAX) else { return Ok(None) };
    let len = geometry.cluster_len as usize;
    let bytes = target.io.read_bytes("parallels.open/extension", target.file, at, len).await?;
    let Ok(extension) = Extension::parse(at, &bytes) else { return Ok(None) };
    let mut clusters = vec![own];
    for feature in &extension.features {
        let Feature::Bitmap(bitmap) = feature else { continue };
        let places: Option<Vec<_>> = bitmap.places().map(|place| place.and_then(whole)).collect();
        match places {
            Some(places) if bitmap.fits(header.sectors, geometry.cluster_len) => clusters.extend(places),
            _ => return Ok(None),
        }
    }
    // A cluster that is something else too is damaged by one or the other.
    clusters.sort_unstable();
    let shared = clusters.windows(2).any(|pair| pair[0] == pair[1]);
    if shared || clusters.iter().any(|cluster| taken.has(*cluster)) {
        return Ok(None);
    }
    for cluster in clusters {
        taken.add(cluster);
    }
    Ok(Some(extension))
}

/// Loads what must be kept in step.
///
/// # Errors
/// When a feature forbids to write, or bits cannot be read.
pub(super) async fn load_for_writing(
    target: &Target<'_>,
    header: &Header,
    extension: Option<Extension>,
) -> Result<Bitmaps> {
    let Some(Extension { at, features }) = extension else { return Ok(Bitmaps::default()) };
    let (mut all, mut others) = (Vec::new(), Vec::new());
    for feature in features {
        match feature {
            Feature::Bitmap(stored) => all.push(load(target, header, stored).await?),
            Feature::Unknown(unknown) if unknown.is_necessary() => {
                return Err(target.fail(ParallelsError::NecessaryFeature { magic: unknown.magic }));
            }
            Feature::Unknown(unknown) if unknown.stays() => others.push(Feature::Unknown(unknown)),
            Feature::Unknown(_) => {}
        }
    }
    Ok(Bitmaps { all, others: Some(Extension { at, features: others }), added: false })
}

async fn load(target: &Target<'_>, header: &Header, stored: StoredBitmap) -> Result<DirtyBitmap> {
    let bits = Bits::new(stored.bit_count());
    let mut bitmap = DirtyBitmap { stored, bits, changed: false };
    let cluster_len = header.cluster_len();
    for number in 0..bitmap.stored.table.len() {
        let range = bitmap.bits_of(number, cluster_len);
        let Part::At(sector) = bitmap.stored.table[number] else {
            if bitmap.stored.table[number] == Part::Ones {
                bitmap.bits.set(range);
            }
            continue;
        };
        let (mut byte, end) = (range.start / 8, range.end.div_ceil(8));
        let base = sector * SECTOR - byte;
        while byte < end {
            let len = PIECE.min(end - byte);
            let label = "parallels.open/bitmap";
            let bytes = target.io.read_bytes(label, target.file, base + byte, len as usize).await?;
            bitmap.bits.copy_in(byte, &bytes);
            byte += len;
        }
    }
    Ok(bitmap)
}

impl Parallels {
    /// The dirty bitmaps of an image that is open for reading; none where somebody changed it who keeps none in step.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn load_bitmaps(&self, io: &Io, file: NodeId) -> Result<Vec<DirtyBitmap>> {
        let (target, header) = (Target { io, file, name: &self.name }, self.header());
        let mut taken = Clusters::default();
        let extension = find_extension(&target, &header, &mut taken).await?;
        let mut all = Vec::new();
        for feature in extension.map(|extension| extension.features).unwrap_or_default() {
            if let Feature::Bitmap(stored) = feature {
                all.push(load(&target, &header, stored).await?);
            }
        }
        Ok(all)
    }

    /// Adds a dirty bitmap that counts from here on, to an image that is open for writing. `granularity` is in bytes, a power
    /// of two of whole sectors.
    ///
    /// # Errors
    /// [`ParallelsError::Bitmap`] when it cannot have that granularity, or the extension has no room for it.
    pub fn add_bitmap(&self, id: [u8; 16], granularity: u64) -> Result<()> {
        let refused = |problem| self.fail(ParallelsError::Bitmap { problem });
        let sectors = granularity / SECTOR;
        let granularity = u32::try_from(sectors).ok().filter(|sectors| sectors.is_power_of_two());
        let Some(granularity) = granularity else {
            return Err(refused("the granularity is no power of two of sectors"));
        };
        let sectors = self.geometry.size / SECTOR;
        let mut stored = StoredBitmap { flags: 0, sectors, id, granularity, table: Vec::new() };
        let parts = stored.bit_count().div_ceil(8).div_ceil(self.geometry.cluster_len);
        // What does not fit in the extension is not made first.
        if self.geometry.cluster_len > EXTENSION_LEN_MAX || parts * 8 > self.geometry.cluster_len {
            return Err(refused("its table does not fit in a cluster; use a larger granularity"));
        }
        stored.table = vec![Part::Zeros; parts as usize];
        let mut bitmaps = self.bitmaps.borrow_mut();
        let mut extension = bitmaps.others.clone().unwrap_or(Extension { at: 0, features: Vec::new() });
        let all = bitmaps.all.iter().map(|bitmap| &bitmap.stored).chain([&stored]);
        extension.features.extend(all.cloned().map(Feature::Bitmap));
        if extension.encode(self.geometry.cluster_len as usize).is_none() {
            return Err(refused("the format extension has no room for it"));
        }
        let bits = Bits::new(stored.bit_count());
        bitmaps.all.push(DirtyBitmap { stored, bits, changed: false });
        bitmaps.others.get_or_insert(Extension { at: 0, features: Vec::new() });
        bitmaps.added = true;
        Ok(())
    }

    /// Writes the extension and the bits that changed; tells whether the image has one.
    pub(super) async fn store_bitmaps(&self, io: &Io) -> Result<bool> {
        let Bitmaps { mut all, others, .. } = self.bitmaps.take();
        let Some(mut extension) = others else { return Ok(false) };
        if extension.at == 0 {
            extension.at = self.new_place(io).await?;
            self.header.borrow_mut().ext_off = extension.at / SECTOR;
        }
        for bitmap in all.iter_mut().filter(|bitmap| bitmap.changed) {
            self.store_bits(io, bitmap).await?;
        }
        extension.features.splice(0..0, all.into_iter().map(|bitmap| Feature::Bitmap(bitmap.stored)));
        // It was as long when it was read.
        let Some(bytes) = extension.encode(self.geometry.cluster_len as usize) else { return Ok(false) };
        let file = io.child(Role::File);
        io.write("parallels.close/extension", file, extension.at, Buf::from(bytes), Fua::No).await.1?;
        Ok(true)
    }

    async fn store_bits(&self, io: &Io, bitmap: &mut DirtyBitmap) -> Result<()> {
        let cluster_len = self.geometry.cluster_len;
        for number in 0..bitmap.stored.table.len() {
            let range = bitmap.bits_of(number, cluster_len);
            let before = bitmap.stored.table[number];
            let part = match (bitmap.bits.alike(range.clone()), before) {
                (Some(false), _) => Part::Zeros,
                (Some(true), _) => Part::Ones,
                (None, Part::At(sector)) => Part::At(sector),
                (None, _) => Part::At(self.new_place(io).await? / SECTOR),
            };
            bitmap.stored.table[number] = part;
            match (before, part) {
                (_, Part::At(sector)) => {
                    let (mut byte, end) = (range.start / 8, range.start / 8 + cluster_len);
                    let base = sector * SECTOR - byte;
                    while byte < end {
                        let mut bytes = Buf::zeroed(PIECE.min(end - byte) as usize);
                        bitmap.bits.copy_out(byte, &mut bytes);
                        let (file, len) = (io.child(Role::File), bytes.len() as u64);
                        io.write("parallels.close/bitmap", file, base + byte, bytes, Fua::No).await.1?;
                        byte += len;
                    }
                }
                (Part::At(sector), _) => {
                    if let Fit::Whole(index) = self.geometry.fit(sector * SECTOR, self.file_len.get()) {
                        self.space.borrow_mut().free(index);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A cluster that nobody else has.
    async fn new_place(&self, io: &Io) -> Result<u64> {
        loop {
            let taken = self.space.borrow_mut().take(1);
            match taken {
                Some(taken) => return Ok(self.geometry.place_of(taken.first)),
                None => self.make_room(io, 1).await?,
            }
        }
    }
}
