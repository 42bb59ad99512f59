//! raw on leaves of memory: splitting, merging, blocks, zeros, errors, and the exact intents of each.

use std::collections::BTreeMap;

use drystone_core::buf::{Buf, BufList};
use drystone_core::engine::{Engine, Op, Reply, Request};
use drystone_core::error::Error;
use drystone_core::graph::open::{DriverSpec, NodeSpec, OpenMode, open};
use drystone_core::graph::{DetectZeroes, NodeId};
use drystone_core::intent::{
    Action, Errno, Fua, Intent, LeafId, LeafInfo, LeafKind, LeafStatus, Outcome, ZeroFlags,
};

const WRITABLE: OpenMode = OpenMode {
    writable: true,
    direct: false,
    no_flush: false,
    write_through: false,
    discard: true,
    aio: drystone_core::intent::Aio::Auto,
    force_share: false,
    locking: true,
    names: drystone_core::graph::open::ImageNames::Follow,
    takes: drystone_core::intent::Permissions::RESIZE,
    denies: drystone_core::intent::Permissions::NONE,
    commits_down: 0,
    detect_zeroes: DetectZeroes::Off,
};

#[test]
fn a_read_is_one_intent_with_the_callers_buffer() {
    let mut disk = Disk::new(1, (0..100u8).collect());
    let node = disk.open(0, None);
    let buf = Buf::zeroed(10);
    let at = buf.as_ptr();
    let reply = disk.run(node, Op::Read, 90, 0, buf.into());
    reply.result.expect("in range");
    assert_eq!(reply.data.windows()[0].as_ptr(), at);
    assert_eq!(&*reply.data.into_single(), (90..100u8).collect::<Vec<_>>());
    assert_eq!(disk.log, ["open", "lock", "read 90+10"]);
}

#[test]
fn a_window_shifts_and_bounds() {
    let mut disk = Disk::new(1, (0..100u8).collect());
    let node = disk.open(20, Some(30));
    assert_eq!(disk.engine.len(node), 30);
    let reply = disk.run(node, Op::Read, 0, 0, Buf::zeroed(30).into());
    assert_eq!(&*reply.data.into_single(), (20..50u8).collect::<Vec<_>>());
    let reply = disk.run(node, Op::Read, 1, 0, Buf::zeroed(30).into());
    assert!(matches!(*reply.result.unwrap_err(), Error::OutOfRange { size: 30, .. }));
    let reply = disk.run(node, Op::Read, u64::MAX, 0, Buf::zeroed(1).into());
    assert!(matches!(*reply.result.unwrap_err(), Error::OutOfRange { .. }));
}

#[test]
fn a_write_to_the_last_odd_block_makes_the_disk_no_longer() {
    let mut disk = Disk::new(512, vec![7; 1000]);
    let node = disk.open(0, None);
    disk.run(node, Op::Write(Fua::No), 990, 0, Buf::from(vec![8; 10]).into()).result.expect("within");
    assert_eq!(disk.engine.len(node), 1000);
    let beyond = disk.run(node, Op::Read, 1000, 0, Buf::zeroed(1).into());
    assert!(matches!(*beyond.result.unwrap_err(), Error::OutOfRange { size: 1000, .. }));
}

#[test]
fn short_transfers_go_on_and_errors_keep_the_buffer() {
    let mut disk = Disk::new(1, vec![7; 100]);
    let node = disk.open(0, None);
    disk.transfer_max = 40;
    let reply = disk.run(node, Op::Read, 0, 0, Buf::zeroed(100).into());
    reply.result.expect("three transfers");
    assert!(reply.data.windows()[0].iter().all(|byte| *byte == 7));
    assert_eq!(disk.log[2..], ["read 0+100", "read 40+60", "read 80+20"]);
    disk.fail.insert(disk.log.len(), Errno::EIO);
    let reply = disk.run(node, Op::Write(Fua::No), 0, 0, Buf::zeroed(8).into());
    assert_eq!(reply.data.len_bytes(), 8);
    assert_eq!(reply.result.unwrap_err().errno(), Errno::EIO);
}

