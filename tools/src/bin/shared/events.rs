//! What happens to images by themselves, as the reference tells it on the standard error output.

use drystone_core::engine::Event;
use drystone_exec_linux::Client;
use drystone_tools::img::open::guessed_raw;

use crate::console::say;

/// Tells what happened since the last time.
pub fn tell_events(client: &Client) {
    tell_events_of(client, None);
}

/// The same while the image that was given the name `text` is opened: what names a filter as well as a file is told whole.
pub fn tell_events_of(client: &Client, text: Option<&str>) {
    let filter = text.filter(|text| text.starts_with("blkdebug:") || text.starts_with("blkverify:"));
    while let Some(event) = client.next_event() {
        match event {
            Event::GuessedRaw { node } => say(&guessed_raw(filter.unwrap_or(&node)).render("")),
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
