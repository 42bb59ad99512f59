//! The header and its extensions. Source: \[qcow2\] "Header", "Header extensions".

use nom::Parser;
use nom::bytes::complete::take;
use nom::number::complete::{be_u32, be_u64};

use super::{ClusterBits, HostOffset, L1_LEN_MAX, MAGIC, REFCOUNT_TABLE_LEN_MAX, RefcountWidth, check_table};
use crate::compute::Codec;
use crate::format::qcow2::Qcow2Error;

/// Bytes of a version 2 header.
const V2_LEN: usize = 72;
/// Bytes of the shortest version 3 header.
const V3_LEN_MIN: usize = 104;
/// Bytes of the header that we write.
const V3_LEN: usize = 112;
/// Bytes of a backing file's name at the most.
pub(in crate::format::qcow2) const BACKING_NAME_MAX: usize = 1023;

/// Numbers that name header extensions.
pub mod extension_kind {
    /// Ends the list.
    pub const END: u32 = 0;
    /// Name of the backing file's format.
    pub const BACKING_FORMAT: u32 = 0xe279_2aca;
    /// Names of feature bits.
    pub const FEATURE_NAMES: u32 = 0x6803_f857;
    /// Where the dirty bitmaps are.
    pub const BITMAPS: u32 = 0x2385_2875;
    /// Where the LUKS header is.
    pub const CRYPTO_HEADER: u32 = 0x0537_be77;
    /// Name of the external data file.
    pub const DATA_FILE: u32 = 0x4441_5441;
}

/// Features that a reader must know, or refuse the image.
pub struct Incompatible;

impl Incompatible {
    /// Refcounts may be wrong: the image was not closed.
    pub const DIRTY: u64 = 1;
    /// Metadata may be wrong: writing is forbidden.
    pub const CORRUPT: u64 = 1 << 1;
    /// Guest data is in another file.
    pub const DATA_FILE: u64 = 1 << 2;
    /// Clusters are compressed by another method than zlib.
    pub const COMPRESSION: u64 = 1 << 3;
    /// L2 entries have 16 bytes, and clusters 32 subclusters.
    pub const EXTENDED_L2: u64 = 1 << 4;
    const ALL: u64 = 0x1f;
}

/// Features that a reader may ignore.
pub struct Compatible;

impl Compatible {
    /// Refcounts are written late, under the dirty bit.
    pub const LAZY_REFCOUNTS: u64 = 1;
}

/// Features that a writer must clear when it does not know them.
pub struct Autoclear;

impl Autoclear {
    /// The dirty bitmaps are consistent with the data.
    pub const BITMAPS: u64 = 1;
    /// The external data file can be read as a raw image.
    pub const RAW_DATA_FILE: u64 = 1 << 1;
}

/// How guest data is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crypt {
    /// Not at all.
    None,
    /// AES-128-CBC with a key from a password, long deprecated.
    Aes,
    /// LUKS, its header named by an extension.
    Luks,
}

/// A header extension that is kept as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// Which one.
    pub kind: u32,
    /// Its content, without padding.
    pub data: Vec<u8>,
}

/// The header, its extensions, and the name of the backing file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Cluster size.
    pub cluster_bits: ClusterBits,
    /// Length of the disk that the guest sees, in bytes.
    pub size: u64,
    /// Encryption.
    pub crypt: Crypt,
    /// Entries of the active L1 table.
    pub l1_entries: u32,
    /// Place of the active L1 table.
    pub l1_offset: HostOffset,
    /// Place of the refcount table.
    pub refcount_table_offset: HostOffset,
    /// Clusters of the refcount table.
    pub refcount_table_clusters: u32,
    /// Entries of the snapshot table.
    pub snapshot_count: u32,
    /// Place of the snapshot table.
    pub snapshots_offset: HostOffset,
    /// [`Incompatible`] bits.
    pub incompatible: u64,
    /// [`Compatible`] bits.
    pub compatible: u64,
    /// [`Autoclear`] bits.
    pub autoclear: u64,
    /// Bits of a refcount.
    pub refcount_width: RefcountWidth,
    /// How clusters are compressed.
    pub compression: Codec,
    /// Bytes of the header that newer versions may add; kept.
    pub more: Vec<u8>,
    /// Name of the backing file.
    pub backing_file: Option<String>,
    /// Format of the backing file.
    pub backing_format: Option<String>,
    /// Name of the external data file.
    pub data_file: Option<String>,
    /// The other extensions, in their order.
    pub extensions: Vec<Extension>,
}

