//! A request that its submitter carries out at once, with neither its intent nor its answer in a queue.

mod counting;
mod null;

use counting::allocations;
use drystone_core::buf::{Buf, BufList};
use drystone_core::engine::{Op, Reply, Request};
use drystone_core::format::qcow2::CreateOptions;
use drystone_core::graph::NodeId;
use drystone_core::intent::{Action, Errno, Fua, Intent, Outcome};
use null::Null;

const PAGE: usize = 4096;

/// An image whose first clusters are allocated, and a page of memory.
fn image() -> (Null, NodeId, BufList) {
    let mut null = Null::default();
    let disk = null.qcow2("disk", &CreateOptions::new(1 << 30), None);
    let data = null.request(disk, Op::Write(Fua::No), 0, Buf::zeroed(1 << 20).into());
    (null, disk, data.into_single().split_to(PAGE).into())
}

fn read(node: NodeId, offset: u64, data: BufList) -> Request {
    Request { node, op: Op::Read, offset, len: 0, data, tag: 7 }
}

/// The answer to an intent of so many bytes.
fn moved(intent: Intent, result: Result<usize, Errno>) -> Outcome {
    match intent.action {
        Action::Read { data, .. } | Action::Write { data, .. } => Outcome::Moved { data, result },
        other => panic!("not asked for: {other:?}"),
    }
}

#[test]
fn goes_through_no_queue_and_allocates_nothing() {
    let (null, disk, mut data) = image();
    let engine = null.engine();
    let before = (allocations(), engine.coroutines());
    for n in 0..100 {
        let (op, offset) = (if n % 2 == 0 { Op::Read } else { Op::Write(Fua::No) }, n * PAGE as u64);
        let request = Request { node: disk, op, offset, len: 0, data, tag: n };
        let intent = engine.submit_lone(request).expect("one cluster in memory is one intent");
        assert!(!engine.has_intents() && !engine.is_idle());
        let token = intent.token;
        let reply = engine.complete_lone(token, moved(intent, Ok(PAGE))).expect("all of it went well");
        assert!(reply.tag == n && reply.result.is_ok() && engine.is_idle() && engine.next_reply().is_none());
        data = reply.data;
    }
    assert_eq!((allocations(), engine.coroutines()), before);
}

#[test]
fn its_answer_may_also_come_among_others() {
    let (null, disk, data) = image();
    let engine = null.engine();
    let intent = engine.submit_lone(read(disk, 0, data)).expect("one intent");
    engine.submit(Request { tag: 8, ..read(disk, 65536, Buf::zeroed(PAGE).into()) });
    let other = engine.next_intent().expect("begun beside it");
    for one in [other, intent] {
        let token = one.token;
        engine.complete(token, moved(one, Ok(PAGE)));
    }
    let tags = std::iter::from_fn(|| engine.next_reply()).map(|reply| reply.tag);
    assert_eq!(tags.collect::<Vec<_>>(), [8, 7]);
    assert!(engine.is_idle());
}

#[test]
fn there_is_one_at_a_time() {
    let (null, disk, data) = image();
    let engine = null.engine();
    let first = engine.submit_lone(read(disk, 0, data)).expect("one intent");
    let second = Request { tag: 8, ..read(disk, 65536, Buf::zeroed(512).into()) };
    assert!(engine.submit_lone(second).is_none(), "it begins as any other");
    let token = first.token;
    assert_eq!(engine.complete_lone(token, moved(first, Ok(PAGE))).map(|reply| reply.tag), Some(7));
    let other = engine.next_intent().expect("in the queue");
    let token = other.token;
    assert!(engine.complete_lone(token, moved(other, Ok(512))).is_none());
    assert_eq!(engine.next_reply().map(|reply| (reply.tag, reply.data.len_bytes())), Some((8, 512)));
    assert!(engine.is_idle());
}

#[test]
fn what_falls_short_goes_on_as_any_other() {
    let (null, disk, data) = image();
    let engine = null.engine();
    let intent = engine.submit_lone(read(disk, 0, data)).expect("one intent");
    let token = intent.token;
    assert!(engine.complete_lone(token, moved(intent, Ok(1024))).is_none(), "the rest is still to come");
    let rest = engine.next_intent().expect("and is asked for");
    assert!(matches!(&rest.action, Action::Read { data, .. } if data.len_bytes() == PAGE - 1024));
    let token = rest.token;
    assert!(engine.complete_lone(token, moved(rest, Ok(PAGE - 1024))).is_none(), "a token of the queue");
    let Reply { tag, data, result } = engine.next_reply().expect("all parts are there");
    assert!(tag == 7 && data.len_bytes() == PAGE && result.is_ok() && engine.is_idle());
}

#[test]
fn what_fails_gives_its_buffers_back() {
    let (null, disk, data) = image();
    let engine = null.engine();
    let intent = engine.submit_lone(read(disk, 0, data)).expect("one intent");
    let token = intent.token;
    assert!(engine.complete_lone(token, moved(intent, Err(Errno::EIO))).is_none());
    let Reply { data, result, .. } = engine.next_reply().expect("it is answered all the same");
    assert!(data.len_bytes() == PAGE && result.is_err() && engine.is_idle());
}

#[test]
fn what_is_no_single_intent_begins_as_any_other() {
    let (null, disk, data) = image();
    let engine = null.engine();
    let beyond = engine.submit_lone(read(disk, 1 << 30, data));
    assert!(beyond.is_none() && engine.next_reply().is_some_and(|reply| reply.result.is_err()));
    let zeros = engine.submit_lone(read(disk, 1 << 29, Buf::zeroed(PAGE).into()));
    assert!(zeros.is_none());
    let flush = Request { op: Op::Flush, ..read(disk, 0, BufList::new()) };
    assert!(engine.submit_lone(flush).is_none());
}

#[test]
#[should_panic(expected = "answered exactly once")]
fn is_answered_once() {
    let (null, disk, data) = image();
    let engine = null.engine();
    let intent = engine.submit_lone(read(disk, 0, data)).expect("one intent");
    let token = intent.token;
    engine.complete_lone(token, moved(intent, Ok(PAGE)));
    engine.complete_lone(token, Outcome::Moved { data: BufList::new(), result: Ok(0) });
}
