//! An executor that completes every intent at once: metadata stays in memory, guest data is thrown away.
//!
//! What is left of a request's time is the engine's own. Shared by the tests that count and the benchmarks that
//! measure.

use std::collections::BTreeMap;

use drystone_core::buf::BufList;
use drystone_core::engine::{Engine, Io, Op, Reply, Request};
use drystone_core::format::qcow2::{CreateOptions, Qcow2Options, create};
use drystone_core::graph::NodeId;
use drystone_core::graph::open::{ChildSpec, DriverSpec, NodeSpec, OpenMode, open};
use drystone_core::intent::{
    Action, Intent, Label, LeafId, LeafInfo, LeafKind, LeafStatus, Location, Outcome,
};

/// Bytes that metadata is kept in.
const PAGE: usize = 4096;

/// An engine on leaves that forget data.
#[derive(Default)]
pub struct Null {
    engine: Engine,
    leaves: Vec<Store>,
    /// Bytes of a block of the leaves opened from now on; nothing where there are no blocks.
    pub block: u32,
    /// Whether images opened from now on hand discards on.
    pub discard: bool,
}

/// The metadata of one leaf.
#[derive(Default)]
struct Store {
    name: String,
    len: u64,
    pages: BTreeMap<u64, Box<[u8; PAGE]>>,
}

impl Null {
    /// Makes an empty image in a leaf called `name`, opens it above `backing`, and returns its node.
    pub fn qcow2(&mut self, name: &str, options: &CreateOptions, backing: Option<&str>) -> NodeId {
        let mode = OpenMode { writable: true, discard: self.discard, ..OpenMode::default() };
        let file = NodeSpec::file(name, mode);
        let (leaf, options) = (file.clone(), options.clone());
        self.job(|io| async move {
            let file = open(&io, &leaf).await.expect("leaves open");
            create(&io, file, &options).await.expect("the options are legal");
            io.close(file).await.expect("leaves close");
        });
        let backing = match backing {
            None => ChildSpec::None,
            Some(node) => {
                let driver = DriverSpec::Node(node.into());
                ChildSpec::Spec(Box::new(NodeSpec { node_name: None, mode, driver }))
            }
        };
        let driver = DriverSpec::Qcow2 {
            file: Box::new(file),
            backing,
            data_file: ChildSpec::FromImage,
            options: Qcow2Options::default(),
        };
        let spec = NodeSpec { node_name: Some(name.into()), mode, driver };
        self.job(|io| async move { open(&io, &spec).await.expect("an image that was just made") })
    }

    /// The engine, for what it counts.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Carries a request out from one end to the other, and gives its buffers back.
    #[inline]
    pub fn request(&mut self, node: NodeId, op: Op, offset: u64, data: BufList) -> BufList {
        self.engine.submit(Request { node, op, offset, len: 0, data, tag: 0 });
        self.settle();
        let Reply { data, result, .. } = self.engine.next_reply().expect("everything is answered at once");
        result.expect("nothing fails here");
        data
    }

    fn job<T: 'static, F: Future<Output = T> + 'static>(&mut self, work: impl FnOnce(Io) -> F) -> T {
        let job = self.engine.run(0, work);
        self.settle();
        self.engine.next_reply().expect("the job ended");
        job.take().expect("and gave its value")
    }

    #[inline]
    fn settle(&mut self) {
        while self.step().is_some() {}
    }

    /// Carries the next intent out, if there is one, and says what it was.
    #[inline]
    pub fn step(&mut self) -> Option<Label> {
        let Intent { token, label, action } = self.engine.next_intent()?;
        let outcome = self.carry_out(label, action);
        self.engine.complete(token, outcome);
        Some(label)
    }

    #[inline]
    fn carry_out(&mut self, label: Label, action: Action) -> Outcome {
        let is_metadata = label.starts_with("qcow2.");
        match action {
            Action::Read { leaf, offset, mut data } => {
                let len = data.len_bytes();
                if is_metadata {
                    self.leaves[leaf.0 as usize].read(offset, &mut data);
                }
                Outcome::Moved { data, result: Ok(len) }
            }
            Action::Write { leaf, offset, data, .. } => {
                let len = data.len_bytes();
                if is_metadata {
                    self.leaves[leaf.0 as usize].write(offset, &data);
                }
                Outcome::Moved { data, result: Ok(len) }
            }
            action => self.control(action),
        }
    }

    /// What is not on the path of a request.
    fn control(&mut self, action: Action) -> Outcome {
        match action {
            Action::Open { location: Location::Path(name), .. } => Outcome::Opened(Ok(self.open_leaf(name))),
            Action::Lock { .. } => Outcome::Locked(Ok(())),
            Action::SetLen { leaf, len, .. } => {
                self.leaves[leaf.0 as usize].len = len;
                Outcome::Done(Ok(()))
            }
            Action::BlockStatus { len, .. } => Outcome::Status(Ok(LeafStatus::of(len, false))),
            Action::Flush { .. }
            | Action::Close { .. }
            | Action::Discard { .. }
            | Action::WriteZeroes { .. } => Outcome::Done(Ok(())),
            other => panic!("not asked for here: {other:?}"),
        }
    }

    fn open_leaf(&mut self, name: String) -> LeafInfo {
        let known = self.leaves.iter().position(|leaf| leaf.name == name);
        let index = known.unwrap_or_else(|| {
            self.leaves.push(Store { name, ..Store::default() });
            self.leaves.len() - 1
        });
        LeafInfo {
            leaf: LeafId(index as u32),
            len: self.leaves[index].len,
            request_align: self.block.max(1),
            memory_align: 1,
            preferred_size: 0,
            transfer_max: 0,
            kind: LeafKind::Null,
            grows_as_zeroes: true,
            discard_zeroes: false,
            fast_zeroes: true,
        }
    }
}

impl Store {
    fn read(&self, offset: u64, data: &mut BufList) {
        let mut bytes = vec![0; data.len_bytes()];
        for (at, page, range) in pieces(offset, bytes.len()) {
            if let Some(stored) = self.pages.get(&page) {
                bytes[at..][..range.len()].copy_from_slice(&stored[range]);
            }
        }
        data.copy_in(0, &bytes);
    }

    fn write(&mut self, offset: u64, data: &BufList) {
        let mut bytes = vec![0; data.len_bytes()];
        data.copy_out(0, &mut bytes);
        for (at, page, range) in pieces(offset, bytes.len()) {
            let stored = self.pages.entry(page).or_insert_with(|| Box::new([0; PAGE]));
            let len = range.len();
            stored[range].copy_from_slice(&bytes[at..][..len]);
        }
        self.len = self.len.max(offset + bytes.len() as u64);
    }
}

/// Cuts a range at the borders of pages: its byte in the range, the page, and the bytes within the page.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (usize, u64, std::ops::Range<usize>)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let (page, start) = ((offset + at as u64) / PAGE as u64, (offset + at as u64) as usize % PAGE);
        let piece = (PAGE - start).min(len - at);
        at += piece;
        (piece > 0).then(|| (at - piece, page, start..start + piece))
    })
}
