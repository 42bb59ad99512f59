//! Reading is the inverse of writing, and hostile bytes are refused.

use proptest::prelude::*;

use super::*;
use crate::protocol::nbd::Mode;

fn name() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), "[a-z/:]{1,40}", "[ä-ü]{1,9}"]
}

fn info() -> impl Strategy<Value = InfoReply> {
    let sizes = (0u32..17, 0u32..6).prop_map(|(min, more)| BlockSizes {
        min: 1 << min,
        preferred: 1 << (min + more),
        max: (1 << min) * 37,
    });
    prop_oneof![
        (0..=i64::MAX as u64, any::<u16>())
            .prop_map(|(len, flags)| InfoReply::Export { len, flags: TransmissionFlags(flags) }),
        name().prop_map(InfoReply::Name),
        name().prop_map(InfoReply::Description),
        sizes.prop_map(InfoReply::BlockSize),
        (4u16..).prop_map(InfoReply::Unknown),
    ]
}

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![Just(Mode::Simple), Just(Mode::Structured), Just(Mode::Extended)]
}

proptest! {
    #[test]
    fn requests(flags: u16, command: u16, cookie: u64, offset: u64, len: u32, mode in mode()) {
        let (flags, command) = (CommandFlags(flags), CommandCode(command));
        let request = Request { flags, command, cookie, offset, len: len.into() };
        let (bytes, count) = request.encode(mode);
        prop_assert_eq!(parse_request(mode, &bytes[..count]), Ok(request));
    }

    #[test]
    fn replies(last: bool, kind: u16, cookie: u64, offset: u64, len: u32, extended: bool, error: u32) {
        let mode = if extended { Mode::Extended } else { Mode::Structured };
        let offset = if extended { offset } else { 0 };
        let chunk = Chunk { last, kind: ChunkKind(kind), cookie, offset, len: len.into() };
        let (bytes, count) = chunk.encode(mode);
        let kind = ReplyKind::parse(mode, bytes[..4].try_into().expect("four"))?;
        prop_assert_eq!(kind.header_len(), count);
        prop_assert_eq!(Reply::parse(kind, &bytes[..count]), Ok(Reply::Chunk(chunk)));
        let simple = SimpleReply { error: WireErrno(error), cookie };
        let bytes = simple.encode();
        let kind = ReplyKind::parse(Mode::Simple, bytes[..4].try_into().expect("four"))?;
        prop_assert_eq!(Reply::parse(kind, &bytes), Ok(Reply::Simple(simple)));
    }

    #[test]
    fn options(option: u32, code: u32, len: u32) {
        let header = OptionHeader { option: OptionCode(option), len };
        prop_assert_eq!(OptionHeader::parse(&header.encode()), Ok(header));
        let reply = OptionReply { option: OptionCode(option), code: ReplyCode(code), len };
        prop_assert_eq!(OptionReply::parse(&reply.encode()), Ok(reply));
    }

    #[test]
    fn information(reply in info(), name in name(), asked in prop::collection::vec(any::<u16>(), 0..5)) {
        prop_assert_eq!(InfoReply::parse(&reply.encode()), Ok(reply));
        let asked: Vec<_> = asked.into_iter().map(InfoRequest).collect();
        prop_assert_eq!(InfoRequest::parse(&InfoRequest::encode(&name, &asked)), Ok((name, asked)));
    }

    #[test]
    fn contexts(export in name(), queries in prop::collection::vec(name(), 0..5), id: u32) {
        let query = MetaQuery { export: export.clone(), queries };
        prop_assert_eq!(MetaQuery::parse(&query.encode()), Ok(query));
        prop_assert_eq!(parse_meta_context(&meta_context(id, &export)), Ok((id, export.clone())));
        prop_assert_eq!(parse_server(&server(&export, "words")), Ok((export, "words".to_owned())));
    }

    #[test]
    fn status(context: u32, lens in prop::collection::vec(1..u32::MAX, 1..9), flags: u32, extended: bool) {
        let extents: Vec<_> =
            lens.into_iter().map(|len| Extent { len: len.into(), flags: flags.into() }).collect();
        let (mode, kind) = match extended {
            true => (Mode::Extended, ChunkKind::BLOCK_STATUS_EXT),
            false => (Mode::Structured, ChunkKind::BLOCK_STATUS),
        };
        let bytes = status_payload(context, &extents, mode);
        prop_assert_eq!(parse_status(kind, &bytes), Ok((context, extents)));
    }

    #[test]
    fn errors(number in 1u32.., message in ".{0,50}") {
        let bytes = error_payload(WireErrno(number), &message);
        prop_assert_eq!(parse_error(ChunkKind::ERROR, &bytes), Ok((WireErrno(number), None)));
    }

    #[test]
    fn whatever_comes_is_answered(bytes in prop::collection::vec(any::<u8>(), 0..80), kind: u16) {
        let _ = parse_greeting(&bytes);
        let _ = OldGreeting::parse(&bytes);
        let _ = OptionHeader::parse(&bytes);
        let _ = OptionReply::parse(&bytes);
        let _ = InfoReply::parse(&bytes);
        let _ = InfoRequest::parse(&bytes);
        let _ = MetaQuery::parse(&bytes);
        let _ = parse_meta_context(&bytes);
        let _ = parse_server(&bytes);
        let _ = parse_error(ChunkKind(kind), &bytes);
        let _ = parse_status(ChunkKind(kind), &bytes);
        let _ = parse_request(Mode::Extended, &bytes);
    }
}

