//! `drystone-nbd`: what it accepts and what it prints.

pub mod args;
pub mod list;
mod number;
