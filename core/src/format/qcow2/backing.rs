//! Backing: the name and the format of the backing file, as the image states them.

use super::layout::{Autoclear, BACKING_NAME_MAX, Header};
use super::{Qcow2, Qcow2Error};
use crate::buf::Buf;
use crate::engine::Io;
use crate::error::Result;
use crate::graph::driver::Role;
use crate::intent::Fua;

/// Bytes of a format's name at the most, which the reference reads back.
const FORMAT_MAX: usize = 15;

/// Bytes that a host writes whole or not at all.
const SECTOR: usize = 512;

/// Bytes of the first cluster that are looked at for room for another header.
const HEADER_ROOM: u64 = 64 << 10;

/// Byte of the field that says where the extensions begin. Source: \[qcow2\] "Header", header_length.
const HEADER_LENGTH: usize = 100;

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
    /// Order on disk: all data and metadata, a barrier, then the header in [`steps`], each with a barrier. What was copied
    /// to make up for the difference between the two backing files is durable, and pointed to, before the header names
    /// the other one; a crash leaves the image over the one or the other, and a guest sees the same disk.
    pub(crate) async fn change_backing(&self, io: &Io, backing: Option<(&str, Option<&str>)>) -> Result<()> {
        self.check_backing(backing).map_err(|fault| self.fail(fault))?;
        self.flush_all(io).await?;
        let _one_at_a_time = self.headers.enter(&io.shared().tasks).await;
        let header = self.with_backing(backing).map_err(|fault| self.fail(fault))?;
        let new = header.encode().map_err(|fault| self.fail(fault))?;
        let file = io.child(Role::File);
        let room = self.geometry.cluster_size.min(HEADER_ROOM) as usize;
        let old = io.read_bytes("qcow2.change_backing/read", file, 0, room).await?;
        for (at, bytes) in steps(&old, &new, header.version) {
            io.write("qcow2.change_backing", file, at as u64, Buf::from(bytes), Fua::No).await.1?;
            // Each step is durable before the next one.
            self.barrier_for(io, "qcow2.change_backing/step").await?;
        }
        *self.header.borrow_mut() = header;
        Ok(())
    }
}

/// What is written where, one after the other, so that the first bytes of the image turn from `old`, as much of the first
/// cluster as may hold headers, to `new`. Hosts write a sector whole or not at all, and several in any order: the bytes
/// that are in use change in one sector at a time, the first one, and a crash between any two steps leaves a header that
/// is the old one or says what the new one says.
///
/// ```text
///   fields | extensions, name (old)     |                       what is there
///   fields | extensions, name (old)     | extensions, name      nothing points to the new ones
///   fields, header_length ───────────────▶ extensions, name     the new header; the old extensions are fields unknown
///   fields | … and the rest of the new  | extensions, name      nothing points to these
///   fields | extensions, name           |                       the new header where headers are
/// ```
///
/// Where the first cluster has no room for both, which takes clusters below 4 KiB and long names, all is written at once.
fn steps(old: &[u8], new: &[u8], version: u32) -> Vec<(usize, Vec<u8>)> {
    let whole = vec![(0, new.to_vec())];
    if new.len() <= SECTOR || old.get(SECTOR..new.len()) == Some(&new[SECTOR..]) {
        return whole;
    }
    // The mark that ends the extensions is eight zeros.
    let used = old.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1).next_multiple_of(8) + 8;
    let spare = used.max(new.len()).next_multiple_of(8);
    let number = |at: usize| u32::from_be_bytes(new[at..at + 4].try_into().expect("four bytes")) as usize;
    let name_at = number(12);
    let start = if version < 3 { name_at } else { number(HEADER_LENGTH) };
    if start == 0 || start > SECTOR || spare + new.len() - start > old.len() {
        return whole;
    }
    let mut first = new[..start].to_vec();
    let moved = |at: usize| ((at - start + spare) as u32).to_be_bytes();
    if name_at != 0 {
        first[12..16].copy_from_slice(&moved(name_at));
    }
    if version < 3 {
        // The name alone may be anywhere, and stays there.
        return vec![(spare, new[start..].to_vec()), (0, first)];
    }
    first[HEADER_LENGTH..HEADER_LENGTH + 4].copy_from_slice(&(spare as u32).to_be_bytes());
    // Beyond the fields, the first sector stays as it is until the rest of the new header is there.
    vec![
        (spare, new[start..].to_vec()),
        (0, first),
        (SECTOR, new[SECTOR..].to_vec()),
        (0, new[..SECTOR].to_vec()),
        // Room for the next change.
        (spare, vec![0; new.len() - start]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(version: u32, name: &str, format: Option<&str>) -> Vec<u8> {
        let options = crate::format::qcow2::CreateOptions {
            version,
            backing: Some((name.into(), format.map(str::to_owned))),
            ..crate::format::qcow2::CreateOptions::new(1 << 20)
        };
        options.header_bytes()
    }

    /// After every step, with any of its sectors written or not, there is the old backing file or the new one.
    #[test]
    fn no_torn_write_mixes_two_headers() {
        let long = "n".repeat(600);
        for version in [2, 3] {
            for (old_name, new_name) in [("a", "other"), ("a-longer-name", "b"), ("a", &long), (&long, "b")] {
                for (old_format, new_format) in
                    [(None, Some("raw")), (Some("qcow2"), Some("raw")), (Some("raw"), None)]
                {
                    let old = header(version, old_name, old_format);
                    let new = header(version, new_name, new_format);
                    let legal = [(old_name, old_format), (new_name, new_format)];
                    let mut disk = old.clone();
                    disk.resize(4096, 0);
                    let steps = steps(&disk, &new, version);
                    for (number, (at, bytes)) in steps.iter().enumerate() {
                        for torn in 0..256 {
                            let mut left = disk.clone();
                            for (offset, byte) in bytes.iter().enumerate() {
                                let sector = (at + offset) / SECTOR - at / SECTOR;
                                if torn >> sector & 1 == 1 {
                                    left[at + offset] = *byte;
                                }
                            }
                            let found = Header::parse(&left).expect("a header");
                            let name = found.backing_file.as_deref().expect("a name");
                            let found = (name, found.backing_format.as_deref());
                            assert!(
                                legal.contains(&found),
                                "version {version}, step {number}, {torn:x}: {found:?}"
                            );
                        }
                        disk[*at..at + bytes.len()].copy_from_slice(bytes);
                    }
                    let found = Header::parse(&disk).expect("a header");
                    assert_eq!(found.backing_file.as_deref(), Some(new_name));
                    assert!(found.more.is_empty());
                }
            }
        }
    }
}
