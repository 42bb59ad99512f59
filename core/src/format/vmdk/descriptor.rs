//! The descriptor: lines of text that say what a disk is made of.
//!
//! ```text
//! # Disk DescriptorFile
//! version=1
//! CID=536583ba                                    changes with the first write after an open
//! parentCID=ffffffff                              the CID that the parent must have; all ones without one
//! createType="twoGbMaxExtentSparse"
//! parentFileNameHint="base.vmdk"
//! RW 4194304 SPARSE "disk-s001.vmdk"              access, sectors, kind, file, first sector of a flat one
//! ddb.adapterType = "ide"
//! ```
//!
//! Source: "Virtual Disk Format 5.0", section "The Descriptor File".

use std::ops::Range;

use nom::branch::alt;
use nom::bytes::complete::{tag, take_until, take_while1};
use nom::character::complete::{char, multispace0, multispace1, u64 as number};
use nom::combinator::opt;
use nom::sequence::{delimited, preceded};
use nom::{IResult, Parser};

use super::VmdkError;
use super::layout::SECTOR;

/// Bytes of a descriptor at the most. Source: as much as `qemu-img` reads.
pub const DESCRIPTOR_LEN_MAX: u64 = (1 << 20) - 1;

/// Extents of a disk at the most: 8 TiB in files of 2 GiB, and each is an open file.
pub const EXTENTS_MAX: usize = 4096;

/// Bytes of a disk at the most: what `qemu-img` can count.
const DISK_LEN_MAX: u64 = i64::MAX as u64 / 512 * 512;

/// The CID of no parent.
const NO_PARENT: u32 = 0xffff_ffff;

/// A descriptor, and the text that it was parsed from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// The content ID.
    pub cid: u32,
    /// The parent's content ID when the image was made; all ones without a parent.
    pub parent_cid: u32,
    /// How the disk is kept.
    pub create_type: String,
    /// The parent's name.
    pub parent: Option<String>,
    /// What the disk is made of, in its order.
    pub extents: Vec<ExtentLine>,
    text: Vec<u8>,
    cid_at: Range<usize>,
}

/// One part of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtentLine {
    /// What may be done with it.
    pub access: LineAccess,
    /// Sectors of the disk.
    pub sectors: u64,
    /// How its file holds them.
    pub kind: ExtentKind,
    /// The file, beside the descriptor; empty for what needs none.
    pub name: String,
    /// First sector in a flat file.
    pub first: u64,
}

/// What may be done with an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineAccess {
    /// `RW`.
    ReadWrite,
    /// `RDONLY`.
    ReadOnly,
}

/// How a file holds an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// `FLAT`: byte for byte.
    Flat,
    /// `VMFS`: so, from the file's first byte on.
    Vmfs,
    /// `SPARSE`: as a hosted sparse extent.
    Sparse,
    /// `VMFSSPARSE`: as a `COWD` extent.
    VmfsSparse,
    /// `SESPARSE`.
    SeSparse,
    /// `ZERO`: nothing but zeros, in no file.
    Zero,
}

impl ExtentKind {
    const ALL: [(&'static str, Self); 6] = [
        ("FLAT", Self::Flat),
        ("VMFS", Self::Vmfs),
        ("SPARSE", Self::Sparse),
        ("VMFSSPARSE", Self::VmfsSparse),
        ("SESPARSE", Self::SeSparse),
        ("ZERO", Self::Zero),
    ];

    /// The word for it.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }
}

impl Descriptor {
    /// Whether the first bytes of a file are those of a descriptor: after comments and empty lines, a version.
    pub fn probe(head: &[u8]) -> bool {
        let mut lines = head.split_inclusive(|byte| *byte == b'\n');
        let line = lines.find(|line| !line.starts_with(b"#") && !line.trim_ascii().is_empty());
        // A line that goes on beyond the first bytes is none of these.
        line.is_some_and(|line| {
            let text = line.strip_suffix(b"\n").map(|text| text.strip_suffix(b"\r").unwrap_or(text));
            matches!(text, Some(b"version=1" | b"version=2" | b"version=3"))
        })
    }