impl Header {
    /// Whether all of some incompatible feature bits are set.
    pub fn has(&self, incompatible: u64) -> bool {
        self.incompatible & incompatible == incompatible
    }

    /// Whether refcounts may be written late.
    pub fn lazy_refcounts(&self) -> bool {
        self.compatible & Compatible::LAZY_REFCOUNTS != 0
    }

    /// Bytes of one L2 entry.
    pub fn l2_entry_len(&self) -> usize {
        if self.has(Incompatible::EXTENDED_L2) { 16 } else { 8 }
    }

    /// Entries that an L1 table for `size` bytes needs.
    pub fn l1_entries_for(&self, size: u64) -> u64 {
        let l2_entries = self.cluster_bits.size() / self.l2_entry_len() as u64;
        size.div_ceil(self.cluster_bits.size()).div_ceil(l2_entries)
    }

    /// The content of an extension that is kept as it is.
    pub fn extension(&self, kind: u32) -> Option<&[u8]> {
        self.extensions.iter().find(|extension| extension.kind == kind).map(|extension| &extension.data[..])
    }

    /// Bytes that [`parse`](Self::parse) wants to see: 64 KiB hold all that it reads of any cluster size up to that,
    /// and the first cluster where it is larger.
    pub fn cluster_size_of(bytes: &[u8]) -> Option<u64> {
        let bits = u32::from_be_bytes(bytes.get(20..24)?.try_into().ok()?);
        ClusterBits::new(bits).map(ClusterBits::size)
    }

    /// Reads the header from the first cluster of an image.
    ///
    /// # Errors
    /// Names the field that is wrong, where it is, and what it may be.
    pub fn parse(bytes: &[u8]) -> Result<Self, Qcow2Error> {
        let fixed = Fixed::parse(bytes)?;
        let v3 = V3Fields::parse(bytes, &fixed)?;
        let cluster_bits = ClusterBits::new(fixed.cluster_bits)
            .ok_or(Qcow2Error::ClusterSize { bits: fixed.cluster_bits })?;
        let header_len = v3.header_len;
        if header_len as u64 > cluster_bits.size() {
            return Err(Qcow2Error::HeaderTooLong { len: header_len as u64, max: cluster_bits.size() });
        }
        let first_cluster = &bytes[..bytes.len().min(cluster_bits.size() as usize)];
        let backing_file = fixed.backing_name(first_cluster, header_len)?;
        let extensions_end = match backing_file {
            Some(_) => fixed.backing_offset as usize,
            None => first_cluster.len(),
        };
        let extensions = parse_extensions(first_cluster, header_len, extensions_end);
        let unknown = v3.incompatible & !Incompatible::ALL;
        if unknown != 0 {
            let extensions = extensions.unwrap_or_default();
            return Err(Qcow2Error::Features { names: feature_names(&extensions, unknown) });
        }
        let width = RefcountWidth::new(v3.refcount_order)
            .ok_or(Qcow2Error::RefcountWidth { order: v3.refcount_order })?;
        let mut header = Self {
            version: fixed.version,
            cluster_bits,
            size: fixed.size,
            crypt: fixed.crypt()?,
            l1_entries: fixed.l1_entries,
            l1_offset: HostOffset(fixed.l1_offset),
            refcount_table_offset: HostOffset(fixed.refcount_table_offset),
            refcount_table_clusters: fixed.refcount_table_clusters,
            snapshot_count: fixed.snapshot_count,
            snapshots_offset: HostOffset(fixed.snapshots_offset),
            incompatible: v3.incompatible,
            compatible: v3.compatible,
            autoclear: v3.autoclear,
            refcount_width: width,
            compression: v3.compression()?,
            more: v3.more,
            backing_file,
            backing_format: None,
            data_file: None,
            extensions: Vec::new(),
        };
        header.take_extensions(extensions?)?;
        header.check_tables()?;
        Ok(header)
    }

