//! What is explored: an image, and a coroutine that works with it.
//!
//! ```
//! use drystone_conformance::explore::{Operation, explore, qcow2, Thoroughness};
//! use drystone_core::format::qcow2::CreateOptions;
//!
//! let options = CreateOptions { cluster_size: 512, ..CreateOptions::new(16 << 10) };
//! let operation = Operation::new("two writes", "qcow2", qcow2(&options)).doing(|guest| async move {
//!     guest.write(0, 512).await?;
//!     guest.flush().await?;
//!     guest.write(4096, 512).await
//! });
//! let explored = explore(&operation, &Thoroughness::quick(), 1).expect("no crash breaks it");
//! assert!(explored.states > 100);
//! ```

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use drystone_core::buf::Buf;
use drystone_core::engine::{Io, LocalFuture, Op};
use drystone_core::error::Result;
use drystone_core::format::qcow2::CreateOptions;
use drystone_core::graph::NodeId;
use drystone_core::graph::Preallocate;
use drystone_core::graph::open::{NodeSpec, OpenMode, open};
use drystone_core::graph::options::from_filename;
use drystone_core::intent::{Fua, Label, ZeroFlags};
use drystone_core::job::{ImageSpec, create};

use super::crashes::fingerprint;
use super::straight::straight;
use super::{Checked, Found, looked};
use crate::cases::WRITABLE;
use crate::model::{Model, Possible, Rules};
use crate::sparse::Sparse;
use crate::world::World;

/// The path of the image that an operation is about.
pub const TOP: &str = "top";

/// A coroutine that works with an image.
pub type Body = Rc<dyn Fn(Guest) -> LocalFuture<'static, Result<()>>>;

/// Looks at the files that a crash left, beside what is looked at anyway.
pub type Inspect = Box<dyn Fn(&World) -> std::result::Result<(), String>>;

/// One operation on one kind of image.
pub struct Operation {
    /// Its name, for reports.
    pub name: &'static str,
    /// The format of [`TOP`], as QEMU names it.
    pub format: &'static str,
    pub(super) world: World,
    pub(super) content: Sparse,
    /// Other ways to see the image, that must go on showing what they showed: its snapshots.
    pub(super) views: Vec<(NodeSpec, Vec<u8>)>,
    pub(super) access: Access,
    /// How much harm a check finds in the image until it is repaired; none where it is in order.
    pub(super) flaws: Option<u64>,
    /// A filter above the image, by its driver's name.
    filter: Option<&'static str>,
    /// Labels of intents that nobody need hear of when they fail.
    pub(super) best_effort: Vec<Label>,
    pub(super) body: Body,
    pub(super) inspect: Vec<Inspect>,
    /// Whether QEMU's tools read the image as it is meant.
    pub(super) known_to_qemu: bool,
}

/// What an operation wants of the image [`TOP`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It is opened for writing.
    Write,
    /// It is opened for reading only, and no disk may change.
    Read,
    /// It comes into being.
    Make,
    /// The operation opens it as it needs it.
    Own,
}

/// A world with an empty qcow2 image.
///
/// # Panics
/// When the options do not go together.
pub fn qcow2(options: &CreateOptions) -> World {
    qcow2_in(World::new(), options)
}

/// The same beside files that are there already.
///
/// # Panics
/// When the options do not go together.
pub fn qcow2_in(world: World, options: &CreateOptions) -> World {
    image_in(world, &ImageSpec::Qcow2(options.clone()))
}

/// A world with an image beside the files of another one.
///
/// # Panics
/// When the image cannot be made.
pub fn image_in(world: World, spec: &ImageSpec) -> World {
    let spec = spec.clone();
    let (made, world) = straight(world, |io| async move { create(&io, TOP, &spec).await });
    made.expect("the simulator makes an image");
    world
}

impl Operation {
    /// Returns an operation that does nothing with the image [`TOP`] of a world.
    ///
    /// # Panics
    /// When the image does not open.
    pub fn new(name: &'static str, format: &'static str, world: World) -> Self {
        let mut operation = Self {
            name,
            format,
            world,
            content: Sparse::default(),
            views: Vec::new(),
            access: Access::Write,
            flaws: None,
            filter: None,
            best_effort: Vec::new(),
            body: Rc::new(|_| Box::pin(async { Ok(()) })),
            inspect: Vec::new(),
            known_to_qemu: true,
        };
        operation.content = Sparse::from_bytes(&operation.seen(operation.spec(false)));
        operation
    }

