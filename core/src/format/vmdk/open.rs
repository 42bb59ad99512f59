//! Open: the descriptor, the extents that it names, the parent; and grain tables as they are missed.

use std::cell::Cell;

use super::descriptor::{DESCRIPTOR_LEN_MAX, Descriptor, ExtentKind, ExtentLine, LineAccess};
use super::layout::{
    CowdHeader, FOOTER_LEN, Flags, HEADER_LEN, MAGIC, SECTOR, SeSparseHeader, SparseHeader, parse_footer,
};
use super::sparse::{Encoding, Packing, Space, Sparse};
use super::{Body, Part, Vmdk, VmdkError};
use crate::engine::Io;
use crate::error::{Error, Result};
use crate::format::HostOffset;
use crate::format::cache::SliceCache;
use crate::graph::NodeId;
use crate::graph::driver::Role;
use crate::graph::open::beside;
use crate::graph::opening::Opening;
use crate::intent::{Errno, LeafKind};

/// Bytes of grain tables in memory, of all extents: what 256 GiB of the disk need.
const CACHE_LEN: usize = 16 << 20;

/// Bytes of a grain directory that are read at once.
const PIECE: u64 = 1 << 20;

/// Kinds of disks whose descriptor is a file of its own.
const DESCRIBED: [&str; 6] =
    ["monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "vmfs", "vmfsSparse", "seSparse"];

/// Kinds of disks that are one sparse extent.
const EMBEDDED: [&str; 2] = ["monolithicSparse", "streamOptimized"];

/// Whether the first bytes of a file are a VMDK image's.
pub fn probe(head: &[u8]) -> bool {
    head.starts_with(&MAGIC) || head.starts_with(&CowdHeader::MAGIC) || Descriptor::probe(head)
}

/// Opens the image.
///
/// # Errors
/// When it is damaged or not supported, names what may not be opened, or cannot be read.
pub(crate) async fn open(opening: &Opening<'_>) -> Result<Vmdk> {
    let Opening { io, file, .. } = *opening;
    let fail = |fault| Error::format(io.title(file), fault);
    let head_len = io.len(file).min(HEADER_LEN as u64) as usize;
    let head = io.read_bytes("vmdk.open/head", file, 0, head_len).await?;
    let image = match head.starts_with(&MAGIC) {
        true => open_embedded(opening, &head).await?,
        false => {
            if head.starts_with(&CowdHeader::MAGIC) {
                return Err(fail(VmdkError::NotDescriptor {
                    problem: "it is an extent that another file describes",
                }));
            }
            let text = read_descriptor(io, file, 0, io.len(file)).await?;
            let descriptor = Descriptor::parse(&text).map_err(fail)?;
            let parts = open_parts(opening, &descriptor).await?;
            assemble(opening, descriptor, (0, u64::MAX), parts)?
        }
    };
    if opening.metadata_only {
        return Ok(image);
    }
    let descriptor = image.descriptor();
    let parent = descriptor.parent.as_deref().filter(|_| descriptor.has_parent());
    opening.open_backing(parent, Some("vmdk")).await?;
    check_parent(opening, &descriptor).map_err(fail)?;
    Ok(image)
}

/// Opens a file that is one sparse extent, or holds a descriptor of others.
async fn open_embedded(opening: &Opening<'_>, head: &[u8]) -> Result<Vmdk> {
    let Opening { io, file, .. } = *opening;
    let fail = |fault| Error::format(io.title(file), fault);
    let header = SparseHeader::parse(head).map_err(fail)?;
    let place = |sectors: u64| sectors.checked_mul(SECTOR);
    let (Some(at @ 1..), Some(len)) = (place(header.descriptor_at), place(header.descriptor_sectors)) else {
        let problem = "the extent has none, so that another file describes it";
        return Err(fail(VmdkError::NotDescriptor { problem }));
    };
    let text = read_descriptor(io, file, at, len).await?;
    let descriptor = Descriptor::parse(&text).map_err(fail)?;
    let embedded = EMBEDDED.contains(&&*descriptor.create_type);
    if header.capacity == 0 && !embedded {
        let parts = open_parts(opening, &descriptor).await?;
        return assemble(opening, descriptor, (at, len), parts);
    }
    let sparse = open_hosted(io, file, Role::File, opening.writable()).await?;
    let part = Part {
        start: 0,
        len: sparse.len,
        role: Role::File,
        name: io.title(file),
        kind: "",
        body: Body::Sparse(Box::new(sparse)),
        loads: Default::default(),
    };
    assemble(opening, descriptor, (at, len), vec![part])
}

/// Reads the descriptor of at most `len` bytes at `at`.
async fn read_descriptor(io: &Io, file: NodeId, at: u64, len: u64) -> Result<crate::buf::Buf> {
    let fail = |fault| Error::format(io.title(file), fault);
    let file_len = io.len(file);
    if at.checked_add(len).is_none_or(|end| end > file_len) {
        return Err(fail(VmdkError::Outside { what: "descriptor", at, len, file_len }));
    }
    if len > DESCRIPTOR_LEN_MAX {
        // What is no descriptor at all is told so, however long it is.
        let head = io.read_bytes("vmdk.open/descriptor", file, at, SECTOR as usize).await?;
        let problem = "no line with a version at its beginning";
        return Err(fail(match Descriptor::probe(&head) {
            true => VmdkError::DescriptorLen { at, found: len, max: DESCRIPTOR_LEN_MAX },
            false => VmdkError::NotDescriptor { problem },
        }));
    }
    io.read_bytes("vmdk.open/descriptor", file, at, len as usize).await
}

/// Puts the parts of a disk together.
fn assemble(
    opening: &Opening<'_>,
    descriptor: Descriptor,
    (descriptor_at, descriptor_max): (u64, u64),
    parts: Vec<Part>,
) -> Result<Vmdk> {
    let Opening { io, file, .. } = *opening;
    let name = io.title(file);
    let sparse = || parts.iter().filter_map(|part| Some((part, part.sparse()?)));
    let grain_len = sparse().map(|(_, sparse)| sparse.grain_len).max().unwrap_or(SECTOR);
    if opening.writable()
        && let Some((part, _)) = sparse().find(|(part, _)| part.start % grain_len != 0)
    {
        let fault = VmdkError::Unaligned { name: part.name.clone(), start: part.start, grain: grain_len };
        return Err(Error::format(name, fault));
    }
    Ok(Vmdk {
        len: parts.last().map_or(0, |part| part.start + part.len),
        descriptor: descriptor.into(),
        descriptor_at,
        descriptor_max,
        parts,
        grain_len,
        cid_changed: false.into(),
        changes: 0.into(),
        durable: 0.into(),
        begins: Default::default(),
        commits: Default::default(),
        name,
    })
}

/// Opens what a descriptor names; nothing where only the metadata is looked at.
async fn open_parts(opening: &Opening<'_>, descriptor: &Descriptor) -> Result<Vec<Part>> {
    let Opening { io, file, .. } = *opening;
    let title = io.title(file);
    let fail = |fault| Error::format(&*title, fault);
    if !DESCRIBED.contains(&&*descriptor.create_type) {
        return Err(fail(VmdkError::CreateType {
            found: descriptor.create_type.chars().take(100).collect(),
        }));
    }
    if descriptor.extents.iter().all(|line| line.kind == ExtentKind::Zero) {
        return Err(fail(VmdkError::NoExtent));
    }
    let caches = descriptor.extents.iter().filter(|line| line.kind == ExtentKind::Sparse).count().max(1);
    let mut parts = Vec::new();
    let mut start = 0;
    for (line, number) in descriptor.extents.iter().zip(0..) {
        line.check_name().map_err(fail)?;
        let writes = line.access == LineAccess::ReadWrite
            && matches!(line.kind, ExtentKind::Flat | ExtentKind::Vmfs | ExtentKind::Sparse);
        let name = line.name.clone();
        if opening.writable() && !writes && !opening.metadata_only {
            let kind = if line.access == LineAccess::ReadOnly { "RDONLY" } else { line.kind.name() };
            return Err(fail(VmdkError::ReadOnlyExtent { name, kind }));
        }
        let role = Role::Extent(number);
        let body = match line.kind {
            _ if opening.metadata_only => Body::Closed,
            ExtentKind::Zero => Body::Zero,
            _ => open_extent(opening, line, role, caches).await?,
        };
        let len = line.sectors * SECTOR;
        let (kind, loads) = (line.kind.name(), Default::default());
        parts.push(Part { start, len, role, name: beside(&title, &line.name), kind, body, loads });
        start += len;
    }
    Ok(parts)
}

async fn open_extent(opening: &Opening<'_>, line: &ExtentLine, role: Role, caches: usize) -> Result<Body> {
    let Opening { io, file, .. } = *opening;
    let fail = |fault| Error::format(io.title(file), fault);
    let name = || line.name.clone();
    let extent = opening.open_part(role, "extent", &line.name).await.map_err(|error| match *error {
        // A pipe or a socket.
        Error::Open { errno: Errno::ENXIO, .. } => fail(VmdkError::NotAFile { name: name() }),
        _ => error,
    })?;
    if io.leaf_info(extent).is_some_and(|leaf| leaf.kind != LeafKind::File) {
        return Err(fail(VmdkError::NotAFile { name: name() }));
    }
    let len = line.sectors * SECTOR;
    let mut sparse = match line.kind {
        ExtentKind::Sparse => open_hosted(io, extent, role, opening.writable()).await?,
        ExtentKind::VmfsSparse => open_cowd(io, extent, role).await?,
        ExtentKind::SeSparse => open_se_sparse(io, extent, role).await?,
        ExtentKind::Flat | ExtentKind::Vmfs | ExtentKind::Zero => {
            let (found, expected) = (io.len(extent), line.first * SECTOR + len);
            if found < expected {
                return Err(fail(VmdkError::ExtentShort { name: name(), found, expected }));
            }
            return Ok(Body::Flat(line.first * SECTOR));
        }
    };
    if sparse.len < len {
        return Err(fail(VmdkError::ExtentShort { name: name(), found: sparse.len, expected: len }));
    }
    sparse.len = len;
    sparse.tables = SliceCache::new(sparse.table_len(), CACHE_LEN / caches).into();
    Ok(Body::Sparse(Box::new(sparse)))
}

/// Opens a hosted sparse extent.
async fn open_hosted(io: &Io, file: NodeId, role: Role, writable: bool) -> Result<Sparse> {
    let name = io.title(file);
    let fail = |fault| Error::format(&*name, fault);
    let file_len = io.len(file);
    let head_len = file_len.min(HEADER_LEN as u64) as usize;
    let head = io.read_bytes("vmdk.open/header", file, 0, head_len).await?;
    let mut header = SparseHeader::parse(&head).map_err(fail)?;
    if header.directory_at.is_none() {
        let expected = FOOTER_LEN as u64;
        let Some(at) = file_len.checked_sub(expected) else {
            return Err(fail(VmdkError::TooShort { what: "footer", found: file_len, expected }));
        };
        if writable {
            return Err(fail(VmdkError::FooterReadOnly { file: name.clone() }));
        }
        let footer = io.read_bytes("vmdk.open/footer", file, at, FOOTER_LEN).await?;
        header = parse_footer(footer[..].try_into().expect("read so many")).map_err(fail)?;
    }
    if header.version == 3 && !header.compressed && writable {
        return Err(fail(VmdkError::Version3ReadOnly));
    }
    let expected = header.overhead.saturating_mul(SECTOR);
    if file_len < expected {
        return Err(fail(VmdkError::Truncated { expected, found: file_len }));
    }
    let tables = header.tables();
    let directory =
        read_directory(io, file, "grain directory", header.directory_at.unwrap_or(0), tables).await?;
    let flags = header.flags;
    let redundant = writable && flags.has(Flags::REDUNDANT);
    let copies = match redundant {
        false => Vec::new(),
        true => {
            let copies =
                read_directory(io, file, "redundant grain directory", header.redundant_at, tables).await?;
            if let Some(index) =
                directory.iter().zip(&copies).position(|(table, copy)| *table != 0 && *copy == 0)
            {
                return Err(fail(VmdkError::NoRedundantTable { file: name.clone(), index: index as u64 }));
            }
            let mut pairs: Vec<_> =
                directory.iter().copied().zip(copies).filter(|(table, _)| *table != 0).collect();
            pairs.sort_unstable();
            pairs
        }
    };
    if writable {
        check_metadata(&header, &directory, &copies).map_err(fail)?;
    }
    let packing = match (header.compressed, flags.has(Flags::MARKERS)) {
        (false, _) => Packing::None,
        (true, true) => Packing::Marked,
        (true, false) => Packing::Bare,
    };
    let grain_len = header.grain_sectors * SECTOR;
    // Packed grains lie where they fit; others at multiples of their length.
    let unit = if header.compressed { SECTOR } else { grain_len };
    let zeroed = flags.has(Flags::ZEROED_GRAINS);
    // Packed grains follow each other as they came, tables between them.
    let overhead = if header.compressed { 1 } else { header.overhead };
    Ok(Sparse {
        role,
        len: header.capacity * SECTOR,
        grain_len,
        table_entries: header.table_entries.into(),
        encoding: Encoding::Sectors { zeroed, overhead },
        packing,
        file_len,
        directory,
        copies,
        tables: SliceCache::new(header.table_entries as usize * 4, CACHE_LEN).into(),
        space: space(io, file, unit, expected),
        header: Some(header),
        begun: Cell::new(false),
        file: name,
    })
}

/// Grains lie behind all metadata, so that a write to one cannot damage it; packed ones, which are never written again, lie
/// anywhere. No grain table shares a byte with what leads to it, or with the descriptor: both are written to.
fn check_metadata(header: &SparseHeader, directory: &[u32], copies: &[(u32, u32)]) -> Result<(), VmdkError> {
    let overhead = if header.compressed { u64::MAX } else { header.overhead.saturating_mul(SECTOR) };
    let (directory_len, table_len) = (header.tables() * 4, u64::from(header.table_entries) * 4);
    let copied = if copies.is_empty() { 0 } else { directory_len };
    let fixed = [
        ("header", 0, HEADER_LEN as u64),
        ("descriptor", header.descriptor_at, header.descriptor_sectors.saturating_mul(SECTOR)),
        ("grain directory", header.directory_at.unwrap_or(0), directory_len),
        ("redundant grain directory", header.redundant_at, copied),
    ];
    let fixed = fixed.map(|(what, sector, len)| {
        let at = sector.saturating_mul(SECTOR);
        (what, at, if what != "header" && sector == 0 { at } else { at.saturating_add(len) })
    });
    let tables = directory.iter().map(|table| ("grain table", *table));
    let tables = tables.chain(copies.iter().map(|(_, copy)| ("redundant grain table", *copy)));
    for (what, at, end) in fixed {
        if end > overhead {
            return Err(VmdkError::BehindOverhead { what, at, overhead });
        }
        let shares = |table: u64| table < end && at < table + table_len;
        let shared = tables.clone().find(|(_, table)| *table != 0 && shares(u64::from(*table) * SECTOR));
        if let Some((table, sector)) = shared {
            let table_at = u64::from(sector) * SECTOR;
            return Err(VmdkError::Shared { table, table_at, what, at });
        }
    }
    match tables
        .map(|(what, sector)| (what, u64::from(sector) * SECTOR))
        .find(|(_, at)| at + table_len > overhead)
    {
        Some((what, at)) if at > 0 => Err(VmdkError::BehindOverhead { what, at, overhead }),
        _ => Ok(()),
    }
}

fn space(io: &Io, file: NodeId, unit: u64, overhead: u64) -> Space {
    Space {
        end: Cell::new(io.len(file).max(overhead).next_multiple_of(unit)),
        free: Default::default(),
        grows_as_zeroes: io.leaf_info(file).is_some_and(|leaf| leaf.grows_as_zeroes),
    }
}

/// Reads a grain directory of u32 sectors.
async fn read_directory(
    io: &Io,
    file: NodeId,
    what: &'static str,
    sector: u64,
    tables: u64,
) -> Result<Vec<u32>> {
    let bytes = read_table(io, file, what, sector, tables * 4).await?;
    Ok(bytes.chunks_exact(4).map(|four| u32::from_le_bytes(four.try_into().expect("four bytes"))).collect())
}

/// Reads all of a table that must lie in the file, piece by piece.
async fn read_table(io: &Io, file: NodeId, what: &'static str, sector: u64, len: u64) -> Result<Vec<u8>> {
    let file_len = io.len(file);
    let at = sector.saturating_mul(SECTOR);
    if len > 0 && (sector == 0 || at.checked_add(len).is_none_or(|end| end > file_len)) {
        let fault = Box::new(VmdkError::Outside { what, at, len, file_len });
        return Err(Box::new(Error::Format { node: io.title(file), fault }));
    }
    let mut table = Vec::new();
    while (table.len() as u64) < len {
        let done = table.len() as u64;
        let piece = (len - done).min(PIECE) as usize;
        table.extend_from_slice(&io.read_bytes("vmdk.open/directory", file, at + done, piece).await?);
    }
    Ok(table)
}

/// Opens a `COWD` extent, for reading.
async fn open_cowd(io: &Io, file: NodeId, role: Role) -> Result<Sparse> {
    let name = io.title(file);
    let fail = |fault| Error::format(&*name, fault);
    let file_len = io.len(file);
    let head_len = file_len.min(HEADER_LEN as u64) as usize;
    let head = io.read_bytes("vmdk.open/header", file, 0, head_len).await?;
    let header = CowdHeader::parse(&head).map_err(fail)?;
    let directory = read_directory(io, file, "grain directory", header.directory_at, header.tables).await?;
    let grain_len = header.grain_sectors * SECTOR;
    Ok(Sparse {
        role,
        len: header.capacity * SECTOR,
        grain_len,
        table_entries: CowdHeader::TABLE_ENTRIES.into(),
        encoding: Encoding::Sectors { zeroed: false, overhead: 1 },
        packing: Packing::None,
        file_len,
        header: None,
        directory,
        copies: Vec::new(),
        tables: SliceCache::new(CowdHeader::TABLE_ENTRIES as usize * 4, CACHE_LEN).into(),
        space: space(io, file, SECTOR, 0),
        begun: Cell::new(false),
        file: name,
    })
}

/// Opens an `seSparse` extent, for reading.
async fn open_se_sparse(io: &Io, file: NodeId, role: Role) -> Result<Sparse> {
    let name = io.title(file);
    let fail = |fault| Error::format(&*name, fault);
    let file_len = io.len(file);
    if file_len < HEADER_LEN as u64 {
        let (found, expected) = (file_len, HEADER_LEN as u64);
        return Err(fail(VmdkError::TooShort { what: "seSparse header", found, expected }));
    }
    let head = io.read_bytes("vmdk.open/header", file, 0, HEADER_LEN).await?;
    let header = SeSparseHeader::parse(head[..].try_into().expect("read so many")).map_err(fail)?;
    let volatile = read_table(io, file, "volatile header", header.volatile_at, SECTOR).await?;
    if SeSparseHeader::replays_journal(&volatile).map_err(fail)? {
        return Err(fail(VmdkError::Journal { name: name.clone() }));
    }
    let table_len = SeSparseHeader::TABLE_ENTRIES as usize * 8;
    let tables = header.tables_sectors / (table_len as u64 / SECTOR);
    let bytes = read_table(io, file, "grain directory", header.directory_at, header.tables() * 8).await?;
    let mut directory = Vec::with_capacity(bytes.len() / 8);
    for (eight, index) in bytes.chunks_exact(8).zip(0..) {
        let raw = u64::from_le_bytes(eight.try_into().expect("eight bytes"));
        directory.push(match (raw >> 32, raw as u32) {
            (0, 0) => 0,
            (0x1000_0000, number) if u64::from(number) < tables && number != u32::MAX => number + 1,
            _ => {
                let (file, at) = (name.clone(), raw);
                return Err(fail(VmdkError::TablePlace { file, index, at, file_len }));
            }
        });
    }
    Ok(Sparse {
        role,
        len: header.capacity.saturating_mul(SECTOR),
        grain_len: SeSparseHeader::GRAIN_SECTORS * SECTOR,
        table_entries: SeSparseHeader::TABLE_ENTRIES.into(),
        encoding: Encoding::SeSparse { grains_at: header.grains_at, tables_at: header.tables_at },
        packing: Packing::None,
        file_len,
        header: None,
        directory,
        copies: Vec::new(),
        tables: SliceCache::new(table_len, CACHE_LEN).into(),
        space: space(io, file, SECTOR, 0),
        begun: Cell::new(false),
        file: name,
    })
}

/// A parent that was written to shows other bytes than those that the image was made above.
fn check_parent(opening: &Opening<'_>, descriptor: &Descriptor) -> Result<(), VmdkError> {
    let io = opening.io;
    let Some(mut parent) = opening.edges.at(Role::Backing) else { return Ok(()) };
    while io.driver(parent).is_some_and(|driver| driver.is_filter())
        && let Some(below) = io.edge(parent, Role::File)
    {
        parent = below;
    }
    let driver = io.driver(parent);
    let name = io.title(parent);
    let Some(image) = driver.as_ref().and_then(|driver| driver.as_any().downcast_ref::<Vmdk>()) else {
        return Err(VmdkError::ParentFormat { name });
    };
    let (found, expected) = (image.descriptor.borrow().cid, descriptor.parent_cid);
    if found != expected { Err(VmdkError::ParentChanged { name, found, expected }) } else { Ok(()) }
}

impl Vmdk {
    /// Reads a grain table. Two that miss the same table read it once.
    pub(super) async fn load_table(&self, io: &Io, part: usize, at: HostOffset) -> Result<()> {
        let part = &self.parts[part];
        let sparse = part.sparse().expect("only sparse extents miss tables");
        let there = || sparse.tables.borrow().find(at).is_some();
        part.loads.once(&io.shared().tasks, at, there, self.read_table(io, sparse, at)).await
    }

    async fn read_table(&self, io: &Io, sparse: &Sparse, at: HostOffset) -> Result<()> {
        let len = sparse.table_len();
        let bytes = io.read_bytes("vmdk.load/grain_table", io.child(sparse.role), at.0, len).await?;
        while !sparse.tables.borrow().has_room() {
            // All tables hold changes: writing them out makes room.
            self.commit(io).await?;
        }
        let inserted = sparse.tables.borrow_mut().insert(at, bytes);
        inserted.map(drop).map_err(|_| self.fail(VmdkError::CacheExhausted))
    }
}
