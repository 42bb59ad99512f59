//! blkdebug: fails requests, and holds up the driver above, at places in that driver's work.
//!
//! ```text
//!   qcow2 ── event l2_load ──▶ blkdebug: rules arm failures, breakpoints hold the request that told the event
//!     '───── read, write … ──▶ blkdebug: an armed failure, or on to the file
//! ```
//!
//! Drivers tell events through `Io::event`; only those that stand directly on the node, or on a raw window on it, are
//! heard, as in QEMU. `rules` is what happens at an event, `config` reads rules from a file. The node can also
//! stand in for a device that takes whole blocks only (`align`), or limited requests.

pub(crate) mod config;
mod rules;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use async_trait::async_trait;

pub use rules::{Inject, IoType, Rules, SetState};

use super::{DebugEvent, FilterError};
use crate::buf::{Buf, BufList};
use crate::engine::task::WaitList;
use crate::engine::{Io, LocalFuture, Op, Request};
use crate::error::{Error, Result};
use crate::graph::driver::{Access, Driver, Extent, Length, Mapping, Role};
use crate::graph::{Kind, NodeId};
use crate::intent::{Errno, Fua, LeafAccess, Location, Permissions, ZeroFlags};

/// What a blkdebug node is told when it is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlkdebugOptions {
    /// Path of a file with rules, which come before the others.
    pub config: Option<String>,
    /// Rules.
    pub rules: Rules,
    /// What requests must be like.
    pub limits: Limits,
    /// Permissions on the file that the node takes beyond those of the nodes above.
    pub takes: Permissions,
    /// Permissions on the file that it lets nobody else take.
    pub unshares: Permissions,
}

/// What the requests that a node passes on are like. All in bytes, and 0 for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Offsets and lengths are multiples of this power of two; what is not is read, changed and written in whole.
    pub align: u64,
    /// Bytes that one read or write moves at the most.
    pub max_transfer: u64,
    /// Zeros come in multiples of this; what is not is written as data.
    pub opt_write_zero: u64,
    /// Zeros in one request at the most.
    pub max_write_zero: u64,
    /// Discards come in multiples of this; what is not is left out.
    pub opt_discard: u64,
    /// Bytes that one request discards at the most.
    pub max_discard: u64,
}

/// What a node says about its breakpoints, when it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A request waits at the breakpoint of this tag.
    Suspended(String),
    /// It goes on.
    Resuming(String),
}

/// Is told of breakpoints.
type Listener = Rc<dyn Fn(Notice)>;

/// A node that fails requests and holds them up.
pub struct Blkdebug {
    machine: RefCell<rules::Machine>,
    limits: Limits,
    /// What it takes on its file, and what it lets nobody else take.
    permissions: (Permissions, Permissions),
    breaks: RefCell<Breaks>,
    resumed: WaitList,
    listener: RefCell<Option<Listener>>,
    /// Whether something was changed since the last flush; who has nothing to flush meets no rule.
    unflushed: Cell<bool>,
    /// The engine's count of nodes like this one.
    debugged: Rc<Cell<u32>>,
}

impl Drop for Blkdebug {
    fn drop(&mut self) {
        self.debugged.set(self.debugged.get() - 1);
    }
}

#[derive(Default)]
struct Breaks {
    /// Breakpoints that no request has met yet.
    set: Vec<(DebugEvent, String)>,
    /// Requests that wait, by number and tag, in the order in which they came.
    waiting: Vec<(u64, String)>,
    next: u64,
}

impl Blkdebug {
    pub(super) async fn open(io: &Io, options: &BlkdebugOptions) -> Result<Self> {
        let mut rules = match &options.config {
            None => Rules::default(),
            Some(path) => read_config(io, path).await?,
        };
        rules.injects.extend(&options.rules.injects);
        rules.states.extend(&options.rules.states);
        let mut machine = rules::Machine::new(&rules);
        machine.tell(DebugEvent::None);
        let debugged = Rc::clone(&io.shared().debugged);
        debugged.set(debugged.get() + 1);
        Ok(Self {
            machine: RefCell::new(machine),
            limits: options.limits,
            permissions: (options.takes, options.unshares),
            breaks: RefCell::default(),
            resumed: WaitList::default(),
            listener: RefCell::default(),
            unflushed: Cell::new(false),
            debugged,
        })
    }