    /// Returns an operation that makes the image [`TOP`], which is to hold these bytes once it has ended.
    pub fn making(name: &'static str, format: &'static str, world: World, content: &[u8]) -> Self {
        Self {
            name,
            format,
            world,
            content: Sparse::from_bytes(content),
            views: Vec::new(),
            access: Access::Make,
            flaws: None,
            filter: None,
            best_effort: Vec::new(),
            body: Rc::new(|_| Box::pin(async { Ok(()) })),
            inspect: Vec::new(),
            known_to_qemu: true,
        }
    }

    /// Has an image be worked with before anything is explored.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn after<F: Future<Output = Result<()>> + 'static>(
        mut self,
        before: impl Fn(Guest) -> F + 'static,
    ) -> Self {
        let guest = Guest::new(&self);
        let world = std::mem::take(&mut self.world);
        let spec = self.spec(true);
        let body: Body = Rc::new(move |guest| Box::pin(before(guest)));
        let (done, world) = straight(world, |io| async move { guest.run(&io, Some(&spec), &body).await });
        done.unwrap_or_else(|error| panic!("{}: preparing the image: {error}", self.name));
        self.world = world;
        self.content = Sparse::from_bytes(&self.seen(self.spec(false)));
        self
    }

    /// Changes the files before anything is explored.
    ///
    /// # Panics
    /// When the image does not open afterwards.
    #[must_use]
    pub fn patched(mut self, patch: impl FnOnce(&mut World)) -> Self {
        patch(&mut self.world);
        self.content = Sparse::from_bytes(&self.seen(self.spec(false)));
        self
    }

    /// What is explored.
    #[must_use]
    pub fn doing<F: Future<Output = Result<()>> + 'static>(
        mut self,
        body: impl Fn(Guest) -> F + 'static,
    ) -> Self {
        self.body = Rc::new(move |guest| Box::pin(body(guest)));
        self
    }

    /// The image is opened for reading, and nothing may change.
    #[must_use]
    pub fn reading(mut self) -> Self {
        self.access = Access::Read;
        self
    }

    /// What is explored opens the image itself: a job that needs more than one file, or a repair.
    #[must_use]
    pub fn opening_it_itself(mut self) -> Self {
        self.access = Access::Own;
        self
    }

    /// The guest works through a filter above the image.
    #[must_use]
    pub fn through(mut self, driver: &'static str) -> Self {
        self.filter = Some(driver);
        self
    }

    /// The image is to be repaired: until the operation has done that, a check may find what does no more harm than what is
    /// wrong before, and repairing whatever a crash leaves brings all of the disk back.
    ///
    /// # Panics
    /// When the image does not open.
    #[must_use]
    pub fn damaged(mut self) -> Self {
        let found = looked(self.world.clone(), self.spec(false), Checked::Yes);
        self.flaws = match found {
            Ok(Found::Disk(_, flaws)) => Some(flaws.harm),
            _ => panic!("{}: too much is wrong with the image", self.name),
        };
        self
    }

    /// Intents of this label may fail without anybody hearing of it, because nobody waits for what they do.
    #[must_use]
    pub fn making_do_without(mut self, label: Label) -> Self {
        self.best_effort.push(label);
        self
    }

    /// What this opens is to show the same at every moment: a snapshot, say.
    ///
    /// # Panics
    /// When it does not open.
    #[must_use]
    pub fn with_view(mut self, view: NodeSpec) -> Self {
        let content = self.seen(view.clone());
        self.views.push((view, content));
        self
    }

    /// What else must hold of the files after any crash.
    #[must_use]
    pub fn holding(mut self, inspect: impl Fn(&World) -> std::result::Result<(), String> + 'static) -> Self {
        self.inspect.push(Box::new(inspect));
        self
    }

    /// QEMU's tools cannot read such an image.
    #[must_use]
    pub fn unknown_to_qemu(mut self) -> Self {
        self.known_to_qemu = false;
        self
    }

    /// What is wanted of the image.
    pub fn access(&self) -> Access {
        self.access
    }

    /// How the image is opened.
    pub fn spec(&self, writable: bool) -> NodeSpec {
        let mode = OpenMode { writable, ..WRITABLE };
        match self.filter {
            Some(filter) if writable => {
                let file = format!(r#"{{"driver":"file","filename":"{TOP}"}}"#);
                let image = format!(r#"{{"driver":"{}","file":{file}}}"#, self.format);
                let whole = format!(r#"json:{{"driver":"{filter}","file":{image}}}"#);
                from_filename(&whole, None, mode).expect("legal options")
            }
            _ => from_filename(TOP, Some(self.format), mode).expect("a path"),
        }
    }

    /// How the guest gets at the image; none where the operation opens it itself, or makes it.
    pub(super) fn guest_spec(&self) -> Option<NodeSpec> {
        match self.access {
            Access::Write => Some(self.spec(true)),
            Access::Read => Some(self.spec(false)),
            Access::Make | Access::Own => None,
        }
    }

    pub(super) fn seen(&self, spec: NodeSpec) -> Vec<u8> {
        let (content, _) = straight(self.world.clone(), |io| async move {
            let node = open(&io, &spec).await?;
            let content = io.read_bytes("explore", node, 0, io.len(node) as usize).await;
            io.close(node).await?;
            content
        });
        content.unwrap_or_else(|error| panic!("{}: reading the image: {error}", self.name)).to_vec()
    }
}

/// The guest of an operation: what it does to the image is what a crash is held against.
#[derive(Clone)]
pub struct Guest(Rc<State>);

struct State {
    io: RefCell<Option<Io>>,
    node: Cell<Option<NodeId>>,
    model: RefCell<Model>,
    /// Lengths that the disk may have; last, the one that it is to have.
    sizes: RefCell<Vec<u64>>,
    /// All that the disk may hold, where it changes as a whole.
    wholes: RefCell<Vec<Vec<u8>>>,
    /// How much harm a check may find; none at all once the image is in order.
    flaws: Cell<Option<u64>>,
    /// Whether the image must open.
    opens: Cell<bool>,
    /// Whether what was written is durable once the image is closed: a format's metadata is, a raw file is as it is.
    durable_close: bool,
    next_tag: Cell<u64>,
    pending: Cell<u32>,
    failure: RefCell<Option<Box<drystone_core::error::Error>>>,
    version: Cell<u64>,
}

impl Guest {
    pub(super) fn new(operation: &Operation) -> Self {
        let size = operation.content.len();
        let makes = operation.access == Access::Make;
        let initial = if makes { Sparse::new(size) } else { operation.content.clone() };
        let guest = Self::of(operation, initial, !makes);
        if makes {
            // From nothing to all of it: until it has ended, each sector is the one or the other.
            let bytes = operation.content.to_vec();
            guest.model(|model| model.begin(0, Op::Write(Fua::No), 0, size, Some(bytes)));
        }
        guest
    }

    /// The guest of an image that holds these bytes.
    pub(super) fn of(operation: &Operation, content: Sparse, opens: bool) -> Self {
        let size = content.len();
        let raw = operation.format == "raw";
        // A format keeps metadata that it could not write, and a later flush writes it.
        let rules = Rules { sticky_flush: raw, ..Rules::default() };
        Self(Rc::new(State {
            io: RefCell::new(None),
            node: Cell::new(None),
            model: RefCell::new(Model::new(size, content, rules)),
            sizes: RefCell::new(vec![size]),
            wholes: RefCell::default(),
            flaws: Cell::new(operation.flaws),
            opens: Cell::new(opens),
            durable_close: !raw,
            next_tag: Cell::new(1),
            pending: Cell::new(0),
            failure: RefCell::new(None),
            version: Cell::new(0),
        }))
    }

    /// Opens the image, where there is one to open, does the work, and closes. What was written before is durable then.
    pub(super) async fn run(&self, io: &Io, spec: Option<&NodeSpec>, body: &Body) -> Result<()> {
        *self.0.io.borrow_mut() = Some(io.clone());
        let result = match spec {
            None => body(self.clone()).await,
            Some(spec) => {
                let node = open(io, spec).await?;
                self.0.node.set(Some(node));
                let result = body(self.clone()).await;
                let closing = self.next_tag();
                let durable = self.0.durable_close;
                if durable {
                    self.model(|model| model.begin(closing, Op::Flush, 0, 0, None));
                }
                let closed = io.close(node).await;
                if durable {
                    self.end(closing, closed.is_ok());
                }
                result.and(closed)
            }
        };
        if !self.0.opens.get() && result.is_ok() {
            self.end(0, true);
            let made = self.next_tag();
            self.model(|model| model.begin(made, Op::Flush, 0, 0, None));
            self.end(made, true);
            self.0.opens.set(true);
        }
        *self.0.io.borrow_mut() = None;
        result
    }

    /// Access to the engine, for what a guest has no verb for: jobs.
    ///
    /// # Panics
    /// When the operation has ended.
    pub fn io(&self) -> Io {
        self.0.io.borrow().clone().expect("the operation runs")
    }

    /// The node of the image.
    ///
    /// # Panics
    /// When the operation makes one, or opens it itself.
    pub fn node(&self) -> NodeId {
        self.0.node.get().expect("the operation has an image")
    }

    /// Writes bytes that are nowhere else.
    ///
    /// # Errors
    /// What the image says.
    pub async fn write(&self, offset: u64, len: u64) -> Result<()> {
        self.write_as(Op::Write(Fua::No), offset, len).await
    }

    /// The same, durably.
    ///
    /// # Errors
    /// What the image says.
    pub async fn write_through(&self, offset: u64, len: u64) -> Result<()> {
        self.write_as(Op::Write(Fua::Yes), offset, len).await
    }

    /// The same, compressed.
    ///
    /// # Errors
    /// What the image says.
    pub async fn write_compressed(&self, offset: u64, len: u64) -> Result<()> {
        self.write_as(Op::WriteCompressed, offset, len).await
    }

    async fn write_as(&self, op: Op, offset: u64, len: u64) -> Result<()> {
        let tag = self.next_tag();
        let bytes: Vec<u8> = (offset..offset + len).map(|at| pattern(tag, at)).collect();
        let data = Buf::from(bytes.clone());
        self.does(tag, op, offset, len, Some(bytes), async {
            match op {
                Op::Write(fua) => self.io().write("guest/write", self.node(), offset, data, fua).await.1,
                _ => self.io().write_compressed("guest/write", self.node(), offset, data).await.1,
            }
        })
        .await
    }

    /// Makes a range read as zeros.
    ///
    /// # Errors
    /// What the image says.
    pub async fn zero(&self, offset: u64, len: u64, may_unmap: bool) -> Result<()> {
        let flags = ZeroFlags { may_unmap, ..ZeroFlags::default() };
        let op = Op::WriteZeroes(flags, Fua::No);
        let (tag, io) = (self.next_tag(), self.io());
        self.does(tag, op, offset, len, None, io.write_zeroes("guest/zero", self.node(), offset, len, flags))
            .await
    }

    /// Gives up the content of a range.
    ///
    /// # Errors
    /// What the image says.
    pub async fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let (tag, io) = (self.next_tag(), self.io());
        self.does(tag, Op::Discard, offset, len, None, io.discard("guest/discard", self.node(), offset, len))
            .await
    }

    /// Reads a range, of which the disk is looked at anyway.
    ///
    /// # Errors
    /// What the image says.
    pub async fn read(&self, offset: u64, len: usize) -> Result<()> {
        self.io().read_bytes("guest/read", self.node(), offset, len).await.map(drop)
    }

    /// Makes durable what completed before.
    ///
    /// # Errors
    /// What the image says.
    pub async fn flush(&self) -> Result<()> {
        let (tag, io) = (self.next_tag(), self.io());
        self.does(tag, Op::Flush, 0, 0, None, io.flush("guest/flush", self.node())).await
    }

    /// Changes the length of the disk: until that has ended, it is the old or the new one, and all of the old disk is there
    /// while it has the old length.
    ///
    /// # Errors
    /// What the image says; the disk may then have either length.
    pub async fn resize(&self, len: u64, how: Preallocate) -> Result<()> {
        let old = *self.0.sizes.borrow().last().expect("a disk has a length");
        self.0.sizes.borrow_mut().push(len);
        self.model(|model| model.grow(len));
        let result = self.io().resize(self.node(), len, how).await;
        // A format's length is durable on return; of a raw file, a crash may bring the old one back until a flush.
        if result.is_ok() && self.0.durable_close {
            self.has_length(old, len);
        }
        self.touch();
        result
    }

    fn has_length(&self, old: u64, len: u64) {
        *self.0.sizes.borrow_mut() = vec![len];
        if len < old {
            let tag = self.next_tag();
            let zeros = Op::WriteZeroes(ZeroFlags::default(), Fua::Yes);
            self.model(|model| model.begin(tag, zeros, len, old - len, None));
            self.end(tag, true);
        }
    }

    /// Does what makes the disk another one, of other bytes and perhaps another length: until that has ended, it is all of
    /// the old one or all of the new one. Durable on return.
    ///
    /// # Errors
    /// What the work says; the disk may then be either.
    ///
    /// # Panics
    /// When the old disk is not durable as it is.
    pub async fn replace(&self, content: &[u8], work: impl Future<Output = Result<()>>) -> Result<()> {
        let (tag, len) = (self.next_tag(), content.len() as u64);
        let old = self.allowed().only().expect("all of the old disk is durable");
        let old_len = old.len() as u64;
        *self.0.wholes.borrow_mut() = vec![old, content.to_vec()];
        self.0.sizes.borrow_mut().push(len);
        self.model(|model| {
            model.grow(len);
            model.begin(tag, Op::Write(Fua::Yes), 0, len, Some(content.to_vec()));
        });
        let result = work.await;
        self.end(tag, result.is_ok());
        if result.is_ok() {
            self.0.wholes.borrow_mut().clear();
            self.has_length(old_len, len);
        }
        result
    }

    /// From here on a check finds nothing wrong.
    pub fn is_mended(&self) {
        self.0.flaws.set(None);
        self.touch();
    }

    /// Does several things at once.
    ///
    /// # Errors
    /// The last failure.
    pub async fn at_once(&self, all: &[Do]) -> Result<()> {
        for one in all.iter().copied() {
            let guest = self.clone();
            self.0.pending.set(self.0.pending.get() + 1);
            self.io().spawn(Box::pin(async move {
                let done = match one {
                    Do::Write(offset, len) => guest.write(offset, len).await,
                    Do::FlushOften => guest.flush_often().await,
                };
                if let Err(error) = done {
                    *guest.0.failure.borrow_mut() = Some(error);
                }
                guest.0.pending.set(guest.0.pending.get() - 1);
            }));
        }
        while self.0.pending.get() > 0 {
            self.io().sleep(Duration::from_nanos(100)).await;
        }
        self.0.failure.take().map_or(Ok(()), Err)
    }

    async fn flush_often(&self) -> Result<()> {
        for _ in 0..8 {
            self.flush().await?;
            self.io().sleep(Duration::from_nanos(150)).await;
        }
        Ok(())
    }

    async fn does(
        &self,
        tag: u64,
        op: Op,
        offset: u64,
        len: u64,
        bytes: Option<Vec<u8>>,
        work: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        self.model(|model| model.begin(tag, op, offset, len, bytes));
        let result = work.await;
        self.end(tag, result.is_ok());
        result
    }

    fn end(&self, tag: u64, worked: bool) {
        let ended = self.model(|model| model.end(tag, worked, None));
        ended.expect("only reads can be wrong");
    }

    fn next_tag(&self) -> u64 {
        self.0.next_tag.replace(self.0.next_tag.get() + 1)
    }

    fn model<T>(&self, change: impl FnOnce(&mut Model) -> T) -> T {
        self.touch();
        change(&mut self.0.model.borrow_mut())
    }

    fn touch(&self) {
        self.0.version.set(self.0.version.get() + 1);
    }

    /// A number that grows whenever what is allowed may have changed.
    pub(super) fn version(&self) -> u64 {
        self.0.version.get()
    }

    /// What a crash may leave now.
    pub(super) fn allowed(&self) -> Allowed {
        let possible = self.0.model.borrow().possible_after_crash();
        let (opens, sizes) = (self.0.opens.get(), self.0.sizes.borrow().clone());
        let (wholes, flaws) = (self.0.wholes.borrow().clone(), self.0.flaws.get());
        let mut sum = u64::from(opens) + sizes.iter().sum::<u64>();
        sum ^= (wholes.len() as u64) << 56 | flaws.map_or(0, |harm| harm + 1) << 40;
        for part in &possible {
            for bytes in part.contents.iter().flatten() {
                sum = sum.rotate_left(7) ^ fingerprint(bytes) ^ part.range.start;
            }
            sum = sum.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ part.range.end;
        }
        Allowed { opens, sizes, wholes, flaws, possible, sum }
    }
}

/// One of several things that a guest does at once.
#[derive(Clone, Copy, Debug)]
pub enum Do {
    /// Writes so many bytes at an offset.
    Write(u64, u64),
    /// Flushes, again and again.
    FlushOften,
}

/// What a crash may leave at some moment.
#[derive(Clone, Debug)]
pub(super) struct Allowed {
    pub(super) opens: bool,
    /// How much harm a check may find.
    pub(super) flaws: Option<u64>,
    sizes: Vec<u64>,
    wholes: Vec<Vec<u8>>,
    possible: Vec<Possible>,
    /// The same for the same possibilities.
    pub(super) sum: u64,
}

impl Allowed {
    /// Whether a guest may see this.
    pub(super) fn check(&self, content: &[u8]) -> std::result::Result<(), String> {
        let len = content.len() as u64;
        if !self.sizes.contains(&len) {
            return Err(format!("the disk has {len} bytes, allowed are {:?}", self.sizes));
        }
        if !self.wholes.is_empty() && !self.wholes.iter().any(|whole| whole == content) {
            return Err("the disk is neither all of the old one nor all of the new one".into());
        }
        for Possible { range, contents } in &self.possible {
            let end = range.end.min(len);
            let Some(contents) = contents else { continue };
            if range.start >= end {
                break;
            }
            let found = &content[range.start as usize..end as usize];
            // While an image is made, part of a sector may be there.
            let byte = |at: usize| contents.iter().any(|bytes| bytes[at] == found[at]);
            let whole = || contents.iter().any(|bytes| bytes[..found.len()] == *found);
            if !(whole() || !self.opens && (0..found.len()).all(byte)) {
                let differs = |bytes: &Vec<u8>| found.iter().zip(bytes).position(|(a, b)| a != b);
                let at = contents.iter().filter_map(differs).max().unwrap_or(0);
                let allowed: Vec<u8> = contents.iter().map(|bytes| bytes[at]).collect();
                return Err(format!(
                    "the guest finds {:#04x} at {:#x}, allowed are {allowed:02x?}",
                    found[at],
                    range.start + at as u64
                ));
            }
        }
        let known = self.possible.last().map_or(0, |part| part.range.end);
        match content.get(known as usize..).unwrap_or_default().iter().position(|byte| *byte != 0) {
            Some(at) => Err(format!("the disk grew, and holds a byte at {:#x}", known + at as u64)),
            None => Ok(()),
        }
    }
}

impl Allowed {
    /// All that the disk holds, where a crash decides nothing.
    fn only(&self) -> Option<Vec<u8>> {
        let len = self.sizes.last().filter(|_| self.sizes.len() == 1)?;
        let mut content = Vec::new();
        for part in &self.possible {
            let (first, others) = part.contents.as_ref()?.split_first()?;
            if others.iter().any(|other| other != first) {
                return None;
            }
            content.extend_from_slice(first);
        }
        content.resize(*len as usize, 0);
        Some(content)
    }
}

/// The byte at `at` of write `tag`: tells writes and places apart, and still compresses.
fn pattern(tag: u64, at: u64) -> u8 {
    let word = (tag + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (at / 64).wrapping_mul(0xd1b5_4a32_d192_ed03);
    (word >> (8 * (at % 8))) as u8
}
