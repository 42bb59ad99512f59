//! Options of one new image: a format's options and its protocol's, with the values given.

use super::formats::{CreateOption, Kind, options_of, own_options_of};
use crate::options::parse_list;
use crate::size::{SIZE_HINT, SizeError, parse_number, parse_size};

/// What an option list got wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OptionError {
    /// Neither format nor protocol has the option.
    #[error("Invalid parameter '{0}'")]
    Unknown(String),
    /// The value of a switch is neither on nor off.
    #[error("Parameter '{0}' expects 'on' or 'off'")]
    NoSwitch(String),
    /// The value is no number.
    #[error("Parameter '{0}' expects a number")]
    NoNumber(String),
    /// The value is no size.
    #[error("Parameter '{0}' expects a non-negative number below 2^64\n{SIZE_HINT}")]
    NoSize(String),
    /// A size is negative or too large.
    #[error("Value '{value}' is out of range for parameter '{name}'")]
    SizeOutOfRange {
        /// The option.
        name: String,
        /// Its value.
        value: String,
    },
    /// A number is too large.
    #[error("Value '{value}' is too large for parameter '{name}'")]
    NumberTooLarge {
        /// The option.
        name: String,
        /// Its value.
        value: String,
    },
}

/// The options of a new image.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    format: &'static str,
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    option: &'static CreateOption,
    /// The value as it was written, if it was.
    text: Option<String>,
    /// What a size or number comes to.
    number: u64,
    /// Whether the reference does not have it.
    own: bool,
}

impl Entry {
    fn new(option: &'static CreateOption, own: bool) -> Self {
        Self { option, text: None, number: 0, own }
    }
}

impl CreateOptions {
    /// The options of `format` followed by those of `protocol` that it does not have itself; `None` when either makes
    /// no images. Values of the protocol's options are for the protocol, unless the format has the option too.
    #[must_use]
    pub fn new(format: &str, protocol: Option<&str>) -> Option<Self> {
        let (format, own) = options_of(format)?;
        let below = match protocol {
            Some(protocol) => options_of(protocol)?.1,
            None => &[],
        };
        let new = |option| !own.iter().any(|other: &CreateOption| other.name == option);
        let all = own.iter().chain(below.iter().filter(|option| new(option.name)));
        let entries = all.map(|option| Entry::new(option, false));
        let entries = entries.chain(own_options_of(format).iter().map(|option| Entry::new(option, true)));
        Some(Self { format, entries: entries.collect() })
    }

