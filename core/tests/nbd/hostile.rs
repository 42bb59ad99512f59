//! Peers that break the rules. Each is a row of the list of known failures of others, or a rule of the protocol.

use std::rc::Rc;

use drystone_core::buf::{Buf, BufList};
use drystone_core::intent::{Errno, Fua};
use drystone_core::protocol::nbd::client::{self, Command, Encryption, Negotiated, Order, Purpose, Wishes};
use drystone_core::protocol::nbd::layout::{
    BlockSizes, Chunk, ChunkKind, ClientFlags, CommandCode, CommandFlags, Extent, HandshakeFlags,
    InfoRequest, MetaQuery, OptionCode, OptionHeader, OptionReply, ReplyCode, Request, SimpleReply,
    TransmissionFlags, WireErrno, greeting,
};
use drystone_core::protocol::nbd::limits::{ANNOUNCED_MAX, OPTIONS_MAX, PAYLOAD_MAX, REQUESTS_MAX};
use drystone_core::protocol::nbd::server::{
    Answer, Chosen, Export, Negotiation, Security, Step, Transmission,
};
use drystone_core::protocol::nbd::{Mode, NbdError, Outgoing};

use super::peer::{Server, connect, export, take, wishes};

fn negotiation(security: Security) -> Negotiation {
    let mut server = Negotiation::new(Rc::new([export()]), security);
    take(server.out(), usize::MAX);
    let flags = ClientFlags::FIXED_NEWSTYLE.with(ClientFlags::NO_ZEROES);
    assert_eq!(server.feed(&mut &flags.0.to_be_bytes()[..]), Ok(None));
    server
}

fn option(code: OptionCode, data: &[u8]) -> Vec<u8> {
    [&OptionHeader { option: code, len: data.len() as u32 }.encode()[..], data].concat()
}

/// Gives a server an option; returns the type of its last reply.
fn ask(server: &mut Negotiation, code: OptionCode, data: &[u8]) -> ReplyCode {
    assert_eq!(server.feed(&mut &option(code, data)[..]), Ok(None));
    let said = take(server.out(), usize::MAX);
    let mut rest = &said[..];
    loop {
        let reply = OptionReply::parse(&rest[..20]).expect("a reply");
        assert_eq!(reply.option, code);
        rest = &rest[20 + reply.len as usize..];
        if rest.is_empty() {
            return reply.code;
        }
    }
}

/// CVE-2017-15119: a client that gives options without end.
#[test]
fn options_come_to_an_end() {
    let mut server = negotiation(Security::Plain);
    for _ in 0..OPTIONS_MAX {
        assert_eq!(ask(&mut server, OptionCode(99), &[]), ReplyCode::ERR_UNSUP);
    }
    let refused = server.feed(&mut &option(OptionCode(99), &[])[..]);
    assert!(matches!(refused, Err(NbdError::TooMuch { what: "options", .. })));
    let mut server = negotiation(Security::Plain);
    let long = option(OptionCode(99), &vec![0; 1 << 20]);
    let fed = (0..100).find_map(|_| {
        take(server.out(), usize::MAX);
        server.feed(&mut &long[..]).err()
    });
    assert!(matches!(fed, Some(NbdError::TooMuch { what: "bytes before transmission", .. })));
}

/// CVE-2017-15118, CVE-2022-26496: names that are longer than any.
#[test]
fn long_names_are_refused() {
    let name = "x".repeat(4097);
    let mut server = negotiation(Security::Plain);
    let data = InfoRequest::encode(&name, &[]);
    assert_eq!(ask(&mut server, OptionCode::GO, &data), ReplyCode::ERR_INVALID);
    assert_eq!(ask(&mut server, OptionCode::INFO, &vec![0xff; 70_000]), ReplyCode::ERR_TOO_BIG);
    let refused = server.feed(&mut &option(OptionCode::EXPORT_NAME, name.as_bytes())[..]);
    assert!(matches!(refused, Err(NbdError::TooMuch { .. })));
    let longest = InfoRequest::encode(&"y".repeat(4096), &[]);
    assert_eq!(ask(&mut negotiation(Security::Plain), OptionCode::INFO, &longest), ReplyCode::ERR_UNKNOWN);
}

