//! The two copies of a LUKS2 header: which one counts, and how both are changed.
//!
//! Order on disk: the first copy whole, a barrier, the second one, a barrier; each with the number of changes one higher.
//! A crash before the first barrier leaves the second copy as it was, a crash after it leaves the first one as it is to be:
//! one of the two verifies at any time. A copy that does not verify is written anew from the other one, when the volume is
//! opened to be written to, and before anything else is.

use super::LuksError;
use super::keyslot::Place;
use super::layout::MAGIC;
use super::layout2::{BINARY_LEN, Copy, Header2, SIZES, checked_json};
use super::metadata::Metadata;
use crate::buf::{Buf, is_zero};
use crate::engine::Io;
use crate::error::Result;
use crate::graph::open::looks_like;
use crate::intent::Fua;

/// The header of a LUKS2 volume, from the copy that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header2Copies {
    /// The binary part.
    pub header: Header2,
    /// The rest.
    pub metadata: Metadata,
    /// The copy that does not verify or is older, where it may be written anew.
    pub(super) stale: Option<Copy>,
    /// Whether something else stands where the first copy was.
    pub(super) foreign: bool,
}

impl Header2Copies {
    /// Reads both copies and takes the one that counts: the later one of those that verify, and of two alike the first.
    ///
    /// # Errors
    /// When neither verifies, or they cannot be read.
    pub(super) async fn load(io: &Io, place: Place, head: &[u8]) -> Result<Self> {
        let primary = read_copy(io, place, Copy::Primary, 0).await?;
        // Where the other one is, the first one says, as far as it can be read at all.
        let said = Header2::parse(&padded(head), Copy::Primary, 0).ok().map(|header| header.size);
        let mut secondary = Err(LuksError::NotLuks);
        for size in
            said.into_iter().chain(SIZES.into_iter().filter(|size| said.is_none_or(|said| said != *size)))
        {
            match read_copy(io, place, Copy::Secondary, size).await? {
                Err(LuksError::NotLuks | LuksError::TooShort { .. }) if secondary.is_err() => {}
                found => {
                    secondary = found;
                    if secondary.is_ok() {
                        break;
                    }
                }
            }
            if primary.is_ok() {
                break;
            }
        }
        let copies = |(header, metadata), stale| Self { header, metadata, stale, foreign: false };
        match (primary, secondary) {
            (Ok(first), Ok(second)) if second.0.seqid > first.0.seqid => {
                Ok(copies(second, Some(Copy::Primary)))
            }
            (Ok(first), Ok(second)) if second.0.seqid == first.0.seqid && second.1 == first.1 => {
                Ok(copies(first, None))
            }
            (Ok(first), _) => Ok(copies(first, Some(Copy::Secondary))),
            (Err(_), Ok(second)) => {
                // Somebody else's header there may be what the owner wants to keep.
                let foreign = !is_own(head, &second.0);
                Ok(Self { foreign, ..copies(second, (!foreign).then_some(Copy::Primary)) })
            }
            (Err(LuksError::NotLuks), Err(LuksError::NotLuks)) => Err(place.fail(io, LuksError::NotLuks)),
            (Err(first), Err(second)) => {
                let fault = LuksError::BothCopies { first: first.to_string(), second: second.to_string() };
                Err(place.fail(io, fault))
            }
        }
    }