    /// Runs `f` with the first blkdebug node on the way from `node` down to its file.
    pub fn find<T>(io: &Io, node: NodeId, f: impl FnOnce(&Self, &Io) -> T) -> Option<T> {
        let mut node = node;
        loop {
            let driver = io.driver(node)?;
            if let Some(found) = driver.as_any().downcast_ref::<Self>() {
                return Some(f(found, &io.for_node(node)));
            }
            node = io.edge(node, Role::File)?;
        }
    }

    /// Tells `node` of an event, where it is a blkdebug node or a raw window on one.
    pub(crate) async fn tell(io: &Io, node: NodeId, event: DebugEvent) {
        let mut node = node;
        loop {
            let here = io.shared().graph.node(node);
            let Kind::Driver(driver) = &here.kind else { return };
            match driver.as_any().downcast_ref::<Self>() {
                Some(debug) => return debug.hear(io, event).await,
                None if driver.name() == "raw" => node = here.child(Role::File),
                None => return,
            }
        }
    }

    /// Has `listener` told when a request meets a breakpoint, and when it goes on.
    pub fn listen(&self, listener: Rc<dyn Fn(Notice)>) {
        *self.listener.borrow_mut() = Some(listener);
    }

    /// Sets a breakpoint: the next request that comes to `event` waits, under the name `tag`.
    pub fn set_break(&self, event: DebugEvent, tag: &str) {
        self.breaks.borrow_mut().set.push((event, tag.into()));
    }

    /// Takes back all breakpoints of that tag, and lets go on who waits at them. Tells whether there were any that nobody
    /// had met yet.
    pub fn remove_break(&self, io: &Io, tag: &str) -> bool {
        let removed = {
            let mut breaks = self.breaks.borrow_mut();
            let before = breaks.set.len();
            breaks.set.retain(|(_, other)| other != tag);
            before - breaks.set.len()
        };
        while self.resume(io, tag) {}
        removed > 0
    }

    /// Lets the first request go on that waits under that tag. Tells whether there was one.
    pub fn resume(&self, io: &Io, tag: &str) -> bool {
        let waits = {
            let mut breaks = self.breaks.borrow_mut();
            let at = breaks.waiting.iter().position(|(_, other)| other == tag);
            at.map(|at| breaks.waiting.remove(at)).is_some()
        };
        if waits {
            self.notice(Notice::Resuming(tag.into()));
            self.resumed.notify(&io.shared().tasks);
        }
        waits
    }

    /// Lets everybody go on, and forgets all breakpoints: what waits at the end would wait for ever.
    pub fn resume_all(&self, io: &Io) {
        let tags: Vec<String> = {
            let mut breaks = self.breaks.borrow_mut();
            breaks.set.clear();
            breaks.waiting.iter().map(|(_, tag)| tag.clone()).collect()
        };
        for tag in tags {
            self.resume(io, &tag);
        }
    }

    /// Whether a request waits under that tag.
    pub fn is_suspended(&self, tag: &str) -> bool {
        self.breaks.borrow().waiting.iter().any(|(_, other)| other == tag)
    }

    fn notice(&self, notice: Notice) {
        let listener = self.listener.borrow().clone();
        if let Some(listener) = listener {
            listener(notice);
        }
    }

    async fn hear(&self, io: &Io, event: DebugEvent) {
        self.machine.borrow_mut().tell(event);
        let met = self.stop_at(event);
        if met.is_empty() {
            return;
        }
        let goes_on = || {
            let waits = self.breaks.borrow().waiting.iter().any(|(number, _)| met.contains(number));
            (!waits).then_some(())
        };
        self.resumed.wait(&io.shared().tasks, goes_on).await;
    }

