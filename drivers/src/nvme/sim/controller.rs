//! The controller: what registers and doorbells say, and I/O commands. What comes over the admin queue is in `admin`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};

use super::SimConfig;
use super::bus::{Reach, Vectors};
use super::namespace::Storage;
use crate::nvme::layout::{
    COMPLETION_ENTRY_LEN, Command, Completion, DATASET_RANGE_LEN, DataPointer, Prp, SUBMISSION_ENTRY_LEN,
    Sgl, SglKind, SglSupport, Status, doorbells, offset, opcode,
};
use crate::nvme::memory::Registers;

/// Commands that one step fetches from one queue at the most.
const FETCH_MAX: usize = 64;

/// What goes wrong with one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// It is answered with a status, and not done.
    Status(Status),
    /// It is done, and answered only when it is aborted.
    Lose,
    /// It is never answered.
    Ignore,
    /// It is answered under another identifier.
    WrongCid(u16),
    /// It is answered for another queue.
    WrongQueue(u16),
    /// Its answer names a place that the submission queue does not have.
    WrongHead(u16),
    /// Its answer has the phase tag of the round before, so that nobody sees it.
    WrongPhase,
    /// It is answered twice.
    Twice,
    /// Its answer is these words, with the right phase tag.
    Garbage(u64, u64),
    /// The controller reports a fatal status.
    Fatal,
    /// The controller is pulled out.
    Remove,
}

/// Decides what goes wrong, by queue and command.
pub type Faults = Box<dyn FnMut(u16, &Command) -> Fault + Send>;

/// What the controller is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Disabled,
    Enabling { steps: u32 },
    Enabled,
    ShutDown,
    Removed,
}

/// A submission queue.
pub(super) struct Submission {
    pub(super) at: u64,
    pub(super) entries: u16,
    pub(super) head: u16,
    pub(super) completion: u16,
}

/// A completion queue.
pub(super) struct CompletionQueue {
    pub(super) at: u64,
    pub(super) entries: u16,
    pub(super) tail: u16,
    pub(super) phase: bool,
    pub(super) vector: Option<u16>,
}

/// A simulated controller.
pub struct SimController {
    pub(super) config: SimConfig,
    pub(super) registers: Registers,
    pub(super) reach: Reach,
    vectors: Vectors,
    pub(super) state: State,
    pub(super) submission: Vec<Option<Submission>>,
    pub(super) completion: Vec<Option<CompletionQueue>>,
    /// Fetched, and not done yet.
    pending: VecDeque<(u16, Command)>,
    /// Done, and not answered until they are aborted.
    pub(super) lost: Vec<(u16, Command)>,
    /// What log pages say; those that are not here are all zeros.
    pub(super) logs: BTreeMap<u8, Vec<u8>>,
    /// Asynchronous Event Requests.
    pub(super) event_requests: VecDeque<u16>,
    /// Addresses of shadow doorbells and event indices.
    pub(super) shadow: Option<(u64, u64)>,
    faults: Option<Faults>,
    random: u64,
    log: Vec<(u16, Command)>,
    admin_log: Vec<Command>,
    commands: u64,
}

impl SimController {
    pub(super) fn new(config: SimConfig, registers: Registers, reach: Reach, vectors: Vectors) -> Self {
        let queues = usize::from(config.queue_pairs) + 1;
        let cap = u64::from(config.queue_entries - 1)
            | 1 << 16
            | u64::from(config.weighted_round_robin) << 17
            | u64::from(config.timeout) << 24
            | u64::from(config.doorbell_stride) << 32
            | 1 << 37;
        registers.write64(offset::CAP, cap);
        registers.write32(offset::VS, 0x0001_0400);
        Self {
            random: config.seed.unwrap_or(0),
            config,
            registers,
            reach,
            vectors,
            state: State::Disabled,
            submission: (0..queues).map(|_| None).collect(),
            completion: (0..queues).map(|_| None).collect(),
            pending: VecDeque::new(),
            lost: Vec::new(),
            logs: BTreeMap::new(),
            event_requests: VecDeque::new(),
            shadow: None,
            faults: None,
            log: Vec::new(),
            admin_log: Vec::new(),
            commands: 0,
        }
    }

