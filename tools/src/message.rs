//! Messages for people: what a tool says on its error stream, and how it then exits.

use std::borrow::Cow;
use std::fmt::Write as _;

/// One message; further lines of its text are hints and carry no prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// `NAME: text`.
    Error(String),
    /// `NAME: warning: text`.
    Warning(String),
    /// The text alone.
    Plain(String),
}

impl Message {
    /// The message as it is written, with a newline at the end; `name` is the base name of the tool as it was called.
    #[must_use]
    pub fn render(&self, name: &str) -> String {
        match self {
            Self::Error(text) => format!("{name}: {text}\n"),
            Self::Warning(text) => format!("{name}: warning: {text}\n"),
            Self::Plain(text) => format!("{text}\n"),
        }
    }
}

/// A text with its control characters written out: names from an image, or from elsewhere, do not get to steer a terminal.
/// Ends of lines and tabs stay, and so do carriage returns where `progress` says that the text may be a progress line.
#[must_use]
pub fn legible(text: &str, progress: bool) -> Cow<'_, str> {
    let steers = |c: char| c.is_control() && !matches!(c, '\n' | '\t') && !(progress && c == '\r');
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let mut legible = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            c if steers(c) => drop(write!(legible, "\\x{:02x}", u32::from(c))),
            c => legible.push(c),
        }
    }
    Cow::Owned(legible)
}

/// Why a tool stops: what it says, and its exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What to say, in this order.
    pub messages: Vec<Message>,
    /// Whether the hint to try `--help` follows.
    pub try_help: bool,
    /// The exit code.
    pub code: u8,
}

impl Failure {
    /// A failure with one error message and exit code 1.
    pub fn new(text: impl Into<String>) -> Self {
        Self { messages: vec![Message::Error(text.into())], try_help: false, code: 1 }
    }

    /// A mistake in the use of the command line: like [`Failure::new`], with the hint to try `--help`.
    pub fn usage(text: impl Into<String>) -> Self {
        Self { try_help: true, ..Self::new(text) }
    }

    /// The same failure with another exit code.
    #[must_use]
    pub fn with_code(self, code: u8) -> Self {
        Self { code, ..self }
    }

    /// The same failure with warnings said before it.
    #[must_use]
    pub fn after(mut self, warnings: impl IntoIterator<Item = String>) -> Self {
        self.messages.splice(0..0, warnings.into_iter().map(Message::Warning));
        self
    }

    /// All that is written to the error stream.
    #[must_use]
    pub fn render(&self, name: &str) -> String {
        let mut text: String = self.messages.iter().map(|message| message.render(name)).collect();
        if self.try_help {
            text.push_str(&format!("Try '{name} --help' for more information\n"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_written_out() {
        for (text, shown) in [
            ("a\u{1b}[31mb\n", "a\\x1b[31mb\n"),
            ("\u{9b}2J\u{7f}\0", "\\x9b2J\\x7f\\x00"),
            ("a\rb", "a\\x0db"),
            ("grün\tü\n", "grün\tü\n"),
        ] {
            assert_eq!(legible(text, false), shown, "{text:?}");
        }
        assert_eq!(legible("    (1.00/100%)\r", true), "    (1.00/100%)\r");
        assert!(matches!(legible("plain", false), Cow::Borrowed(_)));
    }
}
