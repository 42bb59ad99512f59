//! Admin commands of the simulated controller.

use super::controller::{CompletionQueue, SimController, Submission};
use crate::nvme::layout::{Command, IDENTIFY_LEN, Status, opcode};

/// Feature: volatile write cache.
const WRITE_CACHE: u32 = 6;

/// Feature: number of queues.
const NUMBER_OF_QUEUES: u32 = 7;

impl SimController {
    /// Does an admin command; nothing while it is not to be answered.
    pub(super) fn admin(&mut self, command: &Command) -> Option<(u32, Status)> {
        let status = match command.opcode() {
            opcode::IDENTIFY => self.identify(command),
            opcode::CREATE_CQ => self.create_completion(command),
            opcode::CREATE_SQ => self.create_submission(command),
            opcode::DELETE_CQ => self.delete_completion(command),
            opcode::DELETE_SQ => self.delete_submission(command),
            opcode::ABORT => return Some(self.abort(command)),
            opcode::SET_FEATURES if command.dword(10) & 0xff == NUMBER_OF_QUEUES => {
                let most = u32::from(self.config.queue_pairs) - 1;
                let (wanted, granted) = (command.dword(11), |wanted: u32| wanted.min(most));
                let result = granted(wanted >> 16) << 16 | granted(wanted & 0xffff);
                return Some((result, Status::SUCCESS));
            }
            opcode::GET_FEATURES if command.dword(10) & 0xff == WRITE_CACHE => {
                return Some((u32::from(self.config.write_cache_on), Status::SUCCESS));
            }
            opcode::SET_FEATURES | opcode::GET_FEATURES => Status::SUCCESS,
            opcode::GET_LOG_PAGE => self.log_page(command),
            opcode::ASYNC_EVENT => {
                self.event_requests.push_back(command.cid());
                return None;
            }
            opcode::DOORBELL_BUFFER if self.config.shadow_doorbells => {
                self.shadow = Some((command.prp().first, command.prp().second));
                Status::SUCCESS
            }
            _ => Status::INVALID_OPCODE,
        };
        Some((0, status))
    }

    /// Tells the driver of an event, if it has asked. Tells whether it has.
    pub fn tell(&mut self, kind: u8, info: u8, log_page: u8) -> bool {
        let Some(cid) = self.event_requests.pop_front() else { return false };
        let result = u32::from(kind) | u32::from(info) << 8 | u32::from(log_page) << 16;
        self.answer(0, cid, result, Status::SUCCESS);
        true
    }

    /// What a log page says from now on.
    pub fn set_log(&mut self, page: u8, bytes: &[u8]) {
        self.logs.insert(page, bytes.to_vec());
    }

    fn log_page(&mut self, command: &Command) -> Status {
        let (page, len) = (command.dword(10) as u8, ((command.dword(10) >> 16) as usize + 1) * 4);
        let mut data = self.logs.get(&page).cloned().unwrap_or_default();
        data.resize(len, 0);
        self.give(command, &data)
    }

    /// Writes data for the driver.
    fn give(&mut self, command: &Command, data: &[u8]) -> Status {
        let Some(pieces) = self.pieces(command, data.len()) else {
            return Status::DATA_TRANSFER.not_to_retry();
        };
        let mut data = data;
        for (iova, len) in pieces {
            let (now, rest) = data.split_at(len);
            match self.reach.at(iova, len) {
                Some((memory, at)) => memory.put(at, now),
                None => return Status::DATA_TRANSFER.not_to_retry(),
            }
            data = rest;
        }
        Status::SUCCESS
    }

    fn identify(&mut self, command: &Command) -> Status {
        let id = command.namespace();
        let data = match command.dword(10) & 0xff {
            0 => match self.config.namespaces.get((id as usize).wrapping_sub(1)) {
                Some(namespace) => namespace.identify(),
                // A namespace that is not there is all zeros.
                None => [0; IDENTIFY_LEN],
            },
            1 => self.identify_controller(),
            2 => {
                let mut data = [0; IDENTIFY_LEN];
                let active = (1..=self.config.namespaces.len() as u32).filter(|number| *number > id);
                for (to, number) in data.chunks_exact_mut(4).zip(active) {
                    to.copy_from_slice(&number.to_le_bytes());
                }
                data
            }
            _ => return Status::INVALID_FIELD,
        };
        self.give(command, &data)
    }

