//! Structures that nothing else here reads from whole images often enough: what is parsed survives encoding, and what is wrong is
//! an error with words. Start at [`parsers`].

use std::error::Error;
use std::fmt::Debug;

use arbitrary::Unstructured;
use drystone_conformance::scenario::Draw;
use drystone_conformance::trace::tell;
use drystone_core::format::luks::layout as luks1;
use drystone_core::format::luks::layout2::{self, Copy, Header2};
use drystone_core::format::vhdx::layout::{BitmapEntry, Guid, Locator, PayloadEntry};
use drystone_core::format::vmdk::layout::{CowdHeader, SeSparseHeader};
use drystone_core::format::vpc::layout::Geometry;
use drystone_core::intent::Errno;
use drystone_core::protocol::nbd::Mode;
use drystone_core::protocol::nbd::layout::{
    self as nbd, BlockSizes, ChunkKind, Extent, InfoReply, InfoRequest, MetaQuery, OldGreeting,
    TransmissionFlags, WireErrno,
};

/// Decides which structure, and what it says, all of it by `data`.
///
/// # Panics
/// When what was parsed does not survive encoding, or a parser panics.
pub fn parsers(data: &[u8]) {
    let mut draw = Unstructured::new(data);
    let draw = &mut draw;
    for _ in 0..4 {
        match draw.below(10) {
            0 => luks2_header(draw),
            1 => luks1_header(draw),
            2 => locator(draw),
            3 => guid(draw),
            4 => bat_entries(draw),
            5 => geometry(draw),
            6 => vmdk_headers(draw),
            7 => handshake(draw),
            8 => info(draw),
            _ => transmission(draw),
        }
    }
}

/// Any bytes, or a few changes of sound ones, and now and then fewer.
fn changed(mut bytes: Vec<u8>, first: usize, draw: &mut Unstructured<'_>) -> Vec<u8> {
    for _ in 0..draw.below(4) {
        if !bytes.is_empty() {
            let at = draw.below(first.min(bytes.len()) as u64) as usize;
            bytes[at] = [0, 1, 0xff, draw.below(256) as u8][draw.below(4) as usize];
        }
    }
    if draw.one_in(6) {
        bytes.truncate(draw.below(bytes.len() as u64 + 1) as usize);
    }
    bytes
}

/// Puts what was parsed into the trace.
fn shown(parsed: impl Debug) {
    tell(|| format!("{parsed:?}"));
}

/// Sees that an error has words, and that what is right survives encoding.
fn survives<T, E>(parsed: Result<T, E>, again: impl FnOnce(&T) -> Result<T, E>)
where
    T: PartialEq + Debug,
    E: Error + PartialEq,
{
    shown(&parsed);
    match parsed {
        Ok(value) => {
            let read = again(&value);
            assert_eq!(read, Ok(value), "what was parsed does not survive encoding");
        }
        Err(error) => assert!(!error.to_string().is_empty(), "an error has words"),
    }
}

fn luks2_header(draw: &mut Unstructured<'_>) {
    let size = layout2::SIZES[draw.below(2) as usize];
    let copy = if draw.one_in(2) { Copy::Primary } else { Copy::Secondary };
    let (label, subsystem) = ([0; 48], [0; 48]);
    let mut uuid = [0; 40];
    uuid[..8].copy_from_slice(b"0123-abc");
    let header = Header2 { size, seqid: draw.below(1 << 60), label, salt: [9; 64], uuid, subsystem };
    assert!(header.json_room() < size && header.uuid_text() == "0123-abc");
    let sound = header.encode(copy, b"{\"a\":1}");
    assert_eq!(layout2::checked_json(&sound, 0).ok(), Some(&b"{\"a\":1}"[..]));
    let at = copy.place(size);
    let place = draw.below(layout2::BINARY_LEN as u64 + 64) as usize;
    let mut bytes = changed(sound, 300, draw);
    if draw.one_in(2)
        && let Some(byte) = bytes.get_mut(place)
    {
        *byte ^= 1;
    }
    let parsed = Header2::parse(&bytes, copy, at);
    survives(parsed, |header| Header2::parse(&header.encode(copy, b"{}"), copy, at));
    if bytes.len() >= layout2::BINARY_LEN
        && let Err(error) = layout2::checked_json(&bytes, at)
    {
        assert!(!error.to_string().is_empty(), "an error has words");
    }
}

