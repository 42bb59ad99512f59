//! JSON as the reference reads and writes it.
//!
//! Reading ([`parse`]) is core's, which reads the descriptions that images hold in the same way.
//! Writing puts the members of every map in the order in which the reference's hash table hands them out, because
//! scripts compare its output byte for byte ([`to_line`], [`to_pages`]).

mod writer;

pub use drystone_core::graph::options::json::{JsonError, parse};
pub use writer::{in_reference_order, to_line, to_pages};