    /// Has something go wrong from now on.
    pub fn inject(&mut self, faults: impl FnMut(u16, &Command) -> Fault + Send + 'static) {
        self.faults = Some(Box::new(faults));
    }

    /// Has nothing go wrong any more.
    pub fn relent(&mut self) {
        self.faults = None;
    }

    /// What it says of itself, to be changed: what was told before stays told.
    pub fn config(&mut self) -> &mut SimConfig {
        &mut self.config
    }

    /// I/O commands so far, by queue, where the configuration asks for them.
    pub fn log(&self) -> &[(u16, Command)] {
        &self.log
    }

    /// Admin commands so far, where the configuration asks for them.
    pub fn admin_log(&self) -> &[Command] {
        &self.admin_log
    }

    /// Commands that were done so far.
    pub fn commands(&self) -> u64 {
        self.commands
    }

    /// Whether it was shut down cleanly.
    pub fn is_shut_down(&self) -> bool {
        self.state == State::ShutDown
    }

    /// I/O queues that exist.
    pub fn queues(&self) -> usize {
        self.submission.iter().skip(1).flatten().count() + self.completion.iter().skip(1).flatten().count()
    }

    /// Pulls the controller out.
    pub fn remove(&mut self) {
        self.drop_everything();
        self.state = State::Removed;
        for register in [offset::CAP, offset::CAP + 4, offset::VS, offset::CC, offset::CSTS] {
            self.registers.write32(register, u32::MAX);
        }
    }

    /// Stops all DMA until the controller is enabled anew.
    pub(super) fn isolate(&mut self) {
        self.drop_everything();
        if self.state != State::Removed {
            self.state = State::Disabled;
            self.registers.write32(offset::CC, 0);
            self.registers.write32(offset::CSTS, 0);
        }
    }

    fn drop_everything(&mut self) {
        self.submission.iter_mut().for_each(|queue| *queue = None);
        self.completion.iter_mut().for_each(|queue| *queue = None);
        self.pending.clear();
        self.lost.clear();
        self.event_requests.clear();
        self.shadow = None;
    }

    /// Looks at the registers and doorbells, and does what they say. Tells whether there was anything to do.
    pub fn step(&mut self) -> bool {
        let configuration = self.registers.read32(offset::CC);
        let enabled = configuration & 1 != 0;
        match self.state {
            State::Removed => false,
            State::Disabled | State::ShutDown if enabled && configuration >> 14 & 3 == 0 => {
                self.state = State::Enabling { steps: self.config.ready_after };
                true
            }
            State::Disabled => false,
            _ if !enabled => {
                self.drop_everything();
                self.state = State::Disabled;
                self.registers.write32(offset::CSTS, 0);
                true
            }
            State::ShutDown => false,
            State::Enabling { steps: 0 } => {
                self.enable();
                true
            }
            State::Enabling { steps } => {
                self.state = State::Enabling { steps: steps - 1 };
                true
            }
            State::Enabled if configuration >> 14 & 3 != 0 => {
                self.drop_everything();
                self.state = State::ShutDown;
                self.registers.write32(offset::CSTS, 1 | 2 << 2);
                true
            }
            State::Enabled => self.work(),
        }
    }

    fn enable(&mut self) {
        let sizes = self.registers.read32(offset::AQA);
        // Doorbells begin at 0 with the queues.
        for at in (offset::DOORBELLS..self.registers.len()).step_by(4) {
            self.registers.write32(at, 0);
        }
        self.submission[0] = Some(Submission {
            at: self.registers.read64(offset::ASQ),
            entries: (sizes & 0xfff) as u16 + 1,
            head: 0,
            completion: 0,
        });
        self.completion[0] = Some(CompletionQueue {
            at: self.registers.read64(offset::ACQ),
            entries: (sizes >> 16 & 0xfff) as u16 + 1,
            tail: 0,
            phase: true,
            vector: None,
        });
        self.state = State::Enabled;
        self.registers.write32(offset::CSTS, 1);
    }

