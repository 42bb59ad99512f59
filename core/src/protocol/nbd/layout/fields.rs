//! Taking fields off the front of bytes.

use crate::protocol::nbd::NbdError;
use crate::protocol::nbd::limits::STRING_MAX;

/// The fields of one message that are left.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a> {
    what: &'static str,
    bytes: &'a [u8],
}

impl<'a> Fields<'a> {
    /// The fields of `what`, which are all of `bytes`.
    pub fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, bytes }
    }

    /// Bytes that are left.
    pub fn left(&self) -> usize {
        self.bytes.len()
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// [`NbdError::Shape`] when there are fewer.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], NbdError> {
        let (front, rest) = self.bytes.split_at_checked(count).ok_or(NbdError::Shape { what: self.what })?;
        self.bytes = rest;
        Ok(front)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], NbdError> {
        Ok(self.take(N)?.try_into().expect("as many bytes as were taken"))
    }

    /// The next 16 bits.
    ///
    /// # Errors
    /// [`NbdError::Shape`] when there are fewer.
    pub fn be_u16(&mut self) -> Result<u16, NbdError> {
        self.array().map(u16::from_be_bytes)
    }

    /// The next 32 bits.
    ///
    /// # Errors
    /// [`NbdError::Shape`] when there are fewer.
    pub fn be_u32(&mut self) -> Result<u32, NbdError> {
        self.array().map(u32::from_be_bytes)
    }

    /// The next 64 bits.
    ///
    /// # Errors
    /// [`NbdError::Shape`] when there are fewer.
    pub fn be_u64(&mut self) -> Result<u64, NbdError> {
        self.array().map(u64::from_be_bytes)
    }

    /// The next `len` bytes, which are a string.
    ///
    /// # Errors
    /// [`NbdError::TooMuch`] for more than [`STRING_MAX`], [`NbdError::Shape`] when there are fewer, [`NbdError::Text`] for
    /// what is no UTF-8.
    pub fn string(&mut self, len: u32) -> Result<String, NbdError> {
        // Compared before anything is added to it or allocated for it.
        if len as usize > STRING_MAX {
            return Err(NbdError::TooMuch { what: self.what, found: len.into(), max: STRING_MAX as u64 });
        }
        text(self.what, self.take(len as usize)?)
    }

    /// All that is left, as a string.
    ///
    /// # Errors
    /// As of [`string`](Self::string).
    pub fn rest_as_string(&mut self) -> Result<String, NbdError> {
        self.string(u32::try_from(self.left()).unwrap_or(u32::MAX))
    }

    /// Makes sure that nothing is left.
    ///
    /// # Errors
    /// [`NbdError::Shape`] when there is.
    pub fn end(self) -> Result<(), NbdError> {
        if self.bytes.is_empty() { Ok(()) } else { Err(NbdError::Shape { what: self.what }) }
    }
}

/// Bytes as a string.
///
/// # Errors
/// [`NbdError::Text`] for what is no UTF-8, or holds a NUL.
pub fn text(what: &'static str, bytes: &[u8]) -> Result<String, NbdError> {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text.to_owned()),
        _ => Err(NbdError::Text { what }),
    }
}
