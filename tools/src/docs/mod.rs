//! What is made from the tables of a tool that its parser uses: completions for shells, and the manual page.

mod completions;
mod man;

use crate::getopt::OptionSpec;
use crate::message::Failure;

/// `--completions`.
pub(crate) const COMPLETIONS: OptionSpec = OptionSpec {
    long: &["completions"],
    short: "",
    value: Some("bash|zsh|fish"),
    help: "print a script that makes the shell complete command lines, and exit",
};

/// `--man`.
pub(crate) const MAN: OptionSpec =
    OptionSpec { long: &["man"], short: "", value: None, help: "print the manual page, and exit" };

/// A tool, as its tables have it.
pub(crate) struct Tool {
    /// What it does, in a few words, and what its page is about.
    pub(crate) summary: &'static str,
    pub(crate) subject: &'static str,
    /// The tool whose interface this is.
    pub(crate) reference: &'static str,
    /// What follows the options.
    pub(crate) operands: &'static str,
    /// Paragraphs.
    pub(crate) description: &'static [&'static str],
    pub(crate) options: &'static [OptionSpec],
    /// Commands with options of their own, of which a command line has one.
    pub(crate) commands: Vec<Command>,
    /// Commands that the tool reads in another way: how each is used, and what it does.
    pub(crate) lines: Vec<(String, &'static str)>,
    /// What the exit codes mean.
    pub(crate) exit: &'static str,
}

/// A command of a tool.
pub(crate) struct Command {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) operands: &'static str,
    pub(crate) options: &'static [OptionSpec],
}

impl Tool {
    /// The script that makes a shell complete the words of `name`.
    ///
    /// # Errors
    /// For a shell that is not known.
    pub(crate) fn completions(&self, name: &str, shell: &str) -> Result<String, Failure> {
        completions::script(self, name, shell).ok_or_else(|| {
            Failure::usage(format!("--completions expects 'bash', 'zsh' or 'fish', not '{shell}'"))
        })
    }

    /// The manual page.
    pub(crate) fn man(&self, name: &str) -> String {
        man::page(self, name)
    }
}