/// CVE-2021-3716: what was agreed on before encryption came from anyone.
#[test]
fn encryption_begins_with_nothing_agreed_on() {
    let mut server = negotiation(Security::Required);
    for code in [OptionCode::LIST, OptionCode::STRUCTURED_REPLY, OptionCode::GO] {
        assert_eq!(ask(&mut server, code, &[]), ReplyCode::ERR_TLS_REQD);
    }
    let mut input =
        &[option(OptionCode::STARTTLS, &[]), option(OptionCode::STRUCTURED_REPLY, &[])].concat()[..];
    assert_eq!(server.feed(&mut input), Ok(Some(Step::StartTls)));
    // What follows is left alone, for who begins encryption to refuse.
    assert_eq!(input.len(), 16);
    assert_eq!(server.feed(&mut input), Ok(None));
    assert_eq!(input.len(), 16);
    take(server.out(), usize::MAX);
    server.encrypted();
    assert_eq!(ask(&mut server, OptionCode::STARTTLS, &[]), ReplyCode::ERR_POLICY);
    let query = MetaQuery { export: "disk".into(), queries: vec!["base:allocation".into()] }.encode();
    assert_eq!(ask(&mut server, OptionCode::SET_META_CONTEXT, &query), ReplyCode::ERR_INVALID);
    let mut server = negotiation(Security::Required);
    let refused = server.feed(&mut &option(OptionCode::EXPORT_NAME, b"disk")[..]);
    assert!(refused.is_err(), "an export without encryption");
}

/// CVE-2019-14851: what follows on a question about an export, in any order, is an answer or an end.
#[test]
fn a_question_about_an_export_decides_nothing() {
    let info = InfoRequest::encode("disk", &[]);
    let meta = MetaQuery { export: "disk".into(), queries: vec![] }.encode();
    let name = b"disk".to_vec();
    use OptionCode as O;
    for (code, data, goes_on) in [
        (O::INFO, &info, true),
        (O::SET_META_CONTEXT, &meta, true),
        (O::LIST_META_CONTEXT, &meta, true),
        (O::STARTTLS, &vec![], true),
        (O::LIST, &vec![], true),
        (O::GO, &info, false),
        (O::EXPORT_NAME, &name, false),
        (O::ABORT, &vec![], false),
    ] {
        let mut server = negotiation(Security::Plain);
        assert_eq!(ask(&mut server, O::INFO, &info), ReplyCode::ACK);
        let step = server.feed(&mut &option(code, data)[..]).expect("nothing of it is against the rules");
        assert_eq!(step.is_none(), goes_on, "{code:?}: {step:?}");
    }
}

/// CVE-2013-6410, CVE-2011-1925: a name is the export's or it is not; one that only begins so opens nothing.
#[test]
fn an_export_has_one_name() {
    for name in ["dis", "disk2", "disk ", "disk/", "diskdisk", "DISK", "", "d"] {
        let data = InfoRequest::encode(name, &[]);
        for code in [OptionCode::INFO, OptionCode::GO] {
            assert_eq!(
                ask(&mut negotiation(Security::Plain), code, &data),
                ReplyCode::ERR_UNKNOWN,
                "{name:?}"
            );
        }
        let refused =
            negotiation(Security::Plain).feed(&mut &option(OptionCode::EXPORT_NAME, name.as_bytes())[..]);
        assert!(refused.is_err(), "{name:?}");
    }
}