    fn take_extensions(&mut self, extensions: Vec<Extension>) -> Result<(), Qcow2Error> {
        for Extension { kind, data } in extensions {
            match kind {
                extension_kind::BACKING_FORMAT if data.len() > 15 => {
                    return Err(Qcow2Error::ExtensionLen { kind, len: data.len() as u64, room: 15 });
                }
                extension_kind::BACKING_FORMAT => self.backing_format = Some(text(data, "backing format")?),
                extension_kind::DATA_FILE => self.data_file = Some(text(data, "data file name")?),
                _ => self.extensions.push(Extension { kind, data }),
            }
        }
        Ok(())
    }

    /// Whether the tables that the header names can be where it says.
    ///
    /// # Errors
    /// Names the table, and what is wrong with its place or size.
    pub fn check_tables(&self) -> Result<(), Qcow2Error> {
        let bits = self.cluster_bits;
        if self.has(Incompatible::EXTENDED_L2) && bits.bits() < 14 {
            return Err(Qcow2Error::ExtendedL2ClusterSize { cluster_size: bits.size() });
        }
        let len = u64::from(self.refcount_table_clusters) << bits.bits();
        check_table("Reference count table", self.refcount_table_offset, len, REFCOUNT_TABLE_LEN_MAX, bits)?;
        let len = u64::from(self.l1_entries) * 8;
        check_table("Active L1 table", self.l1_offset, len, L1_LEN_MAX, bits)?;
        if u64::from(self.l1_entries) < self.l1_entries_for(self.size) {
            return Err(Qcow2Error::L1TooSmall {
                entries: self.l1_entries,
                needed: self.l1_entries_for(self.size),
            });
        }
        Ok(())
    }

    /// The inverse of [`parse`](Self::parse): the header, extensions and name, without what follows in the cluster.
    ///
    /// # Errors
    /// When all of it does not fit the first cluster.
    pub fn encode(&self) -> Result<Vec<u8>, Qcow2Error> {
        let mut out = self.encode_fields();
        let mut push = |kind: u32, data: &[u8]| {
            out.extend(kind.to_be_bytes());
            out.extend(u32::try_from(data.len()).expect("an extension fits a cluster").to_be_bytes());
            out.extend(data);
            out.resize(out.len().next_multiple_of(8), 0);
        };
        if let Some(format) = &self.backing_format {
            push(extension_kind::BACKING_FORMAT, format.as_bytes());
        }
        if let Some(name) = &self.data_file {
            push(extension_kind::DATA_FILE, name.as_bytes());
        }
        for extension in &self.extensions {
            push(extension.kind, &extension.data);
        }
        push(extension_kind::END, &[]);
        if let Some(name) = &self.backing_file {
            let offset = out.len() as u64;
            out[8..16].copy_from_slice(&offset.to_be_bytes());
            out[16..20].copy_from_slice(&(name.len() as u32).to_be_bytes());
            out.extend(name.as_bytes());
        }
        if out.len() as u64 > self.cluster_bits.size() {
            return Err(Qcow2Error::HeaderTooLong { len: out.len() as u64, max: self.cluster_bits.size() });
        }
        Ok(out)
    }

