//! Secrets: what a `secret` object holds, given as it is, in base64, or encrypted with another secret.
//!
//! ```text
//! data= or file= ──▶ format=base64: decoded ──▶ keyid=: AES-256-CBC with iv=, padding taken off ──▶ Secret
//! ```

use std::fmt;
use std::fs::File;
use std::io::Read as _;

use aes::Aes256;
use cbc::Decryptor;
use cbc::cipher::block_padding::NoPadding;
use cbc::cipher::{BlockModeDecrypt as _, KeyIvInit as _};
use drystone_exec_linux::io_error_words;
use serde_json::Value;

use super::ObjectDef;

/// The largest file that is read: what cryptsetup takes for a key file.
const FILE_LEN_MAX: u64 = 8 << 20;

const KEY_LEN: usize = 32;
const BLOCK_LEN: usize = 16;

/// The bytes of a passphrase or a key. They are not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// The bytes, which need not be text.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The secret that an option names by its id.
///
/// # Errors
/// A message in the words of the reference, when there is no such object, or it is no secret.
pub fn find_secret<'a>(objects: &'a [ObjectDef], id: &str) -> Result<&'a Secret, String> {
    let Some(object) = objects.iter().find(|object| object.id == id) else {
        return Err(format!("No secret with id '{id}'"));
    };
    object.secret.as_ref().ok_or_else(|| format!("Object with id '{id}' is not a secret"))
}

/// The same, where the secret is a passphrase.
///
/// # Errors
/// Also when its bytes are not UTF-8, or one of them is 0.
pub fn find_passphrase<'a>(objects: &'a [ObjectDef], id: &str) -> Result<&'a str, String> {
    let secret = find_secret(objects, id)?;
    let text = std::str::from_utf8(secret.bytes()).ok().filter(|text| !text.contains('\0'));
    text.ok_or_else(|| format!("Data from secret {id} is not valid UTF-8"))
}

/// Reads what a `secret` object holds. The file is read once: it may be a pipe.
pub(super) fn load(object: &ObjectDef, earlier: &[ObjectDef]) -> Result<Secret, String> {
    let property = |key: &str| object.properties.get(key).and_then(Value::as_str);
    let given = match property("file") {
        Some(path) => read(path)?,
        None => property("data").unwrap_or_default().as_bytes().to_vec(),
    };
    let plain = |given: Vec<u8>| match property("format") {
        Some("base64") => decode(&given),
        _ => Ok(given),
    };
    let Some(key_id) = property("keyid") else { return plain(given).map(Secret) };
    if key_id == object.id {
        return Err(format!("Secret with id '{key_id}' has no data"));
    }
    let key = find_secret(earlier, key_id)?.bytes();
    if key.len() != KEY_LEN {
        return Err(format!("Key should be {KEY_LEN} bytes in length"));
    }
    let Some(iv) = property("iv") else { return Err("IV is required to decrypt secret".into()) };
    let iv = decode(iv.as_bytes())?;
    if iv.len() != BLOCK_LEN {
        return Err(format!("IV should be {BLOCK_LEN} bytes in length not {}", iv.len()));
    }
    decrypt(key, &iv, plain(given)?).map(Secret)
}

fn read(path: &str) -> Result<Vec<u8>, String> {
    let failed = |step: &str, error: &std::io::Error| {
        let words = io_error_words(error);
        format!("Unable to read {path}: {step} file “{path}”: {words}")
    };
    let file = File::open(path).map_err(|error| failed("Failed to open", &error))?;
    let mut bytes = Vec::new();
    file.take(FILE_LEN_MAX + 1).read_to_end(&mut bytes).map_err(|error| failed("Error reading", &error))?;
    if bytes.len() as u64 > FILE_LEN_MAX {
        return Err(format!(
            "Unable to read {path}: found more than {FILE_LEN_MAX} bytes, the most of a secret"
        ));
    }
    Ok(bytes)
}

/// Decodes base64 as the reference does: line ends are passed over, and so is what does not fill a group of four at the end.
fn decode(text: &[u8]) -> Result<Vec<u8>, String> {
    if text.contains(&0) {
        return Err("Base64 data contains embedded NUL characters".into());
    }
    let digits: Option<Vec<(u32, bool)>> =
        text.iter().filter(|byte| **byte != b'\n').map(|byte| digit(*byte)).collect();
    let digits = digits.ok_or("Base64 data contains invalid characters")?;
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3);
    for group in digits.chunks_exact(4) {
        let bits = group.iter().fold(0, |bits, (value, _)| bits << 6 | value);
        let [_, first, second, third] = bits.to_be_bytes();
        bytes.push(first);
        bytes.extend((!group[2].1).then_some(second));
        bytes.extend((!group[3].1).then_some(third));
    }
    Ok(bytes)
}

