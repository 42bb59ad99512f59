//! Create: the files of an empty image.
//!
//! Order on disk: extents before the descriptor that names them; in a sparse extent everything else, a barrier, the header,
//! a barrier; of a descriptor everything else before its first sector. Until then no file is an image.

use super::descriptor::{Descriptor, ExtentKind, ExtentLine, LineAccess};
use super::layout::{DIRECTORY_ENTRIES_MAX, Flags, SECTOR, SparseHeader};
use super::{Vmdk, VmdkError};
use crate::buf::Buf;
use crate::engine::Io;
use crate::error::{Error, Result};
use crate::graph::NodeId;
use crate::graph::open::{OpenMode, beside, open};
use crate::graph::options::from_filename;
use crate::intent::{Fua, Preallocation, ZeroFlags};

/// Sectors of an extent at the most, where the disk is cut up.
const SPLIT_SECTORS: u64 = (2 << 30) / SECTOR;

/// Sectors of a grain table.
const TABLE_SECTORS: u64 = 4;

/// Bytes of a grain directory that are written at once.
const PIECE: usize = 1 << 20;

/// How an image is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Subformat {
    /// One sparse extent with the descriptor in it.
    #[default]
    MonolithicSparse,
    /// A descriptor, and one flat extent.
    MonolithicFlat,
    /// A descriptor, and sparse extents of 2 GiB.
    TwoGbMaxExtentSparse,
    /// A descriptor, and flat extents of 2 GiB.
    TwoGbMaxExtentFlat,
    /// One sparse extent of compressed grains.
    StreamOptimized,
}

impl Subformat {
    const ALL: [(&'static str, Self); 5] = [
        ("monolithicSparse", Self::MonolithicSparse),
        ("monolithicFlat", Self::MonolithicFlat),
        ("twoGbMaxExtentSparse", Self::TwoGbMaxExtentSparse),
        ("twoGbMaxExtentFlat", Self::TwoGbMaxExtentFlat),
        ("streamOptimized", Self::StreamOptimized),
    ];

    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind)
    }

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }

    fn is_flat(self) -> bool {
        matches!(self, Self::MonolithicFlat | Self::TwoGbMaxExtentFlat)
    }

    fn is_split(self) -> bool {
        matches!(self, Self::TwoGbMaxExtentSparse | Self::TwoGbMaxExtentFlat)
    }

    fn embeds(self) -> bool {
        matches!(self, Self::MonolithicSparse | Self::StreamOptimized)
    }
}

/// What the disk is attached to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Adapter {
    /// `ide`.
    #[default]
    Ide,
    /// `buslogic`.
    BusLogic,
    /// `lsilogic`.
    LsiLogic,
    /// `legacyESX`.
    LegacyEsx,
}

impl Adapter {
    const ALL: [(&'static str, Self); 4] = [
        ("ide", Self::Ide),
        ("buslogic", Self::BusLogic),
        ("lsilogic", Self::LsiLogic),
        ("legacyESX", Self::LegacyEsx),
    ];

    /// The adapter of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, adapter)| *adapter)
    }

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, adapter)| *adapter == self).map_or("", |(name, _)| name)
    }

    fn heads(self) -> u64 {
        if self == Self::Ide { 16 } else { 255 }
    }
}

/// What a new image is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// Bytes of the disk: whole sectors.
    pub size: u64,
    /// How it is kept.
    pub subformat: Subformat,
    /// What it is attached to.
    pub adapter: Adapter,
    /// The parent's name, as it is written into the image.
    pub backing: Option<String>,
    /// The version of the virtual hardware.
    pub hw_version: String,
    /// The version of the guest's tools.
    pub tools_version: String,
    /// Whether zeros of a grain are an entry, and take no space.
    pub zeroed_grain: bool,
}