    fn encode_fields(&self) -> Vec<u8> {
        let crypt = match self.crypt {
            Crypt::None => 0u32,
            Crypt::Aes => 1,
            Crypt::Luks => 2,
        };
        let mut out = Vec::with_capacity(self.cluster_bits.size().min(4096) as usize);
        out.extend(MAGIC.to_be_bytes());
        out.extend(self.version.to_be_bytes());
        out.extend([0; 12]); // name of the backing file, filled in once its place is known
        out.extend(self.cluster_bits.bits().to_be_bytes());
        out.extend(self.size.to_be_bytes());
        out.extend(crypt.to_be_bytes());
        out.extend(self.l1_entries.to_be_bytes());
        out.extend(self.l1_offset.0.to_be_bytes());
        out.extend(self.refcount_table_offset.0.to_be_bytes());
        out.extend(self.refcount_table_clusters.to_be_bytes());
        out.extend(self.snapshot_count.to_be_bytes());
        out.extend(self.snapshots_offset.0.to_be_bytes());
        if self.version == 2 {
            return out;
        }
        out.extend(self.incompatible.to_be_bytes());
        out.extend(self.compatible.to_be_bytes());
        out.extend(self.autoclear.to_be_bytes());
        out.extend(self.refcount_width.order().to_be_bytes());
        out.extend(((V3_LEN + self.more.len()) as u32).to_be_bytes());
        out.push(match self.compression {
            Codec::Zstd => 1,
            // The third codec is not one of this format's, and no parsed header holds it.
            Codec::Zlib | Codec::ZlibStream => 0,
        });
        out.resize(V3_LEN, 0);
        out.extend(&self.more);
        out
    }

    /// The extension that names all feature bits of the format, which images carry for readers that lack some.
    pub fn feature_name_table() -> Extension {
        const NAMES: [(u8, u8, &str); 8] = [
            (0, 0, "dirty bit"),
            (0, 1, "corrupt bit"),
            (0, 2, "external data file"),
            (0, 3, "compression type"),
            (0, 4, "extended L2 entries"),
            (1, 0, "lazy refcounts"),
            (2, 0, "bitmaps"),
            (2, 1, "raw external data"),
        ];
        let mut data = Vec::with_capacity(48 * NAMES.len());
        for (kind, bit, name) in NAMES {
            let start = data.len();
            data.extend([kind, bit]);
            data.extend(name.as_bytes());
            data.resize(start + 48, 0);
        }
        Extension { kind: extension_kind::FEATURE_NAMES, data }
    }
}

/// The fields that both versions have, as they are in the file.
struct Fixed {
    version: u32,
    backing_offset: u64,
    backing_len: u32,
    cluster_bits: u32,
    size: u64,
    crypt: u32,
    l1_entries: u32,
    l1_offset: u64,
    refcount_table_offset: u64,
    refcount_table_clusters: u32,
    snapshot_count: u32,
    snapshots_offset: u64,
}

impl Fixed {
    fn parse(bytes: &[u8]) -> Result<Self, Qcow2Error> {
        let magic = bytes.get(..4).is_some_and(|magic| magic == MAGIC.to_be_bytes());
        if !magic {
            return Err(Qcow2Error::NotQcow2);
        }
        let head =
            (be_u32, be_u32, be_u64, be_u32, be_u32, be_u64, be_u32, be_u32, be_u64, be_u64, be_u32, be_u32);
        let (_, (fields, snapshots_offset)) = (head, be_u64::<_, ()>)
            .parse(bytes)
            .map_err(|_| Qcow2Error::HeaderTooShort { len: bytes.len() as u64, min: V2_LEN as u64 })?;
        let (
            _,
            version,
            backing_offset,
            backing_len,
            cluster_bits,
            size,
            crypt,
            l1_entries,
            l1_offset,
            rt,
            rtc,
            snapshots,
        ) = fields;
        if !(2..=3).contains(&version) {
            return Err(Qcow2Error::Version { found: version });
        }
        if size > i64::MAX as u64 {
            return Err(Qcow2Error::Size { found: size });
        }
        Ok(Self {
            version,
            backing_offset,
            backing_len,
            cluster_bits,
            size,
            crypt,
            l1_entries,
            l1_offset,
            refcount_table_offset: rt,
            refcount_table_clusters: rtc,
            snapshot_count: snapshots,
            snapshots_offset,
        })
    }

    fn crypt(&self) -> Result<Crypt, Qcow2Error> {
        match self.crypt {
            0 => Ok(Crypt::None),
            1 => Ok(Crypt::Aes),
            2 => Ok(Crypt::Luks),
            found => Err(Qcow2Error::CryptMethod { found }),
        }
    }