#[test]
fn contexts_are_chosen_for_one_export_and_the_last_choice_counts() {
    let mut server = negotiation(Security::Plain);
    assert_eq!(ask(&mut server, OptionCode::STRUCTURED_REPLY, &[]), ReplyCode::ACK);
    assert_eq!(ask(&mut server, OptionCode::STRUCTURED_REPLY, &[]), ReplyCode::ERR_INVALID);
    let query = |queries: &[&str]| {
        let queries = queries.iter().map(|query| (*query).to_owned()).collect();
        MetaQuery { export: "disk".into(), queries }.encode()
    };
    let set = OptionCode::SET_META_CONTEXT;
    assert_eq!(ask(&mut server, set, &query(&["base:allocation", "qemu:dirty-bitmap:b0"])), ReplyCode::ACK);
    assert_eq!(ask(&mut server, set, &query(&["qemu:", "base:", "qemu:allocation-depth"])), ReplyCode::ACK);
    let go = option(OptionCode::GO, &InfoRequest::encode("disk", &[]));
    let Ok(Some(Step::Chosen(chosen))) = server.feed(&mut &go[..]) else { panic!("the export is there") };
    assert_eq!(chosen, Chosen { export: 0, mode: Mode::Structured, contexts: vec![1] });
}

fn serving(mode: Mode) -> Transmission {
    Transmission::new(&export(), Chosen { export: 0, mode, contexts: vec![0] }, Outgoing::new())
}

fn request(mode: Mode, command: CommandCode, flags: CommandFlags, offset: u64, len: u64) -> Vec<u8> {
    let (bytes, count) = Request { flags, command, cookie: 5, offset, len }.encode(mode);
    bytes[..count].to_vec()
}

/// Gives a server a request that it refuses by itself; returns the number that it answers.
fn refusal(mode: Mode, command: CommandCode, flags: CommandFlags, offset: u64, len: u64) -> u32 {
    let mut server = serving(mode);
    let mut bytes = request(mode, command, flags, offset, len);
    if command == CommandCode::WRITE {
        bytes.resize(bytes.len() + len as usize, 0);
    }
    let order = server.feed(&mut &bytes[..], |len| Buf::zeroed(len).into()).expect("answered");
    assert!(order.is_none(), "{order:?}");
    let said: Vec<u8> = server.out().slices().flatten().copied().collect();
    let at = match mode {
        Mode::Simple => 4,
        Mode::Structured => 20,
        Mode::Extended => 32,
    };
    u32::from_be_bytes(said[at..at + 4].try_into().expect("four"))
}

/// CVE-2005-3534, CVE-2011-0530, CVE-2025-47712: lengths beyond the buffer, and offsets that overflow.
#[test]
fn requests_that_do_not_fit_are_refused() {
    use CommandCode as C;
    let none = CommandFlags::NONE;
    for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
        assert_eq!(refusal(mode, C::READ, none, 4000, 97), 22);
        assert_eq!(refusal(mode, C::READ, none, u64::MAX, 2), 22);
        assert_eq!(refusal(mode, C::READ, none, 0, 0xffff_ffff), 22);
        assert_eq!(refusal(mode, C::WRITE, none, 4000, 97), 28);
        assert_eq!(refusal(mode, C::WRITE, CommandFlags::DF, 0, 9), 22);
        assert_eq!(refusal(mode, C::WRITE_ZEROES, none, 1, u32::MAX.into()), 28);
        assert_eq!(refusal(mode, C::TRIM, none, 4097, 0), 22);
        assert_eq!(refusal(mode, CommandCode(77), none, 0, 0), 22);
        assert_eq!(refusal(mode, C::FLUSH, CommandFlags(0x8000), 0, 0), 22);
    }
    assert_eq!(refusal(Mode::Extended, C::TRIM, none, 1, u64::MAX), 22);
    assert_eq!(refusal(Mode::Structured, C::BLOCK_STATUS, none, 0, 0), 22);
}

#[test]
fn a_flush_has_no_range_whatever_it_says() {
    let mut server = serving(Mode::Simple);
    let bytes = request(Mode::Simple, CommandCode::FLUSH, CommandFlags::NONE, u64::MAX, 9);
    let order = server.feed(&mut &bytes[..], |_| BufList::new()).expect("legal").expect("an order");
    assert_eq!((order.offset, order.len), (0, 0));
}