/// A header with places for all keys, which pass or do not.
fn luks1_header(draw: &mut Unstructured<'_>) {
    let mut bytes = vec![0; 592];
    let mut put = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
    put(104, 4096);
    put(108, 64);
    put(164, 1000);
    for slot in 0..8 {
        let at = 208 + slot * 48;
        put(at, if slot < 2 { 0x00ac_71f3 } else { 0xdead });
        put(at + 4, 1000);
        put(at + 40, 8 + slot as u32 * 504);
        put(at + 44, 4000);
    }
    bytes[..8].copy_from_slice(b"LUKS\xba\xbe\x00\x01");
    bytes[8..11].copy_from_slice(b"aes");
    bytes[40..51].copy_from_slice(b"xts-plain64");
    bytes[72..78].copy_from_slice(b"sha256");
    let key_len = 1 + draw.below(512);
    assert!(luks1::header_len(key_len) >= luks1::header_len(1));
    for _ in 0..draw.below(3) {
        let slot = draw.below(8) as usize;
        let at = 208 + slot * 48 + [0, 4, 40, 44][draw.below(4) as usize];
        let value = [0, 1, 8, 500, draw.below(1 << 32) as u32][draw.below(5) as usize];
        bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }
    let parsed = luks1::Header::parse(&changed(bytes, 208, draw));
    if let Ok(header) = &parsed
        && let Err(error) = header.check()
    {
        assert!(!error.to_string().is_empty(), "an error has words");
    }
    survives(parsed, |header| luks1::Header::parse(&header.encode()));
}

fn locator(draw: &mut Unstructured<'_>) {
    let pair = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    let pairs = [("parent_linkage", "{0123}"), ("relative_path", "..\\parent.vhdx"), ("k", "")];
    let sound = Locator(pairs[..draw.below(4) as usize].iter().copied().map(pair).collect());
    assert_eq!(sound.value("nothing"), None);
    let mut bytes = sound.encode();
    if draw.one_in(3) {
        bytes.push(draw.below(256) as u8);
        let last = bytes.len();
        bytes[last.saturating_sub(3)..].fill(0xd8);
    }
    let parsed = Locator::parse(&changed(bytes, 60, draw));
    survives(parsed, |locator| Locator::parse(&locator.encode()));
}

fn guid(draw: &mut Unstructured<'_>) {
    let bytes = [(); 16].map(|()| draw.below(256) as u8);
    let guid = Guid::random(bytes);
    let text = format!("{{{guid}}}");
    assert_eq!(Guid::from_text(&text), Some(guid), "{guid:?}");
    let damaged = changed(text.into_bytes(), 38, draw);
    let _ = Guid::from_text(&String::from_utf8_lossy(&damaged));
}

fn bat_entries(draw: &mut Unstructured<'_>) {
    let raw = draw.below(1 << 44) << 20 | draw.below(8);
    if let Some(entry) = PayloadEntry::parse(raw) {
        assert_eq!(PayloadEntry::parse(entry.encode()), Some(entry));
    }
    if let Some(entry) = BitmapEntry::parse(raw) {
        assert_eq!(BitmapEntry::parse(entry.encode()), Some(entry));
    }
}

/// A geometry holds no more than it was asked for, and one that is to hold a disk does.
fn geometry(draw: &mut Unstructured<'_>) {
    let most = 1 << (8 + draw.below(28));
    let sectors = draw.below(most);
    assert!(Geometry::of(sectors).total() <= sectors.max(17 * 4), "{sectors}");
    let held = Geometry::holding(sectors).total();
    assert!(held >= sectors.min(Geometry::LARGEST.total()), "{sectors}: {held}");
}

fn vmdk_headers(draw: &mut Unstructured<'_>) {
    let mut cowd = b"COWD\x01\0\0\0\x03\0\0\0\0\x20\0\0\x80\0\0\0\x04\0\0\0\x01\0\0\0".to_vec();
    cowd.resize(64, 0);
    shown(CowdHeader::parse(&changed(cowd, 44, draw)));
    let mut se_sparse = [0; 512];
    let words = [SeSparseHeader::MAGIC, 0x2_0000_0001, 65536, 8, 64];
    for (word, nth) in words.into_iter().zip(0..) {
        se_sparse[nth * 8..nth * 8 + 8].copy_from_slice(&word.to_le_bytes());
    }
    if !draw.one_in(4) {
        let at = draw.below(48) as usize;
        se_sparse[at] = draw.below(256) as u8;
    }
    shown(SeSparseHeader::parse(&se_sparse));
    let mut volatile = [0; 32];
    volatile[..8].copy_from_slice(&SeSparseHeader::VOLATILE_MAGIC.to_le_bytes());
    shown(SeSparseHeader::replays_journal(&changed(volatile.to_vec(), 32, draw)));
}

