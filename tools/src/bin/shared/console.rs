//! The standard output and error of a tool.

use std::io::{ErrorKind, Write};

use drystone_tools::message::{Failure, legible};

/// Writes to the standard output, at once. A reader who has gone away has seen what he wanted, and stops nothing.
pub fn put(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("could not write the output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Writes to the standard error; where that fails there is nobody left to tell.
pub fn say(text: &str) {
    let _ = std::io::stderr().lock().write_all(legible(text, false).as_bytes());
}
