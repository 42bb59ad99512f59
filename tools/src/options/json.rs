//! JSON as the reference reads and writes it.
//!
//! Reading accepts single quotes beside double ones and says what is wrong in the reference's words ([`parse`]).
//! Writing puts the members of every map in the order in which the reference's hash table hands them out, because
//! scripts compare its output byte for byte ([`to_line`], [`to_pages`]).

mod lexer;
mod reader;
mod writer;

pub use reader::{JsonError, parse};
pub use writer::{in_reference_order, to_line, to_pages};
