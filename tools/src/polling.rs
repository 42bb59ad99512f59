//! How completions of devices are found that a tool drives itself: an environment variable, since it says how a machine is
//! used and not what a command does.

use std::ffi::OsStr;

use drystone_exec_linux::Polling;

use crate::message::Failure;

/// The variable's name.
pub const POLLING_VARIABLE: &str = "DRYSTONE_NVME_POLLING";

/// Reads the variable's value: `always` (the default), `adaptive` or `never`.
///
/// # Errors
/// For any other value.
pub fn polling(value: Option<&OsStr>) -> Result<Polling, Failure> {
    match value.map(|value| value.to_string_lossy()).as_deref() {
        None | Some("" | "always") => Ok(Polling::Always),
        Some("adaptive") => Ok(Polling::Adaptive),
        Some("never") => Ok(Polling::Never),
        Some(other) => {
            let text = format!("{POLLING_VARIABLE}: found '{other}', expected always, adaptive or never");
            Err(Failure::new(text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_the_variable() {
        let check = |value: Option<&str>, expected| assert_eq!(polling(value.map(OsStr::new)), expected);
        check(None, Ok(Polling::Always));
        check(Some(""), Ok(Polling::Always));
        check(Some("always"), Ok(Polling::Always));
        check(Some("adaptive"), Ok(Polling::Adaptive));
        check(Some("never"), Ok(Polling::Never));
        let text = "DRYSTONE_NVME_POLLING: found 'Never', expected always, adaptive or never";
        check(Some("Never"), Err(Failure::new(text)));
    }
}
