//! The options of `amend`: those of a format that can change in an image that exists.

use drystone_core::format::luks::AmendKeyslots;

use super::formats::{CreateOption, LUKS_AMEND, QCOW2_AMEND, options_of};
use super::options::CreateOptions;
use crate::message::Failure;

/// Options with the values given.
#[derive(Clone, Debug)]
pub struct AmendOptions(CreateOptions);

impl AmendOptions {
    /// Reads a list such as `compat=1.1,refcount_bits=64`, for a format that can be amended.
    ///
    /// # Errors
    /// The first mistake; an option that only new images take is told from one that there is not.
    pub fn parse(format: &str, list: &str) -> Result<Self, Failure> {
        let Some((format, table)) = table_of(format) else {
            let text = format!("Format driver '{format}' does not support option amendment");
            return Err(Failure::new(text));
        };
        let mut options = CreateOptions::of_tables(format, &[table]);
        options.apply(list).map(|()| Self(options)).map_err(|error| {
            let (_, create) = options_of(format).expect("a format that makes images");
            let for_creation = CreateOptions::of_tables(format, &[table, create]).apply(list).is_ok();
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

    /// The change of keyslots that the options whose names begin with `prefix` ask for; `None` where none is given.
    ///
    /// # Errors
    /// When it is not said whether they are to hold a key.
    pub fn keyslots(&self, prefix: &str, force: bool) -> Result<Option<AmendKeyslots>, Failure> {
        let text = |name: &str| self.0.text(&format!("{prefix}{name}")).map(str::to_owned);
        let number = |name: &str| self.0.number(&format!("{prefix}{name}"));
        if LUKS_AMEND.iter().all(|option| text(option.name).is_none()) && !prefix.is_empty() {
            return Ok(None);
        }
        let active = match text("state").as_deref() {
            None => return Err(Failure::new("Parameter 'state' is missing")),
            Some("active") => true,
            Some("inactive") => false,
            Some(other) => {
                return Err(Failure::new(format!("Parameter 'state' does not accept value '{other}'")));
            }
        };
        Ok(Some(AmendKeyslots {
            active,
            new_secret: text("new-secret"),
            old_secret: text("old-secret"),
            // As the reference, which counts in 32 bits.
            keyslot: number("keyslot").map(|slot| slot as u32),
            iter_time_ms: number("iter-time"),
            force,
        }))
    }
}

/// What can be changed of the images of a format.
fn table_of(format: &str) -> Option<(&'static str, &'static [CreateOption])> {
    match format {
        "luks" => Some(("luks", LUKS_AMEND)),
        "qcow2" => Some(("qcow2", QCOW2_AMEND)),
        _ => None,
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
    match table_of(format) {
        Some((format, table)) => {
            let lines = CreateOptions::of_tables(format, &[table]).help_lines();
            Ok(format!("Amend options for '{format}':\n{lines}"))
        }
        None => Err(Failure::new(format!("Format driver '{format}' does not support option amendment"))),
    }
}
