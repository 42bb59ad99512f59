//! Names in certificates: the distinguished name of their owner as GnuTLS writes it, and the common name.
//!
//! ```text
//!   Name ─▶ SET (relative name) ─▶ SEQUENCE (attribute) ─▶ OBJECT IDENTIFIER, a string
//! ```
//!
//! Source: RFC 5280 4.1.2.4, RFC 4514. The order is the certificate's, and the words are GnuTLS's (3.7, tried with
//! `qemu-nbd` 10.0.2, which shows names to lists of who may connect).

use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

/// Tags of DER. Source: X.690 8.
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_IDENTIFIER: u8 = 0x06;

/// The common name: `id-at 3`.
const COMMON_NAME: &[u8] = &[0x55, 4, 3];

/// Kinds of attributes that have a word, by their object identifiers.
const WORDS: [(&[u8], &str); 20] = [
    (COMMON_NAME, "CN"),
    (&[0x55, 4, 4], "surName"),
    (&[0x55, 4, 5], "serialNumber"),
    (&[0x55, 4, 6], "C"),
    (&[0x55, 4, 7], "L"),
    (&[0x55, 4, 8], "ST"),
    (&[0x55, 4, 9], "street"),
    (&[0x55, 4, 10], "O"),
    (&[0x55, 4, 11], "OU"),
    (&[0x55, 4, 12], "title"),
    (&[0x55, 4, 13], "description"),
    (&[0x55, 4, 17], "postalCode"),
    (&[0x55, 4, 20], "telephoneNumber"),
    (&[0x55, 4, 41], "name"),
    (&[0x55, 4, 42], "givenName"),
    (&[0x55, 4, 43], "initials"),
    (&[0x55, 4, 65], "pseudonym"),
    (&[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 1], "UID"),
    (&[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 25], "DC"),
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 1], "EMAIL"),
];

/// Kind and text of one part of a name.
type Attribute<'a> = (&'a [u8], String);

/// The distinguished name of a certificate's owner, such as `C=DE,O=Stone\, Inc.,CN=one`; none where it is not one, or has
/// parts that have no word.
pub(super) fn distinguished_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let parsed = EndEntityCert::try_from(certificate).ok()?;
    let names = relative_names(parsed.subject())?;
    let part = |(kind, text): &Attribute<'_>| {
        let (_, word) = WORDS.iter().find(|(known, _)| known == kind)?;
        Some(format!("{word}={}", escaped(text)))
    };
    let joined = |name: &Vec<_>| Some(name.iter().map(part).collect::<Option<Vec<_>>>()?.join("+"));
    Some(names.iter().map(joined).collect::<Option<Vec<_>>>()?.join(","))
}

/// The common name of a certificate without names of hosts, where it has one and no more.
pub(super) fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let parsed = EndEntityCert::try_from(certificate).ok()?;
    if parsed.valid_dns_names().next().is_some() {
        return None;
    }
    let all = relative_names(parsed.subject())?.into_iter().flatten();
    let mut common = all.filter(|(kind, _)| *kind == COMMON_NAME);
    common.next().map(|(_, text)| text).filter(|_| common.next().is_none())
}

/// Whether a host's name is one that a certificate has; its first part may be a `*` there.
pub(super) fn is_host(pattern: &str, host: &str) -> bool {
    let same = |one: &str, other: &str| !one.is_empty() && one.eq_ignore_ascii_case(other);
    match (pattern.strip_prefix("*."), host.split_once('.')) {
        (Some(rest), Some((_, domain))) => rest.contains('.') && same(rest, domain),
        (Some(_), None) => false,
        (None, _) => same(pattern, host),
    }
}

/// Kinds and texts of all attributes, those of one relative name together.
fn relative_names(mut name: &[u8]) -> Option<Vec<Vec<Attribute<'_>>>> {
    let mut all = Vec::new();
    while !name.is_empty() {
        let mut set = take(&mut name, SET)?;
        let mut parts = Vec::new();
        while !set.is_empty() {
            let mut attribute = take(&mut set, SEQUENCE)?;
            let kind = take(&mut attribute, OBJECT_IDENTIFIER)?;
            let (tag, bytes) = element(&mut attribute)?;
            parts.push((kind, text_of(tag, bytes)?));
        }
        all.push(parts);
    }
    Some(all)
}

fn take<'a>(input: &mut &'a [u8], expected: u8) -> Option<&'a [u8]> {
    element(input).filter(|(tag, _)| *tag == expected).map(|(_, content)| content)
}