/// CVE-2011-0530: a length that is larger than any buffer is refused before anything of it is read.
#[test]
fn data_that_no_buffer_is_large_enough_for_ends_the_connection() {
    let mut server = serving(Mode::Simple);
    let bytes = request(Mode::Simple, CommandCode::WRITE, CommandFlags::NONE, 0, u64::from(PAYLOAD_MAX) + 1);
    let fed = server.feed(&mut &bytes[..], |_| panic!("nothing is allocated for it"));
    assert!(matches!(fed, Err(NbdError::TooMuch { .. })));
}

/// A client that announces more than it sends, a mebibyte at a time or in drops, gets as much memory as it fills.
#[test]
fn memory_for_what_is_written_comes_as_it_is_filled() {
    const LEN: usize = 32 << 20;
    let large = Export { len: 1 << 30, ..export() };
    for piece in [1 << 20, 100_000] {
        let chosen = Chosen { export: 0, mode: Mode::Simple, contexts: vec![] };
        let mut server = Transmission::new(&large, chosen, Outgoing::new());
        let (mut taken, mut sent) = (0, 0);
        let head = request(Mode::Simple, CommandCode::WRITE, CommandFlags::NONE, 0, LEN as u64);
        let mut feed = |server: &mut Transmission, bytes: &[u8]| {
            let mut room = |len| {
                taken += len;
                BufList::from(Buf::zeroed(len))
            };
            let order = server.feed(&mut &bytes[..], &mut room).expect("legal");
            (taken, order)
        };
        assert_eq!(feed(&mut server, &head).0, ANNOUNCED_MAX);
        let order = loop {
            let bytes: Vec<u8> = (sent..LEN.min(sent + piece)).map(|at| (at / 512) as u8).collect();
            sent += bytes.len();
            let (taken, order) = feed(&mut server, &bytes);
            assert!(taken <= LEN.min(2 * sent + ANNOUNCED_MAX), "{taken} bytes for {sent}");
            if let Some(order) = order {
                break order;
            }
        };
        assert_eq!((sent, order.len, order.data.len_bytes()), (LEN, LEN as u64, LEN));
        let whole = order.data.into_single();
        assert!(whole.iter().enumerate().all(|(at, byte)| *byte == (at / 512) as u8));
    }
}

/// A client that asks and does not read.
#[test]
fn what_is_in_flight_is_bounded() {
    let mut server = serving(Mode::Structured);
    let one = request(Mode::Structured, CommandCode::READ, CommandFlags::NONE, 0, 4096);
    let many = one.repeat(REQUESTS_MAX + 10);
    let mut input = &many[..];
    let mut orders = Vec::new();
    while let Some(order) = server.feed(&mut input, |len| Buf::zeroed(len).into()).expect("legal") {
        orders.push(order);
    }
    assert_eq!((orders.len(), input.len()), (REQUESTS_MAX, 10 * one.len()));
    assert!(!server.has_room());
    server.leave();
    assert_eq!(server.feed(&mut input, |_| BufList::new()).expect("nothing is taken").map(|_| ()), None);
}

fn server_says(parts: &[&[u8]], wishes: Wishes) -> Result<Option<client::Step>, NbdError> {
    let mut client = client::Negotiation::new(wishes);
    let bytes = parts.concat();
    client.feed(&mut &bytes[..])
}

fn reply(option: OptionCode, code: ReplyCode, data: &[u8]) -> Vec<u8> {
    [&OptionReply { option, code, len: data.len() as u32 }.encode()[..], data].concat()
}

/// CVE-2019-14842: encryption that is refused is a failure, never a plain connection.
#[test]
fn encryption_that_is_refused_is_a_failure() {
    let greeting = greeting(HandshakeFlags::FIXED_NEWSTYLE.with(HandshakeFlags::NO_ZEROES));
    let wishes = Wishes { encryption: Encryption::Required, ..wishes(Mode::Extended) };
    for code in [ReplyCode::ERR_POLICY, ReplyCode::ERR_UNSUP, ReplyCode::ERR_INVALID] {
        let refused = reply(OptionCode::STARTTLS, code, b"no");
        assert!(server_says(&[&greeting, &refused], wishes.clone()).is_err());
    }
    // Nor is a server that cannot encrypt, or knows no options.
    let plain = greeting_without_options();
    assert!(server_says(&[&plain], wishes.clone()).is_err());
    let old = drystone_core::protocol::nbd::layout::OldGreeting { len: 512, flags: TransmissionFlags(1) };
    assert!(server_says(&[&old.encode()], wishes).is_err());
}

