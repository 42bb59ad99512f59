//! NBD peers that say anything: messages of the right shape with any numbers in them, and bytes of no shape at all. Every
//! one ends in an answer or an error, every order is answered or comes back, and what is in flight stays bounded. Start at
//! [`nbd_server`] and [`nbd_client`].

use std::rc::Rc;

use arbitrary::Unstructured;
use drystone_conformance::scenario::Draw;
use drystone_conformance::trace::tell;
use drystone_core::buf::{Buf, BufList};
use drystone_core::intent::{Errno, Fua, ZeroFlags};
use drystone_core::protocol::nbd::client::{self, Encryption, Negotiated, Purpose, Wishes};
use drystone_core::protocol::nbd::layout::{
    BlockSizes, Chunk, ChunkKind, CommandCode, CommandFlags, Extent, HandshakeFlags, OptionCode,
    OptionHeader, OptionReply, ReplyCode, Request, SimpleReply, TransmissionFlags, WireErrno, greeting,
};
use drystone_core::protocol::nbd::limits::REQUESTS_MAX;
use drystone_core::protocol::nbd::server::{
    self, Answer, Chosen, Command, Context, Export, Negotiation, Security, Transmission,
};
use drystone_core::protocol::nbd::{Mode, Outgoing};

/// Bytes of the export: more than an input can move, less than an offset can say.
const LEN: u64 = 1 << 20;

/// Messages of one run.
const MESSAGES: usize = 40;

fn mode(draw: &mut Unstructured<'_>) -> Mode {
    [Mode::Simple, Mode::Structured, Mode::Extended][draw.below(3) as usize]
}

/// A number that a program may trip over, or any.
fn number(draw: &mut Unstructured<'_>) -> u64 {
    match draw.below(8) {
        0 => 0,
        1 => LEN,
        2 => LEN - draw.below(600),
        3 => u64::MAX - draw.below(3),
        4 => u64::from(u32::MAX) + draw.below(3) - 1,
        5 => draw.below(1 << 17),
        6 => (32 << 20) + draw.below(2),
        _ => draw.below(u64::MAX),
    }
}

fn bytes(draw: &mut Unstructured<'_>, most: u64) -> Vec<u8> {
    let len = draw.below(most + 1);
    (0..len).map(|_| draw.below(256) as u8).collect()
}

/// Bytes with a length before them, which mostly is theirs.
fn counted(draw: &mut Unstructured<'_>) -> Vec<u8> {
    let data = if draw.one_in(2) { b"disk".to_vec() } else { bytes(draw, 30) };
    let len = if draw.one_in(6) { number(draw) as u32 } else { data.len() as u32 };
    [&len.to_be_bytes()[..], &data].concat()
}

fn export() -> Export {
    Export {
        name: "disk".into(),
        description: String::new(),
        len: LEN,
        read_only: false,
        shared: true,
        sizes: BlockSizes { min: 1, preferred: 4096, max: 32 << 20 },
        contexts: vec![Context::Allocation, Context::Depth],
    }
}

fn option(draw: &mut Unstructured<'_>) -> Vec<u8> {
    let mut data = counted(draw);
    for _ in 0..draw.below(3) {
        data.extend(if draw.one_in(2) { counted(draw) } else { bytes(draw, 6) });
    }
    let len = if draw.one_in(8) { number(draw) as u32 } else { data.len() as u32 };
    let header = OptionHeader { option: OptionCode(draw.below(13) as u32), len };
    if draw.one_in(3) {
        return OptionHeader { len: 0, ..header }.encode().to_vec();
    }
    [&header.encode()[..], &data].concat()
}

