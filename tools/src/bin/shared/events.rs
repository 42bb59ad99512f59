//! What happens to images by themselves, as the reference tells it on the standard error output.

use drystone_core::engine::Event;
use drystone_exec_linux::Client;
use drystone_tools::img::open::guessed_raw;

use crate::console::say;

/// Tells what happened since the last time.
pub fn tell_events(client: &Client) {
    while let Some(event) = client.next_event() {
        match event {
            Event::GuessedRaw { node } => say(&guessed_raw(&node).render("")),
            Event::Repair { line, .. } => say(&format!("{line}\n")),
            Event::ImageCorrupted { message, fatal: true, .. } => say(&format!(
                "qcow2: Marking image as corrupt: {message}; further corruption events will be suppressed\n"
            )),
            Event::ImageCorrupted { message, .. } => say(&format!(
                "qcow2: Image is corrupt: {message}; further non-fatal corruption events will be suppressed\n"
            )),
            _ => {}
        }
    }
}
