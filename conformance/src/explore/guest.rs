//! The guest of an operation: what it does to the image, and what of that a crash may leave.
//!
//! Owns the verbs that an operation is written in, each of which tells the model before and after it is done. Start at
//! [`Guest`]; what a crash is held against is [`Allowed`].

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use drystone_core::buf::Buf;
use drystone_core::engine::{Io, Op};
use drystone_core::error::Result;
use drystone_core::graph::open::{NodeSpec, open};
use drystone_core::graph::{Access as DriverAccess, NodeId, Preallocate};
use drystone_core::intent::{Fua, ZeroFlags};
use fastrand::Rng;

use super::crashes::fingerprint;
use super::operation::{Access, Body, Operation};
use crate::model::{Model, Possible, Rules};
use crate::sparse::Sparse;
use crate::world::World;

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
    /// What holds of the files for good.
    promises: RefCell<Vec<Promise>>,
    /// Whether the image must open.
    opens: Cell<bool>,
    /// Whether what was written is durable once the image is closed: a format's metadata is, a raw file is as it is.
    durable_close: bool,
    /// Whether a length that was changed is durable: a format's is, and one that is the file's own is not.
    durable_length: bool,
    next_tag: Cell<u64>,
    pending: Cell<u32>,
    rng: RefCell<Rng>,
    failure: RefCell<Option<Box<drystone_core::error::Error>>>,
    close_error: RefCell<Option<String>>,
    version: Cell<u64>,
}

impl Guest {
    /// The guest of an operation, whose choices are those of a seed.
    pub(super) fn new(operation: &Operation, seed: u64) -> Self {
        let size = operation.content.len();
        let makes = operation.access == Access::Make;
        let initial = if makes { Sparse::new(size) } else { operation.content.clone() };
        let guest = Self::of(operation, initial, !makes, seed);
        if makes {
            // From nothing to all of it: until it has ended, each sector is the one or the other.
            let bytes = operation.content.to_vec();
            guest.model(|model| model.begin(0, Op::Write(Fua::No), 0, size, Some(bytes)));
        }
        guest
    }

    /// The guest that works with an image before anything is explored. It writes other bytes than the one that comes after
    /// it, or overwriting would change nothing.
    pub(super) fn preparing(operation: &Operation) -> Self {
        const FIRST_TAG: u64 = 1 << 32;
        let guest = Self::new(operation, 0);
        guest.0.next_tag.set(FIRST_TAG);
        guest
    }