    /// Takes the breakpoints that the caller has met, the newest first, and gives the numbers under which it waits.
    fn stop_at(&self, event: DebugEvent) -> Vec<u64> {
        let mut met = Vec::new();
        loop {
            let tag = {
                let mut breaks = self.breaks.borrow_mut();
                let Some(at) = breaks.set.iter().rposition(|(other, _)| *other == event) else { return met };
                let (_, tag) = breaks.set.remove(at);
                let number = breaks.next;
                breaks.next += 1;
                breaks.waiting.push((number, tag.clone()));
                met.push(number);
                tag
            };
            self.notice(Notice::Suspended(tag));
        }
    }

    /// Lets a request pass, or fails it.
    async fn admit(&self, io: &Io, io_type: IoType, offset: u64, len: u64) -> Result<()> {
        let Some(failure) = self.machine.borrow_mut().meet(io_type, offset, len) else { return Ok(()) };
        if !failure.immediately {
            io.sleep(Duration::ZERO).await;
        }
        let operation = match io_type {
            IoType::Read => "read",
            IoType::Write => "write",
            IoType::WriteZeroes => "write of zeros",
            IoType::Discard => "discard",
            IoType::Flush => "flush",
            IoType::BlockStatus => "block status",
        };
        let location = io.title(io.node());
        Err(Box::new(Error::Leaf { location, operation, offset, len, errno: failure.errno }))
    }

    /// Lets a question about what backs a range pass, or fails it.
    pub(crate) async fn admit_status(&self, io: &Io, offset: u64, len: u64) -> Result<()> {
        self.admit(io, IoType::BlockStatus, offset, len).await
    }

    fn align(&self) -> u64 {
        self.limits.align.max(1)
    }

    /// Moves `data`, whole blocks, in requests that are not too large. The buffers come back whatever happens.
    async fn transfer(&self, io: &Io, op: Op, offset: u64, data: &mut BufList) -> Result<()> {
        let file = io.child(Role::File);
        let (mut at, mut result) = (offset, Ok(()));
        let mut rest = std::mem::take(data);
        let max = if self.limits.max_transfer == 0 { u64::MAX } else { self.limits.max_transfer };
        while !rest.is_empty() && result.is_ok() {
            let len = (rest.len_bytes() as u64).min(max);
            let part = rest.split_to(len as usize);
            let io_type = if op == Op::Read { IoType::Read } else { IoType::Write };
            let (part, moved) = match self.admit(io, io_type, at, len).await {
                Err(error) => (part, Err(error)),
                Ok(()) if op == Op::Read => io.read("blkdebug.read", file, at, part).await,
                Ok(()) => {
                    let fua = if op == Op::Write(Fua::Yes) { Fua::Yes } else { Fua::No };
                    io.write("blkdebug.write", file, at, part, fua).await
                }
            };
            data.append(part);
            result = moved;
            at += len;
        }
        data.append(rest);
        result
    }

    /// Reads, the blocks around an unaligned range with it.
    async fn read(&self, io: &Io, request: &mut Request) -> Result<()> {
        let (offset, len) = (request.offset, request.data.len_bytes() as u64);
        let (start, end) = super::blocks(offset, len, self.align());
        let mut whole = BufList::from(Buf::zeroed((offset - start) as usize));
        whole.append(std::mem::take(&mut request.data));
        whole.append(Buf::zeroed((end - offset - len) as usize).into());
        let result = self.transfer(io, Op::Read, start, &mut whole).await;
        drop(whole.split_to((offset - start) as usize));
        request.data = whole.split_to(len as usize);
        result
    }