#[test]
fn a_short_read_in_mid_file_is_not_its_end() {
    let mut disk = Disk::new(512, vec![7; 4000]);
    let node = disk.open(0, None);
    disk.transfer_max = 1300;
    let aligned = Buf::zeroed_aligned(3584, 4096);
    let reply = disk.run(node, Op::Read, 0, 0, aligned.into());
    reply.result.expect("goes on from whole blocks");
    assert!(reply.data.into_single().iter().all(|byte| *byte == 7));
    assert_eq!(disk.log[2..], ["read 0+3584", "read 1024+2560", "read 2048+1536", "read 3072+512"]);
    let reply = disk.run(node, Op::Read, 100, 0, Buf::from(vec![0; 3900]).into());
    reply.result.expect("goes on from whole blocks");
    assert!(reply.data.into_single().iter().all(|byte| *byte == 7));
    // Less than a block is the end.
    disk.bytes.truncate(1100);
    let reply = disk.run(node, Op::Read, 512, 0, Buf::zeroed_aligned(3072, 4096).into());
    reply.result.expect("what is gone reads as zeros");
    let data = reply.data.into_single();
    assert!(data[..588].iter().all(|byte| *byte == 7) && data[588..].iter().all(|byte| *byte == 0));
}

#[test]
fn blocks_are_read_modified_and_written() {
    let mut disk = Disk::new(512, vec![1; 2048]);
    let node = disk.open(0, None);
    let reply = disk.run(node, Op::Write(Fua::No), 500, 0, Buf::from(vec![2; 24]).into());
    reply.result.expect("unaligned writes work");
    assert_eq!(disk.log[2..], ["read 0+1024", "write 0+1024"]);
    assert_eq!((disk.bytes[499], disk.bytes[500], disk.bytes[523], disk.bytes[524]), (1, 2, 2, 1));
    let reply = disk.run(node, Op::Read, 499, 0, Buf::zeroed(2).into());
    assert_eq!(&*reply.data.into_single(), [1, 2]);
}

#[test]
fn writes_that_share_a_block_do_not_lose_each_other() {
    let mut disk = Disk::new(512, vec![0; 1024]);
    let node = disk.open(0, None);
    for tag in 0..16u64 {
        let data = Buf::from(vec![tag as u8 + 1; 32]).into();
        disk.engine.submit(Request { node, op: Op::Write(Fua::No), offset: tag * 32, len: 0, data, tag });
    }
    disk.settle();
    for tag in 0..16usize {
        assert_eq!(disk.bytes[tag * 32..][..32], [tag as u8 + 1; 32]);
    }
}

#[test]
fn zeros_are_written_where_the_leaf_cannot_zero() {
    let mut disk = Disk::new(1, vec![9; 100]);
    let node = disk.open(0, None);
    disk.fail.insert(2, Errno::ENOTSUP);
    let op = Op::WriteZeroes(ZeroFlags::default(), Fua::No);
    disk.run(node, op, 10, 50, BufList::new()).result.expect("as data");
    assert_eq!(disk.log[2..], ["write_zeroes 10+50", "write 10+50"]);
    assert_eq!((disk.bytes[9], disk.bytes[10], disk.bytes[59], disk.bytes[60]), (9, 0, 0, 9));
    disk.fail.insert(disk.log.len(), Errno::ENOTSUP);
    let op = Op::WriteZeroes(ZeroFlags { no_fallback: true, may_unmap: false }, Fua::No);
    assert_eq!(disk.run(node, op, 0, 5, BufList::new()).result.unwrap_err().errno(), Errno::ENOTSUP);
}

