//! Open: footer, dynamic header and the parent; then slices of the BAT, and bitmaps, as they are missed.

use std::rc::Rc;

use super::layout::{COOKIE, DiskType, DynamicHeader, Footer, HEADER_LEN, Locator, SECTOR, SizeRule};
use super::space::Space;
use super::{Fixed, Vpc, VpcError};
use crate::engine::Io;
use crate::error::{Error, Result};
use crate::format::HostOffset;
use crate::format::cache::SliceCache;
use crate::graph::NodeId;
use crate::graph::driver::{Driver, Role};
use crate::graph::open::ChildSpec;
use crate::graph::opening::Opening;

/// Bytes of the BAT that are read and written at once.
const SLICE_LEN: u64 = 4096;

/// Bytes of the BAT in memory: all of it for the largest disk with blocks of 2 MiB.
const BAT_LEN: usize = 4 << 20;

/// Bytes of bitmaps in memory: those of 64 GiB with blocks of 2 MiB.
const BITMAPS_LEN: usize = 16 << 20;

/// Bytes of a parent's name that are read.
const NAME_MAX: u32 = 64 << 10;

/// Whether the first bytes of a file are a dynamic image's. A fixed one begins with what its guest wrote.
pub fn probe(head: &[u8]) -> bool {
    head.starts_with(COOKIE)
}

/// The UUID of a VHD image.
pub fn uuid_of(driver: &dyn Driver) -> Option<[u8; 16]> {
    let any = driver.as_any();
    let sparse = any.downcast_ref::<Vpc>().map(|image| image.footer.uuid);
    sparse.or_else(|| any.downcast_ref::<Fixed>().map(|image| image.footer.uuid))
}

/// Opens the image in a file, and its parent.
pub(in crate::format) async fn open(opening: &Opening<'_>, rule: SizeRule) -> Result<Rc<dyn Driver>> {
    let (io, file) = (opening.io, opening.file);
    let name = io.title(file);
    let fail = |fault| Error::format(&*name, fault);
    let file_len = io.len(file);
    let head = io.read_bytes("vpc.open/footer", file, 0, SECTOR as usize).await?;
    if !probe(&head) {
        let at = file_len.checked_sub(SECTOR).ok_or_else(|| fail(VpcError::NotVpc))?;
        let tail = io.read_bytes("vpc.open/footer", file, at, SECTOR as usize).await?;
        let footer = Footer::parse(at, &tail).map_err(fail)?;
        if footer.disk_type != DiskType::Fixed {
            return Err(fail(VpcError::NotVpc));
        }
        let size = footer.size(rule).map_err(fail)?;
        // A write behind that would leave the footer where nobody finds it; QEMU 10.0.2 opens such an image, once.
        if size > at {
            return Err(fail(VpcError::TooShort { structure: "fixed disk", at: 0, len: size, file_len: at }));
        }
        return Ok(Rc::new(Fixed { footer, size }));
    }
    let footer = Footer::parse(0, &head).map_err(fail)?;
    if footer.disk_type == DiskType::Fixed {
        let expected = "3 (dynamic) or 4 (differencing) at the start of a file";
        return Err(fail(VpcError::DiskType { at: 0, found: 2, expected }));
    }
    let size = footer.size(rule).map_err(fail)?;
    let header = read_header(io, file, &footer).await?;
    let taken = taken(&footer, &header, size, file_len).map_err(fail)?;
    let parent = match footer.disk_type {
        DiskType::Differencing => Some(parent_name(io, file, &header).await?),
        _ => None,
    };
    let bitmap_len = header.bitmap_len() as usize;
    let image = Vpc {
        size,
        parent,
        taken,
        file_len: file_len.into(),
        bat: SliceCache::new(SLICE_LEN as usize, BAT_LEN).into(),
        bitmaps: SliceCache::new(bitmap_len, BITMAPS_LEN).into(),
        space: Space::default().into(),
        changes: 0.into(),
        durable: 0.into(),
        commits: Default::default(),
        loads: Default::default(),
        bitmap_loads: Default::default(),
        growing: Default::default(),
        footer,
        header,
        name: name.clone(),
    };
    if let Some(name) = &image.parent {
        open_parent(opening, name.as_deref(), &image.header, &fail).await?;
    }
    Ok(Rc::new(image))
}

async fn read_header(io: &Io, file: NodeId, footer: &Footer) -> Result<DynamicHeader> {
    let fail = |fault| Error::format(io.title(file), fault);
    let (at, len, file_len) = (footer.header_at, HEADER_LEN as u64, io.len(file));
    if at.checked_add(len).is_none_or(|end| end > file_len) {
        return Err(fail(VpcError::TooShort { structure: "dynamic header", at, len, file_len }));
    }
    let bytes = io.read_bytes("vpc.open/header", file, at, HEADER_LEN).await?;
    DynamicHeader::parse(at, &bytes).map_err(fail)
}

/// What is not for blocks, in order; the BAT lies in the file, and is long enough.
fn taken(
    footer: &Footer,
    header: &DynamicHeader,
    size: u64,
    file_len: u64,
) -> Result<Vec<(u64, u64)>, VpcError> {
    let (entries, block_len) = (header.entries, header.block_len);
    if u64::from(entries) * block_len < size {
        return Err(VpcError::TableTooSmall { entries, block_len, size });
    }
    let (what, at, len) = ("BAT", header.table_at, u64::from(entries) * 4);
    if at < SECTOR || at.checked_add(len).is_none_or(|end| end > file_len) {
        return Err(VpcError::Outside { what, at, len, file_len });
    }
    let mut taken = vec![
        (0, SECTOR),
        (footer.header_at, footer.header_at + HEADER_LEN as u64),
        (at, at + header.table_len()),
    ];
    let names = header.locators.iter().filter(|locator| is_used(locator));
    let names =
        names.filter_map(|locator| Some((locator.at, locator.at.checked_add(u64::from(locator.len))?)));
    // What does not lie in the file names no file, and keeps no space.
    taken.extend(names.filter(|(_, end)| *end <= file_len));
    taken.sort_unstable();
    Ok(taken)
}

