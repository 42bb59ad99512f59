//! Open: headers, the log, the region table, metadata; then sectors of the BAT as they are missed.

use super::layout::{
    HEADER_LEN, HEADERS_AT, Header, Item, Locator, METADATA_TABLE_LEN, MIB, Metadata, MetadataTable,
    REGION_TABLE_LEN, REGION_TABLES_AT, Region, RegionTable, Regions, SECTOR, SIGNATURE, current,
};
use super::overlay::Overlay;
use super::session::{Headers, write_headers};
use super::space::Space;
use super::{Vhdx, VhdxError, layout, replay};
use crate::buf::Buf;
use crate::engine::Io;
use crate::error::{Error, Result};
use crate::format::HostOffset;
use crate::format::cache::SliceCache;
use crate::graph::NodeId;
use crate::graph::driver::Role;
use crate::graph::opening::Opening;
use crate::intent::Label;

/// Bytes of BAT and sector bitmaps in memory: two million blocks.
const CACHE_LEN: usize = 16 << 20;

/// Whether the first bytes of a file are a VHDX image's.
pub fn probe(head: &[u8]) -> bool {
    head.starts_with(SIGNATURE)
}

/// Opens the image in a file, and its parent. A log that is to be replayed is, in the file or, where that is not written to,
/// in memory.
pub(in crate::format) async fn open(opening: &Opening<'_>) -> Result<Vhdx> {
    let (io, file) = (opening.io, opening.file);
    let name = io.title(file);
    let fail = |fault| Error::format(&*name, fault);
    let headers = read_headers(io, file).await.map_err(|error| error.in_file(&name))?;
    let (mut overlay, mut file_len) = (Overlay::default(), io.len(file));
    let replayed = !headers.current.log.is_nil();
    if replayed {
        let replay = replay::read(io, file, &headers.current).await?;
        (overlay, file_len) = (replay.overlay, replay.file_len);
    }
    let regions = read_regions(io, file, &overlay).await.map_err(|error| error.in_file(&name))?;
    let taken = taken(&headers.current, &regions, file_len).map_err(fail)?;
    let (metadata, size_at) =
        read_metadata(io, file, &overlay, regions.metadata).await.map_err(|error| error.in_file(&name))?;
    let mut image = Vhdx {
        size: metadata.size.into(),
        size_at,
        bat: regions.bat,
        taken,
        overlay,
        file_len: file_len.into(),
        replayed: replayed.into(),
        is_below: opening.depth > 0,
        headers: headers.into(),
        begun: false.into(),
        beginning: Default::default(),
        log: Default::default(),
        cache: SliceCache::new(SECTOR, CACHE_LEN).into(),
        space: Space::default().into(),
        growing: Default::default(),
        changes: 0.into(),
        durable: 0.into(),
        commits: Default::default(),
        lengthening: Default::default(),
        loads: Default::default(),
        metadata,
        name: name.clone(),
    };
    let (room, needed) = (image.bat.len / 8, image.entries_for(image.size.get()));
    if needed > room {
        return Err(fail(VhdxError::BatRoom { room, needed }));
    }
    if let Some(parent) = &image.metadata.parent {
        open_parent(opening, parent, &fail).await?;
    }
    if replayed && opening.writable() {
        // Nothing is written before all of it makes sense.
        let overlay = std::mem::take(&mut image.overlay);
        replay::apply(io, file, &overlay, file_len).await?;
        let labels = ("vhdx.replay/header", "vhdx.replay/after_header");
        let headers = image.headers.get_mut().clone();
        let headers =
            write_headers(io, file, headers, labels, |header| header.log = layout::Guid::NIL).await?;
        *image.headers.get_mut() = headers;
    }
    Ok(image)
}

/// An error of the host, or of the format: these have no name of the file yet.
enum Fault {
    Io(Box<Error>),
    Format(VhdxError),
}

impl From<Box<Error>> for Fault {
    fn from(error: Box<Error>) -> Self {
        Self::Io(error)
    }
}

impl From<VhdxError> for Fault {
    fn from(fault: VhdxError) -> Self {
        Self::Format(fault)
    }
}