#[test]
fn a_discard_that_the_leaf_cannot_take_is_no_failure() {
    let mut disk = Disk::new(1, vec![9; 100]);
    let node = disk.open(0, None);
    for errno in [Errno::ENOTSUP, Errno::EINVAL] {
        disk.fail.insert(disk.log.len(), errno);
        disk.run(node, Op::Discard, 10, 50, BufList::new()).result.expect("advice");
    }
    disk.fail.insert(disk.log.len(), Errno::EIO);
    let reply = disk.run(node, Op::Discard, 10, 50, BufList::new());
    assert_eq!(reply.result.unwrap_err().errno(), Errno::EIO);
    // Zeros are no advice.
    disk.fail.insert(disk.log.len(), Errno::EINVAL);
    let zeroes = |no_fallback| Op::WriteZeroes(ZeroFlags { may_unmap: true, no_fallback }, Fua::No);
    disk.run(node, zeroes(false), 10, 50, BufList::new()).result.expect("as data");
    assert_eq!((disk.bytes[9], disk.bytes[10], disk.bytes[59], disk.bytes[60]), (9, 0, 0, 9));
    disk.fail.insert(disk.log.len(), Errno::EINVAL);
    let reply = disk.run(node, zeroes(true), 0, 5, BufList::new());
    assert_eq!(reply.result.unwrap_err().errno(), Errno::ENOTSUP);
    assert_eq!(disk.bytes[0], 9);
}

#[test]
fn a_discard_that_zeroes_stands_in_for_zeros() {
    let mut disk = Disk::new(1, vec![9; 100]);
    disk.discard_zeroes = true;
    let node = disk.open(0, None);
    let zeroes = |may_unmap| Op::WriteZeroes(ZeroFlags { may_unmap, no_fallback: true }, Fua::No);
    disk.fail.insert(2, Errno::ENOTSUP);
    disk.run(node, zeroes(true), 10, 50, BufList::new()).result.expect("fast enough");
    assert_eq!((disk.bytes[9], disk.bytes[10], disk.bytes[59], disk.bytes[60]), (9, 0, 0, 9));
    disk.fail.extend([(4, Errno::ENOTSUP), (5, Errno::EINVAL)]);
    disk.run(node, zeroes(true), 0, 5, BufList::new()).result.expect_err("neither works");
    disk.fail.insert(6, Errno::ENOTSUP);
    disk.run(node, zeroes(false), 0, 5, BufList::new()).result.expect_err("nothing may be unmapped");
    let (zeroes, discard) = ("write_zeroes 0+5", "discard 0+5");
    assert_eq!(disk.log[2..], ["write_zeroes 10+50", "discard 10+50", zeroes, discard, zeroes]);
}

#[test]
fn zeros_keep_their_space_where_discards_are_ignored() {
    let mut disk = Disk::new(1, vec![9; 100]);
    disk.discard_zeroes = true;
    let ignoring = OpenMode { discard: false, ..WRITABLE };
    let node = disk.open_as(0, None, ignoring, WRITABLE);
    let zeroes = Op::WriteZeroes(ZeroFlags { may_unmap: true, no_fallback: false }, Fua::No);
    disk.fail.insert(disk.log.len(), Errno::ENOTSUP);
    disk.run(node, zeroes, 10, 50, BufList::new()).result.expect("as data");
    disk.run(node, Op::Discard, 0, 100, BufList::new()).result.expect("advice");
    assert!(disk.log.iter().all(|did| !did.starts_with("discard")), "{:?}", disk.log);
    assert_eq!((disk.bytes[9], disk.bytes[10], disk.bytes[59], disk.bytes[60]), (9, 0, 0, 9));
}

#[test]
fn flushes_go_out_only_where_something_was_written_and_stay_failed() {
    let mut disk = Disk::new(1, vec![0; 100]);
    let node = disk.open(0, None);
    disk.run(node, Op::Flush, 0, 0, BufList::new()).result.expect("nothing to do");
    assert_eq!(disk.log.len(), 2);
    disk.run(node, Op::Write(Fua::No), 0, 0, Buf::zeroed(1).into()).result.expect("writes");
    disk.fail.insert(3, Errno::EIO);
    disk.run(node, Op::Flush, 0, 0, BufList::new()).result.expect_err("the host failed");
    disk.run(node, Op::Flush, 0, 0, BufList::new()).result.expect_err("and what it lost stays lost");
    assert_eq!(disk.log[2..], ["write 0+1", "flush"]);
}

