//! A request that its caller carries out, with neither an intent nor an answer in a queue.

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
    Request { node, op: Op::Read, offset, len: 0, data, tag: 8 }
}

/// The answer to an intent, of so many bytes.
fn moved(intent: Intent, result: Result<usize, Errno>) -> Outcome {
    match intent.action {
        Action::Read { data, .. } | Action::Write { data, .. } => Outcome::Moved { data, result },
        other => panic!("not asked for: {other:?}"),
    }
}

#[test]
fn goes_through_no_queue_and_allocates_nothing() {
    let (null, disk, data) = image();
    let engine = null.engine();
    let before = (allocations(), engine.coroutines());
    for n in 0..100 {
        let op = if n % 2 == 0 { Op::Read } else { Op::Write(Fua::No) };
        let lone = engine.begin_lone(disk, op, n * PAGE as u64, &data).expect("one cluster in memory");
        assert_eq!(lone.writes(), n % 2 == 1);
        engine.end_lone(lone);
        assert!(engine.is_idle() && engine.next_reply().is_none());
    }
    assert_eq!((allocations(), engine.coroutines()), before);
}

/// The place is where an intent would go.
#[test]
fn goes_where_any_other_goes() {
    let (null, disk, mut data) = image();
    let engine = null.engine();
    for offset in (0..1 << 20).step_by(PAGE) {
        engine.submit(read(disk, offset, data));
        let intent = engine.next_intent().expect("one cluster in memory is one intent");
        let Action::Read { leaf, offset: there, .. } = intent.action else { panic!("{:?}", intent.action) };
        let token = intent.token;
        engine.complete(token, moved(intent, Ok(PAGE)));
        data = engine.next_reply().expect("it was answered").data;
        let lone = engine.begin_lone(disk, Op::Read, offset, &data).expect("the same request");
        assert_eq!((lone.leaf(), lone.offset()), (leaf, there));
        engine.end_lone(lone);
    }
}

/// What is read in a backing file has a place as well.
#[test]
fn goes_through_backing_files() {
    let (mut null, base, data) = image();
    null.qcow2("second", &CreateOptions::new(1 << 30), Some("disk"));
    let top = null.qcow2("top", &CreateOptions::new(1 << 30), Some("second"));
    let engine = null.engine();
    let place = |node, op| {
        let lone = engine.begin_lone(node, op, 3 * PAGE as u64, &data)?;
        let place = (lone.leaf(), lone.offset());
        engine.end_lone(lone);
        Some(place)
    };
    assert!(place(base, Op::Read).is_some());
    assert_eq!(place(top, Op::Read), place(base, Op::Read));
    assert_eq!(place(top, Op::Write(Fua::No)), None, "it is to be written above");
    assert!(engine.begin_lone(top, Op::Read, 1 << 29, &data).is_none(), "nothing is there");
}

/// Beyond the end of a shorter backing file there are zeros, whatever the file that it is in has there.
#[test]
fn ends_with_a_backing_file() {
    let mut null = Null::default();
    let short = CreateOptions::new((1 << 20) + 512);
    let base = null.qcow2("base", &short, None);
    let data = null.request(base, Op::Write(Fua::No), 0, Buf::zeroed((1 << 20) + 512).into());
    let top = null.qcow2("top", &CreateOptions::new(1 << 30), Some("base"));
    let mut data: BufList = data.into_single().split_to(512).into();
    for (offset, there) in [((1 << 20) - 512, true), (1 << 20, true), ((1 << 20) + 512, false)] {
        let lone = null.engine().begin_lone(top, Op::Read, offset, &data);
        assert_eq!(lone.is_some(), there, "{offset:#x}");
        if let Some(lone) = lone {
            assert!(!null.engine().end_lone(lone), "nothing went on beside it");
        }
        data = null.request(top, Op::Read, offset, data);
    }
    let page: BufList = Buf::zeroed(PAGE).into();
    assert!(null.engine().begin_lone(top, Op::Read, 1 << 20, &page).is_none(), "half of it is there");
}

