//! Encryption of an image's data: with the LUKS1 volume whose header the image holds, or, in old images, with AES alone.
//! Source: \[qcow2\] "Full disk encryption header pointer", "Data encryption".
//!
//! ```text
//!   LUKS   qcow2 node ──crypt──▶ crypt node ──file──▶ what holds the data       sectors by their place in that
//!   AES    qcow2 node ──file───▶ what holds the data                            sectors by their place on the disk
//! ```
//!
//! Metadata and compressed clusters are not encrypted. Images with AES alone are read, to get them away from it: its key is
//! the passphrase's first bytes, and equal sectors of two images look alike.

use std::any::Any;

use async_trait::async_trait;
use zeroize::Zeroizing;

use super::layout::{Crypt, GuestOffset, Header, L1Entry, L2Entry, extension_kind};
use super::lookup::be_u64;
use super::write::EntryPlace;
use super::{Missing, Qcow2, Qcow2Error, Qcow2Options};
use crate::buf::BufList;
use crate::crypto::{Cipher, CipherName, Direction};
use crate::engine::{Io, LocalFuture, Request};
use crate::error::{Error, Result};
use crate::format::luks::layout::HEADER_LEN;
use crate::format::luks::{LuksError, Place, Sectors, Volume, encrypted, key_of, serve};
use crate::graph::NodeId;
use crate::graph::driver::{Access, Driver, Extent, Length, Mapping, Ready, Role};
use crate::intent::ZeroFlags;

/// Bytes of a key of old images.
const AES_KEY_LEN: usize = 16;

/// What is said of encryption when an image is opened (`encrypt.*`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncryptOptions {
    /// What the image's encryption must be: `luks` or `aes`.
    pub format: Option<String>,
    /// The id of the secret that holds the passphrase.
    pub key_secret: Option<String>,
}

/// How the data of an image that is being opened is got at.
pub(crate) enum Key {
    /// It is not encrypted, or only the metadata is looked at.
    None,
    /// Through a node of its own, which is to be opened with this.
    Luks(Sectors),
    /// Through that node, which is open.
    Node,
    /// By the image itself, for reading.
    Aes(Box<Cipher>),
}

/// Unlocks the image whose header this is.
///
/// # Errors
/// When its encryption is another than the options say, or the passphrase is missing or does not open it.
pub(crate) async fn unlock(io: &Io, file: NodeId, header: &Header, options: &Qcow2Options) -> Result<Key> {
    let fault = |fault| Error::format(io.title(file), fault);
    let found = match header.crypt {
        Crypt::None => None,
        Crypt::Aes => Some("aes"),
        Crypt::Luks => Some("luks"),
    };
    match (found, &options.encrypt.format) {
        (None, Some(asked)) => return Err(fault(Qcow2Error::NotEncrypted { asked: asked.clone() })),
        (Some(found), Some(asked)) if found != asked => {
            return Err(fault(Qcow2Error::OtherEncryption { found, asked: asked.clone() }));
        }
        _ => {}
    }
    if options.metadata_only {
        return Ok(Key::None);
    }
    let secret = options.encrypt.key_secret.as_deref();
    let no_secret = LuksError::NoSecret("encrypt.");
    match header.crypt {
        Crypt::None => Ok(Key::None),
        _ if secret.is_none() => Err(Error::format(io.title(file), no_secret)),
        Crypt::Luks => {
            let place = place_of_volume(io, file, header)?;
            let volume = Volume::load(io, place).await?;
            let key = key_of(io, place, &volume, (secret, "encrypt.")).await?;
            volume.sectors_of_image(&key).map(Key::Luks).map_err(|error| place.fail(io, error))
        }
        Crypt::Aes => {
            let passphrase = io.secret(secret.unwrap_or_default())?;
            let mut key = Zeroizing::new([0; AES_KEY_LEN]);
            let len = passphrase.bytes().len().min(AES_KEY_LEN);
            key[..len].copy_from_slice(&passphrase.bytes()[..len]);
            let name = CipherName::parse("aes", "cbc-plain64").expect("a cipher's name");
            let cipher = Cipher::new(&name, &key[..], 512).expect("a key of 128 bits");
            Ok(Key::Aes(Box::new(cipher)))
        }
    }
}