fn greeting_without_options() -> [u8; 18] {
    greeting(HandshakeFlags::NO_ZEROES)
}

#[test]
fn old_servers_and_plain_ones_are_understood() {
    let flags = TransmissionFlags::HAS_FLAGS.with(TransmissionFlags::SEND_FLUSH);
    let old = drystone_core::protocol::nbd::layout::OldGreeting { len: 512, flags };
    let nameless = Wishes { export: String::new(), ..wishes(Mode::Extended) };
    let Ok(Some(client::Step::Use(found))) = server_says(&[&old.encode()], nameless) else { panic!("legal") };
    assert_eq!((found.len, found.flags, found.mode), (512, flags, Mode::Simple));
    let answer = drystone_core::protocol::nbd::layout::export_answer(1024, flags);
    let found = server_says(&[&greeting_without_options(), &answer[..10]], wishes(Mode::Extended));
    let Ok(Some(client::Step::Use(found))) = found else { panic!("legal: {found:?}") };
    assert_eq!((found.len, found.mode), (1024, Mode::Simple));
    assert!(server_says(&[&old.encode()], wishes(Mode::Simple)).is_err(), "it has no export of that name");
}

#[test]
fn a_server_that_answers_something_else_is_refused() {
    let hello = greeting(HandshakeFlags::FIXED_NEWSTYLE);
    for wrong in [
        reply(OptionCode::GO, ReplyCode::ACK, &[]),
        reply(OptionCode::EXTENDED_HEADERS, ReplyCode::INFO, &[0; 12]),
        OptionReply { option: OptionCode::EXTENDED_HEADERS, code: ReplyCode::ERR_INVALID, len: u32::MAX }
            .encode()
            .to_vec(),
        vec![0; 20],
    ] {
        assert!(server_says(&[&hello, &wrong], wishes(Mode::Extended)).is_err());
    }
    // One that acknowledges the choice and never said how large the export is.
    let simple = Wishes { mode: Mode::Simple, ..wishes(Mode::Simple) };
    assert!(server_says(&[&hello, &reply(OptionCode::GO, ReplyCode::ACK, &[])], simple).is_err());
    let listing = Wishes { purpose: Purpose::List, ..wishes(Mode::Simple) };
    let denied = reply(OptionCode::LIST, ReplyCode::ERR_POLICY, b"not for you");
    let error = server_says(&[&hello, &denied], listing).expect_err("denied");
    assert_eq!(error.to_string(), "Denied by server for option 3 (list)\nserver reported: not for you");
}

/// A client with one order at a server of this mode.
fn waiting(mode: Mode, command: Command) -> client::Transmission {
    let flags = TransmissionFlags(0xff);
    let sizes = BlockSizes::UNSAID;
    let mut client = client::Transmission::new(Negotiated {
        len: 4096,
        flags: flags.without(TransmissionFlags::READ_ONLY),
        sizes,
        mode,
        context: Some(3),
    });
    let data = match command {
        Command::Read | Command::Write(_) => Buf::zeroed(100).into(),
        _ => BufList::new(),
    };
    client.submit(Order { tag: 1, command, offset: 1000, len: 100, data });
    client
}

/// The cookie of the first order.
const COOKIE: u64 = 1 << 32;

fn chunk(kind: ChunkKind, last: bool, payload: &[u8]) -> Vec<u8> {
    let chunk = Chunk { last, kind, cookie: COOKIE, offset: 1000, len: payload.len() as u64 };
    let (bytes, count) = chunk.encode(Mode::Structured);
    [&bytes[..count], payload].concat()
}

fn data_at(offset: u64, len: usize) -> Vec<u8> {
    [&offset.to_be_bytes()[..], &vec![9; len]].concat()
}