impl CreateOptions {
    /// A sparse image in one file.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            subformat: Subformat::default(),
            adapter: Adapter::default(),
            backing: None,
            hw_version: "4".into(),
            tools_version: "2147483647".into(),
            zeroed_grain: false,
        }
    }

    /// The files that the image needs, in the order in which they are made; each is filled by [`create`].
    ///
    /// # Errors
    /// When the options do not go together, or the parent is no VMDK image or cannot be read.
    pub(crate) async fn files(&self, io: &Io, path: &str) -> Result<Vec<NewFile>> {
        let refused = |fault| Error::format(path, fault);
        self.check().map_err(refused)?;
        let parent_cid = match &self.backing {
            None => u32::MAX,
            Some(name) => read_cid(io, &beside(path, name)).await?,
        };
        let (folder, name) = path.rsplit_once('/').map_or(("", path), |(folder, name)| (folder, name));
        if name.contains(['"', '\n', '\r']) {
            return Err(refused(VmdkError::CannotName { name: name.into() }));
        }
        let lines = self.lines(name);
        let text = self.text(&lines, parent_cid);
        if self.subformat.embeds() {
            let content = Content::Sparse(self.header(self.size / SECTOR), Some(text));
            return Ok(vec![NewFile { path: path.into(), content }]);
        }
        let in_folder = |name: &str| {
            if folder.is_empty() && !path.starts_with('/') { name.into() } else { format!("{folder}/{name}") }
        };
        let extent = |line: &ExtentLine| NewFile {
            path: in_folder(&line.name),
            content: match self.subformat.is_flat() {
                true => Content::Flat(line.sectors * SECTOR),
                false => Content::Sparse(self.header(line.sectors), None),
            },
        };
        let mut files: Vec<NewFile> = lines.iter().map(extent).collect();
        files.push(NewFile { path: path.into(), content: Content::Descriptor(text) });
        Ok(files)
    }

    fn check(&self) -> Result<(), VmdkError> {
        let flat = self.subformat.is_flat();
        if flat && self.backing.is_some() {
            return Err(VmdkError::Option("Flat image can't have backing file"));
        }
        if flat && self.zeroed_grain {
            return Err(VmdkError::Option("Flat image can't enable zeroed grain"));
        }
        if self.size == 0 && !self.subformat.embeds() {
            return Err(VmdkError::Option("an image of several files needs a size above zero"));
        }
        let grains = self.header(self.size / SECTOR);
        if !flat && grains.tables() > DIRECTORY_ENTRIES_MAX {
            let max = DIRECTORY_ENTRIES_MAX * u64::from(grains.table_entries) * grains.grain_sectors * SECTOR;
            return Err(VmdkError::TooLarge { max });
        }
        if self.subformat.is_split()
            && self.size.div_ceil(SPLIT_SECTORS * SECTOR) > super::descriptor::EXTENTS_MAX as u64
        {
            return Err(VmdkError::TooManyExtents { max: super::descriptor::EXTENTS_MAX });
        }
        Ok(())
    }

    /// The extents of an image of that name.
    fn lines(&self, name: &str) -> Vec<ExtentLine> {
        let (stem, ending) = match name.rfind('.') {
            Some(dot) => name.split_at(dot),
            None => (name, ""),
        };
        let kind = if self.subformat.is_flat() { ExtentKind::Flat } else { ExtentKind::Sparse };
        let sectors = self.size / SECTOR;
        let split = if self.subformat.is_split() { SPLIT_SECTORS } else { sectors.max(1) };
        let line = |(first, number): (u64, u32)| ExtentLine {
            access: LineAccess::ReadWrite,
            sectors: (sectors - first).min(split),
            kind,
            name: match self.subformat {
                Subformat::TwoGbMaxExtentSparse => format!("{stem}-s{number:03}{ending}"),
                Subformat::TwoGbMaxExtentFlat => format!("{stem}-f{number:03}{ending}"),
                Subformat::MonolithicFlat => format!("{stem}-flat{ending}"),
                Subformat::MonolithicSparse | Subformat::StreamOptimized => name.into(),
            },
            first: 0,
        };
        // The one extent of an empty disk is shown all the same.
        let firsts = (0..sectors.max(1)).step_by(usize::try_from(split).unwrap_or(usize::MAX));
        firsts.zip(1..).map(line).collect()
    }

    /// The descriptor, with a content ID that is yet to be chosen.
    fn text(&self, lines: &[ExtentLine], parent_cid: u32) -> String {
        let heads = self.adapter.heads();
        let cylinders = self.size / SECTOR / (63 * heads);
        let parent = self.backing.as_ref().map(|name| format!("parentFileNameHint=\"{name}\"\n"));
        let mut text = format!(
            "# Disk DescriptorFile\nversion=1\nCID=00000000\nparentCID={parent_cid:08x}\ncreateType=\"{}\"\n{}\n# Extent \
             description\n",
            self.subformat.name(),
            parent.unwrap_or_default(),
        );
        for line in lines {
            text.push_str(&line.render());
            text.push('\n');
        }
        text.push_str(&format!(
            "\n# The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = \"{}\"\nddb.geometry.cylinders = \"{cylinders}\"\n\
             ddb.geometry.heads = \"{heads}\"\nddb.geometry.sectors = \"63\"\nddb.adapterType = \"{}\"\n\
             ddb.toolsVersion = \"{}\"\n",
            self.hw_version,
            self.adapter.name(),
            self.tools_version,
        ));
        text
    }

    /// The header of a sparse extent: descriptor, redundant directory and its tables, directory and its tables.
    fn header(&self, capacity: u64) -> SparseHeader {
        let packed = self.subformat == Subformat::StreamOptimized;
        let mut flags = Flags::NEWLINES | Flags::REDUNDANT;
        let version = match (packed, self.zeroed_grain) {
            (true, _) => 3,
            (false, true) => 2,
            (false, false) => 1,
        };
        if packed {
            flags |= Flags::COMPRESSED | Flags::MARKERS;
        }
        if self.zeroed_grain {
            flags |= Flags::ZEROED_GRAINS;
        }
        let mut header = SparseHeader::new(capacity, version, Flags(flags));
        let directory_at = header.redundant_at + directory_sectors(&header) + header.tables() * TABLE_SECTORS;
        let end = directory_at + directory_sectors(&header) + header.tables() * TABLE_SECTORS;
        header.directory_at = Some(directory_at);
        header.overhead = end.next_multiple_of(header.grain_sectors);
        header
    }
}