    /// The guest of an image that holds these bytes.
    pub(super) fn of(operation: &Operation, content: Sparse, opens: bool, seed: u64) -> Self {
        let size = content.len();
        let raw = operation.format == "raw";
        // An encrypted volume has no metadata that a write changes.
        let plain = raw || operation.format == "luks";
        // A format keeps metadata that it could not write, and a later flush writes it.
        let rules = Rules { sticky_flush: plain, ..Rules::default() };
        Self(Rc::new(State {
            io: RefCell::new(None),
            node: Cell::new(None),
            model: RefCell::new(Model::new(size, content, rules)),
            sizes: RefCell::new(vec![size]),
            wholes: RefCell::default(),
            flaws: Cell::new(operation.flaws),
            promises: RefCell::default(),
            opens: Cell::new(opens),
            durable_close: !plain,
            durable_length: !raw,
            next_tag: Cell::new(1),
            pending: Cell::new(0),
            rng: RefCell::new(Rng::with_seed(seed)),
            failure: RefCell::new(None),
            close_error: RefCell::new(None),
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
                result.and(self.close(io, node).await)
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

    async fn close(&self, io: &Io, node: NodeId) -> Result<()> {
        // Who gave up may have left others at work.
        while self.0.pending.get() > 0 {
            io.sleep(Duration::from_nanos(100)).await;
        }
        let closing = self.next_tag();
        let durable = self.0.durable_close;
        if durable {
            self.model(|model| model.begin(closing, Op::Flush, 0, 0, None));
        }
        let closed = io.close(node).await;
        if durable {
            self.end(closing, closed.is_ok());
        }
        if let Err(error) = &closed {
            *self.0.close_error.borrow_mut() = Some(error.to_string());
        }
        closed
    }

    /// Whether the disk is one of which all that may be there is known sector by sector, so that it can be worked with.
    pub(super) fn is_settled(&self) -> bool {
        self.0.node.get().is_some() && self.0.sizes.borrow().len() == 1 && self.0.wholes.borrow().is_empty()
    }

    /// Why the image did not close.
    pub(super) fn close_error(&self) -> Option<String> {
        self.0.close_error.borrow().clone()
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

    /// Writes bytes that are nowhere else to a machine's state.
    ///
    /// # Errors
    /// What the image says.
    pub async fn save(&self, offset: u64, len: u64) -> Result<()> {
        let (tag, io, node) = (self.next_tag(), self.io(), self.node());
        let at = io.len(node) + offset;
        let bytes: Vec<u8> = (at..at + len).map(|at| pattern(tag, at)).collect();
        let data = Buf::from(bytes.clone()).into();
        let saving = async { io.vmstate(node, DriverAccess::Write, offset, data).await.1 };
        self.does(tag, Op::Write(Fua::No), at, len, Some(bytes), saving).await
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

    /// Does so many things of any kind, as the seed has it: near either end of the disk, so that they meet, and up to `len_max`
    /// bytes each.
    ///
    /// # Errors
    /// What the image says.
    pub async fn anything(&self, count: u32, len_max: u64) -> Result<()> {
        const NEAR: u64 = 24 << 10;
        let below = |end: u64| self.0.rng.borrow_mut().u64(..end);
        let size = self.io().len(self.node());
        for _ in 0..count {
            let (what, len) = (below(10), 1 + below(len_max.min(size)));
            let place = below(NEAR.min(size - len + 1));
            let offset = if below(2) == 0 { place } else { size - len - place };
            match what {
                0..5 => self.write(offset, len).await?,
                5 => self.write_through(offset, len).await?,
                6 => self.zero(offset, len, below(2) == 0).await?,
                7 => self.discard(offset, len).await?,
                _ => self.flush().await?,
            }
        }
        Ok(())
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
        if result.is_ok() && self.0.durable_length {
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

    /// Empties the image, so that the disk shows what is below it: durably on return. Each block goes by itself, so what is
    /// below is to be what the disk shows already, wherever a crash is looked at.
    ///
    /// # Errors
    /// What the image says.
    pub async fn empty(&self, below: &[u8]) -> Result<()> {
        let io = self.io();
        let emptying = io.make_empty(self.node());
        match self.allowed().only() {
            Some(shown) if shown == below => emptying.await,
            _ => self.replace(below, emptying).await,
        }
    }

    /// From here on a check finds nothing wrong.
    pub fn is_mended(&self) {
        self.0.flaws.set(None);
        self.touch();
    }

    /// From here on this holds of the files, whatever a crash leaves of them.
    pub fn promise(&self, holds: impl Fn(&World) -> std::result::Result<(), String> + 'static) {
        self.0.promises.borrow_mut().push(Promise(Rc::new(holds)));
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
        let promises = self.0.promises.borrow().clone();
        let mut sum = u64::from(opens) + sizes.iter().sum::<u64>();
        sum ^= (wholes.len() as u64) << 56 | flaws.map_or(0, |harm| harm + 1) << 40;
        sum ^= (promises.len() as u64) << 32;
        for part in &possible {
            for bytes in part.contents.iter().flatten() {
                sum = sum.rotate_left(7) ^ fingerprint(bytes) ^ part.range.start;
            }
            sum = sum.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ part.range.end;
        }
        Allowed { opens, sizes, wholes, flaws, promises, possible, sum }
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

/// Whether something holds of the files.
type Holds = dyn Fn(&World) -> std::result::Result<(), String>;

/// What holds of the files for good.
#[derive(Clone)]
struct Promise(Rc<Holds>);

impl fmt::Debug for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Promise")
    }
}

/// What a crash may leave at some moment.
#[derive(Clone, Debug)]
pub(super) struct Allowed {
    pub(super) opens: bool,
    /// How much harm a check may find.
    pub(super) flaws: Option<u64>,
    sizes: Vec<u64>,
    wholes: Vec<Vec<u8>>,
    promises: Vec<Promise>,
    possible: Vec<Possible>,
    /// The same for the same possibilities.
    pub(super) sum: u64,
}

impl Allowed {
    /// Whether what was promised holds of the files.
    pub(super) fn promised(&self, world: &World) -> std::result::Result<(), String> {
        self.promises.iter().try_for_each(|Promise(holds)| holds(world))
    }

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