fn is_used(locator: &Locator) -> bool {
    locator.code != [0; 4] && locator.len > 0
}

/// The name of the parent's file: the relative path, or else the last part of the absolute one, or the name in the header,
/// beside the image. Paths of another machine lead nowhere here. It is a path and never more, whatever it looks like.
async fn parent_name(io: &Io, file: NodeId, header: &DynamicHeader) -> Result<Option<String>> {
    let mut names = Vec::new();
    for code in [b"W2ru", b"W2ku"] {
        let found = header.locators.iter().find(|locator| is_used(locator) && locator.code == *code);
        if let Some(locator) = found.filter(|locator| locator.len <= NAME_MAX && locator.at < io.len(file)) {
            let bytes = io.read_bytes("vpc.open/parent_name", file, locator.at, locator.len as usize).await?;
            let units = bytes.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
            let text = char::decode_utf16(units.take_while(|unit| *unit != 0)).collect::<Result<String, _>>();
            names.extend(text.ok().map(|text| (*code == *b"W2ru", text)));
        }
    }
    names.push((false, header.parent_name.clone()));
    Ok(names.into_iter().find_map(|(relative, text)| path_of(&text, relative)))
}

fn path_of(text: &str, relative: bool) -> Option<String> {
    let path = text.replace('\\', "/");
    let path = match relative {
        true => &*path,
        false => path.rsplit('/').next().unwrap_or_default(),
    };
    match path {
        "" => None,
        path if path.contains(':') && !path.starts_with(['.', '/']) => Some(format!("./{path}")),
        path => Some(path.into()),
    }
}

/// Opens the parent, which must be the one that the image was made above.
async fn open_parent(
    opening: &Opening<'_>,
    name: Option<&str>,
    header: &DynamicHeader,
    fail: &dyn Fn(VpcError) -> Box<Error>,
) -> Result<()> {
    if opening.metadata_only {
        return Ok(());
    }
    opening.open_backing(name, Some("vpc")).await?;
    let Some(parent) = opening.edges.at(Role::Backing) else {
        let silent = matches!(opening.backing, ChildSpec::FromImage) && name.is_none();
        return if silent { Err(fail(VpcError::NoParentName)) } else { Ok(()) };
    };
    // Whoever puts something else below the image knows better.
    match opening.io.driver(parent).and_then(|driver| uuid_of(driver.as_ref())) {
        Some(found) if found != header.parent_uuid => {
            let [found, expected] = [found, header.parent_uuid].map(u128::from_be_bytes);
            Err(fail(VpcError::OtherParent { found, expected }))
        }
        _ => Ok(()),
    }
}

impl Vpc {
    /// The slice that holds the entry of a block, and the entry's first byte in it.
    pub(super) fn slice_of(&self, block: u64) -> (HostOffset, usize) {
        let byte = block * 4;
        (HostOffset(self.header.table_at + byte / SLICE_LEN * SLICE_LEN), (byte % SLICE_LEN) as usize)
    }

    /// Reads a slice of the BAT. Two that miss the same one read it once.
    pub(super) async fn load_slice(&self, io: &Io, at: HostOffset) -> Result<()> {
        // The last slice ends where the BAT does: what is behind it belongs to others.
        let end = self.header.table_at + self.header.table_len();
        let len = SLICE_LEN.min(end - at.0) as usize;
        let read = self.read_into(io, &self.bat, "vpc.load/bat", at, len);
        self.loads.once(&io.shared().tasks, at, || self.bat.borrow().find(at).is_some(), read).await
    }

    /// Reads a block's bitmap.
    pub(super) async fn load_bitmap(&self, io: &Io, at: HostOffset) -> Result<()> {
        let len = self.header.bitmap_len() as usize;
        let read = self.read_into(io, &self.bitmaps, "vpc.load/bitmap", at, len);
        self.bitmap_loads
            .once(&io.shared().tasks, at, || self.bitmaps.borrow().find(at).is_some(), read)
            .await
    }

    async fn read_into(
        &self,
        io: &Io,
        cache: &std::cell::RefCell<SliceCache>,
        label: crate::intent::Label,
        at: HostOffset,
        len: usize,
    ) -> Result<()> {
        let bytes = io.read_bytes(label, io.child(Role::File), at.0, len).await?;
        while !cache.borrow().has_room() {
            // All slices hold changes: writing them out makes room.
            self.commit(io).await?;
        }
        let inserted = cache.borrow_mut().insert(at, bytes);
        inserted.map(drop).map_err(|_| self.fail(VpcError::CacheExhausted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_is_beside_the_image() {
        let check = |text: &str, relative, expected: Option<&str>| {
            assert_eq!(path_of(text, relative).as_deref(), expected, "{text}");
        };
        check(r".\base.vhd", true, Some("./base.vhd"));
        check(r"..\disks\base.vhd", true, Some("../disks/base.vhd"));
        check(r"C:\disks\base.vhd", false, Some("base.vhd"));
        check("nbd:host:1", true, Some("./nbd:host:1"));
        check("", false, None);
    }
}