fn handshake(draw: &mut Unstructured<'_>) {
    let old = OldGreeting { len: draw.below(1 << 63), flags: TransmissionFlags(draw.below(1 << 16) as u16) };
    let mut bytes = changed(old.encode().to_vec(), 28, draw);
    shown(nbd::parse_greeting(&bytes));
    bytes.drain(..bytes.len().min(16));
    let parsed = OldGreeting::parse(&bytes);
    survives(parsed, |greeting| OldGreeting::parse(&greeting.encode()[16..]));
    let answer = nbd::export_answer(draw.below(1 << 63), TransmissionFlags(3));
    let len = if draw.one_in(2) { 10 } else { answer.len() };
    shown(nbd::parse_export_answer(&answer[..len]));
    let tls = nbd::OptionReply { option: nbd::OptionCode(5), code: nbd::ReplyCode(1), len: 0 };
    let reply = nbd::OptionReply::parse(&changed(tls.encode().to_vec(), 20, draw));
    survives(reply, |reply| nbd::OptionReply::parse(&reply.encode()));
    let named = nbd::server("disk", "a description");
    shown(nbd::parse_server(&changed(named, 30, draw)));
    let query = MetaQuery { export: "disk".into(), queries: vec!["base:allocation".into(), "x".into()] };
    survives(MetaQuery::parse(&changed(query.encode(), 20, draw)), |query| MetaQuery::parse(&query.encode()));
    let context = nbd::meta_context(3, "base:allocation");
    shown(nbd::parse_meta_context(&changed(context, 20, draw)));
    let asked = InfoRequest::encode("disk", &[InfoRequest::NAME, InfoRequest::DESCRIPTION]);
    shown(InfoRequest::parse(&changed(asked, 16, draw)));
}

fn info(draw: &mut Unstructured<'_>) {
    let power =
        |draw: &mut Unstructured<'_>| 1u32 << draw.below(20) | draw.below(20).saturating_sub(18) as u32;
    let sizes = BlockSizes { min: power(draw), preferred: power(draw), max: power(draw) };
    let reply = match draw.below(5) {
        0 => InfoReply::Name("disk".into()),
        1 => InfoReply::Description("a description".into()),
        2 => InfoReply::Unknown(77),
        _ => InfoReply::BlockSize(sizes),
    };
    let bytes = changed(reply.encode(), if draw.one_in(2) { 2 } else { 16 }, draw);
    shown(InfoReply::parse(&bytes));
}

fn transmission(draw: &mut Unstructured<'_>) {
    const ERRNOS: [Errno; 12] = [
        Errno::EPERM,
        Errno::EROFS,
        Errno::EIO,
        Errno::ENOMEM,
        Errno::EINVAL,
        Errno::ENOSPC,
        Errno::EOVERFLOW,
        Errno::ENOTSUP,
        Errno::ESHUTDOWN,
        Errno::EFBIG,
        Errno::EAGAIN,
        Errno::ENXIO,
    ];
    let error = WireErrno::of(ERRNOS[draw.below(12) as usize]);
    assert_eq!(WireErrno::of(error.errno()), error, "an errno that has a number comes back");
    let offset = draw.one_in(2);
    let mut bytes = nbd::error_payload(error, &"é".repeat(draw.below(2200) as usize));
    if offset {
        bytes.extend(draw.below(1 << 40).to_be_bytes());
    }
    let kind = if offset { ChunkKind::ERROR_OFFSET } else { ChunkKind::ERROR };
    shown(nbd::parse_error(kind, &changed(bytes, 6, draw)));
    let (mode, kind) = match draw.one_in(2) {
        true => (Mode::Extended, ChunkKind(6)),
        false => (Mode::Structured, ChunkKind(5)),
    };
    let extents: Vec<_> =
        (0..draw.below(5)).map(|_| Extent { len: draw.below(1 << 20), flags: draw.below(4) }).collect();
    let payload = changed(nbd::status_payload(1, &extents, mode), 12, draw);
    shown(nbd::parse_status(kind, &payload));
}