impl Fault {
    fn in_file(self, name: &str) -> Box<Error> {
        match self {
            Self::Io(error) => error,
            Self::Format(fault) => Error::format(name, fault),
        }
    }
}

/// The current header; the file is one of the format.
async fn read_headers(io: &Io, file: NodeId) -> Result<Headers, Fault> {
    let len = io.len(file);
    let signature = io.read_bytes("vhdx.open/file_type", file, 0, 512).await?;
    if !probe(&signature) {
        return Err(VhdxError::NotVhdx.into());
    }
    if len < MIB {
        return Err(VhdxError::TooShort { len }.into());
    }
    let [first, second] = HEADERS_AT;
    let first_bytes = io.read_bytes("vhdx.open/header", file, first, HEADER_LEN).await?;
    let second_bytes = io.read_bytes("vhdx.open/header", file, second, HEADER_LEN).await?;
    let (current, slot) = current(Header::parse(first, &first_bytes), Header::parse(second, &second_bytes))?;
    let (at, log_len) = (current.log_at, current.log_len);
    if at + log_len > len {
        return Err(VhdxError::Outside { what: "log", at, len: log_len, file_len: len }.into());
    }
    Ok(Headers { current, slot })
}

/// The regions by the first copy of the table, or by the second where the first is damaged.
async fn read_regions(io: &Io, file: NodeId, overlay: &Overlay) -> Result<Regions, Fault> {
    let mut faults = Vec::new();
    for at in REGION_TABLES_AT {
        let bytes = read_through(io, "vhdx.open/region_table", file, overlay, at, REGION_TABLE_LEN).await?;
        match RegionTable::parse(at, &bytes) {
            Ok(table) => return Ok(table.regions()?),
            Err(fault) => faults.push(Box::new(fault)),
        }
    }
    let [first, second] = faults.try_into().expect("two copies");
    Err(VhdxError::Both { structure: "region table", first, second }.into())
}

/// What is not for blocks, in order.
fn taken(header: &Header, regions: &Regions, file_len: u64) -> Result<Vec<Region>, VhdxError> {
    let mut taken = vec![
        ("headers", Region { at: 0, len: MIB }),
        ("log", Region { at: header.log_at, len: header.log_len }),
        ("BAT region", regions.bat),
        ("metadata region", regions.metadata),
    ];
    taken.extend(regions.others.iter().map(|region| ("region of another kind", *region)));
    taken.sort_by_key(|(_, region)| region.at);
    for pair in taken.windows(2) {
        let (before, (what, region)) = (pair[0].1, pair[1]);
        if before.end() > region.at {
            return Err(VhdxError::RegionOverlap { what, at: region.at, len: region.len, end: before.end() });
        }
    }
    for (what, region) in &taken {
        let needed = !matches!(*what, "region of another kind");
        if needed && region.end() > file_len {
            return Err(VhdxError::Outside { what, at: region.at, len: region.len, file_len });
        }
    }
    Ok(taken.into_iter().map(|(_, region)| region).collect())
}

/// What the metadata region says, and where in the file the size of the disk stands.
async fn read_metadata(
    io: &Io,
    file: NodeId,
    overlay: &Overlay,
    region: Region,
) -> Result<(Metadata, u64), Fault> {
    let read = |at, len| read_through(io, "vhdx.open/metadata", file, overlay, at, len);
    let table = read(region.at, METADATA_TABLE_LEN).await?;
    let table = MetadataTable::parse(region.at, region.len, &table)?;
    let mut items = Vec::new();
    let mut size_at = 0;
    for (item, entry) in table.items()? {
        let at = region.at + u64::from(entry.offset);
        if item == Item::VirtualDiskSize {
            size_at = at;
        }
        items.push((item, read(at, entry.len as usize).await?.to_vec()));
    }
    Ok((Metadata::parse(&items)?, size_at))
}

/// Reads bytes of a file as its log says they are.
pub(super) async fn read_through(
    io: &Io,
    label: Label,
    file: NodeId,
    overlay: &Overlay,
    at: u64,
    len: usize,
) -> Result<Buf> {
    let mut bytes = io.read_bytes(label, file, at, len).await?;
    overlay.apply(at, &mut bytes);
    Ok(bytes)
}