    fn backing_name(&self, first_cluster: &[u8], header_len: usize) -> Result<Option<String>, Qcow2Error> {
        if self.backing_offset == 0 {
            return Ok(None);
        }
        let (start, len) = (self.backing_offset, self.backing_len as usize);
        if len > BACKING_NAME_MAX {
            return Err(Qcow2Error::BackingNameLen { len: len as u64, max: BACKING_NAME_MAX as u64 });
        }
        let name = usize::try_from(start)
            .ok()
            .filter(|start| *start >= header_len)
            .and_then(|start| first_cluster.get(start..start.checked_add(len)?))
            .ok_or(Qcow2Error::BackingNameOffset { offset: start, len: len as u64 })?;
        // QEMU takes a name of no bytes for no backing file.
        if len == 0 { Ok(None) } else { text(name.to_vec(), "backing file name").map(Some) }
    }
}

/// The fields of version 3, or what version 2 has in their place.
struct V3Fields {
    incompatible: u64,
    compatible: u64,
    autoclear: u64,
    refcount_order: u32,
    header_len: usize,
    compression: u8,
    more: Vec<u8>,
}

impl V3Fields {
    fn parse(bytes: &[u8], fixed: &Fixed) -> Result<Self, Qcow2Error> {
        if fixed.version == 2 {
            return Ok(Self {
                incompatible: 0,
                compatible: 0,
                autoclear: 0,
                refcount_order: 4,
                header_len: V2_LEN,
                compression: 0,
                more: Vec::new(),
            });
        }
        let too_short = |len: usize| Qcow2Error::HeaderTooShort { len: len as u64, min: V3_LEN_MIN as u64 };
        let rest = bytes.get(V2_LEN..).unwrap_or_default();
        let (_, (incompatible, compatible, autoclear, refcount_order, header_len)) =
            (be_u64, be_u64, be_u64, be_u32, be_u32::<_, ()>)
                .parse(rest)
                .map_err(|_| too_short(bytes.len()))?;
        let header_len = header_len as usize;
        if header_len < V3_LEN_MIN || !header_len.is_multiple_of(8) {
            return Err(too_short(header_len));
        }
        if header_len > bytes.len() {
            return Err(Qcow2Error::HeaderTooLong { len: header_len as u64, max: bytes.len() as u64 });
        }
        let compression = if header_len > V3_LEN_MIN { bytes[V3_LEN_MIN] } else { 0 };
        let more = bytes[..header_len].get(V3_LEN..).unwrap_or_default().to_vec();
        Ok(Self { incompatible, compatible, autoclear, refcount_order, header_len, compression, more })
    }

    /// The method and the feature bit must agree: the bit is what keeps old readers away.
    fn compression(&self) -> Result<Codec, Qcow2Error> {
        let flagged = self.incompatible & Incompatible::COMPRESSION != 0;
        match (self.compression, flagged) {
            (0, false) => Ok(Codec::Zlib),
            (1, true) => Ok(Codec::Zstd),
            (found, _) => Err(Qcow2Error::CompressionType { found, flagged }),
        }
    }
}

/// Reads the extensions between the header and the backing file's name.
fn parse_extensions(cluster: &[u8], start: usize, end: usize) -> Result<Vec<Extension>, Qcow2Error> {
    let mut rest = cluster.get(start..end.min(cluster.len())).unwrap_or_default();
    let mut extensions = Vec::new();
    // An image of version 2 from before there were extensions may end without the mark.
    while rest.len() >= 8 {
        let (after, (kind, len)) = (be_u32, be_u32::<_, ()>).parse(rest).expect("eight bytes");
        let (after, data) = take::<_, _, ()>(len).parse(after).map_err(|_| Qcow2Error::ExtensionLen {
            kind,
            len: u64::from(len),
            room: after.len() as u64,
        })?;
        if kind == extension_kind::END {
            break;
        }
        extensions.push(Extension { kind, data: data.to_vec() });
        let padding = (8 - data.len() % 8) % 8;
        rest = after.get(padding..).unwrap_or_default();
    }
    Ok(extensions)
}

