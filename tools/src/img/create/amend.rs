//! The options of `amend`: those of a format that can change in an image that exists.

use super::formats::{QCOW2_AMEND, options_of};
use super::options::CreateOptions;
use crate::message::Failure;

/// Options with the values given.
#[derive(Clone, Debug)]
pub struct AmendOptions(CreateOptions);

impl AmendOptions {
    /// Reads a list such as `compat=1.1,refcount_bits=64`, for qcow2.
    ///
    /// # Errors
    /// The first mistake; an option that only new images take is told from one that there is not.
    pub fn parse(list: &str) -> Result<Self, Failure> {
        let mut options = CreateOptions::of_tables("qcow2", &[QCOW2_AMEND]);
        options.apply(list).map(|()| Self(options)).map_err(|error| {
            let (_, create) = options_of("qcow2").expect("a format that makes images");
            let for_creation = CreateOptions::of_tables("qcow2", &[QCOW2_AMEND, create]).apply(list).is_ok();
            let hint = if for_creation { "\nThis option is only supported for image creation" } else { "" };
            Failure::new(format!("{error}{hint}"))
        })
    }

    /// The value of a text option, where it is given.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.text(name)
    }

    /// The value of a switch, where it is given.
    #[must_use]
    pub fn switch(&self, name: &str) -> Option<bool> {
        self.0.switch(name)
    }

    /// The value of a size or number, where it is given.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u64> {
        self.0.number(name)
    }

    /// Whether an option about encryption is given.
    #[must_use]
    pub fn names_encryption(&self) -> bool {
        QCOW2_AMEND
            .iter()
            .any(|option| option.name.starts_with("encrypt.") && self.0.text(option.name).is_some())
    }
}

/// The text that `-o help` asks for.
///
/// # Errors
/// When the format is not known, or nothing of it can be amended.
pub fn amend_help(format: &str, known: &[&str]) -> Result<String, Failure> {
    if !known.contains(&format) {
        return Err(Failure::new(format!("Unknown file format '{format}'")));
    }
    match format {
        "qcow2" => {
            let lines = CreateOptions::of_tables("qcow2", &[QCOW2_AMEND]).help_lines();
            Ok(format!("Amend options for 'qcow2':\n{lines}"))
        }
        _ => Err(Failure::new(format!("Format driver '{format}' does not support option amendment"))),
    }
}
