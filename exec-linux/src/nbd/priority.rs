//! Priorities in the notation of GnuTLS, as far as they choose versions of the protocol.

use rustls::{SupportedProtocolVersion, version};

use super::credentials::TlsError;

/// Sets of algorithms that all of ours belong to.
const SETS: [&str; 5] = ["NORMAL", "@SYSTEM", "PERFORMANCE", "PFS", "SECURE128"];

/// Versions that are never used here, and may be taken out once more.
const OLD: [&str; 6] = ["SSL3.0", "TLS1.0", "TLS1.1", "DTLS0.9", "DTLS1.0", "DTLS1.2"];

/// The versions that a priority leaves, the newest first.
pub(super) fn versions(text: &str) -> Result<Vec<&'static SupportedProtocolVersion>, TlsError> {
    let refused = |found: &str| TlsError::Priority { text: text.to_owned(), found: found.to_owned() };
    let (mut has_12, mut has_13) = (true, true);
    for (place, part) in text.split(':').enumerate() {
        if place == 0 && SETS.contains(&part) {
            continue;
        }
        let adds = part.starts_with('+');
        let name = part.strip_prefix(['+', '-', '!']).and_then(|part| part.strip_prefix("VERS-"));
        match name.filter(|_| place > 0) {
            Some("ALL" | "TLS-ALL") => (has_12, has_13) = (adds, adds),
            Some("TLS1.2") => has_12 = adds,
            Some("TLS1.3") => has_13 = adds,
            Some(old) if OLD.contains(&old) && !adds => {}
            _ => return Err(refused(part)),
        }
    }
    let all = [(has_13, &version::TLS13), (has_12, &version::TLS12)];
    let left: Vec<_> = all.into_iter().filter(|(has, _)| *has).map(|(_, version)| version).collect();
    if left.is_empty() { Err(refused("no version that is left")) } else { Ok(left) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_priority_chooses_versions_or_is_refused() {
        let check = |text: &str, expected: &[&'static SupportedProtocolVersion]| {
            assert_eq!(versions(text).expect(text), expected, "{text}");
        };
        check("NORMAL", &[&version::TLS13, &version::TLS12]);
        check("@SYSTEM:-VERS-TLS1.1", &[&version::TLS13, &version::TLS12]);
        check("NORMAL:-VERS-ALL:+VERS-TLS1.2", &[&version::TLS12]);
        check("PFS:!VERS-TLS1.2", &[&version::TLS13]);
        for text in ["", "FOO", "NORMAL:+PSK", "NORMAL:-VERS-ALL", "NORMAL:+VERS-TLS1.1", "+VERS-TLS1.3"] {
            assert!(versions(text).is_err(), "{text}");
        }
    }
}
