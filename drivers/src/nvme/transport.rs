//! What a driver needs of whatever connects it to a controller.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::error::NvmeError;
use super::memory::{DmaMemory, Registers};

/// A way to one controller: PCIe through VFIO, or a simulation.
pub trait Transport: Send + Sync + 'static {
    /// What the controller is called in messages.
    fn name(&self) -> String;

    /// BAR 0: registers and doorbells.
    fn registers(&self) -> Registers;

    /// Takes `len` zero bytes, rounded up to whole pages, that the controller reaches by DMA until they are dropped.
    ///
    /// # Errors
    /// The host's.
    fn allocate(&self, len: usize) -> Result<DmaMemory, NvmeError>;

    /// Time that has passed since some moment; never goes back.
    fn now(&self) -> Duration;

    /// Lets a little time pass while the caller waits for the controller.
    fn pause(&self);

    /// Lets the least time pass, between two looks for completions.
    fn relax(&self) {
        std::hint::spin_loop();
    }

    /// Makes sure that the controller does no DMA any more until it is enabled again, for one that does not do what it
    /// is told.
    ///
    /// # Errors
    /// The host's. Then buffers that the controller knows of must never be used again.
    fn isolate(&self) -> Result<(), NvmeError>;

    /// How many interrupt vectors there are; the admin queue has the first one.
    fn vectors(&self) -> u16;

    /// Has `vector` add 1 to an eventfd whenever it fires.
    ///
    /// # Errors
    /// The host's.
    fn bind_interrupt(&self, vector: u16, event: BorrowedFd<'_>) -> Result<(), NvmeError>;
}
