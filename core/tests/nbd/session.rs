//! Whole sessions.

use std::collections::BTreeMap;

use drystone_core::buf::{Buf, BufList};
use drystone_core::intent::{Errno, Fua, ZeroFlags};
use drystone_core::protocol::nbd::client::{Command, Order, Transmission};
use drystone_core::protocol::nbd::layout::Extent;
use drystone_core::protocol::nbd::{Mode, NbdError};

use super::peer::{LEN, Phase, Server, connect, export, filled, wishes};

const MODES: [Mode; 3] = [Mode::Simple, Mode::Structured, Mode::Extended];

/// What every session asks for, under the tags 0, 1, …
fn orders() -> Vec<Order> {
    let zeroes = Command::WriteZeroes(ZeroFlags { may_unmap: true, no_fallback: false });
    let order = |tag, command, offset, len, data| Order { tag, command, offset, len, data };
    let two: BufList = [Buf::zeroed(100), Buf::zeroed(300)].into_iter().collect();
    vec![
        order(0, Command::Read, 0, 0, two),
        order(1, Command::Write(Fua::Yes), 1000, 0, filled(200, 7)),
        order(2, Command::Read, 512, 0, filled(512, 9)),
        order(3, zeroes, 2048, 128, BufList::new()),
        order(4, Command::Status, 3584, 512, BufList::new()),
        order(5, Command::Trim, 3072, 64, BufList::new()),
        order(6, Command::Read, 13, 0, filled(8, 1)),
        order(7, Command::Flush, 0, 0, BufList::new()),
        order(8, Command::Write(Fua::No), 0, 0, BufList::new()),
    ]
}

/// What became of an order: its result, its bytes, and what it said of an extent.
type Outcome = (Result<(), Errno>, Vec<u8>, Option<Extent>);

/// Moves bytes both ways, up to `step` at a time and `budget` altogether, until everything is answered or the budget is
/// used up, which is an error.
fn run(
    client: &mut Transmission,
    server: &mut Server,
    step: usize,
    budget: &mut usize,
    outcomes: &mut BTreeMap<u64, Outcome>,
) -> Result<(), NbdError> {
    let lost = NbdError::Ended { during: "a test" };
    for turn in 0.. {
        let most = step.min(*budget);
        let bytes: Vec<u8> = client.out().slices().flatten().copied().take(most).collect();
        client.sent(bytes.len());
        server.feed(&bytes).expect("the client keeps to the rules");
        *budget -= bytes.len();
        if turn % 3 == 0 {
            server.answer(turn);
        }
        let bytes = server.send(step.min(*budget));
        *budget -= bytes.len();
        let mut input = &bytes[..];
        if turn % 2 == 0 {
            client.feed(&mut input)?;
        } else {
            receive(client, input)?;
        }
        while let Some(ended) = client.next_ended() {
            let data = ended.order.data.into_single().to_vec();
            let before = outcomes.insert(ended.order.tag, (ended.result, data, ended.extent));
            assert!(before.is_none(), "an order is answered once");
        }
        if client.is_idle() && client.out().is_empty() {
            return Ok(());
        }
        if *budget == 0 {
            return Err(lost);
        }
        assert!(turn < 1 << 20, "somebody waits for ever");
    }
    unreachable!("it returns or panics")
}

/// Takes bytes as a socket gives them: into the buffers that they belong to, and the rest as it is.
fn receive(client: &mut Transmission, mut input: &[u8]) -> Result<(), NbdError> {
    while !input.is_empty() {
        let mut count = 0;
        for window in client.payload() {
            let (front, rest) = input.split_at(input.len().min(window.len()));
            window[..front.len()].copy_from_slice(front);
            count += front.len();
            input = rest;
        }
        client.received(count)?;
        if count == 0 {
            let (one, rest) = input.split_at(1);
            client.feed(&mut &one[..])?;
            input = rest;
        }
    }
    Ok(())
}