#[test]
fn bounced_transfers_stay_within_what_the_leaf_takes() {
    let mut disk = Disk::new(512, vec![1; 8192]);
    disk.leaf_transfer_max = 1100;
    let node = disk.open(0, None);
    disk.run(node, Op::Write(Fua::No), 100, 0, Buf::from(vec![2; 2048]).into()).result.expect("works");
    // Cut at 1100 bytes less a part of a block; each half touches three blocks, two of them in one transfer.
    let first = ["read 0+1024", "read 1024+512", "write 0+1024", "write 1024+512"];
    let second = ["read 1024+1024", "read 2048+512", "write 1024+1024", "write 2048+512"];
    assert_eq!(disk.log[2..], [first, second].concat());
    assert_eq!((disk.bytes[99], disk.bytes[100], disk.bytes[2147], disk.bytes[2148]), (1, 2, 2, 1));
}

#[test]
fn zeros_wait_for_a_cycle_that_shares_a_block() {
    let mut disk = Disk::new(512, vec![1; 1024]);
    let node = disk.open(0, None);
    let write = Request {
        node,
        op: Op::Write(Fua::No),
        offset: 500,
        len: 0,
        data: Buf::from(vec![2; 24]).into(),
        tag: 1,
    };
    let zeroes = |offset, tag| {
        let op = Op::WriteZeroes(ZeroFlags::default(), Fua::No);
        Request { node, op, offset, len: 10, data: BufList::new(), tag }
    };
    disk.engine.submit(write);
    disk.engine.submit(zeroes(0, 2));
    disk.settle();
    assert_eq!(disk.log[2..], ["read 0+1024", "write 0+1024", "write_zeroes 0+10"]);
    assert_eq!((disk.bytes[9], disk.bytes[10], disk.bytes[500]), (0, 1, 2));
}

#[test]
fn the_last_block_of_a_write_leaves_the_length_alone() {
    let mut disk = Disk::new(512, vec![1; 1000]);
    let node = disk.open(0, None);
    disk.run(node, Op::Write(Fua::No), 990, 0, Buf::from(vec![2; 10]).into()).result.expect("works");
    assert_eq!(disk.log[2..], ["read 512+512", "write 512+512", "set_len 1000"]);
    assert_eq!((disk.bytes.len(), disk.engine.len(node)), (1000, 1000));
    assert_eq!((disk.bytes[989], disk.bytes[990], disk.bytes[999]), (1, 2, 2));
}

#[test]
fn a_copy_waits_for_a_cycle_that_shares_a_block() {
    let mut disk = Disk::new(512, vec![1; 4096]);
    disk.bytes[2048..].fill(3);
    let node = disk.open(0, None);
    let leaf = disk.engine.graph()[0].id;
    let data = Buf::from(vec![2; 24]).into();
    disk.engine.submit(Request { node, op: Op::Write(Fua::No), offset: 500, len: 0, data, tag: 1 });
    let copies = [(2048, 0, 512), (2560, 700, 100), (3072, 4000, 96)].map(|(from, to, len)| {
        disk.engine
            .run(2, move |io| async move { io.copy_range("copy", (leaf, from), (node, to), len).await })
    });
    let data = Buf::from(vec![4; 8]).into();
    disk.engine.submit(Request { node, op: Op::Write(Fua::No), offset: 690, len: 0, data, tag: 3 });
    disk.settle();
    for (copy, len) in copies.iter().zip([512, 100, 96]) {
        assert_eq!(copy.take().expect("ended").expect("works"), len);
    }
    // The third shares no block with anybody, and goes first; each other one begins when what it would meet has ended.
    let place = |what: &str| disk.log.iter().position(|entry| entry == what).expect(what);
    assert!(place("copy 3072 4000+96") < place("write 0+1024"));
    assert!(place("write 0+1024") < place("copy 2048 0+512"));
    assert!(place("write 0+1024") < place("copy 2560 700+100"));
    assert_eq!((disk.bytes[0], disk.bytes[511], disk.bytes[512], disk.bytes[523]), (3, 3, 2, 2));
    assert_eq!((disk.bytes[690], disk.bytes[697], disk.bytes[700], disk.bytes[799]), (4, 4, 3, 3));
    assert_eq!((disk.bytes[524], disk.bytes[698], disk.bytes[800], disk.bytes[4000]), (1, 1, 1, 3));
}