#[test]
fn may_go_on_as_any_other_beside_others() {
    for op in [Op::Read, Op::Write(Fua::No)] {
        let (null, disk, data) = image();
        let engine = null.engine();
        let mut lone = engine.begin_lone(disk, op, 0, &data).expect("one cluster in memory");
        engine.count_lone(&mut lone);
        engine.submit(read(disk, 65536, Buf::zeroed(PAGE).into()));
        let other = engine.next_intent().expect("begun beside it");
        let late = engine.lone_goes_on(lone, 7);
        assert!(!engine.is_idle());
        let token = other.token;
        engine.complete(token, moved(other, Ok(PAGE)));
        engine.complete(late, Outcome::Moved { data, result: Ok(PAGE) });
        let tags = std::iter::from_fn(|| engine.next_reply()).map(|reply| reply.tag);
        assert_eq!(tags.collect::<Vec<_>>(), [8, 7]);
        assert!(engine.is_idle());
    }
}

#[test]
fn what_falls_short_is_asked_for_again() {
    let (null, disk, data) = image();
    let engine = null.engine();
    let lone = engine.begin_lone(disk, Op::Read, 0, &data).expect("one cluster in memory");
    let token = engine.lone_goes_on(lone, 7);
    engine.complete(token, Outcome::Moved { data, result: Ok(1024) });
    let rest = engine.next_intent().expect("the rest");
    assert!(matches!(&rest.action, Action::Read { data, .. } if data.len_bytes() == PAGE - 1024));
    let token = rest.token;
    engine.complete(token, moved(rest, Ok(PAGE - 1024)));
    let Reply { tag, data, result } = engine.next_reply().expect("all parts are there");
    assert!(tag == 7 && data.len_bytes() == PAGE && result.is_ok() && engine.is_idle());
}

#[test]
fn what_fails_gives_its_buffers_back() {
    for op in [Op::Read, Op::Write(Fua::No)] {
        let (null, disk, data) = image();
        let engine = null.engine();
        let lone = engine.begin_lone(disk, op, 0, &data).expect("one cluster in memory");
        let token = engine.lone_goes_on(lone, 7);
        engine.complete(token, Outcome::Moved { data, result: Err(Errno::EIO) });
        let Reply { data, result, .. } = engine.next_reply().expect("it is answered all the same");
        assert!(data.len_bytes() == PAGE && result.is_err() && engine.is_idle());
    }
}

#[test]
fn what_is_more_than_one_range_in_memory_does_not_begin() {
    let (null, disk, data) = image();
    let engine = null.engine();
    for (op, offset) in [
        (Op::Read, 1 << 30),
        (Op::Read, (1 << 30) - 512),
        (Op::Read, u64::MAX - 511),
        (Op::Read, 1 << 29),
        (Op::Write(Fua::No), 1 << 29),
        (Op::Write(Fua::Yes), 0),
        (Op::Flush, 0),
    ] {
        assert!(engine.begin_lone(disk, op, offset, &data).is_none(), "{op:?} at {offset:#x}");
    }
    assert!(engine.begin_lone(disk, Op::Read, 0, &BufList::new()).is_none());
    assert!(engine.is_idle() && !engine.has_intents());
}

/// Space that a counted request has found is not given up before it ends.
#[test]
fn what_is_counted_keeps_its_cluster() {
    let mut null = Null::default();
    null.discard = true;
    let disk = null.qcow2("disk", &CreateOptions::new(1 << 30), None);
    let data = null.request(disk, Op::Write(Fua::No), 0, Buf::zeroed(1 << 20).into());
    let data: BufList = data.into_single().split_to(PAGE).into();
    let gives_up = |null: &mut Null| {
        let labels: Vec<_> = std::iter::from_fn(|| null.step()).collect();
        labels.iter().any(|label| label.starts_with("qcow2.reclaim/"))
    };
    let engine = null.engine();
    let mut lone = engine.begin_lone(disk, Op::Read, 0, &data).expect("one cluster in memory");
    engine.count_lone(&mut lone);
    for op in [Op::Discard, Op::Flush] {
        let len = if op == Op::Discard { 1 << 16 } else { 0 };
        engine.submit(Request { node: disk, op, offset: 0, len, data: BufList::new(), tag: 8 });
    }
    assert!(!gives_up(&mut null), "the cluster is being read");
    assert!(null.engine().end_lone(lone), "what waited goes on");
    assert!(gives_up(&mut null), "nobody reads it any more");
}