#[test]
fn greetings() {
    let flags = HandshakeFlags::FIXED_NEWSTYLE.with(HandshakeFlags::NO_ZEROES);
    assert_eq!(greeting(flags)[..16], *b"NBDMAGICIHAVEOPT");
    assert_eq!(parse_greeting(&greeting(flags)[..16]), Ok(true));
    let old = OldGreeting { len: 512, flags: TransmissionFlags(3) };
    assert_eq!(parse_greeting(&old.encode()[..16]), Ok(false));
    assert_eq!(OldGreeting::parse(&old.encode()[16..]), Ok(old));
}

/// CVE-2022-26495: a length near 2^32 that overflows when something is added to it.
#[test]
fn a_name_of_4_gib_is_refused_before_anything_is_added_to_its_length() {
    let mut bytes = InfoRequest::encode("disk", &[]);
    bytes[..4].fill(0xff);
    assert!(matches!(InfoRequest::parse(&bytes), Err(crate::protocol::nbd::NbdError::TooMuch { .. })));
}

/// CVE-2020-10761: an error message of more than the longest string.
#[test]
fn a_long_message_is_cut_at_a_character() {
    let bytes = error_payload(WireErrno(22), &"ä".repeat(5000));
    assert_eq!(bytes.len(), 6 + 4096);
    assert!(parse_error(ChunkKind::ERROR, &bytes).is_ok());
    let bytes = error_payload(WireErrno(22), &format!("x{}", "ä".repeat(5000)));
    assert_eq!(bytes.len(), 6 + 4095);
}

/// CVE-2023-5871 and CVE-2023-5215: extents of no bytes, and a size that is negative as a signed number.
#[test]
fn empty_extents_and_negative_sizes_are_refused() {
    let bytes = status_payload(1, &[Extent { len: 0, flags: 0 }], Mode::Structured);
    assert!(parse_status(ChunkKind::BLOCK_STATUS, &bytes).is_err());
    assert!(parse_status(ChunkKind::BLOCK_STATUS, &1u32.to_be_bytes()).is_err());
    let export = InfoReply::Export { len: 1 << 63, flags: TransmissionFlags::HAS_FLAGS };
    assert!(InfoReply::parse(&export.encode()).is_err());
}