    /// Fetches commands, and does some.
    fn work(&mut self) -> bool {
        let mut moved = false;
        for queue in 0..self.submission.len() {
            if self.submission[queue].is_some() {
                moved |= self.fetch(queue as u16);
            }
        }
        let mut left = self.pending.len();
        if self.config.seed.is_some() {
            // Leave some for later, so that what is submitted next may overtake them.
            left = left.min(1 + self.below(4));
        }
        for _ in 0..left {
            let index = match self.config.seed {
                None => 0,
                Some(_) => self.below(self.pending.len()),
            };
            // A fault may have ended everything.
            let Some((queue, command)) = self.pending.remove(index) else { break };
            moved = true;
            self.carry_out(queue, command);
        }
        moved
    }

    fn below(&mut self, end: usize) -> usize {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.random >> 33) as usize % end.max(1)
    }

    /// The doorbells of a queue, or what stands in for them.
    fn tail_of(&mut self, queue: u16) -> u32 {
        let (at, _) = doorbells(queue, 4 << self.config.doorbell_stride);
        match self.shadow {
            Some((values, events)) if queue > 0 => {
                let place = (at - offset::DOORBELLS) as u64;
                let tail = self.word(values + place);
                // Tells the driver that it need not ring for what is about to be fetched.
                self.set_word(events + place, tail);
                std::sync::atomic::fence(Ordering::SeqCst);
                self.word(values + place)
            }
            _ => self.registers.read32(at),
        }
    }

    fn word(&mut self, iova: u64) -> u32 {
        self.reach.at(iova, 4).map_or(0, |(memory, at)| memory.cell(at).load())
    }

    fn set_word(&mut self, iova: u64, value: u32) {
        if let Some((memory, at)) = self.reach.at(iova, 4) {
            memory.cell(at).store(value);
        }
    }

    fn fetch(&mut self, queue: u16) -> bool {
        let tail = self.tail_of(queue);
        let Some(ring) = &mut self.submission[usize::from(queue)] else { return false };
        if tail >= u32::from(ring.entries) {
            return false;
        }
        let mut fetched = 0;
        while u32::from(ring.head) != tail && fetched < FETCH_MAX {
            let iova = ring.at + u64::from(ring.head) * SUBMISSION_ENTRY_LEN as u64;
            let Some((memory, at)) = self.reach.at(iova, SUBMISSION_ENTRY_LEN) else { return true };
            let mut command = Command::default();
            for (to, word) in command.0.iter_mut().zip(&memory.words()[at / 8..]) {
                *to = u64::from_le(word.load(Ordering::Acquire));
            }
            ring.head = (ring.head + 1) % ring.entries;
            self.pending.push_back((queue, command));
            fetched += 1;
        }
        fetched > 0
    }

    fn carry_out(&mut self, queue: u16, command: Command) {
        let fault = self.faults.as_mut().map_or(Fault::None, |faults| faults(queue, &command));
        match fault {
            Fault::Status(status) => return self.answer(queue, command.cid(), 0, status),
            Fault::Ignore => return,
            Fault::Fatal => return self.registers.write32(offset::CSTS, 1 | 2),
            Fault::Remove => return self.remove(),
            _ => {}
        }
        if queue == 0 && self.config.log {
            self.admin_log.push(command);
        }
        let answer = match queue {
            0 => self.admin(&command),
            _ => Some((0, self.io(queue, &command))),
        };
        let Some((result, status)) = answer else { return };
        match fault {
            Fault::Lose => self.lost.push((queue, command)),
            fault => self.answer_with(queue, command.cid(), result, status, fault),
        }
    }

    /// Does an I/O command.
    fn io(&mut self, queue: u16, command: &Command) -> Status {
        self.commands += 1;
        if self.config.log {
            self.log.push((queue, *command));
        }
        let index = (command.namespace() as usize).wrapping_sub(1);
        let Some(namespace) = self.config.namespaces.get(index) else { return Status::INVALID_NAMESPACE };
        let (block, storage) = (u64::from(namespace.block), namespace.storage);
        let lba = u64::from(command.dword(10)) | u64::from(command.dword(11)) << 32;
        let blocks = u64::from(command.dword(12) & 0xffff) + 1;
        let limit = match self.config.mdts {
            0 => u64::MAX,
            bits => 4096 << bits,
        };
        match command.opcode() {
            opcode::FLUSH => Status::SUCCESS,
            opcode::READ | opcode::WRITE | opcode::COMPARE if blocks * block > limit => Status::INVALID_FIELD,
            opcode::READ | opcode::WRITE | opcode::COMPARE if storage == Storage::Nothing => {
                match lba + blocks <= namespace.blocks {
                    true => Status::SUCCESS,
                    false => Status::LBA_RANGE,
                }
            }
            opcode::READ => self.move_data(index, (lba, blocks), command, |stored, memory, at| {
                memory.put(at, stored);
                true
            }),
            opcode::WRITE => self.move_data(index, (lba, blocks), command, |stored, memory, at| {
                memory.take(at, stored);
                true
            }),
            opcode::COMPARE => self.move_data(index, (lba, blocks), command, |stored, memory, at| {
                let mut given = vec![0; stored.len()];
                memory.take(at, &mut given);
                given == stored
            }),
            opcode::WRITE_ZEROES => match self.config.namespaces[index].range(lba, blocks) {
                Some(stored) => {
                    stored.fill(0);
                    Status::SUCCESS
                }
                None => Status::LBA_RANGE,
            },
            opcode::DATASET_MANAGEMENT => self.deallocate(index, command),
            _ => Status::INVALID_OPCODE,
        }
    }

    /// Moves a range between a namespace and the driver's memory, piece by piece as the command says.
    fn move_data(
        &mut self,
        index: usize,
        (lba, blocks): (u64, u64),
        command: &Command,
        mut piece: impl FnMut(&mut [u8], &crate::nvme::memory::DmaMemory, usize) -> bool,
    ) -> Status {
        let len = (blocks * u64::from(self.config.namespaces[index].block)) as usize;
        let Some(pieces) = self.pieces(command, len) else {
            return Status::DATA_TRANSFER.not_to_retry();
        };
        let Some(mut stored) = self.config.namespaces[index].range(lba, blocks) else {
            return Status::LBA_RANGE;
        };
        for (iova, len) in pieces {
            let (now, rest) = stored.split_at_mut(len);
            let Some((memory, at)) = self.reach.at(iova, len) else {
                return Status::DATA_TRANSFER.not_to_retry();
            };
            if !piece(now, memory, at) {
                return Status::COMPARE_FAILED;
            }
            stored = rest;
        }
        Status::SUCCESS
    }

    /// The pieces of memory that a command names; nothing where it breaks the rules.
    pub(super) fn pieces(&mut self, command: &Command, len: usize) -> Option<Vec<(u64, usize)>> {
        match command.data()? {
            DataPointer::Prp(prp) => self.pages(prp, len),
            DataPointer::Sgl(_) if self.config.sgl == SglSupport::None => None,
            DataPointer::Sgl(sgl) => self.blocks(sgl, len),
        }
    }

    /// The pieces of memory that an SGL names, `len` bytes to the byte. Source: \[NVMe\] 4.4.
    fn blocks(&mut self, sgl: Sgl, len: usize) -> Option<Vec<(u64, usize)>> {
        let mut blocks = vec![sgl];
        if sgl.kind == SglKind::LastSegment {
            let (memory, at) = self.reach.at(sgl.address, sgl.len as usize)?;
            let words = &memory.words()[at / 8..at / 8 + sgl.len as usize / 8];
            let word = |word: &AtomicU64| u64::from_le(word.load(Ordering::Acquire));
            let read = words.chunks_exact(2).map(|pair| Sgl::parse([word(&pair[0]), word(&pair[1])]));
            blocks = read.collect::<Option<_>>()?;
        }
        let legal = blocks.iter().all(|block| {
            let whole =
                self.config.sgl == SglSupport::Bytes || (block.address | u64::from(block.len)) & 3 == 0;
            whole && block.kind == SglKind::Block
        });
        let pieces: Vec<_> = blocks.iter().map(|block| (block.address, block.len as usize)).collect();
        (legal && pieces.iter().map(|(_, len)| len).sum::<usize>() == len).then_some(pieces)
    }

    /// The pieces of memory that PRPs name. Source: \[NVMe\] 4.3.
    fn pages(&mut self, prp: Prp, len: usize) -> Option<Vec<(u64, usize)>> {
        const PAGE: usize = 4096;
        if prp.first & 3 != 0 {
            return None;
        }
        let first = len.min(PAGE - (prp.first as usize & (PAGE - 1)));
        let mut pieces = vec![(prp.first, first)];
        let mut left = len - first;
        let aligned = |iova: u64| iova & (PAGE as u64 - 1) == 0;
        if left > 0 && left <= PAGE {
            pieces.push(aligned(prp.second).then_some((prp.second, left))?);
            return Some(pieces);
        }
        let mut list = prp.second;
        while left > 0 {
            let at_end = (list as usize + 8).is_multiple_of(PAGE);
            let (memory, at) = self.reach.at(list, 8)?;
            let entry = u64::from_le(memory.words()[at / 8].load(Ordering::Acquire));
            if at_end && left > PAGE {
                list = entry;
                continue;
            }
            pieces.push(aligned(entry).then_some((entry, left.min(PAGE)))?);
            left -= left.min(PAGE);
            list += 8;
        }
        Some(pieces)
    }

    fn deallocate(&mut self, index: usize, command: &Command) -> Status {
        for range in 0..=u64::from(command.dword(10) & 0xff) {
            let iova = command.prp().first + range * DATASET_RANGE_LEN as u64;
            let Some((memory, at)) = self.reach.at(iova, DATASET_RANGE_LEN) else {
                return Status::DATA_TRANSFER.not_to_retry();
            };
            let words = &memory.words()[at / 8..];
            let blocks = u64::from_le(words[0].load(Ordering::Acquire)) >> 32;
            let lba = u64::from_le(words[1].load(Ordering::Acquire));
            match self.config.namespaces[index].range(lba, blocks) {
                Some(stored) => stored.fill(0),
                None => return Status::LBA_RANGE,
            }
        }
        Status::SUCCESS
    }

    /// Drops what was fetched from a queue and not done yet.
    pub(super) fn forget_pending(&mut self, queue: u16) {
        self.pending.retain(|(of, _)| *of != queue);
    }

    pub(super) fn answer(&mut self, queue: u16, cid: u16, result: u32, status: Status) {
        self.answer_with(queue, cid, result, status, Fault::None);
    }

    fn answer_with(&mut self, queue: u16, cid: u16, result: u32, status: Status, fault: Fault) {
        let Some(submission) = &self.submission[usize::from(queue)] else { return };
        let (head, target) = (submission.head, submission.completion);
        let mut entry = Completion { result, head, queue, cid, status };
        match fault {
            Fault::WrongCid(cid) => entry.cid = cid,
            Fault::WrongQueue(queue) => entry.queue = queue,
            Fault::WrongHead(head) => entry.head = head,
            Fault::Twice => self.post(target, entry, fault),
            _ => {}
        }
        self.post(target, entry, fault);
    }

    /// Writes a completion queue entry. The driver has no more commands in flight than there are places.
    fn post(&mut self, target: u16, entry: Completion, fault: Fault) {
        let Some(ring) = &mut self.completion[usize::from(target)] else { return };
        let phase = ring.phase != (fault == Fault::WrongPhase);
        let words = match fault {
            Fault::Garbage(low, high) => [low, high & !(1 << 48) | u64::from(phase) << 48],
            _ => entry.encode(phase),
        };
        let iova = ring.at + u64::from(ring.tail) * COMPLETION_ENTRY_LEN as u64;
        ring.tail = (ring.tail + 1) % ring.entries;
        if ring.tail == 0 {
            ring.phase = !ring.phase;
        }
        let vector = ring.vector;
        if let Some((memory, at)) = self.reach.at(iova, COMPLETION_ENTRY_LEN) {
            let place = &memory.words()[at / 8..];
            place[0].store(words[0].to_le(), Ordering::Relaxed);
            // The word with the phase tag comes last, and everything before it is seen with it.
            place[1].store(words[1].to_le(), Ordering::Release);
        }
        if let Some(vector) = vector {
            self.signal(vector);
        }
    }

    fn signal(&self, vector: u16) {
        let vectors = self.vectors.lock().expect("signalling does not panic");
        if let Some(Some(event)) = vectors.get(usize::from(vector)) {
            // A counter that is full is readable already.
            let _ = rustix::io::write(event, &1u64.to_ne_bytes());
        }
    }
}