/// The value of a base64 digit, and whether it is padding.
fn digit(byte: u8) -> Option<(u32, bool)> {
    let value = match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        b'=' => return Some((0, true)),
        _ => return None,
    };
    Some((value.into(), false))
}

/// AES-256-CBC; the last byte says how many are padding. `key` and `iv` have their lengths.
fn decrypt(key: &[u8], iv: &[u8], mut text: Vec<u8>) -> Result<Vec<u8>, String> {
    if !text.len().is_multiple_of(BLOCK_LEN) {
        return Err(format!("Length {} must be a multiple of block size {BLOCK_LEN}", text.len()));
    }
    let cipher = Decryptor::<Aes256>::new_from_slices(key, iv).expect("both lengths were looked at");
    cipher.decrypt_padded::<NoPadding>(&mut text).expect("these are whole blocks");
    let padding = text.last().map_or(0, |byte| usize::from(*byte));
    // The reference takes a secret of no bytes, which leaves no room for the padding that it looks for.
    if text.is_empty() || padding > BLOCK_LEN {
        return Err(format!("Incorrect number of padding bytes ({padding}) found on decrypted data"));
    }
    text.truncate(text.len() - padding);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::super::{ObjectArg, add_object, parse_object};
    use super::*;

    /// Adds the objects, and says what the last one holds, or the first mistake.
    fn held(arguments: &[&str]) -> Result<Vec<u8>, String> {
        let mut objects = vec![];
        for argument in arguments {
            let ObjectArg::Define(object) = parse_object(argument)? else { panic!("no help was asked for") };
            add_object(&mut objects, object)?;
        }
        let last = objects.last().expect("an object");
        find_secret(&objects, &last.id).map(|secret| secret.bytes().to_vec())
    }

    #[test]
    fn base64_is_read_as_the_reference_reads_it() {
        let check =
            |text: &str, expected: &[u8]| assert_eq!(decode(text.as_bytes()).as_deref(), Ok(expected));
        check("", b"");
        check("QUJD", b"ABC");
        check("QUI=", b"AB");
        check("QQ==", b"A");
        check("QQ==\nQUJD\n", b"AABC");
        check("QUJDQUI", b"ABC");
        check("/+8=", &[0xff, 0xef]);
        for text in ["Q UI=", "QUI-", "QUI=\r\n", "é"] {
            assert!(decode(text.as_bytes()).is_err(), "{text}");
        }
    }

    /// `printf hunter22 | openssl enc -aes-256-cbc -K 6b… -iv 76… | base64`, with a key of 32 `k` and an `iv` of 16 `v`.
    #[test]
    fn an_encrypted_secret_is_decrypted_with_another() {
        let key = format!("secret,id=k,data={}", "k".repeat(32));
        let encrypted =
            "secret,id=s,keyid=k,format=base64,data=AUGz+B2oaGA9kcw+97gIqA==,iv=dnZ2dnZ2dnZ2dnZ2dnZ2dg==";
        assert_eq!(held(&[&key, encrypted]).as_deref(), Ok(&b"hunter22"[..]));
        let short = held(&["secret,id=k,data=short", encrypted]);
        assert_eq!(short, Err("Key should be 32 bytes in length".into()));
        let empty = held(&[&key, "secret,id=s,keyid=k,data=,iv=dnZ2dnZ2dnZ2dnZ2dnZ2dg=="]);
        assert_eq!(empty, Err("Incorrect number of padding bytes (0) found on decrypted data".into()));
    }

    #[test]
    fn a_file_of_any_length_is_read_to_the_bound_only() {
        let endless = held(&["secret,id=s,file=/dev/zero"]).expect_err("it is endless");
        assert!(endless.contains("more than 8388608 bytes"), "{endless}");
    }

    #[test]
    fn secrets_are_not_printed() {
        assert_eq!(format!("{:?}", Secret(b"hunter22".to_vec())), "Secret(…)");
    }
}