fn check(outcomes: &BTreeMap<u64, Outcome>, server: &Server, mode: Mode) {
    assert_eq!(outcomes.len(), orders().len());
    let byte = |at: usize| if at % 1024 < 512 { at as u8 | 1 } else { 0 };
    let (result, data, _) = &outcomes[&0];
    assert_eq!((*result, data.len()), (Ok(()), 400));
    assert!(data.iter().enumerate().all(|(at, found)| *found == byte(at)));
    let (result, data, _) = &outcomes[&2];
    assert_eq!(*result, Ok(()));
    assert!(data[..488].iter().all(|byte| *byte == 0));
    let (result, _, extent) = outcomes[&4];
    let flags = if mode == Mode::Simple { 0 } else { 3 };
    assert_eq!((result, extent), (Ok(()), Some(Extent { len: 512, flags })));
    assert_eq!(outcomes[&6].0, Err(Errno::EIO));
    for tag in [1, 3, 5, 7, 8] {
        assert_eq!(outcomes[&tag].0, Ok(()), "{tag}");
    }
    assert!(server.disk[1000..1200].iter().all(|byte| *byte == 7));
    assert!(server.disk[2048..2176].iter().all(|byte| *byte == 0));
    assert_eq!(server.disk.len(), LEN);
}

#[test]
fn every_order_is_answered_however_the_bytes_are_cut() {
    for mode in MODES {
        for step in [1, 2, 3, 7, 16, 28, 100, 1 << 20] {
            let mut server = Server::new(export());
            let negotiated = connect(&mut server, wishes(mode), step).expect("negotiates");
            assert_eq!((negotiated.mode, negotiated.len), (mode, LEN as u64));
            assert_eq!(negotiated.context.is_some(), mode != Mode::Simple);
            let mut client = Transmission::new(negotiated);
            orders().into_iter().for_each(|order| client.submit(order));
            let (mut outcomes, mut budget) = (BTreeMap::new(), usize::MAX);
            run(&mut client, &mut server, step, &mut budget, &mut outcomes).expect("works");
            check(&outcomes, &server, mode);
        }
    }
}

/// Each byte of a session is the last of a connection once. What was not answered is asked for again, on a new one.
#[test]
fn a_connection_that_is_cut_at_any_byte_loses_no_order() {
    for mode in MODES {
        for cut in 0.. {
            let mut server = Server::new(export());
            let negotiated = connect(&mut server, wishes(mode), 64).expect("negotiates");
            let mut client = Transmission::new(negotiated);
            orders().into_iter().for_each(|order| client.submit(order));
            let (mut outcomes, mut budget) = (BTreeMap::new(), cut);
            let whole = run(&mut client, &mut server, 64, &mut budget, &mut outcomes).is_ok();
            if !whole {
                server.accept();
                let negotiated = connect(&mut server, wishes(mode), 64).expect("negotiates");
                let again = client.take_orders();
                assert_eq!(again.len() + outcomes.len(), orders().len(), "cut after {cut} bytes");
                assert!(again.is_sorted_by_key(|order| order.tag), "in the order in which they were given");
                client = Transmission::new(negotiated);
                again.into_iter().for_each(|order| client.submit(order));
                let mut budget = usize::MAX;
                run(&mut client, &mut server, 64, &mut budget, &mut outcomes).expect("works");
            }
            check(&outcomes, &server, mode);
            if whole {
                assert!(cut > 1000, "a session is longer than that");
                break;
            }
        }
    }
}

#[test]
fn a_client_that_leaves_is_told_nothing_more() {
    let mut server = Server::new(export());
    let negotiated = connect(&mut server, wishes(Mode::Extended), 64).expect("negotiates");
    let mut client = Transmission::new(negotiated);
    client.disconnect();
    let bytes: Vec<u8> = client.out().slices().flatten().copied().collect();
    server.feed(&bytes).expect("legal");
    let Phase::Serving(transmission) = &server.phase else { panic!("it serves") };
    assert!(transmission.is_leaving() && transmission.is_idle() && transmission.out().is_empty());
}