/// The name of the parent's file: the relative path, or else the last part of the absolute one, beside the image. Paths of
/// another machine lead nowhere here. It is a path and never more, whatever it looks like.
pub(super) fn parent_name(locator: &Locator) -> Option<String> {
    let forward = |path: &str| path.replace('\\', "/");
    let relative = locator.value("relative_path").filter(|path| !path.is_empty()).map(forward);
    let absolute = || {
        let path = locator.value("absolute_win32_path").map(forward)?;
        path.rsplit('/').next().filter(|name| !name.is_empty()).map(str::to_owned)
    };
    let name = relative.or_else(absolute)?;
    Some(if name.contains(':') && !name.starts_with(['.', '/']) { format!("./{name}") } else { name })
}

/// Opens the parent, which must hold what it held when the image was made above it.
async fn open_parent(
    opening: &Opening<'_>,
    locator: &Locator,
    fail: &dyn Fn(VhdxError) -> Box<Error>,
) -> Result<()> {
    if opening.metadata_only {
        return Ok(());
    }
    let name = parent_name(locator);
    opening.open_backing(name.as_deref(), Some("vhdx")).await?;
    let Some(parent) = opening.edges.at(Role::Backing) else {
        let silent = matches!(opening.backing, crate::graph::open::ChildSpec::FromImage) && name.is_none();
        return if silent { Err(fail(VhdxError::NoParentName)) } else { Ok(()) };
    };
    let linkage = locator.value("parent_linkage").and_then(layout::Guid::from_text);
    let second = locator.value("parent_linkage2").and_then(layout::Guid::from_text);
    let driver = opening.io.driver(parent);
    // Whoever puts something else below the image knows better.
    let Some(found) = driver.as_ref().and_then(|driver| driver.as_any().downcast_ref::<Vhdx>()) else {
        return Ok(());
    };
    let expected = linkage.ok_or_else(|| fail(VhdxError::NoLinkage))?;
    let found = found.data_write();
    match found == expected || Some(found) == second {
        true => Ok(()),
        false => Err(fail(VhdxError::ParentChanged { found, expected })),
    }
}

impl Vhdx {
    /// BAT entries of a disk of `size` bytes.
    pub(super) fn entries_for(&self, size: u64) -> u64 {
        let blocks = size.div_ceil(self.metadata.block_len);
        let ratio = self.chunk_ratio();
        match self.metadata.parent {
            None => blocks + blocks.saturating_sub(1) / ratio,
            Some(_) => blocks.div_ceil(ratio) * (ratio + 1),
        }
    }

    /// Reads a sector of BAT or sector bitmap. Two that miss the same one read it once.
    pub(super) async fn load_slice(&self, io: &Io, at: HostOffset) -> Result<()> {
        let read = self.read_slice(io, at);
        self.loads.once(&io.shared().tasks, at, || self.cache.borrow().find(at).is_some(), read).await
    }

    async fn read_slice(&self, io: &Io, at: HostOffset) -> Result<()> {
        let bytes =
            read_through(io, "vhdx.load/bat", io.child(Role::File), &self.overlay, at.0, SECTOR).await?;
        while !self.cache.borrow().has_room() {
            // All slices hold changes: writing them out makes room.
            self.commit(io).await?;
        }
        let inserted = self.cache.borrow_mut().insert(at, bytes);
        inserted.map(drop).map_err(|_| self.fail(VhdxError::CacheExhausted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_is_beside_the_image() {
        let check = |key: &str, value: &str, expected: Option<&str>| {
            let locator = Locator(vec![(key.into(), value.into())]);
            assert_eq!(parent_name(&locator).as_deref(), expected, "{key} {value}");
        };
        check("relative_path", r".\base.vhdx", Some("./base.vhdx"));
        check("relative_path", r"..\disks\base.vhdx", Some("../disks/base.vhdx"));
        check("relative_path", "base.vhdx", Some("base.vhdx"));
        check("relative_path", "json:{}", Some("./json:{}"));
        check("relative_path", "", None);
        check("absolute_win32_path", r"C:\disks\base.vhdx", Some("base.vhdx"));
        check("absolute_win32_path", r"C:\disks\", None);
        check("volume_path", r"\\?\Volume{1}\base.vhdx", None);
    }
}