    /// Writes. What is not whole blocks is read, changed and written while nobody else writes to those blocks.
    async fn write(&self, io: &Io, offset: u64, data: &mut BufList, fua: Fua) -> Result<()> {
        let len = data.len_bytes() as u64;
        let (start, end) = super::blocks(offset, len, self.align());
        let here = io.shared().graph.node(io.node());
        let _claim = match self.align() {
            1 => None,
            _ => Some(here.claims.take(&io.shared().tasks, start, end).await),
        };
        // A block that reaches over the end of the file makes it no longer.
        let end = end.min(io.len(io.node()).max(offset + len));
        let mut head = Buf::zeroed((offset - start) as usize).into();
        let mut tail = Buf::zeroed((end - offset - len) as usize).into();
        if start < offset {
            io.event_at(io.node(), DebugEvent::PwritevRmwHead).await;
            self.read_edge(io, start, &mut head, false).await?;
            io.event_at(io.node(), DebugEvent::PwritevRmwAfterHead).await;
        }
        if offset + len < end {
            io.event_at(io.node(), DebugEvent::PwritevRmwTail).await;
            self.read_edge(io, offset + len, &mut tail, true).await?;
            io.event_at(io.node(), DebugEvent::PwritevRmwAfterTail).await;
        }
        let mut whole = head;
        whole.append(std::mem::take(data));
        whole.append(tail);
        io.event_at(io.node(), DebugEvent::Pwritev).await;
        let result = self.transfer(io, Op::Write(fua), start, &mut whole).await;
        io.event_at(io.node(), DebugEvent::PwritevDone).await;
        drop(whole.split_to((offset - start) as usize));
        *data = whole.split_to(len as usize);
        result
    }

    /// Reads the block that a write covers in part, and keeps of it what the write leaves: its end, or its start.
    async fn read_edge(&self, io: &Io, at: u64, edge: &mut BufList, is_tail: bool) -> Result<()> {
        let align = self.align();
        let block = at - at % align;
        let mut whole = BufList::from(Buf::zeroed(align as usize));
        self.transfer(io, Op::Read, block, &mut whole).await?;
        let whole = whole.into_single();
        let from = if is_tail { (at - block) as usize } else { 0 };
        edge.copy_in(0, &whole[from..from + edge.len_bytes()]);
        Ok(())
    }

    /// Writes zeros: whole units as such, what is left at either end as data.
    async fn write_zeroes(&self, io: &Io, offset: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        let unit = self.limits.opt_write_zero.max(self.align());
        let max = whole_limit(self.limits.max_write_zero, unit);
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let next_unit = (at / unit + 1) * unit;
            if !at.is_multiple_of(unit) || end - at < unit {
                let part = next_unit.min(end) - at;
                if flags.no_fallback {
                    let (location, operation) = (io.title(io.node()), "write of zeros");
                    let errno = Errno::ENOTSUP;
                    return Err(Box::new(Error::Leaf { location, operation, offset: at, len: part, errno }));
                }
                self.write(io, at, &mut Buf::zeroed(part as usize).into(), Fua::No).await?;
                at += part;
                continue;
            }
            let part = ((end - at) - (end - at) % unit).min(max);
            let here = io.shared().graph.node(io.node());
            let _claim = match self.align() {
                1 => None,
                _ => Some(here.claims.take(&io.shared().tasks, at, at + part).await),
            };
            io.event_at(io.node(), DebugEvent::PwritevZero).await;
            let zeroed = match self.admit(io, IoType::WriteZeroes, at, part).await {
                Ok(()) => {
                    io.write_zeroes("blkdebug.write_zeroes", io.child(Role::File), at, part, flags).await
                }
                Err(error) => Err(error),
            };
            io.event_at(io.node(), DebugEvent::PwritevDone).await;
            zeroed?;
            at += part;
        }
        Ok(())
    }

    /// Discards whole units; what is left at either end stays.
    async fn discard(&self, io: &Io, offset: u64, len: u64) -> Result<()> {
        let unit = self.limits.opt_discard.max(self.align());
        let max = whole_limit(self.limits.max_discard, unit);
        let (mut at, end) = (offset.next_multiple_of(unit), (offset + len) / unit * unit);
        let here = io.shared().graph.node(io.node());
        let _claim = match self.align() {
            1 => None,
            _ => Some(here.claims.take(&io.shared().tasks, at, end.max(at)).await),
        };
        while at < end {
            let part = (end - at).min(max);
            self.admit(io, IoType::Discard, at, part).await?;
            io.discard("blkdebug.discard", io.child(Role::File), at, part).await?;
            at += part;
        }
        Ok(())
    }
}

