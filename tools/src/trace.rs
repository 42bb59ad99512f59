//! `--trace`: which intents are told of, and where.
//!
//! The reference's events are places in its code. Ours are the labels that intents carry, such as `qcow2.load/l2_table`;
//! a line has the label and what the executor is asked to do.

use std::fs::File;
use std::io::{self, Write, stderr};
use std::sync::{Mutex, OnceLock};

use drystone_core::intent::Intent;
use drystone_core::trace::action;
use drystone_exec_linux::{Trace, io_error_words};

use crate::message::Failure;
use crate::options::parse_list;

/// What `help` says of the events.
pub const EVENTS: &str = "\
Events are the labels of intents, such as 'qcow2.load/l2_table' or 'write_zeroes/data'.
A pattern may hold '*' and '?'; 'enable=*' shows them all.
";

/// What is to be traced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tracing {
    patterns: Vec<String>,
    /// A file with a pattern a line.
    events: Option<String>,
    /// Where lines go, if not to the error stream.
    file: Option<String>,
}

/// What an option is about.
#[derive(Debug, PartialEq, Eq)]
pub enum Added {
    /// The events are asked for.
    Help,
    /// What to warn of: a name that is no label, as the reference's are.
    Warnings(Vec<String>),
}

/// Patterns, and where lines go.
struct Started {
    patterns: Vec<String>,
    out: Mutex<Box<dyn Write + Send>>,
}

/// The one that the program has.
static STARTED: OnceLock<Started> = OnceLock::new();

impl Tracing {
    /// Adds what an option says. Of several values for one parameter the last counts, as in the reference.
    ///
    /// # Errors
    /// When the option has a parameter that is none.
    pub fn add(&mut self, option: &str) -> Result<Added, Failure> {
        let (mut warnings, mut pattern) = (Vec::new(), None);
        for pair in parse_list(option, Some("enable")) {
            warnings.extend(pair.switch_warning());
            match pair.key.as_str() {
                "enable" => pattern = Some(pair.value),
                "events" => self.events = Some(pair.value),
                "file" => self.file = Some(pair.value),
                other => return Err(Failure::new(format!("Invalid parameter '{other}'")).after(warnings)),
            }
        }
        match pattern {
            None => {}
            Some(help) if matches!(help.as_str(), "help" | "?") => return Ok(Added::Help),
            Some(pattern) if pattern.contains(['*', '?', '.', '/']) => self.patterns.push(pattern),
            Some(name) => warnings.push(format!("trace event '{name}' does not exist")),
        }
        Ok(Added::Warnings(warnings))
    }

    /// Begins to trace; `None` when there is nothing to.
    ///
    /// # Errors
    /// When a file of patterns cannot be read, or that of the lines not made.
    pub fn start(self) -> Result<Option<Trace>, Failure> {
        let mut patterns = self.patterns;
        if let Some(name) = &self.events {
            let bytes = std::fs::read(name).or_else(|error| match error.kind() {
                // A folder opens, and has no lines.
                io::ErrorKind::IsADirectory => Ok(Vec::new()),
                _ => Err(Failure::new(format!("{name}: {}", io_error_words(&error)))),
            })?;
            let text = String::from_utf8_lossy(&bytes);
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            patterns.extend(lines.map(str::to_owned));
        }
        let out: Box<dyn Write + Send> = match &self.file {
            Some(name) => Box::new(File::create(name).map_err(|error| {
                Failure::new(format!("Error opening logfile {name}: {}", io_error_words(&error)))
            })?),
            None => Box::new(stderr()),
        };
        if patterns.is_empty() {
            return Ok(None);
        }
        // The command line is read once.
        let _ = STARTED.set(Started { patterns, out: Mutex::new(out) });
        Ok(Some(tell))
    }
}

/// Writes a line for an intent that a pattern matches.
fn tell(intent: &Intent) {
    let Some(Started { patterns, out }) = STARTED.get() else { return };
    if patterns.iter().any(|pattern| matches(pattern.as_bytes(), intent.label.as_bytes())) {
        let line = format!("{} {}\n", intent.label, action(&intent.action));
        let mut out = out.lock().expect("nothing panics while it holds the lock");
        // Whoever closed the stream wants no more.
        let _ = out.write_all(line.as_bytes());
    }
}

/// Whether a pattern with `*` and `?` matches all of a name.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern.split_first(), name.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => {
            matches(rest, name) || name.split_first().is_some_and(|(_, name)| matches(pattern, name))
        }
        (Some((b'?', pattern)), Some((_, name))) => matches(pattern, name),
        (Some((a, pattern)), Some((b, name))) => a == b && matches(pattern, name),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_labels() {
        let check = |pattern: &str, name: &str, expected| {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        };
        check("*", "qcow2.load/l2_table", true);
        check("qcow2.load/*", "qcow2.load/l2_table", true);
        check("*l2?table", "qcow2.load/l2_table", true);
        check("qcow2", "qcow2.load", false);
        check("", "", true);
        check("?", "", false);
    }

    #[test]
    fn names_that_are_no_labels_are_told_of() {
        let mut tracing = Tracing::default();
        let warned = |name| Ok(Added::Warnings(vec![format!("trace event '{name}' does not exist")]));
        assert_eq!(tracing.add("enable=bdrv_open_common"), warned("bdrv_open_common"));
        assert_eq!(tracing.add("enable=a,enable=b"), warned("b"));
        assert_eq!(tracing.add(","), warned(""));
        assert_eq!(tracing.add("file=y,enable=?"), Ok(Added::Help));
        assert_eq!(tracing.add("qcow2.*,file=x"), Ok(Added::Warnings(Vec::new())));
        assert_eq!((&*tracing.patterns[0], tracing.file.as_deref()), ("qcow2.*", Some("x")));
        assert!(tracing.add("colour=red").is_err());
    }
}
