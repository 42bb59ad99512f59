//! Where the block tables of an image are: in a property list, or in a resource fork.
//!
//! Of the property list no more is read than the data under the key `blkx`, with base64 around it. A resource fork has its data
//! one behind the other, each with its length in front.

use super::DmgError;

/// The block tables of a property list.
///
/// # Errors
/// When there is none.
pub(super) fn in_plist(text: &[u8]) -> Result<Vec<Vec<u8>>, DmgError> {
    let none = || DmgError::NoBlocks { what: "property list" };
    let from = behind(text, b"<key>blkx</key>").ok_or_else(none)?;
    let from = behind(from, b"<array>").ok_or_else(none)?;
    let end = find(from, b"</array>").unwrap_or(from.len());
    let mut rest = &from[..end];
    let mut tables = Vec::new();
    while let Some(data) = behind(rest, b"<data>") {
        let end = find(data, b"</data>").unwrap_or(data.len());
        let bytes = base64(&data[..end]);
        tables.push(bytes.ok_or(DmgError::Table { table: tables.len(), problem: "it is no base64" })?);
        rest = &data[end..];
    }
    if tables.is_empty() { Err(none()) } else { Ok(tables) }
}

/// The block tables of a resource fork: those resources that begin like one.
///
/// # Errors
/// When there is none.
pub(super) fn in_resources(fork: &[u8]) -> Result<Vec<Vec<u8>>, DmgError> {
    let none = || DmgError::NoBlocks { what: "resource fork" };
    let word = |at: usize| {
        let bytes = fork.get(at..at.checked_add(4)?)?;
        Some(u32::from_be_bytes(bytes.try_into().expect("four bytes")) as usize)
    };
    let (start, len) = word(0).zip(word(8)).ok_or_else(none)?;
    let end = start.saturating_add(len).min(fork.len());
    let (mut at, mut tables) = (start, Vec::new());
    while at < end {
        let Some(len) = word(at) else { break };
        let from = at + 4;
        let until = from.saturating_add(len);
        let Some(bytes) = fork.get(from..until) else { break };
        if bytes.starts_with(b"mish") {
            tables.push(bytes.to_vec());
        }
        at = until;
    }
    if tables.is_empty() { Err(none()) } else { Ok(tables) }
}

fn find(text: &[u8], word: &[u8]) -> Option<usize> {
    text.windows(word.len()).position(|window| window == word)
}

fn behind<'a>(text: &'a [u8], word: &[u8]) -> Option<&'a [u8]> {
    find(text, word).map(|at| &text[at + word.len()..])
}

/// Decodes base64 with blanks between. Source: RFC 4648, 4.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0u32, 0);
    for letter in text.iter().filter(|letter| !letter.is_ascii_whitespace()) {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => break,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_standard() {
        // The standard's own examples.
        for (text, bytes) in
            [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm 9v\nYg==", "foob"), ("Zm9vYmFy", "foobar")]
        {
            assert_eq!(base64(text.as_bytes()).as_deref(), Some(bytes.as_bytes()), "{text}");
        }
        assert_eq!(base64(b"Zm9?"), None);
    }

    #[test]
    fn only_the_tables_of_blocks_are_found() {
        let plist = b"<key>blkx</key>\n<array><dict><data>\nbWlzaA==\n</data></dict><dict><data>Zg==</data></dict></array>\
            <key>plst</key><array><data>Zm8=</data></array>";
        assert_eq!(in_plist(plist), Ok(vec![b"mish".to_vec(), b"f".to_vec()]));
        for broken in [
            &b"<key>blkx</key>"[..],
            b"<key>blkx</key><array></array>",
            b"",
            b"<array><data>Zg==</data></array>",
        ] {
            assert_eq!(in_plist(broken), Err(DmgError::NoBlocks { what: "property list" }));
        }
        assert!(matches!(in_plist(b"<key>blkx</key><array><data>!"), Err(DmgError::Table { table: 0, .. })));
    }

    #[test]
    fn resources_end_where_they_say() {
        let mut fork = vec![0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 19, 0, 0, 0, 0];
        fork.extend(*b"\0\0\0\x05mish1\0\0\0\x02xx");
        assert_eq!(in_resources(&fork), Ok(vec![b"mish1".to_vec()]));
        fork[19] = 200;
        assert_eq!(in_resources(&fork), Err(DmgError::NoBlocks { what: "resource fork" }));
        assert!(in_resources(&fork[..9]).is_err());
    }
}