/// Whole units in one request at the most; a limit of less than one unit is none.
fn whole_limit(max: u64, unit: u64) -> u64 {
    match max / unit * unit {
        0 => u64::MAX,
        max => max,
    }
}

async fn read_config(io: &Io, path: &str) -> Result<Rules> {
    let fail = |fault| Error::Format { node: path.into(), fault: Box::new(fault) };
    let unreadable =
        |error: Box<Error>| Box::new(fail(FilterError::ConfigUnreadable(error.errno().to_string())));
    let location = Location::Path(path.into());
    let opened = io.open_leaf(None, location, LeafAccess::default(), Default::default()).await;
    let file = opened.map_err(unreadable)?;
    let len = io.len(file);
    let bytes = match len <= config::LEN_MAX {
        true => io.read_bytes("blkdebug.config", file, 0, len as usize).await,
        false => Err(Box::new(fail(FilterError::ConfigTooLong { len, max: config::LEN_MAX }))),
    };
    let closed = io.close(file).await;
    let bytes = match bytes {
        Err(error) if matches!(*error, Error::Format { .. }) => return Err(error),
        bytes => bytes,
    };
    let bytes = bytes.and_then(|bytes| closed.map(|()| bytes)).map_err(unreadable)?;
    config::parse(&String::from_utf8_lossy(&bytes)).map_err(|fault| Box::new(fail(fault)))
}

#[async_trait(?Send)]
impl Driver for Blkdebug {
    fn name(&self) -> &'static str {
        "blkdebug"
    }

    fn is_filter(&self) -> bool {
        true
    }

    fn child_permissions(&self) -> (Permissions, Permissions) {
        self.permissions
    }

    fn length(&self) -> Length {
        Length::OfFileFrom(0)
    }

    fn lookup(&self, offset: u64, len: u64, _: Access) -> Result<Extent> {
        Ok(Extent { len, mapping: Mapping::Own { child: Role::File, offset } })
    }

    fn serve<'a>(&'a self, io: &'a Io, request: &'a mut Request) -> LocalFuture<'a, Result<()>> {
        Box::pin(async move {
            self.unflushed.set(self.unflushed.get() || request.op != Op::Read);
            match request.op {
                Op::Read => self.read(io, request).await,
                Op::Write(fua) => self.write(io, request.offset, &mut request.data, fua).await,
                Op::WriteZeroes(flags, _) => self.write_zeroes(io, request.offset, request.len, flags).await,
                Op::Discard => self.discard(io, request.offset, request.len).await,
                Op::WriteCompressed => Err(super::unsupported(io, self.name(), "compressed writes")),
                Op::Flush => unreachable!("a flush goes to `flush`"),
            }
        })
    }

    fn flush<'a>(&'a self, io: &'a Io) -> LocalFuture<'a, Result<()>> {
        Box::pin(async {
            let flushed = match self.unflushed.replace(false) {
                true => self.admit(io, IoType::Flush, 0, 0).await,
                false => Ok(()),
            };
            let flushed = match flushed {
                Ok(()) => io.flush("blkdebug.flush", io.child(Role::File)).await,
                failed => failed,
            };
            self.unflushed.set(self.unflushed.get() || flushed.is_err());
            flushed
        })
    }

    async fn close(&self, _: &Io) -> Result<()> {
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
