//! How an executor is set up.

use drystone_core::intent::Intent;

/// What an executor is to use. The default suits most.
///
/// ```
/// use drystone_exec_linux::{BackendKind, Config};
/// let config = Config { backend: BackendKind::Threads, ..Config::default() };
/// assert_eq!(config.workers, 0);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Which kernel interface carries reads and writes.
    pub backend: BackendKind,
    /// Threads for CPU-heavy work at the most; 0 for as many as there are CPUs.
    pub workers: usize,
    /// Entries of the submission queue, rounded up to a power of two; at most 32768.
    pub ring_entries: u32,
    /// How completions of devices that this program drives itself are found. For a device that other engines of this
    /// process use too, the first one decides.
    pub polling: Polling,
    /// Sees every intent before it is carried out.
    pub trace: Option<Trace>,
}

/// What sees intents.
pub type Trace = fn(&Intent);

impl Default for Config {
    fn default() -> Self {
        Self {
            backend: BackendKind::Auto,
            workers: 0,
            ring_entries: 256,
            polling: Polling::Always,
            trace: None,
        }
    }
}

/// How completions of devices are found that this program drives itself, such as NVMe namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Polling {
    /// The thread looks for them all the time while anything is in flight: the shortest way.
    #[default]
    Always,
    /// It looks for a while, then sleeps until an interrupt comes.
    Adaptive,
    /// It sleeps until an interrupt comes.
    Never,
}

/// The interfaces that carry reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum BackendKind {
    /// `io_uring`, or threads where the kernel refuses it. Images that ask for `aio=io_uring` do not open then.
    #[default]
    Auto,
    /// `io_uring`; starting fails where the kernel refuses it.
    IoUring,
    /// Threads with blocking calls.
    Threads,
}