/// Beside a write of whole blocks that is counted, no other one reads a block, changes it, and writes it.
#[test]
fn a_counted_write_has_its_blocks_to_itself() {
    for goes_on in [false, true] {
        let mut null = Null::default();
        null.block = 512;
        let disk = null.qcow2("disk", &CreateOptions::new(1 << 30), None);
        let data = null.request(disk, Op::Write(Fua::No), 0, Buf::zeroed(1 << 20).into());
        let data: BufList = data.into_single().split_to(PAGE).into();
        let engine = null.engine();
        let write = Op::Write(Fua::No);
        let mut lone = engine.begin_lone(disk, write, 0, &data).expect("one cluster in memory");
        engine.count_lone(&mut lone);
        let part = Buf::zeroed(100).into();
        engine.submit(Request { node: disk, op: write, offset: 100, len: 0, data: part, tag: 8 });
        if goes_on {
            let token = engine.lone_goes_on(lone, 7);
            assert!(!engine.has_intents(), "the block is being written");
            engine.complete(token, Outcome::Moved { data, result: Ok(PAGE) });
        } else {
            assert!(!engine.has_intents(), "the block is being written");
            assert!(engine.end_lone(lone), "the other one goes on");
        }
        assert!(matches!(engine.next_intent().expect("its block").action, Action::Read { .. }));
        assert!(engine.begin_lone(disk, write, 0, &Buf::zeroed(PAGE).into()).is_none(), "it is changed");
    }
}

/// A flush covers what was written alone, whether it was counted or not, and is not left out.
#[test]
fn a_write_is_to_be_flushed() {
    let (mut null, disk, data) = image();
    null.request(disk, Op::Flush, 0, BufList::new());
    for counted in [false, true] {
        let engine = null.engine();
        let mut lone = engine.begin_lone(disk, Op::Write(Fua::No), 0, &data).expect("one cluster in memory");
        if counted {
            engine.count_lone(&mut lone);
        }
        engine.end_lone(lone);
        let flush = Request { node: disk, op: Op::Flush, offset: 0, len: 0, data: BufList::new(), tag: 9 };
        engine.submit(flush);
        let intent = engine.next_intent().expect("something was written");
        assert!(matches!(intent.action, Action::Flush { .. }), "{:?}", intent.action);
        engine.complete(intent.token, Outcome::Done(Ok(())));
        assert_eq!(engine.next_reply().map(|reply| reply.tag), Some(9));
        assert!(engine.is_idle());
    }
}

/// Neither a request that was found and dropped, nor one that was counted twice, is waited for.
#[test]
fn what_did_not_begin_is_in_nobodys_way() {
    let (mut null, disk, data) = image();
    for op in [Op::Read, Op::Write(Fua::No)] {
        let engine = null.engine();
        let lone = engine.begin_lone(disk, op, 0, &data).expect("one cluster in memory");
        drop(lone);
        let mut lone = engine.begin_lone(disk, op, 0, &data).expect("nobody knows of the one before");
        engine.count_lone(&mut lone);
        engine.count_lone(&mut lone);
        engine.end_lone(lone);
        assert!(engine.is_idle());
    }
    null.request(disk, Op::Write(Fua::No), 100, Buf::zeroed(100).into());
    null.request(disk, Op::Flush, 0, BufList::new());
    assert!(null.engine().is_idle());
}
