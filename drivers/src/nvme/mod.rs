//! NVMe in user space: a controller's queues in memory that it shares with us, and nobody in between.
//!
//! ```text
//!   engine's thread                                          all threads of a process
//!   QueuePair ── Mapper (PRPs, SGLs) ── rings, doorbells ──┐       Device ── Controller (bring-up, admin queue, reset)
//!       └── recovery (timeouts, resets)              │          └── Arena (buffers that the device reaches)
//!                                                    ▼          ▼
//!                                  Transport: registers, DMA memory, interrupts
//!                                     ├── vfio: PCIe
//!                                     └── sim: a controller made of memory
//! ```
//!
//! Owns everything from a request to a namespace down to doorbells. Refuses to know about engines and leaves. Start at
//! [`Device::open`], then [`QueuePair`]; the fields of the specification are in [`layout`].
//!
//! Nothing that the device says is trusted: identify data is parsed into what is legal, and a completion that no command
//! asked for has the controller reset.

mod admin;
mod arena;
mod controller;
mod device;
mod error;
pub mod layout;
mod mapper;
pub mod memory;
mod prp;
mod queue_pair;
mod recovery;
mod request;
mod ring;
mod sgl;
mod shared;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
mod slot;
mod transport;
mod vfio;
mod watch;

pub use arena::Arena;
pub use device::{Completions, Device, Options};
pub use error::{NvmeError, RequestError};
pub use queue_pair::QueuePair;
pub use request::{Answer, Counters, Operation, Request};
pub use shared::open;
pub use transport::Transport;
pub use vfio::Vfio;
pub use watch::{About, Event};
