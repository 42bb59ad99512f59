//! The admin queue: a few commands in flight, each with an answer that somebody takes, or nobody wants.

use std::time::Duration;

use super::error::NvmeError;
use super::layout::{
    COMPLETION_ENTRY_LEN, Command, Completion, SUBMISSION_ENTRY_LEN, Status, admin_queue_attributes,
    doorbells, offset,
};
use super::memory::{DmaMemory, Registers};
use super::ring::{CompletionRing, Doorbell, SubmissionRing};

/// Entries of both admin queues; one less can be in flight. More than queue pairs ever ask for at once.
const ENTRIES: u16 = 32;

/// How long an admin command may take: what other drivers allow, too.
pub(super) const ADMIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Names an admin command until its answer is taken. One of an earlier life of the controller names nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Call {
    cid: u16,
    life: u32,
}

/// One place for a command.
#[derive(Clone, Copy)]
enum Place {
    Free,
    InFlight { what: &'static str, wanted: bool, until: Duration },
    Answered { what: &'static str, result: u32, status: Status },
}

/// The admin queue of a controller.
pub(super) struct Admin {
    memory: DmaMemory,
    submission: SubmissionRing,
    completion: CompletionRing,
    places: [Place; ENTRIES as usize - 1],
    /// Counts the times that the controller was enabled.
    life: u32,
}

impl Admin {
    /// Bytes of DMA memory for both queues, each in pages of its own.
    pub(super) fn memory_len(page: usize) -> usize {
        2 * (usize::from(ENTRIES) * SUBMISSION_ENTRY_LEN).next_multiple_of(page)
    }

    /// Lays both queues out in `memory`.
    pub(super) fn new(memory: DmaMemory, registers: &Registers, stride: usize) -> Self {
        let (submission, completion) = rings(&memory, registers, stride);
        Self { memory, submission, completion, places: [Place::Free; ENTRIES as usize - 1], life: 0 }
    }

    /// Enables the controller with empty admin queues. What was in flight is lost. The controller is disabled.
    pub(super) fn enable(&mut self, registers: &Registers, stride: usize, configuration: u32) {
        self.life += 1;
        self.places = [Place::Free; ENTRIES as usize - 1];
        (self.submission, self.completion) = rings(&self.memory, registers, stride);
        registers.write32(offset::AQA, admin_queue_attributes(ENTRIES));
        registers.write64(offset::ASQ, self.submission.iova());
        registers.write64(offset::ACQ, self.completion.iova());
        registers.write32(offset::CC, configuration);
    }

    /// Sends a command; nothing when too many are in flight.
    pub(super) fn call(&mut self, what: &'static str, command: Command, now: Duration) -> Option<Call> {
        self.send(what, command, true, now + ADMIN_TIMEOUT)
    }

    /// Sends a command whose answer nobody takes. Tells whether there was room.
    pub(super) fn tell(&mut self, what: &'static str, command: Command, now: Duration) -> bool {
        self.send(what, command, false, now + ADMIN_TIMEOUT).is_some()
    }

    /// Sends a command that may take for ever.
    pub(super) fn wait_for(&mut self, what: &'static str, command: Command) -> Option<Call> {
        self.send(what, command, true, Duration::MAX)
    }

    fn send(&mut self, what: &'static str, command: Command, wanted: bool, until: Duration) -> Option<Call> {
        let index = self.places.iter().position(|place| matches!(place, Place::Free))?;
        let cid = index as u16;
        self.places[index] = Place::InFlight { what, wanted, until };
        self.submission.push(&command.with_cid(cid));
        self.submission.ring();
        Some(Call { cid, life: self.life })
    }

    /// Takes what the controller completed.
    ///
    /// # Errors
    /// [`NvmeError::Completion`] for what no command asked for.
    pub(super) fn reap(&mut self) -> Result<(), NvmeError> {
        for _ in 0..ENTRIES {
            let index = self.completion.head();
            let Some(entry) = self.completion.next() else { break };
            self.complete(index, entry)?;
        }
        self.completion.release();
        Ok(())
    }

    fn complete(&mut self, index: u16, entry: Completion) -> Result<(), NvmeError> {
        let wrong =
            |field, found, expected| Err(NvmeError::Completion { queue: 0, index, field, found, expected });
        if entry.queue != 0 {
            return wrong("SQID", entry.queue, "0, the admin queue");
        }
        if entry.head >= ENTRIES {
            return wrong("SQHD", entry.head, "a place in the submission queue");
        }
        let place = self.places.get_mut(usize::from(entry.cid));
        let Some(place) = place else { return wrong("CID", entry.cid, "a command in flight") };
        let Place::InFlight { what, wanted, .. } = *place else {
            return wrong("CID", entry.cid, "a command in flight");
        };
        *place = match wanted {
            true => Place::Answered { what, result: entry.result, status: entry.status },
            false => Place::Free,
        };
        Ok(())
    }

    /// Takes the answer to a command, if it has come.
    ///
    /// # Errors
    /// [`NvmeError::Admin`] with the controller's status, [`NvmeError::Lost`] when the controller was reset.
    pub(super) fn answer(&mut self, call: Call) -> Option<Result<u32, NvmeError>> {
        if call.life != self.life {
            return Some(Err(NvmeError::Lost { what: "an admin command" }));
        }
        let place = &mut self.places[usize::from(call.cid)];
        let Place::Answered { what, result, status } = *place else { return None };
        *place = Place::Free;
        Some(if status.is_success() { Ok(result) } else { Err(NvmeError::Admin { what, status }) })
    }

    /// The command that has taken longer than it may, if there is one.
    pub(super) fn overdue(&self, now: Duration) -> Option<&'static str> {
        self.places.iter().find_map(|place| match place {
            Place::InFlight { what, until, .. } if *until <= now => Some(*what),
            _ => None,
        })
    }
}

fn rings(memory: &DmaMemory, registers: &Registers, stride: usize) -> (SubmissionRing, CompletionRing) {
    let half = memory.len() / 2;
    let (tail, head) = doorbells(0, stride);
    let submission = memory.part(0, usize::from(ENTRIES) * SUBMISSION_ENTRY_LEN);
    let completion = memory.part(half, usize::from(ENTRIES) * COMPLETION_ENTRY_LEN);
    (
        SubmissionRing::new(&submission, Doorbell::new(registers.cell(tail), None)),
        CompletionRing::new(0, &completion, Doorbell::new(registers.cell(head), None)),
    )
}
