//! Lines of the standard input, read by a thread of their own, so that requests go on while nobody types.

use std::future::poll_fn;
use std::io::BufRead;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Poll, Waker};

use drystone_exec_linux::Client;

/// The standard input.
pub struct Input {
    wanted: Sender<()>,
    slot: Arc<Mutex<Slot>>,
}

#[derive(Default)]
struct Slot {
    /// A line; or none, at the end.
    line: Option<Option<String>>,
    waker: Option<Waker>,
}

fn lock(slot: &Mutex<Slot>) -> MutexGuard<'_, Slot> {
    slot.lock().expect("lines are handed over without a panic")
}

impl Input {
    /// Starts the thread. It reads a line when one is wanted, and no further.
    pub fn new(client: &Client) -> Self {
        let (wanted, wants) = channel::<()>();
        let slot = Arc::new(Mutex::new(Slot::default()));
        let (theirs, handle) = (Arc::clone(&slot), client.handle());
        std::thread::spawn(move || {
            while wants.recv().is_ok() {
                lock(&theirs).line = Some(read_line());
                // The waker is of a runtime that may know nothing of other threads: the engine's thread uses it.
                let slot = Arc::clone(&theirs);
                let woken = handle.run(move |_| async move {
                    let waker = lock(&slot).waker.take();
                    if let Some(waker) = waker {
                        waker.wake();
                    }
                    Ok(())
                });
                if woken.is_err() {
                    return;
                }
            }
        });
        Self { wanted, slot }
    }

    /// The next line, without its end; none at the end of the input.
    pub async fn next(&self) -> Option<String> {
        self.wanted.send(()).ok()?;
        poll_fn(|cx| {
            let mut slot = lock(&self.slot);
            match slot.line.take() {
                Some(line) => Poll::Ready(line),
                None => {
                    slot.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

/// Bytes of a line at the most; what is longer is no command.
const LINE_MAX: u64 = 1 << 20;

fn read_line() -> Option<String> {
    let mut bytes = Vec::new();
    let mut input = std::io::Read::take(std::io::stdin().lock(), LINE_MAX);
    match input.read_until(b'\n', &mut bytes) {
        Ok(0) | Err(_) => None,
        Ok(_) => {
            let text = String::from_utf8_lossy(&bytes);
            Some(text.strip_suffix('\n').unwrap_or(&text).to_owned())
        }
    }
}
