//! Failures that other libraries have had, by name, on an executor that holds back what a test wants to see late.

mod support;

use std::collections::HashMap;

use drystone_core::buf::{Buf, BufList};
use drystone_core::compute::Workspace;
use drystone_core::engine::{Engine, Op, Reply, Request};
use drystone_core::format::qcow2::CreateOptions;
use drystone_core::graph::NodeId;
use drystone_core::graph::open::{OpenMode, open};
use drystone_core::graph::options::from_filename;
use drystone_core::intent::{Action, Fua, Intent, LeafId, LeafStatus, Location, Outcome};
use drystone_core::job::{ImageSpec, create};

use support::file_info;

const CLUSTER: u64 = 4096;

/// Files in memory; intents that `hold` names wait in `held`.
struct World {
    engine: Engine,
    files: HashMap<String, Vec<u8>>,
    leaves: Vec<String>,
    held: Vec<Intent>,
    writes: Vec<(u64, u64)>,
    replies: Vec<Reply>,
}

impl World {
    fn new() -> Self {
        Self {
            engine: Engine::new(),
            files: HashMap::new(),
            leaves: Vec::new(),
            held: Vec::new(),
            writes: Vec::new(),
            replies: Vec::new(),
        }
    }

    fn file(&mut self, leaf: LeafId) -> &mut Vec<u8> {
        self.files.get_mut(&self.leaves[leaf.0 as usize]).expect("an open file")
    }

    /// Carries out what comes, except what `hold` says to keep back.
    fn pump(&mut self, hold: impl Fn(&Intent) -> bool) {
        while let Some(intent) = self.engine.next_intent() {
            if hold(&intent) {
                self.held.push(intent);
            } else {
                self.carry_out(intent);
            }
        }
        while let Some(reply) = self.engine.next_reply() {
            self.replies.push(reply);
        }
    }

    fn release(&mut self) {
        for intent in std::mem::take(&mut self.held) {
            self.carry_out(intent);
        }
        self.pump(|_| false);
    }

    fn carry_out(&mut self, intent: Intent) {
        let outcome = match intent.action {
            Action::Open { location: Location::Path(path), .. } => {
                self.leaves.push(path.clone());
                Outcome::Opened(Ok(file_info(self.leaves.len() as u32 - 1, self.files[&path].len() as u64)))
            }
            Action::Create { location: Location::Path(path), len, .. } => {
                self.files.insert(path, vec![0; len as usize]);
                Outcome::Done(Ok(()))
            }
            Action::Read { leaf, offset, mut data } => {
                let file = self.file(leaf);
                let start = (offset as usize).min(file.len());
                let end = (start + data.len_bytes()).min(file.len());
                data.copy_in(0, &file[start..end]);
                Outcome::Moved { data, result: Ok(end - start) }
            }
            Action::Write { leaf, offset, data, .. } => {
                let (start, len) = (offset as usize, data.len_bytes());
                self.writes.push((offset, offset + len as u64));
                let file = self.file(leaf);
                file.resize(file.len().max(start + len), 0);
                data.copy_out(0, &mut file[start..start + len]);
                Outcome::Moved { data, result: Ok(len) }
            }
            Action::Discard { leaf, offset, len } => {
                let file = self.file(leaf);
                let end = ((offset + len) as usize).min(file.len());
                file[offset as usize..end].fill(0);
                Outcome::Done(Ok(()))
            }
            Action::BlockStatus { len, .. } => Outcome::Status(Ok(LeafStatus::of(len, false))),
            Action::Lock { .. } => Outcome::Locked(Ok(())),
            Action::Compute(work) => Outcome::Computed(work.run(&mut Workspace::default())),
            _ => Outcome::Done(Ok(())),
        };
        self.engine.complete(intent.token, outcome);
    }

