//! `cache-clean-interval`: slices of tables leave memory when nobody used them for as long, and no timer outlives its image.

mod support;

use std::time::Duration;

use drystone_core::buf::{Buf, BufList};
use drystone_core::engine::{Engine, Op, Request};
use drystone_core::format::qcow2::{CreateOptions, Qcow2Options, create};
use drystone_core::graph::open::{ChildSpec, DriverSpec, NodeSpec, OpenMode, open};
use drystone_core::intent::{Action, Fua, Intent, LeafInfo, Outcome, Token};

use support::file_info;

const INTERVAL: Duration = Duration::from_secs(5);

#[test]
fn slices_that_nobody_used_are_loaded_again() {
    let mut disk = Disk::default();
    let node = disk.open();
    disk.run(node, Op::Write(Fua::No), Buf::from(vec![7; 65536]).into());
    disk.run(node, Op::Flush, BufList::new());
    disk.loads = 0;
    disk.run(node, Op::Read, Buf::zeroed(512).into());
    assert_eq!(disk.loads, 0, "the slice is in memory");
    // The first time it was used since the last, the second it was not.
    disk.ring();
    disk.run(node, Op::Read, Buf::zeroed(512).into());
    assert_eq!(disk.loads, 0);
    disk.ring();
    disk.ring();
    disk.run(node, Op::Read, Buf::zeroed(512).into());
    assert_eq!(disk.loads, 1);
    // What is changed stays, however long nobody looks at it.
    disk.run(node, Op::Write(Fua::No), Buf::from(vec![8; 65536]).into());
    disk.ring();
    disk.ring();
    let data = disk.run(node, Op::Read, Buf::zeroed(512).into());
    assert!(data.iter().all(|byte| *byte == 8));
    let closed = disk.engine.run(0, move |io| async move { io.close(node).await });
    disk.settle();
    closed.take().expect("closing ended").expect("closing works");
    disk.ring();
    assert!(disk.timers.is_empty() && disk.engine.is_idle(), "the timer ends with the image");
}

/// An executor with one leaf of memory, in which time passes when it is told to.
#[derive(Default)]
struct Disk {
    engine: Engine,
    bytes: Vec<u8>,
    /// Slices of L2 tables that were read.
    loads: usize,
    timers: Vec<(Token, Duration)>,
}

impl Disk {
    fn open(&mut self) -> drystone_core::graph::NodeId {
        let mode = OpenMode { writable: true, ..OpenMode::default() };
        let file = NodeSpec::file("disk", mode);
        let options = Qcow2Options { cache_clean_interval: Some(INTERVAL), ..Qcow2Options::default() };
        let image = NodeSpec {
            node_name: None,
            mode,
            driver: DriverSpec::Qcow2 {
                file: Box::new(file.clone()),
                backing: ChildSpec::None,
                data_file: ChildSpec::FromImage,
                options,
            },
        };
        let job = self.engine.run(0, |io| async move {
            let made = open(&io, &file).await?;
            create(&io, made, &CreateOptions::new(1 << 20)).await?;
            io.close(made).await?;
            open(&io, &image).await
        });
        self.settle();
        job.take().expect("opening ended").expect("opening works")
    }

    fn run(&mut self, node: drystone_core::graph::NodeId, op: Op, data: BufList) -> Buf {
        let len = data.len_bytes() as u64;
        self.engine.submit(Request { node, op, offset: 0, len, data, tag: 7 });
        self.settle();
        let mut replies = std::iter::from_fn(|| self.engine.next_reply());
        let reply = replies.find(|reply| reply.tag == 7).expect("the request ended");
        reply.result.expect("a disk of memory works");
        if reply.data.is_empty() { Buf::zeroed(0) } else { reply.data.into_single() }
    }

    /// Has every timer ring, once.
    fn ring(&mut self) {
        for (token, duration) in std::mem::take(&mut self.timers) {
            assert_eq!(duration, INTERVAL);
            self.engine.complete(token, Outcome::Done(Ok(())));
        }
        self.settle();
    }

    fn settle(&mut self) {
        while let Some(Intent { token, label, action }) = self.engine.next_intent() {
            self.loads += usize::from(label == "qcow2.load/l2_table");
            let outcome = match action {
                Action::Sleep { duration } => {
                    self.timers.push((token, duration));
                    continue;
                }
                action => self.carry_out(action),
            };
            self.engine.complete(token, outcome);
        }
    }

    fn carry_out(&mut self, action: Action) -> Outcome {
        match action {
            Action::Open { .. } => Outcome::Opened(Ok(self.info())),
            Action::Lock { .. } => Outcome::Locked(Ok(())),
            Action::Read { offset, mut data, .. } => {
                let from = (offset as usize).min(self.bytes.len());
                let moved = data.len_bytes().min(self.bytes.len() - from);
                data.copy_in(0, &self.bytes[from..from + moved]);
                Outcome::Moved { data, result: Ok(moved) }
            }
            Action::Write { offset, data, .. } => {
                let (at, len) = (offset as usize, data.len_bytes());
                self.bytes.resize(self.bytes.len().max(at + len), 0);
                data.copy_out(0, &mut self.bytes[at..at + len]);
                Outcome::Moved { data, result: Ok(len) }
            }
            Action::WriteZeroes { offset, len, .. } => {
                let end = (offset + len) as usize;
                self.bytes.resize(self.bytes.len().max(end), 0);
                self.bytes[offset as usize..end].fill(0);
                Outcome::Done(Ok(()))
            }
            Action::SetLen { len, .. } => {
                self.bytes.resize(len as usize, 0);
                Outcome::Done(Ok(()))
            }
            Action::Flush { .. } | Action::Discard { .. } | Action::Close { .. } => Outcome::Done(Ok(())),
            other => panic!("not asked for here: {other:?}"),
        }
    }

    fn info(&self) -> LeafInfo {
        file_info(0, self.bytes.len() as u64)
    }
}
