//! What a peer did that the protocol does not allow, or what it refused.

use super::layout::{OptionCode, ReplyCode};
use crate::intent::Errno;

/// Why a connection cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NbdError {
    /// Bytes that should begin a message do not.
    #[error("{what}: magic {found:#x} found, {expected:#x} expected")]
    Magic {
        /// Which message.
        what: &'static str,
        /// What was there.
        found: u64,
        /// What should have been there.
        expected: u64,
    },
    /// A number that the protocol, or what was asked, does not allow.
    #[error("{what}: found {found}, expected {expected}")]
    Value {
        /// Which field of which message.
        what: &'static str,
        /// What was there.
        found: u64,
        /// What would have been legal.
        expected: &'static str,
    },
    /// More than we take.
    #[error("{what}: {found} is more than the limit of {max}")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// How much.
        found: u64,
        /// The bound.
        max: u64,
    },
    /// A message is shorter or longer than its fields.
    #[error("{what}: its length does not fit its fields")]
    Shape {
        /// Which message.
        what: &'static str,
    },
    /// A string that is none.
    #[error("{what}: not UTF-8")]
    Text {
        /// Which one.
        what: &'static str,
    },
    /// The peer ended the connection where it may not.
    #[error("the connection ended during {during}")]
    Ended {
        /// What was going on.
        during: &'static str,
    },
    /// The server refuses what we need.
    #[error("{}", refusal(*.option, *.why, .message))]
    Refused {
        /// What was asked for.
        option: OptionCode,
        /// Why not.
        why: ReplyCode,
        /// The server's own words, if it has any.
        message: Option<String>,
    },
    /// The server lacks what we need.
    #[error("{0}")]
    Unsupported(&'static str),
    /// There is no export of that name.
    #[error("{}", no_export(.message))]
    NoExport {
        /// The name.
        name: String,
        /// The server's own words, if it has any.
        message: Option<String>,
    },
}

fn refusal(option: OptionCode, why: ReplyCode, message: &Option<String>) -> String {
    let (number, name) = (option.0, option.name());
    let mut text = match why {
        ReplyCode::ERR_POLICY => format!("Denied by server for option {number} ({name})"),
        ReplyCode::ERR_TLS_REQD => {
            let hint = "Did you forget a valid tls-creds?";
            format!("TLS negotiation required before option {number} ({name})\n{hint}")
        }
        why => format!("{} for option {number} ({name})", why.name()),
    };
    if let Some(message) = message {
        text += &format!("\nserver reported: {message}");
    }
    text
}

fn no_export(message: &Option<String>) -> String {
    match message {
        Some(message) => format!("Requested export not available\nserver reported: {message}"),
        None => "Requested export not available".into(),
    }
}

impl NbdError {
    /// The number that a guest sees.
    pub fn errno(&self) -> Errno {
        match self {
            Self::NoExport { .. } => Errno::ENOENT,
            Self::Refused { .. } | Self::Unsupported(_) => Errno::ENOTSUP,
            _ => Errno::EIO,
        }
    }
}