    /// The options of tables; the first that has a name counts.
    pub(super) fn of_tables(format: &'static str, tables: &[&'static [CreateOption]]) -> Self {
        let entries = tables.iter().flat_map(|table| table.iter());
        let entries = entries.map(|option| Entry::new(option, false)).collect();
        Self { format, entries }
    }

    /// Sets the options of a list such as `cluster_size=64k,lazy_refcounts`.
    ///
    /// # Errors
    /// The first mistake.
    pub fn apply(&mut self, list: &str) -> Result<(), OptionError> {
        // An `id` would name the list itself; nothing refers to it.
        for pair in parse_list(list, None).into_iter().filter(|pair| pair.key != "id") {
            self.set(&pair.key, pair.value)?;
        }
        Ok(())
    }

    /// Sets one option; a later value replaces an earlier one.
    ///
    /// # Errors
    /// When there is no such option, or the value does not suit it.
    pub fn set(&mut self, name: &str, value: String) -> Result<(), OptionError> {
        let found = self.entries.iter_mut().find(|entry| entry.option.name == name);
        let entry = found.ok_or_else(|| OptionError::Unknown(name.to_owned()))?;
        entry.number = number_of(entry.option, &value)?;
        entry.text = Some(value);
        Ok(())
    }

    /// The format.
    #[must_use]
    pub fn format(&self) -> &'static str {
        self.format
    }

    /// Whether there is such an option.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.entries.iter().any(|entry| entry.option.name == name)
    }

    /// The value of a text option, or its default.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        let entry = self.entries.iter().find(|entry| entry.option.name == name)?;
        entry.text.as_deref().or(entry.option.default)
    }

    /// The value of a switch, or its default.
    #[must_use]
    pub fn switch(&self, name: &str) -> Option<bool> {
        self.text(name).and_then(switch_value)
    }

    /// The value of a size or number, or its default.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u64> {
        let entry = self.entries.iter().find(|entry| entry.option.name == name)?;
        match &entry.text {
            Some(_) => Some(entry.number),
            None => entry.option.default?.parse().ok(),
        }
    }

    /// The line that is printed before the image is made.
    #[must_use]
    pub fn formatting_line(&self, filename: &str) -> String {
        let shown: String = self.entries.iter().filter_map(shown).collect();
        format!("Formatting '{filename}', fmt={}{shown}\n", self.format)
    }

    /// A line about each option that the reference has, in alphabetical order.
    pub(super) fn help_lines(&self) -> String {
        self.lines(false)
    }

    fn lines(&self, own: bool) -> String {
        let line = |entry: &Entry| {
            let kind = match entry.option.kind {
                Kind::Text => "str",
                Kind::Switch => "bool (on/off)",
                Kind::Size => "size",
                Kind::Number => "num",
            };
            format!("  {:<22} - {}\n", format!("{}=<{kind}>", entry.option.name), entry.option.help)
        };
        let entries = self.entries.iter().filter(|entry| entry.own == own);
        let mut lines: Vec<_> = entries.map(line).collect();
        lines.sort();
        lines.concat()
    }

    /// The list of options that `-o help` asks for.
    #[must_use]
    pub fn help(&self, protocol: Option<&str>) -> String {
        let lines = self.help_lines();
        let own = match self.lines(true) {
            own if own.is_empty() => own,
            own => format!("\nOptions that qemu-img does not have:\n{own}"),
        };
        let theirs = match protocol {
            Some(_) => format!("Supported options:\n{lines}"),
            None => format!(
                "Supported {} options:\n{lines}\nThe protocol level may support further options.\n\
                 Specify the target filename to include those options.\n",
                self.format
            ),
        };
        theirs + &own
    }
}

fn number_of(option: &CreateOption, value: &str) -> Result<u64, OptionError> {
    let name = || option.name.to_owned();
    let both = || (name(), value.to_owned());
    match option.kind {
        Kind::Text => Ok(0),
        Kind::Switch => match switch_value(value) {
            Some(_) => Ok(0),
            None => Err(OptionError::NoSwitch(name())),
        },
        Kind::Size => parse_size(value).map_err(|error| match (error, both()) {
            (SizeError::Malformed, (name, _)) => OptionError::NoSize(name),
            (SizeError::OutOfRange, (name, value)) => OptionError::SizeOutOfRange { name, value },
        }),
        Kind::Number => parse_number(value).map_err(|error| match (error, both()) {
            (SizeError::Malformed, (name, _)) => OptionError::NoNumber(name),
            (SizeError::OutOfRange, (name, value)) => OptionError::NumberTooLarge { name, value },
        }),
    }
}

fn switch_value(word: &str) -> Option<bool> {
    match word {
        "on" | "yes" | "true" | "y" => Some(true),
        "off" | "no" | "false" | "n" => Some(false),
        _ => None,
    }
}

/// One option of the line; sizes and numbers in full, as signed numbers, and commas in texts doubled.
fn shown(entry: &Entry) -> Option<String> {
    let value = match (&entry.text, entry.option.kind) {
        (None, _) => entry.option.default?.to_owned(),
        (Some(_), Kind::Size | Kind::Number) => (entry.number as i64).to_string(),
        (Some(text), Kind::Text) => text.replace(',', ",,"),
        (Some(text), Kind::Switch) => text.clone(),
    };
    Some(format!(" {}={value}", entry.option.name))
}