    /// Parses a descriptor, which ends at its first NUL byte.
    ///
    /// # Errors
    /// With the line where it makes no sense.
    pub fn parse(bytes: &[u8]) -> Result<Self, VmdkError> {
        let len = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        let text = &bytes[..len];
        let mut descriptor = Self {
            cid: 0,
            parent_cid: NO_PARENT,
            create_type: String::new(),
            parent: None,
            extents: Vec::new(),
            text: text.to_vec(),
            cid_at: 0..0,
        };
        let mut keys = Keys::default();
        let mut at = 0;
        for (line, number) in text.split_inclusive(|byte| *byte == b'\n').zip(1..) {
            // Names are bytes to the host, and what is no UTF-8 names no file here.
            let words = String::from_utf8_lossy(line);
            descriptor.read_line(words.trim(), number, &mut keys)?;
            if keys.cid == Some(number) {
                descriptor.cid_at = cid_place(line, at);
            }
            at += line.len();
        }
        if keys.cid.is_none() {
            return Err(VmdkError::NotDescriptor { problem: "it has no CID" });
        }
        if !keys.create_type {
            return Err(VmdkError::NotDescriptor { problem: "it has no createType" });
        }
        let sectors = descriptor.extents.iter().try_fold(0u64, |sum, line| sum.checked_add(line.sectors));
        match sectors.and_then(|sectors| sectors.checked_mul(SECTOR)) {
            Some(len) if len <= DISK_LEN_MAX => Ok(descriptor),
            _ => Err(VmdkError::TooLarge { max: DISK_LEN_MAX }),
        }
    }

    /// The text with another content ID.
    pub(super) fn with_cid(&self, cid: u32) -> Self {
        let digits = format!("{cid:08x}");
        let mut text = self.text.clone();
        text.splice(self.cid_at.clone(), digits.bytes());
        let cid_at = self.cid_at.start..self.cid_at.start + digits.len();
        Self { cid, text, cid_at, ..self.clone() }
    }

    /// The bytes that it was parsed from, without what followed them.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// Whether there is a parent.
    pub fn has_parent(&self) -> bool {
        self.parent_cid != NO_PARENT && self.parent.is_some()
    }

    fn read_line(&mut self, line: &str, number: usize, keys: &mut Keys) -> Result<(), VmdkError> {
        if line.is_empty() || line.starts_with('#') {
            return Ok(());
        }
        let first = line.split_whitespace().next().unwrap_or_default();
        if matches!(first, "RW" | "RDONLY" | "NOACCESS") {
            if self.extents.len() >= EXTENTS_MAX {
                return Err(VmdkError::TooManyExtents { max: EXTENTS_MAX });
            }
            let problem = |problem| VmdkError::ExtentLine {
                line: number,
                problem,
                text: line.chars().take(600).collect(),
            };
            self.extents.push(ExtentLine::parse(line).map_err(problem)?);
            return Ok(());
        }
        let Some((key, value)) = line.split_once('=') else { return Ok(()) };
        let value = value.trim();
        let hexadecimal = |key| {
            let digits = value.bytes().all(|byte| byte.is_ascii_hexdigit()).then_some(value);
            digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()).ok_or_else(|| VmdkError::Value {
                line: number,
                key,
                found: value.chars().take(100).collect(),
                expected: "up to eight hexadecimal digits",
            })
        };
        // Of keys that are there twice, the first one counts.
        match key.trim() {
            "CID" if keys.cid.is_none() => {
                self.cid = hexadecimal("CID")?;
                keys.cid = Some(number);
            }
            "parentCID" if !keys.parent_cid => {
                self.parent_cid = hexadecimal("parentCID")?;
                keys.parent_cid = true;
            }
            "createType" if !keys.create_type => {
                self.create_type = unquoted(value).into();
                keys.create_type = true;
            }
            "parentFileNameHint" if self.parent.is_none() => self.parent = Some(unquoted(value).into()),
            _ => {}
        }
        Ok(())
    }
}

/// Which keys were there, and the line of the CID.
#[derive(Default)]
struct Keys {
    cid: Option<usize>,
    parent_cid: bool,
    create_type: bool,
}

/// Where the digits of a line `CID=…` stand, which begins at byte `at`.
fn cid_place(line: &[u8], at: usize) -> Range<usize> {
    let equals = line.iter().position(|byte| *byte == b'=').map_or(0, |equals| equals + 1);
    let blanks = line[equals..].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
    let start = equals + blanks;
    let digits = line[start..].iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    at + start..at + start + digits
}

fn unquoted(value: &str) -> &str {
    value.strip_prefix('"').and_then(|rest| rest.split('"').next()).unwrap_or(value)
}

