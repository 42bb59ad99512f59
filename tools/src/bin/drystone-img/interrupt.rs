//! Signals that end a command which writes.
//!
//! The kernel finishes what is in flight after a process has died, and keeps the image locked until then. So the command
//! stops by itself: what was begun is finished, metadata is written, locks are dropped, and then the signal has its way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use drystone_tools::message::Failure;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::{flag, low_level};

/// Whether a signal came.
pub struct Interrupt {
    signal: Arc<AtomicUsize>,
}

impl Interrupt {
    /// From now on, the first signal asks to stop, and the second one kills. What the caller has us ignore (`nohup`, a
    /// shell's background) stays ignored.
    pub fn watch() -> Result<Self, Failure> {
        let (came, signal) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let ignored = ignored();
        for number in [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|number| ignored >> (number - 1) & 1 == 0)
        {
            let watched = flag::register_conditional_default(number, Arc::clone(&came))
                .and_then(|_| flag::register(number, Arc::clone(&came)))
                .and_then(|_| flag::register_usize(number, Arc::clone(&signal), number as usize));
            watched.map_err(|error| Failure::new(format!("could not watch for signals: {error}")))?;
        }
        Ok(Self { signal })
    }

    /// Whether to stop.
    pub fn came(&self) -> bool {
        self.signal.load(Ordering::Relaxed) != 0
    }

    /// Ends the process by the signal, if one came.
    pub fn obey(&self) {
        let signal = self.signal.load(Ordering::Relaxed);
        if signal != 0 {
            let _ = low_level::emulate_default_handler(signal as i32);
        }
    }
}

/// The signals that are ignored, one bit each from signal 1 on.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