fn directory_sectors(header: &SparseHeader) -> u64 {
    (header.tables() * 4).div_ceil(SECTOR)
}

/// The content ID of an image.
async fn read_cid(io: &Io, path: &str) -> Result<u32> {
    let spec = from_filename(path, Some("vmdk"), OpenMode::default())?.metadata_only();
    let node = open(io, &spec).await?;
    let driver = io.driver(node);
    let image = driver.as_ref().and_then(|driver| driver.as_any().downcast_ref::<Vmdk>());
    let cid = image.map(|image| image.descriptor.borrow().cid);
    io.close(node).await?;
    cid.ok_or_else(|| {
        let fault = Box::new(VmdkError::ParentFormat { name: path.into() });
        Box::new(Error::Format { node: path.into(), fault })
    })
}

/// A file of a new image.
pub(crate) struct NewFile {
    /// Where.
    pub(crate) path: String,
    content: Content,
}

enum Content {
    /// Zeros.
    Flat(u64),
    Sparse(SparseHeader, Option<String>),
    Descriptor(String),
}

/// Fills an empty file of a new image.
///
/// # Errors
/// When it cannot be written, or the descriptor has no room.
pub(crate) async fn create(io: &Io, file: NodeId, new: &NewFile) -> Result<()> {
    match &new.content {
        Content::Flat(len) => {
            io.set_len(file, *len, Preallocation::Off).await?;
            io.flush("vmdk.create/after", file).await
        }
        Content::Sparse(header, text) => create_sparse(io, file, header, text.as_deref()).await,
        Content::Descriptor(text) => {
            let text = with_new_cid(io, file, text).await?;
            let (head, rest) = text.split_at(text.len().min(SECTOR as usize));
            if !rest.is_empty() {
                io.write("vmdk.create/descriptor", file, SECTOR, Buf::from(rest), Fua::No).await.1?;
                io.flush("vmdk.create/before_header", file).await?;
            }
            io.write("vmdk.create/header", file, 0, Buf::from(head), Fua::No).await.1?;
            io.flush("vmdk.create/after", file).await
        }
    }
}

async fn create_sparse(io: &Io, file: NodeId, header: &SparseHeader, text: Option<&str>) -> Result<()> {
    let end = header.overhead * SECTOR;
    io.set_len(file, end, Preallocation::Off).await?;
    if !io.leaf_info(file).is_some_and(|leaf| leaf.grows_as_zeroes) {
        io.write_zeroes("vmdk.create/tables", file, 0, end, ZeroFlags::default()).await?;
    }
    for directory_at in [header.redundant_at, header.directory_at.unwrap_or(0)] {
        let first = directory_at + directory_sectors(header);
        let tables = (0..header.tables()).map(|index| (first + index * TABLE_SECTORS) as u32);
        let bytes: Vec<u8> = tables.flat_map(u32::to_le_bytes).collect();
        for (piece, nth) in bytes.chunks(PIECE).zip(0..) {
            let mut sectors = piece.to_vec();
            sectors.resize(sectors.len().next_multiple_of(SECTOR as usize), 0);
            let at = directory_at * SECTOR + nth * PIECE as u64;
            io.write("vmdk.create/directory", file, at, Buf::from(sectors), Fua::No).await.1?;
        }
    }
    if let Some(text) = text {
        let mut text = with_new_cid(io, file, text).await?;
        let max = header.descriptor_sectors * SECTOR;
        let found = text.len() as u64;
        if found > max {
            let fault = Box::new(VmdkError::DescriptorFull { found, max });
            return Err(Box::new(Error::Format { node: io.title(file), fault }));
        }
        text.resize(super::whole_sectors(found) as usize, 0);
        let at = header.descriptor_at * SECTOR;
        io.write("vmdk.create/descriptor", file, at, Buf::from(text), Fua::No).await.1?;
    }
    io.flush("vmdk.create/before_header", file).await?;
    io.write("vmdk.create/header", file, 0, Buf::from(&header.encode()[..]), Fua::No).await.1?;
    io.flush("vmdk.create/after", file).await
}

/// The descriptor with a content ID that nobody foretells.
async fn with_new_cid(io: &Io, file: NodeId, text: &str) -> Result<Vec<u8>> {
    let cid = u32::from_le_bytes(io.entropy::<4>(file).await?);
    let fail = |fault| Error::format(io.title(file), fault);
    let descriptor = Descriptor::parse(text.as_bytes()).map_err(fail)?;
    // All ones stand for no parent.
    Ok(descriptor.with_cid(if cid == u32::MAX { 0 } else { cid }).text().to_vec())
}
