//! JSON as the reference reads it: single quotes beside double ones, and what is wrong in its words.
//!
//! Descriptions in an image are read as those on a command line are, so that an image which the reference opens opens.

mod lexer;
mod reader;

pub use reader::{JsonError, parse};