fn hole_at(offset: u64, len: u32) -> Vec<u8> {
    [&offset.to_be_bytes()[..], &len.to_be_bytes()].concat()
}

#[track_caller]
fn breaks(mut client: client::Transmission, bytes: &[u8]) {
    let fed = client.feed(&mut &bytes[..]);
    assert!(fed.is_err(), "{fed:?}");
    assert_eq!(client.take_orders().len(), 1, "the order is not lost");
}

/// What libnbd once did not look at: chunks that lie outside the request would write where they like.
#[test]
fn chunks_outside_the_request_are_refused() {
    let read = || waiting(Mode::Structured, Command::Read);
    breaks(read(), &chunk(ChunkKind::OFFSET_DATA, true, &data_at(999, 10)));
    breaks(read(), &chunk(ChunkKind::OFFSET_DATA, true, &data_at(1091, 10)));
    breaks(read(), &chunk(ChunkKind::OFFSET_DATA, true, &data_at(u64::MAX - 3, 10)));
    breaks(read(), &chunk(ChunkKind::OFFSET_HOLE, true, &hole_at(1000, 101)));
    breaks(read(), &chunk(ChunkKind::OFFSET_HOLE, true, &hole_at(1000, 0)));
    let twice = chunk(ChunkKind::OFFSET_DATA, false, &data_at(1000, 10));
    breaks(read(), &twice.repeat(2));
    // Not all of it came.
    breaks(read(), &chunk(ChunkKind::OFFSET_DATA, true, &data_at(1000, 99)));
    breaks(read(), &chunk(ChunkKind::NONE, true, &[]));
    breaks(read(), &chunk(ChunkKind::OFFSET_DATA, true, &[0; 8]));
    breaks(read(), &chunk(ChunkKind::BLOCK_STATUS, true, &[0; 12]));
    breaks(read(), &chunk(ChunkKind(9), true, &[0; 8]));
    breaks(read(), &SimpleReply { error: WireErrno::NONE, cookie: COOKIE }.encode());
}

#[test]
fn replies_that_nobody_waits_for_are_refused() {
    breaks(
        waiting(Mode::Simple, Command::Flush),
        &SimpleReply { error: WireErrno::NONE, cookie: 7 }.encode(),
    );
    breaks(waiting(Mode::Simple, Command::Flush), &chunk(ChunkKind::NONE, true, &[]));
    breaks(
        waiting(Mode::Structured, Command::Flush),
        &chunk(ChunkKind::OFFSET_DATA, true, &data_at(1000, 1)),
    );
    breaks(waiting(Mode::Structured, Command::Flush), &chunk(ChunkKind::ERROR, true, &[0; 6]));
    // It says that a write is done of which it has not seen the data.
    let early = SimpleReply { error: WireErrno::NONE, cookie: COOKIE }.encode();
    breaks(waiting(Mode::Simple, Command::Write(Fua::No)), &early);
}

#[test]
fn block_status_of_another_context_is_refused() {
    let status = || waiting(Mode::Structured, Command::Status);
    let payload = |context: u32, len: u32| [context.to_be_bytes(), len.to_be_bytes(), [0; 4]].concat();
    breaks(status(), &chunk(ChunkKind::BLOCK_STATUS, true, &payload(4, 100)));
    breaks(status(), &chunk(ChunkKind::BLOCK_STATUS, true, &payload(3, 0)));
    breaks(status(), &chunk(ChunkKind::BLOCK_STATUS, false, &payload(3, 100)).repeat(2));
    breaks(status(), &chunk(ChunkKind::BLOCK_STATUS_EXT, true, &payload(3, 100)));
    breaks(status(), &chunk(ChunkKind::NONE, true, &[]));
    let mut client = status();
    client.feed(&mut &chunk(ChunkKind::BLOCK_STATUS, true, &payload(3, u32::MAX))[..]).expect("legal");
    let ended = client.next_ended().expect("answered");
    assert_eq!(ended.extent.map(|extent| extent.len), Some(100), "what lies beyond was not asked for");
}