/// A client decides what it says, all of it by `data`.
///
/// # Panics
/// With what is wrong.
pub fn nbd_server(data: &[u8]) {
    let mut draw = Unstructured::new(data);
    let exports: Rc<[Export]> = [export()].into();
    let security = if draw.one_in(4) { Security::Required } else { Security::Plain };
    let mut server = Negotiation::new(Rc::clone(&exports), security);
    let mut chosen = None;
    let mut said = 3u32.to_be_bytes().to_vec();
    for _ in 0..MESSAGES {
        let mut input = &said[..];
        match server.feed(&mut input) {
            Err(error) => return tell(|| error.to_string()),
            Ok(None) => assert!(input.is_empty(), "all of it is taken"),
            Ok(Some(server::Step::Left)) => return,
            Ok(Some(server::Step::StartTls)) => server.encrypted(),
            Ok(Some(server::Step::Chosen(found))) => {
                chosen = Some(found);
                break;
            }
        }
        said = if draw.one_in(10) { bytes(&mut draw, 40) } else { option(&mut draw) };
    }
    let guessed = Chosen { export: 0, mode: mode(&mut draw), contexts: vec![0, 1] };
    let chosen = chosen.unwrap_or(guessed);
    serve(&mut draw, Transmission::new(&exports[0], chosen.clone(), Outgoing::new()), chosen.mode);
}

fn serve(draw: &mut Unstructured<'_>, mut server: Transmission, mode: Mode) {
    let mut waiting = Vec::new();
    for _ in 0..MESSAGES {
        let len = number(draw) & if mode == Mode::Extended { u64::MAX } else { u32::MAX.into() };
        let request = Request {
            flags: CommandFlags(if draw.one_in(3) { draw.below(64) as u16 } else { 0 }),
            command: CommandCode(draw.below(9) as u16),
            cookie: draw.below(4),
            offset: number(draw),
            len,
        };
        let (head, count) = request.encode(mode);
        let mut said = head[..count].to_vec();
        match draw.below(10) {
            0 => said = bytes(draw, 40),
            1 => said.extend(bytes(draw, 40)),
            _ if len < 1 << 18 => said.resize(said.len() + len as usize, 7),
            _ => {}
        }
        let mut input = &said[..];
        loop {
            match server.feed(&mut input, |len| Buf::zeroed(len).into()) {
                Err(error) => return tell(|| error.to_string()),
                Ok(None) => break,
                Ok(Some(order)) => {
                    let end = order.offset.checked_add(order.len);
                    assert!(end.is_some_and(|end| end <= LEN), "the order lies in the export");
                    waiting.push(order);
                    assert!(waiting.len() <= REQUESTS_MAX, "what is in flight is bounded");
                }
            }
        }
        while draw.one_in(2)
            && let Some(order) = waiting.pop()
        {
            server.answer(order.id, answer(draw, &order));
        }
        if draw.one_in(3) {
            let all = server.out().len();
            server.sent(draw.below(all as u64 + 1) as usize, drop);
        }
    }
    server.leave();
    for order in waiting {
        server.answer(order.id, Answer::Failed(Errno::EIO, "x".repeat(5000)));
    }
    assert!(server.is_idle(), "every order is answered");
}

fn answer(draw: &mut Unstructured<'_>, order: &server::Order) -> Answer {
    match &order.command {
        _ if draw.one_in(5) => Answer::Failed(Errno::ENOSPC, "no".into()),
        Command::Read => Answer::Data(Buf::zeroed(order.len as usize).into()),
        Command::Status { contexts, .. } => {
            let extent = Extent { len: 1 + draw.below(1 << 40), flags: draw.below(4) };
            Answer::Status(contexts.iter().map(|id| (*id, vec![extent; 3])).collect())
        }
        _ => Answer::Done,
    }
}

