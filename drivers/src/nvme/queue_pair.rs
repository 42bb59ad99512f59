//! An I/O queue pair: requests in, completions out, on one thread and without locks, allocations or system calls.
//!
//! ```text
//!   submit ─▶ check ─▶ a free command slot? ── yes ─▶ PRPs ─▶ submission queue ─▶ ring
//!                │             └─ no, or not running ─▶ waiting ─┘▲
//!                └─ refused ─▶ answered                           │ a slot is free again
//!   poll   ◀─ completion queue ◀─ slot ◀─ request complete? ──────┘
//! ```
//!
//! A request that one command holds stays in its slot from submission to completion; a larger one is a [`Split`], whose
//! commands follow each other as slots become free. What the controller says is checked before it counts; what makes no
//! sense has the controller reset. Resets, timeouts and the making of the queues are in `recovery`.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use drystone_core::buf::{Buf, BufList};
use slab::Slab;

use super::device::{Completions, Device, Lease};
use super::error::{NvmeError, RequestError};
use super::layout::{
    COMPLETION_ENTRY_LEN, Command, Completion, DataPointer, Namespace, Priority, SUBMISSION_ENTRY_LEN,
    doorbells,
};
use super::mapper::Mapper;
use super::memory::DmaMemory;
use super::recovery::State;
use super::request::{Answer, Counters, Operation, Request};
use super::ring::{CompletionRing, Doorbell, Shadow, SubmissionRing};
use super::slot::{Owner, Slot, Split, UNSEEN, Waiting, encode, place};

/// Requests that wait for a slot at the most, before [`QueuePair::has_room`] says no.
const WAITING_MAX: usize = 1024;

/// How often one command is sent, at the most.
pub(super) const ATTEMPTS_MAX: u8 = 4;

/// Blocks of one command with a 16-bit count.
const BLOCKS_MAX: u64 = 1 << 16;

/// A queue pair of a device.
pub struct QueuePair {
    pub(super) device: Arc<Device>,
    pub(super) priority: Priority,
    pub(super) lease: Lease,
    pub(super) state: State,
    pub(super) epoch: Arc<AtomicU32>,
    /// The epoch that the queues belong to.
    pub(super) epoch_seen: u32,
    /// The same while the state is `Running`, and 0 else, which no epoch is: one look says whether both are well.
    pub(super) running_in: u32,
    pub(super) submission: SubmissionRing,
    pub(super) completion: CompletionRing,
    pub(super) memory: DmaMemory,
    pub(super) mapper: Mapper,
    pub(super) slots: Box<[Slot]>,
    /// The lowest bit of a CID above the slot's number: a power of two, or 0 where there is none left.
    pub(super) uses: u16,
    pub(super) free: Vec<u16>,
    pub(super) splits: Slab<Split>,
    pub(super) waiting: VecDeque<Waiting>,
    /// Answers that need no command.
    pub(super) answered: VecDeque<Answer>,
    /// The time at the last tick.
    pub(super) now: Duration,
    pub(super) scanned: Duration,
    pub(super) looked: Duration,
    pub(super) counters: Counters,
    transfer_max: usize,
}

impl QueuePair {
    /// Takes a queue pair of the device. Its queues are made by [`tick`](Self::tick); requests wait until then.
    ///
    /// # Errors
    /// [`NvmeError::NoQueue`] when all are taken; the host's, when it has no memory.
    pub fn new(device: &Arc<Device>) -> Result<Self, NvmeError> {
        Self::with_priority(device, Priority::default())
    }

    /// As [`new`](Self::new). The priority matters where the device was opened with an
    /// [arbitration](super::Options::arbitration), and the controller offers weighted round robin.
    ///
    /// # Errors
    /// As there.
    pub fn with_priority(device: &Arc<Device>, priority: Priority) -> Result<Self, NvmeError> {
        let lease = device.take_queue()?;
        let capabilities = device.capabilities();
        let page = capabilities.page;
        let entries = u32::from(device.options().queue_entries).clamp(2, capabilities.queue_entries_max);
        let entries = u16::try_from(entries).expect("a clamped number of 16 bits");
        let slots = entries - 1;
        let queue_len = usize::from(entries) * SUBMISSION_ENTRY_LEN;
        let queues_len = 2 * queue_len.next_multiple_of(page);
        let memory = device.transport.allocate(queues_len + Mapper::memory_len(slots, page))?;
        let mapped = memory.part(queues_len, Mapper::memory_len(slots, page));
        let (submission, completion) = rings(device, lease.number, &memory, entries, None);
        let (now, epoch) = (device.transport.now(), device.epoch());
        Ok(Self {
            device: Arc::clone(device),
            priority,
            lease,
            state: State::Detached,
            epoch,
            epoch_seen: 0,
            running_in: 0,
            submission,
            completion,
            mapper: Mapper::new(&mapped, slots, page, device.identity().sgl, device.arena().place()),
            memory,
            slots: (0..slots).map(Slot::new).collect(),
            uses: slots.checked_next_power_of_two().unwrap_or(0),
            free: (0..slots).rev().collect(),
            splits: Slab::new(),
            waiting: VecDeque::new(),
            answered: VecDeque::new(),
            now,
            scanned: now,
            looked: now,
            counters: Counters::default(),
            transfer_max: device.transfer_max(),
        })
    }