    fn identify_controller(&self) -> [u8; IDENTIFY_LEN] {
        let mut data = [0; IDENTIFY_LEN];
        let mut put = |at: usize, bytes: &[u8]| data[at..at + bytes.len()].copy_from_slice(bytes);
        put(4, b"SIM0                ");
        put(24, b"Simulated controller                    ");
        put(64, b"1.0     ");
        put(77, &[self.config.mdts]);
        put(80, &0x0001_0400u32.to_le_bytes());
        put(92, &(1u32 << 8).to_le_bytes());
        put(256, &(u16::from(self.config.shadow_doorbells) << 8).to_le_bytes());
        put(512, &[0x66, 0x44]);
        put(516, &(self.config.namespaces.len() as u32).to_le_bytes());
        put(520, &self.config.optional_commands.to_le_bytes());
        put(525, &[u8::from(self.config.write_cache)]);
        put(536, &[self.config.sgl as u8]);
        data
    }

    /// The number and the entries of a queue to be created.
    fn new_queue(&self, command: &Command) -> Result<(u16, u16), Status> {
        let (queue, entries) = (command.dword(10) as u16, (command.dword(10) >> 16) as u16);
        if queue == 0 || queue > self.config.queue_pairs {
            return Err(Status::INVALID_QUEUE);
        }
        if entries == 0 || entries >= self.config.queue_entries {
            return Err(Status::INVALID_QUEUE_SIZE);
        }
        if command.prp().first & 0xfff != 0 || command.dword(11) & 1 == 0 {
            return Err(Status::INVALID_FIELD);
        }
        Ok((queue, entries + 1))
    }

    fn create_completion(&mut self, command: &Command) -> Status {
        let (queue, entries) = match self.new_queue(command) {
            Ok((queue, _)) if self.completion[usize::from(queue)].is_some() => return Status::INVALID_QUEUE,
            Ok(new) => new,
            Err(status) => return status,
        };
        let vector = (command.dword(11) >> 1 & 1 != 0).then_some((command.dword(11) >> 16) as u16);
        let at = command.prp().first;
        let ring = CompletionQueue { at, entries, tail: 0, phase: true, vector };
        self.completion[usize::from(queue)] = Some(ring);
        Status::SUCCESS
    }

    fn create_submission(&mut self, command: &Command) -> Status {
        let (queue, entries) = match self.new_queue(command) {
            Ok((queue, _)) if self.submission[usize::from(queue)].is_some() => return Status::INVALID_QUEUE,
            Ok(new) => new,
            Err(status) => return status,
        };
        let completion = (command.dword(11) >> 16) as u16;
        if self.completion.get(usize::from(completion)).is_none_or(Option::is_none) {
            return Status::INVALID_COMPLETION_QUEUE;
        }
        let at = command.prp().first;
        self.submission[usize::from(queue)] = Some(Submission { at, entries, head: 0, completion });
        let (tail, head) = crate::nvme::layout::doorbells(queue, 4 << self.config.doorbell_stride);
        self.registers.write32(tail, 0);
        self.registers.write32(head, 0);
        Status::SUCCESS
    }

    fn delete_submission(&mut self, command: &Command) -> Status {
        let queue = usize::from(command.dword(10) as u16);
        match self.submission.get_mut(queue) {
            Some(place) if queue > 0 && place.is_some() => *place = None,
            _ => return Status::INVALID_QUEUE,
        }
        self.lost.retain(|(of, _)| usize::from(*of) != queue);
        self.forget_pending(queue as u16);
        Status::SUCCESS
    }

    fn delete_completion(&mut self, command: &Command) -> Status {
        let queue = usize::from(command.dword(10) as u16);
        let in_use = self.submission.iter().flatten().any(|one| usize::from(one.completion) == queue);
        match self.completion.get_mut(queue) {
            Some(place) if queue > 0 && place.is_some() && !in_use => *place = None,
            _ => return Status::INVALID_QUEUE,
        }
        Status::SUCCESS
    }

    /// Aborts a command that was lost. Bit 0 of the result: it was not aborted.
    fn abort(&mut self, command: &Command) -> (u32, Status) {
        let (queue, cid) = (command.dword(10) as u16, (command.dword(10) >> 16) as u16);
        let found = self.lost.iter().position(|(of, lost)| *of == queue && lost.cid() == cid);
        if let Some(index) = found {
            self.lost.remove(index);
            self.answer(queue, cid, 0, Status::ABORTED);
        }
        (u32::from(found.is_none()), Status::SUCCESS)
    }
}