#[test]
fn a_flush_beside_one_that_fails_fails_too() {
    let mut disk = Disk::new(1, vec![0; 100]);
    let node = disk.open(0, None);
    disk.run(node, Op::Write(Fua::No), 0, 0, Buf::zeroed(1).into()).result.expect("writes");
    for tag in [1, 2] {
        let request = Request { node, op: Op::Flush, offset: 0, len: 0, data: BufList::new(), tag };
        disk.engine.submit(request);
    }
    disk.fail.insert(3, Errno::EIO);
    let replies = disk.settle();
    assert_eq!(disk.log[3..], ["flush", "flush"]);
    assert!(replies.iter().all(|reply| reply.result.is_err()), "the first one may have lost what both cover");
}

#[test]
fn a_node_that_looks_for_zeros_writes_them_as_such() {
    let (on, off) = (DetectZeroes::On, DetectZeroes::Off);
    // Whether the window looks or its file does, and with it durable or not, the leaf is told of zeros.
    for (window, file, fua) in
        [(on, off, Fua::No), (on, off, Fua::Yes), (off, on, Fua::No), (off, on, Fua::Yes), (on, on, Fua::No)]
    {
        let mut disk = Disk::new(1, vec![7; 100]);
        let mode = |detect_zeroes| OpenMode { detect_zeroes, ..WRITABLE };
        let node = disk.open_as(0, None, mode(window), mode(file));
        let buf = Buf::zeroed(20);
        let at = buf.as_ptr();
        let reply = disk.run(node, Op::Write(fua), 10, 0, buf.into());
        reply.result.expect("within");
        assert_eq!(reply.data.windows()[0].as_ptr(), at, "the buffer comes back");
        disk.run(node, Op::Write(fua), 40, 0, Buf::from(vec![0, 0, 1]).into()).result.expect("within");
        let mut expected = vec!["open", "lock", "write_zeroes 10+20", "write 40+3"];
        if fua == Fua::Yes {
            expected.insert(3, "flush");
            // A durable write of data is one intent to a leaf.
        }
        assert_eq!(disk.log, expected, "{window:?}, {file:?}, {fua:?}");
        assert_eq!((disk.bytes[9], disk.bytes[10], disk.bytes[29], disk.bytes[30]), (7, 0, 0, 7));
    }
}

#[test]
fn who_does_not_write_looks_for_nothing() {
    let mut disk = Disk::new(1, vec![7; 100]);
    let mode = OpenMode { writable: false, detect_zeroes: DetectZeroes::On, ..WRITABLE };
    let node = disk.open_as(0, None, mode, mode);
    disk.run(node, Op::Read, 0, 0, Buf::zeroed(100).into()).result.expect("within");
    assert_eq!(disk.log, ["open", "lock", "read 0+100"]);
}

/// An executor with one leaf of memory, which does everything at once and in order.
struct Disk {
    engine: Engine,
    bytes: Vec<u8>,
    block: u32,
    /// Bytes after which a transfer is cut short.
    transfer_max: usize,
    /// Bytes in one transfer, as the leaf says when it is opened.
    leaf_transfer_max: u32,
    discard_zeroes: bool,
    log: Vec<String>,
    /// Intents, by their place in the log, that fail.
    fail: BTreeMap<usize, Errno>,
}

impl Disk {
    fn new(block: u32, bytes: Vec<u8>) -> Self {
        let engine = Engine::new();
        Self {
            engine,
            bytes,
            block,
            transfer_max: usize::MAX,
            leaf_transfer_max: 0,
            discard_zeroes: false,
            log: Vec::new(),
            fail: BTreeMap::new(),
        }
    }

    fn open(&mut self, offset: u64, size: Option<u64>) -> NodeId {
        self.open_as(offset, size, WRITABLE, WRITABLE)
    }