    /// The device.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// What it did so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Has the controller signal an eventfd for each completion. Tells whether it does: not without interrupt vectors, which
    /// there are where the device was opened with [completions](super::Options::completions) that are not polled.
    ///
    /// # Errors
    /// The host's.
    pub fn bind_interrupt(&self, event: BorrowedFd<'_>) -> Result<bool, NvmeError> {
        match self.vector() {
            None => Ok(false),
            Some(vector) => self.device.transport.bind_interrupt(vector, event).map(|()| true),
        }
    }

    /// The vector of the completion queue, where it has one.
    pub(super) fn vector(&self) -> Option<u16> {
        let queue = self.lease.number;
        let polled = self.device.options().completions == Completions::Polled;
        (!polled && queue < self.device.transport.vectors()).then_some(queue)
    }

    /// Lets the least time pass, after [`poll`](Self::poll) found nothing.
    #[inline]
    pub fn relax(&self) {
        self.device.transport.relax();
    }

    /// Whether another request is welcome.
    #[inline]
    pub fn has_room(&self) -> bool {
        self.waiting.len() < WAITING_MAX
    }

    /// Whether nothing is in flight and nothing waits.
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.free.len() == self.slots.len() && self.waiting.is_empty() && self.answered.is_empty()
    }

    /// Takes a request. The controller is told by [`ring`](Self::ring).
    #[inline(always)]
    pub fn submit(&mut self, namespace: &Namespace, request: Request) {
        // In pieces, so that what goes the short way need never be together in memory.
        let Request { tag, op, offset, len, data } = request;
        if self.running_in != 0
            && self.waiting.is_empty()
            && let Some(window) = data.only()
            && let Some(command) = self.small(namespace, op, (offset, len), window)
            && let Some(number) = self.free.pop()
        {
            return self.send(number, command, op, Owner::Whole { tag }, data);
        }
        self.submit_any(namespace, Request { tag, op, offset, len, data });
    }

    /// The command for a legal read or write of one window, where the command itself can say where that is: most requests.
    /// No controller moves less at a time than the two pages that this can be.
    #[inline(always)]
    fn small(
        &self,
        namespace: &Namespace,
        op: Operation,
        (offset, len): (u64, u64),
        window: &Buf,
    ) -> Option<Command> {
        if window.len() as u64 != len {
            return None;
        }
        let range = namespace.blocks_at(offset, len)?;
        let data = DataPointer::Prp(self.mapper.describe_small(window)?);
        match op {
            Operation::Read => Some(Command::read(namespace.id, data, range)),
            Operation::Write { fua } => Some(Command::write(namespace.id, data, range, fua)),
            _ => None,
        }
    }

    /// Takes a request of any kind.
    #[inline(never)]
    fn submit_any(&mut self, namespace: &Namespace, request: Request) {
        if let Some(result) = self.judge(namespace, &request) {
            let Request { tag, op, data, .. } = request;
            return self.answered.push_back(Answer { tag, op, data, result });
        }
        if self.free.is_empty() || !self.waiting.is_empty() || self.state != State::Running {
            return self.waiting.push_back(Waiting::Fresh(*namespace, request));
        }
        if self.start(namespace, request)
            && let Some(Waiting::Rest(_)) = self.waiting.front()
        {
            self.refill(&mut |_| unreachable!("nothing ends by being sent"));
        }
    }

    /// What can be answered without a command.
    fn judge(&self, namespace: &Namespace, request: &Request) -> Option<Result<(), RequestError>> {
        if let State::Failed(error) = self.state {
            return Some(Err(error));
        }
        let identity = self.device.identity();
        let (op, len) = (request.op, request.len);
        let offered = match op {
            Operation::Read | Operation::Write { .. } => true,
            // Without a volatile cache, what is written is durable.
            Operation::Flush if !identity.volatile_write_cache => return Some(Ok(())),
            Operation::Flush => return None,
            Operation::Compare => identity.compare,
            Operation::WriteZeroes { .. } => identity.write_zeroes,
            Operation::Deallocate => identity.dataset_management,
        };
        if !offered {
            return Some(Err(RequestError::Unsupported));
        }
        let within = (u64::from(namespace.block()) - 1) & (request.offset | len) == 0
            && request.offset.checked_add(len).is_some_and(|end| end <= namespace.len_bytes());
        if !within || op.moves_data() && len != request.data.len_bytes() as u64 {
            return Some(Err(RequestError::OutOfRange));
        }
        if len == 0 { Some(Ok(())) } else { None }
    }

    /// Sends a request, or as much of it as one command holds. There is a free slot. Tells whether anything was sent.
    fn start(&mut self, namespace: &Namespace, request: Request) -> bool {
        let part = self.part(namespace, request.op, request.len);
        let cid = self.free.pop().expect("the caller has seen a free slot");
        let slot = &mut self.slots[usize::from(cid)];
        let Some((data, len)) = place(&mut self.mapper, slot, cid, namespace, &request, (0, part)) else {
            self.free.push(cid);
            self.waiting.push_front(Waiting::Fresh(*namespace, request));
            return false;
        };
        let (op, offset) = (request.op, request.offset);
        let (owner, buffers) = if len == request.len {
            (Owner::Whole { tag: request.tag }, request.data)
        } else {
            let namespace = *namespace;
            let split = Split { namespace, request, sent: len, outstanding: 1, waits: true, error: None };
            let split = self.splits.insert(split);
            self.waiting.push_front(Waiting::Rest(split));
            (Owner::Part { split }, BufList::new())
        };
        self.send_part(cid, encode(op, namespace, data, (offset, len)), op, owner, buffers);
        true
    }

    /// Bytes of one command at the most.
    fn part(&self, namespace: &Namespace, op: Operation, left: u64) -> u64 {
        let blocks = |count: u64| count << namespace.block_bits;
        match op {
            Operation::Flush => 0,
            Operation::Deallocate => left.min(blocks(u64::from(u32::MAX))),
            Operation::WriteZeroes { .. } => left.min(blocks(BLOCKS_MAX)),
            _ => left.min(blocks(BLOCKS_MAX)).min(self.transfer_max as u64),
        }
    }

    /// Sends a command whose data is placed.
    fn send_part(&mut self, cid: u16, command: Command, op: Operation, owner: Owner, data: BufList) {
        let slot = &self.slots[usize::from(cid)];
        if !slot.pages.is_empty() {
            self.counters.copied += slot.range.len as u64;
        }
        self.send(cid, command, op, owner, data);
    }

    #[inline(always)]
    fn send(&mut self, number: u16, command: Command, op: Operation, owner: Owner, data: BufList) {
        let slot = &mut self.slots[usize::from(number)];
        slot.cid = slot.cid.wrapping_add(self.uses);
        let command = command.with_cid(slot.cid);
        self.submission.push(&command);
        slot.owner = owner;
        // Nothing to drop: a slot has none while it is free.
        std::mem::forget(std::mem::replace(&mut slot.data, data));
        slot.op = op;
        slot.attempts = 1;
        slot.aborting = false;
        slot.since = UNSEEN;
        slot.command = command;
        self.counters.commands = self.counters.commands.wrapping_add(1);
    }

    /// Sends a command of a slot again.
    pub(super) fn send_again(&mut self, number: u16) {
        let slot = &mut self.slots[usize::from(number)];
        slot.attempts += 1;
        slot.aborting = false;
        slot.since = UNSEEN;
        slot.cid = slot.cid.wrapping_add(self.uses);
        slot.command = slot.command.with_cid(slot.cid);
        self.submission.push(&slot.command);
        self.counters.commands += 1;
        self.counters.retries += 1;
    }

    /// The number of the slot that a CID belongs to, if there is a slot of that number.
    #[inline(always)]
    fn number_of(&self, cid: u16) -> u16 {
        cid & self.uses.wrapping_sub(1)
    }

    /// Tells the controller of what was submitted.
    #[inline(always)]
    pub fn ring(&mut self) {
        // Queues of an earlier epoch have no doorbells any more.
        if self.submission.has_news() && self.epoch.load(Ordering::Relaxed) == self.running_in {
            self.submission.ring();
            self.counters.doorbells = self.counters.doorbells.wrapping_add(1);
        }
    }

    /// Hands over answers. Does not wait. Tells whether there were any.
    #[inline]
    pub fn poll(&mut self, mut done: impl FnMut(Answer)) -> bool {
        let mut any = !self.answered.is_empty();
        if any {
            self.answered.drain(..).for_each(&mut done);
        }
        if self.epoch.load(Ordering::Acquire) != self.running_in {
            if self.state == State::Running {
                self.enter(State::Detached);
            }
            return any;
        }
        // Ends: each entry is the end of a command, or one more attempt, or else the end of the queue.
        loop {
            let word = self.completion.look();
            if !self.completion.is_new(word) {
                break;
            }
            any = true;
            match self.complete(word, None) {
                Some(answer) => done(answer),
                None if self.complete_otherwise(word, &mut done) => {}
                None => return true,
            }
            // Nothing can follow where nothing is in flight.
            if self.free.len() == self.slots.len() {
                break;
            }
        }
        self.completion.release();
        // Also where nothing was found: somebody may have taken an answer, and with it left a slot.
        if !self.waiting.is_empty() {
            self.refill(&mut done);
            self.ring();
        }
        any
    }

    /// Takes the answer to the request `tag`, if it is the next, and there is nothing to say about it: it succeeded, in its own
    /// buffers. Nothing means that [`poll`](Self::poll) may have more to say, which is also to be asked now and then in any case:
    /// the controller gets the places of completions back there, and runs out of them.
    #[inline(always)]
    pub fn take(&mut self, tag: u64) -> Option<BufList> {
        if self.epoch.load(Ordering::Acquire) != self.running_in {
            return None;
        }
        let answer = self.complete(self.completion.look(), Some(tag))?;
        Some(answer.data)
    }

    /// Takes a completion, if it is new, and says that a command that was a whole request succeeded: nearly all are like that. It
    /// may have to be a certain request.
    #[inline(always)]
    fn complete(&mut self, word: u64, wanted: Option<u64>) -> Option<Answer> {
        if !self.completion.is_success(word) {
            return None;
        }
        let entry = Completion::parse([0, word]);
        let number = self.number_of(entry.cid);
        let slot = self.slots.get_mut(usize::from(number))?;
        let Owner::Whole { tag } = slot.owner else { return None };
        let other = slot.cid != entry.cid || wanted.is_some_and(|wanted| wanted != tag);
        if other || entry.head >= self.submission.len() || !slot.pages.is_empty() {
            return None;
        }
        self.completion.advance();
        slot.owner = Owner::Nobody;
        let (op, data) = (slot.op, std::mem::take(&mut slot.data));
        self.free.push(number);
        Some(Answer { tag, op, data, result: Ok(()) })
    }

    /// Takes any other completion. Tells whether it was one that may come.
    #[inline(never)]
    fn complete_otherwise(&mut self, word: u64, done: &mut impl FnMut(Answer)) -> bool {
        let (index, entry) = (self.completion.head(), Completion::parse([0, word]));
        self.completion.advance();
        let number = match self.check(index, entry) {
            Ok(number) => number,
            Err(error) => {
                self.fault(error);
                return false;
            }
        };
        let slot = &self.slots[usize::from(number)];
        let result = match entry.status {
            status if status.is_success() => Ok(()),
            status if status.may_retry() && slot.attempts < ATTEMPTS_MAX => {
                self.send_again(number);
                self.ring();
                return true;
            }
            status if slot.aborting && status.may_retry() => Err(RequestError::TimedOut),
            status => Err(RequestError::Status(status)),
        };
        self.finish(number, result, done);
        true
    }

    /// The slot that a completion belongs to, if it is one that may come.
    fn check(&self, index: u16, entry: Completion) -> Result<u16, NvmeError> {
        let (queue, len, number) = (self.lease.number, self.submission.len(), self.number_of(entry.cid));
        let in_flight = self
            .slots
            .get(usize::from(number))
            .is_some_and(|slot| slot.cid == entry.cid && !matches!(slot.owner, Owner::Nobody));
        let (field, found, expected) = if entry.queue != queue {
            ("SQID", entry.queue, "this queue pair")
        } else if entry.head >= len {
            ("SQHD", entry.head, "a place in the submission queue")
        } else if !in_flight {
            ("CID", entry.cid, "a command in flight")
        } else {
            return Ok(number);
        };
        Err(NvmeError::Completion { queue, index, field, found, expected })
    }

    /// Ends a command. The controller does nothing more for it.
    #[inline(never)]
    pub(super) fn finish(
        &mut self,
        cid: u16,
        result: Result<(), RequestError>,
        done: &mut impl FnMut(Answer),
    ) {
        let slot = &mut self.slots[usize::from(cid)];
        let owner = std::mem::replace(&mut slot.owner, Owner::Nobody);
        let (op, mut data) = (slot.op, std::mem::take(&mut slot.data));
        if !slot.pages.is_empty() {
            let data = match owner {
                Owner::Part { split } => &mut self.splits[split].request.data,
                _ => &mut data,
            };
            if slot.op == Operation::Read && result.is_ok() {
                self.mapper.copy_out(&slot.pages, data.windows_mut(), slot.range);
            }
            self.mapper.release(&mut slot.pages);
        }
        self.free.push(cid);
        match owner {
            Owner::Whole { tag } => done(Answer { tag, op, data, result }),
            Owner::Part { split } => {
                let part = &mut self.splits[split];
                part.outstanding -= 1;
                if let (Err(error), None) = (result, part.error) {
                    part.error = Some(error);
                }
                self.finish_split(split, done);
            }
            Owner::Nobody => unreachable!("a command in flight has an owner"),
        }
    }

    /// Answers a request of several commands when the last of them has ended.
    fn finish_split(&mut self, split: usize, done: &mut impl FnMut(Answer)) {
        let part = &self.splits[split];
        if part.outstanding > 0 || part.waits {
            return;
        }
        let Split { request, error, .. } = self.splits.remove(split);
        let result = error.map_or(Ok(()), Err);
        done(Answer { tag: request.tag, op: request.op, data: request.data, result });
    }

    /// Ends a request of several commands that waits for a slot, and has no command in flight any more.
    pub(super) fn end_split(
        &mut self,
        key: usize,
        error: RequestError,
        isolated: bool,
        done: &mut impl FnMut(Answer),
    ) {
        let split = &mut self.splits[key];
        if !isolated {
            split.abandon();
        }
        split.waits = false;
        split.error = split.error.or(Some(error));
        self.finish_split(key, done);
    }

    /// Starts what waits, as far as there are slots and memory.
    pub(super) fn refill(&mut self, done: &mut impl FnMut(Answer)) {
        while self.state == State::Running
            && !self.free.is_empty()
            && let Some(next) = self.waiting.pop_front()
        {
            let went_on = match next {
                Waiting::Fresh(namespace, request) => self.start(&namespace, request),
                Waiting::Rest(split) => self.go_on(split, done),
            };
            if !went_on {
                // Memory comes back with the next command that ends.
                return;
            }
        }
    }

    /// Sends the next command of a split, or ends one that failed. Tells whether it could. There is a free slot.
    fn go_on(&mut self, key: usize, done: &mut impl FnMut(Answer)) -> bool {
        let split = &mut self.splits[key];
        if split.error.is_some() {
            split.waits = false;
            self.finish_split(key, done);
            return true;
        }
        let (namespace, op, sent) = (split.namespace, split.request.op, split.sent);
        let (offset, left) = (split.request.offset + sent, split.request.len - sent);
        let part = self.part(&namespace, op, left);
        let cid = self.free.pop().expect("the caller has seen a free slot");
        let (split, slot) = (&mut self.splits[key], &mut self.slots[usize::from(cid)]);
        let placed = place(&mut self.mapper, slot, cid, &namespace, &split.request, (sent, part));
        let Some((data, len)) = placed else {
            self.free.push(cid);
            self.waiting.push_front(Waiting::Rest(key));
            return false;
        };
        split.sent += len;
        split.outstanding += 1;
        split.waits = split.sent < split.request.len;
        if split.waits {
            self.waiting.push_front(Waiting::Rest(key));
        }
        let command = encode(op, &namespace, data, (offset, len));
        self.send_part(cid, command, op, Owner::Part { split: key }, BufList::new());
        true
    }
}

/// Lays both queues out at the start of `memory`, empty.
pub(super) fn rings(
    device: &Device,
    queue: u16,
    memory: &DmaMemory,
    entries: u16,
    shadow: Option<&[DmaMemory; 2]>,
) -> (SubmissionRing, CompletionRing) {
    let capabilities = device.capabilities();
    let registers = device.registers();
    let (tail, head) = doorbells(queue, capabilities.doorbell_stride);
    // Shadow doorbells lie in memory as the doorbells do in the registers.
    let doorbell = |at: usize| {
        let place = at - super::layout::offset::DOORBELLS;
        let shadow =
            shadow.map(|[values, events]| Shadow { value: values.cell(place), event: events.cell(place) });
        Doorbell::new(registers.cell(at), shadow)
    };
    let submission_len = usize::from(entries) * SUBMISSION_ENTRY_LEN;
    let half = submission_len.next_multiple_of(capabilities.page);
    (
        SubmissionRing::new(&memory.part(0, submission_len), doorbell(tail)),
        CompletionRing::new(
            queue,
            &memory.part(half, usize::from(entries) * COMPLETION_ENTRY_LEN),
            doorbell(head),
        ),
    )
}