impl ExtentLine {
    /// Parses a line; says what is wrong with it.
    fn parse(line: &str) -> Result<Self, &'static str> {
        type Words<'a> = (&'a str, u64, &'a str, Option<&'a str>, Option<u64>);
        fn words(line: &str) -> IResult<&str, Words<'_>> {
            let word = || take_while1(|letter: char| letter.is_ascii_alphabetic());
            let quoted = delimited(char('"'), take_until("\""), char('"'));
            let (rest, access) = alt((tag("RW"), tag("RDONLY"), tag("NOACCESS"))).parse(line)?;
            let (rest, sectors) = preceded(multispace1, number).parse(rest)?;
            let (rest, kind) = preceded(multispace1, word()).parse(rest)?;
            let (rest, name) = opt(preceded(multispace1, quoted)).parse(rest)?;
            let (rest, first) = opt(preceded(multispace1, number)).parse(rest)?;
            let (rest, _) = multispace0.parse(rest)?;
            Ok((rest, (access, sectors, kind, name, first)))
        }
        let Ok((rest, (access, sectors, kind, name, first))) = words(line) else {
            return Err("expected access, sectors, kind and a name in quotes");
        };
        let access = match access {
            "RW" => LineAccess::ReadWrite,
            "RDONLY" => LineAccess::ReadOnly,
            _ => return Err("an extent without access cannot be a part of a disk"),
        };
        let kind = ExtentKind::ALL.iter().find(|(word, _)| *word == kind);
        let Some((_, kind)) = kind.copied() else { return Err("a kind of extent that is not known") };
        // A disk of no bytes has one grain directory, and nothing in it.
        if sectors == 0 && kind != ExtentKind::Sparse {
            return Err("an extent of no sectors");
        }
        let name = match (name, kind) {
            (_, ExtentKind::Zero) => "",
            (None | Some(""), _) => return Err("no name"),
            (Some(name), _) => name,
        };
        let first = match (kind, first) {
            (ExtentKind::Flat, None) => return Err("a flat extent needs its first sector"),
            (ExtentKind::Flat, Some(first)) => first,
            _ => 0,
        };
        let end = first.checked_add(sectors).and_then(|end| end.checked_mul(SECTOR));
        if end.is_none_or(|end| end > DISK_LEN_MAX) {
            return Err("more sectors than a file can have");
        }
        // What follows a name that needs no more is another maker's note.
        if !rest.is_empty() && kind == ExtentKind::Flat {
            return Err("something stands behind the first sector");
        }
        Ok(Self { access, sectors, kind, name: name.into(), first })
    }

    /// The line.
    pub fn render(&self) -> String {
        let access = match self.access {
            LineAccess::ReadWrite => "RW",
            LineAccess::ReadOnly => "RDONLY",
        };
        let Self { sectors, kind, name, first, .. } = self;
        match kind {
            ExtentKind::Zero => format!("{access} {sectors} ZERO"),
            ExtentKind::Flat => format!("{access} {sectors} FLAT \"{name}\" {first}"),
            kind => format!("{access} {sectors} {} \"{name}\"", kind.name()),
        }
    }

    /// Checks that the file lies beneath the descriptor's folder, by its name.
    ///
    /// # Errors
    /// When it does not.
    pub fn check_name(&self) -> Result<(), VmdkError> {
        let name = || self.name.clone();
        if self.name.starts_with('/') {
            return Err(VmdkError::AbsoluteName { name: name() });
        }
        if self.name.split('/').any(|part| part == "..") {
            return Err(VmdkError::NameLeavesFolder { name: name() });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(lines: &str) -> String {
        format!(
            "# Disk DescriptorFile\r\nversion=1\r\nCID = 1a2B\r\ncreateType=\"monolithicFlat\"\r\n{lines}\r\n"
        )
    }

    proptest! {
        #[test]
        fn a_line_is_what_it_was(sectors in 1u64..1 << 40, first in 0u64..1 << 40, kind in 0usize..6, written: bool,
                                 name in "[a-zA-Z0-9 ._-]{1,40}") {
            let kind = ExtentKind::ALL[kind].1;
            let line = ExtentLine {
                access: if written { LineAccess::ReadWrite } else { LineAccess::ReadOnly },
                sectors,
                kind,
                name: if kind == ExtentKind::Zero { String::new() } else { name },
                first: if kind == ExtentKind::Flat { first } else { 0 },
            };
            prop_assert_eq!(ExtentLine::parse(&line.render()), Ok(line));
        }

        #[test]
        fn any_text_is_parsed_or_refused(bytes: Vec<u8>, lines in "(RW|CID|=|\"| |\n|[a-zA-Z0-9]|FLAT){0,40}") {
            let _ = Descriptor::parse(&bytes);
            if let Ok(descriptor) = Descriptor::parse(text(&lines).as_bytes()) {
                let other = descriptor.with_cid(7);
                prop_assert_eq!(Descriptor::parse(other.text()), Ok(other));
            }
        }
    }

    #[test]
    fn what_a_descriptor_says() {
        let lines =
            "parentCID=12\nparentFileNameHint=\"base.vmdk\"\nRW 10 FLAT \"a b.vmdk\" 3\nRDONLY 5 ZERO";
        let descriptor = Descriptor::parse(format!("{}\0RW", text(lines)).as_bytes()).expect("legal");
        assert_eq!((descriptor.cid, descriptor.parent_cid, descriptor.has_parent()), (0x1a2b, 0x12, true));
        assert_eq!(
            (&*descriptor.create_type, descriptor.parent.as_deref()),
            ("monolithicFlat", Some("base.vmdk"))
        );
        let rendered: Vec<String> = descriptor.extents.iter().map(ExtentLine::render).collect();
        assert_eq!(rendered, ["RW 10 FLAT \"a b.vmdk\" 3", "RDONLY 5 ZERO"]);
        let other = descriptor.with_cid(0xdead_beef);
        assert!(other.text().windows(16).any(|window| window == b"CID = deadbeef\r\n"));
    }

    #[test]
    fn what_is_wrong_is_told() {
        let check = |lines: &str, expected: &str| {
            let said = Descriptor::parse(text(lines).as_bytes()).expect_err("illegal").to_string();
            assert_eq!(said, expected);
        };
        let line = "Invalid extent line: line 5 of the descriptor: ";
        check("RW 5 FLAT \"a\"", &format!("{line}a flat extent needs its first sector: RW 5 FLAT \"a\""));
        check("RW 0 FLAT \"a\" 0", &format!("{line}an extent of no sectors: RW 0 FLAT \"a\" 0"));
        check("RW 1 BOGUS \"a\"", &format!("{line}a kind of extent that is not known: RW 1 BOGUS \"a\""));
        check("RW 1 SPARSE", &format!("{line}no name: RW 1 SPARSE"));
        let words = "expected access, sectors, kind and a name in quotes";
        check("RW x FLAT \"a\" 0", &format!("{line}{words}: RW x FLAT \"a\" 0"));
        check(
            "RW 9223372036854775807 FLAT \"a\" 0",
            &format!("{line}more sectors than a file can have: RW 9223372036854775807 FLAT \"a\" 0"),
        );
        check(
            "parentCID=xyz",
            "line 5 of the descriptor: 'parentCID' is 'xyz', expected up to eight hexadecimal digits",
        );
        let many = "RW 1 ZERO\n".repeat(EXTENTS_MAX + 1);
        check(&many, "the descriptor names more than 4096 extents");
        let said = Descriptor::parse(b"version=1\ncreateType=\"vmfs\"\n").expect_err("illegal").to_string();
        assert_eq!(said, "invalid VMDK image descriptor: it has no CID");
    }

    #[test]
    fn names_stay_beneath_the_folder() {
        let named = |name: &str| {
            let line = ExtentLine::parse(&format!("RW 1 SPARSE \"{name}\"")).expect("legal");
            line.check_name().err().map(|fault| fault.to_string())
        };
        assert_eq!((named("a.vmdk"), named("sub/a..vmdk"), named("json:{}")), (None, None, None));
        assert!(named("/etc/passwd").is_some_and(|said| said.contains("absolute")));
        assert!(named("sub/../../a").is_some_and(|said| said.contains("'..'")));
        assert!(named("..").is_some());
    }

    #[test]
    fn a_probe_wants_a_version() {
        for (head, expected) in [
            (&b"# Disk DescriptorFile\nversion=1\n"[..], true),
            (b"#\r\n\r\n  \nversion=3\r\nCID", true),
            (b"version=4\n", false),
            (b"version=1", false),
            (b"# only a comment\n", false),
            (b"text\nversion=1\n", false),
        ] {
            assert_eq!(Descriptor::probe(head), expected, "{head:?}");
        }
    }
}