    /// Makes and opens an image of 64 MiB in clusters of 4 KiB.
    fn image(&mut self) -> NodeId {
        let options = CreateOptions { cluster_size: CLUSTER, ..CreateOptions::new(64 << 20) };
        let made =
            self.engine.run(0, |io| async move { create(&io, "a.qcow2", &ImageSpec::Qcow2(options)).await });
        self.pump(|_| false);
        made.take().expect("ended").expect("made");
        self.open()
    }

    fn open(&mut self) -> NodeId {
        let mode = OpenMode { writable: true, ..OpenMode::default() };
        let spec = from_filename("a.qcow2", Some("qcow2"), mode).expect("a path");
        let node = self.engine.run(0, |io| async move { open(&io, &spec).await });
        self.pump(|_| false);
        node.take().expect("ended").expect("opened")
    }

    fn close(&mut self, node: NodeId) {
        let closed = self.engine.run(0, |io| async move { io.close(node).await });
        self.pump(|_| false);
        closed.take().expect("ended").expect("closed");
    }

    fn submit(&self, node: NodeId, tag: u64, op: Op, offset: u64, data: impl Into<BufList>) {
        let data = data.into();
        self.engine.submit(Request { node, op, offset, len: CLUSTER, data, tag });
    }

    fn answered(&self, tag: u64) -> bool {
        self.replies.iter().any(|reply| reply.tag == tag && reply.result.is_ok())
    }
}

fn bytes(value: u8) -> Buf {
    Buf::from(&[value; CLUSTER as usize][..])
}

#[test]
fn a_read_that_misses_an_l2_slice_does_not_stall_reads_whose_slices_are_cached() {
    let mut world = World::new();
    let node = world.image();
    let (near, far) = (0, 32 << 20);
    world.submit(node, 1, Op::Write(Fua::No), near, bytes(1));
    world.submit(node, 2, Op::Write(Fua::No), far, bytes(2));
    world.pump(|_| false);
    world.close(node);
    let node = world.open();
    world.submit(node, 3, Op::Read, near, bytes(0));
    world.pump(|_| false);
    world.submit(node, 4, Op::Read, far, bytes(0));
    world.submit(node, 5, Op::Read, near, bytes(0));
    world.pump(|intent| intent.label == "qcow2.load/l2_table");
    assert_eq!(world.held.len(), 1, "the far slice is being read");
    assert!(world.answered(5) && !world.answered(4));
    world.release();
    let far = world.replies.iter().find(|reply| reply.tag == 4).expect("answered");
    assert!(far.data.windows()[0].iter().all(|byte| *byte == 2));
}

#[test]
fn a_hole_punched_for_a_freed_cluster_never_lands_after_the_cluster_has_a_new_owner() {
    let mut world = World::new();
    let node = world.image();
    world.submit(node, 1, Op::Write(Fua::No), 0, bytes(1));
    world.pump(|_| false);
    world.submit(node, 2, Op::Discard, 0, BufList::new());
    world.submit(node, 3, Op::Flush, 0, BufList::new());
    world.pump(|intent| intent.label == "qcow2.reclaim/discard");
    assert!(world.answered(3), "a flush does not wait for holes");
    let [Intent { action: Action::Discard { offset, len, .. }, .. }] = world.held[..] else {
        panic!("one hole is being punched: {:?}", world.held)
    };
    world.writes.clear();
    for tag in 0..100 {
        world.submit(node, 10 + tag, Op::Write(Fua::No), (1 + tag) * CLUSTER, bytes(7));
    }
    world.submit(node, 200, Op::Flush, 0, BufList::new());
    world.pump(|_| false);
    assert!(world.answered(200));
    let into_hole = world.writes.iter().any(|(start, end)| *start < offset + len && offset < *end);
    assert!(!into_hole, "nobody writes where a hole is on its way");
    world.release();
    for tag in 0..100 {
        world.submit(node, 300 + tag, Op::Read, (1 + tag) * CLUSTER, bytes(0));
    }
    world.pump(|_| false);
    let read = world.replies.iter().filter(|reply| reply.tag >= 300);
    assert!(read.clone().count() == 100 && read.into_iter().all(|reply| reply.data.windows()[0][9] == 7));
    world.close(node);
}