/// Where the volume's header is in the image's file.
pub(super) fn place_of_volume(io: &Io, file: NodeId, header: &Header) -> Result<Place> {
    let fault = |problem: &str| {
        let fault = Box::new(Qcow2Error::Luks { problem: problem.into() });
        Box::new(Error::Format { node: io.title(file), fault })
    };
    let pointer = header.extension(extension_kind::CRYPTO_HEADER);
    let Some(pointer) = pointer.filter(|pointer| pointer.len() >= 16) else {
        return Err(fault("the header extension that points to it is missing"));
    };
    let (at, len) = (be_u64(pointer, 0), be_u64(pointer, 8));
    let inside = at.checked_add(len).is_some_and(|end| end <= io.len(file));
    if !inside || len < HEADER_LEN as u64 {
        return Err(fault("the header extension points outside the file"));
    }
    if !at.is_multiple_of(header.cluster_bits.size()) {
        return Err(fault("the header extension points between clusters"));
    }
    Ok(Place { node: file, base: at })
}

impl Qcow2 {
    /// The header of the volume that the image in `file` holds; `None` when it is not encrypted that way.
    ///
    /// # Errors
    /// When the header is missing or damaged, or cannot be read.
    pub async fn luks(&self, io: &Io, file: NodeId) -> Result<Option<Volume>> {
        let header = self.header();
        match header.crypt {
            Crypt::Luks => Volume::load(io, place_of_volume(io, file, &header)?).await.map(Some),
            Crypt::None | Crypt::Aes => Ok(None),
        }
    }

    /// Where an old image keeps the bytes of one cluster, from `offset` on; `None` where they are compressed.
    pub(super) fn aes_place(&self, offset: GuestOffset) -> Result<Ready<Option<u64>>> {
        let L1Entry::Table { at, .. } = self.l1_entry(self.l1_index(offset))? else {
            return Ok(Ready::Yes(None));
        };
        let (slice, byte) = self.slice_of(at, self.l2_index(offset));
        if self.l2.borrow().find(slice).is_none() {
            return Ok(Ready::Miss(Missing::L2Slice.at(slice.0)));
        }
        let in_cluster = self.geometry.cluster_bits.offset_in(offset.0);
        let entry = self.read_entry(&EntryPlace { slice, byte }, offset)?;
        Ok(Ready::Yes(match entry.entry {
            L2Entry::Standard { host, .. } => Some(host.0 + in_cluster),
            _ => None,
        }))
    }

    /// Reads what one cluster, or a part of it, holds in an old image.
    pub(super) async fn read_aes(
        &self,
        io: &Io,
        cipher: &Cipher,
        (offset, host): (GuestOffset, u64),
        data: &mut BufList,
    ) -> Result<()> {
        let len = data.len_bytes() as u64;
        let before = offset.0 % 512;
        let whole = (before + len).next_multiple_of(512);
        let child = io.child(self.geometry.data);
        let mut sectors = io.read_bytes("qcow2.decrypt/read", child, host - before, whole as usize).await?;
        cipher.apply(Direction::Decrypt, offset.0 / 512, &mut sectors);
        data.copy_in(0, &sectors[before as usize..][..len as usize]);
        Ok(())
    }
}

/// The node between an image and its encrypted data.
pub(crate) struct CryptNode(pub(crate) Sectors);

#[async_trait(?Send)]
impl Driver for CryptNode {
    fn name(&self) -> &'static str {
        "crypt"
    }

    fn length(&self) -> Length {
        Length::OfFileFrom(0)
    }

    fn lookup(&self, offset: u64, len: u64, access: Access) -> Result<Extent> {
        Ok(Extent { len, mapping: encrypted(0, offset, access) })
    }

    fn starts_as_zeroes(&self) -> bool {
        false
    }

    fn read_special<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        data: &'a mut BufList,
    ) -> LocalFuture<'a, Result<()>> {
        Box::pin(self.0.read(io, io.child(Role::File), offset, data))
    }

    fn serve<'a>(&'a self, io: &'a Io, request: &'a mut Request) -> LocalFuture<'a, Result<()>> {
        Box::pin(serve(&self.0, io, request))
    }

    /// Zeros look like any other data once they are encrypted.
    fn write_zeroes<'a>(&'a self, _: &'a Io, _: u64, _: u64, _: ZeroFlags) -> LocalFuture<'a, Result<bool>> {
        Box::pin(async { Ok(false) })
    }

    /// What is freed is freed by the image, in the file itself.
    fn discard<'a>(&'a self, _: &'a Io, _: u64, _: u64) -> LocalFuture<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn flush<'a>(&'a self, io: &'a Io) -> LocalFuture<'a, Result<()>> {
        Box::pin(async { io.flush("crypt.flush", io.child(Role::File)).await })
    }

    async fn close(&self, _: &Io) -> Result<()> {
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Where a cluster of an old image is read.
pub(super) fn aes_mapping() -> Mapping {
    Mapping::Special { compressed: false }
}
