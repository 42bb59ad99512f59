//! Encryption, as far as it can be told without a key.

use super::layout::{Crypt, LUKS_HEADER_LEN, LuksHeader, extension_kind};
use super::lookup::be_u64;
use super::{Qcow2, Qcow2Error};
use crate::engine::Io;
use crate::error::Result;
use crate::graph::NodeId;

impl Qcow2 {
    /// The LUKS header of an image that `file` holds; `None` when it is not encrypted that way.
    ///
    /// # Errors
    /// When the header is missing or damaged, or cannot be read.
    pub async fn luks(&self, io: &Io, file: NodeId) -> Result<Option<LuksHeader>> {
        let header = self.header();
        if header.crypt != Crypt::Luks {
            return Ok(None);
        }
        let fault = |problem: &str| self.fail(Qcow2Error::Luks { problem: problem.into() });
        let pointer = header.extension(extension_kind::CRYPTO_HEADER);
        let Some(pointer) = pointer.filter(|pointer| pointer.len() >= 16) else {
            return Err(fault("the header extension that points to it is missing"));
        };
        let (at, len) = (be_u64(pointer, 0), be_u64(pointer, 8));
        let inside = at.checked_add(len).is_some_and(|end| end <= io.len(file));
        if !inside || len < LUKS_HEADER_LEN as u64 {
            return Err(fault("the header extension points outside the file"));
        }
        let bytes = io.read_bytes("qcow2/luks", file, at, LUKS_HEADER_LEN).await?;
        LuksHeader::parse(&bytes).map(Some).map_err(|fault| self.fail(fault))
    }
}