/// Tag and content of the element in front.
fn element<'a>(input: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (&[tag, first], mut rest) = input.split_first_chunk::<2>()?;
    let mut len = usize::from(first);
    if first & 0x80 != 0 {
        let (bytes, behind) = rest
            .split_at_checked(usize::from(first & 0x7f))
            .filter(|(bytes, _)| (1..=3).contains(&bytes.len()))?;
        (len, rest) = (bytes.iter().fold(0, |len, byte| len << 8 | usize::from(*byte)), behind);
    }
    let (content, behind) = rest.split_at_checked(len)?;
    *input = behind;
    Some((tag, content))
}

/// A string in one of the encodings that names are written in: UTF-8, those that are ASCII, and two of fixed widths.
fn text_of(tag: u8, bytes: &[u8]) -> Option<String> {
    let text = match tag {
        0x0c | 0x12 | 0x13 | 0x16 | 0x1a => String::from_utf8(bytes.to_vec()).ok()?,
        0x14 => bytes.iter().map(|byte| char::from(*byte)).collect(),
        0x1e => {
            let (pairs, []) = bytes.as_chunks::<2>() else { return None };
            let units: Vec<u16> = pairs.iter().map(|pair| u16::from_be_bytes(*pair)).collect();
            String::from_utf16(&units).ok()?
        }
        _ => return None,
    };
    // Somebody who reads up to a zero would take it for another name.
    (!text.contains('\0')).then_some(text)
}

/// A text in which nothing looks like what stands between texts. Source: RFC 4514 2.4.
fn escaped(text: &str) -> String {
    let last = text.chars().count().saturating_sub(1);
    let mut out = String::with_capacity(text.len());
    for (at, character) in text.chars().enumerate() {
        let special = match character {
            ',' | '+' | '"' | '\\' | '<' | '>' | ';' => true,
            '#' => at == 0,
            ' ' => at == 0 || at == last,
            _ => false,
        };
        out.extend(special.then_some('\\'));
        out.push(character);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let content = parts.concat();
        [&[tag, content.len() as u8][..], &content].concat()
    }

    fn attribute(kind: &[u8], tag: u8, text: &[u8]) -> Vec<u8> {
        tlv(SEQUENCE, &[&tlv(OBJECT_IDENTIFIER, &[kind]), &tlv(tag, &[text])])
    }

    #[test]
    fn names_are_read_in_every_encoding_and_to_their_end() {
        for (tag, bytes, expected) in [
            (0x0c, "Zoë".as_bytes(), Some("Zoë")),
            (0x13, b"one", Some("one")),
            (0x14, b"K\xf6ln", Some("Köln")),
            (0x1e, &[0, 0x4b, 0x26, 0x03], Some("K☃")),
            (0x1e, &[0, 0x4b, 0x26], None),
            (0x1e, &[0xd8, 0], None),
            (0x0c, b"\xff", None),
            (0x13, b"one\0two", None),
            (0x03, b"\0", None),
        ] {
            let name = tlv(SET, &[&attribute(COMMON_NAME, tag, bytes)]);
            let found = relative_names(&name).map(|names| names[0][0].1.clone());
            assert_eq!(found.as_deref(), expected, "{tag:#x}");
            for end in 1..name.len() {
                assert!(relative_names(&name[..end]).is_none(), "{end} bytes of it");
            }
        }
        for bytes in
            [&[0x31, 0x84, 0xff, 0xff, 0xff, 0xff][..], &[0x31, 0x80], &[0x31, 0x82, 1], &[0x31, 0xff]]
        {
            assert!(relative_names(bytes).is_none(), "{bytes:?}");
        }
        assert_eq!(relative_names(&[]), Some(Vec::new()));
    }

    #[test]
    fn what_would_look_like_another_name_is_escaped() {
        for (text, expected) in [
            ("Stone, Inc.", "Stone\\, Inc."),
            ("a+b", "a\\+b"),
            (" x ", "\\ x\\ "),
            (" ", "\\ "),
            ("#x#", "\\#x#"),
            ("\"q\" <z>;\\y=e", "\\\"q\\\" \\<z\\>\\;\\\\y=e"),
        ] {
            assert_eq!(escaped(text), expected);
        }
    }

    #[test]
    fn hosts_have_the_name_or_one_part_more() {
        for (pattern, host, expected) in [
            ("Disk.example", "disk.EXAMPLE", true),
            ("disk.example", "disk.example.org", false),
            ("*.example.org", "disk.example.org", true),
            ("*.example.org", "a.disk.example.org", false),
            ("*.example.org", "example.org", false),
            ("*.org", "example.org", false),
            ("*", "disk", false),
            ("", "", false),
        ] {
            assert_eq!(is_host(pattern, host), expected, "{pattern}, {host}");
        }
    }
}