/// CVE-2022-0485: errors of reads that nobody looked at.
#[test]
fn an_error_in_the_middle_of_a_read_is_the_reads() {
    let mut client = waiting(Mode::Structured, Command::Read);
    let error = [&5u32.to_be_bytes()[..], &[0, 2], b"no", &1050u64.to_be_bytes()].concat();
    let bytes = [
        chunk(ChunkKind::OFFSET_DATA, false, &data_at(1000, 50)),
        chunk(ChunkKind::ERROR_OFFSET, false, &error),
        chunk(ChunkKind::OFFSET_DATA, true, &data_at(1060, 40)),
    ];
    client.feed(&mut &bytes.concat()[..]).expect("legal");
    assert_eq!(client.next_ended().expect("answered").result, Err(Errno::EIO));
    let outside = [&5u32.to_be_bytes()[..], &[0, 0], &1100u64.to_be_bytes()].concat();
    breaks(waiting(Mode::Structured, Command::Read), &chunk(ChunkKind::ERROR_OFFSET, true, &outside));
    let unknown = [&77u32.to_be_bytes()[..], &[0, 0]].concat();
    let mut client = waiting(Mode::Structured, Command::Flush);
    client.feed(&mut &chunk(ChunkKind(0x8123), true, &unknown)[..]).expect("legal");
    assert_eq!(client.next_ended().expect("answered").result, Err(Errno::EINVAL));
}

#[test]
fn an_export_that_is_not_there_is_named() {
    let elsewhere = Wishes { export: "other".into(), ..wishes(Mode::Structured) };
    let error = connect(&mut Server::new(export()), elsewhere, 64).expect_err("not there");
    assert_eq!(
        error.to_string(),
        "Requested export not available\nserver reported: export 'other' not present"
    );
}

/// CVE-2025-47711: block status of lengths around 2^32, where what is told must not go beyond what was asked.
#[test]
fn extents_end_where_the_question_does() {
    const GIB: u64 = 1 << 30;
    let large = Export { len: 1 << 40, ..export() };
    let max = u64::from(u32::MAX);
    for mode in [Mode::Structured, Mode::Extended] {
        for (len, extents) in [
            (max, vec![1 << 40]),
            (max, vec![max, 1]),
            (max, vec![max - 1, 1]),
            (max, vec![max - 1, 2]),
            (max - 511, vec![2 * GIB, 2 * GIB]),
            (2 * GIB, vec![2 * GIB + 1]),
            (2 * GIB + 1, vec![2 * GIB, 1, 7]),
            (1, vec![1 << 33]),
        ] {
            let chosen = Chosen { export: 0, mode, contexts: vec![0] };
            let mut server = Transmission::new(&large, chosen, Outgoing::new());
            let bytes = request(mode, CommandCode::BLOCK_STATUS, CommandFlags::NONE, 0, len);
            let order = server.feed(&mut &bytes[..], |_| BufList::new()).expect("legal").expect("an order");
            let states = extents.iter().enumerate();
            let states = states.map(|(at, len)| Extent { len: *len, flags: at as u64 % 2 }).collect();
            server.answer(order.id, Answer::Status(vec![(0, states)]));
            let said: Vec<u8> = server.out().slices().flatten().copied().collect();
            // Behind the chunk's header: the context, in extended mode the count, and pairs of length and flags.
            let (start, width) = if mode == Mode::Extended { (32 + 8, 16) } else { (20 + 4, 8) };
            let told: Vec<u64> = said[start..]
                .chunks(width)
                .map(|pair| pair[..width / 2].iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
                .collect();
            assert!(!told.is_empty() && told.iter().all(|len| *len > 0), "{mode:?}, {len}: {told:?}");
            assert!(told.iter().sum::<u64>() <= len, "{mode:?}, {len}: {told:?}");
            // Only one that is said shorter than it is ends the list.
            for (index, (len, whole)) in told.iter().zip(&extents).enumerate() {
                assert!(len <= whole && (len == whole || index + 1 == told.len()), "{mode:?}: {told:?}");
            }
        }
    }
}