/// The names that the image itself gives to feature bits we do not know.
fn feature_names(extensions: &[Extension], bits: u64) -> String {
    let table = extensions.iter().find(|extension| extension.kind == extension_kind::FEATURE_NAMES);
    let entries = || table.into_iter().flat_map(|table| table.data.chunks_exact(48));
    let mut names = Vec::new();
    let mut nameless = 0u64;
    for bit in (0..64).filter(|bit| bits >> bit & 1 == 1) {
        match entries().find(|entry| entry[0] == 0 && u32::from(entry[1]) == bit) {
            Some(entry) => {
                let name = entry[2..].split(|byte| *byte == 0).next().unwrap_or_default();
                names.push(String::from_utf8_lossy(name).into_owned());
            }
            None => nameless |= 1 << bit,
        }
    }
    if nameless != 0 {
        names.push(format!("Unknown incompatible feature: {nameless:x}"));
    }
    names.join(", ")
}

fn text(bytes: Vec<u8>, field: &'static str) -> Result<String, Qcow2Error> {
    String::from_utf8(bytes)
        .map_err(|error| Qcow2Error::NotText { field, at: error.utf8_error().valid_up_to() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> Header {
        Header {
            version: 3,
            cluster_bits: ClusterBits::new(16).expect("legal"),
            size: 1 << 30,
            crypt: Crypt::None,
            l1_entries: 2,
            l1_offset: HostOffset(3 << 16),
            refcount_table_offset: HostOffset(1 << 16),
            refcount_table_clusters: 1,
            snapshot_count: 0,
            snapshots_offset: HostOffset(0),
            incompatible: 0,
            compatible: 0,
            autoclear: 0,
            refcount_width: RefcountWidth::new(4).expect("legal"),
            compression: Codec::Zlib,
            more: vec![],
            backing_file: Some("base.raw".into()),
            backing_format: Some("raw".into()),
            data_file: None,
            extensions: vec![Header::feature_name_table(), Extension { kind: 0x1234, data: vec![1, 2, 3] }],
        }
    }

    proptest! {
        #[test]
        fn a_header_survives_encoding(
            name in "[a-z/.]{1,60}", more in 0usize..4, data in proptest::collection::vec(any::<u8>(), 0..50),
        ) {
            let mut header = header();
            header.backing_file = Some(name);
            header.more = vec![7; more * 8];
            header.extensions.push(Extension { kind: 99, data });
            prop_assert_eq!(Header::parse(&header.encode().expect("fits")), Ok(header));
        }

        #[test]
        fn any_bytes_give_a_header_or_an_error(at in 0usize..700, bytes in proptest::collection::vec(any::<u8>(), 1..24)) {
            let mut image = header().encode().expect("fits");
            image.resize(4096, 0);
            image[at..at + bytes.len()].copy_from_slice(&bytes);
            if let Ok(header) = Header::parse(&image) {
                let again = header.encode().expect("fits");
                prop_assert_eq!(Header::parse(&again), Ok(header));
            }
        }
    }

    /// As the reference has it: the mark that ends the extensions is one itself.
    #[test]
    fn the_mark_at_the_end_fits_too() {
        let mut image = header().encode().expect("fits");
        let name = u64::from_be_bytes(image[8..16].try_into().expect("eight")) as usize;
        image[name - 1] = 1;
        let error = Header::parse(&image).expect_err("a byte where none is left");
        assert_eq!(error, Qcow2Error::ExtensionLen { kind: extension_kind::END, len: 1, room: 0 });
    }

    #[test]
    fn unknown_features_are_named_as_the_image_names_them() {
        let mut image = header().encode().expect("fits");
        image[79] = 0x60;
        let error = Header::parse(&image).expect_err("unknown features");
        let expected = "Unsupported qcow2 feature(s): Unknown incompatible feature: 60";
        assert_eq!(error.to_string(), expected);
    }
}
