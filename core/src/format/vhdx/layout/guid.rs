//! GUIDs as they stand in the file: the first three fields little-endian, the rest as it is.

use std::fmt;

/// A GUID.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    /// None.
    pub const NIL: Self = Self([0; 16]);

    /// From the form in which they are printed: `Guid::new(0x2dc27766, 0xf623, 0x4200, 0x9d64_115e_9bfd_4a08)`.
    pub const fn new(first: u32, second: u16, third: u16, rest: u64) -> Self {
        let (a, b, c, d) =
            (first.to_le_bytes(), second.to_le_bytes(), third.to_le_bytes(), rest.to_be_bytes());
        Self([a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]])
    }

    /// A random one. Source: RFC 9562, 5.4.
    pub fn random(mut bytes: [u8; 16]) -> Self {
        bytes[7] = bytes[7] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Self(bytes)
    }

    /// Whether this is none.
    pub fn is_nil(&self) -> bool {
        *self == Self::NIL
    }

    /// Reads the printed form, with or without braces.
    pub fn from_text(text: &str) -> Option<Self> {
        let text = text.trim().trim_start_matches('{').trim_end_matches('}');
        let mut parts = text.split('-');
        let mut part = |digits: usize| {
            let part = parts.next().filter(|part| part.len() == digits)?;
            let all_hex = part.bytes().all(|byte| byte.is_ascii_hexdigit());
            all_hex.then(|| u64::from_str_radix(part, 16).ok()).flatten()
        };
        let (first, second, third) = (part(8)?, part(4)?, part(4)?);
        let rest = part(4)? << 48 | part(12)?;
        parts.next().is_none().then(|| Self::new(first as u32, second as u16, third as u16, rest))
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g, h, i, rest @ ..] = self.0;
        let (first, second, third) =
            (u32::from_le_bytes([a, b, c, d]), u16::from_le_bytes([e, g]), u16::from_le_bytes([h, i]));
        let rest = u64::from_be_bytes(rest);
        write!(f, "{first:08x}-{second:04x}-{third:04x}-{:04x}-{:012x}", rest >> 48, rest & 0xffff_ffff_ffff)
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn text_says_it_all(bytes: [u8; 16]) {
            let guid = Guid(bytes);
            prop_assert_eq!(Guid::from_text(&guid.to_string()), Some(guid));
            prop_assert_eq!(Guid::from_text(&format!("{{{}}}", guid.to_string().to_uppercase())), Some(guid));
        }
    }

    #[test]
    fn what_is_no_guid_is_none() {
        for text in [
            "",
            "{}",
            "2dc27766-f623-4200-9d64",
            "2dc27766-f623-4200-9d64-115e9bfd4a08-1",
            "+dc27766-f623-4200-9d64-115e9bfd4a08",
        ] {
            assert_eq!(Guid::from_text(text), None, "{text}");
        }
    }
}