    fn open_as(&mut self, offset: u64, size: Option<u64>, mode: OpenMode, file: OpenMode) -> NodeId {
        let file = Box::new(NodeSpec::file("disk", file));
        let spec = NodeSpec {
            node_name: Some("disk0".into()),
            mode,
            driver: DriverSpec::Raw { file, offset, size },
        };
        let job = self.engine.run(0, |io| async move { open(&io, &spec).await });
        self.settle();
        job.take().expect("opening ended").expect("opening works")
    }

    fn run(&mut self, node: NodeId, op: Op, offset: u64, len: u64, data: BufList) -> Reply {
        self.engine.submit(Request { node, op, offset, len, data, tag: 7 });
        let mut replies = self.settle();
        assert_eq!(replies.len(), 1);
        assert!(self.engine.is_idle());
        replies.remove(0)
    }

    fn settle(&mut self) -> Vec<Reply> {
        while let Some(Intent { token, action, .. }) = self.engine.next_intent() {
            let failure = self.fail.get(&self.log.len()).copied();
            let outcome = self.carry_out(action, failure);
            self.engine.complete(token, outcome);
        }
        std::iter::from_fn(|| self.engine.next_reply()).collect()
    }

    fn carry_out(&mut self, action: Action, failure: Option<Errno>) -> Outcome {
        let failed = |what: ()| failure.map_or(Ok(what), Err);
        match action {
            Action::Open { .. } => {
                self.log.push("open".into());
                Outcome::Opened(failed(()).map(|()| self.info()))
            }
            Action::Lock { .. } => {
                self.log.push("lock".into());
                Outcome::Locked(Ok(()))
            }
            Action::Read { offset, mut data, .. } => {
                let (at, len) = (offset as usize, data.len_bytes());
                self.log.push(format!("read {at}+{len}"));
                let moved = self.bytes.len().saturating_sub(at).min(len).min(self.transfer_max);
                data.copy_in(0, &self.bytes[at.min(self.bytes.len())..][..moved]);
                Outcome::Moved { data, result: failed(()).map(|()| moved) }
            }
            Action::Write { offset, data, .. } => {
                let (at, len) = (offset as usize, data.len_bytes());
                self.log.push(format!("write {at}+{len}"));
                if failure.is_none() {
                    self.bytes.resize(self.bytes.len().max(at + len), 0);
                    data.copy_out(0, &mut self.bytes[at..at + len]);
                }
                Outcome::Moved { data, result: failed(()).map(|()| len) }
            }
            Action::WriteZeroes { offset, len, .. } => {
                self.log.push(format!("write_zeroes {offset}+{len}"));
                if failure.is_none() {
                    self.bytes[offset as usize..][..len as usize].fill(0);
                }
                Outcome::Done(failed(()))
            }
            Action::CopyRange { from_offset, to_offset, len, .. } => {
                self.log.push(format!("copy {from_offset} {to_offset}+{len}"));
                let from = from_offset as usize..(from_offset + len) as usize;
                self.bytes.copy_within(from, to_offset as usize);
                Outcome::Moved { data: BufList::new(), result: failed(()).map(|()| len as usize) }
            }
            Action::Discard { offset, len, .. } => {
                self.log.push(format!("discard {offset}+{len}"));
                if failure.is_none() && self.discard_zeroes {
                    self.bytes[offset as usize..][..len as usize].fill(0);
                }
                Outcome::Done(failed(()))
            }
            Action::SetLen { len, .. } => {
                self.log.push(format!("set_len {len}"));
                self.bytes.resize(len as usize, 0);
                Outcome::Done(failed(()))
            }
            Action::Flush { .. } => {
                self.log.push("flush".into());
                Outcome::Done(failed(()))
            }
            Action::BlockStatus { len, .. } => Outcome::Status(Ok(LeafStatus::of(len, false))),
            other => panic!("not asked for here: {other:?}"),
        }
    }

    fn info(&self) -> LeafInfo {
        LeafInfo {
            leaf: LeafId(0),
            len: self.bytes.len() as u64,
            request_align: self.block,
            memory_align: self.block,
            preferred_size: 0,
            transfer_max: self.leaf_transfer_max,
            kind: LeafKind::File,
            grows_as_zeroes: true,
            discard_zeroes: self.discard_zeroes,
            fast_zeroes: true,
        }
    }
}
