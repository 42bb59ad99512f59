//! Signals that end a command which writes.
//!
//! The kernel finishes what is in flight after a process has died, and keeps the image locked until then. So the command
//! stops by itself: what was begun is finished, metadata is written, locks are dropped, and then the signal has its way; at
//! the latest after a while, for a host that does not answer.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use drystone_tools::message::Failure;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::{flag, low_level};

/// How long a command may take to stop: longer than a disk takes to write what a command has in flight.
const PATIENCE: Duration = Duration::from_secs(20);

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
        let failed = |error| Failure::new(format!("could not watch for signals: {error}"));
        let (hear, tell) = UnixStream::pair().map_err(failed)?;
        for number in [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|number| ignored >> (number - 1) & 1 == 0)
        {
            let watched = flag::register_conditional_default(number, Arc::clone(&came))
                .and_then(|_| flag::register(number, Arc::clone(&came)))
                .and_then(|_| flag::register_usize(number, Arc::clone(&signal), number as usize))
                .and_then(|_| low_level::pipe::register(number, tell.try_clone()?));
            watched.map_err(failed)?;
        }
        let late = Arc::clone(&signal);
        std::thread::Builder::new()
            .name("patience".into())
            .spawn(move || end_after_a_while(hear, &late))
            .map_err(failed)?;
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

/// Waits for the first signal, and lets it have its way if the command is still there after a while.
fn end_after_a_while(mut heard: UnixStream, signal: &AtomicUsize) {
    if heard.read_exact(&mut [0]).is_ok() {
        std::thread::sleep(PATIENCE);
        let _ = low_level::emulate_default_handler(signal.load(Ordering::Relaxed) as i32);
    }
}

/// The signals that are ignored, one bit each from signal 1 on.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