    /// Writes the copy anew that is damaged or older, if one is. Durable on return.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) async fn recover(&self, io: &Io, place: Place) -> Result<()> {
        match self.stale {
            None => Ok(()),
            Some(copy) => self.write_copy(io, place, copy).await,
        }
    }

    /// Replaces the metadata in both copies. Durable on return.
    ///
    /// # Errors
    /// When there is no room, or they cannot be written.
    pub(super) async fn store(&self, io: &Io, place: Place, metadata: Metadata) -> Result<Self> {
        self.recover(io, place).await?;
        let mut new = Self { metadata, stale: None, ..self.clone() };
        new.header.seqid = self.next_seqid().map_err(|fault| place.fail(io, fault))?;
        let (len, room) = (new.metadata.encode().len(), new.header.json_room());
        if len as u64 >= room {
            return Err(place.fail(io, LuksError::JsonTooLong { len, room }));
        }
        new.write_both(io, place).await?;
        Ok(new)
    }

    /// The number of changes once there is one more. To be asked before anything else is written: a key that is overwritten while
    /// the header cannot change would be lost to a slot that goes on naming it.
    ///
    /// # Errors
    /// When it cannot go up, and when something else stands where the first copy is to be written.
    pub(super) fn next_seqid(&self) -> Result<u64, LuksError> {
        if self.foreign {
            return Err(LuksError::ForeignPrimary);
        }
        let found = self.header.seqid;
        let expected = || "a number that can go up with a change".into();
        found.checked_add(1).ok_or_else(|| LuksError::Field {
            field: "seqid",
            at: 16,
            found,
            expected: expected(),
        })
    }

    /// Writes both copies. Durable on return.
    ///
    /// # Errors
    /// When they cannot be written.
    pub(super) async fn write_both(&self, io: &Io, place: Place) -> Result<()> {
        // One copy is durable before the other one is touched.
        self.write_copy(io, place, Copy::Primary).await?;
        self.write_copy(io, place, Copy::Secondary).await
    }

    async fn write_copy(&self, io: &Io, place: Place, copy: Copy) -> Result<()> {
        let salt = io.entropy::<64>(place.node).await?;
        let header = Header2 { salt, ..self.header.clone() };
        let bytes = Buf::from(header.encode(copy, &self.metadata.encode()));
        let at = place.base + copy.place(self.header.size);
        io.write("luks2.header/copy", place.node, at, bytes, Fua::No).await.1?;
        io.flush("luks2.header/after_copy", place.node).await
    }
}

/// Whether the first bytes of a volume are what became of its first copy: its magic is there, or everything is gone, or only the magic
/// is, and nobody else's took its place.
fn is_own(head: &[u8], second: &Header2) -> bool {
    let rest = || {
        let (version, size, uuid) = (head.get(6..8)?, head.get(8..16)?, head.get(168..208)?);
        Some(version == 2u16.to_be_bytes() && size == second.size.to_be_bytes() && uuid == second.uuid)
    };
    let without_magic = || rest() == Some(true) && looks_like(head).is_none();
    head.starts_with(MAGIC) || is_zero(head) || without_magic()
}

/// What came of reading a copy: the header, or what is wrong with it.
type Found = Result<(Header2, Metadata), LuksError>;

async fn read_copy(io: &Io, place: Place, copy: Copy, at: u64) -> Result<Found> {
    let there = io.len(place.node).saturating_sub(place.base);
    if at + BINARY_LEN as u64 > there {
        return Ok(Err(LuksError::TooShort { needed: at + BINARY_LEN as u64, len: there }));
    }
    let head = io.read_bytes("luks2.open/header", place.node, place.base + at, BINARY_LEN).await?;
    let header = match Header2::parse(&head, copy, at) {
        Ok(header) => header,
        Err(fault) => return Ok(Err(fault)),
    };
    if at + header.size > there {
        return Ok(Err(LuksError::TooShort { needed: at + header.size, len: there }));
    }
    let bytes = io.read_bytes("luks2.open/json", place.node, place.base + at, header.size as usize).await?;
    let metadata = checked_json(&bytes, at).and_then(|json| Metadata::parse(json, header.size));
    Ok(metadata.map(|metadata| (header, metadata)))
}

/// The first bytes, as many as a binary header has.
fn padded(head: &[u8]) -> Vec<u8> {
    let mut bytes = head.to_vec();
    bytes.resize(BINARY_LEN, 0);
    bytes
}