/// A server decides what it says, all of it by `data`.
///
/// # Panics
/// With what is wrong.
pub fn nbd_client(data: &[u8]) {
    let mut draw = Unstructured::new(data);
    let wishes = Wishes {
        export: "disk".into(),
        purpose: if draw.one_in(3) { Purpose::List } else { Purpose::Use },
        encryption: if draw.one_in(4) { Encryption::Required } else { Encryption::Off },
        mode: mode(&mut draw),
        context: Some("base:allocation".into()),
    };
    let mut client = client::Negotiation::new(wishes);
    let mut said = greeting(HandshakeFlags(draw.below(4) as u16)).to_vec();
    for _ in 0..MESSAGES {
        let mut input = &said[..];
        match client.feed(&mut input) {
            Err(error) => {
                tell(|| error.to_string());
                break;
            }
            Ok(None) => assert!(input.is_empty(), "all of it is taken"),
            Ok(Some(client::Step::StartTls)) => client.encrypted(),
            Ok(Some(_)) => break,
        }
        let mut payload = if draw.one_in(2) { counted(&mut draw) } else { bytes(&mut draw, 20) };
        if draw.one_in(3) {
            payload = Vec::new();
        }
        let code = if draw.one_in(3) { 1 << 31 | draw.below(12) as u32 } else { draw.below(5) as u32 };
        let asked = [11, 8, 10, 7, 3, 6, 9, 5][draw.below(8) as usize];
        let reply =
            OptionReply { option: OptionCode(asked), code: ReplyCode(code), len: payload.len() as u32 };
        said = [&reply.encode()[..], &payload].concat();
    }
    transmit(&mut draw);
}

fn transmit(draw: &mut Unstructured<'_>) {
    let mode = mode(draw);
    let flags = TransmissionFlags(draw.below(1 << 13) as u16);
    let export = Negotiated { len: LEN, flags, sizes: BlockSizes::UNSAID, mode, context: Some(1) };
    let mut client = client::Transmission::new(export);
    let (mut given, mut ended) = (0, 0);
    for _ in 0..MESSAGES {
        if draw.one_in(2) && client.has_room() {
            client.submit(order(draw, given));
            given += 1;
        }
        let all = client.out().len();
        let count = draw.below(all as u64 + 1) as usize;
        client.sent(count);
        let said = reply(draw, mode);
        let fed = client.feed(&mut &said[..]);
        while let Some(order) = client.next_ended() {
            assert!(order.order.tag < given, "it was given");
            ended += 1;
        }
        if fed.is_err() {
            break;
        }
    }
    ended += client.take_orders().len() as u64;
    while client.next_ended().is_some() {
        ended += 1;
    }
    assert_eq!(given, ended, "every order is answered once, or comes back");
}

fn order(draw: &mut Unstructured<'_>, tag: u64) -> client::Order {
    use client::Command as C;
    let fua = if draw.one_in(2) { Fua::Yes } else { Fua::No };
    let zero = ZeroFlags { may_unmap: draw.one_in(2), no_fallback: draw.one_in(2) };
    let all = [C::Read, C::Write(fua), C::Flush, C::Trim, C::WriteZeroes(zero), C::Status];
    let command = all[draw.below(6) as usize];
    let data = match command {
        C::Read | C::Write(_) => Buf::zeroed(draw.below(5000) as usize).into(),
        _ => BufList::new(),
    };
    client::Order { tag, command, offset: draw.below(1 << 16), len: draw.below(1 << 40), data }
}

fn reply(draw: &mut Unstructured<'_>, mode: Mode) -> Vec<u8> {
    // The cookies of the first orders.
    let cookie = (1 + draw.below(6)) << 32 | draw.below(4);
    if draw.one_in(12) {
        return bytes(draw, 60);
    }
    if mode == Mode::Simple || mode == Mode::Structured && draw.one_in(4) {
        let error = WireErrno(if draw.one_in(2) { 0 } else { draw.below(200) as u32 });
        let mut said = SimpleReply { error, cookie }.encode().to_vec();
        said.extend(bytes(draw, 40));
        return said;
    }
    let kind = ChunkKind([0, 1, 2, 5, 6, 1 << 15 | 1, 1 << 15 | 2, 9][draw.below(8) as usize]);
    let mut payload = (draw.below(1 << 16)).to_be_bytes().to_vec();
    payload.extend(bytes(draw, 40));
    payload.truncate(draw.below(49) as usize);
    let len = if draw.one_in(8) { number(draw) & 0xffff_ffff } else { payload.len() as u64 };
    let chunk = Chunk { last: draw.one_in(2), kind, cookie, offset: 0, len };
    let (head, count) = chunk.encode(mode);
    [&head[..count], &payload].concat()
}
