//! Messages for people: what a tool says on its error stream, and how it then exits.

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
