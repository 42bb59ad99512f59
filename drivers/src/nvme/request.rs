//! What a queue pair is asked, and what it answers.

use drystone_core::buf::BufList;

use super::error::RequestError;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Read into the buffers.
    Read,
    /// Write the buffers.
    Write {
        /// Whether they must be durable on completion.
        fua: bool,
    },
    /// Compare the buffers with what is stored.
    Compare,
    /// Make all writes that have completed durable.
    Flush,
    /// Make the range read as zeros.
    WriteZeroes {
        /// Whether blocks may be deallocated, as long as they read as zeros.
        deallocate: bool,
    },
    /// Tell that the range is not needed.
    Deallocate,
}

impl Operation {
    #[inline]
    pub(super) fn moves_data(self) -> bool {
        matches!(self, Self::Read | Self::Write { .. } | Self::Compare)
    }
}

/// A request to a namespace.
#[derive(Debug)]
pub struct Request {
    /// Comes back with the answer.
    pub tag: u64,
    /// What to do.
    pub op: Operation,
    /// First byte; whole blocks.
    pub offset: u64,
    /// Bytes; whole blocks. For what moves data, the bytes of `data`.
    pub len: u64,
    /// The buffers. They are copied unless they lie in the device's [arena](crate::nvme::Device::arena).
    pub data: BufList,
}

/// The answer to a request.
#[derive(Debug)]
pub struct Answer {
    /// The request's.
    pub tag: u64,
    /// The request's.
    pub op: Operation,
    /// The request's buffers.
    pub data: BufList,
    /// What came of it.
    pub result: Result<(), RequestError>,
}

/// What a queue pair did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Commands that were sent, again or for the first time.
    pub commands: u64,
    /// Times that the submission queue's doorbell was told a new tail.
    pub doorbells: u64,
    /// Bytes that were copied because their buffers lie outside of the arena.
    pub copied: u64,
    /// Commands that were sent again.
    pub retries: u64,
    /// Commands that were to be aborted because they took too long.
    pub aborts: u64,
    /// Times that the queues were made anew.
    pub attached: u64,
}
