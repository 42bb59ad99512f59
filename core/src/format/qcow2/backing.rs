//! Backing: the name and the format of the backing file, as the image states them.

use super::layout::{Autoclear, BACKING_NAME_MAX, Header};
use super::{Qcow2, Qcow2Error};
use crate::engine::Io;
use crate::error::Result;

/// Bytes of a format's name at the most, which the reference reads back.
const FORMAT_MAX: usize = 15;

impl Qcow2 {
    /// Whether the image can name this backing file, and its format.
    ///
    /// # Errors
    /// [`Qcow2Error::HeaderTooLong`] when they do not fit the first cluster; others say what is wrong with them.
    pub fn check_backing(&self, backing: Option<(&str, Option<&str>)>) -> Result<(), Qcow2Error> {
        self.with_backing(backing)?.encode().map(drop)
    }

    fn with_backing(&self, backing: Option<(&str, Option<&str>)>) -> Result<Header, Qcow2Error> {
        let mut header = self.header();
        if let Some((name, format)) = backing {
            if name.len() > BACKING_NAME_MAX {
                return Err(Qcow2Error::BackingNameLen {
                    len: name.len() as u64,
                    max: BACKING_NAME_MAX as u64,
                });
            }
            if let Some(format) = format.filter(|format| format.len() > FORMAT_MAX) {
                let text = format!("a backing format has at most {FORMAT_MAX} bytes, '{format}' has more");
                return Err(Qcow2Error::Option(text));
            }
            if header.autoclear & Autoclear::RAW_DATA_FILE != 0 {
                let text = "Backing file and data-file-raw cannot be used at the same time";
                return Err(Qcow2Error::Option(text.into()));
            }
        }
        header.backing_file = backing.map(|(name, _)| name.to_owned());
        header.backing_format = backing.and_then(|(_, format)| format.map(str::to_owned));
        Ok(header)
    }

    /// Makes the image name another backing file, or none. The open image keeps the one that it has.
    ///
    /// Order on disk: all data and metadata, a barrier, the header, a barrier. What was copied to make up for the
    /// difference between the two backing files is durable, and pointed to, before the header names the other one; a
    /// crash leaves the image over the one or the other, and a guest sees the same disk.
    pub(crate) async fn change_backing(&self, io: &Io, backing: Option<(&str, Option<&str>)>) -> Result<()> {
        self.check_backing(backing).map_err(|fault| self.fail(fault))?;
        self.flush_all(io).await?;
        let named = self.with_backing(backing).map_err(|fault| self.fail(fault))?;
        self.change_header(io, |header| {
            header.backing_file = named.backing_file;
            header.backing_format = named.backing_format;
        })
        .await
    }
}
